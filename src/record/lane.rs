//! Where messages wait.

use serde::{Deserialize, Serialize};

use crate::message::Priority;

/// Where in a person's outbox a message waits: a lane for each [`Priority`], which sinks are offered from, and two that
/// nothing is offered from.
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
}

impl LaneId {
    /// All lanes, in the order of [`LaneId::index`]; those of the priorities first.
    pub const ALL: [Self; 6] =
        [Self::Critical, Self::High, Self::Normal, Self::Low, Self::Scheduled, Self::Dead];
    /// How many lanes there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Its place in tables of lanes.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The lane with this index.
    #[must_use]
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }

    /// The priority of what is offered from it, if anything is.
    #[must_use]
    pub const fn priority(self) -> Option<Priority> {
        match self {
            Self::Critical => Some(Priority::Critical),
            Self::High => Some(Priority::High),
            Self::Normal => Some(Priority::Normal),
            Self::Low => Some(Priority::Low),
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
