//! Engine time from the system's clocks: the only file that reads them.
#![allow(clippy::disallowed_methods)]

#[cfg(unix)]
use core::time::Duration;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

#[cfg(unix)]
use rustix::time::ClockId;

use crate::ports::Clock;
use crate::time::Timestamp;

/// Wall time at opening, never below the last time that the store or a record in the journal has seen, plus the monotonic
/// time since. That goes on while the machine sleeps, on Unix as on Windows. A wall clock that is set while the engine is open
/// changes nothing before the next opening.
#[derive(Debug)]
pub struct SystemClock {
    base: Timestamp,
    since: Awake,
}

impl SystemClock {
    /// A clock that starts at the wall time, or at `floor` if that is later.
    #[must_use]
    pub fn new(floor: Timestamp) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { base: Timestamp::ZERO.after(wall).max(floor), since: Awake::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        self.base.after(self.since.elapsed())
    }
}

/// A moment of a clock that no sleep stops: what is due in an hour is due in an hour, also for a laptop that was closed.
#[cfg(unix)]
#[derive(Clone, Copy, Debug)]
struct Awake(Duration);

#[cfg(unix)]
impl Awake {
    /// What the standard library reads stands still in a sleep, on Linux and on Apple's systems.
    fn now() -> Self {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const CLOCK: ClockId = ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        const CLOCK: ClockId = ClockId::Monotonic;
        let now = rustix::time::clock_gettime(CLOCK);
        let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
        Self(Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default()))
    }

    fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

#[cfg(not(unix))]
type Awake = Instant;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_begins_at_the_wall_time_or_the_floor_and_goes_on_as_the_monotonic_clock_does() {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let clock = SystemClock::new(Timestamp::ZERO);
        assert!(clock.now().as_millis() >= wall.as_millis() as u64);
        let floor = Timestamp::ZERO.after(wall * 2);
        let (ahead, since) = (SystemClock::new(floor), Instant::now());
        let mut last = ahead.now();
        assert!(last >= floor);
        while since.elapsed().as_millis() < 20 {
            let now = ahead.now();
            assert!(now >= last);
            last = now;
        }
        // Asked once more: a slow machine may have stood still since the last answer.
        let last = ahead.now();
        assert!(last >= floor.after(core::time::Duration::from_millis(15)), "{last:?} {floor:?}");
    }
}
