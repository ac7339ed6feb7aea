//! Event names: what a message is about.

use core::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest event name, in bytes.
pub const MAX_EVENT_BYTES: usize = 128;

/// A dotted, lower-case name such as `chat.message` or `call.ring`.
///
/// One to 128 bytes; segments of `a`–`z`, `0`–`9`, `_` and `-`, joined by single dots, each starting with a letter.
///
/// ```
/// use lastmile::EventName;
/// assert!(EventName::new("chat.message").is_ok());
/// assert!(EventName::new("Chat Message").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventName(Arc<str>);

/// Text that is no event name. Nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no event name ({reason}): write dotted lower-case segments such as chat.message")]
pub struct InvalidEventName {
    name: String,
    reason: &'static str,
}

impl EventName {
    /// The name with this text.
    ///
    /// # Errors
    /// [`InvalidEventName`], which says what is wrong.
    pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidEventName> {
        let name = name.as_ref();
        match flaw(name) {
            None => Ok(Self(name.into())),
            Some(reason) => {
                Err(InvalidEventName { name: name.chars().take(MAX_EVENT_BYTES).collect(), reason })
            }
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is this one, or below it: `call.ring` is below `call`.
    ///
    /// ```
    /// use lastmile::EventName;
    /// let [call, ring, caller] = ["call", "call.ring", "caller"].map(|name| EventName::new(name).unwrap());
    /// assert!(ring.is_within(&call) && call.is_within(&call));
    /// assert!(!call.is_within(&ring) && !caller.is_within(&call));
    /// ```
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.strip_prefix(&*other.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// It, and each name that it is within.
    #[cfg(feature = "runtime")]
    pub(crate) fn and_above(&self) -> impl Iterator<Item = Self> + '_ {
        let dots = self.0.match_indices('.').map(|(at, _)| at).chain([self.0.len()]);
        dots.filter_map(|end| self.0.get(..end)).map(|name| Self(name.into()))
    }
}

fn flaw(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > MAX_EVENT_BYTES {
        return Some("it is longer than 128 bytes");
    }
    name.split('.').find_map(segment_flaw)
}

fn segment_flaw(segment: &str) -> Option<&'static str> {
    let Some(first) = segment.bytes().next() else {
        return Some("a segment is empty");
    };
    if !first.is_ascii_lowercase() {
        return Some("a segment does not start with a lower-case letter");
    }
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    (!segment.bytes().all(fits)).then_some("a character is not one of a-z, 0-9, _ and -")
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventName({})", self.0)
    }
}

impl TryFrom<&str> for EventName {
    type Error = InvalidEventName;
    fn try_from(name: &str) -> Result<Self, InvalidEventName> {
        Self::new(name)
    }
}

impl TryFrom<String> for EventName {
    type Error = InvalidEventName;
    fn try_from(name: String) -> Result<Self, InvalidEventName> {
        Self::new(name)
    }
}

impl TryFrom<&EventName> for EventName {
    type Error = InvalidEventName;
    fn try_from(name: &EventName) -> Result<Self, InvalidEventName> {
        Ok(name.clone())
    }
}

impl Serialize for EventName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for EventName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl serde::de::Visitor<'_> for Name {
            type Value = EventName;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event name")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<EventName, E> {
                EventName::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_names_are_taken() {
        for name in ["a", "chat.message", "call.ring", "a1.b-c.d_e", &"a".repeat(128)] {
            assert_eq!(EventName::new(name).map(|n| n.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn malformed_names_are_refused_with_a_reason() {
        for name in ["", ".", "a.", ".a", "a..b", "A", "a.B", "1a", "a b", "ä", "a.\u{0}", &"a".repeat(129)]
        {
            assert!(EventName::new(name).is_err(), "{name:?}");
        }
    }
}
