//! The value of a run's chunk: entries of one or more users, packed.
//!
//! ```text
//! version u8 | entry …
//! entry: tag u8 | user_len u8 · user, if tag has NEW_USER | seq u64 | cost u32 | len u16 | body
//! ```
//!
//! Numbers are little-endian. The tag holds the lane in its low three bits. The body is an accepted message as the
//! record codec writes it, or, if the tag has STUB, `bytes u32 · parts u32`: the body lies in parts of its own. If the tag
//! has SHARED, it is `step · later`, varints: it leans on a body of its run.

use crate::codec::{Fields, put_step, put_varint};
use crate::id::UserId;
use crate::ports::MAX_VALUE_BYTES;
use crate::record::{LaneId, Seq};

const VERSION: u8 = 1;
const LANE: u8 = 0b111;
const NEW_USER: u8 = 0b1000;
const STUB: u8 = 0b1_0000;
const SHARED: u8 = 0b10_0000;
/// Entries with a longer body keep it in parts of its own.
pub(super) const MAX_INLINE_BYTES: usize = 2048;
/// Bytes of one part of a body.
pub(super) const PART_BYTES: usize = MAX_VALUE_BYTES;
/// A chunk is closed before it would be larger, unless a single entry is. sled reads 8 to 16 neighbours at once: with
/// 4,000 bytes the first message to somebody who comes took 0.9 ms (p99 3.7), with 2,000 it takes 0.75 (2.5), and the
/// file is 4 % larger (`cargo bench --bench settle -- --messages 2000000 --users 200000`).
const CHUNK_BYTES: usize = 2_000;

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    /// Here.
    Inline(&'a [u8]),
    /// In so many parts, of so many bytes together.
    Parts { bytes: u32, parts: u32 },
    /// In a body of the run, which is the acceptance of the message at this place, so many milliseconds before (wrapping).
    Shared { place: Seq, later: u64 },
}

impl Body<'_> {
    /// The stub for a body of so many bytes.
    pub(super) fn stub(bytes: usize) -> Self {
        let parts = bytes.div_ceil(PART_BYTES);
        let number = |n| u32::try_from(n).unwrap_or(u32::MAX);
        Self::Parts { bytes: number(bytes), parts: number(parts) }
    }

    pub(super) fn parts(&self) -> u32 {
        match self {
            Self::Inline(_) | Self::Shared { .. } => 0,
            Self::Parts { parts, .. } => *parts,
        }
    }
}

/// One entry of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) user: &'a [u8],
    pub(super) lane: LaneId,
    pub(super) seq: Seq,
    pub(super) cost: u32,
    pub(super) body: Body<'a>,
}

impl Entry<'_> {
    /// What a run is sorted by.
    pub(super) fn place(&self) -> (usize, &[u8], LaneId, Seq) {
        (self.user.len(), self.user, self.lane, self.seq)
    }
}

/// A chunk that is being filled.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    value: Vec<u8>,
    user: Vec<u8>,
    first: Option<(LaneId, Seq)>,
    first_user: Vec<u8>,
    /// The body of the entry that is being added.
    body: Vec<u8>,
}

impl Chunk {
    /// Adds an entry, unless it no longer fits. An empty chunk takes every entry.
    pub(super) fn push(&mut self, entry: &Entry<'_>) -> bool {
        let new = self.first.is_none() || self.user != entry.user;
        self.body.clear();
        match entry.body {
            Body::Inline(body) => self.body.extend_from_slice(body),
            Body::Parts { bytes, parts } => {
                self.body.extend_from_slice(&bytes.to_le_bytes());
                self.body.extend_from_slice(&parts.to_le_bytes());
            }
            Body::Shared { place, later } => {
                put_step(entry.seq.get(), place.get(), &mut self.body);
                put_varint(later, &mut self.body);
            }
        }
        let bytes = 15 + self.body.len() + if new { 1 + entry.user.len() } else { 0 };
        if self.first.is_some() && self.value.len() + bytes > CHUNK_BYTES {
            return false;
        }
        if self.first.is_none() {
            self.value.push(VERSION);
            self.first = Some((entry.lane, entry.seq));
            self.first_user = entry.user.to_vec();
        }
        self.write(entry, new);
        true
    }

    fn write(&mut self, entry: &Entry<'_>, new: bool) {
        let body = match entry.body {
            Body::Inline(_) => 0,
            Body::Parts { .. } => STUB,
            Body::Shared { .. } => SHARED,
        };
        let tag = entry.lane as u8 | if new { NEW_USER } else { 0 } | body;
        self.value.push(tag);
        if new {
            self.value.push(u8::try_from(entry.user.len()).unwrap_or(u8::MAX));
            self.value.extend_from_slice(entry.user);
            self.user.clear();
            self.user.extend_from_slice(entry.user);
        }
        self.value.extend_from_slice(&entry.seq.get().to_le_bytes());
        self.value.extend_from_slice(&entry.cost.to_le_bytes());
        self.value.extend_from_slice(&u16::try_from(self.body.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.value.extend_from_slice(&self.body);
    }

    /// The user of the entry added last.
    pub(super) fn last_user(&self) -> Option<UserId> {
        UserId::new(&self.user).ok()
    }

    /// The first entry's user, lane and place, and the value; `None` when it is empty. The chunk is empty again.
    pub(super) fn take(&mut self) -> Option<(UserId, LaneId, Seq, Vec<u8>)> {
        let (lane, seq) = self.first.take()?;
        let user = UserId::new(&self.first_user).ok()?;
        Some((user, lane, seq, core::mem::take(&mut self.value)))
    }
}

/// The entries of a chunk; ends with one `None` entry where it is not what a chunk should be.
pub(super) fn entries(value: &[u8]) -> Entries<'_> {
    let mut fields = Fields(value);
    let sound = fields.take::<1>() == Some([VERSION]);
    Entries { fields, user: &[], sound }
}

/// Iterator of [`entries`].
#[derive(Clone, Debug)]
pub(super) struct Entries<'a> {
    fields: Fields<'a>,
    user: &'a [u8],
    sound: bool,
}

/// The rest of a chunk that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl<'a> Entries<'a> {
    fn entry(&mut self) -> Option<Entry<'a>> {
        let [tag] = self.fields.take::<1>()?;
        let lane = LaneId::from_index(tag & LANE)?;
        if tag & NEW_USER != 0 {
            let [len] = self.fields.take::<1>()?;
            self.user = self.fields.bytes(usize::from(len))?;
        }
        if self.user.is_empty() || tag > (LANE | NEW_USER | SHARED) {
            return None;
        }
        let seq = Seq::new(self.fields.u64()?);
        let cost = self.fields.u32()?;
        let len = usize::from(self.fields.u16()?);
        let mut body = Fields(self.fields.bytes(len)?);
        let body = match tag & (STUB | SHARED) {
            0 => Body::Inline(body.0),
            STUB => Body::Parts { bytes: body.u32()?, parts: body.u32()? },
            SHARED => Body::Shared { place: Seq::new(body.step_from(seq.get())?), later: body.varint()? },
            _ => return None,
        };
        Some(Entry { user: self.user, lane, seq, cost, body })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.sound {
            return (!core::mem::take(&mut self.fields.0).is_empty()).then_some(Err(Broken));
        }
        if self.fields.0.is_empty() {
            return None;
        }
        let entry = self.entry().ok_or(Broken);
        if entry.is_err() {
            (self.sound, self.fields.0) = (false, &[]);
        }
        Some(entry)
    }
}
