//! What a client's host sees of its connection.

use core::time::Duration;

use tokio::sync::watch;

use crate::session::{Code, Grade};

/// Where a client stands. Sending works in every one of them: what is sent is durable here, and goes when it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientState {
    /// There is no connection.
    Offline {
        /// When the next attempt is made, counted from when this was said. A hint about the network makes it earlier.
        retry_in: Duration,
        /// What the last connection, or attempt, ended with.
        why: Option<Code>,
    },
    /// An attempt is under way.
    Connecting {
        /// Over which transport: the name of its connector.
        transport: &'static str,
    },
    /// A connection is open.
    Online {
        /// Over which transport.
        transport: &'static str,
        /// How good it is.
        quality: Grade,
    },
    /// There is no connection, and credentials are sought: their source is being asked, or had none that are good. It is asked
    /// again after a while, and when the network changes; [`Client::renew`](crate::Client::renew) gives some at once.
    NeedsCredentials {
        /// What the last ones were refused with. [`Code::SessionExpired`] also if their time is over.
        why: Option<Code>,
    },
    /// It does not connect any more by itself: the device is connected elsewhere, say, or may not be. What is sent is kept, and
    /// [`Client::reconnect`](crate::Client::reconnect) tries again, unless the client was shut down.
    Closed {
        /// Why.
        why: Code,
    },
}

impl ClientState {
    /// Whether a connection is open.
    #[must_use]
    pub const fn is_online(&self) -> bool {
        matches!(self, Self::Online { .. })
    }
}

/// Follows a client's state. Changes that follow each other quickly may be seen as one.
#[derive(Clone, Debug)]
pub struct StateWatch {
    state: watch::Receiver<ClientState>,
}

impl StateWatch {
    pub(super) const fn new(state: watch::Receiver<ClientState>) -> Self {
        Self { state }
    }

    /// The state now.
    #[must_use]
    pub fn current(&self) -> ClientState {
        *self.state.borrow()
    }

    /// Waits for the next change, and says what it is now; `None` when the client is gone.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn changed(&mut self) -> Option<ClientState> {
        self.state.changed().await.ok()?;
        Some(*self.state.borrow_and_update())
    }

    /// Waits until the state, now or later, is one that is looked for; `None` when the client is gone before.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn wait_for(&mut self, mut is_it: impl FnMut(&ClientState) -> bool) -> Option<ClientState> {
        self.state.wait_for(|state| is_it(state)).await.ok().map(|state| *state)
    }
}
