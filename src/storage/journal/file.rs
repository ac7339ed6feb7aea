//! The journal in segment files.

use std::sync::Arc;

use crate::ports::{Appended, Group, Journal, JournalError, JournalSpace, Replay};
use crate::record::{Epoch, Seq};
use crate::storage::disk::{Disk, Owner};

use super::config::JournalConfig;
use super::layout::{Layout, io};
use super::replay::{Scan, Visit, scan};
use super::writer::{Writer, space};

/// A journal of preallocated, recycled segment files on a [`Disk`].
///
/// See the [module](super) for the format and for what happens when it is full.
#[derive(Debug)]
pub struct FileJournal {
    disk: Arc<dyn Disk>,
    owner: Arc<Owner>,
    config: JournalConfig,
    scan: Option<Scan>,
    writer: Option<Writer>,
    /// Generations below were tried by a `begin` that failed: they may be on disk.
    tried_generation: u64,
}

impl FileJournal {
    /// A handle on the journal of this disk. Files are created by `begin`; until then nothing is written.
    ///
    /// # Errors
    /// [`JournalError::Io`] when the configuration is refused (see [`JournalConfig::validate`]) or a header cannot
    /// be read; [`JournalError::FormatTooNew`]. Nothing was touched.
    pub fn open(disk: impl Into<Arc<dyn Disk>>, config: JournalConfig) -> Result<Self, JournalError> {
        let invalid = |error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error);
        config.validate().map_err(invalid).map_err(io("open journal"))?;
        let disk = disk.into();
        Layout::read(&*disk)?;
        let owner = disk.owner();
        Ok(Self { disk, owner, config, scan: None, writer: None, tried_generation: 0 })
    }

    /// The disk this journal is on.
    #[must_use]
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The configuration it was opened with.
    #[must_use]
    pub const fn config(&self) -> JournalConfig {
        self.config
    }

    /// A fresh handle on the same journal, which has neither replayed nor begun.
    pub(super) fn another_handle(&self) -> Self {
        let (disk, owner) = (Arc::clone(&self.disk), Arc::clone(&self.owner));
        Self { disk, owner, config: self.config, scan: None, writer: None, tried_generation: 0 }
    }

    #[cfg(test)]
    pub(super) fn buffer_for_tests(&self) -> Option<*const u8> {
        self.writer.as_ref().map(Writer::buffer_for_tests)
    }

    fn scan(&self, from: Seq, visit: Visit<'_>) -> Result<Scan, JournalError> {
        let changes = self.owner.lock().changes;
        scan(&Layout::read(&*self.disk)?, from, visit, changes)
    }

    /// Runs `work` on the writer while no other handle of this process can write.
    fn owned<R>(
        &mut self,
        epoch: Epoch,
        work: impl FnOnce(&mut Writer) -> Result<R, JournalError>,
    ) -> Result<R, JournalError> {
        let mut owner = self.owner.lock();
        let writer = self.writer.as_mut().filter(|writer| writer.epoch() == epoch && owner.epoch == epoch);
        let writer = writer.ok_or(JournalError::Fenced { held: epoch, current: owner.epoch })?;
        owner.changes = owner.changes.wrapping_add(1);
        work(writer)
    }
}

impl Journal for FileJournal {
    fn replay(&mut self, from: Seq, visit: Visit<'_>) -> Result<Replay, JournalError> {
        self.scan = None;
        let scan = self.scan(from, visit)?;
        let replay = scan.replay.clone();
        self.scan = Some(scan);
        Ok(replay)
    }

    /// Besides what the port says: refuses with [`JournalError::Io`] when another handle has written since this
    /// one's replay, as the caller's state would lack those groups; replay again. Without a replay before it, the
    /// log is read here and handed to nobody. A failed `begin` may be repeated.
    fn begin(&mut self, epoch: Epoch) -> Result<(), JournalError> {
        self.writer = None;
        let scan = match self.scan.take() {
            Some(scan) => scan,
            None => self.scan(Seq::MAX, &mut |_| Ok(()))?,
        };
        let mut owner = self.owner.lock();
        let seen = scan.replay.epoch.max(owner.epoch);
        if epoch <= seen {
            self.scan = Some(scan);
            return Err(JournalError::Fenced { held: epoch, current: seen });
        }
        if scan.changes != owner.changes {
            let cause = "another handle has written since the replay: replay again";
            return Err(io("begin")(std::io::Error::other(cause)));
        }
        let newest = scan.newest_generation.max(self.tried_generation);
        self.tried_generation = newest.saturating_add(1);
        let begun = Writer::begin(&self.disk, self.config, epoch, &scan, newest);
        self.scan = Some(scan).filter(|_| begun.is_err());
        self.writer = Some(begun?);
        owner.epoch = epoch;
        owner.changes = owner.changes.wrapping_add(1);
        Ok(())
    }

    fn append(
        &mut self,
        epoch: Epoch,
        group: Group<'_>,
        may_use_reserve: bool,
    ) -> Result<Appended, JournalError> {
        self.owned(epoch, |writer| writer.append(group, may_use_reserve))
    }

    fn sync(&mut self, epoch: Epoch) -> Result<(), JournalError> {
        self.owned(epoch, Writer::sync)
    }

    fn heal(&mut self, epoch: Epoch) -> Result<(), JournalError> {
        self.owned(epoch, Writer::heal)
    }

    fn recycle(&mut self, epoch: Epoch, before: Seq) -> Result<(), JournalError> {
        self.owned(epoch, |writer| {
            writer.recycle(before);
            Ok(())
        })
    }

    fn space(&self) -> JournalSpace {
        self.writer.as_ref().map_or_else(|| space(self.config), Writer::space)
    }
}
