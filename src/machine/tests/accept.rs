//! Admission: what is answered when, repeats, quotas, commits that fail.

use super::*;

#[test]
fn nothing_is_answered_or_offered_before_it_is_durable() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let ticket = rig.send(&message("alice"));
    assert_eq!(rig.open.len(), 1);
    assert!(rig.answer(ticket).is_none() && rig.offers.is_empty());
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    assert_eq!(rig.offers.len(), 1);
}

#[test]
fn a_buffered_message_is_answered_when_written_but_offered_when_durable() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let ticket = rig.send(&to("alice").durability(Durability::Buffered).build().unwrap());
    let commit = rig.open.front().unwrap().0;
    rig.input(Input::Written(commit));
    assert!(rig.answer(ticket).unwrap().is_ok() && rig.offers.is_empty());
    rig.commit();
    assert_eq!(rig.offers.len(), 1);
}

#[test]
fn a_buffered_message_that_was_answered_goes_into_the_next_commit_when_its_own_fails() {
    let mut rig = Rig::new();
    let ticket = rig.send(&to("alice").durability(Durability::Buffered).build().unwrap());
    let commit = rig.open.pop_front().unwrap().0;
    rig.input(Input::Written(commit));
    rig.input(Input::Writable(false));
    rig.input(Input::PersistFailed { commit, unknown: true });
    assert!(rig.answer(ticket).unwrap().is_ok() && rig.open.is_empty());
    rig.input(Input::Writable(true));
    rig.commit();
    assert_eq!(rig.machine.stats().counters.accepted, 1);
}

#[test]
fn a_failed_commit_is_an_unknown_outcome_and_the_same_id_may_be_sent_again() {
    let mut rig = Rig::new();
    let message = message("alice");
    let ticket = rig.send(&message);
    let commit = rig.open.pop_front().unwrap().0;
    rig.input(Input::PersistFailed { commit, unknown: true });
    assert_eq!(rig.answer(ticket), Some(&Err(Refusal::OutcomeUnknown)));
    let again = rig.send(&message);
    rig.commit();
    assert!(!rig.answer(again).unwrap().as_ref().unwrap().duplicate);
    assert_eq!(rig.machine.stats().counters.live(), 1);
}

#[test]
fn a_repeat_waits_for_the_commit_of_the_first_and_is_accepted_once() {
    let mut rig = Rig::new();
    let message = message("alice");
    let (first, second) = (rig.send(&message), rig.send(&message));
    assert!(rig.answer(second).is_none());
    rig.commit();
    assert!(!rig.answer(first).unwrap().as_ref().unwrap().duplicate);
    assert!(rig.answer(second).unwrap().as_ref().unwrap().duplicate);
    let third = rig.send(&message);
    assert!(rig.answer(third).unwrap().as_ref().unwrap().duplicate);
    assert_eq!(rig.machine.stats().counters.accepted, 1);
}

#[test]
fn the_same_id_with_another_body_is_a_conflict_and_to_another_person_another_message() {
    let mut rig = Rig::new();
    let id = MessageId::from_u128(9);
    rig.accept(&to("alice").id(id).build().unwrap());
    let ticket = rig.send(&Message::to("alice", "chat.message", "other").id(id).build().unwrap());
    assert_eq!(rig.answer(ticket), Some(&Err(Refusal::Conflict)));
    rig.accept(&to("bob").id(id).build().unwrap());
    assert_eq!(rig.machine.stats().counters.accepted, 2);
}

#[test]
fn full_outbox_rejects_without_evicting() {
    let config = Config { max_user_messages: core::num::NonZeroU32::new(2).unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    rig.accept(&message("alice"));
    rig.accept(&message("alice"));
    let ticket = rig.send(&message("alice"));
    assert!(matches!(rig.answer(ticket), Some(Err(Refusal::OutboxFull { messages: 2, .. }))));
    rig.accept(&message("bob"));
    assert_eq!(rig.machine.stats().counters.live(), 3);
}

#[test]
fn volatile_messages_are_only_for_those_who_are_there() {
    let mut rig = Rig::new();
    let hint = to("alice").durability(Durability::Volatile).build().unwrap();
    let ticket = rig.send(&hint);
    assert_eq!(rig.answer(ticket), Some(&Err(Refusal::NobodyAttached)));
    rig.attach(1, "alice", "phone");
    let ticket = rig.send(&hint);
    assert!(rig.answer(ticket).unwrap().is_ok());
    assert_eq!(rig.offers.len(), 1);
    assert_eq!(rig.machine.stats().counters.accepted, 0);
}

#[test]
fn replay_gives_the_state_that_was() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let first = rig.accept(&message("alice"));
    let second = rig.accept(&message("alice"));
    rig.accept(&message("bob"));
    rig.say(1, first, Verdict::Delivered);
    rig.say(1, second, Verdict::Nack(None));
    let replayed = rig.replayed();
    assert_eq!(replayed.stats().counters, rig.machine.stats().counters);
    for user in ["alice", "bob"] {
        let user = UserId::new(user).unwrap();
        assert_eq!(replayed.snapshot(&user), rig.machine.snapshot(&user));
    }
}

#[test]
fn a_repeat_is_recognised_after_replay() {
    let mut rig = Rig::new();
    let message = message("alice");
    rig.accept(&message);
    let mut machine = rig.replayed();
    machine.handle(rig.now, Input::Send { ticket: Ticket(99), message });
    assert!(matches!(
        machine.poll_action(),
        Some(Action::Answer { result: Ok(Accepted { duplicate: true, .. }), .. })
    ));
}

/// Found by the simulator: the repeat was answered with the buffered original, before it was durable.
#[test]
fn a_synced_repeat_of_a_buffered_message_waits_for_the_sync() {
    let mut rig = Rig::new();
    let builder = to("alice");
    rig.send(&builder.clone().durability(Durability::Buffered).build().unwrap());
    let commit = rig.open.front().unwrap().0;
    let repeat = rig.send(&builder.build().unwrap());
    rig.input(Input::Written(commit));
    assert!(rig.answer(repeat).is_none());
    rig.commit();
    assert!(rig.answer(repeat).unwrap().as_ref().unwrap().duplicate);
}

/// Found by the simulator: the window that was read for a waiting send fell out of memory before the send went on.
#[test]
fn a_window_that_was_just_read_stays_until_the_send_that_needs_it_goes_on() {
    let one = core::num::NonZeroUsize::MIN;
    let config = Config { max_dedup_resident: one, dedup_ids: one, ..Config::default() };
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(config) });
    let ticket = rig.send(&to("alice").sender("bob").build().unwrap());
    let (load, query) = rig.loads.pop().unwrap();
    let Query::Sender { sender, .. } = query else { panic!("{query:?}") };
    let row = |n: u128| crate::record::DedupRow {
        sender,
        key: n,
        content: 0,
        seq: Seq::new(n as u64),
        at: rig.now,
        among: crate::record::Slots::NONE,
    };
    let rows = vec![row(1), row(2), row(3)];
    rig.input(Input::Loaded { load, found: Box::new(Found::Sender(rows)) });
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::User(_) | Query::Row(_)), "{query:?}");
    let found = Found::User { row: None, held: Some(held(0, 0)), reflects: Seq::ZERO };
    rig.input(Input::Loaded { load, found: Box::new(found) });
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
}

/// A group that is over what the journal takes would fail however often it is tried.
#[test]
fn what_gathers_in_one_drain_is_committed_in_pieces_in_order() {
    let config = Config { max_commit_bytes: core::num::NonZeroU64::new(5000).unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    let sends: Vec<_> = (0..10_u64)
        .map(|n| {
            let message = Message::to("alice", "chat.message", vec![0; 1000]).build().unwrap();
            rig.machine.handle(rig.now, Input::Send { ticket: Ticket(n), message: message.clone() });
            message.id()
        })
        .collect();
    rig.drain();
    let sizes: Vec<_> = rig.open.iter().map(|(_, records)| records.len()).collect();
    assert_eq!(sizes, [2, 2, 2, 2, 2]);
    let ids: Vec<_> = rig
        .open
        .iter()
        .flat_map(|(_, records)| records)
        .map(|record| match record {
            Record::Accept(accept) => accept.message.id(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, sends);
    rig.commit();
    assert!((0..10).all(|n| rig.answer(Ticket(n)).unwrap().is_ok()));
}

/// Found by review: a message larger than a commit should be would never have been handed out.
#[test]
fn a_message_larger_than_a_commit_goes_alone() {
    let config = Config { max_commit_bytes: core::num::NonZeroU64::MIN, ..Config::default() };
    let mut rig = Rig::with(config);
    rig.accept(&message("alice"));
    rig.accept(&message("alice"));
    assert_eq!(rig.machine.stats().counters.accepted, 2);
}

#[test]
fn what_becomes_of_a_message_is_known_from_memory_or_the_store_is_asked() {
    let mut rig = Rig::new();
    let alice = UserId::new("alice").unwrap();
    let entry = rig.accept(&message("alice"));
    assert_eq!(rig.machine.standing(&alice, entry), Standing::Live(Status::Accepted));
    rig.attach(1, "alice", "phone");
    assert_eq!(rig.machine.standing(&alice, entry), Standing::Live(Status::Sent));
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!(rig.machine.standing(&alice, entry), Standing::Gone);
    let waiting = rig.accept(&message("alice"));
    rig.input(Input::Detach(LinkId(1)));
    settle(&mut rig);
    assert_eq!(rig.machine.stats().resident_users, 0);
    for entry in [entry, waiting] {
        assert_eq!(rig.machine.standing(&alice, entry), Standing::AskStore);
    }
    let later = EntryRef { seq: rig.next, ..entry };
    assert_eq!(rig.machine.standing(&alice, later), Standing::Gone);
}

/// Found by review: senders whose ids are all forgotten stayed in memory for ever.
#[test]
fn senders_who_have_nothing_remembered_leave_memory() {
    let config = Config {
        max_dedup_resident: core::num::NonZeroUsize::new(8).unwrap(),
        dedup_ids: core::num::NonZeroUsize::MIN,
        max_user_messages: core::num::NonZeroU32::MIN,
        ..Config::default()
    };
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(config) });
    for n in 0..100 {
        rig.send(&to("alice").sender(format!("sender-{n}")).build().unwrap());
        while let Some((load, query)) = rig.loads.pop() {
            let found = match query {
                Query::User(_) | Query::Row(_) => {
                    Found::User { row: None, held: Some(held(1, 1)), reflects: Seq::ZERO }
                }
                _ => Found::Sender(Vec::new()),
            };
            rig.input(Input::Loaded { load, found: Box::new(found) });
        }
    }
    assert!(rig.answers.iter().all(|(_, result)| matches!(result, Err(Refusal::OutboxFull { .. }))));
    assert!(rig.machine.dedup.senders() <= 8, "{}", rig.machine.dedup.senders());
}

#[test]
fn a_full_disk_refuses_what_is_new_at_minus_one_zero_and_plus_one_and_nothing_else() {
    let max_disk_bytes = core::num::NonZeroU64::new(1000);
    let mut rig = Rig::with(Config { max_disk_bytes, ..Config::default() });
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    for (bytes, fits) in [(999, true), (1000, false), (1001, false)] {
        rig.input(Input::Disk { bytes });
        let ticket = rig.send(&message("bob"));
        rig.commit();
        let full = Err(Refusal::DiskFull { bytes, max: 1000 });
        assert_eq!(rig.answer(ticket).unwrap().is_ok(), fits);
        assert!(fits || rig.answer(ticket) == Some(&full));
    }
    let batch = [Ticket(90), Ticket(91)].map(|ticket| (ticket, message("carol")));
    rig.input(Input::SendBatch(batch.to_vec()));
    assert!(matches!(rig.answer(Ticket(90)), Some(Err(Refusal::DiskFull { .. }))));
    // Nobody's messages give way for that, and what is there is delivered, and can be withdrawn.
    rig.say(1, entry, Verdict::Delivered);
    let ticket = rig.operate(Operation::Purge(UserId::new("bob").unwrap()));
    rig.commit();
    assert_eq!(rig.done(ticket).unwrap().unwrap().messages, 1);
    let volatile = to("alice").durability(Durability::Volatile).build().unwrap();
    let ticket = rig.send(&volatile);
    assert!(rig.answer(ticket).unwrap().is_ok());
    assert_eq!((rig.machine.stats().counters.live(), rig.machine.stats().pending), (0, 0));
    rig.input(Input::Disk { bytes: 999 });
    rig.accept(&message("bob"));
}

#[test]
fn quotas_in_messages_and_bytes_hold_at_minus_one_zero_and_plus_one() {
    let cost = message("alice").cost();
    let nz = |n| core::num::NonZeroU64::new(n).unwrap();
    let engine = |messages, bytes| Config {
        max_total_messages: nz(messages),
        max_total_bytes: nz(bytes),
        ..Config::default()
    };
    let user = |messages, bytes| Config {
        max_user_messages: core::num::NonZeroU32::new(messages).unwrap(),
        max_user_bytes: nz(bytes),
        ..Config::default()
    };
    for (config, fit) in [
        (user(1, u64::MAX), 1),
        (user(2, u64::MAX), 2),
        (user(3, u64::MAX), 3),
        (user(9, 2 * cost - 1), 1),
        (user(9, 2 * cost), 2),
        (user(9, 2 * cost + 1), 2),
        (engine(1, u64::MAX), 1),
        (engine(2, u64::MAX), 2),
        (engine(3, u64::MAX), 3),
        (engine(9, 2 * cost - 1), 1),
        (engine(9, 2 * cost), 2),
        (engine(9, 2 * cost + 1), 2),
    ] {
        let mut rig = Rig::with(config);
        // All at once: what is on its way to the disk counts.
        let tickets = [0; 4].map(|_| rig.send(&message("alice")));
        rig.commit();
        let accepted = tickets.iter().filter(|ticket| rig.answer(**ticket).unwrap().is_ok());
        assert_eq!(accepted.count(), fit);
        assert_eq!(rig.machine.stats().counters.live(), fit as u64);
    }
}
