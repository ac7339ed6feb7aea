//! The sled store when the system refuses its writes, and when it takes them again.
//!
//! A file size limit stands for the full disk: the tests run themselves again in a process that has one.
#![cfg(all(feature = "sled", target_os = "linux"))]

mod common;

use std::process::Command;

use common::{count, put};
use lastmile::ports::{Batch, Store, StoreError};
use lastmile::record::Epoch;
use lastmile::storage::SledStore;

const DIR: &str = "LASTMILE_LIMITED_DIR";

/// Runs `test` again in a process that can write no file beyond 2 MiB; writing more is an error, not a signal.
fn in_limited_process(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; ulimit -S -f 4096; exec \"$0\" --exact \"$1\" --nocapture";
    let status = Command::new("timeout")
        .args(["100", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(DIR, dir.path())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

fn limited_dir() -> Option<String> {
    std::env::var(DIR).ok()
}

fn lift_limit() -> bool {
    let pid = std::process::id().to_string();
    let lifted = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status();
    lifted.is_ok_and(|status| status.success())
}

fn large_batch(round: u32) -> Batch {
    let mut batch = Batch::new();
    for i in 0..16_u32 {
        let mut key = round.to_be_bytes().to_vec();
        key.extend(i.to_be_bytes());
        batch.put(key, vec![round as u8; 3900]);
    }
    batch
}

#[test]
fn store_turns_read_only_keeps_reading_and_heals() {
    let Some(dir) = limited_dir() else {
        return in_limited_process("store_turns_read_only_keeps_reading_and_heals");
    };
    let store = SledStore::open(&dir).unwrap();
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    let (mut synced, mut applied) = (0, 0);
    let error = loop {
        assert!(applied < 1000, "the limit was never met");
        if let Err(e) = store.apply(epoch, large_batch(applied)) {
            break e;
        }
        applied += 1;
        if let Err(e) = store.sync() {
            break e;
        }
        synced = applied;
    };
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
    assert!(synced > 3, "failed too early to tell anything");
    refuses_writes_and_reads_on(&store, epoch, synced);
    // The probe is below the limit, but the file behind it is not: reopening may work, the next write may not.
    let _ = store.reopen();
    if !lift_limit() {
        return;
    }
    store.reopen().unwrap();
    let rows = count(&store);
    assert_eq!(rows % 16, 0, "a batch survived in part");
    assert!((synced * 16..=(applied + 1) * 16).contains(&(rows as u32)));
    for round in 0..applied + 20 {
        store.apply(epoch, large_batch(round)).unwrap();
    }
    store.sync().unwrap();
    drop(store);
    let store = SledStore::open(&dir).unwrap();
    assert_eq!(store.quarantined(), None);
    assert_eq!(count(&store), (applied as usize + 20) * 16);
}

fn refuses_writes_and_reads_on(store: &SledStore, epoch: Epoch, synced: u32) {
    assert!(matches!(store.sync(), Err(StoreError::ReadOnly { .. })));
    assert!(matches!(store.apply(epoch, large_batch(0)), Err(StoreError::ReadOnly { .. })));
    assert!(matches!(store.take_epoch(epoch), Err(StoreError::ReadOnly { .. })));
    for round in 0..synced {
        let key = [round.to_be_bytes(), 7_u32.to_be_bytes()].concat();
        assert_eq!(store.read(&key).unwrap(), Some(vec![round as u8; 3900]));
    }
}

#[test]
fn batches_without_syncs_fail_without_hanging() {
    let Some(dir) = limited_dir() else {
        return in_limited_process("batches_without_syncs_fail_without_hanging");
    };
    let store = SledStore::open(&dir).unwrap();
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    put(&store, epoch, b"synced", b"v");
    store.sync().unwrap();
    for round in 0..300 {
        if store.apply(epoch, large_batch(round)).is_err() {
            break;
        }
    }
    assert!(matches!(store.sync(), Err(StoreError::ReadOnly { .. })));
    drop(store);
    // What failed was no damage: nothing may be given up.
    lift_limit();
    let store = SledStore::open(&dir).unwrap();
    assert_eq!(store.quarantined(), None);
    assert_eq!(store.read(b"synced").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(count(&store) % 16, 1, "a batch survived in part");
}
