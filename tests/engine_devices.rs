//! Registered devices through the whole engine: what is for each of them, what rings, and what is said of it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use lastmile::machine::{Delivery, EntryRef, Verdict, Withdrawn};
use lastmile::ports::Clock;
use lastmile::storage::MemoryStore;
use lastmile::storage::journal::{JournalConfig, MemoryJournal};
use lastmile::testing::ManualClock;
use lastmile::{
    DevicePolicy, EndReason, Engine, EngineBuilder, Message, MessageId, Reached, Receipt, Stage, Status,
    Timestamp, WatchError,
};

/// Takes what it is offered, or only notes it; and notes what is withdrawn.
#[derive(Clone, Default)]
struct Device {
    answers: bool,
    seen: Arc<Mutex<Vec<MessageId>>>,
    withdrawn: Arc<Mutex<Vec<MessageId>>>,
}

impl lastmile::ports::Sink for Device {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        self.seen.lock().unwrap().extend(batch.iter().map(|delivery| delivery.message.id()));
        let verdict = if self.answers { Verdict::Delivered } else { Verdict::AwaitingAck };
        batch.iter().map(|delivery| (delivery.entry, verdict.clone())).collect()
    }

    async fn withdrawn(&mut self, withdrawn: Withdrawn) {
        self.withdrawn.lock().unwrap().push(withdrawn.id);
    }
}

fn answering() -> Device {
    Device { answers: true, ..Device::default() }
}

async fn engine() -> Engine {
    with_devices(Engine::builder(MemoryStore::new())).await
}

async fn with_devices(builder: EngineBuilder) -> Engine {
    let engine = builder.build().unwrap();
    for device in ["phone", "laptop"] {
        engine.register_device("alice", device).await.unwrap();
    }
    engine
}

async fn until(what: impl Fn() -> bool) {
    let waiting = async {
        while !what() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), waiting).await.expect("it never comes to that");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_tells_the_first_device_from_all_of_them() {
    let engine = engine().await;
    let message =
        Message::to("alice", "chat.message", "hi").devices(DevicePolicy::EveryDevice).build().unwrap();
    let receipt = engine.send(message).await.unwrap();
    let phone = engine.attach("alice", "phone", answering()).unwrap();
    assert_eq!(receipt.reached(Stage::Delivered).await, Ok(Reached::Stage(Stage::Delivered)));
    assert_eq!(receipt.reached_within(Stage::DeliveredAll, Duration::from_millis(20)).await, Ok(None));
    let copies = engine.status_by_device("alice", receipt.id()).await.unwrap();
    let statuses: Vec<_> = copies.iter().map(|copy| copy.located.unwrap().status).collect();
    assert_eq!(statuses, [Status::Ended(EndReason::Delivered), Status::Accepted]);
    let laptop = engine.attach("alice", "laptop", answering()).unwrap();
    assert_eq!(receipt.reached(Stage::DeliveredAll).await, Ok(Reached::Stage(Stage::DeliveredAll)));
    drop((phone, laptop));
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rings_is_withdrawn_from_the_others_when_one_has_answered() {
    let engine = engine().await;
    let phone = Device::default();
    let rings = engine.attach("alice", "phone", phone.clone()).unwrap();
    let call = Message::to("alice", "call.ring", "").devices(DevicePolicy::RingAll).build().unwrap();
    let receipt = engine.send(call).await.unwrap();
    until(|| phone.seen.lock().unwrap().len() == 1).await;
    let answers = engine.attach("alice", "laptop", answering()).unwrap();
    assert_eq!(receipt.reached(Stage::Delivered).await, Ok(Reached::Stage(Stage::Delivered)));
    until(|| *phone.withdrawn.lock().unwrap() == [receipt.id()]).await;
    let counters = engine.stats().await.unwrap().counters;
    assert_eq!((counters.live(), counters.ended[EndReason::Elsewhere.index()]), (0, 1));
    drop((rings, answers));
    engine.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_listed_and_what_waits_for_one_that_is_removed_ends() {
    let engine = engine().await;
    let message =
        Message::to("alice", "chat.message", "hi").devices(DevicePolicy::EveryDevice).build().unwrap();
    let receipt = engine.send(message).await.unwrap();
    let sink = engine.attach("alice", "phone", Device::default()).unwrap();
    let outcome = engine.unregister_device("alice", "laptop").await.unwrap();
    assert_eq!((outcome.messages, outcome.possibly_delivered), (1, 0));
    let all = receipt.reached(Stage::DeliveredAll).await.unwrap();
    assert_eq!(all, Reached::Ended { reason: EndReason::DeviceGone, possibly_delivered: false });
    // One that leaves is listed until it is durable that nothing is left of what waited for it.
    let gone = async {
        loop {
            let devices = engine.devices("alice").await.unwrap();
            let stay = devices.iter().filter(|device| !device.info.is_leaving);
            let stay: Vec<_> = stay.map(|d| (d.info.device.to_string(), d.is_attached)).collect();
            assert_eq!(stay, [("phone".to_owned(), true)]);
            if devices.len() == 1 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), gone).await.expect("the laptop is never gone");
    drop(sink);
    engine.shutdown(Duration::from_secs(5)).await;
}

type Wait<'a> = Pin<Box<dyn Future<Output = Result<Reached, WatchError>> + 'a>>;

/// A wait that the engine knows of.
async fn waits<'a>(engine: &Engine, receipt: &'a Receipt, stage: Stage) -> Wait<'a> {
    let mut wait: Wait<'a> = Box::pin(receipt.reached(stage));
    let begun = poll_fn(|context| Poll::Ready(wait.as_mut().poll(context))).await;
    assert!(begun.is_pending(), "{begun:?}");
    // Asked behind it, in the same letter box.
    engine.devices("alice").await.unwrap();
    wait
}

async fn soon(wait: impl Future<Output = Result<Reached, WatchError>>) -> Result<Reached, WatchError> {
    tokio::time::timeout(Duration::from_secs(300), wait).await.expect("it is never reached")
}

/// Found by an audit: one copy was followed, the last, and what became of it was said to have become of the message.
#[tokio::test]
async fn what_becomes_of_a_scheduled_message_is_what_becomes_of_it_on_all_its_devices() {
    let clock = ManualClock::new(Timestamp::from_millis(1_700_000_000_000));
    let engine = with_devices(Engine::builder(MemoryStore::new()).clock(clock.clone())).await;
    for (devices, answers, stage, expected) in [
        // Only one of two has it, whichever that is.
        (DevicePolicy::EveryDevice, "laptop", Stage::DeliveredAll, None),
        (DevicePolicy::EveryDevice, "phone", Stage::DeliveredAll, None),
        (DevicePolicy::EveryDevice, "laptop", Stage::Delivered, Some(Stage::Delivered)),
        (DevicePolicy::EveryDevice, "phone", Stage::Delivered, Some(Stage::Delivered)),
        // What was answered on one of them has ended elsewhere on the other.
        (DevicePolicy::RingAll, "phone", Stage::Delivered, Some(Stage::Delivered)),
        (DevicePolicy::RingAll, "laptop", Stage::Delivered, Some(Stage::Delivered)),
    ] {
        let case = format!("{devices:?} {answers} {stage:?}");
        let at = clock.now().after(Duration::from_secs(60));
        let message = Message::to("alice", "chat.message", "hi").devices(devices).not_before(at);
        let receipt = engine.send(message.build().unwrap()).await.unwrap();
        assert_eq!(receipt.entries().len(), 1, "{case}");
        let mut before = waits(&engine, &receipt, stage).await;
        clock.advance(Duration::from_secs(61));
        let attached = engine.attach("alice", answers, answering()).unwrap();
        // One more wait, which begins once it was spread.
        let first = soon(receipt.reached(Stage::Delivered)).await;
        assert_eq!(first, Ok(Reached::Stage(Stage::Delivered)), "{case}");
        match expected {
            Some(stage) => assert_eq!(soon(before).await, Ok(Reached::Stage(stage)), "{case}"),
            None => {
                let more = receipt.reached_within(stage, Duration::from_millis(20)).await;
                assert_eq!(more, Ok(None), "{case}");
                let so_far = poll_fn(|context| Poll::Ready(before.as_mut().poll(context))).await;
                assert!(so_far.is_pending(), "{case}: {so_far:?}");
                let other = if answers == "phone" { "laptop" } else { "phone" };
                let others = engine.attach("alice", other, answering()).unwrap();
                assert_eq!(soon(before).await, Ok(Reached::Stage(stage)), "{case}");
                drop(others);
            }
        }
        drop(attached);
        // What is left of this one must not be taken for the next.
        let both = ["phone", "laptop"].map(|device| engine.attach("alice", device, answering()).unwrap());
        while engine.stats().await.unwrap().counters.live() > 0 {
            tokio::task::yield_now().await;
        }
        drop(both);
    }
    engine.shutdown(Duration::from_secs(5)).await;
}

/// Refuses for good what it is offered.
struct Refusing;

impl lastmile::ports::Sink for Refusing {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        batch.iter().map(|delivery| (delivery.entry, Verdict::Rejected)).collect()
    }
}

/// Found by review: whoever repeated the send after an opening waited for ever for what was kept as a dead letter.
#[tokio::test]
async fn what_was_spread_over_devices_and_is_kept_as_a_dead_letter_has_ended_also_after_an_opening() {
    let clock = ManualClock::new(Timestamp::from_millis(1_700_000_000_000));
    let (store, journal) = (MemoryStore::new(), MemoryJournal::new(JournalConfig::default()).unwrap());
    let open = || Engine::builder(store.clone()).clock(clock.clone()).journal(journal.clone());
    let at = clock.now().after(Duration::from_secs(60));
    let message =
        Message::to("alice", "chat.message", "hi").devices(DevicePolicy::EveryDevice).not_before(at);
    let message = message.build().unwrap();
    let first = with_devices(open()).await;
    first.send(message.clone()).await.unwrap();
    clock.advance(Duration::from_secs(61));
    let sinks = ["phone", "laptop"].map(|device| first.attach("alice", device, Refusing).unwrap());
    while first.stats().await.unwrap().counters.live() > 0 {
        tokio::task::yield_now().await;
    }
    drop(sinks);
    assert!(first.shutdown(Duration::from_secs(5)).await.stopped);
    drop(first);

    let second = open().build().unwrap();
    let receipt = second.send(message).await.unwrap();
    assert!(receipt.is_duplicate());
    for stage in [Stage::Delivered, Stage::DeliveredAll, Stage::Sent] {
        let reached = soon(receipt.reached(stage)).await.unwrap();
        let Reached::Ended { reason, .. } = reached else { panic!("{stage:?}: {reached:?}") };
        assert_eq!(reason, EndReason::Rejected, "{stage:?}");
    }
    second.shutdown(Duration::from_secs(5)).await;
}
