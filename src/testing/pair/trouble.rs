//! What breaks between two ends, and the ends themselves.

use core::time::Duration;

use super::net::Side;
use super::{Due, World};

impl World {
    pub(super) fn break_something(&mut self) -> Result<(), String> {
        let conn = self.net.newest();
        match self.random.below(7) {
            0 => {
                for side in [Side::Connector, Side::Acceptor] {
                    if let Some(delay) = self.net.cut(conn, side, &mut self.random) {
                        self.at(delay, Due::Notice(conn, side));
                    }
                }
            }
            1 => self.net.half_open(conn),
            2 => {
                let until = self.now.after(Duration::from_millis(self.random.below(8000)));
                self.net.stall(conn, until);
            }
            3 => {
                let until = self.now.after(Duration::from_millis(self.random.below(30_000)));
                self.net.partition(until);
            }
            // Another transport, while the old one still works.
            4 => self.connect_in(Duration::ZERO),
            5 => return self.restart(Side::Connector),
            _ => return self.restart(Side::Acceptor),
        }
        Ok(())
    }

    /// The process ends and starts again: what was in memory is gone.
    fn restart(&mut self, side: Side) -> Result<(), String> {
        self.lived.restarts += 1;
        self.ends[side.index()].restart(&self.config);
        for conn in self.net.all() {
            self.hang_up(conn, side);
        }
        if side == Side::Connector {
            self.publishing.restart();
            self.at(Duration::from_millis(10), Due::Publish);
            self.connect_in(Duration::from_millis(100));
        }
        Ok(())
    }
}
