//! What one attachment or session has with a router: what it handed in, and what came of it.

use core::fmt;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::Inner;
use super::line::{Job, LineKey, work};
use crate::machine::{self, EntryRef};
use crate::ports::{Failure, Received, Withdrawal};
use crate::runtime::tasks;
use crate::session::{self, Code, Inbound, InboundId};

/// Which message, for whoever handed it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Tag {
    Entry(EntryRef),
    Inbound(InboundId),
}

/// What came of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Handled for good, perhaps with an answer.
    Handled(Option<Bytes>),
    /// Still being worked on.
    Progress,
    /// Not handled.
    Failed(Failure),
}

/// Both halves' state.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Whoever handed in is gone: nothing more is run for them.
    closed: bool,
    /// What has no final answer.
    open: HashMap<Tag, Open>,
    answers: Vec<(Tag, Answer)>,
    /// Of what something was not taken, and whoever handed it in has not collected that yet.
    held: HashSet<LineKey>,
}

/// A message without a final answer.
#[derive(Debug)]
struct Open {
    /// There was progress since the last look.
    progress: bool,
    withdrawal: Arc<Withdrawal>,
}

impl Shared {
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// A final answer. After a failure that is not final, what was handed in with this key is not taken either, until
    /// the answer was collected.
    pub(super) fn answer(&self, key: &LineKey, tag: Tag, handled: Result<Option<Bytes>, Failure>) {
        let mut state = self.state.lock();
        if state.open.remove(&tag).is_none() {
            return;
        }
        if handled.as_ref().is_err_and(|failure| !failure.is_final()) {
            state.held.insert(key.clone());
        }
        let answer = handled.map_or_else(Answer::Failed, Answer::Handled);
        state.answers.push((tag, answer));
        drop(state);
        self.news.notify_one();
    }

    pub(super) fn progress(&self, tags: impl Iterator<Item = Tag>) {
        let mut state = self.state.lock();
        let mut news = false;
        for tag in tags {
            if let Some(open) = state.open.get_mut(&tag) {
                open.progress = true;
                news = true;
            }
        }
        drop(state);
        if news {
            self.news.notify_one();
        }
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.open.clear();
        drop(state);
        self.news.notify_one();
    }
}

/// Where a session hands in what its peer sent, for the router's handlers: see [`Router::feed`](crate::Router::feed).
/// Dropping it gives up what waits; what runs finishes.
pub struct Feed {
    router: Arc<Inner>,
    shared: Arc<Shared>,
    handle: Handle,
}

/// What came of what was handed in through a [`Feed`].
pub struct Answers {
    shared: Arc<Shared>,
}

pub(super) fn open(router: Arc<Inner>) -> (Feed, Answers) {
    let shared = Arc::new(Shared::default());
    (Feed { router, shared: shared.clone(), handle: Handle::current() }, Answers { shared })
}

impl Feed {
    /// Hands in a message that a session gave, in the order in which it did. Never waits: what is over a bound is answered
    /// busy.
    pub fn hand(&self, inbound: Inbound) {
        self.hand_in(Tag::Inbound(inbound.id), inbound.item.place.lane, inbound.into());
    }

    /// A message that was handed in is no longer wanted: its handler is told
    /// ([`Received::withdrawn`](crate::ports::Received::withdrawn)), or does not begin.
    pub fn withdraw(&self, id: InboundId) {
        self.take_back(Tag::Inbound(id));
    }

    pub(super) fn take_back(&self, tag: Tag) {
        let withdrawal = self.shared.state.lock().open.get(&tag).map(|open| open.withdrawal.clone());
        withdrawal.into_iter().for_each(|withdrawal| withdrawal.say());
    }

    pub(super) fn hand_in(&self, tag: Tag, lane: crate::record::LaneId, received: Received) {
        let key = LineKey::of(lane, &received);
        // One lock over the look and the entry: a failure on that line must not fall between them.
        let mut lines = self.router.lines.lock();
        let mut state = self.shared.state.lock();
        if state.open.contains_key(&tag) {
            // It is being worked on, and one answer is enough.
            return;
        }
        let full = state.open.len() >= self.router.limits.max_open.get();
        state.open.insert(tag, Open { progress: false, withdrawal: received.withdrawal() });
        let refused = match (state.held.contains(&key), full) {
            (true, _) => Some(Failure::busy(core::time::Duration::ZERO)),
            (false, true) => Some(Failure::busy(self.router.limits.busy)),
            (false, false) => None,
        };
        drop(state);
        if let Some(failure) = refused {
            return self.shared.answer(&key, tag, Err(failure));
        }
        let is_new = lines.push(&key, Job { tag, received, feed: self.shared.clone() });
        drop(lines);
        if is_new {
            tasks::spawn(&self.handle, work(self.router.clone(), key));
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Answers {
    /// What came of messages since the last look; waits for something. `None` when the feed is dropped.
    ///
    /// # To ensure correctness
    /// Say all of it to the session ([`Input::Verdicts`](crate::session::Input::Verdicts)) before you take more from it: after a
    /// failure, the router holds back what has the same key until it was collected here, and from then on the session does.
    ///
    /// # Cancel safety
    /// Dropped before it returns, nothing is lost.
    pub async fn next(&mut self) -> Option<Vec<(InboundId, session::Verdict)>> {
        let answers = self.collect().await?;
        let verdicts = answers.into_iter().filter_map(|(tag, answer)| match tag {
            Tag::Inbound(id) => Some((id, answer.into_session_verdict())),
            Tag::Entry(_) => None,
        });
        Some(verdicts.collect())
    }

    /// The same for whatever was handed in.
    pub(super) async fn collect(&mut self) -> Option<Vec<(Tag, Answer)>> {
        loop {
            {
                let mut state = self.shared.state.lock();
                let mut answers = core::mem::take(&mut state.answers);
                let progressed = state
                    .open
                    .iter_mut()
                    .filter_map(|(tag, open)| core::mem::take(&mut open.progress).then_some(*tag));
                answers.extend(progressed.map(|tag| (tag, Answer::Progress)));
                state.held.clear();
                if state.closed {
                    return None;
                }
                if !answers.is_empty() {
                    return Some(answers);
                }
            }
            self.shared.news.notified().await;
        }
    }

    /// Whether everything that was handed in was answered, and the answers collected.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.shared.state.lock();
        state.open.is_empty() && state.answers.is_empty()
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("open", &self.shared.state.lock().open.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Answer {
    pub(super) fn into_verdict(self) -> machine::Verdict {
        match self {
            Self::Handled(Some(reply)) => machine::Verdict::Replied(reply),
            Self::Handled(None) => machine::Verdict::Delivered,
            Self::Progress => machine::Verdict::Progress,
            Self::Failed(Failure::Retry { after, .. }) => machine::Verdict::Nack(after),
            Self::Failed(Failure::Busy { after }) => machine::Verdict::Busy(after),
            Self::Failed(Failure::Reject { .. }) => machine::Verdict::Rejected,
        }
    }

    fn into_session_verdict(self) -> session::Verdict {
        match self {
            Self::Handled(Some(reply)) => session::Verdict::Replied(reply),
            Self::Handled(None) => session::Verdict::Delivered,
            Self::Progress => session::Verdict::Progress,
            Self::Failed(Failure::Retry { after, .. }) => session::Verdict::Nack(after),
            Self::Failed(Failure::Busy { after }) => session::Verdict::Busy(after),
            Self::Failed(Failure::Reject { code, .. }) => {
                let about_it = code.is_about_a_message() && code.is_terminal();
                session::Verdict::Rejected(if about_it { code } else { Code::Rejected })
            }
        }
    }
}
