//! Reaching the server: through a proxy if there is one, with TLS if it is asked for.

use std::fmt;
use std::io;
use std::sync::Arc;

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use lastmile::ports::ConnectError;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::ClientConfig;

/// The longest answer of a proxy that is read.
const MAX_PROXY_ANSWER: usize = 8 << 10;

/// A byte stream to the server.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Why an address is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is no address: {why}")]
pub struct InvalidUrl {
    url: String,
    why: &'static str,
}

/// Where the server is, and how it is reached.
#[derive(Clone)]
pub(super) struct Endpoint {
    /// `http` or `https`.
    scheme: Scheme,
    authority: Authority,
    /// Without a slash at its end.
    base: String,
    pub(super) proxy: Option<Arc<Matcher>>,
    pub(super) config: ClientConfig,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<Arc<tokio_rustls::rustls::ClientConfig>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({}://{}{})", self.scheme, self.authority, self.base)
    }
}

/// How a byte stream came about.
pub(super) struct Dialled {
    pub(super) io: Box<dyn Io>,
    /// It leads to a proxy that wants to be told the whole address with each request, and with what credentials.
    pub(super) proxy: Option<Option<HeaderValue>>,
}

/// What the byte stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Requests, which a proxy can pass on.
    Requests,
    /// Something else, for which a proxy must open a tunnel.
    Tunnel,
}

impl Endpoint {
    pub(super) fn new(url: &str) -> Result<Self, InvalidUrl> {
        let invalid = |why| InvalidUrl { url: url.to_owned(), why };
        let uri: Uri = url.parse().map_err(|_| invalid("it cannot be read"))?;
        let parts = uri.into_parts();
        let scheme = match parts.scheme.as_ref().map(Scheme::as_str) {
            Some("http" | "ws") => Scheme::HTTP,
            Some("https" | "wss") if cfg!(feature = "tls") => Scheme::HTTPS,
            Some("https" | "wss") => return Err(invalid("this build has no TLS: enable the feature tls")),
            _ => return Err(invalid("its scheme is none of http, https, ws, wss")),
        };
        let authority = parts.authority.ok_or_else(|| invalid("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("credentials have their place in the hello"));
        }
        let path = parts.path_and_query.map(|path| path.to_string()).unwrap_or_default();
        if path.contains('?') {
            return Err(invalid("it has a query"));
        }
        Ok(Self {
            scheme,
            authority,
            base: path.trim_end_matches('/').to_owned(),
            proxy: Some(Arc::new(Matcher::from_env())),
            config: ClientConfig::default(),
            #[cfg(feature = "tls")]
            tls: None,
        })
    }

    /// The path and query of an endpoint.
    pub(super) fn path(&self, endpoint: &str) -> String {
        format!("{}/{endpoint}", self.base)
    }

    /// The whole address of a path, as a proxy wants it.
    pub(super) fn absolute(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.authority)
    }

    /// For the header `Host`.
    pub(super) fn host(&self) -> &str {
        self.authority.as_str()
    }

    fn is_tls(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// A byte stream to the server, in the time there is for it.
    pub(super) async fn dial(&self, purpose: Purpose) -> Result<Dialled, ConnectError> {
        match tokio::time::timeout(self.config.connect_timeout, self.reach(purpose)).await {
            Ok(dialled) => dialled.map_err(ConnectError::unreachable),
            Err(_) => {
                Err(ConnectError::unreachable(format_args!("{} did not answer in time", self.authority)))
            }
        }
    }

    async fn reach(&self, purpose: Purpose) -> io::Result<Dialled> {
        let Some(proxy) = self.intercept() else {
            let socket = tcp(&self.authority, self.port()).await?;
            return Ok(Dialled { io: self.secured(Box::new(socket)).await?, proxy: None });
        };
        let credentials = proxy.basic_auth().cloned();
        let mut io = self.proxy_stream(&proxy).await?;
        if purpose == Purpose::Requests && !self.is_tls() {
            return Ok(Dialled { io, proxy: Some(credentials) });
        }
        self.tunnel(&mut io, credentials.as_ref()).await?;
        Ok(Dialled { io: self.secured(io).await?, proxy: None })
    }

    fn intercept(&self) -> Option<Intercept> {
        let uri =
            Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query("/");
        self.proxy.as_ref()?.intercept(&uri.build().ok()?)
    }

    async fn proxy_stream(&self, proxy: &Intercept) -> io::Result<Box<dyn Io>> {
        let authority = proxy.uri().authority().ok_or_else(|| io::Error::other("the proxy has no host"))?;
        match proxy.uri().scheme_str() {
            Some("http") => Ok(Box::new(tcp(authority, 80).await?)),
            Some("https") => {
                let socket = Box::new(tcp(authority, 443).await?);
                self.handshake(socket, authority.host()).await
            }
            _ => Err(io::Error::other("only proxies that speak HTTP are known")),
        }
    }

    /// Asks a proxy for a tunnel to the server.
    async fn tunnel(&self, io: &mut Box<dyn Io>, credentials: Option<&HeaderValue>) -> io::Result<()> {
        let target = format!("{}:{}", self.authority.host(), self.port());
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
        if let Some(credentials) = credentials {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(credentials.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        io.write_all(&request).await?;
        io.flush().await?;
        let head = read_head(io).await?;
        let status = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        if status.first() == Some(&b'2') && head.starts_with(b"HTTP/1.") {
            return Ok(());
        }
        let line: Vec<u8> = head.iter().copied().take_while(|byte| *byte != b'\r').take(100).collect();
        Err(io::Error::other(format!(
            "the proxy opens no tunnel: {}",
            String::from_utf8_lossy(&line).escape_debug()
        )))
    }

    fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.is_tls() { 443 } else { 80 })
    }

    async fn secured(&self, io: Box<dyn Io>) -> io::Result<Box<dyn Io>> {
        if self.is_tls() { self.handshake(io, self.authority.host()).await } else { Ok(io) }
    }

    #[cfg(feature = "tls")]
    async fn handshake(&self, io: Box<dyn Io>, host: &str) -> io::Result<Box<dyn Io>> {
        use tokio_rustls::rustls::pki_types::ServerName;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let tls = match &self.tls {
            Some(tls) => Arc::clone(tls),
            None => platform()?,
        };
        Ok(Box::new(tokio_rustls::TlsConnector::from(tls).connect(name, io).await?))
    }

    #[cfg(not(feature = "tls"))]
    #[expect(clippy::unused_async, reason = "its twin waits")]
    async fn handshake(&self, _: Box<dyn Io>, _: &str) -> io::Result<Box<dyn Io>> {
        Err(io::Error::other("this build has no TLS"))
    }
}

/// TLS by the platform's roots. Made when it is first needed: reading them can take a while.
#[cfg(feature = "tls")]
fn platform() -> io::Result<Arc<tokio_rustls::rustls::ClientConfig>> {
    use std::sync::OnceLock;

    use rustls_platform_verifier::BuilderVerifierExt as _;
    use tokio_rustls::rustls::ClientConfig;
    use tokio_rustls::rustls::crypto::aws_lc_rs;

    static PLATFORM: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = PLATFORM.get() {
        return Ok(Arc::clone(config));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_platform_verifier())
        .map_err(io::Error::other)?
        .with_no_client_auth();
    Ok(Arc::clone(PLATFORM.get_or_init(|| Arc::new(config))))
}

async fn tcp(authority: &Authority, default_port: u16) -> io::Result<TcpStream> {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let socket = TcpStream::connect((host, authority.port_u16().unwrap_or(default_port))).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Reads up to the empty line, and no byte further: what follows is not the proxy's any more.
async fn read_head(io: &mut Box<dyn Io>) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_PROXY_ANSWER {
            return Err(io::Error::other("the proxy's answer does not end"));
        }
        head.push(io.read_u8().await?);
    }
    Ok(head)
}

/// A proxy for every address.
pub(super) fn proxy_everything(url: &str) -> Result<Arc<Matcher>, InvalidUrl> {
    let invalid = |why| InvalidUrl { url: url.to_owned(), why };
    let uri: Uri = url.parse().map_err(|_| invalid("it cannot be read"))?;
    match uri.scheme_str() {
        Some("http" | "https") => Ok(Arc::new(Matcher::builder().all(url.to_owned()).build())),
        _ => Err(invalid("only proxies that speak HTTP are known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_what_is_none_is_refused() {
        let endpoint = Endpoint::new("wss://chat.example/lastmile/").unwrap();
        assert_eq!(endpoint.path("ws"), "/lastmile/ws");
        assert_eq!((endpoint.port(), endpoint.is_tls()), (443, true));
        let endpoint = Endpoint::new("http://[::1]:3000").unwrap();
        assert_eq!((endpoint.path("open").as_str(), endpoint.port()), ("/open", 3000));
        assert_eq!(endpoint.absolute("/open"), "http://[::1]:3000/open");
        for url in
            ["", "chat.example", "ftp://chat.example", "http://", "http://a?b=c", "http://me:secret@a/"]
        {
            assert!(Endpoint::new(url).is_err(), "{url}");
        }
    }

    #[test]
    fn credentials_of_a_proxy_are_in_no_debug_output() {
        let mut endpoint = Endpoint::new("http://chat.example").unwrap();
        endpoint.proxy = Some(proxy_everything("http://me:secret@proxy.example:3128").unwrap());
        assert!(endpoint.intercept().unwrap().basic_auth().is_some());
        assert!(!format!("{endpoint:?}").contains("secret"));
    }
}
