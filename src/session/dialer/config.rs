//! How patient a connector is, and what it does about each error.

use core::time::Duration;

use crate::config::ConfigError;
use crate::session::ladder::LadderConfig;
use crate::session::recovery::Recovery;

/// How soon credentials are asked for anew when the network has changed.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Policies of a [`Dialer`](super::Dialer).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DialerConfig {
    /// The shortest delay before a new attempt. Default: 500 ms.
    pub backoff_floor: Duration,
    /// The longest delay of its own choice. Default: 20 s.
    pub backoff_cap: Duration,
    /// How long a transport may take to connect while nothing is connected and there is another one that has not failed: that
    /// one is then tried at once. So whoever is behind something that swallows the best one is online in less than 5 s.
    /// Default: 2.5 s.
    pub patience: Duration,
    /// How long a transport may take to connect otherwise. Default: 10 s.
    pub dial_timeout: Duration,
    /// How long the host may take to give credentials, which may be a person's at a login screen; then it is asked anew, as what
    /// it waits for may never come. Default: 5 minutes.
    pub ask_timeout: Duration,
    /// When transports are left and tried again.
    pub ladder: LadderConfig,
    /// What is done about each error.
    pub recovery: Recovery,
}

impl Default for DialerConfig {
    fn default() -> Self {
        Self {
            backoff_floor: Duration::from_millis(500),
            backoff_cap: Duration::from_secs(20),
            patience: Duration::from_millis(2500),
            dial_timeout: Duration::from_secs(10),
            ask_timeout: Duration::from_secs(300),
            ladder: LadderConfig::default(),
            recovery: Recovery::default(),
        }
    }
}

impl DialerConfig {
    /// Checks that the limits make sense.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first contradiction and what to change.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.backoff_floor.is_zero() || self.backoff_floor > self.backoff_cap {
            return Err(ConfigError::new("backoff_floor must be above zero and not above backoff_cap"));
        }
        if self.dial_timeout.is_zero() || self.patience.is_zero() {
            return Err(ConfigError::new(
                "dial_timeout and patience must be above zero: no transport could ever be made",
            ));
        }
        if self.ask_timeout.is_zero() {
            return Err(ConfigError::new("ask_timeout must be above zero: nobody could give credentials"));
        }
        if self.ladder.cool_down.is_zero() || self.ladder.stable.is_zero() {
            return Err(ConfigError::new(
                "ladder.cool_down and ladder.stable must be above zero: transports would be changed all the time",
            ));
        }
        Ok(())
    }
}
