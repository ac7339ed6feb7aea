//! Who is connected: one session for each user's device, found by both. Never hands out a reference into its map.

use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::super::conn::Conn;
use crate::id::{DeviceId, UserId};
use crate::session::frame::{Hello, Refused};
use crate::session::{Grade, Grant, Quality};
use crate::time::Timestamp;

/// Who is at the other end of a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Peer {
    /// Who it is, by its credentials.
    pub user: UserId,
    /// Which device it says it is.
    pub device: DeviceId,
}

impl Peer {
    /// This user's device.
    #[must_use]
    pub const fn new(user: UserId, device: DeviceId) -> Self {
        Self { user, device }
    }
}

/// What is known of a session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Connection {
    /// Who it is.
    pub peer: Peer,
    /// What the host called the transport of the newest connection.
    pub transport: &'static str,
    /// Where the newest connection came from, as the host said.
    pub address: String,
    /// Whether a connection is open; otherwise the session waits to be resumed.
    pub is_open: bool,
    /// Since when it is open, or not, by the engine's clock.
    pub since: Timestamp,
    /// Whether the newest connection resumed the session.
    pub resumed: bool,
    /// How good it is, or was while it was open.
    pub grade: Grade,
    /// The smoothed round-trip time, once a ping was answered.
    pub rtt: Option<Duration>,
    /// All that was measured of the connection that is open.
    pub quality: Option<Quality>,
    /// Whether the peer takes nothing, so that its messages wait in the outbox.
    pub is_parked: bool,
}

/// A new connection for a session.
pub(super) struct Arrival {
    pub(super) conn: Conn,
    pub(super) hello: Box<Hello>,
    pub(super) grant: Grant,
    pub(super) transport: &'static str,
    pub(super) address: String,
}

/// What a session's task is told.
pub(super) enum Command {
    Admit(Box<Arrival>),
    /// Ask it to come back later, and close when nothing is under way any more.
    GoAway(Refused),
    /// Close the connection; with a terminal code, the session.
    Close(Refused),
    /// Close and be done.
    Stop(Refused),
}

/// One session's task, as others see it.
pub(super) struct Entry {
    pub(super) serial: u64,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) info: Mutex<Connection>,
    /// What admission knows its newest connection by, beside the address.
    pub(super) client: Mutex<Vec<u8>>,
}

/// All sessions.
pub(super) struct Registry {
    entries: DashMap<Peer, Arc<Entry>>,
    /// How many there are: exact, unlike what a map says of itself while others change it.
    count: AtomicUsize,
    version: watch::Sender<u64>,
}

impl Registry {
    pub(super) fn new() -> Self {
        Self { entries: DashMap::new(), count: AtomicUsize::new(0), version: watch::Sender::new(0) }
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn find(&self, peer: &Peer) -> Option<Arc<Entry>> {
        self.entries.get(peer).map(|entry| entry.value().clone())
    }

    /// The session's, or the one that is made, which the caller starts; `None` if there are so many already.
    pub(super) fn find_or(
        &self,
        peer: &Peer,
        max: usize,
        make: impl FnOnce() -> Arc<Entry>,
    ) -> Option<Arc<Entry>> {
        match self.entries.entry(peer.clone()) {
            dashmap::Entry::Occupied(found) => Some(found.get().clone()),
            dashmap::Entry::Vacant(place) => {
                let more = |count: usize| count.checked_add(1).filter(|count| *count <= max);
                self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
                Some(place.insert(make()).clone())
            }
        }
    }

    /// Forgets this one, and no other that has taken its place.
    pub(super) fn remove(&self, peer: &Peer, serial: u64) {
        if self.entries.remove_if(peer, |_, entry| entry.serial == serial).is_some() {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        self.changed();
    }

    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.iter().map(|entry| entry.value().clone()).collect()
    }

    pub(super) fn changed(&self) {
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
