//! Messages that wait for another one of the same user: dependents, and their parents.
//!
//! A dependent waits in the lane of what is scheduled. That its parent has ended is no record of its own, but a fold: the
//! user's row names the place of each parent, so the end of a parent says of its dependents what becomes of them, and no
//! crash can come in between. Then they are looked for and take their places (or end), each in one commit.
//!
//! Whoever is accepted waits for something that was accepted before, and never changes that: so there are no cycles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::Machine;
use super::accept::{Parked, at_once_if_due};
use super::commit::Unit;
use super::dedup::Known;
use super::devices::Among;
use super::entry::EntryState;
use super::io::{EntryRef, Ticket};
use super::operate::{OperationId, Work};
use super::operation::{Located, Target};
use super::query::Query;
use super::refusal::{OperationError, Refusal};
use super::search::Search;
use super::user::Totals;
use crate::id::UserId;
use crate::message::{Message, Otherwise};
use crate::record::{Accept, Admission, Copies, DependentRow, End, LaneId, Parent, ParentEnd, Seq};
use crate::status::{EndReason, Status};
use crate::time::Timestamp;

/// What became of a place that something may wait for.
#[derive(Clone, Copy, Debug)]
enum Left {
    /// The message is there now.
    For(Parent),
    Ended(ParentEnd),
}

impl DependentRow {
    fn note(&mut self, place: Seq, left: Left) -> bool {
        if self.ended.is_some() || !self.parent.is_at(place) {
            return false;
        }
        let rest = || self.parent.copy_at(place).and_then(|slot| self.parent.without(slot));
        match left {
            Left::For(parent) => self.parent = parent,
            Left::Ended(ParentEnd::Delivered) => self.ended = Some(ParentEnd::Delivered),
            // As long as other devices may still get it, it has not ended.
            Left::Ended(ParentEnd::Otherwise) => match rest() {
                Some(rest) => self.parent = rest,
                None => self.ended = Some(ParentEnd::Otherwise),
            },
        }
        true
    }
}

/// A user's messages that wait for others.
#[derive(Debug, Default)]
pub(super) struct Dependents {
    rows: BTreeMap<Seq, DependentRow>,
    /// What became of places before the row was known, which may name them.
    early: Vec<(Seq, Left)>,
    /// Where messages are now that have moved before the row was known.
    tracked: BTreeSet<Seq>,
    /// Those that are being committed.
    coming: usize,
    /// A parent has ended whose dependents nobody has looked at since.
    due: bool,
}

impl Dependents {
    fn put(&mut self, row: DependentRow) {
        self.due |= row.ended.is_some();
        self.rows.insert(row.seq, row);
    }

    /// What the store knows, under what the journal has said since.
    pub(super) fn merge(&mut self, stored: &[DependentRow], has_ended: impl Fn(LaneId, Seq) -> bool) {
        let mut stored: BTreeMap<_, _> = stored.iter().map(|row| (row.seq, *row)).collect();
        // Who waits for what is at a place, so that each of the early ends concerns only those.
        let mut waiting: BTreeMap<Seq, Vec<Seq>> = BTreeMap::new();
        let index = |waiting: &mut BTreeMap<Seq, Vec<Seq>>, row: &DependentRow| {
            row.parent.places().for_each(|(_, place)| waiting.entry(place).or_default().push(row.seq));
        };
        stored.values().for_each(|row| index(&mut waiting, row));
        self.tracked.clear();
        for (place, left) in core::mem::take(&mut self.early) {
            stored.remove(&place);
            for seq in waiting.remove(&place).unwrap_or_default() {
                if let Some(row) = stored.get_mut(&seq)
                    && row.note(place, left)
                    && matches!(left, Left::For(_))
                {
                    index(&mut waiting, row);
                }
            }
        }
        for (seq, mut row) in stored {
            if self.rows.contains_key(&seq) || has_ended(LaneId::Scheduled, seq) {
                continue;
            }
            // Every other end would be among the early ones.
            if row.ended.is_none() && row.parent.places().any(|(lane, seq)| has_ended(lane, seq)) {
                row.ended = Some(ParentEnd::Delivered);
            }
            self.put(row);
        }
    }

    /// A place was left; whether that changed anything. As long as the row is unknown, what it may name is kept in mind.
    fn left(&mut self, place: Seq, left: Left, on_disk: bool, row_known: bool) -> bool {
        let is_known = self.rows.remove(&place).is_some();
        let mut changed = is_known;
        for row in self.rows.values_mut() {
            changed |= row.note(place, left);
            self.due |= row.ended.is_some();
        }
        let is_delivered = matches!(left, Left::Ended(ParentEnd::Delivered));
        // A row that a settlement has written which came to nothing names what the journal has as well.
        if !row_known && (is_known || on_disk && !is_delivered || self.tracked.contains(&place)) {
            self.early.push((place, left));
            if let Left::For(to) = left {
                self.tracked.extend(to.places().map(|(_, place)| place));
            }
        }
        changed
    }

    pub(super) fn rows(&self) -> Vec<DependentRow> {
        self.rows.values().copied().collect()
    }

    /// Whether forgetting the user would leave something undone.
    pub(super) fn is_idle(&self) -> bool {
        !self.due && self.coming == 0
    }

    /// Those whose parent has ended, in the order of places.
    fn freed(&self) -> VecDeque<Seq> {
        self.rows.values().filter(|row| row.ended.is_some()).map(|row| row.seq).collect()
    }
}

/// A message whose parent is looked for.
#[derive(Clone, Debug)]
pub(super) struct Orphan {
    ticket: Ticket,
    message: Message,
    target: Target,
    /// Where it was found.
    found: Option<Parent>,
    /// One of its copies was about to end: then it is looked for again.
    unsettled: bool,
}

impl Orphan {
    pub(super) fn target(&self) -> &Target {
        &self.target
    }
}

impl Machine {
    // ------------------------------------------------------------------------------------------------- acceptance

    /// Sends a message that waits for another one, and is no repeat.
    pub(super) fn send_dependent(&mut self, now: Timestamp, ticket: Ticket, message: Message) {
        let Some(after) = message.after() else { return };
        let user = message.recipient().clone();
        let (key, known) = self.look_up_id(&message, after.id);
        match known {
            Known::AskStore => return self.park(self.ids_of_sender(&message), Parked::Send(ticket, message)),
            // It has no place to wait for yet.
            known if known.is_undecided() => return self.park_behind(key, Parked::Send(ticket, message)),
            _ => {}
        }
        if !self.ensure_row(&user) {
            return self.park(Query::User(user), Parked::Send(ticket, message));
        }
        let target = Target { user: user.clone(), id: after.id, sender: Some(message.sender().cloned()) };
        let orphan = Orphan { ticket, message, target, found: None, unsettled: false };
        if let Known::Seen(slot) = known
            && let Some(entry) = self.still_there(&orphan, slot.seq)
        {
            return self.take_dependent(now, orphan, Ok(Some(entry)));
        }
        self.parked_count += 1;
        self.begin(user, Work::FindParent(orphan), self.applied);
    }

    /// A parent that waits in memory, where it was accepted: most do.
    fn still_there(&self, orphan: &Orphan, seq: Seq) -> Option<Fate> {
        let user = self.users.get(&orphan.target.user)?;
        let is_waiting = |lane: &LaneId| *lane != LaneId::Dead;
        LaneId::ALL.into_iter().filter(is_waiting).find_map(|lane| {
            let entry = user.lane_ref(lane).entry(seq)?;
            let is_ending = matches!(entry.state(), EntryState::Ending { .. });
            (!is_ending && orphan.target.is(&entry.accept)).then_some(Fate::Waits(Parent::at(lane, seq)))
        })
    }

    /// A parent was found that waits, is about to end, or is a dead letter; whether that is all that is to be known.
    pub(super) fn parent_found(
        &mut self,
        operation: OperationId,
        entry: EntryRef,
        accept: &Arc<Accept>,
        state: (Option<EntryState>, bool),
    ) -> bool {
        let id = accept.message.recipient();
        let whole = match accept.device.filter(|_| entry.lane.slot().is_some()) {
            Some(device) => Parent::of_device(entry.lane, entry.seq, device),
            None => Parent::at(entry.lane, entry.seq),
        };
        let user = self.user_mut(id);
        let ending = whole.places().find(|(lane, seq)| user.is_ending(EntryRef { lane: *lane, seq: *seq }));
        if let Some((_, seq)) = ending {
            self.note_of_orphan(operation, |orphan| orphan.unsettled = whole.copies.is_some());
            self.wait_for_end(operation, seq, false);
            self.mark_ready(id);
            return false;
        }
        self.locate(operation, entry, accept, state);
        if entry.lane == LaneId::Dead && accept.device.is_some() {
            // Another device's copy may still wait.
            return false;
        }
        let others = self.other_copies(id, entry, accept.device);
        let left = others.iter().chain([&entry]).filter_map(|at| at.lane.slot()).collect();
        let copies = whole.copies.map(|copies| Copies { left, ..copies });
        self.note_of_orphan(operation, |orphan| orphan.found = Some(Parent { copies, ..whole }));
        // At once: a moment later it may be about to go elsewhere.
        let done = self.operations.open.get(&operation).map(|open| open.done.clone());
        self.finish(operation, Ok(done.unwrap_or_default()));
        true
    }

    fn note_of_orphan(&mut self, operation: OperationId, note: impl FnOnce(&mut Orphan)) {
        if let Some(Work::FindParent(orphan)) =
            self.operations.open.get_mut(&operation).map(|open| &mut open.work)
        {
            note(orphan);
        }
    }

    /// A parent was looked for, and found or not.
    pub(super) fn parent_searched(
        &mut self,
        orphan: Orphan,
        located: Result<Option<Located>, OperationError>,
    ) {
        let fate = located.map(|located| match located?.status {
            Status::Ended(reason) => Some(Fate::Ended(reason)),
            _ => orphan.found.map(Fate::Waits),
        });
        let is_lost =
            matches!(fate, Ok(Some(Fate::Ended(reason))) if parent_end(reason) == ParentEnd::Otherwise);
        if orphan.unsettled && is_lost {
            let (user, orphan) = (orphan.target.user.clone(), Orphan { unsettled: false, ..orphan });
            return self.begin(user, Work::FindParent(orphan), self.applied);
        }
        self.parked_count = self.parked_count.saturating_sub(1);
        self.take_dependent(self.now, orphan, fate.map_err(|_| Refusal::StoreUnreadable));
    }

    fn take_dependent(&mut self, now: Timestamp, orphan: Orphan, fate: Result<Option<Fate>, Refusal>) {
        let Orphan { ticket, message, .. } = orphan;
        // Somebody else may have sent it while its parent was looked for.
        let (key, known) = self.look_up(&message);
        match known {
            Known::AskStore => return self.park(self.ids_of_sender(&message), Parked::Send(ticket, message)),
            Known::Held => return self.park_behind(key, Parked::Send(ticket, message)),
            Known::Seen(slot) => return self.answer_repeat(ticket, key, slot, &message),
            Known::New => {}
        }
        match self.claim_dependent(&message, fate) {
            Err(refusal) => self.answer(ticket, Err(refusal)),
            Ok(parent) => {
                self.reserve_id(key, &message, now, Among::default());
                self.user_mut(message.recipient()).dependents.coming += 1;
                let message = at_once_if_due(message, now);
                let accept = Accept { parent: Some(parent), ..Accept::new(message, now) };
                self.push_accept(vec![Arc::new(accept)], Some(key), ticket, Unit::Alone);
            }
        }
    }

    /// Takes the share of a message, and says what it waits for.
    fn claim_dependent(
        &mut self,
        message: &Message,
        fate: Result<Option<Fate>, Refusal>,
    ) -> Result<Parent, Refusal> {
        self.gate(message)?;
        let otherwise = message.after().map(|after| after.otherwise);
        let parent = match fate? {
            None => return Err(Refusal::UnknownParent),
            Some(Fate::Waits(parent)) => parent,
            Some(Fate::Ended(reason))
                if parent_end(reason) != ParentEnd::Delivered && otherwise == Some(Otherwise::Cancel) =>
            {
                return Err(Refusal::ParentEnded { reason });
            }
            Some(Fate::Ended(_)) => Parent::ENDED,
        };
        let max = self.config.max_dependents.get();
        let dependents = &self.user_mut(message.recipient()).dependents;
        if dependents.rows.len() + dependents.coming >= max {
            return Err(Refusal::TooManyDependents { max });
        }
        self.claim(message, 1, Totals::default())?;
        Ok(parent)
    }

    /// A dependent is durable, or was refused.
    pub(super) fn dependent_decided(&mut self, accept: &Accept) {
        if accept.parent.is_some()
            && let Some(user) = self.users.get_mut(accept.message.recipient())
        {
            user.dependents.coming = user.dependents.coming.saturating_sub(1);
        }
    }

    // ------------------------------------------------------------------------------------------------------- fold

    /// Folds an acceptance.
    pub(super) fn fold_dependent(&mut self, seq: Seq, accept: &Accept) {
        let Some(parent) = accept.parent.filter(|_| accept.lane() == LaneId::Scheduled) else { return };
        let user = accept.message.recipient();
        let ended = (parent == Parent::ENDED).then_some(ParentEnd::Delivered);
        self.user_mut(user).dependents.put(DependentRow { seq, parent, ended });
        self.touch(user, seq);
    }

    /// Folds an end.
    pub(super) fn fold_dependent_end(&mut self, seq: Seq, end: &End, on_disk: bool) {
        // Nothing waits for a dead letter.
        if end.lane == LaneId::Dead {
            return;
        }
        let left = match (end.reason, self.last_accept) {
            (EndReason::Moved, Some((lane, seq, Some(device)))) => {
                Left::For(Parent::of_device(lane, seq, device))
            }
            (EndReason::Moved, Some((lane, seq, None))) => Left::For(Parent::at(lane, seq)),
            (reason, _) => Left::Ended(parent_end(reason)),
        };
        let user = self.user_mut(&end.user);
        let row_known = user.row_known;
        if user.dependents.left(end.seq, left, on_disk, row_known) {
            self.touch(&end.user, seq);
        }
    }

    // ---------------------------------------------------------------------------------------------------- release

    /// Looks at those whose parent has ended, if there are any.
    pub(super) fn free_dependents(&mut self, id: &UserId) {
        let Some(user) = self.users.get_mut(id).filter(|user| user.dependents.due && user.row_known) else {
            return;
        };
        if !user.is_known() {
            self.load_once(Query::User(id.clone()));
            return;
        }
        user.dependents.due = false;
        let freed = user.dependents.freed();
        if !freed.is_empty() {
            self.begin(id.clone(), Work::Free(freed), self.applied);
        }
    }

    /// Looks at the next of them: in memory, or with a page of one message from the store.
    pub(super) fn free_next(&mut self, id: OperationId) {
        let Some(open) = self.operations.open.get_mut(&id) else { return };
        let user = open.user.clone();
        let next = if let Work::Free(freed) = &mut open.work { freed.pop_front() } else { None };
        let Some(seq) = next else { return self.go_on(id, Search::Over) };
        let lane = self.user_mut(&user).lane(LaneId::Scheduled);
        if lane.entry(seq).is_some() {
            self.act_on(id, &user, EntryRef { lane: LaneId::Scheduled, seq }, None);
        } else if lane.more_after.is_some_and(|after| after < seq) {
            let (max_messages, max_bytes) = (1, self.config.max_load_bytes.get());
            let after = seq.prev();
            let ended = self.user_mut(&user).lane(LaneId::Scheduled).ended.range(seq..).copied().collect();
            let query = Query::Page { user, lane: LaneId::Scheduled, after, ended, max_messages, max_bytes };
            let load = self.load(query);
            self.operations.loads.insert(load, id);
            return self.wait_in_store(id, seq);
        }
        self.go_on(id, Search::Memory(0, seq));
    }

    /// They were looked at, unless the store could not be read.
    pub(super) fn dependents_freed(&mut self, id: &UserId, failed: bool) {
        let retry = self.now.after(core::time::Duration::from_millis(super::load::RETRY_MS));
        if failed && let Some(user) = self.users.get_mut(id) {
            user.dependents.due = true;
            self.timers.insert((retry, super::timer::TimerKey::Reload(id.clone())));
        }
    }

    /// Does what is to be done about a dependent that waits: nothing, as long as its parent does. `crowded` says that it
    /// must take another place of its lane.
    pub(super) fn tend_dependent(&mut self, id: &UserId, entry: EntryRef, accept: &Accept, crowded: bool) {
        if accept.expires() <= self.now {
            return self.end_wherever(id, entry, accept, EndReason::Expired, false);
        }
        let row = self.user_mut(id).dependents.rows.get(&entry.seq).copied();
        // Of whom the row was lost to damage, nobody knows how the parent ended.
        let ended = row.map_or(Some(ParentEnd::Otherwise), |row| row.ended);
        let policy = accept.message.after().map_or(Otherwise::Release, |after| after.otherwise);
        match (ended, policy) {
            (None, _) => {
                if let (true, Some(parent)) = (crowded, self.parent_to_keep(id, entry.seq)) {
                    let (message, at) = (accept.message.clone(), accept.at);
                    self.move_dependent(id, entry, accept, (message, at, Some(parent)));
                }
            }
            (Some(ParentEnd::Otherwise), Otherwise::Cancel) => {
                self.end_wherever(id, entry, accept, EndReason::Cancelled, false);
            }
            (Some(_), _) => {
                let at = accept.message.not_before().filter(|at| *at <= self.now).unwrap_or(accept.at);
                let message = at_once_if_due(accept.message.clone().without_parent(), self.now);
                self.move_dependent(id, entry, accept, (message, at, None));
            }
        }
    }

    fn move_dependent(
        &mut self,
        id: &UserId,
        entry: EntryRef,
        old: &Accept,
        (message, at, parent): (Message, Timestamp, Option<Parent>),
    ) {
        let moved = Accept { at, admission: Admission::Moved, parent, ..Accept::new(message, self.now) };
        self.move_to_lane(id, entry, old, moved);
    }

    /// What a dependent goes on waiting for in another place. `None` while its parent is about to end or to move: what
    /// is recorded of that names the place that it has now.
    pub(super) fn parent_to_keep(&self, id: &UserId, seq: Seq) -> Option<Parent> {
        let user = self.users.get(id)?;
        let row = user.dependents.rows.get(&seq).filter(|row| row.ended.is_none())?;
        let is_ending = |(lane, seq)| user.is_ending(EntryRef { lane, seq });
        (!row.parent.places().any(is_ending)).then_some(row.parent)
    }
}

/// What is known of a parent.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Waits(Parent),
    Ended(EndReason),
}

/// What the end of a message is to those that wait for it. What was settled elsewhere was delivered there.
const fn parent_end(reason: EndReason) -> ParentEnd {
    match reason {
        EndReason::Delivered | EndReason::Elsewhere => ParentEnd::Delivered,
        _ => ParentEnd::Otherwise,
    }
}
