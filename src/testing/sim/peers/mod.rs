//! Servers and clients with sessions between them, in one thread and in virtual time.
//!
//! ```text
//!   server 0 (the newest process)  ┐                       ┌─ client 0: engine, session
//!   server 1 (one that does not    ├─ sessions ═ network ═ ┼─ …
//!     know yet that it is history) ┘                       └─ client n: session only, publishes
//! ```
//!
//! Each engine is a `Node`: machines, the real journal over a faulty disk, a store, and an oracle of its own, as in
//! lives of two engines. What is new is what lies between them: real sessions, whose frames cross the network as bytes. The
//! network breaks, stalls, goes half-open, is parted and heals; processes are killed, lose their power, and are taken over
//! while they still run; disks and stores fail; clocks jump; credentials expire; a better transport comes and goes.
//!
//! The seed decides everything. At the end all heals, and then every message must have ended, once, in order, and
//! truthfully on both sides.

mod client;
mod end;
mod engines;
mod flaw;
mod judge;
mod light;
mod server;
mod step;
#[cfg(test)]
mod tests;

use core::time::Duration;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use self::client::Client;
pub use self::flaw::Flaw;
use self::server::Server;
use super::plan::Plan;
use super::random::Random;
use crate::machine::Ticket;
use crate::message::Message;
use crate::session::ConnId;
use crate::session::SessionConfig;
use crate::session::frame::{Credentials, Hello};
use crate::testing::pair::config::{choose_codecs, horizon, small_config};
use crate::testing::pair::net::Side;
use crate::time::Timestamp;

/// Steps of a life before everything heals.
const STEPS: u64 = 300;

/// What a life looked like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lived {
    /// The first promise that was broken.
    pub violation: Option<String>,
    /// Messages that reached the other side's engine or hands, once each.
    pub applied: u64,
    /// Handshakes that resumed a session.
    pub resumed: u64,
    /// Handshakes that began a new life of one.
    pub fresh: u64,
    /// Processes that ended.
    pub crashes: u64,
    /// Servers that were taken over while they ran.
    pub takeovers: u64,
    /// Connections that were made while another one stood.
    pub switches: u64,
    /// Credentials that were renewed in time.
    pub renewals: u64,
    /// Sessions whose credentials were not.
    pub expired: u64,
    /// Publishes with a receipt.
    pub published: u64,
    /// Times that a clock jumped.
    pub jumps: u64,
}

impl Lived {
    /// Adds the counts of another life.
    pub fn add(&mut self, other: &Self) {
        self.applied += other.applied;
        self.resumed += other.resumed;
        self.fresh += other.fresh;
        self.crashes += other.crashes;
        self.takeovers += other.takeovers;
        self.switches += other.switches;
        self.renewals += other.renewals;
        self.expired += other.expired;
        self.published += other.published;
        self.jumps += other.jumps;
    }
}

/// Lives one life. A panic is a violation.
#[must_use]
pub fn live(seed: u64, flaw: Option<Flaw>) -> Lived {
    live_traced(seed, flaw, &mut None)
}

/// As [`live`]; what the sessions and the machines were told and did is written down in `trace`, if there is one.
#[must_use]
pub fn live_traced(seed: u64, flaw: Option<Flaw>, trace: &mut Option<Vec<String>>) -> Lived {
    let mut world = World::new(seed, flaw, trace.is_some());
    let lived = catch_unwind(AssertUnwindSafe(|| world.live()));
    let result = lived.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("panic: {}", text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
    });
    if let Some(trace) = trace {
        trace.append(&mut world.trace.take().unwrap_or_default());
    }
    Lived { violation: result.err(), ..world.lived }
}

/// One end of a session: a client's, or that of a server for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Client(usize),
    /// Which server, for which client.
    Server(usize, usize),
}

impl Who {
    const fn client(self) -> usize {
        match self {
            Self::Client(client) | Self::Server(_, client) => client,
        }
    }

    const fn side(self) -> Side {
        match self {
            Self::Client(_) => Side::Connector,
            Self::Server(..) => Side::Acceptor,
        }
    }
}

/// What is to happen.
#[derive(Debug)]
pub(super) enum Due {
    /// A client's dial over a transport comes to something.
    Connect(usize, usize, u64),
    /// A frame arrives.
    Arrive(usize, ConnId, Side, Vec<u8>),
    /// An end learns that a connection is gone.
    Notice(usize, ConnId, Side),
    /// The authenticator of the server that has the connection answers.
    Granted(usize, ConnId, Box<Hello>),
    /// The same for new credentials on a live session.
    Renewed(usize, ConnId, Credentials),
    /// A client has new credentials, for a connection or the live session.
    Credentials(usize),
    /// A client without an engine decides what it has taken.
    Decide(usize),
    /// It publishes again what has not been accepted.
    Publish(usize),
    /// A process starts.
    StartClient(usize),
    StartServer,
}

/// Everything there is.
#[derive(Debug)]
pub(super) struct World {
    plan: Arc<Plan>,
    random: Random,
    config: SessionConfig,
    flaw: Option<Flaw>,
    /// Not the clock of anybody: when things happen.
    clock: Timestamp,
    due: BTreeMap<(Timestamp, u64), Due>,
    count: u64,
    /// The newest first; at most two.
    servers: Vec<Server>,
    clients: Vec<Client>,
    /// Messages for engines, with whose they are (clients, or none for the server), for repeats.
    sent: Vec<(Option<usize>, Message)>,
    ids: usize,
    /// Names of session lives that were given.
    lives: u64,
    /// For how long credentials are good, if not for ever.
    credentials: Option<Duration>,
    calm: bool,
    lived: Lived,
    trace: Option<Vec<String>>,
}

impl World {
    fn new(seed: u64, flaw: Option<Flaw>, traced: bool) -> Self {
        let mut plan = Plan::of_seed(seed);
        let mut random = Random::new(seed ^ 0x9ee5);
        // A client's address in plans of users is its number.
        plan.users = 1 + random.below(5);
        let plan = Arc::new(plan);
        let mut config = small_config(&mut random, 200..12_200);
        config.renew_before = Duration::from_secs(1 + random.below(15));
        config.max_publishes = 1 + random.index(8);
        config.horizon = horizon(&config);
        choose_codecs(&mut config, &mut random);
        let clients = 0..plan.users as usize;
        let clients =
            clients.map(|index| Client::new(&plan, &config, index, random.chance(25), seed)).collect();
        let credentials = random.chance(35).then(|| Duration::from_secs(20 + random.below(200)));
        let servers = vec![Server::new(&plan)];
        let mut world = Self {
            plan,
            random,
            config,
            flaw,
            clock: Timestamp::from_millis(1_000_000),
            due: BTreeMap::new(),
            count: 0,
            servers,
            clients,
            sent: Vec::new(),
            ids: 0,
            lives: 0,
            credentials,
            calm: false,
            lived: Lived::default(),
            trace: traced.then(Vec::new),
        };
        for client in 0..world.clients.len() {
            world.issue(client);
            let after = world.millis(500);
            world.at(after, Due::StartClient(client));
        }
        world
    }

    fn live(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.step()?;
            self.check()?;
        }
        self.rest()?;
        self.judge()
    }

    pub(super) fn at(&mut self, after: Duration, due: Due) {
        self.count += 1;
        self.due.insert((self.clock.after(after), self.count), due);
    }

    pub(super) fn millis(&mut self, below: u64) -> Duration {
        Duration::from_millis(self.random.below(below))
    }

    pub(super) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(text());
        }
    }

    /// What engines wrote down goes behind what was noted before.
    pub(super) fn gather_traces(&mut self) {
        let Some(trace) = &mut self.trace else { return };
        let servers = self.servers.iter_mut().map(|server| &mut server.node);
        let clients = self.clients.iter_mut().filter_map(|client| client.node.as_mut());
        for node in servers.chain(clients) {
            trace.append(node.trace.get_or_insert_default());
        }
    }

    fn next_ticket(node: &mut super::node::Node) -> Ticket {
        node.tickets += 1;
        Ticket(node.tickets)
    }
}
