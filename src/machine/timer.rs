//! Timers: one per attached sink (its next ack deadline), one per user (its next backoff or expiry).

use super::Machine;
use super::history::AttemptFailure;
use super::io::{EntryRef, LinkId};
use super::lane::Lane;
use crate::id::UserId;
use crate::time::Timestamp;

/// Timers of one user fire at least this far apart, so that many small expiries cost few scans.
const USER_SPACING_MS: u64 = 10;
/// Messages of one lane that are handled when they are due; the rest follows after the spacing.
const DUE_BUDGET: usize = 512;
/// Timers handled per input: bounds how long others wait.
const TIMER_BUDGET: usize = 64;

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
        let Some(user) = self.users.get_mut(id).filter(|user| user.is_attached()) else { return };
        user.all_lanes_mut().for_each(|(_, lane)| lane.clamp_backoffs(latest));
        let ripe = user.held.filter(|held| held.scheduled > 0).map(|_| user.next_ripe);
        let next = user.all_lanes().filter_map(Lane::next_due).chain(ripe);
        if let Some(next) = next.min() {
            self.arm_user(now, id, next);
        }
    }

    fn user_due(&mut self, now: Timestamp, id: &UserId) {
        let Some(user) = self.users.get_mut(id) else { return };
        user.wake = None;
        // Before they were read it is not known what may have been delivered; reading them arms the timer again.
        if !user.is_attached() || !user.is_known() {
            return;
        }
        let mut expired = Vec::new();
        for (id, lane) in user.all_lanes_mut() {
            let (ended, rested) = lane.take_due(now, DUE_BUDGET);
            expired.extend(ended.into_iter().map(|seq| EntryRef { lane: id, seq }));
            for (seq, accept) in rested {
                if lane.is_offerable(seq) {
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
