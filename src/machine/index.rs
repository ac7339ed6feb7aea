//! What users have who are not in memory: all that the quotas need, in as few bytes as can be.

use super::query::Holdings;
use crate::digest::DigestMap;

/// Holdings by the user's digest.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Messages and bytes of those who have any.
    living: DigestMap<(u32, u64)>,
    /// The rest, for the few who have something there.
    aside: DigestMap<Holdings>,
}

impl Index {
    /// What a user had when they left memory; `None` when that was nothing, or nobody knew.
    pub(super) fn take(&mut self, digest: u128) -> Option<Holdings> {
        let living = self.living.remove(&digest);
        let aside = if self.aside.is_empty() { None } else { self.aside.remove(&digest) };
        aside.or(living.map(|(messages, bytes)| Holdings { messages, bytes, ..Holdings::default() }))
    }

    pub(super) fn put(&mut self, digest: u128, held: Holdings) {
        let Holdings { messages, bytes, scheduled, dead, .. } = held;
        if scheduled > 0 || dead > 0 {
            self.aside.insert(digest, held);
        } else {
            self.living.insert(digest, (messages, bytes));
        }
    }

    /// How many users there are.
    pub(super) fn len(&self) -> usize {
        self.living.len() + self.aside.len()
    }
}
