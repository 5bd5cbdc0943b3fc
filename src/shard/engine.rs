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

use super::connection::{Connection, HeadBuffer, Phase};
use super::report::Ending;
use super::request::counted_address;
use super::socketio::{Entry, SocketIo, outlet};
use super::state::State;
use crate::control::hooks::RequestTold;
use crate::control::store::ClosedBy;
use crate::hub::name::{NameHasher, ShardId};
use crate::hub::outbox::Protocol;
use crate::ring::ConnKey;
use crate::session::OverRate;
use crate::session::handshake::{EngineAsked, EnginePath};
use crate::session::socketio::{Content, Emitted, Engine, Failure, Heard, Terms};
use crate::wire::codes::close;
use crate::wire::engineio::{self, Packet, PacketKind};
use crate::wire::outlet::Outlet;
use crate::wire::refusal::Refusal;
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
        let deflate = self.grant_deflate(conn, asked.deflate);
        let Some(connection) = self.connections.get_mut(conn) else { return };
        switching_protocols(&key, None, deflate, connection.outbox.answers());
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
        connection.spaces_change();
        let Connection { outbox, socketio, .. } = connection;
        let socketio = socketio.as_deref_mut()?;
        let (protocol, before) = (outbox.protocol(), outbox.answers_bytes());
        let acted = act(socketio, &terms, &mut outlet(protocol, socketio.base64, outbox.answers()));
        self.deflating.answers(outbox, before);
        if outbox.answers_bytes() == before {
            outbox.tidy();
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
        let is_handled = socketio.handled_id(emitted.to.space).is_some();
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

    /// An id of a session, which nobody can guess: whoever has it may poll. It says the shard, so that requests find it
    /// wherever they arrive, and the node, so that one that came to another node is told apart.
    fn engine_sid(&mut self, path: EnginePath) -> Box<str> {
        let mut secret = [0u8; 16];
        (self.entropy.0)(&mut secret);
        let (shard, tag) = (self.me.0, tag(path, &self.core.hasher()));
        format!("{shard}.{tag}.{:032x}", u128::from_be_bytes(secret)).into()
    }
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

/// Why a session's id names no session of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotHere {
    /// It is no id of a session, or of one at another path.
    Unknown,
    /// It is an id as nodes make them, but not this node's.
    Elsewhere,
}

/// The shard that has a session of Engine.IO, by the session's id.
pub fn shard_of_sid(sid: &str, path: EnginePath, hasher: &NameHasher, shards: u16) -> Result<ShardId, NotHere> {
    let mut parts = sid.splitn(3, '.');
    let (Some(shard), Some(of), Some(_)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(NotHere::Unknown);
    };
    let ours = tag(path, hasher);
    match shard.parse::<u16>().ok().filter(|shard| *shard < shards) {
        Some(shard) if of == ours => Ok(ShardId(shard)),
        _ if of.len() == ours.len() && of.as_bytes().first() == ours.as_bytes().first() => Err(NotHere::Elsewhere),
        _ => Err(NotHere::Unknown),
    }
}
