//! Merging: neighbouring runs become one without what has ended, and runs in which all has ended go away.
//!
//! Chunks of the new run → sync → table → sync → manifest → wait for readers → delete the old chunks → table. Each
//! step is one operation on the store. Before the table names the new run nothing of it is seen; afterwards the old
//! runs are listed as dropping, so that the next opening goes on with deleting them.

use std::collections::{BTreeMap, VecDeque};

use super::chunk::{Body, Entry, entries};
use super::keys::{self, Key};
use super::load::has_ended;
use super::meta::{Meta, Pin, RunInfo};
use super::rows::Change;
use super::sealed::{resealed, stale_run};
use super::verify::Damage;
use super::writer::{Pending, RunWriter};
use super::{OutboxStore, Progress, rows, shared};
use crate::codec::{self, Named};
use crate::id::UserId;
use crate::ports::{Flow, StoreError};
use crate::record::{DedupRow, Epoch, LaneId, Seq, UserRow};
use crate::time::Timestamp;

/// The most runs before neighbours are merged, unless configured otherwise: a load looks into each of them.
pub const DEFAULT_MAX_RUNS: usize = 16;
/// Runs merged at a time, unless there are more too many.
const FAN_IN: usize = 4;
/// Chunks read at a time from each run.
const READ_AHEAD: usize = 16;

/// Runs on their way into one.
#[derive(Debug)]
pub struct Merge {
    phase: Phase,
    inputs: Vec<RunInfo>,
    since: Timestamp,
    writer: Option<RunWriter>,
    entries: Vec<Cursor<Owned>>,
    ids: Vec<Cursor<(DedupRow, Option<Named>)>>,
    /// Bodies that something live leans on, and the run that has each: a few words for what takes 128 bytes at least.
    shared: BTreeMap<Seq, u64>,
    judge: Judge,
    pending: Pending,
    damage: Vec<Damage>,
    /// Which input is being deleted, and behind which key.
    dropping: usize,
    behind: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Entries,
    Ids,
    Shared,
    SyncRun,
    Publish,
    SyncTable,
    Manifest,
    Wait,
    Delete,
    Forget,
    SyncForget,
    ManifestForget,
    Done,
}

impl Merge {
    /// What there is to do: go on with deleting runs that a crash left half deleted; drop runs in which all has ended;
    /// merge neighbours while there are more than `max_runs`; write a run anew that is not sealed with the current key,
    /// if all its keys are there. Ids accepted before `ids_since` are not kept.
    ///
    /// One merge at a time: step it to its end, or drop it, before the next one is planned.
    #[must_use]
    pub fn plan(outbox: &OutboxStore, max_runs: usize, ids_since: Timestamp) -> Option<Self> {
        let table = outbox.table();
        if !table.dropping.is_empty() {
            return Some(Self::new(Phase::Wait, table.dropping.clone(), ids_since));
        }
        let dead = |run: &&RunInfo| run.live == 0 && (run.ids == 0 || run.newest_id < ids_since);
        // A live count is a hint: the run is read before it goes, and what lives after all is kept.
        let dead = table.runs.iter().find(dead).map(|run| vec![run.clone()]);
        let inputs = dead
            .or_else(|| cheapest_neighbours(&table, max_runs.max(1)))
            .or_else(|| stale_run(&table, outbox.cipher()))?;
        let (first, last) = (inputs.first()?.first, inputs.last()?.last);
        let mut merge = Self::new(Phase::Entries, inputs, ids_since);
        let users = merge.inputs.iter().map(|run| run.users).sum();
        let info = RunInfo::new(outbox.take_run_number(), first, last);
        let swept = merge.inputs.iter().map(|run| run.swept).min().unwrap_or_default();
        let info = RunInfo { swept, ..info };
        let mut writer = RunWriter::new(info, users, outbox, table.last_time);
        for input in &mut merge.inputs {
            input.keys.rewritten = input.keys.is_stale(outbox.cipher());
            if !input.keys.rewritten {
                writer.info.keys.add_all(&input.keys);
            }
        }
        merge.writer = Some(writer);
        let numbers = || merge.inputs.iter().map(|run| run.number);
        merge.entries = numbers().map(|number| Cursor::new(keys::chunks_of(number, number))).collect();
        merge.ids = numbers().map(|number| Cursor::new(keys::dedup_of(number, number))).collect();
        Some(merge)
    }

    fn new(phase: Phase, mut inputs: Vec<RunInfo>, since: Timestamp) -> Self {
        // Only readers pin a run, or the merge would wait for itself.
        inputs.iter_mut().for_each(|run| run.pin = Pin::default());
        Self {
            phase,
            inputs,
            since,
            writer: None,
            entries: Vec::new(),
            ids: Vec::new(),
            shared: BTreeMap::new(),
            judge: Judge::default(),
            pending: Pending::default(),
            damage: Vec::new(),
            dropping: 0,
            behind: Vec::new(),
        }
    }

    /// What could not be read and was therefore not taken over.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Does one operation on the store.
    ///
    /// # Errors
    /// Any [`StoreError`]. Readers see a consistent state; drop the merge and plan anew.
    pub fn step(&mut self, outbox: &OutboxStore, epoch: Epoch) -> Result<Progress, StoreError> {
        loop {
            let next = match self.phase {
                Phase::Entries => self.fill_entries(outbox)?,
                Phase::Ids => self.fill_ids(outbox)?,
                Phase::Shared => self.fill_shared(outbox)?,
                Phase::SyncRun => return self.then(Phase::Publish, outbox.sync()),
                Phase::Publish => {
                    let published = self.publish(outbox, epoch);
                    return self.then(Phase::SyncTable, published);
                }
                Phase::SyncTable => return self.then(Phase::Manifest, outbox.sync_table()),
                Phase::Manifest => return self.then(Phase::Wait, outbox.write_manifest()),
                Phase::Wait if outbox.has_old_readers() => return Ok(Progress::Busy),
                Phase::Wait => Some(Phase::Delete),
                Phase::Delete => self.fill_deletes(outbox)?,
                Phase::Forget => {
                    let forgotten = self.forget(outbox, epoch);
                    return self.then(Phase::SyncForget, forgotten);
                }
                Phase::SyncForget => return self.then(Phase::ManifestForget, outbox.sync_table()),
                Phase::ManifestForget => {
                    self.then(Phase::Done, outbox.write_manifest())?;
                    return Ok(Progress::Done);
                }
                Phase::Done => return Ok(Progress::Done),
            };
            if let Some(next) = next.filter(|_| self.pending.is_empty()) {
                self.phase = next;
                continue;
            }
            outbox.apply(epoch, self.pending.take())?;
            return Ok(Progress::More);
        }
    }

    fn then(&mut self, next: Phase, result: Result<(), StoreError>) -> Result<Progress, StoreError> {
        result?;
        self.phase = next;
        Ok(Progress::More)
    }

    fn fill_entries(&mut self, outbox: &OutboxStore) -> Result<Option<Phase>, StoreError> {
        let Some(writer) = &mut self.writer else { return Ok(Some(Phase::SyncRun)) };
        while !self.pending.is_full() {
            for cursor in &mut self.entries {
                cursor.refill(outbox, parse_entries, &mut self.damage)?;
            }
            let heads =
                self.entries.iter().enumerate().filter_map(|(i, cursor)| Some((cursor.items.front()?, i)));
            let least = heads.min_by(|(a, _), (b, _)| a.entry().place().cmp(&b.entry().place()));
            let least = least.map(|(_, i)| i);
            let least = least.and_then(|i| Some((self.entries.get_mut(i)?, self.inputs.get(i)?)));
            let Some((cursor, run)) = least else {
                writer.finish(&mut self.pending);
                return Ok(Some(Phase::Ids));
            };
            let Some(owned) = cursor.items.pop_front() else { continue };
            if self.judge.has_ended(outbox, &owned.user, owned.lane, owned.seq)? {
                continue;
            }
            if let Some(Body::Shared { place, .. }) = owned.stub {
                self.shared.insert(place, run.number);
            }
            if run.keys.rewritten {
                writer.reseal(outbox, run.number, &owned.entry(), &mut self.pending)?;
            } else {
                writer.entry(&owned.entry(), &mut self.pending);
            }
        }
        Ok(None)
    }

    fn fill_ids(&mut self, outbox: &OutboxStore) -> Result<Option<Phase>, StoreError> {
        let Some(writer) = &mut self.writer else { return Ok(Some(Phase::SyncRun)) };
        while !self.pending.is_full() {
            for cursor in &mut self.ids {
                cursor.refill(outbox, parse_ids, &mut self.damage)?;
            }
            let heads =
                self.ids.iter().enumerate().filter_map(|(i, cursor)| Some((cursor.items.front()?, i)));
            let least = heads.min_by_key(|((row, _), _)| (row.sender, row.seq));
            let Some(cursor) = least.map(|(_, i)| i).and_then(|i| self.ids.get_mut(i)) else {
                writer.finish(&mut self.pending);
                writer.finish_filter(&mut self.pending);
                return Ok(Some(Phase::Shared));
            };
            let Some((row, named)) = cursor.items.pop_front() else { continue };
            if row.at >= self.since {
                writer.id(&row, named.as_ref(), &mut self.pending);
            }
        }
        Ok(None)
    }

    /// Takes over what something live leans on.
    fn fill_shared(&mut self, outbox: &OutboxStore) -> Result<Option<Phase>, StoreError> {
        let Some(writer) = &mut self.writer else { return Ok(Some(Phase::SyncRun)) };
        while !self.pending.is_full() {
            let Some((seq, run)) = self.shared.pop_first() else { return Ok(Some(Phase::SyncRun)) };
            let is_input = |input: &&RunInfo| input.number == run && input.keys.rewritten;
            let taken = match self.inputs.iter().find(is_input) {
                Some(_) => writer.reshare(outbox, run, seq, &mut self.pending),
                None => shared::read(outbox.dyn_store(), run, seq)
                    .map(|body| writer.shared(seq, &body, &mut self.pending)),
            };
            match taken {
                Ok(()) => {}
                // Whoever leans on it is told when they are loaded: what it cost is known.
                Err(error @ StoreError::Damaged { .. }) => {
                    let key = Key::Shared { run, seq, part: 0 }.encode();
                    self.damage.push(Damage::at(&key, &error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn publish(&self, outbox: &OutboxStore, epoch: Epoch) -> Result<(), StoreError> {
        outbox.publish(epoch, |meta| {
            let is_input = |run: &RunInfo| self.inputs.iter().any(|input| input.number == run.number);
            let at = meta.runs.iter().position(is_input).unwrap_or(0);
            let (inputs, mut kept): (Vec<_>, Vec<_>) = meta.runs.drain(..).partition(is_input);
            if let Some(mut run) = self.writer.as_ref().map(|writer| writer.info.clone()) {
                // What settled while the runs were read has been taken off their counts already.
                run.live = match inputs.iter().map(|input| input.live).sum() {
                    0 => run.entries,
                    // What was damaged is counted in the inputs and is not in the run.
                    live => run.entries.min(live),
                };
                if run.entries > 0 || run.ids > 0 {
                    kept.insert(at, run);
                }
            }
            meta.runs = kept;
            for mut input in inputs {
                outbox.retire(core::mem::take(&mut input.pin));
                let planned = self.inputs.iter().find(|planned| planned.number == input.number);
                input.keys.rewritten = planned.is_some_and(|planned| planned.keys.rewritten);
                meta.dropping.push(input);
            }
        })
    }

    fn fill_deletes(&mut self, outbox: &OutboxStore) -> Result<Option<Phase>, StoreError> {
        while let Some(run) = self.inputs.get(self.dropping) {
            if self.pending.is_full() {
                return Ok(None);
            }
            let (from, to) = keys::chunks_of(run.number, run.number);
            let from = from.max(core::mem::take(&mut self.behind));
            let chunks = read_some(outbox, &from, &to)?;
            if let Some((last, _)) = chunks.last() {
                self.behind = keys::after(last.clone());
            }
            let done = chunks.is_empty();
            for (key, value) in chunks {
                if run.stubs > 0 || outbox.cipher().seals() {
                    self.judge.drop_bodies(outbox, run, &value.unwrap_or_default(), &mut self.pending)?;
                }
                self.pending.push(Change::Delete(key));
            }
            if done {
                delete_all(outbox, &keys::dedup_of(run.number, run.number), &mut self.pending)?;
                delete_all(outbox, &keys::filters_of(run.number, run.number), &mut self.pending)?;
                delete_all(outbox, &keys::dues_of(run.number, run.number), &mut self.pending)?;
                delete_all(outbox, &keys::shared_of(run.number, run.number), &mut self.pending)?;
                self.dropping += 1;
            }
        }
        Ok(Some(Phase::Forget))
    }

    fn forget(&self, outbox: &OutboxStore, epoch: Epoch) -> Result<(), StoreError> {
        outbox.publish(epoch, |meta| {
            meta.dropping.retain(|run| !self.inputs.iter().any(|input| input.number == run.number));
        })
    }
}

impl OutboxStore {
    /// Keeps in mind that readers may still use a run that was taken off the table.
    fn retire(&self, pin: Pin) {
        self.inner.retired.lock().push(pin);
    }

    fn has_old_readers(&self) -> bool {
        let mut retired = self.inner.retired.lock();
        retired.retain(|pin| std::sync::Arc::strong_count(&pin.0) > 1);
        !retired.is_empty()
    }
}

/// The neighbours that are cheapest to merge, if there are too many runs: as many as bring the number down to the
/// bound, and at least four, so that each message is copied a logarithmic number of times.
fn cheapest_neighbours(table: &Meta, max_runs: usize) -> Option<Vec<RunInfo>> {
    let excess = table.runs.len().checked_sub(max_runs).filter(|excess| *excess > 0)?;
    let width = excess.saturating_add(1).max(FAN_IN).min(table.runs.len());
    let cost = |runs: &&[RunInfo]| runs.iter().map(|run| run.bytes).sum::<u64>();
    table.runs.windows(width).min_by_key(cost).map(<[RunInfo]>::to_vec)
}

/// An entry on its way from one run to another.
#[derive(Debug)]
struct Owned {
    user: UserId,
    lane: LaneId,
    seq: Seq,
    cost: u32,
    due: Timestamp,
    inline: Vec<u8>,
    stub: Option<Body<'static>>,
}

impl Owned {
    fn entry(&self) -> Entry<'_> {
        let body = self.stub.unwrap_or(Body::Inline(&self.inline));
        let Self { lane, seq, cost, due, .. } = *self;
        Entry { user: self.user.as_bytes(), lane, seq, cost, due, body }
    }
}

type RawChunk = (Vec<u8>, Result<Vec<u8>, StoreError>);

/// Reads one run from its first chunk to its last.
#[derive(Debug)]
struct Cursor<T> {
    next: Vec<u8>,
    end: Vec<u8>,
    chunks: VecDeque<RawChunk>,
    items: VecDeque<T>,
    done: bool,
}

impl<T> Cursor<T> {
    fn new((next, end): keys::Range) -> Self {
        Self { next, end, chunks: VecDeque::new(), items: VecDeque::new(), done: false }
    }

    /// Makes sure that there is an item, unless there are no more.
    fn refill(
        &mut self,
        outbox: &OutboxStore,
        parse: fn(&[u8], &OutboxStore, &mut VecDeque<T>) -> bool,
        damage: &mut Vec<Damage>,
    ) -> Result<(), StoreError> {
        while self.items.is_empty() && !self.done {
            let Some((key, value)) = self.chunks.pop_front() else {
                self.chunks = read_some(outbox, &self.next, &self.end)?.into();
                match self.chunks.back() {
                    Some((key, _)) => self.next = keys::after(key.clone()),
                    None => self.done = true,
                }
                continue;
            };
            match value {
                Ok(value) if parse(&value, outbox, &mut self.items) => {}
                Ok(_) => damage.push(Damage::at(&key, "its rest makes no sense")),
                Err(error) => damage.push(Damage::at(&key, &error.to_string())),
            }
        }
        Ok(())
    }
}

fn read_some(outbox: &OutboxStore, from: &[u8], to: &[u8]) -> Result<Vec<RawChunk>, StoreError> {
    let mut chunks = Vec::with_capacity(READ_AHEAD);
    outbox.inner.store.scan(from, to, &mut |key, value| {
        chunks.push((key.to_vec(), value.map(<[u8]>::to_vec)));
        if chunks.len() < READ_AHEAD { Flow::Continue } else { Flow::Stop }
    })?;
    Ok(chunks)
}

fn delete_all(
    outbox: &OutboxStore,
    (from, to): &keys::Range,
    pending: &mut Pending,
) -> Result<(), StoreError> {
    outbox.inner.store.scan(from, to, &mut |key, _| {
        pending.push(Change::Delete(key.to_vec()));
        Flow::Continue
    })
}

fn parse_entries(value: &[u8], _: &OutboxStore, items: &mut VecDeque<Owned>) -> bool {
    let mut user: Option<UserId> = None;
    let mut users = Vec::new();
    for entry in entries(value, &mut users) {
        let Ok(entry) = entry else { return false };
        let same = user.take().filter(|user| user.as_bytes() == entry.user);
        let Some(id) = same.or_else(|| UserId::new(entry.user).ok()) else { return false };
        user = Some(id.clone());
        let (inline, stub) = match entry.body {
            Body::Inline(body) => (body.to_vec(), None),
            Body::Parts { bytes, parts } => (Vec::new(), Some(Body::Parts { bytes, parts })),
            Body::Shared { place, later } => (Vec::new(), Some(Body::Shared { place, later })),
        };
        let Entry { lane, seq, cost, due, .. } = entry;
        items.push_back(Owned { user: id, lane, seq, cost, due, inline, stub });
    }
    true
}

fn parse_ids(value: &[u8], outbox: &OutboxStore, items: &mut VecDeque<(DedupRow, Option<Named>)>) -> bool {
    let mut rows = codec::decode_dedup(value, outbox.digester());
    while let Some(row) = rows.next() {
        let Ok(row) = row else { return false };
        items.push_back((row, rows.named()));
    }
    true
}

/// Says what has ended, by the rows. Remembers the last user's: entries come sorted by user.
#[derive(Debug, Default)]
pub(super) struct Judge {
    row: Option<(UserId, Option<UserRow>)>,
}

impl Judge {
    pub(super) fn has_ended(
        &mut self,
        outbox: &OutboxStore,
        user: &UserId,
        lane: LaneId,
        seq: Seq,
    ) -> Result<bool, StoreError> {
        if self.row.as_ref().is_none_or(|(known, _)| known != user) {
            let row = match rows::read(outbox.dyn_store(), user) {
                // Rather deliver again than lose.
                Err(StoreError::Damaged { .. }) => None,
                other => other?,
            };
            self.row = Some((user.clone(), row));
        }
        let row = self.row.as_ref().and_then(|(_, row)| row.as_ref());
        Ok(row.is_some_and(|row| has_ended(row, lane, seq)))
    }

    /// Deletes the bodies of what has ended, and those that the run in this one's place has written anew.
    fn drop_bodies(
        &mut self,
        outbox: &OutboxStore,
        run: &RunInfo,
        chunk: &[u8],
        pending: &mut Pending,
    ) -> Result<(), StoreError> {
        let mut users = Vec::new();
        let has_bodies = |entry: &Entry<'_>| !(entry.body.parts().is_empty() && resealed(entry).is_empty());
        for entry in entries(chunk, &mut users).flatten().filter(has_bodies) {
            let Ok(user) = UserId::new(entry.user) else { continue };
            let has_ended = self.has_ended(outbox, &user, entry.lane, entry.seq)?;
            let own = entry.body.parts().filter(|_| has_ended || run.keys.rewritten);
            // A rewriting that was cut short may have left what no run names.
            let other = resealed(&entry).filter(|_| has_ended && outbox.cipher().seals());
            for part in own.chain(other) {
                pending.push(Change::Delete(Key::Body { seq: entry.seq, part }.encode()));
            }
        }
        Ok(())
    }
}
