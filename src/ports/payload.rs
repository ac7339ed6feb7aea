//! Payloads as types: what a handler takes, and what it answers.

use bytes::Bytes;

#[cfg(any(feature = "runtime", test))]
use super::handler::Failure;
#[cfg(any(feature = "runtime", test))]
use crate::session::Code;

/// Bytes that are not what the handler takes, or an answer that cannot be encoded. Says nothing of what they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the payload is no {format}: {flaw}")]
pub struct PayloadError {
    format: &'static str,
    flaw: String,
}

impl PayloadError {
    /// Of this format, for this reason. Must not quote the payload: it goes into logs.
    #[must_use]
    pub fn new(format: &'static str, flaw: impl core::fmt::Display) -> Self {
        Self { format, flaw: flaw.to_string() }
    }

    /// The same bytes will fail in the same way: refused for good.
    #[cfg(any(feature = "runtime", test))]
    pub(crate) fn failure(&self) -> Failure {
        Failure::reject(Code::Invalid, self)
    }
}

/// What can be made of a payload. A message whose payload fails is refused for good, as [`Code::Invalid`](crate::session::Code::Invalid); a handler
/// that wants to decide otherwise takes [`Bytes`].
pub trait FromPayload: Sized {
    /// Reads it.
    ///
    /// # To ensure correctness
    /// The bytes come from outside: no panics, and nothing allocated by what they claim.
    ///
    /// # Errors
    /// [`PayloadError`].
    fn from_payload(payload: &Bytes) -> Result<Self, PayloadError>;
}

impl FromPayload for Bytes {
    fn from_payload(payload: &Bytes) -> Result<Self, PayloadError> {
        Ok(payload.clone())
    }
}

impl FromPayload for String {
    fn from_payload(payload: &Bytes) -> Result<Self, PayloadError> {
        core::str::from_utf8(payload).map(str::to_owned).map_err(|error| PayloadError::new("UTF-8", error))
    }
}

/// What can be answered.
pub trait IntoReply {
    /// The bytes of the answer, if there is to be one.
    ///
    /// # Errors
    /// [`PayloadError`]. The message counts as handled, and is acknowledged without an answer.
    fn into_reply(self) -> Result<Option<Bytes>, PayloadError>;
}

impl IntoReply for () {
    fn into_reply(self) -> Result<Option<Bytes>, PayloadError> {
        Ok(None)
    }
}

impl IntoReply for Bytes {
    fn into_reply(self) -> Result<Option<Bytes>, PayloadError> {
        Ok(Some(self))
    }
}

impl IntoReply for String {
    fn into_reply(self) -> Result<Option<Bytes>, PayloadError> {
        Ok(Some(self.into()))
    }
}

impl<R: IntoReply> IntoReply for Option<R> {
    fn into_reply(self) -> Result<Option<Bytes>, PayloadError> {
        self.map_or(Ok(None), R::into_reply)
    }
}

/// A payload, or an answer, as JSON.
#[cfg(feature = "json")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

#[cfg(feature = "json")]
impl<T: serde::de::DeserializeOwned> FromPayload for Json<T> {
    fn from_payload(payload: &Bytes) -> Result<Self, PayloadError> {
        serde_json::from_slice(payload).map(Self).map_err(|error| flaw(&error))
    }
}

#[cfg(feature = "json")]
impl<T: serde::Serialize> IntoReply for Json<T> {
    fn into_reply(self) -> Result<Option<Bytes>, PayloadError> {
        serde_json::to_vec(&self.0).map(|bytes| Some(bytes.into())).map_err(|error| flaw(&error))
    }
}

/// Where and what, without the text of serde_json, which quotes what it found.
#[cfg(feature = "json")]
fn flaw(error: &serde_json::Error) -> PayloadError {
    let what = match error.classify() {
        serde_json::error::Category::Io => "it cannot be written",
        serde_json::error::Category::Syntax => "a syntax error",
        serde_json::error::Category::Data => "not what was expected",
        serde_json::error::Category::Eof => "it ends too early",
    };
    PayloadError::new("JSON", format_args!("{what}, line {}, column {}", error.line(), error.column()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_as_text_and_nothing_else_is() {
        assert_eq!(String::from_payload(&Bytes::from_static("über".as_bytes())), Ok("über".to_owned()));
        let error = String::from_payload(&Bytes::from_static(&[0xFF, b'a'])).unwrap_err();
        assert!(matches!(error.failure(), Failure::Reject { code: Code::Invalid, .. }), "{error}");
    }

    #[cfg(feature = "json")]
    #[test]
    fn what_is_not_the_expected_json_is_refused_without_being_quoted() {
        #[derive(Debug, serde::Deserialize)]
        struct Amount {
            #[expect(dead_code, reason = "only whether it is there matters")]
            cents: u32,
        }
        let deep = "[".repeat(100_000);
        for text in [r#"{"cents": "secret"}"#, r#"{"cents": 1"#, "secret", "", r#"{"secret": 1}"#, &deep] {
            let error = Json::<Amount>::from_payload(&text.to_owned().into()).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(Json::<Amount>::from_payload(&Bytes::from_static(br#"{"cents": 1}"#)).is_ok());
    }

    #[test]
    fn no_answer_is_none() {
        assert_eq!(().into_reply(), Ok(None));
        assert_eq!(None::<String>.into_reply(), Ok(None));
        assert_eq!(Some("yes".to_owned()).into_reply(), Ok(Some("yes".into())));
    }
}
