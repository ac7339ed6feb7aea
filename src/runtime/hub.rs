//! Who listens to what happens, and what they have not read yet.
//!
//! Drivers and attachments publish, hosts read. Nothing of a host's runs in here: each listener is a ring of bounded length
//! behind a lock that is held for a push or a pop, so one that is slow, stuck or panicking costs whoever publishes nothing
//! more. It is no `tokio::sync::broadcast`, because that allocates its whole ring at once: ten thousand of them would be a
//! few hundred megabytes of nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::config::Config;
use crate::error::Closed;
use crate::event::EventName;
use crate::id::UserId;

/// A subscription was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// There are as many as the configuration allows. Nothing was changed.
    #[error("there are {0} subscriptions of this kind already: nothing was subscribed to; drop one first")]
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

/// The most subscriptions to one user, one sender or one event: what happens there is pushed to each of them.
pub(super) const MAX_OF_ONE_KEY: usize = 1024;

/// How many subscriptions there may be, and how much each holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Those to one user, sender or event, together.
    pub(super) keyed: usize,
    /// Those to one of them.
    pub(super) of_one_key: usize,
    pub(super) wide: usize,
    pub(super) buffer: usize,
}

impl Bounds {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            keyed: config.max_subscriptions,
            of_one_key: MAX_OF_ONE_KEY,
            wide: config.max_wide_subscriptions,
            buffer: config.subscription_buffer.get(),
        }
    }
}

/// A ring, and whom to wake. `F` says what its owner wants to hear, and may change with what it hears.
#[derive(Debug)]
pub(super) struct Subscriber<F, H> {
    state: Mutex<State<F, H>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<F, H> {
    filter: F,
    unread: VecDeque<H>,
    dropped: u64,
    closed: bool,
}

impl<F, H> Subscriber<F, H> {
    fn new(filter: F) -> Arc<Self> {
        let state = State { filter, unread: VecDeque::new(), dropped: 0, closed: false };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    /// `true` when there is something new to wake it for.
    fn push(&self, buffer: usize, hear: impl FnOnce(&mut F) -> Option<H>) -> bool {
        let mut state = self.state.lock();
        let Some(heard) = hear(&mut state.filter) else { return false };
        if state.unread.len() >= buffer {
            state.unread.pop_front();
            state.dropped = state.dropped.saturating_add(1);
        }
        state.unread.push_back(heard);
        true
    }

    /// Wakes whoever reads it: the host's, so not to be called under any lock.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    fn close(&self) {
        self.state.lock().closed = true;
        self.wake();
    }

    /// Nothing when there is nothing yet.
    fn pop(&self) -> Option<Result<H, HearError>> {
        let mut state = self.state.lock();
        if state.dropped > 0 {
            return Some(Err(HearError::Lagged(core::mem::take(&mut state.dropped))));
        }
        let closed = state.closed;
        state.unread.pop_front().map(Ok).or_else(|| closed.then_some(Err(HearError::Closed(Closed))))
    }
}

/// All subscriptions of a kind. Closes them when nobody is left who publishes.
#[derive(Debug)]
pub(super) struct Hub<F, H> {
    bounds: Bounds,
    /// How many there are: the one thing that is looked at when there are none.
    count: AtomicUsize,
    index: RwLock<Index<F, H>>,
}

/// Shared with whoever publishes only for that time: changed in place otherwise.
type Listeners<F, H> = Arc<Vec<Arc<Subscriber<F, H>>>>;

/// By what a subscription is found. One is found by one thing, however many its filter names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// What happens to a user.
    User(UserId),
    /// What becomes of a sender's messages.
    Sender(UserId),
    /// What becomes of messages about an event, or one below it.
    Event(EventName),
    /// Everything.
    Wide,
}

/// Whom what happens concerns, as far as that is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct About<'a> {
    pub(super) user: &'a UserId,
    pub(super) sender: Option<&'a UserId>,
    pub(super) event: Option<&'a EventName>,
}

impl<'a> About<'a> {
    pub(super) fn user(user: &'a UserId) -> Self {
        Self { user, sender: None, event: None }
    }
}

#[derive(Debug)]
struct Index<F, H> {
    by_key: HashMap<Key, Listeners<F, H>>,
    keyed: usize,
    /// How many there are to senders, and to events: without any, nothing is looked for.
    of_senders: usize,
    of_events: usize,
    wide: Listeners<F, H>,
    closed: bool,
}

impl<F, H> Index<F, H> {
    fn count_of(&mut self, key: &Key) -> Option<&mut usize> {
        match key {
            Key::Sender(_) => Some(&mut self.of_senders),
            Key::Event(_) => Some(&mut self.of_events),
            Key::User(_) | Key::Wide => None,
        }
    }
}

impl<F, H> Hub<F, H> {
    pub(super) fn new(bounds: Bounds) -> Self {
        let (by_key, wide) = (HashMap::new(), Arc::default());
        let index = Index { by_key, keyed: 0, of_senders: 0, of_events: 0, wide, closed: false };
        Self { bounds, count: AtomicUsize::new(0), index: RwLock::new(index) }
    }

    /// Listens to what happens where this key says.
    pub(super) fn listen(self: &Arc<Self>, key: Key, filter: F) -> Result<Listener<F, H>, SubscribeError> {
        let subscriber = Subscriber::new(filter);
        let mut index = self.index.write();
        if index.closed {
            return Err(Closed.into());
        }
        if key == Key::Wide {
            if index.wide.len() >= self.bounds.wide {
                return Err(SubscribeError::TooMany(self.bounds.wide));
            }
            Arc::make_mut(&mut index.wide).push(subscriber.clone());
        } else {
            let of_one = index.by_key.get(&key).map_or(0, |some| some.len());
            if index.keyed >= self.bounds.keyed {
                return Err(SubscribeError::TooMany(self.bounds.keyed));
            }
            if of_one >= self.bounds.of_one_key {
                return Err(SubscribeError::TooMany(self.bounds.of_one_key));
            }
            Arc::make_mut(index.by_key.entry(key.clone()).or_default()).push(subscriber.clone());
            index.keyed += 1;
            index.count_of(&key).into_iter().for_each(|count| *count += 1);
        }
        self.count.fetch_add(1, Ordering::Release);
        Ok(Listener { key, subscriber, hub: Arc::downgrade(self) })
    }

    fn leave(&self, key: &Key, subscriber: &Arc<Subscriber<F, H>>) {
        let mut index = self.index.write();
        let others = |other: &Arc<Subscriber<F, H>>| !Arc::ptr_eq(other, subscriber);
        if *key == Key::Wide {
            Arc::make_mut(&mut index.wide).retain(others);
        } else {
            if let Some(some) = index.by_key.get_mut(key) {
                Arc::make_mut(some).retain(others);
                if some.is_empty() {
                    index.by_key.remove(key);
                }
            }
            index.keyed = index.keyed.saturating_sub(1);
            index.count_of(key).into_iter().for_each(|count| *count = count.saturating_sub(1));
        }
        self.count.fetch_sub(1, Ordering::Release);
    }

    /// How many subscriptions there are.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether nobody listens. One who subscribes at this moment may or may not hear of what happens at this moment.
    pub(super) fn is_idle(&self) -> bool {
        self.count() == 0
    }

    /// Lets everybody hear of it whom it concerns.
    pub(super) fn each(&self, about: About<'_>, hear: impl Fn(&mut F) -> Option<H>) {
        // Not under the lock: what is woken is the host's, and may drop a subscription.
        for subscriber in self.listeners(about).iter().flat_map(|some| some.iter()) {
            if subscriber.push(self.bounds.buffer, &hear) {
                subscriber.wake();
            }
        }
    }

    /// The same for somebody who holds a lock: whom to wake, once it is let go of.
    pub(super) fn tell(
        &self,
        about: About<'_>,
        hear: impl Fn(&mut F) -> Option<H>,
    ) -> Vec<Arc<Subscriber<F, H>>> {
        let listeners = self.listeners(about);
        let all = listeners.iter().flat_map(|some| some.iter());
        all.filter(|subscriber| subscriber.push(self.bounds.buffer, &hear)).cloned().collect()
    }

    fn listeners(&self, about: About<'_>) -> Vec<Listeners<F, H>> {
        let index = self.index.read();
        let sender = about.sender.filter(|_| index.of_senders > 0);
        let event = about.event.filter(|_| index.of_events > 0);
        let keys = [Some(Key::User(about.user.clone())), sender.cloned().map(Key::Sender)];
        let above = event.into_iter().flat_map(EventName::and_above).map(Key::Event);
        let keyed = keys.into_iter().flatten().chain(above).filter_map(|key| index.by_key.get(&key));
        let wide = Some(&index.wide).filter(|wide| !wide.is_empty());
        keyed.chain(wide).cloned().collect()
    }

    /// Says to all that nothing more will come.
    pub(super) fn close(&self) {
        let all: Vec<_> = {
            let mut index = self.index.write();
            index.closed = true;
            index.by_key.values().chain([&index.wide]).flat_map(|some| some.iter().cloned()).collect()
        };
        all.iter().for_each(|subscriber| subscriber.close());
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        self.index.read().by_key.len()
    }

    /// How many rings what happens there is offered to.
    #[cfg(test)]
    pub(super) fn reached(&self, about: About<'_>) -> usize {
        self.listeners(about).iter().map(|some| some.len()).sum()
    }
}

impl<F, H> Drop for Hub<F, H> {
    fn drop(&mut self) {
        self.close();
    }
}

/// One subscription, until it is dropped.
#[derive(Debug)]
pub(super) struct Listener<F, H> {
    pub(super) key: Key,
    subscriber: Arc<Subscriber<F, H>>,
    hub: Weak<Hub<F, H>>,
}

impl<F, H> Listener<F, H> {
    /// What comes next, oldest first; waits for it. Dropped before it returns, nothing was taken.
    pub(super) async fn recv(&mut self) -> Result<H, HearError> {
        loop {
            match self.subscriber.pop() {
                Some(heard) => return heard,
                None => self.subscriber.changed.notified().await,
            }
        }
    }

    /// What comes next, if it is there.
    pub(super) fn try_recv(&mut self) -> Result<Option<H>, HearError> {
        self.subscriber.pop().transpose()
    }
}

impl<F, H> Drop for Listener<F, H> {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.leave(&self.key, &self.subscriber);
        }
    }
}
