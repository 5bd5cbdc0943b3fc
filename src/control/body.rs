//! What comes with a request: its body, its query, the names in its path.

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::body::Body as _;
use hyper::header::{self, HeaderMap};
use hyper::http::request::Parts;
use serde::de::DeserializeOwned;

use super::answer::ApiError;
use crate::hub::reply::HubError;
use crate::wire::codes::ErrorCode;

/// `application/json`, or another type in its syntax. A missing type is refused too: browsers can send one across origins
/// without asking first.
pub(crate) fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if is_json(headers) {
        return Ok(());
    }
    let message = "the content type must be application/json";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_request", message))
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The whole body, as long as it is no longer than `limit`.
pub(crate) async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
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

/// A body that is JSON.
pub(crate) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<T, ApiError> {
    require_json(headers)?;
    parse(&read(body, limit).await?)
}

/// A text that is JSON. What is wrong with it is told; a text that is JSON, but not what is wanted, is a bad command.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| refused(&error).into())
}

/// What is wrong with a text.
pub(crate) fn refused(error: &serde_json::Error) -> HubError {
    let code = match error.classify() {
        serde_json::error::Category::Data => ErrorCode::BadCommand,
        _ => ErrorCode::BadJson,
    };
    HubError::new(code, error.to_string())
}

/// The query, with errors in the shape that all have here.
#[derive(Debug)]
pub(crate) struct Asked<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Asked<T>, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Asked(asked)),
            Err(rejection) => Err(ApiError::bad_request(rejection.body_text())),
        }
    }
}

/// The names in the path, with errors in the shape that all have here.
#[derive(Debug)]
pub(crate) struct Named<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Named<T>, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Named(names)),
            Err(rejection) => Err(ApiError::bad_request(rejection.body_text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
