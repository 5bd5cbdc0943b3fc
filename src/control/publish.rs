//! `POST /api/v1/publish`: one event, or an array of them.

use std::fmt;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures_util::future::join_all;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::Serialize;
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::answer::{ApiError, Inner, json};
use super::api::Api;
use super::backend::{Backend, PublishRequest, Published};
use super::body::{parse, read, refused, require_json};
use super::lines::{is_lines, publish_lines};
use super::openapi::{OneOrMany, PublishedOneOrMany, Refusals};
use crate::hub::reply::{HubError, Pending};

/// One entry of an array's answer.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Entry<'a> {
    Published(&'a Published),
    Refused { error: Inner<'a> },
}

impl<'a> Entry<'a> {
    pub(crate) fn new(result: &'a Result<Published, HubError>) -> Entry<'a> {
        match result {
            Ok(published) => Entry::Published(published),
            Err(error) => Entry::Refused { error: error.into() },
        }
    }
}

/// Publishes one event, or several.
#[utoipa::path(
    operation_id = "publish",
    post,
    path = "/api/v1/publish",
    tag = "events",
    request_body = OneOrMany,
    responses((status = 200, body = PublishedOneOrMany), Refusals),
)]
pub(crate) async fn publish<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    // Before the body is read, so that strangers can't make the hub keep one.
    let identity = api.identify(&headers)?;
    if is_lines(&headers) {
        return Ok(publish_lines(api, identity, body));
    }
    require_json(&headers)?;
    let body = read(body, api.body_bytes_max).await?;
    if body.trim_ascii_start().first() != Some(&b'[') {
        let event: PublishRequest = parse(&body)?;
        let published = api.publish(&identity, event).await?;
        return Ok(json(StatusCode::OK, &published));
    }
    // All are sent before any answer is awaited: the shards work on them side by side, and order within a room is kept.
    let pending: Vec<_> = split(&body, api.events_max)?
        .into_iter()
        .map(|event| match serde_json::from_str(event.get()) {
            Ok(event) => api.publish(&identity, event),
            Err(error) => api.remote(Pending::ready(Err(refused(&error)))),
        })
        .collect();
    let results = join_all(pending).await;
    let entries: Vec<_> = results.iter().map(Entry::new).collect();
    Ok(json(StatusCode::OK, &entries))
}

/// The entries of an array as they came, `max` at most.
fn split(body: &[u8], max: usize) -> Result<Vec<&RawValue>, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let events = deserializer
        .deserialize_seq(Events { max })
        .and_then(|events| deserializer.end().map(|()| events))
        .map_err(|error| ApiError::bad_json(error.to_string()))?;
    events.ok_or_else(|| {
        let message = format!("more than {max} events in one request");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    })
}

/// Stops at the first entry too many, so that a body of nothing but commas and zeros costs no memory. None then.
struct Events {
    max: usize,
}

impl<'de> Visitor<'de> for Events {
    type Value = Option<Vec<&'de RawValue>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut events = Vec::new();
        let mut too_many = false;
        while let Some(event) = entries.next_element::<&RawValue>()? {
            if events.len() < self.max {
                events.push(event);
            } else {
                too_many = true;
            }
        }
        Ok((!too_many).then_some(events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_split_without_parsing_its_entries() {
        let events = split(br#" [ {"a":1}, 2 ,[3] ] "#, 3).unwrap();
        assert_eq!(events.iter().map(|event| event.get()).collect::<Vec<_>>(), [r#"{"a":1}"#, "2", "[3]"]);
        assert!(split(b"[1,2,3,4]", 3).is_err());
        assert!(split(b"[1,2", 3).is_err());
        assert!(split(b"[1] x", 3).is_err());
        assert!(split(b"[]", 3).unwrap().is_empty());
    }
}
