//! Settling: what a journal segment leaves behind becomes a run.
//!
//! Bodies of large messages → chunks of entries and remembered ids → bodies that entries share → ends → sync → list of dead letters → user rows → table → sync → manifest.
//! Each step is one operation on the store, so a crash between any two can be simulated. Until the table is there,
//! readers see nothing of it (rows excepted, which say what they reflect), and the journal still has everything:
//! settling again, from a replay, ends in the same state.

use super::ends::EndsWriter;
use super::letters::Newly;
use super::meta::RunInfo;
use super::shared::Sharing;
use super::writer::{Pending, RunWriter, may_be_large, write_body};
use super::{OutboxStore, Progress, keys, rows};
use crate::codec::Named;
use crate::id::UserId;
use crate::machine::Survivors;
use crate::ports::StoreError;
use crate::record::{Accept, Counters, DedupRow, Epoch, LaneId, Seq, UserRow};
use crate::time::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Survivors on their way into the store.
#[derive(Debug)]
pub struct Settlement {
    before: Seq,
    counters: Vec<(Counters, Seq)>,
    now: Timestamp,
    entries: Vec<(Seq, Arc<Accept>)>,
    rows: Vec<(UserId, UserRow)>,
    with_letters: Newly,
    without_letters: BTreeSet<UserId>,
    dedup: Vec<DedupRow>,
    died: Vec<Seq>,
    /// By shard: all that was due up to a time was seen to, in the runs of a table.
    swept: Vec<(Timestamp, u64)>,
    ends: Option<EndsWriter>,
    phase: Phase,
    /// How far the phase has come.
    at: usize,
    run: Option<RunWriter>,
    order: Vec<Sorted>,
    sharing: Sharing,
    pending: Pending,
    scratch: Vec<u8>,
    version: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Begin,
    Bodies,
    Entries,
    Ids,
    Shared,
    Ends,
    SyncRun,
    Rows,
    Publish,
    SyncTable,
    Manifest,
    Done,
}

/// An entry's place in the order of keys: an id's length and first bytes, which are all of it for most.
#[derive(Clone, Copy, Debug)]
struct Sorted {
    prefix: u128,
    lane: LaneId,
    index: u32,
}

/// Bytes of an id that a prefix holds beside its length.
const PREFIX_ID_BYTES: usize = 15;

impl Settlement {
    /// What all shards handed over for the records below `before`, in parts. `counters` has one item for each shard,
    /// in their order; `now` becomes the latest engine time the store has seen.
    #[must_use]
    pub fn new(parts: Vec<Survivors>, before: Seq, counters: Vec<(Counters, Seq)>, now: Timestamp) -> Self {
        let mut all = Self {
            before,
            counters,
            now,
            entries: Vec::new(),
            rows: Vec::new(),
            with_letters: Newly::default(),
            without_letters: BTreeSet::new(),
            dedup: Vec::new(),
            died: Vec::new(),
            swept: Vec::new(),
            ends: None,
            phase: Phase::Begin,
            at: 0,
            run: None,
            order: Vec::new(),
            sharing: Sharing::default(),
            pending: Pending::default(),
            scratch: Vec::new(),
            version: 0,
        };
        for mut part in parts {
            all.entries.append(&mut part.entries);
            all.rows.append(&mut part.rows);
            all.without_letters.extend(part.without_letters);
            all.dedup.append(&mut part.dedup);
            all.died.append(&mut part.died);
            all.swept.extend(part.swept);
        }
        all
    }

    /// Does one operation on the store. After [`Progress::Done`], and not before, the journal may recycle what lies
    /// below the place given to [`Settlement::new`].
    ///
    /// # Errors
    /// Any [`StoreError`]. Readers see the state from before; drop the settlement and begin anew, from the machines.
    pub fn step(&mut self, outbox: &OutboxStore, epoch: Epoch) -> Result<Progress, StoreError> {
        loop {
            let filled = match self.phase {
                Phase::Begin => self.begin(outbox),
                Phase::Bodies => self.fill_bodies(outbox),
                Phase::Entries => self.fill_entries(),
                Phase::Ids => self.fill_ids(),
                Phase::Shared => self.fill_shared(),
                Phase::Ends => self.fill_ends(outbox)?,
                Phase::Rows => self.fill_rows(outbox)?,
                Phase::SyncRun => return self.then(Phase::Rows, outbox.sync()),
                Phase::Publish => {
                    let published = self.publish(outbox, epoch);
                    return self.then(Phase::SyncTable, published);
                }
                Phase::SyncTable => {
                    let synced = self.then(Phase::Manifest, outbox.sync_table())?;
                    if let Some(ends) = self.ends.take() {
                        outbox.ends().settled(ends.head);
                    }
                    return Ok(synced);
                }
                Phase::Manifest => {
                    self.then(Phase::Done, outbox.write_manifest().and_then(|()| outbox.forget_losses()))?;
                    return Ok(Progress::Done);
                }
                Phase::Done => return Ok(Progress::Done),
            };
            if let Some(next) = filled {
                // A phase ends with its last batch, so that every batch is in the order of keys.
                if self.pending.is_empty() {
                    (self.phase, self.at) = (next, 0);
                    continue;
                }
            }
            outbox.apply(epoch, self.pending.take())?;
            return Ok(Progress::More);
        }
    }

    fn then(&mut self, next: Phase, result: Result<(), StoreError>) -> Result<Progress, StoreError> {
        result?;
        (self.phase, self.at) = (next, 0);
        Ok(Progress::More)
    }

    /// Leaves out what an earlier settlement has, and sorts the rest.
    fn begin(&mut self, outbox: &OutboxStore) -> Option<Phase> {
        let settled = outbox.settled();
        self.version = outbox.take_version();
        self.entries.retain(|(seq, _)| settled <= *seq && *seq < self.before);
        if self.before <= settled {
            self.dedup.clear();
        }
        self.dedup.sort_unstable_by_key(|row| (row.sender, row.seq));
        if self.entries.is_empty() && self.dedup.is_empty() {
            return Some(Phase::Ends);
        }
        let number = outbox.take_run_number();
        let info = RunInfo::new(number, settled, self.before.prev());
        self.run = Some(RunWriter::new(info, self.entries.len() as u64, outbox, self.now));
        // By place first: bodies are written in that order.
        self.entries.sort_unstable_by_key(|(seq, _)| *seq);
        for (_, accept) in &self.entries {
            let user = accept.message.recipient();
            // Not whoever has none any more by the time of their row.
            if accept.lane() == LaneId::Dead && !self.without_letters.contains(user) {
                self.with_letters.note(user);
            }
        }
        self.sharing = Sharing::among(&self.entries);
        self.order = (0..).zip(&self.entries).map(|(index, (_, accept))| Sorted::of(accept, index)).collect();
        Some(Phase::Bodies)
    }

    fn fill_bodies(&mut self, outbox: &OutboxStore) -> Option<Phase> {
        while let Some(sorted) = self.order.get(self.at) {
            if self.pending.is_full() {
                return None;
            }
            self.at += 1;
            let alone = self.sharing.base(sorted.index).is_none();
            let entry = self.entries.get(sorted.index as usize).filter(|_| alone);
            if let Some((seq, accept)) = entry.filter(|(_, accept)| may_be_large(accept)) {
                write_body(*seq, accept, outbox.cipher(), &mut self.scratch, &mut self.pending);
            }
        }
        if self.pending.is_empty() {
            self.sort_by_key();
        }
        Some(Phase::Entries)
    }

    /// By user and lane. The sort is stable, so that each lane stays in the order of places.
    fn sort_by_key(&mut self) {
        let entries = &self.entries;
        let user = |sorted: &Sorted| {
            let entry = entries.get(sorted.index as usize);
            entry.map(|(_, accept)| keys::user_order(accept.message.recipient()))
        };
        self.order.sort_by(|a, b| {
            let mut order = a.prefix.cmp(&b.prefix);
            if order.is_eq() && a.is_longer() {
                order = user(a).cmp(&user(b));
            }
            order.then(a.lane.cmp(&b.lane))
        });
    }

    fn fill_entries(&mut self) -> Option<Phase> {
        let run = self.run.as_mut()?;
        while let Some(sorted) = self.order.get(self.at) {
            if self.pending.is_full() {
                return None;
            }
            self.at += 1;
            let Some((seq, accept)) = self.entries.get(sorted.index as usize) else { continue };
            let base = self.sharing.base(sorted.index).and_then(|base| self.entries.get(base as usize));
            match base {
                Some((place, base)) => run.leaning(*seq, accept, (*place, base.at), &mut self.pending),
                None => run.accept(*seq, accept, &mut self.pending),
            }
        }
        run.finish(&mut self.pending);
        Some(Phase::Ids)
    }

    fn fill_ids(&mut self) -> Option<Phase> {
        let run = self.run.as_mut()?;
        while let Some(row) = self.dedup.get(self.at) {
            if self.pending.is_full() {
                return None;
            }
            self.at += 1;
            // What is no longer there is not said to whom it was.
            let entry = self.entries.binary_search_by_key(&row.seq, |(seq, _)| *seq);
            let entry = entry.ok().and_then(|at| self.entries.get(at));
            let named = entry.map(|(_, accept)| Named::of(&accept.message));
            run.id(row, named.as_ref(), &mut self.pending);
        }
        run.finish(&mut self.pending);
        run.finish_filter(&mut self.pending);
        Some(Phase::Shared)
    }

    fn fill_shared(&mut self) -> Option<Phase> {
        let run = self.run.as_mut()?;
        while let Some((seq, accept)) = self.entries.get(self.at) {
            if self.pending.is_full() {
                return None;
            }
            let index = u32::try_from(self.at).unwrap_or(u32::MAX);
            self.at += 1;
            if self.sharing.base(index) == Some(index) {
                run.share(*seq, accept, &mut self.pending);
            }
        }
        Some(Phase::Ends)
    }

    fn fill_ends(&mut self, outbox: &OutboxStore) -> Result<Option<Phase>, StoreError> {
        if self.ends.is_none() {
            self.ends = outbox.settle_ends(self.before, self.now, &mut self.pending)?;
        }
        let all = self.ends.as_mut().is_none_or(|ends| ends.fill(&mut self.pending));
        Ok(all.then_some(Phase::SyncRun))
    }

    fn fill_rows(&mut self, outbox: &OutboxStore) -> Result<Option<Phase>, StoreError> {
        if !self.with_letters.fill(&mut self.pending) {
            return Ok(None);
        }
        while let Some((user, row)) = self.rows.get(self.at) {
            if self.pending.is_full() {
                return Ok(None);
            }
            self.at += 1;
            let changes = rows::write(outbox.dyn_store(), user, row, self.version)?;
            let is_written = !changes.is_empty();
            changes.into_iter().for_each(|change| self.pending.push(change));
            if is_written && self.without_letters.contains(user) {
                outbox.unlist_letters(user, &mut self.pending)?;
            }
        }
        Ok(Some(Phase::Publish))
    }

    fn publish(&mut self, outbox: &OutboxStore, epoch: Epoch) -> Result<(), StoreError> {
        let run = self.run.as_ref().map(|run| {
            let mut info = run.info.clone();
            info.live = info.entries;
            info
        });
        let ends = self.ends.as_ref().map(|ends| OutboxStore::ends_row(&ends.head));
        outbox.publish_with(epoch, ends, |meta| {
            let until = self.swept.iter().map(|(until, _)| *until).min();
            let table = self.swept.iter().map(|(_, table)| *table).min();
            // Before the new run is there. Only what all shards have seen to: a list is one of users of all of them.
            if let (Some(until), Some(table), true) = (until, table, self.swept.len() == self.counters.len())
            {
                for run in meta.runs.iter_mut().filter(|run| run.born <= table) {
                    run.swept = run.swept.max(until);
                }
            }
            // With the new run: what ended while it was written is in it, and counts as live no more.
            meta.runs.extend(run);
            meta.bury(&self.died);
            meta.settled = meta.settled.max(self.before);
            meta.counters = core::mem::take(&mut self.counters);
            meta.last_time = meta.last_time.max(self.now);
        })
    }
}

impl Sorted {
    fn of(accept: &Accept, index: u32) -> Self {
        let (len, id) = keys::user_order(accept.message.recipient());
        let mut prefix = [0; 1 + PREFIX_ID_BYTES];
        for (to, from) in prefix.iter_mut().zip([u8::try_from(len).unwrap_or(u8::MAX)].iter().chain(id)) {
            *to = *from;
        }
        Self { prefix: u128::from_be_bytes(prefix), lane: accept.lane(), index }
    }

    /// Whether the id goes on behind the prefix.
    fn is_longer(self) -> bool {
        usize::from(self.prefix.to_be_bytes()[0]) > PREFIX_ID_BYTES
    }
}
