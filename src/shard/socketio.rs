//! What a connection of Socket.IO has beside a client's state, how a room's events become its packets, and which of its
//! namespaces they go to.

use std::net::IpAddr;
use std::sync::Arc;

use super::connection::{Client, Connection, Phase};
use super::polling::Polling;
use crate::auth::Identity;
use crate::control::hooks::RequestTold;
use crate::hub::batch::{Address, Batch};
use crate::hub::outbox::Protocol;
use crate::hub::rooms::RoomId;
use crate::session::ClientId;
use crate::session::handshake::{EnginePath, Offered};
use crate::session::socketio::{AnswerTo, Engine, NAMESPACES_MAX, Space, Spaces, Terms, Visit};
use crate::wire::deflate::plain;
use crate::wire::engineio::{Packet, PacketKind, PayloadWriter, SEPARATOR};
use crate::wire::native::Reference;
use crate::wire::outlet::Outlet;
use crate::wire::socketio::{Header, Kind, event_payload, packet_frame, write_packet};

/// About how many bytes a packet has beside an event's JSON: its type, namespace and name, and what stands around them.
pub(super) const AROUND_BYTES: usize = 64;

/// What a client may send while it is being let into a namespace.
const HELD_BYTES_MAX: usize = 256 * 1024;

/// Messages of a session that is in no namespace: more than a client has reason to send.
const MESSAGES_BEFORE_MAX: u8 = 100;

/// The side of a connection that speaks Socket.IO.
#[derive(Debug)]
pub struct SocketIo {
    /// The session of Engine.IO.
    pub engine: Engine,
    /// Its id.
    pub sid: Box<str>,
    /// At which path it was opened.
    pub path: EnginePath,
    /// Binary messages go as base64 in text frames.
    pub base64: bool,
    /// Messages that came while it was in no namespace.
    messages_before: u8,
    /// The namespaces that an embedding program serves and the client is in, with its id there; rooms' events don't go there.
    pub handled: Vec<(Space, ClientId)>,
    /// Which of the client's visits to each namespace is the present one, or will be the next.
    visits: [Visit; NAMESPACES_MAX],
    /// The namespace that the client has left last.
    last_left: Spaces,
    /// Who was let in last.
    pub identity: Option<Arc<Identity>>,
    /// What the request for it said.
    pub entry: Box<Entry>,
    /// How it is polled; none on a WebSocket.
    pub polling: Option<Box<Polling>>,
    /// The namespace that it is being let into.
    pub granting: Option<Box<Granting>>,
    /// Packets that came meanwhile, each with its separator before it.
    held: Vec<u8>,
    /// While the rooms of a session that was taken up are about to be joined: the namespaces that those are of.
    pub recovers: Spaces,
    /// Those of them that the client is in again, and had not left for its library.
    pub recovered: Spaces,
}

/// What the request for a session of Engine.IO said: it holds for every namespace that is asked for.
#[derive(Debug)]
pub struct Entry {
    /// Who the client is.
    pub offered: Offered,
    /// The address that it counts for.
    pub peer: Option<IpAddr>,
    /// What the backend is told, where it is asked.
    pub told: Option<Box<RequestTold>>,
    /// The id that the client wants to have.
    pub client_id: Option<Box<str>>,
    /// The session that it names.
    pub session_id: Option<Box<str>>,
}

/// A client on its way into its first namespace.
#[derive(Debug)]
pub struct Granting {
    /// Which.
    pub space: Space,
    /// What it brought along, as JSON.
    pub auth: Box<[u8]>,
    /// The session that it wants to take up, as it named it.
    pub pid: Option<Box<str>>,
    /// The rooms it was put into beyond those that everybody is in.
    pub more_rooms: Vec<Box<str>>,
    /// It is let in, and the session's home was asked for the session.
    pub recovers: bool,
}

/// In which form a client of Socket.IO takes events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The namespaces that they go to.
    pub spaces: Spaces,
    /// It polls: packets have separators, not frames.
    pub polls: bool,
}

impl Form {
    /// Appends a batch's events but for those that a connection must not get.
    pub fn write(self, out: &mut Vec<u8>, namespaces: &[Box<str>], batch: &Batch, without: Option<Address>) {
        for event in batch.events.iter().filter(|event| without.is_none() || event.exclude != without) {
            let payload = event_payload(batch.kind(event), batch.payload(event));
            for space in self.spaces.iter() {
                let namespace = namespaces.get(space.index()).map_or("/", |name| name);
                let header = Header::new(Kind::Event, namespace);
                if self.polls {
                    write_packet(PayloadWriter::continued(out).begin_packet(), &header, &payload);
                } else {
                    packet_frame(out, &header, &payload);
                }
            }
        }
    }
}

/// To whom within a connection a message of the hub's goes.
#[derive(Debug, Clone, Copy)]
pub enum Told {
    /// Whoever sent a command.
    Answer(AnswerTo),
    /// Everybody in these namespaces.
    Spaces(Spaces),
}

impl SocketIo {
    /// A session as it begins.
    pub fn new(engine: Engine, sid: Box<str>, path: EnginePath, base64: bool, entry: Entry) -> SocketIo {
        SocketIo {
            engine,
            sid,
            path,
            base64,
            messages_before: 0,
            handled: Vec::new(),
            visits: [Visit::default(); NAMESPACES_MAX],
            last_left: Spaces::default(),
            identity: None,
            entry: Box::new(entry),
            polling: None,
            granting: None,
            held: Vec::new(),
            recovers: Spaces::default(),
            recovered: Spaces::default(),
        }
    }

    /// The namespaces that what the hub says goes to.
    pub fn spaces(&self) -> Spaces {
        self.handled.iter().fold(self.engine.reached(), |spaces, (space, _)| spaces.without(*space))
    }

    /// The client's id in a namespace that an embedding program serves; none where the hub serves it.
    pub fn handled_id(&self, space: Space) -> Option<&ClientId> {
        self.handled.iter().find(|(one, _)| *one == space).map(|(_, id)| id)
    }

    /// The same, or the one that was left last.
    pub fn spaces_or_last(&self) -> Spaces {
        Some(self.spaces()).filter(|spaces| !spaces.is_empty()).unwrap_or(self.last_left)
    }

    /// Appends a message of the hub's, in each namespace that it goes to.
    pub fn write(&self, to: Told, kind: &str, object: &[u8], terms: &Terms<'_>, outlet: &mut Outlet<'_>) {
        let name = event_name(kind);
        match to {
            Told::Answer(to) if to.visit != self.visit(to.space) => {}
            Told::Answer(to) => {
                self.engine.answer(to, name, object, terms, outlet);
            }
            Told::Spaces(spaces) => {
                for space in spaces.iter() {
                    self.engine.event(space, name, object, terms, outlet);
                }
            }
        }
    }

    /// The present visit to a namespace, or the next.
    pub fn visit(&self, space: Space) -> Visit {
        self.visits.get(space.index()).copied().unwrap_or_default()
    }

    /// Whether that visit to a namespace is not over.
    pub fn is_visiting(&self, (space, visit): (Space, Visit)) -> bool {
        self.engine.is_in(space) && self.visit(space) == visit
    }

    /// The client has left a namespace.
    pub fn left(&mut self, space: Space) {
        self.handled.retain(|(one, _)| *one != space);
        self.last_left = Spaces::default().with(space);
        if let Some(visit) = self.visits.get_mut(space.index()) {
            *visit = visit.next();
        }
    }

    /// Counts a message that came while the client is in no namespace; false where there were too many.
    pub fn count_before(&mut self) -> bool {
        self.messages_before = self.messages_before.saturating_add(1);
        self.messages_before <= MESSAGES_BEFORE_MAX
    }

    /// It is in a namespace again.
    pub fn count_anew(&mut self) {
        self.messages_before = 0;
    }

    /// Keeps a packet until the client is let in or refused; false where there are too many.
    pub fn hold(&mut self, packet: &Packet<'_>) -> bool {
        let bytes = match packet {
            Packet::Text { data, .. } => data.len(),
            Packet::Binary(data) => data.len() * 4 / 3,
        };
        // One alone may be as large as messages are.
        if !self.held.is_empty() && self.held.len() + bytes > HELD_BYTES_MAX {
            return false;
        }
        let mut payload = PayloadWriter::continued(&mut self.held);
        match packet {
            Packet::Text { kind, data } => payload.text(*kind, data),
            Packet::Binary(data) => payload.binary(data),
        }
        true
    }

    /// What was kept.
    pub fn take_held(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// The CONNECTs for other namespaces that were the first to be kept: a library asks for all of its namespaces in one
    /// breath, before it sends anything else.
    pub fn take_held_connects(&mut self) -> Vec<u8> {
        let mut bytes = 0;
        while let Some(rest) = self.held.get(bytes..)
            && rest.starts_with(&[SEPARATOR, PacketKind::Message as u8, Kind::Connect as u8])
        {
            let packet = rest.get(1..).unwrap_or_default();
            bytes += 1 + memchr::memchr(SEPARATOR, packet).unwrap_or(packet.len());
        }
        let rest = self.held.split_off(bytes);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Events of Socket.IO are named in two words with a dot, as the hub's types are; the greeting is the one that is not.
fn event_name(kind: &str) -> &str {
    match kind {
        "connection_established" => "connection.established",
        kind => kind,
    }
}

/// Takes the packets for a connection.
pub(super) fn outlet(protocol: Protocol, base64: bool, out: &mut Vec<u8>) -> Outlet<'_> {
    match protocol {
        Protocol::Polling => Outlet::Payload(PayloadWriter::continued(out)),
        _ => Outlet::WebSocket { out, base64 },
    }
}

/// The namespaces that subscribed to a room, where a client is in several.
#[derive(Debug, Default)]
pub struct RoomSpaces(Vec<(RoomId, Spaces)>);

impl RoomSpaces {
    fn of(&self, room: RoomId) -> Option<Spaces> {
        self.0.iter().find(|(id, _)| *id == room).map(|(_, spaces)| *spaces)
    }

    /// These namespaces have.
    pub fn put(&mut self, room: RoomId, spaces: Spaces) {
        self.forget(room);
        self.0.push((room, spaces));
    }

    /// A namespace has subscribed.
    pub fn add(&mut self, room: RoomId, space: Space) {
        match self.0.iter_mut().find(|(id, _)| *id == room) {
            Some((_, spaces)) => *spaces = spaces.with(space),
            None => self.0.push((room, Spaces::default().with(space))),
        }
    }

    /// A namespace wants the room no more.
    pub fn remove(&mut self, room: RoomId, space: Space) {
        for (_, spaces) in self.0.iter_mut().filter(|(id, _)| *id == room) {
            *spaces = spaces.without(space);
        }
    }

    /// Whether a room is noted, and some namespace wants it.
    pub fn is_wanted(&self, room: RoomId) -> bool {
        self.of(room).is_some_and(|spaces| !spaces.is_empty())
    }

    /// The connection is in that room no more.
    pub fn forget(&mut self, room: RoomId) {
        self.0.retain(|(id, _)| *id != room);
    }

    /// The rooms that only one namespace wants.
    pub fn only(&self, space: Space) -> Vec<RoomId> {
        let alone = Spaces::default().with(space);
        self.0.iter().filter(|(_, spaces)| *spaces == alone).map(|(id, _)| *id).collect()
    }

    /// Takes a namespace out of every room.
    pub fn leave(&mut self, space: Space) {
        for (_, spaces) in &mut self.0 {
            *spaces = spaces.without(space);
        }
    }
}

impl Client {
    /// Whether it is noted which of its namespaces have subscribed to which room.
    pub fn divides_rooms(&self) -> bool {
        self.under_way.as_ref().is_some_and(|all| all.spaces.is_some())
    }

    /// Which namespaces have subscribed to a room; none where that was not noted, since all get its events.
    pub fn spaces_of(&self, room: RoomId) -> Option<Spaces> {
        self.under_way.as_ref()?.spaces.as_ref()?.of(room)
    }
}

impl Connection {
    /// The namespaces of Socket.IO that a room's events go to. Asked for each delivery: what it depends on lies elsewhere in
    /// memory than the connection, so that the usual answer is kept here.
    #[inline]
    pub fn spaces_of(&mut self, room: RoomId) -> Spaces {
        if let Some(spaces) = self.outbox.space() {
            debug_assert_eq!(spaces, self.find_spaces_of(room).0, "a change was not told");
            return spaces;
        }
        let (spaces, is_everywhere) = self.find_spaces_of(room);
        self.outbox.note_spaces(if is_everywhere { spaces } else { Spaces::default() });
        spaces
    }

    /// The same, and whether it holds for every room.
    fn find_spaces_of(&self, room: RoomId) -> (Spaces, bool) {
        let Some(socketio) = &self.socketio else { return (Spaces::default(), false) };
        let spaces = socketio.spaces();
        match &self.phase {
            Phase::Open(client) if client.divides_rooms() => {
                (client.spaces_of(room).map_or(spaces, |subscribed| subscribed.and(spaces)), false)
            }
            _ => (spaces, true),
        }
    }

    /// To which namespaces a room's events go may be another than before.
    pub(super) fn spaces_change(&mut self) {
        self.outbox.note_spaces(Spaces::default());
    }

    /// Whether it is a session that is polled.
    pub fn polls(&self) -> bool {
        self.outbox.protocol() == Protocol::Polling
    }

    /// Whether a command with that reference is to be answered, where there is no error to tell.
    pub fn wants_answer(&self, reference: Option<&Reference>) -> bool {
        match self.outbox.protocol() {
            Protocol::SocketIo | Protocol::Polling => {
                reference.and_then(AnswerTo::of).is_some_and(|to| to.id.is_some())
            }
            Protocol::Native | Protocol::Variant(_) | Protocol::Stream => reference.is_some(),
        }
    }
}

/// The first event of each room that a client was not even sent, or may not have got; none where the room's log has become
/// another one among them, of which it has got nothing.
pub(super) fn first_unsent(connection: &Connection) -> Vec<(Box<str>, Option<u64>)> {
    let mut first: Vec<(Box<str>, Option<u64>)> = Vec::new();
    let polling = connection.socketio.as_deref().and_then(|socketio| socketio.polling.as_deref());
    let owed = polling.into_iter().flat_map(Polling::owed).map(|chunk| &chunk[..]);
    // What a poll could not take goes with the answers once its session has a WebSocket.
    let waiting = std::iter::once(connection.outbox.waiting_answers()).chain(connection.outbox.waiting());
    for chunk in owed.chain(waiting) {
        crate::wire::socketio::each_event(&plain(chunk), connection.polls(), |room, seq| {
            match first.iter_mut().find(|(known, _)| **known == *room) {
                Some((_, first)) => *first = first.filter(|_| seq.is_some()),
                None => first.push((room.into(), seq)),
            }
        });
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::batch::{FrameMemory, OpenBatch};
    use crate::hub::name::{NameHasher, ShardId};
    use crate::ring::ConnKey;
    use crate::wire::engineio::{begin_payload, payload_to_frames};
    use crate::wire::envelope::{Event, Stamp, rfc3339};
    use crate::wire::ws;

    fn spaces(bits: u32) -> Spaces {
        Spaces::of_bits(bits)
    }

    fn space(index: usize) -> Space {
        spaces(1 << index).iter().next().expect("one")
    }

    fn address(slot: u32) -> Address {
        Address { shard: ShardId(0), conn: ConnKey { slot, generation: 1 } }
    }

    fn batch(excluded: [Option<u32>; 3]) -> Batch {
        let stamp = Stamp { id: [b'i'; 36], timestamp: rfc3339(0) };
        let (mut open, long) = (OpenBatch::default(), format!("\"{}\"", "x".repeat(300)));
        for (seq, (exclude, data)) in excluded.into_iter().zip(["{}", &long, "3"]).enumerate() {
            let event = Event { room: "a:b", kind: "a.b", seq: seq as u64 + 1, data: data.as_bytes() };
            open.push(&stamp, &event, exclude.map(address), 0);
        }
        open.seal(NameHasher::new(0).room("a:b"), &FrameMemory::default(), 0)
    }

    /// The packets of a batch for these namespaces, as a poll gets them; a WebSocket is seen to get the same.
    fn packets(namespaces: u32, batch: &Batch, without: Option<Address>) -> Vec<String> {
        let names: [Box<str>; 3] = ["/".into(), "/ws".into(), "/admin".into()];
        let (mut frames, mut payload, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        let form = |polls| Form { spaces: spaces(namespaces), polls };
        form(false).write(&mut frames, &names, batch, without);
        form(true).write(&mut payload, &names, batch, without);
        payload_to_frames(&payload, false, &mut expected);
        assert_eq!(frames, expected);
        if payload.is_empty() {
            return Vec::new();
        }
        let text = String::from_utf8(begin_payload(payload.into()).to_vec()).expect("text");
        text.split(char::from(SEPARATOR)).map(str::to_owned).collect()
    }

    #[test]
    fn a_batch_is_written_event_by_event_for_each_namespace() {
        let batch = batch([None; 3]);
        let object = |event: usize| {
            let frame = batch.frame(&batch.events[event]);
            String::from_utf8(frame[ws::header_bytes_of(&frame)..].to_vec()).expect("text")
        };
        let packet = |namespace: &str, event| format!("42{namespace}[\"a.b\",{}]", object(event));
        assert_eq!(packets(0b001, &batch, None), [0, 1, 2].map(|event| packet("", event)));
        assert_eq!(
            packets(0b110, &batch, None),
            [
                packet("/ws,", 0),
                packet("/admin,", 0),
                packet("/ws,", 1),
                packet("/admin,", 1),
                packet("/ws,", 2),
                packet("/admin,", 2),
            ]
        );
        assert_eq!(packets(0, &batch, None), [""; 0]);
    }

    #[test]
    fn the_publisher_is_left_out_of_its_own_events_only() {
        let batch = batch([Some(5), None, Some(6)]);
        let seqs = |without: Option<u32>| -> Vec<String> {
            let seq = |packet: String| {
                packet.split("\"seq\":").nth(1).and_then(|rest| rest.split(',').next()).map(Into::into)
            };
            packets(0b010, &batch, without.map(address)).into_iter().filter_map(seq).collect()
        };
        assert_eq!(seqs(None), ["1", "2", "3"]);
        assert_eq!(seqs(Some(5)), ["2", "3"]);
        assert_eq!(seqs(Some(6)), ["1", "2"]);
        assert_eq!(seqs(Some(7)), ["1", "2", "3"]);
        let own = super::tests::batch([Some(5); 3]);
        assert_eq!(packets(0b111, &own, Some(address(5))), [""; 0]);
    }

    #[test]
    fn the_namespaces_of_a_room_are_noted_until_the_connection_has_left_it() {
        let mut rooms = RoomSpaces::default();
        let [one, two, three] = [1, 2, 3].map(RoomId);
        assert_eq!((rooms.of(one), rooms.is_wanted(one)), (None, false));
        rooms.add(one, space(0));
        rooms.add(one, space(2));
        rooms.add(two, space(2));
        rooms.put(three, spaces(0b110));
        assert_eq!([one, two, three].map(|room| rooms.of(room)), [0b101, 0b100, 0b110].map(|bits| Some(spaces(bits))));
        assert_eq!(rooms.only(space(2)), [two]);
        assert_eq!(rooms.only(space(0)), [] as [RoomId; 0]);
        rooms.put(three, spaces(0b100));
        assert_eq!(rooms.only(space(2)), [two, three], "it is what was put last");
        rooms.remove(one, space(0));
        rooms.remove(one, space(1));
        assert_eq!(rooms.of(one), Some(spaces(0b100)));
        rooms.leave(space(2));
        for room in [one, two, three] {
            // Nobody gets its events, rather than everybody.
            assert_eq!((rooms.of(room), rooms.is_wanted(room)), (Some(spaces(0)), false));
        }
        rooms.add(two, space(1));
        assert!(rooms.is_wanted(two));
        rooms.forget(two);
        assert_eq!((rooms.of(two), rooms.is_wanted(two)), (None, false));
        assert_eq!(rooms.of(one), Some(spaces(0)), "that was about another room");
    }

    fn session() -> SocketIo {
        let terms = Terms {
            namespaces: &[],
            message_bytes_max: 1 << 20,
            ping_interval_ms: 25_000,
            ping_timeout_ms: 20_000,
            connect_timeout_ms: 45_000,
        };
        let entry = Entry { offered: Offered::Nothing, peer: None, told: None, client_id: None, session_id: None };
        SocketIo::new(Engine::new(0, &terms), "sid".into(), EnginePath::SocketIo, false, entry)
    }

    fn hold(session: &mut SocketIo, message: &str) -> bool {
        session.hold(&Packet::Text { kind: PacketKind::Message, data: &mut message.as_bytes().to_vec() })
    }

    #[test]
    fn the_connects_that_were_kept_first_are_taken_before_what_came_behind_them() {
        let mut session = session();
        for packet in ["0/ws,", "0/admin,{\"token\":\"x\"}", "2[\"a\"]", "0/late,"] {
            assert!(hold(&mut session, packet));
        }
        assert!(session.hold(&Packet::Binary(&mut [1, 2])));
        assert_eq!(session.take_held_connects(), b"\x1e40/ws,\x1e40/admin,{\"token\":\"x\"}");
        assert_eq!(session.take_held_connects(), b"");
        assert_eq!(session.take_held(), b"\x1e42[\"a\"]\x1e40/late,\x1ebAQI=");
        assert_eq!((session.take_held_connects(), session.take_held()), (Vec::new(), Vec::new()));
        assert!(hold(&mut session, "0"));
        assert_eq!(session.take_held_connects(), b"\x1e40", "it may be the last");
    }

    #[test]
    fn one_packet_may_be_as_large_as_it_is_and_more_than_the_bound_is_too_much() {
        let mut session = session();
        let large = "x".repeat(HELD_BYTES_MAX + 1);
        assert!(hold(&mut session, &large));
        assert!(!hold(&mut session, "2"));
        session.take_held();
        assert!(hold(&mut session, "2"));
        assert!(!session.hold(&Packet::Binary(&mut large.into_bytes())), "it is kept as base64");
        assert_eq!(session.take_held(), b"\x1e42");
    }

    #[test]
    fn a_visit_is_over_when_its_namespace_is_left() {
        let mut session = session();
        let (first, other) = (session.visit(space(1)), session.visit(space(0)));
        assert!(!session.is_visiting((space(1), first)), "it is not in it yet");
        session.handled.push((space(1), "id".into()));
        session.left(space(1));
        assert_ne!(session.visit(space(1)), first);
        assert_eq!(session.visit(space(0)), other);
        assert!(session.handled.is_empty());
        assert_eq!(session.spaces_or_last(), spaces(0b010), "what is still to be said is said there");
    }

    #[test]
    fn messages_outside_of_namespaces_are_counted_until_there_is_one() {
        let mut session = session();
        let count = |session: &mut SocketIo| (0..1000).take_while(|_| session.count_before()).count();
        assert_eq!(count(&mut session), 100);
        assert!(!session.count_before());
        session.count_anew();
        assert_eq!(count(&mut session), 100);
    }
}
