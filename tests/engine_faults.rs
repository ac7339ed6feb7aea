//! The engine when its journal or its store fails, and when they come back.
#![cfg(all(feature = "runtime", feature = "testing"))]

use std::sync::Arc;
use std::time::Duration;

use lastmile::storage::disk::Disk;
use lastmile::storage::journal::{FileJournal, JournalConfig};
use lastmile::testing::{DiskOp, Fault, FaultyDisk, FaultyStore, Reply, ScriptedSink};
use lastmile::{Config, Engine, Message, Receipt, SendError};

const SMALL: JournalConfig = JournalConfig { segment_bytes: 64 << 10, segments: 4 };

fn journal(disk: &FaultyDisk) -> FileJournal {
    FileJournal::open(Arc::new(disk.clone()) as Arc<dyn Disk>, SMALL).unwrap()
}

fn engine(disk: &FaultyDisk, store: &FaultyStore) -> Engine {
    let mut config = Config::default();
    config.max_payload_bytes = (8 << 10).try_into().unwrap();
    Engine::builder(store.clone()).config(config).journal(journal(disk)).build().unwrap()
}

fn message(text: &str) -> Message {
    Message::to("alice", "chat.message", text.to_owned()).build().unwrap()
}

/// Sends the same message until it is accepted; gives up after 20 s.
async fn insist(engine: &Engine, message: &Message) -> Receipt {
    let tries = async {
        loop {
            match engine.send(message.clone()).await {
                Ok(receipt) => return receipt,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), tries).await.expect("the engine does not heal")
}

#[tokio::test]
async fn a_failed_sync_is_an_unknown_outcome_and_the_engine_heals_and_accepts_once() {
    let (disk, store) = (FaultyDisk::new(), FaultyStore::new());
    let engine = engine(&disk, &store);
    engine.send(message("before")).await.unwrap();
    disk.fail_next(DiskOp::Sync, Fault::Once);
    let hit = message("hit");
    let error: SendError = engine.send(hit.clone()).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), ("outcome_unknown", true));
    assert_eq!(error.into_message(), hit);
    let receipt = insist(&engine, &hit).await;
    assert!(!receipt.is_duplicate());
    let stats = engine.stats().await.unwrap();
    assert_eq!((stats.counters.accepted, stats.degraded), (2, false));
    assert!(stats.journal_failures > 0);
}

#[tokio::test]
async fn what_was_accepted_around_a_failure_is_there_after_a_crash_and_nothing_else() {
    let (disk, store) = (FaultyDisk::new(), FaultyStore::new());
    let first = engine(&disk, &store);
    first.send(message("before")).await.unwrap();
    disk.fail_next(DiskOp::Sync, Fault::Once);
    first.send(message("unknown")).await.unwrap_err();
    insist(&first, &message("after")).await;
    first.shutdown(Duration::from_secs(20)).await;
    drop(first);
    disk.kill();
    let second = engine(&disk, &store);
    assert_eq!(second.stats().await.unwrap().counters.accepted, 2);
}

#[tokio::test]
async fn a_store_that_fails_refuses_sends_when_the_journal_is_full_and_loses_nothing() {
    let (disk, store) = (FaultyDisk::new(), FaultyStore::new());
    let engine = engine(&disk, &store);
    store.set_disk_full(true);
    let mut accepted = 0;
    let error = loop {
        match engine.send(message(&"x".repeat(4000))).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 1000, "the journal never fills");
    };
    assert_eq!(error.kind(), "degraded");
    store.set_disk_full(false);
    store.heal();
    insist(&engine, &error.into_message()).await;
    let stats = engine.stats().await.unwrap();
    assert_eq!(stats.counters.accepted, accepted + 1);
    assert!(stats.settlements > 0 && stats.store_failures > 0, "{stats:?}");
}

#[tokio::test]
async fn an_engine_whose_store_was_taken_over_accepts_nothing_more() {
    let (disk, store) = (FaultyDisk::new(), FaultyStore::new());
    let old = engine(&disk, &store);
    old.send(message("old")).await.unwrap();
    let new = engine(&disk, &store);
    assert!(old.send(message("late")).await.is_err());
    new.send(message("new")).await.unwrap();
    assert_eq!(new.stats().await.unwrap().counters.accepted, 2);
}

#[tokio::test]
async fn a_shutdown_with_something_in_flight_ends_at_its_deadline_and_says_so() {
    let (disk, store) = (FaultyDisk::new(), FaultyStore::new());
    let engine = engine(&disk, &store);
    let _attached = engine.attach("alice", "phone", ScriptedSink::always(Reply::Never)).unwrap();
    let receipt = engine.send(message("stuck")).await.unwrap();
    receipt.reached(lastmile::Stage::Sent).await.unwrap();
    let report = engine.shutdown(Duration::from_millis(50)).await;
    assert!(!report.clean && report.in_flight == 1 && report.waiting == 1, "{report}");
}
