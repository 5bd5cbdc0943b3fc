//! Why a client has an event, or has it not: read from what the recorder has.
//!
//! An event is followed on the shard of the client's connection. What was put into its outbox for it alone (a replay, what
//! it had missed) comes first, then what it was told that it won't get, then the room's fan-out: whoever was a member with
//! the selection that the fan-out was for, and had not fallen behind, got what was chosen. What is left is where in its
//! outbox it is now, if it is there.
//!
//! Larger than most files because the way to one answer is told in one place: what is known of a connection, what follows
//! from it for an event, and the words for that.

use std::ops::RangeInclusive;

use hashbrown::HashMap;
use serde::Serialize;
use utoipa::ToSchema;

use super::batch::Address;
use super::name::{RoomName, ShardId};
use super::recorder::{Chosen, Mark, Record, Recorder, What};
use crate::ring::{ConnKey, Now};
use crate::wire::envelope::rfc3339;

/// What the shard that gave an event its number knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFound {
    /// Its id.
    pub id: Box<str>,
    /// Its room's hash.
    pub room: u64,
    /// Its room's name, where the room is still there.
    pub name: Option<Box<str>>,
    /// Its number.
    pub seq: u64,
    /// Its type, or the beginning of it.
    pub kind: Box<str>,
    /// Whether that is all of its type.
    pub is_whole_kind: bool,
    /// When it was received, in microseconds of the monotonic clock.
    pub received_us: u64,
    /// The connection that must not get it.
    pub exclude: Option<Address>,
    /// Whether the journal has yet to have it.
    pub awaits_journal: bool,
}

/// The time of a turn is read when it begins: what was received in it by another thread seems to be later by this, at most.
const TURN_US_MAX: u64 = 1_000_000;

impl EventFound {
    /// Whether a record may be about it, by its time: a room that was forgotten begins with the same numbers again.
    fn is_before(&self, record: &Record) -> bool {
        self.received_us <= record.at_us.saturating_add(TURN_US_MAX)
    }

    /// Whether it may have been received by then or later.
    fn is_about(&self, at_us: u64) -> bool {
        at_us <= self.received_us.saturating_add(TURN_US_MAX)
    }
}

/// What shards say of an event that is looked for by its id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventSought {
    /// What its room's home knows.
    pub found: Option<EventFound>,
    /// It got a number, but the journal failed before it was published.
    pub taken_back: bool,
    /// Since when all events are known, in milliseconds since 1970.
    pub since_ms: u64,
}

impl EventSought {
    /// What two shards say, put together.
    pub fn and(self, other: EventSought) -> EventSought {
        EventSought {
            found: self.found.or(other.found),
            taken_back: self.taken_back || other.taken_back,
            since_ms: self.since_ms.max(other.since_ms),
        }
    }
}

/// What became of an event for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was no member of the room when the event was published.
    NotSubscribed,
    /// The records don't reach back, or there was no such event.
    Unknown,
    /// Its subscription does not want it, or it is the client's own.
    Filtered,
    /// It waited for the client, or was being sent, when its connection ended.
    Dropped,
    /// It was told of a gap instead.
    Skipped,
    /// It has yet to be sent.
    Queued,
    /// The kernel has it.
    Written,
}

/// What became of an event for a client, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Explanation {
    /// The client.
    pub client_id: String,
    /// The event.
    pub event_id: String,
    /// What became of it.
    pub outcome: Outcome,
    /// One or two sentences for people.
    pub detail: String,
    /// The event's room, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<String>,
    /// Its number there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// Its type, or the first 23 bytes of it.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// When it was received, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published_at: Option<String>,
    /// When the connection that this is about was let in, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connected_at: Option<String>,
    /// When it ended; none where it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<String>,
    /// Its shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<u16>,
    /// What the subscription selects, where that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The first event of the gap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_seq: Option<u64>,
    /// The last event of the gap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_seq: Option<u64>,
    /// Why there was a gap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes that go before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_ahead: Option<u64>,
    /// When the kernel had it at the latest, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written_at: Option<String>,
    /// How long after it was received that was, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_publish_us: Option<u64>,
}

impl Explanation {
    /// One that knows nothing but this.
    pub fn new(client_id: &str, event_id: &str, outcome: Outcome, detail: impl Into<String>) -> Explanation {
        Explanation {
            client_id: client_id.to_owned(),
            event_id: event_id.to_owned(),
            outcome,
            detail: detail.into(),
            room: None,
            seq: None,
            kind: None,
            published_at: None,
            connected_at: None,
            closed_at: None,
            shard: None,
            filter: None,
            from_seq: None,
            to_seq: None,
            reason: None,
            bytes_ahead: None,
            written_at: None,
            after_publish_us: None,
        }
    }
}

/// Where an event is on its way out of a connection's outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It is not there.
    Nowhere,
    /// It waits.
    Waiting {
        /// Bytes that go before it, those with the kernel included.
        bytes_ahead: u64,
    },
    /// It is in the chunk that the kernel has not taken whole.
    BeingSent {
        /// Bytes of the chunk that the kernel has yet to take, up to the event.
        bytes_ahead: u64,
    },
}

/// What a shard knows of a connection beside what is recorded: how it is, or was when it ended.
#[derive(Debug, Clone)]
pub struct Witness {
    /// The connection.
    pub conn: ConnKey,
    /// When it was let in, in microseconds of the monotonic clock.
    pub opened_us: u64,
    /// When it ended.
    pub closed_us: Option<u64>,
    /// Bytes of events that wait, or waited by then.
    pub unsent_bytes: u64,
    /// Bytes before these that are with the kernel, or were when its socket failed.
    pub cut_bytes: u64,
    /// The rooms it is in, or was in at its end, and what it selects.
    pub rooms: Vec<(RoomName, Mark)>,
    /// Where it has fallen behind in the event's room: the last event that it has.
    pub lags_after: Option<u64>,
    /// Where the event is in its outbox.
    pub place: Place,
    /// Whether the kernel has taken a part of a message, and not yet the rest of it.
    pub is_cut: bool,
    /// Whether a fan-out of the event's room is under way.
    pub fans_out: bool,
}

impl Witness {
    fn queued_bytes(&self) -> u64 {
        self.unsent_bytes.saturating_add(self.cut_bytes)
    }
}

/// Whether a connection was a member, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Membership {
    /// With that selection.
    Member(Mark),
    /// It was none.
    No,
    /// The records don't reach back.
    Unknown,
}

/// What is recorded of the state of a connection, and how it ended or is.
pub(super) struct Story<'r> {
    witness: &'r Witness,
    changes: Vec<&'r Record>,
    rooms: HashMap<u64, RoomStory>,
    /// The number of the record that it is closing.
    closing: u64,
    since_us: u64,
}

/// The same for one room, in the order of the records.
#[derive(Debug, Default)]
struct RoomStory {
    turns: Vec<Turning>,
    lags: Vec<Lag>,
}

/// A membership begins, changes or ends.
#[derive(Debug)]
struct Turning {
    number: u64,
    before: Membership,
    after: Membership,
}

/// A time in which a room's fan-outs passed the connection by.
#[derive(Debug)]
struct Lag {
    after_seq: u64,
    is_replay: bool,
    began: u64,
    /// The number of the record that ended it.
    ended: u64,
    end: LagEnd,
}

/// How falling behind ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LagEnd {
    CaughtUp,
    Left { at_us: u64 },
    Open { since_us: Option<u64> },
}

impl RoomStory {
    fn take(&mut self, record: &Record) {
        match record.what {
            What::Subscribed { mark, before, .. } => {
                let before = before.map_or(Membership::No, Membership::Member);
                self.turns.push(Turning { number: record.number, before, after: Membership::Member(mark) });
            }
            What::Unsubscribed { before, .. } => {
                let before = Membership::Member(before);
                self.turns.push(Turning { number: record.number, before, after: Membership::No });
                self.end_lag(record, LagEnd::Left { at_us: record.at_us });
            }
            What::FellBehind { after_seq, is_replay, .. } => self.lags.push(Lag {
                after_seq,
                is_replay,
                began: record.number,
                ended: u64::MAX,
                end: LagEnd::Open { since_us: Some(record.at_us) },
            }),
            What::CaughtUp { .. } => self.end_lag(record, LagEnd::CaughtUp),
            What::BeganAnew { .. } => self.end_lag(record, LagEnd::Left { at_us: record.at_us }),
            _ => {}
        }
    }

    fn end_lag(&mut self, record: &Record, end: LagEnd) {
        if let Some(lag) = self.lags.last_mut().filter(|lag| lag.ended == u64::MAX) {
            (lag.ended, lag.end) = (record.number, end);
        }
    }
}

impl Lag {
    /// Whether an event's fan-out passed the connection by. Of what was on its way when it could not take more it got
    /// nothing; a replay takes nothing back of what it was given before.
    fn passes_by(&self, seq: u64, number: u64) -> bool {
        seq > self.after_seq && number < self.ended && (!self.is_replay || number > self.began)
    }
}

impl<'r> Story<'r> {
    pub(super) fn new(recorder: &'r Recorder, witness: &'r Witness) -> Story<'r> {
        let changes: Vec<_> = recorder.changes().filter(|record| record.conn == witness.conn).collect();
        let mut rooms: HashMap<u64, RoomStory> = HashMap::new();
        for record in &changes {
            if let Some(room) = room_of(&record.what) {
                rooms.entry(room.hash()).or_default().take(record);
            }
        }
        for (room, _) in &witness.rooms {
            rooms.entry(room.hash()).or_default();
        }
        let closing = changes.iter().find(|record| matches!(record.what, What::Closing { .. }));
        let closing = closing.map_or(u64::MAX, |record| record.number);
        Story { witness, changes, rooms, closing, since_us: recorder.changes_since_us() }
    }

    /// All of it, oldest first.
    pub(super) fn changes(&self) -> &[&'r Record] {
        &self.changes
    }

    fn of_room(&self, room: u64) -> impl DoubleEndedIterator<Item = &'r Record> {
        self.changes.iter().copied().filter(move |record| room_of(&record.what).is_some_and(|name| name.hash() == room))
    }

    /// Whether it was in a room at the time of a record.
    fn membership(&self, room: u64, number: u64, at_us: u64) -> Membership {
        let Some(story) = self.rooms.get(&room) else {
            return if at_us < self.since_us { Membership::Unknown } else { Membership::No };
        };
        let is_over = self.witness.closed_us.is_some_and(|closed_us| closed_us < at_us) || self.closing < number;
        let next = story.turns.partition_point(|turn| turn.number < number);
        if let Some(last) = next.checked_sub(1).and_then(|last| story.turns.get(last)) {
            return if is_over { Membership::No } else { last.after };
        }
        if is_over || self.witness.opened_us > at_us {
            return Membership::No;
        }
        if at_us < self.since_us {
            return Membership::Unknown;
        }
        if let Some(turn) = story.turns.first() {
            return turn.before;
        }
        let now = self.witness.rooms.iter().find(|(name, _)| name.hash() == room);
        now.map_or(Membership::No, |(_, mark)| Membership::Member(*mark))
    }

    /// Whether a fan-out passed it by, since it had fallen behind in the room, and what ended that.
    fn lag(&self, room: u64, seq: u64, number: u64) -> Option<LagEnd> {
        let lags = self.rooms.get(&room).map_or(&[][..], |story| &story.lags);
        // They don't overlap, so that it is the first which had not ended by then.
        let lag = lags.get(lags.partition_point(|lag| lag.ended <= number)).filter(|lag| lag.passes_by(seq, number));
        let is_behind = self.witness.lags_after.is_some_and(|after_seq| seq > after_seq);
        match (lag.map(|lag| lag.end), self.witness.closed_us) {
            (Some(LagEnd::Open { .. }), Some(at_us)) => Some(LagEnd::Left { at_us }),
            (Some(LagEnd::Open { since_us }), None) => Some(LagEnd::Open { since_us }),
            (Some(end), _) => Some(end),
            // Its beginning was overwritten.
            (None, None) if is_behind && lags.is_empty() => Some(LagEnd::Open { since_us: None }),
            (None, _) => None,
        }
    }

    /// Whether it had fallen behind before an event, and then said anew from where on it wants events.
    fn began_anew(&self, room: u64, event: &EventFound) -> Option<LagEnd> {
        let lags = self.rooms.get(&room).map_or(&[][..], |story| &story.lags);
        let ends = lags.iter().rev().filter(|lag| event.seq > lag.after_seq).map(|lag| lag.end);
        ends.into_iter().find(|end| matches!(end, LagEnd::Left { at_us } if event.received_us <= *at_us))
    }

    /// Whether a fan-out gave it what was chosen: all of that or nothing, so that the last event tells.
    pub(super) fn was_given(&self, record: &Record, room: u64, mark: Mark, chosen: Chosen) -> bool {
        self.membership(room, record.number, record.at_us) == Membership::Member(mark)
            && self.lag(room, chosen.last_seq(), record.number).is_none()
    }
}

/// The room that a record is about.
pub(super) fn room_of(what: &What) -> Option<&RoomName> {
    match what {
        What::Subscribed { room, .. }
        | What::Unsubscribed { room, .. }
        | What::FellBehind { room, .. }
        | What::CaughtUp { room, .. }
        | What::BeganAnew { room }
        | What::Gap { room, .. } => Some(room),
        _ => None,
    }
}

/// What became of an event for one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It was no member; when it became one later, or ended being one before.
    NotSubscribed {
        /// Joined later.
        joined_us: Option<u64>,
        /// Left before.
        left_us: Option<u64>,
    },
    /// It published the event itself, and did not want it back.
    Own,
    /// Its selection does not want it.
    Filtered(Mark),
    /// A gap was told instead.
    Skipped {
        /// The first event of the gap.
        from_seq: u64,
        /// The last.
        to_seq: u64,
        /// Why.
        reason: &'static str,
        /// When.
        at_us: u64,
    },
    /// It has fallen behind in the room, whose log it will read on from.
    Behind {
        /// The last event that it has.
        after_seq: u64,
        /// Since when, as far as that is known.
        since_us: Option<u64>,
    },
    /// It waits in the outbox.
    Waiting {
        /// Bytes before it.
        bytes_ahead: u64,
        /// Since when.
        since_us: u64,
    },
    /// It is being sent.
    BeingSent {
        /// Bytes before it.
        bytes_ahead: u64,
        /// Since when.
        since_us: u64,
    },
    /// The room's fan-out is under way.
    FanningOut {
        /// Since when.
        since_us: u64,
    },
    /// It has yet to come to this shard.
    OnItsWay,
    /// The connection ended, or left the room, before it was sent.
    Dropped {
        /// When.
        at_us: u64,
    },
    /// It was being sent when the connection failed.
    Cut {
        /// When.
        at_us: u64,
    },
    /// The kernel has it.
    Written {
        /// Since when, at the latest.
        by_us: u64,
        /// It was replayed, or read from the log later.
        is_replay: bool,
    },
    /// The records don't reach back.
    Unknown,
}

impl Finding {
    /// Whether it was put into the outbox and was not lost there.
    fn is_given(&self) -> bool {
        matches!(
            self,
            Finding::Written { .. } | Finding::Waiting { .. } | Finding::BeingSent { .. } | Finding::FanningOut { .. }
        )
    }
}

fn is_own(event: &EventFound, me: ShardId, witness: &Witness) -> bool {
    event.exclude == Some(Address { shard: me, conn: witness.conn })
}

/// Finds out what became of an event for a connection of shard `me`.
pub fn find(recorder: &Recorder, me: ShardId, event: &EventFound, witness: &Witness) -> Finding {
    let (room, seq) = (event.room, event.seq);
    let story = Story::new(recorder, witness);
    let by_fan_out = by_fan_out(recorder, me, event, &story);
    let mut given: Vec<(&Record, u64)> = by_fan_out.iter().map(|record| (*record, done_us(record))).collect();
    let mut looked_at = None;
    for record in recorder.traffic_records().filter(|record| record.conn == witness.conn && event.is_before(record)) {
        match record.what {
            What::Given { room: of, chosen, .. } if of == room && chosen.has(seq) => given.push((record, record.at_us)),
            What::Given { room: of, chosen, .. } if of == room && chosen.covers(seq) => looked_at = Some(record),
            _ => {}
        }
    }
    // It may have been asked for again after it was sent.
    if let Some((last, before)) = given.split_last() {
        for (record, done_us) in before {
            let behind = bytes_behind(recorder, &story, record.number);
            if *behind.start() >= witness.queued_bytes() {
                return written(recorder, &story, record, *done_us);
            }
            if *behind.end() >= witness.unsent_bytes {
                return match witness.closed_us {
                    Some(at_us) => Finding::Cut { at_us },
                    None => Finding::BeingSent { bytes_ahead: 0, since_us: record.at_us },
                };
            }
        }
        return settle(recorder, &story, last.0, last.1);
    }
    let by_fan_out = match by_fan_out {
        Err(finding) => finding,
        Ok(_) => Finding::Unknown,
    };
    if by_fan_out.is_given() {
        return by_fan_out;
    }
    let mut gaps =
        story.of_room(room).filter(|record| event.is_before(record)).filter_map(|record| match record.what {
            What::Gap { from_seq, to_seq, reason, .. } if (from_seq..=to_seq).contains(&seq) => {
                Some(Finding::Skipped { from_seq, to_seq, reason, at_us: record.at_us })
            }
            _ => None,
        });
    if let Some(skipped) = gaps.next_back() {
        return skipped;
    }
    if let Some(record) = looked_at {
        return match story.membership(room, record.number, record.at_us) {
            _ if is_own(event, me, witness) => Finding::Own,
            Membership::Member(mark) => Finding::Filtered(mark),
            Membership::No | Membership::Unknown => Finding::Unknown,
        };
    }
    by_fan_out
}

/// What the room's fan-out says.
fn by_fan_out<'r>(
    recorder: &'r Recorder,
    me: ShardId,
    event: &EventFound,
    story: &Story<'_>,
) -> Result<&'r Record, Finding> {
    let (room, seq, witness) = (event.room, event.seq, story.witness);
    let mut fanned_out = None;
    for record in recorder.traffic_records() {
        let What::FannedOut { room: of, mark, chosen, done_us, .. } = record.what else { continue };
        if of != room || !chosen.covers(seq) || !event.is_before(record) {
            continue;
        }
        let membership = story.membership(room, record.number, record.at_us);
        fanned_out = Some((record, membership));
        if membership != Membership::Member(mark) {
            continue;
        }
        if is_own(event, me, witness) {
            return Err(Finding::Own);
        }
        if !chosen.has(seq) {
            return Err(Finding::Filtered(mark));
        }
        return match story.lag(room, seq, record.number) {
            None if done_us == 0 && witness.fans_out && witness.place == Place::Nowhere => {
                Err(Finding::FanningOut { since_us: record.at_us })
            }
            None => Ok(record),
            Some(LagEnd::Open { since_us }) => {
                Err(Finding::Behind { after_seq: witness.lags_after.unwrap_or(seq - 1), since_us })
            }
            Some(LagEnd::Left { at_us }) => Err(Finding::Dropped { at_us }),
            // What it was given instead was overwritten.
            Some(LagEnd::CaughtUp) => Err(Finding::Unknown),
        };
    }
    if let Some(after_seq) = witness.lags_after.filter(|after_seq| seq > *after_seq) {
        return Err(Finding::Behind { after_seq, since_us: None });
    }
    Err(match fanned_out {
        Some((record, Membership::No)) => not_subscribed(story, room, record.number),
        // Nobody here had its selection but those who had fallen behind.
        Some((record, Membership::Member(_))) => match story.lag(room, seq, record.number) {
            Some(LagEnd::Left { at_us }) => Finding::Dropped { at_us },
            _ => Finding::Unknown,
        },
        Some((_, Membership::Unknown)) => Finding::Unknown,
        None => no_fan_out(recorder, story, event),
    })
}

/// When what a fan-out gave was with the kernel, as far as it is known.
fn done_us(record: &Record) -> u64 {
    match record.what {
        What::FannedOut { done_us, .. } => done_us.max(record.at_us),
        _ => record.at_us,
    }
}

/// Where no fan-out of the event on this shard is known: nobody here was a member, or all had fallen behind, or it has yet
/// to come.
fn no_fan_out(recorder: &Recorder, story: &Story<'_>, event: &EventFound) -> Finding {
    let (room, at_us, witness) = (event.room, event.received_us, story.witness);
    if witness.opened_us > at_us.saturating_add(TURN_US_MAX) {
        return not_subscribed(story, room, 0);
    }
    let is_member = witness.rooms.iter().any(|(name, _)| name.hash() == room);
    let joined = story.of_room(room).rfind(|record| matches!(record.what, What::Subscribed { before: None, .. }));
    if let Some(record) = joined.filter(|_| is_member)
        && let What::Subscribed { after_seq, .. } = record.what
        && (event.seq <= after_seq || !event.is_about(record.at_us))
    {
        return not_subscribed(story, room, record.number);
    }
    if at_us < story.since_us || at_us < recorder.traffic_since_us() {
        return Finding::Unknown;
    }
    match story.lag(room, event.seq, u64::MAX - 1).or_else(|| story.began_anew(room, event)) {
        Some(LagEnd::Left { at_us }) if is_member => Finding::Dropped { at_us },
        _ if is_member && witness.closed_us.is_none() => Finding::OnItsWay,
        // Had it come before it left, its fan-out would be known.
        _ => not_subscribed(story, room, u64::MAX),
    }
}

fn not_subscribed(story: &Story<'_>, room: u64, number: u64) -> Finding {
    let at = |record: &Record, is_join: bool| match record.what {
        What::Subscribed { .. } if is_join => Some(record.at_us),
        What::Unsubscribed { .. } if !is_join => Some(record.at_us),
        _ => None,
    };
    let joined = story.of_room(room).filter(|record| record.number >= number).find_map(|record| at(record, true));
    let left =
        story.of_room(room).filter(|record| record.number < number).filter_map(|record| at(record, false)).next_back();
    Finding::NotSubscribed { joined_us: joined, left_us: left }
}

/// What became of an event that was put into the outbox.
fn settle(recorder: &Recorder, story: &Story<'_>, record: &Record, done_us: u64) -> Finding {
    let (witness, since_us) = (story.witness, record.at_us);
    match witness.place {
        Place::Waiting { bytes_ahead } => return Finding::Waiting { bytes_ahead, since_us },
        Place::BeingSent { bytes_ahead } => return Finding::BeingSent { bytes_ahead, since_us },
        Place::Nowhere => {}
    }
    let behind = bytes_behind(recorder, story, record.number);
    if let Some(at_us) = witness.closed_us {
        if *behind.end() < witness.unsent_bytes {
            return Finding::Dropped { at_us };
        }
        if *behind.start() < witness.queued_bytes() {
            return Finding::Cut { at_us };
        }
    } else if witness.is_cut && *behind.start() < witness.queued_bytes() {
        // It is in what is being sent. What the kernel has taken of that ends within a message, which may be this one.
        return Finding::BeingSent { bytes_ahead: 0, since_us };
    }
    written(recorder, story, record, done_us)
}

/// When the kernel had what was put into the outbox: where something had to wait meanwhile, when nothing waited any more,
/// at the latest.
fn written(recorder: &Recorder, story: &Story<'_>, record: &Record, done_us: u64) -> Finding {
    let (witness, since_us) = (story.witness, record.at_us);
    let (mut by_us, mut waits) = (done_us, false);
    for record in recorder.traffic_records().filter(|record| record.conn == witness.conn) {
        match record.what {
            What::Waits { .. } => waits = record.at_us <= done_us,
            What::Drained if waits => {
                waits = false;
                if record.at_us >= since_us {
                    by_us = by_us.max(record.at_us);
                }
            }
            _ => {}
        }
    }
    if waits {
        by_us = witness.closed_us.unwrap_or(recorder.now_us()).max(by_us);
    }
    Finding::Written { by_us, is_replay: matches!(record.what, What::Given { .. }) }
}

/// Bytes of events, and of answers in line with them, that were put into a connection's outbox behind those of a record:
/// at least, and at most.
fn bytes_behind(recorder: &Recorder, story: &Story<'_>, number: u64) -> RangeInclusive<u64> {
    let (mut least, mut most) = (0, 0);
    for record in recorder.traffic_records().rev().take_while(|record| record.number > number) {
        match record.what {
            What::Given { bytes, .. } | What::Told { bytes, is_in_line: true, .. }
                if record.conn == story.witness.conn =>
            {
                least += u64::from(bytes);
                most += u64::from(bytes);
            }
            What::FannedOut { room, mark, chosen, bytes, has_exclusions, .. }
                if bytes > 0 && story.was_given(record, room, mark, chosen) =>
            {
                least += if has_exclusions { 0 } else { u64::from(bytes) };
                most += u64::from(bytes);
            }
            _ => {}
        }
    }
    least..=most
}

/// A time of the monotonic clock as people read it.
pub(super) fn wall_time(now: Now, at_us: u64) -> String {
    let unix_ms = now.unix_ms.saturating_sub(now.monotonic_us.saturating_sub(at_us) / 1000);
    String::from_utf8_lossy(&rfc3339(unix_ms)).into_owned()
}

/// Puts a finding into words.
pub fn tell(
    recorder: &Recorder,
    now: Now,
    me: ShardId,
    client_id: &str,
    event: &EventFound,
    witness: &Witness,
    finding: Finding,
) -> Explanation {
    let time = |at_us| wall_time(now, at_us);
    let after = |at_us: u64| format!("{:.3} ms after it was published", after_ms(event, at_us));
    let name = witness.rooms.iter().find(|(name, _)| name.hash() == event.room).map(|(name, _)| name.as_str());
    let room = event.name.as_deref().or(name).unwrap_or("a room that is gone");
    let (outcome, detail) = match finding {
        Finding::NotSubscribed { joined_us, left_us } => {
            let mut detail = format!("It was not subscribed to {room} when the event was published.");
            match (left_us, joined_us) {
                (_, _) if witness.opened_us > event.received_us => {
                    detail.push_str(&format!(" It connected later, at {}.", time(witness.opened_us)));
                }
                (_, Some(joined_us)) => detail.push_str(&format!(" It subscribed later, at {}.", time(joined_us))),
                (Some(left_us), _) => detail.push_str(&format!(" It had left at {}.", time(left_us))),
                (None, None) => {}
            }
            (Outcome::NotSubscribed, detail)
        }
        Finding::Own => (Outcome::Filtered, "It published the event itself, with echo: false.".to_owned()),
        Finding::Filtered(mark) => (Outcome::Filtered, filtered(recorder, event, mark)),
        Finding::Skipped { from_seq, to_seq, reason, at_us } => {
            let why = match reason {
                "latest" => "a newer event of its key or type took its place while the client was reading slowly",
                _ => "the room's log did not keep it until the client was ready to read on",
            };
            (Outcome::Skipped, format!("It was told of a gap from {from_seq} to {to_seq} at {}: {why}.", time(at_us)))
        }
        Finding::Behind { after_seq, since_us } => {
            let since = since_us.map(|at_us| format!(" since {}", time(at_us))).unwrap_or_default();
            let detail = format!(
                "It reads slowly, and has fallen behind in {room}{since}. It has the events up to {after_seq}, and goes on \
                 from the log when its outbox is empty."
            );
            (Outcome::Queued, detail)
        }
        Finding::Waiting { bytes_ahead, since_us } => {
            let since = time(since_us);
            (Outcome::Queued, format!("It waits in the outbox since {since}, behind {bytes_ahead} bytes."))
        }
        Finding::BeingSent { bytes_ahead, since_us } => {
            let detail = format!(
                "It is being sent since {}: the kernel has not taken it yet, since the client reads slowly; {bytes_ahead} bytes \
                 go before it.",
                time(since_us)
            );
            (Outcome::Queued, detail)
        }
        Finding::FanningOut { since_us } => {
            (Outcome::Queued, format!("The fan-out of {room} is under way since {}.", time(since_us)))
        }
        Finding::OnItsWay if event.awaits_journal => (Outcome::Queued, "The journal does not have it yet.".to_owned()),
        Finding::OnItsWay => (Outcome::Queued, "It is on its way to the client's shard.".to_owned()),
        Finding::Dropped { at_us } => {
            let detail =
                format!("It waited for the client until {}, when the connection ended or left the room.", time(at_us));
            (Outcome::Dropped, detail)
        }
        Finding::Cut { at_us } => {
            let at = time(at_us);
            let detail =
                format!("It was being sent when the connection failed at {at}: the client may have it or not.");
            (Outcome::Dropped, detail)
        }
        Finding::Written { by_us, is_replay } => {
            let how = if is_replay { ", read from the room's log" } else { "" };
            (Outcome::Written, format!("The kernel had it at {} at the latest, {}{how}.", time(by_us), after(by_us)))
        }
        Finding::Unknown => (Outcome::Unknown, "That is too long ago: the records don't reach back.".to_owned()),
    };
    let mut told = Explanation::new(client_id, &event.id, outcome, detail);
    told.room = event.name.as_deref().or(name).map(str::to_owned);
    told.seq = Some(event.seq);
    told.kind = Some(event.kind.to_string());
    told.published_at = Some(time(event.received_us));
    told.connected_at = Some(time(witness.opened_us));
    told.closed_at = witness.closed_us.map(time);
    told.shard = Some(me.0);
    match finding {
        Finding::Filtered(mark) => {
            told.filter = recorder.selection(mark).map(|selection| selection.text(FILTER_BYTES_MAX));
        }
        Finding::Skipped { from_seq, to_seq, reason, .. } => {
            (told.from_seq, told.to_seq, told.reason) = (Some(from_seq), Some(to_seq), Some(reason.to_owned()));
        }
        Finding::Waiting { bytes_ahead, .. } | Finding::BeingSent { bytes_ahead, .. } => {
            told.bytes_ahead = Some(bytes_ahead);
        }
        Finding::Written { by_us, .. } => {
            told.written_at = Some(time(by_us));
            told.after_publish_us = Some(by_us.saturating_sub(event.received_us));
        }
        _ => {}
    }
    told
}

fn after_ms(event: &EventFound, at_us: u64) -> f64 {
    at_us.saturating_sub(event.received_us) as f64 / 1000.0
}

/// Which part of a selection did not want an event.
fn filtered(recorder: &Recorder, event: &EventFound, mark: Mark) -> String {
    let Some(selection) = recorder.selection(mark) else {
        return "The types or filters of its subscription did not want it.".to_owned();
    };
    let kind = if event.is_whole_kind { event.kind.to_string() } else { format!("{}…", event.kind) };
    let is_other_type = match selection.types() {
        [] => false,
        types if event.is_whole_kind => !types.iter().any(|one| **one == *event.kind),
        types => !types.iter().any(|one| one.starts_with(&*event.kind)),
    };
    if is_other_type {
        let types = selection.types().join(", ");
        return format!("It is of type {kind}; the subscription wants {types}.");
    }
    format!("Its data did not pass the filters of the subscription: {}", selection.text(FILTER_BYTES_MAX))
}

/// So much of a filter is told.
const FILTER_BYTES_MAX: usize = 512;
