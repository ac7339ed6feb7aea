//! Requests and their answers: with the acknowledgement, as a message, late, and for nobody.
#![cfg(all(feature = "runtime", feature = "testing"))]

#[path = "session/support.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::{Failure, Received, Receiver, Sink};
use lastmile::session::{Code, Inbound, InboundId};
use lastmile::storage::MemoryStore;
use lastmile::testing::{Reply, ScriptedSink};
use lastmile::{
    Acceptor, Client, DevicePolicy, EndReason, Engine, Message, Priority, Registration, RequestError, Router,
    Stage, UserId,
};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use support::{ByName, LONG, Server, client, message, online};

/// Answers everything with what it says, in capitals.
struct Shouts;

fn shout(message: &Message) -> Bytes {
    message.payload().to_ascii_uppercase().into()
}

impl Receiver for Shouts {
    async fn receive(&mut self, batch: Vec<Inbound>) -> Vec<(InboundId, lastmile::session::Verdict)> {
        let answer = |one: Inbound| (one.id, lastmile::session::Verdict::Replied(shout(&one.item.message)));
        batch.into_iter().map(answer).collect()
    }
}

impl Sink for Shouts {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        batch.iter().map(|one| (one.entry, Verdict::Replied(shout(&one.message)))).collect()
    }
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

async fn ask(client: &lastmile::Client, to: &str, text: &str) -> Bytes {
    client.request(message(to, text), LONG).await.unwrap()
}

#[tokio::test]
async fn a_service_answers_with_the_acknowledgement_and_nothing_is_kept() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let acceptor =
        Acceptor::builder(engine.clone(), ByName).service(user("service"), |_| Shouts).build().unwrap();
    let server = Server { engine, acceptor };
    let alice = client("alice", &server).build().unwrap();
    for text in ["hello", "again"] {
        assert_eq!(ask(&alice, "service", text).await, text.to_uppercase());
    }
    assert_eq!(server.engine.stats().await.unwrap().counters.accepted, 0);
}

#[tokio::test]
async fn a_server_asks_a_client_whose_handler_is_behind_its_inbox_or_not() {
    let server = Server::new();
    let kept = client("kept", &server).build().unwrap();
    let _shouts = kept.attach("handler", Shouts).unwrap();
    let direct = client("direct", &server).direct(|| Shouts).build().unwrap();
    for of in [&kept, &direct] {
        online(of).await;
    }
    // Without a sender there is nobody to send an answer to: it must ride with the acknowledgement.
    let asked = server.engine.request(message("direct", "hello"), LONG).await.unwrap();
    assert_eq!(asked, "HELLO");
    let from = Message::to("kept", "chat.message", "hello").sender("server").build().unwrap();
    assert_eq!(server.engine.request(from, LONG).await.unwrap(), "HELLO");
}

#[tokio::test]
async fn a_client_asks_another_one_through_the_server() {
    let server = Server::new();
    let (alice, bob) = (client("alice", &server).build().unwrap(), client("bob", &server).build().unwrap());
    let _shouts = bob.attach("handler", Shouts).unwrap();
    let mut answers = Vec::new();
    for i in 0..20 {
        answers.push(ask(&alice, "bob", &format!("question {i}")).await);
    }
    assert_eq!(answers[19], "QUESTION 19");
    // The last question may still be in flight: the answer can overtake the receipt.
    let accepted = alice.engine().stats().await.unwrap().counters.accepted;
    assert_eq!(accepted, 20, "questions are all that was kept, no answer went to the inbox");
}

#[tokio::test]
async fn a_sink_of_the_engine_itself_answers_at_once() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let _shouts = engine.attach("bob", "handler", Shouts).unwrap();
    assert_eq!(engine.request(message("bob", "hello"), LONG).await.unwrap(), "HELLO");
}

#[tokio::test]
async fn an_answer_that_comes_too_late_comes_as_a_message() {
    let server = Server::new();
    let alice = client("alice", &server).build().unwrap();
    let screen = support::screen(&alice);
    let question = message("bob", "hello");
    let id = question.id();
    let late = alice.request(question, Duration::from_millis(300)).await;
    let Err(RequestError::TimedOut(receipt)) = late else { panic!("{late:?}") };
    receipt.reached(Stage::Delivered).await.unwrap();
    let bob = client("bob", &server).build().unwrap();
    let _shouts = bob.attach("handler", Shouts).unwrap();
    let answer = support::next(&screen).await.message;
    assert_eq!((answer.answers(), answer.payload().as_ref()), (Some(id), b"HELLO".as_ref()));
    assert_eq!((answer.event().as_str(), answer.sender()), ("lastmile.answer", Some(&user("bob"))));
}

#[tokio::test]
async fn a_request_that_nobody_can_answer_is_given_up_in_time_and_stays_accepted() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let silent = ScriptedSink::new();
    let _attached = engine.attach("bob", "handler", silent.clone()).unwrap();
    let asked = engine.request(message("bob", "hello"), Duration::from_millis(300)).await;
    assert!(matches!(asked, Err(RequestError::TimedOut(_))), "{asked:?}");
    assert_eq!(silent.count(), 1);
}

/// Found by a review: whoever asked waited out their time although the request had ended.
#[tokio::test]
async fn the_wait_for_an_answer_ends_with_a_request_that_nobody_has_handled() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let question = message("bob", "hello");
    let id = question.id();
    let (asked, cancelled) = tokio::join!(engine.request(question, LONG * 100), async {
        loop {
            // It may not have been accepted yet.
            if let Ok(ended) = engine.cancel(user("bob"), id).await {
                break ended;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(cancelled.messages, 1);
    let Err(error @ RequestError::Ended { reason: EndReason::Cancelled, .. }) = asked else {
        panic!("{asked:?}")
    };
    assert!(!error.is_retryable(), "the same message would be known to have ended");

    // Of one that may have been handled, the answer may still come.
    let silent = ScriptedSink::always(Reply::Silence);
    let _attached = engine.attach("bob", "handler", silent.clone()).unwrap();
    let question = message("bob", "hello");
    let id = question.id();
    let (asked, _) = tokio::join!(engine.request(question, Duration::from_millis(300)), async {
        while silent.count() == 0 {
            tokio::task::yield_now().await;
        }
        engine.cancel(user("bob"), id).await.unwrap()
    });
    assert!(matches!(asked, Err(RequestError::TimedOut(_))), "{asked:?}");
}

#[tokio::test]
async fn nobody_can_answer_for_somebody_else() {
    let server = Server::new();
    let (alice, mallory) =
        (client("alice", &server).build().unwrap(), client("mallory", &server).build().unwrap());
    let question = message("bob", "hello");
    let id = question.id();
    let mut asking = tokio::task::JoinSet::new();
    asking.spawn({
        let alice = alice.clone();
        async move { alice.request(question, Duration::from_secs(2)).await }
    });
    let forged = Message::to("alice", "lastmile.answer", "forged")
        .sender("bob")
        .header("lastmile-answers", id.as_u128().to_be_bytes().to_vec())
        .build()
        .unwrap();
    mallory.send(forged).await.unwrap();
    let screen = support::screen(&alice);
    assert_eq!(support::next(&screen).await.message.sender(), Some(&user("mallory")));
    assert!(matches!(asking.join_next().await.unwrap().unwrap(), Err(RequestError::TimedOut(_))));
}

#[tokio::test]
async fn a_router_behind_an_inbox_answers_too() {
    let server = Server::new();
    let (alice, bob) = (client("alice", &server).build().unwrap(), client("bob", &server).build().unwrap());
    let router = lastmile::Router::new();
    let _handler = router.on("chat.message", async |text: String, _| Ok(text.to_uppercase())).unwrap();
    let _attached = bob.attach("router", router).unwrap();
    assert_eq!(ask(&alice, "bob", "hello").await, "HELLO");
}

/// A client that takes its messages directly, what its handler does, and the button that answers.
struct Phone {
    says: mpsc::Receiver<&'static str>,
    answer: Arc<Notify>,
    _handler: Registration,
    _client: Client,
}

/// Rings until somebody answers here, or elsewhere.
async fn phone(server: &Server, device: &str) -> Phone {
    let (told, says) = mpsc::channel(9);
    let answer = Arc::new(Notify::new());
    let router = Router::new();
    let answered = answer.clone();
    let handler = router.on("call.ring", move |_: Bytes, call: Received| {
        let (told, answered) = (told.clone(), answered.clone());
        async move {
            told.send("rings").await.unwrap();
            tokio::select! {
                () = answered.notified() => Ok(Bytes::from_static(b"hello?")),
                () = call.withdrawn() => {
                    told.send("stops").await.unwrap();
                    Err(Failure::reject(Code::Withdrawn, "answered elsewhere"))
                }
            }
        }
    });
    let client = Client::builder(Engine::builder(MemoryStore::new()), "alice", device);
    let client = client.connector(support::Gate::opened().connector(server)).direct(move || router.clone());
    let client = client.build().unwrap();
    online(&client).await;
    Phone { says, answer, _handler: handler.unwrap(), _client: client }
}

#[tokio::test]
async fn a_call_rings_on_every_device_and_stops_on_the_others_when_one_answers() {
    let server = Server::new();
    for device in ["phone", "laptop"] {
        server.engine.register_device("alice", device).await.unwrap();
    }
    let mut mobile = phone(&server, "phone").await;
    let mut laptop = phone(&server, "laptop").await;
    let call = Message::to("alice", "call.ring", "").sender("bob").priority(Priority::Critical);
    let call = call.devices(DevicePolicy::RingAll).build().unwrap();
    let mut asking = JoinSet::new();
    let engine = server.engine.clone();
    asking.spawn(async move { engine.request(call, LONG).await });
    assert_eq!(mobile.says.recv().await, Some("rings"));
    assert_eq!(laptop.says.recv().await, Some("rings"));
    mobile.answer.notify_one();
    assert_eq!(asking.join_next().await.unwrap().unwrap().unwrap(), "hello?");
    assert_eq!(laptop.says.recv().await, Some("stops"));
    assert!(mobile.says.is_empty());
}
