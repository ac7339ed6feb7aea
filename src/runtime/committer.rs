//! The committer: everything that waits becomes one group, one write, one sync.
//!
//! One thread owns the journal. While it syncs, drivers build the next group: group commit with no timer in the way.
//! It never waits for a driver; drivers and the keeper may wait for it.

use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::watch;

pub(super) use self::request::{Request, Share, Whose};
pub(super) use self::shield::Shield;
use super::clock::Stopwatch;
use super::histogram::{self, Histogram};
use super::keeper::Event;
use super::mail::Post;
use super::meters::Meters;
use crate::machine::Input;
use crate::ports::{Group, Journal, JournalError};
use crate::record::{Epoch, Seq};
use crate::storage::outbox::EndLog;

/// The first wait after a failed heal.
const HEAL_FLOOR: Duration = Duration::from_millis(10);
/// The longest.
const HEAL_CAP: Duration = Duration::from_secs(2);
/// How long a full journal waits for a settling that goes well, before new messages are refused. When settling fails,
/// they are refused at once.
const FULL_PATIENCE: Duration = Duration::from_secs(60);

/// What reaches the committer.
#[derive(Debug)]
pub(super) enum Order {
    Commit(Request),
    Recycle(Seq),
    Stop,
}

/// What others may see of the journal, without asking.
#[derive(Debug)]
pub(super) struct JournalGauge {
    pub(super) free: AtomicU32,
    pub(super) segments: AtomicU32,
    pub(super) commits: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) commit_nanos: AtomicU64,
    pub(super) commit_times: Histogram,
    pub(super) group_sizes: Histogram,
    pub(super) failures: AtomicU64,
    pub(super) degraded: AtomicBool,
    /// Settling failed last; written by the keeper.
    pub(super) store_down: AtomicBool,
}

impl Default for JournalGauge {
    fn default() -> Self {
        Self {
            free: AtomicU32::new(0),
            segments: AtomicU32::new(0),
            commits: AtomicU64::new(0),
            records: AtomicU64::new(0),
            commit_nanos: AtomicU64::new(0),
            commit_times: Histogram::new(histogram::TIMES),
            group_sizes: Histogram::new(histogram::SIZES),
            failures: AtomicU64::new(0),
            degraded: AtomicBool::new(false),
            store_down: AtomicBool::new(false),
        }
    }
}

impl JournalGauge {
    fn committed(&self, nanos: u64, records: u64) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(records, Ordering::Relaxed);
        self.commit_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.commit_times.record(nanos);
        self.group_sizes.record(records);
    }
}

pub(super) struct Committer {
    pub(super) journal: Box<dyn Journal>,
    pub(super) epoch: Epoch,
    pub(super) next: Seq,
    pub(super) orders: Receiver<Order>,
    pub(super) shards: Vec<Post>,
    pub(super) keeper: Sender<Event>,
    pub(super) gauge: Arc<JournalGauge>,
    pub(super) meters: Arc<Meters>,
    /// The ends that are kept.
    pub(super) ends: Arc<EndLog>,
    /// Where the newest of them is; whoever waits for it is told by the change.
    pub(super) ended: watch::Sender<Seq>,
    /// How often drivers were told that the journal takes no commits. A commit handed out before its driver knew of the
    /// last time fails, even if the journal takes commits again: an earlier one of that driver may have failed.
    pub(super) generation: u64,
    /// How often segments were let go of.
    pub(super) recycled: u64,
}

/// Whether the thread goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    Stop,
}

/// What waiting for room has brought.
enum Room {
    /// A segment was let go of.
    Perhaps,
    None,
    Stop,
}

impl Committer {
    /// Runs until told to stop, or until nobody can tell it anything any more.
    pub(super) fn run(mut self) {
        let mut waiting = Vec::new();
        let mut buffer = Vec::new();
        while let Ok(order) = self.orders.recv() {
            let mut go = self.take(order, &mut waiting);
            while let (Go::On, Ok(order)) = (go, self.orders.try_recv()) {
                go = self.take(order, &mut waiting);
            }
            while !waiting.is_empty() {
                let group = self.next_group(&mut waiting);
                if self.commit(group, &mut buffer, &mut waiting) == Go::Stop {
                    go = Go::Stop;
                    break;
                }
            }
            if go == Go::Stop {
                self.fail(core::mem::take(&mut waiting), false);
                return;
            }
        }
    }

    fn take(&mut self, order: Order, waiting: &mut Vec<Request>) -> Go {
        match order {
            Order::Commit(request) if request.is_of(self.generation) => waiting.push(request),
            Order::Commit(stale) => self.fail(vec![stale], false),
            Order::Recycle(before) => self.recycle(before),
            Order::Stop => return Go::Stop,
        }
        Go::On
    }

    /// As much of what waits as one group takes.
    fn next_group(&self, waiting: &mut Vec<Request>) -> Vec<Request> {
        let max = self.journal.space().max_group_bytes;
        let mut bytes = 0;
        let fits = waiting.iter().take_while(|request| {
            bytes += request.records.len() as u64;
            bytes <= max
        });
        let n = fits.count().max(1);
        waiting.drain(..n).collect()
    }

    /// Writes and syncs one group, whatever it takes.
    fn commit(&mut self, group: Vec<Request>, buffer: &mut Vec<u8>, waiting: &mut Vec<Request>) -> Go {
        let accepts = group.iter().any(|request| request.accepts);
        loop {
            let watch = Stopwatch::start();
            match self.append(&group, buffer, !accepts) {
                Ok(first) => return self.sync(group, first, watch, waiting),
                Err(JournalError::Full) => match self.wait_for_room(waiting) {
                    Room::Perhaps => {}
                    Room::None => return self.refuse_messages(group, buffer, waiting),
                    Room::Stop => {
                        self.fail(group, false);
                        return Go::Stop;
                    }
                },
                Err(JournalError::TooLarge { .. }) => {
                    self.set_writable(false);
                    self.fail(group, false);
                    self.fail(core::mem::take(waiting), false);
                    self.set_writable(true);
                    return Go::On;
                }
                Err(_) => return self.heal(group, waiting),
            }
        }
    }

    fn append(
        &mut self,
        group: &[Request],
        buffer: &mut Vec<u8>,
        reserve: bool,
    ) -> Result<Seq, JournalError> {
        let count = group.iter().map(|request| request.count).sum();
        let first = self.next;
        let records: &[u8] = match group {
            [only] => &only.records,
            _ => {
                buffer.clear();
                group.iter().for_each(|request| buffer.extend_from_slice(&request.records));
                buffer
            }
        };
        let appended = self.journal.append(self.epoch, Group { first, count, records }, reserve)?;
        self.next = first.plus(u64::from(count));
        if let Some(before) = appended.sealed_before {
            self.publish_space();
            let _ = self.keeper.send(Event::Sealed(before));
        }
        for (shard, input) in group.iter().filter_map(Request::told_written) {
            self.tell(shard, input);
        }
        Ok(first)
    }

    fn sync(&mut self, group: Vec<Request>, first: Seq, watch: Stopwatch, waiting: &mut Vec<Request>) -> Go {
        if self.journal.sync(self.epoch).is_err() {
            return self.heal(group, waiting);
        }
        self.persisted(group, first, watch);
        Go::On
    }

    /// Tells whose it was that a group is durable.
    fn persisted(&self, group: Vec<Request>, mut first: Seq, watch: Stopwatch) {
        let (nanos, records) = (watch.nanos(), group.iter().map(|request| u64::from(request.count)).sum());
        self.gauge.committed(nanos, records);
        self.meters.committed(nanos, records);
        self.note_ends(&group, first);
        for request in group {
            for (shard, input) in request.told_persisted(first) {
                self.tell(shard, input);
            }
            first = first.plus(u64::from(request.count));
        }
    }

    /// Before anybody is told: whoever hears of an end finds it among the ends.
    fn note_ends(&self, group: &[Request], first: Seq) {
        let (mut next, mut ends) = (first, Vec::new());
        for request in group {
            ends.extend(
                request.ends.iter().map(|(before, end)| (next.plus(u64::from(*before)), end.clone())),
            );
            next = next.plus(u64::from(request.count));
        }
        let newest = ends.last().map(|(place, _)| *place);
        self.ends.note(first, ends, next);
        if let Some(newest) = newest {
            self.ended.send_replace(newest);
        }
    }

    /// The journal is full: waits until the keeper has let go of a segment, within bounds.
    fn wait_for_room(&mut self, waiting: &mut Vec<Request>) -> Room {
        let _ = self.keeper.send(Event::Full);
        let watch = Stopwatch::start();
        while watch.nanos() < FULL_PATIENCE.as_nanos() as u64
            && !self.gauge.store_down.load(Ordering::Relaxed)
        {
            match self.orders.recv_timeout(Duration::from_millis(50)) {
                Ok(Order::Recycle(before)) => {
                    self.recycle(before);
                    return Room::Perhaps;
                }
                Ok(order) => {
                    if self.take(order, waiting) == Go::Stop {
                        return Room::Stop;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Room::Stop,
            }
        }
        Room::None
    }

    /// There is no room and none is to be expected: refuses new messages, and lets facts use the reserve.
    fn refuse_messages(
        &mut self,
        group: Vec<Request>,
        buffer: &mut Vec<u8>,
        waiting: &mut Vec<Request>,
    ) -> Go {
        self.set_writable(false);
        // Each shard's commits succeed or fail in order: facts may use the reserve until the first commit with messages.
        let mut blocked = vec![false; self.shards.len()];
        let (facts, mut rest): (Vec<_>, Vec<_>) =
            group.into_iter().chain(waiting.drain(..)).partition(|request| {
                let blocked = request.shard().and_then(|shard| blocked.get_mut(shard));
                let Some(blocked) = blocked else { return false };
                *blocked |= request.accepts;
                !*blocked
            });
        let recycled = self.recycled;
        let go = self.try_facts(facts, buffer, &mut rest);
        self.fail(rest, false);
        match go {
            // There is room since, made while the journal healed; nobody would say so a second time.
            Go::On if self.recycled != recycled => Go::On,
            Go::On => self.wait_until_recycled(),
            Go::Stop => Go::Stop,
        }
    }

    /// Facts without messages, on the reserve; they fail when that is used up too. When a write or a sync fails, so does what
    /// waits behind them.
    fn try_facts(&mut self, mut facts: Vec<Request>, buffer: &mut Vec<u8>, rest: &mut Vec<Request>) -> Go {
        while !facts.is_empty() {
            let group = self.next_group(&mut facts);
            let watch = Stopwatch::start();
            let appended = self.append(&group, buffer, true);
            match appended.and_then(|first| self.journal.sync(self.epoch).map(|()| first)) {
                Ok(first) => self.persisted(group, first, watch),
                // Nothing was written.
                Err(JournalError::Full | JournalError::TooLarge { .. }) => {
                    self.fail(group, false);
                    self.fail(core::mem::take(&mut facts), false);
                }
                // The group may be on disk all the same, and so its places are taken: were they given out again, the journal
                // would name a place behind them as sealed, and what was accepted before that would count as settled.
                Err(_) => {
                    facts.append(rest);
                    return self.heal(group, &mut facts);
                }
            }
        }
        Go::On
    }

    /// Degraded until the keeper has made room: every commit is given back at once.
    fn wait_until_recycled(&mut self) -> Go {
        self.set_writable(false);
        loop {
            match self.orders.recv() {
                Ok(Order::Recycle(before)) => {
                    self.recycle(before);
                    self.set_writable(true);
                    return Go::On;
                }
                Ok(Order::Commit(request)) => self.fail(vec![request], false),
                Ok(Order::Stop) | Err(_) => return Go::Stop,
            }
        }
    }

    /// A write or sync failed: what was in the group is unknown, what waits is not stored, and nothing is taken until
    /// the journal is healed.
    fn heal(&mut self, group: Vec<Request>, waiting: &mut Vec<Request>) -> Go {
        self.gauge.failures.fetch_add(1, Ordering::Relaxed);
        self.next = self.next.plus(group.iter().map(|request| u64::from(request.count)).sum());
        self.set_writable(false);
        self.fail(group, true);
        self.fail(core::mem::take(waiting), false);
        let mut wait = HEAL_FLOOR;
        loop {
            match self.journal.heal(self.epoch) {
                Ok(()) => {
                    self.publish_space();
                    self.set_writable(true);
                    return Go::On;
                }
                Err(JournalError::Fenced { .. }) => return self.stay_fenced(),
                Err(_) => {}
            }
            match self.orders.recv_timeout(wait) {
                Ok(Order::Commit(request)) => self.fail(vec![request], false),
                Ok(Order::Recycle(before)) => self.recycle(before),
                Err(RecvTimeoutError::Timeout) => wait = (wait * 2).min(HEAL_CAP),
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return Go::Stop,
            }
        }
    }

    /// Another owner has the journal: nothing is ever written again.
    fn stay_fenced(&mut self) -> Go {
        tracing::warn!("another engine owns the journal: this one accepts nothing any more");
        while let Ok(order) = self.orders.recv() {
            match order {
                Order::Commit(request) => self.fail(vec![request], false),
                Order::Recycle(_) => {}
                Order::Stop => break,
            }
        }
        Go::Stop
    }

    fn recycle(&mut self, before: Seq) {
        if let Err(error) = self.journal.recycle(self.epoch, before) {
            tracing::warn!(%error, "journal segments could not be recycled");
        }
        self.recycled += 1;
        self.publish_space();
    }

    /// Says how much room there is.
    pub(super) fn publish_space(&self) {
        let space = self.journal.space();
        self.gauge.free.store(space.free, Ordering::Relaxed);
        self.gauge.segments.store(space.segments, Ordering::Relaxed);
    }

    fn set_writable(&mut self, writable: bool) {
        if !writable {
            self.generation += 1;
        }
        if self.gauge.degraded.swap(!writable, Ordering::Relaxed) == writable {
            match writable {
                true => tracing::info!("the journal takes commits again"),
                false => tracing::warn!("the journal takes no commits: sends are refused until it heals"),
            }
        }
        self.shards.iter().for_each(|post| post.note(Input::Writable(writable)));
    }

    fn fail(&self, requests: Vec<Request>, unknown: bool) {
        for (shard, input) in requests.iter().flat_map(|request| request.told_failed(unknown)) {
            self.tell(shard, input);
        }
    }

    fn tell(&self, shard: usize, input: Input) {
        if let Some(post) = self.shards.get(shard) {
            post.note(input);
        }
    }
}

mod request;
mod shield;
#[cfg(test)]
mod tests;
