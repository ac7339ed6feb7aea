//! What an open connection does: frames, time, and what goes out.

use core::time::Duration;

use super::Code;
use super::frame::{Ack, Capabilities, DecodeError, Frame, Item, Place, Range, Refused, encode};
use super::heartbeat::Beat;
use super::io::{ConnId, Event, InboundId, Verdict};
use super::outgoing::FrameRoom;
use super::session::{Link, Role, Session, Up};
use crate::time::Timestamp;

/// What a peer that is asked to leave at once has for what is under way.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

impl Session {
    /// A frame came. Frames of other connections than the one that is open are those of frozen ones, and are ignored.
    pub(super) fn frame(&mut self, conn: ConnId, frame: Frame) {
        match &mut self.link {
            Link::Up(up) if up.conn == conn => {
                up.heart.heard(self.now);
                self.out.confirm();
                match up.rival() {
                    None => self.heard(frame),
                    Some(_) => self.hold(frame),
                }
            }
            Link::Up(up) if up.rival() == Some(conn) => {
                match frame {
                    // One that is none costs the connection that stands nothing.
                    Frame::Welcome(welcome) => match self.flaw_of(&welcome) {
                        Some((code, what)) => self.rival_violation(code, what),
                        None => {
                            self.leave_for_rival(Code::TransportSwitched, true);
                            self.welcomed(conn, &welcome);
                        }
                    },
                    Frame::Reject(refused) | Frame::Close(refused) => self.rival_failed(&refused),
                    frame => self.rival_violation(Code::UnexpectedFrame, frame.name()),
                }
            }
            Link::Greeting(greeting, _) if *greeting == conn => match frame {
                Frame::Welcome(welcome) => match self.flaw_of(&welcome) {
                    Some((code, what)) => self.violation(code, what),
                    None => self.welcomed(conn, &welcome),
                },
                Frame::Reject(refused) | Frame::Close(refused) => self.end_connection(refused, false),
                frame => self.violation(Code::UnexpectedFrame, frame.name()),
            },
            _ => {}
        }
    }

    pub(super) fn heard(&mut self, frame: Frame) {
        let (name, acceptor) = (frame.name(), self.role == Role::Acceptor);
        let result = match frame {
            Frame::Deliver(deliver) => self.inc.deliver(deliver).map(|nacks| {
                nacks.into_iter().for_each(|frame| self.send(frame));
            }),
            Frame::Gap(gap) => self.gap_heard(gap),
            Frame::Ack(ack) => self.ack_heard(&ack),
            Frame::Nack(nack) => self.out.nack(&nack, self.now).map(|()| self.moved()),
            Frame::Progress(range) => self.out.progress(range, self.now),
            Frame::Reply { number, payload } => self.reply_heard(number, payload),
            Frame::Withdraw(range) if self.can(Capabilities::WITHDRAW) => self.withdraw_heard(range),
            Frame::Floor(place) => {
                self.inc.set_floor(place);
                self.event(Event::Floor(self.peer_stream, place));
                Ok(())
            }
            Frame::Publish { number, message } if acceptor && self.can(Capabilities::PUBLISH) => {
                match self.receiver.publish(number) {
                    Ok(None) => {
                        self.event(Event::Publish(number, message));
                        Ok(())
                    }
                    Ok(Some(answer)) => {
                        answer.into_iter().for_each(|frame| self.send(frame));
                        Ok(())
                    }
                    Err(code) => Err(code),
                }
            }
            Frame::Receipt { number, outcome } if !acceptor => self.publisher.receipt(number).map(|new| {
                if new {
                    self.event(Event::Receipt(number, Some(outcome)));
                }
            }),
            Frame::Ping { nonce, rtt } => {
                rtt.into_iter().for_each(|rtt| self.quality.told(rtt));
                self.send(Frame::Pong { nonce });
                Ok(())
            }
            Frame::Pong { nonce } => {
                self.pong_heard(nonce);
                Ok(())
            }
            Frame::GoAway(refused) => {
                self.going();
                self.event(Event::GoingAway(refused));
                Ok(())
            }
            Frame::Close(refused) => {
                self.end_connection(refused, false);
                Ok(())
            }
            Frame::Renew(credentials) if acceptor => {
                if let Link::Up(up) = &mut self.link {
                    up.renewals.heard(credentials);
                }
                Ok(())
            }
            Frame::Renewed { expires_in } if !acceptor => {
                self.renewal_heard(expires_in);
                Ok(())
            }
            Frame::Hello(_) => Err(Code::ReplayedHello),
            _ => Err(Code::UnexpectedFrame),
        };
        if let Err(code) = result {
            self.violation(code, name);
        }
    }

    /// Whether both ends of the open connection can do something.
    pub(super) fn can(&self, what: Capabilities) -> bool {
        matches!(&self.link, Link::Up(up) if up.capabilities.has(what))
    }

    fn gap_heard(&mut self, gap: super::frame::Gap) -> Result<(), Code> {
        self.inc.gap(gap, self.now, self.config.ack_delay)?;
        if gap.missed.count > 0 {
            self.event(Event::Gap(gap.missed));
        }
        Ok(())
    }

    fn ack_heard(&mut self, ack: &Ack) -> Result<(), Code> {
        for range in &ack.ranges {
            for (place, took) in self.out.ack(*range, self.now)? {
                let late = took.is_some_and(|took| took > self.config.stall_after);
                self.quality.stalled(late);
                if self.requests.remove(&place).is_some() {
                    self.event(Event::NoReply(place));
                }
            }
        }
        if let Some(window) = ack.window {
            self.out.set_window(window);
        }
        // A window by itself is no sign that anything is taken.
        if !ack.ranges.is_empty() {
            self.moved();
        }
        Ok(())
    }

    fn reply_heard(&mut self, number: u64, payload: bytes::Bytes) -> Result<(), Code> {
        let place = self.out.place(number);
        self.out.ack(Range { from: number, to: number }, self.now)?;
        if let Some(place) = place {
            self.requests.remove(&place);
            self.event(Event::Reply(place, payload));
        }
        self.moved();
        Ok(())
    }

    /// The peer takes things.
    fn moved(&mut self) {
        self.stalled = false;
        self.out.set_slowed(false);
        if core::mem::take(&mut self.parked) {
            self.event(Event::Parked(false));
        }
    }

    fn pong_heard(&mut self, nonce: u64) {
        let now = self.now;
        if let Link::Up(up) = &mut self.link
            && let Some(rtt) = up.heart.pong(nonce, now)
        {
            self.quality.sample(rtt);
        }
    }

    pub(super) fn garbage(&mut self, conn: ConnId, error: &DecodeError) {
        if self.is_linked_by(conn) {
            self.violation(error.code(), &error.to_string());
        } else if self.is_rival(conn) {
            self.rival_violation(error.code(), &error.to_string());
        }
    }

    /// Whether it is the connection that is open, or that greets because none is.
    fn is_linked_by(&self, conn: ConnId) -> bool {
        match &self.link {
            Link::Up(up) => up.conn == conn,
            Link::Greeting(greeting, _) => *greeting == conn,
            Link::Down(_) | Link::Over => false,
        }
    }

    pub(super) fn lost(&mut self, conn: ConnId) {
        if self.is_linked_by(conn) {
            self.gone(Code::TransportLost, false);
        } else if self.is_rival(conn) {
            self.rival_failed(&Self::refused(Code::TransportLost));
        }
    }

    /// The connection is lost; another one that greets already may take its place.
    fn gone(&mut self, code: Code, say: bool) {
        self.quality.lost();
        match &self.link {
            Link::Up(up) if up.rival().is_some() => self.leave_for_rival(code, say),
            _ => self.end_connection(Self::refused(code), say),
        }
    }

    pub(super) fn offer(&mut self, items: Vec<Item>) {
        let busy = self.config.busy;
        // What were taken without a connection could overtake what goes back when there is one again.
        let takes = self.connection().is_some() && !self.parked && !self.is_going();
        for item in items {
            if !takes {
                self.out.refuse(item.place, busy);
                continue;
            }
            if let Some(within) = item.reply_within {
                self.requests.insert(item.place, self.now.after(within));
            }
            self.out.offer(item, self.now, busy);
        }
    }

    /// Messages that were offered are no longer wanted.
    pub(super) fn withdraw(&mut self, places: &[Place]) {
        for place in places {
            self.requests.remove(place);
            if let Some(number) = self.out.withdraw(*place) {
                self.say_withdrawn(number);
            }
        }
    }

    pub(super) fn say_withdrawn(&mut self, number: u64) {
        if self.can(Capabilities::WITHDRAW) {
            self.send(Frame::Withdraw(Range { from: number, to: number }));
        }
    }

    fn withdraw_heard(&mut self, range: Range) -> Result<(), Code> {
        let (nacks, begun) = self.inc.withdraw(range)?;
        nacks.into_iter().for_each(|frame| self.send(frame));
        if let Some(life) = self.life {
            let id = |number| InboundId { epoch: life.epoch, number };
            begun.into_iter().for_each(|number| self.event(Event::Withdrawn(id(number))));
        }
        Ok(())
    }

    pub(super) fn verdicts(&mut self, verdicts: Vec<(InboundId, Verdict)>) {
        let Some(life) = self.life else { return };
        for (id, verdict) in verdicts.into_iter().filter(|(id, _)| id.epoch == life.epoch) {
            let verdict = match verdict {
                // The answer is too long to be kept until it was heard, or for the peer: the message was taken all the same.
                Verdict::Replied(payload) if !self.reply_fits(id.number, &payload) => {
                    self.event(Event::ReplyTooLarge { bytes: payload.len() });
                    Verdict::Delivered
                }
                verdict => verdict,
            };
            let frames = self.inc.decide(id.number, verdict, self.now, self.config.ack_delay);
            frames.into_iter().for_each(|frame| self.send(frame));
        }
    }

    /// Whether an answer may be kept, and goes into a frame that the peer takes.
    fn reply_fits(&self, number: u64, payload: &bytes::Bytes) -> bool {
        let frame = || Frame::Reply { number, payload: payload.clone() };
        payload.len() <= self.config.max_reply_bytes && self.fits(payload.len() as u64, frame)
    }

    /// Whether a frame with so many bytes of a host's is no larger than the peer of the open connection takes. It is measured
    /// only where that is in doubt: a byte becomes six at most, and the rest of a frame is small.
    pub(super) fn fits(&self, cost: u64, frame: impl FnOnce() -> Frame) -> bool {
        const REST: u64 = 2048;
        let Link::Up(up) = &self.link else { return true };
        if cost.saturating_add(REST).saturating_mul(6) <= up.max_frame {
            return true;
        }
        let mut bytes = Vec::new();
        encode(&frame(), up.codec, &mut bytes);
        bytes.len() as u64 <= up.max_frame
    }

    /// Everything of a lane up to a place has ended: the newest floor is kept for the next handshake.
    pub(super) fn floor(&mut self, place: Place) {
        let Some(known) = self.floors.get_mut(place.lane.index()) else { return };
        if known.is_none_or(|known| known.seq < place.seq) {
            *known = Some(place);
            self.send(Frame::Floor(place));
        }
    }

    pub(super) fn go_away(&mut self, refused: Refused) {
        self.going();
        if let Link::Up(up) = &mut self.link {
            let within = refused.retry_after.unwrap_or_default().max(LEAVE_WITHIN);
            // Whoever asks again asks for nothing later.
            if refused.code != Code::Draining {
                let at = self.now.after(within);
                up.leaving = up.leaving.filter(|(_, before)| *before <= at).or(Some((refused.code, at)));
            }
        }
        self.send(Frame::GoAway(refused));
    }

    fn going(&mut self) {
        if let Link::Up(up) = &mut self.link {
            up.going = true;
        }
        self.out.park(self.config.busy);
    }

    const fn is_going(&self) -> bool {
        matches!(&self.link, Link::Up(up) if up.going)
    }

    pub(super) fn close(&mut self, refused: Refused) {
        let code = refused.code;
        self.end_connection(refused, true);
        if code.is_terminal() && !self.is_over() {
            self.over(code);
        }
    }

    /// What is due.
    pub(super) fn keep_time(&mut self) {
        let now = self.now;
        match &mut self.link {
            Link::Over => return,
            Link::Down(since) => {
                if self.life.is_some() && now >= since.after(self.config.keep) {
                    match self.role {
                        Role::Acceptor => self.over(Code::TransportLost),
                        // Its next hello starts a new session.
                        Role::Connector => self.forget(),
                    }
                }
            }
            Link::Greeting(_, said) => {
                if now >= said.after(self.config.handshake_timeout) {
                    self.gone(Code::HandshakeTimeout, false);
                }
            }
            Link::Up(up) => match up.heart.poll(now) {
                Beat::Rest => {}
                Beat::Ping(nonce) => {
                    let rtt = self.quality.rtt();
                    self.send(Frame::Ping { nonce, rtt });
                }
                Beat::Dead => self.gone(Code::HeartbeatTimeout, true),
            },
        }
        self.watch_leaving();
        self.watch_rival();
        self.watch_credentials();
        self.watch_requests();
        self.watch_consumer();
    }

    /// A peer that was asked to leave, and has something under way for ever, goes when it was asked to be elsewhere.
    fn watch_leaving(&mut self) {
        if let Link::Up(Up { leaving: Some((code, at)), .. }) = &self.link
            && *at <= self.now
        {
            let refused = Refused { retry_after: Some(Duration::ZERO), ..Self::refused(*code) };
            self.end_connection(refused, true);
        }
    }

    fn watch_credentials(&mut self) {
        let expired = self.expiry.at().is_some_and(|at| at <= self.now);
        let Link::Up(up) = &mut self.link else {
            // Without a connection nobody can renew: an acceptor's session ends with its credentials.
            if expired && self.role == Role::Acceptor && self.life.is_some() {
                self.over(Code::SessionExpired);
            }
            return;
        };
        match self.role {
            Role::Acceptor if expired => {
                self.end_connection(Self::refused(Code::SessionExpired), true);
            }
            Role::Acceptor => {
                if let Some(credentials) = up.renewals.take_due(self.now) {
                    self.event(Event::Authenticate(credentials));
                }
            }
            Role::Connector => {
                if self.expiry.take_due(self.now) {
                    self.event(Event::RenewSoon);
                }
            }
        }
    }

    /// All that was sent over a connection has been handed over. Of a peer that does not acknowledge, no more can be said.
    pub(super) fn written(&mut self, conn: ConnId) {
        if self.connection() == Some(conn) && !self.can(Capabilities::ACKS) {
            self.out.unconfirm();
            self.moved();
        }
    }

    /// Sends what can be sent.
    pub(super) fn pump(&mut self) {
        let Link::Up(up) = &mut self.link else { return };
        let room = FrameRoom {
            items: self.config.limits.max_items,
            batch_bytes: self.config.max_batch_bytes.min(up.max_frame),
            frame_bytes: up.max_frame,
            codec: up.codec,
        };
        let lingers = self.out.has_work() && !self.out.is_urgent() && !self.config.linger.is_zero();
        let until = *up.linger_until.get_or_insert(self.now.after(self.config.linger));
        if !lingers || until <= self.now {
            up.linger_until = None;
            while let Some(frame) = self.out.poll(self.now, room) {
                self.send(frame);
            }
        }
        while let Some(frame) = self.inc.poll_ack(self.now, self.config.ack_every) {
            self.send(frame);
        }
    }

    /// When to say [`Input::Tick`](super::Input::Tick), unless something happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let greeting = |said: Timestamp| said.after(self.config.handshake_timeout);
        let (link, up) = match &self.link {
            Link::Over => return None,
            Link::Down(since) => (self.life.map(|_| since.after(self.config.keep)), None),
            Link::Greeting(_, said) => (Some(greeting(*said)), None),
            Link::Up(up) => (Some(up.heart.timeout()), Some(up)),
        };
        let expires = match self.role {
            Role::Acceptor => self.expiry.at().filter(|_| up.is_some() || self.life.is_some()),
            Role::Connector => self.expiry.ask_at().filter(|_| up.is_some()),
        };
        let rival =
            up.and_then(|up| up.rival.as_ref()).map(|rival| rival.deadline(self.config.handshake_timeout));
        let renewals = up.and_then(|up| up.renewals.ask_at());
        let consumer = self.out.waiting_since().filter(|_| up.is_some()).and_then(|since| {
            let stall = (!self.stalled).then_some(since.after(self.config.stall_after));
            let park = (!self.parked).then_some(since.after(self.config.park_after));
            stall.into_iter().chain(park).min()
        });
        let oldest = self.out.oldest().map(|since| since.after(self.config.park_after));
        let leaving = up.and_then(|up| up.leaving).map(|(_, at)| at);
        let linger = up.and_then(|up| up.linger_until).filter(|_| self.out.has_work());
        let acks = up.and(self.inc.ack_at());
        let requests = self.requests.values().min().copied();
        let times = [link, leaving, rival, expires, renewals, consumer, oldest, linger, acks, requests];
        times.into_iter().flatten().min()
    }
}
