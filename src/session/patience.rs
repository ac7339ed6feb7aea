//! What is waited for and does not come: answers to requests, and a consumer that takes something.

use super::io::Event;
use super::session::Session;

impl Session {
    pub(super) fn watch_requests(&mut self) {
        let now = self.now;
        let late: Vec<_> =
            self.requests.iter().filter(|(_, at)| **at <= now).map(|(place, _)| *place).collect();
        for place in late {
            self.requests.remove(&place);
            self.event(Event::ReplyTimedOut(place));
        }
    }

    /// A consumer that takes nothing is slowed, then parked.
    pub(super) fn watch_consumer(&mut self) {
        self.watch_stalls();
        if let Some(oldest) = self.out.oldest()
            && self.now >= oldest.after(self.config.park_after)
        {
            self.out.park_older(oldest);
        }
    }

    fn watch_stalls(&mut self) {
        let Some(since) = self.out.waiting_since().filter(|_| self.connection().is_some()) else { return };
        if !self.stalled && self.now >= since.after(self.config.stall_after) {
            self.stalled = true;
            self.quality.stalled(true);
            self.out.set_slowed(true);
        }
        if !self.parked && self.now >= since.after(self.config.park_after) {
            self.parked = true;
            self.out.park(self.config.busy);
            self.event(Event::Parked(true));
        }
    }
}
