//! Sweeps: what is due while nobody is there. Messages expire, and scheduled ones take their places, whether or not their
//! recipient comes.
//!
//! The store lists who has something due, by time ([`Query::Due`]). A sweep goes through the lists and looks at one user
//! after the other, as an operation does: bounded in memory, a slice at a time, and never more than one read of the store
//! at once, so that whoever comes waits behind one page at most.

use core::time::Duration;
use std::collections::VecDeque;

use super::Machine;
use super::io::LoadId;
use super::operate::Work;
use super::query::{DuePlace, Query};
use super::timer::TimerKey;
use crate::id::UserId;
use crate::time::Timestamp;

/// How long after an opening the first sweep begins: those who come back at once go first.
const FIRST_SWEEP: Duration = Duration::from_secs(5);
/// The least time between two sweeps, and how soon one is tried again that has failed.
const SPACING: Duration = Duration::from_secs(10);

/// What was swept, and what is being swept.
#[derive(Debug)]
pub(super) struct Sweeps {
    open: Option<Sweep>,
    /// All that was due up to this time was seen to, in the runs of this table.
    pub(super) swept: (Timestamp, u64),
    /// When the timer is armed for, if it is.
    armed: Option<Timestamp>,
}

impl Default for Sweeps {
    fn default() -> Self {
        Self { open: None, swept: (Timestamp::ZERO, 0), armed: None }
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
    /// Another one was due meanwhile.
    again: bool,
    /// Somebody could not be looked at: the others are, and then all once more.
    failed: bool,
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
        self.sweeps.open = Some(Sweep {
            until: now,
            users: VecDeque::new(),
            after: None,
            lists_read: false,
            table: u64::MAX,
            next: Timestamp::NEVER,
            load: None,
            reading: None,
            looking: false,
            again: false,
            failed: false,
        });
        self.sweep_on();
    }

    /// Looks at the next user, or asks for the next list.
    fn sweep_on(&mut self) {
        while let Some(sweep) = &mut self.sweeps.open {
            if sweep.load.is_some() || sweep.reading.is_some() || sweep.looking {
                return;
            }
            let Some(id) = sweep.users.pop_front() else {
                if sweep.lists_read {
                    return self.sweep_done();
                }
                let query = Query::Due { until: sweep.until, since: self.sweeps.swept, after: sweep.after };
                let load = self.load(query);
                if let Some(sweep) = &mut self.sweeps.open {
                    sweep.load = Some(load);
                }
                return;
            };
            if self.digester.shard(&id, self.shards) == self.shard {
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
        let held = self.users.get(&id).and_then(|user| user.held).unwrap_or_default();
        if held.messages == 0 {
            return self.evict_if_idle(&id);
        }
        if let Some(sweep) = &mut self.sweeps.open {
            sweep.looking = true;
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

    /// A user was looked at.
    pub(super) fn sweep_looked(&mut self, failed: bool) {
        if let Some(sweep) = &mut self.sweeps.open {
            sweep.looking = false;
        }
        if failed {
            self.sweep_without();
        }
        self.sweep_on();
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

    /// Something could not be read that a sweep needs: all of it is tried again.
    pub(super) fn sweep_load_failed(&mut self, query: &Query) {
        let concerns = match query {
            Query::Due { .. } => true,
            Query::User(id) | Query::Row(id) => {
                self.sweeps.open.as_ref().is_some_and(|sweep| sweep.reading.as_ref() == Some(id))
            }
            _ => false,
        };
        match query {
            _ if !concerns => {}
            Query::Due { .. } => {
                self.sweeps.open = None;
                self.arm_sweep(self.now.after(SPACING));
            }
            _ => {
                self.sweep_without();
                self.sweep_on();
            }
        }
    }

    /// Somebody cannot be read: the sweep goes on without them.
    fn sweep_without(&mut self) {
        if let Some(sweep) = &mut self.sweeps.open {
            (sweep.failed, sweep.again, sweep.reading) = (true, true, None);
        }
    }

    fn sweep_done(&mut self) {
        let Some(sweep) = self.sweeps.open.take() else { return };
        if !sweep.failed {
            self.sweeps.swept = (sweep.until, sweep.table);
            self.stats.sweeps += 1;
        }
        self.note_due(if sweep.again { self.now } else { sweep.next });
    }
}
