//! Damage is named, and everything else still loads.

use super::*;
use crate::ports::{Batch, Row, StoreError, Visit};
use crate::record::{DeviceRow, ForDevice, LedgerRows, Slot, Slots};

/// A store in which one row is damaged.
#[derive(Clone)]
pub(super) struct Rotten {
    pub(super) store: MemoryStore,
    pub(super) key: Vec<u8>,
}

impl Rotten {
    fn check(&self, key: &[u8]) -> Result<(), StoreError> {
        if key == self.key { Err(rows::damaged(key, "rot")) } else { Ok(()) }
    }
}

impl Store for Rotten {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.check(key)?;
        self.store.read(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.store.scan(from, to, &mut |key, value| visit(key, self.check(key).and(value)))
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, StoreError> {
        let row = self.store.last(from, to)?;
        row.map(|row| self.check(&row.0).map(|()| row)).transpose()
    }

    fn set_aside(&self, reason: &str) -> Result<(), StoreError> {
        self.store.set_aside(reason)
    }

    fn take_epoch(&self, above: Epoch) -> Result<Epoch, StoreError> {
        self.store.take_epoch(above)
    }

    fn apply(&self, epoch: Epoch, batch: Batch) -> Result<(), StoreError> {
        self.store.apply(epoch, batch)
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn reopen(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

#[test]
fn each_damaged_chunk_or_body_is_named_and_the_others_load() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let mut all = entries("bob", 0..50, 500);
    all.extend(entries("bob", 50..53, 9000));
    settle(&outbox, opened.epoch, vec![Survivors { entries: all, ..Survivors::default() }], 60);
    let mut keys = Vec::new();
    store
        .scan(&[2], &[4], &mut |key, _| {
            keys.push(key.to_vec());
            Flow::Continue
        })
        .unwrap();
    assert!(keys.len() > 10);
    for key in keys {
        let (outbox, opened) = open(&Rotten { store: store.clone(), key: key.clone() });
        assert!(opened.lost.is_empty());
        let first = match keys::Key::decode(&key) {
            Some(keys::Key::Chunk { seq, .. } | keys::Key::Body { seq, .. }) => seq,
            other => panic!("{other:?}"),
        };
        let found = page(&outbox, "bob", LaneId::Normal, 0, &[], usize::MAX);
        if first > Seq::ZERO {
            assert!(found.damaged.iter().any(|(seq, _)| *seq == first), "{first:?} is not named");
        }
        assert!(found.entries.len() > 40 && found.entries.len() < 53);
        let report = outbox.verify(&mut |_| {}).unwrap();
        assert!(report.damage.iter().any(|d| d.user == Some(user("bob")) && d.entry.unwrap().1 == first));
    }
}

#[test]
fn damaged_table_is_taken_from_the_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = Some(dir.path().join("manifest"));
    let store = MemoryStore::new();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let (outbox, opened) = OutboxStore::open(shared, manifest.clone(), Epoch(0), FRESH).unwrap();
    let all = entries("bob", 1..50, 500);
    settle(&outbox, opened.epoch, vec![Survivors { entries: all, ..Survivors::default() }], 60);
    let key = keys::Key::Meta { part: 0 }.encode();
    let mut batch = Batch::new();
    batch.put(key.clone(), b"garbage".to_vec());
    store.apply(opened.epoch, batch).unwrap();
    assert!(matches!(
        OutboxStore::open(Arc::new(store.clone()), None, Epoch(0), FRESH),
        Err(OpenError::Damaged(_))
    ));
    let fresh = Identity { stream: StreamId::from_u128(77), digest_key: 7 };
    let (outbox, opened) = OutboxStore::open(Arc::new(store), manifest.clone(), Epoch(0), fresh).unwrap();
    assert_eq!((opened.identity, opened.settled), (FRESH, Seq::new(60)));
    assert_eq!(places(&outbox, "bob").len(), 49);
}

#[test]
fn an_empty_store_beside_a_manifest_names_what_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = Some(dir.path().join("manifest"));
    let (outbox, opened) =
        OutboxStore::open(Arc::new(MemoryStore::new()), manifest.clone(), Epoch(0), FRESH).unwrap();
    let mut all = entries("bob", 1..50, 500);
    all.extend(entries("al", [55], 1));
    settle(&outbox, opened.epoch, vec![Survivors { entries: all, ..Survivors::default() }], 60);
    let fresh = Identity { stream: StreamId::from_u128(77), digest_key: 7 };
    let (_, opened) =
        OutboxStore::open(Arc::new(MemoryStore::new()), manifest.clone(), Epoch(0), fresh).unwrap();
    assert_eq!(opened.identity, fresh);
    let [loss] = &opened.lost[..] else { panic!("{:?}", opened.lost) };
    assert_eq!((loss.run.entries, loss.run.live), (50, 50));
    assert_eq!(loss.users(), Some((&user("al"), &user("bob"))));
}

/// Everybody has one message; they lie in chunks of many.
fn crowd(store: &MemoryStore) -> Vec<(Vec<u8>, Vec<String>)> {
    let (outbox, opened) = open(store);
    let names = (100..160).map(|n| format!("user{n}"));
    let entries = (1..).zip(names).flat_map(|(seq, name)| entries(&name, [seq], 200)).collect();
    settle(&outbox, opened.epoch, vec![Survivors { entries, ..Survivors::default() }], 100);
    let mut chunks = Vec::new();
    let (from, to) = keys::chunks_of(0, u64::MAX);
    let visit = &mut |key: &[u8], value: Result<&[u8], StoreError>| {
        let mut ids = Vec::new();
        let users = chunk::entries(value.unwrap(), &mut ids)
            .map(|e| String::from_utf8(e.unwrap().user.to_vec()).unwrap());
        chunks.push((key.to_vec(), users.collect()));
        Flow::Continue
    };
    store.scan(&from, &to, visit).unwrap();
    assert!(chunks.len() > 3);
    chunks
}

#[test]
fn whoever_may_have_lost_something_in_a_damaged_chunk_is_reported_and_nobody_else() {
    let store = MemoryStore::new();
    let chunks = crowd(&store);
    for (at, (key, _)) in chunks.iter().enumerate() {
        let (outbox, _) = open(&Rotten { store: store.clone(), key: key.clone() });
        for (of, (_, users)) in chunks.iter().enumerate() {
            for (i, name) in users.iter().enumerate() {
                let known = outbox.suspects().len();
                let live = totals(&outbox, name).1;
                let suspects = outbox.suspects();
                // Whose chunk comes next may have had messages of earlier lanes in the damaged one.
                if of == at + 1 && i == 0 {
                    assert_eq!((live.messages, suspects.len()), (1, known + 1), "{name}");
                    continue;
                }
                if of != at {
                    assert_eq!((live.messages, suspects.len()), (1, known), "{name}");
                    continue;
                }
                assert_eq!(suspects.last().unwrap().user, Some(user(name)), "nobody says what {name} lost");
                // The first one's message is known by its place, which is in the key.
                assert_eq!((live.messages, live.bytes), (u32::from(i == 0), 0));
                totals(&outbox, name);
                assert_eq!(outbox.suspects().len(), suspects.len(), "named once");
            }
        }
        let report = outbox.verify(&mut |_| {}).unwrap();
        let next = chunks.get(at + 1).map_or(chunks[at].1.last(), |(_, users)| users.first());
        let named = |d: &Damage| {
            d.user == Some(user(&chunks[at].1[0]))
                && d.entry.is_some()
                && d.until == next.map(|name| user(name))
        };
        assert!(report.damage.iter().any(named), "{:?}", report.damage);
    }
}

#[test]
fn a_user_whose_only_chunk_is_damaged_is_asked_for_a_page_and_the_message_is_named_in_it() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let all = entries("bob", 7..9, 100);
    settle(&outbox, opened.epoch, vec![Survivors { entries: all, ..Survivors::default() }], 60);
    let key = keys::chunk(outbox.runs()[0].number, &user("bob"), LaneId::Normal, Seq::new(7));
    let (outbox, _) = open(&Rotten { store, key });
    assert_eq!(totals(&outbox, "bob").1, Holdings { messages: 1, ..Holdings::default() });
    // There may have been more of theirs in it.
    let others = (Seq::ZERO, 0);
    assert_eq!(page(&outbox, "bob", LaneId::Normal, 0, &[], 9).damaged, [(Seq::new(7), 0), others]);
    // Behind the cursor the first one's place names nothing; that something may be lost is said all the same.
    let known = outbox.suspects().len();
    assert_eq!(page(&outbox, "bob", LaneId::Normal, 7, &[], 9).damaged, [others]);
    assert_eq!((known, outbox.suspects().len()), (1, 1));
}

#[test]
fn a_message_whose_body_is_damaged_is_named_with_what_it_cost() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let all = entries("bob", 7..9, 9000);
    settle(&outbox, opened.epoch, vec![Survivors { entries: all, ..Survivors::default() }], 60);
    let (_, Holdings { bytes, .. }) = totals(&outbox, "bob");
    let (outbox, _) = open(&Rotten { store, key: keys::Key::Body { seq: Seq::new(8), part: 1 }.encode() });
    let found = page(&outbox, "bob", LaneId::Normal, 0, &[], 9);
    assert_eq!((found.entries.len(), found.damaged), (1, vec![(Seq::new(8), bytes / 2)]));
}

/// Found by a review: without the row nothing of the user could settle, and nothing was delivered.
#[test]
fn a_damaged_row_is_reported_and_the_messages_of_its_user_are_delivered() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let mut part = Survivors { entries: entries("bob", 1..10, 10), ..Survivors::default() };
    part.rows.push((user("bob"), row(10, 3, &[5])));
    settle(&outbox, opened.epoch, vec![part], 10);
    assert_eq!(places(&outbox, "bob"), [4, 6, 7, 8, 9]);
    let key = keys::Key::User { user: user("bob") }.encode();
    let (outbox, opened) = open(&Rotten { store, key });
    let (found, held) = totals(&outbox, "bob");
    let ledger = LedgerRows { forgotten: Seq::new(10), ..LedgerRows::default() };
    let lost = UserRow { ledger, exposed: Epoch(opened.epoch.0 - 1), ..UserRow::default() };
    assert_eq!(
        found,
        Some(lost),
        "it had ends, of which nothing is known any more, and may have been offered any"
    );
    assert_eq!(held.messages, 9, "rather again than never");
    assert_eq!(page(&outbox, "bob", LaneId::Normal, 0, &[], 99).entries.len(), 9);
    assert_eq!(outbox.suspects().iter().map(|d| d.user.clone()).collect::<Vec<_>>(), [Some(user("bob"))]);
    let report = outbox.verify(&mut |_| {}).unwrap();
    assert!(report.damage.iter().any(|d| d.user == Some(user("bob")) && d.run.is_none()));
    // A new row takes the damaged one's place.
    let rows = vec![(user("bob"), row(20, 9, &[]))];
    settle(&outbox, opened.epoch, vec![Survivors { rows, ..Survivors::default() }], 20);
    assert!(merge(&outbox, opened.epoch, 1, 0) || outbox.runs().len() == 1);
}

/// Found by a review: nobody looked into lanes that no row named, so that what was in them never ended.
#[test]
fn slots_whose_row_is_lost_are_known_by_what_is_in_them() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let lane = |slot| LaneId::Device(Slot::new(slot).unwrap(), crate::Priority::Normal);
    let copy = |slot, seq| {
        let slot = Slot::new(slot).unwrap();
        let (among, rings, is_copy, stride) = (Slots::one(slot), false, false, 1);
        let device = Some(ForDevice { slot, among, rings, is_copy, stride });
        let accept = Accept::clone(&accept("bob", LaneId::Normal, vec![seq as u8; 10]));
        (Seq::new(seq), Arc::new(Accept { device, ..accept }))
    };
    let entries = vec![copy(1, 4), copy(1, 5), copy(3, 6), copy(2, 7)];
    let mut part = Survivors { entries, ..Survivors::default() };
    let mut known = row(9, 0, &[]);
    known.devices = vec![DeviceRow::of(Slot::new(2).unwrap()), DeviceRow::of(Slot::new(3).unwrap())];
    known.devices[1].lanes[NORMAL].cursor = Seq::new(6);
    part.rows.push((user("bob"), known));
    settle(&outbox, opened.epoch, vec![part], 9);
    let slots = |outbox: &OutboxStore| {
        let row = totals(outbox, "bob").0.unwrap();
        assert!(row.devices.iter().all(|row| row.device.is_none()));
        row.devices.iter().map(|row| (row.slot.get(), row.exposed)).collect::<Vec<_>>()
    };
    let never = Epoch::default();
    assert_eq!(slots(&outbox), [(1, never), (2, never), (3, never)], "one was missing");
    let key = keys::Key::User { user: user("bob") }.encode();
    let (damaged, opened) = open(&Rotten { store: store.clone(), key: key.clone() });
    let before = Epoch(opened.epoch.0 - 1);
    assert_eq!(slots(&damaged), [(1, before), (2, before), (3, before)]);
    assert_eq!(totals(&damaged, "bob").1.messages, 4);
    assert_eq!(page(&damaged, "bob", lane(3), 0, &[], 9).entries.len(), 1, "rather again than never");
    let mut batch = Batch::new();
    batch.delete(key);
    store.apply(opened.epoch, batch).unwrap();
    let (missing, opened) = open(&store);
    let before = Epoch(opened.epoch.0 - 1);
    assert_eq!(slots(&missing), [(1, before), (2, before), (3, before)]);
    assert_eq!(totals(&missing, "alice").0, None);
}

#[test]
fn a_damaged_filter_is_named_and_costs_nothing_but_time() {
    let store = MemoryStore::new();
    let names: Vec<String> = crowd(&store).into_iter().flat_map(|(_, users)| users).collect();
    let (outbox, _) = open(&store);
    let key = keys::Key::Filter { run: outbox.runs()[0].number, part: 0 }.encode();
    assert!(store.read(&key).unwrap().is_some());
    let (outbox, _) = open(&Rotten { store, key });
    assert!(names.iter().all(|name| totals(&outbox, name).1.messages == 1));
    let report = outbox.verify(&mut |_| {}).unwrap();
    assert!(report.damage.len() == 1 && report.damage[0].reason.contains("filter"), "{:?}", report.damage);
}
