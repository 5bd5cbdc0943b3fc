//! The native protocol's commands (PROTOCOL §4), as far as they can be done on the client's own shard; what concerns a
//! room goes to its home.

use std::sync::Arc;

use bytes::Bytes;

use super::answers::{write_expires_at, write_room, write_room_error};
use super::connection::{GatherKind, Membership, Wish};
use super::state::State;
use crate::config::{Config, KindConfig};
use crate::hub::message::{Deposit, Direct, HistoryAsked, Join, JoinClaim, Message, Publish, ReplyTo, Ticket};
use crate::hub::name::{RoomName, split};
use crate::hub::schema;
use crate::hub::selection::Selection;
use crate::ring::ConnKey;
use crate::wire::codes::ErrorCode;
use crate::wire::json::write_string;
use crate::wire::native::{self, Command, Parsed, Reference, Refused, Rooms, Since, Target, Wanted};

impl State {
    /// A text message of a client.
    pub fn command(&mut self, conn: ConnKey, text: &mut [u8]) {
        let Some(over_rate) = self.count_against_rate(conn) else { return };
        // Taken out for the time of the call: the command borrows from it while it is carried out.
        let Some(mut scratch) = self.scratch.take() else { return };
        let (payload, bytes) = (self.payload_to_keep(text), text.len());
        native::parse(&mut scratch, text, |parsed| {
            self.note_received(conn, &parsed, bytes, &payload);
            match over_rate {
                None => self.carry_out(conn, parsed),
                // Read all the same, since the refusal carries the message's id.
                Some(retry_after_ms) => self.refuse_rate(conn, parsed.reference.as_ref(), retry_after_ms),
            }
        });
        self.scratch = Some(scratch);
        self.drain_local();
    }

    pub(super) fn carry_out(&mut self, conn: ConnKey, parsed: Parsed<'_>) {
        let Parsed { reference, command } = parsed;
        let outcome = match command {
            Ok(Command::Publish { room, kind, data, key, echo }) => {
                self.publish(conn, reference.clone(), PublishCommand { room, kind, data, key, echo })
            }
            Ok(Command::Subscribe { rooms, wanted, since, delta }) => {
                self.subscribe(conn, reference.clone(), rooms, &wanted, (since, delta))
            }
            Ok(Command::Unsubscribe { rooms }) => self.unsubscribe(conn, reference.clone(), rooms),
            Ok(Command::Send { to, kind, data }) => self.send_direct(conn, reference.clone(), to, kind, data),
            Ok(Command::Message { data }) => self.deposit(conn, reference.clone(), data),
            Ok(Command::Ping { data }) => {
                // Asked for by its type: answered with or without an id.
                self.tell(conn, "pong", reference.as_ref(), |payload| payload.extend_from_slice(data));
                Ok(())
            }
            Ok(Command::History { room, since, limit, reverse }) => {
                self.history(conn, reference.clone(), room, since, limit, reverse)
            }
            Ok(Command::Presence { room }) => self.presence(conn, reference.clone(), room),
            Ok(Command::Ack { room, seq }) => self.ack(conn, room, seq),
            Ok(Command::Resume { session_id, token, cursors }) => {
                self.resume(conn, reference.clone(), session_id, token, cursors)
            }
            Ok(Command::Lock(command)) => self.lock(conn, reference.clone(), command),
            Ok(Command::Rooms) => self.list_rooms(conn, reference.as_ref()),
            Ok(Command::Metadata { set }) => self.metadata(conn, reference.as_ref(), set),
            Ok(Command::AuthRefresh { token }) => self.refresh(conn, reference.as_ref(), token),
            Err(refused) => Err(refused),
        };
        if let Err(refused) = outcome {
            self.refuse_command(conn, reference.as_ref(), &refused);
        }
    }

    // ---- rooms ----

    fn subscribe(
        &mut self,
        conn: ConnKey,
        reference: Option<Reference>,
        rooms: Rooms,
        wanted: &Wanted,
        (since, delta): (Option<Since>, bool),
    ) -> Result<(), Refused> {
        self.may_have_deltas(conn, delta)?;
        let selection = Selection::compile(wanted, self.settings.config.limits.filter_conditions_max)?.map(Arc::new);
        let wish = Wish { selection, since, delta, ..Wish::default() };
        match rooms {
            Rooms::One(room) => self.join(conn, &room, wish, Ticket::Single(reference)),
            Rooms::Many(rooms) => {
                let part = self.gather(conn, reference, rooms.len(), GatherKind::Subscribe(Vec::new()))?;
                for room in rooms {
                    if let Err(refused) = self.join(conn, &room, wish.clone(), Ticket::Part(part)) {
                        self.count_refused(conn, refused.code);
                        self.gathered(conn, part, |results| write_room_error(results, &room, &refused));
                    }
                }
                Ok(())
            }
        }
    }

    pub(super) fn join(&mut self, conn: ConnKey, room: &str, wish: Wish, ticket: Ticket) -> Result<(), Refused> {
        let settings = self.settings.clone();
        let (kind, name) = known_room(&settings.config, room)?;
        let room = self.core.hasher().room(room);
        let known = self.core.rooms().find(&room);
        let by = self.asker(conn, &ticket).visit();
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        client.session.may_join(kind, name)?;
        let joining =
            client.under_way.as_ref().map_or(0, |all| all.memberships.iter().filter(|one| one.joins()).count());
        let is_member = known.is_some_and(|id| client.rooms.contains(&id));
        if !is_member && client.rooms.len() + joining >= settings.config.limits.rooms_max {
            let limit = settings.config.limits.rooms_max;
            return Err(Refused::because(ErrorCode::RoomLimit, format!("a connection is in at most {limit} rooms")));
        }
        let Wish { selection, since, .. } = wish.clone();
        client.under_way().memberships.push(Membership { room: room.clone(), join: Some(wish), by });
        let address = self.address(conn);
        let join = Join { room: room.clone(), address, claim: JoinClaim::None, selection, since, ticket };
        self.core.send_home(&room, Message::Join(Box::new(join)));
        Ok(())
    }

    fn unsubscribe(&mut self, conn: ConnKey, reference: Option<Reference>, rooms: Rooms) -> Result<(), Refused> {
        match rooms {
            Rooms::One(room) => {
                if self.leave(conn, &room, Ticket::Single(reference.clone()))? {
                    return Ok(());
                }
                let lane = self.core.rules().lane(&room);
                let write = |payload: &mut Vec<u8>| write_room(payload, &room);
                self.tell_behind_events(conn, Some(lane), "unsubscribed", reference.as_ref(), write);
            }
            Rooms::Many(rooms) => {
                let part = self.gather(conn, reference, rooms.len(), GatherKind::Unsubscribe(Vec::new()))?;
                for room in rooms {
                    match self.leave(conn, &room, Ticket::Part(part)) {
                        Ok(true) => {}
                        Ok(false) => self.gathered(conn, part, |results| write_room(results, &room)),
                        Err(refused) => self.gathered(conn, part, |results| write_room_error(results, &room, &refused)),
                    }
                }
            }
        }
        Ok(())
    }

    /// Leaves a room by way of its home, so that answers come in the order of the commands. False where there is nothing
    /// to leave.
    fn leave(&mut self, conn: ConnKey, room: &str, ticket: Ticket) -> Result<bool, Refused> {
        split(room, self.settings.config.limits.room_name_bytes_max)?;
        let room = self.core.hasher().room(room);
        let known = self.core.rooms().find(&room);
        let Some(client) = self.client_mut(conn) else { return Ok(true) };
        let under_way = client.under_way.as_ref();
        // Also behind a leave that is under way: until that is done, events may still come.
        let is_under_way = under_way.is_some_and(|all| all.memberships.iter().any(|one| one.room == room));
        if !is_under_way && !known.is_some_and(|id| client.rooms.contains(&id)) {
            return Ok(false);
        }
        let by = self.asker(conn, &ticket).visit();
        let Some(client) = self.client_mut(conn) else { return Ok(true) };
        client.under_way().memberships.push(Membership { room: room.clone(), join: None, by });
        let address = self.address(conn);
        self.core.send_home(&room.clone(), Message::Leaving { room, address, ticket });
        Ok(true)
    }

    fn list_rooms(&mut self, conn: ConnKey, reference: Option<&Reference>) -> Result<(), Refused> {
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        let ids = client.rooms.clone();
        let names: Vec<RoomName> =
            ids.iter().filter_map(|id| self.core.rooms().get(*id)).map(|room| room.name.clone()).collect();
        self.tell(conn, "rooms", reference, |payload| {
            payload.extend_from_slice(b"{\"rooms\":[");
            for (place, name) in names.iter().enumerate() {
                if place > 0 {
                    payload.push(b',');
                }
                write_string(payload, name.as_str());
            }
            payload.extend_from_slice(b"]}");
        });
        Ok(())
    }

    fn history(
        &mut self,
        conn: ConnKey,
        reference: Option<Reference>,
        room: &str,
        since: Option<Since>,
        limit: usize,
        reverse: bool,
    ) -> Result<(), Refused> {
        let settings = self.settings.clone();
        let (kind, name) = known_room(&settings.config, room)?;
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        client.session.may_join(kind, name)?;
        let room = self.core.hasher().room(room);
        let (address, ticket) = (self.address(conn), Ticket::Single(reference));
        let ask = HistoryAsked { room: room.clone(), address, ticket, since, limit, reverse };
        self.core.send_home(&room, Message::History(Box::new(ask)));
        Ok(())
    }

    // ---- events ----

    fn publish(
        &mut self,
        conn: ConnKey,
        reference: Option<Reference>,
        command: PublishCommand<'_>,
    ) -> Result<(), Refused> {
        let PublishCommand { room, kind, data, key, echo } = command;
        let settings = self.settings.clone();
        let (room_kind, name) = known_room(&settings.config, room)?;
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        client.session.may_publish(&room_kind.name, name)?;
        if key.is_some_and(|key| key.is_empty() || key.len() > settings.config.limits.key_bytes_max) {
            let limit = settings.config.limits.key_bytes_max;
            return Err(Refused::because(ErrorCode::BadCommand, format!("data.key has 1 to {limit} bytes")));
        }
        schema::check(kind, data, settings.config.events.strict, settings.config.limits.depth_max)?;
        let room = self.core.hasher().room(room);
        let address = self.address(conn);
        self.core.route_publish(Publish {
            room,
            kind: kind.into(),
            data: Bytes::copy_from_slice(data),
            key: key.map(Into::into),
            exclude: (!echo).then_some(address),
            received_us: self.now.monotonic_us,
            reply: ReplyTo::Client { address, ticket: Ticket::Single(reference) },
        });
        Ok(())
    }

    fn send_direct(
        &mut self,
        conn: ConnKey,
        reference: Option<Reference>,
        to: Target,
        kind: &str,
        data: &[u8],
    ) -> Result<(), Refused> {
        let settings = self.settings.clone();
        schema::check(kind, data, settings.config.events.strict, settings.config.limits.depth_max)?;
        let data = Bytes::copy_from_slice(data);
        match to {
            Target::Client(client_id) => {
                let Some(client) = self.client_mut(conn) else { return Ok(()) };
                client.session.may_publish("client", &client_id)?;
                let address = self.address(conn);
                let reply = ReplyTo::Client { address, ticket: Ticket::Direct(reference) };
                let direct = Box::new(Direct { kind: kind.into(), data, only_here: false, reply });
                self.core.send_to_key(&*client_id.clone(), Message::SendToClient { client_id, direct });
                Ok(())
            }
            Target::Session(id) => {
                self.send_to_room(conn, &format!("session:{id}"), kind, data, Ticket::Direct(reference))
            }
            Target::User(id) => self.send_to_room(conn, &format!("user:{id}"), kind, data, Ticket::Direct(reference)),
            Target::Sessions(ids) => {
                // All or nothing: a missing permission is found before the first one is sent.
                for id in &ids {
                    let Some(client) = self.client_mut(conn) else { return Ok(()) };
                    client.session.may_publish("session", id)?;
                    split(&format!("session:{id}"), settings.config.limits.room_name_bytes_max)?;
                }
                let part = self.gather(conn, reference, ids.len(), GatherKind::Send { delivered: 0, queued: 0 })?;
                for id in ids {
                    self.send_to_room(conn, &format!("session:{id}"), kind, data.clone(), Ticket::Part(part))?;
                }
                Ok(())
            }
        }
    }

    fn send_to_room(
        &mut self,
        conn: ConnKey,
        room: &str,
        kind: &str,
        data: Bytes,
        ticket: Ticket,
    ) -> Result<(), Refused> {
        let (room_kind, name) = split(room, self.settings.config.limits.room_name_bytes_max)?;
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        client.session.may_publish(room_kind, name)?;
        let address = self.address(conn);
        let room = self.core.hasher().room(room);
        let reply = ReplyTo::Client { address, ticket };
        let (kind, received_us) = (kind.into(), self.now.monotonic_us);
        self.core.route_publish(Publish { room, kind, data, key: None, exclude: None, received_us, reply });
        Ok(())
    }

    fn deposit(&mut self, conn: ConnKey, reference: Option<Reference>, data: &[u8]) -> Result<(), Refused> {
        let data = Bytes::copy_from_slice(data);
        let is_told = self.report_message(conn, &data);
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        let session_id = client.session.session_id.clone();
        let room = self.core.hasher().session_room(&session_id);
        let address = self.address(conn);
        let reply = ReplyTo::Client { address, ticket: Ticket::Deposit(reference) };
        let deposit = Box::new(Deposit { room: room.clone(), data, is_told, reply });
        self.core.send_home(&room, Message::Deposit(deposit));
        Ok(())
    }

    // ---- the client itself ----

    fn metadata(&mut self, conn: ConnKey, reference: Option<&Reference>, set: Option<&[u8]>) -> Result<(), Refused> {
        let settings = self.settings.clone();
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        if let Some(set) = set {
            let object = serde_json::from_slice(set)
                .map_err(|_| Refused::new(ErrorCode::BadCommand, "data.set has to be an object"))?;
            client.session.merge_metadata(object, &settings.config)?;
        }
        let whole = client.session.metadata();
        self.tell(conn, "metadata", reference, |payload| payload.extend_from_slice(whole.to_string().as_bytes()));
        Ok(())
    }

    fn refresh(&mut self, conn: ConnKey, reference: Option<&Reference>, token: &str) -> Result<(), Refused> {
        let (settings, now) = (self.settings.clone(), self.now);
        let identity = if settings.config.auth.enabled {
            let checked = settings.gate().check_token(token, now);
            Arc::new(checked.map_err(|refusal| Refused { code: ErrorCode::Unauthorized, message: refusal.message })?)
        } else {
            settings.anonymous.clone()
        };
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        client.session.refresh(identity.clone())?;
        self.answer(conn, "auth.refreshed", reference, |payload| write_expires_at(payload, identity.expires_at));
        self.enforce_permissions(conn);
        self.look_after(conn);
        Ok(())
    }
}

struct PublishCommand<'a> {
    room: &'a str,
    kind: &'a str,
    data: &'a [u8],
    key: Option<&'a str>,
    echo: bool,
}

/// The kind and name of a room whose kind exists.
pub(super) fn known_room<'c, 'r>(config: &'c Config, room: &'r str) -> Result<(&'c KindConfig, &'r str), Refused> {
    let (kind, name) = split(room, config.limits.room_name_bytes_max)?;
    match config.kind(kind) {
        Some(kind) => Ok((kind, name)),
        None => Err(Refused::because(ErrorCode::BadRoom, format!("there is no kind of room called {kind:?}"))),
    }
}

/// What `sent` says.
pub(super) fn write_sent(payload: &mut Vec<u8>, delivered: u64, queued: u64) {
    payload.extend_from_slice(b"{\"delivered\":");
    crate::wire::json::write_u64(payload, delivered);
    payload.extend_from_slice(b",\"queued\":");
    crate::wire::json::write_u64(payload, queued);
    payload.push(b'}');
}
