//! Admission: limits, dedup, quotas; and the records that are on their way to the disk.

use std::collections::HashMap;
use std::sync::Arc;

use super::Machine;
use super::batch::Batch;
use super::commit::{Instead, Pending, PendingAccept, Repeat, Unit};
use super::dedup::{Known, Slot};
use super::devices::Among;
use super::io::{Accepted, Action, Delivery, EntryRef, Ticket};
use super::operation::Operation;
use super::overflow::Victim;
use super::query::Query;
use super::refusal::{OperationError, Refusal};
use super::reserve::Waiting;
use super::user::{Inbound, Totals};
use crate::id::{MessageId, OrderingKey, StreamId, UserId};
use crate::message::{Durability, Message};
use crate::record::{Accept, LaneId, Origin, Record, Seq};
use crate::time::Timestamp;

/// Lines in which a delivery was refused for now, and what with: what follows in the same line may not overtake it.
type Held = HashMap<(UserId, LaneId, Option<OrderingKey>), Refusal>;

/// A send that waits for the store.
#[derive(Debug)]
pub(super) enum Parked {
    Send(Ticket, Message),
    Receive(Ticket, Box<Delivery>),
    Operate(Ticket, Operation, Seq),
    Batch(Batch),
    Part(Box<Waiting>),
}

impl Parked {
    /// How many answers it owes.
    pub(super) fn answers(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.messages.len(),
            Self::Part(part) => part.len(),
            Self::Send(..) | Self::Receive(..) | Self::Operate(..) => 1,
        }
    }
}

/// A message whose time is over needs no schedule.
pub(super) fn at_once_if_due(message: Message, now: Timestamp) -> Message {
    match message.not_before() {
        Some(at) if at <= now => message.without_schedule(),
        _ => message,
    }
}

/// Where a message went that was accepted then.
fn lane_then(message: &Message, slot: Slot) -> LaneId {
    match (at_once_if_due(message.clone(), slot.at).lane(), slot.among.iter().next()) {
        (lane, Some(first)) if lane != LaneId::Scheduled => LaneId::Device(first, message.priority()),
        (lane, _) => lane,
    }
}

/// The answer to a repeat of what was accepted then.
pub(super) fn accepted_then(message: &Message, slot: Slot) -> Accepted {
    let entry = EntryRef { lane: lane_then(message, slot), seq: slot.seq };
    Accepted { among: slot.among, ..Accepted::at(entry).again() }
}

/// What dedup says of a message that is to take the place of another.
pub(super) enum Newcomer {
    /// It is new, with this key.
    Fits(u128),
    /// It was accepted before.
    Accepted(Accepted),
    /// It is on its way to the disk, with this key.
    OnItsWay(u128),
    /// Its sender's ids must be read first.
    AskStore(Query),
    /// A batch across shards holds it, with this key.
    Held(u128),
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
        self.pending + self.parked_count + self.operations.len() + self.device_waiting
    }

    pub(super) fn check_size(&self, message: &Message) -> Result<(), Refusal> {
        let (bytes, max) = (message.payload().len(), self.config.max_payload_bytes.get());
        if bytes > max { Err(Refusal::PayloadTooLarge { bytes, max }) } else { Ok(()) }
    }

    pub(super) fn gate(&self, message: &Message) -> Result<(), Refusal> {
        self.check_size(message)?;
        if self.draining {
            return Err(Refusal::ShuttingDown);
        }
        if !self.is_writable() && message.durability() != Durability::Volatile {
            return Err(Refusal::Degraded);
        }
        if self.unanswered() >= self.config.max_pending.get() {
            return Err(Refusal::Overloaded);
        }
        Ok(())
    }

    pub(super) fn handle_send(&mut self, now: Timestamp, ticket: Ticket, message: Message) {
        let message = self.coalesced(message);
        let result = match self.gate(&message) {
            Err(refusal) => Err(refusal),
            Ok(()) if message.durability() == Durability::Volatile => self.send_volatile(now, message),
            Ok(()) => return self.send_durable(now, ticket, message),
        };
        self.answer(ticket, result);
    }

    fn send_durable(&mut self, now: Timestamp, ticket: Ticket, message: Message) {
        if let Some(waiting) = self.overflowing.get_mut(message.recipient()) {
            waiting.push_back((ticket, message));
            self.parked_count += 1;
            return;
        }
        self.take_in(now, ticket, message, None);
    }

    /// Accepts a message unless it is a repeat or there is no room. `found` is what it can take the place of in a full
    /// outbox, once that was looked for.
    pub(super) fn take_in(
        &mut self,
        now: Timestamp,
        ticket: Ticket,
        message: Message,
        found: Option<Vec<Victim>>,
    ) {
        #[cfg(test)]
        {
            self.looked_at += 1;
        }
        let (key, known) = self.look_up(&message);
        match known {
            Known::AskStore => return self.park(self.ids_of_sender(&message), Parked::Send(ticket, message)),
            Known::Held => return self.park_behind(key, Parked::Send(ticket, message)),
            Known::Seen(slot) => return self.answer_repeat(ticket, key, slot, &message),
            Known::New => {}
        }
        if message.after().is_some() {
            return self.send_dependent(now, ticket, message);
        }
        if message.collapse_key().is_some() {
            return self.send_newest(now, (ticket, message), key, found);
        }
        if !self.ensure_totals(message.recipient()) {
            return self.park(Query::User(message.recipient().clone()), Parked::Send(ticket, message));
        }
        let among = match self.devices_of(&message, now) {
            Ok(among) => among,
            Err(query) => return self.park(query, Parked::Send(ticket, message)),
        };
        let victims = match self.claim_room(&message, among.copies(), &[], found) {
            Ok(victims) => victims,
            Err(shortage) => return self.fall_short(ticket, message, shortage),
        };
        self.reserve_id(key, &message, now, among);
        let accepts = self.spread(among, Accept::new(at_once_if_due(message, now), now));
        match victims.is_empty() {
            true => self.push_accept(accepts, Some(key), ticket, Unit::Alone),
            false => self.push_instead(accepts, key, ticket, &[], victims),
        }
    }

    /// The key of a message, and what is known of it.
    pub(super) fn look_up(&mut self, message: &Message) -> (u128, Known) {
        self.look_up_id(message, message.id())
    }

    /// The same of another id, of the same sender and recipient.
    pub(super) fn look_up_id(&mut self, message: &Message, id: MessageId) -> (u128, Known) {
        let sender = self.digester.user(message.sender());
        let key = self.digester.identity(message.sender(), message.recipient(), id);
        match self.joints.hold(key) {
            true => (key, Known::Held),
            false => (key, self.dedup.look_up(sender, key, self.now)),
        }
    }

    /// What must be read to know whether a message is new.
    pub(super) fn ids_of_sender(&self, message: &Message) -> Query {
        let sender = self.digester.user(message.sender());
        self.dedup.query(sender, self.now)
    }

    /// Remembers the id of a message that is to be committed.
    pub(super) fn reserve_id(&mut self, key: u128, message: &Message, at: Timestamp, among: Among) {
        let (sender, content) = (self.digester.user(message.sender()), self.content_of(message));
        self.dedup.reserve(key, Slot { content, seq: Seq::ZERO, at, sender, among: among.slots });
    }

    /// Whether a message may take the place of another one.
    pub(super) fn judge_newcomer(&mut self, message: &Message) -> Result<Newcomer, Refusal> {
        self.check_size(message)?;
        let (key, known) = self.look_up(message);
        match known {
            Known::New => Ok(Newcomer::Fits(key)),
            Known::AskStore => Ok(Newcomer::AskStore(self.ids_of_sender(message))),
            Known::Held => Ok(Newcomer::Held(key)),
            Known::Seen(slot) if slot.content != self.digester.content(message) => Err(Refusal::Conflict),
            Known::Seen(slot) if slot.seq == Seq::ZERO => Ok(Newcomer::OnItsWay(key)),
            Known::Seen(slot) => Ok(Newcomer::Accepted(accepted_then(message, slot))),
        }
    }

    /// Records a message that takes the place of another one, whose end must be joined to it.
    pub(super) fn push_newcomer(&mut self, accepts: Vec<Arc<Accept>>, key: Option<u128>, instead: Instead) {
        let Some(last) = accepts.last() else { return };
        self.will_leave(last.message.recipient(), instead.gives_back);
        self.push_unsent(accepts, key, Some(instead));
    }

    /// Records a message that nobody waits for. What it takes the place of is that of its last copy.
    pub(super) fn push_unsent(
        &mut self,
        accepts: Vec<Arc<Accept>>,
        key: Option<u128>,
        instead: Option<Instead>,
    ) {
        let last = accepts.len();
        for (n, accept) in (1..).zip(accepts) {
            let pending = PendingAccept {
                key: key.filter(|_| n == 1),
                unit: if n == 1 { Unit::Alone } else { Unit::Joined },
                instead: instead.filter(|_| n == last),
                answered: true,
                ..PendingAccept::of(accept)
            };
            self.current.push(Pending::Accept(pending));
        }
    }

    /// Records a message, whose sender waits for it. Its copies are told apart by nobody but the first.
    pub(super) fn push_accept(
        &mut self,
        accepts: Vec<Arc<Accept>>,
        key: Option<u128>,
        ticket: Ticket,
        unit: Unit,
    ) {
        self.pending += 1;
        self.current.extend(PendingAccept::sent(accepts, key, ticket, unit).map(Pending::Accept));
    }

    pub(super) fn answer_repeat(&mut self, ticket: Ticket, key: u128, slot: Slot, message: &Message) {
        if slot.content != self.content_of(message) {
            return self.answer(ticket, Err(Refusal::Conflict));
        }
        self.stats.duplicates += 1;
        if slot.seq == Seq::ZERO {
            return self.wait_for_first(key, Repeat::Send(ticket));
        }
        self.answer(ticket, Ok(accepted_then(message, slot)));
    }

    /// Lets a repeat wait for the message it repeats.
    pub(super) fn wait_for_first(&mut self, key: u128, repeat: Repeat) {
        self.repeats.entry(key).or_default().push(repeat);
        self.parked_count += 1;
    }

    /// Takes the message's share of the quotas, or says which one is full. What it takes the place of gives something back.
    pub(super) fn claim(
        &mut self,
        message: &Message,
        copies: u32,
        gives_back: Totals,
    ) -> Result<(), Refusal> {
        let cost = message.cost().saturating_mul(copies.into());
        let leaving = self.leaving.with(gives_back);
        let (totals, reserved) = (&self.counters, self.reserved);
        let messages = totals.live() + u64::from(reserved.messages);
        let messages = messages.saturating_sub(leaving.messages.into());
        let bytes = (totals.live_bytes() + reserved.bytes).saturating_sub(leaving.bytes);
        let config = &self.config;
        let (max_messages, max_bytes) = (config.max_user_messages.get(), config.max_user_bytes.get());
        // What takes no more than it gives back fits, also where what was scheduled has taken more than there was.
        let takes_no_more = copies <= gives_back.messages && cost <= gives_back.bytes;
        if copies > 1 && !takes_no_more && (copies > max_messages || cost > max_bytes) {
            return Err(Refusal::TooManyCopies { copies, bytes: cost, max_messages, max_bytes });
        }
        if let Some(max) = config.max_disk_bytes.filter(|max| self.disk_bytes >= max.get()) {
            return Err(Refusal::DiskFull { bytes: self.disk_bytes, max: max.get() });
        }
        if takes_no_more {
            self.reserve(message, copies);
            return Ok(());
        }
        if messages.saturating_add(copies.into()) > config.max_total_messages.get()
            || bytes.saturating_add(cost) > config.max_total_bytes.get()
        {
            return Err(Refusal::EngineFull { messages, bytes });
        }
        let user = self.user_mut(message.recipient());
        let Totals { messages, bytes } = user.claimed(gives_back);
        if messages.saturating_add(copies) > max_messages || bytes.saturating_add(cost) > max_bytes {
            return Err(Refusal::OutboxFull { messages: messages.into(), bytes });
        }
        self.reserve(message, copies);
        Ok(())
    }

    /// Takes the message's share of the quotas, whatever they say.
    pub(super) fn reserve(&mut self, message: &Message, copies: u32) {
        let bytes = message.cost().saturating_mul(copies.into());
        let share = Totals { messages: copies, bytes };
        self.user_mut(message.recipient()).reserved.put_on(share);
        self.reserved.put_on(share);
    }

    pub(super) fn unclaim(&mut self, accept: &Accept) {
        self.has_come_in(accept);
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
        if let Some(refusal) = held.get(&line).filter(|_| ordered) {
            let refusal = match refusal {
                Refusal::InboxFull => Refusal::InboxFull,
                _ => Refusal::Overloaded,
            };
            return self.answer(ticket, Err(refusal));
        }
        match self.try_receive(now, ticket, delivery) {
            Ok(None) => {}
            Ok(Some(accepted)) => self.answer(ticket, Ok(accepted)),
            Err(refusal) => {
                if ordered && !refusal.is_final() {
                    held.insert(line, refusal.clone());
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
        let lane = LaneId::from(delivery.message.priority());
        self.gate(&delivery.message)?;
        if super::verdict::is_volatile(delivery.entry) {
            return self.send_volatile(now, delivery.message).map(Some);
        }
        if delivery.entry.lane.priority() != Some(delivery.message.priority()) {
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
            return Err(Refusal::InboxFull);
        }
        self.note_floor(&recipient, origin.stream, lane, delivery.floor);
        let user = self.user_mut(&recipient);
        if user.inbox.get(&(origin.stream, lane)).is_some_and(|seen| origin.seq <= seen.floor) {
            return Err(Refusal::Obsolete);
        }
        if user.has_seen(origin, lane) {
            self.stats.duplicates += 1;
            return Ok(Some(Accepted::at(EntryRef { lane, seq: Seq::ZERO }).again()));
        }
        if let Some(inbound) = user.inbound.get_mut(&origin) {
            inbound.waiting.push(ticket);
            self.parked_count += 1;
            return Ok(None);
        }
        if !user.has_room_for(origin, lane, max_seen) {
            return Err(Refusal::Overloaded);
        }
        let message = delivery.message.without_schedule().without_parent();
        // The row is known: there is nothing to ask for.
        let among = self.devices_of(&message, now).unwrap_or_default();
        self.claim(&message, among.copies(), Totals::default())?;
        self.user_mut(&recipient).inbound.insert(origin, Inbound { lane, waiting: Vec::new() });
        let accept = Accept { origin: Some(origin), ..Accept::new(message, now) };
        let accepts = self.spread(among, accept);
        self.push_accept(accepts, None, ticket, Unit::Alone);
        Ok(None)
    }

    fn note_floor(&mut self, user: &UserId, stream: StreamId, lane: LaneId, floor: Seq) {
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
        let load = self.load_once(query);
        self.park_at(load, parked);
    }

    /// Takes up the sends that waited for a load; or refuses them, if it failed.
    pub(super) fn unpark(&mut self, now: Timestamp, load: super::io::LoadId, refusal: Option<&Refusal>) {
        let mut held = Held::default();
        for parked in self.parked.remove(&load).unwrap_or_default() {
            self.parked_count = self.parked_count.saturating_sub(parked.answers());
            match (parked, refusal) {
                (Parked::Batch(batch), _) => self.resume_batch(now, batch, refusal),
                (Parked::Part(part), _) => self.resume_part(now, *part, refusal),
                (Parked::Operate(ticket, ..), Some(refusal)) => {
                    let result = match refusal {
                        Refusal::StoreUnreadable => OperationError::StoreUnreadable,
                        refusal => refusal.clone().into(),
                    };
                    self.actions.push_back(Action::Done { ticket, result: Err(result) });
                }
                (Parked::Send(ticket, _) | Parked::Receive(ticket, _), Some(refusal)) => {
                    self.answer(ticket, Err(refusal.clone()));
                }
                (Parked::Operate(ticket, operation, before), None) => self.operate(ticket, operation, before),
                (Parked::Send(ticket, message), None) => self.handle_send(now, ticket, message),
                (Parked::Receive(ticket, delivery), None) => self.receive(now, ticket, *delivery, &mut held),
            }
        }
    }
}
