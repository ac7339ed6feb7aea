//! What stands between the outbox and its store: a store that panics has damaged data, and is not believed any more.
//!
//! A panic would otherwise end the thread that called, and with it the keeper or an opening. It becomes
//! [`StoreError::Corrupt`]. A panic of ours, in a visitor, is a bug of ours: it goes on upwards, and nothing is blamed on
//! the store for it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

use crate::ports::{Batch, Flow, Row, Store, StoreError, Visit};
use crate::record::Epoch;

/// A store whose panics are errors.
pub(super) struct Shield(Arc<dyn Store>);

impl Shield {
    pub(super) fn over(store: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Self(store))
    }
}

/// Calls the store.
fn call<T>(op: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(op)).unwrap_or_else(|panic| {
        let reason = format!("the store panicked: {}", text_of(&*panic));
        Err(StoreError::Corrupt { reason })
    })
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

impl Store for Shield {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        call(|| self.0.read(key))
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut ours = None;
        let mut visit = |key: &[u8], value: Result<&[u8], StoreError>| {
            catch_unwind(AssertUnwindSafe(|| visit(key, value))).unwrap_or_else(|panic| {
                ours = Some(panic);
                Flow::Stop
            })
        };
        let scanned = call(|| self.0.scan(from, to, &mut visit));
        match ours {
            Some(panic) => resume_unwind(panic),
            None => scanned,
        }
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, StoreError> {
        call(|| self.0.last(from, to))
    }

    fn take_epoch(&self, above: Epoch) -> Result<Epoch, StoreError> {
        call(|| self.0.take_epoch(above))
    }

    fn apply(&self, epoch: Epoch, batch: Batch) -> Result<(), StoreError> {
        call(|| self.0.apply(epoch, batch))
    }

    fn sync(&self) -> Result<(), StoreError> {
        call(|| self.0.sync())
    }

    fn reopen(&self) -> Result<(), StoreError> {
        call(|| self.0.reopen())
    }

    fn set_aside(&self, reason: &str) -> Result<(), StoreError> {
        call(|| self.0.set_aside(reason))
    }

    fn disk_bytes(&self) -> u64 {
        self.0.disk_bytes()
    }

    fn home(&self) -> Option<&Path> {
        self.0.home()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStore;

    #[test]
    fn a_panic_in_a_visitor_is_ours_and_goes_on_upwards() {
        let store = MemoryStore::new();
        let epoch = store.take_epoch(Epoch(0)).unwrap();
        let mut batch = Batch::new();
        batch.put(b"k".to_vec(), b"v".to_vec());
        store.apply(epoch, batch).unwrap();
        let shield = Shield::over(Arc::new(store));
        let scan = || shield.scan(b"", b"z", &mut |_, _| panic!("a bug"));
        let panic = catch_unwind(AssertUnwindSafe(scan)).unwrap_err();
        assert_eq!(text_of(&*panic), "a bug");
    }
}
