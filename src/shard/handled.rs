//! What an embedding program serves itself: its namespaces of Socket.IO, and its path of Engine.IO.

use std::sync::Arc;

use super::connection::Phase;
use super::state::State;
use crate::auth::Identity;
use crate::ring::ConnKey;
use crate::session::handler::{Arguments, Caller, HandledEvent, MessageCaller};
use crate::session::socketio::{Content, Emitted, Failure, Space};
use crate::wire::engineio::Packet;
use crate::wire::socketio::{Malformed, with_event};

impl State {
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

    pub(super) fn grant_handled(&mut self, conn: ConnKey, space: Space, auth: &[u8]) {
        let settings = self.settings.clone();
        let Some(handler) = settings.handlers.namespace(space.name(&settings.engine_terms())) else { return };
        let client_id = self.core.ids().client();
        let identity = self.handled_identity(conn);
        let auth = std::str::from_utf8(auth).unwrap_or("{}");
        self.with_engine(conn, |socketio, terms, outlet| {
            socketio.handled.retain(|(one, _)| *one != space);
            socketio.handled.push((space, client_id.clone()));
            socketio.engine.grant(space, &client_id, None, terms, outlet);
            let identity = &identity;
            handler.connected(&mut Caller { space, terms, identity, client_id: &client_id, outlet }, auth);
        });
    }

    /// Who a client is in the namespaces of an embedding program.
    fn handled_identity(&self, conn: ConnKey) -> Arc<Identity> {
        let Some(connection) = self.connections.get(conn) else { return self.settings.anonymous.clone() };
        // It may have left the hub's namespaces, and still be in the program's.
        let let_in = || connection.socketio.as_ref().and_then(|socketio| socketio.identity.clone());
        match &connection.phase {
            Phase::Open(client) => client.session.identity.clone(),
            Phase::Echo(client) => client.identity.clone(),
            _ => let_in().unwrap_or_else(|| self.settings.anonymous.clone()),
        }
    }

    pub(super) fn handle_event(
        &mut self,
        conn: ConnKey,
        emitted: Emitted<'_>,
        scratch: &mut crate::wire::json::Scratch,
    ) -> Result<(), Failure> {
        let settings = self.settings.clone();
        let space = emitted.to.space;
        let Some(handler) = settings.handlers.namespace(space.name(&settings.engine_terms())) else { return Ok(()) };
        let identity = self.handled_identity(conn);
        let socketio = self.connections.get(conn).and_then(|connection| connection.socketio.as_deref());
        let Some(client_id) = socketio.and_then(|socketio| socketio.handled_id(space)).cloned() else { return Ok(()) };
        let mut text = Vec::new();
        let mut assembled = None;
        let attachments = match emitted.content {
            Content::Text(json) => {
                text.extend_from_slice(json);
                None
            }
            Content::Assembled(all) => {
                let (packet, attachments) = assembled.insert(all).parts();
                // Each has its place, once: judged as it is for commands.
                attachments.splice(packet.payload, &mut Vec::new())?;
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
    pub(super) fn hand_message(&mut self, conn: ConnKey, packet: &mut Packet<'_>) -> bool {
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
}
