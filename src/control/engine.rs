//! Engine.IO's long polling: requests at its paths become requests to the shard that has the session. A GET waits there for
//! packets, a POST brings some.
//!
//! Answers are those of the reference server, which clients know: codes and messages of refusals included.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use futures_util::future::{Either, select};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};

use super::answer::ApiError;
use super::api::Api;
use super::backend::Backend;
use super::body::read;
use super::inbox::ConnectionOrigin;
use super::poll::IsOver;
use super::service::head_of;
use crate::auth::origin_allowed;
use crate::wire::engineio::{self, Asked, RequestError, Transport};

/// What becomes of a request for a session of Engine.IO.
#[derive(Debug)]
pub enum EngineOpened {
    /// It is open.
    Session {
        /// Its id.
        sid: Box<str>,
        /// The first packets.
        payload: Bytes,
    },
    /// It can't be had.
    Refused(RequestError),
    /// The hub is full, or drains.
    Unavailable,
}

/// What becomes of another request to a session of Engine.IO.
#[derive(Debug, PartialEq, Eq)]
pub enum EngineAnswer {
    /// Packets for the client.
    Payload(Bytes),
    /// The client's packets were taken.
    Taken,
    /// The session is another node's, or was one of this node before it started anew.
    Elsewhere,
    /// There is no such session, or the request does not fit it.
    Refused(RequestError),
}

/// Where sessions of Engine.IO are opened, and how.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// The paths.
    pub paths: Vec<String>,
    /// The longest body of a POST.
    pub body_bytes_max: usize,
    /// The longest time that a poll may have to wait for something.
    pub wait: Duration,
    /// The cookie that is set to a session's id.
    pub cookie: Option<String>,
    /// `cors.origins`, those left out that stand for any page: only pages that are named may send cookies.
    pub named_origins: Vec<String>,
}

impl EngineOptions {
    /// Whether a path is one of Engine.IO's.
    pub(crate) fn serves(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.paths.iter().any(|known| known.trim_end_matches('/') == path)
    }

    /// How long a request may wait, where it is a poll.
    pub(crate) fn wait_of<T>(&self, request: &hyper::Request<T>) -> Option<Duration> {
        let is_poll = request.method() == Method::GET
            && self.serves(request.uri().path())
            && request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("sid=")));
        is_poll.then_some(self.wait)
    }

    /// Lets a page that is named send cookies.
    pub(crate) fn allow_credentials(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        let origin = origin.and_then(|origin| origin.to_str().ok());
        if origin.is_some() && !self.named_origins.is_empty() && origin_allowed(&self.named_origins, origin) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

/// The routes of Engine.IO's paths, each with and without a slash at its end.
pub(crate) fn routes<B: Backend>(options: &EngineOptions) -> Router<Arc<Api<B>>> {
    let mut router = Router::new();
    for path in &options.paths {
        let bare = path.trim_end_matches('/');
        router = router.route(bare, any(serve::<B>)).route(&format!("{bare}/"), any(serve::<B>));
    }
    router
}

/// Any request at one of Engine.IO's paths that is no WebSocket.
async fn serve<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    origin: Option<Extension<ConnectionOrigin>>,
    is_over: Option<Extension<IsOver>>,
    request: Request,
) -> Response {
    let asked = match engineio::Request::parse(request.method().as_str(), request.uri().query(), false) {
        Ok(request) => request.asked,
        Err(error) => return refused(error),
    };
    match asked {
        Asked::Open(Transport::Polling) => {
            let origin = origin.map(|Extension(origin)| origin).unwrap_or_default();
            open(&api, head_of(&request), origin).await
        }
        Asked::Poll { sid } => {
            let sid = sid.into_owned();
            poll(&api, request.uri().path(), &sid, is_over).await
        }
        Asked::Push { sid } => {
            let sid = sid.into_owned();
            let path = request.uri().path().to_owned();
            push(&api, &path, &sid, request.into_body()).await
        }
        Asked::Open(Transport::WebSocket) | Asked::Upgrade { .. } => refused(RequestError::BadRequest),
    }
}

async fn open<B: Backend>(api: &Api<B>, head: Vec<u8>, origin: ConnectionOrigin) -> Response {
    match api.remote(api.backend.engine_open(head, origin)).await {
        Ok(EngineOpened::Session { sid, payload }) => {
            let mut response = packets(payload);
            let cookie =
                api.engine.cookie.as_deref().and_then(|name| {
                    HeaderValue::from_str(&format!("{name}={sid}; Path=/; HttpOnly; SameSite=Lax")).ok()
                });
            if let Some(cookie) = cookie {
                response.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            response
        }
        Ok(EngineOpened::Refused(error)) => refused(error),
        Ok(EngineOpened::Unavailable) => ApiError::unavailable("this node takes no more clients").into_response(),
        Err(error) => ApiError::from(error).into_response(),
    }
}

async fn poll<B: Backend>(api: &Api<B>, path: &str, sid: &str, is_over: Option<Extension<IsOver>>) -> Response {
    let mut pending = api.backend.engine_poll(path, sid);
    let answer = match is_over {
        Some(Extension(is_over)) => {
            let outcome = match select(api.remote(&mut pending), is_over).await {
                Either::Left((answer, _)) => Some(answer),
                Either::Right(_) => None,
            };
            // One that came at the very end is not left behind.
            outcome.or_else(|| pending.close())
        }
        None => Some(api.remote(&mut pending).await),
    };
    match answer {
        // Nothing came for longer than a ping takes: the client asks again.
        None => packets(Bytes::from_static(b"6")),
        Some(Ok(EngineAnswer::Payload(payload))) => packets(payload),
        Some(Ok(EngineAnswer::Refused(error))) => refused(error),
        Some(Ok(EngineAnswer::Elsewhere)) => elsewhere(),
        Some(Ok(EngineAnswer::Taken)) => refused(RequestError::BadRequest),
        Some(Err(error)) => ApiError::from(error).into_response(),
    }
}

async fn push<B: Backend>(api: &Api<B>, path: &str, sid: &str, body: Body) -> Response {
    let body = match read(body, api.engine.body_bytes_max).await {
        Ok(body) => body,
        Err(error) => return error.into_response(),
    };
    match api.remote(api.backend.engine_push(path, sid, body.into())).await {
        Ok(EngineAnswer::Taken) => text(StatusCode::OK, "text/html", Bytes::from_static(b"ok")),
        Ok(EngineAnswer::Refused(error)) => refused(error),
        Ok(EngineAnswer::Elsewhere) => elsewhere(),
        Ok(EngineAnswer::Payload(_)) => refused(RequestError::BadRequest),
        Err(error) => ApiError::from(error).into_response(),
    }
}

fn packets(payload: Bytes) -> Response {
    text(StatusCode::OK, "text/plain; charset=UTF-8", payload)
}

fn refused(error: RequestError) -> Response {
    let mut body = Vec::with_capacity(64);
    error.write_body(&mut body);
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
    text(status, "application/json", body.into())
}

/// To the client this is a session that is not known. People are told why: polls of one session have to come to one node.
fn elsewhere() -> Response {
    let body = format!(
        r#"{{"code":{},"message":"{}","details":"the session is of another node, or of this one before it started anew"}}"#,
        RequestError::SessionUnknown.code(),
        RequestError::SessionUnknown.message(),
    );
    text(StatusCode::BAD_REQUEST, "application/json", body.into())
}

fn text(status: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    let headers = [(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body).into_response()
}
