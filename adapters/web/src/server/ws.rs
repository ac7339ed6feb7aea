//! Sessions over WebSockets: one frame a message, JSON as text, everything else as binary.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts as _, Request};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use lastmile::ports::TransportError;
use lastmile::session::Code;
use tokio_tungstenite::tungstenite;

use super::gate::Place;
use super::refusal::Refusal;
use super::transport::{Way, WebTransport};
use super::{Accept, Hub, Kind, Peer};

/// How long a close may take to get out.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The subprotocol that both ends must name.
const PROTOCOL: &str = "lastmile.v1";
/// A connection that waits costs this; larger frames are read in pieces. tungstenite's own default is 128 KiB.
const READ_BUFFER: usize = 4 << 10;

/// `GET {base}/ws`.
pub(super) async fn upgrade(hub: Arc<Hub>, accept: Arc<impl Accept>, request: Request) -> Response {
    let address = match hub.admit(&request) {
        Ok(address) => address,
        Err(refusal) => {
            let address = hub.address(&request);
            return hub.refuse(refusal, address);
        }
    };
    let (mut parts, _body) = request.into_parts();
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade.protocols([PROTOCOL]),
        Err(_) => return hub.refuse(Refusal::NotAWebSocket, address),
    };
    if upgrade.selected_protocol().is_none() {
        return hub.refuse(Refusal::NotAWebSocket, address);
    }
    let place = match hub.enter(address, Kind::WebSocket) {
        Ok(place) => place,
        Err(refusal) => return hub.refuse(refusal, address),
    };
    let max_frame = hub.config.max_frame;
    let upgrade = upgrade
        .max_message_size(max_frame)
        .max_frame_size(max_frame)
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(READ_BUFFER);
    upgrade.on_upgrade(move |socket| async move {
        let peer = Peer { address, kind: Kind::WebSocket };
        accept.accept(transport(socket, max_frame, place), peer).await;
    })
}

/// The direction from the peer. The connection's place is given back with both halves.
pub(super) struct WsReader {
    stream: SplitStream<WebSocket>,
    max_frame: usize,
    _place: Arc<Place>,
}

/// The direction to the peer.
pub(super) struct WsWriter {
    sink: SplitSink<WebSocket, Message>,
    place: Arc<Place>,
}

/// The transport of an upgraded connection.
pub(super) fn transport(socket: WebSocket, max_frame: usize, place: Place) -> WebTransport {
    let (sink, stream) = socket.split();
    let place = Arc::new(place);
    let reader = WsReader { stream, max_frame, _place: Arc::clone(&place) };
    WebTransport(Way::WebSocket(reader, WsWriter { sink, place }))
}

impl WsReader {
    pub(super) async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => return Ok(Some(text.into())),
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Err(why)) => return Err(self.broken(why)),
                None => return Err(TransportError::Broken("the connection was cut".into())),
            }
        }
    }

    fn broken(&self, why: axum::Error) -> TransportError {
        let why = why.into_inner();
        match why.downcast_ref::<tungstenite::Error>() {
            Some(tungstenite::Error::Capacity(_)) => TransportError::TooLarge { limit: self.max_frame },
            _ => TransportError::Broken(why.to_string()),
        }
    }
}

impl WsWriter {
    pub(super) async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), TransportError> {
        for frame in frames {
            self.sink.feed(message(frame)).await.map_err(broken)?;
        }
        self.sink.flush().await.map_err(broken)?;
        self.place.answered();
        Ok(())
    }

    pub(super) async fn close(&mut self, code: Code) {
        let frame = CloseFrame { code: code.number(), reason: Utf8Bytes::default() };
        let closing = async {
            // Whether the peer still hears it makes no difference.
            let _sent = self.sink.send(Message::Close(Some(frame))).await;
        };
        let _in_time = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    }
}

/// JSON is text for those who look at it, and for browsers.
fn message(frame: Bytes) -> Message {
    if frame.first() != Some(&b'{') {
        return Message::Binary(frame);
    }
    match Utf8Bytes::try_from(frame.clone()) {
        Ok(text) => Message::Text(text),
        Err(_) => Message::Binary(frame),
    }
}

fn broken(why: axum::Error) -> TransportError {
    TransportError::Broken(why.to_string())
}
