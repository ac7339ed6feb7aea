//! An adversarial network in memory, as transports: connections that are slow, stall, break, go silent, or overtake each
//! other. A seed decides what happens when, as far as the tasks that use it run in the same order.
//!
//! In a paused tokio runtime with [`VirtualTime`] a minute takes a few seconds.

use core::time::Duration;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Sleep;

use super::sim::Random;
use crate::ports::{ConnectError, Connector, FrameReader, FrameWriter, Transport, TransportError};
use crate::session::Code;
use crate::{Acceptor, Timestamp};

/// Batches under way in one direction.
const MAX_UNDER_WAY: usize = 64;

/// How bad it is.
#[derive(Clone, Copy, Debug)]
pub struct NetworkWeather {
    /// The shortest latency of a batch, in milliseconds.
    pub latency: u64,
    /// By how much it varies, in milliseconds; each connection has a base of its own in it, so that newer connections
    /// overtake older ones.
    pub jitter: u64,
    /// In how many of a thousand batches the connection breaks, with what is under way.
    pub cuts: u64,
    /// In how many of a thousand it goes silent: nothing arrives any more, in either direction, and nobody is told.
    pub silences: u64,
    /// In how many of a thousand it stalls for up to four seconds.
    pub stalls: u64,
}

impl NetworkWeather {
    /// Nothing breaks, and everything is there at once.
    #[must_use]
    pub const fn calm() -> Self {
        Self { latency: 0, jitter: 0, cuts: 0, silences: 0, stalls: 0 }
    }

    /// Something is always wrong.
    #[must_use]
    pub const fn bad() -> Self {
        Self { latency: 5, jitter: 120, cuts: 30, silences: 4, stalls: 10 }
    }
}

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Silent,
    Cut,
}

#[derive(Debug)]
struct Inner {
    random: Random,
    weather: NetworkWeather,
    partitioned: bool,
    connections: Vec<watch::Sender<State>>,
    /// Counted, for tests that want to know that something happened.
    made: u64,
    cuts: u64,
}

/// The network. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Network {
    inner: Arc<Mutex<Inner>>,
}

impl Network {
    /// A network with this weather.
    #[must_use]
    pub fn new(seed: u64, weather: NetworkWeather) -> Self {
        let inner = Inner {
            random: Random::new(seed),
            weather,
            partitioned: false,
            connections: Vec::new(),
            made: 0,
            cuts: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// A connection: both of its ends.
    ///
    /// # Errors
    /// [`ConnectError`] while the network is partitioned.
    pub fn connect(&self) -> Result<(NetworkTransport, NetworkTransport), ConnectError> {
        let mut inner = self.inner.lock();
        if inner.partitioned {
            return Err(ConnectError::unreachable("the network is partitioned"));
        }
        inner.made += 1;
        let (state, jitter) = (watch::Sender::new(State::Open), inner.weather.jitter.max(1));
        let base = inner.random.below(jitter);
        inner.connections.retain(|state| !state.is_closed());
        inner.connections.push(state.clone());
        drop(inner);
        let (there, from_here) = mpsc::channel(MAX_UNDER_WAY);
        let (here, from_there) = mpsc::channel(MAX_UNDER_WAY);
        let end = |batches, sender| NetworkTransport {
            reader: NetworkReader { batches, state: state.subscribe(), coming: None, rest: Vec::new() },
            writer: NetworkWriter {
                batches: Some(sender),
                network: self.clone(),
                watch: state.subscribe(),
                state: state.clone(),
                base,
            },
        };
        Ok((end(from_there, there), end(from_here, here)))
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: NetworkWeather) {
        self.inner.lock().weather = weather;
    }

    /// From now on there is no new connection, and those that there are go silent; or there is one again.
    pub fn partition(&self, partitioned: bool) {
        let mut inner = self.inner.lock();
        inner.partitioned = partitioned;
        if partitioned {
            inner.connections.iter().for_each(silence);
        }
    }

    /// All connections break, with what is under way.
    pub fn cut_all(&self) {
        let inner = self.inner.lock();
        inner.connections.iter().for_each(|state| {
            state.send_replace(State::Cut);
        });
    }

    /// All connections go silent, and nobody is told.
    pub fn silence_all(&self) {
        self.inner.lock().connections.iter().for_each(silence);
    }

    /// Connections that were made.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.inner.lock().made
    }

    /// Connections that the weather broke.
    #[must_use]
    pub fn broken(&self) -> u64 {
        self.inner.lock().cuts
    }

    /// Connects to an acceptor through this network; `name` is the transport's.
    #[must_use]
    pub fn to(&self, acceptor: &Acceptor, name: &'static str) -> NetworkConnector {
        NetworkConnector { network: self.clone(), acceptor: acceptor.clone(), name }
    }

    /// How long a batch takes; and perhaps something happens to its connection.
    fn carry(&self, state: &watch::Sender<State>, base: u64) -> Duration {
        let mut inner = self.inner.lock();
        let weather = inner.weather;
        let dice = inner.random.below(1000);
        if dice < weather.cuts {
            inner.cuts += 1;
            state.send_replace(State::Cut);
        } else if dice < weather.cuts + weather.silences {
            inner.cuts += 1;
            silence(state);
        }
        let stall = match inner.random.below(1000) < weather.stalls {
            true => inner.random.below(4000),
            false => 0,
        };
        let jitter = inner.random.below(weather.jitter.max(1));
        Duration::from_millis(weather.latency + base + jitter + stall)
    }
}

fn silence(state: &watch::Sender<State>) {
    state.send_if_modified(|state| {
        *state == State::Open && core::mem::replace(state, State::Silent) == State::Open
    });
}

/// Makes connections to an acceptor, see [`Network::to`].
#[derive(Clone, Debug)]
pub struct NetworkConnector {
    network: Network,
    acceptor: Acceptor,
    name: &'static str,
}

impl Connector for NetworkConnector {
    type Transport = NetworkTransport;

    fn name(&self) -> &'static str {
        self.name
    }

    async fn connect(&self) -> Result<NetworkTransport, ConnectError> {
        let (ours, theirs) = self.network.connect()?;
        self.acceptor.accept(theirs, self.name, "network");
        Ok(ours)
    }
}

type Batch = (Pin<Box<Sleep>>, Vec<Bytes>);

/// One end of a connection.
#[derive(Debug)]
pub struct NetworkTransport {
    reader: NetworkReader,
    writer: NetworkWriter,
}

/// The reading half of a [`NetworkTransport`].
#[derive(Debug)]
pub struct NetworkReader {
    batches: mpsc::Receiver<Batch>,
    state: watch::Receiver<State>,
    coming: Option<Batch>,
    /// What has arrived and was not read, reversed.
    rest: Vec<Bytes>,
}

/// The writing half of a [`NetworkTransport`].
#[derive(Debug)]
pub struct NetworkWriter {
    batches: Option<mpsc::Sender<Batch>>,
    network: Network,
    watch: watch::Receiver<State>,
    state: watch::Sender<State>,
    base: u64,
}

impl Transport for NetworkTransport {
    type Reader = NetworkReader;
    type Writer = NetworkWriter;

    fn split(self) -> (NetworkReader, NetworkWriter) {
        (self.reader, self.writer)
    }
}

fn broken() -> TransportError {
    TransportError::Broken("the network broke the connection".to_owned())
}

/// Waits for a cut; a connection whose other users are gone is cut by nobody any more.
async fn cut(state: &mut watch::Receiver<State>) {
    if state.wait_for(|state| *state == State::Cut).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl NetworkReader {
    /// The next frame, or the end.
    async fn arrive(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.rest.pop() {
                return Some(frame);
            }
            if self.coming.is_none() {
                self.coming = Some(self.batches.recv().await?);
            }
            poll_fn(|context| match self.coming.as_mut() {
                Some((sleep, _)) => sleep.as_mut().poll(context),
                None => Poll::Ready(()),
            })
            .await;
            self.rest.extend(self.coming.take().into_iter().flat_map(|(_, frames)| frames).rev());
        }
    }
}

impl FrameReader for NetworkReader {
    async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        let mut state = self.state.clone();
        let frame = tokio::select! {
            biased;
            () = cut(&mut state) => return Err(broken()),
            frame = self.arrive() => frame,
        };
        let state = *self.state.borrow();
        match state {
            State::Open => Ok(frame),
            State::Cut => Err(broken()),
            State::Silent => std::future::pending().await,
        }
    }
}

impl FrameWriter for NetworkWriter {
    async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), TransportError> {
        let Some(batches) = self.batches.as_ref() else { return Err(broken()) };
        let delay = self.network.carry(&self.state, self.base);
        let state = *self.watch.borrow();
        match state {
            State::Cut => Err(broken()),
            State::Silent => Ok(()),
            State::Open => {
                let batch = (Box::pin(tokio::time::sleep(delay)), frames);
                tokio::select! {
                    biased;
                    () = cut(&mut self.watch) => Err(broken()),
                    sent = batches.send(batch) => sent.map_err(|_| broken()),
                }
            }
        }
    }

    async fn close(&mut self, _code: Code) {
        self.batches = None;
    }
}

/// Virtual time that goes on by itself, some 25 times as fast as the real one, so that the engine's threads keep up.
///
/// Tokio's own way to let paused time pass jumps to the next timer whenever no task can run, also while a thread works
/// for one: every deadline would pass during a commit. Dropping it stops it.
///
/// ```
/// # use lastmile::{Engine, storage::MemoryStore, testing::VirtualTime};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let time = VirtualTime::start();
/// let engine = Engine::builder(MemoryStore::new()).clock(time.clock()).build().unwrap();
/// tokio::time::sleep(core::time::Duration::from_secs(1)).await; // takes 40 ms
/// # drop(engine);
/// # }
/// ```
#[derive(Debug)]
pub struct VirtualTime {
    clock: crate::testing::VirtualClock,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl VirtualTime {
    /// Lets time pass in the paused, single-threaded runtime that this is called in.
    ///
    /// # Panics
    /// When time is not paused.
    #[must_use]
    pub fn start() -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let handle = tokio::runtime::Handle::current();
        let blocking = handle.clone();
        handle.spawn(async move {
            while matches!(stopped.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)) {
                // While a blocking job runs, paused time stands still.
                let real = blocking.spawn_blocking(|| std::thread::sleep(Duration::from_micros(200)));
                if real.await.is_err() {
                    return;
                }
                tokio::time::advance(Duration::from_millis(5)).await;
            }
        });
        Self {
            clock: crate::testing::VirtualClock::new(Timestamp::from_millis(1_767_225_600_000)),
            stop: Some(stop),
        }
    }

    /// The engine's time.
    #[must_use]
    pub fn clock(&self) -> crate::testing::VirtualClock {
        self.clock.clone()
    }
}

impl Drop for VirtualTime {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}
