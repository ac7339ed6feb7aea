//! What of an outbox is sealed with which key: the table's own secret, and the entries of each run.
//!
//! ```text
//! table, plain     `PLAIN_VERSION` · frame(table)
//! table, sealed    `SEALED_VERSION` · frame(sealed digest key · what each run is sealed with · table without that key)
//! ```
//!
//! The digest key is a secret of its own: with it, contents could be guessed against the digests of remembered ids.

use serde::{Deserialize, Serialize};

use super::chunk::{Body, Entry, MAX_INLINE_BYTES};
use super::keys::Key;
use super::load::message_of;
use super::meta::{Meta, MetaError, RunInfo};
use super::shared::Bodies;
use super::writer::{Pending, RunWriter, put_body};
use super::{OutboxStore, rows};
use crate::codec::{self, Cipher, CodecError, KeyMark, Unopened};
use crate::id::{KeyId, StreamId};
use crate::ports::StoreError;
use crate::record::Seq;

/// What the entries of a run are sealed with. Damaged ones count as nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunKeys {
    /// Some are not sealed.
    pub(super) plain: bool,
    /// In order.
    pub(super) marks: Vec<KeyMark>,
    /// The run that took its place has bodies of its own: these are deleted with their entries.
    pub(super) rewritten: bool,
}

impl RunKeys {
    /// Takes in what an entry is sealed with.
    pub(super) fn add(&mut self, mark: Option<KeyMark>) {
        match mark {
            None => self.plain = true,
            Some(mark) => {
                if let Err(at) = self.marks.binary_search(&mark) {
                    self.marks.insert(at, mark);
                }
            }
        }
    }

    /// Takes in what a whole run is sealed with.
    pub(super) fn add_all(&mut self, other: &Self) {
        self.plain |= other.plain;
        other.marks.iter().for_each(|mark| self.add(Some(*mark)));
    }

    /// Whether anything is not sealed with the current key although it could be.
    pub(super) fn is_stale(&self, cipher: &Cipher) -> bool {
        let Some(current) = cipher.current() else { return false };
        let is_older = self.plain || self.marks.iter().any(|mark| *mark != current);
        is_older && self.marks.iter().all(|mark| cipher.knows(*mark).is_ok())
    }
}

/// A run that should be written anew because of its keys.
pub(super) fn stale_run(table: &Meta, cipher: &Cipher) -> Option<Vec<RunInfo>> {
    table.runs.iter().find(|run| run.keys.is_stale(cipher)).map(|run| vec![run.clone()])
}

/// The parts that an entry's body has once it was sealed anew: the other copy, or one part where the seal makes a message
/// too long to lie with its entry.
pub(super) fn resealed(entry: &Entry<'_>) -> core::ops::Range<u32> {
    /// More than a seal adds to a message.
    const SEAL_BYTES: usize = 64;
    match entry.body {
        Body::Inline(body) => 0..u32::from(body.len() + SEAL_BYTES > MAX_INLINE_BYTES),
        parts @ Body::Parts { .. } => parts.other_copy().parts(),
        // It belongs to its run, and so does what is written anew.
        Body::Shared { .. } => 0..0,
    }
}

/// A sealed table.
#[derive(Serialize, Deserialize)]
struct Envelope {
    digest_key: Vec<u8>,
    runs: Vec<(u64, RunKeys)>,
    table: Meta,
}

/// What the digest key's seal is bound to.
fn about(stream: StreamId) -> Vec<u8> {
    [&b"lastmile digest key 1"[..], &stream.as_u128().to_le_bytes()].concat()
}

/// A table in its envelope; none when nothing is sealed.
pub(super) fn encode(table: &Meta, cipher: &Cipher) -> Option<Vec<u8>> {
    let (digest_key, _) = cipher.seal(&about(table.stream), &table.digest_key.to_le_bytes())?;
    let runs = table.runs.iter().chain(&table.dropping);
    let runs = runs.map(|run| (run.number, run.keys.clone())).collect();
    let envelope = Envelope { digest_key, runs, table: Meta { digest_key: 0, ..table.clone() } };
    let mut body = Vec::new();
    codec::encode_value(&envelope, &mut body);
    Some(body)
}

/// The table of an envelope.
pub(super) fn decode(body: &[u8], cipher: &Cipher) -> Result<Meta, MetaError> {
    let damaged = |e: CodecError| MetaError::Damaged(e.to_string());
    let Envelope { digest_key, mut runs, mut table } = codec::decode_value(body).map_err(damaged)?;
    let (key, mark) = cipher.open(&about(table.stream), &digest_key).map_err(|why| match why {
        Unopened::Key(error) => MetaError::Sealed(error),
        Unopened::Broken => MetaError::Damaged("the seal of its digest key is broken".to_owned()),
    })?;
    let key =
        key.try_into().map_err(|_| MetaError::Damaged("its digest key has another length".to_owned()))?;
    table.digest_key = u128::from_le_bytes(key);
    table.sealed = Some(mark);
    for run in table.runs.iter_mut().chain(&mut table.dropping) {
        if let Some((_, keys)) = runs.iter_mut().find(|(number, _)| *number == run.number) {
            run.keys = core::mem::take(keys);
        }
    }
    Ok(table)
}

impl RunWriter {
    /// Adds an entry of another run, sealed with the current key. Its body, if it lies in parts, becomes another copy,
    /// as readers of the other run may need the old one. What it shares with others is written by
    /// [`RunWriter::reshare`].
    pub(super) fn reseal(
        &mut self,
        outbox: &OutboxStore,
        run: u64,
        entry: &Entry<'_>,
        out: &mut Pending,
    ) -> Result<(), StoreError> {
        if matches!(entry.body, Body::Shared { .. }) {
            self.entry(entry, out);
            return Ok(());
        }
        let body = entry.body.other_copy();
        let accept = match message_of(outbox, run, entry, &mut Bodies::default()) {
            Ok((accept, _)) => accept,
            Err(StoreError::Damaged { .. }) => {
                // It goes on to be damaged: whoever loads it ends it.
                self.entry(&Entry { body, ..entry.clone() }, out);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.info.keys.add(self.cipher.current());
        let mut bytes = Vec::new();
        self.cipher.encode_accept(&accept, &mut bytes);
        let body = if bytes.len() > MAX_INLINE_BYTES {
            let stub = Body::stub(bytes.len()).copy_of(&body);
            put_body(entry.seq, &stub, &bytes, out);
            stub
        } else {
            Body::Inline(&bytes)
        };
        self.entry(&Entry { body, ..entry.clone() }, out);
        Ok(())
    }

    /// Adds a body that entries of another run share, sealed with the current key.
    pub(super) fn reshare(
        &mut self,
        outbox: &OutboxStore,
        run: u64,
        seq: Seq,
        out: &mut Pending,
    ) -> Result<(), StoreError> {
        let found = Bodies::default().find(outbox, run, seq)?;
        let damaged = |reason: String| rows::damaged(&Key::Shared { run, seq, part: 0 }.encode(), &reason);
        let (accept, _) = found.map_err(damaged)?;
        self.share(seq, &accept, out);
        Ok(())
    }
}

impl OutboxStore {
    /// The keys that settled messages are sealed with, as the table of runs has it. What is only in the journal is not
    /// among them: see [`Recovered::keys`](super::Recovered::keys). [`OutboxStore::verify`] reads everything instead.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyId> {
        let table = self.table();
        let mut all = RunKeys::default();
        table.runs.iter().for_each(|run| all.add_all(&run.keys));
        all.marks.iter().map(|mark| mark.key).collect()
    }

    /// What seals and opens messages.
    pub(crate) fn cipher(&self) -> &Cipher {
        &self.inner.cipher
    }

    /// Says aloud which keys are missing: the messages under them wait until they are there again.
    pub(super) fn warn_of_missing_keys(&self) {
        let table = self.table();
        let mut all = RunKeys::default();
        table.runs.iter().for_each(|run| all.add_all(&run.keys));
        for error in all.marks.iter().filter_map(|mark| self.cipher().knows(*mark).err()) {
            tracing::warn!(%error, "messages wait for their key");
        }
    }
}
