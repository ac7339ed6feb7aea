//! The driver: one task per shard that feeds its machine and carries out what it says.

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::{SendError, Sender};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::attachment::Registry;
use super::batch::Unanswered;
use super::committer::{Order, Request, Share, Whose};
use super::fanout::{self, Slices};
use super::keeper::Event;
use super::mail::{Mail, Note, Operated, Post, Reply};
use super::receipt::Stage;
use super::requests::Requests;
use super::subscribe::Changes;
use super::tasks;
use super::watch::{Seen, Waiting, Watched, Watchers};
use crate::codec::Cipher;
use crate::config::KeepEnds;
use crate::digest::Digester;
use crate::machine::{
    Accepted, Action, Change, EntryRef, Input, JointId, JointPart, LoadId, Machine, MachineStats, Query,
    Refusal, Ticket, Word,
};
use crate::message::Message;
use crate::ports::Clock;
use crate::record::{End, Record};
use crate::storage::outbox::OutboxStore;
use crate::time::Timestamp;

/// Commits a driver may have open before it takes no more mail. The committer makes one group of all that wait, so this
/// must be more than the times a driver wakes up while the disk syncs, which is once a message at worst. With two, the
/// few senders who came first after a sync filled the second place, and all others waited for a third sync: groups of
/// 23 instead of 30 with 64 in flight, and a disk that stood still in between.
pub(super) const MAX_OPEN_COMMITS: usize = 256;
/// The longest sleep. tokio's time stands still while the machine sleeps, the engine's goes on: so what became due
/// meanwhile is late by no more than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Mail taken at once.
const MAX_MAIL: usize = 1024;

pub(super) struct Driver {
    pub(super) shard: usize,
    pub(super) machine: Machine,
    pub(super) post: Post,
    pub(super) mail: mpsc::Receiver<Mail>,
    pub(super) notes: mpsc::UnboundedReceiver<Note>,
    pub(super) clock: Arc<dyn Clock>,
    /// All drivers, by shard.
    pub(super) shards: Arc<[Post]>,
    pub(super) unanswered: Arc<Unanswered>,
    pub(super) committer: Sender<Order>,
    pub(super) keeper: Sender<Event>,
    pub(super) registry: Arc<Registry>,
    pub(super) requests: Arc<Requests>,
    pub(super) digester: Digester,
    pub(super) hub: Arc<Changes>,
    pub(super) outbox: OutboxStore,
    pub(super) loads: Arc<Semaphore>,
    pub(super) handle: Handle,
    /// The most bytes of new messages taken into one commit.
    pub(super) max_mail_bytes: u64,
    pub(super) keep_ends: KeepEnds,
    pub(super) state: DriverState,
}

/// What a driver remembers between wake-ups.
#[derive(Default)]
pub(super) struct DriverState {
    replies: hashbrown::HashMap<u64, Reply>,
    slices: Slices,
    operations: hashbrown::HashMap<u64, oneshot::Sender<Operated>>,
    next_ticket: u64,
    /// Encoded bytes of each open commit; they end in order.
    open_commits: VecDeque<u64>,
    open_bytes: u64,
    watchers: Watchers,
    /// Who asked for its counts.
    asked: Vec<oneshot::Sender<MachineStats>>,
    /// Whether it was told to stop.
    stopped: bool,
    /// How often the journal stopped taking commits, as far as the machine was told.
    generation: u64,
}

impl Driver {
    /// Runs until told to stop, or until nobody holds the engine any more.
    pub(super) async fn run(mut self) {
        let mut mail = Vec::with_capacity(MAX_MAIL);
        loop {
            self.drain();
            match self.wait(&mut mail).await {
                Woken::Note(note) => {
                    if !self.take_notes(note) {
                        return;
                    }
                }
                Woken::Mail => {}
                Woken::Timer => self.machine.handle(self.clock.now(), Input::Tick),
                Woken::Closed => return,
            }
            let now = self.clock.now();
            for item in mail.drain(..) {
                self.take_mail(now, item);
            }
            self.take_more_mail(now);
            self.answer_stats();
            if self.state.stopped {
                return;
            }
        }
    }

    async fn wait(&mut self, mail: &mut Vec<Mail>) -> Woken {
        let now = self.clock.now();
        let timeout = self.machine.poll_timeout().map(|at| at.since(now));
        if timeout == Some(Duration::ZERO) {
            return match self.notes.try_recv() {
                Ok(note) => Woken::Note(note),
                Err(_) => {
                    tokio::task::yield_now().await;
                    Woken::Timer
                }
            };
        }
        let takes_mail = self.takes_mail();
        let sleep = tokio::time::sleep(timeout.unwrap_or(Duration::MAX).min(LONGEST_SLEEP));
        tokio::select! {
            biased;
            note = self.notes.recv() => note.map_or(Woken::Closed, Woken::Note),
            n = self.mail.recv_many(mail, 1), if takes_mail => if n == 0 { Woken::Closed } else { Woken::Mail },
            () = sleep, if timeout.is_some() => Woken::Timer,
        }
    }

    /// The back-pressure: no more mail than the disk keeps up with, in commits and in bytes.
    fn takes_mail(&self) -> bool {
        self.state.open_commits.len() < MAX_OPEN_COMMITS
            && self.state.open_bytes < self.max_mail_bytes.saturating_mul(2)
    }

    /// `false` when told to stop.
    fn take_notes(&mut self, first: Note) -> bool {
        let now = self.clock.now();
        let mut next = Some(first);
        while let Some(note) = next {
            match note {
                Note::Stop => return false,
                Note::Found(watched, attempts) => self.state.watchers.found(&watched, attempts),
                Note::Stats(reply) => self.state.asked.push(reply),
                Note::Input(input) => {
                    match input {
                        Input::Persisted { .. } | Input::PersistFailed { .. } => {
                            let ended = self.state.open_commits.pop_front().unwrap_or(0);
                            self.state.open_bytes = self.state.open_bytes.saturating_sub(ended);
                        }
                        Input::Writable(false) => self.state.generation += 1,
                        _ => {}
                    }
                    self.machine.handle(now, input);
                }
            }
            next = self.notes.try_recv().ok();
        }
        true
    }

    /// After the mail that could be taken, so that whoever asks finds what was said before counted. What could not be taken
    /// waits for an answer as well.
    fn answer_stats(&mut self) {
        for reply in core::mem::take(&mut self.state.asked) {
            let mut stats = self.machine.stats();
            stats.pending += self.mail.len() as u64;
            let _ = reply.send(stats);
        }
    }

    fn hear_notes(&mut self) {
        if let Ok(note) = self.notes.try_recv()
            && !self.take_notes(note)
        {
            self.state.stopped = true;
        }
    }

    /// Fills the commit that is being built, within its bounds.
    fn take_more_mail(&mut self, now: Timestamp) {
        let mut bytes = 0_u64;
        for _ in 0..MAX_MAIL {
            if !self.takes_mail() || bytes >= self.max_mail_bytes {
                return;
            }
            let Ok(item) = self.mail.try_recv() else { return };
            bytes += match &item {
                Mail::Send { message, .. } => message.cost(),
                Mail::SendBatch(batch) => batch.iter().map(|(message, _)| message.cost()).sum(),
                Mail::SendJoint(batch) => batch.bytes(),
                Mail::FanOut { message, recipients, .. } => fanout::bytes(message, recipients),
                Mail::Receive(batch) => batch.iter().map(|(delivery, _)| delivery.message.cost()).sum(),
                _ => 0,
            };
            self.take_mail(now, item);
        }
    }

    fn take_mail(&mut self, now: Timestamp, item: Mail) {
        match item {
            Mail::Send { message, reply } => {
                let ticket = self.ticket(reply);
                self.machine.handle(now, Input::Send { ticket, message });
            }
            Mail::SendBatch(batch) => {
                let batch = batch.into_iter().map(|(message, reply)| (self.ticket(reply), message));
                let batch = batch.collect();
                self.machine.handle(now, Input::SendBatch(batch));
            }
            Mail::SendJoint(batch) => {
                let joint = self.unanswered.open(*batch);
                self.machine.handle(now, Input::Told(Word::Reserve(joint)));
            }
            Mail::FanOut { message, recipients, reply } => {
                let first = Ticket(self.state.next_ticket.saturating_add(1));
                self.state.next_ticket += recipients.len() as u64;
                self.state.slices.open(first, recipients.len(), reply, None);
                self.machine.handle(now, Input::FanOut { first, message, recipients });
            }
            Mail::Receive(batch) => {
                let batch = batch.into_iter().map(|(delivery, reply)| (self.ticket(reply), delivery));
                let batch = batch.collect();
                self.machine.handle(now, Input::Receive(batch));
            }
            Mail::Operate { operation, reply } => {
                let ticket = self.next_ticket();
                self.state.operations.insert(ticket.0, reply);
                self.machine.handle(now, Input::Operate { ticket, operation });
            }
            Mail::Watch { user, entry, stage, reply } => self.watch((user, entry), stage, reply),
            Mail::WatchRead { user, key, place, reply } => {
                let conversation = self.machine.conversation(&user, key.as_ref());
                self.state.watchers.watch_read((user, conversation), place, reply);
            }
            Mail::LetterHolders { behind, max, reply } => {
                let _ = reply.send(self.machine.letter_holders(behind.as_ref(), max));
            }
            Mail::Input(input) => {
                // What a sink says is said of an attachment that a note has told of, before it could say anything.
                self.hear_notes();
                self.machine.handle(now, input);
            }
        }
    }

    fn next_ticket(&mut self) -> Ticket {
        self.state.next_ticket += 1;
        Ticket(self.state.next_ticket)
    }

    fn ticket(&mut self, reply: Reply) -> Ticket {
        let ticket = self.next_ticket();
        self.state.replies.insert(ticket.0, reply);
        ticket
    }

    fn drain(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Answer { ticket, result } => self.answer(ticket, result),
                Action::Done { ticket, result } => {
                    if let Some(reply) = self.state.operations.remove(&ticket.0) {
                        let _ = reply.send(result);
                    }
                }
                Action::Persist { commit, records, accepts, written } => {
                    let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
                    let ends = self.kept(&records);
                    let records = encode(&records, self.outbox.cipher());
                    self.state.open_commits.push_back(records.len() as u64);
                    self.state.open_bytes += records.len() as u64;
                    let whose = Whose::Shard { shard: self.shard, generation: self.state.generation, commit };
                    let request = Request { whose, count, accepts, written, records, ends };
                    if self.committer.send(Order::Commit(request)).is_err() {
                        self.post.note(Input::PersistFailed { commit, unknown: false });
                    }
                }
                Action::PersistJoint { joint, parts } => self.persist_joint(joint, parts),
                Action::Tell { shard, word } => self.tell_driver(shard, *word),
                Action::Offer { link, batch } => {
                    if let Some(rejected) = self.registry.offer(link, batch) {
                        self.post.note(Input::Verdicts { link, verdicts: rejected });
                    }
                }
                Action::TellGaps { link, gaps } => {
                    if !self.registry.tell(link, gaps) {
                        self.post.note(Input::GapsTold { link, told: false });
                    }
                }
                Action::Withdraw { link, withdrawn } => {
                    if !self.registry.withdraw(link, withdrawn) {
                        self.post.note(Input::Detach(link));
                    }
                }
                Action::Dismiss(link) => self.registry.dismiss(link),
                Action::Load { load, query } => self.load(load, query),
                Action::Announce(change) => self.announce(&change),
                Action::MarkedRead(user, key, conversation, mark) => {
                    self.hub.publish_read(&user, key.as_ref(), mark);
                    self.state.watchers.marked_read(&(user, conversation), mark);
                }
                Action::Replied { message, answer } => self.replied(&message, &answer),
                Action::Moved { user, from, to } => {
                    to.iter().for_each(|to| self.hub.publish_move(&user, from, *to));
                    self.state.watchers.moved(user, from, to);
                }
                Action::Survivors(part) => {
                    let _ = self.keeper.send(Event::Survivors(self.shard, part));
                }
            }
        }
    }

    /// The ends among these that are kept for whoever must see every one.
    fn kept(&self, records: &[Record]) -> Vec<(u32, End)> {
        let kept = |(before, record): (u32, &Record)| match record {
            Record::End(end) if self.keep_ends.keeps(end) => Some((before, end.clone())),
            _ => None,
        };
        if self.keep_ends == KeepEnds::Nothing {
            return Vec::new();
        }
        (0..).zip(records).filter_map(kept).collect()
    }

    fn answer(&mut self, ticket: Ticket, result: Result<Accepted, Refusal>) {
        match self.state.replies.remove(&ticket.0) {
            Some(reply) => drop(reply.send(result)),
            None => {
                if let Some(result) = self.unanswered.answer(ticket, result) {
                    self.state.slices.answer(ticket, result);
                }
            }
        }
    }

    /// Hands over a batch across shards. How many there are is bounded by how many are let in.
    fn persist_joint(&self, joint: JointId, parts: Vec<JointPart>) {
        let share = |part: &JointPart| {
            let count = u32::try_from(part.records.len()).unwrap_or(u32::MAX);
            Share { shard: part.shard, generation: part.generation, count }
        };
        let shares: Vec<_> = parts.iter().map(share).collect();
        let count = shares.iter().map(|share| share.count).sum();
        let records: Vec<_> = parts.into_iter().flat_map(|part| part.records).collect();
        let ends = self.kept(&records);
        let (whose, records) = (Whose::Joint { joint, shares }, encode(&records, self.outbox.cipher()));
        let request = Request { whose, count, accepts: true, written: false, records, ends };
        if let Err(SendError(Order::Commit(request))) = self.committer.send(Order::Commit(request)) {
            for (shard, input) in request.told_failed(false) {
                self.shards.get(shard).into_iter().for_each(|post| post.note(input.clone()));
            }
        }
    }

    fn tell_driver(&self, shard: usize, word: Word) {
        let Some(post) = self.shards.get(shard) else { return };
        if let Err(gone) = post.notes.send(Note::Input(Input::Told(word)))
            && let Note::Input(Input::Told(word)) = gone.0
        {
            self.post.note(Input::Untold(word));
        }
    }

    fn load(&self, load: LoadId, query: Query) {
        let (outbox, post, handle) = (self.outbox.clone(), self.post.clone(), self.handle.clone());
        let (loads, keeper) = (self.loads.clone(), self.keeper.clone());
        tasks::spawn(&self.handle, async move {
            let Ok(_permit) = loads.acquire().await else { return };
            let found = handle.spawn_blocking(move || outbox.load(&query)).await;
            match found {
                Ok(Ok(found)) => post.note(Input::Loaded { load, found: Box::new(found) }),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the store could not be read");
                    post.note(Input::LoadFailed(load));
                    let _ = keeper.send(Event::Unreadable(error));
                }
                Err(_) => post.note(Input::LoadFailed(load)),
            }
        });
    }

    /// Gives an answer to whoever waits for it, or sends it to whoever asked.
    fn replied(&self, message: &Message, answer: &Bytes) {
        let Some(answer) = self.requests.replied(message, answer) else { return };
        let shard = self.digester.shard(answer.recipient(), self.shards.len());
        let Some(post) = self.shards.get(shard).cloned() else { return };
        // A driver must not wait for another one's letter box. How many there are is bounded by what is in flight.
        tasks::spawn(&self.handle, async move {
            let (reply, accepted) = oneshot::channel();
            let id = answer.id();
            let sent = post.mail.send(Mail::Send { message: answer, reply }).await;
            if let (Ok(()), Ok(Err(refusal))) = (sent, accepted.await) {
                tracing::warn!(messaging.message.id = %id, %refusal, "an answer was not accepted");
            }
        });
    }

    fn announce(&mut self, change: &Change) {
        tracing::debug!(
            messaging.system = "lastmile",
            messaging.message.id = change.id.map(tracing::field::display),
            status = ?change.status,
            attempts = change.attempts,
            possibly_delivered = change.possibly_delivered,
            "message status"
        );
        self.state.watchers.announce(change);
        self.hub.publish(change);
    }

    fn watch(&mut self, watched: Watched, stage: Stage, reply: Waiting) {
        // What the machine has decided since the last wake-up is to be announced first: of an end that nobody was told of
        // it would look as if it had been forgotten.
        self.drain();
        let watched = match self.state.watchers.place_of(watched) {
            Ok(watched) => watched,
            Err(places) => return drop(reply.send(Seen::Spread(places))),
        };
        let (user, entry) = &watched;
        let standing = (self.machine.standing(user, *entry), self.machine.was_sent(user, *entry));
        if self.state.watchers.watch(watched.clone(), standing, stage, reply) {
            self.look_up(watched);
        }
    }

    /// Asks the store whether a message still waits. While it cannot be read, whoever waits goes on waiting.
    fn look_up(&self, watched: Watched) {
        let (outbox, post, handle) = (self.outbox.clone(), self.post.clone(), self.handle.clone());
        let loads = self.loads.clone();
        tasks::spawn(&self.handle, async move {
            let Ok(_permit) = loads.acquire().await else { return };
            let (user, EntryRef { lane, seq }) = watched.clone();
            let waits = handle.spawn_blocking(move || outbox.waiting(&user, lane, seq)).await;
            if let Ok(Ok(attempts)) = waits {
                let _ = post.notes.send(Note::Found(watched, attempts));
            }
        });
    }
}

enum Woken {
    Note(Note),
    Mail,
    Timer,
    Closed,
}

fn encode(records: &[Record], cipher: &Cipher) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(records.len().saturating_mul(384));
    cipher.encode_records(records, &mut bytes);
    bytes
}
