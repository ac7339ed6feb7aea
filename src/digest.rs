//! Keyed digests of ids that come from outside, and the routing of users to shards.

use std::hash::{BuildHasher, Hasher};

use siphasher::sip::SipHasher13 as Sip64;
use siphasher::sip128::{Hasher128, SipHasher13 as Sip128};

use crate::id::{CollapseKey, MessageId, UserId};
use crate::message::Message;

/// Digests under one engine's key: collisions cannot be made without it.
#[derive(Clone, Copy)]
pub struct Digester {
    key: [u8; 16],
}

impl core::fmt::Debug for Digester {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Digester")
    }
}

impl Digester {
    /// A digester under this key.
    #[must_use]
    pub const fn new(key: u128) -> Self {
        Self { key: key.to_le_bytes() }
    }

    /// The digest of a user; of "no sender" for `None`.
    #[must_use]
    pub fn user(&self, user: Option<&UserId>) -> u128 {
        let mut hasher = Sip128::new_with_key(&self.key);
        hasher.write(user.map_or(&[], UserId::as_bytes));
        hasher.finish128().as_u128()
    }

    /// The digest of what makes a message the same one: sender, recipient and id.
    #[must_use]
    pub fn identity(&self, sender: Option<&UserId>, recipient: &UserId, id: MessageId) -> u128 {
        let mut hasher = Sip128::new_with_key(&self.key);
        let sender = sender.map_or(&[][..], UserId::as_bytes);
        hasher.write_u8(sender.len() as u8);
        hasher.write(sender);
        hasher.write_u8(recipient.as_bytes().len() as u8);
        hasher.write(recipient.as_bytes());
        hasher.write_u128(id.as_u128());
        hasher.finish128().as_u128()
    }

    /// The digest of what a message says: event, ordering key, priority, headers and payload.
    #[must_use]
    pub fn content(&self, message: &Message) -> u64 {
        let mut hasher = Sip64::new_with_key(&self.key);
        let mut part = |bytes: &[u8]| {
            hasher.write_u64(bytes.len() as u64);
            hasher.write(bytes);
        };
        part(message.event().as_str().as_bytes());
        part(message.ordering_key().map_or(&[], |key| key.as_bytes()));
        part(&[message.priority().index() as u8]);
        for (name, value) in message.headers() {
            part(name.as_bytes());
            part(value);
        }
        part(message.payload());
        hasher.finish()
    }

    /// The digest of what a user's message is the newest of.
    #[must_use]
    pub fn collapse(&self, user: &UserId, key: &CollapseKey) -> u128 {
        let mut hasher = Sip128::new_with_key(&self.key);
        hasher.write_u8(user.as_bytes().len() as u8);
        hasher.write(user.as_bytes());
        hasher.write(key.as_bytes());
        hasher.finish128().as_u128()
    }

    /// Which of `shards` shards a user lives in.
    #[must_use]
    pub fn shard(&self, user: &UserId, shards: usize) -> usize {
        let shards = shards.max(1) as u128;
        (self.user(Some(user)) % shards) as usize
    }
}

impl BuildHasher for Digester {
    type Hasher = Sip64;

    fn build_hasher(&self) -> Sip64 {
        Sip64::new_with_key(&self.key)
    }
}

/// Hashes digests, which are uniform already, by taking their lower half.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, digest: u128) {
        self.0 = digest as u64;
    }
}

/// A map keyed by digests.
pub(crate) type DigestMap<V> = hashbrown::HashMap<u128, V, std::hash::BuildHasherDefault<DigestHasher>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_do_not_run_into_one_another() {
        let digester = Digester::new(7);
        let user = |text: &str| UserId::new(text).unwrap();
        let id = MessageId::from_u128(1);
        let one = digester.identity(Some(&user("ab")), &user("c"), id);
        assert_ne!(one, digester.identity(Some(&user("a")), &user("bc"), id));
        assert_ne!(one, digester.identity(None, &user("abc"), id));
        assert_ne!(one, Digester::new(8).identity(Some(&user("ab")), &user("c"), id));
    }
}
