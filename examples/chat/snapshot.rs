//! What the panel shows: one look at the engine a second, shared by everybody who looks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lastmile::{Distribution, Engine, Priority};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::server::Chat;

/// Commit times are those of so many looks: an engine's own are of all its life.
const WINDOW: usize = 10;

/// Looks while somebody listens.
pub(crate) fn start(chat: Arc<Chat>) -> (watch::Sender<Arc<str>>, JoinHandle<()>) {
    let (sender, _) = watch::channel(Arc::from("{}"));
    let publisher = sender.clone();
    let task = tokio::runtime::Handle::current().spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let mut commits = VecDeque::new();
        loop {
            ticks.tick().await;
            if publisher.receiver_count() == 0 {
                commits.clear();
                continue;
            }
            match take(&chat, &mut commits).await {
                Some(snapshot) => publisher.send_replace(Arc::from(snapshot.to_string())),
                None => return,
            };
        }
    });
    (sender, task)
}

async fn take(chat: &Chat, commits: &mut VecDeque<Distribution>) -> Option<Value> {
    let mut snapshot = engine(&chat.engine, commits).await?;
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

async fn engine(engine: &Engine, commits: &mut VecDeque<Distribution>) -> Option<Value> {
    let stats = engine.stats().await.ok()?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    if commits.len() > WINDOW {
        commits.pop_front();
    }
    let before = commits.front().copied().unwrap_or_default();
    commits.push_back(stats.commit_times);
    let commit = |part| since(&before, &stats.commit_times, part).map(Duration::from_nanos).map(ms);
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

/// The bound that this part of what came since then does not exceed.
fn since(before: &Distribution, now: &Distribution, part: f64) -> Option<u64> {
    let earlier = before.buckets().map(|(_, count)| count).chain(std::iter::repeat(0));
    let fresh: Vec<_> = now
        .buckets()
        .zip(earlier)
        .map(|((bound, count), earlier)| (bound, count.saturating_sub(earlier)))
        .collect();
    let wanted = fresh.iter().map(|(_, count)| count).sum::<u64>() as f64 * part;
    let mut seen = 0;
    let found = fresh.into_iter().find(|(_, count)| {
        seen += count;
        *count > 0 && seen as f64 >= wanted
    });
    found.and_then(|(bound, _)| bound)
}

fn by_priority(value: impl Fn(Priority) -> Value) -> Value {
    let names = ["critical", "high", "normal", "low"];
    let priorities = [Priority::Critical, Priority::High, Priority::Normal, Priority::Low];
    names.into_iter().zip(priorities).map(|(name, priority)| (name.to_owned(), value(priority))).collect()
}
