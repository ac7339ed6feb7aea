//! What the ledgers of users should say: how messages ended that were not delivered, and of which of them their receivers
//! have not been told.

use std::collections::BTreeMap;

use super::Oracle;
use crate::id::{DeviceId, MessageId, UserId};
use crate::machine::{CopyStanding, FailedAttempt, Located, Outcome, Target};
use crate::record::{Admission, End, Gap, LaneId, LedgerRow, LedgerRows, Seq, Slot, Told};
use crate::status::{EndReason, Status};

/// What one user's ledger should say.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    /// All rows there ever were and still should be, by the place of the message.
    rows: BTreeMap<Seq, LedgerRow>,
    /// All there ever were.
    ever: BTreeMap<Seq, LedgerRow>,
    /// By lane: messages that expired, could not be delivered, and gave way, that nobody was told of.
    untold: BTreeMap<LaneId, [u64; 3]>,
}

fn counts(gap: &Gap) -> [u64; 3] {
    [gap.expired, gap.dead, gap.evicted].map(u64::from)
}

impl Oracle {
    /// Folds an end, independently of how the machine does it.
    pub(super) fn fold_ledger(&mut self, ended: Seq, end: &End) {
        let id = self.messages.get(&end.seq).map(|kept| kept.accept.message.id());
        let expected = self.ledgers.entry(end.user.clone()).or_default();
        if end.upgrades.is_some() {
            expected.rows.remove(&end.seq);
            return;
        }
        if end.lane == LaneId::Dead || matches!(end.reason, EndReason::Moved | EndReason::Delivered) {
            return;
        }
        let End { lane, seq: place, reason, possibly_delivered, attempts, at, .. } = *end;
        let row = LedgerRow { id, ended, lane, place, reason, possibly_delivered, attempts, at };
        expected.rows.insert(place, row);
        expected.ever.insert(place, row);
        let which = [EndReason::Expired, EndReason::Dead, EndReason::Evicted];
        if let Some(i) = which.iter().position(|known| *known == reason) {
            expected.untold.entry(lane).or_default()[i] += 1;
        }
    }

    /// A dead letter is sent again: how it had ended says nothing any more.
    pub(super) fn lives_again(&mut self, user: &UserId, id: MessageId, slot: Option<Slot>) {
        let lives = |row: &LedgerRow| row.id == Some(id) && row.lane.slot() == slot;
        self.ledgers.entry(user.clone()).or_default().rows.retain(|_, row| !lives(row));
    }

    pub(super) fn fold_told(&mut self, told: &Told) {
        let untold =
            self.ledgers.entry(told.user.clone()).or_default().untold.entry(told.gap.lane).or_default();
        let mut left = *untold;
        let mut enough = true;
        for (left, told) in left.iter_mut().zip(counts(&told.gap)) {
            enough &= *left >= told;
            *left = left.saturating_sub(told);
        }
        *untold = left;
        if !enough {
            self.fail(format!("{} was told of more than there was: {:?}", told.user, told.gap));
        }
    }

    /// The device in this slot is no more: nobody else missed anything of it.
    pub(super) fn fold_gone(&mut self, user: &UserId, slot: Slot) {
        self.ledgers.entry(user.clone()).or_default().untold.retain(|lane, _| lane.slot() != Some(slot));
    }

    /// A sink is told of gaps. `synced` says whether the machines know all that is durable.
    pub(in super::super) fn told(
        &mut self,
        (user, device): (&UserId, &DeviceId),
        gaps: &[Gap],
        synced: bool,
    ) {
        let expected = self.ledgers.get(user);
        for gap in gaps {
            let theirs = |slot| self.slots.get(user)?.get(&slot)?.device.as_ref();
            if synced && gap.lane.slot().is_some_and(|slot| theirs(slot) != Some(device)) {
                self.fail(format!("{device} of {user} is told of {gap:?}, which another device missed"));
                return;
            }
            let untold =
                expected.and_then(|expected| expected.untold.get(&gap.lane)).copied().unwrap_or_default();
            let true_now = counts(gap).iter().zip(untold).all(|(told, untold)| *told <= untold);
            let mut inside = expected.into_iter().flat_map(|expected| expected.rows.values());
            let spans =
                inside.any(|row| row.lane == gap.lane && gap.first <= row.place && row.place <= gap.last);
            // A late confirmation may have taken every row away.
            if gap.messages() == 0 || synced && !true_now || gap.first > gap.last {
                self.fail(format!("{user} is told of {gap:?}, but there is {untold:?} (within: {spans})"));
                return;
            }
        }
    }

    /// What a machine holds of a user's ledger.
    pub(super) fn what_is_wrong_with_ledger(&self, user: &UserId, held: &LedgerRows) -> Option<&'static str> {
        let expected = self.ledgers.get(user);
        let untold: BTreeMap<_, _> = expected.into_iter().flat_map(|expected| &expected.untold).collect();
        let theirs: BTreeMap<_, _> = held.gaps.iter().map(|gap| (gap.lane, counts(gap))).collect();
        let same = theirs.keys().chain(untold.keys().copied()).all(|lane| {
            theirs.get(lane).copied().unwrap_or_default()
                == untold.get(lane).copied().copied().unwrap_or_default()
        });
        if !same {
            return Some("other gaps than its records say");
        }
        self.what_is_wrong_with_rows(user, held)
    }

    /// A ledger that was read while records may be on their way to the machine.
    pub(super) fn what_is_wrong_with_answer(&self, user: &UserId, held: &LedgerRows) -> Option<&'static str> {
        let mut rows = held.rows.iter().chain(&held.elsewhere);
        let ever = self.ledgers.get(user).map(|expected| &expected.ever);
        let is_true = |row: &LedgerRow| ever.is_some_and(|ever| ever.get(&row.place) == Some(row));
        (!rows.all(is_true)).then_some("with a row that never was true")
    }

    /// Rows that should be there are, or are said to be forgotten; and no others are there.
    fn what_is_wrong_with_rows(&self, user: &UserId, held: &LedgerRows) -> Option<&'static str> {
        let expected = self.ledgers.get(user);
        let is_true =
            |row: &LedgerRow| expected.is_some_and(|expected| expected.rows.get(&row.place) == Some(row));
        let was_elsewhere = |row: &LedgerRow| row.reason == EndReason::Elsewhere;
        let missing = |row: &LedgerRow| match was_elsewhere(row) {
            true => {
                let forgotten = held.forgotten.max(held.elsewhere_forgotten);
                !held.elsewhere.contains(row) && row.place > forgotten
            }
            false => !held.rows.contains(row) && row.place > held.forgotten,
        };
        let is_sorted = |rows: &[LedgerRow]| rows.is_sorted_by_key(|row| row.ended);
        match () {
            () if !held.rows.iter().chain(&held.elsewhere).all(is_true) => Some("a row that is not true"),
            () if !is_sorted(&held.rows) || !is_sorted(&held.elsewhere) => Some("rows out of order"),
            () if held.rows.iter().any(was_elsewhere) || !held.elsewhere.iter().all(was_elsewhere) => {
                Some("what is no loss among the losses")
            }
            () if expected.is_some_and(|expected| expected.rows.values().any(missing)) => {
                Some("a row missing that was never forgotten")
            }
            () => None,
        }
    }

    /// What was said of where a message stands. `told` says whether the machines know all that is durable.
    pub(super) fn what_is_wrong_with_place(
        &self,
        target: &Target,
        done: &Outcome,
        told: bool,
    ) -> Option<&'static str> {
        let Some(located) = &done.located else { return Some("with nothing found, and no error") };
        let same = |kept: &super::Kept| {
            let message = &kept.accept.message;
            message.recipient() == &target.user
                && message.id() == target.id
                && target.sender.as_ref().is_none_or(|sender| sender.as_ref() == message.sender())
        };
        let theirs: Vec<_> = self.messages.values().filter(|kept| same(kept)).collect();
        let ever = self.ledgers.get(&target.user).map(|expected| &expected.ever);
        let was_at = |kept: &super::Kept, reason| {
            kept.was_upgraded && kept.end == Some(EndReason::Delivered) && reason != EndReason::Delivered
        };
        // A late confirmation may be durable, and not yet known to the machine.
        let was = |reason| {
            let row = located.entry.and_then(|entry| ever.and_then(|ever| ever.get(&entry.seq)));
            row.is_some_and(|row| row.reason == reason && row.id == Some(target.id))
        };
        let ended = |reason| theirs.iter().any(|kept| kept.end == Some(reason)) || was(reason);
        // Each copy stands where it is said to, or has moved on since that was durable.
        let is_true_copy = |copy: &CopyStanding| {
            let at = copy.located.and_then(|located| located.entry);
            let kept = at.and_then(|at| self.messages.get(&at.seq));
            match (copy.located.map(|located| located.status), kept) {
                (Some(Status::Ended(reason)), Some(kept)) => {
                    let is_letter =
                        matches!(kept.accept.admission, Admission::Buried(burial) if burial.reason == reason);
                    kept.end == Some(reason) || was_at(kept, reason) || is_letter
                }
                (Some(Status::Ended(reason)), None) => {
                    let of_slot = |kept: &&&super::Kept| {
                        kept.accept.device.is_some_and(|device| device.slot == copy.slot)
                    };
                    theirs.iter().filter(of_slot).any(|kept| kept.end == Some(reason) || kept.was_upgraded)
                }
                (Some(_), kept) => kept.is_some_and(&same),
                (None, _) => true,
            }
        };
        if !done.copies.iter().all(is_true_copy) {
            return Some("with a copy that is not where it stands");
        }
        let marks = self.reads.get(&target.user);
        let is_read = |(seq, kept): (&Seq, &super::Kept)| {
            let mut marks = marks.into_iter().flatten();
            same(kept) && kept.end == Some(EndReason::Delivered) && marks.any(|(_, mark)| mark.up_to >= *seq)
        };
        if located.read.is_some() && !self.messages.iter().any(is_read) {
            return Some("and has been read, which nobody has said");
        }
        let has_failed = |failed: &FailedAttempt| {
            let kept = self.messages.get(&failed.entry.seq);
            kept.is_some_and(|kept| same(kept) && (kept.attempts >= failed.attempt || kept.end.is_some()))
        };
        if !done.failures.iter().all(has_failed) {
            return Some("after an attempt that is not durable, or was of another message");
        }
        let is_true = match located.status {
            Status::Ended(reason) => ended(reason),
            _ => located.entry.is_some_and(|entry| self.messages.get(&entry.seq).is_some_and(same)),
        };
        if told && self.hides_a_delivery(located, &theirs) {
            return Some("although another device has it");
        }
        (!is_true).then_some("which is not where it stands")
    }

    /// Whether a message is said to have ended for good without a delivery of which one copy was delivered.
    fn hides_a_delivery(&self, located: &Located, theirs: &[&super::Kept]) -> bool {
        let Status::Ended(reason) = located.status else { return false };
        let kept = located.entry.and_then(|entry| self.messages.get(&entry.seq));
        let Some(kept) = kept.filter(|_| reason != EndReason::Delivered && !located.possibly_delivered)
        else {
            return false;
        };
        // What was accepted at another time may be another one with the same id.
        let is_copy =
            |other: &&&super::Kept| other.accept.device.is_some() && other.accept.at == kept.accept.at;
        kept.accept.device.is_some()
            && theirs.iter().filter(is_copy).any(|other| other.end == Some(EndReason::Delivered))
    }
}
