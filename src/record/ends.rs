//! Ends in the order in which they were recorded, over all users, and positions among them.

use serde::{Deserialize, Serialize};

use super::{End, Seq};
use crate::config::KeepEnds;

/// A position among the ends: behind one of them. It holds for the life of the engine's log, through restarts; keep it with
/// what was done about the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EndPosition {
    /// The place of the end's record.
    pub(crate) place: Seq,
    /// How many ends were kept up to there, 0 when that is not known.
    pub(crate) number: u64,
}

impl EndPosition {
    /// Before all ends.
    pub const START: Self = Self { place: Seq::ZERO, number: 0 };

    /// As bytes, to be kept somewhere.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let (mut bytes, number) = ([0; 16], self.number.to_be_bytes());
        let place = self.place.get().to_be_bytes();
        for (to, from) in bytes.iter_mut().zip(place.into_iter().chain(number)) {
            *to = from;
        }
        bytes
    }

    /// The position of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let raw = u128::from_be_bytes(bytes);
        Self { place: Seq::new((raw >> 64) as u64), number: raw as u64 }
    }
}

impl PartialOrd for EndPosition {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for EndPosition {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (self.place, self.number).cmp(&(other.place, other.number))
    }
}

/// A message that ended, or one whose late confirmation came ([`End::upgrades`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Where it stands among the others: name it to go on behind it.
    pub position: EndPosition,
    /// What was recorded.
    pub end: End,
}

impl KeepEnds {
    /// Whether this one is among them.
    #[must_use]
    pub fn keeps(self, end: &End) -> bool {
        // What takes an end back is kept where that one was.
        let reason = end.upgrades.unwrap_or(end.reason);
        match self {
            Self::Nothing => false,
            Self::Undelivered => end.counts() && reason.is_loss(),
            Self::All => end.counts(),
        }
    }
}
