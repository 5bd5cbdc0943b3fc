//! What is withdrawn from a session, at the session's home: it outlives the connection that holds the session, and goes to
//! every other one that takes it up.
//!
//! It stands in the identity of who began the session, whose permissions nothing else asks for: so it costs the sessions
//! nothing from which nothing was withdrawn.

use std::sync::Arc;

use super::batch::Address;
use super::core::Core;
use super::message::{ClientRequest, Message, Withdraw, Withdrew};
use super::name::RoomName;
use super::reply::{HubError, Responder};
use super::session_home::SessionHome;
use crate::auth::{Withdrawal, Withdrawn, withdrawal};
use crate::wire::codes::ErrorCode;

impl Core {
    /// Remembers what was withdrawn from a connection that holds a session homed here. Where another one has taken that
    /// over meanwhile, it is told.
    pub(super) fn note_withdrawn(&mut self, room: &RoomName, address: Address, withdrawn: Withdrawn) {
        let Some(session) = self.session_at_home(room) else { return };
        session.note_withdrawn(&withdrawn);
        if let Some(live) = session.live.filter(|live| *live != address) {
            self.send(live.shard, Message::WithdrawnTold { address: live, withdrawn });
        }
    }

    /// Withdraws permissions from a session homed here, and from the connection that holds it.
    pub fn withdraw_from_session(&mut self, room: &RoomName, withdraw: Withdraw, responder: Responder<Withdrew>) {
        let at_s = self.now.unix_ms / 1000;
        let Some(session) = self.session_at_home(room) else {
            return responder.resolve(Err(HubError::new(ErrorCode::NotFound, "there is no such session")));
        };
        // Now, not only when its connection has: another one may take it up meanwhile.
        session.withdraw(&withdraw.permissions, at_s);
        let absent = Withdrew { sessions: 1, ..Withdrew::default() };
        if session.live.is_none() {
            return responder.resolve(Ok(absent));
        }
        let told = move |outcome: Result<Withdrew, HubError>| {
            // Its connection went meanwhile.
            let gone = |error: &HubError| error.code == ErrorCode::NotFound;
            responder.resolve(if outcome.as_ref().is_err_and(gone) { Ok(absent) } else { outcome });
        };
        self.forward_to_session(room, ClientRequest::Withdraw { withdraw, responder: Responder::to(told) });
    }

    /// Withdraws permissions from the sessions of a user that are homed here. Says how many of them nobody holds; the
    /// others are their connections' to say, which are told in case they took the session up behind their shard's back.
    pub fn withdraw_from_sessions_of(&mut self, user_id: &str, permissions: &[Box<str>]) -> u32 {
        let at_s = self.now.unix_ms / 1000;
        let is_users = |session: &SessionHome| session.identity.user_id == user_id;
        let sessions = self
            .rooms
            .iter()
            .filter(|(_, room)| room.home.as_ref().and_then(|home| home.session.as_deref()).is_some_and(is_users));
        let ids: Vec<_> = sessions.map(|(id, _)| id).collect();
        let mut absent = 0;
        for id in ids {
            let Some(session) = self.home_mut(id).and_then(|home| home.session.as_deref_mut()) else { continue };
            let withdrawn = session.withdraw(permissions, at_s);
            match session.live {
                Some(address) => self.send(address.shard, Message::WithdrawnTold { address, withdrawn }),
                None => absent += 1,
            }
        }
        absent
    }

    fn session_at_home(&mut self, room: &RoomName) -> Option<&mut SessionHome> {
        let id = self.rooms.find(room)?;
        self.home_mut(id)?.session.as_deref_mut()
    }
}

impl SessionHome {
    fn withdraw(&mut self, permissions: &[Box<str>], at_s: u64) -> Withdrawn {
        let withdrawn = withdrawal::withdrawn(permissions, at_s, self.identity.mark);
        self.note_withdrawn(&withdrawn);
        withdrawn
    }

    fn note_withdrawn(&mut self, withdrawn: &[Withdrawal]) {
        self.identity = Arc::new(self.identity.without(withdrawn));
    }
}
