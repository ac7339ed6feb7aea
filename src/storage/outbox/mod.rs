//! Where outboxes settle: sorted runs of messages, user rows and remembered ids in a [`Store`].
//!
//! ```text
//! meta      who we are · settled place · counters · table of runs          one batch replaces it
//! chunk     run · first user · lane · place   → entries, packed            sorted, about 2000 bytes
//! body      place · part                      → large messages             gone with their entry
//! dedup     run · first sender · place        → remembered ids, packed
//! filter    run · part                        → whose entries the run may hold
//! due       run · time · part                 → users who have something due by then
//! shared    run · place · part                → bodies of what was said to many, for entries to lean on
//! user      user                              → cursors, ended, attempts, inbox
//! ends      last place                        → how messages ended, over all users, packed
//! ```
//!
//! # Invariants
//! - A run exists when the table names it. Its chunks are durable before that, and are deleted after it was taken off
//!   the table and its last reader is done. A crash at any point leaves the old table or the new one.
//! - Runs hold disjoint ranges of places, in order: run after run, each lane is in order. Only neighbours are merged.
//! - Rows are newer than the table, or as new: they say what they reflect.
//! - A live count is what was entered minus what was reported ended. Merging adds them up. It is a hint for what to
//!   merge next, never a reason to delete: that takes the row's word.
//! - The manifest file is the table, written after each change of it, so that damage to the store can be named.
//!
//! What the outbox does not decide: what has ended, what is a repeat, what survives. The machine does.

mod chunk;
mod due;
mod ends;
mod export;
mod filter;
mod find;
pub mod keys;
mod later;
mod letters;
mod load;
mod loss;
mod manifest;
mod mark;
mod merge;
mod meta;
mod open;
mod recent;
mod recover;
mod rows;
mod sealed;
mod settle;
mod shared;
mod shield;
mod standing;
mod suspects;
mod verify;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use self::find::Finder;
use self::meta::Meta;
use self::recent::Recent;
use crate::codec::Cipher;
use crate::digest::Digester;
use crate::ports::{Batch, Store, StoreError};
use crate::record::{Epoch, Seq};

pub(crate) use ends::EndLog;
pub use ends::EndsError;
pub use export::{Carried, EXPORT_VERSION, ExportError, ImportError};
#[cfg(feature = "sled")]
pub(in crate::storage) use mark::NAME as SEALED;
pub use merge::{DEFAULT_MAX_RUNS, Merge};
pub use meta::{META_VERSION, RunInfo};
pub use open::{Identity, Loss, OpenError, Opened};
pub use recover::{BadRecord, RecoverError, Recovered, recover};
pub use settle::Settlement;
pub use verify::{Damage, Verified};

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// One operation; there is more to do.
    More,
    /// Nothing: readers of what is to be deleted are not done yet. Step again later.
    Busy,
    /// All is done and durable.
    Done,
}

/// The settled part of all outboxes. Clones are handles to the same one; loads run beside settling and merging.
///
/// Settlements and merges are stepped from one thread at a time each.
#[derive(Clone)]
pub struct OutboxStore {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    manifest: Option<PathBuf>,
    cipher: Cipher,
    /// The table as the store has it; the lock is held over the batch that changes it.
    applied: Mutex<Arc<Meta>>,
    /// The table as it is durable, which is what readers see.
    visible: RwLock<Arc<Meta>>,
    /// Runs that were taken off the table and may still be read.
    retired: Mutex<Vec<meta::Pin>>,
    recent: Recent,
    finder: Finder,
    ends: Arc<EndLog>,
    /// What loads have found damaged.
    suspects: Mutex<Vec<Damage>>,
    /// The last place of the runs that this opening has found missing.
    missing_through: AtomicU64,
    next_run: AtomicU64,
    next_version: AtomicU64,
    /// That of this opening.
    epoch: Epoch,
}

impl core::fmt::Debug for OutboxStore {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let table = self.table();
        f.debug_struct("OutboxStore").field("settled", &table.settled).field("runs", &table.runs).finish()
    }
}

impl OutboxStore {
    fn new(
        store: Arc<dyn Store>,
        manifest: Option<PathBuf>,
        cipher: Cipher,
        meta: Meta,
        epoch: Epoch,
    ) -> Self {
        let last = meta.runs.iter().chain(&meta.dropping).map(|run| run.number).max();
        let meta = Arc::new(meta);
        let inner = Inner {
            store,
            manifest,
            cipher,
            applied: Mutex::new(Arc::clone(&meta)),
            visible: RwLock::new(meta),
            retired: Mutex::new(Vec::new()),
            recent: Recent::new(),
            finder: Finder::new(),
            ends: Arc::default(),
            suspects: Mutex::new(Vec::new()),
            missing_through: AtomicU64::new(0),
            next_run: AtomicU64::new(last.map_or(1, |last| last.saturating_add(1))),
            next_version: AtomicU64::new(u64::from(epoch.0) << 32),
            epoch,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Every record below this place is reflected in what loads return.
    #[must_use]
    pub fn settled(&self) -> Seq {
        self.table().settled
    }

    /// The runs there are, in the order of their places.
    #[must_use]
    pub fn runs(&self) -> Vec<RunInfo> {
        self.table().runs.clone()
    }

    /// How many runs there are.
    #[must_use]
    pub fn run_count(&self) -> usize {
        self.table().runs.len()
    }

    /// Bytes on disk, for quotas: the store's files never shrink.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.inner.store.disk_bytes()
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// Tries to become writable again after [`StoreError::ReadOnly`]. Settlements and merges that were under way must
    /// be dropped and begun again.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] when the cause is still there; [`StoreError::Damaged`] when the outbox's own row is.
    pub fn reopen(&self) -> Result<(), StoreError> {
        self.inner.store.reopen()?;
        self.refresh_ends()?;
        let mut applied = self.inner.applied.lock();
        let found = Meta::read(self.dyn_store(), self.cipher()).map_err(|e| match e {
            meta::MetaError::Store(e) => e,
            meta::MetaError::Sealed(e) => e.into(),
            other => rows::damaged(&keys::Key::Meta { part: 0 }.encode(), &other.to_string()),
        })?;
        let visible = self.table();
        // What readers were shown was synced, so it is there; a newer table may have survived as well.
        let mut meta = found.filter(|found| found.generation > visible.generation);
        if let Some(newer) = &mut meta {
            newer.share_pins(&visible);
            for run in newer.runs.iter_mut().filter(|run| run.filter.0.is_none()) {
                run.read_filter(self.dyn_store())?;
            }
        }
        *applied = meta.map_or(visible, Arc::new);
        *self.inner.visible.write() = Arc::clone(&applied);
        Ok(())
    }

    fn table(&self) -> Arc<Meta> {
        Arc::clone(&self.inner.visible.read())
    }

    /// What names users in filters.
    fn digester(&self) -> Digester {
        Digester::new(self.table().digest_key)
    }

    fn dyn_store(&self) -> &dyn Store {
        &*self.inner.store
    }

    fn apply(&self, epoch: Epoch, batch: Batch) -> Result<(), StoreError> {
        self.inner.store.apply(epoch, batch)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.inner.store.sync()
    }

    fn take_run_number(&self) -> u64 {
        self.inner.next_run.fetch_add(1, Ordering::Relaxed)
    }

    fn take_version(&self) -> u64 {
        self.inner.next_version.fetch_add(1, Ordering::Relaxed)
    }

    /// Changes the table in the store. Readers see it once [`Self::sync_table`] has succeeded.
    fn publish(&self, epoch: Epoch, change: impl FnOnce(&mut Meta)) -> Result<(), StoreError> {
        self.publish_with(epoch, None, change)
    }

    /// The same, in one batch with another row.
    fn publish_with(
        &self,
        epoch: Epoch,
        row: Option<(Vec<u8>, Vec<u8>)>,
        change: impl FnOnce(&mut Meta),
    ) -> Result<(), StoreError> {
        let mut applied = self.inner.applied.lock();
        let mut meta = Meta::clone(&applied);
        let known: Vec<_> = meta.runs.iter().map(|run| run.number).collect();
        change(&mut meta);
        meta.generation += 1;
        let generation = meta.generation;
        for run in meta.runs.iter_mut().filter(|run| !known.contains(&run.number)) {
            run.born = generation;
        }
        meta.epoch = epoch;
        let mut batch = Batch::new();
        meta.sealed = self.cipher().current();
        meta.is_older = false;
        meta.write(self.cipher(), &mut batch);
        if let Some((key, value)) = row {
            batch.put(key, value);
        }
        self.apply(epoch, batch)?;
        *applied = Arc::new(meta);
        Ok(())
    }

    /// Makes the table durable and shows it to readers.
    fn sync_table(&self) -> Result<(), StoreError> {
        let applied = Arc::clone(&self.inner.applied.lock());
        self.sync()?;
        let mut visible = self.inner.visible.write();
        if visible.generation < applied.generation {
            *visible = applied;
        }
        Ok(())
    }

    /// Writes the table that readers see into the manifest, if there is one.
    fn write_manifest(&self) -> Result<(), StoreError> {
        match &self.inner.manifest {
            Some(path) => manifest::write(path, &self.table(), self.cipher())
                .map_err(|source| StoreError::Io { op: "write manifest", source }),
            None => Ok(()),
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests;
