//! Who was told to come back when: as many as there is room for, until their time is over.

use core::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;

/// How long after its time a slot still counts, in microseconds.
pub(super) const GRACE: u64 = 60_000_000;

/// Whether somebody comes in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Their slot is at this time, which is to come.
    Early(u64),
    /// It is now.
    Now,
}

/// Slots by whose they are. Times are in microseconds.
#[derive(Debug)]
pub(super) struct Slots {
    at: HashMap<u64, u64>,
    /// The next one to be forgotten first. One that was used, or given anew, stands here until its time is over, so that this
    /// has as many as were given in that time, and that is what is bounded.
    order: BinaryHeap<Reverse<(u64, u64)>>,
    pub(super) max: usize,
}

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self { at: HashMap::new(), order: BinaryHeap::new(), max }
    }

    /// The slot of whoever comes now, if they have one that counts.
    pub(super) fn due(&self, key: u64, now: u64) -> Option<Due> {
        let at = *self.at.get(&key)?;
        match at > now {
            true => Some(Due::Early(at)),
            false => (now <= at.saturating_add(GRACE)).then_some(Due::Now),
        }
    }

    /// It is used.
    pub(super) fn take(&mut self, key: u64) {
        self.at.remove(&key);
    }

    /// Whether one more can be remembered, when those are forgotten that nobody came for.
    pub(super) fn has_room(&mut self, now: u64) -> bool {
        while let Some(Reverse((at, key))) = self.order.peek().copied()
            && at.saturating_add(GRACE) < now
        {
            self.order.pop();
            if self.at.get(&key) == Some(&at) {
                self.at.remove(&key);
            }
        }
        self.order.len() < self.max
    }

    /// Remembers one for which there is room.
    pub(super) fn put(&mut self, key: u64, at: u64) {
        self.at.insert(key, at);
        self.order.push(Reverse((at, key)));
    }

    pub(super) fn len(&self) -> usize {
        self.at.len()
    }
}
