//! Clients: what connects, with an engine or without one, over a ladder of two transports.

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;

use super::end::End;
use super::light::Light;
use super::{Due, Who, World};
use crate::id::{StreamId, UserId};
use crate::session::frame::Credentials;
use crate::session::{
    Backoff, Code, ConnId, Input, Ladder, LadderConfig, Recovery, Session, SessionConfig, Step,
};
use crate::testing::pair::net::{Net, Side};
use crate::testing::sim::compose::person;
use crate::testing::sim::node::Node;
use crate::testing::sim::oracle::device;
use crate::testing::sim::plan::Plan;
use crate::testing::sim::random::Random;
use crate::time::Timestamp;

/// Whom clients send to: an outbox for each peer, so that its floors speak of one person.
pub(super) const HUB: u64 = 100;

/// A client, running or not.
#[derive(Debug)]
pub(super) struct Client {
    /// None for a client without an engine.
    pub(super) node: Option<Node>,
    pub(super) light: Option<Light>,
    /// None while the process does not run.
    pub(super) end: Option<End>,
    pub(super) net: Net,
    index: usize,
    config: SessionConfig,
    /// The clock of a client without an engine.
    pub(super) clock: Timestamp,
    backoff: Backoff,
    recovery: Recovery,
    ladder: Ladder,
    connecting: bool,
    /// The better transport does not work until then.
    blocked: Timestamp,
    credentials: Credentials,
    /// It waits for new ones.
    needs_credentials: bool,
}

impl Client {
    pub(super) fn new(
        plan: &Arc<Plan>,
        config: &SessionConfig,
        index: usize,
        light: bool,
        seed: u64,
    ) -> Self {
        let node = (!light).then(|| Node::new(Arc::clone(plan), 1 + index as u64, None));
        let mut client = Self {
            node,
            light: light.then(Light::default),
            end: None,
            net: Net::default(),
            index,
            config: config.clone(),
            clock: Timestamp::from_millis(1_800_000_000_000),
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(5), seed ^ index as u64),
            recovery: Recovery::default(),
            ladder: Ladder::new(LadderConfig::default(), 2, &[]),
            connecting: false,
            blocked: Timestamp::ZERO,
            credentials: Credentials(Bytes::new()),
            needs_credentials: false,
        };
        client.open_session();
        client
    }

    pub(super) fn now(&self) -> Timestamp {
        self.node.as_ref().map_or(self.clock, |node| node.now)
    }

    pub(super) fn user(&self) -> UserId {
        person(self.index as u64)
    }

    /// Its log; one that has none has a name all the same.
    fn stream(&self) -> StreamId {
        let own = StreamId::from_u128(0x11 + self.index as u128);
        self.node.as_ref().map_or(own, |node| node.stream)
    }

    /// A process that has just started, unless its engine does not open.
    pub(super) fn open_session(&mut self) {
        if self.node.as_ref().is_some_and(|node| node.engine.is_none()) {
            return;
        }
        let user = self.user();
        let session =
            Session::connector(self.config.clone(), self.stream(), Some(user), device(self.index as u64));
        self.end = Some(End::new(session, person(HUB)));
    }

    /// The handshake is done.
    pub(super) fn is_up(&mut self, now: Timestamp) {
        self.backoff.reset();
        self.ladder.connected(now);
    }

    /// How long until a better transport may be tried.
    pub(super) fn next_climb(&self, now: Timestamp) -> Option<Duration> {
        self.ladder.poll_timeout().map(|at| at.since(now))
    }

    pub(super) fn pass(&mut self, by: Duration) {
        self.clock = self.clock.after(by);
        if let Some(node) = &mut self.node {
            node.now = node.now.after(by);
            node.tick();
        }
    }
}

impl World {
    /// Gives a client credentials.
    pub(super) fn issue(&mut self, client: usize) {
        let good = self.credentials.map_or(u64::MAX, |good| self.clock.after(good).as_millis());
        self.clients[client].credentials = Credentials(Bytes::copy_from_slice(&good.to_le_bytes()));
    }

    pub(super) fn connect_in(&mut self, client: usize, after: Duration) {
        if !core::mem::replace(&mut self.clients[client].connecting, true) {
            self.at(after, Due::Connect(client));
        }
    }

    /// Makes a connection to the newest server, or to one that should be no more.
    pub(super) fn connect(&mut self, client: usize) -> Result<(), String> {
        let clock = self.clock;
        let found = &mut self.clients[client];
        found.connecting = false;
        if found.end.is_none() || found.needs_credentials {
            return Ok(());
        }
        let blocked = found.ladder.current() == 0 && found.blocked > clock;
        let parted = found.net.is_partitioned(clock);
        let old = self.servers.len() > 1 && self.random.chance(30);
        let server = usize::from(old);
        let runs = self.servers.get(server).is_some_and(|server| server.node.engine.is_some());
        if blocked || parted || !runs {
            return self.try_again(client, Code::TransportLost, None);
        }
        if self.clients[client].end.as_ref().is_some_and(|end| end.session.connection().is_some()) {
            self.lived.switches += 1;
        }
        let conn = self.clients[client].net.open();
        self.servers[server].greet(client, conn, &self.config);
        let credentials = self.clients[client].credentials.clone();
        self.tell(Who::Client(client), Input::Connected(conn, credentials))
    }

    /// What a client's policies say about the end of a connection.
    fn try_again(&mut self, client: usize, code: Code, after: Option<Duration>) -> Result<(), String> {
        let clock = self.clock;
        let found = &mut self.clients[client];
        match found.recovery.next(code, after, &mut found.backoff) {
            Step::Reconnect(delay) => self.connect_in(client, delay),
            Step::SwitchTransport(delay) => {
                found.ladder.failed(clock);
                self.connect_in(client, delay);
            }
            Step::WaitForCredentials => {
                found.needs_credentials = true;
                self.lived.expired += 1;
                let delay = self.millis(3000);
                self.at(delay, Due::Credentials(client));
            }
            Step::GiveUp => return Err(format!("client {client} gives up: {code}")),
        }
        Ok(())
    }

    /// New credentials have come.
    pub(super) fn new_credentials(&mut self, client: usize) -> Result<(), String> {
        self.issue(client);
        if core::mem::take(&mut self.clients[client].needs_credentials) {
            self.connect_in(client, Duration::ZERO);
            return Ok(());
        }
        let credentials = self.clients[client].credentials.clone();
        self.tell(Who::Client(client), Input::Renew(credentials))
    }

    /// A connection is over.
    pub(super) fn connection_lost(
        &mut self,
        who: Who,
        code: Code,
        after: Option<Duration>,
    ) -> Result<(), String> {
        let Who::Client(client) = who else {
            // A server's engine keeps its sink, or has it back at once.
            if self.random.chance(50) {
                self.detach(who);
            }
            return Ok(());
        };
        match code {
            // Another transport of its own takes over.
            Code::TransportSwitched => Ok(()),
            Code::TakenOver => Err(format!("client {client} was taken over by itself")),
            code => self.try_again(client, code, after),
        }
    }

    pub(super) fn over(&mut self, who: Who, code: Code) -> Result<(), String> {
        match who {
            Who::Client(client) => Err(format!("client {client}'s session is over: {code}")),
            Who::Server(..) => {
                self.detach(who);
                Ok(())
            }
        }
    }

    /// What is due on the ladder: a better transport is tried while the other one stands.
    pub(super) fn climb(&mut self, client: usize) {
        let clock = self.clock;
        let found = &mut self.clients[client];
        let Some(grade) = found.end.as_ref().map(|end| end.session.quality().grade()) else { return };
        if found.ladder.graded(clock, grade).is_some() {
            self.connect_in(client, Duration::ZERO);
        }
    }

    pub(super) fn block(&mut self, client: usize) {
        let until = self.millis(60_000);
        self.clients[client].blocked = self.clock.after(until);
    }

    /// The network to one client, or everybody's, works again.
    pub(super) fn unblock_all(&mut self) {
        for client in &mut self.clients {
            client.blocked = Timestamp::ZERO;
            client.net.heal();
        }
    }

    /// The process ends.
    pub(super) fn crash_client(&mut self, client: usize, power: bool) {
        let random = &mut Random::new(self.random.next());
        let found = &mut self.clients[client];
        if found.end.take().is_none() {
            return;
        }
        self.lived.crashes += 1;
        found.needs_credentials = false;
        found.recovery = Recovery::default();
        if let Some(light) = &mut found.light {
            light.crash();
        }
        if let Some(node) = &mut found.node {
            node.crash(power, random);
            node.now = set_clock(node.now, random);
        }
        for conn in found.net.all() {
            // Nobody says goodbye when the power fails.
            match power && random.chance(70) {
                true => self.clients[client].net.half_open(conn),
                false => self.hang_up(client, conn, Side::Connector),
            }
        }
        let delay = self.millis(5000);
        self.at(delay, Due::StartClient(client));
    }

    pub(super) fn start_client(&mut self, client: usize) {
        let found = &mut self.clients[client];
        if found.end.is_some() {
            return;
        }
        if let Some(node) = &mut found.node {
            node.open();
        }
        found.open_session();
        let runs = found.end.is_some();
        if !runs {
            return self.at(Duration::from_secs(1), Due::StartClient(client));
        }
        self.connect_in(client, Duration::from_millis(10));
        self.at(Duration::from_millis(20), Due::Publish(client));
    }

    /// One end has done with a connection; the other one hears of it later, behind what is under way, or never.
    pub(super) fn hang_up(&mut self, client: usize, conn: ConnId, side: Side) {
        let clock = self.clock;
        if side == Side::Acceptor {
            self.servers.iter_mut().for_each(|server| server.forget_conn(client, conn));
        }
        if let Some(delay) = self.clients[client].net.hang_up(conn, side, clock, &mut self.random) {
            self.at(delay, Due::Notice(client, conn, side.other()));
        }
    }
}

/// The wall clock may have been set while nobody looked.
pub(super) fn set_clock(now: Timestamp, random: &mut Random) -> Timestamp {
    const YEARS: u64 = 10 * 365 * 24 * 3600 * 1000;
    let now = now.as_millis();
    Timestamp::from_millis(match random.below(8) {
        0 => now + random.below(YEARS),
        1 => now.saturating_sub(random.below(YEARS)),
        _ => now + random.below(3000),
    })
}
