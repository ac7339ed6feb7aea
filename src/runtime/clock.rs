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

/// Tokio's time, which tests pause and move. Threads that are not tokio's see the newest time that anybody else has seen.
#[cfg(feature = "testing")]
#[derive(Clone, Debug)]
pub struct VirtualClock {
    base: Timestamp,
    since: tokio::time::Instant,
    newest: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

#[cfg(feature = "testing")]
impl VirtualClock {
    /// A clock that starts here and now.
    #[must_use]
    pub fn new(base: Timestamp) -> Self {
        Self { base, since: tokio::time::Instant::now(), newest: std::sync::Arc::default() }
    }
}

#[cfg(feature = "testing")]
impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        let now = match tokio::runtime::Handle::try_current() {
            Ok(_) => self.base.after(self.since.elapsed()),
            Err(_) => self.base,
        };
        let now = now.as_millis();
        let before = self.newest.fetch_max(now, std::sync::atomic::Ordering::SeqCst);
        Timestamp::from_millis(before.max(now))
    }
}
