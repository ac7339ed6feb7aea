use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::id::{StreamId, UserId};
use crate::machine::{Found, Holdings, Page, Query, Survivors};
use crate::message::Message;
use crate::ports::{Flow, Store};
use crate::record::{Accept, Counters, DedupRow, LaneId, LaneRow, UserRow};
use crate::storage::MemoryStore;
use crate::testing::{FaultyStore, Survivors as Kept};
use crate::time::Timestamp;

mod beyond;
mod crash;
mod damage;
mod due;
mod ends;
mod export;
mod failed;
mod find;
mod ids;
mod letters;
mod recovery;
#[cfg(feature = "encryption")]
mod sealed;
#[cfg(feature = "encryption")]
mod sealed_shared;
mod shared;

const FRESH: Identity = Identity { stream: StreamId::from_u128(1), digest_key: 2 };
const NORMAL: usize = LaneId::Normal.index();

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn accept(to: &str, lane: LaneId, payload: Vec<u8>) -> Arc<Accept> {
    let message =
        Message::to(to, "a.b", payload).priority(lane.priority().unwrap()).sender("s").build().unwrap();
    Arc::new(Accept::new(message, Timestamp::from_millis(5)))
}

fn id(sender: u128, seq: u64, at: u64) -> DedupRow {
    let at = Timestamp::from_millis(at);
    DedupRow {
        sender,
        key: u128::from(seq),
        content: seq,
        seq: Seq::new(seq),
        at,
        among: crate::record::Slots::NONE,
    }
}

fn row(reflects: u64, cursor: u64, ended: &[u64]) -> UserRow {
    let mut row = UserRow { reflects: Seq::new(reflects), ..UserRow::default() };
    row.lanes[NORMAL] = LaneRow {
        cursor: Seq::new(cursor),
        ended: ended.iter().map(|seq| Seq::new(*seq)).collect(),
        attempts: Vec::new(),
    };
    row
}

/// Messages for a user in one lane, at these places.
fn entries(to: &str, seqs: impl IntoIterator<Item = u64>, bytes: usize) -> Vec<(Seq, Arc<Accept>)> {
    seqs.into_iter().map(|seq| (Seq::new(seq), accept(to, LaneId::Normal, vec![seq as u8; bytes]))).collect()
}

fn open(store: &(impl Store + Clone + 'static)) -> (OutboxStore, Opened) {
    OutboxStore::open(Arc::new(store.clone()), None, Epoch(0), FRESH).unwrap()
}

fn settlement(parts: Vec<Survivors>, before: u64) -> Settlement {
    let counters = Counters { accepted: before, ..Counters::default() };
    let now = Timestamp::from_millis(before);
    Settlement::new(parts, Seq::new(before), vec![(counters, Seq::new(before))], now)
}

fn settle(outbox: &OutboxStore, epoch: Epoch, parts: Vec<Survivors>, before: u64) {
    let mut settlement = settlement(parts, before);
    while settlement.step(outbox, epoch).unwrap() != Progress::Done {}
}

fn merge(outbox: &OutboxStore, epoch: Epoch, max_runs: usize, since: u64) -> bool {
    let Some(mut merge) = Merge::plan(outbox, max_runs, Timestamp::from_millis(since)) else { return false };
    while merge.step(outbox, epoch).unwrap() != Progress::Done {}
    assert!(merge.damage().is_empty());
    true
}

fn totals(outbox: &OutboxStore, to: &str) -> (Option<UserRow>, Holdings) {
    match outbox.load(&Query::User(user(to))).unwrap() {
        Found::User { row, held: Some(held), .. } => (row.map(|row| *row), held),
        other => panic!("{other:?}"),
    }
}

fn page(outbox: &OutboxStore, to: &str, lane: LaneId, after: u64, ended: &[u64], max: usize) -> Page {
    let ended = ended.iter().map(|seq| Seq::new(*seq)).collect();
    let after = Seq::new(after);
    let query = Query::Page { user: user(to), lane, after, ended, max_messages: max, max_bytes: u64::MAX };
    match outbox.load(&query).unwrap() {
        Found::Page(page) => page,
        other => panic!("{other:?}"),
    }
}

/// Places of a user's settled messages in the normal lane, as the row judges them; payloads are checked.
fn places(outbox: &OutboxStore, to: &str) -> Vec<u64> {
    let lane = totals(outbox, to).0.unwrap_or_default().lanes[NORMAL].clone();
    let ended: Vec<u64> = lane.ended.iter().map(|seq| seq.get()).collect();
    let page = page(outbox, to, LaneId::Normal, lane.cursor.get(), &ended, usize::MAX);
    assert_eq!((page.more_after, page.damaged.len()), (None, 0));
    for (seq, accept) in &page.entries {
        assert_eq!(accept.message.recipient(), &user(to));
        assert!(accept.message.payload().iter().all(|byte| *byte == seq.get() as u8));
    }
    page.entries.iter().map(|(seq, _)| seq.get()).collect()
}

fn ids(outbox: &OutboxStore, sender: u128, since: u64) -> Vec<u64> {
    let since = Timestamp::from_millis(since);
    match outbox.load(&Query::Sender { sender, since, max: usize::MAX }).unwrap() {
        Found::Sender(rows) => rows.iter().map(|row| row.seq.get()).collect(),
        other => panic!("{other:?}"),
    }
}

/// Every row of a store, by kind of key.
fn census(store: &dyn Store) -> BTreeMap<u8, usize> {
    let mut rows = BTreeMap::new();
    store
        .scan(&[0], &[0xFF], &mut |key, _| {
            *rows.entry(key[0]).or_default() += 1;
            Flow::Continue
        })
        .unwrap();
    rows
}

#[test]
fn what_settles_is_loaded_in_order_and_nothing_else() {
    let (outbox, opened) = open(&MemoryStore::new());
    assert!(opened.store_empty && opened.lost.is_empty() && opened.identity == FRESH);
    let mut one = Survivors { entries: entries("bob", (1..200).rev(), 300), ..Survivors::default() };
    one.entries.extend(entries("al", [200], 10));
    one.entries.push((Seq::new(201), accept("bob", LaneId::Critical, vec![201; 5000])));
    let two = Survivors { entries: entries("bobby", 202..300, 7), ..Survivors::default() };
    settle(&outbox, opened.epoch, vec![one, two], 300);
    assert_eq!(places(&outbox, "bob"), (1..200).collect::<Vec<_>>());
    assert_eq!(places(&outbox, "al"), [200]);
    assert_eq!(places(&outbox, "bobby"), (202..300).collect::<Vec<_>>());
    assert_eq!(places(&outbox, "nobody"), [0; 0]);
    let critical = page(&outbox, "bob", LaneId::Critical, 0, &[], 9);
    assert_eq!(critical.entries[0].1.message.payload().as_ref(), [201; 5000]);
    assert_eq!(critical.reflects, Seq::new(300));
    let (row, Holdings { messages, bytes, .. }) = totals(&outbox, "bob");
    assert_eq!((row, messages), (None, 200));
    assert_eq!(bytes, 199 * 306 + 5006);
    assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
}

#[test]
fn pages_end_at_their_limits_and_go_on_behind_them() {
    let (outbox, opened) = open(&MemoryStore::new());
    for start in [0, 100, 200] {
        let all = entries("bob", start..start + 100, 100);
        settle(&outbox, opened.epoch, vec![Survivors { entries: all, ..Survivors::default() }], start + 100);
    }
    let (mut after, mut seen) = (7, Vec::new());
    loop {
        let page = page(&outbox, "bob", LaneId::Normal, after, &[8, 50, 250], 33);
        assert!(page.entries.len() <= 33);
        seen.extend(page.entries.iter().map(|(seq, _)| seq.get()));
        match page.more_after {
            Some(more) => after = more.get(),
            None => break,
        }
    }
    let expected: Vec<u64> = (8..300).filter(|seq| ![8, 50, 250].contains(seq)).collect();
    assert_eq!(seen, expected);
    let query = Query::Page {
        user: user("bob"),
        lane: LaneId::Normal,
        after: Seq::ZERO,
        ended: Vec::new(),
        max_messages: 10,
        max_bytes: 1,
    };
    let Found::Page(page) = outbox.load(&query).unwrap() else { panic!() };
    assert_eq!(page.entries.len(), 1, "at least one message");
}

#[test]
fn rows_judge_totals_and_older_rows_never_win() {
    let (outbox, opened) = open(&MemoryStore::new());
    let mut part = Survivors { entries: entries("bob", 1..10, 10), ..Survivors::default() };
    part.rows.push((user("bob"), row(10, 3, &[5, 7])));
    settle(&outbox, opened.epoch, vec![part], 10);
    assert_eq!(totals(&outbox, "bob").1.messages, 4);
    assert_eq!(places(&outbox, "bob"), [4, 6, 8, 9]);
    let old = Survivors { rows: vec![(user("bob"), row(9, 0, &[]))], ..Survivors::default() };
    settle(&outbox, opened.epoch, vec![old], 11);
    assert_eq!(totals(&outbox, "bob").0, Some(row(10, 3, &[5, 7])));
}

#[test]
fn large_rows_are_replaced_as_a_whole_and_leave_nothing_behind() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let large: Vec<u64> = (20..12_000).collect();
    for (before, row) in [(1, row(1, 1, &large)), (2, row(2, 2, &large[9..])), (3, row(3, 3, &[4]))] {
        let part = Survivors { rows: vec![(user("bob"), row.clone())], ..Survivors::default() };
        settle(&outbox, opened.epoch, vec![part], before);
        assert_eq!(totals(&outbox, "bob").0, Some(row));
    }
    assert_eq!(census(&store)[&5], 1, "parts are left behind");
}

#[test]
fn remembered_ids_come_back_by_sender_and_age() {
    let (outbox, opened) = open(&MemoryStore::new());
    let dedup = (0..500).map(|n| id(u128::from(n % 3), n, n)).collect();
    settle(&outbox, opened.epoch, vec![Survivors { dedup, ..Survivors::default() }], 500);
    let expected: Vec<u64> = (300..500).filter(|n| n % 3 == 1).collect();
    assert_eq!(ids(&outbox, 1, 300), expected);
    assert_eq!(ids(&outbox, 4, 0), [0; 0]);
    assert_eq!(ids(&outbox, 1, 500), [0; 0]);
}

#[test]
fn settling_what_has_settled_adds_nothing() {
    let (outbox, opened) = open(&MemoryStore::new());
    let part = || Survivors { entries: entries("bob", 1..10, 10), ..Survivors::default() };
    settle(&outbox, opened.epoch, vec![part()], 10);
    settle(&outbox, opened.epoch, vec![part()], 10);
    assert_eq!(places(&outbox, "bob"), (1..10).collect::<Vec<_>>());
}

#[test]
fn merging_keeps_order_drops_what_ended_and_goes_below_the_bound() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    for run in 0..20 {
        let (first, last) = (run * 10 + 1, run * 10 + 11);
        let mut part = Survivors { entries: entries("bob", first..last - 1, 3000), ..Survivors::default() };
        part.entries.extend(entries("carol", [last - 1], 30));
        part.dedup = (first..last).map(|seq| id(1, seq, seq)).collect();
        settle(&outbox, opened.epoch, vec![part], last);
    }
    let dead: Vec<u64> = (1..=55).chain([60, 61]).collect();
    let bobs = dead.iter().filter(|seq| *seq % 10 != 0).count();
    let died = dead.iter().filter(|seq| *seq % 10 != 0).map(|seq| Seq::new(*seq)).collect();
    let rows = vec![(user("bob"), row(201, 55, &[60, 61]))];
    settle(&outbox, opened.epoch, vec![Survivors { rows, died, ..Survivors::default() }], 201);
    let live = places(&outbox, "bob");
    assert_eq!(live.len(), 180 - bobs);
    for max_runs in [16, 3, 1] {
        while merge(&outbox, opened.epoch, max_runs, 100) {}
        assert!(outbox.runs().len() <= max_runs);
        assert_eq!(places(&outbox, "bob"), live);
        assert_eq!(places(&outbox, "carol"), (1..=20).map(|n| n * 10).collect::<Vec<_>>());
        assert_eq!(ids(&outbox, 1, 100), (100..201).collect::<Vec<_>>());
    }
    let report = outbox.verify(&mut |_| {}).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    assert_eq!(report.entries, live.len() as u64 + 20, "what ended was copied");
    assert_eq!(outbox.runs()[0].live, report.live);
    assert_eq!(census(&store)[&3], live.len(), "bodies of what ended are left behind");
}

#[test]
fn a_run_in_which_all_ended_is_dropped_whole() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    settle(
        &outbox,
        opened.epoch,
        vec![Survivors { entries: entries("bob", 1..10, 5000), ..Survivors::default() }],
        10,
    );
    let part = Survivors {
        rows: vec![(user("bob"), row(10, 9, &[]))],
        died: (1..10).map(Seq::new).collect(),
        ..Survivors::default()
    };
    settle(&outbox, opened.epoch, vec![part], 11);
    assert!(merge(&outbox, opened.epoch, 16, 0));
    assert!(outbox.runs().is_empty());
    let rows = census(&store);
    assert_eq!((rows.get(&2), rows.get(&3)), (None, None));
}

#[test]
fn chunks_stay_until_their_readers_are_done() {
    let (outbox, opened) = open(&MemoryStore::new());
    for n in 1..5 {
        let part = Survivors { entries: entries("bob", [n], 10), ..Survivors::default() };
        settle(&outbox, opened.epoch, vec![part], n + 1);
    }
    let reader = outbox.table();
    let mut merge = Merge::plan(&outbox, 1, Timestamp::ZERO).unwrap();
    while merge.step(&outbox, opened.epoch).unwrap() == Progress::More {}
    assert_eq!(merge.step(&outbox, opened.epoch).unwrap(), Progress::Busy);
    drop(reader);
    while merge.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
    assert_eq!(places(&outbox, "bob"), [1, 2, 3, 4]);
}

#[test]
fn a_wrong_live_count_loses_nothing() {
    let (outbox, opened) = open(&MemoryStore::new());
    let part = Survivors { entries: entries("bob", 1..10, 5000), ..Survivors::default() };
    settle(&outbox, opened.epoch, vec![part], 10);
    let died = (1..10).chain(1..10).map(Seq::new).collect();
    let rows = vec![(user("bob"), row(10, 5, &[]))];
    settle(&outbox, opened.epoch, vec![Survivors { rows, died, ..Survivors::default() }], 11);
    assert_eq!(outbox.runs()[0].live, 0);
    assert!(merge(&outbox, opened.epoch, 16, 0));
    assert_eq!(places(&outbox, "bob"), [6, 7, 8, 9]);
    assert_eq!(outbox.runs()[0].live, 4);
    assert!(!merge(&outbox, opened.epoch, 16, 0));
}

/// Found by a review: the deaths were taken off before the run was in the table, so that it was never found dead.
#[test]
fn what_ended_while_its_run_was_written_counts_as_dead_in_it() {
    let (outbox, opened) = open(&MemoryStore::new());
    let died = [2, 3].map(Seq::new).to_vec();
    let part = Survivors { entries: entries("bob", 1..6, 10), died, ..Survivors::default() };
    settle(&outbox, opened.epoch, vec![part], 6);
    assert_eq!((outbox.runs()[0].entries, outbox.runs()[0].live), (5, 3));
}

#[test]
fn pages_right_after_the_totals_are_those_of_the_store_also_when_the_table_has_changed() {
    let (outbox, opened) = open(&MemoryStore::new());
    let mut all = entries("bob", 1..40, 900);
    all.push((Seq::new(40), accept("bob", LaneId::High, vec![40; 5000])));
    settle(&outbox, opened.epoch, vec![Survivors { entries: all, ..Survivors::default() }], 41);
    let from_store = page(&outbox, "bob", LaneId::Normal, 3, &[7], 20);
    assert_eq!(totals(&outbox, "bob").1.messages, 40);
    assert!(outbox.inner.recent.find(&user("bob"), outbox.table().generation).is_some());
    let from_memory = page(&outbox, "bob", LaneId::Normal, 3, &[7], 20);
    assert_eq!(from_memory.entries, from_store.entries);
    assert_eq!(from_memory.more_after, from_store.more_after);
    assert_eq!(page(&outbox, "bob", LaneId::High, 0, &[], 9).entries.len(), 1);
    let more = Survivors { entries: entries("bob", [50], 10), ..Survivors::default() };
    settle(&outbox, opened.epoch, vec![more], 51);
    assert_eq!(page(&outbox, "bob", LaneId::Normal, 39, &[], 9).entries.len(), 1);
}
