//! One life of the engine's process: two engines, their senders and their people, until killed or done.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lastmile::record::EndPosition;
use lastmile::storage::SledStore;
use lastmile::{Closed, EndReason, Engine, OperateError};
use tokio::task::JoinSet;

use super::Failure;
use super::check::Ledger;
use super::logs::{self, Entry, Log, now_ms};
use super::parent::Report;
use super::people;
use super::plan::{Copy, DEVICES, Plan, user_name};
use super::senders;

/// How often the parent hears of progress.
const REPORT_EVERY: Duration = Duration::from_millis(20);
/// How long messages may wait once all are sent and everybody comes in turn, with no one fewer.
const STUCK: Duration = Duration::from_secs(45);
/// Rows of the ledger that are shown.
const ROWS: usize = 5;
/// Registrations under way at a time.
const REGISTRATIONS: usize = 1_000;
/// Bits of a message's state.
const ACCEPTED: u8 = 1;
const APPLIED: u8 = 2; // of the first copy; of the others the bits above

/// What everything in a life shares.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) life: u32,
    pub(crate) outbox: Engine,
    /// By [`Copy`]: what is for any device goes into one that all of somebody's devices share.
    pub(crate) inboxes: [Engine; Copy::ALL.len()],
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
    world.register_devices().await?;
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
    world.report_rows().await?;
    for engine in world.inboxes.iter().chain([&world.outbox]) {
        engine.shutdown(Duration::from_secs(10)).await;
    }
    Ok(ledger)
}

impl World {
    fn open(plan: Plan, dir: &Path, life: u32) -> Result<Self, Failure> {
        let inbox = |name: &str| open_engine(&dir.join(name));
        let mut world = Self {
            plan,
            life,
            outbox: open_engine(&dir.join("outbox"))?,
            inboxes: [inbox("inbox")?, inbox("inbox-phone")?, inbox("inbox-laptop")?],
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
                Entry::Got { number, got } => self.note_applied(number, got.copy),
                Entry::Try { .. } => {}
            })?;
        }
        Ok(())
    }

    /// Everybody's devices, again in each life: those that are known are no news.
    async fn register_devices(&self) -> Result<(), Failure> {
        let mut registrations = JoinSet::new();
        for user in 0..self.plan.users {
            let outbox = self.outbox.clone();
            registrations.spawn(async move {
                for device in DEVICES {
                    outbox.register_device(user_name(user), device).await?;
                }
                Ok::<_, OperateError>(())
            });
            if registrations.len() >= REGISTRATIONS
                && let Some(done) = registrations.join_next().await
            {
                done??;
            }
        }
        while let Some(done) = registrations.join_next().await {
            done??;
        }
        Ok(())
    }

    pub(crate) fn has_answer(&self, number: u32) -> bool {
        self.states.get(number as usize).is_some_and(|state| state.load(Ordering::Relaxed) & ACCEPTED != 0)
    }

    pub(crate) fn note_accepted(&self, number: u32) {
        self.note(number, ACCEPTED, &self.accepted);
    }

    pub(crate) fn note_applied(&self, number: u32, copy: Copy) {
        self.note(number, APPLIED << copy.code(), &self.applied);
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
        let mut waiting = self.outbox.stats().await?.waiting;
        for inbox in &self.inboxes {
            waiting += inbox.stats().await?.waiting;
        }
        Ok(waiting)
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
        let mut what = format!(
            "{waiting} messages wait and nothing moves for {STUCK:?}; outbox: {:?}",
            self.outbox.stats().await?
        );
        for (copy, inbox) in Copy::ALL.iter().zip(&self.inboxes) {
            what += &format!("; inbox, {}: {:?}", copy.name(), inbox.stats().await?);
        }
        Ok(what)
    }

    /// The first rows of the outbox's ledger: what was not delivered, and why.
    async fn report_rows(&self) -> Result<(), Failure> {
        for ended in self.outbox.ended(EndPosition::START, ROWS).await? {
            let end = ended.end;
            let (user, reason, attempts) =
                (String::from_utf8_lossy(end.user.as_bytes()), end.reason.as_str(), end.attempts);
            let may_have =
                if end.possibly_delivered { "may have arrived" } else { "was never handed to a device" };
            // A late confirmation takes back what an earlier row says.
            let what = match end.upgrades {
                Some(before) => format!("{reason} after all, was {}", before.as_str()),
                None => format!("{reason} after {attempts} failed attempts, {may_have}"),
            };
            let id = end.id.map_or_else(|| format!("what was at {}", end.seq.get()), |id| id.to_string());
            Report::Row(format!("{id} for {user}: {what}")).print();
        }
        Ok(())
    }

    async fn ledger(&self) -> Result<Ledger, Closed> {
        let mut ledger = Ledger { ended: self.outbox.stats().await?.counters.ended, ..Ledger::default() };
        let expired = EndReason::Expired.index();
        ledger.expired = ledger.ended[expired];
        for inbox in &self.inboxes {
            let stats = inbox.stats().await?;
            ledger.expired += stats.counters.ended[expired];
            ledger.inbox_repeats += stats.duplicates;
        }
        Ok(ledger)
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
