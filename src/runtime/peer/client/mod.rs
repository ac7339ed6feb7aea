//! The client: an engine whose messages go to a server, and into which the server's come, over whatever connects.
//!
//! ```text
//!   send ─► outbox of "the server" ─► session ─► transport, the best of the ladder that works
//!   sinks of the user ◄─ outbox of the user ◄─ inbox, once ◄─ session
//! ```
//!
//! What connects when, and over what, is decided by [`Dialer`](crate::session::Dialer).

mod builder;
mod envelope;
mod intake;
mod state;
mod task;

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use self::task::Command;
use crate::error::Closed;
use crate::id::{DeviceId, UserId};
use crate::message::Message;
use crate::ports::Sink;
use crate::runtime::engine::Engine;
use crate::runtime::requests::ask;
use crate::runtime::{AttachError, Attachment, DrainReport, Receipt, RequestError, SendError};
use crate::session::Quality;
use crate::session::frame::Credentials;

pub use builder::{ClientBuildError, ClientBuilder};
pub use state::{ClientState, StateWatch};

/// A user's device: keeps what it sends until the server has it, and takes what comes once. Clones are handles to the
/// same one, with one connection for all; when the last one is dropped, the connection is closed and the engine stops.
///
/// ```no_run
/// # use lastmile::{Client, ClientBuilder, Engine, Message, Stage, storage::MemoryStore};
/// # use lastmile::machine::{Delivery, EntryRef, Verdict};
/// # use lastmile::ports::{Connector, Sink};
/// # use lastmile::session::frame::Credentials;
/// # async fn example(websocket: impl Connector, screen: impl Sink) -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder(Engine::builder(MemoryStore::new()), "alice", "phone")
///     .connector(websocket)
///     .credentials(Credentials("token".into()))
///     .build()?;
/// let _screen = client.attach("screen", screen)?;
/// let receipt = client.send(Message::to("bob", "chat.message", "hi").build()?).await?; // durable here
/// receipt.reached(Stage::Delivered).await?; // and durable at the server
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    user: UserId,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<ClientState>,
    worked: watch::Receiver<Vec<usize>>,
    quality: watch::Receiver<Option<Quality>>,
}

impl Client {
    /// Starts building the client of this user's device, with an engine of its own. See [`ClientBuilder`].
    pub fn builder<U, D>(engine: crate::runtime::EngineBuilder, user: U, device: D) -> ClientBuilder
    where
        U: TryInto<UserId>,
        U::Error: Into<AttachError>,
        D: TryInto<DeviceId>,
        D::Error: Into<AttachError>,
    {
        ClientBuilder::new(engine, user.try_into().map_err(Into::into), device.try_into().map_err(Into::into))
    }

    /// Accepts a message, online or not: `Ok` means what its [`Durability`](crate::Durability) promises, here and now. It
    /// goes to the server when there is a connection, in order, as its user's; `sender` is what the server says it is.
    /// [`Stage::Delivered`](crate::Stage::Delivered) of the receipt means that the server holds it durably.
    ///
    /// A volatile message is only taken while there is a connection.
    ///
    /// # Errors
    /// [`SendError`], which says why, what that did to the state, and gives the message back.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the message is wholly in or wholly out. Send it again to know.
    pub async fn send(&self, message: Message) -> Result<Receipt, SendError> {
        match self.inner.engine.send(envelope::seal(&message)).await {
            Ok(receipt) => Ok(receipt.shown_as(message.recipient().clone())),
            Err(error) => Err(SendError::new(message, error.reason().clone())),
        }
    }

    /// Sends a message and waits for its answer: what a handler of the recipient replied, at the server or at another client.
    /// As [`Engine::request`]; who asks is this client's user, so a late answer comes to this user.
    ///
    /// # Errors
    /// [`RequestError`], which says what became of the message.
    ///
    /// # Cancel safety
    /// As for [`Client::send`]; the answer is then like one that comes late.
    pub async fn request(&self, message: Message, within: Duration) -> Result<Bytes, RequestError> {
        ask(&self.inner.engine, message, within, async |message| self.send(message).await).await
    }

    /// Attaches a sink (a router, say) for what comes for this user. `name` is the sink's, as a device of this client's engine:
    /// one that attaches again takes over.
    ///
    /// # Errors
    /// [`AttachError`]. Nothing was changed.
    pub fn attach<D>(&self, name: D, sink: impl Sink) -> Result<Attachment, AttachError>
    where
        D: TryInto<DeviceId>,
        D::Error: Into<AttachError>,
    {
        self.inner.engine.attach(&self.inner.user, name, sink)
    }

    /// Who it is.
    #[must_use]
    pub fn user(&self) -> &UserId {
        &self.inner.user
    }

    /// The client's own engine: its inbox and outbox, their statistics, dead letters and status. What was sent waits in the
    /// outbox of [`Client::outbox`].
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// Whose outbox of [`Client::engine`] holds what goes to the server.
    #[must_use]
    pub fn outbox() -> UserId {
        envelope::server()
    }

    /// Where it stands now.
    #[must_use]
    pub fn state(&self) -> ClientState {
        *self.inner.state.borrow()
    }

    /// Follows where it stands.
    #[must_use]
    pub fn watch(&self) -> StateWatch {
        StateWatch::new(self.inner.state.clone())
    }

    /// How good the connection is that is open, as this end has measured it: score and grade, round-trip time and its variation,
    /// losses and stalls. `None` while there is none; another connection is measured anew.
    ///
    /// [`ClientState::Online`] has the grade, and [`Client::watch`] tells when that changes.
    ///
    /// ```no_run
    /// # fn example(client: lastmile::Client) {
    /// if let Some(quality) = client.quality() {
    ///     println!("{} of 100, {:?} to and fro, {:.0} % lost", quality.score(), quality.rtt(), 100.0 * quality.loss());
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn quality(&self) -> Option<Quality> {
        *self.inner.quality.borrow()
    }

    /// Which transports have worked, by their places in the ladder: for [`ClientBuilder::worked`] or
    /// [`Client::network_changed`], when the host is on this network again.
    #[must_use]
    pub fn worked(&self) -> Vec<usize> {
        self.inner.worked.borrow().clone()
    }

    /// The host has another network, or one again: there is an attempt at once, unless the server asked to come later. What
    /// the ladder has learnt is forgotten but for these transports, which worked here before.
    ///
    /// # Errors
    /// [`Closed`] after a shutdown.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn network_changed(&self, worked: &[usize]) -> Result<(), Closed> {
        self.inner.commands.send(Command::NetworkChanged(worked.to_vec())).await.map_err(|_| Closed)
    }

    /// Connects again after it was [`Closed`](ClientState::Closed): when the same device had connected elsewhere and taken over, say,
    /// and its user wants it here. All that was sent meanwhile goes then. While it is [`Offline`](ClientState::Offline) there is
    /// an attempt at once. In both cases no earlier than the server has asked for; in any other state it does nothing.
    ///
    /// Two devices of one name that do this whenever they are taken over take over from each other for ever: ask the user.
    ///
    /// ```no_run
    /// # use lastmile::{Client, ClientState, session::Code};
    /// # async fn example(client: Client, ask_the_user: impl AsyncFn() -> bool) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut watch = client.watch();
    /// while let Some(state) = watch.changed().await {
    ///     if state == (ClientState::Closed { why: Code::TakenOver }) && ask_the_user().await {
    ///         client.reconnect().await?;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Closed`] after a shutdown.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn reconnect(&self) -> Result<(), Closed> {
        self.inner.commands.send(Command::Reconnect).await.map_err(|_| Closed)
    }

    /// New credentials: for the open session, or for the next attempt.
    ///
    /// # Errors
    /// [`Closed`] after a shutdown.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn renew(&self, credentials: Credentials) -> Result<(), Closed> {
        self.inner.commands.send(Command::Renew(credentials)).await.map_err(|_| Closed)
    }

    /// Takes no more messages, waits until what is in flight is confirmed or the deadline has passed, closes the connection
    /// and stops the engine. What the server does not have yet stays in the outbox.
    ///
    /// # Cancel safety
    /// Dropped before it returns, no more messages are taken; it stops when the last handle is dropped.
    pub async fn shutdown(&self, deadline: Duration) -> DrainReport {
        let report = self.inner.engine.shutdown(deadline).await;
        let _ = self.inner.commands.send(Command::Stop).await;
        self.inner.commands.closed().await;
        report
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("user", &self.inner.user)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
