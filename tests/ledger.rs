//! The loss ledger and gap markers, from end to end.
#![cfg(all(feature = "runtime", feature = "sled", feature = "testing"))]

use std::time::Duration;

use lastmile::machine::{Delivery, EntryRef, Located, Operation, Target, Verdict};
use lastmile::ports::Sink;
use lastmile::record::Gap;
use lastmile::storage::SledStore;
use lastmile::testing::{ManualClock, ScriptedSink};
use lastmile::{Detached, EndReason, Engine, Message, Status, Timestamp, UserId};

const LONG: Duration = Duration::from_secs(20);

fn open(dir: &std::path::Path, clock: &ManualClock) -> Engine {
    Engine::builder(SledStore::open(dir).unwrap()).clock(clock.clone()).build().unwrap()
}

fn message(text: &str) -> Message {
    Message::to("alice", "chat.message", text.to_owned()).sender("bob").build().unwrap()
}

async fn located(engine: &Engine, message: &Message) -> Option<Located> {
    let (user, sender) = (message.recipient().clone(), Some(message.sender().cloned()));
    let target = Target { user, id: message.id(), sender };
    engine.operate(Operation::Locate(target)).await.ok()?.located
}

#[tokio::test]
async fn what_expired_while_its_recipient_was_away_is_in_the_ledger_and_told_once_after_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp::from_millis(1_700_000_000_000));
    let engine = open(dir.path(), &clock);
    let mut expiring = Vec::new();
    for text in ["1", "2", "3"] {
        let message = Message::to("alice", "chat.message", text).sender("bob").ttl(Duration::from_secs(60));
        let message = message.build().unwrap();
        expiring.push(engine.send(message.clone()).await.unwrap().entry());
        assert_eq!(located(&engine, &message).await.unwrap().status, Status::Accepted);
    }
    let kept = message("kept");
    engine.send(kept.clone()).await.unwrap();
    engine.shutdown(LONG).await;
    drop(engine);

    clock.advance(Duration::from_secs(61));
    let engine = open(dir.path(), &clock);
    let phone = ScriptedSink::new();
    let attached = engine.attach("alice", "phone", phone.clone()).unwrap();
    let gaps = tokio::time::timeout(LONG, phone.told(1)).await.expect("nobody was told");
    let [Gap { first, last, expired: 3, dead: 0, evicted: 0, .. }] = gaps[..] else { panic!("{gaps:?}") };
    assert_eq!((first, last), (expiring[0].seq, expiring[2].seq));
    tokio::time::timeout(LONG, phone.next()).await.expect("nothing was delivered");
    let ledger = engine.ledger("alice").await.unwrap();
    assert_eq!(ledger.rows.iter().map(|row| row.reason).collect::<Vec<_>>(), [EndReason::Expired; 3]);
    drop(attached);
    engine.shutdown(LONG).await;
    drop(engine);

    let engine = open(dir.path(), &clock);
    let ledger = engine.ledger("alice").await.unwrap();
    assert_eq!((ledger.rows.len(), ledger.gaps.len()), (3, 0), "it was told");
    let status = engine.status("alice", ledger.rows[1].id.unwrap()).await.unwrap().unwrap();
    assert_eq!((status.status, status.possibly_delivered), (Status::Ended(EndReason::Expired), false));
    assert_eq!(located(&engine, &kept).await.unwrap().status, Status::Ended(EndReason::Delivered));
    assert_eq!(engine.status("alice", kept.id()).await.unwrap(), None, "who sent it was not said");
    assert_eq!(located(&engine, &message("never sent")).await, None);
    assert_eq!(engine.ledger(UserId::new("nobody").unwrap()).await.unwrap().rows, []);
    engine.shutdown(LONG).await;
}

/// Takes everything, and panics when it is told of a gap.
struct Deaf;

impl Sink for Deaf {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        batch.iter().map(|delivery| (delivery.entry, Verdict::Delivered)).collect()
    }

    async fn gaps(&mut self, gaps: Vec<Gap>) {
        panic!("told of {gaps:?}");
    }
}

#[tokio::test]
async fn a_sink_that_panics_when_it_is_told_of_a_gap_is_detached_and_the_next_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp::from_millis(1_700_000_000_000));
    let engine = open(dir.path(), &clock);
    let message = Message::to("alice", "chat.message", "hello").ttl(Duration::from_secs(1)).build().unwrap();
    engine.send(message).await.unwrap();
    clock.advance(Duration::from_secs(2));
    let deaf = engine.attach("alice", "phone", Deaf).unwrap();
    assert_eq!(tokio::time::timeout(LONG, deaf.closed()).await, Ok(Detached::Panicked));
    let phone = ScriptedSink::new();
    let _attached = engine.attach("alice", "phone", phone.clone()).unwrap();
    let gaps = tokio::time::timeout(LONG, phone.told(1)).await.expect("nobody was told");
    assert_eq!(gaps[0].messages(), 1);
    engine.shutdown(LONG).await;
}
