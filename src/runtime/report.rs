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
    /// Sends that were not durable in time. Their outcome is unknown to their senders, but for buffered ones, which were
    /// answered and are lost.
    pub unanswered: u64,
    /// How long it took.
    pub took: Duration,
    /// Whether everything was answered and confirmed before the deadline.
    pub clean: bool,
    /// Whether all of it has stopped. Not so when its threads still wait for the disk: they end when that answers, and the
    /// directory stays locked until then.
    pub stopped: bool,
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.clean { "cleanly" } else { "at the deadline" };
        let waiting = match self.waiting {
            1 => "1 message waits".to_owned(),
            many => format!("{many} messages wait"),
        };
        let in_flight = match (self.waiting, self.in_flight) {
            (1, 1) => "it was in flight".to_owned(),
            (_, 1) => "1 of them was in flight".to_owned(),
            (_, many) => format!("{many} of them were in flight"),
        };
        let sends = if self.unanswered == 1 { "send" } else { "sends" };
        let (took, unanswered) = (self.took.as_millis(), self.unanswered);
        write!(
            f,
            "shut down {how} after {took} ms: {waiting} in the outbox, {in_flight}; {unanswered} {sends} unanswered{}",
            if self.stopped {
                ""
            } else {
                "; it still waits for its disk, and holds the directory until that answers"
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_in_words_that_agree() {
        let text = |waiting, in_flight, unanswered| {
            let took = Duration::from_millis(12);
            DrainReport { waiting, in_flight, unanswered, took, clean: true, stopped: true }.to_string()
        };
        let begins = "shut down cleanly after 12 ms: ";
        for (counts, said) in [
            ((0, 0, 0), "0 messages wait in the outbox, 0 of them were in flight; 0 sends unanswered"),
            ((1, 0, 1), "1 message waits in the outbox, 0 of them were in flight; 1 send unanswered"),
            ((1, 1, 0), "1 message waits in the outbox, it was in flight; 0 sends unanswered"),
            ((2, 1, 2), "2 messages wait in the outbox, 1 of them was in flight; 2 sends unanswered"),
        ] {
            assert_eq!(text(counts.0, counts.1, counts.2), format!("{begins}{said}"));
        }
    }
}
