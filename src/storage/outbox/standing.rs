//! Whether a settled message still waits.

use super::OutboxStore;
use crate::id::UserId;
use crate::machine::{Found, Query};
use crate::ports::StoreError;
use crate::record::{LaneId, Seq};

impl OutboxStore {
    /// Whether the store holds this message, or what damage left of it, and nothing that says that it has ended.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn is_waiting(&self, user: &UserId, lane: LaneId, seq: Seq) -> Result<bool, StoreError> {
        let ended = match self.load(&Query::Row(user.clone()))? {
            Found::User { row: Some(row), .. } => {
                row.lane(lane).is_some_and(|lane| seq <= lane.cursor || lane.ended.contains(&seq))
            }
            _ => false,
        };
        if ended {
            return Ok(false);
        }
        let query = Query::Page {
            user: user.clone(),
            lane,
            after: seq.prev(),
            ended: Vec::new(),
            max_messages: 1,
            max_bytes: 1,
        };
        Ok(match self.load(&query)? {
            Found::Page(page) => {
                page.entries.first().is_some_and(|(first, _)| *first == seq)
                    || page.damaged.iter().any(|(damaged, _)| *damaged == seq)
            }
            _ => false,
        })
    }
}
