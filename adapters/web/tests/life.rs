//! What a connection leaves behind when it has gone: nothing, at either end, whichever way it went.

mod common;

use std::time::Duration;

use common::light::Light;
use common::{LONG, spawn};
use lastmile::ports::{Authenticator, Claim, Denied, Identity};
use lastmile::session::{AdmissionConfig, Rate, SessionConfig};
use lastmile::storage::MemoryStore;
use lastmile::{Acceptor, Engine, UserId};
use lastmile_web::{ServeConfig, Web, WebClient, WebConfig};
use peak_alloc::PeakAlloc;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Lives of a round, a third of them by each way.
const LIVES: usize = 1_000;
/// A table that is kept for everybody may grow in a round, but not in each of so many: what lives leave does.
const ROUNDS: usize = 5;
/// Less than a pointer for each life of one way, in bytes.
const SLACK: usize = LIVES;

struct ByToken;

impl Authenticator for ByToken {
    async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
        UserId::new(&claim.credentials.0).map(Identity::new).map_err(Denied::refused)
    }
}

struct World {
    acceptor: Acceptor,
    web: Web,
    client: WebClient,
    stop: oneshot::Sender<()>,
}

async fn world() -> World {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let any = Rate { every: Duration::from_micros(10), burst: 100_000 };
    let mut admission = AdmissionConfig::default();
    (admission.address, admission.user, admission.global) = (any, any, any);
    let mut session = SessionConfig::default();
    // Nobody comes back to a session here.
    session.keep = Duration::from_millis(1);
    let acceptor = Acceptor::builder(engine, ByToken).session(session).admission(admission).build().unwrap();
    let mut config = WebConfig::default();
    config.poll_absence = Duration::from_secs(2);
    let web = Web::new(config);
    let app = web.router(acceptor.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/lastmile", listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    spawn(async move {
        let stopped = async { drop(stopped.await) };
        lastmile_web::serve(listener, app, ServeConfig::default(), stopped).await.unwrap();
    });
    World { acceptor, web, client: WebClient::new(&url).unwrap().no_proxy(), stop }
}

impl World {
    /// Somebody comes, by one of the ways, and goes without a word.
    async fn live(&self, number: usize) {
        let (name, client) = (format!("person{}", number % 7), &self.client);
        match number % 3 {
            0 => drop(Light::connect(&client.websocket(), &name, "phone", true).await),
            1 => drop(Light::connect(&client.sse(), &name, "phone", true).await),
            _ => drop(Light::connect(&client.long_poll(), &name, "phone", true).await),
        }
    }

    /// Waits until the server has noticed that everybody has gone.
    async fn is_empty(&self) {
        let empty = || {
            let (sessions, web) = (self.acceptor.stats(), self.web.stats());
            (sessions.sessions, sessions.open, web.connections, web.pending) == (0, 0, 0, 0)
        };
        let waited = until(LONG, empty).await;
        assert!(waited, "{:?}, {:?}", self.acceptor.stats(), self.web.stats());
    }
}

async fn until(time: Duration, mut done: impl FnMut() -> bool) -> bool {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(time, waiting).await.is_ok()
}

#[tokio::test]
async fn a_thousand_connections_that_have_gone_leave_no_session_no_place_and_no_memory() {
    let world = world().await;
    let mut growths = Vec::new();
    // They fill what is kept for everybody: tables, buffers, what is remembered of those who have gone.
    for number in 0..LIVES / 2 {
        world.live(number).await;
    }
    world.is_empty().await;
    for _ in 0..ROUNDS {
        let before = HEAP.current_usage();
        for number in 0..LIVES {
            world.live(number).await;
        }
        world.is_empty().await;
        // Tasks that end have no number of their own.
        if until(LONG / 36, || HEAP.current_usage() <= before + SLACK).await {
            println!(
                "{LIVES} connections left {} bytes, after {growths:?}",
                HEAP.current_usage() as i64 - before as i64
            );
            drop(world.stop);
            return;
        }
        growths.push(HEAP.current_usage() - before);
    }
    panic!("each {LIVES} connections left so many bytes: {growths:?}");
}
