//! Who has dead letters: whoever has some is listed, whatever happens.

use super::*;
use crate::ports::Batch;
use crate::record::{Admission, Burial};
use crate::status::EndReason;
use crate::storage::outbox::keys::Key;

const DEAD: usize = LaneId::Dead.index();

/// Dead letters for a user at these places.
fn letters(to: &str, seqs: impl IntoIterator<Item = u64>) -> Vec<(Seq, Arc<Accept>)> {
    let burial = Burial {
        reason: EndReason::Dead,
        attempts: 3,
        possibly_delivered: true,
        at: Timestamp::from_millis(9),
    };
    let letter = |(seq, accept): (Seq, Arc<Accept>)| {
        let admission = Admission::Buried(burial);
        (seq, Arc::new(Accept { admission, ..Accept::clone(&accept) }))
    };
    entries(to, seqs, 10).into_iter().map(letter).collect()
}

fn row_without(reflects: u64) -> UserRow {
    let mut row = UserRow { reflects: Seq::new(reflects), ..UserRow::default() };
    row.lanes[DEAD].cursor = Seq::new(reflects - 1);
    row
}

fn listed(outbox: &OutboxStore) -> Vec<String> {
    let users = outbox.letter_holders(None, usize::MAX).unwrap();
    users.iter().map(|user| String::from_utf8_lossy(user.as_bytes()).into_owned()).collect()
}

#[test]
fn users_with_dead_letters_are_listed_when_those_settle_and_nobody_else_is() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let mut part = Survivors { entries: letters("bobby", 1..4), ..Survivors::default() };
    part.entries.extend(letters("al", 5..6));
    part.entries.extend(entries("carol", 7..9, 10));
    settle(&outbox, opened.epoch, vec![part], 10);
    assert_eq!(listed(&outbox), ["al", "bobby"]);
    drop(outbox);
    assert_eq!(listed(&open(&store).0), ["al", "bobby"]);
}

#[test]
fn the_list_is_read_in_pages_of_at_most_so_many_behind_one_of_them() {
    let (outbox, opened) = open(&MemoryStore::new());
    let names: Vec<_> = (0..10).map(|n| format!("u{n}")).collect();
    let entries = names.iter().zip(1..).flat_map(|(name, seq)| letters(name, [seq])).collect();
    settle(&outbox, opened.epoch, vec![Survivors { entries, ..Survivors::default() }], 50);
    for max in [1, 2, 3, 9, 10, 11] {
        let (mut all, mut behind) = (Vec::new(), None);
        loop {
            let page = outbox.letter_holders(behind.as_ref(), max).unwrap();
            assert!(page.len() <= max);
            let Some(last) = page.last() else { break };
            behind = Some(last.clone());
            all.extend(page);
        }
        assert_eq!(all.len(), 10, "{max}");
        assert!(all.is_sorted());
    }
    // Nothing of another kind is in it: neither rows, nor the runs.
    assert_eq!(outbox.letter_holders(None, 0).unwrap().len(), 1);
}

#[test]
fn whoever_has_none_any_more_is_taken_off_with_the_row_that_says_so_and_comes_back_with_the_next() {
    let (outbox, opened) = open(&MemoryStore::new());
    let entries = letters("bob", 1..3).into_iter().chain(letters("al", 3..4)).collect();
    settle(&outbox, opened.epoch, vec![Survivors { entries, ..Survivors::default() }], 10);
    let gone = |reflects: u64| Survivors {
        rows: vec![(user("bob"), row_without(reflects))],
        without_letters: vec![user("bob")],
        ..Survivors::default()
    };
    settle(&outbox, opened.epoch, vec![gone(20)], 20);
    assert_eq!(listed(&outbox), ["al"]);
    let entries = letters("bob", 20..21);
    settle(&outbox, opened.epoch, vec![Survivors { entries, ..Survivors::default() }], 30);
    assert_eq!(listed(&outbox), ["al", "bob"]);
    // An older row than the store's says nothing.
    settle(&outbox, opened.epoch, vec![gone(15)], 40);
    assert_eq!(listed(&outbox), ["al", "bob"]);
}

#[test]
fn a_letter_that_settles_and_is_gone_by_the_time_of_the_row_leaves_nobody_listed() {
    let (outbox, opened) = open(&MemoryStore::new());
    let part = Survivors {
        entries: letters("bob", 1..3),
        rows: vec![(user("bob"), row_without(20))],
        without_letters: vec![user("bob")],
        ..Survivors::default()
    };
    settle(&outbox, opened.epoch, vec![part], 10);
    assert_eq!(listed(&outbox), [""; 0]);
}

#[test]
fn a_list_of_more_than_a_batch_is_whole() {
    let (outbox, opened) = open(&MemoryStore::new());
    let names: Vec<_> = (0..500).map(|n| format!("somebody-{n:03}")).collect();
    let entries = names.iter().zip(1..).flat_map(|(name, seq)| letters(name, [seq])).collect();
    settle(&outbox, opened.epoch, vec![Survivors { entries, ..Survivors::default() }], 1000);
    assert_eq!(listed(&outbox), names);
}

#[test]
fn an_import_lists_whoever_the_export_has_letters_of() {
    let (outbox, opened) = open(&MemoryStore::new());
    let entries = letters("bob", 1..3).into_iter().chain(entries("al", 3..4, 10)).collect();
    settle(&outbox, opened.epoch, vec![Survivors { entries, ..Survivors::default() }], 10);
    let mut stream = Vec::new();
    outbox.export(&mut stream).unwrap();
    let copy = MemoryStore::new();
    OutboxStore::import(Arc::new(copy.clone()), None, &mut &stream[..]).unwrap();
    let (outbox, _) = open(&copy);
    assert_eq!(listed(&outbox), ["bob"]);
    assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
}

#[test]
fn an_outbox_from_before_there_was_a_list_gets_one_when_it_is_opened() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    let names: Vec<_> = (0..100).map(|n| format!("u{n:02}")).collect();
    let entries = names.iter().zip(1..).flat_map(|(name, seq)| letters(name, [seq])).collect();
    let part = Survivors { entries, ..Survivors::default() };
    let counters = Counters { buried: 100, ..Counters::default() };
    let now = Timestamp::from_millis(9);
    let mut settlement = Settlement::new(vec![part], Seq::new(200), vec![(counters, Seq::new(200))], now);
    while settlement.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
    let mut batch = Batch::new();
    batch.delete(Key::LettersHead.encode());
    for name in &names {
        batch.delete(Key::Letters { user: user(name) }.encode());
    }
    outbox.apply(opened.epoch, batch).unwrap();
    let found = outbox.verify(&mut |_| {}).unwrap();
    assert_eq!(found.damage.len(), 100, "{:?}", found.damage.first());
    drop(outbox);
    let (outbox, _) = open(&store);
    assert_eq!(listed(&outbox), names);
    assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
}
