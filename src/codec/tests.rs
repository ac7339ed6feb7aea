use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::id::{MessageId, StreamId, UserId};
use crate::message::{Durability, MAX_HEADERS, Message, Priority};
use crate::record::{
    Admission, Burial, DependentRow, Epoch, Gap, InboxRow, LaneId, LedgerRow, LedgerRows, NewestRow, Origin,
    Parent, ParentEnd, Told, UserRow,
};
use crate::status::EndReason;
use crate::time::Timestamp;

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn message() -> Message {
    builder().build().unwrap()
}

fn builder() -> crate::MessageBuilder {
    Message::to("alice", "chat.message", "hello")
        .id(MessageId::from_u128(0x0192_f3a0_7c1e_7000_8000_0000_0000_0001))
        .sender("bob")
        .ordering_key("room/1")
        .priority(Priority::High)
        .durability(Durability::Buffered)
        .ttl(core::time::Duration::from_secs(60))
        .traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("type", "text/plain")
        .header("empty", "")
}

fn samples() -> Vec<(&'static str, Record)> {
    let (user, lane, seq) = (user("alice"), LaneId::Low, Seq::new(7 << 40 | 9));
    let origin = Some(Origin { stream: StreamId::from_u128(u128::MAX), seq });
    let at = Timestamp::from_millis(1_700_000_000_000);
    let reason = EndReason::Expired;
    let accept = |message, admission| {
        Record::Accept(Arc::new(Accept { message, at, origin: None, admission, parent: None }))
    };
    let scheduled = builder().not_before(at.after(core::time::Duration::from_secs(3600))).build().unwrap();
    let collapsing = builder().collapse_key("order/7").version(41).not_before(at).build().unwrap();
    let after = builder().after(MessageId::from_u128(77), crate::Otherwise::Cancel).not_before(at);
    let after = after.build().unwrap();
    let waiting = |admission| {
        let (origin, parent) = (None, Some(Parent { lane: LaneId::High, seq }));
        Record::Accept(Arc::new(Accept { message: after.clone(), at, origin, admission, parent }))
    };
    let burial = Burial { reason: EndReason::Dead, attempts: 20, possibly_delivered: true, at };
    vec![
        ("accept", Record::Accept(Arc::new(Accept { origin, ..Accept::new(message(), at) }))),
        ("moved", accept(message(), Admission::Moved)),
        ("scheduled", accept(scheduled.clone(), Admission::New)),
        ("scheduled-moved", accept(scheduled, Admission::Moved)),
        ("collapsing", accept(collapsing, Admission::New)),
        ("waiting", waiting(Admission::New)),
        ("waiting-moved", waiting(Admission::Moved)),
        ("buried", accept(message(), Admission::Buried(burial))),
        ("requeued", accept(message(), Admission::Requeued { possibly_delivered: true })),
        (
            "end",
            Record::End(End {
                upgrades: Some(EndReason::Expired),
                user: user.clone(),
                lane,
                seq,
                id: Some(MessageId::from_u128(9)),
                reason,
                possibly_delivered: true,
                attempts: 3,
                cost: 300,
                at,
            }),
        ),
        ("attempt", Record::Attempt(Attempt { user: user.clone(), lane, seq, attempts: 2, not_before: at })),
        ("exposed", Record::Exposed(Exposed { user: user.clone(), epoch: Epoch(5) })),
        ("told", Record::Told(Told { user: user.clone(), gap: gap(lane) })),
        ("floor", Record::Floor(Floor { user, stream: StreamId::from_u128(4), lane, floor: seq })),
    ]
}

fn gap(lane: LaneId) -> Gap {
    Gap { lane, first: Seq::new(17), last: Seq::new(19), expired: 3, dead: 0, evicted: u32::MAX }
}

fn group(records: &[(&str, Record)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    records.iter().for_each(|(_, record)| encode_record(record, &mut bytes));
    bytes
}

fn decode_one(bytes: &[u8]) -> Result<Record, CodecError> {
    decode_records(1, bytes).next().unwrap()
}

/// A record that is not sealed, without its length.
fn decode_bare(bytes: &[u8]) -> Result<Record, CodecError> {
    decode_plain_or_sealed(bytes, &Cipher::plain(), None).map(|(record, _)| record)
}

#[test]
fn records_round_trip_in_a_group() {
    let bytes = group(&samples());
    let decoded: Vec<Record> = decode_records(samples().len() as u32, &bytes).map(Result::unwrap).collect();
    assert_eq!(decoded, samples().into_iter().map(|(_, record)| record).collect::<Vec<_>>());
}

#[test]
fn bytes_are_those_of_the_golden_files() {
    for (name, record) in samples() {
        let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden", &format!("record-{name}.v1.bin")]
            .iter()
            .collect();
        let bytes = group(&[(name, record.clone())]);
        if std::env::var_os("LASTMILE_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let golden = std::fs::read(&path).unwrap();
        assert_eq!(bytes, golden, "{name} is written in another way than version 1 says");
        assert_eq!(decode_one(&golden), Ok(record));
    }
}

#[test]
fn unknown_kinds_and_newer_versions_are_named() {
    for kind in [0, 6, 16, 17, 21, 27, 32, 34, 37, 48, 49, 53, 54, 57, 59, 255] {
        let bytes = [2, 0, 0, 0, kind, 1];
        assert_eq!(decode_one(&bytes), Err(CodecError::UnknownKind { kind }));
        assert!(decode_one(&bytes).unwrap_err().is_too_new());
    }
    let mut bytes = group(&samples()[..1]);
    bytes[5] = 2;
    assert_eq!(decode_one(&bytes), Err(CodecError::NewerVersion { kind: 1, found: 2 }));
}

#[test]
fn every_truncation_and_a_longer_record_are_refused() {
    for (_, record) in samples() {
        let bytes = group(&[("", record)]);
        for len in 0..bytes.len() {
            assert!(decode_one(&bytes[..len]).is_err());
            let mut short = bytes[..len].to_vec();
            if len >= 4 {
                short[..4].copy_from_slice(&(len as u32 - 4).to_le_bytes());
                assert!(decode_one(&short).is_err(), "{len} bytes were taken");
            }
        }
        let mut long = bytes.clone();
        long.push(0);
        let len = (long.len() as u32 - 4).to_le_bytes();
        assert!(decode_records(1, &long).any(|record| record.is_err()));
        long[..4].copy_from_slice(&len);
        assert_eq!(decode_one(&long), Err(CodecError::Trailing { bytes: 1 }));
    }
}

#[test]
fn damage_to_one_record_spares_the_others() {
    let mut bytes = group(&samples());
    bytes[4 + 2 + 20] ^= 0x80;
    let results: Vec<_> = decode_records(samples().len() as u32, &bytes).collect();
    assert_eq!(results.len(), samples().len());
    assert!(results[1..].iter().all(Result::is_ok));
}

/// A step of `SplitMix64`: the same garbage in every run.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 29)
}

#[test]
fn garbage_is_an_error_and_never_a_panic() {
    let mut seed = 1;
    let valid = group(&samples());
    for _ in 0..20_000 {
        let mut bytes = valid.clone();
        for _ in 0..=next(&mut seed) % 4 {
            let at = next(&mut seed) as usize % bytes.len();
            bytes[at] = next(&mut seed) as u8;
        }
        bytes.truncate(next(&mut seed) as usize % (bytes.len() + 1));
        decode_records(next(&mut seed) as u32 % 8, &bytes).for_each(drop);
        let _ = (decode_row(&bytes), decode_accept(&bytes));
        decode_dedup(&bytes).for_each(drop);
        for kind in [1, 2, 3, 4, 5, 18, 19, 20, 23, 24, 25, 33, 50, 51, 52, 55, 56] {
            let body: Vec<u8> = (0..next(&mut seed) % 64).map(|_| next(&mut seed) as u8).collect();
            let _ = decode_bare(&[&[kind, 1][..], &body].concat());
        }
    }
}

#[test]
fn lengths_of_terabytes_are_refused() {
    // 252 and 253 stand before an integer of four and of eight bytes.
    for len in [[253, 255, 255, 255, 255, 255, 15, 0, 0], [252, 255, 255, 255, 0, 0, 0, 0, 0]] {
        for kind in [1, 2, 3, 4, 5, 18, 19, 20, 23, 24, 25, 33, 50, 51, 52, 55, 56] {
            assert!(decode_bare(&[&[kind, 1][..], &len].concat()).is_err());
            assert!(decode_bare(&[&[kind, 1, 1][..], &len].concat()).is_err());
        }
        assert!(decode_row(&[&[1, 0, 0, 0][..], &len].concat()).is_err());
    }
}

#[test]
fn messages_that_cannot_be_built_are_refused() {
    let accept = |event: &'static str, headers| {
        let blob = Blob(b"x");
        let out = (1_u128, blob, event, None::<Blob<'_>>, None::<Blob<'_>>, Priority::Low);
        let out = (out, Durability::Synced, Some(0_u64), None::<&str>, headers, blob, 1_u64, None::<Origin>);
        let mut bytes = vec![ACCEPT, RECORD_VERSION];
        encode_value(&out, &mut bytes);
        decode_bare(&bytes)
    };
    assert!(matches!(accept("a.b", Vec::new()), Err(CodecError::Message(_))));
    assert!(matches!(accept("A", Vec::new()), Err(CodecError::Body(_))));
    assert!(matches!(accept("a.b", vec![("", ""); MAX_HEADERS + 1]), Err(CodecError::Body(_))));
}

#[test]
fn rows_round_trip() {
    let mut row = UserRow { reflects: Seq::MAX, exposed: Epoch::MAX, ..UserRow::default() };
    for (n, lane) in (1..).zip(&mut row.lanes) {
        lane.cursor = Seq::new(n);
        lane.ended = (0..n * 100).map(Seq::new).collect();
        lane.attempts = vec![(Seq::new(n), 3, Timestamp::NEVER)];
    }
    let inbox = InboxRow {
        stream: StreamId::from_u128(9),
        lane: LaneId::High,
        floor: Seq::new(3),
        seen: vec![Seq::new(5), Seq::MAX],
    };
    row.inbox = vec![inbox.clone(), InboxRow { seen: Vec::new(), ..inbox }];
    let ended = |id, reason| LedgerRow {
        id,
        ended: Seq::MAX,
        lane: LaneId::Scheduled,
        place: Seq::new(8),
        reason,
        possibly_delivered: id.is_none(),
        attempts: 7,
        at: Timestamp::NEVER,
    };
    let kept = EndReason::ALL
        .into_iter()
        .flat_map(|reason| [None, Some(MessageId::from_u128(u128::MAX))].map(|id| ended(id, reason)));
    let gaps = vec![gap(LaneId::High), gap(LaneId::Scheduled)];
    row.ledger = LedgerRows { rows: kept.collect(), forgotten: Seq::new(4), gaps };
    let key = NewestRow {
        key: 5,
        lane: LaneId::Low,
        seq: Seq::new(6),
        id: MessageId::from_u128(u128::MAX - 1),
        cost: 7,
        version: u64::MAX,
    };
    row.newest = vec![key];
    let mut bytes = Vec::new();
    encode_row(&row, &mut bytes);
    assert_eq!((bytes[0], decode_row(&bytes)), (1, Ok(row.clone())));
    let parent = Parent { lane: LaneId::Low, seq: Seq::new(7) };
    let dependent = |ended| DependentRow { seq: Seq::MAX, parent, ended };
    let ends = [None, Some(ParentEnd::Delivered), Some(ParentEnd::Otherwise)];
    row.dependents = ends.into_iter().map(dependent).collect();
    bytes.clear();
    encode_row(&row, &mut bytes);
    assert_eq!((bytes[0], decode_row(&bytes)), (2, Ok(row)));
    for len in 0..bytes.len() {
        assert!(decode_row(&bytes[..len]).is_err());
    }
}
