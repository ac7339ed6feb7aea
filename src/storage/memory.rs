//! A store in memory: for tests, and for hosts that want no durability.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;

use super::limits;
use crate::ports::{Batch, BatchOp, Flow, Row, Store, StoreError, Visit};
use crate::record::Epoch;

/// An ordered map in memory. Clones are handles to the same map; it is gone with the last of them.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    state: Arc<RwLock<State>>,
}

#[derive(Debug, Default)]
struct State {
    rows: Rows,
    epoch: Epoch,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Store for MemoryStore {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.state.read_recursive().rows.read(key))
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        // Recursive, because the visitor may read and scan while a writer waits.
        self.state.read_recursive().rows.scan(from, to, visit);
        Ok(())
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, StoreError> {
        Ok(self.state.read_recursive().rows.last(from, to))
    }

    fn take_epoch(&self, above: Epoch) -> Result<Epoch, StoreError> {
        let mut state = self.state.write();
        state.epoch = next_epoch(state.epoch, above)?;
        Ok(state.epoch)
    }

    fn apply(&self, epoch: Epoch, batch: Batch) -> Result<(), StoreError> {
        limits::check(&batch)?;
        let mut state = self.state.write();
        check_epoch(epoch, state.epoch)?;
        state.rows.apply(batch);
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn reopen(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn set_aside(&self, _reason: &str) -> Result<(), StoreError> {
        self.state.write().rows = Rows::default();
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

/// The rows of a store that lives in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows(BTreeMap<Vec<u8>, Vec<u8>>);

impl Rows {
    pub(crate) fn read(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }

    pub(crate) fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) {
        for (key, value) in self.range(from, to) {
            if visit(key, Ok(value)) == Flow::Stop {
                return;
            }
        }
    }

    pub(crate) fn last(&self, from: &[u8], to: &[u8]) -> Option<Row> {
        self.range(from, to).next_back().map(|(key, value)| (key.clone(), value.clone()))
    }

    pub(crate) fn apply(&mut self, batch: Batch) {
        for op in batch.into_ops() {
            match op {
                BatchOp::Put(key, value) => self.0.insert(key, value),
                BatchOp::Delete(key) => self.0.remove(&key),
            };
        }
    }

    fn range<'a>(
        &'a self,
        from: &'a [u8],
        to: &'a [u8],
    ) -> impl DoubleEndedIterator<Item = (&'a Vec<u8>, &'a Vec<u8>)> {
        // A map panics on a reversed range; the port says it is empty.
        let to = to.max(from);
        self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)))
    }
}

/// The epoch to give next: above `above` and above all given before.
pub(crate) fn next_epoch(given: Epoch, above: Epoch) -> Result<Epoch, StoreError> {
    let next = Epoch(given.max(above).0.saturating_add(1));
    if next > Epoch::MAX {
        return Err(StoreError::ReadOnly { reason: "all 2^24 epochs are used up".to_owned() });
    }
    Ok(next)
}

/// Refuses a holder that is not the newest owner.
pub(crate) fn check_epoch(held: Epoch, current: Epoch) -> Result<(), StoreError> {
    if held == current { Ok(()) } else { Err(StoreError::Fenced { held, current }) }
}
