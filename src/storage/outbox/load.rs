//! Loading: what the machine wants to know from the store.
//!
//! A load pins the table it began with: chunks that a merge takes off the table stay until the load is done.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::chunk::{Body, Entry, entries, part_numbers};
use super::keys::{self, Key};
use super::meta::{Meta, RunInfo};
use super::recent::Messages;
use super::shared::Bodies;
use super::verify::Damage;
use super::{OutboxStore, rows};
use crate::codec::{self, CodecError, KeyMark};
use crate::digest::Digester;
use crate::id::UserId;
use crate::machine::{Found, Holdings, Page, Query};
use crate::ports::{Flow, Store, StoreError};
use crate::record::{Accept, DedupRow, DeviceRow, Epoch, LaneId, LaneRow, LedgerRows, Seq, Slot, UserRow};
use crate::time::Timestamp;

impl OutboxStore {
    /// Answers a query. May be called from several threads, while settling and merging go on.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Damaged`] when a user's row is damaged; [`StoreError::Sealed`] when the key of a
    /// message is missing.
    /// Damaged messages are named in the page instead, as far as they can be known, and the others are loaded; damaged
    /// remembered ids are left out.
    pub fn load(&self, query: &Query) -> Result<Found, StoreError> {
        let table = self.table();
        match query {
            Query::User(user) | Query::Row(user) => {
                let (mut row, is_known) = self.row_of(&table, user)?;
                let held = match query {
                    Query::Row(_) if is_known => None,
                    // Without a row of theirs, only what they have says which lanes there are.
                    Query::Row(_) => match self.known_slots(&table, user) {
                        Some(slots) => {
                            self.put_lost(slots, &mut row);
                            None
                        }
                        None => self.holdings(&table, user, &mut row).map(|_| None)?,
                    },
                    _ => Some(self.holdings(&table, user, &mut row)?),
                };
                Ok(Found::User { row: row.map(Box::new), held, reflects: table.settled })
            }
            Query::Page { user, lane, after, ended, max_messages, max_bytes } => {
                let limits = Limits { messages: *max_messages, bytes: *max_bytes };
                let mut page = PageLoad::new(*after, ended, limits);
                self.page(&table, user, *lane, &mut page)?;
                Ok(Found::Page(page.finish(table.settled)))
            }
            Query::Place { user, lanes, seq } => self.at(&table, user, lanes, *seq).map(Found::Matches),
            Query::Id { user, id, max_messages, max_bytes } => {
                let limits = Limits { messages: *max_messages, bytes: *max_bytes };
                self.find(&table, user, *id, limits).map(Found::Matches)
            }
            Query::Due { until, since, after } => self.due(&table, *until, *since, *after),
            Query::Sender { sender, since, max } => {
                let ids = self.ids(&table, *sender, *since, *max)?;
                Ok(Found::Sender(ids.into()))
            }
        }
    }

    /// A user's row, and whether the store has it. A damaged one is taken for lost.
    fn row_of(&self, table: &Meta, user: &UserId) -> Result<(Option<UserRow>, bool), StoreError> {
        match rows::read(self.dyn_store(), user) {
            // Rather deliver again than never: without its row nothing of the user could settle.
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::warn!(%error, "a user's row is damaged and taken for absent: messages may come again");
                let (user, reason) = (Some(user.clone()), error.to_string());
                self.suspect(Damage { user, reason, ..Damage::default() });
                // What it said of ends is lost: of nothing so far may be said that it was delivered, nor that it was not
                // offered.
                let ledger = LedgerRows { forgotten: table.settled, ..LedgerRows::default() };
                let row = UserRow { ledger, exposed: self.epoch_before(), ..UserRow::default() };
                Ok((self.doubted(Some(row)), false))
            }
            row => {
                let row = row?;
                let is_known = row.is_some();
                Ok((self.doubted(row), is_known))
            }
        }
    }

    /// A user's row when a whole run is missing: of what may have been in it, nothing may be said that follows from its not
    /// being there.
    fn doubted(&self, row: Option<UserRow>) -> Option<UserRow> {
        let doubt = self.inner.missing_through.load(Ordering::Relaxed);
        if doubt == 0 {
            return row;
        }
        let mut row = row.unwrap_or_default();
        row.ledger.forgotten = row.ledger.forgotten.max(Seq::new(doubt));
        Some(row)
    }

    /// The newest epoch in which somebody may have been offered something before this opening.
    fn epoch_before(&self) -> Epoch {
        Epoch(self.inner.epoch.0.saturating_sub(1))
    }

    /// What a user has, judged by their row. A slot that has something is put into a row that does not know it, because it
    /// is not the one that was there once: what nobody knows of would neither be offered nor end.
    fn holdings(
        &self,
        table: &Meta,
        user: &UserId,
        row: &mut Option<UserRow>,
    ) -> Result<Holdings, StoreError> {
        let mut held = Holdings::default();
        let mut read = Messages::new(table.generation);
        let mut lost = BTreeSet::new();
        let mut count = |lane: LaneId, seq, cost| {
            if !row.as_ref().is_some_and(|row| has_ended(row, lane, seq)) {
                held.add(lane, cost);
                let is_lost = |_: &Slot| row.as_ref().is_none_or(|row| row.lane(lane).is_none());
                lost.extend(lane.slot().filter(is_lost));
            }
        };
        for run in runs_of(table, user) {
            let (from, to) = (keys::chunk(run.number, user, LaneId::Critical, Seq::ZERO), end_of(run, user));
            self.scan_entries(run, user, from, to, &mut |entry| {
                match entry {
                    Ok(entry) => {
                        read.add(run.number, &entry);
                        count(entry.lane, entry.seq, u64::from(entry.cost));
                    }
                    Err(first) => {
                        read.give_up();
                        // It waits until a page names it and it ends; how large it was is not known any more.
                        first.into_iter().for_each(|(lane, seq)| count(lane, seq, 0));
                    }
                }
                Flow::Continue
            })?;
        }
        self.inner.recent.keep(user, read);
        self.put_lost(lost, row);
        Ok(held)
    }

    /// Puts slots into a row that does not know them.
    fn put_lost(&self, lost: BTreeSet<Slot>, row: &mut Option<UserRow>) {
        let exposed = self.epoch_before();
        for slot in lost {
            let devices = &mut row.get_or_insert_default().devices;
            devices.push(DeviceRow { exposed, ..DeviceRow::of(slot) });
            devices.sort_unstable_by_key(|row| row.slot);
        }
    }

    fn page(
        &self,
        table: &Meta,
        user: &UserId,
        lane: LaneId,
        page: &mut PageLoad<'_>,
    ) -> Result<(), StoreError> {
        if let Some(read) = self.inner.recent.find(user, table.generation) {
            let _ = read.lane(user, lane).try_for_each(|(run, entry)| match page.entry(self, run, &entry) {
                Flow::Continue => ControlFlow::Continue(()),
                Flow::Stop => ControlFlow::Break(()),
            });
            return page.error.take().map_or(Ok(()), Err);
        }
        let after = page.after;
        for run in runs_of(table, user).filter(|run| run.last > after) {
            let from = keys::chunk(run.number, user, lane, after.plus(1).max(run.first));
            let to = keys::after(keys::chunk(run.number, user, lane, Seq::MAX));
            self.scan_entries(run, user, from, to, &mut |entry| match entry {
                Ok(entry) if entry.lane != lane => Flow::Continue,
                Ok(entry) => page.entry(self, run.number, &entry),
                Err(place) => page.damage(place.filter(|place| place.0 == lane).map(|place| place.1)),
            })?;
            if page.full {
                break;
            }
        }
        page.error.take().map_or(Ok(()), Err)
    }

    /// Hands over a user's entries in one run, from the chunk that `from` lies in, or the place at which a chunk that
    /// may hold some is damaged (none when it starts with another user).
    pub(super) fn scan_entries(
        &self,
        run: &RunInfo,
        user: &UserId,
        from: Vec<u8>,
        to: Vec<u8>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        let store = self.dyn_store();
        let mut visit = |key: Option<&[u8]>, value: Result<&[u8], StoreError>| {
            let first = key.and_then(|key| first_of(key, user));
            match value {
                Ok(value) => visit_chunk(first, value, user, visit),
                Err(error) => {
                    let entry = first;
                    let (run, user) = (Some(run.number), Some(user.clone()));
                    self.suspect(Damage { run, user, entry, reason: error.to_string(), ..Damage::default() });
                    visit(Err(first))
                }
            }
        };
        let start = keys::chunks_of(run.number, run.number).0;
        let before = match store.last(&start, &keys::after(from.clone())) {
            Ok(Some((key, value))) => {
                if visit(Some(&key), Ok(&value)) == Flow::Stop {
                    return Ok(());
                }
                Some(key)
            }
            Ok(None) => None,
            Err(StoreError::Damaged { key: hex, reason }) => {
                let key = rows::named_key(&hex).filter(|key| start < *key && *key <= from);
                if visit(key.as_deref(), Err(StoreError::Damaged { key: hex, reason })) == Flow::Stop {
                    return Ok(());
                }
                key
            }
            Err(error) => return Err(error),
        };
        let next = before.map_or(from, keys::after);
        store.scan(&next, &to, &mut |key, value| visit(Some(key), value))
    }

    /// The newest of a sender's remembered ids, at most so many, no older than `since`.
    fn ids(
        &self,
        table: &Meta,
        sender: u128,
        since: Timestamp,
        max: usize,
    ) -> Result<VecDeque<DedupRow>, StoreError> {
        let mut all = VecDeque::new();
        let digester = Digester::new(table.digest_key);
        // Runs are in the order of places, and so are the ids of a sender in each: what is found in one is older than all that
        // was found before.
        for run in table.runs.iter().rev().filter(|run| run.ids > 0 && run.newest_id >= since) {
            let room = max.saturating_sub(all.len());
            if room == 0 {
                break;
            }
            let mut found = VecDeque::new();
            let start = keys::dedup_of(run.number, run.number).0;
            let from = keys::dedup(run.number, sender, Seq::ZERO);
            let first = match self.dyn_store().last(&start, &from) {
                Ok(Some((key, _))) => key,
                Ok(None) | Err(StoreError::Damaged { .. }) => from,
                Err(error) => return Err(error),
            };
            let to = keys::after(keys::dedup(run.number, sender, Seq::MAX));
            self.dyn_store().scan(&first, &to, &mut |_, value| {
                // A damaged chunk is left out: rather take a message twice than refuse a sender for good.
                let rows =
                    value.ok().into_iter().flat_map(|value| codec::decode_dedup(value, digester)).flatten();
                for row in rows.filter(|row| row.sender == sender && row.at >= since) {
                    if found.len() == room {
                        found.pop_front();
                    }
                    found.push_back(row);
                }
                Flow::Continue
            })?;
            found.append(&mut all);
            all = found;
        }
        Ok(all)
    }
}

/// What takes an entry, or the place at which a damaged chunk starts (none when it starts with another user).
pub(super) type Visit<'a> = dyn FnMut(Result<Entry<'_>, Option<(LaneId, Seq)>>) -> Flow + 'a;

/// Behind a user's last entry in a run.
pub(super) fn end_of(run: &RunInfo, user: &UserId) -> Vec<u8> {
    keys::after(keys::chunk(run.number, user, LaneId::LAST, Seq::MAX))
}

/// The runs that may hold something of a user.
pub(super) fn runs_of<'a>(table: &'a Meta, user: &UserId) -> impl Iterator<Item = &'a RunInfo> {
    let digest = Digester::new(table.digest_key).user(Some(user));
    table.runs.iter().filter(move |run| run.may_hold(digest))
}

/// The first entry of the chunk with this key, if it is the user's.
fn first_of(key: &[u8], user: &UserId) -> Option<(LaneId, Seq)> {
    match Key::decode(key) {
        Some(Key::Chunk { user: first, lane, seq, .. }) if first == *user => Some((lane, seq)),
        _ => None,
    }
}

/// Hands over the user's entries of a chunk. Stops also when the chunk goes on with a later user: entries are sorted,
/// so that nothing of this one lies in the chunks behind it.
fn visit_chunk(mut first: Option<(LaneId, Seq)>, value: &[u8], user: &UserId, visit: &mut Visit<'_>) -> Flow {
    let order = keys::user_order(user);
    let mut users = Vec::new();
    for entry in entries(value, &mut users) {
        let flow = match entry {
            Ok(entry) if entry.user == user.as_bytes() => {
                first = None;
                visit(Ok(entry))
            }
            Ok(entry) if (entry.user.len(), entry.user) > order => Flow::Stop,
            Ok(_) => Flow::Continue,
            Err(_) => visit(Err(first)),
        };
        if flow == Flow::Stop {
            return Flow::Stop;
        }
    }
    Flow::Continue
}

/// Whether the row says that a message has ended.
pub(super) fn has_ended(row: &UserRow, lane: LaneId, seq: Seq) -> bool {
    let ended = |lane: &LaneRow| seq <= lane.cursor || lane.ended.binary_search(&seq).is_ok();
    row.lane(lane).is_some_and(ended)
}

/// The message of an entry of a run, and what it is sealed with; of the bodies that were read, some are kept for those that
/// follow. One whose key is missing is not damaged.
pub(super) fn message_of(
    outbox: &OutboxStore,
    run: u64,
    entry: &Entry<'_>,
    bodies: &mut Bodies,
) -> Result<(Accept, Option<KeyMark>), StoreError> {
    let key = Key::Body { seq: entry.seq, part: 0 }.encode();
    let decode = |bytes: &[u8]| {
        outbox.cipher().open_accept(bytes).map_err(|e| match e {
            CodecError::Sealed(error) => StoreError::Sealed(error),
            other => rows::damaged(&key, &other.to_string()),
        })
    };
    let (accept, sealed) = match entry.body {
        Body::Inline(body) => decode(body)?,
        Body::Parts { bytes, parts } => decode(&body_of(outbox.dyn_store(), entry.seq, bytes, parts)?)?,
        Body::Shared { place, later } => bodies.message_of(outbox, run, entry, later, place)?,
    };
    let message = &accept.message;
    if message.recipient().as_bytes() != entry.user || accept.lane() != entry.lane {
        return Err(rows::damaged(&key, "the message is another one's"));
    }
    Ok((accept, sealed))
}

/// A body that lies in parts.
pub(super) fn body_of(store: &dyn Store, seq: Seq, bytes: u32, parts: u32) -> Result<Vec<u8>, StoreError> {
    let mut body = Vec::new();
    for part in part_numbers(parts) {
        let key = Key::Body { seq, part }.encode();
        body.extend_from_slice(&store.read(&key)?.ok_or_else(|| rows::damaged(&key, "it is missing"))?);
    }
    if u32::try_from(body.len()) == Ok(bytes) {
        return Ok(body);
    }
    Err(rows::damaged(&Key::Body { seq, part: 0 }.encode(), "its parts are of another length"))
}

#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) messages: usize,
    pub(super) bytes: u64,
}

/// A page that is being filled.
struct PageLoad<'a> {
    after: Seq,
    ended: &'a [Seq],
    limits: Limits,
    bytes: u64,
    entries: Vec<(Seq, Arc<Accept>)>,
    damaged: Vec<(Seq, u64)>,
    last: Seq,
    full: bool,
    error: Option<StoreError>,
    bodies: Bodies,
}

impl<'a> PageLoad<'a> {
    fn new(after: Seq, ended: &'a [Seq], limits: Limits) -> Self {
        let (entries, damaged) = (Vec::new(), Vec::new());
        let bodies = Bodies::default();
        Self {
            after,
            ended,
            limits,
            bytes: 0,
            entries,
            damaged,
            last: after,
            full: false,
            error: None,
            bodies,
        }
    }

    fn entry(&mut self, outbox: &OutboxStore, run: u64, entry: &Entry<'_>) -> Flow {
        if entry.seq <= self.after || self.ended.binary_search(&entry.seq).is_ok() {
            return Flow::Continue;
        }
        let cost = u64::from(entry.cost);
        let over =
            self.entries.len() >= self.limits.messages || self.bytes.saturating_add(cost) > self.limits.bytes;
        if over && !self.entries.is_empty() {
            self.full = true;
            return Flow::Stop;
        }
        match message_of(outbox, run, entry, &mut self.bodies) {
            Ok((accept, _)) => {
                self.bytes = self.bytes.saturating_add(cost);
                self.entries.push((entry.seq, Arc::new(accept)));
            }
            Err(StoreError::Damaged { .. }) => self.damaged.push((entry.seq, cost)),
            Err(error) => {
                self.error = Some(error);
                self.full = true;
                return Flow::Stop;
            }
        }
        self.last = entry.seq;
        Flow::Continue
    }

    fn damage(&mut self, first: Option<Seq>) -> Flow {
        let first = first.filter(|seq| *seq > self.after && self.ended.binary_search(seq).is_err());
        // What it cost went with it, and how many there were behind the first.
        self.damaged.extend(first.map(|seq| (seq, 0)));
        if !self.damaged.iter().any(|(seq, _)| *seq == Seq::ZERO) {
            self.damaged.push((Seq::ZERO, 0));
        }
        Flow::Continue
    }

    fn finish(self, settled: Seq) -> Page {
        let more_after = self.full.then_some(self.last);
        Page { entries: self.entries, damaged: self.damaged, more_after, reflects: settled }
    }
}
