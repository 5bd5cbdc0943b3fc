//! How a client of Socket.IO takes up the session that it had over an earlier connection, as its library does it by itself.
//!
//! A library names its session by the private id that it was granted, in each of its namespaces. Where it is granted the same
//! id again, it takes itself to be where it was: in the rooms that the namespace had subscribed to, with all of their events.
//! So that is what the hub sees to before it says so. Where it can't, the id is another one, though of the same session.
//!
//! The first namespace that is asked for brings the session back. Others get what was theirs if they are asked for in the
//! same breath, before the session's rooms are joined.

use super::connection::{GatherKind, Phase, Wish};
use super::resume::{parse_token, token_text, wanted};
use super::socketio::RoomSpaces;
use super::state::State;
use crate::hub::message::{Kept, Message, Resume, ResumeAsked, ResumeToken};
use crate::hub::presence::Turn;
use crate::ring::ConnKey;
use crate::session::socketio::{Space, Spaces};
use crate::wire::native::{Refused, is_client_id};

/// What a private id says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pid {
    session_id: Box<str>,
    token: ResumeToken,
    /// Counts the ids of one session that a library has to take for different ones.
    number: u16,
}

impl Pid {
    fn text(&self) -> Box<str> {
        let Pid { session_id, token, number } = self;
        format!("{session_id}~{}~{number}", token_text(token)).into()
    }
}

/// What [`Pid::text`] made.
pub(super) fn read_pid(text: &str) -> Option<Pid> {
    let mut parts = text.split('~');
    let (session_id, token, number) = (parts.next()?, parts.next()?, parts.next()?);
    let is_whole = is_client_id(session_id) && parts.next().is_none();
    let (token, number) = (parse_token(token)?, number.parse().ok()?);
    is_whole.then(|| Pid { session_id: session_id.into(), token, number })
}

impl State {
    /// Asks for the session whose private id a client brought, before the client is let into its namespace.
    pub(super) fn recover(&mut self, conn: ConnKey, pid: &Pid) {
        let address = self.address(conn);
        let room = self.core.hasher().room(&format!("session:{}", pid.session_id));
        let Some(client) = self.client_mut(conn) else { return };
        let asked = ResumeAsked {
            reference: None,
            session_id: pid.session_id.clone(),
            cursors: Vec::new(),
            turn: Turn::default(),
            withdrawn: None,
        };
        let identity = client.session.identity.clone();
        let resume = Resume { room: room.clone(), address, identity, token: pid.token, was_sought: false, asked };
        self.core.send_home(&room, Message::Resume(Box::new(resume)));
    }

    /// A client has its session, whose home tells the token once more when its room is joined. The greeting comes before that.
    fn take_token(&mut self, conn: ConnKey) {
        let socketio = self.connections.get(conn).and_then(|connection| connection.socketio.as_deref());
        let pid = socketio.and_then(|socketio| read_pid(socketio.granting.as_deref()?.pid.as_deref()?));
        if let (Some(pid), Some(client)) = (pid, self.client_mut(conn)) {
            client.resume_token = pid.token;
        }
    }

    /// Whether a client waits for an earlier session of its own.
    pub(super) fn recovers(&self, conn: ConnKey) -> bool {
        let socketio = self.connections.get(conn).and_then(|connection| connection.socketio.as_deref());
        socketio.and_then(|socketio| socketio.granting.as_deref()).is_some_and(|granting| granting.recovers)
    }

    /// What became of that.
    pub(super) fn recovered(&mut self, conn: ConnKey, asked: ResumeAsked, outcome: Result<Kept, Refused>) {
        let Ok(Kept { rooms, metadata, locks, namespaces }) = outcome else {
            // It has a session of its own.
            self.grant_first(conn, false);
            return self.let_go_of_held(conn);
        };
        let ResumeAsked { session_id, turn, withdrawn, .. } = asked;
        let mut wanted = wanted(rooms, Vec::new(), &session_id);
        self.change_session(conn, &session_id, turn, metadata);
        self.take_token(conn);
        self.take_own_rooms(conn, &mut wanted);
        self.inherit_withdrawn(conn, withdrawn);
        self.inherit_locks(conn, locks);
        self.took_up(&session_id, self.address(conn), None);
        let recovers = if namespaces == 0 { Spaces::of_bits(u32::MAX) } else { Spaces::of_bits(namespaces) };
        let recovered = self.grant_recovered(conn, recovers);
        wanted.retain_mut(|(_, wish)| {
            wish.namespaces = wish.namespaces.map(|namespaces| namespaces.and(recovered));
            wish.namespaces.is_none_or(|namespaces| !namespaces.is_empty())
        });
        // The first command of this client.
        if let Ok(part) = self.gather(conn, None, wanted.len(), GatherKind::Resume(Vec::new())) {
            self.join_wanted(conn, part, wanted);
        }
        self.let_go_of_held(conn);
    }

    /// What a client is in by itself it joins anew, together with the session's rooms: so each event comes once, whatever has
    /// come meanwhile, and behind those before it.
    fn take_own_rooms(&mut self, conn: ConnKey, wanted: &mut Vec<(String, Wish)>) {
        let Some(Phase::Open(client)) = self.connections.get(conn).map(|connection| &connection.phase) else { return };
        for room in self.kept(client, conn).rooms {
            if let Some(id) = self.core.rooms().find(&room.room) {
                self.leave_at_once(conn, &room.room.clone(), id);
            }
            if !wanted.iter().any(|(name, _)| *name == room.room.as_str()) {
                let wish = Wish { selection: room.selection, since: Some(room.from), ..Wish::default() };
                wanted.push((room.room.as_str().to_owned(), wish));
            }
        }
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.outbox.drop_events();
            self.latency.forget(&mut connection.followed);
        }
    }

    /// Lets a client into the namespaces that it has asked for so far. Those which have back what was theirs.
    fn grant_recovered(&mut self, conn: ConnKey, recovers: Spaces) -> Spaces {
        let Some(socketio) = self.connections.get_mut(conn).and_then(|one| one.socketio.as_deref_mut()) else {
            return Spaces::default();
        };
        let Some((space, pid)) = socketio.granting.as_deref().map(|granting| (granting.space, granting.pid.clone()))
        else {
            return Spaces::default();
        };
        let is_recovered = recovers.has(space);
        socketio.recovers = recovers;
        socketio.recovered = if is_recovered { Spaces::default().with(space) } else { Spaces::default() };
        let token = pid.as_deref().and_then(read_pid).map(|pid| pid.token);
        if let (Some(client), Some(token)) = (self.client_mut(conn), token) {
            // Its home found it to be the session's.
            client.resume_token = token;
            // Whose each room is, is known from here on.
            self.note_spaces(conn, RoomSpaces::default());
        }
        self.grant_first(conn, is_recovered);
        let Some(socketio) = self.connections.get_mut(conn).and_then(|one| one.socketio.as_deref_mut()) else {
            return Spaces::default();
        };
        let others = socketio.take_held_connects();
        self.take_up(conn, others);
        let Some(socketio) = self.connections.get_mut(conn).and_then(|one| one.socketio.as_deref_mut()) else {
            return Spaces::default();
        };
        socketio.recovers = Spaces::default();
        std::mem::take(&mut socketio.recovered)
    }

    /// The private id for a namespace that is entered after the first one.
    pub(super) fn further_pid(
        &mut self,
        conn: ConnKey,
        space: Space,
        brought: Option<&str>,
        is_in: bool,
    ) -> Option<Box<str>> {
        let is_own = brought.and_then(read_pid).is_some_and(|pid| {
            self.client_mut(conn)
                .is_some_and(|client| *client.session.session_id == *pid.session_id && client.resume_token == pid.token)
        });
        let socketio = self.connections.get_mut(conn)?.socketio.as_deref_mut()?;
        if is_own && !is_in && socketio.recovers.has(space) {
            socketio.recovered = socketio.recovered.with(space);
            return brought.map(Into::into);
        }
        // Who is in it already has missed nothing.
        if is_own && is_in { brought.map(Into::into) } else { self.next_pid(conn, brought) }
    }

    /// A private id of the session that a client has now, other than the one that it brought.
    pub(super) fn next_pid(&mut self, conn: ConnKey, brought: Option<&str>) -> Option<Box<str>> {
        let resumes = self.settings.config.session.resume_window_s > 0;
        let number = brought.and_then(read_pid).map_or(0, |pid| pid.number.wrapping_add(1));
        let client = self.client_mut(conn)?;
        let (session_id, token) = ((*client.session.session_id).into(), client.resume_token);
        resumes.then(|| Pid { session_id, token, number }.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_ids_are_read_as_they_are_written() {
        let pid = Pid { session_id: "a.b~".trim_end_matches('~').into(), token: [7; 16], number: 65_535 };
        assert_eq!(read_pid(&pid.text()), Some(pid));
        let token = "0".repeat(32);
        for text in ["", "~~", &format!("a~{token}"), &format!("~{token}~0"), &format!("a~{token}~x"), "a~0~0"] {
            assert_eq!(read_pid(text), None, "{text}");
        }
        assert_eq!(read_pid(&format!("a~{token}~0~")), None);
    }
}
