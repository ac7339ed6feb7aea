//! The simulator finds nothing where there is nothing, and everything that was broken on purpose.

use super::{Defect, Script, run, run_traced, shrink};

#[test]
fn a_few_hundred_lives_break_no_promise() {
    for seed in 0..300 {
        let outcome = run(&Script::of_seed(seed), None);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

/// Whatever can become of a batch across shards happens in simulated lives.
#[test]
fn batches_across_shards_live_through_every_ending() {
    let endings = [
        ("< JointPersisted", ""),
        ("< JointFailed", "unknown: true"),
        ("< JointFailed", "unknown: false"),
        ("< Told(Over", "OtherRefused"),
        ("< Told(Over", "Overloaded"),
        ("< Told(Over", "Ok(())"),
    ];
    let mut seen = [0; 6];
    for seed in 0..4000 {
        if seed >= 100 && seen.iter().all(|n| *n > 0) {
            break;
        }
        let mut trace = Some(Vec::new());
        assert_eq!(run_traced(&Script::of_seed(seed), None, &mut trace).violation, None, "seed {seed}");
        for line in trace.iter().flatten() {
            let n = endings.map(|(what, how)| usize::from(line.contains(what) && line.contains(how)));
            seen.iter_mut().zip(n).for_each(|(sum, n)| *sum += n);
        }
    }
    assert!(seen.iter().all(|n| *n > 0), "{endings:?}: {seen:?}");
}

/// Dozens of crashes, and enough settlements for merges of merges.
#[test]
fn long_lives_break_no_promise() {
    for seed in 0..20 {
        let outcome = run(&Script::of_length(seed, 3000), None);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

#[test]
fn a_life_is_the_same_every_time() {
    for seed in 0..20 {
        let script = Script::of_seed(seed);
        assert_eq!(run(&script, None), run(&script, None), "seed {seed}");
    }
}

/// What each defect must be caught for, among whatever else it causes.
fn must_cause(defect: Defect) -> &'static str {
    match defect {
        Defect::NoFdatasync => "lost Seq was durable",
        Defect::AckBeforePersist => "answered Ok Synced duplicate false before its record was",
        Defect::DedupForgotten => "accepted twice within the dedup window",
        Defect::ReplayDecides => "ledger the engine counts",
        Defect::JointTorn => "of messages of a batch are durable",
        Defect::OverLost => "reservations are held for batches that are nowhere",
    }
}

#[test]
fn every_deliberate_defect_is_caught_for_what_it_breaks() {
    for (defect, name) in Defect::ALL {
        let kind = must_cause(defect);
        let caught = (0..2000).find(|seed| {
            let violation = run(&Script::of_seed(*seed), Some(defect)).violation;
            violation.is_some_and(|violation| violation.kind().starts_with(kind))
        });
        let seed = caught.unwrap_or_else(|| panic!("{name} was not caught for: {kind}"));
        assert_eq!(
            run(&Script::of_seed(seed), None).violation,
            None,
            "{name}: seed {seed} fails without it as well"
        );
        let small = shrink(&Script::of_seed(seed), Some(defect));
        let violation = run(&small, Some(defect)).violation;
        assert!(violation.is_some_and(|v| v.kind().starts_with(kind)), "{name}: seed {seed}\n{small}");
        assert!(small.steps.len() < 100, "{name}: {} steps", small.steps.len());
    }
}
