//! How far people have read: marks that only rise, and of which those that lie furthest ahead are kept.

use std::collections::BTreeMap;

use super::Oracle;
use crate::id::UserId;
use crate::machine::UserSnapshot;
use crate::record::{Read, ReadMark};

/// The highest mark that each of a user's conversations ever had, also of what is forgotten.
pub(super) type Marks = BTreeMap<u128, ReadMark>;

impl Oracle {
    pub(super) fn fold_read(&mut self, read: &Read) {
        self.latest = self.latest.max(read.at);
        let mark = ReadMark { up_to: read.up_to, at: read.at };
        let marks = self.reads.entry(read.user.clone()).or_default();
        let known = marks.entry(read.conversation).or_insert(mark);
        if mark.up_to > known.up_to {
            *known = mark;
        }
    }

    /// Those of a user's marks that are kept.
    fn kept_marks(&self, user: &UserId, max: usize) -> Marks {
        let mut all: Vec<_> =
            self.reads.get(user).into_iter().flatten().map(|(of, mark)| (*of, *mark)).collect();
        all.sort_unstable_by_key(|(conversation, mark)| {
            (core::cmp::Reverse(mark.up_to), core::cmp::Reverse(*conversation))
        });
        all.into_iter().take(max).collect()
    }

    /// `max` is how many are kept.
    pub(super) fn what_is_wrong_with_reads(
        &self,
        user: &UserId,
        held: &UserSnapshot,
        max: usize,
    ) -> Option<String> {
        let held: Marks = held.reads.as_ref()?.iter().map(|row| (row.conversation, row.mark)).collect();
        let kept = self.kept_marks(user, max);
        (held != kept).then(|| format!("marks are {kept:?}, in memory {held:?}"))
    }

    /// Watchers were told that somebody has read something.
    pub(in super::super) fn marked_read(&mut self, user: &UserId, mark: ReadMark) {
        if !self.is_read(user, Some(mark)) {
            self.fail(format!("{user} was said to have read up to {mark:?}, which is not durable"));
        }
    }

    /// Whether what was said of a mark is durable.
    pub(super) fn is_read(&self, user: &UserId, said: Option<ReadMark>) -> bool {
        said.is_none_or(|said| {
            self.reads.get(user).is_some_and(|all| all.values().any(|mark| mark.up_to >= said.up_to))
        })
    }
}
