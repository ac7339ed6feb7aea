//! One message of a user, by its place or by its id.
//!
//! A run is sorted by user, lane and place, and by nothing else. So whoever knows the place reads one chunk; by an id, all is
//! gone through that the user has in the run, once: what was learnt, which id is where, is kept, as runs never change. Ids
//! stand first in a message, so that neither is the rest of it decoded, nor is more of a body read that lies in parts.
//!
//! # Bounds
//! 131,072 messages of whichever users and runs, 4 MiB; those go first that nobody has asked for longest. Who has fewer than 64
//! messages in a run is read each time: that is a few chunks.

use std::collections::BTreeSet;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::OutboxStore;
use super::chunk::{Body, Entry, part_numbers};
use super::keys::{self, Key};
use super::load::{Limits, Visit, end_of, message_of, runs_of};
use super::meta::{Meta, RunInfo};
use super::rows;
use super::shared::Bodies;
use crate::codec;
use crate::id::{MessageId, UserId};
use crate::machine::Matches;
use crate::ports::{Flow, StoreError};
use crate::record::{LaneId, Seq, Slot};

/// The fewest messages of a user in a run whose ids are kept.
const MIN_KEPT: usize = 64;
/// The most messages whose ids are kept.
const MAX_KEPT: usize = 131_072;
/// Damaged places that are named; more are one of which nothing is known.
const MAX_DAMAGED: usize = 256;

/// The ids of users who were asked about lately, by run.
pub(super) struct Finder(Mutex<Kept>);

struct Kept {
    of: LruCache<(u64, UserId), Arc<Ids>>,
    entries: usize,
}

impl Finder {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Kept { of: LruCache::unbounded(), entries: 0 }))
    }

    fn get(&self, run: u64, user: &UserId) -> Option<Arc<Ids>> {
        self.0.lock().of.get(&(run, user.clone())).cloned()
    }

    fn keep(&self, run: u64, user: &UserId, mut ids: Ids) {
        if !(MIN_KEPT..=MAX_KEPT).contains(&ids.sorted.len()) {
            return;
        }
        ids.sorted.sort_unstable();
        let kept = &mut *self.0.lock();
        kept.entries += ids.sorted.len();
        let before = kept.of.put((run, user.clone()), Arc::new(ids));
        kept.entries -= before.map_or(0, |ids| ids.sorted.len());
        while kept.entries > MAX_KEPT
            && let Some((_, oldest)) = kept.of.pop_lru()
        {
            kept.entries -= oldest.sorted.len();
        }
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.0.lock().entries
    }
}

/// Which id is where, of one user in one run.
#[derive(Default)]
struct Ids {
    sorted: Vec<(u128, LaneId, Seq)>,
    damaged: Vec<Option<(LaneId, Seq)>>,
}

impl Ids {
    fn with(&self, id: MessageId) -> impl Iterator<Item = (LaneId, Seq)> {
        let id = id.as_u128();
        let from = self.sorted.partition_point(|(known, ..)| *known < id);
        let found = self.sorted.iter().skip(from).take_while(move |(known, ..)| *known == id);
        found.map(|(_, lane, seq)| (*lane, *seq))
    }
}

impl OutboxStore {
    /// What is at a place, in whichever of these lanes.
    pub(super) fn at(
        &self,
        table: &Meta,
        user: &UserId,
        lanes: &[LaneId],
        seq: Seq,
    ) -> Result<Matches, StoreError> {
        let mut finding = Finding::new(self, Limits { messages: lanes.len(), bytes: u64::MAX });
        for run in runs_of(table, user).filter(|run| (run.first..=run.last).contains(&seq)) {
            lanes.iter().try_for_each(|lane| finding.read(run, user, *lane, seq))?;
        }
        Ok(finding.matches)
    }

    /// What a user has with this id.
    pub(super) fn find(
        &self,
        table: &Meta,
        user: &UserId,
        id: MessageId,
        limits: Limits,
    ) -> Result<Matches, StoreError> {
        let mut finding = Finding::new(self, limits);
        if let Some(read) = self.inner.recent.find(user, table.generation) {
            for (run, entry) in read.all(user) {
                finding.look_at(run, &entry, id)?;
            }
            return Ok(finding.matches);
        }
        for run in runs_of(table, user) {
            match self.inner.finder.get(run.number, user) {
                Some(ids) => {
                    ids.damaged.iter().for_each(|at| finding.damaged(*at));
                    ids.with(id).try_for_each(|(lane, seq)| finding.read(run, user, lane, seq))?;
                }
                None => {
                    let ids = finding.read_all(run, user, id)?;
                    self.inner.finder.keep(run.number, user, ids);
                }
            }
        }
        Ok(finding.matches)
    }

    /// The slots in which somebody without a row has something, if all that they have is kept here.
    pub(super) fn known_slots(&self, table: &Meta, user: &UserId) -> Option<BTreeSet<Slot>> {
        let mut slots = BTreeSet::new();
        for run in runs_of(table, user) {
            let ids = self.inner.finder.get(run.number, user).filter(|ids| ids.damaged.is_empty())?;
            slots.extend(ids.sorted.iter().filter_map(|(_, lane, _)| lane.slot()));
        }
        Some(slots)
    }

    /// The id of an entry of a run.
    fn id_of(&self, run: u64, entry: &Entry<'_>, bodies: &mut Bodies) -> Result<MessageId, StoreError> {
        let key = |part| Key::Body { seq: entry.seq, part }.encode();
        let peek = |bytes: &[u8], key: &[u8]| {
            codec::peek_id(bytes).map_err(|error| rows::damaged(key, &error.to_string()))
        };
        match entry.body {
            Body::Inline(body) => peek(body, &key(0)),
            Body::Parts { parts, .. } => {
                let key = key(part_numbers(parts).start);
                let first = self.dyn_store().read(&key)?;
                peek(&first.ok_or_else(|| rows::damaged(&key, "it is missing"))?, &key)
            }
            Body::Shared { place, .. } => {
                let found = bodies.find(self, run, place)?;
                let (base, _) = found.map_err(|reason| {
                    rows::damaged(&Key::Shared { run, seq: place, part: 0 }.encode(), &reason)
                })?;
                Ok(base.message.id())
            }
        }
    }
}

/// What was found so far.
struct Finding<'a> {
    outbox: &'a OutboxStore,
    limits: Limits,
    bytes: u64,
    matches: Matches,
    /// Of what in the run at hand it is not known which ids it has.
    unknown: Vec<Option<(LaneId, Seq)>>,
    bodies: Bodies,
}

impl<'a> Finding<'a> {
    fn new(outbox: &'a OutboxStore, limits: Limits) -> Self {
        let (matches, bodies) = (Matches::default(), Bodies::default());
        Self { outbox, limits, bytes: 0, matches, unknown: Vec::new(), bodies }
    }

    /// It may have any id.
    fn unknown(&mut self, at: Option<(LaneId, Seq)>) {
        match self.unknown.len() {
            ..MAX_DAMAGED => self.unknown.push(at),
            MAX_DAMAGED => self.unknown.push(None),
            _ => {}
        }
        self.damaged(at);
    }

    fn damaged(&mut self, at: Option<(LaneId, Seq)>) {
        match self.matches.damaged.len() {
            ..MAX_DAMAGED => self.matches.damaged.push(at),
            MAX_DAMAGED => self.matches.damaged.push(None),
            _ => {}
        }
    }

    /// This entry is one of those that are looked for.
    fn take(&mut self, run: u64, entry: &Entry<'_>) -> Result<(), StoreError> {
        let cost = u64::from(entry.cost);
        let taken = self.matches.entries.len();
        if taken >= self.limits.messages || taken > 0 && self.bytes.saturating_add(cost) > self.limits.bytes {
            self.matches.is_cut = true;
            return Ok(());
        }
        match message_of(self.outbox, run, entry, &mut self.bodies) {
            Ok((accept, _)) => {
                self.bytes = self.bytes.saturating_add(cost);
                self.matches.entries.push((entry.seq, Arc::new(accept)));
            }
            Err(StoreError::Damaged { .. }) => self.damaged(Some((entry.lane, entry.seq))),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes an entry if it has this id, which is returned, unless it is damaged.
    fn look_at(
        &mut self,
        run: u64,
        entry: &Entry<'_>,
        id: MessageId,
    ) -> Result<Option<MessageId>, StoreError> {
        match self.outbox.id_of(run, entry, &mut self.bodies) {
            Ok(found) => {
                if found == id {
                    self.take(run, entry)?;
                }
                Ok(Some(found))
            }
            Err(StoreError::Damaged { .. }) => {
                self.unknown(Some((entry.lane, entry.seq)));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes what is at this place, if something is.
    fn read(&mut self, run: &RunInfo, user: &UserId, lane: LaneId, seq: Seq) -> Result<(), StoreError> {
        let from = keys::chunk(run.number, user, lane, seq);
        let to = keys::after(from.clone());
        self.scan((run, user), (from, to), |finding, entry| {
            if (entry.lane, entry.seq) != (lane, seq) {
                return Ok(Flow::Continue);
            }
            finding.take(run.number, entry).map(|()| Flow::Stop)
        })
    }

    /// Looks at all that a user has in a run; what it was.
    fn read_all(&mut self, run: &RunInfo, user: &UserId, id: MessageId) -> Result<Ids, StoreError> {
        let mut ids = Ids::default();
        self.unknown.clear();
        let from = keys::chunk(run.number, user, LaneId::Critical, Seq::ZERO);
        self.scan((run, user), (from, end_of(run, user)), |finding, entry| {
            let found = finding.look_at(run.number, entry, id)?;
            if let Some(found) = found.filter(|_| ids.sorted.len() <= MAX_KEPT) {
                ids.sorted.push((found.as_u128(), entry.lane, entry.seq));
            }
            Ok(Flow::Continue)
        })?;
        ids.damaged = core::mem::take(&mut self.unknown);
        Ok(ids)
    }

    fn scan(
        &mut self,
        (run, user): (&RunInfo, &UserId),
        (from, to): (Vec<u8>, Vec<u8>),
        mut take: impl FnMut(&mut Self, &Entry<'_>) -> Result<Flow, StoreError>,
    ) -> Result<(), StoreError> {
        let (outbox, mut error) = (self.outbox, None);
        let visit: &mut Visit<'_> = &mut |entry| match entry {
            Ok(entry) => take(self, &entry).unwrap_or_else(|failed| {
                error = Some(failed);
                Flow::Stop
            }),
            Err(first) => {
                // Of those behind the first nothing is known, not even how many there were.
                [first, None].into_iter().for_each(|at| self.unknown(at));
                Flow::Continue
            }
        };
        outbox.scan_entries(run, user, from, to, visit)?;
        error.map_or(Ok(()), Err)
    }
}
