//! Registered devices: each has lanes of its own, and a message for several of them is as many entries, accepted in one
//! commit. So settling, merging, pages, quotas and operations serve them as they serve everything else, and each has its
//! own cursor, attempts and end. In the journal all copies lean on the first; in a run they share its body.
//!
//! # Invariants
//! - **The devices of a message are those that are registered when it is accepted,** durably so; of a scheduled one, when
//!   its time comes.
//! - **A slot is given away again only when nothing is left in its lanes.** What a device that goes leaves behind ends
//!   first, all of it by itself, and that goes on after a crash.
//! - **A lane's cursor outlives its device:** runs may hold what has ended.

use std::sync::Arc;

use super::Machine;
use super::commit::Pending;
use super::forget::through;
use super::io::LinkId;
use super::lane::Lane;
use super::operation::Outcome;
use super::pick::Turns;
use super::query::Query;
use super::user::User;
use crate::digest::Digester;
use crate::id::{DeviceId, UserId};
use crate::message::{DevicePolicy, Durability, Message, Priority};
use crate::record::{
    Accept, DeviceChange, DeviceEvent, DeviceInfo, DeviceRow, Epoch, ForDevice, LaneId, LaneRow, Record, Seq,
    Slot, Slots,
};
use crate::time::Timestamp;

/// A device that is there is recorded to have been seen so often at most.
const SEEN_MS: u64 = 60 * 60 * 1000;

/// One of a user's slots in memory.
#[derive(Debug)]
pub(super) struct SlotState {
    /// By priority.
    pub(super) lanes: [Lane; Priority::ALL.len()],
    pub(super) device: Option<DeviceInfo>,
    /// A registration is being committed.
    pub(super) coming: Option<DeviceId>,
    /// Its removal is being committed, or what is left is ending.
    retiring: bool,
    /// What is left is being looked for.
    pub(super) clearing: bool,
    /// Messages for it that are on their way to the disk.
    pub(super) coming_in: u32,
    pub(super) exposed: Epoch,
    pub(super) exposing: bool,
    pub(super) turns: Turns,
    /// When it was last seen, as far as was recorded or is being recorded.
    noted: Timestamp,
}

impl SlotState {
    pub(super) fn new(digester: Digester, more_after: Option<Seq>) -> Self {
        Self {
            lanes: core::array::from_fn(|_| Lane::of_device(digester, more_after)),
            device: None,
            coming: None,
            retiring: false,
            clearing: false,
            coming_in: 0,
            exposed: Epoch::default(),
            exposing: false,
            turns: Turns::default(),
            noted: Timestamp::ZERO,
        }
    }

    /// Whether forgetting it would lose something that is on its way to the disk.
    pub(super) fn is_busy(&self) -> bool {
        self.coming.is_some() || self.exposing || self.clearing || self.retiring != self.is_leaving()
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.device.as_ref().is_some_and(|device| device.is_leaving)
    }

    /// Nothing more is for its device, which is being recorded, or was.
    pub(super) fn is_retiring(&self) -> bool {
        self.retiring
    }

    /// The device, if messages are for it.
    fn present(&self) -> Option<&DeviceInfo> {
        self.device.as_ref().filter(|device| !device.is_leaving && !self.retiring)
    }

    pub(super) fn is_free(&self) -> bool {
        self.device.is_none() && self.coming.is_none() && !self.retiring
    }

    fn fold(&mut self, change: &DeviceChange) {
        let at = change.at;
        match change.event {
            DeviceEvent::Registered => {
                let device = change.device.clone();
                let (registered_at, last_seen, is_leaving) = (at, at, false);
                self.device = Some(DeviceInfo { device, registered_at, last_seen, is_leaving });
            }
            DeviceEvent::Leaving => self.device.iter_mut().for_each(|device| device.is_leaving = true),
            DeviceEvent::Gone => self.device = None,
            DeviceEvent::Exposed(epoch) => self.exposed = self.exposed.max(epoch),
            DeviceEvent::Seen => {}
        }
        self.device.iter_mut().for_each(|device| device.last_seen = device.last_seen.max(at));
        self.noted = self.noted.max(at);
    }

    pub(super) fn row(&self, slot: Slot) -> Option<DeviceRow> {
        let lanes = Priority::ALL.map(|priority| self.lanes.get(priority.index()).map(Lane::row));
        let lanes = lanes.map(Option::unwrap_or_default);
        let is_used = self.device.is_some()
            || self.exposed != Epoch::default()
            || lanes.iter().any(|lane| *lane != LaneRow::default());
        is_used.then(|| DeviceRow { slot, device: self.device.clone(), exposed: self.exposed, lanes })
    }
}

impl User {
    /// The slot of a device that messages are for.
    pub(super) fn slot_of(&self, device: &DeviceId) -> Option<Slot> {
        let is_it = |state: &SlotState| state.present().is_some_and(|known| known.device == *device);
        self.slots.iter().find(|(_, state)| is_it(state)).map(|(slot, _)| *slot)
    }

    pub(super) fn slot_mut(&mut self, slot: Slot) -> &mut SlotState {
        // As long as nobody knows what there is, the store may have something. Later, what is not in the row is not there.
        let more_after = if self.held.is_none() || !self.row_known { Some(Seq::ZERO) } else { None };
        let digester = self.digester;
        self.slots.entry(slot).or_insert_with(|| Box::new(SlotState::new(digester, more_after)))
    }

    /// Folds what was said of a device, once the row is known.
    fn fold_device(&mut self, at: Seq, change: &DeviceChange) {
        match self.row_known {
            true => self.slot_mut(change.slot).fold(change),
            false => self.early_devices.push((at, change.clone())),
        }
    }

    /// Puts what the store has under what the journal has said since.
    pub(super) fn merge_devices(&mut self, rows: &[DeviceRow], reflects: Seq) {
        for row in rows {
            let state = self.slot_mut(row.slot);
            state.device.clone_from(&row.device);
            state.exposed = state.exposed.max(row.exposed);
            state.noted = row.device.as_ref().map_or(Timestamp::ZERO, |device| device.last_seen);
            state.retiring = state.is_leaving();
            for (lane, stored) in state.lanes.iter_mut().zip(&row.lanes) {
                lane.merge_row(stored);
            }
        }
        for (at, change) in core::mem::take(&mut self.early_devices) {
            let state = self.slot_mut(change.slot);
            if at >= reflects {
                state.fold(&change);
                state.retiring = state.is_leaving();
            }
        }
    }
}

impl Machine {
    /// Which devices a message is for that is accepted now: none when any will do. `Err` with what must be read first.
    pub(super) fn devices_of(&mut self, message: &Message, now: Timestamp) -> Result<Among, Query> {
        let policy = message.devices().unwrap_or(self.config.devices);
        // What waits is for devices when its time comes.
        let is_later = message.after().is_some() || message.not_before().is_some_and(|at| at > now);
        if policy == DevicePolicy::AnyDevice || message.durability() == Durability::Volatile || is_later {
            return Ok(Among::default());
        }
        let id = message.recipient();
        if !self.ensure_row(id) {
            return Err(Query::User(id.clone()));
        }
        self.retire_unseen(id);
        let slots = &self.user_mut(id).slots;
        let slots = slots.iter().filter(|(_, state)| state.present().is_some()).map(|(slot, _)| *slot);
        Ok(Among { slots: slots.collect(), rings: policy == DevicePolicy::RingAll })
    }

    pub(super) fn apply_device(&mut self, seq: Seq, change: &DeviceChange) {
        let is_live = self.is_live;
        let user = self.user_mut(&change.user);
        user.fold_device(seq, change);
        if let Some(state) = user.slots.get_mut(&change.slot) {
            match change.event {
                DeviceEvent::Registered => state.coming = None,
                DeviceEvent::Exposed(_) if is_live => state.exposing = false,
                DeviceEvent::Exposed(epoch) => {
                    state.lanes.iter_mut().for_each(|lane| lane.expose_through(through(epoch)));
                }
                DeviceEvent::Leaving if !is_live => state.retiring = true,
                DeviceEvent::Gone => (state.retiring, state.clearing) = (false, false),
                _ => {}
            }
        }
        if change.event == DeviceEvent::Gone {
            self.apply_gone(seq, &change.user, change.slot);
        }
        self.touch(&change.user, seq);
    }

    /// What was recorded of a device is durable.
    pub(super) fn device_durable(&mut self, change: &DeviceChange) {
        let id = &change.user;
        match change.event {
            DeviceEvent::Registered => {
                self.slot_decided(id, change.slot, &Ok(Outcome::default()));
                let links = self.users.get(id).map(|user| user.links.clone()).unwrap_or_default();
                links.into_iter().for_each(|link| self.open_device(id, link));
            }
            DeviceEvent::Leaving => self.clear_slots(id),
            // Whoever has asked for that while it was being recorded.
            DeviceEvent::Gone => self.slot_decided(id, change.slot, &Ok(Outcome::default())),
            DeviceEvent::Exposed(_) | DeviceEvent::Seen => {}
        }
        self.mark_ready(id);
        self.let_go(id);
    }

    pub(super) fn record_device(
        &mut self,
        id: &UserId,
        slot: Slot,
        device: DeviceId,
        event: DeviceEvent,
        at: Timestamp,
    ) {
        let change = DeviceChange { user: id.clone(), slot, device, event, at };
        self.current.push(Pending::Fact(Record::Device(change)));
    }

    /// Removes the devices that were not seen for too long. Who is there is seen.
    pub(super) fn retire_unseen(&mut self, id: &UserId) {
        let (now, age) = (self.now, self.config.device_age);
        let links = self.users.get(id).map(|user| user.links.clone()).unwrap_or_default();
        links.into_iter().for_each(|link| self.note_seen(link));
        let Some(user) = self.users.get(id) else { return };
        let is_here =
            |slot| user.links.iter().any(|link| self.links.get(link).is_some_and(|l| l.slot == Some(slot)));
        let is_unseen = |state: &SlotState| {
            state.present().is_some_and(|device| now.since(device.last_seen.max(state.noted)) > age)
        };
        let unseen = user.slots.iter().filter(|(slot, state)| is_unseen(state) && !is_here(**slot));
        let unseen: Vec<_> = unseen.map(|(slot, _)| *slot).collect();
        unseen.into_iter().for_each(|slot| self.retire(id, slot));
    }

    pub(super) fn retire(&mut self, id: &UserId, slot: Slot) {
        let now = self.now;
        let state = self.user_mut(id).slot_mut(slot);
        let Some(device) = state.device.as_ref().map(|device| device.device.clone()) else { return };
        if core::mem::replace(&mut state.retiring, true) {
            return;
        }
        let links = self.users.get(id).map(|user| user.links.clone()).unwrap_or_default();
        for link in links {
            let found = self.links.get_mut(&link).filter(|link| link.slot == Some(slot));
            found.into_iter().for_each(|link| link.left = link.slot.take());
        }
        self.record_device(id, slot, device, DeviceEvent::Leaving, now);
    }

    /// A sink's device is there.
    pub(super) fn note_seen(&mut self, link: LinkId) {
        let now = self.now;
        let Some((found, slot)) = self.links.get(&link).and_then(|found| Some((found, found.slot?))) else {
            return;
        };
        let (id, device) = (found.user.clone(), found.device.clone());
        let Some(state) = self.users.get_mut(&id).and_then(|user| user.slots.get_mut(&slot)) else { return };
        if now.since(state.noted) >= core::time::Duration::from_millis(SEEN_MS) {
            state.noted = now;
            self.record_device(&id, slot, device, DeviceEvent::Seen, now);
        }
    }

    /// A sink is attached whose user is known: it is offered what is for its device too, if that is registered.
    pub(super) fn open_device(&mut self, id: &UserId, link: LinkId) {
        let (now, epoch, window) = (self.now, self.epoch, self.config.max_resident.get());
        let Some(device) = self.links.get(&link).map(|found| found.device.clone()) else { return };
        let Some(user) = self.users.get_mut(id).filter(|user| user.is_known()) else { return };
        let slot = user.slot_of(&device);
        if let Some(found) = self.links.get_mut(&link) {
            found.slot = slot;
        }
        let Some(slot) = slot else { return };
        let state = user.slot_mut(slot);
        let unexposed = state.exposed < epoch && !core::mem::replace(&mut state.exposing, true);
        for lane in &mut state.lanes {
            lane.rebuild_queues(window);
        }
        if unexposed {
            state.noted = now;
            self.record_device(id, slot, device, DeviceEvent::Exposed(epoch), now);
        } else if let Some(state) = self.users.get_mut(id).and_then(|user| user.slots.get_mut(&slot)) {
            state.exposing &= state.exposed < epoch;
        }
        self.note_seen(link);
        for priority in Priority::ALL {
            self.refill(id, LaneId::Device(slot, priority));
        }
        self.rearm_user(now, id);
    }

    /// The acceptances of a message for these devices.
    pub(super) fn spread(&mut self, among: Among, accept: Accept) -> Vec<Arc<Accept>> {
        let accepts = among.spread(accept);
        accepts.iter().for_each(|accept| self.comes_in(accept));
        accepts
    }

    /// A message is on its way to a device's lane.
    pub(super) fn comes_in(&mut self, accept: &Accept) {
        if let Some(slot) = accept.lane().slot() {
            self.user_mut(accept.message.recipient()).slot_mut(slot).coming_in += 1;
        }
    }

    /// It has come there, or will not.
    pub(super) fn has_come_in(&mut self, accept: &Accept) {
        let Some(slot) = accept.lane().slot() else { return };
        let id = accept.message.recipient();
        let state = self.users.get_mut(id).and_then(|user| user.slots.get_mut(&slot));
        let Some(state) = state else { return };
        state.coming_in = state.coming_in.saturating_sub(1);
        if state.coming_in == 0 && state.is_leaving() {
            self.clear_slots(id);
        }
    }
}

/// Which devices a message is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Among {
    /// None when any will do.
    pub(super) slots: Slots,
    pub(super) rings: bool,
}

impl Among {
    /// How many entries a message makes.
    pub(super) fn copies(self) -> u32 {
        self.slots.len().max(1)
    }

    /// An acceptance for each of them.
    fn spread(self, accept: Accept) -> Vec<Arc<Accept>> {
        if accept.lane() == LaneId::Scheduled {
            return vec![Arc::new(accept)];
        }
        let accept = Accept { message: accept.message.without_devices(), ..accept };
        if self.slots.is_empty() {
            return vec![Arc::new(accept)];
        }
        let (among, rings, stride) = (self.slots, self.rings, 1);
        let for_slot = |slot| ForDevice { slot, among, rings, is_copy: among.rank(slot) > 0, stride };
        let copy = |slot| Arc::new(Accept { device: Some(for_slot(slot)), ..accept.clone() });
        self.slots.iter().map(copy).collect()
    }
}
