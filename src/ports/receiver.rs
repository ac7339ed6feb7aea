//! Where a peer's messages go when they are not kept: straight from the frame to a handler.

use core::future::Future;

use crate::session::frame::GapReason;
use crate::session::{Inbound, InboundId, Verdict};

/// Takes messages from a peer's session and says what became of each, with nothing in between: no inbox, no disk.
///
/// A message that is answered [`Verdict::Delivered`] or [`Verdict::Replied`] has ended for its sender. What must not be
/// applied twice belongs into an [`Inbox`](https://docs.rs/lastmile/latest/lastmile/struct.Inbox.html) instead, or into a
/// receiver that remembers ids: after a reconnect the same message may come again, with `redelivered` set.
///
/// ```
/// use lastmile::ports::Receiver;
/// use lastmile::session::{Inbound, InboundId, Verdict};
///
/// struct Echo;
///
/// impl Receiver for Echo {
///     async fn receive(&mut self, batch: Vec<Inbound>) -> Vec<(InboundId, Verdict)> {
///         batch.into_iter().map(|one| (one.id, Verdict::Replied(one.item.message.payload().clone()))).collect()
///     }
/// }
/// ```
pub trait Receiver: Send + 'static {
    /// Takes a batch, in order, and says what became of each message. One without a verdict counts as
    /// [`Verdict::Nack`]; so do all, if it panics. An answer to what is no request is dropped.
    ///
    /// # To ensure correctness
    /// When a message is not taken (`Nack` or `Busy`), do not take those of its lane and ordering key behind it in the batch,
    /// and say `Busy` with a delay of zero for them.
    ///
    /// # Cancel safety
    /// The future is dropped when the session is over; the messages come again in the next one.
    fn receive(&mut self, batch: Vec<Inbound>) -> impl Future<Output = Vec<(InboundId, Verdict)>> + Send;

    /// So many messages will not come. Does nothing unless it is implemented.
    fn missed(&mut self, count: u64, reason: GapReason) {
        let _ = (count, reason);
    }
}
