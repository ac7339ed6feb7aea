//! What a session's receiver is given, what it says of that, now or later, and what it is told of.

use core::task::{Context, Poll};
use std::sync::atomic::Ordering;

use super::{MAX_TAKEN, Pump, Woken};
use crate::runtime::contain::called;
use crate::session::{InboundId, Verdict as Said};

impl Pump {
    pub(super) fn poll_receiving(&mut self, context: &mut Context<'_>) -> Poll<Woken> {
        let Some((running, ids)) = self.receiving.as_mut() else { return self.poll_later(context) };
        let Poll::Ready(received) = running.as_mut().poll(context) else { return Poll::Pending };
        let ids = core::mem::take(ids);
        self.receiving = None;
        let verdicts = match received {
            Some((receiver, verdicts)) => {
                self.idle = Some(receiver);
                completed(ids, verdicts, &mut self.later)
            }
            None => {
                let mut failed = self.panicked();
                failed.extend(ids.into_iter().map(|(id, _)| (id, Said::Nack(None))));
                failed
            }
        };
        Poll::Ready(Woken::Received(verdicts))
    }

    /// What the receiver has left for later, as it comes.
    fn poll_later(&mut self, context: &mut Context<'_>) -> Poll<Woken> {
        let Some(receiver) = self.idle.as_mut().filter(|_| !self.later.is_empty()) else {
            return Poll::Pending;
        };
        let verdicts = match called(|| receiver.poll_verdicts(context)) {
            Some(Poll::Pending) => return Poll::Pending,
            Some(Poll::Ready(verdicts)) => verdicts,
            None => return Poll::Ready(Woken::Received(self.panicked())),
        };
        let later = &mut self.later;
        let said = verdicts.into_iter().filter_map(|(id, said)| match said {
            Said::Progress => later.contains_key(&id).then_some((id, said)),
            said => later.remove(&id).map(|asks| (id, answering(asks, said))),
        });
        Poll::Ready(Woken::Received(said.collect()))
    }

    /// The receiver has panicked: what it had left for later counts as a failed attempt, and there is another one.
    fn panicked(&mut self) -> Vec<(InboundId, Said)> {
        tracing::warn!("a receiver panicked: what it had counts as a failed attempt");
        self.parts.counters.panics.fetch_add(1, Ordering::Relaxed);
        self.idle = Some((self.parts.receiver)());
        // In their order, as what has one key must be refused.
        let mut ids: Vec<_> = self.later.drain().map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids.into_iter().map(|id| (id, Said::Nack(None))).collect()
    }

    /// Hands messages from the peer over, if there are any and whoever takes them is free.
    pub(super) fn receive(&mut self) {
        if self.receiving.is_some() {
            return;
        }
        let batch = self.parts.session.take(MAX_TAKEN);
        if batch.is_empty() {
            return;
        }
        self.parts.counters.received.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let ids = batch.iter().map(|inbound| (inbound.id, inbound.item.reply_within.is_some())).collect();
        let receiver = self.idle.take().unwrap_or_else(|| (self.parts.receiver)());
        self.receiving = Some((receiver.receive(batch), ids));
    }

    /// Those that still have no verdict.
    pub(super) fn tell_withdrawn(&mut self) {
        let Some(mut receiver) = self.idle.take() else { return };
        for id in self.withdrawn.drain(..).filter(|id| self.later.contains_key(id)) {
            // It is what it has in hand that is at stake then, and that is looked at when it is asked for verdicts.
            let _ = called(|| receiver.withdrawn(id));
        }
        self.idle = Some(receiver);
    }

    pub(super) fn tell_missed(&mut self) {
        let Some(mut receiver) = self.idle.take() else { return };
        for missed in self.missed.drain(..) {
            // What it has left for later would have no verdict from another one.
            if called(|| receiver.missed(missed)).is_none() && self.later.is_empty() {
                receiver = (self.parts.receiver)();
            }
        }
        self.idle = Some(receiver);
    }
}

/// A verdict for each that is not left for later, whatever the receiver has left out, none for what it was not given.
fn completed(
    ids: Vec<(InboundId, bool)>,
    verdicts: Vec<(InboundId, Said)>,
    later: &mut hashbrown::HashMap<InboundId, bool>,
) -> Vec<(InboundId, Said)> {
    let mut said: hashbrown::HashMap<_, _> = verdicts.into_iter().collect();
    let complete = |(id, asks): (InboundId, bool)| match said.remove(&id).unwrap_or(Said::Nack(None)) {
        Said::Progress => {
            later.insert(id, asks);
            None
        }
        said => Some((id, answering(asks, said))),
    };
    let now: Vec<_> = ids.into_iter().filter_map(complete).collect();
    // What was left for later, and was decided meanwhile.
    let is_final = |(id, said): &(InboundId, Said)| *said != Said::Progress && later.contains_key(id);
    let mut before: Vec<_> = said.into_iter().filter(is_final).collect();
    before.sort_unstable_by_key(|(id, _)| *id);
    let before = before.into_iter().filter_map(|(id, said)| Some((id, answering(later.remove(&id)?, said))));
    before.chain(now).collect()
}

/// No answers to what are no requests.
fn answering(asks: bool, said: Said) -> Said {
    match said {
        Said::Replied(_) if !asks => Said::Delivered,
        said => said,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Found by a review: a service that had left something for later and panicked left it without a verdict.
    #[test]
    fn what_was_left_for_later_may_be_decided_with_the_next_batch() {
        let id = InboundId::for_tests;
        let mut later = hashbrown::HashMap::new();
        let first = completed(
            vec![(id(1), true), (id(2), false)],
            vec![(id(1), Said::Progress), (id(2), Said::Progress)],
            &mut later,
        );
        assert_eq!((first, later.len()), (Vec::new(), 2));
        let answer = Said::Replied(Bytes::from_static(b"yes"));
        let verdicts = vec![
            (id(3), Said::Delivered),
            (id(2), Said::Nack(None)),
            (id(1), answer.clone()),
            (id(9), Said::Delivered),
        ];
        let second = completed(vec![(id(3), false)], verdicts, &mut later);
        assert_eq!(second, [(id(1), answer), (id(2), Said::Nack(None)), (id(3), Said::Delivered)]);
        assert!(later.is_empty());
    }
}
