//! Behaviour of the journal, on a disk in memory that counts, fails and loses power.

mod crash;
mod damage;
mod hostile;
mod ring;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::format::{BLOCK, GroupHeader, HeaderBlock, SegmentHeader};
use super::{FileJournal, JournalConfig, MemoryJournal};
use crate::ports::{Group, Journal, JournalError, Replay};
use crate::record::{Epoch, Seq};
use crate::storage::disk::{Disk, DiskFile, MemoryDisk, Owner};

const CONFIG: JournalConfig = JournalConfig { segment_bytes: 64 << 10, segments: 4 };
/// Records that make a group fill a segment.
const WHOLE: usize = CONFIG.max_group_bytes() as usize;

/// A memory disk that counts what is done to it, and fails when told to.
#[derive(Clone, Debug, Default)]
struct TestDisk {
    inner: MemoryDisk,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    writes: AtomicU64,
    syncs: AtomicU64,
    creates: AtomicU64,
    /// How many of the next calls fail.
    fail_writes: AtomicU32,
    fail_syncs: AtomicU32,
}

#[derive(Debug)]
struct TestFile {
    inner: Box<dyn DiskFile>,
    counts: Arc<Counts>,
}

impl TestDisk {
    fn handle(&self) -> FileJournal {
        FileJournal::open(Arc::new(self.clone()) as Arc<dyn Disk>, CONFIG).unwrap()
    }

    fn file(&self, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(TestFile { inner, counts: Arc::clone(&self.counts) })
    }

    /// Writes and syncs since the last call.
    fn take_counts(&self) -> (u64, u64) {
        let counts = &self.counts;
        (counts.writes.swap(0, Ordering::SeqCst), counts.syncs.swap(0, Ordering::SeqCst))
    }

    fn fail_syncs(&self, times: u32) {
        self.counts.fail_syncs.store(times, Ordering::SeqCst);
    }

    fn fail_writes(&self, times: u32) {
        self.counts.fail_writes.store(times, Ordering::SeqCst);
    }
}

fn fails(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Disk for TestDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.inner.open(name)?))
    }
    fn create_zeroed(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        self.counts.creates.fetch_add(1, Ordering::SeqCst);
        Ok(self.file(self.inner.create_zeroed(name, len)?))
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }
    fn owner(&self) -> Arc<Owner> {
        self.inner.owner()
    }
}

impl DiskFile for TestFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.counts.writes.fetch_add(1, Ordering::SeqCst);
        if fails(&self.counts.fail_writes) {
            // Half of it gets through.
            self.inner.write_at(offset, &bytes[..bytes.len() / 2])?;
            return Err(io::Error::other("no write today"));
        }
        self.inner.write_at(offset, bytes)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.counts.syncs.fetch_add(1, Ordering::SeqCst);
        if fails(&self.counts.fail_syncs) {
            return Err(io::Error::other("no sync today"));
        }
        self.inner.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
}

/// The records of the group at `seq`: bytes that tell one group from another.
fn records(seq: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seq as usize * 31 + i * 7 + 1) as u8).collect()
}

/// A journal under test: one handle, its epoch, and the place of the next record.
struct Log<J> {
    journal: J,
    epoch: Epoch,
    next: u64,
}

impl Log<FileJournal> {
    /// Opens the journal on a disk: replays it and begins the next epoch.
    fn open(disk: &TestDisk) -> (Self, Seen) {
        let mut journal = disk.handle();
        let seen = Seen::all(&mut journal);
        let epoch = Epoch(seen.replay.epoch.max(disk.owner().epoch()).0 + 1);
        journal.begin(epoch).unwrap();
        (Self { journal, epoch, next: seen.replay.end.get().max(1) }, seen)
    }
}

impl<J: Journal> Log<J> {
    /// Appends a group of one record.
    fn try_append(&mut self, len: usize, reserve: bool) -> Result<Option<Seq>, JournalError> {
        let bytes = records(self.next, len);
        let group = Group { first: Seq::new(self.next), count: 1, records: &bytes };
        self.next += 1;
        self.journal.append(self.epoch, group, reserve).map(|done| done.sealed_before)
    }

    fn append(&mut self, len: usize) -> u64 {
        self.try_append(len, true).unwrap();
        self.next - 1
    }

    fn sync(&mut self) -> Result<(), JournalError> {
        self.journal.sync(self.epoch)
    }

    /// Appends and syncs groups of these lengths, each by itself.
    fn commit(&mut self, lens: &[usize]) -> Vec<u64> {
        lens.iter()
            .map(|len| {
                let seq = self.append(*len);
                self.sync().unwrap();
                seq
            })
            .collect()
    }

    fn recycle(&mut self, before: u64) {
        self.journal.recycle(self.epoch, Seq::new(before)).unwrap();
    }

    fn heal(&mut self) -> Result<(), JournalError> {
        self.journal.heal(self.epoch)
    }
}

/// What a replay handed over.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    seqs: Vec<u64>,
    replay: Replay,
}

impl Seen {
    fn all(journal: &mut impl Journal) -> Self {
        Self::from(journal, 0)
    }

    /// Replays, and checks that every group is exactly as it was appended.
    fn from(journal: &mut impl Journal, from: u64) -> Self {
        let mut seqs = Vec::new();
        let visit = &mut |group: Group<'_>| {
            assert_eq!(group.records, records(group.first.get(), group.records.len()));
            seqs.push(group.first.get());
            Ok(())
        };
        let replay = journal.replay(Seq::new(from), visit).unwrap();
        assert_eq!(replay.groups, seqs.len() as u64);
        assert!(seqs.is_sorted_by(|a, b| a < b), "in order, and none twice: {seqs:?}");
        Self { seqs, replay }
    }

    fn on(disk: &TestDisk) -> Self {
        Self::all(&mut disk.handle())
    }

    fn clean(&self) -> bool {
        self.replay.tail_cut.is_none() && self.replay.damaged.is_empty()
    }
}

/// The valid segment headers on a disk, in generation order, with the names of their files.
fn headers(disk: &MemoryDisk) -> Vec<(String, SegmentHeader)> {
    let mut found = Vec::new();
    for (id, name) in disk.list().unwrap().into_iter().enumerate() {
        if let HeaderBlock::Valid(header) = HeaderBlock::decode(&disk.contents(&name).unwrap(), id as u32) {
            found.push((name, header));
        }
    }
    found.sort_by_key(|(_, header)| header.generation);
    found
}

/// The file that is being written.
fn newest(disk: &MemoryDisk) -> String {
    headers(disk).pop().unwrap().0
}

/// Where the groups of a segment file lie: offset and extent.
fn groups(disk: &MemoryDisk, name: &str) -> Vec<(u64, u64)> {
    let bytes = disk.contents(name).unwrap();
    let header = headers(disk).into_iter().find(|(found, _)| found == name).unwrap().1;
    let mut at = BLOCK;
    let mut found = Vec::new();
    while let Some((group, _)) = bytes.get(at as usize..).and_then(|b| GroupHeader::decode(b, header.salt)) {
        let extent = GroupHeader::extent(group.len.into());
        found.push((at, extent));
        at += extent;
    }
    found
}

fn flip(disk: &MemoryDisk, name: &str, at: u64) {
    disk.tamper(name, at, |bytes| bytes[0] ^= 0x10);
}

#[test]
fn groups_come_back_as_they_were_appended() {
    let disk = TestDisk::default();
    let (mut log, seen) = Log::open(&disk);
    assert_eq!(seen.replay, Replay::default());
    let lens = [0, 1, 4023, 4024, 4025, 9000, 30_000, 20_000, 50_000, 1];
    let seqs = log.commit(&lens);
    let seen = Seen::on(&disk);
    assert_eq!(seen.seqs, seqs);
    assert!(seen.clean());
    assert_eq!(seen.replay.end.get(), log.next);
    assert_eq!(seen.replay.epoch, Epoch(1));
    assert_eq!(seen.replay.records, lens.len() as u64);
}

#[test]
fn replay_hands_over_only_groups_with_records_at_or_above_the_start() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    let bytes = records(1, 10);
    let group = Group { first: Seq::new(1), count: 5, records: &bytes };
    log.journal.append(log.epoch, group, false).unwrap();
    log.next = 6;
    log.commit(&[10, 10]);
    assert_eq!(Seen::from(&mut disk.handle(), 5).seqs, [1, 6, 7]);
    let seen = Seen::from(&mut disk.handle(), 7);
    assert_eq!((seen.seqs, seen.replay.end.get()), (vec![7], 8));
}

#[test]
fn every_opening_starts_a_fresh_segment_and_keeps_what_came_before() {
    let disk = TestDisk::default();
    let mut all = Vec::new();
    for epoch in 1..=3 {
        let (mut log, seen) = Log::open(&disk);
        assert_eq!(seen.seqs, all);
        assert!(seen.clean());
        assert_eq!(log.epoch, Epoch(epoch));
        all.extend(log.commit(&[10, 5000]));
    }
    assert_eq!(headers(&disk.inner).len(), 3);
}

#[test]
fn one_write_and_one_sync_a_group_also_where_a_segment_begins() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    for round in 0..30 {
        disk.take_counts();
        let seq = log.append(20_000);
        assert_eq!(disk.take_counts(), (1, 0), "append in round {round}");
        log.sync().unwrap();
        assert_eq!(disk.take_counts(), (0, 1), "sync in round {round}");
        log.recycle(seq);
    }
    log.sync().unwrap();
    assert_eq!(disk.counts.creates.load(Ordering::SeqCst), 4, "files are created once");
    assert!(headers(&disk.inner).last().unwrap().1.generation > 8, "segments were recycled");
}

#[test]
fn appending_does_not_allocate_a_new_buffer_for_every_group() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[WHOLE]);
    // With the header of a segment before it, a group is as large as it gets.
    let seq = log.append(WHOLE);
    log.recycle(seq);
    let before = log.journal.buffer_for_tests();
    let seq = log.append(WHOLE);
    log.recycle(seq);
    log.append(100);
    assert_eq!(log.journal.buffer_for_tests(), before);
}

#[test]
fn sealed_segments_are_reported_once() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    assert_eq!(log.try_append(40_000, true).unwrap(), None);
    assert_eq!(log.try_append(40_000, true).unwrap(), Some(Seq::new(2)));
    assert_eq!(log.try_append(10, true).unwrap(), None);
}

#[test]
fn visitor_can_stop_a_replay() {
    let disk = TestDisk::default();
    let (mut log, _) = Log::open(&disk);
    log.commit(&[1, 1]);
    let mut calls = 0;
    let stop = &mut |_: Group<'_>| {
        calls += 1;
        Err("enough".to_owned())
    };
    let stopped = disk.handle().replay(Seq::ZERO, stop);
    assert!(matches!(stopped, Err(JournalError::Stopped(why)) if why == "enough"));
    assert_eq!(calls, 1);
}

#[test]
fn newer_owner_fences_every_call_of_the_older_one() {
    let disk = TestDisk::default();
    let (mut old, _) = Log::open(&disk);
    old.commit(&[10]);
    let (mut new, _) = Log::open(&disk);
    disk.take_counts();
    let held = Epoch(1);
    let fenced = |error| matches!(error, JournalError::Fenced { held: h, current } if h == held && current == Epoch(2));
    assert!(fenced(old.try_append(10, true).unwrap_err()));
    assert!(fenced(old.sync().unwrap_err()));
    assert!(fenced(old.heal().unwrap_err()));
    assert!(fenced(old.journal.recycle(held, Seq::MAX).unwrap_err()));
    assert_eq!(disk.take_counts(), (0, 0), "a fenced handle touches nothing");
    new.commit(&[10]);
    assert_eq!(Seen::on(&disk).seqs, [1, 2]);
}

#[test]
fn epoch_that_is_not_newer_than_any_seen_is_refused() {
    let disk = TestDisk::default();
    let mut journal = disk.handle();
    journal.begin(Epoch(7)).unwrap();
    for epoch in [6, 7] {
        let refused = disk.handle().begin(Epoch(epoch));
        assert!(matches!(refused, Err(JournalError::Fenced { current: Epoch(7), .. })));
    }
    disk.inner.crash();
    let refused = disk.handle().begin(Epoch(7));
    assert!(matches!(refused, Err(JournalError::Fenced { current: Epoch(7), .. })), "it is on disk too");
    disk.handle().begin(Epoch(8)).unwrap();
}

#[test]
fn begin_is_refused_when_the_log_grew_after_the_replay() {
    let disk = TestDisk::default();
    let (mut old, _) = Log::open(&disk);
    let mut new = disk.handle();
    Seen::all(&mut new);
    old.commit(&[10]);
    assert!(matches!(new.begin(Epoch(2)), Err(JournalError::Io { op: "begin", .. })));
    assert_eq!(Seen::all(&mut new).seqs, [1]);
    new.begin(Epoch(2)).unwrap();
}

#[test]
fn handle_that_has_not_begun_writes_nothing() {
    let disk = TestDisk::default();
    let mut journal = disk.handle();
    let group = Group { first: Seq::new(1), count: 1, records: b"" };
    assert!(matches!(journal.append(Epoch(1), group, true), Err(JournalError::Fenced { .. })));
    assert!(disk.list().unwrap().is_empty());
}

#[test]
fn memory_journal_loses_in_a_crash_what_was_not_synced() {
    let mut journal = MemoryJournal::new(CONFIG).unwrap();
    journal.begin(Epoch(1)).unwrap();
    let mut log = Log { journal: journal.clone(), epoch: Epoch(2), next: 1 };
    log.journal.begin(Epoch(2)).unwrap();
    log.commit(&[10]);
    log.append(10);
    log.journal.crash();
    assert!(matches!(log.sync(), Err(JournalError::Fenced { .. })));
    assert!(matches!(journal.sync(Epoch(1)), Err(JournalError::Fenced { .. })));
    assert_eq!(Seen::all(&mut log.journal.clone()).seqs, [1]);
}

#[test]
fn journal_works_on_a_real_directory() {
    let directory = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(crate::storage::disk::RealDisk::open(directory.path()).unwrap());
    let journal = FileJournal::open(Arc::clone(&disk), CONFIG).unwrap();
    let mut log = Log { journal, epoch: Epoch(1), next: 1 };
    log.journal.begin(Epoch(1)).unwrap();
    let seqs = log.commit(&[10, 30_000, 60_000]);
    drop(log);
    let mut again = FileJournal::open(disk, CONFIG).unwrap();
    assert_eq!(Seen::all(&mut again).seqs, seqs);
    again.begin(Epoch(2)).unwrap();
}
