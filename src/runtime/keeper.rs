//! The keeper: settles sealed journal segments into the store, merges runs, and heals the store.

use core::num::NonZeroU64;
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use tokio::sync::Semaphore;

use super::builder::LOADS;
use super::clock::Stopwatch;
use super::committer::{JournalGauge, Order};
use super::histogram::{self, Histogram};
use super::mail::Post;
use super::meters::Meters;
use crate::machine::{Input, Survivors};
use crate::ports::{Clock, StoreError};
use crate::record::{Counters, Epoch, Seq};
use crate::storage::outbox::{Merge, OutboxStore, Progress, Settlement};
use crate::time::Timestamp;

/// How long the keeper rests when there is nothing to do.
const REST: Duration = Duration::from_millis(200);
/// How long a merge rests between two steps while the store is being read: a step of it takes a processor for a
/// millisecond or two, and the disk.
const GIVE_WAY: Duration = Duration::from_millis(4);
/// How many times the wanted number of runs there may be before merging stops giving way.
const MAX_LAG: usize = 2;
/// The first wait after the store failed.
const HEAL_FLOOR: Duration = Duration::from_millis(50);
/// The longest.
const HEAL_CAP: Duration = Duration::from_secs(5);
/// The longest when the database is damaged: each attempt writes and reads all of it.
const REPAIR_CAP: Duration = Duration::from_secs(300);

/// What reaches the keeper.
#[derive(Debug)]
pub(super) enum Event {
    /// A journal segment was left: all its records lie below this place.
    Sealed(Seq),
    /// The journal has no room.
    Full,
    /// The store could not be read.
    Unreadable(StoreError),
    /// Part of what a shard wants settled.
    Survivors(usize, Box<Survivors>),
    Stop,
}

/// What others may see of the keeper's work.
#[derive(Debug)]
pub(super) struct KeeperGauge {
    pub(super) settlements: AtomicU64,
    pub(super) settle_nanos: AtomicU64,
    pub(super) settle_times: Histogram,
    pub(super) merges: AtomicU64,
    pub(super) failures: AtomicU64,
    /// The engine stops: a settlement is left where it is, as a crash would leave it.
    pub(super) stopping: AtomicBool,
}

/// Tells the machines what the store takes on disk, if there is a bound on that.
pub(super) struct DiskGauge {
    max: Option<NonZeroU64>,
    /// What they were told last.
    told: u64,
}

impl DiskGauge {
    pub(super) fn new(max: Option<NonZeroU64>) -> Self {
        Self { max, told: 0 }
    }

    /// What to tell them, if that changed since.
    fn changed(&mut self, outbox: &OutboxStore) -> Option<u64> {
        self.max?;
        let bytes = outbox.disk_bytes();
        (core::mem::replace(&mut self.told, bytes) != bytes).then_some(bytes)
    }
}

impl Default for KeeperGauge {
    fn default() -> Self {
        Self {
            settlements: AtomicU64::new(0),
            settle_nanos: AtomicU64::new(0),
            settle_times: Histogram::new(histogram::TIMES),
            merges: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }
    }
}

pub(super) struct Keeper {
    pub(super) disk: DiskGauge,
    pub(super) outbox: OutboxStore,
    pub(super) epoch: Epoch,
    pub(super) events: Receiver<Event>,
    pub(super) shards: Vec<Post>,
    pub(super) committer: Sender<Order>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) journal: Arc<JournalGauge>,
    pub(super) gauge: Arc<KeeperGauge>,
    pub(super) meters: Arc<Meters>,
    pub(super) max_runs: usize,
    pub(super) dedup_age: Duration,
    pub(super) sealed: Option<Seq>,
    /// One permit for each load that may run.
    pub(super) loads: Arc<Semaphore>,
}

/// A shard's counters, and the place below which they reflect the log.
type Counted = (Counters, Seq);

/// Why settling was left.
enum Left {
    Stop,
    Store(StoreError),
}

impl Keeper {
    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        let mut wait = HEAL_FLOOR;
        let mut merge: Option<Merge> = None;
        // What keeps the store from being used; until it could be opened again, whether there is something to write or not.
        let mut down = None;
        loop {
            self.weigh();
            match self.events.recv_timeout(self.rest(merge.as_ref())) {
                // What would be read again as it is now is not helped by opening it again.
                Ok(Event::Unreadable(error @ (StoreError::Corrupt { .. } | StoreError::ReadOnly { .. }))) => {
                    down = Some(error);
                }
                Ok(Event::Unreadable(_)) => {}
                Ok(Event::Sealed(before)) => self.sealed = self.sealed.max(Some(before)),
                Ok(Event::Full) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::Survivors(..)) => {}
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let result = match (down.take(), self.wants_to_settle()) {
                (Some(error), _) => Err(Left::Store(error)),
                (None, Some(before)) => self.settle(before),
                (None, None) => self.merge(&mut merge),
            };
            match result {
                Ok(()) => {
                    self.journal.store_down.store(false, Ordering::Relaxed);
                    wait = HEAL_FLOOR;
                }
                Err(Left::Stop) => return,
                Err(Left::Store(error)) => {
                    self.journal.store_down.store(true, Ordering::Relaxed);
                    merge = None;
                    down = match self.heal(&error, wait) {
                        Ok(()) => None,
                        Err(Left::Store(error)) => Some(error),
                        Err(Left::Stop) => return,
                    };
                    let is_damaged = matches!(down, Some(StoreError::Corrupt { .. }));
                    wait = (wait * 2).min(if is_damaged { REPAIR_CAP } else { HEAL_CAP });
                }
            }
        }
    }

    /// Tells the machines what the store takes on disk.
    pub(super) fn weigh(&mut self) {
        if let Some(bytes) = self.disk.changed(&self.outbox) {
            self.shards.iter().for_each(|post| post.note(Input::Disk { bytes }));
        }
    }

    /// Half of the ring is kept free, so that commits never wait for settling.
    fn wants_to_settle(&self) -> Option<Seq> {
        let (free, segments) =
            (self.journal.free.load(Ordering::Relaxed), self.journal.segments.load(Ordering::Relaxed));
        self.sealed.filter(|_| free * 2 <= segments)
    }

    /// How long to wait for an event before the next step.
    fn rest(&self, merge: Option<&Merge>) -> Duration {
        match merge {
            None => REST,
            Some(_) if self.gives_way() => GIVE_WAY,
            Some(_) => Duration::ZERO,
        }
    }

    /// Whether merging waits for somebody who reads. Not once there are so many runs that they suffer from that more.
    fn gives_way(&self) -> bool {
        self.loads.available_permits() < LOADS
            && self.outbox.run_count() <= self.max_runs.saturating_mul(MAX_LAG)
    }

    fn settle(&mut self, before: Seq) -> Result<(), Left> {
        let watch = Stopwatch::start();
        self.shards.iter().for_each(|post| post.note(Input::Settle { before }));
        let (parts, counters) = self.collect(before)?;
        let mut settlement = Settlement::new(parts, before, counters, self.clock.now());
        loop {
            if self.gauge.stopping.load(Ordering::Relaxed) {
                return Err(Left::Stop);
            }
            match settlement.step(&self.outbox, self.epoch) {
                Ok(Progress::More) => {}
                Ok(Progress::Busy) => std::thread::sleep(Duration::from_millis(1)),
                Ok(Progress::Done) => break,
                Err(error) => {
                    self.shards.iter().for_each(|post| post.note(Input::SettleFailed { before }));
                    return Err(Left::Store(error));
                }
            }
        }
        self.shards.iter().for_each(|post| post.note(Input::Settled { before }));
        self.sealed = self.sealed.filter(|sealed| *sealed > before);
        self.gauge.settlements.fetch_add(1, Ordering::Relaxed);
        let nanos = watch.nanos();
        self.gauge.settle_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.gauge.settle_times.record(nanos);
        self.meters.settled(nanos);
        self.committer.send(Order::Recycle(before)).map_err(|_| Left::Stop)
    }

    /// What all shards hand over, in parts, and what each of them has counted.
    fn collect(&mut self, before: Seq) -> Result<(Vec<Survivors>, Vec<Counted>), Left> {
        let mut parts = Vec::new();
        let mut counters = vec![None; self.shards.len()];
        while counters.iter().any(Option::is_none) {
            match self.events.recv() {
                Ok(Event::Survivors(shard, part)) if part.before == before => {
                    if let (Some(slot), true) = (counters.get_mut(shard), part.last) {
                        *slot = part.counters;
                    }
                    parts.push(*part);
                }
                Ok(Event::Sealed(newer)) => self.sealed = self.sealed.max(Some(newer)),
                // A shard may wait for just that, and nothing but opening the store again helps.
                Ok(Event::Unreadable(error @ (StoreError::Corrupt { .. } | StoreError::ReadOnly { .. }))) => {
                    self.shards.iter().for_each(|post| post.note(Input::SettleFailed { before }));
                    return Err(Left::Store(error));
                }
                Ok(Event::Survivors(..) | Event::Full | Event::Unreadable(_)) => {}
                Ok(Event::Stop) | Err(_) => return Err(Left::Stop),
            }
        }
        Ok((parts, counters.into_iter().flatten().collect()))
    }

    /// One step of a merge, if there are too many runs.
    fn merge(&mut self, merge: &mut Option<Merge>) -> Result<(), Left> {
        if merge.is_none() {
            let now = self.clock.now().as_millis();
            let since = Timestamp::from_millis(now.saturating_sub(self.dedup_age.as_millis() as u64));
            *merge = Merge::plan(&self.outbox, self.max_runs, since);
        }
        let Some(open) = merge else { return Ok(()) };
        match open.step(&self.outbox, self.epoch).map_err(Left::Store)? {
            Progress::More => {}
            Progress::Busy => std::thread::sleep(Duration::from_millis(1)),
            Progress::Done => {
                *merge = None;
                self.gauge.merges.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Waits, then reopens the store.
    fn heal(&mut self, error: &StoreError, wait: Duration) -> Result<(), Left> {
        self.gauge.failures.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, "the store failed: what is in the journal is safe; trying again");
        let watch = Stopwatch::start();
        while watch.nanos() < wait.as_nanos() as u64 {
            match self.events.recv_timeout(Duration::from_millis(20)) {
                Ok(Event::Sealed(newer)) => self.sealed = self.sealed.max(Some(newer)),
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Err(Left::Stop),
                _ => {}
            }
        }
        self.outbox.reopen().map_err(|error| {
            tracing::warn!(%error, "the store could not be reopened yet");
            Left::Store(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::SystemClock;
    use super::*;
    use crate::id::StreamId;
    use crate::message::Message;
    use crate::ports::Store;
    use crate::record::Accept;
    use crate::storage::MemoryStore;
    use crate::storage::outbox::Identity;

    /// An outbox with that many runs of one message each.
    fn outbox(runs: u64) -> (OutboxStore, Epoch) {
        let fresh = Identity { stream: StreamId::from_u128(1), digest_key: 2 };
        let (outbox, opened) =
            OutboxStore::open(Arc::new(MemoryStore::new()), None, Epoch(0), fresh).unwrap();
        for run in 1..=runs {
            let message = Message::to("alice", "chat.message", "hello").build().unwrap();
            let accept = Accept::new(message, Timestamp::ZERO);
            let before = Seq::new(run);
            let part = Survivors {
                before,
                entries: vec![(before.prev(), Arc::new(accept))],
                last: true,
                ..Survivors::default()
            };
            let counters = vec![(Counters::default(), before)];
            let mut settlement = Settlement::new(vec![part], before, counters, Timestamp::ZERO);
            while settlement.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
        }
        assert_eq!(outbox.run_count() as u64, runs);
        (outbox, opened.epoch)
    }

    /// A keeper that wants one run, over an outbox that has more, and the merge it would go on with.
    fn keeper(runs: u64) -> (Keeper, Merge) {
        let (outbox, epoch) = outbox(runs);
        let merge = Merge::plan(&outbox, 1, Timestamp::ZERO).unwrap();
        let keeper = Keeper {
            disk: DiskGauge::new(None),
            outbox,
            epoch,
            events: crossbeam_channel::unbounded().1,
            shards: Vec::new(),
            committer: crossbeam_channel::unbounded().0,
            clock: Arc::new(SystemClock::new(Timestamp::ZERO)),
            journal: Arc::default(),
            gauge: Arc::default(),
            meters: Arc::default(),
            max_runs: 1,
            dedup_age: Duration::ZERO,
            sealed: None,
            loads: Arc::new(Semaphore::new(LOADS)),
        };
        (keeper, merge)
    }

    #[test]
    fn a_merge_rests_between_its_steps_while_a_load_runs_and_only_then() {
        let (keeper, merge) = keeper(2);
        assert_eq!(keeper.rest(Some(&merge)), Duration::ZERO);
        let load = keeper.loads.clone().try_acquire_owned().unwrap();
        assert_eq!(keeper.rest(Some(&merge)), GIVE_WAY);
        assert_eq!(keeper.rest(None), REST, "there is nothing to give way with");
        drop(load);
        assert_eq!(keeper.rest(Some(&merge)), Duration::ZERO);
    }

    #[cfg(feature = "testing")]
    #[test]
    fn a_store_that_could_not_be_read_is_reopened_until_it_can_though_nothing_is_to_be_written() {
        let store = crate::testing::FaultyStore::new();
        let fresh = Identity { stream: StreamId::from_u128(1), digest_key: 2 };
        let (outbox, _) = OutboxStore::open(Arc::new(store.clone()), None, Epoch(0), fresh).unwrap();
        let (events, keeper_events) = crossbeam_channel::unbounded();
        let (mut keeper, _) = keeper(2);
        keeper.max_runs = 16;
        (keeper.outbox, keeper.events) = (outbox, keeper_events);
        let gauge = keeper.gauge.clone();
        store.set_disk_full(true);
        assert!(store.sync().is_err());
        let down = StoreError::Corrupt { reason: "of a page".to_owned() };
        events.send(Event::Unreadable(down)).unwrap();
        let thread = std::thread::spawn(|| keeper.run());
        while gauge.failures.load(Ordering::Relaxed) < 3 {
            assert!(!thread.is_finished());
            std::thread::yield_now();
        }
        store.set_disk_full(false);
        while store.sync().is_err() {
            std::thread::yield_now();
        }
        events.send(Event::Stop).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_merge_gives_way_to_nobody_once_there_are_more_than_twice_the_runs() {
        for (runs, rest) in [(2, GIVE_WAY), (3, Duration::ZERO)] {
            let (keeper, merge) = keeper(runs);
            let _load = keeper.loads.clone().try_acquire_owned().unwrap();
            assert_eq!(keeper.rest(Some(&merge)), rest, "{runs} runs");
        }
    }
}
