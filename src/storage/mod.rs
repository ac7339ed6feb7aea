//! Journal files, runs and stores.

pub mod disk;
pub mod journal;
pub mod frame;
pub(crate) mod limits;
pub(crate) mod memory;
#[cfg(feature = "sled")]
mod sled;

pub use memory::MemoryStore;
#[cfg(feature = "sled")]
pub use self::sled::{Quarantine, SledOptions, SledStore};
