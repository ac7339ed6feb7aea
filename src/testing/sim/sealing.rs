//! What a simulated engine seals with (feature `encryption`): half of the lives are sealed, each opening with a key of its
//! own, so that keys are exchanged all the time; half of these began plain.
//!
//! Nonces come from the system, so the bytes of a sealed life are not the same twice. Their number is, and nothing that is
//! decided depends on more.

#[cfg(feature = "encryption")]
pub(super) use self::with::of_opening;
#[cfg(not(feature = "encryption"))]
pub(super) use self::without::of_opening;

#[cfg(feature = "encryption")]
mod with {
    use std::sync::Arc;

    use crate::codec::Cipher;
    use crate::id::KeyId;
    use crate::ports::{Key, KeyProvider};
    use crate::storage::cipher;

    /// Keys by number: the current one, and all before it.
    struct Ring(u32);

    impl KeyProvider for Ring {
        fn current(&self) -> (KeyId, Key) {
            (KeyId(self.0), key(self.0))
        }

        fn key(&self, id: KeyId) -> Option<Key> {
            (id.0 <= self.0).then(|| key(id.0))
        }
    }

    fn key(number: u32) -> Key {
        let mut bytes = [0x5A; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        Key::new(bytes)
    }

    /// What the engine of this life seals with when it is opened for this time, from 0.
    pub(in crate::testing::sim) fn of_opening(seed: u64, opening: u32) -> Cipher {
        match seed % 4 {
            1 => cipher(Arc::new(Ring(opening))),
            3 if opening > 0 => cipher(Arc::new(Ring(opening))),
            _ => Cipher::plain(),
        }
    }
}

#[cfg(not(feature = "encryption"))]
mod without {
    use crate::codec::Cipher;

    /// Nothing is sealed.
    pub(in crate::testing::sim) fn of_opening(_seed: u64, _opening: u32) -> Cipher {
        Cipher::plain()
    }
}
