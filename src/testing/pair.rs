//! Two sessions over an adversarial network, with a durable outbox and inbox at either end, in virtual time.
//!
//! Connections break, stall, go half-open and overtake each other; there are partitions, switches of transport and
//! restarts of either end. Messages expire, and so do credentials; the connector publishes besides. A seed decides everything. At the end the network heals, and then every message must have
//! been applied once and in order.

pub(in crate::testing) mod config;
mod end;
pub(in crate::testing) mod inbox;
pub(in crate::testing) mod net;
pub(in crate::testing) mod publishing;
mod trouble;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use self::config::{choose_codecs, horizon, small_config};
use self::end::End;
use self::net::{Net, Side};
use self::publishing::{Heard, Publishing};
use super::sim::Random;
use crate::id::{MessageId, StreamId, UserId};
use crate::message::Message;
use crate::session::frame::{Credentials, Hello, Limits, Token, decode};
use crate::session::{
    Action, Backoff, Code, ConnId, Event, Grant, Greeted, Greeter, Input, Session, SessionConfig,
};
use crate::time::Timestamp;

/// What may go wrong, and how much happens.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Messages that each end sends.
    pub messages: u32,
    /// How often in a hundred steps something breaks.
    pub trouble: u64,
    /// Steps before the network heals.
    pub steps: u32,
}

impl Default for Weather {
    fn default() -> Self {
        Self { messages: 30, trouble: 8, steps: 250 }
    }
}

/// What a life looked like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lived {
    /// Messages that were applied, once each and in order.
    pub applied: u64,
    /// Handshakes that resumed a session.
    pub resumed: u64,
    /// Handshakes that began a new life.
    pub fresh: u64,
    /// Messages that came again and were recognised by the inbox.
    pub recognised: u64,
    /// Restarts of either end.
    pub restarts: u64,
    /// Volatile messages that the receiver was told will not come.
    pub gaps: u64,
    /// How often a consumer was parked.
    pub parked: u64,
    /// Publishes that were accepted, once each.
    pub published: u64,
    /// Credentials that were renewed in time.
    pub renewed: u64,
    /// Sessions whose credentials were not.
    pub expired: u64,
}

/// What is to happen.
#[derive(Debug)]
enum Due {
    /// The connector tries again.
    Connect,
    /// A frame arrives.
    Arrive(ConnId, Side, Vec<u8>),
    /// An end learns that a connection is gone.
    Notice(ConnId, Side),
    /// The authenticator answers.
    Granted(ConnId, Box<Hello>),
    /// A host decides what it has taken.
    Decide(Side),
    /// The acceptor's host decides a publish.
    Published(u64, Message),
    /// The connector's host publishes what has no number.
    Publish,
    /// The connector's host has new credentials.
    Renew,
    /// The authenticator answers to those.
    Renewed,
}

/// Both ends, and what lies between them.
#[derive(Debug)]
struct World {
    now: Timestamp,
    random: Random,
    config: SessionConfig,
    ends: [End; 2],
    net: Net,
    greeters: BTreeMap<ConnId, Greeter>,
    due: BTreeMap<(Timestamp, u64), Due>,
    count: u64,
    lives: u64,
    backoff: Backoff,
    connecting: bool,
    calm: bool,
    /// For how long credentials are good, if not for ever.
    credentials: Option<Duration>,
    publishing: Publishing,
    /// Publishes that are still to be made.
    to_publish: u32,
    /// Durable, at the acceptor.
    accepted: BTreeSet<MessageId>,
    lived: Lived,
}

/// Lives one life.
///
/// # Errors
/// What was lost, applied twice or out of order, or that the ends never came to rest.
pub fn live(seed: u64, weather: Weather) -> Result<Lived, String> {
    let mut world = World::new(seed, weather);
    for _ in 0..weather.steps {
        world.step(weather)?;
    }
    world.heal()?;
    world.judge()?;
    Ok(world.lived)
}

impl World {
    fn new(seed: u64, weather: Weather) -> Self {
        let mut random = Random::new(seed);
        let mut config = small_config(&mut random, 20..4020);
        config.renew_before = Duration::from_millis(500 + random.below(5000));
        config.max_publishes = 1 + random.index(6);
        config.horizon = horizon(&config);
        let credentials = random.chance(60).then(|| Duration::from_millis(4000 + random.below(15_000)));
        choose_codecs(&mut config, &mut random);
        let ends = [Side::Connector, Side::Acceptor]
            .map(|side| End::new(side, &config, weather.messages, &mut random));
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5), seed);
        let mut world = Self {
            now: Timestamp::from_millis(1_000_000),
            random,
            config,
            ends,
            net: Net::default(),
            greeters: BTreeMap::new(),
            due: BTreeMap::new(),
            count: 0,
            lives: 0,
            backoff,
            connecting: false,
            calm: false,
            credentials,
            publishing: Publishing::default(),
            to_publish: weather.messages / 3,
            accepted: BTreeSet::new(),
            lived: Lived::default(),
        };
        world.connect_in(Duration::ZERO);
        world
    }

    fn at(&mut self, after: Duration, due: Due) {
        self.count += 1;
        self.due.insert((self.now.after(after), self.count), due);
    }

    fn connect_in(&mut self, after: Duration) {
        if !core::mem::replace(&mut self.connecting, true) {
            self.at(after, Due::Connect);
        }
    }

    /// Something breaks, somebody sends, or time passes to the next thing that is due.
    fn step(&mut self, weather: Weather) -> Result<(), String> {
        if self.random.chance(weather.trouble) {
            self.break_something()?;
        }
        for side in [Side::Connector, Side::Acceptor] {
            if self.random.chance(40) {
                let now = self.now;
                self.ends[side.index()].send(&mut self.random, now);
            }
        }
        if self.random.chance(10) {
            self.publish_one()?;
        }
        self.advance()
    }

    /// Time passes to whatever comes first.
    fn advance(&mut self) -> Result<(), String> {
        let due = self.due.first_key_value().map(|((at, _), _)| *at);
        let timeout = self.ends.iter().filter_map(|end| end.session.as_ref()?.poll_timeout()).min();
        let Some(next) = due.into_iter().chain(timeout).min() else { return self.offer() };
        if next >= self.now.after(Duration::from_secs(3600)) {
            return Err(format!("nothing is due before {next:?}, and it is {:?}", self.now));
        }
        self.now = self.now.max(next);
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let due = entry.remove();
            self.happen(due)?;
        }
        for side in [Side::Connector, Side::Acceptor] {
            if self.ends[side.index()]
                .session
                .as_ref()
                .and_then(Session::poll_timeout)
                .is_some_and(|at| at <= self.now)
            {
                self.tell(side, Input::Tick)?;
            }
        }
        self.offer()
    }

    fn offer(&mut self) -> Result<(), String> {
        for side in [Side::Connector, Side::Acceptor] {
            let items = self.ends[side.index()].offers(self.now);
            if !items.is_empty() {
                self.tell(side, Input::Offer(items))?;
            }
            for floor in self.ends[side.index()].new_floors() {
                self.tell(side, Input::Floor(floor))?;
            }
        }
        Ok(())
    }

    fn happen(&mut self, due: Due) -> Result<(), String> {
        match due {
            Due::Connect => {
                self.connecting = false;
                if self.net.is_partitioned(self.now) {
                    let delay = self.backoff.next_delay(None);
                    self.connect_in(delay);
                    return Ok(());
                }
                let conn = self.net.open();
                self.greeters.insert(conn, Greeter::new(self.now, &self.config));
                self.tell(Side::Connector, Input::Connected(conn, pass()))
            }
            Due::Arrive(conn, to, bytes) => self.arrive(conn, to, bytes),
            Due::Notice(conn, side) => {
                self.greeters.remove(&conn);
                self.tell(side, Input::Lost(conn))
            }
            Due::Granted(conn, hello) => self.granted(conn, hello),
            Due::Published(number, message) => self.decide_publish(number, &message),
            Due::Publish => self.publish(),
            Due::Renew => self.tell(Side::Connector, Input::Renew(pass())),
            Due::Renewed => {
                let until = self.credentials.map(|good| self.now.after(good));
                self.lived.renewed += 1;
                self.tell(Side::Acceptor, Input::Renewed(Ok(until)))
            }
            Due::Decide(side) => {
                let decided = self.ends[side.index()].decide(&mut self.random, self.calm);
                self.lived.recognised += decided.recognised;
                self.tell(side, Input::Verdicts(decided.verdicts))?;
                self.take(side)
            }
        }
    }

    fn arrive(&mut self, conn: ConnId, to: Side, bytes: Vec<u8>) -> Result<(), String> {
        if !self.net.is_known(conn, to) {
            return Ok(());
        }
        let frame = decode(&bytes.into(), &Limits::default());
        if to == Side::Acceptor
            && let Some(greeter) = self.greeters.get_mut(&conn)
        {
            return match greeter.first(frame, &self.config) {
                Greeted::Authenticate(hello) => {
                    let delay = Duration::from_millis(self.random.below(50));
                    self.at(delay, Due::Granted(conn, hello));
                    Ok(())
                }
                Greeted::Reject(frame) => Err(format!("an honest hello was refused: {frame:?}")),
            };
        }
        match frame {
            Ok(frame) => self.tell(to, Input::Frame(conn, frame)),
            Err(error) => Err(format!("an honest frame was not understood: {error}")),
        }
    }

    /// A session for the device, found or made, takes the hello.
    fn granted(&mut self, conn: ConnId, hello: Box<Hello>) -> Result<(), String> {
        if self.greeters.remove(&conn).is_none() || !self.net.is_known(conn, Side::Acceptor) {
            return Ok(());
        }
        self.lives += 1;
        let user = UserId::new("alice").expect("five bytes are a user id");
        let end = &mut self.ends[Side::Acceptor.index()];
        if end.session.as_ref().is_none_or(Session::is_over) {
            end.open_session(&self.config);
        }
        let token = Token::from_u128(u128::from(self.random.next()));
        let expires = self.credentials.map(|good| self.now.after(good));
        let grant = Grant { user, expires, token, epoch: self.lives, published: 0 };
        self.tell(Side::Acceptor, Input::Admit { conn, hello, grant })
    }

    /// Tells a session something, and does what it says.
    fn tell(&mut self, side: Side, input: Input) -> Result<(), String> {
        let now = self.now;
        let Some(session) = self.ends[side.index()].session.as_mut() else { return Ok(()) };
        session.handle(now, input);
        self.drain(side)
    }

    fn drain(&mut self, side: Side) -> Result<(), String> {
        while let Some(action) = self.ends[side.index()].session.as_mut().and_then(Session::poll_action) {
            match action {
                Action::Send(conn, frame, codec) => {
                    let calm = self.calm;
                    if let Some(delay) = self.net.carry(conn, side, self.now, &mut self.random, calm) {
                        let mut bytes = Vec::new();
                        crate::session::frame::encode(&frame, codec, &mut bytes);
                        self.at(delay, Due::Arrive(conn, side.other(), bytes));
                    }
                }
                Action::Disconnect(conn, _) => self.hang_up(conn, side),
                Action::Event(event) => self.event(side, event)?,
            }
        }
        Ok(())
    }

    fn event(&mut self, side: Side, event: Event) -> Result<(), String> {
        match event {
            Event::Opened { resumed, .. } => {
                self.backoff.reset();
                match resumed {
                    true => self.lived.resumed += 1,
                    false => self.lived.fresh += 1,
                }
            }
            // An acceptor cannot tell a restarted connector from another one; a connector must never be told.
            Event::Lost { code: Code::TakenOver, .. } if side == Side::Connector => {
                return Err("a device took itself over".to_owned());
            }
            // Another connection has taken its place, or may do so.
            Event::Lost { .. } if side == Side::Connector && !self.is_linked() => {
                let delay = self.backoff.next_delay(None);
                self.connect_in(delay);
            }
            Event::Outcomes(outcomes) => {
                for (place, outcome) in outcomes {
                    self.ends[side.index()].outcome(place, &outcome)?;
                }
            }
            Event::Ready => return self.take(side),
            Event::Floor(_, place) => self.ends[side.index()].forget(place),
            Event::Gap(missed) => self.lived.gaps += missed.count,
            Event::Parked(true) => self.lived.parked += 1,
            Event::Publish(number, message) => {
                let delay = Duration::from_millis(self.random.below(300));
                self.at(delay, Due::Published(number, message));
            }
            Event::Receipt(number, outcome) => {
                let heard = self.publishing.receipt(number, outcome.as_ref())?;
                self.lived.published += u64::from(heard == Heard::Accepted);
                self.at(Duration::from_millis(50), Due::Publish);
            }
            // Most hosts are in time, at the first question or a later one.
            Event::RenewSoon if self.calm || self.random.chance(75) => {
                let delay = Duration::from_millis(self.random.below(400));
                self.at(delay, Due::Renew);
            }
            Event::Authenticate(_) => {
                let delay = Duration::from_millis(self.random.below(50));
                self.at(delay, Due::Renewed);
            }
            Event::Over(Code::SessionExpired) => self.lived.expired += 1,
            Event::Violation(code, text) => {
                return Err(format!("{side:?} found a violation: {code:?} {text}"));
            }
            _ => {}
        }
        Ok(())
    }

    fn is_linked(&self) -> bool {
        self.ends[Side::Connector.index()].session.as_ref().is_some_and(Session::is_linked)
    }

    /// A host that has nothing in hand takes what waits.
    fn take(&mut self, side: Side) -> Result<(), String> {
        let max = 1 + self.random.index(6);
        let end = &mut self.ends[side.index()];
        if !end.in_hand.is_empty() {
            return Ok(());
        }
        if let Some(session) = end.session.as_mut() {
            end.in_hand = session.take(max);
        }
        if !self.ends[side.index()].in_hand.is_empty() {
            let delay = Duration::from_millis(self.random.below(if self.calm { 20 } else { 400 }));
            self.at(delay, Due::Decide(side));
        }
        self.drain(side)
    }

    /// One end has done with a connection; the other one hears of it later, behind what is under way, or never.
    fn hang_up(&mut self, conn: ConnId, side: Side) {
        self.greeters.remove(&conn);
        if let Some(delay) = self.net.hang_up(conn, side, self.now, &mut self.random) {
            self.at(delay, Due::Notice(conn, side.other()));
        }
    }

    /// The network heals, and everything comes to rest.
    fn heal(&mut self) -> Result<(), String> {
        self.calm = true;
        self.net.heal();
        for side in [Side::Connector, Side::Acceptor] {
            let now = self.now;
            self.ends[side.index()].send_rest(&mut self.random, now);
        }
        while self.to_publish > 0 {
            self.publish_one()?;
        }
        for _ in 0..20_000 {
            if self.ends.iter().all(End::is_done) && self.publishing.left() == 0 {
                return Ok(());
            }
            self.advance()?;
        }
        let left = self.ends.each_ref().map(End::describe);
        Err(format!("the ends never came to rest: {left:?}"))
    }

    fn judge(&mut self) -> Result<(), String> {
        if let Some(id) = self.publishing.accepted().iter().find(|id| !self.accepted.contains(id)) {
            return Err(format!("{id} was said to be accepted, and is not"));
        }
        let [connector, acceptor] = &self.ends;
        self.lived.applied = acceptor.check_against(connector)? + connector.check_against(acceptor)?;
        Ok(())
    }
}

/// What the authenticator wants to see.
const fn pass() -> Credentials {
    Credentials(bytes::Bytes::from_static(b"pass"))
}

/// An end's log.
const fn stream_of(side: Side) -> StreamId {
    StreamId::from_u128(match side {
        Side::Connector => 1,
        Side::Acceptor => 2,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_breaks_nothing_is_lost_applied_twice_or_out_of_order() {
        let mut sum = Lived::default();
        for seed in 0..250 {
            let lived = live(seed, Weather::default()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            sum.applied += lived.applied;
            sum.resumed += lived.resumed;
            sum.fresh += lived.fresh;
            sum.recognised += lived.recognised;
            sum.restarts += lived.restarts;
            sum.gaps += lived.gaps;
            sum.parked += lived.parked;
            sum.published += lived.published;
            sum.renewed += lived.renewed;
            sum.expired += lived.expired;
        }
        // The weather was bad enough to show something.
        assert!(sum.applied > 5000 && sum.resumed > 100 && sum.fresh > 100, "{sum:?}");
        assert!(sum.recognised > 20 && sum.restarts > 100 && sum.gaps > 5, "{sum:?}");
        assert!(sum.parked > 20, "{sum:?}");
        assert!(sum.published == 2500 && sum.renewed > 20 && sum.expired > 10, "{sum:?}");
    }

    #[test]
    fn the_same_seed_lives_the_same_life() {
        assert_eq!(live(5, Weather::default()), live(5, Weather::default()));
    }
}
