//! Recycling, bounds, and the room for opening and healing.

use super::*;

#[test]
fn recycled_segments_never_replay_their_stale_groups() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    for _ in 0..40 {
        let kept = log.commit(&[100, 9000, 20_000, 100, 20_000]);
        log.recycle(kept[0]);
        let seen = Seen::on(&disk);
        assert!(seen.clean(), "{seen:?}");
        assert!(seen.seqs.ends_with(&kept));
        assert!(seen.seqs.len() <= 12, "released segments are not handed over: {seen:?}");
        assert_eq!(seen.replay.end.get(), log.next);
    }
}

#[test]
fn released_segment_stays_released_after_a_crash() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[WHOLE, WHOLE]);
    log.recycle(2);
    disk.inner.crash();
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [2]);
    assert!(seen.clean());
}

#[test]
fn end_is_known_when_everything_was_released() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[WHOLE]);
    log.append(10);
    log.recycle(2);
    // The segment with group 2 was never synced; the only one left is released.
    disk.inner.crash();
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [0; 0]);
    assert_eq!(seen.replay.end, Seq::new(2));
}

#[test]
fn recycle_keeps_segments_that_reach_beyond_the_place() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[20_000, 20_000, 40_000]);
    log.recycle(2);
    assert_eq!(Seen::on(&disk).seqs, [1, 2, 3]);
    log.recycle(3);
    assert_eq!(Seen::on(&disk).seqs, [3]);
    log.recycle(100);
    assert_eq!(Seen::on(&disk).seqs, [3], "the segment being written stays");
}

#[test]
fn last_free_segment_is_kept_for_the_reserve() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    assert_eq!(log.journal.space().free, 3);
    for _ in 0..3 {
        log.try_append(WHOLE, false).unwrap();
        log.sync().unwrap();
    }
    assert_eq!(log.journal.space().free, 1);
    disk.take_counts();
    assert!(matches!(log.try_append(WHOLE, false), Err(JournalError::Full)));
    assert_eq!(disk.take_counts(), (0, 0), "nothing was written");
    log.next = 4;
    log.try_append(10, true).unwrap();
    log.try_append(10, false).expect("what fits into the current segment needs no reserve");
    assert_eq!(log.journal.space().free, 0);
    assert!(matches!(log.try_append(WHOLE, true), Err(JournalError::Full)));
    log.next = 6;
    log.sync().unwrap();
    log.recycle(2);
    log.try_append(WHOLE, true).unwrap();
    log.sync().unwrap();
    assert_eq!(Seen::on(&disk).seqs, [2, 3, 4, 5, 6]);
}

#[test]
fn group_over_the_limit_is_refused_and_nothing_is_written() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    disk.take_counts();
    let refused = log.try_append(WHOLE + 1, true).unwrap_err();
    assert!(matches!(refused, JournalError::TooLarge { bytes, max } if bytes == max + 1));
    assert_eq!(disk.take_counts(), (0, 0));
    log.try_append(WHOLE, true).expect("the limit itself fits");
}

/// Found by review: the segment would be said to lie below a place that is given out later.
#[test]
fn group_at_a_place_that_was_given_out_before_is_refused_and_nothing_is_written() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    let end = log.commit(&[10, 10])[1] + 1;
    disk.fail_writes(1);
    log.try_append(10, true).unwrap_err();
    log.heal().unwrap();
    disk.take_counts();
    let bytes = records(end, 10);
    let group = |first| Group { first: Seq::new(first), count: 1, records: &bytes };
    for first in [end - 1, end] {
        let refused = log.journal.append(log.epoch, group(first), false).unwrap_err();
        assert!(
            matches!(&refused, JournalError::Io { source, .. } if source.kind() == io::ErrorKind::InvalidInput)
        );
        assert_eq!(disk.take_counts(), (0, 0));
    }
    log.journal.append(log.epoch, group(end + 1), false).expect("the failed one may be at the place before");
}

/// Fills the ring to the last segment, with synced groups.
fn full(disk: &TestDisk) -> Log<FileJournal> {
    let (mut log, _) = Log::open(disk);
    log.commit(&[WHOLE; 4]);
    assert_eq!(log.journal.space().free, 0);
    log
}

#[test]
fn full_journal_opens_with_one_spare_segment_then_without_any() {
    let disk = TestDisk::default();
    drop(full(&disk));
    let (mut log, seen) = Log::open(&disk);
    assert_eq!(seen.seqs, [1, 2, 3, 4]);
    assert_eq!(disk.list().unwrap().len(), 5, "one spare file");
    log.commit(&[10]);
    assert!(matches!(log.try_append(WHOLE, true), Err(JournalError::Full)));

    for _ in 0..3 {
        let (mut log, seen) = Log::open(&disk);
        assert_eq!(seen.seqs, [1, 2, 3, 4, 5]);
        assert!(matches!(log.try_append(10, true), Err(JournalError::Full)));
        assert_eq!(disk.list().unwrap().len(), 5, "and no more");
    }
    let (mut log, _) = Log::open(&disk);
    log.recycle(5);
    log.next = 6;
    log.commit(&[10, WHOLE]);
    assert_eq!(disk.list().unwrap().len(), 4, "the surplus is given back");
    disk.inner.crash();
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [5, 6, 7]);
    assert!(seen.clean());
}

#[test]
fn full_journal_heals_with_the_spare_segment_and_recycles_while_it_waits() {
    let disk = TestDisk::default();
    let mut log = full(&disk);
    drop(Log::open(&disk));
    let (mut spare, _) = Log::open(&disk);
    spare.commit(&[10]);
    spare.append(10);
    disk.fail_syncs(1);
    spare.sync().unwrap_err();
    assert!(matches!(spare.heal(), Err(JournalError::Full)));
    spare.recycle(3);
    spare.heal().unwrap();
    spare.commit(&[10]);
    assert_eq!(Seen::on(&disk).seqs, [3, 4, 5, 7]);
    assert!(matches!(log.heal(), Err(JournalError::Fenced { .. })));
}

/// A file that was given back may be there again after a power cut. The newest segment must not be among them before
/// its successor is there: the next opening would count the same generations again, and the file that came back would
/// say that what they hold has been released.
#[test]
fn surplus_that_a_power_cut_brings_back_takes_nothing_along() {
    let disk = TestDisk::default();
    for round in 0..12 {
        // Until the ring and the spare segment are taken, then once more: an opening without a segment.
        let last = loop {
            let (mut log, _) = Log::open(&disk);
            match log.try_append(10, true) {
                Ok(_) => log.sync().unwrap(),
                Err(_) => break log,
            }
        };
        let Log { mut journal, epoch, next } = last;
        journal.recycle(epoch, Seq::new(next)).unwrap();
        let (mut log, seen) = Log::open(&disk);
        assert_eq!(seen.seqs, [0; 0], "round {round}");
        let kept = log.commit(&[10]);
        disk.inner.crash();
        let seen = Seen::on(&disk);
        assert_eq!(seen.seqs, kept, "round {round}");
        assert!(seen.clean(), "{seen:?}");
    }
}

/// The released header of a surplus segment may be all that says why generations are missing.
#[test]
fn surplus_goes_only_when_a_later_segment_says_that_it_is_not_needed() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[WHOLE; 4]);
    log.recycle(2);
    log.commit(&[WHOLE]);
    let (mut log, _) = Log::open(&disk);
    log.append(10);
    disk.fail_syncs(1);
    log.sync().unwrap_err();
    log.heal().unwrap();
    log.commit(&[10]);
    // Everything before the group that failed has settled.
    log.recycle(6);
    let mut journal = disk.handle();
    let seen = Seen::from(&mut journal, 6);
    assert_eq!(seen.seqs, [7]);
    assert!(seen.clean(), "{seen:?}");
}

#[test]
fn opening_again_and_again_without_writing_uses_nothing_up() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[WHOLE, WHOLE]);
    for _ in 0..20 {
        let (_, seen) = Log::open(&disk);
        assert_eq!(seen.seqs, [1, 2]);
        assert!(seen.clean(), "{seen:?}");
    }
    assert_eq!(disk.list().unwrap().len(), 4);
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10]);
    assert_eq!(Seen::on(&disk).seqs, [1, 2, 3]);
}

#[test]
fn failed_begin_can_be_repeated() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10]);
    let mut journal = disk.handle();
    Seen::all(&mut journal);
    for _ in 0..3 {
        disk.fail_syncs(1);
        assert!(matches!(journal.begin(Epoch(2)), Err(JournalError::Io { .. })));
    }
    journal.begin(Epoch(2)).unwrap();
    let mut log = Log { journal, epoch: Epoch(2), next: 2 };
    log.commit(&[10]);
    disk.inner.crash();
    assert_eq!(Seen::on(&disk).seqs, [1, 2]);
}

#[test]
fn changed_sizes_take_over_what_the_old_ones_left() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[WHOLE, 10]);
    let config = JournalConfig { segment_bytes: 32 << 10, segments: 3 };
    let mut journal = FileJournal::open(Arc::new(disk.clone()) as Arc<dyn Disk>, config).unwrap();
    assert_eq!(Seen::all(&mut journal).seqs, [1, 2]);
    journal.begin(Epoch(2)).unwrap();
    let mut log = Log { journal, epoch: Epoch(2), next: 3 };
    log.commit(&[10]);
    assert_eq!(Seen::on(&disk).seqs, [1, 2, 3]);
    log.recycle(3);
    log.commit(&[20_000, 20_000]);
    log.recycle(3);
    let lens: Vec<u64> =
        disk.list().unwrap().iter().map(|name| disk.inner.open(name).unwrap().len().unwrap()).collect();
    assert_eq!(lens, [32 << 10; 3]);
    assert_eq!(Seen::on(&disk).seqs, [3, 4, 5]);
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let config = |segment_bytes, segments| JournalConfig { segment_bytes, segments };
    assert_eq!(JournalConfig::default().validate(), Ok(()));
    for bad in [config(0, 4), config(12 << 10, 4), config((64 << 10) + 1, 4), config(2 << 30, 4)] {
        bad.validate().unwrap_err();
    }
    config(64 << 10, 2).validate().unwrap_err();
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    assert!(matches!(FileJournal::open(disk, config(1, 1)), Err(JournalError::Io { .. })));
}
