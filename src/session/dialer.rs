//! When to connect, over which transport, with which credentials: what a connector does between its connections.
//!
//! It puts [`Backoff`], [`Ladder`] and [`Recovery`] together, and knows no more of a connection than whether there is one.
//!
//! ```text
//!   Start ─► ask for credentials ─► dial ─► greet ─► up ──► a better transport has rested, or this one is poor:
//!              ▲                     ▲                │      dial that one while this one stands, then switch
//!              │   after a delay     │                │
//!              └─────────────────────┴── what the recovery table says about the code it ended with
//! ```
//!
//! # Invariants
//! - At most one dial is under way, and at most one question for credentials.
//! - What the peer asked for with `retry_after` is obeyed, whoever hints at a better network meanwhile.
//! - While a connection stands, attempts at another transport cost it nothing.

mod config;
mod io;

use core::time::Duration;
use std::collections::VecDeque;

use super::backoff::Backoff;
use super::code::Code;
use super::ladder::Ladder;
use super::quality::Grade;
use super::recovery::{Step, Strategy};
use crate::time::Timestamp;

pub use self::config::DialerConfig;
pub use self::io::{DialAction, DialInput, DialState};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// Asked for credentials, and asks anew then.
    Asking(Timestamp),
    /// Until then.
    Waiting(Timestamp),
    /// The transport is being made, since then.
    Dialing(usize, Timestamp),
    /// It stands, and hello was said.
    Greeting(usize),
    /// Open; perhaps with another transport being made since then.
    Up(usize, Option<(usize, Timestamp)>),
    /// The first one is open, and hello was said over the second.
    Climbing(usize, usize),
    /// The table says to give up.
    GivenUp,
    Closed,
}

/// Whether the transport has to answer for how a connection ended, if the table says that one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Transport,
    /// It has answered for it already, or it was not this one.
    Nobody,
}

/// Decides when to connect and how. See the module's documentation; the drain contract is that of a
/// [`Session`](super::Session).
#[derive(Clone, Debug)]
pub struct Dialer {
    config: DialerConfig,
    backoff: Backoff,
    ladder: Ladder,
    phase: Phase,
    grade: Grade,
    has_credentials: bool,
    /// When they are good no longer, if the peer has said so of them.
    good_until: Option<Timestamp>,
    /// The peer does not want to see us before.
    not_before: Timestamp,
    /// When the connection opened, until it has stood for long enough to be a success.
    unproven: Option<Timestamp>,
    why: Option<Code>,
    /// When credentials were last asked for.
    asked: Timestamp,
    /// What the host was told last.
    shown: Option<DialState>,
    /// The network has changed since hello was said: should nothing come of that, it says nothing of the new one.
    hinted: bool,
    now: Timestamp,
    actions: VecDeque<DialAction>,
}

impl Dialer {
    /// For so many transports (at least one), the best first; `worked` is [`Dialer::memory`] of an earlier one here.
    #[must_use]
    pub fn new(config: DialerConfig, transports: usize, worked: &[usize], seed: u64) -> Self {
        Self {
            backoff: Backoff::new(config.backoff_floor, config.backoff_cap, seed),
            ladder: Ladder::new(config.ladder.clone(), transports, worked),
            config,
            phase: Phase::Idle,
            grade: Grade::Good,
            has_credentials: false,
            good_until: None,
            not_before: Timestamp::ZERO,
            unproven: None,
            why: None,
            asked: Timestamp::ZERO,
            shown: None,
            hinted: false,
            now: Timestamp::ZERO,
            actions: VecDeque::new(),
        }
    }

    /// Which transports worked here.
    #[must_use]
    pub fn memory(&self) -> Vec<usize> {
        self.ladder.memory()
    }

    /// The next thing to do; call until `None`.
    pub fn poll_action(&mut self) -> Option<DialAction> {
        self.actions.pop_front()
    }

    /// When to say [`DialInput::Tick`], unless something happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Waiting(until) => Some(until),
            Phase::Dialing(_, since) | Phase::Up(_, Some((_, since))) => Some(since.after(self.dial_time())),
            Phase::Asking(until) => Some(until),
            Phase::Up(_, None) => {
                let proves = self.ladder.proves_at().filter(|_| self.grade > Grade::Poor);
                let next = self.ladder.poll_timeout().into_iter().chain(proves).min();
                next.map(|at| at.max(self.not_before))
            }
            Phase::Idle | Phase::Greeting(_) | Phase::Climbing(..) | Phase::GivenUp | Phase::Closed => None,
        }
    }

    /// Tells what happened. Then drain [`Dialer::poll_action`].
    pub fn handle(&mut self, now: Timestamp, input: DialInput) {
        self.now = self.now.max(now);
        self.prove();
        match input {
            DialInput::Start => {
                if self.phase == Phase::Idle {
                    self.proceed();
                }
            }
            DialInput::Credentials => self.credentials(),
            DialInput::NoCredentials => self.no_credentials(),
            DialInput::GoodUntil(until) => self.good_until = until,
            DialInput::Stands => self.stands(),
            DialInput::Failed(code, retry_after) => self.failed(code, retry_after),
            DialInput::Opened => self.opened(),
            DialInput::Lost(code, retry_after) => self.lost(code, retry_after),
            DialInput::GoingAway(retry_after) => self.asked_for(retry_after),
            DialInput::Graded(grade) => {
                self.grade = grade;
                self.look_around();
            }
            DialInput::NetworkChanged(worked) => self.network_changed(&worked),
            DialInput::Reopen => self.reopen(),
            DialInput::Close(code) => self.close(code),
            DialInput::Tick => self.tick(),
        }
    }

    /// A handshake is no success yet: whoever is let in and sent away at once, again and again, is to come less and less
    /// often.
    fn prove(&mut self) {
        if self.unproven.is_some_and(|since| since.after(self.config.ladder.stable) <= self.now) {
            self.unproven = None;
            self.backoff.reset();
        }
    }

    /// How long the attempt that is under way may take.
    fn dial_time(&self) -> Duration {
        let DialerConfig { patience, dial_timeout, .. } = &self.config;
        match self.phase {
            Phase::Dialing(_, since) if self.ladder.has_fresh(since) => *patience.min(dial_timeout),
            _ => *dial_timeout,
        }
    }

    fn state(&mut self, state: DialState) {
        self.shown = Some(state);
        self.actions.push_back(DialAction::State(state));
    }

    /// Connects, if there are credentials, or asks for some. Those whose time is over are shown to nobody: they would be
    /// refused.
    fn proceed(&mut self) {
        if self.good_until.is_some_and(|until| until <= self.now) {
            self.good_until = None;
            self.has_credentials = false;
            self.why = Some(Code::SessionExpired);
        }
        if self.has_credentials {
            let rung = self.ladder.current();
            self.phase = Phase::Dialing(rung, self.now);
            self.state(DialState::Connecting(rung));
            self.actions.push_back(DialAction::Dial(rung));
        } else {
            self.ask();
        }
    }

    /// Whoever gives some may take its time, and there is no connection meanwhile: the host is not to think that there is.
    fn ask(&mut self) {
        self.phase = Phase::Asking(self.now.after(self.config.ask_timeout));
        self.asked = self.now;
        let needs = DialState::NeedsCredentials(self.why);
        if self.shown.is_some_and(|shown| shown != needs) {
            self.state(needs);
        }
        self.actions.push_back(DialAction::AskCredentials(self.why));
    }

    fn wait(&mut self, until: Timestamp) {
        self.phase = Phase::Waiting(until);
        self.state(DialState::Offline(until, self.why));
    }

    fn credentials(&mut self) {
        let had = core::mem::replace(&mut self.has_credentials, true);
        // Nobody has said of these yet for how long they are good.
        self.good_until = None;
        match self.phase {
            // Those that were refused a moment ago may come again: not in a busy loop.
            Phase::Asking(_) | Phase::Waiting(_) if !had && self.not_before > self.now => {
                self.wait(self.not_before)
            }
            Phase::Asking(_) | Phase::Waiting(_) if !had => self.proceed(),
            _ => {}
        }
    }

    /// The host is asked again: what gives it some may be what cannot be reached now.
    fn no_credentials(&mut self) {
        if matches!(self.phase, Phase::Asking(_)) {
            let until = self.now.after(self.backoff.next_delay(None)).max(self.not_before);
            self.phase = Phase::Waiting(until);
            self.state(DialState::NeedsCredentials(self.why));
        }
    }

    fn stands(&mut self) {
        match self.phase {
            Phase::Dialing(rung, _) => self.phase = Phase::Greeting(rung),
            Phase::Up(held, Some((rung, _))) => self.phase = Phase::Climbing(held, rung),
            _ => {}
        }
    }

    fn opened(&mut self) {
        if let Phase::Greeting(rung) | Phase::Climbing(_, rung) = self.phase {
            self.phase = Phase::Up(rung, None);
            self.why = None;
            self.good_until = None;
            self.hinted = false;
            self.grade = Grade::Good;
            self.unproven = Some(self.now);
            self.ladder.connected(self.now, rung);
            self.state(DialState::Online(rung));
        }
    }

    /// A transport could not be made, or was not let in beside the one that stands.
    fn failed(&mut self, code: Code, retry_after: Option<Duration>) {
        match self.phase {
            Phase::Dialing(..) => self.ended(code, retry_after, Fault::Transport),
            Phase::Climbing(held, _) if core::mem::take(&mut self.hinted) => {
                self.asked_for(retry_after);
                self.leave_old_network(held);
            }
            Phase::Up(held, Some((rung, _))) | Phase::Climbing(held, rung) => {
                self.asked_for(retry_after);
                // It is left at once: there is one that works.
                let mut next = self.ladder.failed_beside(self.now);
                while next == rung && next != held {
                    next = self.ladder.failed_beside(self.now);
                }
                self.try_beside(held, next);
            }
            _ => {}
        }
    }

    /// Nothing at all was heard of the transport that is being made: if there is another one, that wait was wait enough.
    fn silent(&mut self) {
        const CODE: Code = Code::HandshakeTimeout;
        self.actions.push_back(DialAction::Abandon);
        let is_blamed = self.config.recovery.strategy(CODE) == Strategy::BlameTransport;
        match self.phase {
            Phase::Dialing(..) if is_blamed => {
                if self.ladder.failed_silently(self.now) {
                    self.why = Some(CODE);
                    self.proceed();
                } else {
                    self.ended(CODE, None, Fault::Nobody);
                }
            }
            _ => self.failed(CODE, None),
        }
    }

    /// Another transport is made while the one that is held stands; or none, if that is the one.
    fn try_beside(&mut self, held: usize, rung: usize) {
        let is_better = rung < held || self.grade == Grade::Poor && rung != held;
        if is_better && self.not_before <= self.now {
            self.phase = Phase::Up(held, Some((rung, self.now)));
            self.actions.push_back(DialAction::Dial(rung));
        } else {
            self.phase = Phase::Up(held, None);
            self.ladder.settle(held, self.now);
        }
    }

    /// Whether another transport should be tried.
    fn look_around(&mut self) {
        if let Phase::Up(held, None) = self.phase
            && self.not_before <= self.now
            && let Some(rung) = self.ladder.graded(self.now, self.grade)
        {
            self.phase = Phase::Up(held, Some((rung, self.now)));
            self.actions.push_back(DialAction::Dial(rung));
        }
    }

    fn lost(&mut self, code: Code, retry_after: Option<Duration>) {
        match self.phase {
            Phase::Up(_, Some(_)) => {
                self.actions.push_back(DialAction::Abandon);
                self.ladder.lost_beside(self.now);
                self.ended(code, retry_after, Fault::Nobody);
            }
            // The other one was all that was left, and is gone too.
            Phase::Climbing(..) => {
                self.ladder.lost_beside(self.now);
                self.ended(code, retry_after, Fault::Nobody);
            }
            Phase::Up(_, None) | Phase::Greeting(_) => self.ended(code, retry_after, Fault::Transport),
            _ => {}
        }
    }

    /// It may have asked others for the same, so everybody comes back at a time of their own.
    fn asked_for(&mut self, retry_after: Option<Duration>) {
        if let Some(after) = retry_after {
            self.not_before = self.now.after(self.backoff.behind(after)).max(self.not_before);
        }
    }

    /// What the table says about how it ended.
    fn ended(&mut self, code: Code, retry_after: Option<Duration>, fault: Fault) {
        self.why = Some(code);
        self.unproven = None;
        let is_of_old_network = core::mem::take(&mut self.hinted);
        if is_of_old_network {
            self.backoff.reset();
        }
        let fault = if is_of_old_network { Fault::Nobody } else { fault };
        let step = self.config.recovery.next(code, retry_after, &mut self.backoff);
        match step {
            Step::Reconnect(delay) => {
                self.ladder.ended();
                self.come_back(delay, retry_after);
            }
            Step::SwitchTransport(delay) => {
                let next = fault == Fault::Transport && self.ladder.failed_for_another(self.now);
                let soon = next && retry_after.is_none();
                let delay = if soon { self.backoff.short_delay() } else { delay };
                self.come_back(delay, retry_after);
            }
            Step::WaitForCredentials => {
                self.ladder.ended();
                self.has_credentials = false;
                let delay = self.backoff.next_delay(retry_after);
                self.not_before = self.not_before.max(self.now.after(delay));
                self.proceed();
            }
            Step::GiveUp => {
                self.ladder.ended();
                self.phase = Phase::GivenUp;
                self.state(DialState::Closed(code));
            }
        }
    }

    /// The delay is behind what the peer asked for now, if it did; what it asked for before holds as well.
    fn come_back(&mut self, delay: Duration, retry_after: Option<Duration>) {
        let at = self.now.after(delay).max(self.not_before);
        if retry_after.is_some() {
            self.not_before = at;
        }
        self.wait(at);
    }

    fn network_changed(&mut self, worked: &[usize]) {
        match self.phase {
            Phase::GivenUp | Phase::Closed | Phase::Idle => {}
            Phase::Waiting(_) => {
                self.ladder.network_changed(worked);
                self.backoff.reset();
                self.proceed_in_time();
            }
            // The old one may be dead without anybody knowing: a new one is made beside it.
            Phase::Up(held, dial) => {
                if dial.is_some() {
                    self.actions.push_back(DialAction::Abandon);
                }
                self.ladder.network_changed(worked);
                self.leave_old_network(held);
            }
            Phase::Dialing(..) => {
                self.actions.push_back(DialAction::Abandon);
                self.ladder.network_changed(worked);
                self.proceed();
            }
            // What gives them may have asked over the old network. It is heard out for a while, where networks come and go.
            Phase::Asking(until) => {
                self.ladder.network_changed(worked);
                let soon = self.asked.after(config::ASK_AGAIN);
                match soon <= self.now {
                    true => self.ask(),
                    false => self.phase = Phase::Asking(until.min(soon)),
                }
            }
            // The welcome may be on its way, or hello lost with the old network.
            Phase::Greeting(_) | Phase::Climbing(..) => {
                self.hinted = true;
                self.ladder.network_changed(worked);
            }
        }
    }

    /// A new connection is made beside the one that is held, over whatever is best.
    fn leave_old_network(&mut self, held: usize) {
        if self.not_before > self.now {
            // Nobody is to come before that, over whatever network.
            self.ladder.settle(held, self.now);
            self.phase = Phase::Up(held, None);
        } else {
            let rung = self.ladder.current();
            self.phase = Phase::Up(held, Some((rung, self.now)));
            self.actions.push_back(DialAction::Dial(rung));
        }
    }

    /// What it gave up for may be over: somebody was asked. What the peer asked for stands all the same.
    fn reopen(&mut self) {
        match self.phase {
            Phase::GivenUp => {
                self.backoff.reset();
                self.config.recovery.forget();
                self.why = None;
                self.proceed_in_time();
            }
            Phase::Waiting(_) => self.proceed_in_time(),
            _ => {}
        }
    }

    /// Connects now, or when the peer wants to see us.
    fn proceed_in_time(&mut self) {
        if self.not_before > self.now {
            self.wait(self.not_before);
        } else {
            self.proceed();
        }
    }

    fn close(&mut self, code: Code) {
        if self.phase == Phase::Closed {
            return;
        }
        if matches!(self.phase, Phase::Dialing(..) | Phase::Up(_, Some(_))) {
            self.actions.push_back(DialAction::Abandon);
        }
        self.phase = Phase::Closed;
        self.state(DialState::Closed(code));
    }

    fn tick(&mut self) {
        match self.phase {
            Phase::Waiting(until) if until <= self.now => self.proceed(),
            Phase::Asking(until) if until <= self.now => self.ask(),
            Phase::Dialing(_, since) | Phase::Up(_, Some((_, since)))
                if since.after(self.dial_time()) <= self.now =>
            {
                self.silent();
            }
            Phase::Up(_, None) => self.look_around(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
