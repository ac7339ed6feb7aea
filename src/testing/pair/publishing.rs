//! The host of a connector without an outbox: what it publishes, until somebody has it for good.

use std::collections::BTreeMap;

use super::World;
use super::net::Side;
use crate::id::MessageId;
use crate::message::Message;
use crate::session::frame::{Published, Refused};
use crate::session::{Code, Input};

/// Kept through restarts, except for the numbers of a session that is no more.
#[derive(Debug, Default)]
pub(in crate::testing) struct Publishing {
    /// What is not accepted, in the order in which it was made.
    waiting: Vec<Message>,
    /// What has a number, until its receipt comes.
    numbered: BTreeMap<u64, MessageId>,
    last: u64,
    accepted: Vec<MessageId>,
}

/// What a receipt means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::testing) enum Heard {
    /// It is accepted.
    Accepted,
    /// Nobody knows, or not now: the same message must be published under a new number.
    Again,
    /// Of an older session.
    Nothing,
}

impl Publishing {
    pub(in crate::testing) fn add(&mut self, message: Message) {
        self.waiting.push(message);
    }

    /// The next message without a number, which gets one; at most so many have one.
    pub(in crate::testing) fn next(&mut self, max: usize) -> Option<(u64, Message)> {
        if self.numbered.len() >= max {
            return None;
        }
        let is_free = |message: &&Message| !self.numbered.values().any(|id| *id == message.id());
        let message = self.waiting.iter().find(is_free)?.clone();
        self.last += 1;
        self.numbered.insert(self.last, message.id());
        Some((self.last, message))
    }

    /// # Errors
    /// An honest publish was refused for good.
    pub(in crate::testing) fn receipt(
        &mut self,
        number: u64,
        outcome: Option<&Published>,
    ) -> Result<Heard, String> {
        let Some(id) = self.numbered.remove(&number) else { return Ok(Heard::Nothing) };
        match outcome {
            Some(Published::Accepted) => {
                self.waiting.retain(|message| message.id() != id);
                self.accepted.push(id);
                Ok(Heard::Accepted)
            }
            Some(Published::Refused(refused)) if refused.code.is_terminal() => {
                Err(format!("an honest publish was refused: {refused:?}"))
            }
            Some(Published::Refused(_)) | None => Ok(Heard::Again),
        }
    }

    /// The process has started again: its session begins anew, and so do its messages' numbers, behind those before.
    pub(in crate::testing) fn restart(&mut self) {
        self.numbered.clear();
    }

    /// How many are not accepted.
    pub(in crate::testing) fn left(&self) -> usize {
        self.waiting.len()
    }

    pub(in crate::testing) fn accepted(&self) -> &[MessageId] {
        &self.accepted
    }
}

/// Two ends of which the connector publishes.
impl World {
    /// The connector hands over one more message.
    pub(super) fn publish_one(&mut self) -> Result<(), String> {
        let Some(left) = self.to_publish.checked_sub(1) else { return Ok(()) };
        self.to_publish = left;
        let message =
            Message::to("alice", "pair.published", "").id(MessageId::from_u128(1_000_000 + u128::from(left)));
        self.publishing.add(message.build().expect("a small message is within the limits"));
        self.publish()
    }

    pub(super) fn publish(&mut self) -> Result<(), String> {
        while let Some((number, message)) = self.publishing.next(self.config.max_publishes) {
            self.tell(Side::Connector, Input::Publish(number, message))?;
        }
        Ok(())
    }

    /// The acceptor's host takes a publish, durably and once, or is busy.
    pub(super) fn decide_publish(&mut self, number: u64, message: &Message) -> Result<(), String> {
        let busy = !self.calm && self.random.chance(15);
        let outcome = if busy {
            Published::Refused(Refused { code: Code::Busy, retry_after: None, text: String::new() })
        } else {
            self.accepted.insert(message.id());
            Published::Accepted
        };
        self.tell(Side::Acceptor, Input::Published(number, outcome))
    }
}
