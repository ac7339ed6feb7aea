//! Dead letters: what could not be delivered, kept to be looked at, sent again or thrown away.
//!
//! A message that ends and is kept is written once more, to the lane of the dead, in one commit with its end. There it is
//! like any other message, but for being offered: it settles, is merged, exported and found by operations.

use core::ops::Bound;
use std::sync::Arc;

use super::Machine;
use super::commit::Pending;
use super::entry::EntryState;
use super::io::EntryRef;
use super::user::User;
use crate::config::OnFailure;
use crate::id::UserId;
use crate::message::Priority;
use crate::record::{Accept, Admission, Burial, ForDevice, LaneId, LaneRow, Record, Seq, UserRow};
use crate::status::EndReason;
use crate::time::Timestamp;

impl Machine {
    pub(super) fn on_failure(&self, lane: LaneId) -> OnFailure {
        let index = lane.priority().map_or(0, Priority::index);
        self.config.on_failure.get(index).copied().unwrap_or_default()
    }

    /// Ends a message that cannot be delivered, and keeps it as a dead letter, unless its lane is to skip it or there is no room.
    pub(super) fn give_up(&mut self, now: Timestamp, id: &UserId, entry: EntryRef, reason: EndReason) {
        let found = self.users.get(id).and_then(|user| user.lane_ref(entry.lane).entry(entry.seq));
        let Some(accept) = found.map(|found| found.accept.clone()) else { return };
        let Some(end) = self.ending(now, id, entry, reason) else { return };
        if self.on_failure(entry.lane) == OnFailure::Skip || !self.has_room_for_letter(id, &accept) {
            return self.current.push(Pending::Fact(Record::End(end)));
        }
        let burial =
            Burial { reason, attempts: end.attempts, possibly_delivered: end.possibly_delivered, at: now };
        let admission = Admission::Buried(burial);
        let device = accept.device.map(ForDevice::alone);
        let message = accept.message.clone();
        let letter = Accept { admission, device, ..Accept::new(message, accept.at) };
        self.user_mut(id).dying.add(accept.message.cost());
        self.dying.add(accept.message.cost());
        self.push_unsent(vec![Arc::new(letter)], None, None);
        self.current.push(Pending::Joined(Record::End(end)));
    }

    /// A dead letter is durable in the journal: the store's list need not name this user yet.
    pub(super) fn note_letter(&mut self, id: &UserId) {
        self.with_letters.insert((id.as_bytes().len(), id.clone()));
    }

    /// A user leaves memory: all that they have is in the store by now.
    pub(super) fn forget_letters(&mut self, id: &UserId) {
        if !self.with_letters.is_empty() {
            self.with_letters.remove(&(id.as_bytes().len(), id.clone()));
        }
    }

    /// Users behind one who may have dead letters that the store does not list yet, at most so many: shorter ids first,
    /// then by bytes. Whoever then reads the store's list misses nobody. [`Operation::Letters`](super::Operation) says how
    /// many somebody has.
    #[must_use]
    pub fn letter_holders(&self, behind: Option<&UserId>, max: usize) -> Vec<UserId> {
        let behind = behind.map(|id| (id.as_bytes().len(), id.clone()));
        let from = behind.map_or(Bound::Unbounded, Bound::Excluded);
        let holders = self.with_letters.range((from, Bound::Unbounded));
        holders.take(max).map(|(_, id)| id.clone()).collect()
    }

    /// Whether somebody with this row has no dead letter and may have had some; `false` also when it is not known.
    pub(super) fn has_no_letters(user: &User, row: &UserRow) -> bool {
        let had = row.lanes.get(LaneId::Dead.index()).is_some_and(|lane| *lane != LaneRow::default());
        had && user.held.is_some_and(|held| held.dead == 0)
    }

    fn has_room_for_letter(&mut self, id: &UserId, accept: &Accept) -> bool {
        let (max, max_bytes) = (self.config.max_dead_letters, self.config.max_dead_bytes);
        let all = self.counters.dead_letters().saturating_add(self.dying.messages.into());
        let all_bytes = self.counters.dead_bytes().saturating_add(self.dying.bytes);
        let fits_in_all = all < self.config.max_total_dead_letters
            && all_bytes.saturating_add(accept.message.cost()) <= self.config.max_total_dead_bytes;
        let user = self.user_mut(id);
        let held = user.held.unwrap_or_default();
        let bytes = held.dead_bytes.saturating_add(user.dying.bytes).saturating_add(accept.message.cost());
        let has_room =
            fits_in_all && held.dead.saturating_add(user.dying.messages) < max && bytes <= max_bytes;
        self.stats.dead_letters_dropped += u64::from(!has_room);
        has_room
    }

    /// A dead letter has arrived after all: nobody needs to send it again.
    pub(super) fn exhume(&mut self, id: &UserId, letter: Seq) {
        let entry = EntryRef { lane: LaneId::Dead, seq: letter };
        let found = self.users.get(id).and_then(|user| user.lane_ref(entry.lane).entry(entry.seq));
        // What has settled and left memory stays: it says that it may have been delivered.
        if found.is_some_and(|found| found.state() == EntryState::Waiting) {
            self.end(self.now, id, entry, EndReason::Delivered);
        }
    }
}
