//! What sinks say, and how messages end.

use core::time::Duration;

use rand_chacha::rand_core::Rng;

use super::Machine;
use super::announce::Whose;
use super::commit::Pending;
use super::entry::{Entry, EntryState};
use super::history::AttemptFailure;
use super::io::{Action, EntryRef, LinkId, Verdict};
use super::places::Went;
use super::ring::Ring;
use crate::config::{KeepEnds, OnFailure};
use crate::id::{MessageId, UserId};
use crate::record::{Accept, Admission, Attempt, End, Epoch, LaneId, Record, Seq, Slot};
use crate::status::EndReason;
use crate::time::Timestamp;

/// Messages that ended other than delivered and may still be confirmed late: how many are remembered.
pub(super) const MAX_RECENT_ENDS: usize = 4096;

/// Sinks that have gone and may still be heard of: how many are remembered.
pub(super) const MAX_GONE: usize = 1024;

/// A sink that has gone. What it had confirmed before may be heard of only now.
#[derive(Clone, Debug)]
pub(super) struct Gone {
    pub(super) user: UserId,
    pub(super) slots: OwnSlots,
}

/// The slot of a sink's device, and the one that it had until it was removed.
pub(super) type OwnSlots = [Option<Slot>; 2];

/// How a message ended that may still be confirmed.
#[derive(Clone, Debug)]
pub(super) struct RecentEnd {
    reason: EndReason,
    attempts: u32,
    /// Where it is kept as a dead letter.
    letter: Option<Seq>,
    /// It rang elsewhere too.
    ring: Option<Ring>,
    /// Which message, if the end said so.
    id: Option<MessageId>,
    whose: Option<Whose>,
}

/// Whether a place names a volatile message.
pub(super) fn is_volatile(entry: EntryRef) -> bool {
    entry.seq.epoch() == Epoch::default()
}

impl Machine {
    pub(super) fn handle_verdicts(
        &mut self,
        now: Timestamp,
        link: LinkId,
        verdicts: Vec<(EntryRef, Verdict)>,
    ) {
        let here = self.links.get(&link).map(|found| Gone { user: found.user.clone(), slots: found.slots() });
        let is_here = here.is_some();
        let Some(Gone { user, slots }) = here.or_else(|| self.gone.get(&link).cloned()) else {
            self.stats.stray_verdicts += verdicts.len() as u64;
            return;
        };
        self.note_seen(link);
        let mut gone = false;
        for (entry, verdict) in verdicts {
            gone |= verdict == Verdict::Disconnected;
            self.verdict(now, (link, slots), &user, entry, &verdict);
        }
        if gone && is_here {
            self.handle_detach(link);
            self.actions.push_back(Action::Dismiss(link));
        }
        self.mark_ready(&user);
    }

    fn verdict(
        &mut self,
        now: Timestamp,
        (link, slots): (LinkId, OwnSlots),
        user: &UserId,
        entry: EntryRef,
        verdict: &Verdict,
    ) {
        let entry = self.entry_of((link, slots), user, entry);
        if let Verdict::Replied(answer) = verdict {
            let found = self.users.get(user).and_then(|user| user.lane_ref(entry.lane).entry(entry.seq));
            let live = found.map(|found| &found.accept);
            let flight = self.links.get(&link).and_then(|link| link.flights.get(&entry));
            if let Some(accept) = flight.map(|flight| &flight.accept).or(live) {
                let (message, answer) = (accept.message.clone(), answer.clone());
                self.actions.push_back(Action::Replied { message, answer });
            }
            return self.verdict(now, (link, slots), user, entry, &Verdict::Delivered);
        }
        let deadline = now.after(self.config.ack_deadline);
        let Some(flight) = self.links.get_mut(&link).and_then(|link| link.flights.get_mut(&entry)) else {
            return self.late_verdict(now, slots, user, entry, verdict);
        };
        match verdict {
            Verdict::AwaitingAck | Verdict::Progress => flight.deadline = deadline,
            Verdict::Nack(delay) => self.attempt_failed(now, link, entry, (AttemptFailure::Refused, *delay)),
            Verdict::Busy(delay) => self.busy(now, link, entry, *delay),
            Verdict::Disconnected => {}
            Verdict::Delivered | Verdict::Replied(_) | Verdict::Unconfirmed | Verdict::Rejected => {
                let Some(reason) = verdict.end() else { return };
                if is_volatile(entry) || reason == EndReason::Delivered {
                    self.land(link, user, entry);
                } else {
                    self.land_keeping_key(link, user, entry);
                }
                match reason {
                    EndReason::Delivered => self.delivered(now, user, entry),
                    EndReason::Rejected if !is_volatile(entry) => {
                        let lane = self.users.get(user).map(|user| user.lane_ref(entry.lane));
                        let failures = lane.and_then(|lane| lane.entry(entry.seq)).map_or(0, |e| e.failures);
                        self.note_failure(link, entry, failures.saturating_add(1), AttemptFailure::Rejected);
                        self.give_up(now, user, entry, reason);
                    }
                    _ => self.end(now, user, entry, reason),
                }
            }
        }
    }

    /// A confirmation that comes late is true all the same; everything else that comes late is not.
    fn late_verdict(
        &mut self,
        now: Timestamp,
        slots: OwnSlots,
        user: &UserId,
        entry: EntryRef,
        verdict: &Verdict,
    ) {
        // What is for one device only that can confirm, also when it was removed since.
        let is_own = entry.lane.slot().is_none() || slots.contains(&entry.lane.slot());
        let is_theirs = entry.lane.priority().is_some() && is_own;
        if *verdict == Verdict::Delivered && !is_volatile(entry) && is_theirs {
            let lane = self.users.get(user).map(|user| user.lane_ref(entry.lane));
            let live = lane.and_then(|lane| lane.entry(entry.seq)).map(|found| (found.state(), found.offers));
            match live {
                Some((EntryState::Waiting | EntryState::Backoff(_), offers)) if offers > 0 => {
                    return self.delivered(now, user, entry);
                }
                // Two offers: the other sink has the second one. One: nobody else can have it.
                Some((EntryState::InFlight(other), offers)) if offers > 1 => {
                    self.land(other, user, entry);
                    return self.delivered(now, user, entry);
                }
                // Its end is on its way to the disk, and cannot be called back: it is corrected by what follows it.
                Some((EntryState::Ending { holds_key: true }, offers)) if offers > 0 => {
                    self.confirmed_late.insert(entry.seq);
                    return;
                }
                None if self.upgrade(now, user, entry) => return,
                _ => {}
            }
        }
        self.stats.stray_verdicts += 1;
    }

    /// What a receiver that knows priorities only speaks of: perhaps what is for its device.
    fn entry_of(&self, (link, slots): (LinkId, OwnSlots), user: &UserId, entry: EntryRef) -> EntryRef {
        let flies =
            |entry: &EntryRef| self.links.get(&link).is_some_and(|link| link.flights.contains_key(entry));
        let (None, Some(priority)) = (entry.lane.slot(), entry.lane.priority()) else { return entry };
        let lives = |entry: EntryRef| {
            let lane = self.users.get(user).map(|user| user.lane_ref(entry.lane));
            lane.is_some_and(|lane| lane.entry(entry.seq).is_some())
        };
        let is_own =
            |own: &EntryRef| flies(own) || lives(*own) || self.recent_ends.contains(&(user.clone(), *own));
        if flies(&entry) {
            return entry;
        }
        // Also what its device was offered before it was removed.
        let owns = slots
            .into_iter()
            .flatten()
            .map(|slot| EntryRef { lane: LaneId::Device(slot, priority), ..entry });
        owns.into_iter().find(is_own).unwrap_or(entry)
    }

    fn upgrade(&mut self, now: Timestamp, user: &UserId, entry: EntryRef) -> bool {
        let recent = self.recent_ends.pop(&(user.clone(), entry));
        let Some(recent) = recent.or_else(|| self.end_in_ledger(user, entry)) else { return false };
        self.upgrading.insert(entry.seq);
        let RecentEnd { reason, attempts, letter, ring, id, whose } = recent;
        let end = End {
            user: user.clone(),
            lane: entry.lane,
            seq: entry.seq,
            id,
            reason: EndReason::Delivered,
            upgrades: Some(reason),
            possibly_delivered: true,
            attempts,
            cost: 0,
            at: now,
        };
        self.current.push(Pending::Fact(Record::End(end)));
        if let Some(ring) = ring {
            self.stop_ringing(user, entry, ring, whose.as_ref());
        }
        self.ending_of.extend(whose.map(|whose| (entry.seq, whose)));
        if let Some(letter) = letter {
            self.exhume(user, letter);
        }
        true
    }

    /// How a message ended, by its user's ledger: it has it for longer than memory. What was for one device only may have rung,
    /// and nobody would know on which others.
    fn end_in_ledger(&self, id: &UserId, entry: EntryRef) -> Option<RecentEnd> {
        let user = self.users.get(id).filter(|_| !self.upgrading.contains(&entry.seq))?;
        let row =
            user.ledger.at(entry.seq).filter(|row| row.lane == entry.lane && row.lane.slot().is_none())?;
        let (reason, attempts, id) = (row.reason, row.attempts, row.id);
        let is_its = |letter: &Accept| match letter.admission {
            Admission::Buried(burial) => {
                Some(letter.message.id()) == id && burial.reason == reason && burial.at == row.at
            }
            _ => false,
        };
        let letters = &user.lane_ref(LaneId::Dead).entries;
        let letter = letters.iter().find(|letter| is_its(&letter.accept)).map(|letter| letter.seq);
        let recent = RecentEnd { reason, attempts, letter, ring: None, id, whose: None };
        row.possibly_delivered.then_some(recent)
    }

    /// Takes a message out of a sink's window.
    pub(super) fn land(&mut self, link: LinkId, user: &UserId, entry: EntryRef) {
        let Some(flight) = self.links.get_mut(&link).and_then(|found| {
            let flight = found.flights.remove(&entry)?;
            found.bytes = found.bytes.saturating_sub(flight.cost);
            Some(flight)
        }) else {
            return;
        };
        self.stats.in_flight = self.stats.in_flight.saturating_sub(1);
        if let (Some(user), false) = (self.users.get_mut(user), is_volatile(entry)) {
            let lane = user.lane(entry.lane);
            lane.in_flight = lane.in_flight.saturating_sub(1);
            if lane.is_offerable(entry.seq) {
                lane.release_key(&flight.accept);
            }
        }
    }

    /// Ends a live message that is in no window. The record makes it true; until then it is `Ending`.
    pub(super) fn end(&mut self, now: Timestamp, id: &UserId, entry: EntryRef, reason: EndReason) {
        let end = self.ending(now, id, entry, reason);
        self.current.extend(end.map(|end| Pending::Fact(Record::End(end))));
    }

    /// Makes a live message `Ending`; the caller sees to the record.
    pub(super) fn ending(
        &mut self,
        now: Timestamp,
        id: &UserId,
        entry: EntryRef,
        reason: EndReason,
    ) -> Option<End> {
        // Most ends are deliveries, and nobody asks of which: the log is spared their ids.
        let is_named = reason != EndReason::Delivered || self.config.keep_ends == KeepEnds::All;
        let user = self.users.get_mut(id).filter(|_| !is_volatile(entry))?;
        let lane = user.lane(entry.lane);
        let found = lane.entry(entry.seq)?;
        let attempts = found.failures;
        let holds_key = reason != EndReason::Delivered;
        let (before, accept) = (found.state(), found.accept.clone());
        let possibly_delivered = lane.may_be_known(entry.seq, &accept);
        if matches!(before, EntryState::Ending { .. }) {
            return None;
        }
        lane.set_state(entry.seq, EntryState::Ending { holds_key });
        match before {
            EntryState::Waiting if lane.is_offerable(entry.seq) => {
                lane.unqueue(entry.seq, &accept);
                if holds_key {
                    lane.hold_key(&accept);
                }
            }
            EntryState::Backoff(_) if !holds_key && lane.is_offerable(entry.seq) => lane.release_key(&accept),
            _ => {}
        }
        Some(End {
            user: id.clone(),
            lane: entry.lane,
            seq: entry.seq,
            id: is_named.then(|| accept.message.id()),
            reason,
            upgrades: None,
            possibly_delivered,
            attempts,
            cost: accept.message.cost(),
            at: now,
        })
    }

    /// Ends a message whose time is over, wherever it is.
    pub(super) fn expire(&mut self, now: Timestamp, id: &UserId, entry: EntryRef) {
        let lane = self.users.get(id).map(|user| user.lane_ref(entry.lane));
        if let Some(EntryState::InFlight(link)) =
            lane.and_then(|lane| lane.entry(entry.seq)).map(Entry::state)
        {
            self.land_keeping_key(link, id, entry);
        }
        self.end(now, id, entry, EndReason::Expired);
    }

    /// A nack, or an ack deadline that passed.
    pub(super) fn attempt_failed(
        &mut self,
        now: Timestamp,
        link: LinkId,
        entry: EntryRef,
        (failure, delay): (AttemptFailure, Option<Duration>),
    ) {
        let Some(id) = self.links.get(&link).map(|link| link.user.clone()) else { return };
        if is_volatile(entry) {
            return self.land(link, &id, entry);
        }
        let found = self.users.get_mut(&id).and_then(|user| user.lane(entry.lane).entry_mut(entry.seq));
        let Some(found) = found else { return self.land(link, &id, entry) };
        found.failures = found.failures.saturating_add(1);
        let attempts = found.failures;
        self.note_failure(link, entry, attempts, failure);
        let is_spent = attempts >= self.config.max_attempts.get();
        if is_spent && self.on_failure(entry.lane) != OnFailure::Block {
            self.land_keeping_key(link, &id, entry);
            return self.give_up(now, &id, entry, EndReason::Dead);
        }
        let not_before = match self.moves_on(&id, link, entry) {
            true => now,
            false => now.after(delay.unwrap_or_else(|| self.backoff(attempts)).min(self.config.backoff_cap)),
        };
        self.rest(now, link, &id, entry, not_before);
        let attempt = Attempt { user: id, lane: entry.lane, seq: entry.seq, attempts, not_before };
        self.current.push(Pending::Fact(Record::Attempt(attempt)));
    }

    /// Whether another device is to have a message at once that this one has failed to take. When each has failed, it rests.
    fn moves_on(&mut self, id: &UserId, link: LinkId, entry: EntryRef) -> bool {
        let Some(user) = self.users.get_mut(id).filter(|_| entry.lane.slot().is_none()) else { return false };
        let links = user.links.clone();
        let tried = user.lane(entry.lane).tried.entry(entry.seq).or_default();
        tried.retain(|other| links.contains(other) && *other != link);
        tried.push(link);
        let is_left = |other: &LinkId| {
            !tried.contains(other) && self.links.get(other).is_some_and(|link| link.paused_until.is_none())
        };
        let moves_on = links.iter().any(is_left);
        if !moves_on {
            user.lane(entry.lane).tried.remove(&entry.seq);
        }
        moves_on
    }

    fn busy(&mut self, now: Timestamp, link: LinkId, entry: EntryRef, delay: Duration) {
        let Some(found) = self.links.get_mut(&link) else { return };
        let id = found.user.clone();
        let until = now.after(delay.min(self.config.backoff_cap));
        if !delay.is_zero() {
            found.paused_until = Some(found.paused_until.map_or(until, |other| other.max(until)));
            self.arm_link(link, until);
        }
        if is_volatile(entry) {
            return self.land(link, &id, entry);
        }
        self.rest(now, link, &id, entry, until);
        self.announce_given_back(&id, entry);
    }

    /// Back from a window into a backoff; the message's key stays busy until it is over.
    fn rest(&mut self, now: Timestamp, link: LinkId, id: &UserId, entry: EntryRef, until: Timestamp) {
        self.land_keeping_key(link, id, entry);
        if let Some(user) = self.users.get_mut(id) {
            user.lane(entry.lane).set_state(entry.seq, EntryState::Backoff(until));
        }
        self.arm_user(now, id, until);
    }

    pub(super) fn land_keeping_key(&mut self, link: LinkId, id: &UserId, entry: EntryRef) {
        if let Some(found) = self.links.get_mut(&link)
            && let Some(flight) = found.flights.remove(&entry)
        {
            found.bytes = found.bytes.saturating_sub(flight.cost);
            self.stats.in_flight = self.stats.in_flight.saturating_sub(1);
            if let Some(user) = self.users.get_mut(id) {
                let lane = user.lane(entry.lane);
                lane.in_flight = lane.in_flight.saturating_sub(1);
            }
        }
    }

    /// Full jitter over an exponential, between the floor and the cap (AWS Architecture Blog, "Exponential Backoff
    /// and Jitter", with a floor so that a retry is never immediate).
    fn backoff(&mut self, attempts: u32) -> Duration {
        let floor = self.config.backoff_floor.as_millis() as u64;
        let cap = self.config.backoff_cap.as_millis() as u64;
        let ceiling = floor.saturating_mul(1u64.checked_shl(attempts.min(32)).unwrap_or(u64::MAX)).min(cap);
        let spread = ceiling.saturating_sub(floor).saturating_add(1);
        Duration::from_millis(floor.saturating_add(self.rng.next_u64() % spread))
    }

    /// A record other than an acceptance is durable.
    pub(super) fn fact_durable(&mut self, now: Timestamp, seq: Seq, record: Record) {
        match &record {
            Record::End(end) => {
                let entry = EntryRef { lane: end.lane, seq: end.seq };
                let whose = self.whose_end(end);
                if end.upgrades.is_some() {
                    self.upgrading.remove(&end.seq);
                }
                let moved = self.moved.take_if(|(from, ..)| *from == end.seq);
                match moved {
                    Some((_, to, accepted)) => {
                        // Copies move each by itself; what is not offered yet goes to all its devices at once.
                        let to = if entry.lane.priority().is_some() { vec![to] } else { accepted.entries() };
                        self.actions.push_back(Action::Moved { user: end.user.clone(), from: entry, to });
                    }
                    None => self.announce_end(end, entry, whose.as_ref()),
                }
                self.release_ended(end);
                let ring = self.ring_of(&end.user, entry);
                self.tell_withdrawn(end, entry, ring);
                let letter = self.buried.take();
                self.remember_end(end, entry, letter);
                self.replay(seq, &record, true);
                let requeued = self.requeued.take_if(|(from, _)| *from == end.seq);
                if end.counts() && end.reason != EndReason::Delivered && end.possibly_delivered {
                    let (reason, attempts) = (end.reason, end.attempts);
                    let recent = RecentEnd { reason, attempts, letter, ring, id: end.id, whose };
                    self.recent_ends.put((end.user.clone(), entry), recent);
                    if self.confirmed_late.remove(&end.seq) {
                        self.upgrade(now, &end.user, entry);
                    }
                }
                let kept = letter.map(|seq| EntryRef { lane: LaneId::Dead, seq });
                let goes_on = kept.or(requeued.map(|(_, to)| to)).map(Went::AsAnother);
                self.note_end(end, moved.map(|(_, to, _)| Went::On(to)).or(goes_on));
                self.free_dependents(&end.user);
                self.mark_ready(&end.user);
                self.let_go(&end.user);
            }
            Record::Attempt(attempt) => {
                self.replay(seq, &record, true);
                let entry = EntryRef { lane: attempt.lane, seq: attempt.seq };
                self.failure_durable(&attempt.user, entry, attempt.attempts);
                self.announce_failed(attempt);
                self.let_go(&attempt.user);
            }
            Record::Exposed(exposed) => {
                self.replay(seq, &record, true);
                self.rearm_user(now, &exposed.user);
                self.mark_ready(&exposed.user);
            }
            Record::Told(told) => {
                self.replay(seq, &record, true);
                self.mark_ready(&told.user);
                self.let_go(&told.user);
            }
            Record::Device(change) => {
                self.replay(seq, &record, true);
                self.device_durable(change);
            }
            Record::Read(read) => {
                self.replay(seq, &record, true);
                self.read_durable(read);
            }
            Record::Floor(_) | Record::Accept(_) => self.replay(seq, &record, true),
        }
    }

    /// An end that held its ordering key is durable: what waits behind it may go.
    fn release_ended(&mut self, end: &End) {
        let Some(user) = self.users.get_mut(&end.user).filter(|user| user.is_attached()) else { return };
        let lane = user.lane(end.lane);
        let held =
            lane.entry(end.seq).filter(|entry| entry.state() == EntryState::Ending { holds_key: true });
        if let Some(accept) = held.map(|entry| entry.accept.clone()).filter(|_| lane.is_offerable(end.seq)) {
            lane.release_key(&accept);
        }
    }
}
