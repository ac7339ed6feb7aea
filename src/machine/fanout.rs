//! One message to many people. Each is a message by itself, with a verdict of its own; all of them share one payload,
//! and what a payload takes is counted once in a commit.

use super::Machine;
use super::commit::Pending;
use super::io::Ticket;
use crate::id::UserId;
use crate::message::Message;
use crate::record::Accept;
use crate::time::Timestamp;

/// What an acceptance takes in a commit at most that says what the one before it says: an id and three numbers.
pub(super) const LIKE_BYTES: u64 = 296;

impl Machine {
    pub(super) fn handle_fan_out(
        &mut self,
        now: Timestamp,
        first: Ticket,
        message: &Message,
        recipients: Vec<UserId>,
    ) {
        // What it says is the same for everybody, and reading a large payload once for each would cost the most.
        self.content = Some(self.digester.content(message));
        for (n, recipient) in (0..).zip(recipients) {
            self.handle_send(now, Ticket(first.0.wrapping_add(n)), message.for_recipient(recipient));
        }
        self.content = None;
    }

    /// The digest of what a message says.
    pub(super) fn content_of(&self, message: &Message) -> u64 {
        self.content.unwrap_or_else(|| self.digester.content(message))
    }
}

/// What records take in a commit at most, one after the other.
#[derive(Debug, Default)]
pub(super) struct Weighing<'a> {
    before: Option<&'a Accept>,
}

impl<'a> Weighing<'a> {
    pub(super) fn bytes(&mut self, pending: &'a Pending) -> u64 {
        let Pending::Accept(next) = pending else { return pending.bytes() };
        let accept: &Accept = &next.accept;
        let like = self.before.replace(accept).is_some_and(|before| accept.is_shared_with(before));
        if like { LIKE_BYTES } else { pending.bytes() }
    }
}
