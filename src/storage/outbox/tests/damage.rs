//! Damage is named, and everything else still loads.

use super::*;
use crate::ports::{Batch, Row, StoreError, Visit};

/// A store in which one row is damaged.
#[derive(Clone)]
struct Rotten {
    store: MemoryStore,
    key: Vec<u8>,
}

impl Rotten {
    fn check(&self, key: &[u8]) -> Result<(), StoreError> {
        if key == self.key { Err(rows::damaged(key, "rot")) } else { Ok(()) }
    }
}

impl Store for Rotten {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.check(key)?;
        self.store.read(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.store.scan(from, to, &mut |key, value| visit(key, self.check(key).and(value)))
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, StoreError> {
        let row = self.store.last(from, to)?;
        row.map(|row| self.check(&row.0).map(|()| row)).transpose()
    }

    fn take_epoch(&self, above: Epoch) -> Result<Epoch, StoreError> {
        self.store.take_epoch(above)
    }

    fn apply(&self, epoch: Epoch, batch: Batch) -> Result<(), StoreError> {
        self.store.apply(epoch, batch)
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn reopen(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

#[test]
fn each_damaged_chunk_or_body_is_named_and_the_others_load() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let mut all = entries("bob", 0..50, 500);
    all.extend(entries("bob", 50..53, 9000));
    settle(&outbox, opened.epoch, vec![Survivors { entries: all, ..Survivors::default() }], 60);
    let mut keys = Vec::new();
    store
        .scan(&[2], &[4], &mut |key, _| {
            keys.push(key.to_vec());
            Flow::Continue
        })
        .unwrap();
    assert!(keys.len() > 10);
    for key in keys {
        let (outbox, opened) = open(&Rotten { store: store.clone(), key: key.clone() });
        assert!(opened.lost.is_empty());
        let first = match keys::Key::decode(&key) {
            Some(keys::Key::Chunk { seq, .. } | keys::Key::Body { seq, .. }) => seq,
            other => panic!("{other:?}"),
        };
        let found = page(&outbox, "bob", Priority::Normal, 0, &[], usize::MAX);
        if first > Seq::ZERO {
            assert!(found.damaged.iter().any(|(seq, _)| *seq == first), "{first:?} is not named");
        }
        assert!(found.entries.len() > 40 && found.entries.len() < 53);
        let report = outbox.verify(&mut |_| {}).unwrap();
        assert!(report.damage.iter().any(|d| d.user == Some(user("bob")) && d.entry.unwrap().1 == first));
    }
}

#[test]
fn damaged_table_is_taken_from_the_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = Some(dir.path().join("manifest"));
    let store = MemoryStore::new();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let (outbox, opened) = OutboxStore::open(shared, manifest.clone(), Epoch(0), FRESH).unwrap();
    let all = entries("bob", 1..50, 500);
    settle(&outbox, opened.epoch, vec![Survivors { entries: all, ..Survivors::default() }], 60);
    let key = keys::Key::Meta { part: 0 }.encode();
    let mut batch = Batch::new();
    batch.put(key.clone(), b"garbage".to_vec());
    store.apply(opened.epoch, batch).unwrap();
    assert!(matches!(
        OutboxStore::open(Arc::new(store.clone()), None, Epoch(0), FRESH),
        Err(OpenError::Damaged(_))
    ));
    let fresh = Identity { stream: StreamId::from_u128(77), digest_key: 7 };
    let (outbox, opened) = OutboxStore::open(Arc::new(store), manifest.clone(), Epoch(0), fresh).unwrap();
    assert_eq!((opened.identity, opened.settled), (FRESH, Seq::new(60)));
    assert_eq!(places(&outbox, "bob").len(), 49);
}

#[test]
fn an_empty_store_beside_a_manifest_names_what_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = Some(dir.path().join("manifest"));
    let (outbox, opened) =
        OutboxStore::open(Arc::new(MemoryStore::new()), manifest.clone(), Epoch(0), FRESH).unwrap();
    let mut all = entries("bob", 1..50, 500);
    all.extend(entries("al", [55], 1));
    settle(&outbox, opened.epoch, vec![Survivors { entries: all, ..Survivors::default() }], 60);
    let fresh = Identity { stream: StreamId::from_u128(77), digest_key: 7 };
    let (_, opened) =
        OutboxStore::open(Arc::new(MemoryStore::new()), manifest.clone(), Epoch(0), fresh).unwrap();
    assert_eq!(opened.identity, fresh);
    let [loss] = &opened.lost[..] else { panic!("{:?}", opened.lost) };
    assert_eq!((loss.run.entries, loss.run.live), (50, 50));
    assert_eq!(loss.users(), Some((&user("al"), &user("bob"))));
}
