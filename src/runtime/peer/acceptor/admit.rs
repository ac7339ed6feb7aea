//! From a connection to a session: hello in time, admission, authentication; or a rejection that says what to do.

use core::time::Duration;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::super::conn::{Conn, Heard};
use super::Inner;
use super::registry::{Arrival, Command, Connection, Entry, Peer};
use super::task::SessionTask;
use crate::id::UserId;
use crate::ports::{Claim, Denied, Identity, Transport, TransportError};
use crate::runtime::builder::random;
use crate::runtime::contain::{Running, called};
use crate::runtime::tasks;
use crate::session::frame::{Codec, DecodeError, Frame, Hello, Refused, Token, decode};
use crate::session::{Code, ConnId, Grade, Grant, Greeted, Greeter};

/// Commands that wait for one session's task.
const MAX_COMMANDS: usize = 8;
/// How long whoever is turned away before their hello has for saying it, so that they are answered in a codec they read.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

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

/// A handshake that is under way: one of all, and one of its address.
struct Handshaking<'a> {
    inner: &'a Inner,
    address: &'a str,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Handshaking<'_> {
    fn drop(&mut self) {
        self.inner.admission.lock().done(self.address.as_bytes());
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
        let inner = self.clone();
        let _place = match inner.begin(&address) {
            Ok(place) => place,
            Err(refused) => return self.turn_away(candidate, refused, &address).await,
        };
        let judging = self.judge(&mut candidate, &address);
        match judging.await {
            Ok((hello, identity)) => {
                let peer = Peer::new(identity.user.clone(), hello.device.clone());
                let grant = self.grant(identity);
                let address = address.clone();
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

    /// Whether there is room for one more handshake. Nothing was read, so no token is taken, and no slot is given.
    fn begin<'a>(&'a self, address: &'a str) -> Result<Handshaking<'a>, Refused> {
        let permit = self.handshakes.clone().try_acquire_owned();
        let permit = permit.map_err(|_| self.come_back(Code::Overloaded))?;
        self.admission.lock().begin(self.policy.engine.inner.clock.now(), address.as_bytes())?;
        Ok(Handshaking { inner: self, address, _permit: permit })
    }

    /// Refuses a connection for which there was no room, once its hello says what it reads. When many are being refused
    /// already, it is closed without a word.
    async fn turn_away(&self, mut candidate: Candidate, refused: Refused, address: &str) {
        let engine = &self.policy.engine.inner;
        self.rejections.note(engine.clock.now(), refused.code, address, &refused.text);
        let Ok(farewell) = self.farewells.clone().try_acquire_owned() else { return };
        let hello = poll_fn(|context| candidate.conn.poll_io(context));
        let code = refused.code;
        if let Ok(Heard::Bytes(bytes)) = tokio::time::timeout(HELLO_WITHIN, hello).await {
            candidate.conn.send(&Frame::Reject(refused), codec_of(&bytes));
        }
        candidate.conn.close_and_drop(code, &engine.handle, farewell);
    }

    /// Hello, admission, authentication, in this order: each costs more than the one before.
    async fn judge(&self, candidate: &mut Candidate, address: &str) -> Result<(Box<Hello>, Identity), Stop> {
        let within = self.session.handshake_timeout;
        let hello = tokio::time::timeout(within, self.hello(candidate)).await;
        let hello = hello.unwrap_or_else(|_| Err(self.late(&candidate.greeter)))?;
        if self.closing.load(Ordering::Acquire) {
            return Err(Stop::no_fault(self.come_back(Code::Draining)));
        }
        let now = self.policy.engine.inner.clock.now();
        let arrived = self.admission.lock().arrive(now, address.as_bytes(), &client(&hello));
        arrived.map_err(Stop::no_fault)?;
        let claim = Claim::new(hello.user.clone(), hello.device.clone(), hello.credentials.clone());
        let within = Greeter::answer_within(&self.session);
        let identity = tokio::time::timeout(within, self.identify(candidate, claim)).await;
        let identity = identity.unwrap_or_else(|_| Err(self.late(&candidate.greeter)))?;
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
                candidate.codec = codec_of(&bytes);
                decode(&bytes, &Greeter::limits(&self.session))
            }
            Heard::Broken(TransportError::TooLarge { limit }) => {
                Err(DecodeError::TooLarge { bytes: limit.saturating_add(1), max: limit })
            }
            Heard::Closed | Heard::Broken(_) | Heard::Written => return Err(Stop::Gone),
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

    /// Whoever has said hello is not to think that its transport is to blame.
    fn late(&self, greeter: &Greeter) -> Stop {
        match greeter.timed_out() {
            Greeted::Reject(Frame::Reject(refused)) if refused.code == Code::Overloaded => {
                let retry_after = self.come_back(Code::Overloaded).retry_after;
                Stop::no_fault(Refused { retry_after, ..refused })
            }
            Greeted::Reject(Frame::Reject(refused)) => Stop::no_fault(refused),
            Greeted::Reject(_) | Greeted::Authenticate(_) => Stop::Gone,
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
        loop {
            if self.closing.load(Ordering::Acquire) {
                return self.reject_arrival(*arrival, Code::Draining, "shutting down");
            }
            let start = || self.clone().start(&peer, &arrival);
            let Some(entry) = self.registry.find_or(&peer, self.max_sessions, start) else {
                return self.reject_arrival(*arrival, Code::Overloaded, "no room for one more session");
            };
            // A session that is held up by a disk, say, must not hold up handshakes as well.
            let place = tokio::time::timeout(self.session.handshake_timeout, entry.commands.reserve()).await;
            match place {
                Ok(Ok(place)) => return place.send(Command::Admit(arrival)),
                // It has just ended; the next one is made.
                Ok(Err(_)) => self.registry.remove(&peer, entry.serial),
                Err(_) => {
                    return self.reject_arrival(*arrival, Code::Overloaded, "its session is held up");
                }
            }
        }
    }

    /// Turns away whoever is known already.
    fn reject_arrival(&self, arrival: Arrival, code: Code, why: &str) {
        let codec = arrival.hello.codecs.and(self.session.codecs).best().unwrap_or(Codec::Binary);
        self.reject(arrival.conn, codec, self.come_back(code), &arrival.address, why);
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
            quality: None,
            is_parked: false,
        };
        let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            serial,
            commands,
            info: Mutex::new(info),
            client: Mutex::new(client(&arrival.hello)),
        });
        let handle = self.policy.engine.inner.handle.clone();
        tasks::spawn(&handle, SessionTask::new(self, peer.clone(), entry.clone(), taken).run());
        entry
    }

    fn reject(&self, mut conn: Conn, codec: Codec, refused: Refused, address: &str, why: &str) {
        let engine = &self.policy.engine.inner;
        self.rejections.note(engine.clock.now(), refused.code, address, why);
        let code = refused.code;
        // Whoever does not take it may hold it up for a while: not all of them at once.
        let Ok(farewell) = self.farewells.clone().try_acquire_owned() else { return };
        conn.send(&Frame::Reject(refused), codec);
        conn.close_and_drop(code, &engine.handle, farewell);
    }

    /// A refusal with a time to come back, for which nothing is reserved.
    fn come_back(&self, code: Code) -> Refused {
        self.admission.lock().later(code)
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
        let (user, device) = (&peer.user, &peer.device);
        match code {
            Code::TakenOver => {
                self.tally.taken_over.fetch_add(1, Ordering::Relaxed);
                tracing::info!(%user, %device, "the same device has connected elsewhere");
            }
            Code::SessionExpired => tracing::info!(%user, %device, "a session has ended: {code}"),
            code => tracing::debug!(%user, %device, "a connection is over: {code}"),
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

/// What the peer reads, by what it wrote.
fn codec_of(bytes: &[u8]) -> Codec {
    #[cfg(feature = "json")]
    if bytes.first() == Some(&b'{') {
        return Codec::Json;
    }
    let _ = bytes;
    Codec::Binary
}

/// What tells clients behind one address apart: who they say they are, and which device.
pub(super) fn client(hello: &Hello) -> Vec<u8> {
    let user = hello.user.as_ref().map_or(&[][..], UserId::as_bytes);
    let len = u8::try_from(user.len()).unwrap_or(u8::MAX);
    [&[len], user, hello.device.as_bytes()].concat()
}

/// A greeter's rejection is the peer's fault.
fn rejected(frame: Frame) -> Stop {
    match frame {
        Frame::Reject(refused) => Stop::fault(refused),
        _ => Stop::Gone,
    }
}
