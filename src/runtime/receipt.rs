//! Receipts: what a sender holds of an accepted message.

use tokio::sync::oneshot;

use super::error::WatchError;
use super::mail::{Mail, Post};
use crate::error::Closed;
use crate::id::{MessageId, UserId};
use crate::machine::{Accepted, EntryRef};
use crate::record::Seq;
use crate::status::{EndReason, Status};

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// It was handed to a sink.
    Sent,
    /// Its receiver confirmed it.
    Delivered,
}

/// What a wait found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The stage was reached.
    Stage(Stage),
    /// It ended otherwise, and will not reach the stage. `possibly_delivered` says whether it may have arrived all the
    /// same.
    Ended {
        /// Why.
        reason: EndReason,
        /// Whether it may have arrived.
        possibly_delivered: bool,
    },
}

impl Reached {
    /// What a change means for someone who waits for `stage`.
    pub(super) fn of(stage: Stage, status: Status, possibly_delivered: bool) -> Option<Self> {
        match (stage, status) {
            (_, Status::Ended(EndReason::Delivered)) | (Stage::Sent, Status::Sent) => {
                Some(Self::Stage(stage))
            }
            (_, Status::Ended(reason)) => Some(Self::Ended { reason, possibly_delivered }),
            _ => None,
        }
    }
}

/// An accepted message: durable as its [`Durability`](crate::Durability) promises.
#[derive(Clone, Debug)]
pub struct Receipt {
    id: MessageId,
    user: UserId,
    /// Whom the sender means, when the outbox that holds it is another one.
    shown: Option<UserId>,
    accepted: Accepted,
    post: Post,
}

impl Receipt {
    pub(super) fn new(id: MessageId, user: UserId, accepted: Accepted, post: Post) -> Self {
        Self { id, user, shown: None, accepted, post }
    }

    /// The same, of a message that waits in another outbox than that of whom it is for.
    pub(super) fn shown_as(self, user: UserId) -> Self {
        Self { shown: Some(user), ..self }
    }

    /// The message's id.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Whom it is for.
    #[must_use]
    pub fn user(&self) -> &UserId {
        self.shown.as_ref().unwrap_or(&self.user)
    }

    /// Its lane and its place in the log.
    #[must_use]
    pub fn entry(&self) -> EntryRef {
        self.accepted.entry
    }

    /// Its places: one for each device that has a copy of its own, in the order of their slots, or only [`Receipt::entry`].
    #[must_use]
    pub fn entries(&self) -> Vec<EntryRef> {
        self.accepted.entries()
    }

    /// Whether it had been accepted before: this send was a repeat, and changed nothing.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        self.accepted.duplicate
    }

    /// Waits until the message reaches `stage`, or ends otherwise. Put a timeout around it: a message for someone who
    /// is away may wait for weeks.
    ///
    /// # Errors
    /// [`WatchError`]; the message is unaffected.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn reached(&self, stage: Stage) -> Result<Reached, WatchError> {
        if self.accepted.entry.seq.epoch() == Seq::ZERO.epoch() {
            return Err(WatchError::NotTracked);
        }
        let (reply, answer) = oneshot::channel();
        let mail = Mail::Watch { user: self.user.clone(), entry: self.accepted.entry, stage, reply };
        self.post.mail.send(mail).await.map_err(|_| Closed)?;
        answer.await.map_err(|_| match self.post.mail.is_closed() {
            true => WatchError::Closed(Closed),
            false => WatchError::Forgotten,
        })
    }
}
