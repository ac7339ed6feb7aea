//! Is the other end still there? One end, the acceptor, owns the question.
//!
//! The owner pings when it has heard nothing, or sent nothing, for an interval; while data flows both ways, once in an interval
//! all the same, as a connection is measured by that. It gives up when an answer takes longer than the timeout, and nothing was
//! heard for interval and timeout. The other end never pings: it gives up when it has heard nothing for interval and timeout. So either end finds a half-open connection within interval + timeout.

use core::time::Duration;

use crate::time::Timestamp;

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Nothing.
    Rest,
    /// Send a ping with this nonce.
    Ping(u64),
    /// Nobody is there: close the connection.
    Dead,
}

/// The heartbeat of one connection.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    owner: bool,
    interval: Duration,
    timeout: Duration,
    heard: Timestamp,
    sent: Timestamp,
    /// When the last ping was sent.
    pinged: Timestamp,
    ping: Option<(u64, Timestamp)>,
    nonce: u64,
}

impl Heartbeat {
    /// A connection that stands since now.
    #[must_use]
    pub const fn new(owner: bool, interval: Duration, timeout: Duration, now: Timestamp) -> Self {
        Self { owner, interval, timeout, heard: now, sent: now, pinged: now, ping: None, nonce: 0 }
    }

    /// A frame came.
    pub const fn heard(&mut self, now: Timestamp) {
        self.heard = now;
    }

    /// A frame went out.
    pub const fn sent(&mut self, now: Timestamp) {
        self.sent = now;
    }

    /// A pong came: how long it took, if it answers the ping that is out.
    pub fn pong(&mut self, nonce: u64, now: Timestamp) -> Option<Duration> {
        let (_, at) = self.ping.take_if(|(sent, _)| *sent == nonce)?;
        Some(now.since(at))
    }

    /// What to do now. After [`Beat::Ping`] the ping counts as sent.
    pub fn poll(&mut self, now: Timestamp) -> Beat {
        if now < self.timeout() {
            return Beat::Rest;
        }
        // Anything that was heard since answers a ping as well as a pong does.
        let answered = self.ping.is_none_or(|(_, at)| self.heard > at);
        if !self.owner || !answered {
            return Beat::Dead;
        }
        self.nonce = self.nonce.saturating_add(1);
        self.ping = Some((self.nonce, now));
        self.pinged = now;
        self.sent = now;
        Beat::Ping(self.nonce)
    }

    /// When to ask again.
    #[must_use]
    pub fn timeout(&self) -> Timestamp {
        match self.ping {
            _ if !self.owner => self.heard.after(self.interval).after(self.timeout),
            // A frame that takes long to come keeps an answer waiting: it has the time that silence has.
            Some((_, at)) if self.heard <= at => at.max(self.heard.after(self.interval)).after(self.timeout),
            // Its pong may yet come, and says more than the next one's.
            Some(_) => self.heard.min(self.sent).after(self.interval),
            None => self.heard.min(self.sent).min(self.pinged).after(self.interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(25);
    const TIMEOUT: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    /// Found by review: a session was given up in the middle of a frame that took longer than an answer may.
    #[test]
    fn a_long_frame_keeps_the_answer_to_a_ping_waiting_as_long_as_silence_lasts_at_most() {
        let mut heart = Heartbeat::new(true, INTERVAL, TIMEOUT, at(0));
        heart.heard(at(20));
        heart.sent(at(20));
        assert_eq!(heart.poll(at(25)), Beat::Ping(1));
        assert_eq!((heart.poll(at(54)), heart.timeout()), (Beat::Rest, at(55)));
        heart.heard(at(54));
        heart.sent(at(54));
        assert_eq!(heart.poll(at(55)), Beat::Rest);
        assert_eq!(heart.pong(1, at(56)), Some(Duration::from_secs(31)), "no other ping was sent in between");
        let mut silent = Heartbeat::new(true, INTERVAL, TIMEOUT, at(0));
        silent.heard(at(20));
        silent.sent(at(20));
        assert_eq!((silent.poll(at(25)), silent.poll(at(55))), (Beat::Ping(1), Beat::Dead));
    }

    #[test]
    fn the_owner_pings_once_in_an_interval_while_data_flows_and_when_it_stops() {
        let mut heart = Heartbeat::new(true, INTERVAL, TIMEOUT, at(0));
        for second in 0..=100 {
            heart.heard(at(second));
            heart.sent(at(second));
            let beat = match second {
                25 | 50 | 75 | 100 => Beat::Ping(second / 25),
                _ => Beat::Rest,
            };
            assert_eq!(heart.poll(at(second)), beat);
            // Found by an audit: a busy session had no round-trip time.
            let took = heart.pong(second / 25, at(second));
            assert_eq!(took.is_some(), beat != Beat::Rest);
        }
        assert_eq!(heart.poll(at(124)), Beat::Rest);
        assert_eq!(heart.poll(at(125)), Beat::Ping(5));
        assert_eq!(heart.pong(6, at(126)), None, "another ping's");
        heart.heard(at(127));
        assert_eq!(heart.pong(5, at(127)), Some(Duration::from_secs(2)));
    }

    #[test]
    fn an_owner_that_only_listens_pings_so_that_the_other_end_hears_something() {
        let mut heart = Heartbeat::new(true, INTERVAL, TIMEOUT, at(0));
        heart.heard(at(24));
        assert_eq!(heart.poll(at(25)), Beat::Ping(1));
    }

    #[test]
    fn both_ends_find_a_half_open_connection_within_interval_and_timeout() {
        let mut owner = Heartbeat::new(true, INTERVAL, TIMEOUT, at(0));
        let mut other = Heartbeat::new(false, INTERVAL, TIMEOUT, at(0));
        assert_eq!(owner.poll(owner.timeout()), Beat::Ping(1));
        assert_eq!(owner.poll(at(34)), Beat::Rest);
        assert_eq!(
            (owner.poll(at(35)), other.poll(at(34)), other.poll(at(35))),
            (Beat::Dead, Beat::Rest, Beat::Dead)
        );
        assert!(owner.timeout() <= at(35) && other.timeout() == at(35));
    }

    #[test]
    fn any_frame_answers_a_ping() {
        let mut heart = Heartbeat::new(true, INTERVAL, TIMEOUT, at(0));
        assert_eq!(heart.poll(at(25)), Beat::Ping(1));
        heart.heard(at(30));
        assert_eq!(heart.poll(at(35)), Beat::Rest);
        assert_eq!(heart.poll(at(50)), Beat::Ping(2));
    }
}
