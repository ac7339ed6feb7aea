//! The message: what a host hands to the engine.

#[cfg(feature = "runtime")]
mod address;
mod after;
mod builder;
mod devices;
mod priority;
mod request;
mod variant;

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::MessageFlaw;
use crate::event::EventName;
use crate::id::{CollapseKey, MessageId, OrderingKey, UserId};
use crate::record::LaneId;
use crate::time::Timestamp;

/// The largest payload any engine takes, in bytes. The configured limit (256 KiB unless changed) may be lower.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;
/// The most headers a message may carry.
pub const MAX_HEADERS: usize = 32;
/// The most bytes that all header names and values of a message may take together.
pub const MAX_HEADER_BYTES: usize = 2048;
/// The length of a W3C `traceparent`.
const TRACEPARENT_BYTES: usize = 55;

pub use after::{After, Otherwise};
pub use builder::MessageBuilder;
pub use devices::DevicePolicy;
pub use priority::Priority;

/// What an `Ok` from `send` means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Durability {
    /// The message survives a crash of the process, of the system and of power. The default.
    #[default]
    Synced,
    /// The message survives a crash of the process; a power cut may take it within the next commit's time. If a sync of the
    /// journal fails, it is in memory alone until the journal has healed: a crash or a shutdown before then takes it.
    Buffered,
    /// The message is kept in memory only, and only for someone who is attached now.
    Volatile,
}

/// A message for one recipient. Cheap to clone; its id was fixed when it was made.
///
/// `Debug` shows no payload and no header values.
///
/// ```
/// use lastmile::{Message, Priority};
/// let message = Message::to("alice", "chat.message", "hello").priority(Priority::High).sender("bob").build()?;
/// assert_eq!(message.payload().as_ref(), b"hello");
/// # Ok::<(), lastmile::InvalidMessage>(())
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message(Arc<Parts>);

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Parts {
    id: MessageId,
    recipient: UserId,
    event: EventName,
    sender: Option<UserId>,
    ordering_key: Option<OrderingKey>,
    priority: Priority,
    durability: Durability,
    ttl_ms: Option<u64>,
    not_before: Option<Timestamp>,
    collapse_key: Option<CollapseKey>,
    version: Option<u64>,
    after: Option<After>,
    devices: Option<DevicePolicy>,
    traceparent: Option<String>,
    /// Shared, as the payload is, by what is sent to many.
    headers: Option<Arc<Vec<(String, Bytes)>>>,
    payload: Bytes,
}

impl Message {
    /// Starts a message. Its id exists from here on, so the same builder, built and sent twice, is accepted once.
    ///
    /// Whatever is wrong with the arguments is reported by [`MessageBuilder::build`].
    pub fn to<U, E>(recipient: U, event: E, payload: impl Into<Bytes>) -> MessageBuilder
    where
        U: TryInto<UserId>,
        U::Error: Into<MessageFlaw>,
        E: TryInto<EventName>,
        E::Error: Into<MessageFlaw>,
    {
        MessageBuilder::new(recipient, event, payload.into())
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.0.id
    }

    /// Whom it is for.
    #[must_use]
    pub fn recipient(&self) -> &UserId {
        &self.0.recipient
    }

    /// What it is about.
    #[must_use]
    pub fn event(&self) -> &EventName {
        &self.0.event
    }

    /// Who sent it; the host vouches for it. Repeats are recognised per sender.
    #[must_use]
    pub fn sender(&self) -> Option<&UserId> {
        self.0.sender.as_ref()
    }

    /// The key within which order is kept; without one, the order of the whole lane is.
    #[must_use]
    pub fn ordering_key(&self) -> Option<&OrderingKey> {
        self.0.ordering_key.as_ref()
    }

    /// How urgent it is.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.0.priority
    }

    /// What an `Ok` for it means.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.0.durability
    }

    /// How long it is worth delivering, counted from its acceptance; in whole milliseconds.
    #[must_use]
    pub fn ttl(&self) -> Option<Duration> {
        self.0.ttl_ms.map(Duration::from_millis)
    }

    /// When it may be delivered, if that is not at once. Its TTL counts from then.
    #[must_use]
    pub fn not_before(&self) -> Option<Timestamp> {
        self.0.not_before
    }

    /// What it is the newest of, if it is to take the place of older ones that wait.
    #[must_use]
    pub fn collapse_key(&self) -> Option<&CollapseKey> {
        self.0.collapse_key.as_ref()
    }

    /// Which version of what its collapse key stands for it is.
    #[must_use]
    pub fn version(&self) -> Option<u64> {
        self.0.version
    }

    /// What it waits for, if that is another message.
    #[must_use]
    pub fn after(&self) -> Option<After> {
        self.0.after
    }

    /// Where it waits: in the lane of its priority, unless its time is still to come or it waits for another message.
    #[must_use]
    pub fn lane(&self) -> LaneId {
        match (self.not_before(), self.after()) {
            (None, None) => self.priority().into(),
            _ => LaneId::Scheduled,
        }
    }

    /// The W3C trace context it belongs to.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.0.traceparent.as_deref()
    }

    /// Its headers, in the order they were added.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.headers.iter().flat_map(|all| all.iter()).map(|(name, value)| (name.as_str(), value.as_ref()))
    }

    /// The value of the first header with this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// Its payload.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// What it counts against quotas and windows: payload, headers and names, in bytes.
    #[must_use]
    pub fn cost(&self) -> u64 {
        (self.0.payload.len()
            + self.0.header_bytes()
            + self.0.event.as_str().len()
            + self.0.recipient.as_bytes().len()) as u64
    }

    /// Checks what a codec cannot: the limits that [`MessageBuilder::build`] holds.
    ///
    /// # Errors
    /// [`MessageFlaw`], for a message that was decoded from damaged or hostile bytes.
    pub fn check(&self) -> Result<(), MessageFlaw> {
        self.0.check()
    }
}

impl Parts {
    fn header_bytes(&self) -> usize {
        self.headers.iter().flat_map(|all| all.iter()).map(|(name, value)| name.len() + value.len()).sum()
    }

    fn check_after(&self, after: After) -> Result<(), MessageFlaw> {
        match () {
            () if after.id == self.id => Err(MessageFlaw::AfterItself),
            () if self.durability == Durability::Volatile => Err(MessageFlaw::VolatileDependent),
            () if self.collapse_key.is_some() => Err(MessageFlaw::CollapsingDependent),
            () => Ok(()),
        }
    }

    fn check(&self) -> Result<(), MessageFlaw> {
        if self.payload.len() > MAX_PAYLOAD_BYTES {
            return Err(MessageFlaw::PayloadTooLarge { bytes: self.payload.len(), max: MAX_PAYLOAD_BYTES });
        }
        let (count, bytes) = (self.headers.as_ref().map_or(0, |all| all.len()), self.header_bytes());
        if count > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
            return Err(MessageFlaw::HeadersTooLarge { count, bytes });
        }
        if self.ttl_ms == Some(0) {
            return Err(MessageFlaw::ZeroTtl);
        }
        if self.durability == Durability::Volatile && self.not_before.is_some() {
            return Err(MessageFlaw::VolatileSchedule);
        }
        if let Some(after) = self.after {
            self.check_after(after)?;
        }
        if self.version.is_some() && self.collapse_key.is_none() {
            return Err(MessageFlaw::VersionOfNothing);
        }
        match &self.traceparent {
            Some(text) if text.len() != TRACEPARENT_BYTES || !text.is_ascii() => {
                Err(MessageFlaw::BadTraceparent)
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.0.id)
            .field("recipient", &self.0.recipient)
            .field("event", &self.0.event)
            .field("priority", &self.0.priority)
            .field("payload_bytes", &self.0.payload.len())
            .finish_non_exhaustive()
    }
}

impl From<core::convert::Infallible> for MessageFlaw {
    fn from(never: core::convert::Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_of_a_builder_keeps_the_id() {
        let builder = Message::to("alice", "chat.message", "hi");
        let (a, b) = (builder.clone().build().unwrap(), builder.build().unwrap());
        assert_eq!(a.id(), b.id());
    }

    #[test]
    fn the_first_flaw_is_reported() {
        let flaw = |builder: MessageBuilder| builder.build().unwrap_err().flaw().clone();
        assert!(matches!(flaw(Message::to("", "Bad Event", "x")), MessageFlaw::Id(_)));
        assert!(matches!(flaw(Message::to("a", "Bad Event", "x")), MessageFlaw::Event(_)));
        assert!(matches!(flaw(Message::to("a", "b", "x").ttl(Duration::ZERO)), MessageFlaw::ZeroTtl));
        assert!(matches!(flaw(Message::to("a", "b", "x").traceparent("00")), MessageFlaw::BadTraceparent));
        assert!(matches!(flaw(Message::to("a", "b", "x").sender("")), MessageFlaw::Id(_)));
    }

    #[test]
    fn limits_hold_at_minus_one_zero_and_plus_one() {
        let payload = |bytes: usize| Message::to("a", "b", vec![0; bytes]).build().is_ok();
        assert!(
            payload(MAX_PAYLOAD_BYTES - 1) && payload(MAX_PAYLOAD_BYTES) && !payload(MAX_PAYLOAD_BYTES + 1)
        );
        let header = |bytes: usize| Message::to("a", "b", "").header("h", vec![0; bytes - 1]).build().is_ok();
        assert!(header(MAX_HEADER_BYTES - 1) && header(MAX_HEADER_BYTES) && !header(MAX_HEADER_BYTES + 1));
        let headers =
            |n: usize| (0..n).fold(Message::to("a", "b", ""), |m, _| m.header("h", "v")).build().is_ok();
        assert!(headers(MAX_HEADERS - 1) && headers(MAX_HEADERS) && !headers(MAX_HEADERS + 1));
    }

    #[test]
    fn a_message_cannot_wait_for_itself_nor_be_volatile_or_collapse_while_it_waits() {
        let flaw = |builder: MessageBuilder| builder.build().unwrap_err().flaw().clone();
        let (id, other) = (MessageId::from_u128(1), MessageId::from_u128(2));
        let dependent = |parent| Message::to("a", "b", "x").id(id).after(parent, Otherwise::Release);
        assert!(dependent(other).build().is_ok());
        assert!(matches!(flaw(dependent(id)), MessageFlaw::AfterItself));
        let volatile = dependent(other).durability(Durability::Volatile);
        assert!(matches!(flaw(volatile), MessageFlaw::VolatileDependent));
        assert!(matches!(flaw(dependent(other).collapse_key("k")), MessageFlaw::CollapsingDependent));
    }

    #[test]
    fn debug_shows_no_body() {
        let message =
            Message::to("alice", "chat.message", "canary").header("token", "canary").build().unwrap();
        assert!(!format!("{message:?}").contains("canary"));
    }

    #[test]
    fn a_ttl_is_rounded_up() {
        let message = Message::to("a", "b", "").ttl(Duration::from_micros(1)).build().unwrap();
        assert_eq!(message.ttl(), Some(Duration::from_millis(1)));
    }
}
