//! The keys that payloads and headers are sealed with, from wherever the host keeps them.
//!
//! Knows nothing of ciphers. Key numbers are stored, keys never are.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use zeroize::Zeroizing;

use crate::id::KeyId;

/// A secret of 32 bytes. Clones share it; it is wiped when the last one is dropped. `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Key(Arc<Secret>);

struct Secret {
    bytes: Zeroizing<[u8; 32]>,
    /// What tells this key from others; worked out once, by whoever knows how.
    check: OnceLock<u64>,
}

impl Key {
    /// A key of these bytes. They come from a cryptographic source of randomness, never from a password as it is.
    ///
    /// The caller's own copy of the bytes is for the caller to wipe.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Arc::new(Secret { bytes: Zeroizing::new(bytes), check: OnceLock::new() }))
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0.bytes
    }

    pub(crate) fn check(&self, work_out: impl FnOnce() -> u64) -> u64 {
        *self.0.check.get_or_init(work_out)
    }
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Where keys come from: a file, a keychain, a service that was asked beforehand.
///
/// Both methods are called on the path of a send, once for each message: answer from memory.
pub trait KeyProvider: Send + Sync {
    /// The key for what is written from now on, and its number.
    ///
    /// # To ensure correctness
    /// - One number names one key, for ever. A new key gets a number that was never used.
    /// - [`KeyProvider::key`] knows it too, from before the first call that returns it.
    fn current(&self) -> (KeyId, Key);

    /// The key with this number, if it is known.
    ///
    /// # To ensure correctness
    /// Knows every key that something is still sealed with; `docs/STORAGE.md` says how to find out. What is sealed with
    /// a key that is missing cannot be read; it is neither lost nor given up.
    fn key(&self, id: KeyId) -> Option<Key>;
}

/// A current key and older ones, in memory: the ready-made [`KeyProvider`].
///
/// ```
/// use lastmile::KeyId;
/// use lastmile::ports::{Key, KeyProvider, Keyring};
///
/// # let (of_2025, of_2026) = ([1; 32], [2; 32]);
/// let keys = Keyring::new(KeyId(2026), Key::new(of_2026)).with(KeyId(2025), Key::new(of_2025));
/// assert_eq!(keys.current().0, KeyId(2026));
/// assert!(keys.key(KeyId(2025)).is_some() && keys.key(KeyId(2024)).is_none());
/// ```
#[derive(Clone, Debug)]
pub struct Keyring {
    current: KeyId,
    newest: Key,
    older: BTreeMap<KeyId, Key>,
}

impl Keyring {
    /// New writes are sealed with this key.
    #[must_use]
    pub fn new(id: KeyId, key: Key) -> Self {
        Self { current: id, newest: key, older: BTreeMap::new() }
    }

    /// Knows an older key too, for reading. One with the current number changes nothing.
    #[must_use]
    pub fn with(mut self, id: KeyId, key: Key) -> Self {
        self.older.insert(id, key);
        self
    }
}

impl KeyProvider for Keyring {
    fn current(&self) -> (KeyId, Key) {
        (self.current, self.newest.clone())
    }

    fn key(&self, id: KeyId) -> Option<Key> {
        if id == self.current { Some(self.newest.clone()) } else { self.older.get(&id).cloned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_a_key() {
        let keys = Keyring::new(KeyId(7), Key::new([0xA7; 32])).with(KeyId(6), Key::new([0xA6; 32]));
        let text = format!("{keys:?} {:?}", keys.current());
        assert!(text.contains("Key(..)"), "{text}");
        for shown in ["167", "166", "a7", "A7", "a6"] {
            assert!(!text.contains(shown), "{text}");
        }
    }

    #[test]
    fn the_current_key_is_known_under_its_number_and_no_older_one_replaces_it() {
        let keys = Keyring::new(KeyId(1), Key::new([1; 32])).with(KeyId(1), Key::new([2; 32]));
        assert_eq!(keys.key(KeyId(1)).unwrap().bytes(), &[1; 32]);
        assert_eq!(keys.current().1.bytes(), &[1; 32]);
        assert!(keys.key(KeyId(2)).is_none());
    }
}
