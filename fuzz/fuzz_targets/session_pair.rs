//! Hostile frames never make a session panic, and an honest pair in any weather loses, repeats and inverts nothing.
#![no_main]

use std::time::Duration;

use bytes::Bytes;
use lastmile::session::frame::{Credentials, Limits, decode};
use lastmile::session::{ConnId, Input, Session, SessionConfig, Verdict};
use lastmile::testing::pair::{Weather, live};
use lastmile::{DeviceId, StreamId, Timestamp, UserId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [kind, rest @ ..] = input else { return };
    match kind % 2 {
        0 => hostile(rest),
        _ => honest(rest),
    }
});

/// Frames from the input, each behind its length, at a connector that does what a host does.
fn hostile(mut input: &[u8]) {
    let device = DeviceId::new("d").expect("one byte is a device id");
    let user = UserId::new("u").expect("one byte is a user id");
    let mut session =
        Session::connector(SessionConfig::default(), StreamId::from_u128(1), Some(user), device);
    let mut now = Timestamp::from_millis(1);
    let mut conns = 0;
    while let [len, rest @ ..] = input {
        let (frame, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        input = rest;
        if session.connection().is_none() {
            conns += 1;
            session.handle(now, Input::Connected(ConnId(conns), Credentials(Bytes::new())));
        }
        let event = match decode(&Bytes::copy_from_slice(frame), &Limits::default()) {
            Ok(frame) => Input::Frame(ConnId(conns), frame),
            Err(error) => Input::Garbage(ConnId(conns), error),
        };
        session.handle(now, event);
        while session.poll_action().is_some() {}
        let verdicts = session.take(3).into_iter().map(|inbound| (inbound.id, Verdict::Delivered)).collect();
        session.handle(now, Input::Verdicts(verdicts));
        while session.poll_action().is_some() {}
        now = now.after(Duration::from_millis(u64::from(*len)));
    }
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
