//! What hosts do with messages besides sending them.

use super::compose::{compose_after, compose_for, person};
use super::oracle::device;
use super::random::Random;
use super::script::Op;
use super::world::World;
use crate::id::OrderingKey;
use crate::machine::{DeadLetters, Input, Operation, Target, Ticket};
use crate::message::{Message, Priority};
use crate::record::Seq;
use crate::status::EndReason;

impl World {
    /// A message that waits for one that was sent before, wherever that may be by now.
    pub(super) fn send_after(&mut self, random: &mut Random) {
        let recent = random.index(self.sent.len().min(12));
        let Some((index, parent)) = self.sent.iter().rev().nth(recent).cloned() else { return };
        let (number, now) = (self.sent.len(), self.nodes[index].now);
        let message = compose_after(&self.plan, random, number, &parent, now);
        self.sent.push((index, message.clone()));
        self.submit(index, message);
    }

    /// Withdraws, replaces or moves a message where it was sent, or where the network may have carried it.
    pub(super) fn operate_on_one(&mut self, op: Op, random: &mut Random) {
        let recent = random.index(self.sent.len().min(40));
        let Some((index, message)) = self.sent.iter().rev().nth(recent).cloned() else { return };
        let index = if random.chance(20) { 1 } else { index };
        let sender = random.chance(30).then(|| message.sender().cloned());
        let target = Target { user: message.recipient().clone(), id: message.id(), sender };
        let operation = match op {
            Op::Replace => Operation::Replace(target, self.replacement(index, &message, random)),
            Op::Locate => Operation::Locate(target),
            Op::Move => Operation::Reprioritise(target, Priority::ALL[random.index(4)]),
            _ => Operation::Cancel(target),
        };
        self.operate(index, operation);
    }

    /// Registers, removes or lists somebody's devices.
    pub(super) fn operate_on_devices(&mut self, op: Op, index: usize, random: &mut Random) {
        let user = person(random.below(self.plan.users));
        let name = device(random.below(5));
        self.operate(
            index,
            match op {
                Op::Register => Operation::Register(user, name),
                Op::Unregister => Operation::Unregister(user, name),
                _ => Operation::Devices(user),
            },
        );
    }

    /// Somebody reads up to some message, or a host asks how far.
    pub(super) fn mark_read(&mut self, index: usize, random: &mut Random) {
        let user = person(random.below(self.plan.users));
        let key = match random.below(self.plan.keys + 1) {
            0 => None,
            key => OrderingKey::new(format!("k{key}")).ok(),
        };
        let last = self.nodes[index].oracle.messages.keys().rev().nth(random.index(40)).copied();
        let operation = match last.filter(|_| random.chance(70)) {
            Some(up_to) => Operation::MarkRead(user, key, up_to),
            None => Operation::ReadUpTo(user, key),
        };
        self.operate(index, operation);
    }

    /// Reads somebody's ledger.
    pub(super) fn read_ledger(&mut self, index: usize, random: &mut Random) {
        let user = person(random.below(self.plan.users));
        self.operate(index, Operation::Ledger(user));
    }

    /// A sink was told of what its user will not get, or was too busy.
    pub(super) fn told_of_gap(&mut self, index: usize, random: &mut Random) {
        let node = &mut self.nodes[index];
        let Some(engine) = &node.engine else { return };
        let telling: Vec<_> = engine.links.values().filter(|link| link.is_told).map(|link| link.id).collect();
        if let Some(link) = telling.get(random.index(telling.len())) {
            node.gaps_told(*link, random.chance(80));
        }
    }

    /// Looks at dead letters, sends them again, or throws them away.
    pub(super) fn operate_on_dead(&mut self, op: Op, index: usize, random: &mut Random) {
        let user = person(random.below(self.plan.users));
        let some = self.sent.iter().rev().filter(|(_, message)| message.recipient() == &user);
        let id = some.map(|(_, message)| message.id()).nth(random.index(20)).filter(|_| random.chance(40));
        let reason = random.chance(20).then_some(EndReason::Rejected);
        let letters = DeadLetters { id, reason, ..DeadLetters::of(user) };
        let operation = match op {
            Op::Requeue => Operation::Requeue(letters),
            Op::Discard => Operation::Discard(letters),
            Op::Letters => Operation::Letters(letters.user),
            _ => {
                let behind = self.nodes[index].oracle.some_letter(&letters.user, random).unwrap_or(Seq::ZERO);
                Operation::Inspect(letters, behind, 1 + random.index(5))
            }
        };
        self.operate(index, operation);
    }

    /// A new message for the same recipient, which may be sent again later; or one that was sent before.
    fn replacement(&mut self, index: usize, old: &Message, random: &mut Random) -> Message {
        let before = self.sent.iter().rev().take(20).map(|(_, message)| message);
        let before: Vec<_> =
            before.filter(|message| message.recipient() == old.recipient()).cloned().collect();
        if let Some(known) = before.get(random.index(before.len())).filter(|_| random.chance(15)) {
            return known.clone();
        }
        let message =
            compose_for(&self.plan, random, self.sent.len(), old.recipient().clone(), self.nodes[index].now);
        self.sent.push((index, message.clone()));
        message
    }

    pub(super) fn operate(&mut self, index: usize, operation: Operation) {
        let node = &mut self.nodes[index];
        let Some(engine) = &node.engine else { return };
        let told = engine.flight.is_none();
        node.tickets += 1;
        let ticket = Ticket(node.tickets);
        node.oracle.asked(ticket, operation.clone(), told);
        let shard = node.shard_of(operation.user());
        node.input(shard, Input::Operate { ticket, operation });
    }
}
