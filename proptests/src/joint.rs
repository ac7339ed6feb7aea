//! Several machines over one journal that fails now and then, and what is on its way between them: batches across
//! shards, played in any order that the engine's channels allow.

use std::collections::{BTreeMap, VecDeque};

use lastmile::digest::Digester;
use lastmile::machine::{
    Accepted, Action, CommitId, Input, Joint, JointId, Machine, MachineStats, Refusal, Ticket, Word,
};
use lastmile::record::{Epoch, Record, Seq};
use lastmile::{Config, Message, Priority, Timestamp};

use crate::{birth, message, person};

/// What can happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// Messages are sent together; a user and an id each.
    Batch(Vec<(u8, u8)>),
    /// A message is sent by itself.
    Send(u8, u8),
    /// Something that one machine says reaches another.
    Word(usize),
    /// What the journal's thread says next reaches a machine.
    Note(usize),
    /// The journal's thread takes up to so many orders as one group, which becomes durable.
    Commit(usize),
    /// The journal fails with what it has next, and heals.
    Fail,
}

/// Records that were handed out, in this order, and whose they are.
#[derive(Debug)]
struct Order {
    shares: Vec<Share>,
    records: Vec<Record>,
}

#[derive(Clone, Copy, Debug)]
struct Share {
    shard: usize,
    generation: u64,
    count: u64,
    of: Of,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    Commit(CommitId),
    Joint(JointId),
}

impl Of {
    fn persisted(self, first: Seq) -> Input {
        match self {
            Self::Commit(commit) => Input::Persisted { commit, first },
            Self::Joint(joint) => Input::JointPersisted { joint, first },
        }
    }

    fn failed(self, unknown: bool) -> Input {
        match self {
            Self::Commit(commit) => Input::PersistFailed { commit, unknown },
            Self::Joint(joint) => Input::JointFailed { joint, unknown },
        }
    }
}

/// Machines, their journal, and the channels between them.
#[derive(Debug)]
pub struct Net {
    machines: Vec<Machine>,
    digester: Digester,
    /// How often each driver was told that the journal takes no commits.
    known: Vec<u64>,
    /// How often it took none.
    generation: u64,
    notes: Vec<VecDeque<Input>>,
    words: Vec<(usize, Word)>,
    orders: VecDeque<Order>,
    next: Seq,
    tickets: u64,
    /// What is durable.
    pub log: Vec<Record>,
    /// What was sent together.
    pub batches: Vec<Vec<Ticket>>,
    /// What was answered to each.
    pub answers: BTreeMap<Ticket, Vec<Result<Accepted, Refusal>>>,
}

impl Net {
    /// So many shards.
    #[must_use]
    pub fn new(shards: usize, config: &Config) -> Self {
        Self {
            machines: (0..shards).map(|shard| Machine::new(birth(config, shard, shards))).collect(),
            digester: Digester::new(7),
            known: vec![0; shards],
            generation: 0,
            notes: vec![VecDeque::new(); shards],
            words: Vec::new(),
            orders: VecDeque::new(),
            next: Seq::first_of(Epoch(1)),
            tickets: 0,
            log: Vec::new(),
            batches: Vec::new(),
            answers: BTreeMap::new(),
        }
    }

    /// Does one thing.
    pub fn play(&mut self, event: &Event) {
        match event {
            Event::Batch(messages) => self.send_batch(messages),
            Event::Send(user, id) => {
                let (ticket, message) = (self.ticket(), the(*user, *id));
                self.input(self.shard(&message), Input::Send { ticket, message });
            }
            Event::Word(which) => {
                if !self.words.is_empty() {
                    let (shard, word) = self.words.swap_remove(which % self.words.len());
                    self.input(shard, Input::Told(word));
                }
            }
            Event::Note(shard) => self.note(shard % self.machines.len()),
            Event::Commit(orders) => self.commit(*orders),
            Event::Fail => self.fail(),
        }
    }

    /// Lets everything come to its end.
    pub fn finish(&mut self) {
        for _ in 0..1000 {
            self.play(&Event::Word(0));
            (0..self.machines.len()).for_each(|shard| self.note(shard));
            self.commit(usize::MAX);
        }
    }

    /// What each machine counts.
    pub fn stats(&self) -> impl Iterator<Item = MachineStats> {
        self.machines.iter().map(Machine::stats)
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.answers.insert(Ticket(self.tickets), Vec::new());
        Ticket(self.tickets)
    }

    fn shard(&self, message: &Message) -> usize {
        self.digester.shard(message.recipient(), self.machines.len())
    }

    fn send_batch(&mut self, messages: &[(u8, u8)]) {
        let batch: Vec<_> = messages.iter().map(|(user, id)| (self.ticket(), the(*user, *id))).collect();
        self.batches.push(batch.iter().map(|(ticket, _)| *ticket).collect());
        let of = |(ticket, message)| (self.shard(&message), ticket, message);
        let parts: Vec<_> = batch.into_iter().map(of).collect();
        let Some(first) = parts.iter().map(|(shard, ..)| *shard).min() else { return };
        if parts.iter().all(|(shard, ..)| *shard == first) {
            let batch = parts.into_iter().map(|(_, ticket, message)| (ticket, message)).collect();
            return self.input(first, Input::SendBatch(batch));
        }
        self.input(first, Input::Told(Word::Reserve(Joint::new(JointId(self.tickets), parts))));
    }

    fn note(&mut self, shard: usize) {
        let Some(input) = self.notes[shard].pop_front() else { return };
        self.known[shard] += u64::from(matches!(input, Input::Writable(false)));
        self.input(shard, input);
    }

    fn commit(&mut self, orders: usize) {
        for _ in 0..orders {
            let Some(order) = self.orders.pop_front() else { return };
            if order.shares.iter().any(|share| share.generation != self.generation) {
                self.fail_order(&order, false);
                continue;
            }
            for share in order.shares {
                self.notes[share.shard].push_back(share.of.persisted(self.next));
                self.next = self.next.plus(share.count);
            }
            self.log.extend(order.records);
        }
    }

    fn fail(&mut self) {
        self.generation += 1;
        self.notes.iter_mut().for_each(|notes| notes.push_back(Input::Writable(false)));
        if let Some(order) = self.orders.pop_front() {
            self.next = self.next.plus(order.records.len() as u64);
            self.fail_order(&order, true);
        }
        self.notes.iter_mut().for_each(|notes| notes.push_back(Input::Writable(true)));
    }

    fn fail_order(&mut self, order: &Order, unknown: bool) {
        for share in &order.shares {
            self.notes[share.shard].push_back(share.of.failed(unknown));
        }
    }

    fn input(&mut self, shard: usize, input: Input) {
        self.machines[shard].handle(Timestamp::from_millis(1_000_000), input);
        while let Some(action) = self.machines[shard].poll_action() {
            self.act(shard, action);
        }
    }

    fn act(&mut self, shard: usize, action: Action) {
        match action {
            Action::Persist { commit, records, .. } => {
                let generation = self.known[shard];
                let share = Share { shard, generation, count: records.len() as u64, of: Of::Commit(commit) };
                self.orders.push_back(Order { shares: vec![share], records });
            }
            Action::PersistJoint { joint, parts } => {
                let share = |part: &lastmile::machine::JointPart| Share {
                    shard: part.shard,
                    generation: part.generation,
                    count: part.records.len() as u64,
                    of: Of::Joint(joint),
                };
                let shares = parts.iter().map(share).collect();
                let records = parts.into_iter().flat_map(|part| part.records).collect();
                self.orders.push_back(Order { shares, records });
            }
            Action::Tell { shard, word } => self.words.push((shard, *word)),
            Action::Answer { ticket, result } => self.answers.entry(ticket).or_default().push(result),
            _ => {}
        }
    }
}

/// The message with this id, always the same.
fn the(user: u8, id: u8) -> Message {
    message(0, user, id, Priority::Normal, &person(user).as_bytes()[..1])
}
