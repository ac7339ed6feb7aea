//! Encryption at rest, from end to end: nothing is shown in any file, log or debug output; keys can be exchanged; and a
//! wrong key is an error that leaves everything as it is.
#![cfg(all(feature = "encryption", feature = "runtime", feature = "sled", feature = "testing"))]

mod common;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use common::tree_of;
use lastmile::machine::{DeadLetters, Verdict};
use lastmile::ports::{Key, Keyring};
use lastmile::record::Seq;
use lastmile::storage::{MemoryStore, SledStore};
use lastmile::testing::ScriptedSink;
use lastmile::{
    BuildError, Config, EndReason, Engine, EngineBuilder, KeyError, KeyId, Message, MessageBuilder, Priority,
    Reached, Stage, UserId,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const LONG: Duration = Duration::from_secs(20);
const CANARY: &str = "canary-b1f3-canary";

fn keys(current: u32, others: &[u32]) -> Keyring {
    let key = |id: u32| Key::new([id as u8; 32]);
    others.iter().fold(Keyring::new(KeyId(current), key(current)), |ring, id| ring.with(KeyId(*id), key(*id)))
}

/// A small journal, so that messages settle and merge soon.
fn builder(dir: &Path) -> EngineBuilder {
    let mut config = Config::default();
    config.max_payload_bytes = (12 << 10).try_into().unwrap();
    Engine::builder(SledStore::open(dir).unwrap()).config(config).journal_size(64 << 10, 4).max_runs(2)
}

/// Small and large messages with the canary in payload and headers; enough of them to settle and merge.
fn messages(count: usize) -> impl Iterator<Item = Message> {
    (0..count).map(|n| {
        let payload = if n % 20 == 0 { CANARY.repeat(500) } else { format!("{n} {CANARY}") };
        let message = Message::to(format!("user-{}", n % 5), "chat.message", payload).sender("bob");
        message.header("x-secret", CANARY.to_owned()).header(CANARY, "x").build().unwrap()
    })
}

/// Files of a directory that show the canary.
fn shown(dir: &Path) -> Vec<String> {
    let holds = |bytes: &[u8]| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
    let tree = tree_of(dir).into_iter().filter(|(_, (bytes, _))| holds(bytes));
    tree.map(|(path, _)| path.strip_prefix(dir).unwrap().display().to_string()).collect()
}

/// Everything that is traced in this process.
struct Log;

static LOG: Mutex<String> = Mutex::new(String::new());

fn log() -> MutexGuard<'static, String> {
    LOG.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        span.record(&mut Fields(&mut log()));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut Fields(&mut log()));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut log = log();
        log.push('\n');
        event.record(&mut Fields(&mut log));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[expect(clippy::disallowed_methods, reason = "a test has no engine's clock to ask")]
fn tomorrow() -> SystemTime {
    SystemTime::now() + Duration::from_secs(86_400)
}

fn secret(to: &str, payload: String) -> MessageBuilder {
    let message = Message::to(to, "chat.message", payload).sender("bob");
    message.header("x-secret", CANARY.to_owned()).header(CANARY, "x")
}

/// Payloads to everybody: one that shares its body in a row, and one whose body lies in parts.
fn news() -> [String; 2] {
    [CANARY.repeat(20), CANARY.repeat(500)]
}

fn dead() -> DeadLetters {
    DeadLetters::of(UserId::new("dead").unwrap())
}

/// What is said to many, later, over again, and in vain, and all that can be done about it: each with the canary in payload
/// and headers. Returns what `Debug` says of it.
async fn set_aside(engine: &Engine) -> String {
    let mut debug = String::new();
    for payload in news() {
        let news = secret("everybody", payload).build().unwrap();
        let people = (0..20).map(|n| UserId::new(format!("fan-{n}")).unwrap());
        let verdicts = engine.fan_out(&news, people).await;
        assert!(verdicts.iter().all(|(_, verdict)| verdict.is_ok()), "{verdicts:?}");
        write!(debug, "{news:?} {verdicts:?}").unwrap();
    }
    let batch: Vec<_> = (0..3).map(|n| secret("batch", format!("{n} {CANARY}")).build().unwrap()).collect();
    write!(debug, "{:?}", engine.send_batch(batch).await.unwrap()).unwrap();
    // Later, and once more with a collapse key.
    for builder in
        [secret("later", format!("1 {CANARY}")), secret("later", CANARY.repeat(500)).collapse_key("k")]
    {
        let message = builder.not_before(tomorrow()).build().unwrap();
        write!(debug, "{:?} {message:?}", engine.send(message.clone()).await.unwrap()).unwrap();
    }
    // Over again: the second takes the first one's place, and the third is another message in the place of one.
    for version in 1..=2 {
        let state = secret("state", format!("{version} {CANARY}")).collapse_key("score").version(version);
        write!(debug, "{:?}", engine.send(state.build().unwrap()).await.unwrap()).unwrap();
    }
    let old = secret("edited", format!("old {CANARY}")).build().unwrap();
    engine.send(old.clone()).await.unwrap();
    let new = secret("edited", format!("new {CANARY}")).build().unwrap();
    write!(debug, "{:?}", engine.replace(old.id(), new).await.unwrap()).unwrap();
    // In another lane.
    let moved = secret("moved", format!("1 {CANARY}")).priority(Priority::Low).build().unwrap();
    engine.send(moved.clone()).await.unwrap();
    write!(debug, "{:?}", engine.reprioritise("moved", moved.id(), Priority::High).await.unwrap()).unwrap();
    // In vain: of three dead letters one is kept, one sent once more, one thrown away.
    let attached = engine.attach("dead", "hook", ScriptedSink::always(Verdict::Rejected)).unwrap();
    let mut ids = Vec::new();
    for n in 0..3 {
        let receipt = engine.send(secret("dead", format!("{n} {CANARY}")).build().unwrap()).await.unwrap();
        let ended = receipt.reached(Stage::Delivered).await.unwrap();
        assert!(matches!(ended, Reached::Ended { reason: EndReason::Rejected, .. }), "{ended:?}");
        write!(debug, "{ended:?}").unwrap();
        ids.push(receipt.id());
    }
    drop(attached);
    let letters = engine.dead_letters(dead(), Seq::ZERO, 10).await.unwrap();
    assert_eq!(letters.len(), 3);
    let one = |n: usize| DeadLetters { id: Some(ids[n]), ..dead() };
    let requeued = engine.requeue(one(1)).await.unwrap();
    let discarded = engine.discard(one(2)).await.unwrap();
    assert_eq!((requeued.messages, discarded.messages), (1, 1));
    write!(debug, "{letters:?} {:?} {requeued:?} {discarded:?}", one(0)).unwrap();
    debug
}

/// What [`set_aside`] leaves is there, with its payload.
async fn assert_set_aside(engine: &Engine) {
    let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    let [one, two] = news();
    assert_eq!(read(engine, "fan-7", 2).await, texts(&[&one, &two]));
    assert_eq!(read(engine, "state", 1).await, texts(&[&format!("2 {CANARY}")]));
    assert_eq!(read(engine, "edited", 1).await, texts(&[&format!("new {CANARY}")]));
    assert_eq!(read(engine, "moved", 1).await, texts(&[&format!("1 {CANARY}")]));
    assert_eq!(read(engine, "dead", 1).await, texts(&[&format!("1 {CANARY}")]));
    let letters = engine.dead_letters(dead(), Seq::ZERO, 10).await.unwrap();
    let kept: Vec<_> = letters.iter().map(|letter| letter.message.payload().to_vec()).collect();
    assert_eq!(kept, texts(&[&format!("0 {CANARY}")]));
    let waits = engine.purge("later").await.unwrap();
    assert_eq!(waits.messages, 2);
}

async fn send_all(engine: &Engine, count: usize) {
    for message in messages(count) {
        engine.send(message).await.unwrap();
    }
}

/// Sends, settles, delivers some, exports, reopens. Returns the export and whatever `Debug` says on the way.
async fn live(dir: &Path, keys: Option<Keyring>) -> (Vec<u8>, String) {
    let build = || {
        let builder = builder(dir);
        match &keys {
            Some(keys) => builder.encryption(keys.clone()),
            None => builder,
        }
    };
    let mut debug = format!("{:?}", build());
    let engine = build().build().unwrap();
    debug += &set_aside(&engine).await;
    send_all(&engine, 1200).await;
    let sink = ScriptedSink::new();
    let attached = engine.attach("user-1", "phone", sink.clone()).unwrap();
    let offer = tokio::time::timeout(LONG, sink.next()).await.unwrap();
    assert!(offer.delivery.message.payload().windows(CANARY.len()).any(|bytes| bytes == CANARY.as_bytes()));
    write!(debug, "{offer:?} {:?} {attached:?} {engine:?}", offer.delivery).unwrap();
    let message = messages(1).next().unwrap();
    write!(debug, "{message:?} {:?}", engine.cancel("user-2", message.id()).await).unwrap();
    let too_large = Message::to("x", "a.b", CANARY.repeat(4000)).build().unwrap();
    write!(debug, "{:?}", engine.send(too_large).await.unwrap_err()).unwrap();
    drop(attached);
    let stats = engine.stats().await.unwrap();
    assert!(stats.settlements > 0, "{stats:?}");
    engine.shutdown(LONG).await;
    let mut export = Vec::new();
    let carried = engine.outbox().export(&mut export).unwrap();
    assert!(carried.messages > 100 && carried.damaged == 0, "{carried:?}");
    write!(debug, "{:?} {:?}", engine.outbox(), engine.outbox().verify(&mut |_| {})).unwrap();
    drop(engine);
    let engine = build().build().unwrap();
    write!(debug, "{:?} {:?}", engine.recovered(), engine.lost()).unwrap();
    assert!(engine.recovered().bad.is_empty());
    engine.shutdown(LONG).await;
    (export, debug)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_payload_and_no_header_is_shown_in_any_file_log_or_debug_output() {
    let _ = tracing::subscriber::set_global_default(Log);
    let (plain, sealed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let holds = |bytes: &[u8]| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
    // The same without encryption: the scan finds what there is to find, in each kind of file.
    let (export, debug) = live(plain.path(), None).await;
    let files = shown(plain.path());
    assert!(files.iter().any(|file| file.starts_with("journal/")), "{files:?}");
    assert!(files.iter().any(|file| file.starts_with("db/")), "{files:?}");
    assert!(holds(&export));
    assert!(!debug.contains(CANARY), "{debug}");
    let (export, debug) = live(sealed.path(), Some(keys(1, &[]))).await;
    assert_eq!(shown(sealed.path()), [""; 0]);
    assert!(!holds(&export));
    assert!(!debug.contains(CANARY), "{debug}");
    let log = log();
    assert!(log.contains("outbox opened") && log.contains("message status"), "the log is heard");
    assert!(!log.contains(CANARY));
}

fn refusal(result: Result<Engine, BuildError>) -> KeyError {
    match result {
        Err(BuildError::Sealed(error)) => {
            assert!(error.to_string().contains("nothing was changed"), "{error}");
            error
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_wrong_missing_or_forgotten_key_is_refused_and_leaves_the_directory_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let engine = builder(dir.path()).encryption(keys(1, &[])).build().unwrap();
    send_all(&engine, 700).await;
    engine.shutdown(LONG).await;
    drop(engine);
    let before = tree_of(dir.path());
    let key = KeyId(1);
    let wrong = Keyring::new(key, Key::new([9; 32]));
    assert_eq!(refusal(builder(dir.path()).build()), KeyError::NoKeys { key });
    assert_eq!(refusal(builder(dir.path()).encryption(wrong).build()), KeyError::WrongKey { key });
    let other = builder(dir.path()).encryption(keys(2, &[3])).build();
    assert_eq!(refusal(other), KeyError::UnknownKey { key });
    assert_eq!(tree_of(dir.path()), before);
    // The store and the manifest say so too, should the file that is looked at first be gone.
    std::fs::remove_file(dir.path().join("SEALED")).unwrap();
    for keys in [None, Some(keys(2, &[]))] {
        let builder = builder(dir.path());
        let builder = if let Some(keys) = keys { builder.encryption(keys) } else { builder };
        assert_eq!(refusal(builder.build()).key(), key);
    }
    let journal = |tree: std::collections::BTreeMap<_, _>| {
        let journal = dir.path().join("journal");
        tree.into_iter()
            .filter(|(path, _): &(std::path::PathBuf, _)| path.starts_with(&journal))
            .collect::<Vec<_>>()
    };
    assert_eq!(journal(tree_of(dir.path())), journal(before));
    let engine = builder(dir.path()).encryption(keys(1, &[])).build().unwrap();
    assert_eq!(engine.stats().await.unwrap().waiting, 700);
    assert!(dir.path().join("SEALED").exists());
    engine.shutdown(LONG).await;
}

/// All texts of a user, as they are delivered.
async fn read(engine: &Engine, user: &str, count: usize) -> Vec<Vec<u8>> {
    let sink = ScriptedSink::new();
    let _attached = engine.attach(user, "phone", sink.clone()).unwrap();
    let mut texts = Vec::new();
    while texts.len() < count {
        let offer = tokio::time::timeout(LONG, sink.next()).await.expect("nothing was delivered");
        texts.push(offer.delivery.message.payload().to_vec());
    }
    texts
}

fn sent(user: usize, count: usize) -> Vec<Vec<u8>> {
    messages(count).skip(user).step_by(5).map(|message| message.payload().to_vec()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_exchanged_and_the_old_one_is_retired_once_nothing_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = builder(dir.path()).encryption(keys(1, &[])).build().unwrap();
    set_aside(&engine).await;
    send_all(&engine, 700).await;
    engine.shutdown(LONG).await;
    drop(engine);
    // Both keys, until neither the store nor the journal needs the old one.
    let engine = builder(dir.path()).encryption(keys(2, &[1])).build().unwrap();
    assert_eq!(engine.recovered().keys(), [KeyId(1)], "the journal has some");
    send_all(&engine, 700).await;
    tokio::time::timeout(LONG, async {
        while engine.outbox().keys() != [KeyId(2)] {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("runs are sealed anew in the background");
    let report = engine.outbox().verify(&mut |_| {}).unwrap();
    assert!(report.damage.is_empty() && !report.keys.contains_key(&KeyId(1)), "{report:?}");
    engine.shutdown(LONG).await;
    drop(engine);
    let engine = builder(dir.path()).encryption(keys(2, &[1])).build().unwrap();
    assert!(!engine.recovered().keys().contains(&KeyId(1)));
    engine.shutdown(LONG).await;
    drop(engine);
    // Retired.
    let engine = builder(dir.path()).encryption(keys(2, &[])).build().unwrap();
    assert!(engine.recovered().bad.is_empty());
    assert!(engine.outbox().verify(&mut |_| {}).unwrap().damage.is_empty());
    assert_set_aside(&engine).await;
    for user in [0, 3] {
        let expected = [sent(user, 700), sent(user, 700)].concat();
        assert_eq!(read(&engine, &format!("user-{user}"), expected.len()).await, expected);
    }
    engine.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_directory_can_be_sealed_and_is_never_opened_plain_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = builder(dir.path()).build().unwrap();
    send_all(&engine, 700).await;
    engine.shutdown(LONG).await;
    drop(engine);
    let engine = builder(dir.path()).encryption(keys(1, &[])).build().unwrap();
    assert!(engine.recovered().keys().is_empty());
    tokio::time::timeout(LONG, async {
        while engine.outbox().verify(&mut |_| {}).unwrap().plain > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("runs are sealed in the background");
    assert_eq!(read(&engine, "user-4", 140).await, sent(4, 700));
    engine.shutdown(LONG).await;
    drop(engine);
    assert_eq!(refusal(builder(dir.path()).build()).key(), KeyId(1));
}

#[tokio::test]
async fn an_engine_in_memory_seals_what_moves_between_lanes_too() {
    let engine = Engine::builder(MemoryStore::new()).encryption(keys(1, &[])).build().unwrap();
    let message = messages(1).next().unwrap();
    engine.send(message.clone()).await.unwrap();
    engine.reprioritise("user-0", message.id(), Priority::Critical).await.unwrap();
    assert_eq!(read(&engine, "user-0", 1).await, [message.payload().to_vec()]);
    engine.shutdown(LONG).await;
}
