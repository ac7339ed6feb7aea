//! The endpoints of connections over HTTP.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use futures_util::stream;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use lastmile::session::Code;
use serde_json::json;

use super::pipe::{Down, Pipe, PollTurn, Up};
use super::refusal::Refusal;
use super::transport::WebTransport;
use super::{Accept, Hub, Kind, Peer, origin};
use crate::line;

/// What an event stream begins with: enough for a proxy that waits for the first kilobytes, then what the client waits for.
fn opening() -> Bytes {
    let mut text = Vec::from([b':']);
    text.resize(2048, b' ');
    text.extend_from_slice(b"\n\nevent: open\ndata: {}\n\n");
    Bytes::from(text)
}

/// Runs what answers a request, after the checks that all have in common.
async fn answer<F>(
    hub: Arc<Hub>,
    request: Request,
    respond: impl FnOnce(Arc<Hub>, Request, Option<IpAddr>) -> F,
) -> Response
where
    F: Future<Output = Result<Response, Refusal>>,
{
    let address = match hub.admit(&request) {
        Ok(address) => address,
        Err(refusal) => {
            let address = hub.address(&request);
            return hub.refuse(refusal, address);
        }
    };
    let origin = request.headers().get(header::ORIGIN).cloned();
    let response = match respond(Arc::clone(&hub), request, address).await {
        Ok(response) => response,
        Err(refusal) => hub.refuse(refusal, address),
    };
    origin::share(response, origin)
}

pub(super) async fn open(hub: Arc<Hub>, accept: Arc<impl Accept>, request: Request) -> Response {
    answer(hub, request, |hub, request, address| async move {
        let kind = match query(&request, "by") {
            None | Some("sse") => Kind::Sse,
            Some("poll") => Kind::LongPoll,
            Some(_) => return Err(Refusal::Query),
        };
        let pipe = Pipe::new(&hub.config, hub.enter(address, kind)?);
        let id = unguessable().ok_or(Refusal::Full)?;
        hub.pipes().insert(id, Arc::clone(&pipe));
        let peer = Peer { address, kind };
        crate::tasks::spawn(async move {
            // Whoever has taken it and forgotten it cannot keep it: it ends when nobody carries it.
            let transport = WebTransport::http(&pipe);
            crate::tasks::spawn(async move { accept.accept(transport, peer).await });
            pipe.ended().await;
            hub.pipes().remove(&id);
        });
        let body = json!({ "connection": format!("{id:032x}") });
        Ok(reply(StatusCode::OK, "application/json", Body::from(body.to_string())))
    })
    .await
}

pub(super) async fn sse(hub: Arc<Hub>, request: Request) -> Response {
    answer(hub, request, |hub, request, _| async move {
        let pipe = find(&hub, &request)?;
        pipe.carry_by_stream()?;
        let keep_alive = hub.config.keep_alive;
        let carried = Carried(pipe);
        let events = stream::unfold(Stage::Opening(carried), move |stage| async move {
            let carried = match stage {
                Stage::Opening(carried) => return Some((opening(), Stage::Open(carried))),
                Stage::Open(carried) => carried,
                Stage::Over => return None,
            };
            let down = tokio::time::timeout(keep_alive, carried.0.wait(Pipe::stream_down)).await;
            Some(match down {
                Ok(Down::Lines(lines)) => (events_of(&lines), Stage::Open(carried)),
                Ok(Down::Closed(code)) => (closing(code), Stage::Over),
                Ok(Down::Nothing) | Err(_) => (Bytes::from_static(b":\n\n"), Stage::Open(carried)),
            })
        });
        let events = futures_util::StreamExt::map(events, Ok::<_, std::convert::Infallible>);
        let mut response = reply(StatusCode::OK, "text/event-stream", Body::from_stream(events));
        // nginx holds answers back unless it is told not to; others change what they may.
        response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
        Ok(response)
    })
    .await
}

enum Stage {
    Opening(Carried),
    Open(Carried),
    Over,
}

/// A stream that carries a connection: without it the connection is lost.
struct Carried(Arc<Pipe>);

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.lost("the event stream ended");
    }
}

fn events_of(lines: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(lines.len() + lines.len() / 8 + 64);
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        text.extend_from_slice(b"data: ");
        text.extend_from_slice(line);
        text.extend_from_slice(b"\n\n");
    }
    Bytes::from(text)
}

fn closing(code: Code) -> Bytes {
    Bytes::from(format!("event: close\ndata: {{\"code\":{}}}\n\n", code.number()))
}

pub(super) async fn poll(hub: Arc<Hub>, request: Request) -> Response {
    answer(hub, request, |hub, request, _| async move {
        let pipe = find(&hub, &request)?;
        let number = number(&request)?;
        let turn = match pipe.poll(number)? {
            PollTurn::Repeat(lines) => return Ok(lines_reply(lines)),
            PollTurn::Wait(turn) => turn,
        };
        let polling = Polling(pipe, turn);
        let down = polling.0.wait(|pipe| pipe.poll_down(turn, false));
        let down = match tokio::time::timeout(hub.config.poll_wait, down).await {
            Ok(down) => down?,
            Err(_) => polling.0.poll_down(turn, true).unwrap_or(Ok(Down::Nothing))?,
        };
        Ok(match down {
            Down::Lines(lines) => lines_reply(lines),
            Down::Nothing => lines_reply(Bytes::new()),
            Down::Closed(code) => {
                let body = json!({ "code": code.number() }).to_string();
                reply(StatusCode::GONE, "application/json", Body::from(body))
            }
        })
    })
    .await
}

/// A poll that carries a connection.
struct Polling(Arc<Pipe>, u64);

impl Drop for Polling {
    fn drop(&mut self) {
        self.0.poll_gone(self.1);
    }
}

pub(super) async fn up(hub: Arc<Hub>, request: Request) -> Response {
    answer(hub, request, |hub, request, _| async move {
        let pipe = find(&hub, &request)?;
        let number = number(&request)?;
        let _upload = pipe.begin_up(number)?;
        let body = body(&hub, request).await?;
        let taken = pipe.wait(|pipe| match pipe.up(number, &body) {
            Ok(Up::Taken) => Some(Ok(())),
            Ok(Up::NoRoom) => None,
            Err(refusal) => Some(Err(refusal)),
        });
        taken.await?;
        Ok(reply(StatusCode::NO_CONTENT, "", Body::empty()))
    })
    .await
}

pub(super) async fn close(hub: Arc<Hub>, request: Request) -> Response {
    answer(hub, request, |hub, request, _| async move {
        find(&hub, &request)?.goodbye();
        Ok(reply(StatusCode::NO_CONTENT, "", Body::empty()))
    })
    .await
}

/// The whole body, if it comes in time and is not too large: one frame of the largest size always fits.
async fn body(hub: &Hub, request: Request) -> Result<Bytes, Refusal> {
    let limit = line::max_line(hub.config.max_frame).saturating_add(2).max(hub.config.max_buffered);
    let body = Limited::new(request.into_body(), limit).collect();
    match tokio::time::timeout(hub.config.body_timeout, body).await {
        Err(_) => Err(Refusal::SlowBody),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(why)) if why.is::<http_body_util::LengthLimitError>() => Err(Refusal::TooLarge),
        Ok(Err(_)) => Err(Refusal::Body),
    }
}

/// The connection that a request names.
fn find(hub: &Hub, request: &Request) -> Result<Arc<Pipe>, Refusal> {
    let id = query(request, "c").ok_or(Refusal::Query)?;
    if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Refusal::Unknown);
    }
    let id = u128::from_str_radix(id, 16).map_err(|_| Refusal::Unknown)?;
    hub.pipes().get(&id).cloned().ok_or(Refusal::Unknown)
}

/// The request's number.
fn number(request: &Request) -> Result<u64, Refusal> {
    query(request, "n").and_then(|number| number.parse().ok()).ok_or(Refusal::Query)
}

/// A field of the query. Ids and numbers need no percent-decoding.
fn query<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    let fields = request.uri().query()?.split('&');
    fields.filter_map(|field| field.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// An id that nobody can guess: 128 bits of the system's randomness. None if the system has none.
fn unguessable() -> Option<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).ok()?;
    Some(u128::from_be_bytes(bytes))
}

fn lines_reply(lines: Bytes) -> Response {
    reply(StatusCode::OK, "application/x-ndjson", Body::from(lines))
}

fn reply(status: StatusCode, kind: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if !kind.is_empty() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
