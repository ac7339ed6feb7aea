//! Batches: messages that are accepted together or not at all.
//!
//! A batch for one shard is one piece of its driver's mail. One for several goes from driver to driver, each machine
//! reserving for its part, and then to the committer, as one order; see `machine::reserve`. Its sender only waits for the
//! answers, so nothing depends on whether it still does.
//!
//! What is bounded: how much is under way across shards at once. The rest waits before it has anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::engine::Engine;
use super::error::BatchError;
use super::fanout::Slices;
use super::mail::{Answers, Mail};
use super::receipt::Receipt;
use crate::machine::{Accepted, Joint, JointId, Refusal, Ticket};
use crate::message::Message;

/// How many batches across shards may be under way at once, if they are small.
pub(super) const MAX_JOINTS: usize = 64;
/// A larger one counts once for each of these: 4 MiB together.
const JOINT_BYTES: u64 = 64 << 10;
/// Tickets from here on are those of batches across shards: any driver may have to answer them.
const FIRST_TICKET: u64 = 1 << 63;

impl Engine {
    /// Accepts messages together: all of them, in one commit, or none. After any crash all are there or none is. They
    /// may be for different people; each waits behind what was accepted before it, in the order of the batch. A repeat
    /// of a message counts as accepted; so does a repeat of a whole batch. Empty batches do nothing.
    ///
    /// At most 1,024 messages, or [`Config::max_pending`](crate::Config::max_pending) if that is less, which take at most
    /// [`Config::max_commit_bytes`](crate::Config::max_commit_bytes) (1 MiB, less with a small journal) with 1 KiB for
    /// each. All are answered when they are synced, [`Buffered`](crate::Durability::Buffered) ones too; volatile ones
    /// and those with a collapse key are refused.
    ///
    /// With several shards the recipients may belong to any of them. Then each of these shards reserves first, one after
    /// the other, and what is sent to it meanwhile may be accepted before the batch. 64 such batches, or 4 MiB of them,
    /// are under way at once; more wait here.
    ///
    /// ```
    /// # use lastmile::{Engine, Message, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let invoice = Message::to("alice", "order.invoice", "…").build()?;
    /// let receipt = Message::to("shop", "order.sold", "…").build()?;
    /// let receipts = engine.send_batch(vec![invoice, receipt]).await?;
    /// assert_eq!(receipts.len(), 2);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`BatchError`] with the messages and which of them was refused. Nothing of the batch was stored and nothing is
    /// held for it, unless it says that the outcome is unknown.
    ///
    /// # Cancel safety
    /// Dropped before it returns, all may be accepted or none, and nothing stays reserved. Sending the same batch again
    /// is safe.
    pub async fn send_batch(&self, messages: Vec<Message>) -> Result<Vec<Receipt>, BatchError> {
        let shards: Vec<_> = messages.iter().map(|message| self.shard(message.recipient())).collect();
        let results = match shards.first() {
            None => return Ok(Vec::new()),
            Some(first) if shards.iter().all(|shard| shard == first) => self.send_within(&messages).await,
            Some(_) => self.send_across(&messages, shards).await,
        };
        let results = match results {
            Ok(results) => results,
            Err(refusal) => return Err(BatchError::new(messages, None, refusal)),
        };
        let (mut receipts, mut refused) = (Vec::new(), Vec::new());
        for (index, (message, result)) in messages.iter().zip(results).enumerate() {
            match result {
                Ok(accepted) => {
                    let user = message.recipient().clone();
                    let post = self.post(&user).clone();
                    receipts.push(Receipt::new(message, user, accepted, post));
                }
                Err(refusal) => refused.push((index, refusal)),
            }
        }
        match refused.is_empty() {
            true => Ok(receipts),
            false => Err(BatchError::of(messages, refused)),
        }
    }

    /// All of them belong to one shard.
    async fn send_within(&self, messages: &[Message]) -> Result<Results, Refusal> {
        let Some(first) = messages.first() else { return Ok(Vec::new()) };
        let (replies, answers): (Vec<_>, Vec<_>) = messages.iter().map(|_| oneshot::channel()).unzip();
        let mail = Mail::SendBatch(messages.iter().cloned().zip(replies).collect());
        let sent = self.post(first.recipient()).mail.send(mail).await;
        sent.map_err(|_| Refusal::ShuttingDown)?;
        let mut results = Vec::with_capacity(messages.len());
        for answer in answers {
            results.push(answer.await.unwrap_or(Err(Refusal::OutcomeUnknown)));
        }
        Ok(results)
    }

    /// They belong to these shards.
    async fn send_across(&self, messages: &[Message], shards: Vec<usize>) -> Result<Results, Refusal> {
        let permit = self.inner.joints.clone().acquire_many_owned(weight(messages)).await;
        let permit = permit.map_err(|_| Refusal::ShuttingDown)?;
        let (reply, answers) = oneshot::channel();
        let first = shards.iter().min().and_then(|first| self.inner.shards.get(*first));
        let messages = shards.into_iter().zip(messages.iter().cloned()).collect();
        let mail = Mail::SendJoint(Box::new(Across { messages, reply, permit }));
        let sent = first.ok_or(Refusal::ShuttingDown)?.mail.send(mail).await;
        sent.map_err(|_| Refusal::ShuttingDown)?;
        answers.await.map_err(|_| Refusal::OutcomeUnknown)
    }
}

type Results = Vec<Result<Accepted, Refusal>>;

/// What a batch across shards counts for.
fn weight(messages: &[Message]) -> u32 {
    let bytes: u64 = messages.iter().map(Message::cost).sum();
    // What is larger than all may be together is refused as too large.
    u32::try_from(bytes.div_ceil(JOINT_BYTES).clamp(1, MAX_JOINTS as u64)).unwrap_or(1)
}

/// How many batches across shards may be under way.
pub(super) fn gate() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_JOINTS))
}

/// A batch across shards, in its order, as its sender hands it over to the first of them.
#[derive(Debug)]
pub(super) struct Across {
    messages: Vec<(usize, Message)>,
    reply: Answers,
    permit: OwnedSemaphorePermit,
}

impl Across {
    /// What its messages take, about.
    pub(super) fn bytes(&self) -> u64 {
        self.messages.iter().map(|(_, message)| message.cost()).sum()
    }
}

/// The batches across shards that are not answered yet. Only drivers have it: when all are gone, so is whoever could have
/// answered, and those who wait are told.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    slices: Mutex<Slices>,
    tickets: AtomicU64,
}

impl Unanswered {
    /// Waits for the answers of a batch, which begins here.
    pub(super) fn open(&self, Across { messages, reply, permit }: Across) -> Joint {
        let count = messages.len() as u64;
        let first = FIRST_TICKET.wrapping_add(self.tickets.fetch_add(count, Ordering::Relaxed));
        self.slices.lock().open(Ticket(first), messages.len(), reply, Some(permit));
        let tickets = (0..).map(|n| Ticket(first.wrapping_add(n)));
        let messages = tickets.zip(messages).map(|(ticket, (shard, message))| (shard, ticket, message));
        Joint::new(JointId(first), messages)
    }

    /// Takes an answer, if the ticket is one of these.
    pub(super) fn answer(
        &self,
        ticket: Ticket,
        result: Result<Accepted, Refusal>,
    ) -> Option<Result<Accepted, Refusal>> {
        if ticket.0 < FIRST_TICKET {
            return Some(result);
        }
        self.slices.lock().answer(ticket, result);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_counts_once_for_each_64_kib_and_never_for_more_than_there_is() {
        let of = |bytes: usize| {
            let message = Message::to("alice", "chat.message", Vec::new()).build().unwrap();
            let bytes = bytes - message.cost() as usize;
            vec![Message::to("alice", "chat.message", vec![0; bytes]).build().unwrap()]
        };
        let unit = JOINT_BYTES as usize;
        for (bytes, expected) in [(unit - 1, 1), (unit, 1), (unit + 1, 2), (3 * unit, 3)] {
            assert_eq!(weight(&of(bytes)), expected, "{bytes} bytes");
        }
        assert_eq!(weight(&of(65 * unit)), MAX_JOINTS as u32);
        assert_eq!(weight(&[]), 1);
    }
}
