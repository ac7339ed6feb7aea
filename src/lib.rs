//! Embedded, offline-first message queue and delivery engine.

#![forbid(unsafe_code)]

pub mod ports;
mod record;
mod time;

#[cfg(feature = "storage")]
pub mod storage;
#[cfg(feature = "testing")]
pub mod testing;

pub use record::{Epoch, Seq};
pub use time::Timestamp;
