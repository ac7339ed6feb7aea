//! The default store: sled 0.34.7, one tree, in a directory of our own. The only place that imports sled.
//!
//! ```text
//! LOCK         held exclusively while the store is open
//! FORMAT       the format version in plain text, read before anything is touched
//! db/          sled
//! journal/     reserved for the journal
//! quarantine/  databases that sled could not open, numbered
//! SUSPECT      there after a failed write, until an opening has checked the database
//! ```
//!
//! # Invariants
//! - Every value in sled is a [frame](super::frame) and at most 4011 bytes, far from the size at which sled starts a
//!   blob file that it never fsyncs.
//! - Keys of the caller are stored behind the byte 1, so none can reach the epoch row behind the byte 0.
//! - One tree, batches only: no transactions (process-wide lock), no `len()` (O(n)), no background flusher (it logs a
//!   failed fsync and goes on).
//! - Durable means: sled's buffers written *and* the `db` file fdatasynced through our own handle. sled's own flush
//!   is a `sync_file_range`, which survives no power cut. As sled builds upon that, its log never begins a segment
//!   before the one before is fdatasynced as far as it is written.
//! - After the first failed write the store is read-only until `reopen`. `reopen` writes the whole file again before
//!   it trusts it, because a page whose fdatasync failed counts as clean; and it never gives data up.
//! - `open` gives up a database only when sled reports damage, or panics, twice, and the disk is seen to take writes.
//!   A database that opens and panics when it is read is given up by `set_aside`, which an opening outbox asks for, or by
//!   the next opening, which reads all of it first.
//!   A full disk, a missing right or an I/O error of the device is an error, not damage.
//!
//! # What it does not promise
//! - Bit rot can make sled forget a key without an error. The frame finds wrong values, never missing ones: that is
//!   for whoever keeps counts outside sled.
//! - Between a failed `apply` and `reopen`, reads may show a part of the failed batch.
//! - sled's clean-up of half-dead segments hangs on its background flusher, which is off. It would not help: churning
//!   7 MB of runs over 10 MB of scattered rows, the file levelled off at 250 MB without it and at 230–240 MB with it,
//!   and a sync took 1.6–2.4 ms instead of 0.6 ms.
//! - A damaged sled snapshot costs the whole database: sled reports it, and the store quarantines.
//! - A panic inside sled is caught, but the process's panic hook still prints it.

mod db;
mod dir;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use self::db::{Failure, OpenDb, Range};
use self::dir::{Dir, LOCK_PAUSE, LOCK_TRIES, io_error};
use super::memory::{check_epoch, next_epoch};
use super::{frame, limits};
use crate::ports::{Batch, BatchOp, Flow, Row, Store, StoreError, Visit};
use crate::record::Epoch;

/// The row that holds the newest epoch, as a little-endian `u32` in a frame.
const EPOCH_ROW: &[u8] = b"\0epoch";
/// What stands before every key of the caller.
const CALLER: u8 = 1;

/// A damaged database that was moved aside so that the store could open empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// Where it is now. Nothing of it was changed, and nothing will remove it.
    pub path: PathBuf,
    /// What sled said, or how it panicked.
    pub reason: String,
}

/// Settings of a [`SledStore`].
#[derive(Clone, Debug)]
pub struct SledOptions {
    cache_bytes: u64,
}

impl SledOptions {
    /// What sled is asked to cache (default 16 MiB). It is no bound: expect up to eight times as much memory.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Opens the store in `dir`, creating what is missing. Blocks, up to 4 s when a former owner's locks linger.
    ///
    /// A directory whose messages are sealed (there is a file `SEALED` in it) is only locked here: the database is opened
    /// when it is used first, after the keys were checked, so that wrong ones leave it as it is. Its errors come then.
    ///
    /// A database that sled cannot open is moved to quarantine and an empty one opened:
    /// see [`SledStore::quarantined`].
    ///
    /// # Errors
    /// - [`StoreError::FormatTooNew`]: nothing was touched.
    /// - [`StoreError::Locked`]: nothing that belongs to the owner was touched.
    /// - [`StoreError::Io`]: the file system refused, or `FORMAT` is unreadable; no row was changed.
    pub fn open(self, dir: impl AsRef<Path>) -> Result<SledStore, StoreError> {
        let dir = Dir::acquire(dir.as_ref())?;
        let waits = dir.is_sealed();
        let inner = Inner {
            state: RwLock::new(None),
            opened: OnceLock::new(),
            quarantined: Mutex::new(None),
            owner: Mutex::new(Epoch::default()),
            syncing: Mutex::new(()),
            failed: Mutex::new(None),
            cache_bytes: self.cache_bytes,
            dir,
        };
        if !waits {
            inner.open()?;
        }
        Ok(SledStore { inner: Arc::new(inner) })
    }
}

/// The default store. Clones are handles to the same store; the directory is free when the last one is dropped.
#[derive(Clone, Debug)]
pub struct SledStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Empty before the first use of a sealed directory, and when a `reopen` could not open the database again.
    state: RwLock<Option<Arc<OpenDb>>>,
    /// Set when the database was opened.
    opened: OnceLock<()>,
    /// What had to be given up for that, or since, if anything.
    quarantined: Mutex<Option<Quarantine>>,
    /// The newest epoch. Held over the check and the batch, which makes the two atomic.
    owner: Mutex<Epoch>,
    /// Held over a sync, so that none overlaps a `reopen`. Taken after `owner` where both are.
    syncing: Mutex<()>,
    /// Why the store is read-only, if it is.
    failed: Mutex<Option<String>>,
    cache_bytes: u64,
    /// Last, so that the lock is given up after sled is closed.
    dir: Dir,
}

impl SledStore {
    /// Opens the store in `dir` with the default settings, creating what is missing.
    ///
    /// # Errors
    /// As [`SledOptions::open`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::options().open(dir)
    }

    /// The default settings.
    #[must_use]
    pub fn options() -> SledOptions {
        SledOptions { cache_bytes: 16 << 20 }
    }

    /// The directory reserved for the journal. It exists and is its owner's alone; the store never looks into it.
    #[must_use]
    pub fn journal_dir(&self) -> &Path {
        self.inner.dir.journal()
    }

    /// The database that this opening had to give up, if any: the store's, or that of the engine upon it, which may be the
    /// first to find out. Of a sealed directory nothing is known before its first use.
    #[must_use]
    pub fn quarantined(&self) -> Option<Quarantine> {
        self.inner.quarantined.lock().clone()
    }
}

impl Store for SledStore {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.inner.db()?.get(&stored_key(key));
        let found = found.map_err(|e| self.inner.read_failed(Some(key), "read", e))?;
        found.map(|framed| unframe(key, &framed).map(<[u8]>::to_vec)).transpose()
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let Some(mut rows) = self.inner.range(from, to)? else { return Ok(()) };
        while let Some((stored, framed)) = rows.next().map_err(|e| self.inner.read_failed(None, "scan", e))? {
            let Some((_, key)) = stored.split_first() else { continue };
            if visit(key, unframe(key, &framed)) == Flow::Stop {
                break;
            }
        }
        Ok(())
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, StoreError> {
        let Some(mut rows) = self.inner.range(from, to)? else { return Ok(None) };
        let Some((stored, framed)) = rows.last().map_err(|e| self.inner.read_failed(None, "scan", e))? else {
            return Ok(None);
        };
        let key = stored.get(1..).unwrap_or_default();
        Ok(Some((key.to_vec(), unframe(key, &framed)?.to_vec())))
    }

    fn take_epoch(&self, above: Epoch) -> Result<Epoch, StoreError> {
        self.inner.open()?;
        let mut owner = self.inner.owner.lock();
        self.inner.check_writable()?;
        let next = next_epoch(*owner, above)?;
        let row = frame::encode(EPOCH_ROW, &next.0.to_le_bytes());
        self.inner.db()?.insert(EPOCH_ROW, row).map_err(|e| self.inner.fail("take epoch", &e))?;
        self.sync()?;
        *owner = next;
        Ok(next)
    }

    fn apply(&self, epoch: Epoch, batch: Batch) -> Result<(), StoreError> {
        limits::check(&batch)?;
        self.inner.open()?;
        let owner = self.inner.owner.lock();
        self.inner.check_writable()?;
        check_epoch(epoch, *owner)?;
        self.inner.db()?.apply(sled_batch(batch)).map_err(|e| self.inner.fail("apply", &e))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.inner.open()?;
        let _alone = self.inner.syncing.lock();
        self.inner.check_writable()?;
        self.inner.db()?.sync().map_err(|e| self.inner.fail("sync", &e))
    }

    fn reopen(&self) -> Result<(), StoreError> {
        self.inner.open()?;
        let mut owner = self.inner.owner.lock();
        let _alone = self.inner.syncing.lock();
        let epoch = self.inner.reopen()?;
        *owner = epoch.max(*owner);
        Ok(())
    }

    fn set_aside(&self, reason: &str) -> Result<(), StoreError> {
        self.inner.open()?;
        let _owner = self.inner.owner.lock();
        let _alone = self.inner.syncing.lock();
        self.inner.set_aside(reason)
    }

    fn disk_bytes(&self) -> u64 {
        self.inner.dir.disk_bytes()
    }

    fn home(&self) -> Option<&Path> {
        Some(self.inner.dir.root())
    }
}

impl Inner {
    /// Opens the database, if this is its first use.
    fn open(&self) -> Result<(), StoreError> {
        if self.opened.get().is_some() {
            return Ok(());
        }
        let mut owner = self.owner.lock();
        if self.opened.get().is_none() {
            let (opened, quarantined) = open_or_quarantine(&self.dir, self.cache_bytes)?;
            *owner = opened.epoch;
            *self.state.write() = Some(Arc::new(opened.db));
            *self.quarantined.lock() = quarantined;
            self.opened.get_or_init(|| ());
        }
        Ok(())
    }

    /// The open database. Nobody who holds `owner` may be its first user.
    fn db(&self) -> Result<Arc<OpenDb>, StoreError> {
        self.open()?;
        let closed = || io_error("read")(io::Error::other("the database could not be reopened yet"));
        // Recursive, because a visitor may read while `reopen` waits for its scan to end.
        self.state.read_recursive().clone().ok_or_else(closed)
    }

    /// The rows of a range of the caller's keys. None when it is empty.
    fn range(&self, from: &[u8], to: &[u8]) -> Result<Option<Range>, StoreError> {
        let db = self.db()?;
        if from >= to {
            return Ok(None);
        }
        let rows = db.range(&stored_key(from), &stored_key(to)).map(Some);
        rows.map_err(|e| self.read_failed(None, "scan", e))
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        match &*self.failed.lock() {
            Some(reason) => Err(StoreError::ReadOnly { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Makes the store read-only, and says why.
    fn fail(&self, op: &'static str, failure: &Failure) -> StoreError {
        let reason = format!("{op}: {failure}");
        self.dir.mark_suspect(&reason);
        self.failed.lock().get_or_insert_with(|| reason.clone());
        StoreError::ReadOnly { reason }
    }

    /// What a failed read says. After a panic nothing is written any more, and the next opening reads everything before it
    /// trusts it. A page that sled cannot read costs the rows in it, and whoever has to scan over it.
    fn read_failed(&self, key: Option<&[u8]>, op: &'static str, failure: Failure) -> StoreError {
        match (failure, key) {
            (failure @ Failure::Panic(_), _) => {
                let reason = failure.to_string();
                self.fail(op, &failure);
                StoreError::Corrupt { reason }
            }
            (Failure::Damage(reason), Some(key)) => damaged(key, reason),
            (Failure::Damage(reason), None) => StoreError::Corrupt { reason },
            (other, _) => io_error(op)(other.into()),
        }
    }

    /// Moves the database to quarantine and opens an empty one.
    fn set_aside(&self, reason: &str) -> Result<(), StoreError> {
        self.dir.probe().map_err(io_error("probe before quarantine"))?;
        let mut state = self.state.write();
        close(&mut state)?;
        let quarantine = self.dir.quarantine(reason.to_owned()).map_err(io_error("quarantine"))?;
        let opened = open_checked(&self.dir, self.cache_bytes).map_err(|e| open_error(&self.dir, e))?;
        *state = Some(Arc::new(opened.db));
        *self.failed.lock() = None;
        *self.quarantined.lock() = Some(quarantine);
        Ok(())
    }

    /// Closes and opens sled. While the disk refuses writes, the old database stays open for reads.
    fn reopen(&self) -> Result<Epoch, StoreError> {
        self.dir.probe().map_err(|e| not_yet("probe", &e))?;
        let mut state = self.state.write();
        close(&mut state)?;
        self.dir.mark_suspect("reopen");
        let opened = open_checked(&self.dir, self.cache_bytes).map_err(|e| match e {
            Failure::Damage(reason) | Failure::Panic(reason) => StoreError::Corrupt { reason },
            other => not_yet("reopen", &other),
        })?;
        *state = Some(Arc::new(opened.db));
        *self.failed.lock() = None;
        Ok(opened.epoch)
    }
}

/// Closes the database once no scan holds it any more; else it stays open.
fn close(state: &mut Option<Arc<OpenDb>>) -> Result<(), StoreError> {
    for _ in 0..LOCK_TRIES {
        let Some(db) = state.take() else { return Ok(()) };
        match Arc::try_unwrap(db) {
            Ok(db) => {
                drop(db);
                return Ok(());
            }
            Err(shared) => *state = Some(shared),
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(not_yet("reopen", &"a scan is still running"))
}

fn not_yet(op: &'static str, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::ReadOnly { reason: format!("{op}: {why}") }
}

/// A database that passed every check of an opening.
struct Opened {
    db: OpenDb,
    epoch: Epoch,
}

fn open_or_quarantine(dir: &Dir, cache_bytes: u64) -> Result<(Opened, Option<Quarantine>), StoreError> {
    // Twice, because damage is there the second time too and bad luck is not, and because a damaged `conf` heals.
    for attempt in [1, 2] {
        match open_checked(dir, cache_bytes) {
            Ok(opened) => return Ok((opened, None)),
            Err(Failure::Damage(reason) | Failure::Panic(reason)) if attempt == 2 => {
                dir.probe().map_err(io_error("probe before quarantine"))?;
                let quarantine = dir.quarantine(reason).map_err(io_error("quarantine"))?;
                let opened = open_checked(dir, cache_bytes).map_err(|e| open_error(dir, e))?;
                return Ok((opened, Some(quarantine)));
            }
            Err(Failure::Damage(_) | Failure::Panic(_)) => {
                dir.remove_conf().map_err(io_error("remove conf"))?
            }
            Err(other) => return Err(open_error(dir, other)),
        }
    }
    unreachable!("the second attempt returns")
}

/// Opens sled upon a file that is durable as it is read, and makes what sled created durable too.
fn open_checked(dir: &Dir, cache_bytes: u64) -> Result<Opened, Failure> {
    let suspect = dir.is_suspect();
    if suspect {
        dir.rewrite_db_file().map_err(Failure::Io)?;
    } else {
        dir.sync_db_file().map_err(Failure::Io)?;
    }
    let db = OpenDb::open(dir, cache_bytes)?;
    // Before what sled has wiped as free: with the snapshot from before, that may still be needed.
    dir.sync_names().map_err(Failure::Io)?;
    if suspect {
        db.read_all()?;
    }
    let epoch = stored_epoch(&db)?;
    db.sync()?;
    dir.secure().map_err(Failure::Io)?;
    dir.clear_suspect().map_err(Failure::Io)?;
    Ok(Opened { db, epoch })
}

/// The epoch in its row. A row that is missing or damaged counts as none: the caller's `above` covers for it.
fn stored_epoch(db: &OpenDb) -> Result<Epoch, Failure> {
    let row = db.get(EPOCH_ROW)?;
    let body = row.as_deref().and_then(|framed| frame::decode(EPOCH_ROW, framed).ok());
    let raw = body.and_then(|body| <[u8; 4]>::try_from(body).ok()).map_or(0, u32::from_le_bytes);
    Ok(Epoch(raw).min(Epoch::MAX))
}

fn open_error(dir: &Dir, failure: Failure) -> StoreError {
    match failure {
        Failure::Locked => StoreError::Locked { dir: dir.root().display().to_string() },
        other => io_error("open database")(other.into()),
    }
}

fn stored_key(key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len().saturating_add(1));
    stored.push(CALLER);
    stored.extend_from_slice(key);
    stored
}

fn sled_batch(batch: Batch) -> sled::Batch {
    let mut out = sled::Batch::default();
    for op in batch.into_ops() {
        match op {
            BatchOp::Put(key, value) => out.insert(stored_key(&key), frame::encode(&key, &value)),
            BatchOp::Delete(key) => out.remove(stored_key(&key)),
        }
    }
    out
}

fn unframe<'a>(key: &[u8], framed: &'a [u8]) -> Result<&'a [u8], StoreError> {
    frame::decode(key, framed).map_err(|e| damaged(key, e.to_string()))
}

fn damaged(key: &[u8], reason: String) -> StoreError {
    StoreError::Damaged { key: key.iter().map(|byte| format!("{byte:02x}")).collect(), reason }
}
