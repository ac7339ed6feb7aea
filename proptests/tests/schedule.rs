//! Whatever arrives and however slowly it is taken, offers follow the rules of scheduling; lanes take turns as the
//! reference says; and the bounds that `src/machine/pick.rs` documents hold.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZero;

use lastmile::machine::{Action, Birth, EntryRef, Input, LinkId, Machine, Ticket, Verdict};
use lastmile::record::{Counters, Epoch, Seq};
use lastmile::{Config, DeviceId, Message, MessageId, Priority, StreamId, Timestamp, UserId};
use lastmile_proptests::schedule::{Item, Judge, Reference};
use proptest::prelude::*;

/// The largest payload, and what a message costs besides.
const LARGEST: u64 = 400;
const OVERHEAD: u64 = 16;

#[derive(Clone, Debug)]
enum Op {
    /// Messages arrive together.
    Arrive(Vec<(u8, u8, u16)>),
    /// A sink confirms its oldest messages.
    Take(u8, u8),
    /// A sink is replaced.
    Reattach(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let arrival = (0_u8..4, 0_u8..3, 0..LARGEST as u16);
    // Some bursts are of one lane only: an adversary's.
    let flood = (0_u8..4, 1_usize..20).prop_map(|(lane, n)| Op::Arrive(vec![(lane, 0, 300); n]));
    prop_oneof![
        4 => prop::collection::vec(arrival, 1..6).prop_map(Op::Arrive),
        1 => flood,
        6 => (0_u8..2, 1_u8..12).prop_map(|(link, n)| Op::Take(link, n)),
        1 => (0_u8..2).prop_map(Op::Reattach),
    ]
}

/// With a window that any message fits into, or with one that is full by bytes and a reserve.
fn config(is_plain: bool) -> impl Strategy<Value = Config> {
    let share = || prop_oneof![1_u32..1500, LARGEST as u32 + OVERHEAD as u32..4000];
    let shares = [share(), share(), share()];
    (1_u32..8, 0_u32..3, 1_u32..6, 1_u32..6, shares).prop_map(
        move |(window, reserve, batch, burst, shares)| {
            let mut config = Config::default();
            let at_least_one = |n: u32| NonZero::new(n).unwrap_or(NonZero::<u32>::MIN);
            config.max_in_flight = at_least_one(window);
            config.critical_reserve = if is_plain { 0 } else { reserve };
            let bytes = if is_plain { u64::MAX } else { u64::from(window) * 200 };
            config.max_in_flight_bytes = NonZero::new(bytes).unwrap_or(NonZero::<u64>::MAX);
            config.max_batch = at_least_one(batch);
            config.critical_burst = at_least_one(burst);
            let [high, normal, low] = shares.map(at_least_one);
            config.shares = [config.shares[0], high, normal, low];
            config
        },
    )
}

/// One machine, one user, and the judge of what it is offered.
struct Bench {
    machine: Machine,
    judge: Judge,
    links: Vec<LinkId>,
    held: BTreeMap<LinkId, VecDeque<EntryRef>>,
    arrivals: BTreeMap<Ticket, Item>,
    next: Seq,
    tickets: u64,
    attached: u64,
    /// Each message has a key of its own, so that no key is in a lane's way.
    has_own_keys: bool,
    /// Compared with what is offered, when there is one.
    reference: Option<Reference>,
    /// What was offered, in order.
    offered: Vec<Item>,
}

impl Bench {
    fn new(config: Config, links: u8) -> Self {
        let birth = Birth {
            config: config.clone(),
            stream: StreamId::from_u128(1),
            epoch: Epoch(1),
            digest_key: 7,
            seed: 1,
            settled: Seq::ZERO,
            counters: Counters::default(),
            store_empty: true,
            shard: (0, 1),
        };
        let mut bench = Self {
            machine: Machine::new(birth),
            judge: Judge::new(config),
            has_own_keys: false,
            reference: None,
            offered: Vec::new(),
            links: Vec::new(),
            held: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            next: Seq::first_of(Epoch(1)),
            tickets: 0,
            attached: 0,
        };
        (0..links).for_each(|device| bench.attach(device).unwrap());
        bench
    }

    fn attach(&mut self, device: u8) -> Result<(), String> {
        self.attached += 1;
        let link = LinkId(self.attached);
        self.links.push(link);
        let user = UserId::new("alice").unwrap();
        let device = DeviceId::new([b'd', device]).unwrap();
        self.run(vec![Input::Attach { link, user, device }])
    }

    fn play(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Arrive(arrivals) => {
                let sends = arrivals.iter().map(|arrival| self.send(*arrival)).collect();
                self.run(sends)
            }
            Op::Take(link, n) => {
                let link = self.links[usize::from(*link) % self.links.len()];
                let held = self.held.entry(link).or_default();
                let taken: Vec<_> = held.drain(..held.len().min((*n).into())).collect();
                taken.iter().for_each(|entry| self.judge.delivered(*entry));
                if let Some(reference) = &mut self.reference {
                    reference.delivered(taken.len());
                }
                let verdicts = taken.into_iter().map(|entry| (entry, Verdict::Delivered)).collect();
                self.run(vec![Input::Verdicts { link, verdicts }])
            }
            Op::Reattach(link) => {
                let link = self.links.remove(usize::from(*link) % self.links.len());
                self.held.remove(&link);
                self.judge.detached(link);
                self.run(vec![Input::Detach(link)])?;
                self.attach(self.attached as u8)
            }
        }
    }

    fn send(&mut self, (lane, key, size): (u8, u8, u16)) -> Input {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let lane = Priority::from_index(lane).unwrap();
        let key = if self.has_own_keys { 1000 + self.tickets } else { key.into() };
        let message = Message::to("alice", "prop.event", vec![0; size.into()])
            .id(MessageId::from_u128(self.tickets.into()))
            .priority(lane)
            .ordering_key(format!("k{key}"))
            .build()
            .unwrap();
        let item = Item { seq: Seq::ZERO, lane, key, cost: message.cost() };
        self.arrivals.insert(ticket, item);
        Input::Send { ticket, message }
    }

    /// Hands over inputs until there is nothing left to do, with everything durable at once.
    fn run(&mut self, inputs: Vec<Input>) -> Result<(), String> {
        let mut inputs = VecDeque::from(inputs);
        loop {
            let now = Timestamp::from_millis(1_000_000);
            inputs.drain(..).for_each(|input| self.machine.handle(now, input));
            while let Some(action) = self.machine.poll_action() {
                inputs.extend(self.act(action)?);
            }
            match self.machine.poll_timeout() {
                _ if !inputs.is_empty() => {}
                Some(Timestamp::ZERO) => inputs.push_back(Input::Tick),
                _ => break,
            }
        }
        self.judge.at_rest(&self.links)?;
        let offered = core::mem::take(&mut self.offered);
        match self.reference.as_mut().map(Reference::offer) {
            Some(expected) if expected != offered => {
                Err(format!("offered {offered:?}, the reference says {expected:?}"))
            }
            Some(_) => Ok(()),
            None => {
                self.offered = offered;
                Ok(())
            }
        }
    }

    fn act(&mut self, action: Action) -> Result<Option<Input>, String> {
        match action {
            Action::Persist { commit, records, .. } => {
                let first = self.next;
                self.next = self.next.plus(records.len() as u64);
                return Ok(Some(Input::Persisted { commit, first }));
            }
            Action::Answer { ticket, result } => {
                let seq = result.map_err(|refusal| refusal.to_string())?.entry.seq;
                let item = self.arrivals.remove(&ticket).ok_or("answered twice")?;
                self.judge.accepted(Item { seq, ..item });
                if let Some(reference) = &mut self.reference {
                    reference.accepted(Item { seq, ..item });
                }
            }
            Action::Offer { link, batch } => {
                let entries: Vec<_> = batch.iter().map(|delivery| delivery.entry).collect();
                self.offered.extend(self.judge.offered(link, &entries)?);
                self.held.entry(link).or_default().extend(entries);
            }
            _ => {}
        }
        Ok(None)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn offers_respect_windows_and_ordering_keys_and_leave_nothing_behind(
        config in config(false),
        links in 1_u8..3,
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let mut bench = Bench::new(config, links);
        for op in &ops {
            bench.play(op).map_err(TestCaseError::fail)?;
        }
        for _ in 0..10_000 {
            if bench.judge.waiting() == 0 {
                break;
            }
            for link in 0..links {
                bench.play(&Op::Take(link, 255)).map_err(TestCaseError::fail)?;
            }
        }
        prop_assert_eq!(bench.judge.waiting(), 0);
    }

    #[test]
    fn lanes_take_turns_as_the_reference_says(
        config in config(true),
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let mut bench = Bench::new(config.clone(), 1);
        bench.has_own_keys = true;
        bench.reference = Some(Reference::new(config));
        for op in ops.iter().filter(|op| !matches!(op, Op::Reattach(_))) {
            bench.play(op).map_err(TestCaseError::fail)?;
        }
    }

    #[test]
    fn no_lane_starves_and_no_critical_message_waits_longer_than_the_documented_bounds(
        config in config(true),
        arrivals in prop::collection::vec((0_u8..4, Just(0_u8), 0..LARGEST as u16), 1..400),
    ) {
        let mut bench = Bench::new(config.clone(), 0);
        bench.has_own_keys = true;
        bench.play(&Op::Arrive(arrivals)).map_err(TestCaseError::fail)?;
        let waiting = bench.judge.waiting();
        bench.attach(0).map_err(TestCaseError::fail)?;
        while bench.judge.waiting() > 0 {
            bench.play(&Op::Take(0, 1)).map_err(TestCaseError::fail)?;
        }
        prop_assert_eq!(bench.offered.len(), waiting);
        check_bounds(&config, &bench.offered)?;
    }
}

/// The bounds of `src/machine/pick.rs`, for an order in which everything waited from the beginning.
fn check_bounds(config: &Config, offered: &[Item]) -> Result<(), TestCaseError> {
    let largest = LARGEST + OVERHEAD;
    let share = |lane: Priority| u64::from(config.shares[lane.index()].get());
    let lanes = [Priority::High, Priority::Normal, Priority::Low];
    let shares: u64 = lanes.into_iter().map(share).sum();
    let last = |lane| offered.iter().rposition(|item| item.lane == lane).unwrap_or_default();
    let mut before = 0;
    for item in &offered[..last(Priority::Critical)] {
        before = if item.lane == Priority::Critical { 0 } else { before + item.cost };
        prop_assert!(before <= shares + 3 * largest, "{} bytes before a critical message", before);
    }
    for lane in lanes {
        let (mut own, mut others, mut criticals) = (0, 0, 0_u64);
        for item in &offered[..last(lane)] {
            match item.lane {
                Priority::Critical => criticals += 1,
                other if other == lane => own += item.cost,
                _ => others += item.cost,
            }
            // The round under way does not count.
            let bursts = criticals.saturating_sub(1) / u64::from(config.critical_burst.get());
            let rounds = bursts.max((others / (shares - share(lane) + 2 * largest)).saturating_sub(1));
            let due = rounds * share(lane).saturating_sub(largest);
            prop_assert!(own >= due, "{:?} got {} bytes of {} in {} rounds", lane, own, due, rounds);
        }
    }
    Ok(())
}
