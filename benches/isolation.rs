//! Whether one person's trouble reaches the others: how long their messages take from `send` to the sink, 99th
//! percentile, beside the same messages in a quiet engine.
//!
//! ```console
//! cargo bench --bench isolation [-- --quick] [-- --only drain]
//! ```
//!
//! | trouble | what goes on meanwhile |
//! |---|---|
//! | backlog | a million messages wait for one person who is away |
//! | drain | the same person is there and takes them as fast as they come |
//! | silent | the same person's transport never answers |
//! | panic | the same person's handler panics, and is attached again at once |
//!
//! Each is measured in turn with the quiet engine, round by round; the ratio is that of the medians.

mod support;

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::Sink;
use lastmile::storage::SledStore;
use lastmile::{Attachment, Config, Engine, Message};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::support::{Dice, Options, median, now};

const OTHERS: u64 = 50;
/// Messages to the others under way at once.
const SENDERS: u64 = 8;
const PAYLOAD: usize = 256;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    // Handlers panic on purpose, thousands of times.
    std::panic::set_hook(Box::new(|_| ()));
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(&arguments))
}

/// What to measure.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Only this trouble.
    #[arg(long)]
    only: Option<String>,
}

async fn run(Arguments { options, only }: &Arguments) -> Result<(), Failure> {
    let (backlog, messages) = options.pick((1_000_000, 20_000), (50_000, 2_000));
    let rounds = options.pick(5, 3);
    let bench = Bench::start(messages).await?;
    println!("{messages} messages to {OTHERS} people, {SENDERS} under way; 99th percentile of send to sink");
    println!("{:<10}{:>12}{:>12}{:>8}", "trouble", "quiet", "trouble", "ratio");
    let mut lines = Vec::new();
    for trouble in [Trouble::Backlog, Trouble::Drain, Trouble::Silent, Trouble::Panic] {
        if only.as_ref().is_some_and(|only| only != trouble.name()) {
            continue;
        }
        let (mut quiet, mut troubled) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            quiet.push(bench.round().await?);
            bench.fill(backlog).await?;
            let guard = bench.cause(trouble)?;
            troubled.push(bench.round().await?);
            drop(guard);
        }
        let (quiet, troubled) = (median(quiet), median(troubled));
        let (name, ratio) = (trouble.name(), troubled / quiet);
        println!("{name:<10}{:>9.2} ms{:>9.2} ms{ratio:>8.2}", quiet * 1e3, troubled * 1e3);
        lines.push(format!("ratio p99 {name}/quiet {ratio:.2}"));
    }
    println!();
    lines.iter().for_each(|line| println!("{line}"));
    bench.engine.shutdown(Duration::from_secs(60)).await;
    Ok(())
}

#[derive(Clone, Copy)]
enum Trouble {
    Backlog,
    Drain,
    Silent,
    Panic,
}

impl Trouble {
    fn name(self) -> &'static str {
        match self {
            Self::Backlog => "backlog",
            Self::Drain => "drain",
            Self::Silent => "silent",
            Self::Panic => "panic",
        }
    }
}

struct Bench {
    engine: Engine,
    started: Instant,
    messages: u64,
    waits: Arc<Mutex<Vec<f64>>>,
    arrived: tokio::sync::Mutex<mpsc::UnboundedReceiver<()>>,
    _others: Vec<Attachment>,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn start(messages: u64) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("lastmile-isolation-").tempdir()?;
        let mut config = Config::default();
        config.max_user_messages = 2_000_000.try_into()?;
        config.max_user_bytes = (2 << 30).try_into()?;
        let engine = Engine::builder(SledStore::open(dir.path())?).config(config).build()?;
        let (started, waits) = (now(), Arc::new(Mutex::new(Vec::new())));
        let (tell, arrived) = mpsc::unbounded_channel();
        let probe = |_| Probe { started, waits: waits.clone(), tell: tell.clone() };
        let others = (0..OTHERS).map(|n| engine.attach(format!("user-{n}"), "phone", probe(n)));
        let others = others.collect::<Result<_, _>>()?;
        let arrived = tokio::sync::Mutex::new(arrived);
        Ok(Self { engine, started, messages, waits, arrived, _others: others, _dir: dir })
    }

    /// Sends to the others, and gives the 99th percentile of the time to their sinks, in seconds.
    async fn round(&self) -> Result<f64, Failure> {
        let mut senders = JoinSet::new();
        for number in 0..SENDERS {
            let (engine, started, messages) = (self.engine.clone(), self.started, self.messages / SENDERS);
            senders.spawn(async move {
                let mut dice = Dice(number << 32);
                for _ in 0..messages {
                    let mut payload = vec![b'.'; PAYLOAD];
                    let at = started.elapsed().as_nanos() as u64;
                    payload.splice(..8, at.to_le_bytes());
                    let user = format!("user-{}", dice.below(OTHERS));
                    engine.send(Message::to(user, "chat.message", payload).build()?).await?;
                }
                Ok::<_, Failure>(())
            });
        }
        while let Some(ended) = senders.join_next().await {
            ended??;
        }
        let mut arrived = self.arrived.lock().await;
        for _ in 0..self.messages / SENDERS * SENDERS {
            arrived.recv().await.ok_or("a sink is gone")?;
        }
        let mut waits =
            self.waits.lock().map(|mut waits| std::mem::take(&mut *waits)).map_err(|_| "poisoned")?;
        waits.sort_by(f64::total_cmp);
        waits.get(waits.len() * 99 / 100).copied().ok_or_else(|| "nothing arrived".into())
    }

    /// Makes sure that so many messages wait for the person in trouble.
    async fn fill(&self, backlog: u64) -> Result<(), Failure> {
        let waiting = self.engine.stats().await?.waiting;
        let mut senders = JoinSet::new();
        for _ in 0..256 {
            let (engine, messages) = (self.engine.clone(), backlog.saturating_sub(waiting) / 256);
            senders.spawn(async move {
                for _ in 0..messages {
                    let message = Message::to("trouble", "chat.message", vec![b'.'; PAYLOAD]).build()?;
                    engine.send(message).await?;
                }
                Ok::<_, Failure>(())
            });
        }
        while let Some(ended) = senders.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// The trouble, until the guard is dropped.
    fn cause(&self, trouble: Trouble) -> Result<Guard, Failure> {
        let engine = self.engine.clone();
        let mut tasks = JoinSet::new();
        let attached = match trouble {
            Trouble::Backlog => None,
            Trouble::Drain => Some(engine.attach("trouble", "phone", Drain)?),
            Trouble::Silent => Some(engine.attach("trouble", "phone", Silent)?),
            Trouble::Panic => {
                tasks.spawn(async move {
                    while let Ok(attached) = engine.attach("trouble", "phone", Panics) {
                        attached.closed().await;
                    }
                });
                None
            }
        };
        Ok(Guard { _attached: attached, _tasks: tasks })
    }
}

struct Guard {
    _attached: Option<Attachment>,
    _tasks: JoinSet<()>,
}

/// Measures how long its messages took.
struct Probe {
    started: Instant,
    waits: Arc<Mutex<Vec<f64>>>,
    tell: mpsc::UnboundedSender<()>,
}

impl Sink for Probe {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        let at = self.started.elapsed().as_nanos() as u64;
        if let Ok(mut waits) = self.waits.lock() {
            waits.extend(batch.iter().map(|delivery| {
                let sent =
                    delivery.message.payload().first_chunk().map_or(0, |sent| u64::from_le_bytes(*sent));
                at.saturating_sub(sent) as f64 / 1e9
            }));
        }
        for _ in &batch {
            let _ = self.tell.send(());
        }
        batch.iter().map(|delivery| (delivery.entry, Verdict::Delivered)).collect()
    }
}

struct Drain;

impl Sink for Drain {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        batch.iter().map(|delivery| (delivery.entry, Verdict::Delivered)).collect()
    }
}

struct Silent;

impl Sink for Silent {
    async fn deliver(&mut self, _: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        std::future::pending().await
    }
}

struct Panics;

impl Sink for Panics {
    async fn deliver(&mut self, _: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        panic!("the host's bug, on purpose")
    }
}
