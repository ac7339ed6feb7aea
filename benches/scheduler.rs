//! How fast the delivery machine alone is: accept, schedule, offer, confirm; no disk, no task, one thread.
//!
//! ```console
//! cargo bench --bench scheduler [-- --quick]
//! ```

#[path = "support/core.rs"]
mod core;
mod support;

use std::time::Duration;

use clap::Parser;
use lastmile::machine::{Input, LinkId};
use lastmile::{Config, DeviceId, InvalidMessage, Message, Priority, UserId};

use self::core::Core;
use self::support::{Dice, Options, median, rate, short, time};

/// One shape of load.
struct Case {
    name: &'static str,
    users: usize,
    /// Conversations a user takes part in; 0 for none.
    keys: u64,
    /// Messages handed in between two drains.
    batch: usize,
}

const CASES: [Case; 5] = [
    Case { name: "10,000 users", users: 10_000, keys: 0, batch: 64 },
    Case { name: "10,000 users, 16 conversations each", users: 10_000, keys: 16, batch: 64 },
    Case { name: "10,000 users, one message at a time", users: 10_000, keys: 0, batch: 1 },
    Case { name: "10,000 users, 1,024 at a time", users: 10_000, keys: 0, batch: 1024 },
    Case { name: "20 users with long backlogs", users: 20, keys: 16, batch: 1024 },
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let (messages, rounds) = options.pick((200_000, 5), (20_000, 1));
    println!(
        "{:<40}{:>14}{:>14}{:>14}",
        "machine alone, 1 thread", "accepted/s", "delivered/s", "both, ns each"
    );
    for case in CASES {
        let rounds: Result<Vec<_>, _> = (0..rounds).map(|_| round(&case, messages)).collect();
        let rounds = rounds?;
        let of = |pick: fn(&(Duration, Duration)) -> Duration| {
            median(rounds.iter().map(|round| rate(messages, pick(round))).collect())
        };
        let (accept, deliver, both) = (of(|r| r.0), of(|r| r.1), of(|r| r.0 + r.1));
        println!("{:<40}{:>14}{:>14}{:>14.0}", case.name, short(accept), short(deliver), 1e9 / both);
    }
    Ok(())
}

/// Accepts all messages while nobody is there, then lets everybody come. Returns how long each took.
fn round(case: &Case, messages: usize) -> Result<(Duration, Duration), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    config.max_user_messages = u32::MAX.try_into()?;
    let mut core = Core::new(config);
    let users: Result<Vec<UserId>, _> = (0..case.users).map(|n| UserId::new(format!("user-{n}"))).collect();
    let users = users?;
    let built: Result<Vec<Message>, _> = (0..messages).map(|n| message(case, &users, n)).collect();
    let built = built?;
    let mut left = built.into_iter();
    let ((), accept) = time(|| {
        while left.len() > 0 {
            left.by_ref().take(case.batch).for_each(|message| core.send(message));
            core.drain();
        }
    });
    let device = DeviceId::new("phone")?;
    let ((), deliver) = time(|| {
        for chunk in users.chunks(case.batch) {
            chunk.iter().for_each(|user| attach(&mut core, user.clone(), device.clone()));
            core.drain();
        }
    });
    let counts = (core.offered, core.refused, core.repeats);
    assert_eq!(counts, (messages, 0, 0), "every message is accepted and offered once");
    Ok((accept, deliver))
}

fn attach(core: &mut Core, user: UserId, device: DeviceId) {
    let link = LinkId(core.number());
    core.handle(Input::Attach { link, user, device });
}

fn message(case: &Case, users: &[UserId], n: usize) -> Result<Message, InvalidMessage> {
    let mut dice = Dice(n as u64);
    let user = &users[dice.below(users.len() as u64) as usize];
    let priority = Priority::ALL[dice.below(4) as usize];
    let builder = Message::to(user, "chat.message", vec![0; 256]).priority(priority);
    match case.keys {
        0 => builder.build(),
        keys => builder.ordering_key(format!("chat-{}", dice.below(keys))).build(),
    }
}
