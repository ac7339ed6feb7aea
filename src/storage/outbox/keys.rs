//! Keys: the kind's byte first, ids with their length before them, numbers big-endian. No key of one user, run or
//! kind lies in another's range, whatever bytes an id has.

use crate::id::UserId;
use crate::record::{LaneId, Seq};
use crate::time::Timestamp;

/// Rows are kept by kind; these are the first bytes of their keys.
mod kind {
    pub(super) const META: u8 = 1;
    pub(super) const CHUNK: u8 = 2;
    pub(super) const BODY: u8 = 3;
    pub(super) const DEDUP: u8 = 4;
    pub(super) const USER: u8 = 5;
    pub(super) const FILTER: u8 = 6;
    pub(super) const SHARED: u8 = 7;
    pub(super) const DUE: u8 = 8;
    pub(super) const ENDS: u8 = 9;
    pub(super) const LETTERS: u8 = 10;
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Key {
    /// A part of the engine's own row.
    Meta {
        /// Which part.
        part: u16,
    },
    /// A chunk of a run, by its first entry.
    Chunk {
        /// The run's number.
        run: u64,
        /// Whose entry.
        user: UserId,
        /// In which lane.
        lane: LaneId,
        /// Its place.
        seq: Seq,
    },
    /// A part of a large entry's body.
    Body {
        /// The entry's place.
        seq: Seq,
        /// Which part.
        part: u32,
    },
    /// A chunk of a run's remembered ids, by its first one.
    Dedup {
        /// The run's number.
        run: u64,
        /// The sender's digest.
        sender: u128,
        /// The place of the message.
        seq: Seq,
    },
    /// A part of a run's filter.
    Filter {
        /// The run's number.
        run: u64,
        /// Which part.
        part: u32,
    },
    /// A part of a body that entries of a run share.
    Shared {
        /// The run's number.
        run: u64,
        /// The place of the message whose acceptance it is.
        seq: Seq,
        /// Which part.
        part: u32,
    },
    /// A part of the list of users of whom a run has something due.
    Due {
        /// The run's number.
        run: u64,
        /// By when.
        at: Timestamp,
        /// Which part.
        part: u32,
    },
    /// What the rows of ends hold.
    EndsHead,
    /// A chunk of ends, by its last one.
    Ends {
        /// Its place.
        last: Seq,
    },
    /// Says that whoever has dead letters is listed.
    LettersHead,
    /// Lists a user who may have dead letters.
    Letters {
        /// Who.
        user: UserId,
    },
    /// A user's row, or what says where its parts are.
    User {
        /// Whose.
        user: UserId,
    },
    /// A part of a user's row that is too large for one value.
    UserPart {
        /// Whose.
        user: UserId,
        /// Which writing of the row the part belongs to.
        version: u64,
        /// Which part.
        part: u16,
    },
}

impl Key {
    /// The key's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Meta { part } => [&[kind::META][..], &part.to_be_bytes()].concat(),
            Self::Chunk { run, user, lane, seq } => chunk(*run, user, *lane, *seq),
            Self::Body { seq, part } => {
                [&[kind::BODY][..], &seq.get().to_be_bytes(), &part.to_be_bytes()].concat()
            }
            Self::Dedup { run, sender, seq } => dedup(*run, *sender, *seq),
            Self::Filter { run, part } => {
                [&[kind::FILTER][..], &run.to_be_bytes(), &part.to_be_bytes()].concat()
            }
            Self::Shared { run, seq, part } => {
                let run = [&[kind::SHARED][..], &run.to_be_bytes()].concat();
                [&run[..], &seq.get().to_be_bytes(), &part.to_be_bytes()].concat()
            }
            Self::Due { run, at, part } => {
                let at = at.as_millis().to_be_bytes();
                [&[kind::DUE][..], &run.to_be_bytes(), &at, &part.to_be_bytes()].concat()
            }
            Self::EndsHead => vec![kind::ENDS],
            Self::Ends { last } => [&[kind::ENDS][..], &last.get().to_be_bytes()].concat(),
            Self::LettersHead => vec![kind::LETTERS],
            Self::Letters { user } => with_user(&[kind::LETTERS], user, &[]),
            Self::User { user } => with_user(&[kind::USER], user, &[0]),
            Self::UserPart { user, version, part } => {
                let tail = [&[1][..], &version.to_be_bytes(), &part.to_be_bytes()].concat();
                with_user(&[kind::USER], user, &tail)
            }
        }
    }

    /// The key with these bytes; `None` when they are no key of an outbox.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let key = match fields.take::<1>()? {
            [kind::META] => Self::Meta { part: u16::from_be_bytes(fields.take()?) },
            [kind::CHUNK] => {
                let (run, user) = (fields.u64()?, fields.user()?);
                let lane = LaneId::from_index(u8::from_be_bytes(fields.take()?))?;
                Self::Chunk { run, user, lane, seq: Seq::new(fields.u64()?) }
            }
            [kind::BODY] => {
                Self::Body { seq: Seq::new(fields.u64()?), part: u32::from_be_bytes(fields.take()?) }
            }
            [kind::DEDUP] => {
                let (run, sender) = (fields.u64()?, u128::from_be_bytes(fields.take()?));
                Self::Dedup { run, sender, seq: Seq::new(fields.u64()?) }
            }
            [kind::FILTER] => Self::Filter { run: fields.u64()?, part: u32::from_be_bytes(fields.take()?) },
            [kind::SHARED] => {
                let (run, seq) = (fields.u64()?, Seq::new(fields.u64()?));
                Self::Shared { run, seq, part: u32::from_be_bytes(fields.take()?) }
            }
            [kind::DUE] => {
                let (run, at) = (fields.u64()?, Timestamp::from_millis(fields.u64()?));
                Self::Due { run, at, part: u32::from_be_bytes(fields.take()?) }
            }
            [kind::ENDS] if fields.0.is_empty() => Self::EndsHead,
            [kind::ENDS] => Self::Ends { last: Seq::new(fields.u64()?) },
            [kind::LETTERS] if fields.0.is_empty() => Self::LettersHead,
            [kind::LETTERS] => Self::Letters { user: fields.user()? },
            [kind::USER] => {
                let user = fields.user()?;
                match fields.take::<1>()? {
                    [0] => Self::User { user },
                    [1] => {
                        let version = fields.u64()?;
                        Self::UserPart { user, version, part: u16::from_be_bytes(fields.take()?) }
                    }
                    _ => return None,
                }
            }
            _ => return None,
        };
        fields.0.is_empty().then_some(key)
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn user(&mut self) -> Option<UserId> {
        let [len] = self.take::<1>()?;
        let (id, rest) = self.0.split_at_checked(usize::from(len))?;
        self.0 = rest;
        UserId::new(id).ok()
    }
}

/// A range of keys: from the first, up to but without the second.
pub(super) type Range = (Vec<u8>, Vec<u8>);

fn with_user(head: &[u8], user: &UserId, tail: &[u8]) -> Vec<u8> {
    let id = user.as_bytes();
    let len = u8::try_from(id.len()).unwrap_or(u8::MAX);
    [head, &[len], id, tail].concat()
}

/// The order of users in keys: shorter ids first, then by bytes.
pub(super) fn user_order(user: &UserId) -> (usize, &[u8]) {
    (user.as_bytes().len(), user.as_bytes())
}

pub(super) fn chunk(run: u64, user: &UserId, lane: LaneId, seq: Seq) -> Vec<u8> {
    let mut head = [kind::CHUNK; 9];
    if let Some(number) = head.last_chunk_mut::<8>() {
        *number = run.to_be_bytes();
    }
    let mut tail = [lane.code(); 9];
    if let Some(place) = tail.last_chunk_mut::<8>() {
        *place = seq.get().to_be_bytes();
    }
    with_user(&head, user, &tail)
}

pub(super) fn dedup(run: u64, sender: u128, seq: Seq) -> Vec<u8> {
    [&[kind::DEDUP][..], &run.to_be_bytes(), &sender.to_be_bytes(), &seq.get().to_be_bytes()].concat()
}

/// The first key after `key`.
pub(super) fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

fn numbered(kind: u8, first: u64, last: u64) -> Range {
    let from = [&[kind][..], &first.to_be_bytes()].concat();
    let to = match last.checked_add(1) {
        Some(next) => [&[kind][..], &next.to_be_bytes()].concat(),
        None => vec![kind.saturating_add(1)],
    };
    (from, to)
}

/// The chunks of the runs with these numbers, both included.
pub(super) fn chunks_of(first: u64, last: u64) -> Range {
    numbered(kind::CHUNK, first, last)
}

/// The remembered ids of the runs with these numbers, both included.
pub(super) fn dedup_of(first: u64, last: u64) -> Range {
    numbered(kind::DEDUP, first, last)
}

/// The filters of the runs with these numbers, both included.
pub(super) fn filters_of(first: u64, last: u64) -> Range {
    numbered(kind::FILTER, first, last)
}

/// The bodies that entries share of the runs with these numbers, both included.
pub(super) fn shared_of(first: u64, last: u64) -> Range {
    numbered(kind::SHARED, first, last)
}

/// The lists of what is due of the runs with these numbers, both included.
pub(super) fn dues_of(first: u64, last: u64) -> Range {
    numbered(kind::DUE, first, last)
}

/// The bodies of the entries with these places, both included.
pub(super) fn bodies_of(first: Seq, last: Seq) -> Range {
    numbered(kind::BODY, first.get(), last.get())
}

/// Chunks of ends whose last one has one of these places: from the first on, but without the second.
pub(super) fn ends_between(from: Seq, to: Seq) -> Range {
    (Key::Ends { last: from }.encode(), Key::Ends { last: to }.encode())
}

/// Chunks of ends that lie below a place.
pub(super) fn ends_below(place: Seq) -> Range {
    ends_between(Seq::ZERO, place)
}

/// Chunks of ends whose last one has this place or a higher one.
pub(super) fn ends_from(place: Seq) -> Range {
    (Key::Ends { last: place }.encode(), vec![kind::ENDS + 1])
}

/// All user rows.
pub(super) fn users() -> Range {
    (vec![kind::USER], vec![kind::USER + 1])
}

/// The parts of a user's large row, of every version.
pub(super) fn parts_of(user: &UserId) -> Range {
    (with_user(&[kind::USER], user, &[1]), with_user(&[kind::USER], user, &[2]))
}

/// The list of users who may have dead letters, behind one of them.
pub(super) fn letters_behind(user: Option<&UserId>) -> Range {
    let from = user.map_or(vec![kind::LETTERS], |user| with_user(&[kind::LETTERS], user, &[]));
    (after(from), vec![kind::LETTERS + 1])
}

/// All rows of an outbox.
pub(super) fn everything() -> Range {
    (vec![kind::META], vec![kind::LETTERS + 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Vec<UserId> {
        let raw: [&[u8]; 9] =
            [b"a", b"a\0", b"a\0\0", b"a/", b"a/b", b"\xFF", b"\xFF\xFF", &[0; 255], &[0xFF; 255]];
        raw.iter().map(|id| UserId::new(id).unwrap()).collect()
    }

    fn keys(user: &UserId) -> Vec<Key> {
        let (user, seq) = (user.clone(), Seq::new(u64::MAX));
        vec![
            Key::Chunk { run: 1, user: user.clone(), lane: LaneId::Low, seq },
            Key::Chunk { run: 1, user: user.clone(), lane: LaneId::Critical, seq: Seq::ZERO },
            Key::User { user: user.clone() },
            Key::Letters { user: user.clone() },
            Key::UserPart { user, version: u64::MAX, part: u16::MAX },
        ]
    }

    #[test]
    fn keys_round_trip_and_fit_the_port() {
        let mut all: Vec<Key> = ids().iter().flat_map(keys).collect();
        all.push(Key::Meta { part: 3 });
        all.push(Key::Due { run: u64::MAX, at: Timestamp::NEVER, part: u32::MAX });
        all.push(Key::Body { seq: Seq::new(7), part: u32::MAX });
        all.push(Key::Shared { run: u64::MAX, seq: Seq::new(7), part: u32::MAX });
        all.push(Key::Filter { run: u64::MAX, part: u32::MAX });
        all.push(Key::Ends { last: Seq::new(u64::MAX) });
        all.push(Key::Dedup { run: u64::MAX, sender: u128::MAX, seq: Seq::MAX });
        let mut seen = std::collections::BTreeSet::new();
        for key in all {
            let bytes = key.encode();
            assert!(bytes.len() <= crate::ports::MAX_KEY_BYTES);
            assert_eq!(Key::decode(&bytes), Some(key));
            assert_eq!(Key::decode(&bytes[..bytes.len() - 1]), None);
            assert_eq!(Key::decode(&after(bytes.clone())), None);
            assert!(seen.insert(bytes));
        }
    }

    #[test]
    fn no_user_reaches_into_the_range_of_another() {
        for one in ids() {
            let (from, to) = parts_of(&one);
            let lane = (chunk(1, &one, LaneId::Critical, Seq::ZERO), chunk(1, &one, LaneId::Dead, Seq::MAX));
            for other in ids().iter().filter(|other| **other != one) {
                for key in keys(other).iter().map(Key::encode) {
                    assert!(!(from <= key && key < to), "{other} is among the parts of {one}");
                    assert!(!(lane.0 <= key && key <= lane.1), "{other} is among the entries of {one}");
                }
            }
        }
    }

    #[test]
    fn chunks_sort_by_user_lane_and_place() {
        let mut sorted = ids();
        sorted.sort_by(|a, b| user_order(a).cmp(&user_order(b)));
        let mut keys = Vec::new();
        for user in &sorted {
            for lane in LaneId::ALL {
                keys.extend([1, 256].map(|seq| chunk(1, user, lane, Seq::new(seq))));
            }
        }
        assert!(keys.is_sorted());
        assert!(chunks_of(1, 1).1 <= chunk(2, &sorted[0], LaneId::Critical, Seq::ZERO));
    }
}
