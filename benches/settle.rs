//! Ten million messages for a million people who are away: speed, memory, disk, opening again, coming back.
//!
//! ```console
//! cargo bench --bench settle [-- --quick | --messages N --users N]
//! ```
//!
//! | line | what it is |
//! |---|---|
//! | sustained | messages accepted a second, durably, with settling and merging included |
//! | heap | bytes allocated in this process, by a counting allocator; sled's share is in it |
//! | rss | what the operating system says of the process |
//! | slope | bytes of heap an idle user with messages waiting costs: between half of the users and all of them |
//! | disk/logical | bytes of the directory, the journal's ring taken off, over bytes of payloads and ids |
//! | reopen | from a closed directory to an engine that takes messages |
//! | first message | from attaching to the first delivery, for people who were away, p50 and p99 |

mod support;

use std::error::Error;
use std::future::{Future, ready};
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
const IN_FLIGHT: u64 = 1024;
/// People whose first message is timed.
const VISITS: u64 = 2_000;

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

fn main() -> Result<(), Failure> {
    let mut options = Options::parse();
    if options.quick {
        (options.messages, options.users) = (200_000, 20_000);
    }
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("lastmile-settle-").tempdir_in(parent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!("{} messages of {PAYLOAD} B for {} users", options.messages, options.users);
    runtime.block_on(run(&options, dir.path()))
}

async fn run(options: &Options, dir: &Path) -> Result<(), Failure> {
    let engine = open(dir)?;
    let empty = HEAP.current_usage();
    let half = fill(&engine, options, 0, options.users / 2).await?;
    let at_half = rest(&engine).await;
    let full = fill(&engine, options, options.users / 2, options.users).await?;
    let at_full = rest(&engine).await;
    line("sustained", format!("{}/s", short(rate(options.messages as usize, half + full))));
    line(
        "heap",
        format!("{} MB (empty {} MB, peak {:.0} MB)", mb(at_full), mb(empty), HEAP.peak_usage_as_mb()),
    );
    line(
        "rss",
        status("VmRSS")
            .zip(status("VmHWM"))
            .map_or("unknown".into(), |(now, peak)| format!("{now} (peak {peak})")),
    );
    let slope = (at_full as f64 - at_half as f64) / (options.users - options.users / 2) as f64;
    line("slope", format!("{slope:.0} bytes a user"));
    engine.shutdown(Duration::from_secs(600)).await;
    drop(engine);
    let logical = options.messages * (PAYLOAD as u64 + "user-000000".len() as u64);
    line(
        "disk/logical",
        format!("{:.2}", (size(dir)? - size(&dir.join("journal"))?) as f64 / logical as f64),
    );
    let began = now();
    let engine = open(dir)?;
    line("reopen", format!("{:.2} s", began.elapsed().as_secs_f64()));
    let waits = visits(&engine, options.users).await?;
    let [p50, p99] = [0.5, 0.99].map(|quantile| waits.value_at_quantile(quantile) as f64 / 1000.0);
    line("first message", format!("p50 {p50:.2} ms, p99 {p99:.2} ms"));
    engine.shutdown(Duration::from_secs(600)).await;
    Ok(())
}

fn open(dir: &Path) -> Result<Engine, Failure> {
    Ok(Engine::builder(SledStore::open(dir)?).build()?)
}

/// Sends everybody from `first` to `last` their share of the messages, in random order. Returns how long it took.
async fn fill(engine: &Engine, options: &Options, first: u64, last: u64) -> Result<Duration, Failure> {
    let share = options.messages * (last - first) / options.users.max(1);
    let began = now();
    let mut clients = JoinSet::new();
    for client in 0..IN_FLIGHT {
        let engine = engine.clone();
        clients.spawn(async move {
            let mut dice = Dice(first ^ client << 40);
            for _ in 0..share / IN_FLIGHT {
                let user = format!("user-{:06}", first + dice.below(last - first));
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

/// The heap once nothing changes any more.
async fn rest(_engine: &Engine) -> usize {
    let mut last = HEAP.current_usage();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = HEAP.current_usage();
        if now.abs_diff(last) < 1 << 20 {
            return now;
        }
        last = now;
    }
}

/// Lets people come, one after the other; times their first message, in microseconds.
async fn visits(engine: &Engine, users: u64) -> Result<Histogram<u64>, Failure> {
    let mut waits = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    let mut dice = Dice(99);
    for _ in 0..VISITS.min(users) {
        let user = format!("user-{:06}", dice.below(users));
        let (arrived, mut arrival) = mpsc::unbounded_channel();
        let began = now();
        let attached = engine.attach(user.as_str(), "phone", First(arrived))?;
        match tokio::time::timeout(Duration::from_secs(1), arrival.recv()).await {
            Ok(_) => waits.saturating_record(began.elapsed().as_micros() as u64),
            // Chance has left this person without messages, or gave it to them at an earlier visit.
            Err(_) => {}
        }
        drop(attached);
    }
    Ok(waits)
}

/// Says when the first message is there, and takes everything.
struct First(mpsc::UnboundedSender<()>);

impl Sink for First {
    fn deliver(&mut self, batch: Vec<Delivery>) -> impl Future<Output = Vec<(EntryRef, Verdict)>> + Send {
        // The visitor may have left.
        let _ = self.0.send(());
        ready(batch.iter().map(|delivery| (delivery.entry, Verdict::Delivered)).collect())
    }
}

fn line(name: &str, value: String) {
    println!("{name:<16}{value}");
}

fn mb(bytes: usize) -> usize {
    bytes >> 20
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
