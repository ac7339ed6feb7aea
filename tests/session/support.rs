//! What the tests of sessions share: a server, clients of it, and ways between them that can be shut.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lastmile::machine::Delivery;
use lastmile::ports::{Authenticator, Claim, ConnectError, Connector, Denied, Identity};
use lastmile::storage::MemoryStore;
use lastmile::testing::ScriptedSink;
use lastmile::{Acceptor, Client, ClientBuilder, Config, Engine, MemoryTransport, Message, memory_transport};

pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Believes everybody.
pub(crate) struct ByName;

impl Authenticator for ByName {
    async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
        claim.user.map(Identity::new).ok_or_else(|| Denied::refused("no name"))
    }
}

pub(crate) struct Server {
    pub(crate) engine: Engine,
    pub(crate) acceptor: Acceptor,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(crate) fn with(config: Config) -> Self {
        let engine = Engine::builder(MemoryStore::new()).config(config).build().unwrap();
        let acceptor = Acceptor::builder(engine.clone(), ByName).build().unwrap();
        Self { engine, acceptor }
    }
}

/// A way to a server that may be shut.
#[derive(Clone)]
pub(crate) struct Gate(Arc<AtomicBool>);

impl Gate {
    pub(crate) fn opened() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    pub(crate) fn shut() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(crate) fn close(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    pub(crate) fn connector(&self, server: &Server) -> To {
        To { name: "gated", acceptor: server.acceptor.clone(), open: self.0.clone() }
    }
}

/// Connects to a server, while that is possible.
pub(crate) struct To {
    pub(crate) name: &'static str,
    pub(crate) acceptor: Acceptor,
    pub(crate) open: Arc<AtomicBool>,
}

impl Connector for To {
    type Transport = MemoryTransport;

    fn name(&self) -> &'static str {
        self.name
    }

    async fn connect(&self) -> Result<MemoryTransport, ConnectError> {
        if !self.open.load(Ordering::SeqCst) {
            return Err(ConnectError::unreachable("shut"));
        }
        let (ours, theirs) = memory_transport();
        self.acceptor.accept(theirs, self.name, "here");
        Ok(ours)
    }
}

pub(crate) fn to(server: &Server) -> To {
    To { name: "memory", acceptor: server.acceptor.clone(), open: Arc::new(AtomicBool::new(true)) }
}

/// A client of a server that is asked for nothing.
pub(crate) fn client(user: &str, server: &Server) -> ClientBuilder {
    Client::builder(Engine::builder(MemoryStore::new()), user, "phone").connector(to(server)).seed(7)
}

/// As [`client`], with no way to anybody yet.
pub(crate) fn lonely(user: &str) -> ClientBuilder {
    Client::builder(Engine::builder(MemoryStore::new()), user, "phone").seed(7)
}

pub(crate) fn message(to: &str, text: &str) -> Message {
    Message::to(to, "chat.message", text.to_owned()).build().unwrap()
}

/// A sink for what comes to a client; it stays for the test.
pub(crate) fn screen(client: &Client) -> ScriptedSink {
    let sink = ScriptedSink::new();
    std::mem::forget(client.attach("screen", sink.clone()).unwrap());
    sink
}

pub(crate) async fn next(sink: &ScriptedSink) -> Delivery {
    tokio::time::timeout(LONG, sink.next()).await.expect("nothing was delivered").delivery
}

/// Text and sender of the next messages.
pub(crate) async fn texts(sink: &ScriptedSink, count: usize) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for _ in 0..count {
        let message = next(sink).await.message;
        let sender = message.sender().map(ToString::to_string).unwrap_or_default();
        texts.push((String::from_utf8(message.payload().to_vec()).unwrap(), sender));
    }
    texts
}

pub(crate) async fn online(client: &Client) {
    let mut watch = client.watch();
    tokio::time::timeout(LONG, watch.wait_for(|state| state.is_online()))
        .await
        .expect("never online")
        .unwrap();
}
