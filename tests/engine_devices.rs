//! Registered devices through the whole engine: what is for each of them, what rings, and what is said of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lastmile::machine::{Delivery, EntryRef, Verdict, Withdrawn};
use lastmile::storage::MemoryStore;
use lastmile::{DevicePolicy, EndReason, Engine, Message, MessageId, Reached, Stage, Status};

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
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
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
