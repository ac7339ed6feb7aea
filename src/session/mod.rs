//! Sessions: the protocol between two ends, pure, deterministic, sans-IO.
//!
//! A session connects two engines, or an engine and a light client, over whatever carries frames: a WebSocket, a stream,
//! memory. It outlives its connections. To its engine it is a `Sink`: it is offered messages and
//! says what became of each. To the peer's messages it is the way into an inbox. Like the machine it knows no clock, no
//! task and no randomness; it is told what happens and says what to do.
//!
//! ```text
//!   engine ── Offer, Floor, Gap ───►┐                       ┌──► Outcomes, Reply        to the engine
//!   inbox ─── Verdicts ────────────►│  handle(now, input)   ├──► Ready, then take()     to the inbox
//!   transport Connected, Frame, … ─►│  poll_action()        ├──► Send, Disconnect       to the transport
//!   host ──── Renew, GoAway, Close ►│  poll_timeout()       ├──► RenewSoon, Lost, …     to the host
//!   clock ─── Tick ────────────────►┘                       └──► Parked, Quality, Over  to whoever watches
//! ```
//!
//! # The drain contract
//! 1. Call [`Session::handle`] with an input.
//! 2. Call [`Session::poll_action`] until it returns `None`, and do each action in order.
//! 3. After [`Event::Ready`], call [`Session::take`], handle what it gives, and say [`Input::Verdicts`].
//! 4. Ask [`Session::poll_timeout`] when to say [`Input::Tick`] if nothing happens before.
//!
//! An acceptor does not know whose a connection is before its hello was authenticated. Until then a [`Greeter`] holds it;
//! then [`Input::Admit`] hands it to the session of that user's device, which exists already or is made for it.
//! [`Admission`] stands before both. A connector asks a [`Dialer`], which puts [`Backoff`], [`Ladder`] and
//! [`Recovery`] together, what to do when a connection ends.
//!
//! # Numbers, lives, places
//! What is sent gets a **number**, consecutively in each direction. Numbers mean something within one **life** of the
//! session only, which has an epoch and a token. A life survives any number of connections, and ends with the memory of
//! either end, or when no connection came for `SessionConfig::keep`. When a connection is lost and the life goes on, what
//! the peer has not seen is sent again, and what it may not have heard is said again: nothing else. When the life is
//! over, everything that is unconfirmed goes back to the engine as `Disconnected`, and is offered again in the next one; the
//! receiver's inbox recognises the **place** in the sender's log that each message carries. So a resumed session is a matter
//! of speed, and correctness rests on places alone.
//!
//! # What makes it safe
//! - **A message that was offered gets one outcome** in every case, and a lost connection burns no attempt.
//! - **A new epoch is never paired with an old number**: both ends check it, and verdicts carry their epoch.
//! - **A takeover freezes the old connection** before the new one says or hears anything. A connector's own stands until
//!   another one has a welcome, and is not listened to meanwhile.
//! - **Order holds over pipelined frames**: after a message was not taken, nothing of its lane and ordering key that was
//!   sent before its sender heard of it is taken, on this connection or the next.
//! - **What cannot be replayed comes as a gap**, numbered and acknowledged like a message.
//! - **Everything is bounded**: what waits by `max_queue`, what is in flight by the peer's window, what is remembered by
//!   the window's span. A consumer that takes nothing is slowed, then parked: its messages go back to the outbox.
//! - **The peer is hostile until proven otherwise**: whatever breaks the protocol ends the connection with a [`Code`] that
//!   says what to do, and touches no other session.
//!
//! `docs/PROTOCOL.md` describes the wire for other languages.

mod admission;
mod backoff;
mod code;
mod config;
mod dialer;
pub mod frame;
mod handshake;
mod heartbeat;
mod incoming;
mod io;
mod ladder;
mod live;
mod outgoing;
mod patience;
mod publish;
mod quality;
mod recovery;
mod renewal;
#[expect(clippy::module_inception, reason = "one main type a file, named after it")]
mod session;
mod switch;
#[cfg(test)]
mod tests;

pub use admission::{Admission, AdmissionConfig, Rate};
pub use backoff::Backoff;
pub use code::{Advice, Code};
pub use config::SessionConfig;
pub use dialer::{DialAction, DialInput, DialState, Dialer, DialerConfig};
pub use handshake::{Greeted, Greeter};
pub use heartbeat::{Beat, Heartbeat};
pub use io::{Action, ConnId, Event, Grant, Inbound, InboundId, Input, Outcome, Verdict};
pub use ladder::{Ladder, LadderConfig};
pub use quality::{Grade, Quality};
pub use recovery::{Recovery, Step, Strategy};
pub use session::Session;
