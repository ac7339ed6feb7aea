//! The fold: how a durable record changes the state. The same functions serve the live path and replay, and none of
//! them decides anything.

use std::sync::Arc;

use super::Machine;
use super::dedup::Slot;
use super::entry::EntryState;
use super::query::Holdings;
use super::settle::Logged;
use super::user::User;
use crate::id::UserId;
use crate::record::{Accept, Attempt, End, LaneId, Record, Seq, Slots};

impl Machine {
    /// Applies a record of the journal, decided in an earlier life. Only before the first
    /// [`handle`](Machine::handle), in log order. `counts` says whether the settled counters do not reflect it yet.
    pub fn replay(&mut self, seq: Seq, record: &Record, counts: bool) {
        match record {
            Record::Accept(accept) => {
                let key = accept.is_sent().then(|| {
                    let message = &accept.message;
                    self.digester.identity(message.sender(), message.recipient(), message.id())
                });
                self.apply_accept(seq, accept, key, counts);
            }
            Record::End(end) => self.apply_end(seq, end, counts),
            Record::Attempt(attempt) => self.apply_attempt(seq, attempt, counts),
            Record::Exposed(exposed) => self.apply_exposed(seq, exposed),
            Record::Told(told) => self.apply_told(seq, told),
            Record::Device(change) => self.apply_device(seq, change),
            Record::Read(read) => self.apply_read(seq, read),
            Record::Floor(floor) => {
                self.user_mut(&floor.user).raise_floor(floor.stream, floor.lane, floor.floor);
                self.touch(&floor.user, seq);
            }
        }
        self.applied = self.applied.max(seq.plus(1));
    }

    /// Marks the user's row as changed by the record at `seq`.
    pub(super) fn touch(&mut self, user: &UserId, seq: Seq) {
        if let Some(found) = self.users.get_mut(user)
            && found.changed.replace(seq).is_none()
        {
            self.dirty.push(user.clone());
        }
    }

    /// Whether somebody is there for it.
    pub(super) fn apply_accept(
        &mut self,
        seq: Seq,
        accept: &Arc<Accept>,
        key: Option<u128>,
        counts: bool,
    ) -> bool {
        let message = &accept.message;
        let cost = message.cost();
        let lane = accept.lane();
        if counts && lane == LaneId::Dead {
            self.counters.buried += 1;
            self.counters.buried_bytes += cost;
        }
        if counts {
            self.counters.backlog.accept(seq, lane, accept.at);
        }
        if counts && accept.counts() {
            self.counters.accepted += 1;
            self.counters.accepted_bytes += cost;
        }
        match key {
            Some(key) if self.is_live => self.dedup.commit_reserved(key, seq),
            Some(key) => {
                let sender = self.digester.user(message.sender());
                let content = self.digester.content(message);
                let among = accept.device.map_or(Slots::NONE, |device| device.among);
                self.dedup.commit(key, Slot { content, seq, at: accept.at, sender, among }, false);
            }
            None => {}
        }
        self.log.push_back(Logged { seq, user: message.recipient().clone(), lane, key, ended_at: None });
        self.resident += 1;
        self.taken += 1;
        self.fold_newest(seq, accept);
        self.fold_dependent(seq, accept);
        self.fold_ledger_accept(seq, accept);
        self.last_accept = Some((lane, seq, accept.device));
        if lane == LaneId::Dead {
            self.dying.sub(cost);
            self.note_letter(message.recipient());
        }
        let user = self.user_mut(message.recipient());
        // What was reserved for it; nothing in a replay.
        let reserved = if lane == LaneId::Dead { &mut user.dying } else { &mut user.reserved };
        reserved.sub(cost);
        if let Some(held) = &mut user.held {
            held.add(lane, cost);
        }
        let attached = user.is_attached();
        if lane == LaneId::Scheduled && message.after().is_none() {
            user.next_ripe = user.next_ripe.min(accept.due());
        }
        user.lane(lane).insert(seq, accept.clone());
        if let Some(origin) = accept.origin {
            // Those for a device have a stream of their own.
            let of = message.priority().into();
            user.inbox.entry((origin.stream, of)).or_default().above.insert(origin.seq);
            self.touch(message.recipient(), seq);
        }
        attached
    }

    pub(super) fn apply_end(&mut self, seq: Seq, end: &End, counts: bool) {
        if counts && end.counts() {
            self.count_end(end);
        }
        if counts && end.lane == LaneId::Dead {
            self.counters.unburied += 1;
            self.counters.unburied_bytes = self.counters.unburied_bytes.wrapping_add(end.cost);
        }
        self.fold_ledger(seq, end);
        if end.upgrades.is_some() {
            return;
        }
        if counts {
            self.counters.backlog.end(end.seq, end.lane);
            if end.was_retrying() {
                self.counters.backlog.retry(false);
            }
        }
        let (collected, applied) = (self.collected, self.applied);
        let on_disk = end.seq < collected;
        // What the settled counters reflect was taken off the runs' live counts in the same batch as they were written.
        if on_disk && counts {
            self.died.push(end.seq);
        }
        if !on_disk
            && let Ok(i) = self.log.binary_search_by_key(&end.seq, |logged| logged.seq)
            && let Some(logged) = self.log.get_mut(i)
        {
            logged.ended_at = Some(seq);
        }
        let known = self.users.get(&end.user);
        let is_served = known.is_some_and(|user| user.is_served(end.lane, &self.links));
        let user = self.user_mut(&end.user);
        match &mut user.held {
            Some(held) => held.sub(end.lane, end.cost),
            // What was not on disk then will never be: nothing will count it.
            None if on_disk => user.early_ends.push((end.lane, end.seq, end.cost)),
            None => {}
        }
        let lane = user.lane(end.lane);
        lane.attempts.remove(&end.seq);
        lane.ending.remove(&end.seq);
        let removed = lane.remove(end.seq);
        // Whoever finds another copy of it must know that this one has ended, wherever it was.
        let device = removed.as_ref().and_then(|entry| entry.accept.device);
        let has_copies = device.is_some_and(|device| device.among.len() > 1);
        if (on_disk || has_copies) && end.seq > lane.cursor {
            lane.ended.insert(end.seq);
        }
        if user.row_known {
            let lane = user.lane(end.lane);
            if !is_served {
                lane.begin_behind_cleared();
            }
            lane.advance_cursor(applied);
        }
        let is_noted = user.lane(end.lane).ended.contains(&end.seq);
        if removed.is_some() {
            self.resident = self.resident.saturating_sub(1);
        }
        if on_disk || has_copies && is_noted {
            self.touch(&end.user, seq);
        }
        self.fold_newest_end(seq, end);
        self.fold_dependent_end(seq, end, on_disk);
    }

    fn count_end(&mut self, end: &End) {
        let mut count = |reason: crate::status::EndReason, more: bool| {
            if let Some(n) = self.counters.ended.get_mut(reason.index()) {
                *n = if more { n.wrapping_add(1) } else { n.wrapping_sub(1) };
            }
        };
        count(end.reason, true);
        match end.upgrades {
            Some(before) => {
                count(before, false);
                self.counters.upgraded += 1;
            }
            None => self.counters.ended_bytes = self.counters.ended_bytes.wrapping_add(end.cost),
        }
    }

    pub(super) fn apply_attempt(&mut self, seq: Seq, attempt: &Attempt, counts: bool) {
        let is_live = self.is_live;
        if counts && attempt.attempts == 1 {
            self.counters.backlog.retry(true);
        }
        let user = self.user_mut(&attempt.user);
        let lane = user.lane(attempt.lane);
        if lane.ended.contains(&attempt.seq) || attempt.seq <= lane.cursor {
            return;
        }
        lane.attempts.insert(attempt.seq, (attempt.attempts, attempt.not_before));
        // Live, the message went into its backoff when the attempt failed, and may be out of it by now.
        if !is_live {
            lane.set_state(attempt.seq, EntryState::Backoff(attempt.not_before));
            if let Some(entry) = lane.entry_mut(attempt.seq) {
                entry.failures = attempt.attempts;
            }
        }
        self.touch(&attempt.user, seq);
    }

    /// The user, brought into memory if need be.
    pub(super) fn user_mut(&mut self, id: &UserId) -> &mut User {
        let Self { users, index, digester, index_complete, rows_exist, .. } = self;
        users.entry_ref(id).or_insert_with(|| {
            let indexed = index.take(digester.user(Some(id)));
            let held = indexed.or(index_complete.then(Holdings::default));
            Box::new(User::new(*digester, held, !*rows_exist && indexed.is_none()))
        })
    }

    /// Whether the totals of a user are known; asks nothing.
    pub(super) fn ensure_totals(&mut self, id: &UserId) -> bool {
        self.user_mut(id).held.is_some()
    }

    /// Whether the row of a user is known; asks nothing.
    pub(super) fn ensure_row(&mut self, id: &UserId) -> bool {
        self.user_mut(id).is_known()
    }

    /// Forgets a user about whom nothing but the totals matters.
    pub(super) fn evict_if_idle(&mut self, id: &UserId) {
        let Some(user) = self.users.get(id) else { return };
        if !user.is_evictable() {
            return;
        }
        if let Some(held) = user.held.filter(|held| held.len() > 0) {
            self.index.put(self.digester.user(Some(id)), held);
        }
        self.remember_exposed(id);
        self.disarm_user(id);
        self.users.remove(id);
        self.forget_letters(id);
    }
}
