//! What an operation does to a message that it has found, and to its copies for other devices: they are one message to
//! whoever withdraws, replaces or moves it.

use std::sync::Arc;

use super::Machine;
use super::accept::Newcomer;
use super::commit::{Instead, Pending, PendingAccept, Unit};
use super::entry::EntryState;
use super::io::{Accepted, EntryRef};
use super::operate::{Open, OperationId, Work};
use super::operation::{Operation, Outcome};
use super::places::Stored;
use super::refusal::OperationError;
use super::user::Totals;
use crate::id::{MessageId, UserId};
use crate::message::{Message, Priority};
use crate::record::{Accept, Admission, ForDevice, LaneId, Parent, Slots};
use crate::status::EndReason;

/// An operation's answer when the message stays where it is.
type Stays = Box<Result<Outcome, OperationError>>;

impl Machine {
    /// The copies of a message for other devices that have not ended, in the order of their places.
    pub(super) fn other_copies(
        &mut self,
        id: &UserId,
        entry: EntryRef,
        device: Option<ForDevice>,
    ) -> Vec<EntryRef> {
        let (Some(device), Some(priority)) = (device, entry.lane.priority()) else {
            return Vec::new();
        };
        let collected = self.collected;
        let user = self.user_mut(id);
        let lives = |entry: &EntryRef| {
            let lane = user.lane_ref(entry.lane);
            match lane.entry(entry.seq) {
                Some(found) => !matches!(found.state(), EntryState::Ending { .. }),
                // What has not settled is in memory as long as it lives.
                None => {
                    entry.seq < collected
                        && !lane.is_known(entry.seq)
                        && entry.seq > lane.cursor
                        && !lane.ended.contains(&entry.seq)
                        && !lane.ending.contains(&entry.seq)
                }
            }
        };
        let others = device.others(entry.seq);
        let others = others.map(|(slot, seq)| EntryRef { lane: LaneId::Device(slot, priority), seq });
        others.filter(lives).collect()
    }

    /// Records what comes instead of a message, if something does: then its end must be joined to that. `Err` with the
    /// answer when the message stays where it is.
    pub(super) fn put_in_place(
        &mut self,
        operation: OperationId,
        entry: EntryRef,
        old: &Arc<Accept>,
        offered: bool,
    ) -> Result<bool, Stays> {
        let stays = |answer| Err(Box::new(answer));
        let Some(Open { work: Work::Asked(_, asked), .. }) = self.operations.open.get(&operation) else {
            return Ok(false);
        };
        let asked = asked.clone();
        match &asked {
            Operation::Reprioritise(_, priority) if *priority == old.message.priority() => {
                stays(Ok(Outcome::known(Accepted::of(entry, old).again())))
            }
            Operation::Reprioritise(..) if offered => stays(Err(OperationError::Offered)),
            Operation::Reprioritise(_, priority) => self.move_in_place(operation, entry, old, *priority),
            Operation::Requeue(_) => {
                self.claim(&old.message, 1, Totals::default()).map_err(|refusal| Err(refusal.into()))?;
                self.send_again(operation, entry, old, false);
                Ok(true)
            }
            Operation::Replace(_, message)
                if message.after().is_some_and(|after| Some(after.id) != parent_of(old)) =>
            {
                stays(Err(OperationError::Unfit))
            }
            Operation::Replace(_, message) => {
                let parent = self.parent_in_place(message, entry)?;
                let message = super::accept::at_once_if_due(message.clone(), self.now);
                let key = match self.judge_newcomer(&message) {
                    Ok(Newcomer::Fits(key)) => key,
                    // Somebody else sent it meanwhile, or what was read of its sender has left memory again.
                    Ok(_) => return stays(Err(OperationError::Overloaded)),
                    Err(refusal) => return stays(Err(refusal.into())),
                };
                let others = self.other_copies(old.message.recipient(), entry, old.device);
                let collapse = self.key_to_keep(entry, old, &others);
                let message = collapse.map_or(message.clone(), |_| message.with_collapse_of(&old.message));
                let others = others.len();
                let among = self.devices_of(&message, self.now).unwrap_or_default();
                let mut gives_back = Totals::default();
                (0..=others).for_each(|_| gives_back.add(old.message.cost()));
                self.claim(&message, among.copies(), gives_back).map_err(|refusal| Err(refusal.into()))?;
                self.reserve_id(key, &message, self.now, among);
                let instead = Instead { operation: Some(operation), seq: entry.seq, gives_back };
                let accepts = self.spread(among, Accept { parent, ..Accept::new(message, self.now) });
                self.push_newcomer(accepts, Some(key), instead);
                if let (Some(collapse), Some(Pending::Accept(pending))) = (collapse, self.current.last_mut())
                {
                    // What is sent meanwhile waits behind it.
                    pending.is_last = true;
                    self.collapsing.entry(collapse).or_default();
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Records a dead letter that is sent once more, whose share was claimed. Its end must be joined to that. The next of its
    /// collapse key may follow the last of those that are sent together.
    pub(super) fn send_again(
        &mut self,
        operation: OperationId,
        entry: EntryRef,
        letter: &Accept,
        is_last: bool,
    ) {
        let possibly_delivered =
            matches!(&letter.admission, Admission::Buried(burial) if burial.possibly_delivered);
        let admission = Admission::Requeued { possibly_delivered };
        let device = letter.device;
        let accept = Accept { admission, device, ..Accept::new(letter.message.clone(), self.now) };
        let instead = Instead { operation: Some(operation), seq: entry.seq, gives_back: Totals::default() };
        self.comes_in(&accept);
        self.push_newcomer(vec![Arc::new(accept)], None, instead);
        if let Some(Pending::Accept(pending)) = self.current.last_mut() {
            pending.is_last = is_last;
        }
    }

    /// What a message that waits for another one waits for in another place.
    fn parent_in_place(&self, message: &Message, entry: EntryRef) -> Result<Option<Parent>, Stays> {
        if message.after().is_none() {
            return Ok(None);
        }
        let parent = self.parent_to_keep(message.recipient(), entry.seq);
        parent.map(Some).ok_or_else(|| Box::new(Err(OperationError::Overloaded)))
    }

    /// Moves a message with its copies to the lanes of another priority: each of them, followed by the end of its old
    /// place, but for that of the last one.
    fn move_in_place(
        &mut self,
        operation: OperationId,
        entry: EntryRef,
        old: &Arc<Accept>,
        priority: Priority,
    ) -> Result<bool, Stays> {
        let id = old.message.recipient().clone();
        let parent = self.parent_in_place(&old.message, entry)?;
        let mut all = self.other_copies(&id, entry, old.device);
        if all.iter().any(|other| self.was_offered(&id, *other)) {
            return Err(Box::new(Err(OperationError::Offered)));
        }
        all.push(entry);
        all.sort_unstable_by_key(|entry| entry.seq);
        let copies = u32::try_from(all.len()).unwrap_or(u32::MAX);
        let message = old.message.with_priority(priority);
        let cost = Totals::one(message.cost());
        // It takes what it gives back: nothing new is accepted, and no quota can be against it.
        self.reserve(&message, copies);
        let among: Slots = all.iter().filter_map(|entry| entry.lane.slot()).collect();
        let stride = if copies > 1 { 2 } else { 1 };
        for (n, from) in (1..).zip(&all) {
            let moved = |device: ForDevice| {
                let slot = from.lane.slot().unwrap_or(device.slot);
                ForDevice { slot, among, stride, ..device }
            };
            let device = old.device.map(moved);
            let accept = Accept {
                message: message.clone(),
                origin: None,
                admission: Admission::Moved,
                parent,
                device,
                ..Accept::clone(old)
            };
            self.comes_in(&accept);
            self.will_leave(&id, cost);
            let instead =
                Instead { operation: (n == 1).then_some(operation), seq: from.seq, gives_back: cost };
            let pending = PendingAccept {
                unit: if n == 1 { Unit::Alone } else { Unit::Joined },
                instead: Some(instead),
                answered: true,
                ..PendingAccept::of(Arc::new(accept))
            };
            self.current.push(Pending::Accept(pending));
            self.end_place(&id, *from, Stored::of(&old.message), EndReason::Moved, true);
            self.wait_for_end(operation, from.seq, true);
        }
        self.mark_ready(&id);
        Ok(true)
    }

    /// Whether somebody was offered a message that waits, or may have been.
    fn was_offered(&mut self, id: &UserId, entry: EntryRef) -> bool {
        self.user_mut(id).lane_ref(entry.lane).was_exposed(entry.seq)
    }

    /// Ends a message for an operation, and its copies when it is about one message.
    pub(super) fn end_withdrawn(
        &mut self,
        operation: OperationId,
        id: &UserId,
        entry: EntryRef,
        accept: &Accept,
        joined: bool,
    ) {
        let Some(open) = self.operations.open.get(&operation) else { return };
        let Some(reason) = open.work.reason(entry.lane) else { return };
        // Whoever moves it has seen to that.
        if open.own.contains(&entry.seq) && open.work.is_about_one() {
            return;
        }
        let is_about_one = open.work.is_about_one();
        let others = if is_about_one { self.other_copies(id, entry, accept.device) } else { Vec::new() };
        self.end_wherever(id, entry, accept, reason, joined);
        self.wait_for_end(operation, entry.seq, true);
        for other in others {
            self.end_place(id, other, Stored::of(&accept.message), reason, joined);
            self.wait_for_end(operation, other.seq, true);
        }
        self.mark_ready(id);
    }
}

/// The id of what a message waits for.
fn parent_of(accept: &Accept) -> Option<MessageId> {
    accept.message.after().map(|after| after.id)
}
