//! Puts a client together.

use core::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::super::counters::Counters;
use super::super::pump::{Parts, Pump};
use super::super::receive::AnyReceiver;
use super::intake::Intake;
use super::task::{AnyConnector, AnySource, ClientTask, Doing};
use super::{Client, ClientState, Inner, envelope};
use crate::config::ConfigError;
use crate::id::{DeviceId, UserId};
use crate::ports::{Connector, CredentialSource, Receiver};
use crate::runtime::builder::random;
use crate::runtime::contain::called;
use crate::runtime::engine::Engine;
use crate::runtime::requests::Envelopes;
use crate::runtime::{AttachError, BuildError, EngineBuilder, tasks};
use crate::session::frame::{Credentials, Refused};
use crate::session::{Code, Dialer, DialerConfig, Session, SessionConfig};

/// Commands that wait for a client's task.
const MAX_COMMANDS: usize = 8;

/// A client was not built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientBuildError {
    /// The user or the device is no id. Nothing was opened.
    #[error(transparent)]
    Id(#[from] AttachError),
    /// The configuration cannot work. Nothing was started.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine could not be opened.
    #[error(transparent)]
    Engine(#[from] BuildError),
}

type MakeDirect = Arc<dyn Fn() -> Box<dyn AnyReceiver> + Send + Sync>;

/// Puts a [`Client`] together.
pub struct ClientBuilder {
    engine: EngineBuilder,
    user: Result<UserId, AttachError>,
    device: Result<DeviceId, AttachError>,
    connectors: Vec<Arc<dyn AnyConnector>>,
    source: Arc<dyn AnySource>,
    session: SessionConfig,
    dialer: DialerConfig,
    worked: Vec<usize>,
    direct: Option<MakeDirect>,
    seed: Option<u64>,
}

impl ClientBuilder {
    pub(super) fn new(
        engine: EngineBuilder,
        user: Result<UserId, AttachError>,
        device: Result<DeviceId, AttachError>,
    ) -> Self {
        Self {
            engine,
            user,
            device,
            connectors: Vec::new(),
            source: Arc::new(Credentials(bytes::Bytes::new())),
            session: SessionConfig::default(),
            dialer: DialerConfig::default(),
            worked: Vec::new(),
            direct: None,
            seed: None,
        }
    }

    /// One more way to the server, worse than those that were added before.
    #[must_use]
    pub fn connector(mut self, connector: impl Connector) -> Self {
        self.connectors.push(Arc::new(connector));
        self
    }

    /// Where credentials come from. Empty ones unless set.
    #[must_use]
    pub fn credentials(mut self, source: impl CredentialSource) -> Self {
        self.source = Arc::new(source);
        self
    }

    /// Limits and policies of the session.
    #[must_use]
    pub fn session(mut self, config: SessionConfig) -> Self {
        self.session = config;
        self
    }

    /// When to connect, over what, and what is done about each error.
    #[must_use]
    pub fn dialer(mut self, config: DialerConfig) -> Self {
        self.dialer = config;
        self
    }

    /// Transports that worked on this network before, see [`Client::worked`].
    #[must_use]
    pub fn worked(mut self, worked: &[usize]) -> Self {
        self.worked = worked.to_vec();
        self
    }

    /// Hands what comes straight to a receiver (a router, say), instead of keeping it in an inbox: faster, and as durable as
    /// what the receiver does with it. It is made again when it has panicked.
    #[must_use]
    pub fn direct<R: Receiver>(mut self, make: impl Fn() -> R + Send + Sync + 'static) -> Self {
        self.direct = Some(Arc::new(move || Box::new(make()) as Box<dyn AnyReceiver>));
        self
    }

    /// Seeds the jitter of reconnections, for tests.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Opens the engine, and begins to connect. Blocks while it reads the journal.
    ///
    /// # Errors
    /// [`ClientBuildError`].
    pub fn build(self) -> Result<Client, ClientBuildError> {
        let (user, device) = (self.user?, self.device?);
        self.session.check()?;
        self.dialer.check()?;
        if self.connectors.is_empty() {
            return Err(ConfigError::new("a client without a connector never connects: add one").into());
        }
        if user == envelope::server() {
            return Err(ConfigError::new("this user id stands for the server in a client's engine").into());
        }
        let engine = self.engine.build()?;
        if self.session.park_after >= engine.inner.config.ack_deadline {
            return Err(ConfigError::new(
                "park_after is not shorter than the engine's ack_deadline: what waits for a slow peer would burn attempts",
            )
            .into());
        }
        check_room(&engine)?;
        engine.inner.requests.set_envelopes(Envelopes {
            me: user.clone(),
            seal: envelope::seal,
            open: envelope::open,
            outbox: envelope::server(),
        });
        let seed = self.seed.unwrap_or_else(|| random() as u64);
        let dialer = Dialer::new(self.dialer, self.connectors.len(), &self.worked, seed);
        let (config, stream, us, of) = (self.session.clone(), engine.stream(), user.clone(), device.clone());
        let afresh = move || Session::connector(config.clone(), stream, Some(us.clone()), of.clone());
        let (direct, inbox, me) = (self.direct, engine.inbox(), user.clone());
        let requests = engine.inner.requests.clone();
        let intake = move || {
            let direct = direct.as_ref().and_then(|make| called(|| make()));
            let requests = requests.clone();
            Box::new(Intake { user: me.clone(), inbox: inbox.clone(), requests, direct })
                as Box<dyn AnyReceiver>
        };
        let pump = Pump::new(Parts {
            session: afresh(),
            limits: self.session.limits,
            outbox: envelope::server(),
            device,
            unwrap: envelope::open,
            receiver: Box::new(intake),
            counters: Arc::new(Counters::default()),
            engine: engine.clone(),
            farewell: Box::new(|stopping| {
                let code = if stopping { Code::Done } else { Code::Overloaded };
                Refused { code, retry_after: None, text: code.text().to_owned() }
            }),
        });
        let (commands, taken) = mpsc::channel(MAX_COMMANDS);
        let (state, shown) =
            watch::channel(ClientState::Offline { retry_in: core::time::Duration::ZERO, why: None });
        let (worked, known) = watch::channel(self.worked);
        let (quality, measured) = watch::channel(None);
        let task = ClientTask {
            user: user.clone(),
            pump,
            dialer,
            connectors: self.connectors,
            source: self.source,
            commands: taken,
            state,
            worked,
            quality,
            afresh: Box::new(afresh),
            doing: Doing::default(),
        };
        tasks::spawn(&engine.inner.handle, task.run());
        let inner = Inner { engine, user, commands, state: shown, worked: known, quality: measured };
        Ok(Client { inner: Arc::new(inner) })
    }
}

/// What waits to be sent must leave room for what comes: when the server is full as well, of messages for this client, both
/// would wait for each other for ever.
fn check_room(engine: &Engine) -> Result<(), ConfigError> {
    let (config, shards) = (&engine.inner.config, engine.inner.shards.len() as u64);
    let has_room = |total: u64, user: u64| total / shards.max(1) >= user.saturating_mul(2);
    if !has_room(config.max_total_messages.get(), config.max_user_messages.get().into())
        || !has_room(config.max_total_bytes.get(), config.max_user_bytes.get())
    {
        return Err(ConfigError::new(
            "max_total_messages or max_total_bytes leaves a shard no room for a full outbox and a full inbox: make them at \
             least twice what one user may have, for each shard",
        ));
    }
    Ok(())
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("user", &self.user).finish_non_exhaustive()
    }
}
