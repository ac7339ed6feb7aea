//! Deliberate defects: a simulator that does not catch these catches nothing.

/// A promise broken on purpose.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Defect {
    /// The journal's syncs are a lie: nothing is durable.
    NoFdatasync,
    /// The machine is told that a commit is durable when it was merely written.
    AckBeforePersist,
    /// Remembered ids do not reach the store.
    DedupForgotten,
    /// A replay drops messages whose TTL has passed, as if it were to decide that.
    ReplayDecides,
    /// The parts of a batch across shards are committed one by one.
    JointTorn,
    /// No shard is told that a batch it has reserved for is over.
    OverLost,
}

impl Defect {
    /// All of them, with their names.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::NoFdatasync, "no-fdatasync"),
        (Self::AckBeforePersist, "ack-before-persist"),
        (Self::DedupForgotten, "dedup-forgotten"),
        (Self::ReplayDecides, "replay-decides"),
        (Self::JointTorn, "joint-torn"),
        (Self::OverLost, "over-lost"),
    ];

    /// The defect of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(defect, _)| *defect)
    }
}
