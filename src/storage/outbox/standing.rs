//! Whether a settled message still waits.

use super::OutboxStore;
use crate::id::UserId;
use crate::machine::{Found, Query};
use crate::ports::StoreError;
use crate::record::{LaneId, Seq};

impl OutboxStore {
    /// How many attempts have failed to deliver this message, if the store holds it, or what damage left of it, and nothing
    /// that says that it has ended.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn waiting(&self, user: &UserId, lane: LaneId, seq: Seq) -> Result<Option<u32>, StoreError> {
        let row = match self.load(&Query::Row(user.clone()))? {
            Found::User { row, .. } => row,
            _ => None,
        };
        let row = row.as_ref().and_then(|row| row.lane(lane));
        if row.is_some_and(|row| seq <= row.cursor || row.ended.contains(&seq)) {
            return Ok(None);
        }
        let failed = row.and_then(|row| row.attempts.iter().find(|(of, ..)| *of == seq));
        let attempts = failed.map_or(0, |(_, attempts, _)| *attempts);
        let query = Query::Page {
            user: user.clone(),
            lane,
            after: seq.prev(),
            ended: Vec::new(),
            max_messages: 1,
            max_bytes: 1,
        };
        let waits = match self.load(&query)? {
            Found::Page(page) => {
                page.entries.first().is_some_and(|(first, _)| *first == seq)
                    || page.damaged.iter().any(|(damaged, _)| *damaged == seq)
            }
            _ => false,
        };
        Ok(waits.then_some(attempts))
    }
}
