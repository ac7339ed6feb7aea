//! Waiting until a time of the engine's clock.

use core::time::Duration;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::Sleep;

use crate::time::Timestamp;

/// The longest sleep: a clock that is not the system's may go faster.
const MAX_SLEEP: Duration = Duration::from_secs(3600);

/// One timer that is armed anew only when it must ring earlier than it would: most deadlines move on before they pass.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    at: Timestamp,
}

impl Alarm {
    /// Ready when that time has come, or some earlier one that was asked for before.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        now: Timestamp,
        at: Option<Timestamp>,
    ) -> Poll<()> {
        let Some(at) = at else { return Poll::Pending };
        if at <= now {
            return Poll::Ready(());
        }
        if self.sleep.is_none() || at < self.at {
            self.at = at;
            self.sleep = Some(Box::pin(tokio::time::sleep(at.since(now).min(MAX_SLEEP))));
        }
        let ready = self.sleep.as_mut().is_none_or(|sleep| sleep.as_mut().poll(context).is_ready());
        if ready {
            self.sleep = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}
