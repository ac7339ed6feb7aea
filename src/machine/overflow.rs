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
use super::places::Stored;
use super::query::Query;
use super::refusal::Refusal;
use super::user::Totals;
use crate::config::{MAX_EVICTED, Overflow};
use crate::id::UserId;
use crate::message::{Message, Priority};
use crate::record::{Accept, LaneId, NewestRow, Slot};
use crate::status::EndReason;

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
    /// How many entries it makes.
    copies: u32,
    found: Vec<Victim>,
}

/// Why there is no room for a message.
pub(super) enum Shortage {
    /// It must be refused.
    Refused(Refusal),
    /// Something may give way to so many entries: it must be looked for.
    Unsearched { copies: u32 },
}

impl Room {
    /// Where to look: nothing gives way to what is less urgent.
    pub(super) fn lanes(&self, slots: impl Iterator<Item = Slot> + Clone) -> Vec<LaneId> {
        let upto = Priority::ALL.len() - self.message.priority().index();
        let lowest_first = Priority::ALL.into_iter().rev().take(upto);
        let of_priority = |priority: Priority| {
            let of_slots = slots.clone().map(move |slot| LaneId::Device(slot, priority));
            core::iter::once(priority.into()).chain(of_slots)
        };
        lowest_first.flat_map(of_priority).collect()
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
    /// Takes the message's share of the quotas. `old` is what gives way anyhow, `found` what else may, if it was looked
    /// for. Returns what must go, if something must.
    pub(super) fn claim_room(
        &mut self,
        message: &Message,
        copies: u32,
        old: &[NewestRow],
        found: Option<Vec<Victim>>,
    ) -> Result<Vec<Victim>, Shortage> {
        let mut gives_back = Totals::default();
        old.iter().for_each(|old| gives_back.add(old.cost));
        let mut full = match self.claim(message, copies, gives_back) {
            Ok(()) => return Ok(Vec::new()),
            Err(full) if !matches!(full, Refusal::OutboxFull { .. }) => return Err(Shortage::Refused(full)),
            Err(full) => full,
        };
        let Some(mut found) = found else {
            let can_fit = message.cost() <= self.config.max_user_bytes.get();
            let gives_way = self.config.overflow != Overflow::Reject && can_fit;
            let unsearched = Shortage::Unsearched { copies };
            return Err(if gives_way { unsearched } else { Shortage::Refused(full) });
        };
        let user = message.recipient();
        found.retain(|victim| {
            old.iter().all(|old| old.seq != victim.entry.seq) && self.may_give_way(user, victim.entry)
        });
        let lowest_first = self.config.overflow == Overflow::DropLowest;
        found.sort_unstable_by_key(|victim| {
            let priority = victim.entry.lane.priority().filter(|_| lowest_first);
            (core::cmp::Reverse(priority.map(Priority::index)), victim.entry.seq)
        });
        found.truncate(MAX_EVICTED);
        for n in 1..=found.len() {
            let next = found.get(n - 1).map_or(0, |victim| victim.accept.message.cost());
            gives_back.add(next);
            match self.claim(message, copies, gives_back) {
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
            Shortage::Unsearched { .. } if !self.ensure_row(&user) => {
                self.park(Query::User(user), Parked::Send(ticket, message));
            }
            Shortage::Unsearched { copies } => {
                self.parked_count += 1;
                self.overflowing.insert(user.clone(), VecDeque::new());
                let room = Room { ticket, message, copies, found: Vec::new() };
                self.begin(user, Work::MakeRoom(room), self.applied);
            }
        }
    }

    /// Whether what was found so far makes room enough: in this lane, and, if the lowest goes first, in those of lower
    /// priorities. In the others of its own something may be older.
    pub(super) fn has_room(&self, user: &UserId, room: &Room, lane: LaneId) -> bool {
        let Some(claimed) = self.users.get(user).map(|user| user.claimed(Totals::default())) else {
            return true;
        };
        let lowest_first = self.config.overflow == Overflow::DropLowest;
        let counts = |victim: &&Victim| {
            let of = victim.entry.lane;
            of == lane || lowest_first && of.priority() != lane.priority()
        };
        let mut found = Totals::default();
        let found_here = room.found.iter().filter(counts);
        found_here.for_each(|victim| found.add(victim.accept.message.cost()));
        let (max_messages, max_bytes) =
            (self.config.max_user_messages.get(), self.config.max_user_bytes.get());
        let bytes = claimed.bytes.saturating_add(room.message.cost().saturating_mul(room.copies.into()));
        let messages = claimed.messages.saturating_add(room.copies);
        found.messages as usize >= MAX_EVICTED
            || messages.saturating_sub(found.messages) <= max_messages
                && bytes.saturating_sub(found.bytes) <= max_bytes
    }

    /// Everything was looked at that may give way, or enough of it. Then those have their turn who waited behind.
    pub(super) fn room_searched(&mut self, user: &UserId, room: Room, failed: bool) {
        let now = self.now;
        let mut waiting = self.overflowing.remove(user).unwrap_or_default();
        let Room { ticket, message, found, .. } = room;
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
        accepts: Vec<Arc<Accept>>,
        id: u128,
        ticket: Ticket,
        old: &[NewestRow],
        victims: Vec<Victim>,
    ) {
        let Some(user) = accepts.first().map(|accept| accept.message.recipient().clone()) else { return };
        let mut gives_back = Totals::default();
        old.iter().for_each(|old| gives_back.add(old.cost));
        victims.iter().for_each(|victim| gives_back.add(victim.accept.message.cost()));
        let first = old.first().map(|old| old.seq).or(victims.first().map(|victim| victim.entry.seq));
        self.will_leave(&user, gives_back);
        let instead = first.map(|seq| Instead { operation: None, seq, gives_back });
        self.pending += 1;
        for pending in PendingAccept::sent(accepts, Some(id), ticket, Unit::Alone) {
            let (is_kept, instead) = (first.is_some(), instead.filter(|_| pending.is_last));
            self.current.push(Pending::Accept(PendingAccept { instead, is_kept, ..pending }));
        }
        for old in old {
            let entry = EntryRef { lane: old.lane, seq: old.seq };
            let stored = Stored { cost: old.cost, id: old.id, known: false, whose: None };
            self.end_place(&user, entry, stored, EndReason::Replaced, true);
        }
        for Victim { entry, accept } in &victims {
            self.end_wherever(&user, *entry, accept, EndReason::Evicted, true);
        }
        if first.is_some() {
            self.mark_ready(&user);
        }
    }
}
