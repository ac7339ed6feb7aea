//! Batches across shards, through the engine.
#![cfg(all(feature = "runtime", feature = "sled", feature = "testing"))]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use lastmile::machine::Refusal;
use lastmile::storage::disk::Disk;
use lastmile::storage::journal::{FileJournal, JournalConfig};
use lastmile::storage::{MemoryStore, SledStore};
use lastmile::testing::{DiskOp, Fault, FaultyDisk, ScriptedSink};
use lastmile::{Config, Engine, Message, MessageId, Stage};
use tokio::task::JoinSet;

const LONG: Duration = Duration::from_secs(20);
/// Enough that they do not all belong to the same of a few shards.
const PEOPLE: usize = 12;

fn shards(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

fn memory(n: usize) -> Engine {
    Engine::builder(MemoryStore::new()).shards(shards(n)).build().unwrap()
}

fn message(person: usize) -> Message {
    Message::to(format!("user-{person}"), "chat.message", "hello").build().unwrap()
}

/// One message for everybody.
fn everybody() -> Vec<Message> {
    (0..PEOPLE).map(message).collect()
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("it does not end")
}

/// Waits until nothing is under way; what is held then, and how much waits.
async fn at_rest(engine: &Engine) -> (u64, u64) {
    in_time(async {
        loop {
            let stats = engine.stats().await.unwrap();
            if stats.is_quiet() {
                return (stats.reservations, stats.waiting);
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_batch_is_accepted_across_any_number_of_shards_and_each_message_reaches_its_recipient() {
    for n in [1, 2, 5] {
        let engine = memory(n);
        let batch = everybody();
        let receipts = engine.send_batch(batch.clone()).await.unwrap();
        assert!(receipts.iter().map(|receipt| receipt.id()).eq(batch.iter().map(Message::id)));
        assert!(receipts.iter().all(|receipt| !receipt.is_duplicate()));
        assert_eq!(engine.stats().await.unwrap().commits, 1, "one group");
        let again = engine.send_batch(batch).await.unwrap();
        assert!(again.iter().zip(&receipts).all(|(a, b)| a.is_duplicate() && a.entry() == b.entry()));
        for (person, receipt) in receipts.iter().enumerate() {
            let _attached = engine.attach(format!("user-{person}"), "phone", ScriptedSink::new()).unwrap();
            in_time(receipt.reached(Stage::Delivered)).await.unwrap();
        }
        assert_eq!(at_rest(&engine).await, (0, 0));
        engine.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn a_refused_batch_gives_all_messages_back_names_the_refused_one_and_holds_nothing() {
    let mut config = Config::default();
    config.max_user_messages = NonZeroU32::new(2).unwrap();
    let engine = Engine::builder(MemoryStore::new()).config(config).shards(shards(3)).build().unwrap();
    for full in [3, 0, 11] {
        for _ in 0..2 {
            engine.send(message(full)).await.unwrap();
        }
        let batch = everybody();
        let error = engine.send_batch(batch.clone()).await.unwrap_err();
        assert!(matches!(error.reason(), Refusal::OutboxFull { messages: 2, .. }), "{error}");
        assert_eq!(error.index(), Some(full));
        assert_eq!(error.into_messages(), batch);
        let (reservations, waiting) = at_rest(&engine).await;
        assert_eq!(reservations, 0);
        // All the others still have room for two.
        let others: Vec<_> = (0..PEOPLE).filter(|person| *person != full).collect();
        let twice: Vec<_> = others.iter().chain(&others).map(|person| message(*person)).collect();
        let receipts = engine.send_batch(twice).await.unwrap();
        assert_eq!(at_rest(&engine).await, (0, waiting + receipts.len() as u64));
        for receipt in receipts {
            engine.cancel(receipt.user().clone(), receipt.id()).await.unwrap();
        }
        engine.purge(format!("user-{full}")).await.unwrap();
    }
    engine.shutdown(LONG).await;
    let batch = everybody();
    let error = engine.send_batch(batch.clone()).await.unwrap_err();
    assert_eq!((error.reason(), error.index()), (&Refusal::ShuttingDown, None));
    assert_eq!(error.into_messages(), batch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dropped_batch_is_wholly_in_or_wholly_out_wherever_it_was_and_nothing_stays_reserved() {
    let engine = memory(4);
    let mut batches = Vec::new();
    for n in 0..300 {
        let batch = everybody();
        let mut sending = pin!(engine.send_batch(batch.clone()));
        // After so many looks at it, which is somewhere else every time.
        for _ in 0..n % 7 {
            if let Poll::Ready(result) = sending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                result.unwrap();
                break;
            }
            for _ in 0..n % 11 {
                tokio::task::yield_now().await;
            }
        }
        batches.push(batch);
    }
    let (reservations, waiting) = at_rest(&engine).await;
    assert_eq!((reservations, waiting % PEOPLE as u64), (0, 0));
    let mut there = 0;
    for batch in batches {
        let receipts = engine.send_batch(batch).await.unwrap();
        let known = receipts.iter().filter(|receipt| receipt.is_duplicate()).count();
        assert!(known == 0 || known == PEOPLE, "{known} of {PEOPLE} were there");
        there += known as u64;
    }
    assert_eq!(there, waiting);
    assert!(there > 0 && there < 300 * PEOPLE as u64, "the test proves little: {there}");
    assert_eq!(at_rest(&engine).await, (0, 300 * PEOPLE as u64));
}

/// Far more than may be under way at once, in all directions, about the same few ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hundreds_of_batches_that_cross_and_repeat_one_another_all_end_and_each_id_is_accepted_once() {
    let engine = memory(4);
    let known: Arc<Vec<Message>> = Arc::new((0..40).map(|n| message(n % PEOPLE)).collect());
    let mut senders = JoinSet::new();
    for n in 0_usize..600 {
        let (engine, known) = (engine.clone(), known.clone());
        senders.spawn(async move {
            let step = [1, 3, 7, 9, 11, 13][n % 6];
            let batch = (0..8).map(|i| known[(n + i * step) % known.len()].clone()).collect();
            let receipts = engine.send_batch(batch).await.unwrap();
            receipts.into_iter().map(|receipt| (receipt.id(), receipt.entry())).collect::<Vec<_>>()
        });
    }
    let mut places: BTreeMap<MessageId, BTreeSet<_>> = BTreeMap::new();
    in_time(async {
        while let Some(receipts) = senders.join_next().await {
            for (id, entry) in receipts.unwrap() {
                places.entry(id).or_default().insert(entry);
            }
        }
    })
    .await;
    assert!(places.len() == known.len() && places.values().all(|places| places.len() == 1));
    assert_eq!(at_rest(&engine).await, (0, known.len() as u64));
    engine.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_engine_that_shuts_down_amid_batches_answers_each_and_what_it_accepted_is_there_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let open = |n| Engine::builder(SledStore::open(dir.path()).unwrap()).shards(shards(n)).build().unwrap();
    let engine = open(3);
    let mut senders = JoinSet::new();
    for _ in 0..200 {
        let engine = engine.clone();
        senders.spawn(async move {
            let batch = everybody();
            let result = engine.send_batch(batch.clone()).await;
            (batch, result.map(drop).map_err(|error| error.reason().clone()))
        });
    }
    let first = in_time(senders.join_next()).await.unwrap().unwrap();
    let report = in_time(engine.shutdown(LONG)).await;
    assert!(report.clean, "{report}");
    let mut ended = vec![first];
    ended.extend(in_time(senders.join_all()).await);
    drop(engine);
    let engine = open(2);
    for (batch, result) in ended {
        let receipts = engine.send_batch(batch).await.unwrap();
        let known = receipts.iter().filter(|receipt| receipt.is_duplicate()).count();
        match result {
            Ok(()) => assert_eq!(known, PEOPLE),
            Err(Refusal::ShuttingDown) => assert_eq!(known, 0),
            Err(Refusal::OutcomeUnknown) => assert!(known == 0 || known == PEOPLE),
            Err(refusal) => panic!("{refusal}"),
        }
    }
    engine.shutdown(LONG).await;
}

#[tokio::test]
async fn a_batch_whose_sync_fails_is_of_unknown_outcome_and_is_accepted_once_when_it_is_sent_again() {
    let disk = FaultyDisk::new();
    let sizes = JournalConfig { segment_bytes: 64 << 10, segments: 4 };
    let journal = FileJournal::open(Arc::new(disk.clone()) as Arc<dyn Disk>, sizes).unwrap();
    let mut config = Config::default();
    config.max_payload_bytes = (8 << 10).try_into().unwrap();
    let builder = Engine::builder(MemoryStore::new()).config(config).journal(journal);
    let engine = builder.shards(shards(3)).build().unwrap();
    disk.fail_next(DiskOp::Sync, Fault::Once);
    let batch = everybody();
    let error = engine.send_batch(batch.clone()).await.unwrap_err();
    assert_eq!((error.reason(), error.index()), (&Refusal::OutcomeUnknown, None));
    let receipts = in_time(async {
        loop {
            match engine.send_batch(batch.clone()).await {
                Ok(receipts) => return receipts,
                Err(error) => assert_eq!(error.reason(), &Refusal::Degraded),
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(receipts.iter().all(|receipt| !receipt.is_duplicate()));
    assert_eq!(at_rest(&engine).await, (0, PEOPLE as u64));
}

// ------------------------------------------------------------------------------------------------------------ kills

/// Where a process finds the directory that it is to live in, and the number of its first batch.
const HOME: &str = "LASTMILE_BATCH_HOME";
const FIRST: &str = "LASTMILE_BATCH_FIRST";
const KILLS: usize = 4;
/// Whole batches that are answered before a process is killed.
const ANSWERS: usize = 60;
const SENDERS: usize = 8;
const MEMBERS: usize = 5;

/// The messages of a batch, the same in every process.
fn batch(number: usize) -> Vec<Message> {
    let member = |n: usize| {
        let id = MessageId::from_u128(1 + (number * MEMBERS + n) as u128);
        Message::to(format!("user-{}", (number + n * 7) % PEOPLE), "chat.message", "hello").id(id)
    };
    (0..MEMBERS).map(|n| member(n).build().unwrap()).collect()
}

/// Sends batch after batch and says which were answered, until it is killed.
async fn live(home: &Path, first: usize) {
    let small = Engine::builder(SledStore::open(home).unwrap()).journal_size(2 << 20, 4);
    let engine = small.shards(shards(4)).build().unwrap();
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let engine = engine.clone();
        senders.spawn(async move {
            for number in (first + sender..).step_by(SENDERS) {
                engine.send_batch(batch(number)).await.unwrap();
                // In one write, so that no line is cut.
                std::io::stdout().write_all(format!("answered {number}\n").as_bytes()).unwrap();
            }
        });
    }
    senders.join_all().await;
}

#[tokio::test]
async fn through_kills_every_answered_batch_is_there_and_no_other_is_there_in_part() {
    if let (Some(home), Some(first)) = (std::env::var_os(HOME), std::env::var_os(FIRST)) {
        return live(Path::new(&home), first.to_str().unwrap().parse().unwrap()).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut answered = BTreeSet::new();
    for kill in 0..KILLS {
        let name = "through_kills_every_answered_batch_is_there_and_no_other_is_there_in_part";
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(HOME, dir.path())
            .env(FIRST, (kill * 100_000).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let number =
            |line: String| line.rsplit_once("answered ").map(|(_, number)| number.parse::<usize>().unwrap());
        let mut read = lines.by_ref().filter_map(|line| number(line.unwrap()));
        answered.extend((0..ANSWERS).map(|_| read.next().expect("it lives until it is killed")));
        process.kill().unwrap();
        process.wait().unwrap();
        // What it said and nobody had read.
        answered.extend(lines.map_while(Result::ok).filter_map(number));
    }
    // Another number of shards finds the same.
    let engine = Engine::builder(SledStore::open(dir.path()).unwrap()).shards(shards(3)).build().unwrap();
    let waiting = engine.stats().await.unwrap().waiting;
    let mut there = BTreeSet::new();
    for kill in 0..KILLS {
        for number in kill * 100_000.. {
            let receipts = engine.send_batch(batch(number)).await.unwrap();
            let known = receipts.iter().filter(|receipt| receipt.is_duplicate()).count();
            assert!(known == 0 || known == MEMBERS, "{known} of {MEMBERS} of batch {number} were there");
            if known == MEMBERS {
                there.insert(number);
            } else if answered.range(number..(kill + 1) * 100_000).next().is_none()
                && number > kill * 100_000 + ANSWERS + 10 * SENDERS
            {
                break;
            }
        }
    }
    let lost: Vec<_> = answered.difference(&there).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    assert_eq!(waiting, (there.len() * MEMBERS) as u64);
    assert!(answered.len() >= KILLS * ANSWERS);
    engine.shutdown(LONG).await;
}
