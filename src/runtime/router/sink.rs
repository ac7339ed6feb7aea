//! The router as an engine's sink, and as a session's receiver.

use core::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::Router;
use super::feed::{Answer, Answers, Feed, Tag};
use crate::machine::{Delivery, EntryRef, Verdict, Withdrawn};
use crate::ports::{Acks, Receiver, Sink};
use crate::runtime::contain::Running;
use crate::runtime::tasks;
use crate::session::{self, Inbound, InboundId};

/// What a router has of its attachment.
#[derive(Default)]
pub(super) enum State {
    #[default]
    Loose,
    /// Answers go to the engine by themselves.
    Attached(Feed),
    /// Answers are asked for. Nobody but its owner does, so the lock is never taken: it lets handles be shared.
    Receiving(Feed, Mutex<Next>),
}

/// Waits for the next answers.
type Next = Running<'static, (Answers, Option<Vec<(InboundId, session::Verdict)>>)>;

fn next(mut answers: Answers) -> Next {
    Box::pin(async move {
        let news = answers.next().await;
        (answers, news)
    })
}

impl Sink for Router {
    fn attached(&mut self, acks: Acks) {
        let (feed, answers) = self.feed();
        tasks::spawn(&Handle::current(), report(answers, acks));
        self.sink = State::Attached(feed);
    }

    async fn withdrawn(&mut self, withdrawn: Withdrawn) {
        if let State::Attached(feed) = &self.sink {
            feed.take_back(Tag::Entry(withdrawn.entry));
        }
    }

    /// Hands the messages in; what becomes of them is reported as it comes, so that a slow one holds up nothing but what has its key.
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        match &self.sink {
            State::Attached(feed) => {
                batch.into_iter().for_each(|delivery| hand(feed, delivery));
                Vec::new()
            }
            // Whoever calls it has no place for later answers.
            State::Loose | State::Receiving(..) => {
                let (feed, answers) = self.feed();
                batch.into_iter().for_each(|delivery| hand(&feed, delivery));
                all(answers).await
            }
        }
    }
}

/// Straight from a peer's session, without an inbox before it: answers to requests ride with the acknowledgements. What
/// becomes of a message is said as it comes, so that a slow one holds up nothing but what has its key.
impl Receiver for Router {
    async fn receive(&mut self, batch: Vec<Inbound>) -> Vec<(InboundId, session::Verdict)> {
        if !matches!(self.sink, State::Receiving(..)) {
            let (feed, answers) = self.feed();
            self.sink = State::Receiving(feed, Mutex::new(next(answers)));
        }
        let later = batch.iter().map(|inbound| (inbound.id, session::Verdict::Progress)).collect();
        if let State::Receiving(feed, _) = &self.sink {
            batch.into_iter().for_each(|inbound| feed.hand(inbound));
        }
        later
    }

    fn withdrawn(&mut self, id: InboundId) {
        if let State::Receiving(feed, _) = &self.sink {
            feed.withdraw(id);
        }
    }

    fn poll_verdicts(&mut self, context: &mut Context<'_>) -> Poll<Vec<(InboundId, session::Verdict)>> {
        let State::Receiving(_, waiting) = &mut self.sink else { return Poll::Pending };
        let waiting = waiting.get_mut();
        let Poll::Ready((answers, news)) = waiting.as_mut().poll(context) else { return Poll::Pending };
        *waiting = next(answers);
        Poll::Ready(news.unwrap_or_default())
    }
}

fn hand(feed: &Feed, delivery: Delivery) {
    feed.hand_in(Tag::Entry(delivery.entry), delivery.entry.lane, delivery.into());
}

fn verdict((tag, answer): (Tag, Answer)) -> Option<(EntryRef, Verdict)> {
    match tag {
        Tag::Entry(entry) => Some((entry, answer.into_verdict())),
        Tag::Inbound(_) => None,
    }
}

/// Until the attachment or the engine is gone.
async fn report(mut answers: Answers, acks: Acks) {
    while let Some(news) = answers.collect().await {
        if acks.report(news.into_iter().filter_map(verdict).collect()).await.is_err() {
            return;
        }
    }
}

/// All final answers.
async fn all(mut answers: Answers) -> Vec<(EntryRef, Verdict)> {
    let mut verdicts = Vec::new();
    while !answers.is_idle()
        && let Some(news) = answers.collect().await
    {
        let is_final = |verdict: &(EntryRef, Verdict)| verdict.1 != Verdict::Progress;
        verdicts.extend(news.into_iter().filter_map(verdict).filter(is_final));
    }
    verdicts
}
