//! Every series that the engine tells is listed, documented, and the same however many people there are.

#[path = "common/phone.rs"]
mod phone;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lastmile::storage::MemoryStore;
use lastmile::{Config, Engine, METRICS, Message, MessageId, Metric, MetricKind, Priority, Stage};
use metrics::Unit;
use metrics_util::MetricKind as Kind;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

use self::phone::{PHONE, Phone};

/// A series: its name, and its labels in order.
type Series = (String, Vec<(String, String)>);

fn engine(config: Config) -> (Engine, Snapshotter) {
    let recorder = DebuggingRecorder::new();
    let build = || Engine::builder(MemoryStore::new()).config(config).build().unwrap();
    let engine = metrics::with_local_recorder(&recorder, build);
    (engine, recorder.snapshotter())
}

/// All series there are, each of them allowed by the table, with its unit and its description.
fn series(snapshotter: &Snapshotter) -> BTreeMap<Series, DebugValue> {
    let mut all = BTreeMap::new();
    for (key, unit, description, value) in snapshotter.snapshot().into_vec() {
        let (kind, key) = key.into_parts();
        let listed = METRICS.iter().find(|metric| metric.name == key.name());
        let metric = listed.unwrap_or_else(|| panic!("{} is not in METRICS", key.name()));
        let expected = match metric.kind {
            MetricKind::Counter => Kind::Counter,
            MetricKind::Gauge => Kind::Gauge,
            _ => Kind::Histogram,
        };
        assert_eq!((kind, unit), (expected, Some(metric.unit)), "{}", metric.name);
        assert_eq!(description.as_deref(), Some(metric.help), "{}", metric.name);
        let labels: Vec<_> =
            key.labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
        assert_allowed(metric, &labels);
        all.insert((metric.name.to_owned(), labels), value);
    }
    all
}

fn assert_allowed(metric: &Metric, labels: &[(String, String)]) {
    for (key, value) in labels {
        let values = metric.labels.iter().find(|(name, _)| name == key).map(|(_, values)| *values);
        let allowed = values.is_some_and(|values| values.contains(&value.as_str()));
        assert!(allowed, "{}: {key}={value} is not listed", metric.name);
    }
    for (key, values) in metric.labels {
        let given = labels.iter().any(|(name, _)| name == key);
        assert!(given || values.contains(&""), "{}: {key} is missing", metric.name);
    }
}

fn message(user: usize, id: u128, payload: usize) -> Message {
    let priority = Priority::ALL[user % 4];
    let message = Message::to(format!("user-{user}"), "chat.message", vec![b'.'; payload]).priority(priority);
    message.id(MessageId::from_u128(id)).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_people_have_the_same_series_as_none_and_all_are_listed() {
    let mut config = Config::default();
    config.max_payload_bytes = 64.try_into().unwrap();
    let (engine, snapshotter) = engine(config);
    let before: BTreeSet<_> = series(&snapshotter).into_keys().collect();
    let mut senders = tokio::task::JoinSet::new();
    for part in 0..100 {
        let engine = engine.clone();
        senders.spawn(async move {
            for user in part * 100..part * 100 + 100 {
                engine.send(message(user, 1, 8)).await.unwrap();
            }
        });
    }
    senders.join_all().await;
    let _attached: Vec<_> = (0..100)
        .map(|n| engine.attach(format!("user-{n}"), "phone", Phone { panics: n == 7 }).unwrap())
        .collect();
    engine.send(message(1, 1, 8)).await.unwrap();
    engine.send(message(1, 2, 65)).await.unwrap_err();
    engine.send(message(1, 3, 8)).await.unwrap().reached(Stage::Delivered).await.unwrap();
    engine.cancel("user-200", MessageId::from_u128(1)).await.unwrap();
    engine.report_metrics().await.unwrap();
    let after: BTreeSet<_> = series(&snapshotter).into_keys().collect();
    assert_eq!(before, after);
    let named: BTreeSet<_> = after.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(named, METRICS.iter().map(|metric| metric.name).collect(), "each one that is listed is told");
    let most: usize =
        METRICS.iter().map(|m| m.labels.iter().map(|(_, values)| values.len()).product::<usize>()).sum();
    assert_eq!(after.len(), most, "and with all its labels");
}

fn sum(value: &DebugValue) -> f64 {
    match value {
        DebugValue::Counter(n) => *n as f64,
        DebugValue::Gauge(n) => n.0,
        DebugValue::Histogram(values) => values.len() as f64,
    }
}

#[tokio::test]
async fn what_is_told_is_what_happened() {
    let (engine, snapshotter) = engine(Config::default());
    for user in 0..8 {
        engine.send(message(user, 1, 8)).await.unwrap();
    }
    engine.send(message(0, 1, 8)).await.unwrap();
    engine.send(message(0, 1, 9)).await.unwrap_err();
    engine.cancel("user-4", MessageId::from_u128(1)).await.unwrap();
    let attached = engine.attach("user-1", "phone", PHONE).unwrap();
    engine.send(message(1, 2, 8)).await.unwrap().reached(Stage::Delivered).await.unwrap();
    engine.report_metrics().await.unwrap();
    let all = series(&snapshotter);
    let told = |name: &str, key: &str, value: &str| -> f64 {
        let has = |labels: &[(String, String)]| match (key, value) {
            ("", "") => true,
            (key, "") => labels.iter().all(|(k, _)| k != key),
            (key, value) => labels.iter().any(|(k, v)| k == key && v == value),
        };
        all.iter().filter(|((n, labels), _)| n == name && has(labels)).map(|(_, value)| sum(value)).sum()
    };
    assert_eq!(told("messaging.client.sent.messages", "", ""), 9.0);
    assert_eq!(told("messaging.client.consumed.messages", "", ""), 2.0);
    assert_eq!(told("messaging.client.operation.duration", "error.type", ""), 10.0);
    assert_eq!(told("messaging.client.operation.duration", "error.type", "conflict"), 1.0);
    assert!(told("messaging.process.duration", "error.type", "") >= 1.0);
    assert_eq!(told("lastmile_depth", "priority", "critical"), 1.0, "of user-0; user-4's was withdrawn");
    assert_eq!(told("lastmile_depth", "priority", "high"), 1.0, "user-1's were delivered");
    assert_eq!(told("lastmile_depth", "", ""), 6.0);
    assert_eq!(told("lastmile_ended_total", "reason", "cancelled"), 1.0);
    assert_eq!(told("lastmile_duplicates_total", "", ""), 1.0);
    assert_eq!(told("lastmile_attached", "", ""), 1.0);
    assert_eq!(told("lastmile_present_users", "", ""), 1.0);
    assert!(told("lastmile_commit_seconds", "", "") >= 1.0);
    drop(attached);
    engine.shutdown(Duration::from_secs(20)).await;
}

/// A row of a table in Markdown.
fn cells(line: &str) -> Vec<String> {
    line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
}

fn row(metric: &Metric) -> Vec<String> {
    let kind = match metric.kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        _ => "histogram",
    };
    let unit = match metric.unit {
        Unit::Seconds => "s",
        Unit::Bytes => "bytes",
        _ => "1",
    };
    let label = |(key, values): &(&str, &[&str])| match values {
        ["", ..] => format!("{key} (or none): {}", values[1..].join(", ")),
        values => format!("{key}: {}", values.join(", ")),
    };
    let labels: Vec<_> = metric.labels.iter().map(label).collect();
    [metric.name, kind, unit, &labels.join("; "), metric.help].map(|cell| cell.replace('`', "")).to_vec()
}

#[test]
fn the_documented_table_is_the_one_in_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md");
    let text = std::fs::read_to_string(path).unwrap();
    let documented: Vec<_> =
        text.lines().filter(|line| line.starts_with("| `")).map(|line| cells(line).to_vec()).collect();
    assert_eq!(documented, METRICS.iter().map(row).collect::<Vec<_>>());
}
