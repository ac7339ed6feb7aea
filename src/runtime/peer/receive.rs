//! What becomes of a peer's messages: they are taken into the engine, or handed to a receiver of the host's.

use core::task::{Context, Poll};
use core::time::Duration;

use crate::machine::{Delivery, EntryRef, Refusal};
use crate::ports::Receiver;
use crate::runtime::Inbox;
use crate::runtime::contain::{Running, contained};
use crate::session::frame::Missed;
use crate::session::{Code, Inbound, InboundId, Verdict};

/// How long an engine that cannot take something now asks its peer to wait.
const BUSY: Duration = Duration::from_millis(500);

/// What a receiver says of a batch; and the receiver, for the next one.
pub(super) type Received = (Box<dyn AnyReceiver>, Vec<(InboundId, Verdict)>);

/// The erased twin of [`Receiver`].
pub(super) trait AnyReceiver: Send {
    fn receive(self: Box<Self>, batch: Vec<Inbound>) -> Running<'static, Option<Received>>;
    fn poll_verdicts(&mut self, context: &mut Context<'_>) -> Poll<Vec<(InboundId, Verdict)>>;
    fn withdrawn(&mut self, id: InboundId);
    fn missed(&mut self, missed: Missed);
}

impl<R: Receiver> AnyReceiver for R {
    fn receive(mut self: Box<Self>, batch: Vec<Inbound>) -> Running<'static, Option<Received>> {
        contained(async move {
            let verdicts = Receiver::receive(&mut *self, batch).await;
            (self as Box<dyn AnyReceiver>, verdicts)
        })
    }

    fn poll_verdicts(&mut self, context: &mut Context<'_>) -> Poll<Vec<(InboundId, Verdict)>> {
        Receiver::poll_verdicts(self, context)
    }

    fn withdrawn(&mut self, id: InboundId) {
        Receiver::withdrawn(self, id);
    }

    fn missed(&mut self, missed: Missed) {
        Receiver::missed(self, missed);
    }
}

/// A message from a peer as a delivery for the inbox.
pub(super) fn delivery(inbound: Inbound) -> Delivery {
    let item = inbound.item;
    Delivery {
        message: item.message,
        stream: inbound.stream,
        entry: EntryRef { lane: item.place.lane, seq: item.place.seq },
        floor: inbound.floor,
        accepted_at: item.accepted_at,
        attempts: item.attempts,
        redelivered: item.redelivered,
    }
}

/// Who fills an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// Many senders do: this one message fails, and the others of its sender go on.
    OneOfMany,
    /// This one peer does: it waits.
    TheOnlyOne,
}

/// What the sender of a message is told of what the engine did with it.
pub(super) fn verdict(result: Result<(), Refusal>, volatile: bool, full: Full) -> Verdict {
    match result {
        Ok(()) => Verdict::Delivered,
        // Nobody is there for it, and it is not kept.
        Err(_) if volatile => Verdict::Rejected(Code::Rejected),
        Err(Refusal::Conflict) => Verdict::Rejected(Code::Conflict),
        Err(Refusal::PayloadTooLarge { .. } | Refusal::TooManyCopies { .. }) => {
            Verdict::Rejected(Code::Invalid)
        }
        Err(refusal) if refusal.is_final() => Verdict::Rejected(Code::Rejected),
        Err(Refusal::OutboxFull { .. }) if full == Full::OneOfMany => Verdict::Nack(None),
        Err(_) => Verdict::Busy(BUSY),
    }
}

/// Whether a delivery is volatile, by its place.
pub(super) fn is_volatile(delivery: &Delivery) -> bool {
    delivery.entry.seq.epoch().0 == 0
}

/// Takes a batch into the engine, durably, once.
pub(super) async fn into_inbox(
    inbox: &Inbox,
    batch: Vec<(InboundId, Delivery)>,
) -> Vec<(InboundId, Verdict)> {
    let (ids, deliveries): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    let volatile: Vec<_> = deliveries.iter().map(is_volatile).collect();
    let results = inbox.take(deliveries).await;
    let verdicts = results.into_iter().zip(volatile);
    let verdicts = verdicts.map(|(result, volatile)| verdict(result, volatile, Full::TheOnlyOne));
    ids.into_iter().zip(verdicts).collect()
}
