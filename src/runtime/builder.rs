//! Building an engine: the whole configuration is checked, then the outbox is recovered and set to work.

use core::num::{NonZeroU64, NonZeroUsize};
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crossbeam_channel::{bounded, unbounded};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore, watch};

use super::attachment::Registry;
use super::batch::{MAX_JOINTS, Unanswered};
use super::clock::SystemClock;
use super::committer::{Committer, JournalGauge, Shield};
use super::driver::{Driver, DriverState, MAX_OPEN_COMMITS};
use super::engine::{Engine, Inner};
use super::hub::Bounds;
use super::keeper::{DiskGauge, Keeper, KeeperGauge};
use super::limit::OutboxLimit;
use super::mail::Post;
use super::meters::Meters;
use super::presence::Presences;
use super::requests::Requests;
use super::subscribe::Changes;
use super::tasks;
use crate::codec::Cipher;
use crate::config::{Config, ConfigError};
use crate::digest::Digester;
use crate::error::KeyError;
use crate::id::{MessageId, StreamId};
use crate::machine::{Birth, Machine};
#[cfg(feature = "encryption")]
use crate::ports::KeyProvider;
use crate::ports::{Clock, Journal, JournalError, Store, StoreError};
use crate::record::{Epoch, Seq};
use crate::storage::disk::RealDisk;
use crate::storage::journal::{FileJournal, JournalConfig, MemoryJournal};
use crate::storage::outbox::{Identity, OpenError, Opened, OutboxStore, RecoverError, Recovered, recover};

/// Messages waiting to be taken by a driver; senders wait when it is full.
const MAILBOX: usize = 4096;
/// Orders waiting for the committer, beyond the commits each driver may have open.
const ORDERS: usize = 1024;
/// Loads under way at once.
pub(super) const LOADS: usize = 4;
/// What a message may take in the journal besides payload and headers.
const RECORD_OVERHEAD: u64 = 4096;

/// An engine could not be built. Unless the variant says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The configuration contradicts itself. Nothing was opened.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no tokio runtime. Nothing was opened.
    #[error(
        "no tokio runtime is running here: build inside one, or give the builder a handle; nothing was opened"
    )]
    NoRuntime,
    /// What is stored is sealed, and a key is missing or another one. Nothing was changed, and nothing is lost: with the
    /// key, it opens. (When only the journal needs the key, the store has noted the opening and nothing else.)
    #[error(transparent)]
    Sealed(KeyError),
    /// The outbox could not be opened.
    #[error(transparent)]
    Open(OpenError),
    /// The journal could not be opened or read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal could not be replayed.
    #[error(transparent)]
    Recover(RecoverError),
    /// The file system refused. What was synced is safe.
    #[error("could not {op}: what was synced is safe")]
    Io {
        /// What was tried.
        op: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl From<OpenError> for BuildError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Sealed(error) | OpenError::Store(StoreError::Sealed(error)) => Self::Sealed(error),
            other => Self::Open(other),
        }
    }
}

impl From<RecoverError> for BuildError {
    fn from(error: RecoverError) -> Self {
        match error {
            RecoverError::Sealed(error) => Self::Sealed(error),
            other => Self::Recover(other),
        }
    }
}

/// Puts an engine together.
pub struct EngineBuilder {
    store: Arc<dyn Store>,
    journal: Option<Box<dyn Journal>>,
    journal_size: JournalConfig,
    config: Config,
    shards: NonZeroUsize,
    max_runs: usize,
    clock: Option<Arc<dyn Clock>>,
    handle: Option<Handle>,
    seed: Option<u64>,
    cipher: Cipher,
}

impl EngineBuilder {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            journal: None,
            journal_size: JournalConfig::default(),
            config: Config::default(),
            shards: NonZeroUsize::MIN,
            max_runs: 16,
            clock: None,
            handle: None,
            seed: None,
            cipher: Cipher::plain(),
        }
    }

    /// Replaces all limits and policies.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// How many ids are remembered per sender, and how long.
    #[must_use]
    pub fn dedup_window(mut self, ids: usize, age: Duration) -> Self {
        self.config.dedup_ids = NonZeroUsize::new(ids).unwrap_or(NonZeroUsize::MIN);
        self.config.dedup_age = age;
        self
    }

    /// How much one user may have waiting.
    #[must_use]
    pub fn outbox_limit(mut self, limit: OutboxLimit) -> Self {
        self.config.max_user_messages = limit.messages.unwrap_or(self.config.max_user_messages);
        self.config.max_user_bytes = limit.bytes.unwrap_or(self.config.max_user_bytes);
        self
    }

    /// The journal's segments. A server keeps tens of MiB, a phone one.
    #[must_use]
    pub fn journal_size(mut self, segment_bytes: u64, segments: u32) -> Self {
        self.journal_size = JournalConfig { segment_bytes, segments };
        self
    }

    /// A journal of the host's own, instead of files beside the store (or memory, for a store in memory).
    #[must_use]
    pub fn journal(mut self, journal: impl Journal + 'static) -> Self {
        self.journal = Some(Box::new(journal));
        self
    }

    /// Shards, each with a driver task of its own. One unless set.
    #[must_use]
    pub fn shards(mut self, shards: NonZeroUsize) -> Self {
        self.shards = shards;
        self
    }

    /// Runs in the store before they are merged. 16 unless set: each one costs a look-up when a user attaches.
    #[must_use]
    pub fn max_runs(mut self, runs: usize) -> Self {
        self.max_runs = runs.max(1);
        self
    }

    /// Where time comes from, instead of the system's clocks.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// The tokio runtime to work on, instead of the one this is called in.
    #[must_use]
    pub fn handle(mut self, handle: Handle) -> Self {
        self.handle = Some(handle);
        self
    }

    /// Seeds backoff jitter, for tests.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Seals payloads and headers wherever they are written, with the current key of `keys`. What else is known about a
    /// message stays readable; `docs/STORAGE.md` says what that is, and how keys are exchanged.
    ///
    /// A directory that was used without encryption can be opened with it: what is written from now on is sealed, and
    /// what is there already is sealed in the background. One that was used with it cannot be opened without.
    ///
    /// ```
    /// # use lastmile::{Engine, KeyId, storage::MemoryStore};
    /// # use lastmile::ports::{Key, Keyring};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (of_this_year, of_last_year) = ([2; 32], [1; 32]);
    /// let keys = Keyring::new(KeyId(2), Key::new(of_this_year)).with(KeyId(1), Key::new(of_last_year));
    /// let engine = Engine::builder(MemoryStore::new()).encryption(keys).build()?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "encryption")]
    #[must_use]
    pub fn encryption(mut self, keys: impl KeyProvider + 'static) -> Self {
        self.cipher = crate::storage::cipher(Arc::new(keys));
        self
    }

    /// Checks the configuration, recovers the outbox and sets it to work. Blocks while it reads the journal.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn build(mut self) -> Result<Engine, BuildError> {
        self.check()?;
        OutboxStore::check_keys(&*self.store, &self.cipher)?;
        let handle = match self.handle.take() {
            Some(handle) => handle,
            None => Handle::try_current().map_err(|_| BuildError::NoRuntime)?,
        };
        let journal = match self.journal.take() {
            Some(journal) => journal,
            None => self.open_journal()?,
        };
        self.start(journal, handle)
    }

    fn check(&self) -> Result<(), BuildError> {
        self.config.check()?;
        if self.journal.is_none() {
            self.journal_size.validate().map_err(|error| ConfigError::new(error.to_string()))?;
            let largest = self.config.max_payload_bytes.get() as u64 + RECORD_OVERHEAD;
            if largest > self.journal_size.largest_message_bytes() {
                return Err(ConfigError::new(format!(
                    "a message of {largest} bytes is over a quarter of a journal segment: \
                     lower max_payload_bytes or raise segment_bytes"
                ))
                .into());
            }
        }
        Ok(())
    }

    fn open_journal(&self) -> Result<Box<dyn Journal>, BuildError> {
        match self.store.home() {
            None => Ok(Box::new(MemoryJournal::new(self.journal_size)?)),
            Some(home) => {
                let disk = RealDisk::open(home.join("journal"))
                    .map_err(|source| BuildError::Io { op: "open the journal's directory", source })?;
                Ok(Box::new(FileJournal::open(
                    Arc::new(disk) as Arc<dyn crate::storage::disk::Disk>,
                    self.journal_size,
                )?))
            }
        }
    }

    fn start(mut self, mut journal: Box<dyn Journal>, handle: Handle) -> Result<Engine, BuildError> {
        let fresh = Identity { stream: StreamId::from_u128(random()), digest_key: random() };
        let manifest = self.store.home().map(|home| home.join("MANIFEST"));
        let open = |above, identity| {
            let (store, manifest) = (self.store.clone(), manifest.clone());
            OutboxStore::open_with(store, manifest, above, identity, self.cipher.clone())
        };
        let (mut outbox, mut opened) = open(Epoch::default(), fresh)?;
        outbox.keep_ends(&self.config).map_err(OpenError::Store)?;
        self.config = self.config.for_groups_of(journal.space().max_group_bytes);
        let (mut machines, mut recovered) = self.recover(&outbox, &opened, &mut *journal)?;
        if opened.epoch <= recovered.replay.epoch {
            // The store has forgotten its epochs, as one does that was moved to quarantine. The journal has not.
            let lost = opened.lost;
            (outbox, opened) = open(recovered.replay.epoch, opened.identity)?;
            opened.lost.retain(|loss| !lost.contains(loss));
            opened.lost.extend(lost);
            outbox.keep_ends(&self.config).map_err(OpenError::Store)?;
            (machines, recovered) = self.recover(&outbox, &opened, &mut *journal)?;
        }
        let clock = self.clock.take().unwrap_or_else(|| Arc::new(SystemClock::new(recovered.latest)));
        let epoch = machines.first().map_or(opened.epoch, Machine::epoch);
        journal.begin(epoch)?;
        // What the process before had settled and did not live to let go of: nobody would name it again.
        if let Err(error) = journal.recycle(epoch, opened.settled) {
            tracing::warn!(%error, "journal segments could not be recycled");
        }
        outbox.note_keys(&recovered).map_err(OpenError::Store)?;
        tracing::info!(
            epoch = epoch.0,
            records = recovered.replay.records,
            tail_cut = recovered.replay.tail_cut.is_some(),
            damaged = recovered.replay.damaged.len() + recovered.bad.len(),
            lost_runs = opened.lost.len(),
            "outbox opened"
        );
        Assembly { builder: self, handle, clock, outbox, opened, recovered, journal }.run(machines)
    }

    fn recover(
        &self,
        outbox: &OutboxStore,
        opened: &Opened,
        journal: &mut dyn Journal,
    ) -> Result<(Vec<Machine>, Recovered), BuildError> {
        let shards = self.shards.get();
        let mut machines: Vec<_> = (0..shards).map(|i| Machine::new(self.birth(opened, i))).collect();
        let recovered = recover(opened, journal, shards, &mut |shard, seq, record, counts| {
            outbox.note_record(seq, record);
            if let Some(machine) = machines.get_mut(shard) {
                machine.replay(seq, record, counts);
            }
        })?;
        Ok((machines, recovered))
    }

    /// What shard `i` is born with.
    fn birth(&self, opened: &Opened, i: usize) -> Birth {
        let shards = self.shards.get();
        let mut config = self.config.clone();
        let part = |n: NonZeroU64| NonZeroU64::new(n.get() / shards as u64).unwrap_or(NonZeroU64::MIN);
        config.max_total_messages = part(config.max_total_messages);
        config.max_total_bytes = part(config.max_total_bytes);
        config.max_total_dead_letters = config.max_total_dead_letters.div_ceil(shards as u64);
        config.max_total_dead_bytes = config.max_total_dead_bytes.div_ceil(shards as u64);
        Birth {
            config,
            stream: opened.identity.stream,
            epoch: opened.epoch,
            digest_key: opened.identity.digest_key,
            seed: self.seed.unwrap_or_else(|| random() as u64).wrapping_add(i as u64),
            settled: opened.settled,
            counters: opened.counters_of(i, shards),
            store_empty: opened.store_empty,
            shard: (i, shards),
        }
    }
}

/// Everything that was opened, on its way to work.
struct Assembly {
    builder: EngineBuilder,
    handle: Handle,
    clock: Arc<dyn Clock>,
    outbox: OutboxStore,
    opened: Opened,
    recovered: Recovered,
    journal: Box<dyn Journal>,
}

impl Assembly {
    fn run(self, machines: Vec<Machine>) -> Result<Engine, BuildError> {
        // Room for all that drivers may have open, so that none blocks its worker while the disk syncs.
        let room = machines.len().saturating_mul(MAX_OPEN_COMMITS).saturating_add(ORDERS + MAX_JOINTS);
        let (orders, committer_orders) = bounded(room);
        // Not bounded by itself: a settling has a bounded number of parts, and sealed segments are few.
        let (events, keeper_events) = unbounded();
        let (journal_gauge, keeper_gauge) = (Arc::<JournalGauge>::default(), Arc::<KeeperGauge>::default());
        let config = &self.builder.config;
        let presences = Presences::new(self.clock.clone(), Bounds::of(config), config.max_last_seen);
        let registry = Arc::new(Registry::new(presences));
        let hub = Arc::new(Changes::new(Bounds::of(config)));
        let meters = Arc::new(Meters::default());
        #[cfg(feature = "metrics")]
        meters.begin_from(&super::stats::Stats::of(machines.iter().map(Machine::stats)));
        let (ended, newest_end) = watch::channel(Seq::ZERO);
        let loads = Arc::new(Semaphore::new(LOADS));
        let requests = Arc::<Requests>::default();
        let max_mail_bytes = (self.journal.space().max_group_bytes / 4).min(1 << 20);
        let mut drivers = Vec::new();
        let (shards, boxes): (Vec<_>, Vec<_>) = machines.iter().map(|_| Post::new(MAILBOX)).unzip();
        let (posts, unanswered): (Arc<[Post]>, Arc<Unanswered>) = (shards.clone().into(), Arc::default());
        for (shard, ((machine, post), (mail, notes))) in
            machines.into_iter().zip(shards.iter().cloned()).zip(boxes).enumerate()
        {
            drivers.push(Driver {
                shard,
                machine,
                post,
                mail,
                notes,
                shards: posts.clone(),
                unanswered: unanswered.clone(),
                clock: self.clock.clone(),
                committer: orders.clone(),
                keeper: events.clone(),
                registry: registry.clone(),
                requests: requests.clone(),
                digester: Digester::new(self.opened.identity.digest_key),
                hub: hub.clone(),
                outbox: self.outbox.clone(),
                loads: loads.clone(),
                handle: self.handle.clone(),
                max_mail_bytes,
                keep_ends: self.builder.config.keep_ends,
                state: DriverState::default(),
            });
        }
        let committer = Committer {
            journal: Shield::over(self.journal),
            epoch: self.opened.epoch,
            next: self.recovered.next_seq,
            orders: committer_orders,
            shards: shards.clone(),
            keeper: events.clone(),
            gauge: journal_gauge.clone(),
            meters: meters.clone(),
            ends: self.outbox.ends(),
            ended,
            generation: 0,
            recycled: 0,
        };
        let mut keeper = Keeper {
            disk: DiskGauge::new(self.builder.config.max_disk_bytes),
            outbox: self.outbox.clone(),
            epoch: self.opened.epoch,
            events: keeper_events,
            shards: shards.clone(),
            committer: orders.clone(),
            clock: self.clock.clone(),
            journal: journal_gauge.clone(),
            gauge: keeper_gauge.clone(),
            meters: meters.clone(),
            max_runs: self.builder.max_runs,
            dedup_age: self.builder.config.dedup_age,
            sealed: (self.recovered.replay.records > 0).then_some(self.recovered.next_seq),
            loads: loads.clone(),
        };
        // Before anything is sent, or asked.
        keeper.weigh();
        committer.publish_space();
        let failed = |source| BuildError::Io { op: "start a thread", source };
        let gauge = &journal_gauge;
        let threads = vec![
            tasks::thread("committer", gauge, || committer.run()).map_err(failed)?,
            tasks::thread("keeper", gauge, || keeper.run()).map_err(failed)?,
        ];
        let drivers =
            drivers.into_iter().map(|driver| tasks::part(&self.handle, "driver", gauge, driver.run()));
        let drivers = drivers.collect();
        let inner = Inner {
            shards,
            digester: Digester::new(self.opened.identity.digest_key),
            stream: self.opened.identity.stream,
            registry,
            requests,
            hub,
            handle: self.handle,
            next_link: AtomicU64::new(1),
            clock: self.clock,
            config: self.builder.config.clone(),
            outbox: self.outbox,
            journal: journal_gauge,
            kept: keeper_gauge,
            meters,
            newest_end,
            loads,
            committer: orders,
            keeper: events,
            threads: std::sync::Mutex::new(threads),
            drivers: Mutex::new(drivers),
            closing: AtomicBool::new(false),
            joints: super::batch::gate(),
            max_pending: self.builder.config.max_pending.get(),
            recovered: self.recovered,
            lost: self.opened.lost,
        };
        let engine = Engine { inner: Arc::new(inner) };
        #[cfg(feature = "metrics")]
        tasks::spawn(&engine.inner.handle, Meters::run(Arc::downgrade(&engine.inner)));
        Ok(engine)
    }
}

/// 128 random bits from the system.
pub(super) fn random() -> u128 {
    uuid::Uuid::new_v4().as_u128() ^ MessageId::random().as_u128().rotate_left(64)
}

impl core::fmt::Debug for EngineBuilder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("EngineBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
