//! What is said of messages, and of whom, to whoever watches them.
//!
//! What is announced of a message that lives is what it is said to be when it is asked for: both come from [`living`].

use super::Machine;
use super::entry::EntryState;
use super::io::{Action, Change, EntryRef, Standing};
use crate::event::EventName;
use crate::id::{MessageId, UserId};
use crate::message::Message;
use crate::record::{Attempt, End};
use crate::status::{EndReason, Status};

/// Whose message it was, for those who follow a sender's or an event's: of what is not in memory when that is said. Nothing of
/// what it carries.
#[derive(Clone, Debug)]
pub(super) struct Whose {
    id: MessageId,
    sender: Option<UserId>,
    event: EventName,
}

impl Whose {
    pub(super) fn of(message: &Message) -> Self {
        Self { id: message.id(), sender: message.sender().cloned(), event: message.event().clone() }
    }

    pub(super) fn id(&self) -> MessageId {
        self.id
    }
}

/// Where a message stands that lives, by what it is doing, if it is in memory, and by its failed attempts that are durable.
pub(super) fn living(state: Option<EntryState>, attempts: u32) -> Status {
    match state {
        Some(EntryState::InFlight(_)) => Status::Sent,
        _ if attempts > 0 => Status::Retrying,
        _ => Status::Accepted,
    }
}

impl Machine {
    pub(super) fn announce(&mut self, user: &UserId, entry: EntryRef, status: Status) {
        let lane = self.users.get(user).map(|user| user.lane_ref(entry.lane));
        let message = lane.and_then(|lane| lane.entry(entry.seq)).map(|found| &found.accept.message);
        let attempts = lane.and_then(|lane| lane.attempts.get(&entry.seq)).map_or(0, |(n, _)| *n);
        let change = Change {
            user: user.clone(),
            entry,
            id: message.map(Message::id),
            sender: message.and_then(Message::sender).cloned(),
            event: message.map(Message::event).cloned(),
            status,
            possibly_delivered: false,
            attempts,
        };
        self.actions.push_back(Action::Announce(change));
    }

    /// A message waits again that a sink had. While the record of a failed attempt is on its way, nothing is said: that record
    /// says where it stands.
    pub(super) fn announce_given_back(&mut self, user: &UserId, entry: EntryRef) {
        let lane = self.users.get(user).map(|user| user.lane_ref(entry.lane));
        let Some((lane, found)) = lane.and_then(|lane| Some((lane, lane.entry(entry.seq)?))) else { return };
        let attempts = lane.attempts.get(&entry.seq).map_or(0, |(n, _)| *n);
        if found.failures == attempts {
            let status = living(Some(found.state()), attempts);
            self.announce(user, entry, status);
        }
    }

    /// A failed attempt is durable. If it is the last one and nobody has the message by now, that is where it stands.
    pub(super) fn announce_failed(&mut self, attempt: &Attempt) {
        let entry = EntryRef { lane: attempt.lane, seq: attempt.seq };
        let lane = self.users.get(&attempt.user).map(|user| user.lane_ref(attempt.lane));
        let rests = lane.and_then(|lane| lane.entry(attempt.seq)).is_some_and(|found| {
            let waits = matches!(found.state(), EntryState::Waiting | EntryState::Backoff(_));
            waits && found.failures == attempt.attempts
        });
        if rests {
            self.announce(&attempt.user, entry, Status::Retrying);
        }
    }

    /// Whose message has ended, whether it was in memory or not.
    pub(super) fn whose_end(&mut self, end: &End) -> Option<Whose> {
        let known = self.ending_of.remove(&end.seq);
        let lane = self.users.get(&end.user).map(|user| user.lane_ref(end.lane));
        let found = lane.and_then(|lane| lane.entry(end.seq));
        found.map(|found| Whose::of(&found.accept.message)).or(known)
    }

    pub(super) fn announce_end(&mut self, end: &End, entry: EntryRef, whose: Option<&Whose>) {
        if !end.counts() {
            return;
        }
        let change = Change {
            user: end.user.clone(),
            entry,
            id: whose.map(Whose::id).or(end.id),
            sender: whose.and_then(|whose| whose.sender.clone()),
            event: whose.map(|whose| whose.event.clone()),
            status: Status::Ended(end.reason),
            possibly_delivered: end.possibly_delivered && end.reason != EndReason::Delivered,
            attempts: end.attempts,
        };
        self.actions.push_back(Action::Announce(change));
    }

    /// Where a message stands, as far as memory knows.
    #[must_use]
    pub fn standing(&self, id: &UserId, entry: EntryRef) -> Standing {
        let user = self.users.get(id);
        let lane = user.map(|user| user.lane_ref(entry.lane));
        if let Some((lane, found)) = lane.and_then(|lane| Some((lane, lane.entry(entry.seq)?))) {
            let attempts = lane.attempts.get(&entry.seq).map_or(0, |(n, _)| *n);
            return Standing::Live(living(Some(found.state()), attempts));
        }
        let ended = lane.is_some_and(|lane| entry.seq <= lane.cursor || lane.ended.contains(&entry.seq));
        // Without a gap to the store, memory holds every message of the lane that lives.
        let whole =
            user.is_some_and(|user| user.is_known()) && lane.is_some_and(|lane| lane.is_known(entry.seq));
        match entry.seq >= self.settled || ended || whole {
            true => Standing::Gone,
            false => Standing::AskStore,
        }
    }

    /// Whether a sink has been handed a message that lives, as far as memory knows: it is or was on offer in this life, or an
    /// attempt has failed.
    #[must_use]
    pub fn was_sent(&self, id: &UserId, entry: EntryRef) -> bool {
        let lane = self.users.get(id).map(|user| user.lane_ref(entry.lane));
        lane.is_some_and(|lane| {
            let was_handed = lane.entry(entry.seq).is_some_and(|found| found.handed);
            was_handed || lane.attempts.contains_key(&entry.seq)
        })
    }
}
