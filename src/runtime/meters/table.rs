//! All metrics there are. `docs/METRICS.md` has the same table, held by a test.

use metrics::Unit;

use crate::message::Priority;
use crate::runtime::stats::Stats;
use crate::status::EndReason;

/// What kind of metric it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// It only grows, from 0 at the opening of the engine.
    Counter,
    /// It is what it is now.
    Gauge,
    /// The recorder has its distribution.
    Histogram,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Metric {
    /// Its name. Those that OpenTelemetry knows have its names (exporters for Prometheus write `_` for `.`), the others begin
    /// with `lastmile_`.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// Its unit.
    pub unit: Unit,
    /// Its labels, with all values that they may have. An empty value: the label may be absent.
    pub labels: &'static [(&'static str, &'static [&'static str])],
    /// What it says.
    pub help: &'static str,
}

pub(super) const OPERATION: &str = "messaging.client.operation.duration";
pub(super) const PROCESS: &str = "messaging.process.duration";
pub(super) const COMMIT: &str = "lastmile_commit_seconds";
pub(super) const GROUP: &str = "lastmile_group_records";
pub(super) const SETTLE: &str = "lastmile_settle_seconds";
pub(super) const SYSTEM: (&str, &str) = ("messaging.system", "lastmile");
/// What a refusal is called that is not in the list.
pub(super) const OTHER: &str = "_OTHER";

/// Kinds of refusals of a `send` ([`SendError::kind`](crate::SendError::kind)); the first is none.
pub(super) const SEND_ERRORS: &[&str] = &[
    "",
    "payload_too_large",
    "outbox_full",
    "too_many_copies",
    "engine_full",
    "disk_full",
    "overloaded",
    "conflict",
    "outcome_unknown",
    "degraded",
    "store_unreadable",
    "nobody_attached",
    "outdated",
    "shutting_down",
    "obsolete",
    OTHER,
];

const PRIORITIES: &[&str] = &["critical", "high", "normal", "low"];
const REASONS: &[&str] = &[
    "delivered",
    "unconfirmed",
    "expired",
    "rejected",
    "dead",
    "cancelled",
    "replaced",
    "evicted",
    "elsewhere",
    "device_gone",
];
const MESSAGING: (&str, &[&str]) = ("messaging.system", &["lastmile"]);

macro_rules! metric {
    ($name:expr, $kind:ident, $unit:ident, $labels:expr, $help:literal) => {
        Metric { name: $name, kind: MetricKind::$kind, unit: Unit::$unit, labels: $labels, help: $help }
    };
}

/// All metrics there are, with the feature `metrics`. No label has values that come from outside.
pub const METRICS: &[Metric] = &[
    metric!(
        OPERATION,
        Histogram,
        Seconds,
        &[MESSAGING, ("messaging.operation.name", &["send"]), ("error.type", SEND_ERRORS)],
        "How long a send took until it was answered: durable, or refused for what `error.type` says."
    ),
    metric!(
        "messaging.client.sent.messages",
        Counter,
        Count,
        &[MESSAGING, ("messaging.operation.name", &["send"])],
        "Messages accepted, repeats not counted."
    ),
    metric!(
        "messaging.client.consumed.messages",
        Counter,
        Count,
        &[MESSAGING, ("messaging.operation.name", &["process"])],
        "Messages delivered."
    ),
    metric!(
        PROCESS,
        Histogram,
        Seconds,
        &[MESSAGING, ("messaging.operation.name", &["process"]), ("error.type", &["", "panic"])],
        "How long a sink took for a batch."
    ),
    metric!(
        "lastmile_depth",
        Gauge,
        Count,
        &[("priority", PRIORITIES)],
        "Messages that have not ended, by priority; scheduled ones not counted."
    ),
    metric!(
        "lastmile_oldest_seconds",
        Gauge,
        Seconds,
        &[("priority", PRIORITIES)],
        "Age of the oldest message that waits, 0 when none does: never too low, too high by a second or a third at most."
    ),
    metric!("lastmile_scheduled", Gauge, Count, &[], "Messages whose time has not come."),
    metric!("lastmile_in_flight", Gauge, Count, &[], "Messages on offer to sinks."),
    metric!("lastmile_retrying", Gauge, Count, &[], "Messages that wait after a failed attempt."),
    metric!("lastmile_dead_letters", Gauge, Count, &[], "Dead letters that are kept."),
    metric!("lastmile_pending", Gauge, Count, &[], "Sends and operations that wait for a commit or a load."),
    metric!(
        "lastmile_ended_total",
        Counter,
        Count,
        &[("reason", REASONS)],
        "Messages that ended, by reason."
    ),
    metric!("lastmile_duplicates_total", Counter, Count, &[], "Repeats that were recognised."),
    metric!("lastmile_refused_total", Counter, Count, &[], "Sends that were refused."),
    metric!(
        "lastmile_stray_verdicts_total",
        Counter,
        Count,
        &[],
        "What sinks said of messages too late, or of messages that were not theirs."
    ),
    metric!("lastmile_attached", Gauge, Count, &[], "Attached sinks."),
    metric!("lastmile_present_users", Gauge, Count, &[], "Users with an attached device."),
    metric!(
        "lastmile_subscriptions",
        Gauge,
        Count,
        &[],
        "Subscriptions to status changes, and watches of presence."
    ),
    metric!("lastmile_resident_users", Gauge, Count, &[], "Users with anything in memory."),
    metric!("lastmile_resident_messages", Gauge, Count, &[], "Messages in memory."),
    metric!(COMMIT, Histogram, Seconds, &[], "How long a group took to be written and synced."),
    metric!(GROUP, Histogram, Count, &[], "Records of a group."),
    metric!(
        "lastmile_journal_failures_total",
        Counter,
        Count,
        &[],
        "Writes and syncs of the journal that failed."
    ),
    metric!(
        "lastmile_degraded",
        Gauge,
        Count,
        &[],
        "1 while sends are refused because the journal takes no commits."
    ),
    metric!("lastmile_journal_segments", Gauge, Count, &[], "Segments of the journal."),
    metric!(
        "lastmile_journal_free_segments",
        Gauge,
        Count,
        &[],
        "Segments of the journal with nothing in them."
    ),
    metric!(SETTLE, Histogram, Seconds, &[], "How long a settlement took."),
    metric!("lastmile_merges_total", Counter, Count, &[], "Merges of runs."),
    metric!("lastmile_store_failures_total", Counter, Count, &[], "Failures of the store."),
    metric!("lastmile_runs", Gauge, Count, &[], "Runs in the store."),
    metric!("lastmile_disk_bytes", Gauge, Bytes, &[], "Bytes that the store takes on disk."),
    metric!("lastmile_damaged_total", Counter, Count, &[], "Messages lost to damage on disk."),
    metric!(
        "lastmile_sweeps_total",
        Counter,
        Count,
        &[],
        "How often what is due while nobody is there was seen to."
    ),
];

/// How a series is read off a snapshot.
pub(super) type Read = Box<dyn Fn(&Stats) -> f64 + Send + Sync>;
/// A series: its labels, and how it is read.
type Series = (Vec<(&'static str, &'static str)>, Read);

/// The series of a gauge or a counter.
pub(super) fn series(name: &str) -> Vec<Series> {
    match name {
        "messaging.client.sent.messages" => messaging("send", |stats| stats.counters.accepted as f64),
        "messaging.client.consumed.messages" => {
            messaging("process", |stats| stats.ended(EndReason::Delivered) as f64)
        }
        "lastmile_depth" => by_priority(|stats, priority| stats.depth(priority) as f64),
        "lastmile_oldest_seconds" => {
            by_priority(|stats, priority| stats.oldest_age(priority).map_or(0.0, |age| age.as_secs_f64()))
        }
        "lastmile_scheduled" => one(|stats| stats.scheduled() as f64),
        "lastmile_in_flight" => one(|stats| stats.in_flight as f64),
        "lastmile_retrying" => one(|stats| stats.retrying() as f64),
        "lastmile_dead_letters" => one(|stats| stats.dead_letters as f64),
        "lastmile_pending" => one(|stats| stats.pending as f64),
        "lastmile_ended_total" => {
            let of = |reason: EndReason| -> Series {
                (vec![("reason", reason.as_str())], Box::new(move |stats| stats.ended(reason) as f64))
            };
            EndReason::ALL.into_iter().map(of).collect()
        }
        "lastmile_duplicates_total" => one(|stats| stats.duplicates as f64),
        "lastmile_refused_total" => one(|stats| stats.refused as f64),
        "lastmile_stray_verdicts_total" => one(|stats| stats.stray_verdicts as f64),
        "lastmile_attached" => one(|stats| stats.attached as f64),
        "lastmile_present_users" => one(|stats| stats.present_users as f64),
        "lastmile_subscriptions" => one(|stats| stats.subscriptions as f64),
        "lastmile_resident_users" => one(|stats| stats.resident_users as f64),
        "lastmile_resident_messages" => one(|stats| stats.resident_messages as f64),
        "lastmile_journal_failures_total" => one(|stats| stats.journal_failures as f64),
        "lastmile_degraded" => one(|stats| f64::from(u8::from(stats.degraded))),
        "lastmile_journal_segments" => one(|stats| f64::from(stats.segments)),
        "lastmile_journal_free_segments" => one(|stats| f64::from(stats.free_segments)),
        "lastmile_merges_total" => one(|stats| stats.merges as f64),
        "lastmile_store_failures_total" => one(|stats| stats.store_failures as f64),
        "lastmile_runs" => one(|stats| stats.runs as f64),
        "lastmile_disk_bytes" => one(|stats| stats.disk_bytes as f64),
        "lastmile_damaged_total" => one(|stats| stats.damaged as f64),
        "lastmile_sweeps_total" => one(|stats| stats.sweeps as f64),
        _ => Vec::new(),
    }
}

fn one(read: impl Fn(&Stats) -> f64 + Send + Sync + 'static) -> Vec<Series> {
    vec![(Vec::new(), Box::new(read))]
}

fn messaging(operation: &'static str, read: impl Fn(&Stats) -> f64 + Send + Sync + 'static) -> Vec<Series> {
    vec![(vec![SYSTEM, ("messaging.operation.name", operation)], Box::new(read))]
}

fn by_priority(read: impl Fn(&Stats, Priority) -> f64 + Copy + Send + Sync + 'static) -> Vec<Series> {
    let of = |priority: Priority| -> Series {
        (vec![("priority", priority.as_str())], Box::new(move |stats| read(stats, priority)))
    };
    Priority::ALL.into_iter().map(of).collect()
}
