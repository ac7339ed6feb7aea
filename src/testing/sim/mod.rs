//! A seeded simulator: two engines, their disks and stores, a network, senders and receivers, in one thread and in
//! virtual time.
//!
//! ```text
//! senders ─► engine 0 ─ sinks ─► people with an odd number
//!                     └ network ─► engine 1 (inbox) ─ sinks ─► people with an even number
//! ```
//!
//! Each engine is the real thing below the async shell: [`Machine`](crate::machine::Machine)s,
//! [`FileJournal`](crate::storage::journal::FileJournal) over a [`FaultyDisk`](super::FaultyDisk), and a store. The
//! shell is played one step at a time, in the order that a [`Script`] says; between any two steps the process may be
//! killed or the power cut. An oracle outside of the engines keeps the records that are durable, and compares: what
//! was promised to senders, what was offered, announced and ended, what the counters and the machines' memory say,
//! and what a replay hands over. At the end everything is healed and delivered.
//!
//! A script is a list of steps that mean something in any order, so a failure shrinks by leaving steps out.

mod across;
mod commit;
mod compose;
mod defect;
mod feed;
mod home;
mod hosts;
mod letters;
mod link;
mod node;
mod oracle;
pub mod peers;
mod plan;
mod random;
mod script;
mod sealing;
mod sinks;
#[cfg(test)]
mod tests;
mod upkeep;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use defect::Defect;
pub use plan::Plan;
pub use random::Random;
pub use script::{InvalidScript, Op, Script, Step};

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// After how many steps it was seen; the length of the script for what was seen while draining.
    pub step: usize,
    /// What is wrong, for people.
    pub what: String,
}

impl Violation {
    /// What kind it is: the text without what differs from life to life.
    #[must_use]
    pub fn kind(&self) -> String {
        let text = self.what.split_once(": ").map_or(&*self.what, |(_, what)| what);
        let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
        words.take(9).collect::<Vec<_>>().join(" ")
    }
}

/// What a life looked like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The first promise that was broken.
    pub violation: Option<Violation>,
    /// Messages accepted by both engines.
    pub accepted: u64,
    /// Repeats recognised.
    pub duplicates: u64,
    /// Messages that ended, by [`EndReason::index`](crate::EndReason::index).
    pub ended: [u64; crate::EndReason::ALL.len()],
}

/// Lives a script. A panic of the engine is a violation.
#[must_use]
pub fn run(script: &Script, defect: Option<Defect>) -> Outcome {
    run_traced(script, defect, &mut None)
}

/// As [`run`]; every step, input and action is written down in `trace`, if there is one.
#[must_use]
pub fn run_traced(script: &Script, defect: Option<Defect>, trace: &mut Option<Vec<String>>) -> Outcome {
    let mut step = 0;
    let lived = catch_unwind(AssertUnwindSafe(|| live(script, defect, &mut step, trace)));
    lived.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
        let violation = Violation { step, what: format!("panic: {text}") };
        Outcome { violation: Some(violation), ..Outcome::default() }
    })
}

fn live(script: &Script, defect: Option<Defect>, at: &mut usize, trace: &mut Option<Vec<String>>) -> Outcome {
    let mut world = world::World::new(Plan::of_seed(script.plan), defect);
    let mut outcome = Outcome::default();
    let mut lived = Ok(());
    world.trace(trace.is_some());
    for step in &script.steps {
        *at += 1;
        lived = world.step(*step);
        note(trace, &mut world, &step.to_string());
        if lived.is_err() {
            break;
        }
    }
    lived = lived.and_then(|()| world.finish());
    note(trace, &mut world, "drain");
    outcome.violation = lived.err().map(|what| Violation { step: *at, what });
    for node in &world.nodes {
        outcome.accepted += node.oracle.counters.accepted;
        outcome.duplicates += node.oracle.duplicates;
        outcome.ended.iter_mut().zip(node.oracle.counters.ended).for_each(|(sum, n)| *sum += n);
    }
    outcome
}

fn note(trace: &mut Option<Vec<String>>, world: &mut world::World, what: &str) {
    if let Some(trace) = trace {
        trace.push(what.to_owned());
        trace.extend(world.take_trace());
    }
}

/// Leaves out steps as long as a violation of the same kind stays, halving what is tried at once.
#[must_use]
pub fn shrink(script: &Script, defect: Option<Defect>) -> Script {
    let Some(violation) = run(script, defect).violation else { return script.clone() };
    let kind = violation.kind();
    let fails = |script: &Script| run(script, defect).violation.filter(|found| found.kind() == kind);
    let mut best = script.clone();
    best.steps.truncate(violation.step);
    let mut size = best.steps.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        let before = best.steps.len();
        while at < best.steps.len() {
            let mut tried = best.clone();
            tried.steps.drain(at..(at + size).min(best.steps.len()));
            match fails(&tried) {
                Some(_) => best = tried,
                None => at += size,
            }
        }
        if size == 1 && best.steps.len() == before {
            break;
        }
        size = if size == 1 { 1 } else { size.div_ceil(2) };
    }
    best
}
