//! The series of one engine, and the task that tells what is counted.

use core::fmt;
use core::time::Duration;
use std::sync::Weak;

use hashbrown::HashMap;
use metrics::{Counter, Gauge, Histogram, Label};
use parking_lot::Mutex;

use super::table::{self, METRICS, Metric, MetricKind, Read};
use crate::runtime::engine::{Engine, Inner};
use crate::runtime::stats::Stats;

/// How often a snapshot is told.
const INTERVAL: Duration = Duration::from_secs(1);

/// The series of one engine, in the recorder that was there when it was built.
pub(in crate::runtime) struct Meters {
    /// By the kind of error; the empty one is success.
    sent: HashMap<&'static str, Histogram>,
    processed: Histogram,
    panicked: Histogram,
    commit: Histogram,
    group: Histogram,
    settle: Histogram,
    gauges: Vec<(Gauge, Read)>,
    counters: Vec<(Counter, Read)>,
    /// What was told of the counters. Increments, so that engines which share a recorder add up.
    told: Mutex<Vec<u64>>,
}

impl Default for Meters {
    fn default() -> Self {
        METRICS.iter().for_each(describe);
        let sent = table::SEND_ERRORS.iter().map(|kind| {
            let error = (!kind.is_empty()).then_some(*kind);
            (*kind, metrics::histogram!(table::OPERATION, operation("send", error)))
        });
        let process = |error| metrics::histogram!(table::PROCESS, operation("process", error));
        let (mut gauges, mut counters) = (Vec::new(), Vec::new());
        for metric in METRICS {
            for (labels, read) in table::series(metric.name) {
                let labels: Vec<_> =
                    labels.into_iter().map(|(key, value)| Label::from_static_parts(key, value)).collect();
                match metric.kind {
                    MetricKind::Gauge => gauges.push((metrics::gauge!(metric.name, labels), read)),
                    MetricKind::Counter => counters.push((metrics::counter!(metric.name, labels), read)),
                    MetricKind::Histogram => {}
                }
            }
        }
        let told = Mutex::new(vec![0; counters.len()]);
        Self {
            sent: sent.collect(),
            processed: process(None),
            panicked: process(Some("panic")),
            commit: metrics::histogram!(table::COMMIT),
            group: metrics::histogram!(table::GROUP),
            settle: metrics::histogram!(table::SETTLE),
            gauges,
            counters,
            told,
        }
    }
}

impl Meters {
    /// A `send` has returned.
    pub(in crate::runtime) fn sent(&self, nanos: u64, error: Option<&'static str>) {
        let known = self.sent.get(error.unwrap_or_default());
        if let Some(histogram) = known.or_else(|| self.sent.get(table::OTHER)) {
            histogram.record(seconds(nanos));
        }
    }

    /// A sink's code has returned, or panicked.
    pub(in crate::runtime) fn processed(&self, nanos: u64, panicked: bool) {
        let histogram = if panicked { &self.panicked } else { &self.processed };
        histogram.record(seconds(nanos));
    }

    /// A group is durable.
    pub(in crate::runtime) fn committed(&self, nanos: u64, records: u64) {
        self.commit.record(seconds(nanos));
        self.group.record(records as f64);
    }

    /// A settlement is durable.
    pub(in crate::runtime) fn settled(&self, nanos: u64) {
        self.settle.record(seconds(nanos));
    }

    /// Tells a snapshot.
    pub(in crate::runtime) fn report(&self, stats: &Stats) {
        self.gauges.iter().for_each(|(gauge, read)| gauge.set(read(stats)));
        for ((counter, read), told) in self.counters.iter().zip(self.told.lock().iter_mut()) {
            // Counts of late confirmations go back by one: what was told stays, and the next ones are not told.
            let now = read(stats) as u64;
            counter.increment(now.saturating_sub(*told));
            *told = now.max(*told);
        }
    }

    /// What is durable was counted in earlier lives already.
    pub(in crate::runtime) fn begin_from(&self, stats: &Stats) {
        for ((_, read), told) in self.counters.iter().zip(self.told.lock().iter_mut()) {
            *told = read(stats) as u64;
        }
    }

    /// Tells a snapshot now and then, until the engine is gone.
    pub(in crate::runtime) async fn run(engine: Weak<Inner>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let Some(inner) = engine.upgrade() else { return };
            if (Engine { inner }).report_metrics().await.is_err() {
                return;
            }
        }
    }
}

impl Engine {
    /// Tells the recorder what the engine counts ([`METRICS`]), now. It is told once a second anyway; a host that is scraped
    /// may want it to be newer. The recorder is the one that was installed when the engine was built.
    ///
    /// # Errors
    /// [`Closed`](crate::Closed) after a shutdown. Nothing was told.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn report_metrics(&self) -> Result<(), crate::Closed> {
        let stats = self.stats().await?;
        self.inner.meters.report(&stats);
        Ok(())
    }
}

fn describe(metric: &Metric) {
    match metric.kind {
        MetricKind::Counter => metrics::describe_counter!(metric.name, metric.unit, metric.help),
        MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.unit, metric.help),
        MetricKind::Histogram => metrics::describe_histogram!(metric.name, metric.unit, metric.help),
    }
}

fn operation(name: &'static str, error: Option<&'static str>) -> Vec<Label> {
    let labels =
        [Some(table::SYSTEM), Some(("messaging.operation.name", name)), error.map(|e| ("error.type", e))];
    labels.into_iter().flatten().map(|(key, value)| Label::from_static_parts(key, value)).collect()
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}
