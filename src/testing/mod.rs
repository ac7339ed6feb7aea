//! What tests of this crate, and of stores written elsewhere, are built from.
//!
//! Nothing here is meant for production: it trades speed and durability for determinism.

pub mod pair;
pub mod sim;
pub mod store_suite;

mod clock;
mod faulty_disk;
mod faulty_store;
mod scripted_sink;

pub use clock::ManualClock;
pub use faulty_disk::{DiskOp, FaultyDisk};
pub use faulty_store::{Fault, FaultyStore, StoreOp, Survivors};
pub use scripted_sink::{Offer, Reply, ScriptedSink};
