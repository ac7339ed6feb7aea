//! Order, windows, batching, and consumers that are slow.

use super::*;

#[test]
fn what_waits_behind_a_message_that_was_not_taken_goes_back_and_is_not_sent_after_the_nack() {
    let mut config = SessionConfig::default();
    config.window.messages = 1;
    let mut pair = Pair::up(config);
    pair.server(Input::Offer([1, 2].map(|seq| item(seq, Priority::Normal, "room")).to_vec()));
    pair.run();
    let first = pair.taken();
    pair.client(Input::Verdicts(vec![(first[0].id, Verdict::Nack(None))]));
    pair.run();
    assert_eq!(pair.outcomes(), [(1, Outcome::Nack(None)), (2, Outcome::Busy(Duration::ZERO))]);
    assert!(pair.taken().is_empty(), "the second one would have come before the first");
}

#[test]
fn what_arrived_behind_a_message_that_was_not_taken_is_refused_even_when_the_peer_has_heard_meanwhile() {
    let mut pair = Pair::open();
    let room = |seq| item(seq, Priority::Normal, "room");
    pair.server(Input::Offer(vec![room(1)]));
    pair.run();
    let first = pair.taken();
    pair.server(Input::Offer(vec![room(2)]));
    pair.run();
    pair.client(Input::Verdicts(vec![(first[0].id, Verdict::Nack(None))]));
    pair.run();
    // Something else says that the nack was heard.
    pair.server(Input::Offer(vec![normal(3)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [3]);
    let outcomes = pair.outcomes();
    assert_eq!(outcomes[..2], [(1, Outcome::Nack(None)), (2, Outcome::Busy(Duration::ZERO))]);
    pair.server(Input::Offer(vec![room(1), room(2)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [1, 2]);
}

#[test]
fn what_was_lost_behind_a_message_that_was_not_taken_is_not_sent_again_before_it() {
    let mut pair = Pair::open();
    let room = |seq| item(seq, Priority::Normal, "room");
    pair.server(Input::Offer(vec![room(1)]));
    pair.run();
    let first = pair.taken();
    // The second one is lost, while the nack of the first is heard.
    pair.server(Input::Offer(vec![room(2)]));
    pair.wire.clear();
    pair.client(Input::Verdicts(vec![(first[0].id, Verdict::Nack(None))]));
    pair.run();
    pair.cut();
    pair.connect();
    pair.run();
    assert!(pair.taken().is_empty());
    assert_eq!(pair.outcomes(), [(1, Outcome::Nack(None)), (2, Outcome::Busy(Duration::ZERO))]);
    assert!(!pair.client_events.iter().any(|event| matches!(event, Event::Gap(..))), "it comes again");
}

#[test]
fn the_window_bounds_what_is_in_flight_and_critical_messages_have_a_reserve() {
    let config = SessionConfig {
        window: Window { messages: 2, bytes: 1 << 20, reserve: 1 },
        max_queue: 2,
        ..SessionConfig::default()
    };
    let mut pair = Pair::up(config);
    pair.server(Input::Offer((1..=2).map(normal).collect()));
    pair.server(Input::Offer((3..=6).map(normal).collect()));
    pair.server(Input::Offer(vec![item(7, Priority::Critical, "x")]));
    pair.run();
    let taken: Vec<_> = pair.taken().iter().map(|inbound| inbound.item.place.seq.get()).collect();
    assert_eq!(taken, [1, 2, 7]);
    let busy = Outcome::Busy(Duration::from_millis(500));
    assert_eq!(pair.outcomes(), [(5, busy.clone()), (6, busy)], "two wait, the others go back to the outbox");
}

#[test]
fn a_single_message_of_any_size_fits_into_an_empty_window() {
    let mut config = SessionConfig::default();
    config.window.bytes = 10;
    let mut pair = Pair::new(config);
    pair.connect();
    pair.run();
    let large = |seq| of(seq, Message::to("alice", "a.b", vec![0; 1000]).build().unwrap());
    pair.server(Input::Offer(vec![large(1), large(2)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [1]);
    assert_eq!(pair.deliver_all(), [2]);
    assert_eq!(violation(&pair.client_events), None);
}

#[test]
fn what_never_fits_into_a_frame_of_the_peer_fails_and_does_not_break_the_connection() {
    let mut config = SessionConfig::default();
    config.limits.max_frame = 16 << 10;
    let mut pair = Pair::up(config);
    let large = of(1, Message::to("alice", "a.b", vec![0; 17 << 10]).build().unwrap());
    pair.server(Input::Offer(vec![large, normal(2)]));
    pair.run();
    assert_eq!(pair.outcomes(), [(1, Outcome::Nack(None))]);
    assert_eq!(pair.deliver_all(), [2]);
}

#[test]
fn acknowledgements_are_aggregated_and_critical_ones_go_at_once() {
    let mut pair = Pair::open();
    pair.server(Input::Offer((1..=10).map(normal).collect()));
    pair.run();
    let taken = pair.taken();
    let (last, rest) = taken.split_last().unwrap();
    for inbound in rest {
        pair.client(Input::Verdicts(vec![(inbound.id, Verdict::Delivered)]));
    }
    assert!(pair.wire.is_empty(), "they wait for each other");
    assert_eq!(pair.client.poll_timeout(), Some(pair.now.after(Duration::from_millis(20))));
    pair.wait(Duration::from_millis(20));
    assert_eq!(pair.sends(), ["ack"]);
    pair.run();
    pair.server(Input::Offer(vec![item(11, Priority::Critical, "x")]));
    pair.run();
    let taken = pair.taken();
    pair.client(Input::Verdicts(vec![(taken[0].id, Verdict::Delivered)]));
    assert_eq!(pair.sends(), ["ack"]);
    pair.run();
    pair.client(Input::Verdicts(vec![(last.id, Verdict::Delivered)]));
    assert_eq!(pair.sends(), ["ack"], "there is nothing left to wait for");
}

#[test]
fn what_is_said_of_a_gap_waits_no_longer_than_of_a_message() {
    let mut pair = Pair::open();
    pair.server(Input::Gap(Missed::new(3, GapReason::Overflow)));
    pair.run();
    assert_eq!(pair.server_events, [Event::GapsHeard(true)], "nothing else was under way");
}

#[test]
fn gaps_that_are_alike_come_as_one_with_all_their_places_and_others_by_themselves() {
    let window = Window { messages: 1, bytes: 1 << 20, reserve: 0 };
    let mut pair = Pair::up(SessionConfig { window, ..SessionConfig::default() });
    let missed = |count, reason, lane, first, last| {
        Missed::new(count, reason).between(lane, Seq::new(first), Seq::new(last))
    };
    let (expired, normal, high) = (GapReason::Expired, LaneId::Normal, LaneId::High);
    // Behind a message without a verdict there is no room for them in the end.
    pair.server(Input::Offer(vec![super::normal(1)]));
    pair.run();
    let under_way = pair.taken();
    for _ in 0..40 {
        pair.server(Input::Gap(Missed::new(1, GapReason::Damaged)));
        pair.run();
    }
    pair.clear();
    for more in [
        missed(3, expired, normal, 17, 19),
        missed(1, expired, high, 5, 5),
        missed(2, expired, normal, 2, 9),
        missed(1, GapReason::Overflow, normal, 30, 30),
        Missed::new(1, expired),
    ] {
        pair.server(Input::Gap(more));
    }
    pair.run();
    assert!(pair.client_events.is_empty(), "{:?}", pair.client_events);
    pair.client(Input::Verdicts(vec![(under_way[0].id, Verdict::Delivered)]));
    pair.wait(Duration::from_millis(20));
    pair.run();
    let heard = pair.client_events.iter().filter_map(|event| match event {
        Event::Gap(missed) if missed.reason != GapReason::Damaged => Some(*missed),
        _ => None,
    });
    assert_eq!(
        heard.collect::<Vec<_>>(),
        [
            missed(5, expired, normal, 2, 19),
            missed(1, expired, high, 5, 5),
            missed(1, GapReason::Overflow, normal, 30, 30),
            Missed::new(1, expired),
        ]
    );
}

/// Found by a review: a small one of a lower lane took the room each time.
#[test]
fn what_does_not_fit_into_the_window_is_not_overtaken_by_what_is_less_urgent() {
    let mut config = SessionConfig::default();
    config.window.bytes = 3000;
    let mut pair = Pair::up(config);
    let of_size = |seq, priority, bytes| {
        of(seq, Message::to("alice", "a.b", vec![0; bytes]).priority(priority).build().unwrap())
    };
    let offered = vec![
        of_size(1, Priority::Normal, 1000),
        of_size(2, Priority::Normal, 2500),
        of_size(3, Priority::Low, 10),
    ];
    pair.server(Input::Offer(offered));
    pair.run();
    assert_eq!(pair.deliver_all(), [1]);
    assert_eq!(pair.deliver_all(), [2, 3]);
}

/// Found by a review: what only waited for room burned attempts until it was a dead letter.
#[test]
fn what_waits_too_long_for_a_window_that_moves_goes_back_and_costs_no_attempt() {
    let window = Window { messages: 1, bytes: 1 << 20, reserve: 0 };
    let mut pair = Pair::up(SessionConfig { window, ..SessionConfig::default() });
    pair.server(Input::Offer((1..=4).map(normal).collect()));
    pair.run();
    for seq in 1..=2 {
        pair.wait(Duration::from_secs(9));
        assert_eq!(pair.deliver_all(), [seq]);
    }
    pair.outcomes();
    pair.wait(Duration::from_secs(2));
    pair.run();
    assert_eq!(pair.outcomes(), [(4, Outcome::Busy(Duration::ZERO))], "the third is with the peer");
    assert!(!pair.server_events.contains(&Event::Parked(true)), "it takes something");
}

#[test]
fn messages_linger_for_others_and_critical_ones_take_them_along() {
    let config = SessionConfig { linger: Duration::from_millis(50), ..SessionConfig::default() };
    let mut pair = Pair::new(config);
    pair.connect();
    pair.run();
    pair.server(Input::Offer(vec![normal(1)]));
    assert!(pair.wire.is_empty());
    assert_eq!(pair.server.poll_timeout(), Some(pair.now.after(Duration::from_millis(50))));
    pair.wait(Duration::from_millis(10));
    pair.server(Input::Offer(vec![item(2, Priority::Critical, "x")]));
    assert_eq!(pair.sends(), ["deliver"]);
    pair.run();
    assert_eq!(pair.deliver_all(), [2, 1]);
    pair.server(Input::Offer(vec![normal(3)]));
    pair.wait(Duration::from_millis(50));
    assert_eq!(pair.sends(), ["deliver"]);
}

#[test]
fn a_slow_consumer_is_slowed_then_parked_and_goes_on_when_it_takes_something() {
    let mut pair = Pair::open();
    pair.server(Input::Offer((1..=64).map(normal).collect()));
    pair.server(Input::Offer((65..=70).map(normal).collect()));
    pair.run();
    let taken = pair.taken();
    for _ in 0..6 {
        pair.wait(Duration::from_secs(10));
        pair.run();
    }
    assert!(pair.server_events.contains(&Event::Parked(true)));
    let busy = Outcome::Busy(Duration::from_millis(500));
    assert_eq!(pair.outcomes(), (65..=70).map(|seq| (seq, busy.clone())).collect::<Vec<_>>());
    pair.server(Input::Offer(vec![normal(65)]));
    assert_eq!(pair.outcomes(), [(65, busy)]);
    pair.client(Input::Verdicts(taken.into_iter().map(|inbound| (inbound.id, Verdict::Delivered)).collect()));
    pair.run();
    assert!(pair.server_events.contains(&Event::Parked(false)));
    pair.server(Input::Offer(vec![normal(65)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [65]);
}

#[test]
fn what_goes_to_a_peer_that_does_not_acknowledge_is_unconfirmed() {
    let config = SessionConfig { capabilities: Capabilities::NONE, ..SessionConfig::default() };
    let mut pair = Pair::up(config);
    let conn = pair.server.connection().unwrap();
    assert!(pair.server.wants_written(conn));
    pair.server(Input::Offer(vec![normal(1), normal(2)]));
    assert!(pair.outcomes().is_empty(), "the transport has not taken them");
    pair.server(Input::Written(conn));
    assert_eq!(pair.outcomes(), [(1, Outcome::Unconfirmed), (2, Outcome::Unconfirmed)]);
}

/// Found by a review: a whole outbox ended before anything was written.
#[test]
fn to_a_peer_that_does_not_acknowledge_no_more_is_sent_than_a_window_until_it_is_written() {
    let window = Window { messages: 2, bytes: 1 << 20, reserve: 0 };
    let config = SessionConfig { capabilities: Capabilities::NONE, window, ..SessionConfig::default() };
    let mut pair = Pair::up(config);
    pair.server(Input::Offer((1..=5).map(normal).collect()));
    pair.cut();
    assert!(!pair.outcomes().iter().any(|(_, outcome)| *outcome == Outcome::Unconfirmed));
}

fn withdrawals(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::Withdrawn(_))).count()
}

#[test]
fn what_is_no_longer_wanted_is_not_sent_refused_if_nobody_has_begun_and_told_of_otherwise() {
    let window = Window { messages: 2, bytes: 1 << 20, reserve: 0 };
    let mut pair = Pair::up(SessionConfig { window, ..SessionConfig::default() });
    pair.server(Input::Offer((1..=3).map(normal).collect()));
    pair.run();
    let begun = pair.client.take(1);
    pair.server(Input::Withdraw((1..=3).map(|seq| normal(seq).place).collect()));
    pair.run();
    assert_eq!(withdrawals(&pair.client_events), 1);
    assert!(pair.client_events.contains(&Event::Withdrawn(begun[0].id)));
    assert!(pair.taken().is_empty(), "nobody begins with the others");
    assert!(pair.outcomes().is_empty(), "and nothing comes of them");
    // Somebody has answered all the same.
    pair.client(Input::Verdicts(vec![(begun[0].id, Verdict::Delivered)]));
    pair.run();
    assert_eq!(pair.outcomes(), [(1, Outcome::Delivered)]);
    pair.server(Input::Offer(vec![normal(4), normal(5)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [4, 5], "the window is free");
}

#[test]
fn a_withdrawal_that_was_lost_is_said_again_after_a_resume() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    let begun = pair.taken();
    pair.server(Input::Withdraw(vec![normal(1).place]));
    pair.cut();
    pair.clear();
    pair.connect();
    pair.run();
    assert!(pair.client_events.contains(&Event::Withdrawn(begun[0].id)));
    let refused = Verdict::Rejected(Code::Withdrawn);
    pair.client(Input::Verdicts(vec![(begun[0].id, refused)]));
    pair.run();
    assert!(pair.outcomes().is_empty(), "its sender knows");
    assert!(pair.server.is_quiet());
}

#[test]
fn a_peer_that_knows_of_no_withdrawals_is_not_told_of_any() {
    let capabilities = Capabilities::ACKS.or(Capabilities::PUBLISH);
    let mut pair = Pair::up(SessionConfig { capabilities, ..SessionConfig::default() });
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    pair.server(Input::Withdraw(vec![normal(1).place]));
    assert!(pair.wire.is_empty());
    assert_eq!(pair.deliver_all(), [1]);
}

#[test]
fn a_withdrawal_of_what_never_came_is_a_violation() {
    let mut pair = Pair::open();
    let conn = pair.client.connection().unwrap();
    pair.client(Input::Frame(conn, Frame::Withdraw(Range { from: 1, to: 1 })));
    assert_eq!(violation(&pair.client_events), Some(Code::OutOfOrder));
}

/// Found by a review: it was parked for ever, for it never acknowledges anything.
#[test]
fn a_peer_that_does_not_acknowledge_and_was_slow_to_take_something_goes_on_once_it_has() {
    let config = SessionConfig { capabilities: Capabilities::NONE, ..SessionConfig::default() };
    let mut pair = Pair::up(config);
    let conn = pair.server.connection().unwrap();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    for _ in 0..3 {
        pair.wait(Duration::from_secs(8));
        pair.run();
    }
    assert!(pair.server_events.contains(&Event::Parked(true)));
    pair.server(Input::Written(conn));
    assert!(pair.server_events.contains(&Event::Parked(false)));
    pair.outcomes();
    pair.server(Input::Offer(vec![normal(2)]));
    assert_eq!(pair.sends(), ["deliver"]);
}

/// Found by a review: whoever repeated it made the other end remember it each time.
#[test]
fn of_a_withdrawal_that_is_repeated_the_host_is_told_once() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    let _begun = pair.taken();
    let conn = pair.client.connection().unwrap();
    for _ in 0..3 {
        pair.client(Input::Frame(conn, Frame::Withdraw(Range { from: 1, to: 1 })));
    }
    assert_eq!(withdrawals(&pair.client_events), 1);
}

/// Found by a review: a handler that takes minutes over one message, while what is behind it expires, had its session
/// closed, again and again, and was given the message once more.
#[test]
fn gaps_behind_a_message_without_a_verdict_stay_within_what_the_peer_takes() {
    let window = Window { messages: 2, bytes: 1 << 20, reserve: 0 };
    let mut pair = Pair::up(SessionConfig { window, ..SessionConfig::default() });
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    let under_way = pair.taken();
    for round in 0..40 {
        let reason = if round % 2 == 0 { GapReason::Expired } else { GapReason::Overflow };
        pair.server(Input::Gap(Missed::new(1, reason)));
        pair.run();
        pair.client(Input::Verdicts(vec![(under_way[0].id, Verdict::Progress)]));
        pair.wait(Duration::from_millis(20));
        pair.run();
    }
    assert!(pair.disconnects.is_empty(), "{:?}", pair.disconnects);
    pair.client(Input::Verdicts(vec![(under_way[0].id, Verdict::Delivered)]));
    pair.wait(Duration::from_millis(20));
    pair.run();
    let missed = |event: &Event| if let Event::Gap(missed) = event { missed.count } else { 0 };
    assert_eq!(pair.client_events.iter().map(missed).sum::<u64>(), 40);
    assert!(pair.outcomes().contains(&(1, Outcome::Delivered)));
}

#[test]
fn a_peer_whose_session_begins_anew_is_parked_no_more() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    pair.wait(SessionConfig::default().park_after);
    assert!(pair.server_events.contains(&Event::Parked(true)));
    pair.server.forget();
    pair.wait(Duration::ZERO);
    assert!(pair.server_events.contains(&Event::Parked(false)));
}

#[test]
fn a_window_alone_is_no_sign_that_a_parked_peer_takes_anything() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    pair.wait(Duration::from_secs(20));
    assert!(pair.server_events.contains(&Event::Parked(true)));
    pair.client(Input::Window(pair.config.window));
    assert_eq!(pair.sends().last(), Some(&"ack"));
    pair.run();
    assert!(!pair.server_events.contains(&Event::Parked(false)));
    pair.deliver_all();
    assert!(pair.server_events.contains(&Event::Parked(false)));
}
