//! What two processes of one engine share, and what they do not.

use std::sync::Arc;

use crate::machine::Input;
use crate::testing::sim::feed::Feed;
use crate::testing::sim::node::Node;

impl Node {
    /// A send may wait in a machine for another one to meet: nobody else comes.
    pub(super) fn wake(&mut self) {
        self.broadcast(&Input::Tick);
    }

    /// Another process takes over: this one opens anew, and what it was is handed out as it runs, with its machines, its
    /// sinks, and its handles of the disk and the store. Whatever that writes from the next opening on is refused.
    pub(super) fn supersede(&mut self) -> Self {
        let old = Self {
            plan: Arc::clone(&self.plan),
            defect: self.defect,
            stream: self.stream,
            digester: self.digester,
            shards: self.shards,
            disk: self.disk.clone(),
            home: self.home.split(),
            engine: self.engine.take(),
            oracle: self.oracle.clone(),
            feed: Feed::default(),
            now: self.now,
            answers: core::mem::take(&mut self.answers),
            tickets: self.tickets,
            last_link: self.last_link,
            ghosts: Vec::new(),
            trace: None,
            draining: self.draining,
            is_superseded: true,
        };
        self.draining = false;
        self.oracle.crashed(false);
        old
    }
}
