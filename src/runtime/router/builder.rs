//! A router's limits and policies.

use core::fmt;
use core::num::NonZeroUsize;
use core::time::Duration;
use std::future::Future;

use super::{Guard, Router};
use crate::ports::{Failure, Permission, Received};

/// The shortest time that anything here is measured in.
const MIN: Duration = Duration::from_millis(10);

/// Limits and policies.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) max_handlers: NonZeroUsize,
    pub(super) max_running: NonZeroUsize,
    pub(super) max_open: NonZeroUsize,
    pub(super) timeout: Duration,
    pub(super) progress: Duration,
    pub(super) busy: Duration,
    pub(super) unhandled: Option<Failure>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_handlers: NonZeroUsize::new(1024).expect("a literal above zero"),
            max_running: NonZeroUsize::new(256).expect("a literal above zero"),
            max_open: NonZeroUsize::new(1024).expect("a literal above zero"),
            timeout: Duration::from_secs(60),
            progress: Duration::from_secs(10),
            busy: Duration::from_millis(500),
            unhandled: None,
        }
    }
}

/// Builds a [`Router`].
#[derive(Default)]
#[must_use = "build it"]
pub struct RouterBuilder {
    limits: Limits,
    guard: Option<Guard>,
}

impl RouterBuilder {
    /// How many handlers may be registered at once. Default: 1,024.
    pub const fn max_handlers(mut self, max: NonZeroUsize) -> Self {
        self.limits.max_handlers = max;
        self
    }

    /// How many handlers may run at once, for all attachments and sessions together; the others wait their turn, and
    /// their senders are told that there is progress. Default: 256.
    pub const fn max_running(mut self, max: NonZeroUsize) -> Self {
        self.limits.max_running = max;
        self
    }

    /// How many messages one attachment or session may have with this router at once; more are answered busy. Default:
    /// 1,024, which is more than the windows in front of it let through.
    pub const fn max_open(mut self, max: NonZeroUsize) -> Self {
        self.limits.max_open = max;
        self
    }

    /// How long permission and handler may take for a message together, from 10 ms. After that the handler is dropped where it
    /// waits, and the attempt has failed. [`Received::needs_more_time`] begins it anew. Default: 60 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.limits.timeout = timeout.max(MIN);
        self
    }

    /// How often the sender is told that a message is still being worked on, or waits for those before it; from 10 ms.
    /// Must be well below the sender's ack deadline ([`Config::ack_deadline`](crate::Config::ack_deadline), 30 s).
    /// Default: 10 s.
    pub fn progress(mut self, every: Duration) -> Self {
        self.limits.progress = every.max(MIN);
        self
    }

    /// What becomes of messages that no handler is for. Default: they are offered again later, which burns an attempt
    /// and in the end makes a dead letter of them: a handler may be about to be registered, or come with the next
    /// version.
    pub fn unhandled(mut self, failure: Failure) -> Self {
        self.limits.unhandled = Some(failure);
        self
    }

    /// Asks, before each message, whether its handler may have it. The sender's host has said who the sender is.
    ///
    /// ```
    /// use lastmile::ports::{Permission, Received};
    /// use lastmile::{Router, session::Code};
    ///
    /// let router = Router::builder()
    ///     .permission(async |received: Received| match received.sender() {
    ///         Some(sender) if sender.as_bytes() != b"mallory" => Permission::Allow,
    ///         _ => Permission::Deny(Code::NotPermitted),
    ///     })
    ///     .build();
    /// # drop(router);
    /// ```
    pub fn permission<F, Done>(mut self, hook: F) -> Self
    where
        F: Fn(Received) -> Done + Send + Sync + 'static,
        Done: Future<Output = Permission> + Send + 'static,
    {
        self.guard = Some(Box::new(move |received| Box::pin(hook(received))));
        self
    }

    /// The router.
    #[must_use]
    pub fn build(self) -> Router {
        Router::of(self.limits, self.guard)
    }
}

impl fmt::Debug for RouterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouterBuilder").field("limits", &self.limits).finish_non_exhaustive()
    }
}
