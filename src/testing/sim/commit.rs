//! The committer and the keeper of a simulated engine, one step at a time.

use super::across::Of;
use super::defect::Defect;
use super::node::{Flight, Node, Settling};
use super::random::Random;
use crate::machine::{Input, Survivors};
use crate::ports::{Group, Journal, JournalError};
use crate::record::{Record, Seq};

impl Node {
    /// Takes waiting commits as one group, and writes it.
    pub(super) fn append(&mut self, random: &mut Random) {
        let limit = 1 + random.index(6);
        let Some(engine) = self.engine.as_mut().filter(|engine| engine.flight.is_none() && !engine.broken)
        else {
            return;
        };
        let max = self.plan.journal.max_group_bytes() as usize;
        let (mut bytes, mut records, mut taken, mut accepts) = (Vec::new(), Vec::new(), 0, false);
        let mut parts = std::collections::VecDeque::new();
        for handed in engine.queue.iter().take(limit) {
            let before = bytes.len();
            let mut first = engine.next.plus(records.len() as u64);
            self.home.cipher().encode_records(&handed.records, &mut bytes);
            if bytes.len() > max {
                bytes.truncate(before);
                break;
            }
            for share in &handed.shares {
                parts.push_back((*share, first));
                first = first.plus(share.count as u64);
            }
            records.extend(handed.records.iter().cloned());
            accepts |= handed.accepts;
            taken += 1;
        }
        if taken == 0 {
            if !engine.queue.is_empty() {
                self.oracle.fail("a commit is too large for a group");
            }
            return;
        }
        let group = Group { first: engine.next, count: records.len() as u32, records: &bytes };
        let first = engine.next;
        let numbered: Vec<(Seq, Record)> = (0..).map(|n| first.plus(n)).zip(records).collect();
        match engine.journal.append(engine.epoch, group, !accepts) {
            Ok(appended) => {
                engine.queue.drain(..taken);
                engine.next = engine.next.plus(numbered.len() as u64);
                engine.sealed = engine.sealed.max(appended.sealed_before.unwrap_or_default());
                engine.full = false;
                engine.flight =
                    Some(Flight { parts, told_written: false, synced: false, records: numbered.clone() });
                self.oracle.appending(numbered);
                self.oracle.written();
                if self.defect == Some(Defect::AckBeforePersist) {
                    self.acknowledge_early();
                }
            }
            Err(JournalError::Full) => engine.full = true,
            Err(error) => {
                engine.queue.drain(..taken);
                engine.next = engine.next.plus(numbered.len() as u64);
                engine.flight =
                    Some(Flight { parts, told_written: false, synced: false, records: numbered.clone() });
                self.oracle.appending(numbered);
                self.journal_failed(&error);
            }
        }
    }

    fn acknowledge_early(&mut self) {
        let Some(flight) = self.engine.as_mut().and_then(|engine| engine.flight.as_mut()) else { return };
        for (share, first) in std::mem::take(&mut flight.parts) {
            self.input(share.shard, share.of.persisted(first));
        }
    }

    /// Tells the machines that the operating system has the group.
    pub(super) fn written(&mut self) {
        let Some(flight) = self.engine.as_mut().and_then(|engine| engine.flight.as_mut()) else { return };
        if !std::mem::replace(&mut flight.told_written, true) && !flight.synced {
            for (share, _) in flight.parts.clone() {
                if let Of::Commit(commit) = share.of {
                    self.input(share.shard, Input::Written(commit));
                }
            }
        }
    }

    /// Syncs the group.
    pub(super) fn sync(&mut self) {
        let Some(engine) = &mut self.engine else { return };
        let Some(flight) = engine.flight.as_mut().filter(|flight| !flight.synced) else { return };
        match engine.journal.sync(engine.epoch) {
            Ok(()) => {
                flight.synced = true;
                for (seq, record) in std::mem::take(&mut flight.records) {
                    self.home.note_record(seq, &record);
                }
                self.oracle.synced(&self.plan);
                self.finish_flight();
            }
            Err(error) => self.journal_failed(&error),
        }
    }

    /// Reports one commit of the synced group.
    pub(super) fn persisted(&mut self) {
        let flight =
            self.engine.as_mut().and_then(|engine| engine.flight.as_mut()).filter(|flight| flight.synced);
        let Some((share, first)) = flight.and_then(|flight| flight.parts.pop_front()) else { return };
        self.finish_flight();
        self.input(share.shard, share.of.persisted(first));
    }

    fn finish_flight(&mut self) {
        let Some(engine) = &mut self.engine else { return };
        if engine.flight.as_ref().is_some_and(|flight| flight.synced && flight.parts.is_empty()) {
            engine.flight = None;
        }
    }

    /// One commit, start to end.
    pub(super) fn commit(&mut self, random: &mut Random) {
        self.append(random);
        self.written();
        self.sync();
        while self
            .engine
            .as_ref()
            .and_then(|engine| engine.flight.as_ref())
            .is_some_and(|flight| flight.synced)
        {
            self.persisted();
        }
    }

    /// Everything that was handed out fails, in order; the machines are told to wait.
    fn journal_failed(&mut self, error: &JournalError) {
        let fenced = matches!(error, JournalError::Fenced { .. }) && !self.is_superseded;
        if fenced || matches!(error, JournalError::TooLarge { .. }) {
            self.oracle.fail(format!("the journal refuses its owner: {error}"));
        }
        self.oracle.failed();
        let Some(engine) = &mut self.engine else { return };
        engine.broken = true;
        engine.generation += 1;
        let flight = engine.flight.take();
        let queue = std::mem::take(&mut engine.queue);
        self.broadcast(&Input::Writable(false));
        for (share, _) in flight.into_iter().flat_map(|flight| flight.parts) {
            self.input(share.shard, share.of.failed(true));
        }
        for share in queue.into_iter().flat_map(|handed| handed.shares) {
            self.input(share.shard, share.of.failed(false));
        }
    }

    /// Tries to heal the journal.
    pub(super) fn heal(&mut self) {
        let Some(engine) = self.engine.as_mut().filter(|engine| engine.broken) else { return };
        if engine.journal.heal(engine.epoch).is_ok() {
            engine.broken = false;
            engine.sealed = engine.sealed.max(engine.next);
            self.oracle.fenced();
            self.broadcast(&Input::Writable(true));
        }
    }

    // ---------------------------------------------------------------------------------------------------- settling

    /// Asks the machines for what must settle.
    pub(super) fn settle(&mut self) {
        let Some(engine) = &mut self.engine else { return };
        if !matches!(engine.settling, Settling::Idle)
            || engine.sealed <= engine.settled
            || engine.flight.is_some()
        {
            return;
        }
        let before = engine.sealed;
        let counters = vec![None; self.shards];
        engine.settling = Settling::Collecting { before, parts: Vec::new(), counters };
        self.broadcast(&Input::Settle { before });
    }

    pub(super) fn survivors(&mut self, shard: usize, mut part: Survivors) {
        let now = self.now;
        let Some(engine) = &mut self.engine else { return };
        let Settling::Collecting { before, parts, counters } = &mut engine.settling else {
            return self.oracle.fail("survivors came that nobody asked for");
        };
        if part.before != *before {
            return self.oracle.fail(format!("survivors of {:?} came for {before:?}", part.before));
        }
        if self.defect == Some(Defect::DedupForgotten) {
            part.dedup.clear();
        }
        if part.last {
            counters[shard] = part.counters;
        }
        parts.push(part);
        if counters.iter().all(Option::is_some) {
            let (before, parts) = (*before, std::mem::take(parts));
            let counters = counters.iter().copied().flatten().collect();
            self.home.begin(before, now, counters, parts);
            engine.settling = Settling::Storing { before };
        }
    }

    /// One operation of settling.
    pub(super) fn keep(&mut self) {
        let Some(engine) = &mut self.engine else { return };
        match &mut engine.settling {
            Settling::Idle => {}
            Settling::Collecting { .. } => self.broadcast(&Input::Tick),
            Settling::Storing { before } => {
                let before = *before;
                match self.home.step() {
                    Ok(true) => {
                        engine.settled = before;
                        self.oracle.settled = before;
                        engine.settling = Settling::Telling { before, next: 0 };
                    }
                    Ok(false) => {}
                    Err(_) => {
                        engine.settling = Settling::Idle;
                        self.broadcast(&Input::SettleFailed { before });
                    }
                }
            }
            Settling::Telling { before, next } => {
                let (before, shard) = (*before, *next);
                *next += 1;
                if shard + 1 == self.shards {
                    self.recycle(before);
                }
                self.input(shard, Input::Settled { before });
            }
        }
    }

    /// The store was reopened; what was being settled must begin anew.
    pub(super) fn reopen(&mut self, random: &mut Random) {
        let broken_off = self.home.reopen(random);
        let Some(engine) = &mut self.engine else { return };
        if let (true, Settling::Storing { before }) = (broken_off, &engine.settling) {
            let before = *before;
            engine.settling = Settling::Idle;
            self.broadcast(&Input::SettleFailed { before });
        }
    }

    fn recycle(&mut self, before: Seq) {
        let Some(engine) = &mut self.engine else { return };
        engine.settling = Settling::Idle;
        if engine.journal.recycle(engine.epoch, before).is_err() && !self.is_superseded {
            self.oracle.fail("the journal does not let its owner recycle");
        }
        self.oracle.recycled(before);
    }
}
