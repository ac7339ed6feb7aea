//! That nothing goes before what it waits for, and nothing waits for ever.

use std::collections::BTreeSet;

use super::super::plan::Plan;
use super::{Oracle, identity};
use crate::id::UserId;
use crate::machine::{Accepted, Refusal, Ticket};
use crate::message::{Message, Otherwise};
use crate::record::{Accept, DependentRow, End, LaneId, Parent, ParentEnd, Seq};
use crate::status::EndReason;

/// What waits for another message.
#[derive(Clone, Debug)]
pub(super) struct Waits {
    user: UserId,
    otherwise: Otherwise,
    /// Where that is: of a message for several devices, all its copies that have not ended.
    parent: BTreeSet<Seq>,
    /// Whether that was delivered, once it has ended.
    delivered: Option<bool>,
}

impl Waits {
    /// Whether it may take its place.
    pub(super) fn may_go(&self) -> bool {
        self.delivered.is_some_and(|delivered| delivered || self.otherwise == Otherwise::Release)
    }

    /// Whether it ends because of its parent.
    pub(super) fn must_end(&self) -> bool {
        self.delivered == Some(false) && self.otherwise == Otherwise::Cancel
    }
}

impl Oracle {
    /// Whether a message waits for one that has not ended.
    pub(in super::super) fn waits_for_another(&self, seq: Seq) -> bool {
        self.dependents.get(&seq).is_some_and(|waits| waits.delivered.is_none())
    }

    pub(super) fn fold_dependent(&mut self, seq: Seq, accept: &Accept) {
        let message = &accept.message;
        let Some((after, parent)) = message.after().zip(accept.parent) else {
            if message.after().is_some() || accept.parent.is_some() {
                self.fail(format!("{seq:?} waits for something, but not for what: {accept:?}"));
            }
            return;
        };
        let parent_identity = (message.sender().cloned(), message.recipient().clone(), after.id);
        let is_parent = |place: &Seq| {
            let kept = self.messages.get(place);
            kept.filter(|kept| identity(&kept.accept.message) == parent_identity)
        };
        let has_ended = |delivered: bool| {
            let ended = |kept: &super::Kept| match kept.end {
                Some(end) => !delivered || end == EndReason::Delivered,
                None => kept.accept.lane() == LaneId::Dead && !delivered,
            };
            self.messages.keys().filter_map(is_parent).any(ended)
        };
        let places: BTreeSet<_> = parent.places().map(|(_, seq)| seq).collect();
        let lives = |place: &Seq| is_parent(place).is_some_and(|kept| kept.end.is_none());
        let is_true = match parent == Parent::ENDED {
            true => has_ended(after.otherwise == Otherwise::Cancel),
            false => places == self.with_copies(parent.seq).into_iter().filter(lives).collect(),
        };
        let delivered = (parent == Parent::ENDED).then_some(true);
        let (user, otherwise) = (message.recipient().clone(), after.otherwise);
        self.dependents.insert(seq, Waits { user, otherwise, parent: places, delivered });
        if !is_true {
            self.fail(format!("{seq:?} waits for {parent:?}, which is not what it was to wait for"));
        }
    }

    /// Folds an end, independently of how the machine does it.
    pub(super) fn fold_dependent_end(&mut self, end: &End) {
        if end.upgrades.is_some() || end.lane == LaneId::Dead {
            return;
        }
        self.dependents.remove(&end.seq);
        let moved_to = self.moved_to.get(&end.seq).filter(|_| end.reason == EndReason::Moved);
        let moved_to = moved_to.map(|place| self.with_copies(*place));
        let delivered = matches!(end.reason, EndReason::Delivered | EndReason::Elsewhere);
        for waits in self.dependents.values_mut() {
            if waits.delivered.is_some() || !waits.parent.remove(&end.seq) {
                continue;
            }
            match &moved_to {
                Some(to) => waits.parent.extend(to),
                None if delivered || waits.parent.is_empty() => waits.delivered = Some(delivered),
                None => {}
            }
        }
    }

    /// Where a message is, and its copies for other devices, whether they have ended or not.
    pub(super) fn with_copies(&self, place: Seq) -> BTreeSet<Seq> {
        let device = self.messages.get(&place).and_then(|kept| kept.accept.device);
        let others = device.into_iter().flat_map(|device| device.others(place).map(|(_, seq)| seq));
        others.chain([place]).collect()
    }

    /// After every group: nobody has more of them than may be.
    pub(super) fn check_dependents(&mut self, plan: &Plan) {
        let max = plan.config.max_dependents.get();
        let of = |user: &UserId| self.dependents.values().filter(|waits| &waits.user == user).count();
        let over = self.dependents.values().find(|waits| of(&waits.user) > max);
        if let Some(user) = over.map(|waits| waits.user.clone()) {
            self.fail(format!("{user} has more than {max} messages that wait for others"));
        }
    }

    pub(super) fn what_is_wrong_with_dependents(
        &self,
        user: &UserId,
        rows: &[DependentRow],
    ) -> Option<String> {
        let ours: Vec<_> = self.dependents.iter().filter(|(_, waits)| &waits.user == user).collect();
        let is_same = |((seq, waits), row): (&(&Seq, &Waits), &DependentRow)| {
            let ended = row.ended.map(|ended| ended == ParentEnd::Delivered);
            // Where the parent was matters no more once it has ended.
            let parent: BTreeSet<_> = row.parent.places().map(|(_, seq)| seq).collect();
            let same_parent = waits.parent == parent || ended.is_some();
            **seq == row.seq && waits.delivered == ended && same_parent
        };
        let same = ours.len() == rows.len() && ours.iter().zip(rows).all(is_same);
        (!same).then(|| format!("{ours:?} wait for others, in memory {rows:?}"))
    }

    /// A message was handed to the engine. `told` says whether the machines know all that is durable.
    pub(in super::super) fn sent_after(&mut self, ticket: Ticket, message: &Message, told: bool) {
        let Some(after) = message.after().filter(|_| told) else { return };
        let parent = (message.sender().cloned(), message.recipient().clone(), after.id);
        let is_it = |(_, kept): &(&Seq, &super::Kept)| identity(&kept.accept.message) == parent;
        let place = self.live().find(is_it).map(|(seq, _)| *seq);
        self.parents.extend(place.map(|place| (ticket, place)));
    }

    /// What was said of a parent is true.
    pub(super) fn check_parent(
        &mut self,
        ticket: Ticket,
        message: &Message,
        result: &Result<Accepted, Refusal>,
    ) {
        let place = self.parents.remove(&ticket).map(|place| self.place_of(place));
        let lives = place.filter(|place| self.messages.get(place).is_some_and(|kept| kept.end.is_none()));
        let Some(after) = message.after() else { return };
        let parent = (message.sender().cloned(), message.recipient().clone(), after.id);
        let mut theirs = self.messages.values().filter(|kept| identity(&kept.accept.message) == parent);
        let wrong = match result {
            Err(Refusal::UnknownParent) => lives.is_some(),
            Err(Refusal::ParentEnded { .. }) => {
                let ended = |kept: &super::Kept| kept.end.is_some() || kept.accept.lane() == LaneId::Dead;
                lives.is_some() || after.otherwise == Otherwise::Release || !theirs.any(ended)
            }
            _ => false,
        };
        if wrong {
            self.fail(format!("{} was refused ({result:?}), but {lives:?} waits", message.id()));
        }
    }
}
