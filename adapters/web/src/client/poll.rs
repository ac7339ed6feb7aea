//! Sessions by polls, with requests up: what works wherever anything does.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use lastmile::ports::{ConnectError, Connector, FrameReader, Transport, TransportError};

use super::dial::Endpoint;
use super::http::{Answer, Http};
use super::up::{Opened, UpWriter, open};
use crate::line;

/// The longest answer to a poll, besides its first frame: what the server keeps of it.
const MAX_ANSWER: usize = 4 << 20;

/// Connects by polls. Made by [`WebClient::long_poll`](super::WebClient::long_poll).
#[derive(Clone, Debug)]
pub struct PollConnector(pub(super) Arc<Endpoint>);

/// A connection that is polled.
pub struct PollTransport {
    opened: Arc<Opened>,
    http: Http,
}

/// A poll on its way; the client comes back with its answer.
type Polling = Pin<Box<dyn Future<Output = (Http, Result<Answer, TransportError>)> + Send>>;

/// Reads what the server sends.
pub struct PollReader {
    opened: Arc<Opened>,
    next: u64,
    frames: VecDeque<Bytes>,
    /// Kept here, so that whoever stops waiting for a frame does not stop the poll.
    polling: Polling,
    closed: bool,
}

impl Connector for PollConnector {
    type Transport = PollTransport;

    fn name(&self) -> &'static str {
        "long-poll"
    }

    async fn connect(&self) -> Result<PollTransport, ConnectError> {
        let (opened, http) = open(&self.0, "poll").await?;
        Ok(PollTransport { opened, http })
    }
}

impl Transport for PollTransport {
    type Reader = PollReader;
    type Writer = UpWriter;

    fn split(self) -> (PollReader, UpWriter) {
        let http = Http::new(&self.opened.endpoint);
        let reader = PollReader {
            polling: poll(Arc::clone(&self.opened), http, 1),
            opened: Arc::clone(&self.opened),
            next: 2,
            frames: VecDeque::new(),
            closed: false,
        };
        (reader, UpWriter::new(self.opened, self.http))
    }
}

fn poll(opened: Arc<Opened>, mut http: Http, number: u64) -> Polling {
    Box::pin(async move {
        let config = &opened.endpoint.config;
        let path = opened.path("poll", number);
        let limit = line::max_line(config.max_frame).saturating_add(MAX_ANSWER);
        let request = (path.as_str(), &Bytes::new());
        let answer = opened.counted(&mut http, &Method::GET, request, limit, config.poll_timeout).await;
        (http, answer)
    })
}

impl PollReader {
    async fn more(&mut self) -> Result<(), TransportError> {
        let (http, answer) = self.polling.as_mut().await;
        // Whatever comes next, a future that is done is not asked again.
        self.polling = poll(Arc::clone(&self.opened), http, self.next);
        let answer = answer?;
        match answer.status {
            StatusCode::OK => {
                self.next += 1;
                self.frames.extend(line::parse_all(&answer.body, self.opened.endpoint.config.max_frame)?);
                Ok(())
            }
            StatusCode::GONE => {
                self.opened.over();
                self.closed = true;
                Ok(())
            }
            status => Err(TransportError::Broken(format!("a poll was answered with {status}"))),
        }
    }
}

impl FrameReader for PollReader {
    async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(Some(frame));
            }
            if self.closed {
                return Ok(None);
            }
            self.more().await?;
        }
    }
}

impl fmt::Debug for PollTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PollTransport")
    }
}

impl fmt::Debug for PollReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PollReader")
    }
}
