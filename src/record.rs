//! The records: the spine of everything. The machine's state is a fold of them.

mod backlog;
mod counters;
mod dependent;
mod device;
mod ends;
mod known;
mod lane;
mod ledger;
mod read;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{MessageId, StreamId, UserId};
use crate::message::Message;
use crate::status::EndReason;
use crate::time::Timestamp;

pub use backlog::Backlog;
pub use counters::Counters;
#[cfg(feature = "storage")]
pub(crate) use counters::FIRST_REASONS;
use counters::positive;
pub use dependent::{Copies, DependentRow, Parent, ParentEnd};
pub use device::{
    DeviceChange, DeviceEvent, DeviceInfo, DeviceRow, ForDevice, InvalidSlot, MAX_SLOTS, Slot, Slots,
};
pub use ends::{EndPosition, Ended};
pub use known::{Exposed, Floor};
pub use lane::LaneId;
pub use ledger::{Gap, LedgerRow, LedgerRows, Told};
pub use read::{Read, ReadMark, ReadRow};

/// A record's place in the log. Unique and increasing over the whole life of an engine, never reused.
///
/// The upper 24 bits are the [`Epoch`] that wrote the record, the lower 40 count the records of that epoch, so no
/// damage to the journal can make an engine give a place away twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq(u64);

impl Seq {
    /// Before every record.
    pub const ZERO: Self = Self(0);
    /// After every record.
    pub const MAX: Self = Self(u64::MAX);
    /// Bits that count the records of one epoch.
    pub const EPOCH_SHIFT: u32 = 40;

    /// The place with this number.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The first place of an epoch.
    #[must_use]
    pub const fn first_of(epoch: Epoch) -> Self {
        Self((epoch.0 as u64) << Self::EPOCH_SHIFT)
    }

    /// The place as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The place `n` records later, saturating at [`Seq::MAX`].
    #[must_use]
    pub const fn plus(self, n: u64) -> Self {
        Self(self.0.saturating_add(n))
    }

    /// The place just behind this one, saturating at [`Seq::MAX`].
    #[must_use]
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    /// The place just before this one, saturating at [`Seq::ZERO`].
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The epoch that wrote the record.
    #[must_use]
    pub const fn epoch(self) -> Epoch {
        Epoch((self.0 >> Self::EPOCH_SHIFT) as u32)
    }
}

/// The number of an ownership: it grows by at least one with every opening, and what an older epoch writes is
/// refused. At most 2²⁴ − 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The largest epoch.
    pub const MAX: Self = Self((1 << 24) - 1);
}

/// A fact about the outbox. State is a fold of these, live and in replay; nothing is decided twice.
///
/// On disk a record is `kind u8 · version u8 · body`, so kinds can be added. Kinds 1–5 are the ones below. Further kinds
/// of acceptance are 18 (moved), 19 (with a collapse key), 20 (scheduled), 23 (a dead letter), 24 (sent once more),
/// 25 (as the one before it, for somebody else) and 26 (waits for another one), and 27 goes before one of those that is for a
/// certain device; 22 says that a receiver was told of a gap, 16 something about a device, and 21 how far somebody has read.
/// Each kind of acceptance has a sealed form, which is 32 more, so that no other kind may be above 31.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A message was accepted. Its place in the log is its sequence number from now on.
    Accept(Arc<Accept>),
    /// A message ended, or a late confirmation came for one that had ended otherwise.
    End(End),
    /// An attempt failed; the message waits until `not_before`.
    Attempt(Attempt),
    /// A sink was attached to a user in this epoch: until proof of the contrary, everything accepted for them so
    /// far may have been offered.
    Exposed(Exposed),
    /// The peer has recorded acknowledgements durably: the inbox may forget places up to `floor`.
    Floor(Floor),
    /// A receiver was told of messages that it will not get.
    Told(Told),
    /// Something about a device.
    Device(DeviceChange),
    /// Somebody has read a conversation up to a place.
    Read(Read),
}

impl Record {
    /// When it was decided, for those that say so.
    #[must_use]
    pub fn at(&self) -> Option<Timestamp> {
        match self {
            Self::Accept(accept) => Some(accept.at),
            Self::End(end) => Some(end.at),
            Self::Device(change) => Some(change.at),
            Self::Read(read) => Some(read.at),
            Self::Attempt(_) | Self::Exposed(_) | Self::Floor(_) | Self::Told(_) => None,
        }
    }

    /// Whose outbox the record is about.
    #[must_use]
    pub fn user(&self) -> &UserId {
        match self {
            Self::Accept(accept) => accept.message.recipient(),
            Self::End(end) => &end.user,
            Self::Attempt(attempt) => &attempt.user,
            Self::Exposed(exposed) => &exposed.user,
            Self::Floor(floor) => &floor.user,
            Self::Told(told) => &told.user,
            Self::Device(change) => &change.user,
            Self::Read(read) => &read.user,
        }
    }
}

/// A message was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// The message.
    pub message: Message,
    /// When it was accepted.
    pub at: Timestamp,
    /// Where it came from, when another engine delivered it to this one's inbox.
    pub origin: Option<Origin>,
    /// What brought it here.
    pub admission: Admission,
    /// Of a message that waits for another one ([`Message::after`]): where that one was.
    pub parent: Option<Parent>,
    /// For which device of its recipient, if it is for a certain one.
    pub device: Option<ForDevice>,
}

/// What brought a message to its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    /// It was sent, or delivered by another engine.
    #[default]
    New,
    /// It had another place before, in another lane, which ends in the same commit. Its sender's repeats are still
    /// recognised by that one.
    Moved,
    /// It could not be delivered, which has ended it; it is kept as a dead letter.
    Buried(Burial),
    /// It was a dead letter, and is sent once more. `possibly_delivered` says whether it may have arrived before.
    Requeued {
        /// Whether somebody may have it already.
        possibly_delivered: bool,
    },
}

/// Why and when a message became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burial {
    /// The reason it ended for: [`EndReason::Dead`] or [`EndReason::Rejected`].
    pub reason: EndReason,
    /// Failed attempts.
    pub attempts: u32,
    /// Whether it may have arrived all the same.
    pub possibly_delivered: bool,
    /// When.
    pub at: Timestamp,
}

impl Accept {
    /// A new message.
    #[must_use]
    pub fn new(message: Message, at: Timestamp) -> Self {
        Self { message, at, origin: None, admission: Admission::New, parent: None, device: None }
    }

    /// Whether it says what another one says, for whomever and whenever, in the same memory.
    pub(crate) fn is_shared_with(&self, other: &Self) -> bool {
        self.message.is_shared_with(&other.message)
            && self.admission == other.admission
            && self.origin == other.origin
            && self.parent == other.parent
    }

    /// The same for somebody else, at another time. It shares payload and headers.
    #[cfg(feature = "storage")]
    pub(crate) fn for_recipient(&self, recipient: UserId, at: Timestamp, device: Option<ForDevice>) -> Self {
        let (origin, admission, parent) = (self.origin, self.admission, self.parent);
        Self { message: self.message.for_recipient(recipient), at, origin, admission, parent, device }
    }

    /// Whether both are for the same devices, one of them each, so that a lane says for which.
    #[cfg(feature = "storage")]
    pub(crate) fn is_spread_with(&self, other: &Self) -> bool {
        let all = |accept: &Self| accept.device.map(|device| (device.among, device.rings, device.stride));
        all(self) == all(other)
    }

    /// When it expires ([`Timestamp::NEVER`] without a TTL, and for a dead letter).
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        let from = self.message.not_before().unwrap_or(self.at);
        match self.admission {
            Admission::Buried(_) => Timestamp::NEVER,
            _ => self.message.ttl().map_or(Timestamp::NEVER, |ttl| from.after(ttl)),
        }
    }

    /// When something has to be done about it: its time comes, or is over. [`Timestamp::NEVER`] for most.
    #[must_use]
    pub fn due(&self) -> Timestamp {
        match self.lane() {
            // What it waits for comes when it comes.
            LaneId::Scheduled if self.message.after().is_some() => self.expires(),
            LaneId::Scheduled => self.message.not_before().unwrap_or(self.at),
            _ => self.expires(),
        }
    }

    /// Where it waits.
    #[must_use]
    pub fn lane(&self) -> LaneId {
        match self.admission {
            Admission::Buried(_) => LaneId::Dead,
            _ => match (self.message.lane(), self.device) {
                (LaneId::Scheduled, _) => LaneId::Scheduled,
                (_, Some(device)) => LaneId::Device(device.slot, self.message.priority()),
                (lane, None) => lane,
            },
        }
    }

    /// Whether it is one more message, as the ledger counts them.
    #[must_use]
    pub fn counts(&self) -> bool {
        matches!(self.admission, Admission::New | Admission::Requeued { .. })
    }

    /// Whether its sender's repeats are recognised by this place.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        let is_copy = self.device.is_some_and(|device| device.is_copy);
        self.origin.is_none() && self.admission == Admission::New && !is_copy
    }
}

/// A place in another engine's log: what an inbox remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The other engine.
    pub stream: StreamId,
    /// The place in its log.
    pub seq: Seq,
}

/// A message ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Whose message.
    pub user: UserId,
    /// In which lane.
    pub lane: LaneId,
    /// Which one.
    pub seq: Seq,
    /// Its id, for the ledger: of what ended as anything but delivered, unless it was too damaged to say. Of a delivery, where
    /// all ends are kept ([`KeepEnds::All`](crate::KeepEnds::All)), and where it takes another end back.
    pub id: Option<MessageId>,
    /// Why.
    pub reason: EndReason,
    /// For a late confirmation: the reason it had ended for before.
    pub upgrades: Option<EndReason>,
    /// Whether it may have arrived all the same.
    pub possibly_delivered: bool,
    /// Failed attempts so far.
    pub attempts: u32,
    /// What it counted against quotas.
    pub cost: u64,
    /// When.
    pub at: Timestamp,
}

impl End {
    /// Whether a failed attempt of the message was recorded before: the one that spends the attempts is the end itself.
    pub(crate) fn was_retrying(&self) -> bool {
        self.upgrades.is_none() && self.attempts > u32::from(self.reason == EndReason::Dead)
    }

    /// Whether it is the end of a message, as the ledger counts them. The others end a place: what was there waits
    /// elsewhere, or was a dead letter, which had ended before.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.reason != EndReason::Moved && self.lane != LaneId::Dead
    }
}

/// An attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Whose message.
    pub user: UserId,
    /// In which lane.
    pub lane: LaneId,
    /// Which one.
    pub seq: Seq,
    /// Failed attempts so far, this one included.
    pub attempts: u32,
    /// When it may be offered again.
    pub not_before: Timestamp,
}

/// What the store keeps about a user besides messages. Absent means: nothing ever ended, nothing was ever offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRow {
    /// Records below this place are reflected in the row and are no-ops on it.
    pub reflects: Seq,
    /// The newest epoch a sink was attached in.
    pub exposed: Epoch,
    /// One for each lane, by [`LaneId::index`].
    pub lanes: [LaneRow; LaneId::COUNT],
    /// What this user's inbox has seen.
    pub inbox: Vec<InboxRow>,
    /// The newest message of each collapse key, by digest, in its order.
    pub newest: Vec<NewestRow>,
    /// What ended undelivered, and what the receiver has not been told of it.
    pub ledger: LedgerRows,
    /// What waits for another message, in the order of places.
    pub dependents: Vec<DependentRow>,
    /// One for each slot that was ever used, in their order.
    pub devices: Vec<DeviceRow>,
    /// How far conversations were read, in the order of their digests.
    pub reads: Vec<ReadRow>,
}

impl UserRow {
    /// What it says of a lane, if it says anything.
    #[must_use]
    pub fn lane(&self, lane: LaneId) -> Option<&LaneRow> {
        match lane {
            LaneId::Device(slot, priority) => {
                let found = self.devices.binary_search_by_key(&slot, |row| row.slot).ok()?;
                self.devices.get(found)?.lanes.get(priority.index())
            }
            lane => self.lanes.get(lane.index()),
        }
    }
}

/// The newest message of one collapse key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewestRow {
    /// Keyed digest of the user and the key.
    pub key: u128,
    /// Where it waits.
    pub lane: LaneId,
    /// Its place; [`Seq::ZERO`] when it has ended.
    pub seq: Seq,
    /// Its id.
    pub id: MessageId,
    /// What it counts against quotas.
    pub cost: u64,
    /// Which version it is; 0 when it has none.
    pub version: u64,
}

/// What the store keeps about one lane of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneRow {
    /// Every message up to here has ended.
    pub cursor: Seq,
    /// Messages above the cursor that have ended, in order.
    pub ended: Vec<Seq>,
    /// Waiting messages with failed attempts: place, attempts, not before.
    pub attempts: Vec<(Seq, u32, Timestamp)>,
}

/// What an inbox has seen of one lane of one other engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxRow {
    /// The other engine.
    pub stream: StreamId,
    /// In which lane.
    pub lane: LaneId,
    /// Every place up to here is done with on the other side.
    pub floor: Seq,
    /// Places above the floor that were applied, in order.
    pub seen: Vec<Seq>,
}

/// One remembered id of the accept-side dedup window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupRow {
    /// Keyed digest of the sender.
    pub sender: u128,
    /// Keyed digest of sender, recipient and id.
    pub key: u128,
    /// Keyed digest of what the message says, to tell a repeat from a conflict.
    pub content: u64,
    /// The place of the message.
    pub seq: Seq,
    /// When it was accepted.
    pub at: Timestamp,
    /// The devices that have a copy; the first one's is at the place.
    pub among: Slots,
}
