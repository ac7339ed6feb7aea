//! What a fuzzer can put on a disk and into a store.

use lastmile::record::{Epoch, LaneId, Seq};
use lastmile::storage::journal::forge::Segment;
use lastmile::storage::outbox::keys::Key;
use lastmile::{Timestamp, UserId};

use crate::input::{Input, put_blob};

/// One thing that is written, or broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A segment file of so many blocks. Its chain is that of the group written before, unless it has one.
    Segment { segment: Segment, has_chain: bool, blocks: u8 },
    /// A group in the file that was begun last.
    Group(Box<Group>),
    /// A byte of a file changes.
    Flip { file: u8, at: u32, by: u8 },
    /// A row of the store.
    Row { key: Key, value: Vec<u8> },
    /// The table of the store, in a frame.
    Table { version: u8, body: Vec<u8> },
    /// Bytes of a row change.
    Edit { row: u8, at: u16, bytes: Vec<u8> },
    /// A row is gone.
    Delete { row: u8 },
    /// A row cannot be read.
    Rot { row: u8 },
}

/// A group; what it does not say is what an honest writer would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub generation: Option<u64>,
    pub number: Option<u64>,
    pub epoch: Option<u32>,
    pub count: Option<u32>,
    pub len: Option<u32>,
    pub payload_crc: Option<u32>,
    pub prev: Option<u32>,
    /// Blocks that are left out before it.
    pub skip: Option<u8>,
    pub first: u64,
    pub durable: u64,
    /// Each without its length.
    pub records: Vec<Vec<u8>>,
}

impl Op {
    /// The next one; nothing when it makes no sense.
    pub fn read(input: &mut Input<'_>) -> Option<Self> {
        Some(match input.u8() % 8 {
            0 => {
                let (id, flags) = (u32::from(input.u8() % 8), input.u8());
                let segment = Segment {
                    id,
                    released: flags & 1 != 0,
                    generation: input.u64(),
                    epoch: Epoch(input.u32()),
                    oldest: input.u64(),
                    continues: input.u64(),
                    chain: input.u32(),
                    first_number: input.u64(),
                    base: Seq::new(input.u64()),
                    salt: input.u64(),
                };
                Self::Segment { segment, has_chain: flags & 2 != 0, blocks: input.u8() % 17 }
            }
            1 => Self::Group(Box::new(Group::read(input))),
            2 => Self::Flip { file: input.u8(), at: input.u32(), by: input.u8() },
            3 => Self::Row { key: read_key(input)?, value: input.blob() },
            4 => Self::Table { version: input.u8(), body: input.blob() },
            5 => Self::Edit { row: input.u8(), at: input.u16(), bytes: input.blob() },
            6 => Self::Delete { row: input.u8() },
            _ => Self::Rot { row: input.u8() },
        })
    }

    /// Appends what is read as this.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Segment { segment, has_chain, blocks } => {
                let id = u8::try_from(segment.id).expect("seeds have few segments");
                out.extend_from_slice(&[0, id, u8::from(segment.released) | u8::from(*has_chain) << 1]);
                out.extend_from_slice(&segment.generation.to_le_bytes());
                out.extend_from_slice(&segment.epoch.0.to_le_bytes());
                out.extend_from_slice(&segment.oldest.to_le_bytes());
                out.extend_from_slice(&segment.continues.to_le_bytes());
                out.extend_from_slice(&segment.chain.to_le_bytes());
                out.extend_from_slice(&segment.first_number.to_le_bytes());
                out.extend_from_slice(&segment.base.get().to_le_bytes());
                out.extend_from_slice(&segment.salt.to_le_bytes());
                out.push(*blocks);
            }
            Self::Group(group) => {
                out.push(1);
                group.write(out);
            }
            Self::Flip { file, at, by } => {
                out.extend_from_slice(&[2, *file]);
                out.extend_from_slice(&at.to_le_bytes());
                out.push(*by);
            }
            Self::Row { key, value } => {
                out.push(3);
                write_key(key, out);
                put_blob(out, value);
            }
            Self::Table { version, body } => {
                out.extend_from_slice(&[4, *version]);
                put_blob(out, body);
            }
            Self::Edit { row, at, bytes } => {
                out.extend_from_slice(&[5, *row]);
                out.extend_from_slice(&at.to_le_bytes());
                put_blob(out, bytes);
            }
            Self::Delete { row } => out.extend_from_slice(&[6, *row]),
            Self::Rot { row } => out.extend_from_slice(&[7, *row]),
        }
    }
}

impl Group {
    fn read(input: &mut Input<'_>) -> Self {
        let flags = input.u8();
        let has = |bit: u32| flags & (1 << bit) != 0;
        Self {
            generation: has(0).then(|| input.u64()),
            number: has(1).then(|| input.u64()),
            epoch: has(2).then(|| input.u32()),
            count: has(3).then(|| input.u32()),
            len: has(4).then(|| input.u32()),
            payload_crc: has(5).then(|| input.u32()),
            prev: has(6).then(|| input.u32()),
            skip: has(7).then(|| input.u8()),
            first: input.u64(),
            durable: input.u64(),
            records: (0..input.u8()).map_while(|_| (!input.is_empty()).then(|| input.blob())).collect(),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let flags = [
            self.generation.is_some(),
            self.number.is_some(),
            self.epoch.is_some(),
            self.count.is_some(),
            self.len.is_some(),
            self.payload_crc.is_some(),
            self.prev.is_some(),
            self.skip.is_some(),
        ];
        out.push((0..).zip(flags).map(|(bit, is)| u8::from(is) << bit).sum());
        for field in [self.generation, self.number].into_iter().flatten() {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.epoch, self.count, self.len, self.payload_crc, self.prev].into_iter().flatten() {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend(self.skip);
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.durable.to_le_bytes());
        out.push(u8::try_from(self.records.len()).expect("seeds have few records"));
        self.records.iter().for_each(|record| put_blob(out, record));
    }
}

fn read_user(input: &mut Input<'_>) -> Option<UserId> {
    let len = input.u8();
    UserId::new(input.bytes(usize::from(len))).ok()
}

fn read_key(input: &mut Input<'_>) -> Option<Key> {
    Some(match input.u8() % 13 {
        0 => Key::Meta { part: input.u16() },
        1 => Key::Chunk {
            run: input.u64(),
            user: read_user(input)?,
            lane: LaneId::from_index(input.u8())?,
            seq: Seq::new(input.u64()),
        },
        2 => Key::Body { seq: Seq::new(input.u64()), part: input.u32() },
        3 => Key::Dedup { run: input.u64(), sender: input.u128(), seq: Seq::new(input.u64()) },
        4 => Key::Filter { run: input.u64(), part: input.u32() },
        5 => Key::Shared { run: input.u64(), seq: Seq::new(input.u64()), part: input.u32() },
        6 => Key::Due { run: input.u64(), at: Timestamp::from_millis(input.u64()), part: input.u32() },
        7 => Key::EndsHead,
        8 => Key::Ends { last: Seq::new(input.u64()) },
        9 => Key::LettersHead,
        10 => Key::Letters { user: read_user(input)? },
        11 => Key::User { user: read_user(input)? },
        _ => Key::UserPart { user: read_user(input)?, version: input.u64(), part: input.u16() },
    })
}

/// Appends what is read as this key: the fields that its own encoding has, in the order of reading.
fn write_key(key: &Key, out: &mut Vec<u8>) {
    let user = |out: &mut Vec<u8>, user: &UserId| {
        out.push(u8::try_from(user.as_bytes().len()).expect("an id is at most 255 bytes"));
        out.extend_from_slice(user.as_bytes());
    };
    match key {
        Key::Meta { part } => {
            out.push(0);
            out.extend_from_slice(&part.to_le_bytes());
        }
        Key::Chunk { run, user: id, lane, seq } => {
            out.push(1);
            out.extend_from_slice(&run.to_le_bytes());
            user(out, id);
            out.push(lane.code());
            out.extend_from_slice(&seq.get().to_le_bytes());
        }
        Key::Body { seq, part } => {
            out.push(2);
            out.extend_from_slice(&seq.get().to_le_bytes());
            out.extend_from_slice(&part.to_le_bytes());
        }
        Key::Dedup { run, sender, seq } => {
            out.push(3);
            out.extend_from_slice(&run.to_le_bytes());
            out.extend_from_slice(&sender.to_le_bytes());
            out.extend_from_slice(&seq.get().to_le_bytes());
        }
        Key::Filter { run, part } => {
            out.push(4);
            out.extend_from_slice(&run.to_le_bytes());
            out.extend_from_slice(&part.to_le_bytes());
        }
        Key::Shared { run, seq, part } => {
            out.push(5);
            out.extend_from_slice(&run.to_le_bytes());
            out.extend_from_slice(&seq.get().to_le_bytes());
            out.extend_from_slice(&part.to_le_bytes());
        }
        Key::Due { run, at, part } => {
            out.push(6);
            out.extend_from_slice(&run.to_le_bytes());
            out.extend_from_slice(&at.as_millis().to_le_bytes());
            out.extend_from_slice(&part.to_le_bytes());
        }
        Key::EndsHead => out.push(7),
        Key::Ends { last } => {
            out.push(8);
            out.extend_from_slice(&last.get().to_le_bytes());
        }
        Key::LettersHead => out.push(9),
        Key::Letters { user: id } => {
            out.push(10);
            user(out, id);
        }
        Key::User { user: id } => {
            out.push(11);
            user(out, id);
        }
        Key::UserPart { user: id, version, part } => {
            out.push(12);
            user(out, id);
            out.extend_from_slice(&version.to_le_bytes());
            out.extend_from_slice(&part.to_le_bytes());
        }
        other => panic!("{other:?} is a key that no seed can have: teach `read_key` and this"),
    }
}
