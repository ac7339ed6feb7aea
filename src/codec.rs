//! The bytes of records and rows. The only place that imports bincode, which is used through serde, with a limit, and
//! must consume its input exactly.
//!
//! A record is `len u32 LE · kind u8 · version u8 · body`; `len` counts what follows it.
//!
//! # Invariants
//! - Bytes are hostile. A length is checked against what is there before anything is allocated, so decoding takes at
//!   most twice the input and 4 KiB. Strings and blobs are borrowed until they are known to be there; lists of
//!   places are blobs of fixed width.
//! - What is decoded passed [`Message::check`]: a decoded message could have been built.
//! - Each encoding carries its version; golden files hold it.

mod rows;
mod seal;

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::seal::{ContentsIn, ContentsOut, SEALED};
use crate::error::{InvalidMessage, KeyError};
use crate::event::EventName;
use crate::id::{MessageId, OrderingKey, UserId};
use crate::message::{Durability, MAX_HEADERS, Message, Priority};
use crate::record::{Accept, Attempt, End, Exposed, Floor, Origin, Record};
use crate::time::Timestamp;

pub use rows::{DEDUP_BYTES, decode_dedup, decode_row, encode_dedup, encode_row};
pub use seal::Cipher;
#[cfg(feature = "encryption")]
pub(crate) use seal::{HEAD_BYTES, NONCE_BYTES, Sealer, TAG_BYTES};
pub(crate) use seal::{KeyMark, Unopened};

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
/// An acceptance that moves a message. Its body is that of [`ACCEPT`].
const MOVED: u8 = 18;

/// Appends `len · kind · version · body` to `out`.
pub fn encode_record(record: &Record, out: &mut Vec<u8>) {
    append_record(record, &Cipher::plain(), out);
}

fn append_record(record: &Record, cipher: &Cipher, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    encode_bare(record, cipher, out);
    let len = u32::try_from(out.len().saturating_sub(start).saturating_sub(4));
    let len = len.expect("the limits of a message keep a record below 4 GiB").to_le_bytes();
    if let Some(place) = out.get_mut(start..).and_then(|tail| tail.first_chunk_mut::<4>()) {
        *place = len;
    }
}

/// Appends `kind · version · body` to `out`.
fn encode_bare(record: &Record, cipher: &Cipher, out: &mut Vec<u8>) {
    match record {
        Record::Accept(accept) => append_accept(accept, cipher, out),
        Record::End(end) => encode_kind(END, end, out),
        Record::Attempt(attempt) => encode_kind(ATTEMPT, attempt, out),
        Record::Exposed(exposed) => encode_kind(EXPOSED, exposed, out),
        Record::Floor(floor) => encode_kind(FLOOR, floor, out),
    }
}

fn encode_kind(kind: u8, body: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind, RECORD_VERSION]);
    encode_value(body, out);
}

/// Appends an accepted message as `kind · version · body`, without a length.
pub fn encode_accept(accept: &Accept, out: &mut Vec<u8>) {
    append_accept(accept, &Cipher::plain(), out);
}

fn append_accept(accept: &Accept, cipher: &Cipher, out: &mut Vec<u8>) {
    out.reserve(accept.message.payload().len().saturating_add(128));
    let kind = if accept.moved { MOVED } else { ACCEPT };
    match cipher.seal_contents(&accept.message) {
        None => {
            encode_kind(kind, &AcceptOut::of(accept, ContentsOut::Plain(&accept.message)), out);
        }
        Some(blob) => encode_kind(SEALED + kind, &AcceptOut::of(accept, ContentsOut::Sealed(&blob)), out),
    }
}

/// What [`encode_accept`] wrote.
///
/// # Errors
/// [`CodecError`]; also when the bytes are another kind of record.
pub fn decode_accept(bytes: &[u8]) -> Result<Accept, CodecError> {
    Cipher::plain().decode_accept(bytes)
}

/// The records of a group: `count` of them, and nothing else. Ends after the first error that hides where the next
/// record starts; a record that is merely damaged itself is one `Err` in its place.
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
    /// What the last record was sealed with.
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
        let (record, key) = decode_with(body, &self.cipher)?;
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

/// The record of these bytes, and what it is sealed with.
fn decode_with(bytes: &[u8], cipher: &Cipher) -> Result<(Record, Option<KeyMark>), CodecError> {
    let truncated = CodecError::Truncated { bytes: bytes.len(), needed: 2 };
    let ([kind, version], body) = bytes.split_first_chunk::<2>().ok_or(truncated)?;
    let kind = *kind;
    let plain = match kind.checked_sub(SEALED) {
        Some(plain @ (ACCEPT | MOVED)) => plain,
        _ if (ACCEPT..=FLOOR).contains(&kind) || kind == MOVED => kind,
        _ => return Err(CodecError::UnknownKind { kind }),
    };
    check_version(kind, *version)?;
    let record = match plain {
        ACCEPT | MOVED => {
            let moved = plain == MOVED;
            let (accept, key) = if kind == plain {
                (decode_borrowed::<AcceptIn<'_, ContentsIn<'_>>>(body)?.build(moved)?, None)
            } else {
                let (accept, key) = decode_borrowed::<AcceptIn<'_, Blob<'_>>>(body)?.open(cipher, moved)?;
                (accept, Some(key))
            };
            return Ok((Record::Accept(std::sync::Arc::new(accept)), key));
        }
        END => Record::End(decode_borrowed::<End>(body)?),
        ATTEMPT => Record::Attempt(decode_borrowed::<Attempt>(body)?),
        EXPOSED => Record::Exposed(decode_borrowed::<Exposed>(body)?),
        _ => Record::Floor(decode_borrowed::<Floor>(body)?),
    };
    Ok((record, None))
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

/// An accepted message on its way to bytes. Field for field as [`AcceptIn`].
#[derive(Serialize)]
struct AcceptOut<'a> {
    id: u128,
    recipient: Blob<'a>,
    event: &'a str,
    sender: Option<Blob<'a>>,
    ordering_key: Option<Blob<'a>>,
    priority: Priority,
    durability: Durability,
    ttl_ms: Option<u64>,
    traceparent: Option<&'a str>,
    contents: ContentsOut<'a>,
    at: Timestamp,
    origin: Option<Origin>,
}

impl<'a> AcceptOut<'a> {
    fn of(accept: &'a Accept, contents: ContentsOut<'a>) -> Self {
        let message = &accept.message;
        Self {
            id: message.id().as_u128(),
            recipient: Blob(message.recipient().as_bytes()),
            event: message.event().as_str(),
            sender: message.sender().map(|id| Blob(id.as_bytes())),
            ordering_key: message.ordering_key().map(|id| Blob(id.as_bytes())),
            priority: message.priority(),
            durability: message.durability(),
            ttl_ms: message.ttl().map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            traceparent: message.traceparent(),
            contents,
            at: accept.at,
            origin: accept.origin,
        }
    }
}

struct HeadersOut<'a>(&'a Message);

impl Serialize for HeadersOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.headers().count()))?;
        for (name, value) in self.0.headers() {
            list.serialize_element(&(name, Blob(value)))?;
        }
        list.end()
    }
}

/// An accepted message as it is read, borrowed from the bytes: its contents are [`ContentsIn`], or a sealed [`Blob`].
#[derive(Deserialize)]
struct AcceptIn<'a, C> {
    id: u128,
    #[serde(borrow)]
    recipient: Blob<'a>,
    event: &'a str,
    #[serde(borrow)]
    sender: Option<Blob<'a>>,
    #[serde(borrow)]
    ordering_key: Option<Blob<'a>>,
    priority: Priority,
    durability: Durability,
    ttl_ms: Option<u64>,
    traceparent: Option<&'a str>,
    contents: C,
    at: Timestamp,
    origin: Option<Origin>,
}

impl AcceptIn<'_, ContentsIn<'_>> {
    fn build(self, moved: bool) -> Result<Accept, CodecError> {
        let recipient = UserId::new(self.recipient.0).map_err(body_error)?;
        let event = EventName::new(self.event).map_err(body_error)?;
        let mut builder = Message::to(recipient, event, Bytes::copy_from_slice(self.contents.payload.0))
            .id(MessageId::from_u128(self.id))
            .priority(self.priority)
            .durability(self.durability);
        if let Some(sender) = self.sender {
            builder = builder.sender(UserId::new(sender.0).map_err(body_error)?);
        }
        if let Some(key) = self.ordering_key {
            builder = builder.ordering_key(OrderingKey::new(key.0).map_err(body_error)?);
        }
        if let Some(ttl) = self.ttl_ms {
            builder = builder.ttl(core::time::Duration::from_millis(ttl));
        }
        if let Some(text) = self.traceparent {
            builder = builder.traceparent(text);
        }
        for (name, value) in self.contents.headers.0 {
            builder = builder.header(name, Bytes::copy_from_slice(value.0));
        }
        Ok(Accept { message: builder.build()?, at: self.at, origin: self.origin, moved })
    }
}

struct HeadersIn<'a>(Vec<(&'a str, Blob<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for HeadersIn<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(HeadersVisitor).map(Self)
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = Vec<(&'de str, Blob<'de>)>;

    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "at most {MAX_HEADERS} headers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let count = list.size_hint().unwrap_or(0);
        if count > MAX_HEADERS {
            return Err(A::Error::invalid_length(count, &self));
        }
        let mut headers = Vec::with_capacity(count);
        while let Some(header) = list.next_element()? {
            headers.push(header);
        }
        Ok(headers)
    }
}

/// Little-endian fields, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.take().map(u128::from_le_bytes)
    }
}

#[cfg(test)]
mod tests;
