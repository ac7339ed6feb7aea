//! What sessions cost: encoding and decoding a frame with one message, messages from end to end over a transport in memory
//! (beside a bare channel of the same bytes), and the memory of an idle session, alone and with its task.
//!
//! ```console
//! cargo bench --bench session --features json [-- --quick]
//! ```

#[path = "support/peers.rs"]
mod peers;
mod support;

use std::hint::black_box;

use bytes::Bytes;
use clap::Parser;
use lastmile::record::{LaneId, Seq};
use lastmile::session::frame::{
    Codec, Credentials, Deliver, Frame, Item, Limits, Place, Token, decode, encode,
};
use lastmile::session::{Action, ConnId, Grant, Input, Session, SessionConfig};
use lastmile::{Message, MessageId, StreamId, Timestamp};
use peak_alloc::PeakAlloc;

use self::support::{Options, median, rate, short, time};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let (bytes, rounds) = options.pick((256_usize << 20, 5), (8 << 20, 1));
    println!("{:<34}{:>14}{:>14}{:>14}", "one message a frame", "frame bytes", "encode/s", "decode/s");
    for size in [64, 1024, 65_536] {
        let frames = (bytes / (size + 1024)).min(400_000);
        for (what, payload) in payloads(size) {
            for codec in [Codec::Binary, Codec::Json] {
                codec_row(
                    &format!("{size} B {what}, {codec:?}"),
                    &deliver(&payload)?,
                    codec,
                    frames,
                    rounds,
                )?;
            }
        }
    }
    idle(options.pick(10_000, 1_000))?;
    peers::idle_tasks(options.pick(10_000, 500), || HEAP.current_usage())?;
    let (messages, rounds) = options.pick((100_000, 5), (2_000, 1));
    peers::end_to_end(messages, rounds)
}

/// Text, which JSON takes as it is, and bytes, which it takes as base64.
fn payloads(size: usize) -> [(&'static str, Bytes); 2] {
    let bytes = (0..size).map(|i| (i as u8).wrapping_mul(37) | 0x80).collect::<Vec<_>>();
    [("text", vec![b'x'; size].into()), ("bytes", bytes.into())]
}

fn deliver(payload: &Bytes) -> Result<Frame, Box<dyn std::error::Error>> {
    let message = Message::to("user-1234", "chat.message", payload.clone())
        .id(MessageId::from_u128(7))
        .sender("user-77")
        .ordering_key("room-5")
        .build()?;
    let item = Item {
        place: Place { lane: LaneId::Normal, seq: Seq::new((3 << Seq::EPOCH_SHIFT) + 77) },
        accepted_at: Timestamp::from_millis(1_767_225_600_000),
        attempts: 0,
        redelivered: false,
        reply_within: None,
        message,
    };
    Ok(Frame::Deliver(Deliver { first: 1000, base: 990, heard: 2, items: vec![item] }))
}

fn codec_row(
    name: &str,
    frame: &Frame,
    codec: Codec,
    frames: usize,
    rounds: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut wire = Vec::new();
    encode(frame, codec, &mut wire);
    let wire = Bytes::from(wire);
    assert_eq!(&decode(&wire, &Limits::default())?, frame);
    let (mut encoding, mut decoding) = (Vec::new(), Vec::new());
    let mut out = Vec::with_capacity(wire.len());
    for _ in 0..rounds {
        let ((), took) = time(|| {
            for _ in 0..frames {
                out.clear();
                encode(black_box(frame), codec, &mut out);
            }
        });
        encoding.push(rate(frames, took));
        let ((), took) = time(|| {
            for _ in 0..frames {
                black_box(decode(black_box(&wire), &Limits::default()).expect("it was decoded before"));
            }
        });
        decoding.push(rate(frames, took));
    }
    let (encoding, decoding) = (short(median(encoding)), short(median(decoding)));
    println!("{name:<34}{:>14}{encoding:>14}{decoding:>14}", wire.len());
    Ok(())
}

/// Opens so many acceptors' sessions, each with a connection, and prints what each holds.
fn idle(count: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut sessions = Vec::with_capacity(count);
    let before = HEAP.current_usage();
    for n in 0..count {
        sessions.push(Box::new(open(n as u64)?));
    }
    let each = (HEAP.current_usage() - before) / count;
    println!("{count} idle sessions: {each} bytes each");
    drop(sessions);
    Ok(())
}

/// A hello as it is on the wire.
pub(crate) fn hello(n: u64) -> Result<Bytes, Box<dyn std::error::Error>> {
    let user = format!("user-{n}").try_into()?;
    let mut client =
        Session::connector(SessionConfig::default(), StreamId::from_u128(1), Some(user), "phone".try_into()?);
    client.handle(Timestamp::from_millis(1), Input::Connected(ConnId(n), Credentials(Bytes::new())));
    let Some(Action::Send(_, frame, codec)) = client.poll_action() else {
        return Err("a connector says hello".into());
    };
    let mut bytes = Vec::new();
    encode(&frame, codec, &mut bytes);
    Ok(bytes.into())
}

fn open(n: u64) -> Result<Session, Box<dyn std::error::Error>> {
    let (config, now, conn) = (SessionConfig::default(), Timestamp::from_millis(1), ConnId(n));
    let (user, device) = (format!("user-{n}").try_into()?, "phone".try_into()?);
    let mut client = Session::connector(config.clone(), StreamId::from_u128(1), None, "phone".try_into()?);
    client.handle(now, Input::Connected(conn, Credentials(Bytes::new())));
    let Some(Action::Send(_, Frame::Hello(hello), _)) = client.poll_action() else {
        return Err("a connector says hello".into());
    };
    let mut session = Session::acceptor(config, StreamId::from_u128(2), user, device);
    let user = format!("user-{n}").try_into()?;
    let grant = Grant { user, expires: None, token: Token::from_u128(n.into()), epoch: 1, published: 0 };
    session.handle(now, Input::Admit { conn, hello, grant });
    while session.poll_action().is_some() {}
    Ok(session)
}
