//! What the hub serves to browsers: files that are part of the program.
//!
//! They say nothing that is not public, so that pages of every origin may read them, and need no token. A browser asks each
//! time whether a file is still the same (`no-cache`), which costs a round trip and not the file: page and hub never differ in
//! version.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// A file.
struct Asset {
    content_type: &'static str,
    text: &'static str,
    /// A strong validator (RFC 9110 section 8.8.3): a hash of the bytes.
    etag: String,
}

static CLIENT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("text/javascript; charset=utf-8", include_str!("ringhub.js")));

/// The browser client: an ES module without dependencies.
#[utoipa::path(
    operation_id = "client",
    get,
    path = "/ringhub.js",
    tag = "web",
    security(()),
    responses(
        (status = 200, description = "The module", body = String, content_type = "text/javascript"),
        (status = 304, description = "It is the one that `If-None-Match` names"),
    ),
)]
pub(crate) async fn client(headers: HeaderMap) -> Response {
    CLIENT.answer(&headers)
}

impl Asset {
    fn new(content_type: &'static str, text: &'static str) -> Asset {
        let hash = digest(&SHA256, text.as_bytes());
        // Half of it tells versions apart as well.
        let hash: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Asset { content_type, text, etag: format!("\"{hash}\"") }
    }

    fn answer(&self, asked: &HeaderMap) -> Response {
        let Ok(etag) = HeaderValue::from_str(&self.etag) else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let headers: [(HeaderName, HeaderValue); 4] = [
            (header::ETAG, etag),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ];
        if self.is_known(asked) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        (headers, [(header::CONTENT_TYPE, self.content_type)], self.text).into_response()
    }

    /// RFC 9110 section 13.1.2: any of the validators listed, compared weakly.
    fn is_known(&self, asked: &HeaderMap) -> bool {
        let listed = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        listed.flat_map(|value| value.split(',')).map(str::trim).any(|one| {
            let one = one.strip_prefix("W/").unwrap_or(one);
            one == "*" || one == self.etag
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(if_none_match: &[&str]) -> Response {
        let mut headers = HeaderMap::new();
        for value in if_none_match {
            headers.append(header::IF_NONE_MATCH, HeaderValue::from_str(value).unwrap());
        }
        CLIENT.answer(&headers)
    }

    #[test]
    fn a_file_comes_with_its_type_and_a_strong_validator() {
        let response = answer(&[]);
        assert_eq!(response.status(), StatusCode::OK);
        let header = |name: &str| response.headers().get(name).unwrap().to_str().unwrap();
        assert_eq!(header("content-type"), "text/javascript; charset=utf-8");
        assert_eq!(header("cache-control"), "no-cache");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("access-control-allow-origin"), "*");
        assert!(header("etag").len() == 34 && header("etag").starts_with('"'), "{}", header("etag"));
    }

    #[test]
    fn a_file_that_is_known_is_not_sent_again() {
        let etag = CLIENT.etag.as_str();
        let weak = format!("W/{etag}");
        let list = format!("\"other\", {etag}");
        for known in [&[etag][..], &[&weak], &[&list], &["\"other\"", etag], &["*"]] {
            let response = answer(known);
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{known:?}");
            assert_eq!(response.headers()[header::ETAG], etag);
            assert!(!response.headers().contains_key(header::CONTENT_TYPE));
        }
        for other in ["\"other\"", etag.trim_matches('"'), ""] {
            assert_eq!(answer(&[other]).status(), StatusCode::OK, "{other}");
        }
        assert_ne!(Asset::new("", "a").etag, Asset::new("", "b").etag);
    }
}
