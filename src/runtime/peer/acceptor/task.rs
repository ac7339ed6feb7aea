//! The task of one user's device: it lives from its first connection until nothing can be resumed any more.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::mpsc;

use super::super::pump::{Parts, Pump, Woken};
use super::intake::{self, Intake};
use super::registry::{Arrival, Command, Entry, Peer};
use super::{Inner, admit};
use crate::message::Message;
use crate::ports::{Claim, Denied, Identity};
use crate::runtime::contain::{Running, contained};
use crate::session::frame::{Credentials, Published, Refused};
use crate::session::{Code, Event, Input, Quality, Session};
use crate::time::Timestamp;

/// Publishes that are sent to the engine together.
const MAX_PUBLISHES: usize = 64;

type Publishing = Running<'static, Option<Vec<(u64, Published)>>>;
type Authenticating = Running<'static, Option<Result<Identity, Denied>>>;

pub(super) struct SessionTask {
    peer: Peer,
    entry: Arc<Entry>,
    inner: Arc<Inner>,
    commands: mpsc::Receiver<Command>,
    pump: Pump,
    publishes: VecDeque<(u64, Message)>,
    publishing: Option<(Publishing, Vec<u64>)>,
    authenticating: Option<Authenticating>,
    /// What the peer was asked for, and when.
    leaving: Option<(Refused, Timestamp)>,
    /// What was shown last.
    quality: Option<Quality>,
    over: bool,
}

enum Next {
    Command(Option<Command>),
    Pump(Woken),
    Published(Vec<(u64, Published)>),
    Authenticated(Option<Result<Identity, Denied>>),
}

impl SessionTask {
    pub(super) fn new(
        inner: Arc<Inner>,
        peer: Peer,
        entry: Arc<Entry>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let (policy, of, leaving, entry_of) =
            (inner.policy.clone(), peer.clone(), inner.clone(), entry.clone());
        let engine = inner.policy.engine.clone();
        let session =
            Session::acceptor(inner.session.clone(), engine.stream(), peer.user.clone(), peer.device.clone());
        let pump = Pump::new(Parts {
            session,
            limits: inner.session.limits,
            outbox: peer.user.clone(),
            device: peer.device.clone(),
            unwrap: |message| Some(message.clone()),
            receiver: Box::new(move || Box::new(Intake::new(policy.clone(), of.clone()))),
            counters: inner.counters.clone(),
            engine,
            farewell: Box::new(move |stopping| {
                match stopping {
                    true => leaving.asked_to_leave(&entry_of, Code::Draining),
                    // Nobody else has to come later for it.
                    false => leaving.admission.lock().later(Code::Overloaded),
                }
            }),
        });
        Self {
            peer,
            entry,
            inner,
            commands,
            pump,
            publishes: VecDeque::new(),
            publishing: None,
            authenticating: None,
            leaving: None,
            quality: None,
            over: false,
        }
    }

    /// Runs until the session is over.
    pub(super) async fn run(mut self) {
        while !self.over {
            let next = self.next().await;
            self.take(next).await;
            while let Some(event) = self.pump.take_event() {
                self.event(event);
            }
            self.show_quality();
            self.publish();
            self.leave_when_quiet().await;
        }
        self.inner.note_published(&self.peer, self.pump.session().decided_publishes());
        self.inner.registry.remove(&self.peer, self.entry.serial);
        // Whoever was let in by this task a moment too late is let in by the next one.
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Admit(arrival) = command {
                self.inner.clone().admit_later(self.peer.clone(), arrival);
            }
        }
    }

    async fn next(&mut self) -> Next {
        poll_fn(|context| {
            if let Poll::Ready(command) = self.commands.poll_recv(context) {
                return Poll::Ready(Next::Command(command));
            }
            if let Some(authenticating) = self.authenticating.as_mut()
                && let Poll::Ready(result) = authenticating.as_mut().poll(context)
            {
                self.authenticating = None;
                return Poll::Ready(Next::Authenticated(result));
            }
            if let Some((publishing, numbers)) = self.publishing.as_mut()
                && let Poll::Ready(published) = publishing.as_mut().poll(context)
            {
                let lost = || numbers.iter().map(|number| (*number, lost_publish())).collect();
                let mut published: Vec<_> = published.unwrap_or_else(lost);
                published.retain(|(number, _)| numbers.contains(number));
                self.publishing = None;
                return Poll::Ready(Next::Published(published));
            }
            self.pump.poll(context).map(Next::Pump)
        })
        .await
    }

    async fn take(&mut self, next: Next) {
        match next {
            Next::Command(Some(Command::Admit(arrival))) => self.admit(*arrival).await,
            Next::Command(Some(Command::GoAway(refused))) => {
                self.leaving = Some((refused.clone(), self.pump.now()));
                self.pump.handle(Input::GoAway(refused)).await;
            }
            Next::Command(Some(Command::Close(refused))) => self.pump.handle(Input::Close(refused)).await,
            Next::Command(Some(Command::Stop(refused))) => {
                self.pump.handle(Input::Close(refused)).await;
                self.over = true;
            }
            Next::Command(None) => self.over = true,
            Next::Pump(woken) => self.pump.woken(woken).await,
            Next::Published(outcomes) => {
                for (number, outcome) in outcomes {
                    self.pump.handle(Input::Published(number, outcome)).await;
                }
            }
            Next::Authenticated(result) => self.renewed(result).await,
        }
    }

    async fn admit(&mut self, arrival: Arrival) {
        let id = arrival.conn.id();
        self.pump.add(arrival.conn);
        let (hello, mut grant) = (arrival.hello, arrival.grant);
        let client = admit::client(&hello);
        grant.published = self.inner.published(&self.peer).max(self.pump.session().decided_publishes());
        self.pump.handle(Input::Admit { conn: id, hello, grant }).await;
        // A hello that was held up changes nothing about the newer connection that stands.
        if self.pump.session().connection() != Some(id) {
            return;
        }
        self.leaving = None;
        // What was asked about the connection before says nothing of this one, whose credentials are newer.
        self.authenticating = None;
        let mut info = self.entry.info.lock();
        info.transport = arrival.transport;
        info.address = arrival.address;
        drop(info);
        *self.entry.client.lock() = client;
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Opened { resumed, .. } => {
                if !resumed {
                    // Numbers of the life before mean nothing in this one: whoever still wants their outcome publishes again,
                    // and what is on its way to the engine is recognised by its id.
                    self.publishes.clear();
                    self.publishing.iter_mut().for_each(|(_, numbers)| numbers.clear());
                }
                self.inner.opened(resumed);
                self.show(true, |info| info.resumed = resumed);
            }
            Event::Lost { code, .. } => {
                self.inner.lost(&self.peer, code);
                let is_open = self.pump.session().connection().is_some();
                self.show(is_open, |_| {});
            }
            Event::Violation(..) => {
                let address = self.entry.info.lock().address.clone();
                self.inner.failed(&address);
            }
            Event::Publish(number, message) => self.publishes.push_back((number, message)),
            Event::Authenticate(credentials) => self.authenticate(credentials),
            Event::Quality(grade) => self.show(self.pump.session().connection().is_some(), |info| {
                info.grade = grade;
            }),
            Event::Parked(parked) => self.show(self.pump.session().connection().is_some(), |info| {
                info.is_parked = parked;
            }),
            Event::Over(code) => {
                tracing::debug!(user = %self.peer.user, device = %self.peer.device, %code, "a session is over");
                self.over = true;
            }
            _ => {}
        }
    }

    /// Writes down what others see of it.
    fn show(&self, is_open: bool, change: impl FnOnce(&mut super::registry::Connection)) {
        {
            let mut info = self.entry.info.lock();
            if info.is_open != is_open {
                info.is_open = is_open;
                info.since = self.pump.now();
            }
            info.grade = self.pump.session().quality().grade();
            info.rtt = self.pump.session().quality().rtt();
            change(&mut info);
        }
        self.inner.registry.changed();
    }

    /// Most of what happens changes nothing of it.
    fn show_quality(&mut self) {
        let session = self.pump.session();
        let quality = session.connection().map(|_| *session.quality());
        if self.quality == quality {
            return;
        }
        self.quality = quality;
        let mut info = self.entry.info.lock();
        info.quality = quality;
        if let Some(quality) = quality {
            info.grade = quality.grade();
            info.rtt = quality.rtt();
        }
    }

    /// What waits to be published, once what was published before is decided.
    fn publish(&mut self) {
        if self.publishing.is_some() || self.publishes.is_empty() {
            return;
        }
        let count = self.publishes.len().min(MAX_PUBLISHES);
        let batch: Vec<_> = self.publishes.drain(..count).collect();
        let numbers = batch.iter().map(|(number, _)| *number).collect();
        let publishing = intake::publish(self.inner.policy.clone(), self.peer.clone(), batch);
        self.publishing = Some((contained(publishing), numbers));
    }

    fn authenticate(&mut self, credentials: Credentials) {
        let claim = Claim::new(Some(self.peer.user.clone()), self.peer.device.clone(), credentials)
            .renewing(self.peer.user.clone());
        self.authenticating = Some(self.inner.authenticate(claim));
    }

    async fn renewed(&mut self, result: Option<Result<Identity, Denied>>) {
        let refused = |code: Code, retry_after| Refused { code, retry_after, text: code.text().to_owned() };
        let result = match result {
            Some(Ok(identity)) if identity.user == self.peer.user => {
                Ok(identity.expires_in.map(|expires_in| self.pump.now().after(expires_in)))
            }
            Some(Ok(_)) => Err(refused(Code::Forbidden, None)),
            Some(Err(denied)) => {
                tracing::warn!(user = %self.peer.user, %denied, "new credentials were refused");
                Err(refused(denied.code, denied.retry_after))
            }
            None => Err(refused(Code::Overloaded, None)),
        };
        self.pump.handle(Input::Renewed(result)).await;
    }

    /// A peer that was asked to leave is let go when nothing is under way.
    async fn leave_when_quiet(&mut self) {
        let Some((refused, asked)) =
            self.leaving.as_ref().filter(|_| self.pump.session().connection().is_some())
        else {
            return;
        };
        if self.pump.session().is_quiet() && self.publishing.is_none() && self.publishes.is_empty() {
            let waited = self.pump.now().since(*asked);
            let retry_after = refused.retry_after.map(|after| after.saturating_sub(waited));
            let refused = Refused { retry_after, ..refused.clone() };
            self.leaving = None;
            self.pump.handle(Input::Close(refused)).await;
            while let Some(event) = self.pump.take_event() {
                self.event(event);
            }
        }
    }
}

/// Its sending panicked on the way: nobody knows.
fn lost_publish() -> Published {
    let code = Code::Failed;
    Published::Refused(Refused { code, retry_after: None, text: code.text().to_owned() })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::tests::{acceptor, entry};
    use super::*;

    fn task() -> SessionTask {
        let acceptor = acceptor();
        let peer = Peer::new("alice".try_into().unwrap(), "phone".try_into().unwrap());
        let (commands, taken) = mpsc::channel(1);
        let entry = entry(&acceptor, &peer, commands);
        SessionTask::new(acceptor.guard.0.clone(), peer, entry, taken)
    }

    /// Found by a review: while a disk hung, the publishes of each new life were kept beside those of the lives before.
    #[tokio::test]
    async fn publishes_of_a_life_that_is_over_are_forgotten_and_their_outcomes_not_said_in_the_next() {
        let mut task = task();
        let message = || Message::to("bob", "chat.message", Bytes::new()).build().unwrap();
        let opened = |resumed| Event::Opened { resumed, user: "alice".try_into().unwrap() };
        task.publishing = Some((contained(async { vec![(1, Published::Accepted)] }), vec![1]));
        task.event(Event::Publish(2, message()));
        task.event(opened(true));
        assert_eq!(task.publishes.len(), 1, "the life goes on");
        task.event(opened(false));
        task.event(Event::Publish(1, message()));
        assert_eq!(task.publishes.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1]);
        let Next::Published(outcomes) = task.next().await else {
            panic!("that of the life before is decided")
        };
        assert!(outcomes.is_empty(), "another message has that number now");
    }

    /// Found by a review of the change before: a session that ended was shown with a connection.
    #[tokio::test]
    async fn who_is_parked_no_more_as_the_life_is_over_is_not_shown_with_a_connection() {
        let mut task = task();
        task.show(false, |_| {});
        task.event(Event::Parked(false));
        assert!(!task.entry.info.lock().is_open);
    }
}
