//! Clients of the native protocol that want it in another form: their messages in, the hub's answers out. Events are made
//! in [`super::variants`].

use super::connection::{Client, Connection, Phase};
use super::state::State;
use crate::control::figures::Figures;
use crate::hub::batch::Batch;
use crate::hub::outbox::Protocol;
use crate::hub::rooms::RoomId;
use crate::ring::ConnKey;
use crate::wire::codes::ErrorCode;
use crate::wire::native::{Parsed, Refused};
use crate::wire::variant::Variant;
use crate::wire::{envelope, msgpack};

/// What is kept of the memory in which messages become JSON.
const UNPACKED_BYTES_KEPT: usize = 64 * 1024;

/// Ends the payload of a message to one client, and appends its frame in the form that the client takes.
pub(super) fn finish(protocol: Protocol, payload: &mut Vec<u8>, out: &mut Vec<u8>) {
    match protocol {
        Protocol::Variant(variant) => {
            payload.push(b'}');
            variant.write_message(payload, out);
        }
        _ => envelope::finish(payload, out),
    }
}

/// Counts a connection that is open from here on, or is no more.
pub(super) fn count(figures: &Figures, protocol: Protocol, is_open: bool) {
    let Protocol::Variant(variant) = protocol else { return };
    for (figure, counts) in [(&figures.batch, variant.is_batch()), (&figures.msgpack, variant.is_msgpack())] {
        match is_open {
            true => figure.add(u64::from(counts)),
            false => figure.sub(u64::from(counts)),
        }
    }
}

/// The rooms of which a connection wants events as changes, by id, each with the event since which it has all.
#[derive(Debug, Default)]
pub struct DeltaRooms(Vec<(RoomId, u64)>);

/// It has got no event since it became a member, or has caught up.
const NOTHING_YET: u64 = u64::MAX;

impl DeltaRooms {
    fn place(&self, room: RoomId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&room.0, |(id, _)| id.0)
    }

    fn begin(&mut self, room: RoomId) {
        match self.place(room) {
            Ok(place) => self.0.iter_mut().skip(place).take(1).for_each(|(_, after_seq)| *after_seq = NOTHING_YET),
            Err(place) => self.0.insert(place, (room, NOTHING_YET)),
        }
    }

    fn forget(&mut self, room: RoomId) {
        if let Ok(place) = self.place(room) {
            self.0.remove(place);
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Client {
    /// Whether it wants a room's events as changes.
    pub fn wants_deltas(&self, room: RoomId) -> bool {
        self.under_way.as_ref().is_some_and(|all| all.deltas.place(room).is_ok())
    }

    /// It wants them so no more, or is no member.
    pub fn forget_deltas(&mut self, room: RoomId) {
        if let Some(under_way) = self.under_way.as_mut() {
            under_way.deltas.forget(room);
            self.tidy();
        }
    }
}

impl Connection {
    /// The event since which it has, or is about to be given, all of a room; none where it does not want changes. The first
    /// live batch that comes to a member is followed by all others, unless it falls behind.
    pub(super) fn has_all_after(&mut self, room: RoomId, batch: &Batch) -> Option<u64> {
        let Phase::Open(client) = &mut self.phase else { return None };
        let deltas = &mut client.under_way.as_mut()?.deltas;
        let place = deltas.place(room).ok()?;
        let (_, after_seq) = deltas.0.get_mut(place)?;
        if *after_seq == NOTHING_YET {
            *after_seq = batch.events.first().map_or(NOTHING_YET, |event| event.seq.saturating_sub(1));
        }
        Some(*after_seq)
    }
}

impl State {
    /// Whether a client may have events as changes, if it wants them so.
    pub(super) fn may_have_deltas(&self, conn: ConnKey, wants: bool) -> Result<(), Refused> {
        if wants && self.speaks_socketio(conn) {
            return Err(Refused::new(ErrorCode::BadCommand, "data.delta is for clients of the native protocol"));
        }
        Ok(())
    }

    /// A client is a member of a room, and wants its events as changes, or does not.
    pub(super) fn entered_for_deltas(&mut self, conn: ConnKey, room: RoomId, wants: bool) -> RoomId {
        if !wants || self.speaks_socketio(conn) {
            if let Some(client) = self.client_mut(conn) {
                client.forget_deltas(room);
            }
            return room;
        }
        let Some(client) = self.client_mut(conn) else { return room };
        client.under_way().deltas.begin(room);
        self.core.want_deltas(room);
        if let Some(connection) = self.connections.get_mut(conn)
            && connection.outbox.protocol() == Protocol::Native
        {
            connection.outbox.becomes(Protocol::Variant(Variant::Plain));
        }
        room
    }

    /// A client that lagged in a room gets what is live again.
    pub(super) fn caught_up_for_deltas(&mut self, conn: ConnKey, room: RoomId) {
        if self.client_mut(conn).is_some_and(|client| client.wants_deltas(room)) {
            self.entered_for_deltas(conn, room, true);
        }
    }

    pub(super) fn speaks_msgpack(&self, conn: ConnKey) -> bool {
        self.variant_of(conn).is_some_and(Variant::is_msgpack)
    }

    fn variant_of(&self, conn: ConnKey) -> Option<Variant> {
        match self.connections.get(conn)?.outbox.protocol() {
            Protocol::Variant(variant) => Some(variant),
            _ => None,
        }
    }

    /// A binary message of a client that speaks MessagePack: from here on it is as if it had been sent as JSON.
    pub(super) fn packed_command(&mut self, conn: ConnKey, message: &[u8]) {
        let limits = &self.settings.config.limits;
        let (depth_max, bytes_max) = (limits.depth_max, limits.message_bytes_max);
        let mut text = std::mem::take(&mut self.unpacked);
        text.clear();
        match msgpack::read(message, depth_max, bytes_max, &mut text) {
            Ok(()) => self.command(conn, &mut text),
            Err(unreadable) => {
                let parsed = Parsed { reference: None, command: Err(unreadable.refused()) };
                self.unreadable_command(conn, parsed, message.len());
            }
        }
        if text.capacity() <= UNPACKED_BYTES_KEPT {
            self.unpacked = text;
        }
    }

    /// Such a message that can't be read: like any other it counts against the rate.
    fn unreadable_command(&mut self, conn: ConnKey, parsed: Parsed<'_>, bytes: usize) {
        let Some(over_rate) = self.count_against_rate(conn) else { return };
        self.note_received(conn, &parsed, bytes, &[]);
        match over_rate {
            None => self.carry_out(conn, parsed),
            Some(retry_after_ms) => self.refuse_rate(conn, None, retry_after_ms),
        }
        self.drain_local();
    }
}
