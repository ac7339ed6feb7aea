//! How a connector goes from one connection to another that takes its place: not before that one has a welcome.
//!
//! A hello states what its sender has seen. So from then on nothing is taken into account that comes over the connection that
//! stands, or the acceptor would go on from a position that is none; but for pings and go-aways, which say nothing of positions.
//! What comes is held, and dealt with as if it had come late when the other connection fails. When it has its welcome, what was held is
//! forgotten, as what is lost with any connection. What this end sends meanwhile goes over the connection that stands, and goes
//! back to the host where the welcome says that it was not seen.
//!
//! So an attempt costs the connection nothing until it succeeds, whatever a proxy swallows. It costs what comes meanwhile a delay,
//! which is bounded: once something is held, the other connection has two seconds more. What is held is bounded in memory as
//! well; beyond that the connection that stands is given up, and the other one has to do.

use core::time::Duration;

use super::Code;
use super::frame::{Credentials, Frame, Refused};
use super::io::{Action, ConnId, Event};
use super::session::{Link, Session, Up};
use crate::time::Timestamp;

/// Frames that are held at most.
const MAX_HELD: usize = 1024;
/// How long something is held at most.
const HOLD_FOR: Duration = Duration::from_secs(2);

/// A connection over which hello was said while another one stands.
#[derive(Clone, Debug)]
pub(super) struct Rival {
    pub(super) conn: ConnId,
    /// When hello was said.
    pub(super) said: Timestamp,
    /// What has come over the one that stands since then.
    held: Vec<Frame>,
    held_bytes: u64,
    /// Since when something is held.
    held_since: Option<Timestamp>,
}

impl Rival {
    fn new(conn: ConnId, said: Timestamp) -> Self {
        Self { conn, said, held: Vec::new(), held_bytes: 0, held_since: None }
    }

    /// Until when it has to be let in, so long as handshakes may take this long.
    pub(super) fn deadline(&self, handshake: Duration) -> Timestamp {
        let patient = self.said.after(handshake);
        self.held_since.map_or(patient, |since| since.after(HOLD_FOR).min(patient))
    }
}

impl Up {
    /// The connection that may take this one's place.
    pub(super) fn rival(&self) -> Option<ConnId> {
        self.rival.as_ref().map(|rival| rival.conn)
    }
}

impl Session {
    /// Says hello over another connection, beside the one that stands.
    pub(super) fn rival(&mut self, conn: ConnId, credentials: Credentials) {
        let Link::Up(up) = &mut self.link else { return };
        let gone = match &mut up.rival {
            // This one stands where that one stood: nothing was taken into account since its hello.
            Some(rival) => {
                rival.said = self.now;
                Some(core::mem::replace(&mut rival.conn, conn))
            }
            None => {
                up.rival = Some(Box::new(Rival::new(conn, self.now)));
                None
            }
        };
        if let Some(gone) = gone {
            self.actions.push_back(Action::Disconnect(gone, Code::TransportSwitched));
        }
        self.say_hello(conn, credentials);
    }

    /// A frame came over the connection that stands while another one greets.
    pub(super) fn hold(&mut self, frame: Frame) {
        match frame {
            Frame::Ping { .. } | Frame::Pong { .. } | Frame::GoAway(_) => self.heard(frame),
            // It may be ours, in a new life.
            Frame::Close(refused) if refused.code == Code::TakenOver => {
                self.leave_for_rival(Code::TransportSwitched, false);
            }
            // Nobody comes back from that, over whatever connection.
            Frame::Close(refused) if refused.code.is_terminal() => self.end_connection(refused, false),
            Frame::Close(refused) => {
                let code = refused.code;
                // Should the other connection be closed as well, that is when to come back.
                if refused.retry_after.is_some() {
                    self.event(Event::GoingAway(refused));
                }
                self.leave_for_rival(code, false);
            }
            frame => {
                let most = self.config.window.bytes.saturating_mul(2).saturating_add(1 << 20);
                let Link::Up(Up { rival: Some(rival), .. }) = &mut self.link else { return };
                rival.held_bytes = rival.held_bytes.saturating_add(weight(&frame));
                rival.held.push(frame);
                rival.held_since.get_or_insert(self.now);
                if rival.held.len() > MAX_HELD || rival.held_bytes > most {
                    self.leave_for_rival(Code::TransportSwitched, true);
                }
            }
        }
    }

    /// The connection that stood is given up, or gone, and the other one has to do.
    pub(super) fn leave_for_rival(&mut self, code: Code, say: bool) {
        let Link::Up(up) = &mut self.link else { return };
        let (old, Some(rival)) = (up.conn, up.rival.take()) else { return };
        if say {
            self.send(Frame::Close(Self::refused(code)));
        }
        self.actions.push_back(Action::Disconnect(old, code));
        // What waits goes back, as it does with any connection: it must not overtake what goes back when the other one opens.
        self.down();
        self.link = Link::Greeting(rival.conn, rival.said);
        self.lost_event(Self::refused(code));
    }

    /// The other connection has not been answered for too long.
    pub(super) fn watch_rival(&mut self) {
        let Link::Up(Up { rival: Some(rival), .. }) = &self.link else { return };
        if self.now >= rival.deadline(self.config.handshake_timeout) {
            self.rival_failed(&Self::refused(Code::HandshakeTimeout));
        }
    }

    pub(super) fn is_rival(&self, conn: ConnId) -> bool {
        matches!(&self.link, Link::Up(up) if up.rival() == Some(conn))
    }

    /// What came over the other connection breaks the protocol.
    pub(super) fn rival_violation(&mut self, code: Code, what: &str) {
        self.event(Event::Violation(code, format!("{what}: {}", code.text())));
        self.rival_failed(&Self::refused(code));
    }

    /// The other connection is nothing: the one that stands goes on, with what has come meanwhile.
    pub(super) fn rival_failed(&mut self, why: &Refused) {
        let Link::Up(up) = &mut self.link else { return };
        let (conn, Some(rival)) = (up.conn, up.rival.take()) else { return };
        self.actions.push_back(Action::Disconnect(rival.conn, why.code));
        let text = why.text.clone();
        self.event(Event::SwitchFailed { code: why.code, retry_after: why.retry_after, text });
        for frame in rival.held {
            if self.connection() == Some(conn) {
                self.heard(frame);
            }
        }
    }
}

/// About how much memory a frame holds.
fn weight(frame: &Frame) -> u64 {
    const SMALL: u64 = 64;
    match frame {
        Frame::Deliver(deliver) => {
            deliver.items.iter().map(|item| item.message.cost().saturating_add(SMALL)).sum()
        }
        Frame::Reply { payload, .. } => payload.len() as u64,
        Frame::Ack(ack) => 16 * ack.ranges.len() as u64,
        _ => SMALL,
    }
}
