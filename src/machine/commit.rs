//! Records on their way to the disk: what makes one commit, and what becomes of it.

use std::sync::Arc;

use super::Machine;
use super::fanout::Weighing;
use super::io::{Accepted, Action, CommitId, EntryRef, LoadId, Ticket};
use super::operate::OperationId;
use super::operation::Outcome;
use super::refusal::{OperationError, Refusal};
use super::user::{Inbound, Totals};
use crate::message::{Durability, Message};
use crate::record::{Accept, LaneId, Record, Seq};
use crate::time::Timestamp;

/// What a record takes in a commit at most, besides a message's cost.
const FACT_BYTES: u64 = 1024;

/// A record that is being made durable.
#[derive(Debug)]
pub(super) enum Pending {
    /// A new message, and who waits for it.
    Accept(PendingAccept),
    /// Anything else; if the commit fails, it goes into the next one.
    Fact(Record),
    /// A fact that is never in another commit than what stands before it.
    Joined(Record),
}

impl Pending {
    /// Whether its sender asked for no more than a write. Another engine's delivery is never confirmed before it is
    /// durable.
    fn waits_for_write(&self) -> bool {
        let Self::Accept(PendingAccept { accept, answered, unit, .. }) = self else { return false };
        // Of a batch, a part that is answered would be kept when the rest is refused.
        let alone = *unit == Unit::Alone && accept.origin.is_none();
        !answered && alone && accept.message.durability() == Durability::Buffered
    }

    /// Whether it must be in one commit with what stands before it.
    fn is_joined(&self) -> bool {
        match self {
            Self::Accept(pending) => pending.unit == Unit::Joined,
            Self::Fact(_) => false,
            Self::Joined(_) => true,
        }
    }

    /// What it takes in a commit at most.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Accept(pending) => PendingAccept::bytes(&pending.accept.message),
            Self::Fact(_) | Self::Joined(_) => FACT_BYTES,
        }
    }
}

/// Whether a message is accepted together with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// By itself.
    Alone,
    /// The first of a batch.
    First,
    /// In one commit with what stands before it.
    Joined,
}

/// A message that is being made durable.
#[derive(Debug)]
pub(super) struct PendingAccept {
    pub(super) accept: Arc<Accept>,
    /// The digest of its identity; none for inbound messages, which the inbox recognises.
    pub(super) key: Option<u128>,
    /// Its sender, if it was sent.
    pub(super) ticket: Option<Ticket>,
    /// Its sender has been told, or nobody sent it. If the commit fails, it goes into the next one.
    pub(super) answered: bool,
    /// Whose place it takes, as the end says that is joined to it.
    pub(super) instead: Option<Instead>,
    pub(super) unit: Unit,
    /// It is the last copy of what was sent: the next of its collapse key may follow.
    pub(super) is_last: bool,
    /// An end that is joined to it or to another copy cannot be undone, and so neither can it.
    pub(super) is_kept: bool,
}

/// What a message is accepted instead of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instead {
    /// The operation that wants it so.
    pub(super) operation: Option<OperationId>,
    /// The place it takes.
    pub(super) seq: Seq,
    /// What the ends that are joined to it give back to the quotas.
    pub(super) gives_back: Totals,
}

/// Who waits for a message that is being made durable: a repeat of it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Repeat {
    Send(Ticket),
    /// A replacement that was asked for again.
    Operation(Ticket),
    /// What is parked there, which takes up where it was once it is decided.
    Parked(LoadId),
}

impl PendingAccept {
    /// By itself, with nobody who waits for it.
    pub(super) fn of(accept: Arc<Accept>) -> Self {
        let (key, ticket, instead, unit) = (None, None, None, Unit::Alone);
        Self { accept, key, ticket, answered: false, instead, unit, is_last: false, is_kept: false }
    }

    /// The copies of a message that was sent, never parted from one another.
    pub(super) fn sent(
        accepts: Vec<Arc<Accept>>,
        key: Option<u128>,
        ticket: Ticket,
        unit: Unit,
    ) -> impl Iterator<Item = Self> {
        let copies = accepts.len();
        let first = if copies > 1 && unit == Unit::Alone { Unit::First } else { unit };
        (1..).zip(accepts).map(move |(n, accept)| Self {
            key: key.filter(|_| n == 1),
            ticket: (n == 1).then_some(ticket),
            unit: if n == 1 { first } else { Unit::Joined },
            is_last: n == copies,
            ..Self::of(accept)
        })
    }

    /// What a message takes in a commit at most.
    pub(super) fn bytes(message: &Message) -> u64 {
        message.cost().saturating_add(FACT_BYTES)
    }
}

/// A set of records that was handed out.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) id: CommitId,
    pub(super) records: Vec<Pending>,
}

impl Machine {
    /// The journal takes commits again, or not.
    pub(super) fn handle_writable(&mut self, writable: bool) {
        self.writable = writable;
        if !writable {
            self.doomed = self.last_commit;
            self.joints.failed();
        }
    }

    /// Whether a commit that is handed out now can be stored. What was handed out before the journal failed may fail when
    /// it takes commits again already: until that is known, nothing may go past it, nor lean on it.
    pub(super) fn is_writable(&self) -> bool {
        self.writable && self.commits.front().is_none_or(|open| open.id > self.doomed)
    }

    /// How many of the gathered records make one commit: a group must fit into the journal.
    fn piece(&self) -> usize {
        let max = self.config.max_commit_bytes.get();
        let (mut bytes, mut weighing) = (0_u64, Weighing::default());
        let fits = self.current.iter().take_while(|pending| {
            bytes = bytes.saturating_add(weighing.bytes(pending));
            bytes <= max
        });
        let n = fits.count().max(1);
        let joined = |n: &usize| self.current.get(*n).is_some_and(Pending::is_joined);
        // What is joined is not parted: it waits as a whole, or, when it comes first, goes as a whole. A message fits by
        // itself, and so does a batch; a fact that is joined to a message may be over the bound by itself.
        let start = (0..=n).rev().find(|n| !joined(n)).unwrap_or(0);
        let end = (n..).find(|n| !joined(n)).unwrap_or(n);
        if start > 0 { start } else { end }
    }

    /// Hands out what has gathered, if the disk takes it.
    pub(super) fn take_commit(&mut self) -> Option<Action> {
        if self.current.is_empty() || !self.is_writable() {
            return None;
        }
        self.last_commit.0 += 1;
        let commit = self.last_commit;
        let pending: Vec<_> = self.current.drain(..self.piece()).collect();
        let accepts = pending.iter().any(|pending| matches!(pending, Pending::Accept(_)));
        let written = pending.iter().any(Pending::waits_for_write);
        let records = pending.iter().map(|pending| match pending {
            Pending::Accept(pending) => Record::Accept(pending.accept.clone()),
            Pending::Fact(record) | Pending::Joined(record) => record.clone(),
        });
        let records: Vec<_> = records.collect();
        self.open_records += records.len();
        self.commits.push_back(Commit { id: commit, records: pending });
        Some(Action::Persist { commit, records, accepts, written })
    }

    /// The process may crash now: answers those who asked for no more.
    pub(super) fn handle_written(&mut self, commit: CommitId) {
        let at = self.commits.binary_search_by_key(&commit, |open| open.id);
        let Some(found) = at.ok().and_then(|at| self.commits.get_mut(at)) else { return };
        let mut answers = Vec::new();
        for pending in &mut found.records {
            if pending.waits_for_write()
                && let Pending::Accept(pending) = pending
            {
                pending.answered = true;
                answers.extend(pending.ticket.map(|ticket| (ticket, pending.accept.clone())));
            }
        }
        for (ticket, accept) in answers {
            self.promised.make(accept.message.recipient());
            let lane = accept.lane();
            let entry = EntryRef { lane, seq: Seq::ZERO };
            self.answer(ticket, Ok(Accepted::at(entry)));
        }
    }

    fn answer_repeats(&mut self, key: Option<u128>, result: Result<Accepted, Refusal>) {
        if self.repeats.is_empty() {
            return;
        }
        let repeats = key.and_then(|key| self.repeats.remove(&key)).unwrap_or_default();
        self.answer_waiting(repeats, &result);
    }

    /// Answers repeats of a message, whatever became of that.
    pub(super) fn answer_waiting(&mut self, repeats: Vec<Repeat>, result: &Result<Accepted, Refusal>) {
        let answer = || result.clone().map(Accepted::again);
        for repeat in repeats {
            match repeat {
                Repeat::Send(ticket) => {
                    self.parked_count = self.parked_count.saturating_sub(1);
                    self.answer(ticket, answer());
                }
                Repeat::Operation(ticket) => {
                    self.parked_count = self.parked_count.saturating_sub(1);
                    let result = answer().map(Outcome::known).map_err(OperationError::from);
                    self.actions.push_back(Action::Done { ticket, result });
                }
                // Whose outcome is not known cannot be tried as if it were new.
                Repeat::Parked(load) => {
                    let unknown =
                        result.as_ref().err().filter(|refusal| **refusal == Refusal::OutcomeUnknown);
                    self.unpark(self.now, load, unknown);
                }
            }
        }
    }

    /// The records are durable: now they are state.
    pub(super) fn handle_persisted(&mut self, now: Timestamp, commit: CommitId, first: Seq) {
        if self.commits.front().is_none_or(|c| c.id != commit) {
            return;
        }
        let Some(commit) = self.commits.pop_front() else { return };
        self.open_records = self.open_records.saturating_sub(commit.records.len());
        let mut seq = first;
        for pending in commit.records {
            match pending {
                Pending::Accept(pending) => self.accepted(now, seq, pending),
                Pending::Fact(record) | Pending::Joined(record) => self.fact_durable(now, seq, record),
            }
            seq = seq.plus(1);
            self.applied = seq;
        }
        self.tell_operations();
        self.take_up_carried();
        self.take_up_operations();
        self.sweep_ended();
    }

    pub(super) fn accepted(&mut self, now: Timestamp, seq: Seq, pending: PendingAccept) {
        let PendingAccept { accept, key, ticket, answered, instead, is_last, .. } = pending;
        self.pending = self.pending.saturating_sub(usize::from(ticket.is_some()));
        let entry = EntryRef { lane: accept.lane(), seq };
        if entry.lane != LaneId::Dead {
            self.reserved.sub(accept.message.cost());
        }
        let inbound = accept.origin.and_then(|origin| {
            self.users.get_mut(accept.message.recipient()).and_then(|user| user.inbound.remove(&origin))
        });
        if ticket.is_some() {
            self.dependent_decided(&accept);
        }
        let accepted = Accepted::of(entry, &accept);
        let attached = self.apply_accept(seq, &accept, key, true);
        self.has_come_in(&accept);
        match ticket {
            Some(_) if answered => self.promised.keep(accept.message.recipient(), seq),
            Some(ticket) => self.answer(ticket, Ok(accepted)),
            None => {}
        }
        if let Some(instead) = instead {
            self.place_taken(instead, &accept, entry);
        }
        // The end that follows says of which message it is.
        self.buried = (entry.lane == LaneId::Dead).then_some(seq);
        self.answer_repeats(key, Ok(accepted));
        self.answer_inbound(inbound, &Ok(accepted));
        match attached {
            true => self.offer_accepted(now, seq, &accept),
            false => self.arm_away(now, accept.message.recipient(), accept.expires()),
        }
        self.free_dependents(accept.message.recipient());
        // Now that it is wherever it may be offered from, the next of its collapse key may take its place.
        if is_last {
            self.collapsed(now, &accept, None);
        }
    }

    fn answer_inbound(&mut self, inbound: Option<Inbound>, result: &Result<Accepted, Refusal>) {
        for ticket in inbound.map(|inbound| inbound.waiting).unwrap_or_default() {
            self.parked_count = self.parked_count.saturating_sub(1);
            self.answer(ticket, result.clone().map(Accepted::again));
        }
    }

    /// The commit failed: new messages are refused, everything else goes into the next commit.
    pub(super) fn handle_persist_failed(&mut self, commit: CommitId, unknown: bool) {
        if self.commits.front().is_none_or(|c| c.id != commit) {
            return;
        }
        let Some(commit) = self.commits.pop_front() else { return };
        self.open_records = self.open_records.saturating_sub(commit.records.len());
        let refusal = if unknown { Refusal::OutcomeUnknown } else { Refusal::Degraded };
        let mut kept = self.undo_all(commit.records, &refusal);
        self.carried.append(&mut kept);
        // What came after a failed message must not be stored before it is sent again.
        let newer = core::mem::take(&mut self.current);
        self.current = self.undo_all(newer, &Refusal::Degraded);
        self.take_up_carried();
    }

    /// Undoes the new messages among these, and gives back the rest.
    fn undo_all(&mut self, records: Vec<Pending>, refusal: &Refusal) -> Vec<Pending> {
        let mut kept = Vec::new();
        for pending in records {
            match pending {
                Pending::Accept(pending) if !pending.answered && !pending.is_kept => {
                    self.undo(pending, refusal);
                }
                answered => kept.push(answered),
            }
        }
        kept
    }

    /// Once no commit is open, what failed ones left goes before what has come since.
    fn take_up_carried(&mut self) {
        if self.carried.is_empty() || !self.commits.is_empty() {
            return;
        }
        let newer = core::mem::replace(&mut self.current, core::mem::take(&mut self.carried));
        self.current.extend(newer);
    }

    fn undo(&mut self, pending: PendingAccept, refusal: &Refusal) {
        self.pending = self.pending.saturating_sub(usize::from(pending.ticket.is_some()));
        self.unclaim(&pending.accept);
        self.dependent_decided(&pending.accept);
        if let Some(key) = pending.key {
            self.dedup.cancel(key);
        }
        let user = self.users.get_mut(pending.accept.message.recipient());
        let inbound =
            pending.accept.origin.and_then(|origin| user.and_then(|user| user.inbound.remove(&origin)));
        if let Some(ticket) = pending.ticket {
            self.answer(ticket, Err(refusal.clone()));
        }
        if pending.is_last {
            self.collapsed(self.now, &pending.accept, Some(refusal));
        }
        self.answer_repeats(pending.key, Err(refusal.clone()));
        self.answer_inbound(inbound, &Err(refusal.clone()));
        self.evict_if_idle(pending.accept.message.recipient());
    }
}
