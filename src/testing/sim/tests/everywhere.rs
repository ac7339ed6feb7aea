//! A crash between every two steps of each operation.
//!
//! Drawn lives meet most moments sooner or later. Here each operation is done once on a small outbox, whose messages are in
//! memory or have settled, and whatever follows from it is played one step at a time: what machines say to one another, the
//! write of a group, what is said of it, its sync, each report to a machine, each load's read and its arrival, each
//! operation of settling. Then the same is lived again for each number of steps, and after so many of them the process is
//! killed, or the power cut. The oracle judges what comes back, and everything is delivered in the end.

use core::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use core::time::Duration;
use std::sync::Arc;

use super::super::Plan;
use super::super::compose::person;
use super::super::link::{Link, Reaction};
use super::super::node::{Node, Settling};
use super::super::oracle::Kept;
use super::super::random::Random;
use super::super::world::World;
use crate::config::{Config, KeepEnds, OnFailure, Overflow};
use crate::id::{MessageId, UserId};
use crate::machine::{DeadLetters, Input, Operation, Target, Verdict};
use crate::message::{Message, MessageBuilder, Otherwise, Priority};
use crate::record::{Admission, LaneId};
use crate::status::EndReason;

/// What is done to a world that has come to rest.
type Act = fn(&mut World);

/// An operation, from what must be there to what it must have come to.
struct Case {
    name: &'static str,
    /// All of it is durable before anything is cut.
    before: &'static [Act],
    /// One after the other, each once all that follows from the one before has happened.
    acts: &'static [Act],
    happened: fn(&World) -> bool,
}

/// People whom no network leads to.
fn alice() -> UserId {
    person(1)
}

fn bob() -> UserId {
    person(3)
}

fn to(user: UserId, number: u128) -> MessageBuilder {
    Message::to(user, "sim.message", "hello").id(MessageId::from_u128(number)).sender("sender-1")
}

fn target(number: u128) -> Target {
    Target { user: alice(), id: MessageId::from_u128(number), sender: None }
}

fn letters() -> DeadLetters {
    DeadLetters::of(alice())
}

impl World {
    fn sends(&mut self, message: MessageBuilder) {
        let message = message.build().expect("a message of a test is valid");
        self.sent.push((0, message.clone()));
        self.submit(0, message);
    }

    fn does(&mut self, operation: Operation) {
        self.operate(0, operation);
    }

    fn comes(&mut self) {
        let _ = self.nodes[0].attach(alice(), 1, false);
    }

    fn later(&mut self, seconds: u64) {
        self.pass(Duration::from_secs(seconds));
    }

    /// Everybody who is there says the same of all that they hold, and takes note of gaps.
    fn says(&mut self, says: fn(&mut Link, &mut Reaction)) {
        let node = &mut self.nodes[0];
        let Some(engine) = &mut node.engine else { return };
        let mut reactions = Vec::new();
        for link in engine.links.values_mut() {
            let mut reaction = Reaction::default();
            while !link.queue.is_empty() {
                says(link, &mut reaction);
            }
            reactions.push((link.id, link.user.clone(), reaction));
        }
        for (id, user, reaction) in reactions {
            node.react(id, &user, reaction);
            node.gaps_told(id, true);
        }
    }

    fn ends(&self, reason: EndReason) -> u64 {
        self.nodes[0].oracle.counters.ended[reason.index()]
    }

    fn accepted(&self, of: fn(&Admission) -> bool) -> bool {
        self.nodes[0].oracle.messages.values().any(|kept| of(&kept.accept.admission))
    }

    fn lives(&self, number: u128, lane: impl Fn(LaneId) -> bool) -> bool {
        let id = MessageId::from_u128(number);
        let is_it = |kept: &Kept| kept.accept.message.id() == id && lane(kept.accept.lane());
        self.nodes[0].oracle.kept().any(|(_, kept)| is_it(kept))
    }
}

fn delivered(link: &mut Link, reaction: &mut Reaction) {
    link.take(Some(Verdict::Delivered), reaction);
}

fn failed(link: &mut Link, reaction: &mut Reaction) {
    link.refuse(Some(Verdict::Nack(Some(Duration::from_secs(1)))), reaction);
}

fn rejected(link: &mut Link, reaction: &mut Reaction) {
    let refused = link.queue.pop_front().map(|delivery| (delivery.entry, Verdict::Rejected));
    reaction.verdicts.extend(refused);
}

/// Three messages that wait: two of alice's in different lanes, one of bob's.
const SOME: Act = |world| {
    world.sends(to(alice(), 1));
    world.sends(to(alice(), 2).priority(Priority::High));
    world.sends(to(bob(), 3));
};
const COMES: Act = World::comes;
const TAKES: Act = |world| world.says(delivered);
const REJECTS: Act = |world| world.says(rejected);

const CASES: &[Case] = &[
    Case {
        name: "send",
        before: &[SOME],
        acts: &[|world| world.sends(to(alice(), 10)), |world| world.sends(to(alice(), 10))],
        happened: |world| world.nodes[0].oracle.counters.accepted == 4,
    },
    Case {
        name: "send_batch",
        before: &[SOME],
        acts: &[|world| {
            let batch = [(alice(), 10), (bob(), 11), (alice(), 12), (person(5), 13)];
            let batch: Vec<_> = batch.map(|(user, id)| to(user, id).build().expect("it is valid")).into();
            world.sent.extend(batch.iter().map(|message| (0, message.clone())));
            world.nodes[0].send_batch(batch);
        }],
        happened: |world| world.nodes[0].oracle.counters.accepted == 7,
    },
    Case {
        name: "fan_out",
        before: &[SOME],
        acts: &[|world| {
            let message = to(person(0), 10).build().expect("it is valid");
            for user in [alice(), bob(), person(5)] {
                let message = message.for_recipient(user);
                world.sent.push((0, message.clone()));
                let shard = world.nodes[0].shard_of(message.recipient());
                world.nodes[0].fan_out(shard, vec![message]);
            }
        }],
        happened: |world| world.nodes[0].oracle.counters.accepted == 6,
    },
    Case {
        name: "cancel",
        before: &[SOME],
        acts: &[|world| world.does(Operation::Cancel(target(1)))],
        happened: |world| world.ends(EndReason::Cancelled) == 1,
    },
    Case {
        name: "replace",
        before: &[SOME],
        acts: &[|world| {
            let new = to(alice(), 10).build().expect("it is valid");
            world.sent.push((0, new.clone()));
            world.does(Operation::Replace(target(1), new));
        }],
        happened: |world| world.ends(EndReason::Replaced) == 1,
    },
    Case {
        name: "reprioritise",
        before: &[SOME],
        acts: &[|world| world.does(Operation::Reprioritise(target(1), Priority::Critical))],
        happened: |world| world.lives(1, |lane| lane == LaneId::Critical),
    },
    Case {
        name: "purge",
        before: &[SOME, |world| world.sends(to(alice(), 4)), |world| world.sends(to(alice(), 5))],
        acts: &[|world| world.does(Operation::Purge(alice()))],
        happened: |world| world.ends(EndReason::Cancelled) == 4,
    },
    Case {
        name: "not_before, of whoever is there",
        before: &[SOME],
        acts: &[
            |world| {
                let at = world.nodes[0].now.after(Duration::from_secs(5));
                world.sends(to(alice(), 10).not_before(at));
            },
            COMES,
            |world| world.later(6),
        ],
        happened: |world| world.accepted(|admission| *admission == Admission::Moved),
    },
    Case {
        name: "not_before, of whoever is away",
        before: &[SOME, |world| {
            let at = world.nodes[0].now.after(Duration::from_secs(90));
            world.sends(to(alice(), 10).not_before(at));
        }],
        acts: &[|world| world.later(300), |world| world.later(30), COMES],
        happened: |world| world.accepted(|admission| *admission == Admission::Moved),
    },
    Case {
        name: "ttl, of whoever is there",
        before: &[SOME],
        acts: &[
            |world| world.sends(to(alice(), 10).ttl(Duration::from_secs(5))),
            COMES,
            |world| {
                world.says(failed);
                world.later(30);
            },
        ],
        happened: |world| world.ends(EndReason::Expired) == 1,
    },
    Case {
        name: "ttl, of whoever is away",
        before: &[SOME, |world| world.sends(to(alice(), 10).ttl(Duration::from_secs(60)))],
        acts: &[|world| world.later(300), |world| world.later(30), COMES],
        happened: |world| world.ends(EndReason::Expired) == 1,
    },
    Case {
        name: "collapse key",
        before: &[SOME, |world| world.sends(to(alice(), 4).collapse_key("k"))],
        acts: &[
            |world| world.sends(to(alice(), 10).collapse_key("k")),
            |world| {
                world.sends(to(alice(), 11).collapse_key("k"));
                world.sends(to(alice(), 12).collapse_key("k"));
            },
        ],
        happened: |world| world.ends(EndReason::Replaced) == 3,
    },
    Case {
        name: "version",
        before: &[SOME, |world| world.sends(to(alice(), 4).collapse_key("k").version(5))],
        acts: &[
            |world| world.sends(to(alice(), 10).collapse_key("k").version(4)),
            |world| world.sends(to(alice(), 11).collapse_key("k").version(6)),
            |world| world.sends(to(alice(), 12).collapse_key("k").version(5)),
        ],
        happened: |world| {
            world.ends(EndReason::Replaced) == 1 && world.nodes[0].oracle.counters.accepted == 5
        },
    },
    Case {
        name: "after, of what is delivered",
        before: &[SOME],
        acts: &[
            |world| world.sends(to(alice(), 10).after(MessageId::from_u128(1), Otherwise::Cancel)),
            COMES,
            TAKES,
            TAKES,
        ],
        happened: |world| world.ends(EndReason::Delivered) == 3,
    },
    Case {
        name: "after, of what is withdrawn",
        before: &[SOME, |world| {
            world.sends(to(alice(), 10).after(MessageId::from_u128(1), Otherwise::Cancel));
            world.sends(to(alice(), 11).after(MessageId::from_u128(1), Otherwise::Release));
        }],
        acts: &[|world| world.does(Operation::Cancel(target(1)))],
        happened: |world| {
            world.ends(EndReason::Cancelled) == 2 && world.lives(11, |lane| lane == LaneId::Normal)
        },
    },
    Case {
        name: "after, of what is moved and replaced",
        before: &[SOME, |world| {
            world.sends(to(alice(), 10).after(MessageId::from_u128(1), Otherwise::Release));
        }],
        acts: &[
            |world| world.does(Operation::Reprioritise(target(1), Priority::Low)),
            |world| {
                let new = to(alice(), 12).build().expect("it is valid");
                world.sent.push((0, new.clone()));
                world.does(Operation::Replace(target(1), new));
            },
        ],
        happened: |world| world.lives(10, |lane| lane == LaneId::Normal),
    },
    Case {
        name: "a failed attempt, an acknowledgement, a rejection",
        before: &[SOME],
        acts: &[COMES, |world| world.says(failed), |world| world.later(20), REJECTS],
        happened: |world| world.ends(EndReason::Rejected) == 2,
    },
    Case {
        name: "delivery",
        before: &[SOME],
        acts: &[COMES, TAKES],
        happened: |world| world.ends(EndReason::Delivered) == 2,
    },
    Case {
        name: "requeue",
        before: &[SOME, COMES, REJECTS],
        acts: &[
            COMES,
            |world| world.does(Operation::Letters(alice())),
            |world| world.does(Operation::Requeue(letters())),
            TAKES,
        ],
        happened: |world| {
            world.accepted(|admission| matches!(admission, Admission::Requeued { .. }))
                && world.ends(EndReason::Delivered) == 2
        },
    },
    Case {
        name: "discard",
        before: &[SOME, COMES, REJECTS],
        acts: &[|world| world.does(Operation::Discard(letters()))],
        happened: |world| {
            let counters = &world.nodes[0].oracle.counters;
            counters.buried == 2 && counters.dead_letters() == 0
        },
    },
    Case {
        name: "overflow, and its gap",
        before: &[SOME, |world| (20..26).for_each(|id| world.sends(to(alice(), id)))],
        acts: &[|world| world.sends(to(alice(), 10)), COMES, TAKES],
        happened: |world| world.ends(EndReason::Evicted) == 1 && world.ends(EndReason::Delivered) == 8,
    },
];

/// Small enough that an outbox of eight is full, and large enough for all else.
fn plan() -> Plan {
    let config = Config {
        max_payload_bytes: NonZeroUsize::new(8 << 10).expect("not zero"),
        max_user_messages: NonZeroU32::new(8).expect("not zero"),
        max_total_messages: NonZeroU64::new(1000).expect("not zero"),
        overflow: Overflow::DropOldest,
        on_failure: [OnFailure::Park; 4],
        keep_ends: KeepEnds::All,
        max_in_flight: NonZeroU32::new(16).expect("not zero"),
        max_batch: NonZeroU32::new(16).expect("not zero"),
        ..Plan::of_seed(3).config
    };
    let config = Config {
        max_pending: NonZeroUsize::new(100).expect("not zero"),
        max_user_bytes: NonZeroU64::new(100 << 10).expect("not zero"),
        max_in_flight_bytes: NonZeroU64::new(100 << 10).expect("not zero"),
        dedup_ids: NonZeroUsize::new(100).expect("not zero"),
        max_dedup_resident: NonZeroUsize::new(100).expect("not zero"),
        dedup_age: Duration::from_secs(100_000),
        linger: Duration::ZERO,
        coalesce: Vec::new(),
        ack_deadline: Duration::from_secs(1000),
        max_attempts: NonZeroU32::new(5).expect("not zero"),
        max_dead_letters: 10,
        max_dead_bytes: 1 << 20,
        max_total_dead_letters: 1000,
        max_total_dead_bytes: 1 << 20,
        max_dependents: NonZeroUsize::new(10).expect("not zero"),
        ledger_rows: 20,
        max_resident: NonZeroUsize::new(64).expect("not zero"),
        max_gaps: NonZeroUsize::new(2048).expect("not zero"),
        max_load_bytes: NonZeroU64::new(16 << 10).expect("not zero"),
        max_ends: NonZeroU64::new(1000).expect("not zero"),
        ..config
    };
    Plan {
        seed: 1,
        shards: 2,
        reshards: false,
        users: 6,
        senders: 1,
        keys: 0,
        config,
        faults: 0,
        ..Plan::of_seed(3)
    }
}

impl Node {
    /// Does the next thing that can be done; `false` when all is at rest.
    fn next_step(&mut self, random: &mut Random) -> bool {
        let now = self.now;
        let Some(engine) = &self.engine else { return false };
        let is_due = engine.shards.iter().any(|machine| machine.poll_timeout().is_some_and(|at| at <= now));
        match &engine.flight {
            _ if !engine.notes.is_empty() => self.pass(random),
            Some(flight) if flight.synced => self.persisted(),
            Some(flight) if flight.told_written => self.sync(),
            Some(_) => self.written(),
            None if !engine.queue.is_empty() => self.append(random),
            None if engine.loads.iter().any(|load| load.found.is_none()) => self.read(random),
            None if !engine.loads.is_empty() => self.loaded(random),
            None if is_due => self.tick(),
            None if !matches!(engine.settling, Settling::Idle) => self.keep(),
            None => return false,
        }
        true
    }
}

impl World {
    /// Plays until all is at rest or so many steps are done; says how many are left.
    fn play(&mut self, mut steps: usize) -> Result<usize, String> {
        let mut random = Random::new(7);
        for _ in 0..2 {
            while steps > 0 && self.nodes[0].next_step(&mut random) {
                steps -= 1;
                self.verdict()?;
            }
            // What waits for another send to meet it, waits no longer.
            if steps > 0 {
                self.nodes[0].broadcast(&Input::Tick);
            }
        }
        Ok(steps)
    }

    /// Restarts the first engine.
    fn restart(&mut self, power: bool, random: &mut Random) {
        self.nodes[0].crash(power, random);
        self.nodes[0].open();
    }
}

/// What the messages of before have become when the operation begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lying {
    InMemory,
    /// In runs, with nothing of them in memory.
    InStore,
    /// In the journal of an earlier life, and settling is asked for in the middle of it all.
    Settling,
}

/// Lives a case up to so many steps of its acts; says how many are left.
fn live(case: &Case, lying: Lying, mut steps: usize) -> Result<(World, usize), String> {
    let mut world = World::new(plan(), None);
    let mut random = Random::new(1);
    for act in case.before {
        act(&mut world);
        world.play(usize::MAX)?;
    }
    if lying != Lying::InMemory {
        world.restart(false, &mut random);
    }
    if lying == Lying::InStore {
        world.nodes[0].settle_all(&mut random);
        world.restart(false, &mut random);
    }
    for act in case.acts {
        if steps > 0 {
            act(&mut world);
            if lying == Lying::Settling {
                world.nodes[0].settle();
            }
            steps = world.play(steps)?;
        }
    }
    Ok((world, steps))
}

fn crash_everywhere(lying: Lying) {
    const MANY: usize = 10_000;
    for case in CASES {
        let told = |error: String| panic!("{}, {lying:?}: {error}", case.name);
        let (world, left) = live(case, lying, MANY).unwrap_or_else(told);
        assert!((case.happened)(&world), "{}, {lying:?}: it did not come to that", case.name);
        let steps = MANY - left;
        assert!((3..200).contains(&steps), "{}: {steps} steps", case.name);
        for at in 0..=steps {
            let told = |error: String| panic!("{}, {lying:?}, crash after {at} steps: {error}", case.name);
            let (mut world, left) = live(case, lying, at).unwrap_or_else(told);
            assert_eq!(left, 0, "{}, {lying:?}: a life is not the same every time", case.name);
            // It ends in another way each time.
            world.plan = Arc::new(Plan { seed: at as u64, ..plan() });
            world.restart(at % 2 == 0, &mut Random::new(at as u64));
            world
                .verdict()
                .and_then(|()| world.finish())
                .unwrap_or_else(|error| panic!("{}, {lying:?}, crash after {at} steps: {error}", case.name));
        }
    }
}

#[test]
fn a_crash_between_any_two_steps_of_an_operation_on_what_is_in_memory_breaks_no_promise() {
    crash_everywhere(Lying::InMemory);
}

#[test]
fn a_crash_between_any_two_steps_of_an_operation_on_what_has_settled_breaks_no_promise() {
    crash_everywhere(Lying::InStore);
}

#[test]
fn a_crash_between_any_two_steps_of_an_operation_while_settling_goes_on_breaks_no_promise() {
    crash_everywhere(Lying::Settling);
}
