//! What must be there after a crash.

use std::collections::BTreeMap;

use super::super::plan::Plan;
use super::Oracle;
use crate::record::{Record, Seq};

impl Oracle {
    /// The process has ended.
    pub(in super::super) fn crashed(&mut self, power_cut: bool) {
        self.waiting.clear();
        self.operations.clear();
        self.parents.clear();
        self.promised.clear();
        self.versions.clear();
        self.messages.values_mut().for_each(|kept| kept.status = None);
        if power_cut {
            self.failed();
        }
    }

    /// The engine has opened again: `settled` is what the store says, `replayed` what the journal handed over.
    pub(in super::super) fn recovered(
        &mut self,
        plan: &Plan,
        settled: Seq,
        mut replayed: BTreeMap<Seq, Record>,
    ) {
        for (seq, record) in std::mem::take(&mut self.log).split_off(&settled) {
            match replayed.remove(&seq) {
                Some(found) if found == record => {}
                Some(found) => self.fail(format!("{seq:?} was {record:?}, replayed as {found:?}")),
                None => self.fail(format!("lost: {seq:?} was durable, settled is {settled:?}: {record:?}")),
            }
            self.log.insert(seq, record);
        }
        for group in std::mem::take(&mut self.maybe) {
            let found = group.records.iter().filter(|(seq, _)| replayed.contains_key(seq)).count();
            if found != 0 && found != group.records.len() {
                self.fail(format!("a group came back in part: {found} of {} records", group.records.len()));
            }
            if found == 0 && group.survives_kill {
                self.fail("a group that the operating system had was lost in a kill");
            }
            for (seq, record) in &group.records {
                if let Some(found) = replayed.remove(seq).filter(|found| found != record) {
                    self.fail(format!("{seq:?} was {record:?}, replayed as {found:?}"));
                }
            }
            if found != 0 {
                self.fold_group(plan, group.records);
            }
        }
        self.settled = self.settled.max(settled);
        self.end_epoch();
        if let Some((seq, record)) = replayed.into_iter().find(|(seq, _)| *seq >= settled) {
            self.fail(format!("replayed, but never committed or fenced off: {seq:?} {record:?}"));
        }
    }
}
