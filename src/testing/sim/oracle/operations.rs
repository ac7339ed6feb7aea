//! What hosts asked to be withdrawn, and whether the answers are true.

use std::sync::Arc;

use super::super::plan::Plan;
use super::super::random::Random;
use super::Oracle;
use super::places::letters_before;
use crate::id::UserId;
use crate::machine::{DeadLetter, Operation, OperationError, Outcome, Ticket};
use crate::message::Message;
use crate::record::{Accept, Admission, End, LaneId, Record, Seq};
use crate::status::EndReason;
use crate::time::Timestamp;

/// An operation that waits for its answer.
#[derive(Clone, Debug)]
pub(in super::super) struct Asked {
    operation: Operation,
    /// What lived and was known to the machine when it was asked, if that was all that lived.
    lived: Option<Vec<Seq>>,
    /// What had been answered, and was not durable then.
    promised: Vec<Message>,
}

impl Oracle {
    /// An operation was handed to the engine. `told` says whether the machines know all that is durable.
    pub(in super::super) fn asked(&mut self, ticket: Ticket, operation: Operation, told: bool) {
        if let Operation::Replace(_, message) = &operation {
            self.sent_alone(message);
        }
        let lived =
            self.kept().filter(|(_, kept)| is_about(&operation, &kept.accept)).map(|(seq, _)| *seq).collect();
        let takes_away = matches!(
            operation,
            Operation::Cancel(_) | Operation::Replace(..) | Operation::Reprioritise(..) | Operation::Purge(_)
        );
        let is_meant = |message: &&Message| {
            takes_away && is_about(&operation, &Accept::new(Message::clone(message), Timestamp::ZERO))
        };
        let promised = self.promised.iter().filter(is_meant);
        let promised =
            promised.filter(|message| self.place_of_promised(message).is_none()).cloned().collect();
        self.withdrawals.push(operation.clone());
        self.operations.insert(ticket, Asked { operation, lived: told.then_some(lived), promised });
    }

    /// Where a message went that was answered when it was written.
    fn place_of_promised(&self, message: &Message) -> Option<Seq> {
        let places = self.by_identity.get(&super::identity(message))?.iter().rev();
        let is_it = |seq: &&Seq| {
            let kept = self.messages.get(seq);
            kept.is_some_and(|kept| super::same_content(&kept.accept.message, message))
        };
        places.copied().find(|seq| is_it(&seq))
    }

    /// Whether somebody asked for this message to end like this, in whatever life.
    pub(super) fn was_withdrawn(withdrawals: &[Operation], accept: &Accept, reason: EndReason) -> bool {
        withdrawals.iter().any(|operation| operation.reason() == Some(reason) && is_about(operation, accept))
    }

    /// Every message that was to take the place of another.
    pub(super) fn replacements(&self) -> impl Iterator<Item = &Message> {
        self.withdrawals.iter().filter_map(|operation| match operation {
            Operation::Replace(_, message) => Some(message),
            _ => None,
        })
    }

    /// The place of some dead letter of a user, now or before.
    pub(in super::super) fn some_letter(&self, user: &UserId, random: &mut Random) -> Option<Seq> {
        let is_theirs = |kept: &super::Kept| {
            kept.accept.lane() == LaneId::Dead && kept.accept.message.recipient() == user
        };
        let places: Vec<_> =
            self.messages.iter().filter(|(_, kept)| is_theirs(kept)).map(|(seq, _)| *seq).collect();
        places.get(random.index(places.len() + 1)).copied()
    }

    /// What takes a message's place is durable with its end, and the end with it.
    pub(super) fn check_units(&mut self, group: &[(Seq, Record)], plan: &Plan) {
        let mut previous: Option<&Arc<Accept>> = None;
        let mut goes_on = false;
        let mut newcomer = None;
        let end = (Seq::MAX, None);
        for (seq, record) in group.iter().map(|(seq, record)| (*seq, Some(record))).chain([end]) {
            let end = match record {
                Some(Record::End(end)) => Some(end),
                _ => None,
            };
            // One message may take the place of several copies.
            let is_another = goes_on && end.is_some_and(|end| end.reason == EndReason::Replaced);
            goes_on = end.is_some_and(|end| end.reason == EndReason::Replaced);
            if let Some(wrong) = what_is_torn(previous.map(Arc::as_ref), end).filter(|_| !is_another) {
                self.fail(format!("before {seq:?}: {wrong}"));
            }
            if let (Some(accept), Some(end)) = (previous, end.filter(|end| end.reason == EndReason::Moved))
                && accept.admission == Admission::Moved
            {
                self.moved_to.insert(end.seq, seq.prev());
            }
            if let Some(end) = end.filter(|end| end.reason == EndReason::Evicted) {
                self.check_evicted(newcomer, end);
            }
            if let Some(end) = end {
                self.check_place(previous, end, seq, plan, letters_before(group, end, seq));
            }
            previous = match record {
                Some(Record::Accept(accept)) => Some(accept),
                _ => None,
            };
            let makes_way =
                end.is_some_and(|end| matches!(end.reason, EndReason::Evicted | EndReason::Replaced));
            newcomer = if makes_way { newcomer } else { previous };
        }
    }

    /// An operation was answered. `told` says whether the machines know all that is durable.
    pub(in super::super) fn operated(
        &mut self,
        ticket: Ticket,
        result: &Result<Outcome, OperationError>,
        told: bool,
    ) {
        let Some(Asked { operation, lived, promised }) = self.operations.remove(&ticket) else {
            return self.fail(format!("operation {ticket:?} was answered twice, or never asked"));
        };
        let about = |accept: &Accept| is_about(&operation, accept);
        let reason = operation.reason();
        let by_it = |kept: &&super::Kept| reason.is_some() && kept.withdrawn == reason && about(&kept.accept);
        let ended = self.messages.iter().filter(|(_, kept)| by_it(kept));
        let may_have_arrived = ended.filter(|(seq, _)| self.may_have_arrived(**seq)).count();
        let withdrawn = self.messages.values().filter(by_it);
        let (withdrawn, offered) =
            withdrawn.fold((0, 0), |(n, offered), kept| (n + 1, offered + u32::from(kept.offered)));
        let is_purge = matches!(operation, Operation::Purge(_));
        let place = |seq| if is_purge { self.place_followed(seq) } else { self.place_of(seq) };
        let promised: Vec<_> = promised.iter().map(|message| self.place_of_promised(message)).collect();
        let is_on_its_way = promised.contains(&None);
        let still = lived.iter().flatten().chain(promised.iter().flatten()).map(|seq| place(*seq));
        let lives = |seq: &Seq| self.messages.get(seq).is_some_and(|kept| kept.end.is_none());
        // Dead letters with a collapse key may stay, if that is said.
        let is_requeue = matches!(operation, Operation::Requeue(_));
        let may_stay = |seq: &Seq| {
            let kept = self.messages.get(seq);
            is_requeue && kept.is_some_and(|kept| kept.accept.message.collapse_key().is_some())
        };
        let (stay, still): (Vec<_>, Vec<_>) = still.filter(lives).partition(may_stay);
        let (stay, still) = (stay.len(), still.first().copied());
        let is_one = operation.target().is_some();
        let copies = self.most_copies(&operation);
        let wrong = match result {
            Ok(_) if !told && matches!(operation, Operation::Letters(_)) => None,
            Ok(done) if operation.only_reads() => {
                self.what_is_wrong_with(&operation, done, lived.as_deref(), told)
            }
            Ok(done) if !self.is_in_place(&operation, done) => {
                Some("with nothing, or something else, in its place")
            }
            Ok(_) if matches!(operation, Operation::Unregister(..)) => None,
            Ok(done) if matches!(operation, Operation::MarkRead(..)) => {
                let is_durable = self.is_read(operation.user(), done.read);
                (!is_durable).then_some("which is not durable")
            }
            Ok(done) if done.messages > withdrawn => Some("more than has a durable end"),
            Ok(Outcome { messages: 0, accepted: Some(known), .. }) if known.duplicate => None,
            Ok(done) if is_one && !(1..=copies).contains(&done.messages) => Some("not one message"),
            Err(OperationError::Offered) if !self.may_be_offered(&operation) => {
                Some("although none that it can mean was ever offered")
            }
            Ok(done) if is_one && withdrawn == 1 && done.possibly_delivered < offered => {
                Some("without admitting that it may have been delivered")
            }
            Ok(done) if done.possibly_delivered as usize > may_have_arrived => {
                Some("as if more might have been delivered than anybody can have")
            }
            Ok(_) if is_purge && is_on_its_way => Some("leaving one on its way that had been answered"),
            Err(OperationError::NotWaiting) if is_on_its_way => {
                Some("although one that had been answered is on its way")
            }
            Ok(_) if !is_one && still.is_some() => Some("leaving one that lived"),
            Ok(done) if stay > done.superseded as usize => Some("leaving a letter without saying so"),
            Err(OperationError::Superseded) if still.is_some() => Some("although one could be sent again"),
            Err(OperationError::NotWaiting) if !is_one => Some("as a purge that found nothing to look for"),
            Err(OperationError::NotWaiting) if still.is_some() => Some("although one waits"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            self.fail(format!(
                "{operation:?} was answered {result:?}, {wrong}: {still:?}, {withdrawn} withdrawn"
            ));
        }
    }

    /// Where a message is now, however often it has moved.
    pub(super) fn place_of(&self, mut seq: Seq) -> Seq {
        while let Some(next) = self.moved_to.get(&seq) {
            seq = *next;
        }
        seq
    }

    /// Whether what an operation says has taken a message's place is durable there, and what was asked for.
    fn is_in_place(&self, operation: &Operation, done: &Outcome) -> bool {
        let found = done.accepted.and_then(|accepted| self.messages.get(&accepted.entry.seq));
        let accept = found.map(|kept| &kept.accept);
        let found = accept.map(|accept| &accept.message);
        match operation {
            Operation::Replace(_, message) => {
                let found_bare = found.map(|found| found.clone().without_schedule().without_devices());
                // It has the collapse key of what it replaced, unless that was the newest no more.
                let bare = message.clone().without_schedule().without_devices();
                let bare = found.map_or(bare.clone(), |found| bare.with_collapse_of(found));
                found_bare == Some(bare) || is_duplicate_of(done, message, found)
            }
            Operation::Reprioritise(_, priority) => accept
                .is_some_and(|found| found.message.priority() == *priority && is_about(operation, found)),
            // Another one may have sent them again.
            Operation::Requeue(_) => done.messages > 0 || done.accepted.is_none(),
            _ => done.accepted.is_none(),
        }
    }

    /// The most places that one message has which an operation can mean.
    fn most_copies(&self, operation: &Operation) -> u32 {
        let meant = self.messages.values().filter(|kept| is_about(operation, &kept.accept));
        meant.map(|kept| kept.accept.device.map_or(1, |device| device.among.len())).max().unwrap_or(1)
    }

    /// What is wrong with the dead letters that were shown.
    fn what_is_wrong_with(
        &self,
        operation: &Operation,
        done: &Outcome,
        lived: Option<&[Seq]>,
        told: bool,
    ) -> Option<&'static str> {
        let (after, max) = match operation {
            Operation::Inspect(_, after, max) => (after, max),
            Operation::ReadUpTo(user, _) if !self.is_read(user, done.read) => {
                return Some("further than is durable");
            }
            Operation::Devices(user) => return self.what_is_wrong_with_list(user, &done.devices),
            Operation::Ledger(user) => return self.what_is_wrong_with_answer(user, &done.ledger),
            Operation::Letters(user) => return self.what_is_wrong_with_letters(user, done.dead_letters),
            Operation::Locate(target) => return self.what_is_wrong_with_place(target, done, told),
            _ => return None,
        };
        let places: Vec<_> = done.letters.iter().map(|letter| letter.place).collect();
        let is_true = |letter: &DeadLetter| {
            let kept = self.messages.get(&letter.place);
            kept.is_some_and(|kept| {
                is_about(operation, &kept.accept) && kept.accept.message == letter.message
            })
        };
        let last = places.last().copied().unwrap_or(Seq::MAX);
        let still = |seq: &&Seq| self.messages.get(seq).is_some_and(|kept| kept.end.is_none());
        let missing = lived.into_iter().flatten().filter(|seq| *after < **seq && **seq <= last).filter(still);
        match () {
            () if !done.letters.iter().all(is_true) => Some("with a letter that is none"),
            () if !places.is_sorted() || places.len() > *max => {
                Some("out of order, or with more than asked for")
            }
            () if missing.into_iter().any(|seq| !places.contains(seq)) => Some("leaving one out"),
            () => None,
        }
    }

    /// Whether a message that the operation can mean was offered, or may have been.
    fn may_be_offered(&self, operation: &Operation) -> bool {
        let mut meant = self.messages.iter().filter(|(_, kept)| is_about(operation, &kept.accept));
        meant.any(|(seq, _)| self.may_have_arrived(*seq))
    }

    /// Marks a message whose end by an operation is durable.
    pub(super) fn note_withdrawn(&mut self, seq: Seq, reason: EndReason) {
        let by_operation = matches!(reason, EndReason::Cancelled | EndReason::Replaced | EndReason::Moved);
        if let Some(kept) = self.messages.get_mut(&seq).filter(|_| by_operation) {
            kept.withdrawn = Some(reason);
        }
    }
}

/// A repeat may differ in how long and how durably.
fn is_duplicate_of(done: &Outcome, message: &Message, found: Option<&Message>) -> bool {
    done.accepted.is_some_and(|accepted| accepted.duplicate)
        && found.is_some_and(|found| super::same_content(found, message))
}

fn is_about(operation: &Operation, accept: &Accept) -> bool {
    let looks_there = match accept.lane() {
        LaneId::Dead => operation.is_about_dead() || matches!(operation, Operation::Purge(_)),
        _ => !operation.is_about_dead(),
    };
    let looks_there = looks_there || matches!(operation, Operation::Locate(_));
    looks_there && operation.user() == accept.message.recipient() && operation.means(accept)
}

/// What is wrong with an acceptance and the end that stands right behind it, if one does.
fn what_is_torn(accept: Option<&Accept>, end: Option<&End>) -> Option<&'static str> {
    let reason = end.map(|end| end.reason);
    let is_letter = end.is_some_and(|end| end.lane == LaneId::Dead);
    let fits = match accept.map(|accept| accept.admission) {
        Some(Admission::Moved) => reason == Some(EndReason::Moved) && !is_letter,
        Some(Admission::Requeued { .. }) => reason == Some(EndReason::Moved) && is_letter,
        Some(Admission::Buried(burial)) => reason == Some(burial.reason) && !is_letter,
        Some(Admission::New) => reason != Some(EndReason::Moved),
        None => !matches!(reason, Some(EndReason::Moved | EndReason::Replaced)),
    };
    let joined = matches!(reason, Some(EndReason::Moved | EndReason::Replaced));
    let same = || accept.map(|accept| accept.message.recipient()) == end.map(|end| &end.user);
    match () {
        () if !fits => Some("a message took a place that nobody left, or the other way round"),
        () if joined && !same() => Some("a message took the place of somebody else's"),
        () => None,
    }
}
