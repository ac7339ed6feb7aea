//! Journal files, runs and stores.

pub mod frame;
mod limits;
mod memory;
#[cfg(feature = "sled")]
mod sled;

pub use memory::MemoryStore;
#[cfg(feature = "sled")]
pub use sled::{Quarantine, SledOptions, SledStore};
