//! A client's messages on their way into the engine: in its user's name, if it may, and once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::task::{Context, Poll};

use super::super::receive::{AnyReceiver, Full, Received, delivery, is_volatile, verdict};
use super::registry::Peer;
use crate::digest::Digester;
use crate::id::{StreamId, UserId};
use crate::machine::{Delivery, Refusal};
use crate::message::{Durability, Message};
use crate::runtime::contain::{Running, called, contained};
use crate::runtime::engine::Engine;
use crate::session::frame::{Missed, Published, Refused};
use crate::session::{Code, Inbound, InboundId, Verdict};

/// Whether a peer may send a message; the message names its user as its sender already.
pub(super) type Permit = Arc<dyn Fn(&Peer, &Message) -> Result<(), Code> + Send + Sync>;
/// Makes the receiver of a service for one session.
pub(super) type MakeService = Arc<dyn Fn(&Peer) -> Box<dyn AnyReceiver> + Send + Sync>;

/// What every session's intake needs.
pub(super) struct Policy {
    pub(super) engine: Engine,
    pub(super) permit: Permit,
    pub(super) services: HashMap<UserId, MakeService>,
}

impl Policy {
    /// The message as its sender's, if that may send it.
    fn vouch(&self, peer: &Peer, message: &Message) -> Result<Message, Code> {
        let message = message.sent_by(peer.user.clone());
        match called(|| (self.permit)(peer, &message)) {
            Some(Ok(())) => Ok(message),
            Some(Err(code)) if code.is_about_a_message() && code.is_terminal() => Err(code),
            Some(Err(_)) => Err(Code::NotPermitted),
            None => {
                tracing::warn!("a permission hook panicked: the message was refused");
                Err(Code::NotPermitted)
            }
        }
    }
}

/// The log that places of a peer belong to, bound to its user: nobody can speak of another one's places.
fn bound_stream(digester: &Digester, user: &UserId, stream: StreamId) -> StreamId {
    let mut bytes = stream.as_u128().to_be_bytes().to_vec();
    bytes.extend_from_slice(user.as_bytes());
    StreamId::from_u128(digester.bytes(&bytes))
}

/// Takes one session's messages.
pub(super) struct Intake {
    policy: Arc<Policy>,
    peer: Peer,
    services: HashMap<UserId, Service>,
}

/// A service that this session uses.
struct Service {
    receiver: Box<dyn AnyReceiver>,
    /// What it has left for later.
    later: BTreeSet<InboundId>,
}

impl Service {
    /// What it says, and what is left for later from then on.
    fn said(&mut self, verdicts: Vec<(InboundId, Verdict)>) -> Vec<(InboundId, Verdict)> {
        for (id, verdict) in &verdicts {
            match verdict {
                Verdict::Progress => self.later.insert(*id),
                _ => self.later.remove(id),
            };
        }
        verdicts
    }
}

/// A service has panicked that had left these for later.
fn failed(user: &UserId, later: BTreeSet<InboundId>) -> Vec<(InboundId, Verdict)> {
    tracing::warn!(service = %user, "a service panicked: what it had counts as a failed attempt");
    later.into_iter().map(|id| (id, Verdict::Nack(None))).collect()
}

/// Where a message goes.
enum Way {
    Refused(Code),
    /// It is the answer that somebody here waited for.
    Awaited,
    Inbox(Box<Inbound>),
    Service(UserId, Box<Inbound>),
}

impl Intake {
    pub(super) fn new(policy: Arc<Policy>, peer: Peer) -> Self {
        Self { policy, peer, services: HashMap::new() }
    }

    fn way(&self, mut inbound: Inbound) -> Way {
        match self.policy.vouch(&self.peer, &inbound.item.message) {
            Err(code) => Way::Refused(code),
            Ok(message) if self.is_awaited(&message) => Way::Awaited,
            Ok(message) => {
                let at_once =
                    message.durability() == Durability::Volatile || inbound.item.reply_within.is_some();
                let recipient = message.recipient().clone();
                inbound.item.message = message;
                if at_once && self.policy.services.contains_key(&recipient) {
                    return Way::Service(recipient, Box::new(inbound));
                }
                inbound.stream =
                    bound_stream(&self.policy.engine.inner.digester, &self.peer.user, inbound.stream);
                Way::Inbox(Box::new(inbound))
            }
        }
    }

    fn is_awaited(&self, message: &Message) -> bool {
        self.policy.engine.inner.requests.answered(&self.peer.user, message)
    }

    async fn take(&mut self, batch: Vec<Inbound>) -> Vec<(InboundId, Verdict)> {
        let (mut verdicts, mut inbox) = (Vec::with_capacity(batch.len()), Vec::new());
        let mut services: HashMap<UserId, Vec<Inbound>> = HashMap::new();
        for inbound in batch {
            let id = inbound.id;
            match self.way(inbound) {
                Way::Awaited => verdicts.push((id, Verdict::Delivered)),
                Way::Refused(code) => verdicts.push((id, Verdict::Rejected(code))),
                Way::Inbox(inbound) => inbox.push((id, delivery(*inbound))),
                Way::Service(user, inbound) => services.entry(user).or_default().push(*inbound),
            }
        }
        if !inbox.is_empty() {
            verdicts.extend(keep(&self.policy.engine, inbox).await);
        }
        for (user, part) in services {
            verdicts.extend(self.serve(&user, part).await);
        }
        verdicts
    }

    /// A service that panics fails its own messages only.
    async fn serve(&mut self, user: &UserId, batch: Vec<Inbound>) -> Vec<(InboundId, Verdict)> {
        let Service { receiver, later } = match self.services.remove(user) {
            Some(service) => service,
            None => {
                let Some(make) = self.policy.services.get(user) else { return Vec::new() };
                let Some(receiver) = called(|| make(&self.peer)) else { return Vec::new() };
                Service { receiver, later: BTreeSet::new() }
            }
        };
        match receiver.receive(batch).await {
            Some((receiver, verdicts)) => {
                let mut service = Service { receiver, later };
                let verdicts = service.said(verdicts);
                self.services.insert(user.clone(), service);
                verdicts
            }
            None => failed(user, later),
        }
    }

    fn poll_services(&mut self, context: &mut Context<'_>) -> Poll<Vec<(InboundId, Verdict)>> {
        let (mut all, mut is_ready) = (Vec::new(), false);
        let users: Vec<_> = self.services.keys().cloned().collect();
        for user in users {
            let Some(service) = self.services.get_mut(&user).filter(|service| !service.later.is_empty())
            else {
                continue;
            };
            match called(|| service.receiver.poll_verdicts(context)) {
                Some(Poll::Pending) => {}
                Some(Poll::Ready(verdicts)) => {
                    is_ready = true;
                    all.extend(service.said(verdicts));
                }
                None => {
                    is_ready = true;
                    let gone = self.services.remove(&user);
                    all.extend(gone.into_iter().flat_map(|service| failed(&user, service.later)));
                }
            }
        }
        if is_ready { Poll::Ready(all) } else { Poll::Pending }
    }
}

/// Takes messages into the engine, each once. A recipient to whom more devices write than an inbox may remember gets
/// them as if they had been published: recognised by their ids, within the dedup window.
async fn keep(engine: &Engine, batch: Vec<(InboundId, Delivery)>) -> Vec<(InboundId, Verdict)> {
    let results = engine.inbox().take(batch.iter().map(|(_, delivery)| delivery.clone()).collect()).await;
    let mut verdicts = Vec::with_capacity(batch.len());
    for ((id, delivery), mut result) in batch.into_iter().zip(results) {
        let volatile = is_volatile(&delivery);
        if result == Err(Refusal::InboxFull) {
            result = match engine.begin_send(delivery.message.without_schedule().without_parent()).await {
                Some(answer) => answer.await.unwrap_or(Err(Refusal::OutcomeUnknown)).map(drop),
                None => Err(Refusal::ShuttingDown),
            };
        }
        verdicts.push((id, verdict(result, volatile, Full::OneOfMany)));
    }
    verdicts
}

impl AnyReceiver for Intake {
    fn receive(mut self: Box<Self>, batch: Vec<Inbound>) -> Running<'static, Option<Received>> {
        contained(async move {
            let verdicts = self.take(batch).await;
            (self as Box<dyn AnyReceiver>, verdicts)
        })
    }

    fn poll_verdicts(&mut self, context: &mut Context<'_>) -> Poll<Vec<(InboundId, Verdict)>> {
        self.poll_services(context)
    }

    fn withdrawn(&mut self, id: InboundId) {
        let has_it = |service: &&mut Service| service.later.contains(&id);
        let services = self.services.values_mut().filter(has_it);
        services.for_each(|service| _ = called(|| service.receiver.withdrawn(id)));
    }

    fn missed(&mut self, missed: Missed) {
        tracing::debug!(?missed, "a client's messages will not come");
    }
}

/// Takes publishes, in order, and says what became of each when it is durable.
pub(super) async fn publish(
    policy: Arc<Policy>,
    peer: Peer,
    batch: Vec<(u64, Message)>,
) -> Vec<(u64, Published)> {
    let mut outcomes = Vec::with_capacity(batch.len());
    let mut answers = Vec::with_capacity(batch.len());
    for (number, message) in batch {
        match policy.vouch(&peer, &message) {
            Ok(message) => answers.push((number, policy.engine.begin_send(message).await)),
            Err(code) => outcomes.push((number, refused(code))),
        }
    }
    for (number, answer) in answers {
        let outcome = match answer {
            Some(answer) => answer.await.unwrap_or(Err(Refusal::OutcomeUnknown)).map(drop),
            None => Err(Refusal::ShuttingDown),
        };
        outcomes
            .push((number, outcome.map_or_else(|refusal| refused(code(&refusal)), |()| Published::Accepted)));
    }
    outcomes
}

fn refused(code: Code) -> Published {
    Published::Refused(Refused { code, retry_after: None, text: code.text().to_owned() })
}

/// What a publisher is told of a refusal.
const fn code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Conflict => Code::Conflict,
        Refusal::Outdated { .. } => Code::Outdated,
        Refusal::PayloadTooLarge { .. } | Refusal::TooManyCopies { .. } => Code::Invalid,
        Refusal::OutboxFull { .. } | Refusal::EngineFull { .. } => Code::QuotaExceeded,
        // Nobody is there for a volatile message, and it is not kept.
        Refusal::NobodyAttached => Code::Rejected,
        Refusal::OutcomeUnknown => Code::Failed,
        _ => Code::Busy,
    }
}
