//! Errors of the engine's operations.

use crate::error::Closed;
use crate::machine::{OperationError, Refusal};
use crate::message::Message;

/// A message was not accepted. Unless [`Refusal::OutcomeUnknown`] says otherwise, nothing was stored. The message comes
/// back, and sending it again, with the same id, is always safe.
#[derive(Debug, thiserror::Error)]
#[error("message {} was not accepted: {reason}", .message.id())]
pub struct SendError {
    message: Box<Message>,
    #[source]
    reason: Refusal,
}

impl SendError {
    pub(super) fn new(message: Message, reason: Refusal) -> Self {
        Self { message: Box::new(message), reason }
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> &Refusal {
        &self.reason
    }

    /// The message, to be sent again or kept elsewhere.
    #[must_use]
    pub fn into_message(self) -> Message {
        *self.message
    }

    /// Whether sending the same message again later can succeed without anything being changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.reason.is_retryable()
    }

    /// A short name, the same for all errors of this kind, for metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.reason.kind()
    }
}

/// A batch was not accepted: nothing was stored by it, unless [`Refusal::OutcomeUnknown`] says otherwise. (What it repeats
/// may have been stored by the send that it repeats.) The messages come back, and sending the same batch again is always
/// safe.
#[derive(Debug, thiserror::Error)]
#[error("a batch of {} messages was not accepted: {reason}{}", .messages.len(), place(*.index))]
pub struct BatchError {
    messages: Vec<Message>,
    index: Option<usize>,
    #[source]
    reason: Refusal,
}

fn place(index: Option<usize>) -> String {
    index.map_or_else(String::new, |index| format!(" (message {index})"))
}

impl BatchError {
    pub(super) fn new(messages: Vec<Message>, index: Option<usize>, reason: Refusal) -> Self {
        Self { messages, index, reason }
    }

    /// What the refusals of its messages come to, by their places in it.
    pub(super) fn of(messages: Vec<Message>, refused: Vec<(usize, Refusal)>) -> Self {
        let others = refused.iter().any(|(_, refusal)| *refusal == Refusal::OtherRefused);
        let is_about_one = others || messages.len() == 1;
        // A repeat may have failed with an earlier commit, whose outcome is unknown: then nothing else may be said.
        let weight = |refusal: &Refusal| match refusal {
            Refusal::OutcomeUnknown => 0,
            Refusal::OtherRefused => 2,
            _ => 1,
        };
        let heaviest = refused.into_iter().min_by_key(|(_, refusal)| weight(refusal));
        let (index, reason) = heaviest.unwrap_or((0, Refusal::OutcomeUnknown));
        Self::new(messages, is_about_one.then_some(index), reason)
    }

    /// Why; it also says whether sending the same batch again can help.
    #[must_use]
    pub fn reason(&self) -> &Refusal {
        &self.reason
    }

    /// Which message it is about, counted from 0; none when it is about all of them.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        self.index
    }

    /// The messages, to be sent again or kept elsewhere.
    #[must_use]
    pub fn into_messages(self) -> Vec<Message> {
        self.messages
    }
}

/// A request has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It was not accepted; the error gives the message back.
    #[error(transparent)]
    NotSent(#[from] SendError),
    /// It could not be marked as a request: it has too many headers. Nothing was stored.
    #[error("it cannot be marked as a request, nothing was stored: {flaw}")]
    Invalid {
        /// Why.
        flaw: crate::error::MessageFlaw,
        /// The message.
        message: Box<Message>,
    },
    /// Too many answers are waited for. Nothing was stored.
    #[error("too many answers are waited for: nothing was stored; ask again when some have come")]
    TooMany(Box<Message>),
    /// No answer came in time. The message is accepted and on its way; a late answer comes as a message.
    #[error("no answer came in time; the message is accepted, and a late answer comes as a message")]
    TimedOut(Box<super::receipt::Receipt>),
    /// The message was accepted, and has ended since without anybody having handled it, so there will be no answer. Asking
    /// again takes a new message: this id is known to have ended.
    #[error(
        "the request has ended ({}) and nobody has handled it, so no answer will come; ask again with a new message",
        .reason.as_str()
    )]
    Ended {
        /// How it ended.
        reason: crate::status::EndReason,
        /// Of the message.
        receipt: Box<super::receipt::Receipt>,
    },
}

impl RequestError {
    /// Whether asking again later can succeed without anything being changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotSent(error) => error.is_retryable(),
            Self::Invalid { .. } | Self::Ended { .. } => false,
            Self::TooMany(_) | Self::TimedOut(_) => true,
        }
    }

    /// A short name, the same for all errors of this kind, for metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotSent(error) => error.kind(),
            Self::Invalid { .. } => "invalid",
            Self::TooMany(_) => "too_many",
            Self::TimedOut(_) => "timed_out",
            Self::Ended { .. } => "ended",
        }
    }
}

/// A sink could not be attached. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// An id is empty or too long.
    #[error(transparent)]
    Id(#[from] crate::id::InvalidId),
    /// The engine is shutting down.
    #[error("the engine is shutting down: nothing was attached; attach to the one that is opened next")]
    ShuttingDown,
}

impl From<core::convert::Infallible> for AttachError {
    fn from(never: core::convert::Infallible) -> Self {
        match never {}
    }
}

/// An operation on messages that wait was not done, or not seen to be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperateError {
    /// An id is empty or too long. Nothing was changed.
    #[error(transparent)]
    Id(#[from] crate::id::InvalidId),
    /// It was not done.
    #[error(transparent)]
    NotDone(#[from] OperationError),
    /// The engine stopped before it answered: it may or may not have been done. Repeating it is safe.
    #[error(
        "the engine stopped before it answered: the operation may or may not have been done; repeating it is safe"
    )]
    Unknown,
}

impl From<core::convert::Infallible> for OperateError {
    fn from(never: core::convert::Infallible) -> Self {
        match never {}
    }
}

/// A message cannot be watched. Its state is unaffected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Its place is not known: it was answered before it was durable, or it is volatile.
    #[error("only messages sent as synced can be watched: this one goes on unwatched")]
    NotTracked,
    /// It ended so long ago that nothing says how any more, or there are too many watchers.
    #[error(
        "the message ended so long ago that nothing says how, or too many are being watched: ask Engine::status where it stands"
    )]
    Forgotten,
    /// It is not where it was, and where it stands could not be found out.
    #[error("where the message stands could not be found out, ask once more later: {0}")]
    NotFound(OperationError),
    /// It was delivered; how far its conversation was read could not be found out.
    #[error("delivered; how far its conversation was read is not known, ask once more later: {0}")]
    NotRead(OperationError),
    /// The engine is gone.
    #[error(transparent)]
    Closed(#[from] Closed),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(refused: Vec<(usize, Refusal)>) -> (Option<usize>, Refusal) {
        let messages = (0..2).map(|_| Message::to("alice", "chat.message", "").build().unwrap()).collect();
        let error = BatchError::of(messages, refused);
        (error.index(), error.reason().clone())
    }

    #[test]
    fn a_refused_batch_names_the_message_it_is_about() {
        let (other, why) = (Refusal::OtherRefused, Refusal::Conflict);
        assert_eq!(error(vec![(0, other.clone()), (1, why.clone())]), (Some(1), why.clone()));
        assert_eq!(error(vec![(0, why.clone()), (1, other)]), (Some(0), why));
        let all = vec![(0, Refusal::Overloaded), (1, Refusal::Overloaded)];
        assert_eq!(error(all), (None, Refusal::Overloaded));
    }

    /// Found by review: a batch was said not to be stored while nobody knew that of one of its messages.
    #[test]
    fn an_unknown_outcome_is_never_hidden_behind_a_known_one() {
        for refused in [
            vec![(0, Refusal::Degraded), (1, Refusal::OutcomeUnknown)],
            vec![(0, Refusal::OutcomeUnknown), (1, Refusal::Degraded)],
        ] {
            assert_eq!(error(refused).1, Refusal::OutcomeUnknown);
        }
    }
}
