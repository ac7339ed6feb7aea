//! A server on loopback, and requests by hand.

#![allow(dead_code, reason = "each test uses some of it")]

pub(crate) mod light;
pub(crate) mod proxy;

use std::net::SocketAddr;
use std::time::Duration;

use lastmile::ports::{Connector, FrameReader, FrameWriter, Transport, TransportError};
use lastmile_web::{Peer, ServeConfig, Web, WebClient, WebConfig, WebReader, WebTransport, WebWriter};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

/// Longer than anything takes that works, on a machine twenty times slower than ours.
pub(crate) const LONG: Duration = Duration::from_secs(180);

/// A server whose connections the test takes itself.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) web: Web,
    incoming: Mutex<mpsc::UnboundedReceiver<(WebTransport, Peer)>>,
    _stop: oneshot::Sender<()>,
    _task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(config: WebConfig) -> Self {
        Self::start_with(config, ServeConfig::default()).await
    }

    pub(crate) async fn start_with(config: WebConfig, serve: ServeConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, incoming) = mpsc::unbounded_channel();
        let web = Web::new(config);
        let app = web.router(move |transport, peer| {
            let sender = sender.clone();
            async move {
                // A test that has ended takes nothing more.
                let _taken = sender.send((transport, peer));
            }
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let task = spawn(async move {
            let stopped = async { drop(stopped.await) };
            lastmile_web::serve(listener, app, serve, stopped).await.unwrap();
        });
        Self { address, web, incoming: Mutex::new(incoming), _stop: stop, _task: task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/lastmile", self.address)
    }

    pub(crate) fn client(&self) -> WebClient {
        WebClient::new(&self.url()).unwrap().no_proxy()
    }

    /// The next connection that came in, as it is.
    pub(crate) async fn take(&self) -> (WebTransport, Peer) {
        within(async { self.incoming.lock().await.recv().await.unwrap() }).await
    }

    /// The next connection that came in.
    pub(crate) async fn next(&self) -> (WebReader, WebWriter, Peer) {
        let (transport, peer) = self.take().await;
        let (reader, writer) = transport.split();
        (reader, writer, peer)
    }

    /// Both ends of a connection.
    pub(crate) async fn pair<C: Connector>(
        &self,
        connector: &C,
    ) -> (Ends<C::Transport>, WebReader, WebWriter) {
        let transport = within(connector.connect()).await.unwrap();
        let (reader, writer, peer) = self.next().await;
        assert_eq!(peer.kind.name(), connector.name());
        let (client_reader, client_writer) = transport.split();
        (Ends { reader: client_reader, writer: client_writer }, reader, writer)
    }

    /// A request by hand: its status and all of the answer.
    pub(crate) async fn request(&self, head: &str, body: &[u8]) -> (u16, String) {
        request(self.address, head, body).await
    }

    /// Opens a connection over HTTP by hand.
    pub(crate) async fn open(&self) -> String {
        let (status, answer) = self.request("POST /lastmile/open HTTP/1.1", b"").await;
        assert_eq!(status, 200, "{answer}");
        answer.rsplit('"').nth(1).unwrap().to_owned()
    }

    pub(crate) fn refused(&self, kind: &str) -> u64 {
        self.web.stats().refused.iter().find(|(name, _)| *name == kind).unwrap().1
    }
}

/// A client's two halves.
pub(crate) struct Ends<T: Transport> {
    pub(crate) reader: T::Reader,
    pub(crate) writer: T::Writer,
}

/// A request by hand: its status and all of the answer.
pub(crate) async fn request(host: SocketAddr, head: &str, body: &[u8]) -> (u16, String) {
    let mut socket = TcpStream::connect(host).await.unwrap();
    let length = body.len();
    let head = head.trim_end();
    let text = format!("{head}\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    socket.write_all(text.as_bytes()).await.unwrap();
    // A server may answer and close before it has read everything.
    let _sent = socket.write_all(body).await;
    answer(&mut socket).await
}

/// Reads until the server closes.
pub(crate) async fn answer(socket: &mut TcpStream) -> (u16, String) {
    let mut answer = Vec::new();
    within(async {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = socket.read(&mut piece).await {
            answer.extend_from_slice(&piece[..read]);
        }
    })
    .await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

/// Fails rather than waits.
pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("it takes too long")
}

pub(crate) fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::runtime::Handle::current().spawn(task)
}

/// Reads so many frames.
pub(crate) async fn read_some(reader: &mut impl FrameReader, count: usize) -> Vec<bytes::Bytes> {
    let mut frames = Vec::new();
    while frames.len() < count {
        frames.push(within(reader.read()).await.unwrap().expect("the connection was closed"));
    }
    frames
}

/// Reads until the end, however it comes.
pub(crate) async fn read_to_end(reader: &mut impl FrameReader) -> Result<usize, TransportError> {
    let mut count = 0;
    while within(reader.read()).await?.is_some() {
        count += 1;
    }
    Ok(count)
}

pub(crate) async fn write(writer: &mut impl FrameWriter, frames: &[&[u8]]) {
    let frames = frames.iter().map(|frame| bytes::Bytes::copy_from_slice(frame)).collect();
    within(writer.write(frames)).await.unwrap();
}
