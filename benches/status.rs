//! What it costs to know what became of messages: the memory that finished ones leave behind, and looking one up.
//!
//! ```console
//! cargo bench --bench status [-- --quick | --messages N --users N]
//! ```
//!
//! | line | what it is |
//! |---|---|
//! | finished | bytes of heap that so many finished messages leave, nine of ten delivered and one withdrawn, with default retention, over what the open engine takes; once all has settled |
//! | in memory | where a message stands, of a person with 100 waiting, asked of the delivery machine itself |
//! | on disk | `Engine::status` of messages that wait for people who are away, from the call to its answer; with one at a time |

#[path = "support/core.rs"]
mod core;
mod support;

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use hdrhistogram::Histogram;
use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::Sink;
use lastmile::record::{LaneId, Seq};
use lastmile::storage::SledStore;
use lastmile::{Attachment, Config, Engine, Message, MessageId, Stats, UserId};
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
/// Whose messages finish.
const RECEIVERS: u64 = 1_000;
const LOOKUPS: u64 = 5_000;
const QUIET: Duration = Duration::from_millis(20);

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone, Debug, Parser)]
struct Options {
    /// A short form: 50,000 messages for 5,000 users.
    #[arg(long)]
    quick: bool,
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    #[arg(long, default_value_t = 100_000)]
    users: u64,
    /// Cargo passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Failure> {
    let mut options = Options::parse();
    if options.quick {
        (options.messages, options.users) = (50_000, 5_000);
    }
    in_memory()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(finished(&options))?;
    runtime.block_on(on_disk(&options))
}

fn in_memory() -> Result<(), Failure> {
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
    println!("in memory     p50 {} ns, p99 {} ns (aim: 1,000)", at(0.5), at(0.99));
    Ok(())
}

async fn finished(options: &Options) -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("lastmile-status-").tempdir()?;
    let engine = Engine::builder(SledStore::open(dir.path())?).build()?;
    let attached: Result<Vec<Attachment>, _> =
        (0..RECEIVERS).map(|n| engine.attach(format!("receiver-{n}"), "phone", Confirm)).collect();
    let attached = attached?;
    let empty = HEAP.current_usage();
    let mut senders = JoinSet::new();
    for sender in 0..IN_FLIGHT {
        let (engine, messages) = (engine.clone(), options.messages / IN_FLIGHT);
        senders.spawn(async move {
            let mut dice = Dice(sender << 32);
            for n in 0..messages {
                let withdrawn = n % 10 == 0;
                let to = if withdrawn { "away" } else { "receiver" };
                let user = format!("{to}-{}", dice.below(RECEIVERS));
                let message = Message::to(user.as_str(), "chat.message", vec![b'.'; PAYLOAD]).build()?;
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
    let bound = BOUND as u64 * options.messages.max(1) / 1_000_000;
    let verdict = if left as u64 <= bound.max(BOUND as u64 / 2) { "within" } else { "over" };
    println!(
        "finished      {} delivered, {} withdrawn: {:.1} MB left, {verdict} the bound of {} MB",
        stats.counters.ended[0],
        stats.counters.ended.iter().skip(1).sum::<u64>(),
        left as f64 / f64::from(1 << 20),
        bound.max(BOUND as u64 / 2) >> 20,
    );
    engine.shutdown(Duration::from_secs(60)).await;
    Ok(())
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
    let engine = Engine::builder(SledStore::open(dir.path())?).build()?;
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
    let mut dice = Dice(7);
    let mut waits = Histogram::<u64>::new(3)?;
    for _ in 0..LOOKUPS {
        // The older half has settled.
        let n = dice.below(options.messages / 2);
        let began = now();
        let located =
            engine.status(format!("user-{}", n % options.users), MessageId::from_u128(n.into())).await?;
        waits.record(u64::try_from(began.elapsed().as_nanos())?)?;
        if located.is_none() {
            return Err(format!("message {n} was not found").into());
        }
    }
    let at = |q| waits.value_at_quantile(q) as f64 / 1e6;
    println!(
        "on disk       {} messages of {} people: p50 {:.3} ms, p99 {:.3} ms (aim: 1)",
        short(options.messages as f64),
        short(options.users as f64),
        at(0.5),
        at(0.99)
    );
    engine.shutdown(Duration::from_secs(60)).await;
    Ok(())
}

/// Confirms everything.
struct Confirm;

impl Sink for Confirm {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        batch.iter().map(|delivery| (delivery.entry, Verdict::Delivered)).collect()
    }
}
