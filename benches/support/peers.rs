//! Sessions from end to end: a server's engine, a client and a transport in memory, beside a bare channel.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::{Authenticator, Claim, ConnectError, Connector, Denied, Identity, Receiver, Sink};
use lastmile::session::{self, AdmissionConfig, Inbound, InboundId, Rate, SessionConfig};
use lastmile::storage::{MemoryStore, SledStore};
use lastmile::{
    Acceptor, Client, ClientBuilder, Config, Durability, Engine, MemoryTransport, Message, memory_transport,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::support::{median, rate, short, time};

const BYTES: usize = 256;
/// On their way at once, at most: less than an outbox holds.
const IN_FLIGHT: usize = 1024;
/// Senders at once.
const SENDERS: usize = 64;

type Failure = Box<dyn std::error::Error>;

struct ByName;

impl Authenticator for ByName {
    async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
        claim.user.map(Identity::new).ok_or_else(|| Denied::refused("no name"))
    }
}

struct To(Acceptor);

impl Connector for To {
    type Transport = MemoryTransport;

    fn name(&self) -> &'static str {
        "memory"
    }

    async fn connect(&self) -> Result<MemoryTransport, ConnectError> {
        let (ours, theirs) = memory_transport();
        self.0.accept(theirs, "memory", "here");
        Ok(ours)
    }
}

/// Lets so many be under way and no more, and tells when all have arrived.
#[derive(Clone)]
struct Count(Arc<Semaphore>);

impl Count {
    fn new() -> Self {
        Self(Arc::new(Semaphore::new(IN_FLIGHT)))
    }

    fn add(&self, n: usize) {
        self.0.add_permits(n);
    }

    /// One is sent.
    async fn begin(&self) {
        self.0.acquire().await.expect("it is never closed").forget();
    }

    async fn all(&self) {
        let all = u32::try_from(IN_FLIGHT).expect("it is few");
        drop(self.0.acquire_many(all).await.expect("it is never closed"));
    }
}

impl Receiver for Count {
    async fn receive(&mut self, batch: Vec<Inbound>) -> Vec<(InboundId, session::Verdict)> {
        self.add(batch.len());
        batch.into_iter().map(|one| (one.id, session::Verdict::Delivered)).collect()
    }
}

impl Sink for Count {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        self.add(batch.len());
        batch.iter().map(|one| (one.entry, Verdict::Delivered)).collect()
    }
}

fn everybody() -> AdmissionConfig {
    let many = Rate { every: Duration::from_micros(1), burst: 1_000_000 };
    let mut config = AdmissionConfig::default();
    (config.address, config.user, config.global) = (many, many, many);
    config
}

fn acceptor(engine: &Engine) -> Result<Acceptor, Failure> {
    Ok(Acceptor::builder(engine.clone(), ByName).admission(everybody()).build()?)
}

async fn online(client: &Client) {
    client.watch().wait_for(|state| state.is_online()).await.expect("the client is there");
}

/// Sends from many tasks at once, each as soon as there is room, and waits until all has arrived. A volatile message is sent
/// again while the queue is full.
async fn flood(engine: &Engine, durability: Durability, messages: usize, count: &Count) {
    let sent = Arc::new(AtomicU64::new(0));
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let (engine, sent, count) = (engine.clone(), sent.clone(), count.clone());
        let payload = Bytes::from(vec![7; BYTES]);
        senders.spawn(async move {
            while sent.fetch_add(1, Ordering::Relaxed) < messages as u64 {
                count.begin().await;
                let message = Message::to("alice", "bench.message", payload.clone()).durability(durability);
                let message = message.build().expect("a small message is within the limits");
                while engine.send(message.clone()).await.is_err() {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    senders.join_all().await;
    count.all().await;
}

fn row(
    runtime: &tokio::runtime::Runtime,
    what: &str,
    messages: usize,
    rounds: usize,
    run: impl AsyncFn(),
) -> f64 {
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let ((), took) = time(|| runtime.block_on(run()));
        rates.push(rate(messages, took));
    }
    let middle = median(rates);
    println!("{what:<60}{:>14}/s", short(middle));
    middle
}

/// Messages of 256 bytes from a server's engine to a client, and the same bytes through a channel.
pub(crate) fn end_to_end(messages: usize, rounds: usize) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _inside = runtime.enter();
    println!("\n{messages} messages of {BYTES} bytes, {SENDERS} senders");
    let bare = row(&runtime, "bare tokio mpsc of the same bytes", messages, rounds, async || {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(64);
        let payload = Bytes::from(vec![7; BYTES]);
        let mut sending = JoinSet::new();
        sending.spawn(async move {
            for _ in 0..messages {
                sender.send(Bytes::copy_from_slice(&payload)).await.expect("the receiver is there");
            }
        });
        while receiver.recv().await.is_some() {}
        sending.join_all().await;
    });
    let builder = |acceptor: &Acceptor| -> ClientBuilder {
        Client::builder(Engine::builder(MemoryStore::new()), "alice", "phone").connector(To(acceptor.clone()))
    };
    let engine = Engine::builder(MemoryStore::new()).build()?;
    let accepts = acceptor(&engine)?;
    let volatile = row(&runtime, "volatile, frame to receiver", messages, rounds, async || {
        let count = Count::new();
        let client = builder(&accepts).direct({
            let count = count.clone();
            move || count.clone()
        });
        let client = client.build().expect("a client in memory opens");
        online(&client).await;
        flood(&engine, Durability::Volatile, messages, &count).await;
    });
    println!("{:<60}{:>14.3}", "  of the bare channel", volatile / bare);
    for window in [SessionConfig::default().window.messages, 256] {
        let durable = durable(&runtime, window, messages, rounds)?;
        println!("{:<60}{:>14.3}", "  of the bare channel", durable / bare);
    }
    Ok(())
}

/// Through the disks of both ends, with so many messages on their way to the client at once: until the client has stored one,
/// it is on its way.
fn durable(
    runtime: &tokio::runtime::Runtime,
    window: u32,
    messages: usize,
    rounds: usize,
) -> Result<f64, Failure> {
    let (there, here) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (mut config, mut session) = (Config::default(), SessionConfig::default());
    config.max_in_flight = NonZeroU32::new(window).ok_or("a window of none")?;
    // So many windows may end out of order.
    config.max_devices = NonZeroUsize::new(4).ok_or("none")?;
    session.window.messages = window;
    session.max_queue = usize::try_from(window)?;
    let builder =
        |path| -> Result<_, Failure> { Ok(Engine::builder(SledStore::open(path)?).config(config.clone())) };
    let engine = builder(there.path())?.build()?;
    let accepts =
        Acceptor::builder(engine.clone(), ByName).admission(everybody()).session(session.clone()).build()?;
    let count = Count::new();
    let client = Client::builder(builder(here.path())?, "alice", "phone")
        .session(session)
        .connector(To(accepts.clone()))
        .build()?;
    let _screen = client.attach("screen", count.clone())?;
    runtime.block_on(online(&client));
    let what = format!("durable at the server, in the client's inbox, to a sink, {window}");
    let flooded = async || flood(&engine, Durability::Synced, messages, &count).await;
    Ok(row(runtime, &what, messages, rounds, flooded))
}

/// So many clients' sessions at one acceptor, each with its connection and nothing to do: heap bytes of the server's side.
pub(crate) fn idle_tasks(count: usize, heap: impl Fn() -> usize) -> Result<(), Failure> {
    use lastmile::ports::{FrameReader, FrameWriter, Transport};
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _inside = runtime.enter();
    let engine = Engine::builder(MemoryStore::new()).build()?;
    let acceptor = acceptor(&engine)?;
    let mut ends = Vec::with_capacity(count);
    // The other ends are bare, so that nothing of theirs but the transport is counted.
    for n in 0..count {
        let (ours, theirs) = memory_transport();
        let (mut reader, mut writer) = ours.split();
        let hello = super::hello(n as u64)?;
        let before = heap();
        acceptor.accept(theirs, "memory", format!("{n}"));
        runtime.block_on(async {
            writer.write(vec![hello]).await?;
            reader.read().await
        })?;
        ends.push((reader, writer, before));
    }
    let first = ends.first().map_or(0, |end| end.2);
    let each = heap().saturating_sub(first) / count;
    println!(
        "{count} idle sessions with their tasks, attachments and transports in memory: {each} bytes each, {} open",
        acceptor.stats().open
    );
    Ok(())
}
