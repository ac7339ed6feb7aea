//! Limits of a server, each with its default and the reason for it.

use std::net::IpAddr;
use std::time::Duration;

/// Which pages may connect. Only browsers say where a page comes from; what says nothing is no page, and is let in to show
/// its credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// Pages of this very host and port.
    #[default]
    SameOrigin,
    /// These too, each as browsers write it: `https://chat.example`, with a port if it is not the scheme's own.
    Also(Vec<String>),
    /// All. Safe only if credentials are nothing that a browser sends by itself.
    Any,
}

/// Limits of the session endpoints. `Default` suits a server on the open internet.
///
/// ```
/// use lastmile_web::{Origins, WebConfig};
///
/// let mut config = WebConfig::default();
/// config.origins = Origins::Also(vec!["https://chat.example".into()]);
/// config.max_per_address = 1_000; // an office behind one address
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WebConfig {
    /// Where the endpoints are: a path without a slash at its end. `/lastmile`.
    pub base: String,
    /// Which pages may connect. Those of the same host.
    pub origins: Origins,
    /// The largest frame, in bytes. 1 MiB, as a session's own default.
    pub max_frame: usize,
    /// Connections in all. 10,000: at some tens of kilobytes each, what a small machine holds.
    pub max_connections: usize,
    /// Connections from one address; of IPv6, from one /64. 64: a household of devices.
    pub max_per_address: usize,
    /// Connections that have not been answered anything yet, which anybody can make. 1,000.
    pub max_pending: usize,
    /// Addresses of reverse proxies in front, whose `X-Forwarded-For` is believed. None.
    pub trusted_proxies: Vec<IpAddr>,
    /// How long the body of a request may take. 30 s: a frame of 1 MiB over a line of 300 kbit/s.
    pub body_timeout: Duration,
    /// How long a poll waits for frames. 25 s: below the 30 s after which some proxies give up.
    pub poll_wait: Duration,
    /// How long after its last poll a connection is taken for lost. 30 s.
    pub poll_absence: Duration,
    /// How long after `open` its event stream or first poll may take. 10 s.
    pub open_timeout: Duration,
    /// How long what was written before the close of a connection is kept for the next poll. 5 s.
    pub linger: Duration,
    /// After so much silence an event stream gets a comment, for proxies that cut silent connections. 15 s.
    pub keep_alive: Duration,
    /// Bytes that wait in a connection over HTTP in either direction, give or take one request or write. 256 KiB.
    pub max_buffered: usize,
    /// When those who come while there is no room are asked to come back. 5 s.
    pub retry_after: Duration,
    /// Refusals of one kind are logged once in this time, with their number. 10 s.
    pub log_every: Duration,
}

impl Default for WebConfig {
    fn default() -> Self {
        Self {
            base: "/lastmile".into(),
            origins: Origins::SameOrigin,
            max_frame: 1 << 20,
            max_connections: 10_000,
            max_per_address: 64,
            max_pending: 1_000,
            trusted_proxies: Vec::new(),
            body_timeout: Duration::from_secs(30),
            poll_wait: Duration::from_secs(25),
            poll_absence: Duration::from_secs(30),
            open_timeout: Duration::from_secs(10),
            linger: Duration::from_secs(5),
            keep_alive: Duration::from_secs(15),
            max_buffered: 256 << 10,
            retry_after: Duration::from_secs(5),
            log_every: Duration::from_secs(10),
        }
    }
}
