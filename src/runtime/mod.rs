//! The async shell on tokio: it moves inputs and actions between hosts, machines, threads and sinks, and decides
//! nothing.
//!
//! - A *driver* task per shard owns a [`Machine`](crate::machine::Machine).
//! - The *committer* thread owns the journal: everything that waits becomes one group, one write, one sync.
//! - The *keeper* thread settles sealed journal segments into the store and merges runs.
//! - Each attached sink has a task of its own, and so has each ordering key of which a handler runs.
//!
//! What is bounded: a driver's mailbox (senders wait), the commits a driver has open (256, or 2 MiB; then it takes
//! no mail), batches across shards under way (64, or 4 MiB; then senders wait), the queue to a sink (one window; then the sink counts as busy), loads under way (four), watchers (65,536 a
//! shard), subscriptions (65,536 of users, 64 others; each holds 256 changes, then it lags), a router's
//! handlers (1,024), handlers that run (256; the others wait), and what one attachment or session has with it (1,024).

mod attachment;
mod batch;
mod builder;
mod clock;
mod committer;
mod contain;
mod devices;
mod driver;
mod ends;
mod engine;
mod error;
mod fanout;
mod histogram;
mod history;
mod hub;
mod inbox;
mod keeper;
mod letters;
mod limit;
mod mail;
mod meters;
mod operate;
mod peer;
mod presence;
mod queue;
mod read;
mod receipt;
mod report;
mod requests;
mod router;
mod sink;
mod stats;
mod subscribe;
mod tasks;
mod watch;

pub use attachment::{Attachment, Detached};
pub use builder::{BuildError, EngineBuilder};
pub use clock::SystemClock;
#[cfg(feature = "testing")]
pub use clock::VirtualClock;
pub use ends::{EndFeed, FeedError};
pub use engine::Engine;
pub use error::{AttachError, BatchError, OperateError, RequestError, SendError, WatchError};
pub use histogram::Distribution;
pub use history::History;
pub use hub::{HearError, SubscribeError};
pub use inbox::Inbox;
pub use letters::{DeadLetterHolder, DeadLetterHolders};
pub use limit::OutboxLimit;
#[cfg(feature = "metrics")]
pub use meters::{METRICS, Metric, MetricKind};
pub use peer::{
    Acceptor, AcceptorBuilder, AcceptorStats, Client, ClientBuildError, ClientBuilder, ClientState,
    Connection, ConnectionsWatch, Drained, MemoryReader, MemoryTransport, MemoryWriter, Peer, StateWatch,
    memory_transport,
};
pub use presence::{DevicePresence, PresenceChange, PresenceKind, PresencePage, PresenceWatch, UserPresence};
pub use receipt::{Reached, Receipt, Stage};
pub use report::DrainReport;
pub use router::{Answers, Feed, Pattern, RegisterError, Registration, Router, RouterBuilder};
pub use stats::Stats;
pub use subscribe::{Filter, Heard, Subscription};
