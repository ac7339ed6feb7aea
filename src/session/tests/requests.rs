//! Requests and their answers, nacks and gaps.

use super::*;

#[test]
fn a_reply_rides_with_the_acknowledgement_and_survives_a_lost_connection() {
    let mut pair = Pair::open();
    let request = Item { reply_within: Some(Duration::from_secs(5)), ..normal(1) };
    pair.server(Input::Offer(vec![request.clone()]));
    pair.run();
    let taken = pair.taken();
    pair.client(Input::Verdicts(vec![(taken[0].id, Verdict::Replied(Bytes::from_static(b"yes")))]));
    assert_eq!(pair.sends(), ["reply"]);
    pair.cut();
    pair.connect();
    pair.run();
    assert!(pair.server_events.contains(&Event::Reply(request.place, Bytes::from_static(b"yes"))));
    assert_eq!(pair.outcomes(), [(1, Outcome::Delivered)]);
}

#[test]
fn a_request_times_out_while_its_message_is_still_on_its_way() {
    let mut pair = Pair::open();
    let request = Item { reply_within: Some(Duration::from_secs(5)), ..normal(1) };
    pair.server(Input::Offer(vec![request.clone()]));
    pair.run();
    pair.wait(Duration::from_secs(5));
    assert!(pair.server_events.contains(&Event::ReplyTimedOut(request.place)));
    assert_eq!(pair.deliver_all(), [1]);
    assert_eq!(pair.outcomes(), [(1, Outcome::Delivered)]);
}

#[test]
fn an_answer_that_comes_late_is_told_all_the_same() {
    let mut pair = Pair::open();
    let request = Item { reply_within: Some(Duration::from_secs(5)), ..normal(1) };
    pair.server(Input::Offer(vec![request.clone()]));
    pair.run();
    let taken = pair.taken();
    pair.wait(Duration::from_secs(5));
    pair.client(Input::Verdicts(vec![(taken[0].id, Verdict::Replied(Bytes::from_static(b"yes")))]));
    pair.run();
    assert!(pair.server_events.contains(&Event::Reply(request.place, Bytes::from_static(b"yes"))));
}

#[test]
fn a_gap_is_heard_when_it_is_acknowledged_and_told_again_when_its_life_is_over() {
    let mut pair = Pair::open();
    let heard = |pair: &Pair| {
        let heard = pair.server_events.iter().filter_map(|event| match event {
            Event::GapsHeard(heard) => Some(*heard),
            _ => None,
        });
        heard.collect::<Vec<_>>()
    };
    pair.server(Input::Gap(Missed::new(2, GapReason::Expired)));
    pair.server(Input::Gap(Missed::new(1, GapReason::Overflow)));
    assert!(heard(&pair).is_empty());
    pair.run();
    pair.wait(Duration::from_secs(1));
    pair.run();
    assert_eq!(heard(&pair), [true]);
    pair.server(Input::Gap(Missed::new(1, GapReason::Undeliverable)));
    pair.cut();
    pair.wait(pair.config.keep);
    assert_eq!(heard(&pair), [true, false]);
}

#[test]
fn a_nack_that_is_said_again_is_heard_once() {
    let mut pair = Pair::open();
    pair.server(Input::Offer(vec![normal(1), normal(2)]));
    pair.run();
    let nack = |count, number| {
        Frame::Nack(Nack { count, number, code: Code::Failed, delay: None, text: String::new() })
    };
    for (count, number) in [(1, 1), (2, 2), (1, 1)] {
        pair.server(Input::Frame(ConnId(1), nack(count, number)));
    }
    assert_eq!(pair.outcomes(), [(1, Outcome::Nack(None)), (2, Outcome::Nack(None))]);
    pair.server(Input::Offer(vec![normal(3)]));
    let Some((_, _, Frame::Deliver(deliver))) = pair.wire.pop() else { panic!() };
    assert_eq!(deliver.heard, 2, "it never goes back");
}

#[test]
fn a_request_that_came_back_does_not_time_out() {
    let mut pair = Pair::open();
    let request = Item { reply_within: Some(Duration::from_secs(5)), ..normal(1) };
    pair.server(Input::Offer(vec![request]));
    pair.run();
    let taken = pair.taken();
    pair.client(Input::Verdicts(vec![(taken[0].id, Verdict::Busy(Duration::from_secs(1)))]));
    pair.run();
    pair.wait(Duration::from_secs(6));
    assert!(!pair.server_events.iter().any(|event| matches!(event, Event::ReplyTimedOut(_))));
}
