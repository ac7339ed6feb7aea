//! Where a message stands, also when it has ended: by what lives, by the ledger, and by the ids that are remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Machine;
use super::announce::living;
use super::dedup::Known;
use super::entry::EntryState;
use super::io::EntryRef;
use super::operate::{Open, OperationId, Work};
use super::operation::{CopyStanding, Located, Operation, Target};
use super::query::Query;
use crate::id::{DeviceId, UserId};
use crate::record::{Accept, Admission, End, LaneId, LedgerRow, LedgerRows, Seq, Slot, Slots};
use crate::status::{EndReason, Status};

impl Located {
    pub(super) fn by(row: &LedgerRow) -> Self {
        Self {
            entry: Some(EntryRef { lane: row.lane, seq: row.place }),
            status: Status::Ended(row.reason),
            possibly_delivered: row.possibly_delivered,
            attempts: row.attempts,
            since: Some(row.at),
            read: None,
        }
    }

    /// Its receiver has it, and that is all that is known.
    pub(super) fn delivered(entry: Option<EntryRef>) -> Self {
        let status = Status::Ended(EndReason::Delivered);
        Self { entry, status, possibly_delivered: false, attempts: 0, since: None, read: None }
    }

    pub(super) fn ended(end: &End) -> Self {
        let possibly_delivered = end.possibly_delivered && end.reason != EndReason::Delivered;
        let entry = Some(EntryRef { lane: end.lane, seq: end.seq });
        let (status, attempts, since) = (Status::Ended(end.reason), end.attempts, Some(end.at));
        Self { entry, status, possibly_delivered, attempts, since, read: None }
    }

    /// Of a message that lives, or is kept as a dead letter.
    fn living(at: EntryRef, accept: &Accept, state: Option<EntryState>, attempts: u32, known: bool) -> Self {
        let entry = Some(at);
        let status = match (accept.admission, state) {
            (Admission::Buried(burial), _) => {
                let (status, attempts) = (Status::Ended(burial.reason), burial.attempts);
                let (possibly_delivered, since) = (burial.possibly_delivered, Some(burial.at));
                return Self { entry, status, possibly_delivered, attempts, since, read: None };
            }
            _ => living(state, attempts),
        };
        let since = (status == Status::Accepted).then_some(accept.at);
        Self { entry, status, possibly_delivered: known, attempts, since, read: None }
    }
}

/// Where a message stands as a whole, given where its copies do, and where the one stands that was seen last.
///
/// One device that has it is enough, also where nothing is known but that a copy was settled by it; then, that it lives. It
/// has ended otherwise when all copies have; of those of which nothing says how they ended, it is left open whether they were
/// delivered.
pub(super) fn whole_of(copies: &[CopyStanding], last: Located) -> Located {
    let all = || copies.iter().filter_map(|copy| copy.located);
    let ended_as = |reason| all().find(|located| located.status == Status::Ended(reason));
    let delivered = ended_as(EndReason::Delivered)
        .or_else(|| ended_as(EndReason::Elsewhere).map(|_| Located::delivered(None)));
    let lives = || all().find(|located| !matches!(located.status, Status::Ended(_)));
    let is_open = copies.iter().any(|copy| copy.located.is_none());
    let ended = Located { possibly_delivered: last.possibly_delivered || is_open, ..last };
    delivered.or_else(lives).unwrap_or(ended)
}

impl Machine {
    /// What must be read of the ids of a sender before it can be said where a message stands.
    pub(super) fn ids_to_locate(&mut self, target: &Target) -> Option<Query> {
        match self.remembered(target)? {
            Known::AskStore => {
                let sender = self.digester.user(target.sender.as_ref()?.as_ref());
                Some(self.dedup.query(sender, self.now))
            }
            Known::Seen(_) | Known::New | Known::Held => None,
        }
    }

    /// What is remembered of its id, if it says of which sender.
    pub(super) fn remembered(&mut self, target: &Target) -> Option<Known> {
        let sender = target.sender.as_ref()?.as_ref();
        let key = self.digester.identity(sender, &target.user, target.id);
        Some(self.dedup.look_up(self.digester.user(sender), key, self.now))
    }

    /// Behind which place, by what is remembered of its id, nothing is of an older message with the same one. What was
    /// accepted behind `before` is not meant.
    pub(super) fn first_place(&mut self, target: &Target, before: Seq) -> Seq {
        match self.remembered(target) {
            Some(Known::Seen(slot)) if slot.seq < before => slot.seq,
            _ => Seq::ZERO,
        }
    }

    /// A message was found that waits.
    pub(super) fn locate(
        &mut self,
        operation: OperationId,
        entry: EntryRef,
        accept: &Arc<Accept>,
        (state, known): (Option<EntryState>, bool),
    ) {
        let user = accept.message.recipient();
        let lane = self.users.get(user).map(|user| user.lane_ref(entry.lane));
        let attempts = lane.and_then(|lane| lane.attempts.get(&entry.seq)).map_or(0, |(n, _)| *n);
        let located = Located::living(entry, accept, state, attempts, known);
        if let Some(device) = accept.device.filter(|_| entry.lane == LaneId::Dead) {
            return self.locate_letter(operation, user.clone(), device.slot, located);
        }
        let copies = self.locate_copies(entry, accept, Some(located));
        if let Some(open) = self.operations.open.get_mut(&operation) {
            open.done.located = Some(whole_of(&copies, located));
            open.done.copies = copies;
        }
    }

    /// A dead letter of one device was found: it says how that copy ended, and nothing of the others.
    fn locate_letter(&mut self, operation: OperationId, user: UserId, slot: Slot, located: Located) {
        let copy = CopyStanding { slot, device: self.name_of(&user, slot), located: Some(located) };
        let Some(open) = self.operations.open.get_mut(&operation) else { return };
        match open.done.copies.binary_search_by_key(&slot, |copy| copy.slot) {
            Ok(at) => open.done.copies.iter_mut().skip(at).take(1).for_each(|known| *known = copy.clone()),
            Err(at) => open.done.copies.insert(at, copy),
        }
    }

    /// A copy was found that is about to end: where the others stand is known now, of this one, and of others that are
    /// about to end with it, when they have.
    pub(super) fn locate_ending(&mut self, operation: OperationId, entry: EntryRef, accept: &Accept) {
        let locates = |open: &Open| matches!(open.work, Work::Asked(_, Operation::Locate(_)));
        if !self.operations.open.get(&operation).is_some_and(locates) {
            return;
        }
        let copies = self.locate_copies(entry, accept, None);
        let user = self.user_mut(accept.message.recipient());
        let others = accept.device.zip(entry.lane.priority()).into_iter();
        let others = others.flat_map(|(device, priority)| {
            let at = move |(slot, seq)| EntryRef { lane: LaneId::Device(slot, priority), seq };
            device.others(entry.seq).map(at)
        });
        let ending: Vec<_> = others.filter(|at| user.is_ending(*at)).collect();
        ending.into_iter().for_each(|at| self.wait_for_end(operation, at.seq, false));
        if let Some(open) = self.operations.open.get_mut(&operation) {
            open.done.copies = copies;
        }
    }

    /// Where all copies of a message stand, given where this one does.
    fn locate_copies(&mut self, entry: EntryRef, accept: &Accept, own: Option<Located>) -> Vec<CopyStanding> {
        let (Some(device), Some(priority)) = (accept.device, entry.lane.priority()) else {
            return Vec::new();
        };
        let id = accept.message.recipient();
        let alive = self.other_copies(id, entry, accept.device);
        let places = device.others(entry.seq).chain([(device.slot, entry.seq)]);
        let places = places.map(|(slot, seq)| (slot, EntryRef { lane: LaneId::Device(slot, priority), seq }));
        let mut copies: Vec<_> = places
            .map(|(slot, at)| {
                let located = match at == entry {
                    true => own,
                    false => self.standing_at(id, at, alive.contains(&at)),
                };
                CopyStanding { slot, device: self.name_of(id, slot), located }
            })
            .collect();
        copies.sort_unstable_by_key(|copy| copy.slot);
        copies
    }

    fn name_of(&self, id: &UserId, slot: Slot) -> Option<DeviceId> {
        let state = self.users.get(id)?.slots.get(&slot)?;
        state.device.as_ref().map(|device| device.device.clone())
    }

    /// Where a copy stands, by what lives and by the ledger.
    fn standing_at(&self, id: &UserId, at: EntryRef, lives: bool) -> Option<Located> {
        let user = self.users.get(id)?;
        let lane = user.lane_ref(at.lane);
        let attempts = lane.attempts.get(&at.seq).map_or(0, |(n, _)| *n);
        let known = lane.was_exposed(at.seq);
        match lane.entry(at.seq) {
            Some(found) => Some(Located::living(at, &found.accept, Some(found.state()), attempts, known)),
            None if lives => {
                let status = living(None, attempts);
                let (entry, possibly_delivered, since) = (Some(at), known, None);
                Some(Located { entry, status, possibly_delivered, attempts, since, read: None })
            }
            None => user
                .ledger
                .at(at.seq)
                .map(Located::by)
                .or_else(|| user.ledger.knows_copies_since(at.seq).then(|| Located::delivered(Some(at)))),
        }
    }

    /// What can be said of each copy of a message of which none lives: by the dead letters that were found, by the rows of
    /// the ledger, and, of whom it was for, by there being none.
    fn ended_copies(
        &self,
        user: &UserId,
        rows: &[LedgerRow],
        (first, among): (Seq, Slots),
        letters: Vec<CopyStanding>,
    ) -> Vec<CopyStanding> {
        let of_rows = rows.iter().filter_map(|row| Some((row.lane.slot()?, Located::by(row))));
        let of_letters = letters.into_iter().filter_map(|letter| Some((letter.slot, letter.located?)));
        let known: BTreeMap<_, _> = of_rows.chain(of_letters).collect();
        let all: BTreeSet<_> = known.keys().copied().chain(among.iter()).collect();
        let knows_all = self.users.get(user).is_some_and(|user| user.ledger.knows_copies_since(first));
        let located = |slot: Slot| {
            let is_delivered = among.has(slot) && knows_all;
            known.get(&slot).copied().or_else(|| is_delivered.then(|| Located::delivered(None)))
        };
        let copy = |slot| CopyStanding { slot, device: self.name_of(user, slot), located: located(slot) };
        all.into_iter().map(copy).collect()
    }

    /// It has ended while it was looked for, and that is durable.
    pub(super) fn locate_ended(work: &Work, end: &End) -> Option<Located> {
        let locates = matches!(work, Work::Asked(_, Operation::Locate(_)) | Work::FindParent(_));
        let is_meant = locates && end.counts();
        is_meant.then(|| Located::ended(end))
    }

    /// It does not wait: how it ended, if anything says so, what is remembered of the last deliveries included.
    pub(super) fn locate_finished(
        &mut self,
        target: &Target,
        before: Seq,
        letters: Vec<CopyStanding>,
    ) -> Option<(Located, Vec<CopyStanding>)> {
        let first = self.first_place(target, before);
        let found = self.locate_in_ledger(target, before, letters);
        let whole = found.as_ref().map(|(whole, _)| *whole);
        match self.remembered_delivery(target, first, whole) {
            Some(delivered) => Some((delivered, found.map(|(_, copies)| copies).unwrap_or_default())),
            None => found,
        }
    }

    /// It does not wait: how it ended, if anything durable says so, given the dead letters of single devices that were found.
    ///
    /// Of what was accepted behind `before`, nobody has looked whether it waits.
    pub(super) fn locate_in_ledger(
        &mut self,
        target: &Target,
        before: Seq,
        letters: Vec<CopyStanding>,
    ) -> Option<(Located, Vec<CopyStanding>)> {
        let place = match self.remembered(target) {
            Some(Known::Seen(slot)) if slot.seq != Seq::ZERO && slot.seq < before => {
                Some((slot.seq, slot.among))
            }
            _ => None,
        };
        let (first, among) = place.unwrap_or((Seq::ZERO, Slots::NONE));
        let ledger = &self.users.get(&target.user)?.ledger;
        // An older one may have had the same id.
        let rows = ledger.all_of(target.id, first);
        let (last, knows_all) = (rows.last().map(Located::by), ledger.knows_all_since(first));
        let is_of_devices = rows.last().map_or(!among.is_empty(), |row| row.lane.slot().is_some());
        if !is_of_devices && letters.is_empty() {
            // Accepted, gone, and not among those that ended otherwise.
            let delivered = || (place.is_some() && knows_all).then(|| Located::delivered(None));
            return last.or_else(delivered).map(|located| (located, Vec::new()));
        }
        // Where it can be sent again from, rather than where it was.
        let last = letters.last().and_then(|letter| letter.located).or(last);
        let copies = self.ended_copies(&target.user, &rows, (first, among), letters);
        let seen = last.or_else(|| copies.iter().find_map(|copy| copy.located))?;
        let mut whole = whole_of(&copies, seen);
        // Which other devices it was for, nobody knows any more, nor what they have.
        whole.possibly_delivered |= among.is_empty() && whole.status != Status::Ended(EndReason::Delivered);
        Some((whole, copies))
    }

    /// What is known of a user's ledger.
    pub(super) fn read_ledger(&mut self, user: &UserId) -> LedgerRows {
        let keep = self.keep();
        self.users.get_mut(user).map(|user| user.ledger.rows(keep)).unwrap_or_default()
    }
}
