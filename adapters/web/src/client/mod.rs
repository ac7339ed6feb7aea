//! The client: connectors over WebSocket, event stream and polls, the rungs of a session's ladder.
//!
//! All three dial the same way ([`dial`]): through the proxy that the environment names, and with TLS that trusts what the
//! platform trusts. Requests are HTTP/1.1, over hyper.

mod dial;
mod http;
mod poll;
mod refused;
mod sse;
mod up;
mod ws;

use std::sync::Arc;
use std::time::Duration;

use self::dial::Endpoint;
pub use self::dial::InvalidUrl;
pub use self::poll::{PollConnector, PollReader, PollTransport};
pub use self::sse::{SseConnector, SseReader, SseTransport};
pub use self::up::UpWriter;
pub use self::ws::{WsConnector, WsReader, WsTransport, WsWriter};

/// Where a server is, and how it is reached: makes the connectors.
///
/// ```
/// # fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let web = lastmile_web::WebClient::new("https://chat.example/lastmile")?;
/// let (best, second, last) = (web.websocket(), web.sse(), web.long_poll());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct WebClient(Arc<Endpoint>);

/// Limits and time-outs of a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientConfig {
    /// The largest frame, in bytes. 1 MiB, as a session's own default.
    pub max_frame: usize,
    /// How long reaching the server may take, with proxy and TLS. 10 s.
    pub connect_timeout: Duration,
    /// How long an event stream may take until its first event. What is later is taken for held back by something in
    /// between. 2.5 s.
    pub silence: Duration,
    /// How long a poll may take: longer than the server lets it wait. 40 s.
    pub poll_timeout: Duration,
    /// How long a request up may take. 30 s.
    pub up_timeout: Duration,
    /// How often a request up or a poll is repeated when its answer is lost. 3.
    pub repeats: u32,
    /// The wait before the first repeat; each further one doubles it. 100 ms.
    pub repeat_after: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            max_frame: 1 << 20,
            connect_timeout: Duration::from_secs(10),
            silence: Duration::from_millis(2500),
            poll_timeout: Duration::from_secs(40),
            up_timeout: Duration::from_secs(30),
            repeats: 3,
            repeat_after: Duration::from_millis(100),
        }
    }
}

impl WebClient {
    /// For the endpoints at this address: the host's, and [`WebConfig::base`](crate::WebConfig::base). `http` and `ws` are the
    /// same, and so are `https` and `wss`. Reads the environment for a proxy: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`,
    /// `NO_PROXY`, as curl does.
    ///
    /// # Errors
    /// [`InvalidUrl`]. Nothing was connected.
    pub fn new(url: &str) -> Result<Self, InvalidUrl> {
        Ok(Self(Arc::new(Endpoint::new(url)?)))
    }

    /// With these limits.
    #[must_use]
    pub fn config(mut self, config: ClientConfig) -> Self {
        self.endpoint().config = config;
        self
    }

    /// Through no proxy, whatever the environment says.
    #[must_use]
    pub fn no_proxy(mut self) -> Self {
        self.endpoint().proxy = None;
        self
    }

    /// Through this proxy, `http://user:password@host:port`, whatever the environment says.
    ///
    /// # Errors
    /// [`InvalidUrl`].
    pub fn proxy(mut self, url: &str) -> Result<Self, InvalidUrl> {
        let proxy = dial::proxy_everything(url)?;
        self.endpoint().proxy = Some(proxy);
        Ok(self)
    }

    /// With these TLS settings, instead of the platform's roots: a private certificate authority, a client certificate.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: Arc<tokio_rustls::rustls::ClientConfig>) -> Self {
        self.endpoint().tls = Some(tls);
        self
    }

    /// Over WebSockets.
    #[must_use]
    pub fn websocket(&self) -> WsConnector {
        WsConnector(Arc::clone(&self.0))
    }

    /// Over event streams, with requests up.
    #[must_use]
    pub fn sse(&self) -> SseConnector {
        SseConnector(Arc::clone(&self.0))
    }

    /// Over polls, with requests up: works wherever anything does.
    #[must_use]
    pub fn long_poll(&self) -> PollConnector {
        PollConnector(Arc::clone(&self.0))
    }

    fn endpoint(&mut self) -> &mut Endpoint {
        Arc::make_mut(&mut self.0)
    }
}
