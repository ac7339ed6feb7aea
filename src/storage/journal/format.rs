//! The bytes of segment and group headers. Everything here reads bytes that may be hostile.
//!
//! All numbers are little-endian. Magic, version and checksum of a segment header keep their places in every
//! format, so that a build can tell "newer than me" from "damaged".

use crate::record::{Epoch, Seq};

/// Groups start at multiples of this, so a torn write never touches a durable group's block.
pub(super) const BLOCK: u64 = 4096;
/// [`BLOCK`] as a length.
pub(super) const BLOCK_LEN: usize = BLOCK as usize;
/// The newest format this build reads, and the one it writes.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes of a group header.
pub(super) const GROUP_HEADER: usize = 72;

const SEGMENT_MAGIC: [u8; 8] = *b"lastmseg";
const SEGMENT_HEADER: usize = 80;
const SEGMENT_CRC_AT: usize = 76;
/// The header is kept twice in its block, in different sectors: one damaged sector costs nothing.
const SECOND_COPY: usize = 2048;
const RELEASED: u16 = 1;
const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"lmgr");
const GROUP_CRC_AT: usize = 64;

/// What a segment says about itself and about the log before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// The number of the segment's file.
    pub(super) id: u32,
    /// Nothing of this segment, or of any generation before it, is needed any more.
    pub(super) released: bool,
    /// Counts the segments ever started.
    pub(super) generation: u64,
    pub(super) epoch: Epoch,
    /// The oldest generation that was still needed when this one was started.
    pub(super) oldest: u64,
    /// The fence: of all earlier generations, groups up to this number count, and later ones do not.
    pub(super) continues: u64,
    /// The checksum of group `continues`.
    pub(super) chain: u32,
    /// The number of the first group here.
    pub(super) first_number: u64,
    /// Every record of earlier generations lies below this place.
    pub(super) base: Seq,
    /// Goes into the checksum of every group here. Senders cannot know it, so no payload can pose as a group.
    pub(super) salt: u64,
}

/// What the first block of a segment file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderBlock {
    Valid(SegmentHeader),
    TooNew(u16),
    /// All zeros: never written.
    Blank,
    Unreadable,
}

impl SegmentHeader {
    fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        put(&mut out, 0, &SEGMENT_MAGIC);
        put(&mut out, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut out, 10, &(if self.released { RELEASED } else { 0 }).to_le_bytes());
        put(&mut out, 12, &self.id.to_le_bytes());
        put(&mut out, 16, &self.generation.to_le_bytes());
        put(&mut out, 24, &self.epoch.0.to_le_bytes());
        put(&mut out, 28, &self.chain.to_le_bytes());
        put(&mut out, 32, &self.first_number.to_le_bytes());
        put(&mut out, 40, &self.continues.to_le_bytes());
        put(&mut out, 48, &self.oldest.to_le_bytes());
        put(&mut out, 56, &self.base.get().to_le_bytes());
        put(&mut out, 64, &self.salt.to_le_bytes());
        let crc = crc32c::crc32c(out.get(..SEGMENT_CRC_AT).unwrap_or_default());
        put(&mut out, SEGMENT_CRC_AT, &crc.to_le_bytes());
        out
    }

    /// Appends the whole header block.
    pub(super) fn encode_block(&self, out: &mut Vec<u8>) {
        let header = self.encode();
        let start = out.len();
        for copy_at in [SECOND_COPY, BLOCK_LEN] {
            out.extend_from_slice(&header);
            out.resize(start.saturating_add(copy_at), 0);
        }
    }

    /// What the first group's header must name as its predecessor.
    pub(super) fn chain_start(&self) -> u32 {
        u32_at(&self.encode(), SEGMENT_CRC_AT).unwrap_or_default()
    }

    fn decode(bytes: &[u8], id: u32) -> Option<Self> {
        let flags = u16_at(bytes, 10)?;
        let header = Self {
            id: u32_at(bytes, 12)?,
            released: flags & RELEASED != 0,
            generation: u64_at(bytes, 16)?,
            epoch: Epoch(u32_at(bytes, 24)?),
            chain: u32_at(bytes, 28)?,
            first_number: u64_at(bytes, 32)?,
            continues: u64_at(bytes, 40)?,
            oldest: u64_at(bytes, 48)?,
            base: Seq::new(u64_at(bytes, 56)?),
            salt: u64_at(bytes, 64)?,
        };
        // Group zero is the one before the first, and a segment goes on after what it continues.
        (header.id == id && header.first_number > header.continues).then_some(header)
    }
}

impl HeaderBlock {
    /// Reads the first block of segment file `id`. `block` may be short.
    pub(super) fn decode(block: &[u8], id: u32) -> Self {
        let copies = [block, block.get(SECOND_COPY..).unwrap_or_default()].map(|copy| Copy::decode(copy, id));
        if let Some(version) = newer_version(copies) {
            return Self::TooNew(version);
        }
        let valid = copies.into_iter().filter_map(|copy| copy.header);
        // Two different copies are a write that was torn: the newer one, and a release, count.
        if let Some(header) = valid.max_by_key(|header| (header.generation, header.released)) {
            return Self::Valid(header);
        }
        if block.iter().all(|byte| *byte == 0) { Self::Blank } else { Self::Unreadable }
    }
}

/// One copy of a segment header.
#[derive(Clone, Copy)]
struct Copy {
    /// The format version, if the magic is there.
    version: Option<u16>,
    /// Whether the checksum fits.
    intact: bool,
    header: Option<SegmentHeader>,
}

impl Copy {
    fn decode(bytes: &[u8], id: u32) -> Self {
        let magic = bytes.get(..SEGMENT_MAGIC.len()) == Some(&SEGMENT_MAGIC);
        let version = u16_at(bytes, 8).filter(|_| magic);
        let crc = bytes.get(..SEGMENT_CRC_AT).map(crc32c::crc32c);
        let intact = crc.is_some() && crc == u32_at(bytes, SEGMENT_CRC_AT);
        let header = (intact && version == Some(FORMAT_VERSION)).then(|| SegmentHeader::decode(bytes, id));
        Self { version, intact, header: header.flatten() }
    }
}

/// A version that is really newer, and not a damaged byte: a checksum vouches for it, or both copies agree.
fn newer_version([first, second]: [Copy; 2]) -> Option<u16> {
    let newer = |copy: Copy| copy.version.filter(|version| *version > FORMAT_VERSION);
    let vouched = [first, second].into_iter().filter(|copy| copy.intact).find_map(newer);
    vouched.or_else(|| newer(first).filter(|_| first.version == second.version))
}

/// What stands before a group's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupHeader {
    pub(super) generation: u64,
    pub(super) number: u64,
    pub(super) epoch: Epoch,
    pub(super) count: u32,
    pub(super) first: Seq,
    /// Bytes of records.
    pub(super) len: u32,
    /// Checksum of the records.
    pub(super) payload_crc: u32,
    /// The checksum of the group before, or of the segment header: the chain.
    pub(super) prev: u32,
    /// The last group that a sync had covered when this one was written.
    pub(super) durable: u64,
}

impl GroupHeader {
    /// The header's bytes and its checksum, which the next group names.
    pub(super) fn encode(&self, salt: u64) -> ([u8; GROUP_HEADER], u32) {
        let mut out = [0; GROUP_HEADER];
        put(&mut out, 0, &GROUP_MAGIC.to_le_bytes());
        put(&mut out, 8, &self.generation.to_le_bytes());
        put(&mut out, 16, &self.number.to_le_bytes());
        put(&mut out, 24, &self.epoch.0.to_le_bytes());
        put(&mut out, 28, &self.count.to_le_bytes());
        put(&mut out, 32, &self.first.get().to_le_bytes());
        put(&mut out, 40, &self.len.to_le_bytes());
        put(&mut out, 44, &self.payload_crc.to_le_bytes());
        put(&mut out, 48, &self.prev.to_le_bytes());
        put(&mut out, 56, &self.durable.to_le_bytes());
        let crc = salted_crc(salt, out.get(..GROUP_CRC_AT).unwrap_or_default());
        put(&mut out, GROUP_CRC_AT, &crc.to_le_bytes());
        (out, crc)
    }

    /// The header and its checksum, if they are whole.
    pub(super) fn decode(bytes: &[u8], salt: u64) -> Option<(Self, u32)> {
        if u32_at(bytes, 0)? != GROUP_MAGIC {
            return None;
        }
        let crc = u32_at(bytes, GROUP_CRC_AT)?;
        let whole = salted_crc(salt, bytes.get(..GROUP_CRC_AT)?) == crc;
        whole.then(|| Self::decode_unchecked(bytes)).flatten().map(|header| (header, crc))
    }

    fn decode_unchecked(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            generation: u64_at(bytes, 8)?,
            number: u64_at(bytes, 16)?,
            epoch: Epoch(u32_at(bytes, 24)?),
            count: u32_at(bytes, 28)?,
            first: Seq::new(u64_at(bytes, 32)?),
            len: u32_at(bytes, 40)?,
            payload_crc: u32_at(bytes, 44)?,
            prev: u32_at(bytes, 48)?,
            durable: u64_at(bytes, 56)?,
        })
    }

    /// Whether bytes that are no valid header look like the damaged remains of the group that is expected here.
    /// A stale header shares the magic and perhaps the epoch with it; three of five fields are no coincidence.
    pub(super) fn resembles(bytes: &[u8], generation: u64, number: u64, epoch: Epoch, prev: u32) -> bool {
        let Some(found) = Self::decode_unchecked(bytes) else { return false };
        let same = [
            u32_at(bytes, 0) == Some(GROUP_MAGIC),
            found.generation == generation,
            found.number == number,
            found.epoch == epoch,
            found.prev == prev,
        ];
        same.into_iter().filter(|same| *same).count() >= 3
    }

    /// Bytes on disk: header, records, and zeros up to the next block.
    pub(super) fn extent(len: u64) -> u64 {
        len.saturating_add(GROUP_HEADER as u64).div_ceil(BLOCK).saturating_mul(BLOCK)
    }
}

fn salted_crc(salt: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), bytes)
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    let place = out.get_mut(at..at.saturating_add(bytes.len()));
    place.expect("a header field lies within its header").copy_from_slice(bytes);
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}
