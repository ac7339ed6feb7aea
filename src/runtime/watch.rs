//! Who waits for what to become of a message: one driver's watchers.

use std::collections::HashMap;
use std::sync::Arc;

use lru::LruCache;
use tokio::sync::oneshot;

use super::receipt::{Reached, Stage};
use crate::id::UserId;
use crate::machine::{Change, EntryRef, Standing};
use crate::record::{ReadMark, Seq};
use crate::status::Status;

/// Waits at once in one shard; more are refused.
const MAX_WAITS: usize = 65_536;
/// Ends, and moves, remembered for those who begin to watch late.
const MAX_REMEMBERED: usize = 8192;
/// Waits looked at for each new one, whether somebody still waits, if there is no room.
const LOOKED_AT: usize = 64;

/// A message, to those who watch it.
pub(super) type Watched = (UserId, EntryRef);
/// How a watcher is told. Dropping it says that there are too many.
pub(super) type Waiting = oneshot::Sender<Seen>;
/// A user's conversation, to those who wait until it has been read.
pub(super) type Conversation = (UserId, u128);

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// What it has come to, and where it is by then.
    Reached(EntryRef, Reached),
    /// It is in these places from now on, one for each device: each of them is to be watched.
    Spread(Arc<[EntryRef]>),
    /// It is not there, and what it has come to is not remembered: somebody else has to be asked.
    Gone,
}

#[derive(Debug)]
pub(super) struct Watchers {
    waits: HashMap<Watched, Vec<(Stage, Waiting)>>,
    /// Up to where conversations are to be read for whom.
    reads: HashMap<Conversation, Vec<(Seq, oneshot::Sender<()>)>>,
    /// How many waits there are over all messages and conversations.
    count: usize,
    max: usize,
    /// How many waits may be looked at again: so many for each that came since that was done last.
    may_look_at: usize,
    #[cfg(test)]
    looked_at: usize,
    ended: LruCache<Watched, (Status, bool)>,
    /// Where messages went, for those who begin to watch where they were.
    moved: LruCache<Watched, Arc<[EntryRef]>>,
}

impl Default for Watchers {
    fn default() -> Self {
        let remembered = core::num::NonZeroUsize::new(MAX_REMEMBERED).unwrap_or(core::num::NonZeroUsize::MIN);
        Self {
            waits: HashMap::new(),
            reads: HashMap::new(),
            count: 0,
            max: MAX_WAITS,
            may_look_at: MAX_WAITS,
            #[cfg(test)]
            looked_at: 0,
            ended: LruCache::new(remembered),
            moved: LruCache::new(remembered),
        }
    }
}

impl Watchers {
    /// Tells those who wait for this.
    pub(super) fn announce(&mut self, change: &Change) {
        let ended = change.status.is_terminal();
        if !ended && self.waits.is_empty() {
            return;
        }
        let watched = (change.user.clone(), change.entry);
        if let Some(waiting) = self.waits.remove(&watched) {
            self.count -= waiting.len();
            for (stage, reply) in waiting {
                match Reached::of(stage, change.status, change.possibly_delivered) {
                    Some(reached) => drop(reply.send(Seen::Reached(change.entry, reached))),
                    None if reply.is_closed() => {}
                    None => self.wait(watched.clone(), stage, reply),
                }
            }
        }
        if ended {
            self.ended.put(watched, (change.status, change.possibly_delivered));
        }
    }

    /// A message waits in another lane from now on: whoever watches it goes on watching, each of its places if there are
    /// several now.
    pub(super) fn moved(&mut self, user: UserId, from: EntryRef, to: Vec<EntryRef>) {
        let to: Arc<[EntryRef]> = to.into();
        if let Some(waiting) = self.waits.remove(&(user.clone(), from)) {
            match to[..] {
                [to] => self.waits.entry((user.clone(), to)).or_default().extend(waiting),
                _ => {
                    self.count -= waiting.len();
                    waiting.into_iter().for_each(|(_, reply)| drop(reply.send(Seen::Spread(to.clone()))));
                }
            }
        }
        self.moved.put((user, from), to);
    }

    /// Where a message is now, as far as that is remembered; its places, if there are several.
    pub(super) fn place_of(&mut self, (user, mut entry): Watched) -> Result<Watched, Arc<[EntryRef]>> {
        while let Some(to) = self.moved.get(&(user.clone(), entry)) {
            match to[..] {
                [to] => entry = to,
                _ => return Err(to.clone()),
            }
        }
        Ok((user, entry))
    }

    /// Takes a wait, given where the message stands, and whether a sink was handed it. `true` when the store must be asked
    /// whether there is anything to wait for: then call [`Watchers::found`].
    pub(super) fn watch(
        &mut self,
        watched: Watched,
        (standing, was_sent): (Standing, bool),
        stage: Stage,
        reply: Waiting,
    ) -> bool {
        let known = match (self.ended.get(&watched), standing) {
            (Some(ended), _) => Some(*ended),
            (None, Standing::Gone) => {
                let _ = reply.send(Seen::Gone);
                return false;
            }
            // For a stage that is reached once and for all.
            (None, _) if was_sent && stage == Stage::Sent => Some((Status::Sent, false)),
            (None, Standing::Live(status)) => Some((status, false)),
            (None, Standing::AskStore) => None,
        };
        let reached = known.and_then(|(status, possibly)| Reached::of(stage, status, possibly));
        if let Some(reached) = reached {
            let _ = reply.send(Seen::Reached(watched.1, reached));
            return false;
        }
        if !self.has_room() {
            return false;
        }
        self.wait(watched, stage, reply);
        known.is_none()
    }

    /// Whether one more can wait. Now and then those who have left make room: all waits are looked at for that, but over time
    /// no more than a few for each new one, however many come while nobody leaves.
    fn has_room(&mut self) -> bool {
        self.may_look_at = self.may_look_at.saturating_add(LOOKED_AT).min(self.max);
        if self.count >= self.max && self.may_look_at >= self.count {
            self.may_look_at = 0;
            #[cfg(test)]
            {
                self.looked_at += self.count;
            }
            self.waits.retain(|_, waiting| {
                waiting.retain(|(_, reply)| !reply.is_closed());
                !waiting.is_empty()
            });
            self.reads.retain(|_, waiting| {
                waiting.retain(|(_, reply)| !reply.is_closed());
                !waiting.is_empty()
            });
            let reads: usize = self.reads.values().map(Vec::len).sum();
            self.count = self.waits.values().map(Vec::len).sum::<usize>() + reads;
        }
        self.count < self.max
    }

    /// Takes a wait until a conversation has been read up to a place.
    pub(super) fn watch_read(&mut self, of: Conversation, place: Seq, reply: oneshot::Sender<()>) {
        if self.has_room() {
            self.reads.entry(of).or_default().push((place, reply));
            self.count += 1;
        }
    }

    /// A conversation has been read: tells those who wait for that.
    pub(super) fn marked_read(&mut self, of: &Conversation, mark: ReadMark) {
        let Some(waiting) = self.reads.get_mut(of) else { return };
        for (_, reply) in waiting.extract_if(.., |(place, _)| *place <= mark.up_to) {
            self.count = self.count.saturating_sub(1);
            let _ = reply.send(());
        }
        if waiting.is_empty() {
            self.reads.remove(of);
        }
    }

    fn wait(&mut self, watched: Watched, stage: Stage, reply: Waiting) {
        self.waits.entry(watched).or_default().push((stage, reply));
        self.count += 1;
    }

    /// What the store knows of a message that is watched: it waits, and so many attempts have failed, or it is not there.
    pub(super) fn found(&mut self, watched: &Watched, attempts: Option<u32>) {
        if attempts == Some(0) {
            return;
        }
        let Some(waiting) = self.waits.remove(watched) else { return };
        self.count -= waiting.len();
        for (stage, reply) in waiting {
            match (attempts, stage) {
                (None, _) => drop(reply.send(Seen::Gone)),
                (Some(_), Stage::Sent) => {
                    let _ = reply.send(Seen::Reached(watched.1, Reached::Stage(stage)));
                }
                (Some(_), _) => self.wait(watched.clone(), stage, reply),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::LaneId;
    use crate::status::EndReason;
    use crate::time::Timestamp;

    fn watched(seq: u64) -> Watched {
        (UserId::new("alice").unwrap(), EntryRef { lane: LaneId::Normal, seq: Seq::new(seq) })
    }

    fn change(watched: &Watched, status: Status) -> Change {
        let (user, entry) = watched.clone();
        Change {
            user,
            entry,
            id: None,
            sender: None,
            event: None,
            status,
            possibly_delivered: false,
            attempts: 0,
        }
    }

    #[test]
    fn a_wait_that_the_store_knows_nothing_of_is_told_to_ask_elsewhere() {
        let mut watchers = Watchers::default();
        for (standing, attempts) in [(Standing::AskStore, None), (Standing::Gone, Some(0))] {
            let (reply, mut answer) = oneshot::channel();
            let asks = watchers.watch(watched(1), (standing, false), Stage::Delivered, reply);
            assert_eq!(asks, standing == Standing::AskStore);
            watchers.found(&watched(1), attempts);
            assert_eq!((answer.try_recv(), watchers.count), (Ok(Seen::Gone), 0));
        }
    }

    #[test]
    fn who_waits_for_the_first_offer_of_what_was_tried_is_told_at_once_and_by_the_store() {
        let mut watchers = Watchers::default();
        let told = Ok(Seen::Reached(watched(1).1, Reached::Stage(Stage::Sent)));
        let (reply, mut answer) = oneshot::channel();
        watchers.watch(watched(1), (Standing::Live(Status::Accepted), true), Stage::Sent, reply);
        assert_eq!(answer.try_recv(), told);
        let (reply, mut answer) = oneshot::channel();
        watchers.watch(watched(1), (Standing::Live(Status::Retrying), false), Stage::Sent, reply);
        assert_eq!(answer.try_recv(), told);
        let mut waits = [Stage::Sent, Stage::Delivered].map(|stage| {
            let (reply, answer) = oneshot::channel();
            assert!(watchers.watch(watched(1), (Standing::AskStore, false), stage, reply));
            answer
        });
        watchers.found(&watched(1), Some(0));
        assert!(waits[0].try_recv().is_err());
        watchers.found(&watched(1), Some(2));
        assert_eq!((waits[0].try_recv(), watchers.count), (told, 1));
        assert!(waits[1].try_recv().is_err());
    }

    /// Found by an audit: each new wait looked at all others.
    #[test]
    fn at_the_bound_a_new_wait_looks_at_few_others_and_room_is_found_once_somebody_leaves() {
        let mut watchers = Watchers { max: 4096, may_look_at: 4096, ..Watchers::default() };
        let mut begin = |n: u64| {
            let (reply, mut answer) = oneshot::channel();
            let standing = (Standing::Live(Status::Accepted), false);
            watchers.watch(watched(n), standing, Stage::Delivered, reply);
            let waits = answer.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty);
            (waits.then_some(answer), watchers.looked_at)
        };
        let mut waits: Vec<_> = (0..4096).map(|n| begin(n).0.expect("there is room")).collect();
        let mut looked_at = 0;
        for n in 0..1000 {
            let (wait, looked) = begin(10_000 + n);
            assert!(wait.is_none());
            looked_at = looked;
        }
        assert!(looked_at <= 4096 + 1000 * LOOKED_AT, "{looked_at}");
        waits.truncate(4000);
        let taken = (0..4096 / LOOKED_AT as u64).filter_map(|n| begin(20_000 + n).0);
        assert!(taken.count() > 0, "whoever left has made room");
    }

    #[test]
    fn those_who_come_late_are_told_of_an_end_and_those_who_wait_of_their_stage() {
        let mut watchers = Watchers::default();
        let (sent, mut was_sent) = oneshot::channel();
        let (delivered, mut was_delivered) = oneshot::channel();
        let accepted = Standing::Live(Status::Accepted);
        watchers.watch(watched(1), (accepted, false), Stage::Sent, sent);
        watchers.watch(watched(1), (accepted, false), Stage::Delivered, delivered);
        watchers.announce(&change(&watched(1), Status::Sent));
        assert_eq!(was_sent.try_recv(), Ok(Seen::Reached(watched(1).1, Reached::Stage(Stage::Sent))));
        assert!(was_delivered.try_recv().is_err());
        watchers.announce(&change(&watched(1), Status::Ended(EndReason::Delivered)));
        assert_eq!(
            was_delivered.try_recv(),
            Ok(Seen::Reached(watched(1).1, Reached::Stage(Stage::Delivered)))
        );
        let (late, mut was_late) = oneshot::channel();
        watchers.watch(watched(1), (Standing::AskStore, false), Stage::Delivered, late);
        assert_eq!(was_late.try_recv(), Ok(Seen::Reached(watched(1).1, Reached::Stage(Stage::Delivered))));
        assert_eq!(watchers.count, 0);
    }

    #[test]
    fn at_the_bound_those_who_left_make_room_and_nobody_else_does() {
        let mut watchers = Watchers { max: 2, ..Watchers::default() };
        let waits: Vec<_> = (0..4)
            .map(|n| {
                let (reply, answer) = oneshot::channel();
                let mut answer = Some(answer);
                let standing = (Standing::Live(Status::Accepted), false);
                watchers.watch(watched(n / 2), standing, Stage::Delivered, reply);
                if n == 1 {
                    answer = None;
                }
                answer
            })
            .collect();
        let open: Vec<_> = waits
            .into_iter()
            .map(|a| {
                a.is_some_and(|mut a| a.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty))
            })
            .collect();
        assert_eq!(open, [true, false, true, false]);
        assert_eq!(watchers.count, 2);
    }

    #[test]
    fn those_who_wait_for_a_reader_are_told_when_the_mark_reaches_them_and_count_against_the_bound() {
        let mut watchers = Watchers { max: 2, ..Watchers::default() };
        let of = |conversation| (UserId::new("alice").unwrap(), conversation);
        let mark = |up_to| ReadMark { up_to: Seq::new(up_to), at: Timestamp::ZERO };
        let mut waits: Vec<_> = [3, 5, 5]
            .map(|place| {
                let (reply, answer) = oneshot::channel();
                watchers.watch_read(of(1), Seq::new(place), reply);
                answer
            })
            .into();
        assert!(waits.pop().unwrap().try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Closed));
        watchers.marked_read(&of(2), mark(9));
        watchers.marked_read(&of(1), mark(4));
        let told: Vec<_> = waits.iter_mut().map(|wait| wait.try_recv().is_ok()).collect();
        assert_eq!((told, watchers.count), (vec![true, false], 1));
        watchers.marked_read(&of(1), mark(5));
        assert_eq!((waits[1].try_recv(), watchers.count, watchers.reads.len()), (Ok(()), 0, 0));
    }
}
