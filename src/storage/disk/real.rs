//! Files in a directory of the operating system.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::{Disk, DiskFile, Owner};

/// Zeros are written in pieces of this size.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A directory, private to its user (0700, files 0600 where the system knows such modes).
///
/// Clones share one [`Owner`]. Two `RealDisk`s opened on one directory do not: hold the store's directory lock.
#[derive(Clone, Debug)]
pub struct RealDisk {
    directory: PathBuf,
    owner: Arc<Owner>,
}

impl RealDisk {
    /// Opens the directory, creating it (and its parents) durably when it is missing.
    ///
    /// # Errors
    /// What the operating system says. Some of the directories may have been created.
    pub fn open(directory: impl Into<PathBuf>) -> io::Result<Self> {
        let directory = directory.into();
        // An empty one may have been made by a process that did not live to make it durable.
        if !directory.is_dir() || fs::read_dir(&directory)?.next().is_none() {
            create_durably(&directory)?;
        }
        Ok(Self { directory, owner: Arc::new(Owner::new()) })
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, name: &str) -> io::Result<PathBuf> {
        let mut parts = Path::new(name).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(part)), None) => Ok(self.directory.join(part)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file name")),
        }
    }
}

impl Disk for RealDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path(name)?)?;
        Ok(Box::new(RealFile::new(file)))
    }

    fn create_zeroed(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = RealFile::new(options.open(self.path(name)?)?);
        let mut at = 0;
        while at < len {
            let piece = (len - at).min(ZEROS.len() as u64);
            file.write_at(at, ZEROS.get(..piece as usize).unwrap_or(&ZEROS))?;
            at += piece;
        }
        file.file.sync_all()?;
        self.sync_dir()?;
        Ok(Box::new(file))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            // A name that is not Unicode is not one of ours.
            if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string()) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name)?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_directory(&self.directory)
    }

    fn owner(&self) -> Arc<Owner> {
        Arc::clone(&self.owner)
    }
}

/// Creates a directory and the parents that are missing, private to their user, and makes every entry that leads to it
/// durable: without that of a parent, a power cut takes along all that is in it.
///
/// # Errors
/// What the operating system says. Parents that were there before may be of somebody else, and are synced as far as they can
/// be.
pub(in crate::storage) fn create_durably(directory: &Path) -> io::Result<()> {
    let missing = directory.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
    let missing = missing.count();
    create_private(directory)?;
    for (made, parent) in directory.canonicalize()?.ancestors().skip(1).enumerate() {
        let synced = sync_directory(parent);
        if made < missing {
            synced?;
        }
    }
    Ok(())
}

/// Creates a directory and the parents that are missing, private to their user.
pub(in crate::storage) fn create_private(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

#[cfg(unix)]
pub(in crate::storage) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Elsewhere a directory cannot be opened as a file; the file system journals its entries by itself.
#[cfg(not(unix))]
pub(in crate::storage) fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

/// A file with positional reads and writes.
#[derive(Debug)]
struct RealFile {
    file: File,
    /// Where there is no positional I/O, seeking and reading must happen together.
    #[cfg(not(unix))]
    cursor: parking_lot::Mutex<()>,
}

impl RealFile {
    fn new(file: File) -> Self {
        Self {
            file,
            #[cfg(not(unix))]
            cursor: parking_lot::Mutex::new(()),
        }
    }

    #[cfg(unix)]
    fn read_some(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, buf, offset)
    }

    #[cfg(not(unix))]
    fn read_some(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        use std::io::{Read, Seek, SeekFrom};
        let _together = self.cursor.lock();
        (&self.file).seek(SeekFrom::Start(offset))?;
        (&self.file).read(buf)
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0_usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_some(offset.saturating_add(done as u64), rest) {
                Ok(0) => break,
                Ok(some) => done += some,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    #[cfg(unix)]
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset)
    }

    #[cfg(not(unix))]
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        use std::io::{Seek, SeekFrom, Write};
        let _together = self.cursor.lock();
        (&self.file).seek(SeekFrom::Start(offset))?;
        (&self.file).write_all(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_what_was_written_where_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path().join("deep").join("er")).unwrap();
        let file = disk.create_zeroed("a", 100_000).unwrap();
        file.write_at(99_990, b"end").unwrap();
        file.sync_data().unwrap();
        let again = disk.open("a").unwrap();
        let mut bytes = [1; 20];
        assert_eq!(again.read_at(99_988, &mut bytes).unwrap(), 12, "a read stops at the end of the file");
        assert_eq!(&bytes[..7], b"\0\0end\0\0");
        assert_eq!(again.len().unwrap(), 100_000);
        assert_eq!(disk.list().unwrap(), ["a"]);
        disk.remove("a").unwrap();
        assert_eq!(disk.open("a").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path()).unwrap();
        for name in ["", ".", "..", "../x", "/etc/passwd", "a/b"] {
            assert!(disk.create_zeroed(name, 1).is_err(), "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn directory_and_files_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path().join("j")).unwrap();
        disk.create_zeroed("a", 1).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(disk.directory()), 0o700);
        assert_eq!(mode(&disk.directory().join("a")), 0o600);
    }
}
