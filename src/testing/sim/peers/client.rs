//! Clients: what connects, with an engine or without one, over a ladder of two transports.

use core::num::NonZeroU64;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;

use super::end::End;
use super::light::Light;
use super::{Due, Who, World};
use crate::id::{StreamId, UserId};
use crate::session::frame::Credentials;
use crate::session::{
    Code, ConnId, DialAction, DialInput, DialState, Dialer, DialerConfig, Input, Session, SessionConfig,
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

const TWO: NonZeroU64 = NonZeroU64::new(2).expect("a literal above zero");

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
    dialer: Dialer,
    /// Counts dials: those of before are given up.
    attempt: u64,
    seed: u64,
    /// The better transport does not work until then.
    blocked: Timestamp,
    credentials: Credentials,
}

impl Client {
    pub(super) fn new(
        plan: &Arc<Plan>,
        config: &SessionConfig,
        index: usize,
        light: bool,
        seed: u64,
    ) -> Self {
        let node = (!light).then(|| Node::new(Arc::new(own(plan)), 1 + index as u64, None));
        Self {
            node,
            light: light.then(Light::default),
            end: None,
            net: Net::default(),
            index,
            config: config.clone(),
            clock: Timestamp::from_millis(1_800_000_000_000),
            dialer: dialer(&[], seed ^ index as u64),
            attempt: 0,
            seed: seed ^ index as u64,
            blocked: Timestamp::ZERO,
            credentials: Credentials(Bytes::new()),
        }
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

    /// How long until its dialer wants to know that time has passed.
    pub(super) fn next_dial(&self) -> Option<Duration> {
        let runs = self.end.is_some();
        self.dialer.poll_timeout().filter(|_| runs).map(|at| at.since(self.now()))
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

    /// Tells a client's dialer something, and does what it says.
    pub(super) fn dial(&mut self, client: usize, input: DialInput) -> Result<(), String> {
        let now = self.clients[client].now();
        if self.clients[client].end.is_none() {
            return Ok(());
        }
        self.clients[client].dialer.handle(now, input);
        while let Some(action) = self.clients[client].dialer.poll_action() {
            match action {
                DialAction::AskCredentials(why) => {
                    self.lived.expired += u64::from(why.is_some());
                    let delay = self.millis(2000);
                    self.at(delay, Due::Credentials(client));
                }
                DialAction::Dial(rung) => {
                    self.clients[client].attempt += 1;
                    let (delay, attempt) = (self.millis(100), self.clients[client].attempt);
                    self.at(delay, Due::Connect(client, rung, attempt));
                }
                DialAction::Abandon => self.clients[client].attempt += 1,
                DialAction::State(DialState::Closed(code)) => {
                    return Err(format!("client {client} gives up: {code}"));
                }
                DialAction::State(_) => {}
            }
        }
        Ok(())
    }

    /// A dial comes to something, or not.
    pub(super) fn connect(&mut self, client: usize, rung: usize, attempt: u64) -> Result<(), String> {
        let found = &self.clients[client];
        if found.end.is_none() || found.attempt != attempt {
            return Ok(());
        }
        let blocked = rung == 0 && found.blocked > self.clock;
        let parted = found.net.is_partitioned(self.clock);
        let Some(server) = self.some_server().filter(|_| !blocked && !parted) else {
            return self.dial(client, DialInput::Failed(Code::TransportLost, None));
        };
        self.dial(client, DialInput::Stands)?;
        self.connect_to(client, server)
    }

    /// Another connection, of which the dialer knows nothing, whatever stands.
    pub(super) fn switch(&mut self, client: usize) -> Result<(), String> {
        match self.some_server().filter(|_| self.clients[client].end.is_some()) {
            Some(server) => self.connect_to(client, server),
            None => Ok(()),
        }
    }

    fn connect_to(&mut self, client: usize, server: usize) -> Result<(), String> {
        if self.clients[client].end.as_ref().is_some_and(|end| end.session.connection().is_some()) {
            self.lived.switches += 1;
        }
        let conn = self.clients[client].net.open();
        self.servers[server].greet(client, conn, &self.config);
        let credentials = self.clients[client].credentials.clone();
        self.tell(Who::Client(client), Input::Connected(conn, credentials))
    }

    /// The newest server, or one that should be no more.
    fn some_server(&mut self) -> Option<usize> {
        let old = self.servers.len() > 1 && self.random.chance(30);
        let server = usize::from(old);
        self.servers.get(server).is_some_and(|server| server.node.engine.is_some()).then_some(server)
    }

    /// A client's host has new credentials.
    pub(super) fn new_credentials(&mut self, client: usize) -> Result<(), String> {
        self.issue(client);
        self.dial(client, DialInput::Credentials)?;
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
        // Another connection has taken its place.
        if self.clients[client].end.as_ref().is_some_and(|end| end.session.is_linked()) {
            return Ok(());
        }
        self.dial(client, DialInput::Lost(code, after))
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
        found.attempt += 1;
        found.dialer = dialer(&found.dialer.memory(), found.seed ^ found.attempt);
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

    pub(super) fn start_client(&mut self, client: usize) -> Result<(), String> {
        let random = &mut Random::new(self.random.next());
        let found = &mut self.clients[client];
        if found.end.is_some() {
            return Ok(());
        }
        if let Some(node) = &mut found.node {
            node.open();
            if node.engine.is_none() {
                node.crash(false, random);
            }
        }
        found.open_session();
        let runs = found.end.is_some();
        if !runs {
            self.at(Duration::from_secs(1), Due::StartClient(client));
            return Ok(());
        }
        self.at(Duration::from_millis(20), Due::Publish(client));
        self.dial(client, DialInput::Start)
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

/// A client's engine has room for a full outbox and a full inbox, as `ClientBuilder` wants it.
fn own(plan: &Plan) -> Plan {
    let mut own = plan.clone();
    let full = NonZeroU64::from(own.config.max_user_messages).saturating_mul(TWO);
    own.config.max_total_messages = own.config.max_total_messages.max(full);
    own
}

fn dialer(worked: &[usize], seed: u64) -> Dialer {
    let backoff_cap = Duration::from_secs(5);
    let config =
        DialerConfig { backoff_floor: Duration::from_millis(200), backoff_cap, ..DialerConfig::default() };
    Dialer::new(config, 2, worked, seed)
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
