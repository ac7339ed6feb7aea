//! A host that must see every end: it reads the feed of ends, keeps the position that it has handled, and goes on from
//! there when its process comes back.

use super::node::Node;
use crate::config::KeepEnds;
use crate::record::{End, EndPosition, Ended, Seq};
use crate::storage::outbox::EndsError;

/// Ends that are read at once.
const PAGE: usize = 3;

/// How far the host is.
#[derive(Debug, Default)]
pub(super) struct Feed {
    /// What it keeps: it outlives its process.
    handled: EndPosition,
    /// What it has read, in this life of the engine's process.
    read: Option<EndPosition>,
    turns: u64,
}

impl Node {
    /// Reads the next ends now and then, and handles what was read before.
    pub(super) fn read_ends_now_and_then(&mut self) {
        self.feed.turns += 1;
        if self.engine.is_none() {
            self.feed.read = None;
        } else if self.is_superseded {
            // Its host goes on with the engine that took over.
        } else if self.feed.turns.is_multiple_of(7) {
            self.read_ends();
        }
    }

    /// Everything that is left; afterwards it has seen all.
    pub(super) fn read_all_ends(&mut self) {
        self.feed.read = None;
        for _ in 0..100_000 {
            if !self.read_ends() {
                return;
            }
        }
        self.oracle.fail("the ends do not come to an end");
    }

    /// `false` when there were none.
    fn read_ends(&mut self) -> bool {
        if self.plan.config.keep_ends == KeepEnds::Nothing {
            return false;
        }
        let after = *self.feed.read.get_or_insert(self.feed.handled);
        match self.home.read_ends(after, PAGE) {
            Ok(ends) => {
                self.check_ends(after, &ends);
                self.feed.handled = after;
                if let Some(last) = ends.last() {
                    self.feed.read = Some(last.position);
                }
                !ends.is_empty()
            }
            Err(EndsError::Lagged { missed, resume }) => {
                self.check_dropped(after, resume.place, missed);
                self.feed.read = Some(resume);
                true
            }
            Err(error) => {
                self.oracle.fail(format!("the ends cannot be read: {error}"));
                false
            }
        }
    }

    /// The ends that were recorded behind a place, and are to be kept.
    fn recorded(&self, behind: Seq) -> impl Iterator<Item = (&Seq, &End)> {
        let which = self.plan.config.keep_ends;
        self.oracle.ends.range(behind.next()..).filter(move |(_, end)| which.keeps(end))
    }

    fn check_ends(&mut self, after: EndPosition, ends: &[Ended]) {
        // Whoever begins at the start is not told of what is gone already.
        let mut from = after.place;
        if after == EndPosition::START {
            from = ends.first().map_or(Seq::MAX, |first| first.position.place.prev());
            self.check_dropped(after, from, None);
        }
        let found: Vec<_> = ends.iter().map(|ended| (&ended.position.place, &ended.end)).collect();
        let expected: Vec<_> = self.recorded(from).take(PAGE).collect();
        // Where rows end and memory begins, a page may be a short one.
        let is_next = expected.starts_with(&found) && found.is_empty() == expected.is_empty();
        if !is_next {
            let what = format!("behind {after:?} the ends are {expected:?}, but {found:?} were read");
            self.oracle.fail(what);
        }
    }

    /// What was dropped is old enough, or there are enough newer ones; and it was counted.
    fn check_dropped(&mut self, after: EndPosition, through: Seq, missed: Option<u64>) {
        let config = &self.plan.config;
        let dropped: Vec<_> =
            self.recorded(after.place).take_while(|(place, _)| **place <= through).collect();
        let newer = self.recorded(through).count() as u64;
        let latest = self.now.max(self.oracle.latest);
        let young = dropped.iter().find(|(_, end)| latest.since(end.at) < config.ends_age);
        let wrong = match (young, missed) {
            (Some((place, _)), _) if newer < config.max_ends.get() => {
                Some(format!("{place:?} was dropped, with {newer} newer ones"))
            }
            (_, Some(missed)) if missed != dropped.len() as u64 => {
                Some(format!("{} ends were dropped, {missed} are said to be", dropped.len()))
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            self.oracle.fail(format!("behind {after:?}: {wrong}"));
        }
    }
}
