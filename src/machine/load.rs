//! Loads: users, senders and pages of settled messages, read from the store when they are needed.

use super::Machine;
use super::io::{Action, LoadId};
use super::query::{Found, Holdings, Page, Query};
use super::refusal::Refusal;
use super::timer::TimerKey;
use crate::id::UserId;
use crate::record::{End, LaneId, Seq, UserRow};
use crate::status::EndReason;
use crate::time::Timestamp;

/// How long to wait before asking again after a failed load.
pub(super) const RETRY_MS: u64 = 1000;

impl Machine {
    /// Asks the store, unless the same question is open.
    pub(super) fn load_once(&mut self, query: Query) -> LoadId {
        let query = match query {
            Query::User(id) if self.user_mut(&id).held.is_some() => Query::Row(id),
            query => query,
        };
        let open = match &query {
            Query::User(id) | Query::Row(id) => self.user_mut(id).loading,
            Query::Sender { sender, .. } => self.sender_loads.get(sender).copied(),
            Query::Page { .. } | Query::Place { .. } | Query::Id { .. } | Query::Due { .. } => None,
        };
        if let Some(load) = open {
            return load;
        }
        let load = self.load(query.clone());
        match &query {
            Query::User(id) | Query::Row(id) => self.user_mut(id).loading = Some(load),
            Query::Sender { sender, .. } => {
                self.sender_loads.insert(*sender, load);
            }
            Query::Page { user, lane, .. } => self.user_mut(user).lane(*lane).loading = Some(load),
            Query::Place { .. } | Query::Id { .. } | Query::Due { .. } => {}
        }
        load
    }

    /// Asks the store.
    pub(super) fn load(&mut self, query: Query) -> LoadId {
        self.last_load += 1;
        let load = LoadId(self.last_load);
        self.loads.insert(load, query.clone());
        self.actions.push_back(Action::Load { load, query });
        load
    }

    /// Queues more of a lane when it runs low: from memory, or with the next page from the store.
    pub(super) fn refill(&mut self, id: &UserId, lane: LaneId) {
        let (max_messages, max_bytes) = (self.config.max_resident.get(), self.config.max_load_bytes.get());
        let Some(user) = self.users.get_mut(id) else { return };
        if !user.is_known() || !user.is_attached() {
            return;
        }
        let found = user.lane(lane);
        if found.ahead() > max_messages / 2 {
            return;
        }
        if found.has_horizon() {
            found.extend_queues(max_messages);
            return self.mark_ready(id);
        }
        let Some(after) = found.more_after.filter(|_| found.loading.is_none()) else { return };
        let ended = found.ended.range(after.plus(1)..).copied().collect();
        self.load_once(Query::Page { user: id.clone(), lane, after, ended, max_messages, max_bytes });
    }

    pub(super) fn handle_loaded(&mut self, now: Timestamp, load: LoadId, found: Found) {
        let Some(query) = self.loads.remove(&load) else { return };
        match (query, found) {
            (Query::User(id) | Query::Row(id), Found::User { row, held, reflects }) => {
                self.loaded_user(&id, row.as_deref(), held, reflects);
                self.away_read(now, &id);
                self.unpark(now, load, None);
                self.sweep_read(&id);
                self.resume_settling();
                self.clear_slots(&id);
                self.settle_into_memory(&id);
            }
            (Query::Sender { sender, .. }, Found::Sender(rows)) => {
                self.sender_loads.remove(&sender);
                self.dedup.loaded(sender, &rows, now);
                self.unpark(now, load, None);
            }
            (Query::Page { user, lane, after, .. }, Found::Page(page)) => {
                if !self.page_for_operation(now, load, lane, &page) {
                    self.loaded_page(now, load, &user, lane, after, page);
                }
            }
            (Query::Place { .. } | Query::Id { .. }, Found::Matches(matches)) => {
                self.matches_for_operation(load, &matches);
            }
            (Query::Due { .. }, Found::Due { users, more, next, table }) => {
                self.sweep_list(load, users, more, next, table);
            }
            (query, _) => {
                self.loads.insert(load, query);
                self.handle_load_failed(now, load);
            }
        }
    }

    fn loaded_user(&mut self, id: &UserId, row: Option<&UserRow>, held: Option<Holdings>, reflects: Seq) {
        let (epoch, applied, keep) = (self.epoch, self.applied, self.keep());
        let known = self.exposed_here.get(&self.digester.user(Some(id))).cloned();
        let user = self.user_mut(id);
        user.loading = None;
        // The first time for their row, the second time, if there is one, for their totals.
        if user.row_known && (user.held.is_some() || held.is_none()) {
            return;
        }
        let before: usize = user.all_lanes().map(|lane| lane.entries.len()).sum();
        if !user.row_known {
            let nothing = UserRow::default();
            user.merge_row(row.unwrap_or(&nothing), keep);
        }
        let mut newer = Holdings::default();
        for entry in user.all_lanes().flat_map(|lane| &lane.entries).filter(|entry| entry.seq >= reflects) {
            newer.add(entry.accept.lane(), entry.accept.message.cost());
        }
        // What the store has; unknown while only the row is.
        let stored = match (user.held, held) {
            (Some(known), _) => Some(known.without(&newer)),
            (None, held) => held,
        };
        if let (None, Some(mut held)) = (user.held, held) {
            for (lane, seq, cost) in &user.early_ends {
                let known = row.and_then(|row| row.lane(*lane));
                let reflected = known.is_some_and(|lane| *seq <= lane.cursor || lane.ended.contains(seq));
                if *seq < reflects && !reflected {
                    held.sub(*lane, *cost);
                }
            }
            user.held = Some(held.with(&newer));
        }
        if user.held.is_some() {
            user.early_ends.clear();
        }
        if !user.row_known {
            user.row_known = true;
            user.recall_exposed(epoch, applied, known.as_ref());
            if core::mem::take(&mut user.exposed_unread) {
                user.exposed = epoch;
            }
        }
        for lane in user.lane_ids() {
            let is_stored = stored.is_none_or(|stored| stored.has(lane));
            let (known, found) = (stored.is_some(), user.lane_ref(lane));
            // A lane aside that is not there yet is made when it is known that there is something in it.
            let is_there = !found.entries.is_empty() || found.more_after.is_some();
            if lane.priority().is_some() || is_there || known && is_stored {
                let found = user.lane(lane);
                found.drop_settled(reflects);
                found.more_after = is_stored.then_some(found.cursor);
                found.cleared = Seq::ZERO;
            }
        }
        let after: usize = user.all_lanes().map(|lane| lane.entries.len()).sum();
        self.resident = self.resident.saturating_sub((before - after) as u64);
    }

    /// After a user's row was read: goes on with what waited for it.
    fn settle_into_memory(&mut self, id: &UserId) {
        self.free_dependents(id);
        match self.users.get(id) {
            Some(user) if user.is_attached() && user.is_known() => self.open_lanes(id),
            // They came while only their row was being read.
            Some(user) if user.is_attached() => drop(self.load_once(Query::User(id.clone()))),
            _ => self.let_go(id),
        }
    }

    fn loaded_page(
        &mut self,
        now: Timestamp,
        load: LoadId,
        id: &UserId,
        lane: LaneId,
        after: Seq,
        page: Page,
    ) {
        let max_resident = self.config.max_resident.get();
        let Some(user) = self.users.get_mut(id) else { return };
        let attached = user.is_attached();
        let found = user.lane(lane);
        // What has left memory since may not have been in the store when the page was read.
        if found.loading != Some(load) {
            return self.refill(id, lane);
        }
        found.loading = None;
        if !attached {
            return self.let_go(id);
        }
        // They may have left and come back while it was read: then the lane may need to go back further.
        if found.more_after != Some(after) {
            return self.refill(id, lane);
        }
        let before = found.entries.len();
        for (seq, accept) in page.entries {
            if seq > found.cursor && !found.ended.contains(&seq) {
                found.insert(seq, accept);
            }
        }
        found.more_after = page.more_after;
        found.rebuild_queues(max_resident);
        self.resident += (found.entries.len() - before) as u64;
        for (seq, cost) in page.damaged {
            self.end_damaged(now, id, lane, seq, cost);
        }
        self.rearm_user(now, id);
        self.mark_ready(id);
    }

    /// A message whose row is damaged cannot be delivered; it ends, so that the ledger stays true.
    pub(super) fn end_damaged(&mut self, now: Timestamp, id: &UserId, lane: LaneId, seq: Seq, cost: u64) {
        let found = self.user_mut(id).lane(lane);
        let ended = seq <= found.cursor || found.ended.contains(&seq) || found.entry(seq).is_some();
        if ended || !found.ending.insert(seq) {
            return;
        }
        let attempts = found.attempts.get(&seq).map_or(0, |(attempts, _)| *attempts);
        self.stats.damaged += 1;
        let end = End {
            user: id.clone(),
            lane,
            seq,
            id: None,
            reason: EndReason::Dead,
            upgrades: None,
            possibly_delivered: lane != LaneId::Scheduled,
            attempts,
            cost,
            at: now,
        };
        self.current.push(super::commit::Pending::Fact(crate::record::Record::End(end)));
    }

    /// The store could not be read: refuses what waited, and asks again for the rest after a while.
    pub(super) fn handle_load_failed(&mut self, now: Timestamp, load: LoadId) {
        let Some(query) = self.loads.remove(&load) else { return };
        self.unpark(now, load, Some(&Refusal::StoreUnreadable));
        if self.page_failed_for_operation(load) {
            return;
        }
        self.sweep_load_failed(&query);
        match &query {
            // Only operations ask so.
            Query::Place { .. } | Query::Id { .. } | Query::Due { .. } => {}
            Query::Sender { sender, .. } => {
                self.sender_loads.remove(sender);
            }
            Query::User(id) | Query::Row(id) => {
                self.user_mut(id).loading = None;
                let at = now.after(core::time::Duration::from_millis(RETRY_MS));
                self.timers.insert((at, TimerKey::Reload(id.clone())));
                self.away_read(now, id);
            }
            Query::Page { user, lane, .. } => {
                let found = self.user_mut(user).lane(*lane);
                found.loading.take_if(|open| *open == load);
                let at = now.after(core::time::Duration::from_millis(RETRY_MS));
                self.timers.insert((at, TimerKey::Reload(user.clone())));
            }
        }
    }

    /// Asks again for what a user still needs.
    pub(super) fn reload(&mut self, id: &UserId) {
        let Some(user) = self.users.get_mut(id) else { return };
        if user.changed.is_none() {
            // The row says so by now.
            user.early_ends.clear();
        }
        self.clear_slots(id);
        let Some(user) = self.users.get_mut(id) else { return };
        if user.is_attached() && !user.is_known() {
            self.load_once(Query::User(id.clone()));
        } else if !user.row_known && user.changed.is_some() {
            self.load_once(Query::Row(id.clone()));
        } else if user.is_attached() {
            self.open_lanes(id);
        } else {
            self.let_go(id);
        }
    }
}
