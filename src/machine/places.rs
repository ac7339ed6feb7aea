//! How places end for other reasons than deliveries, and what takes them.

use super::Machine;
use super::announce::Whose;
use super::commit::{Instead, Pending};
use super::entry::{Entry, EntryState};
use super::io::{Accepted, EntryRef};
use super::operate::{Open, Work};
use super::operation::Operation;
use super::user::Totals;
use crate::id::{MessageId, UserId};
use crate::message::Message;
use crate::record::{Accept, Admission, End, Record};
use crate::status::EndReason;
use crate::time::Timestamp;

/// Where a message is whose place has ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Went {
    /// It waits in another place.
    On(EntryRef),
    /// It is a dead letter, or was one.
    AsAnother(EntryRef),
}

/// What is known of a message that may be in the store only, and is to end.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) cost: u64,
    pub(super) id: MessageId,
    /// Somebody may have it.
    pub(super) known: bool,
    /// None when it was not read.
    pub(super) whose: Option<Whose>,
}

impl Stored {
    pub(super) fn of(message: &Message) -> Self {
        Self { cost: message.cost(), id: message.id(), known: false, whose: Some(Whose::of(message)) }
    }
}

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
        let known = self.user_mut(id).lane(entry.lane).may_be_known(entry.seq, accept);
        let stored = Stored { known, ..Stored::of(&accept.message) };
        self.end_known(id, entry, stored, reason, joined);
    }

    /// Ends a message of which only its place is known, and what it takes to say so.
    pub(super) fn end_place(
        &mut self,
        id: &UserId,
        entry: EntryRef,
        stored: Stored,
        reason: EndReason,
        joined: bool,
    ) {
        let known = self.user_mut(id).lane(entry.lane).was_exposed(entry.seq);
        self.end_known(id, entry, Stored { known, ..stored }, reason, joined);
    }

    fn end_known(&mut self, id: &UserId, entry: EntryRef, stored: Stored, reason: EndReason, joined: bool) {
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
        stored: Stored,
        reason: EndReason,
    ) -> End {
        let lane = self.user_mut(id).lane(entry.lane);
        lane.ending.insert(entry.seq);
        let attempts = lane.attempts.get(&entry.seq).map_or(0, |(attempts, _)| *attempts);
        let Stored { cost, id: message, known: possibly_delivered, whose } = stored;
        self.ending_of.extend(whose.map(|whose| (entry.seq, whose)));
        End {
            user: id.clone(),
            lane: entry.lane,
            seq: entry.seq,
            id: Some(message),
            reason,
            upgrades: None,
            possibly_delivered,
            attempts,
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
        let accepted = Accepted::of(entry, accept);
        let (is_moved, is_requeued) = match accept.admission {
            Admission::Moved => (true, false),
            Admission::Requeued { .. } => (false, true),
            _ => (false, false),
        };
        self.moved = is_moved.then_some((instead.seq, entry, accepted));
        self.requeued = is_requeued.then_some((instead.seq, entry));
        if let Some(open) = instead.operation.and_then(|id| self.operations.open.get_mut(&id)) {
            open.done.accepted = Some(accepted);
        }
    }

    /// An end is durable; where its message has gone, if it lives on. Operations hear of it when all of its commit is
    /// state: only then is it known where the copies for other devices are, which have moved or ended with it.
    pub(super) fn note_end(&mut self, end: &End, went: Option<Went>) {
        let concerns_one = self.operations.ends.contains_key(&end.seq)
            || went.is_some() && self.operations.asked_for.contains_key(&end.user);
        if concerns_one {
            self.operations.durable.push((end.clone(), went));
        }
    }

    /// Tells operations of the ends that were noted.
    pub(super) fn tell_operations(&mut self) {
        for (end, went) in core::mem::take(&mut self.operations.durable) {
            if let Some(went) = went {
                self.follow_moved(&end, went);
            }
            self.end_durable_for_operations(&end);
            self.mark_ready(&end.user);
            self.let_go(&end.user);
        }
    }

    /// A message lives on in another place. Whoever looks for it has found it only where it was, or not at all: its new
    /// place lies behind everything that they look at.
    fn follow_moved(&mut self, end: &End, went: Went) {
        let (entry, only_purges) = match went {
            Went::On(entry) => (entry, false),
            // A purge means it wherever it goes; whoever means one message has found that it has ended.
            Went::AsAnother(entry) => (entry, true),
        };
        // Most who have something moved have asked for nothing.
        let Some(asked) = self.operations.asked_for.get(&end.user) else { return };
        let user = self.users.get(&end.user);
        let Some(found) = user.and_then(|user| user.lane_ref(entry.lane).entry(entry.seq)) else { return };
        let looks = |open: &Open| match &open.work {
            Work::Asked(_, operation) if operation.target().is_some() => {
                // Another one with the same id is not meant as well.
                let has_one = !open.own.is_empty() || open.done.messages > 0 || open.done.located.is_some();
                let follows = !only_purges || operation.only_reads();
                follows && !has_one && operation.means(&found.accept)
            }
            Work::Asked(_, operation) => matches!(operation, Operation::Purge(_)),
            Work::Clear(_) => open.work.means(&found.accept),
            Work::FindParent(_) => open.done.located.is_none() && open.work.means(&found.accept),
            _ => false,
        };
        // What has moved before it was found where it had moved to.
        let waiting = self.operations.ends.get(&end.seq).map_or(&[][..], Vec::as_slice);
        let looking = asked.iter().copied().filter(|id| {
            let open = self.operations.open.get(id);
            let waits = waiting.iter().any(|(other, _)| other == id);
            open.is_some_and(|open| (end.seq < open.before || waits) && looks(open))
        });
        let looking: Vec<_> = looking.collect();
        for operation in looking {
            self.act_on(operation, &end.user, entry, None);
        }
    }
}
