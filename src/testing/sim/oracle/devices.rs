//! Which devices people have, and that each copy of a message is for one of them.

use std::collections::{BTreeMap, HashMap};

use super::super::plan::Plan;
use super::{Oracle, is_volatile};
use crate::id::{DeviceId, UserId};
use crate::machine::{Delivery, DeviceStanding, UserSnapshot, Withdrawn};
use crate::record::{Accept, Admission, DeviceChange, DeviceEvent, End, Epoch, ForDevice, Record, Seq, Slot};
use crate::status::{EndReason, Status};

/// What one user's devices are, by slot.
pub(super) type Slots = BTreeMap<Slot, Known>;

/// What was recorded of a slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) device: Option<DeviceId>,
    is_leaving: bool,
    exposed: Epoch,
    /// In which epoch that ended it was exposed last.
    pub(super) exposed_before: Epoch,
    /// All devices that ever had it.
    ever: Vec<DeviceId>,
}

impl Oracle {
    pub(super) fn fold_device(&mut self, plan: &Plan, change: &DeviceChange) {
        let DeviceChange { user, slot, device, event, at } = change;
        self.latest = self.latest.max(*at);
        let is_theirs = |accept: &Accept| {
            accept.message.recipient() == user && accept.device.is_some_and(|device| device.slot == *slot)
        };
        let left = self.messages.values().any(|kept| kept.end.is_none() && is_theirs(&kept.accept));
        let all = self.slots.entry(user.clone()).or_default();
        let present = all.values().filter(|known| known.device.is_some()).count();
        let twice = all.values().any(|known| known.device.as_ref() == Some(device) && !known.is_leaving);
        let known = all.entry(*slot).or_default();
        let is_it = known.device.as_ref() == Some(device);
        let wrong = match event {
            DeviceEvent::Registered if known.device.is_some() => Some("in another one's place"),
            DeviceEvent::Registered if twice => Some("twice"),
            DeviceEvent::Registered if present >= plan.config.max_registered.get() => Some("over the bound"),
            DeviceEvent::Registered | DeviceEvent::Gone if left => {
                Some("with something left of the one before")
            }
            DeviceEvent::Gone if !known.is_leaving => Some("before it left"),
            DeviceEvent::Leaving if known.is_leaving => Some("twice"),
            DeviceEvent::Registered => None,
            _ if !is_it => Some("in a slot that is not its own"),
            _ => None,
        };
        match event {
            DeviceEvent::Registered => {
                (known.device, known.is_leaving) = (Some(device.clone()), false);
                known.ever.push(device.clone());
            }
            DeviceEvent::Leaving => known.is_leaving = true,
            DeviceEvent::Gone => (known.device, known.is_leaving) = (None, false),
            DeviceEvent::Exposed(epoch) => known.exposed = *epoch,
            DeviceEvent::Seen => {}
        }
        if *event == DeviceEvent::Gone {
            self.fold_gone(user, *slot);
        }
        if let Some(wrong) = wrong {
            self.fail(format!("{event:?} was recorded of {device} of {user} {wrong}"));
        }
    }

    /// A copy is for a device that is there.
    pub(super) fn check_device(&mut self, seq: Seq, accept: &Accept) {
        let Some(device) = accept.device else { return };
        let all = self.slots.get(accept.message.recipient());
        let is_there =
            |slot: &Slot| all.and_then(|all| all.get(slot)).is_some_and(|known| known.device.is_some());
        let is_new = accept.admission == Admission::New;
        if !is_there(&device.slot) || is_new && !device.among.iter().all(|slot| is_there(&slot)) {
            self.fail(format!("{seq:?} is for a device that is not there: {device:?}"));
        }
    }

    /// The copies of a message are in one commit, at places that follow one another.
    pub(super) fn check_copies(&mut self, group: &[(Seq, Record)]) {
        let accepts = group.iter().filter_map(|(seq, record)| match record {
            Record::Accept(accept) => Some((*seq, accept)),
            _ => None,
        });
        let at: HashMap<_, _> = accepts.collect();
        for (seq, accept) in &at {
            let Some(device) = accept.device else { continue };
            let is_copy = |(slot, place): (Slot, Seq)| {
                at.get(&place).is_some_and(|other| {
                    let same = other.message == accept.message && other.expires() == accept.expires();
                    let theirs = other.device.is_some_and(|theirs| {
                        theirs.slot == slot && theirs.among == device.among && theirs.rings == device.rings
                    });
                    same && theirs
                })
            };
            if let Some(missing) = device.others(*seq).find(|copy| !is_copy(*copy)) {
                return self.fail(format!("{seq:?} has no copy at {missing:?}: {device:?}"));
            }
        }
    }

    /// How many live entries there are only because one that had waited for its time, or for another message, is for
    /// several devices: those take their places whatever the quotas say.
    pub(in super::super) fn copies_of_released(&self) -> u64 {
        let is_one = |(seq, kept): &(&Seq, &super::Kept)| {
            kept.accept.device.is_some_and(|device| device.is_copy)
                && self.came_by_moving(**seq, &kept.accept)
        };
        self.live().filter(is_one).count() as u64
    }

    /// Whether a message has moved here, or another one of its copies has.
    pub(super) fn came_by_moving(&self, seq: Seq, accept: &Accept) -> bool {
        let others = accept.device.into_iter().flat_map(|device| device.others(seq).map(|(_, place)| place));
        let others = others.filter_map(|place| self.messages.get(&place)).map(|kept| kept.accept.admission);
        others.chain([accept.admission]).any(|admission| admission == Admission::Moved)
    }

    /// Whether another device has confirmed what rings here.
    pub(super) fn was_elsewhere(&self, end: &End) -> bool {
        let device = self.messages.get(&end.seq).and_then(|kept| kept.accept.device);
        let is_delivered =
            |place| self.messages.get(&place).is_some_and(|kept| kept.end == Some(EndReason::Delivered));
        device.is_some_and(|device| {
            device.rings && device.others(end.seq).any(|(_, place)| is_delivered(place))
        })
    }

    /// After every group: what was confirmed by one device rings nowhere. Of what had ended otherwise before it was
    /// confirmed, the machine may not remember that it rang.
    pub(super) fn check_rings(&mut self) {
        let settled = |place| {
            let kept = self.messages.get(&place);
            kept.is_some_and(|kept| kept.end == Some(EndReason::Delivered) && !kept.was_upgraded)
        };
        let rings = |(seq, kept): &(&Seq, &super::Kept)| {
            let device = kept.accept.device.filter(|device| device.rings);
            device.is_some_and(|device| device.others(**seq).any(|(_, place)| settled(place)))
        };
        let found = self.live().find(rings).map(|(seq, _)| *seq);
        if let Some(seq) = found {
            self.fail(format!("{seq:?} still rings, though it was confirmed elsewhere"));
        }
    }

    /// A sink is told that a message rings no more.
    pub(in super::super) fn withdrawn(&mut self, withdrawn: &Withdrawn) {
        let kept = self.messages.get(&withdrawn.entry.seq);
        let rings = |kept: &super::Kept| kept.accept.device.is_some_and(|device| device.rings);
        let is_true =
            |kept: &super::Kept| rings(kept) && (kept.end == Some(withdrawn.reason) || kept.was_upgraded);
        if !kept.is_some_and(is_true) || !withdrawn.reason.withdraws() {
            self.fail(format!("{withdrawn:?} was withdrawn, which is not durable, or does not ring"));
        }
    }

    /// What was said to have ended, and not by its device, rings at no device that has not been told.
    pub(in super::super) fn check_told_to_stop<'a>(
        &mut self,
        device: &DeviceId,
        mut on_offer: impl Iterator<Item = &'a Delivery>,
    ) {
        let has_ended = |delivery: &&Delivery| {
            let kept = self.messages.get(&delivery.entry.seq).filter(|_| !is_volatile(delivery.entry));
            let status = kept.filter(|kept| kept.accept.device.is_some_and(|device| device.rings));
            matches!(status.and_then(|kept| kept.status), Some(Status::Ended(reason)) if reason.withdraws())
        };
        if let Some(delivery) = on_offer.find(has_ended) {
            self.fail(format!("{device} was not told that {:?} rings no more", delivery.entry));
        }
    }

    /// Whether it is durable that a device may be offered what is for it.
    pub(super) fn is_exposed(&self, user: &UserId, slot: Slot, device: &DeviceId, epoch: Epoch) -> bool {
        let known = self.slots.get(user).and_then(|all| all.get(&slot));
        known.is_some_and(|known| known.device.as_ref() == Some(device) && known.exposed == epoch)
    }

    /// A life has ended: what was exposed in it may have been offered.
    pub(super) fn end_epoch(&mut self) {
        self.exposed_before.clone_from(&self.exposed);
        let slots = self.slots.values_mut().flat_map(BTreeMap::values_mut);
        slots.for_each(|known| known.exposed_before = known.exposed);
    }

    /// Whether what is left for a device is ending.
    pub(super) fn is_leaving(
        slots: &HashMap<UserId, Slots>,
        user: &UserId,
        device: Option<ForDevice>,
    ) -> bool {
        let known = device.and_then(|device| slots.get(user)?.get(&device.slot));
        known.is_some_and(|known| known.is_leaving)
    }

    /// The devices that messages are for.
    pub(in super::super) fn devices_of(&self, user: &UserId) -> Vec<DeviceId> {
        let all = self.slots.get(user).into_iter().flatten();
        all.filter(|(_, known)| !known.is_leaving).filter_map(|(_, known)| known.device.clone()).collect()
    }

    pub(super) fn what_is_wrong_with_devices(&self, user: &UserId, held: &UserSnapshot) -> Option<String> {
        let theirs = held.devices.as_ref()?;
        let empty = Slots::new();
        let all = self.slots.get(user).unwrap_or(&empty);
        let known =
            all.iter().filter_map(|(slot, known)| Some((*slot, (known.device.clone()?, known.is_leaving))));
        let known: BTreeMap<_, _> = known.collect();
        let held = theirs.iter().map(|(slot, info)| (*slot, (info.device.clone(), info.is_leaving)));
        let held: BTreeMap<_, _> = held.collect();
        (known != held).then(|| format!("devices are {known:?}, in memory {held:?}"))
    }

    pub(super) fn what_is_wrong_with_list(
        &self,
        user: &UserId,
        list: &[DeviceStanding],
    ) -> Option<&'static str> {
        let all = self.slots.get(user).into_iter().flatten();
        let ever: Vec<_> = all.flat_map(|(_, known)| &known.ever).collect();
        let is_true = |standing: &DeviceStanding| ever.contains(&&standing.info.device);
        (!list.iter().all(is_true)).then_some("with a device that was never registered")
    }
}
