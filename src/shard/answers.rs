//! What a connection is told: answers, errors, notices.

use super::connection::Phase;
use super::state::State;
use crate::hub::core::epoch_text;
use crate::hub::message::RoomState;
use crate::hub::outbox::{ANSWERS_BYTES_MAX, Lane};
use crate::hub::recorder::What;
use crate::ring::ConnKey;
use crate::session::Expiry;
use crate::wire::codes::{ErrorCode, close};
use crate::wire::envelope;
use crate::wire::json::{write_string, write_u64};
use crate::wire::native::{Reference, Refused};

/// The type of the greeting.
pub(super) const GREETING: &str = "connection_established";

impl State {
    /// Sends a message of the hub to one connection; `write` appends its data.
    pub fn tell(
        &mut self,
        conn: ConnKey,
        kind: &'static str,
        reference: Option<&Reference>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let stamp = self.core.ids().stamp(self.now.unix_ms);
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if !matches!(connection.phase, Phase::Open(_)) {
            return;
        }
        let is_asked_for = reference.is_none() || connection.wants_answer(reference);
        if connection.socketio.is_some() && !is_asked_for && !matches!(kind, "error" | GREETING) {
            // What a native client is answered in any case, it has no acknowledgement for.
            return;
        }
        envelope::begin(&mut self.payload, kind, &stamp, connection.shown(reference));
        write(&mut self.payload);
        self.core.recorder.told(conn, kind, &self.payload, false);
        let before = connection.outbox.answers_bytes();
        connection.finish_message(&self.settings, &mut self.payload, kind, reference, None, None);
        self.deflating.answers(&mut connection.outbox, before);
        if connection.outbox.mark_dirty() {
            self.dirty.push(conn);
        }
        if connection.outbox.answers_full(before, self.settings.config.limits.outbox_bytes_max) {
            self.close_slow(conn);
        }
    }

    /// Sends an answer that must not overtake the events which wait already: they were published before what it tells of.
    /// It is about a room whose events go in that lane, or, with none, about several, whose later events must not overtake
    /// it either. Nothing is sent where the command had no id.
    pub fn tell_behind_events(
        &mut self,
        conn: ConnKey,
        about: Option<Lane>,
        kind: &'static str,
        reference: Option<&Reference>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.wants_answer(conn, reference) {
            self.tell_in_order(conn, about, kind, reference, write);
        }
    }

    /// Likewise, whether or not it is an answer.
    pub fn tell_in_order(
        &mut self,
        conn: ConnKey,
        about: Option<Lane>,
        kind: &'static str,
        reference: Option<&Reference>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let outbox_bytes_max = self.settings.config.limits.outbox_bytes_max;
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let lanes = about.map_or([Lane::Ordinary, Lane::Urgent], |lane| [lane; 2]);
        let lane = lanes.into_iter().find(|lane| connection.outbox.waits_in(*lane));
        let Some(lane) = lane.filter(|_| matches!(connection.phase, Phase::Open(_))) else {
            return self.tell(conn, kind, reference, write);
        };
        let stamp = self.core.ids().stamp(self.now.unix_ms);
        let mut frame = Vec::new();
        envelope::begin(&mut self.payload, kind, &stamp, connection.shown(reference));
        write(&mut self.payload);
        self.core.recorder.told(conn, kind, &self.payload, true);
        connection.finish_message(&self.settings, &mut self.payload, kind, reference, None, Some(&mut frame));
        let frame = self.core.memory().share(self.deflating.chunk(&connection.outbox, frame));
        // An answer has the answers' reserve wherever it stands.
        let full = connection.outbox.push_events(&frame, lane, outbox_bytes_max + ANSWERS_BYTES_MAX).is_err();
        if about.is_none() {
            connection.outbox.fall_in_line();
        }
        if connection.outbox.mark_dirty() {
            self.dirty.push(conn);
        }
        if full {
            self.close_slow(conn);
        }
    }

    /// Sends an answer, if the command had an id.
    pub fn answer(
        &mut self,
        conn: ConnKey,
        kind: &'static str,
        reference: Option<&Reference>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.wants_answer(conn, reference) {
            self.tell(conn, kind, reference, write);
        }
    }

    fn wants_answer(&self, conn: ConnKey, reference: Option<&Reference>) -> bool {
        self.connections.get(conn).is_some_and(|connection| connection.wants_answer(reference))
    }

    /// Tells of a refusal; one bad message too many closes the connection.
    pub fn refuse_command(&mut self, conn: ConnKey, reference: Option<&Reference>, refused: &Refused) {
        self.count_refused(conn, refused.code);
        self.tell(conn, "error", reference, |payload| {
            envelope::write_error_data(payload, refused.code, &refused.message, None);
        });
        if refused.code.is_bad_message() {
            let (settings, now) = (self.settings.clone(), self.now);
            let too_many = self.client_mut(conn).is_some_and(|client| client.session.count_bad(&settings.config, now));
            if too_many {
                self.close(conn, close::POLICY, "too many bad messages");
            }
        }
    }

    /// Counts an error that a client is told of.
    pub fn count_refused(&mut self, conn: ConnKey, code: ErrorCode) {
        self.figures.errors.add(code.as_str());
        self.core.recorder.change(conn, What::Refused { code });
    }

    /// Tells that a message came too soon.
    pub fn refuse_rate(&mut self, conn: ConnKey, reference: Option<&Reference>, retry_after_ms: u64) {
        self.count_refused(conn, ErrorCode::RateLimited);
        self.figures.rate_limited.add(1);
        self.tell(conn, "error", reference, |payload| {
            let message = "too many messages; this one was not taken";
            envelope::write_error_data(payload, ErrorCode::RateLimited, message, Some(retry_after_ms));
        });
    }

    /// Looks at the token's end; when to look again, none where the connection was closed.
    pub fn look_at_token(&mut self, conn: ConnKey) -> Option<u64> {
        let (settings, now) = (self.settings.clone(), self.now);
        loop {
            let Some(client) = self.client_mut(conn) else { return Some(u64::MAX) };
            let expires_at = client.session.identity.expires_at.unwrap_or_default();
            match client.session.expiry(&settings.config, now) {
                Expiry::Never => return Some(u64::MAX),
                Expiry::At(unix_ms) => return Some(self.now_ms() + unix_ms.saturating_sub(now.unix_ms)),
                Expiry::Tell => {
                    self.tell(conn, "auth.expiring", None, |payload| write_expires_at(payload, Some(expires_at)))
                }
                Expiry::Expired => {
                    self.close(conn, close::TOKEN_EXPIRED, "the token expired");
                    return None;
                }
                Expiry::Unproven => {
                    self.close(conn, close::TOKEN_EXPIRED, "no valid token came in time");
                    return None;
                }
            }
        }
    }
}

/// `{"expires_at":…}`, null for a token without end.
pub(super) fn write_expires_at(payload: &mut Vec<u8>, expires_at: Option<u64>) {
    payload.extend_from_slice(b"{\"expires_at\":");
    match expires_at {
        None => payload.extend_from_slice(b"null"),
        Some(seconds) => {
            payload.push(b'"');
            payload.extend_from_slice(&envelope::rfc3339(seconds.saturating_mul(1000)));
            payload.push(b'"');
        }
    }
    payload.push(b'}');
}

/// What `subscribed` says of a room.
pub(super) fn write_subscribed(payload: &mut Vec<u8>, room: &str, state: &RoomState) {
    payload.extend_from_slice(b"{\"room\":");
    write_string(payload, room);
    payload.extend_from_slice(b",\"seq\":");
    write_u64(payload, state.seq);
    payload.extend_from_slice(b",\"epoch\":");
    write_string(payload, &epoch_text(state.epoch));
    payload.extend_from_slice(if state.recovered { b",\"recovered\":true" } else { b",\"recovered\":false" });
    payload.extend_from_slice(b",\"replayed\":");
    write_u64(payload, state.replayed);
    payload.extend_from_slice(b",\"missed\":");
    match state.missed {
        Some(missed) => write_u64(payload, missed),
        None => payload.extend_from_slice(b"null"),
    }
    payload.push(b'}');
}

/// `{"room":…}`.
pub(super) fn write_room(payload: &mut Vec<u8>, room: &str) {
    payload.extend_from_slice(b"{\"room\":");
    write_string(payload, room);
    payload.push(b'}');
}

/// What a list of results says of a room that failed.
pub(super) fn write_room_error(payload: &mut Vec<u8>, room: &str, refused: &Refused) {
    payload.extend_from_slice(b"{\"room\":");
    write_string(payload, room);
    payload.extend_from_slice(b",\"error\":{\"code\":\"");
    payload.extend_from_slice(refused.code.as_str().as_bytes());
    payload.extend_from_slice(b"\",\"message\":");
    write_string(payload, &refused.message);
    payload.extend_from_slice(b"}}");
}
