//! Messages whose time is still to come: they wait in a lane of their own, and move to that of their priority.
//!
//! A message takes a new place when it moves. With its old one it would be offered behind newer messages, which an inbox
//! that has seen those would take for a repeat; and until then it would hold the lane's cursor back.

use core::time::Duration;
use std::sync::Arc;

use super::Machine;
use super::commit::Instead;
use super::io::EntryRef;
use super::operate::Work;
use super::user::Totals;
use crate::id::UserId;
use crate::record::{Accept, Admission, ForDevice};
use crate::status::EndReason;
use crate::time::Timestamp;

/// The least time between two looks through what a user has scheduled, if that must be read from the store.
const SPACING: Duration = Duration::from_secs(1);

impl Machine {
    /// Looks for what is due, if something is scheduled for a user who is there and it may be.
    pub(super) fn ripen(&mut self, id: &UserId) {
        let (now, applied) = (self.now, self.applied);
        let Some(user) = self.users.get_mut(id) else { return };
        let has_scheduled = user.held.is_some_and(|held| held.scheduled > 0);
        if user.ripening || !has_scheduled || !user.is_known() || !user.is_attached() || user.next_ripe > now
        {
            return;
        }
        user.ripening = true;
        user.next_ripe = Timestamp::NEVER;
        self.begin(id.clone(), Work::Ripen(Timestamp::NEVER), applied);
    }

    /// The time of a message has come, or even gone by.
    pub(super) fn ripen_one(&mut self, id: &UserId, entry: EntryRef, accept: &Accept) {
        if accept.expires() <= self.now {
            return self.end_wherever(id, entry, accept, EndReason::Expired, false);
        }
        let admission = Admission::Moved;
        let moved = match accept.message.not_before() {
            // Only to another place of its lane.
            Some(at) if at > self.now => Accept { origin: None, admission, ..accept.clone() },
            at => {
                let message = accept.message.clone().without_schedule();
                Accept {
                    at: at.unwrap_or(accept.at),
                    origin: None,
                    admission,
                    ..Accept::new(message, self.now)
                }
            }
        };
        self.move_to_lane(id, entry, accept, moved);
    }

    /// Moves what is scheduled to another place: its own lane again, or those that it is offered from.
    pub(super) fn move_to_lane(&mut self, id: &UserId, entry: EntryRef, old: &Accept, moved: Accept) {
        // Its user is known. Now its devices are chosen; each of the others' copies is one more message.
        let among = self.devices_of(&moved.message, self.now).unwrap_or_default();
        self.reserve(&moved.message, among.copies());
        let gives_back = Totals::one(moved.message.cost());
        let instead = Instead { operation: None, seq: entry.seq, gives_back };
        let accepts = self.spread(among, moved);
        let last = accepts.len();
        let copies = (1..).zip(accepts).map(|(n, accept)| match &accept.device {
            Some(device) if n < last => {
                let device = Some(ForDevice { is_copy: true, ..*device });
                Arc::new(Accept { admission: Admission::New, device, ..Accept::clone(&accept) })
            }
            _ => accept,
        });
        let accepts = copies.collect();
        self.push_newcomer(accepts, None, instead);
        self.end_wherever(id, entry, old, EndReason::Moved, true);
    }

    /// All that was scheduled was looked at, unless the store could not be read; the next is due at `next`.
    ///
    /// Whoever has much scheduled has it all read for that, so not more often than once in a while.
    pub(super) fn ripened(&mut self, id: &UserId, next: Timestamp, failed: bool, has_read: bool) {
        let now = self.now;
        let Some(user) = self.users.get_mut(id) else { return };
        user.ripening = false;
        let retry = now.after(Duration::from_millis(super::load::RETRY_MS));
        user.next_ripe = user.next_ripe.min(if failed { retry } else { next });
        if has_read {
            user.next_ripe = user.next_ripe.max(now.after(SPACING));
        }
        self.rearm_user(now, id);
    }
}
