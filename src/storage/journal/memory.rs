//! The journal in memory.

use crate::ports::{Appended, Group, Journal, JournalError, JournalSpace, Replay};
use crate::record::{Epoch, Seq};
use crate::storage::disk::MemoryDisk;

use super::{FileJournal, JournalConfig};

/// A [`FileJournal`] on a [`MemoryDisk`]: the same bounds, the same fencing, and a crash on demand.
///
/// A clone is a fresh handle on the same memory, as a process that opens the same directory has it: it must replay
/// and begin by itself, and its `begin` fences the handles from before.
#[derive(Debug)]
pub struct MemoryJournal {
    disk: MemoryDisk,
    journal: FileJournal,
}

impl MemoryJournal {
    /// An empty journal.
    ///
    /// # Errors
    /// [`JournalError::Io`] when the configuration is refused (see [`JournalConfig::validate`]).
    pub fn new(config: JournalConfig) -> Result<Self, JournalError> {
        Self::on(MemoryDisk::new(), config)
    }

    /// The journal on this disk, whose files other handles may share.
    ///
    /// # Errors
    /// As [`FileJournal::open`].
    pub fn on(disk: MemoryDisk, config: JournalConfig) -> Result<Self, JournalError> {
        let journal = FileJournal::open(std::sync::Arc::new(disk.clone()) as std::sync::Arc<_>, config)?;
        Ok(Self { disk, journal })
    }

    /// The memory: to crash it partly, to damage it, or to look at it.
    #[must_use]
    pub fn disk(&self) -> &MemoryDisk {
        &self.disk
    }

    /// A power cut: groups that no sync covered are gone, and all handles, this one too, are fenced. Clone one to
    /// open the journal again.
    pub fn crash(&self) {
        self.disk.crash();
    }
}

impl Clone for MemoryJournal {
    fn clone(&self) -> Self {
        let journal = self.journal.another_handle();
        Self { disk: self.disk.clone(), journal }
    }
}

impl Journal for MemoryJournal {
    fn replay(
        &mut self,
        from: Seq,
        visit: &mut dyn FnMut(Group<'_>) -> Result<(), String>,
    ) -> Result<Replay, JournalError> {
        self.journal.replay(from, visit)
    }

    fn begin(&mut self, epoch: Epoch) -> Result<(), JournalError> {
        self.journal.begin(epoch)
    }

    fn append(
        &mut self,
        epoch: Epoch,
        group: Group<'_>,
        may_use_reserve: bool,
    ) -> Result<Appended, JournalError> {
        self.journal.append(epoch, group, may_use_reserve)
    }

    fn sync(&mut self, epoch: Epoch) -> Result<(), JournalError> {
        self.journal.sync(epoch)
    }

    fn heal(&mut self, epoch: Epoch) -> Result<(), JournalError> {
        self.journal.heal(epoch)
    }

    fn recycle(&mut self, epoch: Epoch, before: Seq) -> Result<(), JournalError> {
        self.journal.recycle(epoch, before)
    }

    fn space(&self) -> JournalSpace {
        self.journal.space()
    }
}
