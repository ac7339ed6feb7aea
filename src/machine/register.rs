//! Registering, listing and removing devices, and ending what is left of those that have gone.

use std::collections::BTreeMap;

use super::Machine;
use super::devices::SlotState;
use super::io::{Action, Ticket};
use super::operate::Work;
use super::operation::{DeviceStanding, Operation, Outcome};
use super::query::Query;
use super::refusal::OperationError;
use super::user::User;
use crate::id::{DeviceId, UserId};
use crate::record::{DeviceEvent, DeviceInfo, MAX_SLOTS, Seq, Slot};

/// Who waits for something to become of a slot.
pub(super) type DeviceWaits = BTreeMap<(UserId, Slot), Vec<Ticket>>;

impl Machine {
    pub(super) fn operations_answered(&mut self) {
        self.device_waiting = self.device_waiting.saturating_sub(1);
    }

    fn wait_for_device(&mut self, id: &UserId, slot: Slot, ticket: Ticket) {
        self.device_waits.entry((id.clone(), slot)).or_default().push(ticket);
        self.device_waiting += 1;
    }

    /// Registers a device, or does nothing if it is.
    pub(super) fn register(&mut self, ticket: Ticket, id: &UserId, device: &DeviceId) {
        self.retire_unseen(id);
        let (now, max) = (self.now, self.config.max_registered.get().min(MAX_SLOTS));
        let user = self.user_mut(id);
        if user.slot_of(device).is_some() {
            return self.actions.push_back(Action::Done { ticket, result: Ok(Outcome::default()) });
        }
        let coming = user.slots.iter().find(|(_, state)| state.coming.as_ref() == Some(device));
        if let Some(slot) = coming.map(|(slot, _)| *slot) {
            return self.wait_for_device(id, slot, ticket);
        }
        let taken = user.slots.values().filter(|state| !state.is_free()).count();
        let free = |slot: &Slot| user.slots.get(slot).is_none_or(|state| state.is_free());
        let all = (0..MAX_SLOTS).filter_map(|n| Slot::new(u8::try_from(n).ok()?));
        let Some(slot) = all.into_iter().find(free).filter(|_| taken < max) else {
            let result = Err(OperationError::TooManyDevices);
            return self.actions.push_back(Action::Done { ticket, result });
        };
        user.slot_mut(slot).coming = Some(device.clone());
        self.wait_for_device(id, slot, ticket);
        self.record_device(id, slot, device.clone(), DeviceEvent::Registered, now);
    }

    /// Removes a device: nothing more is for it, and what waits ends.
    pub(super) fn unregister(&mut self, ticket: Ticket, id: &UserId, device: &DeviceId) {
        let is_it = |state: &SlotState| state.device.as_ref().is_some_and(|known| known.device == *device);
        let user = self.user_mut(id);
        // It may have come back while it went.
        let leaving = || user.slots.iter().find(|(_, state)| is_it(state)).map(|(slot, _)| *slot);
        let Some(slot) = user.slot_of(device).or_else(leaving) else {
            return self
                .actions
                .push_back(Action::Done { ticket, result: Err(OperationError::NoSuchDevice) });
        };
        self.wait_for_device(id, slot, ticket);
        self.retire(id, slot);
        self.clear_slots(id);
    }

    /// All devices of a user, and whether they are there.
    pub(super) fn list_devices(&self, id: &UserId) -> Vec<DeviceStanding> {
        let Some(user) = self.users.get(id) else { return Vec::new() };
        let is_attached = |device: &DeviceId| {
            user.links.iter().any(|link| self.links.get(link).is_some_and(|l| l.device == *device))
        };
        let standing = |state: &SlotState| {
            let device = state.device.clone()?;
            let info = DeviceInfo { is_leaving: device.is_leaving || state.is_retiring(), ..device };
            Some(DeviceStanding { is_attached: is_attached(&info.device), info })
        };
        user.slots.values().filter_map(|state| standing(state)).collect()
    }

    /// Goes on with what was left when the last life ended, of those who are in memory. The others' turn is when they are
    /// read.
    pub(super) fn clear_all_slots(&mut self) {
        let is_left = |user: &User| user.slots.values().any(|state| state.is_leaving());
        let left: Vec<_> =
            self.users.iter().filter(|(_, user)| is_left(user)).map(|(id, _)| id.clone()).collect();
        left.iter().for_each(|id| self.clear_slots(id));
    }

    /// Ends what is left of devices that have gone.
    pub(super) fn clear_slots(&mut self, id: &UserId) {
        let Some(user) = self.users.get_mut(id).filter(|_| self.is_live) else { return };
        // What is on its way to it would come behind whoever looks. Once it has come nothing new is for it, and then it is
        // looked.
        let is_left = |state: &SlotState| state.is_leaving() && !state.clearing && state.coming_in == 0;
        if !user.slots.values().any(|state| is_left(state)) {
            return;
        }
        if !user.is_known() {
            self.load_once(Query::User(id.clone()));
            return;
        }
        let left: Vec<_> =
            user.slots.iter().filter(|(_, state)| is_left(state)).map(|(slot, _)| *slot).collect();
        for slot in left {
            self.user_mut(id).slot_mut(slot).clearing = true;
            // Nothing new is for it: whatever is there is meant, also what becomes state just now.
            self.begin(id.clone(), Work::Clear(slot), Seq::MAX);
        }
    }

    /// What was left of a device was looked at, or could not be: then it is tried again.
    pub(super) fn cleared(&mut self, id: &UserId, slot: Slot, result: Result<Outcome, OperationError>) {
        let now = self.now;
        let Some(state) = self.users.get_mut(id).and_then(|user| user.slots.get_mut(&slot)) else { return };
        let device = state.device.as_ref().map(|device| device.device.clone());
        if state.coming_in > 0 && result.is_ok() {
            // Once it has come, it is looked for again.
            state.clearing = false;
            return;
        }
        if let (Ok(_), Some(device)) = (&result, device) {
            self.record_device(id, slot, device, DeviceEvent::Gone, now);
        } else {
            state.clearing = false;
            let at = now.after(core::time::Duration::from_millis(super::load::RETRY_MS));
            self.timers.insert((at, super::timer::TimerKey::Reload(id.clone())));
        }
        self.slot_decided(id, slot, &result);
    }

    /// Answers those who wait for something to become of a slot.
    pub(super) fn slot_decided(&mut self, id: &UserId, slot: Slot, result: &Result<Outcome, OperationError>) {
        for ticket in self.device_waits.remove(&(id.clone(), slot)).unwrap_or_default() {
            self.actions.push_back(Action::Done { ticket, result: result.clone() });
            self.operations_answered();
        }
    }

    /// Does an operation on devices; `false` when it is another one.
    pub(super) fn operate_on_devices(&mut self, ticket: Ticket, operation: &Operation) -> bool {
        match operation {
            Operation::Register(id, device) => self.register(ticket, id, device),
            Operation::Unregister(id, device) => self.unregister(ticket, id, device),
            Operation::Devices(id) => {
                self.retire_unseen(id);
                let outcome = Outcome { devices: self.list_devices(id), ..Outcome::default() };
                self.actions.push_back(Action::Done { ticket, result: Ok(outcome) });
            }
            Operation::MarkRead(id, key, up_to) => self.mark_read(ticket, id, key.as_ref(), *up_to),
            Operation::ReadUpTo(id, key) => self.read_up_to(ticket, id, key.as_ref()),
            _ => return false,
        }
        self.let_go(operation.user());
        true
    }
}
