//! Handshakes, lives, and what is said again after a connection was lost.

use super::*;

#[test]
fn a_handshake_takes_one_round_trip() {
    let mut pair = Pair::new(SessionConfig::default());
    pair.connect();
    assert_eq!(pair.sends(), ["hello"]);
    pair.carry();
    assert_eq!(pair.sends(), ["welcome"]);
    assert_eq!(opened(&pair.server_events), Some(false));
    pair.carry();
    assert_eq!(opened(&pair.client_events), Some(false));
    assert!(pair.wire.is_empty());
}

#[test]
fn a_quiet_client_resumes_cleanly_with_nothing_replayed_and_no_gap() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [1]);
    pair.clear();
    pair.cut();
    pair.wait(Duration::from_secs(500));
    pair.connect();
    pair.run();
    assert_eq!((opened(&pair.client_events), opened(&pair.server_events)), (Some(true), Some(true)));
    assert!(pair.taken().is_empty());
    assert!(!pair.client_events.iter().any(|event| matches!(event, Event::Gap(..))));
    pair.server(Input::Offer(vec![normal(2)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [2]);
}

#[test]
fn what_was_lost_with_a_connection_is_sent_again_and_what_was_seen_is_not() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    let first = pair.taken();
    pair.server(Input::Offer(vec![normal(2)]));
    // The second one is lost, and so is the verdict on the first.
    pair.client(Input::Verdicts(vec![(first[0].id, Verdict::Delivered)]));
    pair.cut();
    pair.connect();
    pair.run();
    let again = (2, Outcome::Busy(Duration::ZERO));
    assert_eq!(pair.outcomes(), [again, (1, Outcome::Delivered)], "the verdict is said again");
    pair.server(Input::Offer(vec![normal(2)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [2]);
    assert_eq!(pair.outcomes(), [(2, Outcome::Delivered)]);
}

#[test]
fn an_acceptor_that_restarted_begins_a_new_life_and_no_old_number_means_anything_in_it() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1), normal(2)]));
    pair.run();
    let old = pair.taken();
    pair.client(Input::Offer(vec![normal(7)]));
    pair.cut();
    pair.server = Session::acceptor(pair.config.clone(), StreamId::from_u128(2), user(), device());
    pair.connect();
    pair.run();
    assert_eq!(opened(&pair.client_events), Some(false));
    let returned = Event::Outcomes(vec![(normal(7).place, Outcome::Disconnected)]);
    assert!(pair.client_events.contains(&returned), "{:?}", pair.client_events);
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    // Verdicts of the old life are not taken for verdicts of the new one.
    pair.client(Input::Verdicts(old.into_iter().map(|inbound| (inbound.id, Verdict::Delivered)).collect()));
    pair.wait(Duration::from_secs(1));
    pair.run();
    pair.outcomes();
    assert_eq!(pair.deliver_all(), [1]);
    assert_eq!(pair.outcomes(), [(1, Outcome::Delivered)]);
}

#[test]
fn a_welcome_that_pairs_a_new_epoch_with_an_old_number_is_refused() {
    let mut pair = Pair::open();
    pair.cut();
    let conn = pair.connect();
    let Some((_, _, Frame::Hello(hello))) = pair.wire.pop() else { panic!() };
    pair.server = Session::acceptor(pair.config.clone(), StreamId::from_u128(2), user(), device());
    pair.admit(conn, hello);
    let Some((_, _, Frame::Welcome(welcome))) = pair.wire.pop() else { panic!() };
    let position = crate::session::frame::Position { seen: 1, ..welcome.position };
    pair.client(Input::Frame(conn, Frame::Welcome(Box::new(Welcome { position, ..*welcome }))));
    assert_eq!(violation(&pair.client_events), Some(Code::OutOfOrder));
    assert_eq!(pair.client.connection(), None);
}

#[test]
fn a_takeover_freezes_the_old_connection_before_the_new_one_says_anything() {
    let mut pair = Pair::open();
    let mut other = Session::connector(pair.config.clone(), StreamId::from_u128(5), Some(user()), device());
    other.handle(pair.now, Input::Connected(ConnId(99), Credentials(Bytes::new())));
    let Some(Action::Send(_, Frame::Hello(hello), _)) = other.poll_action() else { panic!() };
    pair.server(Input::Offer(vec![normal(1)]));
    pair.wire.clear();
    pair.admit(ConnId(99), hello);
    let frames: Vec<_> = pair.wire.iter().map(|(conn, _, frame)| (conn.0, frame.name())).collect();
    assert_eq!(frames, [(1, "close"), (99, "welcome")]);
    assert_eq!(pair.disconnects, [(ConnId(1), Code::TakenOver)]);
    assert_eq!(pair.outcomes(), [(1, Outcome::Disconnected)]);
    // What the frozen connection still says is not heard.
    pair.server(Input::Frame(
        ConnId(1),
        Frame::Ack(Ack { ranges: vec![Range { from: 1, to: 9 }], window: None }),
    ));
    assert_eq!(violation(&pair.server_events), None);
    pair.run();
    assert!(pair.client.is_over(), "the one that was taken over does not come back by itself");
}

/// Found by the simulator of servers and clients: the connector was told that it had been taken over, by itself, and gave up.
#[test]
fn a_hello_that_was_held_up_takes_nothing_from_the_newer_connection_of_its_own_client() {
    let mut pair = Pair::new(SessionConfig::default());
    let old = pair.connect();
    let Some((_, _, Frame::Hello(held_up))) = pair.wire.pop() else { panic!() };
    let new = pair.connect();
    pair.run();
    assert_eq!(pair.server.connection(), Some(new));
    pair.clear();
    pair.admit(old, held_up);
    assert_eq!(pair.disconnects, [(old, Code::TransportSwitched)]);
    pair.run();
    assert_eq!((pair.server.connection(), pair.client.connection()), (Some(new), Some(new)));
    assert!(!pair.client_events.iter().any(|event| matches!(event, Event::Lost { .. })));
}

#[test]
fn a_switch_of_transport_loses_and_repeats_nothing() {
    let mut pair = Pair::open();
    pair.server(Input::Offer((1..=5).map(normal).collect()));
    pair.carry();
    pair.connect();
    pair.run();
    assert_eq!(opened(&pair.client_events), Some(true));
    assert_eq!(pair.deliver_all(), [1, 2, 3, 4, 5]);
    assert_eq!(pair.outcomes().len(), 5);
    assert_eq!(pair.server.connection(), Some(ConnId(2)));
}

#[test]
fn a_session_without_a_connection_is_kept_for_a_while_and_then_given_up() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.cut();
    pair.clear();
    pair.wait(Duration::from_secs(599));
    assert!(!pair.server.is_over());
    assert_eq!(pair.server.poll_timeout(), Some(pair.now.after(Duration::from_secs(1))));
    pair.wait(Duration::from_secs(1));
    assert!(pair.server.is_over());
    assert_eq!(pair.outcomes(), [(1, Outcome::Disconnected)]);
}

#[test]
fn volatile_messages_that_did_not_arrive_come_as_a_gap() {
    let mut pair = Pair::open();
    let volatile = |seq| {
        let message = Message::to("alice", "typing", "").durability(Durability::Volatile).build().unwrap();
        of(seq, message)
    };
    pair.server(Input::Offer(vec![normal(1 << 40), volatile(1), volatile(2)]));
    pair.cut();
    pair.connect();
    pair.run();
    assert!(
        pair.client_events.contains(&Event::Gap(Missed::new(2, GapReason::Volatile))),
        "{:?}",
        pair.client_events
    );
    let mut outcomes = pair.outcomes();
    outcomes.sort_by_key(|(seq, _)| *seq);
    let again = (1 << 40, Outcome::Busy(Duration::ZERO));
    assert_eq!(outcomes, [(1, Outcome::Unconfirmed), (2, Outcome::Unconfirmed), again]);
    pair.server(Input::Offer(vec![normal(1 << 40)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [1 << 40]);
    assert_eq!(pair.outcomes(), [(1 << 40, Outcome::Delivered)]);
}

/// Found by the simulator of servers and clients: what was offered meanwhile was sent before what went back.
#[test]
fn without_a_connection_nothing_is_taken_that_could_overtake_what_goes_back() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![item(1, Priority::Normal, "x")]));
    pair.cut();
    pair.server(Input::Offer(vec![item(1, Priority::Normal, "x"), item(2, Priority::Normal, "x")]));
    pair.connect();
    pair.run();
    assert!(pair.taken().is_empty());
    let busy = |seq, millis| (seq, Outcome::Busy(Duration::from_millis(millis)));
    assert_eq!(pair.outcomes(), [busy(1, 500), busy(2, 500), busy(1, 0)]);
}

/// Found by a review: a call was sent after the outage that had been answered, or cancelled, meanwhile.
#[test]
fn what_the_peer_had_not_seen_goes_back_when_the_connection_breaks_and_is_not_sent_again_by_itself() {
    let window = Window { messages: 2, bytes: 1 << 20, reserve: 0 };
    let mut pair = Pair::up(SessionConfig { window, ..SessionConfig::default() });
    pair.server(Input::Offer((1..=4).map(normal).collect()));
    pair.cut();
    let back = |seq| (seq, Outcome::Busy(Duration::ZERO));
    assert_eq!(pair.outcomes(), [back(3), back(4)], "they only waited");
    pair.connect();
    pair.run();
    assert_eq!(pair.outcomes(), [back(1), back(2)], "they were lost on their way");
    assert!(pair.taken().is_empty());
    assert!(!pair.client_events.iter().any(|event| matches!(event, Event::Gap(..))), "nobody misses them");
    // One of them has ended meanwhile.
    pair.server(Input::Offer(vec![normal(2), normal(3)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [2, 3]);
}

#[test]
fn a_host_can_tell_of_messages_that_will_not_come() {
    let mut pair = Pair::open();
    pair.server(Input::Gap(Missed::new(3, GapReason::Overflow)));
    pair.cut();
    pair.connect();
    pair.run();
    assert!(pair.server_events.contains(&Event::GapsHeard(false)), "it was lost: {:?}", pair.server_events);
    assert!(!pair.client_events.iter().any(|event| matches!(event, Event::Gap(..))));
    pair.server(Input::Gap(Missed::new(5, GapReason::Overflow)));
    pair.run();
    pair.wait(Duration::from_millis(20));
    pair.run();
    assert!(
        pair.client_events.contains(&Event::Gap(Missed::new(5, GapReason::Overflow))),
        "{:?}",
        pair.client_events
    );
    assert!(pair.server_events.contains(&Event::GapsHeard(true)));
}

/// Found by a review: that the peer had heard of one of them was taken for all.
#[test]
fn of_several_gaps_of_which_one_was_lost_it_is_not_said_that_all_were_heard() {
    let mut pair = Pair::open();
    // Something is under way, so that what the peer says of the first one waits.
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    let _under_way = pair.taken();
    pair.server(Input::Gap(Missed::new(3, GapReason::Overflow)));
    pair.run();
    pair.server(Input::Gap(Missed::new(2, GapReason::Expired)));
    // The second one is lost, and so is what the peer said of the first.
    pair.cut();
    pair.connect();
    pair.run();
    pair.wait(Duration::from_millis(20));
    pair.run();
    let heard = |event: &&Event| matches!(event, Event::GapsHeard(_));
    let heard: Vec<_> = pair.server_events.iter().filter(heard).collect();
    assert_eq!(heard, [&Event::GapsHeard(false)]);
}

#[test]
fn a_connector_that_resumed_says_at_once_that_it_has_taken_its_welcome_and_with_which_window() {
    let mut pair = Pair::open();
    pair.cut();
    pair.connect();
    pair.carry();
    pair.carry();
    let window = pair.config.window;
    let said = Frame::Ack(Ack { ranges: vec![], window: Some(window) });
    assert_eq!(pair.wire, [(ConnId(2), true, said)]);
}

/// Found by a review: the acceptor went on with the window that the hello had stated.
#[test]
fn a_window_that_was_changed_while_greeting_holds_from_the_welcome_on() {
    for (is_resumed, messages) in [(false, 1), (true, 1), (false, 200), (true, 200)] {
        let mut pair = Pair::new(SessionConfig::default());
        if is_resumed {
            pair.connect();
            pair.run();
            pair.cut();
        }
        pair.connect();
        let window = Window { messages, ..pair.config.window };
        pair.client(Input::Window(window));
        // What was stated may be used until the peer has heard of the other one.
        pair.carry();
        pair.server(Input::Offer((1..=3).map(normal).collect()));
        pair.run();
        assert_eq!(violation(&pair.client_events), None, "{is_resumed} {messages}");
        assert_eq!(pair.deliver_all(), [1, 2, 3]);
        pair.server(Input::Offer((4..=67).map(normal).collect()));
        pair.server(Input::Offer((68..=100).map(normal).collect()));
        pair.run();
        // Of what is offered no more than `max_queue` waits.
        let expected = if messages == 1 { 1 } else { 97 };
        assert_eq!(pair.taken().len(), expected, "{is_resumed} {messages}");
    }
}
