//! How far people have read.

use serde::{Deserialize, Serialize};

use super::Seq;
use crate::id::UserId;
use crate::time::Timestamp;

/// Somebody has read a conversation up to a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Who.
    pub user: UserId,
    /// Which conversation: the keyed digest of its ordering key.
    pub conversation: u128,
    /// Everything of it up to here.
    pub up_to: Seq,
    /// When.
    pub at: Timestamp,
}

/// How far somebody has read a conversation, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadMark {
    /// Everything up to the message at this place.
    pub up_to: Seq,
    /// When they said so.
    pub at: Timestamp,
}

/// What the store keeps of how far a user has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRow {
    /// Which conversation: the keyed digest of its ordering key.
    pub conversation: u128,
    /// How far.
    pub mark: ReadMark,
}
