//! What is remembered beyond what records say: how attempts failed, and where what was delivered last had been.
//!
//! In memory, of as many places as there is room for, since this opening. Nothing is decided by it, and nothing of it comes
//! back after a crash: whoever asks hears of less then, and of nothing that is not true.

use core::num::NonZeroUsize;
use std::collections::{BTreeMap, VecDeque};

use lru::LruCache;

use super::Machine;
use super::io::{EntryRef, LinkId};
use super::operation::{Located, Outcome, Target};
use crate::id::{DeviceId, MessageId, UserId};
use crate::record::{End, LaneId, MAX_SLOTS, Seq};
use crate::status::{EndReason, Status};
use crate::time::Timestamp;

/// Places of one shard of which failed attempts are remembered: about 1 MB. Each copy of a message has its own, and so has a
/// dead letter, besides that where its message was.
pub(super) const MAX_HISTORIES: NonZeroUsize = NonZeroUsize::new(2048).expect("a literal above zero");
/// Failed attempts that are remembered of one place: the last ones.
pub const MAX_FAILURES: usize = 8;
/// Deliveries of one shard that are remembered: about 2 MB.
pub(super) const MAX_DELIVERIES: NonZeroUsize = NonZeroUsize::new(16_384).expect("a literal above zero");
/// The copies of a message are never further apart than this.
const MAX_SPREAD: u64 = 2 * MAX_SLOTS as u64;

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AttemptFailure {
    /// The receiver refused it for now ([`Verdict::Nack`](super::Verdict::Nack)); a sink that panicked counts as that.
    Refused,
    /// It was not confirmed before the ack deadline.
    Unanswered,
    /// The receiver refused it for good, which has ended it. [`Located::attempts`] does not count this one.
    Rejected,
}

/// An attempt that failed, durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedAttempt {
    /// Where the message was: of a message for several devices, which copy.
    pub entry: EntryRef,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// The device that was offered it.
    pub device: DeviceId,
    /// How.
    pub failure: AttemptFailure,
    /// When.
    pub at: Timestamp,
}

/// Where a message was that was delivered.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    entry: EntryRef,
    /// Of the copies that were delivered, that with the lowest place.
    first: Seq,
    conversation: u128,
    /// A digest.
    sender: u128,
    attempts: u32,
    at: Timestamp,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Histories {
    /// Failures whose records are not durable yet.
    failing: BTreeMap<(Seq, u32), FailedAttempt>,
    failures: LruCache<(UserId, EntryRef), VecDeque<FailedAttempt>>,
    /// By a digest of the recipient, and the id.
    deliveries: LruCache<(u128, MessageId), Delivery>,
}

impl Default for Histories {
    fn default() -> Self {
        let (failing, failures) = (BTreeMap::new(), LruCache::new(MAX_HISTORIES));
        Self { failing, failures, deliveries: LruCache::new(MAX_DELIVERIES) }
    }
}

impl Histories {
    /// Attempts of what is at this place, up to this one, have failed durably.
    fn durable(&mut self, user: &UserId, entry: EntryRef, up_to: u32) {
        let first = |failing: &BTreeMap<(Seq, u32), FailedAttempt>| {
            failing.range((entry.seq, 0)..=(entry.seq, up_to)).next().map(|(key, _)| *key)
        };
        while let Some(failed) = first(&self.failing).and_then(|key| self.failing.remove(&key)) {
            let known = self.failures.get_or_insert_mut((user.clone(), entry), VecDeque::new);
            if known.len() >= MAX_FAILURES {
                known.pop_front();
            }
            known.push_back(failed);
        }
    }
}

impl Machine {
    /// An attempt has failed; it counts once that is durable.
    pub(super) fn note_failure(
        &mut self,
        link: LinkId,
        entry: EntryRef,
        attempt: u32,
        failure: AttemptFailure,
    ) {
        let Some(device) = self.links.get(&link).map(|link| link.device.clone()) else { return };
        let failed = FailedAttempt { entry, attempt, device, failure, at: self.now };
        self.histories.failing.insert((entry.seq, attempt), failed);
    }

    pub(super) fn failure_durable(&mut self, user: &UserId, entry: EntryRef, attempts: u32) {
        self.histories.durable(user, entry, attempts);
    }

    /// An end is durable: whatever failed before has failed; where its message is kept, it is known there too. It is still in
    /// its lane if it was in memory.
    pub(super) fn remember_end(&mut self, end: &End, entry: EntryRef, letter: Option<Seq>) {
        self.histories.durable(&end.user, entry, u32::MAX);
        if let Some(seq) = letter
            && let Some(known) = self.histories.failures.get(&(end.user.clone(), entry)).cloned()
        {
            self.histories.failures.put((end.user.clone(), EntryRef { lane: LaneId::Dead, seq }), known);
        }
        if end.reason == EndReason::Delivered && end.counts() {
            self.remember_delivery(end, entry);
        }
    }

    fn remember_delivery(&mut self, end: &End, entry: EntryRef) {
        let lane = self.users.get(&end.user).map(|user| user.lane_ref(entry.lane));
        let Some(found) = lane.and_then(|lane| lane.entry(entry.seq)) else { return };
        let message = &found.accept.message;
        let delivery = Delivery {
            entry,
            first: entry.seq,
            conversation: self.conversation(&end.user, message.ordering_key()),
            sender: self.digester.user(message.sender()),
            attempts: end.attempts,
            at: end.at,
        };
        let key = (self.digester.user(Some(&end.user)), message.id());
        match self.histories.deliveries.get_mut(&key) {
            Some(known) if known.is_copy_of(&delivery) => known.first = known.first.min(entry.seq),
            _ => drop(self.histories.deliveries.put(key, delivery)),
        }
    }

    fn delivery_of(&self, target: &Target) -> Option<&Delivery> {
        let key = (self.digester.user(Some(&target.user)), target.id);
        let found = self.histories.deliveries.peek(&key)?;
        let is_theirs = |sender: &Option<UserId>| self.digester.user(sender.as_ref()) == found.sender;
        target.sender.as_ref().is_none_or(is_theirs).then_some(found)
    }

    /// Of a message that does not wait, given what the ledger and the ids say: whether it is remembered to have been
    /// delivered. One that was accepted before `first` is an older one with the same id, and so is one behind which another
    /// has ended that is no copy of it.
    pub(super) fn remembered_delivery(
        &self,
        target: &Target,
        first: Seq,
        whole: Option<Located>,
    ) -> Option<Located> {
        let known = self.delivery_of(target).filter(|known| known.entry.seq >= first)?;
        let is_its_end = |found: Located| match found.entry {
            Some(EntryRef { lane: LaneId::Dead, .. }) => false,
            Some(EntryRef { lane, seq }) if lane.slot().is_some() => known.is_near(seq),
            Some(EntryRef { seq, .. }) => seq < known.entry.seq,
            None => true,
        };
        whole.is_none_or(is_its_end).then(|| Located {
            entry: Some(known.entry),
            attempts: known.attempts,
            since: Some(known.at),
            ..Located::delivered(None)
        })
    }

    /// What was found of a message, with whether it has been read, and how attempts failed.
    pub(super) fn with_history(&mut self, target: &Target, mut done: Outcome) -> Outcome {
        let first = self.first_place(target, Seq::MAX);
        if let Some(located) = &mut done.located
            && located.status == Status::Ended(EndReason::Delivered)
        {
            let known = self.delivery_of(target).filter(|known| known.entry.seq >= first);
            located.read = known.and_then(|known| {
                let is_it = located.entry.is_none_or(|entry| known.is_near(entry.seq));
                let mark = self.mark_of(&target.user, known.conversation).filter(|_| is_it)?;
                (mark.up_to >= known.first).then_some(mark.at)
            });
        }
        let copies = done.copies.iter().filter_map(|copy| copy.located);
        let mut places: Vec<_> =
            done.located.into_iter().chain(copies).filter_map(|found| found.entry).collect();
        places.sort_unstable();
        places.dedup();
        let of_place = |entry| {
            let known = self.histories.failures.peek(&(target.user.clone(), entry));
            known.into_iter().flatten()
        };
        // A dead letter's are under its own place, although they name that of the copy which it was.
        let counted = |entry| of_place(entry).filter(|it| it.failure != AttemptFailure::Rejected).count();
        done.forgotten = done.located.map_or(0, |located| {
            let known = located.entry.map_or(0, counted);
            located.attempts.saturating_sub(u32::try_from(known).unwrap_or(u32::MAX))
        });
        done.failures = places.into_iter().flat_map(of_place).cloned().collect();
        done.failures.sort_by_key(|failed| failed.at);
        done
    }
}

impl Delivery {
    fn is_near(&self, place: Seq) -> bool {
        place.get().abs_diff(self.entry.seq.get()) <= MAX_SPREAD
    }

    /// Whether both are copies of one message, and not two with the same id.
    fn is_copy_of(&self, other: &Self) -> bool {
        let are_copies = self.entry.lane.slot().is_some() && other.entry.lane.slot().is_some();
        are_copies && self.sender == other.sender && self.is_near(other.entry.seq)
    }
}
