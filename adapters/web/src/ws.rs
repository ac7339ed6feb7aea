//! What both ends do with a WebSocket: one frame a message, JSON as text, everything else as binary.
//!
//! The server's messages are axum's and the client's are tungstenite's; [`Message`] is what both are.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use lastmile::ports::TransportError;
use lastmile::session::Code;

/// The subprotocol that both ends name.
pub(crate) const PROTOCOL: &str = "lastmile.v1";
/// How long a close may take to get out.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A message of either library.
pub(crate) trait Message: Sized {
    type Error: Display;

    /// As text; nothing if it is none.
    fn text(frame: Bytes) -> Option<Self>;
    fn binary(frame: Bytes) -> Self;
    fn close(code: u16) -> Self;
    fn open(self) -> Opened;
    /// Whether that was larger than what is taken.
    fn is_too_large(why: &Self::Error) -> bool;
}

/// What a message was.
pub(crate) enum Opened {
    Frame(Bytes),
    /// Answered by the library.
    Control,
    Close,
}

/// The direction from the peer.
pub(crate) struct Reader<S> {
    pub(crate) stream: S,
    pub(crate) max_frame: usize,
}

impl<S, M: Message> Reader<S>
where
    S: Stream<Item = Result<M, M::Error>> + Unpin,
{
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            match self.stream.next().await {
                Some(Ok(message)) => match message.open() {
                    Opened::Frame(frame) => return Ok(Some(frame)),
                    Opened::Control => {}
                    Opened::Close => return Ok(None),
                },
                Some(Err(why)) if M::is_too_large(&why) => {
                    return Err(TransportError::TooLarge { limit: self.max_frame });
                }
                Some(Err(why)) => return Err(broken(why)),
                None => return Err(TransportError::Broken("the connection was cut".into())),
            }
        }
    }
}

/// Sends frames, and waits until they are with the system.
pub(crate) async fn write<M: Message>(
    sink: &mut (impl Sink<M, Error = M::Error> + Unpin),
    frames: Vec<Bytes>,
) -> Result<(), TransportError> {
    for frame in frames {
        sink.feed(message(frame)).await.map_err(broken)?;
    }
    sink.flush().await.map_err(broken)
}

/// Says why it ends. Whether the peer still hears it makes no difference.
pub(crate) async fn close<M: Message>(sink: &mut (impl Sink<M, Error = M::Error> + Unpin), code: Code) {
    let closing = sink.send(M::close(code.number()));
    let _in_time = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
}

/// JSON is text for those who look at it, and for browsers.
fn message<M: Message>(frame: Bytes) -> M {
    let text = if frame.first() == Some(&b'{') { M::text(frame.clone()) } else { None };
    text.unwrap_or_else(|| M::binary(frame))
}

fn broken(why: impl Display) -> TransportError {
    TransportError::Broken(why.to_string())
}
