//! Machines of several shards over one journal, and who lives where.

use super::super::*;

/// Machines of one engine, over one journal.
pub(super) struct Net {
    pub(super) rigs: Vec<Rig>,
    pub(super) log: Vec<(Seq, Record)>,
    pub(super) next: Seq,
    pub(super) last: u64,
}

impl Net {
    pub(super) fn new(shards: usize) -> Self {
        Self::with(shards, Config::default())
    }

    pub(super) fn with(shards: usize, config: Config) -> Self {
        let rig = |shard| Rig::born(Birth { shard: (shard, shards), ..birth(config.clone()) });
        let next = Seq::first_of(Epoch(1));
        Self { rigs: (0..shards).map(rig).collect(), log: Vec::new(), next, last: 0 }
    }

    pub(super) fn shard(&self, message: &Message) -> usize {
        Digester::new(7).shard(message.recipient(), self.rigs.len())
    }

    /// Hands a batch to the first of its shards.
    pub(super) fn send_batch(&mut self, messages: &[Message]) -> Vec<Ticket> {
        let tickets: Vec<_> = (1..=messages.len() as u64).map(|n| Ticket(self.last + n)).collect();
        self.last += messages.len() as u64;
        let batch = tickets.iter().zip(messages);
        let batch = batch.map(|(ticket, message)| (self.shard(message), *ticket, message.clone()));
        let joint = Joint::new(JointId(self.last), batch);
        let first = joint.shard().unwrap();
        self.rigs[first].input(Input::Told(Word::Reserve(joint)));
        tickets
    }

    pub(super) fn send(&mut self, message: &Message) -> Ticket {
        self.last += 1;
        let (ticket, shard) = (Ticket(self.last), self.shard(message));
        self.rigs[shard].input(Input::Send { ticket, message: message.clone() });
        ticket
    }

    /// Lets the first word that a machine has for another reach it.
    pub(super) fn pass(&mut self) -> bool {
        let Some(from) = self.rigs.iter().position(|rig| !rig.told.is_empty()) else { return false };
        let (shard, word) = self.rigs[from].told.remove(0);
        self.rigs[shard].input(Input::Told(word));
        true
    }

    pub(super) fn pass_all(&mut self) {
        while self.pass() {}
    }

    /// The commits of one shard, and what it has for several.
    pub(super) fn commit(&mut self, shard: usize) {
        while let Some((commit, records)) = self.rigs[shard].open.pop_front() {
            let first = self.append(records);
            self.rigs[shard].input(Input::Persisted { commit, first });
        }
        for (joint, first, shard) in self.append_joints(shard) {
            self.rigs[shard].input(Input::JointPersisted { joint, first });
        }
    }

    pub(super) fn append(&mut self, records: Vec<Record>) -> Seq {
        let first = self.next;
        for record in records {
            self.log.push((self.next, record));
            self.next = self.next.plus(1);
        }
        first
    }

    /// Makes durable what a shard has for several; whom to tell.
    pub(super) fn append_joints(&mut self, shard: usize) -> Vec<(JointId, Seq, usize)> {
        let mut tell = Vec::new();
        for (joint, parts) in core::mem::take(&mut self.rigs[shard].joints) {
            for part in parts {
                tell.push((joint, self.append(part.records), part.shard));
            }
        }
        tell
    }

    /// Everything, to its end.
    pub(super) fn finish(&mut self) {
        for _ in 0..100 {
            self.pass_all();
            (0..self.rigs.len()).for_each(|shard| self.commit(shard));
        }
    }

    pub(super) fn operate(&mut self, shard: usize, operation: Operation) {
        self.last += 1;
        self.rigs[shard].input(Input::Operate { ticket: Ticket(self.last), operation });
    }

    pub(super) fn answers(&self, tickets: &[Ticket]) -> Vec<Option<Result<Accepted, Refusal>>> {
        let answer = |ticket: &Ticket| self.rigs.iter().find_map(|rig| rig.answer(*ticket).cloned());
        tickets.iter().map(answer).collect()
    }

    /// Whether each was accepted, and each for the first time.
    pub(super) fn accepted(&self, tickets: &[Ticket]) -> bool {
        self.answers(tickets)
            .iter()
            .all(|answer| matches!(answer, Some(Ok(Accepted { duplicate: false, .. }))))
    }

    pub(super) fn refusals(&self, tickets: &[Ticket]) -> Vec<Refusal> {
        self.answers(tickets).into_iter().map(|answer| answer.unwrap().unwrap_err()).collect()
    }

    /// Messages that live, and what is held and waited for, which must be nothing.
    pub(super) fn live_at_rest(&self) -> u64 {
        let mut live = 0;
        for rig in &self.rigs {
            let stats = rig.machine.stats();
            assert_eq!((stats.reservations, stats.pending, stats.recording), (0, 0, 0));
            assert_eq!(rig.machine.reserved, Totals::default());
            assert!(rig.machine.repeats.is_empty() && rig.machine.parked.is_empty());
            live += stats.counters.live();
        }
        live
    }
}

/// Somebody who belongs to this shard of so many.
pub(super) fn somebody(shard: usize, shards: usize, which: usize) -> String {
    let names = (0..).map(|n| format!("user-{n}"));
    let belongs =
        |name: &String| Digester::new(7).shard(&UserId::new(name.clone()).unwrap(), shards) == shard;
    names.filter(belongs).nth(which).unwrap()
}

/// A message for somebody of each of these shards.
pub(super) fn one_each(shards: &[usize], of: usize) -> Vec<Message> {
    shards.iter().map(|shard| message(&somebody(*shard, of, 0))).collect()
}

/// A message for somebody whom another shard has.
pub(super) fn person_of_another_shard(net: &Net, than: &str) -> Message {
    let here = net.shard(&message(than));
    let others = (0..).map(|n| message(&format!("user-{n}")));
    let mut others = others.filter(|message| net.shard(message) != here);
    others.next().unwrap()
}
