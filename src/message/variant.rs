//! A message that is another one but for something.

use std::sync::Arc;

use super::{Message, Parts, Priority};
use crate::id::{CollapseKey, UserId};

impl Message {
    /// The same message, which may be delivered at once.
    #[must_use]
    pub(crate) fn without_schedule(self) -> Self {
        match self.0.not_before {
            Some(_) => Self(Arc::new(Parts { not_before: None, ..(*self.0).clone() })),
            None => self,
        }
    }

    /// The same message, which waits for no other.
    #[must_use]
    pub(crate) fn without_parent(self) -> Self {
        match self.0.after {
            Some(_) => Self(Arc::new(Parts { after: None, ..(*self.0).clone() })),
            None => self,
        }
    }

    /// The same message with another priority.
    #[must_use]
    pub fn with_priority(&self, priority: Priority) -> Self {
        Self(Arc::new(Parts { priority, ..(*self.0).clone() }))
    }

    /// The same message with this collapse key.
    #[must_use]
    pub(crate) fn with_collapse_key(&self, key: CollapseKey) -> Self {
        Self(Arc::new(Parts { collapse_key: Some(key), ..(*self.0).clone() }))
    }

    /// The same message with the collapse key of another one, and its version.
    #[must_use]
    pub(crate) fn with_collapse_of(&self, other: &Self) -> Self {
        let (collapse_key, version) = (other.0.collapse_key.clone(), other.0.version);
        Self(Arc::new(Parts { collapse_key, version, ..(*self.0).clone() }))
    }

    /// The same message for somebody else. It shares its payload and its headers with this one.
    #[must_use]
    pub fn for_recipient(&self, recipient: UserId) -> Self {
        Self(Arc::new(Parts { recipient, ..(*self.0).clone() }))
    }

    /// Whether it is the other message, for whomever. `false` also for messages that say the same in other memory: what
    /// differs most often is compared first, and no payload is ever read.
    pub(crate) fn is_shared_with(&self, other: &Self) -> bool {
        let (a, b) = (&*self.0, &*other.0);
        (a.payload.as_ptr(), a.payload.len()) == (b.payload.as_ptr(), b.payload.len())
            && a.id == b.id
            && (a.priority, a.durability, a.ttl_ms, a.not_before, a.after)
                == (b.priority, b.durability, b.ttl_ms, b.not_before, b.after)
            && a.event == b.event
            && a.sender == b.sender
            && a.ordering_key == b.ordering_key
            && (&a.collapse_key, a.version, a.devices) == (&b.collapse_key, b.version, b.devices)
            && a.traceparent == b.traceparent
            && a.headers == b.headers
    }
}
