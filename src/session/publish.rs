//! Publishes: messages that a connector without an outbox of its own hands to the acceptor, and their receipts.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Code;
use super::frame::{Capabilities, Frame, Published};
use super::io::Event;
use crate::message::Message;
use crate::time::Timestamp;

/// The connector's side: what has no receipt yet.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    max: usize,
    horizon: Duration,
    /// With when it was sent for the first time, if it was.
    pending: BTreeMap<u64, (Message, Option<Timestamp>)>,
    last: Option<u64>,
}

impl Publisher {
    pub(super) const fn new(max: usize, horizon: Duration) -> Self {
        Self { max, horizon, pending: BTreeMap::new(), last: None }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_empty()
    }

    /// Notes a publish, which is sent now if it can be; or says why it is not taken.
    pub(super) fn add(&mut self, number: u64, message: Message, sent: Option<Timestamp>) -> Result<(), Code> {
        let follows = self.last.is_none_or(|last| number == last.saturating_add(1));
        if self.pending.len() >= self.max {
            return Err(Code::Busy);
        }
        if !follows || number == 0 {
            return Err(Code::Invalid);
        }
        self.last = Some(number);
        self.pending.insert(number, (message, sent));
        Ok(())
    }

    /// All up to this number were decided, whatever receipts were lost.
    pub(super) fn settle(&mut self, published: u64) -> Vec<Event> {
        let rest = self.pending.split_off(&published.saturating_add(1));
        let decided = core::mem::replace(&mut self.pending, rest);
        decided.into_keys().map(unknown).collect()
    }

    /// A new life: the acceptor recognises what comes again by its id only, and that only for as long as this end said that it
    /// would repeat. What is older is not sent again, and what became of it is not known.
    pub(super) fn expire(&mut self, now: Timestamp) -> Vec<Event> {
        let horizon = self.horizon;
        let is_late = |(_, sent): &(Message, Option<Timestamp>)| {
            sent.is_some_and(|sent| horizon.is_zero() || now > sent.after(horizon))
        };
        let late: Vec<_> =
            self.pending.iter().filter(|(_, publish)| is_late(publish)).map(|(number, _)| *number).collect();
        late.iter().for_each(|number| drop(self.pending.remove(number)));
        late.into_iter().map(unknown).collect()
    }

    /// Whether a receipt is news. One of what was never published is a violation.
    pub(super) fn receipt(&mut self, number: u64) -> Result<bool, Code> {
        match self.last.is_some_and(|last| number <= last) {
            true => Ok(self.pending.remove(&number).is_some()),
            false => Err(Code::AckOfUnsent),
        }
    }

    /// After a reconnect everything is sent again: the acceptor knows which ones it has.
    pub(super) fn resend(&mut self, now: Timestamp) -> Vec<Frame> {
        let frame = |(number, (message, sent)): (&u64, &mut (Message, Option<Timestamp>))| {
            sent.get_or_insert(now);
            Frame::Publish { number: *number, message: message.clone() }
        };
        self.pending.iter_mut().map(frame).collect()
    }
}

/// What became of it cannot be learned by this number.
const fn unknown(number: u64) -> Event {
    Event::Receipt(number, None)
}

/// The acceptor's side: which numbers came, and which are decided.
///
/// Outcomes are kept for as long as their receipts may be missed, which is for the newest `2 * max` receipts. Receipts come in
/// order, so those that a connector has not heard are the last ones that were sent, on the connection that was lost. Whatever was
/// decided since the receipt of a publish that it still waits for is something that it waits for too, fewer than `max`; the
/// others among them answer repeats at the beginning of that connection, at most `max`. So within a life nothing is asked of the
/// host twice, however long one publish before it takes to be decided. (A connector that has more publishes without a
/// receipt than it may have can cause it. Then the id says that it is a repeat.)
#[derive(Clone, Debug)]
pub(super) struct Receiver {
    max: usize,
    seen: u64,
    published: u64,
    undecided: BTreeSet<u64>,
    /// Those whose receipts were sent last, the newest last.
    outcomes: VecDeque<(u64, Published)>,
}

impl Receiver {
    pub(super) const fn new(max: usize) -> Self {
        Self { max, seen: 0, published: 0, undecided: BTreeSet::new(), outcomes: VecDeque::new() }
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

    /// A publish came: `None` if the host is to decide it, otherwise what to answer, if anything is known already. Numbers that
    /// are left out were decided: whoever has their receipts does not send them again, in whatever life, and a host whose
    /// memory of the high-water mark is gone must not refuse a device for that.
    pub(super) fn publish(&mut self, number: u64) -> Result<Option<Option<Frame>>, Code> {
        if let Some(outcome) = self.outcome(number) {
            self.keep(number, outcome.clone());
            return Ok(Some(Some(Frame::Receipt { number, outcome })));
        }
        if number <= self.published || self.undecided.contains(&number) {
            return Ok(Some(None));
        }
        if self.undecided.len() >= self.max {
            return Err(Code::WindowExceeded);
        }
        self.seen = self.seen.max(number);
        self.undecided.insert(number);
        Ok(None)
    }

    /// The host has decided. `None` if it was not asked, or in another life.
    pub(super) fn decide(&mut self, number: u64, outcome: Published) -> Option<Frame> {
        if !self.undecided.remove(&number) {
            return None;
        }
        let below = self.undecided.first().copied().unwrap_or(self.seen.saturating_add(1));
        self.published = below.saturating_sub(1);
        self.keep(number, outcome.clone());
        Some(Frame::Receipt { number, outcome })
    }

    fn outcome(&mut self, number: u64) -> Option<Published> {
        let index = self.outcomes.iter().position(|(known, _)| *known == number)?;
        self.outcomes.remove(index).map(|(_, outcome)| outcome)
    }

    /// A receipt is being sent.
    fn keep(&mut self, number: u64, outcome: Published) {
        self.outcomes.push_back((number, outcome));
        while self.outcomes.len() > self.max.saturating_mul(2) {
            self.outcomes.pop_front();
        }
    }
}

impl super::Session {
    pub(super) fn publish(&mut self, number: u64, message: Message) {
        let open = self.connection().is_some();
        let frame = || Frame::Publish { number, message: message.clone() };
        let added = match open {
            true if !self.can(Capabilities::PUBLISH) => Err(Code::NotPermitted),
            // It would end the connection, again and again.
            true if !self.fits(message.cost(), frame) => Err(Code::Invalid),
            _ => self.publisher.add(number, message.clone(), open.then_some(self.now)),
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

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng as _, SeedableRng};

    use super::*;

    fn decide(receiver: &mut Receiver, number: u64) {
        let receipt = Frame::Receipt { number, outcome: Published::Accepted };
        assert_eq!(receiver.decide(number, Published::Accepted), Some(receipt));
    }

    #[test]
    fn behind_a_publish_that_is_never_decided_outcomes_do_not_pile_up_and_a_forgotten_one_is_asked_again() {
        let mut receiver = Receiver::new(4);
        assert_eq!(receiver.publish(1), Ok(None));
        for number in 2..1000 {
            assert_eq!(receiver.publish(number), Ok(None));
            decide(&mut receiver, number);
            assert!(receiver.outcomes.len() <= 8, "{} outcomes are kept", receiver.outcomes.len());
        }
        let again = Frame::Receipt { number: 999, outcome: Published::Accepted };
        assert_eq!(receiver.publish(999), Ok(Some(Some(again))));
        assert_eq!(receiver.publish(1), Ok(Some(None)), "the host has it in hand");
        assert_eq!(receiver.publish(2), Ok(None), "nobody knows any more: the host does, by the id");
        assert_eq!(receiver.published(), 0, "the first one is undecided");
        decide(&mut receiver, 2);
        assert_eq!(receiver.published(), 0);
        decide(&mut receiver, 1);
        assert_eq!(receiver.published(), 999);
        assert_eq!(receiver.publish(5), Ok(Some(None)), "decided, and nobody who keeps to the bound asks");
    }

    /// What is under way on one connection, in both directions.
    #[derive(Default)]
    struct Wire {
        publishes: VecDeque<u64>,
        receipts: VecDeque<u64>,
    }

    #[test]
    fn within_a_life_nothing_is_asked_of_the_host_twice_and_every_publish_has_its_receipt() {
        for seed in 0..3000 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut below = |n: u64| random.next_u64() % n;
            let max = 1 + below(5) as usize;
            // Connector: without a receipt. Acceptor: its receiver, and how often the host was asked.
            let (mut pending, mut next) = (BTreeSet::new(), 1);
            let (mut receiver, mut asked) = (Receiver::new(max), BTreeSet::new());
            let (mut wire, mut decided) = (Wire::default(), 0);
            for step in 0.. {
                let ends = step > 400;
                match below(if ends { 6 } else { 8 }) {
                    0 | 1 if !ends && pending.len() < max => {
                        pending.insert(next);
                        wire.publishes.push_back(next);
                        next += 1;
                    }
                    2 | 3 => {
                        let Some(number) = wire.publishes.pop_front() else { continue };
                        match receiver.publish(number).expect("it keeps to the bound") {
                            None => assert!(asked.insert(number), "seed {seed}: {number} is asked again"),
                            Some(Some(_)) => wire.receipts.push_back(number),
                            Some(None) => {
                                assert!(receiver.undecided.contains(&number), "seed {seed}: no answer");
                            }
                        }
                    }
                    4 => {
                        // One of them may take very long.
                        let skip = receiver.undecided.len() > 1 && below(8) != 0;
                        let some = receiver.undecided.iter().nth(usize::from(skip)).copied();
                        let Some(number) = some.filter(|_| ends || skip || below(20) == 0) else { continue };
                        decide(&mut receiver, number);
                        decided += 1;
                        wire.receipts.push_back(number);
                    }
                    5 => wire.receipts.pop_front().into_iter().for_each(|number| _ = pending.remove(&number)),
                    6 if below(6) == 0 => {
                        wire = Wire { publishes: pending.iter().copied().collect(), ..Wire::default() };
                    }
                    _ => {}
                }
                if ends && pending.is_empty() {
                    break;
                }
                assert!(step < 10_000, "seed {seed}: {pending:?} have no receipt");
            }
            assert_eq!(decided, asked.len(), "seed {seed}");
        }
    }
}
