//! Who has dead letters: a list of users, so that nobody need be asked who has none.
//!
//! A settlement lists everybody of whom it writes a dead letter, before its table says that the letter is there. It takes
//! those off of whom their machine says that they have none, right behind the row that says so. So whoever has a dead letter
//! in a run is listed, whatever a crash leaves; who is listed may have none any more.

use std::collections::BTreeSet;

use super::OutboxStore;
use super::chunk::entries;
use super::keys::{self, Key};
use super::rows::Change;
use super::writer::Pending;
use crate::id::UserId;
use crate::ports::{Flow, StoreError};
use crate::record::{Epoch, LaneId};

/// The version of the list.
const VERSION: u8 = 1;
/// The most users who are named at once.
const MAX_NAMED: usize = 1024;

/// Users who are listed from now on.
#[derive(Debug, Default)]
pub(super) struct Newly(BTreeSet<UserId>);

impl Newly {
    /// A dead letter of this user settles.
    pub(super) fn note(&mut self, user: &UserId) {
        if !self.0.contains(user) {
            self.0.insert(user.clone());
        }
    }

    /// Adds changes until there is enough for a batch; `true` when all were added.
    pub(super) fn fill(&mut self, pending: &mut Pending) -> bool {
        while !pending.is_full() {
            let Some(user) = self.0.pop_first() else { return true };
            list(&user, pending);
        }
        self.0.is_empty()
    }
}

pub(super) fn list(user: &UserId, pending: &mut Pending) {
    pending.put(Key::Letters { user: user.clone() }.encode(), vec![VERSION]);
}

impl OutboxStore {
    /// Users who may have dead letters that have settled, behind one of them: shorter ids first, then by bytes. At most `max`,
    /// and 1,024. Whoever has some is among them; some of them may have none any more.
    ///
    /// # Errors
    /// [`StoreError::Io`]. Nothing was changed.
    pub fn letter_holders(&self, behind: Option<&UserId>, max: usize) -> Result<Vec<UserId>, StoreError> {
        let max = max.clamp(1, MAX_NAMED);
        let mut users = Vec::new();
        let (from, to) = keys::letters_behind(behind);
        self.dyn_store().scan(&from, &to, &mut |key, _| {
            // The key says it all: its value may be damaged.
            if let Some(Key::Letters { user }) = Key::decode(key) {
                users.push(user);
            }
            if users.len() < max { Flow::Continue } else { Flow::Stop }
        })?;
        Ok(users)
    }

    /// Whether a user is listed.
    pub(super) fn lists_letters_of(&self, user: &UserId) -> Result<bool, StoreError> {
        match self.dyn_store().read(&Key::Letters { user: user.clone() }.encode()) {
            Err(StoreError::Damaged { .. }) => Ok(true),
            found => Ok(found?.is_some()),
        }
    }

    /// Takes a user off the list who is on it.
    pub(super) fn unlist_letters(&self, user: &UserId, pending: &mut Pending) -> Result<(), StoreError> {
        if self.lists_letters_of(user)? {
            pending.push(Change::Delete(Key::Letters { user: user.clone() }.encode()));
        }
        Ok(())
    }

    /// Makes the list where there is none yet: of what an older version left. Reads every run, if there are dead letters.
    pub(super) fn begin_letters(&self, epoch: Epoch) -> Result<(), StoreError> {
        let head = Key::LettersHead.encode();
        let found = match self.dyn_store().read(&head) {
            Err(StoreError::Damaged { .. }) => None,
            other => other?,
        };
        if found.is_some() {
            return Ok(());
        }
        let table = self.table();
        let mut pending = Pending::default();
        if table.counters.iter().any(|(counters, _)| counters.dead_letters() > 0) {
            let mut newly = Newly::default();
            for run in &table.runs {
                let (from, to) = keys::chunks_of(run.number, run.number);
                self.dyn_store().scan(&from, &to, &mut |_, value| {
                    let mut users = Vec::new();
                    for entry in entries(value.unwrap_or_default(), &mut users).flatten() {
                        if let (LaneId::Dead, Ok(user)) = (entry.lane, UserId::new(entry.user)) {
                            newly.note(&user);
                        }
                    }
                    Flow::Continue
                })?;
            }
            while !newly.fill(&mut pending) {
                self.apply(epoch, pending.take())?;
            }
        }
        pending.put(head, vec![VERSION]);
        while !pending.is_empty() {
            self.apply(epoch, pending.take())?;
        }
        Ok(())
    }
}
