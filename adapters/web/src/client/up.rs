//! What goes up where nothing goes both ways: requests, counted, so that a repeat is not taken twice.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use lastmile::ports::{ConnectError, FrameWriter, TransportError};
use lastmile::session::Code;

use super::dial::Endpoint;
use super::http::{Answer, Http};
use crate::line;

/// How long a goodbye may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// About how many bytes go into one request.
const MAX_BODY: usize = 128 << 10;

/// A connection over HTTP, which both halves share. When both have gone, the server is told.
pub(super) struct Opened {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) id: String,
    told: AtomicBool,
}

/// Opens a connection that `by` will carry.
pub(super) async fn open(endpoint: &Arc<Endpoint>, by: &str) -> Result<(Arc<Opened>, Http), ConnectError> {
    let mut http = Http::new(endpoint);
    let path = endpoint.path(&format!("open?by={by}"));
    let answer = http.ask(Method::POST, &path, Bytes::new(), 1024, endpoint.config.connect_timeout).await?;
    if answer.status != StatusCode::OK {
        return Err(answer.refused("open"));
    }
    let said: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let id = said.get("connection").and_then(serde_json::Value::as_str).unwrap_or_default();
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(ConnectError::unreachable(
            "open was not answered with a connection: is this a lastmile server?",
        ));
    }
    let opened = Opened { endpoint: Arc::clone(endpoint), id: id.to_owned(), told: AtomicBool::new(false) };
    Ok((Arc::new(opened), http))
}

impl Opened {
    /// The path of a counted request.
    pub(super) fn path(&self, endpoint: &str, number: u64) -> String {
        self.endpoint.path(&format!("{endpoint}?c={}&n={number}", self.id))
    }

    /// Makes a counted request, and makes it again while its answer is lost.
    pub(super) async fn counted(
        &self,
        http: &mut Http,
        method: &Method,
        (path, body): (&str, &Bytes),
        limit: usize,
        within: Duration,
    ) -> Result<Answer, TransportError> {
        let config = &self.endpoint.config;
        let mut wait = config.repeat_after;
        for left in (0..=config.repeats).rev() {
            match http.ask(method.clone(), path, body.clone(), limit, within).await {
                // What a proxy says when it lost the server is as good as no answer.
                Ok(answer) if left == 0 || !matches!(answer.status.as_u16(), 408 | 502..=504) => {
                    return Ok(answer);
                }
                Err(why) if left == 0 => return Err(TransportError::Broken(why.text)),
                Ok(_) | Err(_) => {}
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        Err(TransportError::Broken("no answer".into()))
    }

    /// That the server knows already that this is over.
    pub(super) fn over(&self) {
        self.told.store(true, Ordering::Relaxed);
    }

    /// Says goodbye, once.
    async fn goodbye(endpoint: Arc<Endpoint>, id: String) {
        let path = endpoint.path(&format!("close?c={id}"));
        // If nobody hears it, the server notices by the silence.
        let _told = Http::new(&endpoint).ask(Method::POST, &path, Bytes::new(), 1024, GOODBYE_TIMEOUT).await;
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if !self.told.swap(true, Ordering::Relaxed) && tokio::runtime::Handle::try_current().is_ok() {
            crate::tasks::spawn(Self::goodbye(Arc::clone(&self.endpoint), core::mem::take(&mut self.id)));
        }
    }
}

/// Sends to the server by requests.
pub struct UpWriter {
    opened: Arc<Opened>,
    http: Http,
    next: u64,
}

impl UpWriter {
    pub(super) fn new(opened: Arc<Opened>, http: Http) -> Self {
        Self { opened, http, next: 1 }
    }

    async fn post(&mut self, body: Bytes) -> Result<(), TransportError> {
        let config = &self.opened.endpoint.config;
        let path = self.opened.path("up", self.next);
        let answer = self
            .opened
            .counted(&mut self.http, &Method::POST, (&path, &body), 1024, config.up_timeout)
            .await?;
        match answer.status {
            StatusCode::NO_CONTENT | StatusCode::OK => {
                self.next += 1;
                Ok(())
            }
            StatusCode::PAYLOAD_TOO_LARGE => Err(TransportError::TooLarge { limit: config.max_frame }),
            status => Err(TransportError::Broken(format!("a request up was answered with {status}"))),
        }
    }
}

impl FrameWriter for UpWriter {
    async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), TransportError> {
        let mut body = Vec::new();
        for frame in frames {
            if !body.is_empty() && body.len() + frame.len() > MAX_BODY {
                self.post(Bytes::from(core::mem::take(&mut body))).await?;
            }
            line::push(&frame, &mut body);
            body.push(b'\n');
        }
        if body.is_empty() { Ok(()) } else { self.post(Bytes::from(body)).await }
    }

    async fn close(&mut self, _: Code) {
        if !self.opened.told.swap(true, Ordering::Relaxed) {
            Opened::goodbye(Arc::clone(&self.opened.endpoint), self.opened.id.clone()).await;
        }
    }
}

impl fmt::Debug for UpWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpWriter")
    }
}
