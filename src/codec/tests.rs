use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::digest::Digester;
use crate::id::{MessageId, StreamId, UserId};
use crate::message::{Durability, MAX_HEADERS, Message, Priority};
use crate::record::{
    Accept, Admission, Attempt, Burial, Copies, DependentRow, DeviceChange, DeviceEvent, DeviceInfo,
    DeviceRow, End, Epoch, Exposed, Floor, ForDevice, Gap, InboxRow, LaneId, LaneRow, LedgerRow, LedgerRows,
    NewestRow, Origin, Parent, ParentEnd, ReadMark, ReadRow, Record, Seq, Slot, Slots, Told, UserRow,
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
    let accept =
        |message, admission| Record::Accept(Arc::new(Accept { admission, ..Accept::new(message, at) }));
    let scheduled = builder().not_before(at.after(core::time::Duration::from_secs(3600))).build().unwrap();
    let collapsing = builder().collapse_key("order/7").version(41).not_before(at).build().unwrap();
    let after = builder().after(MessageId::from_u128(77), crate::Otherwise::Cancel).not_before(at);
    let after = after.build().unwrap();
    let waiting = |admission| {
        let parent = Some(Parent::at(LaneId::High, seq));
        Record::Accept(Arc::new(Accept { admission, parent, ..Accept::new(after.clone(), at) }))
    };
    let change = DeviceChange {
        user: user.clone(),
        slot: Slot::new(31).unwrap(),
        device: crate::DeviceId::new("phone").unwrap(),
        event: DeviceEvent::Exposed(Epoch(5)),
        at,
    };
    let device = Some(ForDevice {
        slot: Slot::new(3).unwrap(),
        among: Slots::from_bits(0x8000_0009),
        rings: true,
        is_copy: true,
        stride: 2,
    });
    let later = builder().devices(crate::DevicePolicy::RingAll).not_before(at).build().unwrap();
    let copies =
        Some(Copies { among: Slots::from_bits(0x8000_0009), left: Slots::from_bits(0x8000_0001), stride: 2 });
    let for_copies = Accept {
        parent: Some(Parent {
            copies,
            ..Parent::at(LaneId::Device(Slot::new(3).unwrap(), Priority::Low), seq)
        }),
        ..Accept::new(after.with_devices(crate::DevicePolicy::EveryDevice), at)
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
        ("waiting-for-copies", Record::Accept(Arc::new(for_copies))),
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
        ("device", Record::Device(change)),
        (
            "read",
            Record::Read(crate::record::Read { user: user.clone(), conversation: u128::MAX, up_to: seq, at }),
        ),
        ("for-device", Record::Accept(Arc::new(Accept { device, ..Accept::new(message(), at) }))),
        ("for-devices-later", accept(later, Admission::New)),
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
    for kind in [0, 6, 17, 28, 32, 34, 37, 48, 49, 53, 54, 57, 59, 255] {
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
        decode_dedup(&bytes, Digester::new(1)).for_each(drop);
        for kind in [1, 2, 3, 4, 5, 16, 18, 19, 20, 23, 24, 25, 27, 33, 50, 51, 52, 55, 56] {
            let body: Vec<u8> = (0..next(&mut seed) % 64).map(|_| next(&mut seed) as u8).collect();
            let _ = decode_bare(&[&[kind, 1][..], &body].concat());
        }
    }
}

#[test]
fn lengths_of_terabytes_are_refused() {
    // 252 and 253 stand before an integer of four and of eight bytes.
    for len in [[253, 255, 255, 255, 255, 255, 15, 0, 0], [252, 255, 255, 255, 0, 0, 0, 0, 0]] {
        for kind in [1, 2, 3, 4, 5, 16, 18, 19, 20, 23, 24, 25, 27, 33, 50, 51, 52, 55, 56] {
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
    let lost = EndReason::ALL.into_iter().filter(|reason| *reason != EndReason::Elsewhere);
    let kept =
        lost.flat_map(|reason| [None, Some(MessageId::from_u128(u128::MAX))].map(|id| ended(id, reason)));
    let elsewhere = vec![ended(Some(MessageId::from_u128(5)), EndReason::Elsewhere)];
    let gaps = vec![gap(LaneId::High), gap(LaneId::Scheduled)];
    row.ledger = LedgerRows { rows: kept.collect(), forgotten: Seq::new(4), gaps, ..LedgerRows::default() };
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
    let parent = Parent::at(LaneId::Low, Seq::new(7));
    let dependent = |ended| DependentRow { seq: Seq::MAX, parent, ended };
    let ends = [None, Some(ParentEnd::Delivered), Some(ParentEnd::Otherwise)];
    row.dependents = ends.into_iter().map(dependent).collect();
    bytes.clear();
    encode_row(&row, &mut bytes);
    assert_eq!((bytes[0], decode_row(&bytes)), (2, Ok(row.clone())));
    for len in 0..bytes.len() {
        assert!(decode_row(&bytes[..len]).is_err());
    }
    // As older versions wrote them.
    let mut older = row.clone();
    older.ledger.rows.splice(2..2, elsewhere.clone());
    bytes.clear();
    encode_row(&older, &mut bytes);
    row.ledger.elsewhere = elsewhere;
    assert_eq!((bytes[0], decode_row(&bytes)), (2, Ok(row.clone())));
    for forgotten in [Seq::ZERO, Seq::MAX] {
        row.ledger.elsewhere_forgotten = forgotten;
        bytes.clear();
        encode_row(&row, &mut bytes);
        assert_eq!((bytes[0], decode_row(&bytes)), (5, Ok(row.clone())));
    }
    row.ledger.elsewhere.clear();
    bytes.clear();
    encode_row(&row, &mut bytes);
    assert_eq!((bytes[0], decode_row(&bytes)), (5, Ok(row)));
    for len in 0..bytes.len() {
        assert!(decode_row(&bytes[..len]).is_err());
    }
}

#[test]
fn rows_with_devices_round_trip_and_those_without_are_of_the_first_version() {
    let lane = |n: u64| LaneRow {
        cursor: Seq::new(n),
        ended: (n + 1..n + 4).map(Seq::new).collect(),
        attempts: vec![(Seq::new(n + 9), 2, Timestamp::NEVER)],
    };
    let info = |name: &str, is_leaving| DeviceInfo {
        device: crate::DeviceId::new(name).unwrap(),
        registered_at: Timestamp::from_millis(5),
        last_seen: Timestamp::NEVER,
        is_leaving,
    };
    let row = |slot, device| DeviceRow {
        slot: Slot::new(slot).unwrap(),
        device,
        exposed: Epoch(u32::from(slot)),
        lanes: [lane(1), LaneRow::default(), lane(7), LaneRow::default()],
    };
    let encoded = |row: &UserRow| {
        let mut bytes = vec![9];
        encode_row(row, &mut bytes);
        bytes.remove(0);
        bytes
    };
    let mut user = UserRow { reflects: Seq::new(77), ..UserRow::default() };
    assert_eq!(encoded(&user)[0], 1);
    let read = |conversation, up_to| {
        let mark = ReadMark { up_to: Seq::new(up_to), at: Timestamp::NEVER };
        ReadRow { conversation, mark }
    };
    let reads = vec![read(1, 5), read(u128::MAX, u64::MAX)];
    user.reads.clone_from(&reads);
    let bytes = encoded(&user);
    assert_eq!((bytes[0], decode_row(&bytes)), (4, Ok(user.clone())));
    user.reads.clear();
    user.devices = vec![row(0, Some(info("phone", false))), row(3, None), row(31, Some(info("x", true)))];
    let bytes = encoded(&user);
    assert_eq!((bytes[0], decode_row(&bytes)), (3, Ok(user.clone())));
    let (among, left) = (Slots::from_bits(0b1011), Slots::from_bits(0b10));
    let of = LaneId::Device(Slot::new(3).unwrap(), Priority::High);
    for copies in [None, Some(Copies { among, left, stride: 2 })] {
        let parent = Parent { copies, ..Parent::at(of, Seq::new(8)) };
        user.dependents.push(DependentRow { seq: Seq::MAX, parent, ended: None });
    }
    let bytes = encoded(&user);
    assert_eq!((bytes[0], decode_row(&bytes)), (3, Ok(user.clone())));
    for len in 0..bytes.len() {
        assert_ne!(decode_row(&bytes[..len]).as_ref(), Ok(&user), "{len}");
    }
    user.reads = reads;
    let bytes = encoded(&user);
    assert_eq!((bytes[0], decode_row(&bytes)), (4, Ok(user.clone())));
    for len in 0..bytes.len() {
        assert_ne!(decode_row(&bytes[..len]).as_ref(), Ok(&user), "{len}");
    }
    let of_nobody = Parent::at(LaneId::Low, Seq::new(8));
    for (parent, left) in [(of_nobody, left), (Parent::at(of, Seq::new(8)), Slots::from_bits(0b100))] {
        let copies = Some(Copies { among, left, stride: 1 });
        let dependent = DependentRow { seq: Seq::MAX, parent: Parent { copies, ..parent }, ended: None };
        let wrong = UserRow { dependents: vec![dependent], ..user.clone() };
        assert!(decode_row(&encoded(&wrong)).is_err(), "{dependent:?}");
    }
    user.devices.swap(0, 1);
    assert!(decode_row(&encoded(&user)).is_err(), "out of order");
}

#[test]
fn what_stands_before_an_acceptance_is_refused_where_it_makes_no_sense() {
    let mut bytes = Vec::new();
    encode_accept(&Accept::new(message(), Timestamp::ZERO), &mut bytes);
    let with = |slot: u8, flags: u8, among: u32| {
        let head = [&[FOR_DEVICE, RECORD_VERSION, slot, flags][..], &among.to_le_bytes()].concat();
        decode_bare(&[&head[..], &bytes].concat())
    };
    assert!(with(3, 0, 0b1000).is_ok() && with(255, 1, 0).is_ok());
    for (slot, flags, among) in [(3, 0, 0b111), (32, 0, u32::MAX), (3, 8, 0b1000), (255, 3, 0), (255, 0, 1)] {
        assert!(with(slot, flags, among).is_err(), "{slot} {flags} {among:b}");
    }
    // What waits, and says of which copies; but this one waits for nothing.
    let waits = [FOR_DEVICE, RECORD_VERSION, 254, 3, 9, 0, 0, 0, 1, 0, 0, 0];
    assert!(decode_bare(&[&waits[..], &bytes].concat()).is_err());
    let twice = [&[FOR_DEVICE, RECORD_VERSION, 0, 0, 1, 0, 0, 0][..]; 2].concat();
    assert!(decode_bare(&[&twice[..], &bytes].concat()).is_err());
}
