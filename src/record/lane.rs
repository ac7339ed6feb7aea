//! Where messages wait.

use serde::{Deserialize, Serialize};

use super::device::Slot;
use crate::message::Priority;

/// Where in a person's outbox a message waits: a lane for each [`Priority`], which sinks are offered from, two that
/// nothing is offered from, and for each registered device a lane for each priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LaneId {
    /// What has [`Priority::Critical`].
    Critical,
    /// What has [`Priority::High`].
    High,
    /// What has [`Priority::Normal`].
    Normal,
    /// What has [`Priority::Low`].
    Low,
    /// What waits for its time to come, see [`MessageBuilder::not_before`](crate::MessageBuilder::not_before). Then it
    /// moves to the lane of its priority, where it waits behind what is there already.
    Scheduled,
    /// Dead letters: what could not be delivered and is kept to be looked at.
    Dead,
    /// What is for one registered device, of one priority.
    Device(Slot, Priority),
}

impl LaneId {
    /// The lanes that everybody has, in the order of [`LaneId::index`]; those of the priorities first.
    pub const ALL: [Self; 6] =
        [Self::Critical, Self::High, Self::Normal, Self::Low, Self::Scheduled, Self::Dead];
    /// How many of them there are.
    pub const COUNT: usize = Self::ALL.len();
    /// No lane comes behind it.
    pub const LAST: Self = match Slot::new(u8::MAX >> 3) {
        Some(slot) => Self::Device(slot, Priority::Low),
        None => Self::Dead,
    };

    /// Its place among all lanes there can be: those of [`LaneId::ALL`], then four for each slot.
    #[must_use]
    pub const fn index(self) -> usize {
        self.code() as usize
    }

    /// Its index, in a byte.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Critical => 0,
            Self::High => 1,
            Self::Normal => 2,
            Self::Low => 3,
            Self::Scheduled => 4,
            Self::Dead => 5,
            Self::Device(slot, priority) => Self::COUNT as u8 + slot.get() * 4 + priority.index() as u8,
        }
    }

    /// The lane with this index.
    #[must_use]
    pub fn from_index(index: u8) -> Option<Self> {
        let Some(behind) = usize::from(index).checked_sub(Self::COUNT) else {
            return Self::ALL.get(usize::from(index)).copied();
        };
        let priority = Priority::ALL.get(behind % Priority::ALL.len())?;
        let slot = Slot::new(u8::try_from(behind / Priority::ALL.len()).ok()?)?;
        Some(Self::Device(slot, *priority))
    }

    /// The lanes of a slot, by priority.
    #[must_use]
    pub fn of_slot(slot: Slot) -> [Self; Priority::ALL.len()] {
        Priority::ALL.map(|priority| Self::Device(slot, priority))
    }

    /// The device that it is for, if it is for one.
    #[must_use]
    pub const fn slot(self) -> Option<Slot> {
        match self {
            Self::Device(slot, _) => Some(slot),
            _ => None,
        }
    }

    /// The priority of what is offered from it, if anything is.
    #[must_use]
    pub const fn priority(self) -> Option<Priority> {
        match self {
            Self::Critical => Some(Priority::Critical),
            Self::High => Some(Priority::High),
            Self::Normal => Some(Priority::Normal),
            Self::Low => Some(Priority::Low),
            Self::Device(_, priority) => Some(priority),
            Self::Scheduled | Self::Dead => None,
        }
    }
}

impl From<Priority> for LaneId {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Critical => Self::Critical,
            Priority::High => Self::High,
            Priority::Normal => Self::Normal,
            Priority::Low => Self::Low,
        }
    }
}

impl PartialEq<Priority> for LaneId {
    fn eq(&self, priority: &Priority) -> bool {
        *self == Self::from(*priority)
    }
}
