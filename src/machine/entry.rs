//! A live message in memory, and what it is doing.

use std::sync::Arc;

use super::io::LinkId;
use crate::record::{Accept, Seq};
use crate::time::Timestamp;

/// A live message in memory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) seq: Seq,
    pub(super) accept: Arc<Accept>,
    pub(super) state: EntryState,
    /// Acquisitions: how often it was handed to a sink in this life, and one for all that may have been before, in another
    /// life or before it was read again.
    pub(super) offers: u32,
    /// It was handed to a sink in this life, since it was read: not perhaps, but in fact.
    pub(super) handed: bool,
    /// Failed attempts, those included whose records are not durable yet.
    pub(super) failures: u32,
}

impl Entry {
    pub(super) fn state(&self) -> EntryState {
        self.state
    }

    /// When something has to be done about it: its expiry, or the end of its backoff.
    pub(super) fn due(&self) -> Timestamp {
        match self.state {
            EntryState::Ending { .. } => Timestamp::NEVER,
            EntryState::Backoff(until) => until.min(self.accept.expires()),
            EntryState::Waiting | EntryState::InFlight(_) => self.accept.expires(),
        }
    }
}

/// What a live message is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryState {
    /// Ready to be offered when its turn comes.
    Waiting,
    /// With a sink.
    InFlight(LinkId),
    /// Waiting after a failed attempt, or because the sink was busy.
    Backoff(Timestamp),
    /// Its end is being recorded. An end that is no delivery holds the ordering key until it is durable: after a crash
    /// the message would be offered again, and what came behind it must not have been.
    Ending {
        /// Whether it holds its key.
        holds_key: bool,
    },
}
