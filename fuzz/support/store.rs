//! A store in memory of which some rows cannot be read.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};

use lastmile::ports::{Batch, BatchOp, Row, Store, StoreError, Visit};
use lastmile::record::Epoch;
use lastmile::storage::MemoryStore;

/// The store. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Rotten {
    store: MemoryStore,
    rotten: Arc<RwLock<BTreeSet<Vec<u8>>>>,
}

impl Rotten {
    /// From now on, and until it is written again, a row cannot be read.
    pub fn rot(&self, key: &[u8]) {
        self.rotten.write().expect("nobody panics with the lock").insert(key.to_vec());
    }

    fn check(&self, key: &[u8]) -> Result<(), StoreError> {
        if !self.rotten.read().expect("nobody panics with the lock").contains(key) {
            return Ok(());
        }
        let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
        Err(StoreError::Damaged { key, reason: "checksum does not match".to_owned() })
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

    fn set_aside(&self, reason: &str) -> Result<(), StoreError> {
        self.rotten.write().expect("nobody panics with the lock").clear();
        self.store.set_aside(reason)
    }

    fn take_epoch(&self, above: Epoch) -> Result<Epoch, StoreError> {
        self.store.take_epoch(above)
    }

    fn apply(&self, epoch: Epoch, batch: Batch) -> Result<(), StoreError> {
        let keys: Vec<_> = batch.ops().iter().map(key_of).collect();
        self.store.apply(epoch, batch)?;
        let mut rotten = self.rotten.write().expect("nobody panics with the lock");
        rotten.retain(|key| !keys.contains(key));
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.store.sync()
    }

    fn reopen(&self) -> Result<(), StoreError> {
        self.store.reopen()
    }

    fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }
}

fn key_of(op: &BatchOp) -> Vec<u8> {
    match op {
        BatchOp::Put(key, _) | BatchOp::Delete(key) => key.clone(),
    }
}
