//! From a request's head to an open WebSocket or stream: the head is judged, the directories are asked (client id, user, address),
//! the rooms that everybody is in (or those of the stream) are joined, and only then is the upgrade answered. So the first message after it can be
//! the greeting, and no event is missed between the greeting and the memberships it lists.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::connection::{Admission, Claims, Client, Closing, EchoClient, Phase, RoomList, UnderWay};
use super::form;
use super::report::Ending;
use super::resume::token_text;
use super::state::State;
use super::stream::retry_ms;
use crate::control::hooks::RequestTold;
use crate::control::telemetry::Span;
use crate::hub::message::{ClaimKind, ClaimRefused, Join, JoinClaim, JoinRefused, Joined, Message, Ticket};
use crate::hub::outbox::Protocol;
use crate::hub::presence::Turn;
use crate::hub::recorder::{Mark, What};
use crate::ring::ConnKey;
use crate::session::ClientId;
use crate::session::handshake::{Admit, Endpoint};
use crate::session::heartbeat::Heartbeat;
use crate::session::{Session, SessionId};
use crate::wire::envelope;
use crate::wire::refusal::Refusal;
use crate::wire::upgrade::switching_protocols;

/// Seconds after which a client that met a full hub may try again.
pub(super) const RETRY_AFTER_S: u32 = 5;
/// What traces have for a client that did not wait: no status of HTTP's own, but the one that proxies write.
pub(super) const CLIENT_GONE: u16 = 499;

/// What the backend is told of a request, and its span.
type Beside = (Option<Box<RequestTold>>, Option<Box<Span>>);

impl State {
    /// Answers a request with a refusal and ends the connection.
    pub fn refuse(&mut self, conn: ConnKey, refusal: &Refusal) {
        let label = if refusal.status == 503 { "capacity" } else { refusal.code };
        self.refuse_as(conn, label, refusal);
    }

    pub(super) fn refuse_as(&mut self, conn: ConnKey, label: &str, refusal: &Refusal) {
        self.figures.refused.add(label);
        tracing::debug!(shard = self.me.0, status = refusal.status, code = refusal.code, "connection refused");
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if connection.socketio.is_some() {
            return self.refuse_namespace(conn, refusal);
        }
        // What came of rooms that were joined already is not for a client that is not let in.
        connection.outbox.drop_events();
        connection.outbox.release();
        refusal.response(connection.outbox.answers());
        self.finish(conn, Closing::Flushing);
    }

    /// The address that counts a connection, where addresses are limited.
    pub(super) fn counted_peer(&self, address: Option<IpAddr>) -> Option<IpAddr> {
        let limits = &self.settings.config.limits;
        address.filter(|_| limits.connections_per_address_max > 0 || limits.connects_per_s > 0)
    }

    /// Asks the directories about a connection that may be granted. `address` is where it comes from.
    pub(super) fn admit(
        &mut self,
        conn: ConnKey,
        admit: Admit,
        address: Option<IpAddr>,
        beside: Beside,
        early: Vec<u8>,
    ) {
        let (told, span) = beside;
        if let Err(refusal) = self.may_stream(&admit) {
            return self.refuse(conn, &refusal);
        }
        let config = &self.settings.config;
        if self.drain.is_some() || self.mesh.draining.load(Ordering::Relaxed) {
            let refusal = Refusal::unavailable("this node is draining", RETRY_AFTER_S);
            self.end_span(span, "draining", refusal.status);
            return self.refuse_as(conn, "draining", &refusal);
        }
        let on_this_shard = self.figures.connections.value() as usize + self.admissions;
        let is_full = on_this_shard >= config.limits.connections_per_shard_max;
        if is_full || !self.mesh.claim_connection(config.limits.connections_max) {
            self.end_span(span, "capacity", 503);
            return self.refuse(conn, &Refusal::unavailable("this node is full", RETRY_AFTER_S));
        }
        let limits_users = config.limits.connections_per_user_max > 0 && config.auth.enabled;
        let peer = self.counted_peer(address);
        let has_client = admit.endpoint.has_client();
        let client_id: ClientId = match &admit.client_id {
            Some(client_id) => client_id.as_ref().into(),
            None => self.core.ids().client(),
        };
        let session_id: SessionId = match &admit.session_id {
            Some(session_id) => session_id.as_ref().into(),
            None => self.core.ids().session(),
        };
        let user_id: Arc<str> = admit.identity.user_id.as_str().into();
        // An id that was drawn is held by nobody else.
        let over_nodes = has_client && admit.client_id.is_some() && self.nodes.is_some();
        let waiting = u8::from(peer.is_some()) + u8::from(has_client) + u8::from(limits_users) + u8::from(over_nodes);
        let address = self.address(conn);
        let Some(connection) = self.connections.get_mut(conn) else { return };
        self.admissions += 1;
        connection.outbox.hold();
        if let Some(variant) = admit.subprotocol.and_then(|chosen| chosen.variant) {
            connection.outbox.becomes(Protocol::Variant(variant));
        }
        connection.phase = Phase::Admission(Box::new(Admission {
            was_sought: false,
            admit,
            client_id: client_id.clone(),
            session_id,
            peer,
            waiting,
            resume_token: [0; 16],
            turn: Turn::default(),
            granted: Claims::default(),
            rooms: RoomList::new(),
            told,
            asked: None,
            grant: None,
            span,
            refused: None,
            opening: None,
            early,
            behind: Vec::new(),
        }));
        if let Some(peer) = peer {
            self.core.send_to_key(&peer, Message::ClaimPeer { peer, address });
        }
        if over_nodes {
            self.claim_over_nodes(address, &client_id);
        }
        if has_client {
            self.core.send_to_key(&*client_id.clone(), Message::ClaimClient { client_id, address });
        }
        if limits_users {
            self.core.send_to_key(&*user_id.clone(), Message::ClaimUser { user_id, address });
        }
        if waiting == 0 {
            self.claims_answered(conn);
        }
        self.drain_local();
    }

    /// A directory's answer.
    pub fn claimed(&mut self, conn: ConnKey, what: ClaimKind, refused: Option<ClaimRefused>) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Admission(admission) = &mut connection.phase else { return };
        admission.waiting -= 1;
        match refused {
            None => match what {
                ClaimKind::Peer => admission.granted.peer = true,
                ClaimKind::Client => admission.granted.client = true,
                ClaimKind::User => admission.granted.user = true,
                ClaimKind::Cluster => admission.granted.cluster = true,
            },
            Some(refused) => {
                admission.refused.get_or_insert(match refused {
                    ClaimRefused::Taken => Refusal::client_id_taken(),
                    ClaimRefused::Unreachable => {
                        Refusal::unavailable("the other nodes can't be asked right now", RETRY_AFTER_S)
                    }
                    ClaimRefused::UserConnections => {
                        Refusal::rate_limited("too many connections of this user", RETRY_AFTER_S)
                    }
                    ClaimRefused::PeerConnections => {
                        Refusal::rate_limited("too many connections from this address", RETRY_AFTER_S)
                    }
                    ClaimRefused::PeerRate { retry_after_ms } => {
                        let seconds = u32::try_from(retry_after_ms.div_ceil(1000)).unwrap_or(RETRY_AFTER_S);
                        Refusal::rate_limited("too many new connections from this address", seconds.max(1))
                    }
                });
            }
        }
        if admission.waiting == 0 {
            self.claims_answered(conn);
        }
    }

    /// Everything that the node itself has to say was said; what the backend says comes before any room is joined.
    fn claims_answered(&mut self, conn: ConnKey) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Admission(admission) = &mut connection.phase else { return };
        if admission.refused.is_some() {
            return self.admission_refused(conn);
        }
        match admission.told.take() {
            Some(told) => self.ask_backend(conn, told),
            None => self.join_first_rooms(conn),
        }
    }

    /// Joins the rooms that everybody is in, and those that the backend has added.
    pub(super) fn join_first_rooms(&mut self, conn: ConnKey) {
        let address = self.address(conn);
        let hasher = self.core.hasher();
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Admission(admission) = &mut connection.phase else { return };
        if !admission.admit.endpoint.has_client() {
            return self.open(conn);
        }
        if self.join_stream(conn) || self.seek_by_name(conn) {
            return;
        }
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Admission(admission) = &mut connection.phase else { return };
        let identity = admission.admit.identity.clone();
        let mut token = [0u8; 16];
        (self.entropy.0)(&mut token);
        let mut joins = vec![
            (hasher.room(&format!("user:{}", identity.user_id)), JoinClaim::None),
            (hasher.session_room(&admission.session_id), JoinClaim::Session { identity, token }),
            (hasher.room("global"), JoinClaim::None),
        ];
        for room in admission.more_rooms() {
            let room = hasher.room(room);
            if !joins.iter().any(|(joined, _)| *joined == room) {
                joins.push((room, JoinClaim::None));
            }
        }
        admission.waiting = joins.len() as u8;
        for (room, claim) in joins {
            let join =
                Join { room: room.clone(), address, claim, selection: None, since: None, ticket: Ticket::Admission };
            self.core.send_home(&room, Message::Join(Box::new(join)));
        }
    }

    /// A home's answer to one of the joins that everybody makes.
    pub fn joined_at_admission(&mut self, conn: ConnKey, joined: Joined) {
        let Joined { room, outcome, resume_token, turn, withdrawn, replay, .. } = joined;
        if !matches!(self.connections.get(conn).map(|connection| &connection.phase), Some(Phase::Admission(_))) {
            return;
        }
        let id = outcome.is_ok().then(|| self.core.add_member(&room, conn, None)).flatten();
        if let (Some(id), Ok(state)) = (id, &outcome) {
            self.core.joined(id, state);
            let (room, mark) = (self.name_in_table(id, &room), Mark::EVERYTHING);
            let subscribed = What::Subscribed { room, mark, before: None, after_seq: state.seq };
            self.core.recorder.change(conn, subscribed);
        }
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Admission(admission) = &mut connection.phase else { return };
        admission.waiting -= 1;
        admission.rooms.extend(id);
        if let Some(token) = resume_token.filter(|_| admission.opening.is_none()) {
            admission.resume_token = token;
            admission.turn = turn;
        }
        match outcome {
            Ok(state) => match (admission.opening.as_mut(), id) {
                (Some(opening), Some(id)) => {
                    if opening.joined((&room, id), &state, replay.as_deref(), admission.waiting == 0) {
                        self.core.park(id, conn);
                    }
                }
                _ => admission.granted.session |= room.as_str().starts_with("session:"),
            },
            Err(refused) => {
                admission.refused.get_or_insert(match refused {
                    JoinRefused::SessionOfOther => Refusal::forbidden("this session is another user's"),
                    JoinRefused::SessionBusy => Refusal::unavailable("the session is being taken up", RETRY_AFTER_S),
                    JoinRefused::Rooms => Refusal::unavailable("this node has too many rooms", RETRY_AFTER_S),
                    JoinRefused::Broker => Refusal::unavailable("the broker can't be reached right now", RETRY_AFTER_S),
                });
            }
        }
        if let Some(withdrawn) = withdrawn {
            // The session takes its token, or another one of the same time, without what was withdrawn from it.
            admission.go_without(&withdrawn);
        }
        if admission.waiting > 0 {
            return;
        }
        if admission.refused.is_some() {
            self.admission_refused(conn);
        } else {
            self.open(conn);
        }
    }

    pub(super) fn admission_refused(&mut self, conn: ConnKey) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Admission(admission) = &mut connection.phase else { return };
        let Some(refusal) = admission.refused.take() else { return };
        self.admission_ended(conn, refusal.code, refusal.status);
        self.release(conn, Ending::LOST);
        self.refuse(conn, &refusal);
    }

    fn open(&mut self, conn: ConnKey) {
        let (settings, now, now_ms) = (self.settings.clone(), self.now, self.now_ms());
        let stamp = self.core.ids().stamp(now.unix_ms);
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Admission(admission) = std::mem::replace(&mut connection.phase, Phase::Closing(Closing::Flushing))
        else {
            return;
        };
        self.admissions -= 1;
        let more_rooms: Vec<Box<str>> = admission.more_rooms().map(Into::into).collect();
        let Admission {
            admit,
            client_id,
            session_id,
            peer,
            resume_token,
            turn,
            granted,
            rooms,
            grant,
            span,
            opening,
            early,
            behind,
            ..
        } = *admission;
        let speaks_socketio = connection.socketio.is_some();
        if let Some(socketio) = connection.socketio.as_deref_mut() {
            socketio.identity = Some(admit.identity.clone());
        }
        if !speaks_socketio {
            // A client of Socket.IO is answered when its session is known.
            connection.outbox.release();
        }
        if admit.stream.is_some() {
            connection.outbox.becomes(Protocol::Stream);
        }
        // Other forms than the native one are not compressed.
        let protocol = connection.outbox.protocol();
        let offered = admit.deflate.filter(|_| !matches!(protocol, Protocol::Variant(_)));
        let deflate = self.grant_deflate(conn, offered);
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let out = connection.outbox.answers();
        if admit.stream.is_none() && !speaks_socketio {
            let subprotocol = admit.subprotocol.map(|chosen| chosen.name);
            switching_protocols(&admit.key, subprotocol, deflate, out);
        }
        let heartbeat = Heartbeat::new(now_ms);
        match admit.endpoint {
            Endpoint::Native | Endpoint::Events | Endpoint::SocketIo(_) => {
                self.figures.subscriptions.add(rooms.len() as u64);
                let mut session = Session::new(client_id, session_id, admit.identity, &settings.config, now);
                let metadata = grant.map_or_else(Default::default, |grant| grant.metadata);
                if let Err(refused) = session.merge_metadata(metadata, &settings.config) {
                    // The bound was lowered since the backend's answer was read.
                    tracing::debug!(
                        shard = self.me.0,
                        code = refused.code.as_str(),
                        "the backend's metadata is left out"
                    );
                }
                let mut under_way =
                    (!behind.is_empty()).then(|| Box::new(UnderWay { lags: behind, ..UnderWay::default() }));
                if let (Some(asked), Some(opening)) = (&admit.stream, opening) {
                    self.figures.streams.add(1);
                    let gaps = opening.write(out, asked, retry_ms(conn), self.core.ids(), now.unix_ms);
                    self.figures.gaps.add(gaps);
                    let (stream, lags) = opening.finish();
                    under_way = Some(Box::new(UnderWay { lags, stream: Some(stream), ..UnderWay::default() }));
                } else if !speaks_socketio {
                    envelope::begin(&mut self.payload, "connection_established", &stamp, None);
                    settings.greeting.write(&mut self.payload, &session, &more_rooms, &token_text(&resume_token));
                    form::finish(protocol, &mut self.payload, out);
                }
                let client = Client {
                    session,
                    rooms,
                    heartbeat,
                    peer,
                    claims: granted,
                    resume_token,
                    turn,
                    acks: None,
                    opened_ms: now_ms,
                    is_succeeded: false,
                    under_way,
                };
                connection.phase = Phase::Open(Box::new(client));
                connection.outbox.note_lag(true);
                connection.spaces_change();
            }
            Endpoint::Echo | Endpoint::Handled(_) => {
                let identity = admit.identity;
                connection.phase = Phase::Echo(Box::new(EchoClient { heartbeat, peer, claims: granted, identity }));
            }
        }
        if connection.outbox.mark_dirty() {
            self.dirty.push(conn);
        }
        self.end_span(span, "open", 101);
        self.figures.connections.add(1);
        self.figures.connections_opened.add(1);
        self.figures.socketio.add(u64::from(speaks_socketio));
        form::count(&self.figures, protocol, true);
        tracing::debug!(shard = self.me.0, slot = conn.slot, "connection opened");
        if matches!(admit.endpoint, Endpoint::Native | Endpoint::SocketIo(_)) {
            self.core.recorder.change(conn, What::Opened);
        }
        self.presence_entered_all(conn);
        self.withdrawn_at_admission(conn);
        self.report_opened(conn);
        if !matches!(admit.endpoint, Endpoint::SocketIo(_)) {
            self.look_after(conn);
        }
        match admit.endpoint {
            Endpoint::SocketIo(_) => return self.namespace_open(conn, more_rooms),
            Endpoint::Handled(_) => return self.handled_open(conn),
            Endpoint::Native | Endpoint::Events | Endpoint::Echo => {}
        }
        if self.is_stream(conn) {
            // Its rooms are parked; what came behind the request means nothing.
            return self.ask_to_catch_up(conn);
        }
        if !early.is_empty() {
            let mut early = early;
            self.received(conn, &mut early);
        }
    }
}
