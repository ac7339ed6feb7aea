//! What must be true, after each step and at the end.

use core::time::Duration;

use super::client::HUB;
use super::{Due, World};
use crate::id::{MessageId, UserId};
use crate::message::Durability;
use crate::record::{Origin, Seq};
use crate::status::EndReason;
use crate::testing::sim::compose::person;
use crate::testing::sim::node::Node;
use crate::testing::sim::random::Random;

/// Rounds in which all must come to rest.
const ROUNDS: usize = 3000;

impl World {
    /// After each step: what each engine's oracle found.
    pub(super) fn check(&mut self) -> Result<(), String> {
        self.gather_traces();
        let servers = self.servers.iter_mut().map(|server| &mut server.node);
        let clients = self.clients.iter_mut().filter_map(|client| client.node.as_mut());
        for node in servers.chain(clients) {
            if !node.is_superseded {
                node.check();
            }
            if let Some(failure) = node.oracle.take_failure() {
                let old = if node.is_superseded { " (superseded)" } else { "" };
                return Err(format!("engine {:x}{old}: {failure}", node.stream.as_u128()));
            }
        }
        Ok(())
    }

    /// Everything heals, everybody comes, and nothing is left to do.
    pub(super) fn rest(&mut self) -> Result<(), String> {
        self.calm = true;
        self.end_old_server();
        self.unblock_all();
        let mut random = Random::new(self.random.next());
        self.servers[0].node.relieve();
        if self.servers[0].node.engine.is_none() {
            self.servers[0].node.crash(false, &mut random);
        }
        self.clients.iter_mut().filter_map(|client| client.node.as_mut()).for_each(Node::relieve);
        if self.servers[0].node.engine.is_none() {
            self.start_server();
        }
        self.servers[0].node.recover(&mut random);
        for client in 0..self.clients.len() {
            if let Some(node) = &mut self.clients[client].node {
                node.recover(&mut random);
            }
            if self.clients[client].end.is_none() {
                self.start_client(client)?;
            }
            self.at(Duration::from_millis(1), Due::Publish(client));
        }
        self.check()?;
        for round in 0..ROUNDS {
            self.serve_people(&mut random);
            let until = self.clock.after(Duration::from_secs(1));
            for _ in 0..50 {
                self.settle()?;
                self.advance()?;
                if self.clock >= until {
                    break;
                }
            }
            self.settle()?;
            self.check()?;
            if round.is_multiple_of(8) && self.is_done() {
                let nodes = self.servers.iter_mut().map(|server| &mut server.node);
                let clients = self.clients.iter_mut().filter_map(|client| client.node.as_mut());
                nodes.chain(clients).for_each(|node| node.oracle.check_answered());
                return self.check();
            }
        }
        let left: Vec<_> = self.nodes().flat_map(Node::left_over).take(3).collect();
        let light = self.clients.iter().filter_map(|client| client.light.as_ref());
        let light: usize = light.map(|light| light.publishing.left()).sum();
        let open: Vec<_> = (0..self.clients.len()).map(|client| self.is_open(client)).collect();
        Err(format!("does not come to rest (sessions: {open:?}, unpublished: {light}): {}", left.join("; ")))
    }

    /// Engines work, and whoever is not reached by a session takes everything.
    fn serve_people(&mut self, random: &mut Random) {
        let hub = person(HUB);
        let server = &mut self.servers[0].node;
        server.attach_if_alone(&hub, false);
        // The store of two processes may have failed for one of them, and the other learns of it when it next writes.
        server.reopen(random);
        server.wake();
        server.work(random);
        server.deliver_all();
        for (index, client) in self.clients.iter_mut().enumerate() {
            if let Some(node) = &mut client.node {
                node.attach_if_alone(&person(index as u64), false);
                node.reopen(random);
                node.wake();
                node.work(random);
                node.deliver_all();
            }
        }
    }

    fn is_done(&mut self) -> bool {
        let published = |client: &super::client::Client| {
            client.light.as_ref().is_none_or(|light| light.publishing.left() == 0)
        };
        if !self.nodes().all(Node::is_done) || !self.clients.iter().all(published) {
            return false;
        }
        // A send may still wait in a machine for another one to meet.
        let nodes = self.servers.iter_mut().map(|server| &mut server.node);
        let clients = self.clients.iter_mut().filter_map(|client| client.node.as_mut());
        nodes.chain(clients).for_each(|node| node.broadcast(&crate::machine::Input::Tick));
        self.nodes().all(Node::is_done)
    }

    /// What both sides say must fit together.
    pub(super) fn judge(&mut self) -> Result<(), String> {
        let (server, hub) = (&self.servers[0].node, person(HUB));
        for (index, client) in self.clients.iter().enumerate() {
            let user = person(index as u64);
            if let Some(node) = &client.node {
                let from = node.stream;
                arrived(node, &hub, |seq| server.oracle.has_taken(&hub, Origin { stream: from, seq }))?;
                let from = server.stream;
                arrived(server, &user, |seq| node.oracle.has_taken(&user, Origin { stream: from, seq }))?;
            }
            if let Some(light) = &client.light {
                light.inbox.check().map_err(|what| format!("client {index}: {what}"))?;
                arrived(server, &user, |seq| light.inbox.has_applied(seq))?;
                let buffered = |id: &&MessageId| light.buffered.contains(*id);
                for id in light.publishing.accepted().iter().filter(|id| !buffered(id)) {
                    let there = server.oracle.messages.values().any(|kept| kept.accept.message.id() == *id);
                    if !there {
                        return Err(format!("a publish was said to be accepted, and is not: {id}"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// What a sender holds for delivered is at the receiver, if it was to survive everything.
fn arrived(sender: &Node, user: &UserId, has: impl Fn(Seq) -> bool) -> Result<(), String> {
    for (seq, kept) in &sender.oracle.messages {
        let message = &kept.accept.message;
        let synced = message.durability() == Durability::Synced && message.recipient() == user;
        let delivered = kept.end == Some(EndReason::Delivered) && kept.accept.lane().priority().is_some();
        if synced && delivered && !has(*seq) {
            return Err(format!("{seq:?} was delivered to {user}, where nobody knows it"));
        }
    }
    Ok(())
}
