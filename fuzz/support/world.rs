//! A disk and a store, as a script says.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastmile::ports::{Batch, Group, Journal, MAX_VALUE_BYTES, Store};
use lastmile::record::{Epoch, Seq};
use lastmile::storage::disk::{Disk, MemoryDisk};
use lastmile::storage::frame;
use lastmile::storage::journal::forge::{GroupFields, Segment};
use lastmile::storage::journal::{FileJournal, JournalConfig};
use lastmile::storage::outbox::keys::Key;

use crate::input::Input;
use crate::op::{Group as Written, Op};
use crate::store::Rotten;

const BLOCK: usize = 4096;
/// What the table's frame is bound to.
pub const TABLE: &[u8] = b"outbox";
/// What a part of the table says before its share: the number of parts.
pub const TABLE_PART_BYTES: usize = MAX_VALUE_BYTES - 2;
/// More are not read.
const MAX_FILES: usize = 8;
const MAX_ROWS: usize = 128;

/// The journal of every target: files of a script may be larger.
pub const JOURNAL: JournalConfig = JournalConfig { segment_bytes: 64 << 10, segments: 5 };

/// What a script has made.
#[derive(Debug, Default)]
pub struct World {
    pub disk: MemoryDisk,
    pub store: Rotten,
    /// Bytes of files and rows.
    pub bytes: usize,
}

/// The files and rows while they are made.
#[derive(Debug, Default)]
struct Draft {
    files: Vec<(u32, Vec<u8>)>,
    writing: Option<Writing>,
    chain: u32,
    flips: Vec<(u8, u32, u8)>,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    rotten: Vec<Vec<u8>>,
}

/// Where the next group goes, and what it says.
#[derive(Debug)]
struct Writing {
    segment: Segment,
    at: usize,
    number: u64,
    prev: u32,
}

impl World {
    /// Does what the whole input says.
    pub fn of(mut input: Input<'_>) -> Self {
        let mut draft = Draft::default();
        while !input.is_empty() {
            if let Some(op) = Op::read(&mut input) {
                draft.apply(op);
            }
        }
        draft.finish()
    }
}

impl Draft {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Segment { segment, has_chain, blocks } => self.segment(segment, has_chain, blocks),
            Op::Group(group) => self.group(*group),
            Op::Flip { file, at, by } => self.flips.push((file, at, by)),
            Op::Row { key, value } if self.rows.len() < MAX_ROWS => {
                self.rows.insert(key.encode(), value);
            }
            Op::Row { .. } => {}
            Op::Table { version, body } => {
                let bytes = [&[version][..], &frame::encode(TABLE, &body)].concat();
                let parts = bytes.len().div_ceil(TABLE_PART_BYTES) as u16;
                for (part, share) in (0..).zip(bytes.chunks(TABLE_PART_BYTES)) {
                    let value = [&parts.to_le_bytes()[..], share].concat();
                    self.rows.insert(Key::Meta { part }.encode(), value);
                }
            }
            Op::Edit { row, at, bytes } => {
                let Some(value) = self.key(row).and_then(|key| self.rows.get_mut(&key)) else { return };
                let at = usize::from(at) % (value.len() + 1);
                let end = (at + bytes.len()).min(value.len());
                value.splice(at..end, bytes);
            }
            Op::Delete { row } => {
                if let Some(key) = self.key(row) {
                    self.rows.remove(&key);
                }
            }
            Op::Rot { row } => self.rotten.extend(self.key(row)),
        }
    }

    fn key(&self, row: u8) -> Option<Vec<u8>> {
        let n = usize::from(row).checked_rem(self.rows.len())?;
        self.rows.keys().nth(n).cloned()
    }

    fn segment(&mut self, mut segment: Segment, has_chain: bool, blocks: u8) {
        self.writing = None;
        if self.files.len() == MAX_FILES || self.files.iter().any(|(id, _)| *id == segment.id) {
            return;
        }
        if !has_chain {
            segment.chain = self.chain;
        }
        let mut file = vec![0; usize::from(blocks) * BLOCK];
        put(&mut file, 0, &segment.encode());
        self.files.push((segment.id, file));
        let (number, prev) = (segment.first_number, segment.chain_start());
        self.writing = Some(Writing { segment, at: BLOCK, number, prev });
    }

    fn group(&mut self, group: Written) {
        let (Some(writing), Some((_, file))) = (&mut self.writing, self.files.last_mut()) else { return };
        let mut records = Vec::new();
        for record in &group.records {
            records.extend_from_slice(&(record.len() as u32).to_le_bytes());
            records.extend_from_slice(record);
        }
        let fields = GroupFields {
            generation: group.generation.unwrap_or(writing.segment.generation),
            number: group.number.unwrap_or(writing.number),
            epoch: group.epoch.map_or(writing.segment.epoch, Epoch),
            count: group.count.unwrap_or(group.records.len() as u32),
            first: Seq::new(group.first),
            len: group.len.unwrap_or(records.len() as u32),
            payload_crc: group.payload_crc.unwrap_or_else(|| GroupFields::checksum(&records)),
            prev: group.prev.unwrap_or(writing.prev),
            durable: group.durable,
        };
        let (blocks, crc) = fields.encode(writing.segment.salt, &records);
        let at = writing.at + usize::from(group.skip.unwrap_or(0)) * BLOCK;
        put(file, at, &blocks);
        (writing.at, writing.number, writing.prev) = (at + blocks.len(), fields.number.wrapping_add(1), crc);
        self.chain = crc;
    }

    fn finish(mut self) -> World {
        for (file, at, by) in self.flips {
            let Some(n) = usize::from(file).checked_rem(self.files.len()) else { break };
            let bytes = &mut self.files[n].1;
            if let Some(at) = (at as usize).checked_rem(bytes.len()) {
                bytes[at] ^= by;
            }
        }
        let mut world = World::default();
        for (id, file) in &self.files {
            let name = format!("segment-{id:06}.journal");
            let made =
                world.disk.create_zeroed(&name, file.len() as u64).expect("each file has an id of its own");
            made.write_at(0, file).expect("it is as long as that");
            made.sync_data().expect("memory does not fail");
            world.bytes += file.len();
        }
        let epoch = world.store.take_epoch(Epoch(0)).expect("it is the first epoch");
        for (key, mut value) in self.rows {
            value.truncate(MAX_VALUE_BYTES);
            world.bytes += key.len() + value.len();
            let mut batch = Batch::new();
            batch.put(key, value);
            world.store.apply(epoch, batch).expect("it is within the limits of a store");
        }
        self.rotten.iter().for_each(|key| world.store.rot(key));
        world
    }
}

/// Writes what lies within the file.
fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    let room = file.len().saturating_sub(at).min(bytes.len());
    if room > 0 {
        file[at..at + room].copy_from_slice(&bytes[..room]);
    }
}

/// The disk as a journal takes it.
pub fn shared(disk: &MemoryDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

/// What a replay hands over: first place, count and checksum of each group. Leaves the journal ready to begin.
pub fn groups(journal: &mut FileJournal) -> Option<Vec<(Seq, u32, u32)>> {
    let mut groups = Vec::new();
    let visit = &mut |group: Group<'_>| {
        groups.push((group.first, group.count, GroupFields::checksum(group.records)));
        Ok(())
    };
    journal.replay(Seq::ZERO, visit).ok()?;
    Some(groups)
}
