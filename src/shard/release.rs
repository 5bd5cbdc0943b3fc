//! What a connection gives back when it ends: its rooms, what it holds in the directories, its session.

use std::sync::Arc;

use super::admission::CLIENT_GONE;
use super::connection::{Closing, Phase, RoomList};
use super::form;
use super::report::Ending;
use super::state::{Orphan, State};
use crate::hub::message::Message;
use crate::hub::name::RoomName;
use crate::hub::outbox::Protocol;
use crate::ring::ConnKey;

impl State {
    /// Gives back all that a connection holds: rooms, claims, its place in the counts.
    pub fn release(&mut self, conn: ConnKey, ending: Ending<'_>) {
        self.report_closed(conn, ending);
        self.note_closing(conn, ending);
        self.admission_ended(conn, "gone", CLIENT_GONE);
        let address = self.address(conn);
        let kept = self.keep_with_locks(conn);
        self.presence_released(conn, kept.is_some());
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let (rooms, claims, peer, names, identity) = match &mut connection.phase {
            Phase::Open(client) => {
                let session = &client.session;
                let names = Some((session.client_id.clone(), session.session_id.clone()));
                (std::mem::take(&mut client.rooms), client.claims, client.peer, names, session.identity.clone())
            }
            Phase::Echo(client) => (RoomList::new(), client.claims, client.peer, None, client.identity.clone()),
            Phase::Admission(admission) => {
                let identity = admission.admit.identity.clone();
                let names = Some((admission.client_id.clone(), admission.session_id.clone()));
                (std::mem::take(&mut admission.rooms), admission.granted, admission.peer, names, identity)
            }
            _ => return,
        };
        if let Phase::Admission(admission) = &connection.phase {
            self.admissions -= 1;
            if admission.waiting > 0 {
                self.orphans.push(Orphan {
                    conn,
                    peer: admission.peer,
                    client_id: admission.client_id.clone(),
                    user_id: admission.admit.identity.user_id.as_str().into(),
                    waiting: admission.waiting,
                });
            }
        } else {
            self.figures.connections.sub(1);
            self.figures.streams.sub(u64::from(connection.outbox.protocol() == Protocol::Stream));
            self.figures.socketio.sub(u64::from(connection.socketio.is_some()));
            form::count(&self.figures, connection.outbox.protocol(), false);
            self.figures.subscriptions.sub(rooms.len() as u64);
            tracing::debug!(shard = self.me.0, slot = conn.slot, "connection closed");
        }
        // A stream has no session that would be kept, but a cursor.
        let comes_back = connection.outbox.protocol() == Protocol::Stream && !self.stopping;
        connection.phase = Phase::Closing(Closing::Flushing);
        self.mesh.release_connection();
        for id in rooms {
            let Some(room) = self.core.rooms().get(id).map(|room| room.name.clone()) else { continue };
            self.core.remove_member(id, conn);
            if comes_back {
                self.core.send_home(&room.clone(), Message::Linger { room: room.clone() });
            }
            self.leave_home(room, conn);
        }
        if let Some(peer) = peer.filter(|_| claims.peer) {
            self.core.send_to_key(&peer, Message::ReleasePeer { peer });
        }
        if let Some((client_id, session_id)) = names {
            if claims.session {
                let room = self.core.hasher().session_room(&session_id);
                self.core.send_home(&room.clone(), Message::ReleaseSession { room, address, kept });
            }
            if let Some(nodes) = self.nodes.as_ref().filter(|_| claims.cluster) {
                nodes.release(&client_id);
            }
            if claims.client {
                self.core.send_to_key(&*client_id.clone(), Message::ReleaseClient { client_id, address });
            }
        }
        if claims.user {
            let user_id: Arc<str> = identity.user_id.as_str().into();
            self.core.send_to_key(&*user_id.clone(), Message::ReleaseUser { user_id });
        }
    }

    /// Tells a room's home that this connection is no member any more, without an answer.
    pub fn leave_home(&mut self, room: RoomName, conn: ConnKey) {
        let address = self.address(conn);
        self.core.send_home(&room.clone(), Message::Leave { room, address });
    }
}
