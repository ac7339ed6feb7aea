//! Sweeps: what is due while nobody is there.

use super::operate::{alice, settled, target};
use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn with_ttl(seconds: u64) -> Message {
    to("alice").ttl(Duration::from_secs(seconds)).build().unwrap()
}

impl Rig {
    /// What is asked for by the next sweep.
    fn asked(&self) -> Option<(Timestamp, (Timestamp, u64))> {
        self.loads.iter().find_map(|(_, query)| match query {
            Query::Due { until, since, .. } => Some((*until, *since)),
            _ => None,
        })
    }
}

#[test]
fn what_expires_while_nobody_is_there_ends_and_gives_its_room_back() {
    let (mut rig, store, reflects) = settled(&[with_ttl(100), with_ttl(5000), message("alice")]);
    rig.pass(Duration::from_secs(50));
    assert_eq!(rig.asked(), None, "nothing is due");
    rig.pass(Duration::from_secs(51));
    assert!(rig.asked().is_some());
    rig.load_from(&store, reflects);
    rig.commit();
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.ended[EndReason::Expired.index()], counters.live()), (1, 2));
    assert_eq!(rig.changes.last().unwrap().status, Status::Ended(EndReason::Expired));
    assert!(!rig.changes.last().unwrap().possibly_delivered);
    rig.pass(MINUTE * 60);
    assert_eq!(rig.asked(), None, "the next is due after 5,000 s");
    rig.pass(MINUTE * 60);
    rig.load_from(&store[1..], reflects);
    rig.commit();
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Expired.index()], 2);
    assert_eq!(rig.machine.stats().sweeps, 2);
}

#[test]
fn what_is_scheduled_takes_its_place_though_nobody_is_there() {
    let at = Rig::new().now.after(MINUTE);
    let later = to("alice").not_before(at).build().unwrap();
    let (mut rig, store, reflects) = settled(std::slice::from_ref(&later));
    rig.pass(MINUTE * 2);
    rig.load_from(&store, reflects);
    rig.commit();
    let [(from, to)] = rig.moves[..] else { panic!("{:?}", rig.moves) };
    assert_eq!((from.lane, to.lane), (LaneId::Scheduled, LaneId::Normal));
    let newer = rig.accept(&message("alice"));
    rig.attach(1, "alice", "phone");
    rig.load_from(&[], reflects);
    rig.commit();
    assert_eq!(rig.offered(), [to, newer]);
}

#[test]
fn a_sweep_that_cannot_read_begins_anew_and_nothing_is_taken_for_seen_to() {
    let (mut rig, store, reflects) = settled(&[with_ttl(100)]);
    for failing in 0..2 {
        rig.pass(MINUTE * 2);
        for _ in 0..failing {
            let (load, query) = rig.loads.pop().unwrap();
            assert!(matches!(query, Query::Due { .. }));
            let found = Found::Due { users: vec![alice()], more: None, next: Timestamp::NEVER, table: 1 };
            rig.input(Input::Loaded { load, found: Box::new(found) });
        }
        let (load, _) = rig.loads.pop().unwrap();
        rig.input(Input::LoadFailed(load));
        rig.loads.clear();
        assert_eq!(rig.machine.stats().sweeps, 0);
    }
    rig.pass(MINUTE);
    let (_, since) = rig.asked().expect("it is tried again");
    assert_eq!(since, (Timestamp::ZERO, 0));
    rig.load_from(&store, reflects);
    rig.commit();
    assert_eq!(rig.machine.stats().counters.live(), 0);
    let swept = settle(&mut rig).last().unwrap().swept.unwrap();
    assert!(swept.0 > Timestamp::ZERO && swept.1 == 1);
}

/// Found by the simulator: what settled while a list was being read was in no list that was read, and the timer was spent.
#[test]
fn what_settles_and_is_due_during_a_sweep_is_seen_to_by_the_next() {
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
    rig.pass(MINUTE);
    rig.pass(MINUTE);
    let (sweep, _) = rig.loads.pop().unwrap();
    let ticket = rig.send(&with_ttl(60));
    rig.load_from(&[], Seq::ZERO);
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    settle(&mut rig);
    rig.pass(MINUTE * 2);
    let nothing = Found::Due { users: vec![], more: None, next: Timestamp::NEVER, table: 1 };
    rig.input(Input::Loaded { load: sweep, found: Box::new(nothing) });
    rig.pass(MINUTE);
    assert!(rig.asked().is_some());
}

/// One user after the other: whoever comes meanwhile waits behind one read.
#[test]
fn a_sweep_reads_one_thing_at_a_time_and_only_of_users_of_its_shard() {
    let users: Vec<_> = (0..40).map(|n| format!("user-{n}")).collect();
    let mut rig = Rig::born(Birth { store_empty: false, shard: (1, 2), ..birth(Config::default()) });
    rig.pass(MINUTE);
    rig.pass(MINUTE);
    let (load, _) = rig.loads.pop().expect("the first sweep of a life");
    let ids: Vec<_> = users.iter().map(|user| UserId::new(user.as_str()).unwrap()).collect();
    let found = Found::Due { users: ids.clone(), more: None, next: Timestamp::NEVER, table: 1 };
    rig.input(Input::Loaded { load, found: Box::new(found) });
    let mut read = Vec::new();
    while let Some((load, query)) = rig.loads.pop() {
        assert!(rig.loads.is_empty(), "{:?} are read at once", rig.loads);
        let Query::User(id) = query else { panic!("{query:?}") };
        read.push(id);
        let found = Found::User { row: None, held: Some(held(0, 0)), reflects: Seq::ZERO };
        rig.input(Input::Loaded { load, found: Box::new(found) });
    }
    let digester = crate::digest::Digester::new(7);
    assert_eq!(read, ids.into_iter().filter(|id| digester.shard(id, 2) == 1).collect::<Vec<_>>());
    assert_eq!((rig.machine.stats().sweeps, rig.machine.stats().resident_users), (1, 0));
}

/// Found while it was written: the store may hold more than was accepted before a purge was asked for.
#[test]
fn a_purge_spares_what_was_accepted_after_it_though_it_has_settled_by_then() {
    let (mut rig, mut store, reflects) = settled(&[message("alice")]);
    let purge = rig.operate(Operation::Purge(alice()));
    let later = message("alice");
    let entry = rig.accept(&later);
    store.push((entry.seq, std::sync::Arc::new(crate::record::Accept::new(later.clone(), rig.now))));
    rig.load_from(&store, reflects);
    rig.commit();
    assert_eq!(rig.done(purge).unwrap().unwrap().messages, 1);
    let cancel = rig.operate(Operation::Cancel(target(later.id())));
    rig.load_from(&store[1..], reflects);
    rig.commit();
    assert_eq!(rig.done(cancel).unwrap().unwrap().messages, 1, "it was still there");
}
