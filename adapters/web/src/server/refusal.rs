//! Why a request is refused: what the peer is told, and what is counted and logged.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use lastmile::session::Code;
use serde_json::json;
use tokio::time::Instant;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $status:ident, $code:ident, $kind:literal, $text:literal;)*) => {
        /// Why a request to the session endpoints was refused. Nothing was taken from it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Refusal {
            $($(#[$doc])* $name,)*
        }

        impl Refusal {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name in logs and metrics.
            #[must_use]
            pub const fn kind(self) -> &'static str {
                match self {
                    $(Self::$name => $kind,)*
                }
            }

            /// The HTTP status it is answered with.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self {
                    $(Self::$name => StatusCode::$status,)*
                }
            }

            /// What the peer should do about it.
            #[must_use]
            pub const fn code(self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                }
            }

            /// What it is answered with for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

refusals! {
    /// A page of another origin.
    Origin = FORBIDDEN, Forbidden, "origin", "pages of this origin may not connect here";
    /// No WebSocket handshake, or not of this protocol.
    NotAWebSocket = BAD_REQUEST, Malformed, "not_a_websocket", "a WebSocket handshake with the subprotocol lastmile.v1 was expected";
    /// A query that misses something.
    Query = BAD_REQUEST, Malformed, "query", "the query needs c, and n where requests are counted";
    /// A body that is not made of frames.
    Body = BAD_REQUEST, Malformed, "body", "the body is not made of lines that are frames";
    /// A body or a frame over the limit.
    TooLarge = PAYLOAD_TOO_LARGE, FrameTooLarge, "too_large", "the body or a frame of it is over the limit";
    /// A body that did not come in time.
    SlowBody = REQUEST_TIMEOUT, TransportLost, "slow_body", "the body did not come in time";
    /// A connection that is not there, or not any more.
    Unknown = NOT_FOUND, TransportLost, "unknown_connection", "there is no such connection, or not any more: open a new one";
    /// A number that is neither the next nor the last one, more repeats at once than a client makes, or a second reader of
    /// one connection.
    OutOfTurn = CONFLICT, OutOfOrder, "out_of_turn", "this is neither the next request nor a repeat of the last one";
    /// Too many connections from one address.
    Address = TOO_MANY_REQUESTS, RateLimited, "address", "too many connections from this address";
    /// Too many connections.
    Full = SERVICE_UNAVAILABLE, Overloaded, "full", "no room for one more connection";
    /// Too many connections to which nothing has been answered yet.
    Pending = SERVICE_UNAVAILABLE, Overloaded, "pending", "too many connections wait for their handshake";
}

impl Refusal {
    /// The whole answer; when to come back is in it where the code asks for that.
    pub(super) fn response(self, retry_after: Duration) -> Response {
        let later = self.code().advice() == lastmile::session::Advice::ComeBackLater;
        let mut body = json!({ "code": self.code().number(), "text": self.text() });
        if later {
            body["retry_after_ms"] = json!(u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX));
        }
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if later {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)));
        }
        response
    }
}

/// Counts refusals, and logs each kind at most once in a while.
#[derive(Debug)]
pub(super) struct Refusals(Tally<{ Refusal::ALL.len() }>);

impl Refusals {
    pub(super) fn new(every: Duration) -> Self {
        Self(Tally::new(every))
    }

    pub(super) fn count(&self, refusal: Refusal) -> u64 {
        self.0.count(refusal as usize)
    }

    /// Counts one, and says so if it is time; whether it did.
    pub(super) fn note(&self, refusal: Refusal, from: Option<IpAddr>) -> bool {
        let Some(count) = self.0.note(refusal as usize) else { return false };
        tracing::warn!(
            error.type = refusal.kind(),
            count,
            last_address = ?from,
            "requests were refused: {}",
            refusal.text()
        );
        true
    }
}

/// Counts what happens, by kind, and says when it is time to speak of it.
#[derive(Debug)]
pub(super) struct Tally<const KINDS: usize> {
    counts: [AtomicU64; KINDS],
    said: Mutex<[Option<Said>; KINDS]>,
    every: Duration,
}

/// What was said last.
#[derive(Clone, Copy, Debug)]
struct Said {
    at: Instant,
    count: u64,
}

impl<const KINDS: usize> Tally<KINDS> {
    pub(super) fn new(every: Duration) -> Self {
        Self { counts: [const { AtomicU64::new(0) }; KINDS], said: Mutex::new([None; KINDS]), every }
    }

    pub(super) fn count(&self, kind: usize) -> u64 {
        self.counts[kind].load(Ordering::Relaxed)
    }

    /// Counts one. How many there were since that was last said, if it is time to say it again.
    pub(super) fn note(&self, kind: usize) -> Option<u64> {
        let count = self.counts[kind].fetch_add(1, Ordering::Relaxed) + 1;
        let now = Instant::now();
        let mut all = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let said = &mut all[kind];
        if said.is_some_and(|said| now.duration_since(said.at) < self.every) {
            return None;
        }
        let since = count.saturating_sub(said.map_or(0, |said| said.count));
        *said = Some(Said { at: now, count });
        Some(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn refusals_are_counted_each_and_logged_once_in_an_interval() {
        let refusals = Refusals::new(Duration::from_secs(10));
        assert!(refusals.note(Refusal::Origin, None));
        assert!((0..100).all(|_| !refusals.note(Refusal::Origin, None)));
        assert!(refusals.note(Refusal::Full, None), "another kind has an interval of its own");
        assert_eq!((refusals.count(Refusal::Origin), refusals.count(Refusal::Full)), (101, 1));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(refusals.note(Refusal::Origin, None));
        assert!(!refusals.note(Refusal::Origin, None));
    }

    #[test]
    fn whoever_should_come_back_is_told_when() {
        for refusal in Refusal::ALL {
            let response = refusal.response(Duration::from_millis(1500));
            let told = response.headers().contains_key(header::RETRY_AFTER);
            assert_eq!(told, matches!(refusal.status().as_u16(), 429 | 503), "{refusal:?}");
            assert!(response.status().is_client_error() || response.status().is_server_error());
        }
    }
}
