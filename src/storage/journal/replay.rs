//! Reading the log back, whatever the bytes are.
//!
//! Segments are read in generation order. Within one, the chain leads from group to group; where it breaks, the
//! blocks behind are searched for a later group of the same segment, so that one damaged group costs one group. The
//! next segment's header says which group this one must reach: not reaching it is damage, going beyond it is what a
//! fence or an earlier opening has ruled out.

use std::collections::VecDeque;

use crate::ports::{Group, JournalError, Replay, TailCut};
use crate::record::Seq;
use crate::storage::disk::DiskFile;

use super::format::{BLOCK, BLOCK_LEN, GROUP_HEADER, GroupHeader};
use super::layout::{Layout, SegmentFile, io};

/// Searching reads this much at once.
const SEARCH_LEN: usize = 16 * BLOCK_LEN;

pub(super) type Visit<'v> = &'v mut dyn FnMut(Group<'_>) -> Result<(), String>;

/// What a replay learned that `begin` builds on.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) segments: Vec<ScannedSegment>,
    pub(super) newest_generation: u64,
    pub(super) last_number: u64,
    pub(super) last_chain: u32,
    pub(super) end: Seq,
    pub(super) replay: Replay,
    /// Groups of the last segment that nothing on disk proves to have been synced: (file, from, to).
    pub(super) unproven: Option<(u32, u64, u64)>,
    /// The disk's change counter when the replay began.
    pub(super) changes: u64,
}

/// A segment that must stay until it is recycled.
#[derive(Debug)]
pub(super) struct ScannedSegment {
    pub(super) header: super::format::SegmentHeader,
    /// Every record of it lies below this place.
    pub(super) end: Seq,
    /// It holds no group and lost none: it can be used again at once.
    pub(super) empty: bool,
    /// The number after its last group that counts.
    pub(super) next_number: u64,
}

/// Reads everything.
pub(super) fn scan(layout: &Layout, from: Seq, visit: Visit<'_>, changes: u64) -> Result<Scan, JournalError> {
    let mut walk = Walk::new(layout, from, visit);
    let mut segments = Vec::with_capacity(layout.live.len());
    let mut unproven = None;
    for (index, segment) in layout.live.iter().enumerate() {
        let next = layout.live.get(index.saturating_add(1)).map(|segment| segment.header);
        walk.join(segment);
        let before = (walk.groups_read, walk.replay.damaged.len());
        let reach = walk.segment(segment)?;
        walk.leave(next.map(|next| (next.continues, next.base)));
        let quiet = before == (walk.groups_read, walk.replay.damaged.len()) && walk.replay.tail_cut.is_none();
        let end = next.map_or(walk.end, |next| next.base.max(walk.end));
        unproven = reach.map(|(from, to)| (segment.header.id, from, to));
        let next_number = next.map_or(walk.number, |next| next.continues).saturating_add(1);
        segments.push(ScannedSegment { header: segment.header, end, empty: quiet, next_number });
    }
    walk.finish(layout);
    Ok(Scan {
        segments,
        newest_generation: layout.newest_generation,
        last_number: walk.number,
        last_chain: walk.group_chain,
        end: walk.end,
        replay: walk.replay,
        unproven,
        changes,
    })
}

/// What stands at one place.
enum Found {
    /// The group that is expected, whole; its records are in the buffer.
    Good(GroupHeader, u32),
    /// A group whose header can be trusted, and its records or its predecessor cannot.
    Broken(GroupHeader, u32, &'static str),
    /// No group. Whether the bytes look like the remains of the one expected.
    Nothing { remains: bool },
}

struct Walk<'v> {
    from: Seq,
    visit: Visit<'v>,
    replay: Replay,
    buffer: Vec<u8>,
    /// The last good group, its checksum, and what the next one must name.
    number: u64,
    group_chain: u32,
    chain: u32,
    /// The place after the last record.
    end: Seq,
    groups_read: u64,
    /// Something was bad, and whether anything follows is not known yet.
    gap: Option<TailCut>,
}

impl<'v> Walk<'v> {
    fn new(layout: &Layout, from: Seq, visit: Visit<'v>) -> Self {
        let first = layout.live.first().map(|segment| segment.header);
        let mut walk = Self {
            from,
            visit,
            replay: Replay { epoch: layout.epoch, ..Replay::default() },
            buffer: Vec::new(),
            number: first.map_or(layout.last_number, |first| first.continues),
            group_chain: first.map_or(layout.last_chain, |first| first.chain),
            chain: 0,
            end: first.map_or(layout.base, |first| first.base),
            groups_read: 0,
            gap: None,
        };
        if let Some(base) = first.map(|first| first.base).filter(|_| layout.start_missing) {
            walk.damage(Seq::ZERO, base, "the oldest segments are missing");
        }
        walk
    }

    /// Records that something acknowledged between two places may be lost, if anyone asks for that range.
    fn damage(&mut self, first: Seq, below: Seq, reason: &str) {
        if below > self.from {
            self.replay.damaged.push(TailCut { first, reason: reason.to_owned() });
        }
    }

    fn gap(&mut self, first: Seq, reason: &str) {
        self.gap.get_or_insert_with(|| TailCut { first, reason: reason.to_owned() });
    }

    /// Goes over to a segment: does it go on where the log ended?
    fn join(&mut self, segment: &SegmentFile) {
        let header = &segment.header;
        if header.continues == self.number && header.chain != self.group_chain {
            self.damage(self.end, header.base, "a segment does not follow from the one before it");
        }
        self.number = header.continues;
        self.group_chain = header.chain;
        self.chain = header.chain_start();
        self.end = self.end.max(header.base);
    }

    /// Closes a segment. `next` is what the following one continues and where it starts.
    fn leave(&mut self, next: Option<(u64, Seq)>) {
        match (next, self.gap.take()) {
            (Some((continues, base)), gap) if self.number < continues => {
                let reason = gap.map_or_else(|| "groups are missing".to_owned(), |gap| gap.reason);
                self.damage(self.end, base, &reason);
            }
            (None, Some(gap)) => self.replay.tail_cut = Some(gap),
            // What was bad lies behind a fence, or nothing was.
            _ => {}
        }
    }

    fn finish(&mut self, layout: &Layout) {
        self.end = self.end.max(layout.base);
        self.replay.end = self.end;
        if layout.unreadable && self.replay.tail_cut.is_none() {
            let reason = "the header of a segment is unreadable".to_owned();
            self.replay.tail_cut = Some(TailCut { first: self.end, reason });
        }
    }

    /// Reads one segment and says where the groups lie that are not known to have been synced.
    fn segment(&mut self, segment: &SegmentFile) -> Result<Option<(u64, u64)>, JournalError> {
        let mut at = BLOCK;
        let mut expected = segment.header.first_number;
        let mut chained = true;
        let mut unproven: VecDeque<(u64, u64)> = VecDeque::new();
        let mut reach = 0;
        while expected <= segment.limit {
            match self.group(segment, at, expected, chained)? {
                Found::Good(header, crc) => {
                    self.deliver(&header, crc)?;
                    while unproven.front().is_some_and(|(number, _)| *number <= header.durable) {
                        unproven.pop_front();
                    }
                    unproven.push_back((header.number, at));
                    (expected, chained) = (header.number.saturating_add(1), true);
                    at = at.saturating_add(GroupHeader::extent(header.len.into()));
                    reach = at;
                }
                Found::Broken(header, crc, reason) => {
                    self.gap(self.end, reason);
                    self.chain = crc;
                    (expected, chained) = (header.number.saturating_add(1), true);
                    at = at.saturating_add(GroupHeader::extent(header.len.into()));
                }
                Found::Nothing { remains } => {
                    let Some(later) = self.search(segment, at, expected)? else {
                        if remains {
                            self.gap(self.end, "the group is incomplete or damaged");
                        }
                        break;
                    };
                    self.gap(self.end, "a group is damaged");
                    (at, expected, chained) = (later.0, later.1, false);
                }
            }
        }
        // The header was written together with the first group.
        let from = unproven.front().map(|(_, at)| if *at == BLOCK { 0 } else { *at });
        Ok(from.map(|from| (from, reach)))
    }

    /// Looks at one place. Nothing is allocated before the header vouches for the length, and the file has it.
    fn group(
        &mut self,
        segment: &SegmentFile,
        at: u64,
        expected: u64,
        chained: bool,
    ) -> Result<Found, JournalError> {
        self.buffer.resize(BLOCK_LEN, 0);
        let got = segment.file.read_at(at, &mut self.buffer).map_err(io("read group"))?;
        let block = self.buffer.get(..got).unwrap_or_default();
        let head = &segment.header;
        let Some((header, crc)) = valid_header(segment, block, at).filter(|(h, _)| h.number == expected)
        else {
            let prev = if chained { self.chain } else { 0 };
            let remains = GroupHeader::resembles(block, head.generation, expected, head.epoch, prev);
            return Ok(Found::Nothing { remains });
        };
        let whole = GROUP_HEADER.saturating_add(header.len as usize);
        if whole > BLOCK_LEN {
            self.buffer.resize(whole, 0);
            let rest = self.buffer.get_mut(BLOCK_LEN..).unwrap_or_default();
            read_exactly(&*segment.file, at.saturating_add(BLOCK), rest)?;
        }
        let records = self.buffer.get(GROUP_HEADER..whole).unwrap_or_default();
        Ok(if crc32c::crc32c(records) != header.payload_crc {
            Found::Broken(header, crc, "the records of a group are damaged")
        } else if chained && header.prev != self.chain {
            Found::Broken(header, crc, "a group does not follow from the one before it")
        } else {
            Found::Good(header, crc)
        })
    }

    /// The first later group of this segment from `at` on, by its header: its place and number.
    fn search(
        &mut self,
        segment: &SegmentFile,
        mut at: u64,
        expected: u64,
    ) -> Result<Option<(u64, u64)>, JournalError> {
        let numbers = expected..=segment.limit;
        while at < segment.len {
            self.buffer.resize(SEARCH_LEN, 0);
            let got = segment.file.read_at(at, &mut self.buffer).map_err(io("search segment"))?;
            if got == 0 {
                break;
            }
            for block in self.buffer.get(..got).unwrap_or_default().chunks(BLOCK_LEN) {
                if let Some((header, _)) = valid_header(segment, block, at)
                    && numbers.contains(&header.number)
                {
                    return Ok(Some((at, header.number)));
                }
                at = at.saturating_add(BLOCK);
            }
        }
        Ok(None)
    }

    fn deliver(&mut self, header: &GroupHeader, crc: u32) -> Result<(), JournalError> {
        if let Some(gap) = self.gap.take() {
            self.damage(gap.first, header.first, &gap.reason);
        }
        (self.number, self.group_chain, self.chain) = (header.number, crc, crc);
        self.groups_read = self.groups_read.saturating_add(1);
        let end = header.first.plus(header.count.into());
        self.end = self.end.max(end);
        if end <= self.from {
            return Ok(());
        }
        let whole = GROUP_HEADER.saturating_add(header.len as usize);
        let records = self.buffer.get(GROUP_HEADER..whole).unwrap_or_default();
        let group = Group { first: header.first, count: header.count, records };
        (self.visit)(group).map_err(JournalError::Stopped)?;
        self.replay.groups = self.replay.groups.saturating_add(1);
        self.replay.records = self.replay.records.saturating_add(header.count.into());
        Ok(())
    }
}

/// A group header that belongs to this segment and whose records lie within the file.
fn valid_header(segment: &SegmentFile, block: &[u8], at: u64) -> Option<(GroupHeader, u32)> {
    let (header, crc) = GroupHeader::decode(block, segment.header.salt)?;
    let ours = header.generation == segment.header.generation && header.epoch == segment.header.epoch;
    let end = at.saturating_add(GROUP_HEADER as u64).saturating_add(header.len.into());
    (ours && end <= segment.len).then_some((header, crc))
}

fn read_exactly(file: &dyn DiskFile, at: u64, out: &mut [u8]) -> Result<(), JournalError> {
    let got = file.read_at(at, out).map_err(io("read group"))?;
    // A file that became shorter while it was read: the checksum will not fit.
    out.get_mut(got..).unwrap_or_default().fill(0);
    Ok(())
}
