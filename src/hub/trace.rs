//! What the recorder has of one client, as operators read it.

use serde::Serialize;
use utoipa::ToSchema;

use super::explain::{Story, Witness, room_of, wall_time};
use super::name::RoomName;
use super::recorder::{Chosen, Mark, Record, Recorder, What};
use crate::ring::Now;
use crate::session::ClientId;

/// Whose records are wanted.
#[derive(Debug, Clone)]
pub struct TraceAsked {
    /// The client's id.
    pub client_id: ClientId,
    /// The newest so many records of each of its connections.
    pub limit: usize,
}

/// What happened to one connection of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ConnectionTrace {
    /// The session it holds, or held at its end.
    pub session_id: String,
    /// Whom it acts for.
    pub user_id: String,
    /// The shard that holds it.
    pub shard: u16,
    /// When it was let in, RFC 3339 in UTC.
    pub connected_at: String,
    /// When it ended; none where it is open.
    pub closed_at: Option<String>,
    /// Bytes of events that waited for it when it ended, and were not sent.
    pub unsent_bytes: u64,
    /// Whether something before the first of `records` was overwritten, or is more than was asked for.
    pub truncated: bool,
    /// What happened, oldest first.
    pub records: Vec<TraceEntry>,
}

/// One thing that happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct TraceEntry {
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// What: `opened`, `subscribed`, `unsubscribed`, `received` (a message), `answered`, `events` (of a room, put into its
    /// outbox), `filtered` (events that it did not want), `replayed` (events from the log), `fell_behind`, `caught_up`,
    /// `began_anew`, `gap`, `waits` (the kernel takes no more), `drained`, `refused`, `closing`, `closed`.
    pub what: String,
    /// The room it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<String>,
    /// The type of the message.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The first event it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_seq: Option<u64>,
    /// The last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_seq: Option<u64>,
    /// How many events it got of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<u32>,
    /// How many bytes these are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What it selects of the room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The error's code, or the close code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why, or by whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The beginning of the message, where that is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
}

/// So much of a selection is shown.
const FILTER_BYTES_MAX: usize = 256;

/// What happened to a connection, the newest `limit` things, oldest first; and whether there was more.
pub fn trace(recorder: &Recorder, now: Now, witness: &Witness, limit: usize) -> (Vec<TraceEntry>, bool) {
    let story = Story::new(recorder, witness);
    let mut rooms: Vec<&RoomName> = witness.rooms.iter().map(|(room, _)| room).collect();
    rooms.extend(story.changes().iter().filter_map(|record| room_of(&record.what)));
    rooms.sort_unstable_by_key(|room| room.hash());
    rooms.dedup_by_key(|room| room.hash());
    let known = |hash: u64| {
        let place = rooms.binary_search_by_key(&hash, |room| room.hash()).ok()?;
        rooms.get(place).copied()
    };
    let is_about_it = |record: &&Record| match record.what {
        What::FannedOut { room, mark, chosen, .. } => story.was_given(record, room, mark, chosen),
        // Is among the changes, with what it says.
        What::Told { kind: "gap", .. } => false,
        _ => record.conn == witness.conn,
    };
    let mut changes = story.changes().iter().rev().copied().peekable();
    let mut traffic = recorder.traffic_records().rev().filter(is_about_it).peekable();
    let mut records = Vec::new();
    let newest = std::iter::from_fn(|| match (changes.peek(), traffic.peek()) {
        (Some(change), Some(frame)) if change.number < frame.number => traffic.next(),
        (None, Some(_)) => traffic.next(),
        _ => changes.next(),
    });
    // One more tells whether there is more.
    records.extend(newest.take(limit.saturating_add(1)));
    let overwritten_us = recorder.changes_since_us().max(recorder.traffic_since_us());
    let mut truncated = overwritten_us > witness.opened_us;
    if records.len() > limit {
        records.truncate(limit);
        truncated = true;
    }
    let entries = records.into_iter().rev().map(|record| entry(recorder, now, record, &known));
    (entries.collect(), truncated)
}

fn entry<'r>(
    recorder: &Recorder,
    now: Now,
    record: &Record,
    known: &dyn Fn(u64) -> Option<&'r RoomName>,
) -> TraceEntry {
    let room = |room: &RoomName| Some(room.as_str().to_owned());
    let filter = |mark: Mark| recorder.selection(mark).map(|selection| selection.text(FILTER_BYTES_MAX));
    let text = |text: &str| Some(text.to_owned());
    let blank = TraceEntry { at: wall_time(now, record.at_us), ..TraceEntry::default() };
    let of = |what: &str| TraceEntry { what: what.to_owned(), ..blank.clone() };
    let of_events = |what: &str, room: u64, chosen: Chosen, bytes: u32| TraceEntry {
        what: if chosen.chosen() == 0 { "filtered" } else { what }.to_owned(),
        room: known(room).map(|room| room.as_str().to_owned()),
        from_seq: Some(chosen.first_seq),
        to_seq: Some(chosen.last_seq()),
        events: Some(chosen.chosen()),
        bytes: Some(u64::from(bytes)),
        ..blank.clone()
    };
    let payload = || recorder.payload(record.number).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    match &record.what {
        What::Blank => blank,
        What::Opened => of("opened"),
        What::Subscribed { room: to, mark, .. } => {
            TraceEntry { room: room(to), filter: filter(*mark), ..of("subscribed") }
        }
        What::Unsubscribed { room: from, why, .. } => {
            TraceEntry { room: room(from), reason: text(why), ..of("unsubscribed") }
        }
        What::Refused { code } => TraceEntry { code: text(code.as_str()), ..of("refused") },
        What::FellBehind { room: of_room, after_seq, is_replay } => TraceEntry {
            room: room(of_room),
            from_seq: Some(after_seq.saturating_add(1)),
            reason: text(if *is_replay { "has yet to be replayed" } else { "its outbox is full" }),
            ..of("fell_behind")
        },
        What::CaughtUp { room: of_room, to_seq } => {
            TraceEntry { room: room(of_room), to_seq: Some(*to_seq), ..of("caught_up") }
        }
        What::BeganAnew { room: of_room } => TraceEntry { room: room(of_room), ..of("began_anew") },
        What::Gap { room: of_room, from_seq, to_seq, reason } => TraceEntry {
            room: room(of_room),
            from_seq: Some(*from_seq),
            to_seq: Some(*to_seq),
            reason: text(reason),
            ..of("gap")
        },
        What::Closing { code, by } => {
            TraceEntry { code: code.map(|code| code.to_string()), reason: text(by), ..of("closing") }
        }
        What::Received { command, bytes } => {
            TraceEntry { kind: text(command), bytes: Some(u64::from(*bytes)), payload: payload(), ..of("received") }
        }
        What::Told { kind, bytes, .. } => {
            TraceEntry { kind: text(kind), bytes: Some(u64::from(*bytes)), payload: payload(), ..of("answered") }
        }
        What::FannedOut { room, chosen, bytes, .. } => of_events("events", *room, *chosen, *bytes),
        What::Given { room, chosen, bytes } => of_events("replayed", *room, *chosen, *bytes),
        What::Waits { bytes } => TraceEntry { bytes: Some(*bytes), ..of("waits") },
        What::Drained => of("drained"),
        What::Closed => of("closed"),
    }
}
