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

mod binary;
#[cfg(feature = "json")]
mod json;
mod shape;
#[cfg(test)]
mod tests;
mod wire;

use core::fmt;
use core::time::Duration;

use bytes::Bytes;

use super::code::Code;
use crate::error::InvalidMessage;
use crate::id::{DeviceId, StreamId, UserId};
use crate::message::Message;
use crate::record::{LaneId, Seq};
use crate::time::Timestamp;

/// The newest version of the protocol, and so far the only one.
pub const PROTOCOL_VERSION: u16 = 1;
/// The longest credentials, in bytes.
pub const MAX_CREDENTIALS_BYTES: usize = 8192;
/// The longest text of a reject, nack, go-away or close, in bytes.
pub const MAX_TEXT_BYTES: usize = 256;
/// The most ranges in one ack.
pub const MAX_RANGES: usize = 256;

/// A way to write frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Compact: numbers of variable length, payloads as they are.
    Binary,
    /// JSON text, for browsers and eyes.
    #[cfg(feature = "json")]
    Json,
}

/// A set of codecs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Codecs(pub(super) u8);

impl Codecs {
    /// The binary codec.
    pub const BINARY: Self = Self(1);
    /// The JSON codec.
    pub const JSON: Self = Self(2);

    /// What this build knows.
    #[must_use]
    pub const fn known() -> Self {
        if cfg!(feature = "json") { Self(3) } else { Self(1) }
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The better one of these: binary before JSON.
    #[must_use]
    pub const fn best(self) -> Option<Codec> {
        match self.0 {
            set if set & 1 != 0 => Some(Codec::Binary),
            #[cfg(feature = "json")]
            set if set & 2 != 0 => Some(Codec::Json),
            _ => None,
        }
    }
}

/// What an end can do beyond the least: a set of bits. Unknown ones are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Nothing beyond the least.
    pub const NONE: Self = Self(0);
    /// It acknowledges. What is sent to an end that does not is `Unconfirmed`.
    pub const ACKS: Self = Self(1);
    /// It answers requests.
    pub const REPLIES: Self = Self(2);
    /// It takes publishes (acceptors), or sends them (connectors).
    pub const PUBLISH: Self = Self(4);

    /// The set with these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What is in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `other` is in this.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// How much one end lets the other have in flight towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Messages without an acknowledgement.
    pub messages: u32,
    /// Their bytes, see [`Message::cost`](crate::Message::cost). A single message of any size fits into an empty window.
    pub bytes: u64,
    /// Messages more, if they are critical. Those are not held back by the bytes.
    pub reserve: u32,
}

impl Window {
    /// How far the newest number may be from the oldest that is not acknowledged: four windows. It bounds what the
    /// receiver must remember about acknowledgements that may have been lost.
    #[must_use]
    pub const fn span(self) -> u64 {
        (self.messages as u64).saturating_add(self.reserve as u64).saturating_mul(4)
    }
}

/// What identifies a session at a reconnect. It identifies and does not authenticate: credentials come with each hello.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u128);

impl Token {
    /// The token with this value. Draw it from a generator that cannot be guessed.
    #[must_use]
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// The value.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Credentials, whatever the host takes for some. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials(pub Bytes);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} bytes)", self.0.len())
    }
}

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
}

impl GapReason {
    /// All reasons, in the order of their numbers on the wire.
    pub const ALL: [Self; 5] =
        [Self::Volatile, Self::Expired, Self::Overflow, Self::Withdrawn, Self::Damaged];

    /// Its name in JSON and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Volatile => "volatile",
            Self::Expired => "expired",
            Self::Overflow => "overflow",
            Self::Withdrawn => "withdrawn",
            Self::Damaged => "damaged",
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
    /// How many messages will not come.
    pub missing: u64,
    /// Why.
    pub reason: GapReason,
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

/// Why bytes are no frame. Nothing of them may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Longer than the limit. Nothing was read.
    #[error("a frame of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// More elements than allowed. What was read is dropped.
    #[error("{field} has {found} elements, {max} at most")]
    TooMany {
        /// The list.
        field: &'static str,
        /// How many.
        found: u64,
        /// How many may be.
        max: usize,
    },
    /// A hello of versions that this build does not speak. Only the versions were read.
    #[error("versions {oldest} to {newest} of the protocol, this build speaks {PROTOCOL_VERSION}")]
    UnsupportedVersion {
        /// The oldest it speaks.
        oldest: u16,
        /// The newest it speaks.
        newest: u16,
    },
    /// A kind of frame that this build does not know. Nothing was read.
    #[error("no frame is called {0}")]
    UnknownFrame(String),
    /// The codec is not part of this build. Nothing was read.
    #[error("this build was made without the codec json")]
    NoSuchCodec,
    /// A field is missing, cut off, or not what it should be. What was read is dropped.
    #[error("{field} is missing, cut off, or not valid")]
    Field {
        /// The field.
        field: &'static str,
    },
    /// Bytes follow the end. What was read is dropped.
    #[error("{bytes} bytes follow the end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// It is no JSON. What was read is dropped.
    #[error("no JSON object: {0}")]
    Json(String),
    /// A message that could not have been built. What was read is dropped.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
}

impl DecodeError {
    /// What to close the connection with.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. } | Self::TooMany { .. } => Code::FrameTooLarge,
            Self::UnsupportedVersion { .. } => Code::UnsupportedVersion,
            Self::NoSuchCodec => Code::UnsupportedCodec,
            _ => Code::Malformed,
        }
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
