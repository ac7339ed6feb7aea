//! Segment headers and groups whose checksums fit, whatever else they say: for fuzzers, which do not guess a CRC32C.
//!
//! The bytes are those of the writer; only who chooses the fields is another one.

use super::format::{BLOCK_LEN, GROUP_HEADER, GroupHeader, HeaderBlock, SegmentHeader};
use crate::record::{Epoch, Seq};

/// The fields of a segment header.
#[allow(missing_docs, reason = "they are those of the format, which says what they mean")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub id: u32,
    pub released: bool,
    pub generation: u64,
    pub epoch: Epoch,
    pub oldest: u64,
    pub continues: u64,
    pub chain: u32,
    pub first_number: u64,
    pub base: Seq,
    pub salt: u64,
}

impl Segment {
    /// The header in the first block of a segment file.
    #[must_use]
    pub fn decode(block: &[u8], id: u32) -> Option<Self> {
        let HeaderBlock::Valid(header) = HeaderBlock::decode(block, id) else { return None };
        let SegmentHeader { id, released, generation, epoch, oldest, continues, .. } = header;
        let SegmentHeader { chain, first_number, base, salt, .. } = header;
        Some(Self { id, released, generation, epoch, oldest, continues, chain, first_number, base, salt })
    }

    /// The first block of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut block = Vec::new();
        self.header().encode_block(&mut block);
        block
    }

    /// What the first group names as the one before it.
    #[must_use]
    pub fn chain_start(&self) -> u32 {
        self.header().chain_start()
    }

    fn header(&self) -> SegmentHeader {
        let Self { id, released, generation, epoch, oldest, continues, chain, first_number, base, salt } =
            *self;
        SegmentHeader { id, released, generation, epoch, oldest, continues, chain, first_number, base, salt }
    }
}

/// The fields of a group header.
#[allow(missing_docs, reason = "they are those of the format, which says what they mean")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupFields {
    pub generation: u64,
    pub number: u64,
    pub epoch: Epoch,
    pub count: u32,
    pub first: Seq,
    pub len: u32,
    pub payload_crc: u32,
    pub prev: u32,
    pub durable: u64,
}

impl GroupFields {
    /// The group at the beginning of these bytes, of a segment with this salt: its fields, its checksum, and its records.
    #[must_use]
    pub fn decode(bytes: &[u8], salt: u64) -> Option<(Self, u32, &[u8])> {
        let (header, crc) = GroupHeader::decode(bytes, salt)?;
        let GroupHeader { generation, number, epoch, count, first, len, payload_crc, prev, durable } = header;
        let records = bytes.get(GROUP_HEADER..GROUP_HEADER.checked_add(len as usize)?)?;
        let group = Self { generation, number, epoch, count, first, len, payload_crc, prev, durable };
        Some((group, crc, records))
    }

    /// The blocks of the group, and its checksum.
    #[must_use]
    pub fn encode(&self, salt: u64, records: &[u8]) -> (Vec<u8>, u32) {
        let Self { generation, number, epoch, count, first, len, payload_crc, prev, durable } = *self;
        let header = GroupHeader { generation, number, epoch, count, first, len, payload_crc, prev, durable };
        let (head, crc) = header.encode(salt);
        let mut blocks = [&head[..], records].concat();
        blocks.resize(blocks.len().next_multiple_of(BLOCK_LEN), 0);
        (blocks, crc)
    }

    /// The checksum of records.
    #[must_use]
    pub fn checksum(records: &[u8]) -> u32 {
        crc32c::crc32c(records)
    }
}
