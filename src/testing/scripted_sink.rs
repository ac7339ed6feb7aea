//! A sink that answers as a test has scripted, and remembers what it was offered.

use core::future::{self, Future};
use core::task::{Poll, Waker};
use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::id::{MessageId, OrderingKey};
use crate::machine::{Delivery, EntryRef, Verdict};
use crate::ports::Sink;
use crate::record::LaneId;

/// Offers remembered unless [`ScriptedSink::keeping`] says otherwise.
const KEPT: usize = 4096;

/// What a [`ScriptedSink`] does with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// Says this verdict. After [`Verdict::Disconnected`], the rest of the batch is gone with the connection.
    Say(Verdict),
    /// Says nothing of the message, which counts as [`Verdict::AwaitingAck`].
    Silence,
    /// Never answers, for the whole batch: the transport hangs.
    Never,
    /// Panics: the host has a bug.
    Panic,
}

impl Reply {
    /// The receiver has it for good.
    pub const DELIVERED: Self = Self::Say(Verdict::Delivered);

    /// The receiver cannot take it now.
    #[must_use]
    pub const fn busy(delay: Duration) -> Self {
        Self::Say(Verdict::Busy(delay))
    }

    /// Whether messages of the same ordering key behind this one must not be taken.
    const fn holds_back(&self) -> bool {
        matches!(self, Self::Say(Verdict::Nack(_) | Verdict::Busy(_) | Verdict::Disconnected))
    }
}

impl From<Verdict> for Reply {
    fn from(verdict: Verdict) -> Self {
        Self::Say(verdict)
    }
}

/// A message as a [`ScriptedSink`] was offered it, and what the sink did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The message.
    pub delivery: Delivery,
    /// What the sink did with it.
    pub reply: Reply,
}

/// A [`Sink`] for tests. Clones are handles to the same one: attach one, keep another.
///
/// Each message that is offered takes its reply from the first of these that has one: the script of its id
/// ([`on`](Self::on)), the common script ([`then`](Self::then)), and the reply for all others. As the port asks, what
/// stands behind a failed message of the same lane and ordering key in a batch is given back with a delay of zero; that
/// uses up no reply.
///
/// ```
/// # #[cfg(feature = "runtime")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use core::time::Duration;
/// use lastmile::machine::Verdict;
/// use lastmile::storage::MemoryStore;
/// use lastmile::testing::{Reply, ScriptedSink};
/// use lastmile::{Engine, Message, Stage};
///
/// let engine = Engine::builder(MemoryStore::new()).build()?;
/// // The phone is busy once, and takes everything after that.
/// let phone = ScriptedSink::new().then(Reply::busy(Duration::from_millis(1)));
/// let _attached = engine.attach("alice", "phone", phone.clone())?;
///
/// let receipt = engine.send(Message::to("alice", "chat.message", "hello").build()?).await?;
/// receipt.reached(Stage::Delivered).await?;
/// let offers = phone.offered(2).await;
/// assert_eq!(offers[0].reply, Reply::Say(Verdict::Busy(Duration::from_millis(1))));
/// assert_eq!(offers[1].reply, Reply::DELIVERED);
/// assert_eq!(offers[1].delivery.message.payload().as_ref(), b"hello");
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "runtime"))]
/// # fn main() {}
/// ```
#[derive(Clone, Debug)]
pub struct ScriptedSink {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    by_id: HashMap<MessageId, VecDeque<Reply>>,
    script: VecDeque<Reply>,
    otherwise: Reply,
    offers: VecDeque<Offer>,
    keep: usize,
    /// Offers ever made, and how many of them [`ScriptedSink::next`] has handed out.
    total: u64,
    read: u64,
    waiting: Vec<Waker>,
}

impl Default for ScriptedSink {
    fn default() -> Self {
        Self::new()
    }
}

impl ScriptedSink {
    /// A sink that takes everything.
    #[must_use]
    pub fn new() -> Self {
        Self::always(Reply::DELIVERED)
    }

    /// A sink that does this with every message for which nothing else is scripted.
    #[must_use]
    pub fn always(reply: impl Into<Reply>) -> Self {
        let state = State {
            by_id: HashMap::new(),
            script: VecDeque::new(),
            otherwise: reply.into(),
            offers: VecDeque::new(),
            keep: KEPT,
            total: 0,
            read: 0,
            waiting: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Scripts the reply to the next message that has none yet. Repeat it for the ones after that.
    #[must_use]
    pub fn then(self, reply: impl Into<Reply>) -> Self {
        self.state.lock().script.push_back(reply.into());
        self
    }

    /// Scripts the reply to the next offer of this message. Repeat it for the offers after that.
    #[must_use]
    pub fn on(self, id: MessageId, reply: impl Into<Reply>) -> Self {
        self.state.lock().by_id.entry(id).or_default().push_back(reply.into());
        self
    }

    /// Remembers so many offers (4,096 unless set), and forgets the oldest beyond that.
    #[must_use]
    pub fn keeping(self, offers: usize) -> Self {
        self.state.lock().keep = offers;
        self
    }

    /// How many messages it was offered, repeats included.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.state.lock().total
    }

    /// Waits until it was offered `n` messages in all, and returns the offers it remembers, oldest first.
    ///
    /// There is no time limit: a test that may fail puts one around the call.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn offered(&self, n: u64) -> Vec<Offer> {
        self.wait(|state| (state.total >= n).then(|| state.offers.iter().cloned().collect())).await
    }

    /// Waits for the first offer that no call of this has returned yet.
    ///
    /// # Panics
    /// When that offer is forgotten already: ask sooner, or let it remember more with [`keeping`](Self::keeping).
    ///
    /// # Cancel safety
    /// Dropping the future loses no offer.
    pub async fn next(&self) -> Offer {
        self.wait(State::take_unread).await
    }

    fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> impl Future<Output = T> {
        future::poll_fn(move |context| {
            let mut state = self.state.lock();
            match ready(&mut state) {
                Some(found) => Poll::Ready(found),
                None => {
                    if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                        state.waiting.push(context.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
    }
}

impl Sink for ScriptedSink {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        let (outcome, waiting) = {
            let mut state = self.state.lock();
            (state.take(batch), core::mem::take(&mut state.waiting))
        };
        waiting.into_iter().for_each(Waker::wake);
        match outcome {
            Ok(verdicts) => verdicts,
            Err(Reply::Panic) => panic!("a scripted sink panics as it was told to"),
            Err(_) => future::pending().await,
        }
    }
}

impl State {
    fn take_unread(&mut self) -> Option<Offer> {
        let forgotten = self.total - self.offers.len() as u64;
        assert!(self.read >= forgotten, "offer {} was forgotten before it was read", self.read);
        let offer = self.offers.get(usize::try_from(self.read - forgotten).ok()?)?.clone();
        self.read += 1;
        Some(offer)
    }

    /// Deals with a batch; `Err` when there will be no answer.
    fn take(&mut self, batch: Vec<Delivery>) -> Result<Vec<(EntryRef, Verdict)>, Reply> {
        let (mut verdicts, mut held): (_, Vec<(LaneId, Option<OrderingKey>)>) = (Vec::new(), Vec::new());
        let mut rest = None;
        for delivery in batch {
            let queue = (delivery.entry.lane, delivery.message.ordering_key().cloned());
            let reply = match &rest {
                Some(reply) => Reply::clone(reply),
                None if held.contains(&queue) => Reply::busy(Duration::ZERO),
                None => self.reply_to(delivery.message.id()),
            };
            match &reply {
                Reply::Never | Reply::Panic | Reply::Say(Verdict::Disconnected) => rest = Some(reply.clone()),
                reply if reply.holds_back() => held.push(queue),
                _ => {}
            }
            if let Reply::Say(verdict) = &reply {
                verdicts.push((delivery.entry, verdict.clone()));
            }
            self.remember(Offer { delivery, reply });
        }
        match rest.filter(|reply| matches!(reply, Reply::Never | Reply::Panic)) {
            Some(reply) => Err(reply),
            None => Ok(verdicts),
        }
    }

    fn reply_to(&mut self, id: MessageId) -> Reply {
        let own = self.by_id.get_mut(&id).and_then(VecDeque::pop_front);
        own.or_else(|| self.script.pop_front()).unwrap_or_else(|| self.otherwise.clone())
    }

    fn remember(&mut self, offer: Offer) {
        self.total += 1;
        self.offers.push_back(offer);
        if self.offers.len() > self.keep {
            self.offers.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
