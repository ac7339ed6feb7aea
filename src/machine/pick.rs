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

use super::io::EntryRef;
use super::user::User;
use crate::config::Config;
use crate::message::Priority;
use crate::record::{Accept, Seq};

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

/// The next message of a lane, volatile ones first.
fn peek(user: &mut User, lane: Priority, config: &Config, pick: u64) -> Option<(Seq, Arc<Accept>)> {
    let lane = user.lane(lane);
    if let Some((number, accept)) = lane.volatile.front() {
        return Some((*number, accept.clone()));
    }
    let seq = lane.next(pick, config.max_gaps.get())?;
    lane.entry(seq).map(|entry| (seq, entry.accept.clone()))
}

fn take(user: &mut User, lane: Priority, pick: u64) {
    let lane = user.lane(lane);
    if lane.volatile.pop_front().is_none() {
        lane.take_next(pick);
    }
}

/// Picks a batch. The messages are out of their queues; the caller puts them into the window.
pub(super) fn pick(
    user: &mut User,
    config: &Config,
    mut room: Room,
    pick: u64,
) -> Vec<(EntryRef, Arc<Accept>)> {
    let mut batch = Vec::new();
    // A look at the queues moves turns on, so a full window must not look: a lane whose only key is in flight would lose
    // its turn each time.
    while room.batch > 0 && room.critical > 0 {
        let Some((lane, seq, accept)) = next(user, config, pick) else { break };
        let cost = accept.message.cost();
        if !room.takes(lane, cost) {
            // A full window must not hold back what the reserve is for.
            match critical(user, config, pick).filter(|_| lane != Priority::Critical && room.critical > 0) {
                Some((seq, accept)) => {
                    take(user, Priority::Critical, pick);
                    room.take(accept.message.cost());
                    batch.push((EntryRef { lane: Priority::Critical.into(), seq }, accept));
                    continue;
                }
                None => break,
            }
        }
        take(user, lane, pick);
        charge(user, config, lane, cost);
        room.take(cost);
        batch.push((EntryRef { lane: lane.into(), seq }, accept));
    }
    batch
}

fn critical(user: &mut User, config: &Config, pick: u64) -> Option<(Seq, Arc<Accept>)> {
    peek(user, Priority::Critical, config, pick)
}

/// The lane whose turn it is, and its next message.
fn next(user: &mut User, config: &Config, pick: u64) -> Option<(Priority, Seq, Arc<Accept>)> {
    let mut heads = [const { None }; 3];
    for (head, lane) in heads.iter_mut().zip([Priority::High, Priority::Normal, Priority::Low]) {
        *head = peek(user, lane, config, pick);
        if head.is_none() {
            user.lane(lane).deficit = 0;
        }
    }
    let others = heads.iter().any(Option::is_some);
    if user.streak >= config.critical_burst.get()
        && others
        && let Some(picked) = round_robin(user, config, &mut heads)
    {
        return Some(picked);
    }
    if let Some((seq, accept)) = critical(user, config, pick) {
        return Some((Priority::Critical, seq, accept));
    }
    others.then(|| round_robin(user, config, &mut heads)).flatten()
}

/// The head of the lane whose turn it is; `None` when critical messages have waited for a whole round.
fn round_robin(
    user: &mut User,
    config: &Config,
    heads: &mut [Option<(Seq, Arc<Accept>)>; 3],
) -> Option<(Priority, Seq, Arc<Accept>)> {
    loop {
        let turn = user.turn.clamp(1, 3);
        let (lane, share) = (*Priority::ALL.get(turn)?, config.shares.get(turn)?.get());
        if let Some(head) = heads.get_mut(turn - 1).filter(|head| head.is_some()) {
            if !core::mem::replace(&mut user.turn_began, true) {
                user.lane(lane).deficit += u64::from(share);
            }
            let cost = head.as_ref().map_or(0, |(_, accept)| accept.message.cost());
            if user.lane(lane).deficit >= cost {
                return head.take().map(|(seq, accept)| (lane, seq, accept));
            }
        }
        user.turn = if turn == 3 { 1 } else { turn + 1 };
        user.turn_began = false;
        user.turns = user.turns.saturating_add(1);
        if user.streak >= config.critical_burst.get() && user.turns >= 3 {
            user.streak = 0;
            return None;
        }
    }
}

fn charge(user: &mut User, config: &Config, lane: Priority, cost: u64) {
    match lane {
        Priority::Critical => {
            user.streak = user.streak.saturating_add(1).min(config.critical_burst.get());
            user.turns = 0;
        }
        _ => {
            // Only what is sent ends a streak. A look at the queues while the window is full must not: critical
            // messages that wait for their key would start anew each time, and the other lanes never have their round.
            if user.streak < config.critical_burst.get() {
                user.streak = 0;
            }
            let lane = user.lane(lane);
            lane.deficit = lane.deficit.saturating_sub(cost);
        }
    }
}
