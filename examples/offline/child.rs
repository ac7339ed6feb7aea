//! One life of the engine's process: two engines, their senders and their people, until killed or done.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lastmile::storage::SledStore;
use lastmile::{Closed, EndReason, Engine};
use tokio::task::JoinSet;

use super::Failure;
use super::check::Ledger;
use super::logs::{self, Entry, Log, now_ms};
use super::parent::Report;
use super::people;
use super::plan::Plan;
use super::senders;

/// How often the parent hears of progress.
const REPORT_EVERY: Duration = Duration::from_millis(20);
/// How long messages may wait once all are sent and everybody comes in turn, with no one fewer.
const STUCK: Duration = Duration::from_secs(45);
/// Bits of a message's state.
const ACCEPTED: u8 = 1;
const APPLIED: u8 = 2;

/// What everything in a life shares.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) life: u32,
    pub(crate) outbox: Engine,
    pub(crate) inbox: Engine,
    pub(crate) senders_log: Log,
    pub(crate) receivers_log: Log,
    /// All senders have an answer for all of their messages.
    pub(crate) all_sent: AtomicBool,
    /// Nothing waits in either engine.
    pub(crate) all_ended: AtomicBool,
    states: Vec<AtomicU8>,
    accepted: AtomicU64,
    applied: AtomicU64,
    failure: OnceLock<String>,
}

/// The hidden subcommand.
pub(crate) fn main(plan: Plan, dir: &Path, life: u32) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let lived = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(live(plan, dir, life)));
    match lived {
        Ok(ledger) => {
            Report::Done(ledger).print();
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("offline: life {life} failed: {failure}");
            ExitCode::from(2)
        }
    }
}

async fn live(plan: Plan, dir: &Path, life: u32) -> Result<Ledger, Failure> {
    let world = Arc::new(World::open(plan, dir, life)?);
    let mut tasks = JoinSet::new();
    for sender in 0..plan.senders() {
        tasks.spawn(senders::run(Arc::clone(&world), sender));
    }
    let mut reporter = JoinSet::new();
    reporter.spawn(report(Arc::clone(&world)));
    let people = people::start(&world);
    while let Some(sender) = tasks.join_next().await {
        sender??;
    }
    world.all_sent.store(true, Ordering::Release);
    world.wait_until_all_has_ended().await?;
    people.join_all().await;
    reporter.join_all().await.into_iter().collect::<Result<(), Closed>>()?;
    let ledger = world.ledger().await?;
    for engine in [&world.outbox, &world.inbox] {
        engine.shutdown(Duration::from_secs(10)).await;
    }
    Ok(ledger)
}

impl World {
    fn open(plan: Plan, dir: &Path, life: u32) -> Result<Self, Failure> {
        let mut world = Self {
            plan,
            life,
            outbox: open_engine(&dir.join("outbox"))?,
            inbox: open_engine(&dir.join("inbox"))?,
            senders_log: Log::append_to(&dir.join(logs::SENDERS))?,
            receivers_log: Log::append_to(&dir.join(logs::RECEIVERS))?,
            all_sent: AtomicBool::new(false),
            all_ended: AtomicBool::new(false),
            states: (0..plan.messages).map(|_| AtomicU8::new(0)).collect(),
            accepted: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            failure: OnceLock::new(),
        };
        world.recall(dir)?;
        Ok(world)
    }

    /// Senders remember what they have an answer for; that is all that outlives a life outside of the engines.
    fn recall(&mut self, dir: &Path) -> Result<(), Failure> {
        for file in [logs::SENDERS, logs::RECEIVERS] {
            logs::read(&dir.join(file), |entry| match entry {
                Entry::Ok { number, .. } => self.note_accepted(number),
                Entry::Got { number, .. } => self.note_applied(number),
                Entry::Try { .. } => {}
            })?;
        }
        Ok(())
    }

    pub(crate) fn has_answer(&self, number: u32) -> bool {
        self.states.get(number as usize).is_some_and(|state| state.load(Ordering::Relaxed) & ACCEPTED != 0)
    }

    pub(crate) fn note_accepted(&self, number: u32) {
        self.note(number, ACCEPTED, &self.accepted);
    }

    pub(crate) fn note_applied(&self, number: u32) {
        self.note(number, APPLIED, &self.applied);
    }

    fn note(&self, number: u32, bit: u8, count: &AtomicU64) {
        let before = self.states.get(number as usize).map(|state| state.fetch_or(bit, Ordering::Relaxed));
        if before.is_some_and(|before| before & bit == 0) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Remembers the first thing that makes the run worthless.
    pub(crate) fn fail(&self, what: impl ToString) {
        let _ = self.failure.set(what.to_string());
    }

    async fn waiting(&self) -> Result<u64, Closed> {
        Ok(self.outbox.stats().await?.waiting + self.inbox.stats().await?.waiting)
    }

    async fn wait_until_all_has_ended(&self) -> Result<(), Failure> {
        let (mut last, mut since) = (u64::MAX, now_ms());
        loop {
            let waiting = self.waiting().await?;
            if waiting == 0 {
                break;
            }
            if let Some(failure) = self.failure.get() {
                return Err(failure.clone().into());
            }
            if waiting != last {
                (last, since) = (waiting, now_ms());
            } else if Duration::from_millis(now_ms().saturating_sub(since)) > STUCK {
                eprintln!("offline: {}", self.stuck(waiting).await?);
                Report::Stuck(self.ledger().await?).print();
                break;
            }
            tokio::time::sleep(REPORT_EVERY).await;
        }
        self.all_ended.store(true, Ordering::Release);
        Ok(())
    }

    async fn stuck(&self, waiting: u64) -> Result<String, Closed> {
        let (outbox, inbox) = (self.outbox.stats().await?, self.inbox.stats().await?);
        Ok(format!(
            "{waiting} messages wait and nothing moves for {STUCK:?}; outbox: {outbox:?}; inbox: {inbox:?}"
        ))
    }

    async fn ledger(&self) -> Result<Ledger, Closed> {
        let (outbox, inbox) = (self.outbox.stats().await?, self.inbox.stats().await?);
        let expired = EndReason::Expired.index();
        Ok(Ledger {
            expired: outbox.counters.ended[expired] + inbox.counters.ended[expired],
            inbox_repeats: inbox.duplicates,
        })
    }
}

fn open_engine(dir: &Path) -> Result<Engine, Failure> {
    let store = SledStore::open(dir).map_err(|error| format!("cannot open {}: {error}", dir.display()))?;
    Ok(Engine::builder(store).build()?)
}

/// Tells the parent how far it is, whenever that has changed: silence means that nothing moves.
async fn report(world: Arc<World>) -> Result<(), Closed> {
    let mut last = (0, 0, 0);
    while !world.all_ended.load(Ordering::Acquire) {
        let accepted = world.accepted.load(Ordering::Relaxed);
        let now = (accepted, world.applied.load(Ordering::Relaxed), world.waiting().await?);
        if now != last {
            let (accepted, applied, waiting) = now;
            Report::Progress { accepted, applied, waiting }.print();
            last = now;
        }
        tokio::time::sleep(REPORT_EVERY).await;
    }
    Ok(())
}
