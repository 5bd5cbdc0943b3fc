//! Events as the backend gets them: a JSON array, whose bytes stay the same however often it is sent.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::value::RawValue;

use super::debounce::Change;
use super::feed::MessageReport;
use crate::control::moment::moment_text;
use crate::control::store::{Closed, ConnectionReport};

/// A batch with this much in it takes no more events.
const BATCH_BYTES: usize = 1 << 20;

/// One event, on its way into a batch.
#[derive(Debug)]
pub(super) struct Event {
    json: Vec<u8>,
    /// When it came here, in milliseconds.
    pub came_ms: u64,
}

/// What is posted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// Its id, the same in every attempt.
    pub id: String,
    /// The array.
    pub body: Vec<u8>,
    /// How many events are in it.
    pub events: u64,
}

/// Gives events and batches their ids: `{run}-{number}`, so that no two of any hub's lives are the same.
#[derive(Debug)]
pub(super) struct Numbers {
    run: String,
    events: u64,
    batches: u64,
}

impl Numbers {
    /// `run` is drawn at start.
    pub(super) fn new(run: u64) -> Numbers {
        Numbers { run: format!("{run:016x}"), events: 0, batches: 0 }
    }

    fn event(&mut self) -> String {
        self.events += 1;
        format!("evt_{}-{}", self.run, self.events)
    }

    /// The id of the next batch.
    pub(super) fn batch(&mut self) -> String {
        self.batches += 1;
        format!("msg_{}-{}", self.run, self.batches)
    }
}

#[derive(Serialize)]
struct Head<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: String,
    node: &'a str,
}

#[derive(Serialize)]
struct Who<'a> {
    client_id: &'a str,
    session_id: &'a str,
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    roles: &'a [String],
}

#[derive(Serialize)]
struct Ending<'a> {
    connected_at: String,
    code: Option<u16>,
    reason: &'a str,
    closed_by: &'static str,
    messages_received: u32,
    bytes_received: u64,
    bytes_sent: u64,
}

#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    #[serde(flatten)]
    who: Option<Who<'a>>,
    #[serde(flatten)]
    ending: Option<Ending<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<&'a str>,
    /// Spliced in as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

impl Told<'_> {
    fn event(&self, came_ms: u64) -> Option<Event> {
        // Only what is no JSON could fail, and all of it is.
        serde_json::to_vec(self).ok().map(|json| Event { json, came_ms })
    }
}

/// A client that was let in, or is gone.
pub(super) fn connection(report: &ConnectionReport, node: &str, numbers: &mut Numbers, now_ms: u64) -> Option<Event> {
    let identity = &report.identity;
    let who = Who {
        client_id: &report.client_id,
        session_id: &report.session_id,
        user_id: &identity.user_id,
        name: identity.name.as_deref(),
        roles: &identity.roles,
    };
    let ending = report.closed.as_ref().map(|closed| ending(report, closed));
    let (kind, at_ms) = report.closed.as_ref().map_or(("connect", report.opened_ms), |one| ("disconnect", one.at_ms));
    let head = Head { id: numbers.event(), kind, timestamp: moment_text(at_ms), node };
    Told { head, who: Some(who), ending, room: None, data: None }.event(now_ms)
}

fn ending<'a>(report: &ConnectionReport, closed: &'a Closed) -> Ending<'a> {
    Ending {
        connected_at: moment_text(report.opened_ms),
        code: closed.code,
        reason: &closed.reason,
        closed_by: closed.by.as_str(),
        messages_received: closed.messages_received,
        bytes_received: closed.bytes_received,
        bytes_sent: closed.bytes_sent,
    }
}

/// A message of a client.
pub(super) fn message(report: &MessageReport, node: &str, numbers: &mut Numbers, now_ms: u64) -> Option<Event> {
    let identity = &report.identity;
    let who = Who {
        client_id: &report.client_id,
        session_id: &report.session_id,
        user_id: &identity.user_id,
        name: identity.name.as_deref(),
        roles: &identity.roles,
    };
    let head = Head { id: numbers.event(), kind: "message", timestamp: moment_text(report.at_ms), node };
    let data = serde_json::from_slice(&report.data).ok()?;
    Told { head, who: Some(who), ending: None, room: None, data: Some(data) }.event(now_ms)
}

/// A room that has its first member, or none any more.
pub(super) fn room(change: &Change, node: &str, numbers: &mut Numbers, now_ms: u64) -> Option<Event> {
    let kind = if change.is_occupied { "occupied" } else { "vacated" };
    let head = Head { id: numbers.event(), kind, timestamp: moment_text(change.at_ms), node };
    Told { head, who: None, ending: None, room: Some(change.room.as_str()), data: None }.event(now_ms)
}

/// Makes a batch of the first events, where there are enough of them or the first has waited long enough.
pub(super) fn gather(
    events: &mut VecDeque<Event>,
    events_max: usize,
    wait_ms: u64,
    now_ms: u64,
    numbers: &mut Numbers,
) -> Option<Batch> {
    let first = events.front()?;
    let is_large =
        events.len() >= events_max || events.iter().map(|event| event.json.len()).sum::<usize>() >= BATCH_BYTES;
    if !is_large && now_ms.saturating_sub(first.came_ms) < wait_ms {
        return None;
    }
    let mut batch = Batch { id: numbers.batch(), body: vec![b'['], events: 0 };
    while let Some(event) = events.front()
        && (batch.events as usize) < events_max.max(1)
        && (batch.events == 0 || batch.body.len() + event.json.len() <= BATCH_BYTES)
    {
        if batch.events > 0 {
            batch.body.push(b',');
        }
        batch.body.extend_from_slice(&event.json);
        batch.events += 1;
        events.pop_front();
    }
    batch.body.push(b']');
    Some(batch)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::auth::Identity;
    use crate::control::store::ClosedBy;
    use crate::hub::name::NameHasher;
    use crate::ring::ConnKey;

    fn parsed(event: Option<Event>) -> Value {
        serde_json::from_slice(&event.expect("an event").json).expect("JSON")
    }

    fn report(closed: Option<Closed>) -> ConnectionReport {
        let mut identity = Identity::anonymous("alice".to_owned());
        identity.roles = Arc::from(["operator".to_owned()]);
        ConnectionReport {
            shard: 0,
            conn: ConnKey { slot: 1, generation: 1 },
            opened_ms: 1_000_000_000_000,
            client_id: "c1".into(),
            session_id: "s1".into(),
            identity: Arc::new(identity),
            closed,
        }
    }

    #[test]
    fn each_kind_of_event_says_what_it_is_about() {
        let mut numbers = Numbers::new(0xab);
        assert_eq!(
            parsed(connection(&report(None), "node-1", &mut numbers, 0)),
            json!({"id": "evt_00000000000000ab-1", "type": "connect", "timestamp": "2001-09-09T01:46:40.000Z",
                "node": "node-1", "client_id": "c1", "session_id": "s1", "user_id": "alice", "roles": ["operator"]}),
        );
        let closed = Closed {
            at_ms: 1_000_000_001_000,
            code: Some(1001),
            reason: "bye \"x\"".into(),
            by: ClosedBy::Client,
            messages_received: 2,
            bytes_received: 3,
            bytes_sent: 4,
        };
        let event = parsed(connection(&report(Some(closed)), "node-1", &mut numbers, 0));
        assert_eq!((&event["type"], &event["id"]), (&json!("disconnect"), &json!("evt_00000000000000ab-2")));
        assert_eq!(
            (&event["code"], &event["reason"], &event["closed_by"]),
            (&json!(1001), &json!("bye \"x\""), &json!("client"))
        );
        assert_eq!(event["connected_at"], "2001-09-09T01:46:40.000Z");
        let message_report = MessageReport {
            at_ms: 0,
            client_id: "c1".into(),
            session_id: "s1".into(),
            identity: report(None).identity,
            data: bytes::Bytes::from_static(b"{\"n\": 1.50}"),
        };
        let event = message(&message_report, "node-1", &mut numbers, 0).expect("an event");
        assert!(String::from_utf8(event.json).expect("text").ends_with(r#""data":{"n": 1.50}}"#), "as it came");
        let change = Change { room: NameHasher::new(1).room("project:1"), is_occupied: false, at_ms: 0 };
        let event = parsed(room(&change, "node-1", &mut numbers, 0));
        assert_eq!((&event["type"], &event["room"]), (&json!("vacated"), &json!("project:1")));
        assert!(event.get("client_id").is_none() && event.get("data").is_none());
    }

    fn events(sizes: &[usize]) -> VecDeque<Event> {
        sizes.iter().map(|size| Event { json: vec![b'1'; *size], came_ms: 100 }).collect()
    }

    #[test]
    fn a_batch_is_bounded_by_number_time_and_bytes() {
        let mut numbers = Numbers::new(1);
        let mut waiting = events(&[1, 1, 1]);
        assert_eq!(gather(&mut waiting, 4, 50, 149, &mut numbers), None, "others may come");
        let batch = gather(&mut waiting, 4, 50, 150, &mut numbers).expect("it has waited");
        assert_eq!((batch.events, &*batch.body), (3, &b"[1,1,1]"[..]));
        let mut waiting = events(&[1, 1, 1]);
        let batch = gather(&mut waiting, 2, 50, 100, &mut numbers).expect("enough");
        assert_eq!((batch.events, waiting.len()), (2, 1));
        let mut waiting = events(&[BATCH_BYTES + 1, BATCH_BYTES - 10, 100]);
        let sizes: Vec<u64> =
            std::iter::from_fn(|| gather(&mut waiting, 100, 0, 100, &mut numbers)).map(|one| one.events).collect();
        assert_eq!(sizes, [1, 1, 1], "one of any size, and no more than fit");
        assert_eq!(gather(&mut waiting, 100, 0, 100, &mut numbers), None);
    }
}
