//! Lives many simulated lives and says whether a promise was broken.
//!
//! ```text
//! cargo run --release --example simulate --features testing -- --seeds 20000
//! cargo run --release --example simulate --features testing -- --seeds 10000 --defect no-fdatasync
//! cargo run --release --example simulate --features testing -- --replay FILE --steps
//! cargo run --release --example simulate --features testing -- --world peers --seeds 20000
//! cargo run --release --example simulate --features testing -- --world peers --from SEED --seeds 1 --trace
//! ```
//!
//! The last line is `seeds=N violations=M`; the exit status is 1 when there were any.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use lastmile::EndReason;
use lastmile::testing::sim::peers::{self, Flaw, Lived};
use lastmile::testing::sim::{Defect, Outcome, Script, Violation, run, run_traced, shrink};

/// Kinds of violations of which one is shrunk and shown; the rest is counted.
const SHOWN: usize = 12;

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum World {
    /// Two engines and what they are made of, by scripts that shrink.
    Engines,
    /// Servers and clients with sessions between them, by seeds.
    Peers,
}

/// Looks for broken promises in simulated lives.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// What is simulated.
    #[arg(long, value_enum, default_value_t = World::Engines)]
    world: World,
    /// How many lives.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many steps each life has, instead of 120 to 300.
    #[arg(long)]
    length: Option<usize>,
    /// Lives the script in this file instead.
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Breaks a promise on purpose: no-fdatasync, ack-before-persist, dedup-forgotten or replay-decides.
    #[arg(long, value_parser = defect)]
    defect: Option<Defect>,
    /// With --world peers: breaks a rule of what lies around sessions on purpose, such as ack-before-durable.
    #[arg(long, value_parser = flaw)]
    flaw: Option<Flaw>,
    /// Prints the whole script of what failed, not only the shrunk one.
    #[arg(long)]
    steps: bool,
    /// With --replay: prints everything the machines were told and did. With --world peers: the same of the sessions.
    #[arg(long)]
    trace: bool,
    /// Stops at the first violation.
    #[arg(long)]
    first: bool,
}

impl Args {
    fn script(&self, seed: u64) -> Script {
        self.length.map_or_else(|| Script::of_seed(seed), |length| Script::of_length(seed, length))
    }
}

fn defect(name: &str) -> Result<Defect, String> {
    let known = Defect::ALL.map(|(_, name)| name).join(", ");
    Defect::named(name).ok_or_else(|| format!("no such defect; there are {known}"))
}

fn flaw(name: &str) -> Result<Flaw, String> {
    let known = Flaw::ALL.map(|(_, name)| name).join(", ");
    Flaw::named(name).ok_or_else(|| format!("no such flaw; there are {known}"))
}

/// What is known so far, shared by the threads.
#[derive(Debug, Default)]
struct Tally {
    next: AtomicU64,
    done: AtomicU64,
    violations: AtomicU64,
    total: Mutex<Outcome>,
    lived: Mutex<Lived>,
    /// Violations by kind: how many, and the first seed.
    kinds: Mutex<BTreeMap<String, (u64, u64)>>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    std::panic::set_hook(Box::new(|_| {}));
    let tally = match &args.replay {
        Some(path) => match replay(&args, path) {
            Ok(tally) => tally,
            Err(error) => {
                eprintln!("{}: {error}", path.display());
                return ExitCode::from(2);
            }
        },
        None => explore(&args),
    };
    let violations = tally.violations.load(Ordering::SeqCst);
    println!("seeds={} violations={violations}", tally.done.load(Ordering::SeqCst));
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(args: &Args, path: &PathBuf) -> Result<Tally, Box<dyn std::error::Error>> {
    let script: Script = std::fs::read_to_string(path)?.parse()?;
    let tally = Tally::default();
    tally.done.store(1, Ordering::SeqCst);
    let mut trace = args.trace.then(Vec::new);
    let outcome = run_traced(&script, args.defect, &mut trace);
    trace.iter().flatten().for_each(|line| println!("{line}"));
    if outcome.violation.is_some() {
        tally.violations.store(1, Ordering::SeqCst);
        report(args, None, &script, &ProgressBar::hidden());
    }
    Ok(tally)
}

fn explore(args: &Args) -> Tally {
    let tally = Tally::default();
    let style = "{bar:40} {pos}/{len} lives  {per_sec}  {eta}";
    let style = ProgressStyle::with_template(style).expect("the template is a literal that parses");
    let bar = ProgressBar::new(args.seeds).with_style(style);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| work(args, &tally, &bar));
        }
    });
    bar.finish_and_clear();
    let total = tally.total.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let lived = tally.lived.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let ended: Vec<_> =
        EndReason::ALL.iter().map(|end| format!("{}={}", end.as_str(), total.ended[end.index()])).collect();
    for (kind, (count, seed)) in &*tally.kinds.lock().unwrap_or_else(PoisonError::into_inner) {
        println!("{count} lives, first seed {seed}: {kind}");
    }
    match args.world {
        World::Engines => {
            println!("accepted={} duplicates={} {}", total.accepted, total.duplicates, ended.join(" "));
        }
        World::Peers => println!(
            "applied={} resumed={} fresh={} crashes={} takeovers={} switches={} renewals={} expired={} published={} jumps={}",
            lived.applied,
            lived.resumed,
            lived.fresh,
            lived.crashes,
            lived.takeovers,
            lived.switches,
            lived.renewals,
            lived.expired,
            lived.published,
            lived.jumps
        ),
    }
    tally
}

fn work(args: &Args, tally: &Tally, bar: &ProgressBar) {
    loop {
        let n = tally.next.fetch_add(1, Ordering::SeqCst);
        if n >= args.seeds || args.first && tally.violations.load(Ordering::SeqCst) > 0 {
            return;
        }
        let seed = args.from.wrapping_add(n);
        if args.world == World::Peers {
            live_among_peers(args, tally, bar, seed);
            continue;
        }
        let script = args.script(seed);
        let outcome = run(&script, args.defect);
        tally.done.fetch_add(1, Ordering::SeqCst);
        bar.inc(1);
        if let Some(violation) = &outcome.violation {
            tally.violations.fetch_add(1, Ordering::SeqCst);
            let mut kinds = tally.kinds.lock().unwrap_or_else(PoisonError::into_inner);
            let shown = kinds.len();
            let (count, _) = kinds.entry(violation.kind()).or_insert((0, seed));
            *count += 1;
            let is_new = *count == 1 && shown < SHOWN;
            drop(kinds);
            if is_new {
                report(args, Some(seed), &script, bar);
            }
        }
        let mut total = tally.total.lock().unwrap_or_else(PoisonError::into_inner);
        total.accepted += outcome.accepted;
        total.duplicates += outcome.duplicates;
        total.ended.iter_mut().zip(outcome.ended).for_each(|(sum, n)| *sum += n);
    }
}

/// One life of servers and clients.
fn live_among_peers(args: &Args, tally: &Tally, bar: &ProgressBar, seed: u64) {
    let mut trace = args.trace.then(Vec::new);
    let lived = peers::live_traced(seed, args.flaw, &mut trace);
    trace.iter().flatten().for_each(|line| println!("{line}"));
    tally.done.fetch_add(1, Ordering::SeqCst);
    bar.inc(1);
    if let Some(what) = lived.violation.clone() {
        tally.violations.fetch_add(1, Ordering::SeqCst);
        let kind = Violation { step: 0, what: what.clone() }.kind();
        let mut kinds = tally.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = kinds.len();
        let (count, _) = kinds.entry(kind).or_insert((0, seed));
        *count += 1;
        if *count == 1 && shown < SHOWN {
            bar.suspend(|| println!("# seed {seed}: {what}"));
        }
    }
    let mut sum = tally.lived.lock().unwrap_or_else(PoisonError::into_inner);
    sum.add(&lived);
}

/// Prints the violation and the smallest script that was found to show one.
fn report(args: &Args, seed: Option<u64>, script: &Script, bar: &ProgressBar) {
    let small = shrink(script, args.defect);
    let what = |script: &Script| {
        let violation = run(script, args.defect).violation;
        violation.map_or_else(String::new, |v| format!("after {} steps: {}", v.step, v.what))
    };
    let mut text = format!("# seed {}: {}\n", seed.map_or("?".into(), |seed| seed.to_string()), what(script));
    if args.steps {
        text += &format!("{script}\n");
    }
    text += &format!("# shrunk; {}\n{small}", what(&small));
    bar.suspend(|| println!("{text}"));
}
