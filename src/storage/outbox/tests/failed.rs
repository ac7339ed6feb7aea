//! A settling that fails when its table was durable already: the machine takes everything back, the store has it.

use std::collections::VecDeque;

use super::*;
use crate::config::Config;
use crate::id::DeviceId;
use crate::machine::{Action, Birth, EntryRef, Input, LinkId, Machine, Ticket, Verdict};

/// A machine whose commits are durable at once.
struct Shell {
    machine: Machine,
    next: Seq,
    inputs: VecDeque<Input>,
    offered: Vec<EntryRef>,
    parts: Vec<Survivors>,
}

impl Shell {
    fn input(&mut self, outbox: &OutboxStore, input: Input) {
        self.inputs.push_back(input);
        while let Some(input) = self.inputs.pop_front() {
            self.machine.handle(Timestamp::from_millis(1), input);
            loop {
                while let Some(action) = self.machine.poll_action() {
                    self.act(outbox, action);
                }
                if self.machine.poll_timeout() != Some(Timestamp::ZERO) {
                    break;
                }
                self.machine.handle(Timestamp::from_millis(1), Input::Tick);
            }
        }
    }

    fn act(&mut self, outbox: &OutboxStore, action: Action) {
        match action {
            Action::Persist { commit, records, .. } => {
                let first = self.next;
                self.next = first.plus(records.len() as u64);
                self.inputs.push_back(Input::Persisted { commit, first });
            }
            Action::Offer { batch, .. } => self.offered.extend(batch.iter().map(|delivery| delivery.entry)),
            Action::Load { load, query } => {
                let found = Box::new(outbox.load(&query).unwrap());
                self.inputs.push_back(Input::Loaded { load, found });
            }
            Action::Survivors(part) => self.parts.push(*part),
            _ => {}
        }
    }

    fn collect(&mut self, outbox: &OutboxStore) -> Settlement {
        let before = self.next;
        self.input(outbox, Input::Settle { before });
        let parts = core::mem::take(&mut self.parts);
        assert!(parts.last().unwrap().last);
        let counters = parts.iter().filter_map(|part| part.counters).collect();
        Settlement::new(parts, before, counters, Timestamp::from_millis(1))
    }
}

#[test]
fn settling_that_fails_behind_its_durable_table_loses_nothing_and_repeats_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, manifest) = (MemoryStore::new(), Some(dir.path().join("at").join("manifest")));
    std::fs::create_dir(dir.path().join("at")).unwrap();
    let shared: Arc<dyn Store> = Arc::new(store);
    let (outbox, opened) = OutboxStore::open(Arc::clone(&shared), manifest.clone(), Epoch(0), FRESH).unwrap();
    let next = Seq::first_of(opened.epoch);
    let birth = Birth {
        config: Config::default(),
        stream: FRESH.stream,
        epoch: opened.epoch,
        digest_key: FRESH.digest_key,
        seed: 1,
        settled: next,
        counters: Counters::default(),
        store_empty: true,
        shard: (0, 1),
    };
    let machine = Machine::new(birth);
    let mut shell = Shell { machine, next, inputs: VecDeque::new(), offered: Vec::new(), parts: Vec::new() };
    let link = LinkId(1);
    shell.input(&outbox, Input::Attach { link, user: user("bob"), device: DeviceId::new("phone").unwrap() });
    for n in 0..3 {
        let message = accept("bob", LaneId::Normal, vec![n]).message.clone();
        shell.input(&outbox, Input::Send { ticket: Ticket(u64::from(n)), message });
    }
    let offered = shell.offered.clone();
    assert!(!offered.is_empty());
    // The manifest cannot be written: by then the table is durable, and loads see the run.
    std::fs::remove_dir_all(dir.path().join("at")).unwrap();
    let before = shell.next;
    let mut failing = shell.collect(&outbox);
    while failing.step(&outbox, opened.epoch).is_ok_and(|progress| {
        assert!(progress != Progress::Done, "the manifest was written");
        true
    }) {}
    assert_eq!((outbox.settled(), outbox.runs()[0].entries), (before, 3));
    shell.input(&outbox, Input::SettleFailed { before });
    std::fs::create_dir(dir.path().join("at")).unwrap();
    outbox.reopen().unwrap();
    let verdicts = vec![(offered[0], Verdict::Delivered)];
    shell.input(&outbox, Input::Verdicts { link, verdicts });
    let mut again = shell.collect(&outbox);
    while again.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
    drop(outbox);
    let (outbox, _) = OutboxStore::open(shared, manifest, Epoch(0), FRESH).unwrap();
    assert_eq!(outbox.runs().iter().map(|run| run.entries).sum::<u64>(), 3, "an entry is in two runs");
    let (row, live) = totals(&outbox, "bob");
    let lane = row.unwrap().lanes[NORMAL].clone();
    let ended: Vec<u64> = lane.ended.iter().map(|seq| seq.get()).collect();
    let left = page(&outbox, "bob", LaneId::Normal, lane.cursor.get(), &ended, 9);
    let left: Vec<u64> =
        left.entries.iter().map(|(_, accept)| u64::from(accept.message.payload()[0])).collect();
    assert_eq!((left, live.messages), (vec![1, 2], 2));
}
