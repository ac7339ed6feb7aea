//! Lives of servers and clients: a few here, many in `examples/simulate`.

use super::*;

#[test]
fn whatever_breaks_between_servers_and_clients_every_message_ends_once_and_truthfully() {
    let mut sum = Lived::default();
    for seed in 0..60 {
        let lived = live(seed, None);
        assert_eq!(lived.violation, None, "seed {seed}");
        sum.add(&lived);
    }
    // Enough happened to show something.
    assert!(sum.applied > 600 && sum.resumed > 30 && sum.fresh > 100, "{sum:?}");
    assert!(sum.crashes > 50 && sum.takeovers > 15 && sum.switches > 15, "{sum:?}");
    assert!(sum.renewals > 10 && sum.published > 150 && sum.jumps > 40, "{sum:?}");
}

#[test]
fn the_same_seed_lives_the_same_life() {
    assert_eq!(live(3, None), live(3, None));
}

#[test]
fn every_deliberate_flaw_is_caught() {
    for (flaw, name) in Flaw::ALL {
        let caught = (0..400).find_map(|seed| live(seed, Some(flaw)).violation);
        assert!(caught.is_some(), "{name} was not caught");
    }
}
