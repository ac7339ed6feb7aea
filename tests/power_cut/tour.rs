//! A walk through a recording, with power cuts on the way.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::check;
use super::dice::Dice;
use super::disk::{Deaf, Disk};
use super::record::{HOME, Recording};
use super::segments;
use super::story::Story;
use super::trace::Event;

/// When set, what broke a promise is left for inspection.
const KEEP: &str = "LASTMILE_POWER_KEEP";
/// Cuts judged at once.
const AT_ONCE: usize = 4;

pub(crate) struct Tour<'a> {
    recording: &'a Recording,
    at: usize,
    disk: Disk,
    pub(crate) story: Story,
    runtime: Runtime,
    room: Arc<Semaphore>,
    judged: JoinSet<Option<String>>,
    /// How long nothing may come of what is left.
    patience: Duration,
}

impl<'a> Tour<'a> {
    /// Begins where the recording does, with what was told before.
    pub(crate) fn of(recording: &'a Recording, story: Story, deaf_to: Deaf, patience: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self {
            recording,
            at: 0,
            disk: recording.disk.clone().deaf_to(deaf_to),
            story,
            runtime: runtime.unwrap(),
            room: Arc::new(Semaphore::new(AT_ONCE)),
            judged: JoinSet::new(),
            patience,
        }
    }

    /// Lets everything happen before event `at`. What the processes saw themselves must keep the promises too.
    pub(crate) fn go_to(&mut self, at: usize) -> Result<(), String> {
        for event in &self.recording.events[self.at..at] {
            if self.at == self.recording.second {
                self.disk.next_process();
            }
            if let Event::Told(line) = event {
                self.story.tell(line).map_err(|broken| format!("event {}: {broken}", self.at))?;
            }
            self.disk.happen(event);
            self.at += 1;
        }
        Ok(())
    }

    /// Cuts the power here. What is left is judged in the background.
    pub(crate) fn cut(&mut self, seed: u64) {
        let permit = self.runtime.block_on(self.room.clone().acquire_owned()).unwrap();
        let dir = self.rebuild(seed);
        let kept = std::env::var_os(KEEP).map(|_| self.rebuild(seed));
        let (story, at, handle) = (self.story.clone(), self.at, self.runtime.handle().clone());
        let patience = self.patience;
        let judge = move || {
            let _permit = permit;
            let home = dir.path().join(HOME);
            let broken = handle.block_on(check::judge(&home, story, patience, Dice::new(seed))).err()?;
            let place = kept.map(|dir| format!(" (kept in {})", dir.keep().display())).unwrap_or_default();
            Some(format!("cut at event {at}, seed {seed:#x}: {broken}{place}"))
        };
        self.judged.spawn_blocking_on(judge, self.runtime.handle());
    }

    /// What was found broken.
    pub(crate) fn verdicts(mut self) -> Vec<String> {
        let judged = std::mem::take(&mut self.judged);
        self.runtime.block_on(judged.join_all()).into_iter().flatten().collect()
    }

    /// Rebuilds what a cut with this seed would leave here.
    pub(crate) fn rebuild(&self, seed: u64) -> TempDir {
        let dir = scratch();
        self.disk.rebuild(dir.path(), &mut Dice::new(seed));
        dir
    }
}

/// In memory where there is room: what is judged there has been on a device already.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { PathBuf::from(memory) } else { std::env::temp_dir() };
    tempfile::Builder::new()
        .prefix("lastmile-power-")
        .tempdir_in(place)
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Where to cut: anywhere; right after the process was told something; where something happens that is rarer than a
/// commit; and soon after sled went on to another segment of its file.
pub(crate) fn points(events: &[Event], cuts: usize, dice: &mut Dice) -> Vec<usize> {
    let indexes = |wanted: &dyn Fn(&Event) -> bool| -> Vec<usize> {
        (0..events.len()).filter(|i| wanted(&events[*i])).collect()
    };
    let told = indexes(&|event| matches!(event, Event::Told(_)));
    let rare = indexes(&|event| match event {
        Event::Write { path, at, .. } => !path.contains("/journal/") || *at == 0,
        _ => event.path().is_some_and(|path| !path.contains("/journal/")),
    });
    let goes_on = indexes(&|event| match event {
        Event::Write { path, at, .. } => path.ends_with("/db/db") && at.is_multiple_of(segments::BYTES),
        _ => false,
    });
    let mut points: Vec<_> = (0..cuts)
        .map(|i| match i % 4 {
            0 => dice.below(events.len() + 1),
            1 => told[dice.below(told.len())] + 1,
            2 => (rare[dice.below(rare.len())] + dice.below(3)).min(events.len()),
            _ => (goes_on[dice.below(goes_on.len())] + dice.below(40)).min(events.len()),
        })
        .collect();
    points.sort_unstable();
    points
}
