//! Answers of the API: JSON, and one shape for every error (protocol, section 1).

use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use serde::Serialize;
use utoipa::ToSchema;

use crate::hub::reply::HubError;
use crate::wire::codes::ErrorCode;

/// When to try again what the hub could not do right now.
const RETRY_AFTER_S: u64 = 1;

/// An error on its way to the client.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after_s: Option<u64>,
}

/// An error (protocol, section 1).
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct Body<'a> {
    error: Inner<'a>,
}

/// What stands under `error`, also for one entry of an array.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ErrorDetail)]
pub(crate) struct Inner<'a> {
    /// One of the protocol's error codes, or of the codes of refusals.
    code: &'a str,
    /// One sentence for a person.
    message: &'a str,
    /// When to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, code, message: message.into(), retry_after_s: None }
    }

    pub(crate) fn bad_json(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_json", message)
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_command", message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, "conflict", message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub(crate) fn not_found() -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
    }

    pub(crate) fn too_large(limit: usize) -> ApiError {
        let message = format!("the body is larger than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> ApiError {
        let mut error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message);
        error.retry_after_s = Some(RETRY_AFTER_S);
        error
    }
}

impl From<HubError> for ApiError {
    fn from(error: HubError) -> ApiError {
        let status = match error.code {
            ErrorCode::BadJson
            | ErrorCode::BadCommand
            | ErrorCode::UnknownType
            | ErrorCode::BadRoom
            | ErrorCode::BadFilter => StatusCode::BAD_REQUEST,
            ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::RateLimited | ErrorCode::RoomLimit => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Conflict | ErrorCode::LockHeld | ErrorCode::LockLost => StatusCode::CONFLICT,
            ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let passes = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let retry_after_s = passes.then_some(RETRY_AFTER_S);
        ApiError { status, code: error.code.as_str(), message: error.message, retry_after_s }
    }
}

impl<'a> From<&'a HubError> for Inner<'a> {
    fn from(error: &'a HubError) -> Inner<'a> {
        let passes = matches!(error.code, ErrorCode::RateLimited | ErrorCode::Unavailable);
        let retry_after_ms = passes.then_some(RETRY_AFTER_S * 1000);
        Inner { code: error.code.as_str(), message: &error.message, retry_after_ms }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = Inner { code: self.code, message: &self.message, retry_after_ms: None };
        let mut response = json(self.status, &Body { error });
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A JSON answer that nobody may keep.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    match serde_json::to_vec(value) {
        Ok(body) => (status, headers, body).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            let body = r#"{"error":{"code":"internal","message":"the answer could not be written"}}"#;
            (StatusCode::INTERNAL_SERVER_ERROR, headers, body).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_hub_becomes_the_status_that_fits() {
        for (code, status, retry) in [
            (ErrorCode::BadRoom, 400, None),
            (ErrorCode::Unauthorized, 401, None),
            (ErrorCode::Forbidden, 403, None),
            (ErrorCode::NotFound, 404, None),
            (ErrorCode::Conflict, 409, None),
            (ErrorCode::TooLarge, 413, None),
            (ErrorCode::RateLimited, 429, Some("1")),
            (ErrorCode::Unavailable, 503, Some("1")),
            (ErrorCode::Internal, 500, None),
        ] {
            let error = HubError::new(code, "no");
            let response = ApiError::from(error).into_response();
            assert_eq!(response.status().as_u16(), status);
            let header = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap());
            assert_eq!(header, retry, "{code:?}");
            assert_eq!(response.headers().contains_key(header::WWW_AUTHENTICATE), status == 401);
        }
    }
}
