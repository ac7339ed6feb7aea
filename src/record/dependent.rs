//! Messages that wait for another one of the same user.

use serde::{Deserialize, Serialize};

use super::{LaneId, Seq};

/// Where the message is that another one waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its lane.
    pub lane: LaneId,
    /// Its place.
    pub seq: Seq,
}

impl Parent {
    /// It had ended already, so that what waits for it may go.
    pub const ENDED: Self = Self { lane: LaneId::Critical, seq: Seq::ZERO };
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
