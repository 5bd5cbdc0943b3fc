//! Rooms: which there are, and what is in their logs.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::TryFutureExt as _;
use hyper::StatusCode;
use hyper::header::{self, HeaderMap};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::answer::{ApiError, json};
use super::api::Api;
use super::backend::Backend;
use super::body::{Asked, Named};
use super::connections::Paging;
use super::nodes::call::{Part, PresentPart};
use super::nodes::merge::{self, Page, RoomAcross};
use super::nodes::{Across, NodeCall, Of, ScopeAsked};
use super::openapi::{History, Member, PresenceTold, Refusals};
use crate::hub::presence::MEMBERS_LISTED_MAX;
use crate::hub::view::{RoomFilter, RoomView};
use crate::wire::native::{HISTORY_EVENTS_MAX, Since};

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RoomsAsked {
    kind: Option<Box<str>>,
    search: Option<Box<str>>,
    #[serde(default)]
    occupied: bool,
    after: Option<Box<str>>,
    limit: Option<usize>,
}

#[derive(Serialize, ToSchema)]
struct RoomsPage {
    rooms: Vec<RoomAcross>,
    /// How many rooms fit, on all pages together.
    total: usize,
    /// True where there may be more than `total`: several nodes have rooms, some of them the same ones, and this page does
    /// not have all of them. Whoever walks through all pages counts each room once.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    total_is_lower_bound: bool,
    next: Option<String>,
}

/// Lists the rooms that fit, by name.
#[utoipa::path(
    operation_id = "list_rooms",
    get,
    path = "/api/v1/rooms",
    tag = "rooms",
    params(RoomsAsked, ScopeAsked),
    responses((status = 200, body = Across<RoomsPage>), Refusals),
)]
pub(crate) async fn list<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Asked(asked): Asked<RoomsAsked>,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let RoomsAsked { kind, search, occupied, after, limit } = asked;
    let window = Paging { after, limit }.window()?;
    let (limit, is_first) = (window.limit, window.after.is_none());
    let filter = RoomFilter { kind, search, occupied };
    let call = NodeCall::Rooms { filter: filter.clone(), window: window.clone() };
    let here =
        |backend: &B| backend.rooms(filter, window).map_ok(move |listing| Part::new(listing, limit, |view| &view.room));
    let (parts, told) = api.gather(&scope, here, call).await?.present()?;
    let Page { items: rooms, total, is_lower_bound: total_is_lower_bound, next } = merge::rooms(parts, is_first, limit);
    Ok(json(StatusCode::OK, &Across::new(RoomsPage { rooms, total, total_is_lower_bound, next }, told)))
}

/// Shows one room.
#[utoipa::path(
    operation_id = "show_room",
    get,
    path = "/api/v1/rooms/{room}",
    tag = "rooms",
    params(("room" = String, Path, description = "The room's name"), ScopeAsked),
    responses((status = 200, body = Across<RoomAcross>), Refusals),
)]
pub(crate) async fn show<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(room): Named<String>,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    let identity = api.identify(&headers)?;
    api.backend.may_read(&identity, &room)?;
    let call = NodeCall::Room { room: room.as_str().into() };
    let (parts, told) = api.gather(&scope, |backend| backend.room(&room), call).await?.found()?;
    let rooms = parts.into_iter().map(|(node, view): (_, RoomView)| RoomAcross::new(&node, view));
    let whole = rooms.reduce(|mut whole, one| {
        whole.with(one);
        whole
    });
    Ok(json(StatusCode::OK, &Across::new(whole.ok_or_else(ApiError::not_found)?, told)))
}

/// Where to begin: at most one of `since` (a `seq`, with its `epoch` where that is known), `last` and `seconds`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct HistoryAsked {
    since: Option<u64>,
    epoch: Option<Box<str>>,
    last: Option<u64>,
    seconds: Option<u64>,
    limit: Option<usize>,
    #[serde(default)]
    reverse: bool,
}

impl HistoryAsked {
    fn since(&self) -> Result<Option<Since>, ApiError> {
        // As large as JSON's other readers can take it.
        if [self.since, self.last, self.seconds].into_iter().flatten().any(|number| number > i64::MAX as u64) {
            return Err(ApiError::bad_request("since, last and seconds are 0 to 9223372036854775807"));
        }
        match (self.since, self.last, self.seconds) {
            (None, None, None) => Ok(None),
            (Some(seq), None, None) => Ok(Some(Since::Seq { seq, epoch: self.epoch.clone() })),
            (None, Some(last), None) => Ok(Some(Since::Last(last))),
            (None, None, Some(seconds)) => Ok(Some(Since::Seconds(seconds))),
            _ => Err(ApiError::bad_request("at most one of since, last and seconds may be given")),
        }
    }
}

/// Reads a part of a room's log.
#[utoipa::path(
    operation_id = "show_history",
    get,
    path = "/api/v1/rooms/{room}/history",
    tag = "rooms",
    params(("room" = String, Path, description = "The room's name"), HistoryAsked),
    responses((status = 200, body = History), Refusals),
)]
pub(crate) async fn history<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(room): Named<String>,
    Asked(asked): Asked<HistoryAsked>,
) -> Result<Response, ApiError> {
    let identity = api.identify(&headers)?;
    api.backend.may_read(&identity, &room)?;
    let limit = asked.limit.unwrap_or(100);
    if !(1..=HISTORY_EVENTS_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit is 1 to {HISTORY_EVENTS_MAX}")));
    }
    let text = api.remote(api.backend.history(&room, asked.since()?, limit, asked.reverse)).await?;
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::OK, headers, text).into_response())
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PresenceAsked {
    /// At most so many members, 1 to 1000; 1000 where it is left out.
    limit: Option<usize>,
}

/// Tells who is in a room: those that joined first, and how many there are in all.
#[utoipa::path(
    operation_id = "show_presence",
    get,
    path = "/api/v1/rooms/{room}/presence",
    tag = "rooms",
    params(("room" = String, Path, description = "The room's name"), PresenceAsked, ScopeAsked),
    responses((status = 200, body = Across<PresenceTold>), Refusals),
)]
pub(crate) async fn presence<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(room): Named<String>,
    Asked(asked): Asked<PresenceAsked>,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    let identity = api.identify(&headers)?;
    api.backend.may_read(&identity, &room)?;
    let limit = asked.limit.unwrap_or(MEMBERS_LISTED_MAX);
    if !(1..=MEMBERS_LISTED_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit is 1 to {MEMBERS_LISTED_MAX}")));
    }
    let call = NodeCall::Presence { room: room.as_str().into() };
    let gathered = api.gather(&scope, |backend| backend.presence(&room).map_ok(PresentPart::from), call).await?;
    let (parts, told) = gathered.present()?;
    let (count, seq, members) = merge::presence(parts, limit);
    let more = count > members.len();
    let members = members.into_iter().map(Of::<Member>::from).collect();
    Ok(json(StatusCode::OK, &Across::new(PresenceTold { room, seq, count, members, more }, told)))
}

#[derive(Serialize, ToSchema)]
struct Cleared {
    room: String,
    deleted: u64,
}

/// Empties a room's log; its numbers go on.
#[utoipa::path(
    operation_id = "clear_history",
    delete,
    path = "/api/v1/rooms/{room}/history",
    tag = "rooms",
    params(("room" = String, Path, description = "The room's name")),
    responses((status = 200, body = Cleared), Refusals),
)]
pub(crate) async fn clear<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named(room): Named<String>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let deleted = api.remote(api.backend.clear_history(&room)).await?;
    Ok(json(StatusCode::OK, &Cleared { room, deleted }))
}
