//! What tests of this crate, and of stores written elsewhere, are built from.
//!
//! Nothing here is meant for production: it trades speed and durability for determinism.

pub mod pair;
pub mod sim;
pub mod store_suite;
#[cfg(feature = "runtime")]
pub mod transport_suite;

mod clock;
mod faulty_disk;
mod faulty_store;
#[cfg(feature = "runtime")]
mod network;
mod scripted_sink;

#[cfg(feature = "runtime")]
pub use crate::runtime::VirtualClock;
pub use clock::ManualClock;
pub use faulty_disk::{DiskOp, FaultyDisk};
pub use faulty_store::{Fault, FaultyStore, StoreOp, Survivors};
#[cfg(feature = "runtime")]
pub use network::{
    Network, NetworkConnector, NetworkReader, NetworkTransport, NetworkWeather, NetworkWriter, VirtualTime,
};
pub use scripted_sink::{Offer, Reply, ScriptedSink};
