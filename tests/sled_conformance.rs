//! The sled store against the conformance suite of the store port.
#![cfg(all(feature = "sled", feature = "testing"))]

use lastmile::ports::{Batch, Row, Store, StoreError, Visit};
use lastmile::record::Epoch;
use lastmile::storage::SledStore;
use tempfile::TempDir;

/// A store and the directory that goes with it.
struct Temporary {
    store: SledStore,
    _dir: TempDir,
}

impl Temporary {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { store: SledStore::open(dir.path()).unwrap(), _dir: dir }
    }
}

impl Store for Temporary {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.read(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.store.scan(from, to, visit)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, StoreError> {
        self.store.last(from, to)
    }

    fn take_epoch(&self, above: Epoch) -> Result<Epoch, StoreError> {
        self.store.take_epoch(above)
    }

    fn apply(&self, epoch: Epoch, batch: Batch) -> Result<(), StoreError> {
        self.store.apply(epoch, batch)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.store.sync()
    }

    fn reopen(&self) -> Result<(), StoreError> {
        self.store.reopen()
    }

    fn set_aside(&self, reason: &str) -> Result<(), StoreError> {
        self.store.set_aside(reason)
    }

    fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }
}

lastmile::store_suite!(Temporary::new());
