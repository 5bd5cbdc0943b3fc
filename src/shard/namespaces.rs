//! How a client of Socket.IO is let into a namespace, and leaves it.

use std::sync::Arc;

use super::connection::Phase;
use super::recover::read_pid;
use super::report::Ending;
use super::socketio::Granting;
use super::state::State;
use crate::auth::Identity;
use crate::control::store::ClosedBy;
use crate::ring::ConnKey;
use crate::session::handshake::{Admit, Endpoint, Offered, TOKEN_NEEDED};
use crate::session::socketio::{Asked, Space};
use crate::wire::engineio::Payload;
use crate::wire::json::{write_string, write_u64};
use crate::wire::native::is_client_id;
use crate::wire::refusal::Refusal;

impl State {
    /// A client asks for a namespace.
    pub(super) fn namespace_asked(&mut self, conn: ConnKey, asked: Asked<'_>) -> bool {
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
                    subprotocol: None,
                    deflate: None,
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
        // Not before: what is due of its token is told in its namespace.
        self.look_after(conn);
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
    pub(super) fn namespace_left(&mut self, conn: ConnKey, space: Space) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.spaces_change();
        let Some(socketio) = connection.socketio.as_deref_mut() else { return };
        let was_handled = socketio.handled_id(space).is_some();
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
}

/// What a client brings to a namespace.
struct Brought {
    token: Option<Box<str>>,
    client_id: Option<Box<str>>,
    session_id: Option<Box<str>>,
    pid: Option<Box<str>>,
    auth: Box<[u8]>,
}
