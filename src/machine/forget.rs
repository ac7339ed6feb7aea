//! What leaves memory, and what is remembered of it: that it may have been offered.
//!
//! Of a message in memory it is known whether a sink was handed it in this life. Nothing of that is on disk, but that its
//! recipient was exposed in an epoch. So a lane keeps, of what has left memory, up to where something had been offered; of
//! somebody who leaves memory the machine keeps those bounds, as long as there is room for them. Behind a bound nobody has
//! got anything.

use super::Machine;
use super::entry::{Entry, EntryState};
use super::lane::Lane;
use super::user::User;
use crate::id::UserId;
use crate::record::{Accept, Admission, Epoch, Exposed, LaneId, Seq};

/// Up to where something may have been offered of what still waits, by lane.
pub(super) type Bounds = Box<[(LaneId, Seq)]>;

/// Everything up to here may have been offered to somebody exposed in this earlier epoch.
pub(super) fn through(exposed: Epoch) -> Seq {
    Seq::first_of(Epoch(exposed.0.saturating_add(1))).prev()
}

impl Lane {
    /// Whether a message was offered, or may have been.
    pub(super) fn was_exposed(&self, seq: Seq) -> bool {
        self.entry(seq).map_or(seq <= self.exposed_through, |found| found.offers > 0)
    }

    /// Whether a receiver may have a message, or what it was before it was sent again.
    pub(super) fn may_be_known(&self, seq: Seq, accept: &Accept) -> bool {
        match accept.admission {
            Admission::Buried(burial) => burial.possibly_delivered,
            Admission::Requeued { possibly_delivered: true } => true,
            _ => self.was_exposed(seq),
        }
    }

    /// What lies up to there may have been offered in an earlier life.
    pub(super) fn expose_through(&mut self, seq: Seq) {
        self.exposed_through = self.exposed_through.max(seq);
        let n = self.entries.partition_point(|entry| entry.seq <= seq);
        self.entries.iter_mut().take(n).for_each(|entry| entry.offers = entry.offers.max(1));
    }

    /// Takes a range of messages, by position, out of memory.
    fn forget(&mut self, range: core::ops::Range<usize>) {
        for entry in self.entries.drain(range) {
            if entry.offers > 0 {
                self.exposed_through = self.exposed_through.max(entry.seq);
            }
            self.due.remove(&(entry.due(), entry.seq));
            self.tried.remove(&entry.seq);
        }
    }

    /// What the store has up to this place was looked at: nothing of it lives, but what is about to end. Only of a lane that
    /// nobody is offered anything from now: what becomes known by it is not queued.
    pub(super) fn clear_through(&mut self, seq: Seq) {
        self.cleared = self.cleared.max(seq);
        self.begin_behind_cleared();
    }

    /// An end is durable: nothing in the store comes before what was not cleared, as far as ends are durable.
    pub(super) fn begin_behind_cleared(&mut self) {
        let Some(after) = self.more_after.filter(|_| self.loading.is_none()) else { return };
        let until = self.ending.first().map_or(self.cleared, |first| self.cleared.min(first.prev()));
        self.more_after = (until < Seq::MAX).then_some(until.max(after));
    }

    /// Drops what has settled from memory, for a user nobody is attached to: it is read again when needed.
    pub(super) fn drop_settled(&mut self, settled: Seq) -> usize {
        let n = self.entries.partition_point(|entry| entry.seq < settled);
        // A failed attempt that is not durable yet is remembered in memory only.
        let at_rest = |entry: &Entry| {
            let durable = self.attempts.get(&entry.seq).map_or(0, |(attempts, _)| *attempts);
            matches!(entry.state, EntryState::Waiting | EntryState::Backoff(_)) && entry.failures == durable
        };
        if !self.entries.iter().take(n).all(at_rest) {
            return 0;
        }
        let first = self.entries.front().map(|entry| entry.seq.prev());
        self.forget(0..n);
        if n > 0 {
            // A page under way may be older than what it would now have to contain.
            self.loading = None;
        }
        if let (Some(first), true) = (first, n > 0) {
            self.begin_store_at(first);
        }
        n
    }

    /// Drops `seq` and the settled messages behind it from memory if at least `keep` come before it, and all of them wait
    /// and were never offered, or may have been as far as can be said afterwards.
    pub(super) fn spill_from(&mut self, seq: Seq, settled: Seq, keep: usize) -> usize {
        let Ok(from) = self.position(seq) else { return 0 };
        if from < keep {
            return 0;
        }
        let to = self.entries.partition_point(|entry| entry.seq < settled);
        let exposed_through = self.exposed_through;
        let fresh = |entry: &Entry| {
            entry.state == EntryState::Waiting && (entry.offers == 0 || entry.seq <= exposed_through)
        };
        if !self.entries.range(from..to.max(from)).all(fresh) {
            return 0;
        }
        self.forget(from..to.max(from));
        self.begin_store_at(seq.prev());
        self.rebuild_queues(keep);
        to.saturating_sub(from)
    }

    /// What was in memory behind this place is in the store only.
    fn begin_store_at(&mut self, seq: Seq) {
        self.more_after = Some(self.more_after.map_or(seq, |after| after.min(seq)));
        self.cleared = self.cleared.min(seq);
    }
}

impl User {
    /// Their row was read, which says in which epoch they and their devices were exposed last. `known` is what was kept when
    /// they left memory; what is in memory has come since then.
    pub(super) fn recall_exposed(&mut self, epoch: Epoch, applied: Seq, known: Option<&Bounds>) {
        let lanes = self.lane_ids();
        for lane in lanes.into_iter().filter(|lane| lane.priority().is_some()) {
            let of_slot = lane.slot().and_then(|slot| self.slots.get(&slot)).map(|state| state.exposed);
            let exposed = if lane.slot().is_some() { of_slot.unwrap_or_default() } else { self.exposed };
            if exposed < epoch {
                self.lane(lane).expose_through(through(exposed));
                continue;
            }
            let of_lane =
                |known: &Bounds| known.iter().find(|(other, _)| *other == lane).map(|(_, seq)| *seq);
            let bound = known.map_or(applied.prev(), |known| of_lane(known).unwrap_or(Seq::ZERO));
            let found = self.lane(lane);
            found.exposed_through = found.exposed_through.max(bound);
        }
    }
}

impl Machine {
    pub(super) fn apply_exposed(&mut self, seq: Seq, exposed: &Exposed) {
        let is_live = self.is_live;
        let user = self.user_mut(&exposed.user);
        if is_live {
            user.exposing = false;
            // Were it noted now, the row that is being read could not say any more what was exposed before.
            user.exposed_unread = !user.row_known;
        }
        if !user.exposed_unread {
            user.exposed = user.exposed.max(exposed.epoch);
        }
        if !is_live {
            let exposed = through(user.exposed);
            user.lanes.iter_mut().for_each(|lane| lane.expose_through(exposed));
        }
        self.touch(&exposed.user, seq);
    }

    /// Somebody leaves memory who was exposed in this epoch: their row says so, but not what they were offered.
    pub(super) fn remember_exposed(&mut self, id: &UserId) {
        let Some(user) = self.users.get(id).filter(|user| user.row_known && user.exposed == self.epoch)
        else {
            return;
        };
        let bounds = user.lane_ids().into_iter().filter_map(|lane| {
            let found = user.lane_ref(lane);
            (found.exposed_through > found.cursor).then_some((lane, found.exposed_through))
        });
        let bounds = bounds.collect();
        self.exposed_here.put(self.digester.user(Some(id)), bounds);
    }
}
