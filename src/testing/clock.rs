//! A clock that stands still until it is told to move.

use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ports::Clock;
use crate::time::Timestamp;

/// A clock moved by hand. Clones are handles to the same clock.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    millis: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { millis: Arc::new(AtomicU64::new(now.as_millis())) }
    }

    /// Moves it forward, saturating at [`Timestamp::NEVER`], and says what it shows then.
    pub fn advance(&self, by: Duration) -> Timestamp {
        self.advance_to(self.now().after(by))
    }

    /// Moves it forward to `to`; a time that has passed changes nothing, for engine time never goes backwards.
    pub fn advance_to(&self, to: Timestamp) -> Timestamp {
        let before = self.millis.fetch_max(to.as_millis(), Ordering::SeqCst);
        Timestamp::from_millis(before.max(to.as_millis()))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.millis.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_show_the_same_time_and_never_an_earlier_one() {
        let clock = ManualClock::new(Timestamp::from_millis(5));
        let other = clock.clone();
        assert_eq!(clock.advance(Duration::from_millis(2)), Timestamp::from_millis(7));
        assert_eq!(other.advance_to(Timestamp::ZERO), Timestamp::from_millis(7));
        assert_eq!(other.now(), Timestamp::from_millis(7));
    }
}
