//! What the committer is asked to commit, and whom it tells.

use crate::machine::{CommitId, Input, JointId};
use crate::record::{End, Seq};

/// Records that go into one group.
#[derive(Debug)]
pub(in super::super) struct Request {
    pub(in super::super) whose: Whose,
    pub(in super::super) count: u32,
    pub(in super::super) accepts: bool,
    /// Somebody waits for the write. If not, the driver is not woken for it: that costs as much as being told of the sync.
    pub(in super::super) written: bool,
    pub(in super::super) records: Vec<u8>,
    /// The ends among them that are kept, by how many records are before them.
    pub(in super::super) ends: Vec<(u32, End)>,
}

/// Whose they are.
#[derive(Debug)]
pub(in super::super) enum Whose {
    /// One driver's.
    Shard {
        shard: usize,
        /// How often the driver had been told that the journal takes no commits.
        generation: u64,
        commit: CommitId,
    },
    /// Those of a batch across shards.
    Joint { joint: JointId, shares: Vec<Share> },
}

/// What one shard has of a batch across shards, in the order of the records.
#[derive(Debug)]
pub(in super::super) struct Share {
    pub(in super::super) shard: usize,
    /// How often it had been told that the journal takes no commits when it reserved.
    pub(in super::super) generation: u64,
    pub(in super::super) count: u32,
}

impl Request {
    /// Whether all who handed it out knew of every time that the journal took no commits.
    pub(super) fn is_of(&self, now: u64) -> bool {
        match &self.whose {
            Whose::Shard { generation, .. } => *generation == now,
            Whose::Joint { shares, .. } => shares.iter().all(|share| share.generation == now),
        }
    }

    /// The shard whose commits it stands in a row with; a batch across shards stands by itself.
    pub(super) fn shard(&self) -> Option<usize> {
        match self.whose {
            Whose::Shard { shard, .. } => Some(shard),
            Whose::Joint { .. } => None,
        }
    }

    /// Who is to be told that it was written, and what.
    pub(super) fn told_written(&self) -> Option<(usize, Input)> {
        match self.whose {
            Whose::Shard { shard, commit, .. } if self.written => Some((shard, Input::Written(commit))),
            _ => None,
        }
    }

    /// Who is to be told that it is durable from this place on, and what.
    pub(super) fn told_persisted(&self, first: Seq) -> Vec<(usize, Input)> {
        match &self.whose {
            Whose::Shard { shard, commit, .. } => {
                vec![(*shard, Input::Persisted { commit: *commit, first })]
            }
            Whose::Joint { joint, shares } => {
                let mut next = first;
                let tell = |share: &Share| {
                    let after = next.plus(u64::from(share.count));
                    let first = core::mem::replace(&mut next, after);
                    (share.shard, Input::JointPersisted { joint: *joint, first })
                };
                shares.iter().map(tell).collect()
            }
        }
    }

    /// Who is to be told that it failed, and what.
    pub(in super::super) fn told_failed(&self, unknown: bool) -> Vec<(usize, Input)> {
        match &self.whose {
            Whose::Shard { shard, commit, .. } => {
                vec![(*shard, Input::PersistFailed { commit: *commit, unknown })]
            }
            Whose::Joint { joint, shares } => {
                let tell = |share: &Share| (share.shard, Input::JointFailed { joint: *joint, unknown });
                shares.iter().map(tell).collect()
            }
        }
    }
}
