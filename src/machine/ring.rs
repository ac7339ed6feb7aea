//! Messages that ring: the first device to confirm one settles it for all of its user's devices.
//!
//! The others' copies end in the commit of that confirmation, so that after no crash one of them rings on. Whoever was
//! offered one is told when its end is durable, whatever ended it: another device's answer, a caller who hung up, its time.

use super::Machine;
use super::announce::Whose;
use super::commit::Pending;
use super::io::{Action, EntryRef, LinkId, Withdrawn};
use super::places::Stored;
use crate::id::{MessageId, UserId};
use crate::record::{End, ForDevice, Record};
use crate::status::EndReason;
use crate::time::Timestamp;

/// What must be known of a copy that has ended to let the others end too: a few numbers, for thousands of them are
/// remembered, and no quota counts them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    device: ForDevice,
    cost: u64,
    id: MessageId,
}

impl Machine {
    /// A receiver has a message that lives: it ends, and with it the copies that ring elsewhere.
    pub(super) fn delivered(&mut self, now: Timestamp, id: &UserId, entry: EntryRef) {
        let ring = self.ring_of(id, entry);
        let accept = self.users.get(id).and_then(|user| user.lane_ref(entry.lane).entry(entry.seq));
        let whose = accept.filter(|_| ring.is_some()).map(|found| Whose::of(&found.accept.message));
        let Some(end) = self.ending(now, id, entry, EndReason::Delivered) else { return };
        self.current.push(Pending::Fact(Record::End(end)));
        if let Some(ring) = ring {
            self.stop_ringing(id, entry, ring, whose.as_ref());
        }
    }

    /// What rings elsewhere too, if this message in memory does.
    pub(super) fn ring_of(&self, id: &UserId, entry: EntryRef) -> Option<Ring> {
        let accept = &self.users.get(id)?.lane_ref(entry.lane).entry(entry.seq)?.accept;
        let device = accept.device.filter(|device| device.rings)?;
        Some(Ring { device, cost: accept.message.cost(), id: accept.message.id() })
    }

    /// Ends the other copies, in one commit with the record before.
    pub(super) fn stop_ringing(&mut self, id: &UserId, entry: EntryRef, ring: Ring, whose: Option<&Whose>) {
        for other in self.other_copies(id, entry, Some(ring.device)) {
            let stored = Stored { cost: ring.cost, id: ring.id, known: false, whose: whose.cloned() };
            self.end_place(id, other, stored, EndReason::Elsewhere, true);
        }
    }

    /// That a message rings no more is durable: its device is told, if it is there, may have been offered it, and has not
    /// ended it itself.
    pub(super) fn tell_withdrawn(&mut self, end: &End, entry: EntryRef, ring: Option<Ring>) {
        let rings = ring.is_some() || end.reason == EndReason::Elsewhere;
        let told = rings && end.possibly_delivered && end.reason.withdraws();
        let Some(id) = end.id.filter(|_| told) else { return };
        if let Some(link) = self.link_of(&end.user, entry) {
            let withdrawn = Withdrawn { entry, id, reason: end.reason };
            self.actions.push_back(Action::Withdraw { link, withdrawn });
        }
    }

    /// The sink of the device that a lane is for. One that is being removed has no slot any more, and rings all the same.
    fn link_of(&self, id: &UserId, entry: EntryRef) -> Option<LinkId> {
        let user = self.users.get(id)?;
        let device = &user.slots.get(&entry.lane.slot()?)?.device.as_ref()?.device;
        let is_its = |link: &&LinkId| self.links.get(link).is_some_and(|link| link.device == *device);
        user.links.iter().find(is_its).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of which nothing is on the heap, so that no payload lives on in it.
    const fn is_plain<T: Copy>() {}

    #[test]
    fn what_is_remembered_of_a_ring_keeps_no_message() {
        const { is_plain::<Ring>() };
        assert!(size_of::<Ring>() <= 64, "{} bytes", size_of::<Ring>());
    }
}
