//! Sweeps: what is due while nobody is there. Messages expire, and scheduled ones take their places, whether or not their
//! recipient comes.
//!
//! The store lists who has something due, by time ([`Query::Due`]). A sweep goes through the lists and looks at one user
//! after the other, as an operation does: bounded in memory, a slice at a time, and never more than one read of the store
//! at once, so that whoever comes waits behind one page at most.
//!
//! Whoever could not be looked at, or not to the end, is looked at again later, by themselves: sooner at first, and then
//! less and less often. What is found in the store from then on are lists behind those that were seen to; only after a
//! restart are they gone through again, as long as somebody waits for that.

use core::ops::Bound;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use super::Machine;
use super::io::LoadId;
use super::lane::Lane;
use super::operate::Work;
use super::query::{DuePlace, Query};
use super::timer::TimerKey;
use crate::id::UserId;
use crate::record::LaneId;
use crate::time::Timestamp;

/// How long after an opening the first sweep begins: those who come back at once go first.
const FIRST_SWEEP: Duration = Duration::from_secs(5);
/// The least time between two sweeps, and how soon one is tried again that has failed.
const SPACING: Duration = Duration::from_secs(10);

/// The longest time until somebody is tried again, or a sweep.
const MAX_SPACING: Duration = Duration::from_secs(3600);
/// How many users are remembered who are to be looked at again. If there are more, all is gone through again.
const MAX_LATER: usize = 1024;

/// How long to wait after so many failures.
fn backoff(failures: u32) -> Duration {
    SPACING.saturating_mul(1 << failures.min(16)).min(MAX_SPACING)
}

/// What was swept, and what is being swept.
#[derive(Debug)]
pub(super) struct Sweeps {
    open: Option<Sweep>,
    /// All that was due up to this time was seen to, in the runs of this table.
    pub(super) swept: (Timestamp, u64),
    /// The same, but for those who are to be looked at again.
    seen: (Timestamp, u64),
    /// Who is to be looked at again, how often that came to nothing, and when it is their turn.
    later: BTreeMap<UserId, (u32, Timestamp)>,
    /// How often sweeps have failed, one after the other.
    failures: u32,
    /// When the timer is armed for, if it is.
    armed: Option<Timestamp>,
}

impl Default for Sweeps {
    fn default() -> Self {
        let none = (Timestamp::ZERO, 0);
        Self { open: None, swept: none, seen: none, later: BTreeMap::new(), failures: 0, armed: None }
    }
}

/// A sweep under way.
#[derive(Debug)]
struct Sweep {
    until: Timestamp,
    users: VecDeque<UserId>,
    /// Set while there are more lists to read.
    after: Option<DuePlace>,
    lists_read: bool,
    /// The oldest table that was looked at.
    table: u64,
    next: Timestamp,
    /// A list is being read.
    load: Option<LoadId>,
    /// Whose row is being read.
    reading: Option<UserId>,
    /// A user is being looked at.
    looking: bool,
    /// Lanes of theirs in which more was due than may end at once.
    crowded: Vec<LaneId>,
    /// Who is looked at once more as soon as what has ended there is durable.
    waiting: Option<UserId>,
    /// Another one was due meanwhile.
    again: bool,
    /// Somebody could not be looked at, and is not remembered: all is gone through once more.
    failed: bool,
}

/// Gaps that stay when all ends that are being recorded are durable.
fn lasting_gaps(lane: &Lane) -> usize {
    let behind = (Bound::Excluded(lane.cleared), Bound::Unbounded);
    lane.ended.range(behind).count() + lane.ending.range(behind).count()
}

impl Machine {
    /// Arms the first timer of a life.
    pub(super) fn begin_sweeping(&mut self, now: Timestamp) {
        if self.rows_exist {
            self.arm_sweep(now.after(FIRST_SWEEP));
        }
    }

    /// Something that has settled is due then, at the earliest.
    pub(super) fn note_due(&mut self, due: Timestamp) {
        if due != Timestamp::NEVER {
            self.arm_sweep(due.max(self.now.after(SPACING)));
        }
    }

    fn arm_sweep(&mut self, at: Timestamp) {
        if self.sweeps.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        if let Some(armed) = self.sweeps.armed.replace(at) {
            self.timers.remove(&(armed, TimerKey::Sweep));
        }
        self.timers.insert((at, TimerKey::Sweep));
    }

    /// The timer has fired.
    pub(super) fn sweep(&mut self, now: Timestamp) {
        self.sweeps.armed = None;
        if let Some(sweep) = &mut self.sweeps.open {
            // It may have looked at a table from before what is due now.
            sweep.again = true;
            return;
        }
        if self.draining {
            return;
        }
        let later = self.sweeps.later.iter().filter(|(_, (_, at))| *at <= now);
        self.sweeps.open = Some(Sweep {
            until: now,
            users: later.map(|(id, _)| id.clone()).collect(),
            after: None,
            lists_read: false,
            table: u64::MAX,
            next: Timestamp::NEVER,
            load: None,
            reading: None,
            looking: false,
            crowded: Vec::new(),
            waiting: None,
            again: false,
            failed: false,
        });
        self.sweep_on();
    }

    /// Looks at the next user, or asks for the next list.
    fn sweep_on(&mut self) {
        while let Some(sweep) = &mut self.sweeps.open {
            let is_busy = sweep.load.is_some() || sweep.reading.is_some() || sweep.looking;
            if is_busy || sweep.waiting.is_some() {
                return;
            }
            let Some(id) = sweep.users.pop_front() else {
                if sweep.lists_read {
                    return self.sweep_done();
                }
                let query = Query::Due { until: sweep.until, since: self.sweeps.seen, after: sweep.after };
                let load = self.load(query);
                if let Some(sweep) = &mut self.sweeps.open {
                    sweep.load = Some(load);
                }
                return;
            };
            let rests = self.sweeps.later.get(&id).is_some_and(|(_, at)| *at > self.now);
            if self.digester.shard(&id, self.shards) == self.shard && !rests {
                self.sweep_user(id);
            }
        }
    }

    fn sweep_user(&mut self, id: UserId) {
        if !self.ensure_row(&id) {
            if let Some(sweep) = &mut self.sweeps.open {
                sweep.reading = Some(id.clone());
            }
            self.load_once(Query::User(id));
            return;
        }
        self.retire_unseen(&id);
        let held = self.users.get(&id).and_then(|user| user.held).unwrap_or_default();
        if held.messages == 0 {
            self.sweeps.later.remove(&id);
            return self.evict_if_idle(&id);
        }
        if let Some(sweep) = &mut self.sweeps.open {
            sweep.looking = true;
            sweep.crowded.clear();
        }
        self.begin(id, Work::Sweep, self.applied);
    }

    /// A user was read, perhaps for the sweep.
    pub(super) fn sweep_read(&mut self, id: &UserId) {
        let Some(sweep) = &mut self.sweeps.open else { return };
        if sweep.reading.take_if(|reading| reading == id).is_some() {
            // Their row may have come without their totals: then they are asked for.
            sweep.users.push_front(id.clone());
            self.sweep_on();
        }
    }

    /// More is due in this lane of whom is being looked at than may end at once.
    pub(super) fn sweep_crowded(&mut self, lane: LaneId) {
        if let Some(sweep) = self.sweeps.open.as_mut().filter(|sweep| !sweep.crowded.contains(&lane)) {
            sweep.crowded.push(lane);
        }
    }

    /// A user was looked at.
    pub(super) fn sweep_looked(&mut self, id: &UserId, failed: bool) {
        let max = self.config.max_gaps.get();
        let Some(sweep) = &mut self.sweeps.open else { return self.let_go(id) };
        sweep.looking = false;
        let crowded = core::mem::take(&mut sweep.crowded);
        // There is room for more as soon as what nothing waits in front of has ended.
        let user = self.users.get(id);
        let goes_on =
            crowded.iter().any(|lane| user.is_some_and(|user| lasting_gaps(user.lane_ref(*lane)) < max));
        match (failed, crowded.is_empty()) {
            (false, true) => drop(self.sweeps.later.remove(id)),
            // If nothing of it is ending, it has ended while it was looked at, and looking again at once would not end.
            (false, false) if goes_on && user.is_some_and(|user| user.has_ending()) => {
                sweep.waiting = Some(id.clone())
            }
            _ => self.sweep_later(id),
        }
        self.let_go(id);
        self.sweep_ended();
        self.sweep_on();
    }

    /// Ends are durable, perhaps those that a sweep waits for.
    pub(super) fn sweep_ended(&mut self) {
        let Some(sweep) = &mut self.sweeps.open else { return };
        let users = &self.users;
        let has_ended = |id: &mut UserId| users.get(id).is_none_or(|user| !user.has_ending());
        if let Some(id) = sweep.waiting.take_if(has_ended) {
            sweep.users.push_front(id);
            self.sweep_on();
        }
    }

    /// Somebody could not be looked at to the end: it is tried again.
    fn sweep_later(&mut self, id: &UserId) {
        let now = self.now;
        let has_room = self.sweeps.later.len() < MAX_LATER;
        if let Some((failures, at)) = self.sweeps.later.get_mut(id) {
            *failures = failures.saturating_add(1);
            *at = now.after(backoff(*failures));
        } else if has_room {
            self.sweeps.later.insert(id.clone(), (0, now.after(backoff(0))));
        } else if let Some(sweep) = &mut self.sweeps.open {
            sweep.failed = true;
        }
    }

    /// A list was read, or the last of them was before.
    pub(super) fn sweep_list(
        &mut self,
        load: LoadId,
        users: Vec<UserId>,
        more: Option<DuePlace>,
        next: Timestamp,
        table: u64,
    ) {
        let Some(sweep) = self.sweeps.open.as_mut().filter(|sweep| sweep.load == Some(load)) else { return };
        sweep.load = None;
        sweep.users = users.into();
        (sweep.after, sweep.lists_read, sweep.next) = (more, more.is_none(), next);
        sweep.table = sweep.table.min(table);
        self.sweep_on();
    }

    /// Something could not be read that a sweep needs: a list, so that all of it is tried again, or somebody, without whom
    /// it goes on.
    pub(super) fn sweep_load_failed(&mut self, query: &Query) {
        let Some(sweep) = &mut self.sweeps.open else { return };
        match query {
            Query::Due { .. } => {
                self.sweeps.open = None;
                self.sweep_failed();
            }
            Query::User(id) | Query::Row(id) if sweep.reading.as_ref() == Some(id) => {
                sweep.reading = None;
                self.sweep_later(id);
                self.sweep_on();
            }
            _ => {}
        }
    }

    fn sweep_failed(&mut self) {
        self.arm_sweep(self.now.after(backoff(self.sweeps.failures)));
        self.sweeps.failures = self.sweeps.failures.saturating_add(1);
    }

    fn sweep_done(&mut self) {
        let Some(sweep) = self.sweeps.open.take() else { return };
        if sweep.failed {
            self.sweep_failed();
        } else {
            self.sweeps.failures = 0;
            self.sweeps.seen = (sweep.until, sweep.table);
        }
        let nobody_waits = self.sweeps.later.is_empty();
        if nobody_waits && !sweep.failed {
            self.sweeps.swept = self.sweeps.seen;
            self.stats.sweeps += 1;
        }
        let later = self.sweeps.later.values().map(|(_, at)| *at).min().unwrap_or(Timestamp::NEVER);
        let next = if sweep.again { self.now } else { sweep.next };
        self.note_due(next.min(later));
    }
}
