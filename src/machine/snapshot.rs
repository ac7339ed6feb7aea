//! What a machine holds of a user, in a form that two folds can be compared by.

use std::collections::BTreeMap;

use super::Machine;
use super::devices::SlotState;
use super::query::Holdings;
use crate::id::UserId;
use crate::record::{DependentRow, DeviceInfo, Epoch, InboxRow, LaneId, LedgerRows, ReadRow, Seq, Slot};
use crate::time::Timestamp;

/// One lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneSnapshot {
    /// Live messages that have not settled, and those settled ones that are in memory.
    pub live: Vec<Seq>,
    /// Everything up to here has ended.
    pub cursor: Seq,
    /// Ended above the cursor.
    pub ended: Vec<Seq>,
    /// Failed attempts of live messages.
    pub attempts: Vec<(Seq, u32, Timestamp)>,
}

/// One user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserSnapshot {
    /// By [`LaneId::index`].
    pub lanes: [LaneSnapshot; LaneId::COUNT],
    /// Those of registered devices.
    pub device_lanes: BTreeMap<LaneId, LaneSnapshot>,
    /// The devices, if what the store has of them is known.
    pub devices: Option<BTreeMap<Slot, DeviceInfo>>,
    /// What the user has, if known.
    pub totals: Option<Holdings>,
    /// The newest epoch a sink was attached in.
    pub exposed: Epoch,
    /// What the inbox has seen.
    pub inbox: Vec<InboxRow>,
    /// How far conversations were read, if what the store has of it is known.
    pub reads: Option<Vec<ReadRow>>,
    /// The ledger, if what the store has of it is known.
    pub ledger: Option<LedgerRows>,
    /// What waits for another message, if what the store has of that is known.
    pub dependents: Option<Vec<DependentRow>>,
}

impl UserSnapshot {
    /// One of its lanes, if it ever had anything.
    #[must_use]
    pub fn lane(&self, lane: LaneId) -> Option<&LaneSnapshot> {
        self.lanes.get(lane.index()).or_else(|| self.device_lanes.get(&lane))
    }
}

impl Machine {
    /// What is in memory of a user; `None` for users who are not. For tests: it costs as much as the user is large.
    #[must_use]
    pub fn snapshot(&self, id: &UserId) -> Option<UserSnapshot> {
        let user = self.users.get(id)?;
        let snapshot = |id: LaneId| {
            let lane = user.lane_ref(id);
            let row = lane.row();
            LaneSnapshot {
                live: lane.entries.iter().map(|entry| entry.seq).collect(),
                cursor: row.cursor,
                ended: row.ended,
                attempts: row.attempts,
            }
        };
        let lanes = LaneId::ALL.map(snapshot);
        let of_slots = user.slots.keys().flat_map(|slot| LaneId::of_slot(*slot));
        let device_lanes = of_slots.map(|lane| (lane, snapshot(lane))).collect();
        let known = |(slot, state): (&Slot, &SlotState)| Some((*slot, state.device.clone()?));
        let devices = user
            .row_known
            .then(|| user.slots.iter().map(|(slot, state)| (slot, &**state)).filter_map(known).collect());
        let inbox = user.inbox.iter().map(|((stream, lane), seen)| InboxRow {
            stream: *stream,
            lane: *lane,
            floor: seen.floor,
            seen: seen.above.iter().copied().collect(),
        });
        let ledger = user.row_known.then(|| user.ledger.known());
        let reads = user.row_known.then(|| user.reads.rows());
        let dependents = user.row_known.then(|| user.dependents.rows());
        let (totals, exposed, inbox) = (user.held, user.exposed, inbox.collect());
        Some(UserSnapshot { lanes, device_lanes, devices, totals, exposed, inbox, ledger, reads, dependents })
    }

    /// The users in memory, in no particular order. For tests.
    pub fn resident_users(&self) -> impl Iterator<Item = &UserId> {
        self.users.keys()
    }
}
