//! Deliberate flaws of what lies around the sessions: a simulator that does not catch these catches nothing.

use super::end::End;
use super::{Who, World};
use crate::session::ConnId;
use crate::session::frame::Frame;

/// A rule broken on purpose.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flaw {
    /// Messages are acknowledged before the inbox has them.
    AckBeforeDurable,
    /// The peer's inbox is told to forget what the sender's log does not hold an acknowledgement of.
    FloorBeforeDurable,
    /// A session goes on hearing its old connection after another one took its place.
    TakeoverWithoutFreeze,
    /// A resumed session is told that one message more was seen than was.
    WrongOffset,
    /// Senders are believed to have heard of every nack.
    NackUnheard,
}

impl Flaw {
    /// All of them, with their names.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::AckBeforeDurable, "ack-before-durable"),
        (Self::FloorBeforeDurable, "floor-before-durable"),
        (Self::TakeoverWithoutFreeze, "takeover-without-freeze"),
        (Self::WrongOffset, "wrong-offset"),
        (Self::NackUnheard, "nack-unheard"),
    ];

    /// The flaw of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(flaw, _)| *flaw)
    }
}

impl World {
    /// A frame leaves an end.
    pub(super) fn spoil_sent(&mut self, who: Who, frame: &mut Frame) {
        if let Frame::Nack(_) = frame {
            self.end_mut(who).into_iter().for_each(|end| end.nacks += 1);
        }
        if let (Some(Flaw::WrongOffset), Frame::Welcome(welcome)) = (self.flaw, frame)
            && welcome.resumed
        {
            welcome.position.seen += 1;
        }
    }

    /// A frame reaches an end.
    pub(super) fn spoil_heard(&mut self, who: Who, conn: &mut ConnId, frame: &mut Frame) {
        let flaw = self.flaw;
        let Some(end) = self.end_mut(who) else { return };
        match (flaw, frame) {
            (Some(Flaw::NackUnheard), Frame::Deliver(deliver)) => deliver.heard = end.nacks,
            (Some(Flaw::NackUnheard), Frame::Gap(gap)) => gap.heard = end.nacks,
            (Some(Flaw::TakeoverWithoutFreeze), _) => *conn = end.session.connection().unwrap_or(*conn),
            _ => {}
        }
    }

    /// Whether a message counts as acknowledged when it was merely taken.
    pub(super) fn acks_early(&self) -> bool {
        self.flaw == Some(Flaw::AckBeforeDurable)
    }
}

impl End {
    /// The flaw of a floor that comes with the acknowledgement.
    pub(super) fn floors_early(flaw: Option<Flaw>) -> bool {
        flaw == Some(Flaw::FloorBeforeDurable)
    }
}
