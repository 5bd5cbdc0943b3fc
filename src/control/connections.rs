//! Connections: who is there, what a connection says about itself, and ending it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures_util::TryFutureExt as _;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::answer::{ApiError, json};
use super::api::Api;
use super::backend::Backend;
use super::body::{Asked, Named, read_json};
use super::nodes::call::Part;
use super::nodes::merge::{self, Page};
use super::nodes::{Across, NodeCall, Of, ScopeAsked};
use super::openapi::Refusals;
use crate::hub::view::{ConnectionFilter, ConnectionView, Window};
use crate::node::Target;
use crate::wire::codes::close;

/// Entries of a list in one answer, at most.
pub(crate) const LIST_MAX: usize = 1000;
/// Entries where the caller says nothing.
const LIST_DEFAULT: usize = 100;

/// Which part of a list is wanted.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Paging {
    /// What comes behind this name: `next` of the page before.
    pub(crate) after: Option<Box<str>>,
    /// At most so many, 1 to 1000; 100 where it is left out.
    pub(crate) limit: Option<usize>,
}

impl Paging {
    pub(crate) fn window(self) -> Result<Window, ApiError> {
        let limit = self.limit.unwrap_or(LIST_DEFAULT);
        if !(1..=LIST_MAX).contains(&limit) {
            return Err(ApiError::bad_request(format!("limit is 1 to {LIST_MAX}")));
        }
        Ok(Window { after: self.after, limit })
    }
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ConnectionsAsked {
    user: Option<Box<str>>,
    session: Option<Box<str>>,
    room: Option<Box<str>>,
    search: Option<Box<str>>,
    pub(crate) after: Option<Box<str>>,
    pub(crate) limit: Option<usize>,
}

#[derive(Serialize, ToSchema)]
struct ConnectionsPage {
    connections: Vec<Of<ConnectionView>>,
    total: usize,
    next: Option<String>,
}

/// Lists the connections that fit, by client id.
#[utoipa::path(
    operation_id = "list_connections",
    get,
    path = "/api/v1/connections",
    tag = "connections",
    params(ConnectionsAsked, ScopeAsked),
    responses((status = 200, body = Across<ConnectionsPage>), Refusals),
)]
pub(crate) async fn list<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Asked(asked): Asked<ConnectionsAsked>,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let ConnectionsAsked { user, session, room, search, after, limit } = asked;
    let window = Paging { after, limit }.window()?;
    let limit = window.limit;
    let filter = ConnectionFilter { user_id: user, session_id: session, room, search };
    let call = NodeCall::Connections { filter: filter.clone(), window: window.clone() };
    let here = |backend: &B| {
        backend.connections(filter, window).map_ok(move |listing| Part::new(listing, limit, |view| &view.client_id))
    };
    let (parts, told) = api.gather(&scope, here, call).await?.present()?;
    let Page { items, total, next, .. } = merge::pages(parts, limit, |view: &ConnectionView| &view.client_id);
    Ok(json(StatusCode::OK, &Across::new(ConnectionsPage { connections: items, total, next }, told)))
}

/// The same list, where it is looked for beside the sockets.
#[utoipa::path(
    operation_id = "list_ws_connections",
    get,
    path = "/ws/connections",
    tag = "connections",
    params(ConnectionsAsked, ScopeAsked),
    responses((status = 200, body = Across<ConnectionsPage>), Refusals),
)]
pub(crate) async fn list_beside_sockets<B: Backend>(
    api: State<Arc<Api<B>>>,
    headers: HeaderMap,
    asked: Asked<ConnectionsAsked>,
    scope: Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    list(api, headers, asked, scope).await
}

/// Shows one connection.
#[utoipa::path(
    operation_id = "show_connection",
    get,
    path = "/api/v1/connections/{client_id}",
    tag = "connections",
    params(("client_id" = String, Path, description = "The client's id"), ScopeAsked),
    responses((status = 200, body = Of<ConnectionView>), Refusals),
)]
pub(crate) async fn show<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(client_id): Named<String>,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let call = NodeCall::Connection { client_id: client_id.as_str().into() };
    let gathered = api.gather(&scope, |backend| backend.connection(&client_id), call).await?;
    let (node, item) = gathered.first()?;
    Ok(json(StatusCode::OK, &Of { item, node }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Change {
    /// Merged into the metadata; null removes a key.
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
}

#[derive(Serialize, ToSchema)]
struct Changed {
    client_id: String,
    #[schema(value_type = Object)]
    metadata: Value,
}

/// Merges into a connection's metadata.
#[utoipa::path(
    operation_id = "change_connection",
    patch,
    path = "/api/v1/connections/{client_id}",
    tag = "connections",
    params(("client_id" = String, Path, description = "The client's id"), ScopeAsked),
    request_body = Change,
    responses((status = 200, body = Of<Changed>), Refusals),
)]
pub(crate) async fn change<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(client_id): Named<String>,
    Asked(scope): Asked<ScopeAsked>,
    body: Body,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let Change { metadata } = read_json(&headers, body, api.body_bytes_max).await?;
    let call = NodeCall::SetMetadata { client_id: client_id.as_str().into(), set: metadata.clone() };
    let gathered = api.gather(&scope, |backend| backend.set_metadata(&client_id, metadata), call).await?;
    let (node, metadata) = gathered.first()?;
    Ok(json(StatusCode::OK, &Of { item: Changed { client_id, metadata }, node }))
}

/// How connections are closed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Farewell {
    #[serde(default = "by_administrator")]
    code: u16,
    #[serde(default)]
    reason: String,
}

fn by_administrator() -> u16 {
    close::BY_ADMIN
}

/// A close frame's reason, RFC 6455 section 5.5: 125 bytes of payload less two for the code.
const REASON_BYTES_MAX: usize = 123;

/// Whether a close frame has room for a reason.
pub(crate) fn check_reason(reason: &str) -> Result<(), ApiError> {
    if reason.len() > REASON_BYTES_MAX {
        return Err(ApiError::bad_request(format!("a reason has at most {REASON_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// Whom a call is about, of which exactly one has to be named; of `sessions` at most so many.
pub(crate) fn whom(
    client: Option<Box<str>>,
    session: Option<Box<str>>,
    sessions: Option<Vec<Box<str>>>,
    user: Option<Box<str>>,
    sessions_max: usize,
) -> Result<Target, ApiError> {
    match (client, session, sessions, user) {
        (Some(id), None, None, None) => Ok(Target::Client(id)),
        (None, Some(id), None, None) => Ok(Target::Session(id)),
        (None, None, Some(ids), None) if ids.len() <= sessions_max => Ok(Target::Sessions(ids)),
        (None, None, None, Some(id)) => Ok(Target::User(id)),
        (None, None, Some(_), None) => Err(ApiError::bad_request(format!("at most {sessions_max} sessions at a time"))),
        _ => Err(ApiError::bad_request("exactly one of client, session, sessions and user is needed")),
    }
}

#[derive(Serialize, ToSchema)]
struct Disconnected {
    disconnected: u32,
}

/// Closes a connection.
#[utoipa::path(
    operation_id = "end_connection",
    delete,
    path = "/api/v1/connections/{client_id}",
    tag = "connections",
    params(("client_id" = String, Path, description = "The client's id"), Farewell, ScopeAsked),
    responses((status = 200, body = Across<Disconnected>), Refusals),
)]
pub(crate) async fn end<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(client_id): Named<String>,
    Asked(farewell): Asked<Farewell>,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let Farewell { code, reason } = farewell;
    check_reason(&reason)?;
    let who = Target::Client(client_id.into());
    disconnect(&api, &scope, who, code, &reason).await
}

/// Whom `POST /api/v1/disconnect` is about: exactly one of these.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Disconnect {
    client: Option<Box<str>>,
    session: Option<Box<str>>,
    sessions: Option<Vec<Box<str>>>,
    user: Option<Box<str>>,
    #[serde(default = "by_administrator")]
    code: u16,
    #[serde(default)]
    reason: String,
}

/// Closes the connections of a client, a session, sessions or a user.
#[utoipa::path(
    operation_id = "disconnect",
    post,
    path = "/api/v1/disconnect",
    tag = "connections",
    params(ScopeAsked),
    request_body = Disconnect,
    responses((status = 200, body = Across<Disconnected>), Refusals),
)]
pub(crate) async fn end_many<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Asked(scope): Asked<ScopeAsked>,
    body: Body,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let Disconnect { client, session, sessions, user, code, reason } =
        read_json(&headers, body, api.body_bytes_max).await?;
    check_reason(&reason)?;
    let who = whom(client, session, sessions, user, api.events_max)?;
    disconnect(&api, &scope, who, code, &reason).await
}

async fn disconnect<B: Backend>(
    api: &Api<B>,
    scope: &ScopeAsked,
    who: Target,
    code: u16,
    reason: &str,
) -> Result<Response, ApiError> {
    let call = NodeCall::Disconnect { who: who.clone(), code, reason: reason.into() };
    let gathered = api.gather(scope, |backend| backend.disconnect(&who, code, reason), call).await?;
    let (parts, told) = gathered.found()?;
    let disconnected = parts.into_iter().map(|(_, count)| count).sum();
    Ok(json(StatusCode::OK, &Across::new(Disconnected { disconnected }, told)))
}
