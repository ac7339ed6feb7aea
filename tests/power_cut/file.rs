//! One file on a device that honours syncs and promises nothing else.
//!
//! What was written after the last sync is in the page cache, and the device takes of it what it likes, a sector at a
//! time: a sector holds what it held after any of the writes that touched it, or what was synced.

use std::collections::HashMap;

use super::dice::Dice;

/// What a device writes wholly or not at all.
const SECTOR: usize = 512;

/// A change of a file that no sync has covered.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Extend(usize),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// Changes that syncs have covered so far; so a sync can say up to which change it reaches.
    covered: usize,
}

impl File {
    pub(crate) fn new(durable: Vec<u8>) -> Self {
        Self { durable, ..Self::default() }
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.pending.push(change);
    }

    /// The number of changes there have been.
    pub(crate) fn changes(&self) -> usize {
        self.covered + self.pending.len()
    }

    /// A sync that began after so many changes has returned.
    pub(crate) fn synced(&mut self, changes: usize) {
        let n = changes.saturating_sub(self.covered);
        for change in self.pending.drain(..n) {
            apply(&mut self.durable, &change, &|_| true);
        }
        self.covered += n;
    }

    /// What might be there after a power cut.
    pub(crate) fn survivor(&self, keep: Keep, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let pending = match keep {
            Keep::Nothing => return bytes,
            Keep::All => return self.applied(self.pending.len()),
            Keep::First => return self.applied(dice.below(self.pending.len() + 1)),
            Keep::Writes | Keep::Sectors | Keep::TornLast => self.after_a_cut_in_length(&mut bytes, dice),
        };
        let (before, full) = (bytes.len(), self.applied(self.pending.len()).len());
        let versions = versions(pending, keep, dice);
        for (i, change) in pending.iter().enumerate() {
            apply(&mut bytes, change, &|sector| versions.get(&sector).is_some_and(|version| i < *version));
        }
        // The length is metadata: it may be the old one, that of all writes, or what the data needs.
        match dice.below(3) {
            0 => bytes.truncate(before),
            1 if full > bytes.len() => bytes.resize(full, 0),
            _ => {}
        }
        bytes
    }

    fn applied(&self, changes: usize) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        self.pending[..changes].iter().for_each(|change| apply(&mut bytes, change, &|_| true));
        bytes
    }

    /// A change of the length divides the others: either it has happened, and all before it, or nothing behind it has.
    fn after_a_cut_in_length(&self, bytes: &mut Vec<u8>, dice: &mut Dice) -> &[Change] {
        let Some(at) = self.pending.iter().rposition(|change| matches!(change, Change::SetLen(_))) else {
            return &self.pending;
        };
        if dice.coin() {
            *bytes = self.applied(at + 1);
            return &self.pending[at + 1..];
        }
        let first = self.pending.iter().position(|change| matches!(change, Change::SetLen(_))).unwrap_or(at);
        &self.pending[..first]
    }
}

/// How much of what no sync covered survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Nothing,
    All,
    /// As if the device wrote in order.
    First,
    /// Some changes wholly, others not at all.
    Writes,
    /// Any version of any sector.
    Sectors,
    /// All changes wholly but one, which is torn.
    TornLast,
}

impl Keep {
    pub(crate) fn any(dice: &mut Dice) -> Self {
        [Self::Nothing, Self::All, Self::First, Self::Writes, Self::Sectors, Self::TornLast][dice.below(6)]
    }
}

/// Up to which change each sector holds what was written to it.
fn versions(pending: &[Change], keep: Keep, dice: &mut Dice) -> HashMap<usize, usize> {
    let torn = pending.len().saturating_sub(1 + dice.below(2));
    let mut versions = HashMap::new();
    for (i, change) in pending.iter().enumerate() {
        let there = dice.coin();
        let Change::Write(at, bytes) = change else { continue };
        for sector in at / SECTOR..(at + bytes.len()).div_ceil(SECTOR) {
            let kept = match keep {
                Keep::Writes => there,
                Keep::TornLast if i != torn => true,
                _ => dice.coin(),
            };
            if kept {
                versions.insert(sector, i + 1);
            }
        }
    }
    versions
}

/// Applies a change, a write only in those sectors.
fn apply(bytes: &mut Vec<u8>, change: &Change, in_sector: &dyn Fn(usize) -> bool) {
    match change {
        Change::SetLen(len) => bytes.resize(*len, 0),
        Change::Extend(len) => bytes.resize(bytes.len().max(*len), 0),
        Change::Write(at, written) => {
            let end = at + written.len();
            let mut from = *at;
            while from < end {
                let to = ((from / SECTOR + 1) * SECTOR).min(end);
                if in_sector(from / SECTOR) {
                    bytes.resize(bytes.len().max(to), 0);
                    bytes[from..to].copy_from_slice(&written[from - at..to - at]);
                }
                from = to;
            }
        }
    }
}
