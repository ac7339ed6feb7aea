//! What the panel shows: one look at the engine a second, shared by everybody who looks.

use std::sync::Arc;
use std::time::Duration;

use lastmile::{Engine, Priority};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::server::Chat;

/// Looks while somebody listens.
pub(crate) fn start(chat: Arc<Chat>) -> (watch::Sender<Arc<str>>, JoinHandle<()>) {
    let (sender, _) = watch::channel(Arc::from("{}"));
    let publisher = sender.clone();
    let task = tokio::runtime::Handle::current().spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            if publisher.receiver_count() == 0 {
                continue;
            }
            match take(&chat).await {
                Some(snapshot) => publisher.send_replace(Arc::from(snapshot.to_string())),
                None => return,
            };
        }
    });
    (sender, task)
}

async fn take(chat: &Chat) -> Option<Value> {
    let mut snapshot = engine(&chat.engine).await?;
    let connections = chat.acceptor.connections();
    let connections: Vec<Value> = connections
        .iter()
        .filter(|connection| connection.is_open)
        .map(|connection| {
            json!({
                "user": String::from_utf8_lossy(connection.peer.user.as_bytes()),
                "device": String::from_utf8_lossy(connection.peer.device.as_bytes()),
                "transport": connection.transport,
                "quality": format!("{:?}", connection.grade).to_lowercase(),
                "rtt_ms": connection.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            })
        })
        .collect();
    let web = chat.web.stats();
    let refused: u64 = web.refused.iter().map(|(_, count)| count).sum();
    snapshot["connections"] = json!(connections);
    snapshot["refused_requests"] = json!(refused);
    Some(snapshot)
}

async fn engine(engine: &Engine) -> Option<Value> {
    let stats = engine.stats().await.ok()?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let commit = |part| stats.commit_times.quantile(part).map(|nanos| ms(Duration::from_nanos(nanos)));
    Some(json!({
        "waiting": by_priority(|priority| json!(stats.depth(priority))),
        "oldest_ms": by_priority(|priority| json!(stats.oldest_age(priority).map(ms))),
        "waiting_in_all": stats.waiting,
        "in_flight": stats.in_flight,
        "dedup_hits": stats.duplicates,
        "commit_ms": { "p50": commit(0.5), "p99": commit(0.99) },
        "commits": stats.commits,
        "journal": { "segments": stats.segments, "free": stats.free_segments, "degraded": stats.degraded },
        "disk_bytes": stats.disk_bytes,
    }))
}

fn by_priority(value: impl Fn(Priority) -> Value) -> Value {
    let names = ["critical", "high", "normal", "low"];
    let priorities = [Priority::Critical, Priority::High, Priority::Normal, Priority::Low];
    names.into_iter().zip(priorities).map(|(name, priority)| (name.to_owned(), value(priority))).collect()
}
