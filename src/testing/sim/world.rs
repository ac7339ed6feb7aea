//! Two engines, the network between them, and the people at both ends.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::compose::{altered, compose, compose_for_many, person};
use super::defect::Defect;
use super::link::Reaction;
use super::node::Node;
use super::plan::Plan;
use super::random::Random;
use super::script::{Op, Step};
use crate::machine::{Accepted, Delivery, Input, LinkId, Operation, Refusal, Ticket, Verdict};
use crate::message::{Durability, Message};
use crate::time::Timestamp;

/// Everything there is.
#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Arc<Plan>,
    /// The sending engine and the receiving one.
    pub(super) nodes: [Node; 2],
    pub(super) sent: Vec<(usize, Message)>,
    /// What was sent together last.
    batches: [Vec<Message>; 2],
    /// Deliveries that the second engine took: the network may bring them again.
    old: Vec<Delivery>,
    /// Deliveries under way: whose ticket it is.
    carried: Vec<(Ticket, LinkId, Delivery)>,
}

impl World {
    pub(super) fn new(plan: Plan, defect: Option<Defect>) -> Self {
        let plan = Arc::new(plan);
        let nodes = [0, 1].map(|index| Node::new(Arc::clone(&plan), index, defect));
        Self {
            plan,
            nodes,
            sent: Vec::new(),
            batches: Default::default(),
            old: Vec::new(),
            carried: Vec::new(),
        }
    }

    pub(super) fn trace(&mut self, on: bool) {
        self.nodes.iter_mut().for_each(|node| node.trace = on.then(Vec::new));
    }

    pub(super) fn take_trace(&mut self) -> Vec<String> {
        let traces = self.nodes.iter_mut().filter_map(|node| node.trace.as_mut());
        traces.flat_map(std::mem::take).collect()
    }

    /// Does one step; says what went wrong.
    pub(super) fn step(&mut self, step: Step) -> Result<(), String> {
        let mut random = Random::new(step.detail);
        self.act(step.op, &mut random);
        self.deliver_answers();
        self.verdict()
    }

    pub(super) fn verdict(&mut self) -> Result<(), String> {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            node.check();
            if let Some(failure) = node.oracle.take_failure() {
                return Err(format!("engine {index}: {failure}"));
            }
        }
        Ok(())
    }

    fn act(&mut self, op: Op, random: &mut Random) {
        let index = usize::from(random.chance(25));
        match op {
            Op::Send => self.send(random),
            Op::After => self.send_after(random),
            Op::Repeat => self.repeat(random, false),
            Op::Forge => self.repeat(random, true),
            Op::Batch => self.send_batch(random),
            Op::FanOut => self.fan_out(random),
            Op::Cancel | Op::Replace | Op::Move | Op::Locate => self.operate_on_one(op, random),
            Op::Purge => {
                let user = person(random.below(self.plan.users));
                self.operate(index, Operation::Purge(user));
            }
            Op::Requeue | Op::Discard | Op::Inspect | Op::Letters => self.operate_on_dead(op, index, random),
            Op::Ledger => self.read_ledger(index, random),
            Op::MarkRead => self.mark_read(index, random),
            Op::Register | Op::Unregister | Op::Devices => self.operate_on_devices(op, index, random),
            Op::Told => self.told_of_gap(index, random),
            Op::Carry => self.carry(random),
            Op::Duplicate => self.duplicate(random),
            Op::Wait => {
                let longest = 1 << (1 + random.below(14));
                self.pass(Duration::from_millis(random.below(longest)));
            }
            Op::Timer => self.timer(),
            Op::Verdict => self.nodes[usize::from(random.chance(40))].verdict_of_sink(random),
            Op::Kill | Op::PowerCut => self.crash(index, op == Op::PowerCut, random),
            op => self.act_on(op, index, random),
        }
    }

    fn act_on(&mut self, op: Op, index: usize, random: &mut Random) {
        let plan = Arc::clone(&self.plan);
        let node = &mut self.nodes[index];
        match op {
            Op::Pass => node.pass(random),
            Op::Append => node.append(random),
            Op::Written => node.written(),
            Op::Sync => node.sync(),
            Op::Persisted => node.persisted(),
            Op::Commit => node.commit(random),
            Op::Read => node.read(random),
            Op::Loaded => node.loaded(random),
            Op::LoadFail => node.load_failed(random),
            Op::Attach => {
                let user = random.below(plan.users);
                let _ = node.attach(person(user), random.below(5), is_wire(index, user));
            }
            Op::Detach => {
                if let Some(id) = node.some_link(random) {
                    node.detach(id);
                }
            }
            Op::Stray => node.stray(random),
            Op::Settle => node.settle(),
            Op::Keep => node.keep(),
            Op::Merge => node.merge(),
            Op::Heal => node.heal(),
            Op::Reopen => {
                node.reopen(random);
                node.open();
            }
            Op::DiskFault if random.chance(plan.faults) => node.break_disk(random),
            Op::StoreFault if random.chance(plan.faults) => node.break_store(random),
            Op::Disk => node.broadcast(&Input::Disk { bytes: random.below(1200) }),
            Op::Relief => node.relieve(),
            Op::Drain => {
                node.draining = true;
                node.broadcast(&Input::Drain);
            }
            _ => {}
        }
    }

    // ---------------------------------------------------------------------------------------------------- senders

    fn send(&mut self, random: &mut Random) {
        let index = usize::from(random.chance(10));
        let message = compose(&self.plan, random, self.sent.len(), self.nodes[index].now);
        self.sent.push((index, message.clone()));
        self.submit(index, message);
    }

    fn repeat(&mut self, random: &mut Random, forge: bool) {
        let recent = random.index(self.sent.len().min(12));
        let Some((index, message)) = self.sent.iter().rev().nth(recent).cloned() else { return };
        let another = forge || random.chance(15);
        let message = if another { altered(&message, forge, random) } else { message };
        self.submit(index, message);
    }

    /// Some new messages, now and then with one that was sent before; or the last batch once more.
    fn send_batch(&mut self, random: &mut Random) {
        let index = usize::from(random.chance(10));
        if self.nodes[index].engine.is_none() {
            return;
        }
        if random.chance(12) && !self.batches[index].is_empty() {
            let again = self.batches[index].clone();
            return self.nodes[index].send_batch(again);
        }
        let mut batch: Vec<Message> = Vec::new();
        let within = random.chance(25);
        for _ in 0..2 + random.index(5) {
            let message = match self.sent.iter().rev().nth(random.index(12)) {
                Some((_, known)) if random.chance(8) => known.clone(),
                _ => {
                    let new = compose(&self.plan, random, self.sent.len(), self.nodes[index].now);
                    self.sent.push((index, new.clone()));
                    new
                }
            };
            let shard = self.nodes[index].shard_of(message.recipient());
            let first = batch.first().map_or(shard, |first| self.nodes[index].shard_of(first.recipient()));
            // Refused there, and with it the whole batch.
            let is_fit = message.collapse_key().is_none()
                && message.after().is_none()
                && message.durability() != Durability::Volatile;
            if (shard == first || !within) && (is_fit || random.chance(5)) {
                batch.push(message);
            }
        }
        self.batches[index].clone_from(&batch);
        self.nodes[index].send_batch(batch);
    }

    /// A new message, or now and then one of before, to some people; somebody may be named twice.
    fn fan_out(&mut self, random: &mut Random) {
        let index = usize::from(random.chance(10));
        if self.nodes[index].engine.is_none() {
            return;
        }
        let known = self.sent.iter().rev().nth(random.index(12)).filter(|_| random.chance(20));
        let message = match known {
            Some((_, known)) => known.clone(),
            None => compose_for_many(&self.plan, random, self.sent.len(), self.nodes[index].now),
        };
        let mut parts: BTreeMap<usize, Vec<Message>> = BTreeMap::new();
        for _ in 0..2 + random.index(8) {
            let message = message.for_recipient(person(random.below(self.plan.users)));
            self.sent.push((index, message.clone()));
            parts.entry(self.nodes[index].shard_of(message.recipient())).or_default().push(message);
        }
        for (shard, messages) in parts {
            self.nodes[index].fan_out(shard, messages);
        }
    }

    pub(super) fn submit(&mut self, index: usize, message: Message) {
        let node = &mut self.nodes[index];
        if node.engine.is_none() {
            return;
        }
        node.tickets += 1;
        let ticket = Ticket(node.tickets);
        let told = node.engine.as_ref().is_some_and(|engine| engine.flight.is_none());
        node.oracle.sent(ticket, message.clone());
        node.oracle.sent_after(ticket, &message, told);
        let shard = node.shard_of(message.recipient());
        node.input(shard, Input::Send { ticket, message });
    }

    // ---------------------------------------------------------------------------------------------------- network

    /// Carries the oldest delivery of some link to the other engine.
    fn carry(&mut self, random: &mut Random) {
        let Some(engine) = &mut self.nodes[0].engine else { return };
        let mut wires: Vec<_> =
            engine.links.values_mut().filter(|link| link.is_wire && !link.queue.is_empty()).collect();
        let index = random.index(wires.len());
        let Some(link) = wires.get_mut(index).filter(|link| link.carrying.is_none()) else { return };
        let Some(delivery) = link.queue.front().cloned() else { return };
        let ticket = Ticket(self.nodes[1].tickets + 1);
        link.carrying = Some(ticket);
        self.carried.push((ticket, link.id, delivery.clone()));
        self.receive(delivery);
    }

    fn receive(&mut self, delivery: Delivery) {
        let node = &mut self.nodes[1];
        node.tickets += 1;
        let ticket = Ticket(node.tickets);
        if node.engine.is_none() {
            return node.answers.push((ticket, Err(Refusal::Degraded)));
        }
        node.oracle.sent(ticket, delivery.message.clone());
        let shard = node.shard_of(delivery.message.recipient());
        node.input(shard, Input::Receive(vec![(ticket, delivery)]));
    }

    fn duplicate(&mut self, random: &mut Random) {
        let index = random.index(self.old.len());
        if let Some(delivery) = self.old.get(index).cloned() {
            self.receive(delivery);
        }
    }

    /// Brings the other engine's answers back to the sinks that wait for them.
    fn deliver_answers(&mut self) {
        self.nodes[0].answers.clear();
        for (ticket, result) in std::mem::take(&mut self.nodes[1].answers) {
            let Some(at) = self.carried.iter().position(|(other, ..)| *other == ticket) else { continue };
            let (_, link, delivery) = self.carried.swap_remove(at);
            self.deliver_answer(ticket, link, delivery, &result);
        }
    }

    fn deliver_answer(
        &mut self,
        ticket: Ticket,
        link: LinkId,
        delivery: Delivery,
        result: &Result<Accepted, Refusal>,
    ) {
        let seq = delivery.entry.seq;
        if result.is_ok() {
            let now = self.nodes[0].now;
            self.nodes[0].oracle.applied(now, seq);
            if !super::oracle::is_volatile(delivery.entry) {
                self.old.push(delivery);
                let surplus = self.old.len().saturating_sub(24);
                self.old.drain(..surplus);
            }
        }
        let links = self.nodes[0].engine.as_mut().map(|engine| &mut engine.links);
        let Some(found) = links.and_then(|links| links.get_mut(&link)).filter(|l| l.carrying == Some(ticket))
        else {
            return;
        };
        found.carrying = None;
        let mut reaction = Reaction::default();
        let lost = ticket.0.is_multiple_of(13);
        match result {
            Ok(_) => found.take((!lost).then_some(Verdict::Delivered), &mut reaction),
            Err(_) if lost => found.refuse(None, &mut reaction),
            Err(_) if ticket.0.is_multiple_of(3) => found.refuse(Some(Verdict::Nack(None)), &mut reaction),
            Err(_) => found.refuse(Some(Verdict::Busy(Duration::from_millis(100))), &mut reaction),
        }
        let user = found.user.clone();
        self.nodes[0].react(link, &user, reaction);
    }

    // -------------------------------------------------------------------------------------------------------- time

    pub(super) fn pass(&mut self, by: Duration) {
        for node in &mut self.nodes {
            node.now = node.now.after(by);
            node.tick();
        }
    }

    fn timer(&mut self) {
        let next = self.nodes.iter().filter_map(|node| Some(node.next_timer()?.since(node.now))).min();
        if let Some(by) = next.filter(|by| *by < Duration::from_secs(1 << 20)) {
            self.pass(by);
        }
    }

    // ----------------------------------------------------------------------------------------------------- crashes

    fn crash(&mut self, index: usize, power: bool, random: &mut Random) {
        const YEARS: u64 = 10 * 365 * 24 * 3600 * 1000;
        let node = &mut self.nodes[index];
        node.crash(power, random);
        // The wall clock may have been set while nobody looked.
        let now = node.now.as_millis();
        node.now = Timestamp::from_millis(match random.below(8) {
            0 => now + random.below(YEARS),
            1 => now.saturating_sub(random.below(YEARS)),
            _ => now + random.below(3000),
        });
        if index == 1 {
            self.cut_wires(random);
        }
        if !random.chance(10) {
            self.nodes[index].open();
        }
    }

    /// The second engine is gone, and what was on its way to it.
    fn cut_wires(&mut self, random: &mut Random) {
        self.carried.clear();
        let links = self.nodes[0].engine.iter_mut().flat_map(|engine| engine.links.values_mut());
        let mut cut = Vec::new();
        for link in links {
            if link.carrying.take().is_none() {
                continue;
            }
            let mut reaction = Reaction::default();
            match random.chance(50) {
                true => link.disconnect(&mut reaction),
                false => link.refuse(None, &mut reaction),
            }
            cut.push((link.id, link.user.clone(), reaction));
        }
        for (id, user, reaction) in cut {
            self.nodes[0].react(id, &user, reaction);
        }
    }

    // --------------------------------------------------------------------------------------------------------- end

    /// Heals everything, attaches everybody, and delivers until nothing is left.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        let mut random = Random::new(self.plan.seed);
        for index in 0..2 {
            self.nodes[index].relieve();
            if random.chance(50) || self.nodes[index].engine.is_none() {
                self.crash(index, random.chance(50), &mut random);
            }
            self.nodes[index].recover(&mut random);
            if self.nodes[index].draining {
                self.crash(index, false, &mut random);
                self.nodes[index].recover(&mut random);
            }
            if random.chance(40) {
                // Everything into the store, and nothing left in memory.
                self.nodes[index].settle_all(&mut random);
                self.crash(index, random.chance(50), &mut random);
                self.nodes[index].recover(&mut random);
            }
        }
        if random.chance(30) {
            self.leave_alone(&mut random)?;
        }
        for _ in 0..6 {
            self.repeat(&mut random, false);
        }
        self.verdict()?;
        for round in 0..400 {
            for user in 0..self.plan.users {
                for index in 0..2 {
                    self.nodes[index].attach_if_alone(&person(user), is_wire(index, user));
                    // Each has some rounds to take what is for it.
                    if round % 8 == 0 {
                        self.nodes[index].attach_devices(&person(user), is_wire(index, user), &mut random);
                    }
                }
            }
            self.round(&mut random);
            self.verdict()?;
            if self.nodes.iter().all(Node::is_done) {
                // A send may still wait in a machine for another one to meet.
                self.nodes.iter_mut().for_each(|node| node.broadcast(&Input::Tick));
            }
            if self.nodes.iter().all(Node::is_done) {
                self.nodes.iter_mut().for_each(|node| node.oracle.check_answered());
                self.nodes.iter_mut().for_each(Node::read_all_ends);
                return self.verdict();
            }
            self.pass(Duration::from_millis(if round < 20 { 50 } else { 30_000 }));
        }
        let left: Vec<_> = self.nodes.iter().flat_map(Node::left_over).take(3).collect();
        Err(format!("does not drain: {}", left.join("; ")))
    }

    fn round(&mut self, random: &mut Random) {
        for index in 0..2 {
            self.nodes[index].work(random);
            self.nodes[index].deliver_all();
        }
        for _ in 0..32 {
            self.carry(random);
            self.nodes[1].work(random);
            self.deliver_answers();
        }
    }
}

/// Users with an even number get what the first engine sends through the second one.
fn is_wire(index: usize, user: u64) -> bool {
    index == 0 && user.is_multiple_of(2)
}

impl Node {
    /// One operation of merging.
    pub(super) fn merge(&mut self) {
        let age = u64::try_from(self.plan.config.dedup_age.as_millis()).unwrap_or(u64::MAX);
        // Ids accepted before this need not be remembered.
        self.home.merge(Timestamp::from_millis(self.now.as_millis().saturating_sub(age)));
    }
}
