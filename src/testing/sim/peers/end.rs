//! What lies between a session and an engine: offers and outcomes, deliveries and answers.

use core::time::Duration;
use std::collections::BTreeMap;

use super::{Who, World};
use crate::id::UserId;
use crate::machine::{Accepted, Delivery, EntryRef, Input as Told, LinkId, Refusal, Ticket, Verdict};
use crate::record::Seq;
use crate::session::frame::{Credentials, GapReason, Item, Missed, Place, Published, Refused, encode};
use crate::session::{self, Action, Code, DialInput, Event, Inbound, InboundId, Input, Outcome, Session};
use crate::testing::sim::link::Reaction;
use crate::testing::sim::node::Node;

/// A session, and what its host has for it.
#[derive(Debug)]
pub(super) struct End {
    pub(super) session: Session,
    /// Whom it drains the outbox of.
    pub(super) user: UserId,
    pub(super) link: Option<LinkId>,
    /// What the engine was asked to take and has not answered, with where it comes from.
    pub(super) asked: BTreeMap<Ticket, (InboundId, EntryRef)>,
    floors: [Seq; 4],
    /// Nacks that were said in this life of the session.
    pub(super) nacks: u64,
    /// The sink of whose gaps the peer is being told.
    telling: Option<LinkId>,
}

impl End {
    pub(super) fn new(session: Session, user: UserId) -> Self {
        let floors = [Seq::ZERO; 4];
        Self { session, user, link: None, asked: BTreeMap::new(), floors, nacks: 0, telling: None }
    }
}

impl World {
    pub(super) fn node_mut(&mut self, who: Who) -> Option<&mut Node> {
        match who {
            Who::Client(client) => self.clients[client].node.as_mut(),
            Who::Server(server, _) => self.servers.get_mut(server).map(|server| &mut server.node),
        }
    }

    pub(super) fn end_mut(&mut self, who: Who) -> Option<&mut End> {
        match who {
            Who::Client(client) => self.clients[client].end.as_mut(),
            Who::Server(server, client) => self.servers.get_mut(server)?.ends.get_mut(&client),
        }
    }

    /// Everybody who has a session.
    pub(super) fn everybody(&self) -> Vec<Who> {
        let clients = (0..self.clients.len()).filter(|client| self.clients[*client].end.is_some());
        let servers = self.servers.iter().enumerate();
        let servers = servers.flat_map(|(n, server)| server.ends.keys().map(move |c| Who::Server(n, *c)));
        clients.map(Who::Client).chain(servers).collect()
    }

    pub(super) fn now_of(&self, who: Who) -> crate::time::Timestamp {
        match who {
            Who::Client(client) => self.clients[client].now(),
            Who::Server(server, _) => self.servers[server].node.now,
        }
    }

    /// Tells a session something, and does what it says.
    pub(super) fn tell(&mut self, who: Who, input: Input) -> Result<(), String> {
        let now = self.now_of(who);
        self.gather_traces();
        if self.trace.is_some() && !matches!(input, Input::Tick) {
            let text = format!("{:?} {who:?} < {input:?}", self.clock);
            self.note(|| text);
        }
        let Some(end) = self.end_mut(who) else { return Ok(()) };
        end.session.handle(now, input);
        self.drain(who)
    }

    pub(super) fn drain(&mut self, who: Who) -> Result<(), String> {
        while let Some(action) = self.end_mut(who).and_then(|end| end.session.poll_action()) {
            if self.trace.is_some() {
                let text = format!("{:?} {who:?} > {action:?}", self.clock);
                self.note(|| text);
            }
            match action {
                Action::Send(conn, mut frame, codec) => {
                    self.spoil_sent(who, &mut frame);
                    let (calm, clock) = (self.calm, self.clock);
                    let net = &mut self.clients[who.client()].net;
                    if let Some(delay) = net.carry(conn, who.side(), clock, &mut self.random, calm) {
                        let mut bytes = Vec::new();
                        encode(&frame, codec, &mut bytes);
                        self.at(delay, super::Due::Arrive(who.client(), conn, who.side().other(), bytes));
                    }
                }
                Action::Disconnect(conn, _) => self.hang_up(who.client(), conn, who.side()),
                Action::Event(event) => self.event(who, event)?,
            }
        }
        Ok(())
    }

    fn event(&mut self, who: Who, event: Event) -> Result<(), String> {
        match event {
            Event::Opened { resumed, .. } => self.opened(who, resumed)?,
            Event::Lost { code, retry_after, .. } => self.connection_lost(who, code, retry_after)?,
            Event::SwitchFailed { code, retry_after, .. } => {
                self.dial(who.client(), DialInput::Failed(code, retry_after))?;
            }
            Event::Outcomes(outcomes) => self.outcomes(who, outcomes)?,
            Event::Ready => return self.take(who),
            Event::Floor(_, place) => self.forget(who, place),
            Event::Publish(number, message) => self.published(who, number, message),
            Event::Receipt(number, outcome) => self.receipt(who, number, outcome.as_ref())?,
            Event::RenewSoon => {
                // Most hosts are in time, at the first question or a later one.
                if self.calm || self.random.chance(40) {
                    let delay = self.millis(500);
                    self.at(delay, super::Due::Credentials(who.client()));
                }
            }
            Event::Authenticate(credentials) => self.authenticate(who, credentials),
            Event::Violation(code, text) => {
                return Err(format!("{who:?} found a violation: {code:?} {text}"));
            }
            Event::Over(code) => self.over(who, code)?,
            Event::Quality(grade) => {
                if let Who::Client(client) = who {
                    self.dial(client, DialInput::Graded(grade))?;
                }
            }
            Event::GoodUntil(until) => self.dial(who.client(), DialInput::GoodUntil(until))?,
            Event::GapsHeard(told) => {
                let link = self.end_mut(who).and_then(|end| end.telling.take());
                if let (Some(link), Some(node)) = (link, self.node_mut(who)) {
                    node.gaps_told(link, told);
                }
            }
            Event::Gap(..)
            | Event::Reply(..)
            | Event::ReplyTimedOut(_)
            | Event::NoReply(_)
            | Event::ReplyTooLarge { .. }
            | Event::Withdrawn(_)
            | Event::GoingAway(_)
            | Event::Parked(_) => {}
        }
        Ok(())
    }

    fn opened(&mut self, who: Who, resumed: bool) -> Result<(), String> {
        if let Who::Client(client) = who {
            self.dial(client, DialInput::Opened)?;
            match resumed {
                true => self.lived.resumed += 1,
                false => self.lived.fresh += 1,
            }
        }
        let Some(end) = self.end_mut(who) else { return Ok(()) };
        if !resumed {
            end.nacks = 0;
            // What was asked in an older life is answered to nobody.
            end.asked.clear();
        }
        let (user, has_link) = (end.user.clone(), end.link.is_some());
        if !has_link {
            let link = self.node_mut(who).and_then(|node| node.attach(user, who.device(), true));
            self.end_mut(who).into_iter().for_each(|end| end.link = link);
        }
        Ok(())
    }

    // ----------------------------------------------------------------------------------------------- to the peer

    /// Hands the session what its engine offers for it.
    pub(super) fn offer(&mut self, who: Who) -> Result<(), String> {
        let within = self.random.chance(5).then(|| Duration::from_millis(1 + self.random.below(5000)));
        let Some(link) = self.end_mut(who).and_then(|end| end.link) else { return Ok(()) };
        let Some(node) = self.node_mut(who) else { return Ok(()) };
        let links = node.engine.as_mut().map(|engine| &mut engine.links);
        let Some(found) = links.and_then(|links| links.get_mut(&link)) else {
            // The engine has dismissed it.
            self.end_mut(who).into_iter().for_each(|end| end.link = None);
            return Ok(());
        };
        let (batch, is_told) = (core::mem::take(&mut found.queue), found.is_told);
        if is_told && self.end_mut(who).is_some_and(|end| end.telling.is_none()) {
            self.end_mut(who).into_iter().for_each(|end| end.telling = Some(link));
            self.tell(who, Input::Gap(Missed::new(1, GapReason::Expired)))?;
        }
        if batch.is_empty() {
            return Ok(());
        }
        for delivery in &batch {
            self.raise_floor(who, delivery.entry, delivery.floor)?;
        }
        let item = |delivery: Delivery| Item {
            place: Place { lane: delivery.entry.lane, seq: delivery.entry.seq },
            accepted_at: delivery.accepted_at,
            attempts: delivery.attempts,
            redelivered: delivery.redelivered,
            reply_within: within,
            message: delivery.message,
        };
        self.tell(who, Input::Offer(batch.into_iter().map(item).collect()))
    }

    fn raise_floor(&mut self, who: Who, entry: EntryRef, floor: Seq) -> Result<(), String> {
        let Some(end) = self.end_mut(who) else { return Ok(()) };
        let Some(known) = end.floors.get_mut(entry.lane.index()).filter(|known| **known < floor) else {
            return Ok(());
        };
        *known = floor;
        self.tell(who, Input::Floor(Place { lane: entry.lane, seq: floor }))
    }

    /// What the session says of offers is what the engine hears.
    fn outcomes(&mut self, who: Who, outcomes: Vec<(Place, Outcome)>) -> Result<(), String> {
        let flaw = self.flaw;
        let mut verdicts = Vec::new();
        for (place, outcome) in outcomes {
            let entry = EntryRef { lane: place.lane, seq: place.seq };
            if outcome == Outcome::Delivered {
                self.check_delivered(who, entry)?;
                if End::floors_early(flaw) && !crate::testing::sim::oracle::is_volatile(entry) {
                    self.raise_floor(who, entry, entry.seq)?;
                }
            }
            verdicts.push((
                entry,
                match outcome {
                    Outcome::Delivered => Verdict::Delivered,
                    Outcome::Unconfirmed => Verdict::Unconfirmed,
                    Outcome::Progress => Verdict::Progress,
                    Outcome::Nack(delay) => Verdict::Nack(delay),
                    Outcome::Busy(delay) => Verdict::Busy(delay),
                    Outcome::Disconnected => Verdict::Busy(Duration::ZERO),
                    Outcome::Rejected(_) => Verdict::Rejected,
                },
            ));
        }
        let Some(end) = self.end_mut(who) else { return Ok(()) };
        let Some((link, user)) = end.link.map(|link| (link, end.user.clone())) else { return Ok(()) };
        if let Some(node) = self.node_mut(who) {
            node.react(link, &user, Reaction { applied: Vec::new(), verdicts });
        }
        Ok(())
    }

    /// Lets go of the engine's sink.
    pub(super) fn detach(&mut self, who: Who) {
        let link = self.end_mut(who).and_then(|end| end.link.take());
        if let (Some(link), Some(node)) = (link, self.node_mut(who)) {
            node.detach(link);
        }
    }

    // --------------------------------------------------------------------------------------------- from the peer

    /// A host that has nothing in hand takes what waits.
    pub(super) fn take(&mut self, who: Who) -> Result<(), String> {
        if let Who::Client(client) = who
            && self.clients[client].light.is_some()
        {
            return self.take_light(client);
        }
        let max = 1 + self.random.index(6);
        let Some(end) = self.end_mut(who).filter(|end| end.asked.is_empty()) else { return Ok(()) };
        let taken = end.session.take(max);
        if taken.is_empty() {
            return Ok(());
        }
        let Some(node) = self.node_mut(who).filter(|node| node.engine.is_some()) else { return Ok(()) };
        let mut asked = Vec::new();
        let mut by_shard: BTreeMap<usize, Vec<(Ticket, Delivery)>> = BTreeMap::new();
        for Inbound { id, stream, floor, item } in taken {
            let ticket = Self::next_ticket(node);
            let entry = EntryRef { lane: item.place.lane, seq: item.place.seq };
            asked.push((ticket, (id, entry)));
            node.oracle.sent(ticket, item.message.clone());
            let delivery = Delivery {
                message: item.message,
                stream,
                entry,
                floor,
                accepted_at: item.accepted_at,
                attempts: item.attempts,
                redelivered: item.redelivered,
            };
            by_shard.entry(node.shard_of(delivery.message.recipient())).or_default().push((ticket, delivery));
        }
        for (shard, batch) in by_shard {
            node.input(shard, Told::Receive(batch));
        }
        if self.acks_early() {
            let verdicts = asked.iter().map(|(_, (id, _))| (*id, session::Verdict::Delivered)).collect();
            self.tell(who, Input::Verdicts(verdicts))?;
        }
        if let Some(end) = self.end_mut(who) {
            end.asked.extend(asked);
        }
        self.drain(who)?;
        self.answer(who)
    }

    /// Brings the engine's answers to whoever asked.
    pub(super) fn answer(&mut self, who: Who) -> Result<(), String> {
        let answers = self.node_mut(who).map(|node| core::mem::take(&mut node.answers)).unwrap_or_default();
        let mut told: BTreeMap<Who, Vec<(InboundId, session::Verdict)>> = BTreeMap::new();
        for (ticket, result) in answers {
            let asking = self.everybody().into_iter().filter(|other| other.is_of(who));
            let asking: Vec<_> = asking.collect();
            for other in asking {
                let found = self.end_mut(other).and_then(|end| end.asked.remove(&ticket));
                if let Some((id, entry)) = found {
                    if result.is_ok() {
                        self.applied(other, entry);
                    }
                    told.entry(other).or_default().push((id, verdict(&result)));
                }
            }
            self.decided(who, ticket, &result)?;
        }
        for (other, verdicts) in told {
            if !self.acks_early() {
                self.tell(other, Input::Verdicts(verdicts))?;
            }
            self.take(other)?;
        }
        Ok(())
    }

    /// A message reached the other side for good: the sender's oracle knows it before the sender does.
    pub(super) fn applied(&mut self, receiver: Who, entry: EntryRef) {
        self.lived.applied += 1;
        let node = match receiver {
            Who::Client(_) => Some(&mut self.servers[0].node),
            Who::Server(_, client) => self.clients[client].node.as_mut(),
        };
        if let Some(node) = node.filter(|_| !crate::testing::sim::oracle::is_volatile(entry)) {
            let now = node.now;
            node.oracle.applied(now, entry.seq);
        }
    }

    /// What is said to have been delivered was.
    fn check_delivered(&mut self, sender: Who, entry: EntryRef) -> Result<(), String> {
        let node = match sender {
            Who::Client(client) => self.clients[client].node.as_ref(),
            Who::Server(..) => Some(&self.servers[0].node),
        };
        let kept = node.and_then(|node| node.oracle.messages.get(&entry.seq));
        match kept.is_some_and(|kept| !kept.applied) {
            true => Err(format!("{entry:?} was said to {sender:?} to be delivered, and was not taken")),
            false => Ok(()),
        }
    }
}

impl Who {
    const fn is_of(self, other: Self) -> bool {
        match (self, other) {
            (Self::Client(a), Self::Client(b)) | (Self::Server(a, _), Self::Server(b, _)) => a == b,
            _ => false,
        }
    }

    const fn device(self) -> u64 {
        match self {
            Self::Client(_) => 20,
            Self::Server(..) => 21,
        }
    }
}

fn verdict(result: &Result<Accepted, Refusal>) -> session::Verdict {
    match result {
        Ok(_) => session::Verdict::Delivered,
        Err(refusal) if refusal.is_final() => session::Verdict::Rejected(Code::Invalid),
        Err(_) => session::Verdict::Busy(Duration::from_millis(100)),
    }
}

/// What a publisher is told.
pub(super) fn receipt(result: &Result<Accepted, Refusal>) -> Published {
    let refused = |code: Code| Published::Refused(Refused { code, retry_after: None, text: String::new() });
    match result {
        Ok(_) => Published::Accepted,
        Err(refusal) if refusal.is_final() => refused(Code::Invalid),
        Err(_) => refused(Code::Busy),
    }
}

/// Until when credentials are good, as they are written in them.
pub(super) fn good_until(credentials: &Credentials) -> u64 {
    let bytes = <[u8; 8]>::try_from(credentials.0.as_ref()).unwrap_or_default();
    u64::from_le_bytes(bytes)
}
