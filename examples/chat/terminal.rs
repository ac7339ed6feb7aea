//! The same chat in a terminal, on the Rust client with a durable outbox of its own.
//!
//! Lines go to whoever was chosen with `/to`; `/help` says what else there is.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::io::BufRead as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::{CredentialSource, Sink};
use lastmile::session::Code;
use lastmile::session::frame::Credentials;
use lastmile::{
    Client, ClientState, Config, Engine, Message, MessageId, OrderingKey, Priority, Reached, Receipt, Stage,
};
use lastmile_web::WebClient;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::statuses::hex;

/// How long a call rings.
const RING: Duration = Duration::from_secs(30);
/// Lines and messages that wait to be shown.
const MAX_WAITING: usize = 256;
/// Ids that are remembered, so that nothing is shown twice.
const MAX_SEEN: usize = 10_000;

/// What a person sees, one line each.
pub(crate) type Screen = mpsc::Sender<String>;

/// A chat that runs without its terminal.
pub(crate) struct Chat {
    name: String,
    client: Client,
    screen: Screen,
    to: Option<String>,
    /// What was sent and what was last said of it.
    sent: Sent,
    receipts: JoinSet<()>,
    _shown: lastmile::Attachment,
}

type Sent = Arc<Mutex<HashMap<String, String>>>;

/// Chats until the input ends or `/quit`.
pub(crate) async fn run(name: &str, url: &str, dir: &Path) -> Result<(), Box<dyn Error>> {
    let (screen, mut lines) = mpsc::channel::<String>(MAX_WAITING);
    let mut chat = Chat::open(name, url, dir, screen)?;
    println!("chat: you are {name}; /to NAME chooses whom you talk to, /help says more");
    let (typed, mut typing) = mpsc::channel::<String>(1);
    // Standard input cannot be read without a thread, and the process does not wait for it.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if typed.blocking_send(line).is_err() {
                return;
            }
        }
    });
    loop {
        tokio::select! {
            Some(line) = lines.recv() => println!("{line}"),
            line = typing.recv() => match line {
                Some(line) if line.trim() != "/quit" => chat.typed(&line).await,
                _ => break,
            },
        }
    }
    println!("{}", chat.close().await);
    Ok(())
}

impl Chat {
    /// Opens the outbox of this person's terminal, and begins to connect.
    pub(crate) fn open(name: &str, url: &str, dir: &Path, screen: Screen) -> Result<Self, Box<dyn Error>> {
        let name = super::people::name(name).ok_or("a name has 1 to 32 characters without |")?.to_owned();
        let web = WebClient::new(&format!("{url}/lastmile"))?;
        let store = super::server::store(&dir.join(format!("client-{}", hex_name(&name))))?;
        let tokens = Tokens {
            server: url.to_owned(),
            name: name.clone(),
            http: reqwest::Client::new(),
            screen: screen.clone(),
            said: Mutex::default(),
        };
        let client =
            Client::builder(Engine::builder(store).config(Config::default()), name.as_str(), "terminal")
                .connector(web.websocket())
                .connector(web.sse())
                .connector(web.long_poll())
                .credentials(tokens)
                .build()?;
        let sent = Sent::default();
        let show = Show {
            client: client.clone(),
            screen: screen.clone(),
            sent: Arc::clone(&sent),
            seen: HashSet::new(),
        };
        let shown = client.attach("screen", show)?;
        let mut receipts = JoinSet::new();
        receipts.spawn(states(client.clone(), screen.clone()));
        Ok(Self { name, client, screen, to: None, sent, receipts, _shown: shown })
    }

    /// Does what a line says.
    pub(crate) async fn typed(&mut self, line: &str) {
        let line = line.trim();
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        while self.receipts.try_join_next().is_some() {}
        match word {
            "" => {}
            "/to" => match super::people::name(rest) {
                Some(name) => {
                    self.to = Some(name.to_owned());
                    self.say(format!("you talk to {name}")).await;
                }
                None => self.say("/to NAME".into()).await,
            },
            "/ring" => self.send("call.ring", json!({}), Priority::Critical, "ring").await,
            "/state" => self.say(state(self.client.state())).await,
            "/help" => {
                self.say("/to NAME, /ring, /state, /quit; anything else is a message. ✓ accepted here, ✓✓ delivered".into()).await;
            }
            _ if word.starts_with('/') => self.say("there is no such command: /help".into()).await,
            _ => self.send("chat.message", json!({ "text": line }), Priority::High, line).await,
        }
    }

    async fn send(&mut self, event: &str, payload: Value, priority: Priority, shown: &str) {
        let Some(to) = self.to.clone() else {
            return self.say("whom to? /to NAME".into()).await;
        };
        let mut message = Message::to(to.as_str(), event, payload.to_string()).priority(priority);
        if event == "call.ring" {
            message = message.ttl(RING);
        } else if let Ok(key) = OrderingKey::new(conversation(&self.name, &to)) {
            message = message.ordering_key(key);
        }
        let message = match message.build() {
            Ok(message) => message,
            Err(why) => return self.say(format!("! {why}")).await,
        };
        let id = message.id();
        remember(&self.sent, id, shown);
        match self.client.send(message).await {
            Ok(receipt) => {
                self.say(format!("✓ {shown}")).await;
                self.receipts.spawn(arrived(receipt, self.screen.clone(), shown.to_owned()));
            }
            Err(why) => self.say(format!("! {shown}: {why}")).await,
        }
    }

    async fn say(&self, line: String) {
        // Whoever looks no more does not need it.
        let _shown = self.screen.send(line).await;
    }

    /// Waits a moment for what is under way; the rest waits in the outbox.
    pub(crate) async fn close(mut self) -> lastmile::DrainReport {
        self.receipts.abort_all();
        self.client.shutdown(Duration::from_secs(2)).await
    }
}

/// Says when the server has it.
async fn arrived(receipt: Receipt, screen: Screen, shown: String) {
    let line = match receipt.reached(Stage::Delivered).await {
        Ok(Reached::Ended { reason, .. }) => format!("! {}: {shown}", reason.as_str()),
        Ok(_) => format!("✓ at the server: {shown}"),
        Err(why) => format!("! {why}: {shown}"),
    };
    let _shown = screen.send(line).await;
}

async fn states(client: Client, screen: Screen) {
    let mut watch = client.watch();
    drop(client);
    let mut before = String::new();
    while let Some(now) = watch.changed().await {
        if matches!(now, ClientState::NeedsCredentials { .. }) {
            // Whoever asks for them says why there are none.
            continue;
        }
        let line = state(now);
        if line != before && screen.send(line.clone()).await.is_err() {
            return;
        }
        before = line;
    }
}

fn state(state: ClientState) -> String {
    match state {
        ClientState::Online { transport, .. } => format!("· online over {transport}"),
        ClientState::Connecting { transport } => format!("· connecting over {transport}"),
        ClientState::Offline { why: None, .. } => "· offline".into(),
        ClientState::Offline { why: Some(code), .. } => format!("· offline: {}", code.text()),
        ClientState::NeedsCredentials { .. } => "· offline: signing in again and again".into(),
        ClientState::Closed { why } => format!("· closed: {}", why.text()),
        _ => "·".into(),
    }
}

/// Shows what comes. It is shown once, though it may be handed over twice when the process dies in between.
struct Show {
    client: Client,
    screen: Screen,
    sent: Sent,
    seen: HashSet<MessageId>,
}

impl Sink for Show {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        let mut verdicts = Vec::with_capacity(batch.len());
        for delivery in batch {
            let message = &delivery.message;
            if self.seen.len() >= MAX_SEEN {
                self.seen.clear();
            }
            if self.seen.insert(message.id())
                && let Some(line) = self.line(message)
                && self.screen.send(line).await.is_ok()
                && message.event().as_str() == "chat.message"
            {
                self.read(message).await;
            }
            verdicts.push((delivery.entry, Verdict::Delivered));
        }
        verdicts
    }
}

impl Show {
    fn line(&self, message: &Message) -> Option<String> {
        let payload: Value = serde_json::from_slice(message.payload()).unwrap_or_default();
        let from = message.sender().map(|sender| String::from_utf8_lossy(sender.as_bytes()).into_owned());
        let from = from.unwrap_or_default();
        match message.event().as_str() {
            "chat.message" => Some(format!("{from}: {}", payload["text"].as_str().unwrap_or_default())),
            "call.ring" => Some(format!("☎ {from} is calling")),
            "chat.read" => Some(format!("✓✓ {from} has read{}", self.text(&payload["up_to"]))),
            "chat.status" => {
                let status = payload["status"].as_str().unwrap_or_default();
                let sign = if status == "delivered" { "✓✓" } else { "!" };
                Some(format!("{sign} {status}{}", self.text(&payload["id"])))
            }
            _ => None,
        }
    }

    fn text(&self, id: &Value) -> String {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        id.as_str().and_then(|id| sent.get(id)).map(|text| format!(": {text}")).unwrap_or_default()
    }

    /// Says to the sender that it was on the screen. Of several, only the newest waits.
    async fn read(&self, message: &Message) {
        let Some(sender) = message.sender() else { return };
        let payload = json!({ "up_to": hex(message.id()) }).to_string();
        let me = String::from_utf8_lossy(self.client.user().as_bytes()).into_owned();
        let key = conversation(&me, &String::from_utf8_lossy(sender.as_bytes()));
        let read = Message::to(sender.clone(), "chat.read", payload).priority(Priority::Normal);
        let Ok(key) = lastmile::CollapseKey::new(key) else { return };
        if let Ok(read) = read.collapse_key(key).build() {
            // If there is no room for it, the next one says the same and more.
            let _sent = self.client.send(read).await;
        }
    }
}

fn remember(sent: &Sent, id: MessageId, shown: &str) {
    let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
    if sent.len() >= MAX_SEEN {
        sent.clear();
    }
    sent.insert(hex(id), shown.to_owned());
}

/// Both names, sorted: one order for both directions.
fn conversation(one: &str, other: &str) -> String {
    let (first, second) = if one <= other { (one, other) } else { (other, one) };
    format!("{first}|{second}")
}

/// A name that is one in every file system.
fn hex_name(name: &str) -> String {
    name.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Signs in, and says what is in the way of it.
struct Tokens {
    server: String,
    name: String,
    http: reqwest::Client,
    screen: Screen,
    /// What was said last: it is asked again and again while the server is away.
    said: Mutex<String>,
}

impl Tokens {
    async fn ask(&self) -> Result<Credentials, String> {
        let body = json!({ "name": self.name }).to_string();
        let answer = self.http.post(format!("{}/api/token", self.server)).body(body).send().await;
        let answer = answer.map_err(|_| format!("nobody answers at {}", self.server))?;
        let answer = answer.bytes().await.map_err(|why| why.to_string())?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        match (answer["token"].as_str(), answer["error"].as_str()) {
            (Some(token), _) => Ok(Credentials(token.to_owned().into())),
            (None, Some(why)) => Err(why.to_owned()),
            (None, None) => Err(format!("{} is no chat", self.server)),
        }
    }
}

impl CredentialSource for Tokens {
    async fn credentials(&self, _why: Option<Code>) -> Option<Credentials> {
        let asked = self.ask().await;
        let why = asked.as_ref().err().cloned().unwrap_or_default();
        let before =
            std::mem::replace(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner), why.clone());
        if !why.is_empty() && why != before {
            let _shown = self.screen.send(format!("· offline: {why}; what you send waits here")).await;
        }
        asked.ok()
    }
}
