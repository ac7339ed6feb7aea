//! Settling: collecting, in slices, what must be in the store before a journal segment can be recycled, and letting
//! go of it once it is.

use std::collections::VecDeque;

use super::Machine;
use super::io::{Action, Survivors};
use super::query::Query;
use super::user::User;
use crate::id::UserId;
use crate::record::{LaneId, Seq};
use crate::time::Timestamp;

/// Messages handled per slice when nothing else is going on: bounds how long a commit waits behind settling (about
/// 0.2 ms).
const SLICE: usize = 512;
/// And for each message accepted meanwhile: settling must be well ahead of what comes in, or the journal fills up while
/// its first half is still being handed over. Sustained sending went from 79,000 to 93,000 messages a second with this
/// (`cargo bench --bench settle -- --messages 2000000 --users 200000`).
const PACE: usize = 4;
/// The largest slice.
const MAX_SLICE: usize = 8192;
/// Rows per slice.
const ROW_SLICE: usize = 128;
/// Rows that settling reads at once. Somebody who comes back waits behind them: after a crash a journal can name many
/// thousands of people whose rows are not in memory.
const ROWS_READ: usize = 8;

/// An accepted message that has not settled, in log order.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    pub(super) seq: Seq,
    pub(super) user: UserId,
    pub(super) lane: LaneId,
    /// The digest of its identity, unless it came through the inbox.
    pub(super) key: Option<u128>,
    /// The place of its end, if it ended before it was collected.
    pub(super) ended_at: Option<Seq>,
}

/// A settling under way.
#[derive(Debug)]
pub(super) struct Job {
    before: Seq,
    phase: Phase,
    collected: VecDeque<Logged>,
    rows: Vec<UserId>,
    /// Users whose row must be read before it can be written.
    unknown: Vec<UserId>,
    /// Users whose rows were handed out, with the place they reflect.
    written: Vec<(UserId, Seq)>,
    died: Vec<Seq>,
    /// When the first of what was collected is due.
    due: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Collect,
    Rows,
    AwaitRows,
    Storing,
    Release,
}

impl Machine {
    pub(super) fn handle_settle(&mut self, before: Seq) {
        if self.job.is_some() {
            self.next_settle = Some(before);
            return;
        }
        if before <= self.settled {
            let last = Survivors {
                before,
                last: true,
                counters: Some((self.counters, self.applied)),
                ..Survivors::default()
            };
            self.actions.push_back(Action::Survivors(Box::new(last)));
            return;
        }
        self.job = Some(Job {
            before,
            phase: Phase::Collect,
            collected: VecDeque::new(),
            rows: Vec::new(),
            unknown: Vec::new(),
            written: Vec::new(),
            died: Vec::new(),
            due: Timestamp::NEVER,
        });
    }

    /// Whether there is a slice of work to do at once.
    pub(super) fn has_settle_work(&self) -> bool {
        self.job.as_ref().is_some_and(|job| !matches!(job.phase, Phase::Storing | Phase::AwaitRows))
    }

    /// Does one slice.
    pub(super) fn work_on_settling(&mut self) {
        let Some(mut job) = self.job.take() else { return };
        let slice =
            core::mem::take(&mut self.taken).saturating_mul(PACE).saturating_add(SLICE).min(MAX_SLICE);
        match job.phase {
            Phase::Collect => self.collect(&mut job, slice),
            Phase::Rows => self.collect_rows(&mut job),
            Phase::Storing | Phase::AwaitRows => {}
            Phase::Release => {
                if self.release(&mut job, slice) {
                    if let Some(before) = self.next_settle.take() {
                        self.handle_settle(before);
                    }
                    return;
                }
            }
        }
        self.job = Some(job);
        // What it asked for may be there already.
        self.resume_settling();
    }

    fn collect(&mut self, job: &mut Job, slice: usize) {
        let mut part = Survivors { before: job.before, ..Survivors::default() };
        for _ in 0..slice {
            match self.log.front() {
                Some(logged) if logged.seq < job.before => {}
                _ => {
                    job.phase = Phase::Rows;
                    job.rows = core::mem::take(&mut self.dirty);
                    break;
                }
            }
            let Some(logged) = self.log.pop_front() else { break };
            if let Some(end) = logged.ended_at.filter(|end| *end >= job.before) {
                self.note_early_end(&logged, end);
            }
            let lane = self.users.get(&logged.user).map(|user| user.lane_ref(logged.lane));
            if let Some(entry) = lane.and_then(|lane| lane.entry(logged.seq)) {
                job.due = job.due.min(entry.accept.due());
                part.entries.push((entry.seq, entry.accept.clone()));
            }
            part.dedup
                .extend(logged.key.and_then(|key| self.dedup.row(key)).filter(|row| row.seq == logged.seq));
            self.collected = logged.seq.plus(1);
            job.collected.push_back(logged);
        }
        self.actions.push_back(Action::Survivors(Box::new(part)));
    }

    /// A message that was accepted below the place and ended above it is in no run, but its end will be replayed: the
    /// row must say that it is reflected.
    fn note_early_end(&mut self, logged: &Logged, end: Seq) {
        let lane = self.user_mut(&logged.user).lane(logged.lane);
        if logged.seq > lane.cursor {
            lane.ended.insert(logged.seq);
        }
        self.touch(&logged.user, end);
    }

    fn collect_rows(&mut self, job: &mut Job) {
        let mut part = Survivors { before: job.before, ..Survivors::default() };
        for _ in 0..ROW_SLICE {
            let Some(id) = job.rows.pop() else {
                if job.unknown.is_empty() {
                    self.finish_collecting(job, &mut part);
                } else {
                    job.phase = Phase::AwaitRows;
                }
                break;
            };
            let (applied, keep) = (self.applied, self.keep());
            if !self.users.get(&id).is_some_and(|user| user.row_known) {
                // Not their totals, for which all their messages would have to be read.
                self.load_once(Query::Row(id.clone()));
                job.unknown.push(id);
                if job.unknown.len() >= ROWS_READ {
                    job.phase = Phase::AwaitRows;
                    break;
                }
                continue;
            }
            let Some(user) = self.users.get_mut(&id) else { continue };
            let row = user.row(applied, keep);
            if Self::has_no_letters(user, &row) {
                part.without_letters.push(id.clone());
            }
            part.rows.push((id.clone(), row));
            job.written.push((id, applied));
        }
        self.actions.push_back(Action::Survivors(Box::new(part)));
    }

    fn finish_collecting(&mut self, job: &mut Job, part: &mut Survivors) {
        job.phase = Phase::Storing;
        job.died = core::mem::take(&mut self.died);
        part.died.clone_from(&job.died);
        part.counters = Some((self.counters, self.applied));
        part.swept = Some(self.sweeps.swept);
        part.last = true;
    }

    /// A row was read: settling goes on if it was the last that it had asked for.
    pub(super) fn resume_settling(&mut self) {
        let Some(job) = self.job.as_mut().filter(|job| job.phase == Phase::AwaitRows) else { return };
        let is_read =
            |id: &UserId| self.users.get(id).is_none_or(|user| user.row_known || user.loading.is_none());
        if job.unknown.iter().all(is_read) {
            job.phase = Phase::Rows;
            job.rows.append(&mut job.unknown);
        }
    }

    /// Everything up to `before` is in the store.
    pub(super) fn handle_settled(&mut self, before: Seq) {
        let Some(job) = self.job.as_mut().filter(|job| job.before == before && job.phase == Phase::Storing)
        else {
            return;
        };
        job.phase = Phase::Release;
        let due = job.due;
        self.note_due(due);
        self.settled = self.settled.max(before);
        self.rows_exist = true;
        self.dedup.settled(before);
    }

    /// Settling failed: everything is as before it began.
    pub(super) fn handle_settle_failed(&mut self, before: Seq) {
        let Some(mut job) = self.job.take_if(|job| job.before == before && job.phase != Phase::Release)
        else {
            return;
        };
        while let Some(logged) = job.collected.pop_back() {
            self.log.push_front(logged);
        }
        let written = job.written.into_iter().map(|(id, _)| id);
        self.dirty.extend(job.rows.into_iter().chain(job.unknown).chain(written));
        self.died.extend(job.died);
        let settled = self.settled;
        self.died.retain(|seq| *seq < settled);
    }

    /// Lets go of a slice of settled messages; `true` when all is done.
    fn release(&mut self, job: &mut Job, slice: usize) -> bool {
        for _ in 0..ROW_SLICE {
            let Some((id, reflects)) = job.written.pop() else { break };
            if let Some(user) = self.users.get_mut(&id) {
                if user.changed.is_some_and(|seq| seq >= reflects) {
                    self.dirty.push(id);
                } else {
                    user.changed = None;
                    if user.loading.is_none() {
                        // Whoever counts their messages from now on sees these ends in the row.
                        user.early_ends.clear();
                    }
                    self.evict_if_idle(&id);
                }
            }
        }
        for _ in 0..slice {
            let Some(logged) = job.collected.pop_front() else { return job.written.is_empty() };
            self.release_message(&logged);
        }
        false
    }

    /// Drops what has settled from the lanes that nothing is offered from, for somebody who is there: an operation may have
    /// kept it in memory.
    pub(super) fn spill_aside(&mut self, id: &UserId) {
        let settled = self.settled;
        let is_free =
            |user: &&mut Box<User>| user.is_attached() && user.operations == 0 && user.loading.is_none();
        let Some(user) = self.users.get_mut(id).filter(is_free) else { return };
        let mut dropped = 0;
        for (_, lane) in user.all_lanes_mut().filter(|(lane, _)| lane.priority().is_none()) {
            let first = lane.entries.front().map(|entry| entry.seq).filter(|first| *first < settled);
            dropped += first.map_or(0, |first| lane.spill_from(first, settled, 0));
        }
        self.resident = self.resident.saturating_sub(dropped as u64);
    }

    fn release_message(&mut self, logged: &Logged) {
        let (settled, max) = (self.settled, self.config.max_resident.get());
        let Some(user) = self.users.get_mut(&logged.user) else { return };
        if user.loading.is_some() || user.operations > 0 {
            return;
        }
        let attached = user.is_attached();
        let is_offered = user.is_served(logged.lane, &self.links);
        let lane = user.lane(logged.lane);
        if attached && lane.loading.is_none() {
            let keep = if is_offered { max } else { 0 };
            let dropped = lane.spill_from(logged.seq, settled, keep);
            self.resident = self.resident.saturating_sub(dropped as u64);
        } else if !attached {
            self.let_go(&logged.user);
        }
    }
}
