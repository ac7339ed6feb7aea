//! Power cuts, torn writes, failed syncs, healing.

use super::*;

/// A journal with three synced groups, and a group of these bytes that no sync covered. Its segment file.
fn with_unsynced(disk: &TestDisk, synced: &[usize], unsynced: usize) -> String {
    let (mut log, _) = Log::open(disk);
    log.commit(synced);
    log.append(unsynced);
    newest(&disk.inner)
}

#[test]
fn power_cut_drops_everything_that_no_sync_covered_and_nothing_else() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    let synced = log.commit(&[10, 40_000, 40_000]);
    log.append(10);
    log.append(WHOLE - 1);
    log.append(10);
    disk.inner.crash();
    let seen = Seen::on(&disk);
    // Leaving a segment syncs it, so group 4 is there.
    assert_eq!(seen.seqs, [&synced[..], &[4, 5]].concat());
    assert!(seen.clean());
}

#[test]
fn torn_last_group_is_cut_off_at_every_sector() {
    let last = 9000_usize;
    for cut in 0..=GroupHeader::extent(last as u64) / 512 {
        let disk = TestDisk::default();
        let name = with_unsynced(&disk, &[10, 5000, 10], last);
        let (at, _) = *groups(&disk.inner, &name).last().unwrap();
        disk.inner.crash_keeping(|_, sector| sector < at + cut * 512);
        let seen = Seen::on(&disk);
        let whole = (cut * 512) as usize >= last + 72;
        assert_eq!(seen.seqs.len(), if whole { 4 } else { 3 }, "cut after {cut} sectors");
        assert_eq!(seen.replay.tail_cut.is_some(), cut > 0 && !whole, "cut after {cut} sectors");
        assert!(seen.replay.damaged.is_empty());
        if let Some(cut) = seen.replay.tail_cut {
            assert_eq!(cut.first, Seq::new(4));
        }
    }
}

#[test]
fn torn_last_group_is_reported_once_and_stays_cut() {
    let disk = TestDisk::default();
    let name = with_unsynced(&disk, &[10], 9000);
    let before = disk.inner.contents(&name).unwrap();
    let (at, _) = groups(&disk.inner, &name)[1];
    disk.inner.crash_keeping(|_, sector| sector <= at);
    let (mut log, seen) = Log::open(&disk);
    assert!(seen.replay.tail_cut.is_some());
    log.commit(&[10]);
    assert!(Seen::on(&disk).clean(), "the opening has ruled the torn group out");
    // Even if the medium finds the bytes again.
    disk.inner.tamper(&name, 0, |bytes| bytes.copy_from_slice(&before));
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [1, 2]);
    assert!(seen.clean());
}

#[test]
fn torn_first_group_of_a_fresh_segment_keeps_all_before_it() {
    // The header block is eight sectors, the group two blocks; all subsets of a few telling sectors.
    for keep in 0..32_u64 {
        let disk = TestDisk::default();
        let (mut log, _) = Log::open(&disk);
        // Fill and recycle until the next segment is a used one, full of stale groups.
        let mut last = Vec::new();
        for _ in 0..5 {
            last = log.commit(&[WHOLE / 2, 100, WHOLE / 3]);
            log.recycle(last[0]);
        }
        assert_eq!(log.append(WHOLE - 5000), last[2] + 1);
        let kept = [0, 2048, 4096, 8192, 40_960].iter().enumerate();
        let kept: Vec<u64> = kept.filter(|(bit, _)| keep >> bit & 1 == 1).map(|(_, at)| *at).collect();
        disk.inner.crash_keeping(|_, sector| kept.contains(&sector));
        let (_, seen) = Log::open(&disk);
        assert_eq!(&seen.seqs[seen.seqs.len() - 3..], last, "kept {kept:?}");
        assert!(seen.replay.damaged.is_empty(), "kept {kept:?}: {:?}", seen.replay);
    }
}

#[test]
fn groups_that_were_replayed_are_durable_after_begin() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10]);
    log.append(9000);
    // The process dies, the machine does not: the group is in memory only, and it is replayed.
    let (_, seen) = Log::open(&disk);
    assert_eq!(seen.seqs, [1, 2]);
    disk.inner.crash();
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [1, 2]);
    assert!(seen.clean());
}

#[test]
fn failed_sync_needs_healing_and_only_synced_groups_survive_it() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    let mut synced = log.commit(&[10, 5000]);
    log.append(10);
    log.append(10);
    disk.fail_syncs(1);
    assert!(matches!(log.sync(), Err(JournalError::Io { op: "sync", .. })));
    disk.take_counts();
    assert!(matches!(log.try_append(10, true), Err(JournalError::NeedsHeal)));
    assert!(matches!(log.sync(), Err(JournalError::NeedsHeal)));
    assert_eq!(disk.take_counts(), (0, 0), "the same pages are not synced again");
    log.heal().unwrap();
    assert_eq!(Seen::on(&disk).seqs, synced);
    synced.extend(log.commit(&[10, 40_000, 40_000]));
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, synced);
    assert!(seen.clean());
}

#[test]
fn failed_append_needs_healing() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    let mut synced = log.commit(&[10]);
    disk.fail_writes(1);
    assert!(matches!(log.try_append(9000, true), Err(JournalError::Io { op: "append", .. })));
    assert!(matches!(log.sync(), Err(JournalError::NeedsHeal)));
    log.heal().unwrap();
    synced.extend(log.commit(&[20]));
    assert_eq!(Seen::on(&disk).seqs, synced);
}

#[test]
fn failed_heal_can_be_repeated_until_it_succeeds() {
    for failing_write in [false, true] {
        let disk = TestDisk::default();
        let (mut log, _) = Log::open(&disk);
        let mut synced = log.commit(&[10, 10]);
        log.append(10);
        disk.fail_syncs(1);
        log.sync().unwrap_err();
        for _ in 0..10 {
            if failing_write {
                disk.fail_writes(1)
            } else {
                disk.fail_syncs(1)
            }
            assert!(matches!(log.heal(), Err(JournalError::Io { .. })));
            assert!(matches!(log.try_append(1, true), Err(JournalError::NeedsHeal)));
        }
        log.heal().unwrap();
        synced.extend(log.commit(&[10]));
        disk.inner.crash();
        let seen = Seen::on(&disk);
        assert_eq!(seen.seqs, synced);
        assert!(seen.clean());
    }
}

#[test]
fn healing_again_and_again_does_not_use_the_ring_up() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    let mut synced = log.commit(&[10]);
    for _ in 0..20 {
        log.append(10);
        disk.fail_syncs(1);
        log.sync().unwrap_err();
        log.heal().unwrap();
    }
    synced.extend(log.commit(&[10]));
    disk.inner.crash();
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, synced);
    assert!(seen.clean());
}

/// A failed heal leaves a header that may be in memory only. An opening after a mere kill finds it there; its own header
/// must not count on it, for a power cut may still take it.
#[test]
fn header_of_a_failed_heal_may_be_lost_after_the_next_opening() {
    for (heals, synced) in (0..8).flat_map(|heals| [(heals, &[][..]), (heals, &[10][..])]) {
        let disk = TestDisk::default();
        let (mut log, _) = Log::open(&disk);
        log.commit(synced);
        log.append(10);
        disk.fail_syncs(1 + heals);
        assert!(log.sync().is_err());
        (0..heals).for_each(|_| assert!(log.heal().is_err()));
        disk.inner.owner().revoke();
        let (_, seen) = Log::open(&disk);
        assert!(seen.clean(), "{heals} failed heals, after the kill: {seen:?}");
        disk.inner.crash();
        let again = Seen::on(&disk);
        assert!(again.clean(), "{heals} failed heals, after the power cut: {again:?}");
        assert_eq!(again.seqs, seen.seqs);
    }
}

#[test]
fn fence_is_there_after_a_crash_behind_it_and_absent_after_a_crash_before_it() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[10]);
    log.append(10);
    disk.fail_syncs(1);
    log.sync().unwrap_err();
    // The group whose sync failed reached the disk all the same.
    disk.inner.crash_keeping(|_, _| true);
    let (mut log, seen) = Log::open(&disk);
    assert_eq!(seen.seqs, [1, 2], "before healing its outcome is unknown, and here it survived");

    log.append(10);
    disk.fail_syncs(1);
    log.sync().unwrap_err();
    log.heal().unwrap();
    disk.inner.crash_keeping(|_, _| true);
    let (mut log, seen) = Log::open(&disk);
    assert_eq!(seen.seqs, [1, 2], "after healing it is fenced off, though its bytes are whole");
    log.commit(&[10]);
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, [1, 2, 4]);
    assert!(seen.clean());
}

#[test]
fn any_crash_keeps_what_was_synced_whole_and_in_order() {
    // A seeded walk: appends, syncs, failures, heals, recycling, crashes that keep any subset of sectors.
    for seed in 0..300_u64 {
        Walk::new(seed).run();
    }
}

struct Walk {
    disk: TestDisk,
    random: u64,
    /// Synced and not released, in order; unsynced since.
    synced: Vec<u64>,
    pending: Vec<u64>,
    settled: u64,
    /// Whether several groups may wait for one sync; and whether some ever did at a crash.
    several: bool,
    torn: bool,
}

impl Walk {
    fn new(seed: u64) -> Self {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let disk = TestDisk::default();
        let (synced, pending) = (Vec::new(), Vec::new());
        Self { disk, random, synced, pending, settled: 0, several: seed.is_multiple_of(2), torn: false }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % below
    }

    fn run(&mut self) {
        for _ in 0..6 {
            self.life();
            let keep = self.random(4);
            let mut sectors = self.random;
            self.disk.inner.crash_keeping(|_, at| {
                sectors = sectors.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(at | 1);
                sectors >> 33 & 3 < keep
            });
        }
    }

    /// One process: it opens, checks what it finds, and works until it dies.
    fn life(&mut self) {
        self.disk.fail_syncs(0);
        self.disk.fail_writes(0);
        let mut journal = self.disk.handle();
        let seen = Seen::from(&mut journal, self.settled);
        for seq in &self.synced {
            assert!(*seq < self.settled || seen.seqs.contains(seq), "{seq} was synced: {seen:?}");
        }
        for seq in &seen.seqs {
            let known = self.synced.contains(seq) || self.pending.contains(seq);
            assert!(known, "{seq} was fenced off or never appended: {seen:?}");
        }
        // Only where several groups waited for one sync can a power cut leave a later one without an earlier one.
        self.torn |= self.pending.len() > 1;
        if !self.torn {
            assert!(seen.replay.damaged.is_empty(), "{seen:?}");
        }
        self.synced = seen.seqs.clone();
        self.pending.clear();
        let epoch = Epoch(seen.replay.epoch.0 + 1);
        journal.begin(epoch).unwrap();
        let next = seen.replay.end.get().max(1);
        let mut log = Log { journal, epoch, next };
        for _ in 0..self.random(40) {
            self.step(&mut log);
        }
    }

    fn step(&mut self, log: &mut Log<FileJournal>) {
        match self.random(12) {
            0 => self.disk.fail_syncs(1),
            1 => self.disk.fail_writes(1),
            2 => {
                if let Some(seq) = self.synced.get(self.synced.len() / 2) {
                    self.settled = self.settled.max(*seq);
                    log.recycle(self.settled);
                }
            }
            3..7 if self.several => self.append(log),
            _ => {
                self.append(log);
                self.sync(log);
            }
        }
        if self.random(3) == 0 {
            self.disk.fail_syncs(0);
            self.disk.fail_writes(0);
        }
    }

    fn append(&mut self, log: &mut Log<FileJournal>) {
        let len = [10, 4024, 5000, 30_000, WHOLE][self.random(5) as usize];
        let seq = log.next;
        match log.try_append(len, self.random(2) == 0) {
            // Leaving a segment syncs what was appended to it.
            Ok(_) | Err(JournalError::Io { .. }) => self.pending.push(seq),
            Err(JournalError::NeedsHeal) => self.heal(log),
            Err(JournalError::Full) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn sync(&mut self, log: &mut Log<FileJournal>) {
        match log.sync() {
            Ok(()) => self.synced.append(&mut self.pending),
            Err(JournalError::Io { .. }) => {}
            Err(JournalError::NeedsHeal) => self.heal(log),
            Err(error) => panic!("{error}"),
        }
    }

    fn heal(&mut self, log: &mut Log<FileJournal>) {
        match log.heal() {
            Ok(()) => {
                // Groups that were synced when their segment was left are the journal's to keep or drop; what it
                // hands over now is what counts.
                let seen = Seen::from(&mut self.disk.handle(), self.settled);
                self.synced.retain(|seq| *seq >= self.settled);
                assert!(seen.seqs.starts_with(&self.synced), "{:?} {seen:?}", self.synced);
                self.synced = seen.seqs;
                self.pending.clear();
            }
            Err(JournalError::Io { .. } | JournalError::Full) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
