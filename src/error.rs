//! Errors of the vocabulary. Errors of an operation stand beside the operation.

use crate::event::InvalidEventName;
use crate::id::{InvalidId, KeyId};
use crate::message::{MAX_HEADER_BYTES, MAX_HEADERS};

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageFlaw {
    /// An id is empty or too long.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// The event name is malformed.
    #[error(transparent)]
    Event(#[from] InvalidEventName),
    /// The payload is over the limit.
    #[error(
        "payload of {bytes} bytes is over the limit of {max}: send a reference to it, or raise the limit"
    )]
    PayloadTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Too many headers, or too long ones.
    #[error(
        "{count} headers of {bytes} bytes are over the limit of {MAX_HEADERS} and {MAX_HEADER_BYTES} bytes"
    )]
    HeadersTooLarge {
        /// How many there are.
        count: usize,
        /// Their names and values, together.
        bytes: usize,
    },
    /// A TTL of zero would expire before it is accepted.
    #[error("a ttl of zero expires at once: leave it out, or send the message as volatile")]
    ZeroTtl,
    /// A volatile message is for somebody who is there now.
    #[error("a volatile message cannot wait for its time: leave not_before out, or make it durable")]
    VolatileSchedule,
    /// A message would wait for itself.
    #[error("a message cannot wait for itself: give after the id of another one")]
    AfterItself,
    /// A volatile message is for somebody who is there now.
    #[error("a volatile message cannot wait for another one: leave after out, or make it durable")]
    VolatileDependent,
    /// What takes the place of others cannot wait for one of them.
    #[error("a message that waits for another one cannot have a collapse key: leave one of them out")]
    CollapsingDependent,
    /// A version is that of what a collapse key stands for.
    #[error("a version needs a collapse key, which says of what")]
    VersionOfNothing,
    /// The trace context is malformed.
    #[error("traceparent is not of the form 00-<32 hex>-<16 hex>-<2 hex>")]
    BadTraceparent,
}

/// A message could not be built. Nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid message, nothing was stored: {flaw}")]
pub struct InvalidMessage {
    #[source]
    flaw: MessageFlaw,
}

impl InvalidMessage {
    pub(crate) fn new(flaw: MessageFlaw) -> Self {
        Self { flaw }
    }

    /// What is wrong.
    #[must_use]
    pub fn flaw(&self) -> &MessageFlaw {
        &self.flaw
    }
}

/// Something is sealed and cannot be opened, for want of its key. It is not damaged: with the key it can be read.
/// Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No keys were given at all. Nothing was changed.
    #[error(
        "what is stored here is sealed with key {key} and no keys were given: nothing was changed; build the engine \
         with `encryption(keys)`, in a build that has the feature `encryption`"
    )]
    NoKeys {
        /// The key that is needed.
        key: KeyId,
    },
    /// The key provider does not know the key. Nothing was changed.
    #[error(
        "key {key} is needed and the key provider does not know it: nothing was changed; give it that key again, until \
         nothing is sealed with it any more"
    )]
    UnknownKey {
        /// The key that is needed.
        key: KeyId,
    },
    /// The key provider has another key under this number. Nothing was changed.
    #[error(
        "the key provider's key {key} is not the key {key} that was used here: nothing was changed; give the right one"
    )]
    WrongKey {
        /// The key that is needed.
        key: KeyId,
    },
}

impl KeyError {
    /// The key that is needed.
    #[must_use]
    pub fn key(&self) -> KeyId {
        match self {
            Self::NoKeys { key } | Self::UnknownKey { key } | Self::WrongKey { key } => *key,
        }
    }
}

/// The engine is gone or going. What was accepted is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine is shut down; what it accepted is safe in its outbox")]
pub struct Closed;
