//! Collapse keys: of a user's waiting messages with the same one, only the newest stays.
//!
//! A user's row names the newest message of each key, so that the one that gives way need not be searched for. The new one
//! and the end of the other are one commit. While that is on its way, further messages of the key wait: each takes the
//! place of the one before it.
//!
//! Such a message is not undone when a commit fails, for the end that is joined to it cannot be: it goes into the next
//! one, and its sender waits until the disk has healed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Machine;
use super::accept::{Parked, at_once_if_due};
use super::entry::EntryState;
use super::io::{EntryRef, Ticket};
use super::lane::Lane;
use super::operate::OperationId;
use super::overflow::{Shortage, Victim};
use super::query::Query;
use super::refusal::Refusal;
use super::user::Totals;
use crate::digest::Digester;
use crate::id::{CollapseKey, MAX_ID_BYTES, UserId};
use crate::message::Message;
use crate::record::{Accept, Admission, End, LaneId, NewestRow, Seq, Slot};
use crate::status::EndReason;
use crate::time::Timestamp;

/// The newest message of each collapse key of a user, by the key's digest.
#[derive(Debug, Default)]
pub(super) struct Newest {
    /// Each with its age: whoever was accepted later has a higher one.
    rows: BTreeMap<u128, (u64, NewestRow)>,
    /// The age of the one that was accepted last.
    last: u64,
    /// Where messages have gone that the row may name, until it is known: from the first place to the last.
    moves: BTreeMap<Seq, (LaneId, Seq)>,
    /// The first places of those that have moved, by the last.
    moved: BTreeMap<Seq, Seq>,
}

impl Newest {
    pub(super) fn get(&self, key: u128) -> Option<NewestRow> {
        self.rows.get(&key).map(|(_, row)| *row)
    }

    /// Remembers the newest message of a key. Beyond `max` keys one is forgotten: of those whose message has ended, of which
    /// only the version is known, the oldest; if there is none, that of the oldest message.
    fn put(&mut self, row: NewestRow, max: usize) {
        self.last += 1;
        self.rows.insert(row.key, (self.last, row));
        while self.rows.len() > max {
            let oldest = self.rows.values().min_by_key(|(age, row)| (row.seq != Seq::ZERO, *age));
            let oldest = oldest.map(|(_, row)| row.key);
            oldest.and_then(|key| self.rows.remove(&key));
        }
    }

    /// What the store knows, under what the journal has said since.
    pub(super) fn merge(&mut self, stored: &[NewestRow], has_ended: impl Fn(&NewestRow) -> bool) {
        let moves = core::mem::take(&mut self.moves);
        self.moved.clear();
        let mut newer: Vec<_> = core::mem::take(&mut self.rows).into_values().collect();
        newer.sort_unstable_by_key(|(age, _)| *age);
        let stored = stored.iter().filter_map(|row| {
            let (lane, seq) = moves.get(&row.seq).copied().unwrap_or((row.lane, row.seq));
            let row = NewestRow { lane, seq, ..*row };
            let ended = has_ended(&row);
            let seq = if ended { Seq::ZERO } else { row.seq };
            (!ended || row.version > 0).then_some(NewestRow { seq, ..row })
        });
        // In the order in which they were accepted, as the store has them.
        let all: Vec<_> = stored.chain(newer.into_iter().map(|(_, row)| row)).collect();
        for row in all {
            self.last += 1;
            self.rows.insert(row.key, (self.last, row));
        }
        self.rows.retain(|_, (_, row)| row.seq != Seq::ZERO || row.version > 0);
    }

    /// The message at this place is no more, or waits elsewhere; whether that changed anything. As long as the row is
    /// unknown, it may still name this one: that it has ended is kept in mind until then.
    fn ended(&mut self, seq: Seq, moved_to: Option<(LaneId, Seq)>, row_known: bool) -> bool {
        let Some((_, row)) = self.rows.values_mut().find(|(_, row)| row.seq == seq) else {
            if !row_known {
                self.note_move(seq, moved_to);
            }
            return false;
        };
        (row.lane, row.seq) = moved_to.unwrap_or((row.lane, Seq::ZERO));
        if row.seq == Seq::ZERO && row.version == 0 && row_known {
            let key = row.key;
            self.rows.remove(&key);
        }
        true
    }

    /// Of one that moved before the row was known, the row names where it was first.
    fn note_move(&mut self, seq: Seq, moved_to: Option<(LaneId, Seq)>) {
        let first = self.moved.remove(&seq);
        let to = moved_to.or_else(|| first.map(|_| (LaneId::Critical, Seq::ZERO)));
        let Some((lane, to)) = to else { return };
        let first = first.unwrap_or(seq);
        self.moves.insert(first, (lane, to));
        if to != Seq::ZERO {
            self.moved.insert(to, first);
        }
    }

    /// Those that were accepted first come first.
    pub(super) fn rows(&self) -> Vec<NewestRow> {
        let mut rows: Vec<_> = self.rows.values().copied().collect();
        rows.sort_unstable_by_key(|(age, _)| *age);
        rows.into_iter().map(|(_, row)| row).collect()
    }
}

/// The newest version of each collapse key of a user's volatile messages: nothing of it is durable.
#[derive(Debug, Default)]
pub(super) struct Versions(VecDeque<(u128, u64)>);

impl Versions {
    pub(super) fn get(&self, key: u128) -> Option<u64> {
        self.0.iter().find(|(of, _)| *of == key).map(|(_, version)| *version)
    }

    /// Beyond `max` keys, the one of which none came for the longest time is forgotten.
    pub(super) fn put(&mut self, key: u128, version: u64, max: usize) {
        self.0.retain(|(of, _)| *of != key);
        self.0.push_back((key, version));
        if self.0.len() > max {
            self.0.pop_front();
        }
    }
}

impl Machine {
    /// With a collapse key, if it is one of the events of which only the newest waits.
    ///
    /// The key is no part of what tells a repeat from a conflict, so the host may configure this otherwise later.
    pub(super) fn coalesced(&self, message: Message) -> Message {
        let event = message.event();
        let is_meant = self.config.coalesce.iter().any(|of| event.is_within(of));
        if !is_meant || message.collapse_key().is_some() || message.after().is_some() {
            return message;
        }
        let mut key = event.as_str().as_bytes().to_vec();
        if let Some(of) = message.ordering_key() {
            key.push(b'/');
            match of.as_bytes() {
                of if key.len() + of.len() <= MAX_ID_BYTES => key.extend(of),
                of => key.extend(self.digester.bytes(of).to_le_bytes()),
            }
        }
        CollapseKey::new(key).map_or(message.clone(), |key| message.with_collapse_key(key))
    }

    /// Sends a message with a collapse key, which is no repeat.
    pub(super) fn send_newest(
        &mut self,
        now: Timestamp,
        (ticket, message): (Ticket, Message),
        id: u128,
        found: Option<Vec<Victim>>,
    ) {
        let user = message.recipient().clone();
        if !self.ensure_row(&user) {
            return self.park(Query::User(user), Parked::Send(ticket, message));
        }
        let Some(key) = self.collapse_digest(&message) else { return };
        if let Some(waiting) = self.collapsing.get_mut(&key) {
            waiting.push_back((ticket, message));
            self.parked_count += 1;
            return;
        }
        let among = match self.devices_of(&message, now) {
            Ok(among) => among,
            Err(query) => return self.park(query, Parked::Send(ticket, message)),
        };
        let newest = self.newest_of(&user, key);
        let version = self.user_mut(&user).newest.get(key).map(|newest| newest.version);
        let outdated = version.filter(|newest| message.version().is_some_and(|version| version < *newest));
        let old: Vec<_> = newest.into_iter().filter(|newest| self.gives_way(&user, newest)).collect();
        let claimed = match outdated {
            Some(newest) => Err(Shortage::Refused(Refusal::Outdated { newest })),
            None => self.claim_room(&message, among.copies(), &old, found),
        };
        let victims = match claimed {
            Ok(victims) => victims,
            Err(shortage) => return self.fall_short(ticket, message, shortage),
        };
        self.reserve_id(id, &message, now, among);
        self.collapsing.insert(key, VecDeque::new());
        let accepts = self.spread(among, Accept::new(at_once_if_due(message, now), now));
        self.push_instead(accepts, id, ticket, &old, victims);
    }

    /// The newest message of a collapse key: that for any device, and one for each device.
    fn newest_of(&mut self, id: &UserId, key: u128) -> Vec<NewestRow> {
        let digester = self.digester;
        let user = self.user_mut(id);
        let of_slots = user.slots.keys().map(|slot| of_slot(digester, key, Some(*slot)));
        let mut newest: Vec<_> =
            core::iter::once(key).chain(of_slots).filter_map(|key| user.newest.get(key)).collect();
        newest.sort_unstable_by_key(|row| row.seq);
        newest.dedup_by_key(|row| row.seq);
        newest
    }

    /// Whether the newest message of a key still waits, and is not about to end.
    fn gives_way(&self, id: &UserId, newest: &NewestRow) -> bool {
        let Some(lane) = self.users.get(id).map(|user| user.lane_ref(newest.lane)) else { return false };
        newest.seq > lane.cursor
            && !lane.ended.contains(&newest.seq)
            && !lane.ending.contains(&newest.seq)
            && lane.entry(newest.seq).is_none_or(|found| !matches!(found.state(), EntryState::Ending { .. }))
    }

    fn collapse_digest(&self, message: &Message) -> Option<u128> {
        message.collapse_key().map(|key| self.digester.collapse(message.recipient(), key))
    }

    /// A message with a collapse key is durable, or was refused: the next of its key goes on, or all are refused as well, so
    /// that none overtakes.
    pub(super) fn collapsed(&mut self, now: Timestamp, accept: &Accept, refusal: Option<&Refusal>) {
        // What another engine delivered takes nobody's place.
        let Some(key) = self.collapse_digest(&accept.message).filter(|_| accept.origin.is_none()) else {
            return;
        };
        let mut waiting = self.collapsing.remove(&key).unwrap_or_default();
        while let Some((ticket, message)) = waiting.pop_front() {
            self.parked_count = self.parked_count.saturating_sub(1);
            match refusal {
                Some(refusal) => self.answer(ticket, Err(refusal.clone())),
                None => self.handle_send(now, ticket, message),
            }
            // The others go on waiting, for this one. Nobody has come in between.
            if let Some(behind) = self.collapsing.get_mut(&key) {
                *behind = waiting;
                return;
            }
        }
    }

    /// The collapse key that what replaces a message takes over: that of which this one is the newest, with its copies. None
    /// while another one is being accepted.
    pub(super) fn key_to_keep(&mut self, entry: EntryRef, old: &Accept, others: &[EntryRef]) -> Option<u128> {
        let key = self.collapse_digest(&old.message).filter(|_| old.origin.is_none())?;
        let newest = self.newest_of(old.message.recipient(), key);
        let mut places = newest.iter().map(|row| row.seq).filter(|seq| *seq != Seq::ZERO).peekable();
        let is_newest = places.peek().is_some()
            && places.all(|seq| seq == entry.seq || others.iter().any(|other| other.seq == seq));
        (is_newest && !self.collapsing.contains_key(&key)).then_some(key)
    }

    // ----------------------------------------------------------------------------------------------- sent again

    /// A dead letter with a collapse key is to be sent once more: of each key and device that is the newest of those that are
    /// found. `false` when it has none.
    pub(super) fn hold_letter(&mut self, id: OperationId, entry: EntryRef, accept: &Arc<Accept>) -> bool {
        let (Some(key), Some(open)) =
            (self.collapse_digest(&accept.message), self.operations.open.get_mut(&id))
        else {
            return false;
        };
        let device = accept.device.map(|device| device.slot);
        // By their places: what settles just now may be found twice.
        open.letters.entry((key, device)).or_default().insert(entry.seq, (entry, accept.clone()));
        true
    }

    /// Sends the dead letters once more that were held. Those for whose key something newer is known stay, and are counted:
    /// sent now, they would take the place of what came after them.
    pub(super) fn requeue_held(&mut self, id: OperationId) {
        let Some(open) = self.operations.open.get_mut(&id) else { return };
        let (user, letters) = (open.user.clone(), core::mem::take(&mut open.letters));
        let (mut by_key, mut superseded) = (BTreeMap::<u128, Vec<_>>::new(), 0_u32);
        for ((key, _), letters) in letters {
            let user = self.user_mut(&user);
            let mut there = letters.into_values().filter(|(entry, _)| !user.is_gone(*entry));
            let Some(newest) = there.next_back() else { continue };
            superseded = superseded.saturating_add(u32::try_from(there.count()).unwrap_or(u32::MAX));
            by_key.entry(key).or_default().push(newest);
        }
        // In the order in which they ended, as the others.
        let mut by_place: Vec<_> = by_key.into_iter().collect();
        by_place.sort_by_key(|(_, letters)| letters.iter().map(|(entry, _)| entry.seq).min());
        for (key, letters) in by_place {
            let is_coming = self.collapsing.contains_key(&key);
            let waits = self.newest_of(&user, key).iter().any(|newest| self.gives_way(&user, newest));
            let version = self.user_mut(&user).newest.get(key).map_or(0, |newest| newest.version);
            let (mut refused, mut fit) = (None, Vec::new());
            for (entry, accept) in letters {
                // One without a version would have it forgotten which was the newest.
                let is_outdated = accept.message.version().unwrap_or_default() < version;
                if is_coming || waits || is_outdated {
                    superseded = superseded.saturating_add(1);
                } else if refused.is_none() {
                    refused = self.claim(&accept.message, 1, Totals::default()).err();
                    fit.extend(refused.is_none().then_some((entry, accept)));
                }
            }
            let last = fit.len();
            for (n, (entry, accept)) in (1..).zip(fit) {
                // What is sent meanwhile waits behind the last of them.
                self.collapsing.entry(key).or_default();
                self.send_again(id, entry, &accept, n == last);
                self.end_withdrawn(id, &user, entry, &accept, true);
            }
            if let Some(refused) = refused {
                return self.finish(id, Err(refused.into()));
            }
        }
        if let Some(open) = self.operations.open.get_mut(&id) {
            open.done.superseded = open.done.superseded.saturating_add(superseded);
        }
    }

    /// Folds an acceptance: from now on, this one gives way.
    pub(super) fn fold_newest(&mut self, seq: Seq, accept: &Accept) {
        let Some(key) = self.collapse_digest(&accept.message).filter(|_| accept.origin.is_none()) else {
            return;
        };
        // What all copies are the newest of is what the first is; the others are only to give way with it.
        let is_again = matches!(accept.admission, Admission::Requeued { .. });
        // A dead letter of one device is sent again to that one alone.
        let copy_for = accept.device.filter(|device| device.is_copy || is_again).map(|device| device.slot);
        let key = of_slot(self.digester, key, copy_for);
        let max = self.config.max_collapse_keys.get();
        let (lane, cost, version) =
            (accept.lane(), accept.message.cost(), accept.message.version().unwrap_or_default());
        let version = if copy_for.is_some() { 0 } else { version };
        let (user, id) = (accept.message.recipient().clone(), accept.message.id());
        let user_now = self.user_mut(&user);
        // Each device has one of its own.
        let max = max.saturating_mul(user_now.slots.len().saturating_add(1));
        let newest = &mut user_now.newest;
        // One that moves is followed when its old place ends.
        if accept.admission == Admission::New || is_again {
            newest.put(NewestRow { key, lane, seq, id, cost, version }, max);
            self.touch(&user, seq);
        }
    }

    /// Folds an end.
    pub(super) fn fold_newest_end(&mut self, seq: Seq, end: &End) {
        let moved_to = self.last_accept.filter(|_| end.reason == EndReason::Moved);
        let moved_to = moved_to.map(|(lane, seq, _)| (lane, seq));
        let user = self.user_mut(&end.user);
        if user.newest.ended(end.seq, moved_to, user.row_known) {
            self.touch(&end.user, seq);
        }
    }
}

/// What stands for a collapse key of the messages for one device.
fn of_slot(digester: Digester, key: u128, slot: Option<Slot>) -> u128 {
    let Some(slot) = slot else { return key };
    let [mut named, number] = [[0; 17], [slot.get(); 17]];
    named.iter_mut().zip(key.to_le_bytes().into_iter().chain(number)).for_each(|(to, from)| *to = from);
    digester.bytes(&named)
}

/// Whether a lane's row says that a place has ended.
pub(super) fn has_ended(lane: &Lane, seq: Seq) -> bool {
    seq <= lane.cursor || lane.ended.contains(&seq)
}
