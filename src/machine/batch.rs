//! Batches: messages that are accepted together or not at all.
//!
//! Everything that must be known of them is read first. Then they take their shares of the quotas one after the other,
//! and give them back if one of them is refused. Their records are never parted, so that one commit has them all.

use std::sync::Arc;

use super::Machine;
use super::accept::{Parked, at_once_if_due};
use super::commit::{PendingAccept, Unit};
use super::dedup::{Known, Slot};
use super::io::{LoadId, Ticket};
use super::query::Query;
use super::refusal::Refusal;
use crate::message::{Durability, Message};
use crate::record::Accept;
use crate::time::Timestamp;

/// The most messages a batch may have.
pub const MAX_BATCH_MESSAGES: usize = 1024;
/// How often a batch waits for the store before it counts as more than memory holds at once.
const MAX_ROUNDS: u32 = 64;

/// A batch that waits for the store. Its recipients stay in memory meanwhile.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) messages: Vec<(Ticket, Message)>,
    rounds: u32,
}

/// Which message is refused (none: all are) and why.
type Refused = (Option<usize>, Refusal);

impl Machine {
    pub(super) fn handle_send_batch(&mut self, now: Timestamp, messages: Vec<(Ticket, Message)>) {
        self.take_batch(now, Batch { messages, rounds: 0 });
    }

    /// What a parked batch waited for was read, or could not be.
    pub(super) fn resume_batch(&mut self, now: Timestamp, mut batch: Batch, failed: bool) {
        batch.rounds += 1;
        let recipients: Vec<_> =
            batch.messages.iter().map(|(_, message)| message.recipient().clone()).collect();
        match failed {
            true => self.refuse_batch(batch.messages, (None, Refusal::StoreUnreadable)),
            false => self.take_batch(now, batch),
        }
        for recipient in recipients {
            if let Some(user) = self.users.get_mut(&recipient) {
                user.operations = user.operations.saturating_sub(1);
            }
            self.let_go(&recipient);
        }
    }

    /// Refuses a batch as a whole.
    pub(super) fn refuse_batch(&mut self, messages: Vec<(Ticket, Message)>, (which, refusal): Refused) {
        for (i, (ticket, message)) in messages.into_iter().enumerate() {
            let own = which.is_none_or(|which| which == i);
            self.answer(ticket, Err(if own { refusal.clone() } else { Refusal::OtherRefused }));
            self.evict_if_idle(message.recipient());
        }
    }

    fn take_batch(&mut self, now: Timestamp, batch: Batch) {
        if let Err(refused) = self.gate_batch(&batch.messages) {
            return self.refuse_batch(batch.messages, refused);
        }
        match self.read_for_batch(&batch.messages) {
            Some(_) if batch.rounds >= MAX_ROUNDS => {
                self.refuse_batch(batch.messages, (None, Refusal::Overloaded));
            }
            Some(load) => {
                for (_, message) in &batch.messages {
                    self.user_mut(message.recipient()).operations += 1;
                }
                self.parked_count += batch.messages.len();
                self.parked.entry(load).or_default().push(Parked::Batch(batch));
            }
            None => {
                if let Err(refused) = self.accept_batch(now, &batch.messages) {
                    self.refuse_batch(batch.messages, refused);
                }
            }
        }
    }

    fn gate_batch(&self, messages: &[(Ticket, Message)]) -> Result<(), Refused> {
        let max_bytes = self.config.max_commit_bytes.get();
        let bytes = messages.iter().map(|(_, message)| PendingAccept::bytes(message)).sum();
        // A batch that could never wait as a whole would be told for ever to come back.
        let max_messages = MAX_BATCH_MESSAGES.min(self.config.max_pending.get());
        if messages.len() > max_messages || bytes > max_bytes {
            let messages = messages.len();
            return Err((None, Refusal::BatchTooLarge { messages, max_messages, bytes, max_bytes }));
        }
        if self.unanswered().saturating_add(messages.len()) > self.config.max_pending.get() {
            return Err((None, Refusal::Overloaded));
        }
        for (i, (_, message)) in messages.iter().enumerate() {
            self.gate(message).map_err(|refusal| (Some(i), refusal))?;
            if message.durability() == Durability::Volatile {
                return Err((Some(i), Refusal::VolatileInBatch));
            }
            if message.collapse_key().is_some() {
                return Err((Some(i), Refusal::CollapseInBatch));
            }
        }
        Ok(())
    }

    /// Asks the store for all that is not known yet; the load that was asked for last.
    fn read_for_batch(&mut self, messages: &[(Ticket, Message)]) -> Option<LoadId> {
        let mut last = None;
        for (_, message) in messages {
            if matches!(self.look_up(message).1, Known::AskStore) {
                last = Some(self.load_once(self.ids_of_sender(message)));
            }
            if !self.ensure_totals(message.recipient()) {
                last = Some(self.load_once(Query::User(message.recipient().clone())));
            }
        }
        last
    }

    /// Accepts all of them, or changes nothing.
    fn accept_batch(&mut self, now: Timestamp, messages: &[(Ticket, Message)]) -> Result<(), Refused> {
        let mut taken = Vec::new();
        let mut repeats = Vec::new();
        for (i, (ticket, message)) in messages.iter().enumerate() {
            match self.claim_in_batch(now, message) {
                Ok(Ok(key)) => {
                    let message = at_once_if_due(message.clone(), now);
                    let accept = Arc::new(Accept::new(message, now));
                    taken.push((*ticket, accept, key));
                }
                Ok(Err((key, slot))) => repeats.push((*ticket, key, slot, message)),
                Err(refusal) => {
                    for (_, accept, key) in taken {
                        self.unclaim(&accept);
                        self.dedup.cancel(key);
                    }
                    return Err((Some(i), refusal));
                }
            }
        }
        for (i, (ticket, accept, key)) in taken.into_iter().enumerate() {
            let unit = if i == 0 { Unit::First } else { Unit::Joined };
            self.push_accept(accept, Some(key), ticket, unit);
        }
        for (ticket, key, slot, message) in repeats {
            self.answer_repeat(ticket, key, slot, message);
        }
        Ok(())
    }

    /// The key of a new message, which has its share now; or what is known of a repeat.
    fn claim_in_batch(
        &mut self,
        now: Timestamp,
        message: &Message,
    ) -> Result<Result<u128, (u128, Slot)>, Refusal> {
        let (key, known) = self.look_up(message);
        match known {
            Known::Seen(slot) if slot.content != self.digester.content(message) => Err(Refusal::Conflict),
            Known::Seen(slot) => Ok(Err((key, slot))),
            // It was there a moment ago: the batch has more senders than memory remembers.
            Known::AskStore => Err(Refusal::Overloaded),
            Known::New => {
                self.claim(message, None)?;
                self.reserve_id(key, message, now);
                Ok(Ok(key))
            }
        }
    }
}
