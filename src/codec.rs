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

mod fields;
mod group;
mod ids;
mod rows;
mod varint;

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::InvalidMessage;
use crate::event::EventName;
use crate::id::{CollapseKey, MessageId, OrderingKey, UserId};
use crate::message::{Durability, MAX_HEADERS, Message, MessageBuilder, Priority};
use crate::record::{Accept, Admission, Attempt, Burial, End, Exposed, Floor, Origin, Record, Told};
use crate::status::EndReason;
use crate::time::Timestamp;

pub(crate) use fields::Fields;
pub use group::encode_records;
pub use ids::{DedupRows, MAX_DEDUP_BYTES, decode_dedup, encode_dedup};
pub use rows::{decode_row, encode_row};
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
/// As the acceptance before it in the same group, for somebody else: see [`encode_records`].
const LIKE: u8 = 25;
/// That a receiver was told of a gap.
const TOLD: u8 = 22;

/// Appends `len · kind · version · body` to `out`.
pub fn encode_record(record: &Record, out: &mut Vec<u8>) {
    with_len(out, |out| encode_bare(record, out));
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
fn encode_bare(record: &Record, out: &mut Vec<u8>) {
    match record {
        Record::Accept(accept) => encode_accept(accept, out),
        Record::End(end) => encode_kind(END, end, out),
        Record::Attempt(attempt) => encode_kind(ATTEMPT, attempt, out),
        Record::Exposed(exposed) => encode_kind(EXPOSED, exposed, out),
        Record::Floor(floor) => encode_kind(FLOOR, floor, out),
        Record::Told(told) => encode_kind(TOLD, told, out),
    }
}

fn encode_kind(kind: u8, body: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind, RECORD_VERSION]);
    encode_value(body, out);
}

/// Appends an accepted message as `kind · version · body`, without a length.
pub fn encode_accept(accept: &Accept, out: &mut Vec<u8>) {
    out.reserve(accept.message.payload().len().saturating_add(128));
    let body = AcceptOut::of(accept);
    let message = &accept.message;
    if let Some(key) = message.collapse_key() {
        let more = (Blob(key.as_bytes()), message.version(), message.not_before(), accept.admission);
        return encode_kind(COLLAPSING, &(body, more), out);
    }
    match (accept.admission, message.not_before()) {
        (Admission::Buried(burial), _) => encode_kind(BURIED, &(body, burial), out),
        (admission, Some(at)) => encode_kind(SCHEDULED, &(body, at, admission), out),
        (Admission::New, None) => encode_kind(ACCEPT, &body, out),
        (Admission::Moved, None) => encode_kind(MOVED, &body, out),
        (Admission::Requeued { possibly_delivered }, None) => {
            encode_kind(REQUEUED, &(body, possibly_delivered), out);
        }
    }
}

/// What [`encode_accept`] wrote.
///
/// # Errors
/// [`CodecError`]; also when the bytes are another kind of record.
pub fn decode_accept(bytes: &[u8]) -> Result<Accept, CodecError> {
    match decode_bare(bytes)? {
        Record::Accept(accept) => {
            Ok(std::sync::Arc::try_unwrap(accept).unwrap_or_else(|shared| (*shared).clone()))
        }
        other => {
            Err(CodecError::Body(format!("not an accepted message but a record about {}", other.user())))
        }
    }
}

/// The records of a group: `count` of them, and nothing else. Ends after the first error that hides where the next
/// record starts; a record that is merely damaged itself is one `Err` in its place, and so is each that leans on it.
#[must_use]
pub fn decode_records(count: u32, bytes: &[u8]) -> Records<'_> {
    Records { left: count, bytes, before: None }
}

/// Iterator of [`decode_records`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    left: u32,
    bytes: &'a [u8],
    /// The acceptance that the next one may lean on.
    before: Option<std::sync::Arc<Accept>>,
}

impl Records<'_> {
    fn take(&mut self) -> Result<Record, CodecError> {
        let truncated = |needed| CodecError::Truncated { bytes: self.bytes.len(), needed };
        let (len, rest) = self.bytes.split_first_chunk::<4>().ok_or(truncated(4))?;
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let (body, rest) = rest.split_at_checked(len).ok_or(truncated(len.saturating_add(4)))?;
        self.bytes = rest;
        self.left = self.left.saturating_sub(1);
        group::decode_next(body, &mut self.before)
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
        let record = self.take();
        if self.left == before {
            (self.left, self.bytes) = (0, &[]);
        }
        Some(record)
    }
}

fn decode_bare(bytes: &[u8]) -> Result<Record, CodecError> {
    let truncated = CodecError::Truncated { bytes: bytes.len(), needed: 2 };
    let ([kind, version], body) = bytes.split_first_chunk::<2>().ok_or(truncated)?;
    let kind = *kind;
    if !matches!(kind, ACCEPT..=FLOOR | MOVED | COLLAPSING | SCHEDULED | TOLD..=LIKE) {
        return Err(CodecError::UnknownKind { kind });
    }
    check_version(kind, *version)?;
    if kind == LIKE {
        return Err(CodecError::Body("it leans on a message that is not there".to_owned()));
    }
    let accept = |body: AcceptIn<'_>, admission, not_before| {
        body.build(admission, not_before, None).map(|accept| Record::Accept(std::sync::Arc::new(accept)))
    };
    Ok(match kind {
        ACCEPT => accept(decode_borrowed(body)?, Admission::New, None)?,
        MOVED => accept(decode_borrowed(body)?, Admission::Moved, None)?,
        REQUEUED => {
            let (body, possibly_delivered) = decode_borrowed(body)?;
            accept(body, Admission::Requeued { possibly_delivered }, None)?
        }
        COLLAPSING => {
            let (body, (key, version, at, admission)): (AcceptIn<'_>, Collapsing<'_>) =
                decode_borrowed(body)?;
            check_schedule(admission, at)?;
            Record::Accept(std::sync::Arc::new(body.build(admission, at, Some((key, version)))?))
        }
        SCHEDULED => {
            let (body, at, admission) = decode_borrowed(body)?;
            check_schedule(admission, Some(at))?;
            accept(body, admission, Some(at))?
        }
        BURIED => {
            let (body, burial): (_, Burial) = decode_borrowed(body)?;
            if !matches!(burial.reason, EndReason::Dead | EndReason::Rejected) {
                return Err(CodecError::Body(format!(
                    "a dead letter that ended as {}",
                    burial.reason.as_str()
                )));
            }
            accept(body, Admission::Buried(burial), None)?
        }
        END => Record::End(decode_borrowed::<End>(body)?),
        ATTEMPT => Record::Attempt(decode_borrowed::<Attempt>(body)?),
        EXPOSED => Record::Exposed(decode_borrowed::<Exposed>(body)?),
        TOLD => Record::Told(decode_borrowed::<Told>(body)?),
        _ => Record::Floor(decode_borrowed::<Floor>(body)?),
    })
}

/// Only what is new or was moved can be scheduled.
fn check_schedule(admission: Admission, at: Option<Timestamp>) -> Result<(), CodecError> {
    match at.is_none() || matches!(admission, Admission::New | Admission::Moved) {
        true => Ok(()),
        false => Err(CodecError::Body("it was scheduled and is not".to_owned())),
    }
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

/// What [`COLLAPSING`] says besides.
type Collapsing<'a> = (Blob<'a>, Option<u64>, Option<Timestamp>, Admission);

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
    headers: HeadersOut<'a>,
    payload: Blob<'a>,
    at: Timestamp,
    origin: Option<Origin>,
}

impl<'a> AcceptOut<'a> {
    fn of(accept: &'a Accept) -> Self {
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
            headers: HeadersOut(message),
            payload: Blob(message.payload()),
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

/// An accepted message as it is read, borrowed from the bytes.
#[derive(Deserialize)]
struct AcceptIn<'a> {
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
    #[serde(borrow)]
    headers: HeadersIn<'a>,
    #[serde(borrow)]
    payload: Blob<'a>,
    at: Timestamp,
    origin: Option<Origin>,
}

impl AcceptIn<'_> {
    fn build(
        self,
        admission: Admission,
        not_before: Option<Timestamp>,
        collapse: Option<(Blob<'_>, Option<u64>)>,
    ) -> Result<Accept, CodecError> {
        let recipient = UserId::new(self.recipient.0).map_err(body_error)?;
        let event = EventName::new(self.event).map_err(body_error)?;
        let mut builder = Message::to(recipient, event, Bytes::copy_from_slice(self.payload.0))
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
        if let Some(at) = not_before {
            builder = builder.not_before(at);
        }
        if let Some((key, version)) = collapse {
            builder = builder.collapse_key(CollapseKey::new(key.0).map_err(body_error)?);
            builder = version.into_iter().fold(builder, MessageBuilder::version);
        }
        for (name, value) in self.headers.0 {
            builder = builder.header(name, Bytes::copy_from_slice(value.0));
        }
        Ok(Accept { message: builder.build()?, at: self.at, origin: self.origin, admission })
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

#[cfg(test)]
mod tests;
