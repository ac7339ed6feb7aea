//! The value of a run's chunk: entries of one or more users, packed.
//!
//! ```text
//! version u8 | entry …
//! entry: tag u8 | user_len u8 · user, if tag has NEW_USER | seq u64 | cost u32 | len u16 | body
//! ```
//!
//! Numbers are little-endian. The tag holds the lane in its low two bits. The body is an accepted message as the
//! record codec writes it, or, if the tag has STUB, `bytes u32 · parts u32`: the body lies in parts of its own.

use crate::codec::Fields;
use crate::id::UserId;
use crate::message::Priority;
use crate::ports::MAX_VALUE_BYTES;
use crate::record::Seq;

const VERSION: u8 = 1;
const LANE: u8 = 0b11;
const NEW_USER: u8 = 0b100;
const STUB: u8 = 0b1000;
/// Entries with a longer body keep it in parts of its own.
pub(super) const MAX_INLINE_BYTES: usize = 2048;
/// Bytes of one part of a body.
pub(super) const PART_BYTES: usize = MAX_VALUE_BYTES;
/// A chunk is closed before it would be larger, unless a single entry is. sled reads 8 to 16 neighbours at once: with
/// 4,000 bytes the first message to somebody who comes took 0.9 ms (p99 3.7), with 2,000 it takes 0.75 (2.5), and the
/// file is 4 % larger (`cargo bench --bench settle -- --messages 2000000 --users 200000`).
const CHUNK_BYTES: usize = 2_000;

/// What the number of parts is counted in: below are the parts, above which copy of the body they are. A body that is
/// sealed anew gets the other copy's places, so that the old one can be read meanwhile.
const COPY: u32 = 1 << 16;

/// The numbers of a body's parts, of the many that a stub speaks of.
pub(super) fn part_numbers(parts: u32) -> core::ops::Range<u32> {
    let first = parts & !(COPY - 1);
    first..first | (parts & (COPY - 1))
}

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    /// Here.
    Inline(&'a [u8]),
    /// In so many parts, of so many bytes together.
    Parts { bytes: u32, parts: u32 },
}

impl Body<'_> {
    /// The stub for a body of so many bytes.
    pub(super) fn stub(bytes: usize) -> Self {
        let parts = bytes.div_ceil(PART_BYTES);
        let number = |n| u32::try_from(n).unwrap_or(u32::MAX);
        Self::Parts { bytes: number(bytes), parts: number(parts) }
    }

    /// The numbers of its parts.
    pub(super) fn parts(&self) -> core::ops::Range<u32> {
        match self {
            Self::Inline(_) => 0..0,
            Self::Parts { parts, .. } => part_numbers(*parts),
        }
    }

    /// The same body in the other copy's places.
    pub(super) fn other_copy(self) -> Self {
        match self {
            Self::Parts { bytes, parts } => Self::Parts { bytes, parts: parts ^ COPY },
            inline => inline,
        }
    }

    /// This body in the places of the copy that another one is.
    pub(super) fn copy_of(self, other: &Body<'_>) -> Self {
        match (self, other) {
            (Self::Parts { bytes, parts }, Body::Parts { parts: theirs, .. }) => {
                Self::Parts { bytes, parts: parts | (theirs & COPY) }
            }
            (body, _) => body,
        }
    }
}

/// One entry of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) user: &'a [u8],
    pub(super) lane: Priority,
    pub(super) seq: Seq,
    pub(super) cost: u32,
    pub(super) body: Body<'a>,
}

impl Entry<'_> {
    /// What a run is sorted by.
    pub(super) fn place(&self) -> (usize, &[u8], Priority, Seq) {
        (self.user.len(), self.user, self.lane, self.seq)
    }
}

/// A chunk that is being filled.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    value: Vec<u8>,
    user: Vec<u8>,
    first: Option<(Priority, Seq)>,
    first_user: Vec<u8>,
}

impl Chunk {
    /// Adds an entry, unless it no longer fits. An empty chunk takes every entry.
    pub(super) fn push(&mut self, entry: &Entry<'_>) -> bool {
        let new = self.first.is_none() || self.user != entry.user;
        let body = match entry.body {
            Body::Inline(body) => body.len(),
            Body::Parts { .. } => 8,
        };
        let bytes = 15 + body + if new { 1 + entry.user.len() } else { 0 };
        if self.first.is_some() && self.value.len() + bytes > CHUNK_BYTES {
            return false;
        }
        if self.first.is_none() {
            self.value.push(VERSION);
            self.first = Some((entry.lane, entry.seq));
            self.first_user = entry.user.to_vec();
        }
        self.write(entry, new, body);
        true
    }

    fn write(&mut self, entry: &Entry<'_>, new: bool, len: usize) {
        let stub = matches!(entry.body, Body::Parts { .. });
        let tag = entry.lane as u8 | if new { NEW_USER } else { 0 } | if stub { STUB } else { 0 };
        self.value.push(tag);
        if new {
            self.value.push(u8::try_from(entry.user.len()).unwrap_or(u8::MAX));
            self.value.extend_from_slice(entry.user);
            self.user.clear();
            self.user.extend_from_slice(entry.user);
        }
        self.value.extend_from_slice(&entry.seq.get().to_le_bytes());
        self.value.extend_from_slice(&entry.cost.to_le_bytes());
        self.value.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes());
        match entry.body {
            Body::Inline(body) => self.value.extend_from_slice(body),
            Body::Parts { bytes, parts } => {
                self.value.extend_from_slice(&bytes.to_le_bytes());
                self.value.extend_from_slice(&parts.to_le_bytes());
            }
        }
    }

    /// The user of the entry added last.
    pub(super) fn last_user(&self) -> Option<UserId> {
        UserId::new(&self.user).ok()
    }

    /// The first entry's user, lane and place, and the value; `None` when it is empty. The chunk is empty again.
    pub(super) fn take(&mut self) -> Option<(UserId, Priority, Seq, Vec<u8>)> {
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
        let lane = Priority::from_index(tag & LANE)?;
        if tag & NEW_USER != 0 {
            let [len] = self.fields.take::<1>()?;
            self.user = self.fields.bytes(usize::from(len))?;
        }
        if self.user.is_empty() || tag > (LANE | NEW_USER | STUB) {
            return None;
        }
        let seq = Seq::new(self.fields.u64()?);
        let cost = self.fields.u32()?;
        let len = usize::from(self.fields.u16()?);
        let mut body = Fields(self.fields.bytes(len)?);
        let body = match tag & STUB {
            0 => Body::Inline(body.0),
            _ => Body::Parts { bytes: body.u32()?, parts: body.u32()? },
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
