//! What a shutdown leaves behind.

use core::fmt;
use core::time::Duration;

/// What was there when the engine shut down. Nothing of it is lost: it is in the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Messages that wait for their recipients.
    pub waiting: u64,
    /// Messages that were on offer and not confirmed; they may have arrived.
    pub in_flight: u64,
    /// Sends that were not answered in time; their outcome is unknown to their senders.
    pub unanswered: u64,
    /// How long it took.
    pub took: Duration,
    /// Whether everything was answered and confirmed before the deadline.
    pub clean: bool,
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.clean { "cleanly" } else { "at the deadline" };
        write!(
            f,
            "shut down {how} after {} ms: {} messages wait in the outbox, {} of them were in flight; {} sends unanswered",
            self.took.as_millis(),
            self.waiting,
            self.in_flight,
            self.unanswered
        )
    }
}
