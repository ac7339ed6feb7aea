//! Messages that wait for one of which several devices have copies.

use super::devices::{alice, device, every, lane, ring};
use super::*;
use crate::message::Otherwise;
use crate::record::{DependentRow, LaneId, Slot};

fn key() -> String {
    MessageId::random().to_string()
}

fn parent() -> Message {
    every().ordering_key(key()).build().unwrap()
}

fn after(parent: &Message, otherwise: Otherwise) -> Message {
    every().ordering_key(key()).after(parent.id(), otherwise).build().unwrap()
}

impl Rig {
    fn waiting(&self) -> Vec<DependentRow> {
        self.machine.snapshot(&alice()).and_then(|user| user.dependents).unwrap_or_default()
    }

    fn waits_for(&self) -> Vec<Vec<Seq>> {
        let places = |row: DependentRow| row.parent.places().map(|(_, seq)| seq).collect::<Vec<_>>();
        let sorted = |mut places: Vec<Seq>| {
            places.sort_unstable();
            places
        };
        self.waiting().into_iter().map(|row| sorted(places(row))).collect()
    }

    fn got(&self, link: u64, message: &Message) -> Option<EntryRef> {
        let is_it = |(to, delivery): &&(LinkId, Delivery)| {
            *to == LinkId(link) && delivery.message.id() == message.id()
        };
        self.offers.iter().find(is_it).map(|(_, delivery)| delivery.entry)
    }
}

#[test]
fn it_goes_to_every_device_when_the_first_one_has_its_parent() {
    let mut rig = Rig::with_two();
    let parent = parent();
    let dependent = after(&parent, Otherwise::Cancel);
    let copies = rig.accepted(&parent).entries();
    let place = rig.accepted(&dependent);
    assert_eq!((place.entry.lane, place.entries().len()), (LaneId::Scheduled, 1));
    assert_eq!(rig.waits_for(), [copies.iter().map(|entry| entry.seq).collect::<Vec<_>>()]);
    assert_eq!((rig.got(1, &dependent), rig.got(2, &dependent)), (None, None));
    rig.say(2, copies[1], Verdict::Delivered);
    let lanes = [1, 2].map(|link| rig.got(link, &dependent).unwrap().lane);
    assert_eq!(lanes, [lane(0), lane(1)], "to the phone as well, which has the parent before it");
    assert_eq!(rig.waiting(), []);
    for (link, message) in [(1, &parent), (1, &dependent), (2, &dependent)] {
        let entry = rig.got(link, message).unwrap();
        rig.say(link, entry, Verdict::Delivered);
    }
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.accepted, counters.live(), counters.ended[0]), (4, 0, 4));
    assert_eq!(rig.replayed().stats().counters, counters);
}

#[test]
fn its_parent_has_not_ended_as_long_as_one_device_may_still_get_it() {
    for last in [Verdict::Delivered, Verdict::Rejected] {
        let mut rig = Rig::with_two();
        let parent = parent();
        let dependent = after(&parent, Otherwise::Cancel);
        let copies = rig.accepted(&parent).entries();
        rig.accepted(&dependent);
        rig.say(2, copies[1], Verdict::Rejected);
        assert_eq!(rig.waits_for(), [[copies[0].seq]], "the laptop refused it, the phone has not said");
        let replayed = rig.replayed();
        assert_eq!(replayed.snapshot(&alice()).unwrap().dependents, Some(rig.waiting()));
        let is_delivered = last == Verdict::Delivered;
        rig.say(1, copies[0], last);
        assert_eq!((rig.got(1, &dependent).is_some(), rig.waiting()), (is_delivered, vec![]));
        assert_eq!(rig.count_of(EndReason::Cancelled), u64::from(!is_delivered));
    }
}

#[test]
fn of_a_parent_that_some_devices_have_lost_already_only_the_others_are_waited_for() {
    let mut rig = Rig::with_two();
    let parent = parent();
    let dependent = after(&parent, Otherwise::Cancel);
    let copies = rig.accepted(&parent).entries();
    rig.say(1, copies[0], Verdict::Rejected);
    rig.accepted(&dependent);
    assert_eq!(rig.waits_for(), [[copies[1].seq]]);
    rig.say(2, copies[1], Verdict::Rejected);
    assert_eq!((rig.waiting(), rig.count_of(EndReason::Cancelled)), (vec![], 1));
}

#[test]
fn of_a_parent_whose_copy_is_about_to_end_it_is_looked_at_again_when_it_has() {
    for verdict in [Verdict::Delivered, Verdict::Rejected] {
        let mut rig = Rig::with_two();
        let parent = parent();
        let dependent = after(&parent, Otherwise::Cancel);
        let copies = rig.accepted(&parent).entries();
        let is_delivered = verdict == Verdict::Delivered;
        rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(copies[0], verdict)] });
        let ticket = rig.send(&dependent);
        assert!(rig.answer(ticket).is_none(), "what becomes of the first copy is not durable");
        rig.commit();
        rig.commit();
        assert!(rig.answer(ticket).unwrap().is_ok());
        match is_delivered {
            true => assert!(rig.got(2, &dependent).is_some()),
            false => assert_eq!(rig.waits_for(), [[copies[1].seq]]),
        }
    }
}

#[test]
fn what_rang_and_was_answered_elsewhere_was_delivered() {
    let mut rig = Rig::with_two();
    let call = ring();
    let dependent = after(&call, Otherwise::Cancel);
    let copies = rig.accepted(&call).entries();
    rig.accepted(&dependent);
    rig.say(2, copies[1], Verdict::Delivered);
    assert!(rig.got(1, &dependent).is_some() && rig.got(2, &dependent).is_some());
    assert_eq!(rig.count_of(EndReason::Cancelled), 0);
}

#[test]
fn a_parent_is_followed_when_it_moves_with_its_copies_and_when_it_is_spread() {
    let mut rig = Rig::of_two();
    let at = rig.now.after(Duration::from_secs(60));
    let parent = every().ordering_key(key()).not_before(at).build().unwrap();
    let dependent = after(&parent, Otherwise::Cancel);
    let place = rig.accepted(&parent).entry;
    rig.accepted(&dependent);
    assert_eq!((place.lane, rig.waits_for()), (LaneId::Scheduled, vec![vec![place.seq]]));
    rig.attach(1, "alice", "phone");
    rig.pass(Duration::from_secs(61));
    rig.commit();
    let copy = rig.got(1, &parent).unwrap();
    let waits = rig.waits_for().remove(0);
    assert_eq!((copy.lane, waits.len()), (lane(0), 2));
    assert!(waits.contains(&copy.seq));
    // The one of a laptop that was never there moves; the phone's has been offered.
    rig.input(Input::Detach(LinkId(1)));
    let mut rig = rig_of(&rig);
    rig.attach(3, "alice", "laptop");
    let copy = rig.got(3, &parent).unwrap();
    rig.say(3, copy, Verdict::Delivered);
    assert_eq!(rig.got(3, &dependent).unwrap().lane, lane(1));
}

/// Another life of the same.
fn rig_of(rig: &Rig) -> Rig {
    Rig { machine: rig.replayed(), next: Seq::first_of(Epoch(2)), now: rig.now, ..Rig::new() }
}

#[test]
fn a_parent_that_is_moved_to_another_priority_is_waited_for_in_all_its_new_places() {
    let mut rig = Rig::of_two();
    let parent = parent();
    let dependent = after(&parent, Otherwise::Release);
    rig.accepted(&parent);
    rig.accepted(&dependent);
    let target = Target { user: alice(), id: parent.id(), sender: None };
    rig.settled_by(Operation::Reprioritise(target, Priority::High)).unwrap();
    let waits = rig.waits_for().remove(0);
    assert_eq!(waits.len(), 2);
    rig.attach(1, "alice", "phone");
    let copy = rig.got(1, &parent).unwrap();
    assert_eq!(copy.lane, LaneId::Device(Slot::new(0).unwrap(), Priority::High));
    assert!(waits.contains(&copy.seq));
    rig.say(1, copy, Verdict::Delivered);
    assert!(rig.got(1, &dependent).is_some());
}

#[test]
fn a_parent_that_is_just_moving_with_its_copies_is_waited_for_where_they_go() {
    let mut rig = Rig::of_two();
    let parent = parent();
    rig.accepted(&parent);
    let target = Target { user: alice(), id: parent.id(), sender: None };
    rig.tickets += 1;
    rig.input(Input::Operate {
        ticket: Ticket(rig.tickets),
        operation: Operation::Reprioritise(target, Priority::High),
    });
    let ticket = rig.send(&after(&parent, Otherwise::Cancel));
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    let moved: Vec<_> = rig.moves.iter().map(|(_, to)| to.seq).collect();
    assert_eq!((moved.len(), rig.waits_for()), (2, vec![moved]));
}

#[test]
fn a_device_that_goes_is_waited_for_no_more() {
    let mut rig = Rig::with_two();
    let parent = parent();
    let dependent = after(&parent, Otherwise::Cancel);
    let copies = rig.accepted(&parent).entries();
    rig.accepted(&dependent);
    rig.settled_by(Operation::Unregister(alice(), device("phone"))).unwrap();
    assert_eq!(rig.waits_for(), [[copies[1].seq]]);
    rig.say(2, copies[1], Verdict::Delivered);
    assert!(rig.got(2, &dependent).is_some());
}
