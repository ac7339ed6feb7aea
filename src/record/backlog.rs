//! How much waits, by lane and by when it was accepted.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{LaneId, Seq};
use crate::time::Timestamp;

/// Stretches of time that are told apart, at most.
const MAX_SLOTS: usize = 64;
/// What is accepted within so many milliseconds is never told apart.
const GRAIN_MS: u64 = 1000;

/// What waits, a fold of the records in a fixed size: exact counts by lane, and for each lane when the oldest message that
/// waits was accepted, with a stated error.
///
/// It counts messages by when they were accepted, in up to 64 stretches of time, each of them a range of places. A new one
/// begins after a second; when there are too many, those two neighbours become one that are closest together, measured
/// by their age. So a stretch is at most a second long, or a third of its age, and in one in which nothing lives any more
/// nothing is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    slots: [Slot; MAX_SLOTS],
    used: usize,
    /// Messages that wait after a failed attempt; wraps, as all counts do.
    retrying: u64,
}

/// What was accepted in a stretch of time and has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    /// The place of the first of them, up to the next stretch.
    from: Seq,
    /// When that was accepted.
    at: Timestamp,
    live: [u64; LaneId::COUNT],
}

impl Slot {
    fn is_empty(&self) -> bool {
        self.live == [0; LaneId::COUNT]
    }

    fn count(&mut self, lane: LaneId, more: u64) {
        if let Some(n) = self.live.get_mut(counted(lane)) {
            *n = n.wrapping_add(more);
        }
    }

    fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.live.iter_mut().zip(other.live) {
            *mine = mine.wrapping_add(theirs);
        }
    }
}

impl Default for Backlog {
    fn default() -> Self {
        Self { slots: [Slot::default(); MAX_SLOTS], used: 0, retrying: 0 }
    }
}

impl Backlog {
    /// Messages of a lane that have not ended. What is for a certain device counts in the lane of its priority.
    #[must_use]
    pub fn depth(&self, lane: LaneId) -> u64 {
        super::positive(self.slots().iter().fold(0, |sum, slot| sum.wrapping_add(slot.of(lane))))
    }

    /// When the oldest message of a lane that has not ended was accepted: never later than it was, and earlier by no more
    /// than a second or a third of its age. Messages that were moved to a lane count from then on, and those of batches across
    /// shards from when all shards had answered.
    ///
    /// When an engine was opened with another number of shards than before, it may be earlier until what waited then has
    /// ended.
    #[must_use]
    pub fn oldest(&self, lane: LaneId) -> Option<Timestamp> {
        let lives = |slot: &&Slot| super::positive(slot.of(lane)) > 0;
        self.slots().iter().find(lives).filter(|_| self.depth(lane) > 0).map(|slot| slot.at)
    }

    /// Messages that wait after a failed attempt.
    #[must_use]
    pub fn retrying(&self) -> u64 {
        super::positive(self.retrying)
    }

    /// A message has taken a place. Places come in order, but for those of batches across shards: of these, a shard may be
    /// told after it was told of later ones.
    pub(crate) fn accept(&mut self, seq: Seq, lane: LaneId, at: Timestamp) {
        match (self.slot_of(seq), self.slots.first_mut().filter(|_| self.used > 0)) {
            (Some(slot), _) if slot + 1 < self.used => return self.count(slot, lane, 1),
            (None, Some(first)) => {
                first.from = seq;
                return self.count(0, lane, 1);
            }
            _ => {}
        }
        let is_new = self.slots().last().is_none_or(|last| at.as_millis() >= last.at.as_millis() + GRAIN_MS);
        if is_new {
            if self.used == MAX_SLOTS {
                self.join_closest(at);
            }
            self.insert(self.used, Slot { from: seq, at, live: [0; LaneId::COUNT] });
        }
        self.count(self.used.saturating_sub(1), lane, 1);
    }

    /// The stretch that a place belongs to.
    fn slot_of(&self, seq: Seq) -> Option<usize> {
        self.slots().partition_point(|slot| slot.from <= seq).checked_sub(1)
    }

    fn count(&mut self, at: usize, lane: LaneId, more: u64) {
        if let Some(slot) = self.slots.get_mut(at) {
            slot.count(lane, more);
        }
    }

    /// What was at a place has ended.
    pub(crate) fn end(&mut self, seq: Seq, lane: LaneId) {
        let at = match self.slot_of(seq) {
            Some(at) => at,
            None => {
                // From before all that is known: of another shard, which has counted it.
                if self.used == MAX_SLOTS {
                    self.join(0);
                }
                self.insert(0, Slot { from: seq, ..Slot::default() });
                0
            }
        };
        let Some(slot) = self.slots.get_mut(at) else { return };
        slot.count(lane, u64::MAX);
        // The last one goes on being filled.
        if slot.is_empty() && at + 1 < self.used {
            self.remove(at);
        }
    }

    /// A message has failed for the first time, or one that had has ended.
    pub(crate) fn retry(&mut self, begins: bool) {
        self.retrying = self.retrying.wrapping_add(if begins { 1 } else { u64::MAX });
    }

    /// Adds what another shard has counted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.retrying = self.retrying.wrapping_add(other.retrying);
        for theirs in other.slots() {
            let at = self.slots().partition_point(|slot| slot.from < theirs.from);
            match self.slots.get_mut(at).filter(|mine| at < self.used && mine.from == theirs.from) {
                Some(mine) => mine.add(theirs),
                None => {
                    let mut at = at;
                    if self.used == MAX_SLOTS {
                        let joined = self.join_closest(theirs.at);
                        at -= usize::from(joined < at);
                    }
                    self.insert(at, *theirs);
                }
            }
        }
    }

    /// What shard `i` of several begins with: the first with all, the others with the same stretches of time.
    pub(crate) fn part(&self, i: u64) -> Self {
        let mut part = *self;
        if i > 0 {
            part.retrying = 0;
            part.slots.iter_mut().for_each(|slot| slot.live = [0; LaneId::COUNT]);
        }
        part
    }

    fn slots(&self) -> &[Slot] {
        self.slots.get(..self.used).unwrap_or(&self.slots)
    }

    /// There must be room.
    fn insert(&mut self, at: usize, slot: Slot) {
        if let Some(rest) = self.slots.get_mut(at..) {
            rest.rotate_right(1);
            if let Some(place) = rest.first_mut() {
                *place = slot;
            }
            self.used = (self.used + 1).min(MAX_SLOTS);
        }
    }

    fn remove(&mut self, at: usize) {
        if let Some(rest) = self.slots.get_mut(at..self.used) {
            rest.rotate_left(1);
            if let Some(last) = rest.last_mut() {
                *last = Slot::default();
            }
            self.used -= 1;
        }
    }

    /// Makes two neighbours one: the one that is the shortest then, measured by its age at this time. Says which was the
    /// first of them.
    fn join_closest(&mut self, now: Timestamp) -> usize {
        let ends = |i: usize| self.slots().get(i + 2).map_or(now, |after| after.at).as_millis();
        let cost = |i: usize| {
            let at = self.slots().get(i).map_or(0, |slot| slot.at.as_millis());
            let length = u128::from(ends(i).saturating_sub(at)) << 32;
            length / u128::from(now.as_millis().saturating_sub(at).max(1))
        };
        let closest = (0..self.used.saturating_sub(1)).min_by_key(|i| cost(*i)).unwrap_or(0);
        self.join(closest);
        closest
    }

    /// Makes a slot and the one behind it one.
    fn join(&mut self, at: usize) {
        let Some(second) = self.slots().get(at + 1).copied() else { return };
        if let Some(first) = self.slots.get_mut(at) {
            first.add(&second);
            // Of nothing that is known, a time is no time.
            if first.at == Timestamp::ZERO {
                first.at = second.at;
            }
        }
        self.remove(at + 1);
    }
}

impl Slot {
    fn of(&self, lane: LaneId) -> u64 {
        self.live.get(counted(lane)).copied().unwrap_or(0)
    }
}

/// What is for a certain device counts where the others of its priority do.
fn counted(lane: LaneId) -> usize {
    lane.priority().map_or(lane, LaneId::from).index()
}

impl core::fmt::Debug for Backlog {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let depths = LaneId::ALL.map(|lane| (lane, self.depth(lane)));
        f.debug_struct("Backlog").field("depths", &depths).field("retrying", &self.retrying()).finish()
    }
}

impl Serialize for Backlog {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.retrying, self.slots()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Backlog {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (retrying, slots) = <(u64, Vec<Slot>)>::deserialize(deserializer)?;
        let mut read = Self { retrying, used: slots.len(), ..Self::default() };
        let places = read.slots.get_mut(..slots.len());
        let places = places.ok_or_else(|| D::Error::custom("too many stretches of time"))?;
        places.copy_from_slice(&slots);
        match slots.is_sorted_by_key(|slot| slot.from) {
            true => Ok(read),
            false => Err(D::Error::custom("stretches of time out of order")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    const LANE: LaneId = LaneId::Normal;

    #[test]
    fn depths_are_those_of_each_lane_and_end_with_what_ends() {
        let mut backlog = Backlog::default();
        for (seq, lane) in [(1, LANE), (2, LaneId::High), (3, LANE)] {
            backlog.accept(Seq::new(seq), lane, at(seq * 10_000));
        }
        assert_eq!((backlog.depth(LANE), backlog.depth(LaneId::High), backlog.depth(LaneId::Low)), (2, 1, 0));
        assert_eq!(backlog.oldest(LANE), Some(at(10_000)));
        backlog.end(Seq::new(1), LANE);
        assert_eq!((backlog.depth(LANE), backlog.oldest(LANE)), (1, Some(at(30_000))));
        backlog.end(Seq::new(3), LANE);
        backlog.end(Seq::new(2), LaneId::High);
        assert_eq!(
            (backlog.depth(LANE), backlog.oldest(LANE), backlog.oldest(LaneId::High)),
            (0, None, None)
        );
    }

    /// A message every minute for 80 days, each tenth of which stays; every now and then all of them end.
    #[test]
    fn the_age_of_the_oldest_is_wrong_by_a_second_or_a_third_at_most() {
        let mut backlog = Backlog::default();
        let mut lives = std::collections::VecDeque::new();
        let mut dice = 7_u64;
        for n in 1..115_000_u64 {
            let now = n * 60_000;
            backlog.accept(Seq::new(n), LANE, at(now));
            match n % 10 {
                0 => lives.push_back(n),
                _ => backlog.end(Seq::new(n), LANE),
            }
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let ends = if dice >> 50 == 0 { lives.len() } else { usize::from(dice >> 60 == 0) };
            for ended in lives.drain(..ends.min(lives.len())) {
                backlog.end(Seq::new(ended), LANE);
            }
            let said = backlog.oldest(LANE).map(|said| now - said.as_millis());
            let age = lives.front().map(|oldest| now - oldest * 60_000);
            assert_eq!(said.is_some(), age.is_some());
            if let (Some(said), Some(age)) = (said, age) {
                assert!(age <= said && said <= age + age / 2 + 1000, "{said} ms for {age} ms");
            }
            assert_eq!(backlog.depth(LANE), lives.len() as u64);
        }
    }

    /// Found by the simulator.
    #[test]
    fn a_place_that_comes_late_is_counted_where_its_end_will_look_for_it() {
        let mut backlog = Backlog::default();
        backlog.accept(Seq::new(1), LANE, at(1000));
        backlog.accept(Seq::new(5), LANE, at(9000));
        backlog.accept(Seq::new(3), LaneId::High, at(9000));
        backlog.end(Seq::new(1), LANE);
        backlog.end(Seq::new(3), LaneId::High);
        assert_eq!((backlog.depth(LaneId::High), backlog.oldest(LaneId::High)), (0, None));
        assert_eq!((backlog.depth(LANE), backlog.oldest(LANE)), (1, Some(at(9000))));
    }

    #[test]
    fn shards_add_up_whatever_their_number_was() {
        let mut one = Backlog::default();
        (1..=300).for_each(|n| one.accept(Seq::new(n), LANE, at(n * 5000)));
        let mut parts = [one.part(0), one.part(1), one.part(2)];
        for n in 1..=300_u64 {
            one.end(Seq::new(n), LANE);
            parts[(n % 3) as usize].end(Seq::new(n), LANE);
            let mut sum = Backlog::default();
            parts.iter().for_each(|part| sum.add(part));
            assert_eq!(sum.depth(LANE), one.depth(LANE), "{n}");
        }
    }

    #[test]
    fn what_is_read_is_what_was_written_or_refused() {
        let mut backlog = Backlog::default();
        (1..=500).for_each(|n| backlog.accept(Seq::new(n), LANE, at(n * n * 1000)));
        backlog.retry(true);
        let text = serde_json::to_string(&backlog).unwrap();
        assert_eq!(serde_json::from_str::<Backlog>(&text).unwrap(), backlog);
        assert_eq!((backlog.used, backlog.depth(LANE), backlog.retrying()), (MAX_SLOTS, 500, 1));
        let slot = Slot::default();
        let many = serde_json::to_string(&(0_u64, vec![slot; MAX_SLOTS + 1])).unwrap();
        assert!(serde_json::from_str::<Backlog>(&many).is_err());
        let back = [Slot { from: Seq::new(2), ..slot }, slot];
        assert!(serde_json::from_str::<Backlog>(&serde_json::to_string(&(0_u64, back)).unwrap()).is_err());
    }
}
