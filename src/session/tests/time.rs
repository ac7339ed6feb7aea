//! What time ends: half-open connections, credentials; and farewells.

use super::*;
use crate::session::Grade;

#[test]
fn both_ends_find_a_half_open_connection_and_resume_over_the_next() {
    let mut pair = Pair::open();
    for _ in 0..35 {
        pair.wire.clear();
        pair.wait(Duration::from_secs(1));
    }
    let code = |events: &[Event]| {
        events.iter().find_map(|event| match event {
            Event::Lost { code, advice, .. } => Some((*code, *advice)),
            _ => None,
        })
    };
    let expected = Some((Code::HeartbeatTimeout, Advice::Resume));
    assert_eq!((code(&pair.client_events), code(&pair.server_events)), (expected, expected));
    pair.wire.clear();
    pair.clear();
    pair.connect();
    pair.run();
    assert_eq!(opened(&pair.client_events), Some(true));
}

#[test]
fn credentials_are_renewed_on_a_live_session_or_end_it() {
    let mut pair = Pair::new(SessionConfig::default());
    let conn = pair.connect();
    let Some((_, _, Frame::Hello(hello))) = pair.wire.pop() else { panic!() };
    let grant = Grant { expires: Some(pair.now.after(Duration::from_secs(300))), ..pair.grant() };
    pair.server(Input::Admit { conn, hello, grant });
    pair.run();
    for _ in 0..24 {
        pair.wait(Duration::from_secs(10));
        pair.run();
    }
    assert!(pair.client_events.contains(&Event::RenewSoon));
    let newer = Credentials(Bytes::from_static(b"newer"));
    pair.client(Input::Renew(newer.clone()));
    pair.run();
    assert!(pair.server_events.contains(&Event::Authenticate(newer)));
    pair.server(Input::Renewed(Ok(Some(pair.now.after(Duration::from_secs(120))))));
    pair.run();
    for _ in 0..11 {
        pair.wait(Duration::from_secs(10));
        pair.run();
    }
    assert!(pair.server.connection().is_some(), "the old expiry does not count any more");
    pair.wait(Duration::from_secs(10));
    assert!(pair.server.is_over());
    assert_eq!(pair.disconnects, [(conn, Code::SessionExpired)]);
    pair.run();
    assert!(!pair.client.is_over(), "the client waits for credentials");
}

/// Open, with credentials that are good for so long.
fn good_for(lifetime: Duration) -> (Pair, ConnId) {
    let mut pair = Pair::new(SessionConfig::default());
    let conn = pair.connect();
    let Some((_, _, Frame::Hello(hello))) = pair.wire.pop() else { panic!() };
    let grant = Grant { expires: Some(pair.now.after(lifetime)), ..pair.grant() };
    pair.server(Input::Admit { conn, hello, grant });
    pair.run();
    (pair, conn)
}

#[test]
fn a_token_that_is_handed_out_again_shortly_before_it_expires_is_not_renewed_at_the_speed_of_the_line() {
    let (mut pair, _) = good_for(Duration::from_secs(59));
    let expires = pair.now.after(Duration::from_secs(59));
    let mut authenticated = 0;
    while pair.server.connection().is_some() {
        // A round trip.
        pair.wait(Duration::from_millis(20));
        pair.run();
        if pair.client_events.contains(&Event::RenewSoon) {
            pair.client_events.clear();
            pair.client(Input::Renew(Credentials(Bytes::from_static(b"the same"))));
            pair.run();
        }
        if pair.server_events.iter().any(|event| matches!(event, Event::Authenticate(_))) {
            pair.server_events.clear();
            authenticated += 1;
            pair.server(Input::Renewed(Ok(Some(expires))));
            pair.run();
        }
    }
    assert!((2..=8).contains(&authenticated), "{authenticated} times within a minute");
}

#[test]
fn a_host_that_has_no_new_credentials_at_first_is_asked_again_while_the_old_ones_are_good() {
    let (mut pair, _) = good_for(Duration::from_secs(240));
    let mut asked = 0;
    for _ in 0..239 {
        pair.wait(Duration::from_secs(1));
        pair.run();
        asked += pair.client_events.iter().filter(|event| **event == Event::RenewSoon).count();
        pair.client_events.clear();
    }
    assert_eq!(asked, 6, "later and later");
    pair.client(Input::Renew(Credentials(Bytes::from_static(b"at last"))));
    pair.run();
    pair.server(Input::Renewed(Ok(Some(pair.now.after(Duration::from_secs(240))))));
    pair.run();
    pair.wait(Duration::from_secs(10));
    assert!(pair.server.connection().is_some());
}

#[test]
fn a_peer_that_renews_all_the_time_has_one_question_under_way_and_one_a_second() {
    let (mut pair, _) = good_for(Duration::from_secs(3600));
    let asked = |pair: &mut Pair| {
        let events = core::mem::take(&mut pair.server_events).into_iter();
        let asked = events.filter_map(|event| match event {
            Event::Authenticate(credentials) => Some(credentials),
            _ => None,
        });
        asked.collect::<Vec<_>>()
    };
    let token = |n: u32| Credentials(n.to_string().into());
    for n in 0..100 {
        pair.client(Input::Renew(token(n)));
        pair.run();
    }
    assert_eq!(asked(&mut pair), [token(0)]);
    pair.server(Input::Renewed(Ok(Some(pair.now.after(Duration::from_secs(3600))))));
    pair.run();
    assert_eq!(asked(&mut pair), []);
    assert_eq!(pair.server.poll_timeout(), Some(pair.now.after(Duration::from_secs(1))));
    pair.wait(Duration::from_secs(1));
    assert_eq!(asked(&mut pair), [token(99)], "the newest alone");
}

#[test]
fn another_connection_is_not_taken_for_as_slow_as_the_one_before_it() {
    let mut pair = Pair::open();
    for _ in 0..20 {
        pair.wait(Duration::from_secs(25));
        // The ping and its answer take that long.
        pair.now = pair.now.after(Duration::from_secs(4));
        pair.run();
    }
    pair.wait(Duration::from_secs(25));
    pair.run();
    assert_eq!(pair.client.quality().grade(), Grade::Fair);
    assert_eq!(pair.server.quality().grade(), Grade::Fair);
    pair.cut();
    pair.connect();
    pair.run();
    for end in [&pair.client, &pair.server] {
        assert_eq!(end.quality().grade(), Grade::Good);
        assert!(end.quality().rtt().is_none_or(|rtt| rtt.is_zero()));
    }
}

#[test]
fn a_session_that_goes_away_gives_back_what_waits_and_says_when_to_come_back() {
    let mut config = SessionConfig::default();
    config.window.messages = 1;
    let mut pair = Pair::up(config);
    pair.server(Input::Offer((1..=3).map(normal).collect()));
    let refused = Refused {
        code: Code::Draining,
        retry_after: Some(Duration::from_secs(7)),
        text: "deploying".to_owned(),
    };
    pair.server(Input::GoAway(refused.clone()));
    pair.run();
    assert!(pair.client_events.contains(&Event::GoingAway(refused)));
    let busy = Outcome::Busy(Duration::from_millis(500));
    assert_eq!(pair.outcomes(), [(2, busy.clone()), (3, busy)]);
    assert_eq!(pair.deliver_all(), [1], "what is in flight is finished");
}

/// Found by an audit: a peer that ignores a go-away, or has something under way for ever, stayed for ever.
#[test]
fn a_peer_that_was_asked_to_go_elsewhere_goes_in_its_slot_whatever_is_under_way() {
    for (slot, goes) in [(7, 10), (60, 60)] {
        let mut pair = Pair::open();
        pair.server(Input::Offer(vec![normal(1)]));
        pair.run();
        let (code, retry_after) = (Code::Rebalancing, Some(Duration::from_secs(slot)));
        pair.server(Input::GoAway(Refused { code, retry_after, text: String::new() }));
        pair.run();
        for _ in 1..goes {
            pair.wait(Duration::from_secs(1));
            pair.run();
        }
        pair.wait(Duration::from_millis(999));
        pair.run();
        assert!(pair.server.connection().is_some());
        assert!(pair.server.poll_timeout().is_some_and(|at| at <= pair.now.after(Duration::from_millis(1))));
        pair.wait(Duration::from_millis(1));
        pair.run();
        assert_eq!((pair.server.connection(), pair.client.connection()), (None, None));
        let lost = Event::Lost {
            code,
            advice: Advice::ComeBackLater,
            retry_after: Some(Duration::ZERO),
            text: code.text().to_owned(),
        };
        assert!(pair.client_events.contains(&lost), "{:?}", pair.client_events);
    }
    // A drain has a deadline of its host's.
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.server(Input::GoAway(Refused { code: Code::Draining, retry_after: None, text: String::new() }));
    pair.run();
    pair.wait(Duration::from_secs(20));
    pair.run();
    assert!(pair.server.connection().is_some());
}

/// Found by review: a host that asks again and again whoever is still here moved the time away each time, and a drain took it back.
#[test]
fn a_peer_that_is_asked_again_to_go_has_no_more_time_for_that() {
    for again in [Code::Rebalancing, Code::Draining] {
        let mut pair = Pair::open();
        pair.server(Input::Offer(vec![normal(1)]));
        for (after, code) in [(0, Code::Rebalancing), (5, again), (4, again)] {
            pair.wait(Duration::from_secs(after));
            pair.server(Input::GoAway(Refused { code, retry_after: None, text: String::new() }));
            pair.run();
        }
        assert!(pair.server.connection().is_some());
        pair.wait(Duration::from_secs(1));
        pair.run();
        assert_eq!(pair.server.connection(), None, "ten seconds after it was asked first");
    }
}

/// Found by an audit: a slow authenticator made the connection look poor, and the next transport was tried.
#[test]
fn how_long_a_welcome_takes_says_nothing_of_the_connection() {
    let mut pair = Pair::new(SessionConfig::default());
    let conn = pair.connect();
    let Some((_, _, Frame::Hello(hello))) = pair.wire.pop() else { panic!() };
    pair.now = pair.now.after(Duration::from_secs(9));
    pair.admit(conn, hello);
    pair.run();
    assert_eq!((pair.client.quality().rtt(), pair.client.quality().score()), (None, 100));
}

#[test]
fn floors_are_told_at_once_and_again_after_a_reconnect() {
    let mut pair = Pair::open();
    let place = Place { lane: LaneId::Normal, seq: Seq::new(9) };
    pair.server(Input::Floor(place));
    pair.server(Input::Floor(Place { seq: Seq::new(8), ..place }));
    pair.cut();
    pair.connect();
    pair.run();
    let told: Vec<_> = pair.client_events.iter().filter(|event| matches!(event, Event::Floor(..))).collect();
    assert_eq!(told, [&Event::Floor(StreamId::from_u128(2), place)]);
    pair.server(Input::Offer(vec![normal(10)]));
    pair.run();
    assert_eq!(pair.taken()[0].floor, Seq::new(9));
}
