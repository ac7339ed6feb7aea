//! What was answered before it is durable: an operation on what was accepted before it waits for that.
//!
//! A buffered message is answered when it is written. Until it is synced (or, should that fail, until the journal has
//! healed) it has no place and is in no lane, so that nobody who looks for it finds it. Whoever means it, or all that its
//! recipient has, therefore waits until all is durable that was answered before.

use std::collections::{BTreeMap, VecDeque};

use super::Machine;
use super::io::{Action, Ticket};
use super::operation::Operation;
use crate::id::UserId;
use crate::record::Seq;

/// By recipient.
#[derive(Debug, Default)]
pub(super) struct Promised {
    of: BTreeMap<UserId, Promises>,
    /// Recipients of whom more has become durable, and for whom operations wait.
    due: Vec<UserId>,
}

/// Of one recipient: how many were answered, how many of those are durable, and which operations wait for how many.
#[derive(Debug, Default)]
struct Promises {
    made: u64,
    kept: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// How many must be durable.
    made: u64,
    /// It is about what lies below this place: behind the last of those, once that is durable.
    before: Seq,
    ticket: Ticket,
    operation: Operation,
}

impl Promised {
    /// A message was answered that is not durable.
    pub(super) fn make(&mut self, id: &UserId) {
        let promises = self.of.entry(id.clone()).or_default();
        promises.made = promises.made.saturating_add(1);
    }

    /// One is durable, at this place. They become so in the order in which they were answered.
    pub(super) fn keep(&mut self, id: &UserId, seq: Seq) {
        let Some(promises) = self.of.get_mut(id) else { return };
        promises.kept = promises.kept.saturating_add(1);
        let kept = promises.kept;
        // What is sent by others meanwhile is accepted behind it, and spared by a purge.
        for waits in promises.waiting.iter_mut().take_while(|waits| waits.made <= kept) {
            if waits.made == kept {
                waits.before = waits.before.max(seq.plus(1));
            }
        }
        if promises.waiting.front().is_some_and(|waits| waits.made <= kept) {
            if self.due.last() != Some(id) {
                self.due.push(id.clone());
            }
        } else if promises.kept == promises.made {
            self.of.remove(id);
        }
    }
}

impl Machine {
    /// An operation was asked for: it is about everything that was accepted before.
    pub(super) fn handle_operate(&mut self, ticket: Ticket, operation: Operation) {
        if let Some(refusal) = self.refuses(&operation) {
            return self.actions.push_back(Action::Done { ticket, result: Err(refusal) });
        }
        let promises = match &operation {
            Operation::Cancel(_)
            | Operation::Replace(..)
            | Operation::Reprioritise(..)
            | Operation::Purge(_) => self.promised.of.get_mut(operation.user()),
            _ => None,
        };
        let Some(promises) = promises else { return self.operate(ticket, operation, self.applied) };
        let (made, before) = (promises.made, self.applied);
        promises.waiting.push_back(Waiting { made, before, ticket, operation });
        self.parked_count += 1;
    }

    /// A whole commit is state: goes on with the operations that have waited for what it made durable.
    pub(super) fn take_up_operations(&mut self) {
        for id in core::mem::take(&mut self.promised.due) {
            let Some(promises) = self.promised.of.get_mut(&id) else { continue };
            let kept = promises.kept;
            let n = promises.waiting.iter().take_while(|waits| waits.made <= kept).count();
            let ready: Vec<_> = promises.waiting.drain(..n).collect();
            if promises.kept == promises.made {
                self.promised.of.remove(&id);
            }
            for Waiting { before, ticket, operation, .. } in ready {
                self.parked_count = self.parked_count.saturating_sub(1);
                self.operate(ticket, operation, before);
            }
        }
    }
}
