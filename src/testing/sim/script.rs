//! Scripts: what happens in a simulated life, step by step, as text that can be run again.
//!
//! A step is a word and a number. The number decides everything about the step, relative to the state it meets, so
//! any step can be left out and the rest still means something: that is what makes shrinking simple.

use core::fmt;
use core::str::FromStr;

use super::random::Random;

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident $word:literal $weight:literal,)*) => {
        /// One kind of step.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Op {
            $($(#[$doc])* $name,)*
        }

        impl Op {
            /// Every kind of step, its word, and how often it is chosen relative to the others.
            pub const ALL: &[(Self, &'static str, u64)] = &[$((Self::$name, $word, $weight),)*];
        }
    };
}

ops! {
    /// A sender sends a new message.
    Send "send" 150,
    /// A sender sends a message that waits for another one.
    After "after" 36,
    /// A sender repeats a message with the same id.
    Repeat "repeat" 40,
    /// A sender uses an id again for another content.
    Forge "forge" 12,
    /// A host sends some messages together.
    Batch "batch" 36,
    /// A host sends one message to many, some of whom may have it already.
    FanOut "fanout" 24,
    /// A host withdraws a message.
    Cancel "cancel" 16,
    /// A host puts another message in the place of one.
    Replace "replace" 12,
    /// A host moves a message to another lane.
    Move "move" 12,
    /// A host withdraws all that waits for somebody.
    Purge "purge" 3,
    /// A host sends somebody's dead letters again.
    Requeue "requeue" 8,
    /// A host throws somebody's dead letters away.
    Discard "discard" 3,
    /// A host looks at somebody's dead letters.
    Inspect "inspect" 8,
    /// A host asks how many dead letters somebody has.
    Letters "letters" 4,
    /// A host asks where a message stands.
    Locate "locate" 10,
    /// A host reads somebody's ledger.
    Ledger "ledger" 4,
    /// A host registers a device.
    Register "register" 14,
    /// A host removes a device.
    Unregister "unregister" 4,
    /// Somebody has read a conversation.
    MarkRead "markread" 8,
    /// A host lists somebody's devices.
    Devices "devices" 4,
    /// What a machine says to another reaches it.
    Pass "pass" 60,
    /// The committer takes the waiting commits as one group and writes it.
    Append "append" 130,
    /// The operating system has the group: the machines are told.
    Written "written" 90,
    /// The group is synced.
    Sync "sync" 110,
    /// One commit of the synced group is reported to its machine.
    Persisted "persisted" 150,
    /// A whole commit, start to end.
    Commit "commit" 110,
    /// A pending load reads the store.
    Read "read" 70,
    /// What was read reaches the machine.
    Loaded "loaded" 80,
    /// A load fails.
    LoadFail "loadfail" 6,
    /// A sink is attached.
    Attach "attach" 50,
    /// A sink goes away.
    Detach "detach" 22,
    /// A sink says something of the oldest message it holds.
    Verdict "verdict" 190,
    /// A sink takes note of a gap, or is too busy to.
    Told "told" 40,
    /// A sink says something late, twice, or of messages it was never offered.
    Stray "stray" 16,
    /// The network carries one delivery to the other engine, or its answer back.
    Carry "carry" 190,
    /// The network delivers an old copy once more.
    Duplicate "duplicate" 14,
    /// Some time passes.
    Wait "wait" 60,
    /// Time passes up to the next timer.
    Timer "timer" 60,
    /// The journal asks for a segment to be settled.
    Settle "settle" 60,
    /// One operation of settling.
    Keep "keep" 170,
    /// One operation of merging.
    Merge "merge" 40,
    /// The journal heals.
    Heal "heal" 24,
    /// The store is reopened after a failure.
    Reopen "reopen" 24,
    /// A write, sync or creation of the journal's disk fails, once or for ever.
    DiskFault "diskfault" 7,
    /// An operation of the store fails, once or for ever.
    StoreFault "storefault" 7,
    /// The store takes more or less on disk.
    Disk "disk" 5,
    /// Every fault is over.
    Relief "relief" 16,
    /// The process is killed and started again.
    Kill "kill" 9,
    /// The power is cut and comes back.
    PowerCut "powercut" 9,
    /// New sends are refused until the process is started again.
    Drain "drain" 1,
}

impl Op {
    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(op, ..)| *op == self).map_or("?", |(_, word, _)| word)
    }

    fn draw(random: &mut Random) -> Self {
        let total = Self::ALL.iter().map(|(.., weight)| weight).sum();
        let mut at = random.below(total);
        for (op, _, weight) in Self::ALL {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return *op,
            }
        }
        Self::Send
    }
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What happens.
    pub op: Op,
    /// Everything else about it.
    pub detail: u64,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.op.word(), self.detail)
    }
}

/// A life: the seed of its plan, and what happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Decides the sizes and limits of everything, see [`Plan`](super::Plan).
    pub plan: u64,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// A text that is no script.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the script is not understood: {text}")]
pub struct InvalidScript {
    line: usize,
    text: String,
}

impl Script {
    /// The script of a seed: 120 to 300 steps.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5ce9_1a7b);
        let len = 120 + random.index(181);
        Self::draw(seed, len, &mut random)
    }

    /// A life of so many steps: what only shows when much has happened.
    #[must_use]
    pub fn of_length(seed: u64, len: usize) -> Self {
        Self::draw(seed, len, &mut Random::new(seed ^ 0x10e6_11fe))
    }

    fn draw(seed: u64, len: usize, random: &mut Random) -> Self {
        let steps = (0..len).map(|_| Step { op: Op::draw(random), detail: random.next() >> 32 }).collect();
        Self { plan: seed, steps }
    }

    /// A script from arbitrary bytes, for fuzzing: two bytes choose the plan, then three bytes make a step.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let (plan, rest) = bytes.split_at(bytes.len().min(2));
        let plan = plan.iter().fold(0, |plan, byte| (plan << 8) | u64::from(*byte));
        let step = |chunk: &[u8]| {
            let (kind, detail) = chunk.split_first()?;
            let (op, ..) = Op::ALL.get(usize::from(*kind) % Op::ALL.len())?;
            let seed = detail.iter().fold(0, |seed, byte| (seed << 8) | u64::from(*byte));
            Some(Step { op: *op, detail: Random::new(seed).next() >> 32 })
        };
        Self { plan, steps: rest.chunks(3).filter_map(step).collect() }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {}", self.plan)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl FromStr for Script {
    type Err = InvalidScript;

    /// Empty lines and what follows a `#` are ignored.
    fn from_str(text: &str) -> Result<Self, InvalidScript> {
        let mut script = Self { plan: 0, steps: Vec::new() };
        for (line, text) in text.lines().enumerate() {
            let invalid = || InvalidScript { line: line + 1, text: text.to_owned() };
            let Some(content) = text.split('#').next().map(str::trim).filter(|text| !text.is_empty()) else {
                continue;
            };
            let (word, number) = content.split_once(' ').ok_or_else(invalid)?;
            let detail = number.trim().parse().map_err(|_| invalid())?;
            match Op::ALL.iter().find(|(_, known, _)| *known == word) {
                Some((op, ..)) => script.steps.push(Step { op: *op, detail }),
                None if word == "plan" => script.plan = detail,
                None => return Err(invalid()),
            }
        }
        Ok(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_survive_being_written_and_read() {
        let script = Script::of_seed(7);
        assert_eq!(script.to_string().parse(), Ok(script));
        assert!("fly 3".parse::<Script>().is_err());
        assert_eq!("# nothing\n\nplan 4".parse::<Script>().unwrap().plan, 4);
    }
}
