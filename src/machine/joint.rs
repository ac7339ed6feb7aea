//! A batch on its way through several shards, and what their machines say to one another about it.

use std::collections::BTreeMap;

use super::io::Ticket;
use super::refusal::Refusal;
use crate::message::Message;
use crate::record::Record;

/// Names one batch across shards; chosen by the shell, never reused in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JointId(pub u64);

/// A batch whose recipients live in several shards. It goes from one shard to the next, in their order, and each
/// reserves for its own part. Nobody else has it meanwhile, so there is nothing that two of them could disagree about.
#[derive(Clone, Debug)]
pub struct Joint {
    pub(super) id: JointId,
    /// In the order of the shards.
    pub(super) parts: Vec<Part>,
    /// Which part is next: all before it have their share.
    pub(super) at: usize,
}

/// What one shard has of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    pub(super) shard: usize,
    /// Until they have their share; then the shard has them.
    pub(super) messages: Vec<(Ticket, Message)>,
    /// How often the journal had stopped taking commits, as far as the shard knew when they had their share.
    pub(super) generation: u64,
    /// What is to be made durable of them.
    pub(super) records: Vec<Record>,
}

/// The records of one shard in a batch across shards.
#[derive(Clone, Debug)]
pub struct JointPart {
    /// Which shard.
    pub shard: usize,
    /// How often it had been told [`Input::Writable(false)`](super::Input::Writable) when it reserved. If the journal
    /// has failed more often than that, messages from before may have failed with it, and the batch fails too.
    pub generation: u64,
    /// None when all of its messages had been accepted before.
    pub records: Vec<Record>,
}

/// What one machine says to another.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Word {
    /// A batch has come to this shard's part.
    Reserve(Joint),
    /// A batch that this shard has reserved for will not be committed.
    Over {
        /// Which one.
        joint: JointId,
        /// Why; `Ok` when there is nothing to commit, because all of it had been accepted before.
        result: Result<(), Refusal>,
    },
}

impl Joint {
    /// A batch in its order, each message with its shard. Tickets must increase.
    #[must_use]
    pub fn new(id: JointId, messages: impl IntoIterator<Item = (usize, Ticket, Message)>) -> Self {
        let mut parts: BTreeMap<usize, Part> = BTreeMap::new();
        for (shard, ticket, message) in messages {
            let part = parts.entry(shard).or_insert_with(|| Part { shard, ..Part::default() });
            part.messages.push((ticket, message));
        }
        Self { id, parts: parts.into_values().collect(), at: 0 }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> JointId {
        self.id
    }

    /// The shard that is next; `None` when all have reserved.
    #[must_use]
    pub fn shard(&self) -> Option<usize> {
        self.parts.get(self.at).map(|part| part.shard)
    }

    /// The messages that no shard has reserved for yet, in the order of the batch.
    pub(super) fn messages(&self) -> Vec<&(Ticket, Message)> {
        let mut messages: Vec<_> = self.parts.iter().flat_map(|part| &part.messages).collect();
        messages.sort_unstable_by_key(|(ticket, _)| *ticket);
        messages
    }
}
