//! Why something was not done, and what that did to the state.

/// Why a message was not accepted. In every case nothing was stored, except as [`Refusal::OutcomeUnknown`] says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The payload is over the configured limit.
    #[error("payload of {bytes} bytes is over the engine's limit of {max}")]
    PayloadTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The recipient's outbox is full.
    #[error("the recipient's outbox is full ({messages} messages, {bytes} bytes)")]
    OutboxFull {
        /// Live messages now.
        messages: u64,
        /// Live bytes now.
        bytes: u64,
    },
    /// The whole engine's outbox is full.
    #[error("the engine's outbox is full ({messages} messages, {bytes} bytes)")]
    EngineFull {
        /// Live messages now.
        messages: u64,
        /// Live bytes now.
        bytes: u64,
    },
    /// Too much is waiting to be committed or loaded.
    #[error("too many messages wait to be committed: try again")]
    Overloaded,
    /// The same sender used this id for another message to this recipient.
    #[error("this id was used for a message with another content")]
    Conflict,
    /// The disk failed while this message was being committed. It may or may not be stored: send the same id again,
    /// that is safe.
    #[error("the disk failed while the message was being committed: it may or may not be stored")]
    OutcomeUnknown,
    /// The engine cannot write at the moment.
    #[error("the engine cannot write at the moment; it heals by itself once the disk does")]
    Degraded,
    /// The store could not be read for what must be known first.
    #[error("the store could not be read")]
    StoreUnreadable,
    /// A volatile message for someone who is not attached, or whose queue is full.
    #[error("nobody is attached to take a volatile message, or their queue is full")]
    NobodyAttached,
    /// The engine is shutting down.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// An old copy of a delivery whose sender is done with it, however it ended. Whether it was applied is not known
    /// any more, and makes no difference to the sender.
    #[error("the sender of this delivery is done with it: this is an old copy")]
    Obsolete,
}

impl Refusal {
    /// Whether the same message would be refused again, however often it is sent.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::PayloadTooLarge { .. } | Self::Conflict | Self::Obsolete)
    }
}

/// Why an operation was not done. Nothing was changed, except as [`OperationError::StoreUnreadable`] says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError {
    /// No such message waits: it has ended, was never accepted, or has not been answered yet.
    #[error("no such message waits: it has ended, or was never accepted")]
    NotWaiting,
    /// The message was offered, or may have been: it cannot be moved any more, only withdrawn or replaced.
    #[error("the message may have been offered: it was not moved; cancel or replace it instead")]
    Offered,
    /// The new message was not accepted; the old one waits as before.
    #[error("the new message was refused ({0}): the old one waits as before")]
    Refused(#[from] Refusal),
    /// The new message is for somebody else, or volatile.
    #[error("a replacement must be for the same recipient, and durable: nothing was changed")]
    Unfit,
    /// Too many operations wait.
    #[error("too many operations wait: nothing was changed; try again")]
    Overloaded,
    /// The engine cannot write at the moment.
    #[error(
        "the engine cannot write at the moment: nothing was changed; it heals by itself once the disk does"
    )]
    Degraded,
    /// The store could not be read while the message was looked for. A purge may have been done in part.
    #[error("the store could not be read: the operation may have been done in part; it is safe to repeat it")]
    StoreUnreadable,
    /// The engine is shutting down.
    #[error("the engine is shutting down: nothing was changed")]
    ShuttingDown,
}
