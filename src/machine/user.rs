//! One user in memory: the lanes, the totals that quotas are judged by, the inbox, and who is attached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use super::collapse::{Newest, Versions, has_ended};
use super::dependents::Dependents;
use super::devices::SlotState;
use super::entry::{Entry, EntryState};
use super::io::{EntryRef, LinkId, LoadId, Ticket};
use super::lane::Lane;
use super::ledger::{Keep, Ledger};
use super::pick::Turns;
use super::query::Holdings;
use super::read::Reads;
use crate::digest::Digester;
use crate::id::StreamId;
use crate::message::Priority;
use crate::record::{DeviceChange, Epoch, InboxRow, LaneId, LaneRow, Origin, Seq, Slot, UserRow};
use crate::time::Timestamp;

/// Live messages and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) messages: u32,
    pub(super) bytes: u64,
}

impl Totals {
    pub(super) fn add(&mut self, bytes: u64) {
        self.put_on(Self::one(bytes));
    }

    pub(super) fn sub(&mut self, bytes: u64) {
        self.take_off(Self::one(bytes));
    }

    /// One message of so many bytes.
    pub(super) fn one(bytes: u64) -> Self {
        Self { messages: 1, bytes }
    }

    #[must_use]
    pub(super) fn with(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_add(other.messages),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    pub(super) fn put_on(&mut self, other: Self) {
        *self = self.with(other);
    }

    pub(super) fn take_off(&mut self, other: Self) {
        self.messages = self.messages.saturating_sub(other.messages);
        self.bytes = self.bytes.saturating_sub(other.bytes);
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
    pub(super) lane: LaneId,
    /// Who else waits for it: repeats that came meanwhile.
    pub(super) waiting: Vec<Ticket>,
}

/// Lanes that nothing is offered from.
#[derive(Debug)]
struct Aside {
    scheduled: Lane,
    dead: Lane,
}

/// One user in memory.
#[derive(Debug)]
pub(super) struct User {
    /// Those of the priorities.
    pub(super) lanes: [Lane; 4],
    /// Those that nothing is offered from, for the few who have something there.
    aside: Option<Box<Aside>>,
    /// Those of registered devices.
    pub(super) slots: BTreeMap<Slot, Box<SlotState>>,
    /// What was said of devices before the row was known, and where: the row may reflect it already.
    pub(super) early_devices: Vec<(Seq, DeviceChange)>,
    pub(super) digester: Digester,
    /// What is durable; unknown until the store was asked, for users met in replay.
    pub(super) held: Option<Holdings>,
    /// Totals of dead letters that are being committed.
    pub(super) dying: Totals,
    /// Totals of messages that are being committed.
    pub(super) reserved: Totals,
    /// Totals of messages whose place others take, until their ends are durable.
    pub(super) leaving: Totals,
    /// Whether the row (cursors, inbox) is known.
    pub(super) row_known: bool,
    pub(super) loading: Option<LoadId>,
    /// Ends of settled messages before the totals were known: lane, place, cost.
    pub(super) early_ends: Vec<(LaneId, Seq, u64)>,
    pub(super) inbox: BTreeMap<(StreamId, LaneId), Seen>,
    /// Inbound messages that are being committed.
    pub(super) inbound: BTreeMap<Origin, Inbound>,
    /// The newest message of each collapse key.
    pub(super) newest: Newest,
    /// The newest version of volatile messages, while somebody is attached.
    pub(super) volatile_versions: Versions,
    pub(super) ledger: Ledger,
    /// How far conversations were read.
    pub(super) reads: Reads,
    /// What waits for another message.
    pub(super) dependents: Dependents,
    pub(super) exposed: Epoch,
    /// An exposure is being committed.
    pub(super) exposing: bool,
    /// An exposure in this epoch is durable, but what was exposed before it is not known yet.
    pub(super) exposed_unread: bool,
    /// No scheduled message is due before this.
    pub(super) next_ripe: Timestamp,
    /// What is scheduled is being looked through.
    pub(super) ripening: bool,
    /// Operations under way: they keep what is in memory there.
    pub(super) operations: usize,
    pub(super) links: Vec<LinkId>,
    pub(super) next_link: usize,
    /// Of the sinks whose device is not registered.
    pub(super) turns: Turns,
    /// In the queue of users to be served.
    pub(super) ready: bool,
    /// The armed timer.
    pub(super) wake: Option<Timestamp>,
    /// The place of the newest record that the store's row does not reflect.
    pub(super) changed: Option<Seq>,
}

impl User {
    pub(super) fn new(digester: Digester, held: Option<Holdings>, row_known: bool) -> Self {
        Self {
            lanes: core::array::from_fn(|_| Lane::new(digester)),
            aside: None,
            slots: BTreeMap::new(),
            early_devices: Vec::new(),
            digester,
            held,
            dying: Totals::default(),
            reserved: Totals::default(),
            leaving: Totals::default(),
            row_known,
            loading: None,
            early_ends: Vec::new(),
            inbox: BTreeMap::new(),
            inbound: BTreeMap::new(),
            newest: Newest::default(),
            volatile_versions: Versions::default(),
            ledger: Ledger::default(),
            reads: Reads::default(),
            dependents: Dependents::default(),
            exposed: Epoch::default(),
            exposing: false,
            exposed_unread: false,
            next_ripe: Timestamp::ZERO,
            ripening: false,
            operations: 0,
            links: Vec::new(),
            next_link: 0,
            turns: Turns::default(),
            ready: false,
            wake: None,
            changed: None,
        }
    }

    pub(super) fn lane(&mut self, lane: impl Into<LaneId>) -> &mut Lane {
        let lane = lane.into();
        if let LaneId::Device(slot, priority) = lane {
            let [critical, high, normal, low] = &mut self.slot_mut(slot).lanes;
            return match priority {
                Priority::Critical => critical,
                Priority::High => high,
                Priority::Normal => normal,
                Priority::Low => low,
            };
        }
        let Self { lanes: [critical, high, normal, low], aside, digester, held, .. } = self;
        // As long as nobody knows what there is, the store may have something.
        let more_after = if held.is_none() { Some(Seq::ZERO) } else { None };
        let new = || {
            let [scheduled, dead] = [(); 2].map(|()| Lane::aside(*digester, more_after));
            Box::new(Aside { scheduled, dead })
        };
        match lane {
            LaneId::Critical => critical,
            LaneId::High => high,
            LaneId::Normal => normal,
            LaneId::Low => low,
            LaneId::Scheduled => &mut aside.get_or_insert_with(new).scheduled,
            LaneId::Dead | LaneId::Device(..) => &mut aside.get_or_insert_with(new).dead,
        }
    }

    pub(super) fn lane_ref(&self, lane: impl Into<LaneId>) -> &Lane {
        static EMPTY: LazyLock<Lane> = LazyLock::new(|| Lane::aside(Digester::new(0), None));
        let [critical, high, normal, low] = &self.lanes;
        match lane.into() {
            LaneId::Critical => critical,
            LaneId::High => high,
            LaneId::Normal => normal,
            LaneId::Low => low,
            LaneId::Scheduled => self.aside.as_ref().map_or(&EMPTY, |aside| &aside.scheduled),
            LaneId::Dead => self.aside.as_ref().map_or(&EMPTY, |aside| &aside.dead),
            LaneId::Device(slot, priority) => {
                let lanes = self.slots.get(&slot).map(|state| &state.lanes);
                lanes.and_then(|lanes| lanes.get(priority.index())).unwrap_or(&EMPTY)
            }
        }
    }

    /// The lanes that have ever had something since the user came into memory.
    pub(super) fn all_lanes(&self) -> impl Iterator<Item = &Lane> {
        let aside = self.aside.iter().flat_map(|aside| [&aside.scheduled, &aside.dead]);
        self.lanes.iter().chain(aside).chain(self.slots.values().flat_map(|state| &state.lanes))
    }

    /// The names of those, but for a lane aside that never had anything.
    pub(super) fn lane_ids(&self) -> Vec<LaneId> {
        let of_slots = self.slots.keys().flat_map(|slot| LaneId::of_slot(*slot));
        LaneId::ALL.into_iter().chain(of_slots).collect()
    }

    /// Whether ends of messages that are not in memory are being recorded.
    pub(super) fn has_ending(&self) -> bool {
        self.all_lanes().any(|lane| !lane.ending.is_empty())
    }

    /// Whether the lane is offered from: somebody is there, and for what waits for one device it is that one.
    pub(super) fn is_served(
        &self,
        lane: LaneId,
        links: &std::collections::HashMap<LinkId, super::Link>,
    ) -> bool {
        let is_there =
            |slot| self.links.iter().any(|id| links.get(id).is_some_and(|link| link.slot == Some(slot)));
        lane.priority().is_some() && self.is_attached() && lane.slot().is_none_or(is_there)
    }

    /// Whether the end of what is at this place is being recorded.
    pub(super) fn is_ending(&self, EntryRef { lane, seq }: EntryRef) -> bool {
        let lane = self.lane_ref(lane);
        let state = lane.entry(seq).map(Entry::state);
        lane.ending.contains(&seq) || matches!(state, Some(EntryState::Ending { .. }))
    }

    /// The newest version of a collapse key, if it is newer than that of a volatile message.
    pub(super) fn newer_than(&self, key: u128, version: Option<u64>) -> Option<u64> {
        let durable = self.newest.get(key).map(|newest| newest.version);
        let newest = self.volatile_versions.get(key).max(durable);
        newest.filter(|newest| version.is_some_and(|version| version < *newest))
    }

    /// Whether what was at this place has ended, or its end is being recorded.
    pub(super) fn is_gone(&self, entry: EntryRef) -> bool {
        has_ended(self.lane_ref(entry.lane), entry.seq) || self.is_ending(entry)
    }

    pub(super) fn all_lanes_mut(&mut self) -> impl Iterator<Item = (LaneId, &mut Lane)> {
        let aside = self.aside.iter_mut().flat_map(|aside| {
            let Aside { scheduled, dead } = &mut **aside;
            [scheduled, dead]
        });
        let of_slots = self
            .slots
            .iter_mut()
            .flat_map(|(slot, state)| LaneId::of_slot(*slot).into_iter().zip(state.lanes.iter_mut()));
        LaneId::ALL.into_iter().zip(self.lanes.iter_mut().chain(aside)).chain(of_slots)
    }

    /// Whether both the row and the totals are known, which is what delivering and operating need.
    pub(super) fn is_known(&self) -> bool {
        self.row_known && self.held.is_some()
    }

    pub(super) fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Live and reserved, without what is leaving and what else would.
    pub(super) fn claimed(&self, gives_back: Totals) -> Totals {
        let live = self.held.unwrap_or_default();
        let mut claimed = self.reserved.with(Totals { messages: live.messages, bytes: live.bytes });
        claimed.take_off(self.leaving.with(gives_back));
        claimed
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
            && self.dying.messages == 0
            && !self.ledger.is_recording()
            && self.dependents.is_idle()
            && self.early_devices.is_empty()
            && !self.slots.values().any(|state| state.is_busy())
            && self
                .all_lanes()
                .all(|lane| lane.entries.is_empty() && lane.loading.is_none() && lane.ending.is_empty())
    }

    /// Whether an inbound place above the floor was applied before.
    pub(super) fn has_seen(&self, origin: Origin, lane: LaneId) -> bool {
        let seen = self.inbox.get(&(origin.stream, lane));
        seen.is_some_and(|seen| seen.above.contains(&origin.seq))
    }

    /// Whether the inbox may remember this lane of another engine: it does already, or knows fewer than `max`.
    pub(super) fn has_inbox_room(&self, stream: StreamId, lane: LaneId, max: usize) -> bool {
        if self.inbox.contains_key(&(stream, lane)) || self.inbox.len() + self.inbound.len() < max {
            return true;
        }
        let coming = self.inbound.iter().map(|(origin, inbound)| (origin.stream, inbound.lane));
        let known: BTreeSet<_> = self.inbox.keys().copied().chain(coming).collect();
        known.contains(&(stream, lane)) || known.len() < max
    }

    /// Whether the inbox may remember one more place of this lane: there are fewer than `max`, or it is the oldest of
    /// all. While that is refused the floor cannot rise, and all others would be refused for ever.
    pub(super) fn has_room_for(&self, origin: Origin, lane: LaneId, max: usize) -> bool {
        let seen = self.inbox.get(&(origin.stream, lane));
        let oldest = seen.and_then(|seen| seen.above.first()).is_none_or(|first| origin.seq < *first);
        let remembered = seen.map_or(0, |seen| seen.above.len()) + self.inbound.len();
        remembered < if oldest { max.saturating_mul(2) } else { max }
    }

    pub(super) fn raise_floor(&mut self, stream: StreamId, lane: LaneId, floor: Seq) {
        let seen = self.inbox.entry((stream, lane)).or_default();
        if floor > seen.floor {
            seen.floor = floor;
            seen.above = seen.above.split_off(&floor.plus(1));
        }
    }

    /// What the store keeps, given the place after the last record applied.
    pub(super) fn row(&mut self, applied: Seq, keep: Keep) -> UserRow {
        for (_, lane) in self.all_lanes_mut() {
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
            newest: self.newest.rows(),
            ledger: self.ledger.rows(keep),
            reads: self.reads.rows(),
            dependents: self.dependents.rows(),
            lanes: LaneId::ALL.map(|lane| self.lane_ref(lane).row()),
            devices: self.slots.iter().filter_map(|(slot, state)| state.row(*slot)).collect(),
        }
    }

    /// Merges the store's row under what the journal has said since.
    pub(super) fn merge_row(&mut self, row: &UserRow, keep: Keep) {
        for (lane, stored) in LaneId::ALL.into_iter().zip(&row.lanes) {
            if lane.priority().is_some() || *stored != LaneRow::default() {
                self.lane(lane).merge_row(stored);
            }
        }
        for inbox in &row.inbox {
            let seen = self.inbox.entry((inbox.stream, inbox.lane)).or_default();
            seen.above.extend(inbox.seen.iter().copied());
            let floor = seen.floor.max(inbox.floor);
            seen.floor = Seq::ZERO;
            self.raise_floor(inbox.stream, inbox.lane, floor);
        }
        self.exposed = self.exposed.max(row.exposed);
        let mut newest = core::mem::take(&mut self.newest);
        newest.merge(&row.newest, |row| has_ended(self.lane_ref(row.lane), row.seq));
        self.newest = newest;
        let mut dependents = core::mem::take(&mut self.dependents);
        dependents.merge(&row.dependents, |lane, seq| has_ended(self.lane_ref(lane), seq));
        self.dependents = dependents;
        self.ledger.merge(&row.ledger, row.reflects, keep);
        self.merge_devices(&row.devices, row.reflects);
        self.reads.merge(&row.reads, keep.marks());
    }
}
