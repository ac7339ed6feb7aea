//! Batches: messages that are accepted together or not at all.
//!
//! Everything that must be known of them is read first. Then they take their shares of the quotas one after the other,
//! and give them back if one of them is refused. Their records are never parted, so that one commit has them all.

use std::sync::Arc;

use super::Machine;
use super::accept::{Parked, at_once_if_due};
use super::commit::{PendingAccept, Unit};
use super::dedup::{Known, Slot};
use super::devices::Among;
use super::fanout::LIKE_BYTES;
use super::io::{LoadId, Ticket};
use super::query::Query;
use super::refusal::Refusal;
use super::reserve::recipients;
use super::user::Totals;
use crate::message::{Durability, Message};
use crate::record::Accept;
use crate::time::Timestamp;

/// The most messages a batch may have.
pub const MAX_BATCH_MESSAGES: usize = 1024;
/// How often a batch waits for the store before it counts as more than memory holds at once.
pub(super) const MAX_ROUNDS: u32 = 64;

/// A batch that waits for the store. Its recipients stay in memory meanwhile.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) messages: Vec<(Ticket, Message)>,
    rounds: u32,
}

/// Which message is refused (none: all are) and why.
pub(super) type Refused = (Option<Ticket>, Refusal);

/// What one message of a batch is: new, with its key and its devices; or a repeat, with its key and what is known of it.
type InBatch = Result<(u128, Among), (u128, Slot)>;

/// What messages come to that are accepted together.
pub(super) struct Claimed {
    /// The new ones, which have their shares, with their keys.
    pub(super) taken: Vec<(Ticket, Vec<Arc<Accept>>, u128)>,
    /// The others, and what is known of them.
    pub(super) repeats: Vec<(Ticket, u128, Slot, Message)>,
}

impl Machine {
    pub(super) fn handle_send_batch(&mut self, now: Timestamp, messages: Vec<(Ticket, Message)>) {
        self.take_batch(now, Batch { messages, rounds: 0 });
    }

    /// What a parked batch waited for was read, or could not be.
    pub(super) fn resume_batch(&mut self, now: Timestamp, mut batch: Batch, refusal: Option<&Refusal>) {
        batch.rounds += 1;
        let recipients = recipients(&batch.messages);
        match refusal {
            Some(refusal) => self.refuse_batch(batch.messages, (None, refusal.clone())),
            None => self.take_batch(now, batch),
        }
        self.let_go_of(&recipients);
    }

    /// Refuses a batch as a whole.
    pub(super) fn refuse_batch(&mut self, messages: Vec<(Ticket, Message)>, (which, refusal): Refused) {
        for (ticket, message) in messages {
            let own = which.is_none_or(|which| which == ticket);
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
                self.hold_on_to(&batch.messages);
                self.park_at(load, Parked::Batch(batch));
            }
            None => {
                if let Err(refused) = self.accept_batch(now, &batch.messages) {
                    self.refuse_batch(batch.messages, refused);
                }
            }
        }
    }

    fn gate_batch(&self, messages: &[(Ticket, Message)]) -> Result<(), Refused> {
        self.check_batch(messages)?;
        self.gate_part(messages)
    }

    /// Whether these fit together and each may be in a batch at all.
    pub(super) fn check_batch<'a>(
        &self,
        messages: impl IntoIterator<Item = &'a (Ticket, Message)> + Clone,
    ) -> Result<(), Refused> {
        let all = || messages.clone().into_iter();
        let max_bytes = self.config.max_commit_bytes.get();
        let bytes = all().map(|(_, message)| PendingAccept::bytes(message)).sum();
        // A batch that could never wait as a whole would be told for ever to come back.
        let max_messages = MAX_BATCH_MESSAGES.min(self.config.max_pending.get());
        let messages = all().count();
        if messages > max_messages || bytes > max_bytes {
            return Err((None, Refusal::BatchTooLarge { messages, max_messages, bytes, max_bytes }));
        }
        for (ticket, message) in all() {
            let refused = |refusal| (Some(*ticket), refusal);
            self.check_size(message).map_err(refused)?;
            if message.durability() == Durability::Volatile {
                return Err(refused(Refusal::VolatileInBatch));
            }
            if message.collapse_key().is_some() {
                return Err(refused(Refusal::CollapseInBatch));
            }
            if message.after().is_some() {
                return Err(refused(Refusal::DependentInBatch));
            }
        }
        Ok(())
    }

    /// Whether these, which fit, may come in now: what is against that is against all of them.
    pub(super) fn gate_part(&self, messages: &[(Ticket, Message)]) -> Result<(), Refused> {
        if self.unanswered().saturating_add(messages.len()) > self.config.max_pending.get() {
            return Err((None, Refusal::Overloaded));
        }
        messages.iter().try_for_each(|(_, message)| self.gate(message)).map_err(|refusal| (None, refusal))
    }

    /// Asks for all that is not known yet: what was asked for last.
    pub(super) fn read_for_batch(&mut self, messages: &[(Ticket, Message)]) -> Option<LoadId> {
        let mut last = None;
        for (_, message) in messages {
            match self.look_up(message) {
                (_, Known::AskStore) => last = Some(self.load_once(self.ids_of_sender(message))),
                (key, Known::Held) => last = Some(self.wait_for_id(key)),
                (_, Known::New | Known::Seen(_)) => {}
            }
            if !self.ensure_totals(message.recipient()) {
                last = Some(self.load_once(Query::User(message.recipient().clone())));
            } else if let Err(query) = self.devices_of(message, self.now) {
                last = Some(self.load_once(query));
            }
        }
        last
    }

    /// Accepts all of them, or changes nothing.
    fn accept_batch(&mut self, now: Timestamp, messages: &[(Ticket, Message)]) -> Result<(), Refused> {
        let Claimed { taken, repeats } = self.claim_all(now, messages)?;
        for (i, (ticket, accepts, key)) in taken.into_iter().enumerate() {
            let unit = if i == 0 { Unit::First } else { Unit::Joined };
            self.push_accept(accepts, Some(key), ticket, unit);
        }
        for (ticket, key, slot, message) in repeats {
            self.answer_repeat(ticket, key, slot, &message);
        }
        Ok(())
    }

    /// Takes the shares of all of them, one after the other, or none.
    pub(super) fn claim_all(
        &mut self,
        now: Timestamp,
        messages: &[(Ticket, Message)],
    ) -> Result<Claimed, Refused> {
        let mut claimed = Claimed { taken: Vec::new(), repeats: Vec::new() };
        for (ticket, message) in messages {
            match self.claim_in_batch(now, message) {
                Ok(Ok((key, among))) => {
                    let message = at_once_if_due(message.clone(), now);
                    claimed.taken.push((*ticket, self.spread(among, Accept::new(message, now)), key));
                }
                Ok(Err((key, slot))) => claimed.repeats.push((*ticket, key, slot, message.clone())),
                Err(refusal) => {
                    self.give_back_claimed(claimed);
                    return Err((Some(*ticket), refusal));
                }
            }
        }
        // How many copies there are was not known before.
        let bytes = |accepts: &[Arc<Accept>]| {
            let message = accepts.first().map_or(0, |accept| PendingAccept::bytes(&accept.message));
            message.saturating_add(LIKE_BYTES.saturating_mul(accepts.len() as u64))
        };
        let bytes = claimed.taken.iter().map(|(_, accepts, _)| bytes(accepts)).sum();
        let has_copies = claimed.taken.iter().any(|(_, accepts, _)| accepts.len() > 1);
        let max_bytes = self.config.max_commit_bytes.get();
        if has_copies && bytes > max_bytes {
            self.give_back_claimed(claimed);
            let max_messages = MAX_BATCH_MESSAGES.min(self.config.max_pending.get());
            let messages = messages.len();
            return Err((None, Refusal::BatchTooLarge { messages, max_messages, bytes, max_bytes }));
        }
        Ok(claimed)
    }

    fn give_back_claimed(&mut self, claimed: Claimed) {
        for (_, accepts, key) in claimed.taken {
            accepts.iter().for_each(|accept| self.unclaim(accept));
            self.dedup.cancel(key);
        }
    }

    /// The key of a new message, which has its share now; or what is known of a repeat.
    fn claim_in_batch(&mut self, now: Timestamp, message: &Message) -> Result<InBatch, Refusal> {
        let (key, known) = self.look_up(message);
        match known {
            Known::Seen(slot) if slot.content != self.digester.content(message) => Err(Refusal::Conflict),
            Known::Seen(slot) => Ok(Err((key, slot))),
            // It was there a moment ago: the batch has more senders than memory remembers.
            Known::AskStore | Known::Held => Err(Refusal::Overloaded),
            Known::New => {
                // So it is when the row has left memory again.
                let among = self.devices_of(message, now).map_err(|_| Refusal::Overloaded)?;
                self.claim(message, among.copies(), Totals::default())?;
                self.reserve_id(key, message, now, among);
                Ok(Ok((key, among)))
            }
        }
    }
}
