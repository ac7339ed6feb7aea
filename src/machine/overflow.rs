//! Overflow: what gives way to a new message in a full outbox.
//!
//! What is to go is looked for as an operation looks for messages: in memory and, page by page, in the store. It ends in
//! the commit that accepts the new message, so that no crash drops one without the other. Meanwhile whoever sends to the
//! same user waits: nobody overtakes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Machine;
use super::accept::Parked;
use super::commit::{Instead, Pending, PendingAccept, Unit};
use super::entry::EntryState;
use super::io::{EntryRef, Ticket};
use super::operate::Work;
use super::query::Query;
use super::refusal::Refusal;
use super::user::Totals;
use crate::config::{MAX_EVICTED, Overflow};
use crate::id::UserId;
use crate::message::{Message, Priority};
use crate::record::{Accept, LaneId, NewestRow, Seq};
use crate::status::EndReason;

/// The lanes of the priorities, the lowest first.
const LOWEST_FIRST: [LaneId; 4] = [LaneId::Low, LaneId::Normal, LaneId::High, LaneId::Critical];

/// A message that may give way.
#[derive(Clone, Debug)]
pub(super) struct Victim {
    entry: EntryRef,
    accept: Arc<Accept>,
}

/// A message that needs room, and what has been found that may give way.
#[derive(Clone, Debug)]
pub(super) struct Room {
    ticket: Ticket,
    message: Message,
    found: Vec<Victim>,
}

/// Why there is no room for a message.
pub(super) enum Shortage {
    /// It must be refused.
    Refused(Refusal),
    /// Something may give way: it must be looked for.
    Unsearched,
}

impl Room {
    /// Where to look: nothing gives way to what is less urgent.
    pub(super) fn lanes(&self) -> &'static [LaneId] {
        let upto = Priority::ALL.len() - self.message.priority().index();
        LOWEST_FIRST.get(..upto).unwrap_or(&LOWEST_FIRST)
    }

    /// Notes a message that may give way. What settles just now may be found twice.
    pub(super) fn note(&mut self, entry: EntryRef, accept: Arc<Accept>) {
        let mut of_lane = self.found.iter().filter(|victim| victim.entry.lane == entry.lane);
        if of_lane.clone().count() < MAX_EVICTED && !of_lane.any(|victim| victim.entry == entry) {
            self.found.push(Victim { entry, accept });
        }
    }
}

impl Machine {
    /// Takes the message's share of the quotas. `old` is the place and the cost of what gives way anyhow, `found` what
    /// else may, if it was looked for. Returns what must go, if something must.
    pub(super) fn claim_room(
        &mut self,
        message: &Message,
        old: Option<(Seq, u64)>,
        found: Option<Vec<Victim>>,
    ) -> Result<Vec<Victim>, Shortage> {
        let mut gives_back = old.map_or(Totals::default(), |(_, cost)| Totals::one(cost));
        let mut full = match self.claim(message, gives_back) {
            Ok(()) => return Ok(Vec::new()),
            Err(full) if !matches!(full, Refusal::OutboxFull { .. }) => return Err(Shortage::Refused(full)),
            Err(full) => full,
        };
        let Some(mut found) = found else {
            let can_fit = message.cost() <= self.config.max_user_bytes.get();
            let gives_way = self.config.overflow != Overflow::Reject && can_fit;
            return Err(if gives_way { Shortage::Unsearched } else { Shortage::Refused(full) });
        };
        let user = message.recipient();
        found.retain(|victim| {
            old.is_none_or(|(seq, _)| seq != victim.entry.seq) && self.may_give_way(user, victim.entry)
        });
        if self.config.overflow == Overflow::DropOldest {
            found.sort_unstable_by_key(|victim| victim.entry.seq);
        }
        found.truncate(MAX_EVICTED);
        for n in 1..=found.len() {
            let next = found.get(n - 1).map_or(0, |victim| victim.accept.message.cost());
            gives_back.add(next);
            match self.claim(message, gives_back) {
                Ok(()) => {
                    found.truncate(n);
                    return Ok(found);
                }
                Err(other) => full = other,
            }
        }
        Err(Shortage::Refused(full))
    }

    /// Whether what was found before still waits.
    fn may_give_way(&self, id: &UserId, entry: EntryRef) -> bool {
        let Some(lane) = self.users.get(id).map(|user| user.lane_ref(entry.lane)) else { return false };
        let state = lane.entry(entry.seq).map(super::entry::Entry::state);
        // What ends behind something that is stuck is remembered until that has ended.
        let crowded = lane.ended.len() + lane.ending.len() >= self.config.max_gaps.get();
        let is_behind = lane.entries.front().is_some_and(|first| first.seq < entry.seq);
        let may_leave_a_gap = !(crowded && is_behind);
        may_leave_a_gap
            && entry.seq > lane.cursor
            && !lane.ended.contains(&entry.seq)
            && !lane.ending.contains(&entry.seq)
            && !matches!(state, Some(EntryState::Ending { .. } | EntryState::InFlight(_)))
    }

    /// There was no room: refuses the message, or looks for some.
    pub(super) fn fall_short(&mut self, ticket: Ticket, message: Message, shortage: Shortage) {
        let user = message.recipient().clone();
        match shortage {
            Shortage::Refused(refusal) => {
                self.answer(ticket, Err(refusal));
                self.evict_if_idle(&user);
            }
            Shortage::Unsearched if !self.ensure_row(&user) => {
                self.park(Query::User(user), Parked::Send(ticket, message));
            }
            Shortage::Unsearched => {
                self.parked_count += 1;
                self.overflowing.insert(user.clone(), VecDeque::new());
                let room = Room { ticket, message, found: Vec::new() };
                self.begin(user, Work::MakeRoom(room), self.applied);
            }
        }
    }

    /// Whether what was found so far, in this lane or (if the lowest goes first) in all of them, makes room enough.
    pub(super) fn has_room(&self, user: &UserId, room: &Room, lane: LaneId) -> bool {
        let Some(claimed) = self.users.get(user).map(|user| user.claimed(Totals::default())) else {
            return true;
        };
        let lowest_first = self.config.overflow == Overflow::DropLowest;
        let counts = |victim: &&Victim| lowest_first || victim.entry.lane == lane;
        let mut found = Totals::default();
        let found_here = room.found.iter().filter(counts);
        found_here.for_each(|victim| found.add(victim.accept.message.cost()));
        let (max_messages, max_bytes) =
            (self.config.max_user_messages.get(), self.config.max_user_bytes.get());
        let bytes = claimed.bytes.saturating_add(room.message.cost());
        found.messages as usize >= MAX_EVICTED
            || claimed.messages.saturating_sub(found.messages) < max_messages
                && bytes.saturating_sub(found.bytes) <= max_bytes
    }

    /// Everything was looked at that may give way, or enough of it. Then those have their turn who waited behind.
    pub(super) fn room_searched(&mut self, user: &UserId, room: Room, failed: bool) {
        let now = self.now;
        let mut waiting = self.overflowing.remove(user).unwrap_or_default();
        let Room { ticket, message, found } = room;
        self.parked_count = self.parked_count.saturating_sub(1);
        match self.gate(&message) {
            _ if failed => self.answer(ticket, Err(Refusal::StoreUnreadable)),
            Err(refusal) => self.answer(ticket, Err(refusal)),
            Ok(()) => self.take_in(now, ticket, message, Some(found)),
        }
        while let Some((ticket, message)) = waiting.pop_front() {
            self.parked_count = self.parked_count.saturating_sub(1);
            self.handle_send(now, ticket, message);
            if let Some(behind) = self.overflowing.get_mut(user) {
                *behind = waiting;
                return;
            }
        }
    }

    /// Records a message that takes the place of others: of an older one of its collapse key, of what must go for it, or
    /// of both.
    pub(super) fn push_instead(
        &mut self,
        accept: Arc<Accept>,
        id: u128,
        ticket: Ticket,
        old: Option<NewestRow>,
        victims: Vec<Victim>,
    ) {
        let user = accept.message.recipient().clone();
        let mut gives_back = old.map_or(Totals::default(), |old| Totals::one(old.cost));
        victims.iter().for_each(|victim| gives_back.add(victim.accept.message.cost()));
        let first = old.map(|old| old.seq).or(victims.first().map(|victim| victim.entry.seq));
        self.will_leave(&user, gives_back);
        let instead = first.map(|seq| Instead { operation: None, seq, gives_back });
        self.pending += 1;
        let (key, ticket) = (Some(id), Some(ticket));
        let accept = PendingAccept { accept, key, ticket, answered: false, instead, unit: Unit::Alone };
        self.current.push(Pending::Accept(accept));
        if let Some(old) = old {
            let entry = EntryRef { lane: old.lane, seq: old.seq };
            self.end_place(&user, entry, (old.cost, old.id), EndReason::Replaced, true);
        }
        for Victim { entry, accept } in &victims {
            self.end_wherever(&user, *entry, accept, EndReason::Evicted, true);
        }
        if first.is_some() {
            self.mark_ready(&user);
        }
    }
}
