//! What is told to the `metrics` facade, with the feature of that name; nothing otherwise.
//!
//! Durations are told where they happen. Everything else is counted anyway, and told once a second from a snapshot
//! ([`Engine::stats`](crate::Engine::stats)), which costs the path of a message nothing. All handles are made when the engine
//! is built, so there are no more series than `METRICS` lists, and no label ever names a user, a device or a message.

#[cfg(feature = "metrics")]
#[path = "meters/facade.rs"]
mod facade;
#[cfg(feature = "metrics")]
#[path = "meters/table.rs"]
mod table;

#[cfg(feature = "metrics")]
pub(super) use facade::Meters;
#[cfg(feature = "metrics")]
pub use table::{METRICS, Metric, MetricKind};

/// Tells nobody.
#[cfg(not(feature = "metrics"))]
#[derive(Debug, Default)]
pub(super) struct Meters {}

#[cfg(not(feature = "metrics"))]
impl Meters {
    pub(super) fn sent(&self, _nanos: u64, _error: Option<&'static str>) {}

    pub(super) fn processed(&self, _nanos: u64, _panicked: bool) {}

    pub(super) fn committed(&self, _nanos: u64, _records: u64) {}

    pub(super) fn settled(&self, _nanos: u64) {}
}
