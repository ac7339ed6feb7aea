//! What hosts do with messages besides sending them: withdrawing one or all of a person's, replacing one, moving one to
//! another lane, and whatever can be done with dead letters.
//!
//! An operation looks in memory and, page by page, in the store (`search`); meanwhile the user stays in memory, so that
//! nothing can slip from one into the other unseen. It is answered when what it did is durable.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Machine;
use super::accept::{Newcomer, Parked};
use super::commit::Repeat;
use super::dependents::Orphan;
use super::entry::EntryState;
use super::io::{Action, EntryRef, LoadId, Ticket};
use super::operation::{DeadLetter, Operation, Outcome};
use super::overflow::Room;
use super::places::Went;
use super::refusal::OperationError;
use super::search::Search;
use crate::id::UserId;
use crate::message::Durability;
use crate::record::{Accept, End, LaneId, Seq, Slot};
use crate::status::EndReason;
use crate::time::Timestamp;

/// Names an operation under way; chosen by the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OperationId(u64);

/// The operations under way.
#[derive(Debug, Default)]
pub(super) struct Operations {
    pub(super) open: BTreeMap<OperationId, Open>,
    /// Those that a host waits for and that have a slice to do.
    ready: VecDeque<OperationId>,
    /// The others that have one.
    ready_behind: VecDeque<OperationId>,
    /// Those that follow what moves, by user.
    pub(super) asked_for: BTreeMap<UserId, Vec<OperationId>>,
    /// Who waits for the end of a message to be durable, and whether it is theirs.
    pub(super) ends: BTreeMap<Seq, Vec<(OperationId, bool)>>,
    /// Ends of the commit that is becoming state, of which some are to hear.
    pub(super) durable: Vec<(End, Option<Went>)>,
    pub(super) loads: BTreeMap<LoadId, OperationId>,
    last: u64,
    /// Those that a host waits for.
    asked: usize,
}

/// Dead letters of one key and device, by their places.
type Letters = BTreeMap<Seq, (EntryRef, Arc<Accept>)>;

/// An operation under way.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) work: Work,
    pub(super) user: UserId,
    /// Only messages below this place.
    pub(super) before: Seq,
    /// Where it looks, and where memory ended and the store began there when the search began. What is read into memory
    /// later is found in the store all the same.
    pub(super) lanes: Vec<(LaneId, Option<Seq>)>,
    pub(super) search: Search,
    /// The lane that is being read from the store, once something was met there that goes on living.
    pub(super) first_live: Option<LaneId>,
    /// Dead letters that have a collapse key and are to be sent again.
    pub(super) letters: BTreeMap<(u128, Option<Slot>), Letters>,
    /// Something was found.
    has_found: bool,
    /// Ends that are being recorded.
    recording: usize,
    /// What it withdrew last, rather than found ending: a message, and its copies.
    pub(super) own: Vec<Seq>,
    pub(super) done: Outcome,
}

/// What an operation does to what it finds.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// What a host has asked for.
    Asked(Ticket, Operation),
    /// Moves what is scheduled and due to its lane; the others are due at this time, at the earliest.
    Ripen(Timestamp),
    /// Ends what has expired, and moves what is scheduled and due.
    Sweep,
    /// Finds what a message can take the place of in a full outbox.
    MakeRoom(Room),
    /// Finds what a message is to wait for.
    FindParent(Orphan),
    /// Lets those go (or end) whose parents have ended, which are in these places.
    Free(VecDeque<Seq>),
    /// Ends what is left of a device that is gone.
    Clear(Slot),
}

impl Work {
    /// Whether it is about this message.
    pub(super) fn means(&self, accept: &Accept) -> bool {
        match self {
            Self::Asked(_, operation) => operation.means(accept),
            Self::FindParent(orphan) => orphan.target().is(accept),
            Self::Free(_) => accept.message.after().is_some(),
            Self::Clear(slot) => accept.device.is_some_and(|device| device.slot == *slot),
            Self::Ripen(_) | Self::Sweep | Self::MakeRoom(_) => true,
        }
    }

    /// Whether it is about one message, so that the search ends with it.
    pub(super) fn is_about_one(&self) -> bool {
        match self {
            Self::Asked(_, operation) => operation.target().is_some(),
            Self::FindParent(_) => true,
            _ => false,
        }
    }

    /// How the places end that it ends for somebody who asked for that.
    pub(super) fn reason(&self, lane: LaneId) -> Option<EndReason> {
        match self {
            Self::Asked(_, operation) => operation.reason(),
            // It had ended before.
            Self::Clear(_) if lane == LaneId::Dead => Some(EndReason::Cancelled),
            Self::Clear(_) => Some(EndReason::DeviceGone),
            _ => None,
        }
    }

    /// Whether it follows what moves away from where it looks.
    fn follows(&self) -> bool {
        matches!(self, Self::Asked(..) | Self::FindParent(_) | Self::Clear(_))
    }
}

impl Operations {
    /// Those that a host waits for.
    pub(super) fn len(&self) -> usize {
        self.asked
    }

    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.ready_behind.is_empty()
    }

    /// One has a slice to do.
    pub(super) fn make_ready(&mut self, id: OperationId) {
        match self.open.get(&id).map(|open| &open.work) {
            Some(Work::Asked(..) | Work::MakeRoom(_) | Work::FindParent(_)) => self.ready.push_back(id),
            Some(Work::Ripen(_) | Work::Sweep | Work::Free(_) | Work::Clear(_)) => {
                self.ready_behind.push_back(id);
            }
            None => {}
        }
    }
}

impl Machine {
    /// Why an operation is not done now, if it is not.
    pub(super) fn refuses(&self, operation: &Operation) -> Option<OperationError> {
        match () {
            () if self.draining => Some(OperationError::ShuttingDown),
            () if !self.is_writable() && !operation.only_reads() => Some(OperationError::Degraded),
            () if self.unanswered() >= self.config.max_pending.get() => Some(OperationError::Overloaded),
            () => None,
        }
    }

    /// An operation on what was accepted below this place.
    pub(super) fn operate(&mut self, ticket: Ticket, operation: Operation, before: Seq) {
        if let Some(refusal) = self.refuses(&operation) {
            return self.actions.push_back(Action::Done { ticket, result: Err(refusal) });
        }
        let user = operation.user().clone();
        if let Operation::Replace(_, message) = &operation {
            let unfit = message.recipient() != &user
                || message.durability() == Durability::Volatile
                || message.collapse_key().is_some();
            let known = match self.judge_newcomer(message) {
                _ if unfit => Err(OperationError::Unfit),
                Ok(Newcomer::Fits(_)) => Ok(None),
                Ok(Newcomer::AskStore(query)) => {
                    return self.park(query, Parked::Operate(ticket, operation, before));
                }
                Ok(Newcomer::Held(key)) => {
                    return self.park_behind(key, Parked::Operate(ticket, operation, before));
                }
                Ok(Newcomer::Accepted(accepted)) => Ok(Some(accepted)),
                Ok(Newcomer::OnItsWay(key)) => return self.wait_for_first(key, Repeat::Operation(ticket)),
                Err(refusal) => Err(refusal.into()),
            };
            if let Some(result) = known.transpose() {
                let result = result.map(Outcome::known);
                return self.actions.push_back(Action::Done { ticket, result });
            }
        }
        if let Operation::Locate(target) = &operation
            && let Some(query) = self.ids_to_locate(target)
        {
            return self.park(query, Parked::Operate(ticket, operation, before));
        }
        if !self.ensure_row(&user) {
            return self.park(super::query::Query::User(user), Parked::Operate(ticket, operation, before));
        }
        if self.operate_on_devices(ticket, &operation) || self.locate_at_once(ticket, &operation) {
            return;
        }
        if matches!(operation, Operation::Purge(_)) {
            self.user_mut(&user).lanes.iter_mut().for_each(|lane| lane.volatile.clear());
        }
        // Whoever means one message means it wherever it has gone while the store was asked.
        let before = if operation.target().is_some() { self.applied } else { before };
        self.operations.asked += 1;
        self.begin(user, Work::Asked(ticket, operation), before);
    }

    /// Begins to look through what a user has, whose row is known.
    pub(super) fn begin(&mut self, user: UserId, work: Work, before: Seq) {
        let found = self.user_mut(&user);
        found.operations += 1;
        let lanes = work.lanes(&found.slots);
        let lanes = lanes.into_iter().map(|lane| (lane, found.lane_ref(lane).more_after)).collect();
        let search = Search::begin(&work);
        let done = Outcome::default();
        self.operations.last += 1;
        let id = OperationId(self.operations.last);
        if work.follows() {
            self.operations.asked_for.entry(user.clone()).or_default().push(id);
        }
        let (first_live, letters) = (None, BTreeMap::new());
        let (has_found, recording, own) = (false, 0, Vec::new());
        let open =
            Open { work, user, before, lanes, search, first_live, letters, has_found, recording, own, done };
        self.operations.open.insert(id, open);
        self.operations.make_ready(id);
    }

    /// Does one slice of one operation that a host waits for, and one of another.
    pub(super) fn work_on_operations(&mut self) {
        for next in [self.operations.ready.pop_front(), self.operations.ready_behind.pop_front()] {
            next.into_iter().for_each(|id| self.work_on_operation(id));
        }
    }

    fn work_on_operation(&mut self, id: OperationId) {
        let Some(open) = self.operations.open.get(&id) else { return };
        match open.search {
            Search::Over => self.finish_if_recorded(id),
            _ if matches!(open.work, Work::Free(_)) => self.free_next(id),
            Search::Before(lane, after) | Search::Memory(lane, after) => self.search_memory(id, lane, after),
            Search::Store(lane, after) => self.search_store(id, lane, after),
            Search::Place => self.search_place(id),
            Search::Id => self.search_id(id),
        }
    }

    /// Does to a message that lives what the operation wants: in memory, or with what the store knows of it. `false` when
    /// it has ended, or is ending: then the operation waits for what that comes to, and looks further.
    pub(super) fn act_on(
        &mut self,
        operation: OperationId,
        id: &UserId,
        entry: EntryRef,
        stored: Option<&Arc<Accept>>,
    ) -> bool {
        let user = self.user_mut(id);
        let lane = user.lane(entry.lane);
        let (accept, state) = match (lane.entry(entry.seq), stored) {
            (Some(found), _) => (found.accept.clone(), Some(found.state())),
            (None, Some(_)) if entry.seq <= lane.cursor || lane.ended.contains(&entry.seq) => return false,
            (None, Some(accept)) => {
                let state =
                    lane.ending.contains(&entry.seq).then_some(EntryState::Ending { holds_key: true });
                (accept.clone(), state)
            }
            (None, None) => return false,
        };
        let offered = lane.may_be_known(entry.seq, &accept);
        let gaps = lane.ended.len() + lane.ending.len();
        let crowded = gaps >= self.config.max_gaps.get();
        let Some(open) = self.operations.open.get_mut(&operation) else { return false };
        let is_ending = matches!(state, Some(EntryState::Ending { .. }));
        let is_first = !core::mem::replace(&mut open.has_found, true);
        match &mut open.work {
            Work::Ripen(_) | Work::Sweep | Work::Free(_) if accept.message.after().is_some() => {
                if !is_ending {
                    self.tend_dependent(id, entry, &accept, is_first && crowded);
                }
                return true;
            }
            Work::Free(_) => return true,
            Work::Ripen(next) => {
                let at = accept.message.not_before().unwrap_or(Timestamp::ZERO);
                if !is_ending && at > self.now && accept.expires() > self.now {
                    *next = (*next).min(at);
                    // All that has ended behind it would be remembered for as long as it waits.
                    if is_first && crowded {
                        self.ripen_one(id, entry, &accept);
                    }
                } else if !is_ending {
                    self.ripen_one(id, entry, &accept);
                }
                return true;
            }
            Work::Sweep => {
                // Of what is offered from, nothing may take another place: the rest ends when what is before it has.
                let crowded = crowded && entry.lane.priority().is_some();
                let is_due = accept.due() <= self.now && !is_ending;
                if is_due && crowded {
                    self.sweep_crowded(entry.lane);
                } else if is_due && entry.lane == LaneId::Scheduled {
                    self.ripen_one(id, entry, &accept);
                } else if is_due {
                    self.end_wherever(id, entry, &accept, EndReason::Expired, false);
                }
                return true;
            }
            Work::MakeRoom(room) => {
                if !is_ending && !matches!(state, Some(EntryState::InFlight(_))) {
                    room.note(entry, accept);
                }
                return true;
            }
            Work::Asked(_, Operation::Inspect(_, after, max)) => {
                if entry.seq > *after {
                    open.done.letters.extend(DeadLetter::of(entry.seq, &accept));
                    open.done.letters.sort_unstable_by_key(|letter| letter.place);
                    open.done.letters.dedup_by_key(|letter| letter.place);
                    open.done.letters.truncate(*max);
                }
                return true;
            }
            Work::Asked(_, Operation::Locate(_)) if !is_ending => {
                self.locate(operation, entry, &accept, (state, offered));
                // Of a dead letter of one device, another one's copy may still wait.
                return entry.lane != LaneId::Dead || accept.device.is_none();
            }
            Work::FindParent(_) => {
                return self.parent_found(operation, entry, &accept, (state, offered));
            }
            Work::Asked(..) | Work::Clear(_) => {}
        }
        if is_ending {
            self.locate_ending(operation, entry, &accept);
            self.wait_for_end(operation, entry.seq, false);
            self.mark_ready(id);
            return false;
        }
        if matches!(open.work, Work::Asked(_, Operation::Requeue(_)))
            && self.hold_letter(operation, entry, &accept)
        {
            return true;
        }
        match self.put_in_place(operation, entry, &accept, offered) {
            Ok(joined) => self.end_withdrawn(operation, id, entry, &accept, joined),
            Err(result) => self.finish(operation, *result),
        }
        true
    }

    /// Lets an operation wait for an end to be durable: its own, or one that it found.
    pub(super) fn wait_for_end(&mut self, operation: OperationId, seq: Seq, own: bool) {
        let waiting = self.operations.ends.entry(seq).or_default();
        let Some(open) = self.operations.open.get_mut(&operation) else { return };
        // What settles just now may be found twice: in memory and in the store.
        if !waiting.iter().any(|(other, _)| *other == operation) {
            waiting.push((operation, own));
            open.recording += 1;
        }
        // Of many it is only asked whether it has withdrawn any.
        if own && !open.work.is_about_one() {
            open.own.clear();
        }
        open.own.extend(own.then_some(seq));
    }

    /// An end is durable: operations may have waited for it, whoever caused it.
    pub(super) fn end_durable_for_operations(&mut self, end: &End) {
        for (id, is_own) in self.operations.ends.remove(&end.seq).unwrap_or_default() {
            let Some(open) = self.operations.open.get_mut(&id) else { continue };
            open.recording = open.recording.saturating_sub(1);
            if let Some(located) = Self::locate_ended(&open.work, end) {
                let own = open.done.copies.iter_mut().find(|copy| Some(copy.slot) == end.lane.slot());
                own.into_iter().for_each(|copy| copy.located = Some(located));
                let whole = super::locate::whole_of(&open.done.copies, located);
                (open.done.located, open.search) = (Some(whole), Search::Over);
            }
            // Of one message that is withdrawn, only that counts; of one that others withdraw, the first.
            let (reason, is_about_one) = (open.work.reason(end.lane), open.work.is_about_one());
            let counts = match (is_about_one, open.own.is_empty()) {
                (true, false) => open.own.contains(&end.seq),
                // What another one put in its place is not what this one wanted there.
                (true, true) => open.done.messages == 0 && reason == Some(EndReason::Cancelled),
                (false, _) => is_own,
            };
            if counts && Some(end.reason) == reason {
                open.done.messages += 1;
                open.done.possibly_delivered += u32::from(end.possibly_delivered);
                // Another one with the same id is not meant as well.
                if is_about_one {
                    open.search = Search::Over;
                }
            }
            if open.search == Search::Over {
                self.finish_if_recorded(id);
            }
        }
    }

    fn finish_if_recorded(&mut self, id: OperationId) {
        if self.operations.open.get(&id).is_some_and(|open| open.recording == 0 && !open.letters.is_empty()) {
            self.requeue_held(id);
        }
        let Some(open) = self.operations.open.get(&id).filter(|open| open.recording == 0) else { return };
        let found = open.done.messages > 0 || open.done.located.is_some() || !open.work.is_about_one();
        let result = match (&open.work, found) {
            (Work::Asked(_, Operation::Ledger(user)), _) => {
                let user = user.clone();
                Ok(Outcome { ledger: Box::new(self.read_ledger(&user)), ..Outcome::default() })
            }
            (Work::Asked(_, Operation::Letters(user)), _) => {
                let held = self.users.get(user).and_then(|user| user.held).unwrap_or_default();
                Ok(Outcome { dead_letters: (held.dead, held.dead_bytes), ..Outcome::default() })
            }
            (Work::FindParent(orphan), _) => {
                let (target, before) = (orphan.target().clone(), open.before);
                let (known, letters) = (open.done.located, open.done.copies.clone());
                let located = known.or_else(|| Some(self.locate_in_ledger(&target, before, letters)?.0));
                Ok(Outcome { located, ..Outcome::default() })
            }
            (Work::Asked(_, Operation::Requeue(_)), _)
                if open.done.messages < open.done.superseded.min(1) =>
            {
                Err(OperationError::Superseded)
            }
            (_, true) => Ok(open.done.clone()),
            (Work::Asked(_, Operation::Locate(target)), false) => {
                let (target, before, letters) = (target.clone(), open.before, open.done.copies.clone());
                let located =
                    self.locate_finished(&target, before, letters).ok_or(OperationError::NotWaiting);
                located.map(|(located, copies)| Outcome {
                    located: Some(located),
                    copies,
                    ..Outcome::default()
                })
            }
            // Perhaps it was this very message that took the place, for somebody who asked before.
            (Work::Asked(_, Operation::Replace(_, message)), false) => {
                let message = message.clone();
                match self.judge_newcomer(&message) {
                    Ok(Newcomer::Accepted(accepted)) => Ok(Outcome::known(accepted)),
                    _ => Err(OperationError::NotWaiting),
                }
            }
            (_, false) => Err(OperationError::NotWaiting),
        };
        self.finish(id, result);
    }

    pub(super) fn finish(&mut self, id: OperationId, result: Result<Outcome, OperationError>) {
        let Some(open) = self.operations.open.remove(&id) else { return };
        if let Some(user) = self.users.get_mut(&open.user) {
            user.operations = user.operations.saturating_sub(1);
        }
        self.spill_aside(&open.user);
        if open.work.follows()
            && let Some(asked) = self.operations.asked_for.get_mut(&open.user)
        {
            asked.retain(|other| *other != id);
            if asked.is_empty() {
                self.operations.asked_for.remove(&open.user);
            }
        }
        match open.work {
            Work::Asked(ticket, operation) => {
                self.operations.asked = self.operations.asked.saturating_sub(1);
                let result = match operation {
                    Operation::Locate(target) => result.map(|done| self.with_history(&target, done)),
                    _ => result,
                };
                self.actions.push_back(Action::Done { ticket, result });
            }
            Work::Ripen(next) => {
                let has_read = open.lanes.iter().any(|(_, began)| began.is_some());
                self.ripened(&open.user, next, result.is_err(), has_read);
            }
            Work::Sweep => return self.sweep_looked(&open.user, result.is_err()),
            Work::MakeRoom(room) => self.room_searched(&open.user, room, result.is_err()),
            Work::FindParent(orphan) => self.parent_searched(orphan, result.map(|done| done.located)),
            Work::Free(_) => self.dependents_freed(&open.user, result.is_err()),
            Work::Clear(slot) => self.cleared(&open.user, slot, result),
        }
        self.let_go(&open.user);
    }
}
