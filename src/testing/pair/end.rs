//! One end: a session, and a host with a durable outbox and inbox.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use super::inbox::{Decided, Inbox};
use super::net::Side;
use super::stream_of;
use crate::id::{DeviceId, MessageId, UserId};
use crate::message::{Durability, Message, Priority};
use crate::record::{LaneId, Seq};
use crate::session::frame::{Item, Place};
use crate::session::{Inbound, Outcome, Session, SessionConfig};
use crate::testing::sim::Random;
use crate::time::Timestamp;

/// Where a message stands in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Offered,
    Delivered,
    /// Its time is over; it may have arrived all the same.
    Expired,
    /// A volatile message that may not have arrived.
    Dropped,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    key: u8,
    state: State,
    accepted_at: Timestamp,
    message: Message,
}

impl Entry {
    fn is_over(&self) -> bool {
        matches!(self.state, State::Delivered | State::Expired | State::Dropped)
    }

    fn expires(&self) -> Timestamp {
        self.message.ttl().map_or(Timestamp::NEVER, |ttl| self.accepted_at.after(ttl))
    }
}

/// A session and its host.
#[derive(Debug)]
pub(super) struct End {
    side: Side,
    /// None at an acceptor that nobody has called yet.
    pub(super) session: Option<Session>,
    /// Durable: what it sends, in the order of its places.
    outbox: Vec<Entry>,
    left: u32,
    last_seq: u64,
    floors: BTreeMap<LaneId, Seq>,
    /// Durable.
    inbox: Inbox,
    /// In memory: taken from the session, undecided.
    pub(super) in_hand: Vec<Inbound>,
}

fn device() -> DeviceId {
    DeviceId::new("phone").expect("five bytes are a device id")
}

fn user() -> UserId {
    UserId::new("alice").expect("five bytes are a user id")
}

impl End {
    pub(super) fn new(side: Side, config: &SessionConfig, messages: u32, _: &mut Random) -> Self {
        let mut end = Self {
            side,
            session: None,
            outbox: Vec::new(),
            left: messages,
            last_seq: 0,
            floors: BTreeMap::new(),
            inbox: Inbox::default(),
            in_hand: Vec::new(),
        };
        if side == Side::Connector {
            end.open_session(config);
        }
        end
    }

    pub(super) fn open_session(&mut self, config: &SessionConfig) {
        let stream = stream_of(self.side);
        self.session = Some(match self.side {
            Side::Connector => Session::connector(config.clone(), stream, Some(user()), device()),
            Side::Acceptor => Session::acceptor(config.clone(), stream, user(), device()),
        });
    }

    /// Memory is lost; outbox and inbox stay.
    pub(super) fn restart(&mut self, config: &SessionConfig) {
        self.session = None;
        self.in_hand.clear();
        for entry in self.outbox.iter_mut().filter(|entry| entry.state == State::Offered) {
            entry.state = match entry.message.durability() {
                Durability::Volatile => State::Dropped,
                _ => State::Waiting,
            };
        }
        if self.side == Side::Connector {
            self.open_session(config);
        }
    }

    /// Accepts one more message.
    pub(super) fn send(&mut self, random: &mut Random, now: Timestamp) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        self.last_seq += 1 + random.below(5);
        let priority = Priority::ALL[random.index(4)];
        let volatile = random.chance(5);
        let key = random.below(3) as u8;
        let seq = match volatile {
            true => Seq::new(self.last_seq),
            false => Seq::new((1 << Seq::EPOCH_SHIFT) + self.last_seq),
        };
        let message = Message::to("alice", "pair.message", vec![b'x'; random.index(40)])
            .id(MessageId::from_u128(u128::from(self.last_seq)))
            .ordering_key(format!("key-{key}"))
            .priority(priority)
            .durability(if volatile { Durability::Volatile } else { Durability::Synced });
        let message = match random.below(12) {
            0 => message.ttl(Duration::from_millis(1 + random.below(300))),
            1 => message.ttl(Duration::from_millis(1 + random.below(30_000))),
            _ => message,
        };
        let message = message.build().expect("a small message is within the limits");
        let place = Place { lane: priority.into(), seq };
        self.outbox.push(Entry { place, key, state: State::Waiting, accepted_at: now, message });
    }

    pub(super) fn send_rest(&mut self, random: &mut Random, now: Timestamp) {
        while self.left > 0 {
            self.send(random, now);
        }
    }

    /// What may be offered now: nothing of a lane and key of which something is on offer, as a delivery machine does.
    pub(super) fn offers(&mut self, now: Timestamp) -> Vec<Item> {
        // Wherever they are: as an engine ends them.
        for entry in self.outbox.iter_mut().filter(|entry| !entry.is_over() && entry.expires() <= now) {
            entry.state = State::Expired;
        }
        if self.session.as_ref().is_none_or(|session| session.connection().is_none()) {
            return Vec::new();
        }
        let busy: BTreeSet<_> = self
            .outbox
            .iter()
            .filter(|entry| entry.state == State::Offered)
            .map(|entry| (entry.place.lane, entry.key))
            .collect();
        let free = self
            .outbox
            .iter_mut()
            .filter(|entry| entry.state == State::Waiting && !busy.contains(&(entry.place.lane, entry.key)));
        free.map(|entry| {
            entry.state = State::Offered;
            Item {
                place: entry.place,
                accepted_at: entry.accepted_at,
                attempts: 0,
                redelivered: false,
                reply_within: None,
                message: entry.message.clone(),
            }
        })
        .collect()
    }

    /// What the session says of an offer: once for each.
    pub(super) fn outcome(&mut self, place: Place, outcome: &Outcome) -> Result<(), String> {
        let entry = self.outbox.iter_mut().find(|entry| entry.place == place);
        let entry = entry.ok_or_else(|| format!("{outcome:?} for {place:?}, which was never offered"))?;
        if entry.state == State::Expired {
            // A confirmation is true also when it comes late.
            if *outcome == Outcome::Delivered {
                entry.state = State::Delivered;
            }
            return Ok(());
        }
        if entry.state != State::Offered {
            return Err(format!("{outcome:?} for {place:?}, which is {:?}", entry.state));
        }
        let volatile = entry.message.durability() == Durability::Volatile;
        entry.state = match outcome {
            Outcome::Progress => State::Offered,
            Outcome::Delivered => State::Delivered,
            Outcome::Unconfirmed | Outcome::Disconnected if volatile => State::Dropped,
            Outcome::Nack(_) | Outcome::Busy(_) | Outcome::Disconnected => State::Waiting,
            Outcome::Unconfirmed | Outcome::Rejected(_) => return Err(format!("{outcome:?} for {place:?}")),
        };
        Ok(())
    }

    /// Floors that have risen.
    pub(super) fn new_floors(&mut self) -> Vec<Place> {
        let mut risen = Vec::new();
        for lane in Priority::ALL.map(LaneId::from) {
            let durable = |entry: &&Entry| {
                entry.place.lane == lane && entry.message.durability() != Durability::Volatile
            };
            let floor = self
                .outbox
                .iter()
                .filter(durable)
                .take_while(|entry| matches!(entry.state, State::Delivered | State::Expired))
                .last()
                .map(|entry| entry.place.seq);
            if let Some(seq) = floor
                && self.floors.insert(lane, seq) != Some(seq)
            {
                risen.push(Place { lane, seq });
            }
        }
        risen
    }

    /// The peer's floor has risen.
    pub(super) fn forget(&mut self, floor: Place) {
        self.inbox.forget(floor);
    }

    /// Decides what is in hand.
    pub(super) fn decide(&mut self, random: &mut Random, calm: bool) -> Decided {
        self.inbox.decide(core::mem::take(&mut self.in_hand), random, calm)
    }

    pub(super) fn is_done(&self) -> bool {
        self.outbox.iter().all(Entry::is_over)
    }

    pub(super) fn describe(&self) -> String {
        let open = self.outbox.iter().filter(|entry| !entry.is_over());
        let open: Vec<_> = open.map(|entry| (entry.place, entry.state)).collect();
        format!(
            "{:?} has {open:?}, connection {:?}",
            self.side,
            self.session.as_ref().and_then(Session::connection)
        )
    }

    /// Whether this end applied what the other one sent: all of it, once, in order. Returns how much.
    pub(super) fn check_against(&self, sender: &Self) -> Result<u64, String> {
        self.inbox.check().map_err(|what| format!("{what} at {:?}", self.side))?;
        let mut seen = BTreeSet::new();
        for place in self.inbox.applied() {
            // Places of volatile messages are not given twice here.
            if !seen.insert(place) {
                return Err(format!("{place:?} was applied twice at {:?}", self.side));
            }
            if !sender.outbox.iter().any(|entry| entry.place == place) {
                return Err(format!("{place:?} was never sent to {:?}", self.side));
            }
        }
        for entry in sender.outbox.iter().filter(|entry| entry.state == State::Delivered) {
            if !seen.contains(&entry.place) {
                return Err(format!("{:?} was said to be delivered, and was not applied", entry.place));
            }
        }
        Ok(self.inbox.applied().len() as u64)
    }
}
