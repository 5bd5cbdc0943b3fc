//! Sessions of Engine.IO that are polled. Such a session is a connection without a socket: what is for it waits in its outbox
//! until a GET comes by way of the control plane, and POSTs bring its packets. When its client has tried a WebSocket, that
//! one's socket becomes the session's.
//!
//! ```text
//!           GET ──► the outbox, or a wait        2probe ──► 3probe; polls that wait end with a noop
//! session   POST ─► packets                 WebSocket
//!           ◄──────────── socket ───────────── 5
//! ```

use bytes::Bytes;

use super::connection::{Connection, Phase};
use super::engine::shard_of_sid;
use super::state::{Action, State};
use crate::control::{ConnectionOrigin, EngineAnswer, EngineOpened};
use crate::hub::name::ShardId;
use crate::hub::outbox::Protocol;
use crate::hub::reply::Responder;
use crate::ring::{ConnKey, Socket};
use crate::session::handshake::ProbeAsked;
use crate::session::socketio::Probe;
use crate::wire::codes::close;
use crate::wire::engineio::{self, PacketKind, Payload, RequestError};
use crate::wire::http::parse_head;
use crate::wire::outlet::Outlet;
use crate::wire::upgrade::switching_protocols;
use crate::wire::ws;

/// How long a client may take from its probe to the upgrade.
const UPGRADE_MS: u64 = 10_000;

/// Packets in the answer to one poll: python-engineio takes no more by default.
const PACKETS_PER_POLL_MAX: usize = 16;

/// How a session is polled.
#[derive(Debug, Default)]
pub struct Polling {
    /// The poll that waits.
    poll: Option<Responder<EngineAnswer>>,
    /// What the last poll was given. That its client has got it is known when it polls again: a client that has gone
    /// meanwhile is owed it.
    given: Option<Bytes>,
    /// What a poll could not take: because its client had gone away by then, or because it was too many packets.
    unsent: Option<Bytes>,
    /// The WebSocket that it may go on with.
    probe: Option<ConnKey>,
    /// It has answered the client's probe: polls don't wait any more.
    ends: bool,
}

impl Polling {
    /// Writes what a poll could not take anew: `write` appends what is to be there in its place.
    pub fn rewrite_unsent(&mut self, write: impl Fn(&[u8], &mut Vec<u8>)) {
        if let Some(unsent) = self.unsent.take() {
            let mut written = Vec::new();
            write(&unsent, &mut written);
            self.unsent = (!written.is_empty()).then(|| written.into());
        }
    }

    /// What goes before all that is in the outbox, and may never have come to the client.
    pub fn owed(&self) -> impl Iterator<Item = &Bytes> {
        self.given.iter().chain(&self.unsent)
    }
}

/// A WebSocket on its way to a session. Once the client has gone over to it the session has no other one to live on.
#[derive(Debug, Clone, Copy)]
pub struct Probing {
    /// The session.
    session: ConnKey,
    /// Its client has tried it.
    probed: bool,
    /// It is to be the session's: what comes is for that already.
    upgraded: bool,
    /// Nothing more is received from it here.
    receive_ended: bool,
}

impl State {
    // ---- polls ----

    /// A session is opened by a request that the control plane has.
    pub(super) fn open_polled(&mut self, head: &[u8], origin: ConnectionOrigin, responder: Responder<EngineOpened>) {
        let settings = self.settings.clone();
        let refuse = |responder: Responder<EngineOpened>, error| responder.resolve(Ok(EngineOpened::Refused(error)));
        if self.drain.is_some() || !self.has_room() {
            self.figures.refused.add(if self.drain.is_some() { "draining" } else { "capacity" });
            return responder.resolve(Ok(EngineOpened::Unavailable));
        }
        let Ok(Some(parsed)) = parse_head(head, usize::MAX) else { return refuse(responder, RequestError::BadRequest) };
        let gate = settings.gate();
        let Some(path) = gate.engine_path(parsed.path) else { return refuse(responder, RequestError::BadRequest) };
        let asked = match gate.engine_asked(path, &parsed, None, self.now) {
            Ok(asked) => asked,
            Err(error) => {
                self.figures.refused.add(error.label());
                return refuse(responder, error);
            }
        };
        let head = self.head_from(&parsed, origin);
        let told = self.told_of(&parsed, &head);
        let conn = self.connections.insert(self.connection(Socket::NONE, Phase::Lobby));
        let sid = self.begin_engine(conn, asked, &head, told, Protocol::Polling);
        self.engines.insert(sid.clone(), conn);
        self.figures.polled.add(1);
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if let Some(socketio) = connection.socketio.as_deref_mut() {
            socketio.polling = Some(Box::default());
        }
        let Some(chunk) = connection.outbox.take_chunk(self.core.memory()) else { return };
        connection.outbox.sent();
        connection.sent_bytes += chunk.len() as u64;
        let opened = EngineOpened::Session { sid, payload: engineio::begin_payload(chunk) };
        if responder.try_resolve(Ok(opened)).is_err() {
            // Nobody knows of it.
            self.abandon(conn);
        }
    }

    /// The session that a request names, if it is there and polls.
    fn polled(&self, sid: &str) -> Result<ConnKey, RequestError> {
        let conn = *self.engines.get(sid).ok_or(RequestError::SessionUnknown)?;
        let connection = self.connections.get(conn).ok_or(RequestError::SessionUnknown)?;
        let polling = connection.socketio.as_deref().and_then(|socketio| socketio.polling.as_deref());
        let waits = !connection.outbox.is_empty() || polling.is_some_and(|polling| polling.unsent.is_some());
        match connection.phase {
            Phase::Closing(_) if !waits => Err(RequestError::SessionUnknown),
            _ if connection.polls() => Ok(conn),
            _ => Err(RequestError::BadRequest),
        }
    }

    /// A GET: what waits is its answer, or it waits for something.
    pub(super) fn poll(&mut self, sid: &str, responder: Responder<EngineAnswer>) {
        let conn = match self.polled(sid) {
            Ok(conn) => conn,
            Err(error) => return responder.resolve(Ok(EngineAnswer::Refused(error))),
        };
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let waits = !connection.outbox.is_empty();
        let Some(polling) = connection.socketio.as_deref_mut().and_then(|one| one.polling.as_deref_mut()) else {
            return;
        };
        if polling.poll.as_ref().is_some_and(|poll| !poll.is_abandoned()) {
            responder.resolve(Ok(EngineAnswer::Refused(RequestError::BadRequest)));
            self.close(conn, close::PROTOCOL_ERROR, "a session is polled by one request at a time");
            return;
        }
        let (ends, has_unsent) = (polling.ends, polling.unsent.is_some());
        polling.poll = Some(responder);
        polling.given = None;
        if ends && !waits && !has_unsent {
            self.end_poll(conn);
        }
        self.mark_dirty(conn);
    }

    /// Ends the poll that waits, or the next one, with a packet that says nothing.
    fn end_poll(&mut self, conn: ConnKey) {
        self.with_engine(conn, |_, _, outlet| outlet.packet(PacketKind::Noop, b""));
    }

    pub(super) fn mark_dirty(&mut self, conn: ConnKey) {
        if let Some(connection) = self.connections.get_mut(conn)
            && connection.outbox.mark_dirty()
        {
            self.dirty.push(conn);
        }
    }

    /// Answers the poll that waits with all that fits into one answer, if there are both.
    pub(super) fn answer_poll(&mut self, conn: ConnKey) {
        let State { connections, core, latency, sending, figures, .. } = self;
        let Some(connection) = connections.get_mut(conn) else { return };
        let Connection { outbox, socketio, followed, sent_bytes, .. } = connection;
        let Some(polling) = socketio.as_deref_mut().and_then(|socketio| socketio.polling.as_deref_mut()) else {
            return;
        };
        let Some(poll) = polling.poll.take().filter(|poll| !poll.is_abandoned()) else { return };
        let waiting = outbox.events_bytes();
        let again = polling.unsent.take();
        let Some(chunk) = again.clone().or_else(|| outbox.take_chunk(core.memory())) else {
            polling.poll = Some(poll);
            return;
        };
        if again.is_none() && !followed.is_none() {
            latency.taken(followed, waiting - outbox.events_bytes());
        }
        let (now, later) = engineio::split_payload(&chunk, PACKETS_PER_POLL_MAX);
        match poll.try_resolve(Ok(EngineAnswer::Payload(engineio::begin_payload(now.clone())))) {
            Ok(()) => {
                figures.bytes_sent.add(now.len() as u64);
                *sent_bytes += now.len() as u64;
                polling.given = Some(now);
                polling.unsent = (!later.is_empty()).then_some(later);
                outbox.sent();
                // The chunk is sent with its last part: what is next, be it the end, comes behind that.
                if polling.unsent.is_none() {
                    *sending += 1;
                    self.sent(conn, 0);
                }
            }
            // Its client has gone away in this moment. The next poll gets it.
            Err(_) => {
                polling.unsent = Some(chunk);
                outbox.sent();
            }
        }
    }

    /// A POST: packets of the client.
    pub(super) fn push(&mut self, sid: &str, mut body: Vec<u8>, responder: Responder<EngineAnswer>) {
        let is_closing = |conn: &ConnKey| {
            self.connections.get(*conn).is_none_or(|connection| matches!(connection.phase, Phase::Closing(_)))
        };
        let conn = match self.polled(sid) {
            Ok(conn) if is_closing(&conn) => {
                return responder.resolve(Ok(EngineAnswer::Refused(RequestError::SessionUnknown)));
            }
            Ok(conn) => conn,
            Err(error) => return responder.resolve(Ok(EngineAnswer::Refused(error))),
        };
        let (now_ms, bytes) = (self.now_ms(), body.len() as u64);
        self.figures.bytes_received.add(bytes);
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.heard_ms = now_ms;
            connection.received_bytes += bytes;
        }
        let taken = match Payload::new(&mut body) {
            Ok(packets) => self.take_packets(conn, packets),
            Err(malformed) => self.engine_fails(conn, malformed.into()),
        };
        let answer = if taken { EngineAnswer::Taken } else { EngineAnswer::Refused(RequestError::BadRequest) };
        responder.resolve(Ok(answer));
        self.drain_local();
    }

    fn take_packets(&mut self, conn: ConnKey, packets: Payload<'_>) -> bool {
        for packet in packets {
            let packet = match packet {
                Ok(packet) => packet,
                Err(malformed) => return self.engine_fails(conn, malformed.into()),
            };
            self.figures.messages_received.add(1);
            self.count_message(conn);
            if !self.engine_packet(conn, packet) {
                return false;
            }
        }
        true
    }

    /// The client has said that it goes, and its session is released.
    pub(super) fn end_by_client(&mut self, conn: ConnKey) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.outbox.drop_events();
        if connection.polls() {
            // One that is on its way finds this.
            self.end_poll(conn);
            self.finish(conn, super::connection::Closing::Flushing);
        } else {
            ws::close_frame(close::NORMAL, "", connection.outbox.answers());
            self.finish(conn, super::connection::Closing::AwaitsClose);
        }
    }

    /// A session that is polled is gone at once: who waits for it is told.
    pub(super) fn forget_polled(&mut self, connection: &mut Connection) {
        let Some(socketio) = connection.socketio.as_deref_mut() else { return };
        self.engines.remove(&socketio.sid);
        let Some(polling) = socketio.polling.as_deref_mut() else { return };
        self.figures.polled.sub(1);
        if let Some(poll) = polling.poll.take() {
            poll.resolve(Ok(EngineAnswer::Refused(RequestError::SessionUnknown)));
        }
        if let Some(probe) = polling.probe.take() {
            self.close(probe, close::NORMAL, "the session has ended");
        }
    }

    // ---- upgrades ----

    /// A WebSocket that is to become a session's transport. It may have come to another shard than the session's.
    pub(super) fn open_probe(&mut self, conn: ConnKey, asked: ProbeAsked, early: &mut [u8]) {
        let ProbeAsked { path, sid, key, base64, deflate } = asked;
        let is_ours = shard_of_sid(&sid, path, &self.core.hasher(), self.mesh.shards());
        let is_ours = is_ours.map_err(|_| RequestError::SessionUnknown);
        let session = match is_ours.and_then(|_| self.polled(&sid)) {
            Ok(session) => session,
            Err(error) => return self.refuse_engine(conn, error),
        };
        let Some(polled) = self.connections.get_mut(session) else { return };
        let is_open = matches!(polled.phase, Phase::Open(_) | Phase::Echo(_) | Phase::Lobby | Phase::Admission(_));
        let Some(socketio) = polled.socketio.as_deref_mut().filter(|_| is_open) else {
            return self.refuse_engine(conn, RequestError::SessionUnknown);
        };
        let Some(polling) = socketio.polling.as_deref_mut().filter(|polling| polling.probe.is_none()) else {
            return self.refuse_engine(conn, RequestError::BadRequest);
        };
        polling.probe = Some(conn);
        socketio.base64 = base64;
        let due_ms = self.now_ms() + UPGRADE_MS;
        let deflate = self.grant_deflate(conn, deflate);
        let Some(connection) = self.connections.get_mut(conn) else { return };
        switching_protocols(&key, None, deflate, connection.outbox.answers());
        connection.phase = Phase::Probe(Probing { session, probed: false, upgraded: false, receive_ended: false });
        connection.due_ms = due_ms;
        self.timers.schedule(conn, &mut connection.alarm, due_ms);
        self.mark_dirty(conn);
        self.received(conn, early);
    }

    /// The shard of the session that a WebSocket names, where that is another one.
    pub(super) fn shard_of_probe(&self, asked: &ProbeAsked) -> Option<ShardId> {
        let shard = shard_of_sid(&asked.sid, asked.path, &self.core.hasher(), self.mesh.shards());
        shard.ok().filter(|shard| *shard != self.me)
    }

    /// A message on a WebSocket that is not a session's yet.
    pub(super) fn probe_message(&mut self, conn: ConnKey, message: ws::Message<'_>) {
        let Some(Phase::Probe(probing)) = self.connections.get(conn).map(|connection| &connection.phase) else {
            return;
        };
        let probing = *probing;
        match message {
            ws::Message::Text(text) if probing.upgraded => {
                self.heard_on_behalf(probing.session, text.len());
                self.engine_text(probing.session, text);
            }
            ws::Message::Binary(data) if probing.upgraded => {
                self.heard_on_behalf(probing.session, data.len());
                self.engine_packet(probing.session, engineio::Packet::Binary(data));
            }
            ws::Message::Text(text) => {
                let Some(connection) = self.connections.get_mut(conn) else { return };
                let mut outlet = Outlet::WebSocket { out: connection.outbox.answers(), base64: false };
                let outcome = Probe::text(text, probing.probed, &mut outlet);
                self.mark_dirty(conn);
                match outcome {
                    Ok(Probe::Answered) => self.probed(conn, probing),
                    Ok(Probe::Upgraded) => self.upgrade(conn, probing),
                    Ok(Probe::GivenUp) => self.close(conn, close::NORMAL, "given up"),
                    Err(failure) => self.fail(conn, failure.close_code, failure.reason),
                }
            }
            _ => self.fail(conn, close::PROTOCOL_ERROR, "a WebSocket is probed before it is used"),
        }
    }

    fn heard_on_behalf(&mut self, session: ConnKey, bytes: usize) {
        let now_ms = self.now_ms();
        if let Some(connection) = self.connections.get_mut(session) {
            connection.heard_ms = now_ms;
            connection.received_bytes += bytes as u64;
        }
        self.count_message(session);
    }

    fn probed(&mut self, conn: ConnKey, probing: Probing) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.phase = Phase::Probe(Probing { probed: true, ..probing });
        }
        let Some(polled) = self.connections.get_mut(probing.session) else { return };
        let nothing_waits = polled.outbox.is_empty();
        let polling = polled.socketio.as_deref_mut().and_then(|socketio| socketio.polling.as_deref_mut());
        let Some(polling) = polling else { return };
        polling.ends = true;
        if polling.poll.is_some() && nothing_waits {
            self.end_poll(probing.session);
        }
    }

    /// The WebSocket is the session's from here on: as soon as nothing is under way on it, its socket changes hands.
    fn upgrade(&mut self, conn: ConnKey, probing: Probing) {
        let State { connections, core, actions, .. } = self;
        let Some(polled) = connections.get_mut(probing.session) else { return };
        let Some(socketio) = polled.socketio.as_deref_mut() else { return };
        let base64 = socketio.base64;
        let Some(polling) = socketio.polling.take() else { return };
        self.figures.polled.sub(1);
        let Polling { poll, unsent, .. } = *polling;
        if let Some(poll) = poll {
            poll.resolve(Ok(EngineAnswer::Payload(Bytes::from_static(b"6"))));
        }
        let to_frames = |packets: &[u8], out: &mut Vec<u8>| engineio::payload_to_frames(packets, base64, out);
        polled.outbox.convert(Protocol::SocketIo, core.memory(), to_frames);
        if let Some(unsent) = unsent {
            // It goes before all that waits.
            let mut first = Vec::new();
            to_frames(&unsent, &mut first);
            polled.outbox.answers().splice(0..0, first);
        }
        polled.outbox.hold();
        if let Some(connection) = connections.get_mut(conn) {
            connection.phase = Phase::Probe(Probing { probed: true, upgraded: true, ..probing });
            actions.push(Action::CancelReceive(conn, connection.socket));
        }
    }

    /// No more is received on a WebSocket on its way to a session.
    pub(super) fn probe_receive_ended(&mut self, conn: ConnKey, cancelled: bool) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Probe(probing) = &mut connection.phase else { return };
        if !cancelled || !probing.upgraded {
            self.probe_lost(conn);
            return;
        }
        probing.receive_ended = true;
        self.move_when_idle(conn);
    }

    /// Gives a session its socket, if nothing is under way on that any more.
    pub(super) fn move_when_idle(&mut self, conn: ConnKey) {
        let Some(connection) = self.connections.get(conn) else { return };
        let Phase::Probe(probing) = &connection.phase else { return };
        if probing.receive_ended && connection.outbox.is_empty() {
            self.actions.push(Action::Move { from: conn, to: probing.session });
        }
    }

    /// The socket of a WebSocket, with what was received of an unfinished frame, is a session's.
    pub(super) fn moved(&mut self, from_conn: ConnKey, from: Connection, to: ConnKey, socket: Socket) -> bool {
        let Some(connection) = self.connections.get_mut(to).filter(|one| one.socket.is_none()) else {
            self.forget_deflate(from_conn, &from);
            return false;
        };
        connection.socket = socket;
        connection.decoder = from.decoder;
        // What waits was written before it was known; from here on it may be compressed.
        connection.outbox.deflates(from.outbox.deflate_bits());
        if let Some(window) = self.windows.remove(&from_conn) {
            self.windows.insert(to, window);
        }
        connection.receiving = true;
        // While its client is being let into a namespace, events wait for the answer to that.
        let is_being_let_in = connection.socketio.as_deref().is_some_and(|socketio| socketio.granting.is_some());
        if !is_being_let_in {
            connection.outbox.release();
        }
        self.actions.push(Action::Receive(to, socket));
        if let Phase::Closing(super::connection::Closing::Flushing) = connection.phase
            && connection.outbox.is_empty()
        {
            self.shut(to);
        }
        self.mark_dirty(to);
        true
    }

    /// The client has gone, or its socket has failed.
    pub(super) fn probe_lost(&mut self, conn: ConnKey) {
        if let Some(Phase::Probe(Probing { upgraded: true, .. })) = self.connections.get(conn).map(|one| &one.phase) {
            self.figures.closes.add("abnormal");
        }
        self.abandon(conn);
    }

    /// A WebSocket ends that was to become a session's. That goes on polling, or ends as well where its client had gone over
    /// to the WebSocket.
    pub(super) fn probe_ended(&mut self, Probing { session, upgraded, .. }: Probing) {
        if upgraded {
            return self.abandon(session);
        }
        let polled = self.connections.get_mut(session).and_then(|one| one.socketio.as_deref_mut());
        if let Some(polling) = polled.and_then(|socketio| socketio.polling.as_deref_mut()) {
            polling.probe = None;
            polling.ends = false;
        }
    }

    /// Answers a request for a WebSocket as Engine.IO does, and ends the connection.
    pub(super) fn refuse_engine(&mut self, conn: ConnKey, error: RequestError) {
        self.figures.refused.add(error.label());
        let Some(connection) = self.connections.get_mut(conn) else { return };
        error.response(connection.outbox.answers());
        self.finish(conn, super::connection::Closing::Flushing);
    }
}
