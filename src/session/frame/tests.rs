use core::time::Duration;

use super::*;
use crate::id::MessageId;
use crate::message::{Otherwise, Priority};

pub(in crate::session) fn message(payload: impl Into<Bytes>) -> Message {
    Message::to("alice", "chat.message", payload)
        .id(MessageId::from_u128(0x0192_f3a0_7c1e_7000_8000_0000_0000_0001))
        .sender("bob")
        .priority(Priority::High)
        .build()
        .unwrap()
}

fn item(seq: u64, payload: &'static [u8]) -> Item {
    Item {
        place: Place { lane: LaneId::High, seq: Seq::new(seq) },
        accepted_at: Timestamp::from_millis(1_700_000_000_000),
        attempts: 1,
        redelivered: true,
        reply_within: Some(Duration::from_secs(5)),
        message: message(payload),
    }
}

fn refused() -> Refused {
    Refused {
        code: Code::Overloaded,
        retry_after: Some(Duration::from_millis(1500)),
        text: "busy".to_owned(),
    }
}

/// One of each, with every field in use.
fn every_frame() -> Vec<Frame> {
    let window = Window { messages: 64, bytes: 1 << 20, reserve: 8 };
    let position = Position { epoch: u64::MAX, seen: 41, base: 7 };
    let full = Message::to([0xff, 0].as_slice(), "a.b", vec![0xfe, 0xff])
        .id(MessageId::from_u128(1))
        .ordering_key("room")
        .ttl(Duration::from_secs(1))
        .collapse_key("k")
        .version(u64::MAX)
        .traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("h", vec![0xff])
        .header("quoted \"", "x\n")
        .build()
        .unwrap();
    let dependent = Message::to("alice", "a.b", "x").after(MessageId::from_u128(5), Otherwise::Cancel);
    let dependent = dependent.build().unwrap();
    vec![
        Frame::Hello(Box::new(Hello {
            versions: (1, 3),
            codecs: Codecs::BINARY,
            user: Some("alice".try_into().unwrap()),
            device: "phone".try_into().unwrap(),
            credentials: Credentials(Bytes::from_static(b"secret")),
            stream: StreamId::from_u128(3),
            resume: Some((Token::from_u128(u128::MAX), position)),
            capabilities: Capabilities::ACKS.or(Capabilities::REPLIES),
            horizon: Duration::from_secs(3600),
            window,
            heartbeat: Duration::from_secs(25),
            max_frame: 1 << 20,
        })),
        Frame::Welcome(Box::new(Welcome {
            version: 1,
            codec: Codec::Binary,
            user: "alice".try_into().unwrap(),
            stream: StreamId::from_u128(4),
            token: Token::from_u128(9),
            position,
            resumed: true,
            capabilities: Capabilities::ACKS,
            window,
            heartbeat: Duration::from_secs(25),
            timeout: Duration::from_secs(10),
            max_frame: 65_536,
            expires_in: Some(Duration::from_secs(900)),
            published: 3,
        })),
        Frame::Reject(refused()),
        Frame::Deliver(Deliver {
            first: 5,
            base: 3,
            heard: 1,
            items: vec![item(1 << 40, b"hi"), item(u64::MAX, b"{\"a\": [1, \"x\"]}"), item(7, b"\xff\x00")],
        }),
        Frame::Ack(Ack {
            ranges: vec![Range { from: 1, to: 4 }, Range { from: 6, to: 6 }],
            window: Some(window),
        }),
        Frame::Nack(Nack {
            count: 2,
            number: 5,
            code: Code::Failed,
            delay: Some(Duration::from_secs(1)),
            text: "handler failed".to_owned(),
        }),
        Frame::Progress(Range { from: 5, to: 5 }),
        Frame::Withdraw(Range { from: 6, to: 7 }),
        Frame::Publish { number: 12, message: full },
        Frame::Publish { number: 13, message: dependent },
        Frame::Receipt { number: 12, outcome: Published::Accepted },
        Frame::Receipt { number: 13, outcome: Published::Refused(refused()) },
        Frame::Reply { number: 5, payload: Bytes::from_static(b"[1]") },
        Frame::Floor(Place { lane: LaneId::Low, seq: Seq::new(99) }),
        Frame::Ping { nonce: 300, rtt: Some(Duration::from_millis(42)) },
        Frame::Pong { nonce: 300 },
        Frame::Gap(Gap {
            range: Range { from: 6, to: 8 },
            base: 3,
            heard: 1,
            missed: Missed::new(3, GapReason::Volatile),
        }),
        Frame::Gap(Gap {
            range: Range { from: 9, to: 9 },
            base: 3,
            heard: 1,
            missed: Missed::new(3, GapReason::Expired).between(LaneId::High, Seq::new(17), Seq::new(19)),
        }),
        Frame::GoAway(refused()),
        Frame::Close(Refused { code: Code::Done, retry_after: None, text: String::new() }),
        Frame::Renew(Credentials(Bytes::from_static(b"newer"))),
        Frame::Renewed { expires_in: Some(Duration::from_secs(900)) },
        Frame::Renewed { expires_in: None },
    ]
}

fn codecs() -> Vec<Codec> {
    vec![
        Codec::Binary,
        #[cfg(feature = "json")]
        Codec::Json,
    ]
}

fn bytes(frame: &Frame, codec: Codec) -> Bytes {
    let mut out = Vec::new();
    encode(frame, codec, &mut out);
    Bytes::from(out)
}

#[test]
fn every_frame_survives_both_codecs() {
    for codec in codecs() {
        for frame in every_frame() {
            let bytes = bytes(&frame, codec);
            assert_eq!(decode(&bytes, &Limits::default()).as_ref(), Ok(&frame), "{codec:?} {bytes:?}");
        }
    }
}

#[test]
fn a_gap_of_every_reason_survives_both_codecs() {
    for reason in GapReason::ALL {
        let gap = Frame::Gap(Gap {
            range: Range { from: 1, to: 1 },
            base: 1,
            heard: 0,
            missed: Missed::new(2, reason),
        });
        for codec in codecs() {
            let bytes = bytes(&gap, codec);
            assert_eq!(decode(&bytes, &Limits::default()).as_ref(), Ok(&gap), "{codec:?} {bytes:?}");
            #[cfg(feature = "json")]
            if codec == Codec::Json {
                let text = core::str::from_utf8(&bytes).unwrap();
                assert!(text.contains(reason.as_str()), "{text}");
            }
        }
    }
}

#[test]
fn what_is_cut_off_is_an_error_and_never_a_panic() {
    for codec in codecs() {
        for frame in every_frame() {
            let whole = bytes(&frame, codec);
            for len in 0..whole.len() {
                assert!(
                    decode(&whole.slice(..len), &Limits::default()).is_err(),
                    "{codec:?} {frame:?} {len}"
                );
            }
            let longer = Bytes::from([whole.as_ref(), b"x"].concat());
            assert!(decode(&longer, &Limits::default()).is_err(), "{codec:?} {frame:?}");
        }
    }
}

#[test]
fn binary_frames_have_these_bytes() {
    let deliver = Frame::Deliver(Deliver { first: 300, base: 2, heard: 0, items: vec![item(7, b"hi")] });
    let hex: String = bytes(&deliver, Codec::Binary).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = concat!(
        "04",
        "ac02",
        "02",
        "00",
        "01", // deliver, first, base, heard, one item
        "07",
        "80d095ffbc31",
        "01",
        "01",
        "01",
        "8827", // seq, accepted, attempts, redelivered, reply within
        "0192f3a07c1e70008000000000000001",
        "05",
        "616c696365", // id, to
        "0c",
        "636861742e6d657373616765",
        "01",
        "03",
        "626f62", // event, from
        "00",
        "01",
        "00",
        "00",
        "00",
        "00",
        "00",
        "00",
        "00", // key, priority, durability, ttl … traceparent
        "00",
        "02",
        "6869" // headers, payload
    );
    assert_eq!(hex, expected);
}

#[test]
fn a_decoded_payload_is_a_slice_of_its_frame() {
    for codec in codecs() {
        for payload in [&b"plain text"[..], b"{\"json\":[1,2]}"] {
            let frame = Frame::Publish { number: 1, message: message(payload.to_vec()) };
            let bytes = bytes(&frame, codec);
            let Ok(Frame::Publish { message, .. }) = decode(&bytes, &Limits::default()) else { panic!() };
            let (start, at) = (bytes.as_ptr() as usize, message.payload().as_ptr() as usize);
            assert!((start..start + bytes.len()).contains(&at), "{codec:?} copied {payload:?}");
            assert_eq!(message.payload(), payload);
        }
    }
}

#[test]
fn limits_hold_at_the_limit_and_one_beyond() {
    let frame = |items: usize| {
        let items = (0..items).map(|n| item(n as u64, b"x")).collect();
        Frame::Deliver(Deliver { first: 1, base: 1, heard: 0, items })
    };
    for codec in codecs() {
        let limits = Limits { max_items: 3, ..Limits::default() };
        assert!(decode(&bytes(&frame(3), codec), &limits).is_ok());
        let error = decode(&bytes(&frame(4), codec), &limits).unwrap_err();
        assert_eq!(error, DecodeError::TooMany { field: "items", found: 4, max: 3 });
        assert_eq!(error.code(), Code::FrameTooLarge);
        let whole = bytes(&frame(1), codec);
        assert!(decode(&whole, &Limits { max_frame: whole.len(), ..limits }).is_ok());
        let error = decode(&whole, &Limits { max_frame: whole.len() - 1, ..limits }).unwrap_err();
        assert_eq!(error.code(), Code::FrameTooLarge);
        assert!(decode(&bytes(&frame(0), codec), &limits).is_err(), "an empty deliver is none");
    }
}

#[test]
fn a_hello_of_another_version_is_told_apart_from_garbage() {
    // Only the versions are read: the rest of a future hello may be anything.
    let error = decode(&Bytes::from_static(&[1, 2, 9, 0xff, 0xff]), &Limits::default()).unwrap_err();
    assert_eq!(error, DecodeError::UnsupportedVersion { oldest: 2, newest: 9 });
    assert_eq!(error.code(), Code::UnsupportedVersion);
    let error = decode(&Bytes::from_static(&[0x99, 1]), &Limits::default()).unwrap_err();
    assert_eq!(error.code(), Code::Malformed);
    assert_eq!(decode(&Bytes::new(), &Limits::default()).unwrap_err().code(), Code::Malformed);
}

#[test]
fn numbers_have_one_form_and_ranges_are_in_order() {
    let decode = |bytes: &'static [u8]| decode(&Bytes::from_static(bytes), &Limits::default());
    assert_eq!(decode(&[13, 7]), Ok(Frame::Pong { nonce: 7 }));
    assert_eq!(decode(&[13, 0x87, 0]), Err(DecodeError::Field { field: "nonce" }));
    assert_eq!(decode(&[7, 5, 4]), Err(DecodeError::Field { field: "to" }));
    assert_eq!(decode(&[7, 0, 4]), Err(DecodeError::Field { field: "to" }));
    assert_eq!(decode(&[5, 2, 1, 4, 4, 5, 0]), Err(DecodeError::Field { field: "ranges" }));
}

#[test]
fn secrets_and_bodies_are_not_shown() {
    for frame in every_frame() {
        let shown = format!("{frame:?}");
        assert!(!shown.contains("secret") && !shown.contains("newer") && !shown.contains("340282366920938"));
    }
}

#[cfg(feature = "json")]
#[test]
fn json_takes_fields_in_any_order_ignores_unknown_ones_and_refuses_repeated_ones() {
    let decode = |text: &'static str| decode(&Bytes::from_static(text.as_bytes()), &Limits::default());
    assert_eq!(decode(r#"{"later":{"x":[1]},"nonce":7,"frame":"pong"}"#), Ok(Frame::Pong { nonce: 7 }));
    assert!(matches!(decode(r#"{"frame":"pong","nonce":7,"nonce":8}"#), Err(DecodeError::Json(_))));
    assert!(decode(r#"{"frame":"pong","nonce":9007199254740992}"#).is_err());
    assert!(matches!(decode(r#"{"frame":"nap"}"#), Err(DecodeError::UnknownFrame(_))));
    let deep = format!("{{\"x\":{}", "[".repeat(100_000));
    assert!(super::decode(&Bytes::from(deep), &Limits::default()).is_err());
}

#[cfg(feature = "json")]
#[test]
fn json_frames_have_this_text() {
    let text = bytes(&Frame::Ping { nonce: 7, rtt: None }, Codec::Json);
    assert_eq!(text, r#"{"frame":"ping","nonce":7}"#);
    let deliver = Frame::Deliver(Deliver { first: 1, base: 1, heard: 0, items: vec![item(7, b"{\"a\":1}")] });
    let expected = concat!(
        r#"{"frame":"deliver","first":1,"base":1,"heard":0,"items":[{"seq":"7","accepted_at":1700000000000,"#,
        r#""attempts":1,"redelivered":true,"reply_within_ms":5000,"id":"0192f3a07c1e70008000000000000001","#,
        r#""to":"alice","event":"chat.message","from":"bob","priority":"high","durability":"synced","headers":[],"#,
        r#""payload":{"json":{"a":1}}}]}"#
    );
    assert_eq!(bytes(&deliver, Codec::Json), expected);
}

#[cfg(feature = "json")]
#[test]
fn json_text_means_what_serde_json_says_it_means() {
    let strings = [
        r#""""#,
        r#""plain""#,
        r#""\" \\ \/ \b \f \n \r \t""#,
        r#""\u0041\u00e9\u20ac""#,
        r#""a\ud83d\ude00b""#,
        r#""\uD83D\uDE00""#,
        r#""\u0000""#,
        r#""é\\é""#,
        // Halves of pairs, and what looks like the other half.
        r#""\ud83d""#,
        r#""\ud83dx""#,
        r#""\ud83d\n""#,
        r#""\ud83d\u0041""#,
        r#""\ude00\ud83d""#,
    ];
    for raw in strings {
        let theirs = serde_json::from_str::<String>(raw).ok();
        let frame = format!(r#"{{"frame":"renew","credentials":{raw}}}"#);
        let ours = match decode(&Bytes::from(frame), &Limits::default()) {
            Ok(Frame::Renew(credentials)) => Some(String::from_utf8(credentials.0.to_vec()).unwrap()),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        };
        assert_eq!(ours, theirs, "{raw}");
        // The same as the name of a field that nobody knows.
        let frame = format!(r#"{{"frame":"pong",{raw}:1,"nonce":1}}"#);
        assert_eq!(decode(&Bytes::from(frame), &Limits::default()).is_ok(), theirs.is_some(), "{raw}");
    }
    let twice = Bytes::from(r#"{"frame":"pong","nonce":1,"\u006eonce":1}"#);
    assert!(decode(&twice, &Limits::default()).is_err(), "the same name in other letters");
}
