//! Ten million messages for a million people who are away: speed, memory, disk, opening again, coming back.
//!
//! ```console
//! cargo bench --bench settle [-- --quick | --messages N --users N]
//! cargo bench --bench settle -- --keep --dir DIR       # leaves what it made in DIR
//! cargo bench --bench settle -- --at DIR/lastmile-…    # opens that, and times people who come back
//! ```
//!
//! | line | what it is |
//! |---|---|
//! | sustained | messages accepted a second, durably, with settling and merging included |
//! | heap | bytes allocated in this process once all has settled, by a counting allocator; sled's share is in it |
//! | rss | what the operating system says of the process |
//! | slope | bytes of heap an idle user with a message waiting costs: as many users again, one message each |
//! | disk/logical | bytes of the directory, the journal's ring taken off, over bytes of payloads and ids |
//! | reopen | from a closed directory to an engine that takes messages |
//! | sled alone | the same directory opened by nothing but sled, before that: only with `--at --bare` |
//! | first message | from attaching to the first delivery, for people who were away, p50 and p99 |

mod support;

use std::collections::HashSet;
use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use hdrhistogram::Histogram;
use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::Sink;
use lastmile::storage::SledStore;
use lastmile::{Engine, Message};
use peak_alloc::PeakAlloc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::support::{Dice, now, rate, short};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const PAYLOAD: usize = 256;
/// A payload and the two ids that go with it.
const MESSAGE: u64 = PAYLOAD as u64 + 12 + 16;
const IN_FLIGHT: u64 = 1024;
/// The default journal, twice.
const RING_BYTES: usize = 256 << 20;
const REST_PAYLOAD: usize = 16 << 10;
const CLIENTS_AT_REST: usize = 32;
/// People whose first message is timed.
const VISITS: u64 = 2_000;
/// The longest wait for a first message.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// Leave the directory when done.
    #[arg(long)]
    keep: bool,
    /// Only open this directory, which another run kept, and let people come back.
    #[arg(long)]
    at: Option<std::path::PathBuf>,
    /// Open it with sled alone first. sled then writes what it found to its snapshot, and later openings are faster.
    #[arg(long, requires = "at")]
    bare: bool,
    /// Cargo passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Failure> {
    let mut options = Options::parse();
    if options.quick {
        (options.messages, options.users) = (200_000, 20_000);
    }
    if let Some(dir) = &options.at {
        if options.bare {
            let began = now();
            drop(sled::Config::new().path(dir.join("db")).flush_every_ms(None).open()?);
            line("sled alone", format!("{:.2} s", began.elapsed().as_secs_f64()));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(come_back(&options, dir));
    }
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("lastmile-settle-").tempdir_in(parent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!("{} messages of {PAYLOAD} B for {} users", options.messages, options.users);
    runtime.block_on(run(&options, dir.path()))?;
    if options.keep {
        println!("kept in {}", dir.keep().display());
    }
    Ok(())
}

async fn run(options: &Options, dir: &Path) -> Result<(), Failure> {
    let engine = open(dir)?;
    let empty = HEAP.current_usage();
    let took = fill(&engine, 0, options.users, options.messages).await?;
    line("sustained", format!("{}/s", short(rate(options.messages as usize, took))));
    let peak = HEAP.peak_usage_as_mb();
    let full = at_rest(&engine).await?;
    line("heap", format!("{} MB (empty {} MB, peak {peak:.0} MB)", full >> 20, empty >> 20));
    let rss = status("VmRSS").zip(status("VmHWM")).map(|(now, peak)| format!("{now} (peak {peak})"));
    line("rss", rss.unwrap_or_else(|| "unknown".into()));
    let disk = size(dir)? - size(&dir.join("journal"))?;
    line("disk/logical", format!("{:.2}", disk as f64 / (options.messages * MESSAGE) as f64));
    fill(&engine, options.users, 2 * options.users, options.users).await?;
    let twice = at_rest(&engine).await?;
    line("slope", format!("{:.0} bytes a user", (twice as f64 - full as f64) / options.users as f64));
    line("shutdown", engine.shutdown(Duration::from_secs(600)).await.to_string());
    drop(engine);
    if options.keep {
        return Ok(());
    }
    come_back(options, dir).await
}

/// Opens a directory again and lets people come back.
async fn come_back(options: &Options, dir: &Path) -> Result<(), Failure> {
    let began = now();
    let engine = open(dir)?;
    line("reopen", format!("{:.2} s", began.elapsed().as_secs_f64()));
    let waits = visits(&engine, options.users).await?;
    let [p50, p99] = [0.5, 0.99].map(|quantile| waits.value_at_quantile(quantile) as f64 / 1000.0);
    line("first message", format!("p50 {p50:.2} ms, p99 {p99:.2} ms, of {} people", waits.len()));
    engine.shutdown(Duration::from_secs(600)).await;
    Ok(())
}

fn open(dir: &Path) -> Result<Engine, Failure> {
    Ok(Engine::builder(SledStore::open(dir)?).build()?)
}

/// Sends so many messages to the people from `first` to `last`, at random. Returns how long it took.
async fn fill(engine: &Engine, first: u64, last: u64, messages: u64) -> Result<Duration, Failure> {
    let began = now();
    let mut clients = JoinSet::new();
    for client in 0..IN_FLIGHT {
        let engine = engine.clone();
        clients.spawn(async move {
            let mut dice = Dice(first ^ client << 40);
            for _ in 0..messages / IN_FLIGHT {
                let user = format!("user-{:07}", first + dice.below(last - first));
                engine.send(Message::to(user, "chat.message", vec![b'.'; PAYLOAD]).build()?).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(began.elapsed())
}

/// The heap once everything that waits has settled. What goes to somebody who is there and takes it leaves nothing
/// behind, and pushes everything else out of the journal.
async fn at_rest(engine: &Engine) -> Result<usize, Failure> {
    let (arrived, arrivals) = mpsc::unbounded_channel();
    drop(arrivals);
    let attached = engine.attach("somebody", "phone", First { arrived, keep: true })?;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS_AT_REST {
        let engine = engine.clone();
        clients.spawn(async move {
            for _ in 0..RING_BYTES / REST_PAYLOAD / CLIENTS_AT_REST {
                engine.send(Message::to("somebody", "chat.message", vec![0; REST_PAYLOAD]).build()?).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(attached);
    Ok(HEAP.current_usage())
}

/// Lets people come, one after the other, others in every run; times their first message, in microseconds. They take
/// nothing, so that no visit does work that is left over from the one before.
async fn visits(engine: &Engine, users: u64) -> Result<Histogram<u64>, Failure> {
    let mut waits = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    let (mut dice, mut seen) = (Dice(RandomState::new().hash_one(VISITS)), HashSet::new());
    for _ in 0..VISITS.min(users) {
        let number = dice.below(users);
        if !seen.insert(number) {
            continue;
        }
        let user = format!("user-{number:07}");
        let (arrived, mut arrival) = mpsc::unbounded_channel();
        let began = now();
        let attached = engine.attach(user.as_str(), "phone", First { arrived, keep: false })?;
        // One in 22,000 has no message at all, by chance, and counts as long as this.
        let _ = tokio::time::timeout(PATIENCE, arrival.recv()).await;
        waits.saturating_record(began.elapsed().as_micros() as u64);
        drop(attached);
    }
    Ok(waits)
}

/// Says when the first message is there, and takes everything or nothing.
struct First {
    arrived: mpsc::UnboundedSender<()>,
    keep: bool,
}

impl Sink for First {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        // The visitor may have left.
        let _ = self.arrived.send(());
        let verdict = if self.keep { Verdict::Delivered } else { Verdict::Disconnected };
        batch.iter().map(|delivery| (delivery.entry, verdict.clone())).collect()
    }
}

fn line(name: &str, value: String) {
    println!("{name:<16}{value}");
}

/// A line of `/proc/self/status`, where there is one.
fn status(name: &str) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(format!("{} MB", kib >> 10))
}

/// Bytes of all files below a directory.
fn size(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
