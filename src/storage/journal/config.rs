//! How large a journal is.

use super::format::{BLOCK, GROUP_HEADER};

/// The size of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalConfig {
    /// Bytes of one segment file: a multiple of 4 KiB, from 16 KiB to 1 GiB.
    pub segment_bytes: u64,
    /// Segments in the ring: at least three (one being written, one that settles, one in reserve).
    pub segments: u32,
}

impl Default for JournalConfig {
    /// Eight segments of 16 MiB: at 300 k messages of 256 bytes a second a segment lasts a fifth of a second, and
    /// reading all of it back at opening takes well under a second.
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, segments: 8 }
    }
}

/// Why a [`JournalConfig`] is refused. Nothing was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalConfigError {
    /// The segment size is out of range or not a multiple of 4 KiB.
    #[error(
        "segment_bytes is {0}: it must be a multiple of 4096 from 16384 to 1073741824; nothing was opened"
    )]
    SegmentBytes(u64),
    /// Too few or too many segments.
    #[error("segments is {0}: it must be from 3 to 65536; nothing was opened")]
    Segments(u32),
}

impl JournalConfig {
    /// The smallest segment: the header and three blocks.
    pub const MIN_SEGMENT_BYTES: u64 = 4 * BLOCK;
    /// The largest segment.
    pub const MAX_SEGMENT_BYTES: u64 = 1 << 30;
    /// The smallest ring.
    pub const MIN_SEGMENTS: u32 = 3;
    /// The largest ring.
    pub const MAX_SEGMENTS: u32 = 1 << 16;

    /// Says whether a journal can be that large.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<(), JournalConfigError> {
        let sizes = Self::MIN_SEGMENT_BYTES..=Self::MAX_SEGMENT_BYTES;
        if !sizes.contains(&self.segment_bytes) || !self.segment_bytes.is_multiple_of(BLOCK) {
            return Err(JournalConfigError::SegmentBytes(self.segment_bytes));
        }
        if !(Self::MIN_SEGMENTS..=Self::MAX_SEGMENTS).contains(&self.segments) {
            return Err(JournalConfigError::Segments(self.segments));
        }
        Ok(())
    }

    /// The most bytes of records that fit into one group: a whole segment.
    #[must_use]
    pub const fn max_group_bytes(&self) -> u64 {
        self.segment_bytes.saturating_sub(BLOCK + GROUP_HEADER as u64)
    }

    /// The largest message or batch, encoded, that a configuration should allow: a quarter of a segment. Up to
    /// there a segment that is left early because the next group does not fit is still three quarters full.
    #[must_use]
    pub const fn largest_message_bytes(&self) -> u64 {
        self.segment_bytes / 4
    }
}
