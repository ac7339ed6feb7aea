//! What the recorded process does: an engine on files of its own, with many senders, people who come and go, batches
//! and withdrawals. What it is told it writes down at once (see `story.rs`).

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::{Batch, Flow, Sink, Store};
use lastmile::record::Epoch;
use lastmile::storage::SledStore;
use lastmile::{Config, Engine, Message, MessageId, Priority, Reached, Receipt, Stage};
use tokio::task::JoinSet;

use super::dice::Dice;

/// People. The first are always there, the next come and go, and the last stay away.
pub(crate) const USERS: usize = 24;
const PRESENT: usize = 10;
const AWAY: usize = 18;
/// Senders, each with one unit after the other: a message, or a batch of three.
const SENDERS: usize = 12;
const UNITS: usize = 36;
/// After so many units a sender waits for the keeper, which would have no time to merge otherwise.
const BREATH: usize = 9;
/// Runs in the store above which a sender waits then.
const MAX_RUNS: u64 = 4;
/// Answers after which the first process of a round dies in the middle of everything.
const DEATH: usize = 300;
/// So many numbers belong to one unit.
const MEMBERS: usize = 4;
const BATCH: usize = 3;
/// The exit code of a process that died as planned.
pub(crate) const DIED: i32 = 134;
const LONG: Duration = Duration::from_secs(20);

/// The engine of a directory, with a ring so small that it is settled and used again all the time.
pub(crate) fn open(home: &Path) -> Result<(SledStore, Engine), String> {
    let mut config = Config::default();
    config.max_payload_bytes = (8 << 10).try_into().unwrap();
    let store = SledStore::open(home).map_err(|error| format!("the store does not open: {error}"))?;
    let builder = Engine::builder(store.clone()).config(config).journal_size(64 << 10, 4).max_runs(2);
    // Batches cross shards.
    let builder = builder.shards(3.try_into().unwrap());
    let engine = builder.build().map_err(|error| format!("the engine does not open: {error:?}"))?;
    Ok((store, engine))
}

pub(crate) fn user_name(user: usize) -> String {
    format!("user-{user}")
}

/// The number of the message with this id.
pub(crate) fn number_of(id: MessageId) -> usize {
    id.as_u128() as usize
}

/// All numbers that were sent together with this one.
pub(crate) fn sent_with(number: usize) -> std::ops::Range<usize> {
    let first = number / MEMBERS * MEMBERS;
    let unit = number / MEMBERS;
    first..first + if unit / SENDERS % 8 == 7 { BATCH } else { 1 }
}

/// Whom a message is for, in which lane and with which ordering key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Line {
    pub(crate) user: usize,
    pub(crate) lane: Priority,
    pub(crate) key: Option<usize>,
}

pub(crate) fn line_of(number: usize) -> Line {
    let unit = number / MEMBERS;
    let mut dice = Dice::new(unit as u64);
    Line {
        user: (dice.below(USERS) + number % MEMBERS * 5) % USERS,
        lane: [Priority::Critical, Priority::High, Priority::Normal, Priority::Normal, Priority::Low]
            [dice.below(5)],
        key: (dice.below(4) > 0).then_some(unit % SENDERS),
    }
}

pub(crate) fn message(number: usize) -> Message {
    let line = line_of(number);
    let mut dice = Dice::new(number as u64 ^ 0xb0d1);
    let bytes = match dice.below(20) {
        0 => 3_000 + dice.below(5_000),
        1..=8 => 400 + dice.below(1_600),
        _ => 40 + dice.below(300),
    };
    let payload: Vec<u8> = (0..bytes).map(|_| dice.next() as u8).collect();
    let mut builder = Message::to(user_name(line.user), "chat.message", payload)
        .id(MessageId::from_u128(1 << 64 | number as u128))
        .sender(format!("sender-{}", number / MEMBERS % SENDERS))
        .priority(line.lane);
    if let Some(key) = line.key {
        builder = builder.ordering_key(format!("key-{key}"));
    }
    builder.build().unwrap()
}

/// Where the process writes down what it is told.
#[derive(Clone)]
struct Told(Arc<Mutex<File>>);

impl Told {
    /// One call for each line: the recorder puts it in its place among all others.
    fn line(&self, text: &str) {
        self.0.lock().unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
    }
}

struct World {
    engine: Engine,
    told: Told,
    answers: AtomicUsize,
    dies_after: usize,
    done: AtomicBool,
}

/// One process. The first of a round dies; the second repeats what the first had no answer for, closes its engine and
/// opens it again.
pub(crate) fn live(home: &Path, told: &Path, life: usize) {
    let unanswered = unanswered(told, life);
    let told = OpenOptions::new().create(true).append(true).open(told).unwrap();
    let told = Told(Arc::new(Mutex::new(told)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let dies_after = if life.is_multiple_of(2) { DEATH } else { usize::MAX };
        for opening in 0..2 {
            let first = (life * 2 + opening) * UNITS * SENDERS;
            let (_store, engine) = open(home).unwrap();
            let healthy = engine.lost().is_empty() && engine.recovered().replay.damaged.is_empty();
            told.line(if healthy { "open" } else { "damage" });
            let (told, answers, done) = (told.clone(), AtomicUsize::new(0), AtomicBool::new(false));
            let world = Arc::new(World { engine, told, answers, dies_after, done });
            // Before anything else: whether these were durable is not known, and after this answer they must be.
            for unit in unanswered.iter().filter(|_| opening == 0) {
                send(&world, *unit).await;
            }
            load(world, first).await;
        }
    });
}

/// A process that fills its store, removes most of it again while others read, and never asks for a sync.
pub(crate) fn fill(home: &Path, told: &Path) {
    let store = SledStore::open(home).unwrap();
    let epoch = store.take_epoch(Epoch(0)).unwrap();
    let mut dice = Dice::new(1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    store.scan(b"", &[0xFF; 5], &mut |_, _| Flow::Continue).unwrap();
                }
            });
        }
        for round in 0..400 {
            let mut batch = Batch::new();
            let removes = round % 8 > 3;
            for _ in 0..if removes { 400 } else { 60 } {
                let key = (dice.below(4_000) as u32).to_be_bytes().to_vec();
                match removes {
                    true => batch.delete(key),
                    false => batch.put(key, vec![dice.next() as u8; 1_000]),
                }
            }
            store.apply(epoch, batch).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    std::fs::write(told, "open\n").unwrap();
}

/// What the process before this one sent and had no answer for when it died.
fn unanswered(told: &Path, life: usize) -> BTreeSet<usize> {
    let of_a_life = UNITS * SENDERS * 2;
    let (mut units, text) = (BTreeSet::new(), std::fs::read_to_string(told).unwrap_or_default());
    for line in text.lines() {
        let mut words = line.split(' ');
        let (kind, number) = (words.next(), words.next().and_then(|word| word.parse::<usize>().ok()));
        let unit = number.map(|number| number / MEMBERS).filter(|unit| unit / of_a_life + 1 == life);
        match (kind, unit) {
            (Some("try"), Some(unit)) => drop(units.insert(unit)),
            (Some("ok"), Some(unit)) => drop(units.remove(&unit)),
            _ => {}
        }
    }
    units
}

async fn load(world: Arc<World>, first: usize) {
    let present: Vec<_> = (0..PRESENT).map(|user| attach(&world, user)).collect();
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        senders.spawn(send_all(world.clone(), first + sender));
    }
    let mut others = JoinSet::new();
    others.spawn(visit(world.clone()));
    while let Some(sender) = senders.join_next().await {
        sender.unwrap();
    }
    let stats = world.engine.stats().await.unwrap();
    world.told.line(&format!("stats {} {}", stats.settlements, stats.merges));
    world.done.store(true, Ordering::Relaxed);
    while others.join_next().await.is_some() {}
    world.engine.shutdown(LONG).await;
    drop(present);
}

/// People who come and go, one after the other.
async fn visit(world: Arc<World>) {
    for user in (PRESENT..AWAY).cycle() {
        if world.done.load(Ordering::Relaxed) {
            return;
        }
        let _there = attach(&world, user);
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
}

fn attach(world: &Arc<World>, user: usize) -> lastmile::Attachment {
    let sink = Person { told: world.told.clone(), dice: Dice::new(user as u64) };
    world.engine.attach(user_name(user), "phone", sink).unwrap()
}

struct Person {
    told: Told,
    dice: Dice,
}

impl Sink for Person {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        let mut failed = false;
        let verdict = |delivery: &Delivery| {
            if failed {
                return (delivery.entry, Verdict::Busy(Duration::ZERO));
            }
            failed = self.dice.below(40) == 0;
            if failed {
                return (delivery.entry, Verdict::Nack(Some(Duration::from_millis(3))));
            }
            let (number, place) = (number_of(delivery.message.id()), delivery.entry.seq.get());
            self.told.line(&format!("got {number} {place} {}", u8::from(delivery.redelivered)));
            (delivery.entry, Verdict::Delivered)
        };
        batch.iter().map(verdict).collect()
    }
}

async fn send_all(world: Arc<World>, first: usize) {
    for unit in (first..).step_by(SENDERS).take(UNITS) {
        send(&world, unit).await;
        if world.answers.fetch_add(1, Ordering::Relaxed) + 1 == world.dies_after {
            std::process::abort();
        }
        if (unit / SENDERS).is_multiple_of(BREATH) {
            merged(&world).await;
        }
        if line_of(unit * MEMBERS).user >= AWAY && unit.is_multiple_of(3) {
            withdraw(&world, unit * MEMBERS).await;
        }
    }
}

async fn send(world: &Arc<World>, unit: usize) {
    let numbers = sent_with(unit * MEMBERS);
    world.told.line(&format!("try {} {}", numbers.start, numbers.end));
    let messages: Vec<_> = numbers.clone().map(message).collect();
    let receipts = match messages.len() {
        1 => vec![world.engine.send(messages[0].clone()).await.unwrap()],
        _ => world.engine.send_batch(messages).await.unwrap(),
    };
    let places: Vec<_> = receipts.iter().map(|receipt| receipt.entry().seq.get().to_string()).collect();
    world.told.line(&format!("ok {} {}", numbers.start, places.join(" ")));
    for (number, receipt) in numbers.zip(receipts) {
        tokio::runtime::Handle::current().spawn(watch(world.clone(), number, receipt));
    }
}

async fn merged(world: &World) {
    while world.engine.stats().await.unwrap().runs > MAX_RUNS {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn watch(world: Arc<World>, number: usize, receipt: Receipt) {
    if let Ok(Reached::Stage(Stage::Delivered)) = receipt.reached(Stage::Delivered).await {
        world.told.line(&format!("end {number}"));
    }
}

async fn withdraw(world: &World, number: usize) {
    world.told.line(&format!("drop {number}"));
    let id = message(number).id();
    let outcome = world.engine.cancel(user_name(line_of(number).user), id).await.unwrap();
    assert_eq!(outcome.messages, 1);
    world.told.line(&format!("gone {number}"));
}
