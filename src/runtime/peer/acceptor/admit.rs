//! From a connection to a session: hello in time, admission, authentication; or a rejection that says what to do.

use core::time::Duration;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::super::conn::{Conn, Heard};
use super::Inner;
use super::registry::{Arrival, Command, Connection, Entry, Peer};
use super::task::SessionTask;
use crate::ports::{Claim, Denied, Identity, Transport, TransportError};
use crate::runtime::builder::random;
use crate::runtime::contain::{Running, called};
use crate::runtime::tasks;
use crate::session::frame::{Codec, DecodeError, Frame, Hello, Refused, Token, decode};
use crate::session::{Code, ConnId, Grade, Grant, Greeted, Greeter};

/// Commands that wait for one session's task.
const MAX_COMMANDS: usize = 8;
/// How long somebody who finds no room is asked to wait, besides the jitter.
const FULL: Duration = Duration::from_secs(5);

/// Why a connection gets no further.
enum Stop {
    /// It is gone.
    Gone,
    /// It is refused. A fault of its own costs its address a penalty.
    Refused { refused: Refused, fault: bool, why: String },
}

impl Stop {
    fn fault(refused: Refused) -> Self {
        let why = refused.text.clone();
        Self::Refused { refused, fault: true, why }
    }

    fn no_fault(refused: Refused) -> Self {
        let why = refused.text.clone();
        Self::Refused { refused, fault: false, why }
    }
}

/// A connection on its way to a session.
struct Candidate {
    conn: Conn,
    greeter: Greeter,
    /// What its hello is written in, and so what it reads.
    codec: Codec,
}

impl Inner {
    /// Takes a connection to its session, or says why not.
    pub(super) async fn welcome(
        self: Arc<Self>,
        id: ConnId,
        transport: impl Transport,
        name: &'static str,
        address: String,
    ) {
        let engine = &self.policy.engine.inner;
        let Some(conn) = called(|| Conn::new(id, transport)) else { return };
        let greeter = Greeter::new(engine.clock.now(), &self.session);
        let mut candidate = Candidate { conn, greeter, codec: Codec::Binary };
        let permit = self.handshakes.clone().try_acquire_owned();
        let judged = match &permit {
            Ok(_) => {
                let judging = self.judge(&mut candidate, &address);
                let late = candidate_timed_out();
                tokio::time::timeout(self.session.handshake_timeout, judging).await.unwrap_or(Err(late))
            }
            Err(_) => Err(Stop::no_fault(self.come_back(Code::Overloaded))),
        };
        match judged {
            Ok((hello, identity)) => {
                let peer = Peer::new(identity.user.clone(), hello.device.clone());
                let grant = self.grant(identity);
                let arrival = Arrival { conn: candidate.conn, hello, grant, transport: name, address };
                self.admit(peer, Box::new(arrival)).await;
            }
            Err(Stop::Gone) => candidate.conn.close(Code::Done, &engine.handle),
            Err(Stop::Refused { refused, fault, why }) => {
                if fault {
                    self.failed(&address);
                }
                self.reject(candidate.conn, candidate.codec, refused, &address, &why);
            }
        }
    }

    /// Hello, admission, authentication, in this order: each costs more than the one before.
    async fn judge(&self, candidate: &mut Candidate, address: &str) -> Result<(Box<Hello>, Identity), Stop> {
        if self.closing.load(Ordering::Acquire) {
            let slot = self.admission.lock().slot(self.policy.engine.inner.clock.now());
            return Err(Stop::no_fault(super::draining(Some(slot))));
        }
        let hello = self.hello(candidate).await?;
        let now = self.policy.engine.inner.clock.now();
        let arrived = self.admission.lock().arrive(now, address.as_bytes(), hello.device.as_bytes());
        arrived.map_err(Stop::no_fault)?;
        let claim = Claim::new(hello.user.clone(), hello.device.clone(), hello.credentials.clone());
        let identity = self.identify(candidate, claim).await?;
        let now = self.policy.engine.inner.clock.now();
        let identified = self.admission.lock().identify(now, &identity.user);
        identified.map_err(Stop::no_fault)?;
        Ok((hello, identity))
    }

    async fn hello(&self, candidate: &mut Candidate) -> Result<Box<Hello>, Stop> {
        let heard = poll_fn(|context| candidate.conn.poll_io(context)).await;
        match self.greeted(candidate, heard)? {
            Greeted::Authenticate(hello) => Ok(hello),
            Greeted::Reject(frame) => Err(rejected(frame)),
        }
    }

    fn greeted(&self, candidate: &mut Candidate, heard: Heard) -> Result<Greeted, Stop> {
        let frame = match heard {
            Heard::Bytes(bytes) => {
                self.counters.frame_in(bytes.len());
                #[cfg(feature = "json")]
                if bytes.first() == Some(&b'{') {
                    candidate.codec = Codec::Json;
                }
                decode(&bytes, &self.session.limits)
            }
            Heard::Broken(TransportError::TooLarge { limit }) => {
                Err(DecodeError::TooLarge { bytes: limit.saturating_add(1), max: limit })
            }
            Heard::Closed | Heard::Broken(_) => return Err(Stop::Gone),
        };
        Ok(candidate.greeter.first(frame, &self.session))
    }

    /// Asks who it is, while the connection stands and is silent.
    async fn identify(&self, candidate: &mut Candidate, claim: Claim) -> Result<Identity, Stop> {
        let mut asking = self.authenticate(claim);
        let conn = &mut candidate.conn;
        let answer = poll_fn(|context| match asking.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(Ok(answer)),
            Poll::Pending => conn.poll_io(context).map(Err),
        })
        .await;
        match answer {
            Ok(Some(Ok(identity))) => Ok(identity),
            Ok(Some(Err(denied))) => {
                let (code, retry_after) = (denied.code, denied.retry_after);
                let refused = Refused { code, retry_after, text: code.text().to_owned() };
                let fault = matches!(code, Code::CredentialsRefused | Code::Forbidden);
                Err(Stop::Refused { refused, fault, why: denied.text })
            }
            Ok(None) => {
                let (refused, why) =
                    (self.come_back(Code::Overloaded), "the authenticator panicked".to_owned());
                Err(Stop::Refused { refused, fault: false, why })
            }
            Err(heard) => match self.greeted(candidate, heard)? {
                Greeted::Reject(frame) => Err(rejected(frame)),
                Greeted::Authenticate(_) => Err(Stop::Gone),
            },
        }
    }

    /// Asks the host's authenticator.
    pub(super) fn authenticate(&self, claim: Claim) -> Running<'static, Option<Result<Identity, Denied>>> {
        self.authenticator.clone().authenticate(claim)
    }

    fn grant(&self, identity: Identity) -> Grant {
        let now = self.policy.engine.inner.clock.now();
        Grant {
            user: identity.user,
            expires: identity.expires_in.map(|expires_in| now.after(expires_in)),
            token: Token::from_u128(random()),
            epoch: self.next_epoch.fetch_add(1, Ordering::Relaxed),
            published: 0,
        }
    }

    /// Hands a connection to its session's task, which is started if there is none.
    async fn admit(self: Arc<Self>, peer: Peer, arrival: Box<Arrival>) {
        let mut arrival = arrival;
        loop {
            if self.closing.load(Ordering::Acquire) {
                let slot = self.admission.lock().slot(self.policy.engine.inner.clock.now());
                let codec = arrival.hello.codecs.and(self.session.codecs).best().unwrap_or(Codec::Binary);
                let refused = super::draining(Some(slot));
                return self.reject(arrival.conn, codec, refused, &arrival.address, "shutting down");
            }
            if self.registry.find(&peer).is_none() && self.registry.len() >= self.max_sessions {
                let refused = self.come_back(Code::Overloaded);
                let codec = arrival.hello.codecs.and(self.session.codecs).best().unwrap_or(Codec::Binary);
                return self.reject(
                    arrival.conn,
                    codec,
                    refused,
                    &arrival.address,
                    "no room for one more session",
                );
            }
            let entry = self.registry.find_or(&peer, || self.clone().start(&peer, &arrival));
            match entry.commands.send(Command::Admit(arrival)).await {
                Ok(()) => return,
                // It has just ended; the next one is made.
                Err(mpsc::error::SendError(Command::Admit(back))) => {
                    self.registry.remove(&peer, entry.serial);
                    arrival = back;
                }
                Err(_) => return,
            }
        }
    }

    /// As [`Inner::admit`], from a task that ends.
    pub(super) fn admit_later(self: Arc<Self>, peer: Peer, arrival: Box<Arrival>) {
        let handle = self.policy.engine.inner.handle.clone();
        tasks::spawn(&handle, self.admit(peer, arrival));
    }

    fn start(self: Arc<Self>, peer: &Peer, arrival: &Arrival) -> Arc<Entry> {
        let (commands, taken) = mpsc::channel(MAX_COMMANDS);
        let info = Connection {
            peer: peer.clone(),
            transport: arrival.transport,
            address: arrival.address.clone(),
            is_open: false,
            since: self.policy.engine.inner.clock.now(),
            resumed: false,
            grade: Grade::Good,
            rtt: None,
            is_parked: false,
        };
        let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry { serial, commands, info: Mutex::new(info) });
        let handle = self.policy.engine.inner.handle.clone();
        tasks::spawn(&handle, SessionTask::new(self, peer.clone(), entry.clone(), taken).run());
        entry
    }

    fn reject(&self, mut conn: Conn, codec: Codec, refused: Refused, address: &str, why: &str) {
        let engine = &self.policy.engine.inner;
        self.rejections.note(engine.clock.now(), refused.code, address, why);
        let code = refused.code;
        conn.send(&Frame::Reject(refused), codec);
        conn.close(code, &engine.handle);
    }

    /// A refusal with a time to come back, in a slot of its own.
    fn come_back(&self, code: Code) -> Refused {
        let slot = self.admission.lock().slot(self.policy.engine.inner.clock.now());
        Refused { code, retry_after: Some(slot.max(FULL)), text: code.text().to_owned() }
    }

    /// A connection from there failed by its own fault.
    pub(super) fn failed(&self, address: &str) {
        let now = self.policy.engine.inner.clock.now();
        self.admission.lock().failed(now, address.as_bytes());
    }

    pub(super) fn opened(&self, resumed: bool) {
        self.tally.opened.fetch_add(1, Ordering::Relaxed);
        if resumed {
            self.tally.resumed.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn lost(&self, peer: &Peer, code: Code) {
        self.tally.lost.fetch_add(1, Ordering::Relaxed);
        if code == Code::TakenOver {
            self.tally.taken_over.fetch_add(1, Ordering::Relaxed);
            tracing::info!(user = %peer.user, device = %peer.device, "the same device has connected elsewhere");
        }
    }

    /// Every publish of this device up to there was decided.
    pub(super) fn published(&self, peer: &Peer) -> u64 {
        self.published.lock().get(peer).copied().unwrap_or(0)
    }

    /// Remembers that, beyond the session.
    pub(super) fn note_published(&self, peer: &Peer, published: u64) {
        if published > 0 {
            self.published.lock().put(peer.clone(), published);
        }
    }
}

fn candidate_timed_out() -> Stop {
    let code = Code::HandshakeTimeout;
    Stop::no_fault(Refused { code, retry_after: None, text: code.text().to_owned() })
}

/// A greeter's rejection is the peer's fault.
fn rejected(frame: Frame) -> Stop {
    match frame {
        Frame::Reject(refused) => Stop::fault(refused),
        _ => Stop::Gone,
    }
}
