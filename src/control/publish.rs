//! `POST /api/v1/publish`: one event, or an array of them.

use std::fmt;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::body::Body as _;
use hyper::header::{self, HeaderMap};
use serde::Serialize;
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::answer::{ApiError, Inner, json};
use super::api::Api;
use super::backend::{Backend, PublishRequest, Published};
use crate::hub::reply::{HubError, Pending};
use crate::wire::codes::ErrorCode;

/// One entry of an array's answer.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Published(&'a Published),
    Refused { error: Inner<'a> },
}

pub(crate) async fn publish<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    // Before the body is read, so that strangers can't make the hub keep one.
    let identity = api.identify(&headers)?;
    if !is_json(&headers) {
        let message = "the content type must be application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_request", message));
    }
    let body = read(body, api.body_bytes_max).await?;
    if body.trim_ascii_start().first() != Some(&b'[') {
        let event = parse(&body)?;
        let published = api.remote(api.backend.publish(&identity, event)).await?;
        return Ok(json(StatusCode::OK, &published));
    }
    // All are sent before any answer is awaited: the shards work on them side by side, and order within a room is kept.
    let pending: Vec<_> = split(&body, api.events_max)?
        .into_iter()
        .map(|event| {
            let pending = match serde_json::from_str(event.get()) {
                Ok(event) => api.backend.publish(&identity, event),
                Err(error) => Pending::ready(Err(HubError::new(ErrorCode::BadJson, error.to_string()))),
            };
            api.remote(pending)
        })
        .collect();
    let results = join_all(pending).await;
    let entries: Vec<_> = results
        .iter()
        .map(|result| match result {
            Ok(published) => Entry::Published(published),
            Err(error) => Entry::Refused { error: error.into() },
        })
        .collect();
    Ok(json(StatusCode::OK, &entries))
}

/// `application/json`, or another type in its syntax. A missing type is refused too: browsers can send one across origins
/// without asking first.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    // Announced lengths are refused before the first byte of the body is taken.
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::too_large(limit));
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limit)),
        Err(_) => Err(ApiError::bad_json("the body ended early")),
    }
}

fn parse(body: &[u8]) -> Result<PublishRequest, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad_json(error.to_string()))
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

    #[test]
    fn the_content_type_decides() {
        let json = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(value));
            is_json(&headers)
        };
        assert!(json("application/json") && json("Application/JSON; charset=utf-8") && json("application/x+json"));
        assert!(!json("text/plain") && !json("application/x-www-form-urlencoded"));
        assert!(!is_json(&HeaderMap::new()));
    }
}
