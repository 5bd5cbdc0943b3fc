//! The flight recorder: what happened to a client lately, and what became of an event for it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::answer::{ApiError, json};
use super::api::Api;
use super::backend::Backend;
use super::body::{Asked, Named};
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
    connections: Vec<ConnectionTrace>,
}

/// Shows what happened to a client's connections: the one that is open, and those that ended some minutes ago.
#[utoipa::path(
    operation_id = "trace_connection",
    get,
    path = "/api/v1/connections/{client_id}/trace",
    tag = "connections",
    params(("client_id" = String, Path, description = "The client's id"), TraceParams),
    responses((status = 200, body = Trace), Refusals),
)]
pub(crate) async fn trace<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(client_id): Named<String>,
    Asked(TraceParams { limit }): Asked<TraceParams>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let limit = limit.unwrap_or(RECORDS_DEFAULT);
    if !(1..=RECORDS_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit is 1 to {RECORDS_MAX}")));
    }
    let connections = api.remote(api.backend.trace(&client_id, limit)).await?;
    Ok(json(StatusCode::OK, &Trace { client_id, connections }))
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
    params(("client_id" = String, Path, description = "The client's id"), ExplainParams),
    responses((status = 200, body = Explanation), Refusals),
)]
pub(crate) async fn explain<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(client_id): Named<String>,
    Asked(ExplainParams { event }): Asked<ExplainParams>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    Ok(json(StatusCode::OK, &api.remote(api.backend.explain(&client_id, &event)).await?))
}
