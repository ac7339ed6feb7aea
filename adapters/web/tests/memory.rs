//! What an idle connection with a session costs the server, in bytes of heap.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::Duration;

use common::{LONG, spawn};
use lastmile::ports::{Authenticator, Claim, Denied, Identity};
use lastmile::session::{AdmissionConfig, Rate};
use lastmile::storage::MemoryStore;
use lastmile::{Acceptor, Engine, UserId};
use lastmile_web::{ServeConfig, WebConfig, router};
use peak_alloc::PeakAlloc;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// The first ones fill what is there for all of them: no table grows while the others come.
const FIRST: usize = 300;
const OTHERS: usize = 100;
/// The most that one costs, in bytes. Of that its reader's buffer is 4 KiB; one of hyper's, which a request needs and a
/// WebSocket does not, would be 8 KiB more.
const MOST: usize = 24 << 10;

struct ByToken;

impl Authenticator for ByToken {
    async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
        UserId::new(&claim.credentials.0).map(Identity::new).map_err(Denied::refused)
    }
}

/// A client that costs no heap of this process: a blocking socket, and frames by hand.
fn connect(address: SocketAddr, name: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    let head = format!(
        "GET /lastmile/ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: lastmile.v1\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        answer.extend_from_slice(&byte);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    let hello = json!({
        "frame": "hello", "oldest": 1, "newest": 1, "codecs": [{"codec": "json"}], "device": "page",
        "credentials": name, "stream": "0123456789abcdef0123456789abcdef", "capabilities": "5", "horizon_ms": 0,
        "window": {"messages": 64, "bytes": 1 << 20, "reserve": 8}, "heartbeat_ms": 25_000, "max_frame": 1 << 20,
    })
    .to_string();
    let length = u16::try_from(hello.len()).unwrap();
    let mut frame = vec![0x81, 0xfe];
    frame.extend_from_slice(&length.to_be_bytes());
    // A mask of zeros.
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(hello.as_bytes());
    socket.write_all(&frame).unwrap();
    socket
}

async fn until(mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("it takes too long");
}

/// The heap once it does not change any more.
async fn settled() -> usize {
    let (mut before, mut same) = (HEAP.current_usage(), 0);
    until(|| {
        let now = HEAP.current_usage();
        same = if now == before { same + 1 } else { 0 };
        before = now;
        same > 40
    })
    .await;
    before
}

#[tokio::test]
async fn an_idle_connection_costs_a_few_kilobytes_and_no_buffer_of_its_request() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let any = Rate { every: Duration::from_micros(10), burst: 100_000 };
    let mut admission = AdmissionConfig::default();
    (admission.address, admission.user, admission.global) = (any, any, any);
    let acceptor = Acceptor::builder(engine, ByToken).admission(admission).build().unwrap();
    let mut config = WebConfig::default();
    config.max_per_address = config.max_connections;
    let app = router(acceptor.clone(), config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    spawn(async move {
        let stopped = async { drop(stopped.await) };
        lastmile_web::serve(listener, app, ServeConfig::default(), stopped).await.unwrap();
    });
    let open = async |numbers: Range<usize>| {
        let all = numbers.end;
        let connect = move || numbers.map(|n| connect(address, &format!("person{n}"))).collect();
        let sockets: Vec<TcpStream> = tokio::task::spawn_blocking(connect).await.unwrap();
        until(|| acceptor.stats().open == all as u64).await;
        sockets
    };
    let first = open(0..FIRST).await;
    let before = settled().await;
    let others = open(FIRST..FIRST + OTHERS).await;
    let each = settled().await.saturating_sub(before) / OTHERS;
    println!("an idle WebSocket with its session costs {each} bytes of heap");
    assert!(each <= MOST, "{each}");
    drop((first, others, stop));
}
