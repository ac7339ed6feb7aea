//! What hosts can do with messages besides sending them, and what that comes to.

use super::history::FailedAttempt;
use super::io::{Accepted, EntryRef};
use crate::event::EventName;
use crate::id::{DeviceId, MessageId, OrderingKey, UserId};
use crate::message::{Message, Priority};
use crate::record::{Accept, Admission, Burial, DeviceInfo, LedgerRows, ReadMark, Seq, Slot};
use crate::status::{EndReason, Status};
use crate::time::Timestamp;

/// Which message an operation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its recipient.
    pub user: UserId,
    /// Its id. Two senders may have used the same one for this recipient.
    pub id: MessageId,
    /// Only a message of this sender (`Some(None)`: one without a sender). Otherwise whichever of them is met first: what is
    /// in memory is looked through before what is in the store only, in both lane by lane, the most urgent first, and in a
    /// lane the oldest first. So which one that is may depend on what has settled: where two senders may use the same id
    /// for one recipient, name the sender.
    pub sender: Option<Option<UserId>>,
}

/// What a host wants done with messages that wait.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Withdraw one message: it ends as cancelled.
    Cancel(Target),
    /// Withdraw every message that was accepted for this user so far.
    Purge(UserId),
    /// Withdraw one message and accept another one for the same recipient, both or neither. The old one ends as
    /// replaced; the new one waits behind what was accepted before it.
    Replace(Target, Message),
    /// Move one message that was never offered to another lane, where it waits behind what was accepted before; how long
    /// it may still wait stays as it was.
    Reprioritise(Target, Priority),
    /// Send dead letters once more: each is accepted anew, and waits behind what was accepted before. Of those with one
    /// collapse key only the newest goes, behind the others, and only if nothing newer of that key is known
    /// ([`Outcome::superseded`]).
    Requeue(DeadLetters),
    /// Throw dead letters away.
    Discard(DeadLetters),
    /// Look at dead letters behind this place: at most so many, and no more than
    /// [`Config::max_load_bytes`](crate::Config::max_load_bytes), but at least one.
    Inspect(DeadLetters, Seq, usize),
    /// Say where one message stands, also when it has ended. One for several devices stands where the first to have it has
    /// it; as long as none has, where one of its copies waits.
    Locate(Target),
    /// Say how messages for this user ended that were not delivered.
    Ledger(UserId),
    /// Say how many dead letters this user has.
    Letters(UserId),
    /// Register a device: what is sent to every device from now on is for it too.
    Register(UserId, DeviceId),
    /// Remove a device: nothing more is for it, and what waits for it ends as
    /// [`DeviceGone`](EndReason::DeviceGone).
    Unregister(UserId, DeviceId),
    /// List the registered devices.
    Devices(UserId),
    /// Record that this user has read the conversation with this ordering key up to a place.
    MarkRead(UserId, Option<OrderingKey>, Seq),
    /// Say how far that was.
    ReadUpTo(UserId, Option<OrderingKey>),
}

/// Which dead letters of a user are meant: those for which all of this is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetters {
    /// Whose.
    pub user: UserId,
    /// With this id.
    pub id: Option<MessageId>,
    /// About this event.
    pub event: Option<EventName>,
    /// That ended for this reason.
    pub reason: Option<EndReason>,
    /// That ended before this time.
    pub before: Option<Timestamp>,
}

impl DeadLetters {
    /// All of a user's.
    #[must_use]
    pub fn of(user: UserId) -> Self {
        Self { user, id: None, event: None, reason: None, before: None }
    }

    pub(super) fn means(&self, accept: &Accept) -> bool {
        let Admission::Buried(burial) = accept.admission else { return false };
        let message = &accept.message;
        self.id.is_none_or(|id| id == message.id())
            && self.event.as_ref().is_none_or(|event| event == message.event())
            && self.reason.is_none_or(|reason| reason == burial.reason)
            && self.before.is_none_or(|before| burial.at < before)
    }
}

/// A message that could not be delivered, and was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its place among the dead letters, which are in the order in which they ended.
    pub place: Seq,
    /// The message.
    pub message: Message,
    /// When it had been accepted, or what it had been scheduled for.
    pub accepted_at: Timestamp,
    /// Why it ended, when, and after how many attempts.
    pub burial: Burial,
}

impl DeadLetter {
    pub(super) fn of(place: Seq, accept: &Accept) -> Option<Self> {
        let Admission::Buried(burial) = accept.admission else { return None };
        Some(Self { place, message: accept.message.clone(), accepted_at: accept.at, burial })
    }
}

impl Operation {
    /// Whose messages it is about.
    #[must_use]
    pub fn user(&self) -> &UserId {
        match self {
            Self::Cancel(target)
            | Self::Replace(target, _)
            | Self::Reprioritise(target, _)
            | Self::Locate(target) => &target.user,
            Self::Purge(user) | Self::Ledger(user) | Self::Letters(user) | Self::Devices(user) => user,
            Self::Register(user, _) | Self::Unregister(user, _) => user,
            Self::MarkRead(user, ..) | Self::ReadUpTo(user, _) => user,
            Self::Requeue(letters) | Self::Discard(letters) | Self::Inspect(letters, ..) => &letters.user,
        }
    }

    /// The one message it is about, if it is about one.
    #[must_use]
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Cancel(target)
            | Self::Replace(target, _)
            | Self::Reprioritise(target, _)
            | Self::Locate(target) => Some(target),
            _ => None,
        }
    }

    /// Whether it is about dead letters.
    #[must_use]
    pub fn is_about_dead(&self) -> bool {
        matches!(self, Self::Requeue(_) | Self::Discard(_) | Self::Inspect(..))
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::Inspect(..)
                | Self::Locate(_)
                | Self::Ledger(_)
                | Self::Letters(_)
                | Self::Devices(_)
                | Self::ReadUpTo(..)
        )
    }

    /// How the places end that it is about, if it ends any.
    #[must_use]
    pub fn reason(&self) -> Option<EndReason> {
        match self {
            Self::Cancel(_) | Self::Purge(_) | Self::Discard(_) => Some(EndReason::Cancelled),
            Self::Replace(..) => Some(EndReason::Replaced),
            Self::Reprioritise(..) | Self::Requeue(_) => Some(EndReason::Moved),
            Self::Inspect(..) | Self::Locate(_) | Self::Ledger(_) | Self::Letters(_) => None,
            Self::Register(..) | Self::Unregister(..) | Self::Devices(_) => None,
            Self::MarkRead(..) | Self::ReadUpTo(..) => None,
        }
    }
}

/// What an operation did, durably.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Places that it ended: those of the messages that it withdrew, replaced, moved or sent again, each copy for a device
    /// counted, and of dead letters. What somebody else ended meanwhile is not counted; only when one message was to be
    /// withdrawn, and was about to be withdrawn by somebody else, it says 1 too: it is gone, as was asked.
    pub messages: u32,
    /// How many of them had been offered, or may have been: they may have arrived all the same. Should one be
    /// confirmed later, it counts as delivered.
    pub possibly_delivered: u32,
    /// The place of what came instead, for [`Operation::Replace`] and [`Operation::Reprioritise`]; of what was sent again
    /// last, for [`Operation::Requeue`]. A `duplicate` had been
    /// accepted before, or is where it should go already: then this operation ended nothing, and what an earlier one ended
    /// is not counted again.
    pub accepted: Option<Accepted>,
    /// Dead letters that [`Operation::Requeue`] left where they are, because of their collapse keys: a message with the same
    /// key waits or is being accepted, a newer letter of the same key is sent again by this operation, or a later version was
    /// accepted.
    pub superseded: u32,
    /// What [`Operation::Inspect`] found.
    pub letters: Vec<DeadLetter>,
    /// What [`Operation::Locate`] found.
    pub located: Option<Located>,
    /// Of a message for several devices, what it found of each copy, in the order of the slots.
    pub copies: Vec<CopyStanding>,
    /// And how attempts to deliver it failed since this opening, as far as that is remembered, in their order: of each copy
    /// the last [`MAX_FAILURES`](super::MAX_FAILURES).
    pub failures: Vec<FailedAttempt>,
    /// How many of the failed attempts that [`Located::attempts`] counts are not among them.
    pub forgotten: u32,
    /// What [`Operation::Ledger`] read.
    pub ledger: Box<LedgerRows>,
    /// How many dead letters [`Operation::Letters`] counted, and their bytes.
    pub dead_letters: (u32, u64),
    /// How far the conversation is known to have been read, of [`Operation::MarkRead`] and [`Operation::ReadUpTo`].
    pub read: Option<ReadMark>,
    /// What [`Operation::Devices`] listed, in the order of their slots.
    pub devices: Vec<DeviceStanding>,
}

/// Where the copy of a message for one device stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyStanding {
    /// The device's number.
    pub slot: Slot,
    /// The device that has it now.
    pub device: Option<DeviceId>,
    /// Where it stands. None when it has ended and nothing says how: the ledger does not go back so far.
    pub located: Option<Located>,
}

/// A registered device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStanding {
    /// What is recorded of it.
    pub info: DeviceInfo,
    /// Whether a sink is attached for it now.
    pub is_attached: bool,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Its lane and place: where it waits, or was last. Not known of what was delivered a while ago.
    pub entry: Option<EntryRef>,
    /// Where it stands. A dead letter has ended, and can be sent again.
    pub status: Status,
    /// Of a message that was not delivered: whether it may have arrived all the same, at another device perhaps of which
    /// nothing is known any more.
    pub possibly_delivered: bool,
    /// Failed attempts.
    pub attempts: u32,
    /// Since when, if that is known.
    pub since: Option<Timestamp>,
    /// Of a delivered message: since when its recipient's host says that its conversation has been read up to it, or beyond
    /// ([`Operation::MarkRead`]). None where nobody has said so, or it is not known.
    pub read: Option<Timestamp>,
}

impl Outcome {
    /// Nothing was done: what was wanted had been accepted before.
    pub(super) fn known(accepted: Accepted) -> Self {
        Self { accepted: Some(accepted), ..Self::default() }
    }
}

impl Target {
    /// This message, of its sender.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        Self { user: message.recipient().clone(), id: message.id(), sender: Some(message.sender().cloned()) }
    }

    pub(super) fn is(&self, accept: &Accept) -> bool {
        let message = &accept.message;
        message.id() == self.id
            && self.sender.as_ref().is_none_or(|sender| sender.as_ref() == message.sender())
    }
}

impl Operation {
    /// Whether it is about this message, if it looks in its lane.
    pub(crate) fn means(&self, accept: &Accept) -> bool {
        match self {
            Self::Cancel(target)
            | Self::Replace(target, _)
            | Self::Reprioritise(target, _)
            | Self::Locate(target) => target.is(accept),
            Self::Purge(_) => true,
            Self::Ledger(_) | Self::Letters(_) | Self::MarkRead(..) | Self::ReadUpTo(..) => false,
            Self::Register(..) | Self::Unregister(..) | Self::Devices(_) => false,
            Self::Requeue(letters) | Self::Discard(letters) | Self::Inspect(letters, ..) => {
                letters.means(accept)
            }
        }
    }
}
