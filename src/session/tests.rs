use core::time::Duration;

use bytes::Bytes;

use super::frame::{
    Ack, Capabilities, Codecs, Credentials, Deliver, Frame, Gap, GapReason, Hello, Item, Nack, Place,
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

// ------------------------------------------------------------------------------------------------- handshake, resume

#[test]
fn a_handshake_takes_one_round_trip() {
    let mut pair = Pair::new(SessionConfig::default());
    pair.connect();
    assert_eq!(pair.sends(), ["hello"]);
    pair.carry();
    assert_eq!(pair.sends(), ["welcome"]);
    assert_eq!(opened(&pair.server_events), Some(false));
    pair.carry();
    assert_eq!(opened(&pair.client_events), Some(false));
    assert!(pair.wire.is_empty());
}

#[test]
fn a_quiet_client_resumes_cleanly_with_nothing_replayed_and_no_gap() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [1]);
    pair.clear();
    pair.cut();
    pair.wait(Duration::from_secs(500));
    pair.connect();
    pair.run();
    assert_eq!((opened(&pair.client_events), opened(&pair.server_events)), (Some(true), Some(true)));
    assert!(pair.taken().is_empty());
    assert!(!pair.client_events.iter().any(|event| matches!(event, Event::Gap(..))));
    pair.server(Input::Offer(vec![normal(2)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [2]);
}

#[test]
fn what_was_lost_with_a_connection_is_sent_again_and_what_was_seen_is_not() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    let first = pair.taken();
    pair.server(Input::Offer(vec![normal(2)]));
    // The second one is lost, and so is the verdict on the first.
    pair.client(Input::Verdicts(vec![(first[0].id, Verdict::Delivered)]));
    pair.cut();
    pair.connect();
    pair.run();
    assert_eq!(pair.outcomes(), [(1, Outcome::Delivered)], "the verdict is said again");
    assert_eq!(pair.deliver_all(), [2]);
    assert_eq!(pair.outcomes(), [(2, Outcome::Delivered)]);
}

#[test]
fn an_acceptor_that_restarted_begins_a_new_life_and_no_old_number_means_anything_in_it() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1), normal(2)]));
    pair.run();
    let old = pair.taken();
    pair.cut();
    pair.server = Session::acceptor(pair.config.clone(), StreamId::from_u128(2), user(), device());
    pair.client(Input::Offer(vec![normal(7)]));
    pair.connect();
    pair.run();
    assert_eq!(opened(&pair.client_events), Some(false));
    let returned = Event::Outcomes(vec![(normal(7).place, Outcome::Disconnected)]);
    assert!(pair.client_events.contains(&returned), "{:?}", pair.client_events);
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    // Verdicts of the old life are not taken for verdicts of the new one.
    pair.client(Input::Verdicts(old.into_iter().map(|inbound| (inbound.id, Verdict::Delivered)).collect()));
    pair.wait(Duration::from_secs(1));
    pair.run();
    pair.outcomes();
    assert_eq!(pair.deliver_all(), [1]);
    assert_eq!(pair.outcomes(), [(1, Outcome::Delivered)]);
}

#[test]
fn a_welcome_that_pairs_a_new_epoch_with_an_old_number_is_refused() {
    let mut pair = Pair::open();
    pair.cut();
    let conn = pair.connect();
    let Some((_, _, Frame::Hello(hello))) = pair.wire.pop() else { panic!() };
    pair.server = Session::acceptor(pair.config.clone(), StreamId::from_u128(2), user(), device());
    pair.admit(conn, hello);
    let Some((_, _, Frame::Welcome(welcome))) = pair.wire.pop() else { panic!() };
    let position = super::frame::Position { seen: 1, ..welcome.position };
    pair.client(Input::Frame(conn, Frame::Welcome(Box::new(Welcome { position, ..*welcome }))));
    assert_eq!(violation(&pair.client_events), Some(Code::OutOfOrder));
    assert_eq!(pair.client.connection(), None);
}

#[test]
fn a_takeover_freezes_the_old_connection_before_the_new_one_says_anything() {
    let mut pair = Pair::open();
    let mut other = Session::connector(pair.config.clone(), StreamId::from_u128(5), Some(user()), device());
    other.handle(pair.now, Input::Connected(ConnId(99), Credentials(Bytes::new())));
    let Some(Action::Send(_, Frame::Hello(hello), _)) = other.poll_action() else { panic!() };
    pair.server(Input::Offer(vec![normal(1)]));
    pair.wire.clear();
    pair.admit(ConnId(99), hello);
    let frames: Vec<_> = pair.wire.iter().map(|(conn, _, frame)| (conn.0, frame.name())).collect();
    assert_eq!(frames, [(1, "close"), (99, "welcome")]);
    assert_eq!(pair.disconnects, [(ConnId(1), Code::TakenOver)]);
    assert_eq!(pair.outcomes(), [(1, Outcome::Disconnected)]);
    // What the frozen connection still says is not heard.
    pair.server(Input::Frame(
        ConnId(1),
        Frame::Ack(Ack { ranges: vec![Range { from: 1, to: 9 }], window: None }),
    ));
    assert_eq!(violation(&pair.server_events), None);
    pair.run();
    assert!(pair.client.is_over(), "the one that was taken over does not come back by itself");
}

/// Found by the simulator of servers and clients: the connector was told that it had been taken over, by itself, and gave up.
#[test]
fn a_hello_that_was_held_up_takes_nothing_from_the_newer_connection_of_its_own_client() {
    let mut pair = Pair::new(SessionConfig::default());
    let old = pair.connect();
    let Some((_, _, Frame::Hello(held_up))) = pair.wire.pop() else { panic!() };
    let new = pair.connect();
    pair.run();
    assert_eq!(pair.server.connection(), Some(new));
    pair.clear();
    pair.admit(old, held_up);
    assert_eq!(pair.disconnects, [(old, Code::TransportSwitched)]);
    pair.run();
    assert_eq!((pair.server.connection(), pair.client.connection()), (Some(new), Some(new)));
    assert!(!pair.client_events.iter().any(|event| matches!(event, Event::Lost { .. })));
}

#[test]
fn a_switch_of_transport_loses_and_repeats_nothing() {
    let mut pair = Pair::open();
    pair.server(Input::Offer((1..=5).map(normal).collect()));
    pair.carry();
    pair.connect();
    pair.run();
    assert_eq!(opened(&pair.client_events), Some(true));
    assert_eq!(pair.deliver_all(), [1, 2, 3, 4, 5]);
    assert_eq!(pair.outcomes().len(), 5);
    assert_eq!(pair.server.connection(), Some(ConnId(2)));
}

#[test]
fn a_session_without_a_connection_is_kept_for_a_while_and_then_given_up() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.cut();
    pair.clear();
    pair.wait(Duration::from_secs(599));
    assert!(!pair.server.is_over());
    assert_eq!(pair.server.poll_timeout(), Some(pair.now.after(Duration::from_secs(1))));
    pair.wait(Duration::from_secs(1));
    assert!(pair.server.is_over());
    assert_eq!(pair.outcomes(), [(1, Outcome::Disconnected)]);
}

#[test]
fn volatile_messages_that_did_not_arrive_come_as_a_gap() {
    let mut pair = Pair::open();
    let volatile = |seq| {
        let message = Message::to("alice", "typing", "").durability(Durability::Volatile).build().unwrap();
        of(seq, message)
    };
    pair.server(Input::Offer(vec![normal(1 << 40), volatile(1), volatile(2)]));
    pair.cut();
    pair.connect();
    pair.run();
    assert!(pair.client_events.contains(&Event::Gap(2, GapReason::Volatile)), "{:?}", pair.client_events);
    assert_eq!(pair.deliver_all(), [1 << 40]);
    let mut outcomes = pair.outcomes();
    outcomes.sort_by_key(|(seq, _)| *seq);
    let expected = [(1, Outcome::Unconfirmed), (2, Outcome::Unconfirmed), (1 << 40, Outcome::Delivered)];
    assert_eq!(outcomes, expected);
}

#[test]
fn a_host_can_tell_of_messages_that_will_not_come() {
    let mut pair = Pair::open();
    pair.server(Input::Gap(3, GapReason::Overflow));
    pair.cut();
    pair.server(Input::Gap(2, GapReason::Overflow));
    pair.connect();
    pair.run();
    assert!(pair.client_events.contains(&Event::Gap(5, GapReason::Overflow)), "{:?}", pair.client_events);
}

// --------------------------------------------------------------------------------------------------- order, windows

#[test]
fn what_waits_behind_a_message_that_was_not_taken_goes_back_and_is_not_sent_after_the_nack() {
    let mut config = SessionConfig::default();
    config.window.messages = 1;
    let mut pair = Pair::new(config);
    pair.connect();
    pair.run();
    pair.clear();
    pair.server(Input::Offer([1, 2].map(|seq| item(seq, Priority::Normal, "room")).to_vec()));
    pair.run();
    let first = pair.taken();
    pair.client(Input::Verdicts(vec![(first[0].id, Verdict::Nack(None))]));
    pair.run();
    assert_eq!(pair.outcomes(), [(1, Outcome::Nack(None)), (2, Outcome::Busy(Duration::ZERO))]);
    assert!(pair.taken().is_empty(), "the second one would have come before the first");
}

#[test]
fn what_arrived_behind_a_message_that_was_not_taken_is_refused_even_when_the_peer_has_heard_meanwhile() {
    let mut pair = Pair::open();
    let room = |seq| item(seq, Priority::Normal, "room");
    pair.server(Input::Offer(vec![room(1)]));
    pair.run();
    let first = pair.taken();
    pair.server(Input::Offer(vec![room(2)]));
    pair.run();
    pair.client(Input::Verdicts(vec![(first[0].id, Verdict::Nack(None))]));
    pair.run();
    // Something else says that the nack was heard.
    pair.server(Input::Offer(vec![normal(3)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [3]);
    let outcomes = pair.outcomes();
    assert_eq!(outcomes[..2], [(1, Outcome::Nack(None)), (2, Outcome::Busy(Duration::ZERO))]);
    pair.server(Input::Offer(vec![room(1), room(2)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [1, 2]);
}

#[test]
fn what_was_lost_behind_a_message_that_was_not_taken_is_not_sent_again_before_it() {
    let mut pair = Pair::open();
    let room = |seq| item(seq, Priority::Normal, "room");
    pair.server(Input::Offer(vec![room(1)]));
    pair.run();
    let first = pair.taken();
    // The second one is lost, while the nack of the first is heard.
    pair.server(Input::Offer(vec![room(2)]));
    pair.wire.clear();
    pair.client(Input::Verdicts(vec![(first[0].id, Verdict::Nack(None))]));
    pair.run();
    pair.cut();
    pair.connect();
    pair.run();
    assert!(pair.taken().is_empty());
    assert_eq!(pair.outcomes(), [(1, Outcome::Nack(None)), (2, Outcome::Busy(Duration::ZERO))]);
    assert!(!pair.client_events.iter().any(|event| matches!(event, Event::Gap(..))), "it comes again");
}

#[test]
fn the_window_bounds_what_is_in_flight_and_critical_messages_have_a_reserve() {
    let config = SessionConfig {
        window: Window { messages: 2, bytes: 1 << 20, reserve: 1 },
        max_queue: 2,
        ..SessionConfig::default()
    };
    let mut pair = Pair::new(config);
    pair.connect();
    pair.run();
    pair.clear();
    pair.server(Input::Offer((1..=2).map(normal).collect()));
    pair.server(Input::Offer((3..=6).map(normal).collect()));
    pair.server(Input::Offer(vec![item(7, Priority::Critical, "x")]));
    pair.run();
    let taken: Vec<_> = pair.taken().iter().map(|inbound| inbound.item.place.seq.get()).collect();
    assert_eq!(taken, [1, 2, 7]);
    let busy = Outcome::Busy(Duration::from_millis(500));
    assert_eq!(pair.outcomes(), [(5, busy.clone()), (6, busy)], "two wait, the others go back to the outbox");
}

#[test]
fn a_single_message_of_any_size_fits_into_an_empty_window() {
    let mut config = SessionConfig::default();
    config.window.bytes = 10;
    let mut pair = Pair::new(config);
    pair.connect();
    pair.run();
    let large = |seq| of(seq, Message::to("alice", "a.b", vec![0; 1000]).build().unwrap());
    pair.server(Input::Offer(vec![large(1), large(2)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [1]);
    assert_eq!(pair.deliver_all(), [2]);
    assert_eq!(violation(&pair.client_events), None);
}

#[test]
fn what_never_fits_into_a_frame_of_the_peer_fails_and_does_not_break_the_connection() {
    let mut config = SessionConfig::default();
    config.limits.max_frame = 4096;
    let mut pair = Pair::new(config);
    pair.connect();
    pair.run();
    pair.clear();
    let large = of(1, Message::to("alice", "a.b", vec![0; 5000]).build().unwrap());
    pair.server(Input::Offer(vec![large, normal(2)]));
    pair.run();
    assert_eq!(pair.outcomes(), [(1, Outcome::Nack(None))]);
    assert_eq!(pair.deliver_all(), [2]);
}

#[test]
fn acknowledgements_are_aggregated_and_critical_ones_go_at_once() {
    let mut pair = Pair::open();
    pair.server(Input::Offer((1..=10).map(normal).collect()));
    pair.run();
    let taken = pair.taken();
    for inbound in &taken {
        pair.client(Input::Verdicts(vec![(inbound.id, Verdict::Delivered)]));
    }
    assert!(pair.wire.is_empty(), "they wait for each other");
    assert_eq!(pair.client.poll_timeout(), Some(pair.now.after(Duration::from_millis(20))));
    pair.wait(Duration::from_millis(20));
    assert_eq!(pair.sends(), ["ack"]);
    pair.run();
    pair.server(Input::Offer(vec![item(11, Priority::Critical, "x")]));
    pair.run();
    let taken = pair.taken();
    pair.client(Input::Verdicts(vec![(taken[0].id, Verdict::Delivered)]));
    assert_eq!(pair.sends(), ["ack"]);
}

#[test]
fn messages_linger_for_others_and_critical_ones_take_them_along() {
    let config = SessionConfig { linger: Duration::from_millis(50), ..SessionConfig::default() };
    let mut pair = Pair::new(config);
    pair.connect();
    pair.run();
    pair.server(Input::Offer(vec![normal(1)]));
    assert!(pair.wire.is_empty());
    assert_eq!(pair.server.poll_timeout(), Some(pair.now.after(Duration::from_millis(50))));
    pair.wait(Duration::from_millis(10));
    pair.server(Input::Offer(vec![item(2, Priority::Critical, "x")]));
    assert_eq!(pair.sends(), ["deliver"]);
    pair.run();
    assert_eq!(pair.deliver_all(), [2, 1]);
    pair.server(Input::Offer(vec![normal(3)]));
    pair.wait(Duration::from_millis(50));
    assert_eq!(pair.sends(), ["deliver"]);
}

#[test]
fn a_slow_consumer_is_slowed_then_parked_and_goes_on_when_it_takes_something() {
    let mut pair = Pair::open();
    pair.server(Input::Offer((1..=64).map(normal).collect()));
    pair.server(Input::Offer((65..=70).map(normal).collect()));
    pair.run();
    let taken = pair.taken();
    for _ in 0..6 {
        pair.wait(Duration::from_secs(10));
        pair.run();
    }
    assert!(pair.server_events.contains(&Event::Parked(true)));
    let busy = Outcome::Busy(Duration::from_millis(500));
    assert_eq!(pair.outcomes(), (65..=70).map(|seq| (seq, busy.clone())).collect::<Vec<_>>());
    pair.server(Input::Offer(vec![normal(65)]));
    assert_eq!(pair.outcomes(), [(65, busy)]);
    pair.client(Input::Verdicts(taken.into_iter().map(|inbound| (inbound.id, Verdict::Delivered)).collect()));
    pair.run();
    assert!(pair.server_events.contains(&Event::Parked(false)));
    pair.server(Input::Offer(vec![normal(65)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [65]);
}

#[test]
fn what_goes_to_a_peer_that_does_not_acknowledge_is_unconfirmed() {
    let config = SessionConfig { capabilities: Capabilities::NONE, ..SessionConfig::default() };
    let mut pair = Pair::new(config);
    pair.connect();
    pair.run();
    pair.clear();
    pair.server(Input::Offer(vec![normal(1), normal(2)]));
    assert_eq!(pair.outcomes(), [(1, Outcome::Unconfirmed), (2, Outcome::Unconfirmed)]);
}

// ------------------------------------------------------------------------------- requests, publishes, time, farewells

#[test]
fn a_reply_rides_with_the_acknowledgement_and_survives_a_lost_connection() {
    let mut pair = Pair::open();
    let request = Item { reply_within: Some(Duration::from_secs(5)), ..normal(1) };
    pair.server(Input::Offer(vec![request.clone()]));
    pair.run();
    let taken = pair.taken();
    pair.client(Input::Verdicts(vec![(taken[0].id, Verdict::Replied(Bytes::from_static(b"yes")))]));
    assert_eq!(pair.sends(), ["reply"]);
    pair.cut();
    pair.connect();
    pair.run();
    assert!(pair.server_events.contains(&Event::Reply(request.place, Bytes::from_static(b"yes"))));
    assert_eq!(pair.outcomes(), [(1, Outcome::Delivered)]);
}

#[test]
fn a_request_times_out_while_its_message_is_still_on_its_way() {
    let mut pair = Pair::open();
    let request = Item { reply_within: Some(Duration::from_secs(5)), ..normal(1) };
    pair.server(Input::Offer(vec![request.clone()]));
    pair.run();
    pair.wait(Duration::from_secs(5));
    assert!(pair.server_events.contains(&Event::ReplyTimedOut(request.place)));
    assert_eq!(pair.deliver_all(), [1]);
    assert_eq!(pair.outcomes(), [(1, Outcome::Delivered)]);
}

#[test]
fn an_answer_that_comes_late_is_told_all_the_same() {
    let mut pair = Pair::open();
    let request = Item { reply_within: Some(Duration::from_secs(5)), ..normal(1) };
    pair.server(Input::Offer(vec![request.clone()]));
    pair.run();
    let taken = pair.taken();
    pair.wait(Duration::from_secs(5));
    pair.client(Input::Verdicts(vec![(taken[0].id, Verdict::Replied(Bytes::from_static(b"yes")))]));
    pair.run();
    assert!(pair.server_events.contains(&Event::Reply(request.place, Bytes::from_static(b"yes"))));
}

#[test]
fn a_gap_is_heard_when_it_is_acknowledged_and_told_again_when_its_life_is_over() {
    let mut pair = Pair::open();
    let heard = |pair: &Pair| {
        let heard = pair.server_events.iter().filter_map(|event| match event {
            Event::GapsHeard(heard) => Some(*heard),
            _ => None,
        });
        heard.collect::<Vec<_>>()
    };
    pair.server(Input::Gap(2, GapReason::Expired));
    pair.server(Input::Gap(1, GapReason::Overflow));
    assert!(heard(&pair).is_empty());
    pair.run();
    pair.wait(Duration::from_secs(1));
    pair.run();
    assert_eq!(heard(&pair), [true]);
    pair.server(Input::Gap(1, GapReason::Undeliverable));
    pair.cut();
    pair.wait(pair.config.keep);
    assert_eq!(heard(&pair), [true, false]);
}

#[test]
fn a_device_goes_on_publishing_where_it_was_though_the_host_remembers_nothing() {
    let mut pair = Pair::open();
    let publish = |number| Input::Frame(ConnId(1), Frame::Publish { number, message: normal(1).message });
    pair.server(publish(57));
    pair.server(publish(58));
    let published = |event: &&Event| matches!(event, Event::Publish(..));
    assert_eq!(pair.server_events.iter().filter(published).count(), 2);
    assert_eq!(violation(&pair.server_events), None);
}

/// Found by the simulator of servers and clients: the acceptor took the hole for a lost frame, in every life anew.
#[test]
fn publishes_whose_receipts_overtook_each_other_are_sent_again_with_a_hole() {
    let mut pair = Pair::open();
    for number in 1..=4 {
        pair.client(Input::Publish(number, normal(number).message));
    }
    pair.run();
    for number in [2, 3] {
        pair.server(Input::Published(number, Published::Accepted));
    }
    pair.run();
    pair.cut();
    pair.server = Session::acceptor(pair.config.clone(), StreamId::from_u128(2), user(), device());
    pair.clear();
    pair.connect();
    pair.run();
    assert_eq!(violation(&pair.server_events), None);
    let numbers = pair.server_events.iter().filter_map(|event| match event {
        Event::Publish(number, _) => Some(*number),
        _ => None,
    });
    assert_eq!(numbers.collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn a_publish_is_decided_once_and_its_receipt_survives_a_lost_connection() {
    let mut pair = Pair::open();
    let message = normal(1).message;
    pair.client(Input::Publish(1, message.clone()));
    pair.run();
    assert_eq!(pair.server_events, [Event::Publish(1, message.clone())]);
    pair.server(Input::Published(1, Published::Accepted));
    pair.cut();
    pair.clear();
    pair.connect();
    pair.run();
    assert!(pair.client_events.contains(&Event::Receipt(1, Some(Published::Accepted))));
    assert!(!pair.server_events.iter().any(|event| matches!(event, Event::Publish(..))));
    pair.client(Input::Publish(3, message));
    let refused = Published::Refused(Session::refused(Code::Invalid));
    assert!(pair.client_events.contains(&Event::Receipt(3, Some(refused))), "numbers are consecutive");
}

#[test]
fn an_acceptor_that_takes_no_publishes_is_sent_none() {
    let mut pair = Pair::new(SessionConfig::default());
    pair.client(Input::Publish(1, normal(1).message));
    let config = SessionConfig { capabilities: Capabilities::ACKS, ..SessionConfig::default() };
    pair.server = Session::acceptor(config, StreamId::from_u128(2), user(), device());
    pair.connect();
    pair.run();
    assert!(pair.client_events.contains(&Event::Receipt(1, None)));
    pair.client(Input::Publish(2, normal(2).message));
    let refused = Published::Refused(Session::refused(Code::NotPermitted));
    assert!(pair.client_events.contains(&Event::Receipt(2, Some(refused))));
    assert!(pair.wire.is_empty());
    pair.server(Input::Frame(ConnId(1), Frame::Publish { number: 1, message: normal(1).message }));
    assert_eq!(violation(&pair.server_events), Some(Code::UnexpectedFrame));
}

#[test]
fn a_nack_that_is_said_again_is_heard_once() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1), normal(2)]));
    pair.run();
    let nack = |count, number| {
        Frame::Nack(Nack { count, number, code: Code::Failed, delay: None, text: String::new() })
    };
    for (count, number) in [(1, 1), (2, 2), (1, 1)] {
        pair.server(Input::Frame(ConnId(1), nack(count, number)));
    }
    assert_eq!(pair.outcomes(), [(1, Outcome::Nack(None)), (2, Outcome::Nack(None))]);
    pair.server(Input::Offer(vec![normal(3)]));
    let Some((_, _, Frame::Deliver(deliver))) = pair.wire.pop() else { panic!() };
    assert_eq!(deliver.heard, 2, "it never goes back");
}

#[test]
fn a_request_that_came_back_does_not_time_out() {
    let mut pair = Pair::open();
    let request = Item { reply_within: Some(Duration::from_secs(5)), ..normal(1) };
    pair.server(Input::Offer(vec![request]));
    pair.run();
    let taken = pair.taken();
    pair.client(Input::Verdicts(vec![(taken[0].id, Verdict::Busy(Duration::from_secs(1)))]));
    pair.run();
    pair.wait(Duration::from_secs(6));
    assert!(!pair.server_events.iter().any(|event| matches!(event, Event::ReplyTimedOut(_))));
}

#[test]
fn a_publish_whose_receipt_was_lost_with_the_acceptor_is_not_said_to_be_accepted() {
    let mut pair = Pair::open();
    pair.client(Input::Publish(1, normal(1).message));
    pair.client(Input::Publish(2, normal(2).message));
    pair.cut();
    pair.server = Session::acceptor(pair.config.clone(), StreamId::from_u128(2), user(), device());
    let conn = pair.connect();
    let Some((_, _, Frame::Hello(hello))) = pair.wire.pop() else { panic!() };
    let grant = Grant { published: 1, ..pair.grant() };
    pair.server(Input::Admit { conn, hello, grant });
    pair.clear();
    pair.run();
    assert!(pair.client_events.contains(&Event::Receipt(1, None)));
    assert_eq!(pair.server_events, [Event::Publish(2, normal(2).message)]);
}

#[test]
fn both_ends_find_a_half_open_connection_and_resume_over_the_next() {
    let mut pair = Pair::open();
    for _ in 0..35 {
        pair.wire.clear();
        pair.wait(Duration::from_secs(1));
    }
    let code = |events: &[Event]| {
        events.iter().find_map(|event| match event {
            Event::Lost { code, advice, .. } => Some((*code, *advice)),
            _ => None,
        })
    };
    let expected = Some((Code::HeartbeatTimeout, Advice::Resume));
    assert_eq!((code(&pair.client_events), code(&pair.server_events)), (expected, expected));
    pair.wire.clear();
    pair.clear();
    pair.connect();
    pair.run();
    assert_eq!(opened(&pair.client_events), Some(true));
}

#[test]
fn credentials_are_renewed_on_a_live_session_or_end_it() {
    let mut pair = Pair::new(SessionConfig::default());
    let conn = pair.connect();
    let Some((_, _, Frame::Hello(hello))) = pair.wire.pop() else { panic!() };
    let grant = Grant { expires: Some(pair.now.after(Duration::from_secs(300))), ..pair.grant() };
    pair.server(Input::Admit { conn, hello, grant });
    pair.run();
    for _ in 0..24 {
        pair.wait(Duration::from_secs(10));
        pair.run();
    }
    assert!(pair.client_events.contains(&Event::RenewSoon));
    let newer = Credentials(Bytes::from_static(b"newer"));
    pair.client(Input::Renew(newer.clone()));
    pair.run();
    assert!(pair.server_events.contains(&Event::Authenticate(newer)));
    pair.server(Input::Renewed(Ok(Some(pair.now.after(Duration::from_secs(120))))));
    pair.run();
    for _ in 0..11 {
        pair.wait(Duration::from_secs(10));
        pair.run();
    }
    assert!(pair.server.connection().is_some(), "the old expiry does not count any more");
    pair.wait(Duration::from_secs(10));
    assert!(pair.server.is_over());
    assert_eq!(pair.disconnects, [(conn, Code::SessionExpired)]);
    pair.run();
    assert!(!pair.client.is_over(), "the client waits for credentials");
}

#[test]
fn a_session_that_goes_away_gives_back_what_waits_and_says_when_to_come_back() {
    let mut config = SessionConfig::default();
    config.window.messages = 1;
    let mut pair = Pair::new(config);
    pair.connect();
    pair.run();
    pair.clear();
    pair.server(Input::Offer((1..=3).map(normal).collect()));
    let refused = Refused {
        code: Code::Draining,
        retry_after: Some(Duration::from_secs(7)),
        text: "deploying".to_owned(),
    };
    pair.server(Input::GoAway(refused.clone()));
    pair.run();
    assert!(pair.client_events.contains(&Event::GoingAway(refused)));
    let busy = Outcome::Busy(Duration::from_millis(500));
    assert_eq!(pair.outcomes(), [(2, busy.clone()), (3, busy)]);
    assert_eq!(pair.deliver_all(), [1], "what is in flight is finished");
}

#[test]
fn floors_are_told_at_once_and_again_after_a_reconnect() {
    let mut pair = Pair::open();
    let place = Place { lane: LaneId::Normal, seq: Seq::new(9) };
    pair.server(Input::Floor(place));
    pair.server(Input::Floor(Place { seq: Seq::new(8), ..place }));
    pair.cut();
    pair.connect();
    pair.run();
    let told: Vec<_> = pair.client_events.iter().filter(|event| matches!(event, Event::Floor(..))).collect();
    assert_eq!(told, [&Event::Floor(StreamId::from_u128(2), place)]);
    pair.server(Input::Offer(vec![normal(10)]));
    pair.run();
    assert_eq!(pair.taken()[0].floor, Seq::new(9));
}

// ------------------------------------------------------------------------------------------------------- violations

fn broken(frame: Frame) -> (Pair, Option<Code>) {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    pair.client.take(1);
    pair.server(Input::Frame(ConnId(1), frame));
    let code = violation(&pair.server_events);
    (pair, code)
}

#[test]
fn every_violation_has_a_code_of_its_own_and_closes_the_connection() {
    let range = |from, to| Range { from, to };
    let deliver = |first, base, heard| Frame::Deliver(Deliver { first, base, heard, items: vec![normal(1)] });
    let nack = |count, number| Nack { count, number, code: Code::Failed, delay: None, text: String::new() };
    let gap = Gap { range: range(1, 1 << 50), base: 1, heard: 0, missing: 1, reason: GapReason::Expired };
    let hello = Frame::Hello(Box::new(hello(Codecs::BINARY)));
    let cases = [
        (hello, Code::ReplayedHello),
        (deliver(2, 1, 0), Code::OutOfOrder),
        (deliver(1, 2, 0), Code::OutOfOrder),
        (deliver(1, 1, 1), Code::AckOfUnsent),
        (Frame::Gap(gap), Code::WindowExceeded),
        (Frame::Ack(Ack { ranges: vec![range(1, 2)], window: None }), Code::AckOfUnsent),
        (Frame::Nack(nack(1, 2)), Code::AckOfUnsent),
        (Frame::Nack(nack(2, 1)), Code::AckOfUnsent),
        (Frame::Progress(range(2, 2)), Code::AckOfUnsent),
        (Frame::Reply { number: 2, payload: Bytes::new() }, Code::AckOfUnsent),
        (Frame::Receipt { number: 1, outcome: Published::Accepted }, Code::UnexpectedFrame),
        (Frame::Reject(Session::refused(Code::Overloaded)), Code::UnexpectedFrame),
        (Frame::Renewed { expires_in: None }, Code::UnexpectedFrame),
    ];
    for (frame, expected) in cases {
        let name = frame.name();
        let (pair, code) = broken(frame);
        assert_eq!(code, Some(expected), "{name}");
        assert_eq!(pair.server.connection(), None);
        assert_eq!(pair.disconnects, [(ConnId(1), expected)], "{name}");
        assert!(matches!(pair.wire.last(), Some((_, _, Frame::Close(why))) if why.code == expected));
        assert!(
            pair.server_events.iter().any(|event| matches!(event, Event::Outcomes(outcomes)
            if outcomes == &[(normal(1).place, Outcome::Disconnected)])),
            "{name}: nothing is lost"
        );
    }
}

#[test]
fn more_than_the_window_allows_is_a_violation() {
    let config = SessionConfig {
        window: Window { messages: 2, bytes: 1 << 20, reserve: 0 },
        ..SessionConfig::default()
    };
    let mut pair = Pair::new(config);
    pair.connect();
    pair.run();
    let items = (1..=3).map(normal).collect();
    pair.client(Input::Frame(ConnId(1), Frame::Deliver(Deliver { first: 1, base: 1, heard: 0, items })));
    assert_eq!(violation(&pair.client_events), Some(Code::WindowExceeded));
}

#[test]
fn garbage_closes_its_own_connection_and_no_other() {
    let mut pair = Pair::open();
    let error = super::frame::decode(&Bytes::from_static(b"\xffoops"), &pair.config.limits).unwrap_err();
    pair.server(Input::Garbage(ConnId(7), error.clone()));
    assert!(pair.server.connection().is_some());
    pair.server(Input::Garbage(ConnId(1), error));
    assert_eq!(violation(&pair.server_events), Some(Code::Malformed));
}

fn hello(codecs: Codecs) -> Hello {
    Hello {
        versions: (1, 1),
        codecs,
        user: None,
        device: device(),
        credentials: Credentials(Bytes::new()),
        stream: StreamId::from_u128(1),
        resume: None,
        capabilities: Capabilities::ACKS,
        horizon: Duration::ZERO,
        window: SessionConfig::default().window,
        heartbeat: Duration::from_secs(25),
        max_frame: 1 << 20,
    }
}

#[test]
fn a_greeter_takes_one_hello_and_names_what_is_wrong_with_others() {
    let config = SessionConfig::default();
    let greet = |frame| Greeter::new(at(0), &config).first(frame, &config);
    let code = |greeted: Greeted| match greeted {
        Greeted::Reject(Frame::Reject(refused)) => Some(refused.code),
        _ => None,
    };
    let fine = Frame::Hello(Box::new(hello(Codecs::BINARY)));
    let mut greeter = Greeter::new(at(0), &config);
    assert!(matches!(greeter.first(Ok(fine.clone()), &config), Greeted::Authenticate(_)));
    assert_eq!(code(greeter.first(Ok(fine), &config)), Some(Code::ReplayedHello));
    let none = Hello { codecs: Codecs::BINARY.and(Codecs::JSON), ..hello(Codecs::BINARY) };
    assert_eq!(code(greet(Ok(Frame::Hello(Box::new(none))))), Some(Code::UnsupportedCodec));
    let long = Hello { horizon: Duration::from_secs(3601), ..hello(Codecs::BINARY) };
    assert_eq!(code(greet(Ok(Frame::Hello(Box::new(long))))), Some(Code::HorizonTooLong));
    assert_eq!(code(greet(Ok(Frame::Pong { nonce: 1 }))), Some(Code::UnexpectedFrame));
    let error = super::frame::DecodeError::UnsupportedVersion { oldest: 2, newest: 3 };
    assert_eq!(code(greet(Err(error))), Some(Code::UnsupportedVersion));
    let greeter = Greeter::new(at(0), &config);
    assert_eq!((greeter.deadline(), code(greeter.timed_out())), (at(10_000), Some(Code::HandshakeTimeout)));
}

#[test]
fn an_idle_session_is_small() {
    let size = core::mem::size_of::<Session>();
    assert!(size <= 2048, "{size} bytes");
}
