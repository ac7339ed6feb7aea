//! When new credentials are asked for, and how often those of a peer are looked at.
//!
//! Both ends are patient. A connector asks its host once a quarter of the lifetime is left (or [`SessionConfig::renew_before`],
//! if that is less), so that a token that is short-lived, or that a host hands out again shortly before it expires, is not
//! renewed as fast as frames go to and fro. An acceptor asks its authenticator one question at a time, and no more than one a
//! second, whatever its peer sends.
//!
//! [`SessionConfig::renew_before`]: super::SessionConfig::renew_before

use core::time::Duration;

use super::frame::Credentials;
use crate::time::Timestamp;

/// The shortest time between two questions, of a host for credentials and of an authenticator about them.
const APART: Duration = Duration::from_secs(1);
/// The longest time between two questions to a host that has no new credentials.
const MAX_APART: Duration = Duration::from_secs(60);

/// When a session's credentials expire, and when a connector asks for others.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Expiry {
    at: Option<Timestamp>,
    /// When to ask next; none while the acceptor has an answer to give.
    ask_at: Option<Timestamp>,
    /// How often the host was asked since the expiry was set.
    asked: u32,
}

impl Expiry {
    /// They are good until then.
    pub(super) fn new(now: Timestamp, at: Option<Timestamp>, before: Duration) -> Self {
        let ask_at = at.map(|at| {
            let lifetime = at.since(now);
            let lead = before.min(lifetime / 4);
            now.after(lifetime.saturating_sub(lead).max(APART))
        });
        Self { at, ask_at, asked: 0 }
    }

    /// When they expire.
    pub(super) const fn at(&self) -> Option<Timestamp> {
        self.at
    }

    /// When the host is to be asked, for [`Expiry::take_due`].
    pub(super) fn ask_at(&self) -> Option<Timestamp> {
        self.ask_at.filter(|ask_at| self.at.is_some_and(|at| *ask_at < at))
    }

    /// Whether the host is to be asked now. It is asked again later, unless it answers.
    pub(super) fn take_due(&mut self, now: Timestamp) -> bool {
        if self.ask_at().is_none_or(|at| at > now) {
            return false;
        }
        let apart = APART.saturating_mul(1_u32.checked_shl(self.asked).unwrap_or(u32::MAX));
        self.ask_at = Some(now.after(apart.min(MAX_APART)));
        self.asked = self.asked.saturating_add(1);
        true
    }

    /// New credentials are on their way to the acceptor, which answers, or ends the connection.
    pub(super) const fn offered(&mut self) {
        self.ask_at = None;
    }
}

/// New credentials that came over an acceptor's connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Renewals {
    asking: bool,
    /// Those that came last and were not looked at.
    newest: Option<Credentials>,
    /// The authenticator has a rest until then.
    not_before: Timestamp,
}

impl Renewals {
    /// These came. Those that came before and were not looked at yet say nothing any more.
    pub(super) fn heard(&mut self, credentials: Credentials) {
        self.newest = Some(credentials);
    }

    /// The authenticator has answered.
    pub(super) const fn answered(&mut self) {
        self.asking = false;
    }

    /// When the authenticator is to be asked next, for [`Renewals::take_due`].
    pub(super) fn ask_at(&self) -> Option<Timestamp> {
        self.newest.as_ref().filter(|_| !self.asking).map(|_| self.not_before)
    }

    /// What the authenticator is to be asked about now.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Option<Credentials> {
        self.ask_at().filter(|at| *at <= now)?;
        self.asking = true;
        self.not_before = now.after(APART);
        self.newest.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Duration = Duration::from_secs(60);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + millis)
    }

    #[test]
    fn a_host_is_asked_when_a_quarter_is_left_but_not_more_than_a_minute_and_never_within_a_second() {
        for (lifetime, asked) in [
            (3_600_000, Some(3_540_000)),
            (240_000, Some(180_000)),
            (60_000, Some(45_000)),
            (1200, Some(1000)),
            (900, None),
        ] {
            let expiry = Expiry::new(at(0), Some(at(lifetime)), BEFORE);
            assert_eq!(expiry.ask_at(), asked.map(at), "{lifetime}");
        }
        assert_eq!(Expiry::new(at(0), None, BEFORE).ask_at(), None);
    }

    #[test]
    fn a_host_that_has_nothing_is_asked_again_later_and_later_until_they_expire() {
        let mut expiry = Expiry::new(at(0), Some(at(240_000)), BEFORE);
        let mut asked = Vec::new();
        while let Some(due) = expiry.ask_at() {
            assert!(!expiry.take_due(Timestamp::from_millis(due.as_millis() - 1)));
            assert!(expiry.take_due(due));
            asked.push(due.since(at(0)).as_secs());
        }
        assert_eq!(asked, [180, 181, 183, 187, 195, 211]);
    }

    #[test]
    fn an_authenticator_is_asked_about_the_newest_one_at_a_time_and_once_a_second() {
        let credentials = |n: u32| Credentials(n.to_string().into());
        let mut renewals = Renewals::default();
        renewals.heard(credentials(0));
        assert_eq!(renewals.take_due(at(0)), Some(credentials(0)));
        (1..100).for_each(|n| renewals.heard(credentials(n)));
        assert_eq!((renewals.ask_at(), renewals.take_due(at(5000))), (None, None), "it is thinking");
        renewals.answered();
        assert_eq!(renewals.take_due(at(5000)), Some(credentials(99)));
        renewals.answered();
        renewals.heard(credentials(100));
        assert_eq!((renewals.ask_at(), renewals.take_due(at(5999))), (Some(at(6000)), None));
        assert_eq!(renewals.take_due(at(6000)), Some(credentials(100)));
    }
}
