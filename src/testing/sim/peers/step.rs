//! What happens: one thing after the other, and time.

use core::time::Duration;

use super::client::HUB;
use super::end::End;
use super::{Due, Who, World};
use crate::machine::{Input as Told, Ticket};
use crate::session::{DialInput, Input, Session};
use crate::testing::sim::compose::{compose_for, person};
use crate::testing::sim::node::Node;
use crate::testing::sim::random::Random;

impl World {
    /// Something breaks, somebody sends, an engine works, or time passes to what is due.
    pub(super) fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..7 => self.break_something()?,
            7..35 => self.send()?,
            35..75 => self.work_a_little(),
            75..80 => self.people(),
            _ => self.advance()?,
        }
        self.settle()
    }

    // ------------------------------------------------------------------------------------------------------- people

    /// A message for an engine, or to be published.
    fn send(&mut self) -> Result<(), String> {
        let from = self.random.index(2 * self.clients.len());
        let from = (from < self.clients.len()).then_some(from);
        if let Some(client) = from.filter(|client| self.clients[*client].light.is_some()) {
            return self.publish_new(client);
        }
        if self.random.chance(12) {
            self.repeat();
            return Ok(());
        }
        let to = match from {
            Some(_) => HUB,
            None => self.random.below(self.plan.users),
        };
        let mut random = Random::new(self.random.next());
        self.ids += 1;
        let (plan, number) = (self.plan.clone(), self.ids);
        let Some(node) = self.engine_of(from) else { return Ok(()) };
        let message = compose_for(&plan, &mut random, number, person(to), node.now);
        self.sent.push((from, message));
        let last = self.sent.len() - 1;
        self.submit(last);
        Ok(())
    }

    /// The same message again: it is accepted once.
    fn repeat(&mut self) {
        let recent = self.random.index(self.sent.len().min(12));
        if let Some(index) = self.sent.len().checked_sub(1 + recent) {
            self.submit(index);
        }
    }

    fn submit(&mut self, index: usize) {
        let Some((from, message)) = self.sent.get(index).cloned() else { return };
        let Some(node) = self.engine_of(from).filter(|node| node.engine.is_some()) else { return };
        let ticket: Ticket = Self::next_ticket(node);
        node.oracle.sent(ticket, message.clone());
        let shard = node.shard_of(message.recipient());
        node.input(shard, Told::Send { ticket, message });
    }

    fn engine_of(&mut self, from: Option<usize>) -> Option<&mut Node> {
        match from {
            Some(client) => self.clients[client].node.as_mut(),
            None => Some(&mut self.servers[0].node),
        }
    }

    /// Somebody's application comes, goes, or says something of what it was given.
    fn people(&mut self) {
        let mut random = Random::new(self.random.next());
        let at = random.index(self.node_count());
        let Some((node, own)) = self.node_at(at) else { return };
        let user = person(own.map_or(HUB, |client| client as u64));
        match random.below(4) {
            0 => drop(node.attach(user, random.below(3), false)),
            1 if random.chance(30) => {
                let links = node.engine.iter().flat_map(|engine| engine.links.values());
                let own = links.filter(|link| !link.is_wire).map(|link| link.id).next();
                own.into_iter().for_each(|link| node.detach(link));
            }
            _ => node.verdict_of_sink(&mut random),
        }
    }

    // ------------------------------------------------------------------------------------------------------ engines

    fn node_count(&self) -> usize {
        self.servers.len() + self.clients.len()
    }

    /// Some engine, and which client's it is.
    fn node_at(&mut self, index: usize) -> Option<(&mut Node, Option<usize>)> {
        match index.checked_sub(self.servers.len()) {
            None => Some((&mut self.servers[index].node, None)),
            Some(client) => self.clients[client].node.as_mut().map(|node| (node, Some(client))),
        }
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        let clients = self.clients.iter().filter_map(|client| client.node.as_ref());
        self.servers.iter().map(|server| &server.node).chain(clients)
    }

    /// A few operations of some engine's disk and store.
    fn work_a_little(&mut self) {
        let mut random = Random::new(self.random.next());
        let at = random.index(self.node_count());
        let Some((node, _)) = self.node_at(at) else { return };
        for _ in 0..=random.below(6) {
            match random.below(24) {
                0..3 => node.append(&mut random),
                3 => node.written(),
                4..6 => node.sync(),
                6..9 => node.persisted(),
                9..12 => node.commit(&mut random),
                12 => node.pass(&mut random),
                // One that was superseded reads a store that is no longer its own.
                13..16 if node.is_superseded => node.load_failed(&mut random),
                13..16 => node.loaded(&mut random),
                16 => node.settle(),
                17 if !node.is_superseded => node.merge(),
                20 | 21 => node.heal(),
                // What a superseded one still has of the store is no longer its own to mend.
                22 if !node.is_superseded => node.reopen(&mut random),
                _ => node.keep(),
            }
        }
    }

    // ------------------------------------------------------------------------------------------------------ trouble

    fn break_something(&mut self) -> Result<(), String> {
        let client = self.random.index(self.clients.len());
        let clock = self.clock;
        let (conn, power) = (self.clients[client].net.newest(), self.random.chance(40));
        match self.random.below(24) {
            0..3 => self.cut(client),
            3..5 => self.clients[client].net.half_open(conn),
            5..7 => {
                let until = clock.after(self.millis(8000));
                self.clients[client].net.stall(conn, until);
            }
            7 => {
                let until = clock.after(self.millis(30_000));
                self.clients[client].net.partition(until);
            }
            8 => {
                let until = clock.after(self.millis(20_000));
                self.clients.iter_mut().for_each(|client| client.net.partition(until));
            }
            // Another connection while the old one still works, and with it two at once.
            9..11 => self.switch(client)?,
            11 => self.dial(client, DialInput::NetworkChanged(Vec::new()))?,
            12 => self.block(client),
            13..15 => self.crash_client(client, power),
            15 => self.crash_server(power),
            16 => self.take_over(),
            17 => self.end_old_server(),
            18 | 19 => self.jump(),
            _ => self.break_or_mend(),
        }
        Ok(())
    }

    /// Some engine's disk or store fails, or works again.
    fn break_or_mend(&mut self) {
        let mut random = Random::new(self.random.next());
        let (at, faults) = (random.index(self.node_count()), self.plan.faults);
        let Some((node, _)) = self.node_at(at).filter(|(node, _)| !node.is_superseded) else { return };
        match random.below(3) {
            0 if random.chance(faults) => node.break_disk(&mut random),
            1 if random.chance(faults) => node.break_store(&mut random),
            _ => node.relieve(),
        }
    }

    /// A connection breaks, with what is under way, and both ends hear of it by and by.
    fn cut(&mut self, client: usize) {
        let conn = self.clients[client].net.newest();
        for side in [crate::testing::pair::net::Side::Connector, crate::testing::pair::net::Side::Acceptor] {
            if let Some(delay) = self.clients[client].net.cut(conn, side, &mut self.random) {
                self.at(delay, Due::Notice(client, conn, side));
            }
        }
    }

    // --------------------------------------------------------------------------------------------------------- time

    /// Time passes to whatever comes first.
    pub(super) fn advance(&mut self) -> Result<(), String> {
        let due = self.due.first_key_value().map(|((at, _), _)| at.since(self.clock));
        let next = due.into_iter().chain(self.next_timer()).min();
        // Timers of engines may be years away.
        let by = next.unwrap_or_default().min(Duration::from_secs(30));
        self.pass(by)?;
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= self.clock) {
            let due = entry.remove();
            self.happen(due)?;
        }
        Ok(())
    }

    fn pass(&mut self, by: Duration) -> Result<(), String> {
        self.clock = self.clock.after(by);
        self.servers.iter_mut().for_each(|server| server.pass(by));
        self.clients.iter_mut().for_each(|client| client.pass(by));
        for who in self.everybody() {
            let now = self.now_of(who);
            if self.end(who).and_then(|end| end.session.poll_timeout()).is_some_and(|at| at <= now) {
                self.tell(who, Input::Tick)?;
            }
        }
        for client in 0..self.clients.len() {
            if self.clients[client].next_dial().is_some_and(|left| left.is_zero()) {
                self.dial(client, DialInput::Tick)?;
            }
        }
        Ok(())
    }

    fn happen(&mut self, due: Due) -> Result<(), String> {
        match due {
            Due::Connect(client, rung, attempt) => self.connect(client, rung, attempt),
            Due::Arrive(client, conn, to, bytes) => self.arrive(client, conn, to, bytes),
            Due::Notice(client, conn, side) => self.notice(client, conn, side),
            Due::Granted(client, conn, hello) => self.granted(client, conn, hello),
            Due::Renewed(client, conn, credentials) => self.renewed(client, conn, &credentials),
            Due::Credentials(client) => self.new_credentials(client),
            Due::Decide(client) => self.decide(client),
            Due::Publish(client) => self.publish(client),
            Due::StartClient(client) => self.start_client(client),
            Due::StartServer => {
                self.start_server();
                Ok(())
            }
        }
    }

    /// What engines and sessions have for each other goes over.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        for who in self.everybody() {
            self.answer(who)?;
            self.offer(who)?;
        }
        Ok(())
    }

    pub(super) fn end(&self, who: Who) -> Option<&End> {
        match who {
            Who::Client(client) => self.clients[client].end.as_ref(),
            Who::Server(server, client) => self.servers.get(server)?.ends.get(&client),
        }
    }

    /// Whether anybody's session is open.
    pub(super) fn is_open(&self, client: usize) -> bool {
        let open = |who| self.end(who).is_some_and(|end| Session::connection(&end.session).is_some());
        open(Who::Client(client)) && open(Who::Server(0, client))
    }
}
