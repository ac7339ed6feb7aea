//! Why bytes are no frame.

use super::PROTOCOL_VERSION;
use crate::error::InvalidMessage;
use crate::session::code::Code;

/// Why bytes are no frame. Nothing of them may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Longer than the limit. Nothing was read.
    #[error("a frame of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// More elements than allowed. What was read is dropped.
    #[error("{field} has {found} elements, {max} at most")]
    TooMany {
        /// The list.
        field: &'static str,
        /// How many.
        found: u64,
        /// How many may be.
        max: usize,
    },
    /// A hello of versions that this build does not speak. Only the versions were read.
    #[error("versions {oldest} to {newest} of the protocol, this build speaks {PROTOCOL_VERSION}")]
    UnsupportedVersion {
        /// The oldest it speaks.
        oldest: u16,
        /// The newest it speaks.
        newest: u16,
    },
    /// A kind of frame that this build does not know. Nothing was read.
    #[error("no frame is called {0}")]
    UnknownFrame(String),
    /// The codec is not part of this build. Nothing was read.
    #[error("this build was made without the codec json")]
    NoSuchCodec,
    /// A field is missing, cut off, or not what it should be. What was read is dropped.
    #[error("{field} is missing, cut off, or not valid")]
    Field {
        /// The field.
        field: &'static str,
    },
    /// Bytes follow the end. What was read is dropped.
    #[error("{bytes} bytes follow the end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// It is no JSON. What was read is dropped.
    #[error("no JSON object: {0}")]
    Json(String),
    /// A message that could not have been built. What was read is dropped.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
}

impl DecodeError {
    /// What to close the connection with.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. } | Self::TooMany { .. } => Code::FrameTooLarge,
            Self::UnsupportedVersion { .. } => Code::UnsupportedVersion,
            Self::NoSuchCodec => Code::UnsupportedCodec,
            _ => Code::Malformed,
        }
    }
}
