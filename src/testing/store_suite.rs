//! The conformance suite of the store port: what [`Store`] asks for *to ensure correctness*, as tests.
//!
//! A store's own test file runs it with one line, which makes one test of each case:
//!
//! ```
//! # use lastmile::storage::MemoryStore;
//! lastmile::store_suite!(MemoryStore::new());
//! # fn main() {}
//! ```
//!
//! The expression makes a new, empty store each time. [`store_suite()`] runs all cases in one call
//! instead. What a power cut leaves cannot be tested through the port; a store proves that on its own.

use crate::ports::{Batch, Flow, MAX_BATCH_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, Store, StoreError};
use crate::record::Epoch;

/// Makes a test of each case of the suite for the store that the expression makes.
#[macro_export]
macro_rules! store_suite {
    ($make:expr) => {
        $crate::store_suite!(@cases $make;
            values_come_back_as_they_were_put
            keys_of_any_bytes_are_distinct
            scan_is_in_key_order_within_its_bounds
            scan_stops_when_told
            scan_may_read_and_scan_inside
            last_is_the_greatest_row_of_the_range
            later_operations_of_a_batch_win
            refused_batch_changes_nothing
            limits_are_exact
            newer_owner_fences_older_ones
            epochs_never_repeat
            racing_owners_leave_one_winner
            reopen_keeps_everything
            handed_out_rows_survive_many_batches
        );
    };
    (@cases $make:expr; $($case:ident)*) => {
        $(#[test]
        fn $case() {
            $crate::testing::store_suite::$case(&$make);
        })*
    };
}

/// Runs every case against new stores. `make` must return an empty store each time.
///
/// # Panics
/// When the store breaks the port's contract; the message says where.
pub fn store_suite<S: Store>(make: impl Fn() -> S) {
    values_come_back_as_they_were_put(&make());
    keys_of_any_bytes_are_distinct(&make());
    scan_is_in_key_order_within_its_bounds(&make());
    scan_stops_when_told(&make());
    scan_may_read_and_scan_inside(&make());
    last_is_the_greatest_row_of_the_range(&make());
    later_operations_of_a_batch_win(&make());
    refused_batch_changes_nothing(&make());
    limits_are_exact(&make());
    newer_owner_fences_older_ones(&make());
    epochs_never_repeat(&make());
    racing_owners_leave_one_winner(&make());
    reopen_keeps_everything(&make());
    handed_out_rows_survive_many_batches(&make());
}

/// Ids and keys that have broken other stores: empty, NUL, 0xFF, separators, prefixes of each other, the longest.
fn awkward_keys() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = [
        &b""[..],
        b"\0",
        b"\0\0",
        b"\0epoch",
        b"\x01",
        b"\x01\0",
        b"a",
        b"a\0",
        b"a\0b",
        b"a/",
        b"a/b",
        b"a\xFF",
        b"b",
        b"\xFE\xFF",
        b"\xFF",
        b"\xFF\0",
        b"\xFF\xFF",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    keys.extend([0, b'k', 0xFF].map(|byte| vec![byte; MAX_KEY_BYTES]));
    keys.sort();
    keys
}

/// Greater than every key.
fn end() -> Vec<u8> {
    vec![0xFF; MAX_KEY_BYTES + 1]
}

fn owner(store: &impl Store) -> Epoch {
    store.take_epoch(Epoch(0)).expect("a new store gives an epoch")
}

fn put(store: &impl Store, epoch: Epoch, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    batch.put(key.to_vec(), value.to_vec());
    store.apply(epoch, batch).expect("a small batch is applied");
}

fn keys_between(store: &impl Store, from: &[u8], to: &[u8]) -> Vec<Vec<u8>> {
    rows_between(store, from, to).into_iter().map(|(key, _)| key).collect()
}

fn rows_between(store: &impl Store, from: &[u8], to: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let mut visit = |key: &[u8], value: Result<&[u8], StoreError>| {
        rows.push((key.to_vec(), value.expect("a sound row").to_vec()));
        Flow::Continue
    };
    store.scan(from, to, &mut visit).expect("the scan runs");
    rows
}

/// `read` sees every batch applied before it, and values are not changed.
///
/// # Panics
/// When it is not so.
pub fn values_come_back_as_they_were_put(store: &impl Store) {
    let epoch = owner(store);
    assert_eq!(store.read(b"k").unwrap(), None);
    for value in [&b""[..], b"\0", b"text", &[0xFF; MAX_VALUE_BYTES]] {
        put(store, epoch, b"k", value);
        assert_eq!(store.read(b"k").unwrap().as_deref(), Some(value));
    }
    let mut batch = Batch::new();
    batch.delete(b"k".to_vec());
    batch.delete(b"never there".to_vec());
    store.apply(epoch, batch).expect("removing what is not there is no error");
    assert_eq!(store.read(b"k").unwrap(), None);
}

/// No key reaches another, whatever its bytes, and none of the store's own rows shows.
///
/// # Panics
/// When it is not so.
pub fn keys_of_any_bytes_are_distinct(store: &impl Store) {
    let epoch = owner(store);
    let keys = awkward_keys();
    assert_eq!(keys_between(store, b"", &end()), Vec::<Vec<u8>>::new(), "an empty store shows rows");
    for key in &keys {
        assert_eq!(store.read(key).unwrap(), None, "{key:?} is there before it is put");
        let value = [b"value of ", &key[..]].concat();
        put(store, epoch, key, &value);
    }
    for key in &keys {
        assert_eq!(store.read(key).unwrap(), Some([b"value of ", &key[..]].concat()), "{key:?}");
    }
    assert_eq!(keys_between(store, b"", &end()), keys);
    for (i, key) in keys.iter().enumerate() {
        let mut batch = Batch::new();
        batch.delete(key.clone());
        store.apply(epoch, batch).unwrap();
        assert_eq!(keys_between(store, b"", &end()), keys[i + 1..], "removing {key:?} removed others");
    }
}

/// A scan hands over exactly the rows of `from <= key < to`, in order, for every pair of bounds.
///
/// # Panics
/// When it is not so.
pub fn scan_is_in_key_order_within_its_bounds(store: &impl Store) {
    let epoch = owner(store);
    let keys = awkward_keys();
    for key in keys.iter().rev() {
        put(store, epoch, key, key);
    }
    let mut bounds = keys.clone();
    bounds.extend([b"0".to_vec(), b"a\0a".to_vec(), b"zz".to_vec(), end()]);
    for from in &bounds {
        for to in &bounds {
            let expected: Vec<_> = keys.iter().filter(|key| *key >= from && *key < to).cloned().collect();
            assert_eq!(keys_between(store, from, to), expected, "from {from:?} to {to:?}");
        }
    }
}

/// A visitor that says stop gets no other row.
///
/// # Panics
/// When it is not so.
pub fn scan_stops_when_told(store: &impl Store) {
    let epoch = owner(store);
    for i in 0..10_u8 {
        put(store, epoch, &[i], b"v");
    }
    for wanted in 1..=10_u8 {
        let mut seen = Vec::new();
        let mut visit = |key: &[u8], _: Result<&[u8], StoreError>| {
            seen.push(key[0]);
            if seen.len() == usize::from(wanted) { Flow::Stop } else { Flow::Continue }
        };
        store.scan(b"", &end(), &mut visit).unwrap();
        assert_eq!(seen, (0..wanted).collect::<Vec<_>>());
    }
}

/// A visitor may call `read`, `scan` and `last`, also while another thread waits to write.
///
/// # Panics
/// When it is not so.
pub fn scan_may_read_and_scan_inside(store: &impl Store) {
    let epoch = owner(store);
    put(store, epoch, b"a", b"1");
    put(store, epoch, b"b", b"2");
    let mut seen = 0;
    std::thread::scope(|scope| {
        let mut writer = None;
        let mut visit = |key: &[u8], _: Result<&[u8], StoreError>| {
            writer.get_or_insert_with(|| scope.spawn(|| put(store, epoch, b"z", b"3")));
            // The writer should be waiting by now; when it is not, less is tested but nothing fails.
            std::thread::sleep(std::time::Duration::from_millis(30));
            assert!(store.read(key).unwrap().is_some());
            assert_eq!(keys_between(store, b"a", b"c"), [b"a".to_vec(), b"b".to_vec()]);
            assert!(store.last(b"a", b"c").unwrap().is_some());
            seen += 1;
            Flow::Continue
        };
        store.scan(b"a", b"c", &mut visit).unwrap();
    });
    assert_eq!(seen, 2);
    assert!(store.read(b"z").unwrap().is_some());
}

/// `last` finds the greatest row within the bounds, for every pair of them.
///
/// # Panics
/// When it is not so.
pub fn last_is_the_greatest_row_of_the_range(store: &impl Store) {
    let epoch = owner(store);
    assert_eq!(store.last(b"", &end()).unwrap(), None);
    let keys = awkward_keys();
    for key in &keys {
        put(store, epoch, key, b"v");
    }
    let mut bounds = keys.clone();
    bounds.push(end());
    for from in &bounds {
        for to in &bounds {
            let expected = keys.iter().rfind(|key| *key >= from && *key < to);
            let found = store.last(from, to).unwrap().map(|(key, _)| key);
            assert_eq!(found.as_ref(), expected, "from {from:?} to {to:?}");
        }
    }
}

/// Within a batch the later operation on a key wins, put or delete.
///
/// # Panics
/// When it is not so.
pub fn later_operations_of_a_batch_win(store: &impl Store) {
    let epoch = owner(store);
    put(store, epoch, b"deleted", b"old");
    let mut batch = Batch::new();
    batch.put(b"k".to_vec(), b"1".to_vec());
    batch.put(b"k".to_vec(), b"2".to_vec());
    batch.put(b"gone".to_vec(), b"1".to_vec());
    batch.delete(b"gone".to_vec());
    batch.delete(b"back".to_vec());
    batch.put(b"back".to_vec(), b"1".to_vec());
    batch.delete(b"deleted".to_vec());
    store.apply(epoch, batch).unwrap();
    let expected = [(b"back".to_vec(), b"1".to_vec()), (b"k".to_vec(), b"2".to_vec())];
    assert_eq!(rows_between(store, b"", &end()), expected);
    store.apply(epoch, Batch::new()).expect("an empty batch is applied");
    assert_eq!(rows_between(store, b"", &end()), expected);
}

/// A batch that is refused, for its size or its epoch, leaves every row as it was.
///
/// # Panics
/// When it is not so.
pub fn refused_batch_changes_nothing(store: &impl Store) {
    let epoch = owner(store);
    put(store, epoch, b"a", b"1");
    let mut batch = Batch::new();
    batch.put(b"b".to_vec(), b"2".to_vec());
    batch.delete(b"a".to_vec());
    let mut too_large = batch.clone();
    too_large.put(b"c".to_vec(), vec![0; MAX_VALUE_BYTES + 1]);
    assert!(matches!(store.apply(epoch, too_large), Err(StoreError::TooLarge { .. })));
    let newer = store.take_epoch(epoch).unwrap();
    assert!(matches!(store.apply(epoch, batch), Err(StoreError::Fenced { .. })));
    assert_eq!(rows_between(store, b"", &end()), [(b"a".to_vec(), b"1".to_vec())]);
    put(store, newer, b"a", b"2");
}

/// Keys, values and batches are taken up to their limit and refused above it.
///
/// # Panics
/// When it is not so.
pub fn limits_are_exact(store: &impl Store) {
    let epoch = owner(store);
    let refused = |batch: Batch| match store.apply(epoch, batch) {
        Ok(()) => None,
        Err(StoreError::TooLarge { what, .. }) => Some(what),
        Err(other) => panic!("{other}"),
    };
    for (over, key_bytes) in [(false, MAX_KEY_BYTES - 1), (false, MAX_KEY_BYTES), (true, MAX_KEY_BYTES + 1)] {
        let (mut puts, mut deletes) = (Batch::new(), Batch::new());
        puts.put(vec![7; key_bytes], Vec::new());
        deletes.delete(vec![7; key_bytes]);
        assert_eq!(refused(puts), over.then_some("key"), "put of a key of {key_bytes}");
        assert_eq!(refused(deletes), over.then_some("key"), "delete of a key of {key_bytes}");
    }
    for bytes in [MAX_VALUE_BYTES - 1, MAX_VALUE_BYTES, MAX_VALUE_BYTES + 1] {
        let mut batch = Batch::new();
        batch.put(b"v".to_vec(), vec![7; bytes]);
        assert_eq!(refused(batch), (bytes > MAX_VALUE_BYTES).then_some("value"), "value of {bytes}");
    }
    for bytes in [MAX_BATCH_BYTES - 1, MAX_BATCH_BYTES, MAX_BATCH_BYTES + 1] {
        let over = (bytes > MAX_BATCH_BYTES).then_some("batch");
        assert_eq!(refused(batch_of(bytes)), over, "batch of {bytes}");
    }
}

/// A batch of exactly so many bytes, in values below their limit.
fn batch_of(bytes: usize) -> Batch {
    let mut batch = Batch::new();
    for i in 0_u16.. {
        let left = bytes - batch.bytes();
        if left == 0 {
            break;
        }
        let key = i.to_be_bytes().to_vec();
        // Never leave less than a key for the last row.
        let value = if left > 3000 { 2000 } else { left - key.len() };
        batch.put(key, vec![1; value]);
    }
    batch
}

/// From `take_epoch` on, all other epochs are refused, and the refusal names both.
///
/// # Panics
/// When it is not so.
pub fn newer_owner_fences_older_ones(store: &impl Store) {
    let old = owner(store);
    put(store, old, b"k", b"old");
    let new = store.take_epoch(old).unwrap();
    let mut late = Batch::new();
    late.put(b"k".to_vec(), b"late".to_vec());
    match store.apply(old, late.clone()) {
        Err(StoreError::Fenced { held, current }) => assert_eq!((held, current), (old, new)),
        other => panic!("{other:?} instead of Fenced"),
    }
    put(store, new, b"k", b"new");
    store.reopen().expect("a sound store reopens");
    assert!(matches!(store.apply(old, late), Err(StoreError::Fenced { .. })), "reopen forgot the fence");
    put(store, new, b"k", b"newer");
    assert_eq!(store.read(b"k").unwrap().as_deref(), Some(&b"newer"[..]));
}

/// Each epoch is above `above` and above all given before; the last one is an error, not a repetition.
///
/// # Panics
/// When it is not so.
pub fn epochs_never_repeat(store: &impl Store) {
    let mut newest = Epoch(0);
    for above in [Epoch(0), Epoch(0), Epoch(100), Epoch(7), Epoch(0)] {
        let given = store.take_epoch(above).unwrap();
        assert!(given > above && given > newest, "{given:?} after {newest:?}, above {above:?}");
        newest = given;
        store.reopen().unwrap();
    }
    let last = store.take_epoch(Epoch(Epoch::MAX.0 - 1)).unwrap();
    assert_eq!(last, Epoch::MAX);
    assert!(store.take_epoch(Epoch(0)).is_err(), "an epoch above the greatest was given");
    put(store, last, b"k", b"v");
}

/// However owners race, each epoch is given once, and no write of an older owner lands behind a newer one's.
///
/// # Panics
/// When it is not so.
pub fn racing_owners_leave_one_winner(store: &impl Store) {
    let race = || {
        let mut given = Vec::new();
        let mut seen = Vec::new();
        for _ in 0..5 {
            let epoch = store.take_epoch(Epoch(0)).unwrap();
            given.push(epoch);
            for _ in 0..5 {
                let mut batch = Batch::new();
                batch.put(b"winner".to_vec(), epoch.0.to_be_bytes().to_vec());
                match store.apply(epoch, batch) {
                    Ok(()) => {}
                    Err(StoreError::Fenced { current, .. }) => assert!(current > epoch),
                    Err(other) => panic!("{other}"),
                }
                let newest = store.read(b"winner").unwrap().unwrap_or_default();
                assert!(newest >= seen, "an older owner wrote {newest:?} over {seen:?}");
                seen = newest;
            }
        }
        given
    };
    let mut all = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..4).map(|_| scope.spawn(race)).collect();
        racers.into_iter().flat_map(|racer| racer.join().expect("no racer panics")).collect::<Vec<_>>()
    });
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 20, "an epoch was given twice");
}

/// Reopening a sound store keeps what was synced, and it stays writable.
///
/// # Panics
/// When it is not so.
pub fn reopen_keeps_everything(store: &impl Store) {
    let epoch = owner(store);
    for i in 0..100_u32 {
        put(store, epoch, &i.to_be_bytes(), &i.to_le_bytes());
    }
    store.sync().unwrap();
    let before = rows_between(store, b"", &end());
    for _ in 0..3 {
        store.reopen().unwrap();
        assert_eq!(rows_between(store, b"", &end()), before);
    }
    put(store, epoch, b"more", b"v");
    store.sync().unwrap();
    assert_eq!(rows_between(store, b"", &end()).len(), 101);
}

/// Many full batches, written, overwritten and thinned out, leave exactly what they should.
///
/// # Panics
/// When it is not so.
pub fn handed_out_rows_survive_many_batches(store: &impl Store) {
    let epoch = owner(store);
    let mut expected = std::collections::BTreeMap::new();
    for round in 0..40_u32 {
        let mut batch = Batch::new();
        for i in 0..16_u32 {
            // An odd stride, so that rounds overwrite parts of each other in another order.
            let id = (round * 7 + i * 13) % 200;
            let key = id.to_be_bytes().to_vec();
            if (round + i) % 5 == 0 {
                expected.remove(&key);
                batch.delete(key);
            } else {
                let value = vec![round as u8; MAX_VALUE_BYTES - (id as usize)];
                expected.insert(key.clone(), value.clone());
                batch.put(key, value);
            }
        }
        store.apply(epoch, batch).unwrap();
    }
    store.sync().unwrap();
    assert_eq!(rows_between(store, b"", &end()), expected.into_iter().collect::<Vec<_>>());
}

#[cfg(test)]
mod tests {
    mod memory {
        crate::store_suite!(crate::storage::MemoryStore::new());
    }
    mod faulty {
        crate::store_suite!(crate::testing::FaultyStore::new());
    }

    #[test]
    fn one_call_runs_all_cases() {
        super::store_suite(crate::storage::MemoryStore::new);
    }
}
