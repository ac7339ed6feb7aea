//! Sinks that come and go, and what they say.

use std::collections::VecDeque;

use super::link::{Link, Reaction, nonsense};
use super::node::Node;
use super::oracle::{device as device_named, is_volatile};
use super::random::Random;
use crate::id::{DeviceId, UserId};
use crate::machine::{Input, LinkId, Verdict, Withdrawn};

impl Node {
    pub(super) fn attach(&mut self, user: UserId, device: u64, is_wire: bool) -> Option<LinkId> {
        self.attach_as(user, device_named(device), is_wire)
    }

    pub(super) fn attach_as(&mut self, user: UserId, device: DeviceId, is_wire: bool) -> Option<LinkId> {
        self.last_link += 1;
        let id = LinkId(self.last_link);
        let engine = self.engine.as_mut()?;
        let link = Link {
            id,
            user: user.clone(),
            device: device.clone(),
            is_wire,
            queue: VecDeque::new(),
            carrying: None,
            is_told: false,
        };
        engine.links.insert(id, link);
        let shard = self.shard_of(&user);
        self.input(shard, Input::Attach { link: id, user, device });
        Some(id)
    }

    pub(super) fn detach(&mut self, id: LinkId) {
        let Some(user) =
            self.engine.as_ref().and_then(|engine| engine.links.get(&id)).map(|link| link.user.clone())
        else {
            return;
        };
        self.forget_link(id);
        let shard = self.shard_of(&user);
        self.input(shard, Input::Detach(id));
    }

    pub(super) fn forget_link(&mut self, id: LinkId) {
        let Some(link) = self.engine.as_mut().and_then(|engine| engine.links.remove(&id)) else { return };
        self.ghosts.extend(link.queue.iter().map(|delivery| (id, link.user.clone(), delivery.entry)));
        let surplus = self.ghosts.len().saturating_sub(32);
        self.ghosts.drain(..surplus);
    }

    /// Passes on what a sink did and said.
    pub(super) fn react(&mut self, link: LinkId, user: &UserId, reaction: Reaction) {
        for (entry, verdict) in &reaction.verdicts {
            self.oracle.said(*entry, verdict);
            if !is_volatile(*entry) {
                self.ghosts.push((link, user.clone(), *entry));
            }
        }
        for seq in reaction.applied {
            self.oracle.applied(self.now, seq);
        }
        if reaction.verdicts.is_empty() {
            return;
        }
        let shard = self.shard_of(user);
        self.input(shard, Input::Verdicts { link, verdicts: reaction.verdicts });
    }

    /// A sink is told that a message rings no more: it is not taken by it, unless it is on its way.
    pub(super) fn withdraw(&mut self, link: LinkId, withdrawn: &Withdrawn) {
        self.oracle.withdrawn(withdrawn);
        let links = self.engine.as_mut().map(|engine| &mut engine.links);
        match links.and_then(|links| links.get_mut(&link)) {
            Some(link) => {
                // The first one, if it is on its way to another engine, stays: that says what becomes of it. What was offered
                // twice may be behind it.
                let mut is_carried = link.carrying.is_some();
                let mut stays = |entry| core::mem::take(&mut is_carried) || entry != withdrawn.entry;
                link.queue.retain(|delivery| stays(delivery.entry));
            }
            None => self.oracle.fail(format!("{link:?} was told of {withdrawn:?} when gone")),
        }
    }

    /// Lets the registered devices of somebody come, as many as may be there at once.
    pub(super) fn attach_devices(&mut self, user: &UserId, is_wire: bool, random: &mut Random) {
        let Some(engine) = &self.engine else { return };
        let theirs: Vec<_> = engine.links.values().filter(|link| &link.user == user).collect();
        let here: Vec<_> = theirs.iter().map(|link| link.device.clone()).collect();
        let mut absent = self.oracle.devices_of(user);
        absent.retain(|device| !here.contains(device));
        if absent.is_empty() {
            return;
        }
        if here.len() >= self.plan.config.max_devices.get() {
            let leaves = theirs[random.index(theirs.len())].id;
            self.detach(leaves);
        }
        let comes = absent[random.index(absent.len())].clone();
        let _ = self.attach_as(user.clone(), comes, is_wire);
    }

    /// Somebody's sink says something of what it holds.
    pub(super) fn verdict_of_sink(&mut self, random: &mut Random) {
        let Some(engine) = &mut self.engine else { return };
        let mut sinks: Vec<_> =
            engine.links.values_mut().filter(|link| !link.is_wire && !link.queue.is_empty()).collect();
        let at = random.index(sinks.len());
        let Some(link) = sinks.get_mut(at) else { return };
        let mut reaction = Reaction::default();
        for _ in 0..=random.below(3) {
            let next = link.react(random);
            reaction.applied.extend(next.applied);
            reaction.verdicts.extend(next.verdicts);
        }
        let (id, user) = (link.id, link.user.clone());
        self.react(id, &user, reaction);
    }

    pub(super) fn some_link(&self, random: &mut Random) -> Option<LinkId> {
        let links = &self.engine.as_ref()?.links;
        links.keys().nth(random.index(links.len())).copied()
    }

    /// Someone says something about a message that is no longer, or never was, theirs.
    pub(super) fn stray(&mut self, random: &mut Random) {
        let at = random.index(self.ghosts.len());
        let Some((link, user, entry)) = self.ghosts.get(at).cloned() else { return };
        let live =
            self.engine.as_ref().and_then(|engine| engine.links.values().find(|link| link.user == user));
        let link = if random.chance(50) { live.map_or(link, |link| link.id) } else { link };
        // Untrue confirmations are the one lie that cannot be told from the truth: only what was taken is confirmed.
        let taken = self.oracle.messages.get(&entry.seq).is_some_and(|kept| kept.applied);
        let verdict = if taken && random.chance(60) { Verdict::Delivered } else { nonsense(random) };
        let reaction = Reaction { applied: Vec::new(), verdicts: vec![(entry, verdict)] };
        self.react(link, &user, reaction);
    }
}
