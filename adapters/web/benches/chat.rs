//! A thousand people in pairs, each of whom answers what the other says: messages a second, how long each takes, and what a
//! connection costs the server; with every promise kept, and beside a plain axum chat that keeps none.
//!
//! ```console
//! cargo bench -p lastmile-web --bench chat
//! cargo bench -p lastmile-web --bench chat -- --connections 200 --seconds 5
//! ```
//!
//! Both servers are processes of their own (this program, run again), so that their memory is theirs alone; the clients are
//! the same but for the frames. *Durable*: a publish is synced to the disk, delivered to the other's session, acknowledged
//! by it, and answered to its sender with a receipt. *Plain*: a text is sent to whichever socket has that name.

#[path = "../tests/common/light.rs"]
mod light;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ws::{Message as Text, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::routing::get;
use futures_util::{SinkExt as _, StreamExt as _};
use hdrhistogram::Histogram;
use lastmile::ports::{Authenticator, Claim, Denied, Identity};
use lastmile::session::frame::Published;
use lastmile::session::{AdmissionConfig, Rate};
use lastmile::storage::SledStore;
use lastmile::{Acceptor, Engine, Message, UserId};
use lastmile_web::{ServeConfig, WebClient, WebConfig, serve};
use light::{Light, Said};
use tokio::net::TcpListener;
use tokio::sync::{Barrier, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

const PAYLOAD: usize = 256;

struct Settings {
    connections: usize,
    time: Duration,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if let Some(kind) = arguments.iter().position(|argument| argument == "--serve") {
        return runtime.block_on(server(&arguments[kind + 1]));
    }
    let connections = usize::try_from(number("--connections", 1_000)).expect("a number") / 2 * 2;
    let settings = Settings { connections, time: Duration::from_secs(number("--seconds", 10)) };
    println!(
        "{connections} connections, payloads of {PAYLOAD} bytes, closed loop, {} s each",
        settings.time.as_secs()
    );
    println!("server    messages/s   p50 ms   p99 ms   KiB a connection, idle   … busy");
    for kind in ["durable", "plain"] {
        runtime.block_on(measure(kind, &settings));
    }
}

// --------------------------------------------------------------------------------------------------------------- servers

struct ByToken;

impl Authenticator for ByToken {
    async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
        UserId::new(&claim.credentials.0).map(Identity::new).map_err(Denied::refused)
    }
}

/// Serves until its input ends, having said where.
async fn server(kind: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    std::io::stdout().flush().expect("somebody listens");
    let dir = tempfile::tempdir().expect("a directory");
    let app = match kind {
        "durable" => durable(dir.path()),
        _ => plain(),
    };
    let mut config = ServeConfig::default();
    config.max_sockets_per_address = config.max_sockets;
    let ended = async {
        let read = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(tokio::task::spawn_blocking(read).await);
    };
    serve(listener, app, config, ended).await.expect("it serves");
}

fn durable(dir: &std::path::Path) -> axum::Router {
    let store = SledStore::open(dir).expect("a store");
    let engine = Engine::builder(store).build().expect("an engine");
    let mut admission = AdmissionConfig::default();
    let any = Rate { every: Duration::from_micros(10), burst: 100_000 };
    (admission.address, admission.user, admission.global) = (any, any, any);
    let acceptor = Acceptor::builder(engine, ByToken).admission(admission).build().expect("an acceptor");
    let mut config = WebConfig::default();
    config.max_per_address = config.max_connections;
    config.max_pending = config.max_connections;
    lastmile_web::router(acceptor, config)
}

type Sockets = Arc<Mutex<HashMap<String, mpsc::Sender<Text>>>>;

fn plain() -> axum::Router {
    let join = |State(sockets): State<Sockets>, Path(name): Path<String>, upgrade: WebSocketUpgrade| async move {
        upgrade.on_upgrade(move |socket| chat(sockets, name, socket))
    };
    axum::Router::new().route("/{name}", get(join)).with_state(Sockets::default())
}

/// Hands each text, `name text`, to the socket of that name.
async fn chat(sockets: Sockets, name: String, socket: WebSocket) {
    let (mut sink, mut stream) = socket.split();
    let (sender, mut receiver) = mpsc::channel(64);
    sockets.lock().unwrap_or_else(PoisonError::into_inner).insert(name, sender);
    let down = async {
        while let Some(text) = receiver.recv().await {
            if sink.send(text).await.is_err() {
                return;
            }
        }
    };
    let up = async {
        while let Some(Ok(message)) = stream.next().await {
            let Text::Text(text) = &message else { continue };
            let to = text.split(' ').next().unwrap_or_default();
            let to = sockets.lock().unwrap_or_else(PoisonError::into_inner).get(to).cloned();
            if let Some(to) = to {
                // Whoever has gone does not get it: nothing is promised.
                let _sent = to.send(message).await;
            }
        }
    };
    tokio::select! {
        () = down => {}
        () = up => {}
    }
}

// --------------------------------------------------------------------------------------------------------------- clients

/// A server in a process of its own.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(kind: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args(["--serve", kind])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("its address");
        Self { address: line.trim().parse().expect("an address"), child }
    }

    /// Its resident memory, in KiB; zero where the system does not say.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
    }
}

/// What the clients of one server saw.
struct Seen {
    latencies: Mutex<Histogram<u64>>,
    connected: Barrier,
    go: Barrier,
}

async fn measure(kind: &'static str, settings: &Settings) {
    let process = Process::start(kind);
    let before = process.memory();
    let seen = Arc::new(Seen {
        latencies: Mutex::new(Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds")),
        connected: Barrier::new(settings.connections + 1),
        go: Barrier::new(settings.connections + 1),
    });
    let mut people = JoinSet::new();
    for number in 0..settings.connections {
        let (seen, address, time) = (Arc::clone(&seen), process.address, settings.time);
        people.spawn(async move {
            match kind {
                "durable" => durable_person(number, address, time, &seen).await,
                _ => plain_person(number, address, time, &seen).await,
            }
        });
    }
    seen.connected.wait().await;
    let idle = process.memory();
    seen.go.wait().await;
    tokio::time::sleep(settings.time.mul_f64(0.9)).await;
    let busy = process.memory();
    while let Some(ended) = people.join_next().await {
        ended.expect("everybody is well");
    }
    let latencies = seen.latencies.lock().unwrap_or_else(PoisonError::into_inner);
    let each = |memory: f64| (memory - before) / settings.connections as f64;
    let ms = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "{kind:<8} {:>11.0} {:>8.2} {:>8.2} {:>24.1} {:>8.1}",
        latencies.len() as f64 / settings.time.as_secs_f64(),
        ms(0.5),
        ms(0.99),
        each(idle),
        each(busy),
    );
}

fn name(number: usize) -> String {
    format!("person{number}")
}

/// What is said: when, and something to fill it up.
fn body(began: Instant) -> String {
    format!("{:0width$}", began.elapsed().as_micros(), width = PAYLOAD)
}

fn heard(seen: &Seen, began: Instant, body: &str) {
    let then: u128 = body.trim().parse().expect("a time");
    let took = u64::try_from(began.elapsed().as_micros().saturating_sub(then)).unwrap_or(u64::MAX);
    seen.latencies.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(took.max(1));
}

/// One clock for everybody.
fn clock() -> Instant {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *BEGAN.get_or_init(Instant::now)
}

async fn durable_person(number: usize, address: SocketAddr, time: Duration, seen: &Seen) {
    let web = WebClient::new(&format!("http://{address}/lastmile")).expect("an address").no_proxy();
    let mut session = Light::connect(&web.websocket(), &name(number), "bench", false).await;
    seen.connected.wait().await;
    seen.go.wait().await;
    let (other, began) = (name(number ^ 1), clock());
    let message = || Message::to(other.as_str(), "chat.message", body(began)).build().expect("a message");
    if number.is_multiple_of(2) {
        session.publish(message()).await;
    }
    let end = Instant::now() + time;
    while let Ok(said) = tokio::time::timeout_at(end, session.next()).await {
        for said in said {
            match said {
                Said::Message(item) => {
                    heard(seen, began, &String::from_utf8_lossy(item.message.payload()));
                    session.publish(message()).await;
                }
                Said::Receipt(_, Published::Accepted) => {}
                Said::Receipt(number, Published::Refused(why)) => panic!("publish {number}: {why:?}"),
            }
        }
    }
}

async fn plain_person(number: usize, address: SocketAddr, time: Duration, seen: &Seen) {
    // A chat that is no session of ours still speaks in messages of a WebSocket.
    let socket = tokio::net::TcpStream::connect(address).await.expect("the server is there");
    socket.set_nodelay(true).expect("a socket");
    let url = format!("ws://{address}/{}", name(number));
    let (socket, _) = tokio_tungstenite::client_async(url, socket).await.expect("a WebSocket");
    let (mut sink, mut stream) = socket.split();
    seen.connected.wait().await;
    seen.go.wait().await;
    let (other, began) = (name(number ^ 1), clock());
    let message = || tokio_tungstenite::tungstenite::Message::text(format!("{other} {}", body(began)));
    if number.is_multiple_of(2) {
        sink.send(message()).await.expect("the connection stands");
    }
    let end = Instant::now() + time;
    while let Ok(Some(Ok(said))) = tokio::time::timeout_at(end, stream.next()).await {
        let text = said.into_text().expect("a text");
        heard(seen, began, text.split(' ').nth(1).unwrap_or_default());
        sink.send(message()).await.expect("the connection stands");
    }
}
