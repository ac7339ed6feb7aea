use super::*;
use crate::codec::{decode_accept, decode_records};
use crate::id::{MessageId, StreamId};
use crate::message::{Durability, Message, MessageBuilder, Priority};
use crate::record::{Admission, Epoch, Exposed, Origin, Seq};

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn builder() -> MessageBuilder {
    Message::to("alice", "news.published", vec![b'.'; 1024])
        .id(MessageId::from_u128(0x0192_f3a0_7c1e_7000_8000_0000_0000_0001))
        .sender("editor")
        .header("type", "text/plain")
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000 + millis)
}

fn record(message: Message, time: Timestamp) -> Record {
    Record::Accept(Arc::new(Accept::new(message, time)))
}

/// One message to so many people.
fn fan(people: usize) -> Vec<Record> {
    let message = builder().build().unwrap();
    (0..people).map(|n| record(message.for_recipient(user(&format!("user-{n:05}"))), at(n as u64))).collect()
}

fn encode(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_records(records, &mut bytes);
    bytes
}

fn decode(count: usize, bytes: &[u8]) -> Vec<Result<Record, CodecError>> {
    decode_records(count as u32, bytes).collect()
}

fn payload(record: &Record) -> &bytes::Bytes {
    match record {
        Record::Accept(accept) => accept.message.payload(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_to_many_is_written_once_and_read_into_one_payload() {
    let records = fan(1000);
    let bytes = encode(&records);
    assert!(bytes.len() < 1200 + 1000 * 22, "{} bytes", bytes.len());
    let back: Vec<Record> = decode(1000, &bytes).into_iter().map(Result::unwrap).collect();
    assert_eq!(back, records);
    let first = payload(&back[0]).as_ptr();
    assert!(back.iter().all(|record| payload(record).as_ptr() == first), "payloads were copied");
}

#[test]
fn bytes_are_those_of_the_golden_file() {
    let message = builder().build().unwrap();
    let records = [record(message.clone(), at(0)), record(message.for_recipient(user("bob")), at(3))];
    let bytes = encode(&records);
    let path: std::path::PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests", "golden", "record-like.v1.bin"].iter().collect();
    if std::env::var_os("LASTMILE_BLESS").is_some() {
        std::fs::write(&path, &bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    assert_eq!(bytes, golden, "it is written in another way than version 1 says");
    assert_eq!(decode(2, &golden), records.map(Ok));
}

#[test]
fn nothing_leans_on_a_record_of_another_commit() {
    let records = fan(6);
    let (one, two) = records.split_at(3);
    let joined = [encode(one), encode(two)].concat();
    assert_eq!(decode(6, &joined), records.iter().cloned().map(Ok).collect::<Vec<_>>());
    assert_eq!(decode(3, &encode(two)), two.iter().cloned().map(Ok).collect::<Vec<_>>());
}

#[test]
fn only_what_says_the_same_leans_on_what_stands_before_it() {
    let base = builder().build().unwrap();
    let bytes = base.payload().clone();
    let with = |change: fn(MessageBuilder) -> MessageBuilder| {
        let builder = Message::to("bob", "news.published", bytes.clone()).id(base.id()).sender("editor");
        change(builder.header("type", "text/plain")).build().unwrap()
    };
    let other = |message: &Message, event: &str| {
        Message::to("bob", event, message.payload().clone())
            .id(message.id())
            .sender("editor")
            .header("type", "text/plain")
            .build()
            .unwrap()
    };
    let same = encode(&[record(base.clone(), at(0)), record(with(|b| b), at(0))]).len();
    let alone = encode(&[record(base.clone(), at(0))]).len();
    assert!(same < alone + 32, "what is the same in all fields is written once");
    let all = [
        with(|b| b.id(MessageId::from_u128(2))),
        with(|b| b.sender("another")),
        with(|b| b.ordering_key("k")),
        with(|b| b.priority(Priority::Low)),
        with(|b| b.durability(Durability::Buffered)),
        with(|b| b.ttl(core::time::Duration::from_secs(1))),
        with(|b| b.traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
        with(|b| b.header("more", "")),
        with(|b| b.not_before(at(9))),
        with(|b| b.collapse_key("k")),
        with(|b| b.collapse_key("k").version(1)),
        other(&base, "news.withdrawn"),
        builder().build().unwrap(),
    ];
    for message in all {
        let records = [record(base.clone(), at(0)), record(message, at(0))];
        let bytes = encode(&records);
        assert!(bytes.len() > 2 * alone - 32, "{records:?} was taken for the same");
        assert_eq!(decode(2, &bytes), records.map(Ok));
    }
    let accept = |admission, origin| {
        let message = base.clone();
        Record::Accept(Arc::new(Accept { origin, admission, ..Accept::new(message, at(0)) }))
    };
    let origin = Some(Origin { stream: StreamId::from_u128(1), seq: Seq::new(1) });
    for other in
        [accept(Admission::Requeued { possibly_delivered: false }, None), accept(Admission::New, origin)]
    {
        let records = [accept(Admission::New, None), other];
        assert_eq!(decode(2, &encode(&records)), records.map(Ok));
    }
}

#[test]
fn other_facts_may_stand_between_and_time_may_stand_still_or_go_back() {
    let message = builder().build().unwrap();
    let fact = || Record::Exposed(Exposed { user: user("bob"), epoch: Epoch(5) });
    let times = [at(5), at(5), at(0), Timestamp::ZERO, Timestamp::NEVER];
    let records: Vec<Record> =
        times.iter().flat_map(|time| [record(message.clone(), *time), fact()]).collect();
    let bytes = encode(&records);
    assert!(bytes.len() < 2 * 1200);
    assert_eq!(decode(10, &bytes), records.into_iter().map(Ok).collect::<Vec<_>>());
}

#[test]
fn damage_takes_along_what_leans_on_it_and_nothing_leans_across_it() {
    let mut records = fan(3);
    records.push(Record::Exposed(Exposed { user: user("bob"), epoch: Epoch(5) }));
    records.extend(fan(2));
    records.push(record(builder().build().unwrap(), at(0)));
    let lens: Vec<usize> = {
        let mut at = 0;
        let bytes = encode(&records);
        core::iter::from_fn(|| {
            let start = at;
            let len = bytes.get(at..at + 4)?;
            at += 4 + u32::from_le_bytes(len.try_into().unwrap()) as usize;
            Some(start)
        })
        .collect()
    };
    // The fifth and the sixth are copies of their own payload: two full records, each followed by one that leans.
    let leans = [false, true, true, false, false, true, false];
    let clean = encode(&records);
    for (hit, start) in lens.iter().enumerate() {
        let mut bytes = clean.clone();
        bytes[start + 5] = 0;
        let results = decode(records.len(), &bytes);
        assert_eq!(results.len(), records.len());
        let mut broken = false;
        for (at, result) in results.iter().enumerate() {
            broken = at == hit || (broken && (leans[at] || at == 3));
            let expected_err = at == hit || (broken && leans[at]);
            assert_eq!(result.is_err(), expected_err, "hit {hit}, record {at}");
        }
        assert!(results.iter().flatten().all(|found| records.contains(found)), "something else was read");
    }
}

#[test]
fn what_leans_on_nothing_is_damaged_and_not_too_new() {
    let bytes = encode(&fan(2));
    let full = 4 + u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    let like = &bytes[full..];
    assert_eq!(like[4], LIKE);
    let error = decode(1, like)[0].clone().unwrap_err();
    assert!(matches!(error, CodecError::Body(_)) && !error.is_too_new());
    assert!(matches!(decode_accept(&like[4..]), Err(CodecError::Body(_))));
    let mut newer = bytes.clone();
    newer[full + 5] = 2;
    assert_eq!(decode(2, &newer)[1], Err(CodecError::NewerVersion { kind: LIKE, found: 2 }));
}

#[test]
fn every_truncation_and_a_longer_record_are_refused() {
    let bytes = encode(&fan(2));
    let full = 4 + u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    for len in full..bytes.len() {
        assert!(decode(2, &bytes[..len])[1].is_err());
        let mut short = bytes[..len].to_vec();
        if len >= full + 4 {
            short[full..full + 4].copy_from_slice(&((len - full - 4) as u32).to_le_bytes());
            assert!(decode(2, &short)[1].is_err(), "{len} bytes were taken");
        }
    }
    let mut long = bytes.clone();
    long.push(0);
    long[full..full + 4].copy_from_slice(&((bytes.len() - full - 3) as u32).to_le_bytes());
    assert_eq!(decode(2, &long)[1], Err(CodecError::Trailing { bytes: 1 }));
}
