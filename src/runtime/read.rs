//! How far people have read.

use super::engine::Engine;
use super::error::OperateError;
use crate::id::{OrderingKey, UserId};
use crate::machine::Operation;
use crate::record::{ReadMark, Seq};

impl Engine {
    /// Records that a user has read a conversation, which is what has this ordering key (or none), up to the message at this
    /// place, on whichever device. `Ok` means that this is durable. A mark only rises: an older place changes nothing, and one
    /// ahead of everything that was accepted means all of that. The mark as it is now is returned.
    ///
    /// Of each user as many conversations are remembered as
    /// [`Config::max_read_marks`](crate::Config::max_read_marks) says, those with the newest marks; of another one `None` is
    /// returned, and it counts as unread.
    ///
    /// ```
    /// # use lastmile::{Engine, Message, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let message = Message::to("alice", "chat.message", "hello").ordering_key("room/1").build()?;
    /// let place = engine.send(message).await?.entry().seq;
    /// let room = || Some("room/1".try_into().unwrap());
    /// assert_eq!(engine.read_up_to("alice", room()).await?, None);
    /// engine.mark_read("alice", room(), place).await?; // alice's client says so
    /// assert!(engine.read_up_to("alice", room()).await?.is_some_and(|mark| mark.up_to >= place));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed, unless the outcome is unknown.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it may or may not be recorded. Repeating it is safe.
    pub async fn mark_read<U>(
        &self,
        user: U,
        conversation: Option<OrderingKey>,
        up_to: Seq,
    ) -> Result<Option<ReadMark>, OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        Ok(self.operate(Operation::MarkRead(user, conversation, up_to)).await?.read)
    }

    /// How far a user has read a conversation, and since when, as far as that is remembered. A message has been read when its
    /// place ([`Receipt::entry`](crate::Receipt::entry), or any of its [`entries`](crate::Receipt::entries)) does not lie
    /// behind the mark.
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn read_up_to<U>(
        &self,
        user: U,
        conversation: Option<OrderingKey>,
    ) -> Result<Option<ReadMark>, OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        Ok(self.operate(Operation::ReadUpTo(user, conversation)).await?.read)
    }
}
