//! Who is attached, through the whole engine.
#![cfg(feature = "runtime")]

#[path = "common/phone.rs"]
mod phone;

use std::time::Duration;

use lastmile::storage::MemoryStore;
use lastmile::{
    Config, Detached, Engine, HearError, Message, PresenceChange, PresenceKind, PresenceWatch, UserId,
};

use self::phone::{PHONE, Phone};

fn engine() -> Engine {
    Engine::builder(MemoryStore::new()).build().unwrap()
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

async fn next(watch: &mut PresenceWatch) -> PresenceChange {
    tokio::time::timeout(Duration::from_secs(20), watch.recv()).await.expect("nothing was heard").unwrap()
}

#[tokio::test]
async fn a_device_is_here_from_attaching_to_detaching_and_taking_over_is_no_leaving() {
    let engine = engine();
    let mut changes = engine.watch_presence(Some(user("alice"))).unwrap();
    let first = engine.attach("alice", "phone", PHONE).unwrap();
    assert!(engine.presence(&user("alice")).is_present(), "at once");
    let second = engine.attach("alice", "phone", PHONE).unwrap();
    assert_eq!(first.closed().await, Detached::Dismissed);
    assert!(engine.presence(&user("alice")).is_present());
    drop(first);
    drop(second);
    assert!(!engine.presence(&user("alice")).is_present(), "at once");
    for kind in [PresenceKind::Attached, PresenceKind::TakenOver, PresenceKind::Detached(Detached::Dropped)] {
        assert_eq!(next(&mut changes).await.kind, kind);
    }
    assert_eq!(changes.try_recv(), Ok(None));
}

#[tokio::test]
async fn a_sink_that_panics_and_a_device_too_many_are_seen_to_leave() {
    let mut config = Config::default();
    config.max_devices = 1.try_into().unwrap();
    let engine = Engine::builder(MemoryStore::new()).config(config).build().unwrap();
    let mut changes = engine.watch_presence(None).unwrap();
    let panics = engine.attach("alice", "phone", Phone { panics: true }).unwrap();
    assert!(next(&mut changes).await.user_came());
    let too_many = engine.attach("alice", "laptop", PHONE).unwrap();
    assert_eq!(next(&mut changes).await.attached, 2);
    assert_eq!(too_many.closed().await, Detached::Dismissed);
    assert_eq!(next(&mut changes).await.kind, PresenceKind::Detached(Detached::Dismissed));
    engine.send(Message::to("alice", "chat.message", "hi").build().unwrap()).await.unwrap();
    assert_eq!(panics.closed().await, Detached::Panicked);
    let gone = next(&mut changes).await;
    assert_eq!(gone.kind, PresenceKind::Detached(Detached::Panicked));
    assert!(gone.user_went());
}

#[tokio::test]
async fn a_shutdown_sees_everybody_leave_and_ends_watches() {
    let engine = engine();
    let mut changes = engine.watch_presence(None).unwrap();
    let attached = ["alice", "bob"].map(|user| engine.attach(user, "phone", PHONE).unwrap());
    assert_eq!(engine.present(None, 10).users.len(), 2);
    engine.shutdown(Duration::from_secs(20)).await;
    let mut left = 0;
    let ended = loop {
        match changes.recv().await {
            Ok(change) => left += usize::from(change.user_went()),
            Err(ended) => break ended,
        }
    };
    assert_eq!((left, engine.present(None, 10).users.len()), (2, 0));
    assert!(matches!(ended, HearError::Closed(_)));
    assert!(engine.watch_presence(None).is_err());
    drop(attached);
}

#[tokio::test]
async fn the_last_handle_of_an_engine_ends_watches_though_sinks_are_held() {
    let engine = engine();
    let mut changes = engine.watch_presence(None).unwrap();
    let _attached = engine.attach("alice", "phone", PHONE).unwrap();
    drop(engine);
    assert!(next(&mut changes).await.user_came());
    assert!(next(&mut changes).await.user_went());
    let ended = tokio::time::timeout(Duration::from_secs(20), changes.recv()).await;
    assert!(matches!(ended, Ok(Err(HearError::Closed(_)))), "{ended:?}");
}

/// What the registry and the driver say of two attachments of one device must be the same, whichever came first.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_attaches_at_once_with_one_device_is_here_with_the_attachment_that_lives() {
    let engine = engine();
    for _ in 0..200 {
        let attach = || {
            let engine = engine.clone();
            tokio::task::spawn_blocking(move || engine.attach("alice", "phone", PHONE).unwrap())
        };
        let both = [attach(), attach()];
        let [one, other] = both;
        let (one, other) = (one.await.unwrap(), other.await.unwrap());
        tokio::select! {
            _ = one.closed() => drop(one),
            _ = other.closed() => drop(other),
        }
        assert!(engine.presence(&user("alice")).is_present());
    }
}

#[tokio::test]
async fn what_a_device_says_of_messages_is_a_sign_of_life() {
    let engine = engine();
    let attached = engine.attach("alice", "phone", PHONE).unwrap();
    let seen = || engine.presence(&user("alice")).last_seen().unwrap();
    let before = seen();
    while seen() == before {
        tokio::task::yield_now().await;
        attached.seen();
    }
    let before = seen();
    while seen() == before {
        let receipt = engine.send(Message::to("alice", "chat.message", "hi").build().unwrap()).await.unwrap();
        receipt.reached(lastmile::Stage::Delivered).await.unwrap();
    }
}
