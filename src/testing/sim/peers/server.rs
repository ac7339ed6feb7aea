//! Servers: who lets clients in, and one that does not know that another took its place.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::client::{Client, set_clock};
use super::end::{End, good_until, receipt};
use super::{Due, Who, World};
use crate::machine::{Accepted, Input as Told, Refusal, Ticket};
use crate::message::Message;
use crate::session::frame::{Codec, Credentials, Frame, Hello, Refused, Token, decode, encode};
use crate::session::{Code, ConnId, Grant, Greeted, Greeter, Input, Session, SessionConfig};
use crate::testing::pair::net::Side;
use crate::testing::sim::compose::person;
use crate::testing::sim::node::Node;
use crate::testing::sim::oracle::device;
use crate::testing::sim::plan::Plan;
use crate::testing::sim::random::Random;
use crate::time::Timestamp;

/// One server process.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) node: Node,
    /// Its sessions, by client.
    pub(super) ends: BTreeMap<usize, End>,
    greeters: BTreeMap<(usize, ConnId), Greeter>,
    /// The connections that lead to it.
    conns: BTreeSet<(usize, ConnId)>,
    /// Publishes that the engine has not answered: whose, and under which number.
    publishes: BTreeMap<Ticket, (usize, u64)>,
    /// Every publish of a client up to there was decided: durable, if its host cares to keep it.
    marks: BTreeMap<usize, u64>,
}

impl Server {
    pub(super) fn new(plan: &Arc<Plan>) -> Self {
        Self::of(Node::new(Arc::clone(plan), 0, None), BTreeMap::new())
    }

    fn of(node: Node, marks: BTreeMap<usize, u64>) -> Self {
        Self {
            node,
            ends: BTreeMap::new(),
            greeters: BTreeMap::new(),
            conns: BTreeSet::new(),
            publishes: BTreeMap::new(),
            marks,
        }
    }

    /// A connection has come.
    pub(super) fn greet(&mut self, client: usize, conn: ConnId, config: &SessionConfig) {
        self.greeters.insert((client, conn), Greeter::new(self.node.now, config));
        self.conns.insert((client, conn));
    }

    /// A connection is no more.
    pub(super) fn forget_conn(&mut self, client: usize, conn: ConnId) {
        self.greeters.remove(&(client, conn));
        self.conns.remove(&(client, conn));
    }

    pub(super) fn pass(&mut self, by: Duration) {
        self.node.now = self.node.now.after(by);
        self.node.tick();
    }
}

impl World {
    /// A frame arrives at an end, if that still has the connection.
    pub(super) fn arrive(
        &mut self,
        client: usize,
        conn: ConnId,
        to: Side,
        bytes: Vec<u8>,
    ) -> Result<(), String> {
        if !self.clients[client].net.is_known(conn, to) {
            return Ok(());
        }
        let bytes = bytes.into();
        let frame = decode(&bytes, &self.config.limits);
        let server = self.servers.iter().position(|server| server.conns.contains(&(client, conn)));
        if to == Side::Acceptor {
            let Some(server) = server else { return Ok(()) };
            if let Some(greeter) = self.servers[server].greeters.get_mut(&(client, conn)) {
                let frame = decode(&bytes, &Greeter::limits(&self.config));
                let delay = Duration::from_millis(self.random.below(50));
                return match greeter.first(frame, &self.config) {
                    Greeted::Authenticate(hello) => {
                        self.at(delay, Due::Granted(client, conn, hello));
                        Ok(())
                    }
                    Greeted::Reject(frame) => Err(format!("an honest hello was refused: {frame:?}")),
                };
            }
        }
        let who = match (to, server) {
            (Side::Connector, _) => Who::Client(client),
            (Side::Acceptor, Some(server)) => Who::Server(server, client),
            (Side::Acceptor, None) => return Ok(()),
        };
        let mut frame = frame.map_err(|error| format!("an honest frame was not understood: {error}"))?;
        let mut conn = conn;
        self.spoil_heard(who, &mut conn, &mut frame);
        self.tell(who, Input::Frame(conn, frame))
    }

    /// An end learns that a connection is gone.
    pub(super) fn notice(&mut self, client: usize, conn: ConnId, side: Side) -> Result<(), String> {
        let server = self.servers.iter().position(|server| server.conns.contains(&(client, conn)));
        match (side, server) {
            (Side::Connector, _) => self.tell(Who::Client(client), Input::Lost(conn)),
            (Side::Acceptor, Some(server)) => {
                self.servers[server].forget_conn(client, conn);
                self.tell(Who::Server(server, client), Input::Lost(conn))
            }
            (Side::Acceptor, None) => Ok(()),
        }
    }

    /// The authenticator has answered: a session for the device, found or made, takes the hello.
    pub(super) fn granted(&mut self, client: usize, conn: ConnId, hello: Box<Hello>) -> Result<(), String> {
        let key = (client, conn);
        let Some(server) = self.servers.iter().position(|server| server.greeters.contains_key(&key)) else {
            return Ok(());
        };
        self.servers[server].greeters.remove(&key);
        if !self.clients[client].net.is_known(conn, Side::Acceptor) {
            self.servers[server].forget_conn(client, conn);
            return Ok(());
        }
        let left = good_until(&hello.credentials).saturating_sub(self.clock.as_millis());
        let busy = !self.calm && self.random.chance(5);
        if left == 0 || busy {
            let code = if left == 0 { Code::SessionExpired } else { Code::Overloaded };
            let retry_after = busy.then(|| self.millis(2000));
            self.reject(client, conn, Refused { code, retry_after, text: String::new() });
            return Ok(());
        }
        self.lives += 1;
        let epoch = self.lives;
        let stream = self.servers[server].node.stream;
        let (user, token) = (person(client as u64), Token::from_u128(u128::from(self.random.next())));
        let ends = &mut self.servers[server].ends;
        if ends.get(&client).is_none_or(|end| end.session.is_over()) {
            let session = Session::acceptor(self.config.clone(), stream, user.clone(), device(client as u64));
            // The engine lets go of the sink of the one before.
            self.detach(Who::Server(server, client));
            self.servers[server].ends.insert(client, End::new(session, user.clone()));
        }
        let found = &self.servers[server];
        let expires = (good_until(&hello.credentials) != u64::MAX)
            .then(|| found.node.now.after(Duration::from_millis(left)));
        let published = found.marks.get(&client).copied().unwrap_or(0);
        let grant = Grant { user, expires, token, epoch, published };
        self.tell(Who::Server(server, client), Input::Admit { conn, hello, grant })
    }

    fn reject(&mut self, client: usize, conn: ConnId, refused: Refused) {
        let (clock, calm) = (self.clock, self.calm);
        let net = &mut self.clients[client].net;
        if let Some(delay) = net.carry(conn, Side::Acceptor, clock, &mut self.random, calm) {
            let mut bytes = Vec::new();
            encode(&Frame::Reject(refused), self.config.codecs.best().unwrap_or(Codec::Binary), &mut bytes);
            self.at(delay, Due::Arrive(client, conn, Side::Connector, bytes));
        }
        self.hang_up(client, conn, Side::Acceptor);
    }

    /// A client shows new credentials on a live session.
    pub(super) fn authenticate(&mut self, who: Who, credentials: Credentials) {
        let conn = self.end_mut(who).and_then(|end| end.session.connection());
        if let Some(conn) = conn {
            let delay = self.millis(50);
            self.at(delay, Due::Renewed(who.client(), conn, credentials));
        }
    }

    pub(super) fn renewed(
        &mut self,
        client: usize,
        conn: ConnId,
        credentials: &Credentials,
    ) -> Result<(), String> {
        let Some(server) = self.servers.iter().position(|server| server.conns.contains(&(client, conn)))
        else {
            return Ok(());
        };
        let who = Who::Server(server, client);
        if self.end_mut(who).is_none_or(|end| end.session.connection() != Some(conn)) {
            return Ok(());
        }
        let good = good_until(credentials);
        let left = good.saturating_sub(self.clock.as_millis());
        let refused = Refused { code: Code::CredentialsRefused, retry_after: None, text: String::new() };
        let until = self.now_of(who).after(Duration::from_millis(left));
        let result = match left {
            0 => Err(refused),
            _ => Ok((good != u64::MAX).then_some(until)),
        };
        self.lived.renewals += u64::from(result.is_ok());
        self.tell(who, Input::Renewed(result))
    }

    // ---------------------------------------------------------------------------------------------- publishes

    /// A client without an outbox hands over a message.
    pub(super) fn published(&mut self, who: Who, number: u64, message: Message) {
        let Who::Server(server, client) = who else { return };
        let found = &mut self.servers[server];
        if found.node.engine.is_none() {
            return;
        }
        let ticket = Self::next_ticket(&mut found.node);
        found.publishes.insert(ticket, (client, number));
        found.node.oracle.sent(ticket, message.clone());
        let shard = found.node.shard_of(message.recipient());
        found.node.input(shard, Told::Send { ticket, message });
    }

    /// The engine has answered somebody: perhaps it was a publish.
    pub(super) fn decided(
        &mut self,
        who: Who,
        ticket: Ticket,
        result: &Result<Accepted, Refusal>,
    ) -> Result<(), String> {
        let Who::Server(server, _) = who else { return Ok(()) };
        let Some((client, number)) = self.servers[server].publishes.remove(&ticket) else { return Ok(()) };
        // Only what is decided up to here without a hole, and not by all hosts.
        let undecided =
            self.servers[server].publishes.values().filter(|(other, _)| *other == client).map(|(_, n)| *n);
        if let (true, None) = (self.plan.seed.is_multiple_of(2), undecided.min()) {
            let mark = self.servers[server].marks.entry(client).or_default();
            *mark = number.max(*mark);
        }
        self.tell(Who::Server(server, client), Input::Published(number, receipt(result)))
    }

    // -------------------------------------------------------------------------------------------------- lifetimes

    /// The newest server's process ends, with all that it had in memory.
    pub(super) fn crash_server(&mut self, power: bool) {
        let random = &mut Random::new(self.random.next());
        if self.servers[0].node.engine.is_none() {
            return;
        }
        if power {
            self.end_old_server();
        }
        self.lived.crashes += 1;
        self.servers[0].node.crash(power, random);
        let now = self.servers[0].node.now;
        self.servers[0].node.now = set_clock(now, random);
        self.vanish(0, power, random);
        let marks = core::mem::take(&mut self.servers[0].marks);
        let old = self.servers.remove(0);
        self.servers.insert(0, Server::of(old.node, marks));
        let delay = self.millis(5000);
        self.at(delay, Due::StartServer);
    }

    /// The connections of a server end, loudly or not.
    fn vanish(&mut self, server: usize, power: bool, random: &mut Random) {
        for (client, conn) in self.servers[server].conns.clone() {
            match power && random.chance(70) {
                true => self.clients[client].net.half_open(conn),
                false => self.hang_up(client, conn, Side::Acceptor),
            }
        }
    }

    /// A process starts. If it cannot open its disk or its store, it ends, and another one tries again.
    pub(super) fn start_server(&mut self) {
        let random = &mut Random::new(self.random.next());
        let is_alone = self.servers.len() == 1;
        let node = &mut self.servers[0].node;
        node.open();
        if node.engine.is_none() {
            // What an older one that still runs has written is its own to lose.
            if is_alone {
                node.crash(false, random);
            }
            self.at(Duration::from_secs(1), Due::StartServer);
        }
    }

    /// A new process opens what the old one still holds: from then on whatever the old one would write is refused. It does
    /// not know that until it tries, and goes on talking to its clients.
    /// Nothing fails then; if it does not open all the same, the old one ends with it, for that would be the owner still, and
    /// no oracle here knows of what it would write.
    pub(super) fn take_over(&mut self) {
        let node = &mut self.servers[0].node;
        if node.engine.is_none() || node.home.has_failed() {
            return;
        }
        node.relieve();
        self.end_old_server();
        self.lived.takeovers += 1;
        let marks = self.servers[0].marks.clone();
        let old = self.servers[0].node.supersede();
        let new = core::mem::replace(&mut self.servers[0].node, old);
        self.servers.insert(0, Server::of(new, marks));
        self.start_server();
        if self.servers[0].node.engine.is_none() {
            self.end_old_server();
        }
    }

    /// The old server's process ends too.
    pub(super) fn end_old_server(&mut self) {
        if self.servers.len() > 1 {
            let random = &mut Random::new(self.random.next());
            self.vanish(1, random.chance(40), random);
            self.servers.truncate(1);
        }
    }

    /// Somebody's clock jumps ahead: the machine has slept, or somebody has set it.
    pub(super) fn jump(&mut self) {
        let by = Duration::from_millis(1 << self.random.below(22));
        self.lived.jumps += 1;
        let (servers, clients) = (self.servers.len(), self.clients.len());
        match self.random.index(servers + clients) {
            n if n < servers => self.servers[n].pass(by),
            n => self.clients[n - servers].pass(by),
        }
    }

    /// When the earliest of a server's and the clients' timers fires, from now.
    pub(super) fn next_timer(&self) -> Option<Duration> {
        let since = |at: Timestamp, now: Timestamp| at.since(now);
        let sessions = self.everybody().into_iter().filter_map(|who| {
            let at = self.end(who)?.session.poll_timeout()?;
            Some(since(at, self.now_of(who)))
        });
        let nodes = self.nodes().filter_map(|node| Some(since(node.next_timer()?, node.now)));
        let dialers = self.clients.iter().filter_map(Client::next_dial);
        sessions.chain(nodes).chain(dialers).min()
    }
}
