//! What is known of the other side: that it may have been offered something, and what it holds for good.

use serde::{Deserialize, Serialize};

use super::{Epoch, LaneId, Seq};
use crate::id::{StreamId, UserId};

/// A sink was attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposed {
    /// To whom.
    pub user: UserId,
    /// In which epoch.
    pub epoch: Epoch,
}

/// The sender of an inbox confirmed acknowledgements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// Whose inbox.
    pub user: UserId,
    /// From which engine.
    pub stream: StreamId,
    /// In which lane.
    pub lane: LaneId,
    /// Every place up to here is done with on the other side.
    pub floor: Seq,
}
