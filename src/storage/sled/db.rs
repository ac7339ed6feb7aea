//! One opened sled database: every call into sled is made here, and comes back as a value or as a [`Failure`].
//!
//! sled 0.34 answers many kinds of damage with a panic, so each call is guarded. A flush waits for a thread of sled's
//! own pool, and one way for that thread to fail sets the error without waking the waiter; so a flush is watched.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::dir::{Dir, LOCK_PAUSE, LOCK_TRIES};

/// How often a flush that takes long looks whether sled has failed meanwhile.
const FLUSH_LOOK: Duration = Duration::from_millis(100);
/// Bytes applied after which the file is synced, asked or not; see [`OpenDb::apply`]. Small, because what sled writes for
/// them is several times as much, and a segment of its file has 512 KiB.
const EARLY_SYNC: usize = 16 << 10;
/// How many looks until a flush counts as failed: 30 s, longer than a busy card takes.
const FLUSH_LOOKS: u32 = 300;

/// Why sled did not do what it was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// Its lock is still held.
    Locked,
    /// The file system refused; the database itself may be sound.
    Io(io::Error),
    /// The database is damaged: sled said so, or panicked.
    Damage(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Locked => f.write_str("the database file is locked"),
            Self::Io(e) => write!(f, "{e}"),
            Self::Damage(reason) => f.write_str(reason),
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
    /// Bytes applied since the last sync began.
    unsynced: AtomicUsize,
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
        Ok(Self { db: Some(Arc::new(db)), file, unsynced: AtomicUsize::new(0) })
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, Failure> {
        guarded(|| self.db()?.get(key))
    }

    pub(super) fn insert(&self, key: &[u8], value: Vec<u8>) -> Result<(), Failure> {
        guarded(|| self.db()?.insert(key, value).map(drop))
    }

    /// Applies a batch of so many bytes, and syncs when a full segment of sled's file might not be durable otherwise.
    ///
    /// sled takes for durable what its `sync_file_range` has covered. The header of a segment says so of the segment
    /// before the last, and what has become free by that one is written over. Should the later ones survive a power cut
    /// and that one not, the database is beyond repair. So each is synced before the next is full.
    pub(super) fn apply(&self, batch: sled::Batch, bytes: usize) -> Result<(), Failure> {
        guarded(|| self.db()?.apply_batch(batch))?;
        let unsynced = self.unsynced.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if unsynced >= EARLY_SYNC { self.sync() } else { Ok(()) }
    }

    /// The rows with `from <= key < to`, in order.
    pub(super) fn range(&self, from: &[u8], to: &[u8]) -> Result<Range, Failure> {
        guarded(|| Ok(Range { rows: self.db()?.range(from..to) }))
    }

    /// Reads every row, so that damage in any page shows.
    pub(super) fn read_all(&self) -> Result<(), Failure> {
        let mut rows = guarded(|| Ok(Range { rows: self.db()?.iter() }))?;
        while rows.next()?.is_some() {}
        Ok(())
    }

    /// Makes everything applied so far durable: sled writes its buffers, then we sync the file.
    ///
    /// In this order: sled's flush returns when the writes are done, but asks the drive for nothing.
    pub(super) fn sync(&self) -> Result<(), Failure> {
        self.unsynced.store(0, Ordering::Relaxed);
        self.flush()?;
        self.file.sync_data().map_err(Failure::Io)
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

/// A scan from either end.
pub(super) struct Range {
    rows: sled::Iter,
}

impl Range {
    pub(super) fn next(&mut self) -> Result<Option<Row>, Failure> {
        guarded(|| self.rows.next().transpose())
    }

    pub(super) fn last(&mut self) -> Result<Option<Row>, Failure> {
        guarded(|| self.rows.next_back().transpose())
    }
}

/// Calls sled; a panic becomes [`Failure::Damage`].
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(Failure::from),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(Failure::Damage(format!("sled panicked: {text}")))
        }
    }
}
