//! The feed of ends: what is kept is there, in order, through restarts, and what is not kept any more is said.

use core::num::NonZeroU64;
use core::time::Duration;

use super::damage::Rotten;
use super::*;
use crate::config::{Config, KeepEnds};
use crate::ports::StoreError;
use crate::record::{End, EndPosition, Ended, Record};
use crate::status::EndReason;
use crate::testing::{Fault, StoreOp};

fn config(max_ends: u64) -> Config {
    Config { max_ends: NonZeroU64::new(max_ends).unwrap(), ..Config::default() }
}

/// An end of alice's at this place, which is also when.
fn end(place: u64, reason: EndReason) -> Record {
    Record::End(End {
        user: user("alice"),
        lane: LaneId::Normal,
        seq: Seq::new(place / 2),
        id: None,
        reason,
        upgrades: None,
        possibly_delivered: false,
        attempts: 0,
        cost: 9,
        at: Timestamp::from_millis(place),
    })
}

fn note(outbox: &OutboxStore, places: impl IntoIterator<Item = u64>) {
    places.into_iter().for_each(|n| outbox.note_record(Seq::new(n), &end(n, EndReason::Expired)));
}

fn reopened(store: &(impl Store + Clone + 'static), config: &Config) -> (OutboxStore, Epoch) {
    let (outbox, opened) = open(store);
    outbox.keep_ends(config).unwrap();
    (outbox, opened.epoch)
}

fn places_of(ends: &[Ended]) -> Vec<u64> {
    ends.iter().map(|ended| ended.position.place.get()).collect()
}

/// All places behind a position, read in pages; or how many are missing, and what comes behind those.
fn read(outbox: &OutboxStore, mut after: EndPosition) -> Result<Vec<u64>, (Option<u64>, Vec<u64>)> {
    let mut all = Vec::new();
    loop {
        match outbox.read_ends(after, 7) {
            Ok(ends) => {
                let Some(last) = ends.last() else { return Ok(all) };
                after = last.position;
                all.extend(places_of(&ends));
            }
            Err(EndsError::Lagged { missed, resume }) => {
                return Err((missed, read(outbox, resume).unwrap()));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The position of the end at a place.
fn at(outbox: &OutboxStore, place: u64) -> EndPosition {
    let behind = EndPosition { place: Seq::new(place - 1), number: 0 };
    outbox.read_ends(behind, 1).unwrap()[0].position
}

#[test]
fn ends_are_read_in_order_from_rows_and_memory_and_after_a_restart() {
    let store = MemoryStore::new();
    let (outbox, epoch) = reopened(&store, &config(1000));
    note(&outbox, 10..310);
    settle(&outbox, epoch, Vec::new(), 250);
    note(&outbox, 310..400);
    assert_eq!(read(&outbox, EndPosition::START), Ok((10..400).collect()));
    for behind in [10, 11, 247, 248, 249, 250, 251, 398, 399] {
        assert_eq!(read(&outbox, at(&outbox, behind)), Ok((behind + 1..400).collect()), "{behind}");
    }
    let kept = at(&outbox, 100);
    drop(outbox);
    let (outbox, _) = reopened(&store, &config(1000));
    note(&outbox, 250..400);
    assert_eq!(EndPosition::from_bytes(kept.to_bytes()), kept);
    assert_eq!(read(&outbox, kept), Ok((101..400).collect()));
    let numbers: Vec<_> = [100, 249, 250, 399].iter().map(|place| at(&outbox, *place).number).collect();
    assert_eq!(numbers, [91, 240, 241, 390], "they are counted as before");
}

#[test]
fn only_what_was_not_delivered_is_kept_and_what_takes_that_back_unless_all_is() {
    let records = [
        end(1, EndReason::Delivered),
        end(2, EndReason::Dead),
        end(3, EndReason::Moved),
        end(4, EndReason::Delivered),
        end(5, EndReason::Elsewhere),
        end(6, EndReason::Delivered),
    ];
    let mut records = records.to_vec();
    for (n, before) in [(3, EndReason::Dead), (5, EndReason::Elsewhere)] {
        if let Record::End(end) = &mut records[n] {
            end.upgrades = Some(before);
        }
    }
    for (keep_ends, expected) in [
        (KeepEnds::Undelivered, vec![2, 4]),
        (KeepEnds::All, vec![1, 2, 4, 5, 6]),
        (KeepEnds::Nothing, vec![]),
    ] {
        let (outbox, _) = reopened(&MemoryStore::new(), &Config { keep_ends, ..config(100) });
        (1..).zip(&records).for_each(|(seq, record)| outbox.note_record(Seq::new(seq), record));
        match keep_ends {
            KeepEnds::Nothing => {
                let refused = outbox.read_ends(EndPosition::START, 9).unwrap_err();
                assert!(matches!(refused, EndsError::NotKept));
            }
            _ => assert_eq!(read(&outbox, EndPosition::START), Ok(expected)),
        }
    }
}

#[test]
fn whoever_fell_behind_is_told_how_many_are_missing_and_goes_on_with_the_first_that_is_kept() {
    let store = MemoryStore::new();
    let (outbox, epoch) = reopened(&store, &config(100));
    note(&outbox, 1..=50);
    let (first, tenth) = (at(&outbox, 1), at(&outbox, 10));
    note(&outbox, 51..=110);
    assert_eq!(read(&outbox, tenth), Ok((11..=110).collect()), "nothing is missing behind the tenth");
    assert_eq!(read(&outbox, first), Err((Some(9), (11..=110).collect())));
    settle(&outbox, epoch, Vec::new(), 111);
    note(&outbox, 111..=160);
    settle(&outbox, epoch, Vec::new(), 161);
    let (missed, kept) = read(&outbox, first).unwrap_err();
    assert_eq!(kept, (kept[0]..=160).collect::<Vec<_>>());
    assert!(kept.len() >= 100 && kept.len() < 100 + 60, "rows go as a whole: {}", kept.len());
    assert_eq!(missed, Some(kept[0] - 2));
    assert_eq!(read(&outbox, EndPosition::START), Ok(kept));
}

/// Found by the simulator: those that were dropped above the settled place were counted once more after a crash.
#[test]
fn what_was_dropped_before_it_could_settle_is_counted_once() {
    let store = MemoryStore::new();
    let (outbox, epoch) = reopened(&store, &config(10));
    note(&outbox, 1..=5);
    let third = at(&outbox, 3);
    note(&outbox, 6..=40);
    settle(&outbox, epoch, Vec::new(), 20);
    assert_eq!(read(&outbox, third), Err((Some(27), (31..=40).collect())));
    let (outbox, _) = reopened(&store, &config(10));
    note(&outbox, 20..=45);
    assert_eq!(read(&outbox, third), Err((Some(32), (36..=45).collect())));
}

#[test]
fn what_is_too_old_goes_with_a_settlement_and_its_rows_with_the_next() {
    let store = MemoryStore::new();
    let config = Config { ends_age: Duration::from_millis(1000), ..config(100_000) };
    let (outbox, epoch) = reopened(&store, &config);
    let rows = |store: &MemoryStore| {
        let (mut rows, (from, to)) = (0, keys::ends_from(Seq::ZERO));
        store
            .scan(&from, &to, &mut |_, _| {
                rows += 1;
                Flow::Continue
            })
            .unwrap();
        rows
    };
    note(&outbox, 1..=500);
    settle(&outbox, epoch, Vec::new(), 501);
    let (first, all) = (at(&outbox, 1), rows(&store));
    assert!(all > 3);
    settle(&outbox, epoch, Vec::new(), 5000);
    assert_eq!((read(&outbox, first), rows(&store)), (Err((Some(499), vec![])), all));
    note(&outbox, 5000..5002);
    settle(&outbox, epoch, Vec::new(), 5010);
    assert_eq!((read(&outbox, first), rows(&store)), (Err((Some(499), vec![5000, 5001])), 1));
}

#[test]
fn a_time_in_which_nothing_was_kept_is_a_gap_that_nobody_has_counted() {
    let store = MemoryStore::new();
    let (outbox, epoch) = reopened(&store, &config(100));
    note(&outbox, 1..=5);
    settle(&outbox, epoch, Vec::new(), 6);
    let third = at(&outbox, 3);
    let off = Config { keep_ends: KeepEnds::Nothing, ..config(100) };
    let (outbox, epoch) = reopened(&store, &off);
    settle(&outbox, epoch, Vec::new(), 20);
    let (outbox, _) = reopened(&store, &config(100));
    note(&outbox, 20..=22);
    assert_eq!(read(&outbox, third), Err((None, vec![20, 21, 22])));
    let ahead = EndPosition { place: Seq::new(99), number: 7 };
    assert_eq!(read(&outbox, ahead), Err((None, vec![20, 21, 22])), "of a log that is not this one");
}

/// The journal has forgotten what the lost store had.
#[test]
fn a_store_that_has_forgotten_everything_begins_with_what_the_journal_has() {
    let (outbox, _) = reopened(&MemoryStore::new(), &config(100));
    note(&outbox, 50..=52);
    let before = EndPosition { place: Seq::new(30), number: 12 };
    assert_eq!(read(&outbox, before), Err((None, vec![50, 51, 52])));
}

#[test]
fn a_settlement_may_crash_anywhere_and_no_end_is_lost_or_doubled() {
    for crash_after in 0.. {
        let store = FaultyStore::new();
        let (outbox, epoch) = reopened(&store, &config(60));
        note(&outbox, 1..=100);
        settle(&outbox, epoch, Vec::new(), 90);
        let kept = at(&outbox, 95);
        note(&outbox, 101..=140);
        let mut open = settlement(Vec::new(), 130);
        let mut done = false;
        for _ in 0..crash_after {
            done = done || open.step(&outbox, epoch).unwrap() == Progress::Done;
        }
        drop(outbox);
        store.crash(Kept::Seeded(crash_after));
        let (outbox, epoch) = reopened(&store, &config(60));
        let settled = outbox.settled().get();
        note(&outbox, settled..=140);
        assert_eq!(read(&outbox, kept), Ok((96..=140).collect()), "{crash_after}");
        settle(&outbox, epoch, Vec::new(), 141);
        assert_eq!(read(&outbox, kept), Ok((96..=140).collect()), "{crash_after}, settled");
        if done {
            return;
        }
    }
}

/// A table whose sync failed may be there all the same, and with it the rows that its head vouches for.
#[test]
fn a_settlement_that_failed_and_is_durable_all_the_same_keeps_its_rows() {
    for after in 0..60 {
        let store = FaultyStore::new();
        let (outbox, epoch) = reopened(&store, &config(1000));
        note(&outbox, 1..=100);
        let third = at(&outbox, 3);
        store.fail_at(StoreOp::Sync, store.syncs() + 1 + after % 2, Fault::Once);
        let mut open = settlement(Vec::new(), 90);
        let failed = loop {
            match open.step(&outbox, epoch) {
                Ok(Progress::Done) => break false,
                Ok(_) => {}
                Err(_) => break true,
            }
        };
        store.set_reopen_survivors(Kept::Seeded(after));
        if failed {
            outbox.reopen().unwrap();
        }
        let mut again = settlement(Vec::new(), 95);
        for _ in 0..after % 5 {
            let _ = again.step(&outbox, epoch).unwrap();
        }
        drop(outbox);
        store.crash(Kept::Seeded(after * 7));
        let (outbox, _) = reopened(&store, &config(1000));
        note(&outbox, outbox.settled().get().max(1)..=100);
        assert_eq!(read(&outbox, third), Ok((4..=100).collect()), "{after}");
    }
}

#[test]
fn a_damaged_row_is_a_gap_behind_which_the_others_are() {
    let store = MemoryStore::new();
    let (outbox, epoch) = reopened(&store, &config(1000));
    note(&outbox, 1..=300);
    settle(&outbox, epoch, Vec::new(), 301);
    let (mut lasts, (from, to)) = (Vec::new(), keys::ends_from(Seq::ZERO));
    store
        .scan(&from, &to, &mut |key, _| {
            if let Some(keys::Key::Ends { last }) = keys::Key::decode(key) {
                lasts.push(last);
            }
            Flow::Continue
        })
        .unwrap();
    let rotten = Rotten { store, key: keys::Key::Ends { last: lasts[1] }.encode() };
    let (outbox, _) = reopened(&rotten, &config(1000));
    let before: Vec<_> = (1..=lasts[0].get()).collect();
    let mut found = Vec::new();
    let mut after = EndPosition::START;
    let resume = loop {
        match outbox.read_ends(after, 7) {
            Ok(ends) => {
                after = ends.last().unwrap().position;
                found.extend(places_of(&ends));
            }
            Err(EndsError::Lagged { missed: None, resume }) => break resume,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(found, before);
    assert_eq!(read(&outbox, resume), Ok((lasts[1].get() + 1..=300).collect()));
    let head = Rotten { store: rotten.store, key: keys::Key::EndsHead.encode() };
    assert!(matches!(head.read(&keys::Key::EndsHead.encode()), Err(StoreError::Damaged { .. })));
    let (outbox, _) = reopened(&head, &config(1000));
    assert_eq!(read(&outbox, after), Err((None, vec![])), "what a damaged head says nothing of is gone");
}

/// Found by a fuzzer, in a journal whose checksums fit: whoever read the feed was led round in circles.
#[test]
fn ends_whose_places_go_back_are_left_out_and_the_feed_comes_to_its_end() {
    let (outbox, _) = reopened(&MemoryStore::new(), &config(100));
    note(&outbox, [10, 20, 12, 20, 14, 30]);
    assert_eq!(read(&outbox, EndPosition::START), Ok(vec![10, 20, 30]));
}
