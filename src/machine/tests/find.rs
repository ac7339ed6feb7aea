//! One message, looked for by its id: what that needs of the store, and what is said of it.

use std::sync::Arc;

use super::operate::{alice, settled, settled_with, target};
use super::*;
use crate::record::Accept;

type Store = Vec<(Seq, Arc<Accept>)>;

fn bobs(message: &Message) -> Target {
    Target { sender: Some(message.sender().cloned()), ..target(message.id()) }
}

fn from_bob() -> MessageBuilder {
    to("alice").sender("bob")
}

/// Where it stands, and what the store was asked for that.
fn located(
    rig: &mut Rig,
    target: Target,
    store: &Store,
    reflects: Seq,
) -> (Result<Located, OperationError>, Vec<Query>) {
    let ticket = rig.operate(Operation::Locate(target));
    let mut asked = Vec::new();
    while let Some((load, query)) = rig.loads.pop() {
        asked.push(query.clone());
        rig.load_one(load, query, store, reflects);
    }
    (rig.done(ticket).expect("it is answered").map(|done| done.located.unwrap()), asked)
}

fn status(rig: &mut Rig, target: Target, store: &Store, reflects: Seq) -> (Option<Status>, usize) {
    let (found, asked) = located(rig, target, store, reflects);
    (found.ok().map(|located| located.status), asked.len())
}

#[test]
fn one_message_of_ten_thousand_on_disk_is_found_with_two_loads_and_so_is_that_there_is_none() {
    let priorities = [Priority::Critical, Priority::High, Priority::Normal, Priority::Low];
    let message = |n: usize| from_bob().priority(priorities[n % 4]).build().unwrap();
    let messages: Vec<_> = (0..10_000).map(message).collect();
    let (mut rig, store, reflects) = settled(&messages);
    for message in [&messages[0], &messages[4_001], &messages[9_999]] {
        for sender in [None, bobs(message).sender] {
            let target = Target { sender, ..target(message.id()) };
            let (status, loads) = status(&mut rig, target, &store, reflects);
            assert_eq!(status, Some(Status::Accepted));
            assert!(loads <= 2, "{loads} loads");
        }
    }
    let unknown = target(MessageId::from_u128(1));
    assert_eq!(status(&mut rig, unknown, &store, reflects), (None, 2));
}

#[test]
fn of_a_known_sender_the_store_is_asked_for_the_place_alone() {
    let message = from_bob().build().unwrap();
    let (mut rig, store, reflects) = settled(&[message.clone(), from_bob().build().unwrap()]);
    let (found, asked) = located(&mut rig, bobs(&message), &store, reflects);
    assert_eq!(found.unwrap().entry.map(|entry| entry.seq), Some(store[0].0));
    let [Query::Row(_), Query::Place { seq, lanes, .. }] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(*seq, store[0].0);
    assert!(lanes.contains(&LaneId::Normal) && !lanes.contains(&LaneId::Dead));
}

#[test]
fn a_message_that_has_another_place_than_where_it_was_accepted_is_found_there() {
    let message = from_bob().build().unwrap();
    let mut rig = Rig::new();
    let first = rig.accept(&message);
    let moved = rig.operate(Operation::Reprioritise(target(message.id()), Priority::High));
    rig.commit();
    let now = rig.done(moved).unwrap().unwrap().accepted.unwrap().entry;
    let (store, reflects) = settled_with(&mut rig);
    let (found, asked) = located(&mut rig, bobs(&message), &store, reflects);
    assert_eq!((found.unwrap().entry, now != first), (Some(now), true));
    assert!(matches!(asked.last(), Some(Query::Id { .. })), "{asked:?}");
}

#[test]
fn how_the_newest_message_of_a_sender_ended_is_said_without_asking_the_store_for_messages() {
    let [delivered, cancelled] = [(); 2].map(|()| from_bob().build().unwrap());
    let mut rig = Rig::new();
    rig.accept(&from_bob().priority(Priority::Low).build().unwrap());
    rig.accept(&cancelled);
    rig.operate(Operation::Cancel(target(cancelled.id())));
    rig.commit();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&delivered);
    rig.say(1, entry, Verdict::Delivered);
    rig.input(Input::Detach(LinkId(1)));
    let reflects = rig.next;
    let parts = settle(&mut rig);
    rig.row = parts.iter().flat_map(|part| &part.rows).map(|(_, row)| row.clone()).next();
    let store: Store = parts.into_iter().flat_map(|part| part.entries).collect();
    for (message, reason) in [(&delivered, EndReason::Delivered), (&cancelled, EndReason::Cancelled)] {
        let (found, asked) = located(&mut rig, bobs(message), &store, reflects);
        assert_eq!(found.map(|located| located.status), Ok(Status::Ended(reason)));
        assert!(matches!(asked[..], [Query::Row(_)]), "{asked:?}");
    }
}

/// What its ledger says is of an older message, when its sender has used the id again.
#[test]
fn an_id_that_is_used_again_after_its_window_stands_where_the_newer_message_does() {
    let mut rig = Rig::new();
    let message = from_bob().build().unwrap();
    rig.accept(&message);
    rig.operate(Operation::Cancel(target(message.id())));
    rig.commit();
    let cancelled = Status::Ended(EndReason::Cancelled);
    assert_eq!(status(&mut rig, bobs(&message), &Vec::new(), Seq::ZERO), (Some(cancelled), 0));
    rig.pass(rig.machine.config.dedup_age + Duration::from_secs(1));
    let newer = from_bob().id(message.id()).build().unwrap();
    rig.accept(&newer);
    for sender in [None, bobs(&newer).sender] {
        let target = Target { sender, ..target(newer.id()) };
        assert_eq!(status(&mut rig, target, &Vec::new(), Seq::ZERO), (Some(Status::Accepted), 0));
    }
}

#[test]
fn of_more_messages_with_one_id_than_are_named_at_once_the_one_that_is_meant_is_found() {
    let id = MessageId::from_u128(7);
    let from = |n: u32| to("alice").id(id).sender(format!("sender-{n:03}").as_str()).build().unwrap();
    let messages: Vec<_> = (0..200).map(from).collect();
    let (mut rig, store, reflects) = settled(&messages);
    // Nothing is remembered of their ids.
    rig.pass(rig.machine.config.dedup_age + Duration::from_secs(1));
    for n in [0, 199] {
        let target = bobs(&messages[n]);
        let (found, asked) = located(&mut rig, target, &store, reflects);
        assert_eq!(found.unwrap().entry.map(|entry| entry.seq), Some(store[n].0), "{asked:?}");
    }
}

#[test]
fn what_has_ended_since_the_store_wrote_it_is_not_said_to_wait() {
    let messages = [(); 3].map(|()| from_bob().build().unwrap());
    let (mut rig, store, reflects) = settled(&messages);
    let cancel = rig.operate(Operation::Cancel(target(messages[1].id())));
    rig.load_from(&store, reflects);
    rig.commit();
    assert_eq!(rig.done(cancel).unwrap().unwrap().messages, 1);
    let cancelled = Status::Ended(EndReason::Cancelled);
    for sender in [None, bobs(&messages[1]).sender] {
        let target = Target { sender, ..target(messages[1].id()) };
        assert_eq!(status(&mut rig, target, &store, reflects).0, Some(cancelled));
    }
}

#[test]
fn damage_that_may_be_what_is_looked_for_is_an_error_and_other_damage_is_not() {
    let messages = [(); 3].map(|()| from_bob().build().unwrap());
    let (mut rig, store, reflects) = settled(&messages);
    let cancel = rig.operate(Operation::Cancel(target(messages[0].id())));
    rig.load_from(&store, reflects);
    rig.commit();
    assert!(rig.done(cancel).unwrap().is_ok());
    let unknown = MessageId::from_u128(9);
    for (at, is_error) in [
        (Some((LaneId::Normal, store[0].0)), false),
        (Some((LaneId::Normal, store[1].0)), true),
        (Some((LaneId::Dead, store[1].0)), false),
        (None, true),
    ] {
        let ticket = rig.operate(Operation::Locate(target(unknown)));
        while let Some((load, query)) = rig.loads.pop() {
            if !matches!(query, Query::Id { .. }) {
                rig.load_one(load, query, &store, reflects);
                continue;
            }
            let matches = Matches { damaged: vec![at], ..Matches::default() };
            rig.input(Input::Loaded { load, found: Box::new(Found::Matches(matches)) });
        }
        let expected = if is_error { OperationError::StoreUnreadable } else { OperationError::NotWaiting };
        assert_eq!(rig.done(ticket), Some(Err(expected)), "{at:?}");
    }
    let ticket = rig.operate(Operation::Locate(Target { user: alice(), id: unknown, sender: None }));
    while let Some((load, query)) = rig.loads.pop() {
        match query {
            Query::Id { .. } => rig.input(Input::LoadFailed(load)),
            query => rig.load_one(load, query, &store, reflects),
        }
    }
    assert_eq!(rig.done(ticket), Some(Err(OperationError::StoreUnreadable)));
}
