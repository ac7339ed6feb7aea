//! Sealed outboxes: what is seen, what is on disk, what a key that is missing does, and how keys are exchanged.

use super::super::shared::Bodies;
use super::*;
use crate::error::KeyError;
use crate::id::KeyId;
use crate::ports::{Group, Journal, Key, Keyring, StoreError};
use crate::record::Record;
use crate::storage::journal::{JournalConfig, MemoryJournal};
use crate::storage::seal::cipher;

pub(super) fn sealing(current: u32, others: &[u32]) -> Cipher {
    let key = |id: u32| Key::new([id as u8; 32]);
    let ring = Keyring::new(KeyId(current), key(current));
    cipher(Arc::new(others.iter().fold(ring, |ring, id| ring.with(KeyId(*id), key(*id)))))
}

/// Numbers are those of the right keys, but the secrets are others.
pub(super) fn impostor(id: u32) -> Cipher {
    cipher(Arc::new(Keyring::new(KeyId(id), Key::new([0xEE; 32]))))
}

pub(super) fn try_open(
    store: &(impl Store + Clone + 'static),
    cipher: &Cipher,
) -> Result<(OutboxStore, Opened), OpenError> {
    OutboxStore::open_with(Arc::new(store.clone()), None, Epoch(0), FRESH, cipher.clone())
}

pub(super) fn open_with(store: &(impl Store + Clone + 'static), cipher: &Cipher) -> (OutboxStore, Opened) {
    try_open(store, cipher).unwrap()
}

/// Messages in chunks and in parts, for two people.
fn part(first: u64) -> Survivors {
    let mut part = Survivors { entries: entries("bob", first..first + 30, 300), ..Survivors::default() };
    part.entries.extend(entries("ann", first + 30..first + 34, 9000));
    // Inline as it is, in parts once it is sealed.
    part.entries.extend(entries("ann", first + 34..first + 36, 1990));
    part.dedup = (first..first + 36).map(|seq| id(1, seq, seq)).collect();
    part
}

const RUNS: [u64; 3] = [1, 51, 101];
const LIVE: u64 = 108;

fn fill(store: &(impl Store + Clone + 'static), cipher: &Cipher) -> OutboxStore {
    let (outbox, opened) = open_with(store, cipher);
    for first in RUNS {
        settle(&outbox, opened.epoch, vec![part(first)], first + 50);
    }
    outbox
}

fn assert_whole(outbox: &OutboxStore) {
    let all = |from: u64, to: u64| RUNS.iter().flat_map(|first| first + from..first + to).collect::<Vec<_>>();
    assert_eq!(places(outbox, "bob"), all(0, 30));
    assert_eq!(places(outbox, "ann"), all(30, 36));
    assert_eq!(ids(outbox, 1, 0).len(), 108);
    let report = outbox.verify(&mut |_| {}).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    assert_eq!((report.live, report.unopened), (LIVE, 0));
}

pub(super) fn all_rows(store: &dyn Store) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    store
        .scan(&[0], &[0xFF], &mut |key, value| {
            rows.push((key.to_vec(), value.unwrap().to_vec()));
            Flow::Continue
        })
        .unwrap();
    rows
}

/// Whether these bytes show a payload: of each, all bytes are the same.
pub(super) fn shows_payload(bytes: &[u8]) -> bool {
    bytes.windows(24).any(|window| window[0] != 0 && window.iter().all(|byte| *byte == window[0]))
}

/// Rows that show a payload.
pub(super) fn shown(store: &dyn Store) -> usize {
    all_rows(store).iter().filter(|(_, value)| shows_payload(value)).count()
}

/// Everything that a keeper would do with so many runs allowed.
pub(super) fn keep(outbox: &OutboxStore, epoch: Epoch, max_runs: usize) -> usize {
    (0..100).find(|_| !merge(outbox, epoch, max_runs, 0)).expect("it comes to an end")
}

#[test]
fn what_is_sealed_settles_merges_and_comes_back_without_being_shown() {
    let plain = MemoryStore::new();
    assert_whole(&fill(&plain, &Cipher::plain()));
    assert!(shown(&plain) > 30, "the scan finds what is there");
    let store = MemoryStore::new();
    let outbox = fill(&store, &sealing(1, &[]));
    assert_whole(&outbox);
    assert_eq!(shown(&store), 0);
    let (outbox, opened) = open_with(&store, &sealing(1, &[]));
    assert_whole(&outbox);
    assert_eq!(keep(&outbox, opened.epoch, 1), 1);
    assert_whole(&outbox);
    assert_eq!((shown(&store), outbox.keys()), (0, vec![KeyId(1)]));
    assert_eq!(keep(&outbox, opened.epoch, 1), 0, "nothing is written anew without a reason");
}

#[test]
fn the_digest_key_is_shown_where_nothing_is_sealed_and_only_there() {
    let secret = 0xC0FF_EE00_DEAD_BEEF_0123_4567_89AB_CDEF_u128;
    let dir = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for cipher in [Cipher::plain(), sealing(1, &[])] {
        let (store, manifest) = (MemoryStore::new(), dir.path().join(format!("{cipher:?}")));
        let fresh = Identity { digest_key: secret, ..FRESH };
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let (_, opened) =
            OutboxStore::open_with(shared.clone(), Some(manifest.clone()), Epoch(0), fresh, cipher.clone())
                .unwrap();
        assert_eq!(opened.identity.digest_key, secret);
        let (_, again) = OutboxStore::open_with(shared, None, Epoch(0), FRESH, cipher).unwrap();
        assert_eq!(again.identity.digest_key, secret, "it is the same after a reopening");
        let mut bytes = std::fs::read(manifest).unwrap();
        all_rows(&store).into_iter().for_each(|(_, value)| bytes.extend(value));
        let holds = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        found.push(holds(&secret.to_le_bytes()) || holds(&secret.to_be_bytes()));
    }
    assert_eq!(found, [true, false]);
}

#[test]
fn a_wrong_missing_or_forgotten_key_refuses_to_open_and_changes_nothing() {
    let store = MemoryStore::new();
    drop(fill(&store, &sealing(1, &[])));
    let before = all_rows(&store);
    let key = KeyId(1);
    for (cipher, expected) in [
        (Cipher::plain(), KeyError::NoKeys { key }),
        (sealing(2, &[3]), KeyError::UnknownKey { key }),
        (impostor(1), KeyError::WrongKey { key }),
    ] {
        match try_open(&store, &cipher) {
            Err(OpenError::Sealed(error)) => assert_eq!(error, expected),
            other => panic!("{:?}", other.map(|(_, opened)| opened)),
        }
        assert_eq!(all_rows(&store), before);
    }
    assert_whole(&open_with(&store, &sealing(1, &[])).0);
}

#[test]
fn after_merging_under_a_new_key_the_old_one_is_needed_no_more() {
    let store = MemoryStore::new();
    drop(fill(&store, &sealing(1, &[])));
    let (outbox, opened) = open_with(&store, &sealing(2, &[1]));
    assert_eq!(outbox.keys(), [KeyId(1)]);
    let met = outbox.verify(&mut |_| {}).unwrap().keys;
    assert_eq!(met, BTreeMap::from([(KeyId(1), LIVE)]));
    let bodies = census(&store)[&3];
    assert_eq!(keep(&outbox, opened.epoch, 16), 3, "each run is written anew");
    assert_eq!(outbox.keys(), [KeyId(2)]);
    let report = outbox.verify(&mut |_| {}).unwrap();
    assert_eq!((report.keys, report.plain), (BTreeMap::from([(KeyId(2), LIVE)]), 0));
    assert_eq!(census(&store)[&3], bodies, "old copies of bodies are left behind");
    drop(outbox);
    let (outbox, opened) = open_with(&store, &sealing(2, &[]));
    assert_whole(&outbox);
    // And once more: the bodies go back to the places of the first copy.
    drop((outbox, opened));
    let (outbox, opened) = open_with(&store, &sealing(3, &[2]));
    assert_eq!(keep(&outbox, opened.epoch, 1), 1, "merging seals anew as well");
    assert_whole(&outbox);
    assert_eq!((outbox.keys(), census(&store)[&3]), (vec![KeyId(3)], bodies));
    assert_whole(&open_with(&store, &sealing(3, &[])).0);
}

#[test]
fn one_opening_puts_the_table_under_the_new_key() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    for (cipher, opens) in
        [(sealing(1, &[]), true), (sealing(2, &[]), false), (sealing(2, &[1]), true), (sealing(2, &[]), true)]
    {
        // With a manifest the table is not written at each opening anyway.
        let manifest = Some(dir.path().join("manifest"));
        let opened = OutboxStore::open_with(Arc::clone(&store), manifest, Epoch(0), FRESH, cipher);
        assert_eq!(opened.is_ok(), opens);
    }
}

#[test]
fn what_was_plain_before_is_sealed_in_the_background() {
    let store = MemoryStore::new();
    drop(fill(&store, &Cipher::plain()));
    let (outbox, opened) = open_with(&store, &sealing(1, &[]));
    assert_whole(&outbox);
    assert_eq!(outbox.verify(&mut |_| {}).unwrap().plain, LIVE);
    settle(
        &outbox,
        opened.epoch,
        vec![Survivors { entries: entries("new", [160], 300), ..Survivors::default() }],
        170,
    );
    let plain = shown(&store);
    assert!(plain > 30);
    assert_eq!(keep(&outbox, opened.epoch, 16), 3);
    assert_eq!((shown(&store), outbox.keys()), (0, vec![KeyId(1)]));
    assert_eq!(places(&outbox, "new"), [160]);
    assert!(matches!(try_open(&store, &Cipher::plain()), Err(OpenError::Sealed(_))));
}

#[test]
fn a_message_whose_key_is_missing_is_an_error_of_the_load_and_not_damage() {
    let store = MemoryStore::new();
    drop(fill(&store, &sealing(1, &[])));
    let (outbox, opened) = open_with(&store, &sealing(2, &[1]));
    settle(
        &outbox,
        opened.epoch,
        vec![Survivors { entries: entries("new", [160], 300), ..Survivors::default() }],
        170,
    );
    drop(outbox);
    for without in [
        sealing(2, &[]),
        cipher(Arc::new(Keyring::new(KeyId(2), Key::new([2; 32])).with(KeyId(1), Key::new([9; 32])))),
    ] {
        let (outbox, opened) = open_with(&store, &without);
        let query = Query::Page {
            user: user("bob"),
            lane: LaneId::Normal,
            after: Seq::ZERO,
            ended: Vec::new(),
            max_messages: 10,
            max_bytes: u64::MAX,
        };
        let error = outbox.load(&query).unwrap_err();
        assert!(matches!(error, StoreError::Sealed(error) if error.key() == KeyId(1)), "{error}");
        assert_eq!(totals(&outbox, "bob").1.messages, 90, "they still wait");
        assert!(outbox.waiting(&user("bob"), LaneId::Normal, Seq::new(1)).is_err());
        assert_eq!(places(&outbox, "new"), [160], "others are not concerned");
        let report = outbox.verify(&mut |_| {}).unwrap();
        assert_eq!((report.unopened, report.damage.len()), (LIVE, 0));
        assert!(outbox.export(&mut Vec::new()).is_err(), "an export would lack them");
        assert_eq!(keep(&outbox, opened.epoch, 16), 0, "what cannot be read is not written anew");
        assert!(outbox.suspects().is_empty());
    }
    // Also when there are too many runs: they are merged as they are.
    let (outbox, opened) = open_with(&store, &sealing(2, &[]));
    assert_eq!(keep(&outbox, opened.epoch, 1), 1);
    assert_eq!(outbox.keys(), [KeyId(1), KeyId(2)]);
    drop(outbox);
    let (outbox, opened) = open_with(&store, &sealing(2, &[1]));
    assert_eq!(places(&outbox, "bob").len(), 90);
    assert_eq!(keep(&outbox, opened.epoch, 16), 1);
    assert_eq!((outbox.keys(), places(&outbox, "ann").len()), (vec![KeyId(2)], 18));
}

#[test]
fn sealing_anew_changes_nothing_that_is_seen_wherever_it_crashes() {
    let first = || part(1);
    let prepare = |store: &FaultyStore, old: &Cipher| {
        let (outbox, opened) = open_with(store, old);
        settle(&outbox, opened.epoch, vec![first()], 51);
        let rows = vec![(user("ann"), row(60, 31, &[33]))];
        settle(&outbox, opened.epoch, vec![Survivors { rows, ..Survivors::default() }], 60);
        drop(outbox);
        open_with(store, &sealing(2, &[1]))
    };
    for old in [Cipher::plain(), sealing(1, &[])] {
        for steps in 0.. {
            let mut all_done = true;
            for kept in [Kept::None, Kept::First(1), Kept::First(3), Kept::Seeded(5), Kept::All] {
                let store = FaultyStore::new();
                let (outbox, opened) = prepare(&store, &old);
                let mut merging = Merge::plan(&outbox, 16, Timestamp::ZERO).unwrap();
                let done = (0..steps).any(|_| merging.step(&outbox, opened.epoch).unwrap() == Progress::Done);
                all_done &= done;
                store.crash(kept);
                let (outbox, opened) = open_with(&store, &sealing(2, &[1]));
                let check = |outbox: &OutboxStore| {
                    assert_eq!(places(outbox, "ann"), [32, 34, 35, 36], "after {steps} steps, {kept:?}");
                    assert_eq!(places(outbox, "bob").len(), 30);
                    assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
                };
                check(&outbox);
                keep(&outbox, opened.epoch, 16);
                check(&outbox);
                assert_eq!((outbox.keys(), shown(&store)), (vec![KeyId(2)], 0));
                assert_eq!(
                    census(&store)[&3],
                    2 * 3 + 2,
                    "bodies are left behind after {steps} steps, {kept:?}"
                );
            }
            if all_done {
                break;
            }
        }
    }
}

#[test]
fn bodies_that_were_sealed_anew_in_vain_go_with_their_messages() {
    for old in [Cipher::plain(), sealing(1, &[])] {
        let store = MemoryStore::new();
        let (outbox, opened) = open_with(&store, &old);
        settle(&outbox, opened.epoch, vec![part(1)], 51);
        drop(outbox);
        let (outbox, opened) = open_with(&store, &sealing(2, &[1]));
        let bodies = census(&store)[&3];
        let mut merge = Merge::plan(&outbox, 16, Timestamp::ZERO).unwrap();
        assert_eq!(merge.step(&outbox, opened.epoch).unwrap(), Progress::More);
        assert!(census(&store)[&3] > bodies);
        drop(merge);
        let rows = vec![(user("ann"), row(60, 36, &[])), (user("bob"), row(60, 36, &[]))];
        let died = (1..37).map(Seq::new).collect();
        settle(&outbox, opened.epoch, vec![Survivors { rows, died, ..Survivors::default() }], 60);
        keep(&outbox, opened.epoch, 16);
        assert_eq!(census(&store).get(&3), None);
    }
}

#[test]
fn readers_of_the_old_run_keep_its_bodies_while_it_is_sealed_anew() {
    let store = MemoryStore::new();
    drop(fill(&store, &sealing(1, &[])));
    let (outbox, opened) = open_with(&store, &sealing(2, &[1]));
    let reader = outbox.table();
    let mut merge = Merge::plan(&outbox, 16, Timestamp::ZERO).unwrap();
    while merge.step(&outbox, opened.epoch).unwrap() == Progress::More {}
    assert_eq!(merge.step(&outbox, opened.epoch).unwrap(), Progress::Busy);
    let run = reader.runs[0].number;
    assert!(outbox.table().runs.iter().all(|newer| newer.number != run));
    let (from, to) = keys::chunks_of(run, run);
    let mut read = 0;
    store
        .scan(&from, &to, &mut |_, value| {
            let mut users = Vec::new();
            for entry in chunk::entries(value.unwrap(), &mut users) {
                load::message_of(&outbox, run, &entry.unwrap(), &mut Bodies::default()).unwrap();
                read += 1;
            }
            Flow::Continue
        })
        .unwrap();
    assert_eq!(read, 36);
    drop(reader);
    while merge.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
    assert_whole(&outbox);
}

/// A change of one row, of which the store's checksum knows.
pub(super) fn put(store: &MemoryStore, epoch: Epoch, key: Vec<u8>, value: Vec<u8>) {
    let mut batch = Batch::new();
    batch.put(key, value);
    store.apply(epoch, batch).unwrap();
}

#[test]
fn a_sealed_body_that_was_changed_or_exchanged_is_damage_and_the_others_load() {
    let store = MemoryStore::new();
    let (outbox, opened) = open_with(&store, &sealing(1, &[]));
    let mut all = entries("ann", 1..4, 3000);
    all.extend(entries("bob", [4], 3000));
    settle(&outbox, opened.epoch, vec![Survivors { entries: all, ..Survivors::default() }], 10);
    let body = |seq: u64| keys::Key::Body { seq: Seq::new(seq), part: 0 }.encode();
    let value = |seq: u64| store.read(&body(seq)).unwrap().unwrap();
    let damaged = |name: &str| {
        let page = page(&outbox, name, LaneId::Normal, 0, &[], 10);
        page.damaged.iter().map(|(seq, _)| seq.get()).collect::<Vec<_>>()
    };
    let (one, three, bobs) = (value(1), value(3), value(4));
    assert_eq!((one.len(), three.len()), (bobs.len(), bobs.len()));
    // A bit of the ciphertext.
    let mut flipped = one.clone();
    flipped[2000] ^= 1;
    put(&store, opened.epoch, body(1), flipped);
    assert_eq!(damaged("ann"), [1]);
    put(&store, opened.epoch, body(1), one.clone());
    assert_eq!(damaged("ann"), [0; 0]);
    // Somebody else's message as it is, and its contents under the name of this one. (Ids are random and times the same.)
    put(&store, opened.epoch, body(4), one.clone());
    assert_eq!(damaged("bob"), [4]);
    let contents = |bytes: &[u8]| bytes.windows(4).position(|window| window == 1_u32.to_le_bytes()).unwrap();
    let at = contents(&three).max(contents(&one));
    let moved = [&three[..at], &one[at..]].concat();
    put(&store, opened.epoch, body(3), moved);
    assert_eq!(damaged("ann"), [3]);
    assert_eq!(outbox.verify(&mut |_| {}).unwrap().damage.len(), 2);
}

#[test]
fn an_export_is_sealed_anew_and_imports_with_its_key_only() {
    let outbox = fill(&MemoryStore::new(), &sealing(1, &[]));
    let mut stream = Vec::new();
    assert_eq!(outbox.export(&mut stream).unwrap().messages, LIVE);
    assert!(!shows_payload(&stream));
    let mut plain = Vec::new();
    fill(&MemoryStore::new(), &Cipher::plain()).export(&mut plain).unwrap();
    assert!(shows_payload(&plain), "the scan finds what is there");
    let import = |bytes: &[u8], cipher: Cipher| {
        let store = MemoryStore::new();
        let result = OutboxStore::import_with(Arc::new(store.clone()), None, &mut &*bytes, cipher);
        (store, result)
    };
    for cipher in [Cipher::plain(), sealing(2, &[]), impostor(1)] {
        let (store, result) = import(&stream, cipher);
        assert!(matches!(result, Err(ImportError::Sealed(error)) if error.key() == KeyId(1)), "{result:?}");
        assert!(all_rows(&store).is_empty());
    }
    // Into another key, and from plain to sealed.
    for bytes in [&stream, &plain] {
        let (store, result) = import(bytes, sealing(2, &[1]));
        assert_eq!((result.unwrap().messages, shown(&store)), (LIVE, 0));
        let (copy, opened) = open_with(&store, &sealing(2, &[]));
        assert_eq!((copy.keys(), opened.identity), (vec![KeyId(2)], FRESH));
        assert_whole(&copy);
    }
}

/// One group, from this place on.
fn journal_of(first: u64, ciphers: &[&Cipher]) -> MemoryJournal {
    let config = JournalConfig { segment_bytes: 1 << 16, segments: 4 };
    let mut journal = MemoryJournal::new(config).unwrap();
    journal.replay(Seq::ZERO, &mut |_| Ok(())).unwrap();
    journal.begin(Epoch(1)).unwrap();
    let mut records = Vec::new();
    for cipher in ciphers {
        cipher.encode_record(&Record::Accept(accept("bob", LaneId::Normal, vec![1; 50])), &mut records);
    }
    let count = u32::try_from(ciphers.len()).unwrap();
    journal.append(Epoch(1), Group { first: Seq::new(first), count, records: &records }, false).unwrap();
    journal.sync(Epoch(1)).unwrap();
    journal.clone()
}

#[test]
fn a_journal_whose_key_is_missing_stops_recovery_unless_it_has_settled() {
    let store = MemoryStore::new();
    let (outbox, opened) = open_with(&store, &sealing(2, &[]));
    settle(&outbox, opened.epoch, Vec::new(), 102);
    drop(outbox);
    let replay = |cipher: &Cipher, first: u64, ciphers: &[&Cipher]| {
        let (_, opened) = open_with(&store, cipher);
        let mut applied = Vec::new();
        let mut journal = journal_of(first, ciphers);
        recover(&opened, &mut journal, 1, &mut |_, seq, _, _| applied.push(seq.get()))
            .map(|recovered| (applied, recovered.keys(), recovered.bad.len()))
    };
    let (old, new, both) = (sealing(1, &[]), sealing(2, &[]), sealing(2, &[1]));
    let result = replay(&new, 102, &[&new, &old, &new]);
    assert!(
        matches!(result, Err(RecoverError::Sealed(KeyError::UnknownKey { key: KeyId(1) }))),
        "{result:?}"
    );
    // What has settled is handed over with the rest of its group.
    assert_eq!(replay(&new, 100, &[&old, &old, &new]).unwrap(), (vec![102], vec![KeyId(2)], 0));
    assert_eq!(replay(&both, 100, &[&old, &old, &new]).unwrap(), (vec![102], vec![KeyId(2)], 0));
    let result = replay(&both, 102, &[&new, &old, &Cipher::plain()]);
    assert_eq!(result.unwrap(), (vec![102, 103, 104], vec![KeyId(2), KeyId(1)], 0));
}

#[test]
fn debug_output_shows_no_payload_and_no_key() {
    let store = MemoryStore::new();
    let (outbox, opened) = open_with(&store, &sealing(0x4B, &[]));
    let mut all = entries("bob", [77], 300);
    all.extend(entries("bob", [78], 3000));
    let mut settlement = settlement(vec![Survivors { entries: all, ..Survivors::default() }], 90);
    let mut texts = vec![format!("{settlement:?} {opened:?} {outbox:?} {:?}", outbox.cipher())];
    while settlement.step(&outbox, opened.epoch).unwrap() != Progress::Done {
        texts.push(format!("{settlement:?}"));
    }
    drop(outbox);
    let (outbox, opened) = open_with(&store, &sealing(2, &[0x4B]));
    let mut merge = Merge::plan(&outbox, 16, Timestamp::ZERO).unwrap();
    while merge.step(&outbox, opened.epoch).unwrap() != Progress::Done {
        texts.push(format!("{merge:?}"));
    }
    let found = page(&outbox, "bob", LaneId::Normal, 0, &[], 9);
    assert_eq!(found.entries.len(), 2);
    texts.push(format!("{found:?} {:?}", outbox.table()));
    for text in texts {
        for shown in ["77, 77, 77, 77", "78, 78, 78, 78", "75, 75, 75, 75", "MMMM", "NNNN", "KKKK", "4b4b4b"]
        {
            assert!(!text.contains(shown), "{shown} in {text}");
        }
    }
}
