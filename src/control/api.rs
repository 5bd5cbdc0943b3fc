//! The routes of the HTTP API (protocol, section 7).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures_lite::future::yield_now;
use hyper::header::{self, HeaderMap};
use hyper::{Method, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::alerts::{self, Board};
use super::answer::{ApiError, json};
use super::backend::{Backend, PublishRequest, Published};
use super::body::Asked;
use super::door::{Door, Remote};
use super::engine::{self, EngineOptions};
use super::figures::{ShardFigures, Snapshot};
use super::github::{Hook, github};
use super::hooks::{Hooks, HooksStatus};
use super::journal::JournalSnapshot;
use super::metrics::Metrics;
use super::nodes::call::NodeFigures;
use super::nodes::{Across, ClusterStatus, NodeCall, ScopeAsked};
use super::openapi::{self, Refusals};
use super::performance;
use super::process::{self, Process};
use super::publish::publish;
use super::runtime::spawn_local;
use super::store::{Store, StoreStatus};
use super::telemetry::{Telemetry, TelemetryStatus};
use super::windows::{Lately, Windows};
use super::{access, broadcast, connections, locks, messages, rooms, trace, web};
use crate::broker::BrokerSnapshot;
use crate::broker::nodes::NodeInfo;
use crate::hub::reply::Pending;
use crate::ring::DriverKind;

/// What handlers need.
pub(crate) struct Api<B> {
    pub(crate) backend: B,
    pub(crate) door: Arc<Door>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) windows: Arc<Windows>,
    pub(crate) started: Instant,
    pub(crate) body_bytes_max: usize,
    pub(crate) events_max: usize,
    pub(crate) github: Option<Hook>,
    /// Whether there is a demo to show.
    pub(crate) demo: bool,
    pub(crate) alerts: Arc<Board>,
    pub(crate) store: Option<Store>,
    pub(crate) hooks: Option<Hooks>,
    pub(crate) telemetry: Option<Telemetry>,
    /// Whether shards are about to be woken.
    pub(crate) ring_is_due: AtomicBool,
    pub(crate) engine: EngineOptions,
    pub(crate) driver: DriverKind,
}

/// The route a request took, left on the response for the metrics.
#[derive(Debug, Clone)]
pub(crate) struct Route(MatchedPath);

impl Route {
    pub(crate) fn path(&self) -> &str {
        self.0.as_str()
    }
}

/// All routes.
pub(crate) fn router<B: Backend>(api: Arc<Api<B>>) -> Router {
    engine::routes(&api.engine)
        .route("/", get(about))
        .route("/live", get(live::<B>))
        .route("/ready", get(ready::<B>))
        .route("/ws/health", get(health::<B>))
        .route("/metrics", get(metrics::<B>))
        .route("/openapi.json", get(openapi::document))
        .route("/ringhub.js", get(web::client))
        .route("/dashboard", get(web::pages::dashboard))
        .route("/dashboard/{file}", get(web::pages::dashboard_file))
        .route("/demo", get(web::pages::demo::<B>))
        .route("/demo/{file}", get(web::pages::demo_file::<B>))
        .route("/api/v1/publish", post(publish::<B>))
        .route("/webhooks/github", post(github::<B>))
        .route("/api/v1/broadcast", post(broadcast::broadcast::<B>))
        .route("/ws/broadcast/test", post(broadcast::test::<B>))
        .route("/api/v1/websocket/stats", get(stats::<B>))
        .route("/ws/connections", get(connections::list_beside_sockets::<B>))
        .route("/api/v1/connections", get(connections::list::<B>))
        .route(
            "/api/v1/connections/{client_id}",
            get(connections::show::<B>).patch(connections::change::<B>).delete(connections::end::<B>),
        )
        .route("/api/v1/connections/{client_id}/trace", get(trace::trace::<B>))
        .route("/api/v1/connections/{client_id}/explain", get(trace::explain::<B>))
        .route("/api/v1/disconnect", post(connections::end_many::<B>))
        .route("/api/v1/reauthenticate", post(access::reauthenticate::<B>))
        .route("/api/v1/withdraw", post(access::withdraw::<B>))
        .route("/api/v1/sessions/{session_id}", get(messages::session::<B>))
        .route(
            "/api/v1/sessions/{session_id}/messages",
            get(messages::receive::<B>).post(messages::send_to_session::<B>),
        )
        .route("/api/v1/messages", post(messages::send_to_many::<B>))
        .route("/api/v1/rooms", get(rooms::list::<B>))
        .route("/api/v1/rooms/{room}", get(rooms::show::<B>))
        .route("/api/v1/rooms/{room}/history", get(rooms::history::<B>).delete(rooms::clear::<B>))
        .route("/api/v1/rooms/{room}/presence", get(rooms::presence::<B>))
        .route("/api/v1/locks", get(locks::list::<B>))
        .route("/api/v1/locks/{room}/{field}", delete(locks::unlock::<B>))
        .route("/api/v1/alerts", get(alerts::list::<B>))
        .route("/api/v1/performance", get(performance::show::<B>))
        .route("/ws", get(upgrade_required))
        .route("/ws/monitor/{session_id}", get(upgrade_required))
        .route("/events", get(streams_elsewhere))
        .route_layer(middleware::from_fn(note_route))
        .fallback(async || ApiError::not_found())
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "bad_request", "this path does not take this method")
        })
        .with_state(api)
}

impl<B: Backend> Api<B> {
    /// Who asks: by the bearer token, or anyone where no token is needed.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Result<Arc<B::Identity>, ApiError> {
        if let Some(anonymous) = self.backend.anonymous() {
            return Ok(anonymous);
        }
        let value =
            headers.get(header::AUTHORIZATION).ok_or_else(|| ApiError::unauthorized("a bearer token is needed"))?;
        let token = value
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| ApiError::unauthorized("the Authorization header holds no bearer token"))?;
        Ok(self.backend.verify(token)?)
    }

    /// Who asks, where that is somebody who may do everything.
    pub(crate) fn admin(&self, headers: &HeaderMap) -> Result<Arc<B::Identity>, ApiError> {
        let identity = self.identify(headers)?;
        if !self.backend.is_admin(&identity) {
            return Err(ApiError::forbidden("websocket:admin is needed for this call"));
        }
        Ok(identity)
    }

    /// Publishes an event. The shards are woken once for all that is published in this round of the executor: waking one
    /// costs as much as a third of a request.
    pub(crate) fn publish(
        self: &Arc<Self>,
        identity: &Arc<B::Identity>,
        event: PublishRequest,
    ) -> Remote<Pending<Published>> {
        let pending = self.backend.publish(identity, event);
        if !self.ring_is_due.swap(true, Ordering::Relaxed) {
            let api = Arc::clone(self);
            drop(spawn_local(async move {
                // A task may begin to run as it is spawned; the rest comes behind the tasks that are ready now.
                yield_now().await;
                api.ring_is_due.store(false, Ordering::Relaxed);
                api.backend.ring();
            }));
        }
        self.remote(pending)
    }

    /// Awaits what another thread answers.
    pub(crate) fn remote<F: Future + Unpin>(&self, future: F) -> Remote<F> {
        Remote::new(future, &self.door)
    }

    fn page<'a>(&self, status: &'static str, total: &'a ShardFigures, shards: &'a Snapshot) -> Page<'a> {
        Page {
            status,
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: self.started.elapsed().as_secs(),
            driver: self.driver.word(),
            shards_answering: None,
            shards_deaf: None,
            broker: BrokerStatus::of(self.backend.broker()),
            cluster: self.backend.nodes().map(|nodes| ClusterStatus::of(&nodes)),
            store: self.store.as_ref().map(Store::status),
            hooks: self.hooks.as_ref().map(Hooks::status),
            telemetry: self.telemetry.as_ref().map(Telemetry::status),
            process: process::read(),
            journal: self.backend.journal(),
            total,
            shards: &shards.shards,
        }
    }
}

/// What numbers the events of rooms and brings them to every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BrokerStatus {
    /// `memory`: the shards of this process, which is the only node; or `redis`.
    pub kind: &'static str,
    /// `up`, or `down` while one of its servers can't be reached. The node takes no traffic then: rooms that nobody here is
    /// in can't be joined, and nothing can be published in those of that server.
    pub state: &'static str,
    /// What it has counted, where nodes share rooms; `/metrics` says what the figures mean.
    #[schema(value_type = Option<Object>)]
    #[serde(flatten)]
    pub figures: Option<BrokerSnapshot>,
}

impl BrokerStatus {
    fn of(figures: Option<BrokerSnapshot>) -> BrokerStatus {
        let kind = if figures.is_some() { "redis" } else { "memory" };
        let is_up = figures.as_ref().is_none_or(BrokerSnapshot::is_up);
        BrokerStatus { kind, state: if is_up { "up" } else { "down" }, figures }
    }
}

/// The health pages.
#[derive(Serialize, ToSchema)]
pub(crate) struct Page<'a> {
    status: &'static str,
    version: &'static str,
    uptime_s: u64,
    /// What the shards ask the kernel by: `uring`, or `epoll` where io_uring is forbidden or not wanted.
    driver: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    shards_answering: Option<usize>,
    /// Shards that answer, but don't hear others or aren't heard by them.
    #[serde(skip_serializing_if = "Option::is_none")]
    shards_deaf: Option<usize>,
    broker: BrokerStatus,
    /// The nodes that share rooms, where there may be several; their state does not decide whether this one takes traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterStatus>,
    /// The stored history, where one is kept; its state does not decide whether the hub takes traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<StoreStatus>,
    /// The backend's hooks, where there are some; their state decides nothing either.
    #[serde(skip_serializing_if = "Option::is_none")]
    hooks: Option<HooksStatus>,
    /// Traces and metrics, where somebody collects them.
    #[serde(skip_serializing_if = "Option::is_none")]
    telemetry: Option<TelemetryStatus>,
    process: Process,
    /// A journal that can't be written is told here and fails no readiness: rooms that are not durable go on.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    journal: Option<JournalSnapshot>,
    /// All shards together.
    #[schema(value_type = Object)]
    total: &'a ShardFigures,
    /// Each shard; `/metrics` says what the figures mean.
    #[schema(value_type = Vec<Object>)]
    shards: &'a [ShardFigures],
}

/// What the health pages tell, and what happened lately.
#[derive(Serialize, ToSchema)]
pub(crate) struct Stats<'a> {
    #[serde(flatten)]
    page: Page<'a>,
    /// Rates and percentiles over the last seconds.
    lately: Lately,
    /// Every node's figures, where there are several; what stands beside is of the node that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<Vec<NodeStats>>,
}

/// What a node of several tells.
#[derive(Serialize, ToSchema)]
pub(crate) struct NodeStats {
    /// Its name.
    node: String,
    /// Where its clients connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    public: Option<String>,
    /// Where its operators connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    internal: Option<String>,
    version: String,
    /// When it was started, in milliseconds since 1970.
    started_ms: u64,
    #[serde(flatten)]
    figures: NodeFigures,
}

impl NodeStats {
    fn new(node: String, figures: NodeFigures, infos: &[NodeInfo]) -> Option<NodeStats> {
        let NodeInfo { public, internal, version, started_ms, .. } =
            infos.iter().find(|info| info.name == node).cloned()?;
        Some(NodeStats { node, public, internal, version, started_ms, figures })
    }
}

#[derive(Serialize)]
struct About {
    name: &'static str,
    version: &'static str,
}

async fn note_route(request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(path) = path {
        response.extensions_mut().insert(Route(path));
    }
    response
}

async fn about() -> Response {
    json(StatusCode::OK, &About { name: "ringhub", version: env!("CARGO_PKG_VERSION") })
}

/// The process is up.
#[utoipa::path(
    operation_id = "live",
    get,
    path = "/live",
    tag = "health",
    security(()),
    responses((status = 200, body = Page)),
)]
pub(crate) async fn live<B: Backend>(State(api): State<Arc<Api<B>>>) -> Response {
    let figures = api.backend.figures();
    json(StatusCode::OK, &api.page("ok", &figures.total(), &figures))
}

/// The hub takes traffic: every shard answers, the broker (where there is one) can be reached, and it is not draining.
#[utoipa::path(
    operation_id = "ready",
    get,
    path = "/ready",
    tag = "health",
    security(()),
    responses((status = 200, body = Page), (status = 503, description = "It takes no traffic", body = Page)),
)]
pub(crate) async fn ready<B: Backend>(State(api): State<Arc<Api<B>>>) -> Response {
    let answer = api.remote(api.backend.ready()).await;
    let (status, word) = match &answer {
        _ if api.backend.draining() => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        _ if api.backend.broker().is_some_and(|broker| !broker.is_up()) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the broker can't be reached")
        }
        Ok(readiness) if readiness.complete() => (StatusCode::OK, "ok"),
        Ok(readiness) if readiness.deaf > 0 => (StatusCode::SERVICE_UNAVAILABLE, "shards do not hear each other"),
        Ok(_) => (StatusCode::SERVICE_UNAVAILABLE, "shards do not answer"),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.code.as_str()),
    };
    let readiness = answer.ok();
    let figures = api.backend.figures();
    let total = figures.total();
    let page = Page {
        shards_answering: readiness.map(|readiness| readiness.answering),
        shards_deaf: readiness.map(|readiness| readiness.deaf),
        ..api.page(word, &total, &figures)
    };
    let mut response = json(status, &page);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

/// Figures for people and dashboards; always 200 while the process is up.
#[utoipa::path(
    operation_id = "health",
    get,
    path = "/ws/health",
    tag = "health",
    security(()),
    responses((status = 200, body = Page)),
)]
pub(crate) async fn health<B: Backend>(State(api): State<Arc<Api<B>>>) -> Response {
    let status = if api.backend.draining() { "draining" } else { "ok" };
    let figures = api.backend.figures();
    json(StatusCode::OK, &api.page(status, &figures.total(), &figures))
}

/// Figures for backends and dashboards that have a token: those of the health pages, and rates and percentiles of the last
/// seconds.
#[utoipa::path(
    operation_id = "stats",
    get,
    path = "/api/v1/websocket/stats",
    tag = "health",
    params(ScopeAsked),
    responses((status = 200, body = Across<Stats>), Refusals),
)]
pub(crate) async fn stats<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    api.identify(&headers)?;
    let here = |backend: &B| std::future::ready(Ok(NodeFigures::of(backend)));
    let (parts, told) = api.gather(&scope, here, NodeCall::Stats).await?.present()?;
    let infos = api.backend.nodes().map(|nodes| nodes.alive());
    let nodes = infos
        .map(|infos| parts.into_iter().filter_map(|(node, figures)| NodeStats::new(node?, figures, &infos)).collect());
    let status = if api.backend.draining() { "draining" } else { "ok" };
    let figures = api.backend.figures();
    let lately = api.windows.lately(Instant::now(), &figures, api.backend.times());
    let total = figures.total();
    let stats = Stats { page: api.page(status, &total, &figures), lately, nodes };
    Ok(json(StatusCode::OK, &Across::new(stats, told).without_nodes()))
}

/// Figures for Prometheus.
#[utoipa::path(
    operation_id = "metrics",
    get,
    path = "/metrics",
    tag = "health",
    security(()),
    responses(
        (status = 200, description = "In the text format of Prometheus, or OpenMetrics where that is accepted", body = String, content_type = "text/plain"),
        Refusals,
    ),
)]
pub(crate) async fn metrics<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (content_type, text) = api.metrics.render(&headers).map_err(|_| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the metrics could not be written")
    })?;
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

/// An ordinary GET where a WebSocket handshake is expected.
async fn upgrade_required() -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "bad_upgrade", "this path takes WebSocket upgrades only")
}

/// A GET comes here on the internal listener only: on the public one a shard has taken it before.
async fn streams_elsewhere(method: Method) -> Response {
    if method == Method::GET {
        let message = "streams of events are on the public listener";
        return ApiError::new(StatusCode::NOT_FOUND, "not_found", message).into_response();
    }
    let refused = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "bad_method", "this path takes GET only");
    ([(header::ALLOW, "GET")], refused).into_response()
}
