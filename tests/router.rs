//! Handlers by event name, as the receiver of an engine's messages.
#![cfg(all(feature = "runtime", feature = "testing"))]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::{Failure, Handler, Permission, Received, Sink};
use lastmile::record::{LaneId, Seq};
use lastmile::session::Code;
use lastmile::storage::MemoryStore;
use lastmile::{Config, EndReason, Engine, Message, Reached, Router, Stage, StreamId, Timestamp};

const LONG: Duration = Duration::from_secs(20);

fn engine(change: impl FnOnce(&mut Config)) -> Engine {
    let mut config = Config::default();
    config.backoff_floor = Duration::from_millis(1);
    config.backoff_cap = Duration::from_millis(5);
    change(&mut config);
    Engine::builder(MemoryStore::new()).config(config).build().unwrap()
}

async fn end(engine: &Engine, message: Message) -> Result<Reached, lastmile::WatchError> {
    let receipt = engine.send(message).await.unwrap();
    tokio::time::timeout(LONG, receipt.reached(Stage::Delivered)).await.expect("it never ended")
}

fn to(user: &str, event: &str, text: &str) -> Message {
    Message::to(user, event, text.to_owned()).build().unwrap()
}

#[tokio::test]
async fn what_a_handler_says_is_what_becomes_of_the_message() {
    let engine = engine(|config| config.max_attempts = 3.try_into().unwrap());
    let router = Router::builder()
        .permission(async |received: Received| match received.event().as_str() {
            "secret" => Permission::Deny(Code::NotPermitted),
            _ => Permission::Allow,
        })
        .build();
    let tries = Arc::new(Mutex::new(Vec::new()));
    let seen = tries.clone();
    router
        .on("*", move |text: String, received: Received| {
            let attempt = (received.attempts(), received.redelivered());
            seen.lock().unwrap().push((text.clone(), attempt));
            async move {
                match text.as_str() {
                    "twice" if attempt.0 == 0 => Err(Failure::retry("not yet")),
                    "busy" if !attempt.1 => Err(Failure::busy(Duration::from_millis(1))),
                    "never" => Err(Failure::retry("broken")),
                    "bad" => Err(Failure::reject(Code::Invalid, "bad")),
                    _ => Ok(()),
                }
            }
        })
        .unwrap()
        .keep();
    let attached = engine.attach("alice", "phone", router).unwrap();
    let delivered = Ok(Reached::Stage(Stage::Delivered));
    let ended = |why| move |end: &Result<Reached, lastmile::WatchError>| matches!(end, Ok(Reached::Ended { reason, .. }) if *reason == why);
    assert_eq!(end(&engine, to("alice", "chat", "well")).await, delivered);
    assert_eq!(end(&engine, to("alice", "chat", "twice")).await, delivered);
    assert_eq!(end(&engine, to("alice", "chat", "busy")).await, delivered);
    assert!(ended(EndReason::Dead)(&end(&engine, to("alice", "chat", "never")).await));
    assert!(ended(EndReason::Rejected)(&end(&engine, to("alice", "chat", "bad")).await));
    assert!(ended(EndReason::Rejected)(&end(&engine, to("alice", "secret", "well")).await));
    let not_text = Message::to("alice", "chat", Bytes::from_static(&[0xFF])).build().unwrap();
    assert!(ended(EndReason::Rejected)(&end(&engine, not_text).await));
    let of = |name: &str| {
        let all = tries.lock().unwrap();
        all.iter().filter(|(text, _)| text == name).map(|(_, attempt)| *attempt).collect::<Vec<_>>()
    };
    assert_eq!(of("twice"), [(0, false), (1, true)]);
    assert_eq!(of("busy"), [(0, false), (0, true)], "no attempt is burnt");
    assert_eq!(of("never"), [(0, false), (1, true), (2, true)]);
    assert_eq!(tries.lock().unwrap().len(), 9, "no handler ran for what was refused before");
    drop(attached);
    engine.shutdown(LONG).await;
}

#[tokio::test]
async fn a_slow_handler_holds_up_its_own_key_only_and_keeps_its_message_beyond_the_ack_deadline() {
    let engine = engine(|config| {
        config.ack_deadline = Duration::from_secs(2);
        // One attempt that fails by the deadline would be the end of it.
        config.max_attempts = 1.try_into().unwrap();
    });
    let router = Router::builder().progress(Duration::from_millis(100)).build();
    let (go, gate) = tokio::sync::watch::channel(false);
    let runs = Arc::new(Mutex::new(Vec::new()));
    let ran = runs.clone();
    let _all = router
        .on("*", move |text: String, received: Received| {
            let (mut gate, ran) = (gate.clone(), ran.clone());
            async move {
                ran.lock().unwrap().push((text.clone(), received.attempts()));
                if text == "slow" {
                    gate.wait_for(|open| *open).await?;
                }
                Ok(())
            }
        })
        .unwrap();
    let _attached = engine.attach("alice", "phone", router.clone()).unwrap();
    let _bob = engine.attach("bob", "phone", router).unwrap();
    let keyed = |user: &str, key: &str, text: &str| {
        Message::to(user, "chat", text.to_owned()).ordering_key(key).build().unwrap()
    };
    let slow = engine.send(keyed("alice", "a", "slow")).await.unwrap();
    let behind = engine.send(keyed("alice", "a", "behind")).await.unwrap();
    let delivered = Ok(Reached::Stage(Stage::Delivered));
    // Longer than the deadline: time is what this is about.
    for n in 0..20 {
        assert_eq!(end(&engine, keyed("alice", "b", &format!("other key {n}"))).await, delivered);
        assert_eq!(end(&engine, keyed("bob", "a", &format!("other person {n}"))).await, delivered);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(!runs.lock().unwrap().iter().any(|(text, _)| text == "behind"));
    go.send(true).unwrap();
    assert_eq!(tokio::time::timeout(LONG, slow.reached(Stage::Delivered)).await.unwrap(), delivered);
    assert_eq!(tokio::time::timeout(LONG, behind.reached(Stage::Delivered)).await.unwrap(), delivered);
    let runs = runs.lock().unwrap();
    let of = |name: &str| runs.iter().filter(|(text, _)| text == name).collect::<Vec<_>>();
    assert_eq!((of("slow").len(), of("behind").len()), (1, 1), "neither was offered again: {runs:?}");
    assert_eq!((of("slow")[0].1, of("behind")[0].1), (0, 0));
}

#[tokio::test]
async fn order_within_a_key_holds_through_failures() {
    let engine = engine(|config| config.max_attempts = 50.try_into().unwrap());
    let router = Router::new();
    let taken = Arc::new(Mutex::new(Vec::new()));
    let (list, mut dice) = (taken.clone(), 7_u64);
    let dice = Arc::new(Mutex::new(move || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        dice >> 60
    }));
    let _all = router
        .on("*", move |text: String, _: Received| {
            let (list, roll) = (list.clone(), dice.lock().unwrap()());
            async move {
                tokio::task::yield_now().await;
                match roll {
                    0..4 => Err(Failure::retry_after(Duration::from_millis(1), "unlucky")),
                    4..6 => Err(Failure::busy(Duration::from_millis(1))),
                    _ => {
                        list.lock().unwrap().push(text);
                        Ok(())
                    }
                }
            }
        })
        .unwrap();
    let _attached = engine.attach("alice", "phone", router).unwrap();
    let mut receipts = Vec::new();
    for n in 0..200 {
        let key = format!("key {}", n % 3);
        let message =
            Message::to("alice", "chat", format!("{n}")).ordering_key(key.as_str()).build().unwrap();
        receipts.push(engine.send(message).await.unwrap());
    }
    for receipt in receipts {
        let reached = tokio::time::timeout(LONG, receipt.reached(Stage::Delivered)).await.unwrap();
        assert_eq!(reached, Ok(Reached::Stage(Stage::Delivered)));
    }
    let taken: Vec<u32> = taken.lock().unwrap().iter().map(|text| text.parse().unwrap()).collect();
    for key in 0..3 {
        let of: Vec<_> = taken.iter().copied().filter(|n| n % 3 == key).collect();
        assert_eq!(of, (0..200).filter(|n| n % 3 == key).collect::<Vec<_>>());
    }
}

/// A sink that has another one behind it, and no place for answers that come later.
#[tokio::test]
async fn a_router_that_is_called_by_another_sink_answers_at_once() {
    struct Echo;
    impl Handler for Echo {
        async fn handle(&self, received: Received) -> Result<Option<Bytes>, Failure> {
            tokio::task::yield_now().await;
            Ok(Some(received.payload().clone()))
        }
    }
    let mut router = Router::new();
    let _echo = router.register("chat.message", Echo).unwrap();
    let delivery = |number: u64, event: &str| Delivery {
        message: to("alice", event, "hello"),
        stream: StreamId::from_u128(1),
        entry: EntryRef { lane: LaneId::Normal, seq: Seq::new(1 << 40).plus(number) },
        floor: Seq::ZERO,
        accepted_at: Timestamp::ZERO,
        attempts: 0,
        redelivered: false,
    };
    let batch = vec![delivery(1, "chat.message"), delivery(2, "chat.typing"), delivery(3, "chat.message")];
    let verdicts = router.deliver(batch).await;
    let verdicts: Vec<_> = verdicts.into_iter().map(|(_, verdict)| verdict).collect();
    // What has the failed one's key, here none, does not overtake it.
    assert_eq!(
        verdicts,
        [Verdict::Replied(Bytes::from_static(b"hello")), Verdict::Nack(None), Verdict::Busy(Duration::ZERO)]
    );
}
