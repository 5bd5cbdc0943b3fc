//! The flight recorder: what happened lately on a shard, for those who ask later why a client did or didn't get something.
//!
//! ```text
//! changes   what became of connections: let in, subscribed, fell behind, told of a gap, closed     one ring
//! traffic   frames in, answers, and each room's batch of a turn, noted once for all its members    one ring
//! events    the events that got their number here: id, room, seq                                   one ring
//! gone      who was here: connections that have ended, for some minutes                            a queue
//! ```
//!
//! Nothing is kept per connection while it lives, and nothing per delivery: who was given a batch follows from who was a
//! member at that moment ([`super::explain`]). The rings have a fixed number of records, and have their memory from the
//! start, so that recording takes none later. A busy room pushes out what is old in `traffic`, but not what became of
//! connections.
//!
//! Larger than most files, since half of it is a list: what records say.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::Arc;

use super::batch::{Address, Batch};
use super::name::RoomName;
use super::selection::Selection;
use crate::ring::ConnKey;
use crate::session::ClientId;
use crate::session::SessionId;
use crate::wire::codes::ErrorCode;
use crate::wire::ws::header_bytes;

/// Connections that are remembered after their end. With their names and some rooms each takes half a KiB at about.
const GONE_MAX: usize = 4096;
/// Rooms that are remembered of each of them: so many that almost all have less.
const GONE_ROOMS_MAX: usize = 64;
/// Selections that are remembered, so that it can be said which one an event was filtered by, and how long they may be: as
/// long as a message otherwise, and gone clients must not hold that.
const SELECTIONS_MAX: usize = 256;
const SELECTION_BYTES_MAX: usize = 2048;
/// Fan-outs whose end is noted in one turn; of others it is only known when they began.
const ENDS_PER_TURN_MAX: usize = 1024;
/// Events of a batch that one record tells of where some were chosen and others not: a bit for each.
pub(super) const EVENTS_PER_RECORD: u64 = 64;

/// What of the configuration the recorder goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecorderLimits {
    /// Records in each ring; none is recorded where it is 0.
    pub records: usize,
    /// Bytes of each frame's payload that are kept.
    pub payload_bytes: usize,
    /// How long those who are gone are remembered, in milliseconds.
    pub keep_ms: u64,
}

/// Stands for what a member selects: equal selections have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(NonZero<u64>);

impl Mark {
    /// Of those who want everything.
    pub const EVERYTHING: Mark = Mark(NonZero::<u64>::MIN);

    /// Of a selection; none stands for everything.
    pub fn of(selection: Option<&Arc<Selection>>) -> Mark {
        selection.map_or(Mark::EVERYTHING, |selection| Mark::new(selection.mark()))
    }

    fn new(mark: u64) -> Mark {
        NonZero::new(mark).map_or(Mark::EVERYTHING, Mark)
    }
}

/// Which of a range of events were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The first event of the range.
    pub first_seq: u64,
    /// How many there are.
    pub count: u32,
    /// From the first on, a bit for each of up to 64; of more, all or none.
    pub bits: u64,
}

impl Chosen {
    /// The last event of the range.
    pub fn last_seq(&self) -> u64 {
        self.first_seq.saturating_add(u64::from(self.count)).saturating_sub(1)
    }

    /// Whether the range has an event.
    pub fn covers(&self, seq: u64) -> bool {
        seq >= self.first_seq && seq - self.first_seq < u64::from(self.count)
    }

    /// Whether an event of the range was chosen.
    pub fn has(&self, seq: u64) -> bool {
        let place = (seq.saturating_sub(self.first_seq)).min(EVENTS_PER_RECORD - 1);
        self.covers(seq) && self.bits >> place & 1 == 1
    }

    /// How many were chosen.
    pub fn chosen(&self) -> u32 {
        if u64::from(self.count) > EVENTS_PER_RECORD {
            return if self.bits == 0 { 0 } else { self.count };
        }
        let used = if u64::from(self.count) == EVENTS_PER_RECORD { u64::MAX } else { (1 << self.count) - 1 };
        (self.bits & used).count_ones()
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Nothing yet.
    Blank,
    /// It was let in, authenticated.
    Opened,
    /// It is a member of a room from here on, with a selection.
    Subscribed {
        /// The room.
        room: RoomName,
        /// What it selects.
        mark: Mark,
        /// What it selected before; none where it was no member.
        before: Option<Mark>,
        /// The room's last event by then: only later ones come by themselves.
        after_seq: u64,
    },
    /// It is no member from here on.
    Unsubscribed {
        /// The room.
        room: RoomName,
        /// What it had selected.
        before: Mark,
        /// Why.
        why: &'static str,
    },
    /// Something was refused.
    Refused {
        /// The error it was told.
        code: ErrorCode,
    },
    /// It can't take a room's events at the moment, and reads them from the log later.
    FellBehind {
        /// The room.
        room: RoomName,
        /// The last event that it has, or wants to begin after.
        after_seq: u64,
        /// It was to be replayed what it had asked for. Else it could not take what came.
        is_replay: bool,
    },
    /// It takes a room's events as they come again.
    CaughtUp {
        /// The room.
        room: RoomName,
        /// The last event that was looked at for it.
        to_seq: u64,
    },
    /// What it had not been given of a room counts no more, since it said anew from where on it wants events.
    BeganAnew {
        /// The room.
        room: RoomName,
    },
    /// It was told that it won't get events of a room.
    Gap {
        /// The room.
        room: RoomName,
        /// The first of them.
        from_seq: u64,
        /// The last of them.
        to_seq: u64,
        /// Why.
        reason: &'static str,
    },
    /// It gave back all that it held; what is left in its outbox is sent.
    Closing {
        /// The close code, where one was said.
        code: Option<u16>,
        /// By whom.
        by: &'static str,
    },
    /// A message came.
    Received {
        /// The command; `unreadable` for what is none.
        command: &'static str,
        /// Its length.
        bytes: u32,
    },
    /// An answer or a notice was put into its outbox.
    Told {
        /// Its type.
        kind: &'static str,
        /// Its length.
        bytes: u32,
        /// It went the way of events, behind those that waited.
        is_in_line: bool,
    },
    /// A room's batch goes to this shard's members with one selection. Of no connection.
    FannedOut {
        /// The room's hash.
        room: u64,
        /// Which members.
        mark: Mark,
        /// The events.
        chosen: Chosen,
        /// Bytes that each of the members gets.
        bytes: u32,
        /// But for those who must not get some of them.
        has_exclusions: bool,
        /// When the sends of the last member were with the kernel; 0 while it is under way.
        done_us: u64,
    },
    /// A room's events were looked at for it alone, and some were put into its outbox: a replay, or what it had missed.
    Given {
        /// The room's hash.
        room: u64,
        /// The events.
        chosen: Chosen,
        /// Bytes that it gets.
        bytes: u32,
    },
    /// Something waits for it, because the kernel has not taken all of what was sent before.
    Waits {
        /// Bytes that wait.
        bytes: u64,
    },
    /// Nothing waits any more.
    Drained,
    /// Its socket was closed.
    Closed,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number among all records of this shard.
    pub number: u64,
    /// When, in microseconds of the monotonic clock.
    pub at_us: u64,
    /// About which connection.
    pub conn: ConnKey,
    /// What it says.
    pub what: What,
}

/// Stands for no connection.
const NOBODY: ConnKey = ConnKey { slot: u32::MAX, generation: u32::MAX };

/// So much of an event's type is kept.
const KIND_BYTES: usize = 23;

/// An event that got its number on this shard.
#[derive(Debug, Clone, Copy)]
pub struct EventRecord {
    /// Its id, as text.
    pub id: [u8; 36],
    kind_bytes: u8,
    kind: [u8; KIND_BYTES],
    /// Its room's hash.
    pub room: u64,
    /// Its number in the room.
    pub seq: u64,
    /// When it was received, in microseconds of the monotonic clock.
    pub received_us: u64,
    /// The connection that must not get it.
    pub exclude: Option<Address>,
}

impl EventRecord {
    const BLANK: EventRecord = EventRecord {
        id: [b'-'; 36],
        kind_bytes: 0,
        kind: [0; KIND_BYTES],
        room: 0,
        seq: 0,
        received_us: 0,
        exclude: None,
    };

    /// Its type as far as it was kept, and whether that is all of it.
    pub fn kind(&self) -> (&str, bool) {
        let kept = self.kind.get(..usize::from(self.kind_bytes).min(KIND_BYTES)).unwrap_or_default();
        (std::str::from_utf8(kept).unwrap_or_default(), usize::from(self.kind_bytes) <= KIND_BYTES)
    }
}

/// A connection that has ended.
#[derive(Debug, Clone)]
pub struct Gone {
    /// The key it had.
    pub conn: ConnKey,
    /// Its id.
    pub client_id: ClientId,
    /// The session it held.
    pub session_id: SessionId,
    /// Whom it acted for.
    pub user_id: Box<str>,
    /// When it was let in, in milliseconds of the monotonic clock.
    pub opened_ms: u64,
    /// When it ended, in microseconds of the monotonic clock.
    pub closed_us: u64,
    /// Bytes of events that waited by then, and now won't be sent.
    pub unsent_bytes: u64,
    /// Bytes that were with the kernel when the socket failed: some of them may have been sent.
    pub cut_bytes: u64,
    /// The rooms it was in, and what it selected.
    pub rooms: Vec<(RoomName, Mark)>,
}

/// Records in a circle: the newest takes the oldest one's place.
#[derive(Debug)]
struct Ring<T> {
    records: Box<[T]>,
    at: usize,
    written: u64,
}

impl<T: Clone> Ring<T> {
    fn new(records: usize, blank: T) -> Ring<T> {
        Ring { records: vec![blank; records].into_boxed_slice(), at: 0, written: 0 }
    }

    #[inline]
    fn push(&mut self, record: T) {
        let Some(place) = self.records.get_mut(self.at) else { return };
        *place = record;
        self.at += 1;
        if self.at == self.records.len() {
            self.at = 0;
        }
        self.written += 1;
    }

    /// Whether something was overwritten.
    fn is_full(&self) -> bool {
        self.written > self.records.len() as u64
    }

    /// From the oldest to the newest.
    fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        let (newer, older) = self.records.split_at(self.at);
        let older = if self.written < self.records.len() as u64 { &[] } else { older };
        older.iter().chain(newer)
    }

    fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.records)
    }
}

/// Where a fan-out's record stands, so that its end can be noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    place: u32,
    number: u64,
}

impl Noted {
    /// Nowhere.
    pub const NONE: Noted = Noted { place: u32::MAX, number: u64::MAX };
}

/// The recorder of one shard.
#[derive(Debug)]
pub struct Recorder {
    limits: RecorderLimits,
    now_us: u64,
    /// When recording began.
    began_us: Option<u64>,
    number: u64,
    changes: Ring<Record>,
    traffic: Ring<Record>,
    events: Ring<EventRecord>,
    /// Fan-outs that came to their end in this turn.
    ended: Vec<Noted>,
    gone: VecDeque<Gone>,
    selections: VecDeque<Arc<Selection>>,
    /// By their records' numbers.
    payloads: VecDeque<(u64, Box<[u8]>)>,
    payload_bytes: usize,
}

impl Recorder {
    /// A recorder whose rings are as large as they will ever be.
    pub fn new(limits: RecorderLimits) -> Recorder {
        let blank = Record { number: 0, at_us: 0, conn: NOBODY, what: What::Blank };
        Recorder {
            limits,
            now_us: 0,
            began_us: None,
            number: 0,
            changes: Ring::new(limits.records, blank.clone()),
            traffic: Ring::new(limits.records, blank),
            events: Ring::new(limits.records, EventRecord::BLANK),
            ended: Vec::new(),
            gone: VecDeque::new(),
            selections: VecDeque::new(),
            payloads: VecDeque::new(),
            payload_bytes: 0,
        }
    }

    /// Goes by new limits, but for the size of the rings.
    pub fn set_limits(&mut self, limits: RecorderLimits) {
        self.limits = RecorderLimits { records: self.limits.records, ..limits };
        if limits.payload_bytes == 0 {
            self.payloads = VecDeque::new();
            self.payload_bytes = 0;
        }
    }

    /// Whether anything is recorded.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.limits.records > 0
    }

    /// A turn begins: what the last one sent is with the kernel by now.
    #[inline]
    pub fn turn(&mut self, now_us: u64) {
        self.now_us = now_us;
        self.began_us.get_or_insert(now_us);
        if !self.ended.is_empty() {
            self.note_ends();
        }
    }

    fn note_ends(&mut self) {
        for noted in self.ended.drain(..) {
            if let Some(record) = self.traffic.records.get_mut(noted.place as usize)
                && record.number == noted.number
                && let What::FannedOut { done_us, .. } = &mut record.what
            {
                *done_us = self.now_us;
            }
        }
    }

    /// Memory that it takes, in bytes, names of rooms that nothing else remembers left out.
    pub fn memory_bytes(&self) -> usize {
        let gone = |gone: &Gone| {
            size_of::<Gone>()
                + gone.client_id.len()
                + gone.session_id.len()
                + gone.user_id.len()
                + gone.rooms.capacity() * size_of::<(RoomName, Mark)>()
        };
        let selections = self.selections.iter().map(|selection| selection.text_bytes() + size_of::<Selection>());
        self.changes.bytes()
            + self.traffic.bytes()
            + self.events.bytes()
            + self.gone.iter().map(gone).sum::<usize>()
            + selections.sum::<usize>()
            + self.payload_bytes
            + self.payloads.capacity() * size_of::<(u64, Box<[u8]>)>()
    }

    // ---- what is recorded ----

    fn record(&mut self, conn: ConnKey, what: What) -> Record {
        self.number += 1;
        Record { number: self.number, at_us: self.now_us, conn, what }
    }

    /// Something became of a connection.
    pub fn change(&mut self, conn: ConnKey, what: What) {
        if self.is_on() {
            let record = self.record(conn, what);
            self.changes.push(record);
        }
    }

    /// A frame came or goes, or its connection's outbox fills and drains.
    pub fn traffic(&mut self, conn: ConnKey, what: What) {
        if self.is_on() {
            let record = self.record(conn, what);
            self.traffic.push(record);
        }
    }

    /// How many bytes of a frame's payload are to be kept.
    #[inline]
    pub fn payload_bytes(&self) -> usize {
        if self.is_on() { self.limits.payload_bytes } else { 0 }
    }

    /// A frame with a part of its payload, which the caller has made sure is nobody's secret.
    pub fn traffic_with(&mut self, conn: ConnKey, what: What, payload: &[u8]) {
        self.traffic(conn, what);
        let payload_bytes = self.payload_bytes();
        if payload_bytes == 0 || payload.is_empty() {
            return;
        }
        let kept: Box<[u8]> = payload.get(..payload_bytes).unwrap_or(payload).into();
        self.payload_bytes += kept.len();
        self.payloads.push_back((self.number, kept));
        while self.payloads.len() > self.limits.records
            && let Some((_, payload)) = self.payloads.pop_front()
        {
            self.payload_bytes -= payload.len();
        }
    }

    /// An answer or a notice, with its payload but for the brace that ends it.
    pub fn told(&mut self, conn: ConnKey, kind: &'static str, payload: &[u8], is_in_line: bool) {
        let payload_bytes = payload.len().saturating_add(1);
        let bytes = u32::try_from(payload_bytes.saturating_add(header_bytes(payload_bytes))).unwrap_or(u32::MAX);
        // The one answer with something that proves who somebody is.
        let payload = if kind == "resumed" { &[] } else { payload };
        self.traffic_with(conn, What::Told { kind, bytes, is_in_line }, payload);
    }

    /// An event got its number.
    #[inline]
    pub fn published(
        &mut self,
        id: &[u8; 36],
        kind: &str,
        room: u64,
        seq: u64,
        received_us: u64,
        exclude: Option<Address>,
    ) {
        if !self.is_on() {
            return;
        }
        let mut record = EventRecord { id: *id, room, seq, received_us, exclude, ..EventRecord::BLANK };
        let kept = kind.len().min(KIND_BYTES);
        if let (Some(to), Some(from)) = (record.kind.get_mut(..kept), kind.as_bytes().get(..kept)) {
            to.copy_from_slice(from);
        }
        // Types have at most 100 bytes; more than are kept says that there were more.
        record.kind_bytes = u8::try_from(kind.len()).unwrap_or(u8::MAX);
        self.events.push(record);
    }

    /// A batch begins to go to those members that have this mark; `selected` is what of it they get.
    #[inline]
    pub fn fan_out(&mut self, batch: &Batch, mark: Mark, selected: Option<&Batch>) -> Noted {
        let Some((first, last)) = batch.events.first().zip(batch.events.last()) else { return Noted::NONE };
        let bytes = selected.map_or(0, |selected| u32::try_from(selected.bytes.len()).unwrap_or(u32::MAX));
        let room = batch.room.hash();
        let whole = |bits| Chosen { first_seq: first.seq, count: span(first.seq, last.seq), bits };
        match selected {
            Some(selected) if selected.events.len() == batch.events.len() => {
                self.fanned_out(room, mark, whole(u64::MAX), bytes, batch.has_exclusions())
            }
            None => self.fanned_out(room, mark, whole(0), bytes, false),
            Some(selected) => {
                let mut noted = Noted::NONE;
                // The first says how long all of them are.
                let mut bytes = Some(bytes);
                for_each_chosen(first.seq, last.seq, selected.events.iter().map(|event| event.seq), |chosen| {
                    let bytes = bytes.take().unwrap_or(0);
                    noted = self.fanned_out(room, mark, chosen, bytes, selected.has_exclusions());
                });
                noted
            }
        }
    }

    #[inline]
    fn fanned_out(&mut self, room: u64, mark: Mark, chosen: Chosen, bytes: u32, has_exclusions: bool) -> Noted {
        if !self.is_on() {
            return Noted::NONE;
        }
        let what = What::FannedOut { room, mark, chosen, bytes, has_exclusions, done_us: 0 };
        let record = self.record(NOBODY, what);
        let noted = Noted { place: self.traffic.at as u32, number: record.number };
        self.traffic.push(record);
        noted
    }

    /// A fan-out came to its end.
    #[inline]
    pub fn fan_out_ended(&mut self, noted: Noted) {
        if noted != Noted::NONE && self.ended.len() < ENDS_PER_TURN_MAX {
            self.ended.push(noted);
        }
    }

    /// The events after one and up to another were looked at for one connection, and those with these numbers were put
    /// into its outbox.
    pub fn given(
        &mut self,
        conn: ConnKey,
        room: &RoomName,
        after_seq: u64,
        to_seq: u64,
        seqs: impl Iterator<Item = u64>,
        bytes: usize,
    ) {
        if !self.is_on() || to_seq <= after_seq {
            return;
        }
        let mut bytes = Some(u32::try_from(bytes).unwrap_or(u32::MAX));
        for_each_chosen(after_seq + 1, to_seq, seqs, |chosen| {
            // With those that have any.
            let bytes = if chosen.chosen() > 0 { bytes.take().unwrap_or(0) } else { 0 };
            self.traffic(conn, What::Given { room: room.hash(), chosen, bytes });
        });
    }

    /// Remembers a selection beyond its last member.
    pub fn selected(&mut self, selection: Option<&Arc<Selection>>) {
        let is_short = |selection: &&Arc<Selection>| selection.text_bytes() <= SELECTION_BYTES_MAX;
        let Some(selection) = selection.filter(|_| self.is_on()).filter(is_short) else { return };
        if self.selections.iter().any(|known| known.mark() == selection.mark()) {
            return;
        }
        if self.selections.len() >= SELECTIONS_MAX {
            self.selections.pop_front();
        }
        self.selections.push_back(selection.clone());
    }

    /// A connection has ended.
    pub fn gone(&mut self, mut gone: Gone) {
        if !self.is_on() || self.limits.keep_ms == 0 {
            return;
        }
        gone.rooms.truncate(GONE_ROOMS_MAX);
        gone.rooms.shrink_to_fit();
        if self.gone.len() >= GONE_MAX {
            self.gone.pop_front();
        }
        self.gone.push_back(gone);
    }

    /// Forgets those who are gone for too long; to be called about once a second.
    pub fn expire(&mut self) {
        let oldest_us = self.now_us.saturating_sub(self.limits.keep_ms.saturating_mul(1000));
        while self.gone.pop_front_if(|gone| gone.closed_us < oldest_us).is_some() {}
        if self.gone.is_empty() {
            self.gone.shrink_to_fit();
        }
    }

    // ---- what is read ----

    /// The time it goes by.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// What is known of the state of connections, oldest first.
    pub fn changes(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.changes.iter()
    }

    /// What is known of frames, oldest first.
    pub fn traffic_records(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.traffic.iter()
    }

    /// An event that got its number here, by its id.
    pub fn event(&self, id: &str) -> Option<&EventRecord> {
        self.events.iter().rev().find(|event| event.id == id.as_bytes())
    }

    /// Whether the number of an event was given to another one later, because the journal had not taken it.
    pub fn is_taken_back(&self, event: &EventRecord) -> bool {
        let later = self.events.iter().rev().take_while(|later| later.id != event.id);
        later.into_iter().any(|later| later.room == event.room && later.seq == event.seq)
    }

    /// Since when every event that got its number here is recorded, in microseconds of the monotonic clock.
    pub fn events_since_us(&self) -> u64 {
        let oldest = self.events.iter().next().map(|event| event.received_us);
        oldest.filter(|_| self.events.is_full()).or(self.began_us).unwrap_or(0)
    }

    /// Since when every frame is recorded.
    pub fn traffic_since_us(&self) -> u64 {
        since(&self.traffic)
    }

    /// Since when everything that became of connections is recorded.
    pub fn changes_since_us(&self) -> u64 {
        since(&self.changes)
    }

    /// Those who ended lately under a client id, oldest first.
    pub fn gone_as(&self, client_id: &str) -> impl Iterator<Item = &Gone> {
        self.gone.iter().filter(move |gone| *gone.client_id == *client_id)
    }

    /// A selection, where it is remembered.
    pub fn selection(&self, mark: Mark) -> Option<&Selection> {
        self.selections.iter().rev().find(|known| Mark::new(known.mark()) == mark).map(|selection| &**selection)
    }

    /// What was kept of a frame's payload.
    pub fn payload(&self, number: u64) -> Option<&[u8]> {
        let place = self.payloads.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        self.payloads.get(place).map(|(_, payload)| &**payload)
    }
}

fn since(ring: &Ring<Record>) -> u64 {
    let oldest = ring.iter().next().map(|record| record.at_us);
    oldest.filter(|_| ring.is_full()).unwrap_or(0)
}

fn span(first_seq: u64, last_seq: u64) -> u32 {
    u32::try_from(last_seq.saturating_sub(first_seq).saturating_add(1)).unwrap_or(u32::MAX)
}

/// A range of events in as few records as it takes: those with numbers in `seqs`, which grow, are chosen.
fn for_each_chosen(first_seq: u64, last_seq: u64, seqs: impl Iterator<Item = u64>, mut each: impl FnMut(Chosen)) {
    let mut seqs = seqs.skip_while(|seq| *seq < first_seq).peekable();
    let mut from_seq = first_seq;
    let mut pending: Option<Chosen> = None;
    while from_seq <= last_seq {
        let next_seq = seqs.peek().copied().unwrap_or(u64::MAX).min(last_seq.saturating_add(1));
        let mut range = Chosen { first_seq: from_seq, count: 0, bits: 0 };
        let to_seq = if next_seq > from_seq {
            // However many there are that were not chosen, they are one step.
            next_seq - 1
        } else {
            let to_seq = last_seq.min(from_seq + (EVENTS_PER_RECORD - 1));
            while let Some(seq) = seqs.next_if(|seq| *seq <= to_seq) {
                range.bits |= 1 << (seq - from_seq);
            }
            to_seq
        };
        range.count = span(from_seq, to_seq);
        if range.chosen() == range.count {
            range.bits = u64::MAX;
        }
        match &mut pending {
            Some(before) if before.bits == range.bits && (range.bits == 0 || range.bits == u64::MAX) => {
                before.count = span(before.first_seq, to_seq);
            }
            _ => pending.replace(range).into_iter().for_each(&mut each),
        }
        from_seq = to_seq.saturating_add(1);
    }
    pending.into_iter().for_each(each);
}

#[cfg(test)]
mod tests {
    use super::super::batch::{FrameMemory, OpenBatch};
    use super::super::name::NameHasher;
    use super::*;
    use crate::wire::envelope::{Event, Stamp, rfc3339};

    const CONN: ConnKey = ConnKey { slot: 7, generation: 1 };
    const LIMITS: RecorderLimits = RecorderLimits { records: 8, payload_bytes: 4, keep_ms: 1000 };

    #[test]
    fn ranges_take_few_records_and_say_of_each_event_whether_it_was_chosen() {
        let mut state = 1u64;
        for round in 0..2000u64 {
            let (first, count) = (round % 5 + 1, round % 300);
            let all: Vec<u64> = (first..first + count)
                .filter(|seq| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    // Runs of all and of none as well as what is mixed.
                    match seq / 80 % 3 {
                        0 => true,
                        1 => false,
                        _ => state >> 60 > 7,
                    }
                })
                .collect();
            let mut ranges = Vec::new();
            for_each_chosen(first, (first + count).saturating_sub(1), all.iter().copied(), |range| ranges.push(range));
            let mut next = first;
            for range in &ranges {
                assert_eq!(range.first_seq, next, "without holes and in order");
                next = range.last_seq() + 1;
            }
            assert_eq!(next, first + count);
            let told: Vec<u64> =
                (first..first + count).filter(|seq| ranges.iter().any(|range| range.has(*seq))).collect();
            assert_eq!(told, all);
            assert_eq!(ranges.iter().map(|range| range.chosen() as usize).sum::<usize>(), all.len());
        }
        let mut ranges = 0;
        for_each_chosen(1, u64::MAX - 1, [5, 1 << 40].into_iter(), |_| ranges += 1);
        assert!(ranges < 8, "however long a range is: {ranges}");
    }

    #[test]
    fn the_newest_records_are_kept_and_since_when_all_are_there_is_known() {
        let mut recorder = Recorder::new(LIMITS);
        let before = recorder.memory_bytes();
        for number in 0..20u64 {
            recorder.turn(100 + number);
            recorder.change(CONN, What::Opened);
        }
        let times: Vec<u64> = recorder.changes().map(|record| record.at_us).collect();
        assert_eq!(times, (112..120).collect::<Vec<_>>());
        assert_eq!(
            (recorder.changes_since_us(), recorder.traffic_since_us()),
            (112, 0),
            "a ring does not push out another"
        );
        assert_eq!(recorder.memory_bytes(), before, "records take no memory beyond that of the start");
        assert!(size_of::<Record>() * 2 + size_of::<EventRecord>() <= 300, "as the option says");
    }

    #[test]
    fn payloads_are_cut_and_go_with_their_records() {
        let mut recorder = Recorder::new(LIMITS);
        for _ in 0..20 {
            recorder.traffic_with(CONN, What::Received { command: "ping", bytes: 6 }, b"secret");
        }
        let kept: Vec<_> = recorder.traffic_records().filter_map(|record| recorder.payload(record.number)).collect();
        assert_eq!((kept.len(), kept[0]), (8, &b"secr"[..]));
        recorder.told(CONN, "resumed", b"{\"token\":1", false);
        assert_eq!(recorder.traffic_records().last().and_then(|record| recorder.payload(record.number)), None);
        assert_eq!(recorder.payload_bytes, 32);
        recorder.set_limits(RecorderLimits { payload_bytes: 0, ..LIMITS });
        recorder.traffic_with(CONN, What::Received { command: "ping", bytes: 6 }, b"secret");
        assert!(recorder.payloads.is_empty() && recorder.payload_bytes == 0);
    }

    #[test]
    fn a_fan_out_is_noted_once_with_what_was_chosen_and_when_it_was_done() {
        let memory = FrameMemory::default();
        let stamp = Stamp { id: [b'i'; 36], timestamp: rfc3339(0) };
        let mut open = OpenBatch::default();
        for seq in 5..=9 {
            open.push(&stamp, &Event { room: "a:b", kind: "k", seq, data: b"{}" }, None, 0);
        }
        let batch = Arc::new(open.seal(NameHasher::new(0).room("a:b"), &memory, 0));
        let part = Batch::part(&batch, 1..2).expect("an event");
        let mut recorder = Recorder::new(LIMITS);
        recorder.turn(10);
        let noted = recorder.fan_out(&batch, Mark::EVERYTHING, Some(&batch));
        recorder.fan_out(&batch, Mark::new(77), Some(&part));
        recorder.fan_out(&batch, Mark::new(78), None);
        recorder.fan_out_ended(noted);
        recorder.turn(25);
        let told: Vec<_> = recorder
            .traffic_records()
            .filter_map(|record| match record.what {
                What::FannedOut { chosen, done_us, .. } => {
                    Some((chosen.first_seq, chosen.count, chosen.chosen(), done_us))
                }
                _ => None,
            })
            .collect();
        assert_eq!(told, [(5, 5, 5, 25), (5, 1, 0, 0), (6, 4, 1, 0), (5, 5, 0, 0)]);
    }

    #[test]
    fn those_who_are_gone_are_remembered_for_a_while_and_in_bounds() {
        let gone = |name: &str, closed_us| Gone {
            conn: CONN,
            client_id: name.into(),
            session_id: "s".into(),
            user_id: "u".into(),
            opened_ms: 0,
            closed_us,
            unsent_bytes: 0,
            cut_bytes: 0,
            rooms: Vec::new(),
        };
        let mut recorder = Recorder::new(LIMITS);
        (0..5000).for_each(|number| recorder.gone(gone(if number == 4999 { "b" } else { "a" }, number)));
        assert_eq!((recorder.gone_as("a").count(), recorder.gone_as("b").count()), (GONE_MAX - 1, 1));
        recorder.turn(1_004_999);
        recorder.expire();
        assert_eq!((recorder.gone_as("a").count(), recorder.gone_as("b").count()), (0, 1));
        let mut off = Recorder::new(RecorderLimits { records: 0, ..LIMITS });
        off.gone(gone("a", 0));
        off.change(CONN, What::Opened);
        assert_eq!((off.gone_as("a").count(), off.changes().count(), off.memory_bytes()), (0, 0, 0));
    }

    #[test]
    fn events_are_found_by_their_ids() {
        let mut recorder = Recorder::new(LIMITS);
        for number in 0..10u8 {
            let kind = "k".repeat(usize::from(number) * 5);
            recorder.published(&[b'0' + number; 36], &kind, 1, u64::from(number), 50 + u64::from(number), None);
        }
        let id = |number: u8| String::from_utf8(vec![b'0' + number; 36]).expect("digits");
        assert_eq!(recorder.event(&id(1)).map(|event| event.seq), None, "overwritten");
        let found = |recorder: &Recorder, number: u8| *recorder.event(&id(number)).expect("there");
        assert_eq!(found(&recorder, 4).kind(), ("kkkkkkkkkkkkkkkkkkkk", true));
        assert_eq!(found(&recorder, 9).kind(), ("kkkkkkkkkkkkkkkkkkkkkkk", false));
        assert_eq!(recorder.events_since_us(), 52);
        assert!(!recorder.is_taken_back(&found(&recorder, 4)));
        recorder.published(&[b'x'; 36], "k", 1, 4, 70, None);
        assert!(recorder.is_taken_back(&found(&recorder, 4)), "its number was given again");
    }
}
