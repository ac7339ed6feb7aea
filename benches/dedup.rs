//! What recognising repeats costs: the delivery machine alone, fresh ids against repeated ones, one thread.
//!
//! ```console
//! cargo bench --bench dedup [-- --quick]
//! ```

#[path = "support/core.rs"]
mod core;
mod support;

use std::time::Duration;

use clap::Parser;
use lastmile::{Config, InvalidMessage, Message};

use self::core::Core;
use self::support::{Dice, Options, median, rate, short, time};

/// Messages handed in between two drains.
const BATCH: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let (messages, rounds) = options.pick((200_000, 5), (20_000, 1));
    println!("{:<40}{:>14}{:>14}", "machine alone, 1 thread", "fresh/s", "repeated/s");
    for senders in [1, 100, 10_000, messages] {
        let rounds: Result<Vec<_>, _> = (0..rounds).map(|_| round(senders, messages)).collect();
        let rounds = rounds?;
        let of = |pick: fn(&(Duration, Duration)) -> Duration| {
            median(rounds.iter().map(|round| rate(messages, pick(round))).collect())
        };
        let (fresh, repeated) = (of(|r| r.0), of(|r| r.1));
        println!("{:<40}{:>14}{:>14}", format!("{senders} senders"), short(fresh), short(repeated));
    }
    Ok(())
}

/// Sends everything, then everything again. Returns how long each took.
fn round(senders: usize, messages: usize) -> Result<(Duration, Duration), Box<dyn std::error::Error>> {
    let ids = messages.try_into()?;
    let mut config = Config::default();
    config.max_user_messages = u32::MAX.try_into()?;
    config.dedup_ids = ids;
    config.max_dedup_resident = ids;
    let mut core = Core::new(config);
    let built: Result<Vec<Message>, _> = (0..messages).map(|n| message(senders, n)).collect();
    let built = built?;
    let mut send_all = || {
        for batch in built.chunks(BATCH) {
            batch.iter().for_each(|message| core.send(message.clone()));
            core.drain();
        }
    };
    let ((), fresh) = time(&mut send_all);
    let ((), repeated) = time(&mut send_all);
    let counts = (core.repeats, core.refused, core.offered);
    assert_eq!(counts, (messages, 0, 0), "every repeat is recognised and answered");
    Ok((fresh, repeated))
}

fn message(senders: usize, n: usize) -> Result<Message, InvalidMessage> {
    let mut dice = Dice(n as u64);
    let (user, sender) = (dice.below(10_000), dice.below(senders as u64));
    Message::to(format!("user-{user}"), "chat.message", vec![0; 256])
        .sender(format!("sender-{sender}"))
        .build()
}
