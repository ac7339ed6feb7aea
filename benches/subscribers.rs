//! What those who listen cost those who send: the 99th percentile of `send`, beside the same sends with nobody
//! listening.
//!
//! ```console
//! cargo bench --bench subscribers [-- --quick]
//! ```
//!
//! | listeners | who |
//! |---|---|
//! | stuck | one subscription to everything that is never read |
//! | many | 10,000 subscriptions to different users, the recipients among them, never read |
//! | panic | a task that panics at whatever it hears of anybody, and is started again at once |
//!
//! Rounds are short, and each with listeners stands beside one with nobody listening, now before and now after it: what
//! else goes on on the machine hits both. The ratio is the median of theirs; the quartiles say how far it can be trusted.

mod support;

use std::error::Error;

use clap::Parser;
use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::Sink;
use lastmile::storage::SledStore;
use lastmile::{Attachment, Engine, Filter, Message, Subscription, UserId};
use tokio::task::JoinSet;

use self::support::{Dice, Options, median, now};

const RECIPIENTS: u64 = 50;
/// Messages under way at once.
const SENDERS: u64 = 8;
const MANY: u64 = 10_000;
const PAYLOAD: usize = 256;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    // Subscribers panic on purpose, thousands of times.
    std::panic::set_hook(Box::new(|_| ()));
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(&options))
}

async fn run(options: &Options) -> Result<(), Failure> {
    let messages = options.pick(4_000, 2_000);
    let pairs = options.pick(60, 4);
    let dir = tempfile::Builder::new().prefix("lastmile-subscribers-").tempdir()?;
    let engine = Engine::builder(SledStore::open(dir.path())?).build()?;
    let attached: Result<Vec<Attachment>, _> =
        (0..RECIPIENTS).map(|n| engine.attach(format!("user-{n}"), "phone", Confirm)).collect();
    let _attached = attached?;
    round(&engine, messages).await?;
    println!("{messages} messages to {RECIPIENTS} people, {SENDERS} under way; 99th percentile of send");
    println!("{:<10}{:>12}{:>12}{:>8}{:>16}", "listeners", "nobody", "with them", "ratio", "quartiles");
    for listeners in [Listeners::Stuck, Listeners::Many, Listeners::Panic] {
        let (mut nobody, mut listened, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 0..pairs {
            let mut alone = 0.0;
            if pair % 2 == 0 {
                alone = round(&engine, messages).await?;
            }
            let guard = listeners.listen(&engine)?;
            let with = round(&engine, messages).await?;
            drop(guard);
            if pair % 2 == 1 {
                alone = round(&engine, messages).await?;
            }
            nobody.push(alone);
            listened.push(with);
            ratios.push(with / alone);
        }
        ratios.sort_by(f64::total_cmp);
        let quartile = |n: usize| ratios.get(ratios.len() * n / 4).copied().unwrap_or(f64::NAN);
        let (low, high) = (quartile(1), quartile(3));
        let (nobody, listened, ratio) = (median(nobody), median(listened), median(ratios));
        let (name, quartiles) = (listeners.name(), format!("{low:.2}–{high:.2}"));
        println!("{name:<10}{:>9.3} ms{:>9.3} ms{ratio:>8.2}{quartiles:>16}", nobody * 1e3, listened * 1e3);
    }
    engine.shutdown(std::time::Duration::from_secs(60)).await;
    Ok(())
}

/// Sends, and gives the 99th percentile of the time until each was accepted, in seconds.
async fn round(engine: &Engine, messages: u64) -> Result<f64, Failure> {
    let mut senders = JoinSet::new();
    for number in 0..SENDERS {
        let engine = engine.clone();
        senders.spawn(async move {
            let mut dice = Dice(number << 32);
            let mut waits = Vec::new();
            for _ in 0..messages / SENDERS {
                let user = format!("user-{}", dice.below(RECIPIENTS));
                let message = Message::to(user, "chat.message", vec![b'.'; PAYLOAD]).sender("bob").build()?;
                let began = now();
                engine.send(message).await?;
                waits.push(began.elapsed().as_secs_f64());
            }
            Ok::<_, Failure>(waits)
        });
    }
    let mut waits = Vec::new();
    while let Some(ended) = senders.join_next().await {
        waits.extend(ended??);
    }
    waits.sort_by(f64::total_cmp);
    waits.get(waits.len() * 99 / 100).copied().ok_or_else(|| "nothing was sent".into())
}

#[derive(Clone, Copy)]
enum Listeners {
    Stuck,
    Many,
    Panic,
}

impl Listeners {
    fn name(self) -> &'static str {
        match self {
            Self::Stuck => "stuck",
            Self::Many => "many",
            Self::Panic => "panic",
        }
    }

    /// Until the guard is dropped.
    fn listen(self, engine: &Engine) -> Result<Guard, Failure> {
        let (mut unread, mut tasks) = (Vec::new(), JoinSet::new());
        match self {
            Self::Stuck => unread.push(engine.subscribe(Filter::all())?),
            Self::Many => {
                for n in 0..MANY {
                    unread.push(engine.subscribe(Filter::all().user(UserId::new(format!("user-{n}"))?))?);
                }
            }
            Self::Panic => {
                let engine = engine.clone();
                tasks.spawn(async move {
                    while let Ok(mut changes) = engine.subscribe(Filter::all()) {
                        let mut hears = JoinSet::new();
                        hears.spawn(async move {
                            let heard = changes.recv().await;
                            panic!("{heard:?}");
                        });
                        let _panicked: Option<Result<(), _>> = hears.join_next().await;
                    }
                });
            }
        }
        Ok(Guard { _unread: unread, _tasks: tasks })
    }
}

struct Guard {
    _unread: Vec<Subscription>,
    _tasks: JoinSet<()>,
}

/// Confirms everything.
struct Confirm;

impl Sink for Confirm {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        batch.iter().map(|delivery| (delivery.entry, Verdict::Delivered)).collect()
    }
}
