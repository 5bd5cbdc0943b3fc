//! Presence on the side of members: what their rooms' homes are told when they come and go, and who is there when a home
//! or a client asks.

use std::sync::Arc;

use super::commands::known_room;
use super::connection::{Client, Phase};
use super::state::State;
use crate::hub::message::Message;
use crate::hub::name::{RoomName, ShardId};
use crate::hub::presence::{Change, MEMBERS_LISTED_MAX, MembersListed, PresenceAsked, PresenceChange, Who};
use crate::ring::ConnKey;
use crate::wire::native::{Reference, Refused};

impl State {
    /// A client wants to know who is in a room.
    pub(super) fn presence(&mut self, conn: ConnKey, reference: Option<Reference>, room: &str) -> Result<(), Refused> {
        let settings = self.settings.clone();
        let (kind, name) = known_room(&settings.config, room)?;
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        client.session.may_join(kind, name)?;
        let room = self.core.hasher().room(room);
        let address = self.address(conn);
        let asker = self.asker_over_nodes(address, reference, &room);
        let asked = PresenceAsked { room: room.clone(), asker };
        self.core.send_home(&room, Message::PresenceAsked(Box::new(asked)));
        Ok(())
    }

    /// A room's home wants to know this shard's members.
    pub(super) fn list_members(&mut self, room: RoomName, home: ShardId) {
        let mut listed = MembersListed { room, sessions: Vec::new(), members: Vec::new() };
        let place = self.core.rooms().find(&listed.room).and_then(|id| self.core.rooms().get(id));
        for conn in place.into_iter().flat_map(|place| place.members.iter()) {
            // Who is still being let in has not been told that it is a member.
            let Some(Phase::Open(client)) = self.connections.get(conn).map(|connection| &connection.phase) else {
                continue;
            };
            let hash = self.core.session_hash(&client.session.session_id);
            listed.sessions.push((hash, client.turn));
            if listed.members.len() < MEMBERS_LISTED_MAX {
                listed.members.push((hash, who(client)));
            }
        }
        self.core.send(home, Message::MembersListed(Box::new(listed)));
    }

    /// A connection is a member, or was one under another session.
    pub(super) fn presence_entered(&mut self, conn: ConnKey, room: &RoomName) {
        if self.core.tells_presence(room) {
            self.presence_changed(conn, std::slice::from_ref(room), Change::Entered);
        }
    }

    /// A connection is no member because it could not be made one: its session is not there any more, should it have been.
    pub(super) fn presence_refused(&mut self, conn: ConnKey, room: &RoomName) {
        let id = self.core.rooms().find(room);
        let is_member = |client: &mut Client| id.is_some_and(|id| client.rooms.contains(&id));
        if !self.client_mut(conn).is_some_and(is_member) {
            self.presence_changed(conn, std::slice::from_ref(room), Change::Gone);
        }
    }

    /// A connection's session is a member of all its rooms from here on.
    pub(super) fn presence_entered_all(&mut self, conn: ConnKey) {
        let mut rooms = self.rooms_of(conn);
        rooms.retain(|room| self.core.tells_presence(room));
        self.presence_changed(conn, &rooms, Change::Entered);
    }

    /// A connection is about to be released. `is_kept` where its session can be resumed.
    pub(super) fn presence_released(&mut self, conn: ConnKey, is_kept: bool) {
        let is_resumable = is_kept || self.client_mut(conn).is_some_and(|client| client.is_succeeded);
        // At the node's end nobody is left to whom it would matter.
        if !self.stopping {
            self.presence_ended_all(conn, if is_resumable { Change::Away } else { Change::Gone });
        }
    }

    /// A connection's session is no member of any room any more; to be said before it is taken out of them.
    pub(super) fn presence_ended_all(&mut self, conn: ConnKey, change: Change) {
        let rooms = self.rooms_of(conn);
        self.presence_changed(conn, &rooms, change);
    }

    /// Tells the homes of rooms what became of a connection's session there. The home of a room where it was nothing
    /// takes no notice, unless the session was away there.
    pub(super) fn presence_changed(&mut self, conn: ConnKey, rooms: &[RoomName], change: Change) {
        let Some(client) = self.client_mut(conn) else { return };
        if rooms.is_empty() {
            return;
        }
        let who = Arc::new(who(client));
        for room in rooms {
            let changed = PresenceChange { room: room.clone(), who: who.clone(), change };
            self.core.send_home(room, Message::Presence(Box::new(changed)));
        }
    }

    fn rooms_of(&mut self, conn: ConnKey) -> Vec<RoomName> {
        let Some(ids) = self.client_mut(conn).map(|client| client.rooms.clone()) else { return Vec::new() };
        ids.iter().filter_map(|id| self.core.rooms().get(*id)).map(|room| room.name.clone()).collect()
    }
}

fn who(client: &Client) -> Who {
    let session = &client.session;
    Who {
        client_id: session.client_id.clone(),
        session_id: session.session_id.clone(),
        identity: session.identity.clone(),
        metadata: session.metadata_object(),
        turn: client.turn,
    }
}
