//! What becomes of connections that may do less than before: because a new token says so, because an operator took
//! permissions away, or because they are to show a valid token and don't.

use std::sync::Arc;

use super::answers::write_expires_at;
use super::commands::known_room;
use super::connection::{Admission, Client, Phase};
use super::state::State;
use crate::auth::{Withdrawal, Withdrawn, withdrawal};
use crate::config::Config;
use crate::hub::message::{Message, Withdraw, Withdrew};
use crate::hub::name::RoomName;
use crate::hub::presence::Change;
use crate::hub::recorder::What;
use crate::ring::ConnKey;
use crate::session::SessionId;
use crate::wire::codes::{ErrorCode, close};
use crate::wire::envelope;
use crate::wire::json::write_string;
use crate::wire::refusal::Refusal;

/// The refusal of a connection whose session may not connect any more.
const CONNECT_WITHDRAWN: &str = "websocket:connect was withdrawn";

impl State {
    /// Takes permissions away from a connection and its session; none where there is no such connection.
    pub fn withdraw(&mut self, conn: ConnKey, withdraw: &Withdraw) -> Option<Withdrew> {
        let now = self.now;
        let connection = self.connections.get_mut(conn)?;
        match &mut connection.phase {
            Phase::Open(client) => {
                let session_id = client.session.session_id.clone();
                let withdrawn = client.session.withdraw(&withdraw.permissions, now);
                self.tell_session_home(conn, &session_id, withdrawn);
            }
            // About to be let in. The session it named may be another's: its home is told once it is this connection's.
            Phase::Admission(admission) => {
                let (at_s, mark) = (now.unix_ms / 1000, admission.admit.identity.mark);
                let withdrawn = withdrawal::withdrawn(&withdraw.permissions, at_s, mark);
                admission.go_without(&withdrawn);
                if withdraw.disconnect {
                    let refusal = || Refusal::forbidden("permissions were withdrawn");
                    admission.refused.get_or_insert_with(refusal);
                }
            }
            _ => return None,
        }
        if withdraw.disconnect {
            self.close(conn, close::FORBIDDEN, &withdraw.reason);
        } else {
            self.enforce_permissions(conn);
        }
        let stays = self.connections.get(conn).is_some_and(|connection| match &connection.phase {
            Phase::Open(_) => true,
            Phase::Admission(admission) => admission.refused.is_none(),
            _ => false,
        });
        Some(Withdrew { connections: 1, closed: u32::from(!stays), sessions: 0 })
    }

    /// Takes permissions away from this shard's connections of a user, and from the user's sessions homed here.
    pub fn withdraw_from_user(&mut self, user_id: &str, withdraw: &Withdraw) -> Withdrew {
        let mut withdrew = Withdrew::default();
        for conn in self.connections_of(user_id) {
            if let Some(one) = self.withdraw(conn, withdraw) {
                withdrew.connections += one.connections;
                withdrew.closed += one.closed;
            }
        }
        withdrew.sessions = self.core.withdraw_from_sessions_of(user_id, &withdraw.permissions);
        withdrew
    }

    /// Wants a valid token of a connection; none where there is no such connection. One that is about to be let in has just
    /// shown its own.
    pub fn reauthenticate(&mut self, conn: ConnKey, grace_s: u32) -> Option<u32> {
        let now = self.now;
        let session = &mut self.client_mut(conn)?.session;
        session.ask_for_proof(grace_s, now);
        let expires_at = session.expires_at();
        self.tell(conn, "auth.expiring", None, |payload| write_expires_at(payload, expires_at));
        self.look_after(conn);
        Some(1)
    }

    /// Wants a valid token of this shard's connections of a user; says how many there are.
    pub fn reauthenticate_user(&mut self, user_id: &str, grace_s: u32) -> u32 {
        let connections = self.connections_of(user_id);
        connections.into_iter().filter_map(|conn| self.reauthenticate(conn, grace_s)).sum()
    }

    /// A connection took a session up from which this was withdrawn.
    pub fn inherit_withdrawn(&mut self, conn: ConnKey, withdrawn: Option<Withdrawn>) {
        let Some(client) = self.client_mut(conn) else { return };
        let own = client.session.identity.permissions.withdrawn().cloned();
        let session_id = client.session.session_id.clone();
        if let Some(withdrawn) = &withdrawn {
            client.session.inherit_withdrawn(withdrawn);
        }
        // What was withdrawn from this connection stays with the session that it has now.
        if let Some(own) = own {
            self.tell_session_home(conn, &session_id, own);
        }
        if withdrawn.is_some() {
            self.enforce_permissions(conn);
        }
    }

    /// This was withdrawn from a connection's session.
    pub fn withdrawn_told(&mut self, conn: ConnKey, withdrawn: &[Withdrawal]) {
        match self.connections.get_mut(conn).map(|connection| &mut connection.phase) {
            Some(Phase::Open(client)) => {
                client.session.inherit_withdrawn(withdrawn);
                self.enforce_permissions(conn);
            }
            Some(Phase::Admission(admission)) => admission.go_without(withdrawn),
            _ => {}
        }
    }

    /// A connection was let in from which something was withdrawn while that was being decided.
    pub fn withdrawn_at_admission(&mut self, conn: ConnKey) {
        let Some(client) = self.client_mut(conn) else { return };
        let Some(withdrawn) = client.session.identity.permissions.withdrawn().cloned() else { return };
        let session_id = client.session.session_id.clone();
        self.tell_session_home(conn, &session_id, withdrawn);
    }

    fn tell_session_home(&mut self, conn: ConnKey, session_id: &SessionId, withdrawn: Withdrawn) {
        let address = self.address(conn);
        let room = self.core.hasher().session_room(session_id);
        self.core.send_home(&room.clone(), Message::Withdrawn { room, address, withdrawn });
    }

    /// This shard's connections of a user, and those about to be let in.
    fn connections_of(&self, user_id: &str) -> Vec<ConnKey> {
        let is_users = |conn: &ConnKey| match self.connections.get(*conn).map(|connection| &connection.phase) {
            Some(Phase::Open(client)) => client.session.identity.user_id == user_id,
            Some(Phase::Admission(admission)) => admission.admit.identity.user_id == user_id,
            _ => false,
        };
        self.connections.keys().into_iter().filter(is_users).collect()
    }

    /// Ends what a client's present permissions don't allow any more: the connection, or its place in rooms.
    pub fn enforce_permissions(&mut self, conn: ConnKey) {
        let settings = self.settings.clone();
        let Some(client) = self.client_mut(conn) else { return };
        if !client.session.identity.permissions.may_connect() {
            return self.close(conn, close::FORBIDDEN, CONNECT_WITHDRAWN);
        }
        let ids = client.rooms.clone();
        for id in ids {
            let Some(room) = self.core.rooms().get(id).map(|room| room.name.clone()) else { continue };
            let Some(client) = self.client_mut(conn) else { return };
            if may_stay(client, &settings.config, room.as_str()) {
                continue;
            }
            client.forget_room(id);
            self.note_leaving(conn, &room, id);
            let (before, why) = (self.core.mark_of(id, conn), "permission withdrawn");
            self.core.recorder.change(conn, What::Unsubscribed { room: room.clone(), before, why });
            self.core.remove_member(id, conn);
            self.presence_changed(conn, std::slice::from_ref(&room), Change::Gone);
            self.leave_home(room.clone(), conn);
            self.figures.subscriptions.sub(1);
            self.tell_put_out(conn, &room);
        }
        self.free_forbidden_locks(conn);
    }

    /// Tells a client that it is in a room no longer: by what it would be answered had it left, and by why.
    fn tell_put_out(&mut self, conn: ConnKey, room: &RoomName) {
        self.count_refused(conn, ErrorCode::Forbidden);
        let lane = self.core.rules().lane(room.as_str());
        self.tell_in_order(conn, Some(lane), "unsubscribed", None, |payload| {
            payload.extend_from_slice(b"{\"room\":");
            write_string(payload, room.as_str());
            payload.extend_from_slice(b",\"reason\":\"forbidden\"}");
        });
        self.tell(conn, "error", None, |payload| {
            let message = format!("the permission for {} was withdrawn; its events end here", room.as_str());
            envelope::write_error_details(payload, ErrorCode::Forbidden, &message, |details| {
                details.extend_from_slice(b"\"room\":");
                write_string(details, room.as_str());
            });
        });
    }
}

impl Admission {
    /// The identity that is let in goes without what was withdrawn from its session; that may be the whole connection.
    pub fn go_without(&mut self, withdrawn: &[Withdrawal]) {
        self.admit.identity = Arc::new(self.admit.identity.without(withdrawn));
        if !self.admit.identity.permissions.may_connect() {
            self.refused.get_or_insert_with(|| Refusal::forbidden(CONNECT_WITHDRAWN));
        }
    }
}

/// Whether a client may be in a room that it is in, or is about to be: one that it may join, or that everybody is put into
/// and that is nobody's to lose.
pub(super) fn may_stay(client: &Client, config: &Config, room: &str) -> bool {
    room == "global"
        || room.strip_prefix("user:") == Some(&client.session.identity.user_id)
        || room.strip_prefix("session:") == Some(&client.session.session_id)
        || known_room(config, room).is_ok_and(|(kind, name)| client.session.may_join(kind, name).is_ok())
}
