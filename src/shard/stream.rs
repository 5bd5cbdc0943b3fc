//! Streams of server-sent events (`GET /events`): what they are while they are let in, how a room's events become theirs,
//! and what is different in the life of a connection that only reads.
//!
//! A stream's id names a place in all of its rooms, so that one can be given only when all rooms have answered. Until then
//! those that have are parked, as for a slow reader; from there on the stream reads their logs up to where they are, and
//! whatever it asked to be told of the past comes the same way.
//!
//! All events of a stream go in one lane: an urgent one that overtook others would carry an id that skips them.

use std::sync::Arc;

use super::commands::known_room;
use super::connection::{Client, Connection, Lag, LagWaits, Phase};
use super::report::Ending;
use super::state::State;
use crate::control::store::ClosedBy;
use crate::hub::batch::Batch;
use crate::hub::ids::Ids;
use crate::hub::message::{Join, JoinClaim, Message, RoomState, Ticket};
use crate::hub::name::RoomName;
use crate::hub::outbox::{Full, Lane, Protocol};
use crate::hub::rooms::RoomId;
use crate::ring::ConnKey;
use crate::session::handshake::Admit;
use crate::session::stream::{Begins, StreamAsked};
use crate::wire::codes::{ErrorCode, close};
use crate::wire::envelope::{self, write_gap};
use crate::wire::refusal::Refusal;
use crate::wire::sse::{self, AroundSeq, Mark};

/// What a client may send behind its request, to no effect, before it is closed.
const IGNORED_BYTES_MAX: u64 = 64 * 1024;

/// After how long a client that lost its stream comes back: a share of the second number is added to the first, so that a
/// crowd does not come at once.
const RETRY_MS: (u64, u64) = (2000, 2000);

/// A browser that is told to come back at once tries without end.
const RECONNECT_MS_MIN: u64 = 500;

/// A stream's rooms, in the order of the request, and how far it is in each.
#[derive(Debug)]
pub struct Stream {
    rooms: Vec<(RoomId, Mark)>,
}

/// How often a stream looks whether there is memory again.
const MEMORY_WAIT_MS: u64 = 100;

/// Stands for a room that a stream is in no more. The mark keeps its place.
const NO_ROOM: RoomId = RoomId(u32::MAX);

impl Stream {
    fn marks(&self) -> impl Iterator<Item = Mark> {
        self.rooms.iter().map(|(_, mark)| *mark)
    }

    /// Gives up a room: its place in the table may become another one's.
    pub fn forget_room(&mut self, room: RoomId) {
        for (id, _) in self.rooms.iter_mut().filter(|(id, _)| *id == room) {
            *id = NO_ROOM;
        }
    }

    /// What stands around the number in the ids of a room's events, and whether the stream is in that room: what comes of
    /// one that it has left has no id.
    pub fn around(&self, room: RoomId) -> (AroundSeq, bool) {
        let place = self.rooms.iter().position(|(id, _)| *id == room);
        (AroundSeq::new(self.marks(), place.unwrap_or(self.rooms.len())), place.is_some())
    }

    /// It was given all of a room up to an event.
    pub fn reached(&mut self, room: RoomId, seq: u64, another: Option<u64>) {
        if let Some((_, mark)) = self.rooms.iter_mut().find(|(id, _)| *id == room) {
            *mark = Mark { epoch: another.unwrap_or(mark.epoch), seq };
        }
    }
}

/// Appends a batch as streams get it.
pub(super) fn write(out: &mut Vec<u8>, around: &AroundSeq, is_of_room: bool, batch: &Batch) {
    for event in &batch.events {
        if is_of_room {
            sse::write_event(out, around, event.seq, batch.payload(event));
        } else {
            sse::write_unmarked(out, batch.payload(event));
        }
    }
}

impl Client {
    /// Its stream, if it is one.
    pub fn stream_mut(&mut self) -> Option<&mut Stream> {
        self.under_way.as_mut()?.stream.as_mut()
    }
}

/// A stream whose rooms are being joined.
#[derive(Debug)]
pub struct Opening {
    rooms: Vec<OpeningRoom>,
}

#[derive(Debug)]
struct OpeningRoom {
    name: RoomName,
    from: From,
    id: RoomId,
    mark: Mark,
    /// It is parked: what comes after the mark is read from the log.
    lags: bool,
    /// Why it can't be told what was missed, if that is so.
    gap: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
enum From {
    Now,
    Since,
    After(Mark),
    Elsewhere,
}

impl OpeningRoom {
    /// The room is joined. True where it is to be parked.
    fn joined(&mut self, state: &RoomState, first_replayed: Option<u64>, is_last: bool) -> bool {
        let (after, gap) = match self.from {
            From::Now => (state.seq, None),
            From::Since => (first_replayed.map_or(state.seq, |seq| seq.saturating_sub(1)), None),
            From::After(mark) if mark.epoch == state.epoch && mark.seq <= state.seq => (mark.seq, None),
            // Another life of the log: all of it is new, and how much of the other one was missed can't be known.
            From::After(_) => (0, Some("epoch")),
            From::Elsewhere => (state.seq, Some("cursor")),
        };
        self.gap = gap;
        self.mark = Mark { epoch: state.epoch, seq: after };
        self.lags = !is_last || after < state.seq;
        self.lags
    }
}

impl State {
    /// Whether a client may have the stream it asks for.
    pub(super) fn may_stream(&self, admit: &Admit) -> Result<(), Refusal> {
        let Some(asked) = &admit.stream else { return Ok(()) };
        let permissions = &admit.identity.permissions;
        if !permissions.may_subscribe() {
            return Err(Refusal::forbidden("websocket:subscribe is needed to subscribe"));
        }
        for room in &asked.rooms {
            let (kind, name) = known_room(&self.settings.config, room)
                .map_err(|refused| Refusal::of_command(400, ErrorCode::BadRoom, refused.message))?;
            // A stream has no session that anybody could send to, so that no session's room is its own.
            if !permissions.may_join(kind, name, &admit.identity.user_id, "") {
                let message = format!("a permission for {room} is missing");
                return Err(Refusal::of_command(403, ErrorCode::Forbidden, message));
            }
        }
        Ok(())
    }

    /// The directories agree: the stream's rooms are joined. Nothing where the connection wants no stream.
    pub(super) fn join_stream(&mut self, conn: ConnKey) -> bool {
        let (address, hasher) = (self.address(conn), self.core.hasher());
        let Some(Phase::Admission(admission)) = self.connections.get_mut(conn).map(|one| &mut one.phase) else {
            return false;
        };
        let Some(StreamAsked { rooms, begins, .. }) = admission.admit.stream.as_deref() else { return false };
        let mut opening = Vec::with_capacity(rooms.len());
        for (place, room) in rooms.iter().enumerate() {
            let from = match begins {
                Begins::Now => From::Now,
                Begins::Since(_) => From::Since,
                Begins::After(marks) => marks.get(place).map_or(From::Elsewhere, |mark| From::After(*mark)),
                Begins::Elsewhere => From::Elsewhere,
            };
            let mark = Mark { epoch: 0, seq: 0 };
            opening.push(OpeningRoom { name: hasher.room(room), from, id: NO_ROOM, mark, lags: false, gap: None });
        }
        let since = match begins {
            Begins::Since(since) => Some(since.clone()),
            _ => None,
        };
        let claim = |room: &OpeningRoom| match room.from {
            From::After(mark) => JoinClaim::Given { epoch: mark.epoch, seq: mark.seq },
            _ => JoinClaim::None,
        };
        let names: Vec<(RoomName, JoinClaim)> = opening.iter().map(|room| (room.name.clone(), claim(room))).collect();
        // As many as the option allows, which is less than a byte holds.
        admission.waiting = u8::try_from(names.len()).unwrap_or(u8::MAX);
        admission.opening = Some(Box::new(Opening { rooms: opening }));
        for (room, claim) in names {
            let ticket = Ticket::Admission;
            let join = Join { room: room.clone(), address, claim, selection: None, since: since.clone(), ticket };
            self.core.send_home(&room, Message::Join(Box::new(join)));
        }
        true
    }
}

impl Opening {
    /// A room of the stream is joined. True where it is to be parked.
    pub fn joined(
        &mut self,
        (name, id): (&RoomName, RoomId),
        state: &RoomState,
        replay: Option<&[Arc<Batch>]>,
        is_last: bool,
    ) -> bool {
        let Some(room) = self.rooms.iter_mut().find(|room| room.name == *name) else { return false };
        room.id = id;
        let first = replay.and_then(|batches| batches.first()?.events.first()).map(|event| event.seq);
        room.joined(state, first, is_last)
    }

    /// Appends what a stream begins with: the answer's head, what it missed for good, and its place.
    pub fn write(&self, out: &mut Vec<u8>, asked: &StreamAsked, retry_ms: u64, ids: &mut Ids, unix_ms: u64) -> u64 {
        sse::write_head(out, asked.varies, asked.reader.as_ref());
        sse::write_retry(out, retry_ms);
        let (mut payload, mut gaps) = (Vec::new(), 0);
        for room in &self.rooms {
            let Some(reason) = room.gap else { continue };
            // How far the other log went, and where in this one the reader was, can't be known.
            let to_seq = (reason == "cursor").then_some(room.mark.seq);
            envelope::begin(&mut payload, "gap", &ids.stamp(unix_ms), None);
            write_gap(&mut payload, room.name.as_str(), (None, to_seq), reason, None);
            payload.push(b'}');
            sse::write_notice(out, "gap", &payload);
            gaps += 1;
        }
        // Behind the gaps: who is cut off between has the old id, and is told of them again.
        sse::write_id(out, self.rooms.iter().map(|room| room.mark));
        out.push(b'\n');
        gaps
    }

    /// The open stream, and what of it is still to be read from logs.
    pub fn finish(self) -> (Stream, Vec<Lag>) {
        let lagging = self.rooms.iter().filter(|room| room.lags);
        let lags = lagging.map(|room| Lag { room: room.id, after_seq: room.mark.seq, waits: LagWaits::Outbox });
        let lags = lags.collect();
        (Stream { rooms: self.rooms.into_iter().map(|room| (room.id, room.mark)).collect() }, lags)
    }
}

/// After how long this client is to come back should its stream break.
pub(super) fn retry_ms(conn: ConnKey) -> u64 {
    let mixed = u64::from(conn.slot).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    RETRY_MS.0 + ((RETRY_MS.1 * mixed) >> 24)
}

impl State {
    pub(super) fn is_stream(&self, conn: ConnKey) -> bool {
        self.connections.get(conn).is_some_and(|connection| connection.outbox.protocol() == Protocol::Stream)
    }

    /// Whether what it gets is not the native frames that all share.
    pub(super) fn is_encoded_for(&self, conn: ConnKey) -> bool {
        self.connections.get(conn).is_some_and(|connection| connection.outbox.protocol() != Protocol::Native)
    }

    /// Whether nothing more may be encoded for some connections alone.
    fn is_memory_short(&self) -> bool {
        self.variant_memory.bytes() > self.settings.config.limits.outbox_shard_bytes_max
    }

    /// Who could read on from a log, but not in native frames, waits until there is memory for it. True where that is so.
    pub(super) fn waits_for_memory(&mut self, conn: ConnKey) -> bool {
        if !self.is_encoded_for(conn) || !self.is_memory_short() {
            return false;
        }
        let due_ms = self.now_ms() + MEMORY_WAIT_MS;
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.due_ms = connection.due_ms.min(due_ms);
            self.timers.schedule(conn, &mut connection.alarm, connection.due_ms);
        }
        true
    }

    /// Looks whether one that waited for memory can read on; when to look again.
    pub(super) fn read_on(&mut self, conn: ConnKey) -> u64 {
        let is_idle = |one: &Connection| one.outbox.events_bytes() == 0 && !one.outbox.is_sending();
        let could = self.connections.get(conn).is_some_and(is_idle);
        if !could || !self.client_mut(conn).is_some_and(|client| client.has_lag()) {
            return u64::MAX;
        }
        if self.is_memory_short() {
            return self.now_ms() + MEMORY_WAIT_MS;
        }
        self.ask_to_catch_up(conn);
        u64::MAX
    }

    /// Bytes behind the request mean nothing.
    pub(super) fn ignore(&mut self, conn: ConnKey) {
        let head_bytes_max = self.settings.config.limits.header_bytes_max as u64;
        let Some(connection) = self.connections.get(conn) else { return };
        if connection.received_bytes > head_bytes_max + IGNORED_BYTES_MAX {
            self.close(conn, close::POLICY, "nothing is to be sent on a stream");
        }
    }

    /// The reader has gone, as readers do.
    pub(super) fn stream_ended(&mut self, conn: ConnKey) {
        // There is no code to be told.
        self.figures.closes.add_code(1005);
        self.release(conn, Ending { code: None, reason: "", by: ClosedBy::Client });
        self.abandon(conn);
    }

    /// Something goes out, so that nobody between takes the stream for dead and a reader that is gone is noticed.
    pub(super) fn comment(&mut self, conn: ConnKey) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.outbox.answers().extend_from_slice(sse::COMMENT);
        if connection.outbox.mark_dirty() {
            self.dirty.push(conn);
        }
    }

    /// Appends a close event to what is to be sent; one of a drain says when to come back.
    pub(super) fn write_stream_close(out: &mut Vec<u8>, code: u16, reason: &str) {
        if let Some(reconnect_ms) = reason.parse::<u64>().ok().filter(|_| code == close::DRAINING) {
            sse::write_retry(out, reconnect_ms.max(RECONNECT_MS_MIN));
        }
        sse::write_close(out, code, reason);
    }

    /// A gap in a room's events, as this stream is told: the id stands behind it.
    pub(super) fn push_stream_gap(
        &mut self,
        conn: ConnKey,
        room: RoomId,
        to_seq: u64,
        another: Option<u64>,
    ) -> Result<(), Full> {
        let bytes_max = self.outbox_bytes_max(Lane::Ordinary);
        let State { variant_memory, connections, dirty, payload, .. } = self;
        let Some(connection) = connections.get_mut(conn) else { return Ok(()) };
        let Connection { outbox, phase, .. } = connection;
        let Phase::Open(client) = phase else { return Ok(()) };
        let Some(stream) = client.stream_mut() else { return Ok(()) };
        let mut out = Vec::new();
        let here = |mark: &Mark| Mark { epoch: another.unwrap_or(mark.epoch), seq: to_seq };
        let at = |(id, mark): &(RoomId, Mark)| if *id == room { here(mark) } else { *mark };
        sse::write_id(&mut out, stream.rooms.iter().map(at));
        sse::write_notice(&mut out, "gap", payload);
        outbox.push_events(&variant_memory.share(out), Lane::Ordinary, bytes_max)?;
        stream.reached(room, to_seq, another);
        if outbox.mark_dirty() {
            dirty.push(conn);
        }
        Ok(())
    }
}
