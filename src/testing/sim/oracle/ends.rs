//! How messages may end, and that the counters and the machine's memory say the same.

use std::sync::Arc;

use super::super::plan::Plan;
use super::dependents::Waits;
use super::{Kept, Oracle, identity};
use crate::config::Overflow;
use crate::id::UserId;
use crate::machine::{Holdings, LaneSnapshot, UserSnapshot};
use crate::record::{Accept, Admission, Backlog, Counters, End, LaneId, Seq};
use crate::status::EndReason;

impl Oracle {
    pub(super) fn fold_end(&mut self, plan: &Plan, seq: Seq, end: &End) {
        self.latest = self.latest.max(end.at);
        self.ends.insert(seq, end.clone());
        let moved_within = self.has_moved_within(end);
        let was_elsewhere = self.was_elsewhere(end);
        let may_have_arrived = self.may_have_arrived(end.seq);
        let Some(kept) = self.messages.get_mut(&end.seq) else {
            return self
                .fail(format!("{:?} recorded for {:?}, which was never accepted", end.reason, end.seq));
        };
        let before = kept.end;
        let accept = Arc::clone(&kept.accept);
        let message = &accept.message;
        let justified = match end.reason {
            EndReason::Delivered if end.lane == LaneId::Dead => true,
            EndReason::Delivered | EndReason::Unconfirmed | EndReason::Rejected => {
                kept.said.contains(&end.reason)
            }
            // Joined to what has taken its place, which is checked with the group.
            EndReason::Replaced if message.collapse_key().is_some() => true,
            // To another place of its lane, which it was about to crowd.
            EndReason::Moved if moved_within => true,
            EndReason::Moved if self.dependents.get(&end.seq).is_some_and(Waits::may_go) => true,
            EndReason::Cancelled if self.dependents.get(&end.seq).is_some_and(Waits::must_end) => true,
            EndReason::Moved
                if message.after().is_none() && message.not_before().is_some_and(|at| at <= end.at) =>
            {
                true
            }
            // Joined to what has taken its place, too.
            EndReason::Evicted => plan.config.overflow != Overflow::Reject,
            EndReason::Elsewhere => was_elsewhere,
            EndReason::DeviceGone => Self::is_leaving(&self.slots, &end.user, accept.device),
            EndReason::Cancelled
                if end.lane == LaneId::Dead && Self::is_leaving(&self.slots, &end.user, accept.device) =>
            {
                true
            }
            EndReason::Expired => end.at >= kept.accept.expires(),
            EndReason::Dead => end.attempts >= plan.config.max_attempts.get(),
            EndReason::Cancelled | EndReason::Replaced | EndReason::Moved => {
                Self::was_withdrawn(&self.withdrawals, &accept, end.reason)
            }
        };
        let open = matches!(end.reason, EndReason::Delivered | EndReason::Unconfirmed | EndReason::Rejected);
        let hidden = !open && kept.offered && !end.possibly_delivered;
        let wrong = if message.recipient() != &end.user || accept.lane() != end.lane {
            Some("under another user or lane")
        } else if before != end.upgrades {
            Some("without knowing what it upgrades")
        } else if before == Some(EndReason::Delivered) {
            Some("after it was delivered")
        } else if !justified {
            Some("without a cause")
        } else if hidden {
            Some("without admitting that it may have been delivered")
        } else if !open && end.possibly_delivered && !may_have_arrived {
            Some("as if it might have been delivered, though nobody can have it")
        } else if before.is_none() && end.cost != message.cost() {
            Some("with another cost")
        } else {
            None
        };
        kept.end = Some(end.reason);
        kept.was_upgraded |= end.upgrades.is_some();
        if let Some(wrong) = wrong {
            self.fail(format!(
                "{:?} (before: {before:?}) recorded for {:?} {wrong}: {end:?}",
                end.reason, end.seq
            ));
        }
        self.note_withdrawn(end.seq, end.reason);
        self.fold_dependent_end(end);
        self.fold_ledger(seq, end);
        if end.lane == LaneId::Dead {
            self.counters.unburied += 1;
            self.counters.unburied_bytes += end.cost;
        }
        if end.counts() {
            self.count(end, before);
        }
        if end.lane == LaneId::Dead && end.reason == EndReason::Delivered {
            self.check_exhumed(end, &accept);
        }
    }

    /// Whether somebody may have what is at a place, as far as an engine can know: it was offered, or may have been in a life
    /// that has ended; or it has settled, and what came behind it in its lane was offered. Then the engine need not know of
    /// each of those that it has not in memory any more.
    pub(super) fn may_have_arrived(&self, seq: Seq) -> bool {
        let Some(kept) = self.messages.get(&seq) else { return false };
        let (accept, user) = (&kept.accept, kept.accept.message.recipient());
        let lane = accept.lane();
        let was_before = match accept.admission {
            Admission::Buried(burial) => burial.possibly_delivered,
            Admission::Requeued { possibly_delivered } => possibly_delivered,
            Admission::New | Admission::Moved => false,
        };
        let exposed = match lane.slot() {
            Some(slot) => {
                self.slots.get(user).and_then(|all| all.get(&slot)).map(|known| known.exposed_before)
            }
            None => self.exposed_before.get(user).copied(),
        };
        let was_exposed = lane.priority().is_some() && exposed.is_some_and(|epoch| seq.epoch() <= epoch);
        let is_of_lane = |other: &Kept| {
            other.offered && other.accept.lane() == lane && other.accept.message.recipient() == user
        };
        let behind = || self.messages.range(seq..).any(|(_, other)| is_of_lane(other));
        kept.offered || was_before || was_exposed || seq < self.settled && behind()
    }

    /// Whether a scheduled message went to another place of its lane.
    fn has_moved_within(&self, end: &End) -> bool {
        let to = self.moved_to.get(&end.seq).and_then(|to| self.messages.get(to));
        end.lane == LaneId::Scheduled && to.is_some_and(|kept| kept.accept.lane() == LaneId::Scheduled)
    }

    /// A dead letter is dropped by itself only when its message has arrived.
    fn check_exhumed(&mut self, end: &End, letter: &Accept) {
        let same = |kept: &Kept| identity(&kept.accept.message) == identity(&letter.message);
        if !self.messages.values().any(|kept| same(kept) && kept.said.contains(&EndReason::Delivered)) {
            self.fail(format!("the dead letter {:?} was dropped, but nobody had got it", end.seq));
        }
    }

    fn count(&mut self, end: &End, before: Option<EndReason>) {
        self.counters.ended[end.reason.index()] += 1;
        match before {
            Some(before) => {
                self.counters.ended[before.index()] -= 1;
                self.counters.upgraded += 1;
            }
            None => self.counters.ended_bytes += end.cost,
        }
    }

    /// The ledger equation, and the engine's counters against ours. Only when every durable record was reported.
    pub(in super::super) fn check_ledger(&mut self, theirs: &Counters) {
        let live = self.live().count() as u64;
        // Of what waits, our own fold is the messages themselves.
        let counted = Counters { backlog: self.counters.backlog, ..*theirs };
        if counted != self.counters {
            let what = format!("ledger: the engine counts {theirs:?}, its records say {:?}", self.counters);
            self.fail(what);
        } else if self.counters.live() != live {
            let what = format!("ledger: accepted - ended = {}, but {live} are live", self.counters.live());
            self.fail(what);
        } else if let Some(what) = self.what_is_wrong_with_backlog(&theirs.backlog) {
            self.fail(format!("backlog: {what}"));
        }
    }

    /// What waits, by lane, against all places that have not ended; and how many of them were tried.
    fn what_is_wrong_with_backlog(&self, theirs: &Backlog) -> Option<String> {
        for lane in LaneId::ALL {
            // What is for a certain device counts with the others of its priority.
            let of = |accept: &Accept| accept.lane().priority().map_or(accept.lane(), LaneId::from);
            let of_lane = || self.kept().filter(|(_, kept)| of(&kept.accept) == lane);
            let (depth, said) = (of_lane().count() as u64, theirs.depth(lane));
            if depth != said {
                return Some(format!("{depth} wait in {lane:?}, the engine counts {said}"));
            }
            if theirs.oldest(lane).is_some() != (depth > 0) {
                return Some(format!(
                    "{depth} wait in {lane:?}, and the oldest is {:?}",
                    theirs.oldest(lane)
                ));
            }
        }
        let retrying = self.kept().filter(|(_, kept)| kept.attempts > 0).count() as u64;
        let said = theirs.retrying();
        (retrying != said).then(|| format!("{retrying} wait for another attempt, the engine counts {said}"))
    }

    /// What the machine holds of a user against the fold of the records.
    pub(in super::super) fn check_user(
        &mut self,
        user: &UserId,
        settled: Seq,
        held: &UserSnapshot,
        max_marks: usize,
    ) {
        let mut wrong = Vec::new();
        let mut totals = Holdings::default();
        let theirs = self.messages.iter().filter(|(_, kept)| kept.accept.message.recipient() == user);
        for (seq, kept) in theirs {
            let message = &kept.accept.message;
            let empty = LaneSnapshot::default();
            let lane = held.lane(kept.accept.lane()).unwrap_or(&empty);
            let (has, live) = (lane.live.binary_search(seq).is_ok(), kept.end.is_none());
            if live {
                totals.add(kept.accept.lane(), message.cost());
            }
            if live && *seq >= settled && !has {
                wrong.push(format!("{seq:?} is live and not settled, but not in memory"));
            }
            if !live && has {
                wrong.push(format!("{seq:?} has ended, but is in memory"));
            }
            if live && (*seq <= lane.cursor || lane.ended.binary_search(seq).is_ok()) {
                wrong.push(format!("{seq:?} is live, but its lane says it has ended"));
            }
            let attempts = lane.attempts.iter().find(|(place, ..)| place == seq).map_or(0, |(_, n, _)| *n);
            if live && has && attempts != kept.attempts {
                wrong.push(format!("{seq:?} has {} attempts, in memory {attempts}", kept.attempts));
            }
        }
        for lane in held.lanes.iter().chain(held.device_lanes.values()) {
            let unknown = lane.live.iter().find(|seq| !self.messages.contains_key(seq));
            wrong.extend(unknown.map(|seq| format!("{seq:?} is in memory, but not durable")));
        }
        if held.totals.is_some_and(|held| held != totals) {
            wrong.push(format!("totals are {totals:?}, in memory {:?}", held.totals));
        }
        let dependents = held.dependents.as_deref();
        wrong.extend(dependents.and_then(|rows| self.what_is_wrong_with_dependents(user, rows)));
        wrong.extend(self.what_is_wrong_with_devices(user, held));
        wrong.extend(self.what_is_wrong_with_reads(user, held, max_marks));
        let ledger = held.ledger.as_ref().and_then(|ledger| self.what_is_wrong_with_ledger(user, ledger));
        wrong.extend(ledger.map(|what| format!("the ledger has {what}: {:?}", held.ledger)));
        if let Some(what) = wrong.into_iter().next() {
            self.fail(format!("state is not the fold of the records, user {user}: {what}"));
        }
    }
}
