//! Waiting for what becomes of a message.
#![cfg(all(feature = "runtime", feature = "sled"))]

#[path = "common/phone.rs"]
mod phone;

use std::time::Duration;

use lastmile::storage::SledStore;
use lastmile::{Engine, Message, MessageId, Reached, Stage, WatchError};

use self::phone::PHONE;

const LONG: Duration = Duration::from_secs(20);

fn engine(dir: &std::path::Path) -> Engine {
    let mut config = lastmile::Config::default();
    config.max_payload_bytes = (8 << 10).try_into().unwrap();
    let store = SledStore::open(dir).unwrap();
    Engine::builder(store).config(config).journal_size(64 << 10, 4).build().unwrap()
}

fn message(user: &str, id: u128) -> Message {
    Message::to(user, "chat.message", "hello").id(MessageId::from_u128(id)).build().unwrap()
}

/// Sends to somebody else until the journal has settled twice more.
async fn settle(engine: &Engine, from: u128) {
    let before = engine.stats().await.unwrap().settlements;
    for id in from.. {
        engine.send(message("somebody", id)).await.unwrap();
        if engine.stats().await.unwrap().settlements >= before + 2 {
            return;
        }
    }
}

#[tokio::test]
async fn a_wait_for_a_message_that_ended_in_an_earlier_life_ends_and_one_that_waits_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = engine(dir.path());
    let attached = first.attach("alice", "phone", PHONE).unwrap();
    let receipt = first.send(message("alice", 1)).await.unwrap();
    assert_eq!(receipt.reached(Stage::Delivered).await, Ok(Reached::Stage(Stage::Delivered)));
    drop(attached);
    first.send(message("alice", 2)).await.unwrap();
    settle(&first, 1 << 20).await;
    first.shutdown(LONG).await;
    drop(first);

    let second = engine(dir.path());
    let ended = second.send(message("alice", 1)).await.unwrap();
    assert!(ended.is_duplicate());
    let wait = tokio::time::timeout(LONG, ended.reached(Stage::Delivered)).await;
    assert_eq!(wait.expect("a wait for an ended message never ends"), Err(WatchError::Forgotten));

    let waiting = second.send(message("alice", 2)).await.unwrap();
    let (reached, _attached) = tokio::join!(waiting.reached(Stage::Delivered), async {
        second.stats().await.unwrap();
        second.attach("alice", "phone", PHONE).unwrap()
    });
    assert_eq!(reached, Ok(Reached::Stage(Stage::Delivered)));
    second.shutdown(LONG).await;
}
