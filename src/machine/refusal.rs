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
    /// A message for each of the recipient's devices would not fit even into an empty outbox.
    #[error(
        "the message makes {copies} entries of {bytes} bytes together, one for each of the recipient's devices, and an \
         outbox holds {max_messages} and {max_bytes}: send it to any device, make it smaller, or raise the user's quota"
    )]
    TooManyCopies {
        /// How many entries it makes.
        copies: u32,
        /// What they take together.
        bytes: u64,
        /// The most live messages of one user: [`Config::max_user_messages`](crate::Config::max_user_messages).
        max_messages: u32,
        /// Their most live bytes: [`Config::max_user_bytes`](crate::Config::max_user_bytes).
        max_bytes: u64,
    },
    /// The whole engine's outbox is full.
    #[error("the engine's outbox is full ({messages} messages, {bytes} bytes)")]
    EngineFull {
        /// Live messages now.
        messages: u64,
        /// Live bytes now.
        bytes: u64,
    },
    /// The store takes as much on disk as it may. Deliveries go on, and what is in the journal settles.
    #[error(
        "the store takes {bytes} bytes on disk, of at most {max}: raise Config::max_disk_bytes, or, since sled's file \
         never shrinks, export the outbox and import it into a fresh store"
    )]
    DiskFull {
        /// What it takes.
        bytes: u64,
        /// What it may take: [`Config::max_disk_bytes`](crate::Config::max_disk_bytes).
        max: u64,
    },
    /// Too much is waiting to be committed or loaded.
    #[error("too many messages wait to be committed: try again")]
    Overloaded,
    /// The recipient's inbox remembers as many other engines' lanes as it may. A message that is sent, and recognised by its id,
    /// needs no such memory.
    #[error("the recipient's inbox has no room to remember one more engine's places")]
    InboxFull,
    /// The same sender used this id for another message to this recipient.
    #[error("this id was used for a message with another content: give the new one an id of its own")]
    Conflict,
    /// The disk failed while this message was being committed. It may or may not be stored: send the same id again,
    /// that is safe.
    #[error(
        "the disk failed while the message was being committed: it may or may not be stored; sending it again is safe"
    )]
    OutcomeUnknown,
    /// The engine cannot write at the moment.
    #[error("the engine cannot write at the moment; it heals by itself once the disk does")]
    Degraded,
    /// The store could not be read for what must be known first.
    #[error("the store could not be read: try again")]
    StoreUnreadable,
    /// A volatile message for someone who is not attached, or whose queue is full.
    #[error(
        "nobody is attached to take a volatile message, or their queue is full: only a durable one waits"
    )]
    NobodyAttached,
    /// The engine is shutting down.
    #[error("the engine is shutting down: send it to the one that is opened next")]
    ShuttingDown,
    /// More than a batch may hold.
    #[error(
        "a batch of {messages} messages and {bytes} bytes (with 1 KiB for each) is over the limits of {max_messages} and {max_bytes}"
    )]
    BatchTooLarge {
        /// How many messages there are.
        messages: usize,
        /// How many there may be.
        max_messages: usize,
        /// What they take, with 1 KiB for each.
        bytes: u64,
        /// What they may take: [`Config::max_commit_bytes`](crate::Config::max_commit_bytes).
        max_bytes: u64,
    },
    /// A volatile message in a batch: nothing could make it durable together with the others.
    #[error("a batch takes no volatile message")]
    VolatileInBatch,
    /// Another message of the batch was refused.
    #[error("another message of the batch was refused")]
    OtherRefused,
    /// A newer version of what the collapse key stands for was accepted before.
    #[error("version {newest} was accepted before: this one is outdated")]
    Outdated {
        /// The newest version.
        newest: u64,
    },
    /// A message with a collapse key in a batch, which could not be undone as a whole.
    #[error("a batch takes no message with a collapse key")]
    CollapseInBatch,
    /// A message that waits for another one in a batch, where that one has no place yet.
    #[error("a batch takes no message that waits for another one: send it by itself, behind the batch")]
    DependentInBatch,
    /// Nothing is known of the message that this one is to wait for: the same sender has sent none with that id to the
    /// same recipient, or it ended so long ago that it has been forgotten.
    #[error("nothing is known of the message that this one is to wait for")]
    UnknownParent,
    /// The message that this one is to wait for has ended already, and was not delivered.
    #[error("the message that this one is to wait for has ended already ({})", reason.as_str())]
    ParentEnded {
        /// How it ended.
        reason: crate::status::EndReason,
    },
    /// As many of the recipient's messages wait for others as may.
    #[error("{max} of the recipient's messages wait for others already")]
    TooManyDependents {
        /// The limit: [`Config::max_dependents`](crate::Config::max_dependents).
        max: usize,
    },
    /// An old copy of a delivery whose sender is done with it, however it ended. Whether it was applied is not known
    /// any more, and makes no difference to the sender.
    #[error("the sender of this delivery is done with it: this is an old copy")]
    Obsolete,
}

impl Refusal {
    /// Whether the same message would be refused again, however often it is sent.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::PayloadTooLarge { .. }
                | Self::TooManyCopies { .. }
                | Self::Conflict
                | Self::Obsolete
                | Self::BatchTooLarge { .. }
                | Self::VolatileInBatch
                | Self::Outdated { .. }
                | Self::CollapseInBatch
                | Self::DependentInBatch
                | Self::UnknownParent
                | Self::ParentEnded { .. }
        )
    }

    /// Whether sending the same again later can succeed without anything being changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !self.is_final() && *self != Self::ShuttingDown
    }

    /// A short name, the same for all refusals of this kind, for metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PayloadTooLarge { .. } => "payload_too_large",
            Self::OutboxFull { .. } => "outbox_full",
            Self::TooManyCopies { .. } => "too_many_copies",
            Self::EngineFull { .. } => "engine_full",
            Self::DiskFull { .. } => "disk_full",
            Self::Overloaded => "overloaded",
            Self::InboxFull => "inbox_full",
            Self::Conflict => "conflict",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Degraded => "degraded",
            Self::StoreUnreadable => "store_unreadable",
            Self::NobodyAttached => "nobody_attached",
            Self::BatchTooLarge { .. } => "batch_too_large",
            Self::VolatileInBatch => "volatile_in_batch",
            Self::OtherRefused => "other_refused",
            Self::Outdated { .. } => "outdated",
            Self::CollapseInBatch => "collapse_in_batch",
            Self::DependentInBatch => "dependent_in_batch",
            Self::UnknownParent => "unknown_parent",
            Self::ParentEnded { .. } => "parent_ended",
            Self::TooManyDependents { .. } => "too_many_dependents",
            Self::ShuttingDown => "shutting_down",
            Self::Obsolete => "obsolete",
        }
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
    /// The new message is for somebody else, volatile, has a collapse key, or waits for something that the old one does
    /// not wait for.
    #[error(
        "a replacement must be for the same recipient, durable, without a collapse key, and wait for nothing else than the \
         old message does: nothing was changed"
    )]
    Unfit,
    /// None of the dead letters was sent again: for the collapse key of each something newer is known, a message that waits or
    /// a later version that was accepted. They are as they were.
    #[error(
        "newer messages with the same collapse keys wait or were accepted: no dead letter was sent again"
    )]
    Superseded,
    /// The user has as many devices as can be registered: see
    /// [`Config::max_registered`](crate::Config::max_registered).
    #[error("the user has too many devices: nothing was changed; remove one first")]
    TooManyDevices,
    /// No such device is registered.
    #[error("no such device is registered: nothing was changed")]
    NoSuchDevice,
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
