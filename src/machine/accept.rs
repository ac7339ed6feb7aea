//! Admission: limits, dedup, quotas; and the records that are on their way to the disk.

use std::collections::HashSet;
use std::sync::Arc;

use super::Machine;
use super::dedup::{Known, Slot};
use super::io::{Accepted, Action, CommitId, Delivery, EntryRef, Operation, Query, Ticket};
use super::refusal::{OperationError, Refusal};
use super::user::{Inbound, Totals};
use crate::id::{OrderingKey, StreamId, UserId};
use crate::message::{Durability, Message, Priority};
use crate::record::{Accept, Origin, Record, Seq};
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
        let Self::Accept(PendingAccept { accept, answered, .. }) = self else { return false };
        !answered && accept.origin.is_none() && accept.message.durability() == Durability::Buffered
    }
}

/// A message that is being made durable.
#[derive(Debug)]
pub(super) struct PendingAccept {
    pub(super) accept: Arc<Accept>,
    /// The digest of its identity; none for inbound messages, which the inbox recognises.
    pub(super) key: Option<u128>,
    pub(super) ticket: Ticket,
    /// Its sender has been told, or nobody sent it. If the commit fails, it goes into the next one.
    pub(super) answered: bool,
    /// The operation that lets it take the place of another message.
    pub(super) operation: Option<Ticket>,
}

/// A set of records that was handed out.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) id: CommitId,
    pub(super) records: Vec<Pending>,
}

/// Lines in which a delivery was refused for now: what follows in the same line may not overtake it.
type Held = HashSet<(UserId, Priority, Option<OrderingKey>)>;

/// A send that waits for the store.
#[derive(Debug)]
pub(super) enum Parked {
    Send(Ticket, Message),
    Receive(Ticket, Box<Delivery>),
    Operate(Ticket, Operation, Seq),
}

/// What dedup says of a message that is to take the place of another.
pub(super) enum Newcomer {
    /// It is new, with this key, unless its sender's ids are not needed.
    Fits(Option<u128>),
    /// It was accepted before.
    Accepted(EntryRef),
    /// Its sender's ids must be read first.
    AskStore(Query),
}

impl Machine {
    pub(super) fn answer(&mut self, ticket: Ticket, result: Result<Accepted, Refusal>) {
        if result.is_err() {
            self.stats.refused += 1;
        }
        self.actions.push_back(Action::Answer { ticket, result });
    }

    /// Sends and operations that wait for a commit or a load.
    pub(super) fn unanswered(&self) -> usize {
        self.pending + self.parked_count + self.operations.len()
    }

    fn gate(&self, message: &Message) -> Result<(), Refusal> {
        let max = self.config.max_payload_bytes.get();
        if message.payload().len() > max {
            return Err(Refusal::PayloadTooLarge { bytes: message.payload().len(), max });
        }
        if self.draining {
            return Err(Refusal::ShuttingDown);
        }
        if !self.writable && message.durability() != Durability::Volatile {
            return Err(Refusal::Degraded);
        }
        if self.unanswered() >= self.config.max_pending.get() {
            return Err(Refusal::Overloaded);
        }
        Ok(())
    }

    pub(super) fn handle_send(&mut self, now: Timestamp, ticket: Ticket, message: Message) {
        let result = match self.gate(&message) {
            Err(refusal) => Err(refusal),
            Ok(()) if message.durability() == Durability::Volatile => self.send_volatile(now, message),
            Ok(()) => return self.send_durable(now, ticket, message),
        };
        self.answer(ticket, result);
    }

    fn send_durable(&mut self, now: Timestamp, ticket: Ticket, message: Message) {
        let sender = self.digester.user(message.sender());
        let key = self.digester.identity(message.sender(), message.recipient(), message.id());
        let content = self.digester.content(&message);
        match self.dedup.look_up(sender, key, now) {
            Known::AskStore => {
                let query = Query::Sender { sender, since: self.dedup.since(now) };
                return self.park(query, Parked::Send(ticket, message));
            }
            Known::Seen(slot) => return self.answer_repeat(ticket, key, slot, content, &message),
            Known::New => {}
        }
        if !self.ensure_totals(message.recipient()) {
            return self.park(Query::User(message.recipient().clone()), Parked::Send(ticket, message));
        }
        if let Err(refusal) = self.claim(&message, None) {
            self.answer(ticket, Err(refusal));
            return self.evict_if_idle(message.recipient());
        }
        self.dedup.reserve(key, Slot { content, seq: Seq::ZERO, at: now, sender });
        let accept = Arc::new(Accept { message, at: now, origin: None, moved: false });
        self.push_accept(accept, Some(key), ticket);
    }

    /// Whether a message may take the place of another one.
    pub(super) fn judge_newcomer(&mut self, message: &Message) -> Result<Newcomer, Refusal> {
        let now = self.now;
        let max = self.config.max_payload_bytes.get();
        if message.payload().len() > max {
            return Err(Refusal::PayloadTooLarge { bytes: message.payload().len(), max });
        }
        let sender = self.digester.user(message.sender());
        let key = self.digester.identity(message.sender(), message.recipient(), message.id());
        match self.dedup.look_up(sender, key, now) {
            Known::New => Ok(Newcomer::Fits(Some(key))),
            Known::AskStore => Ok(Newcomer::AskStore(Query::Sender { sender, since: self.dedup.since(now) })),
            Known::Seen(slot) if slot.content != self.digester.content(message) => Err(Refusal::Conflict),
            // It is on its way to the disk.
            Known::Seen(slot) if slot.seq == Seq::ZERO => Err(Refusal::Overloaded),
            Known::Seen(slot) => Ok(Newcomer::Accepted(EntryRef { lane: message.priority(), seq: slot.seq })),
        }
    }

    /// Records a message that takes the place of another one, whose end must be joined to it.
    pub(super) fn push_newcomer(&mut self, accept: Arc<Accept>, key: Option<u128>, operation: Ticket) {
        if let Some(key) = key {
            let message = &accept.message;
            let sender = self.digester.user(message.sender());
            let content = self.digester.content(message);
            self.dedup.reserve(key, Slot { content, seq: Seq::ZERO, at: accept.at, sender });
        }
        let (ticket, operation) = (operation, Some(operation));
        self.current.push(Pending::Accept(PendingAccept { accept, key, ticket, answered: true, operation }));
    }

    fn push_accept(&mut self, accept: Arc<Accept>, key: Option<u128>, ticket: Ticket) {
        self.pending += 1;
        self.current.push(Pending::Accept(PendingAccept {
            accept,
            key,
            ticket,
            answered: false,
            operation: None,
        }));
    }

    fn answer_repeat(&mut self, ticket: Ticket, key: u128, slot: Slot, content: u64, message: &Message) {
        if slot.content != content {
            return self.answer(ticket, Err(Refusal::Conflict));
        }
        self.stats.duplicates += 1;
        if slot.seq == Seq::ZERO {
            self.repeats.entry(key).or_default().push(ticket);
            self.parked_count += 1;
            return;
        }
        let entry = EntryRef { lane: message.priority(), seq: slot.seq };
        self.answer(ticket, Ok(Accepted { entry, duplicate: true }));
    }

    /// Takes the message's share of the quotas, or says which one is full. `instead` is what a message costs whose place
    /// it takes.
    pub(super) fn claim(&mut self, message: &Message, instead: Option<u64>) -> Result<(), Refusal> {
        let cost = message.cost();
        let (freed, freed_bytes) = (u32::from(instead.is_some()), instead.unwrap_or(0));
        let totals = &self.counters;
        let (messages, bytes) =
            (totals.live() + self.reserved.messages as u64, totals.live_bytes() + self.reserved.bytes);
        let (messages, bytes) = (messages.saturating_sub(freed.into()), bytes.saturating_sub(freed_bytes));
        let config = &self.config;
        if messages >= config.max_total_messages.get()
            || bytes.saturating_add(cost) > config.max_total_bytes.get()
        {
            return Err(Refusal::EngineFull { messages, bytes });
        }
        let (max_messages, max_bytes) = (config.max_user_messages.get(), config.max_user_bytes.get());
        let user = self.user_mut(message.recipient());
        let Totals { messages, bytes } = user.claimed();
        let (messages, bytes) = (messages.saturating_sub(freed), bytes.saturating_sub(freed_bytes));
        if messages >= max_messages || bytes.saturating_add(cost) > max_bytes {
            return Err(Refusal::OutboxFull { messages: messages.into(), bytes });
        }
        user.reserved.add(cost);
        self.reserved.add(cost);
        Ok(())
    }

    fn unclaim(&mut self, accept: &Accept) {
        let cost = accept.message.cost();
        self.reserved.sub(cost);
        if let Some(user) = self.users.get_mut(accept.message.recipient()) {
            user.reserved.sub(cost);
        }
    }

    /// Deliveries of another engine for this engine's inbox, in the order it offered them.
    pub(super) fn handle_receive(&mut self, now: Timestamp, batch: Vec<(Ticket, Delivery)>) {
        let mut held = Held::default();
        for (ticket, delivery) in batch {
            self.receive(now, ticket, delivery, &mut held);
        }
    }

    /// Takes one delivery, unless it would overtake one that was refused.
    fn receive(&mut self, now: Timestamp, ticket: Ticket, delivery: Delivery, held: &mut Held) {
        let message = &delivery.message;
        let recipient = message.recipient().clone();
        let line = (recipient.clone(), delivery.entry.lane, message.ordering_key().cloned());
        let ordered = !super::verdict::is_volatile(delivery.entry);
        if ordered && held.contains(&line) {
            return self.answer(ticket, Err(Refusal::Overloaded));
        }
        match self.try_receive(now, ticket, delivery) {
            Ok(None) => {}
            Ok(Some(accepted)) => self.answer(ticket, Ok(accepted)),
            Err(refusal) => {
                if ordered && !refusal.is_final() {
                    held.insert(line);
                }
                self.answer(ticket, Err(refusal));
            }
        }
        self.evict_if_idle(&recipient);
    }

    /// `None` when the answer comes later.
    fn try_receive(
        &mut self,
        now: Timestamp,
        ticket: Ticket,
        delivery: Delivery,
    ) -> Result<Option<Accepted>, Refusal> {
        let lane = delivery.entry.lane;
        self.gate(&delivery.message)?;
        if super::verdict::is_volatile(delivery.entry) {
            return self.send_volatile(now, delivery.message).map(Some);
        }
        if lane != delivery.message.priority() {
            return Err(Refusal::Conflict);
        }
        let recipient = delivery.message.recipient().clone();
        if !self.ensure_row(&recipient) {
            self.park(Query::User(recipient), Parked::Receive(ticket, Box::new(delivery)));
            return Ok(None);
        }
        let origin = Origin { stream: delivery.stream, seq: delivery.entry.seq };
        let (max_seen, max_lanes) = (self.config.max_inbox_seen.get(), self.config.max_inbox_lanes.get());
        if !self.user_mut(&recipient).has_inbox_room(origin.stream, lane, max_lanes) {
            return Err(Refusal::Overloaded);
        }
        self.note_floor(&recipient, origin.stream, lane, delivery.floor);
        let user = self.user_mut(&recipient);
        if user.inbox.get(&(origin.stream, lane)).is_some_and(|seen| origin.seq <= seen.floor) {
            return Err(Refusal::Obsolete);
        }
        if user.has_seen(origin, lane) {
            self.stats.duplicates += 1;
            return Ok(Some(Accepted { entry: EntryRef { lane, seq: Seq::ZERO }, duplicate: true }));
        }
        if let Some(inbound) = user.inbound.get_mut(&origin) {
            inbound.waiting.push(ticket);
            self.parked_count += 1;
            return Ok(None);
        }
        let seen = user.inbox.get(&(origin.stream, lane)).map_or(0, |seen| seen.above.len());
        if seen + user.inbound.len() >= max_seen {
            return Err(Refusal::Overloaded);
        }
        self.claim(&delivery.message, None)?;
        self.user_mut(&recipient).inbound.insert(origin, Inbound { lane, waiting: Vec::new() });
        let accept =
            Arc::new(Accept { message: delivery.message, at: now, origin: Some(origin), moved: false });
        self.push_accept(accept, None, ticket);
        Ok(None)
    }

    fn note_floor(&mut self, user: &UserId, stream: StreamId, lane: Priority, floor: Seq) {
        let known = self.user_mut(user).inbox.get(&(stream, lane)).map_or(Seq::ZERO, |seen| seen.floor);
        if floor > known && floor.epoch() != crate::record::Epoch::default() {
            let floor = crate::record::Floor { user: user.clone(), stream, lane, floor };
            if !self
                .current
                .iter()
                .rev()
                .take(64)
                .any(|p| matches!(p, Pending::Fact(Record::Floor(f)) if *f == floor))
            {
                self.current.push(Pending::Fact(Record::Floor(floor)));
            }
        }
    }

    pub(super) fn park(&mut self, query: Query, parked: Parked) {
        self.parked_count += 1;
        let load = self.load_once(query);
        self.parked.entry(load).or_default().push(parked);
    }

    /// Takes up the sends that waited for a load; refuses them if it failed.
    pub(super) fn unpark(&mut self, now: Timestamp, load: super::io::LoadId, failed: bool) {
        let mut held = Held::default();
        for parked in self.parked.remove(&load).unwrap_or_default() {
            self.parked_count = self.parked_count.saturating_sub(1);
            match parked {
                Parked::Operate(ticket, ..) if failed => {
                    let result = Err(OperationError::StoreUnreadable);
                    self.actions.push_back(Action::Done { ticket, result });
                }
                Parked::Send(ticket, _) | Parked::Receive(ticket, _) if failed => {
                    self.answer(ticket, Err(Refusal::StoreUnreadable));
                }
                Parked::Operate(ticket, operation, before) => self.operate(ticket, operation, before),
                Parked::Send(ticket, message) => self.handle_send(now, ticket, message),
                Parked::Receive(ticket, delivery) => self.receive(now, ticket, *delivery, &mut held),
            }
        }
    }

    /// How many of the gathered records make one commit: a group must fit into the journal.
    fn piece(&self) -> usize {
        let max = self.config.max_commit_bytes.get();
        let mut bytes = 0_u64;
        let fits = self.current.iter().take_while(|pending| {
            bytes = bytes.saturating_add(match pending {
                Pending::Accept(pending) => pending.accept.message.cost().saturating_add(FACT_BYTES),
                Pending::Fact(_) | Pending::Joined(_) => FACT_BYTES,
            });
            bytes <= max
        });
        let joined = |n: &usize| matches!(self.current.get(*n), Some(Pending::Joined(_)));
        // What is joined to the last that fits goes along, or waits with it: a commit may be one fact too large.
        let mut n = fits.count().max(1);
        while joined(&n) {
            n += 1;
        }
        n
    }

    /// Hands out what has gathered, if the disk takes it.
    pub(super) fn take_commit(&mut self) -> Option<Action> {
        if self.current.is_empty() || !self.writable {
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
                answers.push((pending.ticket, pending.accept.message.priority()));
            }
        }
        for (ticket, lane) in answers {
            let entry = EntryRef { lane, seq: Seq::ZERO };
            self.answer(ticket, Ok(Accepted { entry, duplicate: false }));
        }
    }

    fn answer_repeats(&mut self, key: Option<u128>, result: Result<EntryRef, Refusal>) {
        if self.repeats.is_empty() {
            return;
        }
        for ticket in key.and_then(|key| self.repeats.remove(&key)).unwrap_or_default() {
            self.parked_count = self.parked_count.saturating_sub(1);
            self.answer(ticket, result.clone().map(|entry| Accepted { entry, duplicate: true }));
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
        self.take_up_carried();
    }

    fn accepted(&mut self, now: Timestamp, seq: Seq, pending: PendingAccept) {
        let PendingAccept { accept, key, ticket, answered, operation } = pending;
        // The operation counts for itself.
        self.pending = self.pending.saturating_sub(usize::from(operation.is_none()));
        let entry = EntryRef { lane: accept.message.priority(), seq };
        self.unclaim(&accept);
        let inbound = accept.origin.and_then(|origin| {
            self.users.get_mut(accept.message.recipient()).and_then(|user| user.inbound.remove(&origin))
        });
        self.apply_accept(seq, &accept, key, true);
        if !answered {
            self.answer(ticket, Ok(Accepted { entry, duplicate: false }));
        }
        self.place_taken(operation, entry);
        self.answer_repeats(key, Ok(entry));
        self.answer_inbound(inbound, &Ok(entry));
        self.offer_accepted(now, seq, &accept);
    }

    fn answer_inbound(&mut self, inbound: Option<Inbound>, result: &Result<EntryRef, Refusal>) {
        for ticket in inbound.map(|inbound| inbound.waiting).unwrap_or_default() {
            self.parked_count = self.parked_count.saturating_sub(1);
            self.answer(ticket, result.clone().map(|entry| Accepted { entry, duplicate: true }));
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
                Pending::Accept(pending) if !pending.answered => self.undo(pending, refusal),
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
        self.pending = self.pending.saturating_sub(1);
        self.unclaim(&pending.accept);
        if let Some(key) = pending.key {
            self.dedup.cancel(key);
        }
        let user = self.users.get_mut(pending.accept.message.recipient());
        let inbound =
            pending.accept.origin.and_then(|origin| user.and_then(|user| user.inbound.remove(&origin)));
        self.answer(pending.ticket, Err(refusal.clone()));
        self.answer_repeats(pending.key, Err(refusal.clone()));
        self.answer_inbound(inbound, &Err(refusal.clone()));
        self.evict_if_idle(pending.accept.message.recipient());
    }
}
