//! Which namespaces of a client of Socket.IO get what: the events of a room, the answer to a command, what the hub says by
//! itself. Only a client in several namespaces has anything noted about it.

use super::answers::GREETING;
use super::connection::{Client, Connection, Membership, Phase};
use super::form;
use super::socketio::{RoomSpaces, SocketIo, Told, outlet};
use super::state::State;
use crate::hub::message::{Message, Ticket};
use crate::hub::name::RoomName;
use crate::hub::outbox::Protocol;
use crate::hub::rooms::RoomId;
use crate::ring::ConnKey;
use crate::session::socketio::{AnswerTo, Space, Spaces, Visit};
use crate::shard::Settings;
use crate::wire::deflate;
use crate::wire::native::Reference;
use crate::wire::socketio::leave_out;
use crate::wire::sse;

impl Connection {
    /// Appends a message of the hub's in the form that this connection takes; `payload` has all of it but the last brace. It is
    /// an answer, or about a room, or for all of the client.
    pub(super) fn finish_message(
        &mut self,
        settings: &Settings,
        payload: &mut Vec<u8>,
        kind: &str,
        reference: Option<&Reference>,
        room: Option<RoomId>,
        out: Option<&mut Vec<u8>>,
    ) {
        let protocol = self.outbox.protocol();
        let spaces = match (protocol, room) {
            (Protocol::SocketIo | Protocol::Polling, Some(room)) => self.spaces_of(room),
            _ => self.socketio.as_ref().map_or_else(Spaces::default, |socketio| socketio.spaces()),
        };
        let out = match out {
            Some(out) => out,
            None => self.outbox.answers(),
        };
        match (protocol, &self.socketio) {
            (Protocol::Native | Protocol::Variant(_), _) | (_, None) if protocol != Protocol::Stream => {
                form::finish(protocol, payload, out);
            }
            (_, Some(socketio)) => {
                payload.push(b'}');
                let to = reference.and_then(AnswerTo::of).map_or(Told::Spaces(spaces), Told::Answer);
                let mut outlet = outlet(protocol, socketio.base64, out);
                socketio.write(to, kind, payload, &settings.engine_terms(), &mut outlet);
            }
            (_, None) => {
                payload.push(b'}');
                sse::write_notice(out, kind, payload);
            }
        }
    }

    /// What stands in an answer's `ref`: the id that the client gave its command. A library of Socket.IO has its own way back.
    pub(super) fn shown<'r>(&self, reference: Option<&'r Reference>) -> Option<&'r Reference> {
        reference.filter(|_| self.socketio.is_none())
    }
}

impl State {
    /// Sends the greeting into a namespace.
    pub(super) fn greet_in(&mut self, conn: ConnKey, space: Space, more_rooms: &[Box<str>]) {
        let settings = self.settings.clone();
        let Some(connection) = self.connections.get(conn) else { return };
        let Some(visit) = connection.socketio.as_deref().map(|socketio| socketio.visit(space)) else { return };
        let reference = AnswerTo { space, visit, id: None }.reference();
        let Some(client) = self.client_mut(conn) else { return };
        let token = super::resume::token_text(&client.resume_token);
        let mut data = Vec::new();
        settings.greeting.write(&mut data, &client.session, more_rooms, &token);
        self.tell(conn, GREETING, Some(&reference), |payload| payload.extend_from_slice(&data));
    }

    /// Before a client is let into its second namespace: what it has subscribed to so far is the first one's.
    pub(super) fn divide_rooms(&mut self, conn: ConnKey) {
        let Some(connection) = self.connections.get(conn) else { return };
        let Some(socketio) = connection.socketio.as_deref() else { return };
        let before: Vec<Space> =
            socketio.engine.spaces().filter(|space| socketio.handled_id(*space).is_none()).collect();
        let Some(client) = self.client_mut(conn) else { return };
        if client.divides_rooms() {
            return;
        }
        let rooms = client.rooms.clone();
        let mut spaces = RoomSpaces::default();
        for room in rooms.into_iter().filter(|room| !self.is_everybodys(conn, *room)) {
            before.iter().for_each(|space| spaces.add(room, *space));
        }
        self.note_spaces(conn, spaces);
    }

    /// From here on it is noted which namespaces of a client have subscribed to which room.
    pub(super) fn note_spaces(&mut self, conn: ConnKey, spaces: RoomSpaces) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.spaces_change();
        if let Phase::Open(client) = &mut connection.phase {
            client.under_way().spaces = Some(spaces);
        }
    }

    /// Whether a room is one that a client is in without asking, so that all of its namespaces get its events.
    pub(super) fn is_everybodys(&self, conn: ConnKey, room: RoomId) -> bool {
        let Some((_, client)) = self.open_client(conn) else { return true };
        let name = self.core.rooms().get(room).map(|room| room.name.as_str());
        name.is_none_or(|name| {
            name == "global"
                || name.strip_prefix("user:") == Some(&client.session.identity.user_id)
                || name.strip_prefix("session:") == Some(&client.session.session_id)
        })
    }

    /// A client is in a room that one of its namespaces has subscribed to.
    pub(super) fn note_subscribed(
        &mut self,
        conn: ConnKey,
        room: RoomId,
        by: Option<(Space, Visit)>,
        before: Option<Spaces>,
    ) {
        let is_everybodys = self.is_everybodys(conn, room);
        let Some(spaces) = self.spaces_mut(conn).filter(|_| !is_everybodys) else { return };
        if let Some((space, _)) = by {
            spaces.add(room, space);
        } else if let Some(before) = before {
            spaces.put(room, before);
        }
    }

    /// A namespace wants a room no more, or none does that has been left. True where another one still does, so that the
    /// client stays in it.
    pub(super) fn stays_for_others(&mut self, conn: ConnKey, room: RoomId, by: Option<(Space, Visit)>) -> bool {
        let Some(spaces) = self.spaces_mut(conn) else { return false };
        if let Some((space, _)) = by {
            spaces.remove(room, space);
        }
        spaces.is_wanted(room)
    }

    fn spaces_mut(&mut self, conn: ConnKey) -> Option<&mut RoomSpaces> {
        self.client_mut(conn)?.under_way.as_mut()?.spaces.as_mut()
    }

    /// Whether a connection speaks Socket.IO.
    pub(super) fn speaks_socketio(&self, conn: ConnKey) -> bool {
        self.connections.get(conn).is_some_and(|connection| connection.socketio.is_some())
    }

    /// Whether a client's visit to a namespace is not over.
    pub(super) fn is_visiting(&self, conn: ConnKey, visit: (Space, Visit)) -> bool {
        let socketio = self.connections.get(conn).and_then(|connection| connection.socketio.as_deref());
        socketio.is_some_and(|socketio| socketio.is_visiting(visit))
    }

    /// The namespaces that a client is in, or the one with which it leaves the last.
    pub(super) fn namespaces_of(&self, conn: ConnKey) -> Spaces {
        let socketio = self.connections.get(conn).and_then(|connection| connection.socketio.as_deref());
        socketio.map_or_else(Spaces::default, SocketIo::spaces_or_last)
    }

    /// The namespaces that have subscribed to a room, a bit each; 0 where all of the client gets its events. None where no
    /// namespace wants it any more.
    pub(super) fn namespaces_in(&self, client: &Client, conn: ConnKey, room: RoomId) -> Option<u32> {
        if self.is_everybodys(conn, room) {
            return Some(0);
        }
        match client.spaces_of(room) {
            Some(spaces) => (!spaces.is_empty()).then(|| spaces.bits()),
            None => Some(self.namespaces_of(conn).bits()),
        }
    }

    /// Who asked for what comes back with a ticket.
    pub(super) fn asker(&self, conn: ConnKey, ticket: &Ticket) -> Asker {
        let Some(connection) = self.connections.get(conn) else { return Asker::Gone };
        let Some(socketio) = connection.socketio.as_deref() else { return Asker::Client };
        let reference = match ticket {
            Ticket::Single(reference) => reference.as_ref(),
            Ticket::Part(part) => {
                let under_way = self.open_client(conn).and_then(|(_, client)| client.under_way.as_deref());
                let gather = under_way.and_then(|all| all.gathers.iter().find(|gather| gather.part == *part));
                match gather {
                    Some(gather) => gather.reference.as_ref(),
                    None => return Asker::Gone,
                }
            }
            _ => None,
        };
        match reference.and_then(AnswerTo::of).map(|to| (to.space, to.visit)) {
            None => Asker::Client,
            Some(visit) if socketio.is_visiting(visit) => Asker::Visitor(visit),
            Some(visit) => Asker::Left(visit),
        }
    }

    /// Whether whoever sent a command is there no more, though the connection is: it has left the namespace.
    pub(super) fn has_left(&self, conn: ConnKey, reference: Option<&Reference>) -> bool {
        let to = reference.and_then(AnswerTo::of).filter(|_| self.speaks_socketio(conn));
        to.is_some_and(|to| !self.is_visiting(conn, (to.space, to.visit)))
    }

    /// A client has left one of its namespaces: rooms that only this one had subscribed to are left. What it has asked for
    /// and not been answered is passed over when that comes.
    pub(super) fn leave_for(&mut self, conn: ConnKey, space: Space) {
        let Some(spaces) = self.spaces_mut(conn) else { return };
        let alone = spaces.only(space);
        spaces.leave(space);
        let rooms = alone.into_iter().filter_map(|id| self.core.rooms().get(id)).map(|room| room.name.clone());
        let mut rooms: Vec<RoomName> = rooms.collect();
        // Those of a session that was taken up, which are being joined.
        let joins = self.client_mut(conn).and_then(|client| client.under_way.as_mut());
        for Membership { room, join, .. } in joins.into_iter().flat_map(|all| &mut all.memberships) {
            if let Some(namespaces) =
                join.as_mut().and_then(|wish| wish.namespaces.as_mut()).filter(|all| all.has(space))
            {
                *namespaces = namespaces.without(space);
                if namespaces.is_empty() {
                    rooms.push(room.clone());
                }
            }
        }
        let address = self.address(conn);
        for room in rooms {
            let Some(client) = self.client_mut(conn) else { return };
            client.under_way().memberships.push(Membership { room: room.clone(), join: None, by: None });
            let ticket = Ticket::Single(None);
            self.core.send_home(&room.clone(), Message::Leaving { room, address, ticket });
        }
    }

    /// What waits for a namespace that the client has left is not sent: who enters it again would take it for its own.
    pub(super) fn forget_packets(&mut self, conn: ConnKey, space: Space) {
        let State { connections, core, latency, settings, .. } = self;
        let Some(connection) = connections.get_mut(conn) else { return };
        let Connection { outbox, followed, socketio, .. } = connection;
        let polls = outbox.protocol() == Protocol::Polling;
        let namespace = space.name(&settings.engine_terms());
        let write = |written: &[u8], out: &mut Vec<u8>| leave_out(&deflate::plain(written), polls, namespace, out);
        outbox.rewrite(core.memory(), write);
        let polling = socketio.as_deref_mut().and_then(|socketio| socketio.polling.as_deref_mut());
        polling.into_iter().for_each(|polling| polling.rewrite_unsent(write));
        latency.forget(followed);
        // It may have been all that was to be sent before more is read from a log.
        self.go_on(conn);
    }
}

/// Who asked for something that is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// The client, which has no namespaces, or the hub for it.
    Client,
    /// A namespace.
    Visitor((Space, Visit)),
    /// A namespace that the client has left meanwhile, and may have entered again.
    Left((Space, Visit)),
    /// A client that the connection had before.
    Gone,
}

impl Asker {
    /// The namespace that asked, and when.
    pub(super) fn visit(self) -> Option<(Space, Visit)> {
        match self {
            Asker::Visitor(visit) | Asker::Left(visit) => Some(visit),
            Asker::Client | Asker::Gone => None,
        }
    }
}
