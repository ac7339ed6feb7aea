//! Opening: the table is read, what no table names is swept, and what is missing is named.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::keys::{self, Range};
use super::meta::{META_VERSION, Meta, MetaError, RunInfo};
use super::shield::Shield;
use super::writer::Pending;
use super::{OutboxStore, Recovered, loss, manifest, mark, rows::Change};
use crate::codec::Cipher;
use crate::error::KeyError;
use crate::id::{StreamId, UserId};
use crate::ports::{Flow, Store, StoreError};
use crate::record::{Counters, Epoch, Seq};
use crate::time::Timestamp;

/// What an engine is known by; drawn once, kept for ever.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The engine's log.
    pub stream: StreamId,
    /// Keys the digests of ids.
    pub digest_key: u128,
}

impl core::fmt::Debug for Identity {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Identity").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// What an opening found.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Who the engine is: as stored, or the fresh one it was given.
    pub identity: Identity,
    /// This opening.
    pub epoch: Epoch,
    /// Every record below this place is in the store.
    pub settled: Seq,
    /// The counters of each shard of the last opening, and the place below which they count everything.
    pub counters: Vec<(Counters, Seq)>,
    /// The latest engine time the store has seen.
    pub last_time: Timestamp,
    /// Whether the store holds neither messages nor rows.
    pub store_empty: bool,
    /// What should be there and is not.
    pub lost: Vec<Loss>,
    /// What opens the journal's records.
    pub(super) cipher: Cipher,
}

impl Opened {
    /// What shard `i` of `shards` starts counting from: its own counters, or its part of all of them when the number of
    /// shards has changed. The sum over all shards is exact either way.
    #[must_use]
    pub fn counters_of(&self, i: usize, shards: usize) -> Counters {
        if let (true, Some((own, _))) = (self.counters.len() == shards, self.counters.get(i)) {
            return *own;
        }
        let mut sum = Counters::default();
        self.counters.iter().for_each(|(theirs, _)| sum.add(theirs));
        sum.part(i as u64, shards as u64)
    }
}

/// A run that is gone, wholly or in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The run as the table or the manifest has it: its places, counts, first and last user.
    pub run: RunInfo,
    /// Chunks that are known to be missing, at least.
    pub chunks: u64,
}

impl Loss {
    /// The first and the last user who may have lost messages, in the order of keys.
    #[must_use]
    pub fn users(&self) -> Option<(&UserId, &UserId)> {
        self.run.first_user.as_ref().zip(self.run.last_user.as_ref())
    }
}

/// Why an outbox could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A newer version wrote it. Nothing was touched.
    #[error(
        "outbox format {found} is newer than {supported}, the newest this build reads: nothing was touched; upgrade lastmile"
    )]
    FormatTooNew {
        /// The version found.
        found: u8,
        /// The newest version this build reads.
        supported: u8,
    },
    /// The table is damaged and there is no manifest to take its place. Nothing was touched.
    #[error(
        "the outbox's table is damaged ({0}) and there is no manifest: nothing was touched; restore a copy of the directory, or open an empty one"
    )]
    Damaged(String),
    /// Messages are sealed, and the key is missing or another one. Nothing was touched.
    #[error(transparent)]
    Sealed(#[from] KeyError),
    /// The store failed. What was synced is safe.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<MetaError> for OpenError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::TooNew { found } => Self::FormatTooNew { found, supported: META_VERSION },
            MetaError::Damaged(reason) => Self::Damaged(reason),
            MetaError::Sealed(error) => Self::Sealed(error),
            MetaError::Store(error) => Self::Store(error),
        }
    }
}

impl OutboxStore {
    /// Opens the outbox in `store`, making it `fresh` when there is none, and takes ownership with an epoch above
    /// `journal_epoch` and all before. The manifest, if a path is given, names what a damaged store has lost.
    ///
    /// What a crash left of unfinished settlements and merges is removed; nothing is read in full. A store that is
    /// [`Corrupt`](StoreError::Corrupt), or panics, is set aside; what it has lost is named from the manifest, by each
    /// opening until there was a settlement.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        store: Arc<dyn Store>,
        manifest: Option<PathBuf>,
        journal_epoch: Epoch,
        fresh: Identity,
    ) -> Result<(Self, Opened), OpenError> {
        Self::open_with(store, manifest, journal_epoch, fresh, Cipher::plain())
    }

    /// The same, with what seals and opens messages. What is not sealed yet is when it is merged.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::Sealed`] also when messages are sealed and `cipher` seals nothing. Nothing was touched.
    pub fn open_with(
        store: Arc<dyn Store>,
        manifest: Option<PathBuf>,
        journal_epoch: Epoch,
        fresh: Identity,
        cipher: Cipher,
    ) -> Result<(Self, Opened), OpenError> {
        let store = Shield::over(store);
        match Self::try_open(store.clone(), manifest.clone(), journal_epoch, fresh, cipher.clone()) {
            Err(OpenError::Store(StoreError::Corrupt { reason })) => {
                tracing::error!(%reason, "the database is beyond repair: it is moved aside");
                store.set_aside(&reason)?;
                Self::try_open(store, manifest, journal_epoch, fresh, cipher)
            }
            opened => opened,
        }
    }

    fn try_open(
        store: Arc<dyn Store>,
        manifest: Option<PathBuf>,
        journal_epoch: Epoch,
        fresh: Identity,
        cipher: Cipher,
    ) -> Result<(Self, Opened), OpenError> {
        let marks = mark::check(&*store, &cipher)?;
        let named = manifest.as_deref().map(|path| manifest::read(path, &cipher)).transpose()?.flatten();
        let (mut meta, is_new) = match find_table(&*store, named.as_ref(), &cipher)? {
            Some(meta) => (meta, false),
            None => (Meta::new(fresh.stream, fresh.digest_key), true),
        };
        let mut lost = losses(&*store, &meta, named.as_ref())?;
        loss::remember(manifest.as_deref(), &mut lost, &meta)?;
        for run in &mut meta.runs {
            run.read_filter(&*store)?;
        }
        let epoch = store.take_epoch(journal_epoch.max(meta.epoch))?;
        let is_sealed_so = meta.sealed == cipher.current();
        // Rows are written before the table is: until it is of the newest format, an older build would take them for damage.
        let is_older = meta.is_older;
        let outbox = Self::new(store, manifest, cipher, meta, epoch);
        let missing_through = lost.iter().map(|loss| loss.run.last.get()).max().unwrap_or(0);
        outbox.inner.missing_through.store(missing_through, Ordering::Relaxed);
        outbox.sweep(epoch)?;
        outbox.begin_letters(epoch)?;
        mark::write(outbox.dyn_store(), outbox.cipher(), &marks)?;
        outbox.warn_of_missing_keys();
        if is_new
            || is_older
            || !is_sealed_so
            || named.as_ref().is_none_or(|named| named.generation != outbox.table().generation)
        {
            outbox.publish(epoch, |_| {})?;
            outbox.sync_table()?;
            outbox.write_manifest()?;
        }
        let meta = outbox.table();
        let opened = Opened {
            identity: Identity { stream: meta.stream, digest_key: meta.digest_key },
            epoch,
            settled: meta.settled,
            counters: meta.counters.clone(),
            last_time: meta.last_time,
            store_empty: meta.runs.is_empty() && is_empty(outbox.dyn_store(), &keys::users())?,
            lost,
            cipher: outbox.cipher().clone(),
        };
        Ok((outbox, opened))
    }

    /// Whether the keys that an opening needs are there, as far as can be told without touching anything. An opening checks
    /// it too; whoever has other things to open may want to know before.
    ///
    /// # Errors
    /// [`OpenError::Sealed`]; [`OpenError::Store`] when the file that says so cannot be read.
    pub fn check_keys(store: &dyn Store, cipher: &Cipher) -> Result<(), OpenError> {
        mark::check(store, cipher).map(drop)
    }

    /// After a recovery, once the journal has begun again: the next opening needs the keys of the journal, and no others
    /// but the current one. Without this, it goes on to ask for those of before.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn note_keys(&self, recovered: &Recovered) -> Result<(), StoreError> {
        mark::write(self.dyn_store(), self.cipher(), &recovered.sealed_with)
    }

    /// Removes what no table names: chunks of runs between and behind those it names, and bodies behind the settled
    /// place.
    fn sweep(&self, epoch: Epoch) -> Result<(), StoreError> {
        let meta = self.table();
        let mut numbers: Vec<u64> = meta.runs.iter().chain(&meta.dropping).map(|run| run.number).collect();
        numbers.sort_unstable();
        let mut ranges = vec![keys::bodies_of(meta.settled, Seq::MAX)];
        let mut next = 0;
        for number in numbers.into_iter().map(Some).chain([None]) {
            let last = number.map_or(Some(u64::MAX), |number| number.checked_sub(1));
            if let Some(last) = last.filter(|last| *last >= next) {
                ranges.extend([keys::chunks_of(next, last), keys::dedup_of(next, last)]);
                ranges.extend([keys::filters_of(next, last), keys::dues_of(next, last)]);
                ranges.push(keys::shared_of(next, last));
            }
            next = number.map_or(u64::MAX, |number| number.saturating_add(1));
        }
        for range in ranges {
            while self.delete_some(epoch, &range)? {}
        }
        Ok(())
    }

    /// Deletes one batch of a range; says whether there was anything.
    pub(super) fn delete_some(&self, epoch: Epoch, (from, to): &Range) -> Result<bool, StoreError> {
        let mut pending = Pending::default();
        self.inner.store.scan(from, to, &mut |key, _| {
            pending.push(Change::Delete(key.to_vec()));
            if pending.is_full() { Flow::Stop } else { Flow::Continue }
        })?;
        if pending.is_empty() {
            return Ok(false);
        }
        self.apply(epoch, pending.take())?;
        Ok(true)
    }
}

/// The table in the store; or the manifest's, when the store's is damaged or missing although its runs are there.
/// (What the manifest does not know yet is still in the journal: segments are recycled after it was written.)
fn find_table(store: &dyn Store, named: Option<&Meta>, cipher: &Cipher) -> Result<Option<Meta>, OpenError> {
    let reason = match Meta::read(store, cipher) {
        Ok(Some(meta)) => return Ok(Some(meta)),
        Ok(None) if is_empty(store, &keys::chunks_of(0, u64::MAX))? => return Ok(None),
        Ok(None) => "it is missing, but its runs are there".to_owned(),
        Err(MetaError::Damaged(reason) | MetaError::Store(StoreError::Damaged { reason, .. })) => reason,
        Err(error) => return Err(error.into()),
    };
    named.cloned().map(Some).ok_or(OpenError::Damaged(reason))
}

/// What the table and the manifest name and the store does not have.
fn losses(store: &dyn Store, meta: &Meta, named: Option<&Meta>) -> Result<Vec<Loss>, StoreError> {
    let mut lost = Vec::new();
    for run in &meta.runs {
        let (from, to) = keys::chunks_of(run.number, run.number);
        if run.chunks > 0 && is_empty(store, &(from, to))? {
            lost.push(Loss { run: run.clone(), chunks: run.chunks });
        }
    }
    let newer = named.filter(|named| named.stream != meta.stream || named.generation > meta.generation);
    for run in newer.iter().flat_map(|named| &named.runs) {
        let known = meta.runs.iter().any(|known| known.number == run.number);
        if run.chunks > 0 && !known {
            lost.push(Loss { run: run.clone(), chunks: run.chunks });
        }
    }
    Ok(lost)
}

fn is_empty(store: &dyn Store, (from, to): &Range) -> Result<bool, StoreError> {
    let mut empty = true;
    store.scan(from, to, &mut |_, _| {
        empty = false;
        Flow::Stop
    })?;
    Ok(empty)
}
