//! The records of one commit. A message to many is written once: an acceptance that says what the one before it says is
//! a record of its own kind, which names the recipient and how much later it was accepted.
//!
//! # Invariants
//! - The first acceptance of a commit is always written in full, so that commits can be joined into groups as they are:
//!   nothing ever leans on a record of another commit.
//! - What is damaged takes along what leans on it, and nothing leans on anything before the damage: it may have been an
//!   acceptance itself.
//! - What leans on another record shares its payload and its headers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Blob, CodecError, LIKE, body_error, check_version, decode_bare, decode_borrowed, encode_kind,
    encode_record, with_len,
};
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
    let mut before: Option<&Accept> = None;
    for record in records {
        let Record::Accept(accept) = record else {
            encode_record(record, out);
            continue;
        };
        match before.filter(|before| accept.is_shared_with(before)) {
            Some(before) => {
                let later = accept.at.as_millis().wrapping_sub(before.at.as_millis());
                let like = Like { recipient: Blob(accept.message.recipient().as_bytes()), later };
                with_len(out, |out| encode_kind(LIKE, &like, out));
            }
            None => encode_record(record, out),
        }
        before = Some(accept);
    }
}

/// A record, which may lean on the acceptance before it.
pub(super) fn decode_next(bytes: &[u8], before: &mut Option<Arc<Accept>>) -> Result<Record, CodecError> {
    let record = match (bytes, &*before) {
        ([LIKE, version, body @ ..], Some(base)) => {
            check_version(LIKE, *version).and_then(|()| decode_like(body, base))
        }
        _ => decode_bare(bytes),
    };
    match &record {
        Ok(Record::Accept(accept)) => *before = Some(Arc::clone(accept)),
        Ok(_) => {}
        Err(_) => *before = None,
    }
    record
}

fn decode_like(body: &[u8], base: &Accept) -> Result<Record, CodecError> {
    let like: Like<'_> = decode_borrowed(body)?;
    let recipient = UserId::new(like.recipient.0).map_err(body_error)?;
    let at = Timestamp::from_millis(base.at.as_millis().wrapping_add(like.later));
    Ok(Record::Accept(Arc::new(base.for_recipient(recipient, at))))
}

#[cfg(test)]
mod tests;
