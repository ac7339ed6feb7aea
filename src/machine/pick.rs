//! Whose turn it is: deficit round robin over a user's lanes, critical first within a bound.
//!
//! Critical messages go first, but after `critical_burst` of them in a row the other lanes get one round. In a round
//! each non-empty lane has one turn: it may send its share in bytes, and what it could not use because its next message
//! is larger is carried into its next turn (Shreedhar and Varghese, "Efficient Fair Queuing using Deficit Round Robin",
//! 1996). So with shares S(h), S(n), S(l), largest cost M and burst B:
//!
//! - a critical message waits behind what is in flight and at most S(h) + S(n) + S(l) + 3 M bytes of other lanes;
//! - a lane i that always has something to offer sends at least S(i) − M bytes in each round, so at least that for
//!   every B critical messages and S(h) + S(n) + S(l) − S(i) + 2 M bytes of the others.

use std::sync::Arc;

use super::io::{EntryRef, LinkId};
use super::user::User;
use crate::config::Config;
use crate::message::Priority;
use crate::record::{Accept, LaneId, Seq, Slot};

/// Whose turn it is: a state for each device, so that the bound holds for each of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turns {
    /// Critical messages in a row.
    streak: u32,
    /// The priority whose turn it is.
    turn: usize,
    /// It has been given its share.
    began: bool,
    /// Turns that are over since the last critical message.
    over: u32,
    /// Unspent turns, in bytes, by priority.
    deficits: [u64; Priority::ALL.len()],
}

impl Default for Turns {
    fn default() -> Self {
        Self { streak: 0, turn: 1, began: false, over: 0, deficits: [0; Priority::ALL.len()] }
    }
}

impl Turns {
    /// Nobody is there any more.
    pub(super) fn forget_deficits(&mut self) {
        self.deficits = [0; Priority::ALL.len()];
    }

    fn deficit(&mut self, priority: Priority) -> &mut u64 {
        let [critical, high, normal, low] = &mut self.deficits;
        match priority {
            Priority::Critical => critical,
            Priority::High => high,
            Priority::Normal => normal,
            Priority::Low => low,
        }
    }
}

/// What fits into a sink's window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) messages: usize,
    /// With the reserve of critical messages.
    pub(super) critical: usize,
    pub(super) bytes: u64,
    /// Nothing is in flight: one message of any size fits.
    pub(super) empty: bool,
    pub(super) batch: usize,
}

impl Room {
    fn takes(&self, lane: Priority, cost: u64) -> bool {
        match lane {
            Priority::Critical => self.critical > 0,
            _ => self.messages > 0 && (self.empty || cost <= self.bytes),
        }
    }

    fn take(&mut self, cost: u64) {
        self.messages = self.messages.saturating_sub(1);
        self.critical = self.critical.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(cost);
        self.empty = false;
        self.batch = self.batch.saturating_sub(1);
    }
}

/// What a sink may be offered from: the user's lanes, and those of its device if that is registered.
struct Outlet<'a> {
    user: &'a mut User,
    slot: Option<Slot>,
    link: LinkId,
    /// Sinks of other devices that could take something now.
    others: &'a [LinkId],
    config: &'a Config,
    pick: u64,
}

/// The next message of a priority.
type Head = (LaneId, Seq, Arc<Accept>);

impl Outlet<'_> {
    fn turns(&mut self) -> &mut Turns {
        let user = &mut *self.user;
        match self.slot.and_then(|slot| user.slots.get_mut(&slot)) {
            Some(state) => &mut state.turns,
            None => &mut user.turns,
        }
    }

    /// The next message of a priority, volatile ones first; then what was accepted first.
    fn peek(&mut self, priority: Priority) -> Option<Head> {
        let lane = self.user.lane(priority);
        if let Some((number, accept)) = lane.volatile.front() {
            return Some((priority.into(), *number, accept.clone()));
        }
        let any = self.head(priority.into());
        let own = self.slot.and_then(|slot| self.head(LaneId::Device(slot, priority)));
        match (any, own) {
            (Some(any), Some(own)) => Some(if own.1 < any.1 { own } else { any }),
            (any, own) => own.or(any),
        }
    }

    fn head(&mut self, id: LaneId) -> Option<Head> {
        let lane = self.user.lane(id);
        let seq = lane.next(self.pick, self.config.max_gaps.get())?;
        // This sink has failed to take it: it is another's turn.
        let (link, others) = (self.link, self.others);
        let is_anothers =
            |tried: &Vec<LinkId>| tried.contains(&link) && others.iter().any(|other| !tried.contains(other));
        if lane.tried.get(&seq).is_some_and(is_anothers) {
            return None;
        }
        lane.entry(seq).map(|entry| (id, seq, entry.accept.clone()))
    }

    fn take(&mut self, id: LaneId) {
        let pick = self.pick;
        let lane = self.user.lane(id);
        if lane.volatile.pop_front().is_none() {
            lane.take_next(pick);
        }
    }

    /// The message whose turn it is.
    fn next(&mut self) -> Option<Head> {
        let mut heads = [const { None }; 3];
        for (head, priority) in heads.iter_mut().zip([Priority::High, Priority::Normal, Priority::Low]) {
            *head = self.peek(priority);
            if head.is_none() {
                *self.turns().deficit(priority) = 0;
            }
        }
        let others = heads.iter().any(Option::is_some);
        if self.turns().streak >= self.config.critical_burst.get()
            && others
            && let Some(picked) = self.round_robin(&mut heads)
        {
            return Some(picked);
        }
        if let Some(critical) = self.peek(Priority::Critical) {
            return Some(critical);
        }
        others.then(|| self.round_robin(&mut heads)).flatten()
    }

    /// The head of the priority whose turn it is; `None` when critical messages have waited for a whole round.
    fn round_robin(&mut self, heads: &mut [Option<Head>; 3]) -> Option<Head> {
        let (shares, burst) = (self.config.shares, self.config.critical_burst.get());
        let turns = self.turns();
        loop {
            let turn = turns.turn.clamp(1, 3);
            let (priority, share) = (*Priority::ALL.get(turn)?, shares.get(turn)?.get());
            if let Some(head) = heads.get_mut(turn - 1).filter(|head| head.is_some()) {
                if !core::mem::replace(&mut turns.began, true) {
                    *turns.deficit(priority) += u64::from(share);
                }
                let cost = head.as_ref().map_or(0, |(.., accept)| accept.message.cost());
                if *turns.deficit(priority) >= cost {
                    return head.take();
                }
            }
            turns.turn = if turn == 3 { 1 } else { turn + 1 };
            turns.began = false;
            turns.over = turns.over.saturating_add(1);
            if turns.streak >= burst && turns.over >= 3 {
                turns.streak = 0;
                return None;
            }
        }
    }

    fn charge(&mut self, priority: Priority, cost: u64) {
        let burst = self.config.critical_burst.get();
        let turns = self.turns();
        match priority {
            Priority::Critical => {
                turns.streak = turns.streak.saturating_add(1).min(burst);
                turns.over = 0;
            }
            _ => {
                // Only what is sent ends a streak. A look at the queues while the window is full must not: critical
                // messages that wait for their key would start anew each time, and the other lanes never have their
                // round.
                if turns.streak < burst {
                    turns.streak = 0;
                }
                let deficit = turns.deficit(priority);
                *deficit = deficit.saturating_sub(cost);
            }
        }
    }
}

/// Picks a batch for a sink. The messages are out of their queues; the caller puts them into the window.
pub(super) fn pick(
    user: &mut User,
    (link, slot, others): (LinkId, Option<Slot>, &[LinkId]),
    config: &Config,
    mut room: Room,
    pick: u64,
) -> Vec<(EntryRef, Arc<Accept>)> {
    let mut outlet = Outlet { user, slot, link, others, config, pick };
    let mut batch = Vec::new();
    // A look at the queues moves turns on, so a full window must not look: a lane whose only key is in flight would lose
    // its turn each time.
    while room.batch > 0 && room.critical > 0 {
        let Some((lane, seq, accept)) = outlet.next() else { break };
        let Some(priority) = lane.priority() else { break };
        let cost = accept.message.cost();
        if !room.takes(priority, cost) {
            // A full window must not hold back what the reserve is for.
            let is_other = priority != Priority::Critical && room.critical > 0;
            match outlet.peek(Priority::Critical).filter(|_| is_other) {
                Some((lane, seq, accept)) => {
                    outlet.take(lane);
                    room.take(accept.message.cost());
                    batch.push((EntryRef { lane, seq }, accept));
                    continue;
                }
                None => break,
            }
        }
        outlet.take(lane);
        outlet.charge(priority, cost);
        room.take(cost);
        batch.push((EntryRef { lane, seq }, accept));
    }
    batch
}
