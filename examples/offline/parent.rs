//! The parent: starts lives, ends them with SIGKILL, shows how far it all is.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::check::Ledger;
use super::logs::now_ms;
use super::plan::Plan;
use super::{Failure, PATIENCE};

/// What a life says on its standard output, a line each.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    /// So many are accepted, so many applied (with those of earlier lives).
    Progress { accepted: u64, applied: u64, waiting: u64 },
    /// A row of the outbox's ledger.
    Row(String),
    /// Everything has ended; what the ledgers say.
    Done(Ledger),
    /// Messages wait for people who are there, and nothing moves: the logs will show them as lost.
    Stuck(Ledger),
}

impl Report {
    pub(crate) fn print(self) {
        match self {
            Self::Progress { accepted, applied, waiting } => {
                println!("progress {accepted} {applied} {waiting}")
            }
            Self::Row(row) => println!("row {row}"),
            Self::Done(ledger) => println!("done {}", ledger.to_words()),
            Self::Stuck(ledger) => println!("stuck {}", ledger.to_words()),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        if kind == "row" {
            return Some(Self::Row(rest.to_owned()));
        }
        let numbers: Vec<u64> = rest.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
        match (kind, numbers[..].as_ref()) {
            ("progress", &[accepted, applied, waiting]) => {
                Some(Self::Progress { accepted, applied, waiting })
            }
            ("done", numbers) => Ledger::of(numbers).map(Self::Done),
            ("stuck", numbers) => Ledger::of(numbers).map(Self::Stuck),
            _ => None,
        }
    }
}

/// What the ledgers say at the end, and the first rows of the outbox's.
pub(crate) type Ledgers = (Ledger, Vec<String>);

/// Runs life after life until everything has ended. Returns how long it took, and what the ledgers say.
pub(crate) fn supervise(plan: &Plan, kills: u32, dir: &Path) -> Result<(Duration, Ledgers), Failure> {
    let began = now_ms();
    let elapsed = || Duration::from_millis(now_ms().saturating_sub(began));
    let copies = plan.copies();
    let bars = Bars::new(plan, copies);
    for life in 0..kills {
        let mut child = Life::start(plan, dir, life)?;
        // Spread over sending and receiving. The last part is left alone: TTLs make its length unknown.
        let threshold =
            (u64::from(plan.messages) + copies) * 9 / 10 * u64::from(life + 1) / u64::from(kills + 1);
        if let Some(ledger) = child.run_until(threshold, &bars)? {
            return Ok((elapsed(), (ledger, Vec::new())));
        }
        child.kill()?;
        bars.killed(life + 1, kills);
    }
    let ledgers = Life::start(plan, dir, kills)?.run_to_the_end(&bars)?;
    bars.finish();
    Ok((elapsed(), ledgers))
}

/// One child process.
struct Life {
    process: Child,
    reports: Receiver<Report>,
}

impl Life {
    fn start(plan: &Plan, dir: &Path, life: u32) -> Result<Self, Failure> {
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.arg("life").arg("--dir").arg(dir).args(["--life", &life.to_string()]);
        command.args(["--users", &plan.users.to_string(), "--messages", &plan.messages.to_string()]);
        command.args(["--seed", &plan.seed.to_string()]);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.take().ok_or("the child has no standard output")?;
        let (sender, reports) = mpsc::channel();
        std::thread::spawn(move || listen(output, &sender));
        Ok(Self { process, reports })
    }

    /// Waits until so much has happened, accepted and applied together. Returns the ledger if it never will.
    fn run_until(&mut self, threshold: u64, bars: &Bars) -> Result<Option<Ledger>, Failure> {
        loop {
            match self.next()? {
                Report::Progress { accepted, applied, waiting } => {
                    bars.show(accepted, applied, waiting);
                    if accepted + applied >= threshold {
                        return Ok(None);
                    }
                }
                Report::Row(_) => {}
                Report::Stuck(ledger) => return Ok(Some(ledger)),
                Report::Done(_) => {
                    return Err("the child was done before it was killed: use more --messages".into());
                }
            }
        }
    }

    fn run_to_the_end(mut self, bars: &Bars) -> Result<Ledgers, Failure> {
        let mut rows = Vec::new();
        let ledger = loop {
            match self.next()? {
                Report::Progress { accepted, applied, waiting } => bars.show(accepted, applied, waiting),
                Report::Row(row) => rows.push(row),
                Report::Done(ledger) | Report::Stuck(ledger) => break ledger,
            }
        };
        let status = self.process.wait()?;
        if !status.success() {
            return Err(format!("the last life ended with {status}").into());
        }
        Ok((ledger, rows))
    }

    fn next(&mut self) -> Result<Report, Failure> {
        match self.reports.recv_timeout(PATIENCE) {
            Ok(report) => Ok(report),
            Err(RecvTimeoutError::Disconnected) => {
                Err(format!("a life ended early, with {}", self.process.wait()?).into())
            }
            Err(RecvTimeoutError::Timeout) => Err(format!("nothing happened for {PATIENCE:?}").into()),
        }
    }

    /// SIGKILL: no destructor, no flush, no goodbye.
    fn kill(&mut self) -> Result<(), Failure> {
        self.process.kill()?;
        let status = self.process.wait()?;
        if !was_killed(status) {
            return Err(format!("a life was to be killed and ended with {status} by itself").into());
        }
        Ok(())
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // A run that fails leaves no process behind. One that has ended already is none.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(unix)]
fn was_killed(status: ExitStatus) -> bool {
    const SIGKILL: i32 = 9;
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(SIGKILL)
}

#[cfg(not(unix))]
fn was_killed(status: ExitStatus) -> bool {
    !status.success()
}

fn listen(output: ChildStdout, reports: &mpsc::Sender<Report>) {
    let lines = BufReader::new(output).lines().map_while(Result::ok);
    for report in lines.filter_map(|line| Report::parse(&line)) {
        if reports.send(report).is_err() {
            return;
        }
    }
}

/// What is shown meanwhile.
struct Bars {
    all: MultiProgress,
    accepted: ProgressBar,
    applied: ProgressBar,
}

impl Bars {
    fn new(plan: &Plan, copies: u64) -> Self {
        let style = "{prefix:>9} {bar:40} {human_pos:>9} / {human_len} {msg}";
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let all = MultiProgress::new();
        let bar = |prefix: &'static str, len: u64| {
            let bar = ProgressBar::new(len).with_style(style.clone()).with_prefix(prefix);
            all.add(bar)
        };
        let (accepted, applied) = (bar("accepted", plan.messages.into()), bar("applied", copies));
        Self { all, accepted, applied }
    }

    fn show(&self, accepted: u64, applied: u64, waiting: u64) {
        self.accepted.set_position(accepted);
        self.applied.set_position(applied);
        self.applied.set_message(format!("{waiting} waiting"));
    }

    fn killed(&self, kill: u32, kills: u32) {
        self.accepted.set_message(format!("killed {kill} of {kills} times"));
    }

    fn finish(&self) {
        self.accepted.finish();
        self.applied.finish();
        // The table follows; without a terminal nothing was shown at all.
        let _ = self.all.println("");
    }
}
