//! Messages that wait for another one of the same user.

use serde::{Deserialize, Serialize};

use super::{ForDevice, LaneId, Seq, Slot, Slots};
use crate::message::Priority;

/// Where the message is that another one waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its lane; of a message for several devices, that of one of its copies.
    pub lane: LaneId,
    /// Its place, or that copy's.
    pub seq: Seq,
    /// Of a message for several devices: which of its copies had not ended. It is delivered when one of them is.
    #[serde(skip)]
    pub copies: Option<Copies>,
}

/// Which copies of a message for several devices there are, given the place of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copies {
    /// All devices whose copies' places follow from each other.
    pub among: Slots,
    /// Those whose copies have not ended.
    pub left: Slots,
    /// How far apart the places are, as in [`ForDevice::stride`].
    pub stride: u8,
}

impl Parent {
    /// It had ended already, so that what waits for it may go.
    pub const ENDED: Self = Self::at(LaneId::Critical, Seq::ZERO);

    /// A message that has one place.
    #[must_use]
    pub const fn at(lane: LaneId, seq: Seq) -> Self {
        Self { lane, seq, copies: None }
    }

    /// A message of which a copy for one device is at this place.
    #[must_use]
    pub fn of_device(lane: LaneId, seq: Seq, device: ForDevice) -> Self {
        let ForDevice { among, stride, .. } = device;
        Self { lane, seq, copies: Some(Copies { among, left: among, stride }) }
    }

    /// Where its copies are that have not ended, or it is itself.
    pub fn places(&self) -> impl Iterator<Item = (LaneId, Seq)> + use<> {
        let alone = self.copies.is_none().then_some((self.lane, self.seq));
        let spread = self.spread().into_iter().flat_map(|(left, priority, device, seq)| {
            let all = device.others(seq).chain([(device.slot, seq)]);
            let left = all.filter(move |(slot, _)| left.has(*slot));
            left.map(move |(slot, seq)| (LaneId::Device(slot, priority), seq))
        });
        alone.into_iter().chain(spread)
    }

    fn spread(&self) -> Option<(Slots, Priority, ForDevice, Seq)> {
        let Copies { among, left, stride } = self.copies?;
        let (slot, priority) = (self.lane.slot()?, self.lane.priority()?);
        let device = ForDevice { slot, among, rings: false, is_copy: false, stride };
        Some((left, priority, device, self.seq))
    }

    /// Which device has the copy at this place, if one of those has that have not ended.
    #[must_use]
    pub fn copy_at(&self, place: Seq) -> Option<Slot> {
        self.copies?;
        self.places().find(|(_, seq)| *seq == place).and_then(|(lane, _)| lane.slot())
    }

    /// Whether it is at this place, or one of its copies is.
    #[must_use]
    pub fn is_at(&self, place: Seq) -> bool {
        match self.copies {
            None => self.seq == place,
            Some(_) => self.copy_at(place).is_some(),
        }
    }

    /// Without the copy for one device, which has ended. Nothing when it was the last.
    #[must_use]
    pub fn without(self, slot: Slot) -> Option<Self> {
        let mut copies = self.copies?;
        copies.left = copies.left.without(slot);
        (!copies.left.is_empty()).then_some(Self { copies: Some(copies), ..self })
    }
}

/// How a parent has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentEnd {
    /// It was delivered.
    Delivered,
    /// It ended in any other way.
    Otherwise,
}

/// A message that waits for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DependentRow {
    /// Its place, in [`LaneId::Scheduled`].
    pub seq: Seq,
    /// What it waits for.
    pub parent: Parent,
    /// How that has ended, if it has: then it goes, or ends as well, as soon as somebody looks at it.
    pub ended: Option<ParentEnd>,
}
