//! Where an engine settles: the outbox store over a store that fails on demand, one operation at a time.

use std::sync::Arc;

use super::plan::Plan;
use super::random::Random;
use super::sealing;
use crate::codec::Cipher;
use crate::id::UserId;
use crate::machine::{Found, Query, Survivors};
use crate::ports::StoreError;
use crate::record::{Counters, EndPosition, Ended, Epoch, Record, Seq};
use crate::storage::outbox::{
    EndsError, Identity, Merge, OpenError, Opened, OutboxStore, Progress, Settlement,
};
use crate::testing::{Fault, FaultyStore, StoreOp, Survivors as Kept};
use crate::time::Timestamp;

/// Runs above which neighbours are merged: few, so that merging happens.
const MAX_RUNS: usize = 2;

/// An engine's store.
#[derive(Debug, Default)]
pub(super) struct Home {
    store: FaultyStore,
    outbox: Option<OutboxStore>,
    epoch: Epoch,
    cipher: Cipher,
    /// How often it was opened, or should have been.
    openings: u32,
    settlement: Option<Settlement>,
    merge: Option<Merge>,
    failed: bool,
}

impl Home {
    /// Every opening has its own key, where the life of this seed is sealed.
    pub(super) fn open(&mut self, above: Epoch, fresh: Identity, plan: &Plan) -> Result<Opened, OpenError> {
        self.cipher = sealing::of_opening(plan.seed, self.openings);
        self.openings += 1;
        let (store, cipher) = (Arc::new(self.store.clone()), self.cipher.clone());
        let (outbox, opened) = OutboxStore::open_with(store, None, above, fresh, cipher)?;
        outbox.keep_ends(&plan.config).map_err(OpenError::Store)?;
        self.outbox = Some(outbox);
        self.epoch = opened.epoch;
        Ok(opened)
    }

    /// What writes records.
    pub(super) fn cipher(&self) -> &Cipher {
        &self.cipher
    }

    /// A record is durable.
    pub(super) fn note_record(&self, seq: Seq, record: &Record) {
        self.outbox.iter().for_each(|outbox| outbox.note_record(seq, record));
    }

    /// What a host reads that must see every end.
    pub(super) fn read_ends(&self, after: EndPosition, max: usize) -> Result<Vec<Ended>, EndsError> {
        self.outbox.as_ref().map_or(Ok(Vec::new()), |outbox| outbox.read_ends(after, max))
    }

    /// Who may have dead letters, as far as the store lists them; nothing while it cannot be read.
    pub(super) fn letter_holders(&self, behind: Option<&UserId>) -> Option<Vec<UserId>> {
        self.outbox.as_ref()?.letter_holders(behind, 3).ok()
    }

    /// What loads reflect.
    pub(super) fn settled(&self) -> Seq {
        self.outbox.as_ref().map_or(Seq::ZERO, OutboxStore::settled)
    }

    /// Begins to store what settles.
    pub(super) fn begin(
        &mut self,
        before: Seq,
        now: Timestamp,
        counters: Vec<(Counters, Seq)>,
        parts: Vec<Survivors>,
    ) {
        self.settlement = Some(Settlement::new(parts, before, counters, now));
    }

    /// One operation of settling; `true` when all is durable.
    pub(super) fn step(&mut self) -> Result<bool, StoreError> {
        let (Some(settlement), Some(outbox)) = (&mut self.settlement, &self.outbox) else { return Ok(true) };
        let done = settlement.step(outbox, self.epoch);
        match &done {
            Ok(Progress::Done) => self.settlement = None,
            Ok(_) => {}
            Err(_) => (self.settlement, self.failed) = (None, true),
        }
        done.map(|progress| progress == Progress::Done)
    }

    /// One operation of merging.
    pub(super) fn merge(&mut self, ids_since: Timestamp) {
        let Some(outbox) = &self.outbox else { return };
        let Some(merge) = &mut self.merge else {
            self.merge = Merge::plan(outbox, MAX_RUNS, ids_since);
            return;
        };
        match merge.step(outbox, self.epoch) {
            Ok(Progress::Done) => self.merge = None,
            Ok(_) => {}
            Err(_) => (self.merge, self.failed) = (None, true),
        }
    }

    pub(super) fn load(&self, query: &Query) -> Result<Found, String> {
        let outbox = self.outbox.as_ref().ok_or("the store is not open")?;
        outbox.load(query).map_err(|error| error.to_string())
    }

    /// Nobody uses it any more, as after an opening that failed.
    pub(super) fn close(&mut self) {
        (self.outbox, self.settlement, self.merge, self.failed) = (None, None, None, false);
    }

    /// Another process opens it: what was opened here stays with the old one.
    pub(super) fn split(&mut self) -> Self {
        let old = Self {
            store: self.store.clone(),
            outbox: self.outbox.take(),
            epoch: self.epoch,
            cipher: self.cipher.clone(),
            openings: self.openings,
            settlement: self.settlement.take(),
            merge: self.merge.take(),
            failed: self.failed,
        };
        self.close();
        old
    }

    /// The process ends: of what no sync covered, the oldest part survives.
    pub(super) fn crash(&mut self, random: &mut Random) {
        self.close();
        self.store.crash(Kept::Seeded(random.next()));
    }

    pub(super) fn fail(&mut self, after: u64, lasting: bool, sync: bool) {
        let (op, count) = match sync {
            true => (StoreOp::Sync, self.store.syncs()),
            false => (StoreOp::Apply, self.store.applies()),
        };
        self.store.fail_at(op, count + 1 + after, if lasting { Fault::Forever } else { Fault::Once });
    }

    pub(super) fn relieve(&mut self) {
        self.store.heal();
    }

    /// Tries to take changes again after a failure. Says whether a settling was broken off.
    pub(super) fn reopen(&mut self, random: &mut Random) -> bool {
        let Some(outbox) = self.outbox.as_ref().filter(|_| self.failed) else { return false };
        self.merge = None;
        self.store.set_reopen_survivors(Kept::Seeded(random.next()));
        self.failed = outbox.reopen().is_err();
        self.settlement.take().is_some()
    }

    /// Whether an earlier failure still stands.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }
}
