//! Timers: one per attached sink (its next ack deadline), one per user (its next backoff or expiry), whether somebody is
//! there or not. What has left memory is the business of sweeps.

use core::time::Duration;
use std::collections::BTreeSet;

use super::Machine;
use super::history::AttemptFailure;
use super::io::{EntryRef, LinkId};
use super::lane::Lane;
use super::query::Query;
use super::user::User;
use crate::id::UserId;
use crate::time::Timestamp;

/// Timers of one user fire at least this far apart, so that many small expiries cost few scans.
const USER_SPACING_MS: u64 = 10;
/// Messages of one lane that are handled when they are due; the rest follows after the spacing.
const DUE_BUDGET: usize = 512;
/// Timers handled per input: bounds how long others wait.
const TIMER_BUDGET: usize = 64;

/// Timers of a user who is away fire at least this far apart, and not sooner than this after what they are armed for was
/// recorded: nobody waits for that.
const AWAY_SPACING: Duration = Duration::from_secs(1);
/// How long after an opening those have their turn who are away: whoever comes back at once goes first.
const FIRST_AWAY: Duration = Duration::from_secs(5);

/// Users who are away, of whom something in memory has expired and whose row must be read before that can end: what may
/// have been offered to them. One after the other, so that whoever comes waits behind one at most.
#[derive(Debug, Default)]
pub(super) struct Away {
    waiting: BTreeSet<UserId>,
    reading: Option<UserId>,
}

/// What a timer is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TimerKey {
    /// The next ack deadline of a sink, or the end of its pause.
    Link(LinkId),
    /// The next backoff or expiry of a user's messages.
    User(UserId),
    /// A failed load.
    Reload(UserId),
    /// What is due while nobody is there.
    Sweep,
}

impl Machine {
    pub(super) fn fire_timers(&mut self, now: Timestamp) {
        for _ in 0..TIMER_BUDGET {
            if self.timers.first().is_none_or(|(at, _)| *at > now) {
                break;
            }
            match self.timers.pop_first() {
                Some((_, TimerKey::Link(link))) => self.link_due(now, link),
                Some((_, TimerKey::User(id))) => self.user_due(now, &id),
                Some((_, TimerKey::Reload(id))) => {
                    self.reload(&id);
                    self.free_dependents(&id);
                }
                Some((_, TimerKey::Sweep)) => self.sweep(now),
                None => break,
            }
        }
    }

    /// Makes sure that a sink's timer fires by `at`.
    pub(super) fn arm_link(&mut self, id: LinkId, at: Timestamp) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        if let Some(armed) = link.armed.replace(at) {
            self.timers.remove(&(armed, TimerKey::Link(id)));
        }
        self.timers.insert((at, TimerKey::Link(id)));
    }

    fn link_due(&mut self, now: Timestamp, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.armed = None;
        let user = link.user.clone();
        if link.paused_until.is_some_and(|until| until <= now) {
            link.paused_until = None;
        }
        let due: Vec<EntryRef> = link
            .flights
            .iter()
            .filter(|(_, flight)| flight.deadline <= now)
            .map(|(entry, _)| *entry)
            .collect();
        for entry in due {
            self.attempt_failed(now, id, entry, (AttemptFailure::Unanswered, None));
        }
        if let Some(link) = self.links.get(&id) {
            let next = link.flights.values().map(|flight| flight.deadline).chain(link.paused_until).min();
            if let Some(next) = next {
                self.arm_link(id, next);
            }
        }
        self.mark_ready(&user);
    }

    /// Makes sure that a user's timer fires by `at`.
    pub(super) fn arm_user(&mut self, now: Timestamp, id: &UserId, at: Timestamp) {
        if at == Timestamp::NEVER {
            return;
        }
        let Some(user) = self.users.get_mut(id) else { return };
        let at = at.max(now.after(core::time::Duration::from_millis(USER_SPACING_MS)));
        if user.wake.is_some_and(|armed| armed <= at) {
            return;
        }
        if let Some(armed) = user.wake.replace(at) {
            self.timers.remove(&(armed, TimerKey::User(id.clone())));
        }
        self.timers.insert((at, TimerKey::User(id.clone())));
    }

    /// Forgets a user's timer.
    pub(super) fn disarm_user(&mut self, id: &UserId) {
        if let Some(armed) = self.users.get_mut(id).and_then(|user| user.wake.take()) {
            self.timers.remove(&(armed, TimerKey::User(id.clone())));
        }
    }

    /// Arms the timer by what is in memory.
    pub(super) fn rearm_user(&mut self, now: Timestamp, id: &UserId) {
        let latest = now.after(self.config.backoff_cap);
        let Some(user) = self.users.get_mut(id) else { return };
        if !user.is_attached() {
            let next = user.all_lanes().filter_map(Lane::next_due).min();
            return next.into_iter().for_each(|next| self.arm_away(now, id, next));
        }
        user.all_lanes_mut().for_each(|(_, lane)| lane.clamp_backoffs(latest));
        let ripe = user.held.filter(|held| held.scheduled > 0).map(|_| user.next_ripe);
        let next = user.all_lanes().filter_map(Lane::next_due).chain(ripe);
        if let Some(next) = next.min() {
            self.arm_user(now, id, next);
        }
    }

    /// Makes sure that the timer of somebody who is away fires soon after `at`.
    pub(super) fn arm_away(&mut self, now: Timestamp, id: &UserId, at: Timestamp) {
        if at != Timestamp::NEVER {
            self.arm_user(now, id, at.max(now.after(AWAY_SPACING)));
        }
    }

    /// Arms the timers of those who have something in memory from before this opening.
    pub(super) fn arm_all_away(&mut self, now: Timestamp) {
        let first = now.after(FIRST_AWAY);
        let next = |user: &User| user.all_lanes().filter_map(Lane::next_due).min();
        let due = self.users.iter().filter_map(|(id, user)| Some((id.clone(), next(user)?)));
        let due: Vec<_> = due.collect();
        due.into_iter().for_each(|(id, at)| self.arm_away(now, &id, at.max(first)));
    }

    /// Reads the row of the next user who is away and has something that has expired.
    fn read_away(&mut self, now: Timestamp) {
        while self.away.reading.is_none()
            && let Some(id) = self.away.waiting.pop_first()
        {
            match self.users.get(&id).filter(|user| !user.is_attached()).map(|user| user.row_known) {
                Some(false) => {
                    self.away.reading = Some(id.clone());
                    self.load_once(Query::Row(id));
                }
                // Somebody else has had it read meanwhile.
                Some(true) => self.rearm_user(now, &id),
                None => {}
            }
        }
    }

    /// A row was read, or could not be: perhaps that of somebody who is away and has something that has expired.
    pub(super) fn away_read(&mut self, now: Timestamp, id: &UserId) {
        if self.away.reading.take_if(|reading| reading == id).is_some() {
            self.rearm_user(now, id);
            self.read_away(now);
        }
    }

    fn user_due(&mut self, now: Timestamp, id: &UserId) {
        let Some(user) = self.users.get_mut(id) else { return };
        user.wake = None;
        // Before they were read it is not known what may have been delivered; reading them arms the timer again.
        let attached = user.is_attached();
        if attached && !user.is_known() {
            return;
        }
        if !user.row_known {
            self.away.waiting.insert(id.clone());
            return self.read_away(now);
        }
        let mut expired = Vec::new();
        for (id, lane) in user.all_lanes_mut() {
            let (ended, rested) = lane.take_due(now, DUE_BUDGET);
            expired.extend(ended.into_iter().map(|seq| EntryRef { lane: id, seq }));
            for (seq, accept) in rested {
                if attached && lane.is_offerable(seq) {
                    lane.enqueue(seq, &accept);
                    lane.release_key(&accept);
                }
            }
        }
        for entry in expired {
            self.expire(now, id, entry);
        }
        self.ripen(id);
        self.rearm_user(now, id);
        self.mark_ready(id);
    }
}
