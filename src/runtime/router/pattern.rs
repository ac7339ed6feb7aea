//! Which events a handler is for, and the table of handlers.

use core::fmt;
use std::sync::Arc;

use hashbrown::HashMap;

use super::AnyHandler;
use crate::event::{EventName, InvalidEventName};

/// Which events a handler is for: `chat.message` for one, `chat.*` or `chat.` for all below `chat` (not `chat` itself),
/// `*` for all. The most specific one wins: the exact name, then the longest prefix, then `*`.
///
/// ```
/// use lastmile::Pattern;
/// assert_eq!(Pattern::try_from("chat."), Pattern::try_from("chat.*"));
/// assert!(Pattern::try_from("chat.*.message").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Exactly(EventName),
    Below(EventName),
    Any,
}

impl Pattern {
    /// Whether it is about this event.
    ///
    /// ```
    /// # use lastmile::{EventName, Pattern};
    /// let below = Pattern::try_from("chat.*")?;
    /// assert!(below.matches(&EventName::new("chat.room.message")?) && !below.matches(&EventName::new("chat")?));
    /// # Ok::<(), lastmile::InvalidEventName>(())
    /// ```
    #[must_use]
    pub fn matches(&self, event: &EventName) -> bool {
        match &self.0 {
            Kind::Exactly(name) => event == name,
            Kind::Below(name) => event != name && event.is_within(name),
            Kind::Any => true,
        }
    }
}

impl TryFrom<&str> for Pattern {
    type Error = InvalidEventName;
    fn try_from(text: &str) -> Result<Self, InvalidEventName> {
        if text == "*" {
            return Ok(Self(Kind::Any));
        }
        let below = text.strip_suffix(".*").or_else(|| text.strip_suffix('.'));
        Ok(Self(match below {
            Some(name) => Kind::Below(EventName::new(name)?),
            None => Kind::Exactly(EventName::new(text)?),
        }))
    }
}

impl TryFrom<String> for Pattern {
    type Error = InvalidEventName;
    fn try_from(text: String) -> Result<Self, InvalidEventName> {
        Self::try_from(text.as_str())
    }
}

impl From<EventName> for Pattern {
    fn from(name: EventName) -> Self {
        Self(Kind::Exactly(name))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Exactly(name) => write!(f, "{name}"),
            Kind::Below(name) => write!(f, "{name}.*"),
            Kind::Any => f.write_str("*"),
        }
    }
}

/// The handlers, by pattern.
#[derive(Default)]
pub(super) struct Table {
    exact: HashMap<Box<str>, Arc<dyn AnyHandler>>,
    below: HashMap<Box<str>, Arc<dyn AnyHandler>>,
    any: Option<Arc<dyn AnyHandler>>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.exact.len() + self.below.len() + usize::from(self.any.is_some())
    }

    pub(super) fn has(&self, pattern: &Pattern) -> bool {
        match &pattern.0 {
            Kind::Exactly(name) => self.exact.contains_key(name.as_str()),
            Kind::Below(name) => self.below.contains_key(name.as_str()),
            Kind::Any => self.any.is_some(),
        }
    }

    pub(super) fn insert(&mut self, pattern: &Pattern, handler: Arc<dyn AnyHandler>) {
        match &pattern.0 {
            Kind::Exactly(name) => drop(self.exact.insert(name.as_str().into(), handler)),
            Kind::Below(name) => drop(self.below.insert(name.as_str().into(), handler)),
            Kind::Any => self.any = Some(handler),
        }
    }

    /// Takes a handler out; the caller drops it when the table is not locked.
    pub(super) fn remove(&mut self, pattern: &Pattern) -> Option<Arc<dyn AnyHandler>> {
        match &pattern.0 {
            Kind::Exactly(name) => self.exact.remove(name.as_str()),
            Kind::Below(name) => self.below.remove(name.as_str()),
            Kind::Any => self.any.take(),
        }
    }

    /// The most specific handler for an event. Costs a look-up for each of the name's segments.
    pub(super) fn find(&self, event: &EventName) -> Option<Arc<dyn AnyHandler>> {
        let name = event.as_str();
        if let Some(handler) = self.exact.get(name) {
            return Some(handler.clone());
        }
        let mut prefix = name;
        while !self.below.is_empty()
            && let Some((shorter, _)) = prefix.rsplit_once('.')
        {
            if let Some(handler) = self.below.get(shorter) {
                return Some(handler.clone());
            }
            prefix = shorter;
        }
        self.any.clone()
    }
}
