//! The outbox's own row: who it is, what has settled, and which runs there are. One batch replaces it as a whole.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::filter::Filter;
use super::keys::Key;
use super::later;
use super::sealed::{self, RunKeys};
use crate::codec::{self, Cipher, CodecError, Fields, KeyMark};
use crate::error::KeyError;
use crate::id::{StreamId, UserId};
use crate::ports::{Batch, MAX_VALUE_BYTES, Store, StoreError};
use crate::record::{Counters, Epoch, Seq};
use crate::storage::frame;
use crate::time::Timestamp;

/// The newest format of the row that this build reads. It is written where messages are sealed.
///
/// It speaks for all that lies in runs, and for users' rows: an older build refuses a table of a newer format by name and
/// touches nothing, but takes a chunk, or a row, of a newer version for damage. So formats are raised with their versions.
pub const META_VERSION: u8 = 17;
/// The formats of the row where messages are sealed, and where they are not, and nothing ever ended for a reason that came
/// later than these.
const SEALED_VERSION: u8 = 15;
const PLAIN_VERSION: u8 = 14;
/// What is added to the format when something did: the counters of later reasons stand before the row.
const LATER: u8 = 2;
/// How far all of them were raised for version 5 of users' rows. The older ones have the same bytes; they are read, and written
/// anew before anything else is.
const RAISED: u8 = 4;
/// What a part says before its share of the row.
const PART_HEAD: usize = 2;
/// The row's checksum is bound to this name.
const NAME: &[u8] = b"outbox";

/// One settled run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Its number; never used twice for runs that were published.
    pub number: u64,
    /// No entry lies below this place.
    pub first: Seq,
    /// No entry lies above this place.
    pub last: Seq,
    /// Entries written.
    pub entries: u64,
    /// Entries that have not ended, as far as was reported.
    pub live: u64,
    /// Bytes of its values.
    pub bytes: u64,
    /// Chunks of entries.
    pub chunks: u64,
    /// Entries with a body in parts.
    pub stubs: u64,
    /// Remembered ids.
    pub ids: u64,
    /// Chunks of remembered ids.
    pub id_chunks: u64,
    /// When the newest remembered id was accepted.
    pub newest_id: Timestamp,
    /// The first user with an entry, in the order of keys.
    pub first_user: Option<UserId>,
    /// The last one.
    pub last_user: Option<UserId>,
    /// Users with an entry.
    pub users: u64,
    /// Parts of its filter.
    pub filter_parts: u32,
    /// Lists of users of whom it has something due.
    pub due_parts: u64,
    /// All that was due up to then was seen to.
    pub swept: Timestamp,
    /// The table that named it first.
    pub born: u64,
    /// Bodies that entries share.
    pub shared: u64,
    /// The filter, when it could be read.
    #[serde(skip)]
    pub(super) filter: Known,
    /// What its entries are sealed with; the table's envelope has it.
    #[serde(skip)]
    pub(super) keys: RunKeys,
    /// Held by every table that names the run, so that its chunks outlive their readers.
    #[serde(skip)]
    pub(super) pin: Pin,
}

/// The filter of a run; without it, the run may hold something of everybody.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(pub(super) Option<Arc<Filter>>);

impl PartialEq for Known {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Known {}

/// Counts who may still read a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Pin(pub(super) Arc<()>);

impl PartialEq for Pin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Pin {}

impl RunInfo {
    pub(super) fn new(number: u64, first: Seq, last: Seq) -> Self {
        Self {
            number,
            first,
            last,
            entries: 0,
            live: 0,
            bytes: 0,
            chunks: 0,
            stubs: 0,
            ids: 0,
            id_chunks: 0,
            newest_id: Timestamp::ZERO,
            first_user: None,
            last_user: None,
            users: 0,
            filter_parts: 0,
            due_parts: 0,
            swept: Timestamp::ZERO,
            born: 0,
            shared: 0,
            filter: Known::default(),
            keys: RunKeys::default(),
            pin: Pin::default(),
        }
    }

    /// Whether the run may hold something of a user with this digest. `false` is certain.
    pub(super) fn may_hold(&self, digest: u128) -> bool {
        self.chunks > 0 && self.filter.0.as_ref().is_none_or(|filter| filter.may_hold(digest))
    }

    /// Reads the filter. Without it loads are slower and find the same, so damage to it costs no more than that.
    pub(super) fn read_filter(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        for part in 0..self.filter_parts {
            match store.read(&Key::Filter { run: self.number, part }.encode()) {
                Ok(Some(value)) => bytes.extend_from_slice(&value),
                Ok(None) | Err(StoreError::Damaged { .. }) => {
                    tracing::warn!(
                        run = self.number,
                        "the run's filter is damaged: loads are slower until it is merged"
                    );
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.filter = Known(Filter::from_bytes(&bytes).map(Arc::new));
        Ok(())
    }
}

/// The outbox's own row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) stream: StreamId,
    pub(super) digest_key: u128,
    /// What the digest key is sealed with, where this was read.
    #[serde(skip)]
    pub(super) sealed: Option<KeyMark>,
    /// Whether this was read from a row of an older format.
    #[serde(skip)]
    pub(super) is_older: bool,
    /// Grows with every publication.
    pub(super) generation: u64,
    /// The epoch of the last publication.
    pub(super) epoch: Epoch,
    pub(super) settled: Seq,
    pub(super) counters: Vec<(Counters, Seq)>,
    pub(super) last_time: Timestamp,
    /// In the order of their places.
    pub(super) runs: Vec<RunInfo>,
    /// Runs that were merged away or died out; their chunks are being deleted.
    pub(super) dropping: Vec<RunInfo>,
}

impl Meta {
    pub(super) fn new(stream: StreamId, digest_key: u128) -> Self {
        Self {
            stream,
            digest_key,
            sealed: None,
            is_older: false,
            generation: 0,
            epoch: Epoch(0),
            settled: Seq::ZERO,
            counters: Vec::new(),
            last_time: Timestamp::ZERO,
            runs: Vec::new(),
            dropping: Vec::new(),
        }
    }

    /// Takes ended entries off the live counts of their runs.
    pub(super) fn bury(&mut self, died: &[Seq]) {
        for seq in died {
            let at = self.runs.partition_point(|run| run.last < *seq);
            if let Some(run) = self.runs.get_mut(at).filter(|run| run.first <= *seq) {
                run.live = run.live.saturating_sub(1);
            }
        }
    }

    /// Lets the runs that an older table names as well be held by the readers of both, and takes over their filters.
    pub(super) fn share_pins(&mut self, older: &Self) {
        for run in &mut self.runs {
            if let Some(known) = older.runs.iter().find(|known| known.number == run.number) {
                run.pin = known.pin.clone();
                run.filter = known.filter.clone();
            }
        }
    }

    /// `version u8 · frame`, for a file or for rows.
    pub(super) fn encode(&self, cipher: &Cipher) -> Vec<u8> {
        let (version, body) = match sealed::encode(self, cipher) {
            Some(body) => (SEALED_VERSION, body),
            None => {
                let mut body = Vec::new();
                codec::encode_value(self, &mut body);
                (PLAIN_VERSION, body)
            }
        };
        let later = later::pack(&self.counters);
        let (version, body) = match later.is_empty() {
            true => (version, body),
            false => (version + LATER, [later, body].concat()),
        };
        let mut out = vec![version];
        out.extend_from_slice(&frame::encode(NAME, &body));
        out
    }

    pub(super) fn decode(bytes: &[u8], cipher: &Cipher) -> Result<Self, MetaError> {
        let (version, framed) = bytes.split_first().ok_or(MetaError::Damaged("it is empty".to_owned()))?;
        if *version > META_VERSION {
            return Err(MetaError::TooNew { found: *version });
        }
        if *version < PLAIN_VERSION - RAISED {
            return Err(MetaError::Damaged(format!("format {version} is older than every release")));
        }
        let is_older = *version < PLAIN_VERSION;
        let version = if is_older { *version + RAISED } else { *version };
        let body = frame::decode(NAME, framed).map_err(|e| MetaError::Damaged(e.to_string()))?;
        let (later, body) = match version > SEALED_VERSION {
            true => later::unpack(body)
                .ok_or_else(|| MetaError::Damaged("its counters are cut short".to_owned()))?,
            false => (Vec::new(), body),
        };
        let mut meta = match version == SEALED_VERSION || version == SEALED_VERSION + LATER {
            true => sealed::decode(body, cipher)?,
            false => {
                let mut meta: Self =
                    codec::decode_value(body).map_err(|e: CodecError| MetaError::Damaged(e.to_string()))?;
                meta.runs.iter_mut().for_each(|run| run.keys.plain = run.entries > 0);
                meta
            }
        };
        later::put(&mut meta.counters, later);
        meta.is_older = is_older;
        Ok(meta)
    }

    /// Adds the whole row to a batch.
    pub(super) fn write(&self, cipher: &Cipher, batch: &mut Batch) {
        let bytes = self.encode(cipher);
        let parts = u16::try_from(bytes.len().div_ceil(MAX_VALUE_BYTES - PART_HEAD)).unwrap_or(u16::MAX);
        for (part, share) in (0_u16..).zip(bytes.chunks(MAX_VALUE_BYTES - PART_HEAD)) {
            let value = [&parts.to_le_bytes()[..], share].concat();
            batch.put(Key::Meta { part }.encode(), value);
        }
    }

    /// The row, if there is one.
    pub(super) fn read(store: &dyn Store, cipher: &Cipher) -> Result<Option<Self>, MetaError> {
        let mut bytes = Vec::new();
        let mut part = 0;
        loop {
            let Some(value) = store.read(&Key::Meta { part }.encode())? else {
                if part == 0 {
                    return Ok(None);
                }
                return Err(MetaError::Damaged(format!("part {part} is missing")));
            };
            let mut fields = Fields(&value);
            let parts = fields.u16().ok_or(MetaError::Damaged("a part is empty".to_owned()))?;
            bytes.extend_from_slice(fields.0);
            part += 1;
            if part >= parts {
                return Self::decode(&bytes, cipher).map(Some);
            }
        }
    }
}

/// Why the outbox's own row, or its manifest, cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum MetaError {
    #[error("format {found} is newer than {META_VERSION}")]
    TooNew { found: u8 },
    #[error("damaged: {0}")]
    Damaged(String),
    #[error(transparent)]
    Sealed(#[from] KeyError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::EndReason;
    use crate::record::{Backlog, LaneId};

    /// A table in which no field has the value it is born with.
    fn sample() -> Meta {
        let run = |number: u64, first: u64, last: u64| RunInfo {
            entries: 20 + number,
            live: 10 + number,
            bytes: 70_000,
            chunks: 35,
            stubs: 3,
            ids: 300,
            id_chunks: 9,
            newest_id: Timestamp::from_millis(1_700_000_000_000 + number),
            first_user: Some(UserId::new("alice").unwrap()),
            last_user: Some(UserId::new("zoë").unwrap()),
            users: 12,
            filter_parts: 1,
            due_parts: 2,
            swept: Timestamp::from_millis(1_700_000_000_500),
            born: number + 60,
            ..RunInfo::new(number, Seq::new(first), Seq::new(last))
        };
        let mut backlog = Backlog::default();
        for (n, lane) in (1..).zip(LaneId::ALL) {
            backlog.accept(Seq::new(n), lane, Timestamp::from_millis(1_700_000_000_000 + n * 5000));
        }
        backlog.retry(true);
        let counters = Counters {
            accepted: 1000,
            ended: [1, 2, 3, 4, 5, 6, 7, 8, 0, 0],
            upgraded: 9,
            accepted_bytes: 300_000,
            ended_bytes: 200_000,
            buried: 11,
            unburied: 10,
            buried_bytes: 11,
            unburied_bytes: 12,
            backlog,
        };
        Meta {
            stream: StreamId::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            digest_key: 0xfedc_ba98_7654_3210_fedc_ba98_7654_3210,
            generation: 77,
            epoch: Epoch(5),
            settled: Seq::new(5 << 40 | 4000),
            counters: vec![(counters, Seq::new(5 << 40 | 3999)), (Counters::default(), Seq::new(7))],
            last_time: Timestamp::from_millis(1_700_000_000_999),
            runs: vec![run(3, 0, 1999), run(6, 2000, 3999)],
            dropping: vec![run(1, 0, 999)],
            sealed: None,
            is_older: false,
        }
    }

    #[test]
    fn bytes_are_those_of_the_golden_file() {
        let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden", "table.v14.bin"].iter().collect();
        let bytes = sample().encode(&Cipher::plain());
        if std::env::var_os("LASTMILE_BLESS").is_some() {
            std::fs::write(&path, &bytes).unwrap();
        }
        let golden = std::fs::read(&path).unwrap();
        assert_eq!(bytes, golden, "the table is written in another way than version 14 says");
        let mut expected = sample();
        expected.runs.iter_mut().for_each(|run| run.keys.plain = true);
        assert_eq!(Meta::decode(&golden, &Cipher::plain()).unwrap(), expected);
        assert_eq!(golden[0], PLAIN_VERSION);
    }

    #[test]
    fn the_formats_before_rows_of_version_5_are_read_and_known_to_be_older() {
        let golden = include_bytes!("../../../tests/golden/table.v10.bin");
        let mut expected = Meta { is_older: true, ..sample() };
        expected.runs.iter_mut().for_each(|run| run.keys.plain = true);
        assert_eq!(Meta::decode(golden, &Cipher::plain()).unwrap(), expected);
        expected.counters[0].0.ended[EndReason::Elsewhere.index()] = 3;
        let mut bytes = expected.encode(&Cipher::plain());
        assert_eq!(bytes[0], PLAIN_VERSION + LATER);
        bytes[0] = 12;
        assert_eq!(Meta::decode(&bytes, &Cipher::plain()).unwrap(), expected);
    }

    #[test]
    fn a_newer_table_is_named_and_an_older_or_damaged_one_refused() {
        let mut bytes = sample().encode(&Cipher::plain());
        let decode = |bytes: &[u8]| Meta::decode(bytes, &Cipher::plain());
        bytes[0] = META_VERSION + 1;
        assert!(matches!(decode(&bytes), Err(MetaError::TooNew { found: 18 })));
        bytes[0] = PLAIN_VERSION - RAISED - 1;
        assert!(matches!(decode(&bytes), Err(MetaError::Damaged(_))));
        bytes[0] = PLAIN_VERSION;
        *bytes.last_mut().unwrap() ^= 1;
        assert!(matches!(decode(&bytes), Err(MetaError::Damaged(_))));
    }
}
