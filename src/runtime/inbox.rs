//! The inbox: what another engine delivers to this one, taken once.

use core::time::Duration;

use tokio::sync::oneshot;

use super::engine::Engine;
use super::mail::Mail;
use crate::machine::{Delivery, EntryRef, Refusal, Verdict};

/// How long a full inbox asks the sender to wait.
const BUSY: Duration = Duration::from_millis(500);

/// Takes deliveries of other engines into this engine's outboxes, each one once. Cheap to clone.
///
/// A delivery is recognised by the other engine's stream and the place in its log, remembered until that engine's
/// floor says that it holds the acknowledgement. What was taken is delivered to the sinks attached to *this* engine, at
/// least once, with the `redelivered` flag.
#[derive(Clone, Debug)]
pub struct Inbox {
    engine: Engine,
}

impl Inbox {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine }
    }

    /// Takes a batch, in order, and says of each message what the sender should be told: `Delivered` means durable
    /// here, for the first time or again. What could not be taken is `Busy`, and so is what follows it with the same
    /// ordering key.
    ///
    /// # Cancel safety
    /// May be dropped at any time; the same batch may be received again.
    pub async fn receive(&self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        let entries: Vec<_> = batch.iter().map(|delivery| delivery.entry).collect();
        let results = self.take(batch).await;
        entries.into_iter().zip(results.into_iter().map(|result| verdict(result.err()))).collect()
    }

    /// Takes a batch, in order, and says of each whether it is here for good.
    pub(super) async fn take(&self, batch: Vec<Delivery>) -> Vec<Result<(), Refusal>> {
        let mut waiting = Vec::with_capacity(batch.len());
        let mut by_shard: Vec<_> = self.engine.inner.shards.iter().map(|_| Vec::new()).collect();
        for delivery in batch {
            let (reply, answer) = oneshot::channel();
            waiting.push(answer);
            if let Some(part) = by_shard.get_mut(self.engine.shard(delivery.message.recipient())) {
                part.push((delivery, reply));
            }
        }
        for (post, part) in self.engine.inner.shards.iter().zip(by_shard) {
            if !part.is_empty() {
                // An engine that is gone drops the replies.
                let _ = post.mail.send(Mail::Receive(part)).await;
            }
        }
        let mut results = Vec::with_capacity(waiting.len());
        for answer in waiting {
            results.push(answer.await.unwrap_or(Err(Refusal::ShuttingDown)).map(drop));
        }
        results
    }
}

fn verdict(refusal: Option<Refusal>) -> Verdict {
    match refusal {
        None => Verdict::Delivered,
        Some(refusal) if refusal.is_final() => Verdict::Rejected,
        Some(_) => Verdict::Busy(BUSY),
    }
}
