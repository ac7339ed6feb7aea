//! Whoever breaks the protocol is told what to do, and nobody else notices.
#![cfg(all(feature = "runtime", feature = "testing"))]

#[path = "session/support.rs"]
mod support;

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lastmile::ports::{ConnectError, Connector, FrameReader, FrameWriter, Transport};
use lastmile::session::frame::{
    Ack, Capabilities, Codec, Codecs, Credentials, Frame, Hello, Limits, Range, Refused, Window, decode,
    encode,
};
use lastmile::session::{AdmissionConfig, Code, Rate, SessionConfig};
use lastmile::{
    Acceptor, ClientState, Engine, MemoryReader, MemoryTransport, MemoryWriter, Reached, Stage, StreamId,
    memory_transport, storage::MemoryStore,
};

use support::{ByName, LONG, Server, client, message};

/// A peer that says whatever a test wants.
struct Raw {
    reader: MemoryReader,
    writer: MemoryWriter,
}

impl Raw {
    fn connect(acceptor: &Acceptor, address: &str) -> Self {
        let (ours, theirs) = memory_transport();
        acceptor.accept(theirs, "raw", address);
        let (reader, writer) = ours.split();
        Self { reader, writer }
    }

    async fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        encode(frame, Codec::Binary, &mut bytes);
        self.say_bytes(bytes.into()).await;
    }

    async fn say_bytes(&mut self, bytes: Bytes) {
        self.writer.write(vec![bytes]).await.unwrap();
    }

    /// The next frame; none at the end.
    async fn hear(&mut self) -> Option<Frame> {
        let read = tokio::time::timeout(LONG, self.reader.read()).await.expect("nothing was said");
        read.unwrap().map(|bytes| decode(&bytes, &Limits::default()).unwrap())
    }

    /// What the connection ends with, whatever comes before.
    async fn ends(&mut self) -> Option<Code> {
        let mut code = None;
        while let Some(frame) = self.hear().await {
            if let Frame::Reject(refused) | Frame::Close(refused) = frame {
                code = Some(refused.code);
            }
        }
        code
    }
}

fn hello(user: &str) -> Hello {
    Hello {
        versions: (1, 1),
        codecs: Codecs::BINARY,
        user: Some(user.try_into().unwrap()),
        device: "raw".try_into().unwrap(),
        credentials: Credentials(Bytes::new()),
        stream: StreamId::from_u128(9),
        resume: None,
        capabilities: Capabilities::ACKS.or(Capabilities::PUBLISH),
        horizon: Duration::ZERO,
        window: Window { messages: 8, bytes: 1 << 20, reserve: 1 },
        heartbeat: Duration::from_secs(25),
        max_frame: 1 << 20,
    }
}

fn said(hello: Hello) -> Frame {
    Frame::Hello(Box::new(hello))
}

fn long_frames() -> SessionConfig {
    let mut config = SessionConfig::default();
    config.limits = Limits { max_frame: 64 << 10, max_items: 256 };
    config.max_reply_bytes = 16 << 10;
    config
}

/// Somebody else's session goes on before, during and after.
async fn others_are_untouched(server: &Server) {
    let alice = client("alice", server).build().unwrap();
    let _screen = support::screen(&alice);
    let receipt = server.engine.send(message("alice", "hello")).await.unwrap();
    let reached = tokio::time::timeout(LONG, receipt.reached(Stage::Delivered)).await.unwrap();
    assert_eq!(reached, Ok(Reached::Stage(Stage::Delivered)));
}

#[tokio::test]
async fn each_bad_hello_is_rejected_with_a_code_of_its_own() {
    let mut unsupported = Vec::new();
    encode(&said(Hello { versions: (7, 9), ..hello("mallory") }), Codec::Binary, &mut unsupported);
    let mut early = Vec::new();
    encode(&Frame::Pong { nonce: 1 }, Codec::Binary, &mut early);
    let mut horizon = Vec::new();
    let too_long = Hello { horizon: Duration::from_secs(90_000), ..hello("mallory") };
    encode(&said(too_long), Codec::Binary, &mut horizon);
    let cases: [(Vec<u8>, Code); 5] = [
        (unsupported, Code::UnsupportedVersion),
        (early, Code::UnexpectedFrame),
        (horizon, Code::HorizonTooLong),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Code::Malformed),
        (vec![1; 65 << 10], Code::FrameTooLarge),
    ];
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let acceptor = Acceptor::builder(engine.clone(), ByName).session(long_frames()).build().unwrap();
    let server = Server { engine, acceptor };
    for (i, (bytes, code)) in cases.into_iter().enumerate() {
        let mut raw = Raw::connect(&server.acceptor, &format!("address {i}"));
        raw.say_bytes(bytes.into()).await;
        assert_eq!(raw.ends().await, Some(code));
    }
    assert_eq!(server.acceptor.stats().rejected, 5);
    assert_eq!(server.acceptor.stats().sessions, 0);
    others_are_untouched(&server).await;
}

#[tokio::test]
async fn each_violation_of_an_open_session_closes_it_with_a_code_of_its_own_and_no_other() {
    let server = Server::new();
    let ack = Frame::Ack(Ack { ranges: vec![Range { from: 1, to: 3 }], window: None });
    let cases = [
        (said(hello("mallory")), Code::ReplayedHello),
        (ack, Code::AckOfUnsent),
        (Frame::Renewed { expires_in: None }, Code::UnexpectedFrame),
    ];
    for (i, (frame, code)) in cases.into_iter().enumerate() {
        let mut raw = Raw::connect(&server.acceptor, &format!("address {i}"));
        raw.say(&said(hello("mallory"))).await;
        assert!(matches!(raw.hear().await, Some(Frame::Welcome(_))));
        raw.say(&frame).await;
        assert_eq!(raw.ends().await, Some(code));
    }
    assert_eq!(server.acceptor.stats().violations, 3);
    others_are_untouched(&server).await;
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_else_out_and_push_nobodys_slot_back() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let mut admission = AdmissionConfig::default();
    admission.max_handshakes = NonZeroU32::new(3).unwrap();
    // A slot for every token that is taken in advance would be an hour away.
    admission.global = Rate { every: Duration::from_secs(3600), burst: 2 };
    let acceptor =
        Acceptor::builder(engine.clone(), ByName).admission(admission).max_handshakes(5).build().unwrap();
    let server = Server { engine, acceptor };
    let mut silent: Vec<_> = (0..3).map(|_| Raw::connect(&server.acceptor, "one place")).collect();
    // More of that place are turned away, each in its own codec, and take nothing from anybody.
    for _ in 0..20 {
        let mut more = Raw::connect(&server.acceptor, "one place");
        more.say(&said(hello("mallory"))).await;
        let Some(Frame::Reject(refused)) = more.hear().await else { panic!("it is refused") };
        assert_eq!(refused.code, Code::RateLimited);
        let after = refused.retry_after.unwrap();
        assert!((5..=30).contains(&after.as_secs()), "{after:?}");
    }
    let mut honest = Raw::connect(&server.acceptor, "another place");
    honest.say(&said(hello("bob"))).await;
    assert!(matches!(honest.hear().await, Some(Frame::Welcome(_))));
    // Nor do those of many places, when there are too many of them.
    silent.extend((0..2).map(|n| Raw::connect(&server.acceptor, &format!("place {n}"))));
    let mut more = Raw::connect(&server.acceptor, "one more place");
    more.say(&said(hello("mallory"))).await;
    let Some(Frame::Reject(refused)) = more.hear().await else { panic!("it is refused") };
    assert_eq!(refused.code, Code::Overloaded);
    // The hello that ends a handshake makes room for another.
    silent[0].say(&Frame::Pong { nonce: 1 }).await;
    assert_eq!(silent[0].ends().await, Some(Code::UnexpectedFrame));
    others_are_untouched(&server).await;
}

#[cfg(feature = "json")]
#[tokio::test]
async fn whoever_is_turned_away_is_told_so_in_the_codec_of_their_hello() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let acceptor = Acceptor::builder(engine, ByName).max_handshakes(1).build().unwrap();
    let _silent = Raw::connect(&acceptor, "here");
    let mut raw = Raw::connect(&acceptor, "there");
    let mut bytes = Vec::new();
    encode(&said(hello("mallory")), Codec::Json, &mut bytes);
    raw.say_bytes(bytes.into()).await;
    let read = tokio::time::timeout(LONG, raw.reader.read()).await.expect("an answer").unwrap().unwrap();
    assert_eq!(read.first(), Some(&b'{'), "{read:?}");
}

#[tokio::test]
async fn there_are_never_more_sessions_than_are_allowed_however_many_come_at_once() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let acceptor = Acceptor::builder(engine, ByName).max_sessions(4).build().unwrap();
    let mut raws = Vec::new();
    for n in 0..32 {
        let mut raw = Raw::connect(&acceptor, &format!("place {n}"));
        raw.say(&said(hello(&format!("user {n}")))).await;
        raws.push(raw);
    }
    let (mut welcome, mut refused) = (0, 0);
    for raw in &mut raws {
        match raw.hear().await {
            Some(Frame::Welcome(_)) => welcome += 1,
            Some(Frame::Reject(why)) => {
                assert_eq!(why.code, Code::Overloaded);
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((welcome, refused, acceptor.stats().sessions), (4, 28, 4));
}

/// A message that a peer delivers under this number.
fn delivered(first: u64, count: u64) -> Frame {
    use lastmile::record::{LaneId, Seq};
    use lastmile::session::frame::{Deliver, Item, Place};
    let item = |n: u64| Item {
        place: Place { lane: LaneId::Normal, seq: Seq::new((1 << Seq::EPOCH_SHIFT) + n) },
        accepted_at: lastmile::Timestamp::from_millis(1),
        attempts: 0,
        redelivered: false,
        reply_within: None,
        message: message("bob", &n.to_string()),
    };
    Frame::Deliver(Deliver { first, base: 1, heard: 0, items: (first..first + count).map(item).collect() })
}

#[tokio::test]
async fn frames_out_of_order_and_more_than_the_window_end_the_session_and_no_other() {
    let mut config = SessionConfig::default();
    config.window = Window { messages: 4, bytes: 1 << 20, reserve: 0 };
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let acceptor = Acceptor::builder(engine.clone(), ByName).session(config).build().unwrap();
    let server = Server { engine, acceptor };
    let cases = [(delivered(2, 1), Code::OutOfOrder), (delivered(1, 5), Code::WindowExceeded)];
    for (i, (frame, code)) in cases.into_iter().enumerate() {
        let mut raw = Raw::connect(&server.acceptor, &format!("address {i}"));
        raw.say(&said(hello("mallory"))).await;
        assert!(matches!(raw.hear().await, Some(Frame::Welcome(_))));
        raw.say(&frame).await;
        assert_eq!(raw.ends().await, Some(code), "{i}");
    }
    assert_eq!(server.acceptor.stats().violations, 2);
    others_are_untouched(&server).await;
}

/// Tokens have a date.
struct Dated;

impl lastmile::ports::Authenticator for Dated {
    async fn authenticate(
        &self,
        claim: lastmile::ports::Claim,
    ) -> Result<lastmile::ports::Identity, lastmile::ports::Denied> {
        match (claim.user, claim.credentials.0.as_ref()) {
            (Some(_), b"token of yesterday") => Err(lastmile::ports::Denied::expired("it expired yesterday")),
            (Some(user), _) => Ok(lastmile::ports::Identity::new(user)),
            (None, _) => Err(lastmile::ports::Denied::refused("no name")),
        }
    }
}

/// A server that says nothing but this.
struct Refuses(Refused, Mutex<Vec<MemoryReader>>);

impl Connector for Refuses {
    type Transport = MemoryTransport;

    fn name(&self) -> &'static str {
        "refusing"
    }

    async fn connect(&self) -> Result<MemoryTransport, ConnectError> {
        let (ours, theirs) = memory_transport();
        let (reader, mut writer) = theirs.split();
        let mut bytes = Vec::new();
        encode(&Frame::Reject(self.0.clone()), Codec::Binary, &mut bytes);
        writer.write(vec![bytes.into()]).await.unwrap();
        writer.close(self.0.code).await;
        self.1.lock().unwrap().push(reader);
        Ok(ours)
    }
}

/// What a peer shows at first, and what it is refused with.
fn bad_beginnings() -> [(Vec<u8>, Code, &'static str); 4] {
    let bytes = |hello| {
        let mut bytes = Vec::new();
        encode(&said(hello), Codec::Binary, &mut bytes);
        bytes
    };
    let expired = Credentials("token of yesterday".into());
    [
        (bytes(Hello { versions: (7, 9), ..hello("mallory") }), Code::UnsupportedVersion, "7"),
        (vec![1; 65 << 10], Code::FrameTooLarge, "over the limit of 65536"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Code::Malformed, "no frame is called 71"),
        (
            bytes(Hello { credentials: expired, ..hello("mallory") }),
            Code::SessionExpired,
            "it expired yesterday",
        ),
    ]
}

/// What a peer that was let in says, and what its session is closed with.
fn violations() -> [(Frame, Code, &'static str); 3] {
    let ack = Frame::Ack(Ack { ranges: vec![Range { from: 1, to: 3 }], window: None });
    [
        (said(hello("somebody")), Code::ReplayedHello, "hello"),
        (delivered(2, 1), Code::OutOfOrder, "deliver"),
        (ack, Code::AckOfUnsent, "ack"),
    ]
}

#[tokio::test]
async fn each_refusal_is_in_the_log_of_both_ends_with_what_to_do() {
    // For all threads: one of a single thread can miss what another one traced first.
    let traced = Traced::default();
    tracing::subscriber::set_global_default(traced.clone()).expect("the only one of this process");
    let line = |parts: &[&str]| {
        let log = traced.0.lock().unwrap().clone();
        let found = log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "no line has {parts:?}: {log}");
        assert!(!log.contains("token of yesterday"), "what was shown is in no log: {log}");
    };
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let acceptor = Acceptor::builder(engine.clone(), Dated).build().unwrap();
    let server = Server { engine, acceptor };
    for (i, (bytes, code, why)) in bad_beginnings().into_iter().enumerate() {
        let address = format!("place {i} of the log");
        let mut raw = Raw::connect(&server.acceptor, &address);
        raw.say_bytes(bytes.into()).await;
        assert_eq!(raw.ends().await, Some(code));
        let code = code.to_string();
        line(&["WARN", "a connection was refused", &address, &code, why]);
    }
    assert_eq!(server.acceptor.stats().sessions, 0, "nobody was let in with the expired token");
    for (i, (frame, code, what)) in violations().into_iter().enumerate() {
        let user = format!("disorderly {i}");
        let mut raw = Raw::connect(&server.acceptor, &format!("another place {i}"));
        raw.say(&said(hello(&user))).await;
        assert!(matches!(raw.hear().await, Some(Frame::Welcome(_))));
        raw.say(&frame).await;
        assert_eq!(raw.ends().await, Some(code));
        let (user, number) = (format!("user={user} device=raw"), code.number().to_string());
        line(&["WARN", "a peer broke the protocol", &user, &number, what, code.text()]);
    }
    let codes = bad_beginnings().map(|(_, code, _)| code).into_iter();
    for code in codes.chain(violations().map(|(_, code, _)| code)) {
        let refused =
            Refused { code, retry_after: None, text: format!("so says the server: {}", code.number()) };
        let (user, said) = (format!("refused {}", code.number()), refused.text.clone());
        let refuses = Refuses(refused, Mutex::default());
        let client = support::lonely(&user).connector(refuses).build().unwrap();
        let mut watch = client.watch();
        let told = watch.wait_for(|state| match state {
            ClientState::Offline { why, .. } | ClientState::NeedsCredentials { why } => *why == Some(code),
            ClientState::Closed { why } => *why == code,
            _ => false,
        });
        tokio::time::timeout(LONG, told).await.expect("it hears of it").unwrap();
        let level = if code == Code::SessionExpired { "INFO" } else { "WARN" };
        line(&[level, &user, "refusing", &code.to_string(), &said]);
    }
    others_are_untouched(&server).await;
}

/// Everything that is traced in this process.
#[derive(Clone, Default)]
struct Traced(Arc<Mutex<String>>);

struct Fields<'a>(&'a mut String);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl tracing::Subscriber for Traced {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
        tracing::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut log = self.0.lock().unwrap();
        write!(log, "\n{}", event.metadata().level()).unwrap();
        event.record(&mut Fields(&mut log));
    }

    fn enter(&self, _: &tracing::Id) {}

    fn exit(&self, _: &tracing::Id) {}
}

#[tokio::test]
async fn a_frame_during_the_authentication_is_a_violation() {
    struct Never;
    impl lastmile::ports::Authenticator for Never {
        async fn authenticate(
            &self,
            _claim: lastmile::ports::Claim,
        ) -> Result<lastmile::ports::Identity, lastmile::ports::Denied> {
            std::future::pending().await
        }
    }
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let mut config = SessionConfig::default();
    config.handshake_timeout = Duration::from_secs(3);
    let acceptor = Acceptor::builder(engine, Never).session(config).build().unwrap();
    let mut raw = Raw::connect(&acceptor, "here");
    raw.say(&said(hello("mallory"))).await;
    raw.say(&said(hello("mallory"))).await;
    assert_eq!(raw.ends().await, Some(Code::ReplayedHello));
    let mut patient = Raw::connect(&acceptor, "there");
    patient.say(&said(hello("alice"))).await;
    let Some(Frame::Reject(refused)) = patient.hear().await else { panic!("it is refused") };
    assert_eq!(
        refused.code,
        Code::Overloaded,
        "an authenticator that never answers is no fault of a transport"
    );
    assert!(refused.retry_after.is_some() && refused.text.contains("authenticator"), "{refused:?}");
    let mut silent = Raw::connect(&acceptor, "there");
    assert_eq!(silent.ends().await, Some(Code::HandshakeTimeout), "a hello that never comes");
}

#[tokio::test]
async fn an_authenticator_that_panics_refuses_one_connection() {
    struct Panics;
    impl lastmile::ports::Authenticator for Panics {
        async fn authenticate(
            &self,
            claim: lastmile::ports::Claim,
        ) -> Result<lastmile::ports::Identity, lastmile::ports::Denied> {
            let user = claim.user.unwrap();
            assert_ne!(user.as_bytes(), b"mallory");
            Ok(lastmile::ports::Identity::new(user))
        }
    }
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let acceptor = Acceptor::builder(engine.clone(), Panics).build().unwrap();
    let mut raw = Raw::connect(&acceptor, "here");
    raw.say(&said(hello("mallory"))).await;
    assert_eq!(raw.ends().await, Some(Code::Overloaded));
    others_are_untouched(&Server { engine, acceptor }).await;
}

#[tokio::test]
async fn repeated_failures_cost_their_address_a_penalty_and_no_other_one() {
    let server = Server::new();
    let mut codes = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::connect(&server.acceptor, "a bad place");
        raw.say(&said(hello("mallory"))).await;
        if let Some(Frame::Reject(refused)) = raw.hear().await {
            codes.push(refused.code);
            assert!(refused.retry_after.is_some());
            continue;
        }
        raw.say_bytes(Bytes::from_static(b"garbage")).await;
        codes.extend(raw.ends().await);
    }
    assert_eq!(codes, [Code::Malformed, Code::Penalised]);
    others_are_untouched(&server).await;
}

#[tokio::test]
async fn a_device_publishes_in_its_users_name_and_hears_when_it_is_durable() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let permit = |peer: &lastmile::Peer, message: &lastmile::Message| {
        assert_eq!(message.sender(), Some(&peer.user));
        if message.recipient().as_bytes() == b"boss" { Err(Code::NotPermitted) } else { Ok(()) }
    };
    let acceptor = Acceptor::builder(engine.clone(), ByName).permit(permit).build().unwrap();
    let server = Server { engine, acceptor };
    let mut raw = Raw::connect(&server.acceptor, "here");
    raw.say(&said(hello("mallory"))).await;
    assert!(matches!(raw.hear().await, Some(Frame::Welcome(_))));
    let forged = |to: &str| lastmile::Message::to(to, "chat.message", "hi").sender("alice").build().unwrap();
    raw.say(&Frame::Publish { number: 1, message: forged("bob") }).await;
    raw.say(&Frame::Publish { number: 2, message: forged("boss") }).await;
    let mut outcomes = std::collections::BTreeMap::new();
    while outcomes.len() < 2 {
        if let Some(Frame::Receipt { number, outcome }) = raw.hear().await {
            outcomes.insert(number, outcome);
        }
    }
    assert_eq!(outcomes[&1], lastmile::session::frame::Published::Accepted);
    assert!(
        matches!(&outcomes[&2], lastmile::session::frame::Published::Refused(r) if r.code == Code::NotPermitted)
    );
    let bob = client("bob", &server).build().unwrap();
    let screen = support::screen(&bob);
    assert_eq!(support::texts(&screen, 1).await, [("hi".to_owned(), "mallory".to_owned())]);
}

#[tokio::test]
async fn nobody_can_speak_of_another_ones_places() {
    use lastmile::record::{LaneId, Seq};
    use lastmile::session::frame::{Deliver, Item, Place};
    let server = Server::new();
    let stream = StreamId::from_u128(77);
    let seq = Seq::new((1 << Seq::EPOCH_SHIFT) + 1);
    let place = Place { lane: LaneId::Normal, seq };
    for user in ["mallory", "alice"] {
        let mut raw = Raw::connect(&server.acceptor, user);
        raw.say(&said(Hello { stream, ..hello(user) })).await;
        assert!(matches!(raw.hear().await, Some(Frame::Welcome(_))));
        let message = message("bob", user);
        let accepted_at = lastmile::Timestamp::from_millis(1);
        let item = Item { place, accepted_at, attempts: 0, redelivered: false, reply_within: None, message };
        raw.say(&Frame::Deliver(Deliver { first: 1, base: 1, heard: 0, items: vec![item] })).await;
        while !matches!(raw.hear().await, Some(Frame::Ack(_))) {}
    }
    let bob = client("bob", &server).build().unwrap();
    let screen = support::screen(&bob);
    let mut texts: Vec<_> = support::texts(&screen, 2).await.into_iter().map(|(text, _)| text).collect();
    texts.sort();
    assert_eq!(texts, ["alice", "mallory"], "the same place of the same stream, and both arrive");
}
