//! Writing groups: which segment, which bytes, and what is known to be durable.
//!
//! # Invariants
//! - Only the current segment has bytes that no sync covered: a segment is synced before it is left.
//! - The header of a fresh segment and its first group are one write and one sync. That is safe because a segment
//!   is only reused after its released header is durable (so the old header cannot bring anything back), because
//!   groups name their segment's generation and are salted with its header's secret (so a lost header takes its
//!   groups with it), and because the epoch that is being written already has a durable header.
//! - Nothing is synced a second time after a failed sync: healing leaves the segment, and writes its fence elsewhere.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use crate::ports::{Appended, Group, JournalError, JournalSpace};
use crate::record::{Epoch, Seq};
use crate::storage::disk::Disk;

use super::config::JournalConfig;
use super::format::{BLOCK, BLOCK_LEN, GroupHeader, SegmentHeader};
use super::layout::{file_name, io};
use super::replay::Scan;
use super::ring::{Ring, SlotState};

/// The writing half of a journal, from `begin` on.
#[derive(Debug)]
pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    config: JournalConfig,
    epoch: Epoch,
    ring: Ring,
    /// `None` until a segment of this epoch could be started.
    current: Option<Current>,
    failed: bool,
    newest_generation: u64,
    last: Position,
    durable: Position,
    /// The place after the last record appended.
    end: Seq,
    /// Healing left a segment behind, and no append has said so yet.
    sealed_before: Option<Seq>,
    buffer: Vec<u8>,
}

/// A group, and what the next one names as its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    number: u64,
    crc: u32,
}

/// The segment that is being written.
#[derive(Clone, Copy, Debug)]
struct Current {
    slot: usize,
    header: SegmentHeader,
    /// Where the next group goes; zero while the header has not been written either.
    at: u64,
    /// What the next group names as its predecessor.
    chain: u32,
    dirty: bool,
    /// A sync has covered its header.
    durable: bool,
}

impl Writer {
    /// Takes over a scanned journal: makes what was replayed durable, and starts a durable fresh segment.
    ///
    /// When every segment is needed and the spare one is taken (or cannot be created), there is no current segment,
    /// and appends are refused as full until something is recycled.
    pub(super) fn begin(
        disk: &Arc<dyn Disk>,
        config: JournalConfig,
        epoch: Epoch,
        scan: &Scan,
        newest_generation: u64,
    ) -> Result<Self, JournalError> {
        make_proven(&**disk, scan)?;
        let last = Position { number: scan.last_number, crc: scan.last_chain };
        let mut writer = Self {
            disk: Arc::clone(disk),
            config,
            epoch,
            ring: Ring::open(&**disk, config, &scan.segments)?,
            current: None,
            failed: false,
            newest_generation,
            last,
            durable: last,
            end: scan.end,
            sealed_before: None,
            buffer: Vec::new(),
        };
        if let Ok(Some(slot)) = writer.ring.next_for_opening(&**disk) {
            writer.start_durably(slot)?;
        }
        Ok(writer)
    }

    pub(super) const fn epoch(&self) -> Epoch {
        self.epoch
    }

    #[cfg(test)]
    pub(super) fn buffer_for_tests(&self) -> *const u8 {
        self.buffer.as_ptr()
    }

    pub(super) fn append(
        &mut self,
        group: Group<'_>,
        may_use_reserve: bool,
    ) -> Result<Appended, JournalError> {
        if self.failed {
            return Err(JournalError::NeedsHeal);
        }
        let (bytes, max) = (group.records.len() as u64, self.config.max_group_bytes());
        let len = u32::try_from(bytes).ok().filter(|_| bytes <= max);
        let len = len.ok_or(JournalError::TooLarge { bytes, max })?;
        if group.first < self.end {
            let cause = "its places were given out before: what is sealed would not lie below what it is said to lie below";
            return Err(io("append")(std::io::Error::new(std::io::ErrorKind::InvalidInput, cause)));
        }
        let extent = GroupHeader::extent(bytes);
        let fits =
            |current: &Current| current.at.max(BLOCK).saturating_add(extent) <= self.config.segment_bytes;
        if !self.current.as_ref().is_some_and(fits) {
            self.leave(may_use_reserve)?;
        }
        let written = self.write_group(group, len);
        self.failed |= written.is_err();
        written.map_err(io("append"))?;
        Ok(Appended { sealed_before: self.sealed_before.take() })
    }

    /// Goes on to a fresh segment. Nothing is written when there is none.
    fn leave(&mut self, may_use_reserve: bool) -> Result<(), JournalError> {
        let needed = if may_use_reserve { 1 } else { 2 };
        let slot = self.ring.next_free().filter(|_| self.ring.free() >= needed).ok_or(JournalError::Full)?;
        self.sync()?;
        let marked = self.ring.slot_mut(slot).mark_released(&mut self.buffer);
        self.failed |= marked.is_err();
        marked.map_err(io("release segment"))?;
        if self.current.is_none() {
            return self.start_durably(slot).inspect_err(|_| self.failed = true);
        }
        self.seal();
        self.start(slot)
    }

    /// Seals the current segment, which the next append reports.
    fn seal(&mut self) {
        if let Some(current) = self.current.take() {
            let empty = self.durable.number < current.header.first_number;
            self.ring.slot_mut(current.slot).seal(self.end, empty, self.durable.number.saturating_add(1));
            self.sealed_before = Some(self.end);
        }
    }

    /// Makes a free segment the current one. Its header is written together with its first group.
    fn start(&mut self, slot: usize) -> Result<(), JournalError> {
        let exhausted = || io("start segment")(std::io::Error::other("segment generations are exhausted"));
        let generation = self.newest_generation.checked_add(1).ok_or_else(exhausted)?;
        self.newest_generation = generation;
        // A segment that held no group is overwritten in place: what it fenced off, this one fences off too.
        self.ring.slot_mut(slot).state = SlotState::Free { unmarked: None };
        let header = SegmentHeader {
            id: self.ring.slot(slot).id,
            released: false,
            generation,
            epoch: self.epoch,
            oldest: self.ring.oldest(generation),
            continues: self.durable.number,
            chain: self.durable.crc,
            first_number: self.last.number.checked_add(1).ok_or_else(exhausted)?,
            base: self.end,
            salt: salt(generation),
        };
        self.ring.slot_mut(slot).start(header);
        let chain = header.chain_start();
        self.current = Some(Current { slot, header, at: 0, chain, dirty: false, durable: false });
        Ok(())
    }

    /// As [`Writer::start`], and the header is durable afterwards.
    fn start_durably(&mut self, slot: usize) -> Result<(), JournalError> {
        self.ring.slot_mut(slot).mark_released(&mut self.buffer).map_err(io("release segment"))?;
        self.start(slot)?;
        let Some(current) = self.current.as_mut() else { return Ok(()) };
        self.buffer.clear();
        current.header.encode_block(&mut self.buffer);
        current.at = BLOCK;
        let file = &self.ring.slot(slot).file;
        let written = file.write_at(0, &self.buffer).and_then(|()| file.sync_data());
        current.durable = written.is_ok();
        if written.is_err() {
            // The header may be there or not; it fences what the next attempt's will fence.
            self.current = None;
            self.ring.slot_mut(slot).state = SlotState::Free { unmarked: None };
            self.ring.put_last(slot);
        }
        self.give_back();
        written.map_err(io("start segment"))
    }

    /// Removes files that are not needed, when the segment that is being written allows it.
    fn give_back(&mut self) {
        let Some(current) = self.current.as_mut().filter(|current| current.durable) else { return };
        let id = self.ring.slot(current.slot).id;
        self.ring.give_back(&*self.disk, &current.header);
        current.slot = self.ring.index_of(id).unwrap_or(current.slot);
    }

    /// One write: the segment header if it is still due, the group's header, its records, zeros to the next block.
    fn write_group(&mut self, group: Group<'_>, len: u32) -> std::io::Result<()> {
        let Some(current) = self.current.as_mut() else { return Err(std::io::ErrorKind::NotFound.into()) };
        let number = self.last.number.saturating_add(1);
        let header = GroupHeader {
            generation: current.header.generation,
            number,
            epoch: self.epoch,
            count: group.count,
            first: group.first,
            len,
            payload_crc: crc32c::crc32c(group.records),
            prev: current.chain,
            durable: self.durable.number,
        };
        let (encoded, crc) = header.encode(current.header.salt);
        self.buffer.clear();
        if current.at == 0 {
            current.header.encode_block(&mut self.buffer);
        }
        self.buffer.extend_from_slice(&encoded);
        self.buffer.extend_from_slice(group.records);
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK_LEN), 0);
        // Counted before the write: a write that fails may be there all the same.
        current.dirty = true;
        self.last = Position { number, crc };
        self.end = self.end.max(group.first.plus(group.count.into()));
        self.ring.slot(current.slot).file.write_at(current.at, &self.buffer)?;
        current.at = current.at.saturating_add(self.buffer.len() as u64);
        current.chain = crc;
        Ok(())
    }

    /// One fdatasync, or none when nothing was written since the last.
    pub(super) fn sync(&mut self) -> Result<(), JournalError> {
        if self.failed {
            return Err(JournalError::NeedsHeal);
        }
        if let Some(current) = self.current.as_mut().filter(|current| current.dirty) {
            let synced = self.ring.slot(current.slot).file.sync_data();
            self.failed |= synced.is_err();
            synced.map_err(io("sync"))?;
            (current.dirty, current.durable) = (false, true);
            self.durable = self.last;
        }
        Ok(())
    }

    /// Leaves the segment that failed. The fresh segment's header is the fence: it goes on from the last group that
    /// a sync covered, so a replay skips all later ones of earlier generations.
    pub(super) fn heal(&mut self) -> Result<(), JournalError> {
        if !self.failed {
            return Ok(());
        }
        self.seal();
        let slot = self.ring.next_for_opening(&*self.disk)?.ok_or(JournalError::Full)?;
        self.start_durably(slot)?;
        self.failed = false;
        Ok(())
    }

    /// Works after a failure too: otherwise a full journal could never be healed.
    pub(super) fn recycle(&mut self, before: Seq) {
        self.ring.release(before, &mut self.buffer);
        // Best effort: a file that cannot be created now is created by a later call or opening.
        let _ = self.ring.complete(&*self.disk);
        self.give_back();
    }

    pub(super) fn space(&self) -> JournalSpace {
        JournalSpace { free: self.ring.free(), ..space(self.config) }
    }
}

/// The room of a journal of which nothing is used.
pub(super) fn space(config: JournalConfig) -> JournalSpace {
    JournalSpace {
        segments: config.segments,
        free: config.segments,
        segment_bytes: config.segment_bytes.saturating_sub(BLOCK),
        max_group_bytes: config.max_group_bytes(),
    }
}

/// Makes durable what a replay handed over. The process before may have died between a write and its sync, or its
/// sync may have failed: the groups are then in memory only, and a mere sync would prove nothing. So they are
/// written again, the same bytes to the same place, and synced.
fn make_proven(disk: &dyn Disk, scan: &Scan) -> Result<(), JournalError> {
    let Some((id, from, to)) = scan.unproven else { return Ok(()) };
    let file = disk.open(&file_name(id)).map_err(io("open segment"))?;
    let mut buffer = vec![0; 64 * BLOCK_LEN];
    let mut at = from;
    while at < to {
        let want = usize::try_from(to.saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..want).unwrap_or_default();
        let got = file.read_at(at, part).map_err(io("read group"))?;
        if got == 0 {
            break;
        }
        file.write_at(at, part.get(..got).unwrap_or_default()).map_err(io("rewrite group"))?;
        at = at.saturating_add(got as u64);
    }
    file.sync_data().map_err(io("sync replayed groups"))
}

/// A number that senders cannot know, from the seed that the standard library draws for hash maps. It never decides
/// anything that a simulation could observe: it only goes into checksums.
fn salt(generation: u64) -> u64 {
    RandomState::new().hash_one(generation)
}
