//! A sink's task: one batch at a time, with whatever the host's code does kept inside.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{mpsc, watch};
use tracing::{Instrument, Span};

use super::attachment::{Detached, Handed, Registry};
use super::mail::{Mail, Post};
use super::presence::Sign;
use crate::machine::{Delivery, EntryRef, Input, LinkId, Verdict};
use crate::ports::Sink;
use crate::record::Gap;

/// The host's code under way.
pub(super) type Running<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The erased twin of [`Sink`].
pub(super) trait AnySink: Send {
    fn deliver(&mut self, batch: Vec<Delivery>) -> Running<'_, Vec<(EntryRef, Verdict)>>;
    fn gaps(&mut self, gaps: Vec<Gap>) -> Running<'_, ()>;
}

impl<S: Sink> AnySink for S {
    fn deliver(&mut self, batch: Vec<Delivery>) -> Running<'_, Vec<(EntryRef, Verdict)>> {
        Box::pin(Sink::deliver(self, batch))
    }

    fn gaps(&mut self, gaps: Vec<Gap>) -> Running<'_, ()> {
        Box::pin(Sink::gaps(self, gaps))
    }
}

pub(super) struct SinkTask {
    pub(super) link: LinkId,
    pub(super) sink: Box<dyn AnySink>,
    pub(super) queue: mpsc::Receiver<Handed>,
    pub(super) end: watch::Receiver<Option<Detached>>,
    pub(super) post: Post,
    pub(super) registry: Arc<Registry>,
    pub(super) sign: Sign,
}

/// What a sink's code came to.
struct Done {
    input: Input,
    /// Why the attachment ends, if it does.
    ends: Option<Detached>,
    /// Whether that came from the receiver.
    seen: bool,
}

impl SinkTask {
    /// Runs until the attachment ends.
    pub(super) async fn run(mut self) {
        let mut end = self.end.clone();
        loop {
            let handed = tokio::select! {
                biased;
                _ = end.wait_for(Option::is_some) => return,
                handed = self.queue.recv() => match handed {
                    Some(handed) => handed,
                    None => return,
                },
            };
            let done = tokio::select! {
                biased;
                _ = end.wait_for(Option::is_some) => return,
                done = run(self.link, &mut *self.sink, handed) => done,
            };
            if done.seen {
                self.sign.seen();
            }
            if self.post.mail.send(Mail::Input(done.input)).await.is_err() {
                return;
            }
            if let Some(why) = done.ends {
                self.registry.end(self.link, why);
                let _ = self.post.mail.send(Mail::Input(Input::Detach(self.link))).await;
                return;
            }
        }
    }
}

async fn run(link: LinkId, sink: &mut dyn AnySink, handed: Handed) -> Done {
    match handed {
        Handed::Batch(batch) => deliver(link, sink, batch).await,
        Handed::Gaps(gaps) => {
            let span = tracing::info_span!(
                "tell gaps",
                messaging.system = "lastmile",
                error.r#type = tracing::field::Empty
            );
            let told = caught(span, || sink.gaps(gaps)).await.is_some();
            let ends = (!told).then_some(Detached::Panicked);
            Done { input: Input::GapsTold { link, told }, ends, seen: false }
        }
    }
}

async fn deliver(link: LinkId, sink: &mut dyn AnySink, batch: Vec<Delivery>) -> Done {
    let entries: Vec<_> = batch.iter().map(|delivery| delivery.entry).collect();
    let span = tracing::info_span!(
        "process outbox",
        messaging.system = "lastmile",
        messaging.operation.name = "process",
        messaging.destination.template = "outbox/{user}",
        messaging.batch.message_count = batch.len(),
        error.r#type = tracing::field::Empty,
    );
    let verdicts = caught(span, || sink.deliver(batch)).await;
    let panicked = verdicts.is_none().then_some(Detached::Panicked);
    let seen = verdicts.iter().flatten().any(|(_, verdict)| verdict.is_sign_of_life());
    let verdicts =
        verdicts.unwrap_or_else(|| entries.into_iter().map(|entry| (entry, Verdict::Nack(None))).collect());
    let gone = verdicts.iter().any(|(_, verdict)| *verdict == Verdict::Disconnected);
    let ends = panicked.or(gone.then_some(Detached::Disconnected));
    Done { input: Input::Verdicts { link, verdicts }, ends, seen }
}

/// Runs the host's code in a span of its own; `None` when it panics.
async fn caught<'a, T>(span: Span, run: impl FnOnce() -> Running<'a, T>) -> Option<T> {
    let future = catch_unwind(AssertUnwindSafe(run)).ok();
    let done = match future {
        Some(future) => {
            let mut future = pin!(future.instrument(span.clone()));
            poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
                Ok(Poll::Ready(done)) => Poll::Ready(Some(done)),
                Ok(Poll::Pending) => Poll::Pending,
                Err(_) => Poll::Ready(None),
            })
            .await
        }
        None => None,
    };
    if done.is_none() {
        span.record("error.type", "panic");
        tracing::warn!("a sink panicked: what it had counts as a failed attempt, and it is detached");
    }
    done
}
