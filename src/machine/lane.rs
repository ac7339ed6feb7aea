//! One priority of one user: the messages in memory, what has ended, and the queues of its ordering keys.
//!
//! Invariants:
//! - `entries` is sorted by place. It holds the settled messages up to `more_after` that are live (all of the lane's
//!   settled messages, when that is `None`), and every live message that has not settled yet.
//! - Messages above `more_after` are not queued: older ones on disk may share their ordering key. Nor are those above the
//!   horizon: however many are in memory, the queues are built of a bounded number, and go on when they run low.
//! - A key's messages are offered in order, and not before everything offered earlier of that key is resolved.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;

use super::entry::{Entry, EntryState};
use super::io::{LinkId, LoadId};
use crate::digest::Digester;
use crate::id::OrderingKey;
use crate::record::{Accept, LaneRow, Seq};
use crate::time::Timestamp;

/// The waiting messages of one ordering key.
#[derive(Debug, Default)]
struct KeyQueue {
    waiting: VecDeque<Seq>,
    /// Messages of this key that are in flight or waiting for a backoff.
    busy: u32,
    /// The pick that made it busy: further messages may join the same batch.
    pick: u64,
    queued: bool,
}

/// One priority of one user.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) entries: VecDeque<Entry>,
    pub(super) ended: BTreeSet<Seq>,
    pub(super) cursor: Seq,
    pub(super) attempts: BTreeMap<Seq, (u32, Timestamp)>,
    pub(super) more_after: Option<Seq>,
    /// Nothing that the store has up to here lives, but what is about to end: as that becomes durable, `more_after` rises.
    pub(super) cleared: Seq,
    pub(super) loading: Option<LoadId>,
    /// Settled messages that are not in memory and whose end is being recorded.
    pub(super) ending: BTreeSet<Seq>,
    /// Which sinks have failed to take a message since all of them had, while there are others: it is their turn.
    pub(super) tried: BTreeMap<Seq, Vec<LinkId>>,
    /// Volatile messages, by their number.
    pub(super) volatile: VecDeque<(Seq, Arc<Accept>)>,
    pub(super) in_flight: usize,
    /// Of what is not in memory and lies up to here, any may have been offered: in an earlier life, or before it left memory.
    pub(super) exposed_through: Seq,
    /// When something has to be done about which message; those that are never due are not in it.
    pub(super) due: BTreeSet<(Timestamp, Seq)>,
    /// The last message that is queued, if more in memory are to follow.
    horizon: Option<Seq>,
    /// Whether anything is ever offered from it.
    is_offered: bool,
    keys: HashMap<Option<OrderingKey>, KeyQueue, Digester>,
    ring: VecDeque<Option<OrderingKey>>,
}

impl Lane {
    /// A lane that nothing is offered from, of which the store may have what lies behind a place.
    pub(super) fn aside(digester: Digester, more_after: Option<Seq>) -> Self {
        Self { is_offered: false, more_after, ..Self::new(digester) }
    }

    /// A lane that is offered from, of which the store may have what lies behind a place.
    pub(super) fn of_device(digester: Digester, more_after: Option<Seq>) -> Self {
        Self { more_after, ..Self::new(digester) }
    }

    pub(super) fn new(digester: Digester) -> Self {
        Self {
            entries: VecDeque::new(),
            ended: BTreeSet::new(),
            cursor: Seq::ZERO,
            attempts: BTreeMap::new(),
            more_after: None,
            cleared: Seq::ZERO,
            loading: None,
            ending: BTreeSet::new(),
            tried: BTreeMap::new(),
            volatile: VecDeque::new(),
            in_flight: 0,
            exposed_through: Seq::ZERO,
            due: BTreeSet::new(),
            horizon: None,
            is_offered: true,
            keys: HashMap::with_hasher(digester),
            ring: VecDeque::new(),
        }
    }

    pub(super) fn position(&self, seq: Seq) -> Result<usize, usize> {
        match self.entries.back() {
            Some(last) if last.seq < seq => Err(self.entries.len()),
            _ => self.entries.binary_search_by_key(&seq, |entry| entry.seq),
        }
    }

    pub(super) fn entry(&self, seq: Seq) -> Option<&Entry> {
        self.position(seq).ok().and_then(|i| self.entries.get(i))
    }

    pub(super) fn entry_mut(&mut self, seq: Seq) -> Option<&mut Entry> {
        match self.position(seq) {
            Ok(i) => self.entries.get_mut(i),
            Err(_) => None,
        }
    }

    /// Changes what a message is doing; what it did before.
    pub(super) fn set_state(&mut self, seq: Seq, state: EntryState) -> Option<EntryState> {
        let i = self.position(seq).ok()?;
        let entry = self.entries.get_mut(i)?;
        let was_due = entry.due();
        let before = core::mem::replace(&mut entry.state, state);
        let due = entry.due();
        if due != was_due {
            self.due.remove(&(was_due, seq));
            self.remember_due(due, seq);
        }
        Some(before)
    }

    fn remember_due(&mut self, due: Timestamp, seq: Seq) {
        if due != Timestamp::NEVER {
            self.due.insert((due, seq));
        }
    }

    /// When the next message is due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes up to `max` messages that are due: those that have expired, which the caller ends, and those whose backoff
    /// is over, which wait again.
    pub(super) fn take_due(&mut self, now: Timestamp, max: usize) -> (Vec<Seq>, Vec<(Seq, Arc<Accept>)>) {
        let (mut expired, mut rested) = (Vec::new(), Vec::new());
        for _ in 0..max {
            let Some((_, seq)) = self.due.first().copied().filter(|(at, _)| *at <= now) else { break };
            self.due.pop_first();
            let Some(entry) = self.entry_mut(seq) else { continue };
            if entry.accept.expires() <= now {
                expired.push(seq);
                continue;
            }
            if matches!(entry.state, EntryState::Backoff(_)) {
                entry.state = EntryState::Waiting;
                rested.push((seq, entry.accept.clone()));
            }
            let due = entry.due();
            self.remember_due(due, seq);
        }
        (expired, rested)
    }

    /// A backoff from before a jump of the clock must not last longer than any other.
    pub(super) fn clamp_backoffs(&mut self, latest: Timestamp) {
        let late = self.attempts.iter().filter(|(_, (_, until))| *until > latest);
        let late: Vec<_> = late.map(|(seq, _)| *seq).collect();
        for seq in late {
            if self
                .entry(seq)
                .is_some_and(|entry| matches!(entry.state, EntryState::Backoff(until) if until > latest))
            {
                self.set_state(seq, EntryState::Backoff(latest));
            }
        }
    }

    /// Adds a live message, waiting unless its end is being recorded or it has failed attempts that ask for patience. Not
    /// queued yet.
    pub(super) fn insert(&mut self, seq: Seq, accept: Arc<Accept>) {
        if let Err(i) = self.position(seq) {
            let (state, failures) = match self.attempts.get(&seq) {
                Some((n, until)) => (EntryState::Backoff(*until), *n),
                None => (EntryState::Waiting, 0),
            };
            let state = match self.ending.contains(&seq) {
                true => EntryState::Ending { holds_key: true },
                false => state,
            };
            let offers = u32::from(seq <= self.exposed_through);
            let entry = Entry { seq, accept, state, offers, handed: false, failures };
            self.remember_due(entry.due(), seq);
            self.entries.insert(i, entry);
        }
    }

    pub(super) fn remove(&mut self, seq: Seq) -> Option<Entry> {
        let entry = self.position(seq).ok().and_then(|i| self.entries.remove(i))?;
        self.due.remove(&(entry.due(), seq));
        self.tried.remove(&seq);
        Some(entry)
    }

    /// Whether memory knows whether this message lives: nothing on disk comes before it.
    pub(super) fn is_known(&self, seq: Seq) -> bool {
        self.more_after.is_none_or(|after| seq <= after)
    }

    /// Whether the message is where it may be offered from.
    pub(super) fn is_offerable(&self, seq: Seq) -> bool {
        self.is_offered && self.is_known(seq) && self.horizon.is_none_or(|horizon| seq <= horizon)
    }

    /// Forgets the queues, for a user whom nobody is attached to.
    pub(super) fn clear_queues(&mut self) {
        self.tried.clear();
        self.keys.clear();
        self.ring.clear();
    }

    /// Builds the queues anew from the first `window` entries.
    pub(super) fn rebuild_queues(&mut self, window: usize) {
        if !self.is_offered {
            return;
        }
        self.keys.clear();
        self.ring.clear();
        self.horizon = Some(Seq::ZERO);
        self.extend_queues(window);
    }

    /// Queues up to `more` further entries.
    pub(super) fn extend_queues(&mut self, more: usize) {
        let Some(horizon) = self.horizon else { return };
        let from = self.entries.partition_point(|entry| entry.seq <= horizon);
        let known = self.known();
        let to = known.min(from.saturating_add(more));
        self.horizon = match self.entries.get(to.saturating_sub(1)) {
            _ if to == known => None,
            Some(last) if to > from => Some(last.seq),
            _ => self.horizon,
        };
        for i in from..to {
            let Some(entry) = self.entries.get(i) else { return };
            let (seq, accept) = (entry.seq, entry.accept.clone());
            match entry.state {
                EntryState::Waiting => self.enqueue(seq, &accept),
                EntryState::InFlight(_) | EntryState::Backoff(_) | EntryState::Ending { holds_key: true } => {
                    self.key(&accept).busy += 1;
                }
                EntryState::Ending { holds_key: false } => {}
            }
        }
    }

    /// The messages that wait for nothing but their turn, in no order.
    pub(super) fn offerable(&self) -> impl Iterator<Item = Seq> {
        self.keys.values().filter(|queue| queue.busy == 0).flat_map(|queue| queue.waiting.iter().copied())
    }

    /// Whether there is more in memory than is queued.
    pub(super) fn has_horizon(&self) -> bool {
        self.horizon.is_some()
    }

    /// Entries that nothing on disk comes before.
    fn known(&self) -> usize {
        self.more_after
            .map_or(self.entries.len(), |after| self.entries.partition_point(|entry| entry.seq <= after))
    }

    /// Entries in the queues that are with no sink.
    pub(super) fn ahead(&self) -> usize {
        let queued = match self.horizon {
            Some(horizon) => self.entries.partition_point(|entry| entry.seq <= horizon).min(self.known()),
            None => self.known(),
        };
        queued.saturating_sub(self.in_flight)
    }

    fn key(&mut self, accept: &Accept) -> &mut KeyQueue {
        self.keys.entry(accept.message.ordering_key().cloned()).or_default()
    }

    /// Queues a waiting message in its place among those of its key.
    pub(super) fn enqueue(&mut self, seq: Seq, accept: &Accept) {
        let queue = self.key(accept);
        match queue.waiting.back() {
            Some(last) if *last >= seq => {
                if let Err(i) = queue.waiting.binary_search(&seq) {
                    queue.waiting.insert(i, seq);
                }
            }
            _ => queue.waiting.push_back(seq),
        }
        if queue.busy == 0 && !queue.queued {
            queue.queued = true;
            self.ring.push_back(accept.message.ordering_key().cloned());
        }
    }

    /// A waiting message, out of its queue by now, holds its key.
    pub(super) fn hold_key(&mut self, accept: &Accept) {
        self.key(accept).busy += 1;
    }

    /// A message of this key is resolved, or waits again (then call [`Lane::enqueue`] as well, before this).
    pub(super) fn release_key(&mut self, accept: &Accept) {
        let name = accept.message.ordering_key().cloned();
        let Some(queue) = self.keys.get_mut(&name) else { return };
        queue.busy = queue.busy.saturating_sub(1);
        if queue.busy == 0 && !queue.waiting.is_empty() {
            if !queue.queued {
                queue.queued = true;
                self.ring.push_back(name);
            }
        } else if queue.busy == 0 && !queue.queued {
            self.keys.remove(&name);
        }
    }

    /// Takes a message that ends while it waits out of its key's queue.
    pub(super) fn unqueue(&mut self, seq: Seq, accept: &Accept) {
        if let Some(queue) = self.keys.get_mut(&accept.message.ordering_key().cloned())
            && let Ok(i) = queue.waiting.binary_search(&seq)
        {
            queue.waiting.remove(i);
        }
    }

    /// The message whose turn it is, for a batch with this pick number. At the gap bound only the lane's oldest.
    pub(super) fn next(&mut self, pick: u64, max_gaps: usize) -> Option<Seq> {
        let crowded = self.ended.len() + self.attempts.len() + self.in_flight >= max_gaps;
        if crowded && !self.bring_oldest_forward() {
            return None;
        }
        while let Some(name) = self.ring.front() {
            let Some(queue) = self.keys.get_mut(name) else {
                self.ring.pop_front();
                continue;
            };
            let joins = queue.busy == 0 || queue.pick == pick;
            match queue.waiting.front().copied() {
                Some(seq) if joins => {
                    let oldest = self.entries.front().is_some_and(|entry| entry.seq == seq);
                    return (!crowded || oldest).then_some(seq);
                }
                _ => {
                    queue.queued = false;
                    let idle = queue.busy == 0 && queue.waiting.is_empty();
                    let name = self.ring.pop_front();
                    if let (true, Some(name)) = (idle, name) {
                        self.keys.remove(&name);
                    }
                }
            }
        }
        None
    }

    /// Gives the turn to the key of the lane's oldest message, if that message waits.
    fn bring_oldest_forward(&mut self) -> bool {
        let oldest = self.entries.front().filter(|entry| entry.state == EntryState::Waiting);
        let Some(name) = oldest.map(|entry| entry.accept.message.ordering_key().cloned()) else {
            return false;
        };
        let Some(i) = self.ring.iter().position(|other| *other == name) else { return false };
        if let Some(name) = self.ring.remove(i) {
            self.ring.push_front(name);
        }
        true
    }

    /// Takes the message that [`Lane::next`] has just named; its key moves behind the others.
    pub(super) fn take_next(&mut self, pick: u64) {
        let Some(name) = self.ring.pop_front() else { return };
        if let Some(queue) = self.keys.get_mut(&name) {
            queue.waiting.pop_front();
            queue.busy += 1;
            queue.pick = pick;
            queue.queued = !queue.waiting.is_empty();
            if queue.queued {
                self.ring.push_back(name);
            }
        }
    }

    /// The place up to which everything has ended, given the place after the last record applied.
    pub(super) fn advance_cursor(&mut self, applied: Seq) -> Seq {
        let first = self.entries.front().map_or(applied, |entry| entry.seq);
        let first = self.ending.first().map_or(first, |ending| first.min(*ending));
        let candidate = match self.more_after {
            Some(after) => after.min(first.prev()),
            None => first.prev(),
        };
        if candidate > self.cursor {
            self.cursor = candidate;
            self.ended = self.ended.split_off(&candidate.plus(1));
        }
        self.cursor
    }

    /// What the store keeps about the lane.
    pub(super) fn row(&self) -> LaneRow {
        LaneRow {
            cursor: self.cursor,
            ended: self.ended.iter().copied().collect(),
            attempts: self.attempts.iter().map(|(seq, (n, until))| (*seq, *n, *until)).collect(),
        }
    }

    /// Merges the store's row under what the journal has said since.
    pub(super) fn merge_row(&mut self, row: &LaneRow) {
        self.cursor = self.cursor.max(row.cursor);
        self.ended.extend(row.ended.iter().copied());
        self.ended = self.ended.split_off(&self.cursor.plus(1));
        for (seq, n, until) in &row.attempts {
            if *seq > self.cursor && !self.ended.contains(seq) {
                self.attempts.entry(*seq).or_insert((*n, *until));
            }
        }
        let (cursor, ended, due) = (self.cursor, &self.ended, &mut self.due);
        self.entries.retain(|entry| {
            let lives = entry.seq > cursor && !ended.contains(&entry.seq);
            if !lives {
                due.remove(&(entry.due(), entry.seq));
            }
            lives
        });
    }

    #[cfg(test)]
    pub(super) fn timers(&self) -> usize {
        self.due.len()
    }
}
