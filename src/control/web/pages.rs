//! The pages: mission control for operators, and the demo's.
//!
//! A page may load what the hub itself serves and nothing else, runs no script that stands in its text, and is shown in no
//! other page (Content Security Policy, level 3). It needs no token: what it shows, it asks for with its user's.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use hyper::header::{self, HeaderMap, HeaderValue};

use super::Asset;
use crate::control::answer::ApiError;
use crate::control::api::Api;
use crate::control::backend::Backend;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The files of a page, by name.
type Files = BTreeMap<&'static str, Asset>;

macro_rules! files {
    ($folder:literal: $($name:literal)*) => {
        LazyLock::new(|| {
            let files = [$(($name, include_str!(concat!($folder, "/", $name)))),*];
            files.into_iter().map(|(name, text)| (name, Asset::new(content_type(name), text))).collect()
        })
    };
}

static DASHBOARD: LazyLock<Files> = files!("dashboard":
    "index.html" "style.css" "address.js" "agents.js" "alerts.js" "app.js" "beside.js" "chart.js" "connection.js" "connections.js"
    "dialog.js" "dom.js" "facts.js" "feed.js" "figures.js" "format.js" "listing.js" "locks.js" "overview.js" "room.js"
    "rooms.js" "series.js" "session.js" "signin.js" "system.js" "table.js" "tail.js" "theme.js" "watch.js"
);

static DEMO: LazyLock<Files> = files!("demo": "index.html" "demo.css" "demo.js" "scenes.js" "source.js");

/// What the demo's clients do, for those who look at its page: the very files that they are compiled from.
static SOURCES: LazyLock<Files> = LazyLock::new(|| {
    let files = [
        ("agent.rs", include_str!("../../demo/agent.rs")),
        ("editor.rs", include_str!("../../demo/editor.rs")),
        ("pricing.rs", include_str!("../../demo/pricing.rs")),
        ("wallboard.rs", include_str!("../../demo/wallboard.rs")),
        ("world.rs", include_str!("../../demo/world.rs")),
    ];
    files.into_iter().map(|(name, text)| (name, Asset::new(content_type(name), text))).collect()
});

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "html")) => "text/html; charset=utf-8",
        Some((_, "css")) => "text/css; charset=utf-8",
        Some((_, "js")) => "text/javascript; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    }
}

/// Mission control: what the hub does, for operators.
#[utoipa::path(
    operation_id = "dashboard",
    get,
    path = "/dashboard",
    tag = "web",
    security(()),
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html"),
        (status = 304, description = "It is the one that `If-None-Match` names"),
    ),
)]
pub(crate) async fn dashboard(headers: HeaderMap) -> Response {
    page(&DASHBOARD, &headers)
}

/// A module or the style sheet of the dashboard.
#[utoipa::path(
    operation_id = "dashboard_file",
    get,
    path = "/dashboard/{file}",
    tag = "web",
    security(()),
    params(("file" = String, Path, description = "The file's name")),
    responses(
        (status = 200, description = "The file", body = String, content_type = "text/javascript"),
        (status = 304, description = "It is the one that `If-None-Match` names"),
        (status = 404, description = "There is no such file"),
    ),
)]
pub(crate) async fn dashboard_file(Path(file): Path<String>, headers: HeaderMap) -> Response {
    answer(&DASHBOARD, &file, &headers)
}

/// The demo, beside `ringhub serve --demo`.
#[utoipa::path(
    operation_id = "demo",
    get,
    path = "/demo",
    tag = "web",
    security(()),
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html"),
        (status = 304, description = "It is the one that `If-None-Match` names"),
        (status = 404, description = "There is no demo"),
    ),
)]
pub(crate) async fn demo<B: Backend>(State(api): State<Arc<Api<B>>>, headers: HeaderMap) -> Response {
    if api.demo { page(&DEMO, &headers) } else { ApiError::not_found().into_response() }
}

/// A module or the style sheet of the demo's page, or what one of its clients is made of.
#[utoipa::path(
    operation_id = "demo_file",
    get,
    path = "/demo/{file}",
    tag = "web",
    security(()),
    params(("file" = String, Path, description = "The file's name")),
    responses(
        (status = 200, description = "The file", body = String, content_type = "text/javascript"),
        (status = 304, description = "It is the one that `If-None-Match` names"),
        (status = 404, description = "There is no such file, or no demo"),
    ),
)]
pub(crate) async fn demo_file<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Response {
    let files = if file.ends_with(".rs") { &SOURCES } else { &DEMO };
    if api.demo { answer(files, &file, &headers) } else { ApiError::not_found().into_response() }
}

/// A page itself.
fn page(files: &Files, asked: &HeaderMap) -> Response {
    let mut response = answer(files, "index.html", asked);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // Nobody else's page has use for it.
    headers.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
    response
}

fn answer(files: &Files, name: &str, asked: &HeaderMap) -> Response {
    match files.get(name) {
        Some(file) => file.answer(asked),
        None => ApiError::not_found().into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path as FilePath;

    use hyper::StatusCode;

    use super::*;

    #[test]
    fn every_file_of_a_page_s_folder_is_served() {
        let web = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("src/control/web");
        for (folder, files) in [("dashboard", &DASHBOARD), ("demo", &DEMO)] {
            let entries = std::fs::read_dir(web.join(folder)).unwrap();
            let there: BTreeSet<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            let served: BTreeSet<String> = files.keys().map(|name| (*name).to_owned()).collect();
            assert_eq!(there, served, "{folder}");
        }
    }

    #[test]
    fn no_page_runs_what_stands_in_its_text_or_makes_elements_of_text() {
        for files in [&DASHBOARD, &DEMO] {
            for (name, file) in files.iter() {
                for word in [
                    "innerHTML",
                    "outerHTML",
                    "insertAdjacentHTML",
                    "document.write",
                    "eval(",
                    "new Function",
                    "javascript:",
                ] {
                    assert!(!file.text.contains(word), "{name} has {word}");
                }
                let is_inline = |tag: &str| file.text.contains(&format!("<{tag}>"));
                assert!(!name.ends_with(".html") || !(is_inline("script") || is_inline("style")), "{name}");
                assert!(!file.text.contains("http://") || name.ends_with(".html"), "{name} names another place");
            }
        }
    }

    #[test]
    fn a_page_is_sent_with_its_policy_also_where_it_is_known() {
        let mut known = HeaderMap::new();
        let first = page(&DASHBOARD, &known);
        known.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        let again = page(&DASHBOARD, &known);
        assert_eq!((first.status(), again.status()), (StatusCode::OK, StatusCode::NOT_MODIFIED));
        for response in [first, again] {
            assert_eq!(response.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
            assert_eq!(response.headers()[header::REFERRER_POLICY], "no-referrer");
            assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        }
        assert_eq!(answer(&DASHBOARD, "../mod.rs", &known).status(), StatusCode::NOT_FOUND);
    }
}
