//! How long to wait before connecting again: exponential, with full jitter.
//!
//! The delay before attempt n is drawn evenly from `floor ..= min(cap, floor · 2ⁿ)` ("full jitter", Marc Brooker,
//! "Exponential Backoff and Jitter", 2015; the floor keeps a lucky draw from becoming a busy loop).

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

    /// The delay before the next attempt, after one more failure. What the peer asked for comes on top of none of it:
    /// the delay is at least that, and the jitter is added to it, because a peer may give many the same time.
    pub fn next_delay(&mut self, retry_after: Option<Duration>) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let growth = 1_u64.checked_shl(self.failures).unwrap_or(u64::MAX);
        let ceiling = self.floor.max(1).saturating_mul(growth).min(self.cap).max(self.floor);
        let spread = ceiling.saturating_sub(self.floor).saturating_add(1);
        let jitter = self.rng.next_u64().checked_rem(spread).unwrap_or(0);
        let own = self.floor.saturating_add(jitter);
        match retry_after {
            // The peer's slot is jittered already: a floor's worth of spread is enough.
            Some(after) => after.saturating_add(Duration::from_millis(jitter.min(self.floor))),
            None => Duration::from_millis(own),
        }
    }

    /// Attempts that failed since the last success.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// A connection stood: the next delay starts from the floor again.
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

    #[test]
    fn what_the_peer_asked_for_is_obeyed_and_not_all_at_once() {
        let asked = Duration::from_secs(60);
        let mut backoff = Backoff::new(FLOOR, CAP, 3);
        let delays: Vec<_> = (0..100).map(|_| backoff.next_delay(Some(asked))).collect();
        assert!(delays.iter().all(|delay| (asked..=asked + FLOOR).contains(delay)));
        assert!(delays.iter().any(|delay| *delay != delays[0]));
    }
}
