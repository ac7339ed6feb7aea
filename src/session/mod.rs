//! Sessions.

mod backoff;
mod code;
mod config;
pub mod frame;
mod handshake;
mod heartbeat;
mod incoming;
mod io;
mod live;
mod outgoing;
mod publish;
mod quality;
#[expect(clippy::module_inception, reason = "one main type a file, named after it")]
mod session;

pub use backoff::Backoff;
pub use code::{Advice, Code};
pub use config::SessionConfig;
pub use handshake::{Greeted, Greeter};
pub use heartbeat::{Beat, Heartbeat};
pub use io::{Action, ConnId, Event, Grant, Inbound, InboundId, Input, Outcome, Verdict};
pub use quality::{Grade, Quality};
pub use session::Session;
