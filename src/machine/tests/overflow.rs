//! Overflow: what gives way to a new message in a full outbox, and what does not.

use core::num::NonZeroU32;
use std::sync::Arc;

use super::operate::{alice, settled_with};
use super::*;
use crate::config::{MAX_EVICTED, Overflow};
use crate::record::Accept;

fn rig(overflow: Overflow, max: u32) -> Rig {
    let max_user_messages = NonZeroU32::new(max).unwrap();
    Rig::with(Config { overflow, max_user_messages, ..Config::default() })
}

fn with_priority(priority: Priority) -> Message {
    to("alice").priority(priority).build().unwrap()
}

fn accept(rig: &mut Rig, priority: Priority) -> EntryRef {
    rig.accept(&with_priority(priority))
}

fn refused(rig: &mut Rig, message: &Message) -> bool {
    let ticket = rig.send(message);
    rig.commit();
    match rig.answer(ticket).expect("it was answered") {
        Ok(_) => false,
        Err(Refusal::OutboxFull { .. }) => true,
        Err(other) => panic!("{other}"),
    }
}

/// What was dropped, in that order.
fn evicted(rig: &Rig) -> Vec<EntryRef> {
    let evicted = |record: &Record| match record {
        Record::End(end) if end.reason == EndReason::Evicted => {
            Some(EntryRef { lane: end.lane, seq: end.seq })
        }
        _ => None,
    };
    rig.log.iter().filter_map(|(_, record)| evicted(record)).collect()
}

#[test]
fn the_oldest_gives_way_at_the_bound_and_not_before_in_the_commit_of_the_new_one() {
    let mut rig = rig(Overflow::DropOldest, 2);
    let oldest = accept(&mut rig, Priority::Normal);
    accept(&mut rig, Priority::Low);
    assert_eq!(evicted(&rig), []);
    let ticket = rig.send(&with_priority(Priority::Normal));
    let records = &rig.open.front().unwrap().1;
    assert!(matches!(&records[..], [Record::Accept(_), Record::End(end)] if end.seq == oldest.seq));
    assert!(rig.answer(ticket).is_none(), "not before it is durable");
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    assert_eq!(evicted(&rig), [oldest]);
    let change = rig.changes.iter().find(|change| change.entry == oldest).unwrap();
    assert_eq!((change.status, change.possibly_delivered), (Status::Ended(EndReason::Evicted), false));
    assert_eq!(rig.machine.stats().counters.live(), 2);
    assert_eq!(rig.machine.stats().pending, 0);
}

#[test]
fn the_lowest_gives_way_first_and_of_those_the_oldest() {
    let mut rig = rig(Overflow::DropLowest, 4);
    let [high, normal] = [Priority::High, Priority::Normal].map(|priority| accept(&mut rig, priority));
    let low = [(); 2].map(|()| accept(&mut rig, Priority::Low));
    for _ in 0..4 {
        assert!(!refused(&mut rig, &with_priority(Priority::High)));
    }
    assert_eq!(evicted(&rig), [low[0], low[1], normal, high]);
}

#[test]
fn nothing_gives_way_to_what_is_less_urgent() {
    for overflow in [Overflow::DropOldest, Overflow::DropLowest] {
        let mut rig = rig(overflow, 2);
        let high = accept(&mut rig, Priority::High);
        let normal = accept(&mut rig, Priority::Normal);
        assert!(refused(&mut rig, &with_priority(Priority::Low)));
        assert!(!refused(&mut rig, &with_priority(Priority::Normal)), "its equal gives way");
        assert_eq!(evicted(&rig), [normal]);
        assert!(!refused(&mut rig, &with_priority(Priority::Critical)));
        assert!(!refused(&mut rig, &with_priority(Priority::Critical)));
        assert!(evicted(&rig).contains(&high));
        assert!(refused(&mut rig, &with_priority(Priority::High)), "two critical ones wait");
    }
}

#[test]
fn what_is_in_flight_scheduled_or_dead_does_not_give_way() {
    let mut rig = rig(Overflow::DropOldest, 3);
    rig.machine.config.max_attempts = NonZeroU32::MIN;
    rig.attach(1, "alice", "phone");
    let dead = accept(&mut rig, Priority::Normal);
    rig.say(1, dead, Verdict::Nack(None));
    assert_eq!(rig.machine.stats().counters.dead_letters(), 1);
    let in_flight = accept(&mut rig, Priority::Low);
    let later = rig.now.after(Duration::from_secs(60));
    rig.accept(&to("alice").priority(Priority::Low).not_before(later).build().unwrap());
    let last = rig.accept(&to("alice").priority(Priority::Low).ordering_key("another").build().unwrap());
    assert_eq!(rig.offered(), [dead, in_flight, last]);
    assert!(refused(&mut rig, &with_priority(Priority::Critical)));
    rig.say(1, last, Verdict::Busy(Duration::from_secs(1)));
    assert!(!refused(&mut rig, &with_priority(Priority::Critical)), "that one waits again");
    assert_eq!(evicted(&rig), [last]);
    let change = rig.changes.iter().rfind(|change| change.entry == last).unwrap();
    assert!(change.possibly_delivered, "it was offered");
    rig.say(1, in_flight, Verdict::Delivered);
}

#[test]
fn as_many_go_as_it_takes_and_no_more_than_64() {
    for (waiting, fits) in [(MAX_EVICTED - 1, true), (MAX_EVICTED, true), (MAX_EVICTED + 1, false)] {
        let small = message("alice");
        let bytes = NonZeroU64::new(waiting as u64 * small.cost()).unwrap();
        let mut rig = Rig::with(Config {
            overflow: Overflow::DropOldest,
            max_user_bytes: bytes,
            max_payload_bytes: NonZeroUsize::MIN.saturating_add(100),
            ..Config::default()
        });
        rig.machine.config.max_payload_bytes = NonZeroUsize::new(1 << 20).unwrap();
        for _ in 0..waiting {
            rig.accept(&message("alice"));
        }
        let empty = Message::to("alice", "chat.message", "").build().unwrap().cost();
        let large =
            Message::to("alice", "chat.message", vec![0; (bytes.get() - empty) as usize]).build().unwrap();
        assert_eq!(large.cost(), bytes.get());
        assert_eq!(!refused(&mut rig, &large), fits, "{waiting}");
        assert_eq!(evicted(&rig).len(), if fits { waiting } else { 0 });
        let larger = Message::to("alice", "chat.message", vec![0; 1 + (bytes.get() - empty) as usize])
            .build()
            .unwrap();
        assert!(refused(&mut rig, &larger), "nothing that could go would make room for it");
    }
}

#[test]
fn what_lies_in_the_store_gives_way_and_whoever_sends_meanwhile_waits() {
    let mut rig = rig(Overflow::DropOldest, 300);
    let old: Vec<_> = (0..300).map(|_| accept(&mut rig, Priority::Normal)).collect();
    let (store, reflects) = settled_with(&mut rig);
    assert!(rig.machine.stats().resident_users == 0, "nobody is there");
    let tickets: Vec<_> = (0..5).map(|_| rig.send(&with_priority(Priority::Normal))).collect();
    let [bob] = [rig.send(&message("bob"))];
    rig.load_from(&store, reflects);
    rig.commit();
    rig.load_from(&store, reflects);
    assert!(tickets.iter().chain([&bob]).all(|ticket| rig.answer(*ticket).is_some_and(Result::is_ok)));
    assert_eq!(evicted(&rig), old[..5]);
    assert_eq!(rig.machine.stats().pending, 0);
    assert_eq!(rig.machine.overflowing.len(), 0);
    let places: Vec<_> = tickets.iter().map(|t| rig.answer(*t).unwrap().clone().unwrap().entry).collect();
    assert!(places.is_sorted(), "nobody overtook");
}

/// Else a lane of somebody who never comes would remember each place that ended in it.
#[test]
fn what_gave_way_is_forgotten_though_nobody_comes() {
    let mut rig = rig(Overflow::DropLowest, 300);
    let old: Vec<_> = (0..300).map(|_| accept(&mut rig, Priority::Normal)).collect();
    let (store, reflects) = settled_with(&mut rig);
    for n in 0..200 {
        let ticket = rig.send(&with_priority(Priority::Normal));
        rig.load_from(&store, reflects);
        rig.commit();
        assert!(rig.answer(ticket).is_some_and(Result::is_ok), "{n}");
    }
    assert_eq!(evicted(&rig), old[..200]);
    let user = &rig.machine.users[&alice()];
    assert!(user.lane_ref(LaneId::Normal).ended.len() <= 1, "{}", user.lane_ref(LaneId::Normal).ended.len());
}

#[test]
fn a_store_that_cannot_be_read_refuses_and_drops_nothing() {
    let mut rig = rig(Overflow::DropOldest, 3);
    for _ in 0..3 {
        accept(&mut rig, Priority::Normal);
    }
    let (store, reflects) = settled_with(&mut rig);
    let tickets = [(); 2].map(|()| rig.send(&with_priority(Priority::Normal)));
    while let Some((load, query)) = rig.loads.pop() {
        match query {
            Query::Page { .. } => rig.input(Input::LoadFailed(load)),
            _ => {
                let found =
                    Found::User { row: None, held: Some(held(3, 3 * store[0].1.message.cost())), reflects };
                rig.input(Input::Loaded { load, found: Box::new(found) });
            }
        }
    }
    rig.commit();
    for ticket in tickets {
        let answer = rig.answer(ticket);
        assert!(matches!(answer, Some(Err(Refusal::StoreUnreadable))), "{answer:?}");
    }
    assert_eq!(evicted(&rig), []);
}

#[test]
fn a_commit_that_fails_drops_nothing_without_what_took_its_place() {
    let mut rig = rig(Overflow::DropOldest, 1);
    let old = accept(&mut rig, Priority::Normal);
    let ticket = rig.send(&with_priority(Priority::Normal));
    let (commit, records) = rig.open.pop_front().unwrap();
    rig.input(Input::PersistFailed { commit, unknown: false });
    assert_eq!(rig.open.front().unwrap().1, records, "both go into the next one");
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    assert_eq!(evicted(&rig), [old]);
    assert_eq!(rig.machine.stats().counters.live(), 1);
}

#[test]
fn one_with_a_collapse_key_takes_the_place_of_its_own_and_of_no_other_if_that_is_enough() {
    let mut rig = rig(Overflow::DropOldest, 2);
    let state = || to("alice").collapse_key("state").build().unwrap();
    let other = accept(&mut rig, Priority::Normal);
    let first = rig.accept(&state());
    let second = rig.accept(&state());
    assert_eq!(evicted(&rig), []);
    let third = accept(&mut rig, Priority::Normal);
    assert_eq!(evicted(&rig), [other]);
    rig.accept(&to("alice").collapse_key("another").build().unwrap());
    assert_eq!(evicted(&rig), [other, second], "{first:?} {third:?}");
}

#[test]
fn a_batch_and_a_full_engine_drop_nothing() {
    let mut rig = rig(Overflow::DropOldest, 1);
    accept(&mut rig, Priority::Normal);
    rig.tickets += 1;
    let ticket = Ticket(rig.tickets);
    rig.input(Input::SendBatch(vec![(ticket, message("alice"))]));
    rig.commit();
    assert!(matches!(rig.answer(ticket), Some(Err(Refusal::OutboxFull { .. }))));
    rig.machine.config.max_total_messages = NonZeroU64::MIN;
    let ticket = rig.send(&message("bob"));
    assert!(matches!(rig.answer(ticket), Some(Err(Refusal::EngineFull { .. }))));
    assert_eq!(evicted(&rig), []);
}

#[test]
fn a_repeat_of_what_waits_for_room_is_one_message() {
    let mut rig = rig(Overflow::DropOldest, 1);
    let old = accept(&mut rig, Priority::Normal);
    let (store, reflects) = settled_with(&mut rig);
    let message = with_priority(Priority::High);
    let tickets = [rig.send(&message), rig.send(&message)];
    rig.load_from(&store, reflects);
    rig.commit();
    let answers = tickets.map(|ticket| rig.answer(ticket).unwrap().clone().unwrap());
    assert_eq!(answers.map(|accepted| accepted.duplicate), [false, true]);
    assert_eq!(evicted(&rig), [old]);
}

/// Answers what is asked of the store but pages of this lane, which are returned.
fn load_but(rig: &mut Rig, store: &[(Seq, Arc<Accept>)], reflects: Seq, but: LaneId) -> Vec<(LoadId, Query)> {
    let mut kept = Vec::new();
    while let Some((load, query)) = rig.loads.pop() {
        match query {
            Query::Page { lane, .. } if lane == but => kept.push((load, query)),
            _ => rig.load_one(load, query, store, reflects),
        }
    }
    kept
}

#[test]
fn what_was_found_and_is_offered_before_the_search_is_over_does_not_give_way() {
    let mut rig = rig(Overflow::DropOldest, 2);
    let low = accept(&mut rig, Priority::Low);
    let normal = accept(&mut rig, Priority::Normal);
    let (store, reflects) = settled_with(&mut rig);
    let ticket = rig.send(&with_priority(Priority::Normal));
    let searching = load_but(&mut rig, &store, reflects, LaneId::Normal);
    assert_eq!(searching.len(), 1, "the low lane was looked at, the normal one is being read");
    rig.attach(1, "alice", "phone");
    let offering = load_but(&mut rig, &store, reflects, LaneId::Normal);
    assert_eq!(rig.offered(), [low]);
    for (load, query) in searching.into_iter().chain(offering) {
        rig.load_one(load, query, &store, reflects);
    }
    rig.commit();
    assert_eq!(evicted(&rig), [normal], "the older one is in flight");
    assert!(rig.answer(ticket).unwrap().is_ok());
}

/// The older one of the key goes anyhow: what it gives back counts once.
#[test]
fn what_a_collapse_key_replaces_is_not_dropped_a_second_time() {
    let mut rig = rig(Overflow::DropOldest, 10);
    let state = |bytes| {
        let message = Message::to("alice", "chat.message", vec![0; bytes]).priority(Priority::Normal);
        message.collapse_key("state").build().unwrap()
    };
    let small = state(10).cost();
    rig.machine.config.max_user_bytes = NonZeroU64::new(3 * small).unwrap();
    let old = rig.accept(&state(10));
    let others = [(); 2].map(|()| {
        let message = Message::to("alice", "chat.message", vec![0; 10]).build().unwrap();
        rig.accept(&message)
    });
    let others_cost = rig.machine.stats().counters.live_bytes() - small;
    // Room for this one is there when the old one and the first of the others are gone.
    let more = usize::try_from(others_cost / 2).unwrap();
    rig.accept(&state(10 + more - 8));
    assert_eq!(evicted(&rig), others[..1], "{old:?}");
    assert_eq!(rig.machine.stats().counters.live(), 2);
    assert_eq!(rig.replayed().stats().counters, rig.machine.stats().counters);
}

#[test]
fn what_ends_behind_one_that_is_stuck_leaves_no_more_gaps_than_allowed() {
    for (max_gaps, dropped) in [(2, 2), (3, 3), (4, 4)] {
        let mut rig = rig(Overflow::DropOldest, 20);
        rig.machine.config.max_gaps = NonZeroUsize::new(max_gaps).unwrap();
        rig.machine.config.max_in_flight = NonZeroU32::MIN;
        rig.attach(1, "alice", "phone");
        let stuck = accept(&mut rig, Priority::Normal);
        for _ in 0..19 {
            accept(&mut rig, Priority::Normal);
        }
        assert_eq!(rig.offered(), [stuck]);
        // What has not settled leaves no gap when it ends.
        settle(&mut rig);
        let full = (0..10).map(|_| refused(&mut rig, &with_priority(Priority::Normal))).collect::<Vec<_>>();
        assert_eq!(full.iter().filter(|refused| !**refused).count(), dropped, "{full:?} {:?}", evicted(&rig));
    }
}

/// Found by an audit: what was for any device went before what was for one, however much older that was.
#[test]
fn of_the_lowest_priority_the_oldest_goes_first_whomever_it_is_for() {
    use crate::message::DevicePolicy;
    for in_store in [false, true] {
        let mut rig = rig(Overflow::DropLowest, 3);
        rig.attach(1, "alice", "phone");
        let ticket = rig.operate(Operation::Register(alice(), DeviceId::new("phone").unwrap()));
        rig.commit();
        assert!(rig.done(ticket).unwrap().is_ok());
        rig.input(Input::Detach(LinkId(1)));
        let low = || to("alice").priority(Priority::Low);
        let oldest = rig.accept(&low().devices(DevicePolicy::EveryDevice).build().unwrap());
        let newer = rig.accept(&low().build().unwrap());
        rig.accept(&with_priority(Priority::Normal));
        assert_eq!(oldest.lane.slot().map(crate::record::Slot::get), Some(0));
        let store = if in_store { rig.settle_alice() } else { (Vec::new(), Seq::ZERO) };
        for dropped in [oldest, newer] {
            rig.send(&with_priority(Priority::Normal));
            rig.load_from(&store.0, store.1);
            rig.commit();
            assert_eq!(evicted(&rig).last(), Some(&dropped), "{in_store}");
        }
        assert_eq!(evicted(&rig).len(), 2);
    }
}
