//! The simulator finds nothing where there is nothing, and everything that was broken on purpose.

mod everywhere;

use super::{Defect, Op, Plan, Random, Script, Step, run, run_traced, shrink};

#[test]
fn a_few_hundred_lives_break_no_promise() {
    for seed in 0..300 {
        let outcome = run(&Script::of_seed(seed), None);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

/// A life of batches across shards, commits, and a disk that fails, and of nothing else.
fn life_of_batches(seed: u64) -> Script {
    const OPS: &[(Op, u64)] = &[
        (Op::Batch, 30),
        (Op::Send, 8),
        (Op::Pass, 60),
        (Op::Append, 20),
        (Op::Sync, 20),
        (Op::Persisted, 30),
        (Op::Commit, 10),
        (Op::DiskFault, 8),
        (Op::Heal, 10),
        (Op::Relief, 4),
        (Op::Loaded, 20),
        (Op::Kill, 1),
    ];
    let mut random = Random::new(seed);
    let mut draw = || {
        let mut at = random.below(OPS.iter().map(|(_, weight)| weight).sum());
        let found = OPS.iter().find(|(_, weight)| match at.checked_sub(*weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        Step { op: found.map_or(Op::Batch, |(op, _)| *op), detail: random.next() >> 32 }
    };
    let steps = (0..200).map(|_| draw()).collect();
    Script { plan: seed, steps }
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
    // Those in which there are several shards, and disks that fail.
    let fits = |plan: &Plan| plan.shards > 1 && plan.faults > 0;
    for seed in (0..4000).filter(|seed| fits(&Plan::of_seed(*seed))) {
        if seen.iter().all(|n| *n > 0) {
            break;
        }
        let mut trace = Some(Vec::new());
        assert_eq!(run_traced(&life_of_batches(seed), None, &mut trace).violation, None, "seed {seed}");
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
