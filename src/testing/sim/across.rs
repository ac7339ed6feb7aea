//! Batches across shards: what machines say to one another, and what one group has of several shards.

use super::defect::Defect;
use super::node::{Handed, Node};
use super::random::Random;
use crate::machine::{CommitId, Input, Joint, JointId, JointPart, Ticket, Word};
use crate::message::Message;
use crate::record::Seq;

/// What a machine handed out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    Commit(CommitId),
    Joint(JointId),
}

/// What one shard has of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) shard: usize,
    pub(super) of: Of,
    pub(super) count: usize,
}

impl Of {
    pub(super) fn persisted(self, first: Seq) -> Input {
        match self {
            Self::Commit(commit) => Input::Persisted { commit, first },
            Self::Joint(joint) => Input::JointPersisted { joint, first },
        }
    }

    pub(super) fn failed(self, unknown: bool) -> Input {
        match self {
            Self::Commit(commit) => Input::PersistFailed { commit, unknown },
            Self::Joint(joint) => Input::JointFailed { joint, unknown },
        }
    }
}

impl Node {
    /// Sends messages together, whatever shards their recipients belong to.
    pub(super) fn send_batch(&mut self, messages: Vec<Message>) {
        let shards: Vec<_> = messages.iter().map(|message| self.shard_of(message.recipient())).collect();
        let Some(first) = shards.iter().min().copied() else { return };
        let tickets = (1..).map(|n| Ticket(self.tickets + n));
        let batch: Vec<_> = tickets.zip(messages).collect();
        self.tickets += batch.len() as u64;
        self.oracle.sent_together(&batch);
        if shards.iter().all(|shard| *shard == first) {
            return self.input(first, Input::SendBatch(batch));
        }
        let messages =
            shards.into_iter().zip(batch).map(|(shard, (ticket, message))| (shard, ticket, message));
        let joint = Joint::new(JointId(self.tickets), messages);
        self.input(first, Input::Told(Word::Reserve(joint)));
    }

    /// A machine says something to another: it is on its way.
    pub(super) fn tell(&mut self, shard: usize, word: Word) {
        let lost = self.defect == Some(Defect::OverLost) && matches!(word, Word::Over { .. });
        if let Some(engine) = self.engine.as_mut().filter(|_| !lost) {
            engine.notes.push((shard, Input::Told(word)));
        }
    }

    /// A batch is handed out that every shard has reserved for.
    pub(super) fn joint_handed_out(&mut self, joint: JointId, parts: Vec<JointPart>) {
        let Some(engine) = &mut self.engine else { return };
        let of = Of::Joint(joint);
        if parts.iter().any(|part| part.generation != engine.generation) {
            let failed = parts.iter().map(|part| (part.shard, of.failed(false)));
            return engine.notes.extend(failed);
        }
        let share = |part: &JointPart| Share { shard: part.shard, of, count: part.records.len() };
        if self.defect == Some(Defect::JointTorn) {
            let alone =
                |part: JointPart| Handed { shares: vec![share(&part)], records: part.records, accepts: true };
            return engine.queue.extend(parts.into_iter().map(alone));
        }
        let shares = parts.iter().map(share).collect();
        let records = parts.into_iter().flat_map(|part| part.records).collect();
        engine.queue.push_back(Handed { shares, records, accepts: true });
    }

    /// Something that is said reaches its machine, in whatever order.
    pub(super) fn pass(&mut self, random: &mut Random) {
        let Some(engine) = &mut self.engine else { return };
        let index = random.index(engine.notes.len());
        if index < engine.notes.len() {
            let (shard, input) = engine.notes.swap_remove(index);
            self.input(shard, input);
        }
    }

    pub(super) fn pass_all(&mut self, random: &mut Random) {
        let mut left = 10_000;
        while self.engine.as_ref().is_some_and(|engine| !engine.notes.is_empty()) {
            self.pass(random);
            left -= 1;
            if left == 0 {
                return self.oracle.fail("the machines do not stop talking");
            }
        }
    }

    /// Nothing is held for a batch that is nowhere any more.
    pub(super) fn check_reservations(&mut self) {
        let Some(engine) = &self.engine else { return };
        let stats = engine.shards.iter().map(|machine| machine.stats());
        let (mut held, mut recording) = (0, 0);
        for stats in stats {
            held += stats.reservations;
            recording += stats.recording;
        }
        let under_way = recording != 0
            || engine.flight.is_some()
            || !(engine.notes.is_empty() && engine.queue.is_empty() && engine.loads.is_empty());
        if held != 0 && !under_way {
            self.oracle.fail(format!("{held} reservations are held for batches that are nowhere"));
        }
    }
}
