//! The delivery machine: pure, deterministic, sans-IO.
//!
//! One machine is one shard's whole delivery logic. It knows no clock, no disk, no task and no randomness but its seed;
//! it is told what happens and says what to do.
//!
//! ```text
//!   host ── Send, Receive ──►┐                       ┌──► Answer            to the sender
//!   sinks ─ Attach, Verdicts ►│                       ├──► Offer, Dismiss    to sinks
//!   disk ── Persisted, … ────►│  handle(now, input)   ├──► Persist           to the journal
//!   store ─ Loaded, Settled ─►│  poll_action()        ├──► Load, Survivors   to the store
//!   clock ─ Tick ────────────►┘  poll_timeout()       └──► Announce          to whoever watches
//! ```
//!
//! # The drain contract
//! 1. Call [`Machine::handle`] for any number of inputs, in the order they happened.
//! 2. Call [`Machine::poll_action`] until it returns `None`, and do each action in order. The records of all inputs
//!    since the last drain come together, in as few [`Action::Persist`] as `Config::max_commit_bytes` allows.
//! 3. Ask [`Machine::poll_timeout`] when to send [`Input::Tick`] if nothing happens before.
//!
//! # What makes it safe
//! - **A message gets its place when it is durable.** Before [`Input::Persisted`] it has no sequence number, is in no
//!   lane, and can be neither offered nor answered. If the commit fails, it is simply dropped and its sender told.
//! - **State is a fold of durable records.** The live path and replay apply records through the same functions, which
//!   decide nothing.
//! - **An end is announced when its record is durable.** Until then the message is `Ending`: out of its sink's window,
//!   and never offered again.
//! - **Users nobody is attached to leave memory** once what is known of them has settled. A table of totals, 28 bytes a
//!   user with messages waiting, stays for the quotas.

mod accept;
mod announce;
mod batch;
mod collapse;
mod commit;
mod copies;
mod dead;
mod dedup;
mod deliver;
mod dependents;
mod devices;
mod entry;
mod fanout;
mod find;
mod fold;
mod forget;
mod history;
mod index;
mod io;
mod joint;
mod lane;
mod ledger;
mod load;
mod locate;
mod operate;
mod operation;
mod overflow;
mod pick;
mod places;
mod promised;
mod query;
mod read;
mod refusal;
mod register;
mod reserve;
mod ring;
mod schedule;
mod search;
mod settle;
mod snapshot;
mod sweep;
#[cfg(test)]
mod tests;
mod timer;
mod user;
mod verdict;

pub use batch::MAX_BATCH_MESSAGES;
pub use history::{AttemptFailure, FailedAttempt, MAX_FAILURES};
pub use io::{
    Accepted, Action, Change, CommitId, Delivery, EntryRef, Input, LinkId, LoadId, MachineStats, Standing,
    Survivors, Ticket, Verdict, Withdrawn,
};
pub use joint::{Joint, JointId, JointPart, Word};
pub use operation::{
    CopyStanding, DeadLetter, DeadLetters, DeviceStanding, Located, Operation, Outcome, Target,
};
pub use query::{DuePlace, Found, Holdings, Matches, Page, Query};
pub use refusal::{OperationError, Refusal};
pub use snapshot::{LaneSnapshot, UserSnapshot};

use std::collections::{BTreeMap, BTreeSet, HashMap as StdMap, VecDeque};
use std::num::NonZeroUsize;

use hashbrown::HashMap;
use lru::LruCache;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use self::accept::Parked;
use self::announce::Whose;
use self::commit::{Commit, Pending, Repeat};
use self::dedup::Dedup;
use self::deliver::Link;
use self::history::Histories;
use self::index::Index;
use self::operate::Operations;
use self::read::ReadWaits;
use self::register::DeviceWaits;
use self::reserve::Joints;
use self::settle::{Job, Logged};
use self::sweep::Sweeps;
use self::timer::TimerKey;
use self::user::{Totals, User};
use self::verdict::RecentEnd;
use crate::config::Config;
use crate::digest::{DigestMap, Digester};
use crate::id::{StreamId, UserId};
use crate::message::Message;
use crate::record::{Counters, Epoch, ForDevice, LaneId, Seq};
use crate::time::Timestamp;

/// How many users are remembered to have been exposed in this epoch: about 1 MB.
const MAX_EXPOSED_HERE: NonZeroUsize = NonZeroUsize::new(16_384).expect("a literal above zero");

/// What a machine is born with.
#[derive(Clone, Debug)]
pub struct Birth {
    /// Limits and policies.
    pub config: Config,
    /// The engine's log.
    pub stream: StreamId,
    /// This opening.
    pub epoch: Epoch,
    /// Keys the digests of ids; drawn once per engine and persisted.
    pub digest_key: u128,
    /// Seeds backoff jitter.
    pub seed: u64,
    /// Everything below this place is in the store.
    pub settled: Seq,
    /// Counters as settled (this shard's part).
    pub counters: Counters,
    /// Whether the store holds messages or rows at all (if not, absent users and senders need no load).
    pub store_empty: bool,
    /// Which shard this is, and of how many: users of others are not its concern.
    pub shard: (usize, usize),
}

/// One shard's delivery logic. See the module's documentation for the contract.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    stream: StreamId,
    epoch: Epoch,
    shard: usize,
    shards: usize,
    digester: Digester,
    rng: ChaCha8Rng,
    now: Timestamp,
    /// Inputs were handled: what comes from now on is live.
    is_live: bool,
    writable: bool,
    draining: bool,

    users: HashMap<UserId, Box<User>, Digester>,
    /// Users in memory of whom a dead letter was recorded since they came there, in the order of keys.
    with_letters: BTreeSet<(usize, UserId)>,
    /// Totals of users that are not in memory, by digest.
    index: Index,
    /// Whether a user found nowhere has no messages at all.
    index_complete: bool,
    /// Whether the store may hold rows.
    rows_exist: bool,
    dedup: Dedup,
    /// The digest of what is being sent to many.
    content: Option<u64>,
    counters: Counters,
    reserved: Totals,
    /// Whose messages they were whose ends are being recorded, of what is not in memory.
    ending_of: BTreeMap<Seq, Whose>,
    /// Messages that were confirmed while another end was being recorded.
    confirmed_late: BTreeSet<Seq>,
    recent_ends: LruCache<(UserId, EntryRef), RecentEnd>,
    /// Messages whose late confirmation is being recorded.
    upgrading: BTreeSet<Seq>,
    histories: Histories,
    /// Users who were exposed in this epoch and have left memory since, and what they may have been offered of what waits.
    exposed_here: LruCache<u128, forget::Bounds>,

    /// The place after the last record applied.
    applied: Seq,
    /// Everything below is in the store.
    settled: Seq,
    /// Everything below was handed to the settling, or had ended before.
    collected: Seq,
    log: VecDeque<Logged>,
    dirty: Vec<UserId>,
    died: Vec<Seq>,
    job: Option<Job>,
    /// Where the last acceptance went.
    last_accept: Option<(LaneId, Seq, Option<ForDevice>)>,
    /// Where a message has moved whose old place ends with the next record, and where that was accepted.
    moved: Option<(Seq, EntryRef, Accepted)>,
    /// Where a dead letter was sent whose place ends with the next record.
    requeued: Option<(Seq, EntryRef)>,
    /// Where a dead letter is whose message ends with the next record.
    buried: Option<Seq>,
    /// Asked for while the last one was still being let go of.
    next_settle: Option<Seq>,

    current: Vec<Pending>,
    /// Facts of failed commits, until the last failed one was reported.
    carried: Vec<Pending>,
    commits: VecDeque<Commit>,
    /// Records of the open commits.
    open_records: usize,
    last_commit: CommitId,
    /// The last one that was handed out before the journal failed.
    doomed: CommitId,
    pending: usize,
    repeats: DigestMap<Vec<Repeat>>,
    /// Collapse keys of which a message is being committed, and who waits behind it.
    collapsing: DigestMap<VecDeque<(Ticket, Message)>>,
    /// Users in whose full outbox room is being looked for, and who waits behind whoever needs it.
    overflowing: HashMap<UserId, VecDeque<(Ticket, Message)>, Digester>,
    parked: StdMap<LoadId, Vec<Parked>>,
    parked_count: usize,

    operations: Operations,
    promised: promised::Promised,
    /// Who waits for a device to be registered or removed, and how many.
    device_waits: DeviceWaits,
    device_waiting: usize,
    read_waits: ReadWaits,
    joints: Joints,
    sweeps: Sweeps,
    loads: StdMap<LoadId, Query>,
    sender_loads: DigestMap<LoadId>,
    last_load: u64,

    links: StdMap<LinkId, Link>,
    /// Sinks that have gone and may still be heard of.
    gone: LruCache<LinkId, verdict::Gone>,
    ready: VecDeque<UserId>,
    timers: BTreeSet<(Timestamp, TimerKey)>,
    away: timer::Away,
    last_pick: u64,
    last_volatile: u64,

    actions: VecDeque<Action>,
    /// This drain has not served users and settled a slice yet: one of each a drain.
    slice_due: bool,
    /// Messages accepted since settling did its last slice.
    taken: usize,
    /// Totals of messages whose place others take, until their ends are durable.
    leaving: Totals,
    /// Totals of dead letters that are being committed.
    dying: Totals,
    /// What the store takes on disk, as far as was said.
    disk_bytes: u64,
    resident: u64,
    stats: MachineStats,
    /// How many messages were looked at to be taken in, each time they were.
    #[cfg(test)]
    looked_at: u64,
}

impl Machine {
    /// A machine before replay.
    #[must_use]
    pub fn new(birth: Birth) -> Self {
        let digester = Digester::new(birth.digest_key);
        let dedup = Dedup::new(&birth.config, !birth.store_empty, birth.settled);
        let recent = NonZeroUsize::new(verdict::MAX_RECENT_ENDS).unwrap_or(NonZeroUsize::MIN);
        Self {
            stream: birth.stream,
            epoch: birth.epoch,
            shard: birth.shard.0,
            shards: birth.shard.1,
            digester,
            rng: ChaCha8Rng::seed_from_u64(birth.seed),
            now: Timestamp::ZERO,
            is_live: false,
            writable: true,
            draining: false,
            users: HashMap::with_hasher(digester),
            with_letters: BTreeSet::new(),
            index: Index::default(),
            index_complete: birth.store_empty,
            rows_exist: !birth.store_empty,
            dedup,
            content: None,
            counters: birth.counters,
            reserved: Totals::default(),
            ending_of: BTreeMap::new(),
            confirmed_late: BTreeSet::new(),
            recent_ends: LruCache::new(recent),
            upgrading: BTreeSet::new(),
            histories: Histories::default(),
            exposed_here: LruCache::new(MAX_EXPOSED_HERE),
            applied: birth.settled,
            settled: birth.settled,
            collected: birth.settled,
            log: VecDeque::new(),
            dirty: Vec::new(),
            died: Vec::new(),
            job: None,
            last_accept: None,
            moved: None,
            requeued: None,
            buried: None,
            next_settle: None,
            current: Vec::new(),
            carried: Vec::new(),
            commits: VecDeque::new(),
            open_records: 0,
            last_commit: CommitId::default(),
            doomed: CommitId::default(),
            pending: 0,
            repeats: DigestMap::default(),
            collapsing: DigestMap::default(),
            overflowing: HashMap::with_hasher(digester),
            parked: StdMap::new(),
            parked_count: 0,
            operations: Operations::default(),
            promised: promised::Promised::default(),
            device_waits: DeviceWaits::new(),
            device_waiting: 0,
            read_waits: ReadWaits::new(),
            joints: Joints::default(),
            sweeps: Sweeps::default(),
            loads: StdMap::new(),
            sender_loads: DigestMap::default(),
            last_load: 0,
            links: StdMap::new(),
            gone: LruCache::new(NonZeroUsize::new(verdict::MAX_GONE).unwrap_or(NonZeroUsize::MIN)),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            away: timer::Away::default(),
            last_pick: 0,
            last_volatile: 0,
            actions: VecDeque::new(),
            slice_due: true,
            taken: 0,
            leaving: Totals::default(),
            dying: Totals::default(),
            disk_bytes: 0,
            resident: 0,
            stats: MachineStats::default(),
            #[cfg(test)]
            looked_at: 0,
            config: birth.config,
        }
    }

    /// Takes an input. Drain [`Machine::poll_action`] afterwards. `now` must not go backwards; if it does, the latest
    /// time seen counts.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        self.now = self.now.max(now);
        let now = self.now;
        if !core::mem::replace(&mut self.is_live, true) {
            self.begin_sweeping(now);
            self.arm_all_away(now);
            self.clear_all_slots();
        }
        match input {
            Input::Send { ticket, message } => self.handle_send(now, ticket, message),
            Input::SendBatch(messages) => self.handle_send_batch(now, messages),
            Input::FanOut { first, message, recipients } => {
                self.handle_fan_out(now, first, &message, recipients);
            }
            Input::Receive(batch) => self.handle_receive(now, batch),
            Input::Operate { ticket, operation } => self.handle_operate(ticket, operation),
            Input::Written(commit) => self.handle_written(commit),
            Input::Persisted { commit, first } => self.handle_persisted(now, commit, first),
            Input::PersistFailed { commit, unknown } => self.handle_persist_failed(commit, unknown),
            Input::Told(word) => self.handle_told(now, word),
            Input::Untold(word) => self.handle_untold(word),
            Input::JointPersisted { joint, first } => self.handle_joint_persisted(now, joint, first),
            Input::JointFailed { joint, unknown } => self.handle_joint_failed(joint, unknown),
            Input::Writable(writable) => self.handle_writable(writable),
            Input::Disk { bytes } => self.disk_bytes = bytes,
            Input::Attach { link, user, device } => self.handle_attach(link, user, device),
            Input::Detach(link) => self.handle_detach(link),
            Input::Verdicts { link, verdicts } => self.handle_verdicts(now, link, verdicts),
            Input::GapsTold { link, told } => self.handle_gaps_told(link, told),
            Input::Loaded { load, found } => self.handle_loaded(now, load, *found),
            Input::LoadFailed(load) => self.handle_load_failed(now, load),
            Input::Settle { before } => self.handle_settle(before),
            Input::Settled { before } => self.handle_settled(before),
            Input::SettleFailed { before } => self.handle_settle_failed(before),
            Input::Drain => self.draining = true,
            Input::Tick => {}
        }
        self.fire_timers(now);
    }

    /// The next thing to do. Call until `None` after every batch of inputs; records of the whole batch come last, as one
    /// [`Action::Persist`] or a few.
    pub fn poll_action(&mut self) -> Option<Action> {
        if self.actions.is_empty() && self.slice_due {
            self.slice_due = false;
            self.serve();
            if self.has_settle_work() {
                self.work_on_settling();
            }
            self.work_on_operations();
        }
        let action = self.actions.pop_front().or_else(|| self.take_commit()).or_else(|| self.take_joint());
        if action.is_none() {
            self.slice_due = true;
        }
        action
    }

    /// When to send [`Input::Tick`], unless an input comes first. Ask again after every drain. A time in the past
    /// means at once: there is more work than fits into one drain.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if !self.ready.is_empty() || self.has_settle_work() || self.operations.has_work() {
            return Some(Timestamp::ZERO);
        }
        self.timers.first().map(|(at, _)| *at)
    }

    /// A snapshot, in O(1).
    #[must_use]
    pub fn stats(&self) -> MachineStats {
        MachineStats {
            counters: self.counters,
            pending: self.unanswered() as u64,
            recording: (self.open_records + self.current.len() + self.carried.len()) as u64,
            resident_users: self.users.len() as u64,
            indexed_users: self.index.len() as u64,
            resident_messages: self.resident,
            links: self.links.len() as u64,
            reservations: self.joints.len() as u64,
            ..self.stats
        }
    }

    /// This opening.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}
