//! Attached sinks: the registry, and what the host holds of one.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;
use tokio::sync::{mpsc, watch};

use super::mail::{Mail, Post};
use super::presence::{Presences, Sign};
use super::queue::{Hand, Handed};
use crate::error::Closed;
use crate::id::{DeviceId, UserId};
use crate::machine::{Delivery, EntryRef, Input, LinkId, Verdict, Withdrawn};
use crate::ports::{Acks, Report, Reporting};
use crate::record::Gap;

/// How long a sink whose queue is full counts as busy.
const BUSY: core::time::Duration = core::time::Duration::from_secs(1);

/// Why an attachment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detached {
    /// The host dropped it.
    Dropped,
    /// The same device attached again, the user has too many devices, or the engine is shutting down.
    Dismissed,
    /// The sink panicked; the batch it had counts as a failed attempt.
    Panicked,
    /// The sink said that its connection is gone.
    Disconnected,
    /// The sink has taken nothing for so long that it could not be told any more of all the calls that were over meanwhile.
    Stalled,
}

/// Whose sink it is, its queue, and how it is told that it ended.
#[derive(Debug)]
struct Slot {
    user: UserId,
    queue: Hand,
    end: watch::Sender<Option<Detached>>,
}

/// The attached sinks, and who is here by them. Never hands out a reference into a map.
#[derive(Debug)]
pub(super) struct Registry {
    slots: DashMap<LinkId, Slot>,
    presences: Presences,
    /// Nobody is taken any more.
    closed: AtomicBool,
}

impl Registry {
    pub(super) fn new(presences: Presences) -> Self {
        Self { slots: DashMap::new(), presences, closed: AtomicBool::new(false) }
    }

    pub(super) fn presences(&self) -> &Presences {
        &self.presences
    }

    /// Takes a sink, and tells its driver.
    pub(super) fn insert(
        &self,
        link: LinkId,
        (user, device): (&UserId, &DeviceId),
        queue: Hand,
        end: watch::Sender<Option<Detached>>,
        tell_driver: impl FnOnce(),
    ) -> Sign {
        self.slots.insert(link, Slot { user: user.clone(), queue, end });
        let sign = self.presences.attach(user, device, link, tell_driver);
        // Looked at with the sink in the map: whoever closes looks into the map after saying so.
        if self.closed.load(Ordering::Acquire) {
            self.dismiss(link);
        }
        if !self.slots.contains_key(&link) {
            // Ended in between, when it was not here yet.
            self.presences.detach(user, link, Detached::Dismissed);
        }
        sign
    }

    /// Queues a batch; gives back verdicts when it cannot be.
    pub(super) fn offer(&self, link: LinkId, batch: Vec<Delivery>) -> Option<Vec<(EntryRef, Verdict)>> {
        let (verdict, handed) = match self.hand(link, Handed::Batch(batch))? {
            mpsc::error::TrySendError::Full(handed) => (Verdict::Busy(BUSY), handed),
            mpsc::error::TrySendError::Closed(handed) => (Verdict::Disconnected, handed),
        };
        let Handed::Batch(batch) = handed else { return None };
        Some(batch.into_iter().map(|delivery| (delivery.entry, verdict.clone())).collect())
    }

    /// Queues gaps to be told of; `false` when they cannot be.
    pub(super) fn tell(&self, link: LinkId, gaps: Vec<Gap>) -> bool {
        self.hand(link, Handed::Gaps(gaps)).is_none()
    }

    /// Says that a message rings no more, before what waits for a sink whose queue is full. `false` when the sink has taken
    /// nothing for so long that it cannot be told any more: then its attachment has ended.
    pub(super) fn withdraw(&self, link: LinkId, withdrawn: Withdrawn) -> bool {
        let queue = self.slots.get(&link).map(|slot| slot.queue.clone());
        let is_kept = queue.is_none_or(|queue| queue.withdraw(withdrawn));
        if !is_kept {
            self.end(link, Detached::Stalled);
        }
        is_kept
    }

    /// Nothing when it was queued, or the sink is gone: the machine is told of that by itself.
    fn hand(&self, link: LinkId, handed: Handed) -> Option<mpsc::error::TrySendError<Handed>> {
        let queue = self.slots.get(&link).map(|slot| slot.queue.clone());
        queue.and_then(|queue| queue.hand(handed))
    }

    pub(super) fn dismiss(&self, link: LinkId) {
        self.end(link, Detached::Dismissed);
    }

    /// Removes a sink, for this reason unless it has ended for another before.
    pub(super) fn end(&self, link: LinkId, why: Detached) {
        if let Some((_, slot)) = self.slots.remove(&link) {
            self.presences.detach(&slot.user, link, why);
            slot.end.send_if_modified(|end| end.is_none() && end.replace(why).is_none());
        }
    }

    /// Dismisses everybody, for good: whoever comes meanwhile is dismissed at once.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let links: Vec<_> = self.slots.iter().map(|slot| *slot.key()).collect();
        links.into_iter().for_each(|link| self.dismiss(link));
    }
}

/// A link's way back to its machine.
struct Way {
    link: LinkId,
    post: Post,
    sign: Sign,
}

impl Report for Way {
    fn report(&self, verdicts: Vec<(EntryRef, Verdict)>) -> Reporting<'_> {
        if verdicts.iter().any(|(_, verdict)| verdict.is_sign_of_life()) {
            self.sign.seen();
        }
        let mail = Mail::Input(Input::Verdicts { link: self.link, verdicts });
        Box::pin(async { self.post.mail.send(mail).await.map_err(|_| Closed) })
    }
}

/// For verdicts of this link that come after `deliver` has returned.
pub(super) fn acks(link: LinkId, post: Post, sign: Sign) -> Acks {
    Acks::new(Way { link, post, sign })
}

/// An attached sink. Dropping it detaches the sink; what was in flight is offered again to the next one.
pub struct Attachment {
    link: LinkId,
    post: Post,
    registry: std::sync::Arc<Registry>,
    end: watch::Receiver<Option<Detached>>,
    sign: Sign,
}

impl Attachment {
    pub(super) fn new(
        link: LinkId,
        post: Post,
        registry: std::sync::Arc<Registry>,
        end: watch::Receiver<Option<Detached>>,
        sign: Sign,
    ) -> Self {
        Self { link, post, registry, end, sign }
    }

    /// For verdicts that come after `deliver` has returned.
    #[must_use]
    pub fn acks(&self) -> Acks {
        acks(self.link, self.post.clone(), self.sign.clone())
    }

    /// The device gave a sign of life just now, by a heartbeat or whatever else the host hears of it: see
    /// [`DevicePresence::last_seen`](crate::DevicePresence::last_seen). What it says of messages counts by itself.
    pub fn seen(&self) {
        self.sign.seen();
    }

    /// Waits until the attachment has ended by itself, and says why.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn closed(&self) -> Detached {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(why) => why.unwrap_or(Detached::Dismissed),
            Err(_) => Detached::Dismissed,
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.registry.end(self.link, Detached::Dropped);
        self.post.note(Input::Detach(self.link));
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").field("link", &self.link).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock::SystemClock;
    use crate::runtime::hub::Bounds;
    use crate::time::Timestamp;

    /// Found by review: whoever attached while the engine shut down waited for ever for the end of it.
    #[test]
    fn whoever_comes_when_all_were_dismissed_is_dismissed_at_once() {
        let clock = std::sync::Arc::new(SystemClock::new(Timestamp::ZERO));
        let registry = Registry::new(Presences::new(clock, Bounds::of(&crate::Config::default()), 8));
        let (user, device) = (UserId::new("alice").unwrap(), DeviceId::new("phone").unwrap());
        let come = |link| {
            let (queue, _) = crate::runtime::queue::queue();
            let (end, ended) = watch::channel(None);
            registry.insert(LinkId(link), (&user, &device), queue, end, || {});
            *ended.borrow()
        };
        assert_eq!(come(1), None);
        registry.close();
        assert_eq!(come(2), Some(Detached::Dismissed));
        assert_eq!(registry.presences().users(), 0);
    }
}
