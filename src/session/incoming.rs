//! What comes from the peer: order, this end's window, verdicts and their way back.
//!
//! # Invariants
//! - Numbers come consecutively, on each connection from where the last one stopped.
//! - A verdict is kept until the peer's base says that it was heard, and told again after a reconnect.
//! - After a message was not taken, those of its lane and ordering key that were sent before the peer heard of it are
//!   not taken either, in whichever frame they come: order holds over pipelined frames.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::code::Code;
use super::frame::{Ack, Deliver, Frame, Gap, Item, MAX_RANGES, Nack, Place, Range, Window};
use super::io::Verdict;
use crate::id::OrderingKey;
use crate::record::{LaneId, Seq};
use crate::time::Timestamp;

/// What keeps its order among its like.
type Key = (LaneId, Option<OrderingKey>);

/// A message without a verdict.
#[derive(Clone, Debug)]
struct Undecided {
    key: Key,
    cost: u64,
    /// The host was told that it is no longer wanted.
    withdrawn: bool,
}

/// A lane and key of which something was not taken.
#[derive(Clone, Debug)]
struct Hold {
    key: Key,
    /// The number of what was not taken, and of the nack that says so.
    number: u64,
    nack: u64,
}

/// A verdict that the peer may not have heard.
#[derive(Clone, Debug)]
enum Said {
    Ack,
    Reply(Bytes),
    Nack(Nack),
}

/// The receiving half of a session.
#[derive(Clone, Debug)]
pub(super) struct Incoming {
    window: Window,
    /// The largest window of this life: what was allowed once may still come.
    granted: Window,
    seen: u64,
    base: u64,
    ready: VecDeque<(u64, Item)>,
    undecided: BTreeMap<u64, Undecided>,
    undecided_bytes: u64,
    said: BTreeMap<u64, Said>,
    nacks: u64,
    /// What must not be taken until the peer has heard of it. Of a number that is behind its base it hears nothing more,
    /// so there are no more than the span of a window has numbers.
    held: Vec<Hold>,
    acks: Vec<u64>,
    ack_at: Option<Timestamp>,
    window_changed: bool,
    floors: [Seq; 4],
    /// Bytes of replies that are kept at most.
    max_replies: usize,
    /// Which replies are kept, in the order in which they were given.
    replies: VecDeque<u64>,
}

impl Incoming {
    pub(super) fn new(window: Window, max_replies: usize) -> Self {
        Self {
            window,
            granted: window,
            seen: 0,
            base: 1,
            ready: VecDeque::new(),
            undecided: BTreeMap::new(),
            undecided_bytes: 0,
            said: BTreeMap::new(),
            nacks: 0,
            held: Vec::new(),
            acks: Vec::new(),
            ack_at: None,
            window_changed: false,
            floors: [Seq::ZERO; 4],
            max_replies,
            replies: VecDeque::new(),
        }
    }

    pub(super) const fn seen(&self) -> u64 {
        self.seen
    }

    pub(super) const fn window(&self) -> Window {
        self.window
    }

    /// Changes the window; the next acknowledgement says so.
    pub(super) fn set_window(&mut self, window: Window, now: Timestamp) {
        self.window = window;
        self.grant(window);
        self.window_changed = true;
        self.ack_at = Some(now);
    }

    /// The peer was told of this window when it let this end in; what holds now is said at once.
    pub(super) fn state_window(&mut self, stated: Window, now: Timestamp) {
        self.grant(stated);
        self.set_window(self.window, now);
    }

    fn grant(&mut self, window: Window) {
        self.granted = Window {
            messages: self.granted.messages.max(window.messages),
            bytes: self.granted.bytes.max(window.bytes),
            reserve: self.granted.reserve.max(window.reserve),
        };
    }

    /// A new life: numbers start again.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.window, self.max_replies);
    }

    /// Takes messages in. Returns the nacks of those that must not be taken, because one before them was not.
    pub(super) fn deliver(&mut self, deliver: Deliver) -> Result<Vec<Frame>, Code> {
        let count = deliver.items.len() as u64;
        self.follow(deliver.first, count, deliver.base, deliver.heard)?;
        let mut nacks = Vec::new();
        for (number, item) in (deliver.first..).zip(deliver.items) {
            let cost = item.message.cost();
            let critical = item.place.lane == LaneId::Critical;
            let messages = u64::from(self.granted.messages).saturating_add(u64::from(self.granted.reserve));
            let bytes = self.undecided_bytes.saturating_add(cost);
            let full = self.undecided.len() as u64 >= messages
                || (!critical && !self.undecided.is_empty() && bytes > self.granted_bytes());
            if full {
                return Err(Code::WindowExceeded);
            }
            let key = (item.place.lane, item.message.ordering_key().cloned());
            let held = self.held.iter().any(|hold| hold.key == key);
            self.undecided.insert(number, Undecided { key, cost, withdrawn: false });
            self.undecided_bytes = bytes;
            match held {
                true => nacks.extend(self.refuse(number, Code::Busy, Some(Duration::ZERO))),
                false => self.ready.push_back((number, item)),
            }
        }
        Ok(nacks)
    }

    /// Critical messages are not held back by the bytes, so they may have taken some.
    fn granted_bytes(&self) -> u64 {
        let critical = self.undecided.values().filter(|open| open.key.0 == LaneId::Critical);
        self.granted.bytes.saturating_add(critical.map(|open| open.cost).sum())
    }

    pub(super) fn gap(&mut self, gap: Gap, now: Timestamp, delay: Duration) -> Result<(), Code> {
        let count = gap.range.to.saturating_sub(gap.range.from).saturating_add(1);
        self.follow(gap.range.from, count, gap.base, gap.heard)?;
        for number in gap.range.from..=gap.range.to {
            self.said.insert(number, Said::Ack);
            self.acks.push(number);
        }
        self.ack_soon(self.undecided.is_empty(), now, delay);
        Ok(())
    }

    /// Takes the next numbers, if they follow.
    fn follow(&mut self, first: u64, count: u64, base: u64, heard: u64) -> Result<(), Code> {
        let next = self.seen.saturating_add(1);
        if first != next || base < self.base || base > next {
            return Err(Code::OutOfOrder);
        }
        if heard > self.nacks {
            return Err(Code::AckOfUnsent);
        }
        let last = self.seen.saturating_add(count);
        if last.saturating_sub(base).saturating_add(1) > self.granted.span() {
            return Err(Code::WindowExceeded);
        }
        self.held.retain(|hold| hold.nack > heard && hold.number >= base);
        self.base = base;
        self.said = self.said.split_off(&base);
        self.seen = last;
        Ok(())
    }

    /// Whether everything has a verdict, and all of them are on their way.
    pub(super) fn is_quiet(&self) -> bool {
        self.undecided.is_empty() && self.acks.is_empty()
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next messages for the host.
    pub(super) fn take(&mut self, max: usize) -> Vec<(u64, Item)> {
        let count = max.min(self.ready.len());
        self.ready.drain(..count).collect()
    }

    pub(super) fn floor(&self, lane: LaneId) -> Seq {
        self.floors.get(lane.index()).copied().unwrap_or(Seq::ZERO)
    }

    pub(super) fn set_floor(&mut self, place: Place) {
        if let Some(floor) = self.floors.get_mut(place.lane.index()) {
            *floor = place.seq.max(*floor);
        }
    }

    /// Notes a verdict. Returns what must be sent at once.
    pub(super) fn decide(
        &mut self,
        number: u64,
        verdict: Verdict,
        now: Timestamp,
        delay: Duration,
    ) -> Vec<Frame> {
        if !self.undecided.contains_key(&number) {
            return Vec::new();
        }
        match verdict {
            Verdict::Progress => return vec![Frame::Progress(Range { from: number, to: number })],
            Verdict::Nack(after) => return self.not_taken(number, Code::Failed, after),
            Verdict::Busy(after) => return self.not_taken(number, Code::Busy, Some(after)),
            Verdict::Rejected(code) => {
                let code = if code.is_terminal() { code } else { Code::Rejected };
                return self.refuse(number, code, None).into_iter().collect();
            }
            Verdict::Delivered | Verdict::Replied(_) => {}
        }
        let Some(key) = self.close(number) else { return Vec::new() };
        if let Verdict::Replied(payload) = verdict {
            self.said.insert(number, Said::Reply(payload.clone()));
            self.replies.push_back(number);
            self.keep_fewer_replies();
            return vec![Frame::Reply { number, payload }];
        }
        self.said.insert(number, Said::Ack);
        self.acks.push(number);
        self.ack_soon(key.0 == LaneId::Critical || self.undecided.is_empty(), now, delay);
        Vec::new()
    }

    /// Says of the oldest replies no more than that their requests were taken, should the peer not have heard them, where they
    /// are more than may be kept. A peer that sends nothing says of none that it has heard it.
    fn keep_fewer_replies(&mut self) {
        let said = &mut self.said;
        let bytes = |said: &BTreeMap<u64, Said>, number: &u64| match said.get(number) {
            Some(Said::Reply(payload)) => payload.len(),
            _ => 0,
        };
        self.replies.retain(|number| matches!(said.get(number), Some(Said::Reply(_))));
        let mut kept: usize = self.replies.iter().map(|number| bytes(said, number)).sum();
        // Not the one that was given just now.
        while kept > self.max_replies
            && self.replies.len() > 1
            && let Some(oldest) = self.replies.pop_front()
        {
            kept = kept.saturating_sub(bytes(said, &oldest));
            said.insert(oldest, Said::Ack);
        }
    }

    /// There is something to acknowledge, which waits for others: not if it is urgent, nor when nothing else is under way of
    /// which there could be any.
    fn ack_soon(&mut self, at_once: bool, now: Timestamp, delay: Duration) {
        let at = if at_once { now } else { now.after(delay) };
        self.ack_at = Some(self.ack_at.map_or(at, |before| before.min(at)));
    }

    /// Messages are no longer wanted: those that nobody has begun with are refused, which is what must be sent; of the others
    /// of which that is news, their numbers.
    pub(super) fn withdraw(&mut self, range: Range) -> Result<(Vec<Frame>, Vec<u64>), Code> {
        if range.to > self.seen {
            return Err(Code::OutOfOrder);
        }
        let open: Vec<u64> = self.undecided.range(range.from..=range.to).map(|(number, _)| *number).collect();
        let waits = |number: &u64| self.ready.iter().any(|(ready, _)| ready == number);
        let (waiting, begun): (Vec<u64>, Vec<u64>) = open.into_iter().partition(waits);
        self.ready.retain(|(number, _)| !waiting.contains(number));
        let mut is_news = |number: &u64| {
            let open = self.undecided.get_mut(number);
            open.is_some_and(|open| !core::mem::replace(&mut open.withdrawn, true))
        };
        let begun = begun.into_iter().filter(&mut is_news).collect();
        let nacks =
            waiting.into_iter().filter_map(|number| self.refuse(number, Code::Withdrawn, None)).collect();
        Ok((nacks, begun))
    }

    /// Not taken for now, and neither is what waits behind it with its key.
    fn not_taken(&mut self, number: u64, code: Code, delay: Option<Duration>) -> Vec<Frame> {
        let key = self.undecided.get(&number).map(|open| open.key.clone());
        let mut nacks: Vec<Frame> = self.refuse(number, code, delay).into_iter().collect();
        let of_key = |item: &Item| {
            key.as_ref().is_some_and(|(lane, key)| {
                *lane == item.place.lane && key.as_ref() == item.message.ordering_key()
            })
        };
        for (number, item) in core::mem::take(&mut self.ready) {
            match of_key(&item) {
                true => nacks.extend(self.refuse(number, Code::Busy, Some(Duration::ZERO))),
                false => self.ready.push_back((number, item)),
            }
        }
        nacks
    }

    /// Says no. Until the peer has heard of it, nothing with that key is taken, unless the no is final.
    fn refuse(&mut self, number: u64, code: Code, delay: Option<Duration>) -> Option<Frame> {
        let key = self.close(number)?;
        self.nacks = self.nacks.saturating_add(1);
        if !code.is_terminal() {
            self.held.retain(|hold| hold.key != key);
            self.held.push(Hold { key, number, nack: self.nacks });
        }
        let nack = Nack { count: self.nacks, number, code, delay, text: String::new() };
        self.said.insert(number, Said::Nack(nack.clone()));
        Some(Frame::Nack(nack))
    }

    fn close(&mut self, number: u64) -> Option<Key> {
        let open = self.undecided.remove(&number)?;
        self.undecided_bytes = self.undecided_bytes.saturating_sub(open.cost);
        Some(open.key)
    }

    /// When the acknowledgements must go out.
    pub(super) const fn ack_at(&self) -> Option<Timestamp> {
        self.ack_at
    }

    /// The acknowledgements that wait, if they are due or there are many.
    pub(super) fn poll_ack(&mut self, now: Timestamp, every: usize) -> Option<Frame> {
        let due = self.ack_at.is_some_and(|at| at <= now) || self.acks.len() >= every.max(1);
        if !due {
            return None;
        }
        let mut numbers = core::mem::take(&mut self.acks);
        numbers.sort_unstable();
        let mut ranges: Vec<Range> = Vec::new();
        for i in 0..numbers.len() {
            let Some(number) = numbers.get(i).copied() else { break };
            let full = ranges.len() == MAX_RANGES;
            match ranges.last_mut() {
                Some(last) if number <= last.to.saturating_add(1) => last.to = number,
                _ if full => {
                    self.acks = numbers.split_off(i);
                    break;
                }
                _ => ranges.push(Range { from: number, to: number }),
            }
        }
        self.ack_at = (!self.acks.is_empty()).then_some(now);
        let window = core::mem::take(&mut self.window_changed).then_some(self.window);
        (!ranges.is_empty() || window.is_some()).then_some(Frame::Ack(Ack { ranges, window }))
    }

    /// A reply cannot be said again: the message is acknowledged without it.
    pub(super) fn forget_reply(&mut self, number: u64, now: Timestamp) {
        if self.said.insert(number, Said::Ack).is_some() {
            self.acks.push(number);
            self.ack_at = Some(now);
        }
    }

    /// Whether the peer can be at this position.
    pub(super) fn can_resume(&self, base: u64) -> bool {
        base >= self.base && base <= self.seen.saturating_add(1)
    }

    /// The peer is back: what it may not have heard is said again.
    pub(super) fn resume(&mut self, base: u64, now: Timestamp) -> Vec<Frame> {
        self.base = base;
        self.said = self.said.split_off(&base);
        self.acks.clear();
        let mut again: Vec<(u64, Frame)> = Vec::new();
        for (number, said) in &self.said {
            match said {
                Said::Ack => self.acks.push(*number),
                Said::Reply(payload) => {
                    again.push((0, Frame::Reply { number: *number, payload: payload.clone() }));
                }
                Said::Nack(nack) => again.push((nack.count, Frame::Nack(nack.clone()))),
            }
        }
        self.ack_at = (!self.acks.is_empty()).then_some(now);
        // Nacks in the order in which they were said first.
        again.sort_by_key(|(count, _)| *count);
        again.into_iter().map(|(_, frame)| frame).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;

    /// Found by an audit: as many of the longest replies as a window has numbers, which is 18 MiB, for as long as a peer is idle.
    #[test]
    fn of_replies_no_more_is_kept_than_is_allowed_and_the_oldest_are_said_again_as_acks() {
        let mut incoming = Incoming::new(Window { messages: 8, bytes: 1 << 20, reserve: 0 }, 250);
        for number in 1..=5_u64 {
            let message = Message::to("alice", "chat.message", "hi").build().unwrap();
            let place = Place { lane: LaneId::Normal, seq: Seq::new(number) };
            let (accepted_at, attempts, redelivered, reply_within) = (Timestamp::ZERO, 0, false, None);
            let item = Item { place, accepted_at, attempts, redelivered, reply_within, message };
            let deliver = Deliver { first: number, base: 1, heard: 0, items: vec![item] };
            assert_eq!(incoming.deliver(deliver), Ok(Vec::new()));
            incoming.take(1);
            let reply = Verdict::Replied(Bytes::from(vec![0; 100]));
            let said = incoming.decide(number, reply, Timestamp::ZERO, Duration::ZERO);
            assert!(matches!(said.as_slice(), [Frame::Reply { .. }]), "each is said once");
        }
        let again = incoming.resume(1, Timestamp::ZERO);
        let replied = again.iter().map(|frame| match frame {
            Frame::Reply { number, .. } => *number,
            other => panic!("{other:?}"),
        });
        assert_eq!(replied.collect::<Vec<_>>(), [4, 5]);
        let ranges = vec![Range { from: 1, to: 3 }];
        let ack = incoming.poll_ack(Timestamp::ZERO, 1);
        assert_eq!(ack, Some(Frame::Ack(Ack { ranges, window: None })));
    }

    /// Found by review: the lowest number went first, and that may be the reply that was given just now and not said yet.
    #[test]
    fn of_replies_that_were_given_out_of_order_the_one_given_first_is_let_go_of_first() {
        let mut incoming = Incoming::new(Window { messages: 8, bytes: 1 << 20, reserve: 0 }, 250);
        let item = |number| {
            let key = format!("key-{number}");
            let message = Message::to("alice", "chat.message", "hi").ordering_key(key).build().unwrap();
            let place = Place { lane: LaneId::Normal, seq: Seq::new(number) };
            let (accepted_at, attempts, redelivered, reply_within) = (Timestamp::ZERO, 0, false, None);
            Item { place, accepted_at, attempts, redelivered, reply_within, message }
        };
        let deliver = Deliver { first: 1, base: 1, heard: 0, items: (1..=4).map(item).collect() };
        assert_eq!(incoming.deliver(deliver), Ok(Vec::new()));
        incoming.take(4);
        for number in [2, 3, 4, 1] {
            let reply = Verdict::Replied(Bytes::from(vec![0; 100]));
            incoming.decide(number, reply, Timestamp::ZERO, Duration::ZERO);
        }
        let again = incoming.resume(1, Timestamp::ZERO);
        let replied = again.iter().filter_map(|frame| match frame {
            Frame::Reply { number, .. } => Some(*number),
            _ => None,
        });
        assert_eq!(replied.collect::<Vec<_>>(), [1, 4]);
    }

    /// A hostile one could make this end remember without bound.
    #[test]
    fn of_a_peer_that_says_it_heard_of_no_nack_no_more_is_held_than_a_window_has_numbers() {
        let window = Window { messages: 4, bytes: 1 << 20, reserve: 0 };
        let mut incoming = Incoming::new(window, 1 << 20);
        for number in 1..=1000_u64 {
            let key = format!("key-{number}");
            let message = Message::to("alice", "chat.message", "hi").ordering_key(key).build().unwrap();
            let place = Place { lane: LaneId::Normal, seq: Seq::new(number) };
            let (accepted_at, attempts, redelivered, reply_within) = (Timestamp::ZERO, 0, false, None);
            let item = Item { place, accepted_at, attempts, redelivered, reply_within, message };
            let deliver = Deliver { first: number, base: number, heard: 0, items: vec![item] };
            assert_eq!(incoming.deliver(deliver), Ok(Vec::new()));
            assert_eq!(incoming.take(1).len(), 1);
            let nacks =
                incoming.decide(number, Verdict::Busy(Duration::ZERO), Timestamp::ZERO, Duration::ZERO);
            assert_eq!(nacks.len(), 1);
            assert!(incoming.held.len() as u64 <= window.span(), "{} are held", incoming.held.len());
        }
    }
}
