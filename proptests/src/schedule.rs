//! The rules of scheduling, as a judge of what a machine offers.
//!
//! The judge keeps what waits and what flies in plain lists and asks of every message that is offered whether the rules
//! of `machine/pick.rs` allow it. It does not schedule: whatever a rule does not forbid is allowed.

use std::collections::HashMap;

use lastmile::machine::{EntryRef, LinkId};
use lastmile::record::Seq;
use lastmile::{Config, Priority};

/// A message, as far as scheduling goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its place.
    pub seq: Seq,
    /// Its lane.
    pub lane: Priority,
    /// Its ordering key.
    pub key: u8,
    /// What it costs, in bytes.
    pub cost: u64,
}

#[derive(Clone, Copy, Debug)]
struct Flying {
    item: Item,
    link: LinkId,
    batch: u64,
}

/// What happened since a lane last had nothing to offer.
#[derive(Clone, Copy, Debug, Default)]
struct Backlog {
    own: u64,
    others: u64,
    criticals: u64,
}

/// Judges the offers to one user.
#[derive(Debug)]
pub struct Judge {
    config: Config,
    /// The largest cost there is.
    largest: u64,
    waiting: [Vec<Item>; 4],
    flying: Vec<Flying>,
    batch: u64,
    /// How often a key was taken (second) while another one (first) of its lane was ready.
    passed: HashMap<(Priority, u8, u8), u32>,
    /// Critical messages in a row, and bytes of others that went before one since the last of them.
    burst: u32,
    round: Option<u64>,
    backlogs: [Backlog; 4],
}

/// What was wrong, for people.
pub type Verdict = Result<(), String>;

impl Judge {
    /// Nothing waits. No message will cost more than `largest`.
    #[must_use]
    pub fn new(config: Config, largest: u64) -> Self {
        Self {
            config,
            largest,
            waiting: Default::default(),
            flying: Vec::new(),
            batch: 0,
            passed: HashMap::new(),
            burst: 0,
            round: None,
            backlogs: Default::default(),
        }
    }

    /// A message was accepted.
    pub fn accepted(&mut self, item: Item) {
        self.waiting[item.lane.index()].push(item);
    }

    /// A message was delivered.
    pub fn delivered(&mut self, entry: EntryRef) {
        self.flying.retain(|flying| flying.item.seq != entry.seq);
        self.passed.retain(|(lane, ..), _| *lane != entry.lane);
    }

    /// A sink is gone, and what it had waits again.
    pub fn detached(&mut self, link: LinkId) {
        for gone in self.flying.extract_if(.., |flying| flying.link == link) {
            self.waiting[gone.item.lane.index()].push(gone.item);
        }
        self.waiting.iter_mut().for_each(|lane| lane.sort_by_key(|item| item.seq));
        self.passed.clear();
        self.backlogs = Default::default();
    }

    /// The keys of a lane whose first message may go now, with that message: nothing of the key flies, or only what
    /// is part of the same batch.
    fn ready(&self, lane: Priority) -> Vec<Item> {
        let mut heads: Vec<Item> = Vec::new();
        for item in &self.waiting[lane.index()] {
            if !heads.iter().any(|head| head.key == item.key) {
                heads.push(*item);
            }
        }
        let busy = |item: &Item| {
            let same = |flying: &&Flying| flying.item.lane == lane && flying.item.key == item.key;
            self.flying.iter().filter(same).any(|flying| flying.batch != self.batch)
        };
        heads.retain(|item| !busy(item));
        heads
    }

    /// Whether windows play no part in the order: all that may fly may be of any lane.
    fn is_strict(&self) -> bool {
        self.config.critical_reserve == 0 && self.config.max_in_flight_bytes.get() == u64::MAX
    }

    /// A batch was offered.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn offered(&mut self, link: LinkId, batch: &[EntryRef]) -> Verdict {
        self.batch += 1;
        if batch.is_empty() || batch.len() > self.config.max_batch.get() as usize {
            return Err(format!("a batch of {} messages", batch.len()));
        }
        batch.iter().try_for_each(|entry| self.picked(link, *entry))
    }

    fn picked(&mut self, link: LinkId, entry: EntryRef) -> Verdict {
        let ready = Priority::ALL.map(|lane| self.ready(lane));
        let found = ready[entry.lane.index()].iter().find(|item| item.seq == entry.seq).copied();
        let item = found.ok_or_else(|| format!("{entry:?} is not the first of a free key: {ready:?}"))?;
        self.check_window(link, item)?;
        self.check_keys(item, &ready[item.lane.index()])?;
        if self.is_strict() {
            self.check_critical(item, &ready)?;
            self.check_shares(item, &ready)?;
        }
        self.waiting[item.lane.index()].retain(|other| other.seq != item.seq);
        self.flying.push(Flying { item, link, batch: self.batch });
        Ok(())
    }

    /// A window holds so many messages and bytes, or one message of any size; critical ones have their reserve.
    fn check_window(&self, link: LinkId, item: Item) -> Verdict {
        let flying: Vec<_> = self.flying.iter().filter(|flying| flying.link == link).collect();
        let bytes: u64 = flying.iter().map(|flying| flying.item.cost).sum();
        let (window, reserve) = (self.config.max_in_flight.get(), self.config.critical_reserve);
        let fits = match item.lane {
            Priority::Critical => flying.len() < (window + reserve) as usize,
            _ => {
                flying.len() < window as usize
                    && (flying.is_empty()
                        || bytes.saturating_add(item.cost) <= self.config.max_in_flight_bytes.get())
            }
        };
        if fits { Ok(()) } else { Err(format!("{item:?} is beyond the window: {bytes} bytes of {flying:?}")) }
    }

    /// The keys of a lane take turns: none is taken twice while another one is ready.
    fn check_keys(&mut self, item: Item, ready: &[Item]) -> Verdict {
        for other in ready.iter().filter(|other| other.key != item.key) {
            let times = self.passed.entry((item.lane, other.key, item.key)).or_default();
            *times += 1;
            if *times > 1 {
                return Err(format!("{item:?} goes again while {other:?} waits for its turn"));
            }
        }
        self.passed.retain(|(lane, waits, _), _| {
            *lane != item.lane || *waits != item.key && ready.iter().any(|other| other.key == *waits)
        });
        Ok(())
    }

    fn shares(&self) -> u64 {
        self.config.shares[1..].iter().map(|share| u64::from(share.get())).sum()
    }

    /// Critical messages go first, but after a burst of them the others have a round.
    fn check_critical(&mut self, item: Item, ready: &[Vec<Item>; 4]) -> Verdict {
        let (critical_waits, others_wait) =
            (!ready[0].is_empty(), ready[1..].iter().any(|lane| !lane.is_empty()));
        let after_burst = self.burst >= self.config.critical_burst.get();
        if item.lane == Priority::Critical {
            // Only a share that pays for any message lets each lane have one in each round.
            let paid = self.config.shares[1..].iter().all(|share| u64::from(share.get()) >= self.largest);
            let missed = after_burst && self.round.is_none() && others_wait && paid;
            // A round that ran out of messages is not over.
            self.burst = if self.round.take().is_some() && others_wait { 1 } else { self.burst + 1 };
            return if missed { Err(format!("{item:?} extends a full burst")) } else { Ok(()) };
        }
        if critical_waits {
            if !after_burst {
                return Err(format!("{item:?} goes before a critical one after a burst of {}", self.burst));
            }
            let before = self.round.get_or_insert(0);
            *before += item.cost;
            let (before, bound) = (*before, self.critical_bound());
            if before > bound {
                return Err(format!("{before} bytes went before a critical message, over {bound}"));
            }
        } else if after_burst {
            self.round.get_or_insert(0);
        } else {
            self.burst = 0;
        }
        Ok(())
    }

    /// Bytes of other lanes that a critical message may have to wait for: the rest of a turn that the burst interrupted,
    /// a round, and what lanes carry over.
    fn critical_bound(&self) -> u64 {
        let turn = self.config.shares[1..].iter().map(|share| u64::from(share.get())).max();
        turn.unwrap_or_default() + self.shares() + 3 * self.largest
    }

    /// A lane that always has something to offer gets its share of every round. A round is over, at the latest, when a
    /// burst of critical messages or the shares of all other lanes have gone; one round may be cut at either end.
    fn check_shares(&mut self, item: Item, ready: &[Vec<Item>; 4]) -> Verdict {
        for lane in [Priority::High, Priority::Normal, Priority::Low] {
            let backlog = &mut self.backlogs[lane.index()];
            if ready[lane.index()].is_empty() {
                *backlog = Backlog::default();
                continue;
            }
            match item.lane {
                Priority::Critical => backlog.criticals += 1,
                own if own == lane => backlog.own += item.cost,
                _ => backlog.others += item.cost,
            }
        }
        for lane in [Priority::High, Priority::Normal, Priority::Low] {
            let Backlog { own, others, criticals } = self.backlogs[lane.index()];
            let share = u64::from(self.config.shares[lane.index()].get());
            let round = self.shares() - share + 2 * self.largest;
            let rounds = (criticals / u64::from(self.config.critical_burst.get())).max(others / round);
            let due = share.saturating_sub(self.largest) * rounds.saturating_sub(2);
            if own < due {
                return Err(format!(
                    "{lane:?} got {own} bytes where {due} are due: {others} bytes of others, {criticals} critical"
                ));
            }
        }
        Ok(())
    }

    /// The machine has nothing more to do: nothing that fits may be left.
    ///
    /// # Errors
    /// What is left.
    pub fn at_rest(&mut self, links: &[LinkId]) -> Verdict {
        self.batch += 1;
        for link in links {
            let flying = self.flying.iter().filter(|flying| flying.link == *link).count();
            let (window, reserve) = (self.config.max_in_flight.get(), self.config.critical_reserve);
            let room = |lane| match lane {
                Priority::Critical => flying < (window + reserve) as usize,
                _ if self.config.max_in_flight_bytes.get() == u64::MAX => flying < window as usize,
                _ => flying == 0,
            };
            for lane in Priority::ALL.into_iter().filter(|lane| room(*lane)) {
                if let Some(left) = self.ready(lane).first() {
                    return Err(format!("{left:?} is left, although {link:?} has room"));
                }
            }
        }
        Ok(())
    }

    /// Messages that were not offered yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(Vec::len).sum()
    }
}
