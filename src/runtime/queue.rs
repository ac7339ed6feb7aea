//! The queue between a driver and a sink, or a session: bounded, and never in a driver's way.
//!
//! A withdrawal that finds it full goes past it. Whoever reads it then is told of that before anything else, and is not handed
//! any more what was withdrawn: a call that is over must not ring because a sink was slow.

use core::future::poll_fn;
use core::task::{Context, Poll};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::machine::{Delivery, EntryRef, Withdrawn};
use crate::record::Gap;

/// Batches that may wait for one sink.
pub(super) const MAX_QUEUED: usize = 128;
/// Withdrawals that may wait beside a full queue.
const MAX_LATE: usize = 1024;

/// What a sink is handed.
#[derive(Debug)]
pub(super) enum Handed {
    Batch(Vec<Delivery>),
    Gaps(Vec<Gap>),
    Withdrawn(Withdrawn),
}

/// What did not fit into the queue.
type Late = Arc<Mutex<VecDeque<Withdrawn>>>;

/// A queue's two ends.
pub(super) fn queue() -> (Hand, Queue) {
    let (handing, handed) = mpsc::channel(MAX_QUEUED);
    let late = Late::default();
    let queue = Queue {
        handed,
        late: late.clone(),
        told: VecDeque::new(),
        gone: BTreeSet::new(),
        since: VecDeque::new(),
    };
    (Hand { handing, late }, queue)
}

/// The driver's end.
#[derive(Clone, Debug)]
pub(super) struct Hand {
    handing: mpsc::Sender<Handed>,
    late: Late,
}

impl Hand {
    /// Nothing when it was queued.
    pub(super) fn hand(&self, handed: Handed) -> Option<mpsc::error::TrySendError<Handed>> {
        self.handing.try_send(handed).err()
    }

    /// Says that a message rings no more. `false` when that cannot be kept any more until it is read.
    pub(super) fn withdraw(&self, withdrawn: Withdrawn) -> bool {
        // Held all the while: whoever makes room in the queue looks here before it waits for more.
        let mut late = self.late.lock();
        let is_full = matches!(
            self.handing.try_send(Handed::Withdrawn(withdrawn)),
            Err(mpsc::error::TrySendError::Full(_))
        );
        if is_full && late.len() >= MAX_LATE {
            return false;
        }
        late.extend(is_full.then_some(withdrawn));
        true
    }
}

/// The sink's end.
#[derive(Debug)]
pub(super) struct Queue {
    handed: mpsc::Receiver<Handed>,
    late: Late,
    /// What the sink is told next.
    told: VecDeque<Withdrawn>,
    /// What may still lie in the queue and is not to be handed to anybody.
    gone: BTreeSet<EntryRef>,
    /// The same, in the order in which it was withdrawn.
    since: VecDeque<EntryRef>,
}

impl Queue {
    fn take_late(&mut self) {
        let mut late = self.late.lock();
        for withdrawn in late.iter() {
            if self.gone.insert(withdrawn.entry) {
                self.since.push_back(withdrawn.entry);
            }
        }
        self.told.append(&mut late);
    }

    /// A place that has ended is never offered again: nothing of it is in an empty queue, nor, of what was withdrawn that long
    /// ago, in one that is always read and never empty.
    fn forget_gone(&mut self) {
        let keep = if self.handed.is_empty() { 0 } else { 2 * MAX_LATE };
        let old = self.since.len().saturating_sub(keep);
        for entry in self.since.drain(..old) {
            self.gone.remove(&entry);
        }
    }

    /// What comes next; nothing when the attachment has ended.
    pub(super) fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Handed>> {
        loop {
            self.take_late();
            if let Some(withdrawn) = self.told.pop_front() {
                return Poll::Ready(Some(Handed::Withdrawn(withdrawn)));
            }
            let mut batch = match self.handed.poll_recv(context) {
                Poll::Ready(Some(Handed::Batch(batch))) => batch,
                other => return other,
            };
            self.take_late();
            batch.retain(|delivery| !self.gone.contains(&delivery.entry));
            self.forget_gone();
            if !batch.is_empty() {
                return Poll::Ready(Some(Handed::Batch(batch)));
            }
        }
    }

    /// The same, for one who only waits for that. Dropped before it returns, nothing was taken.
    pub(super) async fn recv(&mut self) -> Option<Handed> {
        poll_fn(|context| self.poll_recv(context)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;
    use crate::record::{LaneId, Seq};
    use crate::status::EndReason;
    use crate::{StreamId, Timestamp};

    fn delivery(seq: u64) -> Delivery {
        Delivery {
            message: Message::to("alice", "call.ring", "").build().unwrap(),
            stream: StreamId::from_u128(1),
            entry: EntryRef { lane: LaneId::Critical, seq: Seq::new(seq) },
            floor: Seq::ZERO,
            accepted_at: Timestamp::ZERO,
            attempts: 0,
            redelivered: false,
        }
    }

    fn withdrawn(seq: u64) -> Withdrawn {
        let Delivery { entry, message, .. } = delivery(seq);
        Withdrawn { entry, id: message.id(), reason: EndReason::Cancelled }
    }

    /// What is read: the places of batches, and those withdrawn, below zero.
    async fn read(queue: &mut Queue) -> Vec<Vec<i64>> {
        let mut read = Vec::new();
        while let Some(handed) = queue.recv().await {
            read.push(match handed {
                Handed::Batch(batch) => batch.iter().map(|d| d.entry.seq.get() as i64).collect(),
                Handed::Withdrawn(withdrawn) => vec![-(withdrawn.entry.seq.get() as i64)],
                Handed::Gaps(_) => Vec::new(),
            });
        }
        read
    }

    /// Found by an audit: it was dropped, and the sink rang when it went on.
    #[tokio::test]
    async fn what_is_withdrawn_while_the_queue_is_full_is_said_first_and_not_handed_over() {
        let (hand, mut queue) = queue();
        assert!(hand.hand(Handed::Batch(vec![delivery(1), delivery(2)])).is_none());
        assert!(hand.hand(Handed::Batch(vec![delivery(3)])).is_none());
        for seq in 4.. {
            if hand.hand(Handed::Batch(vec![delivery(seq)])).is_some() {
                break;
            }
        }
        assert!(hand.withdraw(withdrawn(3)) && hand.withdraw(withdrawn(1)));
        drop(hand);
        let read = read(&mut queue).await;
        assert_eq!(read[..4], [vec![-3], vec![-1], vec![2], vec![4]]);
        assert_eq!(read.len(), MAX_QUEUED + 1, "all the others came");
    }

    #[tokio::test]
    async fn what_is_withdrawn_while_there_is_room_comes_in_its_turn_and_beyond_the_bound_it_is_refused() {
        let (hand, mut queue) = queue();
        assert!(hand.hand(Handed::Batch(vec![delivery(1)])).is_none());
        assert!(hand.withdraw(withdrawn(1)));
        for seq in 2..=MAX_QUEUED as u64 - 1 {
            assert!(hand.hand(Handed::Batch(vec![delivery(seq)])).is_none());
        }
        assert!((0..MAX_LATE).all(|_| hand.withdraw(withdrawn(9999))));
        assert!(!hand.withdraw(withdrawn(9999)));
        drop(hand);
        let read = read(&mut queue).await;
        assert_eq!(read[MAX_LATE..MAX_LATE + 3], [vec![1], vec![-1], vec![2]]);
    }
}
