//! Puts an acceptor together.

use core::fmt;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::super::receive::AnyReceiver;
use super::intake::{MakeService, Permit, Policy};
use super::registry::{Peer, Registry};
use super::rejections::Rejections;
use super::{Acceptor, AnyAuthenticator, Guard, Inner, MAX_PUBLISHERS, Tally};
use crate::config::ConfigError;
use crate::id::UserId;
use crate::message::Message;
use crate::ports::Receiver;
use crate::runtime::builder::random;
use crate::runtime::engine::Engine;
use crate::session::{Admission, AdmissionConfig, Code, SessionConfig};

/// Handshakes under way at once, unless set.
const HANDSHAKES: usize = 1024;
/// Connections that are being told that they are refused.
const FAREWELLS: usize = 1024;
/// Sessions at once, unless set.
const SESSIONS: usize = 100_000;

/// Puts an [`Acceptor`] together.
pub struct AcceptorBuilder {
    engine: Engine,
    authenticator: Arc<dyn AnyAuthenticator>,
    session: SessionConfig,
    admission: AdmissionConfig,
    permit: Permit,
    services: HashMap<UserId, MakeService>,
    max_handshakes: usize,
    max_sessions: usize,
    seed: Option<u64>,
}

impl AcceptorBuilder {
    pub(super) fn new(engine: Engine, authenticator: Arc<dyn AnyAuthenticator>) -> Self {
        Self {
            engine,
            authenticator,
            session: SessionConfig::default(),
            admission: AdmissionConfig::default(),
            permit: Arc::new(|_, _| Ok(())),
            services: HashMap::new(),
            max_handshakes: HANDSHAKES,
            max_sessions: SESSIONS,
            seed: None,
        }
    }

    /// Limits and policies of each session.
    #[must_use]
    pub fn session(mut self, config: SessionConfig) -> Self {
        self.session = config;
        self
    }

    /// Who may connect how often.
    #[must_use]
    pub fn admission(mut self, config: AdmissionConfig) -> Self {
        self.admission = config;
        self
    }

    /// Whether a peer may send a message. It is asked before anything is done with it, for publishes as well; the message
    /// names the authenticated user as its sender, whatever the peer said. A code that is about a message and final is told
    /// to the peer; any other one, and a panic, become [`Code::NotPermitted`]. Everybody may send to everybody unless set.
    #[must_use]
    pub fn permit(
        mut self,
        permit: impl Fn(&Peer, &Message) -> Result<(), Code> + Send + Sync + 'static,
    ) -> Self {
        self.permit = Arc::new(permit);
        self
    }

    /// Messages to this user that are volatile, or are requests, go straight to a receiver, with no inbox and no disk
    /// between: one for each session, made when it is needed, and again when it has panicked. Other messages to the user
    /// go to the user's outbox, as to anybody.
    #[must_use]
    pub fn service<R: Receiver>(
        mut self,
        user: UserId,
        make: impl Fn(&Peer) -> R + Send + Sync + 'static,
    ) -> Self {
        let make = move |peer: &Peer| Box::new(make(peer)) as Box<dyn AnyReceiver>;
        self.services.insert(user, Arc::new(make));
        self
    }

    /// Handshakes under way at once; whoever comes then is asked to come back, in 5 to 30 s. 1,024 unless set. Of one address
    /// there are at most [`AdmissionConfig::max_handshakes`].
    #[must_use]
    pub fn max_handshakes(mut self, max: usize) -> Self {
        self.max_handshakes = max;
        self
    }

    /// Sessions at once, those that wait to be resumed included; whoever comes then is asked to come back. 100,000
    /// unless set.
    #[must_use]
    pub fn max_sessions(mut self, max: usize) -> Self {
        self.max_sessions = max;
        self
    }

    /// Seeds the jitter of slots, for tests.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Checks that the configuration and the engine's fit together.
    ///
    /// # Errors
    /// [`ConfigError`], which says what to change. Nothing was started.
    pub fn build(self) -> Result<Acceptor, ConfigError> {
        self.session.check()?;
        self.admission.check()?;
        let config = &self.engine.inner.config;
        if self.session.max_horizon > config.dedup_age {
            return Err(ConfigError::new(
                "max_horizon is longer than the engine's dedup_age: a late repeat of a publish would be accepted twice",
            ));
        }
        if self.session.park_after >= config.ack_deadline {
            return Err(ConfigError::new(
                "park_after is not shorter than the engine's ack_deadline: what waits for a slow peer would burn attempts",
            ));
        }
        if self.max_handshakes == 0 || self.max_sessions == 0 {
            return Err(ConfigError::new("max_handshakes and max_sessions must be above zero"));
        }
        let seed = self.seed.unwrap_or_else(|| random() as u64);
        let now = self.engine.inner.clock.now();
        let policy = Policy { engine: self.engine, permit: self.permit, services: self.services };
        let inner = Inner {
            policy: Arc::new(policy),
            session: self.session,
            authenticator: self.authenticator,
            admission: Mutex::new(Admission::new(self.admission, random(), seed)),
            registry: Registry::new(),
            rejections: Rejections::default(),
            published: Mutex::new(LruCache::new(MAX_PUBLISHERS)),
            handshakes: Arc::new(Semaphore::new(self.max_handshakes.min(Semaphore::MAX_PERMITS))),
            farewells: Arc::new(Semaphore::new(FAREWELLS)),
            max_sessions: self.max_sessions,
            next_conn: AtomicU64::new(1),
            next_serial: AtomicU64::new(1),
            next_epoch: AtomicU64::new(now.as_millis().saturating_mul(1000).max(1)),
            closing: AtomicBool::new(false),
            counters: Arc::default(),
            tally: Tally::default(),
        };
        Ok(Acceptor { guard: Arc::new(Guard(Arc::new(inner))) })
    }
}

impl fmt::Debug for AcceptorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptorBuilder").field("session", &self.session).finish_non_exhaustive()
    }
}
