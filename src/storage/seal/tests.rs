use super::*;
use crate::codec::{CodecError, decode_accept, decode_records, encode_accept, encode_records};
use crate::id::{KeyId, MessageId, StreamId, UserId};
use crate::message::{MAX_HEADERS, Message, Priority};
use crate::ports::Keyring;
use crate::record::{Accept, Admission, Burial, Epoch, Exposed, LaneId, Origin, Parent, Record, Seq};
use crate::status::EndReason;
use crate::time::Timestamp;

/// Found nowhere else in a record.
const MARKED: u32 = 0xA1B2_C3D4;
const CANARY: &[u8] = b"canary-4711-canary";

fn keys(current: u32, others: &[u32]) -> Keyring {
    let key = |id: u32| Key::new([id as u8; 32]);
    let ring = Keyring::new(KeyId(current), key(current));
    others.iter().fold(ring, |ring, id| ring.with(KeyId(*id), key(*id)))
}

fn sealing(current: u32, others: &[u32]) -> Cipher {
    cipher(Arc::new(keys(current, others)))
}

/// Found by review: it took the shard with it that sealed a message.
#[test]
fn a_provider_that_panics_seals_with_the_key_it_named_last_and_knows_no_other() {
    struct Moody(Keyring, std::sync::atomic::AtomicBool);
    impl Moody {
        fn calm(&self) {
            assert!(!self.1.load(std::sync::atomic::Ordering::Relaxed), "the host's keys panic");
        }
    }
    impl KeyProvider for Moody {
        fn current(&self) -> (KeyId, Key) {
            self.calm();
            self.0.current()
        }
        fn key(&self, id: KeyId) -> Option<Key> {
            self.calm();
            self.0.key(id)
        }
    }
    let moody = Arc::new(Moody(keys(1, &[2]), false.into()));
    let cipher = cipher(moody.clone());
    let accept = accept("alice", None, 1);
    sealed(&cipher, &accept);
    moody.1.store(true, std::sync::atomic::Ordering::Relaxed);
    let bytes = sealed(&cipher, &accept);
    let unknown = CodecError::Sealed(KeyError::UnknownKey { key: KeyId(1) });
    assert_eq!(cipher.decode_accept(&bytes), Err(unknown));
    moody.1.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(cipher.decode_accept(&bytes), Ok(accept));
}

fn accept(to: &str, sender: Option<&str>, id: u128) -> Accept {
    let mut builder = Message::to(to, "chat.message", CANARY)
        .id(MessageId::from_u128(id))
        .ordering_key("room/1")
        .priority(Priority::High)
        .header("x-canary", CANARY)
        .header("empty", "");
    if let Some(sender) = sender {
        builder = builder.sender(sender);
    }
    let origin = Some(Origin { stream: StreamId::from_u128(9), seq: Seq::new(4) });
    Accept {
        message: builder.build().unwrap(),
        at: Timestamp::from_millis(7),
        origin,
        admission: Admission::New,
        parent: None,
        device: None,
    }
}

fn sealed(cipher: &Cipher, accept: &Accept) -> Vec<u8> {
    let mut bytes = Vec::new();
    cipher.encode_accept(accept, &mut bytes);
    bytes
}

fn holds(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// An acceptance of each kind, and the kind: with a canary in payload and headers, and empty.
fn of_each_kind() -> Vec<(u8, Accept)> {
    let requeued = Admission::Requeued { possibly_delivered: true };
    let burial = Burial {
        reason: EndReason::Rejected,
        attempts: 3,
        possibly_delivered: true,
        at: Timestamp::from_millis(9),
    };
    let at = Timestamp::from_millis(1 << 42);
    let mut all = Vec::new();
    for full in [true, false] {
        let plain = || {
            let builder = Message::to("alice", "chat.message", if full { CANARY } else { b"" });
            if full { builder.header("x-canary", CANARY).sender("bob") } else { builder }
        };
        let keyed = || plain().collapse_key("score").version(7);
        let after = || plain().after(MessageId::from_u128(77), crate::Otherwise::Cancel);
        for (kind, builder, admission) in [
            (1, plain(), Admission::New),
            (18, plain(), Admission::Moved),
            (19, keyed(), Admission::New),
            (19, keyed(), Admission::Buried(burial)),
            (19, keyed(), requeued),
            (19, keyed().not_before(at), Admission::Moved),
            (20, plain().not_before(at), Admission::New),
            (23, plain(), Admission::Buried(burial)),
            (24, plain(), requeued),
            (26, after(), Admission::New),
            (26, after().not_before(at), Admission::Moved),
        ] {
            let message = builder.build().unwrap();
            let parent = message.after().map(|_| Parent::at(LaneId::Low, Seq::new(9)));
            all.push((kind, Accept { admission, parent, ..Accept::new(message, Timestamp::ZERO) }));
        }
    }
    all
}

#[test]
fn a_sealed_message_of_each_kind_comes_back_and_shows_nothing_of_itself() {
    for (kind, accept) in of_each_kind() {
        let cipher = sealing(3, &[]);
        let bytes = sealed(&cipher, &accept);
        assert_eq!(cipher.decode_accept(&bytes), Ok(accept.clone()));
        assert_eq!(bytes[0], 32 + kind);
        assert!(!holds(&bytes, CANARY) && !holds(&bytes, b"x-canary"));
        let mut plain = Vec::new();
        encode_accept(&accept, &mut plain);
        assert_eq!(plain[0], kind);
        let is_empty = accept.message.payload().is_empty();
        assert_eq!(!is_empty, holds(&plain, CANARY), "the scan finds what is there");
        // 52 bytes and the blob's own length, which is one byte, or three above 250.
        assert!((53..=55).contains(&(bytes.len() - plain.len())));
        assert_eq!(decode_accept(&bytes), Err(CodecError::Sealed(KeyError::NoKeys { key: KeyId(3) })));
    }
}

#[test]
fn what_is_shared_is_opened_in_its_place_only_and_is_no_message_of_its_own() {
    let cipher = sealing(3, &[]);
    for (kind, accept) in of_each_kind() {
        let mut shared = Vec::new();
        cipher.encode_shared(&accept, Seq::new(7), &mut shared);
        assert_eq!(shared[0], 32 + kind);
        assert!(!holds(&shared, CANARY));
        assert_eq!(cipher.open_shared(&shared, Seq::new(7)).map(|(found, _)| found), Ok(accept.clone()));
        let alone = sealed(&cipher, &accept);
        for elsewhere in [
            cipher.open_shared(&shared, Seq::new(8)),
            cipher.open_accept(&shared),
            cipher.open_shared(&alone, Seq::new(7)),
        ] {
            assert!(matches!(elsewhere, Err(CodecError::Body(_))), "{elsewhere:?}");
        }
    }
}

/// One message to three people, as one commit, and again, in one that says something else before.
fn fan() -> Vec<Record> {
    let base = accept("alice", Some("bob"), 1);
    let to = |name: &str, at| {
        let accept = base.for_recipient(UserId::new(name).unwrap(), Timestamp::from_millis(at), None);
        Record::Accept(Arc::new(accept))
    };
    vec![to("alice", 7), to("carol", 8), to("dave", 9)]
}

#[test]
fn a_message_to_many_is_sealed_once_in_a_commit_and_everybody_has_it() {
    let cipher = sealing(3, &[]);
    let (mut one, mut all, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    cipher.encode_records(&fan()[..1], &mut one);
    cipher.encode_records(&fan(), &mut all);
    encode_records(&fan(), &mut plain);
    assert!(all.len() < one.len() + 2 * 20, "{} bytes after {}", all.len(), one.len());
    assert!(!holds(&all, CANARY) && holds(&plain, CANARY));
    let mut records = cipher.decode_records(3, &all);
    for record in fan() {
        assert_eq!(records.next(), Some(Ok(record)));
        assert_eq!(
            records.last_key().map(|mark| mark.key),
            Some(KeyId(3)),
            "whoever leans needs the key too"
        );
    }
    assert_eq!(records.next(), None);
}

#[test]
fn whoever_leans_on_a_message_without_its_key_waits_for_it_and_is_not_damaged() {
    let mut all = Vec::new();
    sealing(3, &[]).encode_records(&fan(), &mut all);
    // Behind it comes what can be opened, and somebody who leans on that.
    sealing(1, &[]).encode_records(&fan()[1..], &mut all);
    let missing = Err(CodecError::Sealed(KeyError::UnknownKey { key: KeyId(3) }));
    let expected = [missing.clone(), missing.clone(), missing, Ok(fan()[1].clone()), Ok(fan()[2].clone())];
    assert_eq!(sealing(1, &[]).decode_records(5, &all).collect::<Vec<_>>(), expected);
    // Damage is damage, with and without the key before it.
    let mut broken = Vec::new();
    sealing(3, &[]).encode_records(&fan(), &mut broken);
    let first = 4 + u32::from_le_bytes(*broken.first_chunk().unwrap()) as usize;
    // What follows the blob is a time and an origin, of 22 bytes at most.
    broken[first - 30] ^= 1;
    let read: Vec<_> = sealing(3, &[]).decode_records(3, &broken).collect();
    assert!(read.iter().all(|record| matches!(record, Err(CodecError::Body(_)))), "{read:?}");
}

#[test]
fn metadata_stays_readable_and_other_records_stay_as_they_are() {
    let bytes = sealed(&sealing(1, &[]), &accept("alice", Some("bob"), 1));
    for shown in ["alice", "bob", "chat.message", "room/1"] {
        assert!(holds(&bytes, shown.as_bytes()), "{shown}");
    }
    let exposed = Record::Exposed(Exposed { user: UserId::new("alice").unwrap(), epoch: Epoch(5) });
    let (mut with, mut without) = (Vec::new(), Vec::new());
    sealing(1, &[]).encode_record(&exposed, &mut with);
    Cipher::plain().encode_record(&exposed, &mut without);
    assert_eq!(with, without);
}

#[test]
fn the_same_message_is_never_sealed_into_the_same_bytes() {
    let (cipher, accept) = (sealing(1, &[]), accept("alice", None, 1));
    assert_ne!(sealed(&cipher, &accept), sealed(&cipher, &accept));
}

#[test]
fn a_missing_or_wrong_key_is_an_error_of_its_own() {
    let accept = accept("alice", None, 1);
    let bytes = sealed(&sealing(3, &[]), &accept);
    let key = KeyId(3);
    assert_eq!(decode_accept(&bytes), Err(CodecError::Sealed(KeyError::NoKeys { key })));
    let unknown = sealing(4, &[5]).decode_accept(&bytes);
    assert_eq!(unknown, Err(CodecError::Sealed(KeyError::UnknownKey { key })));
    let wrong = cipher(Arc::new(Keyring::new(key, Key::new([9; 32])))).decode_accept(&bytes);
    assert_eq!(wrong, Err(CodecError::Sealed(KeyError::WrongKey { key })));
    assert_eq!(sealing(4, &[3]).decode_accept(&bytes), Ok(accept));
}

#[test]
fn what_is_plain_is_read_with_keys_too() {
    let accept = accept("alice", None, 1);
    assert_eq!(sealing(1, &[]).decode_accept(&sealed(&Cipher::plain(), &accept)), Ok(accept));
}

/// The metadata that the seal is not bound to is covered by checksums only.
#[test]
fn every_bit_flip_in_a_sealed_blob_is_noticed() {
    let cipher = sealing(MARKED, &[]);
    let accept = accept("alice", None, 1);
    let bytes = sealed(&cipher, &accept);
    let start = bytes.windows(4).position(|window| window == MARKED.to_le_bytes()).unwrap();
    let end = start + usize::from(bytes[start - 1]);
    assert!(end < bytes.len());
    for bit in start * 8..end * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match cipher.decode_accept(&flipped) {
            Err(CodecError::Sealed(_)) => {
                assert!(bit / 8 < start + 12, "bit {bit} is no bit of the key's name")
            }
            Err(CodecError::Body(_)) => assert!(bit / 8 >= start + 12),
            other => panic!("bit {bit}: {other:?}"),
        }
    }
}

/// The blob of one message in the place of another's.
fn swapped(from: &Accept, to: &Accept) -> Result<Accept, CodecError> {
    let cipher = sealing(MARKED, &[]);
    let (from, mut bytes) = (sealed(&cipher, from), sealed(&cipher, to));
    let blob = |bytes: &[u8]| bytes.windows(4).position(|window| window == MARKED.to_le_bytes()).unwrap();
    let (theirs, mine) = (blob(&from), blob(&bytes));
    let len = usize::from(from[theirs - 1]);
    assert_eq!(from[theirs - 1], bytes[mine - 1]);
    bytes[mine..mine + len].copy_from_slice(&from[theirs..theirs + len]);
    cipher.decode_accept(&bytes)
}

#[test]
fn a_body_under_another_message_sender_or_recipient_is_damage() {
    let one = accept("alice", Some("bob"), 1 << 100);
    for other in [
        accept("alice", Some("bob"), 1 << 101),
        accept("alicf", Some("bob"), 1 << 100),
        accept("alice", Some("bod"), 1 << 100),
        accept("alice", None, 1 << 100),
        // Together the ids are the same bytes.
        accept("bobalice", None, 1 << 100),
        accept("lice", Some("boba"), 1 << 100),
    ] {
        assert!(matches!(swapped(&one, &other), Err(CodecError::Body(_))), "{:?}", other.message);
    }
    assert_eq!(swapped(&one, &one), Ok(one.clone()), "the test puts bodies where they belong");
}

#[test]
fn one_record_without_a_key_spares_the_others_of_its_group() {
    let mut bytes = Vec::new();
    for (key, id) in [(1, 1), (2, 2), (1, 3)] {
        sealing(key, &[]).encode_record(&Record::Accept(Arc::new(accept("alice", None, id))), &mut bytes);
    }
    let cipher = sealing(1, &[]);
    let read: Vec<_> = cipher.decode_records(3, &bytes).map(|record| record.is_ok()).collect();
    assert_eq!(read, [true, false, true]);
    assert!(decode_records(3, &bytes).all(|record| record.is_err()));
}

#[test]
fn a_message_at_its_limits_is_sealed_without_growing_out_of_its_room() {
    let mut builder = Message::to("alice", "a.b", vec![1; 70_000]);
    for n in 0..MAX_HEADERS {
        builder = builder.header(format!("n{n}"), vec![2; 56]);
    }
    let accept = Accept {
        message: builder.build().unwrap(),
        at: Timestamp::ZERO,
        origin: None,
        admission: Admission::New,
        parent: None,
        device: None,
    };
    let cipher = sealing(1, &[]);
    assert_eq!(cipher.decode_accept(&sealed(&cipher, &accept)), Ok(accept));
}

/// Seals are never the same twice: this file was written once, and is read for ever. Blessing writes it anew only if it is
/// not read.
#[test]
fn the_sealed_golden_record_is_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/record-sealed.v1.bin");
    let cipher = sealing(7, &[]);
    let record = Record::Accept(Arc::new(accept("alice", Some("bob"), 1)));
    let read = |bytes: &[u8]| cipher.decode_records(1, bytes).collect::<Vec<_>>();
    let is_read = |golden: Vec<u8>| read(&golden) == [Ok(record.clone())];
    if std::env::var_os("LASTMILE_BLESS").is_some() && !std::fs::read(path).is_ok_and(is_read) {
        let mut bytes = Vec::new();
        cipher.encode_record(&record, &mut bytes);
        std::fs::write(path, bytes).unwrap();
    }
    assert_eq!(read(&std::fs::read(path).unwrap()), [Ok(record.clone())]);
}
