//! A disk that fails and loses power on demand, the same way every time.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::faulty_store::Fault;
use crate::storage::disk::{Disk, DiskFile, MemoryDisk, Owner};

/// The calls that can be scripted to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// [`DiskFile::write_at`]. A prefix of the bytes gets through, see [`FaultyDisk::set_torn`].
    Write,
    /// [`DiskFile::sync_data`]. Nothing becomes durable.
    Sync,
    /// [`Disk::create_zeroed`]: the disk is full. A file of half the length is left behind.
    Create,
}

/// A [`MemoryDisk`] whose writes, syncs and creations fail as scripted. Clones are handles to the same disk.
///
/// Reads, listings and removals always work.
#[derive(Clone, Debug, Default)]
pub struct FaultyDisk {
    inner: MemoryDisk,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    calls: [Calls; 3],
    /// How many bytes of a failing write get through, of 256 parts.
    torn: u8,
    lying: bool,
}

/// The calls of one kind, and the faults to come.
#[derive(Debug, Default)]
struct Calls {
    count: u64,
    script: Vec<(u64, Fault)>,
    broken: bool,
}

impl Calls {
    fn next_fails(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
        let hit = self.script.iter().find(|(at, _)| *at == self.count).map(|(_, fault)| *fault);
        self.broken |= hit == Some(Fault::Forever);
        hit.is_some() || self.broken
    }
}

impl State {
    fn calls(&mut self, op: DiskOp) -> &mut Calls {
        let [writes, syncs, creates] = &mut self.calls;
        match op {
            DiskOp::Write => writes,
            DiskOp::Sync => syncs,
            DiskOp::Create => creates,
        }
    }
}

impl FaultyDisk {
    /// An empty disk with nothing scripted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The files.
    #[must_use]
    pub fn memory(&self) -> &MemoryDisk {
        &self.inner
    }

    /// Scripts call number `at` of `op` to fail. The first call ever made is number 1; what is past is not changed.
    pub fn fail_at(&self, op: DiskOp, at: u64, fault: Fault) {
        self.state.lock().calls(op).script.push((at, fault));
    }

    /// Scripts the very next call of `op` to fail.
    pub fn fail_next(&self, op: DiskOp, fault: Fault) {
        let mut state = self.state.lock();
        let calls = state.calls(op);
        let at = calls.count.saturating_add(1);
        calls.script.push((at, fault));
    }

    /// How many calls of `op` were made, failed ones included.
    #[must_use]
    pub fn count(&self, op: DiskOp) -> u64 {
        self.state.lock().calls(op).count
    }

    /// How much of a failing write gets through, in 256ths (none unless set).
    pub fn set_torn(&self, part: u8) {
        self.state.lock().torn = part;
    }

    /// Makes syncs a lie: they succeed and make nothing durable. A deliberate defect, for tests of tests.
    pub fn set_lying(&self, lying: bool) {
        self.state.lock().lying = lying;
    }

    /// Ends every fault, those to come included.
    pub fn heal(&self) {
        for calls in &mut self.state.lock().calls {
            calls.script.clear();
            calls.broken = false;
        }
    }

    /// The process ends; the operating system keeps what was written. Journal handles from before are fenced.
    pub fn kill(&self) {
        self.inner.owner().revoke();
    }

    /// A power cut: unsynced sectors survive where `keep(file, offset)` says so. Journal handles from before are
    /// fenced.
    pub fn power_cut(&self, keep: impl FnMut(&str, u64) -> bool) {
        self.inner.crash_keeping(keep);
    }

    fn fails(&self, op: DiskOp) -> bool {
        self.state.lock().calls(op).next_fails()
    }

    fn file(&self, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(FaultyFile { inner, disk: self.clone() })
    }
}

impl Disk for FaultyDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.inner.open(name)?))
    }

    fn create_zeroed(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        if self.fails(DiskOp::Create) {
            self.inner.create_zeroed(name, len / 2)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(self.file(self.inner.create_zeroed(name, len)?))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }

    fn owner(&self) -> Arc<Owner> {
        self.inner.owner()
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Box<dyn DiskFile>,
    disk: FaultyDisk,
}

impl DiskFile for FaultyFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.disk.fails(DiskOp::Write) {
            let part = usize::from(self.disk.state.lock().torn);
            let through = bytes.len().saturating_mul(part) / 256;
            self.inner.write_at(offset, bytes.get(..through).unwrap_or_default())?;
            return Err(io::Error::other("scripted failure of a write"));
        }
        self.inner.write_at(offset, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.disk.fails(DiskOp::Sync) {
            return Err(io::Error::other("scripted failure of a sync"));
        }
        if self.disk.state.lock().lying { Ok(()) } else { self.inner.sync_data() }
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_lets_only_a_part_through() {
        let disk = FaultyDisk::new();
        let file = disk.create_zeroed("a", 8).unwrap();
        disk.set_torn(128);
        disk.fail_next(DiskOp::Write, Fault::Once);
        assert!(file.write_at(0, &[1; 8]).is_err());
        assert_eq!(disk.memory().contents("a").unwrap(), [1, 1, 1, 1, 0, 0, 0, 0]);
        file.write_at(0, &[2; 8]).unwrap();
        assert_eq!(disk.memory().contents("a").unwrap(), [2; 8]);
    }

    #[test]
    fn a_lasting_fault_ends_when_it_is_healed() {
        let disk = FaultyDisk::new();
        let file = disk.create_zeroed("a", 8).unwrap();
        disk.fail_at(DiskOp::Sync, 2, Fault::Forever);
        assert!(file.sync_data().is_ok());
        assert!(file.sync_data().is_err() && file.sync_data().is_err());
        disk.heal();
        assert!(file.sync_data().is_ok());
        assert_eq!(disk.count(DiskOp::Sync), 4);
    }

    #[test]
    fn a_lying_sync_makes_nothing_durable() {
        let disk = FaultyDisk::new();
        let file = disk.create_zeroed("a", 512).unwrap();
        disk.set_lying(true);
        file.write_at(0, &[1; 512]).unwrap();
        file.sync_data().unwrap();
        disk.power_cut(|_, _| false);
        assert_eq!(disk.memory().contents("a").unwrap(), [0; 512]);
    }

    #[test]
    fn a_full_disk_refuses_new_files_and_leaves_a_shorter_one() {
        let disk = FaultyDisk::new();
        disk.fail_next(DiskOp::Create, Fault::Once);
        assert_eq!(disk.create_zeroed("a", 8).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.open("a").unwrap().len().unwrap(), 4);
    }
}
