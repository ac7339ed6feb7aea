//! The delivery machine: pure, deterministic, sans-IO.

mod io;

pub use io::{
    Accepted, Action, Change, CommitId, Delivery, EntryRef, Found, Input, LinkId, LoadId, MachineStats, Page,
    Query, Refusal, Survivors, Ticket, Verdict,
};

use crate::config::Config;
use crate::id::StreamId;
use crate::record::{Counters, Epoch, Record, Seq};
use crate::time::Timestamp;

/// What a machine is born with.
#[derive(Clone, Debug)]
pub struct Birth {
    /// Limits and policies.
    pub config: Config,
    /// The engine's log.
    pub stream: StreamId,
    /// This opening.
    pub epoch: Epoch,
    /// Keys the digests of ids; drawn once per engine and persisted.
    pub digest_key: u128,
    /// Seeds backoff jitter.
    pub seed: u64,
    /// Everything below this place is in the store.
    pub settled: Seq,
    /// Counters as settled (this shard's part).
    pub counters: Counters,
    /// Whether the store holds messages or rows at all (if not, absent users and senders need no load).
    pub store_empty: bool,
}

/// One shard's delivery logic. See the module's documentation for the contract.
#[derive(Debug)]
pub struct Machine {
    birth: Birth,
}

impl Machine {
    /// A machine before replay.
    #[must_use]
    pub fn new(birth: Birth) -> Self {
        Self { birth }
    }

    /// Applies a record of the journal, decided in an earlier life. Only before the first `handle`. `counts` says
    /// whether the settled counters do not reflect it yet.
    pub fn replay(&mut self, _seq: Seq, _record: &Record, _counts: bool) {}

    /// Takes an input. Drain [`Machine::poll_action`] afterwards.
    pub fn handle(&mut self, _now: Timestamp, _input: Input) {}

    /// The next thing to do. Call until `None` after every batch of inputs; records of the whole batch come as one
    /// [`Action::Persist`], last.
    pub fn poll_action(&mut self) -> Option<Action> {
        None
    }

    /// When to send [`Input::Tick`], unless an input comes first. Ask again after every drain.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        None
    }

    /// A snapshot, in O(1).
    #[must_use]
    pub fn stats(&self) -> MachineStats {
        MachineStats::default()
    }

    /// This opening.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.birth.epoch
    }
}
