//! Where deliveries go: a transport, a session, a webhook, a handler.

use core::future::Future;

use super::acks::Acks;
use crate::machine::{Delivery, EntryRef, Verdict, Withdrawn};
use crate::record::Gap;

/// Takes deliveries for one user's device, the host's own way.
///
/// The engine calls `deliver` from a task of the attachment's own, one batch at a time. A slow sink delays only its
/// own user; one that panics ends its attachment, with the batch counted as a failed attempt.
///
/// ```
/// use lastmile::machine::{Delivery, EntryRef, Verdict};
/// use lastmile::ports::Sink;
///
/// struct Print;
///
/// impl Sink for Print {
///     async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
///         batch.iter().map(|delivery| (delivery.entry, Verdict::Delivered)).collect()
///     }
/// }
/// ```
pub trait Sink: Send + 'static {
    /// Takes a batch, in order, and says what became of each message.
    ///
    /// A message without a verdict counts as [`Verdict::AwaitingAck`]: report it later through
    /// [`Acks`], before the ack deadline.
    ///
    /// # To ensure correctness
    /// - Say [`Verdict::Delivered`] only when the receiver has the message for good.
    /// - Take messages of one ordering key in order; when one fails, do not take those of its key behind it in this
    ///   batch, and say [`Verdict::Busy`] with a delay of zero for them.
    ///
    /// # Cancel safety
    /// The future is dropped when the attachment is; what was in flight is offered again.
    fn deliver(&mut self, batch: Vec<Delivery>) -> impl Future<Output = Vec<(EntryRef, Verdict)>> + Send;

    /// It is attached, and this is how verdicts are reported that come after `deliver` has returned. Said once, before
    /// anything else. Does nothing unless it is implemented.
    fn attached(&mut self, acks: Acks) {
        drop(acks);
    }

    /// Takes note of messages that its user will not get: they expired, could not be delivered, or gave way in a full
    /// outbox. At most one gap for each lane, never between two calls of `deliver` that belong together. Does nothing
    /// unless it is implemented.
    ///
    /// When it returns, the user counts as told, for all devices. After a crash the same may be said again.
    ///
    /// # Cancel safety
    /// The future is dropped when the attachment is; the next device is told.
    fn gaps(&mut self, gaps: Vec<Gap>) -> impl Future<Output = ()> + Send {
        drop(gaps);
        async {}
    }

    /// Takes note that a message for all devices at once ([`RingAll`](crate::DevicePolicy::RingAll)) rings no more:
    /// [`Withdrawn::reason`] says whether another device has confirmed it, its sender has hung up, or its time is over.
    /// Comes after the `deliver` that it was in, when that is durable, and only while the sink is attached; what was withdrawn while
    /// the sink was too slow for its queue is said first and not delivered any more. Not of what this device has confirmed or refused for good, but perhaps of what it was offered in an earlier
    /// attachment. A confirmation that is under way is taken all the same. Does nothing unless it is implemented.
    ///
    /// # Cancel safety
    /// The future is dropped when the attachment is; it is not said again.
    fn withdrawn(&mut self, withdrawn: Withdrawn) -> impl Future<Output = ()> + Send {
        let _ = withdrawn;
        async {}
    }
}
