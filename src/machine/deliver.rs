//! Sinks: attaching, choosing whose turn it is, and offering.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Machine;
use super::commit::Pending;
use super::entry::EntryState;
use super::io::{Accepted, Action, Delivery, EntryRef, LinkId};
use super::lane::Lane;
use super::pick::Room;
use super::query::Query;
use super::refusal::Refusal;
use super::user::User;
use super::verdict::{Gone, OwnSlots, is_volatile};
use crate::id::{DeviceId, UserId};
use crate::message::{Message, Priority};
use crate::record::{Accept, Exposed, Gap, LaneId, Record, Seq, Slot};
use crate::status::Status;
use crate::time::Timestamp;

/// Users served per drain: bounds how long inputs wait behind offers.
const SERVE_BUDGET: usize = 64;

/// An attached sink.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) user: UserId,
    pub(super) device: DeviceId,
    /// Its device's, if that is registered, once the user is known.
    pub(super) slot: Option<Slot>,
    /// The slot that its device had until it was removed: what it was offered before, it may still confirm.
    pub(super) left: Option<Slot>,
    /// Its in-flight window.
    pub(super) flights: BTreeMap<EntryRef, Flight>,
    pub(super) bytes: u64,
    pub(super) paused_until: Option<Timestamp>,
    /// The armed timer.
    pub(super) armed: Option<Timestamp>,
}

impl Link {
    /// Its device's slots: what is for one of them alone it may confirm.
    pub(super) fn slots(&self) -> OwnSlots {
        [self.slot, self.left]
    }

    /// Whether this is a gap among what it would have got: nobody else gets what waits for a registered device alone.
    pub(super) fn misses(&self, gap: &Gap) -> bool {
        gap.lane.slot().is_none_or(|slot| self.slot == Some(slot))
    }
}

/// A message in a window.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) accept: Arc<Accept>,
    pub(super) deadline: Timestamp,
    pub(super) cost: u64,
}

impl Machine {
    pub(super) fn handle_attach(&mut self, link: LinkId, id: UserId, device: DeviceId) {
        let links = self.user_mut(&id).links.clone();
        let same =
            links.iter().find(|other| self.links.get(other).is_some_and(|l| l.device == device)).copied();
        if let Some(old) = same {
            self.handle_detach(old);
            self.actions.push_back(Action::Dismiss(old));
        }
        let full = self.user_mut(&id).links.len() >= self.config.max_devices.get();
        if full || self.draining || self.links.contains_key(&link) {
            self.actions.push_back(Action::Dismiss(link));
            return self.evict_if_idle(&id);
        }
        let attached = Link {
            user: id.clone(),
            device,
            slot: None,
            left: None,
            flights: BTreeMap::new(),
            bytes: 0,
            paused_until: None,
            armed: None,
        };
        self.links.insert(link, attached);
        let user = self.user_mut(&id);
        user.links.push(link);
        if !user.is_known() {
            // While they are read: neither waits for the other. Unless their row will say that it is done.
            if self.exposed_here.get(&self.digester.user(Some(&id))).is_none() {
                self.expose(&id);
            }
            self.load_once(Query::User(id));
        } else if user.links.len() == 1 {
            self.open_lanes(&id);
        } else {
            self.open_device(&id, link);
            self.retire_unseen(&id);
            self.mark_ready(&id);
        }
    }

    /// Records that what waits for a user may be offered from now on.
    fn expose(&mut self, id: &UserId) {
        let epoch = self.epoch;
        let user = self.user_mut(id);
        if user.exposed < epoch && !user.exposing && !user.exposed_unread {
            user.exposing = true;
            self.current.push(Pending::Fact(Record::Exposed(Exposed { user: id.clone(), epoch })));
        }
    }

    /// Someone is attached and the row is known: builds the queues, reads what is on disk, exposes.
    pub(super) fn open_lanes(&mut self, id: &UserId) {
        self.expose(id);
        let (now, window) = (self.now, self.config.max_resident.get());
        let Some(user) = self.users.get_mut(id) else { return };
        for lane in &mut user.lanes {
            lane.rebuild_queues(window);
        }
        let links = user.links.clone();
        for lane in Priority::ALL {
            self.refill(id, lane.into());
        }
        links.into_iter().for_each(|link| self.open_device(id, link));
        self.retire_unseen(id);
        self.ripen(id);
        self.rearm_user(now, id);
        self.mark_ready(id);
    }

    /// A sink is gone: what it had in flight waits again, with no attempt burnt.
    pub(super) fn handle_detach(&mut self, id: LinkId) {
        self.handle_gaps_told(id, false);
        self.note_seen(id);
        let Some(link) = self.links.remove(&id) else { return };
        // What it has said already may still be on its way.
        self.gone.put(id, Gone { user: link.user.clone(), slots: link.slots() });
        if let Some(armed) = link.armed {
            self.timers.remove(&(armed, super::timer::TimerKey::Link(id)));
        }
        let flights: Vec<_> =
            link.flights.iter().map(|(entry, flight)| (*entry, flight.accept.clone())).collect();
        self.stats.in_flight = self.stats.in_flight.saturating_sub(flights.len() as u64);
        for (entry, accept) in flights {
            if is_volatile(entry) {
                continue;
            }
            if let Some(user) = self.users.get_mut(&link.user) {
                let lane = user.lane(entry.lane);
                lane.in_flight = lane.in_flight.saturating_sub(1);
                lane.set_state(entry.seq, EntryState::Waiting);
                if lane.is_offerable(entry.seq) {
                    lane.enqueue(entry.seq, &accept);
                    lane.release_key(&accept);
                }
            }
            self.announce_given_back(&link.user, entry);
        }
        let Some(user) = self.users.get_mut(&link.user) else { return };
        user.links.retain(|other| *other != id);
        if user.is_attached() {
            self.mark_ready(&link.user);
        } else {
            self.leave(&link.user);
        }
    }

    /// Nobody is attached any more: lets go of what is on disk.
    fn leave(&mut self, id: &UserId) {
        self.disarm_user(id);
        let Some(user) = self.users.get_mut(id) else { return };
        user.turns.forget_deficits();
        for state in user.slots.values_mut() {
            state.turns.forget_deficits();
            state.lanes.iter_mut().for_each(Lane::clear_queues);
        }
        for lane in &mut user.lanes {
            lane.clear_queues();
            lane.volatile.clear();
        }
        user.volatile_versions = super::collapse::Versions::default();
        self.rearm_user(self.now, id);
        self.let_go(id);
    }

    /// Drops what the store has from memory, for a user nobody is attached to.
    pub(super) fn let_go(&mut self, id: &UserId) {
        let settled = self.settled;
        let is_free =
            |user: &&mut Box<User>| !user.is_attached() && user.loading.is_none() && user.operations == 0;
        let Some(user) = self.users.get_mut(id).filter(is_free) else { return };
        let dropped: usize = user.all_lanes_mut().map(|(_, lane)| lane.drop_settled(settled)).sum();
        self.resident = self.resident.saturating_sub(dropped as u64);
        self.evict_if_idle(id);
    }

    /// Puts a user into the queue of those to be served.
    pub(super) fn mark_ready(&mut self, id: &UserId) {
        if let Some(user) = self.users.get_mut(id)
            && user.is_attached()
            && !user.ready
        {
            user.ready = true;
            self.ready.push_back(id.clone());
        }
    }

    /// A message was just accepted: queues it if somebody is there.
    pub(super) fn offer_accepted(&mut self, now: Timestamp, seq: Seq, accept: &Arc<Accept>) {
        let id = accept.message.recipient();
        let Some(user) = self.users.get_mut(id).filter(|user| user.is_attached()) else { return };
        if user.is_known() {
            let lane = user.lane(accept.lane());
            if lane.is_offerable(seq) {
                lane.enqueue(seq, accept);
            }
        }
        self.arm_user(now, id, accept.due());
        self.mark_ready(id);
    }

    /// Takes a volatile message for someone who is attached.
    pub(super) fn send_volatile(&mut self, now: Timestamp, message: Message) -> Result<Accepted, Refusal> {
        let (max, max_keys) = (self.config.max_volatile.get(), self.config.max_collapse_keys.get());
        let digester = self.digester;
        let id = message.recipient().clone();
        let attached = self.users.get_mut(&id).filter(|user| user.is_attached());
        let user = attached.ok_or(Refusal::NobodyAttached)?;
        let key = message.collapse_key().map(|key| digester.collapse(&id, key));
        let outdated = key.and_then(|key| user.newer_than(key, message.version()));
        if let Some(newest) = outdated {
            return Err(Refusal::Outdated { newest });
        }
        let same =
            |other: &Message| other.collapse_key().is_some_and(|key| message.collapse_key() == Some(key));
        let queued: usize = user.lanes.iter().map(|lane| lane.volatile.len()).sum();
        let waiting = &mut user.lane(message.priority()).volatile;
        let older = waiting.iter().position(|(_, accept)| same(&accept.message));
        if older.is_none() && queued >= max {
            return Err(Refusal::NobodyAttached);
        }
        self.last_volatile = (self.last_volatile + 1) % (1 << Seq::EPOCH_SHIFT);
        let entry = EntryRef { lane: message.priority().into(), seq: Seq::new(self.last_volatile) };
        let fence = key.zip(message.version());
        let newer = (entry.seq, Arc::new(Accept::new(message, now)));
        // It goes where the older one was: nobody waits longer for that.
        match older.and_then(|i| waiting.get_mut(i)) {
            Some(older) => *older = newer,
            None => waiting.push_back(newer),
        }
        if let Some((key, version)) = fence {
            user.volatile_versions.put(key, version, max_keys);
        }
        self.mark_ready(&id);
        Ok(Accepted::at(entry))
    }

    /// Serves users in turn, each at most one batch per sink.
    pub(super) fn serve(&mut self) {
        for _ in 0..SERVE_BUDGET {
            let Some(id) = self.ready.pop_front() else { return };
            if let Some(user) = self.users.get_mut(&id) {
                user.ready = false;
                if user.is_known() && user.exposed == self.epoch && !self.draining {
                    self.serve_user(&id);
                }
            }
        }
    }

    /// Whether what waits for a user goes on waiting for more, so that it is offered together.
    fn lingers(&mut self, id: &UserId) -> bool {
        let (now, config) = (self.now, &self.config);
        let Some(user) = self.users.get_mut(id).filter(|_| !config.linger.is_zero()) else { return false };
        // What waits for devices that are away makes nobody hurry.
        let here = user.links.iter().filter_map(|link| self.links.get(link)?.slot);
        let here: Vec<_> = here.flat_map(LaneId::of_slot).chain(Priority::ALL.map(LaneId::from)).collect();
        let critical = here.iter().filter(|lane| lane.priority() == Some(Priority::Critical));
        let urgent = critical.into_iter().any(|lane| user.lane_ref(*lane).offerable().next().is_some())
            || user.lanes.iter().any(|lane| !lane.volatile.is_empty());
        let full = config.max_batch.get() as usize;
        let lanes = here.iter().map(|lane| user.lane_ref(*lane));
        let waiting = lanes.flat_map(|lane| lane.offerable().filter_map(|seq| lane.entry(seq)));
        let (mut n, mut bytes, mut oldest) = (0, 0_u64, Timestamp::NEVER);
        for entry in waiting.take(full) {
            n += 1;
            bytes = bytes.saturating_add(entry.accept.message.cost());
            oldest = oldest.min(entry.accept.at);
        }
        let until = oldest.after(config.linger);
        // Accepted before the clock was set back: nobody knows how long it has waited.
        if oldest > now {
            return false;
        }
        if urgent || n == 0 || n >= full || bytes >= config.max_in_flight_bytes.get() || until <= now {
            return false;
        }
        self.arm_user(now, id, until);
        true
    }

    fn serve_user(&mut self, id: &UserId) {
        self.tell_gaps(id);
        if self.lingers(id) {
            return;
        }
        let Some(user) = self.users.get_mut(id) else { return };
        user.next_link = (user.next_link + 1) % user.links.len().max(1);
        let links: Vec<_> =
            user.links.iter().cycle().skip(user.next_link).take(user.links.len()).copied().collect();
        let mut offered = false;
        for link in links {
            offered |= self.serve_link(id, link);
        }
        if offered {
            self.mark_ready(id);
        }
        for lane in Priority::ALL {
            self.refill(id, lane.into());
        }
        let here = self.users.get(id).map(|user| user.links.clone()).unwrap_or_default();
        let here: Vec<_> = here.into_iter().filter_map(|link| self.links.get(&link)?.slot).collect();
        for slot in here {
            LaneId::of_slot(slot).into_iter().for_each(|lane| self.refill(id, lane));
        }
    }

    fn serve_link(&mut self, id: &UserId, link: LinkId) -> bool {
        let Some(found) = self.links.get(&link).filter(|found| found.paused_until.is_none()) else {
            return false;
        };
        let config = &self.config;
        let room = Room {
            messages: (config.max_in_flight.get() as usize).saturating_sub(found.flights.len()),
            critical: (config.max_in_flight.get() as usize + config.critical_reserve as usize)
                .saturating_sub(found.flights.len()),
            bytes: config.max_in_flight_bytes.get().saturating_sub(found.bytes),
            empty: found.flights.is_empty(),
            batch: config.max_batch.get() as usize,
        };
        self.last_pick += 1;
        let (pick, now) = (self.last_pick, self.now);
        let (epoch, slot) = (self.epoch, found.slot);
        let Some(user) = self.users.get_mut(id) else { return false };
        // Not before it is durable that it may have been offered.
        let is_exposed = |slot: &Slot| user.slots.get(slot).is_some_and(|state| state.exposed == epoch);
        let slot = slot.filter(is_exposed);
        let (links, window) = (&self.links, self.config.max_in_flight.get() as usize);
        let is_free = |other: &LinkId| {
            let found = links.get(other).filter(|found| found.paused_until.is_none());
            *other != link && found.is_some_and(|found| found.flights.len() < window)
        };
        let others: Vec<_> = user.links.iter().copied().filter(is_free).collect();
        let picked = super::pick::pick(user, (link, slot, &others), &self.config, room, pick);
        let mut batch = Vec::with_capacity(picked.len());
        let mut held = Vec::new();
        for (entry, accept) in picked {
            let key = (entry.lane, accept.message.ordering_key().cloned());
            if is_volatile(entry) {
                batch.extend(self.fly(id, link, entry, accept));
            } else if accept.expires() <= now {
                self.pass_over(id, entry);
                self.end(now, id, entry, crate::status::EndReason::Expired);
                held.push(key);
            } else if held.contains(&key) {
                self.put_back(id, entry, &accept);
            } else if let Some(delivery) = self.fly(id, link, entry, accept) {
                batch.push(delivery);
            }
        }
        let offered = !batch.is_empty();
        if offered {
            self.arm_link(link, now.after(self.config.ack_deadline));
            self.actions.push_back(Action::Offer { link, batch });
        }
        offered
    }

    /// A message that was picked but is not offered after all: like one that rests, it holds its key until it ends.
    fn pass_over(&mut self, id: &UserId, entry: EntryRef) {
        let now = self.now;
        let Some(lane) = self.users.get_mut(id).map(|user| user.lane(entry.lane)) else { return };
        if lane.entry(entry.seq).is_some_and(|found| !matches!(found.state(), EntryState::Ending { .. })) {
            lane.set_state(entry.seq, EntryState::Backoff(now));
        }
    }

    /// A message that was picked waits again, behind one of its key that was passed over.
    fn put_back(&mut self, id: &UserId, entry: EntryRef, accept: &Accept) {
        let Some(lane) = self.users.get_mut(id).map(|user| user.lane(entry.lane)) else { return };
        lane.enqueue(entry.seq, accept);
        lane.release_key(accept);
    }

    /// Puts a message into a sink's window.
    fn fly(&mut self, id: &UserId, link: LinkId, entry: EntryRef, accept: Arc<Accept>) -> Option<Delivery> {
        let applied = self.applied;
        let stream = entry.lane.slot().map_or(self.stream, |slot| slot.stream(self.stream));
        let deadline = self.now.after(self.config.ack_deadline);
        let cost = accept.message.cost();
        let slot = self.links.get(&link)?.slot;
        let user = self.users.get_mut(id)?;
        // Receivers tell lanes apart by stream and priority, and over a session by priority only: it is the floor of both
        // lanes that this sink gets.
        let mut floor = Seq::MAX;
        if let Some(priority) = entry.lane.priority() {
            let own = slot.map(|slot| LaneId::Device(slot, priority));
            for lane in [Some(priority.into()), own].into_iter().flatten() {
                floor = floor.min(user.lane(lane).advance_cursor(applied));
            }
        }
        let lane = user.lane(entry.lane);
        let attempts = lane.attempts.get(&entry.seq).map_or(0, |(n, _)| *n);
        let mut redelivered = false;
        if !is_volatile(entry) {
            redelivered = lane.may_be_known(entry.seq, &accept);
            let found = lane.entry_mut(entry.seq)?;
            found.offers = found.offers.saturating_add(1);
            found.handed = true;
            lane.set_state(entry.seq, EntryState::InFlight(link));
            lane.in_flight += 1;
        }
        let found = self.links.get_mut(&link)?;
        found.bytes = found.bytes.saturating_add(cost);
        found.flights.insert(entry, Flight { accept: accept.clone(), deadline, cost });
        self.stats.in_flight += 1;
        if !is_volatile(entry) {
            self.announce(id, entry, Status::Sent);
        }
        let (message, accepted_at) = (accept.message.clone(), accept.at);
        Some(Delivery { message, stream, entry, floor, accepted_at, attempts, redelivered })
    }
}
