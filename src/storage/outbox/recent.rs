//! The messages of users whose totals were just read: the pages that are asked for next find them in memory.
//!
//! Whoever comes is asked for four times more, once for each lane. Without this, each of these reads the same chunks.
//!
//! # Bounds
//! 64 users, and for each 64 KiB of bodies and 512 messages: 5 MiB. Who has more is read from the store. What is kept
//! belongs to one generation of the table, whose chunks never change, and is of no use to another.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::chunk::{Body, Entry};
use crate::id::UserId;
use crate::record::{LaneId, Seq};
use crate::time::Timestamp;

const MAX_USERS: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");
const MAX_BYTES: usize = 64 << 10;
const MAX_ENTRIES: usize = 512;

/// Users who were read lately.
pub(super) struct Recent(Mutex<LruCache<UserId, Arc<Messages>>>);

impl Recent {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(MAX_USERS)))
    }

    /// Keeps what was read, if it is everything there is.
    pub(super) fn keep(&self, user: &UserId, read: Messages) {
        if read.is_whole && !read.entries.is_empty() {
            self.0.lock().put(user.clone(), Arc::new(read));
        }
    }

    /// Everything the table of this generation has of a user, if it is known.
    pub(super) fn find(&self, user: &UserId, generation: u64) -> Option<Arc<Messages>> {
        self.0.lock().get(user).filter(|found| found.generation == generation).cloned()
    }
}

/// The entries of one user, in the order of runs, lanes and places.
pub(super) struct Messages {
    generation: u64,
    bodies: Vec<u8>,
    entries: Vec<(LaneId, Seq, u32, Place)>,
    is_whole: bool,
}

enum Place {
    Inline(Range<usize>),
    Parts { bytes: u32, parts: u32 },
    Shared { run: u64, place: Seq, later: u64 },
}

impl Messages {
    pub(super) fn new(generation: u64) -> Self {
        Self { generation, bodies: Vec::new(), entries: Vec::new(), is_whole: true }
    }

    pub(super) fn add(&mut self, run: u64, entry: &Entry<'_>) {
        let place = match entry.body {
            Body::Inline(body) if self.bodies.len() + body.len() <= MAX_BYTES => {
                let start = self.bodies.len();
                self.bodies.extend_from_slice(body);
                Place::Inline(start..self.bodies.len())
            }
            Body::Inline(_) => return self.give_up(),
            Body::Parts { bytes, parts } => Place::Parts { bytes, parts },
            Body::Shared { place, later } => Place::Shared { run, place, later },
        };
        if self.entries.len() >= MAX_ENTRIES {
            return self.give_up();
        }
        self.entries.push((entry.lane, entry.seq, entry.cost, place));
    }

    /// There is more than is kept, or something of it is damaged.
    pub(super) fn give_up(&mut self) {
        self.is_whole = false;
        (self.bodies, self.entries) = (Vec::new(), Vec::new());
    }

    /// The entries of one lane, in order, with the run that a shared body is in.
    pub(super) fn lane<'a>(
        &'a self,
        user: &'a UserId,
        lane: LaneId,
    ) -> impl Iterator<Item = (u64, Entry<'a>)> {
        self.all(user).filter(move |(_, entry)| entry.lane == lane)
    }

    /// All entries, as those of a lane.
    pub(super) fn all<'a>(&'a self, user: &'a UserId) -> impl Iterator<Item = (u64, Entry<'a>)> {
        self.entries.iter().map(move |(lane, seq, cost, place)| {
            let mut of = 0;
            let body = match place {
                Place::Inline(range) => Body::Inline(self.bodies.get(range.clone()).unwrap_or_default()),
                Place::Parts { bytes, parts } => Body::Parts { bytes: *bytes, parts: *parts },
                Place::Shared { run, place, later } => {
                    of = *run;
                    Body::Shared { place: *place, later: *later }
                }
            };
            let due = Timestamp::NEVER;
            (of, Entry { user: user.as_bytes(), lane: *lane, seq: *seq, cost: *cost, due, body })
        })
    }
}
