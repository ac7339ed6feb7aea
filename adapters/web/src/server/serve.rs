//! Serving a router to the internet: `axum::serve` with time-outs for headers, handshakes and answers, and limits on sockets.

use std::error::Error as _;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::gate::{Gate, Place};
use super::refusal::{Refusal, Tally};
use super::stalled::{Begun, Patient};
use crate::config::WebConfig;

/// How long to wait when the system has no sockets left.
const NO_SOCKETS: Duration = Duration::from_millis(100);
/// Closed sockets of one kind are logged once in this time.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Limits of [`serve`].
#[derive(Clone)]
#[non_exhaustive]
pub struct ServeConfig {
    /// How long the head of a request may take, also the next one on a connection that is kept. 10 s.
    pub header_timeout: Duration,
    /// The longest head of a request, in bytes; at least 8 KiB. 16 KiB.
    pub max_header_bytes: usize,
    /// The most headers of a request. 64.
    pub max_headers: usize,
    /// Sockets in all that carry requests; what has become a WebSocket counts in [`WebConfig::max_connections`] alone.
    /// 12,000: more than that, so that those who are refused hear why.
    pub max_sockets: usize,
    /// The same of one address; of IPv6, of one /64. 256.
    pub max_sockets_per_address: usize,
    /// How long a TLS handshake may take. 10 s.
    pub tls_timeout: Duration,
    /// How long a peer may take nothing of what it is sent: an answer, or frames of a WebSocket. 30 s.
    pub write_timeout: Duration,
    /// How long requests may go on after the shutdown begins. 5 s.
    pub drain: Duration,
    /// Counts the sockets that were closed for one of these reasons; a clone of it tells. Each is logged once in 10 s too.
    pub closed: Closed,
    /// Serve TLS; see [`tls_from_pem`]. None.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<tokio_rustls::rustls::ServerConfig>>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            max_header_bytes: 16 << 10,
            max_headers: 64,
            max_sockets: 12_000,
            max_sockets_per_address: 256,
            tls_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            closed: Closed::default(),
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

impl std::fmt::Debug for ServeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeConfig")
            .field("header_timeout", &self.header_timeout)
            .field("max_sockets", &self.max_sockets)
            .field("max_sockets_per_address", &self.max_sockets_per_address)
            .finish_non_exhaustive()
    }
}

/// Why a socket was closed without an answer, or in the middle of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketRefusal {
    /// There were too many already.
    Full,
    /// There were too many of its address.
    Address,
    /// No TLS handshake came, or none in time.
    NoTls,
    /// A request's head did not come in time. A kept connection on which nothing comes is none of these.
    SlowHead,
    /// What came was no request, or its head was over a limit: that is answered with 400 or 431 first.
    BadHead,
    /// It did not take what it was sent.
    Stalled,
}

impl SocketRefusal {
    /// All of them.
    pub const ALL: &[Self] =
        &[Self::Full, Self::Address, Self::NoTls, Self::SlowHead, Self::BadHead, Self::Stalled];

    /// Its name in logs and metrics.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Address => "address",
            Self::NoTls => "no_tls",
            Self::SlowHead => "slow_head",
            Self::BadHead => "bad_head",
            Self::Stalled => "stalled",
        }
    }
}

/// Sockets that [`serve`] closed, counted by reason. A cheap handle: clones count together.
#[derive(Clone, Debug)]
pub struct Closed(Arc<Tally<{ SocketRefusal::ALL.len() }>>);

impl Default for Closed {
    fn default() -> Self {
        Self(Arc::new(Tally::new(LOG_EVERY)))
    }
}

impl Closed {
    /// How many were closed for this reason so far.
    #[must_use]
    pub fn count(&self, why: SocketRefusal) -> u64 {
        self.0.count(why as usize)
    }

    fn note(&self, why: SocketRefusal, from: SocketAddr) {
        if let Some(count) = self.0.note(why as usize) {
            tracing::warn!(error.type = why.kind(), count, last_address = %from.ip(), "sockets were closed");
        }
    }
}

/// Serves HTTP/1.1 until `shutdown` is done and what was under way then is answered, or [`ServeConfig::drain`] is over.
///
/// WebSockets are not waited for: whoever took them ends them, by its own farewell. Handlers get the peer's address as
/// `ConnectInfo<SocketAddr>`. A socket over a limit is closed without an answer; [`ServeConfig::closed`] counts those.
///
/// # Errors
/// That of the listener, if its address cannot be told. Failures to accept are waited out.
///
/// # Cancel safety
/// Dropped, it drops all connections.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    config: ServeConfig,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.local_addr()?;
    let gate = Arc::new(Gate::new(&WebConfig {
        max_connections: config.max_sockets,
        max_per_address: config.max_sockets_per_address,
        max_pending: usize::MAX,
        ..WebConfig::default()
    }));
    let drain = config.drain;
    let server = Arc::new(Server { http: http(&config), app: TowerToHyperService::new(app), config });
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
            Some(_ended) = connections.join_next() => continue,
        };
        let Ok((socket, from)) = accepted else {
            tokio::time::sleep(NO_SOCKETS).await;
            continue;
        };
        let place = match gate.enter(Some(from.ip())) {
            Ok(place) => place,
            Err(refusal) => {
                let why =
                    if refusal == Refusal::Address { SocketRefusal::Address } else { SocketRefusal::Full };
                server.config.closed.note(why, from);
                continue;
            }
        };
        connections.spawn(Arc::clone(&server).connection(socket, from, place, stopping.clone()));
    }
    drop(listener);
    stop.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    let _in_time = tokio::time::timeout(drain, all).await;
    Ok(())
}

struct Server {
    http: http1::Builder,
    app: TowerToHyperService<Router>,
    config: ServeConfig,
}

fn http(config: &ServeConfig) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(config.max_header_bytes.max(8 << 10))
        .max_headers(config.max_headers)
        .half_close(false);
    http
}

impl Server {
    async fn connection(
        self: Arc<Self>,
        socket: TcpStream,
        from: SocketAddr,
        place: Place,
        stopping: watch::Receiver<bool>,
    ) {
        let _place = place;
        // Frames are small and somebody waits for them.
        let _delayed = socket.set_nodelay(true);
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.config.tls {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(tls));
            match tokio::time::timeout(self.config.tls_timeout, acceptor.accept(socket)).await {
                Ok(Ok(secured)) => self.requests(secured, from, stopping).await,
                Ok(Err(why)) => {
                    tracing::debug!(%from, %why, "no TLS handshake");
                    self.config.closed.note(SocketRefusal::NoTls, from);
                }
                Err(_) => self.config.closed.note(SocketRefusal::NoTls, from),
            }
            return;
        }
        self.requests(socket, from, stopping).await;
    }

    async fn requests(
        &self,
        socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        from: SocketAddr,
        mut stopping: watch::Receiver<bool>,
    ) {
        let begun = Begun::default();
        let socket = Patient::new(socket, self.config.write_timeout, begun.clone());
        let app = self.app.clone();
        // With each request and not as a layer: a layer would copy every route for each connection.
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(from));
            app.call(request)
        });
        let connection = self.http.serve_connection(TokioIo::new(socket), service).with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let stop = async { drop(stopping.wait_for(|stop| *stop).await) };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(why) = ended {
            tracing::debug!(%from, %why, "a connection ended");
            if let Some(why) = refusal(&why, &begun) {
                self.config.closed.note(why, from);
            }
        }
    }
}

/// What was wrong with a connection that ended, if that was the peer's doing.
fn refusal(why: &hyper::Error, begun: &Begun) -> Option<SocketRefusal> {
    let stalled = why.source().and_then(|why| why.downcast_ref::<io::Error>());
    if stalled.is_some_and(|why| why.kind() == ErrorKind::TimedOut) {
        Some(SocketRefusal::Stalled)
    } else if why.is_parse() {
        Some(SocketRefusal::BadHead)
    } else {
        // One that is kept and on which nothing comes ends in the same way, and that is in order.
        (why.is_timeout() && begun.get()).then_some(SocketRefusal::SlowHead)
    }
}

#[cfg(feature = "tls")]
mod tls {
    use std::sync::Arc;

    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::{self, ServerConfig};

    /// Why there is no TLS.
    #[derive(Debug, thiserror::Error)]
    #[non_exhaustive]
    pub enum TlsError {
        /// The text holds no certificate, or no key.
        #[error("no certificate and key in the PEM text: {0}")]
        Pem(#[from] rustls::pki_types::pem::Error),
        /// They do not fit, or cannot be used.
        #[error("the certificate and its key cannot be used: {0}")]
        Refused(#[from] rustls::Error),
    }

    /// TLS 1.2 and 1.3 with this certificate chain and its key, as PEM, for
    /// [`ServeConfig::tls`](super::ServeConfig::tls).
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn tls_from_pem(chain: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
#[cfg(feature = "tls")]
pub use self::tls::{TlsError, tls_from_pem};
