//! Receipts: what a sender holds of an accepted message.

use core::future::{Future, poll_fn};
use core::task::Poll;
use core::time::Duration;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::error::WatchError;
use super::mail::{Mail, Post};
use super::watch::Seen;
use crate::error::Closed;
use crate::id::{MessageId, OrderingKey, UserId};
use crate::machine::{Accepted, EntryRef, Located, Operation, OperationError, Outcome, Target};
use crate::message::Message;
use crate::record::{LaneId, Seq, Slot};
use crate::status::{EndReason, Status};

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// It was handed to a sink.
    Sent,
    /// Its receiver confirmed it: of what is for several devices, the first of them.
    Delivered,
    /// All devices that it is for have confirmed it. As good as [`Stage::Delivered`] where it is for any.
    DeliveredAll,
    /// Its receiver confirmed it, and its recipient's host says that the conversation it belongs to has been read up to it, or
    /// beyond ([`Engine::mark_read`](crate::Engine::mark_read), of the engine that the receipt is from). One device is enough.
    Read,
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
            (_, Status::Ended(EndReason::Delivered)) | (Stage::Sent, Status::Sent | Status::Retrying) => {
                Some(Self::Stage(stage))
            }
            (_, Status::Ended(reason)) => Some(Self::Ended { reason, possibly_delivered }),
            _ => None,
        }
    }
}

/// What two copies have come to of which neither says it all: one that was forgotten may have been delivered, and one that
/// may have arrived has arrived with the message.
fn both(one: Result<Reached, WatchError>, other: Result<Reached, WatchError>) -> Result<Reached, WatchError> {
    match (one, other) {
        (Err(error), _) | (_, Err(error)) => Err(error),
        (
            Ok(Reached::Ended { possibly_delivered: one, .. }),
            Ok(Reached::Ended { reason, possibly_delivered }),
        ) => Ok(Reached::Ended { reason, possibly_delivered: one || possibly_delivered }),
        (_, stage @ Ok(Reached::Stage(_))) | (stage @ Ok(_), _) => stage,
    }
}

/// What the wait at one place came to.
enum Found {
    Reached(Reached),
    /// It is in these places now, and has to be waited for in each of them.
    Spread(Arc<[EntryRef]>),
    /// The same, and this is what has become of other copies: they are kept as dead letters, and nothing more is said of those.
    Copies(Vec<Reached>, Vec<EntryRef>),
}

/// How long to wait before it is looked once more for what lives and was not found where it is.
const AGAIN: Duration = Duration::from_millis(20);

/// How often a message is followed to where it has moved, as what is durable says, before it is given up.
const MAX_MOVES: usize = 8;

/// Where a message is, as what is durable says.
#[derive(Debug, PartialEq)]
enum Whereabouts {
    /// All in one place, or what the wait for one copy is about.
    One(Located),
    /// In these places, one for each device. Those that are over and kept as dead letters stand beside.
    Several(Vec<Located>, Vec<EntryRef>),
}

impl Whereabouts {
    /// Of a message that was in one place for all of its devices (`slot` is none), or in one for each of them.
    fn of(found: &Outcome, slot: Option<Slot>, stage: Stage) -> Option<Self> {
        let copies = &found.copies;
        let places = || {
            let located = copies.iter().map(|copy| copy.located).collect::<Option<Vec<_>>>()?;
            let is_letter = |located: &Located| located.entry.is_some_and(|entry| entry.lane == LaneId::Dead);
            let (letters, others): (Vec<_>, Vec<_>) = located.into_iter().partition(is_letter);
            let others = others.iter().map(|located| located.entry).collect::<Option<Vec<_>>>()?;
            Some(Self::Several(letters, others))
        };
        match slot {
            _ if copies.is_empty() => found.located.map(Self::One),
            Some(slot) => copies.iter().find(|copy| copy.slot == slot)?.located.map(Self::One),
            None => places().or_else(|| {
                // What has become of it as a whole says nothing of each of them.
                let is_over =
                    |located: &Located| located.status.is_terminal() && stage != Stage::DeliveredAll;
                found.located.filter(is_over).map(Self::One)
            }),
        }
    }
}

/// An accepted message: durable as its [`Durability`](crate::Durability) promises.
#[derive(Clone, Debug)]
pub struct Receipt {
    id: MessageId,
    user: UserId,
    sender: Option<UserId>,
    /// Whom the sender means, when the outbox that holds it is another one.
    shown: Option<UserId>,
    accepted: Accepted,
    /// The message's conversation.
    key: Option<OrderingKey>,
    post: Post,
}

impl Receipt {
    pub(super) fn new(message: &Message, user: UserId, accepted: Accepted, post: Post) -> Self {
        let (id, key) = (message.id(), message.ordering_key().cloned());
        let sender = message.sender().cloned();
        Self { id, user, sender, shown: None, accepted, key, post }
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

    /// Waits until the message reaches `stage`, or ends otherwise. Put a timeout around it, or use
    /// [`Receipt::reached_within`]: a message for someone who is away may wait for weeks.
    ///
    /// Of a message for several devices the first one counts, and it ends otherwise when the last copy has; with
    /// [`Stage::DeliveredAll`] all of them count, and it ends otherwise when one copy does; also of one that is spread over
    /// devices only when its time comes, or that of what it waits for. [`Stage::Read`] is waited for once a copy was delivered, and is
    /// reached at once where a mark lies at its place or ahead of it; of a conversation whose mark was forgotten
    /// ([`Config::max_read_marks`](crate::Config::max_read_marks)) it is reached with the next one.
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
        let wait_at = |entry| Box::pin(self.reached_at(entry, stage));
        let mut copies: Vec<_> = self.entries().into_iter().map(wait_at).collect();
        let mut so_far = None;
        poll_fn(|context| {
            let mut at = 0;
            while let Some(copy) = copies.get_mut(at) {
                let Poll::Ready(reached) = copy.as_mut().poll(context) else {
                    at += 1;
                    continue;
                };
                drop(copies.swap_remove(at));
                let over = match reached {
                    Ok(Found::Reached(reached)) => vec![Ok(reached)],
                    Ok(Found::Spread(places)) => {
                        copies.extend(places.iter().copied().map(wait_at));
                        continue;
                    }
                    Ok(Found::Copies(over, places)) => {
                        copies.extend(places.into_iter().map(wait_at));
                        over.into_iter().map(Ok).collect()
                    }
                    Err(error) => vec![Err(error)],
                };
                for reached in over {
                    let is_last_word = match (&reached, stage) {
                        // One is enough; or it takes all of them, and one has failed.
                        (Ok(Reached::Stage(_)), stage) => stage != Stage::DeliveredAll,
                        (_, stage) => stage == Stage::DeliveredAll,
                    };
                    if is_last_word {
                        return Poll::Ready(reached);
                    }
                    so_far = Some(match so_far.take() {
                        Some(so_far) => both(so_far, reached),
                        None => reached,
                    });
                }
                if copies.is_empty() {
                    return Poll::Ready(so_far.take().unwrap_or_else(|| Err(self.forgotten())));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// As [`Receipt::reached`], but for no longer than this: `None` when that was not enough.
    ///
    /// # Errors
    /// [`WatchError`]; the message is unaffected.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn reached_within(
        &self,
        stage: Stage,
        deadline: Duration,
    ) -> Result<Option<Reached>, WatchError> {
        match tokio::time::timeout(deadline, self.reached(stage)).await {
            Ok(reached) => reached.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// What the copy at this place comes to, wherever it goes from there.
    async fn reached_at(&self, entry: EntryRef, stage: Stage) -> Result<Found, WatchError> {
        let until = if stage == Stage::Read { Stage::Delivered } else { stage };
        let mut at = entry;
        for _ in 0..MAX_MOVES {
            let (reply, answer) = oneshot::channel();
            let mail = Mail::Watch { user: self.user.clone(), entry: at, stage: until, reply };
            self.post.mail.send(mail).await.map_err(|_| Closed)?;
            match answer.await.map_err(|_| self.forgotten())? {
                Seen::Reached(at, Reached::Stage(_)) if stage == Stage::Read => {
                    return self.read_at(at.seq).await.map(Found::Reached);
                }
                Seen::Reached(_, reached) => return Ok(Found::Reached(reached)),
                Seen::Spread(places) => return Ok(Found::Spread(places)),
                Seen::Gone => {}
            }
            // Nobody remembers it: what is durable says how it ended, or where it waits.
            let located = match self.locate(at, stage).await? {
                Whereabouts::One(located) => located,
                Whereabouts::Several(letters, places) => {
                    let ended =
                        |letter: &Located| Reached::of(until, letter.status, letter.possibly_delivered);
                    return Ok(Found::Copies(letters.iter().filter_map(ended).collect(), places));
                }
            };
            let reached = Reached::of(until, located.status, located.possibly_delivered);
            match (reached, located.entry) {
                (Some(Reached::Stage(_)), Some(at)) if stage == Stage::Read => {
                    return self.read_at(at.seq).await.map(Found::Reached);
                }
                // Where it was is not known, and so neither whether it was read.
                (Some(Reached::Stage(_)), None) if stage == Stage::Read && located.read.is_none() => break,
                (Some(Reached::Stage(_)), _) => return Ok(Found::Reached(Reached::Stage(stage))),
                (Some(ended), _) => return Ok(Found::Reached(ended)),
                (None, Some(moved_to)) => {
                    // It has settled a moment ago, and its driver does not know of that yet.
                    if moved_to == at {
                        tokio::time::sleep(AGAIN).await;
                    }
                    at = moved_to;
                }
                (None, None) => break,
            }
        }
        Err(self.forgotten())
    }

    /// What is durable says of where a message is that was at this place, or its copy there.
    async fn locate(&self, entry: EntryRef, stage: Stage) -> Result<Whereabouts, WatchError> {
        let (reply, answer) = oneshot::channel();
        let target = Target { user: self.user.clone(), id: self.id, sender: Some(self.sender.clone()) };
        let mail = Mail::Operate { operation: Operation::Locate(target), reply };
        self.post.mail.send(mail).await.map_err(|_| Closed)?;
        let found = match answer.await.map_err(|_| Closed)? {
            Ok(found) => found,
            Err(OperationError::NotWaiting) => return Err(WatchError::Forgotten),
            Err(error) => return Err(WatchError::NotFound(error)),
        };
        Whereabouts::of(&found, entry.lane.slot(), stage).ok_or(WatchError::Forgotten)
    }

    /// Waits until what was delivered at this place has been read.
    async fn read_at(&self, place: Seq) -> Result<Reached, WatchError> {
        let (reply, marked) = oneshot::channel();
        let (user, key) = (self.user.clone(), self.key.clone());
        let mail = Mail::WatchRead { user: user.clone(), key: key.clone(), place, reply };
        self.post.mail.send(mail).await.map_err(|_| Closed)?;
        // From now on whatever is marked is heard of; what was marked before has to be asked for.
        let (reply, known) = oneshot::channel();
        let mail = Mail::Operate { operation: Operation::ReadUpTo(user, key), reply };
        self.post.mail.send(mail).await.map_err(|_| Closed)?;
        let known = known.await.map_err(|_| Closed)?.map_err(WatchError::NotRead)?;
        if known.read.is_none_or(|mark| mark.up_to < place) {
            marked.await.map_err(|_| self.forgotten())?;
        }
        Ok(Reached::Stage(Stage::Read))
    }

    fn forgotten(&self) -> WatchError {
        match self.post.mail.is_closed() {
            true => WatchError::Closed(Closed),
            false => WatchError::Forgotten,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_together_say_what_none_of_them_denies() {
        let ended = |reason, possibly_delivered| Ok(Reached::Ended { reason, possibly_delivered });
        let (expired, gone) = (EndReason::Expired, EndReason::DeviceGone);
        assert_eq!(both(ended(expired, true), ended(gone, false)), ended(gone, true));
        assert_eq!(both(ended(expired, false), ended(gone, true)), ended(gone, true));
        assert_eq!(both(ended(expired, false), ended(gone, false)), ended(gone, false));
        let forgotten = || Err(WatchError::Forgotten);
        assert_eq!(both(forgotten(), ended(gone, false)), forgotten());
        assert_eq!(both(ended(gone, false), forgotten()), forgotten());
        let all = || Ok(Reached::Stage(Stage::DeliveredAll));
        assert_eq!(both(all(), all()), all());
    }
}
