//! Devices: what is recorded of them, and which of them a message is for.

use serde::{Deserialize, Serialize};

use super::{Epoch, LaneRow, Seq};
use crate::id::{DeviceId, StreamId, UserId};
use crate::message::Priority;
use crate::time::Timestamp;

/// The most devices that can be registered for one user, whatever is configured.
pub const MAX_SLOTS: usize = 32;

/// A registered device's number among those of its user. It is given away again when the device is gone and nothing is
/// left of what waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Slot(u8);

/// A number that no device can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no device's number: they are below {MAX_SLOTS}")]
pub struct InvalidSlot(u8);

impl Slot {
    /// The slot with this number, if it is below [`MAX_SLOTS`].
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if (number as usize) < MAX_SLOTS { Some(Self(number)) } else { None }
    }

    /// What receivers know this device's lanes by, so that their inboxes tell them from the others of the same engine.
    #[must_use]
    pub const fn stream(self, engine: StreamId) -> StreamId {
        StreamId::from_u128(engine.as_u128() ^ (self.0 as u128 + 1) << 120)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Slot {
    type Error = InvalidSlot;

    fn try_from(number: u8) -> Result<Self, InvalidSlot> {
        Self::new(number).ok_or(InvalidSlot(number))
    }
}

impl From<Slot> for u8 {
    fn from(slot: Slot) -> Self {
        slot.0
    }
}

/// Some of a user's devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Slots(u32);

impl Slots {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// Those of the bits that are set.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// A bit for each, the lowest for the first.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Only this one.
    #[must_use]
    pub const fn one(slot: Slot) -> Self {
        Self(1 << slot.0)
    }

    /// With this one.
    #[must_use]
    pub const fn with(self, slot: Slot) -> Self {
        Self(self.0 | 1 << slot.0)
    }

    /// Without this one.
    #[must_use]
    pub const fn without(self, slot: Slot) -> Self {
        Self(self.0 & !(1 << slot.0))
    }

    /// Whether all of these are among them.
    #[must_use]
    pub const fn has_all(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    /// Whether this one is among them.
    #[must_use]
    pub const fn has(self, slot: Slot) -> bool {
        self.0 & (1 << slot.0) != 0
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// How many there are before this one.
    #[must_use]
    pub const fn rank(self, slot: Slot) -> u32 {
        (self.0 & ((1 << slot.0) - 1)).count_ones()
    }

    /// All of them, in their order.
    pub fn iter(self) -> impl Iterator<Item = Slot> {
        (0..MAX_SLOTS as u8).map(Slot).filter(move |slot| self.has(*slot))
    }
}

impl FromIterator<Slot> for Slots {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        slots.into_iter().fold(Self::NONE, Self::with)
    }
}

/// For which device of its recipient an accepted message is, and what the others have of it.
///
/// The copies of one message for several devices have places that follow one another, in the order of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ForDevice {
    /// Which device.
    pub slot: Slot,
    /// All devices that have a copy whose place follows from that of this one, this one among them.
    pub among: Slots,
    /// The first one to confirm it settles it: the others' copies end in the same commit.
    pub rings: bool,
    /// Its sender's repeats are recognised by another copy, or by none.
    pub is_copy: bool,
    /// How far apart the places of the copies are: 1, or 2 when each is followed by the end of where it was.
    pub stride: u8,
}

impl ForDevice {
    /// A message for this device and no other, at a place of its own.
    #[must_use]
    pub const fn alone(self) -> Self {
        Self { among: Slots::one(self.slot), stride: 1, ..self }
    }

    /// Where the copies for the other devices were put, given the place of this one.
    pub fn others(self, place: Seq) -> impl Iterator<Item = (Slot, Seq)> {
        let stride = u64::from(self.stride);
        let first = place.get().wrapping_sub(u64::from(self.among.rank(self.slot)).wrapping_mul(stride));
        let at = move |slot| u64::from(self.among.rank(slot)).wrapping_mul(stride).wrapping_add(first);
        self.among.iter().filter(move |slot| *slot != self.slot).map(move |slot| (slot, Seq::new(at(slot))))
    }

    /// The same for another of these devices, as far as its place in the store says.
    #[must_use]
    pub fn for_slot(self, slot: Slot) -> Self {
        let is_copy = self.among.rank(slot) > 0;
        Self { slot, is_copy, ..self }
    }
}

/// Something about one of a user's devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceChange {
    /// Whose device.
    pub user: UserId,
    /// Its number.
    pub slot: Slot,
    /// Its name.
    pub device: DeviceId,
    /// What.
    pub event: DeviceEvent,
    /// When.
    pub at: Timestamp,
}

/// What happens to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceEvent {
    /// It is registered: what is sent to every device from now on is for it too.
    Registered,
    /// It was there.
    Seen,
    /// It was attached in this epoch: what waits for it may have been offered.
    Exposed(Epoch),
    /// It was removed, or was not seen for too long: nothing more is for it, and what waits ends.
    Leaving,
    /// Nothing is left of what waited for it.
    Gone,
}

/// What the store keeps of one of a user's slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// Which one.
    pub slot: Slot,
    /// The device that has it, if one does.
    pub device: Option<DeviceInfo>,
    /// The newest epoch in which one was attached.
    pub exposed: Epoch,
    /// Its lanes, by priority.
    pub lanes: [LaneRow; Priority::ALL.len()],
}

impl DeviceRow {
    /// Of a slot that nobody has.
    #[must_use]
    pub fn of(slot: Slot) -> Self {
        let lanes = core::array::from_fn(|_| LaneRow::default());
        Self { slot, device: None, exposed: Epoch::default(), lanes }
    }
}

/// A registered device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its name.
    pub device: DeviceId,
    /// Since when.
    pub registered_at: Timestamp,
    /// When it was attached or left last, to the hour; when it was registered, if it never was.
    pub last_seen: Timestamp,
    /// It was removed, and what waited for it is ending.
    pub is_leaving: bool,
}
