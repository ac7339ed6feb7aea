//! Lines: what has one ordering key, one after the other, each line a task while there is something in it.

use core::future::Future;
use core::pin::pin;
use core::time::Duration;
use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::feed::{Shared, Tag};
use super::{Handled, Inner};
use crate::id::{OrderingKey, StreamId, UserId};
use crate::ports::{Failure, Permission, Received};
use crate::record::LaneId;
use crate::runtime::contain::caught;
use crate::session::Code;

/// How long a sender waits after a permission hook said busy.
const DENIED: Duration = Duration::from_secs(1);

/// Whose order it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LineKey {
    stream: StreamId,
    recipient: UserId,
    lane: LaneId,
    key: Option<OrderingKey>,
}

impl LineKey {
    pub(super) fn of(lane: LaneId, received: &Received) -> Self {
        Self {
            stream: received.stream(),
            recipient: received.recipient().clone(),
            lane,
            key: received.message().ordering_key().cloned(),
        }
    }
}

/// A message to be handled.
pub(super) struct Job {
    pub(super) tag: Tag,
    pub(super) received: Received,
    pub(super) feed: Arc<Shared>,
}

/// All lines. One that is here has a task.
#[derive(Default)]
pub(super) struct Lines {
    waiting: HashMap<LineKey, VecDeque<Job>>,
}

impl Lines {
    /// Puts a message into its line; whether the line is new and needs a task.
    pub(super) fn push(&mut self, key: &LineKey, job: Job) -> bool {
        match self.waiting.get_mut(key) {
            Some(line) => {
                line.push_back(job);
                false
            }
            None => self.waiting.insert(key.clone(), VecDeque::from([job])).is_none(),
        }
    }

    /// The next message of a line, or the line's end. What nobody waits for any more is dropped.
    fn next(&mut self, key: &LineKey) -> Option<Job> {
        let line = self.waiting.get_mut(key)?;
        while let Some(job) = line.pop_front() {
            if !job.feed.is_closed() {
                return Some(job);
            }
        }
        self.waiting.remove(key);
        None
    }

    /// Answers for a message, and in case of a failure that is not final, for what waits behind it.
    fn answer(&mut self, key: &LineKey, job: &Job, handled: Handled) {
        let passes = handled.as_ref().is_err_and(|failure| !failure.is_final());
        job.feed.answer(key, job.tag, handled);
        let Some(line) = self.waiting.get_mut(key).filter(|_| passes) else { return };
        let (behind, others) =
            core::mem::take(line).into_iter().partition(|other| Arc::ptr_eq(&other.feed, &job.feed));
        *line = others;
        let behind: VecDeque<Job> = behind;
        for other in behind {
            other.feed.answer(key, other.tag, Err(Failure::busy(Duration::ZERO)));
        }
    }

    /// Says of a message, and of what waits behind it, that there is progress.
    fn progress(&self, key: &LineKey, job: &Job) {
        job.feed.progress([job.tag].into_iter());
        let mut waiting = self.waiting.get(key).into_iter().flatten().peekable();
        while let Some(first) = waiting.next() {
            let mut tags = vec![first.tag];
            while let Some(next) = waiting.next_if(|next| Arc::ptr_eq(&next.feed, &first.feed)) {
                tags.push(next.tag);
            }
            first.feed.progress(tags.into_iter());
        }
    }
}

/// A line's task, which ends with the line.
pub(super) async fn work(router: Arc<Inner>, key: LineKey) {
    let mut line = Line { router, key, has_ended: false };
    while let Some(job) = line.next() {
        line.serve(job).await;
    }
}

struct Line {
    router: Arc<Inner>,
    key: LineKey,
    /// There may be another one with this key by now.
    has_ended: bool,
}

/// The task may end before its time, with its runtime: then the next message needs a new one.
impl Drop for Line {
    fn drop(&mut self) {
        if !self.has_ended {
            let left = self.router.lines.lock().waiting.remove(&self.key);
            drop(left);
        }
    }
}

impl Line {
    fn next(&mut self) -> Option<Job> {
        let next = self.router.lines.lock().next(&self.key);
        self.has_ended = next.is_none();
        next
    }

    async fn serve(&self, job: Job) {
        let handled = match self.with_progress(&job, self.router.running.acquire(), None).await {
            Some(Ok(permit)) if job.received.is_withdrawn() => {
                drop(permit);
                Err(Failure::reject(Code::Withdrawn, "it was withdrawn before its handler had begun"))
            }
            Some(Ok(permit)) => {
                let handled = self.run(&job).await;
                drop(permit);
                handled
            }
            // It is never closed.
            Some(Err(_)) | None => Err(Failure::busy(DENIED)),
        };
        self.router.lines.lock().answer(&self.key, &job, handled);
    }

    /// Permission and handler, kept inside and within their time.
    async fn run(&self, job: &Job) -> Handled {
        let message = job.received.message();
        let span = tracing::info_span!(
            "process handler",
            messaging.system = "lastmile",
            messaging.operation.name = "process",
            messaging.destination.template = "outbox/{user}",
            messaging.message.id = %message.id(),
            lastmile.event = message.event().as_str(),
            lastmile.attempts = job.received.attempts(),
            error.r#type = tracing::field::Empty,
        );
        let received = job.received.clone();
        let running = caught(span.clone(), || Box::pin(self.router.handle(received)));
        let handled = match self.with_progress(job, running, Some(self.router.limits.timeout)).await {
            Some(Some(handled)) => handled,
            Some(None) => {
                tracing::warn!(parent: &span, "a handler panicked: it counts as a failed attempt");
                return Err(Failure::retry("the handler panicked"));
            }
            None => {
                span.record("error.type", "timeout");
                tracing::warn!(parent: &span, "a handler took too long: it counts as a failed attempt");
                return Err(Failure::retry("the handler took too long"));
            }
        };
        if let Err(failure) = &handled {
            span.record("error.type", failure.kind());
            tracing::debug!(parent: &span, %failure, "a message was not handled");
        }
        handled
    }

    /// Waits for something, says in between that there is progress, and gives up after a time without a sign of life.
    async fn with_progress<T>(
        &self,
        job: &Job,
        work: impl Future<Output = T>,
        timeout: Option<Duration>,
    ) -> Option<T> {
        let (mut work, every) = (pin!(work), self.router.limits.progress);
        let (mut left, mut extensions) = (timeout, job.received.extensions());
        loop {
            let rest = left.map_or(every, |left| left.min(every));
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = tokio::time::sleep(rest) => {}
            }
            let asked = job.received.extensions();
            left = left.map(|left| left.saturating_sub(rest));
            if core::mem::replace(&mut extensions, asked) != asked {
                left = timeout;
            }
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            self.router.lines.lock().progress(&self.key, job);
        }
    }
}

impl Inner {
    /// Asks for permission, then finds the handler and runs it.
    async fn handle(&self, received: Received) -> Handled {
        if let Some(guard) = &self.guard
            && let Permission::Deny(code) = guard(received.clone()).await
        {
            return Err(denied(code));
        }
        // Held for as long as it runs: whoever removes it does not stop it.
        let found = self.table.read().find(received.event());
        match found {
            Some(handler) => handler.handle(received).await,
            None => Err(self.limits.unhandled.clone().unwrap_or_else(|| {
                Failure::retry(format_args!("there is no handler for {}", received.event()))
            })),
        }
    }
}

fn denied(code: Code) -> Failure {
    match code {
        Code::Busy => Failure::busy(DENIED),
        code if code.is_about_a_message() && code.is_terminal() => Failure::reject(code, "not permitted"),
        code if code.is_about_a_message() => Failure::retry("not permitted for now"),
        _ => Failure::reject(Code::NotPermitted, "not permitted"),
    }
}
