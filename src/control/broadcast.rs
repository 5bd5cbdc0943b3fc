//! `POST /api/v1/broadcast`: one event into several rooms, or to everyone.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures_util::TryFutureExt as _;
use futures_util::future::join_all;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::answer::{ApiError, json};
use super::api::Api;
use super::backend::{Backend, PublishRequest, empty};
use super::body::{Asked, read_json};
use super::nodes::{Across, NodeCall, ScopeAsked};
use super::openapi::Refusals;
use super::publish::Entry;
use crate::node::Sent;

/// The room that every connection is in.
const EVERYONE: &str = "global";

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Broadcast {
    rooms: Option<Vec<String>>,
    #[serde(default)]
    all: bool,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default = "empty")]
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    key: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Broadcasted<'a> {
    /// Rooms that took it.
    rooms: usize,
    /// Connections it goes to; one that is in several of the rooms counts in each.
    delivered: u64,
    /// In the order of the rooms.
    results: Vec<Entry<'a>>,
}

/// Publishes one event into several rooms, or to everyone.
#[utoipa::path(
    operation_id = "broadcast",
    post,
    path = "/api/v1/broadcast",
    tag = "events",
    request_body = Broadcast,
    responses((status = 200, body = Broadcasted), Refusals),
)]
pub(crate) async fn broadcast<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let identity = api.identify(&headers)?;
    let Broadcast { rooms, all, kind, data, key } = read_json(&headers, body, api.body_bytes_max).await?;
    let rooms = match (rooms, all) {
        (Some(rooms), false) if rooms.is_empty() => return Err(ApiError::bad_request("rooms is empty")),
        (Some(rooms), false) if rooms.len() > api.events_max => {
            return Err(ApiError::bad_request(format!("at most {} rooms at a time", api.events_max)));
        }
        (Some(rooms), false) => rooms,
        (None, true) => vec![EVERYONE.to_owned()],
        _ => return Err(ApiError::bad_request("either rooms or all is needed")),
    };
    let pending = rooms.into_iter().map(|room| {
        let event = PublishRequest { room, kind: kind.clone(), data: data.clone(), key: key.clone() };
        api.publish(&identity, event)
    });
    let results = join_all(pending.collect::<Vec<_>>()).await;
    let published = || results.iter().filter_map(|result| result.as_ref().ok());
    let answer = Broadcasted {
        rooms: published().count(),
        delivered: published().map(|one| u64::from(one.delivered)).sum(),
        results: results.iter().map(Entry::new).collect(),
    };
    Ok(json(StatusCode::OK, &answer))
}

#[derive(Serialize, ToSchema)]
struct Tested {
    connections: u32,
    id: String,
}

/// One `system_alert` to everyone, to see that it arrives.
#[utoipa::path(
    operation_id = "broadcast_test",
    post,
    path = "/ws/broadcast/test",
    tag = "events",
    params(ScopeAsked),
    responses((status = 200, body = Across<Tested>), Refusals),
)]
pub(crate) async fn test<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    let identity = api.admin(&headers)?;
    let data = RawValue::from_string(r#"{"severity":"info","message":"This is a test.","test":true}"#.to_owned());
    let data = data.map_err(|error| ApiError::bad_json(error.to_string()))?;
    let event = PublishRequest { room: EVERYONE.to_owned(), kind: "system_alert".to_owned(), data, key: None };
    let published = api.publish(&identity, event).await?;
    if api.backend.nodes().is_none() {
        let tested = Tested { connections: published.delivered, id: published.id };
        return Ok(json(StatusCode::OK, &Across::new(tested, None)));
    }
    // It goes to all of them; those that are asked are counted.
    let call = NodeCall::Audience { room: EVERYONE.into() };
    let here = |backend: &B| {
        let sent = |(members, queued)| Sent { delivered: u64::from(members), queued: u64::from(queued) };
        backend.audience(EVERYONE).map_ok(sent)
    };
    let (parts, told) = api.gather(&scope, here, call).await?.present()?;
    let connections = parts.iter().map(|(_, sent): &(_, Sent)| sent.delivered).sum::<u64>();
    let connections = u32::try_from(connections).unwrap_or(u32::MAX);
    Ok(json(StatusCode::OK, &Across::new(Tested { connections, id: published.id }, told)))
}
