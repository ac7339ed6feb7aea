//! Who has dead letters: whoever has one is named by the machines' memory or by the store's list, after every step.

use std::collections::BTreeSet;

use super::node::Node;
use super::oracle::Oracle;
use crate::id::UserId;
use crate::record::LaneId;

impl Node {
    /// Compares what a host is told with what the records say. Nothing is on its way to the machines.
    pub(super) fn check_letters(&mut self) {
        let Some(engine) = &self.engine else { return };
        let expected: BTreeSet<UserId> = self.oracle.letters().map(|(user, _)| user).collect();
        if expected.is_empty() {
            return;
        }
        let mut named = BTreeSet::new();
        for machine in &engine.shards {
            let mut behind = None;
            while let Some(user) = machine.letter_holders(behind.as_ref(), 1).pop() {
                behind = Some(user.clone());
                named.insert(user);
            }
        }
        let mut behind = None;
        loop {
            let Some(page) = self.home.letter_holders(behind.as_ref()) else { return };
            let Some(last) = page.last() else { break };
            behind = Some(last.clone());
            named.extend(page);
        }
        if let Some(missing) = expected.difference(&named).next() {
            self.oracle.fail(format!("{missing} has dead letters, and nobody says so"));
        }
    }
}

impl Oracle {
    /// Dead letters: whose, and what they cost.
    pub(super) fn letters(&self) -> impl Iterator<Item = (UserId, u64)> {
        let dead = self.kept().filter(|(_, kept)| kept.accept.lane() == LaneId::Dead);
        dead.map(|(_, kept)| (kept.accept.message.recipient().clone(), kept.accept.message.cost()))
    }

    /// What is wrong with how many dead letters a user is said to have: when all that is durable is known.
    pub(super) fn what_is_wrong_with_letters(&self, user: &UserId, said: (u32, u64)) -> Option<&'static str> {
        let theirs = self.letters().filter(|(holder, _)| holder == user);
        let known = theirs.fold((0, 0), |(n, bytes), (_, cost)| (n + 1, bytes + cost));
        (known != said).then_some("with another number of dead letters")
    }
}
