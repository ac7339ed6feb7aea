//! What hosts do with messages besides sending them.

use tokio::sync::oneshot;

use super::engine::Engine;
use super::error::OperateError;
use super::mail::Mail;
use crate::id::{MessageId, UserId};
use crate::machine::{DeadLetter, DeadLetters, Located, Operation, OperationError, Outcome, Target};
use crate::message::{Message, Priority};
use crate::record::{LedgerRows, Seq};

impl Engine {
    /// Withdraws a message that waits: it ends as [`Cancelled`](crate::EndReason::Cancelled) and is not offered again.
    /// [`Outcome::possibly_delivered`] says whether it had been offered; should its receiver confirm it later, it counts
    /// as delivered. To tell messages of several senders with the same id apart, use [`Engine::operate`].
    ///
    /// Costs at most one pass over what waits for the user.
    ///
    /// ```
    /// # use lastmile::{Engine, Message, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let receipt = engine.send(Message::to("alice", "chat.message", "typo").build()?).await?;
    /// let outcome = engine.cancel("alice", receipt.id()).await?;
    /// assert_eq!((outcome.messages, outcome.possibly_delivered), (1, 0));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OperateError`], which says what it did to the state.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the message may or may not be withdrawn. Repeating it is safe.
    pub async fn cancel<U>(&self, user: U, id: MessageId) -> Result<Outcome, OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        self.operate(Operation::Cancel(Target { user, id, sender: None })).await
    }

    /// Withdraws everything that was accepted for a user so far, as [`Engine::cancel`] does one message. Volatile
    /// messages that wait for a sink are dropped, and so are dead letters. What the user's inbox remembers stays, so that nothing is applied twice.
    ///
    /// # Errors
    /// [`OperateError`]. After [`OperationError::StoreUnreadable`] a part may have been withdrawn.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it goes on. Repeating it is safe.
    pub async fn purge<U>(&self, user: U) -> Result<Outcome, OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        self.operate(Operation::Purge(user)).await
    }

    /// Replaces a message that waits with another one for the same recipient, both or neither: the old one ends as
    /// [`Replaced`](crate::EndReason::Replaced) and is not offered again, the new one is accepted and waits behind what
    /// was accepted before it. [`Outcome::possibly_delivered`] says whether the old one had been offered: then its
    /// receiver may get both. A full outbox takes a replacement that is no larger.
    ///
    /// Give the new message an id of its own; asking again with the same one is answered as a `duplicate`, which ends
    /// nothing once more: the first answer says whether the old one may have been delivered.
    ///
    /// ```
    /// # use lastmile::{Engine, Message, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let receipt = engine.send(Message::to("alice", "chat.message", "helo").build()?).await?;
    /// let edited = Message::to("alice", "chat.message", "hello").build()?;
    /// let outcome = engine.replace(receipt.id(), edited).await?;
    /// assert_eq!((outcome.messages, outcome.possibly_delivered), (1, 0));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OperateError`], which says what it did to the state: unless the outcome is unknown, the old message waits as
    /// before and the new one was not accepted.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it may or may not be done. Repeating it is safe.
    pub async fn replace(&self, id: MessageId, new: Message) -> Result<Outcome, OperateError> {
        let target = Target { user: new.recipient().clone(), id, sender: None };
        self.operate(Operation::Replace(target, new)).await
    }

    /// Moves a message that was never offered to another priority, where it waits behind what was accepted before. How
    /// long it may still wait stays as it was. [`Outcome::accepted`] has its new place; whoever watches the old one goes on
    /// watching.
    ///
    /// ```
    /// # use lastmile::{Engine, Message, Priority, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let receipt = engine.send(Message::to("alice", "order.shipped", "…").build()?).await?;
    /// let outcome = engine.reprioritise("alice", receipt.id(), Priority::Critical).await?;
    /// assert_eq!(outcome.accepted.unwrap().entry.lane, Priority::Critical);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OperateError`]; with [`OperationError::Offered`] when somebody may have got it already. Nothing is changed.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it may or may not be done. Repeating it is safe.
    pub async fn reprioritise<U>(
        &self,
        user: U,
        id: MessageId,
        priority: Priority,
    ) -> Result<Outcome, OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        self.operate(Operation::Reprioritise(Target { user, id, sender: None }, priority)).await
    }

    /// Looks at a user's dead letters behind a place ([`Seq::ZERO`] for the first), in the order in which they ended: at
    /// most `max`, and no more than [`Config::max_load_bytes`](crate::Config::max_load_bytes), but at least one. For the
    /// next ones, ask behind the place of the last.
    ///
    /// A message becomes a dead letter when its attempts are spent or its receiver refuses it for good, as
    /// [`Config::on_failure`](crate::Config::on_failure) says. It has ended then; what is kept is a copy, which does not
    /// count against the user's quotas but has its own
    /// ([`Config::max_dead_letters`](crate::Config::max_dead_letters)).
    ///
    /// ```
    /// # use lastmile::machine::{DeadLetters, Delivery, EntryRef, Verdict};
    /// # use lastmile::{Engine, Message, record::Seq, storage::MemoryStore};
    /// # struct Refuses;
    /// # impl lastmile::ports::Sink for Refuses {
    /// #     async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
    /// #         batch.iter().map(|delivery| (delivery.entry, Verdict::Rejected)).collect()
    /// #     }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let receipt = engine.send(Message::to("alice", "order.shipped", "…").build()?).await?;
    /// # let attached = engine.attach("alice", "webhook", Refuses)?;
    /// # receipt.reached(lastmile::Stage::Delivered).await?;
    /// let all = || DeadLetters::of("alice".try_into().unwrap());
    /// for letter in engine.dead_letters(all(), Seq::ZERO, 100).await? {
    ///     println!("{} after {} attempts: {:?}", letter.message.id(), letter.burial.attempts, letter.burial.reason);
    /// }
    /// let outcome = engine.requeue(all()).await?;
    /// assert_eq!(outcome.messages, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn dead_letters(
        &self,
        letters: DeadLetters,
        behind: Seq,
        max: usize,
    ) -> Result<Vec<DeadLetter>, OperateError> {
        Ok(self.operate(Operation::Inspect(letters, behind, max)).await?.letters)
    }

    /// Sends dead letters again: each is accepted anew, with its old id, behind what waits already; its attempts, its TTL
    /// and its life in the ledger begin anew. Its sender's repeats are not recognised by it.
    ///
    /// One with a collapse key is the newest of its key then, and gives way to what is sent later. It stays a dead letter
    /// while a message with that key waits or is being accepted, when a later version was accepted, and when this call sends
    /// a newer letter of the key: [`Outcome::superseded`] counts those.
    ///
    /// # Errors
    /// [`OperateError`]; with [`OperationError::Refused`] when the outbox is full: those that were sent again by then were,
    /// the others are still dead letters. With [`OperationError::Superseded`] when all that are meant stay because of their
    /// collapse keys: nothing was changed.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it goes on. Repeating it sends those again that are still dead letters, no others.
    pub async fn requeue(&self, letters: DeadLetters) -> Result<Outcome, OperateError> {
        self.operate(Operation::Requeue(letters)).await
    }

    /// Throws dead letters away.
    ///
    /// # Errors
    /// [`OperateError`]. After [`OperationError::StoreUnreadable`] a part may be gone.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it goes on. Repeating it is safe.
    pub async fn discard(&self, letters: DeadLetters) -> Result<Outcome, OperateError> {
        self.operate(Operation::Discard(letters)).await
    }

    /// Where a message stands, also when it has ended: by what waits, by what is in flight, by the ledger, and by the last
    /// deliveries, of which 16,384 of each shard are remembered in memory. `None` when none of them has it: then it was
    /// delivered, never accepted, or ended longer ago than the ledger goes back.
    ///
    /// Of a delivered message, [`Located::read`] says whether it was read, if that is known.
    ///
    /// Two senders may have used the same id for one recipient: then it is one of them. [`Engine::status_of`] takes the sender,
    /// and says more.
    ///
    /// Costs the user's row and the value on disk that the message lies in. Without its sender, the first question about somebody
    /// is a pass over what waits for them on disk; where which message lies is remembered from then on, of 131,072 of them.
    ///
    /// ```
    /// # use lastmile::{Engine, Message, Status, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let receipt = engine.send(Message::to("alice", "chat.message", "hello").build()?).await?;
    /// let located = engine.status("alice", receipt.id()).await?.expect("it waits");
    /// assert_eq!((located.status, located.attempts), (Status::Accepted, 0));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn status<U>(&self, user: U, id: MessageId) -> Result<Option<Located>, OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        self.status_of(Target { user, id, sender: None }).await
    }

    /// As [`Engine::status`], of a message whose sender is named. What is known of the sender's ids
    /// ([`Config::dedup_age`](crate::Config::dedup_age)) counts too: then it says of a delivered message that it was, and costs the
    /// user's row and one value on disk at most, as long as the id is remembered.
    ///
    /// ```
    /// # use lastmile::machine::Target;
    /// # use lastmile::{Engine, Message, Status, UserId, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let message = Message::to("alice", "chat.message", "hello").sender("bob").build()?;
    /// engine.send(message.clone()).await?;
    /// let located = engine.status_of(Target::of(&message)).await?.expect("it waits");
    /// assert_eq!(located.status, Status::Accepted);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn status_of(&self, target: Target) -> Result<Option<Located>, OperateError> {
        match self.operate(Operation::Locate(target)).await {
            Ok(outcome) => Ok(outcome.located),
            Err(OperateError::NotDone(OperationError::NotWaiting)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How messages for a user ended that were not delivered, oldest first: the newest
    /// [`Config::ledger_rows`](crate::Config::ledger_rows), of the last [`Config::ledger_age`](crate::Config::ledger_age).
    /// [`LedgerRows::gaps`] is what the user's devices have not been told of.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use lastmile::{EndReason, Engine, Message, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let receipt = engine.send(Message::to("alice", "chat.message", "typo").build()?).await?;
    /// engine.cancel("alice", receipt.id()).await?;
    /// let ledger = engine.ledger("alice").await?;
    /// assert_eq!((ledger.rows[0].id, ledger.rows[0].reason), (Some(receipt.id()), EndReason::Cancelled));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn ledger<U>(&self, user: U) -> Result<LedgerRows, OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        Ok(*self.operate(Operation::Ledger(user)).await?.ledger)
    }

    /// Does an operation, and answers when it is durable.
    ///
    /// # Errors
    /// [`OperateError`], which says what it did to the state.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it may or may not be done. Repeating it is safe.
    pub async fn operate(&self, operation: Operation) -> Result<Outcome, OperateError> {
        let post = self.post(operation.user());
        let (reply, answer) = oneshot::channel();
        if post.mail.send(Mail::Operate { operation, reply }).await.is_err() {
            return Err(OperationError::ShuttingDown.into());
        }
        answer.await.map_err(|_| OperateError::Unknown)?.map_err(Into::into)
    }
}
