//! A sink's task: one batch at a time, with whatever the host's code does kept inside.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{mpsc, watch};
use tracing::Instrument;

use super::attachment::{Detached, Registry};
use super::mail::{Mail, Post};
use crate::machine::{Delivery, EntryRef, Input, LinkId, Verdict};
use crate::ports::Sink;

/// A delivery under way.
pub(super) type Delivering<'a> = Pin<Box<dyn Future<Output = Vec<(EntryRef, Verdict)>> + Send + 'a>>;

/// The erased twin of [`Sink`].
pub(super) trait AnySink: Send {
    fn deliver(&mut self, batch: Vec<Delivery>) -> Delivering<'_>;
}

impl<S: Sink> AnySink for S {
    fn deliver(&mut self, batch: Vec<Delivery>) -> Delivering<'_> {
        Box::pin(Sink::deliver(self, batch))
    }
}

pub(super) struct SinkTask {
    pub(super) link: LinkId,
    pub(super) sink: Box<dyn AnySink>,
    pub(super) queue: mpsc::Receiver<Vec<Delivery>>,
    pub(super) end: watch::Receiver<Option<Detached>>,
    pub(super) post: Post,
    pub(super) registry: Arc<Registry>,
}

impl SinkTask {
    /// Runs until the attachment ends.
    pub(super) async fn run(mut self) {
        let mut end = self.end.clone();
        loop {
            let batch = tokio::select! {
                biased;
                _ = end.wait_for(Option::is_some) => return,
                batch = self.queue.recv() => match batch {
                    Some(batch) => batch,
                    None => return,
                },
            };
            let entries: Vec<_> = batch.iter().map(|delivery| delivery.entry).collect();
            let verdicts = tokio::select! {
                biased;
                _ = end.wait_for(Option::is_some) => return,
                verdicts = caught(&mut *self.sink, batch) => verdicts,
            };
            let panicked = verdicts.is_none();
            let verdicts = verdicts
                .unwrap_or_else(|| entries.into_iter().map(|entry| (entry, Verdict::Nack(None))).collect());
            let gone = verdicts.iter().any(|(_, verdict)| *verdict == Verdict::Disconnected);
            let mail = Mail::Input(Input::Verdicts { link: self.link, verdicts });
            if self.post.mail.send(mail).await.is_err() {
                return;
            }
            if panicked || gone {
                let why = if panicked { Detached::Panicked } else { Detached::Disconnected };
                self.registry.end(self.link, why);
                let _ = self.post.mail.send(Mail::Input(Input::Detach(self.link))).await;
                return;
            }
        }
    }
}

/// Runs the host's code in a span of its own; `None` when it panics.
async fn caught(sink: &mut dyn AnySink, batch: Vec<Delivery>) -> Option<Vec<(EntryRef, Verdict)>> {
    let span = tracing::info_span!(
        "process outbox",
        messaging.system = "lastmile",
        messaging.operation.name = "process",
        messaging.destination.template = "outbox/{user}",
        messaging.batch.message_count = batch.len(),
        error.r#type = tracing::field::Empty,
    );
    let Ok(future) = catch_unwind(AssertUnwindSafe(|| sink.deliver(batch))) else {
        span.record("error.type", "panic");
        return None;
    };
    let mut future = pin!(future.instrument(span.clone()));
    let verdicts =
        poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Ready(verdicts)) => Poll::Ready(Some(verdicts)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(None),
        })
        .await;
    if verdicts.is_none() {
        span.record("error.type", "panic");
        tracing::warn!("a sink panicked: its batch counts as a failed attempt, and it is detached");
    }
    verdicts
}
