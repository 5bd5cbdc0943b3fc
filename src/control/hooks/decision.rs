//! The question as the backend gets it, and its answer.
//!
//! ```text
//!     {"type":"connect","client_id":…,"session_id":…,"user_id":…,"roles":[…],"permissions":[…],
//!      "address":…,"path":"/ws","headers":{…},"node":…,"timestamp":…}
//!
//!     200 {"allow":true,"rooms":["project:42"],"permissions":["project:42:write"],"metadata":{…}}    204: allow
//!     200 {"allow":false,"status":403,"message":"…","retry_after_s":5}                               401, 403: deny
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::desk::{Grant, Question, Verdict};
use crate::auth::Added;
use crate::config::Config;
use crate::control::client::Answer;
use crate::control::moment::moment_text;
use crate::hub::name::split;
use crate::wire::refusal::Refusal;

/// What is read of an answer.
pub(super) const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Rooms that one answer may add; each is joined before the client is let in.
const ROOMS_MAX: usize = 100;
/// Permissions that one answer may add.
const PERMISSIONS_MAX: usize = 1000;
/// What a client is told at most.
const MESSAGE_CHARS_MAX: usize = 200;
/// When a refused client may come back, where the backend does not say.
const RETRY_AFTER_S: u32 = 5;

#[derive(Serialize)]
struct Asked<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: String,
    node: &'a str,
    client_id: &'a str,
    session_id: &'a str,
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    roles: &'a [String],
    permissions: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    address: Option<std::net::IpAddr>,
    path: &'a str,
    headers: BTreeMap<&'a str, &'a str>,
}

/// The question's body.
pub(super) fn body(question: &Question, node: &str, unix_ms: u64) -> Vec<u8> {
    let identity = &question.identity;
    let asked = Asked {
        kind: "connect",
        timestamp: moment_text(unix_ms),
        node,
        client_id: &question.client_id,
        session_id: &question.session_id,
        user_id: &identity.user_id,
        name: identity.name.as_deref(),
        roles: &identity.roles,
        permissions: identity.permissions.list(),
        expires_at: identity.expires_at,
        address: question.request.address,
        path: &question.request.path,
        headers: question.request.headers.iter().map(|(name, value)| (&**name, &**value)).collect(),
    };
    // Strings, numbers and maps of strings: nothing that JSON does not have.
    serde_json::to_vec(&asked).unwrap_or_default()
}

#[derive(Deserialize)]
struct Said {
    allow: bool,
    #[serde(default)]
    rooms: Vec<Box<str>>,
    #[serde(default)]
    permissions: Vec<Box<str>>,
    #[serde(default)]
    metadata: Map<String, Value>,
    status: Option<u16>,
    message: Option<String>,
    retry_after_s: Option<u32>,
}

/// What an answer means; an error where it means nothing, in a word.
pub(super) fn read(answer: &Answer, config: &Config) -> Result<Verdict, &'static str> {
    match answer.status {
        204 => Ok(Verdict::Allow(Box::default())),
        200..=299 => said(answer.body.as_ref().map_err(|error| error.word())?, config),
        // Why is for the client only where it is said in so many words.
        status @ (401 | 403) => Ok(Verdict::Deny(refusal(status, None, None))),
        429 => Err("rate_limited"),
        500..=599 => Err("status_5xx"),
        _ => Err("status"),
    }
}

fn said(body: &[u8], config: &Config) -> Result<Verdict, &'static str> {
    let said: Said = serde_json::from_slice(body).map_err(|_| "garbage")?;
    if !said.allow {
        return Ok(Verdict::Deny(refusal(said.status.unwrap_or(403), said.message, said.retry_after_s)));
    }
    let is_room =
        |room: &str| split(room, config.limits.room_name_bytes_max).is_ok_and(|(kind, _)| config.kind(kind).is_some());
    let metadata_bytes = serde_json::to_vec(&said.metadata).map_or(usize::MAX, |text| text.len());
    let fits = said.rooms.len() <= ROOMS_MAX.min(config.limits.rooms_max)
        && said.rooms.iter().all(|room| is_room(room))
        && said.permissions.len() <= PERMISSIONS_MAX
        && said.permissions.iter().all(|one| !one.is_empty() && !one.chars().any(char::is_control))
        && metadata_bytes <= config.limits.metadata_bytes_max;
    // A client without what it was to have would fail later, and nobody would know why.
    if !fits {
        return Err("garbage");
    }
    let mut rooms: Vec<Box<str>> = Vec::new();
    for room in said.rooms {
        if !rooms.contains(&room) {
            rooms.push(room);
        }
    }
    let added = Added { permissions: said.permissions, rooms };
    Ok(Verdict::Allow(Box::new(Grant { added, metadata: said.metadata })))
}

fn refusal(status: u16, message: Option<String>, retry_after_s: Option<u32>) -> Refusal {
    let message = message.unwrap_or_else(|| "the backend does not let this client connect".to_owned());
    let message: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
    let retry_after_s = retry_after_s.unwrap_or(RETRY_AFTER_S);
    match status {
        401 => Refusal::unauthorized(message),
        404 => Refusal { message: message.into(), ..Refusal::not_found() },
        409 => Refusal { message: message.into(), ..Refusal::client_id_taken() },
        429 => Refusal::rate_limited(message, retry_after_s),
        503 => Refusal::unavailable(message, retry_after_s),
        _ => Refusal::forbidden(message),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::auth::{Identity, Permissions};
    use crate::control::hooks::desk::RequestTold;
    use crate::hub::name::ShardId;
    use crate::ring::ConnKey;

    fn verdict(status: u16, body: &str) -> Result<Verdict, &'static str> {
        read(&Answer { status, retry_after: None, body: Ok(body.as_bytes().to_vec()) }, &Config::default())
    }

    fn grant(body: Value) -> Grant {
        match verdict(200, &body.to_string()) {
            Ok(Verdict::Allow(grant)) => *grant,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_lets_in_with_what_it_adds() {
        assert!(matches!(verdict(204, ""), Ok(Verdict::Allow(grant)) if *grant == Grant::default()));
        assert_eq!(grant(json!({"allow": true, "more": 1})), Grant::default(), "what is not known yet does no harm");
        let granted = grant(
            json!({"allow": true, "rooms": ["project:1", "global", "project:1"], "permissions": ["a:b"], "metadata": {"x": 1}}),
        );
        assert_eq!(granted.added.rooms, [Box::<str>::from("project:1"), "global".into()]);
        assert_eq!((&*granted.added.permissions[0], &granted.metadata["x"]), ("a:b", &json!(1)));
    }

    #[test]
    fn an_answer_that_denies_says_how() {
        let denied = |status, body: &str| match verdict(status, body) {
            Ok(Verdict::Deny(refusal)) => (refusal.status, refusal.message.into_owned(), refusal.retry_after_s),
            other => panic!("{other:?}"),
        };
        assert_eq!(denied(200, r#"{"allow":false}"#).0, 403);
        assert_eq!(
            denied(200, r#"{"allow":false,"status":429,"message":"slow","retry_after_s":9}"#),
            (429, "slow".into(), Some(9))
        );
        assert_eq!(denied(200, r#"{"allow":false,"status":200}"#).0, 403, "no such refusal");
        assert_eq!(denied(401, "whatever").0, 401);
        assert_eq!(denied(403, "<html>").0, 403);
        let long = format!(r#"{{"allow":false,"message":"{}"}}"#, "é".repeat(1000));
        assert_eq!(denied(200, &long).1.chars().count(), MESSAGE_CHARS_MAX);
    }

    #[test]
    fn what_means_nothing_is_a_failure() {
        for (status, body) in [
            (200, ""),
            (200, "null"),
            (200, "{}"),
            (200, r#"{"allow":"yes"}"#),
            (200, r#"{"allow":true,"rooms":["nothing"]}"#),
            (200, r#"{"allow":true,"rooms":["unheard:of"]}"#),
            (200, r#"{"allow":true,"permissions":[""]}"#),
            (200, r#"{"allow":true,"metadata":[]}"#),
            (301, ""),
            (404, r#"{"allow":true}"#),
            (429, ""),
            (500, r#"{"allow":true}"#),
        ] {
            assert!(verdict(status, body).is_err(), "{status} {body}");
        }
        let large = json!({"allow": true, "metadata": {"x": "y".repeat(5000)}}).to_string();
        assert!(verdict(200, &large).is_err());
        let many: Vec<String> = (0..101).map(|number| format!("project:{number}")).collect();
        assert!(verdict(200, &json!({"allow": true, "rooms": many}).to_string()).is_err());
    }

    #[test]
    fn the_backend_is_told_the_claims_and_no_token() {
        let mut identity = Identity::anonymous("alice".to_owned());
        identity.permissions = Permissions::new(["websocket:connect", "project:*:read"]);
        let question = Question {
            shard: ShardId(0),
            conn: ConnKey { slot: 0, generation: 0 },
            identity: Arc::new(identity),
            client_id: "c1".into(),
            session_id: "s1".into(),
            request: Box::new(RequestTold {
                path: "/ws".into(),
                address: Some([127, 0, 0, 1].into()),
                headers: vec![("user-agent".into(), "x".into())],
            }),
            trace: None,
            client: std::sync::Weak::new(),
        };
        let told: Value = serde_json::from_slice(&body(&question, "node-1", 0)).expect("JSON");
        assert_eq!(
            told,
            json!({"type": "connect", "timestamp": "1970-01-01T00:00:00.000Z", "node": "node-1", "client_id": "c1",
                "session_id": "s1", "user_id": "alice", "roles": [], "permissions": ["project:*:read", "websocket:connect"],
                "address": "127.0.0.1", "path": "/ws", "headers": {"user-agent": "x"}}),
        );
    }
}
