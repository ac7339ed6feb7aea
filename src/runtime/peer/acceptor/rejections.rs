//! Rejections in the log: each kind once in an interval, with how many there were, and all of them counted.

use core::time::Duration;
use std::collections::HashMap;

use parking_lot::Mutex;

use crate::session::Code;
use crate::time::Timestamp;

/// How often one kind is logged.
const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    total: u64,
    unsaid: u64,
    next: Timestamp,
}

/// Counts and logs rejections. There are as many kinds as codes.
#[derive(Debug, Default)]
pub(super) struct Rejections {
    kinds: Mutex<HashMap<u16, Kind>>,
}

impl Rejections {
    /// Counts one; logs it, unless one of its kind was logged a moment ago.
    pub(super) fn note(&self, now: Timestamp, code: Code, address: &str, text: &str) {
        if let Some(others) = self.count(now, code) {
            tracing::warn!(
                messaging.system = "lastmile",
                error.r#type = code.number(),
                address,
                others,
                "a connection was refused: {code} ({text})"
            );
        }
    }

    /// How many others of its kind were not logged, if this one is to be.
    fn count(&self, now: Timestamp, code: Code) -> Option<u64> {
        let mut kinds = self.kinds.lock();
        let kind = kinds.entry(code.number()).or_default();
        kind.total += 1;
        if now < kind.next {
            kind.unsaid += 1;
            return None;
        }
        kind.next = now.after(INTERVAL);
        Some(core::mem::take(&mut kind.unsaid))
    }

    pub(super) fn total(&self) -> u64 {
        self.kinds.lock().values().map(|kind| kind.total).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_rejections_is_logged_once_in_an_interval_and_counted_whole() {
        let rejections = Rejections::default();
        let logged: Vec<_> = (0..25_000)
            .filter_map(|millis| rejections.count(Timestamp::from_millis(1000 + millis), Code::RateLimited))
            .collect();
        assert_eq!(logged, [0, 9999, 9999]);
        assert_eq!(rejections.count(Timestamp::from_millis(1000), Code::Malformed), Some(0));
        assert_eq!(rejections.total(), 25_001);
    }
}
