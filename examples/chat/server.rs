//! Puts the server together: the engine, its sessions, the page and what it asks for.

use std::error::Error;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{HeaderName, HeaderValue, StatusCode, header};
use lastmile::ports::StoreError;
use lastmile::session::{AdmissionConfig, Code, Rate, SessionConfig};
use lastmile::storage::SledStore;
use lastmile::{Acceptor, Config, DrainReport, Engine, Message};
use lastmile_web::{JwtAuthenticator, JwtIssuer, JwtKey, ServeConfig, Web, WebConfig, serve};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::people::People;
use super::{api, snapshot, statuses};

/// How long a token lets its bearer in.
pub(crate) const TOKEN_AGE: Duration = Duration::from_secs(3600);
/// What people may send to each other.
const EVENTS: [&str; 4] = ["chat.message", "chat.typing", "chat.read", "call.ring"];

/// What all requests share.
pub(crate) struct Chat {
    pub(crate) engine: Engine,
    pub(crate) acceptor: Acceptor,
    pub(crate) web: Web,
    pub(crate) tokens: JwtAuthenticator,
    pub(crate) issuer: JwtIssuer,
    pub(crate) people: People,
}

/// A server that runs.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    chat: Arc<Chat>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
    tasks: Vec<JoinHandle<()>>,
}

/// Starts the server.
pub(crate) async fn start(address: SocketAddr, dir: &Path) -> Result<Running, Box<dyn Error>> {
    let listener = listen(address).await?;
    let address = listener.local_addr()?;
    std::fs::create_dir_all(dir).map_err(|why| unusable(dir, &why))?;
    let chat = Arc::new(open(dir)?);
    let (snapshots, taking) = snapshot::start(Arc::clone(&chat));
    let telling = statuses::start(chat.engine.clone())?;
    let app = Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("page/index.html"))))
        .route("/chat.mjs", get(|| file("text/javascript", include_str!("page/chat.mjs"))))
        .route("/chat.css", get(|| file("text/css", include_str!("page/chat.css"))))
        .route(
            "/client.mjs",
            get(|| file("text/javascript", include_str!("../../adapters/web/browser/client.mjs"))),
        )
        .merge(api::routes(Arc::clone(&chat), snapshots))
        .merge(chat.web.router(chat.acceptor.clone()))
        .layer(middleware::from_fn(guard));
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let handle = tokio::runtime::Handle::current();
    let serving = handle.spawn(serve(listener, app, ServeConfig::default(), stopped));
    Ok(Running { address, chat, stop, serving, tasks: vec![taking, telling] })
}

impl Running {
    /// Takes no more requests, asks everybody to come back, and closes the engine.
    pub(crate) async fn stop(self) -> DrainReport {
        let deadline = Duration::from_secs(2);
        self.chat.acceptor.shutdown(deadline).await;
        self.tasks.iter().for_each(JoinHandle::abort);
        let report = self.chat.engine.shutdown(deadline).await;
        let _told = self.stop.send(());
        let _served = self.serving.await;
        report
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|why| match why.kind() {
        ErrorKind::AddrInUse => format!(
            "port {} is taken, perhaps by another chat: choose another one with --port, or 0 for any that is free",
            address.port()
        ),
        _ => format!("cannot listen on {address}: {why}; choose another port with --port"),
    })
}

/// What somebody reads whose directory does not do: all that is known of why.
pub(crate) fn unusable(dir: &Path, why: &dyn Error) -> String {
    let (mut said, mut cause) = (why.to_string(), why.source());
    while let Some(why) = cause {
        said = format!("{said}: {why}");
        cause = why.source();
    }
    format!("cannot keep messages in {}: {said}; choose another directory with --dir", dir.display())
}

fn open(dir: &Path) -> Result<Chat, Box<dyn Error>> {
    let mut config = Config::default();
    // A flood of 10,000 must leave room for the rest.
    config.max_user_messages = std::num::NonZeroU32::new(50_000).ok_or("a literal above zero")?;
    let engine = Engine::builder(store(&dir.join("outbox"))?).config(config).build()?;
    let secret = secret(&dir.join("secret")).map_err(|why| unusable(dir, &why))?;
    let tokens = JwtAuthenticator::new("chat", "chat", [(None, JwtKey::hmac(&secret)?)])?;
    let issuer = JwtIssuer::hmac("chat", "chat", None, &secret)?;
    let mut session = SessionConfig::default();
    // Often, so that the panel has something to show.
    session.heartbeat = Duration::from_secs(5);
    session.timeout = Duration::from_secs(5);
    let mut admission = AdmissionConfig::default();
    // Everybody is at 127.0.0.1.
    admission.address = Rate { every: Duration::from_millis(20), burst: 500 };
    admission.user = Rate { every: Duration::from_millis(100), burst: 50 };
    let acceptor = Acceptor::builder(engine.clone(), tokens.clone())
        .session(session)
        .admission(admission)
        .permit(|_, message| permit(message))
        .build()?;
    let mut web = WebConfig::default();
    web.max_per_address = web.max_connections;
    Ok(Chat {
        engine,
        acceptor,
        web: Web::new(web),
        tokens,
        issuer,
        people: People::open(dir.join("people")).map_err(|why| unusable(dir, &why))?,
    })
}

/// Opens a directory, and says which one if it does not open.
pub(crate) fn store(dir: &Path) -> Result<SledStore, Box<dyn Error>> {
    SledStore::open(dir).map_err(|why| match why {
        // It names the directory by itself.
        StoreError::Locked { .. } => why.into(),
        _ => unusable(dir, &why).into(),
    })
}

fn permit(message: &Message) -> Result<(), Code> {
    if EVENTS.contains(&message.event().as_str()) { Ok(()) } else { Err(Code::NotPermitted) }
}

/// The secret that tokens are signed with: made once, so that they outlive a restart.
fn secret(path: &Path) -> std::io::Result<Vec<u8>> {
    if let Ok(secret) = std::fs::read(path) {
        return Ok(secret);
    }
    let mut secret = vec![0; 32];
    getrandom::fill(&mut secret).map_err(|why| std::io::Error::other(why.to_string()))?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    std::io::Write::write_all(&mut options.open(path)?, &secret)?;
    Ok(secret)
}

async fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

/// Answers only to its own names, so that no other site's name can be pointed at it, and lets the page load nothing foreign.
async fn guard(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if !["127.0.0.1", "localhost"].contains(&name) {
        return (StatusCode::MISDIRECTED_REQUEST, "this server is 127.0.0.1").into_response();
    }
    let mut response = next.run(request).await;
    let policy = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; base-uri 'none'; \
                  form-action 'none'; frame-ancestors 'none'";
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
