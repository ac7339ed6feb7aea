//! What goes into a [`Machine`](super::Machine) and what comes out of it.

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;

use super::joint::{JointId, JointPart, Word};
use super::operation::{Operation, Outcome};
use super::query::{Found, Query};
use super::refusal::{OperationError, Refusal};
use crate::event::EventName;
use crate::id::{DeviceId, MessageId, OrderingKey, StreamId, UserId};
use crate::message::Message;
use crate::record::{Accept, Counters, DedupRow, Gap, LaneId, ReadMark, Record, Seq, Slots, UserRow};
use crate::status::{EndReason, Status};
use crate::time::Timestamp;

/// Names one `send` or `receive`; chosen by the shell, answered exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Names one set of records handed out for persisting; increasing, chosen by the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(pub u64);

/// Names one attachment of a sink; chosen by the shell, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Names one load; chosen by the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadId(pub u64);

/// Which message of a user: its lane and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryRef {
    /// The lane.
    pub lane: LaneId,
    /// The place; [`Seq::ZERO`]`.plus(n)` with an epoch of zero for volatile messages.
    pub seq: Seq,
}

/// A message on its way to a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// This engine, for the receiver's inbox; for what is for a certain device, this engine and that device.
    pub stream: StreamId,
    /// Its lane and place, for acknowledgements.
    pub entry: EntryRef,
    /// Every place up to here that this sink may be offered with this priority has ended durably on this side: the
    /// receiver's inbox may forget them.
    pub floor: Seq,
    /// When it was accepted; of what was scheduled, the time it was scheduled for.
    pub accepted_at: Timestamp,
    /// Failed attempts so far.
    pub attempts: u32,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
}

/// A message that rings no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawn {
    /// Its lane and place, as it was offered.
    pub entry: EntryRef,
    /// Its id.
    pub id: MessageId,
    /// Why: [`EndReason::Elsewhere`] when another device has answered, [`EndReason::Cancelled`] when the caller hung up.
    pub reason: EndReason,
}

/// What a sink says of one message it was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The receiver has it for good. True also when it comes late.
    Delivered,
    /// As `Delivered`, with the answer to a request. The answer to what is no request is dropped.
    Replied(Bytes),
    /// It is on its way; the verdict follows. The ack deadline starts anew.
    AwaitingAck,
    /// It was handed to a transport that cannot confirm anything. Ends as `Unconfirmed`.
    Unconfirmed,
    /// The receiver needs more time; the ack deadline starts anew.
    Progress,
    /// It failed for now; try again after the delay, or after the backoff when there is none. Burns an attempt.
    Nack(Option<Duration>),
    /// The receiver cannot take it now; try again after the delay. Burns no attempt.
    Busy(Duration),
    /// The connection is gone; what was in flight waits again. Burns no attempt.
    Disconnected,
    /// The receiver refuses it for good. Ends as `Rejected`.
    Rejected,
}

impl Verdict {
    /// Whether it came from the receiver, who must be there for that.
    #[must_use]
    pub fn is_sign_of_life(&self) -> bool {
        match self {
            Self::Delivered
            | Self::Replied(_)
            | Self::Progress
            | Self::Nack(_)
            | Self::Busy(_)
            | Self::Rejected => true,
            Self::AwaitingAck | Self::Unconfirmed | Self::Disconnected => false,
        }
    }
}

/// What happens to a machine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Input {
    /// A host sends a message.
    Send {
        /// Answered once, by [`Action::Answer`].
        ticket: Ticket,
        /// The message.
        message: Message,
    },
    /// A host sends messages of which all are accepted, in one commit, or none.
    SendBatch(Vec<(Ticket, Message)>),
    /// A host sends one message to many people: as if it were sent to each of them, one after the other. They share its
    /// payload.
    FanOut {
        /// The first one's; the others follow, each answered like a send.
        first: Ticket,
        /// The message, for whomever.
        message: Message,
        /// Whom it is for.
        recipients: Vec<UserId>,
    },
    /// Another engine's deliveries come in for this engine's inbox, as one batch it offered, in its order. Each is
    /// answered like a send; what follows a refused one with the same recipient, lane and ordering key is refused too.
    Receive(Vec<(Ticket, Delivery)>),
    /// A host does something with messages that wait.
    Operate {
        /// Answered once, by [`Action::Done`].
        ticket: Ticket,
        /// What.
        operation: Operation,
    },
    /// The operating system has the records of this commit; a process crash no longer loses them.
    Written(CommitId),
    /// The records of this commit are durable; the first one has this place, the others follow.
    Persisted {
        /// Which commit.
        commit: CommitId,
        /// The place of its first record.
        first: Seq,
    },
    /// Another machine has said something: what it emitted as [`Action::Tell`].
    Told(Word),
    /// What this machine wanted to tell another one cannot be told any more.
    Untold(Word),
    /// A batch across shards is durable. This shard's first record has this place, its others follow. It comes in the
    /// order of places among the commits of the shard.
    JointPersisted {
        /// Which one.
        joint: JointId,
        /// The place of its first record here.
        first: Seq,
    },
    /// A batch across shards failed as a whole.
    JointFailed {
        /// Which one.
        joint: JointId,
        /// Whether it may be stored all the same, until the journal is healed.
        unknown: bool,
    },
    /// The commit failed. All later commits that were handed out fail too, each with an input of its own, in order.
    PersistFailed {
        /// Which commit.
        commit: CommitId,
        /// Whether it may be stored all the same, until the journal is healed.
        unknown: bool,
    },
    /// The journal takes commits again (`true`), or not (`false`: new sends are refused until it does).
    Writable(bool),
    /// What the store takes on disk now, for [`Config::max_disk_bytes`](crate::Config::max_disk_bytes).
    Disk {
        /// In bytes.
        bytes: u64,
    },
    /// A sink is attached.
    Attach {
        /// Chosen by the shell.
        link: LinkId,
        /// To whom.
        user: UserId,
        /// With which device.
        device: DeviceId,
    },
    /// A sink is gone; what it had in flight waits again.
    Detach(LinkId),
    /// What a sink says of messages it was offered.
    Verdicts {
        /// Which sink.
        link: LinkId,
        /// Which messages, in the order they were offered.
        verdicts: Vec<(EntryRef, Verdict)>,
    },
    /// A sink was told of what [`Action::TellGaps`] named.
    GapsTold {
        /// Which sink.
        link: LinkId,
        /// Or it could not be: somebody will be told again.
        told: bool,
    },
    /// A load has finished.
    Loaded {
        /// Which one.
        load: LoadId,
        /// What was found.
        found: Box<Found>,
    },
    /// A load failed; the machine asks again after a while. Sends that waited for it are refused.
    LoadFailed(LoadId),
    /// Collect what must settle before the segment that ends before this place can be recycled.
    Settle {
        /// Every record below this place.
        before: Seq,
    },
    /// What was collected up to this place is durable in the store.
    Settled {
        /// The same place as in [`Input::Settle`].
        before: Seq,
    },
    /// Settling up to this place failed; the machine keeps everything and will be asked again.
    SettleFailed {
        /// The same place as in [`Input::Settle`].
        before: Seq,
    },
    /// Refuse new sends and offer nothing more; commits, verdicts and settling go on.
    Drain,
    /// Time has passed; see [`Machine::poll_timeout`](super::Machine::poll_timeout).
    Tick,
}

/// An accepted message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its lane and place. The place is [`Seq::ZERO`] when it is not known yet (buffered) or never will be
    /// (volatile).
    pub entry: EntryRef,
    /// The devices that have a copy of their own: the first one's is the entry, those of the others follow it. None when
    /// the message is for any device, or its devices are not chosen yet.
    pub among: Slots,
    /// How far apart their places are: 1, or 2 when they were moved to another priority.
    pub stride: u8,
    /// Whether it had been accepted before: this was a repeat.
    pub duplicate: bool,
}

impl Accepted {
    /// A new message, for any device.
    pub(super) fn at(entry: EntryRef) -> Self {
        Self { entry, among: Slots::NONE, stride: 1, duplicate: false }
    }

    /// A new message, of which this is one copy.
    pub(super) fn of(entry: EntryRef, accept: &Accept) -> Self {
        let (Some(device), Some(priority)) = (accept.device, entry.lane.priority()) else {
            return Self::at(entry);
        };
        let copies = device.others(entry.seq).chain([(device.slot, entry.seq)]);
        let first = copies.min_by_key(|(slot, _)| *slot);
        let first = first.map(|(slot, seq)| EntryRef { lane: LaneId::Device(slot, priority), seq });
        Self { entry: first.unwrap_or(entry), among: device.among, stride: device.stride, duplicate: false }
    }

    /// It had been accepted before.
    pub(super) fn again(self) -> Self {
        Self { duplicate: true, ..self }
    }

    /// Where it waits, for each device that has a copy; in one place when it is for any.
    pub fn entries(&self) -> Vec<EntryRef> {
        let EntryRef { lane, seq } = self.entry;
        let (Some(_), Some(priority)) = (lane.slot(), lane.priority()) else { return vec![self.entry] };
        if self.among.is_empty() || seq == Seq::ZERO {
            return vec![self.entry];
        }
        let place = |slot| seq.plus(u64::from(self.among.rank(slot)) * u64::from(self.stride));
        let copy = |slot| EntryRef { lane: LaneId::Device(slot, priority), seq: place(slot) };
        self.among.iter().map(copy).collect()
    }
}

/// What the shell must do, in order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Action {
    /// Make these records durable, in this order, after all earlier ones; then say [`Input::Persisted`].
    Persist {
        /// Names the commit.
        commit: CommitId,
        /// At least one record.
        records: Vec<Record>,
        /// Whether new messages are among them (they may not use the journal's reserve).
        accepts: bool,
        /// Whether somebody waits for [`Input::Written`]. If not, it may be left out.
        written: bool,
    },
    /// Make all these records durable in one group, after what each shard has handed out before; then say
    /// [`Input::JointPersisted`] to each shard of a part. They fail if the journal has failed since a part was reserved.
    PersistJoint {
        /// Names the batch.
        joint: JointId,
        /// In the order of the shards. At least one record.
        parts: Vec<JointPart>,
    },
    /// Tell another machine, or this one.
    Tell {
        /// Which shard's.
        shard: usize,
        /// What.
        word: Box<Word>,
    },
    /// Answer the sender. `Ok` means what the message's durability promises, now.
    Answer {
        /// Whose.
        ticket: Ticket,
        /// The answer.
        result: Result<Accepted, Refusal>,
    },
    /// Answer whoever asked for an operation. `Ok` means that what it did is durable.
    Done {
        /// Whose.
        ticket: Ticket,
        /// The answer.
        result: Result<Outcome, OperationError>,
    },
    /// Hand these to the sink, in this order. Messages of one ordering key must be taken in order: what follows a
    /// failed one must fail too.
    Offer {
        /// Which sink.
        link: LinkId,
        /// At least one.
        batch: Vec<Delivery>,
    },
    /// Tell the sink that its user will not get these, at most one gap for each lane; then say [`Input::GapsTold`]. Until that is
    /// durable, it may be said again.
    TellGaps {
        /// Which sink.
        link: LinkId,
        /// At least one.
        gaps: Vec<Gap>,
    },
    /// Tell the sink that a message it was offered rings no more: another device has confirmed it, it was withdrawn or
    /// replaced, or its time is over. That is durable.
    Withdraw {
        /// Which sink.
        link: LinkId,
        /// Which message.
        withdrawn: Withdrawn,
    },
    /// Read from the store, then say [`Input::Loaded`].
    Load {
        /// Names the load.
        load: LoadId,
        /// What to read.
        query: Query,
    },
    /// A status became true (and durable, where it claims to be).
    Announce(Change),
    /// A message waits in another lane from now on; its old place is no more, and that is durable.
    Moved {
        /// Whose message.
        user: UserId,
        /// Where it was.
        from: EntryRef,
        /// Where it is: in one place, or, of what was not offered to anybody there and is for several devices, in one for
        /// each of them, in the order of their slots.
        to: Vec<EntryRef>,
    },
    /// Somebody has read a conversation ([`Machine::conversation`](super::Machine::conversation) names it so) up to here,
    /// durably; also when that is not kept, for lying furthest back of more than are. Said once of each mark.
    MarkedRead(UserId, Option<OrderingKey>, u128, ReadMark),
    /// The receiver of this message has answered it.
    Replied {
        /// The message.
        message: Message,
        /// The answer.
        answer: Bytes,
    },
    /// A part of what must settle; complete when `last` is set.
    Survivors(Box<Survivors>),
    /// An attachment was refused or replaced by a newer one of the same device; it will be offered nothing more.
    Dismiss(LinkId),
}

/// A message's new status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose message.
    pub user: UserId,
    /// Which one.
    pub entry: EntryRef,
    /// Its id. Not known of what was damaged.
    pub id: Option<MessageId>,
    /// Its sender, if it has one. Not known of what a newer message of its collapse key replaced in the store.
    pub sender: Option<UserId>,
    /// What it is about. Not known of what was damaged, or replaced in the store.
    pub event: Option<EventName>,
    /// Where it stands.
    pub status: Status,
    /// For an end other than `Delivered`: whether it may have arrived all the same.
    pub possibly_delivered: bool,
    /// Failed attempts so far.
    pub attempts: u32,
}

/// Part of what must be in the store before a segment can be recycled.
#[derive(Clone, Debug, Default)]
pub struct Survivors {
    /// The place given with [`Input::Settle`].
    pub before: Seq,
    /// Messages that have not ended, in no particular order.
    pub entries: Vec<(Seq, Arc<Accept>)>,
    /// Rows of users about whom something changed.
    pub rows: Vec<(UserId, UserRow)>,
    /// Users of these rows who have no dead letters: the store need not list them.
    pub without_letters: Vec<UserId>,
    /// Ids accepted in the segment that are still in their window.
    pub dedup: Vec<DedupRow>,
    /// Settled messages that have ended since the last settling, for the runs' live counts.
    pub died: Vec<Seq>,
    /// All that was due up to this time was seen to, in the runs of this table. Only in the last part.
    pub swept: Option<(Timestamp, u64)>,
    /// The counters, and the place below which they count everything. Only in the last part.
    pub counters: Option<(Counters, Seq)>,
    /// No more parts for this place.
    pub last: bool,
}

/// Where a message stands, as far as a machine's memory knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has not ended.
    Live(Status),
    /// It has ended, or was never there.
    Gone,
    /// It lies in the store if it has not ended: only the store knows.
    AskStore,
}

/// An O(1) snapshot of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineStats {
    /// The ledger's counters.
    pub counters: Counters,
    /// Messages on offer to sinks.
    pub in_flight: u64,
    /// Batches across shards that something is held for here.
    pub reservations: u64,
    /// Sends and operations that wait for a commit or a load.
    pub pending: u64,
    /// Records that are not durable yet.
    pub recording: u64,
    /// Repeats that were recognised.
    pub duplicates: u64,
    /// Sends that were refused.
    pub refused: u64,
    /// Users with anything in memory.
    pub resident_users: u64,
    /// Users with messages waiting of whom only the totals are in memory.
    pub indexed_users: u64,
    /// Messages in memory.
    pub resident_messages: u64,
    /// Attached sinks.
    pub links: u64,
    /// Acknowledgements, nacks or extensions that came too late or from elsewhere.
    pub stray_verdicts: u64,
    /// Messages lost to damage on disk.
    pub damaged: u64,
    /// How often what is due was seen to.
    pub sweeps: u64,
    /// Undeliverable messages that were not kept, because their recipient had too many dead letters.
    pub dead_letters_dropped: u64,
}

impl Verdict {
    pub(super) fn end(&self) -> Option<EndReason> {
        match self {
            Self::Delivered | Self::Replied(_) => Some(EndReason::Delivered),
            Self::Unconfirmed => Some(EndReason::Unconfirmed),
            Self::Rejected => Some(EndReason::Rejected),
            _ => None,
        }
    }
}
