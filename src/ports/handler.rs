//! What a host does with a message that was received.

use core::fmt;
use core::future::Future;
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;

use crate::event::EventName;
use crate::id::{MessageId, StreamId, UserId};
use crate::machine::Delivery;
use crate::message::Message;
use crate::session::{Code, Inbound};
use crate::time::Timestamp;

/// A message that was received, and what is known about it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Received {
    message: Message,
    stream: StreamId,
    accepted_at: Timestamp,
    attempts: u32,
    redelivered: bool,
    reply_within: Option<Duration>,
    extensions: Arc<AtomicU32>,
}

impl Received {
    /// A message that comes for the first time, from nowhere: for tests of handlers.
    #[must_use]
    pub fn new(message: Message) -> Self {
        Self {
            message,
            stream: StreamId::from_u128(0),
            accepted_at: Timestamp::ZERO,
            attempts: 0,
            redelivered: false,
            reply_within: None,
            extensions: Arc::default(),
        }
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Its identity. The same message may come again, with [`Received::redelivered`] set: remember ids, or do what may be
    /// done twice.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.message.id()
    }

    /// Who sent it, if the sender's host said so.
    #[must_use]
    pub fn sender(&self) -> Option<&UserId> {
        self.message.sender()
    }

    /// Whom it is for.
    #[must_use]
    pub fn recipient(&self) -> &UserId {
        self.message.recipient()
    }

    /// What it is about.
    #[must_use]
    pub fn event(&self) -> &EventName {
        self.message.event()
    }

    /// The bytes.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        self.message.payload()
    }

    /// The log of the engine that it comes from.
    #[must_use]
    pub const fn stream(&self) -> StreamId {
        self.stream
    }

    /// When that engine accepted it, by that engine's clock.
    #[must_use]
    pub const fn accepted_at(&self) -> Timestamp {
        self.accepted_at
    }

    /// Failed attempts so far, anywhere.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whether it may have been handled before.
    #[must_use]
    pub const fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// For a request: how long the sender waits for an answer. The answer to anything else is dropped.
    #[must_use]
    pub const fn reply_within(&self) -> Option<Duration> {
        self.reply_within
    }

    /// Says that it is still being worked on: the handler's time begins anew.
    pub fn needs_more_time(&self) {
        self.extensions.fetch_add(1, Ordering::Relaxed);
    }

    /// How often its handler asked for more time.
    #[cfg(feature = "runtime")]
    pub(crate) fn extensions(&self) -> u32 {
        self.extensions.load(Ordering::Relaxed)
    }
}

impl From<Delivery> for Received {
    fn from(delivery: Delivery) -> Self {
        Self {
            stream: delivery.stream,
            accepted_at: delivery.accepted_at,
            attempts: delivery.attempts,
            redelivered: delivery.redelivered,
            ..Self::new(delivery.message)
        }
    }
}

impl From<Inbound> for Received {
    fn from(inbound: Inbound) -> Self {
        let item = inbound.item;
        Self {
            stream: inbound.stream,
            accepted_at: item.accepted_at,
            attempts: item.attempts,
            redelivered: item.redelivered,
            reply_within: item.reply_within,
            ..Self::new(item.message)
        }
    }
}

/// Why a message was not handled, and with that what its sender does about it.
///
/// Any error becomes [`Failure::Retry`] by `?`; the other classes are the handler's to choose.
///
/// ```
/// use lastmile::ports::Failure;
/// use lastmile::session::Code;
///
/// fn amount(text: &str) -> Result<u32, Failure> {
///     let amount = text.parse().map_err(|_| Failure::reject(Code::Invalid, "not a number"))?;
///     let limit: u32 = std::fs::read_to_string("limit").unwrap_or("100".into()).trim().parse()?; // try again later
///     if amount > limit { Err(Failure::reject(Code::NotPermitted, "over the limit")) } else { Ok(amount) }
/// }
/// # assert!(amount("7").is_ok() && amount("x").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// It failed for now: it is offered again, after this time, or after the sender's backoff. Burns an attempt; when all
    /// are spent, it becomes a dead letter.
    Retry {
        /// When it is worth trying again.
        after: Option<Duration>,
        /// What happened, for logs. Never what the message says.
        text: String,
    },
    /// It cannot be taken now: it is offered again after this time. Burns no attempt. Until then nothing else is offered
    /// to this receiver either.
    Busy {
        /// When there may be room again.
        after: Duration,
    },
    /// It is refused for good, and ends as [`Rejected`](crate::EndReason::Rejected).
    Reject {
        /// What the sender is told; one that is not about a message becomes [`Code::Rejected`].
        code: Code,
        /// What happened, for logs. Never what the message says.
        text: String,
    },
}

impl Failure {
    /// It failed for now.
    #[must_use]
    pub fn retry(text: impl fmt::Display) -> Self {
        Self::Retry { after: None, text: text.to_string() }
    }

    /// It failed for now, and is worth trying again after this time.
    #[must_use]
    pub fn retry_after(after: Duration, text: impl fmt::Display) -> Self {
        Self::Retry { after: Some(after), text: text.to_string() }
    }

    /// It cannot be taken now.
    #[must_use]
    pub const fn busy(after: Duration) -> Self {
        Self::Busy { after }
    }

    /// It is refused for good.
    #[must_use]
    pub fn reject(code: Code, text: impl fmt::Display) -> Self {
        Self::Reject { code, text: text.to_string() }
    }

    /// Whether the message is not offered again.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Reject { .. })
    }

    /// A short name, the same for all failures of this kind, for metrics.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Retry { .. } => "retry",
            Self::Busy { .. } => "busy",
            Self::Reject { .. } => "reject",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry { text, .. } => write!(f, "it failed for now: {text}"),
            Self::Busy { after } => write!(f, "it cannot be taken for {after:?}"),
            Self::Reject { code, text } => write!(f, "it is refused for good ({code}): {text}"),
        }
    }
}

// This is why a failure is no `Error` itself: the two would overlap.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}

/// Whether a message may reach its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Permission {
    /// It may.
    Allow,
    /// It may not, and its sender is told why. What the code advises is done: after [`Code::Busy`] it is offered again
    /// without burning an attempt, after [`Code::Failed`] or [`Code::QuotaExceeded`] again, and after all others never. One that is not
    /// about a message becomes [`Code::NotPermitted`].
    Deny(Code),
}

/// Handles messages of one kind. The host's; closures are handlers too, see [`Router::on`](crate::Router::on).
pub trait Handler: Send + Sync + 'static {
    /// Handles a message: `Ok` means that it is handled for good. An answer rides with the acknowledgement, if the
    /// sender asked for one.
    ///
    /// # To ensure correctness
    /// A message may come more than once, with [`Received::redelivered`] set: after a crash, a timeout, or when the
    /// acknowledgement was lost.
    ///
    /// # Errors
    /// [`Failure`], whose class decides what the sender does.
    ///
    /// # Cancel safety
    /// The future is dropped when its time is over, see [`RouterBuilder::timeout`](crate::RouterBuilder::timeout), and
    /// with the process; then the message comes again.
    fn handle(&self, received: Received) -> impl Future<Output = Result<Option<Bytes>, Failure>> + Send;
}
