//! Power cuts under the real engine, the real sled and real files.
//!
//! A process holds an engine on files of its own, with a ring so small that it is settled, merged and used again all the
//! time (`load.rs`). A shim writes down each of its system calls that changes a file, with the data, and in the same
//! order each thing it was told: what was accepted, what came, whose end was announced (`shim.c`, `record.rs`,
//! `trace.rs`). It dies in the middle, a second one goes on with the same files, closes its engine and opens it again.
//!
//! Then the power is cut, at hundreds of points of that recording. What is left is what a device may hold that honours
//! `fsync` and `fdatasync` and promises nothing else (`disk.rs`, `file.rs`): of a file all that its last sync covered, and
//! of later writes nothing, everything, some, or some sectors of 512 bytes; of its length the same; names in a directory
//! only with a sync of the directory. Plain writes and `sync_file_range` guarantee nothing. An engine is opened on each,
//! and what it says and delivers is held against what had been told before the cut (`check.rs`, `story.rs`):
//!
//! - it opens, nothing is reported lost or damaged, nothing went to quarantine, and `verify` finds nothing;
//! - whatever was accepted comes, once, with its contents, unless it had come or been withdrawn;
//! - nothing comes whose end had been announced or which had been withdrawn, and what comes again says so;
//! - each line keeps its order, over all lives; what was sent together is there together;
//! - repeats are recognised and keep their place, and the ledger's counters add up.
//!
//! Three rounds of this, each upon what a cut of the one before has left. `LASTMILE_POWER_CUTS=10000` cuts as often as
//! that, `LASTMILE_POWER_SEED` elsewhere, and `LASTMILE_POWER_KEEP=1` leaves what broke a promise.
//!
//! # What it was seen to catch
//! By leaving these out of the source, one at a time: our fdatasync of sled's file after its flush, and the one between two
//! flushes; the journal's fdatasync; what makes replayed groups durable; the sync of the journal's directory after a
//! segment was made; the sync of sled's directory, and of the one around the engine's, when a database is opened; the
//! sync of `FORMAT` before its rename; the removal of half-written snapshots. `a_sync_that_comes_to_nothing_is_noticed` does the
//! like each time. Without the syncs that let sled's log go on to another segment,
//! `no_segment_of_sled_vouches_for_what_is_not_durable` names 185 times that one of 72 segments was vouched for too early,
//! and of 600 cuts one left a database that went to quarantine (the engine opened without it).
//! And two faults: sled's file was beyond repair after a cut that took a full segment and left a later
//! one; and no engine opened once its database was in quarantine.
//!
//! # What it does not catch
//! Syncs that others cover as well: of a new segment's zeros (its first fdatasync), of the files of a database that was
//! opened (sled's own), of the run before the table (the next one, sled's log being one), of the mark that gives a segment
//! back. The manifest only names losses. Renames between directories are beyond the model, so nothing cuts a quarantine.
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
/// How long nothing may come of what a cut left: only what never comes takes so long.
const PATIENCE: Duration = Duration::from_secs(300);

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

/// sled takes what `sync_file_range` covered for durable: the header of a segment vouches for the log before, a recovery
/// trusts it, and what has become free by that is written over.
#[test]
fn no_segment_of_sled_vouches_for_what_is_not_durable() {
    let Some(recorder) = Recorder::build(NAME) else { return };
    let (begun, early) = segments::vouched_too_early(&recorder.record_filling());
    assert!(begun > 40, "the load proves nothing: {begun} segments");
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
        let mut tour = Tour::of(&recording, Story::default(), deaf_to, PATIENCE / 100);
        for at in points(&recording.events, 12, &mut dice) {
            tour.go_to(at).unwrap();
            tour.cut(dice.next());
        }
        let broken = tour.verdicts();
        assert!(!broken.is_empty(), "no sync {what}, and nobody noticed");
        println!("no sync {what}: {} of 12 cuts broke a promise; {}", broken.len(), broken[0]);
    }
}
