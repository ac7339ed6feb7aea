//! How long to wait before connecting again: exponential, with full jitter.
//!
//! The delay before attempt n is drawn evenly from `floor ..= min(cap, floor · 2ⁿ)` ("full jitter", Marc Brooker,
//! "Exponential Backoff and Jitter", 2015; the floor keeps a lucky draw from becoming a busy loop).
//!
//! What a peer asked for is a lower bound. It may have asked many for the same, so they must be spread behind it: evenly, over
//! as much as without it, or over an eighth of what was asked for if that is more, so that a crowd that is sent away for a
//! minute does not come back within the blink of an eye. (An eighth of the longest slot that
//! [`AdmissionConfig`](super::AdmissionConfig) gives is within the time for which it keeps that slot.)

use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

/// Delays between attempts. The same seed gives the same delays.
///
/// ```
/// use core::time::Duration;
/// use lastmile::session::Backoff;
/// let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(20), 1);
/// assert!(backoff.next_delay(None) <= Duration::from_secs(1));
/// assert!(backoff.next_delay(Some(Duration::from_secs(60))) >= Duration::from_secs(60));
/// backoff.reset();
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    floor: u64,
    cap: u64,
    failures: u32,
    rng: ChaCha8Rng,
}

impl Backoff {
    /// Delays between these, in whole milliseconds.
    #[must_use]
    pub fn new(floor: Duration, cap: Duration, seed: u64) -> Self {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let floor = millis(floor);
        Self { floor, cap: millis(cap).max(floor), failures: 0, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The delay before the next attempt, after one more failure. It is at least what the peer asked for, if it did, and
    /// jitter is added to that, because a peer may give many the same time.
    pub fn next_delay(&mut self, retry_after: Option<Duration>) -> Duration {
        self.failures = self.failures.saturating_add(1);
        match retry_after {
            Some(after) => self.behind(after),
            None => {
                let own = self.own_spread();
                Duration::from_millis(self.floor).saturating_add(self.jitter(own))
            }
        }
    }

    /// The delay before something else is tried that has not failed yet, which is a first attempt. It counts no failure.
    pub(super) fn short_delay(&mut self) -> Duration {
        Duration::from_millis(self.floor).saturating_add(self.jitter(self.floor))
    }

    /// A time to come back at, for whoever was asked to come no earlier. It counts no failure.
    pub(super) fn behind(&mut self, after: Duration) -> Duration {
        let share = u64::try_from(after.as_millis() / 8).unwrap_or(u64::MAX);
        let spread = self.own_spread().max(share);
        after.saturating_add(self.jitter(spread))
    }

    /// How far the delays between attempts lie apart, after as many failures.
    fn own_spread(&self) -> u64 {
        let growth = 1_u64.checked_shl(self.failures.max(1)).unwrap_or(u64::MAX);
        self.floor.max(1).saturating_mul(growth).min(self.cap).saturating_sub(self.floor)
    }

    /// Evenly from nothing to that many milliseconds.
    fn jitter(&mut self, most: u64) -> Duration {
        let drawn = self.rng.next_u64();
        Duration::from_millis(drawn.checked_rem(most.saturating_add(1)).unwrap_or(drawn))
    }

    /// Attempts that failed since the last success.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// A connection has stood for a while: the next delay starts from the floor again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Duration = Duration::from_millis(500);
    const CAP: Duration = Duration::from_secs(20);

    #[test]
    fn delays_stay_between_floor_and_cap_and_use_the_whole_range() {
        let mut backoff = Backoff::new(FLOOR, CAP, 7);
        let delays: Vec<_> = (0..1000).map(|_| backoff.next_delay(None)).collect();
        assert!(delays.iter().all(|delay| (FLOOR..=CAP).contains(delay)));
        assert!(delays[0] <= 2 * FLOOR, "the first one is short");
        let late = &delays[10..];
        assert!(late.iter().any(|delay| *delay < CAP / 10) && late.iter().any(|delay| *delay > CAP * 9 / 10));
    }

    #[test]
    fn a_success_starts_over_and_the_seed_decides() {
        let draw = |seed| {
            let mut backoff = Backoff::new(FLOOR, CAP, seed);
            (0..20).map(|_| backoff.next_delay(None)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mut backoff = Backoff::new(FLOOR, CAP, 1);
        (0..20).for_each(|_| assert!(backoff.next_delay(None) <= CAP));
        backoff.reset();
        assert!(backoff.next_delay(None) <= 2 * FLOOR);
    }

    /// The most of a crowd that come within a tenth of a second, and when the first and the last of them come.
    fn crowd(retry_after: Option<Duration>, failures: u32) -> (usize, Duration, Duration) {
        const CROWD: u64 = 100_000;
        let mut tenths = std::collections::BTreeMap::<u128, usize>::new();
        let (mut first, mut last) = (Duration::MAX, Duration::ZERO);
        for seed in 0..CROWD {
            let mut backoff = Backoff::new(FLOOR, CAP, seed);
            (1..failures).for_each(|_| _ = backoff.next_delay(None));
            let delay = backoff.next_delay(retry_after);
            (first, last) = (first.min(delay), last.max(delay));
            *tenths.entry(delay.as_millis() / 100).or_default() += 1;
        }
        (tenths.into_values().max().unwrap_or(0), first, last)
    }

    #[test]
    fn what_the_peer_asked_for_is_obeyed_and_a_crowd_that_was_asked_for_the_same_does_not_come_at_once() {
        for (asked, failures) in [(0, 3), (1, 1), (60, 1), (60, 10), (3600, 1)] {
            let asked = Duration::from_secs(asked);
            let (most, first, last) = crowd(Some(asked), failures);
            let own = (FLOOR * 2_u32.pow(failures)).min(CAP) - FLOOR;
            let spread = own.max(asked / 8);
            assert!(asked <= first && last <= asked + spread, "{first:?} to {last:?} for {asked:?}");
            // As even as chance is: a tenth of a second has its share of the crowd, and some more.
            let fair = 100_000.0 * 0.1 / spread.as_secs_f64().max(0.1);
            assert!(most as f64 <= fair * 1.3 + 30.0, "{most} at once of {fair}, {asked:?}, {failures}");
        }
    }

    #[test]
    fn a_crowd_whose_server_has_gone_does_not_try_at_once() {
        let (most, first, last) = crowd(None, 6);
        assert!(FLOOR <= first && last <= CAP && most <= 1000, "{most} at once, {first:?} to {last:?}");
    }
}
