//! Recovery: the journal is replayed on top of what has settled. Records are applied, never decided again.

use super::Opened;
use crate::codec::{CodecError, KeyMark};
use crate::digest::Digester;
use crate::error::KeyError;
use crate::id::KeyId;
use crate::ports::{Journal, JournalError, Replay};
use crate::record::{Record, Seq};
use crate::time::Timestamp;

/// A record in a good group that could not be read. The others of its group were applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Its place; the rest of its group is lost too when the error hides where the next record starts.
    pub seq: Seq,
    /// What is wrong with it.
    pub error: CodecError,
}

/// What a recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The place for the first new record.
    pub next_seq: Seq,
    /// What the journal reports: groups, tail cut, damage.
    pub replay: Replay,
    /// Records that could not be read.
    pub bad: Vec<BadRecord>,
    /// The latest engine time that the store or a record has seen: the clock must not start before it.
    pub latest: Timestamp,
    /// What the records that were handed over are sealed with.
    pub(super) sealed_with: Vec<KeyMark>,
}

impl Recovered {
    /// The keys that messages in the journal were sealed with, at this opening. See `docs/STORAGE.md` on when a key can be
    /// retired.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyId> {
        self.sealed_with.iter().map(|mark| mark.key).collect()
    }
}

/// Why a recovery stopped. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// A newer version wrote a record. Nothing was changed.
    #[error("the journal holds records of a newer version ({0}): nothing was changed; upgrade lastmile")]
    FormatTooNew(CodecError),
    /// A record is sealed with a key that is missing. Of the journal nothing was changed.
    #[error(transparent)]
    Sealed(#[from] KeyError),
    /// The journal failed. Nothing was changed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Replays the journal from the settled place and hands each record, with its place, to `apply(shard, seq, record,
/// counts)`, where `counts` says that the settled counters do not reflect it yet.
///
/// `shards` is the number of shards now; it may differ from the last opening's.
///
/// # Errors
/// [`RecoverError`]. What was applied up to there must be thrown away.
pub fn recover(
    opened: &Opened,
    journal: &mut dyn Journal,
    shards: usize,
    apply: &mut dyn FnMut(usize, Seq, &Record, bool),
) -> Result<Recovered, RecoverError> {
    let digester = Digester::new(opened.identity.digest_key);
    let (mut too_new, mut locked, mut marks) = (None, None, Vec::new());
    let mut bad = Vec::new();
    let mut latest = opened.last_time;
    let replay = journal.replay(opened.settled, &mut |group| {
        let mut records = opened.cipher.decode_records(group.count, group.records);
        let mut next = group.first;
        while let Some(record) = records.next() {
            let seq = next;
            next = seq.plus(1);
            if let Some(mark) =
                records.last_key().filter(|mark| seq >= opened.settled && !marks.contains(mark))
            {
                marks.push(mark);
            }
            match record {
                Ok(_) if seq < opened.settled => {}
                Ok(record) => {
                    latest = latest.max(record.at().unwrap_or_default());
                    let user = record.user();
                    let counted = opened.counters.get(digester.shard(user, opened.counters.len()));
                    let counts = counted.is_none_or(|(_, below)| seq >= *below);
                    apply(digester.shard(user, shards), seq, &record, counts);
                }
                Err(error) if error.is_too_new() => {
                    let reason = error.to_string();
                    too_new = Some(error);
                    return Err(reason);
                }
                // It has settled, and its key may be gone with it.
                Err(CodecError::Sealed(_)) if seq < opened.settled => {}
                Err(CodecError::Sealed(error)) => {
                    locked = Some(error);
                    return Err(error.to_string());
                }
                Err(error) => bad.push(BadRecord { seq, error }),
            }
        }
        Ok(())
    });
    if let Some(error) = locked {
        return Err(error.into());
    }
    match (too_new, replay) {
        (Some(error), _) => Err(RecoverError::FormatTooNew(error)),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(replay)) => {
            let next_seq = replay.end.max(Seq::first_of(opened.epoch)).max(opened.settled);
            Ok(Recovered { next_seq, replay, bad, latest, sealed_with: marks })
        }
    }
}
