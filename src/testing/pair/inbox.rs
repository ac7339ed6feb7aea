//! A durable inbox in a few lines: what was applied, in order, and what is remembered of it.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::id::OrderingKey;
use crate::record::{LaneId, Seq};
use crate::session::frame::Place;
use crate::session::{Code, Inbound, InboundId, Verdict};
use crate::testing::sim::Random;

/// What an end without an engine keeps of what it got, through restarts too.
#[derive(Debug, Default)]
pub(in crate::testing) struct Inbox {
    /// What was applied, in order.
    applied: Vec<(Place, Option<OrderingKey>)>,
    remembered: BTreeSet<Place>,
    /// Everything of a lane up to there has ended at the sender.
    floors: BTreeMap<LaneId, Seq>,
}

/// What became of messages.
#[derive(Debug, Default)]
pub(in crate::testing) struct Decided {
    pub(in crate::testing) verdicts: Vec<(InboundId, Verdict)>,
    /// What was applied now.
    pub(in crate::testing) applied: Vec<Place>,
    /// What had been before.
    pub(in crate::testing) recognised: u64,
}

impl Inbox {
    /// Decides about messages, in order. What follows one of its lane and key that was not taken is not taken.
    pub(in crate::testing) fn decide(
        &mut self,
        inbound: Vec<Inbound>,
        random: &mut Random,
        calm: bool,
    ) -> Decided {
        let (mut held, mut decided) = (BTreeSet::new(), Decided::default());
        for inbound in inbound {
            let place = inbound.item.place;
            let name = inbound.item.message.ordering_key().cloned();
            let key = (place.lane, name.clone());
            let verdict = if held.contains(&key) {
                Verdict::Busy(Duration::ZERO)
            } else if self.remembered.contains(&place) {
                decided.recognised += 1;
                Verdict::Delivered
            } else if place.seq.epoch().0 != 0
                && self.floors.get(&place.lane).is_some_and(|floor| place.seq <= *floor)
            {
                // A copy that was under way when its time was over: whether it was applied is forgotten.
                Verdict::Rejected(Code::Rejected)
            } else if !calm && random.chance(10) {
                held.insert(key);
                match random.chance(50) {
                    true => Verdict::Nack(None),
                    false => Verdict::Busy(Duration::ZERO),
                }
            } else {
                self.applied.push((place, name));
                self.remembered.insert(place);
                decided.applied.push(place);
                match random.chance(5) {
                    true => Verdict::Replied(bytes::Bytes::from_static(b"ok")),
                    false => Verdict::Delivered,
                }
            };
            decided.verdicts.push((inbound.id, verdict));
        }
        decided
    }

    /// The sender holds the acknowledgements of these: they are not remembered any more.
    pub(in crate::testing) fn forget(&mut self, floor: Place) {
        let known = self.floors.entry(floor.lane).or_default();
        *known = floor.seq.max(*known);
        self.remembered
            .retain(|place| place.lane != floor.lane || place.seq > floor.seq || place.seq.epoch().0 == 0);
    }

    /// What was applied, in order.
    pub(in crate::testing) fn applied(&self) -> impl ExactSizeIterator<Item = Place> {
        self.applied.iter().map(|(place, _)| *place)
    }

    pub(in crate::testing) fn has_applied(&self, seq: Seq) -> bool {
        self.applied.iter().any(|(place, _)| place.seq == seq)
    }

    /// Whether everything durable was applied once, in order of its lane and key. (Volatile places begin anew with every
    /// life of the sender.)
    pub(in crate::testing) fn check(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        let mut last: BTreeMap<(LaneId, Option<&OrderingKey>), Seq> = BTreeMap::new();
        for (place, key) in self.applied.iter().filter(|(place, _)| place.seq.epoch().0 != 0) {
            if !seen.insert(*place) {
                return Err(format!("{place:?} was applied twice"));
            }
            let before = last.insert((place.lane, key.as_ref()), place.seq);
            if before.is_some_and(|before| before > place.seq) {
                return Err(format!("{place:?} was applied after {before:?}"));
            }
        }
        Ok(())
    }
}
