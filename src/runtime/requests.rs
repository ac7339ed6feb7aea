//! Requests: who waits for which answer, and where an answer goes when nobody waits for it here.
//!
//! An answer comes on one of two ways. From a handler that a message reached without an inbox between, it rides with the
//! acknowledgement. Otherwise it is a message of its own, from whom the request was for, and is recognised by the request's id.
//! Whoever asked and is not here, or has waited for long enough, gets it as a message.

use core::time::Duration;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::clock::Stopwatch;
use super::engine::Engine;
use super::error::{RequestError, SendError};
use super::receipt::Receipt;
use crate::id::{MessageId, UserId};
use crate::message::Message;
use crate::ports::Clock;
use crate::time::Timestamp;

/// Answers that are waited for at once.
const MAX_WAITING: usize = 65_536;
/// How long the session waits for the answer to somebody else's request to ride with its acknowledgement.
const FOR_OTHERS: Duration = Duration::from_secs(60);

/// Whom a request is for, and its id.
type Key = (UserId, MessageId);

#[derive(Debug)]
struct Waiter {
    serial: u64,
    until: Timestamp,
    reply: oneshot::Sender<Bytes>,
}

#[derive(Debug, Default)]
struct Waiting {
    by_key: HashMap<Key, Vec<Waiter>>,
    count: usize,
    serial: u64,
}

/// How an engine that has one peer addresses what goes to it.
#[derive(Debug)]
pub(super) struct Envelopes {
    /// Whose engine it is.
    pub(super) me: UserId,
    pub(super) seal: fn(&Message) -> Message,
    pub(super) open: fn(&Message) -> Option<Message>,
    /// Whose outbox holds what goes there.
    pub(super) outbox: UserId,
}

/// The requests of one engine.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: Mutex<Waiting>,
    envelopes: OnceLock<Envelopes>,
}

impl Requests {
    /// From now on messages for the peer are in envelopes.
    pub(super) fn set_envelopes(&self, envelopes: Envelopes) {
        let _ = self.envelopes.set(envelopes);
    }

    fn wait(self: &Arc<Self>, key: Key, until: Timestamp) -> Option<(Wait, oneshot::Receiver<Bytes>)> {
        let (reply, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if waiting.count >= MAX_WAITING {
            return None;
        }
        waiting.count += 1;
        waiting.serial += 1;
        let serial = waiting.serial;
        waiting.by_key.entry(key.clone()).or_default().push(Waiter { serial, until, reply });
        Some((Wait { requests: self.clone(), key, serial }, answer))
    }

    /// How long an answer to this request is waited for.
    pub(super) fn within(&self, request: &Message, now: Timestamp) -> Option<Duration> {
        if !request.is_request() {
            return None;
        }
        let waiting = self.waiting.lock();
        let waiters = waiting.by_key.get(&(request.recipient().clone(), request.id()));
        let until = waiters.and_then(|waiters| waiters.iter().map(|waiter| waiter.until).max());
        Some(until.map_or(FOR_OTHERS, |until| until.since(now)))
    }

    /// Gives an answer of `from` to whoever waits for it; `false` if nobody does.
    pub(super) fn answer(&self, from: &UserId, request: MessageId, answer: &Bytes) -> bool {
        let mut waiting = self.waiting.lock();
        let Some(waiters) = waiting.by_key.remove(&(from.clone(), request)) else { return false };
        waiting.count = waiting.count.saturating_sub(waiters.len());
        drop(waiting);
        let mut given = false;
        for waiter in waiters {
            given |= waiter.reply.send(answer.clone()).is_ok();
        }
        given
    }

    /// An answer came with the acknowledgement of this message: gives it to whoever waits here, or says as which message it
    /// goes to whoever asked.
    pub(super) fn replied(&self, message: &Message, answer: &Bytes) -> Option<Message> {
        if !message.is_request() {
            return None;
        }
        let envelopes = self.envelopes.get();
        let ours = envelopes.filter(|envelopes| *message.recipient() == envelopes.outbox);
        let request = match ours {
            Some(envelopes) => (envelopes.open)(message)?,
            None => message.clone(),
        };
        if self.answer(request.recipient(), request.id(), answer) {
            return None;
        }
        let asker = ours.map(|envelopes| &envelopes.me).or(request.sender())?.clone();
        let built = request.answer(asker, request.recipient().clone(), answer.clone());
        let built = built.inspect_err(|error| tracing::warn!(%error, "an answer cannot be sent")).ok()?;
        // What came for this engine's user is answered to the peer's; what this user asked comes to their own inbox.
        match envelopes.filter(|_| ours.is_none()) {
            Some(envelopes) => Some((envelopes.seal)(&built)),
            None => Some(built),
        }
    }
}

/// Somebody waits; dropping it means that they do no longer.
struct Wait {
    requests: Arc<Requests>,
    key: Key,
    serial: u64,
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut waiting = self.requests.waiting.lock();
        let Some(waiters) = waiting.by_key.get_mut(&self.key) else { return };
        let before = waiters.len();
        waiters.retain(|waiter| waiter.serial != self.serial);
        let (gone, is_empty) = (before - waiters.len(), waiters.is_empty());
        waiting.count = waiting.count.saturating_sub(gone);
        if is_empty {
            waiting.by_key.remove(&self.key);
        }
    }
}

/// Sends a request and waits for its answer.
pub(super) async fn ask(
    engine: &Engine,
    message: Message,
    within: Duration,
    send: impl AsyncFnOnce(Message) -> Result<Receipt, SendError>,
) -> Result<Bytes, RequestError> {
    let request = match message.asking() {
        Ok(request) => request,
        Err(flaw) => return Err(RequestError::Invalid { flaw, message: Box::new(message) }),
    };
    let (watch, clock) = (Stopwatch::start(), &engine.inner.clock);
    let key = (request.recipient().clone(), request.id());
    let until = Clock::now(&**clock).after(within);
    let Some((wait, answer)) = engine.inner.requests.wait(key, until) else {
        return Err(RequestError::TooMany(Box::new(message)));
    };
    let receipt = send(request).await?;
    let left = within.saturating_sub(Duration::from_nanos(watch.nanos()));
    let answered = tokio::time::timeout(left, answer).await;
    drop(wait);
    match answered {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(RequestError::TimedOut(Box::new(receipt))),
    }
}

impl Engine {
    /// Sends a message and waits for its answer: what a handler of the recipient replied.
    ///
    /// The message is accepted as by [`Engine::send`], and is on its way however the wait ends. A handler runs at least
    /// once. If the answer comes later, or when this process has restarted, it comes as a message to the sender of the
    /// request, if there is one: with the event `lastmile.answer`, and the request's id in
    /// [`Message::answers`](crate::Message::answers). An answer that is on its way in a crash may be lost; ask again.
    ///
    /// # Errors
    /// [`RequestError`], which says what became of the message.
    ///
    /// # Cancel safety
    /// As for [`Engine::send`]; the answer is then like one that comes late.
    pub async fn request(&self, message: Message, within: Duration) -> Result<Bytes, RequestError> {
        ask(self, message, within, async |message| self.send(message).await).await
    }
}
