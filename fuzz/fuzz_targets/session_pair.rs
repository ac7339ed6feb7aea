//! Hostile frames never make a session panic, and an honest pair in any weather loses, repeats and inverts nothing.
#![no_main]

use std::time::Duration;

use bytes::Bytes;
use lastmile::record::{LaneId, Seq};
use lastmile::session::frame::{Credentials, Frame, Item, Limits, Place, Published, Token, decode};
use lastmile::session::{
    Action, Code, ConnId, Event, Grant, Greeted, Greeter, Input, Session, SessionConfig, Verdict,
};
use lastmile::testing::pair::{Weather, live};
use lastmile::{DeviceId, Message, StreamId, Timestamp, UserId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [kind, rest @ ..] = input else { return };
    match kind % 8 {
        0 | 4 => Hostile::new(Side::Greeted).run(rest),
        2 => Hostile::new(Side::Connector).run(rest),
        6 => Hostile::new(Side::Acceptor).run(rest),
        _ => honest(rest),
    }
});

/// Which end has the hostile peer.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// A connector that has said hello: the input has its welcome.
    Greeted,
    /// A connector whose handshake is done.
    Connector,
    /// An acceptor whose handshake is done.
    Acceptor,
}

/// A session that does what a host does, and frames from the input, each behind its length.
struct Hostile {
    side: Side,
    session: Session,
    now: Timestamp,
    conns: u64,
    offered: u64,
}

fn user() -> UserId {
    UserId::new("u").expect("one byte is a user id")
}

fn connector() -> Session {
    let device = DeviceId::new("d").expect("one byte is a device id");
    Session::connector(SessionConfig::default(), StreamId::from_u128(1), Some(user()), device)
}

fn acceptor() -> Session {
    let device = DeviceId::new("d").expect("one byte is a device id");
    Session::acceptor(SessionConfig::default(), StreamId::from_u128(2), user(), device)
}

impl Hostile {
    fn new(side: Side) -> Self {
        let session = if side == Side::Acceptor { acceptor() } else { connector() };
        Self { side, session, now: Timestamp::from_millis(1), conns: 0, offered: 0 }
    }

    fn run(&mut self, mut input: &[u8]) {
        while let [len, rest @ ..] = input {
            let (frame, rest) = rest.split_at(usize::from(*len).min(rest.len()));
            input = rest;
            if self.session.is_over() {
                return;
            }
            if self.session.connection().is_none() {
                self.connect();
            }
            let event = match decode(&Bytes::copy_from_slice(frame), &Limits::default()) {
                Ok(frame) => Input::Frame(ConnId(self.conns), frame),
                Err(error) => Input::Garbage(ConnId(self.conns), error),
            };
            self.tell(event);
            self.be_a_host(*len);
            self.now = self.now.after(Duration::from_millis(u64::from(*len)));
        }
    }

    /// A new connection; where the handshake is not what is tried, an honest end does its part of it.
    fn connect(&mut self) {
        self.conns += 1;
        let conn = ConnId(self.conns);
        let credentials = Credentials(Bytes::new());
        match self.side {
            Side::Greeted => self.tell(Input::Connected(conn, credentials)),
            Side::Connector => {
                self.session.handle(self.now, Input::Connected(conn, credentials));
                let hello = sent(&mut self.session).find(|frame| matches!(frame, Frame::Hello(_)));
                let mut other = acceptor();
                if let Some(admit) = hello.and_then(|hello| self.admit(conn, hello)) {
                    other.handle(self.now, admit);
                }
                let welcome = sent(&mut other).next();
                welcome.into_iter().for_each(|welcome| self.tell(Input::Frame(conn, welcome)));
            }
            Side::Acceptor => {
                let mut other = connector();
                other.handle(self.now, Input::Connected(conn, credentials));
                let hello = sent(&mut other).next();
                let admit = hello.and_then(|hello| self.admit(conn, hello));
                admit.into_iter().for_each(|admit| self.tell(admit));
            }
        }
    }

    fn admit(&self, conn: ConnId, hello: Frame) -> Option<Input> {
        let config = SessionConfig::default();
        let Greeted::Authenticate(hello) = Greeter::new(self.now, &config).first(Ok(hello), &config) else {
            return None;
        };
        let (token, epoch) = (Token::from_u128(conn.0.into()), conn.0);
        let grant = Grant { user: user(), expires: None, token, epoch, published: 0 };
        Some(Input::Admit { conn, hello, grant })
    }

    fn tell(&mut self, input: Input) {
        self.session.handle(self.now, input);
        let mut publishes = Vec::new();
        while let Some(action) = self.session.poll_action() {
            if let Action::Event(Event::Publish(number, _)) = action {
                publishes.push(number);
            }
        }
        for number in publishes {
            self.session.handle(self.now, Input::Published(number, Published::Accepted));
        }
        while self.session.poll_action().is_some() {}
    }

    /// Offers, withdraws, and says what became of what came.
    fn be_a_host(&mut self, what: u8) {
        let place = |seq| Place { lane: LaneId::Normal, seq: Seq::new(seq) };
        match what % 5 {
            0 => {
                self.offered += 1;
                let message = Message::to("u", "a.b", "x").build().expect("it is within the limits");
                let (attempts, redelivered, reply_within) = (0, false, None);
                let item = Item {
                    place: place(self.offered),
                    accepted_at: self.now,
                    attempts,
                    redelivered,
                    reply_within,
                    message,
                };
                self.tell(Input::Offer(vec![item]));
            }
            1 => self.tell(Input::Withdraw(vec![place(self.offered)])),
            _ => {}
        }
        let verdict = match what % 4 {
            0 => Verdict::Nack(None),
            1 => Verdict::Replied(Bytes::from_static(b"y")),
            2 => Verdict::Rejected(Code::Rejected),
            _ => Verdict::Delivered,
        };
        let verdicts =
            self.session.take(3).into_iter().map(|inbound| (inbound.id, verdict.clone())).collect();
        self.tell(Input::Verdicts(verdicts));
    }
}

/// What a session sends now.
fn sent(session: &mut Session) -> impl Iterator<Item = Frame> {
    let mut frames = Vec::new();
    while let Some(action) = session.poll_action() {
        if let Action::Send(_, frame, _) = action {
            frames.push(frame);
        }
    }
    frames.into_iter()
}

fn honest(input: &[u8]) {
    let Some((seed, rest)) = input.split_first_chunk::<8>() else { return };
    let [messages, trouble, steps, ..] = rest else { return };
    let weather = Weather {
        messages: u32::from(*messages % 60) + 1,
        trouble: u64::from(*trouble % 40),
        steps: u32::from(*steps) + 1,
    };
    if let Err(error) = live(u64::from_le_bytes(*seed), weather) {
        panic!("{error}");
    }
}
