//! What waits where nothing is offered from: scheduled messages and dead letters, from end to end.
#![cfg(all(feature = "runtime", feature = "sled", feature = "testing"))]

use std::time::{Duration, SystemTime};

use lastmile::machine::{DeadLetters, Verdict};
use lastmile::record::{LaneId, Seq};
use lastmile::storage::{MemoryStore, SledStore};
use lastmile::testing::ScriptedSink;
use lastmile::{Config, EndReason, Engine, Message, MessageId, Priority, Reached, Stage, UserId};

#[expect(clippy::disallowed_methods, reason = "a test has no engine's clock to ask")]
fn now() -> SystemTime {
    SystemTime::now()
}

const LONG: Duration = Duration::from_secs(20);

fn alice() -> DeadLetters {
    DeadLetters::of(UserId::new("alice").unwrap())
}

#[tokio::test]
async fn whoever_waits_for_a_scheduled_message_goes_on_waiting_when_it_takes_its_place() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let soon = now() + Duration::from_millis(300);
    let later =
        Message::to("alice", "calendar.reminder", "dentist").priority(Priority::High).not_before(soon);
    let receipt = engine.send(later.build().unwrap()).await.unwrap();
    assert_eq!(receipt.entry().lane, LaneId::Scheduled);
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn({
        let receipt = receipt.clone();
        async move { receipt.reached(Stage::Delivered).await }
    });
    let sink = ScriptedSink::new();
    let _attached = engine.attach("alice", "phone", sink.clone()).unwrap();
    let offer = tokio::time::timeout(LONG, sink.next()).await.expect("its time has come");
    assert!(now() >= soon);
    assert_eq!((offer.delivery.entry.lane, offer.delivery.message.not_before()), (LaneId::High, None));
    assert_eq!(waiting.join_next().await.unwrap().unwrap(), Ok(Reached::Stage(Stage::Delivered)));
    // And whoever asks later, by the place it was accepted in.
    assert_eq!(receipt.reached(Stage::Delivered).await, Ok(Reached::Stage(Stage::Delivered)));
    assert_eq!(engine.stats().await.unwrap().counters.accepted, 1);
    engine.shutdown(LONG).await;
}

#[tokio::test]
async fn scheduled_messages_and_dead_letters_survive_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Engine::builder(SledStore::open(dir.path()).unwrap()).build().unwrap();
    let engine = open();
    let tomorrow = now() + Duration::from_secs(86_400);
    let later = Message::to("alice", "calendar.reminder", "tomorrow").not_before(tomorrow).build().unwrap();
    engine.send(later.clone()).await.unwrap();
    let refused = Message::to("alice", "order.changed", "refund").sender("shop").build().unwrap();
    let receipt = engine.send(refused.clone()).await.unwrap();
    let attached = engine.attach("alice", "hook", ScriptedSink::always(Verdict::Rejected)).unwrap();
    let ended = Reached::Ended { reason: EndReason::Rejected, possibly_delivered: true };
    assert_eq!(receipt.reached(Stage::Delivered).await, Ok(ended));
    drop(attached);
    engine.shutdown(LONG).await;
    drop(engine);

    let engine = open();
    let letters = engine.dead_letters(alice(), Seq::ZERO, 10).await.unwrap();
    assert_eq!(letters.iter().map(|letter| &letter.message).collect::<Vec<_>>(), [&refused]);
    assert!(engine.dead_letters(alice(), letters[0].place, 10).await.unwrap().is_empty());
    let stats = engine.stats().await.unwrap();
    assert_eq!((stats.dead_letters, stats.waiting), (1, 1));
    assert!(
        engine.send(refused.clone()).await.unwrap().is_duplicate(),
        "it was accepted, whatever it came to"
    );
    let sink = ScriptedSink::new();
    let _attached = engine.attach("alice", "hook", sink.clone()).unwrap();
    assert_eq!(engine.requeue(alice()).await.unwrap().messages, 1);
    let offer = tokio::time::timeout(LONG, sink.next()).await.expect("it is sent again");
    assert_eq!(offer.delivery.message, refused);
    let cancelled = engine.cancel("alice", later.id()).await.unwrap();
    assert_eq!((cancelled.messages, cancelled.possibly_delivered), (1, 0), "it was never offered");
    engine.shutdown(LONG).await;
}

#[tokio::test]
async fn dead_letters_are_chosen_by_id_event_reason_and_time_and_thrown_away() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let _attached = engine.attach("alice", "hook", ScriptedSink::always(Verdict::Rejected)).unwrap();
    let mut ids: Vec<MessageId> = Vec::new();
    for event in ["order.changed", "order.changed", "order.refunded"] {
        let receipt = engine.send(Message::to("alice", event, "x").build().unwrap()).await.unwrap();
        receipt.reached(Stage::Delivered).await.unwrap();
        ids.push(receipt.id());
    }
    let found = async |letters| {
        let letters = engine.dead_letters(letters, Seq::ZERO, 10).await.unwrap();
        letters.iter().map(|letter| letter.message.id()).collect::<Vec<_>>()
    };
    assert_eq!(found(alice()).await, ids);
    assert_eq!(found(DeadLetters { id: Some(ids[1]), ..alice() }).await, ids[1..2]);
    let event = Some("order.refunded".try_into().unwrap());
    assert_eq!(found(DeadLetters { event, ..alice() }).await, ids[2..]);
    assert!(found(DeadLetters { reason: Some(EndReason::Dead), ..alice() }).await.is_empty());
    let before = Some(lastmile::Timestamp::ZERO);
    assert!(found(DeadLetters { before, ..alice() }).await.is_empty());
    let one = DeadLetters { id: Some(ids[0]), ..alice() };
    assert_eq!(engine.discard(one).await.unwrap().messages, 1);
    assert_eq!(found(alice()).await, ids[1..]);
    assert_eq!(engine.purge("alice").await.unwrap().messages, 2);
    assert_eq!(engine.stats().await.unwrap().dead_letters, 0);
    engine.shutdown(LONG).await;
}

/// All pages of users with dead letters, of at most so many.
async fn holders(engine: &Engine, max: usize) -> Vec<(String, u32)> {
    let (mut all, mut behind) = (Vec::new(), None);
    loop {
        let page = engine.dead_letter_holders(behind.as_ref(), max).await.unwrap();
        assert!(page.holders.len() <= max);
        all.extend(page.holders.iter().map(|holder| (holder.user.to_string(), holder.letters)));
        behind = page.next;
        if behind.is_none() {
            return all;
        }
    }
}

#[tokio::test]
async fn users_with_dead_letters_are_listed_over_all_shards_wherever_their_letters_are() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let mut config = Config::default();
        config.max_payload_bytes = (4 << 10).try_into().unwrap();
        let builder = Engine::builder(SledStore::open(dir.path()).unwrap()).config(config);
        builder.shards(3.try_into().unwrap()).journal_size(64 << 10, 4).build().unwrap()
    };
    let reject = async |engine: &Engine, name: &str, letters: usize| {
        let _attached = engine.attach(name, "hook", ScriptedSink::always(Verdict::Rejected)).unwrap();
        for _ in 0..letters {
            let message = Message::to(name, "order.changed", vec![b'.'; 2000]).build().unwrap();
            let receipt = engine.send(message).await.unwrap();
            receipt.reached(Stage::Delivered).await.unwrap();
        }
    };
    let names: Vec<_> = (0..30).map(|n| format!("user-{n:02}")).collect();
    let mut expected: Vec<_> = names.iter().map(|name| (name.clone(), 3)).collect();
    let engine = open();
    engine.send(Message::to("nobody", "order.changed", "refund").build().unwrap()).await.unwrap();
    for name in &names {
        reject(&engine, name, 3).await;
    }
    for max in [1, 7, 29, 30, 31, 1000] {
        assert_eq!(holders(&engine, max).await, expected, "{max}");
    }
    assert!(engine.stats().await.unwrap().settlements > 0, "some of it has settled");
    engine.shutdown(LONG).await;
    drop(engine);

    let engine = open();
    assert_eq!(holders(&engine, 7).await, expected);
    for name in &names[..10] {
        engine.discard(DeadLetters::of(UserId::new(name).unwrap())).await.unwrap();
    }
    reject(&engine, "al", 1).await;
    expected.drain(..10);
    expected.insert(0, ("al".to_owned(), 1));
    assert_eq!(holders(&engine, 7).await, expected);
    engine.shutdown(LONG).await;
    drop(engine);
    let engine = open();
    assert_eq!(holders(&engine, 7).await, expected);
    engine.shutdown(LONG).await;
    assert!(engine.dead_letter_holders(None, 7).await.is_err());
}
