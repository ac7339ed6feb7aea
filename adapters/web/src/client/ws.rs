//! Connects over WebSockets.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{SplitSink, SplitStream};
use http::{Request, header};
use lastmile::ports::{ConnectError, Connector, FrameReader, FrameWriter, Transport, TransportError};
use lastmile::session::Code;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::dial::{Endpoint, Io, Purpose};
use super::refused::refused;
use crate::ws::{self, Opened, PROTOCOL, Reader};

type Socket = WebSocketStream<Box<dyn Io>>;

/// Connects over WebSockets. Made by [`WebClient::websocket`](super::WebClient::websocket).
#[derive(Clone, Debug)]
pub struct WsConnector(pub(super) Arc<Endpoint>);

/// A WebSocket that stands.
pub struct WsTransport {
    socket: Socket,
    max_frame: usize,
}

/// Reads what the server sends.
pub struct WsReader(Reader<SplitStream<Socket>>);

/// Sends to the server.
pub struct WsWriter(SplitSink<Socket, Message>);

impl Connector for WsConnector {
    type Transport = WsTransport;

    fn name(&self) -> &'static str {
        "websocket"
    }

    async fn connect(&self) -> Result<WsTransport, ConnectError> {
        let endpoint = &self.0;
        // Through a tunnel, so the request says `ws` and the path only, whatever there is in between.
        let uri = format!("ws://{}{}", endpoint.host(), endpoint.path("ws"));
        let request = Request::get(uri)
            .header(header::HOST, endpoint.host())
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, generate_key())
            .header(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
            .body(())
            .map_err(ConnectError::unreachable)?;
        let dialled = endpoint.dial(Purpose::Tunnel).await?;
        let max_frame = endpoint.config.max_frame;
        let config =
            WebSocketConfig::default().max_message_size(Some(max_frame)).max_frame_size(Some(max_frame));
        let handshake = client_async_with_config(request, dialled.io, Some(config));
        match tokio::time::timeout(endpoint.config.connect_timeout, handshake).await {
            Ok(Ok((socket, _response))) => Ok(WsTransport { socket, max_frame }),
            Ok(Err(Error::Http(response))) => {
                let body = response.body().as_deref().unwrap_or_default();
                Err(refused("a WebSocket", response.status(), response.headers(), body))
            }
            Ok(Err(why)) => Err(ConnectError::unreachable(why)),
            Err(_) => Err(ConnectError::unreachable("the WebSocket handshake took too long")),
        }
    }
}

impl Transport for WsTransport {
    type Reader = WsReader;
    type Writer = WsWriter;

    fn split(self) -> (WsReader, WsWriter) {
        let (sink, stream) = self.socket.split();
        (WsReader(Reader { stream, max_frame: self.max_frame }), WsWriter(sink))
    }
}

impl FrameReader for WsReader {
    async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        self.0.read().await
    }
}

impl FrameWriter for WsWriter {
    async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), TransportError> {
        ws::write(&mut self.0, frames).await
    }

    async fn close(&mut self, code: Code) {
        ws::close(&mut self.0, code).await;
    }
}

impl ws::Message for Message {
    type Error = Error;

    fn text(frame: Bytes) -> Option<Self> {
        Utf8Bytes::try_from(frame).ok().map(Self::Text)
    }

    fn binary(frame: Bytes) -> Self {
        Self::Binary(frame)
    }

    fn close(code: u16) -> Self {
        Self::Close(Some(CloseFrame { code: CloseCode::from(code), reason: Utf8Bytes::default() }))
    }

    fn open(self) -> Opened {
        match self {
            Self::Text(text) => Opened::Frame(text.into()),
            Self::Binary(bytes) => Opened::Frame(bytes),
            Self::Ping(_) | Self::Pong(_) | Self::Frame(_) => Opened::Control,
            Self::Close(_) => Opened::Close,
        }
    }

    fn is_too_large(why: &Error) -> bool {
        matches!(why, Error::Capacity(_))
    }
}

impl fmt::Debug for WsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WsTransport")
    }
}

impl fmt::Debug for WsReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WsReader")
    }
}

impl fmt::Debug for WsWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WsWriter")
    }
}
