//! The directory of a [`SledStore`](super::SledStore): its lock, its format file, its permissions, what is fsynced.
//!
//! Knows nothing of sled but the names of its files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Quarantine;
use crate::ports::StoreError;
use crate::storage::disk::{create_durably, create_private, sync_directory};
use crate::storage::outbox::SEALED;

/// The directory format this build writes, and the newest it reads.
pub(super) const FORMAT: u16 = 1;
/// What the format file says in front of the version.
const FORMAT_PREFIX: &str = "lastmile store format ";
/// How often, and how far apart, a lock is tried: 2 s in all, because a lock may outlive its owner for a moment.
pub(super) const LOCK_TRIES: u32 = 40;
pub(super) const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// What must fit on the disk, beside two snapshots, before the database is given up or reopened.
const PROBE_BYTES: u64 = 256 << 10;

/// A locked directory in a known format.
#[derive(Debug)]
pub(super) struct Dir {
    root: PathBuf,
    db: PathBuf,
    journal: PathBuf,
    _lock: File,
}

impl Dir {
    /// Locks `root`, creating it when it is missing, and lays out what belongs in it.
    pub(super) fn acquire(root: &Path) -> Result<Self, StoreError> {
        // Looked at before anything is created, so that a newer version's directory stays as it is.
        let create = match read_format(root)? {
            // Whoever wrote the format has made its directory durable before.
            Some(_) => create_private,
            None => create_durably,
        };
        create(root).map_err(io_error("create directory"))?;
        let lock = take_lock(root)?;
        let dir =
            Self { root: root.to_owned(), db: root.join("db"), journal: root.join("journal"), _lock: lock };
        if read_format(root)?.is_none() {
            dir.write_format().map_err(io_error("write FORMAT"))?;
        }
        for sub in [&dir.db, &dir.journal, &dir.quarantine_root()] {
            create_private(sub).map_err(io_error("create directory"))?;
        }
        Ok(dir)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn db(&self) -> &Path {
        &self.db
    }

    pub(super) fn db_file(&self) -> PathBuf {
        self.db.join("db")
    }

    pub(super) fn journal(&self) -> &Path {
        &self.journal
    }

    fn quarantine_root(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    fn suspect_mark(&self) -> PathBuf {
        self.root.join("SUSPECT")
    }

    fn write_format(&self) -> io::Result<()> {
        let fresh = self.root.join("FORMAT.new");
        let mut file = private_file().truncate(true).open(&fresh)?;
        writeln!(file, "{FORMAT_PREFIX}{FORMAT}")?;
        file.sync_all()?;
        fs::rename(&fresh, self.root.join("FORMAT"))?;
        sync_directory(&self.root)
    }

    /// Whether messages in it are sealed. Whoever opens the outbox checks the keys before anything is read.
    pub(super) fn is_sealed(&self) -> bool {
        self.root.join(SEALED).exists()
    }

    /// Removes half-written snapshots: sled would take the newest for whole and never open again.
    pub(super) fn remove_partial_snapshots(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.db)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("snap.") && name.ends_with(".generating") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes sled's `conf`. It says the same in every database of this format, and sled writes it anew.
    pub(super) fn remove_conf(&self) -> io::Result<()> {
        remove_if_there(&self.db.join("conf"))
    }

    /// Makes what an earlier process left in the page cache durable, before a snapshot is built upon it.
    pub(super) fn sync_db_file(&self) -> io::Result<()> {
        match OpenOptions::new().read(true).write(true).open(self.db_file()) {
            Ok(file) => file.sync_data(),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Writes every byte of the database file again, in place, and syncs it.
    ///
    /// After a failed fdatasync the kernel takes the lost pages for clean: they can be read, and the next fdatasync
    /// succeeds without writing them. Only new writes reach the disk, so what a reopened store shows is written anew.
    pub(super) fn rewrite_db_file(&self) -> io::Result<()> {
        let mut file = match OpenOptions::new().read(true).write(true).open(self.db_file()) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut block = vec![0; 256 << 10];
        loop {
            let n = file.read(&mut block)?;
            if n == 0 {
                return file.sync_data();
            }
            let back = i64::try_from(n).map_err(io::Error::other)?;
            io::Seek::seek(&mut file, io::SeekFrom::Current(-back))?;
            file.write_all(block.get(..n).unwrap_or_default())?;
        }
    }

    /// Makes the names of the database's files durable: which snapshot there is.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        sync_directory(&self.db)
    }

    /// Sets every file of the database to its owner alone, and makes the directory's own entries durable.
    pub(super) fn secure(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.db)? {
            let entry = entry?;
            let is_dir = entry.file_type()?.is_dir();
            restrict(&entry.path(), is_dir)?;
            if !is_dir {
                File::open(entry.path())?.sync_all()?;
            }
        }
        sync_directory(&self.db)?;
        sync_directory(&self.root)?;
        match self.root.canonicalize()?.parent().map(sync_directory) {
            // A parent that may be searched but not read was not made by us.
            Some(Err(e)) if e.kind() != ErrorKind::PermissionDenied => Err(e),
            _ => Ok(()),
        }
    }

    /// Notes, for the next opening in whatever process, that a write failed. Best effort: it need not survive a power
    /// cut, which also ends the page cache that the note is about.
    pub(super) fn mark_suspect(&self, reason: &str) {
        if let Ok(mut file) = private_file().truncate(true).open(self.suspect_mark()) {
            let _ = file.write_all(reason.as_bytes());
        }
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.suspect_mark().exists()
    }

    pub(super) fn clear_suspect(&self) -> io::Result<()> {
        remove_if_there(&self.suspect_mark())
    }

    /// Whether the disk takes and keeps what an opening writes: two snapshots and some more.
    pub(super) fn probe(&self) -> io::Result<()> {
        let path = self.root.join("PROBE");
        let room = PROBE_BYTES.saturating_add(self.snapshot_bytes().saturating_mul(2));
        let written = fill(&path, room);
        let removed = fs::remove_file(&path);
        written.and(removed)
    }

    fn snapshot_bytes(&self) -> u64 {
        let Ok(entries) = fs::read_dir(&self.db) else { return 0 };
        entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("snap."))
            .filter_map(|entry| entry.metadata().ok())
            .fold(0, |sum, meta| sum.saturating_add(meta.len()))
    }

    /// Moves the database to the first free `quarantine/<n>`, notes why beside it, and makes an empty one.
    pub(super) fn quarantine(&self, reason: String) -> io::Result<Quarantine> {
        let place = (0_u32..)
            .map(|n| self.quarantine_root().join(n.to_string()))
            .find(|place| !place.exists())
            .ok_or_else(|| io::Error::other("no free number in quarantine"))?;
        fs::rename(&self.db, &place)?;
        let mut note = private_file().truncate(true).open(place.join("REASON"))?;
        writeln!(note, "{reason}")?;
        note.sync_all()?;
        sync_directory(&place)?;
        create_private(&self.db)?;
        sync_directory(&self.quarantine_root())?;
        sync_directory(&self.root)?;
        Ok(Quarantine { path: place, reason })
    }

    /// The bytes of the database and of what is in quarantine.
    pub(super) fn disk_bytes(&self) -> u64 {
        bytes_below(&self.db).saturating_add(bytes_below(&self.quarantine_root()))
    }
}

/// The version in the format file, if there is one.
fn read_format(root: &Path) -> Result<Option<u16>, StoreError> {
    let text = match fs::read_to_string(root.join("FORMAT")) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Io { op: "read FORMAT", source }),
    };
    let found = text.trim_end().strip_prefix(FORMAT_PREFIX).and_then(|version| version.parse::<u16>().ok());
    match found {
        Some(found) if found > FORMAT => Err(StoreError::FormatTooNew { found, supported: FORMAT }),
        Some(found) if found > 0 => Ok(Some(found)),
        _ => {
            let source = io::Error::new(ErrorKind::InvalidData, "FORMAT names no version that ever was");
            Err(StoreError::Io { op: "read FORMAT", source })
        }
    }
}

fn take_lock(root: &Path) -> Result<File, StoreError> {
    let file = private_file().open(root.join("LOCK")).map_err(io_error("open LOCK"))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(source)) => return Err(StoreError::Io { op: "lock directory", source }),
        }
    }
    Err(StoreError::Locked { dir: root.display().to_string() })
}

/// How a failed call of the file system is reported.
pub(super) fn io_error(op: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { op, source }
}

fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = private_file().truncate(true).open(path)?;
    // Not zeros: a file system that compresses or leaves holes would take any number of those.
    let mut noise = 0x9E37_79B9_7F4A_7C15_u64;
    let mut block = [0; 4096];
    for _ in 0..bytes.div_ceil(4096) {
        for word in block.chunks_exact_mut(8) {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&noise.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.flatten().fold(0, |sum, entry| {
        let bytes = match entry.file_type() {
            Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
            _ => entry.metadata().map_or(0, |meta| meta.len()),
        };
        sum.saturating_add(bytes)
    })
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Creates a directory for its owner alone; one that is there keeps its permissions.
#[cfg(unix)]
fn restrict(path: &Path, is_dir: bool) -> io::Result<()> {
    let mode = if is_dir { 0o700 } else { 0o600 };
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

#[cfg(not(unix))]
fn restrict(_path: &Path, _is_dir: bool) -> io::Result<()> {
    Ok(())
}
