//! What a host can plug in: the journal, the store, the sink, handlers, the receiver, the clock, transports, who somebody is and, with the feature
//! `encryption`, the keys.
//!
//! `Journal` and `Store` are small, synchronous, object-safe and speak bytes: everything that gives the bytes a
//! meaning lives in `storage/`. Each method's doc says what an implementation must do *to ensure correctness*;
//! the conformance suites in `testing` hold implementations, ours and foreign, to it.

mod acks;
mod authenticator;
mod clock;
mod credentials;
mod handler;
mod journal;
#[cfg(feature = "encryption")]
mod keys;
mod payload;
mod receiver;
mod sink;
mod store;
mod transport;

pub use acks::{Acks, Report, Reporting};
pub use authenticator::{Authenticator, Claim, Denied, Identity};
pub use clock::Clock;
pub use credentials::CredentialSource;
#[cfg(feature = "runtime")]
pub(crate) use handler::Withdrawal;
pub use handler::{Failure, Handler, Permission, Received};
pub use journal::{Appended, Group, Journal, JournalError, JournalSpace, Replay, TailCut};
#[cfg(feature = "encryption")]
pub use keys::{Key, KeyProvider, Keyring};
#[cfg(feature = "json")]
pub use payload::Json;
pub use payload::{FromPayload, IntoReply, PayloadError};
pub use receiver::Receiver;
pub use sink::Sink;
pub use store::{
    Batch, BatchOp, Flow, MAX_BATCH_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, Row, Store, StoreError, Visit,
};
pub use transport::{ConnectError, Connector, FrameReader, FrameWriter, Transport, TransportError};
