//! The records of one commit. A message to many is written once: an acceptance that says what the one before it says is
//! a record of its own kind, which names the recipient and how much later it was accepted.
//!
//! # Invariants
//! - The first acceptance of a commit is always written in full, so that commits can be joined into groups as they are:
//!   nothing ever leans on a record of another commit.
//! - What is damaged takes along what leans on it, and nothing leans on anything before the damage: it may have been an
//!   acceptance itself.
//! - What leans on another record shares its payload and its headers. It has nothing of its own to seal; when the one
//!   before it cannot be opened for want of a key, neither can it, and it is no more damaged than that one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Blob, Cipher, CodecError, KeyMark, LIKE, body_error, check_version, decode_borrowed,
    decode_plain_or_sealed, device, encode_kind, with_len,
};
use crate::error::KeyError;
use crate::id::UserId;
use crate::record::{Accept, Record};
use crate::time::Timestamp;

/// The body of a record that leans on the acceptance before it.
#[derive(Serialize, Deserialize)]
struct Like<'a> {
    #[serde(borrow)]
    recipient: Blob<'a>,
    /// Milliseconds behind the one before it, wrapping.
    later: u64,
}

/// Appends the records of one commit, each as `len · kind · version · body`.
pub fn encode_records<'a>(records: impl IntoIterator<Item = &'a Record>, out: &mut Vec<u8>) {
    encode(records, &Cipher::plain(), out);
}

pub(super) fn encode<'a>(records: impl IntoIterator<Item = &'a Record>, cipher: &Cipher, out: &mut Vec<u8>) {
    let mut before: Option<&Accept> = None;
    for record in records {
        let Record::Accept(accept) = record else {
            cipher.encode_record(record, out);
            continue;
        };
        match before.filter(|before| accept.is_shared_with(before)) {
            Some(before) => {
                let later = accept.at.as_millis().wrapping_sub(before.at.as_millis());
                let like = Like { recipient: Blob(accept.message.recipient().as_bytes()), later };
                with_len(out, |out| {
                    device::append(accept, out);
                    encode_kind(LIKE, &like, out);
                });
            }
            None => cipher.encode_record(record, out),
        }
        before = Some(accept);
    }
}

/// The acceptance that a record may lean on.
#[derive(Clone, Debug, Default)]
pub(super) enum Before {
    /// There is none, or it is damaged.
    #[default]
    Nothing,
    /// This one, and what it is sealed with.
    Accept(Arc<Accept>, Option<KeyMark>),
    /// One whose key is missing.
    Locked(KeyError),
}

/// A record, which may lean on the acceptance before it, and what it, or that one, is sealed with.
pub(super) fn decode_next(
    bytes: &[u8],
    cipher: &Cipher,
    before: &mut Before,
) -> Result<(Record, Option<KeyMark>), CodecError> {
    let (for_device, leaning) = match device::split(bytes) {
        Ok(split) => split,
        Err(error) => {
            *before = Before::Nothing;
            return Err(error);
        }
    };
    let read = match (leaning, &*before) {
        ([LIKE, version, body @ ..], Before::Accept(base, key)) => check_version(LIKE, *version)
            .and_then(|()| device::put(decode_like(body, base)?, for_device))
            .map(|accept| (Record::Accept(Arc::new(accept)), *key)),
        ([LIKE, version, ..], Before::Locked(error)) => {
            check_version(LIKE, *version).and(Err(CodecError::Sealed(*error)))
        }
        _ => decode_plain_or_sealed(bytes, cipher, None),
    };
    match &read {
        Ok((Record::Accept(accept), key)) => *before = Before::Accept(Arc::clone(accept), *key),
        Ok(_) => {}
        Err(CodecError::Sealed(error)) => *before = Before::Locked(*error),
        Err(_) => *before = Before::Nothing,
    }
    read
}

fn decode_like(body: &[u8], base: &Accept) -> Result<Accept, CodecError> {
    let like: Like<'_> = decode_borrowed(body)?;
    let recipient = UserId::new(like.recipient.0).map_err(body_error)?;
    let at = Timestamp::from_millis(base.at.as_millis().wrapping_add(like.later));
    Ok(base.for_recipient(recipient, at, None))
}

#[cfg(test)]
mod tests;
