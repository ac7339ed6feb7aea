//! A session as a sink of its engine: offers come out of a queue, verdicts go in, all in order.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::watch;

use crate::error::Closed;
use crate::id::{DeviceId, UserId};
use crate::machine::{EntryRef, Input, LinkId, Verdict};
use crate::runtime::attachment::{Detached, Registry};
use crate::runtime::engine::Engine;
use crate::runtime::mail::{Mail, Post};
use crate::runtime::presence::Sign;
use crate::runtime::queue::{Handed, Queue};

/// An attachment whose queue is read by the session's own task. What it says goes by mail, so that the machine hears of
/// verdicts before it hears that the device has gone.
pub(super) struct Link {
    link: LinkId,
    post: Post,
    registry: Arc<Registry>,
    queue: Queue,
    end: watch::Receiver<Option<Detached>>,
    sign: Sign,
    left: bool,
}

impl Link {
    /// Attaches. The machine hears of it before it hears of any verdict.
    pub(super) fn attach(engine: &Engine, user: &UserId, device: &DeviceId) -> Self {
        let (link, queue, end, sign) = engine.open_link(user, device);
        let (post, registry) = (engine.post(user).clone(), engine.inner.registry.clone());
        Self { link, post, registry, queue, end, sign, left: false }
    }

    /// The peer has said something.
    pub(super) fn seen(&self) {
        self.sign.seen();
    }

    async fn tell(&self, input: Input) -> Result<(), Closed> {
        self.post.mail.send(Mail::Input(input)).await.map_err(|_| Closed)
    }

    /// Says what became of messages.
    pub(super) async fn report(&self, verdicts: Vec<(EntryRef, Verdict)>) -> Result<(), Closed> {
        self.tell(Input::Verdicts { link: self.link, verdicts }).await
    }

    /// Says whether the peer was told of gaps.
    pub(super) async fn told(&self, told: bool) -> Result<(), Closed> {
        self.tell(Input::GapsTold { link: self.link, told }).await
    }

    /// What the engine hands over; `None` when it has ended the attachment.
    pub(super) fn poll_handed(&mut self, context: &mut Context<'_>) -> Poll<Option<Handed>> {
        self.queue.poll_recv(context)
    }

    /// Why the engine ended it.
    pub(super) fn why(&self) -> Detached {
        self.end.borrow().unwrap_or(Detached::Dismissed)
    }

    /// Leaves: what was in flight waits again.
    pub(super) async fn detach(mut self) {
        self.registry.end(self.link, Detached::Dropped);
        self.left = self.tell(Input::Detach(self.link)).await.is_ok();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if !self.left {
            self.registry.end(self.link, Detached::Dropped);
            self.post.note(Input::Detach(self.link));
        }
    }
}
