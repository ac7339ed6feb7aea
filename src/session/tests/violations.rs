//! Peers that break the protocol.

use super::*;

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
    let gap = Gap { range: range(1, 1 << 50), base: 1, heard: 0, missed: Missed::new(1, GapReason::Expired) };
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
    let error =
        crate::session::frame::decode(&Bytes::from_static(b"\xffoops"), &pair.config.limits).unwrap_err();
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
    let error = crate::session::frame::DecodeError::UnsupportedVersion { oldest: 2, newest: 3 };
    assert_eq!(code(greet(Err(error))), Some(Code::UnsupportedVersion));
    let narrow = Hello { max_frame: (16 << 10) - 1, ..hello(Codecs::BINARY) };
    assert_eq!(code(greet(Ok(Frame::Hello(Box::new(narrow))))), Some(Code::FrameTooLarge));
    let least = Hello { max_frame: 16 << 10, ..hello(Codecs::BINARY) };
    assert_eq!(code(greet(Ok(Frame::Hello(Box::new(least))))), None);
    // Whoever is not known yet has no megabyte of memory.
    let long = crate::session::frame::decode(&Bytes::from(vec![1; 65 << 10]), &Greeter::limits(&config));
    assert_eq!(code(greet(long)), Some(Code::FrameTooLarge));
    let slow = "the authenticator, and no transport, is to blame once the hello has come";
    assert_eq!(code(greeter.timed_out()), Some(Code::Overloaded), "{slow}");
    let greeter = Greeter::new(at(0), &config);
    assert_eq!((greeter.deadline(), code(greeter.timed_out())), (at(10_000), Some(Code::HandshakeTimeout)));
}
