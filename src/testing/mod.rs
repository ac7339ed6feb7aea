//! What tests of this crate, and of stores written elsewhere, are built from.
//!
//! Nothing here is meant for production: it trades speed and durability for determinism.

pub mod store_suite;

mod faulty_store;

pub use faulty_store::{Fault, FaultyStore, StoreOp, Survivors};
