//! Messages that ring: the first device to confirm one settles it for all of its user's devices.
//!
//! The others' copies end in the commit of that confirmation, so that after no crash one of them rings on. Whoever was
//! offered one is told when that is durable.

use super::Machine;
use super::commit::Pending;
use super::io::{Action, EntryRef, LinkId, Withdrawn};
use crate::id::{MessageId, UserId};
use crate::record::{Accept, End, Record};
use crate::status::EndReason;
use crate::time::Timestamp;

/// What must be known of a copy that has ended to let the others end too.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    accept: std::sync::Arc<Accept>,
}

impl Machine {
    /// A receiver has a message that lives: it ends, and with it the copies that ring elsewhere.
    pub(super) fn delivered(&mut self, now: Timestamp, id: &UserId, entry: EntryRef) {
        let ring = self.ring_of(id, entry);
        let Some(end) = self.ending(now, id, entry, EndReason::Delivered) else { return };
        self.current.push(Pending::Fact(Record::End(end)));
        if let Some(ring) = ring {
            self.stop_ringing(id, entry, &ring);
        }
    }

    /// What rings elsewhere too, if this message in memory does.
    pub(super) fn ring_of(&self, id: &UserId, entry: EntryRef) -> Option<Ring> {
        let found = self.users.get(id)?.lane_ref(entry.lane).entry(entry.seq)?;
        let rings = found.accept.device.is_some_and(|device| device.rings);
        rings.then(|| Ring { accept: found.accept.clone() })
    }

    /// Ends the other copies, in one commit with the record before.
    pub(super) fn stop_ringing(&mut self, id: &UserId, entry: EntryRef, ring: &Ring) {
        let message = &ring.accept.message;
        let stored = (message.cost(), message.id());
        for other in self.other_copies(id, entry, &ring.accept) {
            self.end_place(id, other, stored, EndReason::Elsewhere, true);
        }
    }

    /// That a message was settled elsewhere is durable: its device is told, if it is there and was offered it.
    pub(super) fn tell_withdrawn(&mut self, end: &End, entry: EntryRef) {
        let Some(id) = end.id.filter(|_| end.reason == EndReason::Elsewhere && end.possibly_delivered) else {
            return;
        };
        if let Some(link) = self.link_of(&end.user, entry) {
            self.withdraw(link, entry, id);
        }
    }

    fn link_of(&self, id: &UserId, entry: EntryRef) -> Option<LinkId> {
        let slot = entry.lane.slot()?;
        let links = &self.users.get(id)?.links;
        links.iter().find(|link| self.links.get(link).is_some_and(|link| link.slot == Some(slot))).copied()
    }

    fn withdraw(&mut self, link: LinkId, entry: EntryRef, id: MessageId) {
        self.actions.push_back(Action::Withdraw { link, withdrawn: Withdrawn { entry, id } });
    }
}
