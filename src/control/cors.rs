//! Cross-origin requests of browsers (Fetch standard, section 3.2), by `cors.origins`.

use axum::response::{IntoResponse, Response};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};

use super::answer::ApiError;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PATCH, DELETE");
const HEADERS: HeaderValue = HeaderValue::from_static("authorization, content-type, last-event-id");
/// How long a browser may keep the answer to a preflight.
const MAX_AGE_S: HeaderValue = HeaderValue::from_static("600");

/// Which origins may read answers.
#[derive(Debug)]
pub(crate) struct Cors {
    origins: Vec<String>,
}

impl Cors {
    /// Each origin is `*`, an origin (`https://a.example`) or one with a wildcard (`https://*.example`) that stands for one
    /// or more labels in front.
    pub(crate) fn new(origins: Vec<String>) -> Cors {
        Cors { origins }
    }

    /// The answer to a preflight; none when the request is not one.
    /// A request of Engine.IO may carry whatever headers its page wants it to.
    pub(crate) fn preflight<T>(&self, request: &Request<T>, is_engine: bool) -> Option<Response> {
        let headers = request.headers();
        let origin = headers.get(header::ORIGIN)?;
        if request.method() != Method::OPTIONS || !headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        if !self.allows(origin) {
            let message = "this origin is not in cors.origins";
            return Some(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message).into_response());
        }
        let wanted = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).filter(|_| is_engine).cloned();
        let headers = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.unwrap_or(HEADERS)),
            (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_S),
        ];
        Some((StatusCode::NO_CONTENT, headers).into_response())
    }

    /// Adds what lets the page at `origin` read the answer.
    pub(crate) fn allow(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        // The answer depends on the origin, and a cache between must know it.
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = origin.filter(|origin| self.allows(origin)) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            let exposed = HeaderValue::from_static("retry-after, www-authenticate");
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        self.origins.iter().any(|pattern| matches(pattern, origin))
    }
}

fn matches(pattern: &str, origin: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    let (pattern, origin) = (pattern.to_ascii_lowercase(), origin.to_ascii_lowercase());
    match pattern.split_once("*.") {
        Some((scheme, domain)) => origin
            .strip_prefix(scheme)
            .and_then(|host| host.strip_suffix(domain))
            .and_then(|labels| labels.strip_suffix('.'))
            .is_some_and(|labels| !labels.is_empty() && !labels.contains(['/', ':', '@'])),
        None => pattern == origin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_labels_and_nothing_else() {
        assert!(matches("*", "https://x.example"));
        assert!(matches("https://a.example", "https://A.example"));
        assert!(matches("https://*.example.com", "https://a.b.example.com"));
        assert!(!matches("https://*.example.com", "https://example.com"));
        assert!(!matches("https://*.example.com", "http://a.example.com"));
        assert!(!matches("https://*.example.com", "https://evilexample.com"));
        assert!(!matches("https://*.example.com", "https://evil.com:1/.example.com"));
        assert!(!matches("https://a.example", "null"));
    }

    #[test]
    fn a_preflight_is_answered_for_known_origins_only() {
        let cors = Cors::new(vec!["https://a.example".into()]);
        let preflight = |origin: &str| {
            let request = Request::options("/api/v1/publish")
                .header("origin", origin)
                .header("access-control-request-method", "POST")
                .body(())
                .unwrap();
            cors.preflight(&request, false).map(|response| response.status().as_u16())
        };
        assert_eq!(preflight("https://a.example"), Some(204));
        assert_eq!(preflight("https://b.example"), Some(403));
        assert!(
            cors.preflight(&Request::get("/live").header("origin", "https://a.example").body(()).unwrap(), false)
                .is_none()
        );
    }
}
