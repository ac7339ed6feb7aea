//! Who somebody is by a JSON Web Token.
//!
//! A key is made for one algorithm and is used with no other: what a token says about its algorithm is compared, never
//! obeyed, so neither `none` nor a public key taken for a secret gets anybody in. Audience and issuer are asked for when
//! the authenticator is made, so that a token for another service, signed with the same key, is not taken here.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::crypto::CryptoProvider;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use lastmile::UserId;
use lastmile::ports::{Authenticator, Claim, Denied, Identity};
use lastmile::session::Code;
use serde::{Deserialize, Serialize};

/// The longest token that is looked at, in bytes; credentials of a hello have the same limit.
const MAX_TOKEN: usize = 8 << 10;
/// The most keys at a time.
const MAX_KEYS: usize = 64;
/// The shortest secret for HMAC, in bytes: as long as what SHA-256 puts out (RFC 7518, 3.2).
const MIN_SECRET: usize = 32;
const EXPIRED: &str = "an expired token";

/// An algorithm that tokens are signed with. There is no `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// HMAC with SHA-256: the same secret signs and checks.
    Hs256,
    /// RSA with SHA-256, PKCS #1 v1.5.
    Rs256,
    /// ECDSA over P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

/// A key that tokens are checked with, for one algorithm.
#[derive(Clone)]
pub struct JwtKey {
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Why a key is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwtKeyError {
    /// A secret of fewer than 32 bytes could be guessed from any token.
    #[error("a secret needs at least {MIN_SECRET} bytes")]
    TooShort,
    /// The text is no public key of that kind.
    #[error("not a public key of that kind: {0}")]
    Unreadable(String),
    /// More keys than an authenticator takes.
    #[error("at most {MAX_KEYS} keys at a time")]
    TooMany,
    /// Two keys for the same `kid`, or two without one: one of them would never be used.
    #[error("two keys have the same name")]
    Repeated,
    /// The key could not sign.
    #[error("the token could not be signed: {0}")]
    Signing(String),
}

/// Lets in whoever shows a good token, as its subject.
///
/// A session ends when its token expires, unless the client renews it on the open session with one of the same subject.
///
/// ```
/// use std::time::Duration;
/// use lastmile_web::{JwtAuthenticator, JwtKey};
///
/// # fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let key = JwtKey::hmac(b"32 bytes that nobody can guess, or more")?;
/// let tokens = JwtAuthenticator::new("chat", "https://login.example", [(None, key)])?;
/// // later, when keys are exchanged: first both, then the new one alone
/// let next = JwtKey::hmac(b"another 32 bytes that nobody can guess")?;
/// tokens.set_keys([(Some("2026-12".into()), next)])?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct JwtAuthenticator {
    audience: String,
    issuer: String,
    leeway: Duration,
    keys: Arc<RwLock<Keys>>,
}

/// Keys by the `kid` of tokens; tokens without one take the key without one.
type Keys = HashMap<Option<String>, JwtKey>;

/// What is read of a token.
#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
}

/// What is written into a token.
#[derive(Debug, Serialize)]
struct Issued<'a> {
    sub: &'a str,
    aud: &'a str,
    iss: &'a str,
    iat: u64,
    exp: u64,
}

impl Algorithm {
    const fn of_jsonwebtoken(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

impl JwtKey {
    /// A secret for [`Algorithm::Hs256`].
    ///
    /// # Errors
    /// [`JwtKeyError::TooShort`].
    pub fn hmac(secret: &[u8]) -> Result<Self, JwtKeyError> {
        if secret.len() < MIN_SECRET {
            return Err(JwtKeyError::TooShort);
        }
        let key = DecodingKey::from_secret(secret).map_err(|why| JwtKeyError::Unreadable(why.to_string()))?;
        Ok(Self { algorithm: Algorithm::Hs256, key })
    }

    /// A public key as PEM, for [`Algorithm::Rs256`].
    ///
    /// # Errors
    /// [`JwtKeyError::Unreadable`].
    pub fn rsa_pem(pem: &[u8]) -> Result<Self, JwtKeyError> {
        Self::public(Algorithm::Rs256, DecodingKey::from_rsa_pem(pem))
    }

    /// A public key as PEM, for [`Algorithm::Es256`].
    ///
    /// # Errors
    /// [`JwtKeyError::Unreadable`].
    pub fn ec_pem(pem: &[u8]) -> Result<Self, JwtKeyError> {
        Self::public(Algorithm::Es256, DecodingKey::from_ec_pem(pem))
    }

    /// A public key as PEM, for [`Algorithm::EdDsa`].
    ///
    /// # Errors
    /// [`JwtKeyError::Unreadable`].
    pub fn ed_pem(pem: &[u8]) -> Result<Self, JwtKeyError> {
        Self::public(Algorithm::EdDsa, DecodingKey::from_ed_pem(pem))
    }

    fn public(
        algorithm: Algorithm,
        key: jsonwebtoken::errors::Result<DecodingKey>,
    ) -> Result<Self, JwtKeyError> {
        let key = key.map_err(|why| JwtKeyError::Unreadable(why.to_string()))?;
        Ok(Self { algorithm, key })
    }
}

impl JwtAuthenticator {
    /// Takes tokens for this audience, of this issuer, signed with one of these keys. A token names its key by `kid`; one
    /// without a `kid` is checked with the key that has none.
    ///
    /// # Errors
    /// [`JwtKeyError::TooMany`], [`JwtKeyError::Repeated`].
    pub fn new(
        audience: impl Into<String>,
        issuer: impl Into<String>,
        keys: impl IntoIterator<Item = (Option<String>, JwtKey)>,
    ) -> Result<Self, JwtKeyError> {
        ensure_provider();
        let tokens = Self {
            audience: audience.into(),
            issuer: issuer.into(),
            leeway: Duration::from_secs(30),
            keys: Arc::default(),
        };
        tokens.set_keys(keys)?;
        Ok(tokens)
    }

    /// By how much clocks may differ. 30 s.
    #[must_use]
    pub fn leeway(self, leeway: Duration) -> Self {
        Self { leeway, ..self }
    }

    /// Exchanges the keys, for all clones. Sessions that stand are not asked again before they renew.
    ///
    /// # Errors
    /// [`JwtKeyError::TooMany`], [`JwtKeyError::Repeated`]. The keys are as they were.
    pub fn set_keys(
        &self,
        keys: impl IntoIterator<Item = (Option<String>, JwtKey)>,
    ) -> Result<(), JwtKeyError> {
        let mut taken = Keys::new();
        for (name, key) in keys {
            if taken.len() == MAX_KEYS {
                return Err(JwtKeyError::TooMany);
            }
            if taken.insert(name, key).is_some() {
                return Err(JwtKeyError::Repeated);
            }
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = taken;
        Ok(())
    }

    /// Who shows this token.
    ///
    /// # Errors
    /// [`Denied`], with [`Code::CredentialsNeeded`] if there is no token, [`Code::SessionExpired`] if it was good until its time
    /// was over, and [`Code::CredentialsRefused`] if it is not good.
    pub fn check(&self, token: &[u8]) -> Result<Identity, Denied> {
        if token.is_empty() {
            return Err(Denied { code: Code::CredentialsNeeded, retry_after: None, text: "no token".into() });
        }
        if token.len() > MAX_TOKEN {
            return Err(Denied::refused("a token over the limit"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|why| denied(&why))?;
        let key = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            keys.get(&header.kid).cloned().ok_or_else(|| Denied::refused("a token of an unknown key"))?
        };
        let mut validation = Validation::new(key.algorithm.of_jsonwebtoken());
        validation.set_audience(&[&self.audience]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = self.leeway.as_secs();
        let claims =
            jsonwebtoken::decode::<Claims>(token, &key.key, &validation).map_err(|why| denied(&why))?.claims;
        let user =
            UserId::new(claims.sub).map_err(|_| Denied::refused("a token whose subject is no user"))?;
        let left = claims
            .exp
            .saturating_add(self.leeway.as_secs())
            .saturating_sub(jsonwebtoken::get_current_timestamp());
        // "On or after" that time it is not to be accepted (RFC 7519, 4.1.4).
        if left == 0 {
            return Err(Denied::expired(EXPIRED));
        }
        Ok(Identity::new(user).expires_in(Duration::from_secs(left)))
    }
}

impl Authenticator for JwtAuthenticator {
    async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
        let identity = self.check(&claim.credentials.0)?;
        let other = |user: &Option<UserId>| user.as_ref().is_some_and(|user| *user != identity.user);
        if other(&claim.user) || other(&claim.renews) {
            return Err(Denied::refused("a token of somebody else"));
        }
        Ok(identity)
    }
}

/// Signs tokens with a secret: for a service that lets people in itself, for tests and examples.
#[derive(Clone)]
pub struct JwtIssuer {
    audience: String,
    issuer: String,
    kid: Option<String>,
    key: EncodingKey,
}

impl JwtIssuer {
    /// Signs for this audience, in this issuer's name, by [`Algorithm::Hs256`].
    ///
    /// # Errors
    /// [`JwtKeyError`].
    pub fn hmac(
        audience: impl Into<String>,
        issuer: impl Into<String>,
        kid: Option<String>,
        secret: &[u8],
    ) -> Result<Self, JwtKeyError> {
        ensure_provider();
        if secret.len() < MIN_SECRET {
            return Err(JwtKeyError::TooShort);
        }
        let key = EncodingKey::from_secret(secret).map_err(|why| JwtKeyError::Signing(why.to_string()))?;
        Ok(Self { audience: audience.into(), issuer: issuer.into(), kid, key })
    }

    /// A token that says who its bearer is, for so long; seconds count.
    ///
    /// # Errors
    /// [`JwtKeyError::Signing`].
    pub fn issue(&self, user: &str, expires_in: Duration) -> Result<String, JwtKeyError> {
        let now = jsonwebtoken::get_current_timestamp();
        let exp = now.saturating_add(expires_in.as_secs());
        let claims = Issued { sub: user, aud: &self.audience, iss: &self.issuer, iat: now, exp };
        let header = Header { kid: self.kid.clone(), ..Header::new(jsonwebtoken::Algorithm::HS256) };
        jsonwebtoken::encode(&header, &claims, &self.key).map_err(|why| JwtKeyError::Signing(why.to_string()))
    }
}

/// A host that uses `jsonwebtoken` too may have chosen a provider, and features of other crates may leave none chosen.
fn ensure_provider() {
    if CryptoProvider::try_get_default().is_none() {
        // If somebody else was quicker, there is one now.
        let _installed = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    }
}

/// Says why in words that hold nothing of the token.
fn denied(why: &jsonwebtoken::errors::Error) -> Denied {
    Denied::refused(match why.kind() {
        // Its signature was looked at before its claims.
        ErrorKind::ExpiredSignature => return Denied::expired(EXPIRED),
        ErrorKind::ImmatureSignature => "a token that is not valid yet",
        ErrorKind::InvalidAudience => "a token for another audience",
        ErrorKind::InvalidIssuer => "a token of another issuer",
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => "a token signed in another way",
        ErrorKind::InvalidSignature => "a token with a wrong signature",
        ErrorKind::MissingRequiredClaim(_) => "a token that misses a claim",
        _ => "no token",
    })
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwtKey({:?})", self.algorithm)
    }
}

impl fmt::Debug for JwtAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtAuthenticator")
            .field("audience", &self.audience)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for JwtIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtIssuer")
            .field("audience", &self.audience)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
