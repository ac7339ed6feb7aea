//! Running a process under the shim, and what it did.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::disk::Disk;
use super::load;
use super::trace::{self, Event};

const ROOT: &str = "LASTMILE_POWER_ROOT";
const TOLD: &str = "LASTMILE_POWER_TOLD";
const TRACE: &str = "LASTMILE_POWER_TRACE";
const LIFE: &str = "LASTMILE_POWER_LIFE";
/// Where below the root the engine lives.
pub(crate) const HOME: &str = "home";

/// What two processes, one after the other, did to a directory.
#[derive(Debug)]
pub(crate) struct Recording {
    /// As it was before.
    pub(crate) disk: Disk,
    pub(crate) events: Vec<Event>,
    /// Where the second process begins.
    pub(crate) second: usize,
}

/// If this process is one that is recorded, lives its life.
pub(crate) fn live_if_recorded() -> bool {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(root), Some(told), Some(life)) = (variable(ROOT), variable(TOLD), variable(LIFE)) else {
        return false;
    };
    match life.to_str().unwrap().parse() {
        Ok(life) => load::live(&root.join(HOME), &told, life),
        Err(_) => load::fill(&root.join(HOME), &told),
    }
    true
}

/// The shim, compiled.
#[derive(Debug)]
pub(crate) struct Recorder {
    dir: TempDir,
    /// The test that lives a life when it is told to.
    test: &'static str,
}

impl Recorder {
    /// None, loudly, when there is no C compiler.
    pub(crate) fn build(test: &'static str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/power_cut/shim.c");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-o"]);
        let output = match cc.arg(dir.path().join("shim.so")).arg(source).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("SKIPPED: cc is not installed, so {test} proved nothing");
                return None;
            }
            output => output.unwrap(),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(Self { dir, test })
    }

    /// Lets two processes live on what is in `root`, of which the first dies.
    pub(crate) fn record(&self, root: &Path, round: usize) -> Recording {
        let root = root.canonicalize().unwrap();
        let disk = Disk::of(&root);
        let [first, then] = [round * 2, round * 2 + 1];
        let mut events = self.run(&root, &first.to_string(), load::DIED);
        let second = events.len();
        events.extend(self.run(&root, &then.to_string(), 0));
        Recording { disk, events, second }
    }

    /// Lets a process fill a store.
    pub(crate) fn record_filling(&self) -> Vec<Event> {
        let root = tempfile::tempdir().unwrap();
        self.run(&root.path().canonicalize().unwrap(), "fill", 0)
    }

    fn run(&self, root: &Path, life: &str, code: i32) -> Vec<Event> {
        let trace = self.dir.path().join("trace");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", self.test, "--nocapture"])
            .env("LD_PRELOAD", self.dir.path().join("shim.so"))
            .env(ROOT, root)
            .env(TOLD, self.dir.path().join("told"))
            .env(TRACE, &trace)
            .env(LIFE, life)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "life {life}: {said}");
        if std::env::var_os("SHOW").is_some() {
            println!("{said}");
        }
        let events = trace::read(&trace);
        assert!(events.iter().any(|event| matches!(event, Event::Told(_))), "the shim was not loaded");
        events
    }
}
