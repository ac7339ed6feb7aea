//! Publishes: messages that a connector without an outbox of its own hands to the acceptor, and their receipts.

use std::collections::{BTreeMap, BTreeSet};

use super::Code;
use super::frame::{Capabilities, Frame, Published};
use super::io::Event;
use crate::message::Message;

/// The connector's side: what has no receipt yet.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    max: usize,
    pending: BTreeMap<u64, Message>,
    last: Option<u64>,
}

impl Publisher {
    pub(super) const fn new(max: usize) -> Self {
        Self { max, pending: BTreeMap::new(), last: None }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_empty()
    }

    /// Notes a publish to be sent; or says why it is not taken.
    pub(super) fn add(&mut self, number: u64, message: Message) -> Result<(), Code> {
        let follows = self.last.is_none_or(|last| number == last.saturating_add(1));
        if self.pending.len() >= self.max {
            return Err(Code::Busy);
        }
        if !follows || number == 0 {
            return Err(Code::Invalid);
        }
        self.last = Some(number);
        self.pending.insert(number, message);
        Ok(())
    }

    /// All up to this number were decided, whatever receipts were lost.
    pub(super) fn settle(&mut self, published: u64) -> Vec<Event> {
        let rest = self.pending.split_off(&published.saturating_add(1));
        let decided = core::mem::replace(&mut self.pending, rest);
        decided.into_keys().map(|number| Event::Receipt(number, None)).collect()
    }

    /// Whether a receipt is news. One of what was never published is a violation.
    pub(super) fn receipt(&mut self, number: u64) -> Result<bool, Code> {
        match self.last.is_some_and(|last| number <= last) {
            true => Ok(self.pending.remove(&number).is_some()),
            false => Err(Code::AckOfUnsent),
        }
    }

    /// After a reconnect everything is sent again: the acceptor knows which ones it has.
    pub(super) fn resend(&self) -> Vec<Frame> {
        let frame = |(number, message): (&u64, &Message)| Frame::Publish {
            number: *number,
            message: message.clone(),
        };
        self.pending.iter().map(frame).collect()
    }
}

/// The acceptor's side: which numbers came, and which are decided.
#[derive(Clone, Debug)]
pub(super) struct Receiver {
    max: usize,
    seen: u64,
    published: u64,
    undecided: BTreeSet<u64>,
    /// Outcomes above the high-water mark, or as many as there may be publishes without a receipt.
    outcomes: BTreeMap<u64, Published>,
}

impl Receiver {
    pub(super) const fn new(max: usize) -> Self {
        Self { max, seen: 0, published: 0, undecided: BTreeSet::new(), outcomes: BTreeMap::new() }
    }

    pub(super) const fn published(&self) -> u64 {
        self.published
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.undecided.is_empty()
    }

    /// A new life, with what the host's high-water mark says.
    pub(super) fn reset(&mut self, published: u64) {
        *self = Self { published, seen: published, ..Self::new(self.max) };
    }

    /// A publish came: `None` if it is new, otherwise what to answer, if anything is known already. Numbers that are left out
    /// were decided: whoever has their receipts does not send them again, in whatever life, and a host whose memory of the
    /// high-water mark is gone must not refuse a device for that.
    pub(super) fn publish(&mut self, number: u64) -> Result<Option<Option<Frame>>, Code> {
        if number <= self.seen {
            let outcome = self.outcomes.get(&number).cloned();
            return Ok(Some(outcome.map(|outcome| Frame::Receipt { number, outcome })));
        }
        if self.undecided.len() >= self.max {
            return Err(Code::WindowExceeded);
        }
        self.seen = number;
        self.undecided.insert(number);
        Ok(None)
    }

    /// The host has decided. `None` if it was not asked, or in another life.
    pub(super) fn decide(&mut self, number: u64, outcome: Published) -> Option<Frame> {
        if !self.undecided.remove(&number) {
            return None;
        }
        self.outcomes.insert(number, outcome.clone());
        let below = self.undecided.first().copied().unwrap_or(self.seen.saturating_add(1));
        self.published = below.saturating_sub(1);
        while self.outcomes.len() > self.max
            && self.outcomes.first_key_value().is_some_and(|(n, _)| *n < below)
        {
            self.outcomes.pop_first();
        }
        Some(Frame::Receipt { number, outcome })
    }
}

impl super::Session {
    pub(super) fn publish(&mut self, number: u64, message: Message) {
        let open = self.connection().is_some();
        let added = match open && !self.can(Capabilities::PUBLISH) {
            true => Err(Code::NotPermitted),
            false => self.publisher.add(number, message.clone()),
        };
        match added {
            Ok(()) => self.send(Frame::Publish { number, message }),
            Err(code) => {
                let refused = Published::Refused(Self::refused(code));
                self.event(Event::Receipt(number, Some(refused)));
            }
        }
    }

    pub(super) fn published(&mut self, number: u64, outcome: Published) {
        let receipt = self.receiver.decide(number, outcome);
        receipt.into_iter().for_each(|frame| self.send(frame));
    }
}
