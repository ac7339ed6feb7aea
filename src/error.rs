//! Errors of the vocabulary. Errors of an operation stand beside the operation.

use crate::event::InvalidEventName;
use crate::id::InvalidId;
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
