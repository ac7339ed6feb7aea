//! The accept-side dedup window: an LRU of senders, each with a bounded, aging ring of the ids it used.
//!
//! A sender evicts only its own ids. Windows of idle senders leave memory once they are settled, and are read back
//! when the sender returns. Forgetting an id can cause a duplicate, never a loss.

use core::time::Duration;
use std::collections::VecDeque;

use lru::LruCache;

use super::query::Query;
use crate::config::Config;
use crate::digest::{DigestHasher, DigestMap};
use crate::record::{DedupRow, Seq, Slots};
use crate::time::Timestamp;

/// So many ids that have aged are let go of with each one that comes. Of a sender who comes back after a while all are old at
/// once, and whoever sends in that moment would wait until a hundred thousand are gone.
const AGED_AT_ONCE: usize = 16;

/// What is remembered of an id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) content: u64,
    /// [`Seq::ZERO`] while it is being committed.
    pub(super) seq: Seq,
    pub(super) at: Timestamp,
    pub(super) sender: u128,
    /// The devices that have a copy; the first one's is at the place.
    pub(super) among: Slots,
}

#[derive(Debug, Default)]
struct Window {
    /// Committed ids, oldest first.
    ids: VecDeque<u128>,
    /// Whether the store holds nothing more of this sender.
    complete: bool,
    /// Ids that are being committed.
    pending: u32,
}

/// What is known of an id.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known {
    /// Never seen within the window.
    New,
    /// The store must be asked first.
    AskStore,
    /// Seen.
    Seen(Slot),
    /// Held for a batch across shards that is not decided.
    Held,
}

impl Known {
    /// Whether it may yet turn out that it was not accepted.
    pub(super) fn is_undecided(&self) -> bool {
        match self {
            Self::Held => true,
            Self::Seen(slot) => slot.seq == Seq::ZERO,
            Self::New | Self::AskStore => false,
        }
    }
}

/// The windows of all senders.
#[derive(Debug)]
pub(super) struct Dedup {
    slots: DigestMap<Slot>,
    senders: LruCache<u128, Window, std::hash::BuildHasherDefault<DigestHasher>>,
    max_ids: usize,
    max_age: Duration,
    max_resident: usize,
    /// Whether the store may hold ids of senders that are not in memory.
    store_has: bool,
    /// Ids below this place have settled.
    settled: Seq,
}

impl Dedup {
    pub(super) fn new(config: &Config, store_has: bool, settled: Seq) -> Self {
        Self {
            slots: DigestMap::default(),
            senders: LruCache::unbounded_with_hasher(std::hash::BuildHasherDefault::default()),
            max_ids: config.dedup_ids.get(),
            max_age: config.dedup_age,
            max_resident: config.max_dedup_resident.get(),
            store_has,
            settled,
        }
    }

    /// What is known of `key` of this sender.
    pub(super) fn look_up(&mut self, sender: u128, key: u128, now: Timestamp) -> Known {
        if let Some(slot) = self.slots.get(&key)
            && (slot.seq == Seq::ZERO || now.since(slot.at) <= self.max_age)
        {
            return Known::Seen(*slot);
        }
        let complete = self.senders.get(&sender).map_or(!self.store_has, |window| window.complete);
        if complete { Known::New } else { Known::AskStore }
    }

    /// What the store is to be asked of a sender: as much as is remembered of one, whatever lies there.
    pub(super) fn query(&self, sender: u128, now: Timestamp) -> Query {
        let since = Timestamp::from_millis(now.as_millis().saturating_sub(self.max_age.as_millis() as u64));
        Query::Sender { sender, since, max: self.max_ids }
    }

    /// Remembers an id that is being committed.
    pub(super) fn reserve(&mut self, key: u128, slot: Slot) {
        let aged = self.slots.insert(key, slot).is_some();
        let window = self.window(slot.sender);
        window.pending += 1;
        if aged {
            window.ids.retain(|id| *id != key);
        }
    }

    fn window(&mut self, sender: u128) -> &mut Window {
        let complete = !self.store_has;
        self.senders.get_or_insert_mut(sender, || Window { complete, ..Window::default() })
    }

    /// What was reserved for an id is durable at this place.
    pub(super) fn commit_reserved(&mut self, key: u128, seq: Seq) {
        if let Some(slot) = self.slots.get(&key).copied() {
            self.commit(key, Slot { seq, ..slot }, true);
        }
    }

    /// Forgets an id whose commit failed.
    pub(super) fn cancel(&mut self, key: u128) {
        if let Some(slot) = self.slots.remove(&key) {
            let window = self.window(slot.sender);
            window.pending = window.pending.saturating_sub(1);
        }
    }

    /// An id is durable. `reserved` says whether [`Dedup::reserve`] came before (not so in replay).
    pub(super) fn commit(&mut self, key: u128, slot: Slot, reserved: bool) {
        let again = self.slots.insert(key, slot).is_some_and(|old| old.seq != Seq::ZERO);
        let window = self.window(slot.sender);
        if reserved {
            window.pending = window.pending.saturating_sub(1);
        }
        if again {
            window.ids.retain(|id| *id != key);
        }
        window.ids.push_back(key);
        self.trim(slot.sender, slot.at);
        self.shrink(slot.sender);
    }

    /// Lets go of what is too much, and of some of what is too old: [`Self::look_up`] does not know that any more.
    fn trim(&mut self, sender: u128, now: Timestamp) {
        let Some(window) = self.senders.peek_mut(&sender) else { return };
        let mut aged = 0..AGED_AT_ONCE;
        while let Some(oldest) = window.ids.front() {
            let is_aged = self.slots.get(oldest).is_none_or(|slot| now.since(slot.at) > self.max_age);
            if window.ids.len() <= self.max_ids && !(is_aged && aged.next().is_some()) {
                break;
            }
            if let Some(key) = window.ids.pop_front() {
                self.slots.remove(&key);
            }
        }
    }

    /// Lets the longest idle senders fall to the store while too much is in memory, ids or senders. What has not settled stays: the
    /// journal bounds it. So does the sender at hand: what was just read for it must be there when its sends go on.
    fn shrink(&mut self, at_hand: u128) {
        let mut tries = 4;
        while self.slots.len().max(self.senders.len()) > self.max_resident && tries > 0 {
            tries -= 1;
            let Some((sender, window)) = self.senders.pop_lru() else { return };
            let newest = window.ids.back().and_then(|key| self.slots.get(key));
            if sender == at_hand || window.pending > 0 || newest.is_some_and(|slot| slot.seq >= self.settled)
            {
                self.senders.put(sender, window);
                continue;
            }
            self.store_has |= !window.ids.is_empty();
            for key in window.ids {
                self.slots.remove(&key);
            }
        }
    }

    /// Merges what the store remembers of a sender with what is in memory.
    pub(super) fn loaded(&mut self, sender: u128, rows: &[DedupRow], now: Timestamp) {
        let mut rows: Vec<_> =
            rows.iter().filter(|row| row.sender == sender && row.seq != Seq::ZERO).collect();
        rows.sort_by_key(|row| row.seq);
        let mut ids = VecDeque::new();
        for row in rows {
            if !self.slots.contains_key(&row.key) {
                let DedupRow { content, seq, at, among, .. } = *row;
                let slot = Slot { content, seq, at, sender, among };
                self.slots.insert(row.key, slot);
                ids.push_back(row.key);
            }
        }
        let window = self.window(sender);
        ids.append(&mut window.ids);
        window.ids = ids;
        window.complete = true;
        self.trim(sender, now);
        self.shrink(sender);
    }

    /// The row of an id, if it is still remembered.
    pub(super) fn row(&self, key: u128) -> Option<DedupRow> {
        let slot = self.slots.get(&key).filter(|slot| slot.seq != Seq::ZERO)?;
        let Slot { content, seq, at, sender, among } = *slot;
        Some(DedupRow { sender, key, content, seq, at, among })
    }

    /// Everything below this place is in the store.
    pub(super) fn settled(&mut self, before: Seq) {
        self.settled = before;
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> usize {
        self.slots.len()
    }

    #[cfg(test)]
    pub(super) fn senders(&self) -> usize {
        self.senders.len()
    }
}
