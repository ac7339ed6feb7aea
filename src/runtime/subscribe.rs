//! Subscriptions to status changes: what somebody wants to hear of.

use core::fmt;
use std::sync::Arc;

use super::engine::Engine;
use super::hub::{About, HearError, Hub, Key, Listener, SubscribeError};
use crate::event::EventName;
use crate::id::{MessageId, OrderingKey, UserId};
use crate::machine::{Change, EntryRef};
use crate::record::ReadMark;

/// What a subscription hears of. Conditions add up: all of them must hold.
///
/// A filter is found by the user that it names, or by the sender, or by the event, in this order, and costs what happens
/// elsewhere nothing. One that names none of them is looked at for every change; there are few of these
/// ([`Config::max_wide_subscriptions`](crate::Config::max_wide_subscriptions)).
///
/// Of what a newer message of its collapse key replaced on disk, and of what was damaged there, neither sender nor event are
/// known, and of late confirmations only as far as the end is remembered. A filter by id, sender or event does not hear what
/// it cannot be sure of.
///
/// ```
/// use lastmile::{EventName, Filter, UserId};
/// let calls = Filter::all().user(UserId::new("alice").unwrap()).event(EventName::new("call").unwrap());
/// # let _ = calls;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    user: Option<UserId>,
    entry: Option<EntryRef>,
    id: Option<MessageId>,
    sender: Option<UserId>,
    event: Option<EventName>,
}

impl Filter {
    /// Every change of every message.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Of messages for this user.
    #[must_use]
    pub fn user(mut self, user: UserId) -> Self {
        self.user = Some(user);
        self
    }

    /// Of one message, by its recipient and its id.
    #[must_use]
    pub fn message(self, user: UserId, id: MessageId) -> Self {
        Self { id: Some(id), ..self }.user(user)
    }

    /// Of one message, by its recipient and its place; the subscription follows it when it is moved.
    #[must_use]
    pub fn entry(self, user: UserId, entry: EntryRef) -> Self {
        Self { entry: Some(entry), ..self }.user(user)
    }

    /// Of messages from this sender.
    #[must_use]
    pub fn sender(mut self, sender: UserId) -> Self {
        self.sender = Some(sender);
        self
    }

    /// Of messages about this event, or one below it: see [`EventName::is_within`].
    #[must_use]
    pub fn event(mut self, event: EventName) -> Self {
        self.event = Some(event);
        self
    }

    fn key(&self) -> Key {
        let Self { user, sender, event, .. } = self.clone();
        let user = user.map(Key::User).or(sender.map(Key::Sender));
        user.or(event.map(Key::Event)).unwrap_or(Key::Wide)
    }

    fn matches(&self, change: &Change) -> bool {
        self.user.as_ref().is_none_or(|user| *user == change.user)
            && self.entry.is_none_or(|entry| entry == change.entry)
            && self.id.is_none_or(|id| change.id == Some(id))
            && self.sender.as_ref().is_none_or(|sender| change.sender.as_ref() == Some(sender))
            && self
                .event
                .as_ref()
                .is_none_or(|prefix| change.event.as_ref().is_some_and(|event| event.is_within(prefix)))
    }

    /// Whether it is about a user, or all, and perhaps a place, and about nothing else.
    fn is_about_user(&self, user: &UserId) -> bool {
        let sure = self.id.is_none() && self.sender.is_none() && self.event.is_none();
        sure && self.user.as_ref().is_none_or(|of| of == user)
    }

    /// Whether it hears of a move: of that only the user and the places are known.
    fn matches_move(&self, user: &UserId, from: EntryRef) -> bool {
        self.is_about_user(user) && self.entry.is_none_or(|entry| entry == from)
    }

    /// Whether it hears of what was read: of that only the reader and the conversation are known.
    fn matches_read(&self, reader: &UserId) -> bool {
        self.is_about_user(reader) && self.entry.is_none()
    }
}

/// What a subscription hears.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Heard {
    /// A message has a new status, and that is durable where it claims to be.
    Changed(Change),
    /// A message waits in another lane from now on. Filters by id, sender or event do not hear of it, but of what
    /// becomes of the message there.
    Moved {
        /// Whose message.
        user: UserId,
        /// Where it was.
        from: EntryRef,
        /// Where it is.
        to: EntryRef,
    },
    /// Somebody has read a conversation up to here ([`Engine::mark_read`]), and that is durable. It is said once of each mark,
    /// in their order. Filters by message, sender or event do not hear of it: whose messages those are, a mark does not say.
    Read {
        /// Who has read.
        user: UserId,
        /// Which conversation.
        conversation: Option<OrderingKey>,
        /// How far, and since when.
        mark: ReadMark,
    },
}

/// All subscriptions to status changes.
pub(super) type Changes = Hub<Filter, Heard>;

impl Changes {
    fn subscribe(self: &Arc<Self>, filter: Filter) -> Result<Subscription, SubscribeError> {
        Ok(Subscription { listener: self.listen(filter.key(), filter)? })
    }

    pub(super) fn publish(&self, change: &Change) {
        if self.is_idle() {
            return;
        }
        let about =
            About { user: &change.user, sender: change.sender.as_ref(), event: change.event.as_ref() };
        self.each(about, |filter| filter.matches(change).then(|| Heard::Changed(change.clone())));
    }

    pub(super) fn publish_move(&self, user: &UserId, from: EntryRef, to: EntryRef) {
        if self.is_idle() {
            return;
        }
        self.each(About::user(user), |filter| {
            if !filter.matches_move(user, from) {
                return None;
            }
            filter.entry = filter.entry.map(|_| to);
            Some(Heard::Moved { user: user.clone(), from, to })
        });
    }

    pub(super) fn publish_read(&self, user: &UserId, conversation: Option<&OrderingKey>, mark: ReadMark) {
        if self.is_idle() {
            return;
        }
        self.each(About::user(user), |filter| {
            let (user, conversation) = (user.clone(), conversation.cloned());
            filter.matches_read(&user).then_some(Heard::Read { user, conversation, mark })
        });
    }
}

/// Hears of status changes until it is dropped. It does not keep the engine running.
pub struct Subscription {
    listener: Listener<Filter, Heard>,
}

impl Subscription {
    /// The next change, oldest first; waits for one. Those of one user come in the order they happened.
    ///
    /// # Errors
    /// [`HearError`]: changes were dropped, or the engine is gone.
    ///
    /// # Cancel safety
    /// Dropped before it returns, nothing was taken.
    pub async fn recv(&mut self) -> Result<Heard, HearError> {
        self.listener.recv().await
    }

    /// The next change, or nothing when there is none yet.
    ///
    /// # Errors
    /// [`HearError`]: changes were dropped, or the engine is gone.
    pub fn try_recv(&mut self) -> Result<Option<Heard>, HearError> {
        self.listener.try_recv()
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("key", &self.listener.key).finish_non_exhaustive()
    }
}

impl Engine {
    /// Hears of status changes from now on: of everything that happens after this has returned. The first one of a
    /// message is that it was handed to a sink; that it was accepted is said to its sender alone. Nothing of it survives
    /// a restart: what must not be missed is in [`Engine::ledger`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use lastmile::{Engine, EndReason, Filter, Heard, Message, Status, UserId, storage::MemoryStore};
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let mut changes = engine.subscribe(Filter::all().user(UserId::new("alice")?))?;
    /// let message = Message::to("alice", "chat.message", "hello").build()?;
    /// let id = message.id();
    /// engine.send(message).await?;
    /// engine.cancel("alice", id).await?;
    /// let Heard::Changed(change) = changes.recv().await? else { unreachable!("nothing was moved") };
    /// assert_eq!((change.id, change.status), (Some(id), Status::Ended(EndReason::Cancelled)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SubscribeError`]. Nothing was changed.
    pub fn subscribe(&self, filter: Filter) -> Result<Subscription, SubscribeError> {
        self.inner.hub.subscribe(filter)
    }
}

#[cfg(test)]
#[path = "subscribe/tests.rs"]
mod tests;
