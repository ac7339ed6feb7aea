//! The sink for tests does what it is told, and no more.

use core::pin::pin;
use core::task::Context;

use super::*;
use crate::id::StreamId;
use crate::message::Message;
use crate::record::Seq;
use crate::time::Timestamp;

fn delivery(id: u128, key: Option<&str>) -> Delivery {
    let builder = Message::to("alice", "test.message", "x").id(MessageId::from_u128(id));
    let builder = key.into_iter().fold(builder, |builder, key| builder.ordering_key(key));
    Delivery {
        message: builder.build().unwrap(),
        stream: StreamId::from_u128(1),
        entry: EntryRef { lane: LaneId::Normal, seq: Seq::new(id as u64) },
        floor: Seq::ZERO,
        accepted_at: Timestamp::ZERO,
        attempts: 0,
        redelivered: false,
    }
}

/// What a future that needs no waker is by now.
fn poll<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn deliver(sink: &ScriptedSink, batch: Vec<Delivery>) -> Option<Vec<Verdict>> {
    let said = poll(Sink::deliver(&mut sink.clone(), batch))?;
    Some(said.into_iter().map(|(_, verdict)| verdict).collect())
}

#[test]
fn a_message_of_its_own_script_leaves_the_common_one_alone() {
    let sink = ScriptedSink::always(Verdict::Rejected)
        .then(Verdict::Unconfirmed)
        .on(MessageId::from_u128(1), Verdict::Progress)
        .on(MessageId::from_u128(1), Verdict::AwaitingAck);
    let said =
        deliver(&sink, vec![delivery(1, None), delivery(2, None), delivery(1, None), delivery(3, None)]);
    let expected = [Verdict::Progress, Verdict::Unconfirmed, Verdict::AwaitingAck, Verdict::Rejected];
    assert_eq!(said.unwrap(), expected);
}

#[test]
fn what_stands_behind_a_failed_message_of_its_key_is_given_back_and_uses_up_no_reply() {
    let sink = ScriptedSink::new().then(Verdict::Nack(None)).then(Verdict::Unconfirmed);
    let batch =
        vec![delivery(1, Some("a")), delivery(2, Some("a")), delivery(3, Some("b")), delivery(4, None)];
    let expected =
        [Verdict::Nack(None), Verdict::Busy(Duration::ZERO), Verdict::Unconfirmed, Verdict::Delivered];
    assert_eq!(deliver(&sink, batch).unwrap(), expected);
}

#[test]
fn a_lost_connection_takes_the_rest_of_the_batch_with_it() {
    let sink = ScriptedSink::new().then(Reply::Silence).then(Verdict::Disconnected);
    let said = deliver(&sink, vec![delivery(1, None), delivery(2, None), delivery(3, None)]);
    assert_eq!(said.unwrap(), [Verdict::Disconnected, Verdict::Disconnected]);
    assert_eq!(sink.count(), 3);
}

#[test]
fn a_sink_that_never_answers_has_been_offered_the_batch_all_the_same() {
    let sink = ScriptedSink::new().then(Reply::Never);
    assert_eq!(deliver(&sink, vec![delivery(1, None), delivery(2, None)]), None);
    let replies: Vec<_> = poll(sink.offered(2)).unwrap().into_iter().map(|offer| offer.reply).collect();
    assert_eq!(replies, [Reply::Never, Reply::Never]);
}

#[test]
#[should_panic(expected = "as it was told to")]
fn a_sink_panics_when_it_is_told_to() {
    let _ = deliver(&ScriptedSink::new().then(Reply::Panic), vec![delivery(1, None)]);
}

#[test]
fn a_waiting_test_is_woken_by_the_offer_it_waits_for() {
    struct Flag(core::sync::atomic::AtomicBool);
    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, core::sync::atomic::Ordering::SeqCst);
        }
    }
    let flag = Arc::new(Flag(false.into()));
    let waker = Waker::from(Arc::clone(&flag));
    let sink = ScriptedSink::new();
    let mut two = pin!(sink.offered(2));
    assert!(two.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert!(!flag.0.load(core::sync::atomic::Ordering::SeqCst));
    deliver(&sink, vec![delivery(1, None)]);
    assert!(flag.0.load(core::sync::atomic::Ordering::SeqCst));
    assert!(two.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    deliver(&sink, vec![delivery(2, None)]);
    assert!(two.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
}

#[test]
fn offers_are_read_one_by_one_and_only_so_many_are_kept() {
    let sink = ScriptedSink::new().keeping(2);
    assert!(poll(sink.next()).is_none());
    deliver(&sink, vec![delivery(1, None), delivery(2, None)]);
    assert_eq!(poll(sink.next()).unwrap().delivery, delivery(1, None));
    deliver(&sink, vec![delivery(3, None)]);
    assert_eq!(poll(sink.next()).unwrap().delivery, delivery(2, None));
    assert_eq!(poll(sink.next()).unwrap().delivery, delivery(3, None));
    assert!(poll(sink.next()).is_none());
    assert_eq!((poll(sink.offered(3)).unwrap().len(), sink.count()), (2, 3));
}

#[test]
#[should_panic(expected = "forgotten before it was read")]
fn an_offer_that_was_missed_is_not_skipped_in_silence() {
    let sink = ScriptedSink::new().keeping(1);
    deliver(&sink, vec![delivery(1, None), delivery(2, None)]);
    let _ = poll(sink.next());
}
