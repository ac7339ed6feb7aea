//! One message to many, through the engine.
#![cfg(all(feature = "runtime", feature = "sled", feature = "testing"))]

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use lastmile::machine::{Refusal, Verdict};
use lastmile::storage::{MemoryStore, SledStore};
use lastmile::testing::ScriptedSink;
use lastmile::{Config, EndReason, Engine, Message, Reached, Stage, UserId};

const LONG: Duration = Duration::from_secs(20);

fn people(n: usize) -> Vec<UserId> {
    (0..n).map(|n| UserId::new(format!("user-{n:05}")).unwrap()).collect()
}

fn news() -> Message {
    Message::to("everybody", "news.published", vec![b'.'; 1024]).sender("editor").build().unwrap()
}

async fn duplicates(engine: &Engine, message: &Message, people: &[UserId]) -> usize {
    let verdicts = engine.fan_out(message, people.iter().cloned()).await;
    assert_eq!(verdicts.len(), people.len());
    assert!(verdicts.iter().map(|(user, _)| user).eq(people), "verdicts are not in the order of recipients");
    verdicts.into_iter().filter(|(_, verdict)| verdict.as_ref().unwrap().is_duplicate()).count()
}

#[tokio::test]
async fn verdicts_come_in_order_for_any_number_of_people_around_a_slice_and_any_number_of_shards() {
    for shards in [1, 3].map(|n| NonZeroUsize::new(n).unwrap()) {
        let engine = Engine::builder(MemoryStore::new()).shards(shards).build().unwrap();
        for n in [0, 1, 1023, 1024, 1025, 5000] {
            let message = news();
            assert_eq!(duplicates(&engine, &message, &people(n)).await, 0);
            assert_eq!(duplicates(&engine, &message, &people(n)).await, n);
        }
        let stats = engine.stats().await.unwrap();
        assert_eq!(stats.waiting, 1 + 1023 + 1024 + 1025 + 5000);
        engine.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn nobody_is_refused_because_a_fan_out_is_larger_than_what_may_wait() {
    for max_pending in [1, 2, 3, 5, 7] {
        let mut config = Config::default();
        config.max_pending = max_pending.try_into().unwrap();
        let engine = Engine::builder(MemoryStore::new()).config(config).build().unwrap();
        assert_eq!(duplicates(&engine, &news(), &people(40)).await, 0);
        engine.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn a_full_outbox_refuses_only_its_owner_and_a_stopped_engine_everybody() {
    let mut config = Config::default();
    config.max_user_messages = 1.try_into().unwrap();
    let engine = Engine::builder(MemoryStore::new()).config(config).build().unwrap();
    engine.send(Message::to("user-00001", "chat.message", "hi").build().unwrap()).await.unwrap();
    let verdicts = engine.fan_out(&news(), people(3)).await;
    let kinds: Vec<_> =
        verdicts.iter().map(|(_, verdict)| verdict.as_ref().err().map(Refusal::kind)).collect();
    assert_eq!(kinds, [None, Some("outbox_full"), None]);
    engine.shutdown(LONG).await;
    let verdicts = engine.fan_out(&news(), people(3)).await;
    assert!(
        verdicts.iter().all(|(_, verdict)| matches!(verdict, Err(Refusal::ShuttingDown))),
        "{verdicts:?}"
    );
}

#[tokio::test]
async fn each_recipients_copy_can_be_followed_by_its_receipt() {
    let engine = Engine::builder(MemoryStore::new()).shards(3.try_into().unwrap()).build().unwrap();
    let (message, people) = (news(), people(20));
    let mut receipts = Vec::new();
    for (user, verdict) in engine.fan_out(&message, people.clone()).await {
        let receipt = verdict.unwrap();
        assert_eq!((receipt.user(), receipt.id()), (&user, message.id()));
        receipts.push(receipt);
    }
    // Of some it is delivered, of one it is withdrawn, and the others' go on waiting.
    let sink = ScriptedSink::always(Verdict::Delivered);
    let _attached = people[..5]
        .iter()
        .map(|user| engine.attach(user, "phone", sink.clone()).unwrap())
        .collect::<Vec<_>>();
    for receipt in &receipts[..5] {
        let reached = tokio::time::timeout(LONG, receipt.reached(Stage::Delivered)).await.unwrap();
        assert_eq!(reached, Ok(Reached::Stage(Stage::Delivered)));
    }
    engine.cancel(&people[7], message.id()).await.unwrap();
    let cancelled = Reached::Ended { reason: EndReason::Cancelled, possibly_delivered: false };
    assert_eq!(receipts[7].reached(Stage::Delivered).await, Ok(cancelled));
    assert_eq!(engine.stats().await.unwrap().waiting, 14);
    // A repeat can be followed as well: it is the same copy.
    for (first, (_, verdict)) in receipts.iter().zip(engine.fan_out(&message, people).await) {
        let again = verdict.unwrap();
        assert!(again.is_duplicate());
        assert_eq!(again.entry(), first.entry());
    }
    engine.shutdown(LONG).await;
}

#[tokio::test]
async fn a_dropped_fan_out_may_be_repeated_and_everybody_has_it_once() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let (message, people) = (news(), people(4000));
    for millis in [0, 1, 2, 5] {
        let part = engine.fan_out(&message, people.iter().cloned());
        let _ = tokio::time::timeout(Duration::from_millis(millis), part).await;
    }
    duplicates(&engine, &message, &people).await;
    assert_eq!(engine.stats().await.unwrap().waiting, 4000);
    engine.shutdown(LONG).await;
}

#[tokio::test]
async fn what_was_sent_to_many_is_delivered_to_each_after_a_reopening_and_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let open = |dir: &std::path::Path| {
        let mut config = Config::default();
        config.max_payload_bytes = (8 << 10).try_into().unwrap();
        let builder = Engine::builder(SledStore::open(dir).unwrap()).config(config);
        builder.journal_size(64 << 10, 4).build().unwrap()
    };
    let engine = open(dir.path());
    let (one, two) = (news(), news());
    assert_eq!(duplicates(&engine, &one, &people(20_000)).await, 0);
    assert_eq!(duplicates(&engine, &two, &people(20_000)).await, 0);
    assert!(engine.stats().await.unwrap().settlements > 0);
    engine.shutdown(LONG).await;
    drop(engine);

    let engine = open(dir.path());
    assert_eq!(engine.stats().await.unwrap().waiting, 40_000);
    for user in people(20_000).into_iter().step_by(997) {
        let sink = ScriptedSink::new();
        let _attached = engine.attach(&user, "phone", sink.clone()).unwrap();
        let mut seen = HashSet::new();
        for _ in 0..2 {
            let delivery = tokio::time::timeout(LONG, sink.next()).await.expect("nothing came").delivery;
            assert_eq!(delivery.message.recipient(), &user);
            assert_eq!(delivery.message.payload(), one.payload());
            seen.insert(delivery.message.id());
        }
        assert_eq!(seen, HashSet::from([one.id(), two.id()]));
    }
    assert!(engine.outbox().verify(&mut |_| {}).unwrap().damage.is_empty());
    assert_eq!(
        duplicates(&engine, &two, &people(100)).await,
        100,
        "repeats are recognised after a reopening"
    );
    engine.shutdown(LONG).await;
}
