//! The same message from somebody else, or in another outbox: for hops that vouch for a sender.

use std::sync::Arc;

use super::{Message, Parts};
use crate::id::{CollapseKey, OrderingKey, UserId};

impl Message {
    /// The same message, as this sender's.
    #[must_use]
    pub(crate) fn sent_by(&self, sender: UserId) -> Self {
        match self.sender() == Some(&sender) {
            true => self.clone(),
            false => Self(Arc::new(Parts { sender: Some(sender), ..(*self.0).clone() })),
        }
    }

    /// The same message with another address and other keys.
    #[must_use]
    pub(crate) fn readdressed(
        &self,
        recipient: UserId,
        sender: Option<UserId>,
        ordering_key: Option<OrderingKey>,
        collapse_key: Option<CollapseKey>,
    ) -> Self {
        Self(Arc::new(Parts { recipient, sender, ordering_key, collapse_key, ..(*self.0).clone() }))
    }
}
