//! Taking access away from who is connected: a new proof of who it is, fewer permissions.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{ApiError, json};
use super::api::Api;
use super::backend::Backend;
use super::body::{Asked, read_json};
use super::connections::{check_reason, whom};
use super::nodes::{Across, NodeCall, ScopeAsked};
use super::openapi::Refusals;
use crate::node::Withdrew;

/// Seconds within which a new token has to come, where the caller says nothing.
const GRACE_DEFAULT_S: u64 = 30;

/// Who has to show a valid token again: exactly one of `client`, `session`, `sessions` and `user`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Reauthenticate {
    client: Option<Box<str>>,
    session: Option<Box<str>>,
    sessions: Option<Vec<Box<str>>>,
    user: Option<Box<str>>,
    /// Within so many seconds; 30 where it is left out.
    #[serde(default = "grace_default_s")]
    #[schema(minimum = 1, maximum = 3600)]
    grace_s: u64,
}

fn grace_default_s() -> u64 {
    GRACE_DEFAULT_S
}

#[derive(Serialize, ToSchema)]
struct Reauthenticating {
    /// How many connections were told.
    asked: u32,
}

/// Has the connections of a client, a session, sessions or a user show a valid token again. They are told with
/// `auth.expiring`, and closed with 4401 where no `auth.refresh` with a valid token comes in time.
#[utoipa::path(
    operation_id = "reauthenticate",
    post,
    path = "/api/v1/reauthenticate",
    tag = "connections",
    params(ScopeAsked),
    request_body = Reauthenticate,
    responses((status = 200, body = Across<Reauthenticating>), Refusals),
)]
pub(crate) async fn reauthenticate<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Asked(scope): Asked<ScopeAsked>,
    body: Body,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let Reauthenticate { client, session, sessions, user, grace_s } =
        read_json(&headers, body, api.body_bytes_max).await?;
    let who = whom(client, session, sessions, user, api.events_max)?;
    let call = NodeCall::Reauthenticate { who: who.clone(), grace_s };
    let here = |backend: &B| backend.reauthenticate(&who, Duration::from_secs(grace_s));
    let (parts, told) = api.gather(&scope, here, call).await?.found()?;
    let asked = parts.into_iter().map(|(_, count)| count).sum();
    Ok(json(StatusCode::OK, &Across::new(Reauthenticating { asked }, told)))
}

/// From whom permissions are taken away: exactly one of `client`, `session`, `sessions` and `user`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WithdrawAsked {
    client: Option<Box<str>>,
    session: Option<Box<str>>,
    sessions: Option<Vec<Box<str>>>,
    user: Option<Box<str>>,
    /// Which, 1 to 100; `*` stands for one whole part.
    permissions: Vec<String>,
    /// Whether connections are closed (4403) whatever is left to them.
    #[serde(default)]
    disconnect: bool,
    /// The close frame's reason, where `disconnect` is set.
    #[serde(default = "withdrawn")]
    reason: String,
}

fn withdrawn() -> String {
    "permission withdrawn".to_owned()
}

/// Takes permissions away from the connections of a client, a session, sessions or a user, until a token comes that was
/// issued later. Rooms that they may be in no longer are left at once; without `websocket:connect` a connection is closed
/// (4403). What is withdrawn from a session stays so when it is resumed.
#[utoipa::path(
    operation_id = "withdraw",
    post,
    path = "/api/v1/withdraw",
    tag = "connections",
    params(ScopeAsked),
    request_body = WithdrawAsked,
    responses((status = 200, body = Across<Withdrew>), Refusals),
)]
pub(crate) async fn withdraw<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Asked(scope): Asked<ScopeAsked>,
    body: Body,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let WithdrawAsked { client, session, sessions, user, permissions, disconnect, reason } =
        read_json(&headers, body, api.body_bytes_max).await?;
    check_reason(&reason)?;
    let who = whom(client, session, sessions, user, api.events_max)?;
    let call = NodeCall::Withdraw {
        who: who.clone(),
        permissions: permissions.iter().map(|one| one.as_str().into()).collect(),
        disconnect,
        reason: reason.as_str().into(),
    };
    let permissions: Vec<&str> = permissions.iter().map(String::as_str).collect();
    let here = |backend: &B| backend.withdraw(&who, &permissions, disconnect, &reason);
    let (parts, told) = api.gather(&scope, here, call).await?.found()?;
    let mut all = Withdrew::default();
    for (_, withdrew) in parts {
        all.connections += withdrew.connections;
        all.closed += withdrew.closed;
        all.sessions += withdrew.sessions;
    }
    Ok(json(StatusCode::OK, &Across::new(all, told)))
}
