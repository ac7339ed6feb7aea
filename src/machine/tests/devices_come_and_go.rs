//! Devices that come, are seen, and go: what that is to what rings, to slots, and to who is there.

use super::devices::{alice, device, every, lane, ring};
use super::*;
use crate::record::DeviceEvent;

impl Rig {
    fn seen(&self) -> usize {
        let is_seen =
            |record: &Record| matches!(record, Record::Device(change) if change.event == DeviceEvent::Seen);
        self.log.iter().filter(|(_, record)| is_seen(record)).count()
    }

    fn lanes_of_next(&mut self) -> Vec<LaneId> {
        self.accepted(&every().build().unwrap()).entries().iter().map(|entry| entry.lane).collect()
    }
}

#[test]
fn who_was_not_offered_what_rings_is_not_told_that_it_stopped() {
    let max_in_flight = core::num::NonZeroU32::MIN;
    let mut rig = Rig::with(Config { max_in_flight, critical_reserve: 0, ..Config::default() });
    for (link, name) in [(1, "phone"), (2, "laptop")] {
        rig.register(name);
        rig.attach(link, "alice", name);
    }
    let busy = rig.accepted(&every().build().unwrap()).entries();
    rig.say(1, busy[0], Verdict::Delivered);
    let call = rig.accepted(&ring()).entries();
    assert_eq!(rig.offers.last().unwrap().1.entry, call[0], "the laptop has its window full");
    rig.say(1, call[0], Verdict::Delivered);
    assert_eq!((rig.count_of(EndReason::Elsewhere), rig.withdrawn.len()), (1, 0));
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
    let (commit, records) = rig.open.pop_front().unwrap();
    let first = rig.next;
    for record in records {
        rig.log.push((rig.next, record));
        rig.next = rig.next.plus(1);
    }
    rig.input(Input::Persisted { commit, first });
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
    let mut rig = Rig::new();
    for (link, name) in [(1, "phone"), (2, "laptop")] {
        rig.register(name);
        rig.attach(link, "alice", name);
    }
    let entries = rig.accepted(&every().build().unwrap()).entries();
    rig.say(2, entries[1], Verdict::Rejected);
    rig.offers.clear();
    rig.settled_by(Operation::Requeue(DeadLetters::of(alice()))).unwrap();
    let again: Vec<_> = rig.offers.iter().map(|(link, delivery)| (*link, delivery.entry.lane)).collect();
    assert_eq!(again, [(LinkId(2), lane(1))]);
}
