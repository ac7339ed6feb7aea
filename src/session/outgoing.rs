//! What goes to the peer: numbering, the peer's window, what is not acknowledged yet.
//!
//! # Invariants
//! - Numbers are given when a message is first put into a frame, consecutively, and mean something within one life only.
//! - `base ..= base + slots` is all that may have to be sent again. It spans at most [`Window::span`].
//! - A message that was offered is in `waiting` or in an open slot until its one outcome is reported, or it is withdrawn.
//! - Without a connection nothing waits, and what the peer has not seen is not sent again by itself: it goes back to the host,
//!   which offers again what has not ended meanwhile.

use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};

use super::code::Code;
use super::frame::{Codec, Deliver, Frame, Gap, GapReason, Item, Missed, Nack, Place, Range, Window, encode};
use super::io::Outcome;
use crate::id::OrderingKey;
use crate::record::LaneId;
use crate::time::Timestamp;

mod back;

/// What keeps its order among its like.
type Key = (LaneId, Option<OrderingKey>);

fn key(item: &Item) -> Key {
    (item.place.lane, item.message.ordering_key().cloned())
}

/// A number that stands for nothing any more.
const NOTHING: Missed = Missed::new(0, GapReason::Withdrawn);

/// What one number stands for.
#[derive(Clone, Debug)]
enum Slot {
    /// A message, sent at this time.
    Open(Item, Timestamp),
    /// Messages that will not come.
    Gap(Missed),
    /// Messages that will not come, as the host said: it wants to know when the peer has heard of it.
    Told(Missed),
    /// Done.
    Done,
}

/// What may be sent in one frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameRoom {
    pub(super) items: usize,
    pub(super) batch_bytes: u64,
    pub(super) frame_bytes: u64,
    pub(super) codec: Codec,
}

/// What an acknowledgement ended, or why it is none.
pub(super) type Acked = Result<Vec<(Place, Option<Duration>)>, Code>;

/// The sending half of a session.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    window: Window,
    max_queue: usize,
    /// By priority, with when it was offered.
    waiting: [VecDeque<(Item, Timestamp)>; 4],
    slots: VecDeque<Slot>,
    base: u64,
    /// The next number to put on the wire.
    cursor: u64,
    open: u64,
    open_bytes: u64,
    heard: u64,
    /// When the peer last acknowledged something, or had nothing to acknowledge.
    progress: Timestamp,
    slowed: bool,
    outcomes: Vec<(Place, Outcome)>,
    /// Gaps that the host told of and the peer has not acknowledged, and whether it has, or can no longer, since it was asked.
    told: u64,
    heard_of_gaps: Option<bool>,
    /// One of those was lost with a connection since it was decided last.
    untold: bool,
    /// The first number that was filled anew for a connection over which nothing was heard yet: perhaps the peer never took it,
    /// and has seen what these numbers stood for before.
    refilled: Option<u64>,
    /// Numbers of messages that are no longer wanted, as long as they are open.
    withdrawn: BTreeSet<u64>,
}

impl Outgoing {
    pub(super) fn new(max_queue: usize) -> Self {
        Self {
            window: Window { messages: 0, bytes: 0, reserve: 0 },
            max_queue,
            waiting: Default::default(),
            slots: VecDeque::new(),
            base: 1,
            cursor: 1,
            open: 0,
            open_bytes: 0,
            heard: 0,
            progress: Timestamp::ZERO,
            slowed: false,
            outcomes: Vec::new(),
            told: 0,
            heard_of_gaps: None,
            untold: false,
            refilled: None,
            withdrawn: BTreeSet::new(),
        }
    }

    pub(super) const fn base(&self) -> u64 {
        self.base
    }

    /// The number that comes next.
    pub(super) fn next(&self) -> u64 {
        self.base.saturating_add(self.slots.len() as u64)
    }

    pub(super) const fn set_window(&mut self, window: Window) {
        self.window = window;
    }

    /// Outcomes to report.
    pub(super) fn take_outcomes(&mut self) -> Vec<(Place, Outcome)> {
        core::mem::take(&mut self.outcomes)
    }

    /// Whether the peer has heard of the gaps that the host told of, once that is decided.
    pub(super) const fn take_heard_of_gaps(&mut self) -> Option<bool> {
        self.heard_of_gaps.take()
    }

    fn waiting_len(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    /// Reports a message busy that was not taken.
    pub(super) fn refuse(&mut self, place: Place, busy: Duration) {
        self.outcomes.push((place, Outcome::Busy(busy)));
    }

    /// Takes a message, or reports it busy. One that is on its way already is on its way still.
    pub(super) fn offer(&mut self, item: Item, now: Timestamp, busy: Duration) {
        let place = item.place;
        let known = |item: &Item| item.place == place;
        let open = self.slots.iter().any(|slot| matches!(slot, Slot::Open(item, _) if known(item)));
        if open || self.waiting.iter().flatten().any(|(item, _)| known(item)) {
            return;
        }
        // Critical ones have room of their own.
        let reserve = if place.lane == LaneId::Critical { self.window.reserve as usize } else { 0 };
        if self.waiting_len() >= self.max_queue.saturating_add(reserve) {
            return self.refuse(place, busy);
        }
        let lane = item.message.priority().index();
        if let Some(queue) = self.waiting.get_mut(lane) {
            queue.push_back((item, now));
        }
    }

    /// A message is no longer wanted. One that only waits is not sent; of one that was sent, its number, for the peer.
    pub(super) fn withdraw(&mut self, place: Place) -> Option<u64> {
        self.waiting.iter_mut().for_each(|queue| queue.retain(|(item, _)| item.place != place));
        let is_it = |slot: &Slot| matches!(slot, Slot::Open(item, _) if item.place == place);
        let index = self.slots.iter().position(is_it)?;
        let number = self.base.saturating_add(index as u64);
        self.withdrawn.insert(number);
        Some(number)
    }

    /// What the peer must be told again after a reconnect.
    pub(super) fn withdrawn(&self) -> Vec<u64> {
        self.withdrawn.iter().copied().collect()
    }

    /// Whether a critical message waits, which no lingering may hold up.
    pub(super) fn is_urgent(&self) -> bool {
        self.cursor < self.next() || self.waiting.first().is_some_and(|queue| !queue.is_empty())
    }

    /// Whether there is something to send, room or not.
    pub(super) fn has_work(&self) -> bool {
        self.cursor < self.next() || self.waiting.iter().any(|queue| !queue.is_empty())
    }

    /// Tells the peer of messages that will not come. There is at most one marker a reason and lane that was not sent yet.
    pub(super) fn add_gap(&mut self, missed: Missed) {
        let sent = usize::try_from(self.cursor.saturating_sub(self.base)).unwrap_or(usize::MAX);
        for slot in self.slots.iter_mut().skip(sent) {
            if let Slot::Told(known) = slot
                && known.is_like(&missed)
            {
                return known.add(&missed);
            }
        }
        self.told = self.told.saturating_add(1);
        self.slots.push_back(Slot::Told(missed));
    }

    /// Whether the peer takes the next number, whatever has it.
    fn in_span(&self) -> bool {
        self.cursor.saturating_sub(self.base) < self.window.span()
    }

    /// The next frame, if there is something to send and room for it.
    pub(super) fn poll(&mut self, now: Timestamp, room: FrameRoom) -> Option<Frame> {
        if self.cursor < self.next() {
            // Gaps need room as well: the first number may have no verdict for as long as what is behind it ends.
            return self.in_span().then(|| self.again());
        }
        self.fresh(now, room).map(Frame::Deliver)
    }

    /// What has a number and must be sent, for the first time or again: messages that will not come, all of them by now.
    fn again(&mut self) -> Frame {
        let first = self.cursor;
        let start = usize::try_from(first.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let mut missed: Option<Missed> = None;
        for slot in self.slots.range(start.min(self.slots.len())..) {
            let more = match slot {
                Slot::Gap(more) | Slot::Told(more) => *more,
                // Of a message that is done nothing is missing. There is none that is not done.
                Slot::Done | Slot::Open(..) => Missed { count: 0, ..missed.unwrap_or(NOTHING) },
            };
            if missed.is_some_and(|known| !known.is_like(&more)) || !self.in_span() {
                break;
            }
            match &mut missed {
                Some(known) => known.add(&more),
                None => missed = Some(more),
            }
            self.cursor = self.cursor.saturating_add(1);
        }
        let range = Range { from: first, to: self.cursor.saturating_sub(1) };
        let missed = missed.unwrap_or(NOTHING);
        Frame::Gap(Gap { range, base: self.base, heard: self.heard, missed })
    }

    /// What waits, critical first, as far as the peer's window goes. What does not fit holds up what is less urgent, or small
    /// messages of lower lanes would keep the window too full for a large one for ever.
    fn fresh(&mut self, now: Timestamp, room: FrameRoom) -> Option<Deliver> {
        let (first, mut items, mut bytes) = (self.cursor, Vec::new(), 0_u64);
        'lanes: for lane in 0..self.waiting.len() {
            while items.len() < room.items {
                let Some((item, _)) = self.waiting.get(lane).and_then(VecDeque::front) else { break };
                let (cost, size) = (item.message.cost(), weight(item, room.codec));
                let gone = expires(item) <= now;
                let fits = size <= room.frame_bytes || measure(item, room.codec) <= room.frame_bytes;
                if fits && !gone {
                    bytes = bytes.saturating_add(size);
                    if !self.has_room(lane == 0, cost) || (!items.is_empty() && bytes > room.batch_bytes) {
                        break 'lanes;
                    }
                }
                let Some((item, _)) = self.waiting.get_mut(lane).and_then(VecDeque::pop_front) else { break };
                match (gone, fits) {
                    // Its own engine ends it.
                    (true, _) => self.outcomes.push((item.place, Outcome::Disconnected)),
                    // It would end the connection, again and again.
                    (false, false) => {
                        self.outcomes.push((item.place, Outcome::Nack(None)));
                        self.recall(&key(&item));
                    }
                    (false, true) => {
                        self.open_slot(item.clone(), now);
                        items.push(item);
                    }
                }
            }
        }
        let deliver = Deliver { first, base: self.base, heard: self.heard, items };
        (!deliver.items.is_empty()).then_some(deliver)
    }

    fn open_slot(&mut self, item: Item, now: Timestamp) {
        if self.open == 0 {
            self.progress = now;
        }
        self.open = self.open.saturating_add(1);
        self.open_bytes = self.open_bytes.saturating_add(item.message.cost());
        self.slots.push_back(Slot::Open(item, now));
        self.cursor = self.cursor.saturating_add(1);
    }

    fn has_room(&self, critical: bool, cost: u64) -> bool {
        if self.slots.len() as u64 >= self.window.span().saturating_sub(Window::GAPS) {
            return false;
        }
        let messages = u64::from(self.window.messages);
        if critical {
            return self.open < messages.saturating_add(u64::from(self.window.reserve));
        }
        let (messages, bytes) = match self.slowed {
            true => ((messages / 2).max(1).min(messages), self.window.bytes / 2),
            false => (messages, self.window.bytes),
        };
        self.open < messages && (self.open == 0 || self.open_bytes.saturating_add(cost) <= bytes)
    }

    /// Whether the numbers were sent on this connection or one before.
    fn was_sent(&self, range: Range) -> bool {
        range.to < self.cursor
    }

    /// Ends numbers as delivered. Those that are done already were acknowledged again.
    pub(super) fn ack(&mut self, range: Range, now: Timestamp) -> Acked {
        if !self.was_sent(range) {
            return Err(Code::AckOfUnsent);
        }
        let mut ended = Vec::new();
        for number in range.from.max(self.base)..=range.to {
            match self.finish(number) {
                Some(Slot::Open(item, at)) => {
                    self.outcomes.push((item.place, Outcome::Delivered));
                    ended.push((item.place, Some(now.since(at))));
                }
                Some(Slot::Gap(..) | Slot::Told(..) | Slot::Done) | None => {}
            }
        }
        self.progress = now;
        self.advance();
        Ok(ended)
    }

    /// Ends a number as refused. A nack that was heard before is not heard again.
    pub(super) fn nack(&mut self, nack: &Nack, now: Timestamp) -> Result<(), Code> {
        let range = Range { from: nack.number, to: nack.number };
        if !self.was_sent(range) || nack.count > self.heard.saturating_add(1) {
            return Err(Code::AckOfUnsent);
        }
        if nack.count <= self.heard {
            return Ok(());
        }
        self.heard = nack.count;
        self.progress = now;
        let was_withdrawn = self.withdrawn.contains(&nack.number);
        let Some(Slot::Open(item, _)) = self.finish(nack.number) else { return Ok(()) };
        if was_withdrawn && nack.code == Code::Withdrawn {
            self.advance();
            return Ok(());
        }
        let outcome = match nack.code {
            Code::Busy => Outcome::Busy(nack.delay.unwrap_or_default()),
            code if code.is_terminal() => Outcome::Rejected(code),
            _ => Outcome::Nack(nack.delay),
        };
        self.outcomes.push((item.place, outcome));
        if !nack.code.is_terminal() {
            self.recall(&key(&item));
        }
        self.advance();
        Ok(())
    }

    /// The peer needs more time.
    pub(super) fn progress(&mut self, range: Range, now: Timestamp) -> Result<(), Code> {
        if !self.was_sent(range) {
            return Err(Code::AckOfUnsent);
        }
        self.progress = now;
        if range.to < self.base {
            return Ok(());
        }
        let skip = usize::try_from(range.from.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let count = usize::try_from(range.to.saturating_sub(range.from.max(self.base))).unwrap_or(usize::MAX);
        let slots = self.slots.iter().skip(skip).take(count.saturating_add(1));
        self.outcomes.extend(slots.filter_map(|slot| match slot {
            Slot::Open(item, _) => Some((item.place, Outcome::Progress)),
            _ => None,
        }));
        Ok(())
    }

    /// The place of a message that is on its way.
    pub(super) fn place(&self, number: u64) -> Option<Place> {
        match self.slots.get(usize::try_from(number.checked_sub(self.base)?).ok()?)? {
            Slot::Open(item, _) => Some(item.place),
            _ => None,
        }
    }

    fn finish(&mut self, number: u64) -> Option<Slot> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        let slot = core::mem::replace(self.slots.get_mut(index)?, Slot::Done);
        self.withdrawn.remove(&number);
        if let Slot::Open(item, _) = &slot {
            self.open = self.open.saturating_sub(1);
            self.open_bytes = self.open_bytes.saturating_sub(item.message.cost());
        }
        if matches!(slot, Slot::Told(..)) {
            self.gap_decided();
        }
        Some(slot)
    }

    /// The peer has heard of a gap, or will not over this connection. With the last one it is said whether it has of all.
    fn gap_decided(&mut self) {
        self.told = self.told.saturating_sub(1);
        if self.told == 0 {
            self.heard_of_gaps = Some(!core::mem::take(&mut self.untold));
        }
    }

    fn advance(&mut self) {
        while self.base < self.cursor && matches!(self.slots.front(), Some(Slot::Done)) {
            self.slots.pop_front();
            self.base = self.base.saturating_add(1);
        }
    }

    /// Everything sent so far counts as handed over: the peer does not acknowledge.
    pub(super) fn unconfirm(&mut self) {
        for number in self.base..self.cursor {
            if let Some(Slot::Open(item, _)) = self.finish(number) {
                self.outcomes.push((item.place, Outcome::Unconfirmed));
            }
        }
        self.advance();
    }

    /// A new life: gives everything back, and numbers start again.
    pub(super) fn reset(&mut self) {
        let mut outcomes = core::mem::take(&mut self.outcomes);
        for slot in self.slots.drain(..) {
            if let Slot::Open(item, _) = slot {
                outcomes.push((item.place, Outcome::Disconnected));
            }
        }
        let waiting = self.waiting.iter_mut().flat_map(|queue| queue.drain(..));
        outcomes.extend(waiting.map(|(item, _)| (item.place, Outcome::Disconnected)));
        let heard_of_gaps = if self.told > 0 { Some(false) } else { self.heard_of_gaps };
        *self = Self { window: self.window, outcomes, heard_of_gaps, ..Self::new(self.max_queue) };
    }

    /// Whether nothing waits and everything that was sent is acknowledged.
    pub(super) fn is_quiet(&self) -> bool {
        self.slots.is_empty() && self.waiting.iter().all(VecDeque::is_empty)
    }

    /// Since when the peer has acknowledged nothing of what it has.
    pub(super) fn waiting_since(&self) -> Option<Timestamp> {
        (self.open > 0).then_some(self.progress)
    }

    pub(super) const fn set_slowed(&mut self, slowed: bool) {
        self.slowed = slowed;
    }
}

/// When a message is no longer worth sending.
fn expires(item: &Item) -> Timestamp {
    item.message.ttl().map_or(Timestamp::NEVER, |ttl| item.accepted_at.after(ttl))
}

/// At most how many bytes a message takes in a frame.
fn weight(item: &Item, codec: Codec) -> u64 {
    let ids = 2048_u64;
    match codec {
        Codec::Binary => item.message.cost().saturating_add(ids),
        // Each byte may become an escape of six.
        #[cfg(feature = "json")]
        Codec::Json => item.message.cost().saturating_add(ids).saturating_mul(6),
    }
}

/// How many bytes a message takes in a frame of its own.
fn measure(item: &Item, codec: Codec) -> u64 {
    let mut bytes = Vec::new();
    let deliver = Deliver { first: u64::MAX, base: u64::MAX, heard: u64::MAX, items: vec![item.clone()] };
    encode(&Frame::Deliver(deliver), codec, &mut bytes);
    bytes.len() as u64
}
