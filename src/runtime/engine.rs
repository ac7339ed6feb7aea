//! The engine: the handle hosts hold.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::Sender;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore, oneshot, watch};

use super::attachment::{Attachment, Detached, Registry};
use super::builder::EngineBuilder;
use super::clock::Stopwatch;
use super::committer::{JournalGauge, Order};
use super::error::{AttachError, SendError};
use super::inbox::Inbox;
use super::keeper::{Event, KeeperGauge};
use super::mail::{Mail, Note, Post};
use super::meters::Meters;
use super::presence::Sign;
use super::queue::{Queue, queue};
use super::receipt::Receipt;
use super::report::DrainReport;
use super::requests::Requests;
use super::sink::SinkTask;
use super::stats::Stats;
use super::subscribe::Changes;
use super::tasks;
use crate::config::Config;
use crate::digest::Digester;
use crate::error::Closed;
use crate::id::{DeviceId, StreamId, UserId};
use crate::machine::{Accepted, Input, LinkId, Refusal};
use crate::message::Message;
use crate::ports::{Clock, Sink, Store};
use crate::record::Seq;
use crate::storage::outbox::{Loss, OutboxStore, Recovered};

/// How often a shutdown looks whether all is quiet.
const QUIET_CHECK: Duration = Duration::from_millis(5);
/// How long a shutdown waits for its threads, which may wait for the disk.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// An outbox and its delivery. Clones are handles to the same engine; it stops when the last one is dropped, or by
/// [`Engine::shutdown`].
#[derive(Clone)]
pub struct Engine {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) shards: Vec<Post>,
    pub(super) digester: Digester,
    pub(super) stream: StreamId,
    pub(super) registry: Arc<Registry>,
    pub(super) requests: Arc<Requests>,
    pub(super) hub: Arc<Changes>,
    pub(super) handle: Handle,
    pub(super) next_link: AtomicU64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) config: Config,
    pub(super) outbox: OutboxStore,
    pub(super) journal: Arc<JournalGauge>,
    pub(super) kept: Arc<KeeperGauge>,
    pub(super) meters: Arc<Meters>,
    /// Where the newest end is that is kept.
    pub(super) newest_end: watch::Receiver<Seq>,
    pub(super) loads: Arc<Semaphore>,
    pub(super) committer: Sender<Order>,
    pub(super) keeper: Sender<Event>,
    pub(super) threads: std::sync::Mutex<Vec<std::thread::JoinHandle<()>>>,
    pub(super) drivers: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    pub(super) closing: AtomicBool,
    /// Lets in batches across shards.
    pub(super) joints: Arc<Semaphore>,
    /// How many sends of a shard may wait for an answer.
    pub(super) max_pending: usize,
    pub(super) recovered: Recovered,
    pub(super) lost: Vec<Loss>,
}

/// A link, its queue, how it is told that it ended, and what gives its signs of life.
pub(super) type OpenLink = (LinkId, Queue, watch::Receiver<Option<Detached>>, Sign);

impl Engine {
    /// Starts building an engine on `store`. See [`EngineBuilder`].
    pub fn builder(store: impl Store + 'static) -> EngineBuilder {
        EngineBuilder::new(Arc::new(store))
    }

    pub(super) fn shard(&self, user: &UserId) -> usize {
        self.inner.digester.shard(user, self.inner.shards.len())
    }

    pub(super) fn post(&self, user: &UserId) -> &Post {
        let shards = &self.inner.shards;
        shards.get(self.shard(user)).or(shards.first()).expect("an engine has at least one shard")
    }

    /// Accepts a message: `Ok` means what its [`Durability`](crate::Durability) promises, now.
    ///
    /// The same message may be sent again at will: within the dedup window it is accepted once.
    ///
    /// # Errors
    /// [`SendError`], which says why, what that did to the state, and gives the message back.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the message is wholly in or wholly out. Send it again to know.
    #[tracing::instrument(
        name = "send outbox",
        level = "debug",
        skip_all,
        fields(
            messaging.system = "lastmile",
            messaging.operation.name = "send",
            messaging.destination.template = "outbox/{user}",
            messaging.message.id = %message.id(),
        )
    )]
    pub async fn send(&self, message: Message) -> Result<Receipt, SendError> {
        let watch = Stopwatch::start();
        let answered = match self.begin_send(message.clone()).await {
            Some(answer) => answer.await.unwrap_or(Err(Refusal::OutcomeUnknown)),
            None => Err(Refusal::ShuttingDown),
        };
        let result = match answered {
            Ok(accepted) => {
                let (recipient, post) = (message.recipient().clone(), self.post(message.recipient()));
                Ok(Receipt::new(&message, recipient, accepted, post.clone()))
            }
            Err(refusal) => Err(SendError::new(message, refusal)),
        };
        self.inner.meters.sent(watch.nanos(), result.as_ref().err().map(SendError::kind));
        result
    }

    /// Hands a message to its driver, in order: `None` if that is gone. The answer comes when what its durability promises
    /// is true.
    pub(super) async fn begin_send(
        &self,
        message: Message,
    ) -> Option<oneshot::Receiver<Result<Accepted, Refusal>>> {
        let (reply, answer) = oneshot::channel();
        let post = self.post(message.recipient());
        post.mail.send(Mail::Send { message, reply }).await.is_ok().then_some(answer)
    }

    /// Attaches a sink for one of a user's devices: what waits for the user is offered to it, in order, until the
    /// attachment is dropped. A device that attaches again takes over from its earlier attachment.
    ///
    /// # Errors
    /// [`AttachError`]. Nothing was changed.
    pub fn attach<U, D>(&self, user: U, device: D, sink: impl Sink) -> Result<Attachment, AttachError>
    where
        U: TryInto<UserId>,
        U::Error: Into<AttachError>,
        D: TryInto<DeviceId>,
        D::Error: Into<AttachError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        let device = device.try_into().map_err(Into::into)?;
        if self.inner.closing.load(Ordering::Acquire) {
            return Err(AttachError::ShuttingDown);
        }
        let link = LinkId(self.inner.next_link.fetch_add(1, Ordering::Relaxed));
        let (queue, batches) = queue();
        let (end, ended) = watch::channel(None);
        let (post, registry) = (self.post(&user).clone(), self.inner.registry.clone());
        let sign = registry.insert(link, (&user, &device), queue, end, || {
            post.note(Input::Attach { link, user: user.clone(), device: device.clone() });
        });
        let task = SinkTask {
            link,
            sink: Box::new(sink),
            queue: batches,
            end: ended.clone(),
            post: post.clone(),
            registry: registry.clone(),
            sign: sign.clone(),
            meters: self.inner.meters.clone(),
        };
        tasks::spawn(&self.inner.handle, task.run());
        Ok(Attachment::new(link, post, registry, ended, sign))
    }

    /// A link whose queue the caller reads, and who gives signs of life for it.
    pub(super) fn open_link(&self, user: &UserId, device: &DeviceId) -> OpenLink {
        let link = LinkId(self.inner.next_link.fetch_add(1, Ordering::Relaxed));
        let (queue, handed) = queue();
        let (end, ended) = watch::channel(None);
        let post = self.post(user);
        let sign = self.inner.registry.insert(link, (user, device), queue, end, || {
            post.note(Input::Attach { link, user: user.clone(), device: device.clone() });
        });
        (link, handed, ended, sign)
    }

    /// This engine's inbox, for deliveries of other engines.
    #[must_use]
    pub fn inbox(&self) -> Inbox {
        Inbox::new(self.clone())
    }

    /// The identity of this engine's log, as receivers see it in [`Delivery::stream`](crate::machine::Delivery).
    #[must_use]
    pub fn stream(&self) -> StreamId {
        self.inner.stream
    }

    /// What opening found: how much was replayed, and what was cut or damaged.
    #[must_use]
    pub fn recovered(&self) -> &Recovered {
        &self.inner.recovered
    }

    /// What should have been in the store at opening, and was not: also what earlier openings have found missing, until
    /// something has settled since.
    #[must_use]
    pub fn lost(&self) -> &[Loss] {
        &self.inner.lost
    }

    /// The settled part of the outbox, for `verify` and `export`.
    #[must_use]
    pub fn outbox(&self) -> &OutboxStore {
        &self.inner.outbox
    }

    /// A snapshot of what the engine counts.
    ///
    /// # Errors
    /// [`Closed`] after a shutdown.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn stats(&self) -> Result<Stats, Closed> {
        let mut stats = Stats { at: self.inner.clock.now(), ..Stats::default() };
        for post in &self.inner.shards {
            let (reply, answer) = oneshot::channel();
            post.notes.send(Note::Stats(reply)).map_err(|_| Closed)?;
            stats.add(&answer.await.map_err(|_| Closed)?);
        }
        let (journal, kept) = (&self.inner.journal, &self.inner.kept);
        stats.commits = journal.commits.load(Ordering::Relaxed);
        stats.records = journal.records.load(Ordering::Relaxed);
        stats.commit_times = journal.commit_times.snapshot();
        stats.group_sizes = journal.group_sizes.snapshot();
        stats.settle_times = kept.settle_times.snapshot();
        stats.commit_nanos = journal.commit_nanos.load(Ordering::Relaxed);
        stats.journal_failures = journal.failures.load(Ordering::Relaxed);
        stats.degraded = journal.degraded.load(Ordering::Relaxed);
        stats.free_segments = journal.free.load(Ordering::Relaxed);
        stats.segments = journal.segments.load(Ordering::Relaxed);
        stats.settlements = kept.settlements.load(Ordering::Relaxed);
        stats.settle_nanos = kept.settle_nanos.load(Ordering::Relaxed);
        stats.merges = kept.merges.load(Ordering::Relaxed);
        stats.store_failures = kept.failures.load(Ordering::Relaxed);
        let presences = self.inner.registry.presences();
        stats.present_users = presences.users() as u64;
        stats.subscriptions = (self.inner.hub.count() + presences.watches()) as u64;
        stats.runs = self.inner.outbox.runs().len() as u64;
        stats.disk_bytes = self.inner.outbox.disk_bytes();
        Ok(stats)
    }

    /// Refuses new messages, waits until everything that was sent is answered and everything in flight is confirmed, or
    /// the deadline has passed, and stops. What waits for people who are away stays in the outbox.
    ///
    /// It returns at the deadline and five seconds at the latest, also when the disk stands still: its threads are then left
    /// to end when the disk answers ([`DrainReport::stopped`]), and hold the directory's lock until then.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the engine refuses new messages, and stops when its last handle is dropped.
    pub async fn shutdown(&self, deadline: Duration) -> DrainReport {
        let watch = Stopwatch::start();
        let took = || Duration::from_nanos(watch.nanos());
        self.inner.closing.store(true, Ordering::Release);
        self.inner.shards.iter().for_each(|post| post.note(Input::Drain));
        let mut last = Stats::default();
        while let Ok(stats) = self.stats().await {
            last = stats;
            if stats.is_quiet() || took() >= deadline {
                break;
            }
            tokio::time::sleep(QUIET_CHECK).await;
        }
        self.inner.registry.close();
        let stopped = tokio::time::timeout(STOP_PATIENCE, self.stop()).await.is_ok();
        DrainReport {
            waiting: last.waiting,
            in_flight: last.in_flight,
            unanswered: last.pending,
            took: took(),
            clean: last.is_quiet(),
            stopped,
        }
    }

    async fn stop(&self) {
        self.inner.signal_stop();
        for driver in self.inner.drivers.lock().await.drain(..) {
            let _ = driver.await;
        }
        let threads: Vec<_> = match self.inner.threads.lock() {
            Ok(mut threads) => threads.drain(..).collect(),
            Err(poisoned) => poisoned.into_inner().drain(..).collect(),
        };
        self.inner.hub.close();
        self.inner.registry.presences().close();
        let joined =
            self.inner.handle.spawn_blocking(move || threads.into_iter().for_each(|t| drop(t.join())));
        let _ = joined.await;
    }
}

impl Inner {
    fn signal_stop(&self) {
        self.kept.stopping.store(true, Ordering::Relaxed);
        let _ = self.keeper.send(Event::Stop);
        let _ = self.committer.send(Order::Stop);
        for post in &self.shards {
            let _ = post.notes.send(Note::Stop);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.registry.close();
        // Sinks' tasks hold the registry for a moment longer.
        self.registry.presences().close();
        self.signal_stop();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("stream", &self.inner.stream)
            .field("shards", &self.inner.shards.len())
            .finish_non_exhaustive()
    }
}
