//! One message by its place or its id.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::damage::Rotten;
use super::shared::{fan, survivors};
use super::*;
use crate::id::MessageId;
use crate::machine::Matches;
use crate::ports::{Batch, Row, StoreError, Visit};

/// A store that counts what is read of it.
#[derive(Clone)]
struct Counting {
    store: MemoryStore,
    values: Arc<AtomicUsize>,
}

impl Counting {
    fn new() -> Self {
        Self { store: MemoryStore::new(), values: Arc::default() }
    }

    fn count(&self) {
        self.values.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> usize {
        self.values.swap(0, Ordering::Relaxed)
    }
}

impl Store for Counting {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.count();
        self.store.read(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.store.scan(from, to, &mut |key, value| {
            self.count();
            visit(key, value)
        })
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, StoreError> {
        self.count();
        self.store.last(from, to)
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
        self.store.sync()
    }

    fn reopen(&self) -> Result<(), StoreError> {
        self.store.reopen()
    }

    fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }
}

fn find(outbox: &OutboxStore, to: &str, id: MessageId, max: usize) -> Matches {
    let query = Query::Id { user: user(to), id, max_messages: max, max_bytes: u64::MAX };
    match outbox.load(&query).unwrap() {
        Found::Matches(matches) => matches,
        other => panic!("{other:?}"),
    }
}

fn at(outbox: &OutboxStore, to: &str, lanes: &[LaneId], seq: u64) -> Matches {
    let query = Query::Place { user: user(to), lanes: lanes.to_vec(), seq: Seq::new(seq) };
    match outbox.load(&query).unwrap() {
        Found::Matches(matches) => matches,
        other => panic!("{other:?}"),
    }
}

/// Each of these is found by its id, and by its place in its lane and in no other; nothing else is.
fn all_are_found(outbox: &OutboxStore, all: &[(Seq, Arc<Accept>)]) {
    for (seq, accept) in all {
        let to = core::str::from_utf8(accept.message.recipient().as_bytes()).unwrap();
        for _ in 0..2 {
            let found = find(outbox, to, accept.message.id(), 9);
            assert_eq!((&found.entries[..], found.damaged.len()), (&[(*seq, accept.clone())][..], 0));
        }
        let lane = accept.lane();
        let others: Vec<_> = LaneId::ALL.into_iter().filter(|other| *other != lane).collect();
        assert_eq!(at(outbox, to, &[lane], seq.get()).entries, [(*seq, accept.clone())]);
        assert!(at(outbox, to, &others, seq.get()).entries.is_empty());
        assert!(at(outbox, to, &LaneId::ALL, seq.get() + 1_000_000).entries.is_empty());
        assert!(find(outbox, to, MessageId::from_u128(1), 9).entries.is_empty());
    }
}

#[test]
fn of_ten_thousand_messages_one_is_found_by_reading_a_few_values_once_they_were_read() {
    let store = Counting::new();
    let (outbox, opened) = open(&store);
    let all = entries("bob", 1..10_001, 256);
    settle(&outbox, opened.epoch, survivors(all.clone()), 10_001);
    store.take();
    assert_eq!(find(&outbox, "bob", all[5_000].1.message.id(), 9).entries.len(), 1);
    assert!(store.take() > 1_000, "they are read once");
    for (seq, accept) in all.iter().step_by(777) {
        assert_eq!(find(&outbox, "bob", accept.message.id(), 9).entries, [(*seq, accept.clone())]);
        assert!(store.take() <= 2);
        assert_eq!(at(&outbox, "bob", &[LaneId::Normal], seq.get()).entries.len(), 1);
        assert!(store.take() <= 2);
    }
    assert!(find(&outbox, "bob", MessageId::from_u128(1), 9).entries.is_empty());
    assert_eq!(store.take(), 0, "that there is none is known");
    outbox.load(&Query::Row(user("bob"))).unwrap();
    assert!(store.take() <= 1, "nor is it gone through for somebody who has no row");
}

#[test]
fn whatever_the_way_its_body_is_written_a_message_is_found_before_and_after_a_merge() {
    let (outbox, opened) = open(&MemoryStore::new());
    let mut all = entries("bob", 1..80, 10);
    all.extend(entries("bob", 80..82, 9_000));
    all.push((Seq::new(82), accept("bob", LaneId::High, vec![82; 10])));
    all.push((Seq::new(83), accept("carol", LaneId::Low, vec![83; 10])));
    settle(&outbox, opened.epoch, survivors(all.clone()), 84);
    let to_many = fan(84, 100, 2_000);
    settle(&outbox, opened.epoch, survivors(to_many.clone()), 184);
    all.extend(to_many);
    all_are_found(&outbox, &all);
    // Their totals are read, and what they have with them.
    ["bob", "carol", "user0001"].iter().for_each(|name| drop(totals(&outbox, name)));
    all_are_found(&outbox, &all);
    assert!(merge(&outbox, opened.epoch, 1, 0));
    all_are_found(&outbox, &all);
}

#[test]
fn what_is_kept_of_ids_is_bounded_and_small_users_are_not_kept() {
    let (outbox, opened) = open(&MemoryStore::new());
    let mut seq = 1;
    let mut ids = Vec::new();
    for people in 0..5_u64 {
        let all = entries(&format!("big-{people}"), seq..seq + 40_000, 1);
        ids.push((format!("big-{people}"), all[39_999].clone()));
        seq += 40_000;
        settle(&outbox, opened.epoch, survivors(all), seq);
    }
    let small = entries("small", seq..seq + 63, 1);
    settle(&outbox, opened.epoch, survivors(small.clone()), seq + 63);
    assert_eq!(find(&outbox, "small", small[62].1.message.id(), 9).entries.len(), 1);
    assert_eq!(outbox.inner.finder.entries(), 0);
    for (name, (seq, accept)) in ids.iter().chain(&ids) {
        assert_eq!(find(&outbox, name, accept.message.id(), 9).entries, [(*seq, accept.clone())]);
        let kept = outbox.inner.finder.entries();
        assert!((40_000..=131_072).contains(&kept) && kept.is_multiple_of(40_000), "{kept}");
    }
}

#[test]
fn one_id_of_many_senders_is_named_up_to_the_bound_and_so_it_is_said() {
    let (outbox, opened) = open(&MemoryStore::new());
    let id = MessageId::from_u128(5);
    let of = |seq: u64| {
        let sender = format!("s{seq}");
        let message = Message::to("bob", "a.b", "x").id(id).sender(sender.as_str()).build().unwrap();
        (Seq::new(seq), Arc::new(Accept::new(message, Timestamp::from_millis(5))))
    };
    settle(&outbox, opened.epoch, survivors((1..101).map(of).collect()), 101);
    for (max, expected) in [(99, (99, true)), (100, (100, false)), (101, (100, false))] {
        let found = find(&outbox, "bob", id, max);
        assert_eq!((found.entries.len(), found.is_cut), expected);
    }
    let query = Query::Id { user: user("bob"), id, max_messages: 9, max_bytes: 1 };
    let Found::Matches(found) = outbox.load(&query).unwrap() else { panic!("it is what was asked for") };
    assert_eq!((found.entries.len(), found.is_cut), (1, true));
}

#[test]
fn damage_is_named_where_an_id_cannot_be_read_and_hides_no_other_message() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let mut all = entries("bob", 0..70, 500);
    all.extend(entries("bob", 70..72, 9_000));
    settle(&outbox, opened.epoch, survivors(all.clone()), 80);
    let mut keys = Vec::new();
    let collect = &mut |key: &[u8], _: Result<&[u8], StoreError>| {
        keys.push(key.to_vec());
        Flow::Continue
    };
    store.scan(&[2], &[4], collect).unwrap();
    drop(outbox);
    for key in keys {
        let rotten = Rotten { store: store.clone(), key: key.clone() };
        let (outbox, _) = open(&rotten);
        let unknown = MessageId::from_u128(1);
        let [cold, warm] = [(); 2].map(|()| find(&outbox, "bob", unknown, 9));
        assert_eq!(cold.damaged, warm.damaged);
        // A body's later parts have nothing to do with its id.
        let is_later_part = key.first() == Some(&3) && !key.ends_with(&[0, 0, 0, 0]);
        assert_eq!(cold.damaged.is_empty(), is_later_part, "{key:?}");
        let found = all.iter().filter(|(_, a)| !find(&outbox, "bob", a.message.id(), 9).entries.is_empty());
        let lost = all.len() - found.count();
        assert!((1..10).contains(&lost), "{lost} of {}", all.len());
    }
}
