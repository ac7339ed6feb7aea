//! The state of one session, and what the host may ask of it. What it does stands in `handshake` and `live`.

use std::collections::{BTreeMap, VecDeque};

use super::config::SessionConfig;
use super::frame::{Capabilities, Codec, Frame, Place, Refused, Token, Welcome, Window};
use super::heartbeat::Heartbeat;
use super::incoming::Incoming;
use super::io::{Action, ConnId, Event, Inbound, InboundId, Input, Outcome};
use super::outgoing::Outgoing;
use super::publish::{Publisher, Receiver};
use super::quality::{Grade, Quality};
use super::renewal::{Expiry, Renewals};
use super::switch::Rival;
use super::{Advice, Code};
use crate::id::{DeviceId, StreamId, UserId};
use crate::time::Timestamp;

/// Which end it is. After the handshake the ends differ in who pings and who publishes, and in nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Connector,
    Acceptor,
}

/// A connection that a session has.
#[derive(Clone, Debug)]
pub(super) enum Link {
    /// None, since then.
    Down(Timestamp),
    /// A connector has said hello, at this time.
    Greeting(ConnId, Timestamp),
    /// It is open.
    Up(Up),
    /// The session is over.
    Over,
}

/// What holds while a connection is open.
#[derive(Clone, Debug)]
pub(super) struct Up {
    pub(super) conn: ConnId,
    pub(super) codec: Codec,
    /// What both can do.
    pub(super) capabilities: Capabilities,
    pub(super) heart: Heartbeat,
    /// The largest frame the peer takes.
    pub(super) max_frame: u64,
    /// The peer was asked to leave, or asked us to: nothing new goes out.
    pub(super) going: bool,
    /// The peer was asked to leave for this reason, and its connection is closed then.
    pub(super) leaving: Option<(Code, Timestamp)>,
    pub(super) linger_until: Option<Timestamp>,
    /// New credentials of the peer.
    pub(super) renewals: Renewals,
    /// Another connection of a connector, which greets.
    pub(super) rival: Option<Box<Rival>>,
}

/// A life of the session: numbers mean something within one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) token: Token,
    pub(super) epoch: u64,
}

impl Life {
    /// The one that a welcome begins or goes on with.
    pub(super) const fn of(welcome: &Welcome) -> Self {
        Self { token: welcome.token, epoch: welcome.position.epoch }
    }
}

/// One end of a session with one peer, over any number of connections, one at a time. See the module's documentation
/// for the contract.
#[derive(Clone, Debug)]
pub struct Session {
    pub(super) role: Role,
    pub(super) config: SessionConfig,
    pub(super) stream: StreamId,
    pub(super) device: DeviceId,
    pub(super) user: Option<UserId>,
    pub(super) peer_stream: StreamId,
    pub(super) link: Link,
    pub(super) life: Option<Life>,
    pub(super) out: Outgoing,
    pub(super) inc: Incoming,
    pub(super) publisher: Publisher,
    pub(super) receiver: Receiver,
    pub(super) quality: Quality,
    pub(super) grade: Grade,
    pub(super) stalled: bool,
    pub(super) parked: bool,
    /// When the credentials expire, and when new ones are asked for.
    pub(super) expiry: Expiry,
    /// Requests without an answer, and until when it is waited for.
    pub(super) requests: BTreeMap<Place, Timestamp>,
    pub(super) floors: [Option<Place>; 4],
    /// The window that a connector's last hello stated.
    pub(super) stated: Window,
    pub(super) now: Timestamp,
    pub(super) actions: VecDeque<Action>,
    pub(super) ready_told: bool,
}

impl Session {
    /// The end that connects: a client, or the service that calls another one. `stream` is its engine's log.
    #[must_use]
    pub fn connector(
        config: SessionConfig,
        stream: StreamId,
        user: Option<UserId>,
        device: DeviceId,
    ) -> Self {
        Self::new(Role::Connector, config, stream, user, device)
    }

    /// The end that is connected to, for one user's device. `stream` is its engine's log.
    #[must_use]
    pub fn acceptor(config: SessionConfig, stream: StreamId, user: UserId, device: DeviceId) -> Self {
        Self::new(Role::Acceptor, config, stream, Some(user), device)
    }

    fn new(
        role: Role,
        config: SessionConfig,
        stream: StreamId,
        user: Option<UserId>,
        device: DeviceId,
    ) -> Self {
        Self {
            role,
            out: Outgoing::new(config.max_queue),
            inc: Incoming::new(config.window, config.max_kept_replies),
            publisher: Publisher::new(config.max_publishes, config.horizon),
            receiver: Receiver::new(config.max_publishes),
            stated: config.window,
            config,
            stream,
            device,
            user,
            peer_stream: StreamId::from_u128(0),
            link: Link::Down(Timestamp::ZERO),
            life: None,
            quality: Quality::default(),
            grade: Grade::Good,
            stalled: false,
            parked: false,
            expiry: Expiry::default(),
            requests: BTreeMap::new(),
            floors: [None; 4],
            now: Timestamp::ZERO,
            actions: VecDeque::new(),
            ready_told: false,
        }
    }

    /// Tells what happened. Then drain [`Session::poll_action`].
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        self.now = self.now.max(now);
        match input {
            Input::Connected(conn, credentials) => self.connected(conn, credentials),
            Input::Admit { conn, hello, grant } => self.admit(conn, &hello, grant),
            Input::Frame(conn, frame) => self.frame(conn, frame),
            Input::Garbage(conn, error) => self.garbage(conn, &error),
            Input::Lost(conn) => self.lost(conn),
            Input::Written(conn) => self.written(conn),
            Input::Offer(items) => self.offer(items),
            Input::Withdraw(places) => self.withdraw(&places),
            Input::Verdicts(verdicts) => self.verdicts(verdicts),
            Input::Floor(place) => self.floor(place),
            Input::Gap(missed) => self.out.add_gap(missed),
            Input::Publish(number, message) => self.publish(number, message),
            Input::Published(number, outcome) => self.published(number, outcome),
            Input::Renew(credentials) => self.renew(credentials),
            Input::Renewed(result) => self.renewed(result),
            Input::Window(window) => self.inc.set_window(window, self.now),
            Input::GoAway(refused) => self.go_away(refused),
            Input::Close(refused) => self.close(refused),
            Input::Tick => {}
        }
        self.keep_time();
        self.pump();
        self.report();
    }

    /// The next thing to do; call until `None`.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next messages from the peer, in order, at most so many. Ask after [`Event::Ready`], and again when verdicts
    /// for these were said.
    ///
    /// # To ensure correctness
    /// When a message is not taken (`Nack` or `Busy`), do not take those of its lane and ordering key behind it among
    /// what was handed out already, and say `Busy` with a delay of zero for them. The session does so for all others,
    /// provided that verdicts are said before more is asked for.
    pub fn take(&mut self, max: usize) -> Vec<Inbound> {
        let items = self.inc.take(max);
        self.ready_told = self.inc.is_ready();
        let Some(life) = self.life else { return Vec::new() };
        let inbound = items.into_iter().map(|(number, item)| Inbound {
            id: InboundId { epoch: life.epoch, number },
            stream: self.peer_stream,
            floor: self.inc.floor(item.place.lane),
            item,
        });
        inbound.collect()
    }

    /// The connection that is open, if one is.
    #[must_use]
    pub const fn connection(&self) -> Option<ConnId> {
        match &self.link {
            Link::Up(up) => Some(up.conn),
            _ => None,
        }
    }

    /// Whether [`Input::Written`](super::Input::Written) must be said of this connection.
    #[must_use]
    pub fn wants_written(&self, conn: ConnId) -> bool {
        self.connection() == Some(conn) && !self.can(Capabilities::ACKS)
    }

    /// Whether a connection is open, or hello was said over one.
    #[must_use]
    pub const fn is_linked(&self) -> bool {
        matches!(self.link, Link::Greeting(..) | Link::Up(_))
    }

    /// Whether nothing can be resumed any more.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.link, Link::Over)
    }

    /// Every publish of the peer up to this number was decided: for [`Grant::published`](super::Grant), should the session end.
    #[must_use]
    pub const fn decided_publishes(&self) -> u64 {
        self.receiver.published()
    }

    /// Whether nothing is under way in either direction: a connection that is closed now loses nobody any time.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.out.is_quiet() && self.inc.is_quiet() && self.publisher.is_quiet() && self.receiver.is_quiet()
    }

    /// How good the connection is.
    #[must_use]
    pub const fn quality(&self) -> &Quality {
        &self.quality
    }

    pub(super) fn event(&mut self, event: Event) {
        self.actions.push_back(Action::Event(event));
    }

    /// Sends over the open connection; what cannot be sent is told again after the next handshake.
    pub(super) fn send(&mut self, frame: Frame) {
        if let Link::Up(up) = &mut self.link {
            up.heart.sent(self.now);
            self.actions.push_back(Action::Send(up.conn, frame, up.codec));
        }
    }

    /// What this end is called when it refuses something.
    pub(super) fn refused(code: Code) -> Refused {
        Refused { code, retry_after: None, text: code.text().to_owned() }
    }

    /// The peer broke the protocol: say so, close, and tell the host.
    pub(super) fn violation(&mut self, code: Code, what: &str) {
        let text = format!("{what}: {}", code.text());
        self.event(Event::Violation(code, text));
        self.end_connection(Self::refused(code), true);
    }

    /// Ends the connection, and the session's life if the code says so.
    pub(super) fn end_connection(&mut self, why: Refused, say: bool) {
        let code = why.code;
        let (conn, rival) = match &self.link {
            Link::Up(up) => (up.conn, up.rival()),
            Link::Greeting(conn, _) => (*conn, None),
            Link::Down(_) | Link::Over => return,
        };
        if say && matches!(self.link, Link::Up(_)) {
            self.send(Frame::Close(why.clone()));
        }
        self.actions.push_back(Action::Disconnect(conn, code));
        rival.into_iter().for_each(|rival| self.actions.push_back(Action::Disconnect(rival, code)));
        self.down();
        self.lost_event(why);
        match code.advice() {
            Advice::StartAfresh => self.forget(),
            Advice::GiveUp => self.over(code),
            // An acceptor's session has no right to go on without credentials; a connector's waits for new ones.
            Advice::RenewCredentials if self.role == Role::Acceptor => self.over(code),
            _ => {}
        }
    }

    pub(super) fn lost_event(&mut self, why: Refused) {
        let Refused { code, retry_after, text } = why;
        self.event(Event::Lost { code, advice: code.advice(), retry_after, text });
    }

    /// No connection is open any more: what waits goes back, for it may end before there is one again.
    pub(super) fn down(&mut self) {
        self.link = Link::Down(self.now);
        self.out.park(core::time::Duration::ZERO);
    }

    /// Numbers mean nothing any more: gives back what was offered.
    pub(super) fn forget(&mut self) {
        self.life = None;
        self.out.reset();
        self.inc.reset();
        self.requests.clear();
        self.ready_told = false;
        if core::mem::take(&mut self.parked) {
            self.event(Event::Parked(false));
        }
        self.stalled = false;
    }

    pub(super) fn over(&mut self, code: Code) {
        self.forget();
        self.link = Link::Over;
        self.publisher.settle(u64::MAX).into_iter().for_each(|event| self.event(event));
        self.event(Event::Over(code));
    }

    /// Tells the host what became of things.
    pub(super) fn report(&mut self) {
        let outcomes = self.out.take_outcomes();
        // What comes back unanswered is a request again when it is offered again.
        for (place, _) in outcomes.iter().filter(|(_, outcome)| !matches!(outcome, Outcome::Progress)) {
            self.requests.remove(place);
        }
        if !outcomes.is_empty() {
            self.event(Event::Outcomes(outcomes));
        }
        if let Some(heard) = self.out.take_heard_of_gaps() {
            self.event(Event::GapsHeard(heard));
        }
        if self.inc.is_ready() && !self.ready_told {
            self.ready_told = true;
            self.event(Event::Ready);
        }
        let grade = self.quality.grade();
        if core::mem::replace(&mut self.grade, grade) != grade {
            self.event(Event::Quality(grade));
        }
    }
}
