//! Which transport to use: the best that works here, with a memory of what did.
//!
//! Rungs are numbered from the best (0). A rung that fails several times in a row is left for the next one down, and rests
//! for a while that doubles each time it fails again. While a lower rung holds and its quality is good enough, the better
//! one is tried when it has rested; a rung that was left for bad quality is only tried again when it has rested too. So
//! there is hysteresis in both directions, and no flapping between two.
//!
//! A rung's failures say something about it only if something else works. When each of them has failed in turn, or rests
//! already, and none has connected meanwhile, it is the network that does not work, or the peer: what was held against the
//! rungs since is forgotten, and they are tried again from the best one on. So however long nothing works, it costs nobody
//! the better transport afterwards.

use core::time::Duration;

use super::quality::Grade;
use crate::time::Timestamp;

/// Policies of a [`Ladder`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LadderConfig {
    /// Failures in a row after which a rung is left. Default: 2.
    pub failures: u32,
    /// How long a rung rests after it was left for the first time. Default: 20 s.
    pub cool_down: Duration,
    /// The longest rest. Default: 30 minutes.
    pub max_cool_down: Duration,
    /// How long a connection must stand before its rung counts as working, and before a better one is tried. Default: 8 s.
    pub stable: Duration,
}

impl Default for LadderConfig {
    fn default() -> Self {
        Self {
            failures: 2,
            cool_down: Duration::from_secs(20),
            max_cool_down: Duration::from_secs(1800),
            stable: Duration::from_secs(8),
        }
    }
}

/// What is known of one rung.
#[derive(Clone, Copy, Debug, Default)]
struct Rung {
    failures: u32,
    /// How often it was left since it last worked.
    left: u32,
    rests_until: Timestamp,
    worked: bool,
    /// What was known before it was left, as long as nothing has connected since: how often it was left, and whether it worked.
    before: Option<(u32, bool)>,
}

impl Rung {
    /// Nothing has been held against it since anything worked, and it does not rest.
    fn is_fresh(&self, now: Timestamp) -> bool {
        self.before.is_none() && self.failures == 0 && self.rests_until <= now
    }
}

/// Chooses among transports. The host keeps [`Ladder::memory`] for each network it knows, if it can tell them apart.
#[derive(Clone, Debug)]
pub struct Ladder {
    config: LadderConfig,
    rungs: Vec<Rung>,
    current: usize,
    /// Since when the connection stands.
    since: Option<Timestamp>,
    /// It had stood for long enough before something else was tried beside it.
    stood: bool,
}

impl Ladder {
    /// So many transports (at least one), the best first. `worked` is the memory of an earlier ladder on this network: it
    /// starts on the best rung that worked.
    #[must_use]
    pub fn new(config: LadderConfig, transports: usize, worked: &[usize]) -> Self {
        let mut rungs = vec![Rung::default(); transports.max(1)];
        for index in worked {
            if let Some(rung) = rungs.get_mut(*index) {
                rung.worked = true;
            }
        }
        let current = rungs.iter().position(|rung| rung.worked).unwrap_or(0);
        Self { config, rungs, current, since: None, stood: false }
    }

    /// The transport to connect with, or that is connected.
    #[must_use]
    pub const fn current(&self) -> usize {
        self.current
    }

    /// What worked here.
    #[must_use]
    pub fn memory(&self) -> Vec<usize> {
        self.rungs.iter().enumerate().filter(|(_, rung)| rung.worked).map(|(index, _)| index).collect()
    }

    /// Another network: nothing that failed on the old one says anything about this one.
    pub fn network_changed(&mut self, worked: &[usize]) {
        *self = Self::new(self.config.clone(), self.rungs.len(), worked);
    }

    /// The connection over this transport stands, whichever was to be tried next: what others failed with meanwhile, they have
    /// failed with alone.
    pub fn connected(&mut self, now: Timestamp, rung: usize) {
        self.current = rung.min(self.rungs.len().saturating_sub(1));
        self.since = Some(now);
        self.stood = false;
        self.rungs.iter_mut().for_each(|rung| rung.before = None);
    }

    /// The transport could not connect, or lost its connection, and nothing else stands. Returns what to try next.
    pub fn failed(&mut self, now: Timestamp) -> usize {
        self.count_failure(now, false)
    }

    /// As [`Ladder::failed`]. Whether the next one is another, which has not failed since anything worked.
    pub(super) fn failed_for_another(&mut self, now: Timestamp) -> bool {
        let before = self.current;
        let next = self.failed(now);
        // Whoever was left has something held against it, unless that was forgiven to all of them just now.
        let was_left = self.rungs.get(before).is_some_and(|rung| rung.before.is_some());
        next != before && was_left && self.rungs.get(next).is_some_and(|rung| rung.is_fresh(now))
    }

    /// As [`Ladder::failed_for_another`], of a transport of which nothing at all was heard: once is enough.
    pub(super) fn failed_silently(&mut self, now: Timestamp) -> bool {
        let most = self.config.failures;
        if let Some(rung) = self.rungs.get_mut(self.current) {
            rung.failures = rung.failures.max(most.saturating_sub(1));
        }
        self.failed_for_another(now)
    }

    /// Whether there is another transport, which has not failed since anything worked.
    pub(super) fn has_fresh(&self, now: Timestamp) -> bool {
        self.rungs.iter().enumerate().any(|(index, rung)| index != self.current && rung.is_fresh(now))
    }

    /// The connection ended, and its transport is not to blame.
    pub(super) const fn ended(&mut self) {
        self.since = None;
        self.stood = false;
    }

    /// A transport that was tried beside a connection could not connect. Returns what to try next.
    pub(super) fn failed_beside(&mut self, now: Timestamp) -> usize {
        self.count_failure(now, true)
    }

    /// The connection broke while another transport was tried beside it. That says nothing of the other one, and nothing of
    /// its own: next is the best that is known to work here, or the one that was tried if none is.
    pub(super) fn lost_beside(&mut self, now: Timestamp) {
        self.ended();
        let known = self.rungs.iter().position(|rung| rung.worked && rung.rests_until <= now);
        self.current = known.unwrap_or(self.current);
    }

    fn count_failure(&mut self, now: Timestamp, another_stands: bool) -> usize {
        let since = self.since.take();
        let stood = core::mem::take(&mut self.stood)
            || since.is_some_and(|since| now >= since.after(self.config.stable));
        let most = self.config.failures.max(1);
        let Some(rung) = self.rungs.get_mut(self.current) else { return self.current };
        if stood {
            *rung = Rung { failures: 0, left: 0, worked: true, ..*rung };
            return self.current;
        }
        rung.failures = rung.failures.saturating_add(1);
        if rung.failures >= most {
            if !another_stands {
                rung.before = rung.before.or(Some((rung.left, rung.worked)));
            }
            self.leave(now);
            let is_out = |rung: &Rung| rung.before.is_some() || rung.rests_until > now;
            if !another_stands && self.rungs.iter().all(is_out) {
                self.forgive();
            }
        }
        self.current
    }

    /// Nothing works at all: what failed since something did says nothing of any rung.
    fn forgive(&mut self) {
        for rung in &mut self.rungs {
            if let Some((left, worked)) = rung.before.take() {
                *rung = Rung { left, worked, ..Rung::default() };
            }
        }
        let rested = |rung: &Rung| rung.rests_until == Timestamp::ZERO;
        let best = self.rungs.iter().position(|rung| rested(rung) && rung.worked);
        let best = best.or_else(|| self.rungs.iter().position(rested));
        self.current = best.unwrap_or(self.current);
    }

    /// How good the connection is. Returns another transport if that should be tried now, while this one still stands.
    pub fn graded(&mut self, now: Timestamp, grade: Grade) -> Option<usize> {
        let stands = self.since.is_some_and(|since| now >= since.after(self.config.stable));
        if !stands {
            return None;
        }
        if let Some(rung) = self.rungs.get_mut(self.current).filter(|_| grade > Grade::Poor) {
            *rung = Rung { failures: 0, left: 0, worked: true, ..*rung };
        }
        let before = self.current;
        if grade == Grade::Poor {
            self.leave(now);
        } else {
            let better = self.rungs.iter().take(before).position(|rung| rung.rests_until <= now);
            self.current = better.unwrap_or(before);
        }
        (self.current != before).then(|| {
            self.ended();
            self.current
        })
    }

    /// When the connection that stands has stood for long enough to show that its transport works here, if that is not
    /// known yet.
    pub(super) fn proves_at(&self) -> Option<Timestamp> {
        let is_known = self.rungs.get(self.current).is_none_or(|rung| rung.worked);
        self.since.filter(|_| !is_known).map(|since| since.after(self.config.stable))
    }

    /// No other transport would do: the connection over this one is kept, and others are tried when they have rested, but
    /// not at once.
    pub(super) fn settle(&mut self, held: usize, now: Timestamp) {
        self.current = held;
        self.since = Some(now);
        self.stood = self.rungs.get(held).is_some_and(|rung| rung.worked);
    }

    /// When a better transport has rested, for [`Ladder::graded`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let stands = self.since?.after(self.config.stable);
        let rested = self.rungs.iter().take(self.current).map(|rung| rung.rests_until.max(stands)).min();
        rested.filter(|at| *at != Timestamp::NEVER)
    }

    /// The current rung rests; the next is the best below that does not, or whichever has rested first.
    fn leave(&mut self, now: Timestamp) {
        let config = &self.config;
        if let Some(rung) = self.rungs.get_mut(self.current) {
            let doubled = config.cool_down.saturating_mul(1_u32.checked_shl(rung.left).unwrap_or(u32::MAX));
            rung.rests_until = now.after(doubled.min(config.max_cool_down));
            rung.left = rung.left.saturating_add(1);
            rung.failures = 0;
            rung.worked = false;
        }
        let rested = |rung: &Rung| rung.rests_until <= now;
        let below =
            self.rungs.iter().enumerate().skip(self.current.saturating_add(1)).find(|(_, rung)| rested(rung));
        let any =
            self.rungs.iter().enumerate().min_by_key(|(index, rung)| (rung.rests_until.max(now), *index));
        if let Some((index, _)) = below.or(any) {
            self.current = index;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + seconds * 1000)
    }

    fn ladder() -> Ladder {
        Ladder::new(LadderConfig::default(), 3, &[])
    }

    /// The connection over the transport that was to be tried stands.
    fn stands(ladder: &mut Ladder, now: Timestamp) {
        ladder.connected(now, ladder.current());
    }

    #[test]
    fn a_transport_that_does_not_work_is_left_and_tried_again_when_it_has_rested() {
        let mut ladder = ladder();
        assert_eq!((ladder.failed(at(0)), ladder.failed(at(1))), (0, 1));
        stands(&mut ladder, at(2));
        assert_eq!(ladder.poll_timeout(), Some(at(21)));
        assert_eq!(ladder.graded(at(20), Grade::Good), None);
        assert_eq!(ladder.graded(at(21), Grade::Good), Some(0));
        // It fails again, and rests for twice as long.
        assert_eq!((ladder.failed(at(22)), ladder.failed(at(23))), (0, 1));
        stands(&mut ladder, at(24));
        assert_eq!(ladder.graded(at(62), Grade::Good), None);
        assert_eq!(ladder.graded(at(63), Grade::Good), Some(0));
        stands(&mut ladder, at(64));
        ladder.graded(at(80), Grade::Good);
        assert_eq!(ladder.memory(), [0, 1]);
    }

    #[test]
    fn a_connection_that_stood_and_broke_does_not_count_against_its_transport() {
        let mut ladder = ladder();
        for round in 0..10 {
            stands(&mut ladder, at(round * 100));
            assert_eq!(ladder.failed(at(round * 100 + 50)), 0);
        }
    }

    #[test]
    fn a_poor_connection_is_left_for_the_next_and_does_not_flap() {
        let mut ladder = ladder();
        let mut switches = 0;
        stands(&mut ladder, at(0));
        for second in 0..3600 {
            // The best transport is always poor, the second one is fine.
            let grade = if ladder.current() == 0 { Grade::Poor } else { Grade::Good };
            if ladder.graded(at(second), grade).is_some() {
                switches += 1;
                stands(&mut ladder, at(second));
            }
        }
        assert!((2..=30).contains(&switches), "{switches} switches in an hour");
    }

    #[test]
    fn what_worked_is_remembered_and_another_network_starts_anew() {
        let mut ladder = Ladder::new(LadderConfig::default(), 3, &[2]);
        assert_eq!(ladder.current(), 2);
        stands(&mut ladder, at(0));
        assert_eq!(ladder.graded(at(8), Grade::Fair), Some(0), "the better ones have not failed here");
        ladder.network_changed(&[1]);
        assert_eq!((ladder.current(), ladder.memory()), (1, vec![1]));
    }

    #[test]
    fn when_nothing_works_every_transport_gets_its_turn() {
        let mut ladder = ladder();
        let mut tried = [0; 3];
        for second in 0..600 {
            tried[ladder.failed(at(second))] += 1;
        }
        assert!(tried.iter().all(|count| *count > 20), "{tried:?}");
    }

    #[test]
    fn when_everything_fails_no_transport_is_held_back_for_it_afterwards() {
        for transports in 1..=4 {
            for failures in 0..300 {
                let mut ladder = Ladder::new(LadderConfig::default(), transports, &[]);
                stands(&mut ladder, at(0));
                let mut now = 100;
                ladder.failed(at(now));
                for _ in 0..failures {
                    now += 7;
                    ladder.failed(at(now));
                }
                stands(&mut ladder, at(now));
                let back = ladder.poll_timeout();
                assert!(
                    ladder.current() == 0 || back.is_some_and(|back| back <= at(now + 20)),
                    "of {transports}, after {failures} failures: {ladder:?}"
                );
                if let Some(back) = back {
                    assert_eq!(ladder.graded(back, Grade::Good), Some(0));
                }
            }
        }
    }

    #[test]
    fn what_was_held_against_a_transport_before_an_outage_is_held_against_it_afterwards() {
        let mut ladder = ladder();
        let mut now = 0;
        // The best one fails alone, four times.
        for _ in 0..4 {
            now += 400;
            ladder.failed(at(now));
            ladder.failed(at(now));
            stands(&mut ladder, at(now));
            ladder.graded(at(now + 8), Grade::Good);
            assert_eq!(ladder.current(), 1);
            now = ladder.poll_timeout().unwrap().as_millis() / 1000 - 1000;
            if ladder.rungs[0].left < 4 {
                assert_eq!(ladder.graded(at(now), Grade::Good), Some(0));
            }
        }
        let rests = ladder.rungs[0].rests_until;
        for second in 0..100 {
            ladder.failed(at(now - 150 + second));
            assert_ne!(ladder.current(), 0, "it rests");
        }
        stands(&mut ladder, at(now - 50));
        assert_eq!(ladder.rungs[0].rests_until, rests);
    }
}
