//! What stands between the committer and its journal: one that panics has failed, and heals like any other that failed.
//!
//! A panic would otherwise end the thread, and whoever waits for a commit would wait for ever.

use core::cell::Cell;
use std::io;

use super::super::contain::called;
use crate::ports::{Appended, Group, Journal, JournalError, JournalSpace, Replay};
use crate::record::{Epoch, Seq};

/// A journal whose panics are errors.
pub(in crate::runtime) struct Shield {
    journal: Box<dyn Journal>,
    /// The room there was when it last said.
    space: Cell<JournalSpace>,
}

impl Shield {
    pub(in crate::runtime) fn over(journal: Box<dyn Journal>) -> Box<dyn Journal> {
        let space = Cell::new(journal.space());
        Box::new(Self { journal, space })
    }
}

/// Calls the journal.
fn call<T>(op: &'static str, call: impl FnOnce() -> Result<T, JournalError>) -> Result<T, JournalError> {
    let panicked = || JournalError::Io { op, source: io::Error::other("the journal panicked") };
    called(call).unwrap_or_else(|| Err(panicked()))
}

impl Journal for Shield {
    fn replay(
        &mut self,
        from: Seq,
        visit: &mut dyn FnMut(Group<'_>) -> Result<(), String>,
    ) -> Result<Replay, JournalError> {
        call("replay", || self.journal.replay(from, visit))
    }

    fn begin(&mut self, epoch: Epoch) -> Result<(), JournalError> {
        call("begin", || self.journal.begin(epoch))
    }

    fn append(
        &mut self,
        epoch: Epoch,
        group: Group<'_>,
        may_use_reserve: bool,
    ) -> Result<Appended, JournalError> {
        call("append", || self.journal.append(epoch, group, may_use_reserve))
    }

    fn sync(&mut self, epoch: Epoch) -> Result<(), JournalError> {
        call("sync", || self.journal.sync(epoch))
    }

    fn heal(&mut self, epoch: Epoch) -> Result<(), JournalError> {
        call("heal", || self.journal.heal(epoch))
    }

    fn recycle(&mut self, epoch: Epoch, before: Seq) -> Result<(), JournalError> {
        call("recycle", || self.journal.recycle(epoch, before))
    }

    fn space(&self) -> JournalSpace {
        let space = called(|| self.journal.space()).unwrap_or(self.space.get());
        self.space.set(space);
        space
    }
}
