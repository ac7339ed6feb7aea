//! The sled store's directory: locks, formats, permissions, restarts, sizes.
#![cfg(feature = "sled")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{copy_dir, count, put, tree_of};
use lastmile::ports::{Batch, MAX_VALUE_BYTES, Store, StoreError};
use lastmile::record::Epoch;
use lastmile::storage::SledStore;

#[test]
fn second_owner_is_told_which_directory_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let first = SledStore::open(dir.path()).unwrap();
    match SledStore::open(dir.path()) {
        Err(StoreError::Locked { dir: named }) => assert_eq!(Path::new(&named), dir.path()),
        other => panic!("{other:?}"),
    }
    let epoch = first.take_epoch(Epoch(0)).unwrap();
    put(&first, epoch, b"k", b"v");
}

#[test]
fn directory_is_free_when_the_last_handle_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=20 {
        let store = SledStore::open(dir.path()).unwrap();
        let clone = store.clone();
        drop(store);
        let epoch = clone.take_epoch(Epoch(0)).unwrap();
        assert_eq!(epoch, Epoch(round), "an epoch was forgotten or skipped");
        put(&clone, epoch, &round.to_be_bytes(), b"v");
        assert_eq!(count(&clone), round as usize);
    }
}

#[test]
fn newer_format_is_refused_and_left_byte_for_byte() {
    for with_database in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        if with_database {
            let store = SledStore::open(dir.path()).unwrap();
            let epoch = store.take_epoch(Epoch(0)).unwrap();
            put(&store, epoch, b"k", b"v");
            fs::write(dir.path().join("db/snap.FFFF.generating"), b"of the newer version").unwrap();
        }
        fs::write(dir.path().join("FORMAT"), "lastmile store format 2\n").unwrap();
        let before = tree_of(dir.path());
        match SledStore::open(dir.path()) {
            Err(StoreError::FormatTooNew { found: 2, supported: 1 }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(tree_of(dir.path()), before);
    }
}

#[test]
fn format_that_names_no_version_is_refused_and_left_alone() {
    for text in ["", "lastmile store format 0\n", "lastmile store format 99999999\n", "something else\n"] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("FORMAT"), text).unwrap();
        let before = tree_of(dir.path());
        assert!(
            matches!(SledStore::open(dir.path()), Err(StoreError::Io { op: "read FORMAT", .. })),
            "{text}"
        );
        assert_eq!(tree_of(dir.path()), before);
    }
}

#[test]
fn format_is_plain_text() {
    let dir = tempfile::tempdir().unwrap();
    drop(SledStore::open(dir.path()).unwrap());
    assert_eq!(fs::read_to_string(dir.path().join("FORMAT")).unwrap(), "lastmile store format 1\n");
}

#[test]
fn half_written_snapshot_does_not_keep_synced_rows_from_opening() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    for i in 0..200_u32 {
        put(&store, epoch, &i.to_be_bytes(), &[7; 1000]);
    }
    store.sync().unwrap();
    drop(store);
    fs::write(dir.path().join("db/snap.FFFFFFFFFFFFFFFF.generating"), [0; 40]).unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(store.quarantined(), None);
    assert_eq!(count(&store), 200);
}

#[test]
fn copy_taken_right_after_a_sync_holds_all_that_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    for round in 0..8_u32 {
        for i in 0..50_u32 {
            put(&store, epoch, &(round * 50 + i).to_be_bytes(), &[round as u8; 700]);
        }
        store.sync().unwrap();
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        // Not synced, so it may be there or not; the copy was taken before.
        put(&store, epoch, b"later", b"v");
        let copy = SledStore::open(copy.path()).unwrap();
        assert_eq!(copy.quarantined(), None);
        for i in 0..(round + 1) * 50 {
            let value = copy.read(&i.to_be_bytes()).unwrap();
            assert_eq!(value, Some(vec![(i / 50) as u8; 700]), "row {i} after round {round}");
        }
        let newer = copy.take_epoch(Epoch(0)).unwrap();
        assert!(newer > epoch, "the copy forgot the epoch");
    }
}

#[test]
fn no_blob_file_appears_with_the_largest_values() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    let blobs = || fs::read_dir(dir.path().join("db/blobs")).unwrap().count();
    for round in 0..3_u32 {
        for i in 0..150_u32 {
            let mut batch = Batch::new();
            for j in 0..16_u32 {
                // Long keys too: what counts for sled is the size of a whole page.
                let mut key = vec![b'k'; 90];
                key.extend((i * 16 + j).wrapping_mul(2_654_435_761).to_be_bytes());
                batch.put(key, vec![round as u8; MAX_VALUE_BYTES]);
            }
            store.apply(epoch, batch).unwrap();
        }
        store.sync().unwrap();
        assert_eq!(blobs(), 0, "round {round}");
    }
    drop(store);
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!((count(&store), blobs()), (2400, 0));
}

#[cfg(unix)]
#[test]
fn files_are_for_their_owner_alone() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("new/store");
    let store = SledStore::open(&dir).unwrap();
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    put(&store, epoch, b"k", b"v");
    drop(store);
    // Once more, because sled writes its first snapshot when it opens a second time.
    let _store = SledStore::open(&dir).unwrap();
    let mut modes = BTreeMap::new();
    collect_modes(&dir, &mut modes);
    assert!(modes.keys().any(|path| path.to_string_lossy().contains("snap.")));
    for (path, (is_dir, mode)) in modes {
        assert_eq!(mode, if is_dir { 0o700 } else { 0o600 }, "{}", path.display());
    }
}

#[cfg(unix)]
fn collect_modes(path: &Path, modes: &mut BTreeMap<PathBuf, (bool, u32)>) {
    use std::os::unix::fs::PermissionsExt;
    let meta = fs::metadata(path).unwrap();
    modes.insert(path.to_owned(), (meta.is_dir(), meta.permissions().mode() & 0o777));
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect_modes(&entry.unwrap().path(), modes);
        }
    }
}

#[test]
fn journal_directory_is_there_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(store.journal_dir(), dir.path().join("journal"));
    fs::write(store.journal_dir().join("segment"), b"bytes").unwrap();
    drop(store);
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(fs::read(store.journal_dir().join("segment")).unwrap(), b"bytes");
}

#[test]
fn reopening_waits_for_a_scan_and_readers_never_miss_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    for i in 0..500_u32 {
        put(&store, epoch, &i.to_be_bytes(), b"v");
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(count(&store), 500);
            }
        });
        for _ in 0..5 {
            store.reopen().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn disk_bytes_grow_with_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    let before = store.disk_bytes();
    for i in 0..1000_u32 {
        put(&store, epoch, &i.to_be_bytes(), &[1; 2000]);
    }
    store.sync().unwrap();
    assert!(store.disk_bytes() >= before + 2_000_000);
}
