//! Tests of the machine: state and emitted actions. This file is the rig they share.

mod accept;
mod announced;
mod aside;
mod batch;
mod bounds;
mod collapse;
mod dead;
mod deliver;
mod dependents;
mod dependents_of_copies;
mod devices;
mod devices_come_and_go;
mod exposed;
mod fanout;
mod find;
mod history;
mod inbox;
mod ledger;
mod locate_copies;
mod operate;
mod overflow;
mod promised;
mod reads;
mod replace;
mod reserve;
mod rings;
mod schedule;
mod settle;
mod sweep;

use core::num::{NonZeroU64, NonZeroUsize};
use core::time::Duration;

use super::*;
use crate::message::{Durability, Message, MessageBuilder, Priority};
use crate::record::{Admission, Gap, LaneId, ReadMark, Record, UserRow};
use crate::status::Status;
use crate::{DeviceId, EndReason, MessageId};

/// A machine with the smallest shell: commits succeed when the test says so.
struct Rig {
    machine: Machine,
    now: Timestamp,
    next: Seq,
    log: Vec<(Seq, Record)>,
    open: VecDeque<(CommitId, Vec<Record>)>,
    answers: Vec<(Ticket, Result<Accepted, Refusal>)>,
    offers: Vec<(LinkId, Delivery)>,
    changes: Vec<Change>,
    gaps_told: Vec<(LinkId, Vec<Gap>)>,
    moves: Vec<(EntryRef, EntryRef)>,
    replies: Vec<(Message, bytes::Bytes)>,
    loads: Vec<(LoadId, Query)>,
    /// The row that the store has of whoever is asked for.
    row: Option<crate::record::UserRow>,
    survivors: Vec<Survivors>,
    dismissed: Vec<LinkId>,
    done: Vec<(Ticket, Result<Outcome, OperationError>)>,
    told: Vec<(usize, Word)>,
    joints: Vec<(JointId, Vec<JointPart>)>,
    withdrawn: Vec<(LinkId, Withdrawn)>,
    marked: Vec<ReadMark>,
    tickets: u64,
}

fn birth(config: Config) -> Birth {
    Birth {
        config,
        stream: StreamId::from_u128(1),
        epoch: Epoch(1),
        digest_key: 7,
        seed: 1,
        settled: Seq::ZERO,
        counters: Counters::default(),
        store_empty: true,
        shard: (0, 1),
    }
}

impl Rig {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        Self::born(birth(config))
    }

    fn born(birth: Birth) -> Self {
        Self {
            next: Seq::first_of(birth.epoch),
            machine: Machine::new(birth),
            now: Timestamp::from_millis(1000),
            log: Vec::new(),
            open: VecDeque::new(),
            answers: Vec::new(),
            offers: Vec::new(),
            changes: Vec::new(),
            gaps_told: Vec::new(),
            moves: Vec::new(),
            replies: Vec::new(),
            loads: Vec::new(),
            row: None,
            survivors: Vec::new(),
            dismissed: Vec::new(),
            done: Vec::new(),
            told: Vec::new(),
            joints: Vec::new(),
            withdrawn: Vec::new(),
            marked: Vec::new(),
            tickets: 0,
        }
    }

    fn input(&mut self, input: Input) {
        self.machine.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        for _ in 0..10_000 {
            while let Some(action) = self.machine.poll_action() {
                self.act(action);
            }
            if self.machine.poll_timeout() != Some(Timestamp::ZERO) {
                return;
            }
            self.machine.handle(self.now, Input::Tick);
        }
        panic!("the machine never comes to rest");
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Persist { commit, records, .. } => self.open.push_back((commit, records)),
            Action::PersistJoint { joint, parts } => self.joints.push((joint, parts)),
            Action::Tell { shard, word } => self.told.push((shard, *word)),
            Action::Answer { ticket, result } => self.answers.push((ticket, result)),
            Action::Offer { link, batch } => self.offers.extend(batch.into_iter().map(|d| (link, d))),
            Action::TellGaps { link, gaps } => self.gaps_told.push((link, gaps)),
            Action::Withdraw { link, withdrawn } => self.withdrawn.push((link, withdrawn)),
            Action::Load { load, query } => self.loads.push((load, query)),
            Action::Announce(change) => self.changes.push(change),
            Action::Moved { from, to, .. } => self.moves.extend(to.into_iter().map(|to| (from, to))),
            Action::MarkedRead(.., mark) => self.marked.push(mark),
            Action::Replied { message, answer } => self.replies.push((message, answer)),
            Action::Survivors(part) => self.survivors.push(*part),
            Action::Dismiss(link) => self.dismissed.push(link),
            Action::Done { ticket, result } => self.done.push((ticket, result)),
        }
    }

    fn send(&mut self, message: &Message) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.input(Input::Send { ticket, message: message.clone() });
        ticket
    }

    /// Makes everything that was handed out durable, and what follows from it.
    fn commit(&mut self) {
        while let Some((commit, records)) = self.open.pop_front() {
            let first = self.next;
            for record in records {
                self.log.push((self.next, record));
                self.next = self.next.plus(1);
            }
            self.input(Input::Persisted { commit, first });
        }
    }

    fn answer(&self, ticket: Ticket) -> Option<&Result<Accepted, Refusal>> {
        let mut found = self.answers.iter().filter(|(t, _)| *t == ticket);
        let answer = found.next().map(|(_, result)| result);
        assert!(found.next().is_none(), "answered twice");
        answer
    }

    fn accept(&mut self, message: &Message) -> EntryRef {
        let ticket = self.send(message);
        self.commit();
        self.answer(ticket).unwrap().as_ref().unwrap().entry
    }

    fn attach(&mut self, link: u64, user: &str, device: &str) {
        let user = UserId::new(user).unwrap();
        let device = DeviceId::new(device).unwrap();
        self.input(Input::Attach { link: LinkId(link), user, device });
        self.commit();
    }

    fn say(&mut self, link: u64, entry: EntryRef, verdict: Verdict) {
        self.input(Input::Verdicts { link: LinkId(link), verdicts: vec![(entry, verdict)] });
        self.commit();
    }

    fn offered(&self) -> Vec<EntryRef> {
        self.offers.iter().map(|(_, delivery)| delivery.entry).collect()
    }

    fn pass(&mut self, by: Duration) {
        self.now = self.now.after(by);
        self.input(Input::Tick);
        self.commit();
    }

    /// A machine born of this one's log.
    fn replayed(&self) -> Machine {
        let mut machine = Machine::new(Birth { epoch: Epoch(2), ..birth(self.machine.config.clone()) });
        for (seq, record) in &self.log {
            machine.replay(*seq, record, true);
        }
        machine
    }
}

/// What somebody has who has neither scheduled messages nor dead letters.
fn held(messages: u32, bytes: u64) -> Holdings {
    Holdings { messages, bytes, ..Holdings::default() }
}

fn to(user: &str) -> MessageBuilder {
    Message::to(user, "chat.message", "hello")
}

fn message(user: &str) -> Message {
    to(user).build().unwrap()
}

fn settle(rig: &mut Rig) -> Vec<Survivors> {
    let before = rig.next;
    rig.input(Input::Settle { before });
    let parts = core::mem::take(&mut rig.survivors);
    assert!(parts.last().unwrap().last);
    rig.input(Input::Settled { before });
    parts
}
