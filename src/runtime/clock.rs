//! Engine time from the system's clocks: the only file that reads them.
#![allow(clippy::disallowed_methods)]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::ports::Clock;
use crate::time::Timestamp;

/// Wall time at opening, never below the last time that the store or a record in the journal has seen, plus the monotonic time since.
#[derive(Debug)]
pub struct SystemClock {
    base: Timestamp,
    since: Instant,
}

impl SystemClock {
    /// A clock that starts at the wall time, or at `floor` if that is later.
    #[must_use]
    pub fn new(floor: Timestamp) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { base: Timestamp::ZERO.after(wall).max(floor), since: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        self.base.after(self.since.elapsed())
    }
}

/// Measures how long something takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn nanos(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
