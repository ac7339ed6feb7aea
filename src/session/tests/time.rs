//! What time ends: half-open connections, credentials; and farewells.

use super::*;

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
