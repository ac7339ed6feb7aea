//! What the segment files say before any group is read: which generations there are and which still count.

use crate::ports::JournalError;
use crate::record::{Epoch, Seq};
use crate::storage::disk::{Disk, DiskFile};

use super::format::{BLOCK_LEN, FORMAT_VERSION, HeaderBlock, SegmentHeader};

const PREFIX: &str = "segment-";
const SUFFIX: &str = ".journal";

/// The name of segment file `id`.
pub(super) fn file_name(id: u32) -> String {
    format!("{PREFIX}{id:06}{SUFFIX}")
}

fn file_id(name: &str) -> Option<u32> {
    let id = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()?;
    (file_name(id) == name).then_some(id)
}

/// Turns a cause into the port's error.
pub(super) fn io(op: &'static str) -> impl FnOnce(std::io::Error) -> JournalError {
    move |source| JournalError::Io { op, source }
}

/// A segment file with a readable header.
#[derive(Debug)]
pub(super) struct SegmentFile {
    pub(super) file: Box<dyn DiskFile>,
    pub(super) len: u64,
    pub(super) header: SegmentHeader,
    /// Groups with higher numbers are fenced off by a later segment.
    pub(super) limit: u64,
}

/// All segment files, judged by their headers.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// Segments that are still needed, in generation order.
    pub(super) live: Vec<SegmentFile>,
    /// The header of the first live segment says that generations before it are needed too.
    pub(super) start_missing: bool,
    /// Files whose header cannot be read and that no gap between the generations accounts for.
    pub(super) unreadable: bool,
    pub(super) newest_generation: u64,
    pub(super) epoch: Epoch,
    pub(super) base: Seq,
    /// The group that the newest segment goes on from, and its checksum, for a log whose groups are all released.
    pub(super) last_number: u64,
    pub(super) last_chain: u32,
}

/// The ids of all segment files, ascending.
pub(super) fn segment_ids(disk: &dyn Disk) -> Result<Vec<u32>, JournalError> {
    let names = disk.list().map_err(io("list segments"))?;
    let mut ids: Vec<u32> = names.iter().filter_map(|name| file_id(name)).collect();
    ids.sort_unstable();
    Ok(ids)
}

impl Layout {
    /// Reads every segment header. Changes nothing.
    pub(super) fn read(disk: &dyn Disk) -> Result<Self, JournalError> {
        let (mut found, mut unreadable) = (Vec::new(), 0_u64);
        for id in segment_ids(disk)? {
            let file = disk.open(&file_name(id)).map_err(io("open segment"))?;
            let mut block = [0; BLOCK_LEN];
            let got = file.read_at(0, &mut block).map_err(io("read segment header"))?;
            let len = file.len().map_err(io("read segment length"))?;
            match HeaderBlock::decode(block.get(..got).unwrap_or_default(), id) {
                HeaderBlock::Valid(header) => found.push(SegmentFile { file, len, header, limit: u64::MAX }),
                HeaderBlock::TooNew(found) => {
                    return Err(JournalError::FormatTooNew { found, supported: FORMAT_VERSION });
                }
                HeaderBlock::Blank => {}
                HeaderBlock::Unreadable => unreadable = unreadable.saturating_add(1),
            }
        }
        Ok(Self::judge(found, unreadable))
    }

    fn judge(mut found: Vec<SegmentFile>, unreadable: u64) -> Self {
        found.sort_by_key(|segment| (segment.header.generation, segment.header.epoch));
        let Some(newest) = found.last().map(|segment| segment.header) else {
            return Self { unreadable: unreadable > 0, ..Self::default() };
        };
        let mut layout = Self {
            newest_generation: newest.generation,
            epoch: found.iter().map(|segment| segment.header.epoch).max().unwrap_or_default(),
            base: found.iter().map(|segment| segment.header.base).max().unwrap_or_default(),
            last_number: newest.continues,
            last_chain: newest.chain,
            ..Self::default()
        };
        let marks = found.iter().map(|segment| segment.header).filter(|header| header.released);
        let mark = marks.max_by_key(|header| header.generation);
        let released = mark.map_or(0, |mark| mark.generation.saturating_add(1));
        let oldest = newest.oldest.max(released);
        found.retain(|segment| segment.header.generation >= oldest);
        // A generation is never written twice; were it so, the later owner's copy counts.
        found.reverse();
        found.dedup_by_key(|segment| segment.header.generation);
        let mut limit = u64::MAX;
        for segment in &mut found {
            segment.limit = limit;
            limit = limit.min(segment.header.continues);
        }
        found.reverse();
        // A generation that was begun and never became durable leaves a gap with no records in it.
        let empty_gap = |first: &SegmentHeader| {
            oldest == released && mark.is_some_and(|mark| first.continues < mark.first_number)
        };
        let first = found.first().map(|segment| segment.header);
        layout.start_missing = first.is_some_and(|first| first.generation > oldest && !empty_gap(&first));
        let span = newest.generation.saturating_add(1).saturating_sub(oldest);
        layout.unreadable = unreadable > span.saturating_sub(found.len() as u64);
        layout.live = found;
        layout
    }
}
