//! The router as an engine's sink, and as a session's receiver.

use tokio::runtime::Handle;

use super::Router;
use super::feed::{Answer, Answers, Feed, Tag};
use crate::machine::{Delivery, EntryRef, Verdict};
use crate::ports::{Acks, Receiver, Sink};
use crate::runtime::tasks;
use crate::session::{self, Inbound, InboundId};

/// What a router has of its attachment.
#[derive(Default)]
pub(super) enum State {
    #[default]
    Loose,
    /// Answers go to the engine by themselves.
    Attached(Feed),
}

impl Sink for Router {
    fn attached(&mut self, acks: Acks) {
        let (feed, answers) = self.feed();
        tasks::spawn(&Handle::current(), report(answers, acks));
        self.sink = State::Attached(feed);
    }

    /// Hands the messages in; what becomes of them is reported as it comes, so that a slow one holds up nothing but what has its key.
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        match &self.sink {
            State::Attached(feed) => {
                batch.into_iter().for_each(|delivery| hand(feed, delivery));
                Vec::new()
            }
            // Whoever calls it has no place for later answers.
            State::Loose => {
                let (feed, answers) = self.feed();
                batch.into_iter().for_each(|delivery| hand(&feed, delivery));
                all(answers).await
            }
        }
    }
}

/// Straight from a peer's session, without an inbox before it: answers to requests ride with the acknowledgements. A batch is
/// answered as a whole, so its slowest message holds up the session's next ones; whoever drives a session without that
/// uses [`Router::feed`].
impl Receiver for Router {
    async fn receive(&mut self, batch: Vec<Inbound>) -> Vec<(InboundId, session::Verdict)> {
        let (feed, mut answers) = self.feed();
        batch.into_iter().for_each(|inbound| feed.hand(inbound));
        let mut verdicts = Vec::new();
        while !answers.is_idle()
            && let Some(news) = answers.next().await
        {
            verdicts.extend(news.into_iter().filter(|(_, verdict)| *verdict != session::Verdict::Progress));
        }
        verdicts
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
