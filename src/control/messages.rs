//! Direct messages to sessions, users and clients, and what sessions' clients sent for the backend.

use std::sync::Arc;
use std::time::Duration;

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
use super::body::{Asked, Named, read_json};
use super::nodes::call::{Handed, Waiting};
use super::nodes::{ANSWER_WAIT, Node, NodeCall, Of, ScopeAsked};
use super::openapi::Refusals;
use super::poll::IsOver;
use crate::broker::nodes::{self, Answer, Failure, NodeInfo};
use crate::hub::reply::Pending;
use crate::hub::view::SessionView;
use crate::node::{Sent, Target};
use crate::wire::native::is_client_id;

/// The longest wait for a message at another node: that of a call, and a moment.
const RECEIVE_MAX: Duration = Duration::from_secs(310);

/// Shows one session, connected or not.
#[utoipa::path(
    operation_id = "show_session",
    get,
    path = "/api/v1/sessions/{session_id}",
    tag = "messages",
    params(("session_id" = String, Path, description = "The session's id"), ScopeAsked),
    responses((status = 200, body = Of<SessionView>), Refusals),
)]
pub(crate) async fn session<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(session_id): Named<String>,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let (node, item) = find(&api, &scope, &session_id).await?;
    Ok(json(StatusCode::OK, &Of { item, node }))
}

/// A session, where it is connected, or else where it may be resumed.
async fn find<B: Backend>(api: &Api<B>, scope: &ScopeAsked, session_id: &str) -> Result<(Node, SessionView), ApiError> {
    let call = NodeCall::Session { session_id: session_id.into() };
    let gathered = api.gather(scope, |backend| backend.session(session_id), call).await?;
    let (mut found, _) = gathered.found()?;
    // The order of those that are alike stays.
    found.sort_by_key(|(_, view): &(_, SessionView)| !view.connected);
    found.into_iter().next().ok_or_else(ApiError::not_found)
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Outgoing {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default = "empty")]
    #[schema(value_type = Value)]
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
    #[schema(value_type = Value)]
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
        ScopeAsked,
    ),
    responses((status = 200, body = Received), (status = 204, description = "No message came in time"), Refusals),
)]
pub(crate) async fn receive<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(session_id): Named<String>,
    Asked(scope): Asked<ScopeAsked>,
    Extension(is_over): Extension<IsOver>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let session_id = checked(&session_id)?;
    if let Some(nodes) = api.backend.nodes() {
        let (node, _) = find(&api, &scope, &session_id).await?;
        let other = nodes.others().iter().find(|other| Some(&other.name) == node.as_ref()).cloned();
        if let Some(other) = other {
            return receive_elsewhere(&api, nodes, other, session_id, is_over).await;
        }
    }
    let mut waiting = Waiting { pending: api.backend.receive(&session_id), backend: api.backend.clone(), session_id };
    let outcome = match select(api.remote(&mut waiting.pending), is_over).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(_) => None,
    };
    // One that came at the very end is not left behind.
    let outcome = outcome.or_else(|| waiting.pending.close());
    match outcome {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(message) => Ok(received(&waiting.session_id, &message?)),
    }
}

fn received(session_id: &str, message: &[u8]) -> Response {
    let text = std::str::from_utf8(message).unwrap_or("null");
    let data = serde_json::from_str(text).unwrap_or(RawValue::NULL);
    let headers = [(header::CACHE_CONTROL, "no-store")];
    (headers, json(StatusCode::OK, &Received { session_id, data })).into_response()
}

/// Receives at the node that has the session. What comes when nobody waits any more is put back there.
async fn receive_elsewhere<B: Backend>(
    api: &Api<B>,
    nodes: nodes::Handle,
    node: NodeInfo,
    session_id: Box<str>,
    is_over: IsOver,
) -> Result<Response, ApiError> {
    let call = NodeCall::Receive { session_id: session_id.clone() };
    let text = serde_json::to_vec(&call).map_err(|error| ApiError::bad_json(error.to_string()))?;
    let pending = nodes.call(vec![node.clone()], text, RECEIVE_MAX);
    let mut waiting = WaitingElsewhere { pending, nodes, node, session_id };
    let outcome = match select(api.remote(&mut waiting.pending), is_over).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(_) => None,
    };
    let outcome = outcome.or_else(|| waiting.pending.close());
    let Some(answers) = outcome else { return Ok(StatusCode::NO_CONTENT.into_response()) };
    match answers?.into_iter().next().map(|answer| answer.outcome) {
        Some(Ok(text)) => {
            let message = serde_json::from_slice::<Handed>(&text).ok().and_then(|handed| handed.message());
            let unread = || ApiError::unavailable("what the session's node answered can't be read");
            Ok(received(&waiting.session_id, &message.ok_or_else(unread)?))
        }
        Some(Err(Failure::Refused(error))) => Err(error.into()),
        Some(Err(Failure::Missing)) | None => {
            Err(ApiError::unavailable(format!("the session's node, {}, does not answer", waiting.node.name)))
        }
    }
}

/// Waits for another node's message. The caller going away ends the wait there as well.
struct WaitingElsewhere {
    pending: Pending<Vec<Answer>>,
    nodes: nodes::Handle,
    node: NodeInfo,
    session_id: Box<str>,
}

impl Drop for WaitingElsewhere {
    fn drop(&mut self) {
        // One that comes later is put back by who gets it then.
        if let Some(Ok(answers)) = self.pending.close() {
            for text in answers.into_iter().filter_map(|answer| answer.outcome.ok()) {
                put_back_elsewhere(&self.nodes, self.node.clone(), &text);
            }
        } else {
            self.nodes.end_abandoned();
        }
    }
}

/// Gives a message back to the node that handed it over.
pub(crate) fn put_back_elsewhere(nodes: &nodes::Handle, node: NodeInfo, answer: &[u8]) {
    let Ok(Handed { session_id, handed }) = serde_json::from_slice(answer) else { return };
    let call = NodeCall::PutBack { session_id, message: handed };
    if let Ok(text) = serde_json::to_vec(&call) {
        drop(nodes.call(vec![node], text, ANSWER_WAIT));
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
