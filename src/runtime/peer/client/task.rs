//! The client's task: one session for as long as the client lives, over one connection after the other.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{mpsc, watch};

use super::super::alarm::Alarm;
use super::super::conn::Conn;
use super::super::pump::{Pump, Woken};
use super::state::ClientState;
use crate::id::UserId;
use crate::ports::{ConnectError, Connector, CredentialSource};
use crate::runtime::contain::{Running, contained};
use crate::session::frame::{Credentials, Refused};
use crate::session::{
    Advice, Code, ConnId, DialAction, DialInput, DialState, Dialer, Event, Input, Quality, Session,
};

/// The erased twin of [`Connector`].
pub(super) trait AnyConnector: Send + Sync {
    fn name(&self) -> &'static str;
    fn connect(self: Arc<Self>, id: ConnId) -> Running<'static, Option<Result<Conn, ConnectError>>>;
}

impl<C: Connector> AnyConnector for C {
    fn name(&self) -> &'static str {
        Connector::name(self)
    }

    fn connect(self: Arc<Self>, id: ConnId) -> Running<'static, Option<Result<Conn, ConnectError>>> {
        contained(async move { Connector::connect(&*self).await.map(|transport| Conn::new(id, transport)) })
    }
}

/// The erased twin of [`CredentialSource`].
pub(super) trait AnySource: Send + Sync {
    fn credentials(self: Arc<Self>, why: Option<Code>) -> Running<'static, Option<Option<Credentials>>>;
}

impl<S: CredentialSource> AnySource for S {
    fn credentials(self: Arc<Self>, why: Option<Code>) -> Running<'static, Option<Option<Credentials>>> {
        contained(async move { CredentialSource::credentials(&*self, why).await })
    }
}

/// What a client's task is told.
#[derive(Debug)]
pub(super) enum Command {
    NetworkChanged(Vec<usize>),
    Renew(Credentials),
    Reconnect,
    Stop,
}

pub(super) struct ClientTask {
    pub(super) user: UserId,
    pub(super) pump: Pump,
    pub(super) dialer: Dialer,
    pub(super) connectors: Vec<Arc<dyn AnyConnector>>,
    pub(super) source: Arc<dyn AnySource>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) state: watch::Sender<ClientState>,
    pub(super) worked: watch::Sender<Vec<usize>>,
    pub(super) quality: watch::Sender<Option<Quality>>,
    /// A new session, when nothing of the old one can be resumed.
    pub(super) afresh: Box<dyn Fn() -> Session + Send>,
    pub(super) doing: Doing,
}

/// What is under way.
#[derive(Default)]
pub(super) struct Doing {
    dialing: Option<Running<'static, Option<Result<Conn, ConnectError>>>>,
    asking: Option<Running<'static, Option<Option<Credentials>>>>,
    credentials: Option<Credentials>,
    last_conn: u64,
    /// What was shown last.
    quality: Option<Quality>,
    /// The transport that was dialled last.
    rung: usize,
    alarm: Alarm,
}

enum Next {
    Command(Option<Command>),
    Dialled(Option<Result<Conn, ConnectError>>),
    Asked(Option<Credentials>),
    Pump(Woken),
    Alarm,
}

impl ClientTask {
    /// Runs until it is told to stop, or no handle is left.
    pub(super) async fn run(mut self) {
        self.dial(DialInput::Start);
        loop {
            match self.next().await {
                Next::Command(None | Some(Command::Stop)) => break,
                next => self.take(next).await,
            }
            self.events().await;
            self.show_quality();
        }
        self.quality.send_replace(None);
        self.dial(DialInput::Close(Code::Ended));
        let code = Code::Done;
        let refused = Refused { code, retry_after: None, text: code.text().to_owned() };
        self.pump.handle(Input::Close(refused)).await;
    }

    async fn next(&mut self) -> Next {
        poll_fn(|context| {
            if let Poll::Ready(command) = self.commands.poll_recv(context) {
                return Poll::Ready(Next::Command(command));
            }
            if let Some(dialing) = self.doing.dialing.as_mut()
                && let Poll::Ready(dialled) = dialing.as_mut().poll(context)
            {
                self.doing.dialing = None;
                return Poll::Ready(Next::Dialled(dialled));
            }
            if let Some(asking) = self.doing.asking.as_mut()
                && let Poll::Ready(asked) = asking.as_mut().poll(context)
            {
                self.doing.asking = None;
                return Poll::Ready(Next::Asked(asked.flatten()));
            }
            let (now, at) = (self.pump.now(), self.dialer.poll_timeout());
            if self.doing.alarm.poll(context, now, at).is_ready() {
                return Poll::Ready(Next::Alarm);
            }
            self.pump.poll(context).map(Next::Pump)
        })
        .await
    }

    async fn take(&mut self, next: Next) {
        match next {
            Next::Command(Some(Command::NetworkChanged(worked))) => {
                self.dial(DialInput::NetworkChanged(worked));
            }
            Next::Command(Some(Command::Renew(credentials))) => self.credentials(Some(credentials)).await,
            Next::Command(Some(Command::Reconnect)) => self.dial(DialInput::Reopen),
            Next::Command(None | Some(Command::Stop)) => {}
            Next::Dialled(Some(Ok(conn))) => self.say_hello(conn).await,
            Next::Dialled(Some(Err(error))) => {
                self.log(error.code, &error.text);
                self.dial(DialInput::Failed(error.code, error.retry_after));
            }
            Next::Dialled(None) => {
                tracing::warn!("a connector panicked");
                self.dial(DialInput::Failed(Code::TransportLost, None));
            }
            Next::Asked(credentials) => self.credentials(credentials).await,
            Next::Pump(woken) => self.pump.woken(woken).await,
            Next::Alarm => self.dial(DialInput::Tick),
        }
    }

    async fn say_hello(&mut self, conn: Conn) {
        let Some(credentials) = self.doing.credentials.clone() else { return };
        self.dial(DialInput::Stands);
        let id = conn.id();
        self.pump.add(conn);
        self.pump.handle(Input::Connected(id, credentials)).await;
    }

    async fn credentials(&mut self, credentials: Option<Credentials>) {
        let Some(credentials) = credentials else { return self.dial(DialInput::NoCredentials) };
        self.doing.credentials = Some(credentials.clone());
        self.pump.handle(Input::Renew(credentials)).await;
        self.dial(DialInput::Credentials);
    }

    /// What the session has to say.
    async fn events(&mut self) {
        while let Some(event) = self.pump.take_event() {
            match event {
                Event::Opened { user, .. } if user == self.user => self.dial(DialInput::Opened),
                Event::Opened { user, .. } => {
                    tracing::warn!(%user, ours = %self.user, "the server takes us for somebody else");
                    let code = Code::Forbidden;
                    let refused = Refused { code, retry_after: None, text: code.text().to_owned() };
                    self.pump.handle(Input::Close(refused)).await;
                }
                // Nothing more to do if another connection has taken its place.
                Event::Lost { code, retry_after, text, .. } => {
                    self.log(code, &text);
                    if !self.pump.session().is_linked() {
                        self.dial(DialInput::Lost(code, retry_after));
                    }
                }
                Event::SwitchFailed { code, retry_after, text } => {
                    self.log(code, &text);
                    self.dial(DialInput::Failed(code, retry_after));
                }
                Event::Over(_) => {
                    let session = (self.afresh)();
                    self.pump.replace(session);
                }
                Event::Quality(grade) => {
                    self.state.send_if_modified(|state| match state {
                        ClientState::Online { quality, .. } => core::mem::replace(quality, grade) != grade,
                        _ => false,
                    });
                    self.dial(DialInput::Graded(grade));
                }
                // A source that takes its time is not asked the same again.
                Event::RenewSoon if self.doing.asking.is_none() => self.ask(None),
                Event::GoodUntil(until) => self.dial(DialInput::GoodUntil(until)),
                Event::GoingAway(refused) => self.dial(DialInput::GoingAway(refused.retry_after)),
                _ => {}
            }
        }
    }

    /// Most of what happens changes nothing of it.
    fn show_quality(&mut self) {
        let session = self.pump.session();
        let quality = session.connection().map(|_| *session.quality());
        if self.doing.quality != quality {
            self.doing.quality = quality;
            self.quality.send_replace(quality);
        }
    }

    /// Why a connection is over, or was not made: what somebody has to do about is not only for those who look for it.
    fn log(&self, code: Code, said: &str) {
        let transport = self.connectors.get(self.doing.rung).map_or("", |connector| connector.name());
        let (user, number) = (&self.user, code.number());
        match (code, code.advice()) {
            (Code::TakenOver | Code::SessionExpired, _) => {
                tracing::info!(%user, transport, error.r#type = number, said, "a connection is over: {code}");
            }
            (_, Advice::StartAfresh | Advice::RenewCredentials | Advice::GiveUp) | (Code::Malformed, _) => {
                tracing::warn!(%user, transport, error.r#type = number, said, "a connection is over: {code}");
            }
            _ => {
                tracing::debug!(%user, transport, error.r#type = number, said, "a connection is over: {code}")
            }
        }
    }

    fn ask(&mut self, why: Option<Code>) {
        self.doing.asking = Some(self.source.clone().credentials(why));
    }

    /// Tells the dialer, and does what it says.
    fn dial(&mut self, input: DialInput) {
        let now = self.pump.now();
        self.dialer.handle(now, input);
        while let Some(action) = self.dialer.poll_action() {
            match action {
                DialAction::AskCredentials(why) => self.ask(why),
                DialAction::Dial(rung) => {
                    self.doing.last_conn += 1;
                    self.doing.rung = rung;
                    let id = ConnId(self.doing.last_conn);
                    self.doing.dialing = self.connectors.get(rung).map(|made| made.clone().connect(id));
                }
                DialAction::Abandon => self.doing.dialing = None,
                DialAction::State(state) => self.show(state),
            }
        }
        let memory = self.dialer.memory();
        self.worked.send_if_modified(|worked| core::mem::replace(worked, memory.clone()) != memory);
    }

    fn show(&mut self, state: DialState) {
        let name = |rung: usize| self.connectors.get(rung).map_or("", |connector| connector.name());
        let state = match state {
            DialState::Offline(until, why) => {
                ClientState::Offline { retry_in: until.since(self.pump.now()), why }
            }
            DialState::NeedsCredentials(why) => ClientState::NeedsCredentials { why },
            DialState::Connecting(rung) => ClientState::Connecting { transport: name(rung) },
            DialState::Online(rung) => {
                let quality = self.pump.session().quality().grade();
                ClientState::Online { transport: name(rung), quality }
            }
            DialState::Closed(why) => ClientState::Closed { why },
        };
        tracing::debug!(?state, user = %self.user, "client");
        self.state.send_replace(state);
    }
}
