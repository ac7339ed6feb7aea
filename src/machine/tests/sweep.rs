//! Sweeps: what is due while nobody is there.

use super::operate::{alice, settled, settled_with, target};
use super::*;
use crate::message::DevicePolicy;

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
fn a_sweep_that_cannot_read_a_list_begins_anew_and_one_that_cannot_read_somebody_says_so_until_it_could() {
    let (mut rig, store, reflects) = settled(&[with_ttl(100)]);
    rig.pass(MINUTE * 2);
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::Due { .. }));
    rig.input(Input::LoadFailed(load));
    rig.pass(MINUTE);
    let (list, _) = rig.loads.pop().unwrap();
    let found = Found::Due { users: vec![alice()], more: None, next: Timestamp::NEVER, table: 1 };
    rig.input(Input::Loaded { load: list, found: Box::new(found) });
    let (load, _) = rig.loads.pop().unwrap();
    rig.input(Input::LoadFailed(load));
    assert_eq!(rig.machine.stats().sweeps, 0);
    rig.accept(&message("bob"));
    let swept = settle(&mut rig).last().unwrap().swept.unwrap();
    assert_eq!(swept, (Timestamp::ZERO, 0), "after a restart it would be gone through again");
    rig.pass(MINUTE);
    rig.load_from(&store, reflects);
    rig.commit();
    assert_eq!(rig.machine.stats().counters.live(), 1, "bob's");
    let swept = settle(&mut rig).last().unwrap().swept.unwrap();
    assert!(swept.0 > Timestamp::ZERO && swept.1 == 1);
}

#[test]
fn somebody_who_cannot_be_read_is_tried_less_and_less_often_and_the_others_are_not_gone_through_again() {
    let bobs = to("bob").ttl(Duration::from_secs(100)).build().unwrap();
    let (mut rig, store, reflects) = settled(&[with_ttl(100), bobs]);
    let (mut lists, mut tries) = (0, 0);
    for _ in 0..24 * 60 * 6 {
        rig.pass(Duration::from_secs(10));
        while let Some((load, query)) = rig.loads.pop() {
            match query {
                Query::User(id) | Query::Row(id) if id == alice() => {
                    tries += 1;
                    rig.input(Input::LoadFailed(load));
                }
                query => {
                    if let Query::Due { since, .. } = &query {
                        lists += 1;
                        assert_eq!(since.1, u64::from(lists > 1), "all but hers was seen to");
                    }
                    // Alice's is the first.
                    let is_due = matches!(query, Query::Due { .. });
                    rig.load_one(load, query, &store[usize::from(!is_due)..], reflects);
                }
            }
        }
        rig.commit();
    }
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Expired.index()], 1);
    assert!((20..=40).contains(&tries), "{tries} times in a day");
    assert!(lists <= tries + 1, "{lists} lists");
    rig.pass(MINUTE * 60);
    rig.load_from(&store[..1], reflects);
    rig.commit();
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

impl Rig {
    /// Until nothing is read or committed any more.
    fn sweep_through(&mut self, store: &[(Seq, std::sync::Arc<crate::record::Accept>)], reflects: Seq) {
        while !self.loads.is_empty() || !self.open.is_empty() {
            self.load_from(store, reflects);
            self.commit();
        }
    }
}

fn few_gaps() -> Config {
    Config { max_gaps: NonZeroUsize::new(8).unwrap(), ..Config::default() }
}

/// As many as there may be gaps ended, then nothing more of hers was ever swept.
#[test]
fn what_nothing_waits_in_front_of_ends_in_one_sweep_however_much_it_is() {
    let mut rig = Rig::with(few_gaps());
    let messages: Vec<_> = (0..1000).map(|_| with_ttl(100)).chain([message("alice")]).collect();
    for message in &messages {
        rig.accept(message);
    }
    let (store, reflects) = settled_with(&mut rig);
    rig.pass(MINUTE * 2);
    rig.sweep_through(&store, reflects);
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.ended[EndReason::Expired.index()], counters.live()), (1000, 1));
    assert_eq!(rig.machine.stats().sweeps, 1);
    let rows = settle(&mut rig).into_iter().flat_map(|part| part.rows).next().unwrap().1;
    let lane = rows.lane(LaneId::Normal).unwrap();
    assert_eq!((lane.ended.len(), lane.cursor), (0, store[999].0), "and leaves no gaps behind");
}

/// Found by a review: while another device was attached, nothing that was for this one was swept beyond the gaps, and a sweep
/// that met its arrival looked at the same user for ever.
#[test]
fn what_is_for_a_device_that_is_away_ends_in_one_sweep_though_another_one_is_there() {
    for comes_meanwhile in [false, true] {
        let mut rig = Rig::with(few_gaps());
        rig.register_two();
        for _ in 0..100 {
            let each = to("alice").devices(DevicePolicy::EveryDevice).ttl(Duration::from_secs(100));
            rig.accept(&each.build().unwrap());
        }
        let reflects = rig.next;
        let parts = settle(&mut rig);
        rig.row = parts.iter().flat_map(|part| &part.rows).map(|(_, row)| row.clone()).next_back();
        let store: Vec<_> = parts.into_iter().flat_map(|part| part.entries).collect();
        if !comes_meanwhile {
            rig.attach(1, "alice", "phone");
            rig.load_from(&store, reflects);
        }
        rig.now = rig.now.after(MINUTE * 2);
        rig.input(Input::Tick);
        rig.load_from(&store, reflects);
        if comes_meanwhile {
            rig.attach(1, "alice", "phone");
        }
        rig.sweep_through(&store, reflects);
        assert_eq!(rig.count_of(EndReason::Expired), 200, "{comes_meanwhile}");
        assert_eq!((rig.machine.stats().counters.live(), rig.machine.stats().sweeps), (0, 1));
    }
}

#[test]
fn behind_one_that_waits_as_many_end_as_there_may_be_gaps_and_the_rest_when_that_has_ended() {
    let mut rig = Rig::with(few_gaps());
    let first = message("alice");
    rig.accept(&first);
    for _ in 0..30 {
        rig.accept(&with_ttl(100));
    }
    let (store, reflects) = settled_with(&mut rig);
    rig.pass(MINUTE * 2);
    rig.sweep_through(&store, reflects);
    let expired = |rig: &Rig| rig.machine.stats().counters.ended[EndReason::Expired.index()];
    assert_eq!(expired(&rig), 8);
    let mut looks = 0;
    for _ in 0..24 * 60 {
        rig.pass(MINUTE);
        looks += usize::from(!rig.loads.is_empty());
        rig.sweep_through(&store, reflects);
    }
    assert_eq!(expired(&rig), 8);
    assert!((20..=40).contains(&looks), "looked at {looks} times in a day");
    let cancel = rig.operate(Operation::Cancel(target(first.id())));
    rig.sweep_through(&store, reflects);
    assert!(rig.done(cancel).unwrap().is_ok());
    rig.pass(MINUTE * 60);
    rig.sweep_through(&store, reflects);
    assert_eq!((expired(&rig), rig.machine.stats().counters.live()), (30, 0));
}

/// What is about to end lives until that is durable: whoever asks meanwhile is not told that it was delivered.
#[test]
fn what_a_sweep_ends_is_not_taken_for_delivered_before_that_is_durable() {
    let messages = [with_ttl(100), with_ttl(100)];
    let (mut rig, store, reflects) = settled(&messages);
    rig.now = rig.now.after(MINUTE * 2);
    rig.input(Input::Tick);
    rig.load_from(&store, reflects);
    assert!(!rig.open.is_empty(), "their ends are not durable yet");
    let sender = Some(None);
    let locate = rig.operate(Operation::Locate(Target { sender, ..target(messages[0].id()) }));
    rig.load_from(&store, reflects);
    assert_eq!(rig.done(locate), None);
    rig.commit();
    let located = rig.done(locate).unwrap().unwrap().located.unwrap();
    assert_eq!(located.status, Status::Ended(EndReason::Expired));
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

/// Found by an audit: it ended when it had settled, which in a journal that is seldom written to takes weeks.
#[test]
fn what_expires_before_it_has_settled_ends_though_nobody_is_there() {
    let mut rig = Rig::new();
    let max_user_messages = core::num::NonZeroU32::MIN;
    rig.machine = Machine::new(birth(Config { max_user_messages, ..Config::default() }));
    let entry = rig.accept(&with_ttl(1));
    rig.pass(Duration::from_millis(999));
    assert_eq!(rig.changes.last(), None);
    rig.pass(Duration::from_secs(2));
    let change = rig.changes.last().expect("it is said");
    assert_eq!((change.entry, change.status), (entry, Status::Ended(EndReason::Expired)));
    assert!(!change.possibly_delivered);
    let ticket = rig.send(&with_ttl(5));
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok(), "its room is free");
    rig.pass(MINUTE);
    assert_eq!(rig.machine.stats().counters.live(), 0);
    settle(&mut rig);
    assert_eq!((rig.machine.poll_timeout(), rig.machine.stats().resident_users), (None, 0), "no timer stays");
}

#[test]
fn what_expires_after_somebody_has_left_or_a_crash_ends_when_it_is_known_what_they_were_offered() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    rig.accept(&with_ttl(10));
    rig.input(Input::Detach(LinkId(1)));
    rig.accept(&with_ttl(10));
    let mut reborn = Rig::born(Birth { epoch: Epoch(2), store_empty: false, ..birth(Config::default()) });
    for (seq, record) in &rig.log {
        reborn.machine.replay(*seq, record, true);
    }
    for (mut rig, known) in [(rig, [true, false]), (reborn, [true, true])] {
        rig.pass(Duration::ZERO);
        rig.pass(Duration::from_secs(12));
        rig.load_from(&[], Seq::ZERO);
        rig.pass(Duration::from_secs(2));
        let ended = rig.changes.iter().filter(|change| change.status == Status::Ended(EndReason::Expired));
        assert_eq!(ended.map(|change| change.possibly_delivered).collect::<Vec<_>>(), known);
        assert_eq!(rig.machine.stats().counters.live(), 0);
    }
}

#[test]
fn rows_of_those_who_are_away_are_read_one_after_the_other_also_when_one_cannot_be_read() {
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
    let short = |user: &str| to(user).ttl(Duration::from_secs(1)).build().unwrap();
    for user in ["alice", "bob", "carol"] {
        rig.machine.replay(rig.next, &Record::Accept(std::sync::Arc::new(accept_of(&short(user)))), true);
        rig.next = rig.next.plus(1);
    }
    rig.pass(Duration::ZERO);
    let mut asked = Vec::new();
    for fails in [true, false, false, false] {
        rig.pass(Duration::from_secs(6));
        let rows = rig.loads.iter().filter(|(_, query)| matches!(query, Query::Row(_)));
        assert_eq!(rows.count(), 1);
        let at = rig.loads.iter().position(|(_, query)| matches!(query, Query::Row(_))).unwrap();
        let (load, query) = rig.loads.remove(at);
        let Query::Row(id) = &query else { panic!("{query:?}") };
        asked.push(id.clone());
        match fails {
            true => rig.input(Input::LoadFailed(load)),
            false => rig.load_one(load, query, &[], Seq::ZERO),
        }
    }
    rig.pass(Duration::from_secs(6));
    asked.sort_unstable();
    asked.dedup();
    assert_eq!((asked.len(), rig.machine.stats().counters.live()), (3, 0));
}

/// Found by review: their timer had fired, and was set by nobody any more.
#[test]
fn whose_row_was_read_for_something_else_while_another_one_was_read_is_not_forgotten() {
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
    for user in ["alice", "bob"] {
        let message = to(user).ttl(Duration::from_secs(1)).build().unwrap();
        rig.machine.replay(rig.next, &Record::Accept(std::sync::Arc::new(accept_of(&message))), true);
        rig.next = rig.next.plus(1);
    }
    rig.pass(Duration::ZERO);
    rig.pass(Duration::from_secs(6));
    let at = rig.loads.iter().position(|(_, query)| matches!(query, Query::Row(_))).unwrap();
    let (first, query) = rig.loads.remove(at);
    let Query::Row(read) = query.clone() else { panic!("{query:?}") };
    let other = ["alice", "bob"].into_iter().find(|user| user.as_bytes() != read.as_bytes()).unwrap();
    // Something else wants to know about the other one.
    let target = Target { user: UserId::new(other).unwrap(), id: MessageId::from_u128(9), sender: None };
    rig.operate(Operation::Reprioritise(target, Priority::High));
    let is_theirs = |query: &Query| matches!(query, Query::User(id) | Query::Row(id) if *id != read);
    let at = rig.loads.iter().position(|(_, query)| is_theirs(query)).expect("their row is read");
    let (second, asked) = rig.loads.remove(at);
    rig.load_one(second, asked, &[], Seq::ZERO);
    rig.load_one(first, query, &[], Seq::ZERO);
    for _ in 0..3 {
        rig.pass(Duration::from_secs(6));
        rig.load_from(&[], Seq::ZERO);
    }
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

fn accept_of(message: &Message) -> crate::record::Accept {
    crate::record::Accept::new(message.clone(), Timestamp::from_millis(1000))
}
