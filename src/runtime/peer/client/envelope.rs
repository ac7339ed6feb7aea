//! How a client's outbox holds messages to many people as one line to the server.
//!
//! A session drains one outbox, because its floors and places are those of one. So everything that a client sends waits in
//! the outbox of one made-up user, [`server`], in an envelope: the message with its address written where the sender
//! stands. (Who sends is what the server's authenticator says, whatever a client writes.) That keeps what belongs to the
//! real recipient apart: a repeated id is one only towards the same person, a message that failed holds back nothing but its
//! own line, and a collapse key stands for one person's message.
//!
//! # Invariants
//! - `open(seal(m))` is `m` without a sender, for keys of up to 238 bytes. Longer ones are digested: what they keep
//!   apart and together stays so.
//! - Envelopes for different people never share an ordering key or a collapse key.

use crate::digest::Digester;
use crate::id::{CollapseKey, OrderingKey, UserId};
use crate::message::Message;

/// What begins a key that says nothing more, one that was kept whole, and one that was digested.
const NONE: u8 = 0;
const WHOLE: u8 = 1;
const DIGESTED: u8 = 2;
/// Bytes before the key: a digest of the recipient, and what the rest is.
const PREFIX: usize = 17;

/// Whose outbox holds what goes to the server. No server lets this user in.
pub(in crate::runtime::peer) fn server() -> UserId {
    UserId::new(b"\0lastmile/server").expect("sixteen bytes are a user id")
}

/// Puts a message into its envelope.
pub(super) fn seal(message: &Message) -> Message {
    let to = message.recipient();
    let line = message.ordering_key().map(OrderingKey::as_bytes);
    let collapse = message.collapse_key().map(|key| scoped(to, Some(key.as_bytes())));
    message.readdressed(
        server(),
        Some(to.clone()),
        OrderingKey::new(scoped(to, line)).ok(),
        collapse.and_then(|key| CollapseKey::new(key).ok()),
    )
}

/// Takes a message out of its envelope; `None` if it is in none.
pub(in crate::runtime::peer) fn open(message: &Message) -> Option<Message> {
    let to = message.sender()?.clone();
    let ordering_key = message.ordering_key().and_then(|key| unscoped(key.as_bytes()));
    let collapse_key = message.collapse_key().and_then(|key| unscoped(key.as_bytes()));
    Some(message.readdressed(
        to,
        None,
        ordering_key.and_then(|key| OrderingKey::new(key).ok()),
        collapse_key.and_then(|key| CollapseKey::new(key).ok()),
    ))
}

fn digest(bytes: &[u8]) -> [u8; 16] {
    // Not keyed: whoever could make a collision is the client itself, at its own cost.
    Digester::new(0).bytes(bytes).to_be_bytes()
}

fn scoped(to: &UserId, key: Option<&[u8]>) -> Vec<u8> {
    let mut scoped = digest(to.as_bytes()).to_vec();
    match key {
        None => scoped.push(NONE),
        Some(key) if key.len() + PREFIX <= crate::id::MAX_ID_BYTES => {
            scoped.push(WHOLE);
            scoped.extend_from_slice(key);
        }
        Some(key) => {
            scoped.push(DIGESTED);
            scoped.extend_from_slice(&digest(key));
        }
    }
    scoped
}

fn unscoped(key: &[u8]) -> Option<&[u8]> {
    let (kind, rest) = key.get(PREFIX - 1..)?.split_first()?;
    (*kind != NONE).then_some(rest)
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::message::Priority;

    fn full(to: &str, key: usize) -> Message {
        Message::to(to, "chat.message", "hello")
            .sender("somebody")
            .ordering_key("k".repeat(key))
            .collapse_key("c".repeat(key))
            .version(7)
            .priority(Priority::High)
            .ttl(Duration::from_secs(5))
            .header("name", "value")
            .build()
            .unwrap()
    }

    #[test]
    fn what_comes_out_of_an_envelope_is_what_went_in_but_for_the_sender() {
        for key in [1, 2, 237, 238] {
            let message = full("bob", key);
            let sealed = seal(&message);
            assert_eq!(sealed.recipient(), &server());
            assert_eq!(sealed.check(), Ok(()));
            let opened = open(&sealed).unwrap();
            assert_eq!(opened.sender(), None);
            assert_eq!(opened.sent_by("somebody".try_into().unwrap()), message, "{key}");
        }
        let plain = Message::to("bob", "chat.message", "hello").build().unwrap();
        assert_eq!(open(&seal(&plain)), Some(plain));
    }

    #[test]
    fn lines_of_different_people_or_keys_stay_apart_and_equal_ones_together_however_long() {
        let keys = |message: Message| {
            let sealed = seal(&message);
            (sealed.ordering_key().cloned(), sealed.collapse_key().cloned())
        };
        for key in [1, 238, 239, 255] {
            assert_ne!(keys(full("bob", key)).0, keys(full("carol", key)).0, "{key}");
            assert_ne!(keys(full("bob", key)).1, keys(full("carol", key)).1, "{key}");
            assert_eq!(keys(full("bob", key)), keys(full("bob", key)), "{key}");
            assert_ne!(
                keys(full("bob", key)),
                keys(full("bob", if key == 1 { 2 } else { key - 1 })),
                "{key}"
            );
        }
    }

    #[test]
    fn what_is_in_no_envelope_is_not_opened() {
        let message = Message::to(server(), "chat.message", "").build().unwrap();
        assert_eq!(open(&message), None);
    }
}
