//! One message to many people: recipients are handed to the drivers in slices, and every one is answered.
//!
//! What is bounded: a slice, and how many slices of one fan-out a driver has without an answer. So a fan-out takes no
//! more memory than its answers, however many people it goes to, and other senders' mail is taken up between its slices.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::engine::Engine;
use super::mail::{Answers, Mail, Post};
use super::receipt::Receipt;
use crate::id::UserId;
use crate::machine::{Accepted, Refusal, Ticket};
use crate::message::Message;

/// The most recipients handed over at once: about what one commit takes.
const MAX_SLICE: usize = 1024;
/// Slices of a fan-out that a driver may have open: while one is being synced, the next one is built.
const MAX_OPEN: usize = 4;
/// What a recipient takes in a commit, about.
const RECIPIENT_BYTES: u64 = 32;

impl Engine {
    /// Accepts one message for many people, each of whom has a verdict of their own: accepted, a repeat, refused. It is
    /// as if it were sent to each of them, but what it says is written once in a commit and once when it settles, and
    /// shared in memory. Whom the message itself names as its recipient does not matter. It has the same id for
    /// everybody, so that a fan-out may be repeated, as a whole or for some: who has it already is a repeat.
    ///
    /// What was accepted comes as a [`Receipt`], with which each recipient's copy can be followed; it is as large as 200 bytes,
    /// so drop those that nobody follows.
    ///
    /// It is not atomic; [`Engine::send_batch`] is. Quotas count what the message costs each recipient, as if it were
    /// theirs alone. However many people there are, no more than a few thousand are under way at once.
    ///
    /// ```
    /// # use lastmile::{Engine, Message, UserId, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let news = Message::to("everybody", "news.published", "…").sender("editor").build()?;
    /// let readers = (0..1000).map(|n| UserId::new(format!("reader-{n}"))).collect::<Result<Vec<_>, _>>()?;
    /// for (reader, verdict) in engine.fan_out(&news, readers).await {
    ///     let receipt = verdict.map_err(|refusal| format!("{reader}: {refusal}"))?;
    ///     assert!(!receipt.is_duplicate());
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// None of its own: [`Refusal`] says for each recipient what [`Engine::send`] would have said.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the message may have been accepted for some, in each shard for those who come first.
    /// Repeating it is safe.
    #[tracing::instrument(
        name = "send outbox",
        level = "debug",
        skip_all,
        fields(
            messaging.system = "lastmile",
            messaging.operation.name = "send",
            messaging.destination.template = "outbox/{user}",
            messaging.message.id = %message.id(),
        )
    )]
    pub async fn fan_out(
        &self,
        message: &Message,
        recipients: impl IntoIterator<Item = UserId>,
    ) -> Vec<(UserId, Result<Receipt, Refusal>)> {
        let bounds = Bounds::within(self.inner.max_pending);
        let mut verdicts = Vec::new();
        let new = |post: &Post| Share {
            post: post.clone(),
            message: message.clone(),
            next: Default::default(),
            open: VecDeque::new(),
        };
        let mut shares: Vec<Share> = self.inner.shards.iter().map(new).collect();
        for user in recipients {
            let shard = self.shard(&user);
            let Some(share) = shares.get_mut(shard) else { continue };
            share.next.0.push(verdicts.len());
            share.next.1.push(user.clone());
            // What is never answered stays unknown.
            verdicts.push((user, Err(Refusal::OutcomeUnknown)));
            if share.next.1.len() >= bounds.slice {
                share.hand_over(message, bounds, &mut verdicts).await;
            }
        }
        for share in &mut shares {
            share.hand_over(message, bounds, &mut verdicts).await;
        }
        for share in &mut shares {
            while share.wait(&mut verdicts).await {}
        }
        verdicts
    }
}

type Results = Vec<Result<Accepted, Refusal>>;
type Verdicts = Vec<(UserId, Result<Receipt, Refusal>)>;

/// How much of a fan-out is under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    slice: usize,
    open: usize,
}

impl Bounds {
    /// As much as may wait for an answer, or a fan-out would be refused for its own sake.
    fn within(max_pending: usize) -> Self {
        let open = MAX_OPEN.min(max_pending).max(1);
        Self { slice: MAX_SLICE.min(max_pending / open).max(1), open }
    }
}

/// What one shard has of a fan-out.
struct Share {
    post: Post,
    /// What they all get.
    message: Message,
    /// Where the answers of the next slice belong, and whom it is for.
    next: (Vec<usize>, Vec<UserId>),
    open: VecDeque<(Vec<usize>, oneshot::Receiver<Results>)>,
}

impl Share {
    /// Hands the next slice to the driver, once it has no more than a few.
    async fn hand_over(&mut self, message: &Message, bounds: Bounds, verdicts: &mut Verdicts) {
        let (places, recipients) = core::mem::take(&mut self.next);
        if places.is_empty() {
            return;
        }
        while self.open.len() >= bounds.open {
            self.wait(verdicts).await;
        }
        let (reply, answers) = oneshot::channel();
        let mail = Mail::FanOut { message: message.clone(), recipients, reply };
        match self.post.mail.send(mail).await {
            Ok(()) => self.open.push_back((places, answers)),
            Err(_) => {
                for place in places {
                    self.settle(verdicts, place, Err(Refusal::ShuttingDown));
                }
            }
        }
    }

    /// Takes the answers of the oldest slice; `false` when there is none.
    async fn wait(&mut self, verdicts: &mut Verdicts) -> bool {
        let Some((_, answers)) = self.open.front_mut() else { return false };
        // A driver that is gone has answered nothing: what became of the slice is unknown.
        let answers = answers.await.unwrap_or_default();
        let places = self.open.pop_front().map(|(places, _)| places);
        for (place, result) in places.into_iter().flatten().zip(answers) {
            self.settle(verdicts, place, result);
        }
        true
    }

    fn settle(&self, verdicts: &mut Verdicts, place: usize, result: Result<Accepted, Refusal>) {
        if let Some((user, verdict)) = verdicts.get_mut(place) {
            *verdict =
                result.map(|accepted| Receipt::new(&self.message, user.clone(), accepted, self.post.clone()));
        }
    }
}

/// What a slice takes in a commit, about.
pub(super) fn bytes(message: &Message, recipients: &[UserId]) -> u64 {
    message.cost().saturating_add(RECIPIENT_BYTES.saturating_mul(recipients.len() as u64))
}

/// What is answered as a whole and is not yet, by its first ticket: slices of a fan-out, batches across shards.
#[derive(Debug, Default)]
pub(super) struct Slices(BTreeMap<u64, Slice>);

#[derive(Debug)]
struct Slice {
    answers: Results,
    left: usize,
    reply: Answers,
    /// What it was let in with, until it is answered.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Slices {
    /// Waits for so many answers.
    pub(super) fn open(
        &mut self,
        first: Ticket,
        recipients: usize,
        reply: Answers,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let answers = vec![Err(Refusal::OutcomeUnknown); recipients];
        self.0.insert(first.0, Slice { answers, left: recipients, reply, _permit: permit });
    }

    /// Takes an answer, if the ticket is one of a slice, and hands over the slice that is complete with it.
    pub(super) fn answer(&mut self, ticket: Ticket, result: Result<Accepted, Refusal>) {
        let Some((first, slice)) = self.0.range_mut(..=ticket.0).next_back() else { return };
        let at = usize::try_from(ticket.0.saturating_sub(*first)).unwrap_or(usize::MAX);
        let Some(answer) = slice.answers.get_mut(at) else { return };
        *answer = result;
        slice.left = slice.left.saturating_sub(1);
        if slice.left == 0 {
            let first = *first;
            if let Some(Slice { answers, reply, .. }) = self.0.remove(&first) {
                // Whoever asked may have gone.
                let _ = reply.send(answers);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_as_large_as_may_wait_and_never_empty() {
        let bounds = |max_pending| Bounds::within(max_pending);
        assert_eq!(bounds(65_536), Bounds { slice: 1024, open: 4 });
        assert_eq!(bounds(4095), Bounds { slice: 1023, open: 4 });
        assert_eq!(bounds(4096), Bounds { slice: 1024, open: 4 });
        assert_eq!(bounds(4097), Bounds { slice: 1024, open: 4 });
        for max_pending in 1..64 {
            let Bounds { slice, open } = bounds(max_pending);
            assert!(slice > 0 && open > 0 && slice * open <= max_pending, "{max_pending}");
        }
    }

    #[test]
    fn a_slice_is_answered_once_all_of_it_is_whatever_the_order() {
        let mut slices = Slices::default();
        let ((a, mut first), (b, mut second)) = (oneshot::channel(), oneshot::channel());
        slices.open(Ticket(5), 2, a, None);
        slices.open(Ticket(7), 1, b, None);
        slices.answer(Ticket(6), Err(Refusal::Conflict));
        slices.answer(Ticket(8), Err(Refusal::Conflict));
        slices.answer(Ticket(4), Err(Refusal::Conflict));
        assert!(first.try_recv().is_err() && second.try_recv().is_err());
        slices.answer(Ticket(7), Err(Refusal::Overloaded));
        assert_eq!(second.try_recv(), Ok(vec![Err(Refusal::Overloaded)]));
        slices.answer(Ticket(5), Err(Refusal::Degraded));
        assert_eq!(first.try_recv(), Ok(vec![Err(Refusal::Degraded), Err(Refusal::Conflict)]));
        assert!(slices.0.is_empty());
    }
}
