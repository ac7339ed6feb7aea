//! What the panel shows: one look at the engine a second, shared by everybody who looks.

use std::sync::Arc;
use std::time::Duration;

use lastmile::Engine;
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
    // How it is by priority, the engine does not say; null is what the page shows as unknown.
    let unknown = json!({ "critical": null, "high": null, "normal": null, "low": null });
    Some(json!({
        "waiting": unknown,
        "oldest_ms": unknown,
        "waiting_in_all": stats.waiting,
        "in_flight": stats.in_flight,
        "dedup_hits": stats.duplicates,
        "commit_ms": { "p50": null, "p99": null },
        "commits": stats.commits,
        "journal": { "segments": stats.segments, "free": stats.free_segments, "degraded": stats.degraded },
        "disk_bytes": stats.disk_bytes,
    }))
}
