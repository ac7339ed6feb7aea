//! Ends, over all users, in the order in which they were recorded: for whoever must see every one.
//!
//! An end is a record of the journal, so its place is its position, and the journal is what makes it durable. What has not
//! settled is in memory, as it was recorded or replayed. A settlement writes what it leaves behind as rows, packed, by the
//! place of the last end in each:
//!
//! ```text
//! head    version u8 · which u8 · through u64 · first kept (place u64, number u64) · next number u64 · counted from u64
//! chunk   version u8 · first number u64 · count u32 · newest u64 · (place u64 · record)…
//! ```
//!
//! # Invariants
//! - The head is in one batch with the table, and says up to which place the rows are whole. Rows above it are of a settlement
//!   that did not come to its end; the next one removes them.
//! - What is dropped, by count and by age, is first left out by a head that is durable, and removed by the settlement after
//!   that. So no crash makes a gap that nobody is told of.
//! - Nobody waits for a reader. One that fell behind is told where what is kept begins.

use std::collections::VecDeque;
use std::sync::Arc;

use core::time::Duration;

use parking_lot::Mutex;

use super::OutboxStore;
use super::keys::{self, Key};
use super::rows::Change;
use super::writer::Pending;
use crate::codec::{self, Fields};
use crate::config::{Config, KeepEnds};
use crate::ports::{Flow, StoreError};
use crate::record::{End, EndPosition, Ended, Record, Seq};
use crate::time::Timestamp;

/// The version of head and chunks.
const VERSION: u8 = 1;
/// A chunk is closed when it has so many bytes.
const CHUNK_BYTES: usize = 2000;
/// The most ends that are read at once.
const MAX_READ: usize = 1024;

/// Why no ends could be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndsError {
    /// Ends behind the position that was named are not kept any more, or never were: it was too long ago, or they were not
    /// asked to be kept in between, or are lost to damage. Nothing was changed; go on behind `resume`.
    #[error("{} behind that position are not kept any more: go on where what is kept begins", many(.missed))]
    Lagged {
        /// How many; nothing when nobody has counted them.
        missed: Option<u64>,
        /// The position before the first that is kept.
        resume: EndPosition,
    },
    /// The engine is configured to keep none: see [`Config::keep_ends`]. Nothing was changed.
    #[error("no ends are kept: nothing was read; Config::keep_ends says which are")]
    NotKept,
    /// The store could not be read. Nothing was changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn many(missed: &Option<u64>) -> String {
    missed.map_or_else(|| "ends".to_owned(), |n| format!("{n} ends"))
}

/// Which ends are kept, and how long.
#[derive(Clone, Copy, Debug)]
struct Policy {
    which: KeepEnds,
    count: u64,
    age: Duration,
}

/// Where what is kept begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Start {
    /// Every end at or above it that was to be kept is.
    place: Seq,
    /// The number of the first one.
    number: u64,
}

impl Start {
    fn position(self) -> EndPosition {
        EndPosition { place: self.place.prev(), number: self.number.saturating_sub(1) }
    }
}

/// What the rows hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    which: u8,
    /// Every end below this place is in the rows.
    through: Seq,
    kept: Start,
    /// The number of the first end at or above `through`.
    next: u64,
    /// What lies below was not counted, or by other rules.
    counted_from: Seq,
}

impl Head {
    fn new(which: KeepEnds, settled: Seq, next: u64) -> Self {
        let kept = Start { place: settled, number: next };
        Self { which: which as u8, through: settled, kept, next, counted_from: settled }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, self.which];
        let (through, place) = (self.through.get(), self.kept.place.get());
        for field in [through, place, self.kept.number, self.next, self.counted_from.get()] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let [_, which] = fields.take::<2>().filter(|[version, _]| *version == VERSION)?;
        let through = Seq::new(fields.u64()?);
        let kept = Start { place: Seq::new(fields.u64()?), number: fields.u64()? };
        let head = Self { which, through, kept, next: fields.u64()?, counted_from: Seq::new(fields.u64()?) };
        fields.0.is_empty().then_some(head)
    }
}

/// A chunk of ends, before they are decoded.
struct Chunk<'a> {
    number: u64,
    count: u32,
    newest: Timestamp,
    ends: Fields<'a>,
}

impl<'a> Chunk<'a> {
    fn open(bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        fields.take::<1>().filter(|version| *version == [VERSION])?;
        let (number, count) = (fields.u64()?, fields.u32()?);
        Some(Self { number, count, newest: Timestamp::from_millis(fields.u64()?), ends: fields })
    }

    /// All of them, or nothing when one cannot be read.
    fn read(mut self) -> Option<Vec<Ended>> {
        let mut all = Vec::new();
        for number in (self.number..).take(self.count as usize) {
            let place = Seq::new(self.ends.u64()?);
            let len = self.ends.clone().u32()?;
            let record = self.ends.bytes(usize::try_from(len).ok()?.checked_add(4)?)?;
            let Some(Ok(Record::End(end))) = codec::decode_records(1, record).next() else { return None };
            all.push(Ended { position: EndPosition { place, number }, end });
        }
        self.ends.0.is_empty().then_some(all)
    }
}

/// The ends that are kept. Whoever commits notes them, whoever settles stores them, whoever wants to reads them.
#[derive(Debug, Default)]
pub(crate) struct EndLog {
    /// Nothing while none are kept.
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    policy: Policy,
    /// What the durable table's head says.
    head: Head,
    /// What has not settled, in order.
    tail: VecDeque<Ended>,
    kept: Start,
    /// The number of the next end.
    next: u64,
    /// The place behind the last record that is known to be durable.
    end: Seq,
    /// Nothing has settled, so what is kept begins with the first record that is there.
    unbegun: bool,
}

impl State {
    fn push(&mut self, place: Seq, end: End) {
        let position = EndPosition { place, number: self.next };
        self.next += 1;
        self.tail.push_back(Ended { position, end });
        while self.tail.len() as u64 > self.policy.count {
            if let Some(dropped) = self.tail.pop_front() {
                let EndPosition { place, number } = dropped.position;
                self.kept = Start { place: place.next(), number: number + 1 };
            }
        }
    }

    /// Whether nothing that was to be kept is missing behind a position.
    fn check(&self, after: EndPosition) -> Result<(), EndsError> {
        let is_start = after == EndPosition::START;
        let missing = after.place.next() < self.kept.place || after.place >= self.end;
        if is_start || !missing {
            return Ok(());
        }
        let counted = after.number > 0 && after.place >= self.head.counted_from && after.place < self.end;
        let missed = counted.then(|| self.kept.number.saturating_sub(after.number + 1));
        Err(EndsError::Lagged { missed, resume: self.kept.position() })
    }

    fn unsettled(&self, after: EndPosition, max: usize) -> Vec<Ended> {
        let from = self.tail.partition_point(|ended| ended.position.place <= after.place);
        self.tail.range(from..).take(max).cloned().collect()
    }
}

impl EndLog {
    /// Notes what is durable now, in order: the ends among the records of a range of places.
    pub(crate) fn note(&self, first: Seq, ends: impl IntoIterator<Item = (Seq, End)>, next: Seq) {
        if let Some(state) = &mut *self.state.lock() {
            if core::mem::take(&mut state.unbegun) {
                state.kept.place = first;
                state.head.counted_from = first;
            }
            for (place, end) in ends {
                // What a journal has whose places go back would lead readers round in circles.
                let is_behind = state.tail.back().is_none_or(|last| last.position.place < place);
                if is_behind && place >= state.head.through && state.policy.which.keeps(&end) {
                    state.push(place, end);
                }
            }
            state.end = state.end.max(next);
        }
    }

    /// A settlement is durable.
    pub(super) fn settled(&self, head: Head) {
        if let Some(state) = &mut *self.state.lock() {
            let settled = state.tail.partition_point(|ended| ended.position.place < head.through);
            state.tail.drain(..settled);
            state.head = head;
            if state.kept.place < head.kept.place {
                state.kept = head.kept;
            }
        }
    }
}

/// The ends of one settlement, on their way into rows.
#[derive(Debug)]
pub(super) struct EndsWriter {
    ends: VecDeque<Ended>,
    pub(super) head: Head,
}

impl EndsWriter {
    /// Adds changes until there is enough for a batch; `true` when all were added.
    pub(super) fn fill(&mut self, pending: &mut Pending) -> bool {
        while !self.ends.is_empty() {
            if pending.is_full() {
                return false;
            }
            let (mut bytes, mut count, mut newest) = (Vec::new(), 0_u32, Timestamp::ZERO);
            let number = self.ends.front().map_or(0, |ended| ended.position.number);
            let mut last = Seq::ZERO;
            while bytes.len() < CHUNK_BYTES
                && let Some(Ended { position, end }) = self.ends.pop_front()
            {
                last = position.place;
                newest = newest.max(end.at);
                count += 1;
                bytes.extend_from_slice(&last.get().to_le_bytes());
                codec::encode_record(&Record::End(end), &mut bytes);
            }
            let head = [&[VERSION][..], &number.to_le_bytes(), &count.to_le_bytes()].concat();
            let value = [&head[..], &newest.as_millis().to_le_bytes(), &bytes].concat();
            pending.put(Key::Ends { last }.encode(), value);
        }
        true
    }
}

impl OutboxStore {
    /// Keeps ends as the configuration says, beginning with what has settled. To be called before the journal is replayed,
    /// and then told of every record of it.
    ///
    /// # Errors
    /// Any [`StoreError`] but damage: then what was kept is gone, and whoever reads it is told so.
    pub fn keep_ends(&self, config: &Config) -> Result<(), StoreError> {
        let which = config.keep_ends;
        if which == KeepEnds::Nothing {
            *self.inner.ends.state.lock() = None;
            return Ok(());
        }
        let (settled, found) = (self.settled(), self.read_ends_head()?);
        let head = match found {
            Some(head) if head.through >= settled && head.which == which as u8 => head,
            // Something in between was not kept, or not by these rules.
            Some(head) => Head::new(which, settled, head.next),
            None => Head::new(which, settled, 1),
        };
        let policy = Policy { which, count: config.max_ends.get(), age: config.ends_age };
        let unbegun = found.is_none() && settled == Seq::ZERO;
        let (tail, kept, next) = (VecDeque::new(), head.kept, head.next);
        let state = State { policy, head, tail, kept, next, end: settled, unbegun };
        *self.inner.ends.state.lock() = Some(state);
        Ok(())
    }

    fn read_ends_head(&self) -> Result<Option<Head>, StoreError> {
        let found = match self.dyn_store().read(&Key::EndsHead.encode()) {
            Err(StoreError::Damaged { .. }) => None,
            other => other?,
        };
        Ok(found.and_then(|bytes| Head::decode(&bytes)))
    }

    /// The store takes changes again. A settlement that failed may be durable all the same, head, rows and all: what it has
    /// written must not be taken for a leftover.
    pub(super) fn refresh_ends(&self) -> Result<(), StoreError> {
        let durable = self.inner.ends.state.lock().as_ref().map(|state| state.head.through);
        if let (Some(through), Some(head)) = (durable, self.read_ends_head()?)
            && head.through > through
        {
            self.inner.ends.settled(head);
        }
        Ok(())
    }

    /// Notes a record of the journal that is durable, live or in a replay, in order.
    pub fn note_record(&self, seq: Seq, record: &Record) {
        let end = match record {
            Record::End(end) => Some((seq, end.clone())),
            _ => None,
        };
        self.inner.ends.note(seq, end, seq.next());
    }

    /// The ends behind a position, in order: at most `max`, and at most 1,024. None when there are none yet.
    ///
    /// # Errors
    /// [`EndsError`]. Nothing was changed.
    pub fn read_ends(&self, after: EndPosition, max: usize) -> Result<Vec<Ended>, EndsError> {
        let max = max.clamp(1, MAX_READ);
        let (through, kept) = {
            let state = self.inner.ends.state.lock();
            let state = state.as_ref().ok_or(EndsError::NotKept)?;
            state.check(after)?;
            if after.place.next().max(state.kept.place) >= state.head.through {
                return Ok(state.unsettled(after, max));
            }
            (state.head.through, state.kept)
        };
        let from = after.place.next().max(kept.place);
        let read = self.read_rows(from, through, max)?;
        let state = self.inner.ends.state.lock();
        let state = state.as_ref().ok_or(EndsError::NotKept)?;
        // What is dropped meanwhile may have been missing already.
        let is_whole = state.kept.place <= from || after == EndPosition::START;
        if !is_whole {
            state.check(after)?;
        }
        match read {
            Rows::Ends(ends) if ends.is_empty() => {
                let behind = EndPosition { place: through.prev(), number: 0 };
                Ok(state.unsettled(behind.max(after), max))
            }
            Rows::Ends(ends) => Ok(ends),
            Rows::Damaged(resume) => Err(EndsError::Lagged { missed: None, resume }),
        }
    }

    fn read_rows(&self, from: Seq, through: Seq, max: usize) -> Result<Rows, StoreError> {
        let (mut ends, mut damaged) = (Vec::new(), None);
        let (first, to) = keys::ends_between(from, through);
        self.dyn_store().scan(&first, &to, &mut |key, value| {
            let chunk = value.ok().and_then(Chunk::open).and_then(Chunk::read);
            let Some(chunk) = chunk else {
                if ends.is_empty()
                    && let Some(Key::Ends { last }) = Key::decode(key)
                {
                    damaged = Some(EndPosition { place: last, number: 0 });
                }
                return Flow::Stop;
            };
            let wanted = |ended: &Ended| from <= ended.position.place && ended.position.place < through;
            let room = max.saturating_sub(ends.len());
            ends.extend(chunk.into_iter().filter(wanted).take(room));
            if ends.len() < max { Flow::Continue } else { Flow::Stop }
        })?;
        Ok(damaged.map_or(Rows::Ends(ends), Rows::Damaged))
    }

    /// The log of ends, for whoever commits.
    pub(crate) fn ends(&self) -> Arc<EndLog> {
        Arc::clone(&self.inner.ends)
    }

    /// What a settlement has to write of ends; nothing when none are kept, or an earlier one has written it.
    pub(super) fn settle_ends(
        &self,
        before: Seq,
        now: Timestamp,
        pending: &mut Pending,
    ) -> Result<Option<EndsWriter>, StoreError> {
        let (policy, head, kept, newest, mut ends) = {
            let state = self.inner.ends.state.lock();
            let Some(state) = state.as_ref().filter(|state| state.head.through < before) else {
                return Ok(None);
            };
            let n = state.tail.partition_point(|ended| ended.position.place < before);
            let ends: VecDeque<_> = state.tail.range(..n).cloned().collect();
            (state.policy, state.head, state.kept, state.next, ends)
        };
        // What the durable head leaves out, and what a settlement left behind that came to no end.
        for (from, to) in [keys::ends_below(head.kept.place), keys::ends_from(head.through)] {
            self.dyn_store().scan(&from, &to, &mut |key, _| {
                pending.push(Change::Delete(key.to_vec()));
                Flow::Continue
            })?;
        }
        // So many came meanwhile that of what is to be settled nothing is kept: then the rows are whole up to what is.
        let through = before.max(kept.place);
        let next = match ends.back().filter(|_| through == before) {
            Some(last) => last.position.number + 1,
            None => head.next.max(kept.number),
        };
        let oldest = Timestamp::from_millis(now.as_millis().saturating_sub(policy.age.as_millis() as u64));
        let lowest = newest.saturating_sub(policy.count);
        let mut kept = self.start_of_rows(head, kept, lowest, oldest)?;
        while let Some(first) =
            ends.front().filter(|first| first.position.number < lowest || first.end.at < oldest)
        {
            kept = Start { place: first.position.place.next(), number: first.position.number + 1 };
            ends.pop_front();
        }
        Ok(Some(EndsWriter { ends, head: Head { through, kept, next, ..head } }))
    }

    /// Where the rows that stay begin.
    fn start_of_rows(
        &self,
        head: Head,
        mut kept: Start,
        lowest: u64,
        oldest: Timestamp,
    ) -> Result<Start, StoreError> {
        if kept.place >= head.through {
            return Ok(kept);
        }
        let (from, to) = keys::ends_between(kept.place, head.through);
        self.dyn_store().scan(&from, &to, &mut |key, value| {
            let Some(Key::Ends { last }) = Key::decode(key) else { return Flow::Continue };
            let Some(chunk) = value.ok().and_then(Chunk::open) else { return Flow::Continue };
            let behind = chunk.number.saturating_add(u64::from(chunk.count));
            if behind > lowest && chunk.newest >= oldest {
                return Flow::Stop;
            }
            kept = Start { place: last.next(), number: behind };
            Flow::Continue
        })?;
        Ok(kept)
    }

    /// The head's row, for the batch that has the table.
    pub(super) fn ends_row(head: &Head) -> (Vec<u8>, Vec<u8>) {
        (Key::EndsHead.encode(), head.encode())
    }
}

/// What a scan has found.
enum Rows {
    Ends(Vec<Ended>),
    /// The first row behind the position cannot be read; what comes behind it can.
    Damaged(EndPosition),
}
