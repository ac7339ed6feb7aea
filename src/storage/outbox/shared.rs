//! What is said to many: one body in a run, which entries lean on.
//!
//! A shared body belongs to its run, as chunks do: it is there before the table names the run, is taken over by a merge
//! as long as an entry that lives leans on it, and goes with the run. It is the acceptance of one of its messages, as the
//! record codec writes it, with its length before it, in parts of one value each. An entry that leans on it says how far
//! its place is from the body's, and how much later it was accepted.
//!
//! Where messages are sealed, the body is, once for all who lean on it. Its seal is bound to its place and its message.
//!
//! What shares a body shares its payload in memory, in one page and while one run is read.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::chunk::{Entry, PART_BYTES};
use super::keys::Key;
use super::{OutboxStore, rows};
use crate::codec::{CodecError, KeyMark};
use crate::id::UserId;
use crate::message::MAX_PAYLOAD_BYTES;
use crate::ports::{Store, StoreError};
use crate::record::{Accept, Seq};

/// Smaller payloads are written with each entry: what they would save is what the body's key and frame take.
pub(super) const MIN_SHARED_BYTES: usize = 128;
/// The length before a body.
const LEN_BYTES: usize = 4;
/// Bodies that are kept while others are read.
const MAX_KEPT: usize = 16;
/// Bytes of payloads among them; one is kept however large it is.
const MAX_KEPT_BYTES: usize = 1 << 20;
/// An entry that leans on nothing.
const ALONE: u32 = u32::MAX;

/// Which of the entries that settle together share a body.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    /// By entry: the first one of those that say the same. Empty when nothing is shared.
    first: Vec<u32>,
}

impl Sharing {
    /// Looks for entries that share their payload in memory and say the same. A payload that nobody else holds is not
    /// looked at twice, so that settling what is sent one by one costs what it did.
    pub(super) fn among(entries: &[(Seq, Arc<Accept>)]) -> Self {
        let mut known: HashMap<(*const u8, u128), u32> = HashMap::new();
        let mut first = Vec::new();
        for (index, (_, accept)) in (0_u32..).zip(entries) {
            let payload = accept.message.payload();
            if payload.len() < MIN_SHARED_BYTES || payload.is_unique() {
                continue;
            }
            let base = *known.entry((payload.as_ptr(), accept.message.id().as_u128())).or_insert(index);
            let same = |(_, other): &(Seq, Arc<Accept>)| {
                accept.is_shared_with(other) && accept.is_spread_with(other)
            };
            if base == index || !entries.get(base as usize).is_some_and(same) {
                continue;
            }
            first.resize(entries.len(), ALONE);
            for of in [base, index] {
                if let Some(place) = first.get_mut(of as usize) {
                    *place = base;
                }
            }
        }
        Self { first }
    }

    /// The entry whose acceptance stands for what this one says, if it is shared.
    pub(super) fn base(&self, index: u32) -> Option<u32> {
        self.first.get(index as usize).copied().filter(|base| *base != ALONE)
    }
}

/// A body with its length before it, in parts.
pub(super) fn parts(body: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    let framed = [&len[..], body].concat();
    let count = framed.len().div_ceil(PART_BYTES);
    (0..count).map(move |n| {
        let end = framed.len().min((n + 1) * PART_BYTES);
        framed.get(n * PART_BYTES..end).unwrap_or_default().to_vec()
    })
}

/// The bytes of a shared body.
pub(super) fn read(store: &dyn Store, run: u64, seq: Seq) -> Result<Vec<u8>, StoreError> {
    let part = |part| {
        let key = Key::Shared { run, seq, part }.encode();
        store.read(&key)?.ok_or_else(|| rows::damaged(&key, "it is missing"))
    };
    let wrong =
        || rows::damaged(&Key::Shared { run, seq, part: 0 }.encode(), "its parts are of another length");
    let head = part(0)?;
    let (len, share) = head.split_first_chunk::<LEN_BYTES>().ok_or_else(wrong)?;
    let len = u32::from_le_bytes(*len) as usize;
    if len > MAX_PAYLOAD_BYTES.saturating_mul(2) {
        return Err(wrong());
    }
    let mut body = share.to_vec();
    for number in 1..(LEN_BYTES + len).div_ceil(PART_BYTES) {
        body.extend_from_slice(&part(u32::try_from(number).unwrap_or(u32::MAX))?);
    }
    if body.len() == len { Ok(body) } else { Err(wrong()) }
}

/// A body and what it is sealed with, or what is wrong with it.
pub(super) type Found = Result<(Arc<Accept>, Option<KeyMark>), String>;

/// Bodies that were read lately: of those who lean on one, most come one after the other.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    kept: VecDeque<((u64, Seq), Found)>,
    bytes: usize,
}

impl Bodies {
    /// What an entry of a run says that leans on a shared body, and what that is sealed with.
    pub(super) fn message_of(
        &mut self,
        outbox: &OutboxStore,
        run: u64,
        entry: &Entry<'_>,
        later: u64,
        seq: Seq,
    ) -> Result<(Accept, Option<KeyMark>), StoreError> {
        let key = || Key::Shared { run, seq, part: 0 }.encode();
        let (base, sealed) = self.find(outbox, run, seq)?.map_err(|reason| rows::damaged(&key(), &reason))?;
        let user = UserId::new(entry.user).map_err(|error| rows::damaged(&key(), &error.to_string()))?;
        let at = base.at.as_millis().wrapping_add(later);
        // A lane says for which device; a dead letter shares with those for the same one only.
        let device = match entry.lane.slot() {
            Some(slot) => base.device.map(|device| device.for_slot(slot)),
            None => base.device,
        };
        Ok((base.for_recipient(user, crate::time::Timestamp::from_millis(at), device), sealed))
    }

    /// A body, or what is wrong with it. One whose key is missing is not damaged, and is not kept.
    pub(super) fn find(&mut self, outbox: &OutboxStore, run: u64, seq: Seq) -> Result<Found, StoreError> {
        if let Some((_, found)) = self.kept.iter().find(|(key, _)| *key == (run, seq)) {
            return Ok(found.clone());
        }
        let found = match read(outbox.dyn_store(), run, seq) {
            Ok(body) => match outbox.cipher().open_shared(&body, seq) {
                Ok((accept, sealed)) => Ok((Arc::new(accept), sealed)),
                Err(CodecError::Sealed(error)) => return Err(error.into()),
                Err(error) => Err(error.to_string()),
            },
            Err(StoreError::Damaged { reason, .. }) => Err(reason),
            Err(error) => return Err(error),
        };
        self.bytes += payload(&found);
        self.kept.push_back(((run, seq), found.clone()));
        while self.kept.len() > 1 && (self.kept.len() > MAX_KEPT || self.bytes > MAX_KEPT_BYTES) {
            let oldest = self.kept.pop_front();
            self.bytes -= oldest.map_or(0, |(_, found)| payload(&found));
        }
        Ok(found)
    }
}

fn payload(found: &Found) -> usize {
    found.as_ref().map_or(0, |(accept, _)| accept.message.payload().len())
}

/// What an import has read lately, so that what was said to many is written once again.
#[derive(Debug, Default)]
pub(super) struct Twins {
    seen: VecDeque<Seen>,
    bytes: usize,
}

#[derive(Debug)]
struct Seen {
    accept: Accept,
    /// The place of its shared body, once it has one.
    place: Option<Seq>,
}

/// What an import does with an entry.
pub(super) enum Twin {
    /// Writes it by itself.
    None,
    /// Writes a shared body at its place, for this one and for what is still to come.
    First,
    /// Lets it lean on the body at this place, which was accepted then.
    Of(Seq, crate::time::Timestamp),
}

impl Twins {
    /// What an entry says was said before, if it was read lately.
    pub(super) fn of(&mut self, seq: Seq, accept: &Accept) -> Twin {
        let message = &accept.message;
        let bytes = message.payload().len();
        if bytes < MIN_SHARED_BYTES {
            return Twin::None;
        }
        let known = self.seen.iter_mut().find(|seen| {
            let other = &seen.accept;
            other.message.id() == message.id()
                && accept.is_spread_with(other)
                && accept.for_recipient(other.message.recipient().clone(), other.at, other.device) == *other
        });
        if let Some(seen) = known {
            if let Some(place) = seen.place {
                return Twin::Of(place, seen.accept.at);
            }
            (seen.place, seen.accept) = (Some(seq), accept.clone());
            return Twin::First;
        }
        self.bytes += bytes;
        self.seen.push_back(Seen { accept: accept.clone(), place: None });
        while self.seen.len() > 1 && (self.seen.len() > MAX_KEPT || self.bytes > MAX_KEPT_BYTES) {
            let oldest = self.seen.pop_front();
            self.bytes -= oldest.map_or(0, |seen| seen.accept.message.payload().len());
        }
        Twin::None
    }
}
