//! What a process was told, and what it may then rely on.
//!
//! | line | written | what it means |
//! |---|---|---|
//! | `try A B` | before a send | messages A to B may be there, all or none |
//! | `ok A P …` | after it was answered | they are, in these places |
//! | `got N P R` | by a sink, before it says `Delivered` | N need not come again; if it does, `redelivered` is set |
//! | `end N` | after that was announced | N does not come again |
//! | `drop N` | before a withdrawal | N need not come |
//! | `gone N` | after it was answered | N does not come |
//! | `open` | by an opening that found nothing lost or damaged | |

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::load::{Line, line_of, sent_with};

/// All that was told, over all processes and power cuts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    pub(crate) tried: BTreeSet<usize>,
    /// Accepted, and where.
    pub(crate) accepted: BTreeMap<usize, u64>,
    got: BTreeSet<usize>,
    ended: BTreeSet<usize>,
    dropped: BTreeSet<usize>,
    gone: BTreeSet<usize>,
    /// The place of the newest that came first, in each line.
    newest: HashMap<Line, u64>,
    /// Settlements and merges, over all openings that said.
    pub(crate) settled: u64,
    pub(crate) merged: u64,
    /// Openings that were completed.
    pub(crate) opened: usize,
}

impl Story {
    pub(crate) fn tell(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        let first = numbers.first().map_or(0, |number| *number as usize);
        match kind {
            "try" => self.tried.extend(first..numbers[1] as usize),
            "ok" => self.accepted.extend((first..).zip(numbers[1..].iter().copied())),
            "got" => return self.got(first, numbers[1], numbers[2] == 1),
            "end" => drop(self.ended.insert(first)),
            "drop" => drop(self.dropped.insert(first)),
            "gone" => drop(self.gone.insert(first)),
            "open" => self.opened += 1,
            "stats" => {
                self.settled += numbers[0];
                self.merged += numbers[1];
            }
            other => return Err(format!("the process said: {other}")),
        }
        Ok(())
    }

    /// A message came.
    pub(crate) fn got(&mut self, number: usize, place: u64, redelivered: bool) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("message {number} (place {place:#x}) {what}"));
        if !self.tried.contains(&number) {
            return wrong("came and was never sent");
        }
        if self.accepted.get(&number).is_some_and(|known| *known != place) {
            return wrong("came from another place");
        }
        if self.ended.contains(&number) {
            return wrong("came after its end had been announced");
        }
        if self.gone.contains(&number) {
            return wrong("came after it had been withdrawn");
        }
        if !self.got.insert(number) {
            return if redelivered { Ok(()) } else { wrong("came again as if for the first time") };
        }
        let newest = self.newest.entry(line_of(number)).or_default();
        if *newest >= place {
            return wrong("came after a later one of its line");
        }
        *newest = place;
        Ok(())
    }

    /// Everything that still waited has come: whether anything is missing.
    pub(crate) fn complete(&self) -> Result<(), String> {
        let may_be_away = |number: &usize| self.got.contains(number) || self.dropped.contains(number);
        let missing: Vec<_> = self.accepted.keys().filter(|number| !may_be_away(number)).collect();
        if !missing.is_empty() {
            let (n, first) = (missing.len(), missing[0]);
            return Err(format!("{n} accepted messages are lost, the first is {first}"));
        }
        for number in &self.got {
            let half =
                sent_with(*number).find(|other| !self.got.contains(other) && !self.dropped.contains(other));
            if let Some(other) = half {
                return Err(format!(
                    "{number} was accepted without {other}, which was sent together with it"
                ));
            }
        }
        Ok(())
    }

    /// Whether this message is known to have been there.
    pub(crate) fn is_accepted(&self, number: usize) -> bool {
        self.accepted.contains_key(&number) || self.got.contains(&number)
    }
}
