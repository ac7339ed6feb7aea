//! Where operations look: in memory, a slice at a time, and in the store, page by page.

use std::collections::BTreeMap;

use super::Machine;
use super::devices::SlotState;
use super::io::{EntryRef, LoadId};
use super::operate::{OperationId, Work};
use super::operation::Operation;
use super::query::{Page, Query};
use super::refusal::OperationError;
use crate::config::{MAX_EVICTED, Overflow};
use crate::record::{LaneId, Seq, Slot};
use crate::time::Timestamp;

/// Messages of one operation handled per slice: bounds how long a commit waits behind it.
const SLICE: usize = 256;

/// How far an operation has looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// In memory, behind this place of this one of its lanes, up to where the store begins: of works that take what they
    /// find in order, lane by lane.
    Before(usize, Seq),
    /// In memory, behind this place of this one of its lanes.
    Memory(usize, Seq),
    /// In the store, behind this place of this one of its lanes.
    Store(usize, Seq),
    /// In the store, at the place where it was accepted, as far as that is remembered: of works that look for one message.
    Place,
    /// In the store, by its id.
    Id,
    /// Everywhere.
    Over,
}

impl Search {
    pub(super) fn begin(work: &Work) -> Self {
        if work.is_in_order() { Self::Before(0, Seq::ZERO) } else { Self::Memory(0, Seq::ZERO) }
    }
}

impl Work {
    /// Where it looks.
    pub(super) fn lanes(&self, slots: &BTreeMap<Slot, Box<SlotState>>) -> Vec<LaneId> {
        let slots = slots.keys().copied();
        let [waiting @ .., dead] = LaneId::ALL;
        let of_slots = slots.clone().flat_map(LaneId::of_slot);
        let waiting = waiting.into_iter().chain(of_slots);
        match self {
            Self::Ripen(_) | Self::Free(_) => vec![LaneId::Scheduled],
            Self::Sweep => waiting.collect(),
            Self::MakeRoom(room) => room.lanes(slots),
            Self::Clear(slot) => LaneId::of_slot(*slot).into_iter().chain([dead]).collect(),
            Self::FindParent(_) => waiting.chain([dead]).collect(),
            Self::Asked(_, Operation::Ledger(_) | Operation::Letters(_)) => Vec::new(),
            Self::Asked(_, Operation::Purge(_) | Operation::Locate(_)) => waiting.chain([dead]).collect(),
            Self::Asked(_, operation) if operation.is_about_dead() => vec![dead],
            Self::Asked(..) => waiting.collect(),
        }
    }

    /// It looks only behind this place.
    fn starts_behind(&self) -> Seq {
        match self {
            Self::Asked(_, Operation::Inspect(_, after, _)) => *after,
            Self::Free(_) => Seq::MAX,
            _ => Seq::ZERO,
        }
    }

    fn only_reads(&self) -> bool {
        match self {
            Self::Asked(_, operation) => operation.only_reads(),
            Self::FindParent(_) => true,
            _ => false,
        }
    }

    /// Whether it takes what it finds lane by lane and in the order of places: what is in the store comes before what is
    /// in memory only. The others look first where that costs nothing.
    fn is_in_order(&self) -> bool {
        let is_about_dead = matches!(self, Self::Asked(_, operation) if operation.is_about_dead());
        is_about_dead || matches!(self, Self::Ripen(_) | Self::Sweep | Self::MakeRoom(_))
    }

    /// Where it goes on when it has seen all that the store has of this one of its lanes.
    fn behind_store(&self, at: usize) -> Search {
        if self.is_in_order() { Search::Memory(at, Seq::ZERO) } else { Search::Store(at + 1, Seq::ZERO) }
    }

    /// How many messages it reads at once.
    fn page(&self) -> usize {
        match self {
            Self::MakeRoom(_) => MAX_EVICTED,
            Self::Free(_) => 1,
            _ => SLICE,
        }
    }
}

impl Machine {
    /// An operation waits for a page.
    pub(super) fn wait_in_store(&mut self, id: OperationId, after: Seq) {
        if let Some(open) = self.operations.open.get_mut(&id) {
            open.search = Search::Store(0, after);
        }
    }

    pub(super) fn go_on(&mut self, id: OperationId, search: Search) {
        if let Some(open) = self.operations.open.get_mut(&id) {
            open.search = search;
            self.operations.make_ready(id);
        }
    }

    /// Where an operation goes on that has found something in this one of its lanes, if it need not look further here.
    pub(super) fn enough(&self, id: OperationId, at: usize) -> Option<Search> {
        let Some(open) = self.operations.open.get(&id) else { return Some(Search::Over) };
        let is_enough = match &open.work {
            Work::Asked(_, Operation::Inspect(_, _, max)) => {
                let letters = &open.done.letters;
                let bytes: u64 = letters.iter().map(|letter| letter.message.cost()).sum();
                letters.len() >= *max || bytes >= self.config.max_load_bytes.get()
            }
            Work::MakeRoom(room) => {
                let lane = open.lanes.get(at);
                let has_room = lane.is_none_or(|(lane, _)| self.has_room(&open.user, room, *lane));
                // Of the next lane something may be older.
                let priority = |at: usize| open.lanes.get(at).map(|(lane, _)| lane.priority());
                let goes_on =
                    self.config.overflow == Overflow::DropOldest || priority(at + 1) == priority(at);
                return has_room.then_some(match goes_on {
                    true => Search::Before(at + 1, Seq::ZERO),
                    false => Search::Over,
                });
            }
            work => work.is_about_one(),
        };
        is_enough.then_some(Search::Over)
    }

    pub(super) fn search_memory(&mut self, id: OperationId, at: usize, after: Seq) {
        let Some(open) = self.operations.open.get(&id) else { return };
        let is_before = matches!(open.search, Search::Before(..));
        let in_order = open.work.is_in_order();
        let Some((lane, store_after)) = open.lanes.get(at).copied() else {
            let in_store = match open.work.looks_for() {
                Some(_) => Search::Place,
                None => Search::Store(0, Seq::ZERO),
            };
            return self.go_on(id, if in_order { Search::Over } else { in_store });
        };
        let user = open.user.clone();
        // What is in memory behind where the store began comes after what the store has.
        let (after, until) = match (is_before, in_order) {
            (true, _) => (after.max(open.work.starts_behind()), store_after.map_or(Seq::ZERO, Seq::next)),
            (false, true) => {
                (after.max(store_after.unwrap_or(Seq::ZERO)).max(open.work.starts_behind()), Seq::MAX)
            }
            (false, false) => (after, Seq::MAX),
        };
        let entries = self.users.get(&user).map(|user| &user.lane_ref(lane).entries);
        let from = entries.map_or(0, |entries| entries.partition_point(|entry| entry.seq <= after));
        let slice = entries.into_iter().flat_map(|entries| entries.iter().skip(from).take(SLICE));
        let slice = slice.take_while(|entry| entry.seq < open.before && entry.seq < until);
        let mut last = None;
        let mut found = Vec::new();
        for entry in slice {
            last = Some(entry.seq);
            if open.work.means(&entry.accept) {
                found.push(entry.seq);
            }
        }
        let enough = found.into_iter().find_map(|seq| {
            let acted = self.act_on(id, &user, EntryRef { lane, seq }, None);
            if acted { self.enough(id, at) } else { None }
        });
        let next = enough.unwrap_or(match (last, is_before) {
            (Some(last), true) => Search::Before(at, last),
            (Some(last), false) => Search::Memory(at, last),
            (None, true) => Search::Store(at, Seq::ZERO),
            (None, false) if in_order => Search::Before(at + 1, Seq::ZERO),
            (None, false) => Search::Memory(at + 1, Seq::ZERO),
        });
        self.go_on(id, next);
    }

    pub(super) fn search_store(&mut self, id: OperationId, at: usize, after: Seq) {
        let Some(open) = self.operations.open.get(&id) else { return };
        let Some((lane, began)) = open.lanes.get(at).copied() else {
            return self.go_on(id, Search::Over);
        };
        let page = open.work.page();
        let behind = open.work.behind_store(at);
        let (user, after) = (open.user.clone(), after.max(open.work.starts_behind()));
        let Some(memory_ends) = began else {
            return self.go_on(id, behind);
        };
        let found = self.user_mut(&user).lane(lane);
        // What ended meanwhile may be gone in part: were it asked for, that would look like damage.
        let after = after.max(memory_ends).max(found.cursor);
        let ended = found.ended.range(after.plus(1)..).copied().collect();
        let (max_messages, max_bytes) = (page, self.config.max_load_bytes.get());
        let query = Query::Page { user, lane, after, ended, max_messages, max_bytes };
        let load = self.load(query);
        self.operations.loads.insert(load, id);
    }

    /// A page was read for an operation. `false` when it was for somebody else.
    pub(super) fn page_for_operation(
        &mut self,
        now: Timestamp,
        load: LoadId,
        lane: LaneId,
        page: &Page,
    ) -> bool {
        let Some(id) = self.operations.loads.remove(&load) else { return false };
        let Some(open) = self.operations.open.get(&id) else { return true };
        let Search::Store(at, _) = open.search else { return true };
        let (user, work) = (open.user.clone(), open.work.clone());
        let before = open.before;
        self.note_beginning(id, lane, page, false);
        let mut found = page.entries.iter().filter(|(seq, accept)| *seq < before && work.means(accept));
        let enough = found.find_map(|(seq, accept)| {
            let acted = self.act_on(id, &user, EntryRef { lane, seq: *seq }, Some(accept));
            if acted { self.enough(id, at) } else { None }
        });
        if let Some(next) = enough {
            self.note_beginning(id, lane, page, true);
            self.go_on(id, next);
            return true;
        }
        // What is damaged may be the one that is looked for: then nothing is known of it, least of all that it has ended.
        if !page.damaged.is_empty() && matches!(work, Work::Asked(_, Operation::Locate(_))) {
            self.finish(id, Err(OperationError::StoreUnreadable));
            return true;
        }
        if !work.is_about_one() && !work.only_reads() {
            for (seq, cost) in &page.damaged {
                self.end_damaged(now, &user, lane, *seq, *cost);
            }
        }
        self.note_beginning(id, lane, page, true);
        let next = match page.more_after {
            Some(after) => Search::Store(at, after),
            None => work.behind_store(at),
        };
        self.go_on(id, next);
        true
    }

    /// Nothing lives in a lane's part in the store before the first of a page, as long as nothing did on the pages before it.
    /// So gaps behind what ended long ago do not stay for ever in a lane that nobody reads into memory, and neither do
    /// those that an operation makes: what is about to end lives until that is durable, and the lane begins behind it then.
    /// `is_done` says that the operation has seen to this page: what lives on it goes on living.
    fn note_beginning(&mut self, id: OperationId, of: LaneId, page: &Page, is_done: bool) {
        let applied = self.applied;
        let Some(open) = self.operations.open.get_mut(&id) else { return };
        let began = open.lanes.iter().find(|(lane, _)| *lane == of).and_then(|(_, began)| *began);
        let is_behind = open.work.starts_behind() > Seq::ZERO || open.first_live == Some(of);
        let (Some(began), Some(user), false) = (began, self.users.get_mut(&open.user), is_behind) else {
            return;
        };
        // The lanes that are offered from are read into memory.
        let is_read_otherwise = user.is_served(of, &self.links);
        let (row_known, lane) = (user.row_known, user.lane(of));
        let lives = |seq: &Seq| *seq > lane.cursor && !lane.ended.contains(seq) && !lane.ending.contains(seq);
        let damaged = page.damaged.iter().map(|(seq, _)| *seq).filter(|seq| *seq > Seq::ZERO);
        let first = page.entries.iter().map(|(seq, _)| *seq).chain(damaged).filter(lives).min();
        if is_done && first.is_some() {
            open.first_live = Some(of);
        }
        // What has left memory since then is in the store before that.
        let is_whole = lane.more_after.is_some_and(|after| after >= began);
        if is_read_otherwise || !is_whole || lane.loading.is_some() {
            return;
        }
        lane.clear_through(first.map_or(page.more_after.unwrap_or(Seq::MAX), Seq::prev));
        if row_known {
            lane.advance_cursor(applied);
        }
    }

    /// A page could not be read for an operation. `false` when it was for somebody else.
    pub(super) fn page_failed_for_operation(&mut self, load: LoadId) -> bool {
        let Some(id) = self.operations.loads.remove(&load) else { return false };
        if self.operations.open.get(&id).is_some_and(|open| open.search != Search::Over) {
            self.finish(id, Err(OperationError::StoreUnreadable));
        }
        true
    }
}
