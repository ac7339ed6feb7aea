//! What a message waits for, if it waits for another one.

use serde::{Deserialize, Serialize};

use crate::id::MessageId;

/// The message that another one waits for, see [`MessageBuilder::after`](crate::MessageBuilder::after).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// The id of the parent: a message of the same sender to the same recipient.
    pub id: MessageId,
    /// What happens if the parent ends as anything but delivered.
    pub otherwise: Otherwise,
}

/// What becomes of a message whose parent was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Otherwise {
    /// It is delivered all the same: it only had to wait for its turn.
    Release,
    /// It ends as [`Cancelled`](crate::EndReason::Cancelled): without its parent it means nothing.
    Cancel,
}
