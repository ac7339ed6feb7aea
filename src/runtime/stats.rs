//! A snapshot of the whole engine.

use crate::machine::MachineStats;
use crate::record::Counters;

/// What the engine counts, summed over its shards. Costs the same whatever the outbox holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
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
