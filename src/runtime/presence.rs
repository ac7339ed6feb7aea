//! Who is attached, with which device, since when, and when a device was last heard of.
//!
//! This is what *this* engine sees, in memory: it begins empty with each opening. What other nodes see is theirs; whoever
//! brings it together reads [`Engine::watch_presence`] and publishes it, and takes pages of [`Engine::present`] when it
//! lags. It knows nothing of devices that were registered and never came.
//!
//! A change is told in the order of the changes of its user. The one lock that is held for that is the user's place in
//! the map; nobody is woken under it, and no reference into the map leaves this file.

use core::fmt;
use core::ops::Bound;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use lru::LruCache;
use parking_lot::Mutex;

use super::attachment::Detached;
use super::engine::Engine;
use super::hub::{About, Bounds, HearError, Hub, Key, Listener, SubscribeError};
use crate::id::{DeviceId, UserId};
use crate::machine::LinkId;
use crate::ports::Clock;
use crate::time::Timestamp;

/// The most users of one page.
const MAX_PAGE: usize = 1024;
/// Devices that are gone and remembered, of one user.
const MAX_ABSENT_DEVICES: usize = 16;

/// One device, as this engine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DevicePresence {
    /// Which one.
    pub device: DeviceId,
    /// Since when it is attached; nothing when it is not.
    pub attached_since: Option<Timestamp>,
    /// When it last gave a sign of life: it attached, said something of a message, was said to be there
    /// ([`Attachment::seen`](crate::Attachment::seen)), or ended its attachment.
    pub last_seen: Timestamp,
}

/// A user's devices, as this engine sees them: those that are attached, and those that were since the engine was opened,
/// as far as they are remembered ([`Config::max_last_seen`](crate::Config::max_last_seen)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UserPresence {
    /// Who.
    pub user: UserId,
    /// By device.
    pub devices: Vec<DevicePresence>,
}

impl UserPresence {
    /// Whether a device is attached.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.devices.iter().any(|device| device.attached_since.is_some())
    }

    /// When any of the devices was last seen; nothing when none is remembered.
    #[must_use]
    pub fn last_seen(&self) -> Option<Timestamp> {
        self.devices.iter().map(|device| device.last_seen).max()
    }
}

/// Some of those who are here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PresencePage {
    /// In the order of their ids.
    pub users: Vec<UserPresence>,
    /// Where the next page begins: behind this user. Nothing when this was the last one.
    pub next: Option<UserId>,
}

/// What happened to an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PresenceKind {
    /// The device is here, and was not.
    Attached,
    /// The device is here again before it was seen to leave: its new attachment has taken over from the old one.
    TakenOver,
    /// The device has gone.
    Detached(Detached),
}

/// A device came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PresenceChange {
    /// Whose device.
    pub user: UserId,
    /// What happened.
    pub kind: PresenceKind,
    /// How it is with the device now.
    pub device: DevicePresence,
    /// How many of the user's devices are attached now.
    pub attached: usize,
}

impl PresenceChange {
    /// Whether the user is here now, and was not before.
    #[must_use]
    pub fn user_came(&self) -> bool {
        self.kind == PresenceKind::Attached && self.attached == 1
    }

    /// Whether the user was here before, and is not now.
    #[must_use]
    pub fn user_went(&self) -> bool {
        matches!(self.kind, PresenceKind::Detached(_)) && self.attached == 0
    }
}

/// When an attached device last gave a sign of life. Clones are handles to the same.
#[derive(Clone)]
pub(super) struct Sign {
    at: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
}

impl Sign {
    fn new(clock: Arc<dyn Clock>) -> Self {
        Self { at: Arc::new(AtomicU64::new(clock.now().as_millis())), clock }
    }

    /// It gives one now.
    pub(super) fn seen(&self) {
        self.at.fetch_max(self.clock.now().as_millis(), Ordering::Relaxed);
    }

    fn last(&self) -> Timestamp {
        Timestamp::from_millis(self.at.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sign").field(&self.last()).finish()
    }
}

/// An attached device.
#[derive(Debug)]
struct Here {
    device: DeviceId,
    link: LinkId,
    since: Timestamp,
    sign: Sign,
}

impl Here {
    fn presence(&self) -> DevicePresence {
        DevicePresence {
            device: self.device.clone(),
            attached_since: Some(self.since),
            last_seen: self.sign.last(),
        }
    }
}

/// All that is known of presence. Locks are taken in the order of the fields.
pub(super) struct Presences {
    here: DashMap<UserId, Vec<Here>>,
    /// Those who are in `here`, in order.
    order: Mutex<BTreeSet<UserId>>,
    /// Devices that are gone; of users, the one of whom a device left last is the newest.
    gone: Mutex<LruCache<UserId, Vec<(DeviceId, Timestamp)>>>,
    max_gone: usize,
    hub: Arc<Hub<(), PresenceChange>>,
    clock: Arc<dyn Clock>,
}

impl Presences {
    pub(super) fn new(clock: Arc<dyn Clock>, bounds: Bounds, max_gone: usize) -> Self {
        let hub = Arc::new(Hub::new(bounds));
        let (here, order) = (DashMap::new(), Mutex::default());
        Self { here, order, gone: Mutex::new(LruCache::unbounded()), max_gone, hub, clock }
    }

    /// A device is here. Its earlier attachment, if it has one, counts no more. The driver is told meanwhile: of two
    /// attachments of one device it must dismiss the one that counts no more here.
    pub(super) fn attach(
        &self,
        user: &UserId,
        device: &DeviceId,
        link: LinkId,
        tell_driver: impl FnOnce(),
    ) -> Sign {
        let sign = Sign::new(self.clock.clone());
        let new = Here { device: device.clone(), link, since: sign.last(), sign: sign.clone() };
        let mut here = self.here.entry(user.clone()).or_default();
        if here.is_empty() {
            self.order.lock().insert(user.clone());
        }
        self.recall(user, device);
        let presence = new.presence();
        let kind = match here.iter_mut().find(|other| other.device == *device) {
            Some(old) => {
                *old = new;
                PresenceKind::TakenOver
            }
            None => {
                here.push(new);
                PresenceKind::Attached
            }
        };
        let woken = self.tell(user, kind, presence, here.len());
        tell_driver();
        drop(here);
        woken.iter().for_each(|subscriber| subscriber.wake());
        sign
    }

    /// An attachment has ended. Nothing happens if the device has another one by now.
    pub(super) fn detach(&self, user: &UserId, link: LinkId, why: Detached) {
        let Entry::Occupied(mut here) = self.here.entry(user.clone()) else { return };
        let Some(at) = here.get().iter().position(|device| device.link == link) else { return };
        let device = here.get_mut().remove(at);
        if here.get().is_empty() {
            self.order.lock().remove(user);
        }
        device.sign.seen();
        let presence = DevicePresence { attached_since: None, ..device.presence() };
        self.remember(user, &presence);
        let woken = self.tell(user, PresenceKind::Detached(why), presence, here.get().len());
        match here.get().is_empty() {
            true => drop(here.remove_entry()),
            false => drop(here),
        }
        woken.iter().for_each(|subscriber| subscriber.wake());
    }

    fn tell(
        &self,
        user: &UserId,
        kind: PresenceKind,
        device: DevicePresence,
        attached: usize,
    ) -> Vec<Arc<super::hub::Subscriber<(), PresenceChange>>> {
        if self.hub.is_idle() {
            return Vec::new();
        }
        let change = PresenceChange { user: user.clone(), kind, device, attached };
        self.hub.tell(About::user(user), |()| Some(change.clone()))
    }

    /// A device that is gone is remembered; at the bound, the user whose device left longest ago is forgotten.
    fn remember(&self, user: &UserId, device: &DevicePresence) {
        let mut gone = self.gone.lock();
        let devices = gone.get_or_insert_mut(user.clone(), Vec::new);
        if devices.len() >= MAX_ABSENT_DEVICES {
            devices.remove(0);
        }
        devices.push((device.device.clone(), device.last_seen));
        while gone.len() > self.max_gone {
            gone.pop_lru();
        }
    }

    /// A device that was gone is here.
    fn recall(&self, user: &UserId, device: &DeviceId) {
        let mut gone = self.gone.lock();
        if let Some(devices) = gone.peek_mut(user) {
            devices.retain(|(other, _)| other != device);
            if devices.is_empty() {
                gone.pop(user);
            }
        }
    }

    fn of(&self, user: &UserId) -> UserPresence {
        // The entry, so that nobody comes or goes between the two look-ups, also of somebody who is not here.
        let entry = self.here.entry(user.clone());
        let mut devices: Vec<_> = match &entry {
            Entry::Occupied(here) => here.get().iter().map(Here::presence).collect(),
            Entry::Vacant(_) => Vec::new(),
        };
        if let Some(gone) = self.gone.lock().peek(user) {
            devices.extend(gone.iter().map(|(device, last_seen)| DevicePresence {
                device: device.clone(),
                attached_since: None,
                last_seen: *last_seen,
            }));
        }
        drop(entry);
        devices.sort_by(|a, b| a.device.cmp(&b.device));
        UserPresence { user: user.clone(), devices }
    }

    fn page(&self, behind: Option<&UserId>, max: usize) -> PresencePage {
        let max = max.clamp(1, MAX_PAGE);
        let from = behind.map_or(Bound::Unbounded, Bound::Excluded);
        let ids: Vec<_> =
            self.order.lock().range::<UserId, _>((from, Bound::Unbounded)).take(max).cloned().collect();
        let next = ids.last().filter(|_| ids.len() == max).cloned();
        let users = ids.iter().map(|user| self.of(user)).filter(UserPresence::is_present).collect();
        PresencePage { users, next }
    }

    /// How many users are here.
    pub(super) fn users(&self) -> usize {
        self.order.lock().len()
    }

    /// How many watch.
    pub(super) fn watches(&self) -> usize {
        self.hub.count()
    }

    pub(super) fn close(&self) {
        self.hub.close();
    }
}

impl fmt::Debug for Presences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presences").field("users", &self.users()).finish_non_exhaustive()
    }
}

/// Hears who comes and goes until it is dropped. It does not keep the engine running.
pub struct PresenceWatch {
    listener: Listener<(), PresenceChange>,
}

impl PresenceWatch {
    /// The next change, oldest first; waits for one. Those of one user come in the order they happened.
    ///
    /// # Errors
    /// [`HearError`]: changes were dropped (look at [`Engine::present`] again), or the engine is gone.
    ///
    /// # Cancel safety
    /// Dropped before it returns, nothing was taken.
    pub async fn recv(&mut self) -> Result<PresenceChange, HearError> {
        self.listener.recv().await
    }

    /// The next change, or nothing when there is none yet.
    ///
    /// # Errors
    /// [`HearError`]: changes were dropped (look at [`Engine::present`] again), or the engine is gone.
    pub fn try_recv(&mut self) -> Result<Option<PresenceChange>, HearError> {
        self.listener.try_recv()
    }
}

impl fmt::Debug for PresenceWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceWatch").field("user", &self.listener.key).finish_non_exhaustive()
    }
}

impl Engine {
    /// Who a user is here with, and which of the user's devices were here since the engine was opened, as far as they are
    /// remembered. A device is here from the moment in which [`Engine::attach`] returns until its attachment ends.
    ///
    /// Costs a look-up in memory.
    ///
    /// ```
    /// # use lastmile::machine::{Delivery, EntryRef, Verdict};
    /// # use lastmile::{Engine, UserId, storage::MemoryStore};
    /// # struct Phone;
    /// # impl lastmile::ports::Sink for Phone {
    /// #     async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> { Vec::new() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let alice = UserId::new("alice")?;
    /// let mut changes = engine.watch_presence(Some(alice.clone()))?;
    /// let attached = engine.attach("alice", "phone", Phone)?;
    /// assert!(engine.presence(&alice).is_present());
    /// assert!(changes.recv().await?.user_came());
    /// drop(attached);
    /// assert!(changes.recv().await?.user_went());
    /// println!("last seen at {:?}", engine.presence(&alice).last_seen());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn presence(&self, user: &UserId) -> UserPresence {
        self.inner.registry.presences().of(user)
    }

    /// Who is here, in the order of their ids, behind this one: at most `max` users (at least one, at most 1,024). Who comes
    /// or goes while one takes page after page may or may not be among them.
    #[must_use]
    pub fn present(&self, behind: Option<&UserId>, max: usize) -> PresencePage {
        self.inner.registry.presences().page(behind, max)
    }

    /// Hears who comes and goes from now on: of one user, or of all of them. Watch first and look afterwards
    /// ([`Engine::presence`], [`Engine::present`]): what happens in between is in both, and each change says how it is with
    /// its device from then on.
    ///
    /// There may be [`Config::max_subscriptions`](crate::Config::max_subscriptions) watches of a user and
    /// [`Config::max_wide_subscriptions`](crate::Config::max_wide_subscriptions) of all, beside the other subscriptions, and
    /// each holds [`Config::subscription_buffer`](crate::Config::subscription_buffer) changes. Signs of life are no changes.
    ///
    /// # Errors
    /// [`SubscribeError`]. Nothing was changed.
    pub fn watch_presence(&self, user: Option<UserId>) -> Result<PresenceWatch, SubscribeError> {
        Ok(PresenceWatch {
            listener: self.inner.registry.presences().hub.listen(user.map_or(Key::Wide, Key::User), ())?,
        })
    }
}

#[cfg(test)]
#[path = "presence/tests.rs"]
mod tests;
