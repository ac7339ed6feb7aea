//! How urgent messages are.

use serde::{Deserialize, Serialize};

/// How urgent a message is. Each is a lane of its own in the recipient's outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Priority {
    /// Rings, alarms: first, within a bound, and with an in-flight reserve of its own.
    Critical,
    /// Direct messages.
    High,
    /// Everything else.
    #[default]
    Normal,
    /// Digests, hints.
    Low,
}

impl Priority {
    /// All priorities, most urgent first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// 0 for critical to 3 for low.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The priority with this index.
    #[must_use]
    pub const fn from_index(index: u8) -> Option<Self> {
        match index {
            0 => Some(Self::Critical),
            1 => Some(Self::High),
            2 => Some(Self::Normal),
            3 => Some(Self::Low),
            _ => None,
        }
    }

    /// A lower-case name, for tables and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}
