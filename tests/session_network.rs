//! A thousand messages each way over a network that breaks in every way: lost=0 duplicated=0 inverted=0.
#![cfg(all(feature = "runtime", feature = "testing"))]

#[path = "session/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use lastmile::session::{AdmissionConfig, DialerConfig, Rate, SessionConfig};
use lastmile::storage::MemoryStore;
use lastmile::testing::{Network, NetworkWeather, ScriptedSink, VirtualTime};
use lastmile::{Acceptor, Client, Engine, Message, Priority};

use support::{ByName, Server};

const MESSAGES: u32 = 1000;
const LONG: Duration = Duration::from_secs(3600);

fn admission() -> AdmissionConfig {
    let many = Rate { every: Duration::from_micros(1), burst: 1_000_000 };
    let mut config = AdmissionConfig::default();
    (config.address, config.user, config.global) = (many, many, many);
    config
}

fn session() -> SessionConfig {
    let mut config = SessionConfig::default();
    config.heartbeat = Duration::from_secs(3);
    config.timeout = Duration::from_secs(2);
    config.keep = Duration::from_secs(30);
    config.window.messages = 16;
    config
}

fn impatient() -> DialerConfig {
    let mut config = DialerConfig::default();
    config.backoff_floor = Duration::from_millis(50);
    config.backoff_cap = Duration::from_millis(500);
    config
}

/// The n-th message: its priority and key are its line.
fn numbered(to: &str, n: u32) -> Message {
    let line = n % 6;
    let priority = if line < 3 { Priority::Normal } else { Priority::High };
    Message::to(to, "test.message", n.to_string())
        .priority(priority)
        .ordering_key(format!("key-{}", line % 3))
        .build()
        .unwrap()
}

/// What was lost, came twice, or in the wrong order.
async fn judge(sink: &ScriptedSink, who: &str) -> (u32, u32, u32) {
    let (mut seen, mut last) = (BTreeMap::new(), BTreeMap::new());
    let (mut duplicated, mut inverted) = (0, 0);
    let all = tokio::time::timeout(LONG, sink.offered(u64::from(MESSAGES))).await;
    let all = all.unwrap_or_else(|_| panic!("{who} got {} of {MESSAGES}", sink.count()));
    for offer in all {
        let n: u32 = String::from_utf8(offer.delivery.message.payload().to_vec()).unwrap().parse().unwrap();
        if seen.insert(n, ()).is_some() {
            duplicated += 1;
        } else if last.insert(n % 6, n).is_some_and(|before| before > n) {
            inverted += 1;
        }
    }
    (MESSAGES - seen.len() as u32, duplicated, inverted)
}

#[tokio::test(start_paused = true)]
async fn a_thousand_messages_each_way_over_a_bad_network_arrive_once_and_in_order() {
    let seed = std::env::var("LASTMILE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let time = VirtualTime::start();
    let engine = Engine::builder(MemoryStore::new()).clock(time.clock()).seed(seed).build().unwrap();
    let acceptor =
        Acceptor::builder(engine.clone(), ByName).admission(admission()).session(session()).build().unwrap();
    let server = Server { engine, acceptor };
    let network = Network::new(seed, NetworkWeather::bad());
    let make = |user: &str| {
        Client::builder(Engine::builder(MemoryStore::new()).clock(time.clock()).seed(seed), user, "phone")
            .connector(network.to(&server.acceptor, "network"))
            .session(session())
            .dialer(impatient())
            .seed(seed)
            .build()
            .unwrap()
    };
    let (alice, bob) = (make("alice"), make("bob"));
    let (of_alice, of_bob) = (support::screen(&alice), support::screen(&bob));
    for n in 0..MESSAGES {
        alice.send(numbered("bob", n)).await.unwrap();
        bob.send(numbered("alice", n)).await.unwrap();
        if n == MESSAGES / 2 {
            network.partition(true);
            tokio::time::sleep(Duration::from_secs(20)).await;
            network.partition(false);
        }
    }
    let (for_alice, for_bob) = (judge(&of_alice, "alice").await, judge(&of_bob, "bob").await);
    let stats = server.acceptor.stats();
    println!(
        "connections={} broken={} resumed={} lost={} duplicated={} inverted={}",
        network.made(),
        network.broken(),
        stats.resumed,
        for_alice.0 + for_bob.0,
        for_alice.1 + for_bob.1,
        for_alice.2 + for_bob.2
    );
    assert_eq!((for_alice, for_bob), ((0, 0, 0), (0, 0, 0)));
    assert!(network.broken() > 20 && stats.resumed > 10, "the weather was too good: {stats:?}");
}
