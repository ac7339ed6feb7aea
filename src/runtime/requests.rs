//! Requests: who waits for which answer, and where an answer goes when nobody waits for it here.
//!
//! An answer comes on one of two ways. From a handler that a message reached without an inbox between, it rides with the
//! acknowledgement. Otherwise it is a message of its own, from whom the request was for, and is recognised by the request's id.
//! Whoever asked and is not here, or has waited for long enough, gets it as a message.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hashbrown::HashMap;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::clock::Stopwatch;
use super::engine::Engine;
use super::error::{RequestError, SendError};
use super::receipt::{Reached, Receipt, Stage};
use crate::id::{MessageId, UserId};
use crate::message::Message;
use crate::ports::Clock;
use crate::status::EndReason;
use crate::time::Timestamp;

/// Answers that are waited for at once.
const MAX_WAITING: usize = 65_536;
/// Answers of which it is remembered that they were given to somebody, the newest. Of an older one whose acknowledgement was
/// lost, the repeat comes as a message.
const MAX_GIVEN: usize = 8192;
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

#[derive(Debug)]
struct Waiting {
    by_key: HashMap<Key, Vec<Waiter>>,
    count: usize,
    serial: u64,
    /// Answers that came as messages and were given to whoever waited, by who sent them: one whose acknowledgement was lost
    /// comes again, and is not to come a second time as a message.
    given: LruCache<(UserId, MessageId), ()>,
}

impl Default for Waiting {
    fn default() -> Self {
        // Bounded by hand: with a bound of its own it would take room for all of them from the beginning.
        Self { by_key: HashMap::new(), count: 0, serial: 0, given: LruCache::unbounded() }
    }
}

impl Waiting {
    /// Gives an answer to whoever waits for it; `false` if nobody does.
    fn give(&mut self, key: &Key, answer: &Bytes) -> bool {
        let Some(waiters) = self.by_key.remove(key) else { return false };
        self.count = self.count.saturating_sub(waiters.len());
        let mut given = false;
        for waiter in waiters {
            given |= waiter.reply.send(answer.clone()).is_ok();
        }
        given
    }
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
    fn answer(&self, from: &UserId, request: MessageId, answer: &Bytes) -> bool {
        self.waiting.lock().give(&(from.clone(), request), answer)
    }

    /// An answer came as a message of `from`: gives it to whoever waits for it. `false` if nobody does, and it has not been
    /// given to anybody before.
    pub(super) fn answered(&self, from: &UserId, answer: &Message) -> bool {
        let Some(request) = answer.answers() else { return false };
        let mut waiting = self.waiting.lock();
        // Who asks once more gets what comes once more.
        let given = waiting.give(&(from.clone(), request), answer.payload());
        let key = (from.clone(), answer.id());
        if !given {
            return waiting.given.get(&key).is_some();
        }
        waiting.given.put(key, ());
        if waiting.given.len() > MAX_GIVEN {
            waiting.given.pop_lru();
        }
        true
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
    let Some((wait, mut answer)) = engine.inner.requests.wait(key, until) else {
        return Err(RequestError::TooMany(Box::new(message)));
    };
    let receipt = send(request).await?;
    let left = within.saturating_sub(Duration::from_nanos(watch.nanos()));
    let outcome = tokio::time::timeout(left, answer_or_end(&mut answer, &receipt)).await;
    // From here on nobody gives it anything. What was given since it was looked at has been acknowledged, and comes no second
    // time.
    drop(wait);
    match outcome {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(reason)) => {
            answer.try_recv().map_err(|_| RequestError::Ended { reason, receipt: Box::new(receipt) })
        }
        Err(_) => answer.try_recv().map_err(|_| RequestError::TimedOut(Box::new(receipt))),
    }
}

/// The answer, or why there will be none: the request has ended, and nobody can have handled it.
async fn answer_or_end(answer: &mut oneshot::Receiver<Bytes>, receipt: &Receipt) -> Result<Bytes, EndReason> {
    let (mut answer, mut end) = (pin!(answer), pin!(receipt.reached(Stage::Delivered)));
    let (mut is_open, mut is_watched) = (true, true);
    poll_fn(|context| {
        if is_open && let Poll::Ready(given) = answer.as_mut().poll(context) {
            match given {
                Ok(given) => return Poll::Ready(Ok(given)),
                Err(_) => is_open = false,
            }
        }
        if is_watched && let Poll::Ready(reached) = end.as_mut().poll(context) {
            is_watched = false;
            if let Ok(Reached::Ended { reason, possibly_delivered: false }) = reached {
                return Poll::Ready(Err(reason));
            }
        }
        Poll::Pending
    })
    .await
}

impl Engine {
    /// Sends a message and waits for its answer: what a handler of the recipient replied.
    ///
    /// The message is accepted as by [`Engine::send`], and is on its way however the wait ends. A handler runs at least
    /// once. If the answer comes later, or when this process has restarted, it comes as a message to the sender of the
    /// request, if there is one: with the event `lastmile.answer`, and the request's id in
    /// [`Message::answers`](crate::Message::answers). An answer that is on its way in a crash may be lost; ask again. When the
    /// message ends and nobody can have handled it, the wait is over at once ([`RequestError::Ended`]).
    ///
    /// # Errors
    /// [`RequestError`], which says what became of the message.
    ///
    /// # Cancel safety
    /// As for [`Engine::send`]; the answer is then like one that comes late. One that was given to this wait already, and that
    /// it has not returned, is gone with it.
    pub async fn request(&self, message: Message, within: Duration) -> Result<Bytes, RequestError> {
        ask(self, message, within, async |message| self.send(message).await).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by a review: after a lost acknowledgement the answer came once more, as a message to whoever had it already.
    #[test]
    fn an_answer_that_was_given_to_somebody_and_comes_again_is_no_message() {
        let requests = Arc::new(Requests::default());
        let user = |name: &str| UserId::new(name).unwrap();
        let ask = || Message::to("bob", "chat.question", "?").sender("alice").build().unwrap();
        let answer =
            |request: &Message| request.answer(user("alice"), user("bob"), Bytes::from_static(b"!")).unwrap();
        let request = ask();
        let (first, second) = (answer(&request), answer(&ask()));
        assert!(!requests.answered(&user("bob"), &first), "nobody waits");
        let key = (user("bob"), request.id());
        let (_wait, mut given) = requests.wait(key, Timestamp::NEVER).unwrap();
        assert!(!requests.answered(&user("eve"), &first), "nobody answers for somebody else");
        assert!(requests.answered(&user("bob"), &first));
        assert_eq!(given.try_recv().unwrap(), "!");
        assert!(requests.answered(&user("bob"), &first), "it was given");
        let (_again, mut given) = requests.wait((user("bob"), request.id()), Timestamp::NEVER).unwrap();
        assert!(requests.answered(&user("bob"), &first));
        assert_eq!(given.try_recv().unwrap(), "!", "to who asks once more");
        assert!(!requests.answered(&user("bob"), &second), "that to another request is a message");
        for _ in 0..=MAX_GIVEN {
            let request = ask();
            let _wait = requests.wait((user("bob"), request.id()), Timestamp::NEVER).unwrap();
            assert!(requests.answered(&user("bob"), &answer(&request)));
        }
        assert_eq!(requests.waiting.lock().given.len(), MAX_GIVEN);
        assert!(!requests.answered(&user("bob"), &first), "too long ago");
    }
}
