//! Sessions of Engine.IO and the namespaces of Socket.IO in them: how one is opened, what becomes of its packets, and how a
//! client is let into a namespace.
//!
//! ```text
//! open ──► lobby ──CONNECT──► admission ──► client, in one namespace or several
//!            ▲                    │                 │
//!            └──── refused ◄──────┘   DISCONNECT of the last ──► lobby
//! ```
//!
//! A connection has one client, whatever the number of namespaces: they have their user, session and rooms in common, and each
//! gets the events of what it has subscribed to.

use std::sync::Arc;

use super::connection::{Connection, HeadBuffer, Phase};
use super::report::Ending;
use super::request::counted_address;
use super::recover::read_pid;
use super::socketio::{Entry, Granting, SocketIo, outlet};
use super::state::State;
use crate::auth::Identity;
use crate::control::hooks::RequestTold;
use crate::control::store::ClosedBy;
use crate::hub::name::{NameHasher, ShardId};
use crate::hub::outbox::Protocol;
use crate::ring::ConnKey;
use crate::session::OverRate;
use crate::session::handler::{Arguments, Caller, HandledEvent, MessageCaller};
use crate::session::handshake::{Admit, Endpoint, EngineAsked, EnginePath, Offered, TOKEN_NEEDED};
use crate::session::socketio::{Asked, Content, Emitted, Engine, Failure, Heard, Space, Terms};
use crate::wire::codes::close;
use crate::wire::engineio::{self, Packet, PacketKind, Payload, RequestError};
use crate::wire::json::{write_string, write_u64};
use crate::wire::native::is_client_id;
use crate::wire::outlet::Outlet;
use crate::wire::refusal::Refusal;
use crate::wire::socketio::{Malformed, with_event};
use crate::wire::upgrade::switching_protocols;

/// A message that came too soon: after how many milliseconds the next may come.
pub(super) type Early = Option<u64>;

impl State {
    // ---- opening ----

    /// A WebSocket becomes a session of Engine.IO.
    pub(super) fn open_engine(
        &mut self,
        conn: ConnKey,
        asked: EngineAsked,
        head: &HeadBuffer,
        told: Option<Box<RequestTold>>,
        early: &mut [u8],
    ) {
        if self.drain.is_some() {
            return self.refuse_as(conn, "draining", &Refusal::unavailable("this node is draining", 1));
        }
        let key = asked.key.clone();
        let Some(connection) = self.connections.get_mut(conn) else { return };
        switching_protocols(&key, None, connection.outbox.answers());
        let protocol = Protocol::SocketIo;
        self.begin_engine(conn, asked, head, told, protocol);
        self.received(conn, early);
    }

    /// Makes a connection a session of Engine.IO and greets its client. Says the session's id.
    pub(super) fn begin_engine(
        &mut self,
        conn: ConnKey,
        asked: EngineAsked,
        head: &HeadBuffer,
        told: Option<Box<RequestTold>>,
        protocol: Protocol,
    ) -> Box<str> {
        let (settings, now_ms) = (self.settings.clone(), self.now_ms());
        let terms = settings.engine_terms();
        let EngineAsked { path, base64, offered, client_id, session_id, .. } = asked;
        let engine = match path {
            EnginePath::SocketIo => Engine::new(now_ms, &terms),
            EnginePath::Messages => Engine::without_namespaces(now_ms, &terms),
        };
        let peer = self.counted_peer(counted_address(&head.origin));
        let entry = Entry { offered, peer, told, client_id, session_id };
        let sid = self.engine_sid(path);
        let Some(connection) = self.connections.get_mut(conn) else { return sid };
        connection.outbox.becomes(protocol);
        connection.phase = Phase::Lobby;
        connection.socketio = Some(Box::new(SocketIo::new(engine, sid.clone(), path, base64, entry)));
        let may_upgrade = protocol == Protocol::Polling;
        self.with_engine(conn, |socketio, terms, outlet| {
            socketio.engine.greet(&socketio.sid, may_upgrade, terms, outlet);
        });
        self.look_after(conn);
        sid
    }

    /// Does something with a session's engine; what it sends is flushed at the turn's end.
    pub(super) fn with_engine<R>(
        &mut self,
        conn: ConnKey,
        act: impl FnOnce(&mut SocketIo, &Terms<'_>, &mut Outlet<'_>) -> R,
    ) -> Option<R> {
        let settings = self.settings.clone();
        let terms = settings.engine_terms();
        let connection = self.connections.get_mut(conn)?;
        let Connection { outbox, socketio, .. } = connection;
        let socketio = socketio.as_deref_mut()?;
        let (protocol, before) = (outbox.protocol(), outbox.answers().len());
        let acted = act(socketio, &terms, &mut outlet(protocol, socketio.base64, outbox.answers()));
        if outbox.answers().len() == before {
            return Some(acted);
        }
        let full = outbox.answers_full(before, settings.config.limits.outbox_bytes_max);
        if outbox.mark_dirty() {
            self.dirty.push(conn);
        }
        if full {
            self.close_slow(conn);
        }
        Some(acted)
    }

    // ---- packets ----

    /// A WebSocket's text. False where the session ends with it.
    pub(super) fn engine_text(&mut self, conn: ConnKey, text: &mut [u8]) -> bool {
        match engineio::parse(text) {
            Ok(packet) => self.engine_packet(conn, packet),
            Err(malformed) => self.engine_fails(conn, malformed.into()),
        }
    }

    /// A packet. False where the session ends with it.
    pub(super) fn engine_packet(&mut self, conn: ConnKey, mut packet: Packet<'_>) -> bool {
        let Some(connection) = self.connections.get_mut(conn) else { return true };
        let Some(socketio) = connection.socketio.as_deref_mut() else { return true };
        if socketio.granting.is_some() {
            // What a client sends behind its CONNECT is for when it is let in.
            return socketio.hold(&packet) || self.engine_fails(conn, TOO_MUCH_AHEAD);
        }
        let is_message = matches!(packet, Packet::Binary(_) | Packet::Text { kind: PacketKind::Message, .. });
        if socketio.path == EnginePath::Messages && is_message {
            return self.hand_message(conn, &mut packet);
        }
        let is_text = is_message && !matches!(packet, Packet::Binary(_));
        let mut early = None;
        match connection.phase {
            Phase::Open(_) if is_text => match self.count_against_rate(conn) {
                Some(counted) => early = counted,
                None => return false,
            },
            // Heartbeats go on for as long as the session does.
            Phase::Lobby if is_message && socketio.handled.is_empty() && !socketio.count_before() => {
                return self.engine_fails(conn, TOO_MUCH_BEFORE);
            }
            Phase::Open(_) | Phase::Echo(_) | Phase::Lobby => {}
            _ => return true,
        }
        match self.with_engine(conn, |socketio, terms, outlet| socketio.engine.packet(packet, terms, outlet)) {
            None => true,
            Some(Ok(heard)) => self.engine_heard(conn, heard, early),
            Some(Err(failure)) => self.engine_fails(conn, failure),
        }
    }

    fn engine_heard(&mut self, conn: ConnKey, heard: Heard<'_>, early: Early) -> bool {
        match heard {
            // The hub asks nobody for an answer, and a program's namespaces don't either.
            Heard::Nothing | Heard::Acknowledged { .. } => true,
            Heard::Pong => {
                self.pong(conn);
                true
            }
            Heard::Close => {
                self.engine_closed(conn);
                true
            }
            Heard::Left(space) => {
                self.namespace_left(conn, space);
                true
            }
            Heard::Asked(asked) => self.namespace_asked(conn, asked),
            Heard::Emitted(emitted) => self.emitted(conn, emitted, early),
        }
    }

    /// The client can't be understood: its session ends. False.
    pub(super) fn engine_fails(&mut self, conn: ConnKey, failure: Failure) -> bool {
        self.fail(conn, failure.close_code, failure.reason);
        false
    }

    /// The client has closed the session.
    fn engine_closed(&mut self, conn: ConnKey) {
        self.figures.closes.add_code(1005);
        self.release(conn, Ending { code: None, reason: "", by: ClosedBy::Client });
        self.end_by_client(conn);
    }

    /// Counts a message against its client's rate; none where the connection was closed for it.
    pub(super) fn count_against_rate(&mut self, conn: ConnKey) -> Option<Early> {
        let (settings, now) = (self.settings.clone(), self.now);
        match self.client_mut(conn)?.session.take_message(&settings.config, now) {
            Ok(()) => Some(None),
            Err(OverRate::Refuse(retry_after_ms)) => Some(Some(retry_after_ms)),
            Err(OverRate::Flood) => {
                self.figures.rate_limited.add(1);
                self.close(conn, close::FLOOD, "sent too much for too long");
                None
            }
        }
    }

    /// An event of a client: a command, or something for the program that serves its namespace.
    fn emitted(&mut self, conn: ConnKey, mut emitted: Emitted<'_>, early: Early) -> bool {
        let Some(socketio) = self.connections.get(conn).and_then(|one| one.socketio.as_deref()) else { return true };
        emitted.to.visit = socketio.visit(emitted.to.space);
        let is_handled = socketio.handled.has(emitted.to.space);
        // Taken out for the time of the call: the command borrows from it while it is carried out.
        let Some(mut scratch) = self.scratch.take() else { return true };
        let outcome = if is_handled {
            self.handle_event(conn, emitted, &mut scratch)
        } else {
            let (payload, bytes) = match &emitted.content {
                Content::Text(text) => (self.payload_to_keep(text), text.len()),
                Content::Assembled(_) => (Vec::new(), 0),
            };
            emitted.command(&mut scratch, |parsed| {
                self.note_received(conn, &parsed, bytes, &payload);
                match early {
                    None => self.carry_out(conn, parsed),
                    Some(retry_after_ms) => self.refuse_rate(conn, parsed.reference.as_ref(), retry_after_ms),
                }
            })
        };
        self.scratch = Some(scratch);
        if let Err(failure) = outcome {
            return self.engine_fails(conn, failure);
        }
        self.drain_local();
        true
    }

    // ---- namespaces ----

    /// A client asks for a namespace.
    fn namespace_asked(&mut self, conn: ConnKey, asked: Asked<'_>) -> bool {
        let settings = self.settings.clone();
        let space = asked.space;
        let Some(mut scratch) = self.scratch.take() else { return true };
        let brought = asked.credentials(&mut scratch, |brought| Brought {
            token: brought.token.map(Into::into),
            client_id: brought.client_id.map(Into::into),
            session_id: brought.session_id.map(Into::into),
            pid: brought.pid.map(Into::into),
            auth: brought.object.unwrap_or(b"{}").into(),
        });
        self.scratch = Some(scratch);
        let brought = match brought {
            Ok(brought) => brought,
            Err(failure) => return self.engine_fails(conn, failure),
        };
        let is_handled = settings.handlers.namespace(space.name(&settings.engine_terms())).is_some();
        let endpoint = if is_handled { Endpoint::Handled(space) } else { Endpoint::SocketIo(space) };
        match self.connections.get(conn).map(|connection| &connection.phase) {
            Some(Phase::Open(_) | Phase::Echo(_)) if is_handled => self.grant_handled(conn, space, &brought.auth),
            Some(Phase::Open(_)) => self.grant_further(conn, space, &brought),
            Some(Phase::Echo(_)) => {
                // So far it was the program's client only: what it held as such is held by the hub's client from here on.
                self.release(conn, Ending::LOST);
                self.enter_lobby(conn);
                self.ask_to_be_admitted(conn, endpoint, brought);
            }
            Some(Phase::Lobby) => self.ask_to_be_admitted(conn, endpoint, brought),
            _ => {}
        }
        true
    }

    fn ask_to_be_admitted(&mut self, conn: ConnKey, endpoint: Endpoint, brought: Brought) {
        let (Endpoint::SocketIo(space) | Endpoint::Handled(space)) = endpoint else { return };
        let identity = self.identify_in_namespace(conn, brought.token.as_deref());
        let Brought { client_id, session_id, pid, auth, .. } = brought;
        let Some(socketio) = self.connections.get_mut(conn).and_then(|one| one.socketio.as_deref_mut()) else { return };
        let pid = pid.filter(|_| endpoint == Endpoint::SocketIo(space));
        socketio.granting = Some(Box::new(Granting { space, auth, pid, more_rooms: Vec::new(), recovers: false }));
        let entry = &socketio.entry;
        let (peer, told) = (entry.peer, entry.told.clone());
        let client_id = client_id.or_else(|| entry.client_id.clone());
        let session_id = session_id.or_else(|| entry.session_id.clone());
        let is_odd = |id: &Option<Box<str>>| id.as_deref().is_some_and(|id| !is_client_id(id));
        if is_odd(&client_id) || is_odd(&session_id) {
            let message = "client_id and session_id have to be 1 to 64 of A-Z a-z 0-9 . _ : -";
            return self.refuse(conn, &Refusal::bad_request(message));
        }
        match identity {
            Ok(identity) => {
                let admit = Admit {
                    endpoint,
                    identity,
                    client_id,
                    session_id,
                    key: Box::default(),
                    subprotocol: false,
                    stream: None,
                };
                self.admit(conn, admit, peer, (told, None), Vec::new());
            }
            Err(refusal) => self.refuse(conn, &refusal),
        }
    }

    /// Who a client is: by the token it brought with its CONNECT, or else by that of the request.
    fn identify_in_namespace(&self, conn: ConnKey, token: Option<&str>) -> Result<Arc<Identity>, Refusal> {
        let (config, gate) = (&self.settings.config, self.settings.gate());
        if let Some(token) = token.filter(|_| config.auth.enabled) {
            return gate.connecting(token, self.now);
        }
        let socketio = self.connections.get(conn).and_then(|connection| connection.socketio.as_deref());
        match socketio.map(|socketio| &socketio.entry.offered) {
            Some(Offered::Identity(identity)) => {
                let end_ms = identity.expires_at.map(|end_s| end_s.saturating_add(config.auth.leeway_s) * 1000);
                if end_ms.is_some_and(|end_ms| self.now.unix_ms >= end_ms) {
                    return Err(Refusal::unauthorized("the token has expired"));
                }
                Ok(identity.clone())
            }
            Some(Offered::Refused(refusal)) => Err(refusal.clone()),
            Some(Offered::Nothing) | None => Err(Refusal::unauthorized(TOKEN_NEEDED)),
        }
    }

    /// A client that is in a namespace is let into another one: it has to be the same user.
    fn grant_further(&mut self, conn: ConnKey, space: Space, brought: &Brought) {
        let is_same = match brought.token.as_deref() {
            None => Ok(true),
            Some(_) => self.identify_in_namespace(conn, brought.token.as_deref()).map(|identity| {
                self.client_mut(conn).is_some_and(|client| client.session.identity.user_id == identity.user_id)
            }),
        };
        let refusal = match is_same {
            Ok(true) => None,
            Ok(false) => Some(Refusal::forbidden("the namespaces of a connection are one user's")),
            Err(refusal) => Some(refusal),
        };
        if let Some(refusal) = refusal {
            self.figures.refused.add(refusal.code);
            return self.tell_refused_namespace(conn, space, &refusal);
        }
        let socketio = self.connections.get(conn).and_then(|connection| connection.socketio.as_deref());
        let is_in = socketio.is_some_and(|socketio| socketio.engine.is_in(space));
        if !is_in {
            self.divide_rooms(conn);
        }
        let pid = self.further_pid(conn, space, brought.pid.as_deref(), is_in);
        let Some(client) = self.client_mut(conn) else { return };
        let client_id = client.session.client_id.clone();
        self.with_engine(conn, |socketio, terms, outlet| {
            socketio.engine.grant(space, &client_id, pid.as_deref(), terms, outlet);
        });
        self.greet_in(conn, space, &[]);
    }

    /// An admission is over: the client is in, unless it wants a session first that another shard may be home to.
    pub(super) fn namespace_open(&mut self, conn: ConnKey, more_rooms: Vec<Box<str>>) {
        let Some(socketio) = self.connections.get_mut(conn).and_then(|one| one.socketio.as_deref_mut()) else { return };
        let Some(granting) = socketio.granting.as_deref_mut() else { return };
        granting.more_rooms = more_rooms;
        if let Some(pid) = granting.pid.as_deref().and_then(read_pid) {
            granting.recovers = true;
            self.recover(conn, &pid);
        } else {
            self.grant_first(conn, false);
            self.let_go_of_held(conn);
        }
    }

    /// The client is in its first namespace, with the session that it wanted to take up where it has `recovered` that.
    pub(super) fn grant_first(&mut self, conn: ConnKey, recovered: bool) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.outbox.release();
        let Some(socketio) = connection.socketio.as_deref_mut() else { return };
        let Some(granting) = socketio.granting.take() else { return };
        socketio.count_anew();
        // A library takes the same id as the sign that it has missed nothing that was not sent again.
        let pid = if recovered { granting.pid } else { self.next_pid(conn, granting.pid.as_deref()) };
        let Some(client) = self.client_mut(conn) else { return };
        let (client_id, space) = (client.session.client_id.clone(), granting.space);
        self.with_engine(conn, |socketio, terms, outlet| {
            socketio.engine.grant(space, &client_id, pid.as_deref(), terms, outlet);
        });
        self.greet_in(conn, space, &granting.more_rooms);
    }

    /// Takes up what came while the client was being let in.
    pub(super) fn let_go_of_held(&mut self, conn: ConnKey) {
        let Some(socketio) = self.connections.get_mut(conn).and_then(|one| one.socketio.as_deref_mut()) else { return };
        let held = socketio.take_held();
        self.take_up(conn, held);
    }

    /// Takes up packets that were kept.
    pub(super) fn take_up(&mut self, conn: ConnKey, mut held: Vec<u8>) {
        // Each packet has a separator before it.
        let Some(packets) = held.get_mut(1..) else { return };
        let Ok(packets) = Payload::new(packets) else { return };
        for packet in packets.flatten() {
            if !self.engine_packet(conn, packet) {
                return;
            }
        }
    }

    /// A client is not let into the namespace that it asked for. Its session goes on.
    pub(super) fn refuse_namespace(&mut self, conn: ConnKey, refusal: &Refusal) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.outbox.drop_events();
        connection.outbox.release();
        let Some(granting) = connection.socketio.as_deref_mut().and_then(|socketio| socketio.granting.take()) else {
            return;
        };
        self.enter_lobby(conn);
        self.tell_refused_namespace(conn, granting.space, refusal);
        self.let_go_of_held(conn);
        self.look_after(conn);
    }

    fn tell_refused_namespace(&mut self, conn: ConnKey, space: Space, refusal: &Refusal) {
        let mut data = b"{\"code\":".to_vec();
        write_string(&mut data, refusal.code);
        data.extend_from_slice(b",\"status\":");
        write_u64(&mut data, u64::from(refusal.status));
        if let Some(seconds) = refusal.retry_after_s {
            data.extend_from_slice(b",\"retry_after_ms\":");
            write_u64(&mut data, u64::from(seconds) * 1000);
        }
        data.push(b'}');
        self.with_engine(conn, |socketio, terms, outlet| {
            socketio.engine.refuse(space, &refusal.message, Some(&data), terms, outlet);
        });
    }

    /// A session that is in no namespace (any more).
    fn enter_lobby(&mut self, conn: ConnKey) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.phase = Phase::Lobby;
        }
    }

    /// A client has left a namespace.
    fn namespace_left(&mut self, conn: ConnKey, space: Space) {
        let Some(socketio) = self.connections.get_mut(conn).and_then(|one| one.socketio.as_deref_mut()) else { return };
        let was_handled = socketio.handled.has(space);
        socketio.left(space);
        let (is_in_none, has_client) = (socketio.engine.spaces().next().is_none(), !socketio.spaces().is_empty());
        let is_client = self.client_mut(conn).is_some();
        let is_last = is_in_none || (is_client && !has_client);
        if is_last {
            self.figures.closes.add_code(1005);
            self.release(conn, Ending { code: None, reason: "left its namespace", by: ClosedBy::Client });
            if let Some(connection) = self.connections.get_mut(conn) {
                connection.outbox.drop_events();
            }
            self.enter_lobby(conn);
        } else {
            self.leave_for(conn, space);
        }
        if !was_handled {
            self.forget_packets(conn, space);
        }
        if is_last {
            self.look_after(conn);
        }
        self.drain_local();
    }

    // ---- what an embedding program serves ----

    /// The admission of a client that is the program's only is over.
    pub(super) fn handled_open(&mut self, conn: ConnKey) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.outbox.release();
        let Some(granting) = connection.socketio.as_deref_mut().and_then(|socketio| socketio.granting.take()) else {
            return;
        };
        self.grant_handled(conn, granting.space, &granting.auth);
        self.let_go_of_held(conn);
    }

    fn grant_handled(&mut self, conn: ConnKey, space: Space, auth: &[u8]) {
        let settings = self.settings.clone();
        let Some(handler) = settings.handlers.namespace(space.name(&settings.engine_terms())) else { return };
        let (client_id, identity) = self.handled_client(conn);
        let auth = std::str::from_utf8(auth).unwrap_or("{}");
        self.with_engine(conn, |socketio, terms, outlet| {
            socketio.handled = socketio.handled.with(space);
            socketio.engine.grant(space, &client_id, None, terms, outlet);
            let identity = &identity;
            handler.connected(&mut Caller { space, terms, identity, client_id: &client_id, outlet }, auth);
        });
    }

    /// The id and identity of a client in the namespaces of an embedding program.
    fn handled_client(&mut self, conn: ConnKey) -> (Arc<str>, Arc<Identity>) {
        let anonymous = self.settings.anonymous.clone();
        let Some(connection) = self.connections.get(conn) else { return ("".into(), anonymous) };
        let sid = || connection.socketio.as_ref().map_or_else(|| "".into(), |socketio| Arc::from(&*socketio.sid));
        // It may have left the hub's namespaces, and still be in the program's.
        let let_in = || connection.socketio.as_ref().and_then(|socketio| socketio.identity.clone());
        match &connection.phase {
            Phase::Open(client) => (client.session.client_id.clone(), client.session.identity.clone()),
            Phase::Echo(client) => (sid(), client.identity.clone()),
            _ => (sid(), let_in().unwrap_or(anonymous)),
        }
    }

    fn handle_event(
        &mut self,
        conn: ConnKey,
        emitted: Emitted<'_>,
        scratch: &mut crate::wire::json::Scratch,
    ) -> Result<(), Failure> {
        let settings = self.settings.clone();
        let space = emitted.to.space;
        let Some(handler) = settings.handlers.namespace(space.name(&settings.engine_terms())) else { return Ok(()) };
        let (client_id, identity) = self.handled_client(conn);
        let mut text = Vec::new();
        let mut assembled = None;
        let attachments = match emitted.content {
            Content::Text(json) => {
                text.extend_from_slice(json);
                None
            }
            Content::Assembled(all) => {
                let (packet, attachments) = assembled.insert(all).parts();
                text.extend_from_slice(packet.payload);
                Some(attachments)
            }
        };
        with_event(scratch, &mut text, |event| {
            let event = event?;
            let mut arguments = Vec::new();
            for (place, argument) in event.arguments().enumerate() {
                if place > 0 {
                    arguments.push(b',');
                }
                arguments.extend_from_slice(argument.raw());
            }
            let arguments = Arguments::new(&arguments, attachments);
            let event = HandledEvent { name: event.name, arguments, id: emitted.to.id };
            self.with_engine(conn, |_, terms, outlet| {
                let identity = &identity;
                handler.event(&mut Caller { space, terms, identity, client_id: &client_id, outlet }, &event);
            });
            Ok::<_, Malformed>(())
        })?;
        Ok(())
    }

    /// A message at the path of an embedding program.
    fn hand_message(&mut self, conn: ConnKey, packet: &mut Packet<'_>) -> bool {
        let settings = self.settings.clone();
        let Some((_, handler)) = &settings.handlers.messages else { return true };
        self.with_engine(conn, |_, _, outlet| {
            let mut caller = MessageCaller { outlet };
            match packet {
                Packet::Binary(data) => handler.binary(&mut caller, data),
                // Valid, since the frame or body was.
                Packet::Text { data, .. } => handler.text(&mut caller, std::str::from_utf8(data).unwrap_or_default()),
            }
        });
        true
    }

    // ---- ids ----

    /// An id of a session, which nobody can guess: whoever has it may poll. It says the shard, so that requests find it
    /// wherever they arrive, and the node, so that one that came to another node is told apart.
    fn engine_sid(&mut self, path: EnginePath) -> Box<str> {
        let mut secret = [0u8; 16];
        (self.entropy.0)(&mut secret);
        let (shard, tag) = (self.me.0, tag(path, &self.core.hasher()));
        format!("{shard}.{tag}.{:032x}", u128::from_be_bytes(secret)).into()
    }
}

/// What a client brings to a namespace.
struct Brought {
    token: Option<Box<str>>,
    client_id: Option<Box<str>>,
    session_id: Option<Box<str>>,
    pid: Option<Box<str>>,
    auth: Box<[u8]>,
}

const TOO_MUCH_AHEAD: Failure =
    Failure { close_code: close::POLICY, reason: "too much was sent before the namespace was granted" };
const TOO_MUCH_BEFORE: Failure =
    Failure { close_code: close::POLICY, reason: "too many messages outside of a namespace" };

/// What tells ids of sessions from those of another node, and of another path.
fn tag(path: EnginePath, hasher: &NameHasher) -> String {
    let path = match path {
        EnginePath::SocketIo => 's',
        EnginePath::Messages => 'm',
    };
    format!("{path}{:04x}", hasher.room("node").hash() >> 48)
}

/// The shard that has a session of Engine.IO, by the session's id; an error where that can't be one of this node's, at that
/// path.
pub fn shard_of_sid(sid: &str, path: EnginePath, hasher: &NameHasher, shards: u16) -> Result<ShardId, RequestError> {
    let mut parts = sid.splitn(3, '.');
    let (shard, of) = (parts.next().and_then(|part| part.parse().ok()), parts.next());
    match shard.filter(|shard: &u16| *shard < shards && of == Some(&*tag(path, hasher))) {
        Some(shard) => Ok(ShardId(shard)),
        None => Err(RequestError::SessionUnknown),
    }
}
