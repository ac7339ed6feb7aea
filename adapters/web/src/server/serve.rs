//! Serving a router to the internet: `axum::serve` with time-outs for headers and handshakes, and limits on sockets.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::gate::{Gate, Place};
use crate::config::WebConfig;

/// How long to wait when the system has no sockets left.
const NO_SOCKETS: Duration = Duration::from_millis(100);

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
    /// How long requests may go on after the shutdown begins. 5 s.
    pub drain: Duration,
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
            drain: Duration::from_secs(5),
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

/// Serves HTTP/1.1 until `shutdown` is done and what was under way then is answered, or [`ServeConfig::drain`] is over.
///
/// WebSockets are not waited for: whoever took them ends them, by its own farewell. Handlers get the peer's address as `ConnectInfo<SocketAddr>`. A socket over a limit is closed without an answer.
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
    let server = Arc::new(Server {
        http: http(&config),
        app,
        #[cfg(feature = "tls")]
        config,
    });
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
        let Ok(place) = gate.enter(Some(from.ip())) else { continue };
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
    app: Router,
    #[cfg(feature = "tls")]
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
                Ok(Err(why)) => tracing::debug!(%from, %why, "no TLS handshake"),
                Err(_) => tracing::debug!(%from, "no TLS handshake in time"),
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
        let app = self.app.clone().layer(axum::Extension(ConnectInfo(from)));
        let service = TowerToHyperService::new(app);
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
        }
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
