//! The segment files of a journal that is being written, and which of them may be used next.

use crate::ports::JournalError;
use crate::record::Seq;
use crate::storage::disk::{Disk, DiskFile};

use super::config::JournalConfig;
use super::format::{BLOCK_LEN, SegmentHeader};
use super::layout::{file_name, io, segment_ids};
use super::replay::ScannedSegment;

/// One segment file.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: u32,
    pub(super) file: Box<dyn DiskFile>,
    len: u64,
    /// The newest generation that is known to have been here.
    generation: u64,
    pub(super) state: SlotState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    /// Holds nothing that is needed. With a header, that is not yet durable: the released header must be written
    /// and synced before anything else is written here.
    Free { unmarked: Option<SegmentHeader> },
    /// Left; every record lies below `end`. `empty` ones hold no group at all.
    Sealed { header: SegmentHeader, end: Seq, empty: bool, next_number: u64 },
    /// Being written.
    Current { header: SegmentHeader },
}

/// The files: at most one more than configured, besides those of a wrong length that wait to be given back.
#[derive(Debug)]
pub(super) struct Ring {
    slots: Vec<Slot>,
    config: JournalConfig,
}

impl Ring {
    /// Opens the files of a scanned journal and creates those that are missing.
    pub(super) fn open(
        disk: &dyn Disk,
        config: JournalConfig,
        scanned: &[ScannedSegment],
    ) -> Result<Self, JournalError> {
        let mut slots = Vec::new();
        for id in segment_ids(disk)? {
            let file = disk.open(&file_name(id)).map_err(io("open segment"))?;
            let len = file.len().map_err(io("read segment length"))?;
            let segment = scanned.iter().find(|segment| segment.header.id == id);
            let state = match segment {
                Some(ScannedSegment { header, end, empty, next_number }) => {
                    SlotState::Sealed { header: *header, end: *end, empty: *empty, next_number: *next_number }
                }
                None => SlotState::Free { unmarked: None },
            };
            let generation = segment.map_or(0, |segment| segment.header.generation);
            slots.push(Slot { id, file, len, generation, state });
        }
        let mut ring = Self { slots, config };
        ring.complete(disk)?;
        Ok(ring)
    }

    /// Creates what is missing. Free files of a wrong length do not count: they are given back.
    pub(super) fn complete(&mut self, disk: &dyn Disk) -> Result<(), JournalError> {
        while self.useful() < self.config.segments as usize {
            self.create(disk)?;
        }
        Ok(())
    }

    /// Removes free files of a wrong length or beyond the configured number, as far as the disk lets it, if the header of
    /// `newest` says that they are not needed. That header must be durable, and the newest.
    ///
    /// A file that was removed may be there again after a power cut: had it been the newest, an opening in between would
    /// have counted its generation a second time. And one that stays away must not be missed.
    pub(super) fn give_back(&mut self, disk: &dyn Disk, newest: &SegmentHeader) {
        let mut surplus = self.useful().saturating_sub(self.config.segments as usize);
        let segment_bytes = self.config.segment_bytes;
        self.slots.retain(|slot| {
            let misfit = slot.len != segment_bytes;
            let needed = !slot.is_free() || slot.generation >= newest.oldest || !misfit && surplus == 0;
            if needed || disk.remove(&file_name(slot.id)).is_err() {
                return true;
            }
            surplus = surplus.saturating_sub(usize::from(!misfit));
            false
        });
    }

    fn is_usable(&self, slot: &Slot) -> bool {
        slot.is_free() && slot.len == self.config.segment_bytes
    }

    fn is_useful(&self, slot: &Slot) -> bool {
        !slot.is_free() || slot.len == self.config.segment_bytes
    }

    /// Files that hold something, or could.
    fn useful(&self) -> usize {
        self.slots.iter().filter(|slot| self.is_useful(slot)).count()
    }

    fn create(&mut self, disk: &dyn Disk) -> Result<usize, JournalError> {
        let taken = |id: &u32| self.slots.iter().any(|slot| slot.id == *id);
        let id = (0..=u32::MAX).find(|id| !taken(id)).unwrap_or_default();
        let len = self.config.segment_bytes;
        let created = disk.create_zeroed(&file_name(id), len);
        let file =
            created.inspect_err(|_| drop(disk.remove(&file_name(id)))).map_err(io("create segment"))?;
        self.slots.push(Slot { id, file, len, generation: 0, state: SlotState::Free { unmarked: None } });
        Ok(self.slots.len().saturating_sub(1))
    }

    pub(super) fn slot(&self, index: usize) -> &Slot {
        self.slots.get(index).expect("slot indexes come from this ring and the current slot is never removed")
    }

    pub(super) fn slot_mut(&mut self, index: usize) -> &mut Slot {
        self.slots
            .get_mut(index)
            .expect("slot indexes come from this ring and the current slot is never removed")
    }

    pub(super) fn index_of(&self, id: u32) -> Option<usize> {
        self.slots.iter().position(|slot| slot.id == id)
    }

    /// Free segments that appends may use: the spare one does not count.
    pub(super) fn free(&self) -> u32 {
        let free = self.slots.iter().filter(|slot| self.is_usable(slot)).count();
        let spare = self.useful().saturating_sub(self.config.segments as usize);
        u32::try_from(free.saturating_sub(spare)).unwrap_or(u32::MAX)
    }

    /// The free segment to use next.
    pub(super) fn next_free(&self) -> Option<usize> {
        self.slots.iter().position(|slot| self.is_usable(slot))
    }

    /// A segment for opening or healing: a free one, one that holds nothing, or one spare file beyond the ring.
    pub(super) fn next_for_opening(&mut self, disk: &dyn Disk) -> Result<Option<usize>, JournalError> {
        let fits = |slot: &Slot| slot.len == self.config.segment_bytes;
        let empty = |slot: &Slot| matches!(slot.state, SlotState::Sealed { empty: true, .. }) && fits(slot);
        if let Some(index) = self.next_free().or_else(|| self.slots.iter().position(empty)) {
            return Ok(Some(index));
        }
        if self.useful() > self.config.segments as usize {
            return Ok(None);
        }
        self.create(disk).map(Some)
    }

    /// Puts a segment whose start failed behind the other free ones, so that a bad place is not tried again at once.
    pub(super) fn put_last(&mut self, index: usize) {
        if index < self.slots.len() {
            let slot = self.slots.remove(index);
            self.slots.push(slot);
        }
    }

    /// The oldest generation that is needed, if there is one before `newest`. One that holds no group is not: what it
    /// fenced off, `newest` fences off too. And after a failed heal its header may be in memory only, so that a power
    /// cut would make it look like a loss.
    pub(super) fn oldest(&self, newest: u64) -> u64 {
        let needed = self.slots.iter().filter_map(|slot| match slot.state {
            SlotState::Sealed { empty: true, .. } | SlotState::Free { .. } => None,
            SlotState::Sealed { header, .. } | SlotState::Current { header } => Some(header.generation),
        });
        needed.min().unwrap_or(newest).min(newest)
    }

    /// Frees every sealed segment that ends at or below `before`, oldest first, so that a crash in between leaves
    /// no hole.
    pub(super) fn release(&mut self, before: Seq, buffer: &mut Vec<u8>) {
        while let Some(slot) = self.oldest_sealed().filter(|slot| slot.ends_by(before)) {
            if let SlotState::Sealed { header, end, next_number, .. } = slot.state {
                // The mark says where the records ended, should it become the newest header there is, and which group
                // comes next, so that a replay can tell a missing segment from one that never became durable.
                let first_number = next_number.max(header.first_number);
                let mark = SegmentHeader { base: end, first_number, ..header };
                slot.state = SlotState::Free { unmarked: Some(mark) };
                // Best effort: what fails here is done again before the segment is used.
                let _ = slot.mark_released(buffer);
            }
        }
    }

    fn oldest_sealed(&mut self) -> Option<&mut Slot> {
        let sealed = self.slots.iter_mut().filter_map(|slot| match slot.state {
            SlotState::Sealed { header, .. } => Some((header.generation, slot)),
            _ => None,
        });
        sealed.min_by_key(|(generation, _)| *generation).map(|(_, slot)| slot)
    }
}

impl Slot {
    fn is_free(&self) -> bool {
        matches!(self.state, SlotState::Free { .. })
    }

    fn ends_by(&self, before: Seq) -> bool {
        matches!(self.state, SlotState::Sealed { end, .. } if end <= before)
    }

    /// Makes it the current segment.
    pub(super) fn start(&mut self, header: SegmentHeader) {
        (self.generation, self.state) = (header.generation, SlotState::Current { header });
    }

    /// Closes the current segment. It is `empty` when no group of it counts; `next_number` comes after the last that does.
    pub(super) fn seal(&mut self, end: Seq, empty: bool, next_number: u64) {
        if let SlotState::Current { header } = self.state {
            self.state = SlotState::Sealed { header, end, empty, next_number };
        }
    }

    /// Makes it durable that nothing here is needed, before the header is overwritten: were the old header to
    /// survive over new groups, a replay would take them for damage.
    pub(super) fn mark_released(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        let SlotState::Free { unmarked: Some(header) } = self.state else { return Ok(()) };
        buffer.clear();
        SegmentHeader { released: true, ..header }.encode_block(buffer);
        self.file.write_at(0, buffer.get(..BLOCK_LEN).unwrap_or_default())?;
        self.file.sync_data()?;
        self.state = SlotState::Free { unmarked: None };
        Ok(())
    }
}
