//! Subscriptions to what becomes of messages, through the whole engine.
#![cfg(feature = "runtime")]

#[path = "common/phone.rs"]
mod phone;

use std::time::Duration;

use lastmile::storage::MemoryStore;
use lastmile::{
    EndReason, Engine, EventName, Filter, HearError, Heard, Message, MessageId, OrderingKey, Priority,
    Status, SubscribeError, Subscription, UserId,
};

use self::phone::PHONE;

fn engine() -> Engine {
    Engine::builder(MemoryStore::new()).build().unwrap()
}

fn message(user: &str, event: &str, id: u128) -> Message {
    Message::to(user, event, "hello").sender("bob").id(MessageId::from_u128(id)).build().unwrap()
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

async fn next(subscription: &mut Subscription) -> (u128, Status) {
    let heard = tokio::time::timeout(Duration::from_secs(20), subscription.recv()).await;
    match heard.expect("nothing was heard").unwrap() {
        Heard::Changed(change) => (change.id.unwrap().as_u128(), change.status),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_subscriber_hears_of_its_messages_in_the_order_things_happened() {
    let engine = engine();
    let sent_and_delivered = |id| [(id, Status::Sent), (id, Status::Ended(EndReason::Delivered))];
    let mut alices = engine.subscribe(Filter::all().user(user("alice"))).unwrap();
    let call = EventName::new("call").unwrap();
    let mut calls = engine.subscribe(Filter::all().sender(user("bob")).event(call)).unwrap();
    let mut one = engine.subscribe(Filter::all().message(user("carol"), MessageId::from_u128(3))).unwrap();
    let _attached = ["alice", "carol"].map(|user| engine.attach(user, "phone", PHONE).unwrap());
    for (to, event, id) in
        [("alice", "chat.message", 1), ("carol", "call.ring", 2), ("carol", "chat.message", 3)]
    {
        let receipt = engine.send(message(to, event, id)).await.unwrap();
        receipt.reached(lastmile::Stage::Delivered).await.unwrap();
    }
    for (subscription, id) in [(&mut alices, 1), (&mut calls, 2), (&mut one, 3)] {
        assert_eq!([next(subscription).await, next(subscription).await], sent_and_delivered(id));
        assert_eq!(subscription.try_recv(), Ok(None));
    }
}

#[tokio::test]
async fn a_subscription_to_a_place_follows_a_message_into_another_lane() {
    let engine = engine();
    let receipt = engine.send(message("alice", "chat.message", 1)).await.unwrap();
    let mut follows = engine.subscribe(Filter::all().entry(user("alice"), receipt.entry())).unwrap();
    engine.reprioritise("alice", MessageId::from_u128(1), Priority::High).await.unwrap();
    engine.cancel("alice", MessageId::from_u128(1)).await.unwrap();
    let moved = tokio::time::timeout(Duration::from_secs(20), follows.recv()).await;
    let Ok(Ok(Heard::Moved { from, .. })) = moved else { panic!("no move was heard: {moved:?}") };
    assert_eq!(from, receipt.entry());
    assert_eq!(next(&mut follows).await, (1, Status::Ended(EndReason::Cancelled)));
}

#[tokio::test]
async fn a_subscriber_that_panics_and_one_that_never_reads_are_nobody_elses_trouble() {
    let mut config = lastmile::Config::default();
    config.subscription_buffer = 2.try_into().unwrap();
    let engine = Engine::builder(MemoryStore::new()).config(config).build().unwrap();
    let mut panics = engine.subscribe(Filter::all()).unwrap();
    let mut stuck = engine.subscribe(Filter::all()).unwrap();
    let mut reads = engine.subscribe(Filter::all()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let heard = panics.recv().await;
        panic!("{heard:?}");
    });
    for id in 1..=5 {
        engine.send(message("alice", "chat.message", id)).await.unwrap();
        engine.cancel("alice", MessageId::from_u128(id)).await.unwrap();
        assert_eq!(next(&mut reads).await, (id, Status::Ended(EndReason::Cancelled)));
    }
    assert!(tasks.join_next().await.unwrap().unwrap_err().is_panic());
    assert_eq!(stuck.recv().await, Err(HearError::Lagged(3)));
    assert_eq!(next(&mut stuck).await.0, 4);
    assert_eq!(next(&mut stuck).await.0, 5);
}

#[tokio::test]
async fn a_shutdown_ends_subscriptions_and_takes_no_more() {
    let engine = engine();
    let mut subscription = engine.subscribe(Filter::all()).unwrap();
    engine.shutdown(Duration::from_secs(20)).await;
    assert!(matches!(subscription.recv().await, Err(HearError::Closed(_))));
    assert!(matches!(engine.subscribe(Filter::all()), Err(SubscribeError::Closed(_))));
}

#[tokio::test]
async fn the_last_handle_of_an_engine_ends_subscriptions() {
    let engine = engine();
    let mut subscription = engine.subscribe(Filter::all()).unwrap();
    drop(engine);
    let ended = tokio::time::timeout(Duration::from_secs(20), subscription.recv()).await;
    assert!(matches!(ended, Ok(Err(HearError::Closed(_)))), "{ended:?}");
}

#[tokio::test]
async fn whoever_listens_to_a_reader_hears_that_a_conversation_was_read_once() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let mut changes = engine.subscribe(Filter::all().user(UserId::new("alice").unwrap())).unwrap();
    let room = || Some(OrderingKey::new("room/1").unwrap());
    let message = Message::to("alice", "chat.message", "hello").ordering_key("room/1").build().unwrap();
    let place = engine.send(message).await.unwrap().entry().seq;
    let mark = engine.mark_read("alice", room(), place).await.unwrap();
    engine.mark_read("alice", room(), place).await.unwrap();
    let Heard::Read { user, conversation, mark: heard } = changes.recv().await.unwrap() else {
        panic!("nothing else has happened")
    };
    assert_eq!((user.as_bytes(), conversation, Some(heard)), (&b"alice"[..], room(), mark));
    assert_eq!(changes.try_recv(), Ok(None));
}
