//! The simulator finds nothing where there is nothing, and everything that was broken on purpose.

use super::{Defect, Script, run, shrink};

#[test]
fn a_few_hundred_lives_break_no_promise() {
    for seed in 0..300 {
        let outcome = run(&Script::of_seed(seed), None);
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

#[test]
fn every_deliberate_defect_is_caught() {
    for (defect, name) in Defect::ALL {
        let caught = (0..2000).find(|seed| run(&Script::of_seed(*seed), Some(defect)).violation.is_some());
        let seed = caught.unwrap_or_else(|| panic!("{name} was not caught"));
        assert_eq!(
            run(&Script::of_seed(seed), None).violation,
            None,
            "{name}: seed {seed} fails without it as well"
        );
        let small = shrink(&Script::of_seed(seed), Some(defect));
        assert!(run(&small, Some(defect)).violation.is_some(), "{name}: seed {seed}\n{small}");
        assert!(small.steps.len() < 100, "{name}: {} steps", small.steps.len());
    }
}
