//! The server's side of sessions: whoever connects is admitted, authenticated, and handed to the session of their device.
//!
//! ```text
//!   accept ─► greet: hello in time ─► admission ─► authenticator ─► the device's session task, found or made
//!                       │                 │             │                 ├── Sink of the engine: its user's outbox
//!                       └── reject, typed and counted ──┘                 └── messages: permitted, in its user's name,
//!                                                                             into the inbox, or to a service
//! ```
//!
//! One task for each session, none for a device that has gone for longer than `SessionConfig::keep`. What is bounded:
//! handshakes under way, in all and of one address, refused connections that are told so, sessions, what is remembered of
//! addresses, users and devices.

mod admit;
mod builder;
mod intake;
mod registry;
mod rejections;
mod task;

use core::fmt;
use core::num::NonZeroUsize;
use core::time::Duration;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use self::intake::Policy;
use self::registry::{Command, Entry, Registry};
use self::rejections::Rejections;
use super::counters::Counters;
use crate::ports::{Authenticator, Claim, Denied, Identity, Transport};
use crate::runtime::clock::Stopwatch;
use crate::runtime::contain::{Running, contained};
use crate::runtime::engine::Engine;
use crate::runtime::tasks;
use crate::session::frame::Refused;
use crate::session::{Admission, Code, ConnId, SessionConfig};

pub use builder::AcceptorBuilder;
pub use registry::{Connection, Peer};

/// Devices whose high-water mark of publishes is remembered after their session.
const MAX_PUBLISHERS: NonZeroUsize = NonZeroUsize::new(65_536).expect("a literal above zero");

/// How often those are looked for who came while all were asked to go.
const STOP_CHECK: Duration = Duration::from_millis(50);
/// How long sessions have to end when they are told to.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// The erased twin of [`Authenticator`].
trait AnyAuthenticator: Send + Sync {
    fn authenticate(self: Arc<Self>, claim: Claim) -> Running<'static, Option<Result<Identity, Denied>>>;
}

impl<A: Authenticator> AnyAuthenticator for A {
    fn authenticate(self: Arc<Self>, claim: Claim) -> Running<'static, Option<Result<Identity, Denied>>> {
        contained(async move { Authenticator::authenticate(&*self, claim).await })
    }
}

/// What all tasks of an acceptor share.
struct Inner {
    policy: Arc<Policy>,
    session: SessionConfig,
    authenticator: Arc<dyn AnyAuthenticator>,
    admission: Mutex<Admission>,
    registry: Registry,
    rejections: Rejections,
    published: Mutex<LruCache<Peer, u64>>,
    handshakes: Arc<Semaphore>,
    /// Refused connections that are told so.
    farewells: Arc<Semaphore>,
    max_sessions: usize,
    next_conn: AtomicU64,
    next_serial: AtomicU64,
    /// Lives of sessions are numbered from the time of the start on, so that no number comes twice.
    next_epoch: AtomicU64,
    closing: AtomicBool,
    counters: Arc<Counters>,
    tally: Tally,
}

/// What an acceptor counts besides.
#[derive(Debug, Default)]
struct Tally {
    arrived: AtomicU64,
    opened: AtomicU64,
    resumed: AtomicU64,
    lost: AtomicU64,
    taken_over: AtomicU64,
}

/// What an acceptor has counted since it was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcceptorStats {
    /// Sessions: with a connection, or waiting to be resumed.
    pub sessions: u64,
    /// Sessions with a connection.
    pub open: u64,
    /// Connections that came.
    pub arrived: u64,
    /// Connections that were refused before a session had them.
    pub rejected: u64,
    /// Handshakes that were done.
    pub opened: u64,
    /// Those that resumed a session.
    pub resumed: u64,
    /// Connections of sessions that ended.
    pub lost: u64,
    /// Sessions that another connection of the same device has taken over.
    pub taken_over: u64,
    /// Connections that ended because the peer broke the protocol.
    pub violations: u64,
    /// Messages that were put into frames.
    pub sent: u64,
    /// Messages that came and were handed on.
    pub received: u64,
    /// Frames that came, and their bytes.
    pub frames_in: u64,
    /// See `frames_in`.
    pub bytes_in: u64,
    /// Frames that were sent.
    pub frames_out: u64,
}

/// What a shutdown left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Connections that were open at the beginning.
    pub connections: usize,
    /// Connections that had something under way at the deadline. Nothing of it is lost: it comes again.
    pub cut: usize,
    /// Sessions that had not ended when it returned, because a disk that hangs held them up, say. They end when they can.
    pub stuck: usize,
}

/// Takes connections for one engine. Cheap to clone; when the last clone is dropped, all its connections are closed.
///
/// ```
/// # use lastmile::{Acceptor, Engine, storage::MemoryStore};
/// # use lastmile::ports::{Authenticator, Claim, Denied, Identity};
/// struct ByName;
///
/// impl Authenticator for ByName {
///     async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
///         claim.user.map(Identity::new).ok_or_else(|| Denied::refused("no name"))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::builder(MemoryStore::new()).build()?;
/// let acceptor = Acceptor::builder(engine, ByName).build()?;
/// let (_client, server) = lastmile::memory_transport();
/// acceptor.accept(server, "memory", "here");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Acceptor {
    guard: Arc<Guard>,
}

/// Stops the tasks with the last handle.
struct Guard(Arc<Inner>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.closing.store(true, Ordering::Release);
        let inner = self.0.clone();
        let handle = inner.policy.engine.inner.handle.clone();
        tasks::spawn(&handle, async move { inner.stop_all().await });
    }
}

impl Inner {
    /// Ends all sessions, those too that were being admitted when the acceptor began to close.
    async fn stop_all(&self) {
        let (mut changes, mut told) = (self.registry.watch(), HashSet::new());
        while self.registry.len() > 0 {
            for entry in self.registry.all() {
                // One that is held up is told later, and holds up nobody else.
                if !told.contains(&entry.serial)
                    && let Ok(place) = entry.commands.try_reserve()
                {
                    place.send(Command::Stop(self.asked_to_leave(&entry, Code::Draining)));
                    told.insert(entry.serial);
                }
            }
            let _ = tokio::time::timeout(STOP_CHECK, changes.changed()).await;
        }
    }

    /// What somebody is told who is to come back in a slot of their own.
    fn asked_to_leave(&self, entry: &Entry, code: Code) -> Refused {
        let now = self.policy.engine.inner.clock.now();
        let (address, client) = (entry.info.lock().address.clone(), entry.client.lock().clone());
        let slot = self.admission.lock().farewell(now, address.as_bytes(), &client);
        Refused { code, retry_after: Some(slot), text: code.text().to_owned() }
    }

    /// Asks those of these that have a connection to come back later. How many that were.
    async fn ask_to_leave(&self, entries: impl IntoIterator<Item = Arc<Entry>>, code: Code) -> usize {
        let mut asked = 0;
        for entry in entries {
            if !entry.info.lock().is_open {
                continue;
            }
            // A slot is taken for those who can be told.
            let Ok(place) = entry.commands.reserve().await else { continue };
            place.send(Command::GoAway(self.asked_to_leave(&entry, code)));
            asked += 1;
        }
        asked
    }
}

impl Acceptor {
    /// Starts building one. See [`AcceptorBuilder`].
    pub fn builder(engine: Engine, authenticator: impl Authenticator) -> AcceptorBuilder {
        AcceptorBuilder::new(engine, Arc::new(authenticator))
    }

    /// Takes a connection: what becomes of it is decided in a task of its own. `transport` is its name in logs, lists and
    /// metrics; `address` is what admission counts by (without the port, or a prefix of it for IPv6).
    pub fn accept(&self, transport: impl Transport, name: &'static str, address: impl Into<String>) {
        let inner = self.guard.0.clone();
        inner.tally.arrived.fetch_add(1, Ordering::Relaxed);
        let id = ConnId(inner.next_conn.fetch_add(1, Ordering::Relaxed));
        let handle = inner.policy.engine.inner.handle.clone();
        tasks::spawn(&handle, inner.welcome(id, transport, name, address.into()));
    }

    /// All sessions, in no order: those with a connection, and those that wait to be resumed.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.guard.0.registry.all().into_iter().map(|entry| entry.info.lock().clone()).collect()
    }

    /// One device's session.
    #[must_use]
    pub fn connection(&self, peer: &Peer) -> Option<Connection> {
        self.guard.0.registry.find(peer).map(|entry| entry.info.lock().clone())
    }

    /// Tells when something about [`Acceptor::connections`] has changed, but for what is measured of one that stays as good as it
    /// was.
    #[must_use]
    pub fn watch(&self) -> ConnectionsWatch {
        ConnectionsWatch { version: self.guard.0.registry.watch() }
    }

    /// Closes a device's connection; with a terminal code its session, too. `false` if there is no session. What waits
    /// for the user stays in the outbox.
    ///
    /// # Cancel safety
    /// Dropped before it returns, nothing was closed.
    pub async fn close(&self, peer: &Peer, code: Code) -> bool {
        let Some(entry) = self.guard.0.registry.find(peer) else { return false };
        let refused = Refused { code, retry_after: None, text: code.text().to_owned() };
        entry.commands.send(Command::Close(refused)).await.is_ok()
    }

    /// Asks these devices to connect anew, each in a slot of its own, and closes each connection as soon as nothing is under way:
    /// to bring them to other servers behind a load balancer, say. Their sessions can be resumed here for as long as any. How
    /// many were asked: those that have a connection.
    ///
    /// ```
    /// # use lastmile::{Acceptor, Connection};
    /// /// A half of whoever is here.
    /// async fn rebalance(acceptor: &Acceptor) -> usize {
    ///     let half = acceptor.connections().into_iter().step_by(2).map(|connection| connection.peer);
    ///     acceptor.rebalance(half).await
    /// }
    /// ```
    ///
    /// # Cancel safety
    /// Dropped before it returns, some were asked, and the others were not.
    pub async fn rebalance(&self, peers: impl IntoIterator<Item = Peer, IntoIter: Send> + Send) -> usize {
        let inner = &self.guard.0;
        let entries: Vec<_> = peers.into_iter().filter_map(|peer| inner.registry.find(&peer)).collect();
        inner.ask_to_leave(entries, Code::Rebalancing).await
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> AcceptorStats {
        let inner = &self.guard.0;
        let (tally, counters) = (&inner.tally, &inner.counters);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let all = inner.registry.all();
        AcceptorStats {
            sessions: all.len() as u64,
            open: all.iter().filter(|entry| entry.info.lock().is_open).count() as u64,
            arrived: get(&tally.arrived),
            rejected: inner.rejections.total(),
            opened: get(&tally.opened),
            resumed: get(&tally.resumed),
            lost: get(&tally.lost),
            taken_over: get(&tally.taken_over),
            violations: get(&counters.violations),
            sent: get(&counters.sent),
            received: get(&counters.received),
            frames_in: get(&counters.frames_in),
            bytes_in: get(&counters.bytes_in),
            frames_out: get(&counters.frames_out),
        }
    }

    /// Takes no more connections, asks everybody to come back in a slot of their own, and closes each connection as soon as
    /// nothing is under way, at the latest when `deadline` has passed. The engine goes on. It returns at the latest two seconds
    /// after the deadline, whatever holds sessions up.
    ///
    /// # Cancel safety
    /// Dropped before it returns, no more connections are taken, and those that were asked to leave do so.
    pub async fn shutdown(&self, deadline: Duration) -> Drained {
        let inner = &self.guard.0;
        inner.closing.store(true, Ordering::Release);
        let (watch, mut changes) = (Stopwatch::start(), inner.registry.watch());
        let open =
            |inner: &Inner| inner.registry.all().iter().filter(|entry| entry.info.lock().is_open).count();
        let connections = open(inner);
        let left = || deadline.saturating_sub(Duration::from_nanos(watch.nanos()));
        let asking = inner.ask_to_leave(inner.registry.all(), Code::Draining);
        let _ = tokio::time::timeout(left(), asking).await;
        while open(inner) > 0 && !left().is_zero() {
            if tokio::time::timeout(left(), changes.changed()).await.is_err() {
                break;
            }
        }
        let cut = open(inner);
        let mut stuck = 0;
        if tokio::time::timeout(STOP_WITHIN, inner.stop_all()).await.is_err() {
            stuck = inner.registry.len();
            tracing::warn!(stuck, "sessions have not ended in time: is a disk hanging?");
            let (inner, handle) = (inner.clone(), inner.policy.engine.inner.handle.clone());
            tasks::spawn(&handle, async move { inner.stop_all().await });
        }
        Drained { connections, cut, stuck }
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("sessions", &self.guard.0.registry.len()).finish_non_exhaustive()
    }
}

/// Tells when the connections have changed, see [`Acceptor::watch`].
#[derive(Clone, Debug)]
pub struct ConnectionsWatch {
    version: watch::Receiver<u64>,
}

impl ConnectionsWatch {
    /// Waits until something has changed since the last call. `false` when the acceptor is gone.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn changed(&mut self) -> bool {
        self.version.changed().await.is_ok()
    }
}

#[cfg(test)]
mod tests;
