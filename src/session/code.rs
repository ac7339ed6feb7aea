//! Why a connection, a session or a message was refused or ended, and what the peer should do about it.

use core::fmt;

/// What the peer should do about a [`Code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Connect again, after the usual backoff, and resume the session.
    Resume,
    /// Connect again, after the usual backoff, without a resume token: what both ends know of the session differs.
    StartAfresh,
    /// Connect again, and not before the `retry_after` that came with the code.
    ComeBackLater,
    /// Get new credentials first.
    RenewCredentials,
    /// Do not connect again by yourself: the same attempt would fail the same way.
    GiveUp,
    /// Offer the message again later; it was refused for now.
    OfferAgain,
    /// The message is refused for good.
    DropMessage,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $advice:ident, $text:literal;)*) => {
        /// Every reason that crosses the wire, in a reject, close, go-away, nack or receipt. The numbers are valid as close
        /// codes of a WebSocket.
        ///
        /// | range | about | the peer |
        /// |---|---|---|
        /// | 4000–4049 | the connection | resumes |
        /// | 4050–4099 | the session | starts afresh |
        /// | 4100–4199 | the acceptor's load | comes back after `retry_after` |
        /// | 4200–4299 | credentials | gets new ones |
        /// | 4300–4399 | terminal | gives up |
        /// | 4400–4449 | one message, for now | offers it again |
        /// | 4450–4499 | one message, terminal | drops it |
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $name,)*
            /// One that a newer peer knows. Its range says what to do. Made by [`Code::from_number`] only.
            Unknown(u16),
        }

        impl Code {
            /// All codes that this build knows.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self {
                    $(Self::$name => $number,)*
                    Self::Unknown(number) => number,
                }
            }

            /// The code with this number; `None` outside of 4000–4499.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    4000..=4499 => Some(Self::Unknown(number)),
                    _ => None,
                }
            }

            /// What happened, and what to do about it, in one sentence for logs.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Unknown(_) => "a code of a newer peer: its range says what to do",
                }
            }

            /// What its documentation promises; a test holds it against the range.
            #[cfg(test)]
            const fn declared(self) -> Option<Advice> {
                match self {
                    $(Self::$name => Some(Advice::$advice),)*
                    Self::Unknown(_) => None,
                }
            }
        }
    };
}

codes! {
    /// The peer is done for now; nothing is wrong.
    Done = 4000, Resume, "the peer closed the connection in good order: connect again when there is something to do";
    /// Nothing was heard within the heartbeat's interval and timeout.
    HeartbeatTimeout = 4001, Resume, "nothing was heard for too long: connect again and resume";
    /// The hello or the welcome did not come in time.
    HandshakeTimeout = 4002, Resume, "the handshake took too long: connect again";
    /// The transport broke.
    TransportLost = 4003, Resume, "the transport broke: connect again and resume";
    /// The consumer did not take anything for too long, and its messages were parked.
    SlowConsumer = 4004, Resume, "the consumer took nothing for too long, its messages wait in the outbox: connect again when it can take them";
    /// Another transport takes this one's place.
    TransportSwitched = 4005, Resume, "the session goes on over another transport: nothing to do";

    /// A delivery did not follow the one before it.
    OutOfOrder = 4050, StartAfresh, "a frame did not follow the one before it: start a new session; the transport must keep order";
    /// An acknowledgement of something that was never sent.
    AckOfUnsent = 4051, StartAfresh, "something was acknowledged that was never sent: start a new session, and look for a peer that mixes sessions up";
    /// More was in flight than the window allows.
    WindowExceeded = 4052, StartAfresh, "more was in flight than the window allows: start a new session, and mend the peer's flow control";

    /// No room for one more.
    Overloaded = 4100, ComeBackLater, "the peer is overloaded: come back after retry_after";
    /// Too many connections from there, or of this user.
    RateLimited = 4101, ComeBackLater, "too many connections in too short a time: come back after retry_after";
    /// Too many failures from there.
    Penalised = 4102, ComeBackLater, "too many failed attempts: come back after retry_after, which grows with every failure";
    /// The acceptor goes down.
    Draining = 4103, ComeBackLater, "the peer goes down: come back after retry_after, to whoever answers then";
    /// The acceptor wants the session elsewhere.
    Rebalancing = 4104, ComeBackLater, "the peer hands its sessions over: come back after retry_after";

    /// No credentials were given.
    CredentialsNeeded = 4200, RenewCredentials, "credentials are needed: get some, then connect again";
    /// The credentials were refused.
    CredentialsRefused = 4201, RenewCredentials, "the credentials were refused: get new ones, then connect again";
    /// The session's credentials have expired.
    SessionExpired = 4202, RenewCredentials, "the credentials have expired, the outbox stays: get new ones, then connect again";

    /// No common version.
    UnsupportedVersion = 4300, GiveUp, "no protocol version in common: upgrade the older end";
    /// No common codec.
    UnsupportedCodec = 4301, GiveUp, "no codec in common: enable one that both ends have";
    /// A frame over the limit.
    FrameTooLarge = 4302, GiveUp, "a frame is over the limit that the hello or the welcome states: send smaller batches, or raise the limit";
    /// Bytes that are no frame.
    Malformed = 4303, GiveUp, "the bytes are no frame: look for a peer with another protocol, or a proxy that changes bytes";
    /// A frame that is not allowed in this state.
    UnexpectedFrame = 4304, GiveUp, "a frame came that is not allowed now: mend the peer";
    /// A second hello on one connection.
    ReplayedHello = 4305, GiveUp, "a second hello came on one connection: mend the peer, or look for somebody who replays frames";
    /// The peer retries for longer than ids are remembered.
    HorizonTooLong = 4306, GiveUp, "the peer would repeat messages for longer than their ids are remembered: shorten its retry horizon, or lengthen the dedup window";
    /// The same device connected elsewhere.
    TakenOver = 4307, GiveUp, "the same device has connected elsewhere: do not fight over it";
    /// The host closed the session for good.
    Ended = 4308, GiveUp, "the host ended the session for good: ask the host";
    /// Not permitted.
    Forbidden = 4309, GiveUp, "the user may not connect here: ask the host";

    /// The handler failed, or the message was not taken for another reason that may pass.
    Failed = 4400, OfferAgain, "the message was not taken, an attempt is spent: offer it again";
    /// The receiver is busy. No attempt is spent.
    Busy = 4401, OfferAgain, "the receiver is busy, no attempt is spent: offer the message again after the delay";
    /// The outbox it is for is full.
    QuotaExceeded = 4402, OfferAgain, "the outbox is full: offer the message again later";

    /// The receiver refuses the message.
    Rejected = 4450, DropMessage, "the receiver refuses the message for good";
    /// Its id was used for another message.
    Conflict = 4451, DropMessage, "the id was used for another message: give each message an id of its own";
    /// The sender may not send it.
    NotPermitted = 4452, DropMessage, "the sender may not send this: ask the host";
    /// It is over a limit or not well formed.
    Invalid = 4453, DropMessage, "the message is over a limit or not well formed: mend it and send it as a new one";
    /// A newer version was accepted before.
    Outdated = 4454, DropMessage, "a newer version of it was accepted before";
    /// Its sender withdrew it before the receiver had begun with it.
    Withdrawn = 4455, DropMessage, "its sender withdrew it, and nobody had begun with it: nothing to do";
}

impl Code {
    /// What the peer should do, by the range of the number.
    #[must_use]
    pub const fn advice(self) -> Advice {
        match self.number() {
            ..=4049 => Advice::Resume,
            4050..=4099 => Advice::StartAfresh,
            4100..=4199 => Advice::ComeBackLater,
            4200..=4299 => Advice::RenewCredentials,
            4300..=4399 => Advice::GiveUp,
            4400..=4449 => Advice::OfferAgain,
            4450.. => Advice::DropMessage,
        }
    }

    /// Whether doing the same again would end the same way.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self.advice(), Advice::GiveUp | Advice::DropMessage)
    }

    /// Whether it is about one message, and not about the connection or the session.
    #[must_use]
    pub const fn is_about_a_message(self) -> bool {
        self.number() >= 4400
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.number(), self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_stands_in_the_range_of_its_advice_and_has_a_number_of_its_own() {
        for (i, code) in Code::ALL.iter().enumerate() {
            assert_eq!(Some(code.advice()), code.declared(), "{code}");
            assert_eq!(Code::from_number(code.number()), Some(*code));
            assert!(Code::ALL.iter().skip(i + 1).all(|other| other.number() != code.number()), "{code}");
            assert!(code.text().len() > 20, "{code:?} says what to do");
        }
    }

    #[test]
    fn a_code_of_a_newer_peer_is_understood_by_its_range() {
        let code = Code::from_number(4399).unwrap();
        assert_eq!((code, code.advice(), code.number()), (Code::Unknown(4399), Advice::GiveUp, 4399));
        assert!(code.is_terminal() && !code.is_about_a_message());
        assert_eq!(Code::from_number(3999), None);
        assert_eq!(Code::from_number(4500), None);
    }
}
