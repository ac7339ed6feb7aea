//! Devices that come, are seen, and go: what that is to what rings, to slots, and to who is there.

use super::devices::{alice, device, every, lane};
use super::*;
use crate::record::{Accept, DeviceChange, DeviceEvent, DeviceRow, ForDevice, Slot, Slots};
use std::sync::Arc;

impl Rig {
    fn seen(&self) -> usize {
        let is_seen =
            |record: &Record| matches!(record, Record::Device(change) if change.event == DeviceEvent::Seen);
        self.log.iter().filter(|(_, record)| is_seen(record)).count()
    }

    pub(super) fn commit_one(&mut self) {
        let (commit, records) = self.open.pop_front().expect("something is on its way");
        let first = self.next;
        for record in records {
            self.log.push((self.next, record));
            self.next = self.next.plus(1);
        }
        self.input(Input::Persisted { commit, first });
    }

    fn lanes_of_next(&mut self) -> Vec<LaneId> {
        self.accepted(&every().build().unwrap()).entries().iter().map(|entry| entry.lane).collect()
    }
}

#[test]
fn a_slot_is_not_given_away_while_something_is_left_in_it() {
    let mut rig = Rig::new();
    rig.register("phone");
    rig.accepted(&every().build().unwrap());
    let operate = |rig: &mut Rig, operation| {
        rig.tickets += 1;
        rig.input(Input::Operate { ticket: Ticket(rig.tickets), operation });
    };
    operate(&mut rig, Operation::Unregister(alice(), device("phone")));
    // That it leaves is durable, and not yet what becomes of what is left.
    rig.commit_one();
    operate(&mut rig, Operation::Register(alice(), device("tablet")));
    rig.commit();
    assert_eq!(rig.lanes_of_next(), [lane(1)]);
    rig.register("watch");
    assert_eq!(rig.lanes_of_next(), [lane(0), lane(1)], "now nothing is left");
}

#[test]
fn a_device_that_was_there_was_seen_to_the_hour_and_after_a_crash_as_well() {
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let mut rig = Rig::with(Config { device_age: hours(3), ..Config::default() });
    rig.register("phone");
    rig.attach(1, "alice", "phone");
    rig.pass(hours(2));
    assert_eq!((rig.lanes_of_next(), rig.seen()), (vec![lane(0)], 1));
    assert_eq!((rig.lanes_of_next(), rig.seen()), (vec![lane(0)], 1), "not each time");
    rig.input(Input::Detach(LinkId(1)));
    rig.pass(hours(2));
    assert_eq!(rig.lanes_of_next(), [lane(0)], "four hours after it was attached, two after it was seen");
    let mut again =
        Rig { machine: rig.replayed(), next: Seq::first_of(Epoch(2)), now: rig.now, ..Rig::new() };
    assert_eq!(again.lanes_of_next(), [lane(0)]);
    again.pass(hours(2));
    assert_eq!(again.lanes_of_next(), [LaneId::Normal], "nobody has seen it since");
}

#[test]
fn a_device_that_is_there_is_not_removed_however_short_the_age_is() {
    let mut rig = Rig::with(Config { device_age: Duration::from_secs(600), ..Config::default() });
    rig.register("phone");
    rig.attach(1, "alice", "phone");
    rig.pass(Duration::from_secs(1800));
    assert_eq!(rig.lanes_of_next(), [lane(0)]);
}

#[test]
fn a_dead_letter_is_sent_again_to_the_device_that_it_was_for() {
    let mut rig = Rig::with_two();
    let entries = rig.accepted(&every().build().unwrap()).entries();
    rig.say(2, entries[1], Verdict::Rejected);
    rig.offers.clear();
    rig.settled_by(Operation::Requeue(DeadLetters::of(alice()))).unwrap();
    let again: Vec<_> = rig.offers.iter().map(|(link, delivery)| (*link, delivery.entry.lane)).collect();
    assert_eq!(again, [(LinkId(2), lane(1))]);
}

#[test]
fn who_was_removed_is_offered_nothing_that_is_for_the_next_one_in_its_slot() {
    let mut rig = Rig::new();
    rig.register("phone");
    rig.attach(1, "alice", "phone");
    rig.settled_by(Operation::Unregister(alice(), device("phone"))).unwrap();
    rig.register("tablet");
    assert_eq!((rig.lanes_of_next(), rig.offers.len()), (vec![lane(0)], 0));
    rig.attach(2, "alice", "tablet");
    assert_eq!(rig.offers.iter().map(|(link, _)| *link).collect::<Vec<_>>(), [LinkId(2)]);
}

#[test]
fn who_is_there_when_it_registers_is_offered_what_comes_at_once() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    rig.register("phone");
    assert_eq!((rig.lanes_of_next(), rig.offers.len()), (vec![lane(0)], 1));
}

#[test]
fn dead_letters_of_a_device_go_with_it_and_no_others() {
    let mut rig = Rig::with_two();
    let entries = rig.accepted(&every().build().unwrap()).entries();
    rig.say(1, entries[0], Verdict::Rejected);
    rig.say(2, entries[1], Verdict::Rejected);
    rig.settled_by(Operation::Unregister(alice(), device("laptop"))).unwrap();
    let letters =
        rig.settled_by(Operation::Inspect(DeadLetters::of(alice()), Seq::ZERO, 10)).unwrap().letters;
    assert_eq!(letters.len(), 1, "that of the phone");
}

#[test]
fn copies_are_never_parted_however_small_commits_are() {
    let max_commit_bytes = NonZeroU64::new(600).unwrap();
    let mut rig = Rig::with(Config { max_commit_bytes, ..Config::default() });
    ["phone", "laptop", "tablet"].into_iter().for_each(|name| rig.register(name));
    (0..2).for_each(|_| _ = rig.send(&every().build().unwrap()));
    let mut commits = Vec::new();
    while let Some((commit, records)) = rig.open.pop_front() {
        let first = rig.next;
        commits.push(records.len());
        records.iter().for_each(|_| rig.next = rig.next.plus(1));
        rig.input(Input::Persisted { commit, first });
    }
    assert_eq!(commits, [3, 3]);
}

#[test]
fn every_way_in_takes_a_place_for_each_copy() {
    let max_user_messages = core::num::NonZeroU32::new(3).unwrap();
    let devices = crate::message::DevicePolicy::EveryDevice;
    let rig = || {
        let mut rig = Rig::with(Config { max_user_messages, devices, ..Config::default() });
        ["phone", "laptop"].into_iter().for_each(|name| rig.register(name));
        rig
    };
    let refused = |rig: &Rig, ticket| {
        matches!(rig.answer(ticket), Some(Err(Refusal::OutboxFull { .. } | Refusal::OtherRefused)))
    };
    let mut batch = rig();
    let tickets = [Ticket(1001), Ticket(1002)];
    batch.input(Input::SendBatch(tickets.map(|ticket| (ticket, message("alice"))).into()));
    batch.commit();
    assert!(tickets.iter().all(|ticket| refused(&batch, *ticket)), "four copies do not fit");
    let mut sender = Rig::new();
    sender.attach(1, "alice", "engine");
    for room in ["a", "b"] {
        sender.accept(&to("alice").ordering_key(room).build().unwrap());
    }
    let deliveries = sender.offers.iter().map(|(_, delivery)| delivery.clone());
    let mut inbox = rig();
    inbox.input(Input::Receive(tickets.into_iter().zip(deliveries).collect()));
    inbox.commit();
    assert!(inbox.answer(tickets[0]).unwrap().is_ok());
    assert!(refused(&inbox, tickets[1]), "{:?}", inbox.answer(tickets[1]));
}

#[test]
fn what_a_released_message_takes_is_its_own_and_no_room_of_others_that_are_on_their_way() {
    let max_total_messages = NonZeroU64::new(3).unwrap();
    let mut rig = Rig::with(Config { max_total_messages, ..Config::default() });
    ["phone", "laptop"].into_iter().for_each(|name| rig.register(name));
    rig.attach(1, "alice", "phone");
    let at = rig.now.after(Duration::from_secs(60));
    rig.accepted(&every().not_before(at).build().unwrap());
    rig.now = at.after(Duration::from_secs(1));
    rig.input(Input::Tick);
    let on_its_way = rig.send(&message("bob"));
    rig.commit_one();
    let over = rig.send(&message("carol"));
    rig.commit();
    assert!(rig.answer(on_its_way).unwrap().is_ok());
    assert!(matches!(rig.answer(over), Some(Err(Refusal::EngineFull { messages: 3, .. }))));
}

#[test]
fn removing_a_device_again_while_it_goes_is_answered_as_well() {
    let mut rig = Rig::new();
    rig.register("phone");
    rig.accepted(&every().build().unwrap());
    let operate = |rig: &mut Rig| {
        rig.tickets += 1;
        let operation = Operation::Unregister(alice(), device("phone"));
        rig.input(Input::Operate { ticket: Ticket(rig.tickets), operation });
    };
    operate(&mut rig);
    let before = rig.done.len();
    // All but the last of its records, that it is gone, is durable.
    while rig.done.len() == before {
        rig.commit_one();
    }
    operate(&mut rig);
    rig.commit();
    assert_eq!(rig.done.len(), before + 2, "{:?}", rig.done);
    assert!(rig.settled_by(Operation::Devices(alice())).unwrap().devices.is_empty());
}

#[test]
fn a_device_that_came_back_while_it_went_is_the_one_that_is_removed_next() {
    let mut rig = Rig::new();
    rig.register("phone");
    rig.accepted(&every().build().unwrap());
    rig.tickets += 1;
    let operation = Operation::Unregister(alice(), device("phone"));
    rig.input(Input::Operate { ticket: Ticket(rig.tickets), operation: operation.clone() });
    rig.commit_one();
    rig.tickets += 1;
    let again = Operation::Register(alice(), device("phone"));
    rig.input(Input::Operate { ticket: Ticket(rig.tickets), operation: again });
    // What is left in the old slot is still being looked at when it has a new one.
    while !rig.done.iter().any(|(ticket, _)| ticket.0 == rig.tickets) {
        rig.commit_one();
    }
    rig.tickets += 1;
    rig.input(Input::Operate { ticket: Ticket(rig.tickets), operation });
    rig.commit();
    assert!(rig.settled_by(Operation::Devices(alice())).unwrap().devices.is_empty());
    assert_eq!(rig.lanes_of_next(), [LaneId::Normal]);
}

#[test]
fn a_dead_letter_of_one_device_does_not_hide_the_copy_that_waits_for_another() {
    let mut rig = Rig::new();
    ["phone", "laptop"].into_iter().for_each(|name| rig.register(name));
    rig.attach(1, "alice", "phone");
    let message = every().build().unwrap();
    let entries = rig.accepted(&message).entries();
    rig.say(1, entries[0], Verdict::Rejected);
    let target = Target { user: alice(), id: message.id(), sender: None };
    let located = rig.settled_by(Operation::Locate(target)).unwrap().located.unwrap();
    assert_eq!((located.status, located.entry), (Status::Accepted, Some(entries[1])));
}

#[test]
fn every_answer_names_the_places_that_copies_have() {
    let mut rig = Rig::new();
    ["phone", "laptop"].into_iter().for_each(|name| rig.register(name));
    let message = every().build().unwrap();
    rig.accepted(&message);
    let target = |message: &Message| Target { user: alice(), id: message.id(), sender: None };
    let waits = |rig: &Rig, priority| {
        let user = rig.machine.snapshot(&alice()).unwrap();
        let all = [0, 1].map(|slot| LaneId::Device(crate::record::Slot::new(slot).unwrap(), priority));
        all.map(|lane| EntryRef { lane, seq: user.device_lanes[&lane].live[0] }).to_vec()
    };
    let newer = every().build().unwrap();
    let replaced = rig.settled_by(Operation::Replace(target(&message), newer.clone())).unwrap();
    assert_eq!(replaced.accepted.unwrap().entries(), waits(&rig, Priority::Normal));
    let moved = rig.settled_by(Operation::Reprioritise(target(&newer), Priority::High)).unwrap();
    assert_eq!(moved.accepted.unwrap().entries(), waits(&rig, Priority::High));
    let stays = rig.settled_by(Operation::Reprioritise(target(&newer), Priority::High)).unwrap();
    assert_eq!(stays.accepted.unwrap().entries(), waits(&rig, Priority::High));
}

#[test]
fn what_waits_for_a_device_that_is_away_makes_nobody_else_hurry() {
    let linger = Duration::from_millis(300);
    let mut rig = Rig::with(Config { linger, ..Config::default() });
    ["phone", "laptop"].into_iter().for_each(|name| rig.register(name));
    rig.attach(1, "alice", "phone");
    let keyed = |room: &str| every().ordering_key(room).build().unwrap();
    let critical = every().ordering_key("c").priority(Priority::Critical).build().unwrap();
    for message in [keyed("a"), critical] {
        rig.accepted(&message);
    }
    rig.pass(linger);
    let offered = rig.offers.len();
    rig.accepted(&keyed("b"));
    assert_eq!(
        (offered, rig.offers.len()),
        (2, 2),
        "it waits for more, though the laptop's have waited for long"
    );
    rig.pass(linger);
    assert_eq!(rig.offers.len(), 3);
}

#[test]
fn what_was_released_over_the_quota_can_still_be_moved_to_another_priority() {
    let max_user_messages = core::num::NonZeroU32::MIN;
    let mut rig = Rig::with(Config { max_user_messages, ..Config::default() });
    ["phone", "laptop"].into_iter().for_each(|name| rig.register(name));
    rig.attach(1, "alice", "tablet");
    let at = rig.now.after(Duration::from_secs(60));
    let message = every().not_before(at).build().unwrap();
    rig.accepted(&message);
    rig.pass(Duration::from_secs(61));
    assert_eq!(rig.machine.stats().counters.live(), 2);
    let target = Target { user: alice(), id: message.id(), sender: None };
    let moved = rig.settled_by(Operation::Reprioritise(target, Priority::High)).unwrap();
    assert_eq!(moved.messages, 2);
}

/// Answers what is asked of a store in which one message waits for a device of a slot that its user's row has lost.
fn answer_with_lost_slot(rig: &mut Rig, message: &Message, lost: Slot) {
    let (among, rings, is_copy, stride) = (Slots::one(lost), false, false, 1);
    let device = Some(ForDevice { slot: lost, among, rings, is_copy, stride });
    let accept = Arc::new(Accept { device, ..Accept::new(message.clone(), rig.now) });
    let reflects = Seq::new(100);
    while let Some((load, query)) = rig.loads.pop() {
        let found = match query {
            Query::Row(_) => Found::User { row: Some(Box::default()), held: None, reflects },
            Query::User(_) => {
                let row = UserRow { devices: vec![DeviceRow::of(lost)], ..UserRow::default() };
                Found::User { row: Some(Box::new(row)), held: Some(held(1, message.cost())), reflects }
            }
            Query::Page { lane, after, .. } => {
                let is_there = lane == accept.lane() && after < Seq::new(50);
                let entries = is_there.then(|| (Seq::new(50), accept.clone())).into_iter().collect();
                Found::Page(Page { entries, damaged: Vec::new(), more_after: None, reflects })
            }
            Query::Place { .. } | Query::Id { .. } => panic!("nobody looks for one message"),
            Query::Sender { .. } => Found::Sender(Vec::new()),
            Query::Due { .. } => panic!("nobody sweeps"),
        };
        rig.input(Input::Loaded { load, found: Box::new(found) });
        rig.commit();
    }
}

fn with_lost_slot() -> (Rig, Message, Slot) {
    let birth =
        Birth { store_empty: false, settled: Seq::new(100), epoch: Epoch(2), ..birth(Config::default()) };
    (Rig::born(birth), message("alice"), Slot::new(5).unwrap())
}

#[test]
fn what_waits_in_a_slot_that_the_row_has_lost_can_be_purged() {
    let (mut rig, message, lost) = with_lost_slot();
    rig.tickets += 1;
    let ticket = Ticket(rig.tickets);
    rig.input(Input::Operate { ticket, operation: Operation::Purge(alice()) });
    answer_with_lost_slot(&mut rig, &message, lost);
    let done = rig.done.iter().find(|(t, _)| *t == ticket).unwrap().1.clone();
    assert_eq!(done.map(|done| done.messages), Ok(1));
    assert_eq!(rig.count_of(EndReason::Cancelled), 1);
}

#[test]
fn what_waits_in_a_slot_that_the_row_has_lost_is_offered_to_the_device_that_gets_the_slot() {
    let (mut rig, message, lost) = with_lost_slot();
    for n in 0..=lost.get() {
        rig.tickets += 1;
        let (ticket, device) = (Ticket(rig.tickets), device(&format!("device {n}")));
        rig.input(Input::Operate { ticket, operation: Operation::Register(alice(), device) });
        answer_with_lost_slot(&mut rig, &message, lost);
        rig.commit();
    }
    rig.attach(1, "alice", "device 5");
    answer_with_lost_slot(&mut rig, &message, lost);
    assert_eq!(rig.offered(), [EntryRef { lane: lane(5), seq: Seq::new(50) }]);
}

/// The journal may have lost the removal that the row reflects.
#[test]
fn a_registration_that_the_row_reflects_is_not_folded_into_it_again() {
    let birth =
        Birth { store_empty: false, settled: Seq::new(40), epoch: Epoch(2), ..birth(Config::default()) };
    for (reflects, expected) in [(60, 0), (50, 1)] {
        let mut rig = Rig::born(birth.clone());
        let (slot, event, at) = (Slot::new(0).unwrap(), DeviceEvent::Registered, rig.now);
        let change = DeviceChange { user: alice(), slot, device: device("phone"), event, at };
        rig.machine.replay(Seq::new(50), &Record::Device(change), true);
        rig.tickets += 1;
        rig.input(Input::Operate { ticket: Ticket(rig.tickets), operation: Operation::Devices(alice()) });
        while let Some((load, query)) = rig.loads.pop() {
            assert!(matches!(query, Query::User(_)), "{query:?}");
            let reflects = Seq::new(reflects);
            let row = UserRow { reflects, devices: vec![DeviceRow::of(slot)], ..UserRow::default() };
            let found = Found::User { row: Some(Box::new(row)), held: Some(held(0, 0)), reflects };
            rig.input(Input::Loaded { load, found: Box::new(found) });
        }
        assert_eq!(rig.done.pop().unwrap().1.unwrap().devices.len(), expected, "reflects {reflects}");
    }
}

#[test]
fn a_device_that_was_not_seen_for_long_goes_when_somebody_looks_comes_or_something_is_due() {
    for occasion in ["list", "attach", "attach beside another one", "sweep"] {
        let mut rig = Rig::new();
        rig.register("phone");
        let ttl = rig.machine.config.device_age + Duration::from_secs(3600);
        rig.accepted(&every().build().unwrap());
        rig.accepted(&every().ttl(ttl + ttl).build().unwrap());
        if occasion == "attach beside another one" {
            rig.attach(1, "alice", "tablet");
        }
        rig.pass(ttl);
        assert_eq!(rig.count_of(EndReason::DeviceGone), 0, "nobody has looked yet");
        match occasion {
            "list" => {
                let operation = Operation::Devices(alice());
                rig.tickets += 1;
                rig.input(Input::Operate { ticket: Ticket(rig.tickets), operation });
                let devices = rig.done.pop().unwrap().1.unwrap().devices;
                assert!(devices.iter().all(|device| device.info.is_leaving), "{devices:?}");
            }
            "sweep" => {
                rig.machine.note_due(rig.now);
                rig.pass(Duration::from_secs(61));
                while let Some((load, query)) = rig.loads.pop() {
                    let Query::Due { .. } = query else { panic!("{query:?}") };
                    let (users, next) = (vec![alice()], Timestamp::NEVER);
                    let found = Found::Due { users, more: None, next, table: 1 };
                    rig.input(Input::Loaded { load, found: Box::new(found) });
                }
            }
            _ => rig.attach(2, "alice", "laptop"),
        }
        rig.commit();
        assert_eq!(rig.count_of(EndReason::DeviceGone), 2, "{occasion}");
        assert_eq!(rig.settled_by(Operation::Devices(alice())).unwrap().devices, [], "{occasion}");
        assert_eq!(rig.machine.stats().counters.live(), 0);
    }
}

#[test]
fn a_device_that_comes_back_after_long_is_not_taken_for_gone() {
    let mut rig = Rig::new();
    ["phone", "laptop"].into_iter().for_each(|name| rig.register(name));
    rig.accepted(&every().build().unwrap());
    rig.pass(rig.machine.config.device_age + Duration::from_secs(1));
    rig.attach(1, "alice", "phone");
    rig.commit();
    assert_eq!((rig.count_of(EndReason::DeviceGone), rig.offered().len()), (1, 1));
}
