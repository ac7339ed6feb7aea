//! What a connector does about an error: one table, which the host may change.

use core::time::Duration;
use std::collections::BTreeMap;

use super::backoff::Backoff;
use super::code::{Advice, Code};
use crate::config::ConfigError;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Connect again after this delay, and resume if there is a session.
    Reconnect(Duration),
    /// Connect again over the next transport down, after this delay.
    SwitchTransport(Duration),
    /// Wait until the host has new credentials.
    WaitForCredentials,
    /// Stay closed, and tell the host.
    GiveUp,
}

/// What to do about a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// Back off, and no less than the peer asked for.
    BackOff,
    /// Tell the ladder that the transport failed, and back off.
    BlameTransport,
    /// Wait for credentials.
    AwaitCredentials,
    /// Give up.
    GiveUp,
}

/// The table.
///
/// | code | strategy |
/// |---|---|
/// | 4001 heartbeat, 4002 handshake, 4003 transport lost | blame the transport |
/// | other 4000–4199 | back off, obeying `retry_after` |
/// | 4200–4299 | wait for credentials |
/// | 4303 malformed | blame the transport: a proxy may have changed the bytes; give up after three in a row |
/// | other 4300–4399 | give up |
///
/// ```
/// use lastmile::session::{Code, Recovery, Strategy};
/// let mut recovery = Recovery::default();
/// assert_eq!(recovery.strategy(Code::TakenOver), Strategy::GiveUp);
/// recovery.set(Code::TakenOver, Strategy::BackOff)?;
/// assert_eq!(recovery.strategy(Code::TakenOver), Strategy::BackOff);
/// # Ok::<(), lastmile::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    own: BTreeMap<u16, Strategy>,
    malformed: u32,
}

/// Malformed frames in a row after which no other transport is blamed any more.
const MAX_MALFORMED: u32 = 3;

impl Recovery {
    /// Does something else about a code than the table says.
    ///
    /// # Errors
    /// [`ConfigError`] for codes about a message, which end no connection. Nothing was changed.
    pub fn set(&mut self, code: Code, strategy: Strategy) -> Result<(), ConfigError> {
        if code.is_about_a_message() {
            return Err(ConfigError::new(
                "a code about a message ends no connection: there is nothing to recover from",
            ));
        }
        self.own.insert(code.number(), strategy);
        Ok(())
    }

    /// What is done about a code.
    #[must_use]
    pub fn strategy(&self, code: Code) -> Strategy {
        if let Some(strategy) = self.own.get(&code.number()) {
            return *strategy;
        }
        match code {
            Code::HeartbeatTimeout | Code::HandshakeTimeout | Code::TransportLost => Strategy::BlameTransport,
            Code::Malformed if self.malformed < MAX_MALFORMED => Strategy::BlameTransport,
            code => match code.advice() {
                Advice::Resume | Advice::StartAfresh | Advice::ComeBackLater => Strategy::BackOff,
                Advice::RenewCredentials => Strategy::AwaitCredentials,
                Advice::GiveUp | Advice::OfferAgain | Advice::DropMessage => Strategy::GiveUp,
            },
        }
    }

    /// The host says that whatever was wrong with the peer may be mended.
    pub(super) const fn forget(&mut self) {
        self.malformed = 0;
    }

    /// The connection ended: what to do next. The backoff counts a failure.
    pub fn next(&mut self, code: Code, retry_after: Option<Duration>, backoff: &mut Backoff) -> Step {
        self.malformed = if code == Code::Malformed { self.malformed.saturating_add(1) } else { 0 };
        match self.strategy(code) {
            Strategy::BackOff => Step::Reconnect(backoff.next_delay(retry_after)),
            Strategy::BlameTransport => Step::SwitchTransport(backoff.next_delay(retry_after)),
            Strategy::AwaitCredentials => Step::WaitForCredentials,
            Strategy::GiveUp => Step::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_strategy_and_only_terminal_ones_give_up() {
        let recovery = Recovery::default();
        for code in Code::ALL.iter().filter(|code| !code.is_about_a_message() && **code != Code::Malformed) {
            let gives_up = recovery.strategy(*code) == Strategy::GiveUp;
            assert_eq!(gives_up, code.is_terminal(), "{code}");
        }
        assert_eq!(recovery.strategy(Code::Unknown(4299)), Strategy::AwaitCredentials);
    }

    #[test]
    fn a_proxy_that_changes_bytes_is_avoided_and_a_peer_that_sends_garbage_is_given_up() {
        let (mut recovery, floor) = (Recovery::default(), Duration::from_millis(1));
        let mut backoff = Backoff::new(floor, Duration::from_secs(1), 1);
        let mut next = |code| recovery.next(code, None, &mut backoff);
        assert!(matches!(next(Code::Malformed), Step::SwitchTransport(_)));
        assert!(matches!(next(Code::Malformed), Step::SwitchTransport(_)));
        assert_eq!(next(Code::Malformed), Step::GiveUp);
        assert!(matches!(next(Code::Overloaded), Step::Reconnect(_)));
        assert!(matches!(next(Code::Malformed), Step::SwitchTransport(_)));
    }

    #[test]
    fn a_code_about_a_message_has_no_strategy_and_setting_one_is_refused() {
        let mut recovery = Recovery::default();
        assert!(recovery.set(Code::Busy, Strategy::GiveUp).is_err());
        assert!(recovery.set(Code::Unknown(4499), Strategy::GiveUp).is_err());
        assert!(recovery.set(Code::Unknown(4399), Strategy::BackOff).is_ok());
        assert_eq!(recovery.strategy(Code::Unknown(4399)), Strategy::BackOff);
    }

    #[test]
    fn what_the_peer_asked_for_is_obeyed() {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(1), 1);
        let after = Duration::from_secs(30);
        let step = Recovery::default().next(Code::Draining, Some(after), &mut backoff);
        assert!(matches!(step, Step::Reconnect(delay) if delay >= after));
    }
}
