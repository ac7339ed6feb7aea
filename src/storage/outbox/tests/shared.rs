//! What is said to many is written once, and is there as long as somebody waits for it.

use super::damage::Rotten;
use super::keys::Key;
use super::*;

pub(super) fn everybody(n: u64) -> Vec<String> {
    (0..n).map(|n| format!("user{n:04}")).collect()
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// One message of so many bytes to so many people, from this place on, each accepted a millisecond later.
pub(super) fn fan(first: u64, people: u64, bytes: usize) -> Vec<(Seq, Arc<Accept>)> {
    let message = Message::to("x", "a.b", vec![7; bytes]).sender("s").build().unwrap();
    let one = |(seq, name): (u64, String)| {
        let accept = Accept::new(message.for_recipient(user(&name)), at(seq));
        (Seq::new(seq), Arc::new(accept))
    };
    (first..).zip(everybody(people)).map(one).collect()
}

pub(super) fn survivors(entries: Vec<(Seq, Arc<Accept>)>) -> Vec<Survivors> {
    vec![Survivors { entries, ..Survivors::default() }]
}

pub(super) fn keys_of(store: &dyn Store, kind: u8) -> Vec<(Vec<u8>, usize)> {
    let mut found = Vec::new();
    store
        .scan(&[kind], &[kind + 1], &mut |key, value| {
            found.push((key.to_vec(), value.unwrap().len()));
            Flow::Continue
        })
        .unwrap();
    found
}

fn bytes(store: &dyn Store) -> usize {
    (2..8).flat_map(|kind| keys_of(store, kind)).map(|(key, value)| key.len() + value).sum()
}

pub(super) fn one(outbox: &OutboxStore, name: &str) -> Vec<(Seq, Arc<Accept>)> {
    let page = page(outbox, name, LaneId::Normal, 0, &[], usize::MAX);
    assert_eq!((page.damaged.len(), page.more_after), (0, None));
    page.entries
}

/// Everybody of the first `people` ends.
fn end(outbox: &OutboxStore, epoch: Epoch, people: &[String], before: u64) {
    let rows = people.iter().map(|name| (user(name), row(before, before - 1, &[]))).collect();
    let died = (1..=people.len() as u64).map(Seq::new).collect();
    settle(outbox, epoch, vec![Survivors { rows, died, ..Survivors::default() }], before);
}

#[test]
fn a_body_to_many_is_written_once_and_everybody_gets_it_as_it_was() {
    for size in [1024, 1024 + 2048, 20_000] {
        let store = MemoryStore::new();
        let (outbox, opened) = open(&store);
        let all = fan(1, 1000, size);
        settle(&outbox, opened.epoch, survivors(all.clone()), 2000);
        assert!(bytes(&store) < size + 1000 * 14, "{} bytes for 1000 people", bytes(&store));
        assert_eq!((outbox.runs()[0].shared, outbox.runs()[0].stubs, census(&store).get(&3)), (1, 0, None));
        for (name, entry) in everybody(1000).iter().zip(&all).step_by(97) {
            assert_eq!(&one(&outbox, name)[..], core::slice::from_ref(entry));
            // From memory as from the store.
            assert_eq!(totals(&outbox, name).1.bytes, entry.1.message.cost());
            assert_eq!(&one(&outbox, name)[..], core::slice::from_ref(entry));
        }
        assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
    }
}

#[test]
fn what_is_small_or_alone_or_says_something_else_is_written_by_itself() {
    for (size, people, shared) in [(127, 5, 0), (128, 5, 1), (129, 5, 1), (200, 1, 0), (200, 2, 1)] {
        let store = MemoryStore::new();
        let (outbox, opened) = open(&store);
        settle(&outbox, opened.epoch, survivors(fan(1, people, size)), 10);
        assert_eq!(outbox.runs()[0].shared, shared, "{size} bytes to {people}");
        assert_eq!(census(&store).get(&7).copied(), (shared > 0).then_some(1));
    }
    // The same bytes in the same memory, in messages of their own.
    let payload = bytes::Bytes::from(vec![7; 500]);
    let message = |name: &str| Message::to(name, "a.b", payload.clone()).build().unwrap();
    let twice = message("ann");
    let same_id = Message::to("bob", "a.c", payload.clone()).id(twice.id()).build().unwrap();
    let all: Vec<_> = (1..)
        .map(Seq::new)
        .zip([twice, same_id, message("cid")].map(|message| Arc::new(Accept::new(message, at(1)))))
        .collect();
    let (outbox, opened) = open(&MemoryStore::new());
    settle(&outbox, opened.epoch, survivors(all.clone()), 10);
    assert_eq!(outbox.runs()[0].shared, 0);
    assert_eq!(one(&outbox, "bob"), [all[1].clone()]);
}

#[test]
fn messages_of_one_page_share_their_payload_in_memory() {
    let (outbox, opened) = open(&MemoryStore::new());
    let mut all = fan(1, 3, 500);
    let again = Accept { at: at(9), ..Accept::clone(&all[0].1) };
    all.push((Seq::new(9), Arc::new(again)));
    settle(&outbox, opened.epoch, survivors(all), 10);
    let found = one(&outbox, "user0000");
    let payload = |n: usize| found[n].1.message.payload();
    assert_eq!((payload(0).as_ptr(), found[1].1.at), (payload(1).as_ptr(), at(9)));
}

#[test]
fn a_merge_keeps_a_shared_body_while_somebody_waits_for_it_and_drops_it_after() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let names = everybody(50);
    settle(&outbox, opened.epoch, survivors(fan(1, 50, 9000)), 100);
    settle(&outbox, opened.epoch, survivors(fan(100, 50, 700)), 200);
    assert_eq!(outbox.runs().iter().map(|run| run.shared).collect::<Vec<_>>(), [1, 1]);
    // All of the first but the last one end.
    end(&outbox, opened.epoch, &names[..49], 200);
    let all = |first, n: usize| fan(first, 50, 0)[n].0;
    while merge(&outbox, opened.epoch, 1, 0) {}
    // The cursors of those who ended are behind the second message as well.
    let kept: Vec<_> = outbox.runs().iter().map(|run| (run.entries, run.shared)).collect();
    assert_eq!(kept, [(2, 2)]);
    let found = one(&outbox, "user0049");
    assert_eq!(found.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [all(1, 49), all(100, 49)]);
    assert_eq!(found.iter().map(|(_, a)| a.message.payload().len()).collect::<Vec<_>>(), [9000, 700]);
    assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
    assert_eq!(keys_of(&store, 7).len(), 3 + 1, "bodies of old runs are left behind");

    let rows = vec![(user("user0049"), row(300, 60, &[]))];
    let died = vec![Seq::new(50)];
    settle(&outbox, opened.epoch, vec![Survivors { rows, died, ..Survivors::default() }], 300);
    settle(&outbox, opened.epoch, survivors(fan(300, 2, 10)), 400);
    while merge(&outbox, opened.epoch, 1, 0) {}
    assert_eq!((outbox.runs()[0].entries, outbox.runs()[0].shared), (1 + 2, 1));
    assert_eq!(keys_of(&store, 7).len(), 1, "nobody waits for the first body any more");

    let rows = ["user0000", "user0001", "user0049"].map(|name| (user(name), row(500, 499, &[]))).to_vec();
    let died = [149, 300, 301].map(Seq::new).to_vec();
    settle(&outbox, opened.epoch, vec![Survivors { rows, died, ..Survivors::default() }], 500);
    while merge(&outbox, opened.epoch, 16, 0) {}
    assert!(outbox.runs().is_empty() && !census(&store).contains_key(&7), "{:?}", census(&store));
}

#[test]
fn a_damaged_shared_body_damages_who_leans_on_it_with_what_it_cost_and_nobody_else() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let mut all = fan(1, 20, 9000);
    all.extend(fan(21, 20, 300));
    all.extend(entries("user0003", [60], 40));
    settle(&outbox, opened.epoch, survivors(all.clone()), 100);
    let keys: Vec<Vec<u8>> = keys_of(&store, 7).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), 3 + 1);
    for key in &keys {
        let Some(Key::Shared { seq: hit, .. }) = Key::decode(key) else { panic!() };
        let (outbox, opened) = open(&Rotten { store: store.clone(), key: key.clone() });
        assert!(opened.lost.is_empty());
        for read_totals in [false, true] {
            if read_totals {
                assert_eq!(totals(&outbox, "user0003").1.messages, 3);
            }
            let found = page(&outbox, "user0003", LaneId::Normal, 0, &[], 9);
            let (seq, accept) = &all[if hit == Seq::new(1) { 3 } else { 23 }];
            assert_eq!((found.entries.len(), found.damaged), (2, vec![(*seq, accept.message.cost())]));
        }
        let report = outbox.verify(&mut |_| {}).unwrap();
        assert_eq!(report.damage.iter().filter(|damage| damage.entry.is_some()).count(), 20);
        assert!(report.damage.iter().any(|damage| damage.user.is_none() && damage.run.is_some()));
        let carried = outbox.export(&mut Vec::new()).unwrap();
        assert_eq!((carried.messages, carried.damaged), (21, 20));
    }
}

#[test]
fn a_missing_shared_body_is_named_and_a_merge_says_so() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    settle(&outbox, opened.epoch, survivors(fan(1, 5, 500)), 100);
    settle(&outbox, opened.epoch, survivors(fan(100, 5, 500)), 200);
    let mut batch = crate::ports::Batch::new();
    batch.delete(keys_of(&store, 7)[0].0.clone());
    store.apply(opened.epoch, batch).unwrap();
    let report = outbox.verify(&mut |_| {}).unwrap();
    assert!(report.damage.iter().any(|damage| damage.reason.contains("0 shared bodies, where 1 should be")));
    let mut merge = Merge::plan(&outbox, 1, Timestamp::ZERO).unwrap();
    while merge.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
    assert_eq!(merge.damage().len(), 1);
    let found = page(&outbox, "user0001", LaneId::Normal, 0, &[], 9);
    assert_eq!((found.entries.len(), found.damaged.len()), (1, 1));
    assert_eq!(outbox.runs()[0].shared, 1);
}

#[test]
fn what_a_crash_leaves_of_a_settlement_or_a_merge_is_swept() {
    for cut in 0..40 {
        let store = MemoryStore::new();
        let (outbox, opened) = open(&store);
        settle(&outbox, opened.epoch, survivors(fan(1, 30, 9000)), 100);
        let mut two = settlement(survivors(fan(100, 30, 9000)), 200);
        let mut steps = 0;
        let mut done = false;
        while steps < cut && !done {
            done = two.step(&outbox, opened.epoch).unwrap() == Progress::Done;
            steps += 1;
        }
        if done {
            let mut merge = Merge::plan(&outbox, 1, Timestamp::ZERO).unwrap();
            while steps < cut && merge.step(&outbox, opened.epoch).unwrap() != Progress::Done {
                steps += 1;
            }
        }
        let (outbox, opened) = open(&store);
        let mut named: Vec<u64> = outbox.runs().iter().map(|run| run.number).collect();
        named.extend(outbox.table().dropping.iter().map(|run| run.number));
        for (key, _) in keys_of(&store, 7) {
            let Some(Key::Shared { run, .. }) = Key::decode(&key) else { panic!() };
            assert!(named.contains(&run), "cut {cut}: a body of a run that no table names");
        }
        while merge(&outbox, opened.epoch, 1, 0) {}
        let runs = outbox.runs();
        assert!(runs.iter().all(|run| run.entries % 30 == 0), "cut {cut}");
        assert_eq!(
            one(&outbox, "user0007").len() as u64 * 30,
            runs.iter().map(|run| run.entries).sum::<u64>()
        );
        assert_eq!(keys_of(&store, 7).len() as u64, 3 * runs.iter().map(|run| run.shared).sum::<u64>());
        assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
    }
}

#[test]
fn an_export_says_everything_of_everybody_and_an_import_writes_bodies_once_again() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let mut all = fan(1, 500, 1000);
    all.extend(fan(501, 500, 3000));
    all.extend(entries("user0003", [1060], 400));
    settle(&outbox, opened.epoch, survivors(all), 1100);
    let mut stream = Vec::new();
    assert_eq!(outbox.export(&mut stream).unwrap().messages, 1001);
    let copied = MemoryStore::new();
    OutboxStore::import(Arc::new(copied.clone()), None, &mut &*stream).unwrap();
    let (copy, _) = open(&copied);
    for name in everybody(500) {
        assert_eq!(one(&copy, &name), one(&outbox, &name));
        assert_eq!(totals(&copy, &name), totals(&outbox, &name));
    }
    assert_eq!(copy.runs()[0].shared, 2);
    assert!(bytes(&copied) < bytes(&store) + 2 * 4000, "{} after {}", bytes(&copied), bytes(&store));
    assert!(copy.verify(&mut |_| {}).unwrap().damage.is_empty());
}

#[test]
fn copies_for_devices_come_back_from_a_run_as_they_were_accepted() {
    use crate::record::{ForDevice, Slots};
    for size in [10, 2048] {
        let (outbox, opened) = open(&MemoryStore::new());
        let message = Message::to("a", "a.b", vec![7; size]).sender("s").build().unwrap();
        let among = Slots::from_bits(0b1011);
        let copies = (0..).zip(among.iter()).map(|(n, slot)| {
            let device = ForDevice { slot, among, rings: true, is_copy: n > 0, stride: 1 };
            let accept = Accept { device: Some(device), ..Accept::new(message.clone(), at(1)) };
            (Seq::new(1 + n), Arc::new(accept))
        });
        let copies: Vec<_> = copies.collect();
        settle(&outbox, opened.epoch, survivors(copies.clone()), 10);
        for copy in &copies {
            let page = page(&outbox, "a", copy.1.lane(), 0, &[], usize::MAX);
            assert_eq!(page.entries, core::slice::from_ref(copy), "{size} bytes");
        }
    }
}
