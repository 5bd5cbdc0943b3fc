//! Which namespaces of a client of Socket.IO get what: the events of a room, the answer to a command, what the hub says by
//! itself. Only a client in several namespaces has anything noted about it.

use super::answers::write_room;
use super::connection::{Connection, Membership};
use super::socketio::{RoomSpaces, Told, outlet};
use super::state::State;
use crate::hub::message::{Message, Ticket};
use crate::hub::outbox::Protocol;
use crate::hub::rooms::RoomId;
use crate::ring::ConnKey;
use crate::session::socketio::{AnswerTo, Space, Spaces};
use crate::shard::Settings;
use crate::wire::envelope;
use crate::wire::native::Reference;
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
            (Protocol::Native, _) | (_, None) if protocol != Protocol::Stream => envelope::finish(payload, out),
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
        let reference = AnswerTo { space, id: None }.reference();
        let Some(client) = self.client_mut(conn) else { return };
        let token = super::resume::token_text(&client.resume_token);
        let mut data = Vec::new();
        settings.greeting.write(&mut data, &client.session, more_rooms, &token);
        self.tell(conn, "connection_established", Some(&reference), |payload| payload.extend_from_slice(&data));
    }

    /// Before a client is let into its second namespace: what it has subscribed to so far is the first one's.
    pub(super) fn divide_rooms(&mut self, conn: ConnKey) {
        let Some(connection) = self.connections.get(conn) else { return };
        let Some(socketio) = connection.socketio.as_deref() else { return };
        let before: Vec<Space> =
            socketio.engine.spaces().filter(|space| socketio.handled_id(*space).is_none()).collect();
        let Some(client) = self.client_mut(conn) else { return };
        let (rooms, divided) =
            (client.rooms.clone(), client.under_way.as_ref().is_some_and(|all| all.spaces.is_some()));
        if divided {
            return;
        }
        let mut spaces = RoomSpaces::default();
        for room in rooms.into_iter().filter(|room| !self.is_everybodys(*room)) {
            before.iter().for_each(|space| spaces.add(room, *space));
        }
        if let Some(client) = self.client_mut(conn) {
            client.under_way().spaces = Some(spaces);
        }
    }

    /// Whether a room is one that clients are in without asking, so that all of their namespaces get its events.
    fn is_everybodys(&self, room: RoomId) -> bool {
        let name = self.core.rooms().get(room).map(|room| room.name.as_str());
        name.is_none_or(|name| name == "global" || name.starts_with("user:") || name.starts_with("session:"))
    }

    /// A client is in a room that one of its namespaces has subscribed to.
    pub(super) fn note_subscribed(&mut self, conn: ConnKey, room: RoomId, ticket: &Ticket) {
        if self.is_everybodys(room) {
            return;
        }
        let Some(space) = self.space_of(conn, ticket) else { return };
        if let Some(spaces) = self.client_mut(conn).and_then(|client| client.under_way.as_mut()?.spaces.as_mut()) {
            spaces.add(room, space);
        }
    }

    /// A namespace wants a room no more. True where another one still does, so that the client stays in it.
    pub(super) fn stays_for_others(&mut self, conn: ConnKey, room: RoomId, ticket: &Ticket) -> bool {
        let Some(space) = self.space_of(conn, ticket) else { return false };
        let spaces = self.client_mut(conn).and_then(|client| client.under_way.as_mut()?.spaces.as_mut());
        spaces.is_some_and(|spaces| spaces.remove(room, space))
    }

    /// The namespace that a command came from.
    fn space_of(&mut self, conn: ConnKey, ticket: &Ticket) -> Option<Space> {
        if self.connections.get(conn).is_none_or(|connection| connection.socketio.is_none()) {
            return None;
        }
        let reference = match ticket {
            Ticket::Single(reference) => reference.clone(),
            Ticket::Part(part) => {
                let gathers = &self.client_mut(conn)?.under_way.as_ref()?.gathers;
                gathers.iter().find(|gather| gather.part == *part)?.reference.clone()
            }
            _ => None,
        };
        reference.as_ref().and_then(AnswerTo::of).map(|to| to.space)
    }

    /// A client has left one of its namespaces: rooms that only this one had subscribed to are left.
    pub(super) fn leave_for(&mut self, conn: ConnKey, space: Space) {
        let Some(spaces) = self.client_mut(conn).and_then(|client| client.under_way.as_mut()?.spaces.as_mut()) else {
            return;
        };
        let alone = spaces.only(space);
        spaces.leave(space);
        let address = self.address(conn);
        for id in alone {
            let Some(room) = self.core.rooms().get(id).map(|room| room.name.clone()) else { continue };
            let Some(client) = self.client_mut(conn) else { return };
            client.under_way().memberships.push(Membership { room: room.clone(), join: None });
            let ticket = Ticket::Single(None);
            self.core.send_home(&room.clone(), Message::Leaving { room, address, ticket });
        }
    }

    /// Answers an `unsubscribe` of one namespace where the client stays in the room for another one.
    pub(super) fn tell_unsubscribed(&mut self, conn: ConnKey, room: &str, reference: Option<&Reference>) {
        let lane = self.core.rules().lane(room);
        let write = |payload: &mut Vec<u8>| write_room(payload, room);
        self.tell_behind_events(conn, Some(lane), "unsubscribed", reference, write);
    }
}
