//! How places end for other reasons than deliveries, and what takes them.

use super::Machine;
use super::commit::{Instead, Pending};
use super::entry::{Entry, EntryState};
use super::io::{Accepted, EntryRef};
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
        let exposed_through = self.user_mut(id).exposed_through(entry.lane);
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
        let exposed_through = self.user_mut(id).exposed_through(entry.lane);
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
            open.done.accepted = Some(Accepted::of(entry, accept));
        }
    }
}
