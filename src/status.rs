//! What can be said about a message, with the evidence for it.

use serde::{Deserialize, Serialize};

/// Why a message ended. Every accepted message ends exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum EndReason {
    /// The peer confirmed it: its engine holds it durably, or its handler took it.
    Delivered,
    /// It was handed to a transport that cannot confirm anything. Terminal, and no claim of delivery.
    Unconfirmed,
    /// Its TTL passed.
    Expired,
    /// The receiver refused it for good, or the host gave up on it.
    Rejected,
    /// Its retry budget is spent.
    Dead,
    /// The host withdrew it.
    Cancelled,
    /// A newer message took its place.
    Replaced,
    /// Its recipient's outbox was full, and it was dropped for another message: see [`Overflow`](crate::Overflow).
    Evicted,
    /// Not of a message, but of its place: it waits in another lane now. Never announced as an end, nor counted as one.
    Moved,
    /// Another of its recipient's devices confirmed it first, which settles it for all: see
    /// [`DevicePolicy::RingAll`](crate::DevicePolicy::RingAll).
    Elsewhere,
    /// The device that it was for is gone.
    DeviceGone,
}

impl EndReason {
    /// What messages end for, in the order of [`EndReason::index`].
    pub const ALL: [Self; 10] = [
        Self::Delivered,
        Self::Unconfirmed,
        Self::Expired,
        Self::Rejected,
        Self::Dead,
        Self::Cancelled,
        Self::Replaced,
        Self::Evicted,
        Self::Elsewhere,
        Self::DeviceGone,
    ];

    /// Its place in tables of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Elsewhere => 8,
            Self::DeviceGone => 9,
            other => other as usize,
        }
    }

    /// Whether a message, or its copy for one device, that ended for this is not known to have reached its recipient. What was
    /// settled on another device ([`EndReason::Elsewhere`]) has.
    ///
    /// ```
    /// use lastmile::EndReason;
    ///
    /// assert!(EndReason::Expired.is_loss() && EndReason::Unconfirmed.is_loss());
    /// assert!(!EndReason::Elsewhere.is_loss());
    /// ```
    #[must_use]
    pub const fn is_loss(self) -> bool {
        !matches!(self, Self::Delivered | Self::Elsewhere | Self::Moved)
    }

    /// Whether whoever has such a message on offer has not ended it by what they said of it, and would go on with it.
    pub(crate) const fn withdraws(self) -> bool {
        match self {
            Self::Delivered | Self::Unconfirmed | Self::Rejected | Self::Moved => false,
            Self::Expired | Self::Dead | Self::Cancelled | Self::Replaced | Self::Evicted => true,
            Self::Elsewhere | Self::DeviceGone => true,
        }
    }

    /// A lower-case name, for tables and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Unconfirmed => "unconfirmed",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Replaced => "replaced",
            Self::Evicted => "evicted",
            Self::Moved => "moved",
            Self::Elsewhere => "elsewhere",
            Self::DeviceGone => "device_gone",
        }
    }
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Durable in this engine (evidence: the journal's sync).
    Accepted,
    /// Handed to a sink (evidence: the offer). It may or may not have arrived.
    Sent,
    /// Not confirmed in time, or refused for now; it will be offered again (evidence: the attempt's record).
    Retrying,
    /// It ended (evidence: the durable end record).
    Ended(EndReason),
}

impl Status {
    /// Whether a message may go from this status to `next`. The one table that decides it; [`crate::machine`] is
    /// the only writer of statuses.
    ///
    /// A late confirmation is true and upgrades every ending but `Delivered` itself.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Accepted | Self::Retrying, Self::Sent)
            | (Self::Sent, Self::Retrying | Self::Accepted)
            | (Self::Accepted | Self::Sent | Self::Retrying, Self::Ended(_)) => true,
            (Self::Ended(before), Self::Ended(EndReason::Delivered)) => {
                !matches!(before, EndReason::Delivered)
            }
            _ => false,
        }
    }

    /// Whether nothing but a late confirmation can follow.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Ended(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_left_only_by_a_late_confirmation() {
        for reason in EndReason::ALL {
            let ended = Status::Ended(reason);
            for next in [Status::Accepted, Status::Sent, Status::Retrying] {
                assert!(!ended.may_become(next), "{ended:?} -> {next:?}");
            }
            for next in EndReason::ALL {
                let late_ack = next == EndReason::Delivered && reason != EndReason::Delivered;
                assert_eq!(ended.may_become(Status::Ended(next)), late_ack, "{ended:?} -> {next:?}");
            }
        }
    }

    #[test]
    fn indexes_match_the_table() {
        for (i, reason) in EndReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), i);
        }
    }
}
