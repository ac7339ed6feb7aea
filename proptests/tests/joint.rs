//! Batches across shards end, whatever crosses them, and come to all or nothing.

use std::collections::HashSet;
use std::num::{NonZeroU32, NonZeroUsize};

use lastmile::Config;
use lastmile::machine::{Accepted, Refusal, Ticket};
use lastmile::record::Record;
use lastmile_proptests::joint::{Event, Net};
use proptest::prelude::*;

fn event() -> impl Strategy<Value = Event> {
    let some = prop::collection::vec((0_u8..6, 0_u8..5), 1..7);
    prop_oneof![
        4 => some.prop_map(Event::Batch),
        3 => (0_u8..6, 0_u8..5).prop_map(|(user, id)| Event::Send(user, id)),
        8 => any::<usize>().prop_map(Event::Word),
        6 => (0_usize..4).prop_map(Event::Note),
        4 => (1_usize..4).prop_map(Event::Commit),
        1 => Just(Event::Fail),
    ]
}

fn config(max_user_messages: u32, max_pending: usize) -> Config {
    let mut config = Config::default();
    config.max_user_messages = NonZeroU32::new(max_user_messages).unwrap();
    config.max_pending = NonZeroUsize::new(max_pending).unwrap();
    config
}

type Answers<'a> = Vec<&'a Result<Accepted, Refusal>>;

fn answers<'a>(net: &'a Net, batch: &[Ticket]) -> Answers<'a> {
    batch.iter().flat_map(|ticket| &net.answers[ticket]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn batches_that_cross_never_wait_for_ever_hold_nothing_afterwards_and_are_all_or_nothing(
        shards in 1_usize..5,
        max_user_messages in 1_u32..6,
        max_pending in 3_usize..20,
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut net = Net::new(shards, &config(max_user_messages, max_pending));
        events.iter().for_each(|event| net.play(event));
        net.finish();
        for stats in net.stats() {
            prop_assert_eq!((stats.reservations, stats.pending, stats.recording), (0, 0, 0));
        }
        for (ticket, answers) in &net.answers {
            prop_assert_eq!(answers.len(), 1, "{:?} was answered {} times", ticket, answers.len());
        }
        let mut durable = HashSet::new();
        for record in &net.log {
            let Record::Accept(accept) = record else { continue };
            let it = (accept.message.recipient().clone(), accept.message.id());
            prop_assert!(durable.insert(it), "accepted twice: {:?}", record);
        }
        let live: u64 = net.stats().map(|stats| stats.counters.live()).sum();
        prop_assert_eq!(live, durable.len() as u64);
        for batch in &net.batches {
            let answers = answers(&net, batch);
            let new = answers.iter().any(|answer| matches!(answer, Ok(accepted) if !accepted.duplicate));
            let refused = answers.iter().any(|answer| answer.is_err());
            prop_assert!(!(new && refused), "accepted in part: {:?}", answers);
        }
    }
}

/// That the property above means something: each ending is met, often.
#[test]
fn batches_end_in_every_way_in_the_lives_that_the_property_draws() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let (mut accepted, mut refused, mut unknown, mut repeats) = (0, 0, 0, 0);
    for _ in 0..300 {
        let events = prop::collection::vec(event(), 40..60).new_tree(&mut runner).unwrap().current();
        let mut net = Net::new(3, &config(3, 12));
        events.iter().for_each(|event| net.play(event));
        net.finish();
        for batch in net.batches.iter().filter(|batch| batch.len() > 2) {
            let answers = answers(&net, batch);
            unknown += usize::from(answers.iter().any(|answer| **answer == Err(Refusal::OutcomeUnknown)));
            refused += usize::from(answers.iter().all(|answer| answer.is_err()));
            accepted += usize::from(answers.iter().all(|answer| answer.is_ok()));
            repeats += usize::from(answers.iter().all(|a| matches!(a, Ok(it) if it.duplicate)));
        }
    }
    assert!(
        accepted > 100 && refused > 100 && unknown > 20 && repeats > 5,
        "{accepted} {refused} {unknown} {repeats}"
    );
}
