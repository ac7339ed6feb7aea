//! What the documentation promises of operations, as a model: who waits where, who is a dead letter, what each answer says.
//!
//! It knows nothing of places, commits or lanes' turns, so what it says holds whatever those come to: of each person and
//! priority the order, of everything else the numbers.

use std::collections::HashMap;

use lastmile::machine::{OperationError, Outcome, Refusal};
use lastmile::{EndReason, Priority};

use crate::Op;

/// A message as the model knows it.
#[derive(Clone, Debug)]
struct Known {
    id: u8,
    priority: Priority,
    key: Option<u8>,
    version: Option<u8>,
    /// When its time comes, if it was sent for later.
    due: Option<u64>,
    /// It was offered before.
    offered: bool,
}

/// What one person has.
#[derive(Debug, Default)]
struct Person {
    attached: bool,
    waiting: Vec<Known>,
    scheduled: Vec<Known>,
    dead: Vec<Known>,
    /// What was accepted under each id.
    ids: HashMap<u8, (Priority, &'static str)>,
    /// The newest version of each key that was accepted; 0 for none.
    versions: HashMap<u8, u8>,
    delivered: Vec<(Priority, u8)>,
}

/// What a send is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Accepted now.
    New,
    /// Accepted before.
    Again,
    /// Another one had that id.
    Conflict,
    /// A later version was accepted.
    Outdated,
}

impl Sent {
    /// What an answer says.
    #[must_use]
    pub fn of(answer: &Result<lastmile::machine::Accepted, Refusal>) -> Option<Self> {
        match answer {
            Ok(accepted) if accepted.duplicate => Some(Self::Again),
            Ok(_) => Some(Self::New),
            Err(Refusal::Conflict) => Some(Self::Conflict),
            Err(Refusal::Outdated { .. }) => Some(Self::Outdated),
            Err(_) => None,
        }
    }
}

/// What an operation is answered: how many it ended and left, or why it did nothing.
pub type Done = Result<(u32, u32), OperationError>;

/// What an answer says.
pub fn done(answer: &Result<Outcome, OperationError>) -> Done {
    answer.as_ref().map(|outcome| (outcome.messages, outcome.superseded)).map_err(Clone::clone)
}

/// Everybody.
#[derive(Debug, Default)]
pub struct Model {
    now: u64,
    refusing: bool,
    people: HashMap<u8, Person>,
    /// How many were accepted.
    pub accepted: u64,
    /// How many have ended, by reason.
    pub ended: [u64; EndReason::ALL.len()],
    /// What sends are to be answered, in order.
    pub sent: Vec<Sent>,
    /// What operations are to be answered, in order.
    pub done: Vec<Done>,
}

impl Model {
    /// Does one thing; what it does not know it takes for nothing.
    pub fn play(&mut self, op: &Op) {
        match op {
            Op::Send { user, id, priority, .. } => self.send(*user, plain(*id, *priority), "send"),
            Op::Newest { user, id, priority, key, version } => {
                let newest = Known { key: Some(*key), version: *version, ..plain(*id, *priority) };
                self.send(*user, newest, "newest");
            }
            Op::Later { user, id, priority, delay } => {
                let due = (*delay > 0).then_some(self.now + u64::from(*delay));
                self.send(*user, Known { due, ..plain(*id, *priority) }, "later");
            }
            Op::FanOut { users, id, priority } => {
                users.iter().for_each(|user| self.send(*user, plain(*id, *priority), "many"));
            }
            Op::Cancel { user, id } => {
                let taken = self.person(*user).take(*id);
                self.end(EndReason::Cancelled, u64::from(taken.is_some()));
                self.done.push(taken.map(|_| (1, 0)).ok_or(OperationError::NotWaiting));
            }
            Op::Replace { user, id, with, priority } => self.replace(*user, *id, *with, *priority),
            Op::Reprioritise { user, id, priority } => {
                let answer = self.person(*user).reprioritise(*id, *priority);
                self.done.push(answer);
            }
            Op::Purge(user) => {
                let person = self.person(*user);
                let ended = person.waiting.len() + person.scheduled.len();
                let all = ended + person.dead.len();
                person.waiting.clear();
                person.scheduled.clear();
                person.dead.clear();
                self.end(EndReason::Cancelled, ended as u64);
                self.done.push(Ok((all as u32, 0)));
            }
            Op::Requeue(user) => self.requeue(*user),
            Op::Refuse(refusing) => self.refusing = *refusing,
            Op::Attach(user, _) => self.person(*user).attached = true,
            Op::Detach(user) => self.person(*user).attached = false,
            Op::Wait(millis) => self.now += u64::from(*millis),
            Op::After { .. } | Op::Register(..) | Op::Unregister(..) => {}
        }
        self.deliver();
    }

    /// How many wait, and how many dead letters there are.
    #[must_use]
    pub fn left(&self) -> (u64, u64) {
        let people = || self.people.values();
        let waiting: usize = people().map(|person| person.waiting.len() + person.scheduled.len()).sum();
        let dead: usize = people().map(|person| person.dead.len()).sum();
        (waiting as u64, dead as u64)
    }

    /// What somebody was delivered of a priority, in order.
    #[must_use]
    pub fn delivered_to(&self, user: u8, priority: Priority) -> Vec<u8> {
        let theirs = self.people.get(&user).into_iter().flat_map(|person| &person.delivered);
        theirs.filter(|(of, _)| *of == priority).map(|(_, id)| *id).collect()
    }

    fn person(&mut self, user: u8) -> &mut Person {
        self.people.entry(user).or_default()
    }

    fn end(&mut self, reason: EndReason, messages: u64) {
        self.ended[reason.index()] += messages;
    }

    fn send(&mut self, user: u8, message: Known, body: &'static str) {
        let person = self.person(user);
        let answer = match (person.ids.get(&message.id), message.key.zip(message.version)) {
            (Some(known), _) if *known == (message.priority, body) => Sent::Again,
            (Some(_), _) => Sent::Conflict,
            (None, Some((key, version)))
                if person.versions.get(&key).is_some_and(|newest| version < *newest) =>
            {
                Sent::Outdated
            }
            (None, _) => Sent::New,
        };
        self.sent.push(answer);
        if answer == Sent::New {
            self.accept(user, message, body);
        }
    }

    /// Of a key, only the newest waits.
    fn accept(&mut self, user: u8, message: Known, body: &'static str) {
        let person = self.person(user);
        person.ids.insert(message.id, (message.priority, body));
        let old = message.key.and_then(|key| person.waiting.iter().position(|other| other.key == Some(key)));
        old.map(|at| person.waiting.remove(at));
        person.put(message);
        self.accepted += 1;
        self.end(EndReason::Replaced, u64::from(old.is_some()));
    }

    fn replace(&mut self, user: u8, id: u8, with: u8, priority: Priority) {
        let person = self.person(user);
        let answer = match person.ids.get(&with).copied() {
            Some(known) if known == (priority, "instead") => Ok((0, 0)),
            Some(_) => Err(OperationError::Refused(Refusal::Conflict)),
            None => match person.take(id) {
                None => Err(OperationError::NotWaiting),
                // What waits is the newest of its key, and so is what takes its place.
                Some(Known { key, version, .. }) => {
                    self.accept(user, Known { key, version, ..plain(with, priority) }, "instead");
                    self.end(EndReason::Replaced, 1);
                    Ok((1, 0))
                }
            },
        };
        self.done.push(answer);
    }

    /// All go that have no key, in their order, and then of each key the newest, unless something newer is known.
    fn requeue(&mut self, user: u8) {
        let person = self.person(user);
        let (mut go, mut stay) = (Vec::new(), Vec::new());
        let all = core::mem::take(&mut person.dead);
        let is_newest = |at: usize, key| all.iter().rposition(|other| other.key == Some(key)) == Some(at);
        for (at, letter) in all.iter().enumerate() {
            let Some(key) = letter.key else { continue };
            let waits = person.waiting.iter().any(|other| other.key == Some(key));
            let newest = person.versions.get(&key).copied().unwrap_or_default();
            let is_outdated = letter.version.unwrap_or_default() < newest;
            let goes = is_newest(at, key) && !waits && !is_outdated;
            if goes { go.push(letter.clone()) } else { stay.push(letter.clone()) }
        }
        let plain = all.iter().filter(|letter| letter.key.is_none()).cloned();
        let sent: Vec<_> = plain.chain(go).collect();
        let (messages, superseded) = (sent.len() as u32, stay.len() as u32);
        person.dead = stay;
        sent.into_iter().for_each(|letter| person.put(letter));
        self.accepted += u64::from(messages);
        let nothing = messages == 0 && superseded > 0;
        self.done.push(if nothing { Err(OperationError::Superseded) } else { Ok((messages, superseded)) });
    }

    /// Whoever is there gets all that waits, and what is due.
    fn deliver(&mut self) {
        let (now, refusing) = (self.now, self.refusing);
        let (mut delivered, mut rejected) = (0, 0);
        for person in self.people.values_mut().filter(|person| person.attached) {
            let is_due = |message: &mut Known| message.due.is_some_and(|due| due <= now);
            let due: Vec<_> = person.scheduled.extract_if(.., is_due).collect();
            for message in core::mem::take(&mut person.waiting).into_iter().chain(due) {
                if refusing {
                    rejected += 1;
                    person.dead.push(Known { due: None, offered: true, ..message });
                } else {
                    delivered += 1;
                    person.delivered.push((message.priority, message.id));
                }
            }
        }
        self.end(EndReason::Delivered, delivered);
        self.end(EndReason::Rejected, rejected);
    }
}

impl Person {
    /// Behind what waits.
    fn put(&mut self, message: Known) {
        if let Some(key) = message.key {
            self.versions.insert(key, message.version.unwrap_or_default());
        }
        if message.due.is_some() { self.scheduled.push(message) } else { self.waiting.push(message) }
    }

    /// What waits under this id.
    fn take(&mut self, id: u8) -> Option<Known> {
        [&mut self.waiting, &mut self.scheduled].into_iter().find_map(|list| {
            let at = list.iter().position(|message| message.id == id)?;
            Some(list.remove(at))
        })
    }

    fn reprioritise(&mut self, id: u8, priority: Priority) -> Done {
        let known = self.waiting.iter().chain(&self.scheduled).find(|message| message.id == id);
        match known {
            None => return Err(OperationError::NotWaiting),
            Some(known) if known.priority == priority => return Ok((0, 0)),
            Some(known) if known.offered => return Err(OperationError::Offered),
            Some(_) => {}
        }
        if let Some(message) = self.take(id) {
            let moved = Known { priority, ..message };
            if moved.due.is_some() { self.scheduled.push(moved) } else { self.waiting.push(moved) }
        }
        Ok((1, 0))
    }
}

fn plain(id: u8, priority: Priority) -> Known {
    Known { id, priority, key: None, version: None, due: None, offered: false }
}
