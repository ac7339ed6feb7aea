//! The feed of ends, through the whole engine.
#![cfg(all(feature = "runtime", feature = "sled"))]

use std::path::Path;
use std::time::Duration;

use lastmile::record::EndPosition;
use lastmile::storage::outbox::EndsError;
use lastmile::storage::{MemoryStore, SledStore};
use lastmile::{Config, EndFeed, EndReason, Engine, FeedError, KeepEnds, Message, MessageId};

fn sled(dir: &Path) -> Engine {
    Engine::builder(SledStore::open(dir).unwrap()).journal_size(1 << 20, 4).build_with_small_payloads()
}

/// So that a small journal takes them.
trait Small {
    fn build_with_small_payloads(self) -> Engine;
}

impl Small for lastmile::EngineBuilder {
    fn build_with_small_payloads(self) -> Engine {
        let mut config = Config::default();
        config.max_payload_bytes = (16 << 10).try_into().unwrap();
        self.config(config).build().unwrap()
    }
}

async fn withdraw(engine: &Engine, id: u128, payload: usize) {
    let message = Message::to(format!("user-{}", id % 7), "chat.message", vec![b'.'; payload]);
    let message = message.id(MessageId::from_u128(id)).build().unwrap();
    let user = message.recipient().clone();
    engine.send(message).await.unwrap();
    engine.cancel(user, MessageId::from_u128(id)).await.unwrap();
}

async fn next(feed: &mut EndFeed, max: usize) -> Vec<u128> {
    let ends = tokio::time::timeout(Duration::from_secs(20), feed.next(max)).await.expect("no end came");
    ends.unwrap().iter().map(|ended| ended.end.id.unwrap().as_u128()).collect()
}

#[tokio::test]
async fn one_who_waits_sees_each_end_and_going_on_from_a_position_sees_the_rest() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let mut feed = engine.ends(EndPosition::START);
    {
        let mut wait = std::pin::pin!(feed.next(10));
        tokio::select! {
            biased;
            ended = &mut wait => panic!("there is no end yet: {ended:?}"),
            () = std::future::ready(()) => {}
        }
        withdraw(&engine, 1, 8).await;
    }
    assert_eq!(next(&mut feed, 10).await, [1], "a wait that is dropped has taken nothing");
    let (ended, ()) = tokio::join!(next(&mut feed, 10), withdraw(&engine, 2, 8));
    assert_eq!(ended, [2]);
    let second = feed.position();
    for id in 3..=9 {
        withdraw(&engine, id, 8).await;
    }
    assert_eq!((next(&mut feed, 5).await, next(&mut feed, 5).await), (vec![3, 4, 5, 6, 7], vec![8, 9]));
    assert_eq!(next(&mut engine.ends(second), 3).await, [3, 4, 5]);
    let page = engine.ended(second, 2).await.unwrap();
    assert_eq!(page.iter().map(|ended| ended.end.reason).collect::<Vec<_>>(), [EndReason::Cancelled; 2]);
    drop(engine);
    let ended = tokio::time::timeout(Duration::from_secs(20), feed.next(1)).await;
    assert!(matches!(ended, Ok(Err(FeedError::Closed(_)))), "{ended:?}");
}

#[tokio::test]
async fn every_end_is_there_after_restarts_settled_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut handled = EndPosition::START;
    let (mut seen, mut id, mut settled) = (Vec::new(), 0, 0);
    for _ in 0..3 {
        let engine = sled(dir.path());
        for _ in 0..150 {
            id += 1;
            withdraw(&engine, id, 12 << 10).await;
        }
        while engine.stats().await.unwrap().settlements == 0 {
            id += 1;
            withdraw(&engine, id, 12 << 10).await;
        }
        let mut feed = engine.ends(handled);
        while seen.len() + 100 < id as usize {
            seen.extend(next(&mut feed, 40).await);
            handled = EndPosition::from_bytes(feed.position().to_bytes());
        }
        settled += engine.stats().await.unwrap().settlements;
        engine.shutdown(Duration::from_secs(20)).await;
    }
    let engine = sled(dir.path());
    let mut feed = engine.ends(handled);
    while seen.len() < id as usize {
        seen.extend(next(&mut feed, 40).await);
    }
    assert_eq!(seen, (1..=id).collect::<Vec<_>>());
    assert!(settled >= 3);
}

#[tokio::test]
async fn nobody_waits_for_one_who_does_not_read_and_who_is_told_how_much_is_gone() {
    let mut config = Config::default();
    config.max_ends = 10.try_into().unwrap();
    let engine = Engine::builder(MemoryStore::new()).config(config).build().unwrap();
    withdraw(&engine, 1, 8).await;
    let mut slow = engine.ends(EndPosition::START);
    assert_eq!(next(&mut slow, 1).await, [1]);
    for id in 2..=30 {
        withdraw(&engine, id, 8).await;
    }
    match slow.next(100).await {
        Err(FeedError::Ends(EndsError::Lagged { missed: Some(19), .. })) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(next(&mut slow, 100).await, (21..=30).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_engine_that_keeps_none_says_so() {
    let mut config = Config::default();
    config.keep_ends = KeepEnds::Nothing;
    let engine = Engine::builder(MemoryStore::new()).config(config).build().unwrap();
    withdraw(&engine, 1, 8).await;
    let refused = engine.ends(EndPosition::START).next(1).await.unwrap_err();
    assert!(matches!(refused, FeedError::Ends(EndsError::NotKept)));
}
