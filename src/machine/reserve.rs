//! Batches across shards: every shard reserves for its part, then all parts are one commit.
//!
//! ```text
//!             Reserve             Reserve                        one group
//!   host ──► shard 0 ──────────► shard 2 ──────────► shard 3 ──────────────► journal
//!               ▲                   ▲         refused │                        │
//!               └────── Over ───────┴─────────────────┘      JointPersisted, JointFailed
//!                  gives back                              to each of them
//! ```
//!
//! # Invariants
//! - **A reservation ends.** Whoever has reserved is told `Over`, or how the commit ended. What moves the batch on are
//!   the machines themselves: that its sender has gone changes nothing.
//! - **Nobody waits in a circle.** A batch that needs an id which another one holds in this shard waits until that is
//!   decided. It holds shares of earlier shards only, and what it waits for has its share of this one, so it can wait for
//!   later ones only. Quotas are not waited for.
//! - **What is held is nowhere yet.** It has no place, is in no lane, and whoever repeats an id of it waits.
//! - **It is a commit of its own,** besides those of the shard, which end in their order. All are told in the order of
//!   their places.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Machine;
use super::accept::Parked;
use super::batch::{Claimed, MAX_ROUNDS, Refused};
use super::commit::{PendingAccept, Repeat, Unit};
use super::io::{Accepted, Action, LoadId, Ticket};
use super::joint::{Joint, JointId, JointPart, Word};
use super::refusal::Refusal;
use crate::digest::DigestMap;
use crate::message::Message;
use crate::record::{Record, Seq};
use crate::time::Timestamp;

/// What a shard has to do with batches across shards.
#[derive(Debug, Default)]
pub(super) struct Joints {
    held: BTreeMap<JointId, Held>,
    /// The ids of what is held.
    keys: DigestMap<()>,
    /// Those for which this shard was the last one to reserve.
    complete: VecDeque<Joint>,
    /// How often the journal stopped taking commits.
    generation: u64,
}

impl Joints {
    /// Whether the message with this key is held for a batch that is not decided.
    pub(super) fn hold(&self, key: u128) -> bool {
        !self.keys.is_empty() && self.keys.contains_key(&key)
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// The journal has stopped taking commits.
    pub(super) fn failed(&mut self) {
        self.generation += 1;
    }
}

/// What a shard holds for one batch.
#[derive(Debug)]
struct Held {
    accepts: Vec<PendingAccept>,
    /// Those that had been accepted before.
    known: Vec<(Ticket, Accepted)>,
}

/// A batch that waits in the shard it has come to. The recipients of its part stay in memory meanwhile.
#[derive(Debug)]
pub(super) struct Waiting {
    joint: Joint,
    rounds: u32,
}

impl Waiting {
    fn messages(&self) -> &[(Ticket, Message)] {
        self.joint.parts.get(self.joint.at).map_or(&[], |part| &part.messages)
    }

    /// How many answers it owes in this shard.
    pub(super) fn len(&self) -> usize {
        self.messages().len()
    }
}

impl Machine {
    /// Another machine says something.
    pub(super) fn handle_told(&mut self, now: Timestamp, word: Word) {
        match word {
            Word::Reserve(joint) => self.take_part(now, Waiting { joint, rounds: 0 }),
            Word::Over { joint, result } => self.joint_over(joint, result),
        }
    }

    /// Another machine could not be told: it is no more.
    pub(super) fn handle_untold(&mut self, word: Word) {
        if let Word::Reserve(joint) = word {
            self.turn_down(joint, (None, Refusal::ShuttingDown));
        }
    }

    /// What a batch waited for was read or decided; with a refusal, it could not be.
    pub(super) fn resume_part(&mut self, now: Timestamp, mut part: Waiting, refusal: Option<&Refusal>) {
        part.rounds += 1;
        let recipients = recipients(part.messages());
        match refusal {
            Some(refusal) => self.turn_down(part.joint, (None, refusal.clone())),
            None => self.take_part(now, part),
        }
        self.let_go_of(&recipients);
    }

    fn take_part(&mut self, now: Timestamp, part: Waiting) {
        if let Err(refused) = self.gate_joint(&part.joint) {
            return self.turn_down(part.joint, refused);
        }
        match self.read_for_part(part.messages()) {
            Some(_) if part.rounds >= MAX_ROUNDS => {
                self.turn_down(part.joint, (None, Refusal::Overloaded));
            }
            Some(load) => {
                self.hold_on_to(part.messages());
                self.park_at(load, Parked::Part(Box::new(part)));
            }
            None => self.reserve_part(now, part.joint),
        }
    }

    /// What is wrong with the batch, which the first shard says; and whether its part may come in.
    fn gate_joint(&self, joint: &Joint) -> Result<(), Refused> {
        if joint.at == 0 {
            self.check_batch(joint.messages())?;
        }
        let Some(part) = joint.parts.get(joint.at) else { return Ok(()) };
        self.gate_part(&part.messages)
    }

    /// What must be known first: from the store, or how it ends with an id that is being committed.
    fn read_for_part(&mut self, messages: &[(Ticket, Message)]) -> Option<LoadId> {
        let read = self.read_for_batch(messages);
        let on_its_way = |machine: &mut Self, message: &Message| {
            let (key, known) = machine.look_up(message);
            known.is_undecided().then(|| machine.wait_for_id(key))
        };
        messages.iter().find_map(|(_, message)| on_its_way(self, message)).or(read)
    }

    /// Takes what this part needs, and lets the batch go on; or nothing, and it is refused.
    fn reserve_part(&mut self, now: Timestamp, mut joint: Joint) {
        let Some(part) = joint.parts.get_mut(joint.at) else { return };
        let Claimed { taken, repeats } = match self.claim_all(now, &part.messages) {
            Ok(claimed) => claimed,
            Err(refused) => return self.turn_down(joint, refused),
        };
        self.pending += taken.len();
        part.messages.clear();
        part.generation = self.joints.generation;
        let accepts = taken.iter().flat_map(|(_, accepts, _)| accepts);
        part.records = accepts.map(|accept| Record::Accept(Arc::clone(accept))).collect();
        let mut held = Held { accepts: Vec::with_capacity(taken.len()), known: Vec::new() };
        for (ticket, accepts, key) in taken {
            self.joints.keys.insert(key, ());
            held.accepts.extend(PendingAccept::sent(accepts, Some(key), ticket, Unit::Joined));
        }
        for (ticket, key, slot, message) in repeats {
            if slot.seq == Seq::ZERO {
                // Of a message before it in this batch.
                self.stats.duplicates += 1;
                self.wait_for_first(key, Repeat::Send(ticket));
            } else {
                self.pending += 1;
                held.known.push((ticket, super::accept::accepted_then(&message, slot)));
            }
        }
        self.joints.held.insert(joint.id, held);
        joint.at += 1;
        self.pass_on(joint);
    }

    /// To the next shard, or to the journal.
    fn pass_on(&mut self, joint: Joint) {
        if let Some(shard) = joint.shard() {
            return self.actions.push_back(Action::Tell { shard, word: Box::new(Word::Reserve(joint)) });
        }
        if joint.parts.iter().all(|part| part.records.is_empty()) {
            return self.tell_over(&joint, &Ok(()));
        }
        self.joints.complete.push_back(joint);
    }

    /// Hands out a batch that every shard has reserved for, after what this one gathered before.
    pub(super) fn take_joint(&mut self) -> Option<Action> {
        let joint = self.joints.complete.pop_front()?;
        let part = |part: super::joint::Part| JointPart {
            shard: part.shard,
            generation: part.generation,
            records: part.records,
        };
        Some(Action::PersistJoint { joint: joint.id, parts: joint.parts.into_iter().map(part).collect() })
    }

    /// Refuses a batch: answers what nobody has reserved for, and tells those who have.
    fn turn_down(&mut self, joint: Joint, (which, refusal): Refused) {
        let others = if which.is_some() { Refusal::OtherRefused } else { refusal.clone() };
        self.tell_over(&joint, &Err(others.clone()));
        for (ticket, message) in joint.parts.into_iter().flat_map(|part| part.messages) {
            let own = which == Some(ticket);
            self.answer(ticket, Err(if own { refusal.clone() } else { others.clone() }));
            self.evict_if_idle(message.recipient());
        }
    }

    /// Tells all who have reserved that it is over.
    fn tell_over(&mut self, joint: &Joint, result: &Result<(), Refusal>) {
        for part in joint.parts.iter().take(joint.at) {
            let (shard, result) = (part.shard, result.clone());
            let word = Box::new(Word::Over { joint: joint.id, result });
            self.actions.push_back(Action::Tell { shard, word });
        }
    }

    fn joint_over(&mut self, joint: JointId, result: Result<(), Refusal>) {
        match result {
            Ok(()) => self.handle_joint_persisted(self.now, joint, Seq::ZERO),
            Err(refusal) => self.give_back(joint, &refusal),
        }
    }

    /// All parts are durable; this one's first record has this place.
    pub(super) fn handle_joint_persisted(&mut self, now: Timestamp, joint: JointId, first: Seq) {
        let Some(Held { accepts, known }) = self.let_go_of_ids(joint) else { return };
        for (seq, pending) in (0..).map(|n| first.plus(n)).zip(accepts) {
            self.accepted(now, seq, pending);
            self.applied = seq.plus(1);
        }
        for (ticket, accepted) in known {
            self.pending = self.pending.saturating_sub(1);
            self.stats.duplicates += 1;
            self.answer(ticket, Ok(accepted));
        }
    }

    /// None of the parts is durable; or nobody knows.
    pub(super) fn handle_joint_failed(&mut self, joint: JointId, unknown: bool) {
        let refusal = if unknown { Refusal::OutcomeUnknown } else { Refusal::Degraded };
        self.give_back(joint, &refusal);
    }

    /// Forgets that a batch holds what it holds.
    fn let_go_of_ids(&mut self, joint: JointId) -> Option<Held> {
        let held = self.joints.held.remove(&joint)?;
        for key in held.accepts.iter().filter_map(|pending| pending.key) {
            self.joints.keys.remove(&key);
        }
        Some(held)
    }

    /// Gives back all that is held for a batch, and refuses its part. Whoever waits for an id of it goes on when all of it
    /// is free.
    fn give_back(&mut self, joint: JointId, refusal: &Refusal) {
        let Some(Held { accepts, known }) = self.let_go_of_ids(joint) else { return };
        let mut waiting = Vec::new();
        for pending in &accepts {
            self.unclaim(&pending.accept);
            if let Some(key) = pending.key {
                self.dedup.cancel(key);
                waiting.push(self.repeats.remove(&key).unwrap_or_default());
            }
        }
        let waiting_for = accepts.iter().filter(|pending| pending.ticket.is_some()).count();
        self.pending = self.pending.saturating_sub(waiting_for + known.len());
        let tickets = accepts.iter().filter_map(|pending| pending.ticket);
        for ticket in tickets.chain(known.iter().map(|(ticket, _)| *ticket)) {
            self.answer(ticket, Err(refusal.clone()));
        }
        for repeats in waiting {
            self.answer_waiting(repeats, &Err(refusal.clone()));
        }
        for pending in accepts {
            self.evict_if_idle(pending.accept.message.recipient());
        }
    }

    /// What waits until it is decided whether the message with this key is accepted.
    pub(super) fn wait_for_id(&mut self, key: u128) -> LoadId {
        self.last_load += 1;
        let load = LoadId(self.last_load);
        self.repeats.entry(key).or_default().push(Repeat::Parked(load));
        load
    }

    /// Lets something wait until it is decided whether the message with this key is accepted.
    pub(super) fn park_behind(&mut self, key: u128, parked: Parked) {
        let load = self.wait_for_id(key);
        self.park_at(load, parked);
    }

    pub(super) fn park_at(&mut self, load: LoadId, parked: Parked) {
        self.parked_count += parked.answers();
        self.parked.entry(load).or_default().push(parked);
    }

    /// Keeps the recipients of a batch in memory while it waits.
    pub(super) fn hold_on_to(&mut self, messages: &[(Ticket, Message)]) {
        for (_, message) in messages {
            self.user_mut(message.recipient()).operations += 1;
        }
    }

    /// Lets go of them again.
    pub(super) fn let_go_of(&mut self, recipients: &[crate::id::UserId]) {
        for recipient in recipients {
            if let Some(user) = self.users.get_mut(recipient) {
                user.operations = user.operations.saturating_sub(1);
            }
            self.let_go(recipient);
        }
    }
}

/// Whom these are for.
pub(super) fn recipients(messages: &[(Ticket, Message)]) -> Vec<crate::id::UserId> {
    messages.iter().map(|(_, message)| message.recipient().clone()).collect()
}
