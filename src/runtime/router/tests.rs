//! Feeds and lines, by what comes back.

use core::num::NonZeroUsize;
use core::time::Duration;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::feed::{Answer, Tag};
use super::*;
use crate::machine::EntryRef;
use crate::message::Message;
use crate::record::{LaneId, Seq};
use crate::session::Code;
use crate::session::frame::{Item, Place};

fn tag(number: u64) -> Tag {
    Tag::Entry(EntryRef { lane: LaneId::Normal, seq: Seq::ZERO.plus(number) })
}

fn received(key: &str, text: &str) -> Received {
    Received::new(Message::to("alice", "chat.message", text.to_owned()).ordering_key(key).build().unwrap())
}

fn hand(feed: &Feed, number: u64, key: &str, text: &str) {
    feed.hand_in(tag(number), LaneId::Normal, received(key, text));
}

/// A router whose handler says what it gets, and ends each when it is told to.
struct Bench {
    router: Router,
    begun: mpsc::UnboundedReceiver<String>,
    end: mpsc::UnboundedSender<Result<(), Failure>>,
    _registration: Registration,
}

fn bench(builder: RouterBuilder) -> Bench {
    let router = builder.build();
    let (begun, begun_out) = mpsc::unbounded_channel();
    let (end, end_in) = mpsc::unbounded_channel();
    let ends = Arc::new(tokio::sync::Mutex::new(end_in));
    let handler = move |text: String, _: Received| {
        let (begun, ends) = (begun.clone(), ends.clone());
        async move {
            begun.send(text).unwrap();
            ends.lock().await.recv().await.unwrap_or(Ok(()))
        }
    };
    let registration = router.on("chat.message", handler).unwrap();
    Bench { router, begun: begun_out, end, _registration: registration }
}

async fn all(answers: &mut Answers, count: usize) -> Vec<(Tag, Answer)> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(answers.collect().await.unwrap());
    }
    all
}

const DONE: Answer = Answer::Handled(None);
const BUSY: Answer = Answer::Failed(Failure::Busy { after: Duration::ZERO });

#[tokio::test(start_paused = true)]
async fn what_has_one_key_waits_and_what_has_another_does_not() {
    let mut bench = bench(Router::builder());
    let (feed, mut answers) = bench.router.feed();
    hand(&feed, 1, "a", "a1");
    hand(&feed, 2, "a", "a2");
    assert_eq!(bench.begun.recv().await.unwrap(), "a1");
    hand(&feed, 3, "b", "b1");
    assert_eq!(bench.begun.recv().await.unwrap(), "b1");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(bench.begun.try_recv().is_err(), "a2 waits for a1");
    bench.end.send(Ok(())).unwrap();
    bench.end.send(Ok(())).unwrap();
    assert_eq!(bench.begun.recv().await.unwrap(), "a2");
    bench.end.send(Ok(())).unwrap();
    let answers = all(&mut answers, 3).await;
    assert!(answers.iter().all(|(_, answer)| *answer == DONE), "{answers:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_is_kept_in_order_across_feeds_and_what_a_feed_left_behind_is_not_run() {
    let mut bench = bench(Router::builder());
    let (old, _answers) = bench.router.feed();
    hand(&old, 1, "a", "old 1");
    hand(&old, 2, "a", "old 2");
    assert_eq!(bench.begun.recv().await.unwrap(), "old 1");
    drop(old);
    let (new, mut answers) = bench.router.feed();
    hand(&new, 1, "a", "new 1");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(bench.begun.try_recv().is_err(), "old 1 still runs");
    bench.end.send(Ok(())).unwrap();
    assert_eq!(bench.begun.recv().await.unwrap(), "new 1");
    bench.end.send(Ok(())).unwrap();
    assert_eq!(answers.collect().await.unwrap(), [(tag(1), DONE)]);
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_nothing_of_its_key_is_taken_until_the_failure_was_collected() {
    let mut bench = bench(Router::builder());
    let (feed, mut answers) = bench.router.feed();
    hand(&feed, 1, "a", "a1");
    hand(&feed, 2, "a", "a2");
    assert_eq!(bench.begun.recv().await.unwrap(), "a1");
    bench.end.send(Err(Failure::retry("no"))).unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    // It has failed, and nobody has heard of it yet.
    hand(&feed, 3, "a", "a3");
    let failed = Answer::Failed(Failure::retry("no"));
    assert_eq!(answers.collect().await.unwrap(), [(tag(1), failed), (tag(2), BUSY), (tag(3), BUSY)]);
    hand(&feed, 1, "a", "a1 again");
    assert_eq!(bench.begun.recv().await.unwrap(), "a1 again");
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_holds_nothing_up() {
    let mut bench = bench(Router::builder());
    let (feed, mut answers) = bench.router.feed();
    hand(&feed, 1, "a", "a1");
    hand(&feed, 2, "a", "a2");
    bench.end.send(Err(Failure::reject(Code::Outdated, "old"))).unwrap();
    assert_eq!(bench.begun.recv().await.unwrap(), "a1");
    assert_eq!(bench.begun.recv().await.unwrap(), "a2");
    bench.end.send(Ok(())).unwrap();
    let answers = all(&mut answers, 2).await;
    assert_eq!(answers[0], (tag(1), Answer::Failed(Failure::reject(Code::Outdated, "old"))));
    assert_eq!(answers[1], (tag(2), DONE));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_being_worked_on_and_comes_again_runs_once_and_is_answered_once() {
    let mut bench = bench(Router::builder());
    let (feed, mut answers) = bench.router.feed();
    hand(&feed, 1, "a", "a1");
    hand(&feed, 1, "a", "a1");
    assert_eq!(bench.begun.recv().await.unwrap(), "a1");
    bench.end.send(Ok(())).unwrap();
    assert_eq!(answers.collect().await.unwrap(), [(tag(1), DONE)]);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(bench.begun.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn no_more_handlers_run_than_may_and_nobody_is_left_behind() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let router = Router::builder().max_running(NonZeroUsize::new(3).unwrap()).build();
    let (counted, peak) = (now.clone(), most.clone());
    let _all = router
        .on("*", move |_: Bytes, _| {
            let (now, most) = (counted.clone(), peak.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        })
        .unwrap();
    let (feed, mut answers) = router.feed();
    (0..50).for_each(|n| hand(&feed, n, &format!("key {n}"), ""));
    let answers = all(&mut answers, 50).await;
    assert!(answers.iter().all(|(_, answer)| *answer == DONE));
    assert_eq!((most.load(Ordering::SeqCst), now.load(Ordering::SeqCst)), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn over_the_bound_of_open_messages_the_next_is_busy_and_so_is_what_follows_it() {
    let bench = bench(Router::builder().max_open(NonZeroUsize::new(2).unwrap()));
    let (feed, mut answers) = bench.router.feed();
    hand(&feed, 1, "a", "");
    hand(&feed, 2, "b", "");
    hand(&feed, 3, "c", "");
    hand(&feed, 4, "c", "");
    let refused = answers.collect().await.unwrap();
    assert_eq!(refused[0], (tag(3), Answer::Failed(Failure::busy(Duration::from_millis(500)))));
    assert_eq!(refused[1], (tag(4), BUSY));
    assert_eq!(refused.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_sender_hears_of_progress_for_what_runs_and_what_waits_behind_it() {
    let builder = Router::builder().progress(Duration::from_secs(10)).timeout(Duration::from_secs(25));
    let mut bench = bench(builder);
    let (feed, mut answers) = bench.router.feed();
    hand(&feed, 1, "a", "a1");
    hand(&feed, 2, "a", "a2");
    let began = tokio::time::Instant::now();
    for n in 1..=2 {
        let mut news = answers.collect().await.unwrap();
        news.sort_by_key(|(tag, _)| format!("{tag:?}"));
        assert_eq!(news, [(tag(1), Answer::Progress), (tag(2), Answer::Progress)]);
        assert_eq!(began.elapsed().as_secs(), n * 10);
    }
    // Its time is over: a failed attempt, and what waits behind it goes back.
    let news = answers.collect().await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 25);
    assert!(matches!(&news[0], (_, Answer::Failed(Failure::Retry { after: None, .. }))), "{news:?}");
    assert_eq!(news[1], (tag(2), BUSY));
    assert_eq!(bench.begun.recv().await.unwrap(), "a1");
    assert!(bench.begun.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn progress_that_nobody_collects_does_not_pile_up() {
    let bench = bench(Router::builder().timeout(Duration::from_secs(3600)));
    let (feed, mut answers) = bench.router.feed();
    hand(&feed, 1, "a", "a1");
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(answers.collect().await.unwrap(), [(tag(1), Answer::Progress)]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_asks_for_more_time_gets_it_anew_each_time() {
    let router = Router::builder().timeout(Duration::from_secs(20)).build();
    let _slow = router
        .on("*", async |_: Bytes, received: Received| {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(15)).await;
                received.needs_more_time();
            }
            Ok(())
        })
        .unwrap();
    let (feed, mut answers) = router.feed();
    let began = tokio::time::Instant::now();
    hand(&feed, 1, "a", "a1");
    let last = loop {
        match answers.collect().await.unwrap().pop().unwrap() {
            (_, Answer::Progress) => {}
            last => break last,
        }
    };
    assert_eq!((last, began.elapsed().as_secs()), ((tag(1), DONE), 75));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failed_attempt_wherever_it_happens_and_the_next_message_runs() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "dropped while it waited");
        }
    }
    let router = Router::builder().timeout(Duration::from_secs(1)).build();
    let _all = router
        .on("*", |text: String, _| {
            assert_ne!(text, "at once");
            async move {
                tokio::task::yield_now().await;
                assert_ne!(text, "later");
                if text == "dropped" {
                    let _bomb = Bomb;
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
        })
        .unwrap();
    let (feed, mut answers) = router.feed();
    for (number, text) in (1..).zip(["at once", "later", "dropped"]) {
        hand(&feed, number, "a", text);
        let news = answers.collect().await.unwrap();
        assert!(matches!(&news[..], [(_, Answer::Failed(Failure::Retry { after: None, .. }))]), "{news:?}");
    }
    hand(&feed, 4, "a", "well");
    assert_eq!(answers.collect().await.unwrap(), [(tag(4), DONE)]);
}

#[tokio::test(start_paused = true)]
async fn permission_is_asked_before_the_handler_and_its_code_decides() {
    let ran = Arc::new(AtomicU32::new(0));
    let router = Router::builder()
        .permission(async |received: Received| match received.payload().as_ref() {
            b"ok" => Permission::Allow,
            b"busy" => Permission::Deny(Code::Busy),
            b"full" => Permission::Deny(Code::QuotaExceeded),
            b"gone" => Permission::Deny(Code::TakenOver),
            b"panic" => panic!("in the hook"),
            _ => Permission::Deny(Code::Outdated),
        })
        .build();
    let count = ran.clone();
    let _all = router
        .on("*", move |_: Bytes, _| {
            count.fetch_add(1, Ordering::SeqCst);
            core::future::ready(Ok(()))
        })
        .unwrap();
    let (feed, mut answers) = router.feed();
    let mut ask = async |text: &str| {
        hand(&feed, 1, "a", text);
        answers.collect().await.unwrap().pop().unwrap().1
    };
    assert_eq!(ask("ok").await, DONE);
    assert_eq!(ask("busy").await, Answer::Failed(Failure::busy(Duration::from_secs(1))));
    assert!(matches!(ask("full").await, Answer::Failed(Failure::Retry { after: None, .. })));
    assert!(matches!(ask("panic").await, Answer::Failed(Failure::Retry { after: None, .. })));
    for (text, code) in [("gone", Code::NotPermitted), ("else", Code::Outdated)] {
        assert!(matches!(ask(text).await, Answer::Failed(Failure::Reject { code: c, .. }) if c == code));
    }
    assert_eq!(ran.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_handles_is_offered_again_unless_the_host_says_otherwise() {
    let router = Router::new();
    let (feed, mut answers) = router.feed();
    hand(&feed, 1, "a", "");
    let news = answers.collect().await.unwrap();
    assert!(matches!(&news[..], [(_, Answer::Failed(Failure::Retry { after: None, .. }))]), "{news:?}");
    let strict = Failure::reject(Code::Rejected, "unknown event");
    let router = Router::builder().unhandled(strict.clone()).build();
    let (feed, mut answers) = router.feed();
    hand(&feed, 1, "a", "");
    assert_eq!(answers.collect().await.unwrap(), [(tag(1), Answer::Failed(strict))]);
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_is_dropped_removes_the_handler_and_lets_it_finish() {
    let mut bench = bench(Router::builder());
    let (feed, mut answers) = bench.router.feed();
    hand(&feed, 1, "a", "a1");
    assert_eq!(bench.begun.recv().await.unwrap(), "a1");
    drop(bench._registration);
    hand(&feed, 2, "b", "b1");
    let news = answers.collect().await.unwrap();
    assert!(matches!(&news[..], [(number, Answer::Failed(_))] if *number == tag(2)), "{news:?}");
    bench.end.send(Ok(())).unwrap();
    assert_eq!(answers.collect().await.unwrap(), [(tag(1), DONE)]);
    let _again = bench.router.on("chat.message", async |_: Bytes, _: Received| Ok(())).unwrap();
    hand(&feed, 3, "a", "a2");
    assert_eq!(answers.collect().await.unwrap(), [(tag(3), DONE)]);
}

#[tokio::test(start_paused = true)]
async fn the_most_specific_handler_gets_the_message() {
    let router = Router::new();
    let said = |name: &'static str| move |_: Bytes, _: Received| core::future::ready(Ok(name.to_owned()));
    let patterns = ["chat.room.message", "chat.room.*", "chat.", "*", "chat"];
    let mut kept: Vec<_> = patterns.map(|name| router.on(name, said(name)).unwrap()).into();
    let (feed, mut answers) = router.feed();
    let mut ask = async |event: &str| {
        let message = Message::to("alice", event, "").build().unwrap();
        feed.hand_in(tag(1), LaneId::Normal, Received::new(message));
        match answers.collect().await.unwrap().pop() {
            Some((_, Answer::Handled(Some(name)))) => String::from_utf8(name.to_vec()).unwrap(),
            other => format!("{other:?}"),
        }
    };
    for (event, name) in [
        ("chat.room.message", "chat.room.message"),
        ("chat.room.message.edited", "chat.room.*"),
        ("chat.room", "chat."),
        ("chat.roommate", "chat."),
        ("chat", "chat"),
        ("chats", "*"),
        ("call.ring", "*"),
    ] {
        assert_eq!(ask(event).await, name, "{event}");
    }
    drop(kept.remove(1));
    assert_eq!(ask("chat.room.message.edited").await, "chat.");
}

#[test]
fn registrations_are_bounded_and_no_pattern_is_taken_twice() {
    let router = Router::builder().max_handlers(NonZeroUsize::new(2).unwrap()).build();
    let nothing = async |_: Bytes, _: Received| Ok(());
    let _one = router.on("chat.*", nothing).unwrap();
    let taken = router.on("chat.", nothing).unwrap_err();
    assert_eq!(taken, RegisterError::Taken(Pattern::try_from("chat.*").unwrap()));
    let two = router.on("chat", nothing).unwrap();
    assert_eq!(router.on("*", nothing).unwrap_err(), RegisterError::TooMany { max: 2 });
    drop(two);
    router.on("*", nothing).unwrap().keep();
    assert_eq!(router.on("*", nothing).unwrap_err(), RegisterError::Taken(Pattern::try_from("*").unwrap()));
    assert!(matches!(router.on("Chat", nothing), Err(RegisterError::Pattern(_))));
}

#[tokio::test]
async fn a_line_whose_task_was_ended_with_its_runtime_starts_anew() {
    let bench = bench(Router::builder());
    let router = bench.router.clone();
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (feed, _answers) = router.feed();
            hand(&feed, 1, "a", "a1");
            tokio::task::yield_now().await;
        });
    });
    other.join().unwrap();
    let mut bench = bench;
    assert_eq!(bench.begun.recv().await.unwrap(), "a1");
    let (feed, mut answers) = bench.router.feed();
    hand(&feed, 1, "a", "a1 again");
    assert_eq!(bench.begun.recv().await.unwrap(), "a1 again");
    bench.end.send(Ok(())).unwrap();
    assert_eq!(answers.collect().await.unwrap(), [(tag(1), DONE)]);
}

/// Two sessions with nothing between them.
mod wire {
    use super::*;
    use crate::id::{DeviceId, StreamId, UserId};
    use crate::session::frame::{Credentials, Token};
    use crate::session::{
        Action, ConnId, Event, Grant, Greeted, Greeter, Input, Outcome, Session, SessionConfig,
    };
    use crate::time::Timestamp;

    pub(super) struct Pair {
        pub(super) sender: Session,
        pub(super) receiver: Session,
        pub(super) outcomes: Vec<Outcome>,
        pub(super) replies: Vec<Bytes>,
    }

    const NOW: Timestamp = Timestamp::from_millis(1000);

    impl Pair {
        /// The acceptor sends, the connector receives.
        pub(super) fn open() -> Self {
            let config = SessionConfig { ack_every: 1, ..SessionConfig::default() };
            let (alice, phone) = (UserId::new("alice").unwrap(), DeviceId::new("phone").unwrap());
            let (here, there) = (StreamId::from_u128(1), StreamId::from_u128(2));
            let mut receiver = Session::connector(config.clone(), here, Some(alice.clone()), phone.clone());
            let mut sender = Session::acceptor(config.clone(), there, alice.clone(), phone);
            receiver.handle(NOW, Input::Connected(ConnId(1), Credentials(Bytes::new())));
            let Some(Action::Send(_, hello, _)) = receiver.poll_action() else { panic!("no hello") };
            let Greeted::Authenticate(hello) = Greeter::new(NOW, &config).first(Ok(hello), &config) else {
                panic!("refused")
            };
            let token = Token::from_u128(7);
            let grant = Grant { user: alice, expires: None, token, epoch: 1, published: 0 };
            sender.handle(NOW, Input::Admit { conn: ConnId(1), hello, grant });
            let mut pair = Self { sender, receiver, outcomes: Vec::new(), replies: Vec::new() };
            pair.run();
            pair
        }

        /// Until neither has anything to say. Whether the receiver has messages.
        pub(super) fn run(&mut self) -> bool {
            let mut ready = false;
            loop {
                let (from_sender, from_receiver) = (self.sender.poll_action(), self.receiver.poll_action());
                if from_sender.is_none() && from_receiver.is_none() {
                    return ready;
                }
                match from_sender {
                    Some(Action::Send(conn, frame, _)) => {
                        self.receiver.handle(NOW, Input::Frame(conn, frame))
                    }
                    Some(Action::Event(Event::Outcomes(outcomes))) => {
                        self.outcomes.extend(outcomes.into_iter().map(|(_, outcome)| outcome));
                    }
                    Some(Action::Event(Event::Reply(_, reply))) => self.replies.push(reply),
                    _ => {}
                }
                match from_receiver {
                    Some(Action::Send(conn, frame, _)) => self.sender.handle(NOW, Input::Frame(conn, frame)),
                    Some(Action::Event(Event::Ready)) => ready = true,
                    _ => {}
                }
            }
        }

        pub(super) fn offer(&mut self, item: Item) -> bool {
            self.sender.handle(NOW, Input::Offer(vec![item]));
            self.run()
        }
    }

    pub(super) fn item(number: u64, event: &str, text: &str, reply_within: Option<Duration>) -> Item {
        let message = Message::to("alice", event, text.to_owned()).sender("bob").ordering_key(event);
        let message = message.build().unwrap();
        let place = Place { lane: LaneId::Normal, seq: Seq::new(1 << 40).plus(number) };
        Item { place, accepted_at: NOW, attempts: 2, redelivered: true, reply_within, message }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_hands_messages_in_and_the_answer_rides_with_the_ack() {
    use crate::session::{Input, Outcome};
    let router = Router::new();
    let _echo = router
        .on("echo", async |text: String, received: Received| {
            assert_eq!((received.attempts(), received.redelivered()), (2, true));
            assert_eq!(received.sender().unwrap().as_bytes(), b"bob");
            assert_eq!((received.stream().as_u128(), received.accepted_at().as_millis()), (2, 1000));
            received
                .reply_within()
                .map(|_| text)
                .ok_or_else(|| Failure::reject(Code::TakenOver, "no question"))
        })
        .unwrap();
    let mut pair = wire::Pair::open();
    let (feed, mut answers) = router.feed();
    let mut receiver = router.clone();
    for (number, within) in [(1, Some(Duration::from_secs(5))), (2, None), (3, Some(Duration::from_secs(5)))]
    {
        assert!(pair.offer(wire::item(number, "echo", "hello", within)));
        let inbound = pair.receiver.take(9);
        let verdicts = if number == 3 {
            let later = crate::ports::Receiver::receive(&mut receiver, inbound).await;
            assert_eq!(later.len(), 1, "it is left for later");
            std::future::poll_fn(|context| crate::ports::Receiver::poll_verdicts(&mut receiver, context))
                .await
        } else {
            inbound.into_iter().for_each(|inbound| feed.hand(inbound));
            answers.next().await.unwrap()
        };
        pair.receiver.handle(crate::time::Timestamp::from_millis(1000), Input::Verdicts(verdicts));
        pair.run();
    }
    assert_eq!(pair.replies, ["hello", "hello"]);
    let rejected = Outcome::Rejected(Code::Rejected);
    assert_eq!(pair.outcomes, [Outcome::Delivered, rejected, Outcome::Delivered]);
}

/// Found by a review: a batch was answered as a whole, its slowest message held up everything, and nobody was told that it
/// was being worked on.
#[tokio::test(start_paused = true)]
async fn as_a_receiver_a_slow_message_holds_up_no_other_and_its_sender_is_told() {
    use crate::ports::Receiver;
    use crate::session::{Input, Verdict};
    let router = Router::builder().progress(Duration::from_secs(5)).build();
    let go = Arc::new(tokio::sync::Notify::new());
    let slow = go.clone();
    let _slow = router.on("slow", move |_: String, _: Received| {
        let slow = slow.clone();
        async move {
            slow.notified().await;
            Ok(())
        }
    });
    let _fast = router.on("fast", async |_: String, _: Received| Ok(()));
    let mut pair = wire::Pair::open();
    let mut receiver = router.clone();
    let mut ids = Vec::new();
    for (number, event) in [(1, "slow"), (2, "fast")] {
        assert!(pair.offer(wire::item(number, event, "hello", None)));
        let inbound = pair.receiver.take(9);
        ids.extend(inbound.iter().map(|inbound| inbound.id));
        assert_eq!(receiver.receive(inbound).await, [(ids[ids.len() - 1], Verdict::Progress)]);
        pair.receiver.handle(crate::time::Timestamp::from_millis(1000), Input::Tick);
    }
    let mut said = async || std::future::poll_fn(|context| receiver.poll_verdicts(context)).await;
    assert_eq!(said().await, [(ids[1], Verdict::Delivered)]);
    assert_eq!(said().await, [(ids[0], Verdict::Progress)]);
    go.notify_one();
    assert_eq!(said().await, [(ids[0], Verdict::Delivered)]);
}
