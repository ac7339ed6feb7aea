//! A model of operations and the smallest shell that can play them: machines whose every record is durable at once.
//!
//! Property tests play it at random; the full shell with disks and crashes is `lastmile::testing::sim`.

pub mod joint;
pub mod operations;
pub mod schedule;

use std::collections::VecDeque;
use std::time::Duration;

use lastmile::digest::Digester;
use lastmile::machine::{
    Accepted, Action, Birth, DeadLetters, EntryRef, Input, LinkId, Machine, Operation, OperationError,
    Outcome, Refusal, Target, Ticket, Verdict,
};
use lastmile::record::{Counters, Epoch, Seq};
use lastmile::{
    Config, DeviceId, DevicePolicy, Message, MessageBuilder, MessageId, Otherwise, Priority, StreamId,
    Timestamp, UserId,
};

/// What can happen.
#[derive(Clone, Debug)]
pub enum Op {
    /// A message is sent.
    Send {
        /// By whom.
        sender: u8,
        /// To whom.
        user: u8,
        /// Its id.
        id: u8,
        /// How urgent it is.
        priority: Priority,
        /// Its payload.
        body: Vec<u8>,
    },
    /// A message is sent that waits for another one of the same sender to the same recipient.
    After {
        /// By whom.
        sender: u8,
        /// To whom.
        user: u8,
        /// Its id.
        id: u8,
        /// What it waits for.
        parent: u8,
        /// What becomes of it when that is not delivered.
        otherwise: Otherwise,
    },
    /// A message is withdrawn, whoever sent it.
    Cancel {
        /// Whom it is for.
        user: u8,
        /// Its id.
        id: u8,
    },
    /// A message is sent that takes the place of one with the same collapse key.
    Newest {
        /// To whom.
        user: u8,
        /// Its id.
        id: u8,
        /// How urgent it is.
        priority: Priority,
        /// What it is the newest of.
        key: u8,
        /// Which version it is.
        version: Option<u8>,
    },
    /// A message is sent for later.
    Later {
        /// To whom.
        user: u8,
        /// Its id.
        id: u8,
        /// How urgent it is.
        priority: Priority,
        /// In how many milliseconds.
        delay: u16,
    },
    /// A message is sent to several.
    FanOut {
        /// To whom.
        users: Vec<u8>,
        /// Its id.
        id: u8,
        /// How urgent it is.
        priority: Priority,
    },
    /// A message is replaced by another one.
    Replace {
        /// Whom it is for.
        user: u8,
        /// Its id.
        id: u8,
        /// The id of the other one.
        with: u8,
        /// How urgent that is.
        priority: Priority,
    },
    /// A message is moved to another lane.
    Reprioritise {
        /// Whom it is for.
        user: u8,
        /// Its id.
        id: u8,
        /// How urgent it is from now on.
        priority: Priority,
    },
    /// All that waits for someone is withdrawn.
    Purge(u8),
    /// Someone's dead letters are sent again.
    Requeue(u8),
    /// From now on all sinks refuse what they are offered for good, or none does.
    Refuse(bool),
    /// All of someone's sinks go away.
    Detach(u8),
    /// Someone attaches a sink for this device.
    Attach(u8, u8),
    /// Someone's device is registered.
    Register(u8, u8),
    /// Someone's device is removed.
    Unregister(u8, u8),
    /// Time passes.
    Wait(u16),
}

/// What a machine of so many is born with.
fn birth(config: &Config, shard: usize, shards: usize) -> Birth {
    Birth {
        config: config.clone(),
        stream: StreamId::from_u128(1),
        epoch: Epoch(1),
        digest_key: 7,
        seed: 1,
        settled: Seq::ZERO,
        counters: Counters::default(),
        store_empty: true,
        shard: (shard, shards),
    }
}

/// The person of this number.
#[must_use]
pub fn person(number: u8) -> UserId {
    UserId::new([b'u', number]).expect("two bytes are a user id")
}

/// The message of a send.
#[must_use]
pub fn message(sender: u8, user: u8, id: u8, priority: Priority, body: &[u8]) -> Message {
    let builder = builder(sender, user, id, priority, body).devices(policy(sender));
    builder.build().expect("a small message is within the limits")
}

/// The message of a send, before it is built.
pub fn builder(sender: u8, user: u8, id: u8, priority: Priority, body: &[u8]) -> MessageBuilder {
    Message::to(person(user), "prop.message", body.to_vec())
        .id(MessageId::from_u128(u128::from(id)))
        .sender(person(sender))
        .priority(priority)
}

/// Each sender has a policy of its own.
fn policy(sender: u8) -> DevicePolicy {
    let all = [DevicePolicy::AnyDevice, DevicePolicy::EveryDevice, DevicePolicy::RingAll];
    all[usize::from(sender) % all.len()]
}

fn target(user: u8, id: u8) -> Target {
    Target { user: person(user), id: MessageId::from_u128(u128::from(id)), sender: None }
}

fn device(number: u8) -> DeviceId {
    DeviceId::new([b'd', number]).expect("two bytes are a device id")
}

/// Machines and nothing else: commits are durable at once, sinks confirm at once, nothing settles.
#[derive(Debug)]
pub struct Shell {
    machines: Vec<Machine>,
    digester: Digester,
    /// The time.
    pub now: Timestamp,
    next: Seq,
    tickets: u64,
    links: Vec<(LinkId, UserId, u8)>,
    /// Sinks refuse what they are offered.
    refusing: bool,
    last_link: u64,
    /// What was delivered, to which device of whom, and where it was, in order.
    pub places: Vec<(UserId, u8, EntryRef, Message)>,
    /// What was delivered, in order.
    pub delivered: Vec<(UserId, Priority, MessageId)>,
    /// What was answered, in order.
    pub answers: Vec<(Ticket, Result<Accepted, Refusal>)>,
    /// How operations were answered, in order.
    pub done: Vec<(Ticket, Result<Outcome, OperationError>)>,
}

impl Shell {
    /// So many shards.
    #[must_use]
    pub fn new(shards: usize, config: &Config) -> Self {
        Self {
            machines: (0..shards).map(|shard| Machine::new(birth(config, shard, shards))).collect(),
            digester: Digester::new(7),
            now: Timestamp::from_millis(1_000_000),
            next: Seq::first_of(Epoch(1)),
            tickets: 0,
            links: Vec::new(),
            refusing: false,
            last_link: 0,
            places: Vec::new(),
            delivered: Vec::new(),
            answers: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Does one thing.
    pub fn play(&mut self, op: &Op) {
        match op {
            Op::Send { sender, user, id, priority, body } => {
                self.tickets += 1;
                let message = message(*sender, *user, *id, *priority, body);
                self.input(&person(*user), Input::Send { ticket: Ticket(self.tickets), message });
            }
            Op::After { sender, user, id, parent, otherwise } => {
                self.tickets += 1;
                let waits = builder(*sender, *user, *id, Priority::Normal, b"after");
                let waits = waits.after(MessageId::from_u128(u128::from(*parent)), *otherwise);
                let message = waits.build().expect("a small message is within the limits");
                self.input(&person(*user), Input::Send { ticket: Ticket(self.tickets), message });
            }
            Op::Newest { user, id, priority, key, version } => {
                let newest = builder(0, *user, *id, *priority, b"newest").collapse_key(format!("k{key}"));
                let newest = version.iter().fold(newest, |newest, version| newest.version((*version).into()));
                self.send(newest);
            }
            Op::Later { user, id, priority, delay } => {
                let at = self.now.after(Duration::from_millis((*delay).into()));
                self.send(builder(0, *user, *id, *priority, b"later").not_before(at));
            }
            Op::FanOut { users, id, priority } => self.fan_out(users, *id, *priority),
            Op::Cancel { user, id } => self.operate(Operation::Cancel(target(*user, *id))),
            Op::Replace { user, id, with, priority } => {
                let message = builder(0, *user, *with, *priority, b"instead").build();
                let message = message.expect("a small message is within the limits");
                self.operate(Operation::Replace(target(*user, *id), message));
            }
            Op::Reprioritise { user, id, priority } => {
                self.operate(Operation::Reprioritise(target(*user, *id), *priority));
            }
            Op::Purge(user) => self.operate(Operation::Purge(person(*user))),
            Op::Requeue(user) => self.operate(Operation::Requeue(DeadLetters::of(person(*user)))),
            Op::Refuse(refusing) => self.refusing = *refusing,
            Op::Detach(user) => {
                let (gone, left) = core::mem::take(&mut self.links)
                    .into_iter()
                    .partition::<Vec<_>, _>(|(_, of, _)| *of == person(*user));
                self.links = left;
                gone.into_iter().for_each(|(link, user, _)| self.input(&user, Input::Detach(link)));
            }
            Op::Attach(user, number) => self.attach(&person(*user), *number),
            Op::Register(user, number) => {
                self.operate(Operation::Register(person(*user), device(*number)));
            }
            Op::Unregister(user, number) => {
                self.operate(Operation::Unregister(person(*user), device(*number)));
            }
            Op::Wait(millis) => {
                self.now = self.now.after(Duration::from_millis((*millis).into()));
                for shard in 0..self.machines.len() {
                    self.on(shard, Input::Tick);
                }
            }
        }
    }

    fn send(&mut self, message: MessageBuilder) {
        self.tickets += 1;
        let message = message.build().expect("a small message is within the limits");
        let user = message.recipient().clone();
        self.input(&user, Input::Send { ticket: Ticket(self.tickets), message });
    }

    /// One input for those who follow each other and belong to one shard.
    fn fan_out(&mut self, users: &[u8], id: u8, priority: Priority) {
        let shards = self.machines.len();
        let shard = |digester: &Digester, user: u8| digester.shard(&person(user), shards);
        let digester = self.digester;
        for run in users.chunk_by(|one, other| shard(&digester, *one) == shard(&digester, *other)) {
            let Some(first) = run.first() else { continue };
            let message = builder(0, *first, id, priority, b"many").build();
            let message = message.expect("a small message is within the limits");
            let recipients = run.iter().map(|user| person(*user)).collect();
            let ticket = Ticket(self.tickets + 1);
            self.tickets += run.len() as u64;
            self.on(shard(&digester, *first), Input::FanOut { first: ticket, message, recipients });
        }
    }

    /// What all shards have counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let all = self.machines.iter().map(|machine| machine.stats().counters);
        all.fold(Counters::default(), |mut sum, counters| {
            sum.add(&counters);
            sum
        })
    }

    fn operate(&mut self, operation: Operation) {
        self.tickets += 1;
        let user = operation.user().clone();
        self.input(&user, Input::Operate { ticket: Ticket(self.tickets), operation });
        // What takes several slices.
        for shard in 0..self.machines.len() {
            while self.machines[shard].poll_timeout() == Some(Timestamp::ZERO) {
                self.on(shard, Input::Tick);
            }
        }
    }

    fn attach(&mut self, user: &UserId, number: u8) {
        self.last_link += 1;
        let link = LinkId(self.last_link);
        self.links.push((link, user.clone(), number));
        let device = device(number);
        self.input(user, Input::Attach { link, user: user.clone(), device });
    }

    fn input(&mut self, user: &UserId, input: Input) {
        self.on(self.digester.shard(user, self.machines.len()), input);
    }

    fn on(&mut self, shard: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            self.machines[shard].handle(self.now, input);
            while let Some(action) = self.machines[shard].poll_action() {
                inputs.extend(self.act(action));
            }
            // More than fits into one drain: operations, and what they cause.
            if inputs.is_empty() && self.machines[shard].poll_timeout() == Some(Timestamp::ZERO) {
                inputs.push_back(Input::Tick);
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Persist { commit, records, .. } => {
                let first = self.next;
                self.next = self.next.plus(records.len() as u64);
                Some(Input::Persisted { commit, first })
            }
            Action::Offer { link, batch } => {
                let (_, user, number) = self.links.iter().find(|(id, ..)| *id == link)?.clone();
                let places = batch
                    .iter()
                    .map(|delivery| (user.clone(), number, delivery.entry, delivery.message.clone()));
                if self.refusing {
                    let verdicts = batch.iter().map(|delivery| (delivery.entry, Verdict::Rejected)).collect();
                    return Some(Input::Verdicts { link, verdicts });
                }
                self.places.extend(places);
                let took = |delivery: &lastmile::machine::Delivery| {
                    (user.clone(), delivery.message.priority(), delivery.message.id())
                };
                self.delivered.extend(batch.iter().map(took));
                let verdicts: Vec<(EntryRef, Verdict)> =
                    batch.iter().map(|delivery| (delivery.entry, Verdict::Delivered)).collect();
                Some(Input::Verdicts { link, verdicts })
            }
            Action::Answer { ticket, result } => {
                self.answers.push((ticket, result));
                None
            }
            Action::Done { ticket, result } => {
                self.done.push((ticket, result));
                None
            }
            _ => None,
        }
    }

    /// What one person was delivered, in order.
    #[must_use]
    pub fn delivered_to(&self, user: u8) -> Vec<(Priority, MessageId)> {
        let theirs = self.delivered.iter().filter(|(to, ..)| *to == person(user));
        theirs.map(|(_, lane, id)| (*lane, *id)).collect()
    }
}
