//! What the hub's handle and the control plane ask of this shard.

use std::sync::atomic::Ordering;

use super::connection::Phase;
use super::deflating::DeflateRules;
use super::request::{ForDriver, Request};
use super::state::{Action, State};
use super::time::Drain;
use crate::hub::core::CoreLimits;
use crate::hub::message::Message;
use crate::hub::presence::{Asker, PresenceAsked};
use crate::hub::relayed::HistoryCall;
use crate::hub::rules::Rules;
use crate::wire::codes::close;
use crate::wire::json::write_u64;

/// How long the end of a drain waits for what the hub owes the broker; a look at a lock that has left takes a second.
const OWES_MS: u64 = 3000;

impl State {
    /// Carries out a request; what needs the driver is given back.
    pub fn request(&mut self, request: Request) -> Option<ForDriver> {
        let now = self.now;
        self.core.set_now(now);
        match request {
            Request::Publish(publish) => {
                // The handle sends events straight to their home, which this shard is.
                self.core.route_publish(*publish);
            }
            Request::SendToClient { client_id, direct } => {
                if let Some(message) = self.core.handle(Message::SendToClient { client_id, direct }, now) {
                    self.member_message(message);
                }
            }
            Request::Client { client_id, request } => self.core.forward_to_client(&client_id, request),
            Request::Session { room, request } => self.core.forward_to_session(&room, request),
            Request::DisconnectUser { user_id, code, reason, responder } => {
                let mut closed = 0;
                for conn in self.connections.keys() {
                    let is_users =
                        self.client_mut(conn).is_some_and(|client| *client.session.identity.user_id == *user_id);
                    if is_users {
                        self.close(conn, code, &reason);
                        closed += 1;
                    }
                }
                responder.resolve(Ok(closed));
            }
            Request::ReauthenticateUser { user_id, grace_s, responder } => {
                responder.resolve(Ok(self.reauthenticate_user(&user_id, grace_s)));
            }
            Request::WithdrawFromSession { room, withdraw, responder } => {
                self.core.withdraw_from_session(&room, withdraw, responder);
            }
            Request::WithdrawFromUser { user_id, withdraw, responder } => {
                responder.resolve(Ok(self.withdraw_from_user(&user_id, &withdraw)));
            }
            Request::YieldSession(asked) => self.core.yield_session(asked),
            Request::SessionSought { resume, found } => self.session_sought(*resume, found),
            Request::NameSought { conn, session_id, identity, found } => {
                self.name_sought(conn, &session_id, &identity, found);
            }
            Request::ForMember(message) => self.member_message(*message),
            Request::HasClient { client_id, responder } => responder.resolve(Ok(self.core.has_client(&client_id))),
            Request::IsOccupied { room, responder } => responder.resolve(Ok(self.core.is_occupied(&room))),
            Request::Audience { room, responder } => responder.resolve(Ok(self.core.audience(&room))),
            Request::Locks { room, responder } => responder.resolve(Ok(self.core.list_locks(&room))),
            Request::LockPage { room, window, responder } => {
                responder.resolve(Ok(self.core.lock_page(room.as_ref(), &window)));
            }
            Request::Unlock { room, field, responder } => {
                self.core.force_unlock(&room, &field, now, responder);
            }
            Request::Presence { room, responder } => {
                let asked = PresenceAsked { room, asker: Asker::Handle(responder) };
                self.message(Message::PresenceAsked(Box::new(asked)));
            }
            Request::Collect { room, responder } => self.core.collect(&room, responder),
            Request::PutBack { room, message } => self.core.put_back(&room, message),
            Request::Connections { filter, window, responder } => {
                responder.resolve(Ok(self.list_connections(&filter, window)));
            }
            Request::Rooms { filter, window, responder } => {
                responder.resolve(Ok(self.list_rooms_at_home(&filter, window)));
            }
            Request::Room { room, responder } => responder.resolve(self.room_view(&room).map_err(Into::into)),
            Request::SessionView { room, responder } => self.session_view(&room, responder),
            Request::History { room, since, limit, reverse, responder } => {
                self.core.history_call(HistoryCall { room, since, limit, reverse, responder });
            }
            Request::ClearHistory { room, responder } => self.core.clear_history(&room, responder),
            Request::Ping { number, asked, canaries, signs } => {
                signs.answer(number, asked.elapsed().as_micros() as u64);
                if canaries {
                    self.core.send_canaries(number, &signs);
                }
            }
            // Looked at in every turn that there is.
            Request::FreeOfDead { room, noted, responder } => self.core.free_of_dead(room, *noted, responder),
            Request::Look => {}
            Request::Verdict { conn, verdict } => self.verdict(conn, verdict),
            Request::EngineOpen { head, origin, responder } => self.open_polled(&head, origin, responder),
            Request::EnginePoll { sid, responder } => self.poll(&sid, responder),
            Request::EnginePush { sid, body, responder } => self.push(&sid, body, responder),
            Request::Adopt(adopted) => return Some(ForDriver::Adopt(adopted)),
            Request::Explain(asked) => return Some(ForDriver::Explain(asked)),
            Request::Whereabouts { client_id, responder } => responder.resolve(Ok(self.core.address_of(&client_id))),
            Request::FindEvent { event_id, responder } => responder.resolve(Ok(self.find_event(&event_id))),
            Request::Trace { asked, live, responder } => responder.resolve(Ok(self.trace(&asked, live))),
            Request::Reload(settings) => {
                // Kinds may change their places.
                self.count_kinds();
                self.core.set_limits(CoreLimits::new(&settings.config), Rules::new(&settings.config));
                self.deflating.follow(DeflateRules::new(&settings.config));
                self.settings = settings;
                // A room whose kind has become urgent may have events among the ordinary ones.
                for conn in self.connections.keys() {
                    if let Some(connection) = self.connections.get_mut(conn) {
                        connection.outbox.fall_in_line();
                    }
                }
            }
            Request::Drain { over_ms, spread_ms } => self.begin_drain(over_ms, spread_ms),
            Request::Stop => self.stop(),
        }
        self.drain_local();
        None
    }

    fn begin_drain(&mut self, over_ms: u64, spread_ms: u64) {
        if self.drain.is_some() {
            return;
        }
        let drain = Drain { began_ms: self.now_ms(), over_ms, spread_ms };
        self.drain = Some(drain);
        self.mesh.draining.store(true, Ordering::Relaxed);
        self.actions.push(Action::StopListening);
        for conn in self.connections.keys() {
            let reconnect_ms = drain.reconnect_ms(conn);
            self.tell(conn, "draining", None, |payload| {
                payload.extend_from_slice(b"{\"reconnect_after_ms\":");
                write_u64(payload, reconnect_ms);
                payload.push(b'}');
            });
            let closes_ms = drain.closes_at(conn);
            let Some(connection) = self.connections.get_mut(conn) else { continue };
            if closes_ms < connection.due_ms {
                connection.due_ms = closes_ms;
                self.timers.schedule(conn, &mut connection.alarm, closes_ms);
            }
        }
    }

    /// Ends every connection now; the shard ends when the last is gone.
    fn stop(&mut self) {
        self.begin_drain(0, 0);
        self.stopping = true;
        for conn in self.connections.keys() {
            let Some(connection) = self.connections.get(conn) else { continue };
            match connection.phase {
                Phase::Open(_) | Phase::Echo(_) | Phase::Lobby => self.close(conn, close::DRAINING, "0"),
                Phase::Closing(_) => {}
                _ => self.abandon(conn),
            }
        }
    }

    /// Whether a drain is over: until the node's last connection is gone, this shard is home to rooms and names of others.
    pub fn is_done(&self) -> bool {
        let others_are_gone = self.stopping || self.mesh.connections.load(Ordering::Relaxed) == 0;
        // Who publishes over HTTP waits for the journal's or the broker's answer too, unless all is to end at once.
        let is_answered = self.stopping || !(self.core.awaits_journal() || self.core.awaits_broker());
        let is_over = self.connections.is_empty() && others_are_gone && is_answered;
        // What the hub itself owes is waited for as well, not longer than a broker that is there takes.
        let is_late = |drain: Drain| self.now_ms() >= drain.began_ms + drain.over_ms + OWES_MS;
        self.drain.is_some_and(|drain| is_over && (self.stopping || !self.core.owes_broker() || is_late(drain)))
    }
}
