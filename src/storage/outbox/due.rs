//! Who has something due, by time: what expires, or waits for its time to come, is found without reading everything.
//!
//! A run has lists of users, each for a stretch of time, at whose end something of theirs is due. The stretches are
//! minutes, and longer the further away they are, so that there are few of them. Lists go with their run; a merge writes
//! those of what still lives.

use std::collections::BTreeMap;

use super::OutboxStore;
use super::keys::{self, Key};
use super::meta::{Meta, RunInfo};
use super::verify::Damage;
use super::writer::Pending;
use crate::id::UserId;
use crate::machine::{DuePlace, Found};
use crate::ports::{Flow, MAX_VALUE_BYTES, StoreError};
use crate::time::Timestamp;

/// The shortest stretch.
const MIN_STRETCH_MS: u64 = 60_000;
/// A stretch is at most this part of the time that is left.
const PART: u64 = 64;
/// Lists are written when they hold this much together.
const MAX_BUFFERED: usize = 1 << 20;

/// The end of the stretch that a time falls into, as seen from `now`.
fn stretch_end(now: Timestamp, due: Timestamp) -> Timestamp {
    let left = due.as_millis().saturating_sub(now.as_millis()) / PART;
    let mut stretch = MIN_STRETCH_MS;
    while stretch.saturating_mul(2) <= left {
        stretch = stretch.saturating_mul(2);
    }
    Timestamp::from_millis(due.as_millis().div_ceil(stretch).saturating_mul(stretch))
}

/// The lists of a run that is being written.
#[derive(Debug, Default)]
pub(super) struct DueLists {
    now: Timestamp,
    lists: BTreeMap<Timestamp, List>,
    bytes: usize,
    /// The user who came last, and where they are listed already.
    last: (Vec<u8>, Vec<Timestamp>),
}

#[derive(Debug, Default)]
struct List {
    parts: u32,
    users: Vec<u8>,
}

impl DueLists {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { now, ..Self::default() }
    }

    /// Something of this user is due then; users come sorted.
    pub(super) fn add(&mut self, user: &[u8], due: Timestamp, run: &mut RunInfo, out: &mut Pending) {
        if due == Timestamp::NEVER {
            return;
        }
        // Not before what was seen to: in the runs that are merged it was due later than that.
        let at = stretch_end(self.now, due).max(run.swept.next());
        let (last, listed) = &mut self.last;
        if last != user {
            last.clear();
            last.extend_from_slice(user);
            listed.clear();
        }
        if listed.contains(&at) {
            return;
        }
        listed.push(at);
        let list = self.lists.entry(at).or_default();
        if list.users.len() + 1 + user.len() > MAX_VALUE_BYTES {
            self.bytes -= list.users.len();
            list.write(at, run, out);
        }
        list.users.push(u8::try_from(user.len()).unwrap_or(u8::MAX));
        list.users.extend_from_slice(user);
        self.bytes += 1 + user.len();
        if self.bytes > MAX_BUFFERED {
            self.finish(run, out);
        }
    }

    /// Hands out what is left.
    pub(super) fn finish(&mut self, run: &mut RunInfo, out: &mut Pending) {
        self.bytes = 0;
        for (at, list) in &mut self.lists {
            list.write(*at, run, out);
        }
    }
}

impl List {
    fn write(&mut self, at: Timestamp, run: &mut RunInfo, out: &mut Pending) {
        if self.users.is_empty() {
            return;
        }
        run.bytes += self.users.len() as u64;
        run.due_parts += 1;
        let value = core::mem::take(&mut self.users);
        out.put(Key::Due { run: run.number, at, part: self.parts }.encode(), value);
        self.parts += 1;
    }
}

/// The users of a list; `None` when it makes no sense.
fn users_of(mut list: &[u8]) -> Option<Vec<UserId>> {
    let mut users = Vec::new();
    while let Some((len, rest)) = list.split_first() {
        let (id, rest) = rest.split_at_checked(usize::from(*len))?;
        users.push(UserId::new(id).ok()?);
        list = rest;
    }
    Some(users)
}

/// Counts the lists of a run that can be read.
pub(super) fn verify(
    outbox: &OutboxStore,
    run: &RunInfo,
    damage: &mut Vec<Damage>,
) -> Result<(), StoreError> {
    let (mut parts, before) = (0, damage.len());
    let (from, to) = keys::dues_of(run.number, run.number);
    outbox.dyn_store().scan(&from, &to, &mut |key, value| {
        parts += 1;
        match value.map(users_of) {
            Ok(Some(_)) => {}
            Ok(None) => damage.push(Damage::at(key, "it is no list of users")),
            Err(error) => damage.push(Damage::at(key, &error.to_string())),
        }
        Flow::Continue
    })?;
    if parts != run.due_parts || damage.len() > before {
        let reason = format!(
            "{parts} lists of what is due, where {} should be: nothing is lost, some of it is due when its user comes",
            run.due_parts
        );
        damage.push(Damage { run: Some(run.number), reason, ..Damage::default() });
    }
    Ok(())
}

impl OutboxStore {
    /// Some of the users who have something due by `until`, behind `after`. `since` says what was found before: all up to
    /// this time, in the table of this generation.
    pub(super) fn due(
        &self,
        table: &Meta,
        until: Timestamp,
        since: (Timestamp, u64),
        after: Option<DuePlace>,
    ) -> Result<Found, StoreError> {
        let from = |run: &RunInfo| {
            let found = if run.born <= since.1 { run.swept.max(since.0) } else { run.swept };
            Key::Due { run: run.number, at: found.next(), part: 0 }.encode()
        };
        let runs = table.runs.iter().filter(|run| run.due_parts > 0);
        // A run that was merged away meanwhile: its lists are in another one now.
        let skipped = after.filter(|after| runs.clone().any(|run| run.number == after.run));
        let mut runs: Vec<_> = runs
            .skip_while(|run| skipped.is_some_and(|after| run.number != after.run))
            .map(|run| (run.number, from(run)))
            .collect();
        if let (Some(after), Some((_, first))) = (skipped, runs.first_mut()) {
            let behind = Key::Due { run: after.run, at: after.at, part: after.part }.encode();
            *first = keys::after(behind);
        }
        for (run, from) in &runs {
            let to = Key::Due { run: *run, at: until.next(), part: 0 }.encode();
            let mut found = None;
            self.dyn_store().scan(from, &to, &mut |key, value| {
                let Some(Key::Due { run, at, part }) = Key::decode(key) else { return Flow::Continue };
                let users = value.ok().and_then(users_of).unwrap_or_else(|| {
                    self.suspect(Damage::at(key, "a list of what is due is damaged"));
                    Vec::new()
                });
                found = Some((users, DuePlace { run, at, part }));
                Flow::Stop
            })?;
            if let Some((users, place)) = found {
                return Ok(Found::Due {
                    users,
                    more: Some(place),
                    next: Timestamp::NEVER,
                    table: table.generation,
                });
            }
        }
        let mut next = Timestamp::NEVER;
        for run in table.runs.iter().filter(|run| run.due_parts > 0) {
            let from = Key::Due { run: run.number, at: until.next(), part: 0 }.encode();
            self.dyn_store().scan(&from, &keys::dues_of(run.number, run.number).1, &mut |key, _| {
                if let Some(Key::Due { at, .. }) = Key::decode(key) {
                    next = next.min(at);
                }
                Flow::Stop
            })?;
        }
        Ok(Found::Due { users: Vec::new(), more: None, next, table: table.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_a_minute_or_a_small_part_of_what_is_left_and_end_no_earlier_than_what_is_due() {
        let now = Timestamp::from_millis(1_700_000_000_123);
        for left in [0, 1, 59_999, 60_000, 3_600_000, 86_400_000, 30 * 86_400_000, u64::MAX / 2] {
            let due = Timestamp::from_millis(now.as_millis() + left);
            let late = stretch_end(now, due).since(due).as_millis() as u64;
            assert!(late <= (left / PART).max(MIN_STRETCH_MS), "{left}: {late}");
        }
        assert_eq!(stretch_end(now, Timestamp::ZERO), Timestamp::ZERO);
        assert!(
            stretch_end(Timestamp::ZERO, Timestamp::from_millis(u64::MAX - 1))
                >= Timestamp::from_millis(u64::MAX - 1)
        );
    }

    #[test]
    fn a_list_is_read_as_it_was_written_and_nothing_else_is() {
        let ids = [UserId::new("alice").unwrap(), UserId::new(vec![0xff; 255]).unwrap()];
        let mut list = Vec::new();
        for id in &ids {
            list.push(id.as_bytes().len() as u8);
            list.extend_from_slice(id.as_bytes());
        }
        assert_eq!(users_of(&list), Some(ids.to_vec()));
        assert_eq!(users_of(&list[..list.len() - 1]), None);
        assert_eq!(users_of(&[0]), None);
    }
}
