//! Recovery from the journal.

use super::*;
use crate::codec::{CodecError, encode_record, encode_records};
use crate::digest::Digester;
use crate::ports::{Group, Journal};
use crate::record::{Exposed, Record};
use crate::storage::journal::{JournalConfig, MemoryJournal};

fn journal(first: u64, groups: &[Vec<u8>], count: u32) -> MemoryJournal {
    let config = JournalConfig { segment_bytes: 1 << 16, segments: 4 };
    let mut journal = MemoryJournal::new(config).unwrap();
    journal.replay(Seq::ZERO, &mut |_| Ok(())).unwrap();
    journal.begin(Epoch(1)).unwrap();
    let mut first = Seq::new(first);
    for records in groups {
        journal.append(Epoch(1), Group { first, count, records }, false).unwrap();
        first = first.plus(u64::from(count));
    }
    journal.sync(Epoch(1)).unwrap();
    journal.clone()
}

fn record(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_record(&Record::Exposed(Exposed { user: user(name), epoch: Epoch(1) }), &mut bytes);
    bytes
}

fn group(range: std::ops::Range<u64>) -> Vec<u8> {
    range.flat_map(|n| record(&format!("user{n}"))).collect()
}

fn settled(shards: &[u64]) -> (OutboxStore, Opened) {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let counters = shards.iter().map(|below| (Counters::default(), Seq::new(*below))).collect();
    let mut settlement = Settlement::new(Vec::new(), Seq::new(105), counters, Timestamp::ZERO);
    while settlement.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
    open(&store)
}

#[test]
fn records_go_to_their_shards_once_and_count_once() {
    let (_, opened) = settled(&[107, 112]);
    let mut journal = journal(100, &[group(100..110), group(110..120)], 10);
    let digester = Digester::new(FRESH.digest_key);
    let mut seen = Vec::new();
    let recovered = recover(&opened, &mut journal, 3, &mut |shard, seq, record, counts| {
        assert_eq!(record.user(), &user(&format!("user{}", seq.get())));
        assert_eq!(shard, digester.shard(record.user(), 3));
        let below = [107, 112][digester.shard(record.user(), 2)];
        assert_eq!(counts, seq.get() >= below);
        seen.push(seq.get());
    })
    .unwrap();
    assert_eq!(seen, (105..120).collect::<Vec<_>>());
    assert_eq!(recovered.next_seq, Seq::first_of(opened.epoch));
    assert!(recovered.bad.is_empty());
}

#[test]
fn a_damaged_record_is_named_and_the_others_are_applied() {
    let (_, opened) = settled(&[]);
    let mut records = group(105..115);
    *records.last_mut().unwrap() = 0xFF;
    let mut journal = journal(105, &[records], 10);
    let mut seen = 0;
    let recovered = recover(&opened, &mut journal, 1, &mut |_, _, _, counts| {
        assert!(counts);
        seen += 1;
    })
    .unwrap();
    assert_eq!(seen + recovered.bad.len(), 10);
    assert_eq!(recovered.bad.len(), 1);
}

#[test]
fn a_record_of_a_newer_version_stops_recovery() {
    let (_, opened) = settled(&[]);
    let mut records = record("bob");
    records[4] = 31;
    let mut journal = journal(105, &[records], 1);
    let result = recover(&opened, &mut journal, 1, &mut |_, _, _, _| panic!("applied"));
    assert!(matches!(result, Err(RecoverError::FormatTooNew(CodecError::UnknownKind { kind: 31 }))));
}

#[test]
fn a_message_to_many_is_replayed_from_the_middle_and_its_payload_is_there_once() {
    let (_, opened) = settled(&[100]);
    let message = Message::to("x", "a.b", vec![7; 1000]).build().unwrap();
    let one = |n| Accept::new(message.for_recipient(user(&format!("user{n}"))), Timestamp::from_millis(n));
    let records: Vec<_> = (100..110).map(|n| Record::Accept(Arc::new(one(n)))).collect();
    let mut group = Vec::new();
    encode_records(&records, &mut group);
    assert!(group.len() < 1500);
    let mut journal = journal(100, &[group], 10);
    let mut seen = Vec::new();
    let recovered = recover(&opened, &mut journal, 1, &mut |_, seq, record, _| {
        let Record::Accept(accept) = record else { panic!("{record:?}") };
        assert_eq!(**accept, one(seq.get()));
        seen.push((seq.get(), accept.message.payload().as_ptr()));
    })
    .unwrap();
    assert!(recovered.bad.is_empty());
    assert_eq!(seen.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (105..110).collect::<Vec<_>>());
    assert!(seen.iter().all(|(_, payload)| *payload == seen[0].1), "a payload for each");
}
