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

#[derive(Debug)]
struct Index<F, H> {
    by_user: HashMap<UserId, Listeners<F, H>>,
    of_users: usize,
    wide: Listeners<F, H>,
    closed: bool,
}

impl<F, H> Hub<F, H> {
    pub(super) fn new(bounds: Bounds) -> Self {
        let index = Index { by_user: HashMap::new(), of_users: 0, wide: Arc::default(), closed: false };
        Self { bounds, count: AtomicUsize::new(0), index: RwLock::new(index) }
    }

    /// Listens to what happens to a user, or to all of them.
    pub(super) fn listen(
        self: &Arc<Self>,
        user: Option<UserId>,
        filter: F,
    ) -> Result<Listener<F, H>, SubscribeError> {
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
        Ok(Listener { user, subscriber, hub: Arc::downgrade(self) })
    }

    fn leave(&self, user: Option<&UserId>, subscriber: &Arc<Subscriber<F, H>>) {
        let mut index = self.index.write();
        let others = |other: &Arc<Subscriber<F, H>>| !Arc::ptr_eq(other, subscriber);
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

    /// How many subscriptions there are.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether nobody listens. One who subscribes at this moment may or may not hear of what happens at this moment.
    pub(super) fn is_idle(&self) -> bool {
        self.count() == 0
    }

    /// Lets everybody hear of it whom it concerns.
    pub(super) fn each(&self, user: &UserId, hear: impl Fn(&mut F) -> Option<H>) {
        let (of_user, wide) = self.listeners(user);
        // Not under the lock: what is woken is the host's, and may drop a subscription.
        for subscriber in of_user.iter().flat_map(|of_user| of_user.iter()).chain(wide.iter()) {
            if subscriber.push(self.bounds.buffer, &hear) {
                subscriber.wake();
            }
        }
    }

    /// The same for somebody who holds a lock: whom to wake, once it is let go of.
    pub(super) fn tell(
        &self,
        user: &UserId,
        hear: impl Fn(&mut F) -> Option<H>,
    ) -> Vec<Arc<Subscriber<F, H>>> {
        let (of_user, wide) = self.listeners(user);
        let all = of_user.iter().flat_map(|of_user| of_user.iter()).chain(wide.iter());
        all.filter(|subscriber| subscriber.push(self.bounds.buffer, &hear)).cloned().collect()
    }

    fn listeners(&self, user: &UserId) -> (Option<Listeners<F, H>>, Listeners<F, H>) {
        let index = self.index.read();
        (index.by_user.get(user).cloned(), index.wide.clone())
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

    #[cfg(test)]
    pub(super) fn users(&self) -> usize {
        self.index.read().by_user.len()
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
    pub(super) user: Option<UserId>,
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
            hub.leave(self.user.as_ref(), &self.subscriber);
        }
    }
}
