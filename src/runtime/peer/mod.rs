//! Sessions on tokio: what accepts connections, what makes them, and what lies between a session and its engine.
//!
//! The protocol is in [`session`](crate::session), pure; nothing here decides. Each session has one task, which owns it, its
//! connection and its queue of offers. Nothing is locked over an await, and whatever the host plugs in may panic: that ends
//! its own message, connection or question, and nothing else.

mod acceptor;
mod alarm;
mod client;
mod conn;
mod counters;
mod link;
mod memory;
mod pump;
mod receive;

pub use acceptor::{Acceptor, AcceptorBuilder, AcceptorStats, Connection, ConnectionsWatch, Drained, Peer};
pub use client::{Client, ClientBuildError, ClientBuilder, ClientState, StateWatch};
pub use memory::{MemoryReader, MemoryTransport, MemoryWriter, memory_transport};
