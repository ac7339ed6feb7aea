//! The sled store over damaged files: it opens, never panics, never hands out a wrong value.
//!
//! A key may be missing without an error at this layer: sled forgets what it cannot read in its log. Counts kept
//! outside the store find that.
#![cfg(feature = "sled")]

mod common;

use std::fs;
use std::path::Path;

use common::{copy_dir, count, put};
use lastmile::ports::{Batch, Flow, MAX_KEY_BYTES, Store, StoreError};
use lastmile::record::Epoch;
use lastmile::storage::SledStore;

const ROWS: u32 = 600;

fn value_of(id: u32) -> Vec<u8> {
    let byte = (id % 251) as u8;
    vec![byte; 100 + (id as usize * 37) % 1900]
}

/// A closed store with known rows, in several segments, with rows overwritten and removed on the way.
fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let store = SledStore::open(dir.path()).unwrap();
        let epoch = store.take_epoch(Epoch(0)).unwrap();
        for id in 0..ROWS {
            let mut batch = Batch::new();
            batch.put(id.to_be_bytes().to_vec(), value_of(id));
            batch.put([&id.to_be_bytes()[..], b"removed"].concat(), b"x".to_vec());
            store.apply(epoch, batch).unwrap();
        }
        for id in 0..ROWS {
            let mut batch = Batch::new();
            batch.delete([&id.to_be_bytes()[..], b"removed"].concat());
            store.apply(epoch, batch).unwrap();
        }
        store.sync().unwrap();
    }
    dir
}

/// What became of a store after damage.
#[derive(Debug, Default)]
struct Outcome {
    quarantined: u32,
    refused_rows: u32,
    missing_rows: u32,
    read_only: u32,
    whole: u32,
    reasons: std::collections::BTreeMap<String, u32>,
}

/// Opens a damaged copy and uses it: nothing may panic, and no row may be wrong.
fn examine(dir: &Path, outcome: &mut Outcome) {
    let store = SledStore::open(dir).expect("a damaged store opens");
    if let Some(quarantine) = store.quarantined() {
        outcome.quarantined += 1;
        assert!(quarantine.path.join("db").exists() && !quarantine.reason.is_empty());
        *outcome.reasons.entry(quarantine.reason.clone()).or_default() += 1;
        assert_eq!(count(&store), 0);
    } else {
        let rows = examine_rows(&store, outcome);
        outcome.whole += u32::from(rows == ROWS);
    }
    let epoch = match store.take_epoch(Epoch(1000)) {
        Ok(epoch) => epoch,
        Err(StoreError::ReadOnly { .. }) => return outcome.read_only += 1,
        Err(other) => panic!("{other}"),
    };
    for id in 0..ROWS {
        let mut batch = Batch::new();
        batch.put(id.to_be_bytes().to_vec(), b"new".to_vec());
        match store.apply(epoch, batch) {
            Ok(()) => {}
            Err(StoreError::ReadOnly { .. }) => {
                outcome.read_only += 1;
                return restart_heals(store, dir);
            }
            Err(other) => panic!("{other}"),
        }
    }
    store.sync().unwrap();
}

fn examine_rows(store: &SledStore, outcome: &mut Outcome) -> u32 {
    let (mut present, mut refused) = (0, 0);
    for id in 0..ROWS {
        match store.read(&id.to_be_bytes()) {
            Ok(Some(value)) => {
                assert!(value == value_of(id), "wrong value under {id}");
                present += 1;
            }
            Ok(None) => {}
            Err(StoreError::Damaged { .. } | StoreError::Io { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    let mut visit = |key: &[u8], value: Result<&[u8], StoreError>| {
        if let (Ok(value), Ok(id)) = (value, key.try_into().map(u32::from_be_bytes)) {
            assert!(id < ROWS && value == value_of(id), "wrong value in the scan under {id}");
        }
        Flow::Continue
    };
    let _ = store.scan(b"", &[0xFF; MAX_KEY_BYTES], &mut visit);
    let _ = store.last(b"", &[0xFF; MAX_KEY_BYTES]);
    outcome.refused_rows += refused;
    outcome.missing_rows += ROWS - present - refused;
    present
}

/// A database whose damage shows only in writing is found by the next opening.
fn restart_heals(store: SledStore, dir: &Path) {
    drop(store);
    let store = SledStore::open(dir).expect("opens after a failed write");
    let epoch = store.take_epoch(Epoch(2000)).expect("gives an epoch after a failed write");
    for id in 0..ROWS {
        put(&store, epoch, &id.to_be_bytes(), b"new");
    }
    store.sync().unwrap();
}

fn flip(file: &Path, bit: u64) {
    let mut bytes = fs::read(file).unwrap();
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    fs::write(file, bytes).unwrap();
}

#[test]
fn flipped_bits_in_the_database_never_give_a_wrong_value() {
    let flips: u64 = std::env::var("LASTMILE_FLIPS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let sample = sample();
    let bits = fs::metadata(sample.path().join("db/db")).unwrap().len() * 8;
    let mut outcome = Outcome::default();
    for i in 0..flips {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(sample.path(), copy.path());
        // Spread evenly, with a stride that meets every bit of a byte.
        flip(&copy.path().join("db/db"), (bits / flips) * i + i % 8);
        examine(copy.path(), &mut outcome);
    }
    println!("{flips} flips over {} KiB: {outcome:?}", bits >> 13);
}

/// The even spread mostly meets dead bytes, so this one aims: at every copy of a live value, dead copies included.
#[test]
fn flipped_bit_in_a_live_value_is_noticed() {
    let sample = sample();
    let bytes = fs::read(sample.path().join("db/db")).unwrap();
    let mut outcome = Outcome::default();
    for id in [3, 150, 299, 450, 598] {
        let value = value_of(id);
        let copies: Vec<usize> = (0..bytes.len() - value.len())
            .filter(|at| bytes[*at] == value[0] && bytes[*at..*at + value.len()] == value[..])
            .collect();
        assert!(!copies.is_empty(), "value {id} is not in the file");
        let mut damaged = bytes.clone();
        for at in copies {
            damaged[at + value.len() / 2] ^= 4;
        }
        let copy = tempfile::tempdir().unwrap();
        copy_dir(sample.path(), copy.path());
        fs::write(copy.path().join("db/db"), damaged).unwrap();
        examine(copy.path(), &mut outcome);
    }
    assert_eq!(outcome.whole, 0, "{outcome:?}");
    println!("{outcome:?}");
}

#[test]
fn flipped_bits_in_a_snapshot_never_give_a_wrong_value() {
    let sample = sample();
    let mut outcome = Outcome::default();
    let files = fs::read_dir(sample.path().join("db")).unwrap().map(|entry| entry.unwrap());
    let names: Vec<_> = files.map(|file| file.file_name().into_string().unwrap()).collect();
    for name in names.iter().filter(|name| name.starts_with("snap.")) {
        let bits = fs::metadata(sample.path().join("db").join(name)).unwrap().len() * 8;
        for i in 0..8 {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(sample.path(), copy.path());
            flip(&copy.path().join("db").join(name), (bits / 8) * i + i);
            examine(copy.path(), &mut outcome);
        }
    }
    println!("{names:?}: {outcome:?}");
}

#[test]
fn garbage_is_quarantined_whole_and_reported_once() {
    let dir = sample();
    let garbage: Vec<u8> = (0..1_200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    fs::write(dir.path().join("db/db"), &garbage).unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    let quarantine = store.quarantined().expect("garbage cannot be opened").clone();
    assert_eq!(quarantine.path, dir.path().join("quarantine/0"));
    assert!(quarantine.path.join("REASON").exists());
    // A later version of sled's file, or garbage, may still be of use to somebody.
    assert!(fs::read(quarantine.path.join("db")).unwrap().len() >= garbage.len());
    let epoch = store.take_epoch(Epoch(3)).unwrap();
    put(&store, epoch, b"k", b"v");
    store.sync().unwrap();
    drop(store);
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(store.quarantined(), None);
    assert_eq!(count(&store), 1);
}

#[test]
fn each_quarantine_has_its_own_place() {
    let dir = sample();
    for n in 0..3 {
        fs::write(dir.path().join("db/snap.FFFFFFFFFFFFFFF0"), b"not a snapshot at all").unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        assert_eq!(store.quarantined().unwrap().path, dir.path().join(format!("quarantine/{n}")));
        assert!(store.disk_bytes() > 512 << 10, "what is in quarantine takes room on the disk");
    }
}

#[test]
fn truncated_databases_open() {
    let sample = sample();
    let len = fs::metadata(sample.path().join("db/db")).unwrap().len();
    let mut outcome = Outcome::default();
    for cut in [0, 1, 4096, 300_000, len / 2, len - 1] {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(sample.path(), copy.path());
        fs::OpenOptions::new().write(true).open(copy.path().join("db/db")).unwrap().set_len(cut).unwrap();
        examine(copy.path(), &mut outcome);
    }
    println!("{outcome:?}");
}

#[test]
fn damage_to_the_conf_file_loses_nothing() {
    let sample = sample();
    let conf = Path::new("db/conf");
    let len = fs::metadata(sample.path().join(conf)).unwrap().len();
    let copy = || {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(sample.path(), copy.path());
        copy
    };
    let mut outcome = Outcome::default();
    for cut in [0, 5, len - 1] {
        let copy = copy();
        fs::OpenOptions::new().write(true).open(copy.path().join(conf)).unwrap().set_len(cut).unwrap();
        examine(copy.path(), &mut outcome);
    }
    for bit in (0..len * 8).step_by(5) {
        let copy = copy();
        flip(&copy.path().join(conf), bit);
        examine(copy.path(), &mut outcome);
    }
    assert_eq!((outcome.quarantined, outcome.missing_rows), (0, 0), "{outcome:?}");
}
