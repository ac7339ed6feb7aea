//! One simulated engine: the shell around its machines, played one step at a time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::across::{Of, Share};
use super::defect::Defect;
use super::feed::Feed;
use super::home::Home;
use super::link::Link;
use super::oracle::Oracle;
use super::plan::Plan;
use super::random::Random;
use crate::digest::Digester;
use crate::id::{StreamId, UserId};
use crate::machine::{
    Accepted, Action, Birth, Delivery, EntryRef, Found, Input, LinkId, LoadId, Machine, Query, Refusal,
    Survivors, Ticket,
};
use crate::message::Message;
use crate::ports::Journal;
use crate::record::{Counters, Epoch, Gap, Record, Seq};
use crate::storage::journal::FileJournal;
use crate::storage::outbox::{Identity, Opened, recover};
use crate::testing::FaultyDisk;
use crate::time::Timestamp;

/// Of so many sends one is not taken up before the next input.
const SENDS_THAT_MEET_OTHERS: u64 = 3;
/// Actions a single input may cause; more means that the machine goes round in circles.
const MAX_ACTIONS: usize = 20_000;

/// A set of records that a machine handed out, for itself or for several.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) shares: Vec<Share>,
    pub(super) records: Vec<Record>,
    pub(super) accepts: bool,
}

/// A group on its way to the disk.
#[derive(Debug)]
pub(super) struct Flight {
    /// What each shard has of it, and the first place.
    pub(super) parts: VecDeque<(Share, Seq)>,
    pub(super) told_written: bool,
    pub(super) synced: bool,
    /// Its records, for whoever notes ends.
    pub(super) records: Vec<(Seq, Record)>,
}

/// A load that was asked for.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) shard: usize,
    pub(super) load: LoadId,
    pub(super) query: Query,
    pub(super) found: Option<Found>,
}

/// How far a settling is.
#[derive(Debug, Default)]
pub(super) enum Settling {
    #[default]
    Idle,
    Collecting {
        before: Seq,
        parts: Vec<Survivors>,
        counters: Vec<Option<(Counters, Seq)>>,
    },
    Storing {
        before: Seq,
    },
    Telling {
        before: Seq,
        next: usize,
    },
}

/// What runs; gone with the process.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) journal: FileJournal,
    pub(super) epoch: Epoch,
    pub(super) shards: Vec<Machine>,
    pub(super) next: Seq,
    pub(super) queue: VecDeque<Handed>,
    pub(super) flight: Option<Flight>,
    pub(super) broken: bool,
    /// How often it broke.
    pub(super) generation: u64,
    /// What is on its way to machines that has no order of its own.
    pub(super) notes: Vec<(usize, Input)>,
    pub(super) loads: Vec<Load>,
    pub(super) links: BTreeMap<LinkId, Link>,
    pub(super) settling: Settling,
    /// Everything below can be settled.
    pub(super) sealed: Seq,
    pub(super) settled: Seq,
    pub(super) full: bool,
}

/// One engine, running or not.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) plan: Arc<Plan>,
    pub(super) defect: Option<Defect>,
    pub(super) stream: StreamId,
    pub(super) digester: Digester,
    pub(super) shards: usize,
    pub(super) disk: FaultyDisk,
    pub(super) home: Home,
    pub(super) engine: Option<Engine>,
    pub(super) oracle: Oracle,
    pub(super) feed: Feed,
    pub(super) now: Timestamp,
    /// Answers to deliveries that came from the other engine.
    pub(super) answers: Vec<(Ticket, Result<Accepted, Refusal>)>,
    pub(super) tickets: u64,
    pub(super) last_link: u64,
    /// Sinks of the past, for verdicts that come late.
    pub(super) ghosts: Vec<(LinkId, UserId, EntryRef)>,
    /// What machines were told and what they did, if somebody wants to know.
    pub(super) trace: Option<Vec<String>>,
    /// Whether it was told to refuse new sends.
    pub(super) draining: bool,
    /// Another process has taken over, which it does not know.
    pub(super) is_superseded: bool,
}

impl Node {
    pub(super) fn new(plan: Arc<Plan>, index: u64, defect: Option<Defect>) -> Self {
        let disk = FaultyDisk::new();
        disk.set_lying(defect == Some(Defect::NoFdatasync));
        let mut node = Self {
            defect,
            stream: StreamId::from_u128(0xe0 + u128::from(index)),
            digester: Digester::new(digest_key(&plan)),
            shards: plan.shards,
            disk,
            home: Home::default(),
            engine: None,
            oracle: Oracle::default(),
            feed: Feed::default(),
            now: Timestamp::from_millis(1_800_000_000_000),
            answers: Vec::new(),
            tickets: index << 32,
            last_link: 0,
            ghosts: Vec::new(),
            trace: None,
            draining: false,
            is_superseded: false,
            plan,
        };
        node.open();
        node
    }

    // --------------------------------------------------------------------------------------------------- opening

    /// Tries to start the process.
    pub(super) fn open(&mut self) {
        if self.engine.is_some() {
            return;
        }
        if let Err(error) = self.try_open() {
            self.did_not_open(error);
        }
    }

    fn try_open(&mut self) -> Result<(), String> {
        let text = |error: crate::ports::JournalError| error.to_string();
        let disk: Arc<dyn crate::storage::disk::Disk> = Arc::new(self.disk.clone());
        let mut journal = FileJournal::open(disk, self.plan.journal).map_err(text)?;
        let above = journal.replay(Seq::MAX, &mut |_| Ok(())).map_err(text)?.epoch;
        let fresh = Identity { stream: self.stream, digest_key: digest_key(&self.plan) };
        let opened = self.home.open(above, fresh, &self.plan).map_err(|error| error.to_string())?;
        if !opened.lost.is_empty() || opened.identity != fresh {
            return Err(format!("! the store has lost something: {opened:?}"));
        }
        let mut records = Vec::new();
        let collect =
            &mut |shard, seq, record: &Record, counts| records.push((shard, seq, record.clone(), counts));
        let shards = self.shards_of_opening(opened.epoch);
        let recovered = recover(&opened, &mut journal, shards, collect).map_err(|error| error.to_string())?;
        if !recovered.replay.damaged.is_empty() || !recovered.bad.is_empty() {
            return Err(format!("! the journal reports damage: {recovered:?}"));
        }
        records.iter().for_each(|(_, seq, record, _)| self.home.note_record(*seq, record));
        journal.begin(opened.epoch).map_err(text)?;
        self.now = self.now.max(recovered.latest);
        self.shards = shards;
        let machines = self.fold(&journal, &opened, &records);
        let replayed = records.into_iter().map(|(_, seq, record, _)| (seq, record)).collect();
        self.oracle.recovered(&self.plan, opened.settled, replayed);
        self.engine = Some(Engine {
            journal,
            epoch: opened.epoch,
            shards: machines,
            next: recovered.next_seq,
            queue: VecDeque::new(),
            flight: None,
            broken: false,
            generation: 0,
            notes: Vec::new(),
            loads: Vec::new(),
            links: BTreeMap::new(),
            settling: Settling::Idle,
            sealed: recovered.next_seq,
            settled: opened.settled,
            full: false,
        });
        self.check();
        Ok(())
    }

    /// The number of shards may be another one at every opening.
    fn shards_of_opening(&self, epoch: Epoch) -> usize {
        match self.plan.reshards {
            true => 1 + Random::new(self.plan.seed ^ u64::from(epoch.0)).index(3),
            false => self.plan.shards,
        }
    }

    /// The machines, after replay.
    fn fold(
        &self,
        journal: &FileJournal,
        opened: &Opened,
        records: &[(usize, Seq, Record, bool)],
    ) -> Vec<Machine> {
        let config = self.plan.config.clone().for_groups_of(journal.space().max_group_bytes);
        let birth = |shard: usize| Birth {
            config: config.clone(),
            stream: self.stream,
            epoch: opened.epoch,
            digest_key: digest_key(&self.plan),
            seed: self.plan.seed ^ shard as u64,
            settled: opened.settled,
            counters: opened.counters_of(shard, self.shards),
            store_empty: opened.store_empty,
            shard: (shard, self.shards),
        };
        let mut shards: Vec<_> = (0..self.shards).map(|shard| Machine::new(birth(shard))).collect();
        for (shard, seq, record, counts) in records {
            if self.defect == Some(Defect::ReplayDecides) && is_expired(record, self.now) {
                continue;
            }
            shards[*shard].replay(*seq, record, *counts);
        }
        shards
    }

    /// The process ends. With `power`, so does the machine it runs on.
    pub(super) fn crash(&mut self, power: bool, random: &mut Random) {
        self.engine = None;
        self.draining = false;
        self.answers.clear();
        self.home.crash(random);
        self.oracle.crashed(power);
        if power {
            let odds = random.below(5) * 25;
            self.disk.power_cut(|_, _| random.chance(odds));
        } else {
            self.disk.kill();
        }
    }

    // --------------------------------------------------------------------------------------------------- machines

    pub(super) fn shard_of(&self, user: &UserId) -> usize {
        self.digester.shard(user, self.shards)
    }

    /// Sends one message to many, who belong to this shard.
    pub(super) fn fan_out(&mut self, shard: usize, messages: Vec<Message>) {
        let Some(message) = messages.first().cloned() else { return };
        let first = Ticket(self.tickets + 1);
        self.tickets += messages.len() as u64;
        for (n, message) in (0..).zip(&messages) {
            self.oracle.sent(Ticket(first.0 + n), message.clone());
        }
        let recipients = messages.iter().map(|message| message.recipient().clone()).collect();
        self.input(shard, Input::FanOut { first, message, recipients });
    }

    /// Hands an input to a machine and does what it says.
    pub(super) fn input(&mut self, shard: usize, input: Input) {
        let now = self.now;
        let Some(engine) = &mut self.engine else { return };
        if let Some(trace) = self.trace.as_mut().filter(|_| !matches!(input, Input::Tick)) {
            trace.push(format!(
                "  {}.{shard} {} < {input:?}",
                self.stream.as_u128() & 0xf,
                now.as_millis() % 100_000_000
            ));
        }
        // Some senders' inputs meet in the machine before it is asked what to do.
        let meets_the_next =
            matches!(&input, Input::Send { ticket, .. } if ticket.0.is_multiple_of(SENDS_THAT_MEET_OTHERS));
        engine.shards[shard].handle(now, input);
        if meets_the_next {
            return;
        }
        for n in 0.. {
            let Some(engine) = &mut self.engine else { return };
            let Some(action) = engine.shards[shard].poll_action() else { break };
            self.act(shard, action);
            if n > MAX_ACTIONS {
                return self.oracle.fail("a machine does not stop acting");
            }
        }
    }

    /// Hands an input to every machine.
    pub(super) fn broadcast(&mut self, input: &Input) {
        for shard in 0..self.shards {
            self.input(shard, input.clone());
        }
    }

    fn act(&mut self, shard: usize, action: Action) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("  {}.{shard} > {action:?}", self.stream.as_u128() & 0xf));
        }
        let Some(engine) = &mut self.engine else { return };
        match action {
            Action::Persist { commit, records, accepts, .. } => {
                let share = Share { shard, of: Of::Commit(commit), count: records.len() };
                engine.queue.push_back(Handed { shares: vec![share], records, accepts });
            }
            Action::PersistJoint { joint, parts } => self.joint_handed_out(joint, parts),
            Action::Tell { shard, word } => self.tell(shard, *word),
            Action::Answer { ticket, result } => {
                self.oracle.answered(ticket, &result);
                self.answers.push((ticket, result));
            }
            Action::Offer { link, batch } => self.offered(link, batch),
            Action::TellGaps { link, gaps } => self.tell_gaps(link, &gaps),
            Action::Withdraw { link, withdrawn } => self.withdraw(link, &withdrawn),
            Action::Load { load, query } => engine.loads.push(Load { shard, load, query, found: None }),
            Action::Announce(change) => self.oracle.announced(&change),
            Action::Moved { from, to, .. } => self.oracle.has_moved(from, &to),
            Action::Survivors(part) => self.survivors(shard, *part),
            Action::Dismiss(link) => self.forget_link(link),
            Action::MarkedRead(user, .., mark) => self.oracle.marked_read(&user, mark),
            // Nobody asks anything here.
            Action::Replied { .. } => {}
            Action::Done { ticket, result } => {
                let told = engine.flight.is_none() && !engine.broken;
                self.oracle.operated(ticket, &result, told);
            }
        }
    }

    fn offered(&mut self, link: LinkId, batch: Vec<Delivery>) {
        let Some(engine) = &mut self.engine else { return };
        let Some(found) = engine.links.get_mut(&link) else {
            return self.oracle.fail(format!("{link:?} was offered something after it was dismissed"));
        };
        if batch.is_empty() || batch.len() > self.plan.config.max_batch.get() as usize {
            self.oracle.fail(format!("a batch of {} messages", batch.len()));
        }
        let told = engine.flight.is_none();
        self.oracle.offered(self.now, engine.epoch, (&found.user, &found.device), &batch, told);
        found.queue.extend(batch);
    }

    fn tell_gaps(&mut self, link: LinkId, gaps: &[Gap]) {
        let Some(engine) = &mut self.engine else { return };
        let synced = engine.flight.is_none();
        match engine.links.get_mut(&link) {
            Some(link) if !link.is_told && !gaps.is_empty() => {
                link.is_told = true;
                self.oracle.told((&link.user, &link.device), gaps, synced);
            }
            _ => self.oracle.fail(format!("{link:?} was told of {gaps:?} when gone, or twice at once")),
        }
    }

    /// A sink says that it took note of a gap, or could not.
    pub(super) fn gaps_told(&mut self, link: LinkId, told: bool) {
        let Some(engine) = &mut self.engine else { return };
        let Some(found) = engine.links.get_mut(&link).filter(|link| link.is_told) else { return };
        found.is_told = false;
        let shard = self.digester.shard(&found.user, self.shards);
        self.input(shard, Input::GapsTold { link, told });
    }

    // ------------------------------------------------------------------------------------------------------ checks

    /// Whatever can be compared now.
    pub(super) fn check(&mut self) {
        let Some(engine) = &self.engine else { return self.read_ends_now_and_then() };
        let (mut counters, mut in_flight, mut pending, mut links) = (Counters::default(), 0, 0, 0);
        for machine in &engine.shards {
            let stats = machine.stats();
            counters.add(&stats.counters);
            in_flight += stats.in_flight;
            links += stats.links;
            pending = pending.max(stats.pending);
        }
        let config = &self.plan.config;
        let window = u64::from(config.max_in_flight.get()) + u64::from(config.critical_reserve);
        if in_flight > window * links {
            self.oracle.fail(format!("{in_flight} in flight on {links} links of {window}"));
        }
        if pending > config.max_pending.get() as u64 {
            self.oracle
                .fail(format!("{pending} sends are pending, over the limit of {}", config.max_pending));
        }
        // The limit is per shard, and the number of shards may have been larger.
        let shards = if self.plan.reshards { 3 } else { self.shards as u64 };
        let max = config.max_total_messages.get() * shards;
        if counters.live() > max && counters.live() > max + self.oracle.copies_of_released() {
            self.oracle.fail(format!("{} live messages are over the limit", counters.live()));
        }
        self.check_reservations();
        self.read_ends_now_and_then();
        let Some(engine) = &self.engine else { return };
        for link in engine.links.values() {
            // Of what is on its way to another engine, that says what becomes of it.
            let rest = link.queue.iter().skip(usize::from(link.carrying.is_some()));
            self.oracle.check_told_to_stop(&link.device, rest);
        }
        // Between a sync and the last `Persisted`, the machines know less than the disk.
        if engine.flight.is_none() && !engine.broken {
            self.oracle.check_ledger(&counters);
            self.check_state();
            self.check_letters();
        }
    }

    fn check_state(&mut self) {
        let Some(engine) = &self.engine else { return };
        // What the store shows already may be read from it before the machines are told.
        let settled = engine.settled.max(self.home.settled());
        for machine in &engine.shards {
            for user in machine.resident_users() {
                if let Some(held) = machine.snapshot(user) {
                    let max_marks = self.plan.config.max_read_marks.get();
                    self.oracle.check_user(user, settled, &held, max_marks);
                }
            }
        }
    }
}

fn digest_key(plan: &Plan) -> u128 {
    u128::from(plan.seed) << 7 | 1
}

fn is_expired(record: &Record, now: Timestamp) -> bool {
    matches!(record, Record::Accept(accept) if accept.expires() <= now)
}
