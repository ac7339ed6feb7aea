//! Where a peer's messages go when they are not kept: straight from the frame to a handler.

use core::future::Future;
use core::task::{Context, Poll};

use crate::session::frame::Missed;
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
    /// [`Verdict::Nack`]; so do all, if it panics. An answer to what is no request is dropped. [`Verdict::Progress`] says that the
    /// verdict comes later, by [`Receiver::poll_verdicts`]. Nothing more is handed over until it returns.
    ///
    /// # To ensure correctness
    /// When a message is not taken (`Nack` or `Busy`), do not take those of its lane and ordering key behind it in the batch,
    /// and say `Busy` with a delay of zero for them.
    ///
    /// # Cancel safety
    /// The future is dropped when the session is over; the messages come again in the next one.
    fn receive(&mut self, batch: Vec<Inbound>) -> impl Future<Output = Vec<(InboundId, Verdict)>> + Send;

    /// Verdicts that `receive` has left for later, as they come; [`Verdict::Progress`] as often as a message needs more time than
    /// the sender's ack deadline. Polled while no batch is being taken. There are none unless it is implemented; if it
    /// panics, all that was left for later counts as [`Verdict::Nack`].
    ///
    /// # To ensure correctness
    /// Each message that was left for later gets a verdict, or it is under way until the session's life ends. After a `Nack`
    /// or `Busy` what has its lane and ordering key is answered `Busy` until that verdict was polled here.
    fn poll_verdicts(&mut self, context: &mut Context<'_>) -> Poll<Vec<(InboundId, Verdict)>> {
        let _ = context;
        Poll::Pending
    }

    /// A message that was handed over is no longer wanted: another of its recipient's devices has answered, or whoever called has
    /// hung up. Said while no batch is being taken, and only before its verdict, which is due all the same: [`Verdict::Rejected`] with
    /// [`Code::Withdrawn`](crate::session::Code::Withdrawn) if nothing was done with it. Does nothing unless it is implemented.
    fn withdrawn(&mut self, id: InboundId) {
        let _ = id;
    }

    /// Messages will not come: so many, for this reason, and between which places they waited. Does nothing unless it is
    /// implemented.
    fn missed(&mut self, missed: Missed) {
        let _ = missed;
    }
}
