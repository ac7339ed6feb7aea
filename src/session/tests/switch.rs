//! A connector's way from one connection to another: the one that stands is left when the other one has a welcome.

use super::*;
use crate::session::frame::Limits;

/// Open, with a second connection over which hello was said: that hello is not on the wire any more.
fn greeting() -> (Pair, ConnId, ConnId, Box<Hello>) {
    let mut pair = Pair::open();
    let (old, new) = (ConnId(1), pair.connect());
    let Some((conn, true, Frame::Hello(hello))) = pair.wire.pop() else { panic!("no hello") };
    assert_eq!((conn, &pair.wire, &pair.disconnects), (new, &vec![], &vec![]), "and nothing else");
    (pair, old, new, hello)
}

fn seqs(inbound: &[Inbound]) -> Vec<u64> {
    inbound.iter().map(|inbound| inbound.item.place.seq.get()).collect()
}

#[test]
fn an_attempt_at_another_connection_that_is_swallowed_costs_the_one_that_stands_nothing() {
    let (mut pair, old, new, _) = greeting();
    pair.server(Input::Offer(vec![normal(1), normal(2)]));
    pair.client(Input::Offer(vec![of(7, Message::to("bob", "chat.message", "up").build().unwrap())]));
    pair.run();
    // What goes up goes on; what comes down waits.
    assert_eq!(seqs(&pair.server.take(9)), [7]);
    assert_eq!(pair.taken(), []);
    pair.wait(Duration::from_millis(1999));
    pair.run();
    assert_eq!(pair.client.connection(), Some(old));
    assert_eq!(pair.client.poll_timeout(), Some(pair.now.after(Duration::from_millis(1))));
    assert_eq!(pair.taken(), [], "two seconds later at most");
    pair.wait(Duration::from_millis(1));
    let code = Code::HandshakeTimeout;
    let failed = Event::SwitchFailed { code, retry_after: None, text: code.text().to_owned() };
    assert!(pair.client_events.contains(&failed), "{:?}", pair.client_events);
    assert_eq!(pair.disconnects, [(new, Code::HandshakeTimeout)]);
    assert_eq!((pair.client.connection(), pair.server.connection()), (Some(old), Some(old)));
    assert_eq!(pair.deliver_all(), [1, 2]);
    assert_eq!(pair.outcomes(), [(1, Outcome::Delivered), (2, Outcome::Delivered)]);
    assert_eq!(violation(&pair.server_events), None);
}

#[test]
fn another_connection_has_all_the_time_of_a_handshake_while_it_holds_nothing_up() {
    let (mut pair, old, new, hello) = greeting();
    pair.wait(Duration::from_millis(9_999));
    pair.run();
    assert_eq!(pair.client.connection(), Some(old));
    pair.admit(new, hello);
    pair.run();
    assert_eq!(pair.client.connection(), Some(new));

    let (mut pair, _, new, _) = greeting();
    pair.wait(Duration::from_secs(10));
    assert_eq!(pair.disconnects, [(new, Code::HandshakeTimeout)]);
}

#[test]
fn another_connection_takes_over_with_its_welcome_and_everything_comes_once() {
    let (mut pair, old, new, hello) = greeting();
    pair.server(Input::Offer((1..=3).map(normal).collect()));
    pair.client(Input::Offer(vec![of(7, Message::to("bob", "chat.message", "up").build().unwrap())]));
    pair.run();
    assert_eq!(pair.client.connection(), Some(old));
    pair.admit(new, hello);
    // What the client has not taken into account goes back, as with any connection.
    assert_eq!(pair.outcomes(), [1, 2, 3].map(|seq| (seq, Outcome::Busy(Duration::ZERO))));
    pair.server(Input::Offer((1..=4).map(normal).collect()));
    pair.run();
    assert_eq!((pair.client.connection(), pair.server.connection()), (Some(new), Some(new)));
    assert_eq!(opened(&pair.client_events), Some(true));
    assert_eq!(pair.deliver_all(), [1, 2, 3, 4], "once, and in order");
    assert_eq!(pair.outcomes(), [1, 2, 3, 4].map(|seq| (seq, Outcome::Delivered)));
    assert_eq!(seqs(&pair.server.take(9)), [7]);
    // Both ends have left the old one.
    assert_eq!(pair.disconnects, [(old, Code::TransportSwitched); 2]);
    let (code, text) = (Code::TransportSwitched, Code::TransportSwitched.text().to_owned());
    let lost = Event::Lost { code, advice: Advice::Resume, retry_after: None, text };
    assert!(pair.client_events.contains(&lost));
}

#[test]
fn another_connection_that_is_refused_leaves_the_one_that_stands_and_says_when_to_try_again() {
    let (mut pair, old, new, _) = greeting();
    let retry_after = Some(Duration::from_secs(30));
    let refused = Refused { retry_after, ..Session::refused(Code::RateLimited) };
    pair.client(Input::Frame(new, Frame::Reject(refused)));
    let (code, text) = (Code::RateLimited, Code::RateLimited.text().to_owned());
    let failed = Event::SwitchFailed { code, retry_after, text };
    assert_eq!(pair.client_events, [failed]);
    assert_eq!((pair.client.connection(), &pair.disconnects), (Some(old), &vec![(new, Code::RateLimited)]));
}

#[test]
fn another_connection_that_breaks_the_protocol_or_breaks_ends_alone() {
    let garbage =
        crate::session::frame::decode(&Bytes::from_static(b"\xffoops"), &Limits::default()).unwrap_err();
    for input in [
        |new, _| Input::Frame(new, Frame::Pong { nonce: 1 }),
        |new, garbage| Input::Garbage(new, garbage),
        |new, _| Input::Lost(new),
    ] {
        let input: fn(ConnId, crate::session::frame::DecodeError) -> Input = input;
        let (mut pair, old, new, _) = greeting();
        pair.client(input(new, garbage.clone()));
        assert!(matches!(pair.client_events.last(), Some(Event::SwitchFailed { .. })));
        assert_eq!(pair.client.connection(), Some(old));
        assert!(matches!(pair.disconnects[..], [(conn, _)] if conn == new));
        pair.server(Input::Offer(vec![normal(1)]));
        pair.run();
        assert_eq!(pair.deliver_all(), [1]);
    }
}

#[test]
fn when_the_connection_that_stood_is_lost_the_other_one_takes_over_or_fails_with_it() {
    let (mut pair, old, new, hello) = greeting();
    pair.client(Input::Lost(old));
    assert_eq!(pair.client.connection(), None);
    assert!(pair.client.is_linked(), "nothing to do yet");
    pair.admit(new, hello);
    pair.run();
    assert_eq!((opened(&pair.client_events), pair.client.connection()), (Some(true), Some(new)));

    let (mut pair, old, new, _) = greeting();
    pair.client(Input::Lost(old));
    pair.client(Input::Lost(new));
    assert!(!pair.client.is_linked());
    assert!(matches!(pair.client_events.last(), Some(Event::Lost { code: Code::TransportLost, .. })));
}

#[test]
fn who_is_closed_for_good_meanwhile_stays_closed_and_a_farewell_that_follows_from_the_hello_does_not_count() {
    for (code, goes_on) in [
        (Code::Forbidden, false),
        (Code::TransportSwitched, true),
        (Code::TakenOver, true),
        (Code::Draining, true),
    ] {
        let (mut pair, old, new, _) = greeting();
        pair.client(Input::Frame(old, Frame::Close(Session::refused(code))));
        assert_eq!(pair.client.is_linked(), goes_on, "{code}");
        assert_eq!(pair.client.is_over(), !goes_on, "{code}");
        let ended: Vec<_> = pair.disconnects.iter().map(|(conn, _)| *conn).collect();
        assert_eq!(ended, if goes_on { vec![old] } else { vec![old, new] }, "{code}");
    }
}

#[test]
fn pings_are_answered_while_another_connection_greets() {
    let (mut pair, old, _, _) = greeting();
    pair.client(Input::Frame(old, Frame::Ping { nonce: 5, rtt: None }));
    assert_eq!(pair.wire, [(old, true, Frame::Pong { nonce: 5 })]);
}

#[test]
fn what_is_held_is_bounded_and_beyond_that_the_other_connection_has_to_do() {
    let (mut pair, old, new, hello) = greeting();
    for seq in 1..=2000 {
        pair.client(Input::Frame(old, Frame::Floor(Place { lane: LaneId::Normal, seq: Seq::new(seq) })));
    }
    assert_eq!((pair.client.connection(), pair.client.is_linked()), (None, true));
    pair.run();
    assert_eq!(pair.disconnects, [(old, Code::TransportSwitched); 2], "at both ends");
    pair.admit(new, hello);
    pair.run();
    assert_eq!(pair.client.connection(), Some(new));
}

#[test]
fn a_third_connection_takes_the_place_of_the_second_and_the_first_one_stands() {
    let (mut pair, old, second, _) = greeting();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    let third = pair.connect();
    assert_eq!(pair.disconnects, [(second, Code::TransportSwitched)]);
    assert_eq!(pair.client.connection(), Some(old));
    pair.run();
    assert_eq!(pair.client.connection(), Some(third));
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [1]);
}

/// Found by the simulator of servers and clients (seed 21294): the acceptor took for lost what its connector had seen over the
/// old connection after it had given the climb up, and both went on with numbers that meant different things.
#[test]
fn a_hello_of_a_climb_that_was_given_up_and_is_let_in_late_costs_a_life_and_mixes_no_numbers_up() {
    let (mut pair, _, new, hello) = greeting();
    pair.server(Input::Offer(vec![normal(1), normal(2)]));
    pair.run();
    pair.wait(Duration::from_secs(2));
    assert_eq!(seqs(&pair.taken()), [1, 2], "what was held, after the climb was given up");
    pair.admit(new, hello);
    pair.outcomes();
    pair.cut();
    pair.clear();
    pair.connect();
    pair.run();
    assert_eq!(opened(&pair.client_events), Some(false), "nobody knows which numbers the client means");
    pair.server(Input::Offer(vec![normal(1), normal(2), normal(3)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [1, 2, 3]);
    assert_eq!((violation(&pair.client_events), violation(&pair.server_events)), (None, None));
}

#[test]
fn one_whose_connector_has_seen_nothing_since_costs_nothing() {
    let (mut pair, _, new, hello) = greeting();
    pair.server(Input::Offer(vec![normal(1)]));
    pair.wire.clear();
    pair.wait(Duration::from_secs(10));
    pair.admit(new, hello);
    pair.cut();
    pair.clear();
    pair.connect();
    pair.run();
    assert_eq!(opened(&pair.client_events), Some(true));
    pair.server(Input::Offer(vec![normal(1)]));
    pair.run();
    assert_eq!(pair.deliver_all(), [1]);
    // It was heard over this connection: what it sees of the next one is in these numbers.
    pair.server(Input::Offer(vec![normal(2)]));
    pair.cut();
    pair.clear();
    pair.connect();
    pair.run();
    assert_eq!(opened(&pair.client_events), Some(true));
}

/// Found by a review: the connection that stood had been closed before the welcome was looked at.
#[test]
fn a_welcome_that_is_none_costs_the_connection_that_stands_nothing() {
    use crate::session::frame::Position;
    for code in [Code::OutOfOrder, Code::UnsupportedVersion] {
        let (mut pair, old, new, hello) = greeting();
        let mut server = pair.server.clone();
        let grant = pair.grant();
        server.handle(pair.now, Input::Admit { conn: new, hello, grant });
        let actions = std::iter::from_fn(|| server.poll_action());
        let welcome = actions
            .filter_map(|action| match action {
                Action::Send(conn, Frame::Welcome(welcome), _) if conn == new => Some(welcome),
                _ => None,
            })
            .last();
        let mut welcome = welcome.expect("a welcome");
        match code {
            Code::OutOfOrder => welcome.position = Position { seen: 9, ..welcome.position },
            _ => welcome.version = 9,
        }
        pair.server(Input::Offer(vec![normal(1)]));
        pair.run();
        pair.client(Input::Frame(new, Frame::Welcome(welcome)));
        assert_eq!(violation(&pair.client_events), Some(code));
        assert!(pair.client_events.contains(&Event::SwitchFailed {
            code,
            retry_after: None,
            text: code.text().to_owned()
        }));
        assert_eq!((pair.client.connection(), &pair.disconnects), (Some(old), &vec![(new, code)]));
        assert_eq!(pair.deliver_all(), [1], "what was held is taken");
    }
}
