//! Where a client's credentials come from.

use core::future::Future;

use crate::session::Code;
use crate::session::frame::Credentials;

/// Gives credentials for a connection: a token from a keychain, a login screen, another service.
///
/// [`Credentials`] are a source themselves, of always the same.
///
/// ```
/// use lastmile::ports::CredentialSource;
/// use lastmile::session::{Code, frame::Credentials};
///
/// struct Tokens;
///
/// impl CredentialSource for Tokens {
///     async fn credentials(&self, why: Option<Code>) -> Option<Credentials> {
///         let fresh = why.is_some(); // the last one was refused, or has expired
///         Some(Credentials(if fresh { "a new token" } else { "a token" }.into()))
///     }
/// }
/// ```
pub trait CredentialSource: Send + Sync + 'static {
    /// New credentials, or none if there are none now: then it is asked again after a while. `why` is what the ones before
    /// were refused with, or [`Code::SessionExpired`] if their time is over; none at the start, and when they are about to
    /// expire. While nothing is connected it may take [`DialerConfig::ask_timeout`](crate::session::DialerConfig::ask_timeout).
    ///
    /// # Cancel safety
    /// The future is dropped when the client is closed, and when the question is asked anew: after that time, when the network
    /// has changed, and when the connection has ended while they were asked for ahead of time. A login screen that is open
    /// should stay open, for the next question to find.
    fn credentials(&self, why: Option<Code>) -> impl Future<Output = Option<Credentials>> + Send;
}

impl CredentialSource for Credentials {
    async fn credentials(&self, _why: Option<Code>) -> Option<Credentials> {
        Some(self.clone())
    }
}
