//! Power cuts under the real engine, the real sled and real files.
#![cfg(all(feature = "runtime", feature = "sled", target_os = "linux", target_env = "gnu"))]

mod check;
mod dice;
mod disk;
mod file;
mod load;
mod record;
mod segments;
mod story;
mod tour;
mod trace;

use std::time::{Duration, Instant};

use dice::Dice;
use disk::Deaf;
use record::{Recorder, Recording};
use story::Story;
use tempfile::TempDir;
use tour::{Tour, points};

const NAME: &str = "what_was_promised_survives_every_power_cut";
/// How many cuts, when somebody asks for more or fewer; then there is no limit of time either.
const CUTS: &str = "LASTMILE_POWER_CUTS";
const DEFAULT_CUTS: usize = 300;
/// Chooses the cuts and what they leave; the processes run as they run.
const SEED: &str = "LASTMILE_POWER_SEED";
/// Power cuts of power cuts: each round goes on from what one cut of the round before has left.
const ROUNDS: usize = 3;
/// Cuts of one walk through a recording.
const PASS: usize = 25;
/// Unless somebody asked for a number of cuts, no walk begins after this.
const LIMIT: Duration = Duration::from_secs(18);
/// How long everything that a cut left may take to be delivered.
const PATIENCE: Duration = Duration::from_secs(20);

#[expect(clippy::disallowed_methods, reason = "a test has no engine's clock to ask")]
fn now() -> Instant {
    Instant::now()
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

#[test]
fn what_was_promised_survives_every_power_cut() {
    if record::live_if_recorded() {
        return;
    }
    let Some(recorder) = Recorder::build(NAME) else { return };
    let (began, asked) = (now(), number(CUTS));
    let mut dice = Dice::new(number(SEED).unwrap_or(1) as u64);
    let mut left = (tempfile::tempdir().unwrap(), Story::default());
    for round in 0..ROUNDS {
        let recording = recorder.record(left.0.path(), round);
        let time = (asked.is_none()).then(|| LIMIT * (round as u32 + 1) / ROUNDS as u32);
        let (mut cuts, story) = (0, left.1);
        loop {
            let (next, done) = walk(&recording, &story, &mut dice);
            cuts += PASS;
            left = next;
            let late = time.is_some_and(|time| began.elapsed() > time);
            if cuts * ROUNDS >= asked.unwrap_or(DEFAULT_CUTS) || late {
                println!(
                    "round {round}: {} calls and lines, {} settlements, {} merges: {cuts} power cuts ({:?})",
                    recording.events.len(),
                    done.settled - story.settled,
                    done.merged - story.merged,
                    began.elapsed()
                );
                assert!(
                    done.settled - story.settled > 5 && done.merged > story.merged,
                    "the load proves little"
                );
                break;
            }
        }
    }
}

/// Walks through a recording with some cuts on the way, and gives what one of them left with what had been told by then,
/// and what was told in the end.
fn walk(recording: &Recording, story: &Story, dice: &mut Dice) -> ((TempDir, Story), Story) {
    let mut tour = Tour::of(recording, story.clone(), |_| false, PATIENCE);
    let go_on = PASS / 2 + dice.below(PASS / 2);
    let mut next = None;
    for (i, at) in points(&recording.events, PASS, dice).into_iter().enumerate() {
        tour.go_to(at).unwrap();
        let cut = dice.next();
        tour.cut(cut);
        if i == go_on {
            next = Some((tour.rebuild(cut), tour.story.clone()));
        }
    }
    tour.go_to(recording.events.len()).unwrap();
    let told = tour.story.clone();
    let broken = tour.verdicts();
    assert!(broken.is_empty(), "broken:\n{}", broken.join("\n"));
    (next.unwrap(), told)
}

/// sled takes what `sync_file_range` covered for durable: the header of a segment says so of the one before the last,
/// and what has become free by it is written over.
#[test]
fn sled_begins_no_segment_while_the_one_before_the_last_is_not_durable() {
    let Some(recorder) = Recorder::build(NAME) else { return };
    let (begun, early) = segments::begun_too_early(&recorder.record_filling());
    assert!(begun > 10, "the load proves nothing: {begun} segments");
    assert!(early.is_empty(), "{} of {begun}: {}", early.len(), early.join("\n"));
}

/// Which syncs come to nothing, in turn.
const SKIPPED: [(&str, Deaf); 7] = [
    ("of any segment", |path| path.ends_with(".journal")),
    ("of the journal's directory", |path| path == "home/journal"),
    ("of the store's file", |path| path == "home/db/db"),
    ("of the store's directory", |path| path == "home/db"),
    ("of the engine's directory", |path| path == "home"),
    ("of the directory around it", |path| path.is_empty()),
    ("of the format's file", |path| path == "home/FORMAT.new"),
];

/// Shows that the test above can fail.
#[test]
fn a_sync_that_comes_to_nothing_is_noticed() {
    let Some(recorder) = Recorder::build(NAME) else { return };
    let start = tempfile::tempdir().unwrap();
    let recording = recorder.record(start.path(), 0);
    for (what, deaf_to) in SKIPPED {
        let mut dice = Dice::new(1);
        let mut tour = Tour::of(&recording, Story::default(), deaf_to, PATIENCE / 10);
        for at in points(&recording.events, 12, &mut dice) {
            tour.go_to(at).unwrap();
            tour.cut(dice.next());
        }
        let broken = tour.verdicts();
        assert!(!broken.is_empty(), "no sync {what}, and nobody noticed");
        println!("no sync {what}: {} of 12 cuts broke a promise; {}", broken.len(), broken[0]);
    }
}
