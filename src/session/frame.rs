//! Frames: what crosses the wire. `docs/PROTOCOL.md` describes them for other languages.
//!
//! Each frame is described once, in `shape`, for both codecs. A decoder sees only bytes and [`Limits`]; whether a frame
//! is allowed now is the session's business.
//!
//! # Invariants
//! - Bytes are hostile. Each length and count is checked against what is there, and against the limits, before anything
//!   is allocated.
//! - A decoded message passed the checks of [`Message::check`](crate::Message::check): it could have been built.
//! - Payloads are slices of the frame's bytes. (In JSON, one that is base64 or has escapes must be decoded.)
//! - Decoding holds at most twice as much as the frame, beside what its messages are made of, which is no more than 18 times
//!   32 KiB with the default limits: 256 messages of 32 headers. (The fuzz target `frame_decode` measures it.)

mod binary;
mod error;
#[cfg(feature = "json")]
mod json;
mod shape;
mod terms;
#[cfg(test)]
mod tests;
mod wire;

use core::time::Duration;

use bytes::Bytes;

use super::code::Code;
use crate::id::{DeviceId, StreamId, UserId};
use crate::message::Message;
use crate::record::{LaneId, Seq};
use crate::time::Timestamp;

pub use error::DecodeError;
pub use terms::{Capabilities, Codec, Codecs, Credentials, Token, Window};

/// The newest version of the protocol, and so far the only one.
pub const PROTOCOL_VERSION: u16 = 1;
/// The longest credentials, in bytes.
pub const MAX_CREDENTIALS_BYTES: usize = 8192;
/// The longest text of a reject, nack, go-away or close, in bytes.
pub const MAX_TEXT_BYTES: usize = 256;
/// The most ranges in one ack.
pub const MAX_RANGES: usize = 256;

/// Which life of a session, and how far this end is in it. Numbers of one life mean nothing in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The life: drawn anew by the acceptor whenever numbering starts again.
    pub epoch: u64,
    /// The newest number from the other end that is here.
    pub seen: u64,
    /// The oldest number of this end's own that is not acknowledged; one more than the newest if all are.
    pub base: u64,
}

/// A connector's first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest and the newest version it speaks.
    pub versions: (u16, u16),
    /// The codecs it reads.
    pub codecs: Codecs,
    /// Who it says it is. The authenticator has the last word.
    pub user: Option<UserId>,
    /// Which device.
    pub device: DeviceId,
    /// For the authenticator.
    pub credentials: Credentials,
    /// Its engine's log, which the places of its messages belong to.
    pub stream: StreamId,
    /// The session to go on with.
    pub resume: Option<(Token, Position)>,
    /// What it can do.
    pub capabilities: Capabilities,
    /// For how long it may repeat a message; zero when a durable sequence makes repeats recognisable for ever.
    pub horizon: Duration,
    /// What it lets the acceptor have in flight.
    pub window: Window,
    /// How often it wants to hear something.
    pub heartbeat: Duration,
    /// The largest frame it takes, in bytes.
    pub max_frame: u32,
}

/// An acceptor's answer: the session is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version both speak from here on.
    pub version: u16,
    /// The codec both write from here on.
    pub codec: Codec,
    /// Who the connector is, by its credentials.
    pub user: UserId,
    /// The acceptor's log, which the places of its messages belong to.
    pub stream: StreamId,
    /// For resuming.
    pub token: Token,
    /// Where the acceptor is. A new epoch (and then zeros) unless the session was resumed.
    pub position: Position,
    /// Whether the session was resumed.
    pub resumed: bool,
    /// What both can do.
    pub capabilities: Capabilities,
    /// What it lets the connector have in flight.
    pub window: Window,
    /// How long silence lasts before a ping.
    pub heartbeat: Duration,
    /// How long an answer to a ping may take.
    pub timeout: Duration,
    /// The largest frame it takes, in bytes.
    pub max_frame: u32,
    /// For how long the credentials are good.
    pub expires_in: Option<Duration>,
    /// Every publish of this device up to this number is decided.
    pub published: u64,
}

/// An acceptor's answer: no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub code: Code,
    /// When to come back.
    pub retry_after: Option<Duration>,
    /// For logs.
    pub text: String,
}

/// Where a message stands in its sender's log. It names the message between an engine and its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The lane.
    pub lane: LaneId,
    /// The place; with an epoch of zero for volatile messages.
    pub seq: Seq,
}

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its place in the sender's log. On the wire only the sequence: the lane is that of its priority.
    pub place: Place,
    /// When its sender's engine accepted it, by that engine's clock.
    pub accepted_at: Timestamp,
    /// Failed attempts so far.
    pub attempts: u32,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// For a request: how long an answer is waited for.
    pub reply_within: Option<Duration>,
    /// The message.
    pub message: Message,
}

/// Messages, numbered consecutively within a life of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deliver {
    /// The number of the first one.
    pub first: u64,
    /// The oldest number that is not acknowledged.
    pub base: u64,
    /// How many nacks the sender has heard in this life.
    pub heard: u64,
    /// At least one.
    pub items: Vec<Item>,
}

/// A range of numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
}

/// What the receiver has for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which numbers, ascending, without overlaps.
    pub ranges: Vec<Range>,
    /// The window from now on, when it changes.
    pub window: Option<Window>,
}

/// One message was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// How many nacks there were in this life, this one included: it is heard once.
    pub count: u64,
    /// Which message.
    pub number: u64,
    /// Why: one of the codes about a message.
    pub code: Code,
    /// When to offer it again.
    pub delay: Option<Duration>,
    /// For logs.
    pub text: String,
}

/// Why numbers carry no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// They were volatile, and the connection was lost before they arrived.
    Volatile,
    /// They expired on the way.
    Expired,
    /// They were dropped from a full outbox.
    Overflow,
    /// They were withdrawn or replaced on the way.
    Withdrawn,
    /// They were lost to damage.
    Damaged,
    /// All attempts to deliver them failed.
    Undeliverable,
}

impl GapReason {
    /// All reasons, in the order of their numbers on the wire.
    pub const ALL: [Self; 6] =
        [Self::Volatile, Self::Expired, Self::Overflow, Self::Withdrawn, Self::Damaged, Self::Undeliverable];

    /// Its name in JSON and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Volatile => "volatile",
            Self::Expired => "expired",
            Self::Overflow => "overflow",
            Self::Withdrawn => "withdrawn",
            Self::Damaged => "damaged",
            Self::Undeliverable => "undeliverable",
        }
    }
}

/// Messages that will not come. It is numbered and acknowledged as deliveries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The numbers it takes.
    pub range: Range,
    /// The oldest number that is not acknowledged, as in a deliver.
    pub base: u64,
    /// How many nacks the sender has heard, as in a deliver.
    pub heard: u64,
    /// Which messages.
    pub missed: Missed,
}

/// Messages that will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// How many.
    pub count: u64,
    /// Why.
    pub reason: GapReason,
    /// Where they waited, if they had places.
    pub places: Option<Places>,
}

/// A stretch of a lane of the sender's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The lane: that of a priority.
    pub lane: LaneId,
    /// None of them has a place before this one.
    pub first: Seq,
    /// None of them has a place after this one.
    pub last: Seq,
}

impl Missed {
    /// Messages of which no places are known.
    #[must_use]
    pub const fn new(count: u64, reason: GapReason) -> Self {
        Self { count, reason, places: None }
    }

    /// The same, which waited here. What waits for one device is told by the lane of its priority.
    #[must_use]
    pub fn between(self, lane: LaneId, one: Seq, other: Seq) -> Self {
        let lane = lane.priority().map_or(lane, LaneId::from);
        Self { places: Some(Places { lane, first: one.min(other), last: one.max(other) }), ..self }
    }

    /// Whether they are missed for the same reason, in the same lane.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let lane = |missed: &Self| missed.places.map(|places| places.lane);
        self.reason == other.reason && lane(self) == lane(other)
    }

    /// Further ones that are alike.
    pub(crate) fn add(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        if let (Some(places), Some(others)) = (&mut self.places, &other.places) {
            places.first = places.first.min(others.first);
            places.last = places.last.max(others.last);
        }
    }
}

/// What became of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// It is durable, for the first time or again.
    Accepted,
    /// It was refused.
    Refused(Refused),
}

/// What crosses the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame {
    /// Opens a connection.
    Hello(Box<Hello>),
    /// Answers a hello: open.
    Welcome(Box<Welcome>),
    /// Answers a hello: no. The acceptor closes the connection.
    Reject(Refused),
    /// Messages.
    Deliver(Deliver),
    /// What the receiver has for good.
    Ack(Ack),
    /// One message was not taken.
    Nack(Nack),
    /// The receiver needs more time for these.
    Progress(Range),
    /// A message to accept: the connector's next.
    Publish {
        /// Consecutive over the whole life of the device, kept by its host.
        number: u64,
        /// The message.
        message: Message,
    },
    /// What became of a publish.
    Receipt {
        /// Which one.
        number: u64,
        /// What.
        outcome: Published,
    },
    /// Acknowledges one message, with the answer to its request.
    Reply {
        /// Which message.
        number: u64,
        /// The answer.
        payload: Bytes,
    },
    /// Everything of this lane up to this place has ended durably at the sender: the inbox may forget it.
    Floor(Place),
    /// Is anybody there?
    Ping {
        /// Comes back in the pong.
        nonce: u64,
        /// The sender's smoothed round-trip time, in milliseconds, if it has one.
        rtt: Option<Duration>,
    },
    /// Yes.
    Pong {
        /// The ping's.
        nonce: u64,
    },
    /// Messages that will not come.
    Gap(Gap),
    /// The acceptor asks to come back later, and goes on until the connector has gone or the connection is closed.
    GoAway(Refused),
    /// The last frame of a connection.
    Close(Refused),
    /// New credentials for an open session.
    Renew(Credentials),
    /// The new credentials are good.
    Renewed {
        /// For how long.
        expires_in: Option<Duration>,
    },
    /// Messages that are no longer wanted: another device has answered. Who has not begun with one refuses it as
    /// [`Code::Withdrawn`]; any other verdict is as good as before.
    Withdraw(Range),
}

impl Frame {
    /// Its name, as in JSON, for logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Welcome(_) => "welcome",
            Self::Reject(_) => "reject",
            Self::Deliver(_) => "deliver",
            Self::Ack(_) => "ack",
            Self::Nack(_) => "nack",
            Self::Progress(_) => "progress",
            Self::Publish { .. } => "publish",
            Self::Receipt { .. } => "receipt",
            Self::Reply { .. } => "reply",
            Self::Floor(_) => "floor",
            Self::Ping { .. } => "ping",
            Self::Pong { .. } => "pong",
            Self::Gap(_) => "gap",
            Self::GoAway(_) => "go-away",
            Self::Close(_) => "close",
            Self::Renew(_) => "renew",
            Self::Renewed { .. } => "renewed",
            Self::Withdraw(_) => "withdraw",
        }
    }
}

/// What a decoder takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest frame, in bytes.
    pub max_frame: usize,
    /// The most messages in one frame.
    pub max_items: usize,
}

impl Default for Limits {
    /// 1 MiB and 256 messages: room for some of the default's 256 KiB payloads.
    fn default() -> Self {
        Self { max_frame: 1 << 20, max_items: 256 }
    }
}

/// Appends a frame.
pub fn encode(frame: &Frame, codec: Codec, out: &mut Vec<u8>) {
    match codec {
        Codec::Binary => binary::encode(frame, out),
        #[cfg(feature = "json")]
        Codec::Json => json::encode(frame, out),
    }
}

/// The frame that these bytes are, in whichever codec. Payloads are slices of `bytes`, which therefore stay in memory
/// as long as any of them.
///
/// # Errors
/// [`DecodeError`], whose code says what to close the connection with.
///
/// ```
/// use bytes::Bytes;
/// use lastmile::session::frame::{Codec, Frame, Limits, decode, encode};
/// let mut bytes = Vec::new();
/// encode(&Frame::Pong { nonce: 7 }, Codec::Binary, &mut bytes);
/// assert_eq!(bytes, [13, 7]);
/// assert_eq!(decode(&Bytes::from(bytes), &Limits::default())?, Frame::Pong { nonce: 7 });
/// # Ok::<(), lastmile::session::frame::DecodeError>(())
/// ```
pub fn decode(bytes: &Bytes, limits: &Limits) -> Result<Frame, DecodeError> {
    if bytes.len() > limits.max_frame {
        return Err(DecodeError::TooLarge { bytes: bytes.len(), max: limits.max_frame });
    }
    match bytes.first() {
        #[cfg(feature = "json")]
        Some(b'{') => json::decode(bytes, limits),
        #[cfg(not(feature = "json"))]
        Some(b'{') => Err(DecodeError::NoSuchCodec),
        _ => binary::decode(bytes, limits),
    }
}
