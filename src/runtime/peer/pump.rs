//! What moves between a session, its connections, its engine and whoever takes the peer's messages: the same at both ends.
//!
//! It owns one [`Session`] and runs in one task, with at most one read and one write of each connection, and one batch of
//! the peer's messages, under way. It decides nothing.

mod taking;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::alarm::Alarm;
use super::conn::{Conn, Heard};
use super::counters::Counters;
use super::link::Link;
use super::receive::{AnyReceiver, Received};
use crate::id::{DeviceId, UserId};
use crate::machine::{Delivery, EntryRef, Verdict, Withdrawn};
use crate::message::Message;
use crate::ports::TransportError;
use crate::record::{Gap, LaneId, Seq};
use crate::runtime::contain::Running;
use crate::runtime::engine::Engine;
use crate::runtime::queue::Handed;
use crate::session::frame::{DecodeError, GapReason, Item, Limits, Missed, Place, Refused, decode};
use crate::session::{Action, Code, ConnId, Event, InboundId, Input, Outcome, Session, Verdict as Said};
use crate::time::Timestamp;

/// Messages from the peer that are handed over together.
const MAX_TAKEN: usize = 64;

/// Makes whoever takes the peer's messages: at first, and again when one has panicked.
pub(super) type MakeReceiver = Box<dyn Fn() -> Box<dyn AnyReceiver> + Send>;

/// What is told to the peer instead of what the engine holds; `None` for what is none of its business.
pub(super) type Unwrap = fn(&Message) -> Option<Message>;

/// A batch that is being received, and which of it asks for answers.
type Receiving = (Running<'static, Option<Received>>, Vec<(InboundId, bool)>);

/// What woke a session's task.
#[derive(Debug)]
pub(super) enum Woken {
    Heard(ConnId, Heard),
    /// `None`: the engine has ended the attachment.
    Handed(Option<Handed>),
    Received(Vec<(InboundId, Said)>),
    Alarm,
}

/// What a pump is made of.
pub(super) struct Parts {
    pub(super) engine: Engine,
    pub(super) session: Session,
    pub(super) limits: Limits,
    /// Whose outbox is drained, and with which device.
    pub(super) outbox: UserId,
    pub(super) device: DeviceId,
    pub(super) unwrap: Unwrap,
    pub(super) receiver: MakeReceiver,
    pub(super) counters: Arc<Counters>,
    /// What a connection is closed with when the engine offers nothing more: because it stops, or for another reason.
    pub(super) farewell: Box<dyn Fn(bool) -> Refused + Send>,
}

pub(super) struct Pump {
    parts: Parts,
    conns: Vec<Conn>,
    link: Option<Link>,
    /// The engine has ended the attachment, or is gone: there is none again on this connection.
    dismissed: Option<ConnId>,
    idle: Option<Box<dyn AnyReceiver>>,
    receiving: Option<Receiving>,
    /// What the receiver has left for later, and whether it asks for an answer.
    later: hashbrown::HashMap<InboundId, bool>,
    /// What the receiver is told of once it is idle.
    withdrawn: Vec<InboundId>,
    /// The same: once for each reason and lane.
    missed: Vec<Missed>,
    /// Answers whose acknowledgements are about to be reported.
    replies: Vec<(Place, Bytes)>,
    floors: [Seq; 4],
    alarm: Alarm,
    /// The attachment has handed over gaps of which the peer has not heard.
    tells_gaps: bool,
    /// Where polling begins, so that nothing is starved.
    turn: u8,
    events: VecDeque<Event>,
}

impl Pump {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            idle: Some((parts.receiver)()),
            parts,
            conns: Vec::new(),
            link: None,
            dismissed: None,
            receiving: None,
            later: hashbrown::HashMap::new(),
            withdrawn: Vec::new(),
            missed: Vec::new(),
            replies: Vec::new(),
            floors: [Seq::ZERO; 4],
            alarm: Alarm::default(),
            tells_gaps: false,
            turn: 0,
            events: VecDeque::new(),
        }
    }

    pub(super) const fn session(&self) -> &Session {
        &self.parts.session
    }

    pub(super) fn now(&self) -> Timestamp {
        self.parts.engine.inner.clock.now()
    }

    /// What the role has to see to.
    pub(super) fn take_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Another session takes the place of one that is over.
    pub(super) fn replace(&mut self, session: Session) {
        self.parts.session = session;
        self.later.clear();
        self.floors = [Seq::ZERO; 4];
    }

    /// A connection stands; the session is told of it next.
    pub(super) fn add(&mut self, conn: Conn) {
        self.conns.push(conn);
    }

    /// Tells the session, and does what it says.
    pub(super) async fn handle(&mut self, input: Input) {
        let now = self.now();
        self.parts.session.handle(now, input);
        self.drain().await;
    }

    /// Waits for the next thing that happens, with `also` before all else.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Woken> {
        self.turn = (self.turn + 1) % 3;
        for i in 0..3 {
            let woken = match (self.turn + i) % 3 {
                0 => self.poll_conns(context),
                1 => self.poll_receiving(context),
                _ => self.poll_link(context),
            };
            if woken.is_ready() {
                return woken;
            }
        }
        let at = self.parts.session.poll_timeout();
        self.alarm.poll(context, self.parts.engine.inner.clock.now(), at).map(|()| Woken::Alarm)
    }

    fn poll_conns(&mut self, context: &mut Context<'_>) -> Poll<Woken> {
        for conn in &mut self.conns {
            if let Poll::Ready(heard) = conn.poll_io(context) {
                return Poll::Ready(Woken::Heard(conn.id(), heard));
            }
        }
        Poll::Pending
    }

    fn poll_link(&mut self, context: &mut Context<'_>) -> Poll<Woken> {
        self.link.as_mut().map_or(Poll::Pending, |link| link.poll_handed(context).map(Woken::Handed))
    }

    /// Does what follows from what happened.
    pub(super) async fn woken(&mut self, woken: Woken) {
        match woken {
            Woken::Heard(conn, heard) => self.heard(conn, heard).await,
            Woken::Handed(Some(Handed::Batch(batch))) => self.offer(batch).await,
            Woken::Handed(Some(Handed::Gaps(gaps))) => self.gaps(gaps).await,
            Woken::Handed(Some(Handed::Withdrawn(Withdrawn { entry, .. }))) => {
                self.handle(Input::Withdraw(vec![place(entry)])).await;
            }
            Woken::Handed(None) => self.dismiss().await,
            Woken::Received(verdicts) => {
                self.tell_missed();
                self.handle(Input::Verdicts(verdicts)).await;
                self.tell_withdrawn();
                self.receive();
            }
            Woken::Alarm => self.handle(Input::Tick).await,
        }
    }

    async fn heard(&mut self, conn: ConnId, heard: Heard) {
        let bytes = match heard {
            Heard::Bytes(bytes) => bytes,
            Heard::Written => return self.handle(Input::Written(conn)).await,
            Heard::Closed => return self.gone(conn, None).await,
            Heard::Broken(TransportError::TooLarge { limit }) => {
                let error = DecodeError::TooLarge { bytes: limit.saturating_add(1), max: limit };
                self.handle(Input::Garbage(conn, error)).await;
                return self.gone(conn, None).await;
            }
            Heard::Broken(error) => return self.gone(conn, Some(error)).await,
        };
        self.parts.counters.frame_in(bytes.len());
        self.link.iter().for_each(Link::seen);
        match decode(&bytes, &self.parts.limits) {
            Ok(frame) => self.handle(Input::Frame(conn, frame)).await,
            Err(error) => self.handle(Input::Garbage(conn, error)).await,
        }
    }

    async fn gone(&mut self, conn: ConnId, error: Option<TransportError>) {
        if let Some(error) = error {
            tracing::debug!(%error, "a connection broke");
        }
        self.conns.retain(|open| open.id() != conn);
        self.handle(Input::Lost(conn)).await;
    }

    /// The engine's deliveries, as the session's items.
    async fn offer(&mut self, batch: Vec<Delivery>) {
        let now = self.now();
        let (mut items, mut foreign) = (Vec::with_capacity(batch.len()), Vec::new());
        for delivery in batch {
            let Some(message) = (self.parts.unwrap)(&delivery.message) else {
                foreign.push((delivery.entry, Verdict::Rejected));
                continue;
            };
            let place = place(delivery.entry);
            self.raise_floor(Place { seq: delivery.floor, ..place });
            items.push(Item {
                place,
                accepted_at: delivery.accepted_at,
                attempts: delivery.attempts,
                redelivered: delivery.redelivered,
                reply_within: self.parts.engine.inner.requests.within(&message, now),
                message,
            });
        }
        if !foreign.is_empty() {
            self.report(foreign).await;
        }
        self.handle(Input::Offer(items)).await;
    }

    /// The peer's inbox may forget what lies below.
    fn raise_floor(&mut self, floor: Place) {
        let now = self.now();
        if let Some(known) = self.floors.get_mut(floor.lane.index())
            && floor.seq > *known
        {
            *known = floor.seq;
            self.parts.session.handle(now, Input::Floor(floor));
        }
    }

    async fn gaps(&mut self, gaps: Vec<Gap>) {
        self.tells_gaps = true;
        for gap in gaps {
            let parts = [
                (gap.expired, GapReason::Expired),
                (gap.dead, GapReason::Undeliverable),
                (gap.evicted, GapReason::Overflow),
            ];
            for (count, reason) in parts.into_iter().filter(|(count, _)| *count > 0) {
                let missed = Missed::new(u64::from(count), reason).between(gap.lane, gap.first, gap.last);
                self.handle(Input::Gap(missed)).await;
            }
        }
    }

    async fn drain(&mut self) {
        while let Some(action) = self.parts.session.poll_action() {
            match action {
                Action::Send(conn, frame, codec) => {
                    self.parts.counters.frame_out(&frame);
                    let tells = self.parts.session.wants_written(conn);
                    if let Some(open) = self.conns.iter_mut().find(|open| open.id() == conn) {
                        open.send(&frame, codec);
                        if tells {
                            open.tell_when_written();
                        }
                    }
                }
                Action::Disconnect(conn, code) => self.disconnect(conn, code),
                Action::Event(event) => self.event(event).await,
            }
        }
        self.follow_connection().await;
    }

    fn disconnect(&mut self, conn: ConnId, code: Code) {
        if let Some(at) = self.conns.iter().position(|open| open.id() == conn) {
            self.conns.swap_remove(at).close(code, &self.parts.engine.inner.handle);
        }
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Outcomes(outcomes) => {
                let mut replies = core::mem::take(&mut self.replies);
                let verdicts = outcomes.into_iter().map(|(place, outcome)| {
                    let reply = replies.iter().position(|(answered, _)| *answered == place);
                    let reply =
                        reply.filter(|_| outcome == Outcome::Delivered).map(|at| replies.swap_remove(at).1);
                    (entry(place), reply.map_or_else(|| verdict(&outcome), Verdict::Replied))
                });
                self.report(verdicts.collect()).await;
            }
            Event::Ready => self.receive(),
            Event::Withdrawn(id) => {
                self.withdrawn.push(id);
                self.tell_withdrawn();
            }
            Event::GapsHeard(heard) => {
                // Of what an earlier attachment told, the engine tells again; one that is gone will when it is back.
                if let Some(link) = self.link.as_ref().filter(|_| core::mem::take(&mut self.tells_gaps)) {
                    let _ = link.told(heard).await;
                }
            }
            Event::ReplyTooLarge { bytes } => {
                tracing::warn!(
                    messaging.system = "lastmile",
                    user = %self.parts.outbox,
                    device = %self.parts.device,
                    "an answer of {bytes} bytes was dropped: keep answers below max_reply_bytes and the peer's max_frame, or \
                     send a message of its own"
                );
            }
            Event::Gap(missed) => {
                match self.missed.iter_mut().find(|known| known.is_like(&missed)) {
                    Some(known) => known.add(&missed),
                    None => self.missed.push(missed),
                }
                self.tell_missed();
            }
            Event::Violation(code, text) => {
                self.parts.counters.violations.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    messaging.system = "lastmile",
                    user = %self.parts.outbox,
                    device = %self.parts.device,
                    error.r#type = code.number(),
                    "a peer broke the protocol: {text}"
                );
                self.events.push_back(Event::Violation(code, text));
            }
            Event::Reply(place, answer) => self.replies.push((place, answer)),
            Event::Floor(..) | Event::NoReply(_) | Event::ReplyTimedOut(_) => {}
            event => self.events.push_back(event),
        }
    }

    /// Verdicts for what is offered, or was: the machine knows what to do with those that come late. Without an attachment
    /// everything waits again already.
    async fn report(&mut self, verdicts: Vec<(EntryRef, Verdict)>) {
        if let Some(link) = &self.link {
            // An engine that is gone will offer them again when it is back.
            let _ = link.report(verdicts).await;
        }
    }

    /// Attached while a connection is open, and at no other time: an absent peer must not burn attempts.
    async fn follow_connection(&mut self) {
        match (self.parts.session.connection(), self.link.is_some()) {
            (Some(conn), false) if self.dismissed != Some(conn) => {
                let parts = &self.parts;
                self.link = Some(Link::attach(&parts.engine, &parts.outbox, &parts.device));
            }
            (None, true) => {
                if let Some(link) = self.link.take() {
                    self.tells_gaps = false;
                    link.detach().await;
                }
            }
            _ => {}
        }
    }

    /// The engine offers nothing more: it is stopping, or the same device is attached elsewhere, or there are too many.
    async fn dismiss(&mut self) {
        let why = self.link.take().map(|link| link.why());
        self.tells_gaps = false;
        self.dismissed = self.parts.session.connection();
        tracing::debug!(?why, user = %self.parts.outbox, "the engine ended a session's attachment");
        let stopping = self.parts.engine.inner.closing.load(Ordering::Acquire);
        let refused = (self.parts.farewell)(stopping);
        Box::pin(self.handle(Input::Close(refused))).await;
    }
}

/// A peer knows priorities only: what is for its device is told from what is for any by its place.
fn place(EntryRef { lane, seq }: EntryRef) -> Place {
    Place { lane: lane.priority().map_or(lane, LaneId::from), seq }
}

const fn entry(place: Place) -> EntryRef {
    EntryRef { lane: place.lane, seq: place.seq }
}

fn verdict(outcome: &Outcome) -> Verdict {
    match outcome {
        Outcome::Delivered => Verdict::Delivered,
        Outcome::Unconfirmed => Verdict::Unconfirmed,
        Outcome::Progress => Verdict::Progress,
        Outcome::Nack(delay) => Verdict::Nack(*delay),
        Outcome::Busy(delay) => Verdict::Busy(*delay),
        // The session cannot confirm it any more; its next life can. A sink that says `Disconnected` would be detached.
        Outcome::Disconnected => Verdict::Busy(core::time::Duration::ZERO),
        Outcome::Rejected(_) => Verdict::Rejected,
    }
}
