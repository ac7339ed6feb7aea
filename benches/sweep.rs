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
//! | commits | of these times: how many commits (a write and an fdatasync of the journal) were slower than 5, 10, 25, 50 ms |
//! | mailbox | of these times: how long a shard took at most to answer a question for which it needs no disk |
//! | machine | of these times: how late a thread was woken that does nothing but sleep for a millisecond, at most |
//! | longest | the five longest sends that are not of one time, when, and what there was to wait for meanwhile |
//! | sweep | how long it took, and how many messages it ended |
//!
//! A send waits for its shard (mailbox), for a commit, and for a processor (machine): the last lines say for which.

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
/// Commits that are counted, by how many milliseconds they took at least: the engine's histogram has these bounds.
const SLOW: [u64; 4] = [5, 10, 25, 50];
/// What takes longer is looked at.
const STALL: Duration = Duration::from_millis(5);
/// So many of the longest sends are printed.
const LONGEST: usize = 5;
/// How long nothing is asked and nobody sleeps between two looks.
const NAP: Duration = Duration::from_millis(1);
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

/// Something that took its time: until when, since the watch began, and how long.
#[derive(Clone, Copy, Debug)]
struct Stall {
    until: Duration,
    took: Duration,
}

impl Stall {
    /// What began then, if it took long.
    fn since(began: Instant, watch: Instant) -> Option<Self> {
        let (until, took) = (watch.elapsed(), began.elapsed());
        (took > STALL).then_some(Self { until, took })
    }

    fn began(&self) -> Duration {
        self.until.saturating_sub(self.took)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.began() < other.until && other.began() < self.until
    }

    /// The longest of those at the same time, in milliseconds.
    fn longest_of(&self, others: &[Self]) -> f64 {
        millis(others.iter().filter(|other| self.overlaps(other)).map(|other| other.took).max())
    }
}

fn millis(time: Option<Duration>) -> f64 {
    time.unwrap_or_default().as_secs_f64() * 1000.0
}

/// How long sends took, in microseconds, and those that took long.
struct Sends {
    took: Histogram<u64>,
    stalls: Vec<Stall>,
}

impl Sends {
    fn new() -> Result<Self, Failure> {
        Ok(Self { took: Histogram::new_with_bounds(1, 60_000_000, 3)?, stalls: Vec::new() })
    }

    /// The longest ones, of those at the same time only one.
    fn longest(&self) -> Vec<Stall> {
        let (mut all, mut longest) = (self.stalls.clone(), Vec::<Stall>::new());
        all.sort_by_key(|stall| core::cmp::Reverse(stall.took));
        for stall in all {
            if longest.len() < LONGEST && !longest.iter().any(|one| one.overlaps(&stall)) {
                longest.push(stall);
            }
        }
        longest
    }
}

/// Clients that send to somebody who is there until they are told to stop.
async fn sends(
    engine: &Engine,
    stop: &Arc<AtomicBool>,
    watch: Instant,
    until: impl Future<Output = Result<(), Failure>> + Send + 'static,
) -> Result<Sends, Failure> {
    let attached = engine.attach("somebody", "phone", Takes)?;
    let mut waits = JoinSet::new();
    waits.spawn(until);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (engine, stop) = (engine.clone(), Arc::clone(stop));
        clients.spawn(async move {
            let mut sends = Sends::new()?;
            while !stop.load(Ordering::Relaxed) {
                let message = Message::to("somebody", "chat.message", vec![b'.'; PAYLOAD]).build()?;
                let began = now();
                engine.send(message).await?;
                sends.took.saturating_record(began.elapsed().as_micros() as u64);
                sends.stalls.extend(Stall::since(began, watch));
            }
            Ok::<_, Failure>(sends)
        });
    }
    let mut all = Sends::new()?;
    while let Some(sends) = clients.join_next().await {
        let sends = sends??;
        all.took.add(sends.took)?;
        all.stalls.extend(sends.stalls);
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

/// What the engine had done when it was asked.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Duration,
    /// So many commits took longer than each of [`SLOW`].
    slow: [u64; SLOW.len()],
    settlements: u64,
    merges: u64,
}

impl Look {
    fn new(at: Duration, stats: &lastmile::Stats) -> Self {
        let slow = SLOW.map(|slow| {
            let is_slower = |bound: Option<u64>| bound.is_none_or(|bound| bound > slow * 1_000_000);
            let buckets = stats.commit_times.buckets();
            buckets.filter(|(bound, _)| is_slower(*bound)).map(|(_, commits)| commits).sum()
        });
        Self { at, slow, settlements: stats.settlements, merges: stats.merges }
    }

    /// What was done since an earlier one.
    fn since(&self, before: &Self) -> String {
        let slow = SLOW.iter().zip(self.slow).zip(before.slow);
        let slow: Vec<_> =
            slow.map(|((slow, after), before)| format!("{} over {slow} ms", after - before)).collect();
        let (settlements, merges) = (self.settlements - before.settlements, self.merges - before.merges);
        format!("{}; {settlements} settlements and {merges} merges ended", slow.join(", "))
    }
}

/// What was seen while clients sent.
#[derive(Debug, Default)]
struct Seen {
    looks: Vec<Look>,
    /// Answers that took long, and the longest one.
    answers: Vec<Stall>,
    slowest: Duration,
}

impl Seen {
    /// What the engine did at the time of a send.
    fn during(&self, send: &Stall) -> String {
        let before = self.looks.iter().rev().find(|look| look.at <= send.began()).or(self.looks.first());
        let after = self.looks.iter().find(|look| look.at >= send.until).or(self.looks.last());
        before.zip(after).map(|(before, after)| after.since(before)).unwrap_or_default()
    }
}

/// Asks the engine what it has done, again and again: a shard answers between two things that it does.
async fn look(engine: Engine, stop: Arc<AtomicBool>, watch: Instant) -> Result<Seen, Failure> {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let began = now();
        let stats = engine.stats().await?;
        seen.slowest = seen.slowest.max(began.elapsed());
        seen.answers.extend(Stall::since(began, watch));
        seen.looks.push(Look::new(watch.elapsed(), &stats));
        tokio::time::sleep(NAP).await;
    }
    Ok(seen)
}

/// When a thread was woken late that sleeps, and how late at most.
fn lateness(stop: &AtomicBool, watch: Instant) -> (Vec<Stall>, Duration) {
    let (mut stalls, mut latest) = (Vec::new(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let began = now();
        std::thread::sleep(NAP);
        stalls.extend(Stall::since(began, watch));
        latest = latest.max(began.elapsed().saturating_sub(NAP));
    }
    (stalls, latest)
}

/// A time in which clients send, and what they had to wait for.
async fn watched(
    name: &str,
    engine: &Engine,
    stop: &Arc<AtomicBool>,
    until: impl Future<Output = Result<(), Failure>> + Send + 'static,
) -> Result<(), Failure> {
    let watch = now();
    let before = Look::new(watch.elapsed(), &engine.stats().await?);
    let late = {
        let stop = Arc::clone(stop);
        std::thread::spawn(move || lateness(&stop, watch))
    };
    let mut looks = JoinSet::new();
    looks.spawn(look(engine.clone(), Arc::clone(stop), watch));
    let sends = sends(engine, stop, watch, until).await?;
    let seen = looks.join_next().await.ok_or("one looks")???;
    let (naps, latest) = late.join().map_err(|_| "the thread that sleeps panicked")?;
    let after = Look::new(watch.elapsed(), &engine.stats().await?);
    let took = &sends.took;
    let [p50, p99, max] =
        [took.value_at_quantile(0.5), took.value_at_quantile(0.99), took.max()].map(|us| us as f64 / 1000.0);
    println!("{name:<16}p50 {p50:.2} ms, p99 {p99:.2} ms, longest {max:.1} ms, of {} sends", took.len());
    println!("{:<16}{}", "  commits", after.since(&before));
    println!("{:<16}answered after {:.1} ms at most", "  mailbox", millis(Some(seen.slowest)));
    println!("{:<16}woken {:.1} ms late at most", "  machine", millis(Some(latest)));
    for send in sends.longest() {
        let (at, took) = (send.began().as_secs_f64(), millis(Some(send.took)));
        let (answer, nap) = (send.longest_of(&seen.answers), send.longest_of(&naps));
        println!("{:<16}{took:.1} ms at {at:.2} s: mailbox {answer:.1} ms, sleep {nap:.1} ms", "  longest");
        println!("{:<20}commits {}", "", seen.during(&send));
    }
    Ok(())
}
