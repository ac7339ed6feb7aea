//! What the page asks for beside its session: `README.md` has the requests.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::stream;
use http::{HeaderMap, StatusCode, header};
use lastmile::machine::{Operation, Target};
use lastmile::{Message, MessageId, Priority, Status, UserId};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::people::name;
use super::server::{Chat, TOKEN_AGE};
use super::statuses::hex;

/// The largest request, in bytes.
const MAX_BODY: usize = 64 << 10;
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most messages that are asked about at once.
const MAX_IDS: usize = 500;
/// The most messages of one flood, and those of a batch.
const MAX_FLOOD: u64 = 10_000;
const BATCH: u64 = 500;

#[derive(Clone)]
struct Api {
    chat: Arc<Chat>,
    snapshots: watch::Sender<Arc<str>>,
}

/// Why a request was refused.
enum Refused {
    Malformed(&'static str),
    Unauthorized(String),
    Failed(String),
}

impl axum::response::IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, why) = match self {
            Self::Malformed(why) => (StatusCode::BAD_REQUEST, why.to_owned()),
            Self::Unauthorized(why) => (StatusCode::UNAUTHORIZED, why),
            Self::Failed(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
        };
        (status, json(&json!({ "error": why }))).into_response()
    }
}

type Answer = Result<Response, Refused>;

/// The routes.
pub(crate) fn routes(chat: Arc<Chat>, snapshots: watch::Sender<Arc<str>>) -> Router {
    Router::new()
        .route("/api/token", post(token))
        .route("/api/people", get(people))
        .route("/api/status", post(status))
        .route("/api/cancel", post(cancel))
        .route("/api/flood", post(flood))
        .layer(middleware::from_fn(in_time))
        .route("/api/engine", get(engine))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Api { chat, snapshots })
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

/// Signs in as anybody.
async fn token(State(api): State<Api>, body: Bytes) -> Answer {
    let body = read(&body)?;
    let name = body["name"]
        .as_str()
        .and_then(name)
        .ok_or(Refused::Malformed("name: 1 to 32 characters without |"))?;
    if !api.chat.people.add(name).map_err(failed)? {
        return Err(Refused::Failed("too many people".into()));
    }
    let token = api.chat.issuer.issue(name, TOKEN_AGE).map_err(failed)?;
    Ok(json(&json!({ "token": token, "user": name, "expires_in_ms": TOKEN_AGE.as_millis() as u64 })))
}

async fn people(State(api): State<Api>, headers: HeaderMap) -> Answer {
    authenticated(&api, &headers)?;
    let people: Vec<Value> = api
        .chat
        .people
        .all()
        .into_iter()
        .filter_map(|name| {
            let presence = api.chat.engine.presence(&UserId::new(&name).ok()?);
            let seen = presence.last_seen().map(|at| at.as_millis());
            Some(json!({ "name": name, "online": presence.is_present(), "last_seen": seen }))
        })
        .collect();
    Ok(json(&json!({ "people": people })))
}

/// What became of messages of the one who asks.
async fn status(State(api): State<Api>, headers: HeaderMap, body: Bytes) -> Answer {
    let user = authenticated(&api, &headers)?;
    let body = read(&body)?;
    let asked = body["ids"].as_array().ok_or(Refused::Malformed("ids: a list of {to, id}"))?;
    let mut statuses = Vec::new();
    for one in asked.iter().take(MAX_IDS) {
        let target = target(one, &user)?;
        let (to, id) = (one["to"].clone(), hex(target.id));
        let outcome = api.chat.engine.operate(Operation::Locate(target)).await;
        let located = outcome.ok().and_then(|outcome| outcome.located);
        let status = located.as_ref().map_or("unknown", |located| word(located.status));
        let possibly = located.is_some_and(|located| located.possibly_delivered);
        statuses.push(json!({ "to": to, "id": id, "status": status, "possibly_delivered": possibly }));
    }
    Ok(json(&json!({ "statuses": statuses })))
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::Accepted => "accepted",
        Status::Sent => "sent",
        Status::Retrying => "retrying",
        Status::Ended(reason) => reason.as_str(),
    }
}

/// Withdraws a message that waits.
async fn cancel(State(api): State<Api>, headers: HeaderMap, body: Bytes) -> Answer {
    let user = authenticated(&api, &headers)?;
    let target = target(&read(&body)?, &user)?;
    let outcome = api.chat.engine.operate(Operation::Cancel(target)).await;
    let ended = outcome.as_ref().is_ok_and(|outcome| outcome.messages > 0);
    let possibly = outcome.is_ok_and(|outcome| outcome.possibly_delivered > 0);
    Ok(json(&json!({ "cancelled": ended, "possibly_delivered": possibly })))
}

/// Sends thousands of messages that nobody waits for, so that one can see what overtakes them.
async fn flood(State(api): State<Api>, headers: HeaderMap, body: Bytes) -> Answer {
    let user = authenticated(&api, &headers)?;
    let body = read(&body)?;
    let to = recipient(&body)?;
    let count = body["count"].as_u64().unwrap_or(MAX_FLOOD).min(MAX_FLOOD);
    let mut accepted = 0;
    for first in (0..count).step_by(usize::try_from(BATCH).unwrap_or(usize::MAX)) {
        let batch: Result<Vec<_>, _> = (first..count.min(first + BATCH))
            .map(|n| {
                let payload = json!({ "n": n, "of": count }).to_string();
                let message = Message::to(to.clone(), "flood.item", payload);
                message.sender(user.clone()).priority(Priority::Low).ttl(Duration::from_secs(600)).build()
            })
            .collect();
        let batch = batch.map_err(failed)?;
        let size = batch.len();
        if let Err(why) = api.chat.engine.send_batch(batch).await {
            return if accepted == 0 { Err(failed(why)) } else { Ok(json(&json!({ "accepted": accepted }))) };
        }
        accepted += size;
    }
    Ok(json(&json!({ "accepted": accepted })))
}

/// A look at the engine a second.
async fn engine(State(api): State<Api>, headers: HeaderMap) -> Answer {
    authenticated(&api, &headers)?;
    let events = stream::unfold(api.snapshots.subscribe(), |mut snapshots| async move {
        snapshots.changed().await.ok()?;
        let event = format!("data: {}\n\n", *snapshots.borrow_and_update());
        Some((Ok::<_, std::convert::Infallible>(event), snapshots))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(events)).into_response())
}

fn authenticated(api: &Api, headers: &HeaderMap) -> Result<UserId, Refused> {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    match api.chat.tokens.check(token.as_bytes()) {
        Ok(identity) => Ok(identity.user),
        Err(denied) => Err(Refused::Unauthorized(denied.text)),
    }
}

fn target(body: &Value, sender: &UserId) -> Result<Target, Refused> {
    let id = body["id"].as_str().and_then(|id| id.parse::<MessageId>().ok());
    let id = id.ok_or(Refused::Malformed("id: 32 hexadecimal digits"))?;
    Ok(Target { user: recipient(body)?, id, sender: Some(Some(sender.clone())) })
}

fn recipient(body: &Value) -> Result<UserId, Refused> {
    let to = body["to"].as_str().and_then(name).and_then(|name| UserId::new(name).ok());
    to.ok_or(Refused::Malformed("to: a name"))
}

fn read(body: &Bytes) -> Result<Value, Refused> {
    serde_json::from_slice(body).map_err(|_| Refused::Malformed("a JSON object was expected"))
}

fn failed(why: impl std::fmt::Display) -> Refused {
    Refused::Failed(why.to_string())
}

fn json(value: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, value.to_string()).into_response()
}
