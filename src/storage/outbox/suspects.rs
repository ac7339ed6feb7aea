//! What loads have found damaged: nobody asked for it, so it is written down.

use super::OutboxStore;
use super::verify::Damage;

/// No more is kept; `verify` names everything.
const MAX_SUSPECTS: usize = 1024;

impl OutboxStore {
    /// Users who were loaded since opening and may have lost messages, because a chunk of a run in which some of theirs
    /// may lie is damaged; at most 1,024. What is known of a message by its place is ended as dead as well; what lay
    /// behind it in the same chunk, nobody can say. [`OutboxStore::verify`] reads everything and names all damage.
    #[must_use]
    pub fn suspects(&self) -> Vec<Damage> {
        self.inner.suspects.lock().clone()
    }

    pub(super) fn suspect(&self, damage: Damage) {
        let mut suspects = self.inner.suspects.lock();
        if suspects.len() >= MAX_SUSPECTS || suspects.contains(&damage) {
            return;
        }
        // Not who: ids of people do not belong into logs.
        tracing::warn!(
            run = damage.run,
            reason = damage.reason,
            "messages of a user may be lost: a chunk is damaged"
        );
        suspects.push(damage);
    }
}
