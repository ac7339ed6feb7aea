//! Waiting until a message has been read.
#![cfg(feature = "runtime")]

#[path = "common/phone.rs"]
mod phone;

use std::time::Duration;

use lastmile::storage::MemoryStore;
use lastmile::{DevicePolicy, EndReason, Engine, Message, Reached, Receipt, Stage};

use self::phone::PHONE;

const LONG: Duration = Duration::from_secs(300);
const READ: Option<Reached> = Some(Reached::Stage(Stage::Read));

async fn said(engine: &Engine, room: &str) -> Receipt {
    let message = Message::to("alice", "chat.message", "hello").ordering_key(room).build().unwrap();
    engine.send(message).await.unwrap()
}

async fn read(engine: &Engine, room: &str, receipt: &Receipt) {
    let key = Some(room.try_into().unwrap());
    engine.mark_read("alice", key, receipt.entry().seq).await.unwrap().expect("it is remembered");
}

#[tokio::test]
async fn a_message_is_read_when_its_own_conversation_is_read_up_to_it_whether_before_or_while_somebody_waits()
{
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let attached = engine.attach("alice", "phone", PHONE).unwrap();
    let [first, second, elsewhere] =
        [said(&engine, "a").await, said(&engine, "a").await, said(&engine, "b").await];
    for receipt in [&first, &second, &elsewhere] {
        assert_eq!(receipt.reached(Stage::Delivered).await, Ok(Reached::Stage(Stage::Delivered)));
    }
    read(&engine, "a", &first).await;
    assert_eq!(first.reached_within(Stage::Read, LONG).await, Ok(READ));
    for unread in [&second, &elsewhere] {
        assert_eq!(unread.reached_within(Stage::Read, Duration::from_millis(1)).await, Ok(None));
    }
    let (waited, ()) = tokio::join!(second.reached_within(Stage::Read, LONG), async {
        // The wait is under way once what was sent to the engine after it is answered.
        engine.stats().await.unwrap();
        read(&engine, "a", &second).await;
    });
    assert_eq!(waited, Ok(READ));
    let status = engine.status("alice", second.id()).await.unwrap().expect("it was delivered just now");
    assert!(status.read.is_some());
    let history = engine.history("alice", elsewhere.id()).await.unwrap().unwrap();
    assert_eq!((history.located.read, history.forgotten()), (None, 0));
    drop(attached);
    engine.shutdown(LONG).await;
}

#[tokio::test]
async fn what_was_not_delivered_will_not_be_read_and_one_device_that_has_it_is_enough() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let withdrawn = said(&engine, "a").await;
    engine.mark_read("alice", Some("a".try_into().unwrap()), withdrawn.entry().seq).await.unwrap();
    engine.cancel("alice", withdrawn.id()).await.unwrap();
    let ended = Reached::Ended { reason: EndReason::Cancelled, possibly_delivered: false };
    assert_eq!(withdrawn.reached(Stage::Read).await, Ok(ended));
    for device in ["phone", "laptop"] {
        engine.register_device("alice", device).await.unwrap();
    }
    let attached = engine.attach("alice", "phone", PHONE).unwrap();
    let message = Message::to("alice", "chat.message", "hi").devices(DevicePolicy::EveryDevice);
    let receipt = engine.send(message.build().unwrap()).await.unwrap();
    assert_eq!(receipt.reached(Stage::Delivered).await, Ok(Reached::Stage(Stage::Delivered)));
    engine.mark_read("alice", None, receipt.entry().seq).await.unwrap();
    assert_eq!(receipt.reached_within(Stage::Read, LONG).await, Ok(READ), "the laptop is away");
    drop(attached);
    engine.shutdown(LONG).await;
}
