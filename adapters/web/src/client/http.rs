//! Requests to the server, one after the other over one connection that is kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use lastmile::ports::ConnectError;

use super::dial::{Endpoint, Purpose};
use super::refused::refused;
use crate::tasks::Owned;

/// The longest answer that is read of a refusal.
const MAX_REFUSAL: usize = 4 << 10;

/// A client that makes one request at a time.
pub(super) struct Http {
    endpoint: Arc<Endpoint>,
    line: Option<Line>,
}

/// A connection that stands.
struct Line {
    requests: SendRequest<Full<Bytes>>,
    /// The proxy's credentials, if the line leads to one.
    proxy: Option<Option<http::HeaderValue>>,
    _driver: Owned,
}

/// An answer, whole.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// What it means if it is not the hoped-for one.
    pub(super) fn refused(&self, what: &str) -> ConnectError {
        refused(what, self.status, &self.headers, &self.body)
    }
}

impl Http {
    pub(super) fn new(endpoint: &Arc<Endpoint>) -> Self {
        Self { endpoint: Arc::clone(endpoint), line: None }
    }

    /// Sends a request and reads the whole answer, at most `limit` bytes of it. After an error it may have been taken.
    pub(super) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: usize,
        within: Duration,
    ) -> Result<Answer, ConnectError> {
        let asking = async {
            let response = self.send(method, path, body).await?;
            whole(response, limit.max(MAX_REFUSAL)).await
        };
        let answer = match tokio::time::timeout(within, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(ConnectError::unreachable(format_args!("{path} was not answered in time"))),
        };
        if answer.is_err() {
            self.line = None;
        }
        answer
    }

    /// Sends a request and reads the head of the answer. The line goes with the answer's body.
    pub(super) async fn stream(
        mut self,
        path: &str,
    ) -> Result<(Response<Incoming>, impl Send + use<>), ConnectError> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        Ok((response, self.line))
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ConnectError> {
        // A line that was kept may have been closed meanwhile: then the request was not sent, and goes over a new one.
        if let Some(line) = self.line.as_mut()
            && line.requests.ready().await.is_err()
        {
            self.line = None;
        }
        let line = match self.line.take() {
            Some(line) => line,
            None => Line::dial(&self.endpoint).await?,
        };
        let line = self.line.insert(line);
        let uri = if line.proxy.is_some() { self.endpoint.absolute(path) } else { path.to_owned() };
        let mut request =
            Request::builder().method(method).uri(uri).header(header::HOST, self.endpoint.host());
        if let Some(Some(credentials)) = &line.proxy {
            request = request.header(header::PROXY_AUTHORIZATION, credentials);
        }
        let request = request.body(Full::new(body)).map_err(ConnectError::unreachable)?;
        line.requests.send_request(request).await.map_err(ConnectError::unreachable)
    }
}

impl Line {
    async fn dial(endpoint: &Endpoint) -> Result<Self, ConnectError> {
        let dialled = endpoint.dial(Purpose::Requests).await?;
        let (requests, driver) =
            http1::handshake(TokioIo::new(dialled.io)).await.map_err(ConnectError::unreachable)?;
        let driver = Owned::spawn(async move {
            // Whoever waits for an answer hears of it.
            let _ended = driver.await;
        });
        Ok(Self { requests, proxy: dialled.proxy, _driver: driver })
    }
}

/// Reads the whole answer.
pub(super) async fn whole(response: Response<Incoming>, limit: usize) -> Result<Answer, ConnectError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, limit).collect().await.map_err(ConnectError::unreachable)?;
    Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
}
