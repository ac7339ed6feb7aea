//! User rows. A row that fits is one value. A larger one is written in parts of a new version first, and then its
//! head is switched over to them, so that a half-written row never hides the old one.
//!
//! ```text
//! head: 1 · row                            the row itself
//!       2 · version u64 · parts u16        where its parts are
//! ```

use super::keys::{self, Key};
use crate::codec::{self, Fields};
use crate::id::UserId;
use crate::ports::{Batch, Flow, MAX_VALUE_BYTES, Store, StoreError};
use crate::record::UserRow;

const INLINE: u8 = 1;
const PARTED: u8 = 2;

/// The row of a user, if there is one.
pub(super) fn read(store: &dyn Store, user: &UserId) -> Result<Option<UserRow>, StoreError> {
    let key = Key::User { user: user.clone() }.encode();
    let Some(mut head) = store.read(&key)? else { return Ok(None) };
    loop {
        let row = open(store, user, &key, &head);
        if row.is_ok() {
            return row.map(Some);
        }
        // Its parts may have been replaced while they were read; then the head has changed.
        match store.read(&key)? {
            Some(newer) if newer != head => head = newer,
            _ => return row.map(Some),
        }
    }
}

/// The row whose head was read.
pub(super) fn open(store: &dyn Store, user: &UserId, key: &[u8], head: &[u8]) -> Result<UserRow, StoreError> {
    let mut fields = Fields(head);
    let bytes = match fields.take::<1>() {
        Some([INLINE]) => fields.0.to_vec(),
        Some([PARTED]) => {
            let version = fields.u64().ok_or_else(|| damaged(key, "its head is cut short"))?;
            let parts = fields.u16().ok_or_else(|| damaged(key, "its head is cut short"))?;
            read_parts(store, user, version, parts)?
        }
        _ => return Err(damaged(key, "its head is unknown")),
    };
    codec::decode_row(&bytes).map_err(|e| damaged(key, &e.to_string()))
}

fn read_parts(store: &dyn Store, user: &UserId, version: u64, parts: u16) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    for part in 0..parts {
        let key = Key::UserPart { user: user.clone(), version, part }.encode();
        bytes.extend_from_slice(&store.read(&key)?.ok_or_else(|| damaged(&key, "it is missing"))?);
    }
    Ok(bytes)
}

/// The changes that write a row, in their order: parts, head, removal of older parts. None when the store has a newer
/// row. Each may go into a batch of its own, as long as the order is kept.
pub(super) fn write(
    store: &dyn Store,
    user: &UserId,
    row: &UserRow,
    version: u64,
) -> Result<Vec<Change>, StoreError> {
    let key = Key::User { user: user.clone() }.encode();
    let old = match store.read(&key) {
        // A damaged row is worth less than a new one.
        Err(StoreError::Damaged { .. }) => None,
        other => other?,
    };
    let is_newer =
        |head: &Vec<u8>| open(store, user, &key, head).is_ok_and(|old| old.reflects > row.reflects);
    if old.as_ref().is_some_and(is_newer) {
        return Ok(Vec::new());
    }
    let mut bytes = vec![INLINE];
    codec::encode_row(row, &mut bytes);
    let mut changes = Vec::new();
    if bytes.len() <= MAX_VALUE_BYTES {
        changes.push(Change::Put(key, bytes));
    } else {
        let body = bytes.get(1..).unwrap_or_default();
        let mut parts = 0_u16;
        for share in body.chunks(MAX_VALUE_BYTES) {
            let key = Key::UserPart { user: user.clone(), version, part: parts }.encode();
            changes.push(Change::Put(key, share.to_vec()));
            parts = parts.saturating_add(1);
        }
        let head = [&[PARTED][..], &version.to_le_bytes(), &parts.to_le_bytes()].concat();
        changes.push(Change::Put(key, head));
    }
    for stale in stale_parts(store, user, version)? {
        changes.push(Change::Delete(stale));
    }
    Ok(changes)
}

/// One change of many that may be spread over batches.
#[derive(Debug)]
pub(super) enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
}

impl Change {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Put(key, value) => key.len() + value.len(),
            Self::Delete(key) => key.len(),
        }
    }

    pub(super) fn add_to(self, batch: &mut Batch) {
        match self {
            Self::Put(key, value) => batch.put(key, value),
            Self::Delete(key) => batch.delete(key),
        }
    }
}

/// Parts of other versions: of the row before, or of a writing that a crash cut short.
fn stale_parts(store: &dyn Store, user: &UserId, version: u64) -> Result<Vec<Vec<u8>>, StoreError> {
    let (from, to) = keys::parts_of(user);
    let mut stale = Vec::new();
    store.scan(&from, &to, &mut |key, _| {
        if !matches!(Key::decode(key), Some(Key::UserPart { version: found, .. }) if found == version) {
            stale.push(key.to_vec());
        }
        Flow::Continue
    })?;
    Ok(stale)
}

/// The key that an error of [`damaged`] names.
pub(super) fn named_key(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

pub(super) fn damaged(key: &[u8], reason: &str) -> StoreError {
    let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
    StoreError::Damaged { key, reason: reason.to_owned() }
}
