//! Limits and policies of a session.

use core::time::Duration;

use super::admission::{AdmissionConfig, Rate};
use super::frame::{Capabilities, Codecs, Limits, Window};
use crate::config::ConfigError;

/// Limits and policies of one end. Both ends state theirs in the handshake; each holds the other to its own.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionConfig {
    /// What is taken in one frame. Default: 1 MiB, 256 messages, which is the least.
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
    /// How long acknowledgements wait for others, as long as something else has no verdict yet; those of critical messages do
    /// not wait. Default: 20 ms.
    pub ack_delay: Duration,
    /// How many acknowledgements wait at most. Default: 16.
    pub ack_every: usize,
    /// How long silence may last before a ping. The shorter wish of both ends counts, but not below a second. Default: 25 s.
    pub heartbeat: Duration,
    /// How long the answer to a ping may take; the acceptor decides. Default: 10 s.
    pub timeout: Duration,
    /// How long hello and welcome may take. An acceptor gives its authenticator three quarters of it, from the hello on.
    /// Default: 10 s.
    pub handshake_timeout: Duration,
    /// How long a session without a connection can be resumed. Default: 10 minutes.
    pub keep: Duration,
    /// For how long after it was first sent this end may repeat a publish in another life of its session, where an acceptor
    /// knows it by its id only. After that its outcome is unknown ([`Event::Receipt`](super::Event::Receipt) without one), and
    /// with zero at once. It must not be longer than the acceptor remembers ids. Default: zero, as an engine publishes
    /// nothing: its places are recognised for ever.
    pub horizon: Duration,
    /// The longest horizon a peer may have: how long ids are remembered here. Default: one hour.
    pub max_horizon: Duration,
    /// How long before the credentials expire new ones are asked for, but never before three quarters of their lifetime are
    /// over, nor within a second of the last answer. Default: one minute.
    pub renew_before: Duration,
    /// A peer that acknowledges nothing for so long is stalled, and gets half of its window. Default: 5 s.
    pub stall_after: Duration,
    /// A peer that acknowledges nothing for so long is parked: what waits goes back to the outbox, and nothing more is
    /// taken until it acknowledges something. Shorter than the engine's ack deadline, or what only waits would burn attempts.
    /// Default: 20 s.
    pub park_after: Duration,
    /// For how long the engine is asked to wait when nothing more can be taken. Default: 500 ms.
    pub busy: Duration,
    /// Publishes without a receipt. Default: 64, which is the least: every peer may have that many.
    pub max_publishes: usize,
    /// The longest reply, in bytes. Default: 64 KiB.
    pub max_reply_bytes: usize,
    /// Bytes of replies that are kept to be said again, in all, until the peer says that it has heard them, which it does with
    /// what it sends next. Beyond that the oldest is kept no longer: should the connection have broken before it was heard, its
    /// request ends without an answer. Not below `max_reply_bytes`. Default: 1 MiB.
    pub max_kept_replies: usize,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            codecs: Codecs::known(),
            capabilities: Capabilities::ACKS
                .or(Capabilities::REPLIES)
                .or(Capabilities::PUBLISH)
                .or(Capabilities::WITHDRAW),
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
            park_after: Duration::from_secs(20),
            busy: Duration::from_millis(500),
            max_publishes: 64,
            max_reply_bytes: 64 << 10,
            max_kept_replies: 1 << 20,
        }
    }
}

impl SessionConfig {
    /// Checks that the limits fit together.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first contradiction and what to change.
    pub fn check(&self) -> Result<(), ConfigError> {
        let rules = [
            (
                self.limits.max_items < MIN_ITEMS,
                "limits.max_items is below 256: a peer may put that many messages into a frame",
            ),
            (self.limits.max_frame < MIN_FRAME, "limits.max_frame is below 16 KiB: a hello might not fit"),
            (self.max_batch_bytes > self.limits.max_frame as u64, "max_batch_bytes is over limits.max_frame"),
            (self.codecs.best().is_none(), "codecs are none that this build has"),
            (self.window.messages == 0, "window.messages is zero: the peer could never send anything"),
            (
                self.window.messages > MAX_WINDOW,
                "window.messages is over 65,536: acknowledgements that may be lost are kept",
            ),
            (self.window.bytes == 0, "window.bytes is zero: the peer could send one message at a time"),
            (self.max_queue == 0, "max_queue is zero: nothing could ever be offered"),
            (self.ack_every == 0, "ack_every is zero"),
            (
                self.heartbeat < Duration::from_secs(1),
                "heartbeat is below a second: both ends would only ping",
            ),
            (self.timeout.is_zero(), "timeout is zero: every peer would be dead at once"),
            (self.handshake_timeout.is_zero(), "handshake_timeout is zero: nobody could say hello"),
            (self.park_after <= self.stall_after, "park_after is not longer than stall_after"),
            (
                self.linger >= self.stall_after,
                "linger is not shorter than stall_after: waiting would count as a stall",
            ),
            (
                self.ack_delay >= self.stall_after,
                "ack_delay is not shorter than stall_after: it would count as a stall",
            ),
            (
                self.max_publishes < MIN_PUBLISHES,
                "max_publishes is below 64: a peer may have that many without a receipt",
            ),
            (
                self.max_reply_bytes > self.limits.max_frame / 2,
                "max_reply_bytes is over half of limits.max_frame",
            ),
            (
                self.max_kept_replies < self.max_reply_bytes,
                "max_kept_replies is below max_reply_bytes: the longest reply could not be kept",
            ),
        ];
        first_broken(&rules)
    }
}

/// A hello with the longest names and credentials fits, in either codec.
pub(super) const MIN_FRAME: usize = 16 << 10;
const MAX_WINDOW: u32 = 65_536;
/// What the protocol allows every peer: less would end sessions with peers that do nothing wrong.
const MIN_ITEMS: usize = 256;
const MIN_PUBLISHES: usize = 64;

fn first_broken(rules: &[(bool, &str)]) -> Result<(), ConfigError> {
    rules.iter().find(|(broken, _)| *broken).map_or(Ok(()), |(_, what)| Err(ConfigError::new(*what)))
}

impl AdmissionConfig {
    /// Checks that the limits make sense.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first contradiction and what to change.
    pub fn check(&self) -> Result<(), ConfigError> {
        let idle = |rate: Rate| rate.every.is_zero() || rate.burst == 0;
        first_broken(&[
            (
                idle(self.address),
                "admission.address lets nobody in, or everybody: set a time above zero and a burst",
            ),
            (
                idle(self.user),
                "admission.user lets nobody in, or everybody: set a time above zero and a burst",
            ),
            (
                idle(self.global),
                "admission.global lets nobody in, or everybody: set a time above zero and a burst",
            ),
            (self.penalty > self.max_penalty, "admission.penalty is over admission.max_penalty"),
            (self.half_life.is_zero(), "admission.half_life is zero: no failure would be remembered"),
            (self.max_wait.is_zero(), "admission.max_wait is zero: nobody could get a slot"),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_together() {
        assert_eq!(SessionConfig::default().check(), Ok(()));
        assert_eq!(AdmissionConfig::default().check(), Ok(()));
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_change() {
        let broken: [fn(&mut SessionConfig); 8] = [
            |config| config.window.messages = 0,
            |config| config.codecs = Codecs::BINARY.and(Codecs::JSON),
            |config| config.max_batch_bytes = 1 << 30,
            |config| config.park_after = config.stall_after,
            |config| config.limits.max_frame = 1 << 10,
            |config| config.heartbeat = Duration::ZERO,
            |config| config.limits.max_items = 255,
            |config| config.max_publishes = 63,
        ];
        for (i, breaks) in broken.into_iter().enumerate() {
            let mut config = SessionConfig::default();
            breaks(&mut config);
            assert!(config.check().is_err(), "{i}");
        }
        let config = AdmissionConfig { half_life: Duration::ZERO, ..AdmissionConfig::default() };
        assert!(config.check().is_err());
    }
}
