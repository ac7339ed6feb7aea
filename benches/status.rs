//! What it costs to know what became of messages: the memory that finished ones leave behind, and looking one up.
//!
//! ```console
//! cargo bench --bench status [-- --quick | --messages N --users N --receivers N]
//! ```
//!
//! | line | what it is |
//! |---|---|
//! | machine | where a message stands, of a person with 100 waiting, asked of the delivery machine itself |
//! | in memory | `Engine::status` of the same over a store in memory, from the call to its answer; with one at a time |
//! | finished | bytes of heap that so many finished messages leave, nine of ten delivered and one withdrawn, from 10,000 senders to 100,000 people, with default retention, over what the open engine takes; once all has settled. Over the bound, the bench fails |
//! | waiting | `Engine::status` of messages that wait on disk for people who are away, as above |
//! | busy | the same of somebody who has 10,000 on disk, from as many senders as there are; the slowest is the first question |
//! | by sender | the same, asked with the sender |
//! | ledger | the same of messages that were withdrawn before all those |
//! | letters | the same of messages that were refused for good before all those, and are kept as dead letters |

#[path = "support/core.rs"]
mod core;
mod support;

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use hdrhistogram::Histogram;
use lastmile::machine::{Delivery, EntryRef, Operation, Target, Verdict};
use lastmile::ports::Sink;
use lastmile::record::{LaneId, Seq};
use lastmile::storage::{MemoryStore, SledStore};
use lastmile::{Attachment, Config, EndReason, Engine, Message, MessageId, Stage, Stats, Status, UserId};
use peak_alloc::PeakAlloc;
use tokio::task::JoinSet;

use self::core::Core;
use self::support::{Dice, now, short, time};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const PAYLOAD: usize = 256;
const IN_FLIGHT: u64 = 256;
/// What a million finished messages may leave.
const BOUND: usize = 128 << 20;
/// Who sends what finishes.
const SENDERS: u64 = 10_000;
const LOOKUPS: u64 = 5_000;
/// Messages that wait for one person.
const BACKLOG: u64 = 10_000;
/// Messages that were withdrawn, and as many that were refused, before the others.
const ENDED: u64 = 1_000;
const QUIET: Duration = Duration::from_millis(20);

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone, Debug, Parser)]
struct Options {
    /// A short form: 50,000 messages for 5,000 users, of whom as many receive.
    #[arg(long)]
    quick: bool,
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    #[arg(long, default_value_t = 100_000)]
    users: u64,
    /// Whose messages finish: as many again get nothing but what is withdrawn.
    #[arg(long, default_value_t = 100_000)]
    receivers: u64,
    /// Cargo passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Failure> {
    let mut options = Options::parse();
    if options.quick {
        (options.messages, options.users, options.receivers) = (50_000, 5_000, 5_000);
    }
    machine()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(in_memory())?;
    runtime.block_on(finished(&options))?;
    runtime.block_on(on_disk(&options))
}

fn machine() -> Result<(), Failure> {
    let mut core = Core::new(Config::default());
    for n in 0..1000_u128 {
        let message =
            Message::to(format!("user-{}", n % 10), "chat.message", "hello").id(MessageId::from_u128(n));
        core.send(message.build()?);
    }
    core.drain();
    let user = UserId::new("user-3")?;
    let (mut waits, mut found) = (Histogram::<u64>::new(3)?, 0_u64);
    for n in 0..20_000_u64 {
        let entry = EntryRef { lane: LaneId::Normal, seq: Seq::new((1 << 40) + (n * 7) % 1000) };
        let (standing, took) = time(|| core.machine().standing(&user, entry));
        found += u64::from(matches!(standing, lastmile::machine::Standing::Live(_)));
        waits.record(took.as_nanos() as u64)?;
    }
    if found == 0 {
        return Err("nothing was found".into());
    }
    let at = |q| waits.value_at_quantile(q);
    println!("machine       p50 {} ns, p99 {} ns (aim: 1,000)", at(0.5), at(0.99));
    Ok(())
}

async fn in_memory() -> Result<(), Failure> {
    let engine = Engine::builder(MemoryStore::new()).build()?;
    for n in 0..1000_u128 {
        let message = Message::to(format!("user-{}", n % 10), "chat.message", "hello");
        engine.send(message.id(MessageId::from_u128(n)).build()?).await?;
    }
    let all = (0..u64::from(u16::MAX)).map(|n| (n * 7) % 1000).map(|n| (format!("user-{}", n % 10), n));
    let waits = look_up(&engine, all.take(4 * LOOKUPS as usize), Status::Accepted).await?;
    let at = |q| waits.value_at_quantile(q) as f64 / 1e3;
    println!("in memory     p50 {:.1} µs, p99 {:.1} µs", at(0.5), at(0.99));
    engine.shutdown(Duration::from_secs(60)).await;
    Ok(())
}

/// How long it takes to be told where each of these stands, which must be there.
async fn look_up(
    engine: &Engine,
    messages: impl Iterator<Item = (String, u64)>,
    expected: Status,
) -> Result<Histogram<u64>, Failure> {
    let mut waits = Histogram::new(3)?;
    for (user, id) in messages {
        let began = now();
        let located = engine.status(user.as_str(), MessageId::from_u128(id.into())).await?;
        waits.record(u64::try_from(began.elapsed().as_nanos())?)?;
        if located.map(|located| located.status) != Some(expected) {
            return Err(format!("message {id} for {user} is {located:?}, not {expected:?}").into());
        }
    }
    Ok(waits)
}

async fn finished(options: &Options) -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("lastmile-status-").tempdir()?;
    let engine = Engine::builder(SledStore::open(dir.path())?).build()?;
    let attached: Result<Vec<Attachment>, _> = (0..options.receivers)
        .map(|n| engine.attach(format!("receiver-{n}"), "phone", Answer(Verdict::Delivered)))
        .collect();
    let attached = attached?;
    let empty = HEAP.current_usage();
    let mut senders = JoinSet::new();
    for sender in 0..IN_FLIGHT {
        let (engine, messages, people) = (engine.clone(), options.messages / IN_FLIGHT, options.receivers);
        senders.spawn(async move {
            let mut dice = Dice(sender << 32);
            for n in 0..messages {
                let withdrawn = n % 10 == 0;
                let to = if withdrawn { "away" } else { "receiver" };
                let user = format!("{to}-{}", dice.below(people));
                let from = format!("sender-{}", dice.below(SENDERS));
                let message = Message::to(user.as_str(), "chat.message", vec![b'.'; PAYLOAD]);
                let message = message.sender(from.as_str()).build()?;
                let id = message.id();
                engine.send(message).await?;
                if withdrawn {
                    engine.cancel(user.as_str(), id).await?;
                }
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = senders.join_next().await {
        ended??;
    }
    let stats = quiet(&engine).await?;
    drop(attached);
    let left = HEAP.current_usage().saturating_sub(empty);
    let bound = (BOUND as u64 * options.messages.max(1) / 1_000_000).max(BOUND as u64 / 2);
    let is_within = left as u64 <= bound;
    let verdict = if is_within { "within" } else { "over" };
    println!(
        "finished      {} delivered, {} withdrawn: {:.1} MB left, {verdict} the bound of {} MB",
        stats.counters.ended[0],
        stats.counters.ended.iter().skip(1).sum::<u64>(),
        left as f64 / f64::from(1 << 20),
        bound >> 20,
    );
    engine.shutdown(Duration::from_secs(60)).await;
    if is_within { Ok(()) } else { Err("finished messages leave more than is stated".into()) }
}

/// Until everything is delivered and nothing is settled or merged any more.
async fn quiet(engine: &Engine) -> Result<Stats, Failure> {
    let mut before = engine.stats().await?;
    loop {
        tokio::time::sleep(QUIET).await;
        let stats = engine.stats().await?;
        if stats.waiting == 0 && stats.is_quiet() && stats.settlements == before.settlements {
            return Ok(stats);
        }
        before = stats;
    }
}

async fn on_disk(options: &Options) -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("lastmile-status-").tempdir()?;
    let mut builder = Engine::builder(SledStore::open(dir.path())?);
    if options.quick {
        builder = builder.journal_size(4 << 20, 3);
    }
    let engine = builder.build()?;
    for n in 0..ENDED {
        let id = MessageId::from_u128((options.messages + n).into());
        let [lost, refused] = ["lost", "refused"].map(|name| format!("{name}-{n}"));
        let message = |to: &str| Message::to(to, "chat.message", vec![b'.'; PAYLOAD]).id(id).build();
        engine.send(message(&lost)?).await?;
        engine.cancel(lost.as_str(), id).await?;
        let attached = engine.attach(refused.as_str(), "phone", Answer(Verdict::Rejected))?;
        engine.send(message(&refused)?).await?.reached(Stage::Delivered).await?;
        drop(attached);
    }
    let backlog = options.messages + 2 * ENDED;
    let busy = (0..BACKLOG).map(|n| {
        let message = Message::to("busy", "chat.message", vec![b'.'; PAYLOAD]).sender(sender(n).as_str());
        message.id(MessageId::from_u128((backlog + n).into())).build()
    });
    for batch in busy.collect::<Result<Vec<_>, _>>()?.chunks(500) {
        engine.send_batch(batch.to_vec()).await?;
    }
    let mut senders = JoinSet::new();
    for part in 0..IN_FLIGHT {
        let (engine, messages, users) = (engine.clone(), options.messages, options.users);
        senders.spawn(async move {
            for n in (part..messages).step_by(IN_FLIGHT as usize) {
                let message = Message::to(format!("user-{}", n % users), "chat.message", vec![b'.'; PAYLOAD]);
                engine.send(message.id(MessageId::from_u128(n.into())).build()?).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = senders.join_next().await {
        ended??;
    }
    if engine.stats().await?.settlements == 0 {
        return Err("nothing has settled: send more".into());
    }
    let mut dice = Dice(7);
    // The older half has settled.
    let waiting = (0..LOOKUPS).map(|_| dice.below(options.messages / 2));
    let waiting: Vec<_> = waiting.map(|n| (format!("user-{}", n % options.users), n)).collect();
    let ended = |name: &'static str| (0..ENDED).map(move |n| (format!("{name}-{n}"), options.messages + n));
    let of = format!("{} messages of {} people", short(options.messages as f64), short(options.users as f64));
    let found = look_up(&engine, waiting.into_iter(), Status::Accepted).await?;
    report("waiting", &format!("on disk, {of}"), &found);
    let asked = || (0..LOOKUPS).map(|n| (n * 7_919) % BACKLOG);
    let of_busy = asked().map(|n| ("busy".to_owned(), backlog + n));
    report("busy", "on disk, of 10,000", &look_up(&engine, of_busy, Status::Accepted).await?);
    let found = look_up_by_sender(&engine, backlog, asked()).await?;
    report("by sender", "on disk, of 10,000", &found);
    let found = look_up(&engine, ended("lost"), Status::Ended(EndReason::Cancelled)).await?;
    report("ledger", "on disk, behind those", &found);
    let found = look_up(&engine, ended("refused"), Status::Ended(EndReason::Rejected)).await?;
    report("letters", "on disk, behind those", &found);
    engine.shutdown(Duration::from_secs(60)).await;
    Ok(())
}

/// Who sends message `n` of the backlog.
fn sender(n: u64) -> String {
    format!("sender-{n}")
}

async fn look_up_by_sender(
    engine: &Engine,
    first: u64,
    messages: impl Iterator<Item = u64>,
) -> Result<Histogram<u64>, Failure> {
    let (user, mut waits) = (UserId::new("busy")?, Histogram::new(3)?);
    for n in messages {
        let (id, sender) = (MessageId::from_u128((first + n).into()), Some(Some(UserId::new(sender(n))?)));
        let began = now();
        let target = Target { user: user.clone(), id, sender };
        let located = engine.operate(Operation::Locate(target)).await?.located;
        waits.record(u64::try_from(began.elapsed().as_nanos())?)?;
        if located.map(|located| located.status) != Some(Status::Accepted) {
            return Err(format!("message {id} is {located:?}").into());
        }
    }
    Ok(waits)
}

fn report(what: &str, of: &str, waits: &Histogram<u64>) {
    let at = |q| waits.value_at_quantile(q) as f64 / 1e6;
    let (p50, p99, max) = (at(0.5), at(0.99), waits.max() as f64 / 1e6);
    println!("{what:<14}{of}: p50 {p50:.3} ms, p99 {p99:.3} ms, slowest {max:.3} ms (aim: p99 1)");
}

/// Says the same of everything.
#[derive(Clone)]
struct Answer(Verdict);

impl Sink for Answer {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        batch.iter().map(|delivery| (delivery.entry, self.0.clone())).collect()
    }
}
