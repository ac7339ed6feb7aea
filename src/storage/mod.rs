//! Journal files, runs and stores.

pub mod disk;
pub mod frame;
pub mod journal;
pub(crate) mod limits;
pub(crate) mod memory;
pub mod outbox;
#[cfg(feature = "encryption")]
mod seal;
#[cfg(feature = "sled")]
mod sled;

#[cfg(feature = "sled")]
pub use self::sled::{Quarantine, SledOptions, SledStore};
pub use memory::MemoryStore;
#[cfg(feature = "encryption")]
pub use seal::cipher;
