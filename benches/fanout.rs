//! One message to 100,000 people who are away, next to as many single sends of the same body: how fast, and what is
//! written for each.
//!
//! ```console
//! cargo bench --bench fanout [-- --quick]
//! ```
//!
//! Bytes are those that this process hands to the kernel in calls that write (`wchar` of `/proc/self/io`): all of them, to
//! whatever file, from the first message until everything has settled and merged and nothing more is written. The
//! journal's files are made before the count begins. To make everything settle, the engine is closed and opened again;
//! what an opening with nothing to settle writes is measured as well, and is not taken off, nor are the eight bytes with which
//! a thread wakes another one.
//!
//! | line | what it is |
//! |---|---|
//! | wchar | what was handed over until the last answer (the journal), and from then on (the store) |
//! | write_bytes | the pages that this made dirty: each time they become dirty, and where the kernel has large folios, a run of pages when one of them does |
//! | at rest | what the store holds in the end, keys and frames included, by kind; written for it is the rest of what settling hands over |

mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use lastmile::ports::{Flow, Store};
use lastmile::storage::SledStore;
use lastmile::{Engine, Message, UserId};
use tokio::task::JoinSet;

use self::support::{Options, now, rate, short};

const PAYLOAD: usize = 1024;
/// Single sends under way at once.
const CLIENTS: usize = 1024;
/// Three segments, of which one sealed one is half of the ring: every opening settles what there is.
const SEGMENTS: u32 = 3;
const SEGMENT_BYTES: u64 = 64 << 20;
/// How long nothing may be written before all is quiet.
const QUIET: Duration = Duration::from_secs(2);

/// Kinds of keys, as docs/STORAGE.md has them.
const KINDS: [(u8, &str); 6] =
    [(2, "entries"), (4, "ids"), (6, "filter"), (7, "shared bodies"), (5, "user rows"), (1, "table")];

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let people = options.pick(100_000, 10_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let dir = tempfile::Builder::new().prefix("lastmile-fanout-").tempdir()?;
    println!("{PAYLOAD} B to {people} people who are away");
    println!(
        "{:<8}{:>14}{:>18}{:>18}{:>10}",
        "", "people/s", "sending, B each", "settling, B each", "together"
    );
    let (many, single) = runtime.block_on(async {
        let many = measure(&dir.path().join("fanout"), people, Way::FanOut).await?;
        many.print("fanout", people);
        let single = measure(&dir.path().join("single"), people, Way::Single).await?;
        single.print("single", people);
        Ok::<_, Failure>((many, single))
    })?;
    many.print_rest("fanout", people);
    single.print_rest("single", people);
    let Written { chars, bytes } = many.opening;
    println!("an opening with nothing to settle: wchar {chars}, write_bytes {bytes}");
    println!();
    println!("ratio fanout/single rate {:.2}", many.rate / single.rate);
    let each = |bytes: u64| bytes as f64 / people as f64;
    let both = |count| (many.each(people, count), single.each(people, count));
    let ((many_chars, single_chars), (many_bytes, single_bytes)) = (both(|w| w.chars), both(|w| w.bytes));
    println!("bytes handed over per recipient fanout {many_chars:.1} single {single_chars:.1}");
    let opening = (each(many.opening.chars), each(single.opening.chars));
    println!("… less an opening fanout {:.1} single {:.1}", many_chars - opening.0, single_chars - opening.1);
    println!("bytes per recipient fanout {many_bytes:.1} single {single_bytes:.1}");
    Ok(())
}

#[derive(Clone, Copy)]
enum Way {
    FanOut,
    Single,
}

/// What was measured of one way.
struct Measured {
    rate: f64,
    /// Bytes written until the last answer.
    sending: Written,
    /// Bytes written from then on.
    settling: Written,
    /// Bytes that one more opening writes.
    opening: Written,
    /// Bytes that the store holds in the end, by the kind of their keys.
    at_rest: BTreeMap<u8, u64>,
}

impl Measured {
    fn each(&self, people: usize, count: Count) -> f64 {
        (count(&self.sending) + count(&self.settling)) as f64 / people as f64
    }

    fn print_rest(&self, name: &str, people: usize) {
        let each = |bytes: u64| bytes as f64 / people as f64;
        let all: u64 = self.at_rest.values().sum();
        let parts = KINDS.map(|(kind, what)| {
            let bytes = self.at_rest.get(&kind).copied().unwrap_or_default();
            format!("{what} {:.1}", each(bytes))
        });
        let times = self.settling.chars as f64 / all as f64;
        println!("{name} at rest, B each: {} ({:.1}), written {times:.1} times", parts.join(", "), each(all));
    }

    fn print(&self, name: &str, people: usize) {
        let each = |bytes: u64| bytes as f64 / people as f64;
        let counts: [(&str, Count); 2] =
            [("wchar", |written| written.chars), ("write_bytes", |written| written.bytes)];
        for (count, of) in counts {
            let (sending, settling) = (each(of(&self.sending)), each(of(&self.settling)));
            let (rate, both) = (short(self.rate), self.each(people, of));
            println!("{name:<8}{count:<12}{rate:>10}{sending:>18.1}{settling:>18.1}{both:>10.1}");
        }
    }
}

async fn measure(dir: &Path, people: usize, way: Way) -> Result<Measured, Failure> {
    let engine = open(dir)?;
    quiet(&engine).await?;
    let before = written()?;
    let began = now();
    let accepted = match way {
        Way::FanOut => fan_out(&engine, people).await?,
        Way::Single => singles(&engine, people).await?,
    };
    let took = began.elapsed();
    assert_eq!(accepted, people, "everybody is accepted");
    let sent = written()?;
    let engine = reopen(engine, dir).await?;
    let settled = written()?;
    assert_eq!(engine.stats().await?.waiting, people as u64, "everybody's message waits");
    let engine = reopen(engine, dir).await?;
    let opening = written()?.since(settled);
    assert!(engine.outbox().verify(&mut |_| {})?.damage.is_empty(), "what settled is sound");
    assert_eq!(engine.outbox().runs().iter().map(|run| run.entries).sum::<u64>(), people as u64);
    engine.shutdown(Duration::from_secs(60)).await;
    drop(engine);
    Ok(Measured {
        rate: rate(people, took),
        sending: sent.since(before),
        settling: settled.since(sent),
        opening,
        at_rest: at_rest(dir)?,
    })
}

/// What the store holds, by the kind of keys.
fn at_rest(dir: &Path) -> Result<BTreeMap<u8, u64>, Failure> {
    /// sled sees a byte before each key, and a frame around each value.
    const KEY_AND_FRAME: usize = 1 + 11;
    let store = SledStore::open(dir)?;
    let mut bytes = BTreeMap::new();
    store.scan(&[], &[u8::MAX], &mut |key, value| {
        let kind = key.first().copied().unwrap_or_default();
        *bytes.entry(kind).or_default() += (key.len() + value.map_or(0, <[u8]>::len) + KEY_AND_FRAME) as u64;
        Flow::Continue
    })?;
    Ok(bytes)
}

fn open(dir: &Path) -> Result<Engine, Failure> {
    Ok(Engine::builder(SledStore::open(dir)?).journal_size(SEGMENT_BYTES, SEGMENTS).build()?)
}

/// Closes the engine and opens it again, and waits until all has settled.
async fn reopen(engine: Engine, dir: &Path) -> Result<Engine, Failure> {
    engine.shutdown(Duration::from_secs(60)).await;
    drop(engine);
    let engine = open(dir)?;
    quiet(&engine).await?;
    Ok(engine)
}

/// Waits until nothing has been written for a while, but for what threads wake each other with: that is counted too.
async fn quiet(engine: &Engine) -> Result<(), Failure> {
    /// So much is no block of the journal, nor a page of the store.
    const WAKING: u64 = 1024;
    let mut last = (written()?, 0);
    loop {
        tokio::time::sleep(QUIET).await;
        let stats = engine.stats().await?;
        let next = (written()?, stats.settlements + stats.merges);
        if next.1 == last.1 && next.0.chars - last.0.chars < WAKING {
            return Ok(());
        }
        last = next;
    }
}

fn person(number: usize) -> String {
    format!("user-{number:06}")
}

async fn fan_out(engine: &Engine, people: usize) -> Result<usize, Failure> {
    let message = Message::to("everybody", "news.published", vec![b'.'; PAYLOAD]).build()?;
    let recipients = (0..people).map(|n| UserId::new(person(n)).expect("it is short"));
    let verdicts = engine.fan_out(&message, recipients).await;
    Ok(verdicts
        .iter()
        .filter(|(_, verdict)| verdict.as_ref().is_ok_and(|receipt| !receipt.is_duplicate()))
        .count())
}

async fn singles(engine: &Engine, people: usize) -> Result<usize, Failure> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let engine = engine.clone();
        clients.spawn(async move {
            let mut accepted = 0;
            for number in (client..people).step_by(CLIENTS) {
                let message = Message::to(person(number), "news.published", vec![b'.'; PAYLOAD]).build()?;
                accepted += usize::from(!engine.send(message).await?.is_duplicate());
            }
            Ok::<_, Failure>(accepted)
        });
    }
    let mut accepted = 0;
    while let Some(ended) = clients.join_next().await {
        accepted += ended??;
    }
    Ok(accepted)
}

/// Bytes that this process has written.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Written {
    /// Handed to the kernel.
    chars: u64,
    /// Of pages made dirty.
    bytes: u64,
}

/// One of the two counts.
type Count = fn(&Written) -> u64;

impl Written {
    fn since(self, before: Self) -> Self {
        Self { chars: self.chars - before.chars, bytes: self.bytes - before.bytes }
    }
}

fn written() -> Result<Written, Failure> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let find = |name: &str| -> Result<u64, Failure> {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Ok(value.ok_or_else(|| format!("/proc/self/io has no {name}"))?.trim().parse()?)
    };
    Ok(Written { chars: find("wchar")?, bytes: find("write_bytes")? })
}
