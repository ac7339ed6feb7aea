//! Limits and policies of a session.

use core::time::Duration;

use super::frame::{Capabilities, Codecs, Limits, Window};

/// Limits and policies of one end. Both ends state theirs in the handshake; each holds the other to its own.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionConfig {
    /// What is taken in one frame. Default: 1 MiB, 256 messages.
    pub limits: Limits,
    /// The codecs that may be used. Default: all of this build.
    pub codecs: Codecs,
    /// What this end can do. Default: acknowledge, reply, publish.
    pub capabilities: Capabilities,
    /// What the peer may have in flight towards this end. Default: 64 messages, 1 MiB, 8 more critical ones.
    pub window: Window,
    /// Messages that may wait here for the peer's window. More are answered busy, and wait in the outbox. Default: 64.
    pub max_queue: usize,
    /// Bytes that a frame of several messages aims at. Default: 64 KiB.
    pub max_batch_bytes: u64,
    /// How long a message that is not critical waits for others to share its frame. Default: not at all.
    pub linger: Duration,
    /// How long acknowledgements wait for others; those of critical messages do not. Default: 20 ms.
    pub ack_delay: Duration,
    /// How many acknowledgements wait at most. Default: 16.
    pub ack_every: usize,
    /// How long silence may last before a ping. The shorter wish of both ends counts, but not below a second. Default: 25 s.
    pub heartbeat: Duration,
    /// How long the answer to a ping may take; the acceptor decides. Default: 10 s.
    pub timeout: Duration,
    /// How long hello and welcome may take. Default: 10 s.
    pub handshake_timeout: Duration,
    /// How long a session without a connection can be resumed. Default: 10 minutes.
    pub keep: Duration,
    /// For how long this end may repeat a message; zero when a durable sequence makes repeats recognisable for ever.
    /// Default: zero, as an engine's places are one.
    pub horizon: Duration,
    /// The longest horizon a peer may have: how long ids are remembered here. Default: one hour.
    pub max_horizon: Duration,
    /// How long before the credentials expire new ones are asked for. Default: one minute.
    pub renew_before: Duration,
    /// A peer that acknowledges nothing for so long is stalled, and gets half of its window. Default: 5 s.
    pub stall_after: Duration,
    /// A peer that acknowledges nothing for so long is parked: what waits goes back to the outbox, and nothing more is
    /// taken until it acknowledges something. Default: 60 s.
    pub park_after: Duration,
    /// For how long the engine is asked to wait when nothing more can be taken. Default: 500 ms.
    pub busy: Duration,
    /// Publishes without a receipt. Default: 64.
    pub max_publishes: usize,
    /// The longest reply, in bytes. What must be kept of replies is at most this for each message of the window's span.
    /// Default: 64 KiB.
    pub max_reply_bytes: usize,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            codecs: Codecs::known(),
            capabilities: Capabilities::ACKS.or(Capabilities::REPLIES).or(Capabilities::PUBLISH),
            window: Window { messages: 64, bytes: 1 << 20, reserve: 8 },
            max_queue: 64,
            max_batch_bytes: 64 << 10,
            linger: Duration::ZERO,
            ack_delay: Duration::from_millis(20),
            ack_every: 16,
            heartbeat: Duration::from_secs(25),
            timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            keep: Duration::from_secs(600),
            horizon: Duration::ZERO,
            max_horizon: Duration::from_secs(3600),
            renew_before: Duration::from_secs(60),
            stall_after: Duration::from_secs(5),
            park_after: Duration::from_secs(60),
            busy: Duration::from_millis(500),
            max_publishes: 64,
            max_reply_bytes: 64 << 10,
        }
    }
}
