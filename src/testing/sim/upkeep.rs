//! Loads, timers, and bringing an engine to rest.

use core::time::Duration;

use super::link::Reaction;
use super::node::Node;
use super::random::Random;
use super::world::World;
use crate::id::UserId;
use crate::machine::{Found, Input, Verdict};
use crate::record::Seq;
use crate::testing::{DiskOp, Fault};
use crate::time::Timestamp;

impl World {
    /// Hours in which nobody comes: what has settled and expires meanwhile ends all the same.
    pub(super) fn leave_alone(&mut self, random: &mut Random) -> Result<(), String> {
        for index in 0..2 {
            while let Some(link) = self.nodes[index].some_link(random) {
                self.nodes[index].detach(link);
            }
            self.nodes[index].settle_all(random);
        }
        let settled = [0, 1].map(|index| self.nodes[index].engine.as_ref().map(|engine| engine.settled));
        for _ in 0..24 {
            self.pass(Duration::from_secs(600));
            for node in &mut self.nodes {
                node.work(random);
            }
        }
        for (node, settled) in self.nodes.iter_mut().zip(settled) {
            node.check_swept(settled.unwrap_or_default());
        }
        self.verdict()
    }
}

impl Node {
    /// What was due long ago and had settled before is over.
    fn check_swept(&mut self, settled: Seq) {
        // With few gaps, what is behind one that waits may wait as well.
        if self.plan.config.max_gaps.get() < 1000 {
            return;
        }
        // A TTL of a simulated life is at most 100,000 s, of which a stretch is a 64th.
        let long_ago = Timestamp::from_millis(self.now.as_millis().saturating_sub(3_600_000));
        let late =
            |(seq, kept): &(&Seq, &super::oracle::Kept)| **seq < settled && kept.accept.due() <= long_ago;
        let late = self.oracle.live().find(late).map(|(seq, kept)| (*seq, kept.accept.due()));
        if let Some((seq, due)) = late {
            self.oracle.fail(format!("{seq:?} was due at {due:?} and still waits"));
        }
    }

    // ------------------------------------------------------------------------------------------------------ faults

    /// A write, sync or creation of the journal's disk fails soon, once or for ever.
    pub(super) fn break_disk(&mut self, random: &mut Random) {
        let op = [DiskOp::Write, DiskOp::Sync, DiskOp::Sync, DiskOp::Create][random.index(4)];
        let lasting = if random.chance(30) { Fault::Forever } else { Fault::Once };
        self.disk.set_torn(random.next() as u8);
        self.disk.fail_at(op, self.disk.count(op) + 1 + random.below(4), lasting);
    }

    /// An operation of the store fails soon, once or for ever.
    pub(super) fn break_store(&mut self, random: &mut Random) {
        self.home.fail(random.below(6), random.chance(30), random.chance(40));
    }

    /// Disk and store work again.
    pub(super) fn relieve(&mut self) {
        self.disk.heal();
        self.home.relieve();
    }

    // ------------------------------------------------------------------------------------------------------- loads

    /// Some load reads the store.
    pub(super) fn read(&mut self, random: &mut Random) {
        let Some(engine) = &mut self.engine else { return };
        let index = random.index(engine.loads.len());
        if let Some(load) = engine.loads.get_mut(index).filter(|load| load.found.is_none()) {
            match self.home.load(&load.query) {
                Ok(found) => load.found = Some(found),
                Err(error) => self.oracle.fail(format!("a load failed: {error}")),
            }
        }
    }

    /// What some load has read reaches the machine.
    pub(super) fn loaded(&mut self, random: &mut Random) {
        let Some(engine) = &mut self.engine else { return };
        let index = random.index(engine.loads.len());
        if index >= engine.loads.len() || engine.loads[index].found.is_none() && !random.chance(50) {
            return;
        }
        let load = engine.loads.swap_remove(index);
        let found = match load.found.map_or_else(|| self.home.load(&load.query), Ok) {
            Ok(found) => found,
            Err(error) => return self.oracle.fail(format!("a load failed: {error}")),
        };
        if let Found::Page(page) = &found {
            // What has ended since the page was asked for may be gone in part, and nobody takes it for damage.
            let lives = |(seq, _): &&(Seq, u64)| self.oracle.live().any(|(live, _)| live == seq);
            if let Some((seq, _)) = page.damaged.iter().find(lives).copied() {
                return self.oracle.fail(format!("a page reports damage: {seq:?}"));
            }
        }
        self.input(load.shard, Input::Loaded { load: load.load, found: Box::new(found) });
    }

    pub(super) fn load_failed(&mut self, random: &mut Random) {
        let Some(engine) = &mut self.engine else { return };
        let index = random.index(engine.loads.len());
        if index < engine.loads.len() {
            let load = engine.loads.swap_remove(index);
            self.input(load.shard, Input::LoadFailed(load.load));
        }
    }

    // ------------------------------------------------------------------------------------------------------ timers

    /// When the next timer is due, now at the earliest.
    pub(super) fn next_timer(&self) -> Option<Timestamp> {
        let machines = &self.engine.as_ref()?.shards;
        machines.iter().filter_map(|machine| machine.poll_timeout()).min().map(|at| at.max(self.now))
    }

    /// Fires what is due.
    pub(super) fn tick(&mut self) {
        for shard in 0..self.shards {
            for n in 0.. {
                let machine = self.engine.as_ref().map(|engine| &engine.shards[shard]);
                if machine.and_then(|machine| machine.poll_timeout()).is_none_or(|at| at > self.now) {
                    break;
                }
                self.input(shard, Input::Tick);
                if n > 1000 {
                    return self.oracle.fail("a timer does not stop firing");
                }
            }
        }
    }

    // ------------------------------------------------------------------------------------------------------ at rest

    /// Opens and heals; every fault is over.
    pub(super) fn recover(&mut self, random: &mut Random) {
        self.reopen(random);
        self.open();
        self.broadcast(&Input::Disk { bytes: 0 });
        if self.engine.is_none() {
            self.oracle.fail("does not open although every fault is over");
        }
        for _ in 0..200 {
            self.heal();
            self.reopen(random);
            if !self.home.has_failed() && self.engine.as_ref().is_some_and(|engine| !engine.broken) {
                return;
            }
            // A full journal heals when something has settled, for which rows may have to be read.
            self.settle();
            self.load_all(random);
            self.keep();
        }
        self.oracle.fail("the journal does not heal although every fault is over");
    }

    /// The process ends where it began.
    pub(super) fn did_not_open(&mut self, error: String) {
        self.home.close();
        self.trace.iter_mut().for_each(|trace| trace.push(format!("  does not open: {error}")));
        // What no fault explains is marked.
        if error.starts_with('!') {
            self.oracle.fail(error);
        }
    }

    /// Settles all that lies in segments that were left.
    pub(super) fn settle_all(&mut self, random: &mut Random) {
        for _ in 0..400 {
            self.work(random);
            self.settle();
            self.keep();
            // A row that could not be read is asked for again after a while.
            self.now = self.next_timer().unwrap_or(self.now).min(self.now.after(Duration::from_secs(1)));
            self.tick();
            let settled = |engine: &super::node::Engine| {
                engine.settled >= engine.sealed && matches!(engine.settling, super::node::Settling::Idle)
            };
            if self.engine.as_ref().is_some_and(settled) {
                return;
            }
        }
        self.oracle.fail("settling does not end");
    }

    pub(super) fn attach_if_alone(&mut self, user: &UserId, is_wire: bool) {
        let alone = |engine: &super::node::Engine| engine.links.values().all(|link| &link.user != user);
        if self.engine.as_ref().is_some_and(alone) {
            let _ = self.attach(user.clone(), 9, is_wire);
        }
    }

    /// Does what there is to do inside.
    pub(super) fn work(&mut self, random: &mut Random) {
        for _ in 0..200 {
            self.pass_all(random);
            self.commit(random);
            self.load_all(random);
            self.tick();
            let Some(engine) = &self.engine else { return };
            if engine.full || matches!(engine.settling, super::node::Settling::Idle) && random.chance(3) {
                self.settle();
            }
            self.keep();
            let Some(engine) = &self.engine else { return };
            let idle = engine.queue.is_empty() && engine.flight.is_none();
            let at_rest = idle && engine.loads.is_empty() && engine.notes.is_empty();
            if at_rest && !random.chance(30) {
                return;
            }
        }
    }

    fn load_all(&mut self, random: &mut Random) {
        let mut left = 1000;
        while self.engine.as_ref().is_some_and(|engine| !engine.loads.is_empty()) {
            self.loaded(random);
            left -= 1;
            if left == 0 {
                return self.oracle.fail("the machines do not stop loading");
            }
        }
    }

    /// Every sink that leads to a person takes everything.
    pub(super) fn deliver_all(&mut self) {
        let Some(engine) = &mut self.engine else { return };
        let mut reactions = Vec::new();
        for link in engine.links.values_mut().filter(|link| !link.is_wire) {
            let mut reaction = Reaction::default();
            while !link.queue.is_empty() {
                link.take(Some(Verdict::Delivered), &mut reaction);
            }
            reactions.push((link.id, link.user.clone(), reaction));
        }
        for (id, user, reaction) in reactions {
            self.react(id, &user, reaction);
            self.gaps_told(id, true);
        }
    }

    /// Whether nothing is left to deliver.
    pub(super) fn is_done(&self) -> bool {
        let idle = |engine: &super::node::Engine| {
            engine.queue.is_empty() && engine.flight.is_none() && engine.notes.is_empty()
        };
        // A repeat of what was sent before the clock was set back may wait for years.
        let soon = self.now.after(Duration::from_secs(2000));
        let is_due =
            |kept: &super::oracle::Kept| kept.accept.message.not_before().is_none_or(|at| at <= soon);
        // What waits for such a repeat waits as long.
        let waits = |seq| self.oracle.waits_for_another(seq);
        self.oracle.live().all(|(seq, kept)| !is_due(kept) || waits(*seq))
            && self.oracle.operations.is_empty()
            && self.engine.as_ref().is_some_and(idle)
    }

    /// What is still there, in words.
    pub(super) fn left_over(&self) -> Vec<String> {
        let user = |user: &UserId| {
            let engine = self.engine.as_ref()?;
            engine.shards[self.shard_of(user)].snapshot(user)
        };
        let live = self.oracle.live().map(|(seq, kept)| {
            let message = &kept.accept.message;
            format!(
                "{seq:?} for {} ({:?}), offered: {}, in memory: {:?}",
                message.recipient(),
                message.priority(),
                kept.offered,
                user(message.recipient())
            )
        });
        live.collect()
    }
}
