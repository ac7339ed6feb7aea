//! What goes into a [`Session`](super::Session) and what comes out of it.

use core::time::Duration;

use bytes::Bytes;

use super::code::{Advice, Code};
use super::frame::{
    Codec, Credentials, DecodeError, Frame, Hello, Item, Missed, Place, Published, Refused, Token, Window,
};
use super::quality::Grade;
use crate::id::{StreamId, UserId};
use crate::message::Message;
use crate::record::Seq;
use crate::time::Timestamp;

/// Names one connection; chosen by the shell, in the order in which they come, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Names one message from the peer, for verdicts. Those of an earlier life of the session are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboundId {
    pub(super) epoch: u64,
    pub(super) number: u64,
}

#[cfg(all(test, feature = "runtime"))]
impl InboundId {
    pub(crate) fn for_tests(number: u64) -> Self {
        Self { epoch: 1, number }
    }
}

/// A message from the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// For the verdict.
    pub id: InboundId,
    /// The peer's log, for the inbox.
    pub stream: StreamId,
    /// The peer has ended everything of this lane up to here: the inbox may forget it.
    pub floor: Seq,
    /// The message and its place.
    pub item: Item,
}

/// What the host says of a message from the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It is here for good: durable in the inbox, or its handler took it.
    Delivered,
    /// As `Delivered`, with the answer to a request.
    Replied(Bytes),
    /// It needs more time.
    Progress,
    /// It failed for now. Burns an attempt.
    Nack(Option<Duration>),
    /// It cannot be taken now. Burns no attempt.
    Busy(Duration),
    /// It is refused for good: one of the terminal codes about a message.
    Rejected(Code),
}

/// What became of a message that was offered. The same as a sink's verdicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The peer has it for good.
    Delivered,
    /// It was handed to the transport of a peer that does not acknowledge, or was volatile and the connection broke.
    Unconfirmed,
    /// The peer needs more time.
    Progress,
    /// It failed for now. Burns an attempt.
    Nack(Option<Duration>),
    /// It was not taken; offer it again after the delay. Burns no attempt.
    Busy(Duration),
    /// It can no longer be confirmed by this session; offer it again. Burns no attempt.
    Disconnected,
    /// The peer refuses it for good.
    Rejected(Code),
}

/// What an authenticator grants.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Who it is.
    pub user: UserId,
    /// When the credentials expire.
    pub expires: Option<Timestamp>,
    /// For a new life of the session, if there is to be one. Not guessable.
    pub token: Token,
    /// Names that life. Never used before for this token's session.
    pub epoch: u64,
    /// Every publish of this device up to this number was decided: a high-water mark that the host keeps.
    pub published: u64,
}

/// What happens to a session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Input {
    /// A connector's transport stands: say hello, with these credentials. A connection that is open stays so until this one has
    /// a welcome, or [`Event::SwitchFailed`] says that it has none.
    Connected(ConnId, Credentials),
    /// An acceptor's [`Greeter`](super::Greeter) let a hello in, and the authenticator granted it. An older connection is
    /// frozen and closed first.
    Admit {
        /// Over which connection.
        conn: ConnId,
        /// The hello.
        hello: Box<Hello>,
        /// What was granted.
        grant: Grant,
    },
    /// A frame came.
    Frame(ConnId, Frame),
    /// Bytes came that are no frame.
    Garbage(ConnId, DecodeError),
    /// The transport is gone.
    Lost(ConnId),
    /// The transport has taken all that was sent over this connection. Needed for peers that do not acknowledge
    /// ([`Session::wants_written`](super::Session::wants_written)): what was written to them is `Unconfirmed`.
    Written(ConnId),
    /// Messages for the peer, in order. Each gets one outcome, and perhaps `Progress` before.
    Offer(Vec<Item>),
    /// Messages that were offered are no longer wanted. The peer is told, if it has them and can be. What comes of one after
    /// that is as true as before; if nothing does, there is no outcome.
    Withdraw(Vec<Place>),
    /// What became of messages from the peer, in the order in which they were taken.
    Verdicts(Vec<(InboundId, Verdict)>),
    /// Everything of this lane up to this place has ended durably here.
    Floor(Place),
    /// Tell the peer of messages that will not come. [`Event::GapsHeard`] says when it has heard.
    Gap(Missed),
    /// A connector publishes; the number is one more than the last.
    Publish(u64, Message),
    /// What became of a publish that an acceptor's host was given.
    Published(u64, Published),
    /// A connector's new credentials.
    Renew(Credentials),
    /// What the authenticator says of new credentials: until when they are good, or why not.
    Renewed(Result<Option<Timestamp>, Refused>),
    /// From now on the peer may have this much in flight.
    Window(Window),
    /// An acceptor asks its peer to come back later. Nothing more is offered to it, and a peer that is not to come back to whoever
    /// is here then ([`Code::Draining`], which has a deadline of its own) is disconnected when that time has come, or 10 s later
    /// if it is sooner than that.
    GoAway(Refused),
    /// Close the connection; with a terminal code, the session too.
    Close(Refused),
    /// Time has passed, see [`Session::poll_timeout`](super::Session::poll_timeout).
    Tick,
}

/// What the shell must do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Send a frame.
    Send(ConnId, Frame, Codec),
    /// Close the transport when what was sent before is out. The session has done with it.
    Disconnect(ConnId, Code),
    /// Tell the host.
    Event(Event),
}

/// What a host should know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The handshake is done.
    Opened {
        /// Whether the session goes on; otherwise it is a new one, and volatile messages may have been missed.
        resumed: bool,
        /// Who the peer is (acceptors), or who we are (connectors).
        user: UserId,
    },
    /// The connection is gone.
    Lost {
        /// Why.
        code: Code,
        /// What to do, by the code.
        advice: Advice,
        /// When to connect again, if the peer said so.
        retry_after: Option<Duration>,
        /// What the peer said of it, for the log; if nothing, what the code means.
        text: String,
    },
    /// Another connection could not take the place of the one that is open, which goes on.
    SwitchFailed {
        /// Why.
        code: Code,
        /// When to try another one again, if the peer said so.
        retry_after: Option<Duration>,
        /// As in [`Event::Lost`].
        text: String,
    },
    /// What became of messages that were offered.
    Outcomes(Vec<(Place, Outcome)>),
    /// Messages from the peer wait, see [`Session::take`](super::Session::take).
    Ready,
    /// A message that was taken is no longer wanted: its sender withdrew it. A verdict is due all the same.
    Withdrawn(InboundId),
    /// The peer has ended everything of this lane up to this place.
    Floor(StreamId, Place),
    /// So many messages from the peer will not come.
    Gap(Missed),
    /// The peer has acknowledged all gaps that it was told of (`true`), or the connection or the life is over in which it was
    /// told of one and nobody knows (`false`): tell it again.
    GapsHeard(bool),
    /// The answer to a request, late or not.
    Reply(Place, Bytes),
    /// No answer came in time. The message itself is still on its way.
    ReplyTimedOut(Place),
    /// The request was taken, without an answer.
    NoReply(Place),
    /// An answer of so many bytes was dropped: it is larger than
    /// [`max_reply_bytes`](super::SessionConfig::max_reply_bytes), or than the frames that the peer takes. The message
    /// counts as delivered.
    ReplyTooLarge {
        /// How many.
        bytes: usize,
    },
    /// A publish of the peer: say [`Input::Published`].
    Publish(u64, Message),
    /// What became of a publish: `None` when it was decided and the receipt was lost. Send the message again with the same
    /// id to learn it.
    Receipt(u64, Option<Published>),
    /// A connector's credentials are good until then, by what the acceptor has said, or for as long as anybody knows.
    GoodUntil(Option<Timestamp>),
    /// The credentials expire soon: say [`Input::Renew`]. A host that has no others now is asked again a little later.
    RenewSoon,
    /// The peer has new credentials: authenticate them and say [`Input::Renewed`]. Not said again before that, nor within a
    /// second.
    Authenticate(Credentials),
    /// The peer asks to come back later.
    GoingAway(Refused),
    /// The peer broke the protocol. The text says what to do.
    Violation(Code, String),
    /// The grade of the connection changed.
    Quality(Grade),
    /// The peer takes nothing (`true`), or takes something again (`false`).
    Parked(bool),
    /// The session is over: nothing can be resumed any more.
    Over(Code),
}
