//! Whether what a power cut left keeps the promises: it is opened, and everything that waits is taken from it.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lastmile::Engine;
use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::Sink;

use super::dice::Dice;
use super::load::{self, USERS, message, number_of, user_name};
use super::now;
use super::story::Story;

/// Sends repeated of each kind.
const REPEATS: usize = 6;

/// Takes everything, and keeps it in the order it came.
#[derive(Clone, Default)]
struct Taker(Arc<Mutex<Vec<Delivery>>>);

impl Sink for Taker {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        let verdicts = batch.iter().map(|delivery| (delivery.entry, Verdict::Delivered)).collect();
        self.0.lock().unwrap().extend(batch);
        verdicts
    }
}

/// The first promise that is broken, if one is. `story` is what was told before the cut, and `patience` how long nothing
/// may come of what waits.
pub(crate) async fn judge(home: &Path, story: Story, patience: Duration, dice: Dice) -> Result<(), String> {
    let (store, engine) = load::open(home)?;
    if let Some(quarantine) = store.quarantined() {
        return Err(format!("the database went to quarantine: {}", quarantine.reason));
    }
    drop(store);
    let judged = judge_open(&engine, story, patience, dice).await;
    engine.shutdown(Duration::ZERO).await;
    judged
}

async fn judge_open(engine: &Engine, mut story: Story, patience: Duration, dice: Dice) -> Result<(), String> {
    let recovered = engine.recovered();
    if !engine.lost().is_empty() || !recovered.replay.damaged.is_empty() || !recovered.bad.is_empty() {
        let (lost, damaged) = (engine.lost(), &recovered.replay.damaged);
        return Err(format!("lost {lost:?}; damaged {damaged:?}; unreadable {:?}", recovered.bad));
    }
    let verified = engine.outbox().verify(&mut |_| ()).map_err(|error| error.to_string())?;
    if !verified.damage.is_empty() {
        return Err(format!("damage in the store: {:?}", verified.damage));
    }
    repeat(engine, &story, dice).await?;
    let taken = take_all(engine, patience).await?;
    for delivery in &taken {
        let number = number_of(delivery.message.id());
        story.got(number, delivery.entry.seq.get(), delivery.redelivered)?;
        if delivery.message.payload() != message(number).payload() {
            return Err(format!("message {number} came with other contents"));
        }
    }
    story.complete()?;
    let counters = engine.stats().await.map_err(|error| error.to_string())?.counters;
    let ended: u64 = counters.ended.iter().sum();
    let possible = story.accepted.len() as u64..=story.tried.len() as u64;
    if counters.accepted != ended || !possible.contains(&counters.accepted) {
        return Err(format!("{counters:?}, when {possible:?} were accepted"));
    }
    Ok(())
}

/// Sends some messages again: what was accepted is recognised, and keeps its place.
async fn repeat(engine: &Engine, story: &Story, mut dice: Dice) -> Result<(), String> {
    let tried: Vec<_> = story.tried.iter().copied().collect();
    for _ in 0..REPEATS.min(tried.len()) {
        let number = tried[dice.below(tried.len())];
        if !story.is_accepted(number) {
            continue;
        }
        let receipt =
            engine.send(message(number)).await.map_err(|error| format!("repeat of {number}: {error}"))?;
        if !receipt.is_duplicate() {
            return Err(format!("message {number} was accepted a second time"));
        }
        let (place, told) = (receipt.entry().seq.get(), story.accepted.get(&number));
        if told.is_some_and(|told| *told != place) {
            return Err(format!("message {number} is in place {place:#x} now, not in {told:x?}"));
        }
    }
    Ok(())
}

/// Attaches for everybody and waits until nothing waits.
async fn take_all(engine: &Engine, patience: Duration) -> Result<Vec<Delivery>, String> {
    let taker = Taker::default();
    let attached: Vec<_> =
        (0..USERS).map(|user| engine.attach(user_name(user), "phone", taker.clone()).unwrap()).collect();
    let (mut came, mut last) = (0, now());
    while engine.stats().await.is_ok_and(|stats| stats.waiting > 0) {
        // However slow the machine is: as long as something comes, the rest may.
        let taken = taker.0.lock().unwrap().len();
        if taken > came {
            (came, last) = (taken, now());
        }
        if last.elapsed() > patience {
            return Err(format!("messages wait and do not come: {:?}", engine.stats().await));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(attached);
    let taken = taker.0.lock().unwrap().clone();
    Ok(taken)
}
