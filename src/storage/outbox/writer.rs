//! Packs sorted entries and remembered ids into the chunks of a run, and changes into batches.

use std::collections::VecDeque;
use std::sync::Arc;

use super::OutboxStore;
use super::chunk::{Body, Chunk, Entry, MAX_INLINE_BYTES, PART_BYTES};
use super::due::DueLists;
use super::filter::Filter;
use super::keys::{self, Key};
use super::meta::{Known, RunInfo};
use super::rows::Change;
use super::shared;
use crate::codec::{Cipher, DedupChunk, Named};
use crate::digest::Digester;
use crate::id::UserId;
use crate::ports::{Batch, MAX_BATCH_BYTES, MAX_VALUE_BYTES};
use crate::record::{Accept, DedupRow, Seq};
use crate::time::Timestamp;

/// Changes in one batch, at most. A store that writes whole pages writes for each as much as for a large one: in sled, a
/// batch of deletes was over a segment of its file, which a power cut can part.
const MAX_BATCH_CHANGES: usize = 64;

/// Changes that wait for a batch, in order.
#[derive(Debug, Default)]
pub(super) struct Pending {
    changes: VecDeque<Change>,
    bytes: usize,
}

impl Pending {
    pub(super) fn push(&mut self, change: Change) {
        self.bytes += change.bytes();
        self.changes.push_back(change);
    }

    pub(super) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.push(Change::Put(key, value));
    }

    /// Whether there is enough for one batch.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= MAX_BATCH_BYTES || self.changes.len() >= MAX_BATCH_CHANGES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The next batch: as much as one takes.
    pub(super) fn take(&mut self) -> Batch {
        let mut batch = Batch::new();
        while batch.ops().len() < MAX_BATCH_CHANGES
            && let Some(change) = self.changes.pop_front()
        {
            let bytes = change.bytes();
            if !batch.is_empty() && batch.bytes() + bytes > MAX_BATCH_BYTES {
                self.changes.push_front(change);
                break;
            }
            self.bytes = self.bytes.saturating_sub(bytes);
            change.add_to(&mut batch);
        }
        batch
    }
}

/// A run that is being written, in order.
#[derive(Debug)]
pub(super) struct RunWriter {
    pub(super) info: RunInfo,
    chunk: Chunk,
    ids: DedupChunk,
    scratch: Vec<u8>,
    digester: Digester,
    pub(super) cipher: Cipher,
    filter: Filter,
    last_user: Vec<u8>,
    dues: DueLists,
}

impl RunWriter {
    /// A run of this outbox that is written `now`, with room for so many users in its filter.
    pub(super) fn new(info: RunInfo, users: u64, outbox: &OutboxStore, now: Timestamp) -> Self {
        Self::keyed(info, users, outbox.digester(), outbox.cipher().clone(), now)
    }

    /// The same, where another key than the outbox's own makes the digests of users.
    pub(super) fn keyed(
        info: RunInfo,
        users: u64,
        digester: Digester,
        cipher: Cipher,
        now: Timestamp,
    ) -> Self {
        Self {
            info,
            chunk: Chunk::default(),
            ids: DedupChunk::default(),
            scratch: Vec::new(),
            digester,
            cipher,
            filter: Filter::with_room(users),
            last_user: Vec::new(),
            dues: DueLists::new(now),
        }
    }

    /// Adds an entry; they come sorted by user, lane and place.
    pub(super) fn entry(&mut self, entry: &Entry<'_>, out: &mut Pending) {
        if !self.chunk.push(entry) {
            self.flush_chunk(out);
            self.chunk.push(entry);
        }
        if self.last_user != entry.user {
            self.last_user.clear();
            self.last_user.extend_from_slice(entry.user);
            self.info.users += 1;
            self.filter.insert(self.digester.user(UserId::new(entry.user).ok().as_ref()));
        }
        self.dues.add(entry.user, entry.due, &mut self.info, out);
        self.info.entries += 1;
        self.info.stubs += u64::from(!entry.body.parts().is_empty());
    }

    /// Adds an accepted message that leans on the shared body at this place, which was accepted at that time.
    pub(super) fn leaning(&mut self, seq: Seq, accept: &Accept, base: (Seq, Timestamp), out: &mut Pending) {
        let later = accept.at.as_millis().wrapping_sub(base.1.as_millis());
        self.add(seq, accept, Body::Shared { place: base.0, later }, out);
    }

    /// Adds a body that entries share: the acceptance of the message at this place.
    pub(super) fn share(&mut self, seq: Seq, accept: &Accept, out: &mut Pending) {
        let mut bytes = core::mem::take(&mut self.scratch);
        bytes.clear();
        self.info.keys.add(self.cipher.current());
        self.cipher.encode_shared(accept, seq, &mut bytes);
        self.shared(seq, &bytes, out);
        self.scratch = bytes;
    }

    /// Adds such a body as it was written before, for the same place.
    pub(super) fn shared(&mut self, seq: Seq, body: &[u8], out: &mut Pending) {
        for (part, value) in (0_u32..).zip(shared::parts(body)) {
            self.info.bytes += value.len() as u64;
            out.put(Key::Shared { run: self.info.number, seq, part }.encode(), value);
        }
        self.info.shared += 1;
    }

    /// Adds an accepted message; the body of a large one was written by [`write_body`].
    pub(super) fn accept(&mut self, seq: Seq, accept: &Accept, out: &mut Pending) {
        let mut bytes = core::mem::take(&mut self.scratch);
        bytes.clear();
        self.info.keys.add(self.cipher.current());
        self.cipher.encode_accept(accept, &mut bytes);
        let body =
            if bytes.len() > MAX_INLINE_BYTES { Body::stub(bytes.len()) } else { Body::Inline(&bytes) };
        self.add(seq, accept, body, out);
        self.scratch = bytes;
    }

    fn add(&mut self, seq: Seq, accept: &Accept, body: Body<'_>, out: &mut Pending) {
        let message = &accept.message;
        let cost = u32::try_from(message.cost()).unwrap_or(u32::MAX);
        let user = message.recipient().as_bytes();
        let due = accept.due();
        self.entry(&Entry { user, lane: accept.lane(), seq, cost, due, body }, out);
    }

    /// Adds a remembered id, and of which message, where that is known; they come sorted by sender and place.
    pub(super) fn id(&mut self, row: &DedupRow, named: Option<&Named>, out: &mut Pending) {
        if !self.ids.push(row, named, &self.digester, MAX_VALUE_BYTES) {
            self.flush_ids(out);
            self.ids.push(row, named, &self.digester, MAX_VALUE_BYTES);
        }
        self.info.ids += 1;
        self.info.newest_id = self.info.newest_id.max(row.at);
    }

    /// Hands out what is left.
    pub(super) fn finish(&mut self, out: &mut Pending) {
        self.flush_chunk(out);
        self.flush_ids(out);
        self.dues.finish(&mut self.info, out);
    }

    /// Hands out the filter, once, when everything else is.
    pub(super) fn finish_filter(&mut self, out: &mut Pending) {
        if self.info.entries == 0 || self.info.filter_parts > 0 {
            return;
        }
        self.filter.fold(self.info.users);
        for value in self.filter.parts() {
            self.info.bytes += value.len() as u64;
            out.put(Key::Filter { run: self.info.number, part: self.info.filter_parts }.encode(), value);
            self.info.filter_parts += 1;
        }
        self.info.filter = Known(Some(Arc::new(core::mem::replace(&mut self.filter, Filter::with_room(0)))));
    }

    fn flush_chunk(&mut self, out: &mut Pending) {
        let last: Option<UserId> = self.chunk.last_user();
        let Some((user, lane, seq, value)) = self.chunk.take() else { return };
        self.info.bytes += value.len() as u64;
        self.info.chunks += 1;
        out.put(keys::chunk(self.info.number, &user, lane, seq), value);
        self.info.first_user.get_or_insert(user);
        self.info.last_user = last;
    }

    fn flush_ids(&mut self, out: &mut Pending) {
        let Some((sender, seq, value)) = self.ids.take() else { return };
        self.info.bytes += value.len() as u64;
        self.info.id_chunks += 1;
        out.put(keys::dedup(self.info.number, sender, seq), value);
    }
}

/// Writes the parts of a large message's body; a small one has none.
pub(super) fn write_body(
    seq: Seq,
    accept: &Accept,
    cipher: &Cipher,
    scratch: &mut Vec<u8>,
    out: &mut Pending,
) {
    scratch.clear();
    cipher.encode_accept(accept, scratch);
    if scratch.len() > MAX_INLINE_BYTES {
        put_body(seq, &Body::stub(scratch.len()), scratch, out);
    }
}

/// Writes an encoded body in the parts that its stub names.
pub(super) fn put_body(seq: Seq, stub: &Body<'_>, body: &[u8], out: &mut Pending) {
    for (part, share) in stub.parts().zip(body.chunks(PART_BYTES)) {
        out.put(Key::Body { seq, part }.encode(), share.to_vec());
    }
}

/// Whether a message's body may have to be written in parts: its encoding is at most this much longer than its cost.
pub(super) fn may_be_large(accept: &Accept) -> bool {
    /// Three more ids of 255 bytes, an id, times, a trace, an origin, a version, the lengths of 32 headers and a seal.
    const OVERHEAD: u64 = 1280;
    accept.message.cost() + OVERHEAD > MAX_INLINE_BYTES as u64
}
