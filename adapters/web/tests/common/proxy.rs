//! A proxy on loopback between client and server, which does what networks do.
//!
//! It passes bytes on, and knows enough of HTTP to tell a WebSocket from an event stream. It can cut all connections, stall
//! them, refuse or swallow WebSockets, hold event streams back until they end, lose answers, and say everything twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::spawn;

/// What it does to connections, from now on.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// WebSockets are answered with 403.
    pub(crate) block_upgrades: AtomicBool,
    /// WebSockets are answered nothing, for ever.
    pub(crate) swallow_upgrades: AtomicBool,
    /// Event streams are held back until they end, which they do not.
    pub(crate) hold_streams: AtomicBool,
    /// Nothing passes, in either direction.
    pub(crate) stall: AtomicBool,
    /// The next so many answers to requests are lost: the connection is cut instead.
    pub(crate) lose_answers: AtomicU64,
    /// Each request is sent to the server twice, over two connections; the second answer is thrown away.
    pub(crate) duplicate: AtomicBool,
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) trouble: Arc<Trouble>,
    /// Raised with each cut.
    cuts: watch::Sender<u64>,
    /// Raised when something about stalling changed.
    changes: watch::Sender<u64>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Line {
    trouble: Arc<Trouble>,
    cuts: watch::Receiver<u64>,
    changes: watch::Receiver<u64>,
    upstream: SocketAddr,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, was_cut) = watch::channel(0);
        let (changes, changed) = watch::channel(0);
        let trouble = Arc::new(Trouble::default());
        let line = Line { trouble: Arc::clone(&trouble), cuts: was_cut, changes: changed, upstream };
        let task = spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut line = line.clone();
                line.cuts.mark_unchanged();
                spawn(async move {
                    let mut cut = line.cuts.clone();
                    tokio::select! {
                        () = line.pass(client) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, trouble, cuts, changes, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/lastmile", self.address)
    }

    /// Cuts every connection there is.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }

    pub(crate) fn stall(&self, stall: bool) {
        self.trouble.stall.store(stall, Ordering::SeqCst);
        self.changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn block_upgrades(&self, block: bool) {
        self.trouble.block_upgrades.store(block, Ordering::SeqCst);
    }

    pub(crate) fn swallow_upgrades(&self, swallow: bool) {
        self.trouble.swallow_upgrades.store(swallow, Ordering::SeqCst);
    }

    pub(crate) fn hold_streams(&self, hold: bool) {
        self.trouble.hold_streams.store(hold, Ordering::SeqCst);
    }
}

/// A message of HTTP: its head, and as much of its body as its length says.
struct Read {
    bytes: Vec<u8>,
    head: String,
    /// Its body has no length: it goes on.
    open: bool,
}

impl Line {
    async fn pass(self, client: TcpStream) {
        let (mut client_in, mut client_out) = client.into_split();
        let Ok(server) = TcpStream::connect(self.upstream).await else { return };
        let (mut server_in, mut server_out) = server.into_split();
        while let Some(request) = read_message(&mut client_in).await {
            self.wait().await;
            let is_upgrade = request.head.contains("upgrade: websocket");
            if is_upgrade && self.trouble.block_upgrades.load(Ordering::SeqCst) {
                let refused =
                    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\nConnection: close\r\n\r\nblocked";
                let _sent = client_out.write_all(refused).await;
                return;
            }
            if is_upgrade && self.trouble.swallow_upgrades.load(Ordering::SeqCst) {
                return swallow(client_in, server_in).await;
            }
            if !is_upgrade
                && self.trouble.duplicate.load(Ordering::SeqCst)
                && request.head.starts_with("post")
            {
                self.say_again(request.bytes.clone());
            }
            if server_out.write_all(&request.bytes).await.is_err() {
                return;
            }
            if is_upgrade {
                return self.both_ways(client_in, client_out, server_in, server_out).await;
            }
            let Some(answer) = read_message(&mut server_in).await else { return };
            self.wait().await;
            if answer.head.contains("content-type: text/event-stream")
                && self.trouble.hold_streams.load(Ordering::SeqCst)
            {
                return swallow(client_in, server_in).await;
            }
            let losing = self
                .trouble
                .lose_answers
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if losing.is_ok() || client_out.write_all(&answer.bytes).await.is_err() {
                return;
            }
            if answer.open {
                return self.both_ways(client_in, client_out, server_in, server_out).await;
            }
        }
    }

    fn say_again(&self, bytes: Vec<u8>) {
        let upstream = self.upstream;
        spawn(async move {
            let Ok(server) = TcpStream::connect(upstream).await else { return };
            let (mut server_in, mut server_out) = server.into_split();
            if server_out.write_all(&bytes).await.is_ok() {
                read_message(&mut server_in).await;
            }
        });
    }

    /// Waits while it stalls.
    async fn wait(&self) {
        let mut changes = self.changes.clone();
        // If the proxy has gone, so has this.
        let _gone = changes.wait_for(|_| !self.trouble.stall.load(Ordering::SeqCst)).await;
    }

    async fn both_ways(
        self,
        from: OwnedReadHalf,
        to: OwnedWriteHalf,
        back: OwnedReadHalf,
        there: OwnedWriteHalf,
    ) {
        tokio::select! {
            () = self.copy(from, there) => {}
            () = self.copy(back, to) => {}
        }
    }

    async fn copy(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut piece = vec![0; 16 << 10];
        while let Ok(read @ 1..) = from.read(&mut piece).await {
            self.wait().await;
            if to.write_all(&piece[..read]).await.is_err() {
                return;
            }
        }
    }
}

/// Reads both until one of them ends.
async fn swallow(mut one: OwnedReadHalf, mut other: OwnedReadHalf) {
    let (mut first, mut second) = (vec![0; 4096], vec![0; 4096]);
    loop {
        let read = tokio::select! {
            read = one.read(&mut first) => read,
            read = other.read(&mut second) => read,
        };
        if !matches!(read, Ok(1..)) {
            return;
        }
    }
}

async fn read_message(from: &mut OwnedReadHalf) -> Option<Read> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 16 << 10];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        match from.read(&mut piece).await {
            Ok(read @ 1..) => bytes.extend_from_slice(&piece[..read]),
            _ => return None,
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    let has_none = head.starts_with("get ") || head.contains(" 204 ") || head.starts_with("http/1.1 101");
    let open = length.is_none() && !has_none && head.starts_with("http/");
    while length.is_some_and(|length| bytes.len() < end + length) {
        match from.read(&mut piece).await {
            Ok(read @ 1..) => bytes.extend_from_slice(&piece[..read]),
            _ => return None,
        }
    }
    Some(Read { bytes, head, open })
}
