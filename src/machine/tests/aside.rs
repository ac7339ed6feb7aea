//! Found by a review of the lanes that nothing is offered from.

use super::operate::{alice, settled_with, target};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn all() -> DeadLetters {
    DeadLetters::of(alice())
}

/// The oldest takes another place of its lane when there are too many.
#[test]
fn what_waits_for_years_does_not_keep_the_gaps_of_all_that_came_after_it() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    rig.accept(&to("alice").not_before(rig.now.after(HOUR * 100_000)).build().unwrap());
    let mut store = Vec::new();
    for _ in 0..3000 {
        let m = to("alice").not_before(rig.now.after(Duration::from_secs(60))).build().unwrap();
        rig.accept(&m);
        let (mut more, reflects) = settled_with(&mut rig);
        store.append(&mut more);
        rig.pass(Duration::from_secs(61));
        rig.loads.retain(|(_, query)| !matches!(query, Query::Due { .. }));
        rig.load_from(&store, reflects);
        rig.commit();
        let entry = rig.offers.last().unwrap().1.entry;
        rig.say(1, entry, Verdict::Delivered);
        let ended = rig.machine.snapshot(&alice()).unwrap().lanes[LaneId::Scheduled.index()].ended.clone();
        store.retain(|(seq, _)| !ended.contains(seq));
    }
    let lane = rig.machine.snapshot(&alice()).unwrap().lanes[LaneId::Scheduled.index()].clone();
    assert!(lane.ended.len() <= 2048, "{} gaps", lane.ended.len());
}

#[test]
fn gaps_of_a_lane_that_is_never_empty_go_when_it_has_been_looked_through() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let mut store: Vec<(Seq, std::sync::Arc<crate::record::Accept>)> = Vec::new();
    for _ in 0..300 {
        let m = to("alice").not_before(rig.now.after(Duration::from_secs(90))).build().unwrap();
        rig.accept(&m);
        let (mut more, reflects) = settled_with(&mut rig);
        store.append(&mut more);
        rig.pass(Duration::from_secs(61));
        rig.loads.retain(|(_, query)| !matches!(query, Query::Due { .. }));
        rig.load_from(&store, reflects);
        rig.commit();
        if let Some((_, d)) = rig.offers.last().cloned() {
            rig.say(1, d.entry, Verdict::Delivered);
        }
        let lane = rig.machine.snapshot(&alice()).unwrap().lanes[LaneId::Scheduled.index()].clone();
        store.retain(|(seq, _)| !lane.ended.contains(seq) && *seq > lane.cursor);
    }
    let lane = rig.machine.snapshot(&alice()).unwrap().lanes[LaneId::Scheduled.index()].clone();
    assert!(lane.ended.len() <= 10, "{} gaps, though only {} wait", lane.ended.len(), store.len());
}

#[test]
fn a_purge_takes_a_letter_that_was_being_written() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, Verdict::Rejected)] });
    rig.operate(Operation::Purge(alice()));
    rig.commit();
    let t = rig.operate(Operation::Inspect(all(), Seq::ZERO, 100));
    assert_eq!(rig.done(t).unwrap().unwrap().letters.len(), 0, "kept after a purge");
}

#[test]
fn a_purge_takes_what_was_being_sent_again() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.say(1, entry, Verdict::Rejected);
    rig.input(Input::Detach(LinkId(1)));
    rig.operate(Operation::Requeue(all()));
    rig.operate(Operation::Purge(alice()));
    rig.commit();
    rig.attach(2, "alice", "phone");
    assert_eq!(rig.machine.stats().counters.live(), 0, "lives after a purge");
}

#[test]
fn a_repeat_of_what_was_taken_at_once_is_answered_with_the_place_it_has() {
    let mut rig = Rig::new();
    let past = to("alice").not_before(rig.now).build().unwrap();
    let first = rig.accept(&past);
    let ticket = rig.send(&past);
    let repeat = rig.answer(ticket).unwrap().clone().unwrap();
    assert_eq!((repeat.duplicate, repeat.entry), (true, first));
}

#[test]
fn a_confirmation_of_a_place_that_nothing_is_offered_from_counts_for_nothing() {
    let mut rig = Rig::new();
    let m = to("alice").not_before(rig.now.after(HOUR)).build().unwrap();
    let place = rig.accept(&m);
    let (store, reflects) = settled_with(&mut rig);
    let _ = (&store, reflects);
    // A new life, in which the epoch before was exposed.
    let mut reborn =
        Rig { machine: rig.replayed(), next: Seq::first_of(Epoch(2)), now: rig.now, ..Rig::new() };
    reborn.machine.replay(
        rig.next,
        &Record::Exposed(crate::record::Exposed { user: alice(), epoch: Epoch(1) }),
        true,
    );
    reborn.attach(1, "alice", "phone");
    reborn.say(1, place, Verdict::Delivered);
    let counters = reborn.machine.stats().counters;
    assert_eq!(counters.ended[EndReason::Delivered.index()], 0, "delivered, though never offered");
}

/// An operation keeps what settles in memory while it is there.
#[test]
fn letters_are_shown_in_order_also_when_an_older_one_is_in_memory_still() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let bury = |rig: &mut Rig| {
        let e = rig.accept(&message("alice"));
        rig.say(1, e, Verdict::Rejected);
    };
    bury(&mut rig);
    // It is released while something is asked for whose end is not durable yet.
    let other = message("alice");
    rig.accept(&other);
    let _cancel = rig.operate(Operation::Cancel(target(other.id())));
    let (mut store, _) = settled_with(&mut rig);
    rig.commit();
    bury(&mut rig);
    let (more, reflects) = settled_with(&mut rig);
    store.extend(more);
    store.retain(|(_, a)| a.lane() == LaneId::Dead);
    let t = rig.operate(Operation::Inspect(all(), Seq::ZERO, 1));
    rig.loads.retain(|(_, query)| !matches!(query, Query::Due { .. }));
    rig.load_from(&store, reflects);
    let one = rig.done(t).unwrap().unwrap().letters;
    let t = rig.operate(Operation::Inspect(all(), one[0].place, 1));
    rig.load_from(&store, reflects);
    let two = rig.done(t).unwrap().unwrap().letters;
    assert_eq!((one.len(), two.len()), (1, 1), "two letters, page by page");
}

#[test]
fn what_is_sent_again_after_it_may_have_arrived_says_so() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.say(1, entry, Verdict::Rejected);
    rig.operate(Operation::Requeue(all()));
    rig.commit();
    rig.input(Input::Detach(LinkId(1)));
    assert!(rig.offers.last().unwrap().1.redelivered);
}

#[test]
fn sweeps_leave_no_more_gaps_behind_one_that_waits_than_there_may_be() {
    let mut rig = Rig::new();
    rig.accept(&message("alice"));
    let mut store: Vec<(Seq, std::sync::Arc<crate::record::Accept>)> = Vec::new();
    let mut row = None;
    let mut most = 0;
    for _ in 0..3000 {
        rig.accept(&to("alice").ttl(Duration::from_secs(30)).build().unwrap());
        let mut reflects = Seq::ZERO;
        // Settling may need the row, which is read meanwhile.
        let before = rig.next;
        rig.input(Input::Settle { before });
        for turn in 0..3 {
            let mut loads = core::mem::take(&mut rig.loads);
            if let (Some((load, _)), true) =
                (loads.iter().find(|(_, q)| matches!(q, Query::Row(_))).cloned(), turn < 2)
            {
                loads.retain(|(l, _)| *l != load);
                rig.input(Input::Loaded {
                    load,
                    found: Box::new(Found::User { row: row.clone(), held: None, reflects: before }),
                });
            }
            rig.loads.extend(loads);
        }
        for part in core::mem::take(&mut rig.survivors) {
            store.extend(part.entries);
            for (_, new) in part.rows {
                row = Some(Box::new(new));
            }
            if part.last {
                reflects = before;
            }
        }
        assert_eq!(reflects, before);
        rig.input(Input::Settled { before });
        rig.pass(Duration::from_secs(61));
        while let Some((load, query)) = rig.loads.pop() {
            let found = match query {
                Query::User(_) | Query::Row(_) => {
                    let mut held = Holdings::default();
                    let lives = |seq: &Seq| {
                        row.as_ref()
                            .is_none_or(|row| *seq > row.lanes[2].cursor && !row.lanes[2].ended.contains(seq))
                    };
                    store
                        .iter()
                        .filter(|(seq, _)| lives(seq))
                        .for_each(|(_, a)| held.add(a.lane(), a.message.cost()));
                    Found::User { row: row.clone(), held: Some(held), reflects }
                }
                Query::Page { lane, after, ended, .. } => {
                    let entries = store
                        .iter()
                        .filter(|(s, a)| a.lane() == lane && *s > after && !ended.contains(s))
                        .cloned()
                        .collect();
                    Found::Page(Page { entries, damaged: Vec::new(), more_after: None, reflects })
                }
                Query::Due { .. } => {
                    Found::Due { users: vec![alice()], more: None, next: Timestamp::NEVER, table: 1 }
                }
                Query::Place { .. } | Query::Id { .. } => panic!("nobody looks for one message"),
                Query::Sender { .. } => Found::Sender(Vec::new()),
            };
            rig.input(Input::Loaded { load, found: Box::new(found) });
        }
        rig.commit();
        store.retain(|(_, a)| a.expires() > rig.now);
        most = most.max(row.as_ref().map_or(0, |row| row.lanes[2].ended.len()));
    }
    assert!(most <= 2048);
}

/// Settling had read the row, and somebody came before anything was known of what there is.
#[test]
fn lanes_aside_that_turn_out_to_be_empty_are_known_to_be() {
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
    rig.machine.replay(
        Seq::first_of(Epoch(1)),
        &Record::Exposed(crate::record::Exposed { user: alice(), epoch: Epoch(1) }),
        true,
    );
    rig.next = Seq::first_of(Epoch(1)).plus(1);
    let before = rig.next;
    rig.input(Input::Settle { before });
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::Row(_)), "{query:?}");
    rig.input(Input::Attach { link: LinkId(1), user: alice(), device: DeviceId::new("phone").unwrap() });
    rig.commit();
    rig.input(Input::Loaded {
        load,
        found: Box::new(Found::User { row: None, held: None, reflects: Seq::ZERO }),
    });
    rig.load_from(&[], Seq::ZERO);
    rig.commit();
    let user = &rig.machine.users[&alice()];
    assert!(
        user.lane_ref(LaneId::Scheduled).more_after.is_none(),
        "the store has nothing, and that is known"
    );
}

#[test]
fn a_ttl_counts_from_its_time_however_late_that_was_noticed_and_anew_when_it_is_sent_again() {
    let mut rig = Rig::new();
    let ttl = Duration::from_secs(600);
    rig.accept(&to("alice").not_before(rig.now.after(HOUR)).ttl(ttl).build().unwrap());
    rig.pass(HOUR + Duration::from_secs(500));
    rig.attach(1, "alice", "phone");
    let entry = rig.offers[0].1.entry;
    assert_eq!(rig.machine.stats().counters.live(), 1);
    rig.say(1, entry, Verdict::Rejected);
    rig.pass(Duration::from_secs(101));
    let requeue = rig.operate(Operation::Requeue(all()));
    rig.commit();
    assert_eq!(rig.done(requeue).unwrap().unwrap().messages, 1, "a dead letter does not expire");
    rig.say(1, rig.offers.last().unwrap().1.entry, Verdict::Busy(Duration::from_secs(1)));
    rig.pass(ttl - Duration::from_secs(60));
    assert_eq!(rig.machine.stats().counters.live(), 1, "its TTL has begun anew");
    rig.pass(Duration::from_secs(61));
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Expired.index()], 1);
    // And of one that waits for its time, which nobody noticed before it was over.
    let mut late = Rig::new();
    late.accept(&to("alice").not_before(late.now.after(HOUR)).ttl(ttl).build().unwrap());
    late.pass(HOUR + Duration::from_secs(500));
    late.attach(1, "alice", "phone");
    late.say(1, late.offers[0].1.entry, Verdict::Busy(Duration::from_secs(1)));
    late.pass(Duration::from_secs(101));
    assert_eq!(late.machine.stats().counters.ended[EndReason::Expired.index()], 1);
}

#[test]
fn what_waits_for_its_time_was_not_delivered_however_often_its_user_was_there_before() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let message = to("alice").not_before(rig.now.after(HOUR)).build().unwrap();
    rig.accept(&message);
    let exposed = Record::Exposed(crate::record::Exposed { user: alice(), epoch: Epoch(1) });
    let mut reborn =
        Rig { machine: rig.replayed(), next: Seq::first_of(Epoch(2)), now: rig.now, ..Rig::new() };
    reborn.machine.replay(rig.next, &exposed, true);
    let up = reborn.operate(Operation::Reprioritise(target(message.id()), Priority::High));
    reborn.commit();
    assert!(reborn.done(up).unwrap().is_ok(), "it was never offered");
    let cancel = reborn.operate(Operation::Cancel(target(message.id())));
    reborn.commit();
    assert_eq!(reborn.done(cancel).unwrap().unwrap().possibly_delivered, 0);
}

/// One whose row cannot be read would keep all behind them from being looked at, every time.
#[test]
fn a_sweep_goes_on_without_a_user_who_cannot_be_read() {
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
    rig.pass(HOUR);
    rig.pass(HOUR);
    let (load, _) = rig.loads.pop().unwrap();
    let users = ["bob", "alice"].map(|name| UserId::new(name).unwrap()).to_vec();
    let found = Found::Due { users, more: None, next: Timestamp::NEVER, table: 1 };
    rig.input(Input::Loaded { load, found: Box::new(found) });
    let (bob, query) = rig.loads.pop().unwrap();
    assert!(matches!(&query, Query::User(user) if *user != alice()));
    rig.input(Input::LoadFailed(bob));
    assert!(matches!(&rig.loads[..], [(_, Query::User(user))] if *user == alice()), "{:?}", rig.loads);
    rig.load_from(&[], Seq::ZERO);
    assert_eq!(rig.machine.stats().sweeps, 0, "not all was seen to");
    rig.pass(Duration::from_secs(11));
    let is_bobs = |query: &Query| matches!(query, Query::User(user) if *user != alice());
    assert!(rig.loads.iter().any(|(_, query)| is_bobs(query)), "it is tried again");
}
