//! The main job in a terminal: messages for thousands of people, most of them away, through crashes.
//!
//! ```console
//! cargo run --release --example offline
//! cargo run --release --example offline -- --users 1000 --messages 100000 --kills 3
//! ```
//!
//! A child process (this program, run again) holds engines in directories: the *outbox*, which takes messages from many
//! senders, and *inboxes*, into which the outbox delivers over connections that drop batches, drop answers and break;
//! handlers on the inboxes' side apply each message. Everybody has a phone and a laptop. Most messages are for any device
//! and go into an inbox that both share; every fifth is for each of them, and waits for each until it comes. The parent
//! kills the child with SIGKILL in the middle, several times, and starts it again; senders then repeat, with the same ids,
//! whatever they have no answer for, and some of what they have one for. Senders and handlers keep logs of their own, outside of the engines
//! (`logs.rs` says what each line proves), and the verdict is read from those (`check.rs`).
//!
//! The last line is `accepted=N delivered=N lost=0 duplicated=0 inverted=0`, counting copies: a message for each device is
//! one for each. The difference between accepted and delivered is what had a TTL and expired. Exit status: 0 when every
//! promise was kept, 1 when one was broken, 2 when the run itself failed.

mod check;
mod child;
mod logs;
mod parent;
mod people;
mod plan;
mod senders;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use self::check::Outcome;
use self::plan::Plan;

/// Sends messages to people who are away, kills the process that holds them, and counts what arrives.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    hidden: Option<Hidden>,
    #[command(flatten)]
    load: Load,
    /// How often the engine's process is killed and started again.
    #[arg(long, default_value_t = 5)]
    kills: u32,
    /// Where everything is kept, and left for inspection. Must be empty. [default: a temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
struct Load {
    /// People who receive.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Messages sent, repeats not counted.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
    /// Chooses the messages. The crashes come when they come.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Debug, Subcommand)]
enum Hidden {
    /// One life of the engine's process.
    #[command(hide = true)]
    Life {
        #[command(flatten)]
        load: Load,
        #[arg(long)]
        dir: PathBuf,
        /// Which life this is; it seeds the trouble that this life has.
        #[arg(long)]
        life: u32,
    },
}

impl Load {
    fn plan(&self) -> Plan {
        Plan { users: self.users, messages: self.messages, seed: self.seed }
    }
}

/// What makes a run fail without saying anything about the engine's promises.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Hidden::Life { load, dir, life }) = cli.hidden {
        return child::main(load.plan(), &dir, life);
    }
    match run(&cli) {
        Ok(outcome) if outcome.is_clean() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("offline: the run failed, which says nothing about the promises: {failure}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<Outcome, Failure> {
    let plan = cli.load.plan();
    let (dir, temporary) = match &cli.dir {
        Some(dir) => (fresh(dir)?, None),
        None => {
            let temporary = tempfile::Builder::new().prefix("lastmile-offline-").tempdir()?;
            (temporary.path().to_owned(), Some(temporary))
        }
    };
    let (took, (ledger, rows)) = match parent::supervise(&plan, cli.kills, &dir) {
        Ok(done) => done,
        Err(failure) => return Err(keep(temporary, failure)),
    };
    let outcome = Outcome::of(&dir, &plan, ledger)?;
    if !outcome.is_clean() {
        drop(keep(temporary, "violations".into()));
    }
    table::print(&outcome, &plan, cli.kills, took, (ledger, &rows));
    Ok(outcome)
}

/// The directory, created. What an earlier run left there would be taken for this run's.
fn fresh(dir: &Path) -> Result<PathBuf, Failure> {
    std::fs::create_dir_all(dir).map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
    if std::fs::read_dir(dir)?.next().is_some() {
        return Err(format!("{} is not empty: choose another --dir", dir.display()).into());
    }
    Ok(dir.to_owned())
}

/// Leaves the directory of a run that went wrong, and says where it is.
fn keep(temporary: Option<tempfile::TempDir>, failure: Failure) -> Failure {
    if let Some(temporary) = temporary {
        eprintln!("offline: everything is left in {}", temporary.keep().display());
    }
    failure
}

/// How long nothing may happen before a run counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);
