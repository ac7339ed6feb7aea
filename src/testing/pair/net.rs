//! The network between the two ends.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::session::ConnId;
use crate::testing::sim::Random;
use crate::time::Timestamp;

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::testing) enum Side {
    Connector,
    Acceptor,
}

impl Side {
    pub(in crate::testing) const fn index(self) -> usize {
        self as usize
    }

    pub(in crate::testing) const fn other(self) -> Self {
        match self {
            Self::Connector => Self::Acceptor,
            Self::Acceptor => Self::Connector,
        }
    }
}

/// One connection. Each direction keeps its order; connections overtake each other.
#[derive(Debug, Default)]
struct Conn {
    /// Which ends still have it.
    gone: [bool; 2],
    /// Nothing arrives any more, and nobody is told.
    silent: bool,
    stalled: Timestamp,
    /// When the last frame of each direction arrives.
    last: [Timestamp; 2],
    /// Base latency, in milliseconds.
    latency: u64,
}

/// All connections that were ever opened.
#[derive(Debug, Default)]
pub(in crate::testing) struct Net {
    conns: BTreeMap<ConnId, Conn>,
    count: u64,
    partition: Timestamp,
}

impl Net {
    pub(in crate::testing) fn open(&mut self) -> ConnId {
        self.count += 1;
        let conn = Conn { latency: (self.count * 37) % 150, ..Conn::default() };
        self.conns.insert(ConnId(self.count), conn);
        // Connections of long ago are of no interest.
        while self.conns.len() > 32 {
            self.conns.pop_first();
        }
        ConnId(self.count)
    }

    pub(in crate::testing) fn newest(&self) -> ConnId {
        ConnId(self.count)
    }

    pub(in crate::testing) fn all(&self) -> Vec<ConnId> {
        self.conns.keys().copied().collect()
    }

    pub(in crate::testing) fn is_known(&self, conn: ConnId, side: Side) -> bool {
        self.conns.get(&conn).is_some_and(|conn| !conn.gone[side.index()])
    }

    pub(in crate::testing) fn is_partitioned(&self, now: Timestamp) -> bool {
        now < self.partition
    }

    /// When a frame arrives, if it does.
    pub(in crate::testing) fn carry(
        &mut self,
        conn: ConnId,
        from: Side,
        now: Timestamp,
        random: &mut Random,
        calm: bool,
    ) -> Option<Duration> {
        let partition = self.partition;
        let conn = self.conns.get_mut(&conn)?;
        if conn.silent || conn.gone[from.index()] {
            return None;
        }
        let jitter = if calm { 5 } else { 100 };
        let sent = now.max(conn.stalled).max(partition);
        let at = sent.after(Duration::from_millis(conn.latency + random.below(jitter)));
        let last = &mut conn.last[from.index()];
        *last = at.max(*last);
        Some(last.since(now))
    }

    /// One end has done with it: when the other one hears of that.
    pub(in crate::testing) fn hang_up(
        &mut self,
        id: ConnId,
        side: Side,
        now: Timestamp,
        random: &mut Random,
    ) -> Option<Duration> {
        let conn = self.conns.get_mut(&id)?;
        if core::mem::replace(&mut conn.gone[side.index()], true) || conn.silent {
            return None;
        }
        let last = conn.last[side.index()].since(now);
        Some(last + Duration::from_millis(1 + random.below(100)))
    }

    /// It breaks: what is under way is lost, and this end hears of it after a while.
    pub(in crate::testing) fn cut(
        &mut self,
        id: ConnId,
        side: Side,
        random: &mut Random,
    ) -> Option<Duration> {
        let conn = self.conns.get_mut(&id)?;
        if core::mem::replace(&mut conn.gone[side.index()], true) {
            return None;
        }
        Some(Duration::from_millis(random.below(500)))
    }

    pub(in crate::testing) fn half_open(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.silent = true;
        }
    }

    pub(in crate::testing) fn stall(&mut self, id: ConnId, until: Timestamp) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.stalled = until;
        }
    }

    pub(in crate::testing) fn partition(&mut self, until: Timestamp) {
        self.partition = self.partition.max(until);
    }

    /// Nothing new breaks. What is half-open stays so, until somebody finds out.
    pub(in crate::testing) fn heal(&mut self) {
        self.partition = Timestamp::ZERO;
    }
}
