//! What was sent together, and that all of it is accepted or nothing.

use super::{Identity, Oracle, identity};
use crate::machine::{Accepted, Refusal, Ticket};
use crate::message::Message;

/// How many batches are watched.
const MAX_WATCHED: usize = 32;

/// Messages that were sent together.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    members: Vec<(Ticket, Identity)>,
    /// None of them was ever sent otherwise.
    is_fresh: bool,
    accepted: bool,
    refused: bool,
}

impl Oracle {
    /// A batch was handed to the engine.
    pub(in super::super) fn sent_together(&mut self, batch: &[(Ticket, Message)]) {
        let is_new = |message: &Message| !self.any_known(|other| identity(other) == identity(message));
        let is_fresh = batch.iter().all(|(_, message)| is_new(message));
        let members = batch.iter().map(|(ticket, message)| (*ticket, identity(message))).collect();
        for (ticket, message) in batch {
            self.sent(*ticket, message.clone());
        }
        // What was torn would be so for good, and was seen by now.
        self.batches.drain(..self.batches.len().saturating_sub(MAX_WATCHED));
        self.batches.push(Batch { members, is_fresh, accepted: false, refused: false });
    }

    /// A message is sent by itself, or in another batch.
    pub(super) fn sent_alone(&mut self, message: &Message) {
        let it = identity(message);
        for batch in &mut self.batches {
            batch.is_fresh &= batch.members.iter().all(|(_, member)| *member != it);
        }
    }

    pub(super) fn answered_in_batch(&mut self, ticket: Ticket, result: &Result<Accepted, Refusal>) {
        let is_member = |batch: &&mut Batch| batch.members.iter().any(|(member, _)| *member == ticket);
        let Some(batch) = self.batches.iter_mut().rev().find(is_member) else { return };
        match result {
            Ok(accepted) => batch.accepted |= !accepted.duplicate,
            Err(_) => batch.refused = true,
        }
        if batch.accepted && batch.refused {
            self.fail(format!("a batch was accepted and refused: {ticket:?} {result:?}"));
        }
    }

    /// After every group: a batch is there or not.
    pub(super) fn check_batches(&mut self) {
        let mut torn = None;
        for batch in self.batches.iter().filter(|batch| batch.is_fresh) {
            let known = |(_, it): &&(Ticket, Identity)| self.by_identity.contains_key(it);
            let there = batch.members.iter().filter(known).count();
            if there != 0 && there != batch.members.len() {
                torn = Some(format!("{there} of {} messages of a batch are durable", batch.members.len()));
            }
        }
        self.failures.extend(torn);
    }
}
