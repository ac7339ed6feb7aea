//! How attempts to deliver a message failed.

use super::engine::Engine;
use super::error::OperateError;
use crate::id::{MessageId, UserId};
use crate::machine::{FailedAttempt, Located, Operation, OperationError, Target};

/// Where a message stands, and what is remembered of the attempts to deliver it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Where it stands. The number of its failed attempts is exact, and durable.
    pub located: Located,
    /// How attempts failed, in their order: of each copy at most the last
    /// [`MAX_FAILURES`](crate::machine::MAX_FAILURES), and only of this opening.
    pub failures: Vec<FailedAttempt>,
    forgotten: u32,
}

impl History {
    /// How many of the failed attempts that [`Located::attempts`] counts nothing is remembered of: they were in an earlier
    /// opening, or too many.
    #[must_use]
    pub fn forgotten(&self) -> u32 {
        self.forgotten
    }
}

impl Engine {
    /// Where a message stands, as [`Engine::status`] says it, and how the attempts to deliver it failed: which device
    /// was offered it, when, and whether it refused it or did not answer. The number of attempts and the reason of an
    /// end are durable; the rest is remembered in memory, of as many places as there is room for (2,048 of each shard,
    /// those where something failed last; each copy for a device has its own, and a dead letter has one besides that of
    /// its message): after a restart [`History::failures`] is empty, and [`History::forgotten`] says of how many
    /// nothing is known any more. Of a dead letter it says what it said of its message.
    ///
    /// ```
    /// # use lastmile::{Engine, Message, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let receipt = engine.send(Message::to("alice", "chat.message", "hello").build()?).await?;
    /// let history = engine.history("alice", receipt.id()).await?.expect("it waits");
    /// for failed in &history.failures {
    ///     println!("attempt {} at {}: {:?}", failed.attempt, failed.device, failed.failure);
    /// }
    /// assert_eq!((history.failures.len(), history.forgotten()), (0, 0));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn history<U>(&self, user: U, id: MessageId) -> Result<Option<History>, OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        self.history_of(Target { user, id, sender: None }).await
    }

    /// As [`Engine::history`], of a message whose sender is named, as for [`Engine::status_of`].
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn history_of(&self, target: Target) -> Result<Option<History>, OperateError> {
        match self.operate(Operation::Locate(target)).await {
            Ok(done) => Ok(done.located.map(|located| {
                let (failures, forgotten) = (done.failures, done.forgotten);
                History { located, failures, forgotten }
            })),
            Err(OperateError::NotDone(OperationError::NotWaiting)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
