//! Direct messages to sessions, users and clients, and what sessions' clients sent for the backend.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::{Either, join_all, select};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::answer::{ApiError, Inner, json};
use super::api::Api;
use super::backend::{Backend, empty};
use super::body::{Named, read_json};
use super::openapi::Refusals;
use super::poll::IsOver;
use crate::hub::reply::Pending;
use crate::hub::view::SessionView;
use crate::node::{Sent, Target};
use crate::wire::native::is_client_id;

/// Shows one session, connected or not.
#[utoipa::path(
    operation_id = "show_session",
    get,
    path = "/api/v1/sessions/{session_id}",
    tag = "messages",
    params(("session_id" = String, Path, description = "The session's id")),
    responses((status = 200, body = SessionView), Refusals),
)]
pub(crate) async fn session<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(session_id): Named<String>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    Ok(json(StatusCode::OK, &api.remote(api.backend.session(&session_id)).await?))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Outgoing {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default = "empty")]
    #[schema(value_type = Object)]
    data: Box<RawValue>,
}

/// Sends an event to one session.
#[utoipa::path(
    operation_id = "send_to_session",
    post,
    path = "/api/v1/sessions/{session_id}/messages",
    tag = "messages",
    params(("session_id" = String, Path, description = "The session's id")),
    request_body = Outgoing,
    responses((status = 200, body = Sent), Refusals),
)]
pub(crate) async fn send_to_session<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(session_id): Named<String>,
    body: Body,
) -> Result<Response, ApiError> {
    let identity = api.identify(&headers)?;
    let Outgoing { kind, data } = read_json(&headers, body, api.body_bytes_max).await?;
    let to = Target::Session(checked(&session_id)?);
    let sent = api.remote(api.backend.send(&identity, &to, &kind, bytes_of(data))).await?;
    Ok(json(StatusCode::OK, &sent))
}

/// To several at a time; at least one has to be named.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ToMany {
    #[serde(default)]
    sessions: Vec<String>,
    #[serde(default)]
    users: Vec<Box<str>>,
    #[serde(default)]
    clients: Vec<String>,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default = "empty")]
    #[schema(value_type = Object)]
    data: Box<RawValue>,
}

#[derive(Serialize, ToSchema)]
struct SentToMany<'a> {
    delivered: u64,
    queued: u64,
    /// Those that it could not be sent to, and why.
    failed: Vec<Failed<'a>>,
}

#[derive(Serialize, ToSchema)]
struct Failed<'a> {
    to: &'a Address,
    error: Inner<'a>,
}

/// An addressee, as it was named.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Address {
    Session(Box<str>),
    User(Box<str>),
    Client(Box<str>),
}

impl Address {
    fn target(&self) -> Target {
        match self {
            Address::Session(id) => Target::Session(id.clone()),
            Address::User(id) => Target::User(id.clone()),
            Address::Client(id) => Target::Client(id.clone()),
        }
    }
}

/// Sends an event to sessions, users and clients.
#[utoipa::path(
    operation_id = "send_to_many",
    post,
    path = "/api/v1/messages",
    tag = "messages",
    request_body = ToMany,
    responses((status = 200, body = SentToMany), Refusals),
)]
pub(crate) async fn send_to_many<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let identity = api.identify(&headers)?;
    let ToMany { sessions, users, clients, kind, data } = read_json(&headers, body, api.body_bytes_max).await?;
    let data = bytes_of(data);
    let mut to = Vec::new();
    for id in &sessions {
        to.push(Address::Session(checked(id)?));
    }
    to.extend(users.into_iter().map(Address::User));
    for id in &clients {
        to.push(Address::Client(checked(id)?));
    }
    if to.is_empty() || to.len() > api.events_max {
        let message = format!("1 to {} sessions, users and clients together", api.events_max);
        return Err(ApiError::bad_request(message));
    }
    let pending = to.iter().map(|one| api.remote(api.backend.send(&identity, &one.target(), &kind, data.clone())));
    let results = join_all(pending.collect::<Vec<_>>()).await;
    let mut answer = SentToMany { delivered: 0, queued: 0, failed: Vec::new() };
    for (address, result) in to.iter().zip(&results) {
        match result {
            Ok(Sent { delivered, queued }) => {
                answer.delivered += delivered;
                answer.queued += queued;
            }
            Err(error) => answer.failed.push(Failed { to: address, error: error.into() }),
        }
    }
    Ok(json(StatusCode::OK, &answer))
}

/// A message that a client sent, as the backend gets it.
#[derive(Serialize, ToSchema)]
struct Received<'a> {
    session_id: &'a str,
    #[schema(value_type = Value)]
    data: &'a RawValue,
}

/// The next message of a session, as soon as there is one; 204 where there was none in time.
#[utoipa::path(
    operation_id = "receive",
    get,
    path = "/api/v1/sessions/{session_id}/messages",
    tag = "messages",
    params(
        ("session_id" = String, Path, description = "The session's id"),
        ("timeout_s" = Option<u64>, Query, description = "Seconds to wait at most, up to 300; 30 where it is left out"),
    ),
    responses((status = 200, body = Received), (status = 204, description = "No message came in time"), Refusals),
)]
pub(crate) async fn receive<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(session_id): Named<String>,
    Extension(is_over): Extension<IsOver>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let session_id = checked(&session_id)?;
    let mut waiting = Waiting { pending: api.backend.receive(&session_id), backend: api.backend.clone(), session_id };
    let outcome = match select(api.remote(&mut waiting.pending), is_over).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(_) => None,
    };
    // One that came at the very end is not left behind.
    let outcome = outcome.or_else(|| waiting.pending.close());
    match outcome {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(message) => {
            let message = message?;
            let text = std::str::from_utf8(&message).unwrap_or("null");
            let data = serde_json::from_str(text).unwrap_or(RawValue::NULL);
            let headers = [(header::CACHE_CONTROL, "no-store")];
            let answer = json(StatusCode::OK, &Received { session_id: &waiting.session_id, data });
            Ok((headers, answer).into_response())
        }
    }
}

/// Waits for a message. One that comes when nobody waits any more, because the caller has gone, is put back.
struct Waiting<B: Backend> {
    pending: Pending<Bytes>,
    backend: B,
    session_id: Box<str>,
}

impl<B: Backend> Drop for Waiting<B> {
    fn drop(&mut self) {
        if let Some(Ok(message)) = self.pending.close() {
            self.backend.put_back(&self.session_id, message);
        }
    }
}

fn checked(id: &str) -> Result<Box<str>, ApiError> {
    if !is_client_id(id) {
        return Err(ApiError::bad_request("an id of a session or client is 1 to 64 of A-Z a-z 0-9 . _ : -"));
    }
    Ok(id.into())
}

fn bytes_of(data: Box<RawValue>) -> Bytes {
    Bytes::from(Box::<str>::from(data).into_string().into_bytes())
}
