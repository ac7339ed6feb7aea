//! Delivery: order, windows, attempts, ends.

use super::*;

#[test]
fn an_acknowledgement_frees_the_window_at_once_but_is_announced_when_durable() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, Verdict::Delivered)] });
    assert_eq!(rig.machine.stats().in_flight, 0);
    let delivered = |rig: &Rig| rig.changes.iter().any(|c| c.status == Status::Ended(EndReason::Delivered));
    assert!(!delivered(&rig));
    rig.commit();
    assert!(delivered(&rig));
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

#[test]
fn an_answer_is_handed_out_with_its_message_which_it_ends_as_delivered_late_or_not() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let (at_once, later) = (message("alice"), message("alice"));
    let (first, second) = (rig.accept(&at_once), rig.accept(&later));
    let yes = bytes::Bytes::from_static(b"yes");
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(first, Verdict::Replied(yes.clone()))] });
    assert_eq!(rig.replies, [(at_once.clone(), yes.clone())]);
    // The connection breaks, and the answer comes over the next one before the message is offered again.
    rig.input(Input::Detach(LinkId(1)));
    rig.input(Input::Attach {
        link: LinkId(2),
        user: "alice".try_into().unwrap(),
        device: "phone".try_into().unwrap(),
    });
    rig.input(Input::Verdicts { link: LinkId(2), verdicts: vec![(second, Verdict::Replied(yes.clone()))] });
    rig.commit();
    assert_eq!(rig.replies, [(at_once, yes.clone()), (later, yes)]);
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Delivered.index()], 2);
}

#[test]
fn a_key_waits_for_its_failed_message_while_other_keys_go_on() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let a1 = rig.accept(&to("alice").ordering_key("a").build().unwrap());
    rig.say(1, a1, Verdict::Nack(None));
    let a2 = rig.accept(&to("alice").ordering_key("a").build().unwrap());
    let b1 = rig.accept(&to("alice").ordering_key("b").build().unwrap());
    assert_eq!(rig.offered(), [a1, b1]);
    rig.pass(Duration::from_secs(400));
    assert_eq!(rig.offered(), [a1, b1, a1, a2]);
    assert_eq!(rig.offers[2].1.attempts, 1);
    assert!(rig.offers[2].1.redelivered && !rig.offers[3].1.redelivered);
}

#[test]
fn a_lost_connection_burns_no_attempt_and_keeps_order() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entries: Vec<_> = (0..3).map(|_| rig.accept(&message("alice"))).collect();
    rig.input(Input::Detach(LinkId(1)));
    rig.offers.clear();
    rig.attach(2, "alice", "phone");
    assert_eq!(rig.offered(), entries);
    assert!(rig.offers.iter().all(|(_, d)| d.attempts == 0));
    assert!(rig.offers[0].1.redelivered);
}

/// Found by review: a sink that confirmed and was detached at once was heard of as detached first, and what it had confirmed was
/// delivered to the next one as well.
#[test]
fn what_a_sink_confirmed_before_it_was_gone_counts_though_it_is_heard_afterwards() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let [waits, flies, refused] =
        ["a", "b", "c"].map(|key| rig.accept(&to("alice").ordering_key(key).build().unwrap()));
    rig.input(Input::Detach(LinkId(1)));
    rig.say(1, waits, Verdict::Delivered);
    rig.attach(2, "alice", "tablet");
    assert_eq!(rig.offered(), [waits, flies, refused, flies, refused]);
    let answer = bytes::Bytes::from_static(b"yes");
    rig.say(1, flies, Verdict::Replied(answer.clone()));
    rig.say(1, refused, Verdict::Rejected);
    rig.commit();
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.ended[EndReason::Delivered.index()], counters.live()), (2, 1));
    assert_eq!(rig.replies.iter().map(|(_, reply)| reply.clone()).collect::<Vec<_>>(), [answer]);
    assert_eq!((rig.machine.stats().in_flight, rig.machine.stats().stray_verdicts), (1, 1));
}

#[test]
fn so_many_sinks_that_have_gone_may_still_be_heard_of_and_no_more() {
    for (others, delivered) in [(-1, 1), (0, 0), (1, 0)] {
        let others = super::super::verdict::MAX_GONE as i64 + others;
        let mut rig = Rig::new();
        rig.attach(1, "alice", "phone");
        let entry = rig.accept(&message("alice"));
        rig.input(Input::Detach(LinkId(1)));
        for link in 2..2 + others as u64 {
            rig.attach(link, "bob", "phone");
            rig.input(Input::Detach(LinkId(link)));
        }
        rig.say(1, entry, Verdict::Delivered);
        rig.commit();
        let stats = rig.machine.stats();
        assert_eq!(stats.counters.ended[EndReason::Delivered.index()], delivered, "{others}");
        assert_eq!(stats.stray_verdicts, 1 - delivered);
    }
}

#[test]
fn an_attempt_ends_at_the_budget_as_dead() {
    let config = Config { max_attempts: core::num::NonZeroU32::new(3).unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    rig.attach(1, "alice", "phone");
    rig.accept(&message("alice"));
    for _ in 0..10 {
        rig.pass(Duration::from_secs(400));
    }
    assert_eq!(rig.offers.len(), 3);
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Dead.index()], 1);
}

/// Found by the simulator, when it began to count what is being retried: each crash gave a message all of its attempts anew.
#[test]
fn attempts_from_before_a_crash_count_against_the_budget() {
    let config = Config { max_attempts: core::num::NonZeroU32::new(3).unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.say(1, entry, Verdict::Nack(None));
    rig.pass(Duration::from_secs(400));
    rig.say(1, entry, Verdict::Nack(None));
    assert_eq!((rig.machine.stats().counters.backlog.retrying(), rig.offers.len()), (1, 2));
    let mut reborn =
        Rig { machine: rig.replayed(), next: Seq::first_of(Epoch(2)), now: rig.now, ..Rig::new() };
    assert_eq!(reborn.machine.stats().counters.backlog.retrying(), 1);
    reborn.attach(1, "alice", "phone");
    reborn.pass(Duration::from_secs(400));
    reborn.say(1, entry, Verdict::Nack(None));
    let counters = reborn.machine.stats().counters;
    assert_eq!(counters.ended[EndReason::Dead.index()], 1);
    assert_eq!((counters.backlog.retrying(), counters.backlog.depth(entry.lane)), (0, 0));
}

#[test]
fn a_message_expires_in_flight_and_a_late_confirmation_upgrades_it() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&to("alice").ttl(Duration::from_secs(1)).build().unwrap());
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Expired.index()], 1);
    assert!(rig.changes.last().unwrap().possibly_delivered);
    rig.say(1, entry, Verdict::Delivered);
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.ended[EndReason::Expired.index()], counters.ended[0], counters.upgraded), (0, 1, 1));
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!(rig.machine.stats().counters.upgraded, 1);
}

#[test]
fn a_full_window_leaves_room_for_critical_messages_only() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    for i in 0..80 {
        rig.accept(&to("alice").ordering_key(format!("k{i}")).build().unwrap());
    }
    assert_eq!(rig.offers.len(), 64);
    let ring = rig.accept(&to("alice").priority(Priority::Critical).build().unwrap());
    assert_eq!(rig.offers.len(), 65);
    assert_eq!(rig.offers[64].1.entry, ring);
}

#[test]
fn critical_goes_first_and_every_lane_gets_its_turn() {
    let share = |bytes| core::num::NonZeroU32::new(bytes).unwrap();
    let config = Config { shares: [share(1), share(400), share(200), share(100)], ..Config::default() };
    let mut rig = Rig::with(config);
    for i in 0..40 {
        for priority in Priority::ALL {
            rig.accept(&to("alice").priority(priority).ordering_key(format!("k{i}")).build().unwrap());
        }
    }
    rig.attach(1, "alice", "phone");
    let lanes: Vec<_> = rig.offered().iter().map(|entry| entry.lane).collect();
    assert!(lanes[..16].iter().all(|lane| *lane == Priority::Critical));
    for priority in Priority::ALL {
        assert!(lanes.contains(&priority.into()), "{priority:?} starves in {lanes:?}");
    }
    let first_round: Vec<_> = lanes[16..].iter().take_while(|lane| **lane != Priority::Critical).collect();
    let count = |priority| first_round.iter().filter(|lane| ***lane == priority).count();
    // 22 bytes a message: 400, 200 and 100 bytes are worth 18, 9 and 4 of them.
    assert_eq!([count(Priority::High), count(Priority::Normal), count(Priority::Low)], [18, 9, 4]);
}

#[test]
fn a_device_that_attaches_again_takes_over() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.attach(2, "alice", "phone");
    assert_eq!(rig.dismissed, [LinkId(1)]);
    assert_eq!(rig.offers.last().unwrap().0, LinkId(2));
    rig.say(2, entry, Verdict::Delivered);
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

/// Found by the simulator: the attempt's record put a message that was queued again back into its backoff.
#[test]
fn an_attempt_that_becomes_durable_late_does_not_hold_a_message_that_is_offered_again() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, Verdict::Nack(None))] });
    rig.now = rig.now.after(Duration::from_secs(400));
    rig.input(Input::Tick);
    assert_eq!(rig.offers.len(), 2);
    rig.commit();
    let statuses: Vec<_> = rig.changes.iter().map(|change| change.status).collect();
    assert_eq!(statuses, [Status::Sent, Status::Sent]);
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!(rig.machine.stats().counters.ended[0], 1);
    assert_eq!(rig.offers.len(), 2);
}

/// Found by the simulator: after a crash the dead message would have been offered behind one that came later.
#[test]
fn what_waits_behind_a_dead_message_goes_when_the_end_is_durable_and_not_before() {
    let config = Config { max_attempts: core::num::NonZeroU32::MIN, ..Config::default() };
    let mut rig = Rig::with(config);
    let first = rig.accept(&message("alice"));
    rig.attach(1, "alice", "phone");
    let second = rig.accept(&message("alice"));
    assert_eq!(rig.offered(), [first]);
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(first, Verdict::Nack(None))] });
    assert_eq!(rig.offered(), [first]);
    rig.commit();
    assert_eq!(rig.offered(), [first, second]);
}

/// Found by the simulator: at the gap bound only the first key in turn was looked at.
#[test]
fn at_the_gap_bound_the_oldest_message_goes_whoever_is_in_turn() {
    let one = core::num::NonZeroU32::MIN;
    let config = Config { max_gaps: core::num::NonZeroUsize::MIN, max_batch: one, ..Config::default() };
    let mut rig = Rig::with(config);
    let oldest = rig.accept(&to("alice").ordering_key("a").build().unwrap());
    let next = rig.accept(&to("alice").ordering_key("b").build().unwrap());
    rig.accept(&to("alice").ordering_key("c").build().unwrap());
    rig.attach(1, "alice", "phone");
    rig.say(1, oldest, Verdict::Nack(None));
    rig.say(1, next, Verdict::Delivered);
    rig.pass(Duration::from_secs(20));
    assert_eq!(rig.offered(), [oldest, next, oldest]);
}

/// Found by the simulator: read again from the store, the message no longer admitted that it had been offered.
#[test]
fn a_message_that_was_offered_is_not_dropped_from_the_memory_of_somebody_attached() {
    let (one, few) = (core::num::NonZeroUsize::MIN, core::num::NonZeroU32::MIN);
    let mut rig = Rig::with(Config { max_resident: one, max_in_flight: few, ..Config::default() });
    rig.attach(1, "alice", "phone");
    rig.attach(2, "alice", "tablet");
    let ttl = Duration::from_secs(20);
    let entries = ["a", "b"].map(|key| rig.accept(&to("alice").ordering_key(key).ttl(ttl).build().unwrap()));
    let (holder, _) = rig.offers.iter().find(|(_, delivery)| delivery.entry == entries[1]).unwrap();
    let holder = *holder;
    rig.input(Input::Detach(holder));
    settle(&mut rig);
    rig.pass(Duration::from_secs(90));
    let ends = rig.log.iter().filter_map(|(_, record)| match record {
        Record::End(end) => Some((end.seq, end.possibly_delivered)),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), entries.iter().map(|entry| (entry.seq, true)).collect::<Vec<_>>());
}

/// Found by the simulator: read again from the store before its failed attempt was durable, a message had none.
#[test]
fn a_failed_attempt_counts_also_when_everybody_leaves_before_it_is_durable() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&to("alice").ttl(Duration::from_secs(60)).build().unwrap());
    settle(&mut rig);
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, Verdict::Nack(None))] });
    rig.input(Input::Detach(LinkId(1)));
    rig.attach(2, "alice", "tablet");
    rig.pass(Duration::from_secs(90));
    let ends = rig.log.iter().filter_map(|(_, record)| match record {
        Record::End(end) => Some((end.seq, end.attempts)),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), [(entry.seq, 1)]);
    assert_eq!(rig.machine.stats().counters.backlog.retrying(), 0);
}

/// Found by review: nothing looked at them again before somebody came.
#[test]
fn who_left_before_a_failed_attempt_was_durable_takes_no_memory_afterwards() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    settle(&mut rig);
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, Verdict::Nack(None))] });
    rig.input(Input::Detach(LinkId(1)));
    assert_eq!(rig.machine.resident, 1);
    rig.commit();
    assert_eq!(rig.machine.resident, 0);
}

/// Found by review: the confirmation came while the end was on its way to the disk, and was thrown away.
#[test]
fn a_confirmation_that_comes_while_another_end_is_recorded_corrects_it() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&to("alice").ttl(Duration::from_secs(1)).build().unwrap());
    rig.now = rig.now.after(Duration::from_secs(2));
    rig.input(Input::Tick);
    let delivered = || Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, Verdict::Delivered)] };
    rig.input(delivered());
    rig.input(delivered());
    rig.commit();
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.ended[EndReason::Expired.index()], counters.ended[0], counters.upgraded), (0, 1, 1));
    let statuses: Vec<_> = rig.changes.iter().map(|change| change.status).collect();
    assert_eq!(statuses.last(), Some(&Status::Ended(EndReason::Delivered)));
}

/// Found by the simulator: what had been queued from memory was not looked at before something else happened.
#[test]
fn what_is_in_memory_beyond_the_queues_is_offered_when_they_run_low() {
    let one = core::num::NonZeroU32::MIN;
    for max_resident in [1, 2, 256] {
        let max_resident = core::num::NonZeroUsize::new(max_resident).unwrap();
        let mut rig = Rig::with(Config { max_resident, max_in_flight: one, ..Config::default() });
        let keys = ["a", "b", "a"];
        let entries: Vec<_> =
            (0..600).map(|n| rig.accept(&to("alice").ordering_key(keys[n % 3]).build().unwrap())).collect();
        rig.attach(1, "alice", "phone");
        // Confirmed one after the other, and recorded only when nothing more is offered.
        let mut delivered = 0;
        while delivered < rig.offers.len() {
            while let Some((_, delivery)) = rig.offers.get(delivered) {
                let verdicts = vec![(delivery.entry, Verdict::Delivered)];
                rig.input(Input::Verdicts { link: LinkId(1), verdicts });
                delivered += 1;
            }
            rig.commit();
        }
        let mut offered = rig.offered();
        for key in ["a", "b"] {
            let of_key = |n: &usize| keys[n % 3] == key;
            let accepted: Vec<_> = (0..600).filter(of_key).map(|n| entries[n]).collect();
            offered.retain(|entry| !accepted.contains(entry));
            let in_order = rig.offered().into_iter().filter(|entry| accepted.contains(entry));
            assert!(in_order.eq(accepted.iter().copied()));
        }
        assert_eq!((offered.len(), rig.machine.stats().counters.live()), (0, 0));
    }
}

#[test]
fn however_many_messages_expire_at_once_all_end() {
    let mut rig = Rig::new();
    for _ in 0..2000 {
        rig.accept(&to("alice").ttl(Duration::from_secs(1)).build().unwrap());
    }
    rig.attach(1, "alice", "phone");
    rig.pass(Duration::from_secs(2));
    for _ in 0..10 {
        rig.pass(Duration::from_millis(20));
    }
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Expired.index()], 2000);
}

/// Were it offered in the same batch, a crash and a clock that was set back would bring the expired one after it.
#[test]
fn what_waits_behind_a_message_found_expired_goes_when_the_end_is_durable() {
    let mut rig = Rig::new();
    let expired = rig.accept(&to("alice").ttl(Duration::from_secs(1)).build().unwrap());
    let behind = [rig.accept(&message("alice")), rig.accept(&message("alice"))];
    let other = rig.accept(&to("alice").ordering_key("another").build().unwrap());
    rig.attach(1, "alice", "phone");
    rig.input(Input::Detach(LinkId(1)));
    (rig.offers, rig.now) = (Vec::new(), rig.now.after(Duration::from_secs(2)));
    let (user, device) = (UserId::new("alice").unwrap(), DeviceId::new("phone").unwrap());
    rig.input(Input::Attach { link: LinkId(2), user, device });
    assert_eq!(rig.offered(), [other]);
    rig.commit();
    assert_eq!(rig.offered(), [other, behind[0], behind[1]]);
    assert!(
        rig.changes
            .iter()
            .any(|change| change.entry == expired && change.status == Status::Ended(EndReason::Expired))
    );
}

#[test]
fn a_message_expires_in_flight_also_after_a_backoff() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&to("alice").ttl(Duration::from_secs(20)).build().unwrap());
    rig.say(1, entry, Verdict::Nack(Some(Duration::from_secs(1))));
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.offered(), [entry, entry]);
    rig.pass(Duration::from_secs(19));
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Expired.index()], 1);
}

#[test]
fn a_backoff_from_before_a_jump_of_the_clock_lasts_no_longer_than_any_other() {
    let mut rig = Rig::new();
    let entry = rig.accept(&message("alice"));
    let (user, not_before) = (UserId::new("alice").unwrap(), rig.now.after(Duration::from_secs(1 << 30)));
    let attempt = crate::record::Attempt { user, lane: entry.lane, seq: entry.seq, attempts: 1, not_before };
    rig.log.push((rig.next, Record::Attempt(attempt)));
    let (machine, now) = (rig.replayed(), rig.now);
    let mut rig = Rig { machine, now, ..Rig::new() };
    rig.attach(1, "alice", "phone");
    assert!(rig.offers.is_empty());
    rig.pass(rig.machine.config.backoff_cap + Duration::from_millis(20));
    assert_eq!(rig.offered(), [entry]);
}

fn lingering() -> Rig {
    let mut rig = Rig::with(Config {
        linger: Duration::from_millis(50),
        max_batch: core::num::NonZeroU32::new(4).unwrap(),
        max_in_flight_bytes: NonZeroU64::new(10_000).unwrap(),
        ..Config::default()
    });
    rig.attach(1, "alice", "phone");
    rig
}

#[test]
fn messages_wait_for_others_as_long_as_they_are_told_and_go_together() {
    let mut rig = lingering();
    let one = rig.accept(&message("alice"));
    rig.pass(Duration::from_millis(30));
    let two = rig.accept(&message("alice"));
    rig.pass(Duration::from_millis(19));
    assert!(rig.offers.is_empty());
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.offered(), [one, two]);
    // What has waited long enough behind others does not wait anew.
    rig.accept(&message("alice"));
    rig.pass(Duration::from_millis(49));
    rig.input(Input::Verdicts {
        link: LinkId(1),
        verdicts: vec![(one, Verdict::Delivered), (two, Verdict::Delivered)],
    });
    assert_eq!(rig.offers.len(), 2);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.offers.len(), 3);
}

#[test]
fn a_full_batch_does_not_wait_in_messages_or_in_bytes() {
    for (n, waits) in [(3, true), (4, false), (5, false)] {
        let mut rig = lingering();
        for _ in 0..n {
            rig.accept(&message("alice"));
        }
        assert_eq!(rig.offers.len(), if waits { 0 } else { 4 }, "{n}");
        rig.pass(Duration::from_millis(50));
        assert_eq!(rig.offers.len(), n.min(4));
    }
    let overhead = Message::to("alice", "chat.message", "").build().unwrap().cost() as usize;
    for (bytes, waits) in [(9_999, true), (10_000, false), (10_001, false)] {
        let mut rig = lingering();
        rig.accept(&Message::to("alice", "chat.message", vec![0; bytes - overhead]).build().unwrap());
        assert_eq!(rig.offers.is_empty(), waits, "{bytes}");
    }
}

#[test]
fn critical_and_volatile_messages_take_along_what_waits() {
    for urgent in [to("alice").priority(Priority::Critical), to("alice").durability(Durability::Volatile)] {
        let mut rig = lingering();
        let one = rig.accept(&message("alice"));
        assert!(rig.offers.is_empty());
        rig.send(&urgent.build().unwrap());
        rig.commit();
        assert_eq!(rig.offers.len(), 2);
        assert!(rig.offered().contains(&one));
    }
}

#[test]
fn what_waits_behind_a_message_in_flight_is_no_company_for_others() {
    let mut rig = lingering();
    let of = |key: &str| to("alice").ordering_key(key).build().unwrap();
    rig.accept(&of("a"));
    rig.pass(Duration::from_millis(50));
    assert_eq!(rig.offers.len(), 1);
    for _ in 0..3 {
        rig.accept(&of("a"));
    }
    let other = rig.accept(&of("b"));
    assert_eq!(rig.offers.len(), 1);
    rig.pass(Duration::from_millis(50));
    assert_eq!(rig.offered()[1..], [other]);
}

/// Found by review: they would have waited until the clock had caught up.
#[test]
fn what_was_accepted_before_the_clock_was_set_back_does_not_wait_for_others() {
    let late = Timestamp::from_millis(1 << 40);
    let mut rig = Rig::with(Config { linger: Duration::from_millis(50), ..Config::default() });
    let accept = crate::record::Accept::new(message("alice"), late);
    rig.machine.replay(rig.next, &Record::Accept(std::sync::Arc::new(accept)), true);
    rig.next = rig.next.plus(1);
    rig.attach(1, "alice", "phone");
    assert_eq!(rig.offers.len(), 1);
}
