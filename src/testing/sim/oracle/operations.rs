//! What hosts asked to be withdrawn, and whether the answers are true.

use super::Oracle;
use crate::machine::{Operation, OperationError, Outcome, Ticket};
use crate::message::Message;
use crate::record::Seq;
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
        let about = |message: &Message| is_about(&operation, message);
        let lived =
            self.live().filter(|(_, kept)| about(&kept.accept.message)).map(|(seq, _)| *seq).collect();
        self.withdrawals.push(operation.clone());
        self.operations.insert(ticket, Asked { operation, lived: told.then_some(lived) });
    }

    /// Whether somebody asked for this message to be withdrawn, in whatever life.
    pub(super) fn was_withdrawn(withdrawals: &[Operation], message: &Message) -> bool {
        withdrawals.iter().any(|operation| is_about(operation, message))
    }

    /// An operation was answered.
    pub(in super::super) fn operated(&mut self, ticket: Ticket, result: &Result<Outcome, OperationError>) {
        let Some(Asked { operation, lived }) = self.operations.remove(&ticket) else {
            return self.fail(format!("operation {ticket:?} was answered twice, or never asked"));
        };
        let about = |message: &Message| is_about(&operation, message);
        let cancelled = self.messages.values().filter(|kept| kept.cancelled && about(&kept.accept.message));
        let (cancelled, offered) =
            cancelled.fold((0, 0), |(n, offered), kept| (n + 1, offered + u32::from(kept.offered)));
        let still =
            lived.iter().flatten().find(|seq| self.messages.get(seq).is_some_and(|kept| kept.end.is_none()));
        let is_one = operation.target().is_some();
        let wrong = match result {
            Ok(done) if done.messages > cancelled => Some("more than has a durable end"),
            Ok(done) if is_one && done.messages != 1 => Some("not one message"),
            Ok(done) if is_one && cancelled == 1 && done.possibly_delivered < offered => {
                Some("without admitting that it may have been delivered")
            }
            Ok(_) if !is_one && still.is_some() => Some("leaving one that lived"),
            Err(OperationError::NotWaiting) if !is_one => Some("as a purge that found nothing to look for"),
            Err(OperationError::NotWaiting) if still.is_some() => Some("although one waits"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            self.fail(format!(
                "{operation:?} was answered {result:?}, {wrong}: {still:?}, {cancelled} cancelled"
            ));
        }
    }

    /// Marks a message whose cancellation is durable.
    pub(super) fn note_cancelled(&mut self, seq: Seq, reason: EndReason) {
        if let Some(kept) = self.messages.get_mut(&seq).filter(|_| reason == EndReason::Cancelled) {
            kept.cancelled = true;
        }
    }
}

fn is_about(operation: &Operation, message: &Message) -> bool {
    operation.user() == message.recipient()
        && operation.target().is_none_or(|target| {
            let sender = target.sender.as_ref();
            target.id == message.id() && sender.is_none_or(|sender| sender.as_ref() == message.sender())
        })
}
