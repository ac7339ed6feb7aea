//! Whom one message reached is remembered by who they are, as long as that takes less than a digest.

use super::shared::{everybody, fan, keys_of};
use super::*;
use crate::codec::{DedupChunk, Named, decode_dedup};
use crate::ports::{Batch, MAX_VALUE_BYTES};
use crate::record::Slots;

const PEOPLE: u64 = 2_000;
const SENDER: u128 = 5;
/// The kind of keys that remembered ids have.
const IDS: u8 = 4;

fn digester() -> Digester {
    Digester::new(FRESH.digest_key)
}

/// The ids of these messages.
fn remembered(entries: &[(Seq, Arc<Accept>)]) -> Vec<DedupRow> {
    let row = |(seq, accept): &(Seq, Arc<Accept>)| {
        let key = Named::of(&accept.message).key(&digester());
        DedupRow { sender: SENDER, key, content: 3, seq: *seq, at: accept.at, among: Slots::NONE }
    };
    entries.iter().map(row).collect()
}

fn loaded(outbox: &OutboxStore, since: u64) -> Vec<DedupRow> {
    newest(outbox, since, usize::MAX)
}

fn newest(outbox: &OutboxStore, since: u64, max: usize) -> Vec<DedupRow> {
    let query = Query::Sender { sender: SENDER, since: Timestamp::from_millis(since), max };
    match outbox.load(&query).unwrap() {
        Found::Sender(rows) => rows,
        other => panic!("{other:?}"),
    }
}

/// Settles so many messages at a time, with their ids, and says behind which place.
fn settle_by(
    outbox: &OutboxStore,
    epoch: Epoch,
    (entries, ids): (&[(Seq, Arc<Accept>)], &[DedupRow]),
    size: usize,
) -> u64 {
    let mut before = 1;
    for (entries, dedup) in entries.chunks(size).zip(ids.chunks(size)) {
        before += size as u64;
        let part = Survivors { entries: entries.to_vec(), dedup: dedup.to_vec(), ..Survivors::default() };
        settle(outbox, epoch, vec![part], before);
    }
    before
}

/// Found by review: after an hour of messages without a sender, the first one after an opening read millions.
#[test]
fn only_the_newest_ids_of_a_sender_are_read_also_of_one_run_and_over_several() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let entries = fan(1, PEOPLE, 300);
    let all = remembered(&entries);
    settle_by(&outbox, opened.epoch, (&entries, &all), 100);
    assert_eq!(outbox.runs().len(), 20);
    let people = all.len();
    for runs in [20, 1] {
        while merge(&outbox, opened.epoch, runs, 0) {}
        for max in [0, 1, 99, 100, 101, 250, people - 1, people, people + 1] {
            assert_eq!(newest(&outbox, 0, max), all[people.saturating_sub(max)..], "{max} of {runs} runs");
        }
    }
}

fn bytes(store: &dyn Store) -> u64 {
    keys_of(store, IDS).into_iter().map(|(key, value)| (key.len() + value) as u64).sum()
}

#[test]
fn ids_of_one_message_to_many_are_short_and_the_same_through_settling_merging_ends_and_an_export() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let entries = fan(1, PEOPLE, 300);
    let all = remembered(&entries);
    let before = settle_by(&outbox, opened.epoch, (&entries, &all), 500);
    assert_eq!(outbox.runs().len(), 4);
    assert_eq!(loaded(&outbox, 0), all);
    assert!(bytes(&store) < PEOPLE * 6, "{} bytes", bytes(&store));

    // Everybody gets it; who it was is then known by what is remembered alone.
    let rows = everybody(PEOPLE).iter().map(|name| (user(name), row(before, before - 1, &[]))).collect();
    let died = (1..=PEOPLE).map(Seq::new).collect();
    settle(&outbox, opened.epoch, vec![Survivors { rows, died, ..Survivors::default() }], before + 1);
    while merge(&outbox, opened.epoch, 1, 0) {}
    assert_eq!((outbox.runs().len(), outbox.runs()[0].entries), (1, 0));
    assert_eq!(loaded(&outbox, 0), all);
    assert_eq!(loaded(&outbox, 1_001), all[1_000..]);
    assert!(bytes(&store) < PEOPLE * 6, "{} bytes", bytes(&store));
    let verified = outbox.verify(&mut |_| {}).unwrap();
    assert_eq!((verified.ids, verified.damage), (PEOPLE, Vec::new()));

    let mut export = Vec::new();
    assert_eq!(outbox.export(&mut export).unwrap().ids, PEOPLE);
    let copy = MemoryStore::new();
    OutboxStore::import(Arc::new(copy.clone()), None, &mut &export[..]).unwrap();
    let (imported, _) = open(&copy);
    assert_eq!(loaded(&imported, 0), all);
    assert!(bytes(&copy) < PEOPLE * 6, "{} bytes", bytes(&copy));
}

#[test]
fn ids_of_messages_that_have_ended_before_they_settle_stand_between_those_that_have_not() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let mut entries = fan(1, PEOPLE, 300);
    let dedup = remembered(&entries);
    entries.retain(|(seq, _)| seq.get() % 3 != 0);
    let part = Survivors { entries, dedup: dedup.clone(), ..Survivors::default() };
    settle(&outbox, opened.epoch, vec![part], PEOPLE + 1);
    assert_eq!(loaded(&outbox, 0), dedup);
    assert!(bytes(&store) < PEOPLE * 12, "{} bytes", bytes(&store));
}

/// The chunks of remembered ids, as they are.
fn chunks(store: &dyn Store) -> Vec<(Vec<u8>, Vec<u8>)> {
    let keys = keys_of(store, IDS).into_iter().map(|(key, _)| key);
    keys.map(|key| (key.clone(), store.read(&key).unwrap().unwrap())).collect()
}

/// What version 1 made of these ids: digests, as version 2 does when it knows nothing more.
fn of_version_1(rows: &[DedupRow]) -> Vec<u8> {
    let mut chunk = DedupChunk::default();
    rows.iter().for_each(|row| assert!(chunk.push(row, None, &digester(), MAX_VALUE_BYTES)));
    let (.., mut value) = chunk.take().unwrap();
    value[0] = 1;
    value
}

#[test]
fn ids_that_version_1_wrote_are_remembered_and_written_anew_by_a_merge() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let entries = fan(1, 300, 300);
    let all = remembered(&entries);
    for (n, (entries, dedup)) in (1..).zip(entries.chunks(100).zip(all.chunks(100))) {
        let part = Survivors { entries: entries.to_vec(), dedup: dedup.to_vec(), ..Survivors::default() };
        settle(&outbox, opened.epoch, vec![part], n * 100 + 1);
    }
    let mut older = Batch::new();
    // The newest run stays as it is.
    for (key, value) in chunks(&store).into_iter().take(2) {
        let rows: Vec<_> = decode_dedup(&value, digester()).map(Result::unwrap).collect();
        older.put(key, of_version_1(&rows));
    }
    store.apply(opened.epoch, older).unwrap();
    let versions = |store| chunks(store).iter().map(|(_, value)| value[0]).collect::<Vec<_>>();
    assert_eq!(versions(&store), [1, 1, 2]);

    drop(outbox);
    let (outbox, opened) = open(&store);
    assert_eq!(loaded(&outbox, 0), all);
    let verified = outbox.verify(&mut |_| {}).unwrap();
    assert_eq!((verified.ids, verified.damage), (300, Vec::new()));
    let mut export = Vec::new();
    assert_eq!(outbox.export(&mut export).unwrap().ids, 300);
    while merge(&outbox, opened.epoch, 1, 0) {}
    assert!(versions(&store).iter().all(|version| *version == 2));
    assert_eq!(loaded(&outbox, 0), all);
    let copy = MemoryStore::new();
    OutboxStore::import(Arc::new(copy.clone()), None, &mut &export[..]).unwrap();
    assert_eq!(loaded(&open(&copy).0, 0), all);
}

#[cfg(feature = "sled")]
#[test]
fn a_directory_of_sled_whose_ids_version_1_wrote_is_opened_and_remembers_them() {
    let dir = tempfile::tempdir().unwrap();
    let entries = fan(1, 300, 300);
    let all = remembered(&entries);
    {
        let store = crate::storage::SledStore::open(dir.path()).unwrap();
        let (outbox, opened) = open(&store);
        for (n, (entries, dedup)) in (1..).zip(entries.chunks(100).zip(all.chunks(100))) {
            let part = Survivors { entries: entries.to_vec(), dedup: dedup.to_vec(), ..Survivors::default() };
            settle(&outbox, opened.epoch, vec![part], n * 100 + 1);
        }
        let mut older = Batch::new();
        for (key, value) in chunks(&store) {
            let rows: Vec<_> = decode_dedup(&value, digester()).map(Result::unwrap).collect();
            older.put(key, of_version_1(&rows));
        }
        store.apply(opened.epoch, older).unwrap();
        store.sync().unwrap();
    }
    let store = crate::storage::SledStore::open(dir.path()).unwrap();
    assert!(chunks(&store).iter().all(|(_, value)| value[0] == 1));
    let (outbox, opened) = open(&store);
    assert_eq!(loaded(&outbox, 0), all);
    assert_eq!(outbox.verify(&mut |_| {}).unwrap().damage, Vec::new());
    while merge(&outbox, opened.epoch, 1, 0) {}
    assert!(chunks(&store).iter().all(|(_, value)| value[0] == 2));
    assert_eq!(loaded(&outbox, 0), all);
}

/// An older build takes chunks of a newer version for damage: it forgets what they remember, and merges it away. It takes a
/// user's row of a newer version for lost, with its cursors, inbox and ledger. The table, which it reads first and refuses by
/// name, is what keeps it from that.
#[test]
fn whoever_raises_the_version_of_a_chunk_or_of_a_row_raises_the_format_of_the_table() {
    let chunks = (super::super::chunk::VERSION, crate::codec::DEDUP_VERSION);
    assert_eq!(
        (chunks, crate::codec::ROW_VERSION, super::super::meta::META_VERSION),
        ((1, 2), 5, 17),
        "raise all formats of the table too"
    );
}

/// Rows are written before the table is: one that an older build could open would lead it to them.
#[test]
fn a_table_of_an_older_format_is_written_anew_by_the_opening_and_before_any_row() {
    let dir = tempfile::tempdir().unwrap();
    let store = MemoryStore::new();
    // With a manifest the table is not written at each opening anyway.
    let manifest = Some(dir.path().join("manifest"));
    let reopened = || OutboxStore::open(Arc::new(store.clone()), manifest.clone(), Epoch(0), FRESH).unwrap();
    let (_, opened) = reopened();
    let key = keys::Key::Meta { part: 0 }.encode();
    let row = || store.read(&key).unwrap().unwrap();
    // The format stands behind the number of parts.
    let (mut older, newest) = (row(), row()[2]);
    older[2] = newest - 4;
    let mut batch = Batch::new();
    batch.put(key.clone(), older);
    store.apply(opened.epoch, batch).unwrap();
    let (_, opened) = reopened();
    assert_eq!((row()[2], opened.identity), (newest, FRESH));
}
