//! The rules of scheduling, twice: as a judge of what a machine offers, and as a scheduler of its own.
//!
//! The judge keeps what waits and what flies in plain lists and asks of every message that is offered whether windows and
//! ordering keys allow it, whatever the lane. The reference schedules lanes, one window and no keys, as plainly as it
//! can be written down.

use std::collections::{HashMap, VecDeque};

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
    pub key: u64,
    /// What it costs, in bytes.
    pub cost: u64,
}

#[derive(Clone, Copy, Debug)]
struct Flying {
    item: Item,
    link: LinkId,
    batch: u64,
}

/// Judges the offers to one user.
#[derive(Debug)]
pub struct Judge {
    config: Config,
    waiting: [Vec<Item>; 4],
    flying: Vec<Flying>,
    batch: u64,
    /// How often a key was taken (second) while another one (first) of its lane was ready.
    passed: HashMap<(Priority, u64, u64), u32>,
}

/// What was wrong, for people.
pub type Verdict = Result<(), String>;

impl Judge {
    /// Nothing waits.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, waiting: Default::default(), flying: Vec::new(), batch: 0, passed: HashMap::new() }
    }

    /// A message was accepted.
    pub fn accepted(&mut self, item: Item) {
        self.waiting[item.lane.index()].push(item);
    }

    /// A message was delivered.
    pub fn delivered(&mut self, entry: EntryRef) {
        self.flying.retain(|flying| flying.item.seq != entry.seq);
        self.passed.retain(|(lane, ..), _| entry.lane != *lane);
    }

    /// A sink is gone, and what it had waits again.
    pub fn detached(&mut self, link: LinkId) {
        for gone in self.flying.extract_if(.., |flying| flying.link == link) {
            self.waiting[gone.item.lane.index()].push(gone.item);
        }
        self.waiting.iter_mut().for_each(|lane| lane.sort_by_key(|item| item.seq));
        self.passed.clear();
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

    /// A batch was offered; which messages that were.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn offered(&mut self, link: LinkId, batch: &[EntryRef]) -> Result<Vec<Item>, String> {
        self.batch += 1;
        if batch.is_empty() || batch.len() > self.config.max_batch.get() as usize {
            return Err(format!("a batch of {} messages", batch.len()));
        }
        batch.iter().map(|entry| self.picked(link, *entry)).collect()
    }

    fn picked(&mut self, link: LinkId, entry: EntryRef) -> Result<Item, String> {
        let ready = Priority::ALL.map(|lane| self.ready(lane));
        let found = ready[entry.lane.index()].iter().find(|item| item.seq == entry.seq).copied();
        let item = found.ok_or_else(|| format!("{entry:?} is not the first of a free key: {ready:?}"))?;
        self.check_window(link, item)?;
        self.check_keys(item, &ready[item.lane.index()])?;
        self.waiting[item.lane.index()].retain(|other| other.seq != item.seq);
        self.flying.push(Flying { item, link, batch: self.batch });
        Ok(item)
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

/// Whose turn it is, for one window and messages that each have a key of their own.
#[derive(Debug)]
pub struct Reference {
    config: Config,
    lanes: [VecDeque<Item>; 4],
    flying: usize,
    deficits: [u64; 4],
    turn: usize,
    turn_began: bool,
    /// Critical messages in a row, and the turns of other lanes since the last of them.
    streak: u32,
    turns: u32,
}

impl Reference {
    /// Nothing waits.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let lanes = Default::default();
        Self { config, lanes, flying: 0, deficits: [0; 4], turn: 1, turn_began: false, streak: 0, turns: 0 }
    }

    /// A message was accepted.
    pub fn accepted(&mut self, item: Item) {
        self.lanes[item.lane.index()].push_back(item);
    }

    /// So many messages were delivered.
    pub fn delivered(&mut self, n: usize) {
        self.flying -= n;
    }

    /// What is offered now, in order.
    pub fn offer(&mut self) -> Vec<Item> {
        let mut offered = Vec::new();
        while self.flying < self.config.max_in_flight.get() as usize {
            let Some(item) = self.next() else { break };
            self.flying += 1;
            offered.push(item);
        }
        offered
    }

    fn next(&mut self) -> Option<Item> {
        (1..4).filter(|lane| self.lanes[*lane].is_empty()).for_each(|lane| self.deficits[lane] = 0);
        let others_wait = self.lanes[1..].iter().any(|lane| !lane.is_empty());
        let burst = self.config.critical_burst.get();
        if self.streak == burst && others_wait {
            while self.turns < 3 {
                if let Some(item) = self.take_turn() {
                    return Some(item);
                }
            }
            self.streak = 0;
        }
        if let Some(critical) = self.lanes[0].pop_front() {
            self.streak = burst.min(self.streak + 1);
            self.turns = 0;
            return Some(critical);
        }
        others_wait.then(|| {
            self.streak = 0;
            loop {
                if let Some(item) = self.take_turn() {
                    return item;
                }
            }
        })
    }

    /// The next message of the lane whose turn it is, or the end of its turn.
    fn take_turn(&mut self) -> Option<Item> {
        let lane = self.turn;
        if let Some(head) = self.lanes[lane].front() {
            if !self.turn_began {
                self.deficits[lane] += u64::from(self.config.shares[lane].get());
                self.turn_began = true;
            }
            if self.deficits[lane] >= head.cost {
                self.deficits[lane] -= head.cost;
                return self.lanes[lane].pop_front();
            }
        }
        (self.turn, self.turn_began) = (lane % 3 + 1, false);
        self.turns += 1;
        None
    }
}
