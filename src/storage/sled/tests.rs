//! What can only be seen from inside: failures, the mark they leave, rows that sled hands out damaged.

use super::*;
use crate::ports::MAX_KEY_BYTES;

fn open() -> (tempfile::TempDir, SledStore, Epoch) {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    (dir, store, epoch)
}

fn put(key: &[u8], value: &[u8]) -> Batch {
    let mut batch = Batch::new();
    batch.put(key.to_vec(), value.to_vec());
    batch
}

fn fail(store: &SledStore) {
    store.inner.fail("test", &Failure::Io(io::Error::other("out of luck")));
}

/// Rows in order, a damaged one as its error.
fn rows(store: &SledStore) -> Vec<Result<Row, String>> {
    let mut rows = Vec::new();
    let mut visit = |key: &[u8], value: Result<&[u8], StoreError>| {
        rows.push(value.map(|value| (key.to_vec(), value.to_vec())).map_err(|e| e.to_string()));
        Flow::Continue
    };
    store.scan(b"", &[0xFF; MAX_KEY_BYTES], &mut visit).unwrap();
    rows
}

#[test]
fn first_failure_is_sticky_and_named_until_reopen() {
    let (dir, store, epoch) = open();
    store.apply(epoch, put(b"k", b"v")).unwrap();
    fail(&store);
    store.inner.fail("test", &Failure::Io(io::Error::other("a later one")));
    for refused in [store.apply(epoch, put(b"k", b"w")), store.sync(), store.take_epoch(epoch).map(drop)] {
        match refused {
            Err(StoreError::ReadOnly { reason }) => assert_eq!(reason, "test: out of luck"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(store.read(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    assert!(dir.path().join("SUSPECT").exists());
    store.reopen().unwrap();
    assert!(!dir.path().join("SUSPECT").exists());
    store.apply(epoch, put(b"k", b"w")).unwrap();
    store.sync().unwrap();
    assert_eq!(store.read(b"k").unwrap().as_deref(), Some(&b"w"[..]));
}

#[test]
fn failed_write_is_remembered_by_the_next_process() {
    let (dir, store, epoch) = open();
    store.apply(epoch, put(b"k", b"v")).unwrap();
    store.sync().unwrap();
    fail(&store);
    drop(store);
    assert!(dir.path().join("SUSPECT").exists());
    let store = SledStore::open(dir.path()).unwrap();
    assert!(!dir.path().join("SUSPECT").exists());
    assert_eq!(store.quarantined(), None);
    assert_eq!(rows(&store), [Ok((b"k".to_vec(), b"v".to_vec()))]);
}

#[test]
fn rewriting_the_file_changes_no_byte() {
    let (dir, store, epoch) = open();
    for i in 0..300_u32 {
        store.apply(epoch, put(&i.to_be_bytes(), &[7; 3000])).unwrap();
    }
    store.sync().unwrap();
    let file = dir.path().join("db/db");
    let before = std::fs::read(&file).unwrap();
    store.inner.dir.rewrite_db_file().unwrap();
    assert!(std::fs::read(&file).unwrap() == before);
}

#[test]
fn failed_reopen_keeps_reading_while_a_scan_runs() {
    let (_dir, store, epoch) = open();
    store.apply(epoch, put(b"k", b"v")).unwrap();
    let mut visit = |_: &[u8], _: Result<&[u8], StoreError>| {
        assert!(matches!(store.reopen(), Err(StoreError::ReadOnly { .. })));
        assert!(store.read(b"k").unwrap().is_some());
        Flow::Continue
    };
    store.scan(b"", b"z", &mut visit).unwrap();
    store.apply(epoch, put(b"k", b"w")).unwrap();
}

#[test]
fn reopen_gives_nothing_up_and_heals_when_the_damage_is_gone() {
    let (dir, store, epoch) = open();
    store.apply(epoch, put(b"k", b"v")).unwrap();
    store.sync().unwrap();
    let bad = dir.path().join("db/snap.FFFFFFFFFFFFFFF0");
    std::fs::write(&bad, b"not a snapshot").unwrap();
    assert!(matches!(store.reopen(), Err(StoreError::Corrupt { .. })));
    assert!(store.read(b"k").is_err(), "a row was read from a closed database");
    assert!(!dir.path().join("quarantine/0").exists());
    std::fs::remove_file(bad).unwrap();
    store.reopen().unwrap();
    store.apply(epoch, put(b"l", b"v")).unwrap();
    assert_eq!(rows(&store).len(), 2);
}

#[test]
fn damaged_row_is_an_error_in_its_place_and_the_scan_goes_on() {
    let (_dir, store, epoch) = open();
    for key in [b"a", b"b", b"c"] {
        store.apply(epoch, put(key, b"v")).unwrap();
    }
    let db = store.inner.db().unwrap();
    // A row that came under another key: sound in itself.
    db.insert(&stored_key(b"b"), frame::encode(b"a", b"v")).unwrap();
    let found = rows(&store);
    assert_eq!(found[0], Ok((b"a".to_vec(), b"v".to_vec())));
    assert!(found[1].as_ref().is_err_and(|e| e.starts_with("row 62 is damaged")), "{found:?}");
    assert_eq!(found[2], Ok((b"c".to_vec(), b"v".to_vec())));
    assert!(matches!(store.read(b"b"), Err(StoreError::Damaged { .. })));
    assert!(matches!(store.last(b"a", b"c"), Err(StoreError::Damaged { .. })));
}

#[test]
fn damaged_epoch_row_leaves_the_choice_to_the_owner() {
    let (dir, store, _) = open();
    store.inner.db().unwrap().insert(EPOCH_ROW, b"garbage".to_vec()).unwrap();
    store.sync().unwrap();
    drop(store);
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(store.take_epoch(Epoch(41)).unwrap(), Epoch(42));
}

#[test]
fn sled_is_given_up_only_for_damage() {
    let io = |kind| Failure::from(sled::Error::Io(io::Error::from(kind)));
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::PermissionDenied, io::ErrorKind::Other] {
        assert!(matches!(io(kind), Failure::Io(_)), "{kind}");
    }
    for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidData] {
        assert!(matches!(io(kind), Failure::Damage(_)), "{kind}");
    }
    assert!(matches!(Failure::from(sled::Error::ReportableBug(String::new())), Failure::Damage(_)));
}

#[test]
fn half_written_snapshot_of_a_failed_reopen_is_removed_too() {
    let (dir, store, epoch) = open();
    store.apply(epoch, put(b"k", b"v")).unwrap();
    std::fs::write(dir.path().join("db/snap.FFFFFFFFFFFFFFFF.generating"), b"part").unwrap();
    store.reopen().unwrap();
    assert_eq!(rows(&store).len(), 1);
}

#[test]
fn after_a_panic_of_a_read_nothing_is_written_and_the_next_opening_reads_everything_first() {
    let (dir, store, epoch) = open();
    store.apply(epoch, put(b"k", b"v")).unwrap();
    store.sync().unwrap();
    let error = store.inner.read_failed(Some(b"k"), "read", Failure::Panic("cannot find pid".to_owned()));
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(matches!(store.apply(epoch, put(b"k", b"w")), Err(StoreError::ReadOnly { .. })));
    assert!(dir.path().join("SUSPECT").exists());
    drop(store);
    // It was sound after all.
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!((store.quarantined(), rows(&store).len()), (None, 1));
}

#[test]
fn what_is_set_aside_is_in_quarantine_and_the_store_is_empty_and_takes_writes() {
    let (dir, store, epoch) = open();
    store.apply(epoch, put(b"k", b"v")).unwrap();
    fail(&store);
    store.set_aside("beyond repair").unwrap();
    let quarantine = store.quarantined().unwrap();
    assert_eq!(quarantine.path, dir.path().join("quarantine/0"));
    assert_eq!(std::fs::read_to_string(quarantine.path.join("REASON")).unwrap(), "beyond repair\n");
    assert_eq!(rows(&store).len(), 0);
    let epoch = store.take_epoch(epoch).unwrap();
    store.apply(epoch, put(b"l", b"v")).unwrap();
    store.sync().unwrap();
}
