//! Crashes between every two steps of a settlement and of a merge.

use super::*;

/// What readers can see of everything.
#[derive(Debug, PartialEq)]
struct View {
    settled: Seq,
    places: Vec<Vec<u64>>,
    ids: Vec<u64>,
    runs: usize,
}

fn view(outbox: &OutboxStore) -> View {
    let places = ["ann", "bob", "carol"].map(|name| places(outbox, name)).to_vec();
    View { settled: outbox.settled(), places, ids: ids(outbox, 1, 0), runs: outbox.runs().len() }
}

fn part(first: u64, rows: bool) -> Survivors {
    let mut part = Survivors { entries: entries("bob", first..first + 60, 900), ..Survivors::default() };
    part.entries.extend(entries("ann", first + 60..first + 64, 9000));
    part.entries.extend(entries("carol", first + 64..first + 100, 10));
    part.dedup = (first..first + 100).map(|seq| id(1, seq, seq)).collect();
    if rows {
        let ended: Vec<u64> = (first + 2..first + 12).collect();
        part.rows = vec![(user("bob"), row(first + 100, first, &ended))];
    }
    part
}

fn before(store: &FaultyStore) -> OutboxStore {
    let (outbox, opened) = open(store);
    for first in [100, 200, 300] {
        settle(&outbox, opened.epoch, vec![part(first, false)], first + 100);
    }
    outbox
}

/// Runs `steps` steps, crashes, keeps a prefix, reopens. Says whether the work had been done.
fn crash_after(
    store: &FaultyStore,
    steps: usize,
    kept: Kept,
    mut step: impl FnMut() -> Progress,
) -> (OutboxStore, Opened, bool) {
    let done = (0..steps).any(|_| step() == Progress::Done);
    store.crash(kept);
    let (outbox, opened) = open(store);
    (outbox, opened, done)
}

const KEPT: [Kept; 5] = [Kept::None, Kept::First(1), Kept::First(3), Kept::Seeded(5), Kept::All];

#[test]
fn settlement_is_wholly_there_or_wholly_absent_after_a_crash() {
    let reference = FaultyStore::new();
    let outbox = before(&reference);
    let epoch = reference.take_epoch(Epoch(0)).unwrap();
    let old = view(&outbox);
    let old_rows = census(&reference);
    // Rows come before the table. One that is newer judges what had settled before by what the journal still says.
    let mut ahead = view(&outbox);
    ahead.places[1].retain(|place| *place > 400);
    settle(&outbox, epoch, vec![part(400, true)], 500);
    let new = view(&outbox);
    let rows = census(&reference);
    for steps in 0.. {
        let mut all_done = true;
        for kept in KEPT {
            let store = FaultyStore::new();
            let outbox = before(&store);
            let epoch = store.take_epoch(Epoch(0)).unwrap();
            let mut settlement = settlement(vec![part(400, true)], 500);
            let (outbox, opened, done) =
                crash_after(&store, steps, kept, || settlement.step(&outbox, epoch).unwrap());
            all_done &= done;
            let found = view(&outbox);
            assert!(
                found == old || found == ahead || found == new,
                "after {steps} steps, {kept:?}: {found:?}"
            );
            assert!(!done || found == new, "done, and lost after {kept:?}");
            assert_eq!(opened.settled, found.settled);
            let kinds = |rows: &BTreeMap<u8, usize>| [2, 3, 4].map(|kind| rows.get(&kind).copied());
            let expected = if found == new { &rows } else { &old_rows };
            assert_eq!(kinds(&census(&store)), kinds(expected), "orphans after {steps} steps, {kept:?}");
            assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
            settle(&outbox, opened.epoch, vec![part(400, true)], 500);
            assert_eq!(view(&outbox), new, "settling again after {steps} steps, {kept:?}");
            assert_eq!(census(&store), rows, "orphans after {steps} steps, {kept:?}");
        }
        if all_done {
            break;
        }
    }
}

#[test]
fn merge_changes_nothing_that_is_seen_wherever_it_crashes() {
    let prepare = |store: &FaultyStore| {
        let outbox = before(store);
        let epoch = store.take_epoch(Epoch(0)).unwrap();
        let ended: Vec<u64> = (210..250).collect();
        let died = (1..51).chain(210..250).map(Seq::new).collect();
        let rows = vec![(user("bob"), row(401, 150, &ended)), (user("ann"), { row(401, 261, &[]) })];
        settle(&outbox, epoch, vec![Survivors { rows, died, ..Survivors::default() }], 401);
        (outbox, epoch)
    };
    let reference = FaultyStore::new();
    let (outbox, epoch) = prepare(&reference);
    let seen = View { runs: 0, ..view(&outbox) };
    while merge(&outbox, epoch, 1, 0) {}
    let rows = census(&reference);
    for steps in 0.. {
        let mut all_done = true;
        for kept in KEPT {
            let store = FaultyStore::new();
            let (outbox, epoch) = prepare(&store);
            let mut merging = Merge::plan(&outbox, 1, Timestamp::ZERO).unwrap();
            let (outbox, opened, done) =
                crash_after(&store, steps, kept, || merging.step(&outbox, epoch).unwrap());
            all_done &= done;
            assert_eq!(View { runs: 0, ..view(&outbox) }, seen, "after {steps} steps, {kept:?}");
            assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty(), "after {steps} steps, {kept:?}");
            while merge(&outbox, opened.epoch, 1, 0) {}
            assert_eq!(View { runs: 0, ..view(&outbox) }, seen);
            assert_eq!(census(&store), rows, "orphans after {steps} steps, {kept:?}");
        }
        if all_done {
            break;
        }
    }
}

#[test]
fn failed_steps_leave_the_old_state_and_can_be_done_again() {
    for fails in 1..40 {
        let store = FaultyStore::new();
        let outbox = before(&store);
        let epoch = store.take_epoch(Epoch(0)).unwrap();
        let old = view(&outbox);
        store.fail_at(crate::testing::StoreOp::Apply, store.applies() + fails, crate::testing::Fault::Once);
        let mut first = settlement(vec![part(400, false)], 500);
        let failed = loop {
            match first.step(&outbox, epoch) {
                Ok(Progress::Done) => break false,
                Ok(_) => {}
                Err(_) => break true,
            }
        };
        if failed {
            assert_eq!(view(&outbox), old);
            outbox.reopen().unwrap();
            settle(&outbox, epoch, vec![part(400, false)], 500);
        }
        assert_eq!(outbox.settled(), Seq::new(500));
        assert_eq!(places(&outbox, "bob").len(), 240);
        drop(outbox);
        // It may not have come to the failure yet.
        store.heal();
        let (outbox, _) = open(&store);
        assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
    }
}

#[test]
fn the_table_is_written_upon_a_run_that_is_durable() {
    let store = FaultyStore::new();
    let outbox = before(&store);
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    let mut settlement = settlement(vec![part(400, false)], 500);
    let settled = || meta::Meta::read(&store, &Cipher::plain()).unwrap().unwrap().settled;
    while settled() < Seq::new(500) {
        assert_eq!(settlement.step(&outbox, epoch).unwrap(), Progress::More);
    }
    assert_eq!(store.unsynced(), 1, "the table, and nothing that it names");
    let mut merging = Merge::plan(&outbox, 1, Timestamp::ZERO).unwrap();
    while settlement.step(&outbox, epoch).unwrap() != Progress::Done {}
    while meta::Meta::read(&store, &Cipher::plain()).unwrap().unwrap().dropping.is_empty() {
        assert_eq!(merging.step(&outbox, epoch).unwrap(), Progress::More);
    }
    assert_eq!(store.unsynced(), 1, "the table, and nothing that it names");
}

#[test]
fn a_large_row_is_the_old_one_or_the_new_one_after_a_crash() {
    let rows = [row(1, 1, &(10..9000).collect::<Vec<_>>()), row(2, 2, &(20..12_000).collect::<Vec<_>>())];
    for steps in 0..12 {
        for kept in KEPT {
            let store = FaultyStore::new();
            let (outbox, opened) = open(&store);
            let part =
                |n: usize| Survivors { rows: vec![(user("bob"), rows[n].clone())], ..Survivors::default() };
            settle(&outbox, opened.epoch, vec![part(0)], 1);
            let mut settlement = settlement(vec![part(1)], 2);
            let (outbox, _, done) =
                crash_after(&store, steps, kept, || settlement.step(&outbox, opened.epoch).unwrap());
            let found = totals(&outbox, "bob").0.unwrap();
            assert!(found == rows[1] || (!done && found == rows[0]), "after {steps} steps, {kept:?}");
        }
    }
}
