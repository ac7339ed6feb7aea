//! The engine: the handle hosts hold.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::Sender;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::attachment::{Attachment, MAX_QUEUED, Registry};
use super::builder::EngineBuilder;
use super::clock::Stopwatch;
use super::committer::{JournalGauge, Order};
use super::error::{AttachError, BatchError, Closed, SendError};
use super::inbox::Inbox;
use super::keeper::{Event, KeeperGauge};
use super::mail::{Mail, Note, Post};
use super::receipt::Receipt;
use super::report::DrainReport;
use super::sink::SinkTask;
use super::stats::Stats;
use super::tasks;
use crate::digest::Digester;
use crate::id::{DeviceId, StreamId, UserId};
use crate::machine::{Input, LinkId, Refusal};
use crate::message::Message;
use crate::ports::{Sink, Store};
use crate::storage::outbox::{Loss, OutboxStore, Recovered};

/// How often a shutdown looks whether all is quiet.
const QUIET_CHECK: Duration = Duration::from_millis(5);

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
    pub(super) handle: Handle,
    pub(super) next_link: AtomicU64,
    pub(super) outbox: OutboxStore,
    pub(super) journal: Arc<JournalGauge>,
    pub(super) kept: Arc<KeeperGauge>,
    pub(super) committer: Sender<Order>,
    pub(super) keeper: Sender<Event>,
    pub(super) threads: std::sync::Mutex<Vec<std::thread::JoinHandle<()>>>,
    pub(super) drivers: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    pub(super) closing: AtomicBool,
    /// How many sends of a shard may wait for an answer.
    pub(super) max_pending: usize,
    pub(super) recovered: Recovered,
    pub(super) lost: Vec<Loss>,
}

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
        let post = self.post(message.recipient());
        let (reply, answer) = oneshot::channel();
        if post.mail.send(Mail::Send { message: message.clone(), reply }).await.is_err() {
            return Err(SendError::new(message, Refusal::ShuttingDown));
        }
        match answer.await {
            Ok(Ok(accepted)) => {
                Ok(Receipt::new(message.id(), message.recipient().clone(), accepted, post.clone()))
            }
            Ok(Err(refusal)) => Err(SendError::new(message, refusal)),
            Err(_) => Err(SendError::new(message, Refusal::OutcomeUnknown)),
        }
    }

    /// Accepts messages together: all of them, in one commit, or none. After any crash all are there or none is. They
    /// may be for different people; each waits behind what was accepted before it, in the order of the batch. A repeat
    /// of a message counts as accepted; so does a repeat of a whole batch. Empty batches do nothing.
    ///
    /// At most 1,024 messages, or [`Config::max_pending`](crate::Config::max_pending) if that is less, which take at most
    /// [`Config::max_commit_bytes`](crate::Config::max_commit_bytes) (1 MiB, less with a small journal) with 1 KiB for each. All are answered when they are synced, [`Buffered`](crate::Durability::Buffered) ones too; volatile
    /// ones are refused. With several shards, all recipients must belong to the same one.
    ///
    /// ```
    /// # use lastmile::{Engine, Message, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let invoice = Message::to("alice", "order.invoice", "…").build()?;
    /// let receipt = Message::to("shop", "order.sold", "…").build()?;
    /// let receipts = engine.send_batch(vec![invoice, receipt]).await?;
    /// assert_eq!(receipts.len(), 2);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`BatchError`] with the messages and which of them was refused. Nothing of the batch was stored, unless it says
    /// that the outcome is unknown.
    ///
    /// # Cancel safety
    /// Dropped before it returns, all may be accepted or none. Sending the same batch again is safe.
    pub async fn send_batch(&self, messages: Vec<Message>) -> Result<Vec<Receipt>, BatchError> {
        let Some(first) = messages.first() else { return Ok(Vec::new()) };
        let post = self.post(first.recipient());
        let elsewhere = |message: &Message| !core::ptr::eq(self.post(message.recipient()), post);
        if let Some(index) = messages.iter().position(elsewhere) {
            return Err(BatchError::new(messages, Some(index), Refusal::AcrossShards));
        }
        let (replies, answers): (Vec<_>, Vec<_>) = messages.iter().map(|_| oneshot::channel()).unzip();
        let mail = Mail::SendBatch(messages.iter().cloned().zip(replies).collect());
        if post.mail.send(mail).await.is_err() {
            return Err(BatchError::new(messages, None, Refusal::ShuttingDown));
        }
        let mut receipts = Vec::new();
        let mut refused: Vec<(usize, Refusal)> = Vec::new();
        for (index, (message, answer)) in messages.iter().zip(answers).enumerate() {
            match answer.await {
                Ok(Ok(accepted)) => {
                    let (id, user) = (message.id(), message.recipient().clone());
                    receipts.push(Receipt::new(id, user, accepted, post.clone()));
                }
                Ok(Err(refusal)) => refused.push((index, refusal)),
                Err(_) => refused.push((index, Refusal::OutcomeUnknown)),
            }
        }
        match refused.is_empty() {
            true => Ok(receipts),
            false => Err(BatchError::of(messages, refused)),
        }
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
        let (queue, batches) = mpsc::channel(MAX_QUEUED);
        let (end, ended) = watch::channel(None);
        let (post, registry) = (self.post(&user).clone(), self.inner.registry.clone());
        registry.insert(link, queue, end);
        let task = SinkTask {
            link,
            sink: Box::new(sink),
            queue: batches,
            end: ended.clone(),
            post: post.clone(),
            registry: registry.clone(),
        };
        tasks::spawn(&self.inner.handle, task.run());
        post.note(Input::Attach { link, user, device });
        Ok(Attachment::new(link, post, registry, ended))
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

    /// What should have been in the store at opening, and was not.
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
        let mut stats = Stats::default();
        for post in &self.inner.shards {
            let (reply, answer) = oneshot::channel();
            post.mail.send(Mail::Stats(reply)).await.map_err(|_| Closed)?;
            stats.add(&answer.await.map_err(|_| Closed)?);
        }
        let (journal, kept) = (&self.inner.journal, &self.inner.kept);
        stats.commits = journal.commits.load(Ordering::Relaxed);
        stats.records = journal.records.load(Ordering::Relaxed);
        stats.commit_nanos = journal.commit_nanos.load(Ordering::Relaxed);
        stats.journal_failures = journal.failures.load(Ordering::Relaxed);
        stats.degraded = journal.degraded.load(Ordering::Relaxed);
        stats.free_segments = journal.free.load(Ordering::Relaxed);
        stats.segments = journal.segments.load(Ordering::Relaxed);
        stats.settlements = kept.settlements.load(Ordering::Relaxed);
        stats.settle_nanos = kept.settle_nanos.load(Ordering::Relaxed);
        stats.merges = kept.merges.load(Ordering::Relaxed);
        stats.store_failures = kept.failures.load(Ordering::Relaxed);
        stats.runs = self.inner.outbox.runs().len() as u64;
        stats.disk_bytes = self.inner.outbox.disk_bytes();
        Ok(stats)
    }

    /// Refuses new messages, waits until everything that was sent is answered and everything in flight is confirmed, or
    /// the deadline has passed, and stops. What waits for people who are away stays in the outbox.
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
        self.inner.registry.clear();
        self.stop().await;
        DrainReport {
            waiting: last.waiting,
            in_flight: last.in_flight,
            unanswered: last.pending,
            took: took(),
            clean: last.is_quiet(),
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
        let joined =
            self.inner.handle.spawn_blocking(move || threads.into_iter().for_each(|t| drop(t.join())));
        let _ = joined.await;
    }
}

impl Inner {
    fn signal_stop(&self) {
        let _ = self.keeper.send(Event::Stop);
        let _ = self.committer.send(Order::Stop);
        for post in &self.shards {
            let _ = post.notes.send(Note::Stop);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.registry.clear();
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
