//! The native protocol as a client sees it: messages of the hub read leniently, commands written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::failure::{Failure, peer_text};

/// A message of the hub. Unknown fields are ignored; missing ones are empty.
#[derive(Debug, Deserialize)]
pub(crate) struct Envelope<'a> {
    /// What it is: an answer, an event's type, `error`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) id: Option<String>,
    /// The `id` of the command that it answers.
    #[serde(rename = "ref", default, borrow)]
    pub(crate) reference: Option<&'a RawValue>,
    #[serde(default)]
    pub(crate) room: Option<String>,
    #[serde(default)]
    pub(crate) seq: Option<u64>,
    #[serde(default)]
    pub(crate) epoch: Option<String>,
    #[serde(default)]
    pub(crate) timestamp: Option<String>,
    #[serde(default, borrow)]
    pub(crate) data: Option<&'a RawValue>,
}

/// Fields of an answer's or a notice's `data`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Detail {
    pub(crate) room: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) seq: Option<u64>,
    pub(crate) epoch: Option<String>,
    pub(crate) duplicate: bool,
    pub(crate) recovered: Option<bool>,
    pub(crate) missed: Option<u64>,
    pub(crate) from_seq: Option<u64>,
    pub(crate) to_seq: Option<u64>,
    pub(crate) reason: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) details: Option<Box<Detail>>,
    pub(crate) retry_after_ms: Option<u64>,
    pub(crate) reconnect_after_ms: Option<u64>,
    pub(crate) heartbeat: Option<Heartbeat>,
    pub(crate) session_id: Option<String>,
    pub(crate) resume: Option<Proof>,
    pub(crate) replayed: Option<u64>,
    /// What became of each room.
    pub(crate) results: Vec<Detail>,
    /// Why one of these failed.
    pub(crate) error: Option<Box<Detail>>,
}

/// What a session can be taken up with.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Proof {
    pub(crate) token: String,
}

/// How often the hub pings, from its greeting.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Heartbeat {
    pub(crate) interval_s: u64,
    pub(crate) timeout_s: u64,
}

impl<'a> Envelope<'a> {
    /// Reads a text frame; `None` if it isn't a message of the protocol.
    pub(crate) fn parse(text: &'a str) -> Option<Envelope<'a>> {
        serde_json::from_str(text).ok()
    }

    /// The fields of its `data`; all empty if they are not as expected.
    pub(crate) fn detail(&self) -> Detail {
        self.data.and_then(|data| serde_json::from_str(data.get()).ok()).unwrap_or_default()
    }

    /// Whether it answers the command with this `id`.
    pub(crate) fn answers(&self, id: &str) -> bool {
        self.reference.and_then(|r| serde_json::from_str::<String>(r.get()).ok()).is_some_and(|r| r == id)
    }
}

impl Detail {
    /// The failure that an `error` message tells of.
    pub(crate) fn failure(&self) -> Failure {
        Failure::Command {
            code: peer_text(self.code.as_deref().unwrap_or("unknown")),
            message: peer_text(self.message.as_deref().unwrap_or_default()),
        }
    }

    /// How long an error asks to wait before the next try.
    pub(crate) fn retry_after_ms(&self) -> Option<u64> {
        self.retry_after_ms.or_else(|| self.details.as_ref().and_then(|d| d.retry_after_ms))
    }
}

/// Where a subscription begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Since {
    /// After this number.
    Seq {
        seq: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        epoch: Option<String>,
    },
    /// The last so many events.
    Last { last: u64 },
    /// The events of the last so many seconds.
    Seconds { seconds: u64 },
}

#[derive(Serialize)]
struct Command<'a, T> {
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    data: T,
}

#[derive(Serialize)]
struct Subscribe<'a> {
    room: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<&'a Since>,
}

#[derive(Serialize)]
struct Resume<'a> {
    session_id: &'a str,
    token: &'a str,
    cursors: BTreeMap<&'a str, &'a Since>,
}

/// A `publish` command's fields.
#[derive(Serialize)]
pub(crate) struct Publish<'a> {
    pub(crate) room: &'a str,
    pub(crate) r#type: &'a str,
    pub(crate) data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<&'a str>,
}

/// A `subscribe` command for one room.
pub(crate) fn subscribe(id: &str, room: &str, since: Option<&Since>) -> String {
    write(&Command { r#type: "subscribe", id: Some(id), data: Subscribe { room, since } })
}

/// A `resume` command with a cursor in one room.
pub(crate) fn resume(id: &str, session_id: &str, token: &str, room: &str, since: &Since) -> String {
    let cursors = BTreeMap::from([(room, since)]);
    write(&Command { r#type: "resume", id: Some(id), data: Resume { session_id, token, cursors } })
}

/// A `publish` command; without an `id` only an error is answered.
pub(crate) fn publish(id: Option<&str>, publish: &Publish<'_>) -> String {
    write(&Command { r#type: "publish", id, data: publish })
}

/// A `ping` command that carries a body.
pub(crate) fn ping(body: &str) -> String {
    #[derive(Serialize)]
    struct Body<'a> {
        body: &'a str,
    }
    write(&Command { r#type: "ping", id: Some("p"), data: Body { body } })
}

fn write<T: Serialize>(command: &Command<'_, T>) -> String {
    // Strings, numbers and checked JSON only: there is nothing in a command that serialising could fail on.
    serde_json::to_string(command).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_as_the_protocol_has_them() {
        let since = Since::Seq { seq: 7, epoch: Some("e".into()) };
        assert_eq!(
            subscribe("s", "project:a", Some(&since)),
            r#"{"type":"subscribe","id":"s","data":{"room":"project:a","since":{"seq":7,"epoch":"e"}}}"#
        );
        assert_eq!(
            subscribe("s", "global", Some(&Since::Last { last: 3 })),
            r#"{"type":"subscribe","id":"s","data":{"room":"global","since":{"last":3}}}"#
        );
        let data: Box<RawValue> = serde_json::from_str("[1.00]").unwrap();
        let command = publish(Some("1"), &Publish { room: "r", r#type: "t", data: &data, key: None });
        assert_eq!(command, r#"{"type":"publish","id":"1","data":{"room":"r","type":"t","data":[1.00]}}"#);
    }

    #[test]
    fn answers_and_errors_are_read() {
        let text = r#"{"type":"error","id":"x","ref":"7","data":{"code":"rate_limited","message":"slow","details":{"retry_after_ms":20}}}"#;
        let envelope = Envelope::parse(text).unwrap();
        assert!(envelope.answers("7") && !envelope.answers("8"));
        assert_eq!(envelope.detail().retry_after_ms(), Some(20));
        assert_eq!(envelope.detail().failure().label(), "error rate_limited");
        let event = Envelope::parse(r#"{"type":"t","room":"project:a","seq":3,"new":1,"data":"text"}"#).unwrap();
        assert_eq!((event.room.as_deref(), event.seq), (Some("project:a"), Some(3)));
        assert_eq!(event.data.map(RawValue::get), Some("\"text\""));
        assert!(Envelope::parse("[]").is_none());
    }
}
