//! Connections come and go, engines and clients restart, devices take over: nothing is lost, and nothing comes twice.
#![cfg(all(feature = "runtime", feature = "sled", feature = "testing"))]

#[path = "session/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use lastmile::session::{AdmissionConfig, Code, DialerConfig, Rate, Strategy};
use lastmile::storage::{MemoryStore, SledStore};
use lastmile::testing::{Network, NetworkWeather, ScriptedSink, VirtualTime};
use lastmile::{Acceptor, Client, ClientBuilder, ClientState, Engine, Peer, Reached, Stage};

use support::{ByName, LONG, Server, client, message, online, texts};

fn generous() -> AdmissionConfig {
    let many = Rate { every: Duration::from_micros(1), burst: 1_000_000 };
    let mut config = AdmissionConfig::default();
    (config.address, config.user, config.global) = (many, many, many);
    config
}

fn impatient() -> DialerConfig {
    let mut config = DialerConfig::default();
    config.backoff_floor = Duration::from_millis(10);
    config.backoff_cap = Duration::from_millis(50);
    config
}

fn server() -> Server {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let acceptor = Acceptor::builder(engine.clone(), ByName).admission(generous()).build().unwrap();
    Server { engine, acceptor }
}

fn over(network: &Network, user: &str, server: &Server) -> ClientBuilder {
    support::lonely(user).connector(network.to(&server.acceptor, "network")).dialer(impatient())
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(LONG, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} never came to be"));
}

#[tokio::test]
async fn a_quiet_session_resumes_after_a_cut_with_nothing_repeated() {
    let (server, network) = (server(), Network::new(1, NetworkWeather::calm()));
    let alice = over(&network, "alice", &server).build().unwrap();
    let screen = support::screen(&alice);
    for round in 1..=5 {
        let receipt = server.engine.send(message("alice", &round.to_string())).await.unwrap();
        assert_eq!(receipt.reached(Stage::Delivered).await, Ok(Reached::Stage(Stage::Delivered)));
        network.cut_all();
        until("a new connection", || server.acceptor.stats().opened == 1 + round).await;
        online(&alice).await;
    }
    let stats = server.acceptor.stats();
    assert_eq!((stats.resumed, stats.sessions, stats.sent), (5, 1, 5), "{stats:?}");
    assert_eq!(screen.count(), 5);
    assert_eq!(alice.engine().stats().await.unwrap().duplicates, 0);
}

#[tokio::test]
async fn what_is_under_way_in_both_directions_when_a_connection_breaks_arrives_once_and_in_order() {
    let (server, network) = (server(), Network::new(2, NetworkWeather::calm()));
    let (alice, bob) =
        (over(&network, "alice", &server).build().unwrap(), over(&network, "bob", &server).build().unwrap());
    let screen = support::screen(&bob);
    for i in 0..300 {
        alice.send(message("bob", &i.to_string())).await.unwrap();
        if i % 30 == 0 {
            network.cut_all();
        }
    }
    let got: Vec<_> = texts(&screen, 300).await.into_iter().map(|(text, _)| text).collect();
    assert_eq!(got, (0..300).map(|i| i.to_string()).collect::<Vec<_>>());
    assert!(server.acceptor.stats().resumed > 0);
}

/// Opens a store, while tasks that have it end.
async fn open(path: &std::path::Path) -> SledStore {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || SledStore::open(path).unwrap()).await.unwrap()
}

#[tokio::test]
async fn engines_of_both_ends_restart_and_everything_arrives_once() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let network = Network::new(3, NetworkWeather::calm());
    let seen = ScriptedSink::new();
    let mut sent = 0;
    for round in 0..4 {
        let engine = Engine::builder(open(there.path()).await).build().unwrap();
        let acceptor = Acceptor::builder(engine.clone(), ByName).admission(generous()).build().unwrap();
        let client =
            Client::builder(Engine::builder(SledStore::open(here.path()).unwrap()), "alice", "phone")
                .connector(network.to(&acceptor, "network"))
                .dialer(impatient())
                .build()
                .unwrap();
        let _screen = client.attach("screen", seen.clone()).unwrap();
        for _ in 0..50 {
            // To herself, through the server: out by one end, in by the other.
            client.send(message("alice", &sent.to_string())).await.unwrap();
            sent += 1;
        }
        if round == 3 {
            until("everything", || seen.count() >= 200).await;
        }
        network.cut_all();
        if round % 2 == 0 {
            client.shutdown(Duration::ZERO).await;
            engine.shutdown(Duration::ZERO).await;
        }
        drop((client, acceptor));
        engine.shutdown(Duration::ZERO).await;
    }
    let mut texts = BTreeMap::new();
    let mut last = None;
    for offer in seen.offered(200).await {
        let text: u64 =
            String::from_utf8(offer.delivery.message.payload().to_vec()).unwrap().parse().unwrap();
        let times = texts.entry(text).or_insert(0);
        *times += 1;
        // A screen is shown again what it may not have seen to the end, and is told so.
        assert!(*times == 1 || offer.delivery.redelivered, "{text} came {times} times");
        if *times == 1 {
            assert!(last.is_none_or(|last| last < text), "{text} after {last:?}");
            last = Some(text);
        }
    }
    assert_eq!(texts.len(), 200);
}

#[tokio::test]
async fn a_device_that_connects_elsewhere_takes_over_and_the_old_one_gives_up() {
    let server = server();
    let old = client("alice", &server).build().unwrap();
    online(&old).await;
    let new = client("alice", &server).build().unwrap();
    let screen = support::screen(&new);
    let mut watch = old.watch();
    let closed =
        tokio::time::timeout(LONG, watch.wait_for(|state| matches!(state, ClientState::Closed { .. })));
    assert_eq!(closed.await.unwrap(), Some(ClientState::Closed { why: Code::TakenOver }));
    server.engine.send(message("alice", "to the new one")).await.unwrap();
    assert_eq!(texts(&screen, 1).await[0].0, "to the new one");
    assert_eq!(server.acceptor.stats().taken_over, 1);
    assert_eq!(server.acceptor.connections().len(), 1);
}

#[tokio::test]
async fn whoever_was_taken_over_takes_over_again_when_its_host_says_so_and_has_lost_nothing() {
    let server = server();
    let first = client("alice", &server).build().unwrap();
    online(&first).await;
    let second = client("alice", &server).build().unwrap();
    let taken_over = |state: &ClientState| *state == ClientState::Closed { why: Code::TakenOver };
    tokio::time::timeout(LONG, first.watch().wait_for(taken_over)).await.expect("taken over").unwrap();
    let receipt = first.send(message("bob", "written meanwhile")).await.unwrap();
    first.reconnect().await.unwrap();
    tokio::time::timeout(LONG, second.watch().wait_for(taken_over)).await.expect("taken over").unwrap();
    online(&first).await;
    assert_eq!(receipt.reached(Stage::Delivered).await, Ok(Reached::Stage(Stage::Delivered)));
    let screen = support::screen(&first);
    server.engine.send(message("alice", "to the first one")).await.unwrap();
    assert_eq!(texts(&screen, 1).await[0].0, "to the first one");
    // It is up: nothing happens.
    first.reconnect().await.unwrap();
    server.engine.send(message("alice", "still there")).await.unwrap();
    assert_eq!(texts(&screen, 1).await[0].0, "still there");
    assert_eq!(server.acceptor.stats().opened, 3);
    first.shutdown(LONG).await;
    assert!(first.reconnect().await.is_err(), "after a shutdown it stays closed");
}

#[tokio::test]
async fn a_host_may_decide_otherwise_about_an_error() {
    let server = server();
    let mut dialer = impatient();
    dialer.recovery.set(Code::Ended, Strategy::BackOff).unwrap();
    let alice = client("alice", &server).dialer(dialer).build().unwrap();
    online(&alice).await;
    let peer = Peer::new("alice".try_into().unwrap(), "phone".try_into().unwrap());
    assert!(server.acceptor.close(&peer, Code::Ended).await);
    until("a second session", || server.acceptor.stats().opened == 2).await;
    online(&alice).await;
}

#[tokio::test(start_paused = true)]
async fn a_half_open_connection_is_found_and_replaced() {
    let time = VirtualTime::start();
    let engine = Engine::builder(MemoryStore::new()).clock(time.clock()).build().unwrap();
    let acceptor = Acceptor::builder(engine.clone(), ByName).admission(generous()).build().unwrap();
    let server = Server { engine, acceptor };
    let network = Network::new(4, NetworkWeather::calm());
    let alice = Client::builder(Engine::builder(MemoryStore::new()).clock(time.clock()), "alice", "phone")
        .connector(network.to(&server.acceptor, "network"))
        .build()
        .unwrap();
    let screen = support::screen(&alice);
    online(&alice).await;
    network.silence_all();
    server.engine.send(message("alice", "through the next one")).await.unwrap();
    let got = tokio::time::timeout(Duration::from_secs(120), screen.next()).await.expect("found in 35 s");
    assert_eq!(got.delivery.message.payload().as_ref(), b"through the next one");
    assert_eq!(server.acceptor.stats().resumed, 1);
}

/// They are told to come back, each at another time.
async fn assert_apart(clients: &[Client]) {
    let mut slots: Vec<_> = Vec::new();
    for client in clients {
        let mut watch = client.watch();
        let offline = watch.wait_for(|state| matches!(state, ClientState::Offline { .. }));
        let offline = tokio::time::timeout(LONG, offline).await.unwrap().unwrap();
        let ClientState::Offline { retry_in, why } = offline else { panic!("{offline:?}") };
        assert_eq!(why, Some(Code::Draining));
        slots.push(retry_in);
    }
    slots.sort();
    let apart = slots.windows(2).filter(|pair| pair[1] - pair[0] >= Duration::from_secs(1)).count();
    assert!(apart >= 5 && slots[9] >= Duration::from_secs(120), "{slots:?}");
}

/// A server that lets ten clients in at once, and further ones each minute; and those ten.
async fn ten() -> (Server, Vec<Client>) {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let mut admission = generous();
    // So seldom that it does not matter how long the test takes.
    admission.global = Rate { every: Duration::from_secs(60), burst: 10 };
    let acceptor = Acceptor::builder(engine.clone(), ByName).admission(admission).build().unwrap();
    let server = Server { engine, acceptor };
    let clients: Vec<_> = (0..10).map(|i| client(&format!("user-{i}"), &server).build().unwrap()).collect();
    for client in &clients {
        online(client).await;
    }
    (server, clients)
}

/// Found by a review: only the acceptor's own shutdown gave slots.
#[tokio::test]
async fn when_the_engine_stops_everybody_is_given_a_slot_of_their_own_too() {
    let (server, clients) = ten().await;
    server.engine.shutdown(LONG).await;
    assert_apart(&clients).await;
}

#[tokio::test]
async fn a_drain_lets_everybody_finish_and_gives_each_a_slot_of_its_own() {
    let (server, clients) = ten().await;
    let drained = server.acceptor.shutdown(LONG).await;
    assert_eq!((drained.connections, drained.cut), (10, 0));
    assert_apart(&clients).await;
    let late = client("late", &server).build().unwrap();
    let mut watch = late.watch();
    let offline = watch.wait_for(|state| matches!(state, ClientState::Offline { why: Some(_), .. }));
    let offline = tokio::time::timeout(LONG, offline).await.unwrap();
    assert!(matches!(offline, Some(ClientState::Offline { why: Some(Code::Draining), .. })), "{offline:?}");
}
