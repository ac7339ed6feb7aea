//! The loss ledger: what became of messages that were not delivered, and what their receivers know of that.

use serde::{Deserialize, Serialize};

use super::{End, LaneId, Seq};
use crate::id::{MessageId, UserId};
use crate::status::EndReason;
use crate::time::Timestamp;

/// How a message ended that is not known to have been delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerRow {
    /// Which message; unknown when it was too damaged to say.
    pub id: Option<MessageId>,
    /// The place of the record that says so: rows are in this order, whatever their lanes.
    pub ended: Seq,
    /// Where it was last.
    pub lane: LaneId,
    /// Its place there.
    pub place: Seq,
    /// Why. Never [`EndReason::Delivered`]: a late confirmation takes the row away.
    pub reason: EndReason,
    /// Whether it may have arrived all the same.
    pub possibly_delivered: bool,
    /// Failed attempts.
    pub attempts: u32,
    /// When.
    pub at: Timestamp,
}

impl LedgerRow {
    /// What an end says, if the ledger keeps it: that of a message, and not a delivery.
    #[must_use]
    pub fn of(ended: Seq, end: &End) -> Option<Self> {
        (end.counts() && end.reason != EndReason::Delivered).then_some(Self {
            id: end.id,
            ended,
            lane: end.lane,
            place: end.seq,
            reason: end.reason,
            possibly_delivered: end.possibly_delivered,
            attempts: end.attempts,
            at: end.at,
        })
    }
}

/// Messages of one lane that their receiver will not get, though nobody withdrew them and it did not refuse them: they
/// expired, could not be delivered, or gave way to others. Some may have arrived all the same, if an acknowledgement was
/// lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Where they waited.
    pub lane: LaneId,
    /// None of them has a place before this one.
    pub first: Seq,
    /// None of them has a place after this one.
    pub last: Seq,
    /// How many expired.
    pub expired: u32,
    /// How many could not be delivered.
    pub dead: u32,
    /// How many were dropped because the outbox was full.
    pub evicted: u32,
}

impl Gap {
    /// What an end leaves a gap of, if it does.
    #[must_use]
    pub fn of(end: &End) -> Option<Self> {
        let (expired, dead, evicted) = match end.reason {
            EndReason::Expired => (1, 0, 0),
            EndReason::Dead => (0, 1, 0),
            EndReason::Evicted => (0, 0, 1),
            _ => return None,
        };
        let gap = Self { lane: end.lane, first: end.seq, last: end.seq, expired, dead, evicted };
        end.counts().then_some(gap)
    }

    /// How many messages.
    #[must_use]
    pub fn messages(&self) -> u64 {
        u64::from(self.expired) + u64::from(self.dead) + u64::from(self.evicted)
    }

    /// Both gaps of one lane together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            lane: self.lane,
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            expired: self.expired.saturating_add(other.expired),
            dead: self.dead.saturating_add(other.dead),
            evicted: self.evicted.saturating_add(other.evicted),
        }
    }

    /// What is left of it without those that were told of; nothing when those were all. Where the rest are is not known
    /// any better for that.
    #[must_use]
    pub fn without(self, told: Self) -> Option<Self> {
        let left = Self {
            expired: self.expired.saturating_sub(told.expired),
            dead: self.dead.saturating_sub(told.dead),
            evicted: self.evicted.saturating_sub(told.evicted),
            ..self
        };
        (left.messages() > 0).then_some(left)
    }
}

/// A receiver was told of a gap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Who.
    pub user: UserId,
    /// Of what.
    pub gap: Gap,
}

/// What the store keeps of a user's ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerRows {
    /// What ended undelivered, in the order of the ends: the newest of them.
    pub rows: Vec<LedgerRow>,
    /// The row of no message behind this place has been dropped, so that whatever is not there was delivered.
    pub forgotten: Seq,
    /// What rang until another device confirmed it, and is therefore no loss, in the order of the ends: the newest of them.
    /// [`LedgerRows::rows`] has none of these.
    pub elsewhere: Vec<LedgerRow>,
    /// The row of no message behind this place has been dropped from those.
    pub elsewhere_forgotten: Seq,
    /// What the receiver has not been told of: at most one for each lane, in their order.
    pub gaps: Vec<Gap>,
}
