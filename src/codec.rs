//! The bytes of records and rows. The only place that imports bincode, which is used through serde, with a limit, and
//! must consume its input exactly.
//!
//! A record is `len u32 LE · kind u8 · version u8 · body`; `len` counts what follows it.
//!
//! # Invariants
//! - Bytes are hostile. A length is checked against what is there before anything is allocated, so decoding takes at
//!   most twice the input and 4 KiB. Strings and blobs are borrowed until they are known to be there; lists of
//!   places are blobs of fixed width.
//! - What is decoded passed [`Message::check`](crate::Message::check): a decoded message could have been built.
//! - Each encoding carries its version; golden files hold it.

mod accept;
mod device;
mod fields;
mod group;
mod ids;
mod rows;
mod seal;
mod varint;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::group::Before;
use self::seal::plain_of;
use crate::error::{InvalidMessage, KeyError};
#[cfg(feature = "storage")]
use crate::id::MessageId;
use crate::record::{Accept, Attempt, DeviceChange, End, Exposed, Floor, Read, Record, Seq, Told};

pub(crate) use fields::Fields;
pub use group::encode_records;
#[cfg(test)]
pub(crate) use ids::VERSION as DEDUP_VERSION;
pub use ids::{DedupChunk, DedupRows, Named, decode_dedup};
#[cfg(test)]
pub(crate) use rows::ROW_VERSION;
pub use rows::{decode_row, encode_row};
pub use seal::Cipher;
#[cfg(feature = "encryption")]
pub(crate) use seal::{HEAD_BYTES, NONCE_BYTES, Sealer, TAG_BYTES};
pub(crate) use seal::{KeyMark, Unopened};
pub(crate) use varint::{put_step, put_varint};

/// No encoding is longer: the largest payload, headers and ids, with room to spare.
const LIMIT: usize = 17 << 20;
/// The version of every record body this build writes, and the newest it reads.
pub const RECORD_VERSION: u8 = 1;

/// Why bytes are no record or row. Nothing of them may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Shorter than its own length says.
    #[error("{bytes} bytes are there, {needed} are needed")]
    Truncated {
        /// The bytes there are.
        bytes: usize,
        /// The bytes there should be.
        needed: usize,
    },
    /// Bytes follow the end.
    #[error("{bytes} bytes follow the end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A kind that this build does not know: a newer version wrote it.
    #[error("record kind {kind} is not known to this build: upgrade lastmile")]
    UnknownKind {
        /// The kind.
        kind: u8,
    },
    /// A newer version of a known encoding.
    #[error("version {found} of record kind {kind} is newer than {RECORD_VERSION}: upgrade lastmile")]
    NewerVersion {
        /// The record's kind (0 for rows).
        kind: u8,
        /// The version found.
        found: u8,
    },
    /// Payload and headers are sealed, and the key is missing. Nothing says that they are damaged.
    #[error(transparent)]
    Sealed(#[from] KeyError),
    /// The body is not what its kind says.
    #[error("damaged body: {0}")]
    Body(String),
    /// A message that could not have been built.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
}

impl CodecError {
    /// Whether a newer build may be able to read the bytes.
    #[must_use]
    pub fn is_too_new(&self) -> bool {
        matches!(self, Self::UnknownKind { .. } | Self::NewerVersion { .. })
    }
}

fn body_error(error: impl core::fmt::Display) -> CodecError {
    CodecError::Body(error.to_string())
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<LIMIT>()
}

/// Writes to the end of a vector.
struct Append<'a>(&'a mut Vec<u8>);

impl bincode::enc::write::Writer for Append<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Appends the encoding of a value.
pub(crate) fn encode_value(value: &impl Serialize, out: &mut Vec<u8>) {
    let written = bincode::serde::encode_into_writer(value, Append(out), config());
    written.expect("a vector takes everything, and no type of ours refuses to be written");
}

/// The value that these bytes, all of them, encode.
pub(crate) fn decode_value<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_borrowed(bytes)
}

fn decode_borrowed<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::serde::borrow_decode_from_slice(bytes, config()).map_err(body_error)?;
    match bytes.len().saturating_sub(used) {
        0 => Ok(value),
        bytes => Err(CodecError::Trailing { bytes }),
    }
}

// ------------------------------------------------------------------------------------------------------------ records

const ACCEPT: u8 = 1;
const END: u8 = 2;
const ATTEMPT: u8 = 3;
const EXPOSED: u8 = 4;
const FLOOR: u8 = 5;
// The other kinds of acceptance: the body of the first one, and what they say besides.
/// Of a message that had another place before.
const MOVED: u8 = 18;
/// Of a message with a collapse key: that, its version, its time if that is still to come, and what brought it there.
const COLLAPSING: u8 = 19;
/// Of a message whose time is still to come, when that is, and what brought it there.
const SCHEDULED: u8 = 20;
/// Of a dead letter, and what made it one.
const BURIED: u8 = 23;
/// Of a message that was a dead letter, and whether it may have arrived.
const REQUEUED: u8 = 24;
/// Of a message that waits for another one: what for, where that was, its time if that is still to come, and what brought
/// it there.
const WAITING: u8 = 26;
/// As the acceptance before it in the same group, for somebody else: see [`encode_records`].
const LIKE: u8 = 25;
/// That a receiver was told of a gap.
const TOLD: u8 = 22;
/// Something about a device.
const DEVICE: u8 = 16;
/// How far somebody has read.
const READ: u8 = 21;
/// Before an acceptance of one of the other kinds: for which device it is.
const FOR_DEVICE: u8 = 27;

/// Appends `len · kind · version · body` to `out`.
pub fn encode_record(record: &Record, out: &mut Vec<u8>) {
    Cipher::plain().encode_record(record, out);
}

/// Appends what is written, behind its length.
fn with_len(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let len = u32::try_from(out.len().saturating_sub(start).saturating_sub(4));
    let len = len.expect("the limits of a message keep a record below 4 GiB").to_le_bytes();
    if let Some(place) = out.get_mut(start..).and_then(|tail| tail.first_chunk_mut::<4>()) {
        *place = len;
    }
}

/// Appends `kind · version · body` to `out`.
fn encode_bare(record: &Record, cipher: &Cipher, out: &mut Vec<u8>) {
    match record {
        Record::Accept(accept) => cipher.encode_accept(accept, out),
        Record::End(end) => encode_kind(END, end, out),
        Record::Attempt(attempt) => encode_kind(ATTEMPT, attempt, out),
        Record::Exposed(exposed) => encode_kind(EXPOSED, exposed, out),
        Record::Floor(floor) => encode_kind(FLOOR, floor, out),
        Record::Told(told) => encode_kind(TOLD, told, out),
        Record::Device(change) => encode_kind(DEVICE, change, out),
        Record::Read(read) => encode_kind(READ, read, out),
    }
}

fn encode_kind(kind: u8, body: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind, RECORD_VERSION]);
    encode_value(body, out);
}

/// Appends an accepted message as `kind · version · body`, without a length.
pub fn encode_accept(accept: &Accept, out: &mut Vec<u8>) {
    Cipher::plain().encode_accept(accept, out);
}

/// What [`encode_accept`] wrote.
///
/// # Errors
/// [`CodecError`]; also when the bytes are another kind of record.
pub fn decode_accept(bytes: &[u8]) -> Result<Accept, CodecError> {
    Cipher::plain().decode_accept(bytes)
}

/// The id of an accepted message, plain or sealed: the first bytes of its encoding say it.
#[cfg(feature = "storage")]
pub(crate) fn peek_id(bytes: &[u8]) -> Result<MessageId, CodecError> {
    let (_, bytes) = device::split(bytes)?;
    let truncated = CodecError::Truncated { bytes: bytes.len(), needed: 2 };
    let ([kind, version], body) = bytes.split_first_chunk::<2>().ok_or(truncated)?;
    if !matches!(plain_of(*kind), ACCEPT | MOVED | COLLAPSING | SCHEDULED | BURIED | REQUEUED | WAITING) {
        return Err(CodecError::UnknownKind { kind: *kind });
    }
    check_version(*kind, *version)?;
    let (id, _) = bincode::serde::borrow_decode_from_slice(body, config()).map_err(body_error)?;
    Ok(MessageId::from_u128(id))
}

/// The records of a group: `count` of them, and nothing else. Ends after the first error that hides where the next
/// record starts; a record that is merely damaged itself is one `Err` in its place, and so is each that leans on it.
#[must_use]
pub fn decode_records(count: u32, bytes: &[u8]) -> Records<'_> {
    Cipher::plain().decode_records(count, bytes)
}

/// Iterator of [`decode_records`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    left: u32,
    bytes: &'a [u8],
    cipher: Cipher,
    /// The acceptance that the next one may lean on.
    before: Before,
    /// What the last record is sealed with.
    key: Option<KeyMark>,
}

impl Records<'_> {
    fn take(&mut self) -> Result<Record, CodecError> {
        let truncated = |needed| CodecError::Truncated { bytes: self.bytes.len(), needed };
        let (len, rest) = self.bytes.split_first_chunk::<4>().ok_or(truncated(4))?;
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let (body, rest) = rest.split_at_checked(len).ok_or(truncated(len.saturating_add(4)))?;
        self.bytes = rest;
        self.left = self.left.saturating_sub(1);
        let (record, key) = group::decode_next(body, &self.cipher, &mut self.before)?;
        self.key = key;
        Ok(record)
    }

    /// What the record that was handed over last is sealed with, if it is.
    pub(crate) fn last_key(&self) -> Option<KeyMark> {
        self.key
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let bytes = core::mem::take(&mut self.bytes).len();
            return (bytes > 0).then_some(Err(CodecError::Trailing { bytes }));
        }
        let before = self.left;
        self.key = None;
        let record = self.take();
        if self.left == before {
            (self.left, self.bytes) = (0, &[]);
        }
        Some(record)
    }
}

/// The record of these bytes, and what it is sealed with. What is shared is so for its place.
fn decode_plain_or_sealed(
    bytes: &[u8],
    cipher: &Cipher,
    shared: Option<Seq>,
) -> Result<(Record, Option<KeyMark>), CodecError> {
    let (before, bytes) = device::split(bytes)?;
    let truncated = CodecError::Truncated { bytes: bytes.len(), needed: 2 };
    let ([kind, version], body) = bytes.split_first_chunk::<2>().ok_or(truncated)?;
    let kind = *kind;
    if !matches!(plain_of(kind), ACCEPT | MOVED | COLLAPSING | SCHEDULED | BURIED..=WAITING) {
        if before.is_some() {
            return Err(CodecError::UnknownKind { kind });
        }
        return Ok((decode_fact(kind, *version, body)?, None));
    }
    check_version(kind, *version)?;
    if kind == LIKE {
        return Err(CodecError::Body("it leans on a message that is not there".to_owned()));
    }
    let (accept, key) = accept::decode(kind, body, cipher, shared)?;
    let accept = device::put(accept, before)?;
    Ok((Record::Accept(std::sync::Arc::new(accept)), key))
}

/// A record that is no acceptance.
fn decode_fact(kind: u8, version: u8, body: &[u8]) -> Result<Record, CodecError> {
    if !matches!(kind, END..=FLOOR | TOLD | DEVICE | READ) {
        return Err(CodecError::UnknownKind { kind });
    }
    check_version(kind, version)?;
    Ok(match kind {
        END => Record::End(decode_borrowed::<End>(body)?),
        ATTEMPT => Record::Attempt(decode_borrowed::<Attempt>(body)?),
        EXPOSED => Record::Exposed(decode_borrowed::<Exposed>(body)?),
        TOLD => Record::Told(decode_borrowed::<Told>(body)?),
        DEVICE => Record::Device(decode_borrowed::<DeviceChange>(body)?),
        READ => Record::Read(decode_borrowed::<Read>(body)?),
        _ => Record::Floor(decode_borrowed::<Floor>(body)?),
    })
}

fn check_version(kind: u8, found: u8) -> Result<(), CodecError> {
    match found {
        RECORD_VERSION => Ok(()),
        0 => Err(CodecError::Body("version 0".to_owned())),
        found => Err(CodecError::NewerVersion { kind, found }),
    }
}

/// Bytes that the codec lends.
#[derive(Clone, Copy)]
struct Blob<'a>(&'a [u8]);

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Blob<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'a [u8]>::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests;
