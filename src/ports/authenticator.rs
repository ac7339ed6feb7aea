//! Who somebody is who says hello.

use core::future::Future;
use core::time::Duration;

use crate::id::{DeviceId, UserId};
use crate::session::Code;
use crate::session::frame::Credentials;

/// What a peer claims in its hello, or when it renews its credentials.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Claim {
    /// Who it says it is, if it does. Credentials decide.
    pub user: Option<UserId>,
    /// Which device it says it is.
    pub device: DeviceId,
    /// What it shows for it.
    pub credentials: Credentials,
    /// Who it is already, when it renews its credentials: they must be the same user's.
    pub renews: Option<UserId>,
}

impl Claim {
    /// A claim of a hello.
    #[must_use]
    pub const fn new(user: Option<UserId>, device: DeviceId, credentials: Credentials) -> Self {
        Self { user, device, credentials, renews: None }
    }

    /// The same by somebody who is known already.
    #[must_use]
    pub fn renewing(self, user: UserId) -> Self {
        Self { renews: Some(user), ..self }
    }
}

/// Who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// Whose outbox it may drain, and in whose name it sends.
    pub user: UserId,
    /// For how long from now that holds; for ever if there is none. A session whose credentials are not renewed in time is
    /// over, and its outbox stays.
    pub expires_in: Option<Duration>,
}

impl Identity {
    /// This user, for ever.
    #[must_use]
    pub const fn new(user: UserId) -> Self {
        Self { user, expires_in: None }
    }

    /// For so long from now.
    #[must_use]
    pub fn expires_in(self, expires_in: Duration) -> Self {
        Self { expires_in: Some(expires_in), ..self }
    }
}

/// Why somebody is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({code})")]
pub struct Denied {
    /// What the peer should do: [`Code::CredentialsRefused`] and [`Code::SessionExpired`] get new ones, [`Code::Forbidden`] gives
    /// up, [`Code::Overloaded`] comes back later. Refused ones, and whoever is forbidden to come, cost their address a penalty
    /// (see [`Admission`](crate::session::Admission)).
    pub code: Code,
    /// When to come back, if that makes sense.
    pub retry_after: Option<Duration>,
    /// What happened, for the log on this side; the peer hears the code and nothing else.
    pub text: String,
}

impl Denied {
    /// The credentials are not good.
    #[must_use]
    pub fn refused(text: impl core::fmt::Display) -> Self {
        Self { code: Code::CredentialsRefused, retry_after: None, text: text.to_string() }
    }

    /// The credentials were good, and their time is over: the peer gets new ones. A laptop that wakes up has such, so it costs
    /// its address nothing; say it only of what nobody can have guessed, as of a token whose signature was checked.
    #[must_use]
    pub fn expired(text: impl core::fmt::Display) -> Self {
        Self { code: Code::SessionExpired, retry_after: None, text: text.to_string() }
    }
}

/// Decides who somebody is. The host's: tokens, sessions, certificates, a question to another service.
///
/// ```
/// use lastmile::UserId;
/// use lastmile::ports::{Authenticator, Claim, Denied, Identity};
///
/// /// For a network where everybody is trusted.
/// struct ByName;
///
/// impl Authenticator for ByName {
///     async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
///         claim.user.map(Identity::new).ok_or_else(|| Denied::refused("no name"))
///     }
/// }
/// ```
pub trait Authenticator: Send + Sync + 'static {
    /// Says who it is.
    ///
    /// # To ensure correctness
    /// The user comes from the credentials, or is checked against them: whoever is believed here gets that user's messages.
    ///
    /// # Errors
    /// [`Denied`]. The connection is refused; nothing else changes.
    ///
    /// # Cancel safety
    /// The future is dropped when the connection is lost, or when the time for a handshake is over.
    fn authenticate(&self, claim: Claim) -> impl Future<Output = Result<Identity, Denied>> + Send;
}
