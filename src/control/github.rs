//! `POST /webhooks/github`: GitHub's events of pull requests and issues become `pr.*` and `issue.*` in the room
//! `project:{owner}/{repo}`. <https://docs.github.com/en/webhooks/webhook-events-and-payloads>

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::hmac;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json as object};
use utoipa::ToSchema;

use super::answer::{ApiError, json};
use super::api::Api;
use super::backend::{Backend, PublishRequest};
use super::body::{parse, read, require_json};
use super::openapi::Refusals;
use crate::config::Secret;

/// Deliveries that are remembered, so that none is taken twice. GitHub's hooks of one organisation make a few per second
/// at most, and whoever replays one has to have caught it first.
const DELIVERIES_MAX: usize = 10_000;

/// What checks that a delivery is GitHub's, and new.
pub(crate) struct Hook {
    /// Several while a secret is being changed.
    keys: Vec<hmac::Key>,
    deliveries: Mutex<VecDeque<Box<str>>>,
}

impl Hook {
    /// None where there is no secret, and so no hook.
    pub(crate) fn new(secrets: &[Secret]) -> Option<Hook> {
        let keys = secrets.iter().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.secret.as_bytes()));
        let keys: Vec<hmac::Key> = keys.collect();
        (!keys.is_empty()).then(|| Hook { keys, deliveries: Mutex::default() })
    }

    /// Whether `X-Hub-Signature-256` is that of the body; the comparison takes the same time whatever differs.
    fn is_signed(&self, signature: Option<&str>, body: &[u8]) -> bool {
        let tag = signature.and_then(|text| text.strip_prefix("sha256=")).and_then(from_hex);
        tag.is_some_and(|tag| self.keys.iter().any(|key| hmac::verify(key, body, &tag).is_ok()))
    }

    fn has_seen(&self, delivery: &str) -> bool {
        let deliveries = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        deliveries.iter().any(|known| **known == *delivery)
    }

    fn remember(&self, delivery: &str) {
        let mut deliveries = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        if deliveries.len() >= DELIVERIES_MAX {
            deliveries.pop_front();
        }
        deliveries.push_back(delivery.into());
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 {
        return None;
    }
    text.as_bytes()
        .chunks(2)
        .map(|pair| {
            let digits = std::str::from_utf8(pair).ok()?;
            pair.iter().all(u8::is_ascii_hexdigit).then(|| u8::from_str_radix(digits, 16).ok())?
        })
        .collect()
}

/// What became of a delivery.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Delivered {
    /// It became an event.
    Published {
        /// The room's name.
        room: String,
        /// The event's type.
        #[serde(rename = "type")]
        kind: &'static str,
        /// The event's id.
        id: String,
        /// Its number in the room.
        seq: u64,
    },
    /// It says that the hook works.
    Pong {
        /// Always true.
        pong: bool,
    },
    /// It is of a kind that becomes no event.
    Ignored {
        /// Always true.
        ignored: bool,
    },
}

/// Takes a delivery of a GitHub webhook with content type `application/json`.
#[utoipa::path(
    operation_id = "github",
    post,
    path = "/webhooks/github",
    tag = "webhooks",
    security(()),
    params(
        ("X-Hub-Signature-256" = Option<String>, Header, description = "`sha256=` and the HMAC of the body in hexadecimal"),
        ("X-GitHub-Event" = Option<String>, Header, description = "The kind of event"),
        ("X-GitHub-Delivery" = Option<String>, Header, description = "The delivery's id, taken once"),
    ),
    request_body = Object,
    responses(
        (status = 200, body = Delivered),
        (status = 202, description = "An event that is not passed on", body = Delivered),
        (status = 409, description = "The delivery was taken before", body = super::answer::Body),
        Refusals,
    ),
)]
pub(crate) async fn github<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let hook = api.github.as_ref().ok_or_else(ApiError::not_found)?;
    require_json(&headers)?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let body = read(body, api.body_bytes_max).await?;
    if !hook.is_signed(header("x-hub-signature-256"), &body) {
        return Err(ApiError::unauthorized("the signature is missing or is not of this body and secret"));
    }
    let delivery = header("x-github-delivery").filter(|id| !id.is_empty() && id.len() <= 100);
    let delivery = delivery.ok_or_else(|| ApiError::bad_request("X-GitHub-Delivery is missing or too long"))?;
    if hook.has_seen(delivery) {
        return Err(ApiError::conflict("this delivery was taken before"));
    }
    let event = header("x-github-event").unwrap_or_default();
    if event == "ping" {
        hook.remember(delivery);
        return Ok(json(StatusCode::OK, &Delivered::Pong { pong: true }));
    }
    let payload: Payload = match event {
        "pull_request" | "issues" => parse(&body)?,
        _ => return Ok(json(StatusCode::ACCEPTED, &Delivered::Ignored { ignored: true })),
    };
    let Some((kind, data)) = payload.event(event) else {
        return Err(ApiError::bad_request(format!("this is no {event} event: {event} is missing in it")));
    };
    let room = format!("project:{}", payload.repository.full_name);
    let data = RawValue::from_string(data.to_string()).map_err(|error| ApiError::bad_json(error.to_string()))?;
    // The key, too, so that two requests at a time with the same delivery make one event.
    let request = PublishRequest { room, kind: kind.to_owned(), data, key: Some(format!("github:{delivery}")) };
    let published = api.publish(&api.backend.itself(), request).await?;
    // Only now: what failed may be delivered again.
    hook.remember(delivery);
    let (room, id, seq) = (published.room, published.id, published.seq);
    Ok(json(StatusCode::OK, &Delivered::Published { room, kind, id, seq }))
}

/// What is read of a delivery.
#[derive(Debug, Deserialize)]
struct Payload {
    action: String,
    repository: Repository,
    sender: Option<User>,
    pull_request: Option<Subject>,
    issue: Option<Subject>,
}

#[derive(Debug, Deserialize)]
struct Repository {
    full_name: String,
}

#[derive(Debug, Deserialize)]
struct User {
    login: String,
}

#[derive(Debug, Deserialize)]
struct Label {
    name: String,
}

/// A pull request or an issue.
#[derive(Debug, Deserialize)]
struct Subject {
    number: u64,
    title: String,
    state: String,
    html_url: String,
    user: Option<User>,
    #[serde(default)]
    labels: Vec<Label>,
    #[serde(default)]
    draft: Option<bool>,
    #[serde(default)]
    merged: Option<bool>,
    head: Option<Branch>,
    base: Option<Branch>,
    updated_at: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Branch {
    #[serde(rename = "ref")]
    name: String,
    sha: String,
}

impl Payload {
    /// The type and data of the event that it becomes.
    fn event(&self, event: &str) -> Option<(&'static str, Value)> {
        let (subject, [created, updated, closed]) = match event {
            "pull_request" => (self.pull_request.as_ref()?, ["pr.created", "pr.updated", "pr.closed"]),
            _ => (self.issue.as_ref()?, ["issue.created", "issue.updated", "issue.closed"]),
        };
        let kind = match self.action.as_str() {
            "opened" => created,
            "closed" | "deleted" | "transferred" => closed,
            _ => updated,
        };
        let login = |user: &Option<User>| user.as_ref().map(|user| user.login.clone());
        let labels: Vec<&str> = subject.labels.iter().map(|label| label.name.as_str()).collect();
        let mut data = object!({
            "action": self.action,
            "repository": self.repository.full_name,
            "number": subject.number,
            "title": subject.title,
            "state": subject.state,
            "url": subject.html_url,
            "author": login(&subject.user),
            "labels": labels,
            "sender": login(&self.sender),
            "updated_at": subject.updated_at,
        });
        if event == "pull_request"
            && let Value::Object(data) = &mut data
        {
            let branch = |branch: &Option<Branch>| {
                branch.as_ref().map(|branch| object!({ "ref": branch.name, "sha": branch.sha }))
            };
            data.insert("draft".to_owned(), object!(subject.draft.unwrap_or(false)));
            data.insert("merged".to_owned(), object!(subject.merged.unwrap_or(false)));
            data.insert("head".to_owned(), object!(branch(&subject.head)));
            data.insert("base".to_owned(), object!(branch(&subject.base)));
        }
        Some((kind, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(secret: &str) -> Hook {
        Hook::new(&[Secret { kid: None, secret: secret.to_owned() }]).expect("a secret")
    }

    #[test]
    fn a_signature_is_checked_against_the_body() {
        // The example of GitHub's documentation.
        let hook = hook("It's a Secret to Everybody");
        let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(hook.is_signed(Some(signature), b"Hello, World!"));
        assert!(hook.is_signed(Some(&signature.to_uppercase().replace("SHA256", "sha256")), b"Hello, World!"));
        assert!(!hook.is_signed(Some(signature), b"Hello, World"));
        for wrong in ["", "sha256=", "sha256=75", &signature.replace('7', "8"), &signature.replace("sha256", "sha1")] {
            assert!(!hook.is_signed(Some(wrong), b"Hello, World!"), "{wrong}");
        }
        assert!(!hook.is_signed(Some(&format!("sha256={}", "é".repeat(32))), b"Hello, World!"));
        assert!(!hook.is_signed(None, b"Hello, World!"));
        assert!(Hook::new(&[]).is_none());
    }

    #[test]
    fn deliveries_are_remembered_up_to_a_bound() {
        let hook = hook("s");
        for number in 0..=DELIVERIES_MAX {
            hook.remember(&number.to_string());
        }
        assert!(!hook.has_seen("0") && hook.has_seen("1") && hook.has_seen(&DELIVERIES_MAX.to_string()));
    }

    #[test]
    fn actions_become_events() {
        let payload = |action: &str| Payload {
            action: action.to_owned(),
            repository: Repository { full_name: "octo/hello".to_owned() },
            sender: None,
            pull_request: None,
            issue: Some(Subject {
                number: 1,
                title: "t".to_owned(),
                state: "open".to_owned(),
                html_url: "https://github.com/octo/hello/issues/1".to_owned(),
                user: Some(User { login: "octocat".to_owned() }),
                labels: vec![Label { name: "bug".to_owned() }],
                draft: None,
                merged: None,
                head: None,
                base: None,
                updated_at: None,
            }),
        };
        for (action, kind) in [("opened", "issue.created"), ("edited", "issue.updated"), ("closed", "issue.closed")] {
            let (found, data) = payload(action).event("issues").expect("an event");
            assert_eq!((found, &data["author"], &data["labels"][0]), (kind, &object!("octocat"), &object!("bug")));
            assert!(data.get("merged").is_none());
        }
        assert!(payload("opened").event("pull_request").is_none());
    }
}
