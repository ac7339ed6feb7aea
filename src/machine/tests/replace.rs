//! Replacing a message that waits, and moving one to another lane.

use super::operate::{alice, settled, target};
use super::*;

impl Rig {
    fn replace(&mut self, old: &Message, new: &Message) -> Ticket {
        self.operate(Operation::Replace(target(old.id()), new.clone()))
    }

    fn reprioritise(&mut self, message: &Message, priority: Priority) -> Ticket {
        self.operate(Operation::Reprioritise(target(message.id()), priority))
    }

    fn ended(&self, reason: EndReason) -> u64 {
        self.machine.stats().counters.ended[reason.index()]
    }

    /// The answer of an operation that put something in another's place.
    fn placed(&self, ticket: Ticket) -> (Outcome, Accepted) {
        let done = self.done(ticket).expect("answered").expect("done");
        (done.clone(), done.accepted.expect("something took its place"))
    }
}

#[test]
fn a_replaced_message_is_not_offered_and_the_new_one_is_in_one_commit_with_its_end() {
    let mut rig = Rig::with(Config { max_commit_bytes: NonZeroU64::MIN, ..Config::default() });
    let (old, new) = (message("alice"), to("alice").id(MessageId::from_u128(9)).build().unwrap());
    rig.accept(&old);
    let before = rig.log.len();
    let ticket = rig.replace(&old, &new);
    assert_eq!((rig.open.len(), rig.done(ticket)), (1, None));
    rig.commit();
    let (done, accepted) = rig.placed(ticket);
    assert_eq!((done.messages, done.possibly_delivered, accepted.duplicate), (1, 0, false));
    assert!(matches!(&rig.log[before..], [(_, Record::Accept(_)), (_, Record::End(_))]));
    rig.attach(1, "alice", "phone");
    assert_eq!(rig.offered(), [accepted.entry]);
    assert_eq!(rig.offers[0].1.message, new);
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.accepted, rig.ended(EndReason::Replaced), counters.live()), (2, 1, 1));
    assert_eq!(rig.replayed().stats().counters, counters);
}

#[test]
fn replacing_what_is_in_flight_admits_that_it_may_arrive() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let old = message("alice");
    let entry = rig.accept(&old);
    let ticket = rig.replace(&old, &message("alice"));
    assert_eq!(rig.machine.stats().in_flight, 0);
    rig.commit();
    let (done, accepted) = rig.placed(ticket);
    assert_eq!((done.messages, done.possibly_delivered), (1, 1));
    assert_eq!(rig.offered(), [entry, accepted.entry]);
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!((rig.ended(EndReason::Delivered), rig.ended(EndReason::Replaced)), (1, 0));
}

#[test]
fn a_settled_message_is_replaced_and_moved_like_any_other() {
    for moves in [false, true] {
        let old = message("alice");
        let (mut rig, store, reflects) = settled(&[message("alice"), old.clone()]);
        let ticket = match moves {
            true => rig.reprioritise(&old, Priority::Critical),
            false => rig.replace(&old, &to("alice").priority(Priority::Critical).build().unwrap()),
        };
        rig.load_from(&store, reflects);
        rig.commit();
        let (done, accepted) = rig.placed(ticket);
        assert_eq!((done.messages, accepted.entry.lane), (1, LaneId::Critical));
        rig.attach(1, "alice", "phone");
        rig.load_from(&store, reflects);
        rig.commit();
        let offered = rig.offered();
        assert_eq!(offered.len(), 2);
        assert!(offered.contains(&accepted.entry));
        assert!(offered.contains(&EntryRef { lane: LaneId::Normal, seq: store[0].0 }));
    }
}

#[test]
fn a_commit_that_fails_takes_neither_and_the_next_one_both() {
    let mut rig = Rig::new();
    let old = message("alice");
    rig.accept(&old);
    let ticket = rig.replace(&old, &message("alice"));
    let (commit, _) = rig.open.pop_front().unwrap();
    rig.input(Input::PersistFailed { commit, unknown: true });
    assert_eq!(rig.done(ticket), None);
    assert_eq!(rig.replayed().stats().counters.live(), 1);
    rig.commit();
    assert_eq!(rig.placed(ticket).0.messages, 1);
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.accepted, counters.live()), (2, 1));
    assert_eq!(rig.machine.stats().pending, 0);
}

#[test]
fn a_full_outbox_takes_a_replacement_that_is_no_larger() {
    let config = |messages, bytes| Config {
        max_user_messages: core::num::NonZeroU32::new(messages).unwrap(),
        max_user_bytes: NonZeroU64::new(bytes).unwrap(),
        ..Config::default()
    };
    let (old, new) = (message("alice"), message("alice"));
    for (room, fits) in [(new.cost() - 1, false), (new.cost(), true), (new.cost() + 1, true)] {
        let small = Message::to("alice", "chat.message", "").build().unwrap();
        let mut rig = Rig::with(config(1, room));
        rig.accept(&small);
        let ticket = rig.replace(&small, &new);
        rig.commit();
        let refused = matches!(
            rig.done(ticket),
            Some(Err(OperationError::Refused(Refusal::OutboxFull { messages: 0, .. })))
        );
        assert_eq!((refused, rig.machine.stats().counters.live()), (!fits, 1));
    }
    let mut rig = Rig::with(config(1, 1000));
    rig.accept(&old);
    let ticket = rig.reprioritise(&old, Priority::Low);
    rig.commit();
    assert_eq!(rig.placed(ticket).0.messages, 1);
    let another = rig.send(&message("alice"));
    assert!(matches!(rig.answer(another), Some(Err(Refusal::OutboxFull { .. }))));
}

#[test]
fn a_replacement_that_is_refused_leaves_the_old_one_waiting() {
    let mut rig = Rig::with(Config { max_payload_bytes: NonZeroUsize::new(8).unwrap(), ..Config::default() });
    let old = message("alice");
    let entry = rig.accept(&old);
    let large = Message::to("alice", "chat.message", vec![0; 9]).build().unwrap();
    let clash = to("alice").id(old.id()).priority(Priority::Low).build().unwrap();
    let volatile = to("alice").durability(Durability::Volatile).build().unwrap();
    for (new, error) in [
        (large, OperationError::Refused(Refusal::PayloadTooLarge { bytes: 9, max: 8 })),
        (clash, OperationError::Refused(Refusal::Conflict)),
        (volatile, OperationError::Unfit),
        (message("bob"), OperationError::Unfit),
    ] {
        let ticket = rig.replace(&old, &new);
        assert_eq!(rig.done(ticket), Some(Err(error)));
    }
    rig.commit();
    rig.attach(1, "alice", "phone");
    assert_eq!(rig.offered(), [entry]);
    assert_eq!(rig.machine.stats().pending, 0);
}

#[test]
fn a_replacement_that_is_asked_for_again_is_recognised() {
    let mut rig = Rig::new();
    let (old, new) = (message("alice"), message("alice"));
    rig.accept(&old);
    let first = rig.replace(&old, &new);
    // It is on its way to the disk: whoever asks again now is answered with it.
    let early = rig.replace(&old, &new);
    assert_eq!(rig.done(early), None);
    rig.commit();
    assert_eq!(rig.placed(early).1, Accepted { duplicate: true, ..rig.placed(first).1 });
    assert_eq!(rig.machine.stats().pending, 0);
    let again = rig.replace(&old, &new);
    let (done, accepted) = rig.placed(again);
    assert_eq!((done.messages, accepted.duplicate), (0, true));
    assert_eq!(accepted.entry, rig.placed(first).1.entry);
    let repeat = rig.send(&new);
    assert!(matches!(rig.answer(repeat), Some(Ok(Accepted { duplicate: true, .. }))));
    assert_eq!(rig.machine.stats().counters.accepted, 2);
}

#[test]
fn of_two_replacements_at_once_one_finds_nothing() {
    let mut rig = Rig::new();
    let old = message("alice");
    rig.accept(&old);
    let tickets = [message("alice"), message("alice")].map(|new| rig.replace(&old, &new));
    rig.commit();
    assert_eq!(rig.placed(tickets[0]).0.messages, 1);
    assert_eq!(rig.done(tickets[1]), Some(Err(OperationError::NotWaiting)));
    assert_eq!(rig.machine.stats().counters.live(), 1);
}

#[test]
fn a_moved_message_goes_first_keeps_its_time_and_its_senders_repeats() {
    let mut rig = Rig::new();
    let kept = rig.accept(&message("alice"));
    let moved = to("alice").sender("bob").ttl(Duration::from_secs(10)).build().unwrap();
    let before = rig.accept(&moved);
    rig.pass(Duration::from_secs(6));
    let ticket = rig.reprioritise(&moved, Priority::Critical);
    rig.commit();
    let (_, accepted) = rig.placed(ticket);
    let repeat = rig.send(&moved);
    let known = Accepted::at(before).again();
    assert_eq!(rig.answer(repeat), Some(&Ok(known)));
    rig.attach(1, "alice", "phone");
    assert_eq!(rig.offered(), [accepted.entry, kept]);
    rig.pass(Duration::from_secs(5));
    assert_eq!(rig.ended(EndReason::Expired), 1);
    let replayed = rig.replayed();
    assert_eq!(replayed.stats().counters, rig.machine.stats().counters);
}

#[test]
fn what_was_offered_or_may_have_been_is_not_moved() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let one = message("alice");
    let entry = rig.accept(&one);
    for verdict in [None, Some(Verdict::Nack(None))] {
        verdict.into_iter().for_each(|verdict| rig.say(1, entry, verdict));
        let ticket = rig.reprioritise(&one, Priority::Low);
        assert_eq!(rig.done(ticket), Some(Err(OperationError::Offered)));
    }
    let mut reborn = Rig::born(Birth { epoch: Epoch(2), ..birth(Config::default()) });
    for (seq, record) in &rig.log {
        reborn.machine.replay(*seq, record, true);
    }
    let ticket = reborn.reprioritise(&one, Priority::Low);
    assert_eq!(reborn.done(ticket), Some(Err(OperationError::Offered)));
}

#[test]
fn what_is_where_it_should_go_stays_there() {
    let mut rig = Rig::new();
    let one = message("alice");
    let entry = rig.accept(&one);
    let ticket = rig.reprioritise(&one, Priority::Normal);
    let (done, accepted) = rig.placed(ticket);
    assert_eq!((done.messages, accepted), (0, Accepted::at(entry).again()));
    assert!(rig.open.is_empty());
    let id = MessageId::from_u128(77);
    let ticket =
        rig.operate(Operation::Reprioritise(Target { user: alice(), id, sender: None }, Priority::Low));
    assert_eq!(rig.done(ticket), Some(Err(OperationError::NotWaiting)));
}

/// The record of a moved message says so: a replay must not take it for a new one of its sender.
#[test]
fn a_replay_does_not_remember_a_moved_message_as_sent_again() {
    let mut rig = Rig::new();
    let one = message("alice");
    let before = rig.accept(&one);
    rig.reprioritise(&one, Priority::High);
    rig.commit();
    let mut reborn = Rig::born(Birth { epoch: Epoch(2), ..birth(Config::default()) });
    for (seq, record) in &rig.log {
        reborn.machine.replay(*seq, record, true);
    }
    let repeat = reborn.send(&one);
    assert_eq!(reborn.answer(repeat), Some(&Ok(Accepted::at(before).again())));
}

/// Found by review: the old place stayed in the count until its end was durable.
#[test]
fn two_replacements_at_once_fit_into_a_full_outbox() {
    let limits = [(2, u32::MAX), (u32::MAX, 2)];
    for (messages, total) in limits {
        let mut rig = Rig::with(Config {
            max_user_messages: core::num::NonZeroU32::new(messages).unwrap(),
            max_total_messages: NonZeroU64::new(total.into()).unwrap(),
            ..Config::default()
        });
        let old = [message("alice"), message("alice")];
        for old in &old {
            rig.send(old);
        }
        rig.commit();
        let first = rig.replace(&old[0], &message("alice"));
        let second = rig.reprioritise(&old[1], Priority::High);
        let third = rig.send(&message("alice"));
        assert!(matches!(
            rig.answer(third),
            Some(Err(Refusal::OutboxFull { .. } | Refusal::EngineFull { .. }))
        ));
        rig.commit();
        assert_eq!((rig.placed(first).0.messages, rig.placed(second).0.messages), (1, 1));
        let fourth = rig.send(&message("alice"));
        assert!(rig.answer(fourth).is_some_and(Result::is_err), "nothing of the credit is left");
    }
}

/// Found by review: whoever looked for a message at its old place was told that none waits.
#[test]
fn a_message_that_is_being_moved_is_found_where_it_goes() {
    let act = |rig: &mut Rig, moved: &Message, what: u8| match what {
        0 => rig.operate(Operation::Cancel(target(moved.id()))),
        1 => rig.operate(Operation::Purge(alice())),
        2 => rig.replace(moved, &message("alice")),
        3 => rig.reprioritise(moved, Priority::Low),
        _ => rig.reprioritise(moved, Priority::High),
    };
    for what in 0..5 {
        let mut rig = Rig::new();
        let moved = message("alice");
        rig.accept(&moved);
        rig.reprioritise(&moved, Priority::High);
        let ticket = act(&mut rig, &moved, what);
        rig.commit();
        let done = rig.done(ticket).unwrap().unwrap();
        assert_eq!(done.messages, u32::from(what < 4), "{what}");
        assert_eq!(rig.machine.stats().counters.live(), u64::from(what > 1), "{what}");
        let lane = done.accepted.map(|accepted| accepted.entry.lane);
        let lanes = [None, None, Some(LaneId::Normal), Some(LaneId::Low), Some(LaneId::High)];
        assert_eq!(lane, lanes[usize::from(what)]);
    }
}

/// Found by the simulator: whoever had not come to the old place yet when the message left it found it nowhere.
#[test]
fn a_message_that_has_moved_before_anybody_looked_is_found_where_it_is() {
    let mut rig = Rig::new();
    let moved = message("alice");
    rig.accept(&moved);
    rig.reprioritise(&moved, Priority::High);
    let cancel = Operation::Cancel(target(moved.id()));
    for (ticket, operation) in [(Ticket(8), cancel), (Ticket(9), Operation::Purge(alice()))] {
        rig.machine.handle(rig.now, Input::Operate { ticket, operation });
    }
    rig.commit();
    let done = [Ticket(8), Ticket(9)].map(|ticket| rig.done(ticket).unwrap().unwrap().messages);
    assert_eq!(done, [1, 0], "the purge met what was being withdrawn");
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

#[test]
fn a_move_takes_nobody_along_who_looks_for_another_message() {
    let mut rig = Rig::new();
    let (moved, other) = (message("alice"), message("alice"));
    rig.accept(&moved);
    rig.accept(&other);
    rig.reprioritise(&moved, Priority::High);
    let cancel = Operation::Cancel(target(other.id()));
    rig.machine.handle(rig.now, Input::Operate { ticket: Ticket(9), operation: cancel });
    rig.commit();
    assert_eq!(rig.done(Ticket(9)).unwrap().unwrap().messages, 1);
    rig.attach(1, "alice", "phone");
    assert_eq!(
        rig.offers.iter().map(|(_, delivery)| delivery.message.id()).collect::<Vec<_>>(),
        [moved.id()]
    );
}

#[test]
fn of_two_equal_replacements_that_meet_the_second_is_a_repeat() {
    let mut rig = Rig::new();
    let (old, new) = (message("alice"), message("alice"));
    rig.accept(&old);
    for ticket in [Ticket(8), Ticket(9)] {
        let operation = Operation::Replace(target(old.id()), new.clone());
        rig.machine.handle(rig.now, Input::Operate { ticket, operation });
    }
    rig.drain();
    rig.commit();
    let [first, second] = [Ticket(8), Ticket(9)].map(|ticket| rig.placed(ticket));
    assert_eq!((first.0.messages, second.0.messages), (1, 0));
    assert_eq!(second.1, Accepted { duplicate: true, ..first.1 });
}

/// Found by the simulator: only the first of two moves was followed.
#[test]
fn a_message_that_moves_twice_is_followed_twice() {
    let mut rig = Rig::new();
    let moved = message("alice");
    rig.accept(&moved);
    let moves = [Priority::High, Priority::Low].map(|lane| rig.reprioritise(&moved, lane));
    let cancel = rig.operate(Operation::Cancel(target(moved.id())));
    rig.commit();
    assert!(moves.into_iter().all(|ticket| rig.placed(ticket).0.messages == 1));
    assert_eq!(rig.done(cancel).unwrap().unwrap().messages, 1);
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

#[test]
fn a_full_disk_moves_what_was_accepted_and_replaces_nothing() {
    let max = core::num::NonZeroU64::new(1000).unwrap();
    let mut rig = Rig::with(Config { max_disk_bytes: Some(max), ..Config::default() });
    let old = message("alice");
    rig.accept(&old);
    rig.input(Input::Disk { bytes: 1000 });
    let replace = rig.operate(Operation::Replace(target(old.id()), message("alice")));
    rig.commit();
    let refused = OperationError::Refused(Refusal::DiskFull { bytes: 1000, max: 1000 });
    assert_eq!(rig.done(replace), Some(Err(refused)));
    let up = rig.operate(Operation::Reprioritise(target(old.id()), Priority::Critical));
    rig.commit();
    let moved = rig.done(up).unwrap().unwrap().accepted.unwrap().entry;
    rig.attach(1, "alice", "phone");
    assert_eq!((moved.lane, rig.offered()), (LaneId::Critical, vec![moved]));
}

/// Found by an audit: what took its place had no key, so the next one of the key did not take the place of that.
#[test]
fn what_replaces_the_newest_of_a_collapse_key_is_the_newest_of_it_with_its_version() {
    let of_key = |version| to("alice").collapse_key("order/7").version(version).build().unwrap();
    for settles in [false, true] {
        for meanwhile in [false, true] {
            let mut rig = Rig::new();
            let old = of_key(3);
            rig.accept(&old);
            let store = if settles { rig.settle_alice() } else { (Vec::new(), Seq::ZERO) };
            let edited = message("alice");
            let done = rig.replace(&old, &edited);
            rig.load_from(&store.0, store.1);
            if !meanwhile {
                rig.commit();
                assert_eq!(rig.placed(done).0.messages, 1);
            }
            let outdated = rig.send(&of_key(2));
            let newer = rig.send(&of_key(4));
            rig.commit();
            assert_eq!(rig.answer(outdated), Some(&Err(Refusal::Outdated { newest: 3 })));
            let newest = rig.answer(newer).unwrap().clone().unwrap().entry;
            assert_eq!((rig.ended(EndReason::Replaced), rig.machine.stats().counters.live()), (2, 1));
            rig.attach(1, "alice", "phone");
            rig.load_from(&store.0, store.1);
            assert_eq!(rig.offered(), [newest]);
            assert_eq!(rig.machine.stats().pending, 0);
        }
    }
}
