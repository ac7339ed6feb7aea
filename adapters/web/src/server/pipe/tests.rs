use super::*;
use crate::server::gate::Gate;

fn pipe_with(change: impl FnOnce(&mut WebConfig)) -> Arc<Pipe> {
    let mut config = WebConfig { max_buffered: 100, max_frame: 50, ..WebConfig::default() };
    change(&mut config);
    let gate = Arc::new(Gate::new(&config));
    Pipe::new(&config, gate.enter(None).unwrap())
}

fn pipe() -> Arc<Pipe> {
    pipe_with(|_| ())
}

fn frames(texts: &[&str]) -> Vec<Bytes> {
    texts.iter().map(|text| Bytes::copy_from_slice(text.as_bytes())).collect()
}

fn turn(pipe: &Pipe, number: u64) -> u64 {
    match pipe.poll(number) {
        Ok(PollTurn::Wait(turn)) => turn,
        other => panic!("{other:?}"),
    }
}

fn lines(down: Option<Result<Down, Refusal>>) -> Bytes {
    match down {
        Some(Ok(Down::Lines(lines))) => lines,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_repeated_request_is_answered_and_not_taken_twice() {
    let pipe = pipe();
    let body = Bytes::from_static(b"{\"a\":1}\n{\"b\":2}\n");
    assert!(matches!(pipe.up(1, &body), Ok(Up::Taken)));
    assert!(matches!(pipe.up(1, &body), Ok(Up::Taken)));
    assert_eq!(pipe.read().unwrap().unwrap().unwrap(), b"{\"a\":1}".as_slice());
    assert_eq!(pipe.read().unwrap().unwrap().unwrap(), b"{\"b\":2}".as_slice());
    assert!(pipe.read().is_none(), "taken once");
    assert!(matches!(pipe.up(3, &body), Err(Refusal::OutOfTurn)));
    assert!(matches!(pipe.up(0, &body), Err(Refusal::OutOfTurn)));
    assert!(matches!(pipe.up(u64::MAX, &body), Err(Refusal::OutOfTurn)));
    assert!(matches!(pipe.up(2, &body), Ok(Up::Taken)));
    assert!(matches!(pipe.up(1, &body), Err(Refusal::OutOfTurn)), "only the last one is repeated");
}

#[test]
fn a_full_pipe_takes_no_request_until_there_is_room() {
    let pipe = pipe();
    let body = Bytes::from("{\"0123456789\":\"0123456789\"}\n".repeat(4));
    assert!(matches!(pipe.up(1, &body), Ok(Up::Taken)), "one request may go over the bound");
    assert!(matches!(pipe.up(2, &body), Ok(Up::NoRoom)));
    assert!(pipe.read().is_some());
    assert!(matches!(pipe.up(2, &body), Ok(Up::Taken)));
}

#[test]
fn a_body_that_is_no_frame_or_too_large_ends_the_connection_and_nothing_of_it_is_taken() {
    let long = format!("{{}}\n{{\"a\":\"{}\"}}", "x".repeat(50));
    for (body, refusal) in [("{}\n!", Refusal::Body), (long.as_str(), Refusal::TooLarge)] {
        let pipe = pipe();
        assert_eq!(pipe.up(1, &Bytes::copy_from_slice(body.as_bytes())).unwrap_err(), refusal);
        assert!(matches!(pipe.read(), Some(Err(_))));
        assert_eq!(pipe.up(1, &Bytes::from_static(b"{}")).unwrap_err(), Refusal::Unknown);
    }
}

#[test]
fn a_repeated_poll_gets_the_same_answer_and_the_next_one_what_came_later() {
    let pipe = pipe();
    let first = turn(&pipe, 1);
    assert!(pipe.poll_down(first, false).is_none());
    assert!(pipe.write(&frames(&["{\"a\":1}", "\x01"])).unwrap());
    assert_eq!(lines(pipe.poll_down(first, false)), b"{\"a\":1}\nAQ==\n".as_slice());
    assert!(pipe.write(&frames(&["{\"b\":2}"])).unwrap());
    for _ in 0..2 {
        match pipe.poll(1) {
            Ok(PollTurn::Repeat(answer)) => assert_eq!(answer, b"{\"a\":1}\nAQ==\n".as_slice()),
            other => panic!("{other:?}"),
        }
    }
    let second = turn(&pipe, 2);
    assert_eq!(lines(pipe.poll_down(second, false)), b"{\"b\":2}\n".as_slice());
    assert!(matches!(pipe.poll(1), Err(Refusal::OutOfTurn)));
    assert!(matches!(pipe.poll(4), Err(Refusal::OutOfTurn)));
}

#[test]
fn an_empty_answer_is_an_answer() {
    let pipe = pipe();
    let first = turn(&pipe, 1);
    assert!(matches!(pipe.poll_down(first, true), Some(Ok(Down::Nothing))));
    assert!(matches!(pipe.poll(1), Ok(PollTurn::Repeat(answer)) if answer.is_empty()));
    turn(&pipe, 2);
}

#[test]
fn a_second_poll_with_the_same_number_makes_the_first_give_up_and_nothing_is_lost() {
    let pipe = pipe();
    let (first, second) = (turn(&pipe, 1), turn(&pipe, 1));
    assert!(pipe.write(&frames(&["{}"])).unwrap());
    assert!(matches!(pipe.poll_down(first, true), Some(Err(Refusal::OutOfTurn))));
    pipe.poll_gone(first);
    assert!(pipe.verdict().unwrap().is_none(), "the second one is still there");
    assert_eq!(lines(pipe.poll_down(second, false)), b"{}\n".as_slice());
}

#[test]
fn a_connection_is_carried_by_a_stream_or_by_polls_and_by_one_stream_only() {
    let (streamed, polled) = (pipe(), pipe());
    streamed.carry_by_stream().unwrap();
    assert_eq!(streamed.carry_by_stream().unwrap_err(), Refusal::OutOfTurn);
    assert!(matches!(streamed.poll(1), Err(Refusal::OutOfTurn)));
    turn(&polled, 1);
    assert_eq!(polled.carry_by_stream().unwrap_err(), Refusal::OutOfTurn);
}

#[test]
fn what_was_written_before_the_close_comes_first_and_then_its_code_again_and_again() {
    let pipe = pipe();
    assert!(pipe.write(&frames(&["{}"])).unwrap());
    pipe.close(Code::Draining);
    assert!(pipe.write(&frames(&["{}"])).is_err());
    let first = turn(&pipe, 1);
    assert_eq!(lines(pipe.poll_down(first, false)), b"{}\n".as_slice());
    for _ in 0..2 {
        let second = turn(&pipe, 2);
        assert!(matches!(pipe.poll_down(second, false), Some(Ok(Down::Closed(Code::Draining)))));
    }
}

#[test]
fn a_writer_waits_while_too_much_is_on_its_way() {
    let pipe = pipe();
    let long = "x".repeat(90);
    assert!(pipe.write(&frames(&[&long])).unwrap());
    assert!(!pipe.write(&frames(&["{}"])).unwrap());
    let first = turn(&pipe, 1);
    assert_eq!(lines(pipe.poll_down(first, false)).len(), 121);
    assert!(pipe.write(&frames(&["{}"])).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_when_nobody_carries_it() {
    let pipe = pipe();
    let began = Instant::now();
    pipe.ended().await;
    assert_eq!(began.elapsed().as_secs(), 10, "nobody came after open");
    assert!(matches!(pipe.read(), Some(Err(_))));
    assert!(pipe.write(&frames(&["{}"])).is_err());

    let polled = pipe_with(|_| ());
    let first = turn(&polled, 1);
    assert!(
        tokio::time::timeout(Duration::from_secs(3600), polled.ended()).await.is_err(),
        "while it is carried"
    );
    let began = Instant::now();
    polled.poll_gone(first);
    polled.ended().await;
    assert_eq!(began.elapsed().as_secs(), 30, "no poll came after the last");
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_lingers_for_its_last_word_and_no_longer() {
    let pipe = pipe();
    let first = turn(&pipe, 1);
    pipe.drop_half();
    assert!(tokio::time::timeout(Duration::from_secs(3600), pipe.ended()).await.is_err());
    pipe.drop_half();
    let began = Instant::now();
    assert!(matches!(pipe.poll_down(first, false), Some(Ok(Down::Closed(Code::TransportLost)))));
    pipe.poll_gone(first);
    pipe.ended().await;
    assert_eq!(began.elapsed().as_secs(), 5);
}
