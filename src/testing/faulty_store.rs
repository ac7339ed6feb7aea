//! A store that fails and crashes on demand, the same way every time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::ports::{Batch, Row, Store, StoreError, Visit};
use crate::record::Epoch;
use crate::storage::limits;
use crate::storage::memory::{Rows, check_epoch, next_epoch};

/// The calls that can be scripted to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOp {
    /// [`Store::apply`].
    Apply,
    /// [`Store::sync`], and the sync inside [`Store::take_epoch`].
    Sync,
}

/// How long a scripted fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// For one call; `reopen` heals.
    Once,
    /// From that call on, until [`FaultyStore::heal`]; `reopen` fails meanwhile.
    Forever,
}

/// How many of the batches that no sync covered a crash leaves: always the oldest ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// None of them.
    None,
    /// All of them.
    All,
    /// The first so many, or all when there are fewer.
    First(usize),
    /// A number drawn from this seed, every one equally likely.
    Seeded(u64),
}

impl Survivors {
    fn of(self, unsynced: usize) -> usize {
        match self {
            Self::None => 0,
            Self::All => unsynced,
            Self::First(n) => n.min(unsynced),
            Self::Seeded(seed) => {
                let choices = u64::try_from(unsynced).unwrap_or(u64::MAX).saturating_add(1);
                usize::try_from(split_mix(seed) % choices).unwrap_or(unsynced)
            }
        }
    }
}

/// A store in memory that keeps synced batches apart from unsynced ones, and fails as scripted.
///
/// Clones are handles to the same store. A failed `apply` leaves no trace; a failed `sync` makes nothing durable.
/// After either the store is read-only until `reopen`, as the port asks. Reads go on throughout.
#[derive(Clone, Debug, Default)]
pub struct FaultyStore {
    state: Arc<RwLock<State>>,
    reads: Arc<Reads>,
}

/// Reads of all kinds, and the one from which on they panic.
#[derive(Debug, Default)]
struct Reads {
    count: AtomicU64,
    /// The number of the first that panics; 0 is none.
    broken_at: AtomicU64,
}

impl Reads {
    fn next(&self) {
        let n = self.count.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let at = self.broken_at.load(Ordering::Relaxed);
        assert!(at == 0 || n < at, "scripted panic of a read");
    }
}

#[derive(Debug, Default)]
struct State {
    /// What a crash cannot take.
    durable: Rows,
    /// Batches applied since, oldest first.
    unsynced: Vec<Batch>,
    /// What reads see: `durable` and all of `unsynced`.
    visible: Rows,
    /// Durable from the moment it is given.
    epoch: Epoch,
    applies: Calls,
    syncs: Calls,
    disk_full: bool,
    failed: Option<&'static str>,
    on_reopen: Option<Survivors>,
}

/// The calls of one kind, and the faults to come.
#[derive(Debug, Default)]
struct Calls {
    count: u64,
    script: Vec<(u64, Fault)>,
    broken: bool,
}

impl Calls {
    /// Counts a call and says whether it fails.
    fn next_fails(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
        for (at, fault) in &self.script {
            if *at == self.count {
                self.broken |= *fault == Fault::Forever;
                return true;
            }
        }
        self.broken
    }
}

impl FaultyStore {
    /// An empty store with nothing scripted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Scripts call number `at` of `op` to fail. The first call ever made is number 1; what is past is not changed.
    pub fn fail_at(&self, op: StoreOp, at: u64, fault: Fault) {
        self.state.write().calls(op).script.push((at, fault));
    }

    /// Scripts the very next call of `op` to fail.
    pub fn fail_next(&self, op: StoreOp, fault: Fault) {
        let mut state = self.state.write();
        let calls = state.calls(op);
        let at = calls.count.saturating_add(1);
        calls.script.push((at, fault));
    }

    /// Fills or frees the disk. While it is full every apply, sync and reopen fails.
    pub fn set_disk_full(&self, full: bool) {
        self.state.write().disk_full = full;
    }

    /// Ends every fault, those to come included, and frees the disk. The store stays read-only until `reopen`.
    pub fn heal(&self) {
        let mut state = self.state.write();
        state.disk_full = false;
        for op in [StoreOp::Apply, StoreOp::Sync] {
            let calls = state.calls(op);
            calls.script.clear();
            calls.broken = false;
        }
    }

    /// What the next `reopen` after a failure leaves of the unsynced batches (default: all of them).
    pub fn set_reopen_survivors(&self, survivors: Survivors) {
        self.state.write().on_reopen = Some(survivors);
    }

    /// Lets read number `n` from now on panic, and all that follow, as a store does whose data is beyond repair: `read`,
    /// `scan` and `last` alike. Nothing heals that but [`Store::set_aside`].
    pub fn break_reads_at(&self, n: u64) {
        let at = self.reads.count.load(Ordering::Relaxed).saturating_add(n);
        self.reads.broken_at.store(at, Ordering::Relaxed);
    }

    /// How many reads there were.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.count.load(Ordering::Relaxed)
    }

    /// Crashes and restarts: synced batches stay, and of the unsynced ones a prefix. Returns its length.
    ///
    /// The epoch stays, so whoever held one before the crash and is not the newest owner stays fenced. Scripted
    /// faults and counts stay too; a sticky failure is over, as it is when a process ends.
    pub fn crash(&self, survivors: Survivors) -> usize {
        let mut state = self.state.write();
        state.failed = None;
        state.keep(survivors)
    }

    /// How many applies were called, failed ones included.
    #[must_use]
    pub fn applies(&self) -> u64 {
        self.state.read().applies.count
    }

    /// How many syncs were called, failed ones and those of `take_epoch` included.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.state.read().syncs.count
    }

    /// How many applied batches no sync has covered.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.state.read().unsynced.len()
    }
}

impl State {
    fn calls(&mut self, op: StoreOp) -> &mut Calls {
        match op {
            StoreOp::Apply => &mut self.applies,
            StoreOp::Sync => &mut self.syncs,
        }
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        self.failed.map_or(Ok(()), |reason| Err(read_only(reason)))
    }

    /// Counts a call; when it fails, the store is read-only from now on.
    fn attempt(&mut self, op: StoreOp) -> Result<(), StoreError> {
        let fails = self.calls(op).next_fails();
        let reason = match op {
            _ if self.disk_full => "disk full",
            StoreOp::Apply if fails => "scripted failure of apply",
            StoreOp::Sync if fails => "scripted failure of sync",
            _ => return Ok(()),
        };
        self.failed = Some(reason);
        Err(read_only(reason))
    }

    fn make_durable(&mut self) {
        for batch in self.unsynced.drain(..) {
            self.durable.apply(batch);
        }
    }

    fn keep(&mut self, survivors: Survivors) -> usize {
        let kept = survivors.of(self.unsynced.len());
        self.unsynced.truncate(kept);
        self.make_durable();
        self.visible = self.durable.clone();
        kept
    }
}

impl Store for FaultyStore {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.reads.next();
        Ok(self.state.read_recursive().visible.read(key))
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.reads.next();
        self.state.read_recursive().visible.scan(from, to, visit);
        Ok(())
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, StoreError> {
        self.reads.next();
        Ok(self.state.read_recursive().visible.last(from, to))
    }

    fn take_epoch(&self, above: Epoch) -> Result<Epoch, StoreError> {
        let mut state = self.state.write();
        state.check_writable()?;
        let next = next_epoch(state.epoch, above)?;
        state.attempt(StoreOp::Sync)?;
        // As in a log: what is before the epoch is durable with it.
        state.make_durable();
        state.epoch = next;
        Ok(next)
    }

    fn apply(&self, epoch: Epoch, batch: Batch) -> Result<(), StoreError> {
        limits::check(&batch)?;
        let mut state = self.state.write();
        state.check_writable()?;
        check_epoch(epoch, state.epoch)?;
        state.attempt(StoreOp::Apply)?;
        state.visible.apply(batch.clone());
        state.unsynced.push(batch);
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut state = self.state.write();
        state.check_writable()?;
        state.attempt(StoreOp::Sync)?;
        state.make_durable();
        Ok(())
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let mut state = self.state.write();
        if state.disk_full {
            return Err(read_only("disk full"));
        }
        if state.applies.broken || state.syncs.broken {
            return Err(read_only("scripted failure is not over"));
        }
        if state.failed.take().is_some() {
            let survivors = state.on_reopen.take().unwrap_or(Survivors::All);
            state.keep(survivors);
        }
        Ok(())
    }

    fn set_aside(&self, _reason: &str) -> Result<(), StoreError> {
        let mut state = self.state.write();
        state.check_writable()?;
        (state.durable, state.visible) = (Rows::default(), Rows::default());
        state.unsynced.clear();
        self.reads.broken_at.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

fn read_only(reason: &str) -> StoreError {
    StoreError::ReadOnly { reason: reason.to_owned() }
}

/// One step of `SplitMix64`, by Steele, Lea and Flood.
fn split_mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Flow;

    fn put(key: &str) -> Batch {
        let mut batch = Batch::new();
        batch.put(key.into(), b"v".to_vec());
        batch
    }

    fn store_with(synced: usize, unsynced: usize) -> (FaultyStore, Epoch) {
        let store = FaultyStore::new();
        let epoch = store.take_epoch(Epoch(0)).unwrap();
        for i in 0..synced {
            store.apply(epoch, put(&format!("s{i}"))).unwrap();
        }
        store.sync().unwrap();
        for i in 0..unsynced {
            store.apply(epoch, put(&format!("u{i}"))).unwrap();
        }
        (store, epoch)
    }

    fn count(store: &FaultyStore) -> usize {
        let mut n = 0;
        let mut visit = |_: &[u8], _: Result<&[u8], StoreError>| {
            n += 1;
            Flow::Continue
        };
        store.scan(b"", b"\xFF", &mut visit).unwrap();
        n
    }

    #[test]
    fn crash_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        for kept in 0..=4 {
            let (store, _) = store_with(2, 4);
            assert_eq!(store.crash(Survivors::First(kept)), kept);
            assert_eq!(count(&store), 2 + kept);
            for i in 0..4 {
                assert_eq!(store.read(format!("u{i}").as_bytes()).unwrap().is_some(), i < kept);
            }
        }
    }

    #[test]
    fn seeds_reach_every_prefix_and_repeat() {
        let lengths = |seed| store_with(0, 3).0.crash(Survivors::Seeded(seed));
        for length in 0..=3 {
            assert!((0..50).any(|seed| lengths(seed) == length), "no seed keeps {length}");
        }
        assert_eq!(lengths(7), lengths(7));
    }

    #[test]
    fn old_epoch_stays_fenced_after_a_crash() {
        let (store, old) = store_with(0, 0);
        let new = store.take_epoch(old).unwrap();
        store.crash(Survivors::None);
        assert!(matches!(store.apply(old, put("late")), Err(StoreError::Fenced { .. })));
        store.apply(new, put("mine")).unwrap();
        assert!(store.take_epoch(Epoch(0)).unwrap() > new);
    }

    #[test]
    fn failed_apply_is_sticky_until_reopen_and_leaves_no_trace() {
        let (store, epoch) = store_with(1, 1);
        store.fail_next(StoreOp::Apply, Fault::Once);
        assert!(matches!(store.apply(epoch, put("x")), Err(StoreError::ReadOnly { .. })));
        assert!(matches!(store.apply(epoch, put("y")), Err(StoreError::ReadOnly { .. })));
        assert!(matches!(store.sync(), Err(StoreError::ReadOnly { .. })));
        assert_eq!(count(&store), 2);
        store.reopen().unwrap();
        store.apply(epoch, put("y")).unwrap();
        assert_eq!(count(&store), 3);
    }

    #[test]
    fn failed_sync_covers_nothing() {
        let (store, _) = store_with(1, 2);
        let at = store.syncs() + 1;
        store.fail_at(StoreOp::Sync, at, Fault::Once);
        assert!(matches!(store.sync(), Err(StoreError::ReadOnly { .. })));
        store.set_reopen_survivors(Survivors::First(1));
        store.reopen().unwrap();
        assert_eq!(count(&store), 2);
        assert_eq!(store.crash(Survivors::None), 0);
        assert_eq!(count(&store), 2);
    }

    #[test]
    fn lasting_fault_heals_only_when_it_is_over() {
        let (store, epoch) = store_with(0, 0);
        store.fail_next(StoreOp::Sync, Fault::Forever);
        assert!(store.sync().is_err());
        assert!(matches!(store.reopen(), Err(StoreError::ReadOnly { .. })));
        store.heal();
        assert!(matches!(store.apply(epoch, put("x")), Err(StoreError::ReadOnly { .. })));
        store.reopen().unwrap();
        store.apply(epoch, put("x")).unwrap();
    }

    #[test]
    fn full_disk_refuses_writes_and_goes_on_reading() {
        let (store, epoch) = store_with(1, 0);
        store.set_disk_full(true);
        assert!(matches!(store.apply(epoch, put("x")), Err(StoreError::ReadOnly { .. })));
        assert!(store.reopen().is_err());
        assert_eq!(count(&store), 1);
        store.set_disk_full(false);
        store.reopen().unwrap();
        store.apply(epoch, put("x")).unwrap();
    }

    #[test]
    fn epoch_that_could_not_be_synced_is_not_given() {
        let (store, epoch) = store_with(0, 0);
        store.fail_next(StoreOp::Sync, Fault::Once);
        assert!(store.take_epoch(epoch).is_err());
        store.reopen().unwrap();
        store.apply(epoch, put("x")).unwrap();
    }
}
