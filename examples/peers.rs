//! A server and two clients over TCP, in one process: what alice sends while the server is away reaches bob when it is back.
//!
//! ```console
//! cargo run --release --example peers
//! ```
//!
//! The transport is all that a host has to write: whole frames over a byte stream, each behind its length.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::{
    Authenticator, Claim, ConnectError, Connector, Denied, FrameReader, FrameWriter, Identity, Sink,
    Transport, TransportError,
};
use lastmile::session::Code;
use lastmile::storage::SledStore;
use lastmile::{Acceptor, Client, Engine, Message, Stage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const MAX_FRAME: usize = 2 << 20;
const ADDRESS: &str = "127.0.0.1:0";

type Failure = Box<dyn std::error::Error>;

/// A stream of frames, each behind its length.
struct Tcp(TcpStream);
struct Reader {
    half: OwnedReadHalf,
    read: BytesMut,
}
struct Writer(OwnedWriteHalf);

fn broken(error: std::io::Error) -> TransportError {
    TransportError::Broken(error.to_string())
}

impl Transport for Tcp {
    type Reader = Reader;
    type Writer = Writer;

    fn split(self) -> (Reader, Writer) {
        let (half, writer) = self.0.into_split();
        (Reader { half, read: BytesMut::new() }, Writer(writer))
    }
}

impl FrameReader for Reader {
    async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            if let Some(length) =
                self.read.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize)
            {
                if length > MAX_FRAME {
                    return Err(TransportError::TooLarge { limit: MAX_FRAME });
                }
                if self.read.len() >= 4 + length {
                    self.read.advance(4);
                    return Ok(Some(self.read.split_to(length).freeze()));
                }
            }
            // What has been read is in `read`, so a future that is dropped here loses nothing.
            if self.half.read_buf(&mut self.read).await.map_err(broken)? == 0 {
                return Ok(None);
            }
        }
    }
}

impl FrameWriter for Writer {
    async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), TransportError> {
        let mut bytes = BytesMut::with_capacity(frames.iter().map(|frame| frame.len() + 4).sum());
        for frame in frames {
            bytes.extend_from_slice(&(frame.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&frame);
        }
        self.0.write_all(&bytes).await.map_err(broken)
    }

    async fn close(&mut self, _code: Code) {
        let _ = self.0.shutdown().await;
    }
}

struct Dial(std::net::SocketAddr);

impl Connector for Dial {
    type Transport = Tcp;

    fn name(&self) -> &'static str {
        "tcp"
    }

    async fn connect(&self) -> Result<Tcp, ConnectError> {
        let stream = TcpStream::connect(self.0).await.map_err(ConnectError::unreachable)?;
        stream.set_nodelay(true).map_err(ConnectError::unreachable)?;
        Ok(Tcp(stream))
    }
}

/// For this process only: everybody is who they say they are.
struct ByName;

impl Authenticator for ByName {
    async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
        claim.user.map(Identity::new).ok_or_else(|| Denied::refused("no name"))
    }
}

/// Prints what comes, and passes it on.
struct Screen(tokio::sync::mpsc::Sender<String>);

impl Sink for Screen {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        let mut verdicts = Vec::new();
        for delivery in batch {
            let message = &delivery.message;
            let from = message.sender().map(ToString::to_string).unwrap_or_default();
            let text = String::from_utf8_lossy(message.payload()).into_owned();
            println!("{}: {from} says: {text}", message.recipient());
            let shown = self.0.send(text).await.is_ok();
            verdicts.push((delivery.entry, if shown { Verdict::Delivered } else { Verdict::Nack(None) }));
        }
        verdicts
    }
}

fn client(home: &tempfile::TempDir, name: &str, address: std::net::SocketAddr) -> Result<Client, Failure> {
    let engine = Engine::builder(SledStore::open(home.path().join(name))?);
    Ok(Client::builder(engine, name, "laptop").connector(Dial(address)).build()?)
}

async fn serve(listener: TcpListener, acceptor: Acceptor) {
    while let Ok((stream, from)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        acceptor.accept(Tcp(stream), "tcp", from.ip().to_string());
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let home = tempfile::tempdir()?;
    let listener = TcpListener::bind(ADDRESS).await?;
    let address = listener.local_addr()?;
    let alice = client(&home, "alice", address)?;
    let bob = client(&home, "bob", address)?;
    let (shown, mut screen) = tokio::sync::mpsc::channel(16);
    let _screen = bob.attach("screen", Screen(shown))?;

    // Nobody serves yet, and nothing is lost by that.
    let first = alice.send(Message::to("bob", "chat.message", "is anybody there?").build()?).await?;
    println!("alice: accepted, and durable here; {:?}", alice.state());

    let engine = Engine::builder(SledStore::open(home.path().join("server"))?).build()?;
    let acceptor = Acceptor::builder(engine.clone(), ByName).build()?;
    let mut serving = JoinSet::new();
    serving.spawn(serve(listener, acceptor.clone()));
    first.reached(Stage::Delivered).await?;
    println!("alice: the server has it");
    screen.recv().await;

    let question = Message::to("bob", "chat.message", "good. see you").build()?;
    alice.send(question).await?;
    screen.recv().await;
    for connection in acceptor.connections() {
        println!("server: {} over {}, {:?}", connection.peer.user, connection.transport, connection.grade);
    }

    let deadline = Duration::from_secs(5);
    println!("server: {:?}", acceptor.shutdown(deadline).await);
    serving.abort_all();
    println!("alice: {}", alice.shutdown(deadline).await);
    println!("bob: {}", bob.shutdown(deadline).await);
    println!("server: {}", engine.shutdown(deadline).await);
    Ok(())
}
