//! Connections: whatever carries whole frames, in order, between two ends.
//!
//! A transport knows nothing of what is in a frame. It may break at any time and lose what was under way: the session
//! makes up for that. It must not change, merge, part or reorder frames, and must not deliver one twice on a connection.

use core::fmt;
use core::future::Future;
use core::time::Duration;

use bytes::Bytes;

use crate::session::Code;

/// One connection that stands, on its way to be used.
///
/// The two halves are used from different tasks. When both are dropped, the connection must end.
pub trait Transport: Send + 'static {
    /// Reads what the peer sends.
    type Reader: FrameReader;
    /// Sends to the peer.
    type Writer: FrameWriter;

    /// The two directions.
    fn split(self) -> (Self::Reader, Self::Writer);
}

/// The direction from the peer.
pub trait FrameReader: Send + 'static {
    /// The next frame, whole; `None` when the peer closed the connection in good order.
    ///
    /// A frame whose first byte is `{` is JSON text, any other is binary: a transport that tells text from binary, as a
    /// WebSocket does, need not say which it was.
    ///
    /// # To ensure correctness
    /// Hold the peer to a limit before allocating ([`TransportError::TooLarge`]); the session's own limit comes on top.
    ///
    /// # Errors
    /// [`TransportError`]. Nothing more is read after one.
    ///
    /// # Cancel safety
    /// Dropped before it returns, no frame may be lost: the next call returns it.
    fn read(&mut self) -> impl Future<Output = Result<Option<Bytes>, TransportError>> + Send;
}

/// The direction to the peer.
pub trait FrameWriter: Send + 'static {
    /// Sends frames, in order. Returns when they are handed to the network, or to a bounded buffer in front of it; waits
    /// while that is full.
    ///
    /// # Errors
    /// [`TransportError`]. Some of the frames may have arrived. Nothing more is written after one.
    ///
    /// # Cancel safety
    /// Not needed: when it is dropped, the connection is given up.
    fn write(&mut self, frames: Vec<Bytes>) -> impl Future<Output = Result<(), TransportError>> + Send;

    /// Closes the connection when what was written before is out, saying why where the transport has a place for it (a
    /// WebSocket's close code). Must not wait for the peer for ever.
    fn close(&mut self, code: Code) -> impl Future<Output = ()> + Send;
}

/// Why a connection broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// It is gone. What was not acknowledged is sent again over the next one.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The peer sent a frame over the transport's limit. The connection must be closed.
    #[error("a frame is over the transport's limit of {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

/// Makes connections of one kind to one place: a rung of the client's ladder.
pub trait Connector: Send + Sync + 'static {
    /// What it makes.
    type Transport: Transport;

    /// What to call it in logs, states and metrics: `websocket`, `sse`, `long-poll`.
    fn name(&self) -> &'static str;

    /// Makes a connection. Whoever calls it gives it the time of a handshake, then drops it.
    ///
    /// # Errors
    /// [`ConnectError`], whose code decides what is done: see [`Recovery`](crate::session::Recovery).
    ///
    /// # Cancel safety
    /// Dropped before it returns, no connection may be left behind.
    fn connect(&self) -> impl Future<Output = Result<Self::Transport, ConnectError>> + Send;
}

/// Why no connection could be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({code})")]
pub struct ConnectError {
    /// What is done about it. [`Code::TransportLost`] unless the other side said something better, such as an HTTP status:
    /// 429 and 503 are [`Code::RateLimited`] and [`Code::Overloaded`], 401 is [`Code::CredentialsRefused`].
    pub code: Code,
    /// When to come back, if the other side said so.
    pub retry_after: Option<Duration>,
    /// What happened, for logs.
    pub text: String,
}

impl ConnectError {
    /// The transport does not work: nobody answers, or something between refuses it.
    #[must_use]
    pub fn unreachable(text: impl fmt::Display) -> Self {
        Self { code: Code::TransportLost, retry_after: None, text: text.to_string() }
    }
}
