//! Where a message stands as a whole of which several devices have copies: one copy's end is not the message's.

use super::devices::{alice, device, every, lane};
use super::*;
use crate::message::Otherwise;

fn bob() -> Option<Option<UserId>> {
    Some(Some(UserId::new("bob").unwrap()))
}

fn locate(rig: &mut Rig, message: &Message, sender: Option<Option<UserId>>) -> Outcome {
    rig.settled_by(Operation::Locate(Target { user: alice(), id: message.id(), sender })).unwrap()
}

/// How it stands as a whole, and whether it may have arrived all the same.
fn whole(rig: &mut Rig, message: &Message, sender: Option<Option<UserId>>) -> (Status, bool) {
    let located = locate(rig, message, sender).located.unwrap();
    (located.status, located.possibly_delivered)
}

fn from_bob() -> MessageBuilder {
    every().sender("bob")
}

const DELIVERED: Status = Status::Ended(EndReason::Delivered);
const REJECTED: Status = Status::Ended(EndReason::Rejected);
const EXPIRED: Status = Status::Ended(EndReason::Expired);

/// Found by a review: it was said to be dead.
#[test]
fn a_dead_letter_of_one_device_does_not_hide_that_another_one_has_the_message() {
    let mut rig = Rig::with_two();
    let message = from_bob().build().unwrap();
    let entries = rig.accepted(&message).entries();
    rig.say(1, entries[0], Verdict::Delivered);
    rig.say(2, entries[1], Verdict::Rejected);
    assert_eq!(whole(&mut rig, &message, bob()), (DELIVERED, false));
    let copies = locate(&mut rig, &message, bob()).copies;
    let statuses: Vec<_> = copies.iter().map(|copy| copy.located.unwrap().status).collect();
    assert_eq!(statuses, [DELIVERED, REJECTED]);
    assert_eq!(whole(&mut rig, &message, None), (REJECTED, true), "nobody knows of the other one");
}

#[test]
fn of_one_that_is_a_dead_letter_of_each_device_it_is_known_that_it_is_dead() {
    let mut rig = Rig::with_two();
    let message = from_bob().build().unwrap();
    let entries = rig.accepted(&message).entries();
    rig.say(1, entries[0], Verdict::Rejected);
    rig.say(2, entries[1], Verdict::Rejected);
    let found = locate(&mut rig, &message, bob());
    let copies: Vec<_> = found.copies.iter().filter_map(|copy| copy.located).collect();
    assert_eq!(copies.len(), 2);
    assert_eq!(found.located.map(|located| located.status), Some(REJECTED));
    assert!(copies.contains(&found.located.unwrap()), "no more is open than of the copy itself");
    assert_eq!(locate(&mut rig, &message, None).copies.len(), 2);
}

/// Found by a review: a dependent was refused although its parent was delivered.
#[test]
fn a_dead_letter_of_one_device_is_no_reason_to_refuse_what_waits_for_the_message() {
    let mut rig = Rig::with_two();
    let parent = from_bob().build().unwrap();
    let entries = rig.accepted(&parent).entries();
    rig.say(1, entries[0], Verdict::Delivered);
    rig.say(2, entries[1], Verdict::Rejected);
    rig.accepted(&from_bob().after(parent.id(), Otherwise::Cancel).build().unwrap());
}

/// Found by a review: one device's row stood for the message.
#[test]
fn of_a_scheduled_message_one_copys_end_leaves_open_what_the_other_device_has() {
    let mut rig = Rig::with_two();
    rig.input(Input::Detach(LinkId(2)));
    let ttl = Duration::from_secs(60);
    let at = rig.now.after(ttl);
    let message = from_bob().not_before(at).ttl(ttl).build().unwrap();
    rig.accepted(&message);
    rig.pass(ttl);
    let entry = rig.offers.last().unwrap().1.entry;
    rig.say(1, entry, Verdict::Delivered);
    rig.pass(ttl * 2);
    rig.attach(2, "alice", "laptop");
    rig.pass(ttl);
    assert_eq!(rig.count_of(EndReason::Expired), 1);
    let mut late = Rig::new();
    late.machine = rig.replayed();
    for sender in [bob(), None] {
        assert_eq!(whole(&mut rig, &message, sender.clone()), (DELIVERED, false), "in this life");
        assert_eq!(whole(&mut late, &message, sender), (EXPIRED, true));
    }
}

#[test]
fn while_one_copy_ends_and_the_other_waits_the_message_waits() {
    let mut rig = Rig::new();
    ["phone", "laptop"].into_iter().for_each(|name| rig.register(name));
    let message = from_bob().build().unwrap();
    rig.accepted(&message);
    rig.tickets += 1;
    let operation = Operation::Unregister(alice(), device("phone"));
    rig.input(Input::Operate { ticket: Ticket(rig.tickets), operation });
    rig.commit_one();
    let found = locate(&mut rig, &message, None);
    assert_eq!(rig.count_of(EndReason::DeviceGone), 1, "it was ending when it was looked for");
    let located = found.located.unwrap();
    assert_eq!((located.status, located.entry.unwrap().lane), (Status::Accepted, lane(1)));
    assert_eq!(found.copies[0].located.unwrap().status, Status::Ended(EndReason::DeviceGone));
}

/// Found by a review: rows were told apart by nothing but their id.
#[test]
fn an_older_message_with_the_same_id_says_nothing_of_the_newer_one() {
    let age = Duration::from_secs(600);
    let mut rig = Rig::with(Config { dedup_age: age, ..Config::default() });
    ["phone", "laptop"].into_iter().for_each(|name| rig.register(name));
    let older = from_bob().ttl(age * 3).build().unwrap();
    rig.accepted(&older);
    rig.pass(age * 2);
    let newer = from_bob().id(older.id()).priority(Priority::Critical).build().unwrap();
    let entries = rig.accepted(&newer).entries();
    for (link, name) in [(1, "phone"), (2, "laptop")] {
        rig.attach(link, "alice", name);
    }
    rig.say(1, entries[0], Verdict::Delivered);
    rig.say(2, entries[1], Verdict::Delivered);
    rig.pass(age * 2);
    assert_eq!(rig.count_of(EndReason::Expired), 2);
    let again = from_bob().id(older.id()).priority(Priority::High).build().unwrap();
    let entries = rig.accepted(&again).entries();
    rig.say(1, entries[0], Verdict::Delivered);
    rig.say(2, entries[1], Verdict::Delivered);
    assert_eq!(whole(&mut rig, &again, bob()), (DELIVERED, false));
    assert_eq!(locate(&mut rig, &again, bob()).copies.len(), 2);
}

#[test]
fn what_a_removed_device_confirms_late_was_delivered() {
    let mut rig = Rig::with_two();
    let message = from_bob().build().unwrap();
    let entries = rig.accepted(&message).entries();
    rig.settled_by(Operation::Unregister(alice(), device("phone"))).unwrap();
    assert_eq!(rig.count_of(EndReason::DeviceGone), 1);
    rig.say(2, entries[0], Verdict::Delivered);
    assert_eq!(rig.machine.stats().stray_verdicts, 1, "it was never the laptop's");
    rig.say(1, entries[0], Verdict::Delivered);
    assert_eq!((rig.count_of(EndReason::DeviceGone), rig.count_of(EndReason::Delivered)), (0, 1));
}

/// Found by a review: over a session, whose peer knows priorities only, it was stray all the same.
#[test]
fn so_was_what_a_receiver_that_knows_priorities_only_confirms_late() {
    let mut rig = Rig::with_two();
    let entries = rig.accepted(&from_bob().build().unwrap()).entries();
    rig.settled_by(Operation::Unregister(alice(), device("phone"))).unwrap();
    rig.say(1, EntryRef { lane: LaneId::Normal, seq: entries[0].seq }, Verdict::Delivered);
    assert_eq!((rig.count_of(EndReason::DeviceGone), rig.count_of(EndReason::Delivered)), (0, 1));
}
