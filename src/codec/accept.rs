//! The bytes of an accepted message, of whichever kind, plain or sealed.

use bytes::Bytes;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::seal::{ContentsIn, ContentsOut, SEALED};
use super::{
    ACCEPT, BURIED, Blob, COLLAPSING, Cipher, CodecError, KeyMark, MOVED, REQUEUED, SCHEDULED, WAITING,
    body_error, decode_borrowed, encode_kind,
};
use crate::event::EventName;
use crate::id::{CollapseKey, MessageId, OrderingKey, UserId};
use crate::message::{After, Durability, MAX_HEADERS, Message, MessageBuilder, Priority};
use crate::record::{Accept, Admission, Burial, Origin, Parent, Seq};
use crate::status::EndReason;
use crate::time::Timestamp;

/// Appends an accepted message as `kind · version · body`. What is shared says the place of its body.
pub(super) fn append(accept: &Accept, cipher: &Cipher, shared: Option<Seq>, out: &mut Vec<u8>) {
    let message = &accept.message;
    super::device::append(accept, out);
    match cipher.seal_contents(message, shared) {
        None => {
            out.reserve(message.payload().len().saturating_add(128));
            append_body(accept, 0, ContentsOut::Plain(message), out);
        }
        Some(blob) => {
            out.reserve(blob.len().saturating_add(128));
            append_body(accept, SEALED, ContentsOut::Sealed(&blob), out);
        }
    }
}

fn append_body(accept: &Accept, sealed: u8, contents: ContentsOut<'_>, out: &mut Vec<u8>) {
    let message = &accept.message;
    let body = AcceptOut::of(accept, contents);
    if let Some(key) = message.collapse_key() {
        let more = (Blob(key.as_bytes()), message.version(), message.not_before(), accept.admission);
        return encode_kind(sealed + COLLAPSING, &(body, more), out);
    }
    // What goes on in any other way waits no more.
    if let (Some(after), Admission::New | Admission::Moved) = (message.after(), accept.admission) {
        let parent = accept.parent.unwrap_or(Parent::ENDED);
        let more = (after, parent, message.not_before(), accept.admission);
        return encode_kind(sealed + WAITING, &(body, more), out);
    }
    match (accept.admission, message.not_before()) {
        (Admission::Buried(burial), _) => encode_kind(sealed + BURIED, &(body, burial), out),
        (admission, Some(at)) => encode_kind(sealed + SCHEDULED, &(body, at, admission), out),
        (Admission::New, None) => encode_kind(sealed + ACCEPT, &body, out),
        (Admission::Moved, None) => encode_kind(sealed + MOVED, &body, out),
        (Admission::Requeued { possibly_delivered }, None) => {
            encode_kind(sealed + REQUEUED, &(body, possibly_delivered), out);
        }
    }
}

/// The accepted message of this kind of record, and what it is sealed with.
pub(super) fn decode(
    kind: u8,
    body: &[u8],
    cipher: &Cipher,
    shared: Option<Seq>,
) -> Result<(Accept, Option<KeyMark>), CodecError> {
    match kind.checked_sub(SEALED) {
        None => Ok((Read::<ContentsIn<'_>>::of(kind, body)?.build()?, None)),
        Some(plain) => {
            // What is read here borrows from the record; what is inside of the blob is a copy of its own.
            let read = Read::<Blob<'_>>::of(plain, body)?;
            let (contents, key) = read.body.open(cipher, shared)?;
            Ok((read.with(ContentsIn::of(&contents)?).build()?, Some(key)))
        }
    }
}

/// What the kinds of acceptance say, once they are read.
struct Read<'a, C> {
    body: AcceptIn<'a, C>,
    admission: Admission,
    not_before: Option<Timestamp>,
    collapse: Option<(Blob<'a>, Option<u64>)>,
    waits: Option<(After, Parent)>,
}

impl<'a, C: Deserialize<'a>> Read<'a, C> {
    /// `kind` is that of the plain form.
    fn of(kind: u8, body: &'a [u8]) -> Result<Self, CodecError> {
        let read = |body, admission| Self { body, admission, not_before: None, collapse: None, waits: None };
        Ok(match kind {
            ACCEPT => read(decode_borrowed(body)?, Admission::New),
            MOVED => read(decode_borrowed(body)?, Admission::Moved),
            REQUEUED => {
                let (body, possibly_delivered) = decode_borrowed(body)?;
                read(body, Admission::Requeued { possibly_delivered })
            }
            COLLAPSING => {
                let (body, (key, version, not_before, admission)): (_, Collapsing<'_>) =
                    decode_borrowed(body)?;
                check_schedule(admission, not_before)?;
                Self { not_before, collapse: Some((key, version)), ..read(body, admission) }
            }
            SCHEDULED => {
                let (body, at, admission) = decode_borrowed(body)?;
                check_schedule(admission, Some(at))?;
                Self { not_before: Some(at), ..read(body, admission) }
            }
            WAITING => {
                let (body, (after, parent, not_before, admission)): (_, Waiting) = decode_borrowed(body)?;
                check_waiting(admission)?;
                Self { not_before, waits: Some((after, parent)), ..read(body, admission) }
            }
            BURIED => {
                let (body, burial): (_, Burial) = decode_borrowed(body)?;
                check_burial(burial.reason)?;
                read(body, Admission::Buried(burial))
            }
            kind => return Err(CodecError::UnknownKind { kind }),
        })
    }
}

impl<'a, C> Read<'a, C> {
    fn with<D>(self, contents: D) -> Read<'a, D> {
        let Self { body, admission, not_before, collapse, waits } = self;
        Read { body: body.with(contents), admission, not_before, collapse, waits }
    }
}

impl Read<'_, ContentsIn<'_>> {
    fn build(self) -> Result<Accept, CodecError> {
        let Self { body, admission, not_before, collapse, waits } = self;
        let mut builder = body.builder()?;
        if let Some(at) = not_before {
            builder = builder.not_before(at);
        }
        if let Some((key, version)) = collapse {
            builder = builder.collapse_key(CollapseKey::new(key.0).map_err(body_error)?);
            builder = version.into_iter().fold(builder, MessageBuilder::version);
        }
        if let Some((After { id, otherwise }, _)) = waits {
            builder = builder.after(id, otherwise);
        }
        let (message, parent) = (builder.build()?, waits.map(|(_, parent)| parent));
        Ok(Accept { message, at: body.at, origin: body.origin, admission, parent, device: None })
    }
}

/// Only what is new or was moved can be scheduled.
fn check_schedule(admission: Admission, at: Option<Timestamp>) -> Result<(), CodecError> {
    match at.is_none() || matches!(admission, Admission::New | Admission::Moved) {
        true => Ok(()),
        false => Err(CodecError::Body("it was scheduled and is not".to_owned())),
    }
}

/// Only what is new, was moved or replaced waits.
fn check_waiting(admission: Admission) -> Result<(), CodecError> {
    match admission {
        Admission::New | Admission::Moved => Ok(()),
        _ => Err(CodecError::Body("it waited for another one and does not".to_owned())),
    }
}

/// Only what could not be delivered is a dead letter.
fn check_burial(reason: EndReason) -> Result<(), CodecError> {
    match reason {
        EndReason::Dead | EndReason::Rejected => Ok(()),
        other => Err(CodecError::Body(format!("a dead letter that ended as {}", other.as_str()))),
    }
}

/// What [`COLLAPSING`] says besides.
type Collapsing<'a> = (Blob<'a>, Option<u64>, Option<Timestamp>, Admission);

/// What [`WAITING`] says besides.
type Waiting = (After, Parent, Option<Timestamp>, Admission);

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

/// The headers of a message on their way to bytes.
pub(super) struct HeadersOut<'a>(pub(super) &'a Message);

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
pub(super) struct AcceptIn<'a, C> {
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

impl<'a> AcceptIn<'a, Blob<'a>> {
    /// Headers and payload, and what they are sealed with.
    fn open(&self, cipher: &Cipher, shared: Option<Seq>) -> Result<(Vec<u8>, KeyMark), CodecError> {
        let sender = self.sender.map(|id| id.0);
        cipher.open_contents(self.contents.0, sender, self.recipient.0, MessageId::from_u128(self.id), shared)
    }
}

impl<'a, C> AcceptIn<'a, C> {
    fn with<D>(self, contents: D) -> AcceptIn<'a, D> {
        let Self { id, recipient, event, sender, ordering_key, priority, durability, .. } = self;
        let Self { ttl_ms, traceparent, contents: _, at, origin, .. } = self;
        AcceptIn {
            id,
            recipient,
            event,
            sender,
            ordering_key,
            priority,
            durability,
            ttl_ms,
            traceparent,
            contents,
            at,
            origin,
        }
    }
}

impl AcceptIn<'_, ContentsIn<'_>> {
    fn builder(&self) -> Result<MessageBuilder, CodecError> {
        let recipient = UserId::new(self.recipient.0).map_err(body_error)?;
        let event = EventName::new(self.event).map_err(body_error)?;
        let mut builder = Message::to(recipient, event, Bytes::copy_from_slice(self.contents.payload.0))
            .id(MessageId::from_u128(self.id))
            .priority(self.priority)
            .durability(self.durability);
        if let Some(sender) = &self.sender {
            builder = builder.sender(UserId::new(sender.0).map_err(body_error)?);
        }
        if let Some(key) = &self.ordering_key {
            builder = builder.ordering_key(OrderingKey::new(key.0).map_err(body_error)?);
        }
        if let Some(ttl) = self.ttl_ms {
            builder = builder.ttl(core::time::Duration::from_millis(ttl));
        }
        if let Some(text) = self.traceparent {
            builder = builder.traceparent(text);
        }
        for (name, value) in &self.contents.headers.0 {
            builder = builder.header(*name, Bytes::copy_from_slice(value.0));
        }
        Ok(builder)
    }
}

/// Headers as they are read.
pub(super) struct HeadersIn<'a>(Vec<(&'a str, Blob<'a>)>);

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
