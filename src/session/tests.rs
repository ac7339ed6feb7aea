//! Two sessions and the frames between them, step by step. What happens to them at random is in `testing::pair`.

mod order;
mod publishes;
mod requests;
mod resume;
mod switch;
mod time;
mod violations;

use core::time::Duration;

use bytes::Bytes;

use super::frame::{
    Ack, Capabilities, Codecs, Credentials, Deliver, Frame, Gap, GapReason, Hello, Item, Missed, Nack, Place,
    Published, Range, Refused, Token, Welcome, Window,
};
use super::{
    Action, Advice, Code, ConnId, Event, Grant, Greeted, Greeter, Inbound, Input, Outcome, Session,
    SessionConfig, Verdict,
};
use crate::id::{DeviceId, MessageId, StreamId, UserId};
use crate::message::{Durability, Message, Priority};
use crate::record::{LaneId, Seq};
use crate::time::Timestamp;

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + millis)
}

fn device() -> DeviceId {
    "phone".try_into().unwrap()
}

fn user() -> UserId {
    "alice".try_into().unwrap()
}

fn item(seq: u64, priority: Priority, key: &str) -> Item {
    let message = Message::to("alice", "chat.message", "hi")
        .id(MessageId::from_u128(u128::from(seq)))
        .ordering_key(key)
        .priority(priority)
        .build()
        .unwrap();
    of(seq, message)
}

fn of(seq: u64, message: Message) -> Item {
    let place = Place { lane: message.priority().into(), seq: Seq::new(seq) };
    Item { place, accepted_at: at(0), attempts: 0, redelivered: false, reply_within: None, message }
}

fn normal(seq: u64) -> Item {
    item(seq, Priority::Normal, &seq.to_string())
}

/// Two sessions and what they said; frames go where the test lets them.
struct Pair {
    now: Timestamp,
    client: Session,
    server: Session,
    config: SessionConfig,
    epoch: u64,
    conns: u64,
    client_events: Vec<Event>,
    server_events: Vec<Event>,
    disconnects: Vec<(ConnId, Code)>,
    /// Frames on their way, with whether they go to the server.
    wire: Vec<(ConnId, bool, Frame)>,
}

impl Pair {
    fn new(config: SessionConfig) -> Self {
        Self {
            now: at(0),
            client: Session::connector(config.clone(), StreamId::from_u128(1), Some(user()), device()),
            server: Session::acceptor(config.clone(), StreamId::from_u128(2), user(), device()),
            config,
            epoch: 0,
            conns: 0,
            client_events: Vec::new(),
            server_events: Vec::new(),
            disconnects: Vec::new(),
            wire: Vec::new(),
        }
    }

    fn open() -> Self {
        let mut pair = Self::new(SessionConfig::default());
        pair.connect();
        pair.run();
        pair.clear();
        pair
    }

    /// Two sessions with a connection, of which nothing is remembered.
    fn up(config: SessionConfig) -> Self {
        let mut pair = Self::new(config);
        pair.connect();
        pair.run();
        pair.clear();
        pair
    }

    fn clear(&mut self) {
        self.client_events.clear();
        self.server_events.clear();
        self.disconnects.clear();
    }

    fn connect(&mut self) -> ConnId {
        self.conns += 1;
        let conn = ConnId(self.conns);
        self.client(Input::Connected(conn, Credentials(Bytes::from_static(b"pass"))));
        conn
    }

    fn client(&mut self, input: Input) {
        self.client.handle(self.now, input);
        while let Some(action) = self.client.poll_action() {
            match action {
                Action::Send(conn, frame, _) => self.wire.push((conn, true, frame)),
                Action::Disconnect(conn, code) => self.disconnects.push((conn, code)),
                Action::Event(event) => self.client_events.push(event),
            }
        }
    }

    fn server(&mut self, input: Input) {
        self.server.handle(self.now, input);
        while let Some(action) = self.server.poll_action() {
            match action {
                Action::Send(conn, frame, _) => self.wire.push((conn, false, frame)),
                Action::Disconnect(conn, code) => self.disconnects.push((conn, code)),
                Action::Event(event) => self.server_events.push(event),
            }
        }
    }

    fn grant(&mut self) -> Grant {
        self.epoch += 1;
        let token = Token::from_u128(u128::from(self.epoch) + 100);
        Grant { user: user(), expires: None, token, epoch: self.epoch, published: 0 }
    }

    fn admit(&mut self, conn: ConnId, hello: Box<Hello>) {
        let grant = self.grant();
        self.server(Input::Admit { conn, hello, grant });
    }

    /// Carries frames until none is left.
    fn run(&mut self) {
        while !self.wire.is_empty() {
            self.carry();
        }
    }

    fn carry(&mut self) {
        let (conn, to_server, frame) = self.wire.remove(0);
        match (to_server, frame) {
            (true, Frame::Hello(hello)) if self.server.connection() != Some(conn) => self.admit(conn, hello),
            (true, frame) => self.server(Input::Frame(conn, frame)),
            (false, frame) => self.client(Input::Frame(conn, frame)),
        }
    }

    /// The connection breaks; what is on its way is lost.
    fn cut(&mut self) {
        self.wire.clear();
        let conn = ConnId(self.conns);
        self.client(Input::Lost(conn));
        self.server(Input::Lost(conn));
    }

    fn wait(&mut self, by: Duration) {
        self.now = self.now.after(by);
        self.client(Input::Tick);
        self.server(Input::Tick);
    }

    fn taken(&mut self) -> Vec<Inbound> {
        self.client.take(100)
    }

    fn deliver_all(&mut self) -> Vec<u64> {
        let taken = self.taken();
        let seqs = taken.iter().map(|inbound| inbound.item.place.seq.get()).collect();
        self.client(Input::Verdicts(
            taken.into_iter().map(|inbound| (inbound.id, Verdict::Delivered)).collect(),
        ));
        self.wait(Duration::from_millis(20));
        self.run();
        seqs
    }

    fn outcomes(&mut self) -> Vec<(u64, Outcome)> {
        let events = core::mem::take(&mut self.server_events).into_iter();
        let outcomes = events.filter_map(|event| match event {
            Event::Outcomes(outcomes) => Some(outcomes),
            _ => None,
        });
        outcomes.flatten().map(|(place, outcome)| (place.seq.get(), outcome)).collect()
    }

    fn sends(&self) -> Vec<&'static str> {
        self.wire.iter().map(|(_, _, frame)| frame.name()).collect()
    }
}

fn opened(events: &[Event]) -> Option<bool> {
    events.iter().find_map(|event| match event {
        Event::Opened { resumed, .. } => Some(*resumed),
        _ => None,
    })
}

fn violation(events: &[Event]) -> Option<Code> {
    events.iter().find_map(|event| match event {
        Event::Violation(code, text) => {
            assert!(text.contains(": ") && text.len() > 40, "{text} says what to do");
            Some(*code)
        }
        _ => None,
    })
}

#[test]
fn an_idle_session_is_small() {
    let size = core::mem::size_of::<Session>();
    assert!(size <= 2048, "{size} bytes");
}
