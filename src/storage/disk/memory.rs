//! A disk in memory that knows what a power cut would leave.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile, Owner};

/// The unit that a power cut keeps or loses as a whole.
const SECTOR: usize = 512;

/// Files in memory, each with what is written and what is durable. Clones share the files.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<Files>>,
    owner: Arc<Owner>,
}

#[derive(Debug, Default)]
struct Files {
    present: BTreeMap<String, Arc<Mutex<Content>>>,
    /// Removed, but the directory was not synced since: a crash brings them back.
    removed: BTreeMap<String, Arc<Mutex<Content>>>,
}

/// One file: `written` is what a read sees, `durable` what a power cut leaves.
#[derive(Debug)]
struct Content {
    written: Vec<u8>,
    durable: Vec<u8>,
    /// Ranges (offset, length) that differ, in the order they were written.
    dirty: Vec<(usize, usize)>,
}

impl MemoryDisk {
    /// The size of the pieces that [`MemoryDisk::crash_keeping`] asks about, in bytes.
    pub const SECTOR_BYTES: u64 = SECTOR as u64;

    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A power cut that loses everything that was not synced. Every journal handle from before is fenced.
    pub fn crash(&self) {
        self.crash_keeping(|_, _| false);
    }

    /// A power cut that keeps those unsynced sectors for which `keep(file, offset of the sector)` says so, and
    /// loses the others. Every journal handle from before is fenced.
    pub fn crash_keeping(&self, mut keep: impl FnMut(&str, u64) -> bool) {
        let mut files = self.files.lock();
        let removed = std::mem::take(&mut files.removed);
        for (name, content) in removed {
            files.present.entry(name).or_insert(content);
        }
        for (name, content) in &files.present {
            content.lock().crash(|at| keep(name, at));
        }
        self.owner.revoke();
    }

    /// Changes bytes behind everyone's back, durably, as decay does. Bytes beyond the end of the file are ignored;
    /// a file that does not exist stays so.
    pub fn tamper(&self, name: &str, offset: u64, change: impl FnOnce(&mut [u8])) {
        let Some(content) = self.files.lock().present.get(name).cloned() else { return };
        let mut content = content.lock();
        let content = &mut *content;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(bytes) = content.written.get_mut(start..) {
            change(bytes);
            content.durable.clone_from(&content.written);
            content.dirty.clear();
        }
    }

    /// A copy of what a file holds, synced or not; `None` when there is no such file.
    #[must_use]
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let content = self.files.lock().present.get(name).cloned()?;
        let content = content.lock();
        Some(content.written.clone())
    }
}

impl Disk for MemoryDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let content = self.files.lock().present.get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(MemoryFile(content)))
    }

    fn create_zeroed(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut files = self.files.lock();
        if files.present.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let content = Content { written: vec![0; len], durable: vec![0; len], dirty: Vec::new() };
        let content = Arc::new(Mutex::new(content));
        files.present.insert(name.to_owned(), Arc::clone(&content));
        files.removed.clear();
        Ok(Box::new(MemoryFile(content)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().present.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut files = self.files.lock();
        let content = files.present.remove(name).ok_or(io::ErrorKind::NotFound)?;
        files.removed.insert(name.to_owned(), content);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.files.lock().removed.clear();
        Ok(())
    }

    fn owner(&self) -> Arc<Owner> {
        Arc::clone(&self.owner)
    }
}

impl Content {
    fn crash(&mut self, mut keep: impl FnMut(u64) -> bool) {
        let dirty = std::mem::take(&mut self.dirty);
        let mut sectors: Vec<usize> = dirty
            .into_iter()
            .flat_map(|(at, len)| at / SECTOR..at.saturating_add(len).div_ceil(SECTOR))
            .collect();
        sectors.sort_unstable();
        sectors.dedup();
        for sector in sectors {
            let start = sector.saturating_mul(SECTOR);
            if keep(start as u64) {
                let end = start.saturating_add(SECTOR).min(self.written.len());
                self.make_durable(start, end);
            }
        }
        self.written.clone_from(&self.durable);
    }

    fn make_durable(&mut self, start: usize, end: usize) {
        if let (Some(to), Some(from)) = (self.durable.get_mut(start..end), self.written.get(start..end)) {
            to.copy_from_slice(from);
        }
    }
}

/// An open file of a [`MemoryDisk`].
#[derive(Debug)]
struct MemoryFile(Arc<Mutex<Content>>);

impl DiskFile for MemoryFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let content = self.0.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = content.written.get(start..).unwrap_or_default();
        let len = from.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), from.get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut content = self.0.lock();
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = start.checked_add(bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        if end > content.written.len() {
            content.written.resize(end, 0);
            content.durable.resize(end, 0);
        }
        if let Some(to) = content.written.get_mut(start..end) {
            to.copy_from_slice(bytes);
        }
        content.dirty.push((start, bytes.len()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.0.lock();
        // Taken and given back, so that syncing in a steady state does not allocate.
        let mut dirty = std::mem::take(&mut content.dirty);
        for (start, len) in dirty.drain(..) {
            content.make_durable(start, start.saturating_add(len));
        }
        content.dirty = dirty;
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().written.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(disk: &MemoryDisk) -> Vec<u8> {
        disk.contents("a").unwrap()
    }

    #[test]
    fn crash_drops_what_no_sync_covered() {
        let disk = MemoryDisk::new();
        let file = disk.create_zeroed("a", 1024).unwrap();
        file.write_at(0, &[1; 512]).unwrap();
        file.sync_data().unwrap();
        file.write_at(256, &[2; 512]).unwrap();
        disk.crash();
        assert_eq!(read(&disk), [[1; 512], [0; 512]].concat());
    }

    #[test]
    fn crash_keeps_the_sectors_it_is_told_to_keep() {
        let disk = MemoryDisk::new();
        let file = disk.create_zeroed("a", 1536).unwrap();
        file.write_at(0, &[1; 1536]).unwrap();
        disk.crash_keeping(|name, at| name == "a" && at == 512);
        assert_eq!(read(&disk), [[0; 512], [1; 512], [0; 512]].concat());
    }

    #[test]
    fn removal_is_undone_by_a_crash_until_the_directory_is_synced() {
        let disk = MemoryDisk::new();
        disk.create_zeroed("a", 1).unwrap();
        disk.remove("a").unwrap();
        disk.crash();
        assert_eq!(disk.list().unwrap(), ["a"]);
        disk.remove("a").unwrap();
        disk.sync_dir().unwrap();
        disk.crash();
        assert!(disk.list().unwrap().is_empty());
    }
}
