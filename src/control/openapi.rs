//! `/openapi.json`: what the HTTP API takes and answers, from the definitions that serve it.

use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};

use super::answer::{Body, json};
use super::backend::{PublishRequest, Published};
use super::nodes::Of;
use super::nodes::call::PresentMember;
use super::publish::Entry;
use super::{
    access, alerts, api, broadcast, connections, github, locks, messages, performance, publish, rooms, trace, web,
};
use crate::wire::envelope::rfc3339;

/// What every call may answer where it does not do what was asked.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "describes, and is never made")]
pub(crate) enum Refusals {
    /// The request is not one that this call takes.
    #[response(status = 400)]
    Bad(Body<'static>),
    /// A bearer token is missing, or is not valid.
    #[response(status = 401)]
    Unauthorized(Body<'static>),
    /// A permission is missing.
    #[response(status = 403)]
    Forbidden(Body<'static>),
    /// There is no such thing.
    #[response(status = 404)]
    NotFound(Body<'static>),
    /// The request's body did not come in time.
    #[response(status = 408)]
    Timeout(Body<'static>),
    /// The request's body is too large.
    #[response(status = 413)]
    TooLarge(Body<'static>),
    /// The request's body is no JSON by its content type.
    #[response(status = 415)]
    MediaType(Body<'static>),
    /// Too much at a time; `Retry-After` says when to try again.
    #[response(status = 429)]
    RateLimited(Body<'static>),
    /// The hub can't do it right now; `Retry-After` says when to try again.
    #[response(status = 503)]
    Unavailable(Body<'static>),
}

/// One event, or several.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes, and is never made")]
pub(crate) enum OneOrMany {
    /// One.
    One(PublishRequest),
    /// Several; what is wrong with one is told in its place of the answer.
    #[schema(value_type = Vec<serde_json::Value>)]
    Many(Vec<serde_json::Value>),
}

/// The answer for one event, or one entry for each of several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes, and is never made")]
pub(crate) enum PublishedOneOrMany {
    /// For one.
    One(Published),
    /// For several.
    Many(Vec<Entry<'static>>),
}

/// A part of a room's log.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "describes; the log writes it")]
pub(crate) struct History {
    /// The room's name.
    room: String,
    /// Events as subscribers get them.
    #[schema(value_type = Vec<Object>)]
    events: Vec<serde_json::Value>,
    /// The number of the room's last event.
    seq: u64,
    /// The log's epoch; null for a room that there is not.
    epoch: Option<String>,
    /// Whether there is more in that direction.
    more: bool,
}

/// Who is in a room.
#[derive(Serialize, ToSchema)]
pub(crate) struct PresenceTold {
    /// The room's name.
    pub(crate) room: String,
    /// The room's last event before this was found out.
    pub(crate) seq: u64,
    /// How many sessions are there.
    pub(crate) count: usize,
    /// In the order in which they joined.
    pub(crate) members: Vec<Of<Member>>,
    /// Whether there are more than are listed.
    pub(crate) more: bool,
}

/// A session that is in a room.
#[derive(Serialize, ToSchema)]
pub(crate) struct Member {
    client_id: String,
    user_id: String,
    session_id: String,
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    /// RFC 3339 in UTC.
    joined_at: String,
}

impl From<Of<PresentMember>> for Of<Member> {
    fn from(of: Of<PresentMember>) -> Of<Member> {
        let PresentMember { client_id, user_id, session_id, metadata, joined_ms } = of.item;
        let joined_at = String::from_utf8_lossy(&rfc3339(joined_ms)).into_owned();
        Of { item: Member { client_id, user_id, session_id, metadata, joined_at }, node: of.node }
    }
}

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Ringhub", description = "The HTTP API of a real-time hub."),
    paths(
        document,
        api::live,
        api::ready,
        api::health,
        api::metrics,
        api::stats,
        publish::publish,
        broadcast::broadcast,
        broadcast::test,
        connections::list,
        connections::list_beside_sockets,
        connections::show,
        connections::change,
        connections::end,
        connections::end_many,
        access::reauthenticate,
        access::withdraw,
        trace::trace,
        trace::explain,
        messages::session,
        messages::send_to_session,
        messages::receive,
        messages::send_to_many,
        rooms::list,
        rooms::show,
        rooms::history,
        rooms::clear,
        rooms::presence,
        locks::list,
        locks::unlock,
        github::github,
        alerts::list,
        performance::show,
        web::client,
        web::pages::dashboard,
        web::pages::dashboard_file,
        web::pages::demo,
        web::pages::demo_file,
    ),
    components(schemas(Body)),
    security(("bearer" = [])),
    modifiers(&Bearer)
)]
struct Described;

/// This description.
#[utoipa::path(
    operation_id = "describe",
    get,
    path = "/openapi.json",
    tag = "health",
    security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object)),
)]
pub(crate) async fn document() -> Response {
    json(StatusCode::OK, &Described::openapi()).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_call_is_described_with_its_answers() {
        let document = serde_json::to_value(Described::openapi()).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        assert!(paths.len() >= 16, "{}", paths.len());
        for (path, calls) in paths {
            for (method, call) in calls.as_object().expect("calls") {
                assert!(call["responses"]["200"].is_object(), "{method} {path}");
            }
        }
        assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    }

    #[test]
    fn every_route_is_described() {
        // Where a socket or a stream is expected there is nothing to describe; the first page only says what this is.
        const NOT_CALLS: [&str; 4] = ["/", "/events", "/ws", "/ws/monitor/{session_id}"];
        let routes = include_str!("api.rs").split(".route(").skip(1);
        let routes: BTreeSet<&str> = routes.filter_map(|route| route.split('"').nth(1)).collect();
        let described = Described::openapi().paths.paths;
        let described: BTreeSet<&str> = described.keys().map(String::as_str).chain(NOT_CALLS).collect();
        assert!(routes.len() > 25, "{routes:?}");
        assert_eq!(routes, described);
    }
}
