//! Identities: who a message is for, where it goes, and which message it is.

use core::fmt;
use core::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest [`UserId`], [`DeviceId`] and [`OrderingKey`], in bytes.
pub const MAX_ID_BYTES: usize = 255;

/// Bytes that are no id. Nothing was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} has {len} bytes; it takes 1 to {MAX_ID_BYTES}: choose a shorter one, or hash it")]
pub struct InvalidId {
    kind: &'static str,
    len: usize,
}

macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<[u8]>);

        impl $name {
            /// An id of these bytes.
            ///
            /// # Errors
            /// [`InvalidId`] when there are none, or more than 255.
            pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, InvalidId> {
                let bytes = bytes.as_ref();
                if bytes.is_empty() || bytes.len() > MAX_ID_BYTES {
                    return Err(InvalidId { kind: $kind, len: bytes.len() });
                }
                Ok(Self(bytes.into()))
            }

            /// The bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl TryFrom<&str> for $name {
            type Error = InvalidId;
            fn try_from(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidId;
            fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
                Self::new(bytes)
            }
        }

        impl From<&$name> for $name {
            fn from(id: &$name) -> Self {
                id.clone()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.escape_ascii())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let bytes = deserializer.deserialize_bytes(BytesVisitor)?;
                Self::new(bytes).map_err(serde::de::Error::custom)
            }
        }
    };
}

opaque_id!(
    /// A person (or a service) that messages are for or from: 1–255 opaque bytes.
    ///
    /// ```
    /// use lastmile::UserId;
    /// let alice = UserId::new("alice")?;
    /// assert_eq!(alice.to_string(), "alice");
    /// assert!(UserId::new("").is_err());
    /// # Ok::<(), lastmile::InvalidId>(())
    /// ```
    UserId,
    "user id"
);

opaque_id!(
    /// One of a person's devices: 1–255 opaque bytes.
    DeviceId,
    "device id"
);

opaque_id!(
    /// Messages of one user, priority and ordering key are delivered first in, first out: 1–255 opaque bytes,
    /// typically a conversation.
    OrderingKey,
    "ordering key"
);

opaque_id!(
    /// Of a user's waiting messages with the same collapse key, only the newest stays: 1–255 bytes, typically what the
    /// message is the state of.
    CollapseKey,
    "collapse key"
);

/// Takes bytes whether the codec lends them or hands them over; the length was checked by the codec's limit.
struct BytesVisitor;

impl serde::de::Visitor<'_> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_ID_BYTES} bytes")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        if bytes.len() > MAX_ID_BYTES {
            return Err(E::invalid_length(bytes.len(), &self));
        }
        Ok(bytes.to_vec())
    }
}

/// A message's identity: 128 bits, fixed when the message is made.
///
/// New ids are UUIDv7. Any other 128-bit id is accepted, so a client can send the id it already has. Ids identify;
/// they say nothing about order.
///
/// ```
/// use lastmile::MessageId;
/// let id: MessageId = "0192f3a0-7c1e-7000-8000-000000000001".parse()?;
/// assert_eq!(id.to_string(), "0192f3a0-7c1e-7000-8000-000000000001");
/// # Ok::<(), lastmile::InvalidMessageId>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MessageId(u128);

/// Text that is no message id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message id: write 32 hexadecimal digits, with or without the hyphens of a UUID")]
pub struct InvalidMessageId;

impl MessageId {
    /// A new UUIDv7 id, unique without coordination.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::now_v7().as_u128())
    }

    /// The id with this value.
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

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_u128(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

impl FromStr for MessageId {
    type Err = InvalidMessageId;

    fn from_str(text: &str) -> Result<Self, InvalidMessageId> {
        uuid::Uuid::try_parse(text).map(|uuid| Self(uuid.as_u128())).map_err(|_| InvalidMessageId)
    }
}

/// The identity of one engine's log. A new one is drawn when an engine's directory is made (or had to be
/// quarantined), so that places in two different logs are never taken for one another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId(u128);

impl StreamId {
    /// The stream with this value.
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

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({:032x})", self.0)
    }
}

/// The number of a key that payloads and headers are sealed with. It is stored beside what the key seals and is no
/// secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(pub u32);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_take_1_to_255_bytes_of_any_value() {
        assert!(UserId::new([]).is_err());
        assert!(UserId::new([0]).is_ok());
        assert!(UserId::new([0xff; 255]).is_ok());
        let error = UserId::new([b'x'; 256]).unwrap_err();
        assert_eq!(error, InvalidId { kind: "user id", len: 256 });
    }

    #[test]
    fn message_id_text_round_trips_and_garbage_is_refused() {
        let id = MessageId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("".parse::<MessageId>(), Err(InvalidMessageId));
        assert_eq!("zz".repeat(16).parse::<MessageId>(), Err(InvalidMessageId));
    }

    #[test]
    fn random_ids_are_uuid_v7() {
        let id = MessageId::random();
        assert_eq!((id.as_u128() >> 76) & 0xf, 7);
    }
}
