//! What a host does with a message that was received.

use core::fmt;
use core::future::{Future, poll_fn};
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
    withdrawal: Arc<Withdrawal>,
}

/// Whether a message is no longer wanted, and who waits for that.
#[derive(Debug, Default)]
pub(crate) struct Withdrawal(Mutex<Wanted>);

#[derive(Debug)]
enum Wanted {
    /// And these want to know when it no longer is.
    Yes(Vec<Waker>),
    No,
}

impl Default for Wanted {
    fn default() -> Self {
        Self::Yes(Vec::new())
    }
}

impl Withdrawal {
    /// Above so many that wait, all are woken: those that still do come again, those that were dropped do not.
    const MAX_WAKERS: usize = 32;

    pub(crate) fn say(&self) {
        let mut wanted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = core::mem::replace(&mut *wanted, Wanted::No);
        drop(wanted);
        if let Wanted::Yes(wakers) = before {
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    fn is_said(&self) -> bool {
        matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Wanted::No)
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut wanted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Wanted::Yes(wakers) = &mut *wanted else { return Poll::Ready(()) };
        if wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            return Poll::Pending;
        }
        let is_full = wakers.len() >= Self::MAX_WAKERS;
        let full = if is_full { core::mem::take(wakers) } else { Vec::new() };
        wakers.push(context.waker().clone());
        drop(wanted);
        full.into_iter().for_each(Waker::wake);
        Poll::Pending
    }
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
            withdrawal: Arc::default(),
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

    /// Whether it is no longer wanted: another of its recipient's devices has answered, or whoever called has hung up.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawal.is_said()
    }

    /// Waits until it is no longer wanted, which most messages are for ever. A handler that rings stops when this returns, and
    /// fails with [`Code::Withdrawn`]; what it answers instead is as good as before.
    ///
    /// ```
    /// use lastmile::ports::{Failure, Received};
    /// use lastmile::session::Code;
    ///
    /// # async fn somebody_answers() {}
    /// async fn ring(_: bytes::Bytes, call: Received) -> Result<(), Failure> {
    ///     tokio::select! {
    ///         () = somebody_answers() => Ok(()),
    ///         () = call.withdrawn() => Err(Failure::reject(Code::Withdrawn, "answered elsewhere")),
    ///     }
    /// }
    /// ```
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub fn withdrawn(&self) -> impl Future<Output = ()> + Send + use<> {
        let withdrawal = self.withdrawal.clone();
        poll_fn(move |context| withdrawal.poll(context))
    }

    /// Says that it is no longer wanted: for whoever hands it to a handler, and for tests of handlers.
    pub fn withdraw(&self) {
        self.withdrawal.say();
    }

    /// What says so without the message.
    #[cfg(feature = "runtime")]
    pub(crate) fn withdrawal(&self) -> Arc<Withdrawal> {
        self.withdrawal.clone()
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn received() -> Received {
        Received::new(Message::to("alice", "call.ring", "").build().unwrap())
    }

    #[test]
    fn whoever_waits_for_a_withdrawal_is_woken_whichever_clone_is_told() {
        let call = received();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut waiting = Box::pin(call.clone().withdrawn());
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert!(!call.is_withdrawn());
        call.withdraw();
        assert_eq!((call.is_withdrawn(), woken.0.load(Ordering::SeqCst)), (true, 1));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    }

    #[test]
    fn those_that_waited_and_were_dropped_do_not_pile_up() {
        let call = received();
        let wakers: Vec<_> = (0..100).map(|_| Waker::from(Arc::new(Woken::default()))).collect();
        for waker in &wakers {
            assert!(Box::pin(call.withdrawn()).as_mut().poll(&mut Context::from_waker(waker)).is_pending());
            let Wanted::Yes(waiting) = &*call.withdrawal.0.lock().unwrap() else {
                panic!("nobody withdrew it")
            };
            assert!(waiting.len() <= Withdrawal::MAX_WAKERS);
        }
    }
}
