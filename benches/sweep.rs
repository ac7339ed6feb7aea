//! What a sweep costs the others: of many messages that wait for people who are away, one in a hundred expires at once.
//!
//! ```console
//! cargo bench --bench sweep [-- --quick | --messages N --users N]
//! ```
//!
//! | line | what it is |
//! |---|---|
//! | quiet | p50, p99 and longest time of a send, from its call to its answer, eight clients, nothing else going on |
//! | sweeping | the same while the sweep goes on |
//! | commits | of these times: how many commits (a write and an fdatasync of the journal) were slower than 5, 10, 25 ms |
//! | machine | of these times: how late a thread was woken that does nothing but sleep for a millisecond, at most |
//! | sweep | how long it took, and how many messages it ended |
//!
//! What a send waited for longer than its commit, it waited for a processor: the last line says whether that is the
//! machine's doing.

mod support;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::{Clock, Sink};
use lastmile::storage::SledStore;
use lastmile::{EndReason, Engine, Message, Timestamp};
use tokio::task::JoinSet;

use self::support::{Dice, now};

const PAYLOAD: usize = 256;
const IN_FLIGHT: u64 = 1024;
/// One message in so many expires.
const EXPIRING: u64 = 100;
const TTL: Duration = Duration::from_secs(24 * 3600);
const CLIENTS: u64 = 8;
const QUIET: Duration = Duration::from_secs(10);
/// The default journal, twice.
const RING_BYTES: usize = 256 << 20;
const REST_PAYLOAD: usize = 16 << 10;
/// Commits that are counted: the engine's histogram has these bounds.
const SLOW: [Duration; 3] = [Duration::from_millis(5), Duration::from_millis(10), Duration::from_millis(25)];
const PATIENCE: Duration = Duration::from_secs(1800);

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone, Debug, Parser)]
struct Options {
    /// A short form: 200,000 messages for 20,000 users.
    #[arg(long)]
    quick: bool,
    #[arg(long, default_value_t = 10_000_000)]
    messages: u64,
    #[arg(long, default_value_t = 1_000_000)]
    users: u64,
    /// Where the engine's directory is made.
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// Cargo passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Time that goes on by itself, and can be moved.
#[derive(Clone, Debug)]
struct Shifted {
    began: Instant,
    shift: Arc<AtomicU64>,
}

impl Clock for Shifted {
    fn now(&self) -> Timestamp {
        let shift = self.shift.load(Ordering::Relaxed);
        Timestamp::from_millis(1_800_000_000_000 + shift + self.began.elapsed().as_millis() as u64)
    }
}

fn main() -> Result<(), Failure> {
    let mut options = Options::parse();
    if options.quick {
        (options.messages, options.users) = (200_000, 20_000);
    }
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("lastmile-sweep-").tempdir_in(parent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!("{} messages for {} users, one in {EXPIRING} expires", options.messages, options.users);
    runtime.block_on(run(&options, dir.path()))
}

async fn run(options: &Options, dir: &Path) -> Result<(), Failure> {
    let clock = Shifted { began: now(), shift: Arc::default() };
    let engine = Engine::builder(SledStore::open(dir)?).clock(clock.clone()).build()?;
    fill(&engine, options).await?;
    at_rest(&engine).await?;
    let quiet = Arc::new(AtomicBool::new(false));
    let timer = {
        let quiet = Arc::clone(&quiet);
        async move {
            tokio::time::sleep(QUIET).await;
            quiet.store(true, Ordering::Relaxed);
            Ok(())
        }
    };
    watched("quiet", &engine, &quiet, timer).await?;

    let before = engine.stats().await?;
    clock.shift.store(2 * TTL.as_millis() as u64, Ordering::Relaxed);
    let (began, swept) = (now(), Arc::new(AtomicBool::new(false)));
    let watch = {
        let (engine, swept) = (engine.clone(), Arc::clone(&swept));
        async move {
            while began.elapsed() < PATIENCE && engine.stats().await?.sweeps == before.sweeps {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            swept.store(true, Ordering::Relaxed);
            Ok(())
        }
    };
    watched("sweeping", &engine, &swept, watch).await?;
    let expired = |stats: &lastmile::Stats| stats.counters.ended[EndReason::Expired.index()];
    let after = engine.stats().await?;
    let ended = expired(&after) - expired(&before);
    println!(
        "{:<16}{:.1} s, {ended} messages ended, {} were to",
        "sweep",
        began.elapsed().as_secs_f64(),
        (options.messages / IN_FLIGHT * IN_FLIGHT).div_ceil(EXPIRING)
    );
    engine.shutdown(Duration::from_secs(600)).await;
    Ok(())
}

async fn fill(engine: &Engine, options: &Options) -> Result<(), Failure> {
    let mut clients = JoinSet::new();
    let (messages, users) = (options.messages, options.users);
    for client in 0..IN_FLIGHT {
        let engine = engine.clone();
        clients.spawn(async move {
            let mut dice = Dice(client << 40);
            for n in 0..messages / IN_FLIGHT {
                let user = format!("user-{:07}", dice.below(users));
                let message = Message::to(user, "chat.message", vec![b'.'; PAYLOAD]);
                let expires = (n * IN_FLIGHT + client).is_multiple_of(EXPIRING);
                let message = if expires { message.ttl(TTL) } else { message };
                engine.send(message.build()?).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

/// Until everything that waits has settled: what goes to somebody who is there pushes it out of the journal.
async fn at_rest(engine: &Engine) -> Result<(), Failure> {
    let attached = engine.attach("somebody", "phone", Takes)?;
    for _ in 0..RING_BYTES / REST_PAYLOAD / 32 {
        let mut clients = JoinSet::new();
        for _ in 0..32 {
            let (engine, message) =
                (engine.clone(), Message::to("somebody", "chat.message", vec![0; REST_PAYLOAD]).build()?);
            clients.spawn(async move { engine.send(message).await.map(drop) });
        }
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
    }
    while engine.stats().await?.runs > 16 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(attached);
    Ok(())
}

/// Clients that send to somebody who is there until they are told to stop; how long their sends took, in microseconds.
async fn sends(
    engine: &Engine,
    stop: &Arc<AtomicBool>,
    until: impl Future<Output = Result<(), Failure>> + Send + 'static,
) -> Result<Histogram<u64>, Failure> {
    let attached = engine.attach("somebody", "phone", Takes)?;
    let mut waits = JoinSet::new();
    waits.spawn(until);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (engine, stop) = (engine.clone(), Arc::clone(stop));
        clients.spawn(async move {
            let mut took = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
            while !stop.load(Ordering::Relaxed) {
                let message = Message::to("somebody", "chat.message", vec![b'.'; PAYLOAD]).build()?;
                let began = now();
                engine.send(message).await?;
                took.saturating_record(began.elapsed().as_micros() as u64);
            }
            Ok::<_, Failure>(took)
        });
    }
    let mut all = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    while let Some(took) = clients.join_next().await {
        all.add(took??)?;
    }
    while let Some(waited) = waits.join_next().await {
        waited??;
    }
    drop(attached);
    Ok(all)
}

struct Takes;

impl Sink for Takes {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        batch.iter().map(|delivery| (delivery.entry, Verdict::Delivered)).collect()
    }
}

/// A time in which clients send, and what they had to wait for.
async fn watched(
    name: &str,
    engine: &Engine,
    stop: &Arc<AtomicBool>,
    until: impl Future<Output = Result<(), Failure>> + Send + 'static,
) -> Result<(), Failure> {
    let before = slow_commits(&engine.stats().await?);
    let late = {
        let stop = Arc::clone(stop);
        std::thread::spawn(move || lateness(&stop))
    };
    let took = sends(engine, stop, until).await?;
    let late = late.join().map_err(|_| "the thread that sleeps panicked")?;
    let after = slow_commits(&engine.stats().await?);
    let [p50, p99, max] =
        [took.value_at_quantile(0.5), took.value_at_quantile(0.99), took.max()].map(|us| us as f64 / 1000.0);
    println!("{name:<16}p50 {p50:.2} ms, p99 {p99:.2} ms, longest {max:.1} ms, of {} sends", took.len());
    let slow = [0, 1, 2].map(|n| format!("{} over {} ms", after[n] - before[n], SLOW[n].as_millis()));
    println!("{:<16}{}", "  commits", slow.join(", "));
    println!("{:<16}woken {:.1} ms late at most", "  machine", late.as_secs_f64() * 1000.0);
    Ok(())
}

/// Since opening, how many commits took longer than each of [`SLOW`].
fn slow_commits(stats: &lastmile::Stats) -> [u64; 3] {
    SLOW.map(|slow| {
        let is_slower = |bound: Option<u64>| bound.is_none_or(|bound| u128::from(bound) > slow.as_nanos());
        let buckets = stats.commit_times.buckets();
        buckets.filter(|(bound, _)| is_slower(*bound)).map(|(_, commits)| commits).sum()
    })
}

/// How much longer than it wanted a thread slept, at most.
fn lateness(stop: &AtomicBool) -> Duration {
    const NAP: Duration = Duration::from_millis(1);
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let began = now();
        std::thread::sleep(NAP);
        longest = longest.max(began.elapsed().saturating_sub(NAP));
    }
    longest
}
