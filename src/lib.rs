//! Embedded, offline-first message queue and delivery engine.

#![forbid(unsafe_code)]

#[cfg(feature = "storage")]
pub mod codec;
mod config;
pub mod digest;
mod error;
mod event;
mod id;
pub mod machine;
mod message;
pub mod ports;
pub mod record;
#[cfg(feature = "runtime")]
mod runtime;
pub mod session;
mod status;
mod time;

#[cfg(feature = "storage")]
pub mod storage;
#[cfg(feature = "testing")]
pub mod testing;

pub use config::{Config, ConfigError, KeepEnds, MAX_EVICTED, OnFailure, Overflow};
pub use error::{Closed, InvalidMessage, KeyError, MessageFlaw};
pub use event::{EventName, InvalidEventName, MAX_EVENT_BYTES};
pub use id::{
    CollapseKey, DeviceId, InvalidId, InvalidMessageId, KeyId, MAX_ID_BYTES, MessageId, OrderingKey,
    StreamId, UserId,
};
pub use message::{
    After, DevicePolicy, Durability, MAX_HEADER_BYTES, MAX_HEADERS, MAX_PAYLOAD_BYTES, Message,
    MessageBuilder, Otherwise, Priority,
};
#[cfg(feature = "runtime")]
pub use runtime::{
    Acceptor, AcceptorBuilder, AcceptorStats, Answers, AttachError, Attachment, BatchError, BuildError,
    Client, ClientBuildError, ClientBuilder, ClientState, Connection, ConnectionsWatch, DeadLetterHolder,
    DeadLetterHolders, Detached, DevicePresence, Distribution, DrainReport, Drained, EndFeed, Engine,
    EngineBuilder, Feed, FeedError, Filter, HearError, Heard, History, Inbox, MemoryReader, MemoryTransport,
    MemoryWriter, OperateError, OutboxLimit, Pattern, Peer, PresenceChange, PresenceKind, PresencePage,
    PresenceWatch, Reached, Receipt, RegisterError, Registration, RequestError, Router, RouterBuilder,
    SendError, Stage, StateWatch, Stats, SubscribeError, Subscription, SystemClock, UserPresence, WatchError,
    memory_transport,
};
#[cfg(feature = "metrics")]
pub use runtime::{METRICS, Metric, MetricKind};
pub use status::{EndReason, Status};
pub use time::Timestamp;

/// Compiles the README's example.
#[cfg(all(doctest, feature = "runtime", feature = "sled"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles the recipes.
#[cfg(all(doctest, feature = "runtime", feature = "sled"))]
#[doc = include_str!("../docs/GUIDE.md")]
struct Guide;
