use super::*;

const DIGESTER: Digester = Digester::new(77);
const MAX: usize = 4000;

type Id = (DedupRow, Option<Named>);

/// The chunks of these ids.
fn chunks(ids: &[Id]) -> Vec<Vec<u8>> {
    let (mut chunk, mut chunks) = (DedupChunk::default(), Vec::new());
    for (row, named) in ids {
        if !chunk.push(row, named.as_ref(), &DIGESTER, MAX) {
            chunks.extend(chunk.take().map(|(.., bytes)| bytes));
            assert!(chunk.push(row, named.as_ref(), &DIGESTER, MAX), "an empty one takes every row");
        }
    }
    chunks.extend(chunk.take().map(|(.., bytes)| bytes));
    assert!(chunk.take().is_none());
    chunks
}

fn encode(ids: &[Id]) -> Vec<u8> {
    let mut chunks = chunks(ids);
    assert!(chunks.len() <= 1);
    chunks.pop().unwrap_or_default()
}

fn decode(bytes: &[u8]) -> Result<Vec<Id>, CodecError> {
    let (mut rows, mut ids) = (decode_dedup(bytes, DIGESTER), Vec::new());
    while let Some(row) = rows.next() {
        ids.push((row?, rows.named()));
    }
    Ok(ids)
}

fn rows(ids: &[Id]) -> Vec<DedupRow> {
    ids.iter().map(|(row, _)| *row).collect()
}

fn row(n: u64) -> DedupRow {
    let at = Timestamp::from_millis(1_700_000_000_000 + n / 50);
    let among = Slots::NONE;
    DedupRow { sender: 5, key: u128::from(n) << 64, content: 9, seq: Seq::new(7 << 40 | n), at, among }
}

/// What is left of one message to this person.
fn told(n: u64, message: u128, recipient: &str) -> Id {
    let (sender, recipient) = (UserId::new("news").ok(), UserId::new(recipient).unwrap());
    let named = Named { sender, recipient, id: MessageId::from_u128(message) };
    (DedupRow { key: named.key(&DIGESTER), ..row(n) }, Some(named))
}

fn plain(n: u64) -> Id {
    (row(n), None)
}

#[test]
fn ids_of_single_messages_take_17_bytes_when_they_say_the_same() {
    let many: Vec<_> = (0..100).map(plain).collect();
    // A sender, what it says, a place and a time; and the steps of time.
    assert!(encode(&many).len() <= 1 + 62 + 99 * 17 + 1);
    let each_other: Vec<_> = (0..100).map(|n| told(n, n.into(), "alice")).collect();
    assert_eq!(encode(&each_other).len(), encode(&many).len(), "nothing is named that is said once");
}

#[test]
fn ids_of_one_message_to_many_with_something_in_common_take_5_bytes() {
    let many: Vec<_> = (0..10_000).map(|n| told(n, 1, &format!("user-{n:06}"))).collect();
    let chunks = chunks(&many);
    let read: Vec<_> = chunks.iter().flat_map(|chunk| decode(chunk).unwrap()).collect();
    assert_eq!(rows(&read), rows(&many));
    let bytes: usize = chunks.iter().map(Vec::len).sum();
    assert!(bytes <= 10_000 * 5, "{bytes}");
    assert_eq!(read.iter().filter(|(_, named)| named.is_none()).count(), BEFORE_NAMING, "also over chunks");
    assert!(read.iter().zip(&many).all(|(read, id)| read.1.is_none() || read == id));
    assert!(chunks.iter().all(|chunk| chunk.len() <= MAX));
}

#[test]
fn recipients_whose_ids_are_longer_than_a_digest_are_named_too() {
    let many: Vec<_> =
        (0..10_000).map(|n| told(n, 1, &format!("https://example.org/customers/{n:08}"))).collect();
    let chunks = chunks(&many);
    let read: Vec<_> = chunks.iter().flat_map(|chunk| decode(chunk).unwrap()).collect();
    assert_eq!(rows(&read), rows(&many));
    let bytes: usize = chunks.iter().map(Vec::len).sum();
    assert!(bytes <= 10_000 * 5, "{bytes}");
}

#[test]
fn recipients_with_nothing_in_common_are_digests_as_ever() {
    let mut dice = 1_u64;
    let mut odd = move || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        dice
    };
    let many: Vec<_> = (0..100).map(|n| told(n, 1, &format!("{:016x}{:016x}", odd(), odd()))).collect();
    let plain: Vec<_> = many.iter().map(|(row, _)| (*row, None)).collect();
    assert_eq!(encode(&many), encode(&plain));
}

#[test]
fn ids_round_trip_whatever_they_lean_on() {
    let long = "x".repeat(255);
    let named = |n, message, recipient: &str| told(n, message, recipient);
    let nobody = |n, recipient: &str| {
        let named = Named {
            sender: None,
            recipient: UserId::new(recipient).unwrap(),
            id: MessageId::from_u128(u128::MAX),
        };
        (DedupRow { key: named.key(&DIGESTER), sender: 0, ..row(n) }, Some(named))
    };
    let extremes = [
        (
            DedupRow { sender: u128::MAX, content: u64::MAX, seq: Seq::MAX, at: Timestamp::NEVER, ..row(1) },
            None,
        ),
        (NOTHING, None),
        plain(3),
        (DedupRow { content: 1, among: Slots::from_bits(u32::MAX), ..row(4) }, None),
        (DedupRow { sender: 1, ..row(2) }, None),
    ];
    let mixed = [
        named(1, 1, "a"),
        named(2, 1, "ab"),
        named(3, 1, "abc"),
        named(4, 1, "b"),
        // Another one in between, and then on with the first.
        named(5, 2, "abc"),
        plain(6),
        named(7, 1, &long),
        named(8, 1, &long[..254]),
        named(9, 1, "a"),
        named(10, 3, "a"),
        named(11, 3, "b"),
        named(12, 3, "c"),
        named(13, 1, "d"),
        nobody(14, "a"),
        nobody(15, "b"),
        nobody(16, "c"),
        nobody(17, "cc"),
    ];
    // Two senders have chosen the same id.
    let from = |n, sender: &str, recipient: &str| {
        let (sender, recipient) = (UserId::new(sender).ok(), UserId::new(recipient).unwrap());
        let named = Named { sender, recipient, id: MessageId::from_u128(1) };
        (DedupRow { key: named.key(&DIGESTER), ..row(n) }, Some(named))
    };
    let shared: Vec<_> = (0..10).map(|n| from(n, ["a", "b"][n as usize / 5], &format!("user-{n}"))).collect();
    for ids in [&extremes[..], &mixed, &mixed[..1], &shared, &[]] {
        let read = decode(&encode(ids)).unwrap();
        assert_eq!(rows(&read), rows(ids));
        assert!(read.iter().zip(ids).all(|(read, id)| read.1.is_none() || read == id));
        let again = decode(&encode(&read)).unwrap();
        assert_eq!(rows(&again), rows(ids), "also when a part of them is named");
    }
    let are_named = decode(&encode(&mixed)).unwrap().iter().filter(|(_, named)| named.is_some()).count();
    assert_eq!(are_named, 6);
}

#[test]
fn a_key_that_is_not_the_digest_of_what_is_named_is_written_itself() {
    let other = |n| (row(n), told(n, 1, &format!("user-{n}")).1);
    let ids: Vec<_> = (0..10).map(other).collect();
    assert_eq!(decode(&encode(&ids)).unwrap(), (0..10).map(plain).collect::<Vec<_>>());
}

/// What version 1 wrote.
fn of_version_1() -> (Vec<DedupRow>, Vec<u8>) {
    let rows = vec![row(0), row(2), DedupRow { content: 8, at: row(50).at, ..row(3) }];
    let mut bytes = vec![1, 15];
    bytes.extend_from_slice(&5_u128.to_le_bytes());
    bytes.extend_from_slice(&0_u128.to_le_bytes());
    bytes.extend_from_slice(&9_u64.to_le_bytes());
    bytes.extend_from_slice(&[128, 128, 128, 128, 128, 192, 3]);
    bytes.extend_from_slice(&[128, 160, 171, 254, 249, 98]);
    bytes.push(4);
    bytes.extend_from_slice(&(2_u128 << 64).to_le_bytes());
    bytes.extend_from_slice(&[4, 10]);
    bytes.extend_from_slice(&(3_u128 << 64).to_le_bytes());
    bytes.extend_from_slice(&8_u64.to_le_bytes());
    bytes.push(2);
    (rows, bytes)
}

#[test]
fn chunks_of_version_1_are_read() {
    let (expected, bytes) = of_version_1();
    assert_eq!(rows(&decode(&bytes).unwrap()), expected);
    let mut newer = [&[2, NAMED | NEW_MESSAGE | NEW_LENGTH][..], &[0; 16], b"\0\0\x01x"].concat();
    assert_eq!(decode(&newer).unwrap().len(), 1);
    newer[0] = 1;
    assert!(decode(&newer).is_err(), "it knew no names");
}

#[test]
fn bytes_are_those_of_version_2() {
    let (rows, mut expected) = of_version_1();
    expected[0] = 2;
    let mut ids: Vec<Id> = rows.into_iter().map(|row| (row, None)).collect();
    let at = row(50).at;
    let four = [told(4, 1, "user-1"), told(5, 1, "user-2"), told(6, 1, "user-3"), told(7, 1, "user-4")];
    let four = four.map(|(row, named)| (DedupRow { content: 8, at, ..row }, named));
    for (row, _) in &four[..2] {
        expected.push(0);
        expected.extend_from_slice(&row.key.to_le_bytes());
    }
    expected.push(32 + 64 + 128);
    expected.extend_from_slice(&1_u128.to_le_bytes());
    expected.extend_from_slice(b"\x04news\0\x06user-3");
    expected.extend_from_slice(b"\x20\x054");
    ids.extend(four);
    assert_eq!(encode(&ids), expected);
}

#[test]
fn what_is_cut_short_or_of_a_newer_version_is_an_error_once() {
    let ids: Vec<_> = (0..6).map(|n| told(n, 1, &format!("user-{n}"))).collect();
    let bytes = encode(&ids);
    for len in 1..bytes.len() {
        let read: Vec<_> = decode_dedup(&bytes[..len], DIGESTER).collect();
        assert!(read.len() <= 6 && read.iter().rev().skip(1).all(Result::is_ok), "{len}");
        assert!(read.last().unwrap().is_err() || read.len() < 6);
    }
    let mut newer = bytes.clone();
    newer[0] = 3;
    assert!(decode(&newer).unwrap_err().is_too_new());
    let mut tagged = bytes;
    tagged[1] = 128;
    assert_eq!(decode_dedup(&tagged, DIGESTER).count(), 1);
}

#[test]
fn recipients_that_cannot_be_are_errors() {
    let head = |tag| [&[2, tag][..], &[0; 16], b"\0"].concat();
    let new = NAMED | NEW_MESSAGE;
    let wrong = [
        vec![2, NAMED, 0],    // of no message
        vec![2, NEW_MESSAGE], // which nobody gets
        vec![2, NEW_LENGTH],
        [&head(new)[..], &[0]].concat(), // nobody
        [&head(new)[..], &[1]].concat(), // more kept than was there
        [&head(new | NEW_LENGTH)[..], &[1, 1, b'x']].concat(),
        [&head(new | NEW_LENGTH)[..], &[0, 0]].concat(),
        [&head(new | NEW_LENGTH)[..], &[0, 255], &[b'x'; 254]].concat(),
    ];
    for bytes in wrong {
        assert!(decode(&bytes).is_err(), "{bytes:?}");
    }
    let longest = [&head(new | NEW_LENGTH)[..], &[0, 255], &[b'x'; 255]].concat();
    assert!(decode(&longest).is_ok());
    let longer = [&longest[..], &[NAMED | NEW_LENGTH, 255, 1, b'x']].concat();
    assert!(decode(&longer).is_err());
}
