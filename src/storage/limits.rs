//! The limits of the store port, checked the same way by every store of this crate.

use crate::ports::{Batch, BatchOp, MAX_BATCH_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, StoreError};

/// Refuses a batch that breaks a limit, before anything is changed.
pub(crate) fn check(batch: &Batch) -> Result<(), StoreError> {
    at_most("batch", batch.bytes(), MAX_BATCH_BYTES)?;
    for op in batch.ops() {
        match op {
            BatchOp::Put(key, value) => {
                at_most("key", key.len(), MAX_KEY_BYTES)?;
                at_most("value", value.len(), MAX_VALUE_BYTES)?;
            }
            BatchOp::Delete(key) => at_most("key", key.len(), MAX_KEY_BYTES)?,
        }
    }
    Ok(())
}

fn at_most(what: &'static str, bytes: usize, max: usize) -> Result<(), StoreError> {
    if bytes > max { Err(StoreError::TooLarge { what, bytes, max }) } else { Ok(()) }
}
