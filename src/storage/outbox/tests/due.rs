//! Lists of who has something due.

use core::time::Duration;

use super::*;
use crate::machine::DuePlace;

const MINUTE: u64 = 60_000;

/// A message at this place that expires so long after it was accepted, at 5 ms.
fn expiring(to: &str, seq: u64, after: u64) -> (Seq, Arc<Accept>) {
    let message = Message::to(to, "a.b", "x").ttl(Duration::from_millis(after)).build().unwrap();
    (Seq::new(seq), Arc::new(Accept::new(message, Timestamp::from_millis(5))))
}

fn part(entries: Vec<(Seq, Arc<Accept>)>) -> Survivors {
    Survivors { entries, ..Survivors::default() }
}

/// Who has something due by then, and when to ask again.
fn due(outbox: &OutboxStore, until: u64, since: (u64, u64)) -> (Vec<String>, Timestamp) {
    let since = (Timestamp::from_millis(since.0), since.1);
    let (mut all, mut after): (Vec<String>, Option<DuePlace>) = (Vec::new(), None);
    loop {
        let query = Query::Due { until: Timestamp::from_millis(until), since, after };
        let Found::Due { users, more, next, .. } = outbox.load(&query).unwrap() else { panic!() };
        all.extend(users.iter().map(ToString::to_string));
        after = more;
        if after.is_none() {
            all.sort();
            return (all, next);
        }
    }
}

fn table(outbox: &OutboxStore) -> u64 {
    outbox.table().generation
}

#[test]
fn a_user_is_listed_once_for_a_stretch_and_found_when_it_is_over() {
    let (outbox, opened) = open(&MemoryStore::new());
    let mut all = entries("nobody", 1..9, 3);
    all.extend([expiring("bob", 10, 30_000), expiring("bob", 11, 31_000), expiring("al", 12, 90_000)]);
    settle(&outbox, opened.epoch, vec![part(all)], 20);
    assert_eq!(due(&outbox, MINUTE - 1, (0, 0)), (vec![], Timestamp::from_millis(MINUTE)));
    assert_eq!(due(&outbox, MINUTE, (0, 0)), (vec!["bob".to_owned()], Timestamp::from_millis(2 * MINUTE)));
    assert_eq!(due(&outbox, 9 * MINUTE, (0, 0)), (vec!["al".to_owned(), "bob".to_owned()], Timestamp::NEVER));
    assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
}

#[test]
fn what_was_seen_to_is_not_found_again_unless_it_has_settled_since() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    settle(&outbox, opened.epoch, vec![part(vec![expiring("bob", 10, 30_000)])], 20);
    let seen = (9 * MINUTE, table(&outbox));
    assert_eq!(due(&outbox, 10 * MINUTE, seen).0, Vec::<String>::new());
    // Settled after the sweep had looked, with something that was due before.
    settle(&outbox, opened.epoch, vec![part(vec![expiring("al", 30, 30_000)])], 40);
    assert_eq!(due(&outbox, 10 * MINUTE, seen).0, ["al"]);
    let swept = Some((Timestamp::from_millis(seen.0), seen.1));
    let late = Survivors { swept, ..part(vec![expiring("late", 50, 30_000)]) };
    settle(&outbox, opened.epoch, vec![late], 60);
    assert_eq!(due(&outbox, 10 * MINUTE, (0, 0)).0, ["al", "late"], "the settlement keeps it in mind");
    let (outbox, _) = open(&store);
    assert_eq!(due(&outbox, 10 * MINUTE, (0, 0)).0, ["al", "late"], "also after an opening");
}

#[test]
fn only_what_every_shard_has_seen_to_counts() {
    let (outbox, opened) = open(&MemoryStore::new());
    settle(&outbox, opened.epoch, vec![part(vec![expiring("bob", 10, 30_000)])], 20);
    let seen = |until| Some((Timestamp::from_millis(until), table(&outbox)));
    let two = |a, b| {
        let parts = [a, b].map(|swept| Survivors { swept, ..Survivors::default() });
        let counters = vec![(Counters::default(), Seq::new(20)); 2];
        let mut settlement = Settlement::new(parts.into(), Seq::new(20), counters, Timestamp::ZERO);
        while settlement.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
    };
    for other in [None, Some((Timestamp::ZERO, 0)), seen(MINUTE / 2)] {
        two(seen(9 * MINUTE), other);
        assert_eq!(due(&outbox, 10 * MINUTE, (0, 0)).0, ["bob"], "{other:?}");
    }
    two(seen(9 * MINUTE), seen(8 * MINUTE));
    assert_eq!(due(&outbox, 10 * MINUTE, (0, 0)).0, Vec::<String>::new());
}

#[test]
fn a_merge_lists_what_lives_and_forgets_nothing_that_was_not_seen_to() {
    let (outbox, opened) = open(&MemoryStore::new());
    // Far away, the first one is listed for a long stretch; the merge is made nearer to it, in which that would be over.
    let far = 64 * 60 * MINUTE + 1;
    settle(&outbox, opened.epoch, vec![part(vec![expiring("bob", 10, far), expiring("gone", 11, far)])], 20);
    let listed = due(&outbox, 0, (0, 0)).1.as_millis();
    let swept = Some((Timestamp::from_millis(listed - 1), table(&outbox)));
    let rows = vec![(user("gone"), row(30, 11, &[]))];
    let two = Survivors { swept, rows, ..part(vec![expiring("al", 30, MINUTE)]) };
    let mut settlement = {
        let counters = vec![(Counters::default(), Seq::new(40))];
        Settlement::new(vec![two], Seq::new(40), counters, Timestamp::from_millis(far))
    };
    while settlement.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
    // It reads its run as long as it is there.
    drop(settlement);
    let swept = Some((Timestamp::from_millis(listed - 1), table(&outbox)));
    settle(&outbox, opened.epoch, vec![Survivors { swept, ..Survivors::default() }], 40);
    assert_eq!(due(&outbox, listed, (0, 0)).0, ["bob", "gone"]);
    assert!(merge(&outbox, opened.epoch, 1, 0));
    assert_eq!(outbox.run_count(), 1);
    assert_eq!(due(&outbox, listed, (0, 0)).0, ["al", "bob"]);
    assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
    // Nothing of the runs before is left.
    let mut lists = Vec::new();
    let (from, to) = keys::dues_of(0, u64::MAX);
    outbox
        .dyn_store()
        .scan(&from, &to, &mut |key, _| {
            lists.push(keys::Key::decode(key));
            Flow::Continue
        })
        .unwrap();
    assert_eq!(lists.len() as u64, outbox.runs()[0].due_parts);
}

#[test]
fn lists_of_many_users_are_cut_into_values_and_read_one_by_one() {
    let (outbox, opened) = open(&MemoryStore::new());
    let name = |n: u64| format!("a-user-with-quite-a-long-name-{n:06}");
    let all = (1..2000).map(|n| expiring(&name(n), n, 30_000)).collect();
    settle(&outbox, opened.epoch, vec![part(all)], 2000);
    assert!(outbox.runs()[0].due_parts > 10);
    let query =
        Query::Due { until: Timestamp::from_millis(MINUTE), since: (Timestamp::ZERO, 0), after: None };
    let Found::Due { users, more, .. } = outbox.load(&query).unwrap() else { panic!() };
    assert!(users.len() < 200 && more.is_some());
    assert_eq!(due(&outbox, MINUTE, (0, 0)).0, (1..2000).map(name).collect::<Vec<_>>());
}

#[test]
fn a_damaged_list_is_named_and_the_others_are_read() {
    let store = MemoryStore::new();
    let (outbox, opened) = open(&store);
    settle(
        &outbox,
        opened.epoch,
        vec![part(vec![expiring("bob", 10, 30_000), expiring("al", 11, 90_000)])],
        20,
    );
    let run = outbox.runs()[0].number;
    let key = keys::Key::Due { run, at: Timestamp::from_millis(MINUTE), part: 0 }.encode();
    let mut batch = crate::ports::Batch::new();
    batch.put(key, vec![9, 9]);
    outbox.apply(opened.epoch, batch).unwrap();
    assert_eq!(due(&outbox, 9 * MINUTE, (0, 0)).0, ["al"]);
    assert!(!outbox.verify(&mut |_| {}).unwrap().damage.is_empty());
    assert!(!outbox.suspects().is_empty());
}
