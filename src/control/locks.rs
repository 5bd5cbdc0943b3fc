//! Field locks: which are held, and taking one away.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use futures_util::TryFutureExt as _;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::answer::{ApiError, json};
use super::api::Api;
use super::backend::Backend;
use super::body::{Asked, Named};
use super::connections::Paging;
use super::nodes::call::Part;
use super::nodes::merge;
use super::nodes::{Across, NodeCall, Of, ScopeAsked};
use super::openapi::Refusals;
use crate::hub::lock_pages::{LockPage, place};
use crate::hub::reply::HubError;
use crate::node::LockInfo;
use crate::wire::codes::ErrorCode;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LocksAsked {
    /// Those of one room.
    room: Option<Box<str>>,
    /// What comes behind this place: `next` of the page before.
    after: Option<Box<str>>,
    /// At most so many, 1 to 1000; 100 where it is left out.
    limit: Option<usize>,
}

/// A part of the locks that are held. It may have fewer than were asked for, or none, and yet others come behind it: then
/// there is a `next`.
#[derive(Serialize, ToSchema)]
struct LocksPage {
    /// By room and field.
    locks: Vec<Of<LockView>>,
    /// How many are held in all.
    total: usize,
    /// Where to go on; null at the end.
    next: Option<String>,
}

/// The locks of one node.
pub(crate) type Locks = Part<LockView>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct LockView {
    room: String,
    field: String,
    holder: HolderView,
    /// The number it was granted with; it grows with every grant.
    token: u64,
    /// RFC 3339 in UTC.
    expires_at: String,
    /// Its place in the list.
    #[serde(skip)]
    #[schema(ignore)]
    place: String,
}

/// Who holds a lock: the session, and the connection that took or renewed it last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
struct HolderView {
    client_id: String,
    session_id: String,
    user_id: String,
}

impl From<LockInfo> for LockView {
    fn from(lock: LockInfo) -> LockView {
        let LockInfo { room, field, token, expires_at, client_id, session_id, user_id } = lock;
        LockView {
            room,
            field,
            holder: HolderView { client_id, session_id, user_id },
            token,
            expires_at,
            place: String::new(),
        }
        .placed()
    }
}

impl LockView {
    fn placed(self) -> LockView {
        LockView { place: place(&self.room, &self.field).into(), ..self }
    }
}

/// Lists the locks that are held, of all rooms (`websocket:admin` is needed) or of one that the caller may join.
#[utoipa::path(
    operation_id = "list_locks",
    get,
    path = "/api/v1/locks",
    tag = "locks",
    params(LocksAsked, ScopeAsked),
    responses((status = 200, body = Across<LocksPage>), Refusals),
)]
pub(crate) async fn list<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Asked(asked): Asked<LocksAsked>,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    let LocksAsked { room, after, limit } = asked;
    match &room {
        Some(room) => api.backend.may_read(&*api.identify(&headers)?, room)?,
        None => drop(api.admin(&headers)?),
    }
    let window = Paging { after, limit }.window()?;
    let limit = window.limit;
    let call = NodeCall::Locks { room: room.clone(), window: window.clone() };
    let here = |backend: &B| backend.locks(room.as_deref(), window).map_ok(locks_of);
    let (mut parts, told) = api.gather(&scope, here, call).await?.present()?;
    for (_, part) in &mut parts {
        part.items = std::mem::take(&mut part.items).into_iter().map(LockView::placed).collect();
    }
    let merge::Page { items, total, next, .. } = merge::pages(parts, limit, |lock: &LockView| &lock.place);
    Ok(json(StatusCode::OK, &Across::new(LocksPage { locks: items, total, next }, told)))
}

/// The locks that this node has.
pub(crate) fn locks_of(page: LockPage) -> Locks {
    let LockPage { locks, total, next } = page;
    Part { items: locks.into_iter().map(Into::into).collect(), total, upto: next }
}

#[derive(Serialize, ToSchema)]
struct Unlocked {
    room: String,
    field: String,
    released: bool,
}

/// Takes a lock away from whoever holds it; the room is told with `lock.released`.
#[utoipa::path(
    operation_id = "unlock",
    delete,
    path = "/api/v1/locks/{room}/{field}",
    tag = "locks",
    params(
        ("room" = String, Path, description = "The room's name"),
        ("field" = String, Path, description = "The field's name"),
        ScopeAsked,
    ),
    responses((status = 200, body = Across<Unlocked>), Refusals),
)]
pub(crate) async fn unlock<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Named((room, field)): Named<(String, String)>,
    Asked(scope): Asked<ScopeAsked>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let call = NodeCall::ForceUnlock { room: room.as_str().into(), field: field.as_str().into() };
    let gathered = api.gather(&scope, |backend| backend.force_unlock(&room, &field), call).await?;
    let (parts, told) = gathered.present()?;
    if !parts.into_iter().any(|(_, released)| released) {
        return Err(HubError::new(ErrorCode::NotFound, "nobody holds this lock").into());
    }
    Ok(json(StatusCode::OK, &Across::new(Unlocked { room, field, released: true }, told)))
}
