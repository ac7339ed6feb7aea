//! Batches across shards: all or nothing, and nothing is held afterwards.

mod net;

use self::net::{Net, one_each, person_of_another_shard, somebody};
use super::*;

#[test]
fn a_batch_across_shards_is_one_group_and_nothing_is_offered_or_answered_before_it_is_durable() {
    let mut net = Net::new(3);
    // Not in the order of the shards.
    let messages = one_each(&[2, 0, 1, 0], 3);
    for (link, shard) in [(1, 0), (2, 1), (3, 2)] {
        net.rigs[shard].attach(link, &somebody(shard, 3, 0), "phone");
        net.next = net.next.max(net.rigs[shard].next);
    }
    let tickets = net.send_batch(&messages);
    net.pass_all();
    let parts: Vec<_> =
        net.rigs[2].joints.iter().flat_map(|(_, parts)| parts).map(|part| part.records.len()).collect();
    assert_eq!(parts, [2, 1, 1]);
    assert!(net.rigs.iter().all(|rig| rig.open.is_empty() && rig.offers.is_empty()));
    assert_eq!(net.answers(&tickets), [None, None, None, None]);
    for (joint, first, shard) in net.append_joints(2) {
        assert!(net.rigs[shard].offers.is_empty());
        net.rigs[shard].input(Input::JointPersisted { joint, first });
        assert!(!net.rigs[shard].offers.is_empty());
    }
    assert!(net.accepted(&tickets));
    // In the order of the batch, within each shard.
    let entry = |n: usize| net.answers(&tickets)[n].clone().unwrap().unwrap().entry.seq;
    assert!(entry(1) < entry(3) && entry(3) < entry(2) && entry(2) < entry(0));
    assert_eq!(net.live_at_rest(), 4);
}

#[test]
fn a_quota_of_a_later_shard_refuses_one_over_its_bound_and_everything_is_given_back_everywhere() {
    for waiting in [1, 2, 3] {
        let config =
            Config { max_user_messages: core::num::NonZeroU32::new(3).unwrap(), ..Config::default() };
        let mut net = Net::with(3, config);
        let last = somebody(2, 3, 0);
        let first: Vec<_> = (0..waiting).map(|_| net.send(&message(&last))).collect();
        net.finish();
        assert!(net.accepted(&first));
        let batch = one_each(&[0, 1, 2], 3);
        let tickets = net.send_batch(&batch);
        net.finish();
        let fits = waiting < 3;
        assert_eq!(net.accepted(&tickets), fits, "{waiting}");
        assert_eq!(net.live_at_rest(), waiting + if fits { 3 } else { 0 });
        if fits {
            continue;
        }
        let full = Refusal::OutboxFull { messages: 3, bytes: 3 * batch[2].cost() };
        assert_eq!(net.refusals(&tickets), [Refusal::OtherRefused, Refusal::OtherRefused, full]);
        // All of the quota of the others is there, and the ids of the batch are new.
        let (one, two) = (message(&somebody(0, 3, 0)), message(&somebody(0, 3, 0)));
        let tickets = net.send_batch(&[batch[0].clone(), batch[1].clone(), one, two]);
        net.finish();
        assert!(net.accepted(&tickets));
        assert_eq!(net.live_at_rest(), 7);
    }
}

#[test]
fn each_bound_of_a_later_shard_holds_at_minus_one_zero_and_plus_one() {
    let cost = message("user-0").cost();
    let pending = |n| Config { max_pending: NonZeroUsize::new(n).unwrap(), ..Config::default() };
    let total = |n| Config { max_total_messages: NonZeroU64::new(n).unwrap(), ..Config::default() };
    let bytes = |n| Config { max_total_bytes: NonZeroU64::new(n).unwrap(), ..Config::default() };
    // One waits in shard 1, where the batch has two.
    for (config, fits, pends) in [
        (pending(2), false, true),
        (pending(3), true, true),
        (pending(4), true, true),
        (total(2), false, false),
        (total(3), true, false),
        (total(4), true, false),
        (bytes(3 * cost - 1), false, false),
        (bytes(3 * cost), true, false),
        (bytes(3 * cost + 1), true, false),
    ] {
        let mut net = Net::with(2, config);
        let there = net.send(&message(&somebody(1, 2, 0)));
        if !pends {
            net.finish();
        }
        // The bound on what may wait counts the whole batch, which must fit at all.
        let shards: &[usize] = if pends { &[0, 1] } else { &[0, 1, 1] };
        let mut batch = one_each(shards, 2);
        if pends && fits {
            batch.push(message(&somebody(1, 2, 1)));
        } else if pends {
            let more = net.send(&message(&somebody(1, 2, 1)));
            assert_eq!(net.answers(&[more]), [None]);
        }
        let tickets = net.send_batch(&batch);
        let before = if pends && !fits { 2 } else { 1 };
        net.finish();
        assert_eq!(net.accepted(&tickets), fits, "{:?}", net.answers(&tickets));
        assert!(net.accepted(&[there]));
        assert_eq!(net.live_at_rest(), before + if fits { batch.len() as u64 } else { 0 });
    }
}

#[test]
fn what_a_batch_may_be_in_all_is_said_by_the_first_shard_before_anything_is_held() {
    let bytes: u64 = one_each(&[0, 1, 1], 2).iter().map(|message| message.cost() + 1024).sum();
    for (max, fits) in [(bytes - 1, false), (bytes, true), (bytes + 1, true)] {
        let config = Config { max_commit_bytes: NonZeroU64::new(max).unwrap(), ..Config::default() };
        let mut net = Net::with(2, config);
        let tickets = net.send_batch(&one_each(&[0, 1, 1], 2));
        assert_eq!(net.answers(&tickets)[0].is_none(), fits);
        net.finish();
        assert_eq!(net.live_at_rest(), if fits { 3 } else { 0 });
    }
    let config = Config { max_commit_bytes: NonZeroU64::new(1 << 24).unwrap(), ..Config::default() };
    for (n, fits) in [(1023, true), (MAX_BATCH_MESSAGES, true), (1025, false)] {
        let mut net = Net::with(2, config.clone());
        let (one, other) = (somebody(0, 2, 0), somebody(1, 2, 0));
        let batch: Vec<_> =
            (0..n).map(|n| message(if n.is_multiple_of(2) { &one } else { &other })).collect();
        let tickets = net.send_batch(&batch);
        net.finish();
        assert_eq!(net.accepted(&tickets), fits);
        assert_eq!(net.live_at_rest(), if fits { n as u64 } else { 0 });
    }
    let mut net = Net::with(2, Config { max_payload_bytes: NonZeroUsize::new(8).unwrap(), ..config });
    let late = somebody(1, 2, 0);
    let volatile = to(&late).durability(Durability::Volatile).build().unwrap();
    let state = to(&late).collapse_key("state").build().unwrap();
    let large = Message::to(&*late, "chat.message", vec![0; 9]).build().unwrap();
    for (odd, why) in [
        (volatile, Refusal::VolatileInBatch),
        (state, Refusal::CollapseInBatch),
        (large, Refusal::PayloadTooLarge { bytes: 9, max: 8 }),
    ] {
        let tickets = net.send_batch(&[message(&late), odd, message(&somebody(0, 2, 0))]);
        assert_eq!(net.refusals(&tickets), [Refusal::OtherRefused, why, Refusal::OtherRefused]);
        assert_eq!(net.live_at_rest(), 0);
    }
}

/// The steps in the life of a batch for three shards.
const STEPS: usize = 7;

/// Lives so many of them.
fn live(net: &mut Net, batch: &[Message], steps: usize) {
    let mut tell = VecDeque::new();
    for step in 0..steps {
        match step {
            0 => drop(net.send_batch(batch)),
            1..=2 => assert!(net.pass()),
            // One group; each shard is told by itself.
            3 => tell.extend(net.append_joints(2)),
            _ => {
                let (joint, first, shard) = tell.pop_front().unwrap();
                net.rigs[shard].input(Input::JointPersisted { joint, first });
            }
        }
    }
    assert!(steps < STEPS || tell.is_empty());
}

#[test]
fn after_a_crash_between_any_two_steps_all_of_it_is_there_or_nothing_and_it_may_be_sent_again() {
    let batch = one_each(&[0, 1, 2, 1], 3);
    for steps in 0..=STEPS {
        let mut net = Net::new(3);
        live(&mut net, &batch, steps);
        // The process is gone; what is durable is replayed.
        let mut again = Net { next: Seq::first_of(Epoch(2)), last: 100, ..Net::new(3) };
        for (shard, rig) in again.rigs.iter_mut().enumerate() {
            let birth = Birth { shard: (shard, 3), epoch: Epoch(2), ..birth(Config::default()) };
            *rig = Rig::born(birth);
            let own = |(_, record): &&(Seq, Record)| Digester::new(7).shard(record.user(), 3) == shard;
            net.log.iter().filter(own).for_each(|(seq, record)| rig.machine.replay(*seq, record, true));
        }
        let durable = steps > 3;
        assert_eq!(again.live_at_rest(), if durable { 4 } else { 0 }, "after {steps} steps");
        let tickets = again.send_batch(&batch);
        again.finish();
        let answers = again.answers(&tickets);
        assert!(answers.iter().all(|answer| matches!(answer, Some(Ok(it)) if it.duplicate == durable)));
        assert_eq!(again.live_at_rest(), 4);
    }
}

#[test]
fn wherever_a_batch_is_refused_every_shard_before_has_given_everything_back() {
    type Trouble = fn(&mut Net);
    let troubles: [(Trouble, Refusal); 3] = [
        (|net| net.rigs[2].input(Input::Drain), Refusal::ShuttingDown),
        (|net| net.rigs[2].input(Input::Writable(false)), Refusal::Degraded),
        (
            |net| {
                // The driver of shard 2 is gone: shard 1 has its word back.
                let (shard, word) = net.rigs[1].told.remove(0);
                assert_eq!(shard, 2);
                net.rigs[1].input(Input::Untold(word));
            },
            Refusal::ShuttingDown,
        ),
    ];
    for (trouble, refusal) in troubles {
        let mut net = Net::new(3);
        let tickets = net.send_batch(&one_each(&[0, 1, 2], 3));
        assert!(net.pass());
        assert_eq!(net.rigs.iter().map(|rig| rig.machine.stats().reservations).sum::<u64>(), 2);
        trouble(&mut net);
        net.finish();
        assert_eq!(net.refusals(&tickets), [(); 3].map(|()| refusal.clone()));
        assert_eq!(net.live_at_rest(), 0);
    }
}

#[test]
fn a_failed_group_refuses_every_part_and_says_when_nobody_knows() {
    for (unknown, refusal) in [(true, Refusal::OutcomeUnknown), (false, Refusal::Degraded)] {
        let mut net = Net::new(2);
        let batch = one_each(&[0, 1], 2);
        let tickets = net.send_batch(&batch);
        // A repeat waits for it. What nobody knows of it, nobody knows of the repeat.
        let repeat = net.send(&batch[0]);
        net.pass_all();
        let (joint, _) = net.rigs[1].joints.remove(0);
        for shard in [0, 1] {
            net.rigs[shard].input(Input::Writable(false));
            net.rigs[shard].input(Input::JointFailed { joint, unknown });
        }
        assert_eq!(net.refusals(&tickets), [refusal.clone(), refusal.clone()]);
        assert_eq!(net.refusals(&[repeat]), [refusal]);
        assert_eq!(net.live_at_rest(), 0);
    }
}

/// What fails together with a message from before must not be stored without it.
#[test]
fn a_part_says_of_how_many_failures_its_shard_knew_when_it_reserved() {
    let mut net = Net::new(2);
    net.rigs[0].input(Input::Writable(false));
    net.rigs[0].input(Input::Writable(true));
    net.send_batch(&one_each(&[0, 1], 2));
    net.rigs[1].input(Input::Writable(false));
    net.rigs[1].input(Input::Writable(true));
    // Before the word has come.
    net.rigs[0].input(Input::Writable(false));
    net.rigs[0].input(Input::Writable(true));
    net.rigs[1].input(Input::Writable(false));
    net.rigs[1].input(Input::Writable(true));
    net.pass_all();
    let (_, parts) = net.rigs[1].joints.remove(0);
    assert_eq!(parts.iter().map(|part| part.generation).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_repeat_of_what_a_batch_holds_waits_and_is_taken_by_itself_when_the_batch_is_refused() {
    for full in [false, true] {
        let config =
            Config { max_user_messages: core::num::NonZeroU32::new(2).unwrap(), ..Config::default() };
        let mut net = Net::with(2, config);
        let late = somebody(1, 2, 0);
        let old = message(&somebody(0, 2, 1));
        net.send(&old);
        for _ in 0..if full { 2 } else { 1 } {
            net.send(&message(&late));
        }
        net.finish();
        let before = net.live_at_rest();
        let batch = vec![message(&somebody(0, 2, 0)), message(&somebody(0, 2, 1)), message(&late)];
        let tickets = net.send_batch(&batch);
        // A send, a batch for one shard, and a replacement.
        let single = net.send(&batch[0]);
        let (own, other) = (Ticket(1000), Ticket(1001));
        let within = vec![(own, batch[0].clone()), (other, message(&somebody(0, 2, 0)))];
        net.rigs[0].input(Input::SendBatch(within));
        let target = Target { user: old.recipient().clone(), id: old.id(), sender: None };
        let operation = Operation::Replace(target, batch[1].clone());
        net.rigs[0].input(Input::Operate { ticket: Ticket(1002), operation });
        assert_eq!(net.answers(&[single, own, other]), [None, None, None]);
        assert!(net.rigs[0].done.is_empty() && net.rigs[0].open.is_empty());
        net.finish();
        assert_eq!(net.accepted(&tickets), !full);
        let duplicate = |ticket| net.answers(&[ticket])[0].clone().unwrap().unwrap().duplicate;
        // Whoever comes first is the first; the other repeats it.
        assert_eq!((duplicate(single), duplicate(own), duplicate(other)), (!full, true, false));
        let replaced = net.rigs[0].done[0].1.as_ref().unwrap();
        assert_eq!(replaced.messages == 1, full);
        let expected = if full { before + 2 } else { before + 3 + 1 };
        assert_eq!(net.live_at_rest(), expected);
    }
}

#[test]
fn a_batch_waits_for_an_id_that_is_on_its_way_and_goes_on_however_that_ends() {
    for fails in [false, true] {
        let mut net = Net::new(2);
        let batch = one_each(&[0, 1], 2);
        let single = net.send(&batch[1]);
        let tickets = net.send_batch(&batch);
        net.pass_all();
        assert!(net.rigs[1].joints.is_empty(), "it may fail with what it repeats");
        if fails {
            let (commit, _) = net.rigs[1].open.pop_front().unwrap();
            net.rigs[1].input(Input::PersistFailed { commit, unknown: false });
            assert_eq!(net.refusals(&[single]), [Refusal::Degraded]);
        }
        net.finish();
        let answers: Vec<_> =
            net.answers(&tickets).into_iter().map(|answer| answer.unwrap().unwrap().duplicate).collect();
        assert_eq!(answers, [false, !fails]);
        assert_eq!(net.live_at_rest(), 2);
    }
}

#[test]
fn batches_that_cross_and_share_ids_wait_for_one_another_in_the_order_of_shards() {
    for refused in [false, true] {
        let max = if refused { 1 } else { 10 };
        let config =
            Config { max_user_messages: core::num::NonZeroU32::new(max).unwrap(), ..Config::default() };
        let mut net = Net::with(3, config);
        if refused {
            net.send(&message(&somebody(2, 3, 0)));
            net.finish();
        }
        let (one, two) = (message(&somebody(0, 3, 0)), message(&somebody(1, 3, 0)));
        let three = message(&somebody(2, 3, 0));
        let a = net.send_batch(&[three, two.clone(), one.clone()]);
        let b = net.send_batch(&[two.clone(), one.clone()]);
        let c = net.send_batch(&[one, two]);
        net.finish();
        // The first one is refused in the last shard: then the next one has what it held.
        assert_eq!(net.accepted(&a), !refused);
        assert_eq!(net.accepted(&b), refused);
        assert!(
            net.answers(&c).iter().all(|answer| matches!(answer, Some(Ok(accepted)) if accepted.duplicate))
        );
        assert_eq!(net.live_at_rest(), 3);
    }
}

#[test]
fn repeats_within_a_batch_and_of_a_whole_batch_are_recognised_without_a_commit() {
    let mut net = Net::new(2);
    let mut batch = one_each(&[0, 1], 2);
    batch.push(batch[1].clone());
    for duplicates in [[false, false, true], [true; 3]] {
        let tickets = net.send_batch(&batch);
        net.finish();
        let answers = net.answers(&tickets).into_iter().map(|answer| answer.unwrap().unwrap());
        let (entries, found): (Vec<_>, Vec<_>) =
            answers.map(|accepted| (accepted.entry, accepted.duplicate)).unzip();
        assert_eq!(found, duplicates);
        assert_eq!(entries[1], entries[2]);
        assert!(entries.iter().all(|entry| entry.seq != Seq::ZERO));
        assert_eq!((net.live_at_rest(), net.log.len()), (2, 2));
    }
    let duplicates: u64 = net.rigs.iter().map(|rig| rig.machine.stats().duplicates).sum();
    assert_eq!(duplicates, 4);
    // The same id with other contents, beside one that is known: refused, and the known one with it.
    let clash = to(&somebody(1, 2, 0)).id(batch[1].id()).priority(Priority::Low).build().unwrap();
    let tickets = net.send_batch(&[batch[0].clone(), clash]);
    net.finish();
    assert_eq!(net.refusals(&tickets), [Refusal::OtherRefused, Refusal::Conflict]);
    assert_eq!(net.live_at_rest(), 2);
}

#[test]
fn places_and_lanes_agree_about_what_came_between_reserving_and_committing() {
    let mut net = Net::new(2);
    let (early, late) = (somebody(0, 2, 0), somebody(1, 2, 0));
    net.rigs[0].attach(1, &early, "phone");
    net.next = net.next.max(net.rigs[0].next);
    let before = message(&early);
    let batch = vec![message(&early), message(&late)];
    let between = message(&early);
    let first = net.send(&before);
    let tickets = net.send_batch(&batch);
    let second = net.send(&between);
    net.pass_all();
    net.commit(0);
    net.commit(1);
    let seq = |ticket| net.answers(&[ticket])[0].clone().unwrap().unwrap().entry.seq;
    assert!(seq(first) < seq(second) && seq(second) < seq(tickets[0]));
    // One after the other, as the ordering key wants it.
    for n in 0..3 {
        let entry = net.rigs[0].offers[n].1.entry;
        let verdicts = vec![(entry, Verdict::Delivered)];
        net.rigs[0].input(Input::Verdicts { link: LinkId(1), verdicts });
    }
    let offered: Vec<_> = net.rigs[0].offers.iter().map(|(_, delivery)| delivery.message.id()).collect();
    assert_eq!(offered, [before.id(), between.id(), batch[0].id()]);
}

#[test]
fn a_batch_is_handed_out_after_what_its_last_shard_had_gathered_before() {
    let mut net = Net::new(2);
    net.send_batch(&one_each(&[0, 1], 2));
    let (_, word) = net.rigs[0].told.remove(0);
    let machine = &mut net.rigs[1].machine;
    let now = Timestamp::from_millis(1000);
    machine.handle(now, Input::Send { ticket: Ticket(50), message: message(&somebody(1, 2, 0)) });
    machine.handle(now, Input::Told(word));
    assert!(matches!(machine.poll_action(), Some(Action::Persist { .. })));
    assert!(matches!(machine.poll_action(), Some(Action::PersistJoint { .. })));
    assert!(machine.poll_action().is_none());
}

#[test]
fn a_batch_for_people_who_must_be_read_first_holds_nothing_when_they_cannot_be() {
    for fails in [false, true] {
        let mut net = Net::new(2);
        for shard in [0, 1] {
            let birth = Birth { store_empty: false, shard: (shard, 2), ..birth(Config::default()) };
            net.rigs[shard] = Rig::born(birth);
        }
        let tickets = net.send_batch(&one_each(&[0, 1], 2));
        for shard in [0, 1] {
            while let Some((load, query)) =
                (!net.rigs[shard].loads.is_empty()).then(|| net.rigs[shard].loads.remove(0))
            {
                let found = match query {
                    Query::Sender { .. } => Found::Sender(Vec::new()),
                    _ => Found::User { row: None, held: Some(held(0, 0)), reflects: Seq::ZERO },
                };
                let input = match fails && shard == 1 {
                    true => Input::LoadFailed(load),
                    false => Input::Loaded { load, found: Box::new(found) },
                };
                net.rigs[shard].input(input);
            }
            net.pass_all();
        }
        net.finish();
        match fails {
            true => assert_eq!(net.refusals(&tickets), [Refusal::StoreUnreadable, Refusal::StoreUnreadable]),
            false => assert!(net.accepted(&tickets)),
        }
        assert_eq!(net.live_at_rest(), if fails { 0 } else { 2 });
        assert!(!fails || net.rigs[0].machine.users.is_empty(), "somebody is held on to");
    }
}

/// A phone of Alice's, to which whatever is for her goes by a copy of its own; and messages for her and somebody of another shard.
fn with_phone() -> (Net, [Message; 2]) {
    let devices = crate::message::DevicePolicy::EveryDevice;
    let mut net = Net::with(2, Config { devices, ..Config::default() });
    let (mine, other) = (message("alice"), person_of_another_shard(&net, "alice"));
    let phone = DeviceId::new("phone").unwrap();
    net.operate(net.shard(&mine), Operation::Register(mine.recipient().clone(), phone));
    net.finish();
    (net, [mine, other])
}

#[test]
fn what_was_held_for_a_device_that_left_meanwhile_ends_with_it_and_its_slot_is_empty_for_the_next() {
    let (mut net, [mine, other]) = with_phone();
    let shard = net.shard(&mine);
    let (alice, named) = (mine.recipient().clone(), |name| DeviceId::new(name).unwrap());
    // Alice's shard holds its part, and the other one has not been asked yet.
    let tickets = net.send_batch(&[mine, other]);
    net.operate(shard, Operation::Unregister(alice.clone(), named("phone")));
    net.commit(shard);
    net.finish();
    assert!(net.accepted(&tickets));
    let counters = net.rigs[shard].machine.stats().counters;
    assert_eq!((counters.live(), counters.ended[EndReason::DeviceGone.index()]), (0, 1));
    net.operate(shard, Operation::Register(alice, named("tablet")));
    net.finish();
    net.rigs[shard].input(Input::Attach {
        link: LinkId(1),
        user: UserId::new("alice").unwrap(),
        device: named("tablet"),
    });
    net.finish();
    assert_eq!(net.rigs[shard].offers.len(), 0);
}

#[test]
fn what_was_held_for_a_device_is_not_left_in_its_slot_when_it_comes_while_the_rest_ends() {
    let (mut net, [mine, other]) = with_phone();
    let shard = net.shard(&mine);
    let (alice, named) = (mine.recipient().clone(), |name| DeviceId::new(name).unwrap());
    net.send(&message("alice"));
    net.finish();
    // Handed out for both shards, and not durable.
    let tickets = net.send_batch(&[mine, other]);
    net.pass_all();
    let last = net.rigs.iter().position(|rig| !rig.joints.is_empty()).unwrap();
    net.operate(shard, Operation::Unregister(alice.clone(), named("phone")));
    let (commit, records) = net.rigs[shard].open.pop_front().unwrap();
    let first = net.append(records);
    net.rigs[shard].input(Input::Persisted { commit, first });
    // Were it looked now what is left, the end of what waits would be on its way when the batch comes.
    for (joint, first, shard) in net.append_joints(last) {
        net.rigs[shard].input(Input::JointPersisted { joint, first });
    }
    net.finish();
    assert!(net.accepted(&tickets));
    let counters = net.rigs[shard].machine.stats().counters;
    assert_eq!((counters.live(), counters.ended[EndReason::DeviceGone.index()]), (0, 2));
    let left = net.rigs[shard].machine.snapshot(&alice).and_then(|user| user.devices);
    assert!(left.is_none_or(|left| left.is_empty()));
}
