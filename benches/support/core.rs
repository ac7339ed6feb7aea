//! A delivery machine with nothing around it: every commit is durable at once, every sink confirms at once.

use std::collections::VecDeque;

use lastmile::machine::{Action, Birth, Delivery, EntryRef, Input, Machine, Ticket, Verdict};
use lastmile::record::{Counters, Epoch, Seq};
use lastmile::{Config, Message, StreamId, Timestamp};

/// A machine and the shell that a benchmark needs.
#[derive(Debug)]
pub(crate) struct Core {
    machine: Machine,
    next: Seq,
    now: Timestamp,
    numbers: u64,
    inputs: VecDeque<Input>,
    /// Messages offered so far.
    pub(crate) offered: usize,
    /// Sends refused so far.
    pub(crate) refused: usize,
    /// Sends recognised as repeats so far.
    pub(crate) repeats: usize,
}

impl Core {
    pub(crate) fn new(config: Config) -> Self {
        let epoch = Epoch(1);
        let next = Seq::first_of(epoch);
        let machine = Machine::new(Birth {
            config,
            stream: StreamId::from_u128(1),
            epoch,
            digest_key: 1,
            seed: 1,
            settled: next,
            counters: Counters::default(),
            store_empty: true,
            shard: (0, 1),
        });
        let now = Timestamp::from_millis(1);
        Self { machine, next, now, numbers: 0, inputs: VecDeque::new(), offered: 0, refused: 0, repeats: 0 }
    }

    /// The machine itself.
    #[allow(dead_code, reason = "one benchmark asks it")]
    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// A ticket or link that was not used before.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn send(&mut self, message: Message) {
        let ticket = Ticket(self.number());
        self.handle(Input::Send { ticket, message });
    }

    pub(crate) fn handle(&mut self, input: Input) {
        self.machine.handle(self.now, input);
    }

    /// Does all there is to do, and what follows from it.
    pub(crate) fn drain(&mut self) {
        loop {
            while let Some(action) = self.machine.poll_action() {
                self.act(action);
            }
            if self.inputs.is_empty() && self.machine.poll_timeout() != Some(Timestamp::ZERO) {
                return;
            }
            while let Some(input) = self.inputs.pop_front() {
                self.handle(input);
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Persist { commit, records, .. } => {
                let first = self.next;
                self.next = first.plus(records.len() as u64);
                self.inputs.push_back(Input::Persisted { commit, first });
            }
            Action::Offer { link, batch } => {
                self.offered += batch.len();
                let verdicts = batch.iter().map(delivered).collect();
                self.inputs.push_back(Input::Verdicts { link, verdicts });
            }
            Action::Answer { result, .. } => {
                self.refused += usize::from(result.is_err());
                self.repeats += usize::from(result.is_ok_and(|accepted| accepted.duplicate));
            }
            _ => {}
        }
    }
}

fn delivered(delivery: &Delivery) -> (EntryRef, Verdict) {
    (delivery.entry, Verdict::Delivered)
}
