//! One message, looked for by its id: where that needs less than a pass over all that waits.
//!
//! | known | asked |
//! |---|---|
//! | its sender, and how what was accepted with that id has ended | nothing |
//! | its sender | the store, for the place where it was accepted |
//! | its id | the store, for that id |
//!
//! Memory is looked through first. The store names what it has, whether or not that has ended: what lives is decided here,
//! by the user's row. If it names too many, they are gone through page by page.

use super::Machine;
use super::dedup::Known;
use super::io::{Action, EntryRef, LoadId, Ticket};
use super::operate::{OperationId, Work};
use super::operation::{Located, Operation, Outcome, Target};
use super::query::{Matches, Query};
use super::refusal::OperationError;
use super::search::Search;
use super::user::User;
use crate::record::{LaneId, Seq};
use crate::status::EndReason;

/// Messages of one id that are named at once. Many senders may have used it.
const MAX_MATCHES: usize = 64;

impl Work {
    /// The one message that it looks for, and does nothing to.
    pub(super) fn looks_for(&self) -> Option<&Target> {
        match self {
            Self::Asked(_, Operation::Locate(target)) => Some(target),
            Self::FindParent(orphan) => Some(orphan.target()),
            _ => None,
        }
    }
}

impl Machine {
    /// Answers where a message stands, if that is known without looking for it. `false` when it is not, or something else
    /// was asked.
    pub(super) fn locate_at_once(&mut self, ticket: Ticket, operation: &Operation) -> bool {
        let Operation::Locate(target) = operation else { return false };
        let Some(located) = self.locate_decided(target) else { return false };
        let done = Outcome { located: Some(located), ..Outcome::default() };
        let result = Ok(self.with_history(target, done));
        self.actions.push_back(Action::Done { ticket, result });
        self.let_go(&target.user);
        true
    }

    /// How the message ended that was accepted last with its id by its sender, if that is remembered of its very place.
    ///
    /// Otherwise it may have gone on elsewhere: it was moved, other devices have copies, or a dead letter is kept.
    fn locate_decided(&mut self, target: &Target) -> Option<Located> {
        let Some(Known::Seen(slot)) = self.remembered(target) else { return None };
        if slot.seq == Seq::ZERO || !slot.among.is_empty() {
            return None;
        }
        let is_there = |found: &Located| found.entry.is_some_and(|entry| entry.seq == slot.seq);
        let delivered = self.remembered_delivery(target, slot.seq, None).filter(is_there);
        let kept = [EndReason::Dead, EndReason::Rejected];
        let ended = || {
            let row = self.users.get(&target.user)?.ledger.at(slot.seq);
            row.filter(|row| row.id == Some(target.id) && !kept.contains(&row.reason)).map(Located::by)
        };
        delivered.or_else(ended)
    }

    /// Asks the store for what is at the place where a message was accepted, if that is remembered.
    pub(super) fn search_place(&mut self, id: OperationId) {
        let Some(open) = self.operations.open.get(&id) else { return };
        let (before, user) = (open.before, open.user.clone());
        let lanes = open.lanes.clone();
        let Some(target) = open.work.looks_for().cloned() else { return self.go_on(id, Search::Over) };
        let (seq, among) = match self.remembered(&target) {
            Some(Known::Seen(slot)) if slot.seq > Seq::ZERO && slot.seq < before => (slot.seq, slot.among),
            _ => return self.go_on(id, Search::Id),
        };
        let first = among.iter().next();
        let found = self.user_mut(&user);
        let may_be = |lane: LaneId, began| {
            lane != LaneId::Dead && lane.slot() == first && is_in_store(found, lane, began, seq)
        };
        let lanes: Vec<_> = lanes.into_iter().filter(|(lane, began)| may_be(*lane, *began)).collect();
        if lanes.is_empty() {
            return self.go_on(id, Search::Id);
        }
        let lanes = lanes.into_iter().map(|(lane, _)| lane).collect();
        let load = self.load(Query::Place { user, lanes, seq });
        self.operations.loads.insert(load, id);
    }

    /// Asks the store for what has the id of a message.
    pub(super) fn search_id(&mut self, id: OperationId) {
        let max_bytes = self.config.max_load_bytes.get();
        let Some(open) = self.operations.open.get(&id) else { return };
        let is_all_in_memory = open.lanes.iter().all(|(_, began)| began.is_none());
        let Some(target) = open.work.looks_for().filter(|_| !is_all_in_memory) else {
            return self.go_on(id, Search::Over);
        };
        let (user, id_of) = (target.user.clone(), target.id);
        let query = Query::Id { user, id: id_of, max_messages: MAX_MATCHES, max_bytes };
        let load = self.load(query);
        self.operations.loads.insert(load, id);
    }

    /// The store has answered an operation that looks for one message.
    pub(super) fn matches_for_operation(&mut self, load: LoadId, matches: &Matches) {
        let Some(id) = self.operations.loads.remove(&load) else { return };
        let Some(open) = self.operations.open.get(&id) else { return };
        let by_place = open.search == Search::Place;
        if !by_place && open.search != Search::Id {
            return;
        }
        let (user, work, before) = (open.user.clone(), open.work.clone(), open.before);
        let lanes = open.lanes.clone();
        let lives = |user: &User, lane: LaneId, seq: Seq| {
            let began = lanes.iter().find(|(known, _)| *known == lane).and_then(|(_, began)| *began);
            seq < before && is_in_store(user, lane, began, seq)
        };
        // As everywhere: lane by lane, and the oldest first.
        let at = |lane: LaneId| lanes.iter().position(|(known, _)| *known == lane);
        let mut found: Vec<_> = matches.entries.iter().filter(|(_, accept)| work.means(accept)).collect();
        found.sort_by_key(|(seq, accept)| (at(accept.lane()), *seq));
        for (seq, accept) in found {
            let entry = EntryRef { lane: accept.lane(), seq: *seq };
            if lives(self.user_mut(&user), entry.lane, entry.seq)
                && self.act_on(id, &user, entry, Some(accept))
                && let Some(next) = self.enough(id, 0)
            {
                return self.go_on(id, next);
            }
        }
        if by_place {
            return self.go_on(id, Search::Id);
        }
        if matches.is_cut {
            return self.go_on(id, Search::Store(0, Seq::ZERO));
        }
        // What is damaged may be the one that is looked for: then nothing is known of it, least of all that it has ended.
        let found = self.user_mut(&user);
        let may_be_it = matches.damaged.iter().any(|at| at.is_none_or(|(lane, seq)| lives(found, lane, seq)));
        match may_be_it && matches!(work, Work::Asked(..)) {
            true => self.finish(id, Err(OperationError::StoreUnreadable)),
            false => self.go_on(id, Search::Over),
        }
    }
}

/// Whether what is at this place lives, and was not in memory when the search began, given where the store began then.
fn is_in_store(user: &User, lane: LaneId, began: Option<Seq>, seq: Seq) -> bool {
    let found = user.lane_ref(lane);
    began.is_some_and(|began| seq > began) && seq > found.cursor && !found.ended.contains(&seq)
}
