//! That what takes another place is what was there, and that what must be kept is.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::plan::Plan;
use super::Oracle;
use crate::config::OnFailure;
use crate::id::UserId;
use crate::machine::EntryRef;
use crate::message::{Message, Priority};
use crate::record::{Accept, Admission, End, LaneId, Origin, Record, Seq};
use crate::status::EndReason;

/// A message without what a move may change.
fn bare(message: &Message) -> Message {
    let message = message.clone().without_schedule().without_parent().without_devices();
    message.with_priority(Priority::Normal)
}

impl Oracle {
    /// An end, and the acceptance right before it, if that is what stands there. `letters` are dead letters of the user
    /// that come before it in the same group.
    pub(super) fn check_place(
        &mut self,
        accept: Option<&Arc<Accept>>,
        end: &End,
        seq: Seq,
        plan: &Plan,
        letters: usize,
    ) {
        let Some(old) = self.messages.get(&end.seq).map(|kept| Arc::clone(&kept.accept)) else { return };
        let kept = |kept: &super::Kept| {
            kept.accept.lane() == LaneId::Dead && kept.accept.message.recipient() == &end.user
        };
        let has_kept = self.messages.values().filter(|found| kept(found)).count() + letters;
        let dead = self.kept().filter(|(_, kept)| kept.accept.lane() == LaneId::Dead);
        let all = dead.count() as u64;
        let keeps = self.messages.values().filter(|found| kept(found) && found.end.is_none()).count();
        let wrong = match accept.map(|accept| (accept, accept.admission)) {
            Some((accept, Admission::Moved)) if end.reason == EndReason::Moved => {
                let early = |at| accept.lane().priority().is_some() && at > end.at;
                match () {
                    () if bare(&accept.message) != bare(&old.message) => Some("moved as another message"),
                    () if accept.expires() != old.expires() => Some("moved with another expiry"),
                    () if old.message.not_before().is_some_and(early) => Some("moved before its time"),
                    () => None,
                }
            }
            Some((accept, Admission::Requeued { possibly_delivered })) => {
                self.went_to.insert(end.seq, seq.prev());
                let known = matches!(old.admission, Admission::Buried(burial) if burial.possibly_delivered);
                match () {
                    () if accept.message != old.message => Some("sent again as another message"),
                    () if accept.at != end.at => Some("sent again as if it had waited"),
                    () if possibly_delivered != known => Some("sent again without knowing where it was"),
                    () => None,
                }
            }
            Some((accept, Admission::Buried(burial))) => {
                self.went_to.insert(end.seq, seq.prev());
                let told = (burial.attempts, burial.possibly_delivered, burial.reason);
                match () {
                    () if accept.message != old.message || accept.at != old.at => {
                        Some("kept as another message")
                    }
                    () if told != (end.attempts, end.possibly_delivered, end.reason) => {
                        Some("kept with a lie")
                    }
                    () if keeps >= plan.config.max_dead_letters as usize => Some("kept over the bound"),
                    // Each shard holds its part, which is the whole where there is one.
                    () if plan.shards == 1 && !plan.reshards && all >= plan.config.max_total_dead_letters => {
                        Some("kept over the bound of all")
                    }
                    () => None,
                }
            }
            _ => {
                let policy = end.lane.priority().map(|priority| plan.config.on_failure[priority.index()]);
                let fits = plan.config.max_dead_letters > 0
                    && plan.config.max_total_dead_letters >= 1000
                    && plan.config.max_total_dead_bytes >= 1 << 20
                    && old.message.cost() <= plan.config.max_dead_bytes;
                let undeliverable = matches!(end.reason, EndReason::Dead | EndReason::Rejected);
                let must_be_kept = undeliverable
                    && end.upgrades.is_none()
                    && policy.is_some_and(|policy| policy != OnFailure::Skip);
                (must_be_kept && fits && has_kept == 0).then_some("not kept, though there was room")
            }
        };
        if let Some(wrong) = wrong {
            self.fail(format!("{:?} was {wrong}: {end:?}", end.seq));
        }
    }

    /// What was dropped gave way to a message of the same user that is no less urgent, in the same commit.
    pub(super) fn check_evicted(&mut self, newcomer: Option<&Arc<Accept>>, end: &End) {
        let old = self.messages.get(&end.seq).map(|kept| Arc::clone(&kept.accept));
        let fits = newcomer.zip(old.as_ref()).is_some_and(|(newcomer, old)| {
            newcomer.admission == Admission::New
                && newcomer.message.recipient() == &end.user
                && newcomer.message.priority() <= old.message.priority()
                && end.lane.priority().is_some()
        });
        if !fits {
            self.fail(format!("{:?} was dropped for {newcomer:?}: {end:?}", end.seq));
        }
    }

    /// Whether a message of another engine was taken.
    pub(in super::super) fn has_taken(&self, user: &UserId, origin: Origin) -> bool {
        self.origins.contains(&(user.clone(), origin))
    }

    /// Watchers were told that a message waits elsewhere: in one place, or in one for each of the devices it is for now.
    pub(in super::super) fn has_moved(&mut self, from: EntryRef, to: &[EntryRef]) {
        let copies = |place: &Seq| match from.lane.priority() {
            Some(_) => BTreeSet::from([*place]),
            None => self.with_copies(*place),
        };
        let said: BTreeSet<_> = to.iter().map(|to| to.seq).collect();
        let moved_to = self.moved_to.get(&from.seq).map(copies);
        if moved_to.as_ref() != Some(&said) {
            self.fail(format!("{from:?} was said to have moved to {to:?}, but it went to {moved_to:?}"));
        }
    }

    /// Where a message is now, also as a dead letter, or sent again.
    pub(super) fn place_followed(&self, mut seq: Seq) -> Seq {
        while let Some(next) = self.moved_to.get(&seq).or_else(|| self.went_to.get(&seq)) {
            seq = *next;
        }
        seq
    }
}

/// Dead letters of the end's user among these records.
pub(super) fn letters_before(group: &[(Seq, Record)], end: &End, seq: Seq) -> usize {
    let is_letter = |record: &Record| match record {
        Record::Accept(accept) => accept.lane() == LaneId::Dead && accept.message.recipient() == &end.user,
        _ => false,
    };
    group.iter().filter(|(place, record)| *place < seq && is_letter(record)).count()
}
