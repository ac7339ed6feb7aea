//! Who has dead letters, over all users.
//!
//! Candidates are those whom a machine's memory names, and then those whom the store lists: in this order, because a letter
//! that settles meanwhile goes from the one to the other. Each of them is then asked for, which is exact.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use super::engine::Engine;
use super::error::OperateError;
use super::mail::Mail;
use crate::id::UserId;
use crate::machine::{Operation, OperationError};

/// The most users who are asked for at once.
const MAX_HOLDERS: usize = 256;

/// A user who has dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterHolder {
    /// Who.
    pub user: UserId,
    /// How many there are, at least one.
    pub letters: u32,
    /// What they take together, in bytes, as [`Config::max_dead_bytes`](crate::Config::max_dead_bytes) counts them.
    pub bytes: u64,
}

/// Some of the users who have dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterHolders {
    /// Those that were found. There may be none although others follow.
    pub holders: Vec<DeadLetterHolder>,
    /// Ask behind this one for those who follow; none when these were the last.
    pub next: Option<UserId>,
}

impl Engine {
    /// The users who have dead letters, page by page, behind one of them ([`DeadLetterHolders::next`]; `None` for the first
    /// page): shorter ids first, then by bytes. At most `max`, and 256. What each of them has is for
    /// [`Engine::dead_letters`] to show.
    ///
    /// Costs as much as these users have messages: what everybody else has is not looked at.
    ///
    /// Whoever has dead letters all the while is named once, whatever happens to others meanwhile.
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
    /// # let mut found = 0;
    /// let mut behind = None;
    /// loop {
    ///     let page = engine.dead_letter_holders(behind.as_ref(), 100).await?;
    ///     for holder in page.holders {
    ///         println!("{}: {} dead letters", holder.user, holder.letters);
    ///         # found += holder.letters;
    ///     }
    ///     behind = page.next;
    ///     if behind.is_none() {
    ///         break;
    ///     }
    /// }
    /// # assert_eq!(found, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn dead_letter_holders(
        &self,
        behind: Option<&UserId>,
        max: usize,
    ) -> Result<DeadLetterHolders, OperateError> {
        let max = max.clamp(1, MAX_HOLDERS);
        let candidates = self.letter_candidates(behind, max).await?;
        // There may be more behind a full page.
        let next = candidates.last().filter(|_| candidates.len() >= max).cloned();
        let mut page = DeadLetterHolders { holders: Vec::new(), next };
        for user in candidates {
            let (letters, bytes) = self.operate(Operation::Letters(user.clone())).await?.dead_letters;
            if letters > 0 {
                page.holders.push(DeadLetterHolder { user, letters, bytes });
            }
        }
        Ok(page)
    }

    /// The first users behind one who may have dead letters.
    async fn letter_candidates(
        &self,
        behind: Option<&UserId>,
        max: usize,
    ) -> Result<Vec<UserId>, OperateError> {
        let mut candidates = BTreeSet::new();
        let mut note = |users: Vec<UserId>| {
            candidates.extend(users.into_iter().map(|user| (user.as_bytes().len(), user)));
        };
        for post in &self.inner.shards {
            let (reply, answer) = oneshot::channel();
            let mail = Mail::LetterHolders { behind: behind.cloned(), max, reply };
            post.mail.send(mail).await.map_err(|_| OperationError::ShuttingDown)?;
            note(answer.await.map_err(|_| OperationError::ShuttingDown)?);
        }
        let permit = self.inner.loads.clone().acquire_owned().await;
        let permit = permit.map_err(|_| OperationError::ShuttingDown)?;
        let (outbox, behind) = (self.inner.outbox.clone(), behind.cloned());
        let read = self.inner.handle.spawn_blocking(move || {
            let _permit = permit;
            outbox.letter_holders(behind.as_ref(), max)
        });
        let listed = read.await.map_err(|_| OperationError::ShuttingDown)?;
        note(listed.map_err(|_| OperationError::StoreUnreadable)?);
        Ok(candidates.into_iter().take(max).map(|(_, user)| user).collect())
    }
}
