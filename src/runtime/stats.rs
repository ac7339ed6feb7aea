//! A snapshot of the whole engine.

use core::time::Duration;

use super::histogram::Distribution;
use crate::machine::MachineStats;
use crate::message::Priority;
use crate::record::{Counters, LaneId};
use crate::status::EndReason;
use crate::time::Timestamp;

/// What the engine counts, summed over its shards. Costs the same whatever the outbox holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// When it was taken, by the engine's clock.
    pub at: Timestamp,
    /// The ledger's counters: accepted, ended by reason, bytes.
    pub counters: Counters,
    /// Messages that have not ended.
    pub waiting: u64,
    /// Dead letters that are kept.
    pub dead_letters: u64,
    /// Undeliverable messages that were not kept, because their recipients had too many dead letters, since opening.
    pub dead_letters_dropped: u64,
    /// Messages on offer to sinks.
    pub in_flight: u64,
    /// Shares that shards hold for batches across shards which are not decided.
    pub reservations: u64,
    /// Sends that wait for a commit or a load.
    pub pending: u64,
    /// Records that are not durable yet.
    pub recording: u64,
    /// Repeats that were recognised since opening.
    pub duplicates: u64,
    /// Sends that were refused since opening.
    pub refused: u64,
    /// Users with anything in memory.
    pub resident_users: u64,
    /// Users with messages waiting of whom only the totals are in memory.
    pub indexed_users: u64,
    /// Messages in memory.
    pub resident_messages: u64,
    /// Attached sinks.
    pub attached: u64,
    /// Users with an attached device.
    pub present_users: u64,
    /// Subscriptions to status changes and watches of presence.
    pub subscriptions: u64,
    /// Verdicts that came too late or from elsewhere.
    pub stray_verdicts: u64,
    /// Messages lost to damage on disk.
    pub damaged: u64,
    /// How often what is due while nobody is there was seen to, since opening.
    pub sweeps: u64,
    /// Commits since opening.
    pub commits: u64,
    /// Records committed since opening.
    pub records: u64,
    /// Nanoseconds spent in commits (write and sync) since opening.
    pub commit_nanos: u64,
    /// How long commits took, in nanoseconds, since opening.
    pub commit_times: Distribution,
    /// How many records the groups had that were committed since opening.
    pub group_sizes: Distribution,
    /// Failed writes or syncs of the journal since opening.
    pub journal_failures: u64,
    /// Whether sends are refused because the journal takes no commits.
    pub degraded: bool,
    /// Journal segments with nothing in them.
    pub free_segments: u32,
    /// Journal segments.
    pub segments: u32,
    /// Settlements since opening.
    pub settlements: u64,
    /// Nanoseconds spent settling since opening.
    pub settle_nanos: u64,
    /// How long settlements took, in nanoseconds, since opening.
    pub settle_times: Distribution,
    /// Merges of runs since opening.
    pub merges: u64,
    /// Failures of the store since opening.
    pub store_failures: u64,
    /// Runs in the store.
    pub runs: u64,
    /// Bytes the store takes on disk.
    pub disk_bytes: u64,
}

impl Stats {
    /// Whether everything that was sent is answered, everything offered is confirmed, and all of it is durable.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.pending == 0 && self.in_flight == 0 && self.recording == 0
    }

    /// Messages of this priority that have not ended, scheduled ones not counted.
    #[must_use]
    pub fn depth(&self, priority: Priority) -> u64 {
        self.counters.backlog.depth(priority.into())
    }

    /// Messages whose time has not come.
    #[must_use]
    pub fn scheduled(&self) -> u64 {
        self.counters.backlog.depth(LaneId::Scheduled)
    }

    /// Messages that wait after a failed attempt.
    #[must_use]
    pub fn retrying(&self) -> u64 {
        self.counters.backlog.retrying()
    }

    /// Messages that ended for this reason, for ever.
    #[must_use]
    pub fn ended(&self, reason: EndReason) -> u64 {
        self.counters.ended.get(reason.index()).copied().unwrap_or(0)
    }

    /// How long the oldest message of this priority has waited: never less than it did, and at most a second or a third
    /// more. See [`Backlog::oldest`](crate::record::Backlog::oldest).
    #[must_use]
    pub fn oldest_age(&self, priority: Priority) -> Option<Duration> {
        self.counters.backlog.oldest(priority.into()).map(|oldest| self.at.since(oldest))
    }

    #[cfg(feature = "metrics")]
    pub(super) fn of(shards: impl Iterator<Item = MachineStats>) -> Self {
        let mut stats = Self::default();
        shards.for_each(|shard| stats.add(&shard));
        stats
    }

    pub(super) fn add(&mut self, shard: &MachineStats) {
        self.counters.add(&shard.counters);
        self.in_flight += shard.in_flight;
        self.reservations += shard.reservations;
        self.pending += shard.pending;
        self.recording += shard.recording;
        self.duplicates += shard.duplicates;
        self.refused += shard.refused;
        self.resident_users += shard.resident_users;
        self.indexed_users += shard.indexed_users;
        self.resident_messages += shard.resident_messages;
        self.attached += shard.links;
        self.stray_verdicts += shard.stray_verdicts;
        self.damaged += shard.damaged;
        self.sweeps += shard.sweeps;
        self.dead_letters_dropped += shard.dead_letters_dropped;
        self.waiting = self.counters.live();
        self.dead_letters = self.counters.dead_letters();
    }
}
