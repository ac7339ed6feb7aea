//! What goes back to the host: behind something that was not taken, when the peer takes nothing or too little, and when a
//! connection breaks.

use core::time::Duration;
use std::collections::VecDeque;

use super::super::frame::{GapReason, Item, Missed, Place};
use super::super::io::Outcome;
use super::{Key, NOTHING, Outgoing, Slot, expires, key};
use crate::message::Durability;
use crate::time::Timestamp;

impl Outgoing {
    /// Something of this lane and key was not taken: what waits behind it goes back too. What was sent behind it, the
    /// receiver refuses.
    pub(super) fn recall(&mut self, held: &Key) {
        if let Some(queue) = self.waiting.get_mut(held.0.index()) {
            for (item, since) in core::mem::take(queue) {
                match key(&item) == *held {
                    true => self.outcomes.push((item.place, Outcome::Busy(Duration::ZERO))),
                    false => queue.push_back((item, since)),
                }
            }
        }
    }

    /// Whether the peer can be at this position: it has seen nothing that was not sent, and what it has not seen is here.
    pub(in super::super) fn can_resume(&self, seen: u64) -> bool {
        seen < self.next() && seen >= self.base.saturating_sub(1)
    }

    /// Whether it is unknown what the peer means by this position: it may have seen what numbers up to there stood for before
    /// they were filled anew, or after.
    pub(in super::super) fn is_in_doubt(&self, seen: u64) -> bool {
        self.refilled.is_some_and(|first| seen >= first)
    }

    /// Something was heard over the connection that was resumed last: the peer has taken it, and means these numbers.
    pub(in super::super) const fn confirm(&mut self) {
        self.refilled = None;
    }

    /// The peer is back and has seen all up to `seen`. What lies behind it goes back to the host: it may have ended while nobody
    /// was there, and comes again under another number if it has not. Volatile messages do not.
    pub(in super::super) fn resume(&mut self, seen: u64, now: Timestamp) {
        self.cursor = seen.saturating_add(1).max(self.base);
        self.progress = now;
        for number in self.cursor..self.next() {
            let Some(index) = number.checked_sub(self.base).and_then(|i| usize::try_from(i).ok()) else {
                continue;
            };
            let (missed, outcome) = match self.slots.get(index) {
                // Its place is none of a log.
                Some(Slot::Open(item, _)) if item.message.durability() == Durability::Volatile => {
                    (Missed::new(1, GapReason::Volatile), Some(Outcome::Unconfirmed))
                }
                Some(Slot::Open(item, _)) if expires(item) <= now => {
                    let Place { lane, seq } = item.place;
                    let missed = Missed::new(1, GapReason::Expired).between(lane, seq, seq);
                    (missed, Some(Outcome::Disconnected))
                }
                Some(Slot::Open(..)) => (NOTHING, Some(Outcome::Busy(Duration::ZERO))),
                // Whoever told of it tells of it again over this connection.
                Some(Slot::Told(..)) => (NOTHING, None),
                _ => continue,
            };
            self.refilled = Some(self.refilled.map_or(number, |first| first.min(number)));
            match outcome {
                Some(outcome) => {
                    if let Some(Slot::Open(item, _)) = self.finish(number) {
                        self.outcomes.push((item.place, outcome));
                    }
                }
                None => {
                    self.untold = true;
                    self.gap_decided();
                }
            }
            if let Some(slot) = self.slots.get_mut(index) {
                *slot = Slot::Gap(missed);
            }
        }
    }

    /// Gives back what waits.
    pub(in super::super) fn park(&mut self, busy: Duration) {
        let waiting = self.waiting.iter_mut().flat_map(|queue| queue.drain(..));
        self.outcomes.extend(waiting.map(|(item, _)| (item.place, Outcome::Busy(busy))));
    }

    /// Since when what has waited longest does.
    pub(in super::super) fn oldest(&self) -> Option<Timestamp> {
        self.waiting.iter().filter_map(|queue| queue.front().map(|(_, since)| *since)).min()
    }

    /// Gives back what waits in lanes whose first message was offered no later than this: the window is smaller than what the
    /// host offers, and what only waits must not be taken for a failed attempt.
    pub(in super::super) fn park_older(&mut self, than: Timestamp) {
        let is_old =
            |queue: &&mut VecDeque<(Item, Timestamp)>| queue.front().is_some_and(|(_, since)| *since <= than);
        let waiting = self.waiting.iter_mut().filter(is_old).flat_map(|queue| queue.drain(..));
        self.outcomes.extend(waiting.map(|(item, _)| (item.place, Outcome::Busy(Duration::ZERO))));
    }
}
