//! The ledger's counters.

use serde::{Deserialize, Serialize};

use super::Backlog;
use crate::status::EndReason;

/// Reasons that every table of runs has counters of; those of the others stand before it.
#[cfg(feature = "storage")]
pub(crate) const FIRST_REASONS: usize = 8;

/// The ledger's counters: absolute values, a fold of the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Messages accepted.
    pub accepted: u64,
    /// Messages ended, by [`EndReason::index`].
    #[serde(with = "first_reasons")]
    pub ended: [u64; EndReason::ALL.len()],
    /// Late confirmations, which moved one message from another reason to `Delivered`.
    pub upgraded: u64,
    /// Bytes of accepted messages (see [`Message::cost`](crate::Message::cost)).
    pub accepted_bytes: u64,
    /// Bytes of ended messages.
    pub ended_bytes: u64,
    /// Messages that were kept as dead letters when they ended.
    pub buried: u64,
    /// Dead letters that were sent again or dropped.
    pub unburied: u64,
    /// Bytes of messages that were kept as dead letters.
    pub buried_bytes: u64,
    /// Bytes of dead letters that were sent again or dropped.
    pub unburied_bytes: u64,
    /// What waits, by lane and by when it was accepted.
    pub backlog: Backlog,
}

/// The first reasons only: what else there is, the table of runs writes by itself.
mod first_reasons {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::status::EndReason;

    const LEN: usize = EndReason::ALL.len();

    pub(super) fn serialize<S: Serializer>(ended: &[u64; LEN], serializer: S) -> Result<S::Ok, S::Error> {
        let [a, b, c, d, e, f, g, h, ..] = *ended;
        [a, b, c, d, e, f, g, h].serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u64; LEN], D::Error> {
        let first = <[u64; 8]>::deserialize(deserializer)?;
        let mut ended = [0; LEN];
        ended.iter_mut().zip(first).for_each(|(place, n)| *place = n);
        Ok(ended)
    }
}

impl Counters {
    /// Messages that have not ended.
    #[must_use]
    pub fn live(&self) -> u64 {
        let ended = self.ended.iter().fold(0, |sum: u64, n| sum.wrapping_add(*n));
        positive(self.accepted.wrapping_sub(ended))
    }

    /// Dead letters that are kept.
    #[must_use]
    pub fn dead_letters(&self) -> u64 {
        positive(self.buried.wrapping_sub(self.unburied))
    }

    /// Their bytes.
    #[must_use]
    pub fn dead_bytes(&self) -> u64 {
        positive(self.buried_bytes.wrapping_sub(self.unburied_bytes))
    }

    /// Bytes of messages that have not ended.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        positive(self.accepted_bytes.wrapping_sub(self.ended_bytes))
    }

    /// Adds what another shard counted. Sums wrap: when the number of shards has changed, a shard may end messages that
    /// another one has counted as accepted, and only the sum over all shards means something.
    pub fn add(&mut self, other: &Self) {
        self.accepted = self.accepted.wrapping_add(other.accepted);
        for (mine, theirs) in self.ended.iter_mut().zip(other.ended) {
            *mine = mine.wrapping_add(theirs);
        }
        self.upgraded = self.upgraded.wrapping_add(other.upgraded);
        self.accepted_bytes = self.accepted_bytes.wrapping_add(other.accepted_bytes);
        self.ended_bytes = self.ended_bytes.wrapping_add(other.ended_bytes);
        self.buried = self.buried.wrapping_add(other.buried);
        self.unburied = self.unburied.wrapping_add(other.unburied);
        self.buried_bytes = self.buried_bytes.wrapping_add(other.buried_bytes);
        self.unburied_bytes = self.unburied_bytes.wrapping_add(other.unburied_bytes);
        self.backlog.add(&other.backlog);
    }

    /// Shard `i`'s part, when these counters are divided among `shards`. The parts sum up to the whole.
    #[must_use]
    pub fn part(&self, i: u64, shards: u64) -> Self {
        let shards = shards.max(1);
        let part = |n: u64| n / shards + u64::from(i < n % shards);
        Self {
            accepted: part(self.accepted),
            ended: self.ended.map(part),
            upgraded: part(self.upgraded),
            accepted_bytes: part(self.accepted_bytes),
            ended_bytes: part(self.ended_bytes),
            buried: part(self.buried),
            unburied: part(self.unburied),
            buried_bytes: part(self.buried_bytes),
            unburied_bytes: part(self.unburied_bytes),
            backlog: self.backlog.part(i),
        }
    }
}

/// A difference of wrapping counters, or nothing if it is below zero.
pub(super) const fn positive(difference: u64) -> u64 {
    if difference > i64::MAX as u64 { 0 } else { difference }
}
