//! A server's messages on their way into the client: for its user and nobody else, and once.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::super::receive::{AnyReceiver, Received, delivery, into_inbox};
use crate::id::UserId;
use crate::runtime::Inbox;
use crate::runtime::contain::{Running, contained};
use crate::runtime::requests::Requests;
use crate::session::frame::Missed;
use crate::session::{Code, Inbound, InboundId, Verdict};

/// Takes messages into the client's engine, or hands them to a receiver that keeps none.
pub(super) struct Intake {
    pub(super) user: UserId,
    pub(super) inbox: Inbox,
    pub(super) requests: Arc<Requests>,
    pub(super) direct: Option<Box<dyn AnyReceiver>>,
}

impl Intake {
    fn is_awaited(&self, inbound: &Inbound) -> bool {
        let message = &inbound.item.message;
        message.sender().is_some_and(|from| self.requests.answered(from, message))
    }

    async fn take(&mut self, batch: Vec<Inbound>) -> Option<Vec<(InboundId, Verdict)>> {
        let (ours, others): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|inbound| *inbound.item.message.recipient() == self.user);
        let refused = others.iter().map(|inbound| (inbound.id, Verdict::Rejected(Code::NotPermitted)));
        let mut verdicts: Vec<_> = refused.collect();
        // An answer that somebody waits for is with them, and need not be kept.
        let (answers, ours): (Vec<_>, Vec<_>) =
            ours.into_iter().partition(|inbound| self.is_awaited(inbound));
        verdicts.extend(answers.iter().map(|inbound| (inbound.id, Verdict::Delivered)));
        if ours.is_empty() {
            return Some(verdicts);
        }
        match self.direct.take() {
            Some(receiver) => {
                let (receiver, theirs) = receiver.receive(ours).await?;
                self.direct = Some(receiver);
                verdicts.extend(theirs);
            }
            None => {
                let ours = ours.into_iter().map(|inbound| (inbound.id, delivery(inbound))).collect();
                verdicts.extend(into_inbox(&self.inbox, ours).await);
            }
        }
        Some(verdicts)
    }
}

impl AnyReceiver for Intake {
    fn receive(mut self: Box<Self>, batch: Vec<Inbound>) -> Running<'static, Option<Received>> {
        Box::pin(async move {
            let taken = contained(async move {
                let verdicts = self.take(batch).await?;
                Some((self as Box<dyn AnyReceiver>, verdicts))
            });
            taken.await.flatten()
        })
    }

    fn poll_verdicts(&mut self, context: &mut Context<'_>) -> Poll<Vec<(InboundId, Verdict)>> {
        self.direct.as_mut().map_or(Poll::Pending, |receiver| receiver.poll_verdicts(context))
    }

    fn withdrawn(&mut self, id: InboundId) {
        self.direct.iter_mut().for_each(|receiver| receiver.withdrawn(id));
    }

    fn missed(&mut self, missed: Missed) {
        match self.direct.as_mut() {
            Some(receiver) => receiver.missed(missed),
            None => tracing::info!(?missed, "messages will not come"),
        }
    }
}
