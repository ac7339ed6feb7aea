//! What hosts asked to be withdrawn, and whether the answers are true.

use super::Oracle;
use crate::machine::{Operation, OperationError, Outcome, Ticket};
use crate::message::Message;
use crate::record::{Record, Seq};
use crate::status::EndReason;

/// An operation that waits for its answer.
#[derive(Debug)]
pub(in super::super) struct Asked {
    operation: Operation,
    /// What lived and was known to the machine when it was asked, if that was all that lived.
    lived: Option<Vec<Seq>>,
}

impl Oracle {
    /// An operation was handed to the engine. `told` says whether the machines know all that is durable.
    pub(in super::super) fn asked(&mut self, ticket: Ticket, operation: Operation, told: bool) {
        if let Operation::Replace(_, message) = &operation {
            self.sent_alone(message);
        }
        let about = |message: &Message| is_about(&operation, message);
        let lived =
            self.live().filter(|(_, kept)| about(&kept.accept.message)).map(|(seq, _)| *seq).collect();
        self.withdrawals.push(operation.clone());
        self.operations.insert(ticket, Asked { operation, lived: told.then_some(lived) });
    }

    /// Whether somebody asked for this message to end like this, in whatever life.
    pub(super) fn was_withdrawn(withdrawals: &[Operation], message: &Message, reason: EndReason) -> bool {
        withdrawals.iter().any(|operation| operation.reason() == reason && is_about(operation, message))
    }

    /// Every message that was to take the place of another.
    pub(super) fn replacements(&self) -> impl Iterator<Item = &Message> {
        self.withdrawals.iter().filter_map(|operation| match operation {
            Operation::Replace(_, message) => Some(message),
            _ => None,
        })
    }

    /// What takes a message's place is durable with its end, and the end with it.
    pub(super) fn check_units(&mut self, group: &[(Seq, Record)]) {
        let mut previous: Option<&Record> = None;
        let end = (Seq::MAX, None);
        for (seq, record) in group.iter().map(|(seq, record)| (*seq, Some(record))).chain([end]) {
            let replaced = match record {
                Some(Record::End(end)) if end.reason == EndReason::Replaced => Some(end),
                _ => None,
            };
            let newcomer = match previous {
                Some(Record::Accept(accept)) => Some(accept),
                _ => None,
            };
            match (newcomer, replaced) {
                (Some(accept), None) if accept.moved => {
                    self.fail(format!("moved to before {seq:?} and still there"))
                }
                (None, Some(_)) => self.fail(format!("replaced at {seq:?} by nothing")),
                (Some(accept), Some(end)) if accept.message.recipient() != &end.user => {
                    self.fail(format!("replaced at {seq:?} by a message for somebody else"));
                }
                (Some(accept), Some(end)) if accept.moved => {
                    self.moved_to.insert(end.seq, seq.prev());
                }
                _ => {}
            }
            previous = record;
        }
    }

    /// An operation was answered.
    pub(in super::super) fn operated(&mut self, ticket: Ticket, result: &Result<Outcome, OperationError>) {
        let Some(Asked { operation, lived }) = self.operations.remove(&ticket) else {
            return self.fail(format!("operation {ticket:?} was answered twice, or never asked"));
        };
        let about = |message: &Message| is_about(&operation, message);
        let reason = Some(operation.reason());
        let withdrawn =
            self.messages.values().filter(|kept| kept.withdrawn == reason && about(&kept.accept.message));
        let (withdrawn, offered) =
            withdrawn.fold((0, 0), |(n, offered), kept| (n + 1, offered + u32::from(kept.offered)));
        let still = lived.iter().flatten().map(|seq| self.place_of(*seq));
        let still =
            still.into_iter().find(|seq| self.messages.get(seq).is_some_and(|kept| kept.end.is_none()));
        let is_one = operation.target().is_some();
        let wrong = match result {
            Ok(done) if !self.is_in_place(&operation, done) => {
                Some("with nothing, or something else, in its place")
            }
            Ok(done) if done.messages > withdrawn => Some("more than has a durable end"),
            Ok(Outcome { messages: 0, accepted: Some(known), .. }) if known.duplicate => None,
            Ok(done) if is_one && done.messages != 1 => Some("not one message"),
            Err(OperationError::Offered) if !self.may_be_offered(&operation) => {
                Some("although none that it can mean was ever offered")
            }
            Ok(done) if is_one && withdrawn == 1 && done.possibly_delivered < offered => {
                Some("without admitting that it may have been delivered")
            }
            Ok(_) if !is_one && still.is_some() => Some("leaving one that lived"),
            Err(OperationError::NotWaiting) if !is_one => Some("as a purge that found nothing to look for"),
            Err(OperationError::NotWaiting) if still.is_some() => Some("although one waits"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            self.fail(format!(
                "{operation:?} was answered {result:?}, {wrong}: {still:?}, {withdrawn} withdrawn"
            ));
        }
    }

    /// Where a message is now, however often it has moved.
    fn place_of(&self, mut seq: Seq) -> Seq {
        while let Some(next) = self.moved_to.get(&seq) {
            seq = *next;
        }
        seq
    }

    /// Whether what an operation says has taken a message's place is durable there, and what was asked for.
    fn is_in_place(&self, operation: &Operation, done: &Outcome) -> bool {
        let found = done.accepted.and_then(|accepted| self.messages.get(&accepted.entry.seq));
        let found = found.map(|kept| &kept.accept.message);
        match operation {
            Operation::Replace(_, message) => found == Some(message) || is_duplicate_of(done, message, found),
            Operation::Reprioritise(_, priority) => {
                found.is_some_and(|found| found.priority() == *priority && is_about(operation, found))
            }
            _ => done.accepted.is_none(),
        }
    }

    /// Whether a message that the operation can mean was offered, or its recipient ever exposed.
    fn may_be_offered(&self, operation: &Operation) -> bool {
        self.exposed.contains_key(operation.user())
    }

    /// Marks a message whose end by an operation is durable.
    pub(super) fn note_withdrawn(&mut self, seq: Seq, reason: EndReason) {
        let by_operation = matches!(reason, EndReason::Cancelled | EndReason::Replaced);
        if let Some(kept) = self.messages.get_mut(&seq).filter(|_| by_operation) {
            kept.withdrawn = Some(reason);
        }
    }
}

/// A repeat may differ in how long and how durably.
fn is_duplicate_of(done: &Outcome, message: &Message, found: Option<&Message>) -> bool {
    done.accepted.is_some_and(|accepted| accepted.duplicate)
        && found.is_some_and(|found| super::same_content(found, message))
}

fn is_about(operation: &Operation, message: &Message) -> bool {
    operation.user() == message.recipient()
        && operation.target().is_none_or(|target| {
            let sender = target.sender.as_ref();
            target.id == message.id() && sender.is_none_or(|sender| sender.as_ref() == message.sender())
        })
}
