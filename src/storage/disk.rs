//! The disk port: the few file operations a journal needs, so that tests can make each of them fail.
//!
//! # Invariants
//! - A name is one plain file name inside the disk's directory.
//! - What [`DiskFile::write_at`] wrote may be lost, whole or in any part, until [`DiskFile::sync_data`] returns `Ok`.
//! - A write never changes bytes outside its range.
//!
//! The port deliberately knows nothing of segments or groups, and it does not lock the directory: that another
//! process stays out is the business of the store's directory lock. What it does carry is the [`Owner`], through
//! which handles *within* one process fence each other.

mod memory;
mod owner;
mod real;

use std::fmt;
use std::io;
use std::sync::Arc;

pub use memory::MemoryDisk;
pub use owner::Owner;
pub use real::RealDisk;
#[cfg(feature = "sled")]
pub(in crate::storage) use real::{create_durably, create_private, sync_directory};

/// A directory of files.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` when there is no such file, or what the medium says. Nothing was changed.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Creates a file of `len` zero bytes, *written* as zeros so that later writes change no metadata.
    ///
    /// # To ensure correctness
    /// After `Ok` the zeros, the length and the directory entry survive a power cut.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken (nothing was changed), or what the medium says: then a shorter file of
    /// that name may be left behind.
    fn create_zeroed(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>>;

    /// The names of all files, in no particular order.
    ///
    /// # Errors
    /// What the medium says. Nothing was changed.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Removes a file. The removal survives a power cut only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// `NotFound`, or what the medium says. The file may be gone all the same.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes creations and removals durable.
    ///
    /// # Errors
    /// What the medium says. Which creations and removals are durable is then unknown.
    fn sync_dir(&self) -> io::Result<()>;

    /// Who owns the journal on this disk. Every call on the same disk, and on every clone or wrapper of it, gives
    /// the same `Owner`.
    fn owner(&self) -> Arc<Owner>;
}

/// One open file.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Reads into `buf` from `offset` on and says how many bytes there were: fewer than asked for only at the end
    /// of the file.
    ///
    /// # Errors
    /// What the medium says. Nothing was changed; `buf` holds anything.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// What the medium says. Any part of the range may hold the old or the new bytes.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything written to this file durable (fdatasync).
    ///
    /// # Errors
    /// What the medium says. Which of the writes since the last success are durable is unknown, and calling this
    /// again proves nothing about them: an operating system may have dropped the pages.
    fn sync_data(&self) -> io::Result<()>;

    /// The length of the file in bytes.
    ///
    /// # Errors
    /// What the medium says. Nothing was changed.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file holds no bytes at all.
    ///
    /// # Errors
    /// As [`DiskFile::len`].
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
}
