//! Sessions over WebSockets: one frame a message, JSON as text, everything else as binary.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
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

/// How long a close may take to get out.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

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
pub struct WsReader {
    stream: SplitStream<Socket>,
    max_frame: usize,
}

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
            .header(header::SEC_WEBSOCKET_PROTOCOL, "lastmile.v1")
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
        (WsReader { stream, max_frame: self.max_frame }, WsWriter(sink))
    }
}

impl FrameReader for WsReader {
    async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => return Ok(Some(text.into())),
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Err(Error::Capacity(_))) => {
                    return Err(TransportError::TooLarge { limit: self.max_frame });
                }
                Some(Err(why)) => return Err(broken(&why)),
                None => return Err(TransportError::Broken("the connection was cut".into())),
            }
        }
    }
}

impl FrameWriter for WsWriter {
    async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), TransportError> {
        for frame in frames {
            self.0.feed(message(frame)).await.map_err(|why| broken(&why))?;
        }
        self.0.flush().await.map_err(|why| broken(&why))
    }

    async fn close(&mut self, code: Code) {
        let frame = CloseFrame { code: CloseCode::from(code.number()), reason: Utf8Bytes::default() };
        let closing = async {
            // Whether the server still hears it makes no difference.
            let _sent = self.0.send(Message::Close(Some(frame))).await;
        };
        let _in_time = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    }
}

fn message(frame: Bytes) -> Message {
    if frame.first() != Some(&b'{') {
        return Message::Binary(frame);
    }
    match Utf8Bytes::try_from(frame.clone()) {
        Ok(text) => Message::Text(text),
        Err(_) => Message::Binary(frame),
    }
}

fn broken(why: &Error) -> TransportError {
    TransportError::Broken(why.to_string())
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
