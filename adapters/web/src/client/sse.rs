//! Sessions over an event stream, with requests up.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use lastmile::ports::{ConnectError, Connector, FrameReader, Transport, TransportError};
use tokio::time::Instant;

use super::dial::Endpoint;
use super::http::{Http, whole};
use super::up::{Opened, UpWriter, open};
use crate::line;

/// Connects over event streams. Made by [`WebClient::sse`](super::WebClient::sse).
///
/// A stream whose first event does not come in time is held back by something in between, and is given up: that is a
/// reason for a ladder to go on to [`PollConnector`](super::PollConnector).
#[derive(Clone, Debug)]
pub struct SseConnector(pub(super) Arc<Endpoint>);

/// An event stream that stands.
pub struct SseTransport {
    reader: SseReader,
    writer: UpWriter,
}

/// Reads what the server sends.
pub struct SseReader {
    body: Incoming,
    parser: Parser,
    frames: VecDeque<Bytes>,
    closed: bool,
    opened: Arc<Opened>,
    /// What drives the connection.
    _line: Box<dyn Any + Send>,
}

impl Connector for SseConnector {
    type Transport = SseTransport;

    fn name(&self) -> &'static str {
        "sse"
    }

    async fn connect(&self) -> Result<SseTransport, ConnectError> {
        let endpoint = &self.0;
        let config = &endpoint.config;
        let (opened, http) = open(endpoint, "sse").await?;
        let path = endpoint.path(&format!("sse?c={}", opened.id));
        // What holds the stream back may hold its head back as well.
        let until = Instant::now() + config.silence;
        let head = tokio::time::timeout_at(until, Http::new(endpoint).stream(&path)).await;
        let (response, line) = match head {
            Ok(head) => head?,
            Err(_) => return Err(held_back()),
        };
        if response.status() != StatusCode::OK {
            return Err(whole(response, 4096).await?.refused("an event stream"));
        }
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            return Err(ConnectError::unreachable("what was answered is no event stream"));
        }
        let mut reader = SseReader {
            body: response.into_body(),
            parser: Parser::new(config.max_frame),
            frames: VecDeque::new(),
            closed: false,
            opened: Arc::clone(&opened),
            _line: Box::new(line),
        };
        let first = tokio::time::timeout_at(until, async {
            while !reader.parser.opened {
                reader.more().await?;
            }
            Ok::<_, TransportError>(())
        });
        match first.await {
            Ok(Ok(())) => Ok(SseTransport { reader, writer: UpWriter::new(opened, http) }),
            Ok(Err(why)) => Err(ConnectError::unreachable(why)),
            Err(_) => Err(held_back()),
        }
    }
}

fn held_back() -> ConnectError {
    ConnectError::unreachable("no event came: something in between holds event streams back")
}

impl Transport for SseTransport {
    type Reader = SseReader;
    type Writer = UpWriter;

    fn split(self) -> (SseReader, UpWriter) {
        (self.reader, self.writer)
    }
}

impl SseReader {
    /// Reads some more of the stream.
    async fn more(&mut self) -> Result<(), TransportError> {
        let Some(frame) = self.body.frame().await else {
            return Err(TransportError::Broken("the event stream was cut".into()));
        };
        let frame = frame.map_err(|why| TransportError::Broken(why.to_string()))?;
        if let Ok(data) = frame.into_data() {
            self.closed = self.parser.take(&data, &mut self.frames)?;
        }
        Ok(())
    }
}

impl FrameReader for SseReader {
    async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(Some(frame));
            }
            if self.closed {
                self.opened.over();
                return Ok(None);
            }
            self.more().await?;
        }
    }
}

/// The part of `text/event-stream` that a server of ours may write, and what proxies may make of it.
struct Parser {
    rest: BytesMut,
    event: Vec<u8>,
    data: Option<Bytes>,
    opened: bool,
    max_frame: usize,
}

impl Parser {
    fn new(max_frame: usize) -> Self {
        Self { rest: BytesMut::new(), event: Vec::new(), data: None, opened: false, max_frame }
    }

    /// Takes some of the stream; whether the server has closed the connection.
    fn take(&mut self, text: &[u8], frames: &mut VecDeque<Bytes>) -> Result<bool, TransportError> {
        let mut searched = self.rest.len();
        self.rest.extend_from_slice(text);
        while let Some(end) = self.rest.iter().skip(searched).position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(searched + end + 1).freeze();
            searched = 0;
            let line = line.slice(..line.len() - 1);
            let line = line.strip_suffix(b"\r").map_or(line.clone(), |short| line.slice(..short.len()));
            if self.line(&line, frames)? {
                return Ok(true);
            }
        }
        // The longest line is a frame and what stands before it.
        if self.rest.len() > line::max_line(self.max_frame).saturating_add(64).max(4096) {
            return Err(TransportError::TooLarge { limit: self.max_frame });
        }
        Ok(false)
    }

    fn line(&mut self, line: &Bytes, frames: &mut VecDeque<Bytes>) -> Result<bool, TransportError> {
        if line.is_empty() {
            let (event, data) = (core::mem::take(&mut self.event), self.data.take());
            match event.as_slice() {
                b"open" => self.opened = true,
                b"close" => return Ok(true),
                b"" => {
                    frames.extend(data.map(|data| line::parse(&data, self.max_frame)).transpose()?.flatten())
                }
                _ => {}
            }
            return Ok(false);
        }
        let value = |name: &[u8]| {
            let rest = line.strip_prefix(name)?;
            let rest = rest.strip_prefix(b" ").unwrap_or(rest);
            Some(line.slice(line.len() - rest.len()..))
        };
        if let Some(event) = value(b"event:") {
            self.event = event.to_vec();
        } else if let Some(data) = value(b"data:") {
            if self.data.is_some() {
                return Err(TransportError::Broken("an event of several lines is no frame".into()));
            }
            self.data = Some(data);
        }
        Ok(false)
    }
}

impl fmt::Debug for SseTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SseTransport")
    }
}

impl fmt::Debug for SseReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SseReader")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(pieces: &[&[u8]]) -> (Vec<Bytes>, bool, bool) {
        let (mut parser, mut frames) = (Parser::new(100), VecDeque::new());
        let closed = pieces.iter().any(|piece| parser.take(piece, &mut frames).unwrap());
        (frames.into(), parser.opened, closed)
    }

    const STREAM: &[u8] = b":  \n\nevent: open\ndata: {}\n\n:\n\ndata: {\"a\":1}\n\ndata:AQ==\r\n\r\nid: 7\nretry: 1\nevent: other\ndata: {}\n\ndata: {}\n\nevent: close\ndata: {\"code\":4000}\n\n";

    #[test]
    fn a_stream_is_read_the_same_however_it_is_cut() {
        let expected = [b"{\"a\":1}".as_slice(), b"\x01", b"{}"];
        let (frames, opened, closed) = parsed(&[STREAM]);
        assert_eq!(frames, expected);
        assert!(opened && closed);
        for size in 1..40 {
            let pieces: Vec<&[u8]> = STREAM.chunks(size).collect();
            assert_eq!(parsed(&pieces), (frames.clone(), true, true), "{size}");
        }
    }

    #[test]
    fn a_line_that_does_not_end_is_not_kept_for_ever() {
        let (mut parser, mut frames) = (Parser::new(100), VecDeque::new());
        let taken = (0..100).try_for_each(|_| parser.take(&[b'x'; 100], &mut frames).map(|_| ()));
        assert_eq!(taken, Err(TransportError::TooLarge { limit: 100 }));
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for text in ["data: !\n\n", "data: {}\ndata: {}\n\n"] {
            let (mut parser, mut frames) = (Parser::new(100), VecDeque::new());
            assert!(parser.take(text.as_bytes(), &mut frames).is_err(), "{text}");
        }
    }
}
