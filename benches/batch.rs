//! Batches of a hundred messages of 256 bytes to a hundred people: in an engine of one shard, where a batch is one
//! driver's, and in one of four, where it goes through all of them before it is committed.
//!
//! ```console
//! cargo bench --bench batch [-- --quick]
//! ```
//!
//! Closed loop, every answer durable, rounds of both in turn, medians.

mod support;

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use lastmile::storage::SledStore;
use lastmile::{Engine, Message};
use tokio::task::JoinSet;

use self::support::{Dice, Options, median, now, rate, short};

const USERS: u64 = 10_000;
const PAYLOAD: usize = 256;
const MESSAGES: usize = 100;
const SHARDS: usize = 4;
/// Batches of a round, by how many are sent at once; within half of the default journal.
const ROUNDS: [(usize, usize); 3] = [(1, 400), (8, 1200), (64, 1200)];

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let dir = tempfile::Builder::new().prefix("lastmile-batch-").tempdir()?;
    println!("batches of {MESSAGES} x {PAYLOAD} B to {USERS} random users, closed loop, medians, messages/s");
    println!("{:>10}{:>14}{:>14}{:>8}", "at once", "one shard", "4 shards", "ratio");
    let mut lines = Vec::new();
    for (at_once, batches) in ROUNDS {
        let batches = options.pick(batches, batches / 4);
        let (mut within, mut across) = (Vec::new(), Vec::new());
        for _ in 0..options.pick(7, 3) {
            within.push(runtime.block_on(round(dir.path(), 1, at_once, batches))?);
            across.push(runtime.block_on(round(dir.path(), SHARDS, at_once, batches))?);
        }
        let (within, across) = (median(within), median(across));
        let ratio = across / within;
        println!("{at_once:>10}{:>14}{:>14}{ratio:>8.2}", short(within), short(across));
        lines.push(format!("ratio batch {SHARDS} shards/one at_once={at_once} {ratio:.2}"));
    }
    println!();
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// Messages a second.
async fn round(dir: &Path, shards: usize, at_once: usize, batches: usize) -> Result<f64, Failure> {
    let home = dir.join("engine");
    let shards = NonZeroUsize::new(shards).ok_or("no shards")?;
    let engine = Engine::builder(SledStore::open(&home)?).shards(shards).build()?;
    let began = now();
    let mut clients = JoinSet::new();
    for number in 0..at_once {
        clients.spawn(send_all(engine.clone(), number as u64, batches / at_once));
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    let took = began.elapsed();
    let waiting = engine.stats().await?.waiting;
    engine.shutdown(Duration::from_secs(60)).await;
    drop(engine);
    std::fs::remove_dir_all(home)?;
    Ok(rate(usize::try_from(waiting)?, took))
}

async fn send_all(engine: Engine, number: u64, batches: usize) -> Result<(), Failure> {
    let mut dice = Dice(number << 32);
    for _ in 0..batches {
        let to = |_| format!("user-{}", dice.below(USERS));
        let message = |user| Message::to(user, "chat.message", vec![b'.'; PAYLOAD]).build();
        let batch = (0..MESSAGES).map(to).map(message).collect::<Result<Vec<_>, _>>()?;
        engine.send_batch(batch).await?;
    }
    Ok(())
}
