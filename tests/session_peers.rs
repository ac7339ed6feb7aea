//! Server and client from end to end, over transports in memory.
#![cfg(all(feature = "runtime", feature = "testing"))]

#[path = "session/support.rs"]
mod support;

use std::time::Duration;

use lastmile::ports::Receiver;
use lastmile::session::frame::{GapReason, Missed};
use lastmile::session::{Inbound, InboundId, Verdict};
use lastmile::storage::MemoryStore;
use lastmile::testing::{ManualClock, ScriptedSink};
use lastmile::{Acceptor, Client, Config, Engine, Message, Reached, Stage, Timestamp};
use tokio::sync::mpsc;

use support::{ByName, Gate, LONG, Server, client, message, next, online, texts};

/// Says what it is told that it has missed.
struct Misses(mpsc::UnboundedSender<Missed>);

impl Receiver for Misses {
    async fn receive(&mut self, batch: Vec<Inbound>) -> Vec<(InboundId, Verdict)> {
        batch.into_iter().map(|one| (one.id, Verdict::Delivered)).collect()
    }

    fn missed(&mut self, missed: Missed) {
        self.0.send(missed).unwrap();
    }
}

#[tokio::test]
async fn a_client_is_told_how_many_messages_of_which_lane_expired_and_between_which_places() {
    let clock = ManualClock::new(Timestamp::from_millis(1_700_000_000_000));
    let engine = Engine::builder(MemoryStore::new()).clock(clock.clone()).build().unwrap();
    let acceptor = Acceptor::builder(engine.clone(), ByName).build().unwrap();
    let server = Server { engine, acceptor };
    let mut entries = Vec::new();
    for _ in 0..3 {
        let message = Message::to("alice", "chat.message", "hello").ttl(Duration::from_secs(1));
        entries.push(server.engine.send(message.build().unwrap()).await.unwrap().entry());
    }
    clock.advance(Duration::from_secs(2));
    let (said, mut missed) = mpsc::unbounded_channel();
    let _alice = client("alice", &server).direct(move || Misses(said.clone())).build().unwrap();
    let told = tokio::time::timeout(LONG, missed.recv()).await.expect("nothing was told");
    let expired = Missed::new(3, GapReason::Expired);
    assert_eq!(told, Some(expired.between(entries[0].lane, entries[0].seq, entries[2].seq)));
}

#[tokio::test]
async fn what_is_sent_to_a_client_arrives_and_is_confirmed() {
    let server = Server::new();
    let alice = client("alice", &server).build().unwrap();
    let screen = support::screen(&alice);
    let receipt = server.engine.send(support::message("alice", "hello")).await.unwrap();
    assert_eq!(receipt.reached(Stage::Delivered).await, Ok(Reached::Stage(Stage::Delivered)));
    assert_eq!(next(&screen).await.message.payload().as_ref(), b"hello");
}

#[tokio::test]
async fn what_a_client_sends_reaches_another_one_in_order_as_from_its_user() {
    let server = Server::new();
    let (alice, bob) = (client("alice", &server).build().unwrap(), client("bob", &server).build().unwrap());
    let screen = support::screen(&bob);
    for i in 0..100 {
        let message = Message::to("bob", "chat.message", format!("{i}")).sender("mallory").build().unwrap();
        let receipt = alice.send(message).await.unwrap();
        assert_eq!(receipt.user().as_bytes(), b"bob");
    }
    let got = texts(&screen, 100).await;
    assert_eq!(
        got.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>(),
        (0..100).map(|i| i.to_string()).collect::<Vec<_>>()
    );
    assert!(got.iter().all(|(_, from)| from == "alice"), "{got:?}");
}

#[tokio::test]
async fn what_is_sent_offline_goes_when_there_is_a_connection() {
    let server = Server::new();
    let gate = support::Gate::shut();
    let alice = support::lonely("alice").connector(gate.connector(&server)).build().unwrap();
    let receipt = alice.send(support::message("bob", "later")).await.unwrap();
    assert!(!alice.state().is_online());
    gate.open();
    alice.network_changed(&[]).await.unwrap();
    online(&alice).await;
    tokio::time::timeout(LONG, receipt.reached(Stage::Delivered)).await.unwrap().unwrap();
    let bob = client("bob", &server).build().unwrap();
    let screen = support::screen(&bob);
    assert_eq!(texts(&screen, 1).await, [("later".to_owned(), "alice".to_owned())]);
}

#[tokio::test]
async fn one_full_outbox_does_not_hold_back_what_is_for_others() {
    let mut config = lastmile::Config::default();
    config.max_user_messages = 1.try_into().unwrap();
    let server = Server::with(config);
    let alice = client("alice", &server).build().unwrap();
    for text in ["taken", "refused"] {
        alice.send(support::message("bob", text)).await.unwrap();
    }
    let receipt = alice.send(support::message("carol", "free")).await.unwrap();
    tokio::time::timeout(LONG, receipt.reached(Stage::Delivered)).await.unwrap().unwrap();
}

#[tokio::test]
async fn somebody_to_whom_more_devices_write_than_an_inbox_remembers_gets_all_of_it() {
    let mut config = lastmile::Config::default();
    config.max_inbox_lanes = 1.try_into().unwrap();
    let server = Server::with(config);
    let bob = client("bob", &server).build().unwrap();
    let screen = support::screen(&bob);
    for sender in ["alice", "carol", "dave"] {
        let client = client(sender, &server).build().unwrap();
        let receipt = client.send(support::message("bob", sender)).await.unwrap();
        tokio::time::timeout(LONG, receipt.reached(Stage::Delivered)).await.unwrap().unwrap();
        assert_eq!(texts(&screen, 1).await, [(sender.to_owned(), sender.to_owned())]);
    }
}

/// As many messages for one user and in all.
fn limits(of_user: u32, in_all: u64) -> Config {
    let mut config = Config::default();
    config.max_user_messages = of_user.try_into().unwrap();
    config.max_total_messages = in_all.try_into().unwrap();
    config
}

/// Found by the simulator of servers and clients: both engines were full of messages for each other, and each refused what the
/// other one had, for ever.
#[tokio::test]
async fn a_client_whose_outbox_is_full_takes_what_comes_from_a_server_that_is_full_of_it() {
    let (server, gate) = (Server::with(limits(4, 4)), Gate::shut());
    let engine = || Engine::builder(MemoryStore::new());
    let build = |in_all| {
        Client::builder(engine().config(limits(4, in_all)), "alice", "phone")
            .connector(gate.connector(&server))
            .build()
    };
    let refused = build(7).unwrap_err();
    assert!(refused.to_string().contains("max_total_messages"), "{refused}");
    let alice = build(8).unwrap();
    let screen = support::screen(&alice);
    let bobs = ScriptedSink::new();
    for n in 0..4 {
        server.engine.send(message("alice", &n.to_string())).await.unwrap();
        alice.send(message("bob", &n.to_string())).await.unwrap();
    }
    assert!(server.engine.send(message("alice", "more")).await.is_err());
    assert!(alice.send(message("bob", "more")).await.is_err());
    gate.open();
    alice.network_changed(&[]).await.unwrap();
    assert_eq!(texts(&screen, 4).await.len(), 4);
    let _bob = server.engine.attach("bob", "phone", bobs.clone()).unwrap();
    assert_eq!(texts(&bobs, 4).await.len(), 4);
}
