//! Sinks of the simulation: they take what they are offered in order, and say true and untrue things about it.

use core::time::Duration;
use std::collections::VecDeque;

use super::random::Random;
use crate::id::{DeviceId, UserId};
use crate::machine::{Delivery, EntryRef, LinkId, Ticket, Verdict};
use crate::record::Seq;

/// An attached sink.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) user: UserId,
    pub(super) device: DeviceId,
    /// Whether it leads to the other engine's inbox.
    pub(super) is_wire: bool,
    /// Offered, and not yet dealt with.
    pub(super) queue: VecDeque<Delivery>,
    /// The delivery that the other engine is asked to take.
    pub(super) carrying: Option<Ticket>,
    /// It is being told of gaps.
    pub(super) is_told: bool,
}

/// What a sink does with what it holds.
#[derive(Debug, Default)]
pub(super) struct Reaction {
    /// Taken, in this order.
    pub(super) applied: Vec<Seq>,
    /// Said to the machine.
    pub(super) verdicts: Vec<(EntryRef, Verdict)>,
}

impl Link {
    /// Deals with the oldest message.
    pub(super) fn react(&mut self, random: &mut Random) -> Reaction {
        let mut reaction = Reaction::default();
        let Some(front) = self.queue.front() else { return reaction };
        let (entry, delay) = (front.entry, Duration::from_millis(1 + random.below(20_000)));
        match random.below(100) {
            0..50 => self.take(Some(Verdict::Delivered), &mut reaction),
            50..57 => self.take(None, &mut reaction),
            57..61 => self.take(Some(Verdict::Unconfirmed), &mut reaction),
            61..68 => reaction.verdicts.push((entry, Verdict::AwaitingAck)),
            68..72 => reaction.verdicts.push((entry, Verdict::Progress)),
            72..80 => self.refuse(Some(Verdict::Nack(None)), &mut reaction),
            80..84 => self.refuse(Some(Verdict::Nack(Some(delay))), &mut reaction),
            84..91 => self.refuse(Some(Verdict::Busy(delay)), &mut reaction),
            91..94 => self.refuse(None, &mut reaction),
            94..97 => self.disconnect(&mut reaction),
            _ => {
                self.queue.pop_front();
                reaction.verdicts.push((entry, Verdict::Rejected));
            }
        }
        reaction
    }

    /// Takes the oldest message, and says so or not.
    pub(super) fn take(&mut self, verdict: Option<Verdict>, reaction: &mut Reaction) {
        let Some(front) = self.queue.pop_front() else { return };
        reaction.applied.push(front.entry.seq);
        reaction.verdicts.extend(verdict.map(|verdict| (front.entry, verdict)));
    }

    /// Fails the oldest message, and with it all others of its key.
    pub(super) fn refuse(&mut self, verdict: Option<Verdict>, reaction: &mut Reaction) {
        let Some(front) = self.queue.front() else { return };
        let (lane, key) = (front.entry.lane, front.message.ordering_key().cloned());
        let mut said = 0;
        self.queue.retain(|delivery| {
            let same = delivery.entry.lane == lane && delivery.message.ordering_key() == key.as_ref();
            if same {
                // What stands behind a failed one is given back.
                let theirs = verdict.clone().map(|first| match said {
                    0 => first,
                    _ => Verdict::Busy(Duration::ZERO),
                });
                reaction.verdicts.extend(theirs.map(|verdict| (delivery.entry, verdict)));
                said += 1;
            }
            !same
        });
    }

    /// Loses the connection, and everything that was on its way.
    pub(super) fn disconnect(&mut self, reaction: &mut Reaction) {
        if let Some(front) = self.queue.front() {
            reaction.verdicts.push((front.entry, Verdict::Disconnected));
        }
        self.queue.clear();
        self.carrying = None;
    }
}

/// Something a sink says although it was not asked.
pub(super) fn nonsense(random: &mut Random) -> Verdict {
    let delay = Duration::from_millis(random.below(5_000));
    match random.below(7) {
        0 => Verdict::AwaitingAck,
        1 => Verdict::Progress,
        2 => Verdict::Nack(None),
        3 => Verdict::Busy(delay),
        4 => Verdict::Rejected,
        5 => Verdict::Unconfirmed,
        _ => Verdict::Nack(Some(delay)),
    }
}
