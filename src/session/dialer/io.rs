//! What goes into a [`Dialer`](super::Dialer) and what comes out of it.

use core::time::Duration;

use crate::session::code::Code;
use crate::session::quality::Grade;
use crate::time::Timestamp;

/// What happens to a dialer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DialInput {
    /// Begin.
    Start,
    /// There are credentials, asked for or not.
    Credentials,
    /// The host has none now.
    NoCredentials,
    /// Until when the credentials are good that the connection was opened with, or renewed: after `Opened`, and again when
    /// they were renewed. `None`: for as long as anybody knows.
    GoodUntil(Option<Timestamp>),
    /// The transport that was dialled stands, and the session says hello over it. A connection that is open stands all the while.
    Stands,
    /// The transport that was dialled could not be made, or was not let in while another connection stands.
    Failed(Code, Option<Duration>),
    /// The handshake is done.
    Opened,
    /// The session's connection is gone, and no other has taken its place.
    Lost(Code, Option<Duration>),
    /// The peer will close the connection, and wants to see us again after that time.
    GoingAway(Option<Duration>),
    /// How good the connection is.
    Graded(Grade),
    /// The host has another network, on which these transports worked before.
    NetworkChanged(Vec<usize>),
    /// It has given up, and the host wants it to try again.
    Reopen,
    /// Nothing more, whatever comes.
    Close(Code),
    /// Time has passed, see [`Dialer::poll_timeout`](super::Dialer::poll_timeout).
    Tick,
}

/// What the shell must do, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialAction {
    /// Ask the host for credentials, because of this; then say [`DialInput::Credentials`] or [`DialInput::NoCredentials`]. A
    /// question that has no answer yet is dropped: this one takes its place.
    AskCredentials(Option<Code>),
    /// Make a connection over this transport; then say [`DialInput::Stands`] or [`DialInput::Failed`].
    Dial(usize),
    /// Drop the attempt that is under way.
    Abandon,
    /// Tell the host.
    State(DialState),
}

/// Where a dialer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialState {
    /// No connection, and no attempt before this time.
    Offline(Timestamp, Option<Code>),
    /// There is no connection, and the host is asked for credentials, or has none that are good.
    NeedsCredentials(Option<Code>),
    /// An attempt over this transport is under way.
    Connecting(usize),
    /// A connection over this transport is open.
    Online(usize),
    /// It will not connect any more, unless it gave up by itself and is told to [`Reopen`](DialInput::Reopen).
    Closed(Code),
}
