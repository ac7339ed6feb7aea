//! What `send` costs, next to what the disk costs: a closed loop of clients, 256 bytes to 10,000 random users, every
//! answer durable.
//!
//! ```console
//! cargo bench --bench send [-- --quick] [-- --in-flight 64]
//! ```
//!
//! *Burst* stays within the journal. *Sustained* sends ten times what the journal holds to people who are away, so
//! that everything settles and merges while it runs. Both are compared with the same clients and grouping over an
//! appended file and nothing else (`support/raw.rs`), in the same run, round by round in turn, as medians: a disk's
//! speed changes from minute to minute.

#[path = "support/raw.rs"]
mod raw;
mod support;

use std::error::Error;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use lastmile::storage::SledStore;
use lastmile::storage::journal::JournalConfig;
use lastmile::{Engine, Message};
use tokio::task::JoinSet;

use self::raw::Raw;
use self::support::{Dice, Options, median, now, rate, short};

const USERS: u64 = 10_000;
const PAYLOAD: usize = 256;
/// What one message takes in the journal, about: payload, ids, lengths.
const MESSAGE_BYTES: u64 = 360;
/// The journal of the sustained rounds, small so that they need not be long.
const SMALL: JournalConfig = JournalConfig { segment_bytes: 4 << 20, segments: 8 };

/// Messages of a burst round, by messages in flight; within half of the default journal.
const BURST: [(usize, usize); 3] = [(1, 4_000), (64, 100_000), (1024, 150_000)];

type Failure = Box<dyn Error + Send + Sync>;

/// What to measure.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Only so many messages in flight.
    #[arg(long)]
    in_flight: Option<usize>,
}

fn main() -> Result<(), Failure> {
    let Arguments { options, in_flight: only } = Arguments::parse();
    let wanted = |in_flight: usize| only.is_none_or(|only| only == in_flight);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let dir = tempfile::Builder::new().prefix("lastmile-send-").tempdir()?;
    println!("256 B to {USERS} random users, closed loop, medians, messages/s");
    println!("{:<12}{:>10}{:>14}{:>14}{:>8}", "", "in flight", "engine", "raw", "ratio");
    let mut lines = Vec::new();
    for (in_flight, messages) in BURST.into_iter().filter(|(in_flight, _)| wanted(*in_flight)) {
        let rounds = options.pick(7, 3);
        let messages = options.pick(messages, messages / 5);
        let pair = Pair { dir: dir.path(), in_flight, messages, journal: JournalConfig::default() };
        lines.push(runtime.block_on(pair.compare("burst", rounds))?);
    }
    for in_flight in [64, 1024].into_iter().filter(|in_flight| wanted(*in_flight)) {
        let journal = SMALL.segment_bytes * u64::from(SMALL.segments);
        let messages = (journal * options.pick(10, 2) / MESSAGE_BYTES) as usize;
        let pair = Pair { dir: dir.path(), in_flight, messages, journal: SMALL };
        lines.push(runtime.block_on(pair.compare("sustained", options.pick(3, 1)))?);
    }
    println!();
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// One comparison.
struct Pair<'a> {
    dir: &'a Path,
    in_flight: usize,
    messages: usize,
    journal: JournalConfig,
}

impl Pair<'_> {
    /// Rounds of both, in turn; returns the line to print.
    async fn compare(&self, kind: &str, rounds: usize) -> Result<String, Failure> {
        let (mut engine, mut raw) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            raw.push(rate(self.messages, self.raw().await?));
            engine.push(rate(self.messages, self.engine().await?));
        }
        let (engine, raw) = (median(engine), median(raw));
        let (ratio, in_flight) = (engine / raw, self.in_flight);
        println!("{kind:<12}{in_flight:>10}{:>14}{:>14}{ratio:>8.2}", short(engine), short(raw));
        Ok(format!("ratio {kind}/raw in_flight={in_flight} {ratio:.2}"))
    }

    async fn raw(&self) -> Result<Duration, Failure> {
        let file = self.dir.join("raw");
        let raw = Raw::start(&file, self.in_flight)?;
        let took = self.closed_loop(&raw.client()).await?;
        raw.stop()?;
        std::fs::remove_file(file)?;
        Ok(took)
    }

    async fn engine(&self) -> Result<Duration, Failure> {
        let dir = self.dir.join("engine");
        let JournalConfig { segment_bytes, segments } = self.journal;
        let engine = Engine::builder(SledStore::open(&dir)?).journal_size(segment_bytes, segments).build()?;
        let took = self.closed_loop(&engine).await?;
        engine.shutdown(Duration::from_secs(60)).await;
        drop(engine);
        std::fs::remove_dir_all(dir)?;
        Ok(took)
    }

    /// So many clients, each sending one message after the other.
    async fn closed_loop(&self, client: &impl Client) -> Result<Duration, Failure> {
        let began = now();
        let mut clients = JoinSet::new();
        for number in 0..self.in_flight {
            let messages = self.messages / self.in_flight;
            clients.spawn(send_all(client.clone(), number as u64, messages));
        }
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        Ok(began.elapsed())
    }
}

/// What a client needs to be able to do.
trait Client: Clone + Send + Sync + 'static {
    /// Sends; returns when the message is durable.
    fn send(&self, user: String, payload: Vec<u8>) -> impl Future<Output = Result<(), Failure>> + Send;
}

async fn send_all(client: impl Client, number: u64, messages: usize) -> Result<(), Failure> {
    let mut dice = Dice(number << 32);
    for _ in 0..messages {
        let user = format!("user-{}", dice.below(USERS));
        client.send(user, vec![b'.'; PAYLOAD]).await?;
    }
    Ok(())
}

impl Client for raw::Client {
    async fn send(&self, user: String, payload: Vec<u8>) -> Result<(), Failure> {
        let mut message = user.into_bytes();
        message.extend_from_slice(&payload);
        self.append(message).await;
        Ok(())
    }
}

impl Client for Engine {
    async fn send(&self, user: String, payload: Vec<u8>) -> Result<(), Failure> {
        let message = Message::to(user, "chat.message", payload).build()?;
        Engine::send(self, message).await?;
        Ok(())
    }
}
