//! A limit that hosts set.

use core::num::{NonZeroU32, NonZeroU64};

/// How much one user may have waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxLimit {
    pub(super) messages: Option<NonZeroU32>,
    pub(super) bytes: Option<NonZeroU64>,
}

impl OutboxLimit {
    /// At most this many messages (at least one).
    #[must_use]
    pub fn messages(n: u32) -> Self {
        Self { messages: NonZeroU32::new(n.max(1)), bytes: None }
    }

    /// And at most this many bytes.
    #[must_use]
    pub fn bytes(self, n: u64) -> Self {
        Self { bytes: NonZeroU64::new(n.max(1)), ..self }
    }
}
