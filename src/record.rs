//! The records: the spine of everything. The machine's state is a fold of them.

use serde::{Deserialize, Serialize};

/// A record's place in the log. Unique and increasing over the whole life of an engine, never reused.
///
/// The upper 24 bits are the [`Epoch`] that wrote the record, the lower 40 count the records of that epoch, so no
/// damage to the journal can make an engine give a place away twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq(u64);

impl Seq {
    /// Before every record.
    pub const ZERO: Self = Self(0);
    /// After every record.
    pub const MAX: Self = Self(u64::MAX);
    /// Bits that count the records of one epoch.
    pub const EPOCH_SHIFT: u32 = 40;

    /// The place with this number.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The first place of an epoch.
    #[must_use]
    pub const fn first_of(epoch: Epoch) -> Self {
        Self((epoch.0 as u64) << Self::EPOCH_SHIFT)
    }

    /// The place as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The place `n` records later, saturating at [`Seq::MAX`].
    #[must_use]
    pub const fn plus(self, n: u64) -> Self {
        Self(self.0.saturating_add(n))
    }

    /// The place just before this one, saturating at [`Seq::ZERO`].
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The epoch that wrote the record.
    #[must_use]
    pub const fn epoch(self) -> Epoch {
        Epoch((self.0 >> Self::EPOCH_SHIFT) as u32)
    }
}

/// The number of an ownership: it grows by at least one with every opening, and what an older epoch writes is
/// refused. At most 2²⁴ − 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The largest epoch.
    pub const MAX: Self = Self((1 << 24) - 1);
}
