//! Requests and their answers, as messages: marked by reserved headers, so that they survive any number of hops and restarts.

#[cfg(feature = "runtime")]
use std::sync::Arc;

#[cfg(feature = "runtime")]
use bytes::Bytes;

use super::Message;
#[cfg(feature = "runtime")]
use crate::error::{InvalidMessage, MessageFlaw};
use crate::id::MessageId;
#[cfg(feature = "runtime")]
use crate::id::UserId;

/// The header that marks a request.
const REQUEST: &str = "lastmile-request";
/// The header of an answer that comes as a message of its own: the id of the request, in 16 bytes.
const ANSWERS: &str = "lastmile-answers";
/// The event of such an answer.
#[cfg(feature = "runtime")]
const ANSWER_EVENT: &str = "lastmile.answer";
/// What an answer's id differs in from its request's: it is the same one each time.
#[cfg(feature = "runtime")]
const ANSWER_ID: u128 = 0x6c61_7374_6d69_6c65_2d61_6e73_7765_7273;

impl Message {
    /// Whether its sender asks for an answer.
    #[must_use]
    pub fn is_request(&self) -> bool {
        self.header(REQUEST).is_some()
    }

    /// The request that it answers, if it is an answer that comes as a message of its own.
    #[must_use]
    pub fn answers(&self) -> Option<MessageId> {
        let id = <[u8; 16]>::try_from(self.header(ANSWERS)?).ok()?;
        Some(MessageId::from_u128(u128::from_be_bytes(id)))
    }

    /// The same message, as a request.
    #[cfg(feature = "runtime")]
    pub(crate) fn asking(&self) -> Result<Self, MessageFlaw> {
        if self.is_request() {
            return Ok(self.clone());
        }
        let mut parts = (*self.0).clone();
        Arc::make_mut(parts.headers.get_or_insert_default()).push((REQUEST.to_owned(), Bytes::new()));
        parts.check()?;
        Ok(Self(Arc::new(parts)))
    }

    /// An answer to this request as a message of its own, as urgent and as durable as the request was.
    #[cfg(feature = "runtime")]
    pub(crate) fn answer(&self, to: UserId, from: UserId, answer: Bytes) -> Result<Self, InvalidMessage> {
        let id = self.id().as_u128();
        Self::to(to, ANSWER_EVENT, answer)
            .id(MessageId::from_u128(id ^ ANSWER_ID))
            .sender(from)
            .priority(self.priority())
            .durability(self.durability())
            .header(ANSWERS, id.to_be_bytes().to_vec())
            .build()
    }
}

#[cfg(all(test, feature = "runtime"))]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_its_request_and_has_one_id_however_often_it_is_given() {
        let request =
            Message::to("bob", "poll.asked", "tea?").sender("alice").build().unwrap().asking().unwrap();
        assert!(request.is_request() && request.answers().is_none());
        assert_eq!(request.asking(), Ok(request.clone()), "it is marked once");
        let give =
            || request.answer("alice".try_into().unwrap(), "bob".try_into().unwrap(), "yes".into()).unwrap();
        assert_eq!(give(), give());
        assert_eq!(give().answers(), Some(request.id()));
        assert_ne!(give().id(), request.id());
        assert!(!give().is_request());
    }
}
