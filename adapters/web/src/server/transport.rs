//! What the session is given: one connection of either kind.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use lastmile::ports::{FrameReader, FrameWriter, Transport, TransportError};
use lastmile::session::Code;

use super::pipe::Pipe;
use super::ws::{WsReader, WsWriter};

/// A connection that a client made, by whichever of the three ways.
pub struct WebTransport(pub(super) Way);

pub(super) enum Way {
    WebSocket(WsReader, WsWriter),
    Http(Half, Half),
}

/// Reads what the client sends.
pub struct WebReader(Reader);

/// Sends to the client.
pub struct WebWriter(Writer);

enum Reader {
    WebSocket(WsReader),
    Http(Half),
}

enum Writer {
    WebSocket(WsWriter),
    Http(Half),
}

/// The session's half of a pipe.
pub(super) struct Half(Arc<Pipe>);

impl Drop for Half {
    fn drop(&mut self) {
        self.0.drop_half();
    }
}

impl WebTransport {
    pub(super) fn http(pipe: &Arc<Pipe>) -> Self {
        Self(Way::Http(Half(Arc::clone(pipe)), Half(Arc::clone(pipe))))
    }
}

impl Transport for WebTransport {
    type Reader = WebReader;
    type Writer = WebWriter;

    fn split(self) -> (WebReader, WebWriter) {
        match self.0 {
            Way::WebSocket(reader, writer) => {
                (WebReader(Reader::WebSocket(reader)), WebWriter(Writer::WebSocket(writer)))
            }
            Way::Http(reader, writer) => (WebReader(Reader::Http(reader)), WebWriter(Writer::Http(writer))),
        }
    }
}

impl FrameReader for WebReader {
    async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        match &mut self.0 {
            Reader::WebSocket(reader) => reader.read().await,
            Reader::Http(Half(pipe)) => pipe.wait(Pipe::read).await,
        }
    }
}

impl FrameWriter for WebWriter {
    async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), TransportError> {
        match &mut self.0 {
            Writer::WebSocket(writer) => writer.write(frames).await,
            Writer::Http(Half(pipe)) => {
                let written = pipe.wait(|pipe| match pipe.write(&frames) {
                    Ok(true) => Some(Ok(())),
                    Ok(false) => None,
                    Err(why) => Some(Err(why)),
                });
                written.await
            }
        }
    }

    async fn close(&mut self, code: Code) {
        match &mut self.0 {
            Writer::WebSocket(writer) => writer.close(code).await,
            Writer::Http(Half(pipe)) => pipe.close(code),
        }
    }
}

impl fmt::Debug for WebTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Way::WebSocket(..) => "WebTransport(websocket)",
            Way::Http(..) => "WebTransport(http)",
        })
    }
}

impl fmt::Debug for WebReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebReader")
    }
}

impl fmt::Debug for WebWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebWriter")
    }
}
