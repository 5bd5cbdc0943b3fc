//! What homes and other shards tell this shard about its connections.

use super::answers::{write_room, write_room_error, write_subscribed};
use super::commands::write_sent;
use super::connection::{Client, LagWaits, Phase, Wish};
use super::spaces::Asker;
use super::state::State;
use super::variants::{self, Variants};
use super::withdraw::may_stay;
use crate::config::Policy;
use crate::hub::batch::Address;
use crate::hub::core::epoch_text;
use crate::hub::message::{
    ClaimKind, ClientRequest, Direct, JoinRefused, Joined, Message, NO_CONNECTION, Publish, Published, ResumeAsked,
    RoomState, Ticket,
};
use crate::hub::name::RoomName;
use crate::hub::presence::Change;
use crate::hub::recorder::{Mark, What};
use crate::hub::relayed::BEFORE_ALL;
use crate::hub::rooms::RoomId;
use crate::ring::ConnKey;
use crate::session::socketio::{Space, Visit};
use crate::wire::codes::{ErrorCode, close};
use crate::wire::json::{write_string, write_u64};
use crate::wire::native::{Refused, Since};
use crate::wire::refusal::Refusal;

impl State {
    /// A message for a member's shard.
    pub fn member_message(&mut self, message: Message) {
        match message {
            Message::Deliver(batch) => self.core.deliver(batch),
            Message::Renewed { room, epoch, after_seq } => self.renewed(&room, epoch, after_seq),
            Message::Joined(joined) => self.joined(*joined),
            Message::CaughtUp(caught_up) => self.caught_up(*caught_up),
            Message::HistoryTold(told) => self.history_told(*told),
            Message::LockTold(told) => self.lock_told(*told),
            Message::ListMembers { room, home } => self.list_members(room, home),
            Message::Left { address, room, ticket } => self.left(address.conn, room, ticket),
            Message::Published { address, ticket, room, outcome } => {
                if let Some((ticket, outcome)) = self.count_elsewhere(address, ticket, &room, outcome) {
                    self.published(address.conn, ticket, &room, outcome);
                }
            }
            Message::Resume(resume) => self.seek_session(*resume),
            Message::SendToClient { client_id, direct } => self.send_elsewhere(&client_id, *direct),
            Message::Claimed { address, what, refused } => {
                if self.is_being_admitted(address.conn) {
                    self.claimed(address.conn, what, refused);
                } else if refused.is_none() {
                    self.give_back(address.conn, what);
                }
            }
            Message::ForwardToSession { address, direct } => self.forward_to_session(address.conn, *direct),
            Message::Forward { address, request } => self.client_request(address.conn, request),
            Message::TakenOver { address, room, successor } => self.taken_over(address.conn, room, successor),
            Message::WithdrawnTold { address, withdrawn } => self.withdrawn_told(address.conn, &withdrawn),
            Message::Resumed(resumed) => self.resumed(*resumed),
            other => debug_assert!(false, "{other:?} is for a home"),
        }
    }

    fn is_being_admitted(&self, conn: ConnKey) -> bool {
        self.connections.get(conn).is_some_and(|connection| matches!(connection.phase, Phase::Admission(_)))
    }

    /// A claim was granted to a connection that is gone. What was claimed is remembered for as long as that can happen.
    fn give_back(&mut self, conn: ConnKey, what: ClaimKind) {
        let address = self.address(conn);
        let Some(place) = self.orphans.iter().position(|orphan| orphan.conn == conn) else { return };
        let Some(orphan) = self.orphans.get_mut(place) else { return };
        match what {
            ClaimKind::Peer => {
                if let Some(peer) = orphan.peer {
                    self.core.send_to_key(&peer, Message::ReleasePeer { peer });
                }
            }
            ClaimKind::Client => {
                let client_id = orphan.client_id.clone();
                self.core.send_to_key(&*client_id.clone(), Message::ReleaseClient { client_id, address });
            }
            ClaimKind::Cluster => {
                if let Some(nodes) = &self.nodes {
                    nodes.release(&orphan.client_id);
                }
            }
            ClaimKind::User => {
                let user_id = orphan.user_id.clone();
                self.core.send_to_key(&*user_id.clone(), Message::ReleaseUser { user_id });
            }
        }
        self.orphan_answered(place);
    }

    fn orphan_answered(&mut self, place: usize) {
        if let Some(orphan) = self.orphans.get_mut(place) {
            orphan.waiting = orphan.waiting.saturating_sub(1);
            if orphan.waiting == 0 {
                self.orphans.swap_remove(place);
            }
        }
    }

    fn joined(&mut self, joined: Joined) {
        let conn = joined.address.conn;
        if joined.ticket == Ticket::Admission {
            if self.is_being_admitted(conn) {
                self.joined_at_admission(conn, joined);
                return;
            }
            if joined.outcome.is_ok() {
                self.undo_join(conn, joined.room);
            }
            if let Some(place) = self.orphans.iter().position(|orphan| orphan.conn == conn) {
                self.orphan_answered(place);
            }
            return;
        }
        let Joined { room, selection, ticket, outcome, replay, resume_token, .. } = joined;
        let settings = self.settings.clone();
        let asker = self.asker(conn, &ticket);
        let Some(client) = self.client_mut(conn) else {
            if outcome.is_ok() {
                self.undo_join(conn, room);
            }
            return;
        };
        let wish = membership_answered(client, &room, true, asker.visit()).unwrap_or_default();
        if let Asker::Left(_) | Asker::Gone = asker {
            // Nobody is there any more whose room it would be, though the connection is. Its place is given back.
            if outcome.is_ok() {
                self.leave_home(room.clone(), conn);
            }
            if let Ticket::Part(part) = ticket {
                self.gathered(conn, part, |results| write_room(results, room.as_str()));
            }
            return;
        }
        // It may have lost the permission while the home was asked.
        let may_stay = may_stay(client, &settings.config, room.as_str());
        let is_own = room.as_str().strip_prefix("session:") == Some(&client.session.session_id);
        if let Some(token) = resume_token.filter(|_| is_own) {
            client.resume_token = token;
        }
        let outcome = match outcome {
            Ok(_) if !may_stay => {
                self.leave_home(room.clone(), conn);
                Err(Refused::new(ErrorCode::Forbidden, "the permission for this room was withdrawn"))
            }
            Ok(mut state) => {
                let entered = self.enter(conn, &room, selection, replay.is_some(), &state);
                // What a member that subscribes anew is still to be read from the log comes behind the answer.
                if let (Ok(id), Some(client)) = (&entered, self.client_mut(conn))
                    && let Some(after_seq) = client.owed_after(*id)
                {
                    state.seq = state.seq.min(after_seq);
                }
                entered.map(|id| (self.entered_for_deltas(conn, id, wish.delta), state))
            }
            Err(JoinRefused::Rooms) => Err(Refused::new(ErrorCode::Unavailable, "the hub has too many rooms")),
            Err(JoinRefused::Broker) => {
                Err(Refused::new(ErrorCode::Unavailable, "the broker can't be reached right now"))
            }
            Err(JoinRefused::SessionBusy) => Err(Refused::new(ErrorCode::Unavailable, "the session is being taken up")),
            Err(JoinRefused::SessionOfOther) => {
                Err(Refused::new(ErrorCode::Forbidden, "this session is another user's"))
            }
        };
        if let (Ok((id, state)), Some(seq), Some(client)) = (&outcome, wish.acked, self.client_mut(conn)) {
            // Numbers of a log that is gone say nothing of this one.
            if state.missed.is_some() {
                client.acked(*id, seq);
            }
        }
        match &outcome {
            Ok((id, _)) => {
                self.note_subscribed(conn, *id, asker.visit(), wish.namespaces);
                self.presence_entered(conn, &room);
            }
            Err(_) => self.presence_refused(conn, &room),
        }
        let replay = replay.unwrap_or_default();
        match (ticket, outcome) {
            (Ticket::Single(reference), Ok((id, state))) => {
                let lane = self.core.lane(id);
                self.tell_behind_events(conn, Some(lane), "subscribed", reference.as_ref(), |payload| {
                    write_subscribed(payload, room.as_str(), &state);
                });
                self.replay(conn, id, &replay, state.seq);
            }
            (Ticket::Single(reference), Err(refused)) => self.refuse_command(conn, reference.as_ref(), &refused),
            (Ticket::Part(part), Ok((id, state))) => {
                // A library's session goes on where it was. That something is missing there it is told where that would
                // have been, since all else may be lost with one more connection.
                let is_library = asker == Asker::Client && self.speaks_socketio(conn);
                let after_seq = wish.since.filter(|_| is_library).and_then(|since| goes_on_after(&since, &state));
                self.hold_replay(conn, id, &replay, (after_seq, state.seq), part);
                self.gathered(conn, part, |results| write_subscribed(results, room.as_str(), &state));
            }
            (Ticket::Part(part), Err(refused)) => {
                self.core.recorder.change(conn, What::Refused { code: refused.code });
                self.gathered(conn, part, |results| write_room_error(results, room.as_str(), &refused));
            }
            (Ticket::Admission | Ticket::Direct(_) | Ticket::Deposit(_), _) => {}
        }
    }

    /// Makes a connection a member on this shard, now that the home counts it as one. Where it said from where on it wants
    /// the room's events (`begins_anew`), what it had not been given before counts no more. `state` is the room's
    /// as its home counted it.
    fn enter(
        &mut self,
        conn: ConnKey,
        room: &RoomName,
        selection: Option<std::sync::Arc<crate::hub::selection::Selection>>,
        begins_anew: bool,
        state: &RoomState,
    ) -> Result<RoomId, Refused> {
        let before = self.core.rooms().find(room);
        let was_member =
            before.is_some_and(|id| self.client_mut(conn).is_some_and(|client| client.rooms.contains(&id)));
        let selected_before = before.filter(|_| was_member).map(|id| self.core.mark_of(id, conn));
        let mark = Mark::of(selection.as_ref());
        self.core.recorder.selected(selection.as_ref());
        let mut rest_after = None;
        if let Some(id) = before.filter(|_| was_member) {
            if !begins_anew && self.core.is_settled_with(id, conn, selection.as_ref()) {
                // Nothing changes, but that the home has counted it once more.
                self.leave_home(room.clone(), conn);
                return Ok(id);
            }
            // Subscribed anew: the new selection takes the place of the old one, and the home counts it once. What was
            // published before is still chosen by the old one.
            rest_after = self.deliver_rest(id, conn);
            let Some(client) = self.client_mut(conn) else {
                // Too slow for that, and closed: the membership it had ended with it, the new one does not begin.
                self.leave_home(room.clone(), conn);
                return Ok(id);
            };
            client.rooms.retain(|one| *one != id);
            if begins_anew {
                if client.forget_lag(id).is_some() {
                    self.core.recorder.change(conn, What::BeganAnew { room: room.clone() });
                }
                rest_after = None;
            }
            self.core.remove_member(id, conn);
            self.leave_home(room.clone(), conn);
            self.figures.subscriptions.sub(1);
        }
        match self.core.add_member(room, conn, selection) {
            Some(id) => {
                self.core.joined(id, state);
                if let Some(client) = self.client_mut(conn) {
                    client.rooms.push(id);
                }
                let name = self.name_in_table(id, room);
                let subscribed = What::Subscribed { room: name, mark, before: selected_before, after_seq: state.seq };
                self.core.recorder.change(conn, subscribed);
                self.figures.subscriptions.add(1);
                if was_member && self.client_mut(conn).is_some_and(|client| client.lags_in(id)) {
                    self.core.park(id, conn);
                } else if let Some(after_seq) = rest_after {
                    self.lag_begins(conn, id, after_seq, LagWaits::Outbox, false);
                }
                Ok(id)
            }
            None => {
                self.leave_home(room.clone(), conn);
                if let (Some(id), Some(client)) = (before, self.client_mut(conn)) {
                    client.forget_room(id);
                }
                if let Some(before) = selected_before {
                    let why = "too many different filters";
                    self.core.recorder.change(conn, What::Unsubscribed { room: room.clone(), before, why });
                }
                Err(Refused::new(ErrorCode::RoomLimit, "this room has too many different filters"))
            }
        }
    }

    /// Queues for a member what fan-outs under way still have for it. The last event before those that did not fit; none
    /// where all did.
    pub(super) fn deliver_rest(&mut self, id: RoomId, conn: ConnKey) -> Option<u64> {
        let lane = self.core.lane(id);
        let bytes_max = self.outbox_bytes_max(lane);
        let State { core, connections, dirty, settings, variant_memory, me, deflating, .. } = self;
        let memory_bytes_max = settings.config.limits.outbox_shard_bytes_max;
        let mut variants = Variants::new(*me, settings.namespaces(), variant_memory, memory_bytes_max, deflating);
        let connection = connections.get_mut(conn)?;
        let mut rest_after = None;
        core.fan_out_rest(id, conn, |bytes, batch| {
            let (one, way) = ((conn, &mut *connection), (lane, bytes_max));
            if rest_after.is_none() && variants::queue(one, way, (bytes, id, batch), &mut variants).is_err() {
                rest_after = batch.events.first().map(|event| event.seq.saturating_sub(1));
            }
        });
        if connection.outbox.mark_dirty() {
            dirty.push(conn);
        }
        if let Some(after_seq) = rest_after.filter(|_| core.policy_of(id) == Policy::Disconnect) {
            self.note_lag(conn, id, after_seq, LagWaits::Outbox);
            self.close_slow(conn);
        }
        rest_after
    }

    /// A newer connection holds the session. This one may be open, or about to be.
    fn taken_over(&mut self, conn: ConnKey, room: RoomName, successor: Option<(Address, Box<ResumeAsked>)>) {
        let session = room.as_str().strip_prefix("session:").unwrap_or_default().to_owned();
        if let Some((successor, asked)) = successor {
            self.hand_down(conn, room, successor, asked);
        }
        match self.connections.get_mut(conn).map(|connection| &mut connection.phase) {
            Some(Phase::Open(client)) if *client.session.session_id == *session => {
                self.close(conn, close::TAKEN_OVER, "taken over by a newer connection");
            }
            Some(Phase::Admission(admission)) if *admission.session_id == *session => {
                admission.refused.get_or_insert(Refusal::session_taken_over());
            }
            // It holds another session by now, or none.
            _ => {}
        }
    }

    fn undo_join(&mut self, conn: ConnKey, room: RoomName) {
        let address = self.address(conn);
        if room.as_str().starts_with("session:") {
            self.core.send_home(&room.clone(), Message::ReleaseSession { room: room.clone(), address, kept: None });
        }
        self.leave_home(room, conn);
    }

    fn left(&mut self, conn: ConnKey, room: RoomName, ticket: Ticket) {
        let id = self.core.rooms().find(&room);
        let asker = self.asker(conn, &ticket);
        let Some(client) = self.client_mut(conn) else { return };
        membership_answered(client, &room, false, asker.visit());
        let is_asked = matches!(asker, Asker::Client | Asker::Visitor(_));
        if let Some(id) = id.filter(|id| is_asked && !self.stays_for_others(conn, *id, asker.visit()))
            && let Some(client) = self.client_mut(conn)
        {
            client.forget_room(id);
            self.note_leaving(conn, &room, id);
            let before = self.core.mark_of(id, conn);
            if self.core.remove_member(id, conn) {
                self.core.recorder.change(conn, What::Unsubscribed { room: room.clone(), before, why: "asked to" });
                self.figures.subscriptions.sub(1);
                self.presence_changed(conn, std::slice::from_ref(&room), Change::Gone);
                self.leave_home(room.clone(), conn);
            }
        }
        match ticket {
            Ticket::Single(reference) => {
                let write = |payload: &mut Vec<u8>| write_room(payload, room.as_str());
                let lane = self.core.rules().lane(room.as_str());
                self.tell_behind_events(conn, Some(lane), "unsubscribed", reference.as_ref(), write);
            }
            Ticket::Part(part) => self.gathered(conn, part, |results| write_room(results, room.as_str())),
            Ticket::Admission | Ticket::Direct(_) | Ticket::Deposit(_) => {}
        }
    }

    fn published(&mut self, conn: ConnKey, ticket: Ticket, room: &RoomName, outcome: Result<Published, Refused>) {
        match (ticket, outcome) {
            (Ticket::Single(reference), Ok(published)) => {
                let name = room.as_str();
                self.answer(conn, "published", reference.as_ref(), |payload| {
                    write_published(payload, name, &published)
                });
            }
            (Ticket::Direct(reference), Ok(published)) => {
                self.answer(conn, "sent", reference.as_ref(), |payload| {
                    write_sent(payload, u64::from(published.delivered), u64::from(published.queued));
                });
            }
            (Ticket::Deposit(reference), Ok(_)) => {
                self.answer(conn, "accepted", reference.as_ref(), |payload| payload.extend_from_slice(b"{}"));
            }
            (Ticket::Single(reference) | Ticket::Direct(reference) | Ticket::Deposit(reference), Err(refused)) => {
                self.refuse_command(conn, reference.as_ref(), &refused)
            }
            (Ticket::Part(part), Ok(published)) => {
                self.gathered_send(conn, part, u64::from(published.delivered), u64::from(published.queued));
            }
            (Ticket::Part(part), Err(refused)) => {
                self.count_refused(conn, refused.code);
                self.gathered_send(conn, part, 0, 0);
            }
            (Ticket::Admission, _) => {}
        }
    }

    fn forward_to_session(&mut self, conn: ConnKey, direct: Direct) {
        let Some(client) = self.client_mut(conn) else {
            self.core.refuse_direct(direct);
            return;
        };
        let session_id = client.session.session_id.clone();
        let room = self.core.hasher().session_room(&session_id);
        let Direct { kind, data, reply, .. } = direct;
        let received_us = self.now.monotonic_us;
        self.core.route_publish(Publish { room, kind, data, key: None, exclude: None, received_us, reply });
    }

    fn client_request(&mut self, conn: ConnKey, request: ClientRequest) {
        let settings = self.settings.clone();
        let request = match request {
            ClientRequest::Reauthenticate { grace_s, responder } => {
                let asked = self.reauthenticate(conn, grace_s);
                return responder.resolve(asked.ok_or_else(|| NO_CONNECTION.into()));
            }
            ClientRequest::Withdraw { withdraw, responder } => {
                let withdrew = self.withdraw(conn, &withdraw);
                return responder.resolve(withdrew.ok_or_else(|| NO_CONNECTION.into()));
            }
            other => other,
        };
        let Some(client) = self.client_mut(conn) else {
            request.refuse();
            return;
        };
        match request {
            ClientRequest::View { responder } => match self.connection_view(conn) {
                Some(view) => responder.resolve(Ok(view)),
                None => ClientRequest::View { responder }.refuse(),
            },
            ClientRequest::Metadata { set, responder } => {
                let merged = match set {
                    Some(set) => client.session.merge_metadata(set, &settings.config),
                    None => Ok(()),
                };
                responder.resolve(merged.map(|()| client.session.metadata()).map_err(Into::into));
            }
            ClientRequest::Disconnect { code, reason, responder } => {
                self.close(conn, code, &reason);
                responder.resolve(Ok(1));
            }
            other @ (ClientRequest::Reauthenticate { .. } | ClientRequest::Withdraw { .. }) => other.refuse(),
        }
    }
}

/// The event behind which a room's events go on for a session that was taken up; none where it is not known, or none follow.
fn goes_on_after(since: &Since, state: &RoomState) -> Option<u64> {
    match (since, state.missed) {
        (_, Some(0)) => None,
        (Since::Seq { seq, .. }, Some(_)) => Some(*seq),
        // The log has another life, which is told. All of it is new.
        (Since::Seq { .. }, None) => Some(BEFORE_ALL),
        (_, None) => Some(0),
        (_, Some(_)) => None,
    }
}

/// Takes the oldest join or leave of a room, of those that had the same asker, off the list of those under way. What was
/// wanted of the room.
fn membership_answered(client: &mut Client, room: &RoomName, joins: bool, by: Option<(Space, Visit)>) -> Option<Wish> {
    let memberships = &mut client.under_way.as_mut()?.memberships;
    let place = memberships.iter().position(|one| one.joins() == joins && one.room == *room && one.by == by)?;
    let membership = memberships.remove(place);
    client.tidy();
    membership.join
}

fn write_published(payload: &mut Vec<u8>, room: &str, published: &Published) {
    payload.extend_from_slice(b"{\"room\":");
    write_string(payload, room);
    payload.extend_from_slice(b",\"id\":\"");
    payload.extend_from_slice(&published.id);
    payload.extend_from_slice(b"\",\"seq\":");
    write_u64(payload, published.seq);
    payload.extend_from_slice(b",\"epoch\":");
    write_string(payload, &epoch_text(published.epoch));
    payload.extend_from_slice(if published.duplicate { b",\"duplicate\":true}" } else { b",\"duplicate\":false}" });
}
