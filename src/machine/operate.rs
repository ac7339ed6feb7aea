//! What hosts do with messages besides sending them: withdrawing one or all of a person's, replacing one, moving one to
//! another lane.
//!
//! An operation names a message by its recipient and id. It looks in memory first and then, page by page, in the
//! store; meanwhile the user stays in memory, so that nothing can slip from one into the other unseen. It is answered
//! when what it did is durable.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Machine;
use super::accept::{Newcomer, Parked};
use super::commit::{Instead, Pending, Repeat};
use super::io::{Accepted, Action, EntryRef, LoadId, Operation, Outcome, Page, Query, Target, Ticket};
use super::lane::{Entry, EntryState};
use super::refusal::OperationError;
use crate::id::UserId;
use crate::message::{Durability, Priority};
use crate::record::{Accept, End, Record, Seq};
use crate::status::EndReason;
use crate::time::Timestamp;

/// Messages of one operation handled per slice: bounds how long a commit waits behind it.
const SLICE: usize = 256;

/// The operations under way.
#[derive(Debug, Default)]
pub(super) struct Operations {
    open: BTreeMap<Ticket, Open>,
    /// Those that have a slice to do.
    ready: VecDeque<Ticket>,
    /// Who waits for the end of a message to be durable.
    ends: BTreeMap<Seq, Vec<Ticket>>,
    /// Where a message has moved whose old place ends with the next record.
    moved: Option<(Seq, EntryRef)>,
    loads: BTreeMap<LoadId, Ticket>,
}

/// An operation under way.
#[derive(Debug)]
struct Open {
    operation: Operation,
    user: UserId,
    /// Only messages below this place.
    before: Seq,
    /// Where memory ended and the store began, by lane, when the search began. What is read into memory later is found
    /// in the store all the same.
    store_after: [Option<Seq>; 4],
    search: Search,
    /// Ends that are being recorded.
    recording: usize,
    /// What it withdrew last, rather than found ending.
    own: Option<Seq>,
    done: Outcome,
}

/// How far an operation has looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Search {
    /// In memory, behind this place of this lane.
    Memory(usize, Seq),
    /// In the store, behind this place of this lane.
    Store(usize, Seq),
    /// Everywhere.
    Over,
}

impl Operations {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }
}

impl Target {
    fn is(&self, accept: &Accept) -> bool {
        let message = &accept.message;
        message.id() == self.id
            && self.sender.as_ref().is_none_or(|sender| sender.as_ref() == message.sender())
    }
}

impl Machine {
    /// An operation on what was accepted below this place.
    pub(super) fn operate(&mut self, ticket: Ticket, operation: Operation, before: Seq) {
        let refusal = match () {
            () if self.draining => Some(OperationError::ShuttingDown),
            () if !self.writable => Some(OperationError::Degraded),
            () if self.unanswered() >= self.config.max_pending.get() => Some(OperationError::Overloaded),
            () => None,
        };
        if let Some(refusal) = refusal {
            return self.actions.push_back(Action::Done { ticket, result: Err(refusal) });
        }
        let user = operation.user().clone();
        if let Operation::Replace(_, message) = &operation {
            let unfit = message.recipient() != &user || message.durability() == Durability::Volatile;
            let known = match self.judge_newcomer(message) {
                _ if unfit => Err(OperationError::Unfit),
                Ok(Newcomer::Fits(_)) => Ok(None),
                Ok(Newcomer::AskStore(query)) => {
                    return self.park(query, Parked::Operate(ticket, operation, before));
                }
                Ok(Newcomer::Accepted(entry)) => Ok(Some(Accepted { entry, duplicate: true })),
                Ok(Newcomer::OnItsWay(key)) => return self.wait_for_first(key, Repeat::Operation(ticket)),
                Err(refusal) => Err(refusal.into()),
            };
            if let Some(result) = known.transpose() {
                let result = result.map(Outcome::known);
                return self.actions.push_back(Action::Done { ticket, result });
            }
        }
        if !self.ensure_row(&user) {
            return self.park(Query::User(user), Parked::Operate(ticket, operation, before));
        }
        let found = self.user_mut(&user);
        found.operations += 1;
        if matches!(operation, Operation::Purge(_)) {
            found.lanes.iter_mut().for_each(|lane| lane.volatile.clear());
        }
        let store_after = Priority::ALL.map(|lane| found.lane_ref(lane).more_after);
        let search = Search::Memory(0, Seq::ZERO);
        let done = Outcome::default();
        let open = Open { operation, user, before, store_after, search, recording: 0, own: None, done };
        self.operations.open.insert(ticket, open);
        self.operations.ready.push_back(ticket);
    }

    /// Does one slice of one operation.
    pub(super) fn work_on_operations(&mut self) {
        let Some(ticket) = self.operations.ready.pop_front() else { return };
        let Some(open) = self.operations.open.get(&ticket) else { return };
        match open.search {
            Search::Memory(lane, after) => self.search_memory(ticket, lane, after),
            Search::Store(lane, after) => self.search_store(ticket, lane, after),
            Search::Over => self.finish_if_recorded(ticket),
        }
    }

    fn go_on(&mut self, ticket: Ticket, search: Search) {
        if let Some(open) = self.operations.open.get_mut(&ticket) {
            open.search = search;
            self.operations.ready.push_back(ticket);
        }
    }

    fn search_memory(&mut self, ticket: Ticket, lane: usize, after: Seq) {
        let Some(open) = self.operations.open.get(&ticket) else { return };
        let Some(priority) = Priority::ALL.get(lane).copied() else {
            return self.go_on(ticket, Search::Store(0, Seq::ZERO));
        };
        let (user, target) = (open.user.clone(), open.operation.target().cloned());
        let entries = self.users.get(&user).map(|user| &user.lane_ref(priority).entries);
        let from = entries.map_or(0, |entries| entries.partition_point(|entry| entry.seq <= after));
        let slice = entries.into_iter().flat_map(|entries| entries.iter().skip(from).take(SLICE));
        let slice = slice.take_while(|entry| entry.seq < open.before);
        let mut last = None;
        let mut found = Vec::new();
        for entry in slice {
            last = Some(entry.seq);
            if target.as_ref().is_none_or(|target| target.is(&entry.accept)) {
                found.push(entry.seq);
            }
        }
        let hit = found.into_iter().any(|seq| {
            let withdrawn = self.withdraw(ticket, &user, EntryRef { lane: priority, seq }, None);
            withdrawn && target.is_some()
        });
        let next = match last {
            _ if hit => Search::Over,
            Some(last) => Search::Memory(lane, last),
            None => Search::Memory(lane + 1, Seq::ZERO),
        };
        self.go_on(ticket, next);
    }

    fn search_store(&mut self, ticket: Ticket, lane: usize, after: Seq) {
        let Some(open) = self.operations.open.get(&ticket) else { return };
        let Some(priority) = Priority::ALL.get(lane).copied() else {
            return self.go_on(ticket, Search::Over);
        };
        let user = open.user.clone();
        let Some(memory_ends) = open.store_after.get(lane).copied().flatten() else {
            return self.go_on(ticket, Search::Store(lane + 1, Seq::ZERO));
        };
        let found = self.user_mut(&user).lane(priority);
        // What ended meanwhile may be gone in part: were it asked for, that would look like damage.
        let after = after.max(memory_ends).max(found.cursor);
        let ended = found.ended.range(after.plus(1)..).copied().collect();
        let (max_messages, max_bytes) = (SLICE, self.config.max_load_bytes.get());
        let query = Query::Page { user, lane: priority, after, ended, max_messages, max_bytes };
        let load = self.load(query);
        self.operations.loads.insert(load, ticket);
    }

    /// A page was read for an operation. `false` when it was for somebody else.
    pub(super) fn page_for_operation(
        &mut self,
        now: Timestamp,
        load: LoadId,
        lane: Priority,
        page: &Page,
    ) -> bool {
        let Some(ticket) = self.operations.loads.remove(&load) else { return false };
        let Some(open) = self.operations.open.get(&ticket).filter(|open| open.search != Search::Over) else {
            return true;
        };
        let (user, target) = (open.user.clone(), open.operation.target().cloned());
        let mut found =
            page.entries.iter().filter(|(_, accept)| target.as_ref().is_none_or(|t| t.is(accept)));
        let hit = found.any(|(seq, accept)| {
            let withdrawn = self.withdraw(ticket, &user, EntryRef { lane, seq: *seq }, Some(accept));
            withdrawn && target.is_some()
        });
        if hit {
            self.go_on(ticket, Search::Over);
            return true;
        }
        if target.is_none() {
            for (seq, cost) in &page.damaged {
                self.end_damaged(now, &user, lane, *seq, *cost);
            }
        }
        self.go_on(
            ticket,
            match page.more_after {
                Some(after) => Search::Store(lane.index(), after),
                None => Search::Store(lane.index() + 1, Seq::ZERO),
            },
        );
        true
    }

    /// A page could not be read for an operation. `false` when it was for somebody else.
    pub(super) fn page_failed_for_operation(&mut self, load: LoadId) -> bool {
        let Some(ticket) = self.operations.loads.remove(&load) else { return false };
        if self.operations.open.get(&ticket).is_some_and(|open| open.search != Search::Over) {
            self.finish(ticket, Err(OperationError::StoreUnreadable));
        }
        true
    }

    /// Does to a message that lives what the operation wants: in memory, or with what the store knows of it. `false` when
    /// it has ended, or is ending: then the operation waits for what that comes to, and looks further.
    fn withdraw(
        &mut self,
        ticket: Ticket,
        id: &UserId,
        entry: EntryRef,
        stored: Option<&Arc<Accept>>,
    ) -> bool {
        let user = self.user_mut(id);
        let exposed_through = user.exposed_through;
        let lane = user.lane(entry.lane);
        let (accept, state, offers) = match (lane.entry(entry.seq), stored) {
            (Some(found), _) => (found.accept.clone(), Some(found.state()), found.offers),
            (None, Some(_)) if entry.seq <= lane.cursor || lane.ended.contains(&entry.seq) => return false,
            (None, Some(accept)) => {
                let state =
                    lane.ending.contains(&entry.seq).then_some(EntryState::Ending { holds_key: true });
                (accept.clone(), state, 0)
            }
            (None, None) => return false,
        };
        if matches!(state, Some(EntryState::Ending { .. })) {
            self.wait_for_end(ticket, entry.seq, false);
            self.mark_ready(id);
            return false;
        }
        let offered = offers > 0 || entry.seq <= exposed_through;
        match self.put_in_place(ticket, entry, &accept, offered) {
            Ok(joined) => self.end_withdrawn(ticket, id, entry, &accept, joined),
            Err(result) => self.finish(ticket, result),
        }
        true
    }

    /// Records what comes instead of a message, if something does: then its end must be joined to that. `Err` with the
    /// answer when the message stays where it is.
    fn put_in_place(
        &mut self,
        ticket: Ticket,
        entry: EntryRef,
        old: &Accept,
        offered: bool,
    ) -> Result<bool, Result<Outcome, OperationError>> {
        let Some(open) = self.operations.open.get(&ticket) else { return Ok(false) };
        let (accept, key) = match &open.operation {
            Operation::Cancel(_) | Operation::Purge(_) => return Ok(false),
            Operation::Reprioritise(_, priority) if *priority == entry.lane => {
                return Err(Ok(Outcome::known(Accepted { entry, duplicate: true })));
            }
            Operation::Reprioritise(..) if offered => return Err(Err(OperationError::Offered)),
            Operation::Reprioritise(_, priority) => {
                let message = old.message.with_priority(*priority);
                (Accept { message, at: old.at, origin: None, moved: true }, None)
            }
            Operation::Replace(_, message) => {
                let message = message.clone();
                let key = match self.judge_newcomer(&message) {
                    Ok(Newcomer::Fits(key)) => Some(key),
                    // Somebody else sent it meanwhile, or what was read of its sender has left memory again.
                    Ok(_) => return Err(Err(OperationError::Overloaded)),
                    Err(refusal) => return Err(Err(refusal.into())),
                };
                (Accept { message, at: self.now, origin: None, moved: false }, key)
            }
        };
        let instead = Instead { operation: ticket, cost: old.message.cost() };
        self.claim(&accept.message, Some(instead.cost)).map_err(|refusal| Err(refusal.into()))?;
        self.push_newcomer(Arc::new(accept), key, instead);
        Ok(true)
    }

    /// Ends a message for an operation.
    fn end_withdrawn(&mut self, ticket: Ticket, id: &UserId, entry: EntryRef, accept: &Accept, joined: bool) {
        let now = self.now;
        let Some(reason) = self.operations.open.get(&ticket).map(|open| open.operation.reason()) else {
            return;
        };
        let state = self.user_mut(id).lane(entry.lane).entry(entry.seq).map(Entry::state);
        if let Some(EntryState::InFlight(link)) = state {
            self.land_keeping_key(link, id, entry);
        }
        let end = match state {
            Some(_) => self.ending(now, id, entry, reason),
            None => Some(self.ending_stored(now, id, entry, accept.message.cost(), reason)),
        };
        let fact = if joined { Pending::Joined } else { Pending::Fact };
        self.current.extend(end.map(|end| fact(Record::End(end))));
        self.wait_for_end(ticket, entry.seq, true);
        self.mark_ready(id);
    }

    /// Lets an operation wait for an end to be durable: its own, or one that it found.
    fn wait_for_end(&mut self, ticket: Ticket, seq: Seq, own: bool) {
        let waiting = self.operations.ends.entry(seq).or_default();
        let Some(open) = self.operations.open.get_mut(&ticket) else { return };
        // What settles just now may be found twice: in memory and in the store.
        if !waiting.contains(&ticket) {
            waiting.push(ticket);
            open.recording += 1;
        }
        if own {
            open.own = Some(seq);
        }
    }

    /// The end of a message that is in the store and not in memory.
    fn ending_stored(
        &mut self,
        now: Timestamp,
        id: &UserId,
        entry: EntryRef,
        cost: u64,
        reason: EndReason,
    ) -> End {
        let user = self.user_mut(id);
        let exposed_through = user.exposed_through;
        let lane = user.lane(entry.lane);
        lane.ending.insert(entry.seq);
        End {
            user: id.clone(),
            lane: entry.lane,
            seq: entry.seq,
            reason,
            upgrades: None,
            possibly_delivered: entry.seq <= exposed_through,
            attempts: lane.attempts.get(&entry.seq).map_or(0, |(attempts, _)| *attempts),
            cost,
            at: now,
        }
    }

    /// What an operation puts in another's place is durable; the end of the other follows at once.
    pub(super) fn place_taken(&mut self, instead: Instead, accept: &Accept, entry: EntryRef) {
        self.leaving.sub(instead.cost);
        self.user_mut(accept.message.recipient()).leaving.sub(instead.cost);
        if let Some(open) = self.operations.open.get_mut(&instead.operation) {
            open.done.accepted = Some(Accepted { entry, duplicate: false });
            self.operations.moved = open.own.filter(|_| accept.moved).map(|old| (old, entry));
        }
    }

    /// A message lives on in another place. Whoever looks for it has found it only where it was, or not at all: its new
    /// place lies behind everything that they look at.
    fn follow_moved(&mut self, end: &End, entry: EntryRef) {
        // The one that has moved it is one of them.
        let Some(user) = self.users.get(&end.user).filter(|user| user.operations > 1) else { return };
        let Some(found) = user.lane_ref(entry.lane).entry(entry.seq) else { return };
        let looks = |open: &Open| match open.operation.target() {
            Some(target) => open.own.is_none() && target.is(&found.accept),
            None => true,
        };
        // What has moved before it was found where it had moved to.
        let waiting = self.operations.ends.get(&end.seq).map_or(&[][..], Vec::as_slice);
        let open = self.operations.open.iter().filter(|(ticket, open)| {
            let means = end.seq < open.before || waiting.contains(ticket);
            means && open.user == end.user && looks(open)
        });
        let tickets: Vec<_> = open.map(|(ticket, _)| *ticket).collect();
        for ticket in tickets {
            self.withdraw(ticket, &end.user, entry, None);
        }
    }

    /// An end is durable: operations may have waited for it, whoever caused it.
    pub(super) fn end_durable_for_operations(&mut self, end: &End) {
        if end.upgrades.is_some() {
            return;
        }
        if let Some((_, entry)) = self.operations.moved.take_if(|(old, _)| *old == end.seq) {
            self.follow_moved(end, entry);
        }
        for ticket in self.operations.ends.remove(&end.seq).unwrap_or_default() {
            let Some(open) = self.operations.open.get_mut(&ticket) else { continue };
            open.recording = open.recording.saturating_sub(1);
            // Of one message that is withdrawn, only that counts; of one that others withdraw, the first.
            let reason = open.operation.reason();
            let counts = match (open.operation.target(), open.own) {
                (Some(_), Some(own)) => own == end.seq,
                // What another one put in its place is not what this one wanted there.
                (Some(_), None) => open.done.messages == 0 && reason == EndReason::Cancelled,
                (None, _) => true,
            };
            if counts && end.reason == reason {
                open.done.messages += 1;
                open.done.possibly_delivered += u32::from(end.possibly_delivered);
                // Another one with the same id is not meant as well.
                if open.operation.target().is_some() {
                    open.search = Search::Over;
                }
            }
            if open.search == Search::Over {
                self.finish_if_recorded(ticket);
            }
        }
    }

    fn finish_if_recorded(&mut self, ticket: Ticket) {
        let Some(open) = self.operations.open.get(&ticket).filter(|open| open.recording == 0) else { return };
        let found = open.done.messages > 0 || open.operation.target().is_none();
        let result = match (&open.operation, found) {
            (_, true) => Ok(open.done),
            // Perhaps it was this very message that took the place, for somebody who asked before.
            (Operation::Replace(_, message), false) => {
                let message = message.clone();
                match self.judge_newcomer(&message) {
                    Ok(Newcomer::Accepted(entry)) => Ok(Outcome::known(Accepted { entry, duplicate: true })),
                    _ => Err(OperationError::NotWaiting),
                }
            }
            (_, false) => Err(OperationError::NotWaiting),
        };
        self.finish(ticket, result);
    }

    fn finish(&mut self, ticket: Ticket, result: Result<Outcome, OperationError>) {
        let Some(open) = self.operations.open.remove(&ticket) else { return };
        self.actions.push_back(Action::Done { ticket, result });
        if let Some(user) = self.users.get_mut(&open.user) {
            user.operations = user.operations.saturating_sub(1);
        }
        self.let_go(&open.user);
    }
}
