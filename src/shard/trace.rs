//! The flight recorder on the side of connections: what of them is recorded, and what operators are told of it.

use super::connection::{Client, Connection};
use super::report::Ending;
use super::request::ExplainAsked;
use super::state::State;
use crate::hub::explain::{self, EventFound, EventSought, Place, Witness};
use crate::hub::name::RoomName;
use crate::hub::outbox::Protocol;
use crate::hub::recorder::{Gone, Mark, What};
use crate::hub::rooms::RoomId;
use crate::hub::trace::{ConnectionTrace, TraceAsked, trace};
use crate::ring::ConnKey;
use crate::wire::deflate;
use crate::wire::envelope::rfc3339;
use crate::wire::native::Parsed;
use crate::wire::ws;

impl State {
    // ---- what is recorded ----

    /// What of a message's payload is to be kept, should it turn out that it may be; it is decoded in place.
    pub(super) fn payload_to_keep(&self, text: &[u8]) -> Vec<u8> {
        let bytes = self.core.recorder.payload_bytes().min(text.len());
        text.get(..bytes).unwrap_or_default().to_vec()
    }

    /// A message came. What carries a token is recorded without its payload, and so is what could not be read: it may have
    /// been meant to carry one.
    pub(super) fn note_received(&mut self, conn: ConnKey, parsed: &Parsed<'_>, bytes: usize, payload: &[u8]) {
        let (command, payload) = match &parsed.command {
            Ok(command) if command.has_token() => (command.name(), &[][..]),
            Ok(command) => (command.name(), payload),
            Err(_) => ("unreadable", &[][..]),
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.core.recorder.traffic_with(conn, What::Received { command, bytes }, payload);
    }

    /// A connection is about to give back all that it holds.
    pub(super) fn note_closing(&mut self, conn: ConnKey, ending: Ending<'_>) {
        let Some((connection, client)) = self.open_client(conn).filter(|_| self.core.recorder.is_on()) else { return };
        let outbox = &connection.outbox;
        // What is with the kernel is sent before a close frame, but not on a socket that has failed.
        let cut_bytes = if ending.code.is_some() { 0 } else { outbox.queued_bytes() - outbox.events_bytes() };
        let session = &client.session;
        let gone = Gone {
            conn,
            client_id: session.client_id.clone(),
            session_id: session.session_id.clone(),
            user_id: session.identity.user_id.as_str().into(),
            opened_ms: client.opened_ms,
            closed_us: self.now.monotonic_us,
            unsent_bytes: outbox.events_bytes() as u64,
            cut_bytes: cut_bytes as u64,
            rooms: self.rooms_and_marks(client, conn),
        };
        for (room, _) in &gone.rooms {
            if let Some(id) = self.core.rooms().find(room) {
                self.note_leaving(conn, room, id);
            }
        }
        self.core.recorder.change(conn, What::Closing { code: ending.code, by: ending.by.as_str() });
        self.core.recorder.gone(gone);
    }

    /// A room's name as the table of rooms has it: a record that kept the copy of a message would keep that copy's memory,
    /// once for every connection.
    pub(super) fn name_in_table(&self, id: RoomId, name: &RoomName) -> RoomName {
        self.core.rooms().get(id).map_or_else(|| name.clone(), |room| room.name.clone())
    }

    /// A connection is about to lose its place in a room: what fan-outs under way still have for it, it won't get.
    pub(super) fn note_leaving(&mut self, conn: ConnKey, room: &RoomName, id: RoomId) {
        if let Some(after_seq) = self.core.given_up_to(id, conn) {
            let fell_behind = What::FellBehind { room: room.clone(), after_seq, is_replay: false };
            self.core.recorder.change(conn, fell_behind);
        }
    }

    fn rooms_and_marks(&self, client: &Client, conn: ConnKey) -> Vec<(RoomName, Mark)> {
        let rooms = client.rooms.iter().filter_map(|id| Some((*id, self.core.rooms().get(*id)?)));
        rooms.map(|(id, room)| (room.name.clone(), self.core.mark_of(id, conn))).collect()
    }

    // ---- what is told ----

    /// What is known of an event that may have got its number here.
    pub(super) fn find_event(&self, event_id: &str) -> EventSought {
        let recorder = &self.core.recorder;
        let since_ms = self.unix_ms(recorder.events_since_us());
        let Some(event) = recorder.event(event_id) else { return EventSought { since_ms, ..EventSought::default() } };
        let room = self.core.rooms().find_hash(event.room);
        let home = room.and_then(|room| room.home.as_deref()).filter(|home| home.is_durable());
        // Its number was given again: the journal had failed in between.
        if home.is_some() && recorder.is_taken_back(event) {
            return EventSought { taken_back: true, since_ms, ..EventSought::default() };
        }
        let (kind, is_whole_kind) = event.kind();
        let found = EventFound {
            id: event_id.into(),
            room: event.room,
            name: room.map(|room| room.name.as_str().into()),
            seq: event.seq,
            kind: kind.into(),
            is_whole_kind,
            received_us: event.received_us,
            exclude: event.exclude,
            awaits_journal: home.is_some_and(|home| event.seq > home.seq),
        };
        EventSought { found: Some(found), since_ms, ..EventSought::default() }
    }

    /// What is recorded of a client's connections here: `live`, and those that have ended.
    pub(super) fn trace(&self, asked: &TraceAsked, live: Option<ConnKey>) -> Vec<ConnectionTrace> {
        let recorder = &self.core.recorder;
        let told = |witness: Witness, session_id: &str, user_id: &str| {
            let (records, truncated) = trace(recorder, self.now, &witness, asked.limit);
            ConnectionTrace {
                session_id: session_id.to_owned(),
                user_id: user_id.to_owned(),
                shard: self.me.0,
                connected_at: self.time_text(witness.opened_us),
                closed_at: witness.closed_us.map(|at_us| self.time_text(at_us)),
                unsent_bytes: witness.unsent_bytes + witness.cut_bytes,
                truncated,
                records,
            }
        };
        let gone = recorder.gone_as(&asked.client_id);
        let mut all: Vec<_> = gone.map(|gone| told(witness_of(gone), &gone.session_id, &gone.user_id)).collect();
        if let Some((_, client)) = live.and_then(|conn| self.open_client(conn))
            && let Some(conn) = live
        {
            let session = &client.session;
            let witness = self.witness(conn, client);
            all.push(told(witness, &session.session_id, &session.identity.user_id));
        }
        all
    }

    /// What became of an event for a client's connections here; `under_way` is what of the live one's chunk the kernel has
    /// yet to take.
    pub fn explain(&self, asked: ExplainAsked, under_way: Option<&[u8]>) {
        let ExplainAsked { client_id, live, event, responder } = asked;
        let recorder = &self.core.recorder;
        let tell = |witness: &Witness| {
            let finding = explain::find(recorder, self.me, &event, witness);
            explain::tell(recorder, self.now, self.me, &client_id, &event, witness, finding)
        };
        let mut all: Vec<_> = recorder.gone_as(&client_id).map(|gone| tell(&witness_of(gone))).collect();
        if let Some((connection, client)) = live.and_then(|conn| self.open_client(conn))
            && let Some(conn) = live
        {
            let mut witness = self.witness(conn, client);
            self.look_for(&mut witness, connection, client, &event, under_way);
            all.push(tell(&witness));
        }
        responder.resolve(Ok(all));
    }

    /// Where an event is on its way to an open connection.
    fn look_for(
        &self,
        witness: &mut Witness,
        connection: &Connection,
        client: &Client,
        event: &EventFound,
        under_way: Option<&[u8]>,
    ) {
        // MessagePack has neither quotes nor colons around it.
        let is_msgpack = matches!(connection.outbox.protocol(), Protocol::Variant(variant) if variant.is_msgpack());
        let text = if is_msgpack { event.id.to_string() } else { format!("\"id\":\"{}\"", event.id) };
        let with_kernel = under_way.unwrap_or_default();
        if let Some(place) = memchr::memmem::find(&deflate::plain(with_kernel), text.as_bytes()) {
            witness.place = Place::BeingSent { bytes_ahead: place as u64 };
        } else if let Some(place) = connection.outbox.find(text.as_bytes()) {
            witness.place = Place::Waiting { bytes_ahead: (with_kernel.len() + place) as u64 };
        }
        let outbox = &connection.outbox;
        witness.unsent_bytes = outbox.events_bytes() as u64;
        witness.cut_bytes = (outbox.queued_bytes() - outbox.events_bytes()) as u64;
        witness.is_cut = under_way.is_some_and(begins_within_a_message);
        let rooms = client.rooms.iter().filter_map(|id| Some((*id, self.core.rooms().get(*id)?)));
        if let Some((id, room)) = rooms.into_iter().find(|(_, room)| room.name.hash() == event.room) {
            witness.fans_out = room.jobs > 0;
            let lags = client.under_way.iter().flat_map(|under_way| under_way.lags.iter());
            witness.lags_after = lags.into_iter().find(|lag| lag.room == id).map(|lag| lag.after_seq);
        }
    }

    fn witness(&self, conn: ConnKey, client: &Client) -> Witness {
        Witness {
            conn,
            opened_us: client.opened_ms * 1000,
            closed_us: None,
            unsent_bytes: 0,
            cut_bytes: 0,
            rooms: self.rooms_and_marks(client, conn),
            lags_after: None,
            place: Place::Nowhere,
            is_cut: false,
            fans_out: false,
        }
    }

    fn unix_ms(&self, at_us: u64) -> u64 {
        self.now.unix_ms.saturating_sub(self.now.monotonic_us.saturating_sub(at_us) / 1000)
    }

    fn time_text(&self, at_us: u64) -> String {
        String::from_utf8_lossy(&rfc3339(self.unix_ms(at_us))).into_owned()
    }
}

/// A connection that has ended.
fn witness_of(gone: &Gone) -> Witness {
    Witness {
        conn: gone.conn,
        opened_us: gone.opened_ms * 1000,
        closed_us: Some(gone.closed_us),
        unsent_bytes: gone.unsent_bytes,
        cut_bytes: gone.cut_bytes,
        rooms: gone.rooms.clone(),
        lags_after: None,
        place: Place::Nowhere,
        is_cut: false,
        fans_out: false,
    }
}

/// Whether bytes that end with a message begin within one: then no sequence of whole frames leads from their beginning to
/// their end.
fn begins_within_a_message(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some(next) = ws::frame_bytes(rest).and_then(|length| rest.get(length..)) else { return true };
        rest = next;
    }
    false
}
