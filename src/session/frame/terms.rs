//! What ends agree on: codecs, capabilities, windows, and what identifies and authenticates.

use core::fmt;

use bytes::Bytes;

/// A way to write frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Compact: numbers of variable length, payloads as they are.
    Binary,
    /// JSON text, for browsers and eyes.
    #[cfg(feature = "json")]
    Json,
}

/// A set of codecs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Codecs(pub(super) u8);

impl Codecs {
    /// The binary codec.
    pub const BINARY: Self = Self(1);
    /// The JSON codec.
    pub const JSON: Self = Self(2);

    /// What this build knows.
    #[must_use]
    pub const fn known() -> Self {
        if cfg!(feature = "json") { Self(3) } else { Self(1) }
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The better one of these: binary before JSON.
    #[must_use]
    pub const fn best(self) -> Option<Codec> {
        match self.0 {
            set if set & 1 != 0 => Some(Codec::Binary),
            #[cfg(feature = "json")]
            set if set & 2 != 0 => Some(Codec::Json),
            _ => None,
        }
    }
}

/// What an end can do beyond the least: a set of bits. Unknown ones are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Nothing beyond the least.
    pub const NONE: Self = Self(0);
    /// It acknowledges. What is sent to an end that does not is `Unconfirmed`.
    pub const ACKS: Self = Self(1);
    /// It answers requests.
    pub const REPLIES: Self = Self(2);
    /// It takes publishes (acceptors), or sends them (connectors).
    pub const PUBLISH: Self = Self(4);
    /// It takes withdrawals of what it was sent.
    pub const WITHDRAW: Self = Self(8);

    /// The set with these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What is in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `other` is in this.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// How much one end lets the other have in flight towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Messages without an acknowledgement.
    pub messages: u32,
    /// Their bytes, see [`Message::cost`](crate::Message::cost). A single message of any size fits into an empty window.
    pub bytes: u64,
    /// Messages more, if they are critical. Those are not held back by the bytes.
    pub reserve: u32,
}

impl Window {
    /// How many numbers of a span are kept free for gaps.
    pub const GAPS: u64 = 8;

    /// How many numbers there may be from the oldest that is not acknowledged to the newest: four windows, and some for
    /// gaps. It bounds what the receiver must remember about acknowledgements that may have been lost.
    #[must_use]
    pub const fn span(self) -> u64 {
        (self.messages as u64)
            .saturating_add(self.reserve as u64)
            .saturating_mul(4)
            .saturating_add(Self::GAPS)
    }
}

/// What identifies a session at a reconnect. It identifies and does not authenticate: credentials come with each hello.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u128);

impl Token {
    /// The token with this value. Draw it from a generator that cannot be guessed.
    #[must_use]
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// The value.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Credentials, whatever the host takes for some. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials(pub Bytes);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} bytes)", self.0.len())
    }
}
