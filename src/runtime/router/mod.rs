//! The router: from an event name to the host's code, and from what that says to a verdict.
//!
//! ```text
//!   engine ──── deliver ──► Router as Sink ─► Feed ──┐   lines, one for each    ┌─► permission ─► handler
//!   session ─── take ─────────────────────────► Feed ──┤   stream, recipient,     ├─► …
//!                ◄── Delivered, Nack, … ── Answers ◄──┘   lane and ordering key  └─► (at most so many at once)
//! ```
//!
//! # Invariants
//! - **What has one ordering key is handled one after the other**, whichever attachment or session of this router it
//!   comes through. What has another key, or another recipient, does not wait for it.
//! - **What was not taken holds what is behind it**: after a failure that is not final, what was handed in with the same key is
//!   answered busy, until whoever handed it in has collected the failure.
//! - **A message gets one final answer**, unless whoever handed it in has gone.
//! - **Bounded**: handlers, those that run, and what one feed has open. Progress is a mark on what is open, so it does
//!   not pile up before a reader that is slow.
//!
//! It does not know what an inbox is: it hands on what comes, as often as it comes.

mod builder;
mod feed;
mod line;
mod pattern;
mod sink;
#[cfg(test)]
mod tests;

use core::fmt;
use core::marker::PhantomData;
use std::future::Future;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

pub use self::builder::RouterBuilder;
pub use self::feed::{Answers, Feed};
use self::line::Lines;
pub use self::pattern::Pattern;
use self::pattern::Table;
use super::contain::Running;
use crate::event::InvalidEventName;
use crate::ports::{Failure, FromPayload, Handler, IntoReply, Permission, Received};

/// What became of a message with a handler.
type Handled = Result<Option<Bytes>, Failure>;
/// The permission hook, erased.
type Guard = Box<dyn Fn(Received) -> Running<'static, Permission> + Send + Sync>;

/// The erased twin of [`Handler`].
trait AnyHandler: Send + Sync {
    fn handle(&self, received: Received) -> Running<'_, Handled>;
}

/// A host's handler.
struct Whole<H>(H);

impl<H: Handler> AnyHandler for Whole<H> {
    fn handle(&self, received: Received) -> Running<'_, Handled> {
        Box::pin(self.0.handle(received))
    }
}

/// A closure, and what it takes and answers.
struct Closure<F, P, R>(F, PhantomData<fn(P) -> R>);

impl<F, P, R, Done> AnyHandler for Closure<F, P, R>
where
    F: Fn(P, Received) -> Done + Send + Sync,
    Done: Future<Output = Result<R, Failure>> + Send,
    P: FromPayload + Send,
    R: IntoReply,
{
    fn handle(&self, received: Received) -> Running<'_, Handled> {
        Box::pin(async {
            let (id, payload) = (received.id(), P::from_payload(received.payload()));
            let reply = (self.0)(payload.map_err(|error| error.failure())?, received).await?;
            // It is handled, and would be handled again if this were a failure.
            Ok(reply.into_reply().unwrap_or_else(|error| {
                tracing::warn!(messaging.message.id = %id, %error, "an answer could not be encoded, and is not sent");
                None
            }))
        })
    }
}

/// Hands messages to the host's handlers by their event names. Clones are handles to the same handlers.
///
/// It is a [`Sink`](crate::ports::Sink): attach it to an engine as the receiver of a user's messages, one router to as
/// many users as there are. Each message goes to the most specific handler, see [`Pattern`]; what that says is what
/// becomes of the message. Without any, it is offered again later, see [`RouterBuilder::unhandled`].
///
/// ```
/// use lastmile::ports::{Failure, Received};
/// use lastmile::{Engine, Message, Router, Stage, storage::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let router = Router::new();
/// let _chat = router.on("chat.message", async |text: String, received: Received| {
///     println!("{:?}: {text}", received.sender());
///     Ok(())
/// })?;
/// let _rest = router.on("*", async |bytes: bytes::Bytes, received: Received| {
///     Err::<(), _>(Failure::retry(format_args!("{} of {} bytes", received.event(), bytes.len())))
/// })?;
///
/// let engine = Engine::builder(MemoryStore::new()).build()?;
/// let _attached = engine.attach("alice", "phone", router.clone())?;
/// let receipt = engine.send(Message::to("alice", "chat.message", "hello").sender("bob").build()?).await?;
/// receipt.reached(Stage::Delivered).await?;
/// # Ok(()) }
/// ```
pub struct Router {
    inner: Arc<Inner>,
    /// What this handle has as a sink. Not shared with clones.
    sink: sink::State,
}

struct Inner {
    limits: builder::Limits,
    guard: Option<Guard>,
    table: RwLock<Table>,
    lines: Mutex<Lines>,
    running: Semaphore,
}

/// A handler was not registered. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The pattern is none.
    #[error(transparent)]
    Pattern(#[from] InvalidEventName),
    /// There is a handler for exactly this pattern already.
    #[error("there is a handler for {0} already: drop its registration first")]
    Taken(Pattern),
    /// There are as many handlers as there may be.
    #[error("there are {max} handlers already: raise RouterBuilder::max_handlers, or use prefixes")]
    TooMany {
        /// The limit.
        max: usize,
    },
}

impl From<core::convert::Infallible> for RegisterError {
    fn from(never: core::convert::Infallible) -> Self {
        match never {}
    }
}

impl Router {
    /// A router with the default limits.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Starts building a router. See [`RouterBuilder`].
    pub fn builder() -> RouterBuilder {
        RouterBuilder::default()
    }

    fn of(limits: builder::Limits, guard: Option<Guard>) -> Self {
        let running = Semaphore::new(limits.max_running.get().min(Semaphore::MAX_PERMITS));
        let (table, lines) = (RwLock::default(), Mutex::default());
        Self { inner: Arc::new(Inner { limits, guard, table, lines, running }), sink: sink::State::default() }
    }

    /// Handles events with a closure that takes the payload as some type and may answer with another one: `String`,
    /// `Bytes`, with the feature `json` [`Json`](crate::ports::Json) of anything that serde knows, or a host's own
    /// [`FromPayload`] and [`IntoReply`].
    ///
    /// Dropping the registration removes the handler; one that runs at that moment finishes.
    ///
    /// ```
    /// use lastmile::{Router, ports::Received};
    /// # #[cfg(feature = "json")]
    /// # fn main() -> Result<(), lastmile::RegisterError> {
    /// use lastmile::ports::Json;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Sum { a: u32, b: u32 }
    ///
    /// let router = Router::new();
    /// let sums = router.on("calc.sum", async |Json(sum): Json<Sum>, _received: Received| {
    ///     Ok(Json(u64::from(sum.a) + u64::from(sum.b))) // to whoever asked
    /// })?;
    /// # drop(sums);
    /// # Ok(()) }
    /// # #[cfg(not(feature = "json"))]
    /// # fn main() { drop(Router::new().on("a", async |_: String, _: Received| Ok(()))) }
    /// ```
    ///
    /// # Errors
    /// [`RegisterError`]. Nothing was changed.
    pub fn on<N, P, R, F, Done>(&self, pattern: N, handler: F) -> Result<Registration, RegisterError>
    where
        N: TryInto<Pattern>,
        N::Error: Into<RegisterError>,
        F: Fn(P, Received) -> Done + Send + Sync + 'static,
        Done: Future<Output = Result<R, Failure>> + Send + 'static,
        P: FromPayload + Send + 'static,
        R: IntoReply + 'static,
    {
        self.insert(pattern.try_into().map_err(Into::into)?, Arc::new(Closure(handler, PhantomData)))
    }

    /// Handles events with a [`Handler`].
    ///
    /// # Errors
    /// [`RegisterError`]. Nothing was changed.
    pub fn register<N>(&self, pattern: N, handler: impl Handler) -> Result<Registration, RegisterError>
    where
        N: TryInto<Pattern>,
        N::Error: Into<RegisterError>,
    {
        self.insert(pattern.try_into().map_err(Into::into)?, Arc::new(Whole(handler)))
    }

    fn insert(&self, pattern: Pattern, handler: Arc<dyn AnyHandler>) -> Result<Registration, RegisterError> {
        let mut table = self.inner.table.write();
        let max = self.inner.limits.max_handlers.get();
        if table.has(&pattern) {
            return Err(RegisterError::Taken(pattern));
        }
        if table.len() >= max {
            return Err(RegisterError::TooMany { max });
        }
        table.insert(&pattern, handler);
        drop(table);
        Ok(Registration { pattern, router: Arc::downgrade(&self.inner) })
    }

    /// For whoever drives a [`Session`](crate::session::Session): its messages go straight to the handlers, without an inbox
    /// before them, and answers to requests ride with the acknowledgements. One feed for each session, for as long as
    /// that lives.
    ///
    /// ```
    /// use lastmile::session::{Input, Session};
    /// use lastmile::{Answers, Feed, Router, Timestamp};
    ///
    /// /// After `Event::Ready`.
    /// fn ready(session: &mut Session, feed: &Feed) {
    ///     session.take(64).into_iter().for_each(|inbound| feed.hand(inbound));
    /// }
    ///
    /// /// In the select loop of the session's task.
    /// async fn answered(session: &mut Session, answers: &mut Answers, now: Timestamp) {
    ///     if let Some(verdicts) = answers.next().await {
    ///         session.handle(now, Input::Verdicts(verdicts));
    ///     }
    /// }
    /// ```
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    #[must_use]
    pub fn feed(&self) -> (Feed, Answers) {
        feed::open(self.inner.clone())
    }
}

impl Default for Router {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for Router {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), sink: sink::State::default() }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("handlers", &self.inner.table.read().len()).finish_non_exhaustive()
    }
}

/// A registered handler. Dropping it removes the handler; one that runs at that moment finishes.
#[must_use = "dropping it removes the handler"]
pub struct Registration {
    pattern: Pattern,
    router: Weak<Inner>,
}

impl Registration {
    /// What the handler is for.
    #[must_use]
    pub const fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Leaves the handler in place for as long as there is the router.
    pub fn keep(mut self) {
        self.router = Weak::new();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(router) = self.router.upgrade() else { return };
        // What the host's handler does when it is dropped must not happen under the lock.
        let removed = router.table.write().remove(&self.pattern);
        drop(removed);
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registration({})", self.pattern)
    }
}
