//! Where an engine settles, one store operation at a time.
//!
//! A plain model of the outbox store: batches of rows that a sync makes durable and a crash cuts to a prefix.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::random::Random;
use crate::id::UserId;
use crate::machine::{Found, Page, Query, Survivors};
use crate::record::{Accept, Counters, DedupRow, Epoch, Seq, UserRow};
use crate::time::Timestamp;

/// What an opening found.
#[derive(Clone, Debug, Default)]
pub(super) struct Opening {
    pub(super) epoch: Epoch,
    pub(super) settled: Seq,
    pub(super) counters: Vec<(Counters, Seq)>,
    pub(super) last_time: Timestamp,
    pub(super) empty: bool,
}

#[derive(Clone, Debug, Default)]
struct Table {
    settled: Seq,
    counters: Vec<(Counters, Seq)>,
    last_time: Timestamp,
    entries: BTreeMap<Seq, Arc<Accept>>,
    rows: HashMap<UserId, UserRow>,
    dedup: Vec<DedupRow>,
}

#[derive(Clone, Debug)]
enum Change {
    Entries(Vec<(Seq, Arc<Accept>)>),
    Rows(Vec<(UserId, UserRow)>),
    Dedup(Vec<DedupRow>),
    Table(Seq, Vec<(Counters, Seq)>, Timestamp),
    Drop(Vec<Seq>),
}

impl Table {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Entries(entries) => self.entries.extend(entries.iter().cloned()),
            Change::Rows(rows) => self.rows.extend(rows.iter().cloned()),
            Change::Dedup(rows) => {
                self.dedup.retain(|row| rows.iter().all(|new| new.seq != row.seq));
                self.dedup.extend(rows);
            }
            Change::Table(settled, counters, now) => {
                (self.settled, self.last_time) = (*settled, *now);
                self.counters.clone_from(counters);
            }
            Change::Drop(ended) => ended.iter().for_each(|seq| drop(self.entries.remove(seq))),
        }
    }
}

/// An engine's store.
#[derive(Debug, Default)]
pub(super) struct Home {
    durable: Table,
    visible: Table,
    unsynced: Vec<Change>,
    epoch: Epoch,
    todo: VecDeque<Change>,
    /// Fails this many operations from now on (after so many that succeed).
    fault: Option<(u64, bool)>,
    read_only: bool,
}

impl Home {
    pub(super) fn open(&mut self, above: Epoch) -> Option<Opening> {
        if self.operation().is_err() {
            return None;
        }
        self.sync();
        self.epoch = Epoch(self.epoch.max(above).0 + 1);
        let table = &self.durable;
        Some(Opening {
            epoch: self.epoch,
            settled: table.settled,
            counters: table.counters.clone(),
            last_time: table.last_time,
            empty: table.entries.is_empty() && table.rows.is_empty() && table.dedup.is_empty(),
        })
    }

    pub(super) fn settled(&self) -> Seq {
        self.durable.settled
    }

    fn operation(&mut self) -> Result<(), ()> {
        if let Some((left, lasting)) = &mut self.fault {
            if *left == 0 {
                self.read_only = true;
                if !*lasting {
                    self.fault = None;
                }
            } else {
                *left -= 1;
            }
        }
        if self.read_only { Err(()) } else { Ok(()) }
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            self.durable.apply(&change);
        }
    }

    /// Begins to store what settles.
    pub(super) fn begin(&mut self, before: Seq, now: Timestamp, counters: Vec<(Counters, Seq)>, parts: Vec<Survivors>) {
        self.todo.clear();
        for part in parts {
            self.todo.extend(part.entries.chunks(4).map(|chunk| Change::Entries(chunk.to_vec())));
            self.todo.extend(part.dedup.chunks(8).map(|chunk| Change::Dedup(chunk.to_vec())));
            self.todo.extend(part.rows.chunks(4).map(|chunk| Change::Rows(chunk.to_vec())));
        }
        self.todo.push_back(Change::Table(before, counters, now));
    }

    /// One operation of settling; `true` when all is durable.
    pub(super) fn step(&mut self) -> Result<bool, ()> {
        self.operation()?;
        match self.todo.pop_front() {
            Some(change) => {
                self.visible.apply(&change);
                self.unsynced.push(change);
                Ok(false)
            }
            None => {
                self.sync();
                Ok(true)
            }
        }
    }

    /// Removes entries that have ended, as a merge does.
    pub(super) fn merge(&mut self) {
        if self.operation().is_ok() {
            let ended = self.visible.entries.iter().filter(|(seq, accept)| self.has_ended(**seq, accept));
            let ended: Vec<_> = ended.map(|(seq, _)| *seq).take(4).collect();
            let change = Change::Drop(ended);
            self.visible.apply(&change);
            self.unsynced.push(change);
        }
    }

    fn has_ended(&self, seq: Seq, accept: &Accept) -> bool {
        let row = self.visible.rows.get(accept.message.recipient());
        let lane = row.map(|row| &row.lanes[accept.message.priority().index()]);
        lane.is_some_and(|lane| seq <= lane.cursor || lane.ended.contains(&seq))
    }

    fn of_user(&self, user: &UserId) -> impl Iterator<Item = (Seq, &Arc<Accept>)> {
        let settled = self.durable.settled;
        let theirs = self.visible.entries.range(..settled).map(|(seq, accept)| (*seq, accept));
        theirs.filter(move |(seq, accept)| accept.message.recipient() == user && !self.has_ended(*seq, accept))
    }

    pub(super) fn load(&self, query: &Query) -> Found {
        let reflects = self.durable.settled;
        match query {
            Query::User(user) => {
                let live = self.of_user(user).fold((0, 0), |(messages, bytes), (_, accept)| {
                    (messages + 1, bytes + accept.message.cost())
                });
                Found::User { row: self.visible.rows.get(user).cloned(), live, reflects }
            }
            Query::Page { user, lane, after, ended, max_messages, max_bytes } => {
                let mut page = Page { entries: Vec::new(), damaged: Vec::new(), more_after: None, reflects };
                let mut bytes = 0;
                for (seq, accept) in self.of_user(user) {
                    let cost = accept.message.cost();
                    if seq <= *after || accept.message.priority() != *lane || ended.contains(&seq) {
                        continue;
                    }
                    let full = page.entries.len() >= *max_messages || bytes + cost > *max_bytes;
                    if let Some((last, _)) = page.entries.last().filter(|_| full) {
                        page.more_after = Some(*last);
                        break;
                    }
                    bytes += cost;
                    page.entries.push((seq, accept.clone()));
                }
                Found::Page(page)
            }
            Query::Sender { sender, since } => {
                let theirs = |row: &&DedupRow| row.sender == *sender && row.at >= *since;
                Found::Sender(self.visible.dedup.iter().filter(theirs).copied().collect())
            }
        }
    }

    /// The process ends: of what no sync covered, the oldest part survives.
    pub(super) fn crash(&mut self, random: &mut Random) {
        self.todo.clear();
        self.read_only = false;
        let kept = random.index(self.unsynced.len() + 1);
        self.unsynced.truncate(kept);
        self.sync();
        self.visible = self.durable.clone();
    }

    pub(super) fn fail(&mut self, after: u64, lasting: bool) {
        self.fault = Some((after, lasting));
    }

    pub(super) fn relieve(&mut self) {
        self.fault = None;
    }

    /// Whether the store takes changes again.
    pub(super) fn reopen(&mut self, random: &mut Random) -> bool {
        if self.read_only && !matches!(self.fault, Some((0, _))) {
            self.crash(random);
        }
        !self.read_only
    }
}
