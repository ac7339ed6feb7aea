//! Sealed records: payload and headers of an accepted message as ciphertext, everything else as it is.
//!
//! ```text
//! record    kind + 32 · version u8 · the body of that kind, with one blob in the place of headers and payload
//! blob      key u32 · check u64 · nonce 24 · ciphertext · tag 16                little-endian
//! inside    headers · payload, as the plain record has them
//! ```
//!
//! The ciphertext is bound to the message's sender, recipient and id. What entries of a run share is bound to the place of
//! its message as well, and is no message of its own: neither is taken for the other. Who leans on it is not bound, nor
//! is who leans on a record of the journal: of such a record of its own there is nothing to seal. `check` tells a wrong
//! key, which is nobody's damage, from a seal that was broken.
//!
//! Knows nothing of ciphers and keys: a [`Sealer`] does.

use std::sync::Arc;

use serde::ser::SerializeTuple;
use serde::{Deserialize, Serialize, Serializer};

use super::accept::{self, HeadersIn, HeadersOut};
use super::group::{self, Before};
use super::{
    ACCEPT, BURIED, Blob, COLLAPSING, CodecError, Fields, MOVED, REQUEUED, Records, SCHEDULED, WAITING,
    decode_borrowed, decode_plain_or_sealed, encode_bare, encode_value, with_len,
};
use crate::error::KeyError;
use crate::id::{KeyId, MessageId};
use crate::message::Message;
use crate::record::{Accept, Record, Seq};

/// What is added to the kind of an accepted message when it is sealed.
pub(super) const SEALED: u8 = 32;
/// What stands before the ciphertext.
pub(crate) const HEAD_BYTES: usize = 4 + 8 + NONCE_BYTES;
pub(crate) const NONCE_BYTES: usize = 24;
pub(crate) const TAG_BYTES: usize = 16;

/// The kind that this one is when it is not sealed. Only acceptances that are written in full are sealed.
pub(super) fn plain_of(kind: u8) -> u8 {
    match kind.checked_sub(SEALED) {
        Some(plain @ (ACCEPT | MOVED | COLLAPSING | SCHEDULED | BURIED | REQUEUED | WAITING)) => plain,
        _ => kind,
    }
}

/// Which key something is sealed with: its number, and what tells it from another key of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct KeyMark {
    pub(crate) key: KeyId,
    pub(crate) check: u64,
}

impl KeyMark {
    /// The mark in front of a sealed blob.
    pub(crate) fn of(sealed: &[u8]) -> Option<Self> {
        let mut fields = Fields(sealed);
        Some(Self { key: KeyId(fields.u32()?), check: fields.u64()? })
    }
}

/// Why a blob was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unopened {
    /// Its key is missing: it may be whole.
    Key(KeyError),
    /// It is not what was sealed, or belongs to something else.
    Broken,
}

impl From<Unopened> for CodecError {
    fn from(why: Unopened) -> Self {
        match why {
            Unopened::Key(error) => Self::Sealed(error),
            Unopened::Broken => Self::Body("its seal is broken, or another message's".to_owned()),
        }
    }
}

/// Seals and opens, with keys.
pub(crate) trait Sealer: Send + Sync {
    /// Turns `[HEAD_BYTES of room · plain]` into a sealed blob, bound to `about`. Returns the key.
    fn seal(&self, about: &[u8], blob: &mut Vec<u8>) -> KeyMark;

    /// What is inside of a blob.
    fn open(&self, about: &[u8], blob: &[u8]) -> Result<Vec<u8>, Unopened>;

    /// The key that would seal now.
    fn current(&self) -> KeyMark;

    /// Whether this very key is there.
    fn knows(&self, mark: KeyMark) -> Result<(), KeyError>;
}

/// What writes payloads and headers, and reads them again: plain, or sealed with the keys of a
/// `KeyProvider` (feature `encryption`). Clones share them.
#[derive(Clone, Default)]
pub struct Cipher(Option<Arc<dyn Sealer>>);

impl core::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(if self.seals() { "Cipher(sealed)" } else { "Cipher(plain)" })
    }
}

impl Cipher {
    /// Writes as it is, and reads nothing that is sealed.
    #[must_use]
    pub fn plain() -> Self {
        Self(None)
    }

    #[cfg(feature = "encryption")]
    pub(crate) fn sealing(sealer: Arc<dyn Sealer>) -> Self {
        Self(Some(sealer))
    }

    /// Whether what it writes is sealed.
    #[must_use]
    pub fn seals(&self) -> bool {
        self.0.is_some()
    }

    /// As [`encode_record`](super::encode_record).
    pub fn encode_record(&self, record: &Record, out: &mut Vec<u8>) {
        with_len(out, |out| encode_bare(record, self, out));
    }

    /// As [`encode_records`](super::encode_records).
    pub fn encode_records<'a>(&self, records: impl IntoIterator<Item = &'a Record>, out: &mut Vec<u8>) {
        group::encode(records, self, out);
    }

    /// As [`encode_accept`](super::encode_accept).
    pub fn encode_accept(&self, accept: &Accept, out: &mut Vec<u8>) {
        accept::append(accept, self, None, out);
    }

    /// As [`decode_accept`](super::decode_accept).
    ///
    /// # Errors
    /// Also [`CodecError::Sealed`].
    pub fn decode_accept(&self, bytes: &[u8]) -> Result<Accept, CodecError> {
        self.open_accept(bytes).map(|(accept, _)| accept)
    }

    /// As [`decode_records`](super::decode_records). A record that cannot be opened is one `Err` in its place, and so is
    /// each that leans on it.
    #[must_use]
    pub fn decode_records<'a>(&self, count: u32, bytes: &'a [u8]) -> Records<'a> {
        Records { left: count, bytes, cipher: self.clone(), before: Before::Nothing, key: None }
    }

    /// An accepted message, and what it is sealed with.
    pub(crate) fn open_accept(&self, bytes: &[u8]) -> Result<(Accept, Option<KeyMark>), CodecError> {
        self.open_alone(bytes, None)
    }

    /// Appends what many messages share: the acceptance of the one at this place.
    pub(crate) fn encode_shared(&self, accept: &Accept, place: Seq, out: &mut Vec<u8>) {
        accept::append(accept, self, Some(place), out);
    }

    /// What [`Cipher::encode_shared`] wrote for this place, and what it is sealed with.
    pub(crate) fn open_shared(
        &self,
        bytes: &[u8],
        place: Seq,
    ) -> Result<(Accept, Option<KeyMark>), CodecError> {
        self.open_alone(bytes, Some(place))
    }

    fn open_alone(&self, bytes: &[u8], shared: Option<Seq>) -> Result<(Accept, Option<KeyMark>), CodecError> {
        match decode_plain_or_sealed(bytes, self, shared)? {
            (Record::Accept(accept), key) => {
                Ok((Arc::try_unwrap(accept).unwrap_or_else(|shared| (*shared).clone()), key))
            }
            (other, _) => {
                Err(CodecError::Body(format!("not an accepted message but a record about {}", other.user())))
            }
        }
    }

    /// The key that seals now; none when nothing is sealed.
    pub(crate) fn current(&self) -> Option<KeyMark> {
        self.0.as_ref().map(|sealer| sealer.current())
    }

    /// Whether what is sealed with this key can be read.
    pub(crate) fn knows(&self, mark: KeyMark) -> Result<(), KeyError> {
        match &self.0 {
            Some(sealer) => sealer.knows(mark),
            None => Err(KeyError::NoKeys { key: mark.key }),
        }
    }

    /// Seals something that is no message. None when nothing is sealed.
    pub(crate) fn seal(&self, about: &[u8], plain: &[u8]) -> Option<(Vec<u8>, KeyMark)> {
        let sealer = self.0.as_ref()?;
        let mut blob = Vec::with_capacity(HEAD_BYTES + plain.len() + TAG_BYTES);
        blob.resize(HEAD_BYTES, 0);
        blob.extend_from_slice(plain);
        let mark = sealer.seal(about, &mut blob);
        Some((blob, mark))
    }

    /// What [`Cipher::seal`] was given.
    pub(crate) fn open(&self, about: &[u8], blob: &[u8]) -> Result<(Vec<u8>, KeyMark), Unopened> {
        let mark = KeyMark::of(blob).ok_or(Unopened::Broken)?;
        match &self.0 {
            Some(sealer) => Ok((sealer.open(about, blob)?, mark)),
            None => Err(Unopened::Key(KeyError::NoKeys { key: mark.key })),
        }
    }

    /// Headers and payload of a message, sealed; of one that many share, for its place. None when nothing is sealed.
    pub(super) fn seal_contents(&self, message: &Message, shared: Option<Seq>) -> Option<Vec<u8>> {
        let sealer = self.0.as_ref()?;
        // Room for all of it at once, so that no plain copy is left behind in memory that was grown out of. (The bytes of
        // headers are within the message's cost; each of their two lengths takes at most three.)
        let lengths = 16 + 6 * message.headers().count();
        let room = usize::try_from(message.cost()).unwrap_or(0).saturating_add(lengths);
        let mut blob = Vec::with_capacity(HEAD_BYTES + room + TAG_BYTES);
        blob.resize(HEAD_BYTES, 0);
        let room = blob.capacity();
        encode_value(&ContentsOut::Plain(message), &mut blob);
        debug_assert_eq!(blob.capacity(), room, "the room was too small");
        let sender = message.sender().map(|id| id.as_bytes());
        let about = about(sender, message.recipient().as_bytes(), message.id(), shared);
        sealer.seal(&about, &mut blob);
        Some(blob)
    }

    /// What [`Cipher::seal_contents`] was given, and the key.
    pub(super) fn open_contents(
        &self,
        blob: &[u8],
        sender: Option<&[u8]>,
        recipient: &[u8],
        id: MessageId,
        shared: Option<Seq>,
    ) -> Result<(Vec<u8>, KeyMark), CodecError> {
        Ok(self.open(&about(sender, recipient, id, shared), blob)?)
    }
}

/// What a message's seal is bound to. Lengths stand before what has one, so that nothing can be shifted; no id is empty.
fn about(sender: Option<&[u8]>, recipient: &[u8], id: MessageId, shared: Option<Seq>) -> Vec<u8> {
    let mut about = if shared.is_some() { b"lastmile shared 1" } else { &b"lastmile message 1"[..] }.to_vec();
    for part in [sender.unwrap_or_default(), recipient] {
        about.extend_from_slice(&(part.len() as u64).to_le_bytes());
        about.extend_from_slice(part);
    }
    about.extend_from_slice(&id.as_u128().to_le_bytes());
    about.extend(shared.into_iter().flat_map(|place| place.get().to_le_bytes()));
    about
}

/// Headers and payload on their way to bytes: two fields, or one blob.
pub(super) enum ContentsOut<'a> {
    Plain(&'a Message),
    Sealed(&'a [u8]),
}

impl Serialize for ContentsOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(message) => {
                let mut fields = serializer.serialize_tuple(2)?;
                fields.serialize_element(&HeadersOut(message))?;
                fields.serialize_element(&Blob(message.payload()))?;
                fields.end()
            }
            Self::Sealed(blob) => Blob(blob).serialize(serializer),
        }
    }
}

/// Headers and payload as they are read.
#[derive(Deserialize)]
pub(super) struct ContentsIn<'a> {
    #[serde(borrow)]
    pub(super) headers: HeadersIn<'a>,
    #[serde(borrow)]
    pub(super) payload: Blob<'a>,
}

impl<'a> ContentsIn<'a> {
    /// What [`Cipher::seal_contents`] sealed, once it is open.
    pub(super) fn of(plain: &'a [u8]) -> Result<Self, CodecError> {
        decode_borrowed(plain)
    }
}
