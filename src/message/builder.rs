//! How a message is put together.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;

use super::{After, Durability, Message, Otherwise, Parts, Priority};
use crate::error::{InvalidMessage, MessageFlaw};
use crate::event::EventName;
use crate::id::{CollapseKey, MessageId, OrderingKey, UserId};
use crate::time::Timestamp;

/// A message that is being put together. Cloning it keeps the id.
#[derive(Clone)]
pub struct MessageBuilder {
    parts: Result<Parts, MessageFlaw>,
}

impl MessageBuilder {
    pub(super) fn new<U, E>(recipient: U, event: E, payload: Bytes) -> Self
    where
        U: TryInto<UserId>,
        U::Error: Into<MessageFlaw>,
        E: TryInto<EventName>,
        E::Error: Into<MessageFlaw>,
    {
        let parse = || {
            Ok(Parts {
                id: MessageId::random(),
                recipient: recipient.try_into().map_err(Into::into)?,
                event: event.try_into().map_err(Into::into)?,
                sender: None,
                ordering_key: None,
                priority: Priority::default(),
                durability: Durability::default(),
                ttl_ms: None,
                not_before: None,
                collapse_key: None,
                version: None,
                after: None,
                devices: None,
                traceparent: None,
                headers: None,
                payload,
            })
        };
        Self { parts: parse() }
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Parts) -> Result<(), MessageFlaw>) -> Self {
        self.parts = self.parts.and_then(|mut parts| change(&mut parts).map(|()| parts));
        self
    }

    /// Replaces the id, for a host whose messages have one already.
    #[must_use]
    pub fn id(self, id: MessageId) -> Self {
        self.with(|parts| {
            parts.id = id;
            Ok(())
        })
    }

    /// Says who sent it. The host must have authenticated them: repeats are recognised per sender.
    ///
    /// Messages without a sender are all of one: their ids share one window of
    /// [`Config::dedup_ids`](crate::Config::dedup_ids), and at ten thousand messages a second the oldest is forgotten after
    /// ten seconds. Name a sender, be it the service that sends, wherever messages are sent again.
    #[must_use]
    pub fn sender<U>(self, sender: U) -> Self
    where
        U: TryInto<UserId>,
        U::Error: Into<MessageFlaw>,
    {
        self.with(|parts| {
            parts.sender = Some(sender.try_into().map_err(Into::into)?);
            Ok(())
        })
    }

    /// Keeps order among messages of this key only, instead of the whole lane.
    #[must_use]
    pub fn ordering_key<K>(self, key: K) -> Self
    where
        K: TryInto<OrderingKey>,
        K::Error: Into<MessageFlaw>,
    {
        self.with(|parts| {
            parts.ordering_key = Some(key.try_into().map_err(Into::into)?);
            Ok(())
        })
    }

    /// Sets the urgency; [`Priority::Normal`] unless set.
    #[must_use]
    pub fn priority(self, priority: Priority) -> Self {
        self.with(|parts| {
            parts.priority = priority;
            Ok(())
        })
    }

    /// Sets what an `Ok` means; [`Durability::Synced`] unless set.
    #[must_use]
    pub fn durability(self, durability: Durability) -> Self {
        self.with(|parts| {
            parts.durability = durability;
            Ok(())
        })
    }

    /// Lets the message expire this long after its acceptance, also while it is in flight. Rounded up to whole
    /// milliseconds.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        self.with(|parts| {
            let millis = ttl.as_nanos().div_ceil(1_000_000);
            parts.ttl_ms = Some(u64::try_from(millis).unwrap_or(u64::MAX));
            Ok(())
        })
    }

    /// Keeps the message back until this time, by the engine's clock (a time that is over is now). Then it takes its
    /// place behind what waits already, and its TTL begins. A repeat with another time is a repeat: the first time stands.
    ///
    /// ```
    /// # use core::time::Duration;
    /// # use std::time::SystemTime;
    /// # use lastmile::Message;
    /// let tomorrow = SystemTime::now() + Duration::from_secs(24 * 3600);
    /// let reminder = Message::to("alice", "calendar.reminder", "dentist").not_before(tomorrow).build()?;
    /// # Ok::<(), lastmile::InvalidMessage>(())
    /// ```
    #[must_use]
    pub fn not_before(self, at: impl Into<Timestamp>) -> Self {
        self.with(|parts| {
            parts.not_before = Some(at.into());
            Ok(())
        })
    }

    /// Lets the message take the place of the one with the same collapse key that waits for the recipient, if one does,
    /// whatever its priority: of several, only the newest is delivered. The other one ends as
    /// [`Replaced`](crate::EndReason::Replaced), in the same commit. A volatile message takes the place of a volatile one of
    /// its priority.
    ///
    /// ```
    /// # use lastmile::Message;
    /// let position = Message::to("alice", "courier.position", "52.5,13.4").collapse_key("order/7").version(41).build()?;
    /// # Ok::<(), lastmile::InvalidMessage>(())
    /// ```
    #[must_use]
    pub fn collapse_key<K>(self, key: K) -> Self
    where
        K: TryInto<CollapseKey>,
        K::Error: Into<MessageFlaw>,
    {
        self.with(|parts| {
            parts.collapse_key = Some(key.try_into().map_err(Into::into)?);
            Ok(())
        })
    }

    /// Says which version it is of what the collapse key stands for. One that is older than the newest that was accepted
    /// is refused as outdated, also when that one has been delivered. A volatile one is judged by the newest version of either
    /// kind; that of a volatile message is known while somebody is attached, and counts for volatile ones only.
    #[must_use]
    pub fn version(self, version: u64) -> Self {
        self.with(|parts| {
            parts.version = Some(version);
            Ok(())
        })
    }

    /// Keeps the message back until another one of the same sender to the same recipient has ended: its parent, which must
    /// have been accepted before. When the parent has been delivered, this one takes its place behind what waits already;
    /// if it ends otherwise, `otherwise` says what becomes of this one. Its TTL goes on all the while.
    ///
    /// It cannot have a collapse key. A repeat that waits for something else is a repeat: what the first one waits for stands.
    ///
    /// ```
    /// # use lastmile::{Message, Otherwise};
    /// let photo = Message::to("alice", "chat.photo", vec![1, 2, 3]).sender("bob").build()?;
    /// let caption = Message::to("alice", "chat.caption", "the lake").sender("bob");
    /// let caption = caption.after(photo.id(), Otherwise::Cancel).build()?;
    /// # Ok::<(), lastmile::InvalidMessage>(())
    /// ```
    #[must_use]
    pub fn after(self, id: MessageId, otherwise: Otherwise) -> Self {
        self.with(|parts| {
            parts.after = Some(After { id, otherwise });
            Ok(())
        })
    }

    /// Adds a header. At most 32, together at most 2 KiB.
    #[must_use]
    pub fn header(self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.with(|parts| {
            Arc::make_mut(parts.headers.get_or_insert_default()).push((name.into(), value.into()));
            Ok(())
        })
    }

    /// All headers at once, in place of any that were added.
    #[must_use]
    pub(crate) fn headers(self, headers: Vec<(String, Bytes)>) -> Self {
        self.with(|parts| {
            parts.headers = (!headers.is_empty()).then(|| Arc::new(headers));
            Ok(())
        })
    }

    /// Ties it to a W3C trace: `00-<32 hex>-<16 hex>-<2 hex>`.
    #[must_use]
    pub fn traceparent(self, text: impl Into<String>) -> Self {
        self.with(|parts| {
            parts.traceparent = Some(text.into());
            Ok(())
        })
    }

    /// The message.
    ///
    /// # Errors
    /// [`InvalidMessage`] with the first flaw found. Nothing was stored.
    pub fn build(self) -> Result<Message, InvalidMessage> {
        let parts = self.parts.map_err(InvalidMessage::new)?;
        parts.check().map_err(InvalidMessage::new)?;
        Ok(Message(Arc::new(parts)))
    }
}

impl fmt::Debug for MessageBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageBuilder").field("flaw", &self.parts.as_ref().err()).finish_non_exhaustive()
    }
}
