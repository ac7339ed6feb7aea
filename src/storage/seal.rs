//! XChaCha20-Poly1305 with the keys of a [`KeyProvider`]. The only place that imports a cipher.
//!
//! Nonces are 24 random bytes from the system, drawn anew for each message: no state that a copied process or a restored
//! machine could repeat, and with 2⁸⁰ messages under one key a repetition is still less likely than 2⁻³².

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use chacha20poly1305::aead::{AeadInOut, Generate, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use parking_lot::Mutex;

use crate::codec::{Cipher, HEAD_BYTES, KeyMark, NONCE_BYTES, Sealer, TAG_BYTES, Unopened};
use crate::error::KeyError;
use crate::id::KeyId;
use crate::ports::{Key, KeyProvider};

/// Under this nonce eight zeros are encrypted to tell keys apart. It seals nothing else.
const CHECK_NONCE: &[u8; NONCE_BYTES] = b"lastmile: what key is it";

/// What seals with these keys, for [`OutboxStore::open_with`](super::outbox::OutboxStore::open_with). An engine makes its
/// own from what its builder is given.
#[must_use]
pub fn cipher(keys: Arc<dyn KeyProvider>) -> Cipher {
    Cipher::sealing(Arc::new(Keys { host: keys, last: Mutex::new(None) }))
}

/// The host's keys. A panic of theirs is kept inside: it would take a shard with it, or the thread that settles.
struct Keys {
    host: Arc<dyn KeyProvider>,
    /// What it named as current when it did last.
    last: Mutex<Option<(KeyId, Key)>>,
}

impl Keys {
    /// The key for what is written now. A provider that panics is taken to have changed nothing; one that does before it has
    /// ever named a key has not opened anything yet.
    fn newest(&self) -> (KeyId, Key) {
        let named = catch_unwind(AssertUnwindSafe(|| self.host.current()));
        let mut last = self.last.lock();
        match (named, last.clone()) {
            (Ok(newest), _) => {
                *last = Some(newest.clone());
                newest
            }
            (Err(_), Some(newest)) => {
                tracing::warn!("the key provider panicked: the key that it named last is used");
                newest
            }
            (Err(panic), None) => resume_unwind(panic),
        }
    }

    /// The very key that a mark names.
    fn find(&self, mark: KeyMark) -> Result<Key, KeyError> {
        let known = catch_unwind(AssertUnwindSafe(|| self.host.key(mark.key)));
        let key = known.unwrap_or_default().ok_or(KeyError::UnknownKey { key: mark.key })?;
        if check_of(&key) == mark.check { Ok(key) } else { Err(KeyError::WrongKey { key: mark.key }) }
    }
}

impl Sealer for Keys {
    fn seal(&self, about: &[u8], blob: &mut Vec<u8>) -> KeyMark {
        let (id, key) = self.newest();
        let mark = KeyMark { key: id, check: check_of(&key) };
        // The system's randomness never fails once it has begun to work; without it there is no safe nonce.
        let nonce = XNonce::try_generate().expect("the system gives random bytes");
        if let Some((head, plain)) = blob.split_at_mut_checked(HEAD_BYTES) {
            let parts = [&mark.key.0.to_le_bytes()[..], &mark.check.to_le_bytes(), &nonce].concat();
            head.copy_from_slice(&parts);
            let tag = cipher_of(&key).encrypt_inout_detached(&nonce, about, plain.into());
            let tag = tag.expect("no message comes near the cipher's limit of 256 GiB");
            blob.extend_from_slice(&tag);
        }
        mark
    }

    fn open(&self, about: &[u8], blob: &[u8]) -> Result<Vec<u8>, Unopened> {
        let key = self.find(KeyMark::of(blob).ok_or(Unopened::Broken)?).map_err(Unopened::Key)?;
        let (head, sealed) = blob.split_at_checked(HEAD_BYTES).ok_or(Unopened::Broken)?;
        let nonce = head.last_chunk::<NONCE_BYTES>().ok_or(Unopened::Broken)?;
        let (sealed, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(Unopened::Broken)?;
        let mut plain = sealed.to_vec();
        cipher_of(&key)
            .decrypt_inout_detached(
                &XNonce::from(*nonce),
                about,
                plain.as_mut_slice().into(),
                &Tag::from(*tag),
            )
            .map_err(|_| Unopened::Broken)?;
        Ok(plain)
    }

    fn current(&self) -> KeyMark {
        let (key, secret) = self.newest();
        KeyMark { key, check: check_of(&secret) }
    }

    fn knows(&self, mark: KeyMark) -> Result<(), KeyError> {
        self.find(mark).map(drop)
    }
}

fn cipher_of(key: &Key) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.bytes().into())
}

/// What tells a key from others and nothing about it: the beginning of its keystream under a nonce of its own.
fn check_of(key: &Key) -> u64 {
    key.check(|| {
        let mut zeros = [0; 8];
        let nonce = XNonce::from(*CHECK_NONCE);
        let sealed = cipher_of(key).encrypt_inout_detached(&nonce, &[], zeros.as_mut_slice().into());
        sealed.expect("eight bytes are within the cipher's limit");
        u64::from_le_bytes(zeros)
    })
}

#[cfg(test)]
mod tests;
