//! What a [`Machine`](super::Machine) wants to know from the store, and what the store knows.

use std::sync::Arc;

use crate::id::{MessageId, UserId};
use crate::record::{Accept, DedupRow, LaneId, Seq, UserRow};
use crate::time::Timestamp;

/// What the store knows.
#[derive(Clone, Debug)]
pub enum Found {
    /// Answer to [`Query::User`] and [`Query::Row`].
    User {
        /// The user's row, if there is one.
        row: Option<Box<UserRow>>,
        /// What this user has in the runs, judged by the row, if it was asked for.
        held: Option<Holdings>,
        /// The runs hold every message settled below this place.
        reflects: Seq,
    },
    /// Answer to [`Query::Page`].
    Page(Page),
    /// Answer to [`Query::Place`] and [`Query::Id`].
    Matches(Matches),
    /// Answer to [`Query::Sender`].
    Sender(Vec<DedupRow>),
    /// Answer to [`Query::Due`].
    Due {
        /// Users who may have something due, of all shards.
        users: Vec<UserId>,
        /// Set unless these were the last; ask on from there.
        more: Option<DuePlace>,
        /// With the last ones: when there may be something due again.
        next: Timestamp,
        /// The table of runs that was looked at.
        table: u64,
    },
}

/// How far a search for what is due has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DuePlace {
    /// In which run.
    pub run: u64,
    /// By when it is due.
    pub at: Timestamp,
    /// In which part of the list.
    pub part: u32,
}

/// What a user has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Messages that have not ended.
    pub messages: u32,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them wait for their time to come.
    pub scheduled: u32,
    /// Dead letters.
    pub dead: u32,
    /// Their bytes.
    pub dead_bytes: u64,
}

impl Holdings {
    /// Adds a message of this cost in this lane.
    pub fn add(&mut self, lane: LaneId, cost: u64) {
        self.change(lane, |n| n.saturating_add(1), |bytes| bytes.saturating_add(cost));
    }

    /// Takes one away.
    pub fn sub(&mut self, lane: LaneId, cost: u64) {
        self.change(lane, |n| n.saturating_sub(1), |bytes| bytes.saturating_sub(cost));
    }

    fn change(&mut self, lane: LaneId, number: impl Fn(u32) -> u32, bytes: impl Fn(u64) -> u64) {
        if lane == LaneId::Dead {
            (self.dead, self.dead_bytes) = (number(self.dead), bytes(self.dead_bytes));
            return;
        }
        (self.messages, self.bytes) = (number(self.messages), bytes(self.bytes));
        if lane == LaneId::Scheduled {
            self.scheduled = number(self.scheduled);
        }
    }

    /// Together with what others are.
    pub(super) fn with(self, other: &Self) -> Self {
        Self {
            messages: self.messages.saturating_add(other.messages),
            bytes: self.bytes.saturating_add(other.bytes),
            scheduled: self.scheduled.saturating_add(other.scheduled),
            dead: self.dead.saturating_add(other.dead),
            dead_bytes: self.dead_bytes.saturating_add(other.dead_bytes),
        }
    }

    /// Without what others are.
    pub(super) fn without(self, other: &Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(other.messages),
            bytes: self.bytes.saturating_sub(other.bytes),
            scheduled: self.scheduled.saturating_sub(other.scheduled),
            dead: self.dead.saturating_sub(other.dead),
            dead_bytes: self.dead_bytes.saturating_sub(other.dead_bytes),
        }
    }

    /// Whether there is anything in this lane, as far as that is known by lane.
    pub(super) fn has(&self, lane: LaneId) -> bool {
        match lane {
            LaneId::Scheduled => self.scheduled > 0,
            LaneId::Dead => self.dead > 0,
            _ => self.messages > self.scheduled,
        }
    }

    /// Messages and dead letters.
    pub(super) fn len(&self) -> u64 {
        u64::from(self.messages) + u64::from(self.dead)
    }
}

/// A page of one lane's settled messages.
#[derive(Clone, Debug)]
pub struct Page {
    /// The messages, in order, without those the row says have ended.
    pub entries: Vec<(Seq, Arc<Accept>)>,
    /// Messages that are damaged on disk and cannot be delivered, and what they cost: 0 where that is lost too. The place
    /// zero stands for any number of which nothing else is known.
    pub damaged: Vec<(Seq, u64)>,
    /// Set when there are more, all of them above this place.
    pub more_after: Option<Seq>,
    /// Runs hold every message settled below this place.
    pub reflects: Seq,
}

/// Settled messages that may be the one that is looked for, whether or not they have ended.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    /// Messages, with their places.
    pub entries: Vec<(Seq, Arc<Accept>)>,
    /// Where damage has left no message to be read, and none for any number of which not even the place is known.
    pub damaged: Vec<Option<(LaneId, Seq)>>,
    /// There are more than were asked for.
    pub is_cut: bool,
}

/// What the machine wants to know from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// A user's row and totals. Costs as much as the user has messages.
    User(UserId),
    /// The row of a user whose totals are known.
    Row(UserId),
    /// Settled messages of one lane, above `after`, within the limits.
    Page {
        /// Whose.
        user: UserId,
        /// Which lane.
        lane: LaneId,
        /// Only messages above this place.
        after: Seq,
        /// Places to leave out (ended, above `after`), in order.
        ended: Vec<Seq>,
        /// At most so many messages.
        max_messages: usize,
        /// At most so many bytes, but at least one message.
        max_bytes: u64,
    },
    /// What settled at one place, in whichever of these lanes.
    Place {
        /// Whose.
        user: UserId,
        /// In which lanes it may be.
        lanes: Vec<LaneId>,
        /// The place.
        seq: Seq,
    },
    /// Settled messages with one id, in all lanes, within the limits. The first question about a user costs as much as they
    /// have messages, and those that follow next to nothing.
    Id {
        /// Whose.
        user: UserId,
        /// The id.
        id: MessageId,
        /// At most so many messages.
        max_messages: usize,
        /// At most so many bytes, but at least one message.
        max_bytes: u64,
    },
    /// Users of whom something settled is due: it expires, or its time comes.
    Due {
        /// By when.
        until: Timestamp,
        /// What was seen to before: all that was due up to this time, in the runs of this table.
        since: (Timestamp, u64),
        /// Behind what was found last.
        after: Option<DuePlace>,
    },
    /// A sender's remembered ids, by keyed digest, no older than `since`: the newest, in any order.
    Sender {
        /// The sender's digest.
        sender: u128,
        /// Only ids accepted since.
        since: Timestamp,
        /// At most so many.
        max: usize,
    },
}
