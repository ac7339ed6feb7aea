//! Verification: everything is read, and what is damaged or missing is named.

use std::collections::BTreeMap;

use super::chunk::entries;
use super::keys::{self, Key};
use super::load::message_of;
use super::merge::Judge;
use super::meta::RunInfo;
use super::shared::Bodies;
use super::{OutboxStore, due, rows};
use crate::codec::{self, KeyMark};
use crate::id::{KeyId, UserId};
use crate::ports::{Flow, StoreError};
use crate::record::{Accept, LaneId, Seq};

/// Something that is damaged or missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// In which run, if in one.
    pub run: Option<u64>,
    /// Whose, as far as it is known; of a chunk, the first user in it.
    pub user: Option<UserId>,
    /// Which message, or the first one of a chunk.
    pub entry: Option<(LaneId, Seq)>,
    /// Of a chunk: the last user who may have had entries in it, in the order of keys (shorter ids first).
    pub until: Option<UserId>,
    /// What is wrong, for people.
    pub reason: String,
}

impl Damage {
    /// Damage to the row with this key.
    pub(super) fn at(key: &[u8], reason: &str) -> Self {
        let mut damage = Self { reason: reason.to_owned(), ..Self::default() };
        match Key::decode(key) {
            Some(Key::Chunk { run, user, lane, seq }) => {
                (damage.run, damage.user, damage.entry) = (Some(run), Some(user), Some((lane, seq)));
            }
            Some(Key::Dedup { run, .. } | Key::Due { run, .. } | Key::Shared { run, .. }) => {
                damage.run = Some(run);
            }
            Some(Key::User { user } | Key::UserPart { user, .. }) => damage.user = Some(user),
            _ => {}
        }
        damage
    }
}

/// What a verification read and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entries of runs.
    pub entries: u64,
    /// Those among them that have not ended.
    pub live: u64,
    /// Remembered ids.
    pub ids: u64,
    /// User rows.
    pub rows: u64,
    /// How many of the messages that have not ended are sealed with which key.
    pub keys: BTreeMap<KeyId, u64>,
    /// How many of them are not sealed.
    pub plain: u64,
    /// How many of them wait for a key that is missing. They are not damaged, as far as can be told.
    pub unopened: u64,
    /// What is damaged or missing.
    pub damage: Vec<Damage>,
}

impl Verified {
    fn count_key(&mut self, message: &Result<(Accept, Option<KeyMark>), StoreError>) {
        let key = match message {
            Ok((_, sealed)) => sealed.map(|mark| mark.key),
            Err(StoreError::Sealed(error)) => {
                self.unopened += 1;
                Some(error.key())
            }
            Err(_) => return,
        };
        match key {
            Some(key) => *self.keys.entry(key).or_default() += 1,
            None => self.plain += 1,
        }
    }
}

impl OutboxStore {
    /// Reads everything: every chunk, body and row, and compares it with the table. Calls `progress` now and then with
    /// what was read so far. Takes as long as reading the whole store does.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot be read on. Damage is no error; it is what the report names.
    pub fn verify(&self, progress: &mut dyn FnMut(&Verified)) -> Result<Verified, StoreError> {
        let table = self.table();
        let mut report = Verified::default();
        for run in &table.runs {
            self.verify_run(run, &mut report)?;
            self.verify_ids(run, &mut report)?;
            self.verify_shared(run, &mut report)?;
            if run.filter_parts > 0 && run.filter.0.is_none() {
                let reason =
                    "its filter is damaged: nothing is lost, loads are slower until it is merged".to_owned();
                report.damage.push(Damage { run: Some(run.number), reason, ..Damage::default() });
            }
            due::verify(self, run, &mut report.damage)?;
            progress(&report);
        }
        self.verify_rows(&mut report)?;
        progress(&report);
        Ok(report)
    }

    fn verify_run(&self, run: &RunInfo, report: &mut Verified) -> Result<(), StoreError> {
        let (from, to) = keys::chunks_of(run.number, run.number);
        let (mut chunks, mut count, mut judge) = (0, 0, (Judge::default(), Bodies::default()));
        let mut failed = None;
        // Damage to chunks, whose last users are known with the chunk behind them.
        let mut open: Vec<usize> = Vec::new();
        self.inner.store.scan(&from, &to, &mut |key, value| {
            chunks += 1;
            if let (false, Some(Key::Chunk { user, .. })) = (open.is_empty(), Key::decode(key)) {
                end_at(&mut open, Some(&user), report);
            }
            match self.verify_chunk(run, key, value, &mut judge, report) {
                Ok((entries, is_whole)) => {
                    count += entries;
                    // Its last damage is the chunk's own.
                    open.extend(report.damage.len().checked_sub(1).filter(|_| !is_whole));
                }
                Err(error) => failed = Some(error),
            }
            if failed.is_none() { Flow::Continue } else { Flow::Stop }
        })?;
        end_at(&mut open, run.last_user.as_ref(), report);
        failed.map_or(Ok(()), Err)?;
        report.entries += count;
        if (chunks, count) != (run.chunks, run.entries) {
            let reason = format!(
                "{chunks} chunks with {count} readable entries, where {} with {} should be",
                run.chunks, run.entries
            );
            let (user, until) = (run.first_user.clone(), run.last_user.clone());
            report.damage.push(Damage { run: Some(run.number), user, until, entry: None, reason });
        }
        Ok(())
    }

    /// How many entries of a chunk could be read, and whether that is all of them.
    fn verify_chunk(
        &self,
        run: &RunInfo,
        key: &[u8],
        value: Result<&[u8], StoreError>,
        (judge, bodies): &mut (Judge, Bodies),
        report: &mut Verified,
    ) -> Result<(u64, bool), StoreError> {
        let value = match value {
            Ok(value) => value,
            Err(error) => {
                report.damage.push(Damage::at(key, &error.to_string()));
                return Ok((0, false));
            }
        };
        let mut count = 0;
        let mut users = Vec::new();
        for entry in entries(value, &mut users) {
            let (Ok(entry), Some(user)) =
                (&entry, entry.as_ref().ok().and_then(|e| UserId::new(e.user).ok()))
            else {
                report.damage.push(Damage::at(key, "its rest makes no sense"));
                return Ok((count, false));
            };
            count += 1;
            if !run.may_hold(self.digester().user(Some(&user))) {
                report.damage.push(Damage::at(key, "the run's filter denies one of its users"));
            }
            if judge.has_ended(self, &user, entry.lane, entry.seq)? {
                continue;
            }
            report.live += 1;
            if entry.lane == LaneId::Dead && !self.lists_letters_of(&user)? {
                let (run, reason) = (Some(run.number), "it is not on the list of dead letters".to_owned());
                let (user, entry) = (Some(user.clone()), Some((entry.lane, entry.seq)));
                report.damage.push(Damage { run, user, entry, reason, ..Damage::default() });
            }
            let in_range = (run.first..=run.last).contains(&entry.seq);
            let message = message_of(self, run.number, entry, bodies);
            report.count_key(&message);
            let reason = match message {
                Ok(_) | Err(StoreError::Sealed(_)) if in_range => continue,
                Ok(_) | Err(StoreError::Sealed(_)) => "it lies outside of its run's range".to_owned(),
                Err(error) => error.to_string(),
            };
            let entry = Some((entry.lane, entry.seq));
            let run = Some(run.number);
            report.damage.push(Damage { run, user: Some(user), entry, reason, ..Damage::default() });
        }
        Ok((count, true))
    }

    fn verify_ids(&self, run: &RunInfo, report: &mut Verified) -> Result<(), StoreError> {
        let (from, to) = keys::dedup_of(run.number, run.number);
        let mut count = 0;
        self.inner.store.scan(&from, &to, &mut |key, value| {
            match value {
                Ok(value) => {
                    for row in codec::decode_dedup(value, self.digester()) {
                        match row {
                            Ok(_) => count += 1,
                            Err(error) => report.damage.push(Damage::at(key, &error.to_string())),
                        }
                    }
                }
                Err(error) => report.damage.push(Damage::at(key, &error.to_string())),
            }
            Flow::Continue
        })?;
        report.ids += count;
        if count != run.ids {
            let reason = format!("{count} readable ids, where {} should be", run.ids);
            report.damage.push(Damage { run: Some(run.number), reason, ..Damage::default() });
        }
        Ok(())
    }

    fn verify_shared(&self, run: &RunInfo, report: &mut Verified) -> Result<(), StoreError> {
        let (from, to) = keys::shared_of(run.number, run.number);
        let mut count = 0;
        self.inner.store.scan(&from, &to, &mut |key, value| {
            count += u64::from(matches!(Key::decode(key), Some(Key::Shared { part: 0, .. })));
            if let Err(error) = value {
                report.damage.push(Damage::at(key, &error.to_string()));
            }
            Flow::Continue
        })?;
        if count != run.shared {
            let reason = format!("{count} shared bodies, where {} should be", run.shared);
            report.damage.push(Damage { run: Some(run.number), reason, ..Damage::default() });
        }
        Ok(())
    }

    fn verify_rows(&self, report: &mut Verified) -> Result<(), StoreError> {
        let (from, to) = keys::users();
        self.inner.store.scan(&from, &to, &mut |key, value| {
            let Some(Key::User { user }) = Key::decode(key) else {
                if Key::decode(key).is_none() {
                    report.damage.push(Damage::at(key, "its key is unknown"));
                }
                return Flow::Continue;
            };
            match value.and_then(|head| rows::open(self.dyn_store(), &user, key, head)) {
                Ok(_) => report.rows += 1,
                Err(error) => report.damage.push(Damage::at(key, &error.to_string())),
            }
            Flow::Continue
        })
    }
}

/// Says of damaged chunks who the last one is that they may concern.
fn end_at(open: &mut Vec<usize>, user: Option<&UserId>, report: &mut Verified) {
    for at in open.drain(..) {
        if let Some(damage) = report.damage.get_mut(at) {
            damage.until = user.cloned();
        }
    }
}
