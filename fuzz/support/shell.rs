//! An engine without threads: machines, a journal and an outbox, where everything that can be done is done at once.

use std::collections::VecDeque;
use std::sync::Arc;

use lastmile::codec::encode_records;
use lastmile::digest::Digester;
use lastmile::machine::{Action, Birth, Input, LinkId, Machine, Survivors, Verdict};
use lastmile::ports::{Group, Journal, Store};
use lastmile::record::{Counters, Seq};
use lastmile::storage::disk::Disk;
use lastmile::storage::journal::FileJournal;
use lastmile::storage::outbox::{
    Identity, Merge, Opened, OutboxStore, Progress, Recovered, Settlement, recover,
};
use lastmile::{Config, DeviceId, OnFailure, StreamId, Timestamp, UserId};

use crate::world::JOURNAL;

/// Who a new engine is.
pub const FRESH: Identity = Identity { stream: StreamId::from_u128(1), digest_key: 2 };
/// When an engine lives whose disk knows no later time.
pub const TODAY: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const SHARDS: usize = 2;
/// A script that makes more work is left alone after so many actions.
const MAX_ACTIONS: usize = 4_000;
const MAX_STEPS: usize = 500;

/// The engine.
#[derive(Debug)]
pub struct Shell {
    pub outbox: OutboxStore,
    pub opened: Opened,
    pub recovered: Recovered,
    pub users: Vec<UserId>,
    /// What sinks say, over and over.
    pub verdicts: Vec<Verdict>,
    pub now: Timestamp,
    journal: FileJournal,
    machines: Vec<Machine>,
    digester: Digester,
    next: Seq,
    actions: usize,
    said: usize,
    links: u64,
    inputs: VecDeque<(usize, Input)>,
    parts: Vec<Survivors>,
    counters: Vec<Option<(Counters, Seq)>>,
}

/// A configuration in which little suffices to come to bounds.
pub fn config() -> Config {
    let mut config = Config::default();
    config.max_attempts = 2.try_into().expect("two is not zero");
    config.on_failure = [OnFailure::Park; 4];
    config.ledger_rows = 8;
    config.max_gaps = 8.try_into().expect("eight is not zero");
    config
}

impl Shell {
    /// Opens what is there. Nothing when it is refused, as it may be.
    pub fn open(disk: Arc<dyn Disk>, store: Arc<dyn Store>) -> Option<Self> {
        let mut journal = FileJournal::open(disk, JOURNAL).ok()?;
        let above = journal.replay(Seq::MAX, &mut |_| Ok(())).ok()?.epoch;
        let (outbox, opened) = OutboxStore::open(store, None, above, FRESH).ok()?;
        let config = config().for_groups_of(journal.space().max_group_bytes);
        outbox.keep_ends(&config).ok()?;
        let birth = |shard| Birth {
            config: config.clone(),
            stream: opened.identity.stream,
            epoch: opened.epoch,
            digest_key: opened.identity.digest_key,
            seed: shard as u64,
            settled: opened.settled,
            counters: opened.counters_of(shard, SHARDS),
            store_empty: opened.store_empty,
            shard: (shard, SHARDS),
        };
        let mut machines: Vec<_> = (0..SHARDS).map(|shard| Machine::new(birth(shard))).collect();
        let mut users = Vec::new();
        let recovered = recover(&opened, &mut journal, SHARDS, &mut |shard, seq, record, counts| {
            outbox.note_record(seq, record);
            if users.len() < 8 && !users.contains(record.user()) {
                users.push(record.user().clone());
            }
            machines[shard].replay(seq, record, counts);
        });
        let recovered = recovered.ok()?;
        journal.begin(opened.epoch).ok()?;
        outbox.note_keys(&recovered).ok()?;
        Some(Self {
            now: recovered.latest.max(TODAY),
            digester: Digester::new(opened.identity.digest_key),
            next: recovered.next_seq,
            outbox,
            opened,
            recovered,
            users,
            verdicts: vec![Verdict::Delivered],
            journal,
            machines,
            actions: 0,
            said: 0,
            links: 0,
            inputs: VecDeque::new(),
            parts: Vec::new(),
            counters: vec![None; SHARDS],
        })
    }

    /// Tells the machine of this user, and does everything that follows.
    pub fn tell(&mut self, user: &UserId, input: Input) {
        let shard = self.digester.shard(user, SHARDS);
        self.inputs.push_back((shard, input));
        self.work();
    }

    /// Somebody comes.
    pub fn attach(&mut self, user: &UserId, device: &str) -> LinkId {
        self.links += 1;
        let (link, device) = (LinkId(self.links), DeviceId::new(device).expect("a short name is an id"));
        self.tell(user, Input::Attach { link, user: user.clone(), device });
        link
    }

    /// Time passes.
    pub fn pass(&mut self, millis: u64) {
        self.now = Timestamp::from_millis(self.now.as_millis().saturating_add(millis));
        for _ in 0..64 {
            self.inputs.extend((0..SHARDS).map(|shard| (shard, Input::Tick)));
            self.work();
            let is_due = |machine: &Machine| machine.poll_timeout().is_some_and(|at| at <= self.now);
            if !self.machines.iter().any(is_due) {
                break;
            }
        }
    }

    /// Settles everything that is in the journal, or says why it did not come to its end.
    pub fn settle(&mut self) -> Result<(), String> {
        let before = self.next;
        (self.parts, self.counters) = (Vec::new(), vec![None; SHARDS]);
        self.inputs.extend((0..SHARDS).map(|shard| (shard, Input::Settle { before })));
        self.work();
        for _ in 0..64 {
            if self.counters.iter().all(Option::is_some) {
                break;
            }
            self.pass(1000);
        }
        let counters: Option<Vec<_>> = self.counters.iter().copied().collect();
        let counters = counters
            .ok_or_else(|| format!("{:?}: no counters after {} actions", self.counters, self.actions))?;
        let parts = std::mem::take(&mut self.parts);
        let mut settlement = Settlement::new(parts, before, counters, self.now);
        let epoch = self.opened.epoch;
        let done = loop {
            match settlement.step(&self.outbox, epoch) {
                Ok(Progress::Done) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error.to_string()),
            }
        };
        let told = if done.is_ok() { Input::Settled { before } } else { Input::SettleFailed { before } };
        self.inputs.extend((0..SHARDS).map(|shard| (shard, told.clone())));
        self.work();
        done?;
        self.journal.recycle(epoch, before).map_err(|error| error.to_string())?;
        self.inputs.extend((0..SHARDS).map(|shard| (shard, Input::Writable(true))));
        self.work();
        Ok(())
    }

    /// Merges all runs into one; says whether there was anything to do.
    pub fn merge(&self, since: Timestamp) -> bool {
        let Some(mut merge) = Merge::plan(&self.outbox, 1, since) else { return false };
        for _ in 0..MAX_STEPS {
            match merge.step(&self.outbox, self.opened.epoch) {
                Ok(Progress::More) => {}
                Ok(Progress::Busy | Progress::Done) | Err(_) => break,
            }
        }
        true
    }

    fn work(&mut self) {
        while let Some((shard, input)) = self.inputs.pop_front() {
            self.machines[shard].handle(self.now, input);
            while let Some(action) = self.machines[shard].poll_action() {
                self.actions += 1;
                if self.actions > MAX_ACTIONS {
                    return self.inputs.clear();
                }
                self.act(shard, action);
            }
        }
    }

    fn act(&mut self, shard: usize, action: Action) {
        match action {
            Action::Persist { commit, records, accepts, .. } => {
                let mut bytes = Vec::new();
                encode_records(&records, &mut bytes);
                let first = self.next;
                let group = Group { first, count: records.len() as u32, records: &bytes };
                let epoch = self.opened.epoch;
                let written = self.journal.append(epoch, group, !accepts);
                let told = match written.and_then(|_| self.journal.sync(epoch)) {
                    Ok(()) => {
                        self.next = first.plus(records.len() as u64);
                        (0..)
                            .zip(&records)
                            .for_each(|(n, record)| self.outbox.note_record(first.plus(n), record));
                        Input::Persisted { commit, first }
                    }
                    Err(_) => Input::PersistFailed { commit, unknown: false },
                };
                let failed = matches!(told, Input::PersistFailed { .. });
                self.inputs.push_back((shard, told));
                // Until something has settled, or for good.
                self.inputs.extend(failed.then_some((shard, Input::Writable(false))));
            }
            Action::PersistJoint { joint, .. } => {
                self.inputs.push_back((shard, Input::JointFailed { joint, unknown: false }));
            }
            Action::Tell { shard, word } => self.inputs.push_back((shard, Input::Told(*word))),
            Action::Offer { link, batch } => {
                let verdicts = batch.iter().map(|delivery| (delivery.entry, self.verdict())).collect();
                self.inputs.push_back((shard, Input::Verdicts { link, verdicts }));
            }
            Action::TellGaps { link, .. } => {
                self.inputs.push_back((shard, Input::GapsTold { link, told: true }));
            }
            Action::Load { load, query } => {
                let told = match self.outbox.load(&query) {
                    Ok(found) => Input::Loaded { load, found: Box::new(found) },
                    Err(_) => Input::LoadFailed(load),
                };
                self.inputs.push_back((shard, told));
            }
            Action::Survivors(mut part) => {
                self.counters[shard] = part.counters.take().or(self.counters[shard]);
                self.parts.push(*part);
            }
            _ => {}
        }
    }

    fn verdict(&mut self) -> Verdict {
        self.said += 1;
        self.verdicts[self.said % self.verdicts.len()].clone()
    }
}
