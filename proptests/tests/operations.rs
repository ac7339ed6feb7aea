//! Operations, whatever is done in whatever order, come to what the documentation says.

use lastmile::machine::Refusal;
use lastmile::{Config, EndReason, MessageId, Priority};
use lastmile_proptests::operations::{Model, Sent, done};
use lastmile_proptests::{Op, Shell};
use proptest::prelude::*;

const USERS: u8 = 3;
const IDS: u8 = 24;

fn priority() -> impl Strategy<Value = Priority> + Clone {
    (0_u8..4).prop_map(|index| Priority::from_index(index).unwrap())
}

fn op() -> impl Strategy<Value = Op> {
    let (user, id) = (0..USERS, 0..IDS);
    let message = (user.clone(), id.clone(), priority());
    let send = message.clone().prop_map(|(user, id, priority)| Op::Send {
        sender: 0,
        user,
        id,
        priority,
        body: b"send".to_vec(),
    });
    let newest = (message.clone(), 0_u8..2, prop::option::of(0_u8..6))
        .prop_map(|((user, id, priority), key, version)| Op::Newest { user, id, priority, key, version });
    // Timers of a machine go off together, each ten milliseconds.
    let later = (message.clone(), 0_u16..300).prop_map(|((user, id, priority), delay)| Op::Later {
        user,
        id,
        priority,
        delay: delay * 10,
    });
    let many =
        (prop::sample::subsequence((0..USERS).collect::<Vec<_>>(), 0..=usize::from(USERS)), message.clone())
            .prop_map(|(users, (_, id, priority))| Op::FanOut { users, id, priority });
    let replace = (message.clone(), id.clone()).prop_map(|((user, id, priority), with)| Op::Replace {
        user,
        id,
        with,
        priority,
    });
    let moved = message.prop_map(|(user, id, priority)| Op::Reprioritise { user, id, priority });
    prop_oneof![
        6 => send,
        8 => newest,
        4 => later,
        2 => many,
        3 => (user.clone(), id).prop_map(|(user, id)| Op::Cancel { user, id }),
        3 => replace,
        4 => moved,
        1 => user.clone().prop_map(Op::Purge),
        4 => user.clone().prop_map(Op::Requeue),
        3 => any::<bool>().prop_map(Op::Refuse),
        4 => user.clone().prop_map(|user| Op::Attach(user, 0)),
        4 => user.prop_map(Op::Detach),
        3 => (0_u16..200).prop_map(|wait| Op::Wait(wait * 10)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn operations_come_to_what_is_promised_and_shards_are_routing_only(
        ops in prop::collection::vec(op(), 0..150),
        shards in 2_usize..5,
    ) {
        let config = Config::default();
        let (mut one, mut many) = (Shell::new(1, &config), Shell::new(shards, &config));
        let mut model = Model::default();
        for (at, op) in ops.iter().enumerate() {
            one.play(op);
            many.play(op);
            model.play(op);
            for shell in [&one, &many] {
                // A repeat is answered at once, and what is new when it is durable.
                let mut answers: Vec<_> = shell.answers.iter().collect();
                answers.sort_by_key(|(ticket, _)| *ticket);
                let sent: Vec<_> = answers.into_iter().map(|(_, answer)| Sent::of(answer)).collect();
                let expected: Vec<_> = model.sent.iter().map(|sent| Some(*sent)).collect();
                prop_assert_eq!(sent, expected, "sends, after {} {:?}", at, op);
                let answers: Vec<_> = shell.done.iter().map(|(_, answer)| done(answer)).collect();
                prop_assert_eq!(&answers, &model.done, "operations, after {} {:?}", at, op);
                let counters = shell.counters();
                prop_assert_eq!((counters.live(), counters.dead_letters()), model.left(), "after {} {:?}", at, op);
                prop_assert_eq!(counters.accepted, model.accepted, "after {} {:?}", at, op);
                prop_assert_eq!(counters.ended, model.ended, "after {} {:?}", at, op);
            }
        }
        for shell in [&one, &many] {
            for (user, priority) in (0..USERS).flat_map(|user| Priority::ALL.map(|priority| (user, priority))) {
                let came = shell.delivered_to(user);
                let came: Vec<_> = came.into_iter().filter(|(of, _)| *of == priority).map(|(_, id)| id).collect();
                let expected = model.delivered_to(user, priority);
                let expected: Vec<_> = expected.into_iter().map(|id| MessageId::from_u128(id.into())).collect();
                prop_assert_eq!(came, expected, "user {} {:?}", user, priority);
            }
        }
    }
}

/// So that the property above means something: what it draws from meets each of these.
#[test]
fn the_model_meets_each_answer() {
    let key = |id, version| Op::Newest { user: 0, id, priority: Priority::Normal, key: 0, version };
    let ops = [
        Op::Attach(0, 0),
        Op::Refuse(true),
        key(1, Some(2)),
        Op::Refuse(false),
        key(2, Some(3)),
        key(3, Some(1)),
        Op::Requeue(0),
        Op::Detach(0),
        Op::Later { user: 0, id: 4, priority: Priority::Low, delay: 100 },
        Op::Reprioritise { user: 0, id: 4, priority: Priority::High },
        Op::Replace { user: 0, id: 4, with: 5, priority: Priority::High },
        Op::Purge(0),
    ];
    let (mut shell, mut model) = (Shell::new(1, &Config::default()), Model::default());
    for op in &ops {
        shell.play(op);
        model.play(op);
    }
    let answers: Vec<_> = shell.done.iter().map(|(_, answer)| done(answer)).collect();
    assert_eq!(answers, model.done);
    assert_eq!(model.sent, [Sent::New, Sent::New, Sent::Outdated, Sent::New]);
    assert!(matches!(shell.answers[2].1, Err(Refusal::Outdated { newest: 3 })));
    let ended = |reason: EndReason| model.ended[reason.index()];
    assert_eq!(
        (ended(EndReason::Rejected), ended(EndReason::Replaced), ended(EndReason::Cancelled)),
        (1, 1, 1)
    );
}
