//! The value of a run's chunk: entries of one or more users, packed.
//!
//! ```text
//! version u8 | entry …
//! entry: tag u8 | [lane u8] | [kept u8 · len u8 · rest of the user] | place step | [cost varint] | [due step] | body
//! body:  len varint · bytes | STUB: bytes u32 · parts u32 | SHARED: [place step · later varint]
//! ```
//!
//! Entries lean on the one before in their chunk: another user's id keeps some of its first bytes, a place is a step from
//! its place (varint, either way), and the tag says when the cost is the same, or the shared body and the time behind it.
//! The tag holds the lane in its low three bits (all of them set when it is a device's, which follows), and says whether a time follows at which something has to be done. Bytes are an accepted message as the record codec writes it; with STUB
//! it lies in parts of its own; with SHARED it leans on a body of its run.

use core::ops::Range;

use crate::codec::{Fields, put_step, put_varint};
use crate::id::{MAX_ID_BYTES, UserId};
use crate::ports::MAX_VALUE_BYTES;
use crate::record::{LaneId, Seq};
use crate::time::Timestamp;

/// The version of chunks that this build writes, and the newest it reads.
pub(super) const VERSION: u8 = 1;
const LANE: u8 = 0b111;
/// The lane of a device, which follows.
const DEVICE_LANE: u8 = LANE;
const NEW_USER: u8 = 0b1000;
const STUB: u8 = 0b1_0000;
const SHARED: u8 = 0b10_0000;
/// It costs what the one before it costs.
const SAME_COST: u8 = 0b100_0000;
/// It leans on what the last one leans on that leans on something, and as much later.
const SAME_BODY: u8 = STUB | SHARED;
/// It is due at a time, a step from that of the last one that is.
const DUE: u8 = 0b1000_0000;
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

    /// The numbers of its parts.
    pub(super) fn parts(&self) -> core::ops::Range<u32> {
        match self {
            Self::Inline(_) | Self::Shared { .. } => 0..0,
            Self::Parts { parts, .. } => part_numbers(*parts),
        }
    }

    /// The same body in the other copy's places.
    pub(super) fn other_copy(self) -> Self {
        match self {
            Self::Parts { bytes, parts } => Self::Parts { bytes, parts: parts ^ COPY },
            other => other,
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
    pub(super) lane: LaneId,
    pub(super) seq: Seq,
    pub(super) cost: u32,
    /// When something has to be done about it.
    pub(super) due: Timestamp,
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
    last: Last,
    /// The entry that is being added.
    next: Vec<u8>,
}

/// What an entry leans on.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    seq: Seq,
    cost: u32,
    due: Timestamp,
    shared: Option<(Seq, u64)>,
}

impl Last {
    fn note(&mut self, seq: Seq, cost: u32, due: Timestamp, body: Body<'_>) {
        (self.seq, self.cost) = (seq, cost);
        if due != Timestamp::NEVER {
            self.due = due;
        }
        if let Body::Shared { place, later } = body {
            self.shared = Some((place, later));
        }
    }
}

impl Chunk {
    /// Adds an entry, unless it no longer fits. An empty chunk takes every entry.
    pub(super) fn push(&mut self, entry: &Entry<'_>) -> bool {
        self.write(entry);
        if self.first.is_some() && self.value.len() + self.next.len() > CHUNK_BYTES {
            return false;
        }
        if self.first.is_none() {
            self.value.push(VERSION);
            self.first = Some((entry.lane, entry.seq));
            self.first_user = entry.user.to_vec();
        }
        self.value.extend_from_slice(&self.next);
        if self.user != entry.user {
            self.user.clear();
            self.user.extend_from_slice(entry.user);
        }
        self.last.note(entry.seq, entry.cost, entry.due, entry.body);
        true
    }

    /// Writes the entry as it follows the last one.
    fn write(&mut self, entry: &Entry<'_>) {
        let (out, last) = (&mut self.next, self.last);
        let flag = |is, flag| if is { flag } else { 0 };
        let (is_new, same_cost) = (self.user != entry.user, last.cost == entry.cost);
        let body = match entry.body {
            Body::Inline(_) => 0,
            Body::Parts { .. } => STUB,
            Body::Shared { place, later } if last.shared == Some((place, later)) => SAME_BODY,
            Body::Shared { .. } => SHARED,
        };
        let has_due = entry.due != Timestamp::NEVER;
        out.clear();
        let lane = entry.lane.code();
        out.push(
            (if entry.lane.slot().is_some() { DEVICE_LANE } else { lane })
                | flag(is_new, NEW_USER)
                | body
                | flag(same_cost, SAME_COST)
                | flag(has_due, DUE),
        );
        if entry.lane.slot().is_some() {
            out.push(lane);
        }
        if is_new {
            let kept = self.user.iter().zip(entry.user).take_while(|(a, b)| a == b).count();
            let rest = entry.user.get(kept..).unwrap_or_default();
            out.extend([kept, rest.len()].map(|n| u8::try_from(n).unwrap_or(u8::MAX)));
            out.extend_from_slice(rest);
        }
        put_step(last.seq.get(), entry.seq.get(), out);
        if !same_cost {
            put_varint(entry.cost.into(), out);
        }
        if has_due {
            put_step(last.due.as_millis(), entry.due.as_millis(), out);
        }
        match entry.body {
            Body::Inline(bytes) => {
                put_varint(bytes.len() as u64, out);
                out.extend_from_slice(bytes);
            }
            Body::Parts { bytes, parts } => {
                out.extend_from_slice(&bytes.to_le_bytes());
                out.extend_from_slice(&parts.to_le_bytes());
            }
            Body::Shared { .. } if body == SAME_BODY => {}
            Body::Shared { place, later } => {
                put_step(entry.seq.get(), place.get(), out);
                put_varint(later, out);
            }
        }
    }

    /// The user of the entry added last.
    pub(super) fn last_user(&self) -> Option<UserId> {
        UserId::new(&self.user).ok()
    }

    /// The first entry's user, lane and place, and the value; `None` when it is empty. The chunk is empty again.
    pub(super) fn take(&mut self) -> Option<(UserId, LaneId, Seq, Vec<u8>)> {
        let (lane, seq) = self.first.take()?;
        let user = UserId::new(&self.first_user).ok()?;
        self.user.clear();
        self.last = Last::default();
        Some((user, lane, seq, core::mem::take(&mut self.value)))
    }
}

/// The entries of a chunk; ends with one `None` entry where it is not what a chunk should be. `users` is where their
/// users' ids are put together.
pub(super) fn entries<'a>(value: &'a [u8], users: &'a mut Vec<u8>) -> Entries<'a> {
    users.clear();
    let mut parser = Parser { fields: Fields(value), last: Last::default(), user: 0..0 };
    let mut parsed = Vec::new();
    let mut sound = parser.fields.take::<1>() == Some([VERSION]);
    while sound && !parser.fields.0.is_empty() {
        match parser.entry(users) {
            Some(entry) => parsed.push(entry),
            None => sound = false,
        }
    }
    Entries { parsed: parsed.into_iter(), users, broken: !sound && !value.is_empty() }
}

/// An entry whose user is known by the place of the id.
type Parsed<'a> = (Range<usize>, LaneId, Seq, u32, Timestamp, Body<'a>);

struct Parser<'a> {
    fields: Fields<'a>,
    last: Last,
    user: Range<usize>,
}

impl<'a> Parser<'a> {
    fn entry(&mut self, users: &mut Vec<u8>) -> Option<Parsed<'a>> {
        let [tag] = self.fields.take::<1>()?;
        let lane = match tag & LANE {
            DEVICE_LANE => {
                let [lane] = self.fields.take::<1>()?;
                LaneId::from_index(lane).filter(|lane| lane.slot().is_some())?
            }
            lane => LaneId::from_index(lane).filter(|lane| lane.slot().is_none())?,
        };
        if tag & NEW_USER != 0 {
            let [kept, len] = self.fields.take::<2>()?.map(usize::from);
            let rest = self.fields.bytes(len)?;
            let (start, end) = (users.len(), self.user.start.saturating_add(kept));
            if end > self.user.end {
                return None;
            }
            users.extend_from_within(self.user.start..end);
            users.extend_from_slice(rest);
            self.user = start..users.len();
        }
        if self.user.is_empty() || self.user.len() > MAX_ID_BYTES {
            return None;
        }
        let seq = Seq::new(self.fields.step_from(self.last.seq.get())?);
        let cost = match tag & SAME_COST {
            0 => u32::try_from(self.fields.varint()?).ok()?,
            _ => self.last.cost,
        };
        let due = match tag & DUE {
            0 => Timestamp::NEVER,
            _ => Timestamp::from_millis(self.fields.step_from(self.last.due.as_millis())?),
        };
        let body = match tag & SAME_BODY {
            0 => {
                let len = usize::try_from(self.fields.varint()?).ok()?;
                Body::Inline(self.fields.bytes(len)?)
            }
            STUB => Body::Parts { bytes: self.fields.u32()?, parts: self.fields.u32()? },
            SHARED => {
                let place = Seq::new(self.fields.step_from(seq.get())?);
                Body::Shared { place, later: self.fields.varint()? }
            }
            _ => {
                let (place, later) = self.last.shared?;
                Body::Shared { place, later }
            }
        };
        self.last.note(seq, cost, due, body);
        Some((self.user.clone(), lane, seq, cost, due, body))
    }
}

/// Iterator of [`entries`].
#[derive(Debug)]
pub(super) struct Entries<'a> {
    parsed: std::vec::IntoIter<Parsed<'a>>,
    users: &'a [u8],
    broken: bool,
}

/// The rest of a chunk that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some((user, lane, seq, cost, due, body)) = self.parsed.next() else {
            return core::mem::take(&mut self.broken).then_some(Err(Broken));
        };
        let user = self.users.get(user).unwrap_or_default();
        Some(Ok(Entry { user, lane, seq, cost, due, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(user: &'a [u8], seq: u64, cost: u32, body: Body<'a>) -> Entry<'a> {
        let due = if seq.is_multiple_of(3) { Timestamp::from_millis(seq) } else { Timestamp::NEVER };
        Entry { user, lane: LaneId::Low, seq: Seq::new(seq), cost, due, body }
    }

    fn chunk(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut chunk = Chunk::default();
        assert!(entries.iter().all(|entry| chunk.push(entry)));
        chunk.take().unwrap().3
    }

    type Read = (Vec<u8>, u64, u32);

    fn read(value: &[u8]) -> Vec<Result<Read, Broken>> {
        let mut users = Vec::new();
        entries(value, &mut users).map(|e| e.map(|e| (e.user.to_vec(), e.seq.get(), e.cost))).collect()
    }

    fn shared(place: u64, later: u64) -> Body<'static> {
        Body::Shared { place: Seq::new(place), later }
    }

    #[test]
    fn entries_come_back_as_they_were_whatever_stands_before_them() {
        let (first, last) = ([0xFF; 255], [0; 255]);
        let all = [
            entry(b"user-1", u64::MAX, u32::MAX, Body::Inline(b"hello")),
            entry(b"user-1", 0, u32::MAX, shared(5, 0)),
            entry(b"user-12", 7, 3, shared(5, 0)),
            entry(b"user-2", 8, 3, Body::Parts { bytes: 9, parts: 1 }),
            entry(b"user-2", 9, 3, shared(5, 0)),
            entry(b"u", 10, 4, shared(5, u64::MAX)),
            entry(&first, 11, 4, shared(u64::MAX, 1)),
            entry(&last, 12, 0, Body::Inline(b"")),
        ];
        let value = chunk(&all);
        let mut users = Vec::new();
        let back: Vec<_> = entries(&value, &mut users).map(Result::unwrap).collect();
        assert_eq!(back, all);
        for len in 1..value.len() {
            let cut = read(&value[..len]);
            let sound = cut.iter().filter(|entry| entry.is_ok()).count();
            assert!(cut.len() <= sound + 1 && sound < all.len(), "{len}");
            assert!(cut.iter().take(sound).eq(read(&value).iter().take(sound)), "{len}");
        }
    }

    #[test]
    fn neighbours_who_share_a_body_take_a_few_bytes_each() {
        let names: Vec<String> = (0..100).map(|n| format!("user-{n:06}")).collect();
        let entries: Vec<_> = (1..)
            .zip(&names)
            .map(|(seq, name)| entry(name.as_bytes(), 900 + seq, 1051, shared(901, 0)))
            .collect();
        let value = chunk(&entries);
        assert!(value.len() < 700, "{} bytes", value.len());
        assert_eq!(read(&value).len(), 100);
    }

    #[test]
    fn bytes_that_lean_on_nothing_are_broken() {
        let leaning = LaneId::Low.code() | SAME_COST;
        for wrong in [
            &[1, leaning, 2, 0][..],
            &[1, NEW_USER, 1, 1, b'a', 0, 0, 0],
            &[1, NEW_USER | SHARED | SAME_BODY, 0, 1, b'a', 0, 0],
            &[1, NEW_USER | STUB | SHARED, 0, 1, b'a', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[1, NEW_USER | SAME_BODY, 0, 1, b'a', 0, 0, 0],
            &[1, NEW_USER, 0, 0, 0, 0, 0],
            &[2, NEW_USER, 0, 1, b'a', 0, 0, 0],
        ] {
            assert_eq!(read(wrong), [Err(Broken)], "{wrong:?}");
        }
        assert_eq!(read(&[1, NEW_USER, 0, 1, b'a', 0, 0, 0]), [Ok((vec![b'a'], 0, 0))]);
        assert!(read(&[]).is_empty());
    }
}
