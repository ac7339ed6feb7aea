//! One opened sled database: every call into sled is made here, and comes back as a value or as a [`Failure`].
//!
//! sled 0.34 answers many kinds of damage with a panic, so each call is guarded. A flush waits for a thread of sled's
//! own pool, and one way for that thread to fail sets the error without waking the waiter; so a flush is watched.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use parking_lot::RwLock;

use super::dir::{Dir, LOCK_PAUSE, LOCK_TRIES};

/// How often a flush that takes long looks whether sled has failed meanwhile.
const FLUSH_LOOK: Duration = Duration::from_millis(100);
/// sled's segments: its log goes on in another one after so many bytes.
const SEGMENT: i64 = 512 << 10;
/// So near to the end of a segment, whatever comes next may begin another one.
const LAST_BYTES: i64 = 4 << 10;
/// What asking for the log's end leaves in it, at most.
const PROBE: i64 = 64;
/// How many looks until a flush counts as failed: 30 s, longer than a busy card takes.
const FLUSH_LOOKS: u32 = 300;

/// Why sled did not do what it was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// Its lock is still held.
    Locked,
    /// The file system refused; the database itself may be sound.
    Io(io::Error),
    /// The database is damaged, in a page or more: sled said so.
    Damage(String),
    /// sled panicked: what it has in its file does not hang together.
    Panic(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Locked => f.write_str("the database file is locked"),
            Self::Io(e) => write!(f, "{e}"),
            Self::Damage(reason) | Self::Panic(reason) => f.write_str(reason),
        }
    }
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Self {
        match error {
            // sled has no kind of its own for this.
            sled::Error::Io(e) if e.to_string().contains("could not acquire lock") => Self::Locked,
            // The file ends where a page should be, or a page does not parse.
            sled::Error::Io(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) => {
                Self::Damage(format!("database file is cut or garbled: {e}"))
            }
            sled::Error::Io(e) => Self::Io(e),
            other => Self::Damage(other.to_string()),
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Io(e) => e,
            other => Self::new(ErrorKind::InvalidData, other.to_string()),
        }
    }
}

/// Rows as sled hands them out: key and value.
pub(super) type Row = (sled::IVec, sled::IVec);

/// An open database and our own handle on its file.
#[derive(Debug)]
pub(super) struct OpenDb {
    /// Always there until `drop`.
    db: Option<Arc<sled::Db>>,
    file: File,
    /// The last place in sled's log that a sync has covered.
    durable: AtomicI64,
    /// A sync has failed. A reader may have asked for it, so the next writer is told as well.
    failed: AtomicBool,
    /// Held alone over a batch and the sync that it needs, shared by reads, which write when they come upon a page that
    /// wants to be split or merged. So nothing begins a segment between a batch and that sync.
    gate: RwLock<()>,
}

impl OpenDb {
    /// Opens, or creates, the database of `dir`. Waits up to 2 s for a former owner's background threads.
    pub(super) fn open(dir: &Dir, cache_bytes: u64) -> Result<Self, Failure> {
        for _ in 0..LOCK_TRIES {
            match Self::try_open(dir, cache_bytes) {
                Err(Failure::Locked) => std::thread::sleep(LOCK_PAUSE),
                done => return done,
            }
        }
        Err(Failure::Locked)
    }

    fn try_open(dir: &Dir, cache_bytes: u64) -> Result<Self, Failure> {
        dir.remove_partial_snapshots().map_err(Failure::Io)?;
        let config = sled::Config::new().path(dir.db()).cache_capacity(cache_bytes).flush_every_ms(None);
        let db = guarded(|| config.open())?;
        let file = OpenOptions::new().read(true).write(true).open(dir.db_file()).map_err(Failure::Io)?;
        Ok(Self {
            db: Some(Arc::new(db)),
            file,
            durable: AtomicI64::new(-1),
            failed: AtomicBool::new(false),
            gate: RwLock::new(()),
        })
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, Failure> {
        self.reading(|| self.db()?.get(key))
    }

    pub(super) fn insert(&self, key: &[u8], value: Vec<u8>) -> Result<(), Failure> {
        let _alone = self.gate.write();
        guarded(|| self.db()?.insert(key, value).map(drop))
    }

    /// Applies a batch, and syncs when sled's log has gone on to another segment since the last sync.
    ///
    /// sled takes for durable what its `sync_file_range` has covered. The header of a segment vouches for all of the log
    /// before the last segment that was being written when it was made, which a recovery then takes for whole and does not
    /// check; and what has become free by that is written over. So no segment may begin while the one before is not
    /// durable as far as it is written. What a batch adds to the log has nothing to do with its size: each tenth change
    /// of a page writes it anew, with up to sixteen values, and another page with it while space is reclaimed. (Ten
    /// thousand bytes of keys to be deleted wrote more than a segment.) So the log itself is asked how long it is.
    pub(super) fn apply(&self, batch: sled::Batch) -> Result<(), Failure> {
        let _alone = self.gate.write();
        // Reads may have written meanwhile.
        self.sync_if_needed()?;
        guarded(|| self.db()?.apply_batch(batch))?;
        self.sync_if_needed()
    }

    fn sync_if_needed(&self) -> Result<(), Failure> {
        if self.must_sync(self.end_of_log()?) { self.sync() } else { Ok(()) }
    }

    /// Whether the log, which reaches up to `end`, may go on to another segment only after a sync.
    fn must_sync(&self, end: i64) -> bool {
        let durable = self.durable.load(Ordering::Relaxed);
        end - durable > PROBE && (end + LAST_BYTES).div_euclid(SEGMENT) > durable.div_euclid(SEGMENT)
    }

    /// The last place of the log up to which sled has written it.
    fn written(&self) -> Result<i64, Failure> {
        guarded(|| Ok(self.db()?.context.pagecache.log.stable_offset()))
    }

    /// The end of the log, whether it is written yet or not: where a message would come, which is then called off.
    fn end_of_log(&self) -> Result<i64, Failure> {
        guarded(|| {
            let guard = sled::pin();
            let log = &self.db()?.context.pagecache.log;
            log.reserve(sled::LogKind::Free, 0, &(), &guard)?.abort().map(|(place, _)| place)
        })
    }

    /// A call that only reads. When earlier ones have made the log go on to another segment, it is synced before.
    fn reading<T>(&self, call: impl FnOnce() -> sled::Result<T>) -> Result<T, Failure> {
        if self.must_sync(self.written()?) && !self.failed.load(Ordering::Relaxed) {
            let _alone = self.gate.write();
            if self.must_sync(self.written()?) {
                // Who reads is not concerned: the next writer is told.
                let _ = self.sync();
            }
        }
        let _shared = self.gate.read();
        guarded(call)
    }

    /// The rows with `from <= key < to`, in order.
    pub(super) fn range(self: Arc<Self>, from: &[u8], to: &[u8]) -> Result<Range, Failure> {
        let rows = guarded(|| Ok(self.db()?.range(from..to)))?;
        Ok(Range { rows, db: self })
    }

    /// Reads every row, so that damage in any page shows.
    pub(super) fn read_all(&self) -> Result<(), Failure> {
        let mut rows = guarded(|| Ok(self.db()?.iter()))?;
        while self.reading(|| rows.next().transpose())?.is_some() {}
        Ok(())
    }

    /// Makes everything applied so far durable: sled writes its buffers, then we sync the file.
    ///
    /// In this order: sled's flush returns when the writes are done, but asks the drive for nothing.
    pub(super) fn sync(&self) -> Result<(), Failure> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Failure::Io(io::Error::other("an earlier sync failed")));
        }
        let synced = self.flush().and_then(|()| {
            let written = self.written()?;
            self.file.sync_data().map_err(Failure::Io)?;
            self.durable.fetch_max(written, Ordering::Relaxed);
            Ok(())
        });
        synced.inspect_err(|_| self.failed.store(true, Ordering::Relaxed))
    }

    fn flush(&self) -> Result<(), Failure> {
        let Some(db) = self.db.clone() else { return Ok(()) };
        let (done, answer) = mpsc::sync_channel(1);
        let work = move || {
            let flushed = guarded(|| db.flush());
            // Before the answer, so that whoever gets it may close the database.
            drop(db);
            let _ = done.send(flushed);
        };
        let spawned = std::thread::Builder::new().name("lastmile-flush".to_owned()).spawn(work);
        spawned.map_err(Failure::Io)?;
        for _ in 0..FLUSH_LOOKS {
            match answer.recv_timeout(FLUSH_LOOK) {
                Ok(flushed) => return flushed.map(drop),
                Err(RecvTimeoutError::Timeout) => self.wake_after_error(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Err(Failure::Io(io::Error::new(ErrorKind::TimedOut, "sled's flush never returned")))
    }

    /// Once sled has an error, another flush returns at once and wakes all that wait.
    fn wake_after_error(&self) {
        if let Some(db) = &self.db
            && db.context.global_error().is_err()
        {
            let _ = guarded(|| db.flush());
        }
    }

    fn db(&self) -> sled::Result<&sled::Db> {
        self.db.as_deref().ok_or_else(|| sled::Error::Unsupported("database is closed".to_owned()))
    }
}

impl Drop for OpenDb {
    fn drop(&mut self) {
        // sled flushes in its own drop, unwatched, and unwraps its fsync. After this flush nothing is left to wait for.
        let _ = self.flush();
        let db = self.db.take();
        let _ = catch_unwind(AssertUnwindSafe(move || drop(db)));
    }
}

/// A scan from either end. The database stays open as long as it lives.
pub(super) struct Range {
    rows: sled::Iter,
    db: Arc<OpenDb>,
}

impl Range {
    pub(super) fn next(&mut self) -> Result<Option<Row>, Failure> {
        self.db.reading(|| self.rows.next().transpose())
    }

    pub(super) fn last(&mut self) -> Result<Option<Row>, Failure> {
        self.db.reading(|| self.rows.next_back().transpose())
    }
}

/// Calls sled; a panic becomes [`Failure::Panic`].
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(Failure::from),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(Failure::Panic(format!("sled panicked: {text}")))
        }
    }
}
