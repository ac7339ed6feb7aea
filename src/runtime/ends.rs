//! The feed of ends: how messages ended, over all users, for hosts that must see every one.

use core::fmt;
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::engine::{Engine, Inner};
use crate::error::Closed;
use crate::record::{EndPosition, Ended, Seq};
use crate::storage::outbox::EndsError;

/// No ends could be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// They are not there, or cannot be read; see [`EndsError`]. After [`EndsError::Lagged`] the feed goes on where what is
    /// kept begins.
    #[error(transparent)]
    Ends(#[from] EndsError),
    /// The engine is gone. What it kept is there when it is opened again: go on behind the position that was handled last.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Ends behind a position, one page after the other. Nobody waits for whoever reads it, and it does not keep the engine
/// running.
pub struct EndFeed {
    engine: Weak<Inner>,
    newest: watch::Receiver<Seq>,
    position: EndPosition,
}

impl EndFeed {
    /// The next ends, in the order in which they were recorded: at most `max` (and 1,024), at least one. Waits for one.
    ///
    /// The feed takes them for handled when it is asked for the next ones. What is to survive a crash of the host is the
    /// position of the last one that it has handled ([`Ended::position`]): with that, a new feed goes on behind it, and every
    /// end is seen at least once.
    ///
    /// # Errors
    /// [`FeedError`]. With [`EndsError::Lagged`] some are not kept any more; it is said once, and the next call goes on where
    /// what is kept begins.
    ///
    /// # Cancel safety
    /// Dropped before it returns, nothing was taken.
    pub async fn next(&mut self, max: usize) -> Result<Vec<Ended>, FeedError> {
        loop {
            self.newest.mark_unchanged();
            let read = {
                let engine = Engine { inner: self.engine.upgrade().ok_or(Closed)? };
                engine.ended(self.position, max).await
            };
            match read {
                Ok(ends) => {
                    if let Some(last) = ends.last() {
                        self.position = last.position;
                        return Ok(ends);
                    }
                }
                Err(error) => {
                    if let FeedError::Ends(EndsError::Lagged { resume, .. }) = &error {
                        self.position = *resume;
                    }
                    return Err(error);
                }
            }
            self.newest.changed().await.map_err(|_| Closed)?;
        }
    }

    /// The position behind what was returned last.
    #[must_use]
    pub fn position(&self) -> EndPosition {
        self.position
    }
}

impl fmt::Debug for EndFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndFeed").field("position", &self.position).finish_non_exhaustive()
    }
}

impl Engine {
    /// The ends of messages of all users behind a position, and those that come, for hosts that must see every one: through
    /// restarts and crashes each is there at least once, in the order in which they were recorded, until so many newer ones
    /// are there or it is so old that it is not kept any more ([`Config::max_ends`](crate::Config::max_ends),
    /// [`Config::ends_age`](crate::Config::ends_age)). Which ends are kept is
    /// [`Config::keep_ends`](crate::Config::keep_ends): unless it says otherwise, those of messages that were not delivered,
    /// and late confirmations, which take such an end back ([`End::upgrades`](crate::record::End)).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use lastmile::{EndReason, Engine, Message, record::EndPosition, storage::MemoryStore};
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let receipt = engine.send(Message::to("alice", "chat.message", "typo").build()?).await?;
    /// engine.cancel("alice", receipt.id()).await?;
    /// let handled = EndPosition::START; // or what was kept of an earlier life
    /// let mut feed = engine.ends(handled);
    /// for ended in feed.next(100).await? {
    ///     assert_eq!(ended.end.reason, EndReason::Cancelled);
    ///     let _to_be_kept = ended.position.to_bytes(); // with what was done about it
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn ends(&self, behind: EndPosition) -> EndFeed {
        let (engine, newest) = (Arc::downgrade(&self.inner), self.inner.newest_end.clone());
        EndFeed { engine, newest, position: behind }
    }

    /// The ends that are kept behind a position, as [`Engine::ends`] has them, without waiting for more: the loss ledger of
    /// all users, page by page. At most `max`, and 1,024; none when there are none yet.
    ///
    /// # Errors
    /// [`FeedError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn ended(&self, behind: EndPosition, max: usize) -> Result<Vec<Ended>, FeedError> {
        let Ok(permit) = self.inner.loads.clone().acquire_owned().await else { return Err(Closed.into()) };
        let outbox = self.inner.outbox.clone();
        let read = self.inner.handle.spawn_blocking(move || {
            let _permit = permit;
            outbox.read_ends(behind, max)
        });
        Ok(read.await.map_err(|_| Closed)??)
    }
}
