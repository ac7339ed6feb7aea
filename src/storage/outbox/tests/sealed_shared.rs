//! What is said to many, sealed: one body under one seal, bound to its place, that goes along when keys are exchanged.

use super::sealed::{all_rows, impostor, keep, open_with, put, sealing, shown};
use super::shared::{everybody, fan, keys_of, one, survivors};
use super::*;
use crate::codec::Cipher;
use crate::id::KeyId;
use crate::ports::StoreError;
use crate::record::{Admission, Burial, Origin};
use crate::status::EndReason;

/// Two messages to 20 people each, one that fits its row and one that does not, and one to somebody alone.
fn part(first: u64) -> Vec<Survivors> {
    let mut all = fan(first, 20, 9000);
    all.extend(fan(first + 20, 20, 300));
    all.extend(entries("alone", [first + 40], 300));
    survivors(all)
}

const RUNS: [u64; 2] = [1, 51];
const LIVE: u64 = 82;

fn fill(store: &(impl Store + Clone + 'static), cipher: &Cipher) -> OutboxStore {
    let (outbox, opened) = open_with(store, cipher);
    for first in RUNS {
        settle(&outbox, opened.epoch, part(first), first + 50);
    }
    outbox
}

fn assert_whole(outbox: &OutboxStore) {
    assert_whole_for(outbox, &everybody(20));
}

/// Everything is whole, and what these people get is looked at. Each opens all bodies for themselves, which takes its time.
fn assert_whole_for(outbox: &OutboxStore, people: &[String]) {
    for name in people {
        let found = one(outbox, name);
        let sizes: Vec<_> = found.iter().map(|(_, accept)| accept.message.payload().len()).collect();
        assert_eq!(sizes, [9000, 300, 9000, 300]);
        let is_whole = |accept: &Accept| {
            accept.message.recipient() == &user(name)
                && accept.message.payload().iter().all(|byte| *byte == 7)
        };
        assert!(found.iter().all(|(seq, accept)| is_whole(accept) && accept.at.as_millis() == seq.get()));
    }
    assert_eq!(places(outbox, "alone"), [41, 91]);
    let report = outbox.verify(&mut |_| {}).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    assert_eq!((report.live, report.unopened), (LIVE, 0));
}

#[test]
fn a_body_to_many_is_sealed_once_and_everybody_gets_it_as_it_was() {
    let (plain, store) = (MemoryStore::new(), MemoryStore::new());
    assert_whole(&fill(&plain, &Cipher::plain()));
    let shared = keys_of(&plain, 7).len();
    assert!(shown(&plain) > shared, "the scan finds what is there, in bodies that are shared too");
    let outbox = fill(&store, &sealing(1, &[]));
    assert_whole(&outbox);
    assert_eq!((shown(&store), keys_of(&store, 7).len()), (0, shared));
    assert_eq!(outbox.runs().iter().map(|run| run.shared).collect::<Vec<_>>(), [2, 2]);
    let bytes = |store: &dyn Store| all_rows(store).iter().map(|(_, value)| value.len()).sum::<usize>();
    assert!(bytes(&store) < bytes(&plain) + 6 * 60 + 300, "{} after {}", bytes(&store), bytes(&plain));
    // A merge takes them over as they are.
    let (outbox, opened) = open_with(&store, &sealing(1, &[]));
    let value = |store: &dyn Store| all_rows(store).into_iter().find(|(key, _)| key[0] == 7).unwrap().1;
    let before = value(&store);
    assert_eq!(keep(&outbox, opened.epoch, 1), 1);
    assert_eq!((value(&store), shown(&store)), (before, 0));
    assert_whole(&outbox);
}

#[test]
fn shared_bodies_are_sealed_anew_under_a_new_key_and_the_old_one_is_needed_no_more() {
    for (old, met) in [(Cipher::plain(), None), (sealing(1, &[]), Some(KeyId(1)))] {
        let store = MemoryStore::new();
        drop(fill(&store, &old));
        let (outbox, opened) = open_with(&store, &sealing(2, &[1]));
        assert_whole(&outbox);
        let report = outbox.verify(&mut |_| {}).unwrap();
        let of_old = met.map_or(report.plain, |key| report.keys[&key]);
        assert_eq!(of_old, LIVE, "whoever leans on a body is counted with its key");
        let rows = keys_of(&store, 7).len();
        assert_eq!(keep(&outbox, opened.epoch, 16), 2, "each run is written anew");
        let report = outbox.verify(&mut |_| {}).unwrap();
        assert_eq!((report.keys, report.plain), (BTreeMap::from([(KeyId(2), LIVE)]), 0));
        assert_eq!((outbox.keys(), shown(&store)), (vec![KeyId(2)], 0));
        assert_eq!(keys_of(&store, 7).len(), rows, "bodies of old runs are left behind");
        drop(outbox);
        let (outbox, opened) = open_with(&store, &sealing(2, &[]));
        assert_whole(&outbox);
        assert_eq!(keep(&outbox, opened.epoch, 16), 0, "nothing is written anew without a reason");
        // Once more, while runs are merged.
        drop(outbox);
        let (outbox, opened) = open_with(&store, &sealing(3, &[2]));
        assert_eq!(keep(&outbox, opened.epoch, 1), 1);
        assert_eq!(outbox.keys(), [KeyId(3)]);
        assert_whole(&open_with(&store, &sealing(3, &[])).0);
    }
}

#[test]
fn a_run_in_which_everything_is_shared_is_sealed_anew_too() {
    let store = MemoryStore::new();
    let (outbox, opened) = open_with(&store, &sealing(1, &[]));
    settle(&outbox, opened.epoch, survivors(fan(1, 20, 300)), 50);
    assert_eq!(outbox.keys(), [KeyId(1)]);
    drop(outbox);
    let (outbox, opened) = open_with(&store, &sealing(2, &[1]));
    assert_eq!((keep(&outbox, opened.epoch, 16), outbox.keys()), (1, vec![KeyId(2)]));
    assert_eq!(one(&open_with(&store, &sealing(2, &[])).0, "user0019").len(), 1);
}

#[test]
fn whoever_leans_on_a_body_whose_key_is_missing_waits_and_nothing_is_damaged() {
    let store = MemoryStore::new();
    drop(fill(&store, &sealing(1, &[])));
    drop(open_with(&store, &sealing(2, &[1])));
    let wrong = sealing(2, &[]);
    let (outbox, opened) = open_with(&store, &wrong);
    for read_totals in [false, true] {
        if read_totals {
            assert_eq!(totals(&outbox, "user0003").1.messages, 4, "they still wait");
        }
        let query = Query::Page {
            user: user("user0003"),
            lane: LaneId::Normal,
            after: Seq::ZERO,
            ended: Vec::new(),
            max_messages: 10,
            max_bytes: u64::MAX,
        };
        let error = outbox.load(&query).unwrap_err();
        assert!(matches!(error, StoreError::Sealed(error) if error.key() == KeyId(1)), "{error}");
    }
    let report = outbox.verify(&mut |_| {}).unwrap();
    assert_eq!((report.unopened, report.damage.len()), (LIVE, 0));
    assert!(outbox.export(&mut Vec::new()).is_err(), "an export would lack them");
    assert_eq!(keep(&outbox, opened.epoch, 1), 1, "they are merged as they are");
    assert_eq!(outbox.keys(), [KeyId(1)]);
    drop(outbox);
    assert!(super::sealed::try_open(&store, &impostor(2)).is_err());
    assert_whole(&open_with(&store, &sealing(2, &[1])).0);
}

#[test]
fn a_shared_body_that_was_changed_or_exchanged_is_damage_to_those_who_lean_on_it_and_to_nobody_else() {
    let store = MemoryStore::new();
    let (outbox, opened) = open_with(&store, &sealing(1, &[]));
    // The same sender, bytes and people: another message.
    let mut all = fan(1, 5, 300);
    all.extend(fan(6, 5, 300));
    all.extend(fan(11, 5, 300));
    settle(&outbox, opened.epoch, survivors(all), 50);
    let rows = keys_of(&store, 7);
    let [one, two, three] = &rows[..] else { panic!("{rows:?}") };
    let value = |key: &[u8]| store.read(key).unwrap().unwrap();
    let (whole, other) = (value(&one.0), value(&two.0));
    let damaged = |outbox: &OutboxStore| {
        let found = page(outbox, "user0002", LaneId::Normal, 0, &[], 10);
        found.damaged.iter().map(|(seq, _)| seq.get()).collect::<Vec<_>>()
    };
    assert_eq!(damaged(&outbox), [0; 0]);
    let mut flipped = whole.clone();
    flipped[200] ^= 1;
    for (key, changed, hit) in [(one, flipped, 3), (one, other, 3), (three, whole.clone(), 13)] {
        let before = value(&key.0);
        put(&store, opened.epoch, key.0.clone(), changed);
        assert_eq!(damaged(&outbox), [hit]);
        let report = outbox.verify(&mut |_| {}).unwrap();
        assert_eq!((report.damage.len(), report.unopened), (5, 0));
        put(&store, opened.epoch, key.0.clone(), before);
    }
    // What is damaged when keys are exchanged goes on to be, once it is loaded, and the key is free.
    let mut flipped = whole;
    flipped[200] ^= 1;
    put(&store, opened.epoch, one.0.clone(), flipped);
    drop(outbox);
    let (outbox, opened) = open_with(&store, &sealing(2, &[1]));
    let mut merge = Merge::plan(&outbox, 16, Timestamp::ZERO).unwrap();
    while merge.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
    assert_eq!((merge.damage().len(), outbox.keys()), (1, vec![KeyId(2)]));
    drop(outbox);
    let (outbox, _) = open_with(&store, &sealing(2, &[]));
    assert_eq!(damaged(&outbox), [3]);
}

#[test]
fn sealing_shared_bodies_anew_changes_nothing_that_is_seen_wherever_it_crashes() {
    let some = [0, 7, 19].map(|n| everybody(20).swap_remove(n));
    for old in [Cipher::plain(), sealing(1, &[])] {
        for steps in 0.. {
            let mut all_done = true;
            for kept in [Kept::None, Kept::First(1), Kept::Seeded(5), Kept::All] {
                let store = FaultyStore::new();
                drop(fill(&store, &old));
                let (outbox, opened) = open_with(&store, &sealing(2, &[1]));
                let mut merging = Merge::plan(&outbox, 1, Timestamp::ZERO).unwrap();
                all_done &=
                    (0..steps).any(|_| merging.step(&outbox, opened.epoch).unwrap() == Progress::Done);
                store.crash(kept);
                let (outbox, opened) = open_with(&store, &sealing(2, &[1]));
                assert_whole_for(&outbox, &some);
                keep(&outbox, opened.epoch, 1);
                assert_whole_for(&outbox, &some);
                assert_eq!((outbox.keys(), shown(&store)), (vec![KeyId(2)], 0));
                let rows = keys_of(&store, 7).len();
                assert_eq!(rows, 2 * (3 + 1), "after {steps} steps, {kept:?}");
            }
            if all_done {
                break;
            }
        }
    }
}

#[test]
fn an_export_of_what_many_share_is_sealed_and_an_import_seals_it_once_again() {
    let outbox = fill(&MemoryStore::new(), &sealing(1, &[]));
    let mut stream = Vec::new();
    assert_eq!(outbox.export(&mut stream).unwrap().messages, LIVE);
    assert!(!super::sealed::shows_payload(&stream));
    let store = MemoryStore::new();
    let import = |cipher| OutboxStore::import_with(Arc::new(store.clone()), None, &mut &*stream, cipher);
    assert!(matches!(import(sealing(2, &[])), Err(ImportError::Sealed(_))));
    assert_eq!(import(sealing(2, &[1])).unwrap().messages, LIVE);
    let (copy, _) = open_with(&store, &sealing(2, &[]));
    assert_whole(&copy);
    assert_eq!((copy.keys(), shown(&store)), (vec![KeyId(2)], 0));
    assert_eq!(copy.runs().iter().map(|run| run.shared).collect::<Vec<_>>(), [2, 2]);
    let report = copy.verify(&mut |_| {}).unwrap();
    assert_eq!(report.keys, BTreeMap::from([(KeyId(2), LIVE)]));
}

/// Ids, a version, times and a trace are not within a message's cost, and the seal is not either.
#[test]
fn a_message_with_everything_that_can_be_said_is_whole_whether_it_lies_in_parts_or_not() {
    let long = |byte: u8| vec![byte; 255];
    let burial = |n| Burial {
        reason: EndReason::Dead,
        attempts: u32::MAX,
        possibly_delivered: true,
        at: Timestamp::from_millis(u64::MAX - n),
    };
    for cipher in [Cipher::plain(), sealing(u32::MAX, &[])] {
        let (outbox, opened) = open_with(&MemoryStore::new(), &cipher);
        let all: Vec<_> = (1..1500_u64)
            .map(|n| {
                let mut builder = Message::to("bob", "a.b", vec![1; n as usize])
                    .sender(UserId::new(long(b's')).unwrap())
                    .ordering_key(crate::id::OrderingKey::new(long(b'o')).unwrap())
                    .collapse_key(crate::id::CollapseKey::new(long(b'c')).unwrap())
                    .version(u64::MAX)
                    .ttl(core::time::Duration::from_millis(u64::MAX / 2))
                    .traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
                for h in 0..crate::message::MAX_HEADERS {
                    builder = builder.header(format!("{h}"), "");
                }
                let origin =
                    Some(Origin { stream: StreamId::from_u128(u128::MAX), seq: Seq::new(u64::MAX - n) });
                let message = builder.build().unwrap();
                let at = Timestamp::from_millis(u64::MAX - n);
                let admission = Admission::Buried(burial(n));
                let accept = Accept { origin, admission, ..Accept::new(message, at) };
                (Seq::new(n), Arc::new(accept))
            })
            .collect();
        settle(&outbox, opened.epoch, survivors(all.clone()), 2000);
        let found = page(&outbox, "bob", LaneId::Dead, 0, &[], usize::MAX);
        assert_eq!((found.damaged.len(), found.entries.len()), (0, all.len()));
        assert!(found.entries == all);
        assert!((1..all.len() as u64).contains(&outbox.runs()[0].stubs), "some lie in parts, some do not");
    }
}
