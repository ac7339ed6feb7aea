//! Server and client from end to end, over transports in memory.
#![cfg(all(feature = "runtime", feature = "testing"))]

#[path = "session/support.rs"]
mod support;

use lastmile::{Message, Reached, Stage};

use support::{LONG, Server, client, next, online, texts};

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
