//! The server: an axum router with the endpoints that sessions come in by.
//!
//! ```text
//!   browser, client ──► GET  {base}/ws                 a WebSocket: one frame a message
//!                       POST {base}/open               where that does not work: a connection over HTTP …
//!                       GET  {base}/sse?c=…            … what goes down, as an event stream
//!                       GET  {base}/poll?c=…&n=…       … or, where streams are held back, poll by poll
//!                       POST {base}/up?c=…&n=…         … what goes up
//!                       POST {base}/close?c=…          … and goodbye
//! ```
//!
//! Whoever gets a connection is given a [`WebTransport`] and does not see which way it came. This module knows nothing of
//! what is in a frame. Who somebody is, is the session's business: what is decided here is how much anybody may ask for
//! before that is known.
//!
//! docs/PROTOCOL.md has the requests and answers ("Over HTTP").

mod gate;
mod http;
mod origin;
mod pipe;
mod refusal;
mod serve;
mod stalled;
mod transport;
mod ws;

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::http::HeaderMap;
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use axum::routing::{get, post};
use lastmile::Acceptor;

use self::gate::{Gate, Place};
use self::pipe::Pipe;
pub use self::refusal::Refusal;
use self::refusal::Refusals;
pub use self::serve::{Closed, ServeConfig, SocketRefusal, serve};
#[cfg(feature = "tls")]
pub use self::serve::{TlsError, tls_from_pem};
pub use self::transport::{WebReader, WebTransport, WebWriter};
use crate::config::WebConfig;

/// By which way a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A WebSocket.
    WebSocket,
    /// An event stream, and requests up.
    Sse,
    /// Polls, and requests up.
    LongPoll,
}

impl Kind {
    /// Its name in logs, states and metrics, the same as that of the client's connector.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
            Self::LongPoll => "long-poll",
        }
    }
}

/// What is known of whoever connects.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Peer {
    /// Its address, or the one that a trusted proxy says; none if the host serves without `ConnectInfo`, and then no
    /// limit by address holds.
    pub address: Option<IpAddr>,
    /// By which way it came.
    pub kind: Kind,
}

/// Takes connections: an [`Acceptor`], or a closure that hands them to something else.
pub trait Accept: Send + Sync + 'static {
    /// Takes a connection, and may use it before it returns. Runs in a task of its own.
    fn accept(&self, transport: WebTransport, from: Peer) -> impl Future<Output = ()> + Send;
}

impl<F, Fut> Accept for F
where
    F: Fn(WebTransport, Peer) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    fn accept(&self, transport: WebTransport, from: Peer) -> impl Future<Output = ()> + Send {
        self(transport, from)
    }
}

impl Accept for Acceptor {
    async fn accept(&self, transport: WebTransport, from: Peer) {
        // Admission counts a network of IPv6 as one address, as the limits here do.
        let address = from.address.map(gate::neighbourhood).map_or_else(String::new, |ip| ip.to_string());
        Self::accept(self, transport, from.kind.name(), address);
    }
}

/// What the endpoints count.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WebStats {
    /// Connections that stand.
    pub connections: usize,
    /// Those of them that have not been answered anything yet.
    pub pending: usize,
    /// Connections made so far, by [`Kind`].
    pub accepted: [(&'static str, u64); 3],
    /// Refused requests so far, by [`Refusal::kind`].
    pub refused: Vec<(&'static str, u64)>,
}

/// The session endpoints. A cheap handle: clones share connections, limits and counters.
#[derive(Clone, Debug)]
pub struct Web(Arc<Hub>);

/// What all requests share.
#[derive(Debug)]
pub(in crate::server) struct Hub {
    config: WebConfig,
    gate: Arc<Gate>,
    refusals: Refusals,
    pipes: Mutex<HashMap<u128, Arc<Pipe>>>,
    accepted: [AtomicU64; 3],
}

/// The session endpoints as a router, to be merged into the host's: [`Web`] without a handle to its counters.
///
/// Serve it with [`serve`], or with `into_make_service_with_connect_info::<SocketAddr>()`: without the peers' addresses
/// there is no limit by address.
///
/// ```
/// # async fn f(acceptor: lastmile::Acceptor, listener: tokio::net::TcpListener) -> std::io::Result<()> {
/// use lastmile_web::{ServeConfig, WebConfig};
///
/// let app = axum::Router::new().merge(lastmile_web::router(acceptor, WebConfig::default()));
/// lastmile_web::serve(listener, app, ServeConfig::default(), std::future::pending()).await
/// # }
/// ```
pub fn router(accept: impl Accept, config: WebConfig) -> Router {
    Web::new(config).router(accept)
}

impl Web {
    /// Endpoints with these limits.
    #[must_use]
    pub fn new(config: WebConfig) -> Self {
        Self(Arc::new(Hub {
            gate: Arc::new(Gate::new(&config)),
            refusals: Refusals::new(config.log_every),
            pipes: Mutex::default(),
            accepted: Default::default(),
            config,
        }))
    }

    /// Routes that hand connections to `accept`.
    pub fn router(&self, accept: impl Accept) -> Router {
        let base = self.0.config.base.as_str();
        let accept = Arc::new(accept);
        let hub = || Arc::clone(&self.0);
        let (ws_hub, ws_accept) = (hub(), Arc::clone(&accept));
        let (open_hub, open_accept) = (hub(), accept);
        let (sse, poll, up, close) = (hub(), hub(), hub(), hub());
        Router::new()
            .route(
                &format!("{base}/ws"),
                get(move |request: Request| ws::upgrade(ws_hub.clone(), ws_accept.clone(), request)),
            )
            .route(
                &format!("{base}/open"),
                post(move |request: Request| http::open(open_hub.clone(), open_accept.clone(), request)),
            )
            .route(&format!("{base}/sse"), get(move |request: Request| http::sse(sse.clone(), request)))
            .route(&format!("{base}/poll"), get(move |request: Request| http::poll(poll.clone(), request)))
            .route(&format!("{base}/up"), post(move |request: Request| http::up(up.clone(), request)))
            .route(
                &format!("{base}/close"),
                post(move |request: Request| http::close(close.clone(), request)),
            )
    }

    /// What there is, and what was refused.
    #[must_use]
    pub fn stats(&self) -> WebStats {
        let (connections, pending) = self.0.gate.counts();
        let kinds = [Kind::WebSocket, Kind::Sse, Kind::LongPoll];
        let accepted =
            kinds.map(|kind| (kind.name(), self.0.accepted[kind as usize].load(Ordering::Relaxed)));
        let refused = Refusal::ALL.iter().map(|refusal| (refusal.kind(), self.0.refusals.count(*refusal)));
        WebStats { connections, pending, accepted, refused: refused.collect() }
    }
}

impl Hub {
    /// Checks where a request comes from; whose it is.
    fn admit(&self, request: &Request) -> Result<Option<IpAddr>, Refusal> {
        let address = self.address(request);
        if origin::is_allowed(&self.config.origins, request.headers(), request.uri().authority()) {
            Ok(address)
        } else {
            Err(Refusal::Origin)
        }
    }

    /// A place for a new connection.
    fn enter(&self, address: Option<IpAddr>, kind: Kind) -> Result<Place, Refusal> {
        let place = self.gate.enter(address)?;
        self.accepted[kind as usize].fetch_add(1, Ordering::Relaxed);
        Ok(place)
    }

    /// The peer's address: that of its connection, or, behind proxies that are trusted, the last one they did not add.
    fn address(&self, request: &Request) -> Option<IpAddr> {
        let info = request.extensions().get::<ConnectInfo<SocketAddr>>()?;
        let peer = info.0.ip().to_canonical();
        let trusted = |address: &IpAddr| self.config.trusted_proxies.contains(address);
        if trusted(&peer) { forwarded(request.headers(), trusted).or(Some(peer)) } else { Some(peer) }
    }

    /// Answers a refusal, counted and logged.
    fn refuse(&self, refusal: Refusal, from: Option<IpAddr>) -> Response {
        self.refusals.note(refusal, from);
        refusal.response(self.config.retry_after)
    }

    fn pipes(&self) -> MutexGuard<'_, HashMap<u128, Arc<Pipe>>> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last address of `X-Forwarded-For` that is not a trusted proxy's.
fn forwarded(headers: &HeaderMap, trusted: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let values: Vec<&str> =
        headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok()).collect();
    let mut hops = values.iter().rev().flat_map(|value| value.rsplit(','));
    hops.find_map(|hop| {
        // What is no address ends the chain: everything before it is hearsay.
        let address = hop.trim().parse::<IpAddr>().ok().map(|address| address.to_canonical());
        match address {
            Some(address) if trusted(&address) => None,
            other => Some(other),
        }
    })
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_trusted_proxies_say_is_believed() {
        let find = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            forwarded(&headers, |address| address.to_string().starts_with("10.")).map(|ip| ip.to_string())
        };
        assert_eq!(
            find(&["1.1.1.1, 2.2.2.2"]).as_deref(),
            Some("2.2.2.2"),
            "the first one is whatever a client wrote"
        );
        assert_eq!(find(&["1.1.1.1, 2.2.2.2, 10.0.0.1"]).as_deref(), Some("2.2.2.2"));
        assert_eq!(find(&["1.1.1.1", "2.2.2.2", "10.0.0.1"]).as_deref(), Some("2.2.2.2"));
        assert_eq!(find(&["3.3.3.3, unknown, 10.0.0.1"]), None);
        assert_eq!(find(&["10.0.0.2, 10.0.0.1"]), None);
        assert_eq!(find(&["::ffff:2.2.2.2"]).as_deref(), Some("2.2.2.2"));
        assert_eq!(find(&[]), None);
    }
}
