//! Publishes and their receipts.

use super::*;

/// A connector that may repeat what it publishes.
fn repeating() -> Pair {
    Pair::up(SessionConfig { horizon: Duration::from_secs(60), ..SessionConfig::default() })
}

#[test]
fn a_device_goes_on_publishing_where_it_was_though_the_host_remembers_nothing() {
    let mut pair = Pair::open();
    let publish = |number| Input::Frame(ConnId(1), Frame::Publish { number, message: normal(1).message });
    pair.server(publish(57));
    pair.server(publish(58));
    let published = |event: &&Event| matches!(event, Event::Publish(..));
    assert_eq!(pair.server_events.iter().filter(published).count(), 2);
    assert_eq!(violation(&pair.server_events), None);
}

/// Found by the simulator of servers and clients: the acceptor took the hole for a lost frame, in every life anew.
#[test]
fn publishes_whose_receipts_overtook_each_other_are_sent_again_with_a_hole() {
    let mut pair = repeating();
    for number in 1..=4 {
        pair.client(Input::Publish(number, normal(number).message));
    }
    pair.run();
    for number in [2, 3] {
        pair.server(Input::Published(number, Published::Accepted));
    }
    pair.run();
    pair.cut();
    pair.server = Session::acceptor(pair.config.clone(), StreamId::from_u128(2), user(), device());
    pair.clear();
    pair.connect();
    pair.run();
    assert_eq!(violation(&pair.server_events), None);
    let numbers = pair.server_events.iter().filter_map(|event| match event {
        Event::Publish(number, _) => Some(*number),
        _ => None,
    });
    assert_eq!(numbers.collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn a_publish_is_decided_once_and_its_receipt_survives_a_lost_connection() {
    let mut pair = Pair::open();
    let message = normal(1).message;
    pair.client(Input::Publish(1, message.clone()));
    pair.run();
    assert_eq!(pair.server_events, [Event::Publish(1, message.clone())]);
    pair.server(Input::Published(1, Published::Accepted));
    pair.cut();
    pair.clear();
    pair.connect();
    pair.run();
    assert!(pair.client_events.contains(&Event::Receipt(1, Some(Published::Accepted))));
    assert!(!pair.server_events.iter().any(|event| matches!(event, Event::Publish(..))));
    pair.client(Input::Publish(3, message));
    let refused = Published::Refused(Session::refused(Code::Invalid));
    assert!(pair.client_events.contains(&Event::Receipt(3, Some(refused))), "numbers are consecutive");
}

#[test]
fn an_acceptor_that_takes_no_publishes_is_sent_none() {
    let mut pair = Pair::new(SessionConfig::default());
    pair.client(Input::Publish(1, normal(1).message));
    let config = SessionConfig { capabilities: Capabilities::ACKS, ..SessionConfig::default() };
    pair.server = Session::acceptor(config, StreamId::from_u128(2), user(), device());
    pair.connect();
    pair.run();
    assert!(pair.client_events.contains(&Event::Receipt(1, None)));
    pair.client(Input::Publish(2, normal(2).message));
    let refused = Published::Refused(Session::refused(Code::NotPermitted));
    assert!(pair.client_events.contains(&Event::Receipt(2, Some(refused))));
    assert!(pair.wire.is_empty());
    pair.server(Input::Frame(ConnId(1), Frame::Publish { number: 1, message: normal(1).message }));
    assert_eq!(violation(&pair.server_events), Some(Code::UnexpectedFrame));
}

#[test]
fn a_publish_whose_receipt_was_lost_with_the_acceptor_is_not_said_to_be_accepted() {
    let mut pair = repeating();
    pair.client(Input::Publish(1, normal(1).message));
    pair.client(Input::Publish(2, normal(2).message));
    pair.cut();
    pair.server = Session::acceptor(pair.config.clone(), StreamId::from_u128(2), user(), device());
    let conn = pair.connect();
    let Some((_, _, Frame::Hello(hello))) = pair.wire.pop() else { panic!() };
    let grant = Grant { published: 1, ..pair.grant() };
    pair.server(Input::Admit { conn, hello, grant });
    pair.clear();
    pair.run();
    assert!(pair.client_events.contains(&Event::Receipt(1, None)));
    assert_eq!(pair.server_events, [Event::Publish(2, normal(2).message)]);
}

/// Two of which the connector has published, and the acceptor has heard, and whose receipts were lost.
fn published_unheard(horizon: Duration) -> Pair {
    let mut pair = Pair::new(SessionConfig { horizon, ..SessionConfig::default() });
    pair.connect();
    pair.run();
    for number in 1..=2 {
        pair.client(Input::Publish(number, normal(number).message));
        pair.run();
    }
    pair.cut();
    for number in 1..=2 {
        pair.server(Input::Published(number, Published::Accepted));
    }
    pair.clear();
    pair
}

fn receipts(pair: &Pair) -> Vec<(u64, Option<Published>)> {
    let receipt = |event: &Event| match event {
        Event::Receipt(number, outcome) => Some((*number, outcome.clone())),
        _ => None,
    };
    pair.client_events.iter().filter_map(receipt).collect()
}

#[test]
fn in_a_new_life_a_publish_is_repeated_up_to_its_horizon_and_not_behind_it() {
    let horizon = Duration::from_secs(60);
    for (waits, repeats) in [(59_000, true), (60_000, true), (60_001, false), (1_000_000, false)] {
        let mut pair = published_unheard(horizon);
        // One more, that was never sent: it is not repeated whenever it goes.
        pair.client(Input::Publish(3, normal(3).message));
        pair.now = at(waits);
        pair.server = Session::acceptor(pair.config.clone(), StreamId::from_u128(2), user(), device());
        pair.connect();
        pair.run();
        let asked = pair.server_events.iter().filter_map(|event| match event {
            Event::Publish(number, _) => Some(*number),
            _ => None,
        });
        let expected: &[u64] = if repeats { &[1, 2, 3] } else { &[3] };
        assert_eq!(asked.collect::<Vec<_>>(), expected, "after {waits} ms");
        let unknown: &[_] = if repeats { &[] } else { &[(1, None), (2, None)] };
        assert_eq!(receipts(&pair), unknown, "after {waits} ms");
    }
}

#[test]
fn without_a_horizon_nothing_that_was_sent_is_repeated_in_a_new_life() {
    let mut pair = published_unheard(Duration::ZERO);
    pair.server = Session::acceptor(pair.config.clone(), StreamId::from_u128(2), user(), device());
    pair.connect();
    pair.run();
    assert!(!pair.server_events.iter().any(|event| matches!(event, Event::Publish(..))));
    assert_eq!(receipts(&pair), [(1, None), (2, None)]);
}

#[test]
fn in_the_same_life_a_publish_is_said_again_however_late_and_its_receipt_with_it() {
    let mut pair = published_unheard(Duration::ZERO);
    pair.now = at(599_000);
    pair.connect();
    pair.run();
    assert!(!pair.server_events.iter().any(|event| matches!(event, Event::Publish(..))));
    assert_eq!(receipts(&pair), [(1, Some(Published::Accepted)), (2, Some(Published::Accepted))]);
}
