//! One user in memory: four lanes, the totals that quotas are judged by, the inbox, and who is attached.

use std::collections::{BTreeMap, BTreeSet};

use super::io::{LinkId, LoadId, Ticket};
use super::lane::Lane;
use crate::digest::Digester;
use crate::id::StreamId;
use crate::message::Priority;
use crate::record::{Epoch, InboxRow, Origin, Seq, UserRow};
use crate::time::Timestamp;

/// Live messages and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) messages: u32,
    pub(super) bytes: u64,
}

impl Totals {
    pub(super) fn add(&mut self, bytes: u64) {
        self.messages = self.messages.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) fn sub(&mut self, bytes: u64) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What an inbox has seen of one lane of another engine.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) floor: Seq,
    pub(super) above: BTreeSet<Seq>,
}

/// An inbound message that is being committed.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) lane: Priority,
    /// Who else waits for it: repeats that came meanwhile.
    pub(super) waiting: Vec<Ticket>,
}

/// One user in memory.
#[derive(Debug)]
pub(super) struct User {
    pub(super) lanes: [Lane; 4],
    /// Live totals; unknown until the store was asked, for users met in replay.
    pub(super) live: Option<Totals>,
    /// Totals of messages that are being committed.
    pub(super) reserved: Totals,
    /// Totals of messages whose place others take, until their ends are durable.
    pub(super) leaving: Totals,
    /// Whether the row (cursors, inbox) is known.
    pub(super) row_known: bool,
    pub(super) loading: Option<LoadId>,
    /// Ends of settled messages before the totals were known: lane, place, cost.
    pub(super) early_ends: Vec<(Priority, Seq, u64)>,
    pub(super) inbox: BTreeMap<(StreamId, Priority), Seen>,
    /// Inbound messages that are being committed.
    pub(super) inbound: BTreeMap<Origin, Inbound>,
    pub(super) exposed: Epoch,
    /// An exposure is being committed.
    pub(super) exposing: bool,
    /// An exposure in this epoch is durable, but what was exposed before it is not known yet.
    pub(super) exposed_unread: bool,
    /// Messages up to here may have been offered in an earlier attachment.
    pub(super) exposed_through: Seq,
    /// Operations under way: they keep what is in memory there.
    pub(super) operations: usize,
    pub(super) links: Vec<LinkId>,
    pub(super) next_link: usize,
    /// Critical messages in a row.
    pub(super) streak: u32,
    /// The lane whose turn it is.
    pub(super) turn: usize,
    /// It has been given its share.
    pub(super) turn_began: bool,
    /// Turns that are over since the last critical message.
    pub(super) turns: u32,
    /// In the queue of users to be served.
    pub(super) ready: bool,
    /// The armed timer.
    pub(super) wake: Option<Timestamp>,
    /// The place of the newest record that the store's row does not reflect.
    pub(super) changed: Option<Seq>,
}

impl User {
    pub(super) fn new(digester: Digester, live: Option<Totals>, row_known: bool) -> Self {
        Self {
            lanes: core::array::from_fn(|_| Lane::new(digester)),
            live,
            reserved: Totals::default(),
            leaving: Totals::default(),
            row_known,
            loading: None,
            early_ends: Vec::new(),
            inbox: BTreeMap::new(),
            inbound: BTreeMap::new(),
            exposed: Epoch::default(),
            exposing: false,
            exposed_unread: false,
            exposed_through: Seq::ZERO,
            operations: 0,
            links: Vec::new(),
            next_link: 0,
            streak: 0,
            turn: 1,
            turn_began: false,
            turns: 0,
            ready: false,
            wake: None,
            changed: None,
        }
    }

    pub(super) fn lane(&mut self, priority: Priority) -> &mut Lane {
        let [critical, high, normal, low] = &mut self.lanes;
        match priority {
            Priority::Critical => critical,
            Priority::High => high,
            Priority::Normal => normal,
            Priority::Low => low,
        }
    }

    pub(super) fn lane_ref(&self, priority: Priority) -> &Lane {
        let [critical, high, normal, low] = &self.lanes;
        match priority {
            Priority::Critical => critical,
            Priority::High => high,
            Priority::Normal => normal,
            Priority::Low => low,
        }
    }

    /// Whether both the row and the totals are known, which is what delivering and operating need.
    pub(super) fn is_known(&self) -> bool {
        self.row_known && self.live.is_some()
    }

    pub(super) fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Live and reserved, without what is leaving and one more that would, with this cost.
    pub(super) fn claimed(&self, instead: Option<u64>) -> Totals {
        let live = self.live.unwrap_or_default();
        let mut leaving = self.leaving;
        instead.into_iter().for_each(|cost| leaving.add(cost));
        Totals {
            messages: live.messages.saturating_add(self.reserved.messages).saturating_sub(leaving.messages),
            bytes: live.bytes.saturating_add(self.reserved.bytes).saturating_sub(leaving.bytes),
        }
    }

    /// Whether nothing but the totals would be lost by forgetting the user.
    pub(super) fn is_evictable(&self) -> bool {
        self.links.is_empty()
            && self.operations == 0
            && self.loading.is_none()
            && self.changed.is_none()
            && self.reserved.messages == 0
            && self.inbound.is_empty()
            && !self.exposing
            && self.early_ends.is_empty()
            && self
                .lanes
                .iter()
                .all(|lane| lane.entries.is_empty() && lane.loading.is_none() && lane.ending.is_empty())
    }

    /// Whether an inbound place above the floor was applied before.
    pub(super) fn has_seen(&self, origin: Origin, lane: Priority) -> bool {
        let seen = self.inbox.get(&(origin.stream, lane));
        seen.is_some_and(|seen| seen.above.contains(&origin.seq))
    }

    /// Whether the inbox may remember this lane of another engine: it does already, or knows fewer than `max`.
    pub(super) fn has_inbox_room(&self, stream: StreamId, lane: Priority, max: usize) -> bool {
        if self.inbox.contains_key(&(stream, lane)) || self.inbox.len() + self.inbound.len() < max {
            return true;
        }
        let coming = self.inbound.iter().map(|(origin, inbound)| (origin.stream, inbound.lane));
        let known: BTreeSet<_> = self.inbox.keys().copied().chain(coming).collect();
        known.contains(&(stream, lane)) || known.len() < max
    }

    pub(super) fn raise_floor(&mut self, stream: StreamId, lane: Priority, floor: Seq) {
        let seen = self.inbox.entry((stream, lane)).or_default();
        if floor > seen.floor {
            seen.floor = floor;
            seen.above = seen.above.split_off(&floor.plus(1));
        }
    }

    /// What the store keeps, given the place after the last record applied.
    pub(super) fn row(&mut self, applied: Seq) -> UserRow {
        for lane in &mut self.lanes {
            lane.advance_cursor(applied);
        }
        let inbox = self.inbox.iter().map(|((stream, lane), seen)| InboxRow {
            stream: *stream,
            lane: *lane,
            floor: seen.floor,
            seen: seen.above.iter().copied().collect(),
        });
        UserRow {
            reflects: applied,
            exposed: self.exposed,
            inbox: inbox.collect(),
            lanes: core::array::from_fn(|i| self.lanes.get(i).map(Lane::row).unwrap_or_default()),
        }
    }

    /// Merges the store's row under what the journal has said since.
    pub(super) fn merge_row(&mut self, row: &UserRow) {
        for (lane, stored) in self.lanes.iter_mut().zip(&row.lanes) {
            lane.merge_row(stored);
        }
        for inbox in &row.inbox {
            let seen = self.inbox.entry((inbox.stream, inbox.lane)).or_default();
            seen.above.extend(inbox.seen.iter().copied());
            let floor = seen.floor.max(inbox.floor);
            seen.floor = Seq::ZERO;
            self.raise_floor(inbox.stream, inbox.lane, floor);
        }
        self.exposed = self.exposed.max(row.exposed);
    }
}
