//! The store port: an ordered map of small values with atomic batches, where outboxes settle.

use crate::error::KeyError;
use crate::record::Epoch;

/// The longest key a store must take, in bytes.
pub const MAX_KEY_BYTES: usize = 640;
/// The longest value a store must take, in bytes (larger ones are split by `storage/`).
pub const MAX_VALUE_BYTES: usize = 4000;
/// The largest batch a store must take: the sum of its keys and values, in bytes.
pub const MAX_BATCH_BYTES: usize = 64 << 10;

/// One change of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchOp {
    /// Sets a key.
    Put(Vec<u8>, Vec<u8>),
    /// Removes a key; removing what is not there is no error.
    Delete(Vec<u8>),
}

/// Changes that are applied together or not at all. Later operations win over earlier ones on the same key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    ops: Vec<BatchOp>,
    bytes: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a change that sets `key`.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.ops.push(BatchOp::Put(key, value));
    }

    /// Adds a change that removes `key`.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.ops.push(BatchOp::Delete(key));
    }

    /// The sum of its keys and values, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Its changes, in order.
    #[must_use]
    pub fn ops(&self) -> &[BatchOp] {
        &self.ops
    }

    /// Its changes, in order, by value.
    #[must_use]
    pub fn into_ops(self) -> Vec<BatchOp> {
        self.ops
    }
}

/// Whether a scan goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Hand over the next row.
    Continue,
    /// Enough.
    Stop,
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A newer owner has opened this store. Nothing was changed; this handle will never write again.
    #[error(
        "store is owned by epoch {current:?}, this handle holds {held:?}: nothing was changed; drop this engine"
    )]
    Fenced {
        /// The epoch the caller holds.
        held: Epoch,
        /// The epoch that owns the store now.
        current: Epoch,
    },
    /// Another process, or another handle of this one, holds the directory. Nothing was touched.
    #[error(
        "{dir} is locked by another process: nothing was touched; stop the other owner or choose another directory"
    )]
    Locked {
        /// The directory.
        dir: String,
    },
    /// The directory was written by a newer version. Nothing was touched.
    #[error(
        "store format {found} is newer than {supported}, the newest this build reads: nothing was touched; upgrade lastmile"
    )]
    FormatTooNew {
        /// The version found.
        found: u16,
        /// The newest version this build reads.
        supported: u16,
    },
    /// One row is damaged. The row was not delivered; every other row is unaffected.
    #[error(
        "row {key} is damaged ({reason}): it was not delivered, other rows are unaffected; run verify for a full list"
    )]
    Damaged {
        /// The row's key, in hexadecimal.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was asked for is sealed with a key that is not there. It is whole, and nothing was changed.
    #[error(transparent)]
    Sealed(#[from] KeyError),
    /// The database itself is damaged, not one row of it: nothing that is read from it can be believed to be all. Nothing
    /// was changed; it is read-only from now on. The next opening moves it aside and names what was lost, unless reopening
    /// it heals.
    #[error(
        "the database is damaged ({reason}): it is read-only, and is moved aside by the next opening, which says what was lost"
    )]
    Corrupt {
        /// What was seen.
        reason: String,
    },
    /// A write failed, or an earlier one did. Nothing that was synced is lost; the store is read-only until it is
    /// reopened.
    #[error("store cannot write ({reason}): what was synced is safe and readable; it heals by reopening")]
    ReadOnly {
        /// The cause.
        reason: String,
    },
    /// A batch, key or value is over the limits. Nothing was changed. This is a bug in the caller.
    #[error(
        "{what} of {bytes} bytes is over the store's limit of {max}: nothing was changed; the caller has to cut it"
    )]
    TooLarge {
        /// What was too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The file system refused. What was synced is safe.
    #[error(
        "store I/O failed ({op}: {source}): what was synced is safe; see to the disk or its rights and try again"
    )]
    Io {
        /// The operation that failed.
        op: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// What a scan hands its rows to: the key, and the value or what is wrong with it.
pub type Visit<'a> = dyn FnMut(&[u8], Result<&[u8], StoreError>) -> Flow + 'a;
/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// A durable ordered map with atomic batches.
///
/// All methods block; the runtime calls them from its own threads.
pub trait Store: Send + Sync {
    /// The value of `key`.
    ///
    /// # To ensure correctness
    /// Sees every batch applied before the call. A value that is not byte for byte what was put is
    /// [`StoreError::Damaged`], never a wrong value and never `None`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Corrupt`], [`StoreError::Io`]. Nothing is changed.
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Hands the rows with `from <= key < to` to `visit`, in key order, until it says [`Flow::Stop`].
    ///
    /// # To ensure correctness
    /// As `read`; a damaged row is handed over as `Err` in its place and the scan goes on behind it. The visitor may
    /// call `read` and `scan`, but not `apply`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] or [`StoreError::Io`] when the scan cannot go on.
    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// The last row with `from <= key < to`, if any.
    ///
    /// # Errors
    /// As `read`.
    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, StoreError>;

    /// Takes ownership: returns an epoch greater than `above` and than every epoch this store has ever given.
    ///
    /// # To ensure correctness
    /// The new epoch is durable when the call returns, and every other holder's `apply` fails from then on.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`], [`StoreError::Io`].
    fn take_epoch(&self, above: Epoch) -> Result<Epoch, StoreError>;

    /// Applies a batch: wholly or not at all, now and after any crash.
    ///
    /// # To ensure correctness
    /// After a crash the batches that survive are a prefix of those applied, and include all that a successful
    /// `sync` covered.
    ///
    /// # Errors
    /// [`StoreError::Fenced`], [`StoreError::TooLarge`] (nothing was changed), [`StoreError::ReadOnly`].
    fn apply(&self, epoch: Epoch, batch: Batch) -> Result<(), StoreError>;

    /// Makes every batch applied so far durable against a power cut.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`]: what earlier syncs covered is safe, the rest is unknown.
    fn sync(&self) -> Result<(), StoreError>;

    /// Tries to become writable again after [`StoreError::ReadOnly`].
    ///
    /// # To ensure correctness
    /// After `Ok` the store holds a prefix of the batches applied, including all that a successful sync covered;
    /// the caller applies again what it needs.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] when the cause is still there; [`StoreError::Corrupt`] when it is damage.
    fn reopen(&self) -> Result<(), StoreError>;

    /// Gives up what is stored, after [`StoreError::Corrupt`], and begins empty. Called by an opening only, before anything
    /// of this store was promised; a store on disk keeps the old data, apart, for whoever may want to look at it.
    ///
    /// # To ensure correctness
    /// After `Ok` no row is there. An epoch that is given later need not be above those of before: whoever opens names
    /// one to be above.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::ReadOnly`]: what was stored is still where it was, or already apart.
    fn set_aside(&self, reason: &str) -> Result<(), StoreError>;

    /// Bytes the store takes on disk now (0 in memory).
    fn disk_bytes(&self) -> u64;

    /// The directory beside which the journal and the manifest live; `None` for a store that is not on disk, whose
    /// journal is in memory too unless the host gives one.
    fn home(&self) -> Option<&std::path::Path> {
        None
    }
}
