//! How a connection opens: one hello, one welcome.

use core::time::Duration;

use super::Code;
use super::config::{MIN_FRAME, SessionConfig};
use super::frame::{
    Capabilities, Credentials, DecodeError, Frame, Hello, Limits, PROTOCOL_VERSION, Position, Published,
    Refused, Welcome,
};
use super::heartbeat::Heartbeat;
use super::io::{Action, ConnId, Event, Grant};
use super::renewal::{Expiry, Renewals};
use super::session::{Life, Link, Role, Session, Up};
use crate::time::Timestamp;

/// The shortest heartbeat that an acceptor agrees to.
const MIN_HEARTBEAT: Duration = Duration::from_secs(1);

/// An acceptor's side of a connection before anybody knows whose it is: takes one hello, in time, and nothing else.
///
/// When it says [`Greeted::Authenticate`], ask the authenticator, find the user's device's [`Session`] (or make one), and
/// hand it the hello with [`Input::Admit`](super::Input::Admit).
#[derive(Clone, Debug)]
pub struct Greeter {
    deadline: Timestamp,
    greeted: bool,
}

/// What a [`Greeter`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeted {
    /// Authenticate it.
    Authenticate(Box<Hello>),
    /// Send the frame, which says why not, and close the connection.
    Reject(Frame),
}

impl Greeter {
    /// A connection has come.
    #[must_use]
    pub fn new(now: Timestamp, config: &SessionConfig) -> Self {
        Self { deadline: now.after(config.handshake_timeout), greeted: false }
    }

    /// The longest hello in bytes: nobody is known yet, and no more is decoded for nobody. Credentials and ids of which each
    /// character is escaped in JSON fit.
    pub const MAX_HELLO: usize = 64 << 10;

    /// Until when the hello must come.
    #[must_use]
    pub const fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// How long the authenticator may take: less than a connector waits for its welcome, so that it hears why there is none.
    #[must_use]
    pub fn answer_within(config: &SessionConfig) -> Duration {
        config.handshake_timeout.saturating_mul(3) / 4
    }

    /// What a frame of somebody who is not known yet is decoded within.
    #[must_use]
    pub fn limits(config: &SessionConfig) -> Limits {
        Limits { max_frame: config.limits.max_frame.min(Self::MAX_HELLO), ..config.limits }
    }

    /// What came first (or second, which is a violation).
    pub fn first(&mut self, frame: Result<Frame, DecodeError>, config: &SessionConfig) -> Greeted {
        let again = core::mem::replace(&mut self.greeted, true);
        match frame {
            Err(error) => reject(error.code(), &error.to_string()),
            Ok(Frame::Hello(_)) if again => reject(Code::ReplayedHello, "a second hello"),
            Ok(Frame::Hello(hello)) => match flaw(&hello, config) {
                Some(code) => reject(code, "hello"),
                None => Greeted::Authenticate(hello),
            },
            Ok(frame) => reject(Code::UnexpectedFrame, frame.name()),
        }
    }

    /// The hello did not come, or was not answered, in time. The latter is no fault of the peer's or of its transport: add when
    /// to come back.
    #[must_use]
    pub fn timed_out(&self) -> Greeted {
        match self.greeted {
            false => reject(Code::HandshakeTimeout, "nothing came in time"),
            true => reject(Code::Overloaded, "the authenticator has not answered in time"),
        }
    }
}

fn reject(code: Code, what: &str) -> Greeted {
    let text = format!("{what}: {}", code.text());
    Greeted::Reject(Frame::Reject(Refused { code, retry_after: None, text }))
}

/// Why a hello is refused before its credentials are looked at.
fn flaw(hello: &Hello, config: &SessionConfig) -> Option<Code> {
    if hello.codecs.and(config.codecs).best().is_none() {
        return Some(Code::UnsupportedCodec);
    }
    if is_too_narrow(hello.max_frame) {
        return Some(Code::FrameTooLarge);
    }
    (hello.horizon > config.max_horizon).then_some(Code::HorizonTooLong)
}

/// Whether messages would fail, one by one, over what the peer says that it reads.
fn is_too_narrow(max_frame: u32) -> bool {
    u64::from(max_frame) < MIN_FRAME as u64
}

impl Session {
    /// A connector says hello.
    pub(super) fn connected(&mut self, conn: ConnId, credentials: Credentials) {
        match &self.link {
            _ if self.role == Role::Acceptor => return,
            Link::Over => return self.actions.push_back(Action::Disconnect(conn, Code::Ended)),
            // Another transport is to take over: this one stands until that one has a welcome.
            Link::Up(_) => return self.rival(conn, credentials),
            Link::Greeting(..) => self.end_connection(Self::refused(Code::TransportSwitched), false),
            Link::Down(_) => {}
        }
        self.link = Link::Greeting(conn, self.now);
        self.say_hello(conn, credentials);
    }

    pub(super) fn say_hello(&mut self, conn: ConnId, credentials: Credentials) {
        self.stated = self.inc.window();
        let hello = Hello {
            versions: (PROTOCOL_VERSION, PROTOCOL_VERSION),
            codecs: self.config.codecs,
            user: self.user.clone(),
            device: self.device.clone(),
            credentials,
            stream: self.stream,
            resume: self.life.map(|life| (life.token, self.position(life.epoch))),
            capabilities: self.config.capabilities,
            horizon: self.config.horizon,
            window: self.stated,
            heartbeat: self.config.heartbeat,
            max_frame: u32::try_from(self.config.limits.max_frame).unwrap_or(u32::MAX),
        };
        let codec = self.config.codecs.best().unwrap_or(super::frame::Codec::Binary);
        self.actions.push_back(Action::Send(conn, Frame::Hello(Box::new(hello)), codec));
    }

    fn position(&self, epoch: u64) -> Position {
        Position { epoch, seen: self.inc.seen(), base: self.out.base() }
    }

    /// An acceptor lets an authenticated hello in.
    pub(super) fn admit(&mut self, conn: ConnId, hello: &Hello, grant: Grant) {
        let codec = hello.codecs.and(self.config.codecs).best();
        let Some(codec) = codec.filter(|_| self.role == Role::Acceptor && !self.is_over()) else {
            return self.actions.push_back(Action::Disconnect(conn, Code::Ended));
        };
        let asked = hello
            .resume
            .filter(|(token, position)| self.life == Some(Life { token: *token, epoch: position.epoch }));
        // Its connector may have given a climb up whose hello came late, and gone on over the connection before.
        let is_clear = |position: &Position| !self.out.is_in_doubt(position.seen);
        let resumed = asked.filter(|(_, position)| self.can_resume(*position) && is_clear(position));
        // A hello that was held up: its connector has gone on to the connection that is open, and would lose that to one it
        // has left.
        if let Link::Up(up) = &self.link
            && conn < up.conn
            && hello.stream == self.peer_stream
        {
            return self.actions.push_back(Action::Disconnect(conn, Code::TransportSwitched));
        }
        // The old connection says nothing more, and hears nothing more, before the new one says anything.
        if matches!(self.link, Link::Up(_)) {
            let code = if asked.is_some() { Code::TransportSwitched } else { Code::TakenOver };
            self.freeze(code);
        }
        if resumed.is_none() {
            self.forget();
            self.receiver.reset(grant.published);
            self.life = Some(Life { token: grant.token, epoch: grant.epoch });
        }
        let heartbeat = self.config.heartbeat.min(hello.heartbeat).max(MIN_HEARTBEAT);
        let capabilities = self.config.capabilities.and(hello.capabilities);
        self.user = Some(grant.user.clone());
        self.quality.begin();
        self.set_expiry(grant.expires);
        let Some(life) = self.life else { return };
        let welcome = Welcome {
            version: PROTOCOL_VERSION,
            codec,
            user: grant.user,
            stream: self.stream,
            token: life.token,
            position: self.position(life.epoch),
            resumed: resumed.is_some(),
            capabilities,
            window: self.inc.window(),
            heartbeat,
            timeout: self.config.timeout,
            max_frame: u32::try_from(self.config.limits.max_frame).unwrap_or(u32::MAX),
            expires_in: grant.expires.map(|at| at.since(self.now)),
            published: self.receiver.published(),
        };
        self.peer_stream = hello.stream;
        self.out.set_window(hello.window);
        let up = Up {
            conn,
            codec,
            capabilities,
            heart: Heartbeat::new(true, heartbeat, self.config.timeout, self.now),
            max_frame: u64::from(hello.max_frame),
            going: false,
            leaving: None,
            linger_until: None,
            renewals: Renewals::default(),
            rival: None,
        };
        let peer = resumed.map(|(_, position)| position);
        self.open(up, Some(Frame::Welcome(Box::new(welcome))), peer);
    }

    /// The old connection of a session that goes on, or starts anew, over another one.
    fn freeze(&mut self, code: Code) {
        if let Link::Up(up) = &self.link {
            let (conn, codec) = (up.conn, up.codec);
            self.actions.push_back(Action::Send(conn, Frame::Close(Self::refused(code)), codec));
            self.actions.push_back(Action::Disconnect(conn, code));
            self.down();
            self.lost_event(Self::refused(code));
        }
    }

    fn can_resume(&self, position: Position) -> bool {
        self.out.can_resume(position.seen) && self.inc.can_resume(position.base)
    }

    /// What is wrong with a welcome.
    pub(super) fn flaw_of(&self, welcome: &Welcome) -> Option<(Code, &'static str)> {
        let position = welcome.position;
        let fresh = Position { epoch: position.epoch, seen: 0, base: 1 };
        let sound = match welcome.resumed {
            true => self.life == Some(Life::of(welcome)) && self.can_resume(position),
            // A new life starts at the beginning, and is not the old one.
            false => position == fresh && self.life.is_none_or(|old| old.epoch != position.epoch),
        };
        match (welcome.version, sound) {
            (PROTOCOL_VERSION, _) if is_too_narrow(welcome.max_frame) => {
                Some((Code::FrameTooLarge, "the welcome's max_frame is below 16 KiB"))
            }
            (PROTOCOL_VERSION, true) => None,
            (PROTOCOL_VERSION, false) => Some((Code::OutOfOrder, "the welcome's position is not ours")),
            _ => Some((Code::UnsupportedVersion, "welcome")),
        }
    }

    /// A connector is let in, by a welcome without a flaw.
    pub(super) fn welcomed(&mut self, conn: ConnId, welcome: &Welcome) {
        if !welcome.resumed {
            self.forget();
            self.life = Some(Life::of(welcome));
        }
        self.user = Some(welcome.user.clone());
        self.peer_stream = welcome.stream;
        self.set_expiry(welcome.expires_in.map(|in_| self.now.after(in_)));
        self.out.set_window(welcome.window);
        // How long the welcome took says more of the authenticator than of the connection.
        self.quality.begin();
        // A resumed session's acceptor still knows every outcome, and says it again.
        if !welcome.resumed {
            self.publisher.settle(welcome.published).into_iter().for_each(|event| self.event(event));
            self.publisher.expire(self.now).into_iter().for_each(|event| self.event(event));
        }
        let up = Up {
            conn,
            codec: welcome.codec,
            capabilities: self.config.capabilities.and(welcome.capabilities),
            heart: Heartbeat::new(false, welcome.heartbeat, welcome.timeout, self.now),
            max_frame: u64::from(welcome.max_frame),
            going: false,
            leaving: None,
            linger_until: None,
            renewals: Renewals::default(),
            rival: None,
        };
        self.open(up, None, welcome.resumed.then_some(welcome.position));
        if let Some(until) = self.expiry.at() {
            self.event(Event::GoodUntil(Some(until)));
        }
        // An acceptor that has heard something knows that its welcome was taken, and what the numbers stand for that it has
        // filled anew: without that, the next hello would begin a new life.
        if welcome.resumed || self.stated != self.inc.window() {
            self.inc.state_window(self.stated, self.now);
        }
    }

    /// The handshake is done: what the peer has not seen, or not heard, is said again.
    fn open(&mut self, up: Up, welcome: Option<Frame>, peer: Option<Position>) {
        self.link = Link::Up(up);
        welcome.into_iter().for_each(|frame| self.send(frame));
        if let Some(user) = self.user.clone() {
            self.event(Event::Opened { resumed: peer.is_some(), user });
        }
        if let Some(position) = peer {
            self.out.resume(position.seen, self.now);
            let again = self.inc.resume(position.base, self.now);
            for frame in again {
                // The peer may take smaller frames than it did.
                match &frame {
                    Frame::Reply { number, payload }
                        if !self.fits(payload.len() as u64, || frame.clone()) =>
                    {
                        self.event(Event::ReplyTooLarge { bytes: payload.len() });
                        self.inc.forget_reply(*number, self.now);
                    }
                    _ => self.send(frame),
                }
            }
        }
        self.out.withdrawn().into_iter().for_each(|number| self.say_withdrawn(number));
        let floors = self.floors;
        floors.into_iter().flatten().for_each(|place| self.send(Frame::Floor(place)));
        if self.can(Capabilities::PUBLISH) {
            for frame in self.publisher.resend(self.now) {
                match &frame {
                    // The peer takes smaller frames than it did: it would end the connection, again and again.
                    Frame::Publish { number, message } if !self.fits(message.cost(), || frame.clone()) => {
                        let refused = Published::Refused(Self::refused(Code::Invalid));
                        if self.publisher.receipt(*number).is_ok() {
                            self.event(Event::Receipt(*number, Some(refused)));
                        }
                    }
                    _ => self.send(frame),
                }
            }
        } else {
            // Nobody here takes them: what became of them, if anything, cannot be learned.
            self.publisher.settle(u64::MAX).into_iter().for_each(|event| self.event(event));
        }
    }

    fn set_expiry(&mut self, expires: Option<Timestamp>) {
        self.expiry = Expiry::new(self.now, expires, self.config.renew_before);
    }

    /// A connector has new credentials.
    pub(super) fn renew(&mut self, credentials: Credentials) {
        if self.connection().is_some() {
            self.expiry.offered();
            self.send(Frame::Renew(credentials));
        }
    }

    /// The authenticator's answer to new credentials on a live session.
    pub(super) fn renewed(&mut self, result: Result<Option<Timestamp>, Refused>) {
        if let Link::Up(up) = &mut self.link {
            up.renewals.answered();
        }
        match result {
            Ok(expires) => {
                self.set_expiry(expires);
                let expires_in = expires.map(|at| at.since(self.now));
                self.send(Frame::Renewed { expires_in });
            }
            Err(refused) => self.end_connection(refused, true),
        }
    }

    /// A connector's credentials are good for longer.
    pub(super) fn renewal_heard(&mut self, expires_in: Option<Duration>) {
        self.set_expiry(expires_in.map(|in_| self.now.after(in_)));
        self.event(Event::GoodUntil(self.expiry.at()));
    }
}
