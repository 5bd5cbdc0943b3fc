//! Sessions on the side of their connections: what is kept when one goes, and how another one takes it up.

use serde_json::{Map, Value};

use super::answers::write_room_error;
use super::connection::{Client, GATHERS_MAX, GatherKind, Membership, Phase, Wish};
use super::gather::write_results;
use super::socketio::first_unsent;
use super::state::State;
use crate::auth::withdrawal;
use crate::hub::batch::Address;
use crate::hub::core::epoch_text;
use crate::hub::locks::Freed;
use crate::hub::message::{Kept, KeptRoom, Message, Resume, ResumeAsked, ResumeToken, Resumed, Ticket};
use crate::hub::name::RoomName;
use crate::hub::presence::{Change, Turn};
use crate::hub::recorder::What;
use crate::hub::relayed::BEFORE_ALL;
use crate::hub::rooms::{NO_EPOCH, RoomId};
use crate::ring::ConnKey;
use crate::session::SessionId;
use crate::session::socketio::Spaces;
use crate::wire::codes::ErrorCode;
use crate::wire::json::write_string;
use crate::wire::native::{Reference, Refused, Since};

impl State {
    /// What a session can be resumed with; none where there is nothing, or nobody who may.
    pub fn keep(&mut self, conn: ConnKey) -> Option<Box<Kept>> {
        let Phase::Open(client) = &self.connections.get(conn)?.phase else { return None };
        // A stream has no session that could be taken up: it goes on by its cursor.
        let is_stream = self.is_stream(conn);
        if is_stream || client.is_succeeded || self.settings.config.session.resume_window_s == 0 || self.stopping {
            return None;
        }
        Some(Box::new(self.kept(client, conn)))
    }

    pub(super) fn kept(&self, client: &Client, conn: ConnKey) -> Kept {
        let under_way = client.under_way.as_deref();
        let lags = under_way.map_or(&[][..], |under_way| &under_way.lags);
        // Clients of Socket.IO say nothing of how far they are; what was not even written is known to be owed.
        let connection = self.connections.get(conn);
        let connection = connection.filter(|connection| connection.socketio.is_some());
        let unsent = connection.map_or_else(Vec::new, first_unsent);
        let acks = client.acks.as_ref().map_or(&[][..], |acks| &acks.0);
        let memberships = under_way.map_or(&[][..], |under_way| &under_way.memberships);
        let now = || Since::Time(self.now.unix_ms);
        // Nor do they say where to go on.
        let given = |id| self.core.reached(id, conn).filter(|_| connection.is_some());
        let mut rooms = Vec::new();
        for id in &client.rooms {
            let Some((room, epoch)) = self.core.rooms().get(*id).map(|room| (room.name.clone(), room.epoch())) else {
                continue;
            };
            let Some(namespaces) = self.namespaces_in(client, conn, *id) else { continue };
            let acked = acks.iter().find(|(one, _)| one == id).map(|(_, seq)| *seq);
            // What it was not even sent, it has not handled; a client that acknowledges nothing still gets that.
            let unsent = unsent.iter().find(|(name, _)| **name == *room.as_str());
            let unsent = unsent.map(|(_, seq)| seq.map_or(BEFORE_ALL, |seq| seq.saturating_sub(1)));
            let lags_after = lags.iter().find(|lag| lag.room == *id).map(|lag| lag.after_seq);
            let reached = acked.or(unsent).or(lags_after).or_else(|| given(*id));
            // Where it has yet to be told that the log is another one, it has nothing of any that there is.
            let is_behind_all = [unsent, lags_after].contains(&Some(BEFORE_ALL));
            let (reached, epoch) = if is_behind_all { (Some(0), NO_EPOCH) } else { (reached, epoch) };
            let epoch = Some(epoch_text(epoch).into());
            let from = reached.map_or_else(now, |seq| Since::Seq { seq, epoch });
            let acked = acked.filter(|_| !is_behind_all);
            let (selection, delta) = (self.core.selection_of(*id, conn), client.wants_deltas(*id));
            rooms.push(KeptRoom { selection, room, from, acked, namespaces, delta });
        }
        for Membership { room, join, by } in memberships {
            let place = rooms.iter().position(|kept| kept.room == *room);
            let by = by.map(|visit| (visit, self.is_visiting(conn, visit)));
            match (join, place) {
                // Asked for by a namespace that was left since.
                (_, _) if by.is_some_and(|(_, is_there)| !is_there) => {}
                // Where it is in the room already, it has the events until now.
                (Some(wish), Some(place)) => {
                    if let Some(kept) = rooms.get_mut(place) {
                        kept.selection = wish.selection.clone();
                        kept.delta = wish.delta;
                        if let (Some(((space, _), _)), true) = (by, kept.namespaces != 0) {
                            kept.namespaces = Spaces::of_bits(kept.namespaces).with(space).bits();
                        }
                    }
                }
                (Some(Wish { selection, since, acked, namespaces, delta }), None) => {
                    let (selection, from) = (selection.clone(), since.clone().unwrap_or_else(now));
                    let asked = by.map(|((space, _), _)| Spaces::default().with(space)).or(*namespaces);
                    let (acked, namespaces) = (*acked, asked.map_or(0, Spaces::bits));
                    // Otherwise it was left again before it was joined.
                    if asked.is_none_or(|asked| !asked.is_empty()) {
                        rooms.push(KeptRoom { room: room.clone(), selection, from, acked, namespaces, delta: *delta });
                    }
                }
                (None, Some(place)) => {
                    let rest = rooms
                        .get(place)
                        .zip(by)
                        .map_or(0, |(kept, ((space, _), _))| Spaces::of_bits(kept.namespaces).without(space).bits());
                    match rooms.get_mut(place).filter(|_| rest != 0) {
                        Some(kept) => kept.namespaces = rest,
                        None => drop(rooms.swap_remove(place)),
                    }
                }
                (None, None) => {}
            }
        }
        let namespaces = self.namespaces_of(conn).bits();
        Kept { rooms, metadata: client.session.metadata_object(), locks: Vec::new(), namespaces }
    }

    /// All events of a room up to one are handled.
    pub fn ack(&mut self, conn: ConnKey, room: &str, seq: u64) -> Result<(), Refused> {
        let id = self.core.rooms().find(&self.core.hasher().room(room));
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        let Some(id) = id.filter(|id| client.rooms.contains(id)) else {
            return Err(Refused::new(ErrorCode::NotFound, "this connection is not in that room"));
        };
        client.acked(id, seq);
        Ok(())
    }

    /// A client wants to take up a session.
    pub fn resume(
        &mut self,
        conn: ConnKey,
        reference: Option<Reference>,
        session_id: &str,
        token: &str,
        cursors: Vec<(Box<str>, Since)>,
    ) -> Result<(), Refused> {
        let token = parse_token(token).ok_or(Refused::new(ErrorCode::Forbidden, "this is no resume token"))?;
        let address = self.address(conn);
        let room = self.core.hasher().room(&format!("session:{session_id}"));
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        let asked =
            ResumeAsked { reference, session_id: session_id.into(), cursors, turn: Turn::default(), withdrawn: None };
        let identity = client.session.identity.clone();
        let resume = Resume { room: room.clone(), address, identity, token, was_sought: false, asked };
        self.core.send_home(&room, Message::Resume(Box::new(resume)));
        Ok(())
    }

    /// A session is taken up by another connection, which gets what this one had, by way of the session's home.
    pub fn hand_down(&mut self, conn: ConnKey, room: RoomName, successor: Address, mut asked: Box<ResumeAsked>) {
        let holds_it = self.client_mut(conn).is_some_and(|client| *client.session.session_id == *asked.session_id);
        let kept = if holds_it { self.keep_with_locks(conn) } else { None };
        if let Some(client) = self.client_mut(conn).filter(|_| holds_it) {
            client.is_succeeded = true;
            // Either of the two may not have heard of all of it yet.
            let here = client.session.identity.permissions.withdrawn();
            asked.withdrawn = withdrawal::together(asked.withdrawn.as_ref(), here);
        }
        self.core.send_home(&room.clone(), Message::HandDown { room, successor, asked, kept });
    }

    /// The session is this connection's, or it was refused.
    pub fn resumed(&mut self, resumed: Resumed) {
        let Resumed { address, asked, outcome } = resumed;
        let conn = address.conn;
        if asked.reference.is_none() && self.recovers(conn) {
            return self.recovered(conn, asked, outcome);
        }
        let ResumeAsked { reference, session_id, cursors, turn, withdrawn } = asked;
        let kept = match outcome {
            Ok(kept) => kept,
            Err(refused) => return self.refuse_command(conn, reference.as_ref(), &refused),
        };
        let has_left = self.has_left(conn, reference.as_ref());
        let gathers = self.client_mut(conn).filter(|_| !has_left);
        let gathers = gathers.map(|client| client.under_way.as_ref().map_or(0, |all| all.gathers.len()));
        if gathers.is_none_or(|gathers| gathers >= GATHERS_MAX) {
            // Gone while the session was being given to it, or too busy: what it had is kept for the next one.
            if gathers.is_some() {
                let busy = Refused::new(ErrorCode::Unavailable, "too many commands of this connection are under way");
                self.refuse_command(conn, reference.as_ref(), &busy);
            }
            return self.took_up(&session_id, address, Some(Box::new(kept)));
        }
        let Kept { rooms, metadata, locks, .. } = kept;
        let wanted = wanted(rooms, cursors, &session_id);
        let part = match self.gather(conn, reference.clone(), wanted.len(), GatherKind::Resume(Vec::new())) {
            Ok(part) => part,
            Err(refused) => {
                self.core.free_locks(locks, Freed::SessionEnded);
                self.took_up(&session_id, address, Some(Box::default()));
                return self.refuse_command(conn, reference.as_ref(), &refused);
            }
        };
        self.change_session(conn, &session_id, turn, metadata);
        self.inherit_withdrawn(conn, withdrawn);
        self.inherit_locks(conn, locks);
        self.took_up(&session_id, address, None);
        self.join_wanted(conn, part, wanted);
    }

    /// Joins the rooms of a session that a connection has taken up.
    pub(super) fn join_wanted(&mut self, conn: ConnKey, part: u32, wanted: Vec<(String, Wish)>) {
        for (room, wish) in wanted {
            if let Err(refused) = self.join(conn, &room, wish, Ticket::Part(part)) {
                self.count_refused(conn, refused.code);
                self.presence_refused(conn, &self.core.hasher().room(&room));
                self.gathered(conn, part, |results| write_room_error(results, &room, &refused));
            }
        }
    }

    /// Tells a session's home that it has arrived or is given back, so that the next one may have it.
    pub(super) fn took_up(&mut self, session_id: &str, address: Address, given_back: Option<Box<Kept>>) {
        let room = self.core.hasher().room(&format!("session:{session_id}"));
        self.core.send_home(&room.clone(), Message::TookUp { room, address, given_back });
    }

    /// All rooms have answered.
    pub fn resume_complete(&mut self, conn: ConnKey, part: u32, reference: Option<&Reference>, results: &[u8]) {
        let Some(client) = self.client_mut(conn) else { return };
        let (session_id, token) = (client.session.session_id.clone(), token_text(&client.resume_token));
        let locks = self.locks_text(conn);
        let write = |payload: &mut Vec<u8>| {
            payload.extend_from_slice(b"{\"session_id\":");
            write_string(payload, &session_id);
            payload.extend_from_slice(b",\"resume\":{\"token\":\"");
            payload.extend_from_slice(token.as_bytes());
            payload.extend_from_slice(b"\"},\"locks\":");
            payload.extend_from_slice(&locks);
            payload.push(b',');
            let from = payload.len();
            write_results(payload, results);
            // One object: the brace that opens the results goes.
            payload.remove(from);
        };
        if reference.is_none() && self.speaks_socketio(conn) {
            // A library has taken its session up by itself: what was missed for good is told by an event.
            self.tell_in_order(conn, None, "resumed", None, write);
        } else {
            self.tell_behind_events(conn, None, "resumed", reference, write);
        }
        self.release_lags(conn, part);
    }

    /// Gives a connection a session with its metadata: most of the time another one than it came with, which ends.
    pub(super) fn change_session(&mut self, conn: ConnKey, session_id: &str, turn: Turn, metadata: Map<String, Value>) {
        let settings = self.settings.clone();
        let Some(client) = self.client_mut(conn) else { return };
        let before = client.session.session_id.clone();
        let changes = *before != *session_id;
        if changes {
            self.presence_ended_all(conn, Change::Gone);
        }
        let Some(client) = self.client_mut(conn) else { return };
        client.session.session_id = SessionId::from(session_id);
        client.turn = turn;
        // It fitted the same bound before.
        if let Err(refused) = client.session.merge_metadata(metadata, &settings.config) {
            self.refuse_command(conn, None, &refused);
        }
        if changes {
            self.free_locks_of(conn);
            self.end_session(conn, &before);
            self.presence_entered_all(conn);
        }
    }

    /// A connection holds another session from here on.
    fn end_session(&mut self, conn: ConnKey, session_id: &SessionId) {
        let address = self.address(conn);
        let before = self.core.hasher().session_room(session_id);
        if let Some(id) = self.core.rooms().find(&before) {
            self.leave_at_once(conn, &before, id);
        }
        self.core.send_home(&before.clone(), Message::ReleaseSession { room: before, address, kept: None });
    }

    /// A connection that takes up another session is in a room of the one before no more.
    pub(super) fn leave_at_once(&mut self, conn: ConnKey, room: &RoomName, id: RoomId) {
        let Some(client) = self.client_mut(conn) else { return };
        client.forget_room(id);
        self.note_leaving(conn, room, id);
        let before = self.core.mark_of(id, conn);
        if self.core.remove_member(id, conn) {
            let why = "took up another session";
            self.core.recorder.change(conn, What::Unsubscribed { room: room.clone(), before, why });
            self.figures.subscriptions.sub(1);
            self.leave_home(room.clone(), conn);
        }
    }
}

/// The rooms that a session's next connection joins: every one that it was in, every other one that the client has a cursor
/// of, and its own.
pub(super) fn wanted(rooms: Vec<KeptRoom>, cursors: Vec<(Box<str>, Since)>, session_id: &str) -> Vec<(String, Wish)> {
    let wish = |kept: KeptRoom| {
        let KeptRoom { room, selection, from, acked, namespaces, delta } = kept;
        let namespaces = (namespaces != 0).then(|| Spaces::of_bits(namespaces));
        (room.as_str().to_owned(), Wish { selection, since: Some(from), acked, namespaces, delta })
    };
    let mut wanted: Vec<_> = rooms.into_iter().map(wish).collect();
    for (room, cursor) in cursors {
        let place = wanted.iter().position(|(name, _)| **name == *room).unwrap_or(wanted.len());
        match wanted.get_mut(place) {
            Some((_, wish)) => wish.since = Some(cursor),
            None => wanted.push((room.into(), Wish { since: Some(cursor), ..Wish::default() })),
        }
    }
    let own = format!("session:{session_id}");
    if !wanted.iter().any(|(name, _)| *name == own) {
        wanted.push((own, Wish::default()));
    }
    wanted
}

/// 32 hexadecimal digits.
pub(super) fn token_text(token: &ResumeToken) -> String {
    format!("{:032x}", u128::from_be_bytes(*token))
}

/// What [`token_text`] made.
pub(crate) fn parse_token(text: &str) -> Option<ResumeToken> {
    let is_token = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_token.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_they_are_written() {
        let token = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255];
        assert_eq!(parse_token(&token_text(&token)), Some(token));
        for text in ["", "00", "+0000000000000000000000000000000", &"g".repeat(32), &"é".repeat(16)] {
            assert_eq!(parse_token(text), None, "{text}");
        }
    }
}
