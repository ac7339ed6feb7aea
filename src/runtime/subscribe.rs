//! Subscriptions: whoever wants to hear of status changes, and what they have not read yet.
//!
//! Drivers publish, hosts read. Nothing of a host's runs in here: each subscription is a ring of bounded length behind a
//! lock that is held for a push or a pop, so a subscriber that is slow, stuck or panicking costs a driver nothing more.
//! It is no `tokio::sync::broadcast`, because that allocates its whole ring at once: ten thousand of them would be a few
//! hundred megabytes of nothing.

use core::fmt;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::engine::Engine;
use super::error::Closed;
use crate::config::Config;
use crate::event::EventName;
use crate::id::{MessageId, UserId};
use crate::machine::{Change, EntryRef};

/// What a subscription hears of. Conditions add up: all of them must hold.
///
/// A filter that names a user is found by that user, and costs the messages of others nothing. One that names none is
/// looked at for every change.
///
/// Of a message that is not in memory (a late confirmation of one that had ended, say) only its user and its place are
/// known, and its id if it ended undelivered. A filter by id, sender or event does not hear what it cannot be sure of.
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

    /// Whether it hears of a move: of that only the user and the places are known.
    fn matches_move(&self, user: &UserId, from: EntryRef) -> bool {
        let sure = self.id.is_none() && self.sender.is_none() && self.event.is_none();
        sure && self.user.as_ref().is_none_or(|of| of == user) && self.entry.is_none_or(|entry| entry == from)
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
}

/// A subscription was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// There are as many as the configuration allows. Nothing was changed.
    #[error("there are {0} subscriptions of this kind already: nothing was subscribed to")]
    TooMany(usize),
    /// The engine is shut down. Nothing was changed.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Nothing can be read from a subscription now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HearError {
    /// So many changes were dropped, the oldest, because the buffer was full. Said once; the next call goes on with the
    /// newest. Messages themselves are unaffected.
    #[error("{0} changes were dropped because nobody read them in time: messages are unaffected")]
    Lagged(u64),
    /// The engine is gone, and everything was read. What was accepted is safe.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// How many subscriptions there may be, and how much each holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) of_users: usize,
    pub(super) wide: usize,
    pub(super) buffer: usize,
}

impl Bounds {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            of_users: config.max_subscriptions,
            wide: config.max_wide_subscriptions,
            buffer: config.subscription_buffer.get(),
        }
    }
}

#[derive(Debug)]
struct Subscriber {
    /// The filter changes when the one message it is about is moved.
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    filter: Filter,
    unread: VecDeque<Heard>,
    dropped: u64,
    closed: bool,
}

impl Subscriber {
    fn new(filter: Filter) -> Arc<Self> {
        let state = State { filter, unread: VecDeque::new(), dropped: 0, closed: false };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    fn push(&self, buffer: usize, hear: impl FnOnce(&mut Filter) -> Option<Heard>) {
        let mut state = self.state.lock();
        let Some(heard) = hear(&mut state.filter) else { return };
        if state.unread.len() >= buffer {
            state.unread.pop_front();
            state.dropped = state.dropped.saturating_add(1);
        }
        state.unread.push_back(heard);
        drop(state);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_one();
    }

    /// Nothing when there is nothing yet.
    fn pop(&self) -> Option<Result<Heard, HearError>> {
        let mut state = self.state.lock();
        if state.dropped > 0 {
            return Some(Err(HearError::Lagged(core::mem::take(&mut state.dropped))));
        }
        let closed = state.closed;
        state.unread.pop_front().map(Ok).or_else(|| closed.then_some(Err(HearError::Closed(Closed))))
    }
}

/// All subscriptions of an engine. Closes them when nobody is left who publishes.
#[derive(Debug)]
pub(super) struct Hub {
    bounds: Bounds,
    /// How many there are: the one thing that is looked at when there are none.
    count: AtomicUsize,
    index: RwLock<Index>,
}

/// Shared with a driver only while it publishes: changed in place otherwise.
type Listeners = Arc<Vec<Arc<Subscriber>>>;

#[derive(Debug, Default)]
struct Index {
    by_user: HashMap<UserId, Listeners>,
    of_users: usize,
    wide: Listeners,
    closed: bool,
}

impl Hub {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, count: AtomicUsize::new(0), index: RwLock::default() }
    }

    fn subscribe(self: &Arc<Self>, filter: Filter) -> Result<Subscription, SubscribeError> {
        let user = filter.user.clone();
        let subscriber = Subscriber::new(filter);
        let mut index = self.index.write();
        if index.closed {
            return Err(Closed.into());
        }
        match &user {
            Some(_) if index.of_users >= self.bounds.of_users => {
                return Err(SubscribeError::TooMany(self.bounds.of_users));
            }
            Some(user) => {
                let of_user = index.by_user.entry(user.clone()).or_default();
                Arc::make_mut(of_user).push(subscriber.clone());
                index.of_users += 1;
            }
            None if index.wide.len() >= self.bounds.wide => {
                return Err(SubscribeError::TooMany(self.bounds.wide));
            }
            None => Arc::make_mut(&mut index.wide).push(subscriber.clone()),
        }
        self.count.fetch_add(1, Ordering::Release);
        Ok(Subscription { user, subscriber, hub: Arc::downgrade(self) })
    }

    fn unsubscribe(&self, user: Option<&UserId>, subscriber: &Arc<Subscriber>) {
        let mut index = self.index.write();
        let others = |other: &Arc<Subscriber>| !Arc::ptr_eq(other, subscriber);
        match user {
            Some(user) => {
                if let Some(of_user) = index.by_user.get_mut(user) {
                    Arc::make_mut(of_user).retain(others);
                    if of_user.is_empty() {
                        index.by_user.remove(user);
                    }
                    index.of_users = index.of_users.saturating_sub(1);
                }
            }
            None => Arc::make_mut(&mut index.wide).retain(others),
        }
        self.count.fetch_sub(1, Ordering::Release);
    }

    /// Whether anybody listens. One who subscribes at this moment may or may not hear of what happens at this moment.
    fn is_idle(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    pub(super) fn publish(&self, change: &Change) {
        if self.is_idle() {
            return;
        }
        self.each(&change.user, |filter| filter.matches(change).then(|| Heard::Changed(change.clone())));
    }

    pub(super) fn publish_move(&self, user: &UserId, from: EntryRef, to: EntryRef) {
        if self.is_idle() {
            return;
        }
        self.each(user, |filter| {
            if !filter.matches_move(user, from) {
                return None;
            }
            filter.entry = filter.entry.map(|_| to);
            Some(Heard::Moved { user: user.clone(), from, to })
        });
    }

    fn each(&self, user: &UserId, hear: impl Fn(&mut Filter) -> Option<Heard>) {
        let (of_user, wide) = {
            let index = self.index.read();
            (index.by_user.get(user).cloned(), index.wide.clone())
        };
        // Not under the lock: what is woken is the host's, and may drop a subscription.
        for subscriber in of_user.iter().flat_map(|of_user| of_user.iter()).chain(wide.iter()) {
            subscriber.push(self.bounds.buffer, &hear);
        }
    }

    /// Says to all that nothing more will come.
    pub(super) fn close(&self) {
        let all: Vec<_> = {
            let mut index = self.index.write();
            index.closed = true;
            index.by_user.values().chain([&index.wide]).flat_map(|some| some.iter().cloned()).collect()
        };
        all.iter().for_each(|subscriber| subscriber.close());
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.close();
    }
}

/// Hears of status changes until it is dropped. It does not keep the engine running.
pub struct Subscription {
    user: Option<UserId>,
    subscriber: Arc<Subscriber>,
    hub: Weak<Hub>,
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
        loop {
            match self.subscriber.pop() {
                Some(heard) => return heard,
                None => self.subscriber.changed.notified().await,
            }
        }
    }

    /// The next change, or nothing when there is none yet.
    ///
    /// # Errors
    /// [`HearError`]: changes were dropped, or the engine is gone.
    pub fn try_recv(&mut self) -> Result<Option<Heard>, HearError> {
        self.subscriber.pop().transpose()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.unsubscribe(self.user.as_ref(), &self.subscriber);
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("user", &self.user).finish_non_exhaustive()
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
