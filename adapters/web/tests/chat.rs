//! The chat's server and its terminal, with a page that speaks JSON as the browser's does.

#[path = "../../../examples/chat/api.rs"]
mod api;
mod common;
#[path = "../../../examples/chat/people.rs"]
mod people;
#[path = "../../../examples/chat/server.rs"]
mod server;
#[path = "../../../examples/chat/snapshot.rs"]
mod snapshot;
#[path = "../../../examples/chat/statuses.rs"]
mod statuses;
#[path = "../../../examples/chat/terminal.rs"]
#[expect(dead_code, reason = "without its terminal")]
mod terminal;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use common::light::{Light, Said};
use common::within;
use lastmile::session::frame::Published;
use lastmile::{Message, Priority};
use lastmile_web::{WebClient, WsTransport};
use serde_json::{Value, json};
use tokio::sync::mpsc;

struct Page {
    url: String,
    token: String,
    http: reqwest::Client,
}

impl Page {
    async fn sign_in(address: SocketAddr, name: &str) -> Self {
        let url = format!("http://{address}");
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut page = Self { url, token: String::new(), http };
        let answer = page.post("/api/token", &json!({ "name": name })).await;
        assert_eq!(answer["user"], name);
        page.token = answer["token"].as_str().unwrap().to_owned();
        page
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let request =
            self.http.post(format!("{}{path}", self.url)).bearer_auth(&self.token).body(body.to_string());
        let answer = within(request.send()).await.unwrap();
        serde_json::from_slice(&within(answer.bytes()).await.unwrap()).unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.token);
        serde_json::from_slice(&within(within(request.send()).await.unwrap().bytes()).await.unwrap()).unwrap()
    }

    async fn session(&self) -> Light<WsTransport> {
        let web = WebClient::new(&format!("{}/lastmile", self.url)).unwrap().no_proxy();
        within(Light::connect(&web.websocket(), &self.token, "page", true)).await
    }
}

async fn start(dir: &Path) -> server::Running {
    server::start(SocketAddr::from(([127, 0, 0, 1], 0)), dir).await.unwrap()
}

/// Waits for a line that begins so.
async fn line(lines: &mut mpsc::Receiver<String>, begins: &str) -> String {
    within(async {
        loop {
            let line = lines.recv().await.expect("the terminal is there");
            if line.starts_with(begins) {
                return line;
            }
        }
    })
    .await
}

/// Waits for a message of this event.
async fn message(session: &mut Light<WsTransport>, event: &str) -> Message {
    within(async {
        loop {
            for said in session.next().await {
                if let Said::Message(item) = said
                    && item.message.event().as_str() == event
                {
                    return item.message;
                }
            }
        }
    })
    .await
}

fn payload(message: &Message) -> Value {
    serde_json::from_slice(message.payload()).unwrap()
}

fn text(to: &str, text: &str) -> Message {
    let payload = json!({ "text": text }).to_string();
    Message::to(to, "chat.message", payload).priority(Priority::High).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_and_a_terminal_talk_to_each_other_and_hear_what_became_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir.path().join("server")).await;
    let page = Page::sign_in(running.address, "bob").await;
    let mut bob = page.session().await;
    let (screen, mut lines) = mpsc::channel(256);
    let url = format!("http://{}", running.address);
    let mut alice = terminal::Chat::open("alice", &url, dir.path(), screen).unwrap();
    alice.typed("/to bob").await;
    alice.typed("tea?").await;
    let asked = message(&mut bob, "chat.message").await;
    assert_eq!(
        (payload(&asked)["text"].as_str(), asked.sender().unwrap().as_bytes()),
        (Some("tea?"), &b"alice"[..])
    );
    assert_eq!(line(&mut lines, "✓✓ delivered").await, "✓✓ delivered: tea?");

    let answer = text("alice", "yes");
    let id = statuses::hex(answer.id());
    bob.publish(answer).await;
    assert_eq!(line(&mut lines, "bob: ").await, "bob: yes");
    // Both come by themselves, in either order.
    let mut heard = HashMap::new();
    within(async {
        while heard.len() < 2 {
            for said in bob.next().await {
                if let Said::Message(item) = said {
                    heard.insert(item.message.event().as_str().to_owned(), payload(&item.message));
                }
            }
        }
    })
    .await;
    assert_eq!(heard["chat.status"], json!({ "id": id, "to": "alice", "status": "delivered" }));
    assert_eq!(heard["chat.read"]["up_to"], id);

    let people = page.get("/api/people").await;
    let online: Vec<_> = people["people"].as_array().unwrap().iter().map(|one| &one["online"]).collect();
    assert_eq!(online, [true, true], "{people}");
    let answer = page.post("/api/status", &json!({ "ids": [{ "to": "alice", "id": id }] })).await;
    assert_eq!(answer["statuses"][0]["status"], "delivered", "{answer}");
    within(alice.close()).await;
    within(running.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_somebody_who_is_away_survives_a_restart_can_be_withdrawn_and_is_not_others_business()
{
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path()).await;
    let page = Page::sign_in(running.address, "bob").await;
    let mut bob = page.session().await;
    let (kept, withdrawn) = (text("carol", "later"), text("carol", "never mind"));
    let (kept_id, withdrawn_id) = (statuses::hex(kept.id()), statuses::hex(withdrawn.id()));
    for message in [kept, withdrawn] {
        let number = bob.publish(message).await;
        let said = within(bob.next()).await;
        assert!(matches!(said[..], [Said::Receipt(of, Published::Accepted)] if of == number));
    }
    let about = json!({ "to": "carol", "id": withdrawn_id });
    let other = Page::sign_in(running.address, "mallory").await;
    assert_eq!(other.post("/api/cancel", &about).await["cancelled"], false, "not hers");
    assert_eq!(
        page.post("/api/cancel", &about).await,
        json!({ "cancelled": true, "possibly_delivered": false })
    );
    let token = page.token.clone();
    drop(bob);
    within(running.stop()).await;

    let running = start(dir.path()).await;
    let mut page = Page::sign_in(running.address, "bob").await;
    page.token = token;
    let ids = json!({ "ids": [{ "to": "carol", "id": kept_id }, { "to": "carol", "id": withdrawn_id }] });
    let answer = page.post("/api/status", &ids).await;
    assert_eq!(answer["statuses"][0]["status"], "accepted", "{answer}");
    assert_eq!(answer["statuses"][1]["status"], "cancelled", "{answer}");
    let carol = Page::sign_in(running.address, "carol").await;
    let mut carol = carol.session().await;
    assert_eq!(payload(&message(&mut carol, "chat.message").await)["text"], "later");
    drop(carol);
    within(running.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_overtakes_a_flood_and_the_panel_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path()).await;
    let page = Page::sign_in(running.address, "bob").await;
    let mut bob = page.session().await;
    let flood = page.post("/api/flood", &json!({ "to": "carol", "count": 1000 })).await;
    assert_eq!(flood["accepted"], 1000, "{flood}");
    let ring =
        Message::to("carol", "call.ring", "{}").priority(Priority::Critical).ttl(Duration::from_secs(600));
    bob.publish(ring.build().unwrap()).await;
    within(bob.next()).await;

    let request = page.http.get(format!("{}/api/engine", page.url)).bearer_auth(&page.token);
    let mut events = within(request.send()).await.unwrap();
    let event = within(events.chunk()).await.unwrap().unwrap();
    let event = String::from_utf8(event.to_vec()).unwrap();
    let snapshot: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap().trim()).unwrap();
    assert_eq!(snapshot["waiting_in_all"], 1001, "{snapshot}");
    let connection = &snapshot["connections"][0];
    assert_eq!(
        (connection["user"].as_str(), connection["transport"].as_str()),
        (Some("bob"), Some("websocket"))
    );

    let mut carol = Page::sign_in(running.address, "carol").await.session().await;
    let first = within(carol.next()).await;
    assert!(matches!(&first[0], Said::Message(item) if item.message.event().as_str() == "call.ring"));
    drop((bob, carol));
    within(running.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_other_names_of_the_host_and_other_events_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path()).await;
    let page = Page::sign_in(running.address, "bob").await;
    for path in ["/api/status", "/api/cancel", "/api/flood"] {
        let request = page.http.post(format!("{}{path}", page.url)).body("{}");
        assert_eq!(within(request.send()).await.unwrap().status(), 401, "{path}");
        let request = page.http.post(format!("{}{path}", page.url)).bearer_auth(&page.token).body("[");
        assert_eq!(within(request.send()).await.unwrap().status(), 400, "{path}");
    }
    for name in ["", "a|b", "a\u{0}b", &"x".repeat(33)] {
        let answer = page.post("/api/token", &json!({ "name": name })).await;
        assert!(answer["error"].is_string(), "{name:?}: {answer}");
    }
    let rebound = page.http.get(&page.url).header("host", "evil.example");
    assert_eq!(within(rebound.send()).await.unwrap().status(), 421);
    let index = within(page.http.get(&page.url).send()).await.unwrap();
    assert!(index.headers().contains_key("content-security-policy"));

    let mut bob = page.session().await;
    let forged = Message::to("carol", "chat.status", "{}").build().unwrap();
    bob.publish(forged).await;
    let said = within(bob.next()).await;
    assert!(matches!(&said[0], Said::Receipt(_, Published::Refused(why)) if why.code.number() == 4452));
    drop(bob);
    within(running.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_start_says_what_is_in_the_way_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path()).await;
    let refused = |address: SocketAddr, dir: std::path::PathBuf| async move {
        server::start(address, &dir).await.err().expect("it does not start").to_string()
    };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));

    let port = running.address.port();
    let taken = refused(running.address, dir.path().join("other")).await;
    assert!(taken.contains(&format!("port {port} is taken")) && taken.contains("--port"), "{taken}");
    assert!(!dir.path().join("other").exists(), "nothing was made");

    let locked = refused(any, dir.path().to_owned()).await;
    assert!(locked.contains(&format!("{} is locked", dir.path().join("outbox").display())), "{locked}");

    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let unusable = refused(any, file.clone()).await;
    assert!(unusable.contains(&file.display().to_string()) && unusable.contains("--dir"), "{unusable}");

    // All that is known of why: not only what was tried.
    let beside = dir.path().join("beside");
    std::fs::create_dir(&beside).unwrap();
    std::fs::write(beside.join("outbox"), "in the way").unwrap();
    let why = refused(any, beside.clone()).await;
    assert!(why.contains(&beside.display().to_string()) && why.contains("os error"), "{why}");
    within(running.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_without_its_server_says_so_once_keeps_what_is_typed_and_goes_on_when_it_comes() {
    // If another program takes the port meanwhile, there is another one.
    while !goes_on_when_its_server_comes().await {}
}

async fn goes_on_when_its_server_comes() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (screen, mut lines) = mpsc::channel(256);
    let mut alice = terminal::Chat::open("alice", &format!("http://{address}"), dir.path(), screen).unwrap();
    let said = line(&mut lines, "· offline").await;
    assert!(said.contains(&address.to_string()) && said.contains("waits here"), "{said}");
    alice.typed("/to bob").await;
    alice.typed("are you there?").await;
    assert_eq!(line(&mut lines, "✓").await, "✓ are you there?");

    let started = server::start(address, &dir.path().join("server")).await;
    if let Ok(running) = &started {
        assert_eq!(running.address, address);
        assert_eq!(line(&mut lines, "✓ at").await, "✓ at the server: are you there?");
    }
    within(alice.close()).await;
    match started {
        Ok(running) => within(running.stop()).await,
        Err(_) => return false,
    };
    true
}
