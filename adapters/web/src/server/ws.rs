//! Takes WebSockets in.

use std::error::Error as _;
use std::sync::Arc;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts as _, Request};
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{SplitSink, SplitStream};
use lastmile::ports::TransportError;
use lastmile::session::Code;
use tokio_tungstenite::tungstenite;

use super::gate::Place;
use super::refusal::Refusal;
use super::transport::{Way, WebTransport};
use super::{Accept, Hub, Kind, Peer};
use crate::ws::{self, Opened, PROTOCOL, Reader};

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
    reader: Reader<SplitStream<WebSocket>>,
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
    let reader = WsReader { reader: Reader { stream, max_frame }, _place: Arc::clone(&place) };
    WebTransport(Way::WebSocket(reader, WsWriter { sink, place }))
}

impl WsReader {
    pub(super) async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        self.reader.read().await
    }
}

impl WsWriter {
    pub(super) async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), TransportError> {
        ws::write(&mut self.sink, frames).await?;
        self.place.answered();
        Ok(())
    }

    pub(super) async fn close(&mut self, code: Code) {
        ws::close(&mut self.sink, code).await;
    }
}

impl ws::Message for Message {
    type Error = axum::Error;

    fn text(frame: Bytes) -> Option<Self> {
        Utf8Bytes::try_from(frame).ok().map(Self::Text)
    }

    fn binary(frame: Bytes) -> Self {
        Self::Binary(frame)
    }

    fn close(code: u16) -> Self {
        Self::Close(Some(CloseFrame { code, reason: Utf8Bytes::default() }))
    }

    fn open(self) -> Opened {
        match self {
            Self::Text(text) => Opened::Frame(text.into()),
            Self::Binary(bytes) => Opened::Frame(bytes),
            Self::Ping(_) | Self::Pong(_) => Opened::Control,
            Self::Close(_) => Opened::Close,
        }
    }

    fn is_too_large(why: &axum::Error) -> bool {
        let why = why.source().and_then(|why| why.downcast_ref::<tungstenite::Error>());
        matches!(why, Some(tungstenite::Error::Capacity(_)))
    }
}
