//! A connection over HTTP: what waits in it in either direction, and which request is next.
//!
//! Requests up and polls are counted, so that a repeat is told from a new one: a repeated request up is answered and not
//! taken twice, a repeated poll gets the same answer again. All of that is decided here, under one lock and without
//! waiting; whoever has to wait waits for [`Pipe::changed`] and asks again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lastmile::ports::TransportError;
use lastmile::session::Code;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::gate::Place;
use super::refusal::Refusal;
use crate::config::WebConfig;
use crate::line;

/// Requests up whose bodies are read at once: one, and the repeats that a client makes of it while its answer is lost.
const MAX_UPLOADS: u8 = 4;

/// One connection, shared by its session's two halves and by the requests that carry it.
#[derive(Debug)]
pub(super) struct Pipe {
    state: Mutex<State>,
    /// Something happened that somebody may wait for.
    changed: Notify,
    limits: Limits,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    buffered: usize,
    max_frame: usize,
    absence: Duration,
    linger: Duration,
}

#[derive(Debug)]
struct State {
    /// Frames for the session that it has not read.
    up: VecDeque<Bytes>,
    up_bytes: usize,
    /// The number of the next request up.
    up_next: u64,
    /// Requests up whose bodies are being read.
    uploads: u8,
    /// Why nothing more comes from the peer.
    up_end: Option<End>,
    /// Frames for the peer, as lines with their breaks.
    down: VecDeque<Bytes>,
    down_bytes: usize,
    /// Who carries them.
    carrier: Carrier,
    /// The number of the next poll.
    poll_next: u64,
    /// What the one before it was answered with.
    answer: Option<Bytes>,
    /// A later poll makes an earlier one give up.
    poll_turn: u64,
    /// The session's last word.
    closed: Option<Code>,
    /// The session's halves that are still there.
    halves: u8,
    /// When nobody carries anything any more, this is over.
    until: Option<Instant>,
    /// Nothing goes in or out any more.
    over: bool,
}

/// Who carries frames to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    None,
    Stream,
    Polls,
}

#[derive(Clone, Debug)]
enum End {
    /// The peer said goodbye.
    Closed,
    /// It went away, or broke a rule.
    Broken(TransportError),
}

/// What there is to carry to the peer.
#[derive(Debug)]
pub(super) enum Down {
    /// These lines.
    Lines(Bytes),
    /// The session closed the connection, and everything before that was carried.
    Closed(Code),
    /// Nothing yet.
    Nothing,
}

/// What a request up came to.
#[derive(Debug)]
pub(super) enum Up {
    /// It is taken, or was before.
    Taken,
    /// There is no room yet.
    NoRoom,
}

impl Pipe {
    pub(super) fn new(config: &WebConfig, place: Place) -> Arc<Self> {
        let state = State {
            up: VecDeque::new(),
            up_bytes: 0,
            up_next: 1,
            uploads: 0,
            up_end: None,
            down: VecDeque::new(),
            down_bytes: 0,
            carrier: Carrier::None,
            poll_next: 1,
            answer: None,
            poll_turn: 0,
            closed: None,
            halves: 2,
            until: Some(Instant::now() + config.open_timeout),
            over: false,
        };
        let limits = Limits {
            buffered: config.max_buffered,
            max_frame: config.max_frame,
            absence: config.poll_absence,
            linger: config.linger,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new(), limits, place })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ask` has an answer.
    pub(super) async fn wait<T>(&self, mut ask: impl FnMut(&Self) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(answer) = ask(self) {
                return answer;
            }
            changed.await;
        }
    }

    // ------------------------------------------------------------------------------------------------ for the session

    /// The next frame from the peer; `None` while there is none.
    pub(super) fn read(&self) -> Option<Result<Option<Bytes>, TransportError>> {
        let mut state = self.lock();
        if let Some(frame) = state.up.pop_front() {
            state.up_bytes -= frame.len();
            drop(state);
            self.changed.notify_waiters();
            return Some(Ok(Some(frame)));
        }
        match &state.up_end {
            Some(End::Closed) => Some(Ok(None)),
            Some(End::Broken(why)) => Some(Err(why.clone())),
            None => None,
        }
    }

    /// Takes frames for the peer; false while there is no room.
    pub(super) fn write(&self, frames: &[Bytes]) -> Result<bool, TransportError> {
        let mut state = self.lock();
        if state.over || state.closed.is_some() {
            return Err(TransportError::Broken("the connection is over".into()));
        }
        if state.down_bytes >= self.limits.buffered {
            return Ok(false);
        }
        for frame in frames {
            let mut text = Vec::with_capacity(frame.len() + 1);
            line::push(frame, &mut text);
            text.push(b'\n');
            state.down_bytes += text.len();
            state.down.push_back(Bytes::from(text));
        }
        drop(state);
        self.place.answered();
        self.changed.notify_waiters();
        Ok(true)
    }

    /// The session's last word: the peer gets what was written before, and this.
    pub(super) fn close(&self, code: Code) {
        let mut state = self.lock();
        if state.closed.is_none() {
            state.closed = Some(code);
            state.until = Some(Instant::now() + self.limits.linger);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// One of the session's halves has gone; with the second one, the connection ends.
    pub(super) fn drop_half(&self) {
        let mut state = self.lock();
        state.halves = state.halves.saturating_sub(1);
        let last = state.halves == 0;
        drop(state);
        if last {
            self.close(Code::TransportLost);
        }
    }

    // --------------------------------------------------------------------------------------------------- for requests

    /// Request `number` begins, before its body is read: a connection holds the memory of a few of them, whatever is asked.
    pub(super) fn begin_up(self: &Arc<Self>, number: u64) -> Result<Upload, Refusal> {
        let mut state = self.lock();
        let is_repeat = number.checked_add(1) == Some(state.up_next);
        if !is_repeat && number != state.up_next || state.uploads >= MAX_UPLOADS {
            return Err(Refusal::OutOfTurn);
        }
        state.uploads += 1;
        drop(state);
        Ok(Upload(Arc::clone(self)))
    }

    /// Takes the frames of request `number`, all or none. `Err` is what it is answered with.
    pub(super) fn up(&self, number: u64, body: &Bytes) -> Result<Up, Refusal> {
        let mut state = self.lock();
        if number.checked_add(1) == Some(state.up_next) {
            return Ok(Up::Taken);
        }
        if number != state.up_next {
            return Err(Refusal::OutOfTurn);
        }
        if state.over || state.closed.is_some() || state.up_end.is_some() {
            return Err(Refusal::Unknown);
        }
        if state.up_bytes >= self.limits.buffered {
            return Ok(Up::NoRoom);
        }
        let frames = match line::parse_all(body, self.limits.max_frame) {
            Ok(frames) => frames,
            Err(why) => {
                let large = matches!(why, TransportError::TooLarge { .. });
                state.up_end = Some(End::Broken(why));
                drop(state);
                self.changed.notify_waiters();
                return Err(if large { Refusal::TooLarge } else { Refusal::Body });
            }
        };
        state.up_next += 1;
        state.up_bytes += frames.iter().map(Bytes::len).sum::<usize>();
        state.up.extend(frames);
        drop(state);
        self.changed.notify_waiters();
        Ok(Up::Taken)
    }

    /// The peer said goodbye.
    pub(super) fn goodbye(&self) {
        self.end(End::Closed, true);
    }

    /// The peer has gone.
    pub(super) fn lost(&self, why: &str) {
        self.end(End::Broken(TransportError::Broken(why.into())), true);
    }

    fn end(&self, end: End, over: bool) {
        let mut state = self.lock();
        state.up_end.get_or_insert(end);
        state.over |= over;
        drop(state);
        self.changed.notify_waiters();
    }

    /// An event stream begins to carry what goes down. There is one in a connection's life.
    pub(super) fn carry_by_stream(&self) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.over {
            return Err(Refusal::Unknown);
        }
        if state.carrier != Carrier::None {
            return Err(Refusal::OutOfTurn);
        }
        state.carrier = Carrier::Stream;
        if state.closed.is_none() {
            state.until = None;
        }
        Ok(())
    }

    /// What the stream carries next.
    pub(super) fn stream_down(&self) -> Option<Down> {
        let mut state = self.lock();
        if let Some(lines) = state.take_down(self.limits.buffered) {
            drop(state);
            self.changed.notify_waiters();
            return Some(Down::Lines(lines));
        }
        match state.closed {
            Some(code) => {
                state.over = true;
                drop(state);
                self.changed.notify_waiters();
                Some(Down::Closed(code))
            }
            None if state.over => Some(Down::Closed(Code::TransportLost)),
            None => None,
        }
    }

    /// Poll `number` begins. A repeat is answered at once.
    pub(super) fn poll(&self, number: u64) -> Result<PollTurn, Refusal> {
        let mut state = self.lock();
        if state.carrier == Carrier::Stream {
            return Err(Refusal::OutOfTurn);
        }
        if number.checked_add(1) == Some(state.poll_next)
            && let Some(answer) = &state.answer
        {
            return Ok(PollTurn::Repeat(answer.clone()));
        }
        if state.over {
            return Err(Refusal::Unknown);
        }
        if number != state.poll_next {
            return Err(Refusal::OutOfTurn);
        }
        state.carrier = Carrier::Polls;
        state.poll_turn += 1;
        if state.closed.is_none() {
            state.until = None;
        }
        let turn = state.poll_turn;
        drop(state);
        self.changed.notify_waiters();
        Ok(PollTurn::Wait(turn))
    }

    /// The answer to the poll that has this turn; `None` while there is nothing to say. With `enough`, nothing is an answer.
    pub(super) fn poll_down(&self, turn: u64, enough: bool) -> Option<Result<Down, Refusal>> {
        let mut state = self.lock();
        if state.poll_turn != turn {
            return Some(Err(Refusal::OutOfTurn));
        }
        let lines = state.take_down(self.limits.buffered);
        if lines.is_none() {
            if let Some(code) = state.closed {
                return Some(Ok(Down::Closed(code)));
            }
            if state.over {
                return Some(Err(Refusal::Unknown));
            }
            if !enough {
                return None;
            }
        }
        state.poll_next += 1;
        let down = lines.clone().map_or(Down::Nothing, Down::Lines);
        state.answer = Some(lines.unwrap_or_default());
        drop(state);
        self.changed.notify_waiters();
        Some(Ok(down))
    }

    /// The poll that had this turn has gone, answered or not.
    pub(super) fn poll_gone(&self, turn: u64) {
        let mut state = self.lock();
        if state.poll_turn == turn && state.closed.is_none() {
            state.until = Some(Instant::now() + self.limits.absence);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    // ----------------------------------------------------------------------------------------------------- for the hub

    /// Whether nothing goes in or out any more; else when to look again.
    fn verdict(&self) -> Result<Option<Instant>, ()> {
        let mut state = self.lock();
        if state.until.is_some_and(|until| until <= Instant::now()) {
            state.over = true;
            let gone = TransportError::Broken("nobody came for what was sent".into());
            state.up_end.get_or_insert(End::Broken(gone));
            drop(state);
            self.changed.notify_waiters();
            return Err(());
        }
        if state.over { Err(()) } else { Ok(state.until) }
    }

    /// Returns when the connection is over.
    pub(super) async fn ended(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.verdict() {
                Err(()) => return,
                Ok(None) => changed.await,
                Ok(Some(until)) => {
                    let _woken = tokio::time::timeout_at(until, changed).await;
                }
            }
        }
    }
}

/// A request up whose body is being read.
#[derive(Debug)]
pub(super) struct Upload(Arc<Pipe>);

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.lock().uploads -= 1;
    }
}

/// How a poll begins.
#[derive(Debug)]
pub(super) enum PollTurn {
    /// It was answered before, with this.
    Repeat(Bytes),
    /// It waits for its answer.
    Wait(u64),
}

impl State {
    /// Lines up to about so many bytes; at least one, if there is one.
    fn take_down(&mut self, at_most: usize) -> Option<Bytes> {
        let first = self.down.pop_front()?;
        self.down_bytes -= first.len();
        if self.down.is_empty() {
            return Some(first);
        }
        let mut lines = Vec::with_capacity(at_most.min(first.len() + self.down_bytes));
        lines.extend_from_slice(&first);
        while self.down.front().is_some_and(|next| lines.len() + next.len() <= at_most) {
            let next = self.down.pop_front()?;
            self.down_bytes -= next.len();
            lines.extend_from_slice(&next);
        }
        Some(Bytes::from(lines))
    }
}

#[cfg(test)]
mod tests;
