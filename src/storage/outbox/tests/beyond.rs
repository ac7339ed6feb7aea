//! A store that is beyond repair: it panics when it is read.

use super::*;
use crate::ports::StoreError;

/// Three settlements for two people, and a manifest that names them.
fn settled() -> (FaultyStore, tempfile::TempDir) {
    let (store, dir) = (FaultyStore::new(), tempfile::tempdir().unwrap());
    let (outbox, opened) = open_named(&store, &dir);
    for n in 0..3 {
        let mut part = Survivors { before: Seq::new(n * 10 + 10), last: true, ..Survivors::default() };
        part.entries = entries("alice", n * 10..n * 10 + 5, 100);
        part.entries.extend(entries("bob", n * 10 + 5..n * 10 + 9, 100));
        settle(&outbox, opened.epoch, vec![part], n * 10 + 10);
    }
    (store, dir)
}

fn try_open_named(store: &FaultyStore, dir: &tempfile::TempDir) -> Result<(OutboxStore, Opened), OpenError> {
    OutboxStore::open(Arc::new(store.clone()), Some(dir.path().join("MANIFEST")), Epoch(0), FRESH)
}

fn open_named(store: &FaultyStore, dir: &tempfile::TempDir) -> (OutboxStore, Opened) {
    try_open_named(store, dir).unwrap()
}

/// The places that are said to be lost, and of whom.
fn named(opened: &Opened) -> Vec<(u64, u64, UserId, UserId)> {
    let of = |loss: &Loss| {
        let (first, last) = loss.users().unwrap();
        (loss.run.first.get(), loss.run.last.get(), first.clone(), last.clone())
    };
    let mut named: Vec<_> = opened.lost.iter().map(of).collect();
    named.sort();
    named
}

fn all_lost() -> Vec<(u64, u64, UserId, UserId)> {
    (0..3).map(|n| (n * 10, n * 10 + 9, user("bob"), user("alice"))).collect()
}

#[test]
fn an_outbox_opens_though_its_store_panics_at_any_read_and_names_what_was_lost() {
    let (store, dir) = settled();
    let before = store.reads();
    let (_, opened) = open_named(&store, &dir);
    assert_eq!(named(&opened), []);
    let reads = store.reads() - before;
    assert!(reads > 10, "{reads} reads");
    for n in 1..=reads {
        let (store, dir) = settled();
        store.break_reads_at(n);
        let (outbox, opened) = open_named(&store, &dir);
        assert_eq!(named(&opened), all_lost(), "read {n}");
        assert!(opened.store_empty);
        let entries = entries("carol", 100..103, 10);
        let part = Survivors { before: Seq::new(110), entries, last: true, ..Survivors::default() };
        settle(&outbox, opened.epoch, vec![part], 110);
        // Of what was accepted before, it is not said that it must have been delivered as it is not there.
        match outbox.load(&Query::User(user("alice"))).unwrap() {
            Found::User { row: Some(row), .. } => assert_eq!(row.ledger.forgotten, Seq::new(29)),
            other => panic!("{other:?}"),
        }
        assert_eq!(page(&outbox, "carol", LaneId::Normal, 0, &[], usize::MAX).entries.len(), 3);
    }
}

#[test]
fn a_loss_is_named_by_each_opening_until_there_was_a_settlement_after() {
    let (store, dir) = settled();
    store.break_reads_at(1);
    for opening in 0..3 {
        let (_, opened) = open_named(&store, &dir);
        assert_eq!(named(&opened), all_lost(), "opening {opening}");
    }
    // More of it is lost meanwhile.
    let (outbox, opened) = open_named(&store, &dir);
    settle(
        &outbox,
        opened.epoch,
        vec![Survivors { before: Seq::new(40), last: true, ..Survivors::default() }],
        40,
    );
    assert_eq!(named(&open_named(&store, &dir).1), []);
}

#[test]
fn a_crash_while_an_opening_writes_loses_no_loss() {
    // Each write of it fails, one after the other.
    for op in [crate::testing::StoreOp::Apply, crate::testing::StoreOp::Sync] {
        for nth in 1..4 {
            let (store, dir) = settled();
            store.break_reads_at(1);
            let at = nth + if op == crate::testing::StoreOp::Apply { store.applies() } else { store.syncs() };
            store.fail_at(op, at, crate::testing::Fault::Once);
            let first = try_open_named(&store, &dir);
            store.heal();
            store.crash(Kept::None);
            let (_, opened) = open_named(&store, &dir);
            assert_eq!(named(&opened), all_lost(), "{op:?} {nth} ({:?})", first.err());
        }
    }
}

#[test]
fn a_panic_of_the_store_is_an_error_to_whoever_reads_then() {
    let (store, dir) = settled();
    let (outbox, _) = open_named(&store, &dir);
    store.break_reads_at(1);
    match outbox.load(&Query::User(user("alice"))) {
        Err(StoreError::Corrupt { reason }) => assert!(reason.contains("scripted panic"), "{reason}"),
        other => panic!("{other:?}"),
    }
}
