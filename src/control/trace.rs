//! The flight recorder: what happened to a client lately, and what became of an event for it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use futures_util::TryFutureExt as _;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::answer::{ApiError, json};
use super::api::Api;
use super::backend::Backend;
use super::body::{Asked, Named};
use super::nodes::{Across, Node, NodeCall, Of, ScopeAsked};
use super::openapi::Refusals;
use crate::hub::explain::Explanation;
use crate::hub::trace::ConnectionTrace;

/// Records of one connection in an answer, at most; the answer is put together in memory.
const RECORDS_MAX: usize = 1000;
/// Records where the caller says nothing.
const RECORDS_DEFAULT: usize = 200;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct TraceParams {
    /// The newest so many records of each connection, 1 to 1000; 200 where it is left out.
    limit: Option<usize>,
}

#[derive(Serialize, ToSchema)]
struct Trace {
    client_id: String,
    /// Newest first.
    #[schema(value_type = Vec<Of<ConnectionTrace>>)]
    connections: Vec<Of<Value>>,
}

/// Shows what happened to a client's connections: the one that is open, and those that ended some minutes ago.
#[utoipa::path(
    operation_id = "trace_connection",
    get,
    path = "/api/v1/connections/{client_id}/trace",
    tag = "connections",
    params(("client_id" = String, Path, description = "The client's id"), TraceParams, ScopeAsked),
    responses((status = 200, body = Across<Trace>), Refusals),
)]
pub(crate) async fn trace<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(client_id): Named<String>,
    Asked(TraceParams { limit }): Asked<TraceParams>,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let limit = limit.unwrap_or(RECORDS_DEFAULT);
    if !(1..=RECORDS_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit is 1 to {RECORDS_MAX}")));
    }
    let call = NodeCall::Trace { client_id: client_id.as_str().into(), limit };
    let here = |backend: &B| backend.trace(&client_id, limit).map_ok(|traces| traces.iter().map(value).collect());
    let (parts, told) = api.gather(&scope, here, call).await?.found()?;
    let of_node =
        |(node, traces): (Node, Vec<Value>)| traces.into_iter().map(move |item| Of { item, node: node.clone() });
    let connections = parts.into_iter().flat_map(of_node).collect();
    Ok(json(StatusCode::OK, &Across::new(Trace { client_id, connections }, told)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExplainParams {
    /// The event's id.
    event: Box<str>,
}

/// Says whether an event was not subscribed, filtered, skipped, queued or written for a client.
#[utoipa::path(
    operation_id = "explain_event",
    get,
    path = "/api/v1/connections/{client_id}/explain",
    tag = "connections",
    params(("client_id" = String, Path, description = "The client's id"), ExplainParams, ScopeAsked),
    responses((status = 200, body = Of<Explanation>), Refusals),
)]
pub(crate) async fn explain<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(client_id): Named<String>,
    Asked(ExplainParams { event }): Asked<ExplainParams>,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let call = NodeCall::Explain { client_id: client_id.as_str().into(), event_id: event.clone() };
    let here = |backend: &B| backend.explain(&client_id, &event).map_ok(|explanation| value(&explanation));
    let (node, item) = api.gather(&scope, here, call).await?.first()?;
    Ok(json(StatusCode::OK, &Of { item, node }))
}

fn value(told: &impl Serialize) -> Value {
    serde_json::to_value(told).unwrap_or_default()
}
