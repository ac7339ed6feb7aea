//! Registered devices: what is for each of them, and what becomes of what is left.

use super::*;
use crate::message::DevicePolicy;
use crate::record::{LaneId, Slot};

pub(super) fn alice() -> UserId {
    UserId::new("alice").unwrap()
}

pub(super) fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

pub(super) fn every() -> MessageBuilder {
    to("alice").devices(DevicePolicy::EveryDevice)
}

pub(super) fn ring() -> Message {
    to("alice").devices(DevicePolicy::RingAll).priority(Priority::Critical).build().unwrap()
}

pub(super) fn lane(slot: u8) -> LaneId {
    LaneId::Device(Slot::new(slot).unwrap(), Priority::Normal)
}

impl Rig {
    pub(super) fn settled_by(&mut self, operation: Operation) -> Result<Outcome, OperationError> {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.input(Input::Operate { ticket, operation });
        self.commit();
        let at = self.done.iter().position(|(t, _)| *t == ticket).expect("it is answered");
        self.done.remove(at).1
    }

    pub(super) fn register(&mut self, name: &str) {
        self.settled_by(Operation::Register(alice(), device(name))).unwrap();
    }

    /// A phone in the first slot and a laptop in the second, both registered.
    pub(super) fn register_two(&mut self) {
        ["phone", "laptop"].iter().for_each(|name| self.register(name));
    }

    /// The same, of somebody who has nothing yet.
    pub(super) fn of_two() -> Self {
        let mut rig = Self::new();
        rig.register_two();
        rig
    }

    /// A phone in the first slot and a laptop in the second, both registered and attached.
    pub(super) fn join_two(&mut self) {
        for (link, name) in [(1, "phone"), (2, "laptop")] {
            self.register(name);
            self.attach(link, "alice", name);
        }
    }

    pub(super) fn with_two() -> Self {
        let mut rig = Self::new();
        rig.join_two();
        rig
    }

    pub(super) fn accepted(&mut self, message: &Message) -> Accepted {
        let ticket = self.send(message);
        self.commit();
        *self.answer(ticket).unwrap().as_ref().unwrap()
    }

    pub(super) fn offered_to(&self, link: u64) -> Vec<EntryRef> {
        self.offers.iter().filter(|(to, _)| *to == LinkId(link)).map(|(_, delivery)| delivery.entry).collect()
    }

    pub(super) fn count_of(&self, reason: EndReason) -> u64 {
        self.machine.stats().counters.ended[reason.index()]
    }
}

#[test]
fn each_device_gets_what_is_for_every_device_and_no_other_ones_copy() {
    let mut rig = Rig::of_two();
    let accepted = rig.accepted(&every().build().unwrap());
    assert_eq!(accepted.entries().iter().map(|entry| entry.lane).collect::<Vec<_>>(), [lane(0), lane(1)]);
    assert_eq!(rig.machine.stats().counters.live(), 2);
    rig.attach(1, "alice", "laptop");
    assert_eq!(rig.offered(), [accepted.entries()[1]]);
    // Another device cannot confirm it.
    rig.attach(2, "alice", "tablet");
    rig.say(2, accepted.entries()[1], Verdict::Delivered);
    assert_eq!((rig.count_of(EndReason::Delivered), rig.machine.stats().stray_verdicts), (0, 1));
    rig.say(1, accepted.entries()[1], Verdict::Delivered);
    rig.attach(3, "alice", "phone");
    assert_eq!(rig.offered_to(3), [accepted.entries()[0]]);
    rig.say(3, accepted.entries()[0], Verdict::Delivered);
    assert_eq!((rig.count_of(EndReason::Delivered), rig.machine.stats().counters.live()), (2, 0));
}

#[test]
fn somebody_without_devices_and_those_who_register_later_get_it_on_any() {
    let mut rig = Rig::new();
    let before = rig.accepted(&every().build().unwrap());
    assert_eq!(before.entries(), [EntryRef { lane: LaneId::Normal, ..before.entry }]);
    rig.register("phone");
    rig.attach(1, "alice", "laptop");
    assert_eq!(rig.offered_to(1), before.entries());
}

#[test]
fn a_repeat_is_answered_with_all_places_also_after_replay() {
    let mut rig = Rig::of_two();
    let message = every().build().unwrap();
    let first = rig.accepted(&message);
    assert_eq!(rig.accepted(&message), first.again());
    let mut late = Rig::new();
    late.machine = rig.replayed();
    assert_eq!(late.accepted(&message), first.again());
}

#[test]
fn copies_and_devices_come_back_from_a_replay_and_from_the_store() {
    let mut rig = Rig::of_two();
    let accepted = rig.accepted(&every().build().unwrap());
    rig.attach(1, "alice", "phone");
    rig.say(1, accepted.entries()[0], Verdict::Delivered);
    let replayed = rig.replayed();
    let devices = |machine: &Machine| machine.snapshot(&alice()).unwrap().devices.unwrap();
    assert_eq!(devices(&replayed), devices(&rig.machine));
    let lanes = |machine: &Machine| machine.snapshot(&alice()).unwrap().device_lanes[&lane(1)].live.clone();
    assert_eq!(lanes(&replayed), [accepted.entries()[1].seq]);
    rig.input(Input::Detach(LinkId(1)));
    rig.commit();
    let rows = settle(&mut rig).into_iter().flat_map(|part| part.rows).collect::<Vec<_>>();
    let row = &rows.iter().find(|(id, _)| *id == alice()).unwrap().1;
    assert_eq!(row.devices.len(), 2);
    assert!(row.lane(lane(0)).unwrap().cursor >= accepted.entries()[0].seq);
    assert!(row.lane(lane(1)).unwrap().cursor < accepted.entries()[1].seq);
}

#[test]
fn a_message_for_any_device_goes_to_the_next_when_one_has_failed() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    rig.attach(2, "alice", "laptop");
    let entry = rig.accept(&message("alice"));
    let first = rig.offers[0].0;
    let other = if first == LinkId(1) { 2 } else { 1 };
    rig.say(first.0, entry, Verdict::Nack(None));
    rig.pass(Duration::from_millis(10));
    assert_eq!(rig.offered_to(other), [entry], "at once, with no backoff");
    rig.say(other, entry, Verdict::Nack(None));
    rig.pass(Duration::from_millis(10));
    assert_eq!(rig.offers.len(), 2, "each has failed: now it rests");
    rig.pass(Duration::from_secs(300));
    assert_eq!(rig.offers.len(), 3);
}

#[test]
fn an_ack_deadline_that_passes_moves_a_message_on_to_the_next_device() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    rig.attach(2, "alice", "laptop");
    let entry = rig.accept(&message("alice"));
    rig.pass(Config::default().ack_deadline);
    rig.pass(Duration::from_millis(10));
    let to: Vec<_> = rig.offers.iter().map(|(link, delivery)| (link.0, delivery.entry)).collect();
    assert_eq!(to.len(), 2);
    assert!(to[0].0 != to[1].0 && to[1].1 == entry, "{to:?}");
}

#[test]
fn what_waits_for_a_device_that_is_removed_ends_and_its_slot_is_free_again() {
    let mut rig = Rig::of_two();
    rig.accepted(&every().build().unwrap());
    rig.accepted(&every().priority(Priority::Low).build().unwrap());
    let outcome = rig.settled_by(Operation::Unregister(alice(), device("phone"))).unwrap();
    assert_eq!((outcome.messages, rig.count_of(EndReason::DeviceGone)), (2, 2));
    let ledger = rig.settled_by(Operation::Ledger(alice())).unwrap().ledger;
    assert!(ledger.rows.iter().all(|row| row.reason == EndReason::DeviceGone && row.lane.slot().is_some()));
    assert_eq!(
        rig.settled_by(Operation::Unregister(alice(), device("phone"))),
        Err(OperationError::NoSuchDevice)
    );
    rig.register("tablet");
    let later = rig.accepted(&every().build().unwrap());
    assert_eq!(later.entries()[0].lane, lane(0));
    let list = rig.settled_by(Operation::Devices(alice())).unwrap().devices;
    let names: Vec<_> = list.iter().map(|standing| standing.info.device.clone()).collect();
    assert_eq!(names, [device("tablet"), device("laptop")]);
}

#[test]
fn a_removal_that_a_crash_cut_short_goes_on() {
    let mut rig = Rig::new();
    rig.register("phone");
    rig.accepted(&every().build().unwrap());
    rig.tickets += 1;
    let operation = Operation::Unregister(alice(), device("phone"));
    rig.input(Input::Operate { ticket: Ticket(rig.tickets), operation });
    let (commit, records) = rig.open.pop_front().unwrap();
    rig.log.extend((0..).map(|n| rig.next.plus(n)).zip(records));
    let _ = commit;
    let mut reborn = Rig::born(Birth { epoch: Epoch(2), ..birth(Config::default()) });
    reborn.machine = rig.replayed();
    reborn.input(Input::Tick);
    reborn.commit();
    assert_eq!(reborn.count_of(EndReason::DeviceGone), 1);
    assert_eq!(reborn.settled_by(Operation::Devices(alice())).unwrap().devices, []);
}

#[test]
fn as_many_devices_are_registered_as_are_allowed_and_each_once() {
    let config = Config { max_registered: NonZeroUsize::new(2).unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    rig.register("phone");
    rig.register_two();
    let refused = rig.settled_by(Operation::Register(alice(), device("tablet")));
    assert_eq!(refused, Err(OperationError::TooManyDevices));
    assert_eq!(rig.settled_by(Operation::Devices(alice())).unwrap().devices.len(), 2);
}

#[test]
fn a_device_that_is_not_seen_for_long_is_removed_with_the_next_message_and_one_that_is_there_is_not() {
    let age = Duration::from_secs(100_000);
    let mut rig = Rig::with(Config { device_age: age, ..Config::default() });
    rig.register_two();
    rig.attach(1, "alice", "laptop");
    rig.accepted(&every().build().unwrap());
    rig.pass(age + Duration::from_secs(1));
    let accepted = rig.accepted(&every().build().unwrap());
    assert_eq!(accepted.entries().iter().map(|entry| entry.lane).collect::<Vec<_>>(), [lane(1)]);
    rig.commit();
    assert_eq!(rig.count_of(EndReason::DeviceGone), 1);
}

#[test]
fn a_message_is_withdrawn_moved_and_replaced_with_all_its_copies() {
    let mut rig = Rig::of_two();
    let target = |message: &Message| Target { user: alice(), id: message.id(), sender: None };
    let message = every().build().unwrap();
    rig.accepted(&message);
    let moved = rig.settled_by(Operation::Reprioritise(target(&message), Priority::High)).unwrap();
    assert_eq!((moved.messages, rig.machine.stats().counters.live()), (2, 2));
    assert_eq!(rig.count_of(EndReason::Cancelled), 0);
    let newer = every().build().unwrap();
    let replaced = rig.settled_by(Operation::Replace(target(&message), newer.clone())).unwrap();
    assert_eq!((replaced.messages, rig.count_of(EndReason::Replaced)), (2, 2));
    assert_eq!(replaced.accepted.unwrap().among.len(), 2);
    rig.attach(1, "alice", "phone");
    let cancelled = rig.settled_by(Operation::Cancel(target(&newer))).unwrap();
    assert_eq!((cancelled.messages, cancelled.possibly_delivered), (2, 1));
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

#[test]
fn a_scheduled_message_is_for_the_devices_that_are_there_when_its_time_comes() {
    let mut rig = Rig::new();
    rig.register("phone");
    let at = rig.now.after(Duration::from_secs(60));
    let accepted = rig.accepted(&every().not_before(at).build().unwrap());
    assert_eq!(accepted.entries().len(), 1);
    rig.register("laptop");
    rig.attach(1, "alice", "phone");
    rig.attach(2, "alice", "laptop");
    rig.pass(Duration::from_secs(61));
    rig.commit();
    assert_eq!((rig.offered_to(1).len(), rig.offered_to(2).len()), (1, 1));
    // Whoever watches it hears of all of them.
    let places = [rig.offered_to(1)[0], rig.offered_to(2)[0]];
    assert_eq!(rig.moves, places.map(|place| (accepted.entry, place)));
    assert_eq!(rig.machine.stats().counters.accepted, 2);
    let lives = rig.replayed();
    assert_eq!(lives.stats().counters, rig.machine.stats().counters);
}

#[test]
fn the_newest_of_a_collapse_key_takes_the_place_of_every_copy() {
    let mut rig = Rig::of_two();
    let state = |version| every().collapse_key("state").version(version).build().unwrap();
    rig.accepted(&state(3));
    rig.accepted(&state(5));
    assert_eq!((rig.count_of(EndReason::Replaced), rig.machine.stats().counters.live()), (2, 2));
    let ticket = rig.send(&state(4));
    assert_eq!(rig.answer(ticket), Some(&Err(Refusal::Outdated { newest: 5 })));
    let any = to("alice").devices(DevicePolicy::AnyDevice).collapse_key("state").build().unwrap();
    rig.accepted(&any);
    assert_eq!((rig.count_of(EndReason::Replaced), rig.machine.stats().counters.live()), (4, 1));
}

#[test]
fn a_full_outbox_takes_all_copies_of_a_message_or_none() {
    let config = |overflow| Config {
        max_user_messages: core::num::NonZeroU32::new(3).unwrap(),
        overflow,
        ..Config::default()
    };
    let mut rig = Rig::with(config(crate::Overflow::Reject));
    rig.register_two();
    rig.accepted(&every().build().unwrap());
    let ticket = rig.send(&every().build().unwrap());
    assert!(matches!(rig.answer(ticket), Some(Err(Refusal::OutboxFull { messages: 2, .. }))));
    rig.accepted(&message("alice"));
    let mut rig = Rig::with(config(crate::Overflow::DropOldest));
    rig.register_two();
    rig.accepted(&every().build().unwrap());
    rig.accepted(&every().build().unwrap());
    assert_eq!((rig.count_of(EndReason::Evicted), rig.machine.stats().counters.live()), (1, 3));
}

#[test]
fn what_would_not_fit_into_an_empty_outbox_for_all_devices_is_refused_for_good() {
    let cost = every().build().unwrap().cost();
    let bytes = |max| core::num::NonZeroU64::new(max).unwrap();
    for (messages, max_bytes, fits) in
        [(1, 1 << 20, false), (2, 1 << 20, true), (3, 2 * cost - 1, false), (3, 2 * cost, true)]
    {
        for overflow in [crate::Overflow::Reject, crate::Overflow::DropOldest] {
            let max_user_messages = core::num::NonZeroU32::new(messages).unwrap();
            let config =
                Config { max_user_messages, max_user_bytes: bytes(max_bytes), overflow, ..Config::default() };
            let mut rig = Rig::with(config);
            rig.register_two();
            let ticket = rig.send(&every().build().unwrap());
            rig.commit();
            let answer = rig.answer(ticket).expect("it is answered");
            let refused =
                Refusal::TooManyCopies { copies: 2, bytes: 2 * cost, max_messages: messages, max_bytes };
            let expected = if fits { Ok(()) } else { Err(&refused) };
            assert_eq!(answer.as_ref().map(drop), expected, "{messages} messages, {max_bytes} bytes");
            assert!(refused.is_final());
        }
    }
}

#[test]
fn what_was_scheduled_takes_its_places_over_the_quota_and_then_nothing_new_comes_in() {
    let max_user_messages = core::num::NonZeroU32::new(3).unwrap();
    let max_total_messages = core::num::NonZeroU64::new(3).unwrap();
    let mut rig = Rig::with(Config { max_user_messages, max_total_messages, ..Config::default() });
    rig.register_two();
    rig.attach(1, "alice", "phone");
    let later = every().not_before(rig.now.after(Duration::from_secs(60))).build().unwrap();
    rig.accepted(&later);
    let low = to("bob").priority(Priority::Low).build().unwrap();
    rig.accepted(&low);
    rig.accepted(&message("bob"));
    rig.pass(Duration::from_secs(61));
    assert_eq!(rig.machine.stats().counters.live(), 4);
    let ticket = rig.send(&message("carol"));
    assert!(matches!(rig.answer(ticket), Some(Err(Refusal::EngineFull { messages: 4, .. }))));
    // What needs no more room than it gives back is still done.
    let target =
        Target { user: UserId::new("bob").unwrap(), id: low.id(), sender: Some(low.sender().cloned()) };
    rig.settled_by(Operation::Reprioritise(target, Priority::High)).unwrap();
    assert_eq!(rig.machine.stats().counters.live(), 4);
}

#[test]
fn copies_are_undone_together_when_their_commit_fails() {
    let mut rig = Rig::of_two();
    let ticket = rig.send(&every().build().unwrap());
    let (commit, records) = rig.open.pop_front().unwrap();
    assert_eq!(records.len(), 2);
    rig.input(Input::Writable(false));
    rig.input(Input::PersistFailed { commit, unknown: false });
    assert_eq!(rig.answer(ticket), Some(&Err(Refusal::Degraded)));
    rig.input(Input::Writable(true));
    rig.accepted(&every().build().unwrap());
    let stats = rig.machine.stats();
    assert_eq!((stats.counters.live(), stats.pending), (2, 0));
}

#[test]
fn a_receiver_that_knows_priorities_only_confirms_what_is_for_its_device() {
    let mut rig = Rig::new();
    rig.register("phone");
    rig.attach(1, "alice", "phone");
    let accepted = rig.accepted(&every().build().unwrap());
    rig.say(1, EntryRef { lane: LaneId::Normal, seq: accepted.entry.seq }, Verdict::Delivered);
    assert_eq!(rig.count_of(EndReason::Delivered), 1);
}

/// Found by a review: whoever asked waited for nothing.
#[test]
fn what_a_receiver_that_knows_priorities_only_answers_reaches_whoever_asked() {
    let mut rig = Rig::new();
    rig.register("phone");
    rig.attach(1, "alice", "phone");
    let accepted = rig.accepted(&every().build().unwrap());
    let answer = Verdict::Replied(bytes::Bytes::from_static(b"yes"));
    rig.say(1, EntryRef { lane: LaneId::Normal, seq: accepted.entry.seq }, answer);
    assert_eq!(rig.replies.len(), 1);
    assert_eq!(rig.count_of(EndReason::Delivered), 1);
}

#[test]
fn what_one_device_is_offered_says_that_only_its_earlier_places_are_done_with() {
    let mut rig = Rig::new();
    rig.register("phone");
    rig.attach(1, "alice", "phone");
    let any = rig.accept(&message("alice"));
    let own = rig.accepted(&every().build().unwrap()).entry;
    let floor = |rig: &Rig, entry| rig.offers.iter().find(|(_, d)| d.entry == entry).unwrap().1.floor;
    assert!(floor(&rig, own) < any.seq, "what is for any device has not ended yet");
    let (first, second) = (&rig.offers[0].1, &rig.offers[1].1);
    assert_ne!(first.stream, second.stream, "an inbox tells them apart");
}

fn statuses(outcome: &Outcome) -> Vec<Option<Status>> {
    outcome.copies.iter().map(|copy| copy.located.map(|located| located.status)).collect()
}

#[test]
fn each_copy_says_where_it_stands_and_the_message_stands_where_the_first_to_have_it_does() {
    let skip = [crate::OnFailure::Skip; 4];
    let mut rig = Rig::with(Config { on_failure: skip, ..Config::default() });
    for name in ["phone", "laptop", "tablet"] {
        rig.register(name);
    }
    let message = every().sender("bob").build().unwrap();
    let entries = rig.accepted(&message).entries();
    let target = |sender| Operation::Locate(Target { user: alice(), id: message.id(), sender });
    let bob = || Some(Some(UserId::new("bob").unwrap()));
    let ended = |reason| Some(Status::Ended(reason));
    rig.attach(1, "alice", "laptop");
    let outcome = rig.settled_by(target(None)).unwrap();
    assert_eq!(statuses(&outcome), [Some(Status::Accepted), Some(Status::Sent), Some(Status::Accepted)]);
    let names: Vec<_> = outcome.copies.iter().map(|copy| copy.device.clone().unwrap()).collect();
    assert_eq!(names, ["phone", "laptop", "tablet"].map(device));
    rig.say(1, entries[1], Verdict::Delivered);
    rig.attach(2, "alice", "phone");
    rig.say(2, entries[0], Verdict::Rejected);
    let outcome = rig.settled_by(target(None)).unwrap();
    let (delivered, rejected) = (ended(EndReason::Delivered), ended(EndReason::Rejected));
    assert_eq!(statuses(&outcome), [rejected, delivered, Some(Status::Accepted)]);
    assert_eq!(outcome.located.unwrap().status, Status::Ended(EndReason::Delivered), "the first to have it");
    rig.settled_by(Operation::Unregister(alice(), device("tablet"))).unwrap();
    let outcome = rig.settled_by(target(bob())).unwrap();
    assert_eq!(statuses(&outcome), [rejected, delivered, ended(EndReason::DeviceGone)]);
    assert_eq!(outcome.copies[2].device, None);
    // Nobody remembers for which sender's message the answer is: only what the ledger has is said.
    let outcome = rig.settled_by(target(None)).unwrap();
    assert_eq!(statuses(&outcome), [rejected, ended(EndReason::DeviceGone)]);
}

#[test]
fn a_copy_that_was_a_dead_letter_and_was_sent_again_is_not_said_to_have_been_delivered() {
    let mut rig = Rig::of_two();
    let message = every().sender("bob").build().unwrap();
    let entries = rig.accepted(&message).entries();
    rig.attach(1, "alice", "phone");
    rig.say(1, entries[0], Verdict::Rejected);
    rig.settled_by(Operation::Requeue(DeadLetters::of(alice()))).unwrap();
    rig.attach(2, "alice", "laptop");
    rig.say(2, entries[1], Verdict::Nack(None));
    let bob = Some(Some(UserId::new("bob").unwrap()));
    let outcome =
        rig.settled_by(Operation::Locate(Target { user: alice(), id: message.id(), sender: bob })).unwrap();
    assert!(!statuses(&outcome).contains(&Some(Status::Ended(EndReason::Delivered))), "{outcome:?}");
}

#[test]
fn where_all_copies_stand_is_said_when_what_is_done_to_all_of_them_is_state() {
    let everywhere = |operation: fn(Target) -> Operation| {
        let mut rig = Rig::of_two();
        let message = every().build().unwrap();
        rig.accepted(&message);
        let target = Target { user: alice(), id: message.id(), sender: None };
        rig.tickets += 1;
        rig.input(Input::Operate { ticket: Ticket(rig.tickets), operation: operation(target.clone()) });
        let found = rig.settled_by(Operation::Locate(target)).unwrap();
        let all = found.copies.iter().map(|copy| copy.located.map(|located| located.status));
        (found.located.map(|located| located.status), all.collect::<Vec<_>>())
    };
    let moved = everywhere(|target| Operation::Reprioritise(target, Priority::High));
    let waits = Some(Status::Accepted);
    assert_eq!(moved, (waits, vec![waits, waits]));
    let cancelled = Some(Status::Ended(EndReason::Cancelled));
    assert_eq!(everywhere(Operation::Cancel), (cancelled, vec![cancelled, cancelled]));
}
