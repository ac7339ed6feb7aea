//! A sink's task: one batch at a time, with whatever the host's code does kept inside.

use std::sync::Arc;

use tokio::sync::watch;

use super::attachment::{Detached, Registry, acks};
use super::clock::Stopwatch;
use super::contain::{Running, caught};
use super::mail::{Mail, Post};
use super::meters::Meters;
use super::presence::Sign;
use super::queue::{Handed, Queue};
use crate::machine::{Delivery, EntryRef, Input, LinkId, Verdict, Withdrawn};
use crate::ports::{Acks, Sink};
use crate::record::Gap;

/// The erased twin of [`Sink`].
pub(super) trait AnySink: Send {
    fn attached(&mut self, acks: Acks);
    fn deliver(&mut self, batch: Vec<Delivery>) -> Running<'_, Vec<(EntryRef, Verdict)>>;
    fn gaps(&mut self, gaps: Vec<Gap>) -> Running<'_, ()>;
    fn withdrawn(&mut self, withdrawn: Withdrawn) -> Running<'_, ()>;
}

impl<S: Sink> AnySink for S {
    fn attached(&mut self, acks: Acks) {
        Sink::attached(self, acks);
    }

    fn deliver(&mut self, batch: Vec<Delivery>) -> Running<'_, Vec<(EntryRef, Verdict)>> {
        Box::pin(Sink::deliver(self, batch))
    }

    fn gaps(&mut self, gaps: Vec<Gap>) -> Running<'_, ()> {
        Box::pin(Sink::gaps(self, gaps))
    }

    fn withdrawn(&mut self, withdrawn: Withdrawn) -> Running<'_, ()> {
        Box::pin(Sink::withdrawn(self, withdrawn))
    }
}

pub(super) struct SinkTask {
    pub(super) link: LinkId,
    pub(super) sink: Box<dyn AnySink>,
    pub(super) queue: Queue,
    pub(super) end: watch::Receiver<Option<Detached>>,
    pub(super) post: Post,
    pub(super) registry: Arc<Registry>,
    pub(super) sign: Sign,
    pub(super) meters: Arc<Meters>,
}

/// What a sink's code came to.
struct Done {
    input: Option<Input>,
    /// Why the attachment ends, if it does.
    ends: Option<Detached>,
    /// Whether that came from the receiver.
    seen: bool,
}

impl SinkTask {
    /// Runs until the attachment ends.
    pub(super) async fn run(mut self) {
        let mut end = self.end.clone();
        let mut ends = self.introduce().await;
        while ends.is_none() {
            let handed = tokio::select! {
                biased;
                _ = end.wait_for(Option::is_some) => return,
                handed = self.queue.recv() => match handed {
                    Some(handed) => handed,
                    None => return,
                },
            };
            let (watch, is_batch) = (Stopwatch::start(), matches!(handed, Handed::Batch(_)));
            let done = tokio::select! {
                biased;
                _ = end.wait_for(Option::is_some) => return,
                done = run(self.link, &mut *self.sink, handed) => done,
            };
            if is_batch {
                self.meters.processed(watch.nanos(), done.ends == Some(Detached::Panicked));
            }
            if done.seen {
                self.sign.seen();
            }
            if let Some(input) = done.input
                && self.post.mail.send(Mail::Input(input)).await.is_err()
            {
                return;
            }
            ends = done.ends;
        }
        if let Some(why) = ends {
            self.registry.end(self.link, why);
            let _ = self.post.mail.send(Mail::Input(Input::Detach(self.link))).await;
        }
    }

    /// Tells the sink how it reports; why the attachment ends, if it does.
    async fn introduce(&mut self) -> Option<Detached> {
        let (sink, acks) = (&mut *self.sink, acks(self.link, self.post.clone(), self.sign.clone()));
        let told = caught(tracing::Span::none(), || {
            sink.attached(acks);
            Box::pin(core::future::ready(()))
        });
        told.await.is_none().then_some(Detached::Panicked)
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
            warn_of_panic(told);
            let ends = (!told).then_some(Detached::Panicked);
            Done { input: Some(Input::GapsTold { link, told }), ends, seen: false }
        }
        Handed::Withdrawn(withdrawn) => {
            let span = tracing::info_span!(
                "withdraw",
                messaging.system = "lastmile",
                error.r#type = tracing::field::Empty
            );
            let told = caught(span, || sink.withdrawn(withdrawn)).await.is_some();
            warn_of_panic(told);
            let ends = (!told).then_some(Detached::Panicked);
            Done { input: None, ends, seen: false }
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
    warn_of_panic(verdicts.is_some());
    let panicked = verdicts.is_none().then_some(Detached::Panicked);
    let seen = verdicts.iter().flatten().any(|(_, verdict)| verdict.is_sign_of_life());
    let verdicts =
        verdicts.unwrap_or_else(|| entries.into_iter().map(|entry| (entry, Verdict::Nack(None))).collect());
    let gone = verdicts.iter().any(|(_, verdict)| *verdict == Verdict::Disconnected);
    let ends = panicked.or(gone.then_some(Detached::Disconnected));
    Done { input: Some(Input::Verdicts { link, verdicts }), ends, seen }
}

fn warn_of_panic(is_well: bool) {
    if !is_well {
        tracing::warn!("a sink panicked: what it had counts as a failed attempt, and it is detached");
    }
}
