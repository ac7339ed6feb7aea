//! How places end for other reasons than deliveries, and what takes them.

use std::sync::Arc;

use super::Machine;
use super::accept::Newcomer;
use super::commit::{Instead, Pending};
use super::entry::{Entry, EntryState};
use super::io::{Accepted, EntryRef};
use super::operate::{Open, OperationId, Work};
use super::operation::{Operation, Outcome};
use super::refusal::OperationError;
use super::user::Totals;
use super::verdict::may_be_known;
use crate::id::{MessageId, UserId};
use crate::record::{Accept, Admission, End, Record};
use crate::status::EndReason;
use crate::time::Timestamp;

impl Machine {
    /// Ends a message that lives, in memory or in the store.
    pub(super) fn end_wherever(
        &mut self,
        id: &UserId,
        entry: EntryRef,
        accept: &Accept,
        reason: EndReason,
        joined: bool,
    ) {
        let exposed_through = self.user_mut(id).exposed_through;
        let known = may_be_known(accept, entry.seq, exposed_through);
        self.end_known(id, entry, (accept.message.cost(), accept.message.id(), known), reason, joined);
    }

    /// Ends a message of which only its place, its cost and its id are known.
    pub(super) fn end_place(
        &mut self,
        id: &UserId,
        entry: EntryRef,
        (cost, message): (u64, MessageId),
        reason: EndReason,
        joined: bool,
    ) {
        let exposed_through = self.user_mut(id).exposed_through;
        let known = entry.lane.priority().is_some() && entry.seq <= exposed_through;
        self.end_known(id, entry, (cost, message, known), reason, joined);
    }

    fn end_known(
        &mut self,
        id: &UserId,
        entry: EntryRef,
        stored: (u64, MessageId, bool),
        reason: EndReason,
        joined: bool,
    ) {
        let now = self.now;
        let state = self.user_mut(id).lane(entry.lane).entry(entry.seq).map(Entry::state);
        if let Some(EntryState::InFlight(link)) = state {
            self.land_keeping_key(link, id, entry);
        }
        let end = match state {
            Some(_) => self.ending(now, id, entry, reason),
            None => Some(self.ending_stored(now, id, entry, stored, reason)),
        };
        let fact = if joined { Pending::Joined } else { Pending::Fact };
        self.current.extend(end.map(|end| fact(Record::End(end))));
    }

    /// The end of a message that is in the store and not in memory.
    fn ending_stored(
        &mut self,
        now: Timestamp,
        id: &UserId,
        entry: EntryRef,
        (cost, message, possibly_delivered): (u64, MessageId, bool),
        reason: EndReason,
    ) -> End {
        let lane = self.user_mut(id).lane(entry.lane);
        lane.ending.insert(entry.seq);
        End {
            user: id.clone(),
            lane: entry.lane,
            seq: entry.seq,
            id: Some(message),
            reason,
            upgrades: None,
            possibly_delivered,
            attempts: lane.attempts.get(&entry.seq).map_or(0, |(attempts, _)| *attempts),
            cost,
            at: now,
        }
    }

    /// Something is to take the place of what gives this back.
    pub(super) fn will_leave(&mut self, id: &UserId, gives_back: Totals) {
        self.leaving.put_on(gives_back);
        self.user_mut(id).leaving.put_on(gives_back);
    }

    /// What takes another's place is durable; the end of the other follows at once.
    pub(super) fn place_taken(&mut self, instead: Instead, accept: &Accept, entry: EntryRef) {
        self.leaving.take_off(instead.gives_back);
        self.user_mut(accept.message.recipient()).leaving.take_off(instead.gives_back);
        let went = Some((instead.seq, entry));
        self.moved = went.filter(|_| accept.admission == Admission::Moved);
        self.requeued = went.filter(|_| matches!(accept.admission, Admission::Requeued { .. }));
        if let Some(open) = instead.operation.and_then(|id| self.operations.open.get_mut(&id)) {
            open.done.accepted = Some(Accepted { entry, duplicate: false });
        }
    }

    /// Records what comes instead of a message, if something does: then its end must be joined to that. `Err` with the
    /// answer when the message stays where it is.
    pub(super) fn put_in_place(
        &mut self,
        operation: OperationId,
        entry: EntryRef,
        old: &Accept,
        offered: bool,
    ) -> Result<bool, Box<Result<Outcome, OperationError>>> {
        let stays = |answer| Err(Box::new(answer));
        let Some(Open { work: Work::Asked(_, asked), .. }) = self.operations.open.get(&operation) else {
            return Ok(false);
        };
        let cost = Totals::one(old.message.cost());
        let (mut accept, key, gives_back) = match asked {
            Operation::Cancel(_) | Operation::Purge(_) | Operation::Discard(_) => return Ok(false),
            Operation::Inspect(..) | Operation::Locate(_) => return Ok(false),
            Operation::Ledger(_) | Operation::Letters(_) => return Ok(false),
            Operation::Reprioritise(_, priority) if *priority == old.message.priority() => {
                return stays(Ok(Outcome::known(Accepted { entry, duplicate: true })));
            }
            Operation::Reprioritise(..) if offered => return stays(Err(OperationError::Offered)),
            Operation::Reprioritise(_, priority) => {
                let message = old.message.with_priority(*priority);
                let (origin, admission, at) = (None, Admission::Moved, old.at);
                (Accept { message, at, origin, admission, parent: None }, None, cost)
            }
            Operation::Requeue(_) => {
                let message = old.message.clone();
                let possibly_delivered =
                    matches!(old.admission, Admission::Buried(burial) if burial.possibly_delivered);
                let admission = Admission::Requeued { possibly_delivered };
                let accept = Accept { message, at: self.now, origin: None, admission, parent: None };
                (accept, None, Totals::default())
            }
            Operation::Replace(_, message)
                if message.after().is_some_and(|after| Some(after.id) != parent_of(old)) =>
            {
                return stays(Err(OperationError::Unfit));
            }
            Operation::Replace(_, message) => {
                let message = super::accept::at_once_if_due(message.clone(), self.now);
                let key = match self.judge_newcomer(&message) {
                    Ok(Newcomer::Fits(key)) => Some(key),
                    // Somebody else sent it meanwhile, or what was read of its sender has left memory again.
                    Ok(_) => return stays(Err(OperationError::Overloaded)),
                    Err(refusal) => return stays(Err(refusal.into())),
                };
                (Accept::new(message, self.now), key, cost)
            }
        };
        if accept.message.after().is_some() {
            accept.parent = self.parent_to_keep(accept.message.recipient(), entry.seq);
            if accept.parent.is_none() {
                return stays(Err(OperationError::Overloaded));
            }
        }
        let instead = Instead { operation: Some(operation), seq: entry.seq, gives_back };
        if let Err(refusal) = self.claim(&accept.message, gives_back) {
            return stays(Err(refusal.into()));
        }
        self.push_newcomer(Arc::new(accept), key, instead);
        Ok(true)
    }

    /// A message lives on in another place. Whoever looks for it has found it only where it was, or not at all: its new
    /// place lies behind everything that they look at.
    pub(super) fn follow_moved(&mut self, end: &End, entry: EntryRef, only_purges: bool) {
        // Most who have something moved have asked for nothing.
        let Some(asked) = self.operations.asked_for.get(&end.user) else { return };
        let user = self.users.get(&end.user);
        let Some(found) = user.and_then(|user| user.lane_ref(entry.lane).entry(entry.seq)) else { return };
        let looks = |open: &Open| match &open.work {
            Work::Asked(_, operation) if operation.target().is_some() => {
                // Another one with the same id is not meant as well.
                let has_one = open.own.is_some() || open.done.messages > 0 || open.done.located.is_some();
                let follows = !only_purges || operation.only_reads();
                follows && !has_one && operation.means(&found.accept)
            }
            Work::Asked(_, operation) => matches!(operation, Operation::Purge(_)),
            Work::FindParent(_) => open.done.located.is_none() && open.work.means(&found.accept),
            _ => false,
        };
        // What has moved before it was found where it had moved to.
        let waiting = self.operations.ends.get(&end.seq).map_or(&[][..], Vec::as_slice);
        let looking = asked.iter().copied().filter(|id| {
            let open = self.operations.open.get(id);
            open.is_some_and(|open| (end.seq < open.before || waiting.contains(id)) && looks(open))
        });
        let looking: Vec<_> = looking.collect();
        for operation in looking {
            self.act_on(operation, &end.user, entry, None);
        }
    }
}

/// The id of what a message waits for.
fn parent_of(accept: &Accept) -> Option<MessageId> {
    accept.message.after().map(|after| after.id)
}
