//! Waiting for what becomes of a message.
#![cfg(all(feature = "runtime", feature = "sled"))]

#[path = "common/phone.rs"]
mod phone;

use std::time::Duration;

use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::Sink;
use lastmile::storage::{MemoryStore, SledStore};
use lastmile::testing::ManualClock;
use lastmile::{EndReason, Engine, Message, MessageId, Reached, Stage, Timestamp};

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
    first.send(message("alice", 3)).await.unwrap();
    first.cancel("alice", MessageId::from_u128(3)).await.unwrap();
    settle(&first, 1 << 20).await;
    first.shutdown(LONG).await;
    drop(first);

    let second = engine(dir.path());
    let ended = second.send(message("alice", 1)).await.unwrap();
    assert!(ended.is_duplicate());
    let wait = tokio::time::timeout(LONG, ended.reached(Stage::Delivered)).await;
    let delivered = Ok(Reached::Stage(Stage::Delivered));
    assert_eq!(wait.expect("a wait for an ended message never ends"), delivered);

    let withdrawn = second.send(message("alice", 3)).await.unwrap();
    let reached = tokio::time::timeout(LONG, withdrawn.reached(Stage::Delivered)).await;
    let (reason, possibly_delivered) = (EndReason::Cancelled, false);
    assert_eq!(reached.expect("it has ended"), Ok(Reached::Ended { reason, possibly_delivered }));

    let waiting = second.send(message("alice", 2)).await.unwrap();
    let (reached, _attached) = tokio::join!(waiting.reached(Stage::Delivered), async {
        second.stats().await.unwrap();
        second.attach("alice", "phone", PHONE).unwrap()
    });
    assert_eq!(reached, Ok(Reached::Stage(Stage::Delivered)));
    second.shutdown(LONG).await;
}

/// Found by an audit: what had ended before the last few thousand was said to be forgotten, while others who asked were told.
#[tokio::test]
async fn what_was_delivered_long_ago_is_found_by_whoever_begins_to_wait_for_it_then() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let _attached = engine.attach("alice", "phone", PHONE).unwrap();
    let first = engine.send(message("alice", 1)).await.unwrap();
    let mut last = first.clone();
    for hundred in 0..100 {
        let messages = (1..=100).map(|n| message("alice", 1 + hundred * 100 + n)).collect();
        last = engine.send_batch(messages).await.unwrap().pop().unwrap();
    }
    for receipt in [&last, &first] {
        let reached = tokio::time::timeout(LONG * 10, receipt.reached(Stage::Delivered)).await;
        assert_eq!(reached.expect("it was delivered"), Ok(Reached::Stage(Stage::Delivered)));
    }
    engine.shutdown(LONG).await;
}

/// Refuses everything for now.
struct Away;

impl Sink for Away {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        batch.iter().map(|delivery| (delivery.entry, Verdict::Nack(None))).collect()
    }
}

/// Found by an audit: whoever waited for the first offer then waited for the next one, by a clock that stands still for ever.
#[tokio::test]
async fn what_waits_for_its_next_attempt_was_sent() {
    let clock = ManualClock::new(Timestamp::from_millis(1_700_000_000_000));
    let engine = Engine::builder(MemoryStore::new()).clock(clock).build().unwrap();
    let attached = engine.attach("alice", "phone", Away).unwrap();
    let receipt = engine.send(message("alice", 1)).await.unwrap();
    let tried = async {
        while engine.stats().await.unwrap().retrying() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG * 10, tried).await.expect("it is refused");
    for _ in 0..2 {
        let reached = tokio::time::timeout(LONG * 10, receipt.reached(Stage::Sent)).await;
        assert_eq!(reached.expect("it was on offer"), Ok(Reached::Stage(Stage::Sent)));
    }
    drop(attached);
    engine.shutdown(LONG).await;
}
